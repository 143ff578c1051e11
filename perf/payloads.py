"""The cost of checking a payload, relative to encoding and decoding it. Run: python -m
perf.payloads

Owns the curve over the levels of an order book, and its bounds. Only ratios of one run are judged:
what is compared takes turns, and of each turn the best is taken. Exits with 1 when a bound is
exceeded.
"""

import marshal
import sys
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import orjson

from aiobus.codec import encode
from aiobus.wire import PeerId, frame, parse_from_publisher, topic
from perf.books import book, ladder, positions, text

LEVELS = (1, 2, 5, 10, 20, 60, 100, 250, 500)
TURNS = 40
TURN_NS = 1_000_000
CHECKED = 0.3
"""Of `orjson.dumps`, when there is no null."""
ALWAYS_NS = 400
"""At most, however small the data is."""
NULL_NS = 400
"""Added to `dumps` and twice `marshal.dumps`, when there is a null: the calls of a small event."""
READ = 0.5
"""Of `orjson.loads`, from READ_LEVELS levels on: that no row is too deep, in whatever shape."""
READ_LEVELS = 20
SLACK_NS = 100
"""By which two calls that do the same differ in a run."""
OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
ME = PeerId("me", 1, "inproc")


def best(*calls: Callable[[], object]) -> list[float]:
    """Nanoseconds of each call, which take turns."""
    counts = []
    for call in calls:
        begin, count = perf_counter_ns(), 0
        while perf_counter_ns() - begin < TURN_NS:
            call()
            count += 1
        counts.append(count)
    found = [float("inf")] * len(calls)
    for _ in range(TURNS):
        for place, (call, count) in enumerate(zip(calls, counts, strict=True)):
            turn = range(count)
            begin = perf_counter_ns()
            for _ in turn:
                call()
            found[place] = min(found[place], (perf_counter_ns() - begin) / count)
    return found


def publishing(data: Any) -> tuple[float, float, float, float]:
    """Nanoseconds of the checks, of `dumps`, of `marshal.dumps`, and what the checks may take."""
    encoded = orjson.dumps((7, 1.5, "BOOK", "BTCUSDT", data))

    def bare(
        seq: int, timestamp: float, type: str, key: str, data: Any, cause: str, limit: int
    ) -> bytes:
        """`encode` without the checks of data."""
        row: tuple[object, ...] = (seq, timestamp, type, key, data)
        if timestamp.__class__ is not float or timestamp - timestamp != 0.0:
            raise ValueError(timestamp)
        if cause != "":
            row += (cause,)
        try:
            encoded = orjson.dumps(row, None, OPTIONS)
        except TypeError as error:
            raise ValueError(data) from error
        if len(encoded) > limit:
            raise ValueError(limit)
        return b"%b" % encoded

    whole, unchecked, dumps, marshalled = best(
        lambda: encode(7, 1.5, "BOOK", "BTCUSDT", data, "", 1 << 20),
        lambda: bare(7, 1.5, "BOOK", "BTCUSDT", data, "", 1 << 20),
        lambda: orjson.dumps(data),
        lambda: marshal.dumps(data, 2),
    )
    if b"null" in encoded:
        bound = dumps + 2 * marshalled + NULL_NS
    else:
        bound = max(CHECKED * dumps, ALWAYS_NS)
    return whole - unchecked, dumps, marshalled, bound + SLACK_NS


def reading(data: Any) -> tuple[float, float]:
    """Nanoseconds of the checks that depend on the data of a frame, and of `loads`."""

    def message(data: Any) -> bytes:
        row = encode(7, 1.5, "BOOK", "BTCUSDT", data, "", 1 << 20)
        return frame(topic("BOOK"), "feed", 7, 6, 7, [row])

    flat, whole = message({"price": 1.5}), message(data)
    flat_json, json = (each.partition(b"\0")[2] for each in (flat, whole))
    read_flat, read, loads_flat, loads = best(
        lambda: parse_from_publisher(flat, ME),
        lambda: parse_from_publisher(whole, ME),
        lambda: orjson.loads(flat_json),
        lambda: orjson.loads(json),
    )
    return (read - loads) - (read_flat - loads_flat), loads


def fresh(data: Any) -> Any:
    """As a feed has parsed it: no object is in it twice."""
    return orjson.loads(orjson.dumps(data))


def with_null(data: dict[str, Any]) -> dict[str, Any]:
    """The same data and one None."""
    return {"next": None, **data}


def of_symbol(data: dict[str, Any]) -> dict[str, Any]:
    """The same data and a symbol, so that every letter of `null` is in it."""
    return {"symbol": "BTCUSDT", "update": 1, **data}


def main() -> int:
    """Print the curve, and judge it."""
    shapes: list[tuple[str, int, Any]] = []
    for levels in LEVELS:
        shapes += [(f"lists, 2 x {levels}", levels, of_symbol(book(levels)))]
        shapes += [(f"dicts, 2 x {levels}", levels, of_symbol(ladder(levels)))]
        shapes += [(f"lists, 2 x {levels}, a None", levels, with_null(book(levels)))]
        shapes += [(f"dicts, 2 x {levels}, a None", levels, with_null(ladder(levels)))]
    floats = [price for level in book(500)["bids"] for price in level]
    shapes += [("1,000 floats", 500, [floats]), ("1,000 floats, a None", 500, [*floats, None])]
    shapes += [("40 positions", 0, positions()), ("text with escapes", 0, text())]
    exceeded = 0
    for name, levels, data in shapes:
        data = fresh(data)
        checks, dumps, marshalled, bound = publishing(data)
        reads, loads = reading(data)
        is_over = checks > bound or (levels >= READ_LEVELS and reads > READ * loads + SLACK_NS)
        exceeded += is_over
        print(
            f"payloads   {name:24} {dumps / 1e3:6.2f} us dumps {marshalled / 1e3:6.2f} us marshal"
            f" | checks {checks / 1e3:6.2f} us ({checks / dumps:4.0%}), at most {bound / 1e3:6.2f}"
            f" | {loads / 1e3:6.2f} us loads, checks {reads / 1e3:6.2f} us ({reads / loads:4.0%})"
            f"{'  EXCEEDED' if is_over else ''}",
            flush=True,
        )
    print(f"payloads   {exceeded} of {len(shapes)} beyond their bounds")
    return int(exceeded > 0)


if __name__ == "__main__":
    sys.exit(main())
