"""Who listens on which link, and what each link is refused."""

import pytest

from aiobus.mesh import fanout as module
from aiobus.mesh.fanout import MAX_JUNK, MAX_NAMED, MAX_VAIN, Askers
from aiobus.wire import PeerId

BOT = PeerId("bot", 50, "ipc:///bot")
FEED = PeerId("feed", 70, "ipc:///feed")
ONE, TWO = 11, 12
"""Links."""


def topics(count: int) -> list[bytes]:
    return [b"T/%d\0" % number for number in range(count)]


def refused_all(count: int) -> Askers:
    askers = Askers()
    for name in topics(count):
        askers.refuse(ONE, name, "full")
    return askers


def test_a_link_is_from_who_said_hello_on_it_and_from_no_other() -> None:
    askers = Askers()
    assert ONE not in askers
    assert askers.hello(ONE, BOT) == []
    assert ONE in askers
    assert [askers.is_from(ONE, BOT), askers.is_from(ONE, FEED), askers.is_from(TWO, BOT)] == [
        True,
        False,
        False,
    ]


def test_who_says_hello_on_a_second_link_is_known_on_both_until_the_last_is_gone() -> None:
    askers = Askers()
    askers.hello(ONE, BOT)
    assert askers.hello(TWO, BOT) == [ONE]
    assert askers.withdraw(BOT) == [ONE, TWO]
    assert (ONE in askers, TWO in askers) == (False, False)


def test_a_link_number_that_is_used_again_is_from_who_says_hello_last() -> None:
    askers = Askers()
    askers.hello(ONE, BOT)
    askers.hello(ONE, FEED)
    assert (askers.is_from(ONE, FEED), askers.withdraw(BOT)) == (True, [])


def test_links_beyond_the_bound_push_the_oldest_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINKS", 2)
    askers = Askers()
    for link in (1, 2, 3):
        askers.hello(link, BOT)
    assert [link in askers for link in (1, 2, 3)] == [False, True, True]


def test_what_a_link_is_refused_is_told_with_its_reason_and_to_no_other_link() -> None:
    askers = Askers()
    askers.refuse(ONE, b"T/a\0", "full")
    askers.refuse(ONE, b"-T/b\0", "x" * 1_000)
    assert askers.refused(ONE) == (True, {"T/a": "full", "T/b": "x" * module.MAX_REASON})
    assert askers.refused(TWO) is None


def test_what_is_served_or_withdrawn_is_refused_no_more() -> None:
    askers = refused_all(3)
    askers.refuse(TWO, b"T/1\0", "full")
    askers.serve(ONE, b"T/0\0")
    askers.close(b"T/1\0", TWO)
    assert askers.refused(ONE) == (True, {"T/2": "full"})
    askers.close(b"T/2\0", ONE)
    assert (askers.refused(ONE), askers.refused(TWO)) == (None, None)


def test_serving_what_was_never_refused_is_no_error() -> None:
    askers = Askers()
    askers.serve(ONE, b"T\0")
    askers.close(b"T\0", ONE)
    assert askers.refused(ONE) is None


@pytest.mark.parametrize(
    "name", [b"", b"\0", b"T", b"T\0T\0", b"\xff\0", b"~bot@1 x\0", b"T" * 1_025 + b"\0"]
)
def test_what_is_no_topic_of_a_query_is_not_remembered(name: bytes) -> None:
    askers = Askers()
    askers.refuse(ONE, name, "no subscription")
    assert askers.refused(ONE) is None


def test_an_answer_names_a_bounded_number_and_says_that_there_are_more() -> None:
    refused = refused_all(MAX_NAMED).refused(ONE)
    assert refused is not None
    assert (refused[0], len(refused[1])) == (True, MAX_NAMED)
    refused = refused_all(MAX_NAMED + 1).refused(ONE)
    assert refused is not None
    assert (refused[0], len(refused[1])) == (False, MAX_NAMED)


def test_of_many_that_are_refused_each_is_tried_in_its_turn() -> None:
    askers = refused_all(2 * MAX_NAMED)
    assert [*askers.some(ONE), *askers.some(ONE)] == topics(2 * MAX_NAMED)


def test_beyond_the_bytes_that_are_remembered_no_answer_is_complete_until_the_link_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 2 * (module.OVERHEAD + 4))
    askers = Askers()
    askers.hello(ONE, BOT)
    for name in (b"T/a\0", b"T/a\0", b"T/b\0", b"T/c\0"):
        askers.refuse(ONE, name, "full")
    assert askers.refused(ONE) == (False, {"T/a": "full", "T/b": "full"})
    askers.serve(ONE, b"T/a\0")
    askers.close(b"T/b\0", ONE)
    assert askers.refused(ONE) == (False, {})
    askers.withdraw(BOT)
    assert askers.refused(ONE) is None
    askers.refuse(TWO, b"T/a\0", "full")
    assert askers.refused(TWO) == (True, {"T/a": "full"})


