"""What comes from other buses into one subscription, by a clock that is turned by hand."""

import pytest
from conftest import HandClock

from aiobus import Limits
from aiobus.catchup import MAX_UNMET, Announcement, CatchUp
from aiobus.history import Page, Since, Want
from aiobus.options import SubscriptionOptions
from aiobus.publisher import Publisher
from aiobus.query import Query
from aiobus.rows import SEPARATOR, LazyBatch, Rows, Source
from aiobus.sequence import (
    FORGOTTEN,
    LEFT,
    NO_EVENTS,
    PATIENCE,
    PATIENCE_ALIVE,
    RETRY,
    UNANSWERED,
    UNKNOWN,
    WENT_BACK,
    Cursor,
    Gap,
)
from aiobus.subscription import PACE
from aiobus.system import PEER_RESTARTED

DESK = ("desk", 1)
OTHER = ("other", 1)
ROOM = 10
PAST = 1_700_000_000.0


class Asked:
    """What a catch-up wants of a transport, written down."""

    def __init__(self) -> None:
        self.wants: list[Want] = []
        self.pages: list[tuple[Source, int, int]] = []
        self.doubts: list[Source] = []
        self.is_full = self.has_left = False

    def doubt(self, source: Source, error: ValueError) -> bool:
        assert str(error)
        self.doubts.append(source)
        return not self.has_left

    def ask(self, catchup: CatchUp, source: Source, want: Want, limit: int) -> bool:
        self.wants.append(want)
        self.pages.append((source, want.after, limit))
        return self.is_full

    def take(self) -> list[tuple[Source, int, int]]:
        pages, self.pages = self.pages, []
        return pages


class Box:
    """A subscription that writes down what it is handed and told, in order."""

    def __init__(self) -> None:
        self.free_slots = self.maxsize = ROOM
        self.wants_more = True
        self.log: list[int | Gap] = []
        self.falls = 0
        self.reached: list[float] = []
        self.rests = 0
        self.refusals: list[tuple[str, str]] = []
        self.unconfirmed: set[str] = set()
        self.selection = Query.of("A")
        self.own = Cursor()
        self.behind: dict[Source, None] = {}
        self.spoilt: list[LazyBatch] = []

    def keep(self, batch: LazyBatch, after: int = 0) -> None:
        assert batch.left, "an inbox holds nothing that is empty"
        while batch.left:
            seqs = [event.seq for event in batch.take() if event.seq > after]
            self.free_slots -= len(seqs)
            self.log.extend(seqs)
        if batch.error is not None:
            self.spoilt.append(batch)

    def lose(self, source: Source, gap: Gap) -> None:
        self.log.append(gap)

    def start_lagging(self) -> None:
        self.falls += 1

    def note_idle(self) -> None:
        self.rests += 1

    def reach(self, timestamp: float) -> None:
        self.reached.append(timestamp)

    def refuse(self, name: str, reason: str) -> None:
        self.refusals.append((name, reason))
        self.unconfirmed.add(name)

    def confirm(self, name: str) -> None:
        self.unconfirmed.discard(name)


WRONG = b"[what is no event at all]"


def rows_of(
    prev: int,
    *seqs: int,
    source: Source = DESK,
    newest: int | None = None,
    is_frame: bool = True,
) -> Rows:
    """Events with these numbers. If `newest` is above them, the last of them is followed by a row
    that is no event.
    """
    last = seqs[-1] if seqs else prev
    parts = [b'[%d,0.0,"A","",null]' % seq for seq in seqs]
    if newest is not None and newest > last:
        parts.append(WRONG)
    text = SEPARATOR.join(parts)
    span = prev, last if newest is None else newest
    return Rows(text, 0, len(text), source, span, len(parts), is_frame=is_frame)


