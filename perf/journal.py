"""What does a journal cost, and how fast is it read?

Measured: a lone commit beside a bare commit of one row by sqlite3, in turns (goal: twice that, or
0.2 ms more); 1,000 events that are committed beside a loop that computes, on both loops (goal: 50
ms at p50); bytes on the disk beside the rows (goal: 1.6 times their JSON, and 8 bytes); and reading
a million events (goal: 300,000 a second, without the memory of the reader growing). The files are
made in the current directory, because a temporary directory may be in memory, where a commit costs
nothing. Run: python -m perf.journal
"""

import asyncio
import itertools
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvloop

from aiobus import Journal
from aiobus.codec import encode
from aiobus.journal.format import Entry
from aiobus.journal.writer import JournalWriter, Sync
from perf.trades import symbols, trades

ROUNDS = 500
BATCHES = 40
BATCH = 1_000
EVENTS = 1_000_000
COMPUTING_SECONDS = 0.002
GOAL_TIMES = 2.0
GOAL_MORE_SECONDS = 0.0002
GOAL_BATCH_SECONDS = 0.050
GOAL_SIZE = 1.6
GOAL_SIZE_MORE = 8
GOAL_RATE = 300_000
GOAL_GROWTH_KIB = 16 * 1024

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def entries() -> Iterator[Entry]:
    """Recorded trades of 40 symbols. Each second one has a cause."""
    events = trades(["TRADE", "QUOTE", "FILL", "ORDER"], symbols(40))
    for seq, event in enumerate(events, 1):
        cause = f"strategy@hpuwzn4t3c.{seq}" if seq % 2 else ""
        row = encode(seq, event.timestamp, event.type, event.key, event.data, cause, 2**20)
        yield Entry("feed", 1, seq, event.timestamp, event.type, event.key, cause, row)


class Settled:
    """Awaits the commits of a writer."""

    def __init__(self, path: Path, sync: Sync) -> None:
        self.writer = JournalWriter(path, sync=sync)
        self.writer.open()
        self.left = 0
        self._done = asyncio.Event()
        self.writer.start(self._settle)

    def _settle(self, count: int, error: BaseException | None) -> None:
        if error is not None:
            raise error
        self.left -= count
        self._done.set()

    def append(self, entry: Entry) -> None:
        """Queue one more."""
        self.left += 1
        self.writer.append(entry)

    async def wait(self) -> None:
        """Return when all is committed."""
        while self.left:
            self._done.clear()
            await self._done.wait()


async def lone(folder: Path) -> tuple[float, float]:
    """Seconds, at p50, of a commit by the journal, and of one by sqlite3 alone."""
    bare = sqlite3.connect(folder / "bare.db", isolation_level=None)
    bare.execute("PRAGMA journal_mode = WAL")
    bare.execute("PRAGMA synchronous = FULL")
    bare.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, time REAL, row TEXT)")
    journal = Settled(folder / "lone.db", "power")
    mine, plain = [], []
    for entry in itertools.islice(entries(), ROUNDS):
        begin = time.perf_counter()
        journal.append(entry)
        await journal.wait()
        mine.append(time.perf_counter() - begin)
        text = entry.row.decode()
        begin = time.perf_counter()
        bare.execute("INSERT INTO events VALUES (?, ?, ?)", (entry.seq, entry.time, text))
        plain.append(time.perf_counter() - begin)
    journal.writer.close()
    bare.close()
    return statistics.median(mine), statistics.median(plain)


async def beside_computing(folder: Path, loop: str) -> float:
    """Seconds, at p50, until 1,000 events are committed while the loop computes."""
    journal = Settled(folder / f"{loop}.db", "power")
    source = entries()
    took = []
    for _ in range(BATCHES):
        for entry in itertools.islice(source, BATCH):
            journal.append(entry)
        begin = time.perf_counter()
        while journal.left:
            until = time.perf_counter() + COMPUTING_SECONDS
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)
        took.append(time.perf_counter() - begin)
    journal.writer.close()
    return statistics.median(took)


async def write(path: Path) -> float:
    """Write a million events; returns the mean size of a row."""
    journal = Settled(path, "process")
    size = 0
    for entry in itertools.islice(entries(), EVENTS):
        size += len(entry.row)
        journal.append(entry)
        if journal.left >= 10 * BATCH:
            await journal.wait()
    await journal.wait()
    journal.writer.close()
    return size / EVENTS


def read(path: Path) -> None:
    """Print events a second, and by how many KiB the memory grew behind the first tenth."""
    begin = time.perf_counter()
    early = count = 0
    with Journal(path) as journal:
        for count, _ in enumerate(journal.read(), 1):
            if count == EVENTS // 10:
                early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rate = count / (time.perf_counter() - begin)
    print(rate, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - early)


def judge() -> int:
    """Print a line for each figure; 1 when a goal is missed."""
    missed = []

    def say(name: str, figure: str, goal: str, is_held: bool) -> None:
        print(f"journal    {name:40} {figure:38} goal {goal}: {'held' if is_held else 'missed'}")
        if not is_held:
            missed.append(name)

    with tempfile.TemporaryDirectory(prefix="journal-", dir=Path.cwd()) as made:
        folder = Path(made)
        mine, bare = asyncio.run(lone(folder))
        say(
            "a lone commit, p50",
            f"{mine * 1e3:.2f} ms beside {bare * 1e3:.2f} ms ({mine / bare:.2f} times)",
            "2 times, or 0.2 ms more",
            mine <= max(GOAL_TIMES * bare, bare + GOAL_MORE_SECONDS),
        )
        for loop, factory in LOOPS.items():
            with asyncio.Runner(loop_factory=factory) as runner:
                took = runner.run(beside_computing(folder, loop))
            say(
                f"1,000 events beside a busy {loop} loop, p50",
                f"{took * 1e3:.1f} ms",
                "50 ms",
                took <= GOAL_BATCH_SECONDS,
            )
        path = folder / "million.db"
        row = asyncio.run(write(path))
        size = path.stat().st_size / EVENTS
        say(
            "bytes of an event on the disk",
            f"{size:.0f}, its row has {row:.0f}",
            "1.6 times the row, and 8",
            size <= GOAL_SIZE * row + GOAL_SIZE_MORE,
        )
        told = [sys.executable, "-m", "perf.journal", str(path)]
        rate, growth = subprocess.run(told, capture_output=True, check=True).stdout.split()
        say(
            "reading a million events",
            f"{float(rate):,.0f} a second, memory grew by {int(growth) / 1024:.0f} MiB",
            "300,000 a second, 16 MiB",
            float(rate) >= GOAL_RATE and int(growth) <= GOAL_GROWTH_KIB,
        )
    if missed:
        print(f"missed: {'; '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        read(Path(sys.argv[1]))
        sys.exit(0)
    sys.exit(judge())
