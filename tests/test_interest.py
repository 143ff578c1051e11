"""Which subscription is handed what, when a flush mark is reached, and what is forgotten when."""

from collections.abc import Collection, Mapping
from typing import Any

import pytest

from aiobus import wire
from aiobus.history import Page, Want
from aiobus.mesh import interest as module
from aiobus.mesh.interest import (
    AT_ONCE,
    FAR,
    LEFT,
    MAX_CURSORS,
    MAX_LEFT,
    MEMORY,
    NEAR,
    Interest,
    Pages,
    Topic,
)
from aiobus.query import Query
from aiobus.rows import Rows, Source
from aiobus.sequence import RETRY, Start
from aiobus.wire import MORE_REFUSED, Answer, Frame, Mark, Options, PacedMark, PeerId, Refusal

ME = PeerId("me", 7, "ipc:///me")
DESK = PeerId("desk", 36, "ipc:///desk")
SOURCE = ("desk", 36)
TRADE, FILL = wire.topic("TRADE"), wire.topic("FILL")


class Sub:
    """An `Inlet` that writes down what it is told."""

    def __init__(self, types: Any = "TRADE") -> None:
        self.query = Query.of(types)
        self.log: list[tuple[Any, ...]] = []
        self.last = self.heard = self.newest = 0
        self.place: int | None = None

    def meet(self, source: Source, seq: int, started: float) -> None:
        self.log.append(("meet", source, seq, started))

    is_busy = False
    """It leaves all frames with events."""
    leaves_all = False

    def take(self, frame: Rows, started: float | None, heard: int) -> bool:
        self.log.append(("take", frame, started))
        self.heard = heard
        return not (self.is_busy and (frame.count or self.leaves_all))

    def leave_unmet(self, frame: Rows) -> None:
        self.log.append(("unmet", frame))

    def take_page(self, source: Source, page: Page, rows: Rows) -> None:
        self.log.append(("turn", source, page, rows))

    missing = 0
    beginning: Collection[Source] = ()
    behind: Collection[Source] = ()

    def extend_deadlines(self) -> None:
        self.log.append(("excuse",))

    def has(self, source: Source, seq: int, started: float | None, upto: int = 0) -> bool:
        self.log.append(("has", source, seq))
        if self.last >= seq:
            self.last = max(self.last, upto)
            return True
        return False

    def leave(self, source: Source, newest: int, *, is_dead: bool = False) -> None:
        self.log.append(("leave", source))
        self.newest = newest

    def go_back(self, source: Source, seq: int) -> None:
        self.log.append(("go_back", source, seq))

    def note_said(self, source: Source, seq: int) -> None:
        self.log.append(("note_said", source, seq))

    def enter(self, source: Source, known: Start, lineage: Mapping[int, int]) -> None:
        self.log.append(("enter", known, lineage))

    def forget(self, source: Source, *, is_back_later: bool = False) -> int | None:
        self.log.append(("forget", source))
        return self.place

    def resume(self, source: Source, low: int, high: int) -> None:
        self.log.append(("resume", source, low, high))

    def refuse(self, name: str, reason: str) -> None:
        self.log.append(("refuse", name, reason))

    def tick(self, alive: Collection[Source]) -> None:
        self.log.append(("tick",))

    def confirm(self, name: str) -> None:
        self.log.append(("confirm", name))

    def said(self, *kinds: str) -> list[tuple[Any, ...]]:
        return [entry for entry in self.log if entry[0] in kinds]


def interest_of(*subs: Sub) -> Interest:
    interest = Interest()
    for sub in subs:
        interest.add(sub)
    return interest


def frame(topic: bytes = TRADE) -> Frame:
    found = wire.parse_from_publisher(wire.frame(topic, "desk", 36, 4, 4, []), ME)
    assert isinstance(found, Frame)
    return found


def answer(seq: int = 9) -> Answer:
    return Answer(1, DESK, 2.0, seq, is_open=True)


