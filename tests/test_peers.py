"""What the silence of another bus calls for, by a time that is only a number."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiobus.mesh.peers import DROP, GRACE, RELINK, STALE, Peer, Verdict
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
    """What is judged every half second after `START`, and when; each link that is to be made anew
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


# Silence.


def test_a_peer_that_is_heard_of_every_second_is_judged_in_no_way() -> None:
    peer = linked()
    for second in range(100):
        peer.hear(START + second, second)
        assert peer.judge(START + second + 0.99, is_lenient=False) is None


def test_a_linked_peer_that_falls_silent_is_stale_after_3_s_and_made_anew_after_10() -> None:
    assert verdicts(linked(), 29.5) == [(3.0, Verdict.STALE), (10.0, Verdict.RELINK)]


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [(STALE - 0.001, None), (STALE, Verdict.STALE)],
)
def test_staleness_begins_with_its_very_moment(seconds: float, verdict: Verdict | None) -> None:
    assert linked().judge(START + seconds, is_lenient=False) is verdict


def test_a_link_that_stays_silent_is_made_anew_after_10_then_20_then_every_30_s() -> None:
    relinks = [at for at, verdict in verdicts(linked(), 200) if verdict is Verdict.RELINK]
    assert relinks == [10, 30, 60, 90, 120, 150, 180]


def test_a_link_that_could_not_be_made_anew_is_to_be_until_it_is() -> None:
    peer = linked()
    verdicts(peer, RELINK - 0.5)
    for second in range(10, 20):
        assert peer.judge(START + second, is_lenient=False) is Verdict.RELINK
    peer.relink(START + 20)
    assert verdicts(peer, 60, begin=20) == [(40.0, Verdict.RELINK)]


def test_a_linked_peer_that_keeps_its_hello_is_never_given_up() -> None:
    found = {verdict for _, verdict in verdicts(linked(), 10 * DROP)}
    assert found == {Verdict.STALE, Verdict.RELINK}


def test_a_peer_that_is_heard_of_again_may_become_stale_again() -> None:
    peer = linked()
    assert verdicts(peer, 5) == [(3.0, Verdict.STALE)]
    assert peer.is_stale
    peer.hear(START + 5, 6)
    assert not peer.is_stale
    assert verdicts(peer, 8, begin=5.5) == [(8.0, Verdict.STALE)]


def test_a_peer_that_is_heard_of_again_is_linked_anew_after_10_s_again() -> None:
    peer = linked()
    verdicts(peer, 35)
    peer.hear(START + 35, 6)
    relinks = [at for at, it in verdicts(peer, 70, begin=35.5) if it is Verdict.RELINK]
    assert relinks == [45, 65]


def test_while_it_may_be_this_process_that_was_away_silence_is_not_judged() -> None:
    assert verdicts(linked(), 40, is_lenient=True) == []


def test_what_was_not_judged_is_judged_when_lenience_is_over() -> None:
    peer = linked()
    assert peer.judge(START + 11, is_lenient=True) is None
    assert peer.judge(START + 12, is_lenient=False) is Verdict.STALE
    assert peer.judge(START + 12, is_lenient=False) is Verdict.RELINK
    peer.relink(START + 12)
    assert peer.judge(START + 12, is_lenient=False) is None


# Never answering.


def test_a_peer_that_never_answers_is_linked_anew_again_and_again_for_it_may_be_frozen() -> None:
    assert verdicts(new(), 80) == [
        (10.0, Verdict.RELINK),
        (30.0, Verdict.RELINK),
        (60.0, Verdict.DROP),  # if nobody listens there
        (60.5, Verdict.RELINK),
    ]


def test_a_peer_that_never_answers_is_not_said_to_be_stale() -> None:
    assert new().judge(START + RELINK - 0.001, is_lenient=False) is None


def test_a_peer_that_sends_something_is_not_dropped_however_long_it_does_not_answer() -> None:
    peer = new()
    for second in range(200):
        peer.hear(START + second, second)
        assert peer.judge(START + second + 0.5, is_lenient=False) is None


