"""Events of another bus as they came: rows of JSON, checked once and decoded when they are wanted.

Owns what a row must look like, and the refusal of all others: no peer is trusted, and what it sent
raises WireError and nothing else, in time proportional to its length. Pure: must not know in which
message the rows came.
"""

from collections.abc import Iterator
from gc import get_referents
from typing import Any

import orjson

from aiobus.codec import MAX_CAUSE, MAX_DEPTH
from aiobus.event import Event, arrived
from aiobus.pattern import RESERVED, bad_key, bad_type

__all__ = ["MAX_NUMBER", "Rows", "WireError", "shape"]

MAX_NUMBER = 2**63 - 1
MAX_TYPES = 4_096
SURELY_SHORT = 32
"""Characters of a key. None has more than 4 bytes, so it is within the limit of 128."""
MOSTLY_FEW = 4_096
"""Bytes, which rarely have as many brackets as it takes to be too deep. To count them takes half
the time of looking into each container.
"""
_NO_OPENING = bytes(byte for byte in range(256) if byte not in b"[{")


class WireError(ValueError):
    """What a peer sent is not of this protocol.

    The text says what is wrong with it in lengths, kinds and positions. It quotes subscriptions,
    which have no other clue to whose they are, but never what was published.
    """


class Rows:
    """Events of one source that came together, `count` of them in order. `prev` is the seq of the
    event before and `newest` that of the last one here: `prev` again when there are none.

    Iterating makes the events one by one, and anew each time, so that two subscriptions share
    nothing. What was parsed for the check is kept for the first to iterate.
    """

    __slots__ = ("_json", "_rows", "count", "epoch", "newest", "prev", "source")

    def __init__(self, json: bytes, source: str, epoch: int, prev: int, rows: list[Any]) -> None:
        self.newest = _check(json, prev, rows)
        self.count = len(rows)
        self.source = source
        self.epoch = epoch
        self.prev = prev
        self._json = json
        self._rows: list[Any] | None = rows

    def __iter__(self) -> Iterator[Event[Any]]:
        rows, self._rows = self._rows, None
        source, epoch = self.source, self.epoch
        for seq, timestamp, type, key, data, *cause in rows or orjson.loads(self._json)[-1]:
            yield arrived(type, data, timestamp, key, cause[0] if cause else "", source, epoch, seq)

    def forget(self) -> None:
        """Keep the bytes alone: it will be some time before the events are asked for. Parsed, one
        of four fields takes 850 bytes and not 270, and two objects that each full garbage
        collection looks at: p99 of a HALT in a flood was 32 ms, not 15 (`python -m perf.overload`).
        """
        self._rows = None


def _check(json: bytes, last: int, rows: list[Any]) -> int:
    """The number of the last of `rows`, or `last`, above which theirs rise. Every event taken
    goes through this loop, so it asks only whether all is right; what is not, `_wrong` says.
    """
    for place, row in enumerate(rows):
        try:
            if len(row) == 5:
                seq, timestamp, type_, key, _ = row
            else:
                seq, timestamp, type_, key, _, cause = row
                if not (type(cause) is str and len(cause) <= MAX_CAUSE):
                    raise ValueError
            if not (
                type(seq) is int
                and last < seq <= MAX_NUMBER
                and (type(timestamp) is float or type(timestamp) is int)
                and type(key) is str
                and (len(key) <= SURELY_SHORT or not bad_key(key))
                and (type_ in _types or _note_type(type_))
            ):
                raise ValueError
        except (TypeError, ValueError):
            raise _wrong(row, place, last) from None
        last = seq
    _refuse_deep(json, rows)
    return last


def _wrong(row: Any, place: int, last: int) -> WireError:
    """Why the row at `place` is not that of an event after `last`."""
    full = [*row, ""] if type(row) is list and len(row) == 5 else row
    if type(full) is not list or len(full) != 6:
        reason = f"no event: {shape(row)}"
    elif type(full[0]) is not int or not last < full[0] <= MAX_NUMBER:
        reason = "a seq that is not above the one before"
    elif {*map(type, [*full[2:4], full[5]])} != {str} or type(full[1]) not in (int, float):
        reason = f"no event: {', '.join(map(shape, full))}"
    elif bad_key(full[3]) or len(full[5]) > MAX_CAUSE:
        reason = f"a key or cause that is too long: {shape(full[3])}, {shape(full[5])}"
    else:
        reason = f"no type that is sent: {shape(full[2])}"
    return WireError(f"row {place}: {reason}")


_types: set[str] = set()
"""Types that were right. A peer cannot fill the memory with what is wrong."""


def _note_type(name: str) -> bool:
    """True when this is a type that is sent. Raises TypeError for what is no text."""
    is_right = not bad_type(name) and not name.startswith(RESERVED)
    if is_right:
        if len(_types) >= MAX_TYPES:
            _types.clear()
        _types.add(name)
    return is_right


def _refuse_deep(json: bytes, rows: list[Any]) -> None:
    if len(json) <= 2 * MAX_DEPTH:  # a level takes two brackets
        return
    if len(json) <= MOSTLY_FEW and len(json.translate(None, _NO_OPENING)) <= MAX_DEPTH:
        return
    # A look of the garbage collector into each container is the quickest one that misses nothing.
    level = [row[4] for row in rows]
    for _ in range(MAX_DEPTH):
        level = get_referents(*level)
        if not level:
            return
    if any(isinstance(item, list | dict) for item in level):
        raise WireError(f"data nested more than {MAX_DEPTH} deep")


def shape(value: object) -> str:
    """The kind and length of `value`, never what is in it."""
    size = f" of length {len(value)}" if isinstance(value, str | list | dict) else ""
    return f"{type(value).__name__}{size}"
