"""The result of `bus.stats()`: frozen snapshots of plain counters. Must not know what counts.

`bus.peers` says who is there (`presence`).
"""

from dataclasses import dataclass

__all__ = ["BusStats", "SubscriptionStats"]


@dataclass(frozen=True, slots=True)
class SubscriptionStats:
    """One subscription at one moment. Its counters begin when it is made."""

    name: str
    query: str
    """The types and keys that it selects."""
    overflow: str
    pending: int
    """Events in its inbox that are not delivered yet."""
    handled: int
    """Events whose callback returned or raised, or after which the stream asked for the next."""
    failed: int
    """Calls of its callback or its `where` that raised."""
    dropped: int
    """Events dropped by "drop_oldest", or by "latest" with more keys than `maxsize`."""
    conflated: int
    """Events that "latest" replaced by a newer one of the same (type, key)."""
    expired: int
    """Events that were not delivered because they were older than `max_age`."""
    misfits: int
    """Events whose data was not of the type that was asked for."""
    overshoot: int
    """Events that "block" accepted beyond `maxsize`, because the publisher would have waited for
    itself. With `pace=True` also events that its handler published past a reader for that reason.
    """
    gaps: int
    """Reported `aiobus.gap` events: ranges that history no longer has."""
    behind: bool
    """True while it catches up from history; live events then reach it in the pages that it
    fetches.
    """


@dataclass(frozen=True, slots=True)
class BusStats:
    """One bus at one moment."""

    name: str
    url: str
    epoch: int
    published: int
    """Events that this start has published, system events among them. With a journal, those that
    are committed; the numbers of earlier starts do not count.
    """
    unreached: tuple[str, ...]
    """Rendezvous addresses that do not answer (`tcp://127.0.0.1:7555`): the registry there may be
    frozen, and there may be buses that this one has not met. If it is empty, all were reached.
    """
    refused: int
    """Messages and queries of other buses that violated the protocol or a bound of this bus. They
    had no effect.
    """
    history_events: int
    history_bytes: int
    uncommitted: int
    """Events that have a number and wait for their commit to the journal; 4,096 at most."""
    subscriptions: tuple[SubscriptionStats, ...]
