"""Live trades from a WebSocket, in the format of Binance's public trade streams, onto the bus.

Run it: python examples/websocket_feed.py [wss://stream.binance.com:9443/ws/btcusdt@trade]
"""

import json
import sys
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

import aiobus
from aiobus import AsyncEventBus, Event, EventType

BINANCE = "wss://stream.binance.com:9443/ws/btcusdt@trade"


async def websocket_feed(bus: AsyncEventBus, url: str) -> None:
    """Publish a TRADE for each message, for ever; connect again whenever the connection is lost."""
    async for connection in connect(url):
        try:
            async for message in connection:
                await bus.publish(to_event(json.loads(message)))
        except ConnectionClosed as closed:
            print(f"connection lost ({closed}), connecting again")


def to_event(message: dict[str, Any]) -> Event:
    """Binance's letters in words."""
    data = {
        "price": float(message["p"]),
        "quantity": float(message["q"]),
        "side": "sell" if message["m"] else "buy",  # m: the buyer was the maker
        "trade_id": message["t"],
        "exchange_time": message["T"] / 1_000,
    }
    return Event(EventType.TRADE, data, key=message["s"])


async def main(bus: AsyncEventBus) -> None:
    """Print every trade until Ctrl-C, after which what has come is still printed."""
    await bus.subscribe(EventType.TRADE, lambda t: print(t.key, t.data["price"], t.data["side"]))
    await websocket_feed(bus, sys.argv[1] if len(sys.argv) > 1 else BINANCE)


if __name__ == "__main__":
    aiobus.run(main, "inproc://", "binance")  # its log tells when connecting fails
