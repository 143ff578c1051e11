"""The lines of the protocol, the members that are known, and which addresses are valid."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobus.discovery import Member
from aiobus.discovery.roster import (
    Address,
    KnownMembers,
    LineReader,
    ProtocolError,
    address_of,
    addresses_in,
    hello_line,
    is_possible,
    parse_hello,
    parse_roster,
    roster_line,
)
from aiobus.limits import MAX_HELLO, MAX_MEMBERS, MAX_ROSTER


def member(number: int, name: str = "") -> Member:
    return Member(name or f"bot-{number}", f"tcp://127.0.0.1:{number}")


A, B = member(1), member(2)


def test_a_hello_and_a_roster_are_read_as_they_were_written() -> None:
    assert hello_line(A) == b'["hello",1,"bot-1","tcp://127.0.0.1:1"]\n'
    assert parse_hello(hello_line(A)) == A
    assert roster_line([A]) == b'["roster",1,[["bot-1","tcp://127.0.0.1:1"]]]\n'
    assert parse_roster(roster_line([A, B])) == [A, B]
    assert parse_roster(roster_line([])) == []


def test_the_longest_roster_fits_into_its_line() -> None:
    longest = Member("x" * 64, "tcp://127.255.255.255:65535")
    assert is_possible(longest)
    line = roster_line([longest] * MAX_MEMBERS)
    assert len(line) <= MAX_ROSTER
    assert len(parse_roster(line)) == MAX_MEMBERS


GOOD = ["hello", 1, *A]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "not JSON"),
        (b"GET / HTTP/1.1\r", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 10_000, "not JSON"),
        (b'["hello",NaN]', "not JSON"),
        ({}, "no hello"),
        (["hello"], "no hello"),
        ([], "no hello"),
        (["hullo", 1, *A], "no hello"),
        (["roster", 1, [[*A]]], "no hello"),
        (["hello", "1", *A], "no hello"),
        (["hello", 2, *A], "another version"),
        (["hello", True, *A], "another version"),
        (GOOD[:3], "another shape"),
        ([*GOOD, "more"], "another shape"),
        (["hello", 1, 7, A.endpoint], "another shape"),
        (["hello", 1, A.name, None], "another shape"),
        (["hello", 1, "", A.endpoint], "cannot be"),
        (["hello", 1, "a b", A.endpoint], "cannot be"),
        (["hello", 1, A.name, "tcp://10.0.0.1:5"], "cannot be"),
        (["hello", 1, A.name, "ipc:///etc/passwd"], "cannot be"),
    ],
)
def test_what_is_no_hello_is_refused_and_not_quoted(said: object, reason: str) -> None:
    line = said if isinstance(said, bytes) else json.dumps(said).encode()
    with pytest.raises(ProtocolError, match=reason) as refused:
        parse_hello(line)
    assert "bot-1" not in str(refused.value)


@pytest.mark.parametrize(
    "said",
    [
        *([], {}, ["roster"], ["roster", 1], ["roster", 1, {}], ["roster", 1, "ab"]),
        *(["roster", 2, []], ["roster", 1, [], []], ["roster", 1, [["a"]]], ["hello", 1, *A]),
        *(["roster", 1, [[*A], [*B, 1]]], ["roster", 1, [["a", "tcp://*:5"]]]),
        ["roster", 1, [[*A]] * (MAX_MEMBERS + 1)],
    ],
)
def test_what_is_no_roster_is_refused(said: object) -> None:
    with pytest.raises(ProtocolError):
        parse_roster(json.dumps(said).encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text() | st.sampled_from([*GOOD, "roster"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=2),
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_whatever_arrives_is_possible_or_refused(line: bytes) -> None:
    for parse in (parse_hello, parse_roster):
        try:
            parsed = parse(line)
        except ProtocolError:
            continue
        assert all(is_possible(m) for m in ([parsed] if isinstance(parsed, Member) else parsed))


@given(
    st.lists(st.binary(max_size=6).map(lambda line: line.replace(b"\n", b"")), max_size=6),
    st.data(),
)
def test_lines_come_out_as_they_went_in_however_they_were_cut(
    lines: list[bytes], data: st.DataObject
) -> None:
    sent = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    reader = LineReader(10)
    pieces = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    assert [line for piece in pieces for line in reader.feed(piece)] == lines
    reader.end()


def test_a_line_may_be_as_long_as_the_limit_and_no_longer() -> None:
    assert LineReader(MAX_HELLO).feed(b"x" * MAX_HELLO + b"\n") == [b"x" * MAX_HELLO]
    with pytest.raises(ProtocolError, match="more than 65,536 bytes"):
        LineReader(MAX_HELLO).feed(b"x" * (MAX_HELLO + 1))
    with pytest.raises(ProtocolError, match="more than 65,536 bytes"):
        LineReader(MAX_HELLO).feed(b"x" * (MAX_HELLO + 1) + b"\n")


def test_ending_in_the_middle_of_a_line_is_told() -> None:
    lines = LineReader(10)
    assert lines.feed(b"whole\nhal") == [b"whole"]
    with pytest.raises(ProtocolError, match="half a line"):
        lines.end()


def test_met_tells_what_is_news_and_the_same_name_elsewhere_is() -> None:
    met = KnownMembers()
    elsewhere = member(9, A.name)
    assert met.learn([A, B, A]) == [A, B]
    assert met.learn([B, elsewhere]) == [elsewhere]
    assert set(met) == {A, B, elsewhere}


def test_who_was_forgotten_is_news_again() -> None:
    met = KnownMembers()
    met.learn([A])
    met.forget([A, B])
    assert met.learn([A]) == [A]


def test_who_was_not_heard_of_for_longest_is_forgotten_first() -> None:
    met = KnownMembers()
    met.learn([A, B])
    met.learn([A])
    met.learn(member(port) for port in range(100, 100 + MAX_MEMBERS - 1))
    assert len([*met]) == MAX_MEMBERS
    assert A in met
    assert B not in met


# Which addresses a URL may name, and which endpoints a member may have.


def test_several_addresses_are_separated_by_commas() -> None:
    assert addresses_in("localhost:7555,127.0.0.2:7556,[::1]:7557") == [
        Address("127.0.0.1", 7555),
        Address("127.0.0.2", 7556),
        Address("::1", 7557),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the port '' is not a number from 1 to 65535"),
        ("localhost", "the port '' is not a number from 1 to 65535"),
        ("localhost:", "the port '' is not"),
        ("localhost:http", "the port 'http' is not"),
        ("localhost:7555/desk", "the port '7555/desk' is not"),
        ("localhost:0", "the port '0' is not .* write a free one, such as tcp://localhost:7555"),
        ("localhost:65536", "the port '65536' is not"),
        ("localhost:-1", "the port '-1' is not"),
        ("localhost:\u0667", "the port '\u0667' is not"),
        ("localhost:7555,", "^tcp://: the port '' is not"),
        (",localhost:7555", "^tcp://: the port '' is not"),
        ("*:7555", r"tcp://\*:7555: no process can connect to \*; .* such as tcp://localhost:7555"),
        ("0.0.0.0:7555", "no process can connect to 0.0.0.0"),
        (":::7555", "no process can connect to ::;"),
        ("[::]:7555", r"no process can connect to \[::\]"),
        ("::1:7555", r"an IPv6 address stands in brackets, such as \[::1\]:7555"),
        ("[127.0.0.1]:7555", "is not this machine"),
        (":7555", "'' is not this machine"),
        ("desk.example.com:7555", "'desk.example.com' is not this machine"),
        ("192.168.0.7:7555", "other hosts come with keys in a later version"),
        ("127.1:7555", "'127.1' is not this machine"),
        ("localhost:7555, localhost:7556", "' localhost' is not this machine"),
        ("localhost:7555,127.0.0.1:7555", "names 127.0.0.1:7555 twice; leave one of them out"),
        (",".join(f"localhost:{7000 + i}" for i in range(9)), "names 9 addresses, more than 8"),
    ],
)
def test_an_address_that_cannot_be_served_is_refused_with_a_way_out(
    text: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        addresses_in(text)


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:1", "tcp://127.9.8.7:65535", "tcp://[::1]:5"]
)
def test_an_endpoint_and_its_address_are_each_the_others_only_spelling(endpoint: str) -> None:
    address = address_of(endpoint)
    assert address is not None
    assert address.endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        *("", "tcp://", "127.0.0.1:5", "ipc:///tmp/x", "tcp://127.0.0.1", "tcp://127.0.0.1:0"),
        *("tcp://127.0.0.1:65536", "tcp://127.0.0.1:05", "tcp://127.0.0.1:*", "tcp://*:5"),
        *("tcp://localhost:5", "tcp://10.0.0.1:5", "tcp://::1:5", "tcp://127.0.0.1:5 "),
        *("tcp://127.0.0.1:5;127.0.0.1:6", "tcp://tcp://127.0.0.1:5"),
    ],
)
def test_what_is_no_literal_endpoint_of_this_machine_has_no_address(endpoint: str) -> None:
    assert address_of(endpoint) is None


def test_an_address_is_written_as_in_a_url() -> None:
    assert [str(address) for address in addresses_in("127.0.0.1:5,[::1]:6")] == [
        "127.0.0.1:5",
        "[::1]:6",
    ]
    assert Address("::1", 6).with_port("*") == "tcp://[::1]:*"


def test_a_member_replaces_the_one_that_was_heard_of_at_its_endpoint_before() -> None:
    """The kernel gives the port of a dead process to another."""
    dead, other = Member("a", "tcp://127.0.0.1:4001"), Member("b", "tcp://127.0.0.1:4001")
    met = KnownMembers()
    assert met.learn([dead, other]) == [dead, other]
    assert [*met] == [other]
    met.forget([dead])
    assert [*met] == [other]
