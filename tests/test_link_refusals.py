"""Why a link cannot be made because of keys: whose it was, in which words, and how often."""

import socket

import pytest
import zmq

from aiobus.mesh.zap import GARBLED, MISTAKEN, PLAIN, Failures, peer_address
from aiobus.refusals import NOTICED, SAID_SECONDS, TELLS, TOLD, Refusal, Refusals, words

ACCEPTED, FAILED, ENDED = (
    int(zmq.EVENT_ACCEPTED),
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL),
    int(zmq.EVENT_DISCONNECTED),
)
MISMATCH = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
CRYPTOGRAPHIC = int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC)
MALFORMED = int(zmq.PROTOCOL_ERROR_ZMTP_MALFORMED_COMMAND_HELLO)
PLACES = {7: "10.0.0.7", 8: "10.0.0.8"}


def where(descriptor: int) -> str:
    return PLACES.get(descriptor, "")


@pytest.mark.parametrize(
    ("value", "cause"), [(MISMATCH, PLAIN), (CRYPTOGRAPHIC, MISTAKEN), (MALFORMED, GARBLED)]
)
def test_a_handshake_that_fails_is_told_with_its_cause_and_where_it_came_from(
    value: int, cause: str
) -> None:
    failures = Failures(where)
    assert failures.take([(ACCEPTED, 7)]) == []
    assert failures.take([(ACCEPTED, 8)]) == []
    assert failures.take([(FAILED, value), (ENDED, 7)]) == [("10.0.0.7", cause)]
    assert failures.take([(ENDED, 8)]) == []


def test_a_failure_and_its_end_may_be_read_apart() -> None:
    failures = Failures(where)
    assert failures.take([(ACCEPTED, 7), (FAILED, MISMATCH)]) == []
    assert failures.take([(ENDED, 7)]) == [("10.0.0.7", PLAIN)]


def test_a_connection_that_is_gone_already_is_not_taken_for_the_next_on_its_descriptor() -> None:
    failures = Failures(where)
    events = [(ACCEPTED, 7), (FAILED, MISMATCH), (ENDED, 7), (ACCEPTED, 9)]
    assert failures.take(events) == [("", PLAIN)]


def test_the_host_of_a_connection_is_found_and_the_connection_stays_open() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        accepted, _ = server.accept()
        with accepted:
            assert peer_address(accepted.fileno()) == "127.0.0.1"
            accepted.sendall(b"still open")
            assert client.recv(20) == b"still open"
            gone = accepted.fileno()
        assert peer_address(gone) == ""


def test_each_cause_has_words_with_the_place() -> None:
    for cause in NOTICED:
        text = words(Refusal("tcp://10.0.0.7:7600", cause, "strategy"))
        assert "10.0.0.7" in text
        assert "{" not in text
        assert "an unknown address" in words(Refusal("", cause))


def test_what_a_peer_may_tell_has_words_of_its_own_and_a_way_out() -> None:
    assert {*TOLD} >= {*TELLS.values()}
    for cause in TOLD:
        text = words(Refusal("", f"told {cause}", "feed"))
        assert text.startswith("feed makes no link to this bus: ")
        assert "; " in text


def test_who_is_revoked_is_said_once_though_it_knocks_and_is_not_linked() -> None:
    """Its knock has an address without a port, its link has one: it is one cause."""
    refusals = Refusals()
    assert refusals.note(Refusal("10.0.0.7", "revoked", "risk"), 0.0) is not None
    assert refusals.note(Refusal("tcp://10.0.0.7:7600", "revoked", "risk"), 1.0) is None
    assert refusals.note(Refusal("10.0.0.7", "revoked", "screen"), 1.0) is not None
    assert [each.times for each in refusals.due(SAID_SECONDS)] == [1]


def test_after_a_link_was_there_a_name_that_is_revoked_again_is_said_at_once() -> None:
    refusals = Refusals()
    refusal = Refusal("10.0.0.7", "revoked", "risk")
    assert refusals.note(refusal, 0.0) is not None
    refusals.forget({"tcp://10.0.0.8:7600"}, {"feed"})
    assert refusals.note(refusal, 1.0) is None
    refusals.forget({"tcp://10.0.0.7:7601"}, {"feed", "risk"})
    assert refusals.note(refusal, 2.0) is not None


def test_claims_of_a_name_are_said_once_wherever_they_are() -> None:
    """Another port each time, and a link that the true bus of that name has meanwhile."""
    refusals = Refusals()
    assert refusals.note(Refusal("tcp://10.0.0.7:1", "unproven", "risk"), 0.0) is not None
    refusals.forget({"tcp://10.0.0.7:7601"}, {"risk"})
    assert refusals.note(Refusal("tcp://10.0.0.7:2", "unproven", "risk"), 1.0) is None


def test_after_a_link_was_there_the_same_cause_is_said_at_once() -> None:
    refusals = Refusals()
    refusal = Refusal("tcp://10.0.0.7:7600", "key", "feed")
    assert refusals.note(refusal, 0.0) is not None
    assert refusals.note(refusal, 1.0) is None
    refusals.forget({"tcp://10.0.0.8:7600"})
    assert refusals.note(refusal, 2.0) is None
    refusals.forget({"tcp://10.0.0.7:7600"})
    said = refusals.note(refusal, 3.0)
    assert said is not None
    assert said.times == 1
    assert refusals.due(3.0 + SAID_SECONDS) == []
