"""The seal of a connection: what a holder of the secret wrote, here and next, and nothing else."""

from contextlib import suppress
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobus.discovery import Member
from aiobus.discovery.refusal import Denied, denied_line
from aiobus.discovery.roster import ProtocolError, hello_line, roster_line
from aiobus.discovery.seal import (
    MAC,
    MAX_IDS,
    Seal,
    accepted,
    answered,
    check_plain,
    id_of,
    new_nonce,
    opening,
)
from aiobus.keyring.files import Hidden

OLD, NEW, OTHER = (Hidden(bytes([number]) * 32) for number in (1, 2, 3))
HELLO = hello_line(Member("bot", "tcp://127.0.0.1:5")).rstrip(b"\n")
lines = st.binary(max_size=60).map(lambda line: line.replace(b"\n", b""))


def ends(
    guest: tuple[Hidden, ...] = (NEW,),
    registry: tuple[Hidden, ...] = (NEW,),
    nonces: tuple[str, str] | None = None,
) -> tuple[Seal, Seal]:
    """A guest and a registry that have met."""
    mine, theirs = nonces or (new_nonce(), new_nonce())
    first = opening(guest, mine)
    served, answer = answered(first[:-1], registry, theirs)
    return accepted(first, guest, answer[:-1]), served


def sealed(end: Seal, *said: bytes) -> list[bytes]:
    return [end.seal(line).removesuffix(b"\n") for line in said]


@given(st.lists(st.tuples(st.booleans(), lines), max_size=8))
def test_what_one_end_seals_the_other_opens(said: list[tuple[bool, bytes]]) -> None:
    guest, registry = ends()
    for by_guest, line in said:
        one, other = (guest, registry) if by_guest else (registry, guest)
        [sent] = sealed(one, line)
        assert other.open(sent) == line
        assert len(sent) == MAC + len(line)


@given(lines, st.data())
def test_an_altered_line_is_refused_whatever_was_altered(line: bytes, data: st.DataObject) -> None:
    guest, registry = ends()
    [sent] = sealed(guest, line)
    kind = data.draw(st.sampled_from(["replace", "insert", "remove", "cut"]))
    at = data.draw(st.integers(0, len(sent) - 1))
    byte = data.draw(st.binary(min_size=1, max_size=3))
    altered = {
        "replace": sent[:at] + byte + sent[at + len(byte) :],
        "insert": sent[:at] + byte + sent[at:],
        "remove": sent[:at] + sent[at + 1 :],
        "cut": sent[:at],
    }[kind]
    if altered != sent:
        with pytest.raises(ProtocolError, match="not sealed by this desk's secret"):
            registry.open(altered)


@given(st.lists(lines, min_size=2, max_size=4), st.data())
def test_lines_in_another_order_are_refused_at_the_first_that_is_not_next(
    said: list[bytes], data: st.DataObject
) -> None:
    guest, registry = ends()
    sent = sealed(guest, *said)
    order = data.draw(st.sampled_from(list(permutations(range(len(sent))))))
    for place, number in enumerate(order):
        if number != place:
            with pytest.raises(ProtocolError):
                registry.open(sent[number])
            break
        assert registry.open(sent[number]) == said[number]


@given(lines, st.integers(0, 3))
def test_a_line_that_is_said_again_is_refused(line: bytes, before: int) -> None:
    guest, registry = ends()
    for sent in sealed(guest, *[b"x"] * before, line):
        registry.open(sent)
    with pytest.raises(ProtocolError):
        registry.open(sent)


def test_a_line_that_follows_one_that_is_missing_is_refused() -> None:
    guest, registry = ends()
    _, second = sealed(guest, b"one", b"two")
    with pytest.raises(ProtocolError):
        registry.open(second)


@given(lines)
def test_an_own_line_that_comes_back_is_refused(line: bytes) -> None:
    """Each end has sent and heard as many lines by then, so the number alone does not tell."""
    guest, registry = ends()
    registry.open(sealed(guest, b"x")[0])
    for end in (guest, registry):
        with pytest.raises(ProtocolError):
            end.open(sealed(end, line)[0])


@given(st.lists(lines, min_size=1, max_size=3))
def test_a_line_of_another_connection_is_refused(said: list[bytes]) -> None:
    """Also if one of the two nonces is the same, as a liar may choose it."""
    a, b, c, d = (new_nonce() for _ in range(4))
    for nonces in [(c, d), (a, d), (c, b)]:
        guest, registry = ends(nonces=(a, b))
        other_guest, other_registry = ends(nonces=nonces)
        for one, other in ((guest, other_registry), (registry, other_guest)):
            with pytest.raises(ProtocolError):
                other.open(sealed(one, *said)[0])


def test_of_the_secrets_that_both_have_the_newest_of_the_registry_is_used() -> None:
    for guest, registry, used in [
        ((NEW, OLD), (NEW, OLD), NEW),
        ((OLD,), (NEW, OLD), OLD),
        ((NEW, OLD), (OLD,), OLD),
        ((OTHER, NEW), (NEW, OLD), NEW),
    ]:
        for end in ends(guest, registry):
            assert end.is_by((used,))
            assert not end.is_by(tuple(each for each in (OLD, NEW, OTHER) if each != used))


