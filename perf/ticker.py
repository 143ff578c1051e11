"""A clock that wakes an event loop when an event is due, and not up to a millisecond later.

Owns a timer of the kernel that the loop finds readable, as it finds a websocket. The timers of both
loops are no finer than 1 ms, which would bunch the events of a rate above 1,000 a second; spinning
would take a core from another process. Linux only.
"""

import asyncio
import ctypes
import os
import sys

__all__ = ["Ticker"]

CLOCK_MONOTONIC = 1
ABSOLUTE = 1


class Timespec(ctypes.Structure):
    """`struct timespec`."""

    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class Setting(ctypes.Structure):
    """`struct itimerspec`."""

    _fields_ = [("interval", Timespec), ("value", Timespec)]


class Ticker:
    """`until` waits for a moment of CLOCK_MONOTONIC. One wait at a time."""

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise OSError("timers with a descriptor are to be had on Linux only")
        self._loop = asyncio.get_running_loop()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._rung: asyncio.Future[None] | None = None
        self._loop.add_reader(self._descriptor, self._ring)

    async def until(self, due: float) -> None:
        """Wait for the moment."""
        self._rung = self._loop.create_future()
        setting = Setting(value=Timespec(int(due), int(due % 1 * 1e9)))
        self._libc.timerfd_settime(self._descriptor, ABSOLUTE, ctypes.byref(setting), None)
        await self._rung

    def _ring(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            return
        if self._rung is not None and not self._rung.done():
            self._rung.set_result(None)

    def close(self) -> None:
        """Free the timer."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
