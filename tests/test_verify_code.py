"""What a strategy may do: it is recorded, and replays, on each loop."""

import asyncio
import contextvars
import inspect
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from replays import session, trades

from aiobus import (
    AsyncEventBus,
    BusClosed,
    BusError,
    EncodeError,
    Event,
    Limits,
    NoSubscribers,
    QueueFull,
    RequestTimeout,
    clock,
    record,
    verify,
)
from aiobus.replay.attach import Strategy

Work = Callable[[AsyncEventBus, Event], Awaitable[object]]
CODE: dict[str, Work] = {}


def code(name: str) -> Callable[[Work], Work]:
    """What a handler does with each trade."""

    def register(work: Work) -> Work:
        CODE[name] = work
        return work

    return register


async def say(bus: AsyncEventBus, type: str, value: Any = None) -> None:
    await bus.publish(Event(type, {"value": value}))


async def say_later(bus: AsyncEventBus, type: str, delay: float) -> None:
    await asyncio.sleep(delay)
    await say(bus, type, delay)


@code("a TaskGroup that is aborted before a member goes on")
async def aborted(bus: AsyncEventBus, trade: Event) -> None:
    async def member(number: int) -> None:
        for _ in range(number):
            await asyncio.sleep(0)
        await say(bus, "MEMBER", number)
        if number == 2:
            raise ValueError(number)

    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(member(number))
    await say(bus, "ABORTED")


@code("gather, shield, wait_for and as_completed")
async def combined(bus: AsyncEventBus, trade: Event) -> None:
    parts = [say_later(bus, "PART", 0.001 * number) for number in range(3)]
    await asyncio.gather(*parts)
    await asyncio.shield(say_later(bus, "SHIELDED", 0.001))
    with suppress(TimeoutError):
        await asyncio.wait_for(say_later(bus, "NEVER", 1.0), 0.002)
    # Of coroutines it makes a set, which iterates in the order of addresses: tasks do not.
    tasks = [asyncio.create_task(say_later(bus, "DONE", 0.001 * n)) for n in range(3)]
    for each in asyncio.as_completed(tasks):
        await each
    await say(bus, "COMBINED")


@code("a task that is cancelled while it goes on")
async def cancelled(bus: AsyncEventBus, trade: Event) -> None:
    event = asyncio.Event()

    async def waits() -> None:
        try:
            await event.wait()
            await say(bus, "WOKEN")
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            await say(bus, "CANCELLED")

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    event.set()
    task.cancel()
    await asyncio.wait([task])
    task = asyncio.create_task(waits())
    await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])


@code("a timeout and a sleep of other tasks that are due at once")
async def due_at_once(bus: AsyncEventBus, trade: Event) -> None:
    async def sleeper(number: int) -> None:
        try:
            async with asyncio.timeout(0.002):
                await asyncio.sleep(0.002 if number % 2 else 0.0021)
            await say(bus, "SLEPT", number)
        except TimeoutError:
            await say(bus, "LATE", number)

    await asyncio.gather(*map(sleeper, range(4)))


@code("a timeout that is due before it is entered")
async def due_already(bus: AsyncEventBus, trade: Event) -> None:
    limit = asyncio.timeout(0.001)
    time.sleep(0.002)  # noqa: ASYNC251 - as on a machine that is busy
    try:
        async with limit:
            await asyncio.sleep(1)
    except TimeoutError:
        await say(bus, "LATE")


