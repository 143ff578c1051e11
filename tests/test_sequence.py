"""Where a cursor stands, and what it says is lost. What comes of it is for test_machine.py."""

import pytest

from aiobus.history import Page
from aiobus.sequence import (
    EVICTED,
    FORKED,
    LEFT,
    MAX_MET,
    PATIENCE,
    RETRY,
    UNANSWERED,
    UNKNOWN,
    WENT_BACK,
    Cursor,
    Gap,
)


def page(after: int, to: int, newest: int, evicted: int = 0) -> Page:
    return Page(after=after, evicted=evicted, to=to, newest=newest, rows=[])


def test_falling_behind_keeps_the_place_before_the_first_event_without_room() -> None:
    cursor = Cursor()
    cursor.start_lagging(5)
    assert (cursor.last, cursor.behind) == (4, True)


# Frames of another process.


def place(cursor: Cursor) -> tuple[int, bool]:
    return cursor.last, cursor.behind


def heard(last: int, seq: int) -> Cursor:
    """A cursor at `last` whose source says that it is at `seq`."""
    cursor = Cursor(last)
    cursor.hear(seq)
    return cursor


def given_up(last: int, seq: int) -> Cursor:
    """The same, after no source has answered for as long as it is patient."""
    cursor = heard(last, seq)
    cursor.ask(0.0)
    cursor.ask(PATIENCE)
    assert cursor.has_timed_out
    return cursor


def test_what_is_missing_is_counted_up_to_the_last_that_was_heard_of() -> None:
    cursor = Cursor(5)
    assert cursor.missing == 0
    cursor.hear(9)
    assert cursor.missing == 4
    for now in (0.0, PATIENCE):
        cursor.ask(now)
    assert (cursor.has_timed_out, cursor.missing) == (True, 0)


def test_of_who_does_not_know_yet_where_it_begins_nothing_counts_as_missing() -> None:
    cursor = Cursor(since="last")
    cursor.hear(1_000_000)
    assert cursor.missing == 0


@pytest.mark.parametrize("has_room", [True, False])
def test_a_frame_that_comes_twice_brings_nothing_new_and_needs_no_room(has_room: bool) -> None:
    cursor = Cursor(9)
    assert cursor.take(4, 9, has_room) == 9
    assert place(cursor) == (9, False)


def test_a_frame_without_room_is_left() -> None:
    cursor = Cursor(4)
    assert cursor.take(4, 9, has_room=False) is None
    assert place(cursor) == (4, True)


@pytest.mark.parametrize("seq", [4, 9])
@pytest.mark.parametrize("has_room", [True, False])
def test_a_beacon_of_where_it_stands_leaves_it_live(has_room: bool, seq: int) -> None:
    cursor = heard(4, seq)
    assert cursor.take(4, 4, has_room) == 4
    assert place(cursor) == (4, False)


def test_a_page_that_leads_nowhere_does_not_let_it_ask_again_at_once() -> None:
    cursor = heard(4, 9)
    cursor.ask(0.0)
    cursor.advance(page(4, to=4, newest=9))
    assert [cursor.ask(0.0), cursor.ask(RETRY)] == [None, 4]


# Asking.


def test_it_asks_until_its_patience_is_over_and_then_no_more() -> None:
    cursor = heard(4, 9)
    asked = [cursor.ask(float(second)) for second in range(20)]
    assert asked == [4] * int(PATIENCE / RETRY) + [None] * 10
    assert (cursor.has_timed_out, place(cursor)) == (True, (4, True))
    assert not cursor.is_due(1000.0)


def test_a_page_that_leads_on_renews_its_patience() -> None:
    cursor = heard(4, 9)
    cursor.ask(0.0)
    cursor.advance(page(4, to=6, newest=9))
    assert [cursor.ask(9.0), cursor.ask(9.0 + PATIENCE - 0.5), cursor.has_timed_out] == [
        6,
        6,
        False,
    ]
    assert [cursor.ask(9.0 + PATIENCE), cursor.has_timed_out] == [None, True]


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
    assert not cursor.is_due(RETRY)
    cursor.hear(12)
    assert [cursor.ask(0.0), cursor.ask(PATIENCE - 0.5), cursor.has_timed_out] == [9, 9, False]


# Which pages count.


def test_no_page_is_expected_while_none_was_asked_for() -> None:
    assert not heard(0, 9).expects(page(0, to=9, newest=9))
    assert not Cursor(4).expects(page(4, to=9, newest=9))


def test_the_same_page_is_not_expected_twice() -> None:
    cursor = heard(4, 9)
    cursor.ask(0.0)
    cursor.advance(page(4, to=6, newest=9))
    cursor.ask(0.0)
    assert not cursor.expects(page(4, to=6, newest=9))


