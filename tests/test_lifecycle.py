"""Start, close, wait_closed and the failure that ends a bus."""

import asyncio
import contextlib
import logging
from typing import Any

import pytest

from aiobus import AsyncEventBus, BusClosed, BusError, Event, EventType
from aiobus import sync as turn
from aiobus.catchup import CatchUp
from aiobus.diagnostics import Diagnostics
from aiobus.publisher import Publisher
from aiobus.transport import Local

pytestmark = pytest.mark.usefixtures("no_task_is_left")


async def never_returns(event: Event) -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_bus_starts_only_once() -> None:
    bus = AsyncEventBus()
    await bus.start()
    with pytest.raises(BusError, match="was started before and is open"):
        await bus.start()
    await bus.close()
    with pytest.raises(BusError, match="was started before and is closed: a bus starts once"):
        await bus.start()


async def test_closing_what_was_never_started_is_no_error() -> None:
    bus = AsyncEventBus()
    assert await bus.close() == []
    await bus.wait_closed()


async def test_closing_twice_and_at_once_waits_for_the_same_end() -> None:
    bus = AsyncEventBus()
    await bus.start()
    assert await asyncio.gather(bus.close(), bus.close()) == [[], []]
    assert await bus.close() == []


async def test_a_bus_can_be_made_without_a_loop() -> None:
    bus = await asyncio.to_thread(AsyncEventBus, name="made-elsewhere")
    async with bus:
        await bus.publish(Event(EventType.TRADE, 1))


async def test_close_lets_handlers_finish_what_has_arrived_and_publish_meanwhile() -> None:
    seen: list[str] = []
    async with AsyncEventBus() as bus:

        async def on_trade(event: Event) -> None:
            await asyncio.sleep(0)
            await bus.publish(Event(EventType.SIGNAL, event.data))

        async def on_signal(event: Event) -> None:
            await asyncio.sleep(0)
            seen.append(event.data)

        await bus.subscribe(EventType.TRADE, on_trade)
        await bus.subscribe(EventType.SIGNAL, on_signal)
        for number in range(100):
            bus.publish_nowait(Event(EventType.TRADE, number))
    assert seen == list(range(100))


async def test_while_it_closes_no_other_code_may_publish() -> None:
    go = asyncio.Event()
    bus = AsyncEventBus()
    await bus.start()
    await bus.subscribe(EventType.TRADE, lambda event: go.wait())
    await bus.publish(Event(EventType.TRADE, 1))
    closing = asyncio.create_task(bus.close())
    await asyncio.sleep(0)
    with pytest.raises(BusClosed, match="is closing"):
        await bus.publish(Event(EventType.TRADE, 2))
    go.set()
    await closing


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_close_returns_within_its_timeout_though_a_handler_never_returns(
    concurrency: int,
) -> None:
    bus = AsyncEventBus()
    await bus.start()
    await bus.subscribe(EventType.TRADE, never_returns, concurrency=concurrency)
    for number in range(10):
        await bus.publish(Event(EventType.TRADE, number))
    async with asyncio.timeout(5):  # a guard; perf/isolation.py holds close to its figure
        await bus.close(0.3)
    await bus.wait_closed()


async def test_what_was_not_handed_over_is_said_with_its_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = AsyncEventBus()
    await bus.start()
    await bus.subscribe(EventType.TRADE, never_returns)
    for number in range(10):
        await bus.publish(Event(EventType.TRADE, number))
    await bus.close(0.05)
    assert "9 events were not handed to never_returns(TRADE): the bus closed" in caplog.messages


async def test_a_handler_that_close_cuts_off_is_named_with_its_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = AsyncEventBus()
    await bus.start()
    await bus.subscribe(EventType.TRADE, never_returns)
    first = await bus.publish(Event(EventType.TRADE, 1))
    await bus.publish(Event(EventType.TRADE, 2))
    await bus.close(0.05)
    said = f"the call of never_returns(TRADE) with {first.id} was cut off: the bus closed"
    assert said in caplog.messages