class Bench:
    """A catch-up between a box and a transport."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.box = Box()
        self.asked = Asked()
        self.begin()
        self.older = clock.now - 1.0
        self.younger = clock.now + 1.0

    def begin(self, since: Since = None) -> None:
        """A subscription is made."""
        self.box.options = SubscriptionOptions(query=self.box.selection, since=since)
        publisher = Publisher("me", Limits())
        self.catchup = CatchUp(self.box, publisher, self.asked)  # type: ignore[arg-type]

    def take(self, prev: int, *seqs: int, started: float | None = None) -> None:
        self.catchup.take(rows_of(prev, *seqs), started)

    def turn(self, after: int, to: int, newest: int, *seqs: int, evicted: int = 0) -> None:
        rows = rows_of(after, *seqs, is_frame=False)
        rows.newest = to
        self.catchup.take_page(DESK, Page(after, evicted, to, newest, []), rows)

    def spoil(self, prev: int, *seqs: int, newest: int) -> None:
        """A frame comes, of which these are events and what is behind them, up to `newest`, not."""
        self.catchup.take(rows_of(prev, *seqs, newest=newest), self.older)
        (batch,) = self.box.spoilt
        self.box.spoilt = []
        self.catchup.spoil(batch)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    clock = HandClock()
    monkeypatch.setattr("aiobus.catchup.elapsed", clock)
    return Bench(clock)


@pytest.fixture
def met(bench: Bench) -> Bench:
    """One that has met a source, which was at 4."""
    bench.catchup.meet(DESK, 4, bench.older)
    return bench


# Where a source is read from.


def test_a_younger_source_whose_age_is_known_is_asked_for_what_came_before_its_first_frame(
    bench: Bench,
) -> None:
    bench.take(4, 5, 6, started=bench.younger)
    assert (bench.box.log, bench.asked.pages) == ([], [(DESK, 0, ROOM)])


def test_sources_of_unknown_age_are_remembered_up_to_a_bound(bench: Bench) -> None:
    for number in range(MAX_UNMET + 1):
        bench.catchup.take(rows_of(2, 5, source=(f"bot-{number}", 1)), None)
    assert bench.catchup.take(rows_of(5, 6, source=("bot-0", 1)), None) is False
    bench.catchup.leave(("bot-0", 1), 0)
    assert bench.box.log == [Gap(0, 6, LEFT)]
    bench.catchup.meet((f"bot-{MAX_UNMET}", 1), 5, bench.older)
    bench.catchup.meet((f"bot-{MAX_UNMET - 1}", 1), 5, bench.older)
    assert bench.asked.pages == [((f"bot-{MAX_UNMET - 1}", 1), 2, ROOM)]


# Frames.


def test_a_frame_behind_which_one_is_missing_is_left_and_what_is_missing_asked_for(
    met: Bench,
) -> None:
    met.take(6, 7)
    assert (met.box.log, met.asked.pages, met.box.falls) == ([], [(DESK, 4, ROOM)], 0)
    met.turn(4, 7, 7, 5, 6, 7)
    assert (met.box.log, set(met.catchup.behind)) == ([5, 6, 7], set())


def test_without_room_a_frame_is_left_and_nothing_asked_for_until_there_is(met: Bench) -> None:
    met.box.free_slots = 0
    met.take(4, 5, 6)
    met.catchup.tick(())
    assert (met.box.log, met.asked.pages, met.box.falls) == ([], [], 1)
    met.box.free_slots = 3
    met.catchup.pull()
    assert met.asked.pages == [(DESK, 4, 3)]


def test_who_has_little_to_do_is_not_far_behind(met: Bench) -> None:
    met.catchup.meet(DESK, 9, met.older)
    assert met.catchup.missing == 0
    met.box.wants_more = False
    assert met.catchup.missing == 5


def test_of_several_sources_that_counts_of_which_most_is_missing(met: Bench) -> None:
    other, met.box.wants_more = ("other", 1), False
    met.catchup.meet(other, 3, met.older)
    assert met.catchup.missing == 0
    met.catchup.meet(DESK, 9, met.older)
    met.catchup.meet(other, 10, met.older)
    assert met.catchup.missing == 7
    met.catchup.leave(other, 0)
    assert met.catchup.missing == 5


# Pages.


@pytest.fixture
def behind(met: Bench) -> Bench:
    """One that has asked for what comes after 4 of a source that is at 9."""
    met.catchup.meet(DESK, 9, met.older)
    assert met.asked.take() == [(DESK, 4, ROOM)]
    assert set(met.catchup.behind) == {DESK}
    return met


def test_two_sources_are_together_asked_for_no_more_than_there_is_room(bench: Bench) -> None:
    for name in ("desk", "feed"):
        bench.catchup.meet((name, 1), 100, bench.younger)
    assert sum(limit for _, _, limit in bench.asked.pages) <= ROOM


def test_a_page_of_an_unknown_source_is_ignored(bench: Bench) -> None:
    bench.turn(0, 9, 9, 1)
    assert bench.box.log == []


def test_a_page_without_an_answer_is_asked_for_again_every_second(behind: Bench) -> None:
    for _ in range(4):
        behind.clock.now += RETRY / 2
        behind.catchup.tick(())
    assert behind.asked.pages == [(DESK, 4, ROOM)] * 2


# What is lost.


def test_what_history_has_forgotten_is_told_before_the_events_that_follow(behind: Bench) -> None:
    behind.turn(4, 9, 9, 8, 9, evicted=7)
    assert behind.box.log == [Gap(4, 7, "history no longer holds it"), 8, 9]


# How much is asked for, and when.


@pytest.mark.parametrize(("maxsize", "enough"), [(10 * PACE, PACE), (20, 10), (1, 1)])
def test_while_others_wait_it_asks_once_there_is_room_for_a_page_or_half_of_the_inbox_is_free(
    behind: Bench, maxsize: int, enough: int
) -> None:
    behind.asked.take()
    behind.clock.now += RETRY
    behind.box.wants_more, behind.box.maxsize = False, maxsize
    behind.box.free_slots = enough - 1
    behind.catchup.pull(has_moved=True)
    assert behind.asked.take() == []
    behind.box.free_slots = enough
    behind.catchup.pull(has_moved=True)
    assert behind.asked.take() == [(DESK, 4, enough)]


def both_behind(bench: Bench) -> None:
    """A second source of which something is missing, and a large inbox in which many events wait.
    No source has been asked for anything.
    """
    bench.box.free_slots = 0
    bench.clock.now += RETRY
    bench.turn(4, 5, 9, 5)
    bench.catchup.meet(OTHER, 4, bench.older)
    bench.catchup.meet(OTHER, 9, bench.older)
    bench.asked.take()
    bench.box.maxsize, bench.box.wants_more, bench.box.free_slots = 10 * PACE, False, 3 * PACE


def pulled(bench: Bench, times: int) -> list[tuple[Source, int, int]]:
    """What is asked for while events are handed over so many times."""
    for _ in range(times):
        bench.catchup.pull(has_moved=True)
    return bench.asked.take()


def test_while_others_wait_sources_are_asked_one_after_another(behind: Bench) -> None:
    both_behind(behind)
    assert pulled(behind, 1) == [(DESK, 5, PACE)]
    assert pulled(behind, 2) == [(OTHER, 4, PACE)]
    behind.turn(5, 6, 9, 6)
    assert pulled(behind, 2) == [(DESK, 6, PACE)]


def test_a_source_that_does_not_answer_keeps_no_room_from_another(behind: Bench) -> None:
    both_behind(behind)
    pulled(behind, 2)
    behind.clock.now += RETRY
    behind.turn(5, 6, 9, 6)
    assert pulled(behind, 1) == [(OTHER, 4, 1), (DESK, 6, PACE)]


def test_a_source_that_does_not_answer_is_given_up_though_another_has_the_room(
    behind: Bench,
) -> None:
    both_behind(behind)
    pulled(behind, 2)
    for seq in range(6, 6 + int(PATIENCE / RETRY) + 1):
        behind.clock.now += RETRY
        behind.turn(seq - 1, seq, 99, seq)
        behind.box.free_slots = 0
        behind.catchup.tick(())
    assert [source for source, _, _ in behind.asked.take()].count(OTHER) == 9
    behind.catchup.take(rows_of(8, 9, source=OTHER), None)
    assert Gap(4, 8, UNANSWERED) in behind.box.log


def test_a_source_for_which_there_was_no_room_is_asked_once_another_has_left(met: Bench) -> None:
    met.catchup.meet(OTHER, 4, met.older)
    met.catchup.meet(DESK, 9, met.older)
    met.catchup.meet(OTHER, 9, met.older)
    met.asked.take()
    met.catchup.leave(DESK, 0)
    assert met.asked.take() == [(OTHER, 4, ROOM)]


def give_up(bench: Bench) -> None:
    for _ in range(int(PATIENCE / RETRY) + 1):
        bench.clock.now += RETRY
        bench.catchup.tick(())
    bench.asked.take()


def test_a_source_is_not_given_up_that_could_not_be_asked_for_want_of_room(behind: Bench) -> None:
    behind.box.free_slots = 0
    for _ in range(2 * int(PATIENCE / RETRY)):
        behind.clock.now += RETRY
        behind.catchup.tick(())
    behind.asked.take()
    behind.box.free_slots = ROOM
    behind.catchup.pull()
    assert behind.asked.pages == [(DESK, 4, ROOM)]


def test_what_no_source_answers_for_is_told_before_the_next_frame(behind: Bench) -> None:
    give_up(behind)
    behind.take(8, 10)
    assert behind.box.log == [Gap(4, 8, UNANSWERED), 10]
    assert set(behind.catchup.behind) == set()


def test_a_frame_without_room_after_what_no_source_answers_for_is_asked_for_as_usual(
    behind: Bench,
) -> None:
    give_up(behind)
    behind.box.free_slots = 0
    behind.take(8, 10)
    behind.box.free_slots = 1
    behind.catchup.pull()
    assert behind.box.log == [Gap(4, 8, UNANSWERED)]
    assert behind.asked.pages == [(DESK, 8, 1)]


def test_gaps_are_told_in_order_and_do_not_overlap(behind: Bench) -> None:
    behind.turn(4, 5, 30, evicted=8)
    behind.turn(5, 9, 30, 9, evicted=8)
    give_up(behind)
    behind.take(20, 21)
    behind.take(25, 26)
    behind.catchup.leave(DESK, 0)
    assert behind.box.log == [
        Gap(4, 8, "history no longer holds it"),
        9,
        Gap(9, 20, UNANSWERED),
        21,
        Gap(21, 30, "its source has left"),
    ]


def test_what_is_missing_of_a_source_that_leaves_is_told(behind: Bench) -> None:
    behind.catchup.leave(DESK, 0)
    assert behind.box.log == [Gap(4, 9, "its source has left")]
    assert set(behind.catchup.behind) == set()


def test_of_a_source_that_leaves_unanswered_all_is_lost_that_its_beacon_told_of(
    bench: Bench,
) -> None:
    bench.take(4)
    bench.catchup.leave(DESK, 0)
    assert bench.box.log == [Gap(0, 4, "its source has left")]


def test_of_a_source_that_leaves_unanswered_it_is_unknown_what_it_published_after_a_beacon_of_none(
    bench: Bench,
) -> None:
    bench.take(0)
    bench.catchup.leave(DESK, 5)
    assert bench.box.log == [Gap(0, 5, UNKNOWN)]


def test_frames_that_were_left_before_the_first_answer_are_lost_when_their_source_leaves(
    bench: Bench,
) -> None:
    bench.take(2, 5)
    bench.take(5, 6)
    bench.catchup.leave(DESK, 0)
    assert [(gap.after, gap.upto) for gap in bench.box.log if isinstance(gap, Gap)] == [(0, 6)]


def test_a_source_that_was_forgotten_begins_again(behind: Bench) -> None:
    behind.catchup.forget(DESK)
    assert set(behind.catchup.behind) == set()
    behind.catchup.meet(DESK, 20, behind.older)
    behind.take(20, 21)
    assert (behind.box.log, behind.asked.pages) == ([21], [])


def test_a_frame_of_one_that_died_and_was_forgotten_is_left_until_its_age_is_known(
    met: Bench,
) -> None:
    met.catchup.leave(DESK, 4, is_dead=True)
    met.catchup.forget(DESK)
    met.take(8, 9)
    met.catchup.meet(DESK, 9, met.older)
    assert (met.box.log, met.asked.pages) == ([], [(DESK, 8, ROOM)])


def test_a_source_that_was_forgotten_is_resumed_behind_all_that_was_handed_over(met: Bench) -> None:
    met.take(4, 5)
    met.catchup.leave(DESK, 0)
    assert met.catchup.forget(DESK) == 5
    met.catchup.resume(DESK, 3, 7)
    met.catchup.meet(DESK, 9, met.younger)
    assert met.box.log == [5, Gap(3, 7, FORGOTTEN)]
    assert met.asked.pages == [(DESK, 7, ROOM - 1)]


def test_where_all_stood_at_one_place_nothing_is_lost_by_being_forgotten(bench: Bench) -> None:
    bench.take(4, 6)
    bench.catchup.resume(DESK, 7, 7)
    bench.catchup.meet(DESK, 7, bench.younger)
    bench.take(7, 8)
    bench.catchup.leave(DESK, 0)
    assert bench.box.log == [8]


def test_a_place_that_is_known_again_is_kept_when_the_source_is_resumed(bench: Bench) -> None:
    bench.take(4, 9)
    bench.catchup.leave(DESK, 0)
    bench.catchup.resume(DESK, 3, 7)
    assert bench.catchup.forget(DESK) == 9
    assert [(gap.after, gap.upto) for gap in bench.box.log if isinstance(gap, Gap)] == [(0, 9)]


def test_a_peer_that_refuses_is_unconfirmed_until_it_confirms_and_the_reason_is_told(
    bench: Bench,
) -> None:
    bench.catchup.refuse("desk", "full")
    assert (bench.box.unconfirmed, bench.box.refusals) == ({"desk"}, [("desk", "full")])
    bench.catchup.confirm("desk")
    assert bench.box.unconfirmed == set()


# Flush marks.


def test_asking_for_a_mark_asks_for_what_is_missing(met: Bench) -> None:
    assert not met.catchup.has(DESK, 9, met.older)
    assert met.asked.pages == [(DESK, 4, ROOM)]
    met.turn(4, 9, 9, 5)
    assert met.catchup.has(DESK, 9, met.older)


def test_it_has_what_was_told_to_be_lost(behind: Bench) -> None:
    behind.turn(4, 9, 9, evicted=9)
    assert behind.catchup.has(DESK, 9, behind.older)


def test_before_it_knows_where_it_begins_it_confirms_nothing(bench: Bench) -> None:
    assert not bench.catchup.has(DESK, 9, bench.older)
    bench.catchup.meet(DESK, 9, bench.older)
    assert bench.catchup.has(DESK, 9, bench.older)


def test_while_it_catches_up_it_has_what_was_handed_over_before(behind: Bench) -> None:
    assert [behind.catchup.has(DESK, seq, behind.older) for seq in (4, 5)] == [True, False]


def test_a_peer_that_confirms_is_unconfirmed_no_more(bench: Bench) -> None:
    bench.box.unconfirmed = {"desk", "feed"}
    bench.catchup.confirm("desk")
    bench.catchup.confirm("desk")
    assert bench.box.unconfirmed == {"feed"}


# Taken or left.


def is_taken(bench: Bench, prev: int, *seqs: int, started: float | None = None) -> bool:
    return bench.catchup.take(rows_of(prev, *seqs), bench.older if started is None else started)


def test_it_says_of_a_frame_whether_it_was_taken(met: Bench) -> None:
    assert is_taken(met, 4, 5)
    assert is_taken(met, 4, 5), "a repetition brings nothing, and is left for nothing"
    assert is_taken(met, 4, 5, 6)
    assert is_taken(met, 6)
    assert not is_taken(met, 7, 8)
    assert is_taken(met, 6, 7)


def test_without_room_a_frame_is_left_and_a_beacon_is_not(met: Bench) -> None:
    met.box.free_slots = 0
    assert is_taken(met, 4)
    assert not is_taken(met, 4, 5)


def test_a_frame_of_one_that_is_dead_is_taken(met: Bench) -> None:
    met.catchup.leave(DESK, 0, is_dead=True)
    assert is_taken(met, 8, 9)


def test_while_a_page_is_on_its_way_frames_that_are_left_ask_for_nothing(behind: Bench) -> None:
    behind.clock.now += RETRY
    for prev in range(9, 200):
        assert not is_taken(behind, prev, prev + 1)
    assert behind.asked.pages == []
    behind.catchup.tick(())
    assert behind.asked.take() == [(DESK, 4, ROOM)]
    behind.turn(4, 9, 200, 5)
    assert behind.asked.take() == [(DESK, 9, ROOM - 1)], "and how far they led is known"


# Rows that are no events.


def test_where_rows_are_no_events_the_source_is_asked_and_its_answer_says_what_is_lost(
    met: Bench,
) -> None:
    met.spoil(4, 5, newest=9)
    assert (met.box.log, met.asked.doubts) == ([5], [DESK])
    met.catchup.note_said(DESK, 9)
    assert met.box.log == [5, Gap(5, 9, NO_EVENTS)]
    met.catchup.note_said(DESK, 12)
    assert met.box.log == [5, Gap(5, 9, NO_EVENTS)], "it is said once"


@pytest.mark.parametrize(
    ("seqs", "gaps"), [([], [(5, 12)]), ([10], [(5, 9), (10, 12)])], ids=["adjacent", "apart"]
)
def test_two_that_are_no_events_are_one_gap_if_one_is_behind_the_other(
    met: Bench, seqs: list[int], gaps: list[tuple[int, int]]
) -> None:
    met.spoil(4, 5, newest=9)
    met.spoil(9, *seqs, newest=12)
    met.catchup.note_said(DESK, 12)
    assert met.box.log == [5, *seqs, *(Gap(*gap, NO_EVENTS) for gap in gaps)]


def test_where_only_the_number_of_rows_is_wrong_and_all_are_there_no_gap_is_told(
    met: Bench,
) -> None:
    """An empty one would tell of a loss that is none."""
    rows = rows_of(4, 5, 6)
    rows.count = 1
    met.catchup.take(rows, met.older)
    (batch,) = met.box.spoilt
    assert (batch.last, batch.rows.newest) == (6, 6)
    met.catchup.spoil(batch)
    met.catchup.note_said(DESK, 6)
    assert met.asked.doubts == [DESK]
    assert met.box.log == [5, 6]


def test_of_what_is_found_to_be_no_events_when_its_source_has_left_the_loss_is_told_at_once(
    met: Bench,
) -> None:
    """It has closed, so there is no source to ask."""
    met.catchup.take(rows_of(4, 5, newest=9), met.older)
    met.catchup.leave(DESK, 9)
    met.asked.has_left = True
    met.catchup.spoil(met.box.spoilt.pop())
    assert met.box.log == [5, Gap(5, 9, NO_EVENTS)]


def test_of_a_source_that_is_forgotten_before_it_answered_what_is_no_events_is_lost(
    met: Bench,
) -> None:
    met.spoil(4, 5, newest=9)
    met.catchup.forget(DESK)
    assert met.box.log == [5, Gap(5, 9, NO_EVENTS)]


def test_of_a_source_that_is_dead_what_is_no_events_is_lost_at_once(met: Bench) -> None:
    met.catchup.leave(DESK, 0, is_dead=True)
    met.spoil(4, 5, newest=9)
    assert met.box.log == [5, Gap(5, 9, NO_EVENTS)]


def test_a_number_that_its_source_takes_back_is_not_waited_for(met: Bench) -> None:
    met.take(4)
    met.spoil(4, 5, newest=2**62)
    met.take(5, 6)
    assert met.box.log == [5], "it is taken for a repetition"
    met.catchup.go_back(DESK, 6)
    met.take(6, 7)
    assert met.box.log == [5, Gap(4, 2**62, WENT_BACK), 7]
    met.catchup.note_said(DESK, 2**62)
    assert len(met.box.log) == 3, "and what was no events is in the gap"


def lost(bench: Bench) -> set[int]:
    """The numbers up to 20 that were told to be lost."""
    gaps = [gap for gap in bench.box.log if isinstance(gap, Gap)]
    return {seq for seq in range(21) for gap in gaps if gap.after < seq <= gap.upto}


def test_what_is_no_events_is_told_if_its_source_takes_back_something_beyond(met: Bench) -> None:
    """It says that it is at 9, while a heartbeat of another hand said more."""
    met.spoil(4, 5, newest=9)
    met.catchup.go_back(DESK, 9)
    assert {6, 7, 8, 9} <= lost(met)


def test_a_source_that_takes_back_all_that_was_missing_is_waited_for_no_more(
    behind: Bench,
) -> None:
    behind.catchup.go_back(DESK, 4)
    assert (set(behind.catchup.behind), behind.box.log) == (set(), [])


def test_a_batch_of_before_its_source_took_back_something_keeps_no_later_loss_untold(
    met: Bench,
) -> None:
    """It lay in the inbox, and is opened when the source has answered already."""
    met.catchup.take(rows_of(4, 5, newest=2**62), met.older)
    met.catchup.go_back(DESK, 6)
    met.box.log.clear()  # its numbers are used again, so what was told of them counts no more
    met.catchup.spoil(met.box.spoilt.pop())
    met.catchup.note_said(DESK, 6)
    met.spoil(6, 7, newest=9)
    met.catchup.note_said(DESK, 9)
    assert {6, 8, 9} <= lost(met)


# Excused.


def test_a_source_is_not_given_up_while_its_question_waits_for_its_turn(behind: Bench) -> None:
    behind.asked.is_full = True
    for _ in range(2 * int(PATIENCE / RETRY)):
        behind.clock.now += RETRY
        behind.catchup.tick(())
    behind.asked.is_full = False
    behind.asked.take()
    behind.clock.now += RETRY
    behind.catchup.tick(())
    assert behind.asked.take() == [(DESK, 4, ROOM)]


def test_a_source_is_not_given_up_because_this_process_was_held_up(behind: Bench) -> None:
    behind.clock.now += 2 * PATIENCE
    behind.catchup.extend_deadlines()
    behind.catchup.tick(())
    assert behind.asked.pages == [(DESK, 4, ROOM)]


def test_a_source_that_lives_is_waited_for_longer_and_not_for_ever(behind: Bench) -> None:
    for _ in range(int(PATIENCE_ALIVE) - 1):
        behind.clock.now += 1.0
        behind.asked.take()
        behind.catchup.tick([DESK])
        assert behind.asked.pages, "given up"
    behind.clock.now += 1.0
    behind.asked.take()
    behind.catchup.tick([DESK])
    behind.take(20, 21, started=behind.older)
    assert behind.box.log[-2:] == [Gap(4, 20, UNANSWERED), 21]


def test_what_was_left_before_the_first_answer_is_owed_whichever_subscription_hears_that_answer(
    bench: Bench,
) -> None:
    """Another subscription may have asked, so that frames and marks come with the age before this
    one's own answer does.
    """
    bench.take(4, 5)
    assert not bench.catchup.has(DESK, 5, bench.older)
    assert bench.asked.pages == [(DESK, 4, ROOM)]
    other = Bench(bench.clock)
    other.take(4, 5)
    other.take(5, 6, started=bench.older)
    assert other.asked.pages == [(DESK, 4, ROOM)]


# Dead, but not yet silent.


def test_what_still_comes_of_a_source_that_is_dead_is_handed_over(met: Bench) -> None:
    met.catchup.leave(DESK, 0, is_dead=True)
    met.take(4, 5, 6, started=met.older)
    met.take(5, 6, 7, started=met.older)
    assert met.box.log == [5, 6, 7]


def test_what_is_missing_before_the_late_frame_of_one_that_is_dead_is_lost_at_once(
    met: Bench,
) -> None:
    met.catchup.leave(DESK, 0, is_dead=True)
    met.take(8, 9, started=met.older)
    assert met.box.log == [Gap(4, 8, LEFT), 9]
    assert (met.catchup.behind, met.asked.pages) == ({}, [])


def test_of_one_that_dies_unheard_and_is_heard_then_what_is_missing_is_lost(bench: Bench) -> None:
    bench.catchup.leave(DESK, 0, is_dead=True)
    bench.take(3, 4)
    assert bench.box.log == [Gap(0, 3, LEFT), 4]


def test_no_subscription_waits_for_the_mark_of_one_that_is_dead(met: Bench) -> None:
    met.catchup.leave(DESK, 0, is_dead=True)
    assert met.catchup.has(DESK, 4, met.older)
    assert (met.box.log, set(met.catchup.behind)) == ([], set())


def test_what_the_mark_of_one_that_is_dead_tells_of_and_is_not_there_is_lost_at_once(
    met: Bench,
) -> None:
    met.catchup.leave(DESK, 0, is_dead=True)
    assert met.catchup.has(DESK, 9, met.older)
    met.take(4, 7)
    assert (met.box.log, set(met.catchup.behind)) == ([Gap(4, 9, LEFT)], set())


def test_of_one_that_is_dead_and_was_never_met_a_mark_tells_what_is_lost_if_it_was_younger(
    bench: Bench,
) -> None:
    bench.catchup.leave(DESK, 0, is_dead=True)
    bench.catchup.leave(OTHER, 0, is_dead=True)
    assert bench.catchup.has(DESK, 9, bench.older)
    assert bench.catchup.has(OTHER, 9, bench.younger)
    assert bench.box.log == [Gap(0, 9, LEFT)]


def test_of_a_past_that_is_empty_nothing_is_handed_over(bench: Bench) -> None:
    bench.begin(PAST)
    bench.catchup.meet(DESK, 40, bench.older)
    bench.turn(40, 40, 40)
    assert (bench.box.log, set(bench.catchup.behind)) == ([], set())


def test_one_that_was_given_up_and_sends_again_may_have_all_the_room(behind: Bench) -> None:
    """It is asked for one event at a time only while it does not answer."""
    behind.catchup.meet(OTHER, 0, behind.older)
    behind.catchup.meet(OTHER, 100, behind.older)
    for _ in range(int(PATIENCE / RETRY) + 1):
        behind.clock.now += RETRY
        behind.catchup.tick(())
    behind.catchup.meet(DESK, 99, behind.older)
    behind.asked.pages.clear()
    behind.take(9, 10)
    (asked,) = [each for each in behind.asked.pages if each[0] == DESK]
    assert asked[:2] == (DESK, 10)
    assert asked[2] > 1


def test_when_nothing_is_missing_any_more_the_task_that_waits_is_woken(behind: Bench) -> None:
    before = behind.box.rests
    behind.catchup.leave(DESK, 0)
    assert behind.box.rests == before + 1


# The past.


@pytest.fixture
def late(bench: Bench) -> Bench:
    """One that wants the past, and has met a source, which was at 40."""
    bench.begin("last")
    bench.catchup.meet(DESK, 40, bench.older)
    return bench


def test_the_past_is_asked_for_where_it_is_to_begin(late: Bench) -> None:
    assert late.asked.wants == [Want(0, "last")]
    assert list(late.catchup.beginning) == [DESK]


def test_until_the_source_has_told_where_it_begins_its_frames_are_left(late: Bench) -> None:
    late.take(40, 41, 42, started=late.older)
    assert late.box.log == []
    late.turn(0, 30, 42, 10, 30)
    assert (late.box.log, list(late.catchup.beginning)) == ([10, 30], [])
    assert late.asked.wants[1:] == [Want(30, upto=42)]


def test_a_source_that_says_where_the_past_begins_is_confirmed_and_how_far_it_reached_is_told(
    bench: Bench,
) -> None:
    bench.begin(PAST)
    bench.box.unconfirmed = {"desk", "other"}
    bench.catchup.meet(DESK, 3, bench.older)
    bench.catchup.take_page(DESK, Page(1, 1, 3, 3, [], 7.5), rows_of(1, 2, 3, is_frame=False))
    assert (bench.box.log, bench.box.reached) == ([2, 3], [7.5])
    assert bench.box.unconfirmed == {"other"}


def test_what_a_source_was_at_when_it_left_without_telling_of_its_past_is_lost(late: Bench) -> None:
    late.catchup.leave(DESK, 0)
    assert late.box.log == [Gap(0, 40, LEFT)]
    assert list(late.catchup.beginning) == []


def test_the_past_is_asked_for_even_where_there_is_no_room(bench: Bench) -> None:
    """Nothing may be taken out of a stream's inbox before its entry returns."""
    bench.begin(PAST)
    bench.box.free_slots = 0
    bench.catchup.meet(DESK, 40, bench.older)
    assert bench.asked.pages == [(DESK, 0, 1)]


