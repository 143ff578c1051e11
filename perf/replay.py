"""What does recording a strategy cost, and how fast is it verified?

Measured on both loops: the time of the loop's thread for each event that a strategy handles, beside
the same strategy that is not recorded (goal: 4 us more). The strategy handles trades and publishes
a signal for each tenth; once its handler suspends each time as well. A recording without a tape is
shown beside it. Then the file is verified: entries of the tape a second, with the time that reading
and checking the file takes (goal: 20,000), and by how much memory a million events take beyond
what it takes to check the file (goal: 16 MiB). Run: python -m perf.replay
"""

import asyncio
import gc
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from aiobus import AsyncEventBus, Event, Journal, record, verify

EVENTS = 50_000
STRETCH = 500
"""Events that are published in one go: so many fit into each inbox."""
ROUNDS = 3
GOAL_MORE_US = 4.0
GOAL_RATE = 20_000
LONG = 1_000_000
GOAL_GROWTH_KIB = 16 * 1024

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


async def runs_through(bus: AsyncEventBus) -> None:
    """A strategy whose handler does not wait."""
    count = 0

    async def on_trade(trade: Event) -> None:
        nonlocal count
        count += 1
        if count % 10 == 0:
            await bus.publish(Event("SIGNAL", {"count": count}, key=trade.key))

    await bus.subscribe("TRADE", on_trade)


async def suspends(bus: AsyncEventBus) -> None:
    """The same, and its handler waits each time."""
    count = 0

    async def on_trade(trade: Event) -> None:
        nonlocal count
        count += 1
        await asyncio.sleep(0)
        if count % 10 == 0:
            await bus.publish(Event("SIGNAL", {"count": count}, key=trade.key))

    await bus.subscribe("TRADE", on_trade)


STRATEGIES = {"runs through": runs_through, "suspends": suspends}


async def cost(name: str, path: Path | None, *, is_attached: bool, events: int = EVENTS) -> float:
    """Microseconds of the loop's thread for each event."""
    strategy = STRATEGIES[name]
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(AsyncEventBus(name="desk"))
        recording = None
        if path is not None:
            attach = strategy if is_attached else None
            recording = await stack.enter_async_context(record(bus, path, attach=attach))
        if not is_attached:
            await strategy(bus)
        gc.collect()
        begin = time.thread_time()
        for first in range(0, events, STRETCH):
            for number in range(first, first + STRETCH):
                await bus.publish(Event("TRADE", {"price": 39_000.5, "number": number}, key="BTC"))
            await bus.settle(60)
            if recording is not None:
                await recording.flush(60)
        return (time.thread_time() - begin) / events * 1e6


def checked(path: str, name: str) -> None:
    """Verify, and print the entries a second, and by how many KiB the memory grew beyond what it
    takes to check the file. In a process of its own.
    """
    with Journal(path) as journal:
        journal.verify()
    early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    report = verify(path, STRATEGIES[name])
    took = time.perf_counter() - begin
    assert report, report
    print(report.steps / took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - early)


def checked_apart(path: Path, name: str) -> tuple[float, int]:
    """What `checked` prints in a process of its own."""
    told = [sys.executable, "-m", "perf.replay", str(path), name]
    rate, size = subprocess.run(told, capture_output=True, check=True, text=True).stdout.split()
    return float(rate), int(size)


def judge() -> int:
    """Print a line for each figure; 1 when a goal is missed."""
    missed = []

    def say(name: str, figure: str, goal: str, is_held: bool) -> None:
        print(f"replay     {name:40} {figure:54} goal {goal}: {'held' if is_held else 'missed'}")
        if not is_held:
            missed.append(name)

    with tempfile.TemporaryDirectory(prefix="replay-", dir=Path.cwd()) as made:
        folder = Path(made)
        for loop, factory in LOOPS.items():
            for name in STRATEGIES:
                best = [float("inf")] * 3
                path = folder
                for turn in range(ROUNDS):
                    for way in range(3):
                        path = folder / f"{loop}-{name[:1]}-{turn}-{way}.db"
                        with asyncio.Runner(loop_factory=factory) as runner:
                            us = runner.run(cost(name, path if way else None, is_attached=way == 2))
                        best[way] = min(best[way], us)
                alone, recorded, attached = best
                say(
                    f"an event, {loop}, the handler {name}",
                    f"{alone:.2f} us, recorded +{recorded - alone:.2f},"
                    f" attached +{attached - alone:.2f}",
                    f"+{GOAL_MORE_US:g} us",
                    attached - alone <= GOAL_MORE_US,
                )
                rate, _ = checked_apart(path, name)
                say(
                    "entries verified",
                    f"{rate:,.0f} a second",
                    f"{GOAL_RATE:,}",
                    rate >= GOAL_RATE,
                )
        path = folder / "long.db"
        asyncio.run(cost("runs through", path, is_attached=True, events=LONG))
        _, growth = checked_apart(path, "runs through")
        say(
            f"memory for {LONG:,} events",
            f"{growth / 1024:.0f} MiB more than to check the file",
            "16 MiB",
            growth <= GOAL_GROWTH_KIB,
        )
    if missed:
        print(f"missed: {'; '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        checked(*sys.argv[1:])
        sys.exit(0)
    sys.exit(judge())
