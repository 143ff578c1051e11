"""What travels in place of a value that JSON does not have: an image that it states exactly.

Owns which values have one and how it is made. Pure. How a class is taken apart is worked out once:
to ask each object again takes as long as encoding its event.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from inspect import getattr_static
from operator import attrgetter
from typing import Any
from uuid import UUID

from aiobus.query import kind_of

__all__ = ["Refused", "fields_of", "image_of"]

NAMED = (dict, list, str, int)
"""What JSON has itself, a subclass too."""

_SERIALIZERS = (
    *("serialization", "computed_fields"),
    *("serialization_exclude", "serialization_exclude_if"),
)
"""Where the schema of a model says that a dump has something else than the fields."""

MOST_KINDS = 1_024
"""Classes that are remembered. A program may make any number of them."""


class Refused(Exception):
    """Why something is refused. The steps to it are added on the way back, the last one first: to
    write them on the way there takes most of the time of a walk.
    """

    def __init__(self, reason: str, *steps: str) -> None:
        self.reason = reason
        self.steps = [*steps]


Maker = Callable[[Any], Any]


def image_of(value: object) -> Any:
    """The exact image of a `value` that JSON does not have, one level of it. Raises Refused if
    there is none.
    """
    kind: Any = type(value)  # to mypy a class may have no hash
    return _maker(kind)(value)


@lru_cache(maxsize=MOST_KINDS)
def fields_of(kind: type) -> Maker | None:
    """What takes an object of this class apart into a dict or list of its fields: a dataclass, a
    Struct of msgspec or a model of pydantic. None for any other class.
    """
    if issubclass(kind, (*_OF, *NAMED, Enum)):
        return None
    if is_dataclass(kind):
        return _of_dataclass(kind, [each.name for each in fields(kind)])
    if hasattr(kind, "__struct_fields__"):
        return _of_struct(kind)
    if hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_dump"):
        return _of_model(kind)
    return None


@lru_cache(maxsize=MOST_KINDS)
def _maker(kind: type) -> Maker:
    for base, make in _OF.items():
        if issubclass(kind, base):
            return make
    if (make_dict := fields_of(kind)) is not None:
        return make_dict
    if kind.__module__ == "numpy" and hasattr(kind, "dtype"):
        return _of_numpy
    return _of_bytes if issubclass(kind, bytes | bytearray | memoryview) else _of_nothing


def _by_fields(what: str, names: Iterable[str], keys: Iterable[str] = ()) -> Maker:
    """A dict of the attributes `names`, called `keys`."""
    names = [*names]
    keys = [*(keys or names)]
    if private := [name for name in names if name.startswith("_")]:
        reason = f"{what} has the private field {private[0]}, which would not travel"
        return lambda value: _refuse(reason)
    if not names:
        return lambda value: {}
    read = attrgetter(*names)
    only = keys[0]

    def make(value: Any) -> dict[str, Any]:
        try:
            found = read(value)
        except AttributeError as error:
            raise Refused(f"{what} has no value in its field {error.name}") from None
        return {only: found} if len(keys) == 1 else dict(zip(keys, found, strict=True))

    return make


def _of_dataclass(kind: Any, names: list[str]) -> Maker:
    make = _by_fields(f"the dataclass {kind.__name__}", names)
    known = frozenset(names)
    if not _is_as_held(kind, names):
        return make

    # What an object holds is a dict already. One with slots has none.
    def held(value: Any) -> dict[str, Any]:
        found: dict[str, Any] = getattr(value, "__dict__", {})
        return found if found.keys() == known else make(value)

    return held


def _is_as_held(kind: Any, names: Iterable[str]) -> bool:
    """True if reading these attributes gives what the object holds, and all of them may travel."""
    return kind.__getattribute__ is object.__getattribute__ and not any(
        name.startswith("_") or hasattr(type(getattr_static(kind, name, None)), "__set__")
        for name in names
    )


def _of_struct(kind: Any) -> Maker:
    """A msgspec.Struct, as msgspec encodes it, with all fields."""
    config = kind.__struct_config__
    names, keys = kind.__struct_fields__, kind.__struct_encode_fields__
    make = _by_fields(f"the Struct {kind.__name__}", names, keys)
    is_plain = kind.__getattribute__ is object.__getattribute__
    if names == keys and is_plain and not any(name.startswith("_") for name in names):
        from msgspec.structs import asdict as make  # in C; a Struct without a value raises
    if config.array_like:
        head = [] if config.tag is None else [config.tag]
        return lambda value: [*head, *make(value).values()]
    if config.tag is None:
        return make
    return lambda value: {config.tag_field: config.tag, **make(value)}


def _of_model(kind: Any) -> Maker:
    """A model of pydantic, under its aliases; as it dumps itself, if it says how."""
    if private := [*kind.__private_attributes__]:
        reason = (
            f"the model {kind.__name__} has the private field {private[0]}, which would not travel"
        )
        return lambda value: _refuse(reason)
    if _has_serializers(kind):
        return lambda value: value.model_dump(by_alias=True)
    # A dump is all levels at once: private fields and what a subclass adds are left out below.
    found = kind.model_fields
    keys = [each.serialization_alias or each.alias or name for name, each in found.items()]
    make = _by_fields(f"the model {kind.__name__}", found, keys)
    return lambda value: {**make(value), **(value.__pydantic_extra__ or {})}


def _has_serializers(kind: Any) -> bool:
    """True if a model, or a type in it, says itself what it is in JSON or what is left out."""
    if kind.__pydantic_root_model__:
        return True
    left: list[Any] = [kind.__pydantic_core_schema__]
    seen: dict[int, Any] = {}
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen[id(node)] = node
        if isinstance(node, Mapping):
            if any(node.get(name) for name in _SERIALIZERS):
                return True
            left += node.values()
        elif isinstance(node, list | tuple):
            left += node
    return False


def _of_datetime(value: datetime) -> str:
    if value.utcoffset() is None:
        raise Refused(f"{value!r} is naive: give it a time zone, such as datetime.now(UTC)")
    return value.isoformat()


def _of_time(value: time) -> str:
    if value.tzinfo is not None:
        raise Refused(f"{value!r} has a time zone but no date, which has no exact meaning")
    return value.isoformat()


def _of_decimal(value: Decimal) -> str:
    if not value.is_finite():
        raise Refused(f"{value!r} is not a finite number")
    return str(value)


def _of_numpy(value: Any) -> Any:
    # Of the other kinds, times become bare numbers or null, records lose their names, objects
    # may be anything, and a long double has digits that a float has not.
    dtype = value.dtype
    if dtype.kind in "biufU" and dtype.char != "g":
        return value.tolist()
    raise Refused(
        f"a numpy {type(value).__name__} of {dtype} has no exact JSON image;"
        " convert it to numbers or text"
    )


def _of_bytes(value: object) -> Any:
    raise Refused(
        f"{kind_of(value)} has no exact JSON image;"
        " publish base64 text instead, base64.b64encode(data).decode()"
    )


def _of_nothing(value: object) -> Any:
    raise Refused(
        f"{kind_of(value)} has no exact JSON image; publish numbers, text, lists and dicts instead"
    )


def _refuse(reason: str) -> Any:
    raise Refused(reason)


_OF: dict[type, Maker] = {
    datetime: _of_datetime,
    date: date.isoformat,
    time: _of_time,
    Decimal: _of_decimal,
    UUID: str,  # a subclass, which orjson does not know
    tuple: list,
    float: float,
}
"""By base class, the first one counts: a datetime is a date."""
