"""How long does it take to explain a fill of a session of a million events?

Measured, in a process of its own each: by id (goal: 0.3 s) and by the minute
in which it happened (goal: 1 s), each at p50 of ten; and the percentiles of all hops (goal: 100,000
events a second, with no more memory than for a tenth of the session, and 16 MiB). Run: python -m
perf.explain
"""

import asyncio
import itertools
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from aiobus import Event, EventType, explain, explain_hops
from aiobus.codec import encode
from aiobus.event import event_id
from aiobus.journal.format import Entry
from perf.journal import BATCH, Settled
from perf.trades import symbols, trades

EVENTS = 1_000_000
ROUNDS = 10
EPOCH = 1_700_000_000_000_000
START = 1_700_000_000.0
GOAL_ID_SECONDS = 0.3
GOAL_TIME_SECONDS = 1.0
GOAL_RATE = 100_000
GOAL_GROWTH_KIB = 16 * 1024
STEPS = (
    ("strategy", EventType.SIGNAL, 0.0003),
    ("strategy", EventType.ORDER, 0.0005),
    ("broker", EventType.FILL, 0.0010),
    ("monitor", EventType.POSITION, 0.0014),
)


def session() -> Iterator[Entry]:
    """Recorded trades, of which each tenth leads to a signal, an order, a fill and a position."""
    seqs = dict.fromkeys(("feed", "strategy", "broker", "monitor"), 0)

    def entry(source: str, event: Event, time: float, cause: str) -> Entry:
        seq = seqs[source] = seqs[source] + 1
        row = encode(seq, time, event.type, event.key, event.data, cause, 2**20)
        return Entry(source, EPOCH, seq, time, event.type, event.key, cause, row)

    for number, trade in enumerate(trades([EventType.TRADE], symbols(40))):
        time = START + number / 100
        yield entry("feed", trade, time, "")
        cause = event_id("feed", EPOCH, seqs["feed"])
        if number % 10 == 0:
            for source, type, after in STEPS:
                event = Event(type, {"side": "buy", "quantity": 0.01}, key=trade.key)
                yield entry(source, event, time + after, cause)
                cause = event_id(source, EPOCH, seqs[source])


async def write(path: Path, count: int) -> None:
    """Write the session up to so many events."""
    journal = Settled(path, "process")
    for entry in itertools.islice(session(), count):
        journal.append(entry)
        if journal.left >= 10 * BATCH:
            await journal.wait()
    await journal.wait()
    journal.writer.close()


def median(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    took = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        call()
        took.append(time.perf_counter() - begin)
    return statistics.median(took)


def measure(what: str, path: str) -> None:
    """Print what was measured in this process."""
    if what == "id":
        print(median(lambda: explain(path, event_id("broker", EPOCH, 70_000))))
    elif what == "time":
        print(median(lambda: explain(path, at="00:10", type=EventType.FILL, tz="UTC")))
    else:
        begin = time.perf_counter()
        events = explain_hops(path).events
        rate = events / (time.perf_counter() - begin)
        print(rate, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def judge() -> int:
    """Print a line for each figure; 1 when a goal is missed."""
    missed = []

    def say(name: str, figure: str, goal: str, is_held: bool) -> None:
        print(f"explain    {name:40} {figure:38} goal {goal}: {'held' if is_held else 'missed'}")
        if not is_held:
            missed.append(name)

    def told(what: str, path: Path) -> list[float]:
        command = [sys.executable, "-m", "perf.explain", what, str(path)]
        return [float(each) for each in subprocess.check_output(command).split()]

    with tempfile.TemporaryDirectory(prefix="explain-", dir=Path.cwd()) as made:
        whole, tenth = Path(made) / "whole.db", Path(made) / "tenth.db"
        asyncio.run(write(whole, EVENTS))
        asyncio.run(write(tenth, EVENTS // 10))
        (took,) = told("id", whole)
        say("a fill, by its id", f"{took * 1e3:.0f} ms", "300 ms", took <= GOAL_ID_SECONDS)
        (took,) = told("time", whole)
        say("a fill, by its minute", f"{took * 1e3:.0f} ms", "1 s", took <= GOAL_TIME_SECONDS)
        (rate, most), (_, least) = told("hops", whole), told("hops", tenth)
        say(
            "all hops of a million events",
            f"{rate:,.0f} a second, {(most - least) / 1024:.1f} MiB more than for a tenth",
            "100,000 a second, 16 MiB",
            rate >= GOAL_RATE and most - least <= GOAL_GROWTH_KIB,
        )
    if missed:
        print(f"missed: {'; '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(*sys.argv[1:])
        sys.exit(0)
    sys.exit(judge())
