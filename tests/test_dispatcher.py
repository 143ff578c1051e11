"""Handlers that fail, hang, sleep or compute: what the others notice of it, which is nothing."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from aiobus import AsyncEventBus, BusError, Event, EventType
from aiobus.bus import parts_of
from aiobus.options import SubscriptionOptions

Logged = Callable[[str], AbstractContextManager[asyncio.Event]]

pytestmark = pytest.mark.usefixtures("no_task_is_left")


async def raises(event: Event) -> None:
    raise ValueError(event.data)


async def awaits_a_cancelled_task(event: Event) -> None:
    inner = asyncio.create_task(asyncio.sleep(60))
    inner.cancel()
    await inner


async def sleeps_a_minute(event: Event) -> None:
    await asyncio.sleep(60)


async def never_returns(event: Event) -> None:
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("bad", [raises, awaits_a_cancelled_task, sleeps_a_minute, never_returns])
async def test_the_others_see_every_event_whatever_one_handler_does(bad) -> None:  # type: ignore[no-untyped-def]
    seen: list[int] = []
    done = asyncio.Event()

    async def healthy(event: Event) -> None:
        seen.append(event.data)
        if len(seen) == 1000:
            done.set()

    bus = AsyncEventBus()
    await bus.start()
    await bus.subscribe(EventType.TRADE, bad)
    await bus.subscribe(EventType.TRADE, healthy)
    for number in range(1000):
        await bus.publish(Event(EventType.TRADE, number))
    await done.wait()
    assert seen == list(range(1000))
    await bus.close(0.2)


@pytest.mark.parametrize("bad", [raises, awaits_a_cancelled_task])
async def test_a_failed_subscription_goes_on_and_counts(bad) -> None:  # type: ignore[no-untyped-def]
    async with AsyncEventBus() as bus:
        await bus.subscribe(EventType.TRADE, bad)
        for number in range(5):
            await bus.publish(Event(EventType.TRADE, number))
        await bus.settle()
        (stats,) = bus.stats().subscriptions
        assert (stats.handled, stats.failed) == (5, 5)


async def test_a_failure_in_where_is_counted_and_the_subscription_goes_on() -> None:
    seen: list[object] = []
    async with AsyncEventBus() as bus:
        await bus.subscribe(
            EventType.TRADE, lambda event: seen.append(event.data), where=lambda e: 1 / e.data
        )
        for number in (1, 0, 2):
            await bus.publish(Event(EventType.TRADE, number))
        await bus.settle()
        assert seen == [1, 2]
        assert bus.stats().subscriptions[0].failed == 1


async def test_events_of_a_subscription_are_handled_one_after_another(bus: AsyncEventBus) -> None:
    at_work = most = 0

    async def on_trade(event: Event) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0)
        at_work -= 1

    await bus.subscribe(EventType.TRADE, on_trade)
    for number in range(20):
        await bus.publish(Event(EventType.TRADE, number))
    await bus.settle()
    assert most == 1


async def test_concurrency_starts_that_many_calls_in_order(bus: AsyncEventBus) -> None:
    started: list[int] = []
    go = asyncio.Event()
    three = asyncio.Event()

    async def on_trade(event: Event) -> None:
        started.append(event.data)
        if len(started) == 3:
            three.set()
        await go.wait()

    await bus.subscribe(EventType.TRADE, on_trade, concurrency=3)
    for number in range(10):
        await bus.publish(Event(EventType.TRADE, number))
    await three.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert started == [0, 1, 2]
    go.set()
    await bus.settle()
    assert started == list(range(10))


async def test_unsubscribing_starts_no_concurrent_call_that_has_not_yet_run(
    bus: AsyncEventBus,
) -> None:
    started: list[int] = []

    async def on_trade(event: Event) -> None:
        started.append(event.data)
        await subscription.unsubscribe()

    subscription = await bus.subscribe(EventType.TRADE, on_trade, concurrency=3)
    for number in range(3):
        bus.publish_nowait(Event(EventType.TRADE, number))
    await bus.settle()
    assert started == [0]
    assert subscription.stats.handled == 1


async def test_settle_sees_a_concurrent_call_that_has_not_yet_run(bus: AsyncEventBus) -> None:
    done: list[int] = []

    async def on_trade(event: Event) -> None:
        await asyncio.sleep(0)
        done.append(event.data)

    await bus.subscribe(EventType.TRADE, on_trade, concurrency=4)
    await asyncio.sleep(0)
    await bus.publish(Event(EventType.TRADE, 1))
    await asyncio.sleep(0)
    await bus.settle()
    assert done == [1]


async def test_a_concurrent_call_that_cancels_itself_is_a_failure_of_its_own() -> None:
    async def cancels_itself(event: Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with AsyncEventBus() as bus:
        await bus.subscribe(EventType.TRADE, cancels_itself, concurrency=2)
        for number in range(3):
            await bus.publish(Event(EventType.TRADE, number))
        await bus.settle()
        (stats,) = bus.stats().subscriptions
        assert (stats.handled, stats.failed) == (3, 3)


async def test_a_where_that_spoils_its_event_spoils_only_its_own(bus: AsyncEventBus) -> None:
    seen: list[object] = []
    await bus.subscribe(
        EventType.TRADE, lambda e: seen.append(e.data), where=lambda e: e.data.pop("price")
    )
    await bus.publish(Event(EventType.TRADE, {"price": 1}))
    await bus.settle()
    assert seen == [{"price": 1}]


async def test_large_events_are_decoded_a_few_at_a_time(bus: AsyncEventBus) -> None:
    async with bus.stream(EventType.QUOTE) as quotes:
        for _ in range(64):
            bus.publish_nowait(Event(EventType.QUOTE, ["x" * 6_000]))
        await anext(quotes)
        assert len(quotes.subscription.batch) == 1  # two of 6 kB at once, not 64


async def test_a_concurrent_call_that_fails_leaves_the_others_alone() -> None:
    seen: list[int] = []

    async def on_trade(event: Event) -> None:
        await asyncio.sleep(0)
        if event.data % 2:
            raise ValueError(event.data)
        seen.append(event.data)

    async with AsyncEventBus() as bus:
        await bus.subscribe(EventType.TRADE, on_trade, concurrency=4)
        for number in range(10):
            await bus.publish(Event(EventType.TRADE, number))
        await bus.settle()
        assert seen == [0, 2, 4, 6, 8]
        assert bus.stats().subscriptions[0].failed == 5


async def test_a_busy_handler_gives_the_loop_back_after_256_events(bus: AsyncEventBus) -> None:
    handled = 0
    between: list[int] = []

    def on_trade(event: Event) -> None:
        nonlocal handled
        handled += 1

    await bus.subscribe(EventType.TRADE, on_trade)
    for number in range(640):
        bus.publish_nowait(Event(EventType.TRADE, number))
    while handled < 640:
        await asyncio.sleep(0)
        between.append(handled)
    steps = [after - before for before, after in zip([0, *between], between, strict=False)]
    assert max(steps) <= 256


async def test_a_slow_plain_handler_gives_the_loop_back_after_half_a_millisecond() -> None:
    """By time only where failures are not raised: a test must not depend on the machine."""
    handled = 0
    between: list[int] = []

    def on_trade(event: Event) -> None:
        nonlocal handled
        handled += 1
        until = time.perf_counter() + 0.002
        while time.perf_counter() < until:
            pass

    async with AsyncEventBus() as bus:
        await bus.subscribe(EventType.TRADE, on_trade)
        for number in range(10):
            bus.publish_nowait(Event(EventType.TRADE, number))
        while handled < 10:
            await asyncio.sleep(0)
            between.append(handled)
    steps = [after - before for before, after in zip([0, *between], between, strict=False)]
    assert max(steps) == 1


async def test_a_failure_is_logged_with_its_traceback_and_repeats_only_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with AsyncEventBus() as bus:
        await bus.subscribe(EventType.TRADE, awaits_a_cancelled_task)
        for number in range(100):
            event = await bus.publish(Event(EventType.TRADE, number))
        await bus.settle()
    lines = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(lines) == 2
    assert "awaits_a_cancelled_task(TRADE) failed on TRADE bus-" in lines[0].getMessage()
    assert lines[0].exc_info
    told = f": 99 more times, last: {lines[0].getMessage().split(' bus-')[0]} {event.id}"
    assert lines[1].getMessage().endswith(told)


@pytest.mark.virtual
async def test_the_count_of_a_repeated_failure_is_logged_after_a_second(
    logged: Logged,
) -> None:

    with logged("4 more times") as said:
        async with AsyncEventBus() as bus:
            await bus.subscribe(EventType.TRADE, awaits_a_cancelled_task)
            for number in range(5):
                await bus.publish(Event(EventType.TRADE, number))
            await said.wait()


async def test_a_handlers_own_cancelling_ends_the_bus_loudly() -> None:
    async def cancels_its_own_task(event: Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(
        BusError, match=r"the task of .*cancels_its_own_task\(TRADE\) was cancelled"
    ):
        async with AsyncEventBus() as bus:
            await bus.subscribe(EventType.TRADE, cancels_its_own_task)
            await bus.publish(Event(EventType.TRADE, 1))
            await bus.wait_closed()


async def test_a_batch_that_fails_is_reported_and_the_next_ones_are_handed_over() -> None:
    told: list[dict[str, object]] = []
    taken: list[bytes] = []

    async def note(error: Event) -> None:
        told.append(error.data)

    async def take(batch: list[bytes]) -> None:
        taken.extend(batch)
        if len(taken) == 1:
            raise ValueError("no")

    async with AsyncEventBus() as bus:
        await bus.subscribe("aiobus.error", note)
        options = SubscriptionOptions.of("test", EventType.TRADE, {})
        await parts_of(bus).subscriptions.serve_batches("take", options, take)
        for number in range(3):
            await bus.publish(Event(EventType.TRADE, number))
            await bus.settle()
    assert [json.loads(row)[4] for row in taken] == [0, 1, 2]
    failures = [(error["subscription"], error["error"]) for error in told]
    assert failures == [("take(TRADE)", "ValueError('no')")]
