"""The system events of buses that end, freeze or come back, as docs/contract.md has them."""

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from actors import Actor, nursery, tcp_url
from desks import until
from keys import make
from ports import opened

from aiobus import AsyncEventBus, Event, EventType
from aiobus.mesh import peers
from aiobus.mesh.peers import STEADY
from aiobus.sequence import UNKNOWN
from aiobus.testing import Faults, MemoryNetwork, Message
from aiobus.virtual_loop import VirtualLoop
from aiobus.wire import heartbeat

pytestmark = pytest.mark.usefixtures("no_task_is_left")

NAMES = ["frozen", "killed", "restarted", "closed"]
WATCH = """
async def on_event(event):
    self.heard.append([event.type, event.data])
    async with self.came:
        self.came.notify_all()
types = ["aiobus." + kind for kind in ("peer_joined", "peer_left", "stale", "fresh")]
self.watching = await bus.subscribe(types, on_event)
"""
UNTIL = """
def has_come():
    return all([type, name] in [[t, d["name"]] for t, d in self.heard] for type, name in wanted)
async with self.came:
    await self.came.wait_for(has_come)
return self.heard
"""


@pytest.mark.slow
@pytest.mark.paired
async def test_a_bus_that_closes_dies_freezes_or_restarts_is_announced_as_the_contract_says(
    url: str,
) -> None:
    async with nursery() as made:
        strategy = await made.actor()
        await strategy.start(url, "strategy")
        await strategy(WATCH)
        buses = dict(zip(NAMES, await made.actors(len(NAMES)), strict=True))
        for name, bus in buses.items():
            await bus.start(url, name)
        await strategy(UNTIL, wanted=[["aiobus.peer_joined", name] for name in NAMES])

        buses["frozen"].kill(signal.SIGSTOP)
        buses["killed"].kill()
        buses["restarted"].kill()
        await buses["restarted"].code
        again = await made.actor()
        await again.start(url, "restarted")
        await buses["closed"]("await bus.close()")
        left = [["aiobus.peer_left", name] for name in ("killed", "restarted", "closed")]
        await strategy(UNTIL, wanted=[*left, ["aiobus.stale", "frozen"]])
        buses["frozen"].kill(signal.SIGCONT)
        heard: list[tuple[str, dict[str, Any]]] = await strategy(
            UNTIL, wanted=[["aiobus.fresh", "frozen"]]
        )

    of = {
        name: [
            (type.removeprefix("aiobus."), data)
            for type, data in heard
            # One that is gone may leave before it counts as stale, on a busy machine.
            if data["name"] == name and (name == "frozen" or type != "aiobus.stale")
        ]
        for name in NAMES
    }
    kinds = {name: [kind for kind, _ in said] for name, said in of.items()}
    assert kinds == {
        "frozen": ["peer_joined", "stale", "fresh"],
        "killed": ["peer_joined", "peer_left"],
        "restarted": ["peer_joined", "peer_left", "peer_joined"],
        "closed": ["peer_joined", "peer_left"],
    }
    assert of["frozen"][-1][1]["silent"] >= 3
    assert of["killed"][-1][1]["reason"] == "its link was cut and did not come back"
    assert of["closed"][-1][1]["reason"] == "it closed"
    first, end, second = (data["epoch"] for _, data in of["restarted"])
    assert first == end != second


