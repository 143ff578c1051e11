"""File descriptors of this process: how many more there may be, and a few that are put by.

Owns the limit, the counting and the reserve. Must not know what the descriptors are for.
"""

import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from aiobus.errors import BusError

__all__ = ["Reserve", "raise_limit", "spare"]

WANTED = 8_192
NEEDED = 64


def spare() -> float:
    """How many more descriptors this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return math.inf
    try:
        # Linux since 6.2 has the count here, and needs no descriptor to tell it.
        used = os.stat("/proc/self/fd").st_size
    except OSError:
        used = 0
    try:
        return soft - (used or len(os.listdir("/dev/fd")))
    except OSError:  # none is left to open that directory
        return 0


def raise_limit() -> None:
    """Raise the soft limit as far as it may be: the usual 1,024 is for 500 peers, each of which
    takes two. Raises BusError when there are too few for a bus all the same.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if (left := spare()) < NEEDED:
        raise BusError(
            f"only {left} more files may be opened by this process, and {NEEDED} are"
            " needed for a bus with peers: raise the limit (ulimit -n)"
        )


class Reserve:
    """Descriptors that are held so that there are some when the process has used up all others."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._held: list[int] = []
        self._fill()

    def _fill(self) -> None:
        with suppress(OSError):  # there are none; tried again after the next use
            while len(self._held) < self._count:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    @contextmanager
    def released(self) -> Iterator[None]:
        """Free them for what is done inside; what is left is held again afterwards."""
        self.close()
        try:
            yield
        finally:
            self._fill()

    def close(self) -> None:
        """Hold none. Again: nothing."""
        while self._held:
            os.close(self._held.pop())
