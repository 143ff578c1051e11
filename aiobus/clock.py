"""`clock.time()` for data, elapsed time for measuring, and epochs, which tell apart starts.

Programs read `time`; the rest is for the package, in which nothing else reads a clock. Time belongs
to the event loop: if a loop has a method `wall_time()`, code that runs on it gets both clocks from
it. If it has a method `fresh_epoch()` as well, it is virtual: its clock jumps, nothing outside the
process hears of it, and runs are to repeat exactly. An epoch is a number that no other start of the
same name has. A subscription keeps its position by (name, epoch): with an equal epoch it would take
the events of a new start for repetitions.
"""

import os
import secrets
from asyncio import get_running_loop
from collections.abc import Callable
from functools import partial
from threading import Lock, get_ident
from time import perf_counter
from time import time as machine
from typing import Any

__all__ = [
    "elapsed",
    "fresh",
    "heard",
    "is_virtual",
    "machine",
    "newest",
    "read_by",
    "stopwatch",
    "time",
    "token",
]

_NO_LOOP: tuple[int, Callable[[], bool]] = (0, bool)  # no thread is 0, and bool() is False
_usual = _NO_LOOP
"""The thread and `is_running` of the last loop that has no time of its own. At most one loop runs
in a thread, so while that loop runs, `get_running_loop` is not needed. In Python 3.11 that is a
system call, which takes half of the time of making an event.
"""


def elapsed() -> float:
    """Seconds since an unspecified moment, never set back: for durations and deadlines, not for
    data. On a loop with a time of its own this is its `time()`. Never waits.
    """
    return stopwatch()()


def stopwatch() -> Callable[[], float]:
    """The clock that `elapsed` reads, for frequent use. Valid for the loop that runs now."""
    thread, is_running = _usual
    if thread == get_ident() and is_running():
        return perf_counter
    loop = _own_time()
    return perf_counter if loop is None else loop.time


def time() -> float:
    """Unix seconds: the `wall_time()` of the running loop if it has one, as a VirtualLoop has, else
    those of the machine's clock, which may be set back. Code that takes the time from here is right
    in virtual time as well. Never waits.
    """
    if _readers and (read := _readers.get(get_ident())) is not None:
        return read()
    thread, is_running = _usual
    if thread == get_ident() and is_running():
        return machine()
    return _asked()


_readers: dict[int, Callable[[], float]] = {}
"""By thread: what `time` returns there while what it tells is recorded."""


def read_by(read: Callable[[Callable[[], float]], float] | None) -> None:
    """Let `time` return what `read` does in this thread, until this is called with None. `read` is
    given a function that returns what `time` would.
    """
    _readers.pop(get_ident(), None)
    if read is not None:
        _readers[get_ident()] = partial(read, machine if _own_time() is None else _asked)


def _asked() -> float:
    loop = _own_time()
    return machine() if loop is None else float(loop.wall_time())


def is_virtual() -> bool:
    """True if the running loop is virtual. Never waits."""
    return hasattr(_own_time(), "fresh_epoch")


def _own_time() -> Any:
    """The running loop if it has a time of its own, else None."""
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
    _readers.clear()


# In a forked child the copy of its parent's loop still says that it runs.
os.register_at_fork(after_in_child=_forget)


SPREAD = 2**20
"""Microseconds of the random part of an epoch: two processes whose clocks stand still or were set
back do not know each other's starts.
"""
HIGHEST = 2**62
"""An epoch from here on comes from no clock. It is ignored, because no room is left above it."""

_lock = Lock()
_highest = 0


def fresh() -> int:
    """An epoch: Unix microseconds of the machine's clock plus a random part below SPREAD, and above
    every epoch that this process has used or heard of, of any name. On a virtual loop, it is the
    loop's. Thread-safe. Never waits.
    """
    global _highest
    if is_virtual():
        return int(_own_time().fresh_epoch())
    with _lock:
        now = int(machine() * 1_000_000)
        _highest = max(_highest + 1, now + secrets.randbelow(SPREAD))
        return _highest


def newest() -> int | None:
    """The highest epoch that the running virtual loop has given. None on another loop, on which no
    two things happen at one moment. Never waits.
    """
    return _own_time().newest_epoch if is_virtual() else None


def token() -> str:
    """Eight hexadecimal digits for a name that no other bus has: random, or on a virtual loop those
    of an epoch. Never waits.
    """
    if is_virtual():
        return f"{fresh() % 2**32:08x}"
    return secrets.token_hex(4)


def heard(epoch: int) -> None:
    """Note that another bus has this epoch."""
    global _highest
    if _highest < epoch < HIGHEST:
        with _lock:
            _highest = max(_highest, epoch)
