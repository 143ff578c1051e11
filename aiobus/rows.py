"""Events of another bus as they came: rows of JSON that are checked and parsed when they are handed
over, a few at a time.

Owns what a row must look like. No peer is trusted: a row that is wrong ends its batch, with the
rows before it intact, and takes time in proportion to its length. Pure: must not know in which
message the rows came.
"""

from collections.abc import Callable
from gc import get_referents
from typing import Any

import orjson

from aiobus.codec import MAX_CAUSE, MAX_DEPTH
from aiobus.event import KNOWN, Event
from aiobus.query import RESERVED, bad_key, bad_type

__all__ = [
    "MAX_NUMBER", "SEPARATOR", "LazyBatch", "Rows", "Source", "WireError", "shape",
]  # fmt: skip

Source = tuple[str, int]
"""Whose numbers: a bus's name and epoch."""

MAX_NUMBER = 2**63 - 1
MAX_TYPES = 4_096
MIN_ROW = len('[1,1,"T","",0]')
"""Bytes of the shortest row. A count that the bytes cannot hold is refused at once."""
SEPARATOR = b",\n"
"""Between two rows. orjson writes no newline of its own, so rows are parted without parsing."""
OPENED = 32
"""Events that are parsed at once. A page of 128 in one go was the longest step of a subscription
that catches up.
"""
OPENED_BYTES = 16 * 1024
"""Bytes of rows that are parsed at once, if there is more than one: about 100 us. The garbage
collector looks at whatever is parsed and waits: with 6,000 books of 2 x 20 levels, two thirds of a
subscriber's time.
"""
SHORT = 512
"""Bytes of a row that is copied in less time than a view of it is made."""
SURELY_SHORT = 32
"""Characters of a key. None has more than 4 bytes, so it is within the limit of 128."""
MOSTLY_FEW = 4_096
"""Bytes that rarely have too many brackets. Counting these takes half the time of a full look."""
_NO_OPENING = bytes(byte for byte in range(256) if byte not in b"[{")


class WireError(ValueError):
    """What a peer sent is not of this protocol.

    The text says what is wrong in lengths, kinds and positions. It quotes subscriptions, which
    nothing else identifies, but never what was published.
    """


class Rows:
    """Events of one source that came together: `count` of them, in order, above the seq `prev` and
    up to `newest`. They are `message[begin:end]` and have not been looked at. `is_frame`: the last
    one has the seq `newest`, or rows are missing. Of a page `newest` is how far it goes.
    """

    __slots__ = (
        "_begin", "_end", "_message", "count", "epoch", "is_frame", "newest", "permits", "prev",
        "size", "source",
    )  # fmt: skip

    def __init__(
        self,
        message: bytes,
        begin: int,
        end: int,
        source: Source,
        span: tuple[int, int],
        count: int,
        *,
        is_frame: bool,
    ) -> None:
        self.size = size = end - begin
        """Bytes of the text."""
        if count * MIN_ROW > max(0, size) or (count == 0 and size > 0):
            raise WireError(f"{count} rows in {size} bytes")
        self.source, self.epoch = source
        self.prev, self.newest = span
        self.count = count
        self.is_frame = is_frame
        self.permits: Callable[[str], bool] | None = None
        """True if the source may publish a type. Rows of other types are left out. None: any."""
        self._message = message
        self._begin = begin
        self._end = end

    @property
    def text(self) -> bytes:
        """The rows, with commas between them."""
        return self._message[self._begin : self._end]

    def lines(self) -> list[memoryview]:
        """What is between the newlines of the text, not copied."""
        view, find = memoryview(self._message), self._message.find
        lines, begin = [], self._begin
        while (newline := find(b"\n", begin, self._end)) >= 0:
            lines.append(view[begin:newline])
            begin = newline + 1
        return [*lines, view[begin : self._end]]


