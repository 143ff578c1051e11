"""What travels, what arrives, and what is refused before it gets a number."""

import asyncio
import collections
import datetime as dt
import enum
import inspect
import math
import struct
import subprocess
import sys
import textwrap
import types
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobus import EncodeError, Event, EventType
from aiobus.codec import copied, decode, encode

LIMIT = 1024 * 1024
NAN = math.nan
UTC = dt.UTC
MOMENT = dt.datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC)
NUMBER = uuid.UUID("12345678-1234-5678-1234-567812345678")


@dataclass
class Order:
    price: Any
    legs: Any = ()


@dataclass(slots=True, frozen=True)
class Slotted:
    price: Any


@dataclass
class Secretive:
    price: float
    _margin: float


@dataclass
class Unfinished:
    price: float
    filled: float = field(init=False)


class Pair(NamedTuple):
    bid: Any
    ask: Any


class Side(enum.StrEnum):
    BUY = "buy"


class Level(enum.IntEnum):
    HIGH = 3


class Venue(enum.Enum):
    BROKEN = NAN
    OPENED = dt.datetime(2024, 1, 1)
    PAIR = (1, 2.5)


class Price(float):
    pass


class Count(int):
    pass


class Name(str):
    __slots__ = ()


class Row(list):
    pass


class OrderNumber(uuid.UUID):
    pass


class Unplaced(dt.tzinfo):
    """A time zone that does not know its offset: what it is given to is naive all the same."""

    def utcoffset(self, when: dt.datetime | None) -> None:
        return None


class HeadsOnly(dict):
    """As some dicts of several values do: shows less than it holds."""

    def items(self) -> Any:
        return {}.items()

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class NothingToSee(list):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


def row(data: object, timestamp: Any = 1.5, cause: Any = "", limit: int = LIMIT) -> bytes:
    return encode(7, timestamp, "TRADE", "BTC", data, cause, limit)


def sent(data: object) -> Any:
    (event,) = decode([row(data)], "desk", 1)
    return event.data


def refusal(data: object, **more: Any) -> EncodeError:
    with pytest.raises(EncodeError) as caught:
        row(data, **more)
    return caught.value


def bits(value: Any) -> Any:
    """`value` with its floats as their bits and every scalar with its type, so that == is exact."""
    match value:
        case float():
            return struct.pack(">d", value)
        case list():
            return [bits(item) for item in value]
        case dict():
            return [(key, bits(item)) for key, item in value.items()]
    return type(value), value


def nested(times: int, value: object) -> object:
    for _ in range(times):
        value = [value]
    return value


# What arrives bit for bit.

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INTS = st.integers(-(2**63), 2**64 - 1)
SCALARS = st.none() | st.booleans() | FLOATS | INTS | TEXT
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def deep_json(draw: st.DrawFn) -> Any:
    """JSON inside of up to 240 lists and objects, which with its own depth stays below 253."""
    value = draw(JSON)
    for is_list in draw(st.lists(st.booleans(), max_size=240)):
        value = [value] if is_list else {"in": value}
    return value


@given(st.lists(JSON | deep_json(), max_size=4))
def test_json_values_arrive_bit_for_bit_several_rows_at_once(values: list[Any]) -> None:
    rows = [encode(seq, 1.5, "TRADE", "BTC", data, "", LIMIT) for seq, data in enumerate(values)]
    events = list(decode(rows, "desk", 1))
    assert [bits(event.data) for event in events] == [bits(value) for value in values]
    assert [event.seq for event in events] == list(range(len(values)))


@given(FLOATS)
def test_every_finite_float_arrives_with_all_its_bits(number: float) -> None:
    assert sent(number).hex() == number.hex()


@pytest.mark.parametrize("number", [-0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 1e22, 2.0**53])
def test_the_corners_of_float_arrive_as_floats(number: float) -> None:
    assert sent({"n": [number]})["n"][0].hex() == number.hex()


@pytest.mark.parametrize("number", [-(2**63), 2**63, 2**64 - 1, 2**53 + 1, 0])
def test_integers_of_64_bits_arrive_as_integers(number: int) -> None:
    assert bits(sent([number])) == bits([number])
    assert bits(sent([number, None])) == bits([number, None])  # which is walked


