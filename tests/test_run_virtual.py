"""`run_virtual` runs a program in virtual time, wherever it is called from, and twice the same."""

import asyncio
import contextvars
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from aiobus import (
    AsyncEventBus,
    Deadlock,
    Event,
    EventType,
    LeavesProcess,
    RequestTimeout,
    clock,
    run_virtual,
)
from aiobus.codec import encode
from aiobus.testing import Faults, MemoryNetwork
from aiobus.virtual_loop import START

DAY = 86_400.0


async def a_day() -> float:
    """What the public clock tells after a day of sleep."""
    await asyncio.sleep(DAY)
    return clock.time()


def test_a_coroutine_or_a_coroutine_function_runs_to_its_end_and_its_result_is_returned() -> None:
    assert run_virtual(a_day()) == run_virtual(a_day) == START + DAY


def test_it_begins_when_it_was_asked_to() -> None:
    assert run_virtual(a_day(), start=0) == DAY


def test_what_it_raises_is_raised() -> None:
    async def main() -> None:
        await asyncio.sleep(1)
        raise ValueError("no price")

    with pytest.raises(ValueError, match="no price") as caught:
        run_virtual(main())
    assert caught.value.__context__ is None


@pytest.mark.parametrize("main", [None, 1, "main"])
def test_what_is_no_coroutine_is_refused_with_its_value(main: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"main={main!r}: a coroutine is needed")):
        run_virtual(main)


def test_a_coroutine_that_does_not_begin_as_another_argument_is_wrong_is_closed() -> None:
    main = a_day()
    with pytest.raises(ValueError, match="start="):
        run_virtual(main, start=float("inf"))
    assert main.cr_frame is None


def test_timers_timeouts_queues_groups_requests_and_max_age_are_in_virtual_time() -> None:
    async def main() -> list[tuple[str, float]]:
        loop, seen = asyncio.get_running_loop(), []

        def note(what: str) -> None:
            seen.append((what, loop.time()))

        async with AsyncEventBus(name="desk", on_error="raise") as bus:
            loop.call_later(5, note, "timer")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.Queue[int]().get(), 10)
            note("wait_for")
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(20))
            note("group")
            await bus.subscribe("ORDER", lambda event: None)
            with pytest.raises(RequestTimeout):
                await bus.request(Event("ORDER", 1), "FILL", timeout=30)
            note("request")

            async def slow(event: Event) -> None:
                assert event.timestamp == clock.time() or event.data == "first"
                await asyncio.sleep(100)

            quotes = await bus.subscribe("QUOTE", slow, max_age=60)
            for each in ("first", "too old"):
                await bus.publish(Event("QUOTE", each))
            await bus.settle(1000)
            note("max_age")
            assert (quotes.stats.handled, quotes.stats.expired) == (1, 1)
        return seen

    began = time.perf_counter()
    assert run_virtual(main()) == [
        *(("timer", 5.0), ("wait_for", 10.0), ("group", 30.0), ("request", 60.0)),
        ("max_age", 160.0),
    ]
    assert time.perf_counter() - began < 60


# Where a loop runs already.


async def test_inside_a_loop_a_thread_of_its_own_runs_it_and_the_loop_stands_still() -> None:
    turns: list[int] = []
    asyncio.get_running_loop().call_soon(turns.append, 1)
    ran_in: list[int] = []

    async def main() -> float:
        ran_in.append(threading.get_ident())
        return await a_day()

    assert run_virtual(main()) == START + DAY
    assert turns == []
    assert ran_in != [threading.get_ident()]
    await asyncio.sleep(0)
    assert turns == [1]


async def test_inside_a_loop_errors_and_refusals_are_raised_where_it_was_called() -> None:
    async def wrong() -> None:
        raise ValueError("no price")

    async def leaves() -> None:
        os.system("true")  # noqa: ASYNC221

    async def waits() -> None:
        await asyncio.Event().wait()

    for main, error in ((wrong, ValueError), (leaves, LeavesProcess), (waits, Deadlock)):
        with pytest.raises(error):
            run_virtual(main())


async def test_context_variables_of_the_caller_are_seen() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(7)

    async def main() -> int:
        return variable.get()

    assert run_virtual(main()) == 7


async def test_a_bus_of_the_callers_loop_is_of_another_loop_there() -> None:
    async with AsyncEventBus() as bus:

        async def main() -> None:
            await bus.publish(Event("A", 1))

        with pytest.raises(Exception, match="belongs to the event loop of another thread"):
            run_virtual(main())


