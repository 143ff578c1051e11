"""Observers: a desk is as it was, whether one watches it, is frozen, or has gone."""

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from actors import Actor, Nursery, nursery
from desks import NETWORKS, Desk, Seen, arrive, open_desk, publish, until, waits
from ports import opened

from aiobus import (
    AsyncEventBus,
    Event,
    EventType,
    Limits,
    NameInUse,
    NoSubscribers,
    RequestInterrupted,
)
from aiobus.discovery import OBSERVES, Member
from aiobus.discovery.directory import Directory
from aiobus.discovery.roster import KnownMembers, hello_line, is_possible, parse_hello
from aiobus.testing import Faults, MemoryNetwork
from aiobus.wire import Ask, Options, PeerId, up

BOTS = {"feed", "strategy", "gateway", "late"}
NAMED = ["TRADE", "ORDER"]
SEEN = """
if keys:
    os.environ["AIOBUS_KEYRING"] = keys
seen, self.heard, self.came = [], [], asyncio.Condition()
self.bus = aiobus.AsyncEventBus(url, name=name, observer=True)
await self.bus.start()
async def take(event):
    self.heard.append(event.data)
    async with self.came:
        self.came.notify_all()
await self.bus.subscribe("*", take)
await self.bus.subscribe(types, lambda event: None)
"""

LINKED = """
while name not in [each.name for each in bus.peers]:
    await asyncio.sleep(0.01)
"""


class Watched:
    """A desk that the bus `tail` observes: it was there first, and asks for TRADE and ORDER by
    name, and for everything. On ipc and tcp it is another process.
    """

    def __init__(self, desk: Desk, actor: Actor | None, tail: AsyncEventBus | None) -> None:
        self.bus = desk.bus
        self._network: MemoryNetwork | None = getattr(desk._make, "__self__", None)
        self._actor = actor
        self._tail = tail
        self.is_tcp = desk._make(name="x").url.startswith("tcp")
        self.seen = Seen()

    @classmethod
    async def open(cls, desk: Desk, made: Nursery | None) -> "Watched":
        if made is not None:
            actor = await made.actor()
            url = desk._make(name="tail").url  # has a key from then on, if the desk has keys
            await actor(SEEN, url=url, name="tail", types=NAMED, keys=desk.keys)
            return cls(desk, actor, None)
        tail = await desk.bus("tail", observer=True)
        self = cls(desk, None, tail)
        await tail.subscribe("*", self.seen.take)
        await tail.subscribe(NAMED, lambda event: None)
        return self

    async def linked(self, bus: AsyncEventBus) -> None:
        """Wait until the observer and `bus` are linked."""
        await seen_by(bus, "tail")
        if self._actor is not None:
            await self._actor(LINKED, name=bus.name)
        elif (tail := self._tail) is not None:
            await until(lambda: bus.name in [each.name for each in tail.peers])

    def freeze(self) -> None:
        """The observer reads and sends nothing any more: SIGSTOP."""
        if self._actor is not None:
            self._actor.kill(signal.SIGSTOP)
        elif self._network is not None:
            self._network.partition({"tail"}, BOTS)

    def thaw(self) -> None:
        if self._actor is not None:
            self._actor.kill(signal.SIGCONT)
        elif self._network is not None:
            self._network.heal()

    async def heard(self, count: int) -> list[Any]:
        """The data of all that the observer was handed, once there are so many."""
        if self._actor is not None:
            return await self._actor.heard(count)
        await self.seen.until(lambda: len(self.seen) >= count)
        return self.seen.data

    async def kill(self) -> None:
        if self._actor is not None:
            self._actor.kill()
            await self._actor.code
        elif self._network is not None and self._tail is not None:
            self._network.kill("tail")
            await self._tail.close(0)


@pytest.fixture(params=NETWORKS)
async def watched(request: pytest.FixtureRequest, no_task_is_left: None) -> AsyncIterator[Watched]:
    async with open_desk(request.param) as desk:
        if request.param == "memory":
            yield await Watched.open(desk, None)
        else:
            async with nursery() as made:
                yield await Watched.open(desk, made)


