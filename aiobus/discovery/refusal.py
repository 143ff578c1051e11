"""The two lines of a rendezvous that say why: a connection is ended, or a link is not made.

Owns `["denied", 1, code]`, the last line of a registry before it ends a connection that cannot be
sealed, and `["refused", 1, from, to, cause]`, by which a member tells another why it makes no link
to it, and how many of these a minute may have. Pure: what the codes mean is in `refusals`, and no
other code is read.
"""

import math
from typing import NamedTuple

import orjson

from aiobus.discovery.roster import VERSION, ProtocolError, parse_line
from aiobus.query import bad_name
from aiobus.refusals import DENIALS, TOLD

__all__ = [
    "Allowance", "Denied", "Refused", "denied_line", "is_of_another_version", "kind_of",
    "parse_denied",
]  # fmt: skip

MINUTE = 60.0


class Denied(ProtocolError):
    """The two ends of a connection have nothing in common. `code` is one of DENIALS."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(words)
        self.code = code


def denied_line(code: str) -> bytes:
    """The last line of a registry on a connection that it ends, in the clear."""
    return orjson.dumps(["denied", VERSION, code]) + b"\n"


def parse_denied(line: bytes) -> str:
    """The code in such a line; "" if it is none. Who wrote it is not proven, so nothing but what is
    said may depend on it.
    """
    match _loaded(line):
        case ["denied", _, str(code)] if code in DENIALS:
            return code
    return ""


def kind_of(line: bytes) -> str:
    """What a line in the clear says that it is: "hello", "seal", "roster"; "" for anything else."""
    match _loaded(line):
        case [str(kind), int(), *_]:
            return kind
    return ""


def is_of_another_version(line: bytes) -> bool:
    """True for a first line of this protocol in a version that is not this one."""
    match _loaded(line):
        case ["hello" | "seal", int(version), *_]:
            return version != VERSION
    return False


def _loaded(line: bytes) -> object:
    try:
        return orjson.loads(line)
    except ValueError:
        return None


class Refused(NamedTuple):
    """The member `source` tells the member `to` that it makes no link to it, because of `cause`,
    one of TOLD.
    """

    source: str
    to: str
    cause: str

    @property
    def line(self) -> bytes:
        """The line, which is sent sealed only."""
        return orjson.dumps(["refused", VERSION, *self]) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> "Refused":
        """What such a line says. Raises ProtocolError."""
        match parse_line(line, "refused"):
            case [str(source), str(to), str(cause)]:
                if cause in TOLD and not (bad_name(source) or bad_name(to)):
                    return cls(source, to, cause)
                raise ProtocolError("a refusal whose names or cause cannot be")
        raise ProtocolError("a refusal of another shape")


class Allowance:
    """Of the refusals on one connection, the first `most` of each minute."""

    __slots__ = ("_began", "_most", "_used")

    def __init__(self, most: int) -> None:
        self._most = most
        self._began = -math.inf
        self._used = 0

    def has_room(self, now: float) -> bool:
        """Count one more. False if it is beyond the bound. `now`: monotonic seconds."""
        if now - self._began >= MINUTE:
            self._began, self._used = now, 0
        self._used += 1
        return self._used <= self._most
