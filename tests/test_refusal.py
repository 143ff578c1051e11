"""The lines that say why, and how often the same is said."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobus.discovery import CAUSES
from aiobus.discovery.refusal import (
    DENIALS,
    MAX_SAID,
    SAID_SECONDS,
    Refused,
    Repeats,
    denied_line,
    parse_denied,
)
from aiobus.discovery.roster import ProtocolError


@pytest.mark.parametrize("code", DENIALS)
def test_a_denial_is_read_as_it_was_written(code: str) -> None:
    assert parse_denied(denied_line(code)) == code


@given(st.binary() | st.text().map(lambda text: json.dumps(["denied", 1, text]).encode()))
def test_what_is_no_denial_says_nothing(line: bytes) -> None:
    assert parse_denied(line) in {"", *DENIALS}


@pytest.mark.parametrize("cause", CAUSES)
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


def test_the_same_is_said_once_a_minute_with_how_often_it_was() -> None:
    repeats = Repeats()
    assert repeats.due("10.0.0.7", "knocks", 5.0) == ("10.0.0.7", 1)
    for after in range(9):
        assert repeats.due("10.0.0.7", "knocks", 5.0 + after)[1] == 0
    assert repeats.due("10.0.0.7", "knocks", 5.0 + SAID_SECONDS) == ("10.0.0.7", 10)
    assert repeats.due("10.0.0.7", "knocks", 6.0 + SAID_SECONDS)[1] == 0


def test_another_address_and_another_cause_are_said_at_once() -> None:
    repeats = Repeats()
    repeats.due("10.0.0.7", "knocks", 5.0)
    assert repeats.due("10.0.0.8", "knocks", 5.0) == ("10.0.0.8", 1)
    assert repeats.due("10.0.0.7", "sings", 5.0) == ("10.0.0.7", 1)


def test_of_thousands_of_addresses_the_rest_is_said_together_and_none_is_uncounted() -> None:
    repeats = Repeats()
    said = [repeats.due(f"10.0.{each // 250}.{each % 250}", "knocks", 5.0) for each in range(2_000)]
    assert [count for _, count in said] == [1] * (MAX_SAID + 1) + [0] * (1_999 - MAX_SAID)
    assert said[MAX_SAID] == ("", 1)
    assert len(repeats) == MAX_SAID + 1
    assert repeats.due("10.1.0.0", "knocks", 4.0 + SAID_SECONDS)[1] == 0
    # A minute later those who were silent are forgotten, and a newcomer is told apart again.
    assert repeats.due("10.1.0.1", "knocks", 5.0 + SAID_SECONDS) == ("10.1.0.1", 1)
    assert len(repeats) == 2
