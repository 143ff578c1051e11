"""On a virtual loop time jumps, runs repeat exactly, and what can never go on is an error."""

import asyncio
import contextvars
import re
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from aiobus import AsyncEventBus, Deadlock, Event, LeavesProcess, VirtualLoop, clock
from aiobus.sync import EVENTS, TimeSlice
from aiobus.testing import Faults, MemoryNetwork
from aiobus.virtual_loop import ABSENT, START

DAY = 86_400.0


def run(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def loop() -> VirtualLoop:
    found = asyncio.get_running_loop()
    assert isinstance(found, VirtualLoop)
    return found


def test_a_year_of_sleep_takes_no_time() -> None:
    async def main() -> float:
        await asyncio.sleep(365 * DAY)
        return loop().time()

    began = time.perf_counter()
    assert run(main()) == pytest.approx(365 * DAY, abs=1e-6)
    assert time.perf_counter() - began < DAY


def test_timers_run_in_the_order_in_which_they_are_due_at_the_times_they_were_set_for() -> None:
    seen: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, loop().time()))

    async def main() -> None:
        await asyncio.gather(sleeper("late", 2.5), sleeper("soon", 0.25), sleeper("never", 2 * DAY))

    run(main())
    assert seen == [("soon", 0.25), ("late", 2.5), ("never", 2 * DAY)]


def test_no_time_passes_while_something_is_ready() -> None:
    async def main() -> float:
        for _ in range(1000):
            await asyncio.sleep(0)
        return loop().time()

    assert run(main()) == 0.0


def test_a_timeout_ends_what_waits_for_longer() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.Event().wait()
        return loop().time()

    assert run(main()) == 30.0


def test_wall_time_begins_at_the_same_moment_in_each_run_and_goes_with_the_loop() -> None:
    async def main() -> tuple[float, float, float]:
        await asyncio.sleep(60)
        return loop().wall_time(), clock.time(), Event("A", None).timestamp

    assert run(main()) == (START + 60, START + 60, START + 60)


def test_wall_time_begins_where_it_was_asked_to() -> None:
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(start=5.0)) as runner:
        runner.run(asyncio.sleep(1))
        assert runner.get_loop().wall_time() == 6.0  # type: ignore[attr-defined]


def test_elapsed_time_of_the_package_is_the_time_of_the_loop() -> None:
    async def main() -> float:
        before = clock.elapsed()
        await asyncio.sleep(DAY)
        return clock.elapsed() - before

    assert run(main()) == DAY
    assert clock.elapsed() == pytest.approx(time.perf_counter(), abs=60)


def test_a_turn_on_the_loop_ends_by_events_or_virtual_time_and_not_by_how_fast_the_machine_is() -> (
    None
):
    async def main() -> list[bool]:
        turn = TimeSlice(seconds=1e-12)
        turns = [turn.spend() for _ in range(EVENTS)]
        turn.renew()
        loop().block(0.001)
        return [*turns, turn.spend()]

    assert run(main()) == [False] * (EVENTS - 1) + [True, True]


def test_while_the_loop_is_blocked_time_passes_and_timers_come_late() -> None:
    async def main() -> list[float]:
        loop().call_later(1.0, lambda: seen.append(loop().time()))
        loop().block(5.0)
        await asyncio.sleep(0)
        seen.append(loop().time())
        return seen

    seen: list[float] = []
    assert run(main()) == [5.0, 5.0]


def test_time_is_never_set_back() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=re.escape("block(-1): 0 seconds or more are needed")):
            loop().block(-1)
        with pytest.raises(ValueError, match="block"):
            loop().block(float("nan"))

    run(main())


# Where nothing can ever happen again.


async def waits_for_ever() -> None:
    await asyncio.Event().wait()


