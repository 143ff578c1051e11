"""When frames, beacons and pages leave, and what each link is refused."""

import asyncio
from contextvars import Context
from functools import partial
from typing import Any

import pytest

from aiobus import Event, Limits, wire
from aiobus.delivery import Delivery, current, enter
from aiobus.history import Want
from aiobus.mesh import Driver
from aiobus.mesh import fanout as module
from aiobus.mesh import fanout as streams
from aiobus.mesh.fanout import (
    LOOKS,
    MAX_JUNK,
    MAX_NAMED,
    MAX_VAIN,
    PAGE_EVENTS,
    SLICE,
    Askers,
    Fanout,
)
from aiobus.publisher import Publisher
from aiobus.query import Query
from aiobus.rows import LazyBatch
from aiobus.wire import Frame, PeerId, WireError

ME = PeerId("me", 7, "ipc:///me")
A, B, C = map(wire.topic, "ABC")


def events_of(frame: Frame) -> list[Event]:
    """Its events, which are as many as its head says, and the last the one that it names."""
    batch, events = LazyBatch(frame), []
    while batch.left:
        events += batch.take()
    assert batch.error is None
    return events


def driver() -> Driver:
    """That of the loop that runs."""
    loop = asyncio.get_running_loop()
    context = Context()
    return Driver(
        partial(loop.call_soon, context=context),
        partial(loop.call_later, context=context),
        lambda probe: None,
    )


