"""The four ways of a full inbox, max_age and since=, through the bus."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager

import pytest

from aiobus import AsyncEventBus, Event, EventType, Limits, QueueFull
from aiobus.inbox import Overflow

Logged = Callable[[str], AbstractContextManager[asyncio.Event]]

pytestmark = pytest.mark.usefixtures("no_task_is_left")


class Gate:
    """A handler that waits until it is let go on."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.seen: list[object] = []
        self.entered = asyncio.Event()

    async def handle(self, event: Event) -> None:
        self.entered.set()
        await self.open.wait()
        self.seen.append(event.data)


async def fill(bus: AsyncEventBus, count: int, key: str = "") -> None:
    for number in range(count):
        await bus.publish(Event(EventType.QUOTE, number, key=key))


@pytest.mark.parametrize("maxsize", [1, 2, 7, 64, 1000])
async def test_catch_up_delivers_everything_whatever_the_size(
    bus: AsyncEventBus, maxsize: int
) -> None:
    gate = Gate()
    await bus.subscribe(EventType.QUOTE, gate.handle, maxsize=maxsize)
    await fill(bus, 3000)
    assert bus.stats().subscriptions[0].pending <= maxsize + 64
    gate.open.set()
    await bus.settle()
    assert gate.seen == list(range(3000))


async def test_catch_up_asks_where_of_what_it_pulls_as_well(bus: AsyncEventBus) -> None:
    gate = Gate()
    await bus.subscribe(
        EventType.QUOTE, gate.handle, maxsize=2, where=lambda event: event.data % 3 == 0
    )
    await fill(bus, 10_000)
    gate.open.set()
    await bus.settle()
    assert gate.seen == list(range(0, 10_000, 3))


