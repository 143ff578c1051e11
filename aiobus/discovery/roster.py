"""The protocol between members and the registry of a rendezvous address, without I/O.

Owns the rules for `host:port` and their error texts; the two lines of the protocol, `["hello", 1,
name, endpoint]` and `["roster", 1, [[name, endpoint], ...]]`; and the members that one member knows
at all addresses, and which of them only say so themselves. Must not know of sockets, loops or
clocks. No peer is trusted: parsing returns a member that may exist, or raises ProtocolError.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from typing import NamedTuple

import orjson

from aiobus.discovery import Member, place_of
from aiobus.limits import MAX_MEMBERS
from aiobus.query import bad_name

__all__ = [
    "MAX_ADDRESSES", "VERSION", "Address", "KnownMembers", "LineReader", "Place", "ProtocolError",
    "Roster", "address_of", "advertise_in", "gone_line", "hello_line", "is_possible", "is_unicast",
    "listen_in", "parse_gone", "parse_hello", "parse_line", "parse_roster", "places_in",
    "roster_line",
]  # fmt: skip

MAX_ADDRESSES = 8
WILDCARDS = ("0.0.0.0", "::")


class Address(NamedTuple):
    """An address as a literal, so that nothing has to be looked up, and a port."""

    host: str
    port: int

    @property
    def is_v6(self) -> bool:
        """True for an IPv6 address."""
        return ":" in self.host

    @property
    def is_loopback(self) -> bool:
        """True if only processes of this host can reach it."""
        return ip_address(self.host).is_loopback

    @property
    def is_wildcard(self) -> bool:
        """True if it stands for every address of a host."""
        return self.host in WILDCARDS

    def with_port(self, port: object) -> str:
        """The endpoint `tcp://host:port` of this host and `port`; `*` means any free port."""
        return f"tcp://[{self.host}]:{port}" if self.is_v6 else f"tcp://{self.host}:{port}"

    @property
    def endpoint(self) -> str:
        """`tcp://host:port`, in its only spelling."""
        return self.with_port(self.port)

    def __str__(self) -> str:
        return self.endpoint.removeprefix("tcp://")


class Place(NamedTuple):
    """Where a URL, `listen=` or `advertise=` points to. A host without a port has port 0."""

    host: str
    """A name in lower case, or a literal in its one spelling, without brackets."""
    port: int

    @property
    def address(self) -> Address | None:
        """The address, if the host is a literal; None for a name, which has to be resolved."""
        try:
            ip_address(self.host)
        except ValueError:
            return None
        return Address(*self)

    @property
    def is_loopback(self) -> bool:
        """True for a loopback literal. A name may stand for another address on another host."""
        return (address := self.address) is not None and address.is_loopback

    @property
    def endpoint(self) -> str:
        """`tcp://host:port`."""
        return f"tcp://{self}"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.address is None else str(self.address)


def is_unicast(host: str) -> bool:
    """True if `host` is the literal of one interface, in its only spelling: no wildcard, multicast,
    broadcast or reserved address, no IPv4 address in an IPv6 one, and none that needs a zone.
    """
    try:
        ip = ip_address(host)
    except ValueError:
        return False
    return str(ip) == host and not _why_not_unicast(ip)


def _why_not_unicast(ip: IPv4Address | IPv6Address) -> str:
    if ip.is_loopback:
        return ""
    if str(ip) in WILDCARDS:
        return "it stands for every address of a host"
    if ip.is_multicast:
        return "it is a multicast address"
    if isinstance(ip, IPv4Address):
        if ip == IPv4Address("255.255.255.255"):
            return "it is the broadcast address"
        if ip.is_reserved or ip in IPv4Network("0.0.0.0/8"):
            return "it is a reserved address"
        return ""
    if ip.ipv4_mapped is not None:
        return f"it is the IPv4 address {ip.ipv4_mapped}; write that"
    if ip.is_link_local:
        return "a link-local address needs a zone, which only one host knows"
    return "it is a reserved address" if ip.is_reserved else ""


def address_of(endpoint: str) -> Address | None:
    """The address of `tcp://host:port` with a unicast literal, of an observer or not. None for
    anything else, and for another spelling of the same address.
    """
    endpoint = place_of(endpoint)
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not _is_port(port):
        return None
    address = Address(host.removeprefix("[").removesuffix("]"), int(port))
    return address if is_unicast(address.host) and address.endpoint == endpoint else None


def places_in(text: str) -> list[Place]:
    """The places in what follows `tcp://` in a URL: one, or several separated by commas.

    Raises ValueError; its text names the part that is wrong and says what to write.
    """
    parts = text.split(",")
    if len(parts) > MAX_ADDRESSES:
        raise ValueError(
            f"tcp://{text} names {len(parts)} addresses, more than {MAX_ADDRESSES};"
            " a few are enough, because a running bus takes over an address that becomes free"
        )
    places = [_place(part) for part in parts]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise ValueError(f"tcp://{text} names {place} twice; leave one of them out")
    return places


def _place(part: str) -> Place:
    host, colon, port = part.rpartition(":")
    if not _is_port(port):
        said = port if colon and not port.endswith("]") else ""
        raise ValueError(
            f"tcp://{part}: the port {said!r} is not a number from 1 to 65535;"
            " every bus has to know it, so write a free one, such as tcp://localhost:7555"
        )
    if host in ("*", "0.0.0.0", "::", "[::]"):
        raise ValueError(
            f"tcp://{part}: no process can connect to {host}; write an address that every bus can"
            f" reach, such as tcp://localhost:{port}"
        )
    return Place(_host(host, f"tcp://{part}", part), int(port))


def listen_in(text: object) -> Place:
    """The place that `listen=` names: a literal of this host, or a wildcard. Port 0 if it names
    none. Raises ValueError.
    """
    host, port = _parts(text, "listen", "'0.0.0.0', '10.0.0.5' or '10.0.0.5:7600'")
    said = f"listen={text!r}"
    wildcard = host.removeprefix("[").removesuffix("]")
    if host in ("0.0.0.0", "[::]"):
        return Place(wildcard, port)
    place = Place(_host(host, said, host), port)
    if place.address is None:
        raise ValueError(
            f"{said}: {host!r} is a name; write an address of this host, or 0.0.0.0 or [::] for all"
            " of them. What others are to connect to may be a name: advertise="
        )
    return place


def advertise_in(text: object) -> Place:
    """The place that `advertise=` names. Port 0 if it names none. Raises ValueError."""
    host, port = _parts(text, "advertise", "'feed.example.com', '10.0.0.5' or '10.0.0.5:7600'")
    said = f"advertise={text!r}"
    if host in ("*", *WILDCARDS, "[::]"):
        raise ValueError(
            f"{said}: no process can connect to {host}; write the address at which other buses"
            " reach this one, and the wildcard as listen="
        )
    return Place(_host(host, said, host), port)


def _parts(text: object, keyword: str, such: str) -> tuple[str, int]:
    if not isinstance(text, str) or not text:
        raise ValueError(f"{keyword}={text!r}: 'host' or 'host:port' is needed, such as {such}")
    if _as_v6(text) is not None:
        said = f"{keyword}={text!r}"
        raise ValueError(f"{said}: an IPv6 address stands in brackets, such as [{text}]")
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text, 0
    if not _is_port(port):
        raise ValueError(
            f"{keyword}={text!r}: the port {port!r} is not a number from 1 to 65535; leave it out"
            " for any free one"
        )
    return host, int(port)


def _is_port(text: str) -> bool:
    is_number = text.isascii() and text.isdigit() and len(text) <= 5
    return is_number and 0 < int(text) < 65536


def _as_v6(text: str) -> IPv6Address | None:
    with suppress(ValueError):
        return IPv6Address(text)
    return None


def _as_v4(text: str) -> IPv4Address | None:
    with suppress(ValueError):
        return IPv4Address(text)
    return None


LABEL = re.compile("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
NUMBER = re.compile("[0-9]+|0x[0-9a-f]*")


def _host(host: str, said: str, part: str) -> str:
    """The host of a part as a literal without brackets, or a name. Raises ValueError."""
    if not host:
        raise ValueError(f"{said}: the host is missing; write its name or address before the port")
    if "%" in host:
        raise ValueError(
            f"{said}: {host!r} has a zone (%...), which means something on one host only; write an"
            " address that every host can use"
        )
    if host.startswith("[") and host.endswith("]"):
        if (ip := _as_v6(host[1:-1])) is None:
            raise ValueError(f"{said}: {host!r} is not an IPv6 address in brackets")
        return _unicast(ip, host, said)
    if ":" in host:
        bare = part if _as_v6(host) is None and _as_v6(part) is not None else host
        raise ValueError(f"{said}: an IPv6 address stands in brackets, such as [{bare}]:7555")
    name = host.lower()
    if name == "localhost":
        return "127.0.0.1"
    if (v4 := _as_v4(host)) is not None:
        return _unicast(v4, host, said)
    labels = name.split(".")
    # What ends in a number is an abbreviation of an IPv4 address to some resolvers.
    is_name = all(map(LABEL.fullmatch, labels)) and not NUMBER.fullmatch(labels[-1])
    if len(name) > 253 or not is_name:
        raise ValueError(
            f"{said}: {host!r} is neither a host name (letters, digits and hyphens between dots)"
            " nor an IPv4 address, nor an IPv6 address in brackets"
        )
    return name


def _unicast(ip: IPv4Address | IPv6Address, host: str, said: str) -> str:
    if reason := _why_not_unicast(ip):
        raise ValueError(f"{said}: no process can connect to {host}: {reason}")
    return str(ip)


VERSION = 1


class ProtocolError(ValueError):
    """A peer sent something that is not the protocol. The text never quotes what was sent."""


def is_possible(member: Member, *, on_loopback: bool = True) -> bool:
    """True if `member` has a valid name and, on a desk that is wholly `on_loopback`, an endpoint
    there, on any other one that other hosts may reach.
    """
    address = None if bad_name(member.name) else address_of(member.endpoint)
    return address is not None and address.is_loopback == on_loopback


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


def roster_line(members: Iterable[Member], claimed: Sequence[Member] = ()) -> bytes:
    """The line by which a registry announces `members`, and those that are only `claimed`."""
    said: list[object] = ["roster", VERSION, [[*member] for member in members]]
    if claimed:
        said.append([[*member] for member in claimed])
    return orjson.dumps(said) + b"\n"


def parse_hello(line: bytes, *, on_loopback: bool = True) -> Member:
    """The member that sent this hello, if it is possible on such a desk. Raises ProtocolError."""
    return _member(parse_line(line, "hello"), "hello", on_loopback=on_loopback)


def gone_line(members: Iterable[Member]) -> bytes:
    """The line by which a registry with keys takes claims back."""
    return orjson.dumps(["gone", VERSION, [[*member] for member in members]]) + b"\n"


def parse_gone(line: bytes, *, on_loopback: bool = True) -> list[Member]:
    """The members in such a line, if all are possible on such a desk. Raises ProtocolError."""
    match parse_line(line, "gone"):
        case [[*rows]] if len(rows) <= MAX_MEMBERS:
            return [_member(row, "gone", on_loopback=on_loopback) for row in rows]
    raise ProtocolError(f"a gone of another shape or of more than {MAX_MEMBERS:,} members")


class Roster(NamedTuple):
    """What a registry announces."""

    members: list[Member]
    claimed: list[Member]
    """Of a desk with keys: those that have said so themselves, and have not proven it yet."""


def parse_roster(line: bytes, *, on_loopback: bool = True) -> Roster:
    """The roster in this line, if all on it are possible on such a desk. Raises ProtocolError."""
    said = parse_line(line, "roster")
    match said if len(said) == 2 else [*said, []]:
        case [[*rows], [*claimed]] if len(rows) + len(claimed) <= MAX_MEMBERS:
            of_desk = partial(_member, kind="roster", on_loopback=on_loopback)
            return Roster([*map(of_desk, rows)], [*map(of_desk, claimed)])
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


def _member(said: object, kind: str, *, on_loopback: bool) -> Member:
    match said:
        case [str(name), str(endpoint)]:
            if is_possible(member := Member(name, endpoint), on_loopback=on_loopback):
                return member
            raise ProtocolError("a member whose name or endpoint cannot be")
    raise ProtocolError(f"a {kind} of another shape")


class KnownMembers:
    """The members that one member has heard of, at any address: at most 4,096. Beyond that, the
    member that was not heard of for longest is forgotten. One process listens at an endpoint: of
    two members there, the one that was heard of first is dead, and the other has its port now.

    On a desk with keys, a member that says hello to a registry has proven the secret of the desk
    and not its name. Until a bus has met it on a link, it is `claimed`. At most 4,096 claims are
    remembered beside the members, and a claim pushes out no member.
    """

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}  # by place
        self._claimed: dict[str, Member] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __contains__(self, member: Member) -> bool:
        return self._members.get(place_of(member.endpoint)) == member

    @property
    def claimed(self) -> list[Member]:
        """Those that only they themselves have told of."""
        return [*self._claimed.values()]

    def learn(self, members: Iterable[Member]) -> list[Member]:
        """Remember `members`. Returns those that were not known before, or only claimed."""
        news = []
        for member in members:
            place = place_of(member.endpoint)
            self._claimed.pop(place, None)
            # Removed first: the order is that in which members were last heard of.
            if self._members.pop(place, None) != member:
                news.append(member)
            self._members[place] = member
        while len(self._members) > MAX_MEMBERS:
            del self._members[next(iter(self._members))]
        return news

    def claim(self, members: Iterable[Member]) -> list[Member]:
        """`members` are only claimed. Returns those that were not known before, nor claimed."""
        news = []
        for member in members:
            if member in self:
                continue
            place = place_of(member.endpoint)
            if self._claimed.pop(place, None) != member:
                news.append(member)
            self._claimed[place] = member
        while len(self._claimed) > MAX_MEMBERS:
            del self._claimed[next(iter(self._claimed))]
        return news

    def is_claimed(self, member: Member) -> bool:
        """True if only it itself has told of it."""
        return self._claimed.get(place_of(member.endpoint)) == member

    def forget(self, members: Iterable[Member]) -> None:
        """`members` are not there. If one is heard of again, `learn` returns it again."""
        for member in members:
            place = place_of(member.endpoint)
            for known in (self._members, self._claimed):
                if known.get(place) == member:
                    del known[place]
