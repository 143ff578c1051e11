"""What does not belong to the protocol, on every socket of a running bus: counted, and no more."""

import asyncio
import logging
import os
import random
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import zmq
import zmq.asyncio
from actors import nursery as make_nursery
from actors import tcp_url

from aiobus import AsyncEventBus, Event
from aiobus.discovery import Member
from aiobus.mesh import links, peers
from aiobus.mesh.fanout import MAX_JUNK
from aiobus.mesh.links import AT_SIGHT
from aiobus.mesh.sockets import MAX_MESSAGE
from aiobus.wire import (
    Ack,
    Answer,
    Ask,
    Mark,
    PeerId,
    frame,
    heartbeat,
    mail,
    parse_from_publisher,
    parse_from_subscriber,
    topic,
    up,
)

pytestmark = pytest.mark.usefixtures("no_task_is_left")

SEED = 7


class Stranger:
    """A member that is no aiobus: it links like one, and otherwise sends what it is told."""

    def __init__(self, folder: Path) -> None:
        self.who = PeerId("stranger", 1, f"ipc://{folder}/stranger.sock")
        self.context: zmq.asyncio.Context = zmq.asyncio.Context()
        self.down = self.context.socket(zmq.XPUB)
        self.up = self.context.socket(zmq.XSUB)
        self.up.set(zmq.SNDHWM, 0)
        self.heard: list[Event] = []
        self.seq = 0

    async def link(self, folder: Path, bus: AsyncEventBus) -> None:
        """Return when each has answered the other."""
        self.down.bind(self.who.endpoint)
        self.up.connect(f"ipc://{folder}/{bus.name}.sock")
        await self.up.send(b"\1" + self.who.topic)
        await asyncio.gather(self.ask(), self.answer())

    async def ask(self) -> Answer:
        """Return when the bus has answered, and so has read all that was sent up before."""
        await self.up.send(up(Ask("*", 1, self.who)))
        message = await self.up.recv()
        reply = parse_from_publisher(message, self.who)
        assert isinstance(reply, Answer)
        return reply

    async def answer(self) -> None:
        """Answer the next question of the bus."""
        while True:
            message = await self.down.recv()
            if message[:1] not in (b"\0", b"\1"):
                break
        asked = parse_from_subscriber(message)
        assert isinstance(asked, Ask)
        await self.down.send(mail(asked.who, Answer(asked.nonce, self.who, 60.0, self.seq, True)))

    async def publish(self, seq: int, prev: int = 0) -> None:
        """An event as it should be."""
        row = b'[%d,1.0,"TRADE","",%d]' % (seq, seq)
        self.seq = seq
        await self.down.send(frame(topic("TRADE"), "stranger", 1, prev, seq, [row]))

    async def live(self) -> None:
        """Go on answering and giving signs of life, until cancelled."""
        while True:
            await self.down.send(heartbeat("stranger", 1, self.seq))
            await self.answer()

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
async def bus(folder: Path) -> AsyncIterator[AsyncEventBus]:
    async with AsyncEventBus(f"ipc://{folder}", name="bus") as made:
        yield made


@pytest.fixture
async def stranger(folder: Path, bus: AsyncEventBus) -> AsyncIterator[Stranger]:
    made = Stranger(folder)
    async with bus.stream("aiobus.peer_joined") as joined:
        await made.link(folder, bus)
        await anext(joined)
    living = asyncio.create_task(made.live())
    yield made
    living.cancel()
    await asyncio.wait([living])
    made.close()


def rubbish(count: int) -> list[bytes]:
    """Random bytes, no two alike, none of which is a subscription."""
    dice = random.Random(SEED)
    return [b"\2" + dice.randbytes(dice.randrange(1, 200)) for _ in range(count)]