async def test_of_many_calls_that_close_cuts_off_some_are_named_and_all_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = AsyncEventBus()
    await bus.start()
    await bus.subscribe(EventType.TRADE, never_returns, concurrency=100)
    events = [await bus.publish(Event(EventType.TRADE, number)) for number in range(50)]
    await bus.close(0.05)
    (said,) = [each for each in caplog.messages if "cut off" in each]
    assert ", ".join(event.id for event in events[:8]) + " and 42 more was cut off" in said


async def test_a_call_that_outlived_its_subscription_is_named_when_it_is_cut_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = AsyncEventBus()
    await bus.start()
    subscription = await bus.subscribe(EventType.TRADE, never_returns)
    event = await bus.publish(Event(EventType.TRADE, 1))
    await asyncio.sleep(0)
    await subscription.unsubscribe()
    await bus.close(0.05)
    assert any(f"with {event.id} was cut off" in each for each in caplog.messages)


async def test_an_exception_in_the_body_names_the_handlers_that_it_cuts_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with AsyncEventBus() as bus:
            await bus.subscribe(EventType.TRADE, never_returns)
            event = await bus.publish(Event(EventType.TRADE, 1))
            await asyncio.sleep(0)
            raise KeyError("mine")
    assert any(f"with {event.id} was cut off" in each for each in caplog.messages)


async def test_a_handler_that_returns_while_the_bus_closes_is_not_said_to_be_cut_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with AsyncEventBus() as bus:
        await bus.subscribe(EventType.TRADE, lambda event: asyncio.sleep(0.01))
        await bus.publish(Event(EventType.TRADE, 1))
    assert caplog.messages == []


async def test_events_of_the_bus_itself_that_no_handler_takes_any_more_are_no_loss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = AsyncEventBus()
    await bus.start()
    await bus.subscribe([EventType.TRADE, "aiobus.error", "aiobus.gap"], never_returns)
    await bus.subscribe(EventType.QUOTE, fails)
    for number in range(3):
        await bus.publish(Event(EventType.TRADE, number))
        await bus.publish(Event(EventType.QUOTE, number))
    await asyncio.sleep(0)
    await bus.close(0.05)
    (said,) = [each for each in caplog.messages if "not handed" in each]
    assert said.startswith("2 events were not handed to never_returns(TRADE aiobus.error")