async def test_falling_behind_is_warned_of_once_per_episode(
    bus: AsyncEventBus, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    await bus.subscribe(EventType.QUOTE, gate.handle, maxsize=4)
    await fill(bus, 500)
    gate.open.set()
    await bus.settle()
    records = [r for r in caplog.records if r.name.startswith("aiobus")]
    lines = [r.getMessage() for r in records if r.levelno == logging.WARNING]
    assert len(lines) == 1
    assert "fell behind: its inbox of 4 is full" in lines[0]


async def test_every_gap_of_the_bus_reaches_who_subscribed_to_gaps_alone() -> None:
    gate = Gate()
    gaps: list[Event] = []
    async with AsyncEventBus(limits=Limits(history_events=10)) as bus:
        await bus.subscribe("aiobus.gap", gaps.append)
        subscription = await bus.subscribe(EventType.QUOTE, gate.handle, maxsize=5)
        await fill(bus, 100)
        gate.open.set()
        await bus.settle()
    (gap,) = gaps
    assert gap.data["subscription"] == subscription.name
    assert subscription.stats.gaps == 1


@pytest.mark.virtual
async def test_the_log_says_once_what_to_do_against_loss(caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncEventBus(limits=Limits(history_events=10)) as bus:
        for name in ("slow", "other"):
            gate = Gate()
            subscription = await bus.subscribe("QUOTE", gate.handle, maxsize=5, name=name)
            for _ in range(4):
                gate.open.clear()
                await fill(bus, 100)
                gate.open.set()
                await bus.settle()
                await asyncio.sleep(3)  # lines that are alike were put together in the meantime
            assert subscription.stats.gaps == 4
            await subscription.unsubscribe()
    lines = [line for line in caplog.messages if "lost events of" in line]
    advised = [line for line in lines if 'overflow="latest"' in line and "history_events" in line]
    assert len(lines) == 8
    assert advised == [lines[0], lines[4]]


async def test_what_a_subscription_has_lost_in_all_is_told_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first of many is told as it is lost, and the rest is counted."""
    async with AsyncEventBus(limits=Limits(history_events=10)) as bus:
        gate = Gate()
        drops = await bus.subscribe("QUOTE", gate.handle, maxsize=5, overflow="drop_oldest")
        await bus.subscribe("QUOTE", gate.handle, maxsize=5, name="late")
        await bus.subscribe("QUOTE", lambda event: None, max_age=1, name="fresh")
        await fill(bus, 100)
        await bus.publish(Event("QUOTE", 1, timestamp=2e8))
        gate.open.set()
        await bus.settle()
        assert "in all" not in caplog.text
        await drops.unsubscribe()
        said = f"{drops.name} has ended, in all: {drops.stats.dropped} dropped"
        assert said in caplog.messages
    assert "late has ended, in all: 1 gaps" in caplog.messages
    assert "fresh has ended, in all: 1 expired" in caplog.messages


async def test_delivered_and_reported_are_all_that_was_published() -> None:
    delivered: list[int] = []
    lost: set[int] = set()
    async with AsyncEventBus(limits=Limits(history_events=300)) as bus:

        async def handle(event: Event) -> None:
            await asyncio.sleep(0)
            if event.type == "aiobus.gap":
                lost.update(range(event.data["after"] + 1, event.data["upto"] + 1))
            else:
                delivered.append(event.seq)

        await bus.subscribe([EventType.QUOTE, "aiobus.gap"], handle, maxsize=3)
        published: set[int] = set()
        for burst in (1, 1000, 2, 5000, 300, 299, 301):
            for number in range(burst):
                published.add(bus.publish_nowait(Event(EventType.QUOTE, number)).seq)
            await bus.settle()
    assert sorted(delivered) == delivered
    assert len(set(delivered)) == len(delivered)
    assert not lost & set(delivered)
    assert published <= lost | set(delivered)


async def test_conflation_is_not_announced(bus: AsyncEventBus) -> None:
    said: list[Event] = []
    await bus.subscribe("aiobus.overflow", said.append)
    subscription = await bus.subscribe(EventType.QUOTE, print, overflow="latest")
    for number in range(10):
        bus.publish_nowait(Event(EventType.QUOTE, number))
    await bus.settle()
    assert subscription.stats.conflated == 9
    assert said == []


async def test_latest_with_more_keys_than_room_drops_the_oldest_and_says_so(
    bus: AsyncEventBus,
) -> None:
    said: list[Event] = []
    seen: list[object] = []
    await bus.subscribe("aiobus.overflow", said.append)
    await bus.subscribe(EventType.QUOTE, lambda e: seen.append(e.key), overflow="latest", maxsize=2)
    for key in "abcd":
        bus.publish_nowait(Event(EventType.QUOTE, 1, key=key))
    await bus.settle()
    assert seen == ["c", "d"]
    assert said[0].data["policy"] == "latest"


async def test_drop_oldest_keeps_the_newest_and_announces_once(bus: AsyncEventBus) -> None:
    said: list[Event] = []
    gate = Gate()
    await bus.subscribe("aiobus.overflow", said.append)
    subscription = await bus.subscribe(
        EventType.QUOTE, gate.handle, overflow="drop_oldest", maxsize=3
    )
    await fill(bus, 1)
    await gate.entered.wait()
    await fill(bus, 50)
    gate.open.set()
    await bus.settle()
    assert gate.seen == [0, 47, 48, 49]
    assert subscription.stats.dropped == 47
    (event,) = said
    assert event.data == {"subscription": subscription.name, "dropped": 1, "policy": "drop_oldest"}


async def test_block_makes_the_publisher_wait_for_room(bus: AsyncEventBus) -> None:
    gate = Gate()
    sent = 0

    async def feed() -> None:
        nonlocal sent
        for sent in range(1, 21):
            await bus.publish(Event(EventType.QUOTE, sent))

    await bus.subscribe(EventType.QUOTE, gate.handle, overflow="block", maxsize=4)
    feeding = asyncio.create_task(feed())
    await gate.entered.wait()
    for _ in range(100):
        await asyncio.sleep(0)
    assert sent == 6  # one in hand, four in the inbox, one that waits
    gate.open.set()
    await feeding
    await bus.settle()
    assert gate.seen == list(range(1, 21))


async def test_publish_nowait_raises_where_a_block_inbox_is_full_and_publishes_nothing(
    bus: AsyncEventBus,
) -> None:
    other: list[object] = []
    await bus.subscribe(EventType.QUOTE, other.append)
    subscription = await bus.subscribe(EventType.QUOTE, print, overflow="block", maxsize=1)
    bus.publish_nowait(Event(EventType.QUOTE, 1))
    with pytest.raises(QueueFull) as caught:
        bus.publish_nowait(Event(EventType.QUOTE, 2))
    assert (caught.value.subscription, caught.value.maxsize) == (subscription.name, 1)
    assert bus.stats().published == 1
    await bus.settle()


@pytest.mark.virtual
async def test_a_wait_for_room_over_a_second_is_warned_of_and_names_the_subscription(
    bus: AsyncEventBus, logged: Logged
) -> None:
    gate = Gate()

    with logged("for room in the inbox of Gate.handle(QUOTE)") as warned:
        await bus.subscribe(EventType.QUOTE, gate.handle, overflow="block", maxsize=1)
        feeding = asyncio.create_task(fill(bus, 4))
        await warned.wait()
        gate.open.set()
        await feeding


async def test_unsubscribing_lets_the_waiting_publisher_go(bus: AsyncEventBus) -> None:
    gate = Gate()
    subscription = await bus.subscribe(EventType.QUOTE, gate.handle, overflow="block", maxsize=1)
    feeding = asyncio.create_task(fill(bus, 10))
    await gate.entered.wait()
    await subscription.unsubscribe()
    await feeding
    gate.open.set()


async def test_events_older_than_max_age_are_not_handed_over_but_counted(
    bus: AsyncEventBus,
) -> None:
    seen: list[object] = []
    said: list[Event] = []
    await bus.subscribe("aiobus.overflow", said.append)
    subscription = await bus.subscribe(
        EventType.ORDER, lambda event: seen.append(event.data), max_age=60
    )
    for age, name in [(0, "fresh"), (61, "stale"), (120, "older"), (0, "new")]:
        event = Event(EventType.ORDER, name)
        event.timestamp -= age
        await bus.publish(event)
    await bus.settle()
    assert seen == ["fresh", "new"]
    assert subscription.stats.expired == 2
    assert [event.data["policy"] for event in said] == ["max_age"]


async def test_a_publisher_that_waits_goes_on_when_what_is_in_its_way_expires(
    bus: AsyncEventBus,
) -> None:
    await bus.subscribe(EventType.ORDER, print, overflow="block", maxsize=1, max_age=60)
    for number in range(5):
        await bus.publish(Event(EventType.ORDER, number, 1000.0))
    assert bus.stats().subscriptions[0].expired >= 3


async def test_since_last_asks_where_as_well(bus: AsyncEventBus) -> None:
    seen: list[object] = []
    for number in range(4):
        await bus.publish(Event(EventType.QUOTE, number, key=str(number)))
    await bus.subscribe(
        EventType.QUOTE, lambda e: seen.append(e.data), since="last", where=lambda e: e.data % 2
    )
    await bus.settle()
    assert seen == [1, 3]


async def test_a_where_that_fails_on_history_is_announced_without_waiting_for_a_publish(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors: list[Event] = []
    async with AsyncEventBus() as bus:
        await bus.subscribe("aiobus.error", errors.append)
        await bus.publish(Event(EventType.QUOTE, 0))
        await bus.subscribe(EventType.QUOTE, print, since="last", where=lambda e: 1 / e.data)
        await bus.settle()
        assert len(errors) == 1


@pytest.mark.parametrize("policy", ["catch_up", "block", "latest", "drop_oldest"])
async def test_a_gap_is_handed_over_whatever_the_policy(policy: Overflow) -> None:
    gaps: list[Event] = []
    async with AsyncEventBus(limits=Limits(history_events=20)) as bus:
        for number in range(100):
            await bus.publish(Event(EventType.QUOTE, number))

        async def handle(event: Event) -> None:
            await asyncio.sleep(0)
            if event.type == "aiobus.gap":
                gaps.append(event)

        subscription = await bus.subscribe(
            [EventType.QUOTE, "aiobus.gap"],
            handle,
            overflow=policy,
            maxsize=3,
            since=0.0,
            max_age=1e6,
        )
        for number in range(200):
            bus.publish_nowait(Event(EventType.QUOTE, number)) if policy != "block" else None
            if number % 50 == 0:
                await bus.settle()
        await bus.settle()
    assert len(gaps) == subscription.stats.gaps


# System events beside data.


class Failures:
    """What fails on each of its events, so that its bus publishes an `aiobus.error`."""

    def __init__(self, bus: AsyncEventBus) -> None:
        self.bus = bus
        self.told: asyncio.Queue[Event] = asyncio.Queue()

    async def subscribe(self) -> None:
        await self.bus.subscribe("FAILS", lambda event: 1 / 0)
        await self.bus.subscribe("aiobus.error", self.told.put_nowait)

    async def happen(self, count: int) -> None:
        """Return when so many are published."""
        for _ in range(count):
            await self.bus.publish(Event("FAILS", None))
        for _ in range(count):
            await self.told.get()


@pytest.fixture
async def failures() -> AsyncIterator[Failures]:
    async with AsyncEventBus() as bus:
        failures = Failures(bus)
        await failures.subscribe()
        yield failures


class Told(Gate):
    """The same, and of system events it sees the type."""

    async def handle(self, event: Event) -> None:
        event.data = event.type if event.type.startswith("aiobus.") else event.data
        await super().handle(event)


ERROR = "aiobus.error"
WITH_DATA = [EventType.QUOTE, ERROR]


@pytest.mark.parametrize(
    ("policy", "maxsize", "seen"),
    [
        ("catch_up", 2, [0, 1, 2, ERROR, ERROR, 3]),
        ("block", 8, [0, 1, 2, ERROR, ERROR, 3]),
        ("latest", 8, [0, 2, ERROR, ERROR, 3]),
        ("drop_oldest", 4, [0, 2, ERROR, ERROR, 3]),
    ],
)
async def test_beside_data_each_system_event_is_handed_over_before_what_came_after_it(
    failures: Failures, policy: Overflow, maxsize: int, seen: list[object]
) -> None:
    bus, told = failures.bus, Told()
    await bus.subscribe(WITH_DATA, told.handle, overflow=policy, maxsize=maxsize)
    await bus.publish(Event(EventType.QUOTE, 0))
    await told.entered.wait()
    for number, key in ((1, "other" if policy == "drop_oldest" else ""), (2, "kept")):
        await bus.publish(Event(EventType.QUOTE, number, key=key))
    await failures.happen(2)
    await bus.publish(Event(EventType.QUOTE, 3))
    told.open.set()
    await bus.settle()
    assert told.seen == seen


@pytest.mark.parametrize("policy", ["catch_up", "block", "latest", "drop_oldest"])
async def test_beside_data_each_system_event_of_the_past_is_handed_over(
    failures: Failures, policy: Overflow
) -> None:
    bus, told = failures.bus, Told()
    await failures.happen(5)
    told.open.set()
    await bus.subscribe(WITH_DATA, told.handle, overflow=policy, since=0)
    await bus.settle()
    assert told.seen == [ERROR] * 5


@pytest.mark.parametrize("policy", ["latest", "drop_oldest"])
async def test_more_system_events_than_an_inbox_holds_are_dropped_and_counted(
    failures: Failures, policy: Overflow
) -> None:
    bus, told = failures.bus, Told()
    subscription = await bus.subscribe(WITH_DATA, told.handle, overflow=policy, maxsize=3)
    await bus.publish(Event(EventType.QUOTE, 0))
    await told.entered.wait()
    for number in range(10):
        await failures.happen(1)
        await bus.publish(Event(EventType.QUOTE, number))
        assert subscription.pending <= 4
    assert subscription.stats.dropped + subscription.stats.conflated == 20 - 4
    told.open.set()
    await bus.settle()
    assert told.seen == [0, ERROR, ERROR, ERROR, 9]


@pytest.mark.parametrize("policy", ["latest", "drop_oldest"])
async def test_alone_system_events_obey_the_policy(failures: Failures, policy: Overflow) -> None:
    bus, told = failures.bus, Told()
    subscription = await bus.subscribe(ERROR, told.handle, overflow=policy, maxsize=1)
    await failures.happen(1)
    await told.entered.wait()
    await failures.happen(4)
    told.open.set()
    await bus.settle()
    assert told.seen == [ERROR, ERROR]
    assert subscription.stats.dropped + subscription.stats.conflated == 3


async def test_the_worst_of_floods_stays_within_the_bounds() -> None:
    limits = Limits(history_events=1000, history_bytes=64_000, history_total_bytes=100_000)
    async with AsyncEventBus(limits=limits) as bus:
        gate = Gate()
        await bus.subscribe("*", gate.handle, maxsize=100)
        for number in range(5000):
            await bus.publish(Event(f"T{number % 5}", "x" * 100))
        stats = bus.stats()
        assert stats.history_bytes <= 100_000
        assert stats.subscriptions[0].pending <= 164
        gate.open.set()
