"""Streams: live inside `async with`, safe to cancel, and the cause of what their body publishes."""

import asyncio
import contextlib

import pytest

from aiobus import AsyncEventBus, BusError, Event, EventType, WrongLoop
from aiobus.sync import EVENTS

pytestmark = pytest.mark.usefixtures("no_task_is_left")


async def test_iterating_without_entering_says_so(bus: AsyncEventBus) -> None:
    with pytest.raises(BusError, match="live inside `async with` only"):
        async for _ in bus.stream(EventType.FILL):
            pass


async def test_entering_twice_is_refused(bus: AsyncEventBus) -> None:
    async with bus.stream(EventType.FILL) as fills:
        with pytest.raises(BusError, match="entered before"):
            async with fills:
                pass


async def test_a_second_task_iterating_is_refused(bus: AsyncEventBus) -> None:
    async with bus.stream(EventType.FILL) as fills:
        first = asyncio.create_task(anext(fills))
        await asyncio.sleep(0)
        with pytest.raises(BusError, match="its own stream"):
            await anext(fills)
        await bus.publish(Event(EventType.FILL, 1))
        assert (await first).data == 1


async def test_a_timed_out_step_leaves_the_stream_usable_and_loses_nothing(
    bus: AsyncEventBus,
) -> None:
    async with bus.stream(EventType.FILL) as fills:
        for number in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await anext(fills)
            await bus.publish(Event(EventType.FILL, number))
            assert (await anext(fills)).data == number


async def test_cancelling_a_step_at_any_moment_loses_nothing(bus: AsyncEventBus) -> None:
    seen: list[int] = []
    async with bus.stream(EventType.FILL, maxsize=2) as fills:
        for number in range(300):
            bus.publish_nowait(Event(EventType.FILL, number))
            step = asyncio.create_task(anext(fills))  # type: ignore[arg-type]
            for _ in range(number % 4):
                await asyncio.sleep(0)
            step.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                seen.append((await step).data)
        while fills.subscription.stats.pending or fills.subscription.stats.behind:
            seen.append((await anext(fills)).data)
    assert seen == list(range(300))


async def test_a_stream_ends_when_the_bus_closes_after_what_has_arrived() -> None:
    seen: list[int] = []
    entered = asyncio.Event()

    async def consume(bus: AsyncEventBus) -> None:
        async with bus.stream(EventType.FILL) as fills:
            entered.set()
            seen.extend([fill.data async for fill in fills])

    async with AsyncEventBus() as bus:
        consuming = asyncio.create_task(consume(bus))
        await entered.wait()
        for number in range(100):
            bus.publish_nowait(Event(EventType.FILL, number))
    await consuming
    assert seen == list(range(100))


async def test_taking_an_event_makes_it_the_cause_until_the_next_step(bus: AsyncEventBus) -> None:
    async with bus.stream(EventType.TRADE) as trades:
        trade = await bus.publish(Event(EventType.TRADE, 1))
        async for _ in trades:
            break
        inside = await bus.publish(Event(EventType.SIGNAL, 1))
    outside = await bus.publish(Event(EventType.SIGNAL, 2))
    assert inside.cause == trade.id
    assert outside.cause == ""


async def test_leaving_an_inner_stream_gives_the_outer_event_back_as_cause(
    bus: AsyncEventBus,
) -> None:
    async with bus.stream(EventType.TRADE) as trades:
        trade = await bus.publish(Event(EventType.TRADE, 1))
        await anext(trades)
        async with bus.stream(EventType.FILL) as fills:
            fill = await bus.publish(Event(EventType.FILL, 1))
            await anext(fills)
            inner = await bus.publish(Event(EventType.SIGNAL, 1))
        outer = await bus.publish(Event(EventType.SIGNAL, 2))
    assert (inner.cause, outer.cause) == (fill.id, trade.id)


async def test_a_task_spawned_inside_a_stream_is_not_caused_by_what_the_stream_takes(
    bus: AsyncEventBus,
) -> None:
    go = asyncio.Event()

    async def feed() -> Event:
        await go.wait()
        return await bus.publish(Event(EventType.SIGNAL, 1))

    async with bus.stream(EventType.TRADE) as trades:
        feeding = asyncio.create_task(feed())
        await asyncio.sleep(0)
        await bus.publish(Event(EventType.TRADE, 1))
        await anext(trades)
        go.set()
        assert (await feeding).cause == ""


async def test_a_step_in_a_task_of_its_own_still_gives_its_event_as_cause(
    bus: AsyncEventBus,
) -> None:
    """asyncio.wait_for runs what it waits for in another task before Python 3.12."""
    async with bus.stream(EventType.TRADE) as trades:
        trade = await bus.publish(Event(EventType.TRADE, 1))
        await asyncio.create_task(anext(trades))  # type: ignore[arg-type]
        signal = await bus.publish(Event(EventType.SIGNAL, 1))
    assert signal.cause == trade.id


async def test_a_step_elsewhere_is_refused(bus: AsyncEventBus) -> None:
    async with bus.stream(EventType.TRADE) as trades:

        async def elsewhere() -> None:
            with pytest.raises(WrongLoop):
                await anext(trades)
            with pytest.raises(WrongLoop):
                await trades.subscription.unsubscribe()

        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))


async def test_a_body_that_never_awaits_anything_else_lets_the_loop_turn(
    bus: AsyncEventBus,
) -> None:
    turns = 0
    stop = False

    async def count() -> None:
        nonlocal turns
        while not stop:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    async with bus.stream(EventType.QUOTE) as quotes:
        for number in range(1000):
            bus.publish_nowait(Event(EventType.QUOTE, number))
        taken = 0
        async for _ in quotes:
            taken += 1
            if taken == 1000:
                break
    stop = True
    await counting
    assert turns >= 1000 // EVENTS


async def test_settle_waits_for_a_consumer_to_come_back_for_more(bus: AsyncEventBus) -> None:
    done: list[int] = []
    entered = asyncio.Event()

    async def consume() -> None:
        async with bus.stream(EventType.TRADE) as trades:
            entered.set()
            async for trade in trades:
                for _ in range(5):
                    await asyncio.sleep(0)
                done.append(trade.data)

    consuming = asyncio.create_task(consume())
    await entered.wait()
    for number in range(3):
        await bus.publish(Event(EventType.TRADE, number))
    await bus.settle()
    assert done == [0, 1, 2]
    await bus.close()
    await consuming


async def test_settle_in_a_stream_body_is_refused(bus: AsyncEventBus) -> None:
    async with bus.stream(EventType.TRADE) as trades:
        await bus.publish(Event(EventType.TRADE, 1))
        await anext(trades)
        with pytest.raises(BusError, match="inside a handler"):
            await bus.settle()
