"""The protocol between members and the registry of a rendezvous address, without I/O.

Owns the rules for `host:port` and their error texts; the two lines of the protocol, `["hello", 1,
name, endpoint]` and `["roster", 1, [[name, endpoint], ...]]`; and the members that one member knows
at all addresses. Must not know of sockets, loops or clocks. No peer is trusted: parsing returns a
member that may exist, or raises ProtocolError.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from typing import NamedTuple

import orjson

from aiobus.discovery import Member, place_of
from aiobus.limits import MAX_MEMBERS
from aiobus.query import bad_name

__all__ = [
    "MAX_ADDRESSES", "VERSION", "Address", "KnownMembers", "LineReader", "ProtocolError",
    "address_of", "addresses_in", "hello_line", "is_possible", "parse_hello", "parse_line",
    "parse_roster", "roster_line",
]  # fmt: skip

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
        """The endpoint `tcp://host:port` of this host and `port`; `*` means any free port."""
        return f"tcp://[{self.host}]:{port}" if self.is_v6 else f"tcp://{self.host}:{port}"

    @property
    def endpoint(self) -> str:
        """`tcp://host:port`, in its only spelling."""
        return self.with_port(self.port)

    def __str__(self) -> str:
        return self.endpoint.removeprefix("tcp://")


def address_of(endpoint: str) -> Address | None:
    """The address of a `tcp://host:port` on this machine, of an observer or not. None for anything
    else, and for another spelling of the same address.
    """
    endpoint = place_of(endpoint)
    try:
        address = _address(endpoint.removeprefix("tcp://"))
    except ValueError:
        return None
    return address if address.endpoint == endpoint else None


def addresses_in(text: str) -> list[Address]:
    """The addresses in what follows `tcp://` in a URL: one, or several separated by commas.

    Raises ValueError; its text names the part that is wrong and says what to write.
    """
    parts = text.split(",")
    if len(parts) > MAX_ADDRESSES:
        raise ValueError(
            f"tcp://{text} names {len(parts)} addresses, more than {MAX_ADDRESSES};"
            " a few are enough, because a running bus takes over an address that becomes free"
        )
    addresses = [_address(part) for part in parts]
    for index, address in enumerate(addresses):
        if address in addresses[:index]:
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
            f"tcp://{part}: no process can connect to {host}; write an address that every bus can"
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


class ProtocolError(ValueError):
    """A peer sent something that is not the protocol. The text never quotes what was sent."""


def is_possible(member: Member) -> bool:
    """True if `member` has a valid name and an endpoint on this machine."""
    return not bad_name(member.name) and address_of(member.endpoint) is not None


class LineReader:
    """Assembles received pieces into lines of at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without line ends. Raises ProtocolError as soon as a
        line, complete or not, is too long.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if any(len(line) > self._limit for line in (*lines, self._rest)):
            raise ProtocolError(f"a line of more than {self._limit:,} bytes")
        return lines

    def end(self) -> None:
        """The connection has ended. Raises ProtocolError if that is in the middle of a line."""
        if self._rest:
            raise ProtocolError("half a line")


def hello_line(member: Member) -> bytes:
    """The line by which a member tells a registry who it is."""
    return orjson.dumps(["hello", VERSION, *member]) + b"\n"


def roster_line(members: Iterable[Member]) -> bytes:
    """The line by which a registry announces `members`."""
    return orjson.dumps(["roster", VERSION, [[*member] for member in members]]) + b"\n"


def parse_hello(line: bytes) -> Member:
    """The member that sent this hello. Raises ProtocolError."""
    return _member(parse_line(line, "hello"), "hello")


def parse_roster(line: bytes) -> list[Member]:
    """The members on this roster. Raises ProtocolError."""
    match parse_line(line, "roster"):
        case [[*rows]] if len(rows) <= MAX_MEMBERS:
            return [_member(row, "roster") for row in rows]
    raise ProtocolError(f"a roster of another shape or of more than {MAX_MEMBERS:,} members")


def parse_line(line: bytes, kind: str) -> list[object]:
    """What stands behind kind and version in a line of this kind. Raises ProtocolError."""
    try:
        parsed = orjson.loads(line)
    except ValueError:
        raise ProtocolError("a line that is not JSON") from None
    match parsed:
        case [str(said), int(version), *rest] if said == kind:
            if version == VERSION and version is not True:
                return rest
            raise ProtocolError(f"a {kind} in another version of the protocol than {VERSION}")
    raise ProtocolError(f"a line that is no {kind}")


def _member(said: object, kind: str) -> Member:
    match said:
        case [str(name), str(endpoint)]:
            if is_possible(member := Member(name, endpoint)):
                return member
            raise ProtocolError("a member whose name or endpoint cannot be")
    raise ProtocolError(f"a {kind} of another shape")


class KnownMembers:
    """The members that one member has heard of, at any address: at most 4,096. Beyond that, the
    member that was not heard of for longest is forgotten. One process listens at an endpoint: of
    two members there, the one that was heard of first is dead, and the other has its port now.
    """

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}  # by place

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def learn(self, members: Iterable[Member]) -> list[Member]:
        """Remember `members`. Returns those that were not known before."""
        news = []
        for member in members:
            # Removed first: the order is that in which members were last heard of.
            place = place_of(member.endpoint)
            if self._members.pop(place, None) != member:
                news.append(member)
            self._members[place] = member
        while len(self._members) > MAX_MEMBERS:
            del self._members[next(iter(self._members))]
        return news

    def forget(self, members: Iterable[Member]) -> None:
        """`members` are not there. If one is heard of again, `learn` returns it again."""
        for member in members:
            if self._members.get(place := place_of(member.endpoint)) == member:
                del self._members[place]
