"""Times in seconds since 1970, and what was meant by what is none.

Owns the bounds of a time, by which milliseconds and durations are told from it, and the way out for
each. Pure: asks no clock.
"""

from datetime import datetime, timedelta

__all__ = ["EARLIEST", "LATEST", "way_out"]

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