def test_nothing_is_missing_of_what_its_source_has_not_sent() -> None:
    cursor = heard(5, 9)
    cursor.skip(5, 9)
    assert place(cursor) == (9, False)
    assert cursor.advance(page(9, 12, 12, evicted=9)) is None


@pytest.mark.parametrize(("last", "upto"), [(4, 9), (12, 9)])
def test_who_has_less_than_its_source_has_sent_or_more_is_not_moved(last: int, upto: int) -> None:
    cursor = heard(last, 20)
    cursor.skip(5, upto)
    assert place(cursor) == (last, True)


def test_who_does_not_know_yet_where_it_begins_is_not_moved() -> None:
    cursor = Cursor(since="last")
    cursor.skip(0, 9)
    assert (cursor.last, cursor.since) == (0, "last")


def test_after_giving_up_the_next_frame_ends_what_is_missing_and_that_is_lost() -> None:
    cursor = given_up(4, 9)
    assert cursor.lost_before(9) == Gap(after=4, upto=9, reason="its source did not answer")
    assert (place(cursor), cursor.has_timed_out) == ((9, False), False)
    assert cursor.take(9, 12, has_room=True) == 9


# Giving up, and the source leaving.


def test_after_giving_up_a_frame_does_not_end_what_is_missing_behind_it() -> None:
    """It may be of before, left unread, and read when its source is dead."""
    cursor = given_up(4, 20)
    assert cursor.lost_before(9) == Gap(4, 9, UNANSWERED)
    assert cursor.take(9, 12, has_room=True) == 9
    assert (place(cursor), cursor.has_timed_out, cursor.ask(PATIENCE)) == ((12, True), False, 12)
    assert cursor.leave(0) == [Gap(12, 20, LEFT)]


@pytest.mark.parametrize("prev", [3, 4])
def test_after_giving_up_a_frame_that_goes_on_where_it_stands_ends_nothing(prev: int) -> None:
    cursor = given_up(4, 20)
    assert cursor.lost_before(prev) is None
    assert cursor.take(prev, 12, has_room=True) == 4
    assert (place(cursor), cursor.has_timed_out) == ((12, True), False)
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
    assert (place(cursor), cursor.has_timed_out, cursor.ask(PATIENCE)) == ((6, True), False, 6)


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


def test_a_beacon_at_a_number_that_is_taken_back_does_not_say_what_is_there() -> None:
    cursor = Cursor(4)
    cursor.take(4, 4, has_room=True)
    assert cursor.go_on(4, 2**62)
    for _ in range(2):
        cursor.take(2**62, 2**62, has_room=True)
    assert cursor.take(7, 9, has_room=True) == 2**62
    assert cursor.go_back(9) == Gap(4, 2**62, WENT_BACK), "5 to 9 were taken for repetitions"
    assert cursor.go_on(9, 10)


def test_if_both_of_the_last_beacons_are_taken_back_all_may_be_lost() -> None:
    cursor = Cursor(4)
    cursor.take(4, 4, has_room=True)
    for end in (2**61, 2**62):
        assert cursor.go_on(cursor.last, end)
        cursor.take(end, end, has_room=True)
    assert cursor.go_back(9) == Gap(0, 2**62, WENT_BACK)


def test_of_a_beginning_that_is_taken_back_all_may_be_lost() -> None:
    assert Cursor(2**62).go_back(9) == Gap(0, 2**62, WENT_BACK)


def test_what_was_told_when_a_source_went_back_is_not_told_again_when_it_goes_back_once_more() -> (
    None
):
    cursor = Cursor(4)
    assert cursor.go_on(4, 2**61)
    assert cursor.go_back(9) == Gap(4, 2**61, WENT_BACK)
    assert cursor.go_on(9, 2**62)
    assert cursor.go_back(12) == Gap(9, 2**62, WENT_BACK)
    assert cursor.go_on(12, 2**61)
    assert cursor.go_back(10) == Gap(9, 2**61, WENT_BACK)


def test_what_was_taken_for_a_repetition_before_it_was_taken_back_is_in_the_gap() -> None:
    cursor = Cursor(40)
    cursor.take(40, 40, has_room=True)
    assert cursor.go_on(40, 100)
    cursor.take(100, 100, has_room=True)
    assert cursor.take(60, 61, has_room=True) == 100
    assert cursor.take(61, 62, has_room=True) == 100
    assert cursor.go_back(62) == Gap(40, 100, WENT_BACK), "what was said at 100 counts for nothing"


def test_what_was_sure_is_so_only_up_to_where_its_source_has_begun_again() -> None:
    cursor = Cursor(100)
    cursor.take(100, 100, has_room=True)
    cursor.take(30, 31, has_room=True)
    assert cursor.go_on(100, 110)
    assert cursor.go_back(105) == Gap(30, 110, WENT_BACK)