QUESTIONS = [
    *(b"{}", b"[]", b"[1]", b'["?"]', b'["?",1,2,3]', b'["!","bus",1]', b'["x","bus",1,"a@1 b"]'),
    b'["?","bus",-1,"stranger@1 ipc:///x"]',
    b'["?","bus",1,"not a bus"]',
    b'["!","bus",1,"stranger@1 ipc:///x",1,"TRADE",0,0]',
    b"[" * 5000,
    b'["?","bus",1,"stranger@1 ipc:///x"]' + b" " * 10 + b"x",
    *rubbish(50),
]
SUBSCRIPTIONS = [
    *(b"", b"TRADE", b"TRADE\0TRADE", b"\xff\0", b"TRADE/a QUOTE\0", b"aiobus.error\0", b"~\0x"),
    *(b"~bus\0", b"~b us@1 x\0", b"~evil@1 tcp://10.0.0.1:80\0", b"~evil@1 ipc:///etc/passwd\0"),
    b"T" * 2000 + b"\0",
]
FRAMES = [
    *(b"TRADE\0", b"TRADE\0{", b"TRADE\0{}", b"TRADE\0[]", b"TRADE\0[1]", b"TRADE\0null"),
    *(b"TRADE\0true", b"TRADE\x005", b"TRADE\x001.5", b'TRADE\0"x"', b'TRADE\0{"a":1}'),
    b'TRADE\0[1,"stranger",1,0,[]]',
    b'TRADE\0[3,"stranger",1,0]',
    b'TRADE\0[2,"stranger",1,-1]',
    b'TRADE\0[2,"not a name",1,0]',
    b'TRADE\0[2,"stranger",1,0,[[1,1.0,"TRADE","",1]]]',
    b'TRADE\0[2,"stranger",1,0\n,["soon",1.0,"TRADE","",1]]',
    b'TRADE\0[2,"stranger",1,0\n,[0,1.0,"TRADE","",1]]',
    b'TRADE\0[2,"stranger",1,0\n,[1,1.0,"TRADE",""',
    b'TRADE\0[2,"stranger",1,0\n,[' + b"9" * 5_000 + b"]",
    b'TRADE\0[2,"stranger",1,0,2,2\n,[[1,1.0,"TRADE","",1]]]',
    b'TRADE\0[2,"stranger",1,0,2,3\n,[[1,1.0,"TRADE","",1],\n[2,1.0,"TRADE","",1]]]',
    b'TRADE\0[2,"stranger",1,0,1,1\n,[' + b"[" * 5_000,
    b"TRADE\0\xff\xfe",
    *(b"~\0", b"~\0[]", b'~\0["stranger"]', b'~\0["stranger",1,"x"]'),
]


async def test_questions_that_are_none_are_counted_and_the_next_is_answered(
    bus: AsyncEventBus, stranger: Stranger
) -> None:
    before = bus.stats().refused
    for question in QUESTIONS:
        await stranger.up.send(question)
    await stranger.ask()
    assert bus.stats().refused == before + len(QUESTIONS)


async def test_subscriptions_that_are_none_get_no_stream_and_the_next_is_served(
    bus: AsyncEventBus, stranger: Stranger
) -> None:
    before = bus.stats().refused
    for subscription in SUBSCRIPTIONS:
        await stranger.up.send(b"\1" + subscription)
    await stranger.up.send(b"\1TRADE\0")
    await stranger.ask()
    assert bus.stats().refused == before + len(SUBSCRIPTIONS)
    await bus.publish(Event("TRADE", 7))
    message = await stranger.up.recv()
    assert message.startswith(b"TRADE\0[2,")
    assert orjson.loads(message[6:])[4][4] == 7


async def test_a_message_of_several_parts_is_refused_by_its_parts(
    bus: AsyncEventBus, stranger: Stranger
) -> None:
    before = bus.stats().refused
    await stranger.up.send_multipart([b"one", b"two", b"three"])
    await stranger.ask()
    assert bus.stats().refused == before + 3


async def test_frames_that_are_none_are_counted_and_the_next_arrives(
    bus: AsyncEventBus, stranger: Stranger
) -> None:
    before = bus.stats().refused
    async with bus.stream("TRADE") as trades:
        await stranger.ask()
        for each in FRAMES:
            await stranger.down.send(each)
        await stranger.publish(1)
        assert (await anext(trades)).data == 1
    assert bus.stats().refused == before + len(FRAMES)