def mark(*streams: tuple[str, int], number: int = 1, who: PeerId = DESK) -> Mark:
    return Mark(number, who, streams)


PAGE = Page(4, 0, 9, 9, [])


# Topics and numbers.


def test_the_first_who_asks_for_a_query_and_the_last_who_leaves_it_say_its_topic() -> None:
    interest, first, second = Interest(), Sub(), Sub()
    assert [interest.add(first), interest.add(second)] == [TRADE, None]
    assert [interest.remove(each) for each in (first, second, second)] == [None, TRADE, None]
    assert interest.add(first) == TRADE


def test_those_who_are_there_can_be_walked() -> None:
    first, second, third = subs = Sub(), Sub(), Sub("FILL")
    interest = interest_of(*subs)
    interest.remove(second)
    assert list(interest) == [first, third]


def test_each_is_found_by_its_number_as_long_as_it_is_there() -> None:
    first, second = Sub(), Sub()
    interest = interest_of(first, second)
    numbers = interest.number(first), interest.number(second)
    assert [interest.numbered(number or 0) for number in numbers] == [first, second]
    interest.remove(first)
    assert [interest.numbered(number or 0) for number in numbers] == [None, second]
    assert interest.number(first) is None


# Progress alone, and live again.

FRAME = Frame(TRADE, b'TRADE\0[2,"bot",50,7\n,[8,1.0,"TRADE","",1]]')
BOT = ("bot", 50)


def subs(*are_busy: bool) -> tuple[Interest, list[Sub]]:
    made = [Sub() for _ in are_busy]
    for sub, is_busy in zip(made, are_busy, strict=True):
        sub.is_busy = is_busy
    return interest_of(*made), made


def far(count: int, missing: int = FAR + 1) -> tuple[Interest, list[Sub]]:
    interest, made = subs(*[True] * count)
    for sub in made:
        sub.missing = missing
    return interest, made


def turned(interest: Interest) -> list[tuple[bytes, bool]]:
    found = [(topic.subscribed, topic.is_progress_only) for topic in interest.switched]
    interest.switched.clear()
    return found


def lagging(count: int) -> tuple[Interest, list[Sub]]:
    interest, made = far(count)
    for _ in range(LEFT):
        interest.take(FRAME)
    assert turned(interest) == [(b"-TRADE\0", True)]
    return interest, made


def test_a_topic_of_which_a_frame_was_taken_meanwhile_does_not() -> None:
    interest, (one, _) = far(2)
    for _ in range(LEFT - 1):
        interest.take(FRAME)
    one.is_busy = False
    interest.take(FRAME)
    one.is_busy = True
    interest.take(FRAME)
    assert turned(interest) == []


def test_a_frame_without_events_that_is_left_does_not_count() -> None:
    interest, (one,) = far(1)
    one.leaves_all = True
    for _ in range(LEFT):
        interest.take(frame())
    assert turned(interest) == []


def test_a_frame_that_is_taken_makes_a_topic_live_again_if_little_is_missing() -> None:
    interest, (one,) = lagging(1)
    one.is_busy, one.missing = False, 0
    interest.take(FRAME)
    assert turned(interest) == [(TRADE, False)]


def test_a_page_that_leaves_little_missing_makes_it_live_again() -> None:
    interest, (one, other) = lagging(2)
    rows = FRAME
    interest.take_page(one, BOT, PAGE, rows)
    assert turned(interest) == []
    other.missing = 0
    interest.take_page(other, BOT, PAGE, rows)
    assert turned(interest) == [(TRADE, False)]
    assert other.said("turn") == [("turn", BOT, PAGE, rows)]


def test_a_subscription_that_comes_to_a_topic_in_progress_makes_it_live_again() -> None:
    interest, _ = lagging(1)
    assert interest.add(Sub()) is None
    assert turned(interest) == [(TRADE, False)]


