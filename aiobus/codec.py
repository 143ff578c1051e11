"""An event as JSON and back: `[seq, timestamp, type, key, data]` or `[..., cause]`, one row of a
data frame.

Owns the promise that what arrives is what was published or its stated image, and the refusal of
everything else. Pure: a row is bytes and an event is a value; who numbers, keeps or sends them is
not known here.

The checks must not cost the usual event: a flat dict of JSON scalars is looked through once; of
anything else the encoded bytes are searched first (orjson writes `null` for NaN, orjson#170), and
only what looks suspicious is walked.
"""

import marshal
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import orjson

from aiobus.errors import EncodeError
from aiobus.event import Event, arrived

__all__ = ["MAX_CAUSE", "copied", "decode", "encode"]

MAX_DEPTH = 100
MAX_CAUSE = 256
"""Characters; the longest id has 98."""
_SCALARS = frozenset({str, int, bool, type(None)})
# Dataclasses and datetimes come to `_image`: by itself orjson drops _private fields and accepts
# naive datetimes in silence.
_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def encode(
    seq: int, timestamp: float, type: str, key: str, data: Any, cause: str, limit: int
) -> bytes:
    """The row of an event, at most `limit` bytes. Raises EncodeError, naming the path, for what has
    no exact image.

    `type` and `key` must have been checked before; they are the same for many events.
    """
    if timestamp.__class__ is not float or timestamp - timestamp != 0.0:
        _examine_timestamp(timestamp)
    row: tuple[object, ...] = (seq, timestamp, type, key, data)
    if cause != "":
        if not isinstance(cause, str) or len(cause) > MAX_CAUSE:
            raise EncodeError("cause", f"{_shown(cause)[:80]} is not the id of an event")
        row += (cause,)
    try:
        encoded = orjson.dumps(row, _image, _OPTIONS)
    except TypeError as error:
        _examine(data, "data", 0)
        _examine(cause, "cause", 0)
        raise EncodeError("data", str(error)) from error
    if not _is_flat(data) and _is_suspicious(data, encoded):
        _examine(data, "data", 0)
    if len(encoded) > limit:
        raise EncodeError(
            "data",
            f"{len(encoded)} bytes encoded, more than the limit of {limit} (Limits.event_bytes)",
        )
    # orjson 3.12 and later keep 4 KiB behind every result (home-assistant/core#181245), which a
    # history of 32,768 rows cannot afford; formatting copies just the bytes.
    return b"%b" % encoded


def decode(rows: Sequence[bytes], source: str, epoch: int) -> list[Event[Any]]:
    """The events of `rows`, which one bus encoded, in order; each has data of its own that nobody
    shares.
    """
    events = []
    for row in orjson.loads(b"[%b]" % b",".join(rows)):
        if len(row) == 5:
            seq, timestamp, type, key, data = row
            cause = ""
        else:
            seq, timestamp, type, key, data, cause = row
        events.append(arrived(type, data, timestamp, key, cause, source, epoch, seq))
    return events


def copied(data: Any) -> Any:
    """A copy of decoded data that shares nothing with it."""
    return orjson.loads(orjson.dumps(data))


def _is_flat(data: object) -> bool:
    """True for a dict of exact JSON scalars with finite floats: surely what it seems, whatever the
    bytes say.
    """
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


def _is_suspicious(data: Any, encoded: bytes) -> bool:
    """True unless `data` is surely plain: JSON's own types throughout, no null that may have been a
    NaN, not too deep.
    """
    if b"null" in encoded:
        return True
    if len(encoded) > 2 * MAX_DEPTH and encoded.count(b"[") + encoded.count(b"{") >= MAX_DEPTH:
        return True
    try:
        # The quickest way to ask "exact built-in types throughout?": a walk in Python takes several
        # times as long for an order book.
        marshal.dumps(data, 2)
    except ValueError:
        return True
    return False


