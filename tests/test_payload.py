"""What plain data becomes, where that is read, and the sentences for what cannot be."""

import functools
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, Optional, Protocol, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pydantic
import pytest
from kinds import KINDS, AsDataclass, AsModel, AsStruct, Leg

import aiobus
from aiobus import AsyncEventBus, Event, PayloadError, Topic
from aiobus.payload import annotated, fit_of

T = TypeVar("T")


class Side(StrEnum):
    BUY = "buy"


@dataclass
class Rich:
    price: Decimal
    at: datetime
    side: Side
    id: UUID
    legs: list[Leg]
    note: str | None = None


class RichModel(pydantic.BaseModel):
    price: Decimal
    at: datetime
    side: Side
    id: UUID
    legs: list[Leg]
    note: str | None = None


class Buy(msgspec.Struct, tag=True):
    price: float


class Sell(msgspec.Struct, tag=True):
    price: float


class BuyModel(pydantic.BaseModel):
    kind: Literal["buy"]
    price: float


class SellModel(pydantic.BaseModel):
    kind: Literal["sell"]
    price: float


class Prices(TypedDict):
    by_level: dict[int, float]


class Checked(msgspec.Struct):
    price: float

    def __post_init__(self) -> None:
        if self.price < 0:
            raise ValueError("a price is not negative")


def converted(payload: Any, data: Any, type: str = "TICK") -> Any:
    event = Event(type, data, source="feed", epoch=1, seq=7)
    fit = fit_of(payload)
    if fit is not None:
        fit(event)
    return event.data


RICH = {
    "price": "1.50",
    "at": "2026-11-29T10:00:00Z",
    "side": "buy",
    "id": "12345678-1234-5678-1234-567812345678",
    "legs": [{"symbol": "BTC", "price": 1}],
}
MADE: list[tuple[Any, Any, Any]] = [
    (AsDataclass, {"price": 1, "legs": []}, AsDataclass(1.0, [])),
    (AsStruct, {"price": 1.5, "legs": [], "unknown": 3}, AsStruct(1.5, [])),
    (AsModel, {"price": 1.5, "legs": [], "unknown": 3}, AsModel(price=1.5, legs=[])),
    (Buy | Sell, {"type": "Sell", "price": 2}, Sell(2.0)),
    (
        Annotated[BuyModel | SellModel, pydantic.Field(discriminator="kind")],
        {"kind": "sell", "price": 2},
        SellModel(kind="sell", price=2.0),
    ),
    (list[BuyModel], [{"kind": "buy", "price": 2}], [BuyModel(kind="buy", price=2.0)]),
    (Prices, {"by_level": {"1": 2}}, {"by_level": {1: 2.0}}),
    (Optional[AsStruct], None, None),  # noqa: UP045 - as a user may write it
    (float, 1, 1.0),
    (dict[str, float], {"a": 1}, {"a": 1.0}),
    (tuple[str, float], ["a", 1], ("a", 1.0)),
    (
        Rich,
        RICH,
        Rich(
            Decimal("1.50"),
            datetime(2026, 11, 29, 10, tzinfo=UTC),
            Side.BUY,
            UUID("12345678-1234-5678-1234-567812345678"),
            [Leg("BTC", 1.0)],
        ),
    ),
    (RichModel, RICH, RichModel.model_validate(RICH)),
]


@pytest.mark.parametrize(("payload", "data", "made"), MADE)
def test_plain_data_becomes_what_is_asked_for(payload: Any, data: Any, made: Any) -> None:
    found = converted(payload, data)
    assert found == made
    assert type(found) is type(made)


NOT: list[tuple[Any, Any, str]] = [
    (AsDataclass, {"price": "1.5", "legs": []}, "data.price: expected float, got str"),
    (AsStruct, {"price": "1.5", "legs": []}, "data.price: expected float, got str"),
    (AsModel, {"price": "1.5", "legs": []}, "data.price: input should be a valid number, got str"),
    (AsStruct, {"price": True, "legs": []}, "data.price: expected float, got bool"),
    (AsStruct, {"legs": []}, "data: object missing required field price"),
    (AsModel, {"legs": []}, "data.price: field required"),
    (
        AsStruct,
        {"price": 1, "legs": [{"symbol": "A", "price": 1}, {"symbol": 1, "price": 1}]},
        "data.legs[1].symbol: expected str, got int",
    ),
    (
        AsModel,
        {"price": 1, "legs": [{"symbol": "A", "price": 1}, {"symbol": 1, "price": 1}]},
        "data.legs[1].symbol: input should be a valid string, got int",
    ),
    (list[AsStruct], [{"price": 1, "legs": []}, 3], "data[1]: expected object, got int"),
    (AsStruct, None, "data: expected object, got null"),
    (AsDataclass, 3, "data: expected object, got int"),
    (Buy | Sell, {"type": "Hold"}, "data.type: invalid value 'Hold'"),
    (Checked, {"price": -1}, "data: a price is not negative"),
    (AsModel, {"price": None, "legs": 3}, "and 1 more"),
]


