"""Numbering, keeping and handing out, and everything that must not take a number."""

import enum
from contextvars import copy_context
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobus import BusError, EncodeError, Event, EventType, Limits
from aiobus.codec import decode
from aiobus.delivery import Consumer, enter
from aiobus.history import LARGE, ROW_OVERHEAD
from aiobus.publisher import Publisher, Route, Stream
from aiobus.query import Query
from aiobus.sync import BackpressureGate


class OldKind(str, enum.Enum):  # noqa: UP042 - how it was written before there was StrEnum
    TRADE = "TRADE"


class Box:
    """A sink that keeps what it is handed, as (seq, type, key) and the row."""

    def __init__(self, types: Any = "*", key: Any = None, *, order: Any = None) -> None:
        self.query = Query.of(types, key)
        self.gate: BackpressureGate | None = None
        self.got: list[tuple[int, str, str]] = []
        self.rows: list[bytes] = []
        self.order = [] if order is None else order

    def deliver(self, seq: int, row: bytes, type: str, key: str) -> None:
        self.got.append((seq, type, key))
        self.rows.append(row)
        self.order.append(self)

    @property
    def seqs(self) -> list[int]:
        return [seq for seq, _, _ in self.got]


class Republisher(Box):
    """A sink that breaks the rule and publishes from within `deliver`."""

    def __init__(self, publisher: Publisher) -> None:
        super().__init__()
        self.publisher = publisher
        self.error: BaseException | None = None

    def deliver(self, seq: int, row: bytes, type: str, key: str) -> None:
        super().deliver(seq, row, type, key)
        try:
            publish(self.publisher, "TRADE")
        except BusError as error:
            self.error = error


class Broken(Box):
    """A sink that breaks the rule and raises."""

    def deliver(self, seq: int, row: bytes, type: str, key: str) -> None:
        raise KeyboardInterrupt


def publisher(**limits: int) -> Publisher:
    publisher = Publisher("desk", Limits(**limits))
    publisher.epoch = 36
    return publisher


def publish(
    publisher: Publisher, type: Any, data: Any = 1, *, key: Any = "", cause: Any = "", **more: Any
) -> Event[Any]:
    event = Event(type, data, key=key, cause=cause)
    publisher.publish(event, **more)
    return event


def route(publisher: Publisher, type: Any, key: Any = "") -> Route:
    return publisher.route(Event(type, 1, key=key))


def stream_of(types: Any, messages: list[bytes]) -> Stream:
    """A stream to other processes."""
    return Stream(Query.of(types), b"topic\0", ("desk", 36), 0, messages.append, lambda _: None)


# Numbers and stamps.


def test_events_are_numbered_from_one_whatever_their_type() -> None:
    desk = publisher()
    assert [publish(desk, type).seq for type in ("TRADE", "FILL", "TRADE")] == [1, 2, 3]
    assert desk.seq == desk.history.newest == 3


def test_the_cause_is_the_event_in_hand_unless_the_caller_or_the_bus_itself_names_it() -> None:
    desk = publisher()

    def in_hand() -> list[str]:
        enter(Consumer().begin(Event("ORDER", 1, source="other", epoch=36, seq=5)))
        received = Event("TRADE", 1, source="other", epoch=36, seq=4, cause="other@10.3")
        desk.publish(received)
        events = [publish(desk, "TRADE"), publish(desk, "TRADE", cause="a@1.1"), received]
        return [event.cause for event in (*events, publish(desk, "aiobus.gap", is_own=True))]

    assert copy_context().run(in_hand) == ["other@10.5", "a@1.1", "other@10.5", ""]


def test_the_row_that_is_kept_and_handed_out_says_the_same() -> None:
    desk, box = publisher(), Box()
    desk.attach(box)
    event = publish(desk, "TRADE", {"price": 1.5}, key="BTC", cause="other@1.7")
    (arrived,) = decode(box.rows, "desk", 36)
    assert arrived == event
    assert (arrived.id, arrived.cause, arrived.timestamp) == (
        event.id,
        event.cause,
        event.timestamp,
    )
    assert desk.history.page(Query.of("*"), 0, 1).rows == [("TRADE", "BTC", box.rows[0])]


def test_the_sizes_of_large_events_are_not_counted_one_by_one() -> None:
    desk = publisher(event_bytes=1_000_000)
    publish(desk, "TRADE", "")
    for _ in range(5):
        publish(desk, "TRADE", "." * 10 * LARGE)
    ring = desk.history.ring("TRADE")
    assert ring is not None
    assert ring.counted == 1


def test_the_bounds_of_history_hold_after_every_event() -> None:
    desk = publisher(history_events=50, history_bytes=20_000)
    for size in [*[1] * 70, *[LARGE] * 10, *[1] * 70, *[5 * LARGE] * 5, *[1] * 70]:
        publish(desk, "TRADE", "." * size)
        ring = desk.history.ring("TRADE")
        assert ring is not None
        rows = ring.cells[3 * ring.start :: 3]
        assert len(rows) <= 50
        assert sum(map(len, rows)) + len(rows) * ROW_OVERHEAD <= 20_000


