"""Facts are in attributes, the way out is in the text."""

import copy
import pickle

import pytest

from aiobus import Event, EventType, errors
from aiobus.errors import (
    AlreadyReplied,
    BusClosed,
    BusError,
    CommitFailed,
    Deadlock,
    EncodeError,
    JournalCorrupt,
    JournalError,
    JournalFailed,
    JournalInUse,
    JournalRemoved,
    JournalRestored,
    KeyringError,
    LeavesProcess,
    NameInUse,
    NoSubscribers,
    NotPermitted,
    NotRecorded,
    PayloadError,
    PeerTimeout,
    QueueFull,
    RequestInterrupted,
    RequestTimeout,
    StateCorrupt,
    WrongLoop,
)

EVENT = Event(EventType.ORDER, {"side": "buy"}, key="BTC", source="desk", epoch=36, seq=5)

MADE: list[BusError] = [
    BusError("it failed"),
    AlreadyReplied("desk@a.5", "gateway@b.6"),
    BusClosed("desk is closed"),
    EncodeError("data['price']", "nan is not a JSON number"),
    QueueFull("", 8, "history_bytes"),
    CommitFailed("gateway.db", "the disk is full"),
    JournalCorrupt("gateway.db", 8, 7, "its checksum differs"),
    JournalError("gateway.db is no journal"),
    JournalFailed("gateway.db", "disk I/O error"),
    JournalInUse("gateway.db", "process 8"),
    JournalRemoved("gateway.db", 4_097),
    JournalRestored("desk", 70_000, 9),
    KeyringError("keys/desk.members is not there"),
    NameInUse("desk", "ipc://desk"),
    NoSubscribers("ORDER", "BTC"),
    NotPermitted("spy", "subscribe to", "ORDER"),
    NotRecorded("no event of type FILL is recorded at 10:31 (UTC)", ["gateway@h0lvy81pam.17"]),
    PayloadError("TICK", "feed@h0lvy81pam.17", "data.price", "expected float, got str"),
    PeerTimeout("gateway", "ORDER", 2.5, "there is no bus 'gateway'", {"feed": ["TRADE"]}),
    RequestInterrupted(EVENT, "gateway"),
    RequestTimeout(EVENT, 2.5),
    StateCorrupt("state.db", "it is empty"),
    WrongLoop("called from another loop"),
    Deadlock(60.0, ["Task-1: main (bot.py:7)"]),
    LeavesProcess("os.fork()", "bot.main"),
]
IDS = [type(error).__name__ for error in MADE]


def test_there_is_an_example_of_every_error_here() -> None:
    assert sorted(IDS) == sorted(errors.__all__)


@pytest.mark.parametrize("error", MADE, ids=IDS)
def test_every_error_is_a_bus_error(error: BusError) -> None:
    assert isinstance(error, BusError)