@pytest.mark.parametrize("seqs", [[], [5]])
def test_a_frame_after_which_nothing_is_missing_vouches_for_what_was_heard_of(
    met: Bench, seqs: list[int]
) -> None:
    met.catchup.take(rows_of(4, *seqs), met.older, 9)
    met.catchup.leave(DESK, 9)
    assert met.box.log == seqs


def test_a_page_that_leads_nowhere_frees_the_room_that_it_was_to_fill(behind: Bench) -> None:
    behind.catchup.meet(OTHER, 4, behind.older)
    behind.catchup.meet(OTHER, 9, behind.older)
    behind.turn(4, 4, 9)
    assert behind.asked.pages == [(OTHER, 4, ROOM)]


def test_a_source_that_was_forgotten_while_it_was_asked_is_not_taken_for_silent_later(
    behind: Bench,
) -> None:
    behind.catchup.forget(DESK)
    behind.catchup.meet(OTHER, 9, behind.younger)
    behind.box.free_slots = 2 * ROOM
    behind.catchup.meet(DESK, 20, behind.younger)
    assert behind.asked.pages == [(OTHER, 0, ROOM), (DESK, 0, ROOM)]


# Fine rules, each of which something would go on without.


def test_a_source_that_needed_no_answer_any_more_is_not_taken_for_silent_later(
    behind: Bench,
) -> None:
    behind.take(4, 5, 9)
    behind.catchup.meet(OTHER, 9, behind.younger)
    (asked,) = behind.asked.take()
    behind.box.free_slots = ROOM + asked[2]
    behind.catchup.meet(DESK, 20, behind.older)
    assert behind.asked.pages == [(DESK, 9, ROOM)]


