"""Who is at a rendezvous, where that may be, and how it is said.

Owns the rules for `host:port` and the sentences for what breaks them; the two lines of the
protocol, `["hello", 1, name, endpoint]` and `["roster", 1, [[name, endpoint], ...]]`; what a holder
knows of its address and what a member knows of all of them. Pure: time is given, bytes come and go
as values; it knows no socket and no loop. It trusts no peer: what is parsed is a member that may be
there, or `Malformed`.
"""

from collections.abc import Hashable, Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from typing import NamedTuple

import orjson

from aiobus.discovery import Member
from aiobus.query import bad_name

__all__ = [
    "MAX_ADDRESSES",
    "MAX_HELLO",
    "MAX_MEMBERS",
    "MAX_ROSTER",
    "Address",
    "Lines",
    "Malformed",
    "Met",
    "Roster",
    "address_of",
    "addresses_in",
    "hello_line",
    "is_possible",
    "parse_hello",
    "parse_roster",
    "roster_line",
]

MAX_ADDRESSES = 8


class Address(NamedTuple):
    """A loopback address as a literal, so that nothing has to be looked up, and a port."""

    host: str
    port: int

    @property
    def is_v6(self) -> bool:
        """True for `::1`."""
        return ":" in self.host

    def with_port(self, port: object) -> str:
        """The endpoint `tcp://host:port` of this host and another port; `*` asks for a free one."""
        return f"tcp://[{self.host}]:{port}" if self.is_v6 else f"tcp://{self.host}:{port}"

    @property
    def endpoint(self) -> str:
        """`tcp://host:port`, the one spelling there is of it."""
        return self.with_port(self.port)

    def __str__(self) -> str:
        return self.endpoint.removeprefix("tcp://")


def address_of(endpoint: str) -> Address | None:
    """The address of a `tcp://host:port` on this machine; None for anything else, also for another
    spelling of the same.
    """
    try:
        address = _address(endpoint.removeprefix("tcp://"))
    except ValueError:
        return None
    return address if address.endpoint == endpoint else None


def addresses_in(text: str) -> list[Address]:
    """The addresses in what follows `tcp://` in a URL: one, or several separated by commas.

    Raises ValueError that names the part that is wrong and says what to write.
    """
    parts = text.split(",")
    if len(parts) > MAX_ADDRESSES:
        raise ValueError(
            f"tcp://{text} names {len(parts)} addresses, more than {MAX_ADDRESSES};"
            " a few are enough, since whoever can takes over one that is free"
        )
    addresses = [_address(part) for part in parts]
    for place, address in enumerate(addresses):
        if address in addresses[:place]:
            raise ValueError(f"tcp://{text} names {address} twice; leave one of them out")
    return addresses


def _address(part: str) -> Address:
    host, colon, port = part.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ValueError(
            f"tcp://{part}: the port {port if colon else ''!r} is not a number from 1 to 65535;"
            " every bus has to know it, so write a free one, such as tcp://localhost:7555"
        )
    if host in ("*", "0.0.0.0", "::", "[::]"):
        raise ValueError(
            f"tcp://{part}: nobody can connect to {host}; write an address that the others can"
            f" reach, such as tcp://localhost:{port}"
        )
    return Address(_literal(host, part), int(port))


def _literal(host: str, part: str) -> str:
    if host.lower() == "localhost":
        return "127.0.0.1"
    if host == "::1":
        raise ValueError(f"tcp://{part}: an IPv6 address stands in brackets, such as [::1]:7555")
    if host == "[::1]":
        return "::1"
    with suppress(ValueError):
        if (literal := IPv4Address(host)).is_loopback:
            return str(literal)
    raise ValueError(
        f"tcp://{part}: {host!r} is not this machine. This version connects processes of one"
        " machine (localhost, 127.0.0.1, [::1]); other hosts come with keys in a later version"
    )


VERSION = 1
MAX_MEMBERS = 4_096
MAX_HELLO = 64 * 1024
"""Bytes of a line that a holder reads."""
MAX_ROSTER = 512 * 1024
"""Bytes of a line that a member reads: 4,096 members with the longest names take 400 kB."""


class Malformed(ValueError):
    """What a peer sent is not the protocol. The text says what it is, never what is in it."""