@pytest.fixture(params=["awake", "frozen"])
def stopped(request: pytest.FixtureRequest, watched: Watched) -> Callable[[], None]:
    """Freezes the observer, or not."""
    return watched.freeze if request.param == "frozen" else lambda: None


Stop = Callable[[], None]


def observers(bus: AsyncEventBus) -> list[str]:
    return [each.name for each in bus.peers if each.observer]


async def seen_by(bus: AsyncEventBus, name: str) -> None:
    """`bus` is linked with the observer `name`, and has its queries."""
    await until(lambda: name in observers(bus))


@waits
async def test_a_request_that_only_an_observer_hears_finds_no_subscriber(
    watched: Watched, stopped: Stop
) -> None:
    strategy = await watched.bus("strategy")
    await watched.linked(strategy)
    stopped()
    with pytest.raises(NoSubscribers):
        await strategy.request(Event(EventType.ORDER, 1), EventType.FILL)
    assert strategy.stats().published == 0


@waits
async def test_a_request_beside_an_observer_is_answered_and_ends_with_the_gateway(
    watched: Watched, stopped: Stop
) -> None:
    strategy, gateway = await watched.bus("strategy"), await watched.bus("gateway")
    is_silent = False
    asked = asyncio.Event()

    async def on_order(order: Event) -> None:
        asked.set()
        if not is_silent:
            await gateway.publish(Event(EventType.FILL, order.data))

    await gateway.subscribe(EventType.ORDER, on_order)
    await watched.linked(strategy)
    stopped()
    assert (await strategy.request(Event(EventType.ORDER, 1), EventType.FILL)).data == 1
    is_silent = True
    asked.clear()
    waiting = asyncio.create_task(strategy.request(Event(EventType.ORDER, 2), EventType.FILL))
    await asked.wait()
    await gateway.close()
    with pytest.raises(RequestInterrupted):
        await waiting


@waits
async def test_a_request_finds_no_subscriber_once_only_an_observer_is_left(
    watched: Watched, stopped: Stop
) -> None:
    strategy, gateway = await watched.bus("strategy"), await watched.bus("gateway")
    subscription = await gateway.subscribe(EventType.ORDER, lambda order: None)
    await watched.linked(strategy)
    await watched.linked(gateway)
    stopped()
    await subscription.unsubscribe()
    await until(lambda: not any(each.subscribed for each in strategy.peers if not each.observer))
    with pytest.raises(NoSubscribers):
        await strategy.request(Event(EventType.ORDER, 1), EventType.FILL)


@waits
async def test_flush_and_close_do_not_name_an_observer(watched: Watched, stopped: Stop) -> None:
    feed, strategy = await watched.bus("feed"), await watched.bus("strategy")
    seen = Seen()
    await strategy.subscribe("TRADE", seen.take)
    await watched.linked(feed)
    stopped()
    await publish(feed, 300)
    assert await feed.flush() == []
    assert await feed.close() == []
    await strategy.settle()
    assert seen.data == [*range(300)]


@waits
async def test_a_publisher_that_waits_for_its_readers_does_not_wait_for_an_observer(
    watched: Watched, stopped: Stop
) -> None:
    feed = await watched.bus("feed", pace=True, limits=Limits(history_events=64))
    strategy = await watched.bus("strategy")
    seen, left = Seen(), Seen()
    await strategy.subscribe("TRADE", seen.take)
    await feed.subscribe("aiobus.left_behind", left.take)
    await watched.linked(feed)
    stopped()
    await publish(feed, 2_000)
    await arrive(feed, strategy)
    assert seen.data == [*range(2_000)]
    assert left == []


