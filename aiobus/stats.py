"""What `bus.stats()` returns: frozen snapshots of plain counters. A leaf: who counts and who prints
is not known here.
"""

from dataclasses import dataclass

__all__ = ["BusStats", "PeerStats", "SubscriptionStats"]


@dataclass(frozen=True, slots=True)
class PeerStats:
    """One linked bus at one moment."""

    name: str
    epoch: int
    last: int
    """The highest seq of its events that was heard of."""
    silent: float
    """Seconds since it was last heard. It sends a heartbeat each second, so up to 1 is usual; from
    3 on it is announced as `aiobus.stale`.
    """


@dataclass(frozen=True, slots=True)
class SubscriptionStats:
    """One subscription at one moment. Counters count events since it was made."""

    name: str
    query: str
    """The types and keys it selects."""
    overflow: str
    pending: int
    """In its inbox now, not yet handed over."""
    handled: int
    """Done with: the callback returned or raised, or the stream's consumer came back for more."""
    failed: int
    """Calls of its callback or its `where` that raised."""
    dropped: int
    """Thrown away by "drop_oldest", or by "latest" when it held more keys than `maxsize`."""
    conflated: int
    """Replaced by a newer one of the same (type, key) under "latest"."""
    expired: int
    """Not handed over because they were older than `max_age`."""
    overshoot: int
    """Accepted beyond `maxsize` by "block", because the publisher could only have waited for
    itself; and, with `pace=True`, what its handler published past a reader for that reason.
    """
    gaps: int
    """`aiobus.gap`s reported: ranges that history no longer held."""
    behind: bool
    """True while it catches up from history; live events then reach it by way of the pages it
    pulls.
    """


@dataclass(frozen=True, slots=True)
class BusStats:
    """One bus at one moment."""

    name: str
    url: str
    epoch: int
    published: int
    """Events this bus has numbered, system events included: the seq of the newest."""
    peers: tuple[str, ...]
    """Names of the buses that are linked: their queries are live here and ours there."""
    links: tuple[PeerStats, ...]
    """The same buses, with how long each has been silent."""
    unreached: tuple[str, ...]
    """Meeting addresses that do not answer (`tcp://127.0.0.1:7555`): the holder of one may be
    frozen, and there may be buses that this one has not met. Empty: it is not alone.
    """
    refused: int
    """Messages and queries from others that were not of the protocol, or beyond a bound of this
    bus, and had no effect.
    """
    history_events: int
    history_bytes: int
    subscriptions: tuple[SubscriptionStats, ...]
