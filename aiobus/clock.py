"""The two clocks: wall time, which is data, and elapsed time, which measures.

Time belongs to the event loop: a loop with a method `wall_time()` (a virtual one) is asked first,
so `Event`'s default timestamp follows it. Nothing else in the package reads a clock.
"""

import time
from asyncio import get_running_loop

__all__ = ["elapsed", "machine", "wall"]

elapsed = time.perf_counter
"""Seconds of real time since some moment in the past, never set back: for budgets and durations,
never for data.
"""


def machine() -> float:
    """Unix seconds by the machine's clock, whatever the loop says. It may be set back."""
    return time.time()


def wall() -> float:
    """Unix seconds as the running loop sees them: its `wall_time()` if it has one, else the
    machine's. Never waits.
    """
    try:
        virtual = getattr(get_running_loop(), "wall_time", None)
    except RuntimeError:
        return machine()
    return machine() if virtual is None else float(virtual())
