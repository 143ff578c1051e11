"""The two clocks: wall time, which is data, and elapsed time, which measures.

Time belongs to the event loop: a loop with a method `wall_time()` is a virtual one, whose clocks
both count, so what runs on it never sees the machine's. Nothing else in the package reads a clock.
"""

import time
from asyncio import get_running_loop
from collections.abc import Callable

__all__ = ["elapsed", "machine", "stopwatch", "wall"]


def elapsed() -> float:
    """Seconds since some moment in the past, never set back: for budgets and durations, never for
    data. On a virtual loop its `time()`, else real time. Never waits.
    """
    return stopwatch()()


def stopwatch() -> Callable[[], float]:
    """What `elapsed` reads, for code that reads it often: it holds for the loop that runs now."""
    try:
        loop = get_running_loop()
    except RuntimeError:
        return time.perf_counter
    return loop.time if hasattr(loop, "wall_time") else time.perf_counter


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