def test_a_topic_in_progress_of_which_nothing_is_missing_is_live_again_in_a_second() -> None:
    interest, (one,) = lagging(1)
    interest.tick(1.0, (), ())
    assert turned(interest) == []
    one.missing = 0
    interest.tick(2.0, (), ())
    assert turned(interest) == [(TRADE, False)]


def test_the_last_that_leaves_a_topic_in_progress_withdraws_the_progress() -> None:
    interest, (one, other) = lagging(2)
    assert [interest.remove(one), interest.remove(other)] == [None, b"-TRADE\0"]


# Frames and answers.


def test_a_source_that_is_still_to_tell_where_its_past_begins_is_not_confirmed_yet() -> None:
    sub = Sub()
    interest = interest_of(sub)
    sub.beginning = [SOURCE]
    interest.note_start(SOURCE, 1.0)
    interest.meet([sub], Answer(1, DESK, 0.0, 5, is_open=True))
    assert sub.said("confirm") == []
    sub.beginning = ()
    interest.meet([sub], Answer(1, DESK, 0.0, 5, is_open=True))
    assert sub.said("confirm") == [("confirm", "desk")]


def test_a_source_that_is_looked_for_is_not_forgotten() -> None:
    """Or it would be heard from its beginning again, or from now on only, when it comes back."""
    sub = Sub()
    interest = interest_of(sub)
    interest.leave(SOURCE, 0.0)
    interest.tick(MEMORY, (), [SOURCE])
    interest.tick(MEMORY + 1.0, (), ())
    assert sub.said("forget") == []
    interest.tick(2 * MEMORY + 1.0, (), ())
    assert sub.said("forget") == [("forget", SOURCE)]


# Flush marks.


def test_a_mark_is_reached_when_each_subscription_has_all_that_it_names() -> None:
    first, second, other = Sub(), Sub(), Sub("FILL")
    interest, wanted = interest_of(first, second, other), mark(("TRADE", 9), ("FILL", 5))
    interest.mark(wanted)
    assert interest.reached() == []
    first.last = second.last = 9
    assert interest.reached() == []
    other.last = 5
    assert interest.reached() == [wanted]


def test_who_has_reached_the_mark_of_a_paced_publisher_has_what_it_sent_up_to_another_seq() -> None:
    first, second, other = Sub(), Sub(), Sub("FILL")
    interest = interest_of(first, second, other)
    wanted = PacedMark(1, DESK, (("TRADE", 9), ("FILL", 5)), 20, ())
    interest.mark(wanted)
    first.last = second.last = 9
    other.last = 4
    assert interest.reached() == []
    other.last = 5
    assert interest.reached() == [wanted]
    assert [first.last, second.last, other.last] == [20, 20, 20]


def test_a_mark_is_not_reached_while_one_of_two_who_asked_for_the_same_lacks_it() -> None:
    first, second = Sub(), Sub()
    interest, wanted = interest_of(first, second), mark(("TRADE", 9))
    interest.mark(wanted)
    first.last = 9
    assert interest.reached() == []
    first.last, second.last = 8, 9
    assert interest.reached() == []
    first.last = 9
    assert interest.reached() == [wanted]


def test_a_mark_is_reached_when_who_lacks_it_leaves() -> None:
    sub = Sub()
    interest, wanted = interest_of(sub), mark(("TRADE", 9))
    interest.mark(wanted)
    assert interest.reached() == []
    interest.remove(sub)
    assert interest.reached() == [wanted]


def test_of_one_source_the_last_8_marks_count_each_by_its_number() -> None:
    sub = Sub()
    interest = interest_of(sub)
    marks = [mark(("TRADE", 9), number=number) for number in range(1, 11)]
    for each in [*marks, marks[2]]:  # the third is repeated, so it came last
        interest.mark(each)
    assert interest.reached() == []
    sub.last = 9
    assert interest.reached() == [*marks[3:], marks[2]]
    assert interest.reached() == []