@waits
async def test_a_start_and_a_subscription_do_not_wait_for_a_frozen_observer(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    feed = await watched.bus("feed")
    await watched.linked(feed)
    watched.freeze()
    late = await watched.bus("late")
    seen = Seen()
    subscription = await late.subscribe("TRADE", seen.take, since="last")
    assert subscription.unconfirmed == frozenset()
    await late.publish(Event("BAR", 0))
    assert await late.flush() == []
    assert "starts without" not in caplog.text


@waits
async def test_a_frozen_observer_has_all_once_it_goes_on(watched: Watched) -> None:
    feed = await watched.bus("feed")
    await watched.linked(feed)
    watched.freeze()
    await publish(feed, 1_000)
    assert await feed.flush() == []
    watched.thaw()
    assert await watched.heard(1_000) == [*range(1_000)]


@waits
async def test_what_a_bot_publishes_that_closes_at_once_is_seen_by_an_observer(
    watched: Watched,
) -> None:
    if watched.is_tcp:  # there, an observer is met where another bot serves
        await watched.linked(await watched.bus("strategy"))
    bot = await watched.bus("feed")
    await bot.publish(Event("TRADE", 7))
    await bot.close()
    assert await watched.heard(1) == [7]


@waits
async def test_nobody_is_told_that_an_observer_comes_or_goes(watched: Watched) -> None:
    feed = await watched.bus("feed")
    told = Seen()
    types = ["peer_joined", "peer_left", "stale", "fresh", "peer_restarted"]
    await feed.subscribe([f"aiobus.{each}" for each in types], told.take)
    await watched.linked(feed)
    await watched.kill()
    await until(lambda: not observers(feed))
    late = await watched.bus("late")
    await late.close()
    await told.until(lambda: len(told) == 2)
    assert [(each.type, each.data["name"]) for each in told] == [
        ("aiobus.peer_joined", "late"),
        ("aiobus.peer_left", "late"),
    ]


@pytest.mark.virtual
async def test_nobody_is_told_that_an_observer_is_silent_and_nothing_takes_longer() -> None:
    network = MemoryNetwork()
    loop = asyncio.get_running_loop()
    async with network.bus("tail", observer=True) as tail, network.bus("feed") as feed:
        await tail.subscribe("*", Seen().take)
        told = Seen()
        await feed.subscribe(["aiobus.stale", "aiobus.fresh", "aiobus.peer_left"], told.take)
        network.partition({"tail"}, {"feed"})
        await asyncio.sleep(20)
        await publish(feed, 10)
        began = loop.time()
        assert await feed.flush() == []
        await feed.subscribe("BAR", told.take, since="last")
        assert loop.time() == began
        network.heal()
        await asyncio.sleep(20)
        assert told == []


@pytest.mark.virtual
async def test_an_observer_that_is_refused_a_query_or_cut_off_is_named_by_nobody() -> None:
    network = MemoryNetwork()
    async with network.bus("tail", observer=True) as tail, network.bus("feed") as feed:
        await tail.subscribe("*", Seen().take)
        network.partition({"tail"}, {"feed"}, cut=True)
        await publish(feed, 10)
        assert await feed.flush() == []
        subscription = await feed.subscribe("BAR", Seen().take)
        assert subscription.unconfirmed == frozenset()
        network.heal()


@waits
async def test_an_observer_publishes_and_its_flush_tells_that_it_has_arrived(mesh: Desk) -> None:
    strategy = await mesh.bus("strategy")
    seen = Seen()
    await strategy.subscribe("HALT", seen.take)
    publisher = await mesh.bus("tool", observer=True)
    await publisher.publish(Event("HALT", "all"))
    await arrive(publisher, strategy)
    assert [(event.data, event.source) for event in seen] == [("all", "tool")]
    assert (await publisher.close(), len(seen)) == ([], 1)


@waits
async def test_what_an_observer_publishes_that_closes_at_once_is_seen_by_another(
    mesh: Desk,
) -> None:
    await mesh.bus("feed")  # on tcp, observers meet where a bot is
    tail = await mesh.bus("tail", observer=True)
    seen = Seen()
    await tail.subscribe("*", seen.take)
    tool = await mesh.bus("tool", observer=True)
    await tool.publish(Event("HALT", 1))
    assert await tool.close() == []
    await seen.until(lambda: len(seen) == 1)


@waits
async def test_an_observer_asks_and_is_answered(mesh: Desk) -> None:
    gateway, tool = await mesh.bus("gateway"), await mesh.bus("tool", observer=True)

    async def on_order(order: Event) -> None:
        await gateway.publish(Event(EventType.FILL, order.data))

    await gateway.subscribe(EventType.ORDER, on_order)
    assert (await tool.request(Event(EventType.ORDER, 5), EventType.FILL)).data == 5


@waits
async def test_an_observer_that_starts_again_as_a_bot_counts_from_then_on(mesh: Desk) -> None:
    strategy = await mesh.bus("strategy")
    told = Seen()
    await strategy.subscribe(["aiobus.peer_joined", "aiobus.peer_left"], told.take)
    for is_observer in (True, False, True):
        gateway = await mesh.bus("gateway", observer=is_observer)

        async def on_order(order: Event, gateway: AsyncEventBus = gateway) -> None:
            await gateway.publish(Event(EventType.FILL, order.data))

        await gateway.subscribe(EventType.ORDER, on_order)
        asked = strategy.request(Event(EventType.ORDER, 5), EventType.FILL)
        if is_observer:
            await seen_by(strategy, "gateway")
            with pytest.raises(NoSubscribers):
                await asked
        else:
            assert (await asked).data == 5
            assert not strategy.peers[0].observer
        await gateway.close()
        await until(lambda: not strategy.peers)
    assert [each.type for each in told] == ["aiobus.peer_joined", "aiobus.peer_left"]


@waits
@pytest.mark.parametrize("first", [True, False], ids=["observer", "bot"])
async def test_an_observer_and_a_bot_cannot_have_one_name(mesh: Desk, first: bool) -> None:
    await mesh.bus("feed")
    await mesh.bus("monitor", observer=first)
    with pytest.raises(NameInUse):
        await mesh.bus("monitor", observer=not first)


async def test_a_directory_gives_the_name_of_an_observer_to_no_bot(
    folder: Path, no_task_is_left: None
) -> None:
    async with (
        AsyncEventBus(f"ipc://{folder}/d", name="a", observer=True),
        AsyncEventBus(f"ipc://{folder}/d", name="b"),
    ):
        for name, observes in (("a", False), ("b", True)):
            with pytest.raises(NameInUse):
                await Directory(f"{folder}/d").join(name, str, print, observes=observes)


@waits
async def test_the_full_inbox_of_an_observer_holds_up_no_publisher(mesh: Desk) -> None:
    feed, tail = await mesh.bus("feed"), await mesh.bus("tail", observer=True)
    seen = Seen(is_open=False)
    subscription = await tail.subscribe("TRADE", seen.take, overflow="block", maxsize=1)
    assert subscription.stats.overflow == "catch_up"
    await publish(tail, 20)
    for number in range(20):
        tail.publish_nowait(Event("TRADE", number))
    await publish(feed, 20)
    seen.gate.set()
    await seen.until(lambda: len(seen) == 60)
    own = [event.data for event in seen if event.source == "tail"]
    assert own == [*range(20), *range(20)]


async def test_the_own_subscriptions_of_an_observer_answer_no_request_and_hold_up_no_pace(
    no_task_is_left: None,
) -> None:
    limits = Limits(history_events=64)
    async with AsyncEventBus(observer=True, pace=True, limits=limits) as bus:
        seen = Seen(is_open=False)
        await bus.subscribe(NAMED, seen.take, maxsize=1)
        with pytest.raises(NoSubscribers):
            await bus.request(Event(EventType.ORDER, 0), EventType.FILL)
        await publish(bus, 1_000)
        seen.gate.set()


def test_an_observer_has_no_journal_and_is_said_by_a_bool(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an observer keeps no journal"):
        AsyncEventBus(name="tail", observer=True, journal=tmp_path / "j")
    with pytest.raises(TypeError, match="observer='yes': True or False"):
        AsyncEventBus(observer="yes")  # type: ignore[arg-type]


FLOOD = """
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

async def publish(count):
    for _ in range(count):
        await self.bus.publish(Event("TRADE", "x" * 1_000))

await publish(2_000)
before = resident()
await publish(60_000)
return resident() - before
"""
MIB = 1024 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.paired
async def test_a_frozen_observer_costs_its_publisher_a_queue_and_no_more(
    url: str, no_task_is_left: None
) -> None:
    async with nursery() as made:
        tail, feed = await made.actors(2)
        await tail(SEEN, url=url, name="tail", types=NAMED, keys="")
        await feed(
            "self.bus = AsyncEventBus(url, name='feed', limits=Limits(history_events=256,"
            " high_water_mark=64))\nawait self.bus.start()",
            url=url,
        )
        await feed(LINKED, name="tail")
        tail.kill(signal.SIGSTOP)
        grown = await feed(FLOOD)
        tail.kill(signal.SIGCONT)
    # Two streams, 64 frames of 64 KiB in all, of 60 MB; and what the allocator keeps.
    assert grown < 16 * MIB


@waits
async def test_an_observer_serves_no_address_and_bots_meet_beside_a_frozen_one(
    watched: Watched,
) -> None:
    watched.freeze()
    feed, strategy = await watched.bus("feed"), await watched.bus("strategy")
    assert feed.stats().unreached == strategy.stats().unreached == ()
    seen = Seen()
    await strategy.subscribe("TRADE", seen.take)
    await publish(feed, 3)
    await arrive(feed, strategy)
    assert seen.data == [0, 1, 2]


@pytest.mark.virtual
async def test_a_network_in_memory_is_settled_once_observers_have_everything() -> None:
    network = MemoryNetwork(faults=Faults(loss=0.3))
    async with network.bus("tail", observer=True) as tail, network.bus("feed") as feed:
        seen = Seen()
        await tail.subscribe("*", seen.take)
        await publish(feed, 500)
        await network.settle(60)
        assert seen.data == [*range(500)]


async def test_a_forged_hello_makes_no_observer_of_another_bus(no_task_is_left: None) -> None:
    network = MemoryNetwork()
    async with network.bus("desk") as desk, network.bus("feed") as feed:
        await feed.subscribe("TRADE", Seen().take)
        port: Any = network.port()
        await opened(port, "forger")
        port.connect("memory://desk")
        real = feed._transport.session.me  # type: ignore[attr-defined]
        forged = PeerId("feed", real.epoch, f"{real.endpoint}{OBSERVES}")
        port.subscribe(forged.topic)
        port.ask(up(Ask("desk", 7, forged, options=Options(queries="TRADE"))))
        links = desk._transport.session.links  # type: ignore[attr-defined]
        await until(lambda: any(each.is_observer for each in links))
        network.partition({"feed"}, {"desk"})
        await publish(desk, 3)
        assert await desk.flush(0.1) == ["feed"]
        network.heal()
        port.end()


def test_a_member_is_an_observer_by_its_endpoint_and_its_place_is_known_once() -> None:
    bot, observer = Member("a", "tcp://127.0.0.1:7001"), Member("b", "tcp://127.0.0.1:7001+")
    assert parse_hello(hello_line(observer).rstrip()) == observer
    known = KnownMembers()
    assert known.learn([observer]) == [observer]
    assert known.learn([bot]) == [bot]
    assert [*known] == [bot]  # its port is that of another bus now, so it has died
    for endpoint in ("tcp://127.0.0.1:7001++", "tcp://127.0.0.1+:7001", "+"):
        assert not is_possible(Member("a", endpoint))


async def test_a_directory_has_the_sockets_of_observers_and_removes_those_that_are_dead(
    folder: Path, no_task_is_left: None
) -> None:
    path = folder / "d"
    async with (
        AsyncEventBus(f"ipc://{path}", name="feed"),
        AsyncEventBus(f"ipc://{path}", name="tail", observer=True),
    ):
        assert sorted(each.name for each in path.iterdir()) == ["feed.sock", "tail.sock+"]
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path / "old.sock+"))
        async with AsyncEventBus(f"ipc://{path}", name="late"):
            pass
        assert sorted(each.name for each in path.iterdir()) == ["feed.sock", "tail.sock+"]


async def test_a_directory_that_was_removed_is_made_again_by_an_observer(
    folder: Path, no_task_is_left: None
) -> None:
    path = folder / "d"
    async with AsyncEventBus(f"ipc://{path}", name="tail", observer=True) as tail:
        seen = Seen()
        await tail.subscribe("TRADE", seen.take)
        (path / "tail.sock+").unlink()
        await until((path / "tail.sock+").exists)
        async with AsyncEventBus(f"ipc://{path}", name="feed") as feed:
            await publish(feed, 1)
        await seen.until(lambda: len(seen) == 1)
