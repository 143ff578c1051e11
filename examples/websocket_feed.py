"""Live trades from a WebSocket, in the format of Binance's public trade streams, onto the bus.

Run it: python examples/websocket_feed.py [wss://stream.binance.com:9443/ws/btcusdt@trade]
"""

import asyncio
import contextlib
import json
import logging
import signal
import sys
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

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


async def main(url: str) -> None:
    """Print every trade until Ctrl-C, after which what has come is still printed."""
    async with AsyncEventBus(name="binance") as bus:
        await bus.subscribe(
            EventType.TRADE, lambda t: print(t.key, t.data["price"], t.data["side"])
        )
        feed = asyncio.ensure_future(websocket_feed(bus, url))
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, feed.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await feed


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("websockets.client").setLevel(logging.INFO)  # tells when connecting fails
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else BINANCE))
