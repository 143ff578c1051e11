"""What do a publisher and a healthy subscriber notice of one that is frozen, or ten times too slow?

Beside the healthy subscriber there are, in turns within one run, none; a frozen one (SIGSTOP);
one that takes ten times as long for an event, asleep; both of these; and a second healthy one. On
two cores any neighbour is felt, since all subscribers share the core that the publisher leaves
them: so what the bad neighbours cost is compared with what a good one costs. Each round is a burst
at full rate, then two seconds at 5,000 events a second while the slow one is still catching up.
Goals, beside each of the bad ones and both: the publisher's events a second in the burst are 90 %
of those beside none; the healthy one's p99 at the steady rate is at most 1.1 x of that beside a
second healthy one (each the median of the ratios within a round); every event comes, in order. Real
processes over ipc, on both loops. On Linux the publisher has a core to itself, since it is not to
be slower because there are more processes than cores. Run: python -m perf.frozen
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import uvloop

from aiobus import AsyncEventBus, Event, EventStream, EventType

ROUNDS = 11
EVENTS = 60_000
STEADY_EVENTS = 10_000
STEADY_RATE = 5_000
PULSE_SECONDS = 0.002
GOAL = 0.9
GOAL_P99 = 1.1
SLOWER = 10
NAP_EVENTS = 20
"""Events between two naps of the slow one: the timers of both loops are no finer than 1 ms, and a
nap is then some 3 ms. With 200, what it does between two naps are bursts of 2 to 3 ms on a core
that the healthy one shares, and its p99 is that of the kernel's time slices (1.8 to 2.3 x).
"""
START_SECONDS = 20.0
ROUND_SECONDS = 30.0

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
NEIGHBOURS = {
    "none": [],
    "frozen": ["frozen"],
    "slow": ["slow"],
    "frozen and slow": ["frozen", "slow"],
    "healthy": ["healthy"],
}
WITH_GOAL = {"frozen", "slow", "frozen and slow"}


# The processes of subscribers.


async def watch(bus: AsyncEventBus) -> None:
    """Be the healthy one: tell at the end of each burst what came and the seconds for an event, and
    at the end of each steady phase the latencies in seconds.
    """
    expected = missed = disorder = 0
    begin = 0.0
    latencies: list[float] = []

    async def on_event(event: Event) -> None:
        nonlocal expected, missed, disorder, begin
        number = event.data
        if number > EVENTS:
            latencies.append(time.time() - event.timestamp)
        if number == 0:
            begin = time.perf_counter()
        elif number == EVENTS:
            pace = (time.perf_counter() - begin) / EVENTS
            await bus.publish(Event("CAME", [missed + EVENTS - expected, disorder, pace, 0.0]))
        if number < expected:
            disorder += 1
        else:
            missed += number - expected
            expected = number + 1
        if number == EVENTS + STEADY_EVENTS:
            p99 = sorted(latencies)[len(latencies) * 99 // 100]
            await bus.publish(Event("CAME", [missed, disorder, 0.0, p99]))
            expected = missed = disorder = 0
            latencies.clear()

    await bus.subscribe(EventType.TRADE, on_event)


async def nap(bus: AsyncEventBus, seconds: float) -> None:
    """Be one that takes so many seconds for each event, asleep."""
    left = NAP_EVENTS

    async def on_event(event: Event) -> None:
        nonlocal left
        left -= 1
        if seconds and not left:
            left = NAP_EVENTS
            await asyncio.sleep(seconds * NAP_EVENTS)

    await bus.subscribe(EventType.TRADE, on_event)


async def play(role: str, url: str, name: str, seconds: float) -> None:
    """Be a subscriber until stdin ends, as it does however the publisher's process ends."""
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), end.set)
    async with AsyncEventBus(url, name=name) as bus:
        if role == "watch":
            await watch(bus)
        else:
            await nap(bus, seconds if role == "slow" else 0.0)
        await bus.publish(Event("READY", name))
        await end.wait()
        loop.remove_reader(sys.stdin.fileno())


