"""The lines of the protocol, the members that are known, and which addresses are valid."""

import json
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobus.discovery import OBSERVES, Member
from aiobus.discovery.roster import (
    Address,
    KnownMembers,
    LineReader,
    Place,
    ProtocolError,
    address_of,
    advertise_in,
    gone_line,
    hello_line,
    is_possible,
    is_unicast,
    listen_in,
    parse_gone,
    parse_hello,
    parse_roster,
    places_in,
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
    assert parse_roster(roster_line([A, B])) == ([A, B], [])
    assert parse_roster(roster_line([])) == ([], [])
    assert roster_line([], [A]) == b'["roster",1,[],[["bot-1","tcp://127.0.0.1:1"]]]\n'
    assert parse_roster(roster_line([B], [A])) == ([B], [A])
    assert gone_line([A]) == b'["gone",1,[["bot-1","tcp://127.0.0.1:1"]]]\n'
    assert parse_gone(gone_line([A, B])) == [A, B]


def test_the_longest_roster_fits_into_its_line() -> None:
    longest = Member("x" * 64, f"tcp://[fd77:{':'.join(['1111'] * 7)}]:65535{OBSERVES}")
    assert is_possible(longest, on_loopback=False)
    line = roster_line([longest] * MAX_MEMBERS)
    assert len(line) <= MAX_ROSTER
    assert len(parse_roster(line, on_loopback=False).members) == MAX_MEMBERS


REMOTE = Member("bot", "tcp://10.0.0.1:5")


@pytest.mark.parametrize("member", [A, Member("bot", "tcp://[::1]:5"), REMOTE])
def test_a_desk_has_members_on_loopback_only_or_not_at_all(member: Member) -> None:
    """One that names a loopback endpoint to another host would have it connect to itself."""
    for on_loopback in (True, False):
        if is_possible(member, on_loopback=on_loopback):
            assert parse_hello(hello_line(member), on_loopback=on_loopback) == member
            assert parse_roster(roster_line([member]), on_loopback=on_loopback).members == [member]
            continue
        with pytest.raises(ProtocolError, match="cannot be"):
            parse_hello(hello_line(member), on_loopback=on_loopback)
        with pytest.raises(ProtocolError, match="cannot be"):
            parse_roster(roster_line([member]), on_loopback=on_loopback)
    assert is_possible(member, on_loopback=member is not REMOTE)
    assert not is_possible(member, on_loopback=member is REMOTE)


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
        *(["roster", 2, []], ["roster", 1, [], [], []], ["roster", 1, [["a"]]], ["hello", 1, *A]),
        *(["roster", 1, [[*A], [*B, 1]]], ["roster", 1, [["a", "tcp://*:5"]]]),
        *(["roster", 1, [], {}], ["roster", 1, [], [["a"]]]),
        ["roster", 1, [[*A]] * (MAX_MEMBERS + 1)],
        ["roster", 1, [[*A]], [[*B]] * MAX_MEMBERS],
    ],
)
def test_what_is_no_roster_is_refused(said: object) -> None:
    with pytest.raises(ProtocolError):
        parse_roster(json.dumps(said).encode())