@pytest.mark.parametrize("registry", [(OLD,), ()])
def test_a_registry_denies_a_guest_that_has_no_secret_in_common(
    registry: tuple[Hidden, ...],
) -> None:
    with pytest.raises(Denied, match="does not share this desk's secret") as denied:
        answered(opening((NEW,), new_nonce())[:-1], registry, new_nonce())
    assert denied.value.code == "secret"


def test_a_guest_learns_from_the_registry_why_it_is_denied() -> None:
    first = opening((NEW,), new_nonce())
    for code, words in {
        "secret": "does not share this desk's secret",
        "plain": "is a desk without keys and this bus has a keyring",
        "version": "speaks another version",
    }.items():
        with pytest.raises(Denied, match=words) as denied:
            accepted(first, (NEW,), denied_line(code)[:-1])
        assert denied.value.code == code


def test_a_plain_hello_at_a_registry_with_keys_and_a_seal_at_one_without_are_denied() -> None:
    with pytest.raises(Denied, match="has no keyring and this is a desk with keys: give it key"):
        answered(HELLO, (NEW,), new_nonce())
    with pytest.raises(Denied, match="has a keyring and this is a desk without keys"):
        check_plain(opening((NEW,), new_nonce())[:-1])
    check_plain(HELLO)


def test_a_first_line_of_another_version_is_denied_as_such() -> None:
    for line in (b'["hello",2,"bot","x"]', b'["seal",2,"whatever"]'):
        with pytest.raises(Denied, match="another version"):
            answered(line, (NEW,), new_nonce())
        with pytest.raises(Denied, match="another version"):
            check_plain(line)


def test_a_registry_that_copies_an_id_and_has_no_secret_is_denied() -> None:
    mine, theirs = new_nonce(), new_nonce()
    first = opening((NEW,), mine)
    lie = b'["seal",1,"%b","%b"]' % (theirs.encode(), id_of(NEW).encode())
    forged = Seal(OTHER, first[:-1], theirs, is_registry=True)
    for answer in (b"0" * MAC + lie, forged.seal(lie)[:-1]):
        with pytest.raises(Denied, match="does not share this desk's secret"):
            accepted(first, (NEW,), answer)


def test_the_answer_to_another_guest_is_none_for_this_one() -> None:
    _, answer = answered(opening((NEW,), new_nonce())[:-1], (NEW,), new_nonce())
    with pytest.raises(Denied, match="does not share"):
        accepted(opening((NEW,), new_nonce()), (NEW,), answer[:-1])


def test_ids_that_were_struck_out_on_the_way_end_the_connection() -> None:
    """Else whoever is in between could choose an older secret for both."""
    nonce = new_nonce()
    first = opening((NEW, OLD), nonce)
    _, answer = answered(opening((OLD,), nonce)[:-1], (NEW, OLD), new_nonce())
    with pytest.raises(Denied):
        accepted(first, (NEW, OLD), answer[:-1])


def test_a_registry_without_keys_that_answers_all_the_same_is_named() -> None:
    with pytest.raises(Denied, match="is a desk without keys"):
        accepted(opening((NEW,), new_nonce()), (NEW,), roster_line([])[:-1])


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"GET / HTTP/1.1", b"[]", b"{}", b'["seal"]', b'["seal",1]', b"\xff" * 100),
        *(b'["seal",1,"short",[]]', b'["seal",1,7,[]]', b'["seal",1,null,null]'),
        b'["seal",1,"%b","x"]' % (b"0" * 32),
        b'["seal",1,"%b",[%b]]' % (b"0" * 32, b",".join([b'"x"'] * (MAX_IDS + 1))),
        b'["seal",1,"%b\n",[]]' % (b"0" * 32),
    ],
)
def test_what_is_no_seal_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        answered(line, (NEW,), new_nonce())
    with pytest.raises(ProtocolError):
        accepted(opening((NEW,), new_nonce()), (NEW,), b"0" * MAC + line)


@given(st.binary(max_size=200))
def test_whatever_comes_first_is_sealed_or_refused(line: bytes) -> None:
    first = opening((NEW,), new_nonce())
    with pytest.raises(ProtocolError):
        answered(line, (NEW,), new_nonce())
    with pytest.raises(ProtocolError):
        accepted(first, (NEW,), line)
    with suppress(Denied):
        check_plain(line)


def test_a_guest_offers_no_more_ids_than_a_registry_reads() -> None:
    many = tuple(Hidden(bytes([number]) * 32) for number in range(MAX_IDS + 5))
    guest, registry = ends(many, (many[MAX_IDS - 1],))
    assert registry.open(sealed(guest, b"x")[0]) == b"x"
    with pytest.raises(Denied):
        ends(many, (many[MAX_IDS],))


def test_neither_end_shows_the_secret_nor_does_a_line() -> None:
    guest, registry = ends()
    line = sealed(guest, HELLO)[0]
    for text in (repr(guest), repr(registry), str(guest), line.decode(), id_of(NEW)):
        assert NEW.value.hex() not in text
        assert repr(NEW.value) not in text


def test_no_two_connections_have_a_nonce_in_common() -> None:
    assert len({new_nonce() for _ in range(1000)}) == 1000
