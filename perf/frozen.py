"""What does a publisher notice of a subscriber that is frozen, or ten times too slow?

A publisher at full rate and a healthy subscriber, alone and beside a frozen one (SIGSTOP) or a slow
one (it sleeps), in turns within one run; beside a second healthy one as well, which shows how much
is the cost of one more subscriber and how much of its being slow. Measured: the publisher's
throughput (goal: 90 % of that alone) and that the healthy one got every event, in order. Real
processes over ipc, on both loops.
The publisher has a processor of its own where there are two: what is asked is what it notices of
others through the bus, not through the scheduler. Run: python -m perf.frozen
"""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median

import uvloop

from aiobus import AsyncEventBus, Event

ROUNDS = 5
EVENTS = 20_000
GOAL = 0.9
SLOW = 0.001  # seconds of sleep
SLOW_EVERY = 10  # events, so that it handles 10,000 a second at most

Factory = Callable[[], asyncio.AbstractEventLoop]
LOOPS: dict[str, Factory] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def healthy(bus: AsyncEventBus) -> None:
    """Count what comes, and say at the end of each round whether it was complete and in order."""
    seen: list[int] = []

    async def on_event(event: Event) -> None:
        if event.type == "END":
            complete = seen == list(range(EVENTS))
            seen.clear()
            await bus.publish(Event("RESULT", complete))
        else:
            seen.append(event.data)

    await bus.subscribe(("TRADE", "END"), on_event)
    await live(bus)


async def another(bus: AsyncEventBus) -> None:
    """Handle everything, and keep nothing."""
    await bus.subscribe("TRADE", lambda event: None)
    await live(bus)


async def slow(bus: AsyncEventBus) -> None:
    """Handle a tenth, or less, of what a publisher at full rate sends."""
    count = 0

    async def on_event(event: Event) -> None:
        nonlocal count
        count += 1
        if count % SLOW_EVERY == 0:
            await asyncio.sleep(SLOW)

    await bus.subscribe("TRADE", on_event)
    await live(bus)


async def live(bus: AsyncEventBus) -> None:
    """Say that the subscriptions are live; wait for the end."""
    await bus.publish(Event("READY", None))
    await bus.wait_closed()


def take_processors(*, is_publisher: bool) -> None:
    """The first for the publisher and its ZeroMQ thread, the others for everybody else."""
    if hasattr(os, "sched_setaffinity") and (count := os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {0} if is_publisher else set(range(1, count)))


async def play(role: str, url: str) -> None:
    """Be a subscriber."""
    async with AsyncEventBus(url, name=role) as bus:
        task = asyncio.ensure_future({"healthy": healthy, "another": another}.get(role, slow)(bus))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def start(bus: AsyncEventBus, role: str, loop: str) -> asyncio.subprocess.Process:
    """A subscriber in a process of its own, live on return."""
    async with bus.stream("READY") as ready:
        arguments = ("-m", "perf.frozen", role, bus.url, loop)
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments)
        await anext(ready)
    return process


async def run(bus: AsyncEventBus) -> tuple[float, bool]:
    """Events a second of one round, and whether the healthy subscriber got all in order."""
    async with bus.stream("RESULT") as results:
        begin = time.perf_counter()
        for number in range(EVENTS):
            await bus.publish(Event("TRADE", number, key="BTCUSDT"))
        rate = EVENTS / (time.perf_counter() - begin)
        await bus.publish(Event("END", None))
        return rate, (await anext(results)).data


async def measure(loop: str) -> tuple[dict[str, list[float]], bool]:
    """The rates of all rounds: alone, and beside another, a frozen and a slow subscriber."""
    rates: dict[str, list[float]] = {"alone": [], "another": [], "frozen": [], "slow": []}
    is_complete = True
    with tempfile.TemporaryDirectory(prefix="ab") as folder:
        async with AsyncEventBus(f"ipc://{folder}/desk", name="publisher") as bus:
            listener = await start(bus, "healthy", loop)
            await run(bus)  # warm
            for _ in range(ROUNDS):
                for beside, seen in rates.items():
                    other = None if beside == "alone" else await start(bus, beside, loop)
                    if other is not None and beside == "frozen":
                        other.send_signal(signal.SIGSTOP)
                    rate, all_came = await run(bus)
                    seen.append(rate)
                    is_complete &= all_came
                    if other is not None:
                        other.kill()
                        await other.wait()
            listener.terminate()
            await listener.wait()
    return rates, is_complete


def main() -> int:
    """Print what was seen; 1 when a goal is missed."""
    if len(sys.argv) == 4:
        role, url, loop = sys.argv[1:]
        take_processors(is_publisher=False)
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(play(role, url))
        return 0
    is_missed = False
    take_processors(is_publisher=True)
    for loop, factory in LOOPS.items():
        with asyncio.Runner(loop_factory=factory) as runner:
            rates, is_complete = runner.run(measure(loop))
        alone = median(rates["alone"])
        for beside, seen in rates.items():
            ratio = median(seen) / alone
            print(f"{loop:8} {beside:7} {median(seen):9,.0f} events/s   {ratio:4.0%} of alone")
            is_missed |= ratio < GOAL and beside != "another"
        if not is_complete:
            print(f"{loop:8} the healthy subscriber missed events, or got them out of order")
        is_missed |= not is_complete
    if is_missed:
        print(f"a goal was missed: {GOAL:.0%} of the throughput, and every event in order")
    return int(is_missed)


if __name__ == "__main__":
    sys.exit(main())
