"""A source that says less than was heard of it: it is asked, and its word counts."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from actors import tcp_url

from aiobus import AsyncEventBus, Event, wire
from aiobus.rows import MAX_NUMBER
from aiobus.testing import Faults, MemoryNetwork
from aiobus.wire import Answer, Mark, PacedMark, PeerId

pytestmark = pytest.mark.usefixtures("no_task_is_left")

FORGED = 2**62
WENT_BACK = "its source says less than was heard of it"
Make = Callable[..., AsyncEventBus]


@pytest.fixture(params=["memory", "ipc", "tcp"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    """Makes buses that meet."""
    with tempfile.TemporaryDirectory(prefix="ab") as directory:
        url = tcp_url() if request.param == "tcp" else f"ipc://{directory}/d"
        network = MemoryNetwork()

        def bus(name: str) -> AsyncEventBus:
            return network.bus(name) if request.param == "memory" else AsyncEventBus(url, name=name)

        yield bus


class Liar:
    """What a bus sends in its own name though it is not true."""

    def __init__(self, bus: AsyncEventBus, other: AsyncEventBus) -> None:
        self.bus = bus
        mesh: Any = bus._transport
        self.send = mesh.network.send
        self.me: PeerId = mesh.session.me
        self.them: PeerId = other._transport.session.me  # type: ignore[attr-defined]

    def say(self, kind: str, query: str, seq: int = FORGED) -> None:
        source = (self.me.name, self.me.epoch)
        row = b'[%d,1.0,"TRADE","","forged"]' % seq
        last = self.bus.stats().published
        match kind:
            case "frame that follows":
                message = wire.frame(wire.topic(query), *source, last, seq, [row])
            case "frame that does not":
                message = wire.frame(wire.topic(query), *source, seq - 1, seq, [row])
            case "beacon":
                message = wire.frame(wire.topic(query), *source, seq, seq, [])
            case "heartbeat":
                message = wire.heartbeat(*source, seq)
            case "mark":
                message = wire.mail(self.them, Mark(7, self.me, ((query, seq),)))
            case "paced mark":
                message = wire.mail(self.them, PacedMark(7, self.me, ((query, 0),), seq, ()))
            case "last mark":
                message = wire.mail(self.them, Mark(0, self.me, ((query, seq),)))
            case _:
                message = wire.mail(self.them, Answer(0, self.me, 60.0, seq, is_open=True))
        self.send(message)


KINDS = [
    *("frame that follows", "frame that does not", "beacon", "heartbeat", "mark", "last mark"),
    *("paced mark", "answer"),
]
MOVING = ["frame that follows", "paced mark"]
"""These alone make a subscription go on at the number that is forged."""


@pytest.mark.parametrize("kind", KINDS)
async def test_a_number_that_is_not_true_silences_no_source(
    make: Make, kind: str, logged: Callable[[str], AbstractContextManager[asyncio.Event]]
) -> None:
    got: list[Event] = []
    sent: list[Event] = []
    with logged("says that it is at seq") as said:
        async with make("watch") as watch:
            await watch.subscribe(["TRADE", "aiobus.gap"], got.append)
            ended = asyncio.create_task(watch.wait_for("aiobus.peer_left"))
            async with make("feed") as feed:
                sent += [await feed.publish(Event("TRADE", number)) for number in range(3)]
                assert await feed.flush() == []
                Liar(feed, watch).say(kind, "TRADE")
                sent += [await feed.publish(Event("TRADE", number)) for number in range(3, 6)]
                # An acknowledgement is not given while the source is in doubt.
                assert await feed.flush() == []
                await said.wait()
                sent += [await feed.publish(Event("TRADE", number)) for number in range(6, 9)]
                assert await feed.flush() == []
                await watch.settle()
                events = [event.data for event in got if event.type == "TRADE"]
                gaps = [event.data for event in got if event.type == "aiobus.gap"]
                seqs = [event.seq for event in got if event.type == "TRADE" and event.seq < FORGED]
                assert seqs == sorted(set(seqs))
                assert events[-3:] == [6, 7, 8]
                assert {gap["reason"] for gap in gaps} <= {WENT_BACK}
                lost = [event.seq for event in sent if event.seq not in seqs]
                assert all(any(g["after"] < seq <= g["upto"] for g in gaps) for seq in lost)
                assert bool(gaps) is (kind in MOVING)
            assert (await ended).data["last"] == sent[-1].seq


async def test_a_beacon_at_a_number_that_is_not_true_hides_nothing_that_was_lost_by_it(
    make: Make, logged: Callable[[str], AbstractContextManager[asyncio.Event]]
) -> None:
    got: list[Event] = []
    sent: list[Event] = []
    with logged("says that it is at seq") as said:
        async with make("watch") as watch:
            await watch.subscribe(["TRADE", "aiobus.gap"], got.append)
            async with make("feed") as feed:
                sent += [await feed.publish(Event("TRADE", number)) for number in range(3)]
                assert await feed.flush() == []
                liar = Liar(feed, watch)
                liar.say("frame that follows", "TRADE")
                sent += [await feed.publish(Event("TRADE", number)) for number in range(3, 6)]
                liar.say("beacon", "TRADE")
                assert await feed.flush() == []
                await said.wait()
                await watch.settle()
    seqs = [event.seq for event in got if event.type == "TRADE"]
    gaps = [event.data for event in got if event.type == "aiobus.gap"]
    lost = [event.seq for event in sent if event.seq not in seqs]
    assert lost == [event.seq for event in sent[3:]]
    assert all(any(gap["after"] < seq <= gap["upto"] for gap in gaps) for seq in lost)


async def test_what_a_source_published_after_it_went_back_is_handed_over_or_in_the_gap(
    make: Make,
) -> None:
    """Its numbers run ahead for a while, as those of a file that is restored later."""
    got: list[Event] = []
    async with make("watch") as watch:
        await watch.subscribe(["TRADE", "aiobus.gap"], got.append)
        async with make("feed") as feed:
            await go_back(watch, feed)
    data = [event.data for event in got]
    assert [each for each in data if not isinstance(each, dict)] == [0, 1, 2, "again 3"]
    (gap,) = [each for each in data if isinstance(each, dict)]
    # The beacon before it went back counts for nothing, so all since its beginning may be lost.
    assert (gap["after"], gap["upto"], gap["reason"]) == (0, got[0].seq + 2, WENT_BACK)


async def go_back(watch: AsyncEventBus, feed: AsyncEventBus) -> None:
    publisher = feed._publisher
    streams: Any = feed._transport.session.fanout  # type: ignore[attr-defined]
    for number in range(3):
        await feed.publish(Event("TRADE", number))
    assert await feed.flush() == []
    await watch.settle()
    (stream,) = streams._streams.values()
    stream.beacon()
    top = publisher.public_seq
    publisher.seq = publisher.public_seq = publisher.history.newest = top - 2
    streams.doubt()
    stream.sent = top - 2
    await feed.publish(Event("TRADE", "again 2"))
    assert await feed.flush() == []
    await feed.publish(Event("TRADE", "again 3"))
    assert await feed.flush() == []
    await watch.settle()


async def test_heartbeats_and_beacons_that_come_late_or_twice_change_nothing() -> None:
    disorder = Faults(
        reorder=lambda message: 0.5 * (message.kind in ("heartbeat", "beacon")),
        duplication=lambda message: 0.5 * (message.kind in ("heartbeat", "beacon")),
    )
    network = MemoryNetwork(seed=3, faults=disorder)
    got: list[Event] = []
    async with network.bus("watch") as watch:
        await watch.subscribe(["TRADE", "aiobus.gap"], got.append)
        async with network.bus("feed") as feed:
            for number in range(200):
                await feed.publish(Event("TRADE", number))
                liar = Liar(feed, watch)
                liar.say("heartbeat", "TRADE", max(0, number - 5))  # one of before
                liar.say("beacon", "TRADE", max(0, number - 5))
                await asyncio.sleep(0)
            await network.settle()
    assert [event.data for event in got] == list(range(200))


async def test_the_highest_number_there_can_be_silences_no_source_either(make: Make) -> None:
    got: list[Any] = []
    async with make("watch") as watch:
        await watch.subscribe("TRADE", lambda event: got.append(event.data))
        async with make("feed") as feed:
            for text in ("before", "meanwhile", "after"):
                await feed.publish(Event("TRADE", text))
                assert await feed.flush() == []
                if text == "before":
                    Liar(feed, watch).say("frame that follows", "TRADE", MAX_NUMBER)
            await watch.settle()
    assert got == ["before", "forged", "after"]