@pytest.mark.parametrize("data", [None, True, "text", "", 5, 2.5, [], {}, "null", ["NaN"]])
def test_data_need_not_be_an_object(data: object) -> None:
    assert bits(sent(data)) == bits(data)


def test_none_inside_data_arrives_as_none() -> None:
    assert sent({"price": None, "legs": [None]}) == {"price": None, "legs": [None]}


@given(
    seq=st.integers(1, 2**63 - 1),
    timestamp=st.floats(0.0, 1e11),
    type=st.sampled_from(["TRADE", "my.type", "HALT"]),
    key=TEXT,
    cause=st.sampled_from(["", "desk@1.5"]),
)
def test_an_event_arrives_with_everything_the_row_says(
    seq: int, timestamp: float, type: str, key: str, cause: str
) -> None:
    encoded = encode(seq, timestamp, type, key, {"a": 1}, cause, LIMIT)
    (event,) = decode([encoded], "desk", 36)
    assert (event.seq, event.type, event.key, event.cause) == (seq, type, key, cause)
    assert event.timestamp.hex() == timestamp.hex()
    assert (event.source, event.epoch) == ("desk", 36)


def test_a_known_type_arrives_as_its_member() -> None:
    (event,) = decode([row(1)], "desk", 1)
    assert event.type is EventType.TRADE


def test_each_decoding_has_data_of_its_own() -> None:
    encoded = row({"legs": [1]})
    first, second = decode([encoded, encoded], "desk", 1)
    first.data["legs"].append(2)
    assert second.data == {"legs": [1]}


def test_no_rows_are_no_events() -> None:
    assert list(decode([], "desk", 1)) == []


def test_a_row_is_plain_json_that_names_no_cause_where_there_is_none() -> None:
    assert orjson.loads(row({"a": 1})) == [7, 1.5, "TRADE", "BTC", {"a": 1}]
    assert orjson.loads(row(1, cause="desk@1.5")) == [7, 1.5, "TRADE", "BTC", 1, "desk@1.5"]


# What arrives as its stated image.

IMAGES = {
    "dataclass": (Order(1.5, [Order(2.5)]), {"price": 1.5, "legs": [{"price": 2.5, "legs": []}]}),
    "slotted dataclass": (Slotted(None), {"price": None}),
    "tuple": ((1, (2, 3)), [1, [2, 3]]),
    "namedtuple": (Pair(1, None), [1, None]),
    "aware datetime": (MOMENT, "2024-02-29T12:30:15.123456+00:00"),
    "datetime of another zone": (
        dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-5, minutes=-30))),
        "2024-01-01T00:00:00-05:30",
    ),
    "date": (dt.date(2024, 2, 29), "2024-02-29"),
    "naive time": (dt.time(9, 30), "09:30:00"),
    "UUID": (NUMBER, str(NUMBER)),
    "UUID subclass": (OrderNumber(int=NUMBER.int), str(NUMBER)),
    "Enum": (Venue.PAIR, [1, 2.5]),
    "IntEnum": (Level.HIGH, 3),
    "StrEnum": (Side.BUY, "buy"),
    "EventType": (EventType.TRADE, "TRADE"),
    "Decimal": (Decimal("1.10"), "1.10"),
    "large Decimal": (Decimal("1E+30"), "1E+30"),
    "numpy float": (np.float64(0.1), 0.1),
    "numpy float32": (np.float32(0.1), 0.10000000149011612),
    "numpy int": (np.int64(-5), -5),
    "numpy uint64": (np.uint64(2**64 - 1), 2**64 - 1),
    "numpy bool": (np.bool_(True), True),
    "numpy text": (np.str_("x"), "x"),
    "numpy array": (np.array([[1.5, -0.0]]), [[1.5, -0.0]]),
    "numpy array of integers": (np.arange(3), [0, 1, 2]),
    "numpy array of booleans": (np.array([True]), [True]),
    "numpy array of text": (np.array(["a", "bc"]), ["a", "bc"]),
    "numpy array of no dimension": (np.array(2.5), 2.5),
    "numpy array in parts": (np.arange(6.0)[::2], [0.0, 2.0, 4.0]),
    "float subclass": (Price(1.5), 1.5),
    "int subclass": (Count(5), 5),
    "str subclass": (Name("x"), "x"),
    "list subclass": (Row([1, None]), [1, None]),
    "OrderedDict": (collections.OrderedDict(b=1, a=None), {"b": 1, "a": None}),
    "defaultdict": (collections.defaultdict(int, a=1), {"a": 1}),
    "a dict that shows less than it holds": (HeadsOnly(a=None), {"a": None}),
}


