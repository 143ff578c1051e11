"""The bounds of what a bus keeps in memory, and of a time.

Owns the bounds that a user may set and their check, the bounds of a query and of what a registry
keeps for its members, and the range of a time in seconds since 1970, which tells it from
milliseconds and from a duration. Pure: plain numbers and no clock.
"""

from dataclasses import dataclass, fields
from datetime import datetime, timedelta

__all__ = [
    "EARLIEST",
    "KEEPER",
    "LATEST",
    "MAX_CONNECTIONS",
    "MAX_HELLO",
    "MAX_KEY",
    "MAX_MEMBERS",
    "MAX_QUERY",
    "MAX_REFUSALS",
    "MAX_ROSTER",
    "MAX_TOLD",
    "MAX_UNSENT",
    "Limits",
    "way_out",
]

MIB = 1024 * 1024

KEEPER = "keeper"
"""The name of the bus of a keeper: of two on one desk, the second gets NameInUse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one bus may keep in memory. Every figure is an upper bound; nothing is allocated ahead.

    Inboxes have their own bound, `maxsize=` of `subscribe`. A figure that is not a positive whole
    number raises ValueError.
    """

    history_events: int = 131_072
    """Events kept per type for subscriptions that lag. The oldest are evicted first; of more than
    1,000 events, one in 512 at once.
    """
    history_bytes: int = 32 * MIB
    """Bytes of encoded events kept per type, with 80 bytes of bookkeeping counted for each event.
    """
    history_total_bytes: int = 64 * MIB
    """Bytes kept over all types together; the type that keeps most is evicted first."""
    event_bytes: int = 1 * MIB
    """Bytes of the largest encoded event that `publish` accepts; a larger one raises EncodeError.
    At most 15 MiB, because a message over 16 MiB ends its link.
    """
    high_water_mark: int = 512
    """Messages that ZeroMQ queues for each peer, on either side: frames of up to 128 events or
    64 KiB, and for a peer that asks and does not read, pages of up to 256 KiB. Beyond it ZeroMQ
    drops messages until half of the queue is read. The peer notices and fetches the events from
    history, which must reach back further (`history_events` of at least 256 times as many, with
    full frames).
    """
    pace_seconds: int = 30
    """With `pace=True`: seconds that `publish` waits for a reader that takes nothing in. It is then
    left behind, that is, not waited for until it reads on.
    """
    types: int = 4_096
    """Distinct event types that this bus may publish. What varies from event to event belongs in
    `key`.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"Limits({field.name}={value!r}): a positive whole number is needed"
                )
        if self.high_water_mark < 64:
            raise ValueError(
                f"Limits(high_water_mark={self.high_water_mark}): 64 messages at least are needed,"
                " because fewer leave no room for the heartbeat of each second"
            )
        if self.event_bytes > 15 * MIB:
            raise ValueError(
                f"Limits(event_bytes={self.event_bytes}): at most 15 MiB can be sent to others"
            )


MAX_QUERY = 1_024
"""Bytes of a query. A longer list of keys is widened, because a subscription of 200 kB crashes the
sender of libzmq.
"""
MAX_TOLD = 4_096
"""Characters of what a bus tells others of its queries; of more it tells that there is more."""
MAX_KEY = 128
"""Bytes of a key."""
MAX_CONNECTIONS = 1_024
"""Connections to the registry of a rendezvous address."""
MAX_MEMBERS = 4_096
"""Members of a roster, and members that a bus remembers."""
MAX_HELLO = 64 * 1024
"""Bytes of a line that a registry reads."""
MAX_ROSTER = 512 * 1024
"""Bytes of a line that a member reads: 4,096 members with the longest names take 400 kB."""
MAX_UNSENT = 1024 * 1024
"""Bytes that wait for a member that does not read; beyond it, the registry closes its connection.
"""

MAX_REFUSALS = 256
"""Lines a minute by which a member tells others why it makes no link to them, that a registry
takes. A member sends half as many, because their minutes do not begin together.
"""

LATEST = 1e11
"""Some 3,000 years after 1970. In milliseconds, each time since 1973 is above it."""
EARLIEST = 1e8
"""A time in 1973. A smaller number was meant as a duration."""
_UNITS = (
    (1e14, "milliseconds", "1_000"),
    (1e17, "microseconds", "1_000_000"),
    (1e20, "nanoseconds", "1_000_000_000"),
)
"""Unit, divisor, and the bound: a time of today is below it in that unit, and not in the next."""


def way_out(value: object) -> str:
    """How to correct `value`, which is no time in seconds: a part of a sentence that ends with
    "; ", or "" if the intention is unknown.
    """
    match value:
        case datetime() if value.utcoffset() is None:
            return "it has no time zone: make it with one and give its .timestamp(); "
        case datetime():
            return "give its .timestamp(); "
        case timedelta():
            return "give time.time() less its .total_seconds(); "
        case int() | float() if value > LATEST:
            for bound, unit, divisor in _UNITS:
                if value < bound:
                    return f"these look like {unit}: divide by {divisor}; "
    return ""
