"""An event as JSON and back: `[seq, timestamp, type, key, data]` or `[..., cause]`, one row of a
data frame.

Owns the promise that what arrives is what was published or its stated image, and the refusal of
everything else. Pure: a row is bytes and an event is a value; who numbers, keeps or sends them is
not known here.

orjson refuses most of what has no exact image. Two things it lets through: it writes `null` for NaN
(orjson#170), and it copies an orjson.Fragment unread. The checks for these two must not cost what
the encoding costs, so they look for evidence that there is none, and walk the data only without it.
That no Fragment exists is told in constant time: each holds a reference to its type, so the count
of those references tells.
"""

import marshal
import math
import re
import traceback
from collections.abc import Iterable, Sequence
from enum import Enum
from functools import partial
from gc import get_referents, get_referrers
from sys import getrefcount, version_info
from typing import Any
from uuid import UUID

import orjson
from orjson import Fragment

from aiobus.errors import EncodeError
from aiobus.event import KNOWN, Event
from aiobus.image import Refused, fields_of, image_of
from aiobus.limits import LATEST, way_out
from aiobus.query import kind_of

__all__ = [
    "MAX_CAUSE", "MAX_DEPTH", "copied", "decode", "encode", "may_exist", "seq_of", "shown",
]  # fmt: skip

references = partial(getrefcount, Fragment)
"""How many references to the type there are; `UNUSED` if no Fragment exists."""


def may_exist() -> bool:
    """False only if no Fragment exists. True also once other code names the type."""
    return references() != UNUSED


def _unused() -> int:
    """The count while no Fragment exists; 0, which no count is, if the count tells nothing."""
    count = references()
    fragment = Fragment(b"")
    counted = references()
    del fragment
    # The garbage collector knows all that refers to the type, `references` among it, except for
    # Fragments, which may exist already, and a reference of orjson's own before Python 3.13. One
    # too few here costs time; one too many would take the first Fragment for it.
    own = version_info < (3, 13)
    holders = get_referrers(Fragment)
    held = sum(item is Fragment for holder in holders for item in get_referents(holder)) + own
    # A Fragment of orjson before 3.13 holds no reference. A later one may hold more of its own.
    return held if counted == count + 1 and count >= held else 0


UNUSED = _unused()


MAX_DEPTH = 253
"""Levels of nested data. orjson encodes 254, and the row is one."""
MAX_CAUSE = 256
"""Characters; the longest id has 98."""
_DEEP_END = MAX_DEPTH + 2
"""Brackets of a row with one level too many."""
_DEEP = 2 * _DEEP_END
"""Bytes of the shortest such row."""
_N, _U = b"nu"
_CLOSING = b"]}"
_JSON = frozenset({dict, list, str, int, float, bool, type(None)})
_SCALARS = frozenset({str, int, bool, type(None)})
# Dataclasses and datetimes come to `_image`: by itself orjson drops _private fields and accepts
# naive datetimes in silence.
_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
# How marshal writes a float whose exponent is all ones: NaN or an infinity. Other bytes may look
# the same; then the walk decides.
_NON_FINITE = re.compile(rb"g.{6}[\xf0-\xff][\x7f\xff]", re.DOTALL)


