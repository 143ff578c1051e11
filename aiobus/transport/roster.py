"""Who is at a rendezvous, and how that is said.

Owns the two lines of the protocol, `["hello", 1, name, endpoint]` and `["roster", 1, [[name,
endpoint], ...]]`, what a holder knows of its address and what a member knows of all of them. Pure:
time is given, bytes come and go as values; knows no socket and no loop. Trusts nobody: what is
parsed is a member who may be there, or `Malformed`.
"""

from collections.abc import Hashable, Iterable, Iterator

import orjson

from aiobus.pattern import bad_name
from aiobus.transport.address import address_of
from aiobus.transport.meeting import Member

__all__ = [
    "MAX_HELLO",
    "MAX_MEMBERS",
    "MAX_ROSTER",
    "Lines",
    "Malformed",
    "Met",
    "Roster",
    "hello_line",
    "is_possible",
    "parse_hello",
    "parse_roster",
    "roster_line",
]

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