# The publisher's process.


@dataclass
class Seen:
    """The measurements beside one neighbour, round by round."""

    rates: list[float] = field(default_factory=list)
    """Events a second, by the clock."""
    costs: list[float] = field(default_factory=list)
    """Seconds of the processor for an event."""
    p99s: list[float] = field(default_factory=list)
    """Of the healthy one's latencies, in seconds."""
    wrong: list[int] = field(default_factory=list)
    """Events that did not come to the healthy one, or not in their order."""

    def rounds(self) -> list[dict[str, float]]:
        """The measurements, round by round; times in microseconds."""
        return [
            {"rate": rate, "publisher_us": 1e6 * cost, "p99": 1e6 * p99, "lost": lost}
            for rate, cost, p99, lost in zip(
                self.rates, self.costs, self.p99s, self.wrong, strict=True
            )
        ]

    def share(self, other: "Seen") -> float:
        """The throughput, as a share of that beside `other`: the median of the rounds."""
        return by_round(self.rates, other.rates)

    def cost(self, other: "Seen") -> float:
        """The same for the processor time of an event."""
        return by_round(self.costs, other.costs)

    def later(self, other: "Seen") -> float:
        """The latency, as a multiple of that beside `other`."""
        return by_round(self.p99s, other.p99s)


def by_round(mine: list[float], others: list[float]) -> float:
    """The median of the ratios within each round: a machine that is shared changes its pace by half
    between rounds, and medians of the figures themselves said 66 and 155 % of the same code.
    """
    return statistics.median(one / other for one, other in zip(mine, others, strict=True))


class Desk:
    """The publisher, and the subscribers that it starts on other cores."""

    def __init__(self, bus: AsyncEventBus, loop: str, cores: list[int]) -> None:
        self._bus = bus
        self._loop = loop
        self._cores = ",".join(map(str, cores))
        self._started = 0
        self.pace = 0.0
        """Seconds that the healthy one takes for an event."""

    @contextlib.asynccontextmanager
    async def subscriber(self, role: str) -> AsyncIterator[None]:
        """A process that is subscribed on entry and dead on exit."""
        self._started += 1
        name = f"{role}-{self._started}"
        told = ["--role", role, "--url", self._bus.url, "--name", name, "--loop", self._loop]
        told += ["--seconds", str(self.pace * SLOWER), "--cores", self._cores]
        async with self._bus.stream("READY") as ready:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "perf.frozen", *told, stdin=asyncio.subprocess.PIPE
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

    async def round(self, seen: Seen, reports: EventStream) -> None:
        """Publish at full rate, then steadily; each time let the healthy one tell what came."""
        bus = self._bus
        begin, worked = time.perf_counter(), time.process_time()
        for number in range(EVENTS):
            await bus.publish(Event(EventType.TRADE, number, key="BTCUSDT"))
        seen.costs.append((time.process_time() - worked) / EVENTS)
        seen.rates.append(EVENTS / (time.perf_counter() - begin))
        await bus.publish(Event(EventType.TRADE, EVENTS, key="BTCUSDT"))
        async with asyncio.timeout(ROUND_SECONDS):
            _, _, self.pace, _ = (await anext(reports)).data
        begin, number = time.perf_counter(), EVENTS
        while number < EVENTS + STEADY_EVENTS:
            await asyncio.sleep(PULSE_SECONDS)
            due = EVENTS + min(STEADY_EVENTS, int((time.perf_counter() - begin) * STEADY_RATE))
            while number < due:
                number += 1
                await bus.publish(Event(EventType.TRADE, number, key="BTCUSDT"))
        async with asyncio.timeout(ROUND_SECONDS):
            missed, disorder, _, p99 = (await anext(reports)).data
        seen.p99s.append(p99)
        seen.wrong.append(missed + disorder)