class Desk:
    """A publisher, its streams and what they have sent."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.publisher = Publisher("desk", Limits())
        self.streams = Fanout(self.publisher, self.messages.append, driver())

    def open(self, *texts: str) -> None:
        for text in texts:
            self.streams.open(wire.topic(text), Query.of(text))

    def open_progress(self, *texts: str) -> None:
        for text in texts:
            self.streams.open(wire.progress_topic(wire.topic(text)), Query.of(text))

    @property
    def told(self) -> list[tuple[bytes, int]]:
        """Of each progress message its topic and its `prev`."""
        progress_topic = [message for message in self.messages if message.startswith(wire.PROGRESS)]
        frames = [wire.parse_from_publisher(message, ME) for message in progress_topic]
        return [(frame.topic, frame.prev) for frame in frames if isinstance(frame, Frame)]

    def publish(self, *types: str) -> None:
        for type in types:
            event: Event[Any] = Event(type, 1)
            self.publisher.publish(event)

    @property
    def sent(self) -> list[tuple[bytes, int, list[int]]]:
        """Of each frame its topic, its `prev` and its seqs."""
        frames = [wire.parse_from_publisher(message, ME) for message in self.messages]
        return [
            (frame.topic, frame.prev, [event.seq for event in events_of(frame)])
            for frame in frames
            if isinstance(frame, Frame)
        ]


@pytest.fixture
async def desk() -> Desk:
    return Desk()


class Way:
    """What a desk sends by, while it is not broken, and what was raised meanwhile."""

    def __init__(self, desk: Desk) -> None:
        self.is_broken = False
        self.failures: list[Exception] = []
        self._messages = desk.messages
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.failures.append(context["exception"]))
        desk.streams = Fanout(desk.publisher, self._send, driver())

    def _send(self, message: bytes) -> None:
        if self.is_broken:
            raise OSError("broken")
        self._messages.append(message)


async def turn() -> None:
    """The loop runs what was to be run at its next turn."""
    await asyncio.sleep(0)


# Streams.


async def test_a_frame_that_could_not_be_sent_holds_up_nothing_that_comes_later(desk: Desk) -> None:
    way = Way(desk)
    desk.open("A")
    desk.publish("A", "A")
    way.is_broken = True
    await turn()
    way.is_broken = False
    desk.publish("A", "A")
    await turn()
    assert [type(each) for each in way.failures] == [OSError]
    assert [seq for _, _, seqs in desk.sent for seq in seqs] == [1, 3, 4]


async def test_when_all_are_closed_no_query_is_served(desk: Desk) -> None:
    desk.open("A", "B")
    desk.streams.close_all()
    desk.publish("A", "B")
    assert (desk.messages, len(desk.streams)) == ([], 0)


async def test_one_query_too_many_of_a_link_is_refused_and_other_links_are_served(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OF_LINK", 2)

    def open(link: int, *texts: str) -> None:
        for text in texts:
            desk.streams.open(wire.topic(text), Query.of(text), link)

    open(1, "A", "B", "A")
    too_many = "2 queries of one peer are served already"
    assert [desk.streams.refusal(C, link) for link in (1, 2)] == [too_many, ""]
    assert desk.streams.refusal(wire.progress_topic(A), 1) == ""
    with pytest.raises(WireError, match=too_many):
        open(1, "C")
    open(2, "C", "A")
    open(1, "C")
    desk.streams.close(A)
    open(1, "D")
    assert len(desk.streams) == 3


async def test_what_a_link_that_is_gone_has_opened_counts_for_whom_it_is_told(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OF_LINK", 1)
    desk.streams.open(A, Query.of("A"), 1)
    desk.streams.recharge(1, 2)
    desk.streams.open(B, Query.of("B"), 1)
    with pytest.raises(WireError):
        desk.streams.open(C, Query.of("C"), 2)
    desk.streams.recharge(2, None)
    desk.streams.recharge(2, None)
    desk.streams.open(C, Query.of("C"), 2)
    for name in (A, B, C):
        desk.streams.close(name)
    assert len(desk.streams) == 0


async def test_a_query_is_owed_when_something_was_published_that_it_matches(desk: Desk) -> None:
    asked = ["A", "B", "A/x", "*", "no query at all"]
    assert not any(map(desk.streams.is_owed, asked))
    desk.publish("A")
    assert list(map(desk.streams.is_owed, asked)) == [True, False, False, True, False]


async def test_a_query_is_owed_what_history_holds_no_more_or_has_not_been_looked_through(
    desk: Desk,
) -> None:
    desk.publisher = Publisher("desk", Limits(history_events=1))
    desk.streams = Fanout(desk.publisher, desk.messages.append, driver())
    desk.publish("A", "A", "B")
    assert list(map(desk.streams.is_owed, ["A/x", "B/x", "C"])) == [True, False, False]


# Ticks.


async def test_what_leaves_at_the_end_of_a_tick_is_caused_by_no_event(desk: Desk) -> None:
    causes: list[Delivery | None] = []
    desk.streams = Fanout(desk.publisher, lambda _: causes.append(current()), driver())
    desk.open("A")
    consumer: Any = None
    delivery = Delivery(consumer, Event("B", 1))
    enter(delivery)  # in the context of this test alone
    desk.publish("A", "A")
    await turn()
    assert causes == [delivery, None]


# Pages.


async def test_a_page_is_what_history_has_of_the_query(desk: Desk) -> None:
    desk.publish("A", "B", "A")
    page = desk.streams.page(A, Query.of("A"), Want(1), 10)
    assert (page.after, page.to, page.newest, len(page.rows)) == (1, 3, 3, 1)


async def test_before_a_page_what_waits_of_the_same_query_is_sent(desk: Desk) -> None:
    desk.open("A", "B")
    desk.publish("A", "B", "A", "B")
    assert desk.streams.page(A, Query.of("A"), Want(0), 10).newest == 4
    assert desk.sent[2:] == [(A, 1, [3])]


async def test_a_page_holds_no_more_than_was_asked_for_nor_than_1024_events(desk: Desk) -> None:
    desk.publish(*["A"] * (PAGE_EVENTS + 10))
    for limit, length in ((3, 3), (1_000_000, PAGE_EVENTS)):
        assert len(desk.streams.page(A, Query.of("A"), Want(0), limit).rows) == length


async def test_a_page_names_no_number_that_heartbeats_do_not(desk: Desk) -> None:
    """System events have numbers too, and stay with their bus."""
    desk.publish("A")
    desk.publisher.publish(Event("aiobus.error", None), is_own=True)
    for want in (Want(0), Want(1), Want(0, "last"), Want(0, 1e12)):
        page = desk.streams.page(A, Query.of("A"), want, 10)
        assert (page.after <= 1, page.to, page.newest) == (True, 1, 1)


# Beacons.


async def beacons_sent(desk: Desk) -> int:
    """How many beacons leave until all have."""
    before = len(desk.messages)
    desk.streams.beacons()
    while desk.streams._beacons is not None:
        await turn()
    return len(desk.messages) - before


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One slice after the other, without the pauses."""
    monkeypatch.setattr(streams, "BEACON_SECONDS", 0.0)


