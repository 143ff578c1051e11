"""Back-pressure: raw -> normalised -> stored, in which the slow last stage paces the feed.

Run it: python examples/pipeline.py
"""

import asyncio
import csv
import tempfile
import time
from pathlib import Path

from aiobus import AsyncEventBus, Event, EventType

TRADES = Path(__file__).parent / "data" / "btcusdt-trades-2021-01-08.csv"
ROOM = 16  # events that may wait in front of a stage; a task that publishes one more waits


async def main() -> None:
    """Run the recorded trades through, as fast as the last stage takes them."""
    rows = list(csv.DictReader(TRADES.read_text().splitlines()))
    peak = 0

    async with AsyncEventBus() as bus:

        async def normalise(raw: Event) -> None:
            trade = {name: float(raw.data[name]) for name in ("timestamp", "price", "quantity")}
            await bus.publish(Event(EventType.TRADE, trade, key=raw.key))

        async def store(trade: Event) -> None:
            await asyncio.to_thread(file.write, f"{trade.key} {trade.data}\n")

        with tempfile.TemporaryFile("w") as file:
            first = await bus.subscribe("RAW", normalise, overflow="block", maxsize=ROOM)
            last = await bus.subscribe(EventType.TRADE, store, overflow="block", maxsize=ROOM)
            start = time.perf_counter()
            for row in rows:
                await bus.publish(Event("RAW", row, key="BTCUSDT"))
                peak = max(peak, first.stats.pending, last.stats.pending)
            fed = time.perf_counter() - start
            await bus.settle()

    print(f"{last.stats.handled:,} of {len(rows):,} trades stored")
    print(f"one published every {fed / len(rows) * 1e6:.0f} us, as fast as they are stored")
    print(f"at most {peak} waited for a stage: {ROOM} in its inbox, and one with its publisher")


if __name__ == "__main__":
    asyncio.run(main())
