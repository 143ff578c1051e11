"""What `subscribe` can be told, its defaults, and the sentences for what it cannot."""

import functools
import inspect
import re
from dataclasses import MISSING, fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from aiobus import AsyncEventBus, Event
from aiobus.options import SubscribeKeywords, SubscriptionOptions
from aiobus.query import Query

QUERY = Query.of("TRADE")
MADE = {"query", "payload", "topics", "fit"}
"""What is no keyword like the others: it is made of the types, or is a parameter with a type."""
NAN = float("nan")


async def asks_later(event: Event[Any]) -> bool:
    return True


class AsksLater:
    async def __call__(self, event: Event[Any]) -> bool:
        return True


def terms(**more: Any) -> SubscriptionOptions:
    return SubscriptionOptions(query=QUERY, **more)


def test_by_default_a_subscription_catches_up_and_is_handled_one_by_one() -> None:
    assert terms() == SubscriptionOptions(
        query=QUERY,
        where=None,
        overflow="catch_up",
        maxsize=8192,
        concurrency=1,
        max_age=None,
        since=None,
        timeout=5.0,
    )


GOOD: list[dict[str, Any]] = [
    {"where": callable},
    {"where": bool},
    {"overflow": "catch_up"},
    {"overflow": "block"},
    {"overflow": "latest"},
    {"overflow": "drop_oldest"},
    {"maxsize": 1},
    {"concurrency": 100},
    {"max_age": 0.001},
    {"max_age": 5},
    {"max_age": None},
    {"max_age": float("inf")},
    {"since": None},
    {"since": "last"},
    {"since": 0},
    {"since": 0.0},
    {"since": 1e8},
    {"since": 1e11},
    {"since": 1_700_000_000.5},
    {"timeout": 0},
    {"timeout": 0.5},
    {"misfit": "stop"},
    {"timeout": float("inf")},
]


@pytest.mark.parametrize("given", GOOD, ids=str)
def test_what_makes_sense_is_kept_as_it_is(given: dict[str, Any]) -> None:
    ((name, value),) = given.items()
    assert getattr(terms(**given), name) == value


BAD: list[tuple[type[Exception], str, Any]] = [
    *((TypeError, "where", value) for value in ["price > 5", 5, True]),
    *((ValueError, "overflow", value) for value in ["drop", "", None, 5, ["block"]]),
    *((ValueError, "misfit", value) for value in ["raise", "", None, True]),
    *((ValueError, "maxsize", value) for value in [0, -1, 1.5, 8.0, "8", None, True]),
    *((ValueError, "concurrency", value) for value in [0, -1, 1.5, "8", None, True]),
    *(
        (ValueError, "max_age", value)
        for value in [0, -1, NAN, "5", True, [], Decimal(5), 1.7e9, 10**9]
    ),
    *(
        (ValueError, "since", value)
        for value in ["first", NAN, True, [], "5", -60, -0.1, 60, 9.9e7, 1.7e12, float("inf")]
    ),
    *((ValueError, "timeout", value) for value in [-1, NAN, "5", None, True, Decimal(5)]),
]


@pytest.mark.parametrize(("error", "name", "value"), BAD, ids=map(str, BAD))
def test_what_makes_no_sense_is_refused_by_name_and_value(
    error: type[Exception], name: str, value: Any
) -> None:
    with pytest.raises(error, match=re.escape(f"{name}={value!r}: ")) as caught:
        terms(**{name: value})
    assert str(caught.value).endswith(("needed", "needed, it is not awaited"))


NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("since", 60, "for the last 60 s, time.time() - 60;"),
        ("since", -60, "for the last 60 s, time.time() - 60;"),
        ("since", 0.5, "for the last 0.5 s, time.time() - 0.5;"),
        ("since", 1_700_000_000_000, "these look like milliseconds: divide by 1_000;"),
        ("since", 1.7e15, "these look like microseconds: divide by 1_000_000;"),
        ("since", 1.7e18, "these look like nanoseconds: divide by 1_000_000_000;"),
        ("since", NOON, "give its .timestamp();"),
        ("since", NOON.replace(tzinfo=None), "it has no time zone: make it with one and give its"),
        ("since", timedelta(minutes=1), "give time.time() less its .total_seconds();"),
        ("max_age", timedelta(minutes=1), "give its .total_seconds();"),
        ("max_age", 1_700_000_000.0, "a time is given as since=;"),
        ("timeout", timedelta(minutes=1), "give its .total_seconds();"),
    ],
)
def test_what_was_meant_by_a_wrong_time_or_duration_is_told(
    name: str, value: Any, way_out: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}: {way_out}")) as caught:
        terms(**{name: value})
    assert str(caught.value).endswith("needed")


@pytest.mark.parametrize(
    "where", [asks_later, functools.partial(asks_later), AsksLater(), AsksLater().__call__]
)
def test_a_coroutine_function_would_let_every_event_pass_so_it_is_refused(where: Any) -> None:
    with pytest.raises(TypeError, match="a plain function is needed, it is not awaited"):
        terms(where=where)