def test_who_has_all_that_is_left_is_live_again() -> None:
    cursor = heard(4, 2**62)
    assert cursor.go_back(4) is None
    assert place(cursor) == (4, False)


def test_a_gap_that_was_told_up_to_a_number_that_is_taken_back_hides_no_other() -> None:
    cursor = heard(4, 2**62)
    cursor.ask(0.0)
    cursor.advance(page(4, 5, 2**62, evicted=2**62))
    assert cursor.go_back(9) == Gap(4, 2**62, WENT_BACK)
    cursor.hear(20)
    assert cursor.leave(0) == [Gap(9, 20, LEFT)]


def test_a_past_that_began_with_numbers_that_are_taken_back_hides_no_loss_and_ends_there() -> None:
    cursor = Cursor(since="last")
    cursor.ask(0.0)
    cursor.advance(page(0, 5, 2**62, evicted=2**62))
    cursor.go_back(9)
    assert cursor.upto == 9
    assert cursor.advance(page(5, 20, 20, evicted=15)) == Gap(5, 15, EVICTED)


def test_a_source_that_takes_back_all_is_still_asked_where_the_past_begins() -> None:
    cursor = Cursor(since=1.5)
    cursor.go_back(0)
    assert (cursor.since, cursor.behind) == (1.5, True)


@pytest.mark.parametrize("seq", [9, 10, 2**62])
def test_who_has_no_more_than_its_source_says_is_not_moved(seq: int) -> None:
    cursor = vouched(9, 9)
    assert cursor.go_back(seq) is None
    assert (place(cursor), cursor.clear) == ((9, False), 9)


# Beginning in the past.


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
    assert (cursor.leave(0), cursor.upto) == ([Gap(20, 80, LEFT)], 0)


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


def test_a_past_that_was_given_up_of_a_source_that_has_published_nothing_is_no_loss() -> None:
    cursor = Cursor(since="last")
    cursor.ask(0.0)
    cursor.ask(PATIENCE)
    assert cursor.lost_before(0) is None
    assert cursor.take(0, 1, has_room=True) == 0
    assert not cursor.behind


def test_a_past_that_was_given_up_goes_on_with_the_last_alone_after_a_frame_where_it_stands() -> (
    None
):
    cursor = Cursor(since="last")
    cursor.ask(0.0)
    cursor.advance(page(0, 60, 80))
    cursor.ask(0.0)
    cursor.ask(PATIENCE)
    assert (cursor.lost_before(60), cursor.upto) == (None, 80)


# Fine rules, each of which something would go on without.


@pytest.mark.parametrize(("to", "gap"), [(9, Gap(9, 15, EVICTED)), (8, None)])
def test_a_page_that_ends_where_a_frame_has_led_or_later_tells_what_is_lost_behind_it(
    to: int, gap: Gap | None
) -> None:
    cursor = heard(4, 20)
    cursor.ask(0.0)
    cursor.take(4, 9, has_room=True)
    assert cursor.advance(page(4, to, 20, evicted=15)) == gap


def test_a_number_that_was_said_to_be_unknown_and_taken_back_hides_none_that_is_unknown_later() -> (
    None
):
    cursor = Cursor(4)
    assert cursor.leave(9) == [Gap(4, 9, UNKNOWN)]
    cursor.go_back(6)
    assert cursor.leave(8) == [Gap(6, 8, UNKNOWN)]


def test_a_source_that_was_given_up_and_takes_back_what_it_said_is_asked_again() -> None:
    cursor = given_up(4, 9)
    cursor.go_back(6)
    assert cursor.ask(1000.0) == 4


def test_a_source_that_leaves_before_the_newest_of_each_key_are_read_leaves_no_bound() -> None:
    """Else it would be asked up to there for ever once it is back."""
    cursor = Cursor(since="last")
    cursor.ask(0.0)
    cursor.advance(Page(0, 0, 5, 20, []))
    assert cursor.upto == 20
    cursor.leave(20)
    assert (cursor.last, cursor.upto) == (20, 0)


# Starts of a source that has a journal: `{0: 0, 1: 40}` are the numbers of its starts, and above
# which seq each publishes. A copy of the journal has another number above which its start 1 does.


def moved(cursor: Cursor, to: int) -> Cursor:
    """All up to `to` was handed over."""
    assert cursor.take(cursor.last, to, has_room=True) is not None
    return cursor


@pytest.mark.parametrize("missed", [0, 1, 2, 63, 64, 200])
def test_starts_that_were_missed_are_no_gap(missed: int) -> None:
    cursor = moved(Cursor(), 9)
    starts = {number: 10 * number for number in range(missed + 2)}
    told = dict([*starts.items()][-64:])
    assert cursor.enter((0, 0), told) is None
    assert place(cursor) == (9, False)


