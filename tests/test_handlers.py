"""What a handler may be, and that each of its failures reaches the one who runs the bus."""

import asyncio
import functools
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from aiobus import AsyncEventBus, BusError, Event, EventType
from aiobus.testing import MemoryNetwork

pytestmark = pytest.mark.usefixtures("no_task_is_left")


# Without any set-up of logging.

FAILS = """
import asyncio
from aiobus import AsyncEventBus, Event

async def on_trade(event):
    raise ValueError("no price")

async def on_quote(event):
    await asyncio.sleep(60)

async def main():
    async with AsyncEventBus(name="desk") as bus:
        await bus.subscribe("TRADE", on_trade)
        await bus.subscribe("QUOTE", on_quote)
        await bus.publish(Event("TRADE", 1))
        await bus.publish(Event("QUOTE", 1))
        await bus.publish(Event("QUOTE", 2))
        await asyncio.sleep(0)
        await bus.close(0)

asyncio.run(main())
"""


def test_without_any_logging_set_up_errors_and_warnings_reach_stderr() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FAILS], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "on_trade(TRADE) failed on TRADE desk@" in done.stderr
    assert "ValueError: no price" in done.stderr
    assert "1 events were not handed to on_quote(QUOTE): the bus closed" in done.stderr


def test_the_package_adds_no_handler_of_its_own() -> None:
    code = "import aiobus, logging; assert not logging.getLogger('aiobus').handlers"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


# What no handler may raise.


class Outcome(BaseException):
    """As pytest.fail raises it."""


