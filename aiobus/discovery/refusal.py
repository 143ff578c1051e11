"""Why one member refuses another: the codes, their words, and the two lines that carry them.

Owns `["denied", 1, code]`, the last line of a registry before it ends a connection that cannot be
sealed; `["refused", 1, from, to, cause]`, by which a member tells another why it makes no link to
it; and how often the same thing is said. Pure: the time is given. No code comes from a peer
unchecked, so no text of a peer is ever said.
"""

from typing import NamedTuple

import orjson

from aiobus.discovery import CAUSES
from aiobus.discovery.roster import VERSION, ProtocolError, parse_line
from aiobus.query import bad_name

__all__ = ["DENIALS", "Denied", "Refused", "Repeats", "denied_line", "parse_denied"]

SAID_SECONDS = 60.0
"""Between two lines in the log about the same refusal of the same address."""
MAX_SAID = 256
"""Addresses and causes that are told apart in that time; the rest are said by cause alone."""


class Words(NamedTuple):
    """What is said of the other side, behind its address: by the guest, and by the registry."""

    of_registry: str
    of_guest: str


DENIALS = {
    "secret": Words(
        *["does not share this desk's secret: copy the file desk.seal of the one host to the other"]
        * 2
    ),
    "keys": Words(
        "is a desk with keys and this bus has no keyring: give keyring= or AIOBUS_KEYRING",
        "has no keyring and this is a desk with keys: give it keyring= or AIOBUS_KEYRING",
    ),
    "plain": Words(
        "is a desk without keys and this bus has a keyring: give the buses there keyring= or"
        " AIOBUS_KEYRING, or this bus another address",
        "has a keyring and this is a desk without keys: give the buses here keyring= or"
        " AIOBUS_KEYRING, or it another address",
    ),
    "version": Words(
        *["speaks another version of the protocol: run the same version of aiobus on both"] * 2
    ),
}
"""Why a connection cannot be sealed, by the code that its registry says last."""


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
    one of CAUSES.
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
                if cause in CAUSES and not (bad_name(source) or bad_name(to)):
                    return cls(source, to, cause)
                raise ProtocolError("a refusal whose names or cause cannot be")
        raise ProtocolError("a refusal of another shape")


class Repeats:
    """What was said within the last minute: of each address and cause, one line with a count."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._said)

    def due(self, address: str, cause: str, now: float) -> tuple[str, int]:
        """The address to name, and how often it happened since it was said last; 0: do not say it
        now. The address is "" if too many others did something lately. `now` is in seconds.
        """
        if (address, cause) not in self._said and len(self._said) >= MAX_SAID:
            self._said = {key: each for key, each in self._said.items() if is_recent(each, now)}
            if len(self._said) >= MAX_SAID:
                address = ""  # there are few causes, and no peer writes one
        at, count = self._said.get((address, cause), (now - SAID_SECONDS, 0))
        if now - at < SAID_SECONDS:
            self._said[address, cause] = at, count + 1
            return address, 0
        self._said[address, cause] = now, 0
        return address, count + 1


def is_recent(said: tuple[float, int], now: float) -> bool:
    """True if it was said within a minute, or within two and has happened again since."""
    at, count = said
    return now - at < (2 * SAID_SECONDS if count else SAID_SECONDS)
