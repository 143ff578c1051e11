"""What bounds what a bus keeps, and what bounds a time.

Owns the figures that a user may set, and the check that they make sense; the limits of a time in
seconds since 1970, by which milliseconds and durations are told from it, and the way out for each.
Pure: plain numbers, and it asks no clock.
"""

from dataclasses import dataclass, fields
from datetime import datetime, timedelta

__all__ = [
    "EARLIEST",
    "LATEST",
    "Limits",
    "way_out",
]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one bus may hold in memory. Every figure is an upper bound; nothing is allocated ahead.

    Inboxes have their own bound, `maxsize=` of `subscribe`. A figure that is not a positive whole
    number raises ValueError.
    """

    history_events: int = 65_536
    """Events kept per type for those who fell behind, at most; the oldest go first, and of more
    than 1,000 one in 512 at once.
    """
    history_bytes: int = 16 * MIB
    """Bytes of encoded events kept per type, with 80 bytes of bookkeeping counted for each event.
    """
    history_total_bytes: int = 64 * MIB
    """Bytes kept over all types together; the type that holds most gives way first."""
    event_bytes: int = 1 * MIB
    """The largest encoded event `publish` accepts; a larger one raises EncodeError. At most 15 MiB:
    a message over 16 MiB ends the link that it comes on.
    """
    high_water_mark: int = 256
    """Messages (frames of up to 128 events or 64 KiB) that ZeroMQ queues for each peer, on either
    side. Beyond it they are left out, until half of them are read; the peer notices and makes up
    for it from history, which must reach back further (`history_events` of at least 256 times as
    many, with full frames).
    """
    pace_seconds: int = 30
    """With `pace=True`: seconds that `publish` waits for a reader that takes nothing in. It is then
    left behind, that is, not waited for until it reads on.
    """
    types: int = 4_096
    """Distinct event types this bus may publish; what varies from event to event belongs into
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
                " or what a bus says of itself each second does not get through"
            )
        if self.event_bytes > 15 * MIB:
            raise ValueError(
                f"Limits(event_bytes={self.event_bytes}): at most 15 MiB can be sent to others"
            )


LATEST = 1e11
"""Some 3,000 years after 1970. In milliseconds, each time since 1973 is above it."""
EARLIEST = 1e8
"""A time in 1973. What is given to this process and lies below it was meant as a duration."""
_UNITS = (
    (1e14, "milliseconds", "1_000"),
    (1e17, "microseconds", "1_000_000"),
    (1e20, "nanoseconds", "1_000_000_000"),
)
"""Each with its bound: a time of today is below it in that unit, and above it in the next."""


def way_out(value: object) -> str:
    """What to do about `value`, which is no time in seconds: a part of a sentence that ends with
    "; ". "" where it cannot be told what was meant.
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