@pytest.mark.parametrize(("payload", "data", "said"), NOT)
def test_data_that_is_none_is_refused_with_its_place(payload: Any, data: Any, said: str) -> None:
    event = Event("TICK", data, source="feed", epoch=1, seq=7)
    fit = fit_of(payload)
    assert fit is not None
    with pytest.raises(PayloadError) as caught:
        fit(event)
    assert said in str(caught.value)
    assert str(caught.value).endswith("(TICK feed@1.7)")
    assert caught.value.__cause__ is not None
    assert event.data is data


class Mute(Exception):
    def __str__(self) -> str:
        raise LookupError("it cannot be told")


class NotOfPydantic(Exception):
    def errors(self) -> list[str]:
        return ["no price"]


class Touchy(Exception):
    @property
    def errors(self) -> Any:
        raise ZeroDivisionError


@pytest.mark.parametrize("kind", [Mute, NotOfPydantic, Touchy])
def test_what_a_type_raises_is_a_misfit_whatever_its_class_does(kind: type[Exception]) -> None:
    @dataclass
    class Raising:
        price: float

        def __post_init__(self) -> None:
            raise kind

    fit = fit_of(Raising)
    assert fit is not None
    with pytest.raises(PayloadError) as caught:
        fit(Event("TICK", {"price": 1.0}, source="feed", epoch=1, seq=7))
    assert caught.value.path == "data"
    assert kind.__name__ in repr(caught.value.__cause__)


@pytest.mark.parametrize("payload", [None, Any, object, dict, dict[str, Any], list, list[Any]])
def test_what_asks_for_plain_data_changes_nothing(payload: Any) -> None:
    assert fit_of(payload) is None


def test_a_mapping_says_it_by_type_and_leaves_the_others_as_they_are() -> None:
    payload = {"TICK": AsStruct, "RAW": dict}
    assert converted(payload, {"price": 1, "legs": []}) == AsStruct(1.0, [])
    assert converted(payload, {"price": 1}, "RAW") == {"price": 1}
    assert converted(payload, {"price": "x"}, "OTHER") == {"price": "x"}


def test_system_events_keep_their_data_unless_they_are_named() -> None:
    gap = {"source": "feed"}
    assert converted(AsStruct, gap, "aiobus.gap") is gap
    assert converted({"aiobus.gap": dict[str, str]}, gap, "aiobus.gap") == gap
    with pytest.raises(PayloadError):
        converted({"aiobus.gap": AsStruct}, gap, "aiobus.gap")


def test_each_conversion_makes_objects_of_its_own() -> None:
    for name, kind in KINDS.items():
        if name not in ("dict", "TypedDict"):
            plain = msgspec.to_builtins(kind.published) if name != "pydantic" else None
            plain = plain or kind.published.model_dump()
            first, second = converted(kind.payload, plain), converted(kind.payload, plain)
            assert first == second == kind.got
            assert first is not second


# Annotations.


async def on_tick(event: Event[AsStruct]) -> None: ...
async def on_text(event: "Event[AsStruct]") -> None: ...
async def on_either(event: Event[Buy] | Event[Sell]) -> None: ...
async def on_union(event: Event[Buy | Sell]) -> None: ...
async def on_optional(event: Event[AsStruct] | None) -> None: ...
async def on_annotated(event: Annotated[Event[AsStruct], "doc"]) -> None: ...
async def on_more(event: Event[AsStruct], size: int = 3) -> None: ...
async def on_list(event: Event[list[AsStruct]]) -> None: ...
async def on_bare(event: Event) -> None: ...
async def on_any(event: Event[Any]) -> None: ...
async def on_dict(event: Event[dict[str, Any]]) -> None: ...
async def on_nothing(event) -> None: ...  # type: ignore[no-untyped-def]
async def on_generic(event: Event[T]) -> None: ...
async def on_missing(event: "Event[Missing]") -> None: ...  # type: ignore[name-defined]  # noqa: F821
async def on_bare_text(event: "Event") -> None: ...


