"""Buses that cannot meet because a process is frozen: nothing is called a success, no name is given
away, and all is well once it goes on. Real processes.
"""

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from actors import Actor, ActorError, Nursery, tcp_url

from aiobus import AsyncEventBus, BusClosed, BusError, Event, NameInUse

pytestmark = [pytest.mark.usefixtures("no_task_is_left"), pytest.mark.one_loop]


@pytest.fixture(params=["ipc", "tcp", "tcp with two addresses"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "ipc":
        folder = Path(tempfile.mkdtemp(prefix="ab"))
        yield f"ipc://{folder}/d"
        shutil.rmtree(folder)
    else:
        one, two = tcp_url(), tcp_url()
        yield one if request.param == "tcp" else f"{one},{two.removeprefix('tcp://')}"


async def started(nursery: Nursery, url: str, *names: str) -> list[Actor]:
    actors = await nursery.actors(len(names))
    for actor, name in zip(actors, names, strict=True):
        await actor.start(url, name)
    return actors


async def refused(nursery: Nursery, url: str, name: str) -> str:
    """The kind of error with which a bus of this name does not start."""
    with pytest.raises(ActorError) as error:
        await (await nursery.actor()).start(url, name)
    return error.value.kind


UNREACHED = "return list(bus.stats().unreached)"


@pytest.mark.slow
async def test_while_one_address_is_held_by_a_frozen_process_all_others_meet_at_the_other(
    nursery: Nursery,
) -> None:
    """A kill switch reaches every bus that runs, and is told that one may be missing."""
    one, two = tcp_url(), tcp_url()
    url = f"{one},{two.removeprefix('tcp://')}"
    monitor, strategy = await started(nursery, url, "monitor", "strategy")
    await strategy.hear("HALT")
    assert await strategy(UNREACHED) == []
    monitor.kill(signal.SIGSTOP)
    tool = await nursery.actor()
    starting = tool.start(url, "killswitch")
    namesakes = asyncio.gather(*(refused(nursery, url, name) for name in ("strategy", "monitor")))
    await starting
    await tool("await bus.publish(Event('HALT', 'now'))")
    assert await strategy.heard(1) == ["now"]
    assert await tool(UNREACHED) == [one]
    assert one in await tool("return await bus.flush(1)")
    assert one in await tool("return await bus.close(1)")
    assert await namesakes == ["NameInUse", "NameInUse"]


async def test_a_bus_that_may_be_alone_says_so_until_the_frozen_holder_answers(
    nursery: Nursery,
) -> None:
    url = tcp_url()
    (holder,) = await started(nursery, url, "holder")
    await holder.hear("HALT")
    holder.kill(signal.SIGSTOP)
    said: asyncio.Queue[Any] = asyncio.Queue()
    async with AsyncEventBus(url, name="tool") as bus:
        await bus.subscribe("aiobus.unreached", lambda event: said.put_nowait(event.data))
        assert bus.stats().unreached == (url,)
        assert await said.get() == {"addresses": [url]}
        subscription = await bus.subscribe("T", print)
        assert subscription.unconfirmed == {url}
        await bus.publish(Event("HALT", "now"))
        assert await bus.flush(0.5) == [url]
        async with bus.stream("aiobus.peer_joined") as joined:
            holder.kill(signal.SIGCONT)
            assert await said.get() == {"addresses": []}
            while "holder" not in [each.name for each in bus.peers]:
                await anext(joined)
        assert bus.stats().unreached == ()
        assert subscription.unconfirmed == set()
        assert await holder.heard(1) == ["now"]
        assert await bus.flush() == []


async def test_a_bus_that_may_be_alone_is_told_no_success_when_it_closes(nursery: Nursery) -> None:
    url = tcp_url()
    (holder,) = await started(nursery, url, "holder")
    holder.kill(signal.SIGSTOP)
    tool = AsyncEventBus(url, name="tool")
    await tool.start()
    assert await tool.close() == [url]
    holder.kill(signal.SIGCONT)
    again = AsyncEventBus(url, name="tool")
    await again.start()
    assert await again.close() == []


async def test_a_bus_that_may_be_alone_ends_when_it_meets_an_older_one_of_its_name(
    nursery: Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    url = tcp_url()
    holder, older, tool = await started(nursery, url, "holder", "strategy", "tool")
    await older.hear("T")
    holder.kill(signal.SIGSTOP)
    younger = AsyncEventBus(url, name="strategy")
    with pytest.raises(NameInUse, match="'strategy'"):
        async with younger:
            assert younger.stats().unreached == (url,)
            holder.kill(signal.SIGCONT)
            await asyncio.Event().wait()
    with pytest.raises(NameInUse):
        await younger.wait_closed()
    assert caplog.text.count("strategy ends: a bus named 'strategy' is on") == 1
    await tool("await bus.publish(Event('T', 1))")
    assert await older.heard(1) == [1]
    # The younger may have gone before it had what was published to it.
    await tool("while await bus.flush(): await asyncio.sleep(0.01)")


async def test_a_bus_that_ends_so_closes_by_itself_and_publishes_no_more(nursery: Nursery) -> None:
    """Also where neither a body nor a waiter is there to hear of it."""
    url = tcp_url()
    holder, _ = await started(nursery, url, "holder", "strategy")
    holder.kill(signal.SIGSTOP)
    younger = AsyncEventBus(url, name="strategy")
    await younger.start()
    async with younger.stream("*") as events:
        holder.kill(signal.SIGCONT)
        assert [event async for event in events] == []  # until the bus closes
    with pytest.raises(BusClosed):
        await younger.publish(Event("T", 1))
    await younger.close()


@pytest.mark.slow
async def test_the_name_of_a_frozen_bus_is_not_given_away_until_it_is_dead(
    nursery: Nursery, url: str
) -> None:
    holder, frozen = await started(nursery, url, "holder", "strategy")
    frozen.kill(signal.SIGSTOP)
    assert await refused(nursery, url, "strategy") == "NameInUse"
    frozen.kill(signal.SIGCONT)
    assert await frozen("return [each.name for each in bus.peers]") == ["holder"]
    frozen.kill()
    await frozen.code
    (again,) = await started(nursery, url, "strategy")
    assert await again("return [each.name for each in bus.peers]") == ["holder"]
    await holder("while bus.stats().unreached: await asyncio.sleep(0.01)")


async def test_a_bus_does_not_start_where_something_else_answers() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        url = f"tcp://{host}:{port}"
        with pytest.raises(BusError, match=f"^{url} cannot be a rendezvous address"):
            await AsyncEventBus(url).start()
