"""The directory of an ipc bus vanishes while buses run: a cleaner of /tmp, a logout, `rm -r`."""

import asyncio
import logging
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from actors import ActorError, Nursery

from aiobus import AsyncEventBus, BusClosed, Event, NameInUse

pytestmark = pytest.mark.usefixtures("no_task_is_left")

Logged = Callable[[str], AbstractContextManager[asyncio.Event]]
SECONDS = 2.0
"""In which a bus has to notice."""
AGAIN = "had vanished and is made again"


@pytest.fixture
def desk() -> Iterator[Path]:
    """The directory of the bus; its path is short, as that of a socket has to be."""
    with tempfile.TemporaryDirectory(prefix="ab", dir="/tmp") as folder:
        yield Path(folder, "run", "desk")


@pytest.fixture
def url(desk: Path) -> str:
    return f"ipc://{desk}"


async def all_linked(bus: AsyncEventBus, *names: str) -> None:
    async with bus.stream("aiobus.peer_joined") as joined:
        while {each.name for each in bus.peers} < set(names):
            await anext(joined)


LINKED = """
async with bus.stream("aiobus.peer_joined") as joined:
    while name not in [each.name for each in bus.peers]:
        await anext(joined)
"""


async def test_a_bus_whose_directory_has_vanished_makes_it_again_and_says_so(
    desk: Path, url: str, logged: Logged
) -> None:
    async with AsyncEventBus(url, name="strategy"), asyncio.timeout(SECONDS):
        with logged(AGAIN) as said:
            shutil.rmtree(desk.parent)
            await said.wait()
        assert (desk / "strategy.sock").is_socket()
    assert not desk.exists()  # noqa: ASYNC240


async def test_one_that_comes_after_that_is_heard_by_those_that_were_there(
    desk: Path, url: str, logged: Logged
) -> None:
    """A kill switch that meets no bus and is told that all is well would be the worst of tools."""
    halted: asyncio.Queue[object] = asyncio.Queue()
    async with AsyncEventBus(url, name="strategy") as strategy:
        await strategy.subscribe("HALT", lambda event: halted.put_nowait(event.data))
        with logged(AGAIN) as said:
            shutil.rmtree(desk.parent)
            await said.wait()
        async with AsyncEventBus(url, name="tool") as tool:
            assert [each.name for each in tool.peers] == ["strategy"]
            await tool.publish(Event("HALT", "now"))
            assert await tool.flush() == []
        assert await halted.get() == "now"


@pytest.mark.skipif(not Path("/proc/net/unix").exists(), reason="only Linux tells who listens")
async def test_one_that_comes_while_another_cannot_notice_is_told_no_success(
    desk: Path, url: str, nursery: Nursery
) -> None:
    """A tool that came while the others were frozen met an empty directory, and was told `[]`."""
    strategy = await nursery.actor()
    await strategy.start(url, "strategy")
    await strategy.hear("HALT")
    strategy.kill(signal.SIGSTOP)
    shutil.rmtree(desk.parent)
    endpoint = f"ipc://{desk}/strategy.sock"
    async with AsyncEventBus(url, name="tool") as tool:
        assert tool.stats().unreached == (endpoint,)
        await tool.publish(Event("HALT", "now"))
        assert await tool.flush(0.2) == [endpoint]
        flushing = asyncio.create_task(tool.flush(20))
        strategy.kill(signal.SIGCONT)
        assert await flushing == []
        assert tool.stats().unreached == ()
    assert await strategy.heard(1) == ["now"]


@pytest.mark.one_loop
async def test_one_that_comes_right_after_that_is_told_success_only_when_it_is_heard(
    desk: Path, url: str
) -> None:
    for number in range(20):
        halted: list[object] = []
        async with AsyncEventBus(url, name="strategy") as strategy:
            await strategy.subscribe("HALT", lambda event, halted=halted: halted.append(event.data))
            shutil.rmtree(desk.parent)
            async with AsyncEventBus(url, name="tool") as tool:
                await tool.publish(Event("HALT", number))
                assert await tool.flush() == []
                await strategy.settle()
                assert halted == [number]


async def test_one_that_comes_before_that_is_found_by_those_that_were_there(
    desk: Path, url: str
) -> None:
    async with AsyncEventBus(url, name="a") as a, AsyncEventBus(url, name="b") as b:
        shutil.rmtree(desk.parent)
        async with AsyncEventBus(url, name="late") as late, asyncio.timeout(SECONDS):
            await all_linked(late, "a", "b")
            await all_linked(a, "b", "late")
            await all_linked(b, "a", "late")


