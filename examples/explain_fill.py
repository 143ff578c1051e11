"""Why was this filled? Four bots trade 46 seconds of BTCUSDT and record what they do. Then the file
tells how the last fill came about, and how long each hop took over the session.

Run it: python examples/explain_fill.py
"""

import asyncio
import csv
import tempfile
from pathlib import Path

from aiobus import AsyncEventBus, Event, EventType, Journal, explain, explain_hops, record

TRADES = Path(__file__).parent / "data" / "btcusdt-trades-2021-01-08.csv"
URL = "ipc://explain-fill"


async def trade(path: Path) -> None:
    """Four buses, as four processes would have them. The strategy orders at each trade of 1 BTC."""
    async with (
        AsyncEventBus(URL, name="recorder") as recorder,
        record(recorder, path) as recording,
        AsyncEventBus(URL, name="broker") as broker,
        AsyncEventBus(URL, name="strategy") as strategy,
        AsyncEventBus(URL, name="feed") as feed,
    ):

        async def on_order(order: Event) -> None:
            await broker.publish(Event(EventType.FILL, order.data, key=order.key))

        async def on_trade(trade: Event) -> None:
            if trade.data["quantity"] >= 1:
                order = Event(EventType.ORDER, {"price": trade.data["price"]}, key=trade.key)
                await strategy.request(order, EventType.FILL)

        await broker.subscribe(EventType.ORDER, on_order)
        await strategy.subscribe(EventType.TRADE, on_trade)
        for row in csv.DictReader(TRADES.read_text().splitlines()):
            data = {"price": float(row["price"]), "quantity": float(row["quantity"])}
            await feed.publish(Event(EventType.TRADE, data, key="BTCUSDT"))
        await feed.flush()
        await strategy.settle()
        await broker.flush()  # strategy has the last fill, and the recorder by now as well
        await recording.flush()


def main() -> None:
    """Trade, then ask the file. `aiobus explain FILE ID` prints the same in a shell."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "desk.db"
        asyncio.run(trade(path))
        with Journal(path) as journal:
            *_, (_, fill) = journal.read(types=EventType.FILL)
        print(explain(path, fill.id), explain_hops(path), sep="\n\n")


if __name__ == "__main__":
    main()