def test_each_source_has_a_mark_of_its_own() -> None:
    sub = Sub()
    interest = interest_of(sub)
    feed = mark(("TRADE", 3), who=PeerId("feed", 1, "ipc:///feed"))
    interest.mark(mark(("TRADE", 9)))
    interest.mark(feed)
    sub.last = 3
    assert interest.reached() == [feed]
    assert list(interest.marks) == [SOURCE]


def test_the_mark_of_a_source_that_has_left_is_forgotten() -> None:
    sub = Sub()
    interest = interest_of(sub)
    interest.mark(mark(("TRADE", 9)))
    interest.leave(SOURCE, 0.0)
    sub.last = 9
    assert (interest.marks, interest.reached()) == ({}, [])


def test_each_subscription_is_told_that_a_source_has_left() -> None:
    subs = [Sub(), Sub("FILL")]
    interest_of(*subs).leave(SOURCE, 0.0)
    assert [sub.log for sub in subs] == [[("confirm", "desk"), ("leave", SOURCE)]] * 2


# Leaving and being forgotten.


def test_what_came_late_of_one_that_has_left_and_may_not_come_back_is_lost_at_the_next_tick() -> (
    None
):
    sub = Sub()
    interest = interest_of(sub)
    interest.leave(SOURCE, 0.0, 7)
    sub.behind = [SOURCE, ("other", 1)]
    sub.log.clear()
    interest.tick(1.0, (), [SOURCE])
    assert sub.said("leave", "confirm") == []
    interest.tick(2.0, (), ())
    assert sub.said("leave", "confirm") == [("leave", SOURCE)], "another of its name may be there"
    assert sub.newest == 7


def test_each_subscription_is_told_that_a_second_has_passed() -> None:
    subs = [Sub(), Sub("FILL")]
    interest_of(*subs).tick(0.0, (), ())
    assert [sub.log for sub in subs] == [[("tick",)]] * 2


def test_a_source_is_forgotten_when_it_has_been_away_for_an_hour() -> None:
    sub = Sub()
    interest = interest_of(sub)
    interest.note_start(SOURCE, 50.0)
    interest.leave(SOURCE, 100.0)
    interest.tick(100.0 + MEMORY, (), ())
    assert (sub.said("forget"), interest.started) == ([], {SOURCE: 50.0})
    interest.tick(100.5 + MEMORY, (), ())
    assert (sub.said("forget"), interest.started) == ([("forget", SOURCE)], {})
    interest.tick(200.0 + MEMORY, (), ())
    assert len(sub.said("forget")) == 1


def test_sources_are_forgotten_in_the_order_in_which_they_left() -> None:
    sub, other = Sub(), ("feed", 1)
    interest = interest_of(sub)
    interest.leave(SOURCE, 100.0)
    interest.leave(other, 200.0)
    interest.tick(101.0 + MEMORY, (), ())
    assert sub.said("forget") == [("forget", SOURCE)]
    interest.tick(201.0 + MEMORY, (), ())
    assert sub.said("forget") == [("forget", SOURCE), ("forget", other)]


def come_back(interest: Interest, *subs: Sub) -> None:
    """The source was only cut off: it answers again, as it does when its link is there again."""
    interest.note_start(SOURCE, 50.0)
    interest.meet(subs, answer())


def test_a_source_that_left_and_came_back_is_not_forgotten() -> None:
    sub = Sub()
    interest = interest_of(sub)
    interest.note_start(SOURCE, 50.0)
    interest.leave(SOURCE, 100.0)
    come_back(interest, sub)
    interest.tick(101.0 + MEMORY, (), ())
    assert (sub.said("forget"), interest.started) == ([], {SOURCE: 50.0})


# Many sources that come and go.


def many(count: int) -> list[Source]:
    return [("tool", number) for number in range(count)]


def left(interest: Interest, *sources: Source, now: float = 1.0) -> None:
    for source in sources:
        interest.note_start(source, 0.0)
        interest.leave(source, now)


