"""Nested data as a desk publishes it: order books, a snapshot of positions, a text with escapes.

Owns how they are made from the recorded quotes. Must not know who publishes them.
"""

import csv
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["NESTED", "book", "ladder", "nested", "positions", "text"]

RECORDING = Path(__file__).parent.parent / "examples" / "data" / "btcusdt-quotes-2021-01-08.csv"
VARIANTS = 16

Level = tuple[float, float]


@cache
def recorded() -> tuple[tuple[Level, Level], ...]:
    """Bid and ask of each recorded quote as (price, quantity)."""
    with RECORDING.open(newline="") as file:
        return tuple(
            (
                (float(row["bid"]), float(row["bid_size"])),
                (float(row["ask"]), float(row["ask_size"])),
            )
            for row in csv.DictReader(file)
        )


def levels(count: int, begin: int = 0) -> list[tuple[Level, Level]]:
    """So many quotes from the one at `begin` on, as if they stood in one book."""
    quotes = recorded()
    return [quotes[(begin + number) % len(quotes)] for number in range(count)]


def book(count: int, begin: int = 0) -> dict[str, Any]:
    """An order book of so many levels on each side, as most exchanges send it: lists of lists."""
    both = levels(count, begin)
    return {"bids": [[*bid] for bid, _ in both], "asks": [[*ask] for _, ask in both]}


def ladder(count: int, begin: int = 0) -> dict[str, Any]:
    """The same with a dict for each level."""
    return {
        side: [{"price": price, "quantity": quantity} for price, quantity in rows]
        for side, rows in book(count, begin).items()
    }


def positions(begin: int = 0) -> dict[str, Any]:
    """A snapshot of 40 positions, some of which have no stop."""
    return {
        "positions": [
            {
                "symbol": f"SYM{number:04}",
                "quantity": bid[1],
                "entry": bid[0],
                "mark": ask[0],
                "unrealized": ask[0] - bid[0],
                "stop": None if number % 3 else bid[0] * 0.98,
                "tags": ["momentum", "hedged"],
            }
            for number, (bid, ask) in enumerate(levels(40, begin))
        ]
    }


def text(begin: int = 0) -> dict[str, Any]:
    """A log of 40 lines in which every few characters are escaped."""
    lines = [f'"{bid[0]}"\t\\bid\\\n"{ask[0]}"\t\\ask\\\n' for bid, ask in levels(40, begin)]
    return {"log": {"lines": lines}}


NESTED = {
    **{f"book of 2 x {count}": (book, count) for count in (10, 20, 60, 250)},
    "positions": (positions, None),
    "text with escapes": (text, None),
}
"""By name: what makes it, and of how many levels."""


@cache
def nested(name: str) -> tuple[dict[str, Any], ...]:
    """A few different ones."""
    make, count = NESTED[name]
    return tuple(
        make(begin) if count is None else make(count, begin)  # type: ignore[operator]
        for begin in range(VARIANTS)
    )
