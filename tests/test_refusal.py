"""Why there is no link: the lines that say so, the words, and how often the same is said."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobus.discovery.refusal import Allowance, Refused, denied_line, parse_denied
from aiobus.discovery.roster import ProtocolError
from aiobus.refusals import (
    DENIALS,
    MOST,
    NOTICED,
    SAID_SECONDS,
    TELLS,
    TOLD,
    Refusal,
    Refusals,
    words,
)


@pytest.mark.parametrize("code", DENIALS)
def test_a_denial_is_read_as_it_was_written(code: str) -> None:
    assert parse_denied(denied_line(code)) == code


@given(st.binary() | st.text().map(lambda text: json.dumps(["denied", 1, text]).encode()))
def test_what_is_no_denial_says_nothing(line: bytes) -> None:
    assert parse_denied(line) in {"", *DENIALS}


@pytest.mark.parametrize("cause", TOLD)
def test_a_refusal_is_read_as_it_was_written(cause: str) -> None:
    refused = Refused("feed", "bot", cause)
    assert refused.line == b'["refused",1,"feed","bot","%b"]\n' % cause.encode()
    assert Refused.parse(refused.line) == refused


@pytest.mark.parametrize(
    "said",
    [
        *([], {}, ["refused"], ["refused", 1], ["refused", 2, "a", "b", "key"]),
        *(["refused", 1, "a", "b"], ["refused", 1, "a", "b", "key", 1]),
        *(["refused", 1, "a", "b", "whatever"], ["refused", 1, "a", 7, "key"]),
        *(["refused", 1, "a b", "b", "key"], ["refused", 1, "a", "", "key"]),
        ["refused", 1, "a", "b", ["key"]],
    ],
)
def test_what_is_no_refusal_is_refused(said: object) -> None:
    with pytest.raises(ProtocolError):
        Refused.parse(json.dumps(said).encode())


def test_an_allowance_is_there_again_in_the_next_minute() -> None:
    tells = Allowance(2)
    assert [tells.has_room(5.0 + each) for each in range(4)] == [True, True, False, False]
    assert not tells.has_room(64.9)
    assert tells.has_room(65.0)


# What is said, and how often.

KNOCKS = Refusal("10.0.0.7", "knocks")


def test_the_same_is_said_once_a_minute_with_how_often_it_was() -> None:
    refusals = Refusals()
    assert refusals.note(KNOCKS, 5.0) == KNOCKS
    for after in range(9):
        assert refusals.note(KNOCKS, 5.0 + after) is None
    assert refusals.note(KNOCKS, 5.0 + SAID_SECONDS) == KNOCKS._replace(times=10)
    assert refusals.note(KNOCKS, 6.0 + SAID_SECONDS) is None


def test_the_last_count_is_said_by_itself_a_minute_later() -> None:
    refusals = Refusals()
    refusals.note(KNOCKS, 5.0)
    refusals.note(KNOCKS, 6.0)
    refusals.note(KNOCKS._replace(times=3), 7.0)
    assert refusals.due(4.0 + SAID_SECONDS) == []
    assert refusals.due(5.0 + SAID_SECONDS) == [KNOCKS._replace(times=4)]
    assert refusals.note(KNOCKS, 6.0 + SAID_SECONDS) is None
    assert refusals.due(5.0 + 2 * SAID_SECONDS) == [KNOCKS]
    assert refusals.due(5.0 + 3 * SAID_SECONDS) == []
    assert len(refusals) == 0


@pytest.mark.parametrize(
    "other",
    [KNOCKS._replace(address="10.0.0.8"), KNOCKS._replace(cause="sings"), Refusal("", "knocks")],
)
def test_another_address_and_another_cause_are_said_at_once(other: Refusal) -> None:
    refusals = Refusals()
    refusals.note(KNOCKS, 5.0)
    assert refusals.note(other, 5.0) == other


def test_two_names_without_an_address_are_told_apart() -> None:
    refusals = Refusals()
    for name in ("feed", "bot"):
        refusal = Refusal("", "told key", name)
        assert refusals.note(refusal, 5.0) == refusal
    assert refusals.note(refusal, 5.0) is None


def test_of_thousands_of_addresses_the_rest_is_said_together_and_none_is_uncounted() -> None:
    refusals = Refusals()
    said = []
    for each in range(2_000):
        refusal = Refusal(f"10.0.{each // 250}.{each % 250}", "knocks", "bot")
        said.append(refusals.note(refusal, 5.0))
    assert [each is not None for each in said] == [True] * (MOST + 1) + [False] * (1_999 - MOST)
    assert said[MOST] == Refusal("", "knocks")
    assert len(refusals) == MOST + 1
    # A minute later those who were silent are forgotten, and a newcomer is told apart again.
    assert refusals.due(5.0 + SAID_SECONDS) == [Refusal("", "knocks", times=1_999 - MOST)]
    newcomer = Refusal("10.1.0.1", "knocks")
    assert refusals.note(newcomer, 5.0 + SAID_SECONDS) == newcomer
    assert len(refusals) == 2


@pytest.mark.parametrize("cause", [*NOTICED, *(f"told {each}" for each in TOLD)])
@pytest.mark.parametrize(("address", "name"), [("tcp://10.0.0.7:5", "feed"), ("", "")])
def test_each_cause_is_a_sentence_with_and_without_an_address(
    cause: str, address: str, name: str
) -> None:
    text = words(Refusal(address, cause, name))
    assert "  " not in text
    assert "{" not in text
    assert " at  " not in text
    if cause.startswith("told "):
        assert text.startswith(f"{name or 'a bus'} makes no link to this bus: ")
    else:
        assert (address or "an unknown address") in text


def test_what_the_other_side_is_told_is_a_cause_that_it_knows() -> None:
    assert {*TELLS} <= {*NOTICED}
    assert {*TELLS.values()} <= {*TOLD}