@code("the time of the loop: tickers, throttles and limits")
async def paced(bus: AsyncEventBus, trade: Event) -> None:
    loop = asyncio.get_running_loop()
    next_time = begin = loop.time()
    for _ in range(3):
        next_time += 0.001
        await asyncio.sleep(max(0.0, next_time - loop.time()))
        await say(bus, "TICK", loop.time() - begin)
    done = loop.create_future()
    number = 0

    def again() -> None:
        nonlocal number
        number += 1
        bus.publish_nowait(Event("AGAIN", {"late": loop.time() - begin}))
        if number < 3:
            loop.call_at(begin + number * 0.001, again)
        else:
            done.set_result(None)

    again()
    await done
    while True:
        await asyncio.sleep(0)
        if loop.time() >= begin + 0.006:
            break
    try:
        async with asyncio.timeout_at(begin + 0.007) as limit:
            while True:
                limit.reschedule(loop.time() + 0.001)
                await say(bus, "MOVED", limit.when())
                await asyncio.sleep(0.002)
    except TimeoutError:
        await say(bus, "OVER", loop.time())


@code("plain callbacks of call_soon, call_later and call_at")
async def plain(bus: AsyncEventBus, trade: Event) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def tell(name: str) -> None:
        bus.publish_nowait(Event("CALLED", {"name": name}))

    loop.call_soon(tell, "soon")
    loop.call_soon(partial(tell, "partial"))
    loop.call_later(0.001, tell, "later")
    loop.call_at(loop.time() + 0.002, tell, "at")
    loop.call_later(0.001, tell, "never").cancel()
    loop.call_later(0.003, done.set_result, None)
    tell("at once")
    await done
    await say(bus, "ALL")


@code("callbacks of futures that the code completes")
async def completed(bus: AsyncEventBus, trade: Event) -> None:
    future = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda _: bus.publish_nowait(Event("COMPLETED", {})))
    future.set_result(None)
    await say(bus, "BEFORE")
    await asyncio.sleep(0)
    await say(bus, "BEHIND")


class Says:
    """An object that is called, by a loop or by a future that is done."""

    def __init__(self, bus: AsyncEventBus, type: str) -> None:
        self.bus, self.type = bus, type

    def __call__(self, *arguments: object) -> None:
        self.bus.publish_nowait(Event(self.type, {"arguments": len(arguments)}))


@code("callbacks that are objects, and methods of objects in C")
async def objects(bus: AsyncEventBus, trade: Event) -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(Says(bus, "SOON"), 1, 2)
    loop.call_soon(Says(bus, "SOON").__call__, 1)
    loop.call_later(0.001, Says(bus, "LATER"))
    loop.call_soon_threadsafe(Says(bus, "THREADSAFE"))
    future, found = loop.create_future(), dict[str, int]()
    future.add_done_callback(Says(bus, "COMPLETED"))
    future.set_result(None)
    task = asyncio.create_task(asyncio.sleep(0))
    task.add_done_callback(Says(bus, "DONE"))
    loop.call_soon(found.__setitem__, "n", 1)
    loop.call_soon(found.update, {"m": 2})
    await asyncio.sleep(0.002)
    await say(bus, "FOUND", found)


@code("sets of tasks")
async def sets(bus: AsyncEventBus, trade: Event) -> None:
    tasks = {asyncio.create_task(say_later(bus, f"T{n}", 0.0001), name=str(n)) for n in range(9)}
    order = [task.get_name() for task in tasks]
    await asyncio.wait(tasks)
    await say(bus, "ORDER", order)


@code("asyncio.Queue, Lock, Condition and Semaphore")
async def primitives(bus: AsyncEventBus, trade: Event) -> None:
    queue: asyncio.Queue[int] = asyncio.Queue(1)
    lock, condition, semaphore = asyncio.Lock(), asyncio.Condition(), asyncio.Semaphore(2)

    async def produce() -> None:
        for number in range(3):
            await queue.put(number)
            async with semaphore, lock:
                await say(bus, "PUT", number)
        async with condition:
            condition.notify_all()

    async with condition:
        task = asyncio.create_task(produce())
        for _ in range(3):
            await say(bus, "GOT", await queue.get())
        await condition.wait()
    await task