def is_possible(member: Member) -> bool:
    """True when `member` has a valid name and an endpoint on this machine."""
    return not bad_name(member.name) and address_of(member.endpoint) is not None


class Lines:
    """Puts the pieces that arrive together to lines of at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends. Raises Malformed as soon as one is
        too long, complete or not.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if any(len(line) > self._limit for line in (*lines, self._rest)):
            raise Malformed(f"a line of more than {self._limit:,} bytes")
        return lines

    def end(self) -> None:
        """There is no more. Raises Malformed when that is in the middle of a line."""
        if self._rest:
            raise Malformed("half a line")


def hello_line(member: Member) -> bytes:
    """What `member` says first."""
    return orjson.dumps(["hello", VERSION, *member]) + b"\n"


def roster_line(members: Iterable[Member]) -> bytes:
    """What a holder says of `members`."""
    return orjson.dumps(["roster", VERSION, [[*member] for member in members]]) + b"\n"


def parse_hello(line: bytes) -> Member:
    """The member that says hello. Raises Malformed."""
    match _parsed(line, "hello"):
        case [str(name), str(endpoint)]:
            return _member(name, endpoint)
    raise Malformed("a hello of another shape")


def parse_roster(line: bytes) -> list[Member]:
    """The members on a roster. Raises Malformed."""
    match _parsed(line, "roster"):
        case [[*rows]] if len(rows) <= MAX_MEMBERS:
            return [_row(row) for row in rows]
    raise Malformed(f"a roster of another shape or of more than {MAX_MEMBERS:,} members")


def _parsed(line: bytes, kind: str) -> list[object]:
    try:
        parsed = orjson.loads(line)
    except ValueError:
        raise Malformed("a line that is not JSON") from None
    match parsed:
        case [str(said), int(version), *rest] if said == kind:
            if version == VERSION and version is not True:
                return rest
            raise Malformed(f"a {kind} in another version of the protocol than {VERSION}")
    raise Malformed(f"a line that is no {kind}")


def _row(row: object) -> Member:
    match row:
        case [str(name), str(endpoint)]:
            return _member(name, endpoint)
    raise Malformed("a roster of another shape")


def _member(name: str, endpoint: str) -> Member:
    member = Member(name, endpoint)
    if not is_possible(member):
        raise Malformed("a member whose name or endpoint cannot be")
    return member


class Roster:
    """Who is at one address, as its holder tells it: `me`, each member that is connected there now,
    and those of `met` that are not. A member which is not connected may be frozen, so it stays on
    the roster, and its name is taken, until its endpoint refuses.
    """

    def __init__(self, me: Member, met: "Met") -> None:
        self._me = me
        self._met = met
        self._present: dict[Hashable, Member] = {}

    def members(self) -> list[Member]:
        """Each member once, at most 4,096: the holder first, those that are not connected last."""
        return [*dict.fromkeys((self._me, *self._present.values(), *self._met))][:MAX_MEMBERS]

    @property
    def absent(self) -> list[Member]:
        """The members that are on the roster and not connected."""
        return [*{*self._met}.difference(self._present.values())]

    def enter(self, guest: Hashable, member: Member) -> None:
        """The connection `guest` is that of `member`."""
        self._present[guest] = member

    def leave(self, guest: Hashable) -> None:
        """The connection `guest` has ended."""
        self._present.pop(guest, None)


class Met:
    """The members that one member has heard of, at whatever address: at most 4,096, and the one
    that was not heard of for longest is forgotten first.
    """

    def __init__(self) -> None:
        self._members: dict[Member, None] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members)

    def learn(self, members: Iterable[Member]) -> list[Member]:
        """Remember `members`; return those who were not known before."""
        news = []
        for member in members:
            if member not in self._members:
                news.append(member)
            # Taken out first: the order is that in which they were last heard of.
            self._members.pop(member, None)
            self._members[member] = None
        while len(self._members) > MAX_MEMBERS:
            del self._members[next(iter(self._members))]
        return news

    def forget(self, members: Iterable[Member]) -> None:
        """`members` are not there; whoever hears of one again has news."""
        for member in members:
            self._members.pop(member, None)
