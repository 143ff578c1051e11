"""How an event looks, compares and is identified."""

import pickle
import time
from copy import copy
from dataclasses import astuple, dataclass, fields, replace
from inspect import signature
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobus import AsyncEventBus, EncodeError, Event, EventType
from aiobus.event import event_id


def test_events_are_equal_when_type_data_and_key_are() -> None:
    received = Event("TRADE", {"price": 1.5}, 99.0, key="BTC", cause="a@1.1", source="b", epoch=1)
    assert received == Event(EventType.TRADE, {"price": 1.5}, key="BTC")


@pytest.mark.parametrize(
    "other", [Event("FILL", 1, key="x"), Event("TRADE", 2, key="x"), Event("TRADE", 1), 1, None]
)
def test_events_of_another_type_data_or_key_differ(other: object) -> None:
    assert Event("TRADE", 1, key="x") != other


def test_only_type_data_and_key_are_compared() -> None:
    assert [field.name for field in fields(Event) if field.compare] == ["type", "data", "key"]


def test_type_data_and_timestamp_are_given_in_order_and_the_rest_by_name() -> None:
    event = Event("TRADE", 1, 2.5)
    assert (event.type, event.data, event.timestamp) == ("TRADE", 1, 2.5)
    with pytest.raises(TypeError):
        Event("TRADE", 1, 2.5, "BTC")  # type: ignore[misc]


def test_a_new_event_says_nothing_of_where_it_came_from() -> None:
    event = Event("TRADE", 1)
    assert (event.key, event.cause, event.source, event.epoch, event.seq) == ("", "", "", 0, 0)
    assert event.id == ""


def test_the_timestamp_is_by_default_when_it_was_made() -> None:
    before = time.time()
    assert before <= Event("TRADE", 1).timestamp <= time.time()


def test_an_event_can_be_copied_pickled_replaced_and_matched() -> None:
    event = Event("TRADE", [1], 2.5, key="BTC", cause="a@1.1", source="b", epoch=1, seq=2)
    assert repr(event) == (
        "Event(type='TRADE', data=[1], timestamp=2.5, key='BTC', cause='a@1.1', source='b',"
        " epoch=1, seq=2)"
    )
    for again in (copy(event), pickle.loads(pickle.dumps(event)), replace(event)):
        assert astuple(again) == astuple(event)
    other = replace(event, data=3, seq=0)
    assert (other.data, other.timestamp, other.seq) == (3, 2.5, 0)
    match event:
        case Event(type, data, timestamp, key=key):
            assert (type, data, timestamp, key) == ("TRADE", [1], 2.5, "BTC")


def test_what_a_call_may_leave_out_is_what_a_dataclass_of_events_may() -> None:
    parameters = signature(Event).parameters
    assert str(parameters["timestamp"]) == "timestamp: float = now"
    for each in fields(Event)[3:]:
        assert (parameters[each.name].default, each.kw_only) == (each.default, True)


def test_an_event_has_no_other_attributes() -> None:
    event: Any = Event("TRADE", 1)
    with pytest.raises(AttributeError):
        event.price = 1.5


# Its id.


@pytest.mark.parametrize(
    ("source", "epoch", "seq", "id"),
    [
        ("desk", 36, 5, "desk@10.5"),
        ("desk", 35, 5, "desk@z.5"),
        ("desk", 0, 5, "desk@0.5"),
        ("a.b@", 1_700_000_000_000_000, 1, "a.b@@gqll7vatq8.1"),
        ("desk", 36, 0, ""),
    ],
)
def test_the_id_is_name_epoch_in_base_36_and_seq(
    source: str, epoch: int, seq: int, id: str
) -> None:
    assert event_id(source, epoch, seq) == id
    assert Event("TRADE", 1, source=source, epoch=epoch, seq=seq).id == id


@given(st.integers(-(2**63), 2**63), st.integers(1, 2**63))
def test_epoch_and_seq_can_be_read_back_from_the_id(epoch: int, seq: int) -> None:
    source, _, rest = event_id("desk", epoch, seq).partition("@")
    digits, _, number = rest.partition(".")
    assert (source, int(digits, 36), int(number)) == ("desk", epoch, seq)


def test_an_event_of_a_source_that_started_before_1970_has_an_id() -> None:
    assert event_id("desk", -36, 1) == "desk@-10.1"


# Its type.


@pytest.mark.parametrize("member", EventType)
def test_each_usual_type_is_its_name_as_a_string(member: EventType) -> None:
    assert member == member.value == member.name == str(member)


def test_the_usual_types_are_those_of_a_trading_desk() -> None:
    assert " ".join(EventType) == (
        "NEW_DATA TRADE QUOTE BAR SIGNAL ORDER ACK FILL CANCEL REJECT POSITION RISK HALT RESUME"
    )


# Subclasses.


@dataclass
class Trade(Event[Any]):
    price: float = 0.0
    qty: float = 0.0


@dataclass(slots=True)
class Slotted(Event[Any]):
    price: float = 0.0


class Noted(Event[Any]):
    def __init__(self, price: float) -> None:
        super().__init__("TRADE", {})
        self.price = price


class Tick(Event[Any]):
    """Adds nothing but words."""

    @property
    def price(self) -> float:
        return float(self.data["price"])


@dataclass
class Dated(Event[Any]):
    type: str = "DATED"
    data: Any = None


@pytest.mark.parametrize(
    ("event", "path", "names"),
    [
        (Trade("TRADE", {}, price=39_000.0, qty=2.0), "price", "price, qty"),
        (Slotted("TRADE", {}, price=1.0), "price", "price"),
        (Noted(1.0), "price", "price"),
    ],
    ids=["dataclass", "slots", "attribute"],
)
async def test_an_event_with_fields_of_its_own_is_refused_and_told_where_they_belong(
    bus: AsyncEventBus, event: Event[Any], path: str, names: str
) -> None:
    calls = bus.publish(event), bus.request(event, "ACK"), bus.reply("desk@1.1", event)
    for call in calls:
        with pytest.raises(EncodeError) as caught:
            await call
        assert caught.value.path == path
        assert f"would not travel ({names}): put them into `data`" in str(caught.value)
    with pytest.raises(EncodeError):
        bus.publish_nowait(event)
    assert bus.stats().published == 0


@pytest.mark.parametrize(
    "event", [Tick("TRADE", {"price": 1}), Dated()], ids=["property", "defaults"]
)
async def test_a_subclass_without_fields_of_its_own_travels_as_a_plain_event(
    bus: AsyncEventBus, event: Event[Any]
) -> None:
    seen: list[Event[Any]] = []
    await bus.subscribe("*", seen.append)
    await bus.publish(event)
    await bus.settle()
    assert (type(seen[0]), seen[0].type, seen[0].data) == (Event, event.type, event.data)
