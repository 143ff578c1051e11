"""Who is found for an event, against asking everyone."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobus.publisher import Routes
from aiobus.query import Query
from aiobus.sync import BackpressureGate


class Box:
    """A sink that counts how often its query was looked at."""

    def __init__(self, query: Query) -> None:
        self._query = query
        self.looks = 0
        self.gate: BackpressureGate | None = None

    @property
    def query(self) -> Query:
        self.looks += 1
        return self._query

    def deliver(self, seq: int, row: bytes, type: str, key: str) -> None:
        raise AssertionError("it is only looked for")


def box(types: Any, key: Any = None) -> Box:
    return Box(Query.of(types, key))


def routes_of(*boxes: Box) -> Routes:
    routes = Routes()
    for each in boxes:
        routes.add(each)
    return routes


def test_among_5000_that_name_their_keys_an_event_meets_its_own() -> None:
    boxes = [box("TRADE", f"S{number}") for number in range(5000)]
    routes = routes_of(*boxes)
    for each in boxes:
        each.looks = 0
    assert list(routes.matching("TRADE", "S77")) == [boxes[77]]
    assert [number for number, each in enumerate(boxes) if each.looks] == [77]


def test_who_is_removed_while_the_found_are_walked_was_found() -> None:
    boxes = [box("TRADE"), box("TRADE"), box("*", "BTC")]
    routes = routes_of(*boxes)
    found = []
    for each in routes.matching("TRADE", "BTC"):
        found.append(each)
        routes.remove(each)
    assert sorted(map(id, found)) == sorted(map(id, boxes))


QUERIES: list[Query] = [
    Query.of("TRADE"),
    Query.of("TRADE", "BTC"),
    Query.of("TRADE", "B*"),
    Query.of("*"),
    Query.of("*", "BTC"),
    Query.of(["*", "aiobus.gap"], ["BTC", "E*"]),
    Query.of("aiobus.gap", "BTC"),
]


@pytest.mark.parametrize("query", QUERIES)
def test_what_was_removed_leaves_nothing_behind(query: Query) -> None:
    routes, each = Routes(), Box(query)
    routes.add(each)
    routes.remove(each)
    assert vars(routes) == vars(Routes())


@pytest.mark.parametrize("query", QUERIES)
def test_removing_what_is_not_there_is_an_error_beside_others_of_the_same_query(
    query: Query,
) -> None:
    with pytest.raises(ValueError, match="not in list"):
        routes_of(Box(query)).remove(Box(query))


@pytest.mark.parametrize("query", QUERIES)
def test_removing_what_is_not_there_is_an_error_where_no_other_is(query: Query) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - that it is one is the promise
        Routes().remove(Box(query))


# Against asking everyone.

TYPES = ["A", "B", "C", "aiobus.gap", "aiobus.error"]
KEYS = ["", "x", "xy", "y", "yx"]
queries = st.builds(
    Query.of,
    st.lists(st.sampled_from([*TYPES, "*"]), min_size=1, max_size=3),
    st.none() | st.lists(st.sampled_from([*KEYS, "*", "x*", "xy*", "y*"]), min_size=1, max_size=3),
)
steps = st.lists(queries | st.integers(0, 20), max_size=25)


@given(steps)
def test_those_are_found_whose_query_matches_each_once(steps: list[Query | int]) -> None:
    routes = Routes()
    there: list[Box] = []
    for step in steps:  # a query: one more asks for it; a number: one of those leaves
        if isinstance(step, Query):
            there.append(Box(step))
            routes.add(there[-1])
        elif there:
            routes.remove(there.pop(step % len(there)))
    for type in TYPES:
        for key in KEYS:
            found = list(routes.matching(type, key))
            wanted = [each for each in there if each.query.matches(type, key)]
            assert sorted(map(id, found)) == sorted(map(id, wanted))
