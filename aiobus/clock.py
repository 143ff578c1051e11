"""The two clocks: wall time, which is data, and elapsed time, which measures.

Time belongs to the event loop: a loop with a method `wall_time()` (a virtual one) is asked, so
`Event`'s default timestamp follows it. Nothing else in the package reads a clock.
"""

import os
import time
from asyncio import get_running_loop
from collections.abc import Callable
from threading import get_ident

__all__ = ["elapsed", "machine", "wall"]

elapsed = time.perf_counter
"""Seconds of real time since some moment in the past, never set back: for budgets and durations,
never for data.
"""
machine = time.time
"""Unix seconds by the machine's clock, whatever the loop says. It may be set back."""

_NO_LOOP: tuple[int, Callable[[], bool]] = (0, bool)  # no thread is 0, and bool() is False
_usual = _NO_LOOP
"""The thread and `is_running` of the last loop that had no time of its own. One loop at most runs
in a thread, so while that one does, `wall` need not ask which one it is: Python 3.11 makes a system
call of that, which takes half of the time of making an event.
"""


def wall() -> float:
    """Unix seconds as the running loop sees them: its `wall_time()` if it has one, else the
    machine's. Never waits.
    """
    thread, is_running = _usual
    return machine() if thread == get_ident() and is_running() else _asked()


def _asked() -> float:
    global _usual
    try:
        loop = get_running_loop()
    except RuntimeError:
        return machine()
    virtual = getattr(loop, "wall_time", None)
    if virtual is not None:
        return float(virtual())
    _usual = (get_ident(), loop.is_running)
    return machine()


def _forget() -> None:
    global _usual
    _usual = _NO_LOOP


# In a forked child the copy of its parent's loop still says that it runs.
os.register_at_fork(after_in_child=_forget)