START_KEYED = """
from aiobus.keyring import Keyring
self.heard, self.came = [], asyncio.Condition()
self.bus = aiobus.AsyncEventBus(url, name=name, keyring=Keyring.load(path))
await self.bus.start()
"""
PUBLISH = """
for number in range(count):
    await bus.publish(aiobus.Event("T", [epoch, number, "x" * 300]))
    await asyncio.sleep(0.004)
"""
KEPT = {"ipc": 100, "tcp": 250, "keys": 250}
"""Messages that the kernel surely keeps of a connection that is not read."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ipc", "tcp", "keys"])
async def test_a_bus_that_was_stopped_hears_a_killed_source_to_its_end_and_then_its_successor(
    kind: str, folder: Path
) -> None:
    """What it sends as it goes on made ZeroMQ give up the connection before all of it was read."""
    url, ring = f"ipc://{folder}/desk" if kind == "ipc" else tcp_url(), folder / "keys"
    kept = KEPT[kind]
    make(ring, "strategy", "witness", "feed")

    async def start(actor: Actor, name: str) -> None:
        if kind == "keys":
            await actor(START_KEYED, url=url, name=name, path=str(ring))
        else:
            await actor.start(url, name)

    async with nursery() as made:
        strategy, witness, feed = await made.actors(3)
        for actor, name in ((strategy, "strategy"), (witness, "witness"), (feed, "feed")):
            await start(actor, name)
        for actor in (strategy, witness):
            await actor.hear("T", "aiobus.gap")
        strategy.kill(signal.SIGSTOP)
        await feed(PUBLISH, epoch=1, count=kept)
        await witness.heard(kept)  # so it has left the process
        feed.kill()
        await feed.code
        again = await made.actor()
        await start(again, "feed")
        await again(PUBLISH, epoch=2, count=3)
        strategy.kill(signal.SIGCONT)
        heard = await strategy.heard(kept + 3)
        assert [each[:2] for each in heard] == [
            *([1, number] for number in range(kept)),
            *([2, number] for number in range(3)),
        ]


async def test_the_gap_of_a_killed_source_comes_before_its_end_and_that_before_its_successor() -> (
    None
):
    seen: list[Event] = []
    succeeded = asyncio.Event()

    def on_event(event: Event) -> None:
        seen.append(event)
        if [each.type for each in seen].count("aiobus.peer_joined") == 2:
            succeeded.set()

    network = MemoryNetwork()
    types = [EventType.TRADE, "aiobus.gap", "aiobus.peer_left", "aiobus.peer_joined"]
    async with network.bus("strategy") as strategy:
        await strategy.subscribe(types, on_event)
        feed = network.bus("feed")
        await feed.start()
        await feed.publish(Event(EventType.TRADE, 0))
        await network.settle()
        network.faults = Faults(loss=1.0)
        lost = await feed.publish(Event(EventType.TRADE, 1))
        for _ in range(10):
            await asyncio.sleep(0)  # it was sent, and is lost
        network.faults = Faults(loss=lambda message: message.kind == "page_request")
        last = await feed.publish(Event(EventType.TRADE, 2))
        for _ in range(10):
            await asyncio.sleep(0)  # it has arrived, and what is missing is asked for
        network.kill("feed")
        network.faults = Faults()
        async with network.bus("feed"):
            await succeeded.wait()
        await feed.close(0)
    joined, trade, gap, left, again = seen[:5]
    assert [each.type for each in (joined, trade, gap, left, again)] == [
        "aiobus.peer_joined",
        "TRADE",
        "aiobus.gap",
        "aiobus.peer_left",
        "aiobus.peer_joined",
    ]
    assert (gap.data["after"], gap.data["upto"]) == (lost.seq - 1, last.seq)
    assert gap.data["reason"] == "its source has left"
    assert left.data["reason"] == "another has taken its place"
    assert left.data["last"] == last.seq
    assert again.data["epoch"] != left.data["epoch"] == lost.epoch


@pytest.mark.virtual
async def test_a_peer_that_is_lost_is_a_warning_in_the_log_and_one_that_closes_is_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    left = asyncio.Event()
    network = MemoryNetwork()
    async with network.bus("strategy") as strategy:
        await strategy.subscribe("aiobus.peer_left", lambda event: left.set())
        with caplog.at_level(logging.INFO, "aiobus"):
            for name in ("closed", "killed"):
                left.clear()
                bus = network.bus(name)
                await bus.start()
                await network.settle()
                if name == "killed":
                    network.kill(name)
                await bus.close(0)
                await left.wait()
    said = [(each.levelname, each.getMessage()) for each in caplog.records]
    assert ("INFO", "closed left: it closed") in said
    assert ("WARNING", "killed left: its link was cut and did not come back") in said


async def test_the_line_that_a_bus_has_started_says_who_is_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = MemoryNetwork()
    url = "memory"
    with caplog.at_level(logging.INFO, "aiobus.bus"):
        async with network.bus("feed") as feed, network.bus("tail", observer=True):
            url = feed.url
            async with network.bus("gateway"), network.bus("strategy"):
                pass
    started = [each for each in caplog.messages if "started" in each]
    assert started == [
        f"feed started on {url}; nobody else is there yet",
        f"tail started on {url}; feed is there",
        f"gateway started on {url}; feed is there",
        f"strategy started on {url}; feed, gateway are there",
    ]


# What is known of a source that has ended.


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
        dying = feed.tell(
            "import time\n"
            "bus.publish_nowait(Event('T1', 5)); bus.publish_nowait(Event('T1', 6))\n"
            "bus.publish_nowait(Event('T5', 7))\n"
            "time.sleep(60)  # only ZeroMQ's thread goes on, which sends what it has"
        )
        await until(lambda: watch.seqs["T5"] and len(watch.seqs["*"]) == 2)
        feed.kill()
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


@pytest.mark.virtual
async def test_of_what_is_unknown_of_a_killed_source_each_subscription_has_a_gap_and_the_log_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = MemoryNetwork()
    async with network.bus("strategy") as bus:
        watches = [Watch(bus) for _ in range(5)]
        ended = [await watch.subscribe() for watch in watches]
        feed = network.bus("feed")
        await feed.start()
        await feed.publish(Event("T1", 0))
        assert await feed.flush() == []
        network.faults = Faults(
            loss=lambda message: message.source == "feed" and b"bye" not in message.data
        )
        for number in range(3):
            await feed.publish(Event("T1", number))
        assert await feed.close(0.1) == ["strategy"]
        last = (await ended[0]).data["last"]
        await bus.settle()
        await asyncio.sleep(2)  # lines that were held back are logged by now
    for watch in watches:
        assert [gap["reason"] for gap in watch.gaps["*"]] == [UNKNOWN]
        assert [gap["reason"] for gap in watch.gaps["T5"]] == [UNKNOWN]
    assert [line for line in caplog.messages if "feed has left" in line or "lost" in line] == [
        f"feed has left, and whether any event of it up to {last} is missing is unknown"
    ]


@pytest.mark.virtual
async def test_no_frame_vouches_for_a_number_that_another_process_has_named_for_its_source() -> (
    None
):
    network = MemoryNetwork()
    async with network.bus("strategy") as bus:
        watch = Watch(bus)
        ended = await watch.subscribe()
        feed = network.bus("feed")
        await feed.start()
        sent = [await feed.publish(Event("T5", number)) for number in range(3)]
        for _ in range(5):
            await asyncio.sleep(1)  # heartbeats tell where it is
        mesh: Any = feed._transport
        mesh.network.send(heartbeat("feed", feed.stats().epoch, sent[-1].seq + 33))
        sent.append(await feed.publish(Event("T5", 3)))
        for _ in range(10):
            await asyncio.sleep(0)  # it has arrived
        assert watch.seqs["T5"] == [event.seq for event in sent]
        network.faults = Faults(loss=1.0)
        for number in range(4, 9):
            await feed.publish(Event("T5", number))
        network.kill("feed")
        await feed.close(0)
        last = (await ended).data["last"]
        await bus.settle()
    assert last == sent[-2].seq + 33
    for types in ("*", "T5"):
        (gap,) = watch.gaps[types]
        assert (gap["after"], gap["upto"], gap["reason"]) == (sent[-1].seq, last, UNKNOWN)


@pytest.mark.virtual
async def test_of_a_source_that_is_killed_after_it_was_idle_for_a_while_nothing_is_unknown() -> (
    None
):
    network = MemoryNetwork()
    async with network.bus("strategy") as bus:
        watch = Watch(bus)
        ended = await watch.subscribe()
        feed = network.bus("feed")
        await feed.start()
        await feed.publish(Event("T5", 0))
        await feed.publish(Event("T1", 0))
        await asyncio.sleep(2 * STEADY + 2)
        network.kill("feed")
        await feed.close(0)
        await ended
        await bus.settle()
    assert watch.gaps == {"*": [], "T5": []}


@pytest.mark.virtual
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


# What still comes of a source that has left.


async def say(network: MemoryNetwork, name: str, message: bytes) -> None:
    """Let the bus of this name hear a message of a process that is no bus."""
    port = network.port()
    await opened(port, "stranger")
    port.connect(f"memory://{name}")
    port.subscribe(b"~stranger@1 memory://stranger\0")
    await asyncio.sleep(0.1)
    port.send(message)
    await asyncio.sleep(0.1)
    await port.close(0)


def test_what_a_frame_shows_to_be_missing_of_a_source_that_has_left_is_said_to_be_lost() -> None:
    """Or its subscription would be behind, and `settle` wait, for the hour after which the source
    is forgotten.
    """
    seen: list[Any] = []

    async def main() -> None:
        network, sent = MemoryNetwork(), []

        def loss(message: Message) -> float:
            sent.append(message)
            return bool(message.events)

        async with network.bus("bot") as bot:
            await bot.subscribe(["A", "aiobus.gap"], seen.append)
            async with network.bus("feed") as feed:
                await feed.flush()
                network.faults = Faults(loss=loss)
                for number in range(2):
                    await feed.publish(Event("A", number))
                    await asyncio.sleep(0.01)
                network.faults = Faults()
                network.kill("feed")
                await feed.close(0)
            await asyncio.sleep(100)
            before = len(seen)
            (_, last) = [message.data for message in sent if message.events]
            await say(network, "bot", last)
            await bot.settle(3)
            assert [event.type for event in seen[before:]] == ["aiobus.gap"]
            assert bot.stats().subscriptions[0].behind is False

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


def test_a_hello_of_the_one_before_that_comes_late_does_not_hide_who_is_there() -> None:
    """Each start has a connection of its own, so the hello of an earlier one may be read last."""
    seen: list[Any] = []

    async def main() -> None:
        network = MemoryNetwork(seed=4)
        async with network.bus("bot") as bot:
            await bot.subscribe("A", seen.append)
            before = network.bus("feed")
            await before.start()
            network.partition({"feed"}, {"bot"}, cut=True)
            await asyncio.sleep(0.1)
            network.faults = Faults(delay=lambda message: 20 * (message.target == "bot"))
            network.heal()  # so it says hello again, which takes a while
            await asyncio.sleep(0.1)
            await before.close(0)
            network.faults = Faults()
            async with network.bus("feed") as feed:
                for number in range(60):
                    await feed.publish(Event("A", number))
                    await asyncio.sleep(1)
                assert [each.epoch for each in bot.peers] == [feed.stats().epoch]
                assert await feed.flush(3) == []
            assert [event.data for event in seen] == [*range(60)]

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
