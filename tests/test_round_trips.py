"""Questions that are repeated until each peer has answered or gone."""

import asyncio
from collections.abc import Collection
from typing import Any

import pytest

from aiobus.mesh.confirm import answered
from aiobus.mesh.peers import RoundTrip, RoundTrips
from aiobus.wire import Ack, Answer, PeerId

OTHER = PeerId("a", 1, "tcp://127.0.0.1:2")


class Asking:
    """The questions of one bus, with what was sent and what was answered."""

    def __init__(self) -> None:
        self.rounds = RoundTrips()
        self.sent: list[tuple[int, list[str]]] = []
        self.answers: list[Any] = []

    def ask(self, *names: str) -> RoundTrip:
        return self.rounds.ask(names, self.send, self.answers.append, kind=str)

    def send(self, number: int, names: Collection[str]) -> None:
        self.sent.append((number, sorted(names)))


@pytest.fixture
def asking() -> Asking:
    return Asking()


def test_each_is_asked_at_once(asking: Asking) -> None:
    asking.ask("a", "b")
    assert asking.sent == [(1, ["a", "b"])]


def test_each_question_has_a_number_of_its_own(asking: Asking) -> None:
    asking.ask("a")
    asking.ask("a")
    assert asking.sent == [(1, ["a"]), (2, ["a"])]


def test_who_has_not_answered_is_asked_again_under_the_same_number(asking: Asking) -> None:
    asking.ask("a", "b")
    asking.rounds.answer(1, "a", "yes")
    asking.rounds.repeat()
    asking.rounds.repeat()
    assert asking.sent[1:] == [(1, ["b"])] * 2


def test_once_all_have_answered_none_is_asked_again(asking: Asking) -> None:
    asking.ask("a", "b")
    asking.rounds.answer(1, "a", "yes")
    asking.rounds.answer(1, "b", "yes")
    asking.rounds.repeat()
    assert len(asking.sent) == 1


def test_a_question_to_no_peer_is_not_sent(asking: Asking) -> None:
    round = asking.ask()
    asking.rounds.repeat()
    assert (asking.sent, round.waiting) == ([], set())


def test_what_was_answered_is_handed_on(asking: Asking) -> None:
    asking.ask("a", "b")
    asking.rounds.answer(1, "b", "yes")
    asking.rounds.answer(1, "a", "no")
    assert asking.answers == ["yes", "no"]


def test_an_answer_that_comes_twice_is_handed_on_once(asking: Asking) -> None:
    asking.ask("a", "b")
    asking.rounds.answer(1, "a", "yes")
    asking.rounds.answer(1, "a", "yes")
    assert asking.answers == ["yes"]


@pytest.mark.parametrize(("number", "name"), [(2, "a"), (0, "a"), (1, "c")])
def test_an_answer_to_what_was_not_asked_is_left(asking: Asking, number: int, name: str) -> None:
    round = asking.ask("a", "b")
    asking.rounds.answer(number, name, "yes")
    assert (asking.answers, round.waiting) == ([], {"a", "b"})


@pytest.mark.parametrize(
    ("asked", "answered_by"),
    [(Answer, Ack("me", 1, OTHER)), (Ack, Answer(1, OTHER, 1.0, 0, is_open=True))],
)
def test_what_answers_another_kind_of_question_is_left(
    asking: Asking, asked: type[object], answered_by: object
) -> None:
    round = asking.rounds.ask(["a"], asking.send, asking.answers.append, asked)
    asking.rounds.answer(1, "a", answered_by)
    assert (asking.answers, round.waiting) == ([], {"a"})


def test_who_is_lost_is_gone_and_not_asked_again(asking: Asking) -> None:
    round = asking.ask("a", "b")
    asking.rounds.lose("a")
    asking.rounds.repeat()
    assert (round.gone, round.waiting, asking.sent[1:]) == ({"a"}, {"b"}, [(1, ["b"])])


def test_who_has_said_that_it_goes_is_not_gone(asking: Asking) -> None:
    round = asking.ask("a")
    asking.rounds.lose("a", is_missed=False)
    asking.rounds.lose("a")
    assert (round.gone, round.waiting) == (set(), set())


def test_who_is_lost_after_it_has_answered_is_not_gone(asking: Asking) -> None:
    round = asking.ask("a", "b")
    asking.rounds.answer(1, "a", "yes")
    asking.rounds.lose("a")
    assert (round.gone, round.waiting) == (set(), {"b"})