class LazyBatch:
    """The events of `rows` for one subscription, which shares them with no other. `left`: how many
    are still to be taken. `last`: the seq of the last that was. `error`: why those that were left
    are not events; then there are none left. The events up to `past` are marked as such.
    """

    __slots__ = ("_at", "_parts", "error", "last", "left", "past", "rows")

    def __init__(self, rows: Rows, past: int = 0) -> None:
        self.rows = rows
        self.past = past
        self.left = rows.count
        self.last = rows.prev
        self.error: WireError | None = None
        self._parts: list[bytes] | list[memoryview] = []
        self._at = 0

    def take(self) -> list[Event[Any]]:
        """Parse the next events that their source may publish: at most 32, and 16 KiB if several.
        Empty if the next is wrong, or if all that are left are of types that it may not.
        """
        events = self._take_some()
        while not events and self.left:  # all of these were of such types
            events = self._take_some()
        return events

    def _take_some(self) -> list[Event[Any]]:
        if not self._parts:
            self._parts = self._split()
        some = self._parts[self._at : self._at + OPENED]
        while len(some) > 1 and sum(map(len, some)) >= OPENED_BYTES + len(some):  # their commas
            some = some[: len(some) // 2]
        text = b"\n".join(some)
        if self._at + len(some) < len(self._parts):
            if text.endswith(b","):
                text = text[:-1]
            else:  # the rest is parted in another way
                some = self._parts[self._at :]
                text = b"\n".join(some)
        self._at += len(some)
        events = self._parse(text, len(some) if len(self._parts) > 1 else None)
        self.left -= len(events)
        if self.left or self._at < len(self._parts) or self.last != self.rows.newest:
            self.error = self.error or self._wrong_end()
        if self.error is not None:
            self.left = 0
        return events

    def _split(self) -> "list[bytes] | list[memoryview]":
        count, size = self.rows.count, self.rows.size
        if count > OPENED or size > OPENED_BYTES:
            is_short = size < count * SHORT
            # One byte is sought in a tenth of the time that the two of the separator take.
            parts = self.rows.text.split(b"\n") if is_short else self.rows.lines()
            if len(parts) == count:
                return parts
        return [self.rows.text]

    def _wrong_end(self) -> WireError | None:
        if self.left > 0 and self._at < len(self._parts):
            return None  # there are more to open
        if self.left or self._at < len(self._parts):
            return WireError(f"not {self.rows.count} rows, as the head says")
        if self.rows.is_frame and self.last != self.rows.newest:
            return WireError("a last row that is not the one the head names")
        return None

    def _parse(self, text: bytes, count: int | None) -> list[Event[Any]]:
        try:
            rows = orjson.loads(b"[%b]" % text)
            if count is not None and len(rows) != count:
                raise WireError(f"{len(rows)} rows where {count} are said to be")
            _refuse_deep(text, rows)
        except ValueError as error:
            return self._parse_one_by_one(text, error)
        return self._made(rows)

    def _parse_one_by_one(self, text: bytes, error: ValueError) -> list[Event[Any]]:
        """The events before the one that cannot be parsed."""
        parts = text.split(SEPARATOR)
        if len(parts) == 1:
            self.error = WireError(f"{len(text)} bytes of rows: {error}")
            return []
        events: list[Event[Any]] = []
        for part in parts:
            events += self._parse(part, 1)
            if self.error is not None:
                break
        return events

    def _made(self, rows: list[Any]) -> list[Event[Any]]:
        """Check and make each event: the hot loop. `_wrong` says what is wrong."""
        source, epoch, last, newest = self.rows.source, self.rows.epoch, self.last, self.rows.newest
        past, permits = self.past, self.rows.permits
        events = []
        for row in rows:
            try:
                if len(row) == 5:
                    seq, timestamp, type_, key, data = row
                    cause = ""
                else:
                    seq, timestamp, type_, key, data, cause = row
                    if not (type(cause) is str and len(cause) <= MAX_CAUSE):
                        raise ValueError
                if not (
                    type(seq) is int
                    and last < seq <= newest
                    and (type(timestamp) is float or type(timestamp) is int)
                    and type(key) is str
                    and (len(key) <= SURELY_SHORT or not bad_key(key))
                ):
                    raise ValueError
                event = _new(Event)
                event.type = _types.get(type_) or _note_type(type_)
            except (TypeError, ValueError):
                self.error = _wrong(row, last, newest)
                break
            if permits is not None and not permits(event.type):
                last = seq
                self.left -= 1
                continue
            event.data = data
            # Another program may write 1 for 1.0; a journal keeps, and gives back, a float.
            event.timestamp = timestamp if type(timestamp) is float else float(timestamp)
            event.key = key
            event.cause = cause
            event.source = source
            event.epoch = epoch
            event.seq = last = seq
            event.past = seq <= past
            events.append(event)
        self.last = last
        return events


_new = Event.__new__


def _wrong(row: Any, last: int, newest: int) -> WireError:
    """Why `row` is not that of an event after `last` and up to `newest`."""
    full = [*row, ""] if type(row) is list and len(row) == 5 else row
    if type(full) is not list or len(full) != 6:
        reason = f"no event: {shape(row)}"
    elif type(full[0]) is not int or not last < full[0] <= newest:
        reason = "a seq that is not above the one before, or above the newest"
    elif {*map(type, [*full[2:4], full[5]])} != {str} or type(full[1]) not in (int, float):
        reason = f"no event: {', '.join(map(shape, full))}"
    elif bad_key(full[3]) or len(full[5]) > MAX_CAUSE:
        reason = f"a key or cause that is too long: {shape(full[3])}, {shape(full[5])}"
    else:
        reason = f"no type that is sent: {shape(full[2])}"
    return WireError(f"a row after seq {last}: {reason}")


_types: dict[str, str] = {}
"""Types that were right. A peer cannot fill the memory with what is wrong."""


def _note_type(name: str) -> str:
    """The type of this name. Raises TypeError or ValueError for one that is not sent."""
    if bad_type(name) or name.startswith(RESERVED):
        raise ValueError
    if len(_types) >= MAX_TYPES:
        _types.clear()
    found = _types[name] = KNOWN.get(name, name)
    return found


def _refuse_deep(json: bytes, rows: list[Any]) -> None:
    if len(json) <= 2 * MAX_DEPTH:  # a level takes two brackets
        return
    if len(json) <= MOSTLY_FEW and len(json.translate(None, _NO_OPENING)) <= MAX_DEPTH:
        return
    # A look of the garbage collector into each container is the quickest one that misses nothing.
    level = [row[4] for row in rows if type(row) is list and len(row) > 4]
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
