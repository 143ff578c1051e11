"""How the process of a bot ends: which signal leads to what, and with which exit code.

Owns the decisions alone. Pure: must not know how a signal comes, nor what is closed for it.
"""

import signal
from enum import Enum

__all__ = ["SIGNALS", "Ending", "Step"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; what systemd, Docker and `kill` send; and what a terminal sends that is closed."""
FAILED = 1
KILLED = 128
"""Plus the number of a signal: as a shell tells it of a process that a signal has ended."""


class Step(Enum):
    """What a signal leads to."""

    DRAIN = "end in order"
    CUT = "cancel everything at once"
    KILL = "end the process at once"


class Ending:
    """What has happened to one process that matters for its end."""

    def __init__(self) -> None:
        self.first = 0
        """The number of the first signal; 0 while none came."""
        self.cut_by = 0
        """The number of the signal that cancelled everything."""
        self._count = 0
        self.has_failed = False
        """The bot, its bus or a task has failed."""
        self.has_cut_off = False
        """Something of the bot did not finish in the time that it had."""
        self.is_closed = False
        """The bus is closed and the bot has ended: nothing is left that could be lost."""

    def on_signal(self, number: int) -> Step:
        """A signal has come. The first one asks for an end in order. The second one does not wait
        for it, and the third one does not wait for the second.
        """
        self._count += 1
        if self._count == 1:
            self.first = number
            return Step.DRAIN
        if self._count > 2 or self.is_closed:
            return Step.KILL
        self.cut_by = number
        return Step.CUT

    @property
    def code(self) -> int:
        """The exit code. 0 says that the bot ended by itself or after SIGTERM, and that all
        that it had begun is done.
        """
        if self.has_failed:
            return FAILED
        if self.cut_by:
            return KILLED + self.cut_by
        if self.first in (0, signal.SIGTERM):
            return FAILED if self.has_cut_off else 0
        return KILLED + self.first