@pytest.mark.usefixtures("at_once")
async def test_every_stream_has_its_beacon_in_the_end(desk: Desk) -> None:
    desk.open(*(f"T{number}" for number in range(2 * SLICE + 1)))
    assert await beacons_sent(desk) == 2 * SLICE + 1
    assert len({topic for topic, _, _ in desk.sent}) == 2 * SLICE + 1


@pytest.mark.usefixtures("at_once")
async def test_beacons_that_are_under_way_are_not_begun_again(desk: Desk) -> None:
    desk.open(*(f"T{number}" for number in range(SLICE + 1)))
    desk.streams.beacons()
    assert await beacons_sent(desk) == 1


@pytest.mark.usefixtures("at_once")
async def test_who_is_gone_when_its_turn_comes_gets_no_beacon(desk: Desk) -> None:
    desk.open(*(f"T{number}" for number in range(SLICE)), "A", "B")
    desk.streams.beacons()
    desk.streams.close(A)
    await beacons_sent(desk)
    assert [topic for topic, _, _ in desk.sent[SLICE:]] == [B]


# Those that get progress messages alone.


@pytest.fixture
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With each turn of the loop."""
    monkeypatch.setattr(streams, "PROGRESS_SECONDS", 0.0)


async def told(desk: Desk, count: int) -> list[tuple[bytes, int]]:
    """The progress messages that were sent, once it is so much."""
    while len(desk.told) < count:
        await turn()
    return desk.told


async def test_a_bus_that_asks_for_progress_is_told_at_once_where_the_source_is(
    desk: Desk,
) -> None:
    """What was published while ZeroMQ acted on it already, or where a new stream begins."""
    desk.open("A")
    desk.publish("A")
    desk.open_progress("A", "B")
    assert desk.told == [(A, 1), (B, 1)]
    desk.streams.close_all()


@pytest.mark.usefixtures("told_at_once")
async def test_progress_tells_what_was_published_and_nothing_else(
    desk: Desk,
) -> None:
    desk.open("A", "B")
    desk.open_progress("A", "C")
    begin = [(A, 0), (C, 0)]
    desk.publish("A", "A", "B")
    assert await told(desk, 3) == [*begin, (A, 2)]
    desk.publish("B", "C")
    assert await told(desk, 4) == [*begin, (A, 2), (C, 5)]
    desk.publish("A")
    assert await told(desk, 5) == [*begin, (A, 2), (C, 5), (A, 6)]
    desk.streams.close_all()


@pytest.mark.usefixtures("told_at_once")
async def test_a_progress_message_follows_what_it_speaks_of(desk: Desk) -> None:
    desk.open("A")
    desk.open_progress("A")
    desk.publish("A", "A")
    await told(desk, 2)
    assert desk.sent[1:] == [(A, 0, [1]), (A, 1, [2]), (A, 2, [])]
    desk.streams.close_all()


async def test_of_a_query_whose_progress_alone_is_asked_for_no_frame_is_made(desk: Desk) -> None:
    desk.open("A")
    desk.open_progress("A")
    desk.streams.close(A)
    desk.messages.clear()
    desk.publish("A", "A")
    await turn()
    assert desk.messages == []
    desk.open("A")
    desk.publish("A")
    desk.streams.flush()
    assert desk.sent == [(A, 2, [3])]
    desk.streams.close_all()


@pytest.mark.usefixtures("told_at_once")
async def test_a_progress_message_that_could_not_be_sent_holds_up_nothing_that_comes_later(
    desk: Desk,
) -> None:
    way = Way(desk)
    desk.open_progress("A", "B")
    way.is_broken = True
    desk.publish("A")
    while not way.failures:
        await turn()
    way.is_broken = False
    assert [type(each) for each in way.failures] == [OSError]
    desk.publish("A", "B")
    assert sorted((await told(desk, 4))[2:]) == [(A, 2), (B, 3)]
    desk.streams.close(A)
    assert len(desk.streams) == 2
    desk.streams.close_all()


async def test_each_second_they_have_a_beacon_in_any_case(desk: Desk) -> None:
    desk.open("A", "B")
    desk.publish("A")
    desk.open_progress("A")
    desk.streams.beacons()
    assert desk.told == [(A, 1), (A, 1)]
    desk.streams.close_all()


@pytest.mark.usefixtures("told_at_once")
@pytest.mark.parametrize("count", [SLICE + 1, LOOKS + 1])
async def test_of_very_many_each_is_told_in_its_turn(desk: Desk, count: int) -> None:
    names = [f"T{number}" for number in range(count)]
    topics = [wire.topic(name) for name in names]
    desk.open_progress(*names)
    desk.messages.clear()
    desk.publish(*names)
    assert [topic for topic, _ in await told(desk, 1)] == topics[:SLICE]
    desk.publish(names[0])
    assert [topic for topic, _ in await told(desk, count + 1)] == [*topics, topics[0]]
    desk.streams.close_all()


@pytest.mark.parametrize("closed_first", [A, wire.progress_topic(A)])
async def test_a_query_is_served_until_neither_its_events_nor_its_progress_are_asked_for(
    desk: Desk, closed_first: bytes
) -> None:
    desk.open("A")
    desk.open_progress("A")
    desk.publish("A")
    desk.streams.close(closed_first)
    assert (len(desk.streams), desk.streams.owed()) == (1, {A: 1})
    for name in (A, wire.progress_topic(A)):
        desk.streams.close(name)
    assert len(desk.streams) == 0


@pytest.mark.usefixtures("told_at_once")
async def test_a_bus_that_has_withdrawn_the_progress_is_told_no_more(desk: Desk) -> None:
    desk.open("A")
    desk.open_progress("A", "B")
    desk.streams.close(wire.progress_topic(A))
    desk.messages.clear()
    desk.publish("A", "B")
    assert await told(desk, 1) == [(B, 2)]
    desk.open_progress("A")
    desk.publish("A")
    assert await told(desk, 3) == [(B, 2), (A, 1), (A, 3)]
    desk.streams.close_all()


# What is owed.


async def test_what_was_sent_and_not_confirmed_is_owed(desk: Desk) -> None:
    desk.open("A", "B")
    assert desk.streams.owed() == {}
    desk.publish("A")
    assert desk.streams.owed() == {A: 1}


async def test_what_was_published_before_a_query_is_owed_to_whose_link_was_cut(desk: Desk) -> None:
    desk.publish("A")
    desk.open("A")
    assert desk.streams.owed() == {A: 1}


async def test_what_was_published_since_is_still_owed(desk: Desk) -> None:
    desk.open("A")
    desk.publish("A")
    owed = desk.streams.owed()
    desk.publish("A")
    desk.streams.confirm(owed)
    assert desk.streams.owed() == {A: 2}


async def test_a_late_confirmation_takes_nothing_back(desk: Desk) -> None:
    desk.open("A")
    desk.publish("A")
    early = desk.streams.owed()
    desk.publish("A")
    desk.streams.confirm(desk.streams.owed())
    desk.streams.confirm(early)
    assert desk.streams.owed() == {}


# Who listens on which link, and what each link is refused.


BOT = PeerId("bot", 50, "ipc:///bot")
FEED = PeerId("feed", 70, "ipc:///feed")
ONE, TWO = 11, 12
"""Links."""


def topics(count: int) -> list[bytes]:
    return [b"T/%d\0" % number for number in range(count)]


def refused_all(count: int) -> Askers:
    askers = Askers()
    for name in topics(count):
        askers.refuse(ONE, name, "full")
    return askers


def test_a_link_is_from_who_said_hello_on_it_and_from_no_other() -> None:
    askers = Askers()
    assert ONE not in askers
    assert askers.hello(ONE, BOT) == []
    assert ONE in askers
    assert [askers.is_from(ONE, BOT), askers.is_from(ONE, FEED), askers.is_from(TWO, BOT)] == [
        True,
        False,
        False,
    ]


def test_who_says_hello_on_a_second_link_is_known_on_both_until_the_last_is_gone() -> None:
    askers = Askers()
    askers.hello(ONE, BOT)
    assert askers.hello(TWO, BOT) == [ONE]
    assert askers.withdraw(BOT) == [ONE, TWO]
    assert (ONE in askers, TWO in askers) == (False, False)


def test_a_link_number_that_is_used_again_is_from_who_says_hello_last() -> None:
    askers = Askers()
    askers.hello(ONE, BOT)
    askers.hello(ONE, FEED)
    assert (askers.is_from(ONE, FEED), askers.withdraw(BOT)) == (True, [])


def test_links_beyond_the_bound_push_the_oldest_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINKS", 2)
    askers = Askers()
    for link in (1, 2, 3):
        askers.hello(link, BOT)
    assert [link in askers for link in (1, 2, 3)] == [False, True, True]


@pytest.mark.parametrize(
    "name", [b"", b"\0", b"T", b"T\0T\0", b"\xff\0", b"~bot@1 x\0", b"T" * 1_025 + b"\0"]
)
def test_what_is_no_topic_of_a_query_is_not_remembered(name: bytes) -> None:
    askers = Askers()
    askers.refuse(ONE, name, "no subscription")
    assert askers.refused(ONE) is None


def test_an_answer_names_a_bounded_number_and_says_that_there_are_more() -> None:
    refused = refused_all(MAX_NAMED).refused(ONE)
    assert refused is not None
    assert (refused[0], len(refused[1])) == (True, MAX_NAMED)
    refused = refused_all(MAX_NAMED + 1).refused(ONE)
    assert refused is not None
    assert (refused[0], len(refused[1])) == (False, MAX_NAMED)


def test_of_many_that_are_refused_each_is_tried_in_its_turn() -> None:
    askers = refused_all(2 * MAX_NAMED)
    assert [*askers.some(ONE), *askers.some(ONE)] == topics(2 * MAX_NAMED)


def test_beyond_the_bytes_that_are_remembered_no_answer_is_complete_until_the_link_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 2 * (module.OVERHEAD + 4))
    askers = Askers()
    askers.hello(ONE, BOT)
    for name in (b"T/a\0", b"T/a\0", b"T/b\0", b"T/c\0"):
        askers.refuse(ONE, name, "full")
    assert askers.refused(ONE) == (False, {"T/a": "full", "T/b": "full"})
    askers.serve(ONE, b"T/a\0")
    askers.close(b"T/b\0", ONE)
    assert askers.refused(ONE) == (False, {})
    askers.withdraw(BOT)
    assert askers.refused(ONE) is None
    askers.refuse(TWO, b"T/a\0", "full")
    assert askers.refused(TWO) == (True, {"T/a": "full"})


def test_a_link_without_a_hello_that_dies_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", module.OVERHEAD + 4)
    askers = Askers()
    askers.refuse(ONE, b"T/a\0", "full")
    askers.refuse(ONE, b"T/b\0", "full")
    for name in (b"T/a\0", b"T/b\0"):
        askers.close(name, None)
    assert askers.refused(ONE) is None


@pytest.mark.parametrize("has_said_hello", [True, False])
def test_a_refusal_that_is_not_remembered_outlasts_the_death_of_another_link(
    monkeypatch: pytest.MonkeyPatch, *, has_said_hello: bool
) -> None:
    """Its queries come before its hello, so the other may die between the two."""
    monkeypatch.setattr(module, "MAX_BYTES", module.OVERHEAD + 4)
    askers = Askers()
    askers.refuse(TWO, b"T/a\0", "full")
    if has_said_hello:
        askers.hello(ONE, BOT)
    askers.refuse(ONE, b"T/b\0", "full")
    for name in (b"T/a\0", b"T/c\0"):
        askers.close(name, None)
    askers.hello(ONE, BOT)
    assert askers.refused(ONE) == (False, {})
    assert list(askers.lacking()) == [("bot", [], False)]


def test_a_link_that_said_hello_and_is_refused_more_than_is_remembered_keeps_that_until_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last link that asks for a topic dies; this one asked for it as well, and lives."""
    monkeypatch.setattr(module, "MAX_BYTES", module.OVERHEAD + 4)
    askers = Askers()
    askers.hello(ONE, BOT)
    for name in (b"T/a\0", b"T/b\0"):
        askers.refuse(ONE, name, "full")
    askers.close(b"T/a\0", ONE)
    askers.close(b"T/a\0", None)
    assert askers.refused(ONE) == (False, {})


