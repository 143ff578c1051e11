"""What the silence of another bus calls for, by a time that is only a number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobus.mesh.peers import DROP, GRACE, RELINK, STALE, STEADY, Peer, Verdict
from aiobus.wire import PeerId

START = 1000.0
WHO = PeerId("bot", 36, "tcp://127.0.0.1:5001")


def new() -> Peer:
    """A peer that was found at `START` and has not said anything."""
    return Peer("bot", WHO.endpoint, START)


def linked() -> Peer:
    """A peer that was linked and last heard at `START`."""
    peer = new()
    peer.who = WHO
    peer.say_hello()
    peer.has_answered = peer.was_answered = True
    assert peer.link()
    peer.hear(START, 5)
    return peer


def verdicts(
    peer: Peer, until: float, *, begin: float = 0.5, is_lenient: bool = False
) -> list[tuple[float, Verdict]]:
    """What is judged every half second after `START`, and when; each link that is to be made again
    is.
    """
    found = []
    for half in range(int(begin * 2), int(until * 2) + 1):
        verdict = peer.judge(START + half / 2, is_lenient=is_lenient)
        if verdict is not None:
            found.append((half / 2, verdict))
        if verdict is Verdict.RELINK:
            peer.relink(START + half / 2)
    return found


def test_a_linked_peer_that_falls_silent_is_stale_after_3_s_and_made_again_after_10() -> None:
    assert verdicts(linked(), 29.5) == [(3.0, Verdict.STALE), (10.0, Verdict.RELINK)]


# Silence.


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [(STALE - 0.001, None), (STALE, Verdict.STALE)],
)
def test_staleness_begins_with_its_very_moment(seconds: float, verdict: Verdict | None) -> None:
    assert linked().judge(START + seconds, is_lenient=False) is verdict


def test_a_link_that_stays_silent_is_made_again_after_10_then_20_then_every_30_s() -> None:
    relinks = [at for at, verdict in verdicts(linked(), 200) if verdict is Verdict.RELINK]
    assert relinks == [10, 30, 60, 90, 120, 150, 180]


def test_a_peer_that_is_heard_of_again_is_linked_again_after_another_10_s() -> None:
    peer = linked()
    verdicts(peer, 35)
    peer.hear(START + 35, 6)
    relinks = [at for at, it in verdicts(peer, 70, begin=35.5) if it is Verdict.RELINK]
    assert relinks == [45, 65]


def test_while_it_may_be_this_process_that_was_away_silence_is_not_judged() -> None:
    assert verdicts(linked(), 40, is_lenient=True) == []


# Never answering.


def test_a_peer_that_never_answers_is_linked_again_and_again_for_it_may_be_frozen() -> None:
    assert verdicts(new(), 80) == [
        (2.0, Verdict.DROP),  # if no process listens there: it ended before it was linked
        (10.0, Verdict.RELINK),
        (30.0, Verdict.RELINK),
        (60.0, Verdict.RELINK),
        (62.0, Verdict.DROP),
    ]


def test_a_peer_that_never_answers_is_not_said_to_be_stale() -> None:
    assert Verdict.STALE not in [each for _, each in verdicts(new(), RELINK)]


def test_a_peer_whose_hello_is_withdrawn_has_left_after_a_grace_of_5_s() -> None:
    peer = linked()
    peer.withdraw(START + 1)
    assert peer.judge(START + 1 + GRACE - 0.001, is_lenient=False) is Verdict.STALE
    assert peer.judge(START + 1 + GRACE - 0.001, is_lenient=False) is None
    assert peer.judge(START + 1 + GRACE, is_lenient=False) is Verdict.LEFT
    assert peer.has_left


def test_after_an_own_freeze_a_peer_is_not_said_to_have_left_before_it_could_be_heard() -> None:
    peer = linked()
    peer.withdraw(START + 1)
    assert peer.judge(START + 9, is_lenient=True) is None
    assert not peer.has_left


# A hello that is withdrawn.


def test_a_peer_that_has_left_is_dropped_after_60_s_of_silence_and_nothing_else() -> None:
    peer = linked()
    peer.withdraw(START)
    assert verdicts(peer, 60) == [
        (3.0, Verdict.STALE),
        (5.0, Verdict.LEFT),
        (60.0, Verdict.DROP),
    ]


def test_a_peer_that_was_frozen_for_long_before_its_hello_went_has_left_before_it_is_dropped() -> (
    None
):
    peer = linked()
    peer.withdraw(START + 70)
    assert [it for _, it in verdicts(peer, 80, begin=72) if it is not Verdict.RELINK] == [
        Verdict.STALE,
        Verdict.LEFT,
        Verdict.DROP,
    ]


def test_a_peer_that_is_cut_off_is_looked_for_every_60_s() -> None:
    peer = linked()
    peer.withdraw(START)
    assert [at for at, it in verdicts(peer, 200) if it is Verdict.DROP] == [60, 120, 180]


def test_a_hello_after_the_grace_brings_it_back() -> None:
    peer = linked()
    peer.withdraw(START)
    assert peer.judge(START + GRACE, is_lenient=False) is Verdict.LEFT
    assert peer.unlink()
    peer.say_hello()
    assert (peer.has_left, peer.is_gone, peer.is_awaited) == (False, False, True)
    peer.has_answered = True
    assert peer.link()
    assert peer.is_there


def test_a_peer_without_a_hello_is_silent_since_a_time_after_which_it_was_not_heard() -> None:
    peer = linked()
    assert not peer.is_silent_since(START), "it has a hello"
    peer.withdraw(START)
    assert [peer.is_silent_since(START - each) for each in (0, 0.001)] == [True, False]


# Being linked.


def test_a_peer_is_linked_once() -> None:
    peer = new()
    peer.has_answered = peer.was_answered = True
    assert [peer.link(), peer.link(), peer.is_linked] == [True, False, True]


def test_a_peer_that_was_unlinked_has_to_answer_again() -> None:
    peer = linked()
    assert [peer.unlink(), peer.unlink(), peer.link()] == [True, False, False]
    peer.has_answered = True
    assert peer.link()


def test_a_peer_is_awaited_until_it_is_linked_or_gone() -> None:
    peer = new()
    assert (peer.is_awaited, peer.is_there) == (True, False)
    peer.withdraw(START)
    assert (peer.is_awaited, peer.is_there) == (False, False)
    assert (linked().is_awaited, linked().is_there) == (False, True)


def test_a_linked_peer_is_not_there_while_its_hello_is_withdrawn() -> None:
    peer = linked()
    peer.withdraw(START)
    assert (peer.is_linked, peer.is_there, peer.is_awaited) == (True, False, False)


def test_a_peer_is_called_by_its_name_until_it_has_said_who_it_is() -> None:
    peer = new()
    assert str(peer) == "bot"
    peer.who = WHO
    assert str(peer) == "bot@10"


def test_renewing_a_peer_forgets_everything_but_where_it_listens() -> None:
    peer, later = linked(), START + 100
    peer.is_open = peer.has_lost_place = True
    verdicts(peer, 40)
    peer.withdraw(START)
    peer.judge(START + GRACE, is_lenient=True)
    peer.renew(later, 7)
    assert vars(peer) == vars(Peer("bot", WHO.endpoint, later, 7))


HAPPENINGS = ["wait", "wait", "wait", "hear", "withdraw", "say_hello", "answer"]


@given(st.lists(st.sampled_from(HAPPENINGS), max_size=120), st.booleans())
def test_a_peer_leaves_only_while_its_hello_is_withdrawn_and_once_until_it_is_said_again(
    steps: list[str], is_lenient: bool
) -> None:
    peer, now = linked(), START
    withdrawn: float | None = None
    for step in steps:
        match step:
            case "wait":
                now += 1.0
                verdict = peer.judge(now, is_lenient=is_lenient)
                if verdict is Verdict.LEFT:
                    assert withdrawn is not None
                    assert now - withdrawn >= GRACE
                    withdrawn = now + 10 * DROP  # it does not leave again
                if verdict in (Verdict.STALE, Verdict.RELINK):
                    assert (is_lenient, peer.has_left) == (False, False)
                if verdict is Verdict.DROP:
                    return
            case "hear":
                peer.hear(now, 1)
            case "withdraw":
                peer.withdraw(now)
                withdrawn = now if withdrawn is None else withdrawn
            case "say_hello":
                peer.say_hello()
                withdrawn = None
            case "answer":
                peer.has_answered = True
                peer.link()


def test_a_peer_that_was_found_is_overdue_after_3_s_without_a_sign_of_it() -> None:
    assert [new().is_overdue(START + second) for second in (STALE - 0.001, STALE)] == [False, True]
    assert not linked().is_overdue(START + STALE)


@pytest.mark.parametrize("forged", [[0.1], [0.1, 0.2, 0.9], [step / 10 for step in range(100)]])
def test_what_it_says_in_each_heartbeat_is_steady_whatever_others_say_in_its_name(
    forged: list[float],
) -> None:
    """It sends one each second, on the whole second."""
    peer = new()
    beats = [(float(second), 5 + second) for second in range(11)]
    for now, seq in sorted([*beats, *((now, 900) for now in forged)]):
        peer.beat(START + now, seq)
        assert peer.steady <= 5 + int(now)


def test_of_a_peer_that_publishes_no_more_all_is_steady_before_long() -> None:
    peer = new()
    steady = []
    for now, seq in enumerate([5, 6, 7, 7, 7, 7, 7]):
        peer.beat(START + now, seq)
        steady.append(peer.steady)
    assert steady == [0, 0, 5, 5, 7, 7, 7]
    assert len(steady) - steady.index(5) <= 2 * STEADY + 1


def test_what_another_start_has_said_is_not_steady() -> None:
    peer = new()
    for now in range(5):
        peer.beat(START + now, 7)
    assert peer.steady == 7
    peer.renew(START + 5, 0)
    peer.beat(START + 5, 7)
    assert peer.steady == 0
