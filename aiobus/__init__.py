"""An asyncio-native event bus for trading bots: nothing is lost without being reported.

Subscribe to `aiobus.gap`, `aiobus.error`, `aiobus.stale` and `aiobus.peer_left` to learn of
trouble; docs/contract.md lists all system events with the fields of their `data`.
"""

from aiobus import clock, system, types
from aiobus.bot.process import run
from aiobus.bus import AsyncEventBus
from aiobus.errors import (
    AlreadyReplied,
    BusClosed,
    BusError,
    CommitFailed,
    Deadlock,
    EncodeError,
    JournalCorrupt,
    JournalError,
    JournalFailed,
    JournalInUse,
    JournalRemoved,
    JournalRestored,
    KeyringError,
    LeavesProcess,
    NameInUse,
    NoSubscribers,
    NotPermitted,
    NotRecorded,
    PayloadError,
    PeerTimeout,
    QueueFull,
    RequestInterrupted,
    RequestTimeout,
    StateCorrupt,
    WrongLoop,
)
from aiobus.event import Event, EventType, Topic
from aiobus.journal import Journal
from aiobus.keeper.keeper import Keeper
from aiobus.keyring import Keyring
from aiobus.limits import Limits
from aiobus.presence import Peer
from aiobus.recorder import Recording, record
from aiobus.replay.comparison import WhatIfReport
from aiobus.replay.explain import explain
from aiobus.replay.explanation import Explanation
from aiobus.replay.hops import Hops, explain_hops
from aiobus.replay.report import Difference, Report
from aiobus.replay.republish import republish
from aiobus.replay.transport import Progress, Replay
from aiobus.replay.verify import assert_replays, verify
from aiobus.replay.what_if import what_if
from aiobus.stats import BusStats, SubscriptionStats
from aiobus.stream import EventStream
from aiobus.subscription import Subscription
from aiobus.virtual_loop import VirtualLoop
from aiobus.virtual_run import run_virtual

__version__ = "0.1.0"

__all__ = [
    "AlreadyReplied",
    "AsyncEventBus",
    "BusClosed",
    "BusError",
    "BusStats",
    "CommitFailed",
    "Deadlock",
    "Difference",
    "EncodeError",
    "Event",
    "EventStream",
    "EventType",
    "Explanation",
    "Hops",
    "Journal",
    "JournalCorrupt",
    "JournalError",
    "JournalFailed",
    "JournalInUse",
    "JournalRemoved",
    "JournalRestored",
    "Keeper",
    "Keyring",
    "KeyringError",
    "LeavesProcess",
    "Limits",
    "NameInUse",
    "NoSubscribers",
    "NotPermitted",
    "NotRecorded",
    "PayloadError",
    "Peer",
    "PeerTimeout",
    "Progress",
    "QueueFull",
    "Recording",
    "Replay",
    "Report",
    "RequestInterrupted",
    "RequestTimeout",
    "StateCorrupt",
    "Subscription",
    "SubscriptionStats",
    "Topic",
    "VirtualLoop",
    "WhatIfReport",
    "WrongLoop",
    "assert_replays",
    "clock",
    "explain",
    "explain_hops",
    "record",
    "republish",
    "run",
    "run_virtual",
    "system",
    "types",
    "verify",
    "what_if",
]
