"""Gaps, and a model of catching up: whatever happens, an event arrives once or its loss is said."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiobus import Event, Limits, intake, wire
from aiobus.codec import decode
from aiobus.delivery import Delivery
from aiobus.history import PAGE_LOOK, Page, Want
from aiobus.inbox import Notice, Offer, make_inbox
from aiobus.intake import Intake
from aiobus.pattern import Query
from aiobus.publisher import Publisher
from aiobus.rows import LazyBatch, Source
from aiobus.sequence import (
    EVICTED,
    LEFT,
    PATIENCE,
    RETRY,
    UNANSWERED,
    UNKNOWN,
    WENT_BACK,
    Cursor,
    Gap,
)
from aiobus.stream import Stream
from aiobus.transport import Inlet
from aiobus.wire import Answer, Frame, Mark, PageAnswer, PageAsk, Who


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


# Frames of another process.


def place(cursor: Cursor) -> tuple[int, bool]:
    return cursor.last, cursor.behind


def heard(last: int, seq: int) -> Cursor:
    """A cursor at `last` whose source says that it is at `seq`."""
    cursor = Cursor(last)
    cursor.hear(seq)
    return cursor


def given_up(last: int, seq: int) -> Cursor:
    """The same, after nobody has answered for as long as it is patient."""
    cursor = heard(last, seq)
    cursor.ask(0.0)
    cursor.ask(PATIENCE)
    assert cursor.has_given_up
    return cursor


def test_a_source_that_is_further_is_a_reason_to_ask_and_not_to_skip() -> None:
    assert place(heard(4, 9)) == (4, True)


@pytest.mark.parametrize("seq", [3, 4])
def test_a_source_that_is_where_it_stands_or_before_changes_nothing(seq: int) -> None:
    assert place(heard(4, seq)) == (4, False)


def test_what_is_missing_is_counted_up_to_the_last_that_was_heard_of() -> None:
    cursor = Cursor(5)
    assert cursor.missing == 0
    cursor.hear(9)
    assert cursor.missing == 4
    for now in (0.0, PATIENCE):
        cursor.ask(now)
    assert (cursor.has_given_up, cursor.missing) == (True, 0)


def test_of_who_does_not_know_yet_where_it_begins_nothing_counts_as_missing() -> None:
    cursor = Cursor(since="last")
    cursor.hear(1_000_000)
    assert cursor.missing == 0


def test_a_frame_that_goes_on_where_it_stands_is_handed_over_whole() -> None:
    cursor = Cursor(4)
    assert cursor.take(4, 9, has_room=True) == 4
    assert place(cursor) == (9, False)


def test_of_a_frame_that_reaches_back_only_what_is_new_is_handed_over() -> None:
    cursor = Cursor(6)
    assert cursor.take(4, 9, has_room=True) == 6
    assert place(cursor) == (9, False)


@pytest.mark.parametrize("has_room", [True, False])
def test_a_frame_that_comes_twice_brings_nothing_new_and_needs_no_room(has_room: bool) -> None:
    cursor = Cursor(9)
    assert cursor.take(4, 9, has_room) == 9
    assert place(cursor) == (9, False)


@pytest.mark.parametrize("has_room", [True, False])
def test_a_frame_behind_which_one_is_missing_is_left(has_room: bool) -> None:
    cursor = Cursor(4)
    assert cursor.take(5, 9, has_room) is None
    assert place(cursor) == (4, True)


def test_a_frame_without_room_is_left() -> None:
    cursor = Cursor(4)
    assert cursor.take(4, 9, has_room=False) is None
    assert place(cursor) == (4, True)


@pytest.mark.parametrize("has_room", [True, False])
def test_a_beacon_of_where_it_stands_leaves_it_live(has_room: bool) -> None:
    cursor = Cursor(4)
    assert cursor.take(4, 4, has_room) == 4
    assert place(cursor) == (4, False)


@pytest.mark.parametrize("has_room", [True, False])
def test_a_beacon_reveals_that_the_last_frame_was_lost(has_room: bool) -> None:
    cursor = Cursor(4)
    assert cursor.take(9, 9, has_room) is None
    assert place(cursor) == (4, True)


@pytest.mark.parametrize("prev", [2, 4])
def test_a_frame_that_goes_on_to_all_that_was_heard_of_makes_one_that_is_behind_live(
    prev: int,
) -> None:
    cursor = heard(4, 20)
    assert cursor.take(prev, 9, has_room=True) == 4
    assert place(cursor) == (9, True)
    assert cursor.take(9, 20, has_room=True) == 9
    assert place(cursor) == (20, False)


def test_a_frame_of_before_does_not_hide_what_is_known_to_be_missing() -> None:
    """It may have been left unread, and be read when its source is dead."""
    cursor = Cursor(450)
    cursor.hear(3201)
    assert cursor.take(199, 200, has_room=True) == 450
    assert cursor.take(440, 460, has_room=True) == 450
    assert (place(cursor), cursor.leave(0)) == ((460, True), [Gap(460, 3201, LEFT)])


def test_a_beacon_says_that_nothing_the_source_has_published_since_was_for_it() -> None:
    cursor = heard(4, 20)
    assert cursor.take(4, 4, has_room=True) == 4
    assert place(cursor) == (4, False)


# Asking.


def test_who_misses_nothing_asks_nothing() -> None:
    assert Cursor(4).ask(0.0) is None


def test_what_is_missing_is_asked_for_from_where_it_stands() -> None:
    assert heard(4, 9).ask(0.0) == 4


def test_one_question_is_under_way_and_it_is_repeated_after_retry() -> None:
    cursor = heard(4, 9)
    times = [100.0, 100.0, 100.0 + RETRY * 0.99, 100.0 + RETRY, 100.0 + RETRY * 1.99, 102.0]
    assert [cursor.ask(now) for now in times] == [4, None, None, 4, None, 4]


def test_a_page_that_leads_on_lets_it_ask_for_the_next_at_once() -> None:
    cursor = heard(4, 9)
    cursor.ask(0.0)
    cursor.advance(page(4, to=6, newest=9))
    assert cursor.ask(0.0) == 6


def test_a_page_that_leads_nowhere_does_not_let_it_ask_again_at_once() -> None:
    cursor = heard(4, 9)
    cursor.ask(0.0)
    cursor.advance(page(4, to=4, newest=9))
    assert [cursor.ask(0.0), cursor.ask(RETRY)] == [None, 4]


def test_it_asks_until_its_patience_is_over_and_then_no_more() -> None:
    cursor = heard(4, 9)
    asked = [cursor.ask(float(second)) for second in range(20)]
    assert asked == [4] * int(PATIENCE / RETRY) + [None] * 10
    assert (cursor.has_given_up, place(cursor)) == (True, (4, True))


def test_a_page_that_leads_on_renews_its_patience() -> None:
    cursor = heard(4, 9)
    cursor.ask(0.0)
    cursor.advance(page(4, to=6, newest=9))
    assert [cursor.ask(9.0), cursor.ask(9.0 + PATIENCE - 0.5), cursor.has_given_up] == [6, 6, False]
    assert [cursor.ask(9.0 + PATIENCE), cursor.has_given_up] == [None, True]


def test_pages_that_lead_nowhere_do_not_renew_its_patience() -> None:
    cursor = heard(4, 9)
    for second in range(10):
        assert cursor.ask(float(second)) == 4
        cursor.advance(page(4, to=4, newest=9))
    assert (cursor.ask(PATIENCE), cursor.has_given_up) == (None, True)


def test_patience_begins_with_the_first_question_and_not_before() -> None:
    cursor = heard(4, 9)
    assert (cursor.ask(1000.0), cursor.has_given_up) == (4, False)


def test_a_question_that_has_to_wait_for_its_turn_is_repeated_after_retry_and_never_given_up() -> (
    None
):
    """Or each event would ask again, for thousands of subscriptions that wait."""
    cursor = heard(0, 9)
    for now in range(0, 100, 2):
        assert cursor.ask(now) == 0
        cursor.defer()
        assert not cursor.is_due(now + RETRY / 2)


def test_becoming_live_forgets_what_was_asked() -> None:
    cursor = heard(4, 9)
    cursor.ask(0.0)
    cursor.take(4, 9, has_room=True)
    cursor.hear(12)
    assert [cursor.ask(0.0), cursor.ask(PATIENCE - 0.5), cursor.has_given_up] == [9, 9, False]


# Which pages count.


def test_the_page_that_was_asked_for_is_expected_and_others_are_not() -> None:
    cursor = heard(4, 9)
    cursor.ask(0.0)
    assert [cursor.expects(page(after, to=9, newest=9)) for after in (3, 4, 5)] == [
        False,
        True,
        False,
    ]


def test_a_page_is_expected_though_a_frame_has_led_on_since_it_was_asked_for() -> None:
    cursor = heard(4, 20)
    cursor.ask(0.0)
    cursor.take(4, 7, has_room=True)
    assert [cursor.expects(page(after, to=9, newest=9)) for after in (4, 7)] == [True, False]
    assert cursor.advance(page(4, to=9, newest=9)) is None
    assert (place(cursor), cursor.ask(0.0)) == ((9, True), 9)


def test_a_page_that_a_frame_has_overtaken_does_not_lead_back() -> None:
    cursor = heard(4, 20)
    cursor.ask(0.0)
    cursor.take(4, 12, has_room=True)
    assert cursor.advance(page(4, to=9, newest=9)) is None
    assert (place(cursor), cursor.ask(0.0)) == ((12, True), 12)


def test_of_what_was_forgotten_that_is_lost_which_no_frame_has_brought_meanwhile() -> None:
    cursor = heard(4, 20)
    cursor.ask(0.0)
    cursor.take(4, 7, has_room=True)
    assert cursor.advance(page(4, to=9, newest=9, evicted=8)) == Gap(7, 8, EVICTED)


def test_an_answer_to_a_question_before_the_last_is_not_expected() -> None:
    cursor = heard(4, 20)
    cursor.ask(0.0)
    cursor.take(4, 7, has_room=True)
    assert cursor.ask(RETRY) == 7
    assert not cursor.expects(page(4, to=9, newest=9))


def test_no_page_is_expected_while_none_was_asked_for() -> None:
    assert not heard(4, 9).expects(page(4, to=9, newest=9))
    assert not Cursor(4).expects(page(4, to=9, newest=9))


def test_the_same_page_is_not_expected_twice() -> None:
    cursor = heard(4, 9)
    cursor.ask(0.0)
    cursor.advance(page(4, to=6, newest=9))
    cursor.ask(0.0)
    assert not cursor.expects(page(4, to=6, newest=9))


def test_a_page_is_not_expected_any_more_once_it_is_live() -> None:
    cursor = heard(4, 9)
    cursor.ask(0.0)
    cursor.take(4, 4, has_room=True)
    assert not cursor.expects(page(4, to=9, newest=9))


@pytest.mark.parametrize(("to", "newest"), [(3, 9), (8, 7), (3, 2)])
def test_a_page_whose_numbers_contradict_each_other_is_not_expected(to: int, newest: int) -> None:
    cursor = heard(4, 9)
    cursor.ask(0.0)
    assert not cursor.expects(page(4, to, newest))


def test_a_page_of_before_the_source_said_where_it_is_does_not_make_it_live() -> None:
    cursor = heard(4, 20)
    cursor.ask(0.0)
    cursor.advance(page(4, to=9, newest=9))
    assert (place(cursor), cursor.ask(0.0)) == ((9, True), 9)


def test_the_furthest_that_was_heard_of_counts_whatever_is_heard_later() -> None:
    cursor = heard(4, 20)
    cursor.hear(9)
    cursor.take(5, 9, has_room=True)
    cursor.ask(0.0)
    cursor.advance(page(4, to=9, newest=9))
    assert place(cursor) == (9, True)


# Giving up, and the source leaving.


def test_while_it_has_not_given_up_no_frame_ends_what_is_missing() -> None:
    cursor = heard(4, 9)
    assert cursor.lost_before(9) is None
    assert place(cursor) == (4, True)


def test_after_giving_up_the_next_frame_ends_what_is_missing_and_that_is_lost() -> None:
    cursor = given_up(4, 9)
    assert cursor.lost_before(9) == Gap(after=4, upto=9, reason="its source did not answer")
    assert (place(cursor), cursor.has_given_up) == ((9, False), False)
    assert cursor.take(9, 12, has_room=True) == 9


def test_after_giving_up_a_frame_does_not_end_what_is_missing_behind_it() -> None:
    """It may be of before, left unread, and read when its source is dead."""
    cursor = given_up(4, 20)
    assert cursor.lost_before(9) == Gap(4, 9, UNANSWERED)
    assert cursor.take(9, 12, has_room=True) == 9
    assert (place(cursor), cursor.has_given_up, cursor.ask(PATIENCE)) == ((12, True), False, 12)
    assert cursor.leave(0) == [Gap(12, 20, LEFT)]


def test_after_giving_up_a_beacon_ends_what_is_missing() -> None:
    cursor = given_up(4, 20)
    assert cursor.lost_before(9) == Gap(4, 9, UNANSWERED)
    assert cursor.take(9, 9, has_room=True) == 9
    assert place(cursor) == (9, False)


@pytest.mark.parametrize("prev", [3, 4])
def test_after_giving_up_a_frame_that_goes_on_where_it_stands_ends_nothing(prev: int) -> None:
    cursor = given_up(4, 20)
    assert cursor.lost_before(prev) is None
    assert cursor.take(prev, 12, has_room=True) == 4
    assert (place(cursor), cursor.has_given_up) == ((12, True), False)
    assert cursor.ask(PATIENCE) == 12, "what more is missing, its source can be asked for again"


def test_a_source_that_sends_again_is_asked_again_though_there_was_no_room_for_what_it_sent() -> (
    None
):
    cursor = given_up(4, 9)
    assert cursor.lost_before(4) is None
    assert cursor.take(4, 12, has_room=False) is None
    assert cursor.ask(PATIENCE + RETRY) == 4


def test_a_page_that_comes_after_giving_up_is_taken_all_the_same() -> None:
    cursor = given_up(4, 9)
    assert cursor.expects(page(4, to=6, newest=9))
    assert cursor.advance(page(4, to=6, newest=9)) is None
    assert (place(cursor), cursor.has_given_up, cursor.ask(PATIENCE)) == ((6, True), False, 6)


def test_what_is_lost_without_an_answer_is_told_from_where_the_forgotten_ended() -> None:
    cursor = heard(0, 20)
    cursor.ask(0.0)
    cursor.advance(page(0, to=3, newest=20, evicted=6))
    cursor.ask(0.0)
    cursor.ask(PATIENCE)
    assert cursor.lost_before(9) == Gap(after=6, upto=9, reason="its source did not answer")


def test_what_is_lost_without_an_answer_is_not_told_where_the_forgotten_covers_it() -> None:
    cursor = heard(0, 20)
    cursor.ask(0.0)
    cursor.advance(page(0, to=3, newest=20, evicted=9))
    cursor.ask(0.0)
    cursor.ask(PATIENCE)
    assert cursor.lost_before(9) is None
    assert place(cursor) == (9, True)


def test_what_is_missing_of_a_source_that_leaves_is_lost() -> None:
    cursor = heard(4, 9)
    assert cursor.leave(0) == [Gap(after=4, upto=9, reason="its source has left")]
    assert place(cursor) == (9, False)


def test_what_was_given_up_is_lost_when_its_source_leaves_as_well() -> None:
    cursor = given_up(4, 9)
    assert cursor.leave(0) == [Gap(after=4, upto=9, reason="its source has left")]
    assert (place(cursor), cursor.has_given_up) == ((9, False), False)


def test_nothing_is_lost_when_a_source_leaves_of_which_nothing_is_missing() -> None:
    cursor = Cursor(4)
    assert cursor.leave(0) == []
    assert place(cursor) == (4, False)


def test_a_source_that_leaves_after_a_beacon_has_vouched_for_it_loses_nothing() -> None:
    cursor = heard(4, 20)
    cursor.take(4, 4, has_room=True)
    assert cursor.leave(0) == []
    assert place(cursor) == (4, False)


def test_a_source_that_leaves_twice_loses_it_once() -> None:
    cursor = heard(4, 9)
    cursor.leave(0)
    assert cursor.leave(0) == []


def test_what_a_source_sent_before_it_left_is_not_handed_over_once_it_is_lost() -> None:
    cursor = heard(4, 9)
    cursor.leave(0)
    assert cursor.take(4, 7, has_room=True) == 9
    assert cursor.take(7, 12, has_room=True) == 9
    assert place(cursor) == (12, False)


def test_a_source_that_comes_back_goes_on_behind_what_was_lost() -> None:
    cursor = heard(4, 9)
    cursor.leave(0)
    assert cursor.take(11, 12, has_room=True) is None
    assert cursor.ask(0.0) == 9


def vouched(last: int, clear: int) -> Cursor:
    """One that stands at `last` when its source had been heard of up to `clear`."""
    cursor = Cursor(last)
    cursor.clear = clear
    return cursor


def test_of_what_nothing_vouched_for_it_is_unknown_whether_it_matched() -> None:
    assert vouched(4, 6).leave(9) == [Gap(6, 9, UNKNOWN)]


def test_nothing_is_unknown_of_a_source_that_was_vouched_for_to_its_end() -> None:
    assert vouched(4, 9).leave(9) == []


def test_what_is_lost_for_certain_is_told_before_what_is_unknown() -> None:
    cursor = heard(4, 7)
    assert cursor.leave(9) == [Gap(4, 7, LEFT), Gap(7, 9, UNKNOWN)]
    assert cursor.leave(9) == []
    assert cursor.leave(12) == [Gap(9, 12, UNKNOWN)]


def test_what_was_unknown_is_pulled_if_its_source_comes_back() -> None:
    cursor = vouched(4, 6)
    cursor.leave(9)
    assert cursor.take(9, 12, has_room=True) is None
    assert cursor.ask(0.0) == 6
    assert cursor.advance(page(6, 12, 12, evicted=8)) == Gap(6, 8, EVICTED)


# A source that takes back what it said.


def test_a_source_that_takes_back_what_it_said_is_followed_from_where_it_says_it_is() -> None:
    cursor = Cursor(4)
    assert cursor.take(4, 4, has_room=True) == 4
    assert cursor.go_on(4, 2**62)
    assert cursor.go_back(6) == Gap(4, 2**62, WENT_BACK)
    assert place(cursor) == (6, False)
    assert cursor.go_on(6, 7)


def test_what_was_taken_for_a_repetition_before_it_was_taken_back_is_in_the_gap() -> None:
    cursor = Cursor(100)
    cursor.take(100, 100, has_room=True)
    assert cursor.take(60, 61, has_room=True) == 100
    assert cursor.take(61, 62, has_room=True) == 100
    assert cursor.go_back(62) == Gap(60, 100, WENT_BACK)


def test_who_was_misled_about_what_is_missing_goes_on_catching_up_with_the_rest() -> None:
    cursor = heard(4, 2**62)
    assert cursor.go_back(9) is None
    assert (place(cursor), cursor.ask(0.0)) == ((4, True), 4)
    cursor.advance(page(4, 9, 9))
    assert place(cursor) == (9, False)


def test_who_has_all_that_is_left_is_live_again() -> None:
    cursor = heard(4, 2**62)
    assert cursor.go_back(4) is None
    assert place(cursor) == (4, False)


def test_a_gap_that_was_told_up_to_a_number_that_is_taken_back_hides_no_other() -> None:
    cursor = heard(4, 2**62)
    cursor.ask(0.0)
    cursor.advance(page(4, 5, 2**62, evicted=2**62))
    assert cursor.go_back(9) == Gap(0, 2**62, WENT_BACK)
    cursor.hear(20)
    assert cursor.leave(0) == [Gap(9, 20, LEFT)]


@pytest.mark.parametrize("seq", [9, 10, 2**62])
def test_who_has_no_more_than_its_source_says_is_not_moved(seq: int) -> None:
    cursor = vouched(9, 9)
    assert cursor.go_back(seq) is None
    assert (place(cursor), cursor.clear) == ((9, False), 9)


# Beginning in the past.


def test_who_begins_in_the_past_is_behind_and_asks_for_that() -> None:
    cursor = Cursor(since="last")
    assert cursor.behind
    assert (cursor.ask(0.0), cursor.since) == (0, "last")


@pytest.mark.parametrize(("prev", "newest"), [(0, 0), (0, 3), (5, 9)])
def test_no_frame_is_handed_over_before_it_is_known_where_it_begins(prev: int, newest: int) -> None:
    cursor = Cursor(since=1.5)
    assert cursor.take(prev, newest, has_room=True) is None
    assert cursor.behind


def test_the_first_page_says_where_it_begins_and_nothing_before_is_lost() -> None:
    cursor = Cursor(since=1.5)
    cursor.ask(0.0)
    first = page(40, 60, 80, evicted=40)
    assert cursor.expects(first)
    assert cursor.advance(first) is None
    assert (place(cursor), cursor.since, cursor.upto) == ((60, True), None, 0)


def test_of_what_was_forgotten_when_it_began_nothing_is_lost_and_older_events_are_handed_over() -> (
    None
):
    """Of several types, one may hold older events than another has forgotten."""
    cursor = Cursor(since="last")
    cursor.ask(0.0)
    assert cursor.advance(page(0, 20, 80, evicted=60)) is None
    assert cursor.advance(page(20, 40, 80, evicted=60)) is None
    assert cursor.advance(page(40, 70, 80, evicted=65)) == Gap(40, 65, EVICTED)


def test_of_the_past_that_is_lost_which_history_still_held_when_its_source_left() -> None:
    """Of several types, one had forgotten more than what the other still had to tell."""
    cursor = Cursor(since="last")
    cursor.ask(0.0)
    cursor.advance(page(0, 20, 80, evicted=60))
    assert cursor.leave(0) == [Gap(20, 80, LEFT)]


def test_what_is_forgotten_after_it_began_is_a_gap() -> None:
    cursor = Cursor(since=1.5)
    cursor.ask(0.0)
    cursor.advance(page(40, 60, 80, evicted=40))
    assert cursor.advance(page(60, 80, 80, evicted=70)) == Gap(60, 70, EVICTED)


def test_only_the_last_are_wanted_up_to_where_the_source_was_and_all_after_that() -> None:
    cursor = Cursor(since="last")
    cursor.ask(0.0)
    cursor.advance(page(0, 60, 80))
    assert cursor.upto == 80
    cursor.ask(0.0)
    assert not cursor.expects(page(60, 85, 85)), "of what came since, it would leave something out"
    cursor.advance(page(60, 80, 85))
    assert (place(cursor), cursor.upto) == ((80, True), 0)
    cursor.advance(page(80, 85, 85))
    assert place(cursor) == (85, False)


def test_a_frame_that_leads_beyond_where_only_the_last_are_wanted_ends_that() -> None:
    cursor = Cursor(since="last")
    cursor.ask(0.0)
    cursor.advance(page(0, 10, 42))
    cursor.hear(60)
    assert (cursor.ask(0.0), cursor.take(10, 50, has_room=True), cursor.upto) == (10, 10, 0)
    assert cursor.expects(page(10, 42, 60))
    cursor.advance(page(10, 42, 60))
    assert (place(cursor), cursor.upto, cursor.ask(0.0)) == ((50, True), 0, 50)


def test_of_a_page_that_was_overtaken_nothing_is_said_to_be_lost() -> None:
    cursor = heard(4, 20)
    cursor.ask(0.0)
    cursor.take(4, 12, has_room=True)
    assert cursor.advance(page(4, 9, 20, evicted=15)) is None
    assert cursor.ask(0.0) == 12
    assert cursor.advance(page(12, 20, 20, evicted=15)) == Gap(12, 15, EVICTED)


def test_a_source_that_has_published_nothing_has_no_past() -> None:
    cursor = Cursor(since="last")
    cursor.ask(0.0)
    cursor.advance(page(0, 0, 0))
    assert (place(cursor), cursor.since, cursor.upto) == ((0, False), None, 0)


def test_a_late_second_answer_to_where_it_begins_changes_nothing() -> None:
    cursor = Cursor(since="last")
    cursor.ask(0.0)
    first = page(40, 60, 80)
    cursor.advance(first)
    cursor.ask(0.0)
    assert not cursor.expects(first)


def test_a_past_that_nobody_tells_of_is_given_up_and_said_to_be_lost() -> None:
    cursor = Cursor(since=1.5)
    cursor.ask(0.0)
    assert cursor.ask(PATIENCE) is None
    assert cursor.lost_before(7) == Gap(0, 7, UNANSWERED)
    assert cursor.take(7, 9, has_room=True) == 7


def test_a_past_that_was_given_up_of_a_source_that_has_published_nothing_is_no_loss() -> None:
    cursor = Cursor(since="last")
    cursor.ask(0.0)
    cursor.ask(PATIENCE)
    assert cursor.lost_before(0) is None
    assert cursor.take(0, 1, has_room=True) == 0
    assert not cursor.behind


def test_a_source_that_leaves_before_it_told_of_its_past_has_lost_what_was_heard_of() -> None:
    cursor = Cursor(since="last")
    cursor.hear(9)
    assert cursor.leave(0) == [Gap(0, 9, LEFT)]
    assert not cursor.behind


# The model. A subscriber does what `Receiver` does, without a loop, and writes down what it was
# handed and told, in the order in which it was.


class Subscriber:
    """A sink with a bounded inbox and a cursor. It pulls pages for which at most `look` events
    are looked at.
    """

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
    publisher.publish(event)
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


# The whole machine: sources, a network that loses, and the real intake of a subscription.

ME = Who("me", 7, "ipc:///me")
MADE = 100.0
"""When the subscription is made."""


class HandClock:
    now = MADE

    def __call__(self) -> float:
        return self.now


class Box:
    """A subscription with room for few events, which writes down what it is handed and told."""

    def __init__(self, room: int) -> None:
        self.vacancy = self.maxsize = room
        self.room = room
        self.is_hungry = True
        self.logs: dict[str, list[int | Gap]] = defaultdict(list)

    def keep(self, batch: LazyBatch, after: int = 0) -> None:
        while batch.left:
            seqs = [event.seq for event in batch.take() if event.seq > after]
            self.vacancy -= len(seqs)
            self.logs[batch.rows.source].extend(seqs)
        assert batch.error is None

    def lose(self, source: Source, gap: Gap) -> None:
        self.logs[source[0]].append(gap)

    def fall_behind(self) -> None:
        pass

    def note_idle(self) -> None:
        pass

    def read(self, count: int) -> None:
        self.vacancy = min(self.room, self.vacancy + count)


@dataclass
class Scene:
    """Who subscribes to what, and how it looks into history. `is_orderly`: what arrives on a link
    arrives in order, as a network has to see to.
    """

    query: Query
    limits: Limits
    room: int
    look: int = PAGE_LOOK
    is_orderly: bool = True
    ages: tuple[float, ...] = (1.0,)
    """Of each source, when the subscription is made: one below zero comes later."""


class Desk:
    """A source, and its link down to the subscriber: what is on the way is in `link`."""

    def __init__(self, name: str, scene: Scene, started: float) -> None:
        self.scene = scene
        self.publisher = Publisher(name, scene.limits)
        self.source = (name, 0)
        self.started = started
        self.link: list[bytes] = []
        self.questions: list[PageAsk] = []
        self.joining: list[Stream] = []
        self.stream: Stream | None = None
        self.wanted: list[int] = []
        """The seqs that the query matches."""
        self.has_left = False
        self.has_answered = False
        """The subscriber has its answer, so it knows how old it is."""
        self.begin: int | None = None
        """After which seq the subscriber is owed all of `wanted`, once it has heard of it."""
        self.heard = 0
        """The highest seq that the subscriber has heard of."""

    def publish(self, type: str, key: str) -> None:
        event = publish(self.publisher, type, key, 0)
        if self.scene.query.matches(type, key):
            self.wanted.append(event.seq)

    def end_tick(self) -> None:
        for stream in self.joining:
            stream.end_tick()
        self.joining.clear()

    def connect(self) -> None:
        if self.stream is None:
            topic = wire.topic(self.scene.query.text)
            self.stream = Stream(
                self.scene.query,
                topic,
                self.source,
                self.publisher.seq,
                self.link.append,
                self.joining.append,
            )
            self.publisher.attach(self.stream)
            self.answer()

    def cut(self) -> None:
        """The link breaks: the stream is withdrawn, questions are gone. What has arrived already
        can still be read.
        """
        if self.stream is not None:
            self.publisher.detach(self.stream)
            self.stream = None
            self.joining.clear()
            self.questions.clear()

    def answer(self) -> None:
        if self.stream is not None:
            self.stream.flush()
            who = Who(self.publisher.name, 0, "ipc:///desk")
            answer = Answer(1, who, 0.0, self.publisher.seq, is_open=True)
            self.link.append(wire.answer(ME, answer))

    def mark(self) -> None:
        if self.stream is not None:
            self.stream.flush()
            who = Who(self.publisher.name, 0, "ipc:///desk")
            mark = Mark(1, who, ((self.scene.query.text, self.stream.sent),))
            self.link.append(wire.mark(ME, mark))

    def beacon(self) -> None:
        if self.stream is not None:
            self.stream.beacon()

    def serve(self) -> None:
        for asked in self.questions:
            assert self.stream is not None
            self.stream.flush()
            want = Want(asked.after, asked.since, asked.upto)
            page = self.publisher.history.answer(
                self.scene.query, want, asked.limit, self.scene.look
            )
            rows = [row for _, _, row in page.rows]
            where = (page.after, page.evicted, page.to, page.newest, page.reached)
            self.link.append(wire.page(ME, asked.nonce, *self.source, *where, rows))
        self.questions.clear()


class Lossy:
    """A run of the machine in virtual time, a move for each byte: any bytes are a run."""

    def __init__(self, scene: Scene, clock: HandClock) -> None:
        self.scene = scene
        self.clock = clock
        self.box = Box(scene.room)
        self.desks = [
            Desk(f"desk-{place}", scene, MADE - age) for place, age in enumerate(scene.ages)
        ]
        self.intake = Intake(scene.query, self.box, self)  # type: ignore[arg-type]

    def ask(self, inlet: Inlet, source: Source, want: Want, limit: int) -> None:
        """What the intake asks of its transport."""
        (desk,) = [desk for desk in self.desks if desk.source == source]
        if desk.stream is not None:
            text = self.scene.query.text
            what = (text, want.after, limit, want.since, want.upto)
            desk.questions.append(PageAsk(source[0], 1, ME, source[1], *what))

    def run(self, moves: bytes) -> None:
        for move in moves:
            way, number = MOVES[move % len(MOVES)], move // len(MOVES)
            way(self, self.desks[number % len(self.desks)], number // 2)

    # Moves: each with a desk and a number from 0 to 7.

    def publish(self, desk: Desk, number: int) -> None:
        desk.publish("ABC"[number % 3], "xy"[number % 2])

    def burst(self, desk: Desk, number: int) -> None:
        for each in range(4 + number):
            desk.publish("ABC"[each % 3], "xy"[number % 2])

    def end_tick(self, desk: Desk, number: int) -> None:
        desk.end_tick()

    def say(self, desk: Desk, number: int) -> None:
        (desk.beacon if number < 5 else desk.mark)()

    def arrive(self, desk: Desk, number: int) -> None:
        messages = desk.link[: number + 1]
        del desk.link[: number + 1]
        for message in messages:
            self.hear(desk, message)

    def hear(self, desk: Desk, message: bytes) -> None:
        started = desk.started if desk.has_answered else None
        match said := wire.read_down(message, ME):
            case Frame():
                self.note(desk, said.prev, said.newest)
                self.intake.take(said, started)
            case Answer():
                self.note(desk, said.seq, said.seq)
                desk.has_answered = True
                self.intake.meet(desk.source, said.seq, desk.started)
            case PageAnswer():
                page = Page(said.after, said.evicted, said.to, said.newest, [])
                self.intake.turn(desk.source, page, said.rows)
            case Mark():
                ((_, seq),) = said.streams
                if self.intake.has(desk.source, seq, started):
                    assert self.silently_lost(desk, seq) == []

    def note(self, desk: Desk, place: int, newest: int) -> None:
        """What is heard first says after which seq the subscriber is owed everything."""
        if desk.begin is None:
            desk.begin = 0 if desk.started > MADE else place
        desk.heard = max(desk.heard, newest)

    def serve(self, desk: Desk, number: int) -> None:
        desk.serve()

    def lose(self, desk: Desk, number: int) -> None:
        if number == 7:
            desk.questions.clear()
        del desk.link[: number + 1]

    def double(self, desk: Desk, number: int) -> None:
        if desk.link:
            place = number % len(desk.link)
            desk.link.insert(place, desk.link[place])

    def disorder(self, desk: Desk, number: int) -> None:
        if desk.link and not self.scene.is_orderly:
            desk.link.append(desk.link[number % len(desk.link)])
            if number % 2:
                del desk.link[number % len(desk.link)]

    def cut(self, desk: Desk, number: int) -> None:
        if number < 2:
            del desk.link[number:]
        if number < 4:
            desk.cut()

    def leave(self, desk: Desk, number: int) -> None:
        """It has not come back since it was cut off. Where things may arrive late, a frame may have
        made the cursor live that others had gone before: the next would have shown it.
        """
        if desk.stream is None and self.scene.is_orderly:
            desk.has_left = True
            self.intake.leave(desk.source, 0)
            if not desk.has_answered and not self.box.logs[desk.source[0]]:
                desk.begin = None  # nothing was ever said of it, so it is met anew
            assert self.silently_lost(desk, desk.heard) == []
            assert desk.source not in self.intake.behind

    def connect(self, desk: Desk, number: int) -> None:
        desk.connect()

    def read(self, desk: Desk, number: int) -> None:
        self.box.read(number + 1)
        self.intake.pull()

    def wait(self, desk: Desk, number: int) -> None:
        self.clock.now += (0.1, 0.5, 1.0, 1.0, 1.0, 2.0, 5.0, PATIENCE)[number]
        self.intake.tick(())
        for each in self.desks:
            if not each.has_answered:
                each.answer()

    def heal(self) -> None:
        """Everybody is connected, nothing is lost any more, and all is read."""
        self.box.read(self.scene.room)
        for _ in range(100):
            self.clock.now += 1.0
            self.intake.tick(())
            for desk in self.desks:
                desk.connect()
                desk.end_tick()
                if not desk.has_answered:
                    desk.answer()
                desk.beacon()
                desk.serve()
                while desk.link:
                    self.arrive(desk, 0)
                    desk.serve()
                    self.read(desk, self.scene.room)
            if not self.intake.behind and all(desk.has_answered for desk in self.desks):
                break

    # What came of it.

    def log(self, desk: Desk) -> list[int | Gap]:
        return self.box.logs[desk.publisher.name]

    def seen(self, desk: Desk) -> list[int]:
        return [entry for entry in self.log(desk) if isinstance(entry, int)]

    def gaps(self, desk: Desk) -> list[Gap]:
        return [entry for entry in self.log(desk) if isinstance(entry, Gap)]

    def owed(self, desk: Desk, upto: int) -> list[int]:
        return [] if desk.begin is None else [s for s in desk.wanted if desk.begin < s <= upto]

    def silently_lost(self, desk: Desk, upto: int) -> list[int]:
        missing = set(self.owed(desk, upto)) - set(self.seen(desk))
        return [seq for seq in sorted(missing) if not is_in_a_gap(seq, self.gaps(desk))]

    def check(self) -> None:
        """What holds after every run, for each source."""
        assert set(self.intake.behind) == set()
        for desk in self.desks:
            seen, newest = self.seen(desk), desk.publisher.seq
            assert self.silently_lost(desk, newest) == []
            assert seen == sorted(set(seen) & set(self.owed(desk, newest)))
            handed_over = told = 0
            for entry in self.log(desk):
                if isinstance(entry, int):
                    handed_over = entry
                else:
                    assert max(handed_over, told) <= entry.after < entry.upto <= newest
                    assert self.is_true(desk, entry)
                    told = entry.upto

    def is_true(self, desk: Desk, gap: Gap) -> bool:
        """What it says of why the events are lost."""
        if gap.reason == "its source has left":
            return desk.has_left
        if gap.reason == "its source did not answer":
            return self.clock.now >= MADE + PATIENCE
        return gap.upto <= desk.publisher.history.evicted(self.scene.query)


MOVES = [
    *(Lossy.end_tick, Lossy.publish, Lossy.publish, Lossy.publish, Lossy.burst, Lossy.say),
    *(Lossy.arrive, Lossy.arrive, Lossy.arrive, Lossy.serve, Lossy.lose, Lossy.double),
    *(Lossy.disorder, Lossy.cut, Lossy.connect, Lossy.leave, Lossy.read, Lossy.wait),
]


scenes = st.builds(
    Scene,
    query=queries,
    limits=st.builds(Limits, history_events=st.sampled_from([1, 2, 5, 20, 1000])),
    room=st.integers(1, 8),
    look=st.sampled_from([2, 5, PAGE_LOOK]),
    is_orderly=st.booleans(),
    ages=st.sampled_from([(1.0,), (-1.0,), (1.0, -1.0), (1.0, 1.0)]),
)


@given(scenes, st.binary(min_size=120, max_size=240))
@settings(max_examples=500, deadline=None)
def test_over_a_lossy_network_an_event_arrives_once_in_order_or_its_loss_is_said(
    scene: Scene, moves: bytes
) -> None:
    clock = HandClock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intake, "elapsed", clock)
        it = Lossy(scene, clock)
        it.run(moves)
        it.heal()
    it.check()