def encode(
    seq: int, timestamp: float, type: str, key: str, data: Any, cause: str, limit: int
) -> bytes:
    """The row of an event, at most `limit` bytes. `type` and `key` are checked already. Raises
    EncodeError, with the path, for what has no exact image, and for whatever reading an object
    raises.
    """
    if timestamp.__class__ is not float or not 0.0 <= timestamp <= LATEST:
        _examine_timestamp(timestamp)
        timestamp = float(timestamp)  # as a journal keeps it: one that is live has the same image
    value = data
    if data.__class__ not in _JSON and (make := fields_of(data.__class__)) is not None:
        # If orjson asks for it instead, each None in it costs a walk through all.
        try:
            value = make(data)
        except Exception:  # noqa: BLE001 - orjson asks then, and it is told with its path
            value = data
    row: tuple[object, ...] = (seq, timestamp, type, key, value)
    if cause != "":
        if not isinstance(cause, str) or len(cause) > MAX_CAUSE:
            raise EncodeError(
                "cause", f"{shown(cause)[:80]} is not the id of an event: give event.id"
            )
        row += (cause,)
    before = _images
    try:
        encoded = orjson.dumps(row, _image, _OPTIONS)
    except TypeError as error:
        if error.__cause__ and not isinstance(error.__cause__, Exception):
            raise error.__cause__ from None  # a cancellation, which orjson hides
        _examine(data, "data")
        _examine(cause, "cause")
        raise EncodeError("data", str(error)) from error
    # A byte is sought in a tenth of the time of `null`: 9 ns, and 60 to 180.
    has_null = _N in encoded and _U in encoded and encoded.rfind(b"null") >= 0
    if (
        (has_null or references() != UNUSED)
        and not _is_flat(value)
        # What went through `_image` may show marshal other bytes than it shows orjson.
        and (_images != before or not _is_plain(value))
    ):
        _examine(data, "data")
    size = len(encoded)
    # Tuples in tuples, which orjson from 3.12 on does not count as levels.
    if (
        size >= _DEEP
        and encoded[-_DEEP_END] in _CLOSING
        and not encoded[-_DEEP_END:].strip(_CLOSING)
    ):
        _examine(data, "data")
    if size > limit:
        raise EncodeError(
            "data",
            f"{size} bytes encoded, more than the limit of {limit}: publish it in parts, or"
            " give the bus limits=Limits(event_bytes=...)",
        )
    # orjson 3.12 and later keep 4 KiB behind every result (home-assistant/core#181245), which a
    # history of 131,072 rows cannot afford; formatting copies just the bytes.
    return b"%b" % encoded


def decode(rows: Sequence[bytes], source: str, epoch: int, past: int = 0) -> list[Event[Any]]:
    """The events of `rows`, encoded by one bus, in order. Their data is not shared. Those with a
    seq up to `past` are marked.
    """
    events = []
    for row in orjson.loads(b"[%b]" % b",".join(rows)):
        # As `Event(...)`, in half the time.
        event = _new(Event)
        if len(row) == 5:
            event.seq, event.timestamp, type, event.key, event.data = row
            event.cause = ""
        else:
            event.seq, event.timestamp, type, event.key, event.data, event.cause = row
        event.type = _known(type, type)
        event.source = source
        event.epoch = epoch
        event.past = event.seq <= past
        events.append(event)
    return events


def seq_of(row: bytes) -> int:
    """The seq of the event that `row` encodes."""
    return int(row[1 : row.index(b",")])


_new = Event.__new__
_known = KNOWN.get


def copied(data: Any) -> Any:
    """A copy of decoded data, however deep, that shares nothing with it."""
    return marshal.loads(marshal.dumps(data))


def _is_flat(data: object) -> bool:
    """True for a dict of exact JSON scalars with finite floats, as most events have."""
    if type(data) is not dict:
        return False
    for value in data.values():
        kind = type(value)
        if kind is float:
            if value - value != 0.0:  # NaN and the infinities; no call, no import
                return False
        elif kind not in _SCALARS:
            return False
    return True


def _is_plain(data: Any) -> bool:
    """True if `data` has surely only JSON's own types, without NaN and infinity."""
    try:
        marshalled = marshal.dumps(data, 2)
    except ValueError:
        return False
    # Most small data has neither of the last bytes of such a float.
    return not (0x7F in marshalled or 0xFF in marshalled) or not _NON_FINITE.search(marshalled)


_images = 0
"""How often `_image` was called. A row for which it was not called has only types that orjson
knows. A hook for each event could say so itself, but costs as much as the other checks together.
"""


def _image(value: object) -> object:
    """What travels in place of `value`, for orjson. Raises any error if nothing does."""
    global _images
    _images += 1
    image = image_of(value)
    if type(image) is float or (type(image) is list and not isinstance(value, tuple)):
        if not _is_plain(image):
            raise Refused("not a finite number")
    elif type(image) is dict and may_exist():  # which may be gone with the image
        _examine(image, "data")
    return image