def line_of(function: Callable[..., object], text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    first = function.__code__.co_firstlineno
    return next(at for at, line in enumerate(lines, 1) if at >= first and text in line)


def test_waiting_for_what_can_never_come_raises_and_names_each_task_with_file_and_line() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(waits_for_ever(), name="left alone")

    with pytest.raises(Deadlock) as caught:
        run(main())
    text = str(caught.value)
    at = f"{__file__}:{line_of(waits_for_ever, 'wait()')}"
    assert text.startswith("nothing can ever happen again after 0 s of virtual time")
    (left_alone,) = [line for line in caught.value.waiting if line.startswith("left alone: ")]
    assert left_alone.endswith(f" in waits_for_ever ({at})")
    assert "wait (" in left_alone, "the innermost frame comes first"
    assert all(line in text for line in caught.value.waiting)
    assert len(caught.value.waiting) == 2


async def waits_for_a_reply(bus: AsyncEventBus) -> None:
    await bus.subscribe("ORDER", lambda event: None)
    await bus.request(Event("ORDER", 1), "FILL", timeout=None)


async def waits_at_a_stream(bus: AsyncEventBus) -> None:
    async with bus.stream("TRADE") as trades:
        await anext(trades)


async def waits_at_a_queue(bus: AsyncEventBus) -> None:
    await asyncio.Queue[int]().get()


async def waits_at_a_lock(bus: AsyncEventBus) -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    async with lock:
        pass


async def waits_until_closed(bus: AsyncEventBus) -> None:
    await bus.wait_closed()


async def waits_in_a_handler(bus: AsyncEventBus) -> None:
    async def on_trade(trade: Event) -> None:
        await waits_for_ever()

    await bus.subscribe("TRADE", on_trade)
    await bus.publish(Event("TRADE", 1))


async def waits_for_a_task(bus: AsyncEventBus) -> None:
    await asyncio.create_task(waits_for_ever(), name="child")


async def waits_for_two_tasks(bus: AsyncEventBus) -> None:
    await asyncio.gather(waits_for_ever(), asyncio.create_task(waits_for_ever(), name="other"))


@pytest.mark.parametrize(
    ("waits", "at", "expected"),
    [
        (waits_for_a_reply, "request(", r"main: Requests\._wait \(aiobus/requests\.py:\d+\) in .*"),
        (waits_at_a_stream, "anext(", r"main: Subscription\.wait \(aiobus/\w+\.py:\d+\) in .*"),
        (waits_at_a_queue, "get()", r"main: Queue\.get \(asyncio/queues\.py:\d+\) in "),
        (waits_at_a_lock, "async with", r"main: Lock\.acquire \(asyncio/locks\.py:\d+\) in .*"),
        (waits_until_closed, "wait_closed()", r"main: .* in AsyncEventBus\.wait_closed .* in "),
        (
            waits_in_a_handler,
            "waits_for_ever()",
            r"aiobus desk .*on_trade\(TRADE\): Event\.wait .*",
        ),
        (waits_for_a_task, "create_task", r"main: "),
        (waits_for_two_tasks, "gather(", r"main: "),
    ],
)
def test_it_reads_as_a_sentence_what_each_task_waits_for_and_where(
    waits: Callable[[AsyncEventBus], Coroutine[Any, Any, None]], at: str, expected: str
) -> None:
    async def main() -> None:
        async with AsyncEventBus(name="desk") as bus:
            await asyncio.create_task(waits(bus), name="main")
            await asyncio.Event().wait()

    with pytest.raises(Deadlock) as caught:
        run(main())
    place = f"{waits.__name__}.*\\({re.escape(__file__)}:{line_of(waits, at)}\\).*"
    (line,) = [each for each in caught.value.waiting if re.match(expected + place, each)]
    if waits is waits_for_a_task:
        assert line.endswith(", for child")
    if waits is waits_for_two_tasks:
        assert re.search(r", for Task-\d+ and other$", line)


def test_tasks_of_libraries_that_wait_come_behind_those_of_the_users_code() -> None:
    async def main() -> None:
        async with AsyncEventBus(name="desk") as bus:
            await bus.subscribe("TRADE", print)  # its task waits for events
            await asyncio.create_task(waits_for_ever(), name="last")

    with pytest.raises(Deadlock) as caught:
        run(main())
    first, second, third = (line.partition(":")[0] for line in caught.value.waiting)
    assert (second, third) == ("last", "aiobus desk print(TRADE)")
    assert first.startswith("Task-")


def test_a_task_in_a_generator_is_named_with_the_line_of_the_generator() -> None:
    async def numbers() -> Any:
        yield 1
        await waits_for_ever()

    async def main() -> None:
        async for _ in numbers():
            pass

    with pytest.raises(Deadlock) as caught:
        run(main())
    (line,) = caught.value.waiting
    assert "main (" in line


def test_after_a_deadlock_tasks_are_cancelled_and_clean_up() -> None:
    ended = []

    async def main() -> None:
        try:
            await waits_for_ever()
        finally:
            await asyncio.sleep(1)
            ended.append(loop().time())

    with pytest.raises(Deadlock):
        run(main())
    assert ended == [1.0]


def test_a_task_that_will_not_end_is_a_deadlock_again_and_does_not_hang() -> None:
    async def main() -> None:
        try:
            await waits_for_ever()
        finally:
            await waits_for_ever()

    with pytest.raises(Deadlock):
        run(main())


def test_a_bus_whose_loop_nothing_can_wake_is_a_deadlock_as_its_watch_sets_no_timer() -> None:
    async def main() -> None:
        async with AsyncEventBus(name="desk") as bus:
            await bus.wait_for("NEVER")

    with pytest.raises(Deadlock, match="after 0 s"):
        run(main())


@pytest.mark.parametrize("start", ["now", float("nan"), None])
def test_a_start_that_is_no_time_is_refused_with_its_value(start: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"start={start!r}: Unix seconds are needed")):
        VirtualLoop(start=start)


