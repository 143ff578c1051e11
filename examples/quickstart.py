"""The smallest desk: a strategy follows every large trade of 46 recorded seconds of BTCUSDT.

Run it: python examples/quickstart.py
"""

import asyncio
import csv
from pathlib import Path

import aiobus
from aiobus import AsyncEventBus, Event, EventType

TRADES = Path(__file__).parent / "data" / "btcusdt-trades-2021-01-08.csv"


async def follow_the_whales(bus: AsyncEventBus) -> None:
    """Signal the side of every trade of 1 BTC or more. Live when this returns."""

    async def on_trade(trade: Event) -> None:
        signal = {"side": trade.data["side"], "price": trade.data["price"]}
        await bus.publish(Event(EventType.SIGNAL, signal, key=trade.key))

    await bus.subscribe(
        EventType.TRADE, on_trade, key="BTCUSDT", where=lambda trade: trade.data["quantity"] >= 1
    )


async def replay(bus: AsyncEventBus) -> None:
    """Publish the recorded trades as fast as the bus takes them, then close it."""
    for row in csv.DictReader(TRADES.read_text().splitlines()):
        trade = {
            "price": float(row["price"]),
            "quantity": float(row["quantity"]),
            "side": "sell" if row["buyer_maker"] == "True" else "buy",
        }
        await bus.publish(Event(EventType.TRADE, trade, key="BTCUSDT"))
    await bus.close()  # what is on its way still arrives; then the stream below ends


async def desk(bus: AsyncEventBus) -> None:
    """Print each signal, and the trade that led to it, until the recording is over."""
    await follow_the_whales(bus)
    async with bus.stream(EventType.SIGNAL) as signals, asyncio.TaskGroup() as tasks:
        tasks.create_task(replay(bus))
        async for signal in signals:
            side, price = signal.data["side"], signal.data["price"]
            print(f"{signal.key} {side:<4} at {price:,.2f}   caused by {signal.cause}")


if __name__ == "__main__":
    aiobus.run(desk, "ipc://quickstart", "desk")