@code("async generators and context variables")
async def generated(bus: AsyncEventBus, trade: Event) -> None:
    variable = contextvars.ContextVar("variable", default=0)

    async def numbers() -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(0.0005)
            yield number

    async for number in numbers():
        variable.set(number)
        asyncio.get_running_loop().call_soon(
            lambda: bus.publish_nowait(Event("VARIABLE", {"value": variable.get()}))
        )
    await asyncio.sleep(0)
    await say(bus, "GENERATED")


@code("async generators that are left before their end")
async def left(bus: AsyncEventBus, trade: Event) -> None:
    async def numbers() -> AsyncIterator[int]:
        try:
            for number in range(3):
                yield number
        finally:
            await asyncio.sleep(0)
            await say(bus, "LEFT")

    async for number in numbers():
        if number == 1:
            break
    other = numbers()
    await anext(other)
    await say(bus, "BEHIND")


@code("call_soon_threadsafe")
async def threadsafe(bus: AsyncEventBus, trade: Event) -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon_threadsafe(lambda: bus.publish_nowait(Event("SOON", {})))
    await say(bus, "BEFORE")


@code("what inspect and repr tell of a task")
async def inspected(bus: AsyncEventBus, trade: Event) -> None:
    async def child() -> str:
        return inspect.getcoroutinestate(coroutine)

    task = asyncio.create_task(child())
    coroutine: Any = task.get_coro()
    states = [inspect.getcoroutinestate(coroutine), await task]
    assert states == [inspect.CORO_CREATED, inspect.CORO_RUNNING]
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    task = asyncio.create_task(asyncio.sleep(0, ""))
    coroutine = task.get_coro()
    await asyncio.sleep(0)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_SUSPENDED
    assert "sleep" in repr(task)
    assert coroutine.cr_origin is None
    await task
    await say(bus, "STATES", states)


@code("requests: a reply, a timeout, and no subscriber")
async def requests(bus: AsyncEventBus, trade: Event) -> None:
    reply = await bus.request(Event("ASK", {"number": trade.data["number"]}), "ANSWER")
    await say(bus, "REPLIED", [reply.id, reply.cause])
    try:
        await bus.request(Event("ASK", {"number": 0}), "ANSWER", timeout=0.002)
    except RequestTimeout as error:
        await say(bus, "TIMEOUT", [str(error), getattr(error.event, "id", None)])
    try:
        await bus.request(Event("NOTHING", {}), "ANSWER")
    except NoSubscribers as error:
        await say(bus, "NOBODY", str(error))


@code("flush and settle")
async def waits(bus: AsyncEventBus, trade: Event) -> None:
    await say(bus, "FLUSHED", await bus.flush())
    try:
        await bus.settle()
    except BusError as error:
        await say(bus, "REFUSED", str(error))


@code("wait_for and its timeout")
async def waited(bus: AsyncEventBus, trade: Event) -> None:
    task = asyncio.create_task(bus.wait_for("HELLO"))
    await asyncio.sleep(0.001)
    await say(bus, "HELLO")
    await say(bus, "HEARD", (await task).id)
    try:
        await bus.wait_for("NEVER", timeout=0.001)
    except TimeoutError as error:
        await say(bus, "UNHEARD", str(error))


@code("a stream that is stepped twice at once, and closed")
async def stepped(bus: AsyncEventBus, trade: Event) -> None:
    async with bus.stream("HELLO") as hellos:
        task = asyncio.create_task(hellos.__anext__())
        await asyncio.sleep(0)
        try:
            await anext(hellos)
        except BusError as error:
            await say(bus, "REFUSED", str(error))
        await say(bus, "HELLO", 1)
        await say(bus, "HEARD", (await task).data)
        task = asyncio.create_task(hellos.__anext__())
        await asyncio.sleep(0)
    try:
        await task
    except (StopAsyncIteration, RuntimeError):
        await say(bus, "ENDED")