def _image(value: object) -> object:
    """What travels in place of `value`, which JSON does not have. Raises TypeError with the reason
    where nothing exact does.
    """
    match value:
        case datetime():
            if value.utcoffset() is None:
                raise TypeError(
                    f"{value!r} is naive: give it a time zone, such as datetime.now(UTC)"
                )
            return value.isoformat()
        case time() if value.tzinfo is not None:
            raise TypeError(f"{value!r} has a time zone but no date, which has no exact meaning")
        case date() | time():
            return value.isoformat()
        case Decimal():
            if not value.is_finite():
                raise TypeError(f"{value!r} is not a finite number")
            return str(value)
        case UUID():  # a subclass, which orjson does not know
            return str(value)
        case tuple():
            return list(value)
        case float():
            return float(value)
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        if private := [name for name in names if name.startswith("_")]:
            raise TypeError(
                f"the dataclass {type(value).__name__} has the private field {private[0]},"
                " which would not travel"
            )
        try:
            return {name: getattr(value, name) for name in names}
        except AttributeError as error:
            raise TypeError(
                f"the dataclass {type(value).__name__} has no value in its field {error.name}"
            ) from None
    if type(value).__module__ == "numpy" and (dtype := getattr(value, "dtype", None)) is not None:
        # Of the other kinds, times become bare numbers or null, records lose their names, objects
        # may hide anything from `marshal`, and a long double has digits that a float has not.
        if dtype.kind in "biufU" and dtype.char != "g":
            return value.tolist()  # type: ignore[attr-defined]
        raise TypeError(
            f"a numpy {type(value).__name__} of {dtype} has no exact JSON image;"
            " convert it to numbers or text"
        )
    raise TypeError(
        f"a {type(value).__name__} has no exact JSON image;"
        " publish numbers, text, lists and dicts instead"
    )


def _examine(value: object, path: str, depth: int) -> None:
    """Walk `value` by the same rules orjson and `_image` follow and raise EncodeError at the first
    thing they would spoil.
    """
    if isinstance(value, Enum):
        _examine(value.value, f"{path}.value", depth)
    elif value is None or isinstance(value, bool | UUID):
        return
    elif isinstance(value, str):
        _examine_text(value, path)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise EncodeError(
                path, f"{_shown(value)} does not fit into 64 bits; publish it as text"
            )
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise EncodeError(
                path, f"{float(value)} is not a JSON number; publish None or leave the field out"
            )
    elif isinstance(value, dict):
        items = dict.items(value)  # as orjson reads it, whatever a subclass makes of items()
        for key, _ in items:
            if type(key) is not str:
                raise EncodeError(
                    path,
                    f"the key {_shown(key)} is a {type(key).__name__}; keys are exact strings",
                )
            _examine_text(key, f"{path} (a key)")
        _examine_all(((f"{path}[{key!r}]", item) for key, item in items), path, depth)
    elif isinstance(value, list | tuple):
        elements = list.__iter__(value) if isinstance(value, list) else iter(value)
        _examine_all(
            ((f"{path}[{index}]", item) for index, item in enumerate(elements)), path, depth
        )
    elif isinstance(value, orjson.Fragment):
        raise EncodeError(
            path, "an orjson.Fragment is sent unchecked; publish the value it stands for"
        )
    else:
        _examine_image(value, path, depth)


def _examine_image(value: object, path: str, depth: int) -> None:
    try:
        image = _image(value)
    except TypeError as error:
        raise EncodeError(path, str(error)) from None
    if is_dataclass(value) and isinstance(image, dict):
        _examine_all(((f"{path}.{name}", item) for name, item in image.items()), path, depth)
    else:
        _examine(image, path, depth)


def _examine_all(items: Iterable[tuple[str, object]], path: str, depth: int) -> None:
    if depth == MAX_DEPTH:
        raise EncodeError(path, f"nested more than {MAX_DEPTH} deep, or containing itself")
    for place, item in items:
        _examine(item, place, depth + 1)


def _examine_timestamp(timestamp: object) -> None:
    is_time = isinstance(timestamp, float) and math.isfinite(timestamp)
    if isinstance(timestamp, int) and not isinstance(timestamp, bool):
        is_time = -(2**63) <= timestamp < 2**64
    if not is_time:
        hint = "; a key is given by its name, Event(type, data, key=...)"
        raise EncodeError(
            "timestamp",
            f"{_shown(timestamp)} is not a finite number of Unix seconds"
            f"{hint if isinstance(timestamp, str) else ''}",
        )


def _shown(value: object) -> str:
    # Python refuses to write integers of thousands of digits in decimal, but not in hexadecimal.
    is_long = isinstance(value, int) and value.bit_length() > 128
    return f"{value:#x}"[:40] + "..." if is_long else repr(value)


def _examine_text(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EncodeError(
            path, f"{text[:40]!r} is not valid Unicode text: {error.reason}"
        ) from None