def test_who_is_lost_is_lost_to_every_question(asking: Asking) -> None:
    rounds = [asking.ask("a", "b"), asking.ask("a"), asking.ask("b")]
    asking.rounds.lose("a")
    assert [round.gone for round in rounds] == [{"a"}, {"a"}, set()]


def test_losing_who_was_not_asked_is_no_error(asking: Asking) -> None:
    asking.ask("a")
    asking.rounds.lose("c")
    asking.rounds.repeat()
    assert asking.sent[1:] == [(1, ["a"])]


def test_a_question_that_is_dropped_is_not_repeated_and_its_answers_are_left(
    asking: Asking,
) -> None:
    dropped, kept = asking.ask("a"), asking.ask("a")
    asking.rounds.drop(dropped)
    asking.rounds.drop(None)
    asking.rounds.repeat()
    asking.rounds.answer(1, "a", "no")
    asking.rounds.answer(2, "a", "yes")
    assert (asking.sent[2:], asking.answers) == ([(2, ["a"])], ["yes"])
    assert (dropped.waiting, kept.waiting) == ({"a"}, set())


def test_an_answer_may_lead_to_the_next_question(asking: Asking) -> None:
    asking.rounds.ask(["a"], asking.send, lambda _: asking.ask("b"), kind=str)
    asking.rounds.answer(1, "a", "yes")
    assert asking.sent == [(1, ["a"]), (2, ["b"])]


# Waiting.


async def waiting_for(round: RoundTrip, *excused: str) -> "asyncio.Task[set[str]]":
    """A task that waits until all but those excused have answered, and has begun to."""
    task = asyncio.create_task(answered(round, 30, lambda name: name in excused))
    await asyncio.sleep(0)  # so that it stands in its wait
    return task


async def test_a_question_is_done_when_each_has_answered(asking: Asking) -> None:
    round = asking.ask("a", "b")
    done = await waiting_for(round)
    asking.rounds.answer(1, "a", "yes")
    await asyncio.sleep(0)  # it wakes and looks
    assert not done.done()
    asking.rounds.answer(1, "b", "yes")
    assert await done == set()


async def test_a_question_is_done_when_who_has_not_answered_is_gone(asking: Asking) -> None:
    round = asking.ask("a", "b")
    done = await waiting_for(round)
    asking.rounds.answer(1, "a", "yes")
    asking.rounds.lose("b")
    assert await done == set()
    assert round.gone == {"b"}


async def test_a_peer_that_is_excused_is_not_waited_for_and_counts_as_missing(
    asking: Asking,
) -> None:
    round = asking.ask("a", "b")
    done = await waiting_for(round, "b")
    asking.rounds.answer(1, "a", "yes")
    assert await done == {"b"}


async def test_a_question_to_no_peer_is_done_at_once(asking: Asking) -> None:
    assert await answered(asking.ask(), 30) == set()


async def test_who_does_not_answer_in_time_is_named_and_asked_on(asking: Asking) -> None:
    round = asking.ask("a", "b", "c")
    asking.rounds.answer(1, "a", "yes")
    asking.rounds.lose("c")
    assert await answered(round, 0) == {"b"}
    asking.rounds.repeat()
    assert asking.sent[1:] == [(1, ["b"])]
    asking.rounds.answer(1, "b", "late")
    assert asking.answers == ["yes", "late"]


async def test_an_answer_is_not_waited_for_that_has_come_already(asking: Asking) -> None:
    round = asking.ask("a")
    asking.rounds.answer(1, "a", "yes")
    assert await answered(round, 0) == set()


async def test_cancelling_a_wait_leaves_the_question_under_way(asking: Asking) -> None:
    round = asking.ask("a")
    done = await waiting_for(round)
    done.cancel()
    with pytest.raises(asyncio.CancelledError):
        await done
    asking.rounds.answer(1, "a", "yes")
    assert asking.answers == ["yes"]


async def test_several_may_wait_for_one_question(asking: Asking) -> None:
    round = asking.ask("a", "b")
    both, one = await waiting_for(round), await waiting_for(round, "b")
    asking.rounds.answer(1, "a", "yes")
    assert await one == {"b"}
    asking.rounds.answer(1, "b", "yes")
    assert await both == set()


async def test_the_end_wakes_who_waits_and_counts_the_peers_without_an_answer_as_gone(
    asking: Asking,
) -> None:
    round = asking.ask("a", "b")
    asking.rounds.answer(1, "a", "yes")
    waiting = asyncio.create_task(round.changed.wait())
    await asyncio.sleep(0)
    asking.rounds.end()
    await asyncio.wait_for(waiting, 1)
    assert (round.waiting, round.gone) == (set(), {"b"})
