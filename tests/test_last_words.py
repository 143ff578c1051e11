"""What is known of a source that has ended: no number of it up to `last` is without an account."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from actors import nursery, tcp_url

from aiobus import AsyncEventBus, Event
from aiobus.mesh import peers
from aiobus.sequence import UNKNOWN
from aiobus.testing import Faults, MemoryNetwork

pytestmark = pytest.mark.usefixtures("no_task_is_left")

Make = Callable[[str], AsyncEventBus]


@pytest.fixture(params=["ipc", "tcp"])
async def url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory(prefix="ab") as directory:
        yield tcp_url() if request.param == "tcp" else f"ipc://{directory}/d"


class Watch:
    """Two subscriptions of one bus, one of everything, and what is said of who leaves."""

    def __init__(self, bus: AsyncEventBus) -> None:
        self.bus = bus
        self.seqs: dict[str, list[int]] = {"*": [], "T5": []}
        self.gaps: dict[str, list[dict[str, Any]]] = {"*": [], "T5": []}

    async def subscribe(self) -> "asyncio.Task[Event]":
        """Return what waits for the end of a source."""
        for types in self.seqs:
            await self.bus.subscribe([types, "aiobus.gap"], self._taker(types))
        task = asyncio.create_task(self.bus.wait_for("aiobus.peer_left"))
        await asyncio.sleep(0)
        return task

    def _taker(self, types: str) -> Callable[[Event], None]:
        def take(event: Event) -> None:
            if event.type == "aiobus.gap":
                self.gaps[types].append(event.data)
            else:
                self.seqs[types].append(event.seq)

        return take

    def unaccounted(self, types: str, first: int, last: int) -> list[int]:
        """The numbers of `(first, last]` beyond the last that was handed over without a gap."""
        reached = max([first, *self.seqs[types]])
        told = self.gaps[types]
        return [
            seq
            for seq in range(reached + 1, last + 1)
            if not any(gap["after"] < seq <= gap["upto"] for gap in told)
        ]


@pytest.mark.paired
async def test_what_a_killed_source_had_joined_for_one_subscription_is_in_a_gap(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of a tick on `T5` left at once; on `*` it was joined to what waited."""
    monkeypatch.setattr(peers, "GRACE", 0.5)
    async with nursery() as made, AsyncEventBus(url, name="strategy") as bus:
        watch = Watch(bus)
        ended = await watch.subscribe()
        feed = await made.actor()
        await feed.start(url, "feed")
        first = await feed("return (await bus.publish(Event('T1', 0))).seq - 1")
        await feed("await bus.flush()")
        feed.is_expected_to_die = True
        dying = feed.tell(
            "import os, signal, time\n"
            "bus.publish_nowait(Event('T1', 5)); bus.publish_nowait(Event('T1', 6))\n"
            "bus.publish_nowait(Event('T5', 7))\n"
            "time.sleep(0.3)  # ZeroMQ's thread sends what it has\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        last = (await ended).data["last"]
        await asyncio.gather(dying, return_exceptions=True)
        await bus.settle()
    assert last == first + 4
    assert watch.seqs == {"*": [first + 1, first + 2], "T5": [first + 4]}
    assert (watch.unaccounted("*", first, last), watch.gaps["T5"]) == ([], [])
    (gap,) = watch.gaps["*"]
    assert (gap["after"], gap["upto"], gap["reason"]) == (first + 2, last, UNKNOWN)


async def test_an_orderly_end_leaves_no_gap_whatever_was_published_for_others(url: str) -> None:
    gaps: list[Event] = []
    async with AsyncEventBus(url, name="strategy") as bus:
        await bus.subscribe(["T5", "aiobus.gap"], gaps.append)
        ended = asyncio.create_task(bus.wait_for("aiobus.peer_left"))
        async with AsyncEventBus(url, name="feed") as feed:
            for number in range(50):
                await feed.publish(Event("T1", number))
        left = await ended
        await bus.settle()
    assert (gaps, left.data["reason"]) == ([], "it closed")
    assert left.data["last"] >= 50


async def test_of_an_orderly_end_of_which_the_last_message_was_lost_a_gap_tells() -> None:
    """Frames, beacons and marks are lost, the bye is not: the queue had room again."""
    network = MemoryNetwork()
    async with network.bus("strategy") as bus:
        watch = Watch(bus)
        ended = await watch.subscribe()
        feed = network.bus("feed")
        await feed.start()
        first = (await feed.publish(Event("T1", 0))).seq - 1
        assert await feed.flush() == []
        network.faults = Faults(
            loss=lambda message: message.source == "feed" and b"bye" not in message.data
        )
        for number in range(3):
            await feed.publish(Event("T1", number))
        assert await feed.close(0.1) == ["strategy"]
        last = (await ended).data["last"]
        await bus.settle()
    assert last == first + 4
    for types in ("*", "T5"):
        assert watch.unaccounted(types, first, last) == []
        assert [gap["reason"] for gap in watch.gaps[types]] == [UNKNOWN]


async def test_last_is_as_high_as_what_a_frame_said_that_was_left_unread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "GRACE", 0.5)
    network = MemoryNetwork()
    async with network.bus("strategy") as bus:
        gate = asyncio.Event()
        gaps: list[Event] = []

        async def hang(event: Event) -> None:
            if event.type == "aiobus.gap":
                gaps.append(event)
            else:
                await gate.wait()

        await bus.subscribe(["T1", "aiobus.gap"], hang, maxsize=1)
        ended = asyncio.create_task(bus.wait_for("aiobus.peer_left"))
        feed = network.bus("feed")
        await feed.start()
        network.faults = Faults(loss=lambda message: message.kind in ("page", "heartbeat"))
        for number in range(300):
            await feed.publish(Event("T1", number))
            await asyncio.sleep(0)
        sent = feed.stats().published
        network.kill("feed")
        await feed.close(0)
        left = await ended
        gate.set()
        await bus.settle()
    assert gaps, "some of it was lost"
    assert max(gap.data["upto"] for gap in gaps) <= left.data["last"] <= sent