@pytest.mark.parametrize(("value", "image"), IMAGES.values(), ids=IMAGES)
def test_other_values_arrive_as_their_stated_image(value: object, image: object) -> None:
    assert bits(sent(value)) == bits(image)


# What is refused, by the path inside data.

REFUSED = {
    "NaN": ({"price": NAN}, "data['price']", "nan is not a JSON number"),
    "infinity": ([1, math.inf], "data[1]", "inf is not a JSON number"),
    "minus infinity": ([[-math.inf]], "data[0][0]", "-inf is not a JSON number"),
    "NaN alone": (NAN, "data", "publish None or leave the field out"),
    "NaN beside None": ({"a": None, "b": NAN}, "data['b']", "nan"),
    "NaN in a dataclass": ([Order(NAN)], "data[0].price", "nan"),
    "NaN in a dataclass in one": (Order(1, [Slotted(NAN)]), "data.legs[0].price", "nan"),
    "NaN in a tuple": ((1, (NAN,)), "data[1][0]", "nan"),
    "NaN in a namedtuple": ({"p": Pair(1, NAN)}, "data['p'][1]", "nan"),
    "NaN as the value of an Enum": ([Venue.BROKEN], "data[0].value", "nan"),
    "NaN of a float subclass": ({"p": Price("nan")}, "data['p']", "nan"),
    "NaN of numpy": ({"p": np.float64("nan")}, "data['p']", "nan"),
    "NaN of numpy float32": ({"p": np.float32("nan")}, "data['p']", "nan"),
    "infinity in an array": ({"p": np.array([[1, np.inf]])}, "data['p'][0][1]", "inf"),
    "NaN in an array of no dimension": ([np.array(NAN)], "data[0]", "nan"),
    "NaN in a dict that shows less than it holds": (HeadsOnly(a=NAN), "data['a']", "nan"),
    "NaN in a list that shows less than it holds": (NothingToSee([NAN]), "data[0]", "nan"),
    "more than 64 bits": ({"n": 2**64}, "data['n']", "does not fit into 64 bits"),
    "less than -2**63": ([-(2**63) - 1], "data[0]", "does not fit into 64 bits"),
    "an integer too long to write": ([10**5000], "data[0]", "does not fit into 64 bits"),
    "an int subclass of 65 bits": ([Count(2**64)], "data[0]", "does not fit into 64 bits"),
    "naive datetime": ({"at": dt.datetime(2024, 1, 1)}, "data['at']", "is naive: give it a time"),
    "naive datetime in an Enum": (Venue.OPENED, "data.value", "is naive"),
    "datetime with a zone without offset": (
        [dt.datetime(2024, 1, 1, tzinfo=Unplaced())],
        "data[0]",
        "is naive",
    ),
    "aware time": ([dt.time(9, 30, tzinfo=UTC)], "data[0]", "a time zone but no date"),
    "timedelta": ({"t": dt.timedelta(1)}, "data['t']", "a timedelta has no exact JSON image"),
    "numpy.datetime64": ([np.datetime64("2024-01-01T00:00", "us")], "data[0]", "datetime64"),
    "numpy.datetime64 of a day": ([np.datetime64("2024-01-01")], "data[0]", "datetime64"),
    "numpy.datetime64 of a nanosecond": ([np.datetime64(1, "ns")], "data[0]", "datetime64"),
    "numpy.datetime64 not a time": ([np.datetime64("NaT", "s")], "data[0]", "datetime64"),
    "numpy.timedelta64": ([np.timedelta64(1, "ns")], "data[0]", "timedelta64"),
    "numpy long double": ([np.longdouble(1)], "data[0]", "no exact JSON image"),
    "array of long doubles": ([np.ones(1, np.longdouble)], "data[0]", "no exact JSON image"),
    "array of times": ([np.array(["2024-01-01"], "M8[ns]")], "data[0]", "datetime64"),
    "array of complex": ([np.array([1j])], "data[0]", "no exact JSON image"),
    "array of records": ([np.ones(1, [("a", "M8[ns]")])], "data[0]", "no exact JSON image"),
    "array of objects": (
        [np.array([orjson.Fragment(b"NaN")], dtype=object)],
        "data[0]",
        "no exact JSON image",
    ),
    "complex": ([1j], "data[0]", "a complex has no exact JSON image"),
    "Decimal NaN": ([Decimal("NaN")], "data[0]", "is not a finite number"),
    "signalling Decimal NaN": ([Decimal("sNaN")], "data[0]", "is not a finite number"),
    "Decimal infinity": ([Decimal("-Infinity")], "data[0]", "is not a finite number"),
    "Fraction": ([Fraction(1, 3)], "data[0]", "a Fraction has no exact JSON image"),
    "private field": ([Secretive(1, 2)], "data[0]", "Secretive has the private field _margin"),
    "unset field": ([Unfinished(1)], "data[0]", "Unfinished has no value in its field filled"),
    "a dataclass itself": ([Order], "data[0]", "a type has no exact JSON image"),
    "integer key": ({"a": {1: 2}}, "data['a']", "the key 1 is an int; keys are exact strings"),
    "key too long to write": ({10**5000: 2}, "data", "is an int; keys are exact strings"),
    "None as a key": ([{None: 2}], "data[0]", "the key None is a NoneType"),
    "StrEnum key": ({Side.BUY: 2}, "data", "is a Side; keys are exact strings"),
    "str subclass key": ({Name("x"): 2}, "data", "is a Name; keys are exact strings"),
    "Fragment": ({"a": [orjson.Fragment(b"1")]}, "data['a'][0]", "is sent unchecked"),
    "Fragment in a dataclass": (Order(orjson.Fragment(b"1")), "data.price", "is sent unchecked"),
    "Fragment in a tuple": ((orjson.Fragment(b"1"),), "data[0]", "is sent unchecked"),
    "set": ([{1}], "data[0]", "a set has no exact JSON image"),
    "frozenset": ([frozenset()], "data[0]", "a frozenset has no exact JSON image"),
    "bytes": ([b"x"], "data[0]", "a bytes has no exact JSON image; publish base64 text"),
    "bytearray": (
        [bytearray(b"x")],
        "data[0]",
        "a bytearray has no exact JSON image; publish base64 text",
    ),
    "deque": ([collections.deque([1])], "data[0]", "a deque has no exact JSON image"),
    "generator": ([iter(())], "data[0]", "has no exact JSON image"),
    "mapping that is no dict": ([types.MappingProxyType({})], "data[0]", "no exact JSON image"),
    "any other object": ({"o": object()}, "data['o']", "an object has no exact JSON image"),
    "masked array": ([np.ma.array([1], mask=[1])], "data[0]", "no exact JSON image"),
    "lone surrogate": ({"t": "\ud800"}, "data['t']", "is not valid Unicode text"),
    "lone surrogate in an array": ([np.array(["\udfff"])], "data[0][0]", "not valid Unicode"),
    "lone surrogate in a key": ({"a": {"\udc00": 1}}, "data['a'] (a key)", "not valid Unicode"),
}