async def measure(loop: str, cores: list[int]) -> dict[str, Seen]:
    """All rounds on one kind of loop, by neighbour."""
    seen = {neighbour: Seen() for neighbour in NEIGHBOURS}
    with tempfile.TemporaryDirectory(prefix="ab") as folder:
        async with AsyncEventBus(f"ipc://{folder}/d", name="publisher") as bus:
            desk = Desk(bus, loop, cores)
            # Asked for while no subscriber is frozen: a frozen one could not confirm it.
            async with bus.stream("CAME") as reports, desk.subscriber("watch"):
                await desk.round(Seen(), reports)  # fills history, and tells the pace
                for number in range(ROUNDS):
                    first = number % len(NEIGHBOURS)
                    names = list(NEIGHBOURS)
                    for neighbour in names[first:] + names[:first]:
                        async with contextlib.AsyncExitStack() as stack:
                            # The frozen one last: it could not confirm what the others ask.
                            for role in reversed(NEIGHBOURS[neighbour]):
                                await stack.enter_async_context(desk.subscriber(role))
                            await desk.round(seen[neighbour], reports)
    return seen


async def rounds(loop: str) -> dict[str, list[dict[str, float]]]:
    """The measurements of each round, by neighbour: in a process of its own, which may keep its
    core.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "perf.frozen", "--json", "--loop", loop),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"perf.frozen ended with {process.returncode}")
    found: dict[str, list[dict[str, float]]] = json.loads(output)
    return found


def keep_a_core() -> list[int]:
    """Let the publisher have a core to itself; the others. On Linux, where there are several."""
    if sys.platform != "linux":
        return []
    mine, *cores = sorted(os.sched_getaffinity(0))
    if cores:
        os.sched_setaffinity(0, {mine})
    return cores


def judge(loops: list[str], is_json: bool) -> int:
    """Print a line for each loop and neighbour; 1 when a goal is missed. Or print JSON."""
    cores, missed = keep_a_core(), 0
    for loop in loops:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            seen = runner.run(measure(loop, cores))
        if is_json:
            print(json.dumps({name: each.rounds() for name, each in seen.items()}))
            continue
        for neighbour, each in seen.items():
            rate, cost = statistics.median(each.rates), statistics.median(each.costs)
            share, later = each.share(seen["none"]), each.later(seen["healthy"])
            is_missed = any(each.wrong)
            if neighbour in WITH_GOAL:
                is_missed |= share < GOAL or later > GOAL_P99
            missed += is_missed
            print(
                f"frozen     {loop:8} beside {neighbour:15} {rate:8,.0f} /s"
                f"  {share:4.0%}  (from {min(each.rates):,.0f} to {max(each.rates):,.0f})"
                f"  processor {cost * 1e6:4.2f} us  {each.cost(seen['none']):4.0%}"
                f"  healthy: p99 {statistics.median(each.p99s) * 1e3:.2f} ms,"
                f" {each.later(seen['none']):4.2f} x that beside none,"
                f" {later:4.2f} x that beside a healthy one,"
                f" {sum(each.wrong)} lost or out of order: {'missed' if is_missed else 'held'}"
            )
    return int(missed > 0)


def main() -> int:
    """Measure, or be one of the subscribers."""
    logging.getLogger("aiobus").setLevel(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", help="be this subscriber; the others go with it")
    parser.add_argument("--url")
    parser.add_argument("--name")
    parser.add_argument("--loop", choices=LOOPS, help="only on this kind of loop")
    parser.add_argument("--json", action="store_true", help="print the rounds, without a verdict")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--cores")
    given = parser.parse_args()
    if given.role is None:
        return judge([given.loop] if given.loop else list(LOOPS), given.json)
    if sys.platform == "linux" and given.cores:
        os.sched_setaffinity(0, map(int, given.cores.split(",")))
    with asyncio.Runner(loop_factory=LOOPS[given.loop]) as runner:
        runner.run(play(given.role, given.url, given.name, given.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