@pytest.mark.parametrize(
    "said",
    [
        *([], ["gone"], ["gone", 1], ["gone", 1, {}], ["gone", 1, [], []], ["gone", 2, []]),
        *(["gone", 1, [["a"]]], ["roster", 1, []], ["gone", 1, [[*A]] * (MAX_MEMBERS + 1)]),
    ],
)
def test_what_takes_no_claims_back_is_refused(said: object) -> None:
    with pytest.raises(ProtocolError):
        parse_gone(json.dumps(said).encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text() | st.sampled_from([*GOOD, "roster"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=2),
)


@given(st.ip_addresses())
def test_an_address_is_a_host_of_a_url_exactly_if_a_member_may_have_it(
    ip: IPv4Address | IPv6Address,
) -> None:
    host = str(ip) if ip.version == 4 else f"[{ip}]"
    endpoint = f"tcp://{host}:7555"
    try:
        [place] = places_in(f"{host}:7555")
    except ValueError:
        assert not is_unicast(str(ip))
        assert address_of(endpoint) is None
    else:
        assert place.endpoint == endpoint
        assert address_of(endpoint) == place.address


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


def test_who_is_only_claimed_is_no_member_until_it_is_learned() -> None:
    known = KnownMembers()
    assert known.claim([A, B, A]) == [A, B]
    assert ([*known], known.claimed) == ([], [B, A])
    assert known.is_claimed(A)
    assert known.learn([A]) == [A]
    assert ([*known], known.claimed) == ([A], [B])
    assert (known.claim([A, B]), known.is_claimed(A)) == ([], False)
    known.forget([A, B])
    assert ([*known], known.claimed) == ([], [])


def test_claims_push_out_no_member_and_are_bounded() -> None:
    known = KnownMembers()
    known.learn([A])
    known.claim(member(port) for port in range(100, 100 + MAX_MEMBERS + 5))
    assert ([*known], len(known.claimed)) == ([A], MAX_MEMBERS)


# Which addresses a URL may name, and which endpoints a member may have.


def test_several_addresses_are_separated_by_commas() -> None:
    assert places_in("localhost:7555,127.0.0.2:7556,[::1]:7557") == [
        Place("127.0.0.1", 7555),
        Place("127.0.0.2", 7556),
        Place("::1", 7557),
    ]


@pytest.mark.parametrize(
    ("text", "place", "address"),
    [
        ("192.168.0.7:7555", ("192.168.0.7", 7555), "192.168.0.7:7555"),
        ("[FD77:0:0::1]:7555", ("fd77::1", 7555), "[fd77::1]:7555"),
        ("Feed.Example.COM:7555", ("feed.example.com", 7555), None),
        ("feed-1:7555", ("feed-1", 7555), None),
        ("1.example.com:7555", ("1.example.com", 7555), None),
        (f"{'x' * 63}.example.com:1", (f"{'x' * 63}.example.com", 1), None),
    ],
)
def test_a_host_is_a_name_or_a_literal_in_its_one_spelling(
    text: str, place: tuple[str, int], address: str | None
) -> None:
    [found] = places_in(text)
    assert found == place
    assert (found.address and str(found.address)) == address
    assert str(found) == (address or text.lower())


def test_only_a_literal_is_known_to_be_loopback() -> None:
    """Another host may have another address for the same name."""
    texts = ("localhost:5", "LOCALHOST:5", "127.9.8.7:5", "[::1]:5", "10.0.0.1:5", "feed:5")
    found = [place.is_loopback for text in texts for place in places_in(text)]
    assert found == [True, True, True, True, False, False]


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
        ("[127.0.0.1]:7555", r"'\[127.0.0.1\]' is not an IPv6 address in brackets"),
        ("fd77::1", r"an IPv6 address stands in brackets, such as \[fd77::1\]:7555"),
        ("[fd77::1]", "the port '' is not a number from 1 to 65535"),
        (":7555", "^tcp://:7555: the host is missing; write its name or address before the port"),
        ("[fe80::1%eth0]:7555", "has a zone .*; write an address that every host can use"),
        ("[fe80::1]:7555", "a link-local address needs a zone, which only one host knows"),
        ("224.0.0.1:7555", "no process can connect to 224.0.0.1: it is a multicast address"),
        ("[ff02::1]:7555", r"no process can connect to \[ff02::1\]: it is a multicast address"),
        ("255.255.255.255:7555", "it is the broadcast address"),
        ("0.0.0.7:7555", "it is a reserved address"),
        ("240.0.0.1:7555", "it is a reserved address"),
        ("[::ffff:10.0.0.1]:7555", "it is the IPv4 address 10.0.0.1; write that"),
        ("[::0:0]:7555", "it stands for every address of a host"),
        ("127.1:7555", "'127.1' is neither a host name .* nor an IPv4 address"),
        ("0x7f000001:7555", "'0x7f000001' is neither a host name"),
        ("10.0.0.300:7555", "'10.0.0.300' is neither a host name"),
        ("-feed:7555", "'-feed' is neither a host name"),
        ("my_feed:7555", "'my_feed' is neither a host name"),
        ("feed..com:7555", "'feed..com' is neither a host name"),
        (f"{'x' * 64}:7555", "is neither a host name"),
        (f"{'x.' * 126}xx:7555", "is neither a host name"),
        ("f\u00fced:7555", "'f\u00fced' is neither a host name"),
        ("localhost:7555, localhost:7556", "' localhost' is neither a host name"),
        ("Feed:7555,feed:7555", "names feed:7555 twice; leave one of them out"),
        ("[fd77::1]:5,[fd77:0::1]:5", r"names \[fd77::1\]:5 twice; leave one of them out"),
        ("localhost:7555,127.0.0.1:7555", "names 127.0.0.1:7555 twice; leave one of them out"),
        (",".join(f"localhost:{7000 + i}" for i in range(9)), "names 9 addresses, more than 8"),
    ],
)
def test_an_address_that_cannot_be_served_is_refused_with_a_way_out(
    text: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        places_in(text)


@pytest.mark.parametrize(
    "endpoint",
    [
        *("tcp://127.0.0.1:1", "tcp://127.9.8.7:65535", "tcp://[::1]:5", "tcp://10.0.0.1:5"),
        *("tcp://[fd77::1]:5", "tcp://[2001:db8:0:1:1:1:1:1]:5"),
    ],
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
        *("tcp://localhost:5", "tcp://feed:5", "tcp://::1:5", "tcp://127.0.0.1:5 "),
        *("tcp://0.0.0.0:5", "tcp://[::]:5", "tcp://224.0.0.1:5", "tcp://255.255.255.255:5"),
        *("tcp://[FD77::1]:5", "tcp://[fd77:0::1]:5", "tcp://[fe80::1]:5", "tcp://[fe80::1%1]:5"),
        *("tcp://[::ffff:127.0.0.1]:5", "tcp://[127.0.0.1]:5", "tcp://[ff02::1]:5"),
        *("tcp://127.0.0.1:5;127.0.0.1:6", "tcp://tcp://127.0.0.1:5"),
    ],
)
def test_what_is_no_endpoint_of_one_interface_has_no_address(
    endpoint: str,
) -> None:
    assert address_of(endpoint) is None