JUNK = b"\xff\0"


def test_a_link_is_abusive_beyond_a_number_of_topics_that_no_member_asks_for() -> None:
    askers = Askers()
    for _ in range(MAX_JUNK):
        askers.refuse(ONE, JUNK, "no subscription")
        askers.refuse(TWO, JUNK, "no subscription")
    assert not askers.is_abusive(ONE)
    askers.refuse(ONE, JUNK, "no subscription")
    assert (askers.is_abusive(ONE), askers.is_abusive(TWO)) == (True, False)


def test_a_link_is_abusive_beyond_a_number_of_queries_that_are_refused() -> None:
    askers = refused_all(MAX_VAIN)
    assert not askers.is_abusive(ONE)
    askers.refuse(ONE, b"T\0", "full")
    assert askers.is_abusive(ONE)


def test_a_link_on_which_more_and_more_say_hello_is_abusive() -> None:
    askers = Askers()
    for number in range(MAX_JUNK + 1):
        askers.hello(ONE, PeerId(f"x{number}", 1, f"ipc:///x{number}"))
        askers.hello(TWO, BOT)
    assert not askers.is_abusive(ONE)
    askers.hello(ONE, BOT)
    assert (askers.is_abusive(ONE), askers.is_abusive(TWO)) == (True, False)


