"""46 seconds of BTCUSDT as they were recorded on 2021-01-08: trades, quotes, and both in order."""

import csv
import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiobus import EventType

DATA = Path(__file__).parents[1] / "data"
SYMBOL = "BTCUSDT"

Tick = tuple[EventType, dict[str, Any]]


def ticks() -> list[Tick]:
    """Trades and quotes, merged by the time the exchange gave them."""
    return list(heapq.merge(trades(), quotes(), key=lambda tick: tick[1]["exchange_time"]))


def trades() -> Iterator[Tick]:
    """Every recorded trade; its side is that of the taker."""
    for row in _rows("btcusdt-trades-2021-01-08.csv"):
        trade = {
            "price": float(row["price"]),
            "quantity": float(row["quantity"]),
            "side": "sell" if row["buyer_maker"] == "True" else "buy",
            "trade_id": int(row["trade_id"]),
            "exchange_time": float(row["timestamp"]),
        }
        yield EventType.TRADE, trade


def quotes() -> Iterator[Tick]:
    """Every recorded change of the best bid and ask."""
    for row in _rows("btcusdt-quotes-2021-01-08.csv"):
        quote = {name: float(row[name]) for name in ("bid", "bid_size", "ask", "ask_size")}
        yield EventType.QUOTE, {**quote, "exchange_time": float(row["timestamp"])}


def _rows(name: str) -> Iterator[dict[str, str]]:
    with (DATA / name).open(newline="") as file:
        yield from csv.DictReader(file)