class Bot:
    async def on_tick(self, event: Event[AsStruct]) -> None: ...

    @staticmethod
    async def on_static(event: Event[AsStruct]) -> None: ...

    async def __call__(self, event: Event[AsStruct]) -> None: ...


class Typed(Generic[T]):
    async def on_event(self, event: Event[T]) -> None: ...

    async def on_events(self, event: "Event[list[T]]") -> None: ...


def with_local_class() -> tuple[Any, Any]:
    class Local(msgspec.Struct):
        price: float

    async def on_local(event: "Event[Local]") -> type[Local]:
        return Local

    return on_local, Local


@functools.wraps(on_tick)
async def wrapped(*arguments: Any) -> None: ...


LOCAL, LOCAL_CLASS = with_local_class()
SAID: list[tuple[Any, Any]] = [
    *((each, AsStruct) for each in (on_tick, on_text, on_optional, on_annotated, on_more)),
    *((each, AsStruct) for each in (Bot().on_tick, Bot.on_static, Bot(), wrapped)),
    (functools.partial(on_more, size=2), AsStruct),
    (functools.partial(Bot().on_tick), AsStruct),
    (on_either, Buy | Sell),
    (on_union, Buy | Sell),
    (on_list, list[AsStruct]),
    (LOCAL, LOCAL_CLASS),
    (on_dict, dict[str, Any]),
    *((each, None) for each in (on_bare, on_any, on_nothing, on_generic, on_bare_text, print)),
    (lambda event: None, None),
    ([].append, None),
]


@pytest.mark.parametrize(("callback", "payload"), SAID)
def test_an_annotation_says_what_a_handler_gets(callback: Any, payload: Any) -> None:
    assert annotated(callback) == payload


def test_an_annotation_that_cannot_be_resolved_is_refused_with_the_way_out() -> None:
    with pytest.raises(TypeError, match=r"'Missing' is not defined.*give payload="):
        annotated(on_missing)


class TypedByItsBase(Typed[AsStruct]):
    pass


@pytest.mark.parametrize("bot", [Typed[AsStruct](), TypedByItsBase()])
def test_a_type_variable_of_a_class_is_refused_since_a_checker_takes_it_for_a_type(
    bot: Typed[AsStruct],
) -> None:
    for method in (bot.on_event, bot.on_events):
        with pytest.raises(TypeError, match=r"~T is a parameter of its class.*give payload="):
            annotated(method)


class HasData(Protocol):
    data: Any


class MyEvent(Event[Any]):
    """Of a user, with methods."""


Bound = TypeVar("Bound", bound=HasData)


async def no_event(event: AsStruct) -> None: ...
async def no_event_text(event: "AsStruct") -> None: ...
async def no_event_dict(event: dict[str, Any]) -> None: ...
async def no_event_list(event: list[Event[AsStruct]]) -> None: ...
async def no_event_optional(event: AsStruct | None) -> None: ...
async def no_event_annotated(event: Annotated[AsStruct, "doc"]) -> None: ...
async def no_event_each(*events: AsStruct) -> None: ...
async def an_object(event: object) -> None: ...
async def a_protocol(event: HasData) -> None: ...
async def a_subclass(event: MyEvent) -> None: ...
async def a_bound(event: Bound) -> None: ...
async def an_event_or_more(event: Event | AsStruct) -> None: ...
async def anything(*arguments: Any, **keywords: Any) -> None: ...


class Wrong:
    async def on_tick(self, event: AsStruct) -> None: ...

    async def __call__(self, event: AsStruct) -> None: ...


@functools.wraps(no_event)
async def unpacks(event: Event) -> None:
    await no_event(event.data)


NO_EVENT: list[Any] = [
    *(no_event, no_event_text, no_event_dict, no_event_list, no_event_optional),
    *(no_event_annotated, no_event_each, Wrong().on_tick, Wrong()),
    functools.partial(no_event),
]