def test_one_that_was_taken_for_dead_and_answers_is_asked_for_what_is_missing(met: Bench) -> None:
    met.catchup.leave(DESK, 4, is_dead=True)
    met.catchup.meet(DESK, 6, met.older)
    assert met.asked.pages == [(DESK, 4, ROOM)]
    met.take(7, 8, started=met.older)
    assert met.box.log == []


@pytest.mark.parametrize("error", [-1e-9, 0.0, 1e-9])
@pytest.mark.parametrize("known", [OTHER[1] - 1, OTHER[1]])
def test_of_a_source_that_started_at_that_very_moment_its_epoch_tells_which_was_first(
    bench: Bench, known: int, error: float
) -> None:
    """On a virtual loop time stands still while buses start, subscribe and publish."""
    bench.catchup._made_after = known
    bench.catchup.meet(OTHER, 9, bench.clock.now + error)
    asked = [] if known == OTHER[1] else [(OTHER, 0, ROOM)]
    assert (bench.box.log, bench.asked.pages) == ([], asked)


def test_after_this_process_was_held_up_no_source_is_given_up_before_what_it_has_sent_is_read(
    bench: Bench,
) -> None:
    """What frees room asks for more, before the tick that tells that the process was held up."""
    bench.catchup.meet(DESK, 6, bench.older)
    bench.take(9, 10, started=bench.older)
    assert bench.asked.take() == [(DESK, 6, ROOM)]
    bench.clock.now += 2 * PATIENCE
    bench.catchup.pull()
    bench.take(10, 11, started=bench.older)
    assert (bench.box.log, bench.asked.take()) == ([], [])
    bench.catchup.extend_deadlines()
    bench.catchup.tick([])
    assert bench.asked.take() == [(DESK, 6, ROOM)]
    bench.turn(6, 11, 11, 9, 10, 11)
    assert bench.box.log == [9, 10, 11]