@code("subscriptions that begin and end")
async def subscribed(bus: AsyncEventBus, trade: Event) -> None:
    async def on_hello(hello: Event) -> None:
        await say(bus, "HEARD", hello.data)

    subscription = await bus.subscribe("HELLO", on_hello)
    await say(bus, "HELLO", 1)
    await asyncio.sleep(0.002)
    await subscription.unsubscribe()
    await say(bus, "HELLO", 2)
    await bus.subscribe(("HELLO", "OTHER"), on_hello)
    await bus.unsubscribe(("HELLO", "OTHER"), on_hello)
    try:
        await bus.unsubscribe("HELLO", on_hello)
    except ValueError:
        await say(bus, "NONE")


@code("errors of arguments")
async def wrong(bus: AsyncEventBus, trade: Event) -> None:
    for event in (Event("HELLO", object()), Event("", {}), 5):
        try:
            await bus.publish(event)  # type: ignore[type-var]
        except (TypeError, BusError) as error:
            await say(bus, "WRONG", type(error).__name__)
    try:
        await bus.subscribe("", say)  # type: ignore[arg-type]
    except ValueError as error:
        await say(bus, "WRONG", str(error))


@code("causes that the code sets, and events that it publishes again")
async def caused(bus: AsyncEventBus, trade: Event) -> None:
    first = await bus.publish(Event("FIRST", {}))
    await bus.publish(Event("SECOND", {}, cause=first.id))
    await bus.publish(first)
    await bus.publish(trade)


@code("the clock, and events with a time of their own")
async def timed(bus: AsyncEventBus, trade: Event) -> None:
    await say(bus, "NOW", clock.time())
    async with bus.stream("THEN") as own:
        for timestamp in (1, 2.5):
            then = await bus.publish(Event("THEN", {}, timestamp=timestamp))
            read = await anext(own)
            await say(bus, "READ", [read.timestamp, then.timestamp])


async def answer(bus: AsyncEventBus) -> None:
    """Code that is not attached."""

    async def on_ask(ask: Event) -> None:
        if ask.data["number"]:
            await bus.publish(Event("ANSWER", {}))

    await bus.subscribe("ASK", on_ask)


@pytest.mark.parametrize("work", CODE.values(), ids=CODE)
async def test_a_handler_replays_that_uses(work: Work, tmp_path: Path) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        number = 0

        async def on_trade(trade: Event) -> None:
            nonlocal number
            number += 1
            if number <= 4:  # it may publish trades itself
                await work(bus, trade)

        await bus.subscribe("TRADE", on_trade)

    async def drive(bus: AsyncEventBus) -> None:
        await answer(bus)
        await trades(bus, 4)
        await bus.settle()
        await asyncio.sleep(0.005)  # for what it leaves to timers: more or less of it is recorded

    path = tmp_path / "strategy.db"
    await session(path, strategy, drive)
    report = verify(path, strategy)
    assert report, str(report)
    assert report.agreed >= 4
    assert {*report.outside} <= {"TRADE", "ANSWER"}  # all that the code does is watched


# Other shapes of strategies.


async def agrees(
    path: Path,
    strategy: Strategy,
    drive: Callable[[AsyncEventBus], Awaitable[object]],
    least: int = 1,
    **options: Any,
) -> None:
    await session(path, strategy, drive, **options)
    report = verify(path, strategy)
    assert report, str(report)
    assert report.agreed >= least


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "strategy.db"


async def test_plain_callbacks_and_those_that_return_any_awaitable_replay(path: Path) -> None:
    class Answer:
        def __init__(self, bus: AsyncEventBus) -> None:
            self.bus = bus

        def __await__(self) -> Generator[Any, None, None]:
            yield from asyncio.sleep(0.001).__await__()
            yield from say(self.bus, "AWAITED").__await__()

    async def strategy(bus: AsyncEventBus) -> None:
        await bus.subscribe("TRADE", lambda trade: bus.publish_nowait(Event("PLAIN", trade.data)))
        await bus.subscribe("TRADE", lambda trade: asyncio.ensure_future(say(bus, "FUTURE")))
        await bus.subscribe("TRADE", lambda trade: Answer(bus))

    await agrees(path, strategy, trades, 15)