@pytest.mark.parametrize("error", MADE, ids=IDS)
def test_every_error_survives_pickling_with_its_facts_and_its_text(error: BusError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


@pytest.mark.parametrize("error", MADE, ids=IDS)
def test_every_error_can_be_copied(error: BusError) -> None:
    assert str(copy.copy(error)) == str(error)


@pytest.mark.parametrize("error", MADE, ids=IDS)
def test_every_error_is_documented(error: BusError) -> None:
    assert type(error).__doc__


def test_an_encode_error_is_a_value_error_that_says_where_and_why() -> None:
    error = EncodeError("data['price']", "nan is not a JSON number")
    assert isinstance(error, ValueError)
    assert (error.path, error.reason) == ("data['price']", "nan is not a JSON number")
    assert str(error) == "data['price']: nan is not a JSON number"


def test_a_full_queue_names_the_subscription_its_size_and_what_to_do() -> None:
    error = QueueFull("on_trade(TRADE)", 8)
    assert (error.subscription, error.maxsize) == ("on_trade(TRADE)", 8)
    assert "the inbox of on_trade(TRADE) is full (maxsize=8)" in str(error)
    assert "`await bus.publish(event)` waits for room" in str(error)


def test_a_request_without_a_reply_says_where_a_failure_of_its_handler_is_told() -> None:
    assert "If its handler has failed, the log of that bus and an `aiobus.error` there" in str(
        RequestTimeout(EVENT, 2.5)
    )


def test_a_name_in_use_says_where_and_what_to_do() -> None:
    error = NameInUse("desk", "ipc://desk")
    assert (error.name, error.url) == ("desk", "ipc://desk")
    assert str(error) == (
        "a bus named 'desk' is on ipc://desk already: end that one first. It may be frozen or"
        " stopped (Ctrl-Z), see `aiobus doctor ipc://desk`. Give another name= only to another bot:"
        " two that take the same orders both execute them"
    )
    assert "doctor" not in str(NameInUse("desk", "this replay"))


def test_no_subscribers_says_to_what_and_that_a_star_does_not_count() -> None:
    error = NoSubscribers("ORDER", "BTC")
    assert (error.type, error.key) == ("ORDER", "BTC")
    assert "no subscription names ORDER with key 'BTC' ('*' does not count)" in str(error)
    assert "Start the bus that answers it first" in str(error)


def test_no_subscribers_of_one_bus_says_whether_that_is_there() -> None:
    deaf = NoSubscribers("ORDER", "BTC", "gateway")
    assert (deaf.to, deaf.linked) == ("gateway", None)
    assert "no subscription of gateway names ORDER with key 'BTC'" in str(deaf)
    away = NoSubscribers("ORDER", "BTC", "gateway", ["feed", "risk"])
    assert (away.to, away.linked) == ("gateway", ("feed", "risk"))
    assert "no bus named 'gateway' is linked (linked: feed, risk)" in str(away)
    assert "Wait for its `aiobus.peer_joined`, or correct to=" in str(away)
    assert "(linked: none)" in str(NoSubscribers("ORDER", "", "gateway", []))
    many = NoSubscribers("ORDER", "", "gateway", [f"bot{number}" for number in range(20)])
    assert "bot7 and 12 more)" in str(many)


@pytest.mark.parametrize(
    "error",
    [
        NoSubscribers("ORDER", "BTC", "gateway"),
        NoSubscribers("ORDER", "BTC", "gateway", ["feed"]),
        RequestTimeout(EVENT, 2.5, ["on_order(ORDER)"]),
        RequestTimeout(EVENT, 2.5, silent=["gateway"]),
    ],
    ids=["of a bus", "of no bus", "that waited", "of the silent"],
)
def test_the_facts_that_only_some_have_survive_pickling(error: BusError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_a_second_reply_is_told_with_the_first_and_with_the_way_out() -> None:
    error = AlreadyReplied("desk@a.5", "gateway@b.6")
    assert (error.request, error.reply, error.most) == ("desk@a.5", "gateway@b.6", 0)
    assert "desk@a.5 was replied to before, with gateway@b.6" in str(error)
    assert "as Event(..., cause=request.id)" in str(error)
    assert "is being replied to by another call" in str(AlreadyReplied("desk@a.5", ""))
    assert "is not known any more, because 65536 requests" in str(
        AlreadyReplied("desk@a.5", "", 65_536)
    )


def test_a_request_that_waited_for_itself_says_whose_handler_is_in_the_way() -> None:
    error = RequestTimeout(EVENT, 2.5, ["on_order(ORDER SIGNAL)"])
    assert error.waited == ("on_order(ORDER SIGNAL)",)
    assert (error.args, error.filename) == ((EVENT, 2.5, error.waited), None)  # it is an OSError
    assert "waits for this very handler: on_order(ORDER SIGNAL) alone could answer" in str(error)
    assert "a task that the handler does not await" in str(error)


def test_a_request_timeout_is_a_timeout_error_that_carries_the_event() -> None:
    error = RequestTimeout(EVENT, 2.5)
    assert isinstance(error, TimeoutError)
    assert (error.event, error.timeout) == (EVENT, 2.5)
    assert "no reply within 2.5 s" in str(error)
    assert "it may still be acted on" in str(error)
    assert "or with its id as `cause`" in str(error)


def test_an_encode_error_of_a_deep_path_shows_both_its_ends_and_the_reason() -> None:
    path = "data['book']" + "[0]" * 250 + "['price']"
    error = EncodeError(path, "nan is not a JSON number")
    assert str(error).startswith("data['book'][0]")
    assert str(error).endswith("[0]['price']: nan is not a JSON number")
    assert len(str(error)) < 200
    assert (error.path, pickle.loads(pickle.dumps(error)).path) == (path, path)


def test_a_path_of_a_few_steps_is_shown_in_whole() -> None:
    path = "data" + "['a key of some length']" * 6
    assert str(EncodeError(path, "why")) == f"{path}: why"


def test_a_request_timeout_of_a_large_event_names_it_in_a_short_sentence() -> None:
    event = Event(EventType.ORDER, "x" * 100_000, source="desk", epoch=36, seq=5)
    text = str(RequestTimeout(event, 2.5))
    assert "Event(type=<EventType.ORDER" in text
    assert "source='desk', epoch=36, seq=5)" in text
    assert len(text) < 500