@pytest.mark.parametrize("callback", NO_EVENT)
def test_a_handler_that_says_it_takes_no_event_is_refused(callback: Any) -> None:
    with pytest.raises(TypeError, match=r"is annotated with .*given an Event.*with Event\["):
        annotated(callback)


@pytest.mark.parametrize(
    "callback",
    [an_object, a_protocol, a_subclass, a_bound, an_event_or_more, anything, unpacks],
)
def test_a_handler_that_may_take_an_event_is_not_refused(callback: Any) -> None:
    assert annotated(callback) is None


@pytest.mark.parametrize("payload", [None, AsStruct, Any])
async def test_it_is_refused_at_subscribe_also_with_a_payload(
    bus: AsyncEventBus, payload: Any
) -> None:
    with pytest.raises(TypeError, match="annotated with AsStruct, and it is given an Event"):
        await bus.subscribe("TICK", no_event, payload=payload)
    assert not bus.stats().subscriptions
    await bus.subscribe("TICK", on_missing, payload=AsStruct)  # the way out stays open


# What cannot be told apart, or made.


class Nothing:
    pass


@dataclass
class Unresolved:
    other: "Missing"  # type: ignore[name-defined] # noqa: F821


class UnresolvedModel(pydantic.BaseModel):
    other: "Missing"  # type: ignore[name-defined] # noqa: F821


CANNOT: list[tuple[Any, str]] = [
    (AsDataclass | AsStruct, "more than one"),
    (AsModel | BuyModel, "discriminator"),
    (Nothing, "Nothing cannot be made of JSON data"),
    (list[Nothing], "Nothing cannot be made of JSON data"),
    ("AsStruct", "'AsStruct' is text"),
    (Leg("BTC", 1), r"Leg\(.*\) is a value: give a class, such as payload=Leg"),
    (3, "payload=3 is a value: give a class, such as payload=int"),
    ({"TICK": [1]}, r"payload=\[1\] is a value: give a class, such as payload=list"),
    ({"TICK": AsDataclass | AsStruct}, "more than one"),
    (list[AsModel | BuyModel], "discriminator"),
    (Unresolved, "'Missing' is not defined.*give payload="),
    (UnresolvedModel, "'Missing' is not defined.*give payload="),
    (AsDataclass(1.5, []), "is a value: give a class"),
]


@pytest.mark.parametrize(("payload", "said"), CANNOT)
def test_types_that_cannot_be_told_apart_or_made_are_refused(payload: Any, said: str) -> None:
    with pytest.raises(TypeError, match=re.compile(said, re.DOTALL)):
        fit_of(payload)


def test_the_data_of_system_events_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    for kind in aiobus.system.DATA.values():
        assert fit_of(kind) is None
    assert fit_of(aiobus.system.Stale | aiobus.system.Fresh) is None


@pytest.mark.parametrize("kind", [AsStruct, AsDataclass])
def test_without_the_library_the_error_says_what_to_install(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(TypeError, match=r"pip install 'aiobus-zmq\[typed\]'"):
        fit_of(kind)
    assert fit_of(dict) is None


# Topics.


def test_a_topic_is_its_name_and_knows_its_payload() -> None:
    topic = Topic[AsStruct]("TICK")
    assert topic == "TICK"
    assert {topic: 1}["TICK"] == 1  # type: ignore[index]
    assert isinstance(topic, str)
    assert topic.payload is AsStruct
    assert Topic("TICK").payload is Any


@pytest.mark.parametrize("name", ["", "*", "a b", 5])
def test_a_topic_has_the_name_of_an_event_type(name: Any) -> None:
    with pytest.raises(ValueError, match="Topic"):
        Topic[AsStruct](name)


def test_topics_say_it_by_type_and_an_annotation_may_agree() -> None:
    topics = {"BUY": Buy, "SELL": Sell}
    for payload in (None, Buy | Sell, {"BUY": Buy}):
        fit = fit_of(payload, topics)
        assert fit is not None
        event = Event("SELL", {"price": 1.0})
        fit(event)
        assert event.data == Sell(1.0)
    assert fit_of(Any, topics) is None


@pytest.mark.parametrize("payload", [AsStruct, dict, {"BUY": Sell}])
def test_a_consumer_that_contradicts_a_topic_is_refused(payload: Any) -> None:
    with pytest.raises(TypeError, match=r"BUY is a Topic\[Buy\], and its consumer asks for "):
        fit_of(payload, {"BUY": Buy})