# A hello that is withdrawn.


def test_a_peer_whose_hello_is_withdrawn_has_left_after_a_grace_of_5_s() -> None:
    peer = linked()
    peer.withdraw(START + 1)
    assert peer.judge(START + 1 + GRACE - 0.001, is_lenient=True) is None
    assert peer.judge(START + 1 + GRACE, is_lenient=True) is Verdict.LEFT
    assert peer.has_left


def test_the_grace_is_not_renewed_by_a_second_withdrawal() -> None:
    peer = linked()
    peer.withdraw(START)
    peer.withdraw(START + 4)
    assert peer.judge(START + GRACE, is_lenient=True) is Verdict.LEFT


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
    assert verdicts(peer, 80, begin=72, is_lenient=True) == [
        (75.0, Verdict.LEFT),
        (75.5, Verdict.DROP),
    ]


def test_a_peer_that_is_cut_off_is_looked_for_every_60_s() -> None:
    peer = linked()
    peer.withdraw(START)
    assert [at for at, it in verdicts(peer, 200) if it is Verdict.DROP] == [60, 120, 180]


def test_a_peer_that_has_left_but_still_sends_is_not_dropped() -> None:
    peer = linked()
    peer.withdraw(START)
    verdicts(peer, 30)
    peer.hear(START + 30, 6)
    assert verdicts(peer, 89.5, begin=30) == []
    assert verdicts(peer, 90, begin=90) == [(90.0, Verdict.DROP)]


def test_a_hello_within_the_grace_leaves_it_linked() -> None:
    peer = linked()
    peer.withdraw(START + 1)
    peer.say_hello()
    peer.hear(START + 4, 6)
    assert (peer.is_gone, peer.is_linked, peer.is_there) == (False, True, True)
    assert verdicts(peer, 6.5, begin=4) == []


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


# Being linked.


@pytest.mark.parametrize(
    ("has_answered", "was_answered"), [(False, False), (True, False), (False, True)]
)
def test_a_peer_is_not_linked_until_each_has_answered_the_other(
    has_answered: bool, was_answered: bool
) -> None:
    peer = new()
    peer.has_answered, peer.was_answered = has_answered, was_answered
    assert not peer.link()
    assert not peer.is_linked


def test_a_peer_is_linked_once() -> None:
    peer = new()
    peer.has_answered = peer.was_answered = True
    assert [peer.link(), peer.link(), peer.is_linked] == [True, False, True]


def test_a_peer_that_was_unlinked_has_to_answer_anew() -> None:
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


def test_a_peer_is_listening_while_its_hello_is_here() -> None:
    peer = new()
    assert not peer.is_listening
    peer.say_hello()
    assert peer.is_listening
    peer.withdraw(START)
    assert not peer.is_listening
    peer.say_hello()
    assert peer.is_listening


def test_the_highest_seq_that_was_heard_of_is_kept() -> None:
    peer = linked()
    peer.hear(START, 9)
    peer.hear(START, 7)
    assert peer.last == 9


def test_a_peer_is_called_by_its_name_until_it_has_said_who_it_is() -> None:
    peer = new()
    assert str(peer) == "bot"
    peer.who = WHO
    assert str(peer) == "bot@10"


def test_renewing_a_peer_forgets_everything_but_where_it_listens() -> None:
    peer, later = linked(), START + 100
    peer.is_open = True
    verdicts(peer, 40)
    peer.withdraw(START)
    peer.judge(START + GRACE, is_lenient=True)
    peer.renew(later, 7)
    assert vars(peer) == vars(Peer("bot", WHO.endpoint, later, 7))


HAPPENINGS = ["wait", "wait", "wait", "hear", "withdraw", "say_hello", "answer"]


@given(st.lists(st.sampled_from(HAPPENINGS), max_size=120), st.booleans())
@settings(max_examples=150, deadline=None)
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