def test_an_address_is_written_as_in_a_url() -> None:
    assert [str(address) for address in places_in("127.0.0.1:5,[::1]:6")] == [
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


# `listen=` and `advertise=`.


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("10.0.0.5", ("10.0.0.5", 0)),
        ("10.0.0.5:7600", ("10.0.0.5", 7600)),
        ("localhost", ("127.0.0.1", 0)),
        ("0.0.0.0", ("0.0.0.0", 0)),
        ("0.0.0.0:7600", ("0.0.0.0", 7600)),
        ("[::]", ("::", 0)),
        ("[::]:7600", ("::", 7600)),
        ("[FD77::1]:7600", ("fd77::1", 7600)),
    ],
)
def test_a_bus_listens_at_an_address_or_at_all_of_its_host(
    text: str, place: tuple[str, int]
) -> None:
    assert listen_in(text) == place


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("feed.example.com", ("feed.example.com", 0)),
        ("Feed:7600", ("feed", 7600)),
        ("10.0.0.5:7600", ("10.0.0.5", 7600)),
        ("[fd77::1]", ("fd77::1", 0)),
    ],
)
def test_others_are_told_a_name_or_an_address(text: str, place: tuple[str, int]) -> None:
    assert advertise_in(text) == place


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'host' or 'host:port' is needed, such as '0.0.0.0'"),
        (7600, "'host' or 'host:port' is needed"),
        ("feed:7600", "'feed' is a name; write an address of this host, or 0.0.0.0"),
        ("fd77::1", r"an IPv6 address stands in brackets, such as \[fd77::1\]"),
        ("::", r"an IPv6 address stands in brackets, such as \[::\]"),
        ("10.0.0.5:0", "the port '0' is not a number from 1 to 65535; leave it out"),
        ("10.0.0.5:http", "the port 'http' is not a number"),
        ("*", r"'\*' is neither a host name"),
        (":7600", "the host is missing"),
        ("224.0.0.1", "it is a multicast address"),
        ("tcp://10.0.0.5:7600", "an IPv6 address stands in brackets|neither a host name"),
    ],
)
def test_where_no_bus_can_listen_is_refused_with_a_way_out(text: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^listen=.*({sentence})"):
        listen_in(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "'host' or 'host:port' is needed, such as 'feed.example.com'"),
        ("0.0.0.0", "no process can connect to 0.0.0.0; .* and the wildcard as listen="),
        ("[::]:7600", r"no process can connect to \[::\]"),
        ("*:7600", r"no process can connect to \*"),
        ("255.255.255.255", "it is the broadcast address"),
        ("feed:70000", "the port '70000' is not a number"),
        ("a b", "'a b' is neither a host name"),
    ],
)
def test_what_no_other_bus_can_connect_to_is_not_advertised(text: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^advertise=.*{sentence}"):
        advertise_in(text)
