"""The types of system events, and what the `data` of each has.

    await bus.subscribe(aiobus.system.STALE, stop_trading)
    await bus.subscribe(aiobus.system.EVERY, say)

    async def stop_trading(event: Event[aiobus.system.Stale]) -> None: ...

Pure: names alone. docs/contract.md says when each is published.
"""

from typing import Final, TypedDict

__all__ = [
    "CLOCK_SKEW",
    "DATA",
    "ERROR",
    "EVERY",
    "FRESH",
    "GAP",
    "LEFT_BEHIND",
    "OVERFLOW",
    "PEER_JOINED",
    "PEER_LEFT",
    "PEER_RESTARTED",
    "REFUSED",
    "STALE",
    "UNREACHED",
    "ClockSkew",
    "Error",
    "Fresh",
    "Gap",
    "LeftBehind",
    "Overflow",
    "PeerJoined",
    "PeerLeft",
    "PeerRestarted",
    "Refused",
    "Stale",
    "Unreached",
]

EVERY: Final = "aiobus.*"
"""In `subscribe`, `stream` and `wait_for`: every system event. `"*"` matches none of them."""

CLOCK_SKEW: Final = "aiobus.clock_skew"
ERROR: Final = "aiobus.error"
FRESH: Final = "aiobus.fresh"
GAP: Final = "aiobus.gap"
LEFT_BEHIND: Final = "aiobus.left_behind"
OVERFLOW: Final = "aiobus.overflow"
PEER_JOINED: Final = "aiobus.peer_joined"
PEER_LEFT: Final = "aiobus.peer_left"
PEER_RESTARTED: Final = "aiobus.peer_restarted"
REFUSED: Final = "aiobus.refused"
STALE: Final = "aiobus.stale"
UNREACHED: Final = "aiobus.unreached"


class ClockSkew(TypedDict):
    """The clock of a peer's host is more than 0.1 s from that of this one, or is so no more."""

    name: str
    epoch: int
    skew: float
    """Seconds that it is ahead; below 0 if it is behind."""
    error: float
    """Seconds by which `skew` may be wrong, at most."""


class Error(TypedDict):
    """A handler or a `where=` has raised, an event was not committed, or a recording has ended."""

    subscription: str
    event: str
    """The id of the event that it failed on; also the `cause` of this one."""
    error: str
    traceback: str


class Fresh(TypedDict):
    """A stale peer is heard again."""

    name: str
    epoch: int
    last: int
    silent: float
    """Seconds without a message."""


class Gap(TypedDict):
    """A subscription has lost the events of `source` with a seq above `after` and up to `upto`."""

    subscription: str
    source: str
    epoch: int
    after: int
    upto: int
    query: str
    reason: str


class LeftBehind(TypedDict):
    """With `pace=True`: publishers do not wait for this reader any more."""

    reader: str
    type: str
    after: int


class Overflow(TypedDict):
    """A subscription begins to drop events."""

    subscription: str
    dropped: int
    policy: str


class PeerJoined(TypedDict):
    """A bus is linked."""

    name: str
    epoch: int


class PeerLeft(TypedDict):
    """A bus has ended or is out of reach."""

    name: str
    epoch: int
    last: int
    reason: str


class PeerRestarted(TypedDict):
    """A bus that has a journal was away and goes on."""

    name: str
    epoch: int
    start: int
    last: int


class Refused(TypedDict):
    """A link cannot be made because of keys or of the version: this bus does not let another in, or
    the reverse.
    """

    address: str
    """Where it is, as far as that is known."""
    name: str
    """Its name, as far as that is known; not proven."""
    cause: str
    """`unknown`, `revoked`, `plain`, `mistaken`, `garbled`, `refused`, `key`, `mute` or `unlisted`;
    `told` and a cause if another bus has noticed it; `version`, which needs no keys; `stranger` for
    a connection to a rendezvous address.
    """
    count: int
    """How often since it was said last. One cause of one address is said once a minute, and a
    name that is revoked once, wherever it is.
    """
    text: str
    """The same in words, with what to do."""


class Stale(TypedDict):
    """A peer has been silent for 3 s."""

    name: str
    epoch: int
    last: int


class Unreached(TypedDict):
    """The list of rendezvous addresses that do not answer has changed."""

    addresses: list[str]


DATA: Final[dict[str, type]] = {
    CLOCK_SKEW: ClockSkew,
    ERROR: Error,
    FRESH: Fresh,
    GAP: Gap,
    LEFT_BEHIND: LeftBehind,
    OVERFLOW: Overflow,
    PEER_JOINED: PeerJoined,
    PEER_LEFT: PeerLeft,
    PEER_RESTARTED: PeerRestarted,
    REFUSED: Refused,
    STALE: Stale,
    UNREACHED: Unreached,
}
"""What the `data` of each type has."""
