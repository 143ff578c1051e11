"""An asyncio-native event bus for trading bots: nothing is lost without being reported.

Subscribe to `aiobus.gap`, `aiobus.error`, `aiobus.stale` and `aiobus.peer_left` to learn of
trouble; docs/contract.md lists all system events with the fields of their `data`.
"""

from aiobus.bus import AsyncEventBus
from aiobus.errors import (
    BusClosed,
    BusError,
    CommitFailed,
    EncodeError,
    JournalCorrupt,
    JournalError,
    JournalFailed,
    JournalInUse,
    JournalRemoved,
    NameInUse,
    NoSubscribers,
    QueueFull,
    RequestTimeout,
    WrongLoop,
)
from aiobus.event import Event, EventType
from aiobus.journal import Journal
from aiobus.limits import Limits
from aiobus.stats import BusStats, PeerStats, SubscriptionStats
from aiobus.stream import EventStream
from aiobus.subscription import Subscription

__all__ = [
    "AsyncEventBus",
    "BusClosed",
    "BusError",
    "BusStats",
    "CommitFailed",
    "EncodeError",
    "Event",
    "EventStream",
    "EventType",
    "Journal",
    "JournalCorrupt",
    "JournalError",
    "JournalFailed",
    "JournalInUse",
    "JournalRemoved",
    "Limits",
    "NameInUse",
    "NoSubscribers",
    "PeerStats",
    "QueueFull",
    "RequestTimeout",
    "Subscription",
    "SubscriptionStats",
    "WrongLoop",
]
