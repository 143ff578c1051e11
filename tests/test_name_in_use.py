"""Two buses of one name: what the later is told, and where both are to be found."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio
from actors import ActorError, Nursery, tcp_url
from desks import until
from keys import KeyedDesk, endpoint_of

from aiobus import AsyncEventBus, NameInUse
from aiobus.discovery import Member
from aiobus.discovery.roster import hello_line
from aiobus.testing import MemoryNetwork
from aiobus.wire import (
    Answer,
    Ask,
    PeerId,
    mail,
    parse_from_publisher,
    parse_from_subscriber,
    parse_topic,
    up,
)

pytestmark = pytest.mark.usefixtures("no_task_is_left")

HERE = "this very process has a bus named 'a' on {}: use that object, close it first, or give"


@pytest.fixture(params=["memory", "ipc", "tcp"])
def make(request: pytest.FixtureRequest, folder: Path) -> Callable[[], AsyncEventBus]:
    """Another bus named `a`."""
    if request.param == "memory":
        network = MemoryNetwork()
        return lambda: network.bus("a")
    url = f"ipc://{folder}/d" if request.param == "ipc" else tcp_url()
    return lambda: AsyncEventBus(url, name="a")


async def test_if_the_other_is_of_this_very_process_that_is_said(
    make: Callable[[], AsyncEventBus],
) -> None:
    async with make() as bus:
        make()  # one that was never started is not on the bus
        with pytest.raises(NameInUse, match=HERE.format(bus.url)) as caught:
            await make().start()
        assert caught.value.is_here


async def test_if_it_is_of_another_process_it_is_not(nursery: Nursery, folder: Path) -> None:
    url = f"ipc://{folder}/d"
    other = await nursery.actor()
    await other.start(url, "a")
    async with AsyncEventBus(url, name="b"):
        with pytest.raises(NameInUse, match=f"a bus named 'a' is on {url} already: end") as caught:
            await AsyncEventBus(url, name="a").start()
        assert not caught.value.is_here
        with pytest.raises(ActorError, match="a bus named 'b' is on"):
            await (await nursery.actor()).start(url, "b")


async def test_where_a_bus_is_to_be_found_is_in_the_log(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "aiobus"):
        async with AsyncEventBus(f"ipc://{folder}/d", name="a"):
            assert f"a listens at ipc://{folder}/d/a.sock" in caplog.messages


async def test_a_later_one_that_is_refused_is_not_said_to_have_come(
    make: Callable[[], AsyncEventBus], caplog: pytest.LogCaptureFixture
) -> None:
    async with make():
        with pytest.raises(NameInUse):
            await make().start()
    assert [line for line in caplog.messages if "has come" in line] == []


class Liar:
    """A member of a tcp bus that is no aiobus, and speaks for a bus that does not exist."""

    def __init__(self) -> None:
        self.context: zmq.asyncio.Context = zmq.asyncio.Context()
        self.down = self.context.socket(zmq.XPUB)
        self.down.bind("tcp://127.0.0.1:*")
        self.up = self.context.socket(zmq.XSUB)
        self.who = PeerId("liar", 1, self.down.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode())
        self.deaf = socket.socket()
        self.deaf.bind(("127.0.0.1", 0))  # it does not listen, so its port refuses
        self.made_up = PeerId("feed", 1, f"tcp://127.0.0.1:{self.deaf.getsockname()[1]}")

    async def meet(self) -> PeerId:
        """Wait for the hello of a bus that was told of this member."""
        while True:
            message = await self.down.recv()
            if message[:1] == b"\1" and isinstance(who := parse_topic(message[1:]), PeerId):
                return who

    async def say(self, *messages: bytes) -> None:
        """Return when the bus has read these, which it shows by its answer to a question."""
        for message in (b"\1" + self.who.topic, *messages, b"\1" + self.who.topic):
            await self.up.send(message)
        await self.up.send(up(Ask("*", 1, self.who)))
        while not isinstance(parse_from_publisher(await self.up.recv(), self.who), Answer):
            pass

    async def answer(self) -> None:
        """Answer the next question."""
        while (message := await self.down.recv())[:1] in (b"\0", b"\1"):
            pass
        asked = parse_from_subscriber(message)
        assert isinstance(asked, Ask)
        await self.down.send(mail(asked.who, Answer(asked.nonce, self.who, 60.0, 0, is_open=True)))

    def close(self) -> None:
        self.deaf.close()
        self.context.destroy(linger=0)


@pytest.fixture
async def liar() -> AsyncIterator[Liar]:
    made = Liar()
    yield made
    made.close()


Logged = Callable[[str], AbstractContextManager[asyncio.Event]]


async def test_an_answer_of_a_namesake_that_does_not_listen_ends_no_running_bus(
    liar: Liar, logged: Logged
) -> None:
    async with AsyncEventBus(tcp_url(), name="feed") as feed:
        me: PeerId = feed._transport.session.me  # type: ignore[attr-defined]
        liar.up.connect(me.endpoint)
        with logged("has the name of this bus, but does not listen") as said:
            await liar.say(b"\1" + liar.made_up.topic)
            await liar.meet()
            await liar.down.send(mail(me, Answer(1, liar.made_up, 1e6, 0, is_open=True)))
            await said.wait()
        assert feed.stats().name == "feed"


async def test_a_namesake_of_another_version_that_does_not_listen_ends_no_bus_that_starts(
    liar: Liar, logged: Logged
) -> None:
    url = tcp_url()
    async with AsyncEventBus(url, name="other") as other:
        liar.up.connect(other._transport.session.me.endpoint)  # type: ignore[attr-defined]
        await liar.say()  # it is on the roster
        await liar.meet()
        feed = AsyncEventBus(url, name="feed")
        starting = asyncio.create_task(feed.start())
        me = await liar.meet()
        liar.up.connect(me.endpoint)
        with logged("speaks version 3") as said:
            lie = b'["?",3,"feed",1,"%b",{}]' % liar.made_up.text.encode()
            await liar.up.send(b"\1" + liar.made_up.topic)
            while not said.is_set():
                await liar.up.send(lie)
                await asyncio.wait([starting], timeout=0.02)
                assert not starting.done()
        await liar.say()
        while not starting.done():
            await liar.answer()
            await asyncio.wait([starting], timeout=0.02)
        await starting
        await feed.close()


async def test_a_name_is_free_though_another_program_has_the_port_of_its_closed_owner(
    tmp_path: Path,
) -> None:
    """A desk with keys cannot tell that one from a bus that is frozen."""
    desk = KeyedDesk(tmp_path / "keys", "a", "holder")
    async with desk.bus("holder") as holder:
        async with desk.bus("a") as owner, asyncio.timeout(1):
            host, _, port = endpoint_of(owner).removeprefix("tcp://").rpartition(":")
            known: Any = holder._transport.discovery._known  # type: ignore[attr-defined]
            assert [each.name for each in known] == ["a"]
            await owner.close()
            await until(lambda: not [*known])
        with socket.create_server((host, int(port))):
            async with desk.bus("a") as bus:
                assert [each.name for each in bus.peers] == ["holder"]


@pytest.mark.parametrize("is_early", [True, False])
async def test_a_name_is_free_though_another_process_has_the_port_of_its_dead_owner(
    is_early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether that has not answered yet because it starts, or because it is frozen; and whether it
    has come before the start of the new owner or meanwhile.
    """
    monkeypatch.setattr("aiobus.mesh.transport.START_SECONDS", 0.5)
    url = tcp_url()
    host, port = url.removeprefix("tcp://").split(":")
    bus = AsyncEventBus(url, name="a")
    async with AsyncEventBus(url, name="holder") as holder:
        with socket.create_server(("127.0.0.1", 0)) as given:
            endpoint = f"tcp://127.0.0.1:{given.getsockname()[1]}"
            holder._transport.discovery.remember(Member("a", endpoint))
            if not is_early:
                starting = asyncio.create_task(bus.start())
                while bus._transport.session is None:  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0)
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(hello_line(Member("x", endpoint)))
            await reader.readline()
            if is_early:
                starting = asyncio.create_task(bus.start())
            await starting
            assert [each.name for each in bus.peers] == ["holder"]
            await bus.close(0)
            writer.close()
            await writer.wait_closed()