@pytest.mark.parametrize(("data", "path", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_exact_image_is_refused_by_its_path(
    data: object, path: str, reason: str
) -> None:
    error = refusal(data)
    assert error.path == path
    assert reason in error.reason


@pytest.mark.parametrize(
    "timestamp",
    [NAN, math.inf, -math.inf, "1.5", None, True, Decimal(1), MOMENT, 10**400, 2**64, -1, -1e-9],
)
def test_a_timestamp_that_is_no_number_of_seconds_since_1970_is_refused(timestamp: Any) -> None:
    error = refusal(1, timestamp=timestamp)
    assert error.path == "timestamp"
    assert error.reason.endswith("seconds since 1970, such as time.time(), are needed")


@pytest.mark.parametrize(
    ("times", "says"),
    [
        (1e3, "these look like milliseconds: divide by 1_000;"),
        (1e6, "these look like microseconds: divide by 1_000_000;"),
        (1e9, "these look like nanoseconds: divide by 1_000_000_000;"),
    ],
)
@pytest.mark.parametrize("seconds", [4e8, 1_700_000_000.25, 4e9])
@pytest.mark.parametrize("kind", [int, float, np.float64])
def test_a_timestamp_in_another_unit_is_refused_with_what_to_divide_by(
    seconds: float, times: float, says: str, kind: type
) -> None:
    """Nothing with it would ever be older than a `max_age`."""
    timestamp = kind(seconds * times)
    error = refusal(1, timestamp=timestamp)
    assert error.path == "timestamp"
    assert error.reason.startswith(f"{timestamp!r} is no time: {says} seconds since 1970")


def test_a_datetime_as_timestamp_is_told_to_be_made_a_number() -> None:
    assert "is no time: give its .timestamp();" in refusal(1, timestamp=MOMENT).reason
    naive = refusal(1, timestamp=MOMENT.replace(tzinfo=None)).reason
    assert "it has no time zone: make it with one and give its .timestamp();" in naive


def test_a_timestamp_too_long_to_be_written_is_refused_all_the_same() -> None:
    assert refusal(1, timestamp=10**5000).path == "timestamp"


@pytest.mark.parametrize(
    "timestamp", [0, -0.0, 1.5, 1_700_000_000, 1e11, 10**11, np.float64(1.5), Price(1.5)]
)
def test_a_timestamp_may_be_any_number_from_0_to_1e11(timestamp: Any) -> None:
    (event,) = decode([row(1, timestamp=timestamp)], "desk", 1)
    assert event.timestamp == timestamp


@pytest.mark.parametrize("cause", [None, 5, b"desk@1.5", Event(EventType.TRADE, 1)])
def test_a_cause_that_is_no_id_is_refused(cause: Any) -> None:
    error = refusal(1, cause=cause)
    assert error.path == "cause"
    assert "is not the id of an event" in error.reason


def test_a_cause_that_is_no_text_is_refused() -> None:
    assert refusal(1, cause="\ud800").path == "cause"


def test_a_row_of_exactly_the_limit_is_accepted() -> None:
    size = len(row({"a": "x" * 100}))
    assert len(row({"a": "x" * 100}, limit=size)) == size


def test_a_row_of_one_byte_more_is_refused_with_both_figures() -> None:
    size = len(row({"a": "x" * 100}))
    error = refusal({"a": "x" * 100}, limit=size - 1)
    assert error.path == "data"
    assert f"{size} bytes encoded, more than the limit of {size - 1}: publish" in error.reason


# What an object raises while it is read.


class NaTType(dt.datetime):
    """As pandas.NaT: a datetime that is none."""

    def utcoffset(self) -> dt.timedelta | None:
        raise ValueError("NaTType does not support utcoffset")


class Broken(dt.tzinfo):
    def utcoffset(self, when: dt.datetime | None) -> dt.timedelta:
        raise KeyError("Europe/Atlantis")


@dataclass
class Computed:
    price: float
    margin: float = field(init=False)


@dataclass
class Made:
    """Its legs are made when they are read, and gone when they have been."""

    make: Any
    legs: Any = field(init=False)

    def __post_init__(self) -> None:
        self.maker, self.make = self.make, 1


Computed.margin = property(lambda order: 1 / order.price)  # type: ignore[assignment]
Made.legs = property(lambda made: made.maker())


def endless() -> Any:
    return endless()


class Unshown:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


RAISES = {
    "NaT": (NaTType(1, 1, 1), "NaTType", "ValueError: NaTType does not support utcoffset"),
    "time zone": (dt.datetime(2024, 1, 1, tzinfo=Broken()), "datetime", "KeyError: 'Europe/Atl"),
    "property": (Computed(0), "Computed", "ZeroDivisionError: division by zero"),
    "key": ({Unshown(): 1}, "dict", "RuntimeError: no text"),
    "recursion": (Made(endless), "Made", "RecursionError: maximum recursion depth exceeded"),
}


@pytest.mark.parametrize(("value", "name", "said"), RAISES.values(), ids=RAISES)
def test_whatever_an_object_raises_is_a_refusal_with_its_path(
    value: Any, name: str, said: str
) -> None:
    error = refusal({"legs": [{"expiry": value}]})
    assert error.path == "data['legs'][0]['expiry']"
    assert error.reason.startswith(f"a {name} has no exact JSON image ({said}")
    assert error.reason.endswith("publish numbers, text, lists and dicts instead")


def test_a_cancellation_while_an_object_is_read_passes() -> None:
    times = iter([asyncio.CancelledError])  # the second time there is nothing to raise

    def cancelled() -> None:
        for error in times:
            raise error

    with pytest.raises(asyncio.CancelledError):
        row({"order": Made(cancelled)})


# What hides: orjson writes null for NaN and copies a Fragment.


class Ratio(enum.Enum):
    NONE = Price("nan")
    RAW = orjson.Fragment(b"1")


HIDDEN = {
    "NaN": NAN,
    "infinity": -math.inf,
    "float subclass": Price("nan"),
    "numpy number": np.float64("nan"),
    "numpy array": np.array([1.0, np.inf]),
    "Enum": Venue.BROKEN,
    "Enum of a subclass": Ratio.NONE,
    "Enum of a Fragment": Ratio.RAW,
    "Fragment": orjson.Fragment(b"1"),
    "Fragment with an event of its own": orjson.Fragment(b'1],[2,2.0,"HALT","",null'),
    "dataclass": Order(1, [NAN]),
    "dataclass with a Fragment": Order(1, [orjson.Fragment(b"1")]),
    "made when it is read": Made(lambda: [NAN]),
    "objects of numpy": np.array([[orjson.Fragment(b"1")]], dtype=object),
}
PLAIN = st.recursive(
    SCALARS | st.sampled_from([None, Side.BUY, Level.HIGH, Name("null"), "gnull", MOMENT]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(
    st.sampled_from(list(HIDDEN.values())),
    st.lists(st.sampled_from(["list", "dict", "tuple", "class"]), max_size=60),
    PLAIN,
)
def test_what_hides_is_found_in_any_place_beside_anything(
    hidden: object, around: list[str], beside: object
) -> None:
    error = refusal(put(hidden, around, beside))
    place = put("here", around, beside)
    assert error.path.startswith(path_to("here", place))


def path_to(sought: object, value: object, path: str = "data") -> str:
    """The path of `sought` in what `put` has made."""
    while value != sought:
        match value:
            case dict():
                path, value = path + "['a\\nb]']", value["a\nb]"]
            case list() | tuple():
                path, value = f"{path}[{len(value) - 1}]", value[-1]
            case Order():
                path, value = path + ".legs", value.legs
    return path


# Depth.


@pytest.mark.parametrize("inside", [1, None, "text", 1.5])
def test_253_levels_are_accepted(inside: object) -> None:
    assert sent(nested(253, inside)) == nested(253, inside)


@pytest.mark.parametrize("inside", [[], {}, [1], {"a": 1}, Order(1), (1,), np.ones(1)])
def test_one_level_more_is_refused(inside: object) -> None:
    error = refusal(nested(253, inside))
    assert error.path == "data" + "[0]" * 253
    assert error.reason == "nested more than 253 deep, or containing itself"


@pytest.mark.parametrize("kind", ["list", "dict", "tuple", "class"])
def test_every_kind_of_container_counts_as_a_level(kind: str) -> None:
    assert sent(put(1, [kind] * 253, None)) is not None
    assert "nested more than 253 deep" in refusal(put(1, [kind] * 254, None)).reason


def test_very_deep_data_is_refused_and_does_not_exhaust_the_stack() -> None:
    assert "nested more than 253 deep" in refusal(nested(100_000, 1)).reason


def test_many_brackets_side_by_side_are_not_deep() -> None:
    wide = [[[1, {}]]] * 500
    assert sent(wide) == wide


def test_a_list_that_contains_itself_is_refused() -> None:
    circle: list[Any] = [1]
    circle.append({"again": circle})
    assert "containing itself" in refusal(circle).reason


def test_a_dataclass_that_contains_itself_is_refused() -> None:
    order = Order(1)
    order.legs = [order]
    assert "containing itself" in refusal(order).reason


@pytest.mark.parametrize("depth", [254, 300, 1000])
def test_tuples_in_tuples_are_refused_at_the_same_depth(depth: int) -> None:
    linked: Any = 1
    for number in range(depth):
        linked = (1.5, linked) if number % 2 else {"next": linked}
    assert "nested more than 253 deep" in refusal(linked).reason
    linked = 1
    for _ in range(depth):
        linked = (1.5, linked)
    assert "nested more than 253 deep" in refusal(linked).reason


def test_a_walk_for_which_the_stack_has_no_room_ends_in_a_refusal() -> None:
    def below(frames: int) -> EncodeError:
        return below(frames - 1) if frames else refusal(nested(200, NAN))

    depth = len(inspect.stack(0))
    error = below(sys.getrecursionlimit() - depth - 100)
    assert error.path.startswith("data[0][0][0]")
    assert "RecursionError: maximum recursion depth exceeded" in error.reason


@pytest.mark.parametrize("depth", [253, 254, 1020])
def test_a_copy_of_what_was_decoded_is_made_at_any_depth(depth: int) -> None:
    data = orjson.loads(b"[" * depth + b"]" * depth)
    copy = copied(data)
    levels = 0
    while data:
        assert data is not copy
        (data,), (copy,), levels = data, copy, levels + 1
        if levels == depth - 1:
            break
    assert data == copy == []


# What is mistaken for NaN at first sight.


def test_floats_whose_bytes_look_like_those_of_a_nan_arrive() -> None:
    (first,) = struct.unpack("<d", b"\0\0\0g\0\0\0\x40")
    (second,) = struct.unpack("<d", b"\0\xf0\x7f\0\0\0\0\x40")
    assert bits(sent([None, [first, second]])) == bits([None, [first, second]])


@given(st.binary(min_size=64, max_size=64))
def test_no_bytes_of_floats_beside_a_none_are_mistaken(raw: bytes) -> None:
    floats = list(struct.unpack("<8d", raw))
    if all(map(math.isfinite, floats)):
        assert bits(sent([[None], floats])) == bits([[None], floats])
    else:
        place = next(index for index, each in enumerate(floats) if not math.isfinite(each))
        assert refusal([[None], floats]).path == f"data[1][{place}]"


# Any mix of good and bad.


@st.composite
def places(draw: st.DrawFn) -> tuple[list[str], Any]:
    """Something around `None`: how to reach it, and a function that puts a value there."""
    return draw(st.lists(st.sampled_from(["list", "dict", "tuple", "class"]), max_size=6)), draw(
        JSON
    )


def put(value: object, around: list[str], beside: object) -> object:
    for kind in around:
        match kind:
            case "list":
                value = [beside, value]
            case "dict":
                value = {"it's": beside, "a\nb]": value}
            case "tuple":
                value = (beside, beside, value)
            case "class":
                value = Order(beside, value)
    return value


BAD = [
    NAN,
    -math.inf,
    2**64,
    dt.datetime(2024, 1, 1),
    dt.time(1, tzinfo=UTC),
    {1, 2},
    b"x",
    object(),
    "\ud800",
    Decimal("NaN"),
    Secretive(1, 2),
    orjson.Fragment(b"1"),
    np.datetime64("NaT", "s"),
    np.float64("nan"),
    Price("inf"),
    {1: 2},
]


@given(bad=st.sampled_from(BAD), place=places())
def test_the_path_is_how_python_reaches_what_was_refused(
    bad: object, place: tuple[list[str], Any]
) -> None:
    error = refusal(put(bad, *place))
    assert eval(error.path, {"data": put(bad, *place)}) is bad


GOOD = st.sampled_from([pair for pair in IMAGES.values() if not isinstance(pair[0], HeadsOnly)])
SEVERAL = st.lists(st.deferred(lambda: MIXED), max_size=4)
MIXED: st.SearchStrategy[tuple[Any, Any]] = st.deferred(
    lambda: (
        SCALARS.map(lambda value: (value, value))
        | GOOD
        | st.sampled_from(BAD).map(lambda value: (value, BAD))
        | SEVERAL.map(lambda pairs: ([v for v, _ in pairs], [image for _, image in pairs]))
        | SEVERAL.map(lambda pairs: (tuple(v for v, _ in pairs), [image for _, image in pairs]))
        | SEVERAL.map(
            lambda pairs: (
                Row(v for v, _ in pairs),
                [image for _, image in pairs],
            )
        )
        | st.dictionaries(TEXT, st.deferred(lambda: MIXED), max_size=4).map(
            lambda pairs: (
                {key: value for key, (value, _) in pairs.items()},
                {key: image for key, (_, image) in pairs.items()},
            )
        )
        | st.tuples(st.deferred(lambda: MIXED), st.deferred(lambda: MIXED)).map(
            lambda pairs: (
                Order(pairs[0][0], pairs[1][0]),
                {"price": pairs[0][1], "legs": pairs[1][1]},
            )
        )
    )
)


def has_bad(image: object) -> bool:
    if image is BAD:
        return True
    inner = image.values() if isinstance(image, dict) else image if isinstance(image, list) else ()
    return any(map(has_bad, inner))


@given(MIXED)
def test_any_mix_of_values_arrives_as_its_image_or_is_refused(mix: tuple[Any, Any]) -> None:
    value, image = mix
    if has_bad(image):
        refusal(value)
    else:
        assert bits(sent(value)) == bits(image)


ARRAYS = st.lists(st.floats(width=32), min_size=1, max_size=4).map(
    lambda numbers: np.array(numbers, dtype=np.float32)
)


@given(ARRAYS)
def test_no_number_of_an_array_ever_becomes_null(array: Any) -> None:
    if np.isfinite(array).all():
        assert bits(sent(array)) == bits([float(number) for number in array])
    else:
        refusal(array)


# Whether a Fragment may exist: asked in a process that has none.


ATTEMPT = """
def refused(data):
    try:
        encode(1, 1.5, "T", "", data, "", 1000)
    except EncodeError as error:
        return error.path
"""
AFTER_IMPORT = f"""from aiobus import EncodeError, codec as fragments
from aiobus.codec import encode
{ATTEMPT}"""


def run(code: str) -> None:
    """Run `code` in a process that has no Fragment."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_fragment_exists_until_one_is_made_and_after_it_is_gone() -> None:
    run(f"""{AFTER_IMPORT}
import orjson
assert not fragments.may_exist()
fragment = orjson.Fragment(b"1")
assert fragments.may_exist()
del fragment
assert not fragments.may_exist()
""")


def test_fragments_older_than_the_package_are_seen() -> None:
    run(f"""
import orjson
kept = [orjson.Fragment(b"1"), orjson.Fragment(b"2")]
{AFTER_IMPORT}
assert fragments.may_exist()
assert refused([[kept[0]]]) == "data[0][0]"
del kept[0]
assert fragments.may_exist()
assert refused(kept) == "data[0]"
del kept[0]
assert not fragments.may_exist()
""")


def test_a_name_for_the_type_is_no_fragment() -> None:
    run(f"""
from orjson import Fragment
{AFTER_IMPORT}
assert not fragments.may_exist()
""")


def test_a_new_name_for_the_type_hides_nothing() -> None:
    run(f"""{AFTER_IMPORT}
from orjson import Fragment
assert fragments.may_exist()
assert refused([1]) is None
assert refused([Fragment(b"1")]) == "data[0]"
""")


HIDES = {
    "[[orjson.Fragment(b'1')]]": "data[0][0]",
    "[{'a': (1, orjson.Fragment(b'1'))}]": "data[0]['a'][1]",
    "[Order(1, [orjson.Fragment(b'1')])]": "data[0].legs[0]",
    "[Made()]": "data[0].legs[0]",
    "[float('nan')]": "data[0]",
    "[numpy.float64('nan')]": "data[0]",
    "[None, numpy.array([[1, float('inf')]])]": "data[1][0][1]",
    "[Broken.NAN]": "data[0].value",
    "[Order(1, [float('nan')])]": "data[0].legs[0]",
    "Buffer(float('nan'))": "data.legs",
    "[numpy.array([orjson.Fragment(b'1')], dtype=object)]": "data[0]",
}


def test_what_hides_is_refused_where_no_other_fragment_exists() -> None:
    run(f"""{AFTER_IMPORT}
import enum, numpy, orjson
from dataclasses import dataclass
class Broken(enum.Enum):
    NAN = float("nan")
@dataclass
class Order:
    price: object
    legs: object
@dataclass
class Made:
    legs: object = None
Made.legs = property(lambda made: [orjson.Fragment(b"1")], lambda made, value: None)
@dataclass
class Buffer(bytearray):
    legs: object
for data, path in {HIDES!r}.items():
    assert not fragments.may_exist(), data
    assert refused(eval(data)) == path, data
    assert refused([1, None, 1.5]) is None, data
""")
