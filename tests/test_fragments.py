"""Whether a Fragment may exist: an answer for a process of its own, since other tests hold some."""

import subprocess
import sys
import textwrap

import pytest

REFUSED = """
def refused(data):
    try:
        encode(1, 1.5, "T", "", data, "", 1000)
    except EncodeError as error:
        return error.path
"""
AFTER_IMPORT = f"""from aiobus import EncodeError, codec as fragments
from aiobus.codec import encode
{REFUSED}"""


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


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ("[[orjson.Fragment(b'1')]]", "data[0][0]"),
        ("[{'a': (1, orjson.Fragment(b'1'))}]", "data[0]['a'][1]"),
        ("[Order(1, [orjson.Fragment(b'1')])]", "data[0].legs[0]"),
        ("[Made()]", "data[0].legs[0]"),
        ("[float('nan')]", "data[0]"),
        ("[numpy.float64('nan')]", "data[0]"),
        ("[None, numpy.array([[1, float('inf')]])]", "data[1][0][1]"),
        ("[Broken.NAN]", "data[0].value"),
        ("[Order(1, [float('nan')])]", "data[0].legs[0]"),
        ("Buffer(float('nan'))", "data.legs"),
        ("[numpy.array([orjson.Fragment(b'1')], dtype=object)]", "data[0]"),
    ],
)
def test_what_hides_is_refused_where_no_other_fragment_exists(data: str, path: str) -> None:
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
assert not fragments.may_exist()
assert refused({data}) == {path!r}
assert refused([1, None, 1.5]) is None
""")
