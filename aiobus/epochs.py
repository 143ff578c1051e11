"""Epochs: which start of a bus it is. No two starts of one name have the same.

Owns the choice of a number. A subscriber keeps its place by (name, epoch), so with an equal epoch
it would take the events of a new start for repeats of the old one's.
"""

import secrets
from threading import Lock

from aiobus import clock

__all__ = ["fresh", "heard"]

SPREAD = 2**20
"""Microseconds, at most, that an epoch is drawn above the clock: two processes whose clocks stand
still, or were set back, do not know of each other's starts.
"""
HIGHEST = 2**62
"""An epoch from here on is no clock's. It is not counted, or it would leave no room above it."""

_lock = Lock()
_highest = 0


def fresh() -> int:
    """A number for a start: Unix microseconds of the machine's clock, and a random part of up to
    SPREAD more. It is above every epoch that this process has used or heard of, of whatever name.
    Safe in any thread. Never waits.
    """
    global _highest
    with _lock:
        now = int(clock.machine() * 1_000_000)
        _highest = max(_highest + 1, now + secrets.randbelow(SPREAD))
        return _highest


def heard(epoch: int) -> None:
    """Another bus has this epoch."""
    global _highest
    if _highest < epoch < HIGHEST:
        with _lock:
            _highest = max(_highest, epoch)
