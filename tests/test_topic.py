"""When a topic is switched to progress messages alone, and when back."""

import pytest

from aiobus.mesh.interest import FAR, LEFT, NEAR, Topic
from aiobus.query import Query


class Behind:
    """The only thing of an `Inlet` that counts here."""

    query = Query.of("TRADE")

    def __init__(self, missing: int) -> None:
        self.missing = missing


def topic_of(*missing: int) -> Topic:
    topic = Topic(b"TRADE\0")
    topic.catchups = {Behind(each): None for each in missing}  # type: ignore[misc]
    return topic


def left(topic: Topic, frames: int) -> list[bool]:
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
    assert left(topic, LEFT) == [False] * (LEFT - 1) + [True]
    assert (topic.is_progress_only, topic.subscribed, topic.other) == (
        True,
        b"-TRADE\0",
        b"TRADE\0",
    )


def test_it_stays_live_while_one_of_its_subscriptions_does_not_lag_far() -> None:
    topic = topic_of(FAR + 1, FAR)
    assert not any(left(topic, 3 * LEFT))


def test_frames_that_were_under_way_when_it_was_switched_do_not_switch_it_again() -> None:
    topic = topic_of(FAR + 1)
    left(topic, LEFT)
    assert not any(left(topic, 2 * LEFT))
    assert topic.is_progress_only


def test_once_it_was_live_again_the_count_begins_anew() -> None:
    topic = topic_of(FAR + 1)
    (inlet,) = topic.catchups
    left(topic, LEFT)
    inlet.missing = 0  # type: ignore[misc]
    assert topic.note_moved()
    inlet.missing = FAR + 1  # type: ignore[misc]
    assert left(topic, LEFT) == [False] * (LEFT - 1) + [True]


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
    assert not any(left(topic, 2 * LEFT))
    topic.is_progress_only = True
    assert not topic.note_moved()