def test_a_silent_source_is_given_up_also_by_a_subscription_that_has_no_room_at_a_tick(
    bench: Bench,
) -> None:
    bench.catchup.meet(DESK, 6, bench.older)
    bench.take(9, 10, started=bench.older)
    for _ in range(2 * int(PATIENCE)):
        bench.clock.now += 0.5
        bench.box.free_slots = ROOM
        bench.catchup.pull()  # a handler has made room
        bench.clock.now += 0.5
        bench.box.free_slots = 0
        bench.catchup.tick([])
    bench.box.free_slots = ROOM
    bench.take(10, 11, started=bench.older)
    assert bench.box.log == [Gap(6, 10, UNANSWERED), 11]


def test_where_time_moves_a_source_that_started_at_that_very_moment_counts_as_older(
    bench: Bench,
) -> None:
    made = bench.clock.now
    assert not bench.catchup.has(DESK, 5, made)
    bench.take(3, 4, 5, started=made)
    bench.catchup.leave(OTHER, 0, is_dead=True)
    bench.catchup.take(rows_of(3, 4, source=OTHER), made)
    assert (bench.box.log, bench.asked.pages) == ([4, 5, 4], [])


def test_of_a_dead_source_that_is_forgotten_a_late_frame_waits_for_its_first_answer(
    met: Bench,
) -> None:
    met.catchup.leave(DESK, 4, is_dead=True)
    met.catchup.forget(DESK)
    met.take(7, 8)
    assert met.box.log == []