async def test_a_name_is_given_away_no_more_once_its_owner_is_there_again(
    desk: Path, url: str, logged: Logged
) -> None:
    async with AsyncEventBus(url, name="strategy"):
        with logged(AGAIN) as said:
            shutil.rmtree(desk.parent)
            await said.wait()
        with pytest.raises(NameInUse):
            await AsyncEventBus(url, name="strategy").start()


async def test_links_go_on_and_nothing_is_lost_or_doubled_meanwhile(desk: Path, url: str) -> None:
    async with AsyncEventBus(url, name="a") as a, AsyncEventBus(url, name="b") as b:
        heard: list[int] = []
        await b.subscribe(["T", "aiobus.gap", "aiobus.peer_left"], lambda e: heard.append(e.data))
        shutil.rmtree(desk.parent)
        number = 0
        while not ((desk / "a.sock").exists() and (desk / "b.sock").exists()):
            await a.publish(Event("T", number))
            number += 1
            await asyncio.sleep(0)
        assert await a.flush() == []
        await b.settle()
        assert heard == list(range(number))


async def test_a_bus_whose_name_another_has_taken_meanwhile_ends_and_says_so(
    desk: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NameInUse), socket.socket(socket.AF_UNIX) as other:
        async with AsyncEventBus(url, name="a") as bus:
            (desk / "a.sock").unlink()
            other.bind(str(desk / "a.sock"))
            other.listen()
            await asyncio.Event().wait()
    assert [each.levelno for each in caplog.records if "a ends: " in each.getMessage()] == [
        logging.ERROR
    ]
    assert (desk / "a.sock").exists()
    assert (bus.peers, repr(bus).split()[3]) == ((), "closed")


async def test_that_ends_a_bus_outside_of_async_with_as_well(desk: Path, url: str) -> None:
    bus = AsyncEventBus(url, name="a")
    await bus.start()
    with socket.socket(socket.AF_UNIX) as other:
        (desk / "a.sock").unlink()
        other.bind(str(desk / "a.sock"))
        other.listen()
        with pytest.raises(NameInUse):
            await bus.wait_closed()
        await bus.close()
        with pytest.raises(BusClosed) as caught:
            await bus.publish(Event("T", 1))
        assert isinstance(caught.value.__cause__, NameInUse)
    assert repr(bus).split()[3] == "closed"


async def test_of_two_processes_with_one_name_the_one_without_the_path_ends(
    desk: Path, url: str, nursery: Nursery
) -> None:
    """It was frozen while the directory vanished and the other came."""
    frozen, other, peer = await nursery.actors(3)
    await frozen.start(url, "a")
    await peer.start(url, "peer")
    await peer(LINKED, name="a")
    await peer.hear("T")
    frozen.kill(signal.SIGSTOP)
    shutil.rmtree(desk.parent)
    await other.start(url, "a")
    frozen.kill(signal.SIGCONT)
    with pytest.raises(ActorError, match="NameInUse"):
        await frozen("await bus.wait_closed()")
    await other(LINKED, name="peer")
    await other("await bus.publish(Event('T', 'other'))")
    assert await peer.heard(1) == ["other"]


@pytest.mark.one_loop
async def test_a_link_to_a_frozen_peer_whose_socket_has_vanished_is_kept(
    desk: Path, url: str, nursery: Nursery
) -> None:
    """It was cut after a silence of 10 s, and could not be made again."""
    a, b = await nursery.actors(2)
    await a("from aiobus.mesh import peers; peers.RELINK = 1.0")
    await a.start(url, "a")
    await b.start(url, "b")
    await a(LINKED, name="b")
    await a.hear("T")
    await a(
        """
        self.stale = asyncio.Event()
        await bus.subscribe("aiobus.stale", lambda event: self.stale.set())
        """
    )
    b.kill(signal.SIGSTOP)
    shutil.rmtree(desk.parent)
    await a("await self.stale.wait()")
    b.kill(signal.SIGCONT)
    await b("for i in range(100): await bus.publish(Event('T', i)); await asyncio.sleep(0)")
    assert await b("return await bus.flush()") == []
    assert await a.heard(100) == list(range(100))
