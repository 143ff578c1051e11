"""Record a session on real trades, and ask what a strategy would have decided with another limit.

Run it: python examples/what_if.py
"""

import asyncio
import tempfile
from functools import partial
from pathlib import Path

from aiobus import AsyncEventBus, Event, EventType, record, what_if
from quickstart import replay as publish_trades

URL = "ipc://what-if"


async def strategy(bus: AsyncEventBus, most: float = 1.0) -> None:
    """Follow the trades of 1 BTC or more, with at most so much in an order."""

    async def on_trade(trade: Event) -> None:
        if trade.data["quantity"] >= 1:
            order = {"side": trade.data["side"], "quantity": min(trade.data["quantity"], most)}
            await bus.request(Event(EventType.ORDER, order, key=trade.key), EventType.FILL)

    await bus.subscribe(EventType.TRADE, on_trade)


async def gateway(bus: AsyncEventBus) -> None:
    """Fill each order after 5 ms, at the price of the last trade."""
    last: dict[str, Event] = {}

    async def on_order(order: Event) -> None:
        await asyncio.sleep(0.005)
        fill = {**order.data, "price": last[order.key].data["price"]}
        await bus.publish(Event(EventType.FILL, fill, key=order.key))

    await bus.subscribe(EventType.TRADE, lambda trade: last.update({trade.key: trade}))
    await bus.subscribe(EventType.ORDER, on_order)


async def session(path: Path) -> None:
    """Four buses, as four processes would have them; one of them records."""
    names = ("recorder", "gateway", "strategy", "feed")
    recorder, gateways, strategies, feed = (AsyncEventBus(URL, name=name) for name in names)
    async with recorder, gateways, strategies, feed, record(recorder, path):
        await gateway(gateways)
        await strategy(strategies)
        await publish_trades(feed)
        await strategies.settle()
        await gateways.flush()  # the recorder has the last fill as well


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "desk.db"
        asyncio.run(session(path))
        print(what_if(path, strategy, broker=gateway), end="\n\n")
        print(what_if(path, partial(strategy, most=2.0), broker=gateway))
