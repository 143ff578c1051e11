"""What do bots notice of an observer that is subscribed to everything, as `aiobus tail` is?

A publisher and a strategy, in a process each, have in turns within one run: a second subscriber to
everything that is a bus as any other; the same as an observer; and an observer that is frozen
(SIGSTOP). Each round is a burst at full rate, and then one at 100,000 events a second, or what the
machine gives. What counts is the events a second that the strategy has handled, from the first that
was published to the last. Goal, beside an observer and beside a frozen one, in both bursts: 90 % of
that beside a second subscriber (the median of the ratios within a round); every event comes, in
order; and `flush` returns [] beside the frozen one. Run: python -m perf.observer
"""

import argparse
import asyncio
import contextlib
import logging
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator

from aiobus import AsyncEventBus, Event, EventStream, EventType
from perf.frozen import LOOPS, START_SECONDS, by_round

ROUNDS = 7
EVENTS = 60_000
RATE = 100_000
PULSE_SECONDS = 0.001
GOAL = 0.9
BURST_SECONDS = 60.0
NEIGHBOURS = ("subscriber", "observer", "frozen")
"""What is beside the strategy."""


# The other processes.


async def watch(bus: AsyncEventBus) -> None:
    """Be the strategy: tell at the end of each burst how many events are missing or out of order,
    and the wall clock of the last.
    """
    expected = wrong = 0

    async def on_event(event: Event[int]) -> None:
        nonlocal expected, wrong
        wrong += event.data != expected
        expected = event.data + 1
        if expected == EVENTS:
            await bus.publish(Event("CAME", [wrong, time.time()]))
            expected = wrong = 0

    await bus.subscribe(EventType.TRADE, on_event)


async def play(role: str, url: str) -> None:
    """Be the strategy or its neighbour until stdin ends, as it does however the publisher ends."""
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), end.set)
    name = "strategy" if role == "strategy" else "second"
    async with AsyncEventBus(url, name=name, observer=role in ("observer", "frozen")) as bus:
        if role == "strategy":
            await watch(bus)
        else:
            await bus.subscribe("*", lambda event: None)
        await bus.publish(Event("READY", role))
        await end.wait()
        loop.remove_reader(sys.stdin.fileno())


@contextlib.asynccontextmanager
async def beside(bus: AsyncEventBus, role: str, loop: str) -> AsyncIterator[None]:
    """A process that is subscribed on entry and dead on exit."""
    async with bus.stream("READY") as ready:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "perf.observer"),
            *("--role", role, "--url", bus.url, "--loop", loop),
            stdin=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                await anext(ready)
            if role == "frozen":
                process.send_signal(signal.SIGSTOP)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # what it has not handled yet is of no interest
            await process.wait()


# The publisher's process.


async def burst(bus: AsyncEventBus, reports: EventStream, rate: float) -> float:
    """Publish a burst, at full rate or so many events a second; return the events a second that the
    strategy has handled.
    """
    begin, number = time.time(), 0
    while number < EVENTS:
        due = min(EVENTS, int((time.time() - begin) * rate)) if rate else EVENTS
        while number < due:
            await bus.publish(Event(EventType.TRADE, number, key="BTCUSDT"))
            number += 1
        if rate:
            await asyncio.sleep(PULSE_SECONDS)
    async with asyncio.timeout(BURST_SECONDS):
        wrong, end = (await anext(reports)).data
    if wrong:
        raise RuntimeError(f"{wrong} events were lost or out of order")
    if missing := await bus.flush():
        raise RuntimeError(f"flush named {', '.join(missing)}")
    return EVENTS / float(end - begin)


async def measure(loop: str) -> dict[tuple[str, int], list[float]]:
    """The events a second of each round, by neighbour and rate; 0 is full rate."""
    seen: dict[tuple[str, int], list[float]] = {
        (role, rate): [] for rate in (0, RATE) for role in NEIGHBOURS
    }
    with tempfile.TemporaryDirectory(prefix="ab") as folder:
        async with (
            AsyncEventBus(f"ipc://{folder}/d", name="publisher") as bus,
            bus.stream("CAME") as reports,
            beside(bus, "strategy", loop),
        ):
            await burst(bus, reports, 0)  # fills history
            for number in range(ROUNDS):
                first = number % len(NEIGHBOURS)
                for role in NEIGHBOURS[first:] + NEIGHBOURS[:first]:
                    async with beside(bus, role, loop):
                        for rate in (0, RATE):
                            seen[role, rate].append(await burst(bus, reports, rate))
                    while "second" in [each.name for each in bus.peers]:  # noqa: ASYNC110 - none is told of observers
                        await asyncio.sleep(0.01)
    return seen


def judge(loops: list[str]) -> int:
    """Print a line for each loop, neighbour and rate; 1 when a goal is missed."""
    missed = 0
    for loop in loops:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            seen = runner.run(measure(loop))
        for (role, rate), rates in seen.items():
            share = by_round(rates, seen["subscriber", rate])
            is_missed = share < GOAL
            missed += is_missed
            print(
                f"observer   {loop:8} {f'at {rate:,} /s' if rate else 'at full rate':15}"
                f" beside {role:10} {statistics.median(rates):8,.0f} /s"
                f"  (from {min(rates):,.0f} to {max(rates):,.0f})"
                f"  {share:4.0%} of that beside a second subscriber:"
                f" {'missed' if is_missed else 'held'}"
            )
    return int(missed > 0)


def main() -> int:
    """Measure, or be one of the subscribers."""
    logging.getLogger("aiobus").setLevel(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", help="be this subscriber; the others go with it")
    parser.add_argument("--url")
    parser.add_argument("--loop", choices=LOOPS, help="only on this kind of loop")
    given = parser.parse_args()
    if given.role is None:
        return judge([given.loop] if given.loop else list(LOOPS))
    with asyncio.Runner(loop_factory=LOOPS[given.loop]) as runner:
        runner.run(play(given.role, given.url))
    return 0


if __name__ == "__main__":
    sys.exit(main())
