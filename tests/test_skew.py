"""How far a clock is from another, by times that are only numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobus.mesh.skew import AGAIN, EXACT, KEPT, WINDOW, Clock, Sample, Skew

START = 1_000.0
WALL = 1_700_000_000.0
"""The Unix time of `START`."""


def sample(skew: float, *, at: float = START, there: float = 0.001, back: float = 0.001) -> Sample:
    """What is measured of a clock that is `skew` seconds ahead, by a question that takes `there`
    seconds, and its answer `back`.
    """
    read = at + there + back
    clock = WALL - START + at + there + skew
    return Sample.of(clock, at, read, WALL - START + read)


def skewed(skew: float, *, at: float = START) -> Skew:
    """A clock that was measured to be so far ahead."""
    found = Skew()
    found.add(sample(skew, at=at))
    return found


@given(skew=st.floats(-1e6, 1e6), there=st.floats(0, 30, width=32), back=st.floats(0, 30, width=32))
def test_the_skew_is_within_its_error_however_long_each_way_took(
    skew: float, there: float, back: float
) -> None:
    found = sample(skew, there=there, back=back)
    assert abs(found.skew - skew) <= found.error + 1e-6


def test_a_loop_that_was_blocked_makes_the_error_larger_and_no_skew() -> None:
    found = Skew()
    found.add(sample(0.0, back=5.0))
    assert found.judge(START + 5) is None
    best = found.best(START + 5)
    assert best is not None
    assert best.error == pytest.approx(2.5, abs=0.001)


def test_the_most_exact_answer_counts() -> None:
    found = Skew()
    found.add(sample(0.05, back=0.3))
    found.add(sample(0.05, at=START + 1))
    found.add(sample(0.05, at=START + 2, there=0.3))
    best = found.best(START + 3)
    assert best is not None
    assert best.error < 0.002
    assert best.skew == pytest.approx(0.05, abs=0.001)


def test_a_clock_that_is_set_is_believed_though_the_answer_is_less_exact() -> None:
    found = skewed(0.0)
    found.add(sample(2.0, at=START + 60, back=0.3))
    best = found.best(START + 61)
    assert best is not None
    assert best.skew == pytest.approx(2.0, abs=0.16)


def test_a_clock_that_drifts_is_followed() -> None:
    found, drift = Skew(), 50e-6
    for minute in range(60):
        found.add(sample(drift * minute * 60, at=START + minute * 60))
    best = found.best(START + 3_540)
    assert best is not None
    assert abs(best.skew - drift * 3_540) <= best.error < 0.005


def test_an_answer_counts_for_ten_minutes() -> None:
    found = skewed(0.5)
    assert found.best(START + WINDOW - 1) is not None
    assert found.best(START + WINDOW + 1) is None


def test_any_number_of_answers_takes_the_memory_of_a_few() -> None:
    found = Skew()
    for place in range(1_000):
        found.add(sample(0.0, at=START + place / 1_000, back=0.01 + place / 1_000))
    assert len(found._samples) == KEPT
    best = found.best(START + 1)
    assert best is not None
    assert best.error < 0.006


@pytest.mark.parametrize(("skew", "is_said"), [(0.102, True), (-0.102, True), (0.1005, False)])
def test_only_a_skew_that_is_surely_above_100_ms_is_warned_of(skew: float, is_said: bool) -> None:
    found = skewed(skew)
    assert (found.judge(START) is not None) is is_said
    assert found.is_warned is is_said


def test_a_warning_is_said_once_and_once_more_when_it_is_over() -> None:
    found = skewed(0.5)
    assert found.judge(START) is not None
    assert found.judge(START + 1) is None
    found.add(sample(0.09, at=START + 60))
    assert found.judge(START + 60) is None, "it is less than it was, and not over"
    found.add(sample(0.01, at=START + 120))
    over = found.judge(START + 120)
    assert over is not None
    assert over.skew == pytest.approx(0.01, abs=0.001)
    assert not found.is_warned


def test_a_warning_stays_while_nothing_is_known() -> None:
    found = skewed(0.5)
    found.judge(START)
    found.forget()
    assert found.best(START) is None
    assert found.judge(START) is None
    assert found.is_warned


def test_an_exact_answer_is_enough_for_a_minute() -> None:
    found = skewed(0.0)
    assert found.is_due(START)
    found.note_asked(START)
    assert not found.is_due(START + AGAIN - 1)
    assert found.is_due(START + AGAIN)


def test_a_peer_whose_answers_are_not_exact_is_asked_less_and_less_often() -> None:
    found, now, waits = Skew(), START, []
    for _ in range(8):
        found.add(sample(0.0, at=now, back=4 * EXACT))
        found.note_asked(now)
        begin = now
        while not found.is_due(now):
            now += 1
        waits.append(now - begin)
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60]


def test_a_clock_that_runs_on_is_not_taken_for_one_that_was_set() -> None:
    clock = Clock()
    for second in range(1_000):
        assert not clock.is_set(START + second, WALL + second * (1 + 500e-6), START + second)


@pytest.mark.parametrize("seconds", [3_600.0, 0.05, -0.05, -3_600.0])
def test_a_step_of_the_own_clock_is_noticed_once(seconds: float) -> None:
    clock = Clock()
    assert not clock.is_set(START, WALL, START)
    assert clock.is_set(START + 1, WALL + 1 + seconds, START + 1)
    assert not clock.is_set(START + 2, WALL + 2 + seconds, START + 2)


def test_a_process_that_is_held_up_between_two_clocks_takes_that_for_no_step() -> None:
    clock = Clock()
    assert not clock.is_set(START, WALL, START)
    assert not clock.is_set(START + 1, WALL + 1.3, START + 1.3)
    assert not clock.is_set(START + 2, WALL + 2, START + 2)