def test_of_sources_that_left_those_beyond_a_bound_are_forgotten_the_first_of_them_first() -> None:
    sub = Sub()
    interest = interest_of(sub)
    left(interest, *many(MAX_LEFT + 3))
    interest.tick(2.0, (), ())
    assert sub.said("forget") == [("forget", source) for source in many(3)]
    assert len(interest.started) == MAX_LEFT


def test_the_more_subscriptions_there_are_the_fewer_sources_that_left_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_CURSORS", 100)
    subs = [Sub(f"T{number}") for number in range(20)]
    interest = interest_of(*subs)
    left(interest, *many(50))
    interest.tick(2.0, (), ())
    assert {len(sub.said("forget")) for sub in subs} == {45}
    assert MAX_CURSORS // 20 > MAX_LEFT


def test_one_that_was_forgotten_for_others_and_comes_back_goes_on_where_the_last_stood(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_LEFT", 0)
    one, other = subs = Sub(), Sub("FILL")
    one.place, other.place = 7, 4
    interest = interest_of(*subs)
    left(interest, SOURCE)
    interest.tick(2.0, (), ())
    later = Sub()
    interest.add(later)
    for _ in range(2):
        come_back(interest, *subs, later)
    resumed = [("resume", SOURCE, 4, 7)]
    assert [sub.said("resume") for sub in (one, other, later)] == [resumed, resumed, []]


def test_where_one_of_them_had_no_place_nothing_is_taken_for_handed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_LEFT", 0)
    one, other = subs = Sub(), Sub("FILL")
    one.place = 7
    interest = interest_of(*subs)
    left(interest, SOURCE)
    interest.tick(2.0, (), ())
    come_back(interest, *subs)
    assert other.said("resume") == [("resume", SOURCE, 0, 7)]


def test_what_is_kept_of_forgotten_sources_is_bounded_too_and_lasts_for_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_LEFT", 0)
    monkeypatch.setattr(module, "MAX_PAST", 2)
    sub = Sub()
    sub.place = 5
    interest = interest_of(sub)
    sources = many(4)
    left(interest, *sources[:3])
    left(interest, sources[3], now=100.0)
    interest.tick(101.0, (), ())
    interest.note_start(sources[1], 0.0)
    assert sub.said("resume") == []
    interest.tick(2.0 + MEMORY, (), ())
    for source in sources:
        interest.note_start(source, 0.0)
    assert sub.said("resume") == [("resume", sources[3], 5, 5)]


# Refusals.


def refusal(*queries: str, is_all: bool = True) -> Refusal:
    return Refusal(1, DESK, 2.0, 9, True, is_all, dict.fromkeys(queries, "full"))


def test_a_refused_subscription_meets_no_source_and_hears_the_reason_once() -> None:
    refused, served = subs = Sub(), Sub("FILL")
    interest = interest_of(*subs)
    interest.note_start(SOURCE, 1.0)
    for _ in range(2):
        interest.meet(subs, refusal("TRADE"))
    assert refused.log == [("refuse", "desk", "full")]
    assert served.said("meet", "confirm")[:2] == [
        ("meet", SOURCE, 9, 1.0),
        ("confirm", "desk"),
    ]
    assert (interest.refusing(refused), interest.refusing(served)) == ({"desk"}, set())


def test_where_not_all_refusals_are_named_each_query_is_refused() -> None:
    sub = Sub()
    interest = interest_of(sub)
    interest.meet([sub], refusal(is_all=False))
    assert sub.log == [("refuse", "desk", MORE_REFUSED)]


def test_who_was_refused_meets_its_source_once_it_is_served() -> None:
    sub = Sub()
    interest = interest_of(sub)
    interest.note_start(SOURCE, 1.0)
    interest.meet([sub], refusal("TRADE"))
    interest.meet([sub], answer())
    assert sub.said("meet", "confirm") == [("meet", SOURCE, 9, 1.0), ("confirm", "desk")]
    assert interest.refusing(sub) == set()


def test_a_source_that_left_and_a_subscription_that_ended_are_refused_no_more() -> None:
    one, other = subs = Sub(), Sub("FILL")
    interest = interest_of(*subs)
    interest.meet(subs, refusal("TRADE", "FILL"))
    interest.remove(one)
    assert [list(each) for each in interest.refused.values()] == [[other]]
    interest.leave(SOURCE, 1.0)
    assert interest.refused == {}


# How far a source was heard of.


def test_who_leaves_is_kept_with_how_far_it_was_heard_of() -> None:
    interest, (sub,) = subs(True)
    interest.leave(BOT, 0.0, 99)
    assert (sub.newest, interest.ended) == (99, {BOT: 99})


def test_each_subscription_is_told_what_a_source_says_that_was_asked() -> None:
    one, other = Sub(), Sub("FILL")
    interest_of(one, other).note_said(BOT, 9)
    assert one.log == other.log == [("note_said", BOT, 9)]


def test_the_last_mark_is_a_beacon_on_each_stream_that_is_asked_for() -> None:
    first, second = Sub(), Sub("FILL")
    interest = interest_of(first, second)
    interest.end(mark(("TRADE", 7), ("QUOTE", 9), ("FILL", 0), number=0), 12)
    for sub, prev in ((first, 7), (second, 0)):
        ((_, batch, _),) = sub.said("take")
        assert (batch.prev, batch.newest, batch.count, sub.heard) == (prev, prev, 0, 12)
    assert interest.reached() == []


def test_no_mark_of_a_source_in_doubt_is_reached() -> None:
    sub = Sub()
    interest = interest_of(sub)
    sub.last = 9
    interest.mark(mark(("TRADE", 9)))
    assert interest.reached([SOURCE]) == []
    assert len(interest.reached()) == 1


def test_what_a_source_takes_back_is_not_waited_for_any_more() -> None:
    interest, (sub,) = subs(True)
    interest.mark(mark(("TRADE", 9)))
    interest.ended[BOT] = 9
    interest.go_back(BOT, 3)
    interest.go_back(SOURCE, 3)
    assert interest.ended == {}
    assert interest.marks == {}
    assert sub.said("go_back") == [("go_back", BOT, 3), ("go_back", SOURCE, 3)]


# When a topic is switched to progress messages alone, and when back.


class Behind:
    """The only thing of an `Inlet` that counts here."""

    query = Query.of("TRADE")

    def __init__(self, missing: int) -> None:
        self.missing = missing


def topic_of(*missing: int) -> Topic:
    topic = Topic(b"TRADE\0")
    topic.catchups = {Behind(each): None for each in missing}  # type: ignore[misc]
    return topic


def frames_left(topic: Topic, frames: int) -> list[bool]:
    return [topic.note_left() for _ in range(frames)]


def test_a_topic_is_live_at_first() -> None:
    topic = topic_of(FAR + 1)
    assert (topic.is_progress_only, topic.subscribed, topic.other) == (
        False,
        b"TRADE\0",
        b"-TRADE\0",
    )


def test_it_is_progress_only_from_the_last_of_so_many_frames_that_all_leave() -> None:
    topic = topic_of(FAR + 1, FAR + 2)
    assert frames_left(topic, LEFT) == [False] * (LEFT - 1) + [True]
    assert (topic.is_progress_only, topic.subscribed, topic.other) == (
        True,
        b"-TRADE\0",
        b"TRADE\0",
    )


def test_it_stays_live_while_one_of_its_subscriptions_does_not_lag_far() -> None:
    topic = topic_of(FAR + 1, FAR)
    assert not any(frames_left(topic, 3 * LEFT))


def test_frames_that_were_under_way_when_it_was_switched_do_not_switch_it_again() -> None:
    topic = topic_of(FAR + 1)
    frames_left(topic, LEFT)
    assert not any(frames_left(topic, 2 * LEFT))
    assert topic.is_progress_only


def test_once_it_was_live_again_the_count_begins_again() -> None:
    topic = topic_of(FAR + 1)
    (inlet,) = topic.catchups
    frames_left(topic, LEFT)
    inlet.missing = 0  # type: ignore[misc]
    assert topic.note_moved()
    inlet.missing = FAR + 1  # type: ignore[misc]
    assert frames_left(topic, LEFT) == [False] * (LEFT - 1) + [True]


@pytest.mark.parametrize(
    ("missing", "is_live"), [((NEAR + 1, NEAR + 1), False), ((NEAR + 1, NEAR), True), ((0,), True)]
)
def test_it_is_live_again_when_one_misses_no_more_than_a_page(
    missing: tuple[int, ...], is_live: bool
) -> None:
    topic = topic_of(*missing)
    topic.is_progress_only = True
    assert topic.note_moved() == is_live
    assert topic.is_progress_only != is_live


def test_what_moves_while_it_is_live_turns_nothing() -> None:
    assert not topic_of(0).note_moved()


def test_what_it_misses_between_the_two_bounds_switches_it_neither_way() -> None:
    """Else it would switch to and fro with each page."""
    topic = topic_of(NEAR + 1)
    assert not any(frames_left(topic, 2 * LEFT))
    topic.is_progress_only = True
    assert not topic.note_moved()


# Requests for pages: few at once to each source.


A, B = ("a", 1), ("b", 1)


class Requests:
    """`Pages`, and what it has sent; interest are plain names."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, tuple[str, int], Want, int]] = []
        self.pages = Pages(lambda *request: self.sent.append(request))  # type: ignore[arg-type]

    def ask(self, *names: str, source: tuple[str, int] = A, after: int = 0) -> None:
        for name in names:
            self.pages.ask(name, source, Want(after), 10, 0.0)  # type: ignore[arg-type]

    def answered(self, name: str) -> None:
        self.pages.answered(name, A, 0.0)  # type: ignore[arg-type]

    def names(self) -> list[str]:
        names = [name for name, *_ in self.sent]
        self.sent.clear()
        return names


MANY = [f"s{number}" for number in range(AT_ONCE)]


def test_one_too_many_waits_until_another_is_answered() -> None:
    requests = Requests()
    requests.ask(*MANY, "late")
    assert requests.names() == MANY
    requests.answered(MANY[3])
    assert requests.names() == ["late"]


def test_who_asks_again_is_sent_again_and_takes_no_second_place() -> None:
    requests = Requests()
    requests.ask(*MANY, MANY[0], "late")
    assert requests.names() == [*MANY, MANY[0]]
    requests.answered(MANY[0])
    assert requests.names() == ["late"]


def test_of_what_one_that_waits_asks_the_last_counts() -> None:
    requests = Requests()
    requests.ask(*MANY, "late")
    requests.ask("late", after=5)
    requests.sent.clear()
    requests.answered(MANY[0])
    assert requests.sent == [("late", A, Want(5), 10)]


def test_what_has_no_answer_after_a_second_makes_room_for_others() -> None:
    requests = Requests()
    requests.ask(*MANY, "late")
    requests.names()
    requests.pages.tick(RETRY / 2)
    assert requests.names() == []
    requests.pages.tick(RETRY)
    assert requests.names() == ["late"]


def test_who_is_forgotten_asks_nothing_more_and_makes_room_with_the_next_tick() -> None:
    requests = Requests()
    requests.ask(*MANY, "gone", "late")
    requests.names()
    for name in ("gone", MANY[0]):
        requests.pages.forget(name)  # type: ignore[arg-type]
    requests.pages.tick(0.1)
    assert requests.names() == ["late"]


def test_who_has_to_wait_is_told_so() -> None:
    pages = Pages(lambda *request: None)
    asked = [pages.ask(name, A, 0, 10, 0.0) for name in (*MANY, "late")]  # type: ignore[arg-type]
    assert asked == [False] * AT_ONCE + [True]


# A source with a journal, which may be another copy of it.


def journaled(start: int = 0, begin: int = 0, *before: int) -> Options:
    begins = (*before, begin) if before else ()
    return Options(journaled=True, start=start, begin=begin, begins=begins)


def stretch(prev: int, newest: int, topic: bytes = TRADE) -> Frame:
    rows = [b'[%d,1.0,"T","",0]' % newest] if newest > prev else []
    return Frame(topic, wire.frame(topic, "desk", 36, prev, newest, rows))


def taken(sub: Sub) -> list[tuple[int, int]]:
    return [(told[1].prev, told[1].newest) for told in sub.log if told[0] == "take"]


def test_what_does_not_go_on_where_the_stream_of_a_journal_was_waits_for_an_answer() -> None:
    trades, fills = Sub(), Sub("FILL")
    interest = interest_of(trades, fills)
    interest.note_start(SOURCE, 1.0, journaled())
    for frame in (stretch(0, 5), stretch(5, 5), stretch(5, 7), stretch(0, 3, FILL)):
        assert interest.take(frame)
    assert interest.suspects == []
    for frame in (stretch(9, 12), stretch(7, 13), stretch(12, 13), stretch(3, 4, FILL)):
        assert not interest.take(frame)
    assert interest.suspects == [SOURCE]
    interest.note_start(SOURCE, 1.0, journaled())  # its answer: frames were lost
    assert interest.take(stretch(20, 22))
    assert interest.take(stretch(30, 31, FILL))
    assert taken(trades) == [(0, 5), (5, 5), (5, 7), (20, 22)]
    assert taken(fills) == [(0, 3), (30, 31)]


def test_what_comes_as_a_journal_before_the_answer_of_its_next_start_waits_for_that() -> None:
    sub = Sub()
    interest = interest_of(sub)
    interest.note_start(SOURCE, 1.0, journaled())
    assert interest.take(stretch(0, 5))
    interest.doubt_start(SOURCE, 5)
    assert interest.take(stretch(5, 6))  # it was on its way
    assert not interest.take(stretch(4, 9))
    assert not interest.take(stretch(6, 9))  # also where its numbers meet what was there
    interest.note_start(SOURCE, 2.0, journaled(1, 50))
    assert interest.take(stretch(50, 51))
    assert taken(sub) == [(0, 5), (5, 6), (50, 51)]


def test_each_subscription_is_told_of_a_start_which_the_journal_had_before_it() -> None:
    sub = Sub()
    interest = interest_of(sub)
    for options in (journaled(), journaled(), journaled(2, 50, 0, 30), journaled(3, 70)):
        interest.note_start(SOURCE, 1.0, options)
    assert sub.said("enter") == [
        ("enter", (0, 0), {0: 0, 1: 30, 2: 50}),
        ("enter", (2, 50), {3: 70}),
    ]


@pytest.mark.parametrize(
    ("options", "past"),
    [
        (journaled(1, 50, 0), 9),
        (journaled(3, 70, 0, 50, 60), 9),
        (journaled(3, 70), 80),
        (journaled(1, 50, 7), 80),
    ],
)
def test_up_to_where_a_source_may_be_older_than_this_bus_is_known_if_its_start_is_of_the_journal(
    options: Options, past: int
) -> None:
    interest = interest_of(Sub())
    interest.note_start(SOURCE, 1.0, journaled(), newest=9)
    interest.note_start(SOURCE, 2.0, options, newest=80)
    assert interest.pasts[SOURCE] == past


def test_a_stream_without_a_journal_may_have_breaks() -> None:
    sub = Sub()
    interest = interest_of(sub)
    interest.note_start(SOURCE, 1.0)
    assert interest.take(stretch(0, 5))
    assert interest.take(stretch(9, 12))
    assert interest.suspects == []
