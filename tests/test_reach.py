"""What a member knows of a rendezvous address, by what was tried there."""

import errno
import os
from typing import NamedTuple

import pytest

from aiobus.discovery.reach import Reach

ELSEWHERE = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
FORBIDDEN = OSError(errno.EACCES, os.strerror(errno.EACCES))
AT = "tcp://10.0.0.5:7555"


class Case(NamedTuple):
    reach: Reach
    settled: list[bool]
    """One entry for each time that waiting for the address was said to be of no use."""


def case(*, is_loopback: bool = False) -> Case:
    settled: list[bool] = []
    return Case(Reach(AT, lambda: settled.append(True), is_loopback=is_loopback), settled)


def refused(
    reach: Reach,
    error: OSError | None,
    *,
    observes: bool = False,
    serves: bool = False,
    is_linked: bool = False,
) -> None:
    reach.note_try(5.0)
    reach.note_refusal(error, observes=observes, serves=serves, is_linked=is_linked)


def test_an_address_of_which_nothing_is_known_has_been_unknown_for_ever() -> None:
    reach, settled = case()
    assert not reach.is_known
    assert reach.unknown_for(0.0) == float("inf")
    assert not settled


def test_an_answer_settles_an_address_and_the_next_try_counts_from_its_begin() -> None:
    reach, settled = case()
    reach.note_try(5.0)
    reach.note_connection()
    reach.note_answer()
    assert reach.is_known
    assert reach.is_connected
    assert reach.was_reached
    assert settled
    reach.note_try(7.0)
    reach.note_try(8.0)
    assert reach.unknown_for(9.5) == 2.5


def test_serving_settles_an_address_and_is_no_answer_of_another() -> None:
    reach, settled = case()
    reach.note_serving()
    assert reach.is_known
    assert settled
    assert not reach.was_reached


def test_a_frozen_member_of_the_registry_before_is_unknown_until_it_is_there() -> None:
    reach, _ = case()
    reach.note_serving()
    reach.note_frozen()
    assert reach.unknown_for(1.0) == float("inf")
    reach.note_thawed()
    assert reach.unknown_for(1.0) == 0.0


@pytest.mark.parametrize("is_loopback", [True, False])
def test_only_a_host_that_does_not_answer_is_not_waited_for(is_loopback: bool) -> None:
    reach, settled = case(is_loopback=is_loopback)
    reach.note_try(5.0)
    reach.note_silence("no answer within 1 s")
    assert bool(settled) is not is_loopback
    assert reach.problem == "it cannot be reached (no answer within 1 s)"
    assert not reach.is_known
    assert not reach.is_unusable


@pytest.mark.parametrize("is_final", [True, False])
def test_a_name_that_is_not_found_is_waited_for_only_if_it_is_looked_for_again(
    is_final: bool,
) -> None:
    reach, settled = case()
    reach.note_unresolved(OSError(1, "unknown name"), is_final=is_final)
    assert bool(settled) is is_final
    assert reach.problem == "its name cannot be resolved (unknown name)"


@pytest.mark.parametrize(("serves", "is_linked"), [(True, False), (False, True), (False, False)])
def test_an_address_of_another_host_that_refuses_is_vacant_and_known_once_one_is_met(
    serves: bool, is_linked: bool
) -> None:
    reach, settled = case()
    refused(reach, ELSEWHERE, serves=serves, is_linked=is_linked)
    assert reach.is_vacant
    assert not reach.is_unusable
    assert reach.is_known is bool(settled) is (serves or is_linked)


def test_a_vacant_address_is_none_any_more_while_it_is_tried() -> None:
    reach, _ = case()
    refused(reach, ELSEWHERE)
    reach.note_try(6.0)
    assert not reach.is_vacant


@pytest.mark.parametrize(("error", "is_loopback"), [(ELSEWHERE, True), (FORBIDDEN, False)])
def test_an_address_that_refuses_and_that_no_member_may_serve_at_is_unusable(
    error: OSError, is_loopback: bool
) -> None:
    reach, settled = case(is_loopback=is_loopback)
    refused(reach, error, serves=True, is_linked=True)
    assert reach.is_unusable
    assert not reach.is_vacant
    assert not settled
    assert str(reach.error) == (
        f"{AT} cannot be a rendezvous address: nothing listens there, and this process may not"
        f" ({error.strerror}). Free that address, or give every bus of this desk another one"
    )


@pytest.mark.parametrize("error", [None, ELSEWHERE, FORBIDDEN])
def test_to_an_observer_an_address_that_refuses_is_known(error: OSError | None) -> None:
    reach, settled = case()
    refused(reach, error, observes=True)
    assert reach.is_known
    assert settled
    assert not reach.is_vacant
    assert not reach.is_unusable


@pytest.mark.parametrize("serves", [True, False])
def test_an_address_that_this_member_may_serve_at_is_left_by_one_that_serves_elsewhere(
    serves: bool,
) -> None:
    reach, settled = case()
    refused(reach, None, serves=serves, is_linked=True)
    assert reach.is_known is bool(settled) is serves


@pytest.mark.parametrize("is_proven", [True, False])
def test_another_program_fails_a_start_unless_the_desk_was_proven_elsewhere(
    is_proven: bool,
) -> None:
    reach, _ = case()
    reach.note_distrust("another program answers there", is_proven=is_proven)
    assert reach.is_unusable is not is_proven
    assert reach.problem == "another program answers there"


def test_a_start_tells_of_a_denial_in_its_own_words() -> None:
    reach, _ = case()
    words = "does not share this desk's secret"
    reach.note_distrust(f"it {words}", is_proven=False, denial=words)
    assert str(reach.error) == f"{AT} {words}"
    reach.note_answer()
    reach.note_distrust("another program answers there", is_proven=False)
    assert words not in str(reach.error)


def test_one_connection_may_end_unanswered_as_a_registry_dies_and_the_next_may_not() -> None:
    reach, _ = case()
    for is_unusable in (False, True):
        reach.note_try(5.0)
        reach.note_connection()
        reach.note_end(is_answered=False, is_proven=False)
        assert reach.is_unusable is is_unusable
        assert reach.problem == "the process that listens there closes each connection unanswered"


def test_an_answer_between_two_ends_makes_the_second_the_first_again() -> None:
    reach, _ = case()
    reach.note_end(is_answered=False, is_proven=False)
    reach.note_answer()
    reach.note_end(is_answered=True, is_proven=False)
    reach.note_end(is_answered=False, is_proven=False)
    assert not reach.is_unusable


def test_a_process_that_accepts_does_not_hide_what_made_an_address_unusable() -> None:
    reach, _ = case()
    reach.note_connection()
    assert reach.problem == (
        "the process that listens there accepts connections but does not answer"
    )
    reach.note_distrust("another program answers there", is_proven=False)
    reach.note_connection()
    assert reach.problem == "another program answers there"