async def test_what_is_refused_is_logged_once_a_second_and_without_what_was_published(
    bus: AsyncEventBus, stranger: Stranger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiobus")
    async with bus.stream("TRADE") as trades:
        for _ in range(50):
            head = b'TRADE\0[2,"stranger",1,0,9,12'
            await stranger.down.send(head + b'\n,[[1,1.0,"TRADE","","secret"]]]')
        await stranger.publish(1)
        await anext(trades)
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert 1 <= len(lines) < 50
    assert not any("secret" in line for line in lines)


async def test_flush_marks_of_senders_that_are_no_peers_are_not_kept(
    bus: AsyncEventBus, stranger: Stranger
) -> None:
    mesh: Any = bus._transport
    async with bus.stream("TRADE") as trades:
        for number in range(100):
            liar = PeerId(f"x{number}", 1, f"ipc:///x{number}")
            await stranger.down.send(mail(mesh.session.me, Mark(1, liar, (("TRADE", 9),))))
        await stranger.publish(1)
        await anext(trades)
    assert mesh.session.interest.marks == {}


async def test_rows_that_are_no_events_are_counted_and_logged_once_a_second_without_what_they_are(
    bus: AsyncEventBus, stranger: Stranger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiobus")
    before = bus.stats().refused
    async with bus.stream(["TRADE", "aiobus.gap"]) as trades:
        stranger.seq = 51
        for seq in range(1, 51):
            row = b'[%d,"soon","TRADE","","secret"]' % seq
            await stranger.down.send(frame(topic("TRADE"), "stranger", 1, seq - 1, seq, [row]))
        await stranger.publish(51, prev=50)
        lost, data = 0, []
        while lost < 50 or not data:  # it may answer while some are on their way
            event = await anext(trades)
            if event.type == "TRADE":
                data.append(event.data)
            else:
                assert event.data["after"] == lost
                lost = event.data["upto"]
        assert (lost, data) == (50, [51])
    assert bus.stats().refused == before + 50
    lines = [record.getMessage() for record in caplog.records if "no event" in record.getMessage()]
    said = [line for line in lines if line.startswith("rows of stranger are lost")]
    assert 1 <= len(said) < 50
    assert not any("secret" in line for line in lines)


async def test_a_frame_that_claims_to_be_from_the_bus_itself_is_refused(
    bus: AsyncEventBus, stranger: Stranger
) -> None:
    before = bus.stats().refused
    async with bus.stream("TRADE") as trades:
        row = b'[9,1.0,"TRADE","","forged"]'
        await stranger.down.send(frame(topic("TRADE"), bus.name, bus.stats().epoch, 8, 9, [row]))
        await stranger.publish(1)
        assert (await anext(trades)).data == 1
    assert bus.stats().refused == before + 1


@pytest.mark.one_loop
async def test_the_link_that_an_oversized_frame_has_ended_is_mended_by_itself(
    bus: AsyncEventBus, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZeroMQ ends the link for good. Its silence is what tells; here for a second, not for ten."""
    monkeypatch.setattr(peers, "RELINK", 1.0)
    monkeypatch.setattr(peers, "RELINK_MAX", 1.0)
    monkeypatch.setattr(peers, "STALE", 0.5)
    async with bus.stream("TRADE") as trades, bus.stream("aiobus.stale") as silent:
        await stranger.publish(1)
        assert (await anext(trades)).data == 1
        await stranger.down.send(b"TRADE\0" + b" " * (MAX_MESSAGE + 1))
        assert (await anext(silent)).data["name"] == "stranger"
        step = asyncio.ensure_future(anext(trades))
        while not step.done():
            await stranger.publish(2, prev=1)  # until a bus is there to hear it
            await asyncio.wait([step], timeout=0.05)
        assert (await step).data == 2


async def served(bus: AsyncEventBus, count: int = 1) -> None:
    """It has read subscriptions, and so all that came before on the same links."""
    while len(bus._transport.session.fanout) < count:  # type: ignore[attr-defined]
        await turn()


async def turn() -> None:
    await asyncio.sleep(0)


async def test_after_the_hellos_of_2000_members_that_do_not_exist_a_real_bus_links(
    bus: AsyncEventBus, folder: Path
) -> None:
    liars = [Stranger(folder), Stranger(folder)]  # one alone says too much, and is cut off
    for liar in liars:
        liar.up.connect(f"ipc://{folder}/{bus.name}.sock")
    for number in range(2_000):
        who = PeerId(f"tool{number}", 1, f"ipc://{folder}/tool{number}.sock")
        await liars[number % 2].up.send(b"\1" + who.topic)
    for number, liar in enumerate(liars):
        await liar.up.send(b"\1LAST/%d\0" % number)
    await served(bus, 2)
    async with AsyncEventBus(f"ipc://{folder}", name="real") as real, real.stream("TRADE") as got:
        assert "real" in [each.name for each in bus.peers]
        await bus.publish(Event("TRADE", 1))
        assert (await anext(got)).data == 1
        assert len(list(bus._transport.session.links)) <= AT_SIGHT + 2  # type: ignore[attr-defined]
    for liar in liars:
        liar.close()


async def test_a_frozen_bus_that_made_up_hellos_push_out_is_named_as_long_as_it_listens(
    bus: AsyncEventBus, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MAX_PEERS", 4)
    frozen, *made_up = [socket.socket(socket.AF_UNIX) for _ in range(8)]
    frozen.bind(f"{folder}/frozen.sock")
    frozen.listen()
    bus._transport.find(  # type: ignore[attr-defined]
        Member("frozen", f"ipc://{folder}/frozen.sock")
    )
    liar = Stranger(folder)
    liar.up.connect(f"ipc://{folder}/{bus.name}.sock")
    for number, each in enumerate(made_up):
        who = PeerId(f"x{number}", 1, f"ipc://{folder}/x{number}.sock")
        each.bind(who.endpoint.removeprefix("ipc://"))
        each.listen()
        await liar.up.send(b"\1" + who.topic)
    await liar.up.send(b"\1LAST\0")
    await served(bus)
    assert "frozen" not in [each.name for each in bus._transport.session.links]  # type: ignore[attr-defined]
    await bus.publish(Event("TRADE", 1))
    assert "frozen" in await bus.flush(0.2)
    liar.close()
    for each in made_up:
        each.close()
    assert await bus.flush(0.2) == ["frozen"]
    frozen.close()
    assert await bus.flush() == []


RSS = """
import mmap
with open("/proc/self/statm") as statm:
    return int(statm.read().split()[1]) * mmap.PAGESIZE // 2**20
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RSS is read from /proc")
@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
@pytest.mark.paired
async def test_random_subscriptions_without_end_fill_no_memory_and_hold_up_no_other_link(
    scheme: str, folder: Path
) -> None:
    """Of a process that is no aiobus. ZeroMQ needs 12 KiB for each, so that these are 240 MiB; and
    it makes a link again that has ended, and asks for all of it once more.
    """
    url = f"ipc://{folder}/d" if scheme == "ipc" else tcp_url()
    async with make_nursery() as nursery:
        victim, friend = await nursery.actors(2)
        await victim.start(url, "victim")
        await friend.start(url, "friend")
        await friend.hear("T")
        endpoint = await victim("return bus._transport.session.me.endpoint")
        before = await victim(RSS)
        liar = Stranger(folder)
        try:
            raw = liar.context.socket(zmq.SUB)
            raw.set(zmq.SNDHWM, 0)
            raw.connect(endpoint)
            dice = random.Random(SEED)
            for _ in range(20_000):
                raw.subscribe(dice.randbytes(250))
            while await victim("return bus.stats().refused") < 4 * MAX_JUNK:
                await raw.poll(10)  # or ZeroMQ does not make its link again
            assert await victim(RSS) - before < 80
            await victim("await bus.publish(Event('T', 1))")
            assert await victim("return await bus.flush()") == []
            assert await friend.heard(1) == [1]
        finally:
            liar.close()
            raw.close(linger=0)


async def test_no_descriptor_is_ended_that_is_not_of_a_connection_to_the_bus(
    bus: AsyncEventBus, folder: Path
) -> None:
    """A connection may have ended, and its number be that of another file of this process."""
    network: Any = bus._transport.network  # type: ignore[attr-defined]
    one, other = socket.socketpair()
    file = os.open(f"{folder}/file", os.O_RDWR | os.O_CREAT)
    with one, other:
        for each in (one.fileno(), file, 9_999):
            network.end_link(each)
        one.send(b"still")
        assert (other.recv(9), os.write(file, b"there")) == (b"still", 5)
    os.close(file)


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
async def test_bytes_that_are_no_zmtp_change_nothing(scheme: str, folder: Path) -> None:
    """Straight to the sockets, below ZeroMQ's protocol."""
    url = f"ipc://{folder}/d" if scheme == "ipc" else tcp_url()
    async with AsyncEventBus(url, name="a") as a, AsyncEventBus(url, name="b") as b:
        endpoint = a._transport.session.me.endpoint  # type: ignore[attr-defined]
        for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, *rubbish(20)):
            if scheme == "ipc":
                opened = asyncio.open_unix_connection(endpoint.removeprefix("ipc://"))
            else:
                host, port = endpoint.removeprefix("tcp://").split(":")
                opened = asyncio.open_connection(host, int(port))
            _, writer = await opened
            writer.write(garbage)
            writer.close()
        async with b.stream("TRADE") as trades:
            await a.publish(Event("TRADE", 1))
            assert (await anext(trades)).data == 1


async def test_what_is_missing_of_a_member_that_asks_nothing_and_dies_is_a_gap(
    folder: Path, bus: AsyncEventBus
) -> None:
    """It never is linked, and a flush finds that no process listens for it any more."""
    mute = Stranger(folder)
    seen: list[Event] = []
    handled = asyncio.Event()

    async def on_event(event: Event) -> None:
        seen.append(event)
        handled.set()

    subscription = await bus.subscribe(["TRADE", "aiobus.gap"], on_event)
    mute.down.bind(mute.who.endpoint)
    mute.up.connect(f"ipc://{folder}/bus.sock")
    await mute.up.send(b"\1OTHER\0")  # so that a flush waits for it until its end is read
    await mute.up.send(b"\1" + mute.who.topic)
    await mute.answer()
    await mute.publish(1, prev=0)
    await handled.wait()
    await mute.publish(9, prev=5)
    while b'["!"' not in await mute.down.recv():
        pass  # until it is asked for what is missing
    mute.close()
    await bus.publish(Event("OTHER", None))
    await bus.flush()
    await bus.settle()
    assert not subscription.stats.behind
    assert [event.data["upto"] for event in seen if event.type == "aiobus.gap"] == [9]


async def test_an_acknowledgement_under_the_number_of_a_question_confirms_no_subscription(
    folder: Path, bus: AsyncEventBus
) -> None:
    other = Stranger(folder)
    async with bus.stream("aiobus.peer_joined") as joined:
        await other.link(folder, bus)
        await anext(joined)
    subscribing = asyncio.create_task(bus.subscribe("TRADE", print, timeout=1))
    while (message := await other.down.recv())[:1] in (b"\0", b"\1", b"~"):
        pass
    asked = parse_from_subscriber(message)
    assert isinstance(asked, Ask)
    await other.up.send(up(Ack(bus.name, asked.nonce, other.who)))
    await other.ask()  # it has read the acknowledgement
    subscription = await subscribing
    other.close()
    assert set(subscription.unconfirmed) == {"stranger"}


@pytest.mark.parametrize("name", ["bus", "feed"])
async def test_a_member_that_says_hello_by_another_name_is_refused_and_passes_for_no_other_bus(
    bus: AsyncEventBus, stranger: Stranger, name: str
) -> None:
    mesh: Any = bus._transport
    lie = PeerId(name, 5, stranger.who.endpoint)
    before = bus.stats().refused
    async with bus.stream("TRADE") as trades:
        await stranger.up.send(b"\1" + lie.topic)
        await stranger.ask()  # it has read the hello
        await stranger.down.send(mail(mesh.session.me, Answer(1, lie, 1e6, 0, is_open=True)))
        await stranger.down.send(heartbeat(name, 5, 0, leaving=True))
        await stranger.publish(1)
        assert (await anext(trades)).data == 1
    assert (bus.stats().refused, [each.name for each in bus.peers]) == (before + 1, ["stranger"])