@pytest.mark.parametrize(
    ("selects", "said"),
    [
        ({}, "999 events were not handed to never_returns(TRADE)"),
        ({"key": "x"}, "up to 999 events were not handed to never_returns(TRADE/x)"),
        ({"key": "x*"}, "up to 999 events were not handed to never_returns(TRADE/x*)"),
        ({"where": bool}, "up to 999 events were not handed to never_returns(TRADE)"),
    ],
    ids=["all", "key", "prefix", "where"],
)
async def test_what_was_still_to_be_caught_up_with_is_counted_as_well(
    selects: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    bus = AsyncEventBus()
    await bus.start()
    await bus.subscribe(EventType.TRADE, never_returns, maxsize=1, **selects)
    for number in range(1000):
        await bus.publish(Event(EventType.TRADE, number, key="x"))
    await bus.close(0.05)
    assert f"{said}: the bus closed" in caplog.messages


async def test_closing_with_many_that_are_behind_is_quick() -> None:
    bus = AsyncEventBus()
    await bus.start()
    for _ in range(100):
        await bus.subscribe(EventType.TRADE, never_returns, maxsize=1)
    for number in range(20_000):
        await bus.publish(Event(EventType.TRADE, number))
    async with asyncio.timeout(5):  # a guard: it took half a minute once
        await bus.close(0.1)


async def test_a_handler_that_fails_while_close_cancels_it_is_logged_and_leaves_no_timer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails_when_cancelled(event: Event) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise ValueError("on the way out")

    bus = AsyncEventBus()
    await bus.start()
    await bus.subscribe(EventType.TRADE, fails_when_cancelled)
    await bus.publish(Event(EventType.TRADE, 1))
    await bus.close(0.05)
    assert bus.stats().published == 1
    assert any("fails_when_cancelled(TRADE) failed on TRADE" in m for m in caplog.messages)


async def test_a_handler_that_ignores_being_cancelled_is_left_behind_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go = asyncio.Event()
    bus = AsyncEventBus()
    await bus.start()

    async def stubborn(event: Event) -> None:
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()

    await bus.subscribe(EventType.TRADE, stubborn)
    await bus.publish(Event(EventType.TRADE, 1))
    await bus.close(0.1)
    assert any("stubborn(TRADE) ignores that it was cancelled" in m for m in caplog.messages)
    go.set()
    for _ in range(5):
        await asyncio.sleep(0)


async def test_close_inside_a_handler_does_not_wait_for_that_handler() -> None:
    closed: list[object] = []
    others: list[int] = []
    bus = AsyncEventBus()
    await bus.start()

    async def on_halt(event: Event) -> None:
        closed.append(await bus.close())

    async def on_trade(event: Event) -> None:
        await asyncio.sleep(0)
        others.append(event.data)

    await bus.subscribe(EventType.TRADE, on_trade)
    await bus.subscribe(EventType.HALT, on_halt)
    for number in range(10):
        bus.publish_nowait(Event(EventType.TRADE, number))
    bus.publish_nowait(Event(EventType.HALT, 1))
    await bus.wait_closed()
    for _ in range(3):
        await asyncio.sleep(0)
    assert closed == [[]]
    assert others == list(range(10))


async def test_an_exception_in_the_body_passes_and_cancels_handlers_at_once() -> None:
    cancelled: list[bool] = []

    async def sleeps(event: Event) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(KeyError, match="mine"):
        async with AsyncEventBus() as bus:
            await bus.subscribe(EventType.TRADE, sleeps)
            await bus.publish(Event(EventType.TRADE, 1))
            await asyncio.sleep(0)
            raise KeyError("mine")
    assert cancelled == [True]


async def test_cancelling_close_stops_the_waiting_and_the_closing_goes_on() -> None:
    seen: list[int] = []
    go = asyncio.Event()
    bus = AsyncEventBus()
    await bus.start()

    async def slow(event: Event) -> None:
        await go.wait()
        seen.append(event.data)

    await bus.subscribe(EventType.TRADE, slow)
    for number in range(3):
        bus.publish_nowait(Event(EventType.TRADE, number))
    closing = asyncio.create_task(bus.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    go.set()
    await bus.wait_closed()
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("timeout", [-1, None, "5", float("nan")])
async def test_a_timeout_that_is_none_is_refused_and_changes_nothing(timeout: float) -> None:
    async with AsyncEventBus() as bus:
        with pytest.raises(ValueError, match="timeout="):
            await bus.close(timeout)
        with pytest.raises(ValueError, match="timeout="):
            await bus.settle(timeout)
        await bus.publish(Event(EventType.TRADE, 1))


class SlowTransport(Local):
    """An adapter that really waits, as one with peers does, and notes whether it is open."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.is_open = False
        self.catchups: list[CatchUp] = []

    async def pause(self, name: str) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        if name == self.failing:
            raise OSError(name)

    async def start(self, publisher: Publisher, reports: Diagnostics) -> None:
        self.is_open = True
        await self.pause("start")

    async def subscribe(self, catchup: CatchUp, timeout: float) -> list[str]:
        self.catchups.append(catchup)
        await self.pause("subscribe")
        return []

    def unsubscribe(self, catchup: CatchUp) -> None:
        if catchup in self.catchups:  # as the seam has it, twice is no error: a closing bus does it
            self.catchups.remove(catchup)

    async def flush(self, timeout: float) -> list[str]:
        await self.pause("flush")
        return []

    async def close(self, timeout: float) -> list[str]:
        await self.pause("close")
        self.is_open = False
        return []


def slow_bus(transport: SlowTransport) -> AsyncEventBus:
    bus = AsyncEventBus(transport)
    for key in "abc":
        bus.on(EventType.TRADE, key=key)(print)
    return bus


@pytest.mark.parametrize("turns", range(16))
async def test_cancelling_start_at_any_await_closes_what_it_opened(turns: int) -> None:
    transport = SlowTransport()
    bus = slow_bus(transport)
    starting = asyncio.create_task(bus.start())
    for _ in range(turns):
        await asyncio.sleep(0)
    was_done = starting.done()
    starting.cancel()
    await asyncio.wait([starting])
    if was_done:
        await bus.close()
    assert (transport.is_open, transport.catchups) == (False, [])
    await bus.close()


@pytest.mark.parametrize("failing", ["start", "subscribe"])
async def test_a_failing_start_closes_what_it_opened_and_raises(failing: str) -> None:
    transport = SlowTransport(failing)
    with pytest.raises(OSError, match=failing):
        await slow_bus(transport).start()
    assert (transport.is_open, transport.catchups) == (False, [])


async def test_closing_while_it_starts_ends_the_start() -> None:
    transport = SlowTransport()
    bus = slow_bus(transport)
    starting = asyncio.create_task(bus.start())
    await asyncio.sleep(0)
    await bus.close()
    with pytest.raises(BusClosed):
        await starting
    assert (transport.is_open, transport.catchups) == (False, [])


@pytest.mark.parametrize("turns", range(8))
async def test_cancelling_subscribe_at_any_await_leaves_nothing_subscribed(turns: int) -> None:
    transport = SlowTransport()
    bus = slow_bus(transport)
    await bus.start()
    subscribing = asyncio.create_task(bus.subscribe(EventType.BAR, print))
    for _ in range(turns):
        await asyncio.sleep(0)
    if not subscribing.done():
        subscribing.cancel()
        await asyncio.wait([subscribing])
        assert len(transport.catchups) == len(bus.stats().subscriptions) == 3
    await bus.close()


async def test_a_transport_that_fails_to_flush_is_closed_all_the_same() -> None:
    transport = SlowTransport("flush")
    bus = slow_bus(transport)
    await bus.start()
    with pytest.raises(OSError, match="flush"):
        await bus.close()
    assert (transport.is_open, transport.catchups) == (False, [])


async def test_a_handler_inside_a_stream_may_publish_while_the_bus_closes() -> None:
    published: list[str] = []
    entered, go = asyncio.Event(), asyncio.Event()
    bus = AsyncEventBus()
    await bus.start()

    async def handler(event: Event) -> None:
        async with bus.stream("B"):
            entered.set()
            await go.wait()
            published.append((await bus.publish(Event("C", 1))).cause)

    await bus.subscribe("A", handler)
    event = await bus.publish(Event("A", 1))
    await entered.wait()
    closing = asyncio.create_task(bus.close())
    await asyncio.sleep(0)
    go.set()
    await closing
    assert published == [event.id]


async def test_after_settle_told_of_a_failure_wait_closed_waits_for_the_end() -> None:
    async with AsyncEventBus(on_error="raise") as bus:
        await bus.subscribe(EventType.TRADE, fails)
        await bus.publish(Event(EventType.TRADE, 1))
        with pytest.raises(ZeroDivisionError):
            await bus.settle()
        waiting = asyncio.create_task(bus.wait_closed())
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


async def test_wait_closed_returns_when_the_bus_has_closed() -> None:
    bus = AsyncEventBus()
    await bus.start()
    waiting = asyncio.create_task(bus.wait_closed())
    await asyncio.sleep(0)
    assert not waiting.done()
    await bus.close()
    await waiting


async def fails(event: Event) -> None:
    raise ZeroDivisionError("the first")


async def test_with_on_error_raise_the_body_gets_the_failure() -> None:
    with pytest.raises(ZeroDivisionError, match="the first"):
        async with AsyncEventBus(on_error="raise") as bus:
            await bus.subscribe(EventType.TRADE, fails)
            await bus.publish(Event(EventType.TRADE, 1))
            await asyncio.sleep(60)


async def test_with_on_error_raise_settle_gets_the_failure_once() -> None:
    async with AsyncEventBus(on_error="raise") as bus:
        await bus.subscribe(EventType.TRADE, fails)
        await bus.publish(Event(EventType.TRADE, 1))
        with pytest.raises(ZeroDivisionError):
            await bus.settle()
        await bus.settle()


async def test_with_on_error_raise_settle_gets_the_failure_of_a_publish_that_took_long() -> None:
    """More than the time of a turn, after which `publish` would let the loop turn."""
    async with AsyncEventBus(on_error="raise") as bus:
        await bus.subscribe(EventType.TRADE, fails)
        await bus.publish(Event(EventType.TRADE, ["x" * 10] * 50_000))
        with pytest.raises(ZeroDivisionError):
            await bus.settle()


async def test_with_on_error_raise_settle_gets_a_failure_that_came_while_publish_yielded() -> None:
    async def fails_first(event: Event) -> None:
        if event.seq == 1:
            await fails(event)

    async with AsyncEventBus(on_error="raise") as bus:
        await bus.subscribe(EventType.TRADE, fails_first)
        for _ in range(turn.EVENTS):
            await bus.publish(Event(EventType.TRADE, 1))
        with pytest.raises(ZeroDivisionError):
            await bus.settle()


async def test_with_on_error_raise_a_failure_after_the_one_told_of_is_told_of_as_well() -> None:
    with pytest.raises(ZeroDivisionError):
        async with AsyncEventBus(on_error="raise") as bus:
            await bus.subscribe(EventType.TRADE, fails)
            await bus.publish(Event(EventType.TRADE, 1))
            with pytest.raises(ZeroDivisionError):
                await bus.settle()
            await bus.publish(Event(EventType.TRADE, 2))


async def test_with_on_error_raise_a_failure_at_the_very_end_is_raised_on_exit() -> None:
    with pytest.raises(ZeroDivisionError):
        async with AsyncEventBus(on_error="raise") as bus:
            await bus.subscribe(EventType.TRADE, fails)
            await bus.publish(Event(EventType.TRADE, 1))


async def test_with_on_error_raise_wait_closed_gets_the_failure() -> None:
    bus = AsyncEventBus(on_error="raise")
    await bus.start()
    await bus.subscribe(EventType.TRADE, fails)
    waiting = asyncio.create_task(bus.wait_closed())
    await bus.publish(Event(EventType.TRADE, 1))
    with pytest.raises(ZeroDivisionError):
        await waiting
    await bus.close()


async def test_a_failing_where_of_the_bodys_own_publish_ends_the_body() -> None:
    with pytest.raises(ZeroDivisionError):
        async with AsyncEventBus(on_error="raise") as bus:
            await bus.subscribe(EventType.TRADE, print, where=lambda event: 1 / 0)
            await bus.publish(Event(EventType.TRADE, 1))
            await asyncio.sleep(60)


async def test_cancelling_the_body_from_outside_stays_a_cancellation() -> None:
    entered = asyncio.Event()

    async def body() -> None:
        async with AsyncEventBus(on_error="raise"):
            entered.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(body())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_bodys_task_is_not_left_cancelled_by_a_failure() -> None:
    with pytest.raises(ZeroDivisionError):
        async with AsyncEventBus(on_error="raise") as bus:
            await bus.subscribe(EventType.TRADE, fails)
            await bus.publish(Event(EventType.TRADE, 1))
            await asyncio.sleep(60)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_the_life_of_a_bus_is_logged_and_every_operation_at_debug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="aiobus")
    async with AsyncEventBus(name="desk") as bus:
        await bus.subscribe(EventType.TRADE, fails_not)
        event = await bus.publish(Event(EventType.TRADE, 1, key="BTC"))
        await bus.settle()
        await bus.unsubscribe(EventType.TRADE, fails_not)
    assert [(r.levelname, r.getMessage()) for r in caplog.records if r.name[:6] == "aiobus"] == [
        ("DEBUG", "start desk"),
        ("INFO", "desk started on inproc://"),
        ("DEBUG", "subscribe fails_not(TRADE)"),
        ("DEBUG", f"publish TRADE {event.id} key='BTC' cause="),
        ("DEBUG", f"dispatch TRADE {event.id} to fails_not(TRADE)"),
        ("DEBUG", "unsubscribe fails_not(TRADE)"),
        ("DEBUG", "close desk"),
        ("INFO", "desk closed"),
    ]


async def fails_not(event: Event) -> None:
    return None


async def test_nothing_is_logged_above_debug_by_an_ordinary_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, logger="aiobus")
    async with AsyncEventBus() as bus:
        await bus.publish(Event(EventType.TRADE, 1))
    assert caplog.records == []
