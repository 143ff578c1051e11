"""What does a journal cost those that publish, and can a recording keep up?

Measured: events a second by 100 tasks of a bus with a journal, beside 100 tasks of a bus in process
as it was at 3b5aca6, which has no journal (goal: 40 %), and beside one task of it, in turns; a lone
publish with a journal beside a bare commit of one row by sqlite3, p50 (goal: twice that, or 0.2 ms
more); and 50,000 events a second of another process, recorded for a minute (goal: no gap, no drop).
The files are made in the current directory, because a temporary directory may be in memory, where a
commit costs nothing. Run: python -m perf.durable [seconds]
"""

import asyncio
import itertools
import logging
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from aiobus import AsyncEventBus, Event, Journal, record
from perf import copies
from perf.systems import BASE
from perf.tasks import LOOPS, throughput
from perf.trades import symbols, trades

ROUNDS = 5
TASKS = 100
LONE = 500
RATE = 50_000
SECONDS = 60.0
BURST = 50
GOAL_SHARE = 0.40
GOAL_TIMES = 2.0
GOAL_MORE_SECONDS = 0.0002


def before(tasks: int, loop: str) -> float:
    """Events a second of the package as it was at `BASE`, which has no journal."""
    told = [sys.executable, "-m", "perf.tasks", str(tasks), loop]
    done = subprocess.run(told, cwd=copies.at(BASE), stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


async def lone(folder: Path) -> tuple[float, float]:
    """Seconds, at p50, of a publish with a journal, and of a commit by sqlite3 alone."""
    bare = sqlite3.connect(folder / "bare.db", isolation_level=None)
    bare.execute("PRAGMA journal_mode = WAL")
    bare.execute("PRAGMA synchronous = FULL")
    bare.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, row TEXT)")
    mine, plain = [], []
    async with AsyncEventBus(name="lone", journal=folder / "lone.db") as bus:
        for number, event in enumerate(
            itertools.islice(trades(["TRADE"], symbols(40), make=Event), LONE)
        ):
            begin = time.perf_counter()
            await bus.publish(event)
            mine.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            bare.execute("INSERT INTO events VALUES (?, ?)", (number, "x" * 150))
            plain.append(time.perf_counter() - begin)
    bare.close()
    return statistics.median(mine), statistics.median(plain)


async def feed(url: str, seconds: float) -> None:
    """Publish at a steady rate for so long, in small bursts."""
    async with AsyncEventBus(url, name="feed") as bus:
        events = trades(["TRADE", "QUOTE"], symbols(40), make=Event)
        begin, count = time.perf_counter(), 0
        while (due := begin + count / RATE) < begin + seconds:
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            for event in itertools.islice(events, BURST):
                await bus.publish(event)
            count += BURST
        await bus.publish(Event("END", count))


async def recording(folder: Path, seconds: float) -> tuple[int, int, int]:
    """How many events were published, how many are in the file, and how many gaps are."""
    url, path = f"ipc://{folder}/desk", folder / "desk.db"
    async with AsyncEventBus(url, name="recorder") as bus, record(bus, path):
        ended = asyncio.ensure_future(bus.wait_for("END", timeout=seconds + 60))
        told = [sys.executable, "-m", "perf.durable", url, str(seconds)]
        process = await asyncio.create_subprocess_exec(*told)
        sent = (await ended).data
        await process.wait()
    with Journal(path) as journal:
        types = [event.type for _, event in journal.read()]
    return sent, types.count("TRADE") + types.count("QUOTE"), types.count("aiobus.gap")


def judge(seconds: float) -> int:
    """Print a line for each figure; 1 when a goal is missed."""
    logging.basicConfig(level=logging.WARNING)
    missed = []

    def say(name: str, figure: str, goal: str, is_held: bool) -> None:
        print(f"durable    {name:48} {figure:44} goal {goal}: {'held' if is_held else 'missed'}")
        if not is_held:
            missed.append(name)

    with tempfile.TemporaryDirectory(prefix="durable-", dir=Path.cwd()) as made:
        folder = Path(made)
        for loop, factory in LOOPS.items():
            shares, of_one, rates = [], [], []
            with asyncio.Runner(loop_factory=factory) as runner:
                for number in range(ROUNDS):
                    path = folder / f"{loop}{number}.db"
                    bus = AsyncEventBus(name="j", journal=path)
                    rates.append(rate := runner.run(throughput(bus, TASKS)))
                    shares.append(rate / before(TASKS, loop))
                    of_one.append(rate / before(1, loop))
            name = f"{TASKS} tasks with a journal, {loop}, beside {BASE}"
            share, one, rate = map(statistics.median, (shares, of_one, rates))
            figure = f"{rate:,.0f} a second, {share:.0%}; {one:.0%} of one task"
            say(name, figure, f"{GOAL_SHARE:.0%}", share >= GOAL_SHARE)
        mine, bare = asyncio.run(lone(folder))
        say(
            "a lone publish with a journal, p50",
            f"{mine * 1e3:.2f} ms beside {bare * 1e3:.2f} ms ({mine / bare:.2f} times)",
            "2 times, or 0.2 ms more",
            mine <= max(GOAL_TIMES * bare, bare + GOAL_MORE_SECONDS),
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sent, kept, gaps = runner.run(recording(folder, seconds))
        say(
            f"{RATE:,} events/s recorded for {seconds:g} s",
            f"{kept:,} of {sent:,}, {gaps} gaps",
            "all, none",
            (kept, gaps) == (sent, 0),
        )
    if missed:
        print(f"missed: {'; '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(feed(sys.argv[1], float(sys.argv[2])))
        sys.exit(0)
    sys.exit(judge(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))