def test_a_link_without_a_hello_that_dies_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", module.OVERHEAD + 4)
    askers = Askers()
    askers.refuse(ONE, b"T/a\0", "full")
    askers.refuse(ONE, b"T/b\0", "full")
    for name in (b"T/a\0", b"T/b\0"):
        askers.close(name, None)
    assert askers.refused(ONE) is None


@pytest.mark.parametrize("has_said_hello", [True, False])
def test_a_refusal_that_is_not_remembered_outlasts_the_death_of_another_link(
    monkeypatch: pytest.MonkeyPatch, *, has_said_hello: bool
) -> None:
    """Its queries come before its hello, so the other may die between the two."""
    monkeypatch.setattr(module, "MAX_BYTES", module.OVERHEAD + 4)
    askers = Askers()
    askers.refuse(TWO, b"T/a\0", "full")
    if has_said_hello:
        askers.hello(ONE, BOT)
    askers.refuse(ONE, b"T/b\0", "full")
    for name in (b"T/a\0", b"T/c\0"):
        askers.close(name, None)
    askers.hello(ONE, BOT)
    assert askers.refused(ONE) == (False, {})
    assert list(askers.lacking()) == [("bot", [], False)]


def test_a_link_that_said_hello_and_is_refused_more_than_is_remembered_keeps_that_until_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last link that asks for a topic dies; this one asked for it as well, and lives."""
    monkeypatch.setattr(module, "MAX_BYTES", module.OVERHEAD + 4)
    askers = Askers()
    askers.hello(ONE, BOT)
    for name in (b"T/a\0", b"T/b\0"):
        askers.refuse(ONE, name, "full")
    askers.close(b"T/a\0", ONE)
    askers.close(b"T/a\0", None)
    assert askers.refused(ONE) == (False, {})


JUNK = b"\xff\0"


def test_a_link_is_abusive_beyond_a_number_of_topics_that_no_member_asks_for() -> None:
    askers = Askers()
    for _ in range(MAX_JUNK):
        askers.refuse(ONE, JUNK, "no subscription")
        askers.refuse(TWO, JUNK, "no subscription")
    assert not askers.is_abusive(ONE)
    askers.refuse(ONE, JUNK, "no subscription")
    assert (askers.is_abusive(ONE), askers.is_abusive(TWO)) == (True, False)


def test_a_link_is_abusive_beyond_a_number_of_queries_that_are_refused() -> None:
    askers = refused_all(MAX_VAIN)
    assert not askers.is_abusive(ONE)
    askers.refuse(ONE, b"T\0", "full")
    assert askers.is_abusive(ONE)


def test_a_link_on_which_more_and_more_say_hello_is_abusive() -> None:
    askers = Askers()
    for number in range(MAX_JUNK + 1):
        askers.hello(ONE, PeerId(f"x{number}", 1, f"ipc:///x{number}"))
        askers.hello(TWO, BOT)
    assert not askers.is_abusive(ONE)
    askers.hello(ONE, BOT)
    assert (askers.is_abusive(ONE), askers.is_abusive(TWO)) == (True, False)


@pytest.mark.parametrize("how", ["renew", "withdraw"])
def test_what_a_link_asked_for_in_vain_is_not_held_against_the_next_of_its_number(how: str) -> None:
    askers = refused_all(MAX_VAIN + 1)
    for _ in range(MAX_JUNK + 1):
        askers.refuse(ONE, JUNK, "no subscription")
    if how == "renew":
        askers.renew(ONE)
    else:
        askers.hello(ONE, BOT)
        askers.withdraw(BOT)
    assert not askers.is_abusive(ONE)


def test_who_is_refused_something_is_named_with_it() -> None:
    askers = refused_all(1)
    assert list(askers.lacking()) == []
    askers.hello(ONE, BOT)
    askers.hello(TWO, FEED)
    assert list(askers.lacking()) == [("bot", ["T/0"], True)]


def test_who_else_says_hello_from_an_endpoint_is_known_until_that_is_gone_too() -> None:
    askers, before = Askers(), PeerId("bot", 49, BOT.endpoint)
    askers.hello(ONE, BOT)
    askers.hello(TWO, before)
    askers.withdraw(before)
    assert askers.at(BOT.endpoint) == BOT
    assert askers.at(FEED.endpoint) is None
    askers.withdraw(BOT)
    assert askers.at(BOT.endpoint) is None