def test_a_start_that_the_journal_does_not_have_is_a_gap_from_where_its_copy_was_met() -> None:
    cursor = moved(Cursor(), 9)
    assert cursor.enter((0, 0), {0: 0, 1: 50}) is None
    moved(cursor, 60)
    assert cursor.enter((1, 50), {0: 0, 1: 40, 2: 90}) == Gap(9, 60, FORKED)
    assert place(cursor) == (60, False), "it goes on above"
    moved(cursor, 100)
    assert cursor.enter((2, 90), {0: 0, 1: 40, 2: 90, 3: 110}) is None


def test_it_does_not_matter_how_many_starts_of_a_copy_were_met() -> None:
    cursor = moved(Cursor(), 9)
    assert cursor.enter((0, 0), {0: 0, 1: 50}) is None
    assert moved(cursor, 60).enter((1, 50), {0: 0, 1: 50, 2: 70}) is None
    assert moved(cursor, 80).enter((2, 70), {0: 0, 1: 50, 2: 70, 3: 85}) is None
    assert moved(cursor, 88).enter((3, 85), {0: 0, 1: 40, 2: 95}) == Gap(9, 88, FORKED)


def test_each_copy_that_was_met_is_a_gap_once() -> None:
    cursor = moved(Cursor(), 9)
    assert cursor.enter((0, 0), {0: 0, 1: 50}) is None
    assert moved(cursor, 60).enter((1, 50), {0: 0, 1: 40, 2: 90}) == Gap(9, 60, FORKED)
    assert moved(cursor, 95).enter((2, 90), {0: 0, 1: 40, 2: 97}) == Gap(60, 95, FORKED)
    assert cursor.enter((2, 97), {0: 0, 1: 40, 2: 97, 3: 99}) is None


def test_what_both_copies_have_is_in_no_gap() -> None:
    cursor = heard(3, 45)
    assert cursor.enter((1, 40), {0: 0, 1: 40, 2: 50}) is None
    cursor.enter((2, 50), {0: 0, 1: 40, 2: 50, 3: 55})
    cursor.ask(0.0)
    cursor.advance(page(3, 60, 60))
    assert cursor.enter((3, 55), {0: 0, 1: 40, 2: 48, 3: 90}) == Gap(40, 60, FORKED)


def test_a_subscription_that_began_with_a_copy_has_a_gap_from_where_it_began() -> None:
    cursor = moved(Cursor(55), 60)
    assert cursor.enter((1, 50), {0: 0, 1: 40, 2: 90}) == Gap(55, 60, FORKED)
    late = moved(Cursor(), 0)
    assert late.enter((1, 50), {0: 0, 1: 40, 2: 90}) is None, "nothing was handed over"


def test_a_subscription_that_began_in_the_past_has_a_gap_from_there() -> None:
    cursor = Cursor(since=1.0)
    cursor.ask(0.0)
    cursor.advance(page(30, 60, 60))
    assert cursor.enter((1, 50), {0: 0, 1: 40, 2: 90}) == Gap(30, 60, FORKED)


def test_a_start_with_a_lower_number_is_of_another_copy() -> None:
    cursor = moved(Cursor(), 60)
    assert cursor.enter((5, 50), {3: 35, 4: 90}) == Gap(0, 60, FORKED)


def test_of_more_starts_than_are_kept_a_gap_begins_no_later_than_where_the_copy_was_met() -> None:
    cursor = moved(Cursor(), 9)
    copy, known = {0: 0}, (0, 0)
    for number in range(1, 2 * MAX_MET):
        copy[number] = 10 * number + 5
        assert cursor.enter(known, dict([*copy.items()][-64:])) is None
        known = number, copy[number]
        moved(cursor, 10 * number + 9)
    gap = cursor.enter(known, {0: 0, 1: 11, 2: 5_000})
    assert gap == Gap(0, 10 * (2 * MAX_MET - 1) + 9, FORKED)


def test_what_a_copy_vouched_for_beyond_its_events_counts_for_nothing() -> None:
    cursor = moved(Cursor(), 60)
    cursor.clear = 80
    assert cursor.enter((1, 50), {0: 0, 1: 40, 2: 90}) == Gap(0, 60, FORKED)
    cursor.hear(95)
    assert cursor.leave(95) == [Gap(60, 95, LEFT)]


def test_a_place_that_its_source_took_back_is_not_where_a_copy_was_met() -> None:
    cursor = moved(Cursor(), 60)
    assert cursor.enter((0, 0), {0: 0, 1: 20}) is None
    cursor.go_back(30)
    moved(cursor, 80)
    assert cursor.enter((1, 20), {0: 0, 1: 10, 2: 90}) == Gap(30, 80, FORKED)
