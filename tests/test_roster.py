"""What a holder knows of its address, what a member knows of all, and how it is said."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobus.discovery import Member
from aiobus.discovery.roster import (
    MAX_HELLO,
    MAX_MEMBERS,
    MAX_ROSTER,
    Lines,
    Malformed,
    Met,
    Roster,
    hello_line,
    is_possible,
    parse_hello,
    parse_roster,
    roster_line,
)


def member(number: int, name: str = "") -> Member:
    return Member(name or f"bot-{number}", f"tcp://127.0.0.1:{number}")


ME, A, B = member(65_535), member(1), member(2)


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
    with pytest.raises(Malformed, match=reason) as refused:
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
    with pytest.raises(Malformed):
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
        except Malformed:
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
    reader = Lines(10)
    pieces = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    assert [line for piece in pieces for line in reader.feed(piece)] == lines
    reader.end()


def test_a_line_may_be_as_long_as_the_limit_and_no_longer() -> None:
    assert Lines(MAX_HELLO).feed(b"x" * MAX_HELLO + b"\n") == [b"x" * MAX_HELLO]
    with pytest.raises(Malformed, match="more than 65,536 bytes"):
        Lines(MAX_HELLO).feed(b"x" * (MAX_HELLO + 1))
    with pytest.raises(Malformed, match="more than 65,536 bytes"):
        Lines(MAX_HELLO).feed(b"x" * (MAX_HELLO + 1) + b"\n")


def test_ending_in_the_middle_of_a_line_is_told() -> None:
    lines = Lines(10)
    assert lines.feed(b"whole\nhal") == [b"whole"]
    with pytest.raises(Malformed, match="half a line"):
        lines.end()


def test_a_roster_has_its_holder_and_who_is_connected() -> None:
    roster = Roster(ME, Met())
    roster.enter(1, A)
    roster.enter(2, B)
    roster.leave(1)
    roster.leave(1)
    assert roster.members() == [ME, B]


def test_a_member_connected_twice_stays_until_both_connections_end() -> None:
    roster = Roster(ME, Met())
    roster.enter(1, A)
    roster.enter(2, A)
    roster.leave(1)
    assert roster.members() == [ME, A]
    roster.leave(2)
    assert roster.members() == [ME]


def test_a_member_that_was_met_stays_on_the_roster_without_a_connection_until_it_is_forgotten() -> (
    None
):
    met = Met()
    roster = Roster(ME, met)
    met.learn([A, B])
    roster.enter(1, A)
    assert (roster.members(), roster.absent) == ([ME, A, B], [B])
    roster.leave(1)
    assert (set(roster.members()), set(roster.absent)) == ({ME, A, B}, {A, B})
    met.forget(roster.absent)
    assert (roster.members(), roster.absent) == ([ME], [])


def test_a_roster_never_has_more_than_its_line_may_carry() -> None:
    met = Met()
    met.learn(member(port) for port in range(1, MAX_MEMBERS + 10))
    roster = Roster(ME, met)
    last = member(MAX_MEMBERS + 20)
    roster.enter(1, last)
    members = roster.members()
    assert (len(members), members[:2]) == (MAX_MEMBERS, [ME, last])


def test_met_tells_what_is_news_and_the_same_name_elsewhere_is() -> None:
    met = Met()
    elsewhere = member(9, A.name)
    assert met.learn([A, B, A]) == [A, B]
    assert met.learn([B, elsewhere]) == [elsewhere]
    assert set(met) == {A, B, elsewhere}


def test_who_was_forgotten_is_news_again() -> None:
    met = Met()
    met.learn([A])
    met.forget([A, B])
    assert met.learn([A]) == [A]


def test_who_was_not_heard_of_for_longest_is_forgotten_first() -> None:
    met = Met()
    met.learn([A, B])
    met.learn([A])
    met.learn(member(port) for port in range(100, 100 + MAX_MEMBERS - 1))
    assert len([*met]) == MAX_MEMBERS
    assert A in met
    assert B not in met
