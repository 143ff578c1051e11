"""Gaps, and a model of catching up: whatever happens, an event arrives once or its loss is said."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiobus import Event, Limits
from aiobus.codec import decode
from aiobus.delivery import Delivery
from aiobus.history import PAGE_LOOK, Page
from aiobus.inbox import Notice, Offer, make_inbox
from aiobus.pattern import Query
from aiobus.publisher import Publisher
from aiobus.sequence import Cursor, Gap


def page(after: int, to: int, newest: int, evicted: int = 0) -> Page:
    return Page(after=after, evicted=evicted, to=to, newest=newest, rows=[])


def test_a_new_cursor_is_live_at_the_beginning() -> None:
    cursor = Cursor()
    assert (cursor.last, cursor.behind) == (0, False)


def test_a_cursor_can_begin_anywhere_and_behind() -> None:
    cursor = Cursor(7, behind=True)
    assert (cursor.last, cursor.behind) == (7, True)


def test_falling_behind_keeps_the_place_before_the_first_event_without_room() -> None:
    cursor = Cursor()
    cursor.fall_behind(5)
    assert (cursor.last, cursor.behind) == (4, True)


def test_a_page_that_is_not_the_last_leaves_it_behind_where_the_page_ended() -> None:
    cursor = Cursor(4, behind=True)
    assert cursor.advance(page(4, to=8, newest=9)) is None
    assert (cursor.last, cursor.behind) == (8, True)


def test_a_page_that_reaches_the_newest_makes_it_live() -> None:
    cursor = Cursor(4, behind=True)
    assert cursor.advance(page(4, to=9, newest=9)) is None
    assert (cursor.last, cursor.behind) == (9, False)


def test_what_was_forgotten_above_the_place_is_a_gap_of_exactly_that() -> None:
    gap = Cursor(4, behind=True).advance(page(4, to=9, newest=9, evicted=6))
    assert gap == Gap(after=4, upto=6, reason="history no longer holds it")


@pytest.mark.parametrize("evicted", [0, 3, 4])
def test_what_was_forgotten_up_to_the_place_had_been_handed_over(evicted: int) -> None:
    assert Cursor(4, behind=True).advance(page(4, to=9, newest=9, evicted=evicted)) is None


def test_the_same_loss_is_reported_once_however_many_pages_tell_of_it() -> None:
    cursor = Cursor(0, behind=True)
    first = cursor.advance(page(0, to=3, newest=9, evicted=6))
    assert (first and first.after, first and first.upto) == (0, 6)
    assert cursor.advance(page(3, to=5, newest=9, evicted=6)) is None


def test_a_loss_that_grows_between_two_pages_is_continued_where_it_ended() -> None:
    cursor = Cursor(0, behind=True)
    cursor.advance(page(0, to=3, newest=9, evicted=6))
    gap = cursor.advance(page(3, to=5, newest=9, evicted=8))
    assert (gap and gap.after, gap and gap.upto) == (6, 8)


# The model. A subscriber does what `Receiver` does, without a loop, and writes down what it was
# handed and told, in the order in which it was.


class Subscriber:
    """An outlet with a bounded inbox and a cursor. It pulls pages for which at most `look` events
    are looked at.
    """

    is_local = True
    gate = None

    def __init__(self, publisher: Publisher, query: Query, maxsize: int, look: int) -> None:
        self.query = query
        self.running: set[Delivery] = set()
        self.cursor = Cursor()
        self.inbox = make_inbox("catch_up", maxsize)
        self.maxsize = maxsize
        self.look = look
        self.publisher = publisher
        self.log: list[int | Gap] = []

    def begin(self, since: float) -> None:
        """Start with what history holds from this time on."""
        begin, _ = self.publisher.history.since(self.query, since)
        self.cursor = Cursor(begin, behind=begin < self.publisher.history.newest)

    def deliver(self, seq: int, row: bytes, type: str, key: str) -> None:
        if not self.cursor.behind and self.inbox.offer(row, type, key) is Offer.REFUSED:
            self.cursor.fall_behind(seq)

    def pull(self) -> None:
        room = self.maxsize - len(self.inbox)
        if self.cursor.behind and room > 0:
            page = self.publisher.history.page(self.query, self.cursor.last, room, self.look)
            gap = self.cursor.advance(page)
            if gap is not None:
                self.inbox.notify(Notice(gap))
            for type, key, row in page.rows:
                assert self.inbox.admit(row, type, key) is Offer.TAKEN

    def take(self, max_bytes: int) -> None:
        for item in self.inbox.take(max_bytes):
            if isinstance(item, Notice):
                self.log.append(item.item)
            else:
                self.log.extend(event.seq for event in decode([item], "desk", 1))

    def catch_up(self) -> None:
        while self.cursor.behind or len(self.inbox):
            self.take(1000)
            self.pull()

    @property
    def seen(self) -> list[int]:
        return [entry for entry in self.log if isinstance(entry, int)]

    @property
    def gaps(self) -> list[Gap]:
        return [entry for entry in self.log if isinstance(entry, Gap)]


Step = tuple[Any, ...]


@dataclass
class Case:
    """Who subscribes to what, and what is published while they do."""

    limits: Limits
    query: Query
    maxsize: int
    steps: list[Step]
    look: int = PAGE_LOOK
    earlier: list[Step] | None = None
    """What is published before; the subscriber then begins with what history has of it."""


@dataclass
class Run:
    """What came of a case."""

    subscriber: Subscriber
    published: list[int]
    """The seqs its query matches, from where it began."""


def run(case: Case) -> Run:
    publisher = Publisher("desk", case.limits)
    subscriber = Subscriber(publisher, case.query, case.maxsize, case.look)
    published = [publish(publisher, *step[1:]) for step in case.earlier or ()]
    if case.earlier is not None:
        subscriber.begin(0.0)
    begin = subscriber.cursor.last
    publisher.attach(subscriber)
    for step in case.steps:
        match step:
            case "publish", type, key, length:
                published.append(publish(publisher, type, key, length))
            case "pull", *_:
                subscriber.pull()
            case "take", max_bytes:
                subscriber.take(max_bytes)
    subscriber.catch_up()
    wanted = [event for event in published if case.query.matches(event.type, event.key)]
    return Run(subscriber, [event.seq for event in wanted if event.seq > begin])


def publish(publisher: Publisher, type: str, key: str, length: int) -> Event[str]:
    event = Event(type, "." * length, key=key)
    publisher.commit(event, "", publisher.route(type, key))
    return event


def is_in_a_gap(seq: int, gaps: list[Gap]) -> bool:
    return any(gap.after < seq <= gap.upto for gap in gaps)


publishing = st.tuples(
    st.just("publish"), st.sampled_from("ABC"), st.sampled_from("xy"), st.integers(0, 60)
)
steps = st.lists(
    publishing
    | publishing
    | st.tuples(st.just("pull"))
    | st.tuples(st.just("take"), st.integers(0, 300)),
    max_size=60,
)
tiny_limits = st.builds(
    Limits,
    history_events=st.integers(1, 4),
    history_bytes=st.integers(80, 600),
    history_total_bytes=st.integers(80, 900),
)
queries = st.builds(
    Query.of,
    st.sampled_from(["A", "*", ("A", "B")]),
    st.none() | st.sampled_from(["x", "y"]),
)


def cases(
    limits: st.SearchStrategy[Limits] = tiny_limits,
    queries: st.SearchStrategy[Query] = queries,
) -> st.SearchStrategy[Case]:
    earlier = st.none() | st.lists(publishing, max_size=20)
    looks = st.integers(1, 6) | st.just(PAGE_LOOK)
    return st.builds(Case, limits, queries, st.integers(1, 4), steps, looks, earlier)


FLOOD: list[Step] = [("publish", type, "x", 0) for type in "AB" for _ in range(9)]
FLOOD_OF_ONE = Case(Limits(history_events=2), Query.of("A"), 1, FLOOD)
FLOOD_OF_ALL = Case(Limits(history_events=2), Query.of("*"), 1, FLOOD)
REPLAY = Case(Limits(history_events=2), Query.of("*"), 1, FLOOD, 1, FLOOD)


@given(cases())
@settings(max_examples=100, deadline=None)
@example(FLOOD_OF_ONE)
@example(FLOOD_OF_ALL)
@example(REPLAY)
def test_every_event_is_delivered_or_within_a_reported_gap(case: Case) -> None:
    it = run(case)
    missing = set(it.published) - set(it.subscriber.seen)
    assert [seq for seq in missing if not is_in_a_gap(seq, it.subscriber.gaps)] == []


@given(cases())
@settings(max_examples=70, deadline=None)
@example(REPLAY)
def test_events_are_delivered_once_in_order_and_only_those_that_match(case: Case) -> None:
    it = run(case)
    assert it.subscriber.seen == sorted(set(it.subscriber.seen) & set(it.published))


@given(cases(queries=st.builds(Query.of, st.sampled_from("ABC"))))
@settings(max_examples=70, deadline=None)
@example(FLOOD_OF_ONE)
def test_a_gap_of_one_type_covers_nothing_that_is_delivered(case: Case) -> None:
    subscriber = run(case).subscriber
    assert [seq for seq in subscriber.seen if is_in_a_gap(seq, subscriber.gaps)] == []


@given(cases())
@settings(max_examples=70, deadline=None)
@example(FLOOD_OF_ALL)
def test_a_gap_covers_nothing_that_was_delivered_before_it(case: Case) -> None:
    subscriber = run(case).subscriber
    earlier = [
        (seq, gap)
        for place, gap in enumerate(subscriber.log)
        if isinstance(gap, Gap)
        for seq in subscriber.log[:place]
        if isinstance(seq, int) and seq > gap.after
    ]
    assert earlier == []


@given(cases())
@settings(max_examples=70, deadline=None)
@example(FLOOD_OF_ALL)
def test_gaps_are_in_order_and_none_tells_of_what_another_has_told(case: Case) -> None:
    gaps = run(case).subscriber.gaps
    bounds = [bound for gap in gaps for bound in (gap.after, gap.upto)]
    assert bounds == sorted(bounds)
    assert all(gap.after < gap.upto for gap in gaps)


@given(cases(limits=st.just(Limits())))
@settings(max_examples=50, deadline=None)
@example(Case(Limits(), Query.of("*"), 1, FLOOD, 1, FLOOD))
def test_while_history_holds_everything_nothing_is_lost(case: Case) -> None:
    it = run(case)
    assert (it.subscriber.seen, it.subscriber.gaps) == (it.published, [])


@given(cases())
@settings(max_examples=50, deadline=None)
def test_nothing_is_reported_lost_unless_history_has_forgotten_it(case: Case) -> None:
    subscriber = run(case).subscriber
    forgotten = subscriber.publisher.history.evicted(case.query)
    assert max((gap.upto for gap in subscriber.gaps), default=0) <= forgotten


def test_who_begins_with_history_is_not_told_of_what_was_forgotten_before() -> None:
    replay = run(Case(Limits(history_events=2), Query.of("A"), 4, [], earlier=FLOOD))
    assert (replay.subscriber.seen, replay.subscriber.gaps) == ([8, 9], [])