_Contents = tuple[Iterable[tuple[Any, Any]], str, int]
"""What is in a value by key or index, how a step to it is written, and how many levels it takes."""


def _examine(data: object, name: str) -> None:
    """Walk `data` as orjson and `_image` do; raise EncodeError at the first thing they spoil."""
    try:
        _walk([(name, data)], "{}", MAX_DEPTH)
    except Refused as refused:
        raise EncodeError("".join(reversed(refused.steps)), refused.reason) from None


def _walk(items: Iterable[tuple[Any, Any]], form: str, room: int) -> None:
    """Examine `items`, in which there is room for so many levels."""
    for key, item in items:
        kind = type(item)  # most are plain, and a call takes longer than these questions
        if kind is float:
            if item - item == 0.0:
                continue
        elif kind is str:
            if item.isascii():
                continue
        elif kind is int:
            if -(2**63) <= item < 2**64:
                continue
        elif item is None or kind is bool:
            continue
        try:
            inner, inner_form, levels = _contents(item)
            if levels > room:
                raise Refused(f"nested more than {MAX_DEPTH} deep, or containing itself")
            _walk(inner, inner_form, room - levels)
        except Refused as refused:
            refused.steps.append(form.format(key))
            raise
        except Exception as error:  # noqa: BLE001 - reading a value may run any code, and recurse
            said = traceback.format_exception_only(error)[-1].strip()[:200]
            raise Refused(
                f"{kind_of(item)} has no exact JSON image ({said});"
                " publish numbers, text, lists and dicts instead",
                form.format(key),
            ) from None


def _contents(value: object) -> _Contents:
    """What is left to examine in `value`. Raises Refused if `value` itself is not right."""
    if isinstance(value, Enum):
        return [("value", value.value)], ".{}", 0
    if isinstance(value, str):
        _examine_text(value)
    elif isinstance(value, int):  # a bool among them
        if not -(2**63) <= value < 2**64:
            raise Refused(f"{shown(value)} does not fit into 64 bits; publish it as text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise Refused(
                f"{float(value)} is not a JSON number; publish None or leave the field out"
            )
    elif isinstance(value, dict):
        items = dict.items(value)  # as orjson reads it, whatever a subclass makes of items()
        for key, _ in items:
            if type(key) is not str:
                raise Refused(
                    f"the key {shown(key)[:80]} is {kind_of(key)}; keys are exact strings"
                )
            _examine_text(key, " (a key)")
        return items, "[{!r}]", 1
    elif isinstance(value, list):
        return enumerate(list.__iter__(value)), "[{!r}]", 1
    elif isinstance(value, tuple):
        return enumerate(value), "[{!r}]", 1
    elif isinstance(value, orjson.Fragment):
        raise Refused("an orjson.Fragment is sent unchecked; publish the value it stands for")
    elif value is not None and type(value) is not UUID:
        image = image_of(value)
        return (image.items(), ".{}", 1) if type(image) is dict else _contents(image)
    return (), "", 0


def _examine_timestamp(timestamp: object) -> None:
    """Raise EncodeError unless `timestamp` is a time in seconds."""
    is_number = isinstance(timestamp, int | float) and not isinstance(timestamp, bool)
    if not (is_number and 0 <= timestamp <= LATEST):  # type: ignore[operator]
        hint = way_out(timestamp)
        if isinstance(timestamp, str):
            hint = "a key is given by its name, Event(type, data, key=...); "
        raise EncodeError(
            "timestamp",
            f"{shown(timestamp)[:80]} is no time: {hint}seconds since 1970, such as time.time(),"
            " are needed",
        )


def shown(value: object) -> str:
    """`value` as an error quotes it."""
    # Python refuses to write integers of thousands of digits in decimal, but not in hexadecimal.
    is_long = isinstance(value, int) and value.bit_length() > 128
    return f"{value:#x}"[:20] + "..." if is_long else repr(value)


def _examine_text(text: str, place: str = "") -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refused(f"{text[:40]!r} is not valid Unicode text: {error.reason}", place) from None