@pytest.mark.parametrize("concurrency", [1, 2, 8])
@pytest.mark.parametrize("waits", [False, True])
async def test_a_base_exception_of_a_handler_ends_the_bus(concurrency: int, waits: bool) -> None:
    async def fails(event: Event) -> None:
        if waits:
            await asyncio.sleep(0)
        raise Outcome("as pytest.fail raises it")

    with pytest.raises(Outcome, match="as pytest"):
        async with AsyncEventBus() as bus:
            await bus.subscribe(EventType.TRADE, fails, concurrency=concurrency)
            await bus.publish(Event(EventType.TRADE, 1))
            await bus.wait_closed()


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_pytest_fail_in_a_handler_fails_the_test_that_settles(concurrency: int) -> None:
    async def fails(event: Event) -> None:
        pytest.fail("never this price")

    async with AsyncEventBus(on_error="raise") as bus:
        await bus.subscribe(EventType.TRADE, fails, concurrency=concurrency)
        await bus.publish(Event(EventType.TRADE, 1))
        with pytest.raises(pytest.fail.Exception, match="never this price"):
            await bus.settle()


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_base_exception_of_a_call_that_outlives_its_subscription_ends_the_bus(
    concurrency: int,
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def fails(event: Event) -> None:
        begun.set()
        await go.wait()
        raise Outcome("late")

    with pytest.raises(Outcome, match="late"):
        async with AsyncEventBus() as bus:
            subscription = await bus.subscribe(EventType.TRADE, fails, concurrency=concurrency)
            await bus.publish(Event(EventType.TRADE, 1))
            await begun.wait()
            await subscription.unsubscribe()
            go.set()
            await bus.wait_closed()


@pytest.mark.parametrize("is_remote", [False, True])
async def test_a_base_exception_of_where_ends_its_bus_and_harms_no_other_subscription(
    is_remote: bool,
) -> None:
    seen: list[object] = []
    entered = asyncio.Event()

    def fails(event: Event) -> bool:
        pytest.fail("never this price")

    network = MemoryNetwork()
    async with network.bus("feed") as feed:

        async def strategy() -> None:
            async with network.bus("strategy") as bus:
                await bus.subscribe(EventType.TRADE, print, where=fails)
                await bus.subscribe(EventType.TRADE, lambda event: seen.append(event.data))
                entered.set()
                if not is_remote:
                    await bus.publish(Event(EventType.TRADE, 1))
                await bus.wait_closed()

        running = asyncio.create_task(strategy())
        await entered.wait()
        if is_remote:
            await feed.publish(Event(EventType.TRADE, 1))
        with pytest.raises(pytest.fail.Exception, match="never this price"):
            await running
    assert seen == [1]


# A cancelling that was not asked for is a failure, not an end on purpose.


async def cancels_its_own_task(event: Event) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def awaits_a_cancelled_task(event: Event) -> None:
    inner = asyncio.create_task(asyncio.sleep(60))
    inner.cancel()
    await inner


@pytest.mark.parametrize(
    ("handler", "on_error", "said"),
    [
        (cancels_its_own_task, "log", "the task of cancels_its_own_task(TRADE) was cancelled"),
        (awaits_a_cancelled_task, "raise", "awaits_a_cancelled_task(TRADE) failed on TRADE desk@"),
    ],
)
async def test_a_task_group_sees_that_a_bus_was_ended_by_a_cancelled_handler(
    handler: Callable[[Event], Any], on_error: Any, said: str
) -> None:
    async def strategy() -> None:
        async with AsyncEventBus(name="desk", on_error=on_error) as bus:
            await bus.subscribe(EventType.TRADE, handler)
            await bus.publish(Event(EventType.TRADE, 1))
            await asyncio.get_running_loop().create_future()

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(strategy())
    (error,) = caught.value.exceptions
    assert isinstance(error, BusError)
    assert said in str(error)


@pytest.mark.parametrize("call", ["settle", "wait_closed"])
async def test_settle_and_wait_closed_raise_a_bus_error_for_a_cancelled_handler(call: str) -> None:
    bus = AsyncEventBus()
    await bus.start()
    await bus.subscribe(EventType.TRADE, cancels_its_own_task)
    await bus.publish(Event(EventType.TRADE, 1))
    with pytest.raises(BusError, match="the bus cannot go on"):
        await getattr(bus, call)()
    await bus.close()


# Calls that run none of the code.


class Yields:
    async def __call__(self, event: Event) -> AsyncIterator[Event]:
        yield event


class YieldsPlainly:
    def __call__(self, event: Event) -> Iterator[Event]:
        yield event


async def yields(event: Event) -> AsyncIterator[Event]:
    yield event


def yields_plainly(event: Event) -> Iterator[Event]:
    yield event


@pytest.mark.parametrize(
    "callback",
    [
        yields,
        yields_plainly,
        Yields(),
        YieldsPlainly(),
        Yields().__call__,
        functools.partial(yields),
    ],
)
async def test_a_generator_is_refused_as_a_callback_and_as_where(
    bus: AsyncEventBus, callback: Any
) -> None:
    for arguments in ({"callback": callback}, {"callback": print, "where": callback}):
        with pytest.raises(TypeError, match="is a generator: calling it would run none of its"):
            await bus.subscribe(EventType.TRADE, **arguments)
        with pytest.raises(TypeError, match="is a generator"):
            await bus.subscribe(EventType.TRADE, **arguments, concurrency=2)
    assert bus.stats().subscriptions == ()


def traced(function: Callable[[Event], Any]) -> Callable[[Event], Any]:
    @functools.wraps(function)
    def wrapper(event: Event) -> Any:
        return function(event)

    return wrapper


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("function", [yields, yields_plainly, Yields(), YieldsPlainly()])
async def test_a_callback_that_returns_a_generator_fails_on_each_event(
    function: Callable[[Event], Any], concurrency: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncEventBus() as bus:
        callback = lambda event: function(event)  # noqa: E731 - hides what it returns
        await bus.subscribe(EventType.TRADE, callback, concurrency=concurrency)
        await bus.publish(Event(EventType.TRADE, 1))
        await bus.publish(Event(EventType.TRADE, 2))
        await bus.settle()
        (stats,) = bus.stats().subscriptions
        assert (stats.handled, stats.failed) == (2, 2)
    assert "none of its code has run" in caplog.text


async def test_a_wrapped_generator_fails_on_each_event() -> None:
    async with AsyncEventBus(on_error="raise") as bus:
        await bus.subscribe(EventType.TRADE, traced(yields))
        await bus.publish(Event(EventType.TRADE, 1))
        with pytest.raises(
            TypeError, match=r"returned <async_generator object yields .*: none of its code"
        ):
            await bus.settle()


async def waits(event: Event) -> bool:
    return True


@pytest.mark.parametrize("function", [waits, yields_plainly])
async def test_a_where_that_returns_what_would_have_to_be_run_fails_and_selects_nothing(
    function: Callable[[Event], Any],
) -> None:
    seen: list[Event] = []
    async with AsyncEventBus() as bus:
        await bus.subscribe(EventType.TRADE, seen.append, where=lambda event: function(event))
        await bus.publish(Event(EventType.TRADE, 1))
        await bus.settle()
        assert bus.stats().subscriptions[0].failed == 1
    assert seen == []


async def test_a_wrapper_that_runs_its_generator_is_a_callback_like_any(
    bus: AsyncEventBus,
) -> None:
    seen: list[Event] = []

    @functools.wraps(yields)
    async def runs(event: Event) -> None:
        seen.extend([each async for each in yields(event)])

    await bus.subscribe(EventType.TRADE, runs)
    await bus.publish(Event(EventType.TRADE, 1))
    await bus.settle()
    assert len(seen) == 1


# Calls that could not be made.


async def of_none() -> None: ...
async def of_two(bus: AsyncEventBus, event: Event) -> None: ...
async def by_name(*, event: Event) -> None: ...


class OfNone:
    async def handle() -> None: ...  # type: ignore[misc]  # as it is forgotten
    async def __call__(self, event: Event, other: Event) -> None: ...


@pytest.mark.parametrize(
    "callback",
    [of_none, of_two, by_name, OfNone().handle, OfNone(), lambda: None, functools.partial(of_none)],
)
async def test_what_cannot_be_called_with_one_event_is_refused(
    bus: AsyncEventBus, callback: Any
) -> None:
    with pytest.raises(TypeError, match=r"callback=.* is called with the event alone: .*argument"):
        await bus.subscribe(EventType.TRADE, callback)
    with pytest.raises(TypeError, match="callback="):
        AsyncEventBus().on(EventType.TRADE)(callback)
    assert bus.stats().subscriptions == ()


async def test_a_where_that_takes_no_event_is_refused(bus: AsyncEventBus) -> None:
    where: Any = lambda: True  # noqa: E731
    with pytest.raises(TypeError, match=r"where=.* is called with the event alone"):
        await bus.subscribe(EventType.TRADE, print, where=where)


def given_the_bus(function: Callable[..., Any]) -> Callable[[Event], Any]:
    @functools.wraps(function)
    def wrapper(event: Event) -> Any:
        return function(None, event)

    return wrapper


@pytest.mark.parametrize(
    "callback",
    [
        given_the_bus(of_two),  # what it wraps takes two, it takes one
        functools.partial(of_two, None),
        lambda event, price=1: None,
        lambda *events, **more: None,
        [].append,
        dict,
        logging.getLogger(__name__).debug,
    ],
)
async def test_what_can_be_called_with_one_event_is_not_refused(
    bus: AsyncEventBus, callback: Any
) -> None:
    await bus.subscribe(EventType.TRADE, callback)