# Runs repeat.


def test_sets_of_tasks_and_futures_iterate_in_the_order_in_which_they_were_made() -> None:
    async def main() -> tuple[list[int], list[int]]:
        futures = [asyncio.get_running_loop().create_future() for _ in range(200)]
        tasks = [asyncio.ensure_future(asyncio.sleep(1)) for _ in range(200)]
        done, _ = await asyncio.wait(tasks)
        return [futures.index(each) for each in set(futures)], [tasks.index(each) for each in done]

    futures, tasks = run(main())
    assert sorted(futures) == sorted(tasks) == list(range(200))
    assert (futures, tasks) == run(main())


def test_a_task_has_a_name_and_a_context_and_is_made_by_the_programs_factory_if_any() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    context = contextvars.copy_context()
    context.run(variable.set, 7)

    async def value() -> int:
        return variable.get()

    async def main() -> tuple[str, str, int, str]:
        unnamed = asyncio.create_task(value())
        named = asyncio.create_task(value(), name="named", context=context)
        seven = await named
        loop().set_task_factory(
            lambda loop, coro, **options: asyncio.Task(coro, loop=loop, name="made")
        )
        made = asyncio.create_task(value())
        await asyncio.gather(unnamed, made)
        return unnamed.get_name(), named.get_name(), seven, type(made).__module__

    unnamed, named, seven, module = run(main())
    assert (unnamed.partition("-")[0], named, seven, module) == ("Task", "named", 7, "_asyncio")


async def market() -> list[Any]:
    """Two buses over a lossy network in a flood, with sleeps, timeouts and waiters: what was seen,
    and when.
    """
    seen: list[Any] = []
    network = MemoryNetwork(seed=3, faults=Faults(loss=0.1, reorder=0.1, delay=0.01))
    async with network.bus("feed") as feed, network.bus("bot") as bot:

        async def handle(event: Event) -> None:
            seen.append((event.seq, event.timestamp, loop().time()))
            await asyncio.sleep(0.001 * (event.seq % 3))

        await bot.subscribe("A", handle, concurrency=4, maxsize=50)
        await feed.subscribe("A", handle, overflow="block", maxsize=2)

        async def publish() -> None:
            for number in range(100):
                await feed.publish(Event("A", number))

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(publish())
        await network.settle(60)
        seen.append((network.lost, network.reordered, network.delivered))
    return seen


def test_a_flood_over_a_lossy_network_is_the_same_in_each_run_to_the_last_clock_reading() -> None:
    first = run(market())
    assert len(first) > 800
    assert run(market()) == first


def test_buses_of_two_loops_do_not_disturb_each_other() -> None:
    def elsewhere() -> None:
        results.append(run(market()))

    results: list[list[Any]] = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    results.append(run(market()))
    thread.join()
    assert results[0] == results[1]


# What there is not.


@pytest.mark.parametrize("name", ABSENT)
def test_what_comes_from_outside_is_refused_with_its_name_and_a_way_out(name: str) -> None:
    assert hasattr(asyncio.AbstractEventLoop, name), "the loops of asyncio have it"
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        text = re.escape(f"loop.{name}() was refused: a VirtualLoop has no") + ".*MemoryNetwork"
        with pytest.raises(LeavesProcess, match=text):
            getattr(runner.get_loop(), name)()


def test_a_signal_handler_is_refused_as_where_there_are_no_signals() -> None:
    """Programs that catch this go on without, and nothing leaves the process by it."""

    async def main() -> None:
        with pytest.raises(NotImplementedError, match="has no signals"):
            loop().add_signal_handler(signal.SIGTERM, print)

    run(main())


async def test_every_method_of_a_loop_is_there_or_refused() -> None:
    """A method that is new in asyncio would else end in an error without a way out."""
    of_base = {name for name in dir(asyncio.BaseEventLoop) if not name.startswith("_")}
    of_sockets = {name for name in dir(asyncio.SelectorEventLoop) if not name.startswith("_")}
    assert of_sockets - of_base <= set(dir(VirtualLoop))


def test_a_thread_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(LeavesProcess, match="run_in_executor"):
            await asyncio.to_thread(time.sleep, 0)

    run(main())


def test_another_thread_cannot_call_the_loop() -> None:
    errors: list[BaseException] = []

    def call(target: asyncio.AbstractEventLoop) -> None:
        try:
            target.call_soon_threadsafe(print)
        except RuntimeError as error:
            errors.append(error)

    async def main() -> None:
        thread = threading.Thread(target=call, args=(loop(),))
        thread.start()
        thread.join()
        loop().call_soon_threadsafe(called.append, 1)
        await asyncio.sleep(0)

    called: list[int] = []
    run(main())
    assert called == [1]
    assert "from another thread" in str(errors[0])


