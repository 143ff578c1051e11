"""The events that every system publishes: recorded trades as `{"symbol", "price", "qty", "side"}`.

Owns which symbol and which type comes next, and the padding to a size. Must not know who publishes
them. An event is built when it is taken, as a feed does; its data is ready.
"""

import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from perf.books import nested
from perf.envelope import Event

__all__ = ["symbols", "trades"]

RECORDING = Path(__file__).parent.parent / "examples" / "data" / "btcusdt-trades-2021-01-08.csv"


@cache
def recorded() -> tuple[dict[str, Any], ...]:
    """Price, quantity and side of each recorded trade."""
    with RECORDING.open(newline="") as file:
        return tuple(
            {
                "price": float(row["price"]),
                "qty": float(row["quantity"]),
                "side": "sell" if row["buyer_maker"] == "True" else "buy",
            }
            for row in csv.DictReader(file)
        )


def symbols(count: int) -> list[str]:
    """So many symbols, all of one length."""
    return [f"SYM{number:04}" for number in range(count)]


def trades(
    types: Sequence[str],
    keys: Sequence[str],
    size: int = 0,
    shape: str = "",
    make: Callable[..., Any] = Event,
) -> Iterator[Any]:
    """The trades, over and over, one symbol after another and each type with each symbol. `size`:
    characters of padding in each. `shape`: a name in `perf.books.NESTED`, of which each is then.
    `make`: the class of the events.
    """
    padding = {"note": "x" * size} if size else {}
    plan = []
    cycle = len(types) * len(keys)
    rows = nested(shape) if shape else recorded()
    for number in range(max(1, len(rows) // cycle) * cycle):
        key = keys[number % len(keys)]
        type = types[(number + number // len(keys)) % len(types)]
        plan.append((type, key, {"symbol": key, **rows[number % len(rows)], **padding}))
    for type, key, data in itertools.cycle(plan):
        yield make(type, data, key=key)
