"""With `pace=True` a publisher does not outrun its readers: nothing is lost at full rate, whatever
history holds; and no wait for a reader lasts for ever.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack
from typing import Any

import pytest
from desks import Desk, until, waits

from aiobus import AsyncEventBus, BusClosed, Event, Limits, QueueFull
from aiobus.mesh import peers
from aiobus.testing import Faults, MemoryNetwork

pytestmark = pytest.mark.usefixtures("no_task_is_left")

FEW = Limits(history_events=20)
IMPATIENT = Limits(history_events=20, pace_seconds=1)
Logged = Callable[[str], AbstractContextManager[asyncio.Event]]


class Reader:
    """A handler that keeps what it gets, and rests after each tenth event. While `gate` is not set
    it hangs.
    """

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.gaps: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.came = asyncio.Condition()

    async def __call__(self, event: Event[Any]) -> None:
        if event.type == "aiobus.gap":
            self.gaps.append(event.data)
            return
        await self.gate.wait()
        self.seen.append(event.data[0] if isinstance(event.data, list) else event.data)
        if len(self.seen) % 10 == 0:
            await asyncio.sleep(0.001)
        async with self.came:
            self.came.notify_all()

    async def until_last(self, last: int) -> list[Any]:
        async with self.came:
            await self.came.wait_for(lambda: self.seen[-1:] == [last])
        return self.seen

    async def until(self, count: int) -> list[Any]:
        async with self.came:
            await self.came.wait_for(lambda: len(self.seen) >= count)
        return self.seen


async def read(bus: AsyncEventBus, types: str = "T", **options: Any) -> Reader:
    reader = Reader()
    await bus.subscribe([types, "aiobus.gap"], reader, **({"maxsize": 5} | options))
    return reader


async def replay(bus: AsyncEventBus, count: int, begin: int = 0) -> None:
    for number in range(begin, begin + count):
        await bus.publish(Event("T", number))


async def until_it_waits(*buses: AsyncEventBus) -> None:
    """Return at a moment when a publisher of each waits for readers."""
    paces: list[Any] = [bus._pace for bus in buses]
    await until(lambda: all(pace._waits for pace in paces))


async def begin(bus: AsyncEventBus, count: int = 1_000) -> "asyncio.Task[None]":
    """A replay that waits for a reader."""
    task = asyncio.create_task(replay(bus, count))
    await until_it_waits(bus)
    return task


# Nothing is lost.


@pytest.mark.parametrize("overflow", ["catch_up", "block"])
async def test_a_replay_at_full_rate_loses_nothing_whatever_history_holds(
    desk: Desk, overflow: str
) -> None:
    feed = await desk.bus("feed", limits=FEW, pace=True)
    readers = [await read(await desk.bus(name), overflow=overflow) for name in "ab"]
    readers.append(await read(feed))
    await replay(feed, 400)
    for reader in readers:
        assert await reader.until(400) == list(range(400))
        assert reader.gaps == []
    assert feed.stats().history_events <= 20 + len(readers)


async def test_without_pace_the_same_replay_loses_and_says_so(desk: Desk) -> None:
    feed = await desk.bus("feed", limits=FEW)
    reader = await read(await desk.bus("a"))
    await replay(feed, 400)
    await reader.until_last(399)
    assert reader.gaps


async def test_payloads_of_10_kib_beyond_the_bytes_of_history_lose_nothing(desk: Desk) -> None:
    limits = Limits(history_bytes=100_000, event_bytes=50_000)
    feed = await desk.bus("feed", limits=limits, pace=True)
    readers = [await read(await desk.bus("a")), await read(feed)]
    for number in range(150):
        await feed.publish(Event("T", [number, "x" * 10_240]))
    for reader in readers:
        assert await reader.until(150) == list(range(150))
        assert reader.gaps == []
    assert feed.stats().history_bytes <= 100_000 + 20_000


async def test_the_bytes_of_all_types_together_are_paced_as_well(desk: Desk) -> None:
    limits = Limits(history_total_bytes=60_000, event_bytes=20_000)
    feed = await desk.bus("feed", limits=limits, pace=True)
    reader = await read(await desk.bus("a"), "*")
    for number in range(150):
        await feed.publish(Event("ABC"[number % 3], [number, "x" * 4_000]))
    assert await reader.until(150) == list(range(150))
    assert reader.gaps == []


@pytest.mark.parametrize("overflow", ["drop_oldest", "latest"])
async def test_an_inbox_that_drops_has_no_gap(mesh: Desk, overflow: str) -> None:
    feed = await mesh.bus("feed", limits=FEW, pace=True)
    reader = await read(await mesh.bus("a"), overflow=overflow)
    await replay(feed, 400)
    await reader.until_last(399)
    assert reader.gaps == []


async def test_who_joins_during_a_replay_misses_nothing_after_it_has_joined(mesh: Desk) -> None:
    feed = await mesh.bus("feed", limits=FEW, pace=True)
    first = await read(await mesh.bus("a"))
    have_joined = asyncio.Event()

    async def replay_beyond_the_join() -> int:
        count = 0
        while not have_joined.is_set():  # on a busy machine a replay of any length ends before
            await replay(feed, 10, count)
            count += 10
        await replay(feed, 300, count)
        return count + 300

    task = asyncio.create_task(replay_beyond_the_join())
    await first.until(100)
    late = await read(await mesh.bus("b"))
    past = await read(await mesh.bus("c"), since=0)
    have_joined.set()
    count = await task
    for reader in (first, late, past):
        await reader.until_last(count - 1)
        assert reader.seen == list(range(reader.seen[0], count))
        assert reader.gaps == []


async def test_a_reader_of_one_type_does_not_hold_up_another(mesh: Desk) -> None:
    feed = await mesh.bus("feed", limits=FEW, pace=True)
    bus = await mesh.bus("a")
    hung, reader = await read(bus, "H"), await read(bus, "T")
    hung.gate.clear()
    for number in range(25):  # as many as history and its inbox hold
        await feed.publish(Event("H", number))
    await replay(feed, 200)
    assert await reader.until(200) == list(range(200))
    hung.gate.set()
    assert await hung.until(25) == list(range(25))


async def test_a_request_waits_for_readers_as_well(mesh: Desk) -> None:
    feed = await mesh.bus("feed", limits=FEW, pace=True)
    bus = await mesh.bus("a")

    async def reply(event: Event[Any]) -> None:
        await bus.publish(Event("R", event.data))

    await bus.subscribe("T", reply, maxsize=1)
    reader = await read(bus)
    replies = [await feed.request(Event("T", number), "R") for number in range(60)]
    assert [each.data for each in replies] == list(range(60))
    assert await reader.until(60) == list(range(60))
    assert reader.gaps == []


# A wait, and its end.


async def test_a_publish_that_is_cancelled_while_it_waits_has_published_nothing(
    mesh: Desk,
) -> None:
    feed = await mesh.bus("feed", limits=FEW, pace=True)
    reader = await read(await mesh.bus("a"))
    reader.gate.clear()
    task = await begin(feed)
    published = feed.stats().published
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert feed.stats().published == published
    sent, event, is_late = [], Event("T", -1), False
    while not is_late:  # the reader may take some more
        try:
            async with asyncio.timeout(0.05):
                await feed.publish(event)
            sent.append(event.data)
            event = Event("T", event.data - 1)
        except TimeoutError:
            is_late = True
    assert (event.seq, feed.stats().published) == (0, published + len(sent))
    reader.gate.set()
    await feed.publish(event)
    seen = await reader.until_last(event.data)
    assert seen == [*range(len(seen) - len(sent) - 1), *sent, event.data]
    assert reader.gaps == []


async def test_publish_nowait_raises_where_publish_would_wait(mesh: Desk) -> None:
    feed = await mesh.bus("feed", limits=FEW, pace=True)
    reader = await read(await mesh.bus("a"))
    reader.gate.clear()
    event = Event("T", 0)
    with pytest.raises(QueueFull, match="has not confirmed"):
        for number in range(100):
            event = Event("T", number)
            feed.publish_nowait(event)
    assert event.seq == 0
    reader.gate.set()
    await feed.publish(event)
    assert await reader.until(event.data + 1) == list(range(event.data + 1))


@pytest.mark.parametrize("limit", ["history_events", "history_bytes", "history_total_bytes"])
async def test_a_full_history_is_named_by_the_limit_that_it_has_reached(
    desk: Desk, limit: str
) -> None:
    most = {"history_events": 20, "history_bytes": 5_000, "history_total_bytes": 5_000}[limit]
    feed = await desk.bus("feed", limits=Limits(**{limit: most}, event_bytes=1_000), pace=True)
    reader = await read(await desk.bus("a"))
    reader.gate.clear()
    with pytest.raises(QueueFull, match=rf"Limits\.{limit}={most}\)") as caught:
        for _ in range(1_000):
            feed.publish_nowait(Event("T", "x" * 100))
    assert (caught.value.limit, caught.value.maxsize) == (limit, most)
    reader.gate.set()


@waits
async def test_a_reader_that_hangs_is_left_behind_and_waited_for_again_once_it_reads(
    desk: Desk, logged: Logged
) -> None:
    feed = await desk.bus("feed", limits=IMPATIENT, pace=True)
    bus = await desk.bus("a")
    said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def on_left(event: Event[Any]) -> None:
        said.put_nowait(event.data)

    await feed.subscribe("aiobus.left_behind", on_left)
    hung, well = await read(bus), await read(await desk.bus("b"))
    hung.gate.clear()
    with logged("left behind: T after seq") as line:
        await replay(feed, 100)
        await line.wait()
    told = await said.get()
    name = "a" if bus is not feed else next(each.name for each in feed.stats().subscriptions[1:])
    assert (told["reader"], told["type"]) == (name, "T")
    assert 0 < told["after"] <= 40
    assert await well.until(100) == list(range(100))
    assert well.gaps == []
    hung.gate.set()
    await hung.until_last(99)
    lost = list(hung.gaps)
    assert lost
    await replay(feed, 200, 100)
    await hung.until_last(299)
    assert hung.gaps == lost
    assert said.empty()


@pytest.mark.virtual
async def test_a_reader_that_is_killed_is_waited_for_until_it_is_said_to_have_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "GRACE", 0.5)
    network = MemoryNetwork()
    async with network.bus("feed", limits=FEW, pace=True) as feed, network.bus("b") as other:
        well = await read(other)
        bus = network.bus("a")
        await bus.start()
        (await read(bus)).gate.clear()
        task = await begin(feed)
        assert feed.stats().published < 100
        network.kill("a")
        await task
        assert "a" not in [each.name for each in feed.peers]
        assert await well.until(1_000) == list(range(1_000))
        await bus.close(0)


@pytest.mark.virtual
async def test_a_reader_whose_link_is_cut_for_a_moment_misses_nothing() -> None:
    network = MemoryNetwork()
    async with network.bus("feed", limits=FEW, pace=True) as feed, network.bus("a") as bus:
        reader = await read(bus)
        task = asyncio.create_task(replay(feed, 500))
        await reader.until(100)
        network.partition({"feed"}, {"a"}, cut=True)
        await asyncio.sleep(1.0)
        assert not task.done()
        network.heal()
        await task
        assert await reader.until(500) == list(range(500))
        assert reader.gaps == []


async def cut(network: MemoryNetwork, feed: AsyncEventBus) -> None:
    """Cut the only link of `feed`, and return when it knows."""
    links: Any = feed._transport.session.links  # type: ignore[attr-defined]
    network.partition({"feed"}, {"a"}, cut=True)
    while feed.peers:
        await links.changed.wait()


@pytest.mark.virtual
async def test_a_reader_whose_link_is_cut_before_the_first_event_misses_nothing() -> None:
    network = MemoryNetwork()
    async with network.bus("feed", limits=FEW, pace=True) as feed, network.bus("a") as bus:
        reader = await read(bus)
        await cut(network, feed)
        task = asyncio.create_task(replay(feed, 100))
        await asyncio.sleep(0.1)
        assert not task.done()
        network.heal()
        await task
        assert await reader.until(100) == list(range(100))
        assert reader.gaps == []


@pytest.mark.virtual
async def test_a_reader_of_another_type_is_not_waited_for_when_its_link_is_cut() -> None:
    network = MemoryNetwork()
    async with network.bus("feed", limits=FEW, pace=True) as feed, network.bus("a") as bus:
        await read(bus, "OTHER")
        await cut(network, feed)
        for number in range(100):
            feed.publish_nowait(Event("T", number))


async def test_what_a_reader_did_not_ask_for_is_no_gap_once_history_has_forgotten_it(
    mesh: Desk,
) -> None:
    """The last event that it asked for is forgotten by then. The next finds no room, so it is asked
    for as a page.
    """
    feed, bus = await mesh.bus("feed", limits=FEW, pace=True), await mesh.bus("a")
    reader = await read(bus, key="x", maxsize=1)
    reader.gate.clear()
    for number in range(2):  # one in the handler, and one in the inbox
        await feed.publish(Event("T", number, key="x"))
        assert await feed.flush() == []
    for _ in range(100):
        await feed.publish(Event("T", None, key="y"))
    await feed.publish(Event("T", 2, key="x"))
    reader.gate.set()
    assert await reader.until(3) == [0, 1, 2]
    assert reader.gaps == []


@pytest.mark.virtual
async def test_what_a_reader_did_not_ask_for_is_no_gap_when_a_frame_is_lost() -> None:
    network = MemoryNetwork()
    async with network.bus("feed", limits=FEW, pace=True) as feed, network.bus("a") as bus:
        reader = await read(bus, key="x")
        await feed.publish(Event("T", 0, key="x"))
        for _ in range(100):
            await feed.publish(Event("T", None, key="y"))
        network.faults = Faults(loss=lambda message: float(message.kind == "events"))
        await feed.publish(Event("T", 1, key="x"))
        await asyncio.sleep(0.1)
        network.faults = Faults()
        assert await feed.flush() == []
        assert await reader.until(2) == [0, 1]
        assert reader.gaps == []


async def test_who_begins_after_an_event_of_its_own_bus_misses_nothing_of_what_follows() -> None:
    async with AsyncEventBus(name="feed", limits=Limits(history_events=100), pace=True) as feed:
        # So far nobody needs what is forgotten.
        sent = [await feed.publish(Event("T", number)) for number in range(101)]
        reader = Reader()
        reader.gate.clear()
        await feed.subscribe(["T", "aiobus.gap"], reader, maxsize=5, after=sent[10].id)
        task = asyncio.create_task(replay(feed, 100, 101))
        await asyncio.sleep(0.1)
        assert not task.done()
        reader.gate.set()
        await task
        assert await reader.until_last(200) == list(range(11, 201))
        assert reader.gaps == []


async def test_who_unsubscribes_or_closes_is_not_waited_for(mesh: Desk) -> None:
    feed = await mesh.bus("feed", limits=FEW, pace=True)
    for end in ("unsubscribe", "close"):
        bus = await mesh.bus(f"{end}r")
        reader = Reader()
        reader.gate.clear()
        subscription = await bus.subscribe("T", reader, maxsize=5)
        task = await begin(feed)
        await (subscription.unsubscribe() if end == "unsubscribe" else bus.close(0.1))
        await task
        reader.gate.set()


async def test_a_publish_that_waits_when_its_bus_closes_raises(mesh: Desk) -> None:
    feed = await mesh.bus("feed", limits=FEW, pace=True)
    bus = await mesh.bus("a")
    reader = await read(bus)
    reader.gate.clear()
    task = await begin(feed)
    await until(lambda: bus.stats().subscriptions[0].behind)  # so it lacks something for good
    assert await feed.close(0.5) == ["a"]
    with pytest.raises(BusClosed):
        await task
    reader.gate.set()


# No wait closes a circle.


async def test_a_handler_does_not_wait_for_its_own_subscription(desk: Desk) -> None:
    bus = await desk.bus("desk", limits=FEW, pace=True)
    handled: list[int] = []
    is_over = asyncio.Event()

    async def on_event(event: Event[Any]) -> None:
        handled.append(event.data)
        if event.data == 0:
            for number in range(1, 200):
                await bus.publish(Event("T", number))
        if event.data == 199:
            is_over.set()

    subscription = await bus.subscribe("T", on_event, maxsize=5)
    await bus.publish(Event("T", 0))
    await is_over.wait()
    assert subscription.stats.overshoot > 0
    assert subscription.stats.gaps > 0


@pytest.mark.parametrize("count", [2, 3])
async def test_handlers_that_publish_to_each_other_do_not_stand_still(
    mesh: Desk, count: int
) -> None:
    """Each handler publishes two for one, which no history holds for long."""
    types = "ABC"[:count]
    buses = [await mesh.bus(f"bus-{type}", limits=FEW, pace=True) for type in types]
    subscriptions, is_over = [], asyncio.Event()
    handled = dict.fromkeys(types, 0)
    for place, bus in enumerate(buses):
        takes, gives = types[place], types[(place + 1) % count]

        async def on_event(
            event: Event[Any], bus: AsyncEventBus = bus, takes: str = takes, gives: str = gives
        ) -> None:
            handled[takes] += 1
            if min(handled.values()) > 150:
                is_over.set()
            if not is_over.is_set():
                await bus.publish(Event(gives, None))
                await bus.publish(Event(gives, None))

        subscriptions.append(await bus.subscribe(takes, on_event, maxsize=3))
    await buses[-1].publish(Event("A", None))
    await is_over.wait()
    assert sum(each.stats.overshoot for each in subscriptions) > 0


@pytest.mark.virtual
async def test_a_circle_ends_although_marks_are_lost() -> None:
    loss = Faults(loss=lambda message: 0.5 if message.kind == "mark" else 0.0)
    async with AsyncExitStack() as stack:
        network = MemoryNetwork(faults=loss)
        one, two = [
            await stack.enter_async_context(
                network.bus(name, limits=Limits(history_events=8), pace=True)
            )
            for name in ("one", "two")
        ]
        is_over = asyncio.Event()
        counts = {"A": 0, "B": 0}

        def handler(bus: AsyncEventBus, gives: str) -> Callable[[Event[Any]], Awaitable[None]]:
            async def on_event(event: Event[Any]) -> None:
                counts[event.type] += 1
                if min(counts.values()) > 25:
                    is_over.set()
                if not is_over.is_set():
                    await bus.publish(Event(gives, None))
                    await bus.publish(Event(gives, None))

            return on_event

        subscriptions = [
            await one.subscribe("A", handler(one, "B"), maxsize=3),
            await two.subscribe("B", handler(two, "A"), maxsize=3),
        ]
        await two.publish(Event("A", None))
        await is_over.wait()
        assert sum(each.stats.overshoot for each in subscriptions) > 0


async def test_a_chain_of_handlers_waits_for_its_slow_end_and_loses_nothing(mesh: Desk) -> None:
    """No circle is seen where there is none: the pause goes back to the beginning of the chain."""
    feed, middle = [await mesh.bus(name, limits=FEW, pace=True) for name in ("feed", "middle")]
    gaps = Reader()

    async def pass_on(event: Event[Any]) -> None:
        await middle.publish(Event("U", event.data))

    subscription = await middle.subscribe("T", pass_on, maxsize=5)
    await middle.subscribe("aiobus.gap", gaps)
    reader = await read(await mesh.bus("slow"), "U")
    reader.gate.clear()
    task = await begin(feed, 400)
    await until_it_waits(middle, feed)
    assert feed.stats().published < 100
    reader.gate.set()
    await task
    assert await reader.until(400) == list(range(400))
    assert (gaps.gaps, reader.gaps, subscription.stats.overshoot) == ([], [], 0)


def test_an_event_that_fits_into_no_history_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="event_bytes=1048576"):
        AsyncEventBus(limits=Limits(history_bytes=1_000_000), pace=True)