def test_a_bus_with_sockets_does_not_start_and_says_why(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(LeavesProcess, match="MemoryNetwork"):
            await AsyncEventBus(f"ipc://{tmp_path}/desk", name="feed").start()

    async def again() -> None:
        async with AsyncEventBus(f"ipc://{tmp_path}/desk", name="feed"):
            pass

    run(main())
    asyncio.run(again())  # nothing was left open, and so the name is free


def test_a_silent_peer_is_said_to_be_stale_after_three_virtual_seconds() -> None:
    async def main() -> list[tuple[str, float]]:
        network = MemoryNetwork()
        seen: list[tuple[str, float]] = []
        async with network.bus("feed") as feed, network.bus("bot") as bot:
            await bot.subscribe(
                ["aiobus.stale", "aiobus.fresh"],
                lambda event: seen.append((event.type, loop().time())),
            )
            await feed.flush()
            network.partition({"feed"}, {"bot"})
            await asyncio.sleep(30)
            network.heal()
            await asyncio.sleep(5)
        return seen

    (stale, silent), (fresh, heard) = run(main())
    assert (stale, fresh) == ("aiobus.stale", "aiobus.fresh")
    assert 3 <= silent <= 5
    assert 30 <= heard <= 32


def test_it_shows_its_time() -> None:
    async def main() -> str:
        await asyncio.sleep(1.5)
        return repr(loop())

    assert run(main()) == "<VirtualLoop at 1.5 s>"


def test_a_stream_that_is_made_before_its_loop_runs_follows_the_time_of_that_loop() -> None:
    """No time passes, so its turn does not end, however long its body takes."""
    bus = AsyncEventBus()
    stream = bus.stream("TRADE")
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1

    async def consume() -> int:
        async with bus, stream:
            for number in range(20):
                bus.publish_nowait(Event("TRADE", number))
            asyncio.get_running_loop().call_soon(count)
            for _ in range(20):
                await anext(stream)
                until = time.perf_counter() + 0.001
                while time.perf_counter() < until:
                    pass
            return turns

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(consume()) == 0


# Pace.


def test_at_a_speed_time_passes_so_many_times_as_fast_as_real_time() -> None:
    async def main() -> tuple[float, float]:
        began = time.monotonic()  # not later: time passes from the next call on
        loop().run_at(100)
        await asyncio.sleep(5)
        passed = time.monotonic() - began
        loop().run_at(None)
        await asyncio.sleep(DAY)
        return passed, loop().time()

    passed, at = run(main())
    assert passed >= 0.05
    assert at == 5 + DAY


@pytest.mark.parametrize("speed", [0, -1, float("inf"), float("nan"), "1", True])
def test_a_speed_that_is_none_is_refused(speed: Any) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="speed="):
            loop().run_at(speed)

    run(main())


def test_a_clock_that_was_set_leaves_timers_as_they_are() -> None:
    async def main() -> None:
        sleeping = asyncio.ensure_future(asyncio.sleep(10))
        await asyncio.sleep(1)
        loop().set_wall_time(START + DAY)
        assert clock.time() == START + DAY
        await sleeping
        assert loop().time() == 10
        assert clock.time() == START + DAY + 9

    run(main())


def test_with_a_stopped_clock_no_timer_runs_until_another_thread_lets_it_go_on() -> None:
    async def main() -> list[str]:
        here, seen = loop(), list[str]()

        def let_go() -> None:
            is_stopped.wait(20)
            seen.append("thread")
            here.stand_still(False)

        is_stopped = threading.Event()
        thread = threading.Thread(target=let_go)
        thread.start()
        here.run_at(1000)
        here.stand_still(True)
        here.call_later(0.001, seen.append, "timer")
        here.call_soon(seen.append, "ready")
        here.call_soon(is_stopped.set)
        await here.until_moving()
        await asyncio.sleep(1)
        thread.join()
        await here.until_moving()
        return seen

    assert run(main()) == ["ready", "thread", "timer"]


def test_real_time_in_which_the_clock_stood_is_not_caught_up_with() -> None:
    async def main() -> float:
        here, began = loop(), 0.0

        def let_go() -> None:
            nonlocal began
            began = time.monotonic()
            here.stand_still(False)

        here.run_at(1)
        here.stand_still(True)
        timer = threading.Timer(0.3, let_go)
        timer.start()
        await here.until_moving()
        timer.join()
        await asyncio.sleep(0.25)
        return time.monotonic() - began

    assert run(main()) >= 0.2
