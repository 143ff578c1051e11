"""How fast is a recording replayed in virtual time, each event at an instant of its own, and does
the memory grow with its length? Goals: 20,000 events/s; flat over 1,000,000 events.

Between two events the loop turns, timers that are due run, and the clock jumps. Memory is the
resident set of the process after a tenth of the events and after the last. Run: python -m
perf.player
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from aiobus import AsyncEventBus, Event, Replay, run_virtual
from aiobus.codec import encode
from aiobus.journal.format import Entry
from aiobus.journal.writer import JournalWriter

EVENTS = 1_000_000
GOAL_RATE = 20_000
GOAL_MIB = 8.0
"""For what the allocator keeps; the file has 150 times as much."""
START = 1_700_000_000.0
EPOCH = 1_700_000_000_000_000


def entry(seq: int) -> Entry:
    """A quote a millisecond."""
    at, key = START + seq / 1_000, f"S{seq % 20}"
    data = {"bid": 39_000 + seq % 97 / 4, "ask": 39_001 + seq % 89 / 4, "size": seq % 7}
    row = encode(seq, at, "QUOTE", key, data, "", 2**20)
    return Entry("feed", EPOCH, seq, at, "QUOTE", key, "", row)


async def write(path: Path, count: int) -> None:
    """A recording of so many events."""
    writer = JournalWriter(path, sync="process")
    writer.open()
    committed, has_changed = 0, asyncio.Event()

    def note(some: int, error: BaseException | None) -> None:
        nonlocal committed
        if error is not None:
            raise error
        committed += some
        has_changed.set()

    writer.start(note)
    try:
        for seq in range(1, count + 1):
            while not writer.room:
                has_changed.clear()
                await has_changed.wait()
            writer.append(entry(seq))
        while committed < count:
            has_changed.clear()
            await has_changed.wait()
    finally:
        writer.close()


def resident() -> float:
    """MiB of this process that are in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (each for each in lines if each.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


async def replayed(path: Path, count: int) -> tuple[float, float, float]:
    """Events/s, and MiB after a tenth and at the end."""
    replay, seen, instants = Replay(path), 0, 0
    loop = asyncio.get_running_loop()
    last, early = -1.0, 0.0

    async def on_quote(event: Event) -> None:
        nonlocal seen, last, instants, early
        seen += 1
        instants += loop.time() > last
        last = loop.time()
        if seen == count // 10:
            early = resident()

    async with AsyncEventBus(replay, name="strategy", on_error="raise") as bus:
        await bus.subscribe("QUOTE", on_quote)
        began = time.perf_counter()
        await replay.play()
        await bus.settle()
        seconds = time.perf_counter() - began
    if (seen, instants) != (count, count):
        raise SystemExit(f"{seen} of {count} events at {instants} instants")
    return count / seconds, early, resident()


def main() -> int:
    """Print a line; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS)
    count = parser.parse_args().events
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "desk.db"
        asyncio.run(write(path, count))
        rate, early, late = run_virtual(replayed(path, count))
    is_held = rate >= GOAL_RATE and late - early < GOAL_MIB
    print(
        f"replay     {count:,} events, each at its own instant  {rate:,.0f}/s  {early:.1f} MiB"
        f" after a tenth, {late:.1f} MiB at the end  goals {GOAL_RATE:,}/s, flat:"
        f" {'held' if is_held else 'missed'}"
    )
    return int(not is_held)


if __name__ == "__main__":
    sys.exit(main())