def test_a_frame_vouches_for_all_that_its_source_was_heard_of_before_it(met: Bench) -> None:
    met.catchup.take(rows_of(4, 5), met.older, 9)
    met.catchup.leave(DESK, 9)
    assert met.box.log == [5]


def test_a_batch_of_before_its_source_took_back_something_tells_no_loss_beyond(
    met: Bench,
) -> None:
    met.catchup.take(rows_of(4, 5, newest=2**62), met.older)
    met.catchup.go_back(DESK, 6)
    met.box.log.clear()
    met.catchup.spoil(met.box.spoilt.pop())
    met.catchup.leave(DESK, 6)
    assert met.box.log == [Gap(5, 6, NO_EVENTS)]


# A source that has started again.


@pytest.mark.parametrize("came", ["frame", "page"])
def test_what_comes_of_a_source_that_started_again_waits_until_that_is_handed_out(
    bench: Bench, came: str
) -> None:
    bench.box.selection = Query.of(["A", PEER_RESTARTED])
    bench.begin()
    bench.catchup.meet(DESK, 2, bench.older)
    bench.catchup.meet(DESK, 3, bench.older)
    assert bench.asked.take() == [(DESK, 2, ROOM)]
    announcement = Announcement()
    bench.catchup.restart(DESK, announcement)
    if came == "page":
        bench.turn(2, 3, 3, 3)
    else:
        bench.take(2, 3)
    bench.clock.now += RETRY
    bench.catchup.tick([DESK])
    assert bench.box.log == []
    assert bench.asked.take() == []
    announcement.seq = 1
    bench.catchup.note_announced(DESK)
    assert bench.asked.take() == [(DESK, 2, ROOM)]
    bench.turn(2, 3, 3, 3)
    assert bench.box.log == [3]


def test_who_did_not_ask_whether_a_source_started_again_does_not_wait(bench: Bench) -> None:
    bench.catchup.meet(DESK, 2, bench.older)
    bench.catchup.restart(DESK, Announcement())
    bench.take(2, 3)
    assert bench.box.log == [3]