@pytest.mark.parametrize("how", ["renew", "withdraw"])
def test_what_a_link_asked_for_in_vain_is_not_held_against_the_next_of_its_number(how: str) -> None:
    askers = refused_all(MAX_VAIN + 1)
    for _ in range(MAX_JUNK + 1):
        askers.refuse(ONE, JUNK, "no subscription")
    if how == "renew":
        askers.renew(ONE)
    else:
        askers.hello(ONE, BOT)
        askers.withdraw(BOT)
    assert not askers.is_abusive(ONE)


def test_who_is_refused_something_is_named_with_it() -> None:
    askers = refused_all(1)
    assert list(askers.lacking()) == []
    askers.hello(ONE, BOT)
    askers.hello(TWO, FEED)
    assert list(askers.lacking()) == [("bot", ["T/0"], True)]


def test_who_else_says_hello_from_an_endpoint_is_known_until_that_is_gone_too() -> None:
    askers, before = Askers(), PeerId("bot", 49, BOT.endpoint)
    askers.hello(ONE, BOT)
    askers.hello(TWO, before)
    askers.withdraw(before)
    assert askers.at(BOT.endpoint) == BOT
    assert askers.at(FEED.endpoint) is None
    askers.withdraw(BOT)
    assert askers.at(BOT.endpoint) is None