REFUSED = {
    "data": ("TRADE", {"price": float("nan")}, "", "data['price']"),
    "size": ("TRADE", "x" * 1000, "", "data"),
    "type": ("TRA DE", 1, "", "type"),
    "type of no text": (5, 1, "", "type"),
    "type that is no key of a dict": (["TRADE"], 1, "", "type"),
    "reserved type": ("aiobus.gap", 1, "", "type"),
    "one type too many": ("THIRD", 1, "", "type"),
    "key": ("TRADE", 1, "x" * 129, "key"),
    "key of no text": ("TRADE", 1, 5, "key"),
    "key that is no key of a dict": ("TRADE", 1, {}, "key"),
    "key of no Unicode text": ("TRADE", 1, "\ud800", "key"),
}


@pytest.mark.parametrize(("type", "data", "key", "path"), REFUSED.values(), ids=REFUSED)
def test_a_refused_event_takes_no_number_and_is_neither_kept_nor_handed_out(
    type: Any, data: Any, key: Any, path: str
) -> None:
    desk, box = publisher(event_bytes=500, types=2), Box()
    desk.attach(box)
    publish(desk, "TRADE")
    publish(desk, "FILL")
    with pytest.raises(EncodeError) as caught:
        publish(desk, type, data, key=key)
    assert caught.value.path == path
    assert (desk.seq, desk.history.newest, len(desk.history), box.seqs) == (2, 2, 2, [1, 2])
    assert publish(desk, "TRADE").seq == 3


def test_a_refused_event_keeps_the_stamps_it_had() -> None:
    desk = publisher()
    event = Event("TRADE", {1, 2}, source="other", epoch=1, seq=5, cause="a@1.1")
    with pytest.raises(EncodeError):
        desk.publish(event)
    assert (event.source, event.epoch, event.seq, event.cause) == ("other", 1, 5, "a@1.1")


@given(st.lists(st.sampled_from([1, None, "x", float("nan"), {1}, 2**64]), max_size=20))
def test_the_numbers_handed_out_have_no_holes_whatever_was_refused(datas: list[Any]) -> None:
    desk, box = publisher(), Box()
    desk.attach(box)
    accepted = 0
    for data in datas:
        try:
            publish(desk, "TRADE", data)
            accepted += 1
        except EncodeError:
            pass
    assert box.seqs == list(range(1, accepted + 1))


# Who gets what.


def test_sinks_of_the_same_types_are_served_in_the_order_they_were_attached() -> None:
    order: list[Box] = []
    desk, boxes = publisher(), [Box("TRADE", order=order) for _ in range(5)]
    for box in boxes:
        desk.attach(box)
    publish(desk, "TRADE")
    assert order == boxes


@pytest.mark.parametrize("types", ["*", "TRADE"])
@pytest.mark.parametrize("key", [None, "BTC", "B*", ["ETH", "B*"]])
def test_a_sink_gets_what_is_published_between_its_coming_and_its_going(
    types: str, key: Any
) -> None:
    desk, box, other = publisher(), Box(types, key), Box()
    desk.attach(other)
    publish(desk, "TRADE", key="BTC")
    desk.attach(box)
    publish(desk, "TRADE", key="BTC")
    desk.detach(box)
    publish(desk, "TRADE", key="BTC")
    assert (box.seqs, other.seqs) == ([2], [1, 2, 3])


@pytest.mark.parametrize("first", [EventType.TRADE, OldKind.TRADE, "TRADE"])
def test_types_and_keys_are_the_same_however_they_are_written(first: str) -> None:
    desk, box = publisher(), Box("TRADE")
    desk.attach(box)
    publish(desk, first, key=first)
    publish(desk, EventType.TRADE, key=OldKind.TRADE)
    publish(desk, OldKind.TRADE, key=EventType.TRADE)
    assert box.got == [(seq, "TRADE", "TRADE") for seq in (1, 2, 3)]
    assert {type(text) for _, *texts in box.got for text in texts} == {str}


# Routes.


@pytest.mark.parametrize(("type", "key"), [("A B", ""), ("A", "*"), ("aiobus.gap", ""), ([], "")])
def test_the_error_for_a_type_or_key_shows_no_other_behind_it(type: Any, key: str) -> None:
    with pytest.raises(EncodeError) as raised:
        publish(publisher(), type, key=key)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_a_route_is_remembered() -> None:
    desk = publisher()
    assert route(desk, "TRADE", "BTC") is route(desk, EventType.TRADE, "BTC")
    assert route(desk, "TRADE", "BTC") is not route(desk, "TRADE", "ETH")


def test_a_route_names_the_gates_among_its_sinks() -> None:
    desk, plain, gated = publisher(), Box(), Box()
    gate: Any = gated
    gated.gate = gate
    desk.attach(plain)
    desk.attach(gated)
    assert route(desk, "TRADE").blocking == (gated,)