async def test_a_strategy_that_is_one_endless_stream_replays(path: Path) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        async with bus.stream("TRADE") as stream:
            async for trade in stream:
                await bus.publish(Event("SIGNAL", trade.data))

    async def drive(bus: AsyncEventBus) -> None:
        async with bus.stream("SIGNAL") as signals:
            for _ in range(300):
                await trades(bus, 1)
                await anext(signals)

    await agrees(path, strategy, drive, 300)


async def test_what_the_subscription_has_selected_is_not_selected_again(path: Path) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("SIGNAL", trade.data, cause=trade.id))

        options: list[dict[str, Any]] = [
            {"where": lambda trade: trade.data["number"] % 2},
            {"max_age": 60.0},
            {"overflow": "latest"},
            {"overflow": "block", "maxsize": 1},
            {"overflow": "drop_oldest", "maxsize": 2},
            {"since": "last"},
            {"since": 0, "concurrency": 3},
        ]
        for each in options:
            await bus.subscribe("TRADE", on_trade, **each)

    async with AsyncEventBus(name="desk") as bus:
        await trades(bus, 7)  # before the recording
        async with record(bus, path, attach=strategy):
            await trades(bus, 20)
            await bus.settle()
    report = verify(path, strategy)
    assert report, str(report)
    assert report.deliveries > 100


async def test_system_events_and_handlers_that_fail_replay(path: Path) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await say(bus, "SIGNAL", trade.data)
            raise ValueError(trade.data)

        async def on_error(error: Event) -> None:
            await say(bus, "ALARM", error.data["error"])

        await bus.subscribe("TRADE", on_trade)
        await bus.subscribe("aiobus.error", on_error)

    await agrees(path, strategy, trades, 6)


async def test_what_the_recording_leaves_out_is_on_the_tape(path: Path) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("SIGNAL", trade.data))

        await bus.subscribe("TRADE", on_trade)

    await agrees(path, strategy, trades, 5, types="OTHER")


async def test_a_full_inbox_refuses_what_it_has_refused(path: Path) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        refused = 0

        async def on_trade(trade: Event) -> None:
            nonlocal refused
            for _ in range(3):
                try:
                    bus.publish_nowait(Event("WORK", {}))
                except QueueFull as error:
                    refused += 1
                    await say(bus, "REFUSED", [error.maxsize, refused])

        async def on_work(work: Event) -> None:
            await asyncio.sleep(0.001)

        await bus.subscribe("WORK", on_work, overflow="block", maxsize=1)
        await bus.subscribe("TRADE", on_trade)

    await agrees(path, strategy, trades)


async def test_a_bus_that_closes_ends_the_code_as_it_did(path: Path) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await say(bus, "CLOSING", await bus.close())
            try:
                await say(bus, "CLOSED")
            except BusClosed:
                return

        await say(bus, "OPEN")
        await bus.subscribe("TRADE", on_trade)

    bus = AsyncEventBus(name="desk")
    async with bus, record(bus, path, attach=strategy):
        await bus.publish(Event("TRADE", {}))
        await bus.wait_closed()
    report = verify(path, strategy)
    assert report.difference is None, str(report)


@pytest.mark.parametrize("options", [{"pace": True}, {"limits": Limits(history_events=64)}])
async def test_the_options_of_the_bus_make_no_difference(
    path: Path, options: dict[str, Any]
) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("SIGNAL", trade.data))

        await bus.subscribe("TRADE", on_trade)

    async with AsyncEventBus(name="desk", **options) as bus, record(bus, path, attach=strategy):
        await trades(bus, 200)
        await bus.settle()
    report = verify(path, strategy)
    assert report, str(report)
    assert report.agreed == 200


