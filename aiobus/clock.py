"""The clocks: wall time, which is data, elapsed time, which measures, and epochs, which tell one
start of a bus from another.

Time belongs to the event loop: a loop with a method `wall_time()` is a virtual one, whose clocks
both count, so code that runs on it never sees the clock of the machine. Nothing else in the package
reads a clock. An epoch is a number that no other start of that name has: a subscriber keeps its
place by (name, epoch), so with an equal epoch it would take the events of a new start for repeats.
"""

import os
import secrets
import time
from asyncio import get_running_loop
from collections.abc import Callable
from threading import Lock, get_ident
from typing import Any

__all__ = [
    "elapsed",
    "fresh",
    "heard",
    "machine",
    "stopwatch",
    "wall",
]

machine = time.time
"""Unix seconds by the machine's clock, whatever the loop says. It may be set back."""

_NO_LOOP: tuple[int, Callable[[], bool]] = (0, bool)  # no thread is 0, and bool() is False
_usual = _NO_LOOP
"""The thread and `is_running` of the last loop that had no time of its own. One loop at most runs
in a thread, so while that one does, nothing need ask which one it is: Python 3.11 makes a system
call of that, which takes half of the time of making an event.
"""


def elapsed() -> float:
    """Seconds since some moment in the past, never set back: for budgets and durations, never for
    data. On a virtual loop its `time()`, else real time. Never waits.
    """
    return stopwatch()()


def stopwatch() -> Callable[[], float]:
    """What `elapsed` reads, for code that reads it often: it holds for the loop that runs now."""
    thread, is_running = _usual
    if thread == get_ident() and is_running():
        return time.perf_counter
    loop = _virtual()
    return time.perf_counter if loop is None else loop.time


def wall() -> float:
    """Unix seconds as the running loop sees them: its `wall_time()` if it has one, else the
    machine's. Never waits.
    """
    thread, is_running = _usual
    if thread == get_ident() and is_running():
        return machine()
    loop = _virtual()
    return machine() if loop is None else float(loop.wall_time())


def _virtual() -> Any:
    """The running loop, if it has a time of its own."""
    global _usual
    try:
        loop = get_running_loop()
    except RuntimeError:
        return None
    if hasattr(loop, "wall_time"):
        return loop
    _usual = (get_ident(), loop.is_running)
    return None


def _forget() -> None:
    global _usual
    _usual = _NO_LOOP


# In a forked child the copy of its parent's loop still says that it runs.
os.register_at_fork(after_in_child=_forget)


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
        now = int(machine() * 1_000_000)
        _highest = max(_highest + 1, now + secrets.randbelow(SPREAD))
        return _highest


def heard(epoch: int) -> None:
    """Another bus has this epoch."""
    global _highest
    if _highest < epoch < HIGHEST:
        with _lock:
            _highest = max(_highest, epoch)