@pytest.mark.parametrize("name", ["since", "timeout", "max_age"])
@pytest.mark.parametrize("value", [10**400, -(10**400), 10**5000], ids=["great", "small", "long"])
def test_a_number_that_no_clock_knows_is_refused_in_one_short_sentence(
    name: str, value: int
) -> None:
    with pytest.raises(ValueError, match=rf"{name}=-?0x\w+\.\.\.: .*needed$") as caught:
        terms(**{name: value})
    assert len(str(caught.value)) < 130


def test_terms_do_not_change() -> None:
    made: Any = terms()
    with pytest.raises(AttributeError):
        made.maxsize = 5


def test_the_keywords_of_on_are_those_of_terms_and_the_key() -> None:
    names = {field.name for field in fields(SubscriptionOptions)} - MADE
    assert set(SubscribeKeywords.__annotations__) == names | {"key"}


@pytest.mark.parametrize("call", [AsyncEventBus.subscribe, AsyncEventBus.stream])
def test_the_bus_has_the_same_keywords_with_the_same_defaults(call: Any) -> None:
    keywords = {
        name: parameter.default
        for name, parameter in inspect.signature(call).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "key"
    }
    defaults = {
        field.name: field.default
        for field in fields(SubscriptionOptions)
        if field.default is not MISSING and field.init
    }
    assert keywords == {name: defaults[name] for name in keywords}
    assert set(defaults) - set(keywords) <= {"concurrency", "misfit"}


@pytest.mark.parametrize("name", ["subscribe", "on", "stream"])
def test_the_signature_names_each_keyword_and_its_default(name: str) -> None:
    parameters = inspect.signature(getattr(AsyncEventBus, name)).parameters
    known = {"payload", *SubscribeKeywords.__annotations__} - (
        {"concurrency", "misfit"} if name == "stream" else set()
    )
    keywords = [each for each in parameters.values() if each.kind is each.KEYWORD_ONLY]
    assert {each.name for each in keywords} == known
    assert all(each.kind is not each.VAR_KEYWORD for each in parameters.values())


@pytest.mark.parametrize("name", ["subscribe", "on", "stream"])
async def test_an_unknown_keyword_is_named_with_those_that_there_are(name: str) -> None:
    bus = AsyncEventBus()
    if name != "on":
        await bus.start()
    hint = rf"{name}\(\) got .* argument 'maxsise': did you mean maxsize=\? It has payload, key, "
    with pytest.raises(TypeError, match=hint):
        if name == "subscribe":
            await bus.subscribe("A", print, maxsise=1)
        else:
            getattr(bus, name)("A", maxsise=1)
    await bus.close()


@pytest.mark.parametrize("call", ["subscribe", "on", "stream"])
def test_each_keyword_with_a_slip_is_suggested(call: str) -> None:
    """Also `payload`, which is no option of a subscription to plain data."""
    known = inspect.signature(getattr(AsyncEventBus, call)).parameters.values()
    for name in (each.name for each in known if each.kind is each.KEYWORD_ONLY):
        slip: Any = {name[:-2] + name[-1] + name[-2]: None}  # two letters are exchanged
        with pytest.raises(TypeError, match=rf"did you mean {name}=\? It has payload, key, "):
            SubscriptionOptions.of(call, "A", slip)
    with pytest.raises(TypeError, match="'colour': it has payload, key, where, "):
        SubscriptionOptions.of(call, "A", {"colour": 1})  # type: ignore[typeddict-unknown-key]


async def test_a_stream_has_no_concurrency(bus: AsyncEventBus) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'concurrency'"):
        bus.stream("A", concurrency=2)  # type: ignore[call-arg]


@pytest.mark.parametrize("types", ["ORDER", "CANCEL", ["TRADE", "ORDER"]])
def test_old_orders_are_not_asked_for_by_omission(types: Any) -> None:
    with pytest.raises(ValueError, match="may have been executed before: give max_age= seconds"):
        SubscriptionOptions.of("subscribe", types, {"since": 0})
    for more in ({"max_age": 30.0}, {"after": "strategy@a.7"}):
        keywords: Any = {"since": 0, **more}
        assert SubscriptionOptions.of("subscribe", types, keywords).since == 0


@pytest.mark.parametrize(
    "after", ["7", "strategy", "strategy@A.7", "strategy@a.0", 7, ["a@1.1", 3]]
)
def test_what_is_begun_behind_is_the_id_of_an_event(after: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="the id of an event"):
        terms(after=after)


def test_of_one_source_one_event_is_the_last() -> None:
    assert terms(after=["a@1.1", "b@1.1"]).places == {"a": (1, 1), "b": (1, 1)}
    with pytest.raises(ValueError, match="one event at most is the last"):
        terms(after=["a@1.1", "a@1.2"])