def test_keys_that_never_repeat_do_not_fill_the_memory() -> None:
    desk = publisher()
    first = route(desk, "TRADE", "0")
    for key in range(1, 65_536):
        route(desk, "TRADE", str(key))
    assert route(desk, "TRADE", "0") is first
    route(desk, "TRADE", "one more")
    assert route(desk, "TRADE", "0") is not first


def test_one_type_too_many_is_refused_with_the_way_out() -> None:
    desk = publisher(types=2)
    publish(desk, "A")
    publish(desk, "B")
    with pytest.raises(EncodeError, match=r"more than 2 types \(Limits\.types\); put what varies"):
        route(desk, "C")
    assert publish(desk, "A", key="any").seq == 3


# Reserved types.


def test_a_user_cannot_publish_a_reserved_type() -> None:
    with pytest.raises(EncodeError, match=r"is reserved: types that begin with 'aiobus\.'"):
        route(publisher(), "aiobus.mine")


def test_the_bus_can_and_that_does_not_open_the_door_for_users() -> None:
    desk = publisher()
    assert publish(desk, "aiobus.gap", is_own=True).seq == 1
    with pytest.raises(EncodeError, match="is reserved"):
        route(desk, "aiobus.gap")


def test_the_bus_can_however_many_types_there_are() -> None:
    desk = publisher(types=1)
    publish(desk, "A")
    assert publish(desk, "aiobus.error", is_own=True).seq == 2


def test_a_reserved_type_goes_to_those_who_named_it_in_this_process_only() -> None:
    desk, messages = publisher(), list[bytes]()
    here, everything = Box("aiobus.gap"), Box()
    for target in (here, everything, stream_of("aiobus.gap", messages)):
        desk.attach(target)
    publish(desk, "aiobus.gap", is_own=True)
    assert (here.seqs, everything.seqs, messages) == ([1], [], [])


def test_an_ordinary_type_goes_to_other_processes_too() -> None:
    desk, messages = publisher(), list[bytes]()
    desk.attach(stream_of("TRADE", messages))
    publish(desk, "TRADE")
    assert len(messages) == 1


def test_what_others_may_have_ends_with_the_last_event_that_is_not_of_a_reserved_type() -> None:
    desk = publisher()
    publish(desk, "aiobus.peer_joined", is_own=True)
    assert (desk.seq, desk.public_seq) == (1, 0)
    publish(desk, "TRADE")
    publish(desk, "aiobus.gap", is_own=True)
    assert (desk.seq, desk.public_seq) == (3, 2)


# Publishing from within.


def test_publishing_while_an_event_is_handed_out_is_refused() -> None:
    desk = publisher()
    republisher, after = Republisher(desk), Box()
    desk.attach(republisher)
    desk.attach(after)
    publish(desk, "TRADE")
    assert isinstance(republisher.error, BusError)
    assert "do it in the callback" in str(republisher.error)
    assert (desk.seq, after.seqs) == (1, [1])


def test_the_publisher_is_as_usable_as_before_when_that_was_refused() -> None:
    desk = publisher()
    republisher = Republisher(desk)
    desk.attach(republisher)
    publish(desk, "TRADE")
    desk.detach(republisher)
    assert not desk.is_handing_out
    assert publish(desk, "TRADE").seq == 2


def test_a_sink_that_raises_leaves_the_publisher_usable() -> None:
    desk = publisher()
    broken = Broken()
    desk.attach(broken)
    with pytest.raises(KeyboardInterrupt):
        publish(desk, "TRADE")
    desk.detach(broken)
    assert publish(desk, "TRADE").seq == 2


# What must wait until an event has been handed out.


class Announcer(Box):
    """A sink in which something happens that the bus announces."""

    def __init__(self, publisher: Publisher) -> None:
        super().__init__("TRADE")
        self.publisher = publisher

    def deliver(self, seq: int, row: bytes, type: str, key: str) -> None:
        super().deliver(seq, row, type, key)
        event = Event("aiobus.error", None, cause="desk@10.1")
        self.publisher.when_free(lambda: self.publisher.publish(event, is_own=True))


def test_what_comes_up_while_an_event_is_handed_out_is_published_when_all_have_that() -> None:
    desk, after = publisher(), Box(["*", "aiobus.error"])
    desk.attach(Announcer(desk))
    desk.attach(after)
    publish(desk, "TRADE")
    publish(desk, "TRADE")
    assert [type for _, type, _ in after.got] == ["TRADE", "aiobus.error"] * 2
    assert decode(after.rows[1:2], "desk", 36)[0].cause == "desk@10.1"


def test_what_comes_up_while_older_events_are_handed_out_is_published_after_them() -> None:
    desk, box = publisher(), Box("aiobus.error")
    desk.attach(box)
    announcer = Announcer(desk)
    with desk.no_publish():
        announcer.deliver(1, b"", "TRADE", "")
        with pytest.raises(BusError, match="do it in the callback"):
            publish(desk, "TRADE")
        assert box.seqs == []
    assert box.seqs == [1]
    announcer.deliver(1, b"", "TRADE", "")
    assert box.seqs == [1, 2]
