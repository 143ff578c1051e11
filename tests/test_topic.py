"""When a topic turns quiet, and when loud again."""

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
    topic.inlets = {Behind(each): None for each in missing}  # type: ignore[misc]
    return topic


def left(topic: Topic, frames: int) -> list[bool]:
    return [topic.note_frame(is_taken=False) for _ in range(frames)]


def test_a_topic_is_loud_at_first() -> None:
    topic = topic_of(FAR + 1)
    assert (topic.is_quiet, topic.live, topic.other) == (False, b"TRADE\0", b"-TRADE\0")


def test_it_turns_quiet_with_the_last_of_so_many_frames_that_all_leave() -> None:
    topic = topic_of(FAR + 1, FAR + 2)
    assert left(topic, LEFT) == [False] * (LEFT - 1) + [True]
    assert (topic.is_quiet, topic.live, topic.other) == (True, b"-TRADE\0", b"TRADE\0")


def test_it_does_not_turn_quiet_while_one_of_its_inlets_is_not_far_behind() -> None:
    topic = topic_of(FAR + 1, FAR)
    assert not any(left(topic, 3 * LEFT))


def test_a_frame_that_was_handed_to_all_makes_the_count_begin_anew() -> None:
    topic = topic_of(FAR + 1)
    left(topic, LEFT - 1)
    assert not topic.note_frame(is_taken=True)
    assert left(topic, LEFT) == [False] * (LEFT - 1) + [True]


def test_a_quiet_one_of_which_a_frame_is_taken_turns_loud_if_it_misses_no_more_than_a_page() -> (
    None
):
    topic = topic_of(NEAR + 1)
    topic.is_quiet = True
    assert not topic.note_frame(is_taken=True)
    (inlet,) = topic.inlets
    inlet.missing = NEAR  # type: ignore[misc]
    assert topic.note_frame(is_taken=True)
    assert not topic.is_quiet


def test_frames_that_were_under_way_when_it_turned_do_not_turn_it_again() -> None:
    topic = topic_of(FAR + 1)
    left(topic, LEFT)
    assert not any(left(topic, 2 * LEFT))
    assert topic.is_quiet


def test_once_it_was_loud_again_the_count_begins_anew() -> None:
    topic = topic_of(FAR + 1)
    (inlet,) = topic.inlets
    left(topic, LEFT)
    inlet.missing = 0  # type: ignore[misc]
    assert topic.note_moved()
    inlet.missing = FAR + 1  # type: ignore[misc]
    assert left(topic, LEFT) == [False] * (LEFT - 1) + [True]


@pytest.mark.parametrize(
    ("missing", "is_loud"), [((NEAR + 1, NEAR + 1), False), ((NEAR + 1, NEAR), True), ((0,), True)]
)
def test_it_turns_loud_when_one_misses_no_more_than_a_page(
    missing: tuple[int, ...], is_loud: bool
) -> None:
    topic = topic_of(*missing)
    topic.is_quiet = True
    assert topic.note_moved() == is_loud
    assert topic.is_quiet != is_loud


def test_what_moves_while_it_is_loud_turns_nothing() -> None:
    assert not topic_of(0).note_moved()


def test_what_it_missed_between_two_bounds_turns_it_neither_way() -> None:
    """Or it would turn to and fro with each page."""
    topic = topic_of(NEAR + 1)
    assert not any(left(topic, 2 * LEFT))
    topic.is_quiet = True
    assert not topic.note_moved()