async def test_each_gap_that_is_told_is_told_again(path: Path) -> None:
    """Gaps have no number, and several of one source come within one stretch of the tape."""

    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            if trade.type == "aiobus.gap":
                await say(bus, "GAP", trade.data)
            else:
                await asyncio.sleep(0)

        await bus.subscribe(("TRADE", "aiobus.gap"), on_trade, maxsize=10)

    said = []
    async with AsyncEventBus(name="desk", limits=Limits(history_events=128)) as bus:
        await bus.subscribe("GAP", lambda gap: said.append(gap.data["value"]["upto"]))
        async with record(bus, path, attach=strategy):
            for _ in range(3):
                await trades(bus, 400)
                await bus.settle()
    assert len({*said}) == 3
    report = verify(path, strategy)
    assert report, str(report)


@pytest.mark.parametrize("most", [2_000, 4_000_000])
async def test_an_event_is_refused_as_too_large_if_it_was(path: Path, most: int) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            try:
                await bus.publish(Event("LARGE", "x" * 1_500_000))
            except EncodeError as error:
                await say(bus, "TOO_LARGE", str(error))

        await bus.subscribe("TRADE", on_trade)

    bus = AsyncEventBus(name="desk", limits=Limits(event_bytes=most))
    async with bus, record(bus, path, attach=strategy):
        await trades(bus)
        await bus.settle()
    report = verify(path, strategy)
    assert report, str(report)
    assert report.agreed == 5


async def test_a_bus_with_a_journal_replays_its_waits_for_commits(path: Path) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await asyncio.gather(*(say(bus, "SIGNAL", number) for number in range(3)))
            bus.publish_nowait(Event("NOWAIT", {}))

        await bus.subscribe("TRADE", on_trade)
        await bus.subscribe("aiobus.error", lambda error: None)

    for start in range(2):
        bus = AsyncEventBus(name="desk", journal=path.with_name("journal.db"))
        async with bus, record(bus, path, attach=strategy):
            await trades(bus, 5)
            await bus.settle()
        report = verify(path, strategy)
        assert report, str(report)
        assert (report.agreed, report.recordings) == (20, start + 1)


async def test_events_of_a_start_before_are_past_again(path: Path) -> None:
    journal = path.with_name("journal.db")
    async with AsyncEventBus(name="desk", journal=journal) as bus:
        await trades(bus, 3)

    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await say(bus, "SIGNAL", trade.past)

        await bus.subscribe("TRADE", on_trade, since=0)

    bus = AsyncEventBus(name="desk", journal=journal)
    async with bus, record(bus, path, attach=strategy):
        await trades(bus, 2)
        await bus.settle()
    report = verify(path, strategy)
    assert report, str(report)
    assert report.agreed == 5


async def test_a_stream_that_other_code_steps_is_not_watched(path: Path) -> None:
    streams: list[Any] = []

    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("SIGNAL", trade.data))

        await bus.subscribe("TRADE", on_trade)
        streams.append(await bus.stream("SIGNAL").__aenter__())

    bus = AsyncEventBus(name="desk")
    async with bus, record(bus, path, attach=strategy):
        await trades(bus)
        taken = [(await anext(streams[0])).type for _ in range(5)]
    assert taken == ["SIGNAL"] * 5
    report = verify(path, strategy)
    assert report, str(report)
    assert (report.deliveries, report.agreed) == (5, 5)