CTRL_C = """
import asyncio, signal, time
import uvloop
from aiobus import run_virtual

async def main():
    try:
        print("runs", flush=True)
        while True:
            await asyncio.sleep(60)
    finally:
        time.sleep(0.2)
        print("cleans up", flush=True)

async def inside():
    run_virtual(main())

try:
    {call}
finally:
    print("ended", flush=True)
"""
WAYS = {
    "alone": "run_virtual(main())",
    "in asyncio": "asyncio.run(inside())",
    "in uvloop": "uvloop.run(inside())",
    "in a loop that handles it": (
        "async def handles():\n"
        "        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, int)\n"
        "        run_virtual(main())\n"
        "    asyncio.run(handles())"
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_ends_it_wherever_it_was_called(way: str) -> None:
    code = CTRL_C.format(call=WAYS[way])
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "runs\n"
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert out == "cleans up\nended\n"
    assert errors.splitlines()[-1] == "KeyboardInterrupt"


async def test_the_handler_of_ctrl_c_is_what_it_was_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    run_virtual(a_day())
    assert signal.getsignal(signal.SIGINT) is before


# Twice the same.

BARS = 10_080


def row(event: Event[Any]) -> bytes:
    """The event as it travels."""
    return encode(event.seq, event.timestamp, event.type, event.key, event.data, event.cause, 2**20)


async def a_week_of_bars() -> list[bytes]:
    """Minute bars, a timer for each, and an order when it runs out: every row that was seen."""
    rows: list[bytes] = []

    async with AsyncEventBus(name="desk", on_error="raise") as bus:
        loop = asyncio.get_running_loop()

        def order(bar: Event) -> None:
            bus.publish_nowait(Event(EventType.ORDER, {"price": bar.data}, key=bar.key))

        def on_bar(bar: Event) -> None:
            rows.append(row(bar))
            loop.call_later(30, order, bar)

        await bus.subscribe("BAR", on_bar)
        await bus.subscribe(EventType.ORDER, lambda event: rows.append(row(event)))
        for number in range(BARS):
            await bus.publish(Event("BAR", 39_000 + number % 7, key="BTCUSDT"))
            await asyncio.sleep(60)
        await bus.settle()
    return rows


def test_a_week_of_minute_bars_with_a_timer_each_is_twice_the_same_byte_for_byte() -> None:
    first = run_virtual(a_week_of_bars())
    assert len(first) == 2 * BARS
    assert run_virtual(a_week_of_bars()) == first


async def flood() -> list[Any]:
    """Two buses over a lossy network and one alone, with every overflow policy, calls at once,
    requests, streams and timers: what was seen, and when.
    """
    seen: list[Any] = []
    loop = asyncio.get_running_loop()

    def note(who: str, event: Event[Any]) -> None:
        seen.append((who, event.id, row(event), loop.time()))

    def slow(who: str, seconds: float) -> Any:
        async def handle(event: Event[Any]) -> None:
            note(who, event)
            await asyncio.sleep(seconds * (1 + event.seq % 3))

        return handle

    network = MemoryNetwork(seed=5, faults=Faults(loss=0.05, reorder=0.1, delay=0.01))
    symbols = {f"S{number}" for number in range(12)}
    async with network.bus("feed") as feed, network.bus("bot") as bot, AsyncEventBus() as desk:
        for bus in (feed, bot, desk):
            for policy in ("catch_up", "block", "latest", "drop_oldest"):
                await bus.subscribe(
                    {"TRADE", "QUOTE"},
                    slow(f"{bus.url} {policy}", 0.002),
                    key=symbols - {"S3"},
                    overflow=policy,
                    maxsize=20,
                    max_age=2.0,
                )
            await bus.subscribe("*", slow("at once", 0.01), concurrency=4)
        sent = asyncio.Queue[Event[Any]]()

        async def fill(event: Event[Any]) -> None:
            await asyncio.sleep(0.05)
            await bot.publish(Event("FILL", event.data))

        async def read() -> None:
            async with bot.stream(["TRADE", "aiobus.gap"], maxsize=8) as events:
                async for event in events:
                    seen.append(("stream", event.id, event.type, loop.time()))
                    await asyncio.sleep(0.003)

        async def ask(number: int) -> None:
            try:
                reply = await feed.request(Event("ORDER", number), "FILL", timeout=0.2)
                note("reply", reply)
            except RequestTimeout as error:
                seen.append(("no reply", error.event.id, loop.time()))

        async def publish(bus: AsyncEventBus, kind: str) -> None:
            for number in range(150):
                key = f"S{number * 7 % 12}"
                await sent.put(await bus.publish(Event(kind, number, key=key)))
                if number % 40 == 0:
                    await asyncio.sleep(0.001)

        await bot.subscribe("ORDER", fill, concurrency=2)
        reader = asyncio.create_task(read())
        async with asyncio.TaskGroup() as group:
            for bus in (feed, bot, desk):
                for kind in ("TRADE", "QUOTE"):
                    group.create_task(publish(bus, kind))
            for number in range(10):
                group.create_task(ask(number))
        await network.settle(600)
        await desk.settle(600)
        reader.cancel()
        await asyncio.wait([reader])
        seen += [each.stats for bus in (feed, bot, desk) for each in bus._subscriptions]
        seen.append((sent.qsize(), network.lost, network.reordered, loop.time()))
    return seen


def digest() -> str:
    """Of one run, for a process of its own."""
    import hashlib

    seen = run_virtual(flood())
    kinds = {each[0] for each in seen if isinstance(each, tuple)}
    assert {"at once", "stream", "reply"} <= kinds, kinds
    return f"{len(seen)} {hashlib.sha256(repr(seen).encode()).hexdigest()}"


@pytest.mark.slow
def test_a_flood_is_the_same_in_ten_runs_under_five_hash_seeds() -> None:
    code = "import test_run_virtual; print(*(test_run_virtual.digest() for _ in range(2)), sep='|')"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])

    def run(seed: int) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": path}
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    runs: list[str] = []
    for seed in range(5):
        with run(seed) as process:
            out, errors = process.communicate(timeout=50)
        assert process.returncode == 0, errors
        runs += out.strip().split("|")
    assert len(runs) == 10
    assert len(set(runs)) == 1
    assert int(runs[0].split()[0]) > 1_000