@pytest.mark.parametrize(
    "way", ["a wait", "a wait that is over", "a bus call", "a task", "tasks at once", "a timeout"]
)
async def test_a_strategy_that_is_cancelled_within_its_recording_flattens_again(
    path: Path, way: str
) -> None:
    async def rest() -> None:
        async with asyncio.timeout(3600):
            await asyncio.Event().wait()

    async def strategy(bus: AsyncEventBus, flattens: bool = True) -> None:
        nonlocal wake
        wake = asyncio.Event()
        await bus.subscribe("TRADE", lambda trade: bus.publish_nowait(Event("SIGNAL", trade.data)))
        try:
            if way.startswith("a wait"):
                await wake.wait()
            elif way == "a bus call":
                await bus.wait_closed()
            elif way == "a task":
                await asyncio.create_task(rest())
            elif way == "tasks at once":
                await asyncio.gather(rest(), rest())
            else:
                await rest()
        finally:
            if flattens:
                task = asyncio.current_task()
                assert task is not None
                await say(bus, "FLAT", task.cancelling())
                await asyncio.sleep(0)

    wake = asyncio.Event()
    async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=strategy) as recording:
        await trades(bus)
        await bus.settle()
        assert recording.attached is not None
        if way == "a wait that is over":
            wake.set()
        recording.attached.cancel()
        await asyncio.wait([recording.attached])
        await trades(bus, 1)
        await bus.settle()
    report = verify(path, strategy)
    assert report, str(report)
    assert report.agreed == 7
    report = verify(path, partial(strategy, flattens=False))
    assert report.difference is not None, str(report)
    assert report.difference.recorded.startswith("FLAT")


async def test_what_is_left_at_the_end_of_a_replay_ends(path: Path) -> None:
    """As on a live loop: callbacks run, and asynchronous generators are closed."""
    ended = []

    async def strategy(bus: AsyncEventBus) -> None:
        async def numbers() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                ended.append("generator")

        await bus.subscribe("TRADE", lambda trade: bus.publish_nowait(Event("SIGNAL", trade.data)))
        try:
            await asyncio.Event().wait()
        finally:
            other = numbers()
            await anext(other)
            del other
            done = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(done.set_result, None)
            await done
            ended.append("callback")

    async with AsyncEventBus(name="desk") as bus:
        async with record(bus, path, attach=strategy) as recording:
            await trades(bus)
            await bus.settle()
        assert recording.attached is not None
        recording.attached.cancel()
        await asyncio.wait([recording.attached])
    live, ended[:] = [*ended], []
    assert verify(path, strategy)
    assert sorted(ended) == sorted(live) == ["callback", "generator"]


async def test_a_strategy_that_is_cancelled_as_its_recording_ends_replays(path: Path) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        await bus.subscribe("TRADE", lambda trade: bus.publish_nowait(Event("SIGNAL", trade.data)))
        await asyncio.Event().wait()

    async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=strategy) as recording:
        await trades(bus)
        await bus.settle()
        assert recording.attached is not None
        recording.attached.cancel()
    assert verify(path, strategy)


def test_a_strategy_with_a_handler_of_a_signal_replays(path: Path) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, print)

        async def on_trade(trade: Event) -> None:
            await say(bus, "WAS_THERE", loop.remove_signal_handler(signal.SIGUSR1))

        await bus.subscribe("TRADE", on_trade)

    asyncio.run(session(path, strategy, trades))  # in the main thread, as signals need it
    report = verify(path, strategy)
    assert report, str(report)
    assert report.agreed == 5


def test_a_session_in_virtual_time_is_recorded_and_replays(tmp_path: Path) -> None:
    from aiobus import run_virtual

    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await asyncio.sleep(60)
            await say(bus, "SIGNAL", clock.time())

        await bus.subscribe("TRADE", on_trade)

    async def drive(bus: AsyncEventBus) -> None:
        await trades(bus)
        await bus.settle(1_000)

    prints = []
    for run in range(2):
        path = tmp_path / f"{run}.db"
        run_virtual(partial(session, path, strategy, drive))
        report = verify(path, strategy)
        assert report, str(report)
        prints.append(report.fingerprint)
    assert prints[0] == prints[1]


@pytest.mark.parametrize("debug", [True, False])
def test_debug_mode_makes_no_difference(tmp_path: Path, debug: bool) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await combined(bus, trade)

        await bus.subscribe("TRADE", on_trade)

    path = tmp_path / "strategy.db"
    asyncio.run(session(path, strategy, trades), debug=debug)
    assert verify(path, strategy)
