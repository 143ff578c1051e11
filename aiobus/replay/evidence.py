"""What code did beside its outputs: the exceptions that it raised, and what it read of the machine.

Owns what of an exception is compared, and which calls have other results in each run. Must not know
what follows from either.
"""

import datetime
import os
import random
import re
import sys
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

from aiobus.confinement import is_users
from aiobus.virtual_loop import place

__all__ = ["Failure", "Witness", "raised_at"]

MOST_TEXT = 300
MOST_CALLS = 8
_OF_THE_PROCESS = re.compile(r"0x[0-9a-fA-F]+|Task-\d+")
"""What the default texts of objects and tasks have, and what is another in each process."""


class Failure(NamedTuple):
    """An exception with which code has ended. Type and text are compared, and the place is not."""

    type: str
    text: str
    place: str
    """Function, file and line of the innermost code that is not of a library; "" if there is none,
    and for a cancellation.
    """

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """The text of `error` that a report shows. Never raises."""
        kind = type(error).__qualname__
        if kind == "CancelledError":  # who cancels may say why, or may not
            return cls(kind, "", "")
        try:
            text = _OF_THE_PROCESS.sub("...", str(error))
        except Exception:  # noqa: BLE001 - of a `__str__` that is the user's
            text = "?"
        return cls(kind, text.encode(errors="replace").decode()[:MOST_TEXT], raised_at(error))

    def is_like(self, other: "Failure") -> bool:
        """True if type and text are the same."""
        return self[:2] == other[:2]

    def __str__(self) -> str:
        text = self.text if self.type == "KeyError" or not self.text else repr(self.text)
        return f"{self.type}({text}){f' at {self.place}' if self.place else ''}"


def raised_at(error: BaseException) -> str:
    """Function, file and line of the innermost code that is not of a library; "" if there is
    none.
    """
    steps = list(traceback.walk_tb(error.__traceback__))
    return next((place(*step) for step in reversed(steps) if is_users(step[0])), "")


# What is another in each run.

_CLOCK = "is not on the tape: read the time by aiobus.clock.time() or loop.time(), which are"
_CHANCE = "is another in each run: make it from event.id or by random.getrandbits(128)"
_UNSEEDED = "a random generator without a seed"
_SEED = "is another in each run: give it one"
_HASH = "of a string depends on PYTHONHASHSEED, which is another one now"
_ADDRESS = "is another in each run: leave it out of decisions"
_CALLS: dict[Any, tuple[str, str]] = {
    **{
        getattr(time, name): (f"time.{name}()", _CLOCK)
        for each in ("time", "monotonic", "perf_counter")
        for name in (each, f"{each}_ns")
    },
    os.urandom: ("os.urandom()", _CHANCE),
    id: ("id()", _ADDRESS),
}
_DATES = {name: (f"datetime.{name}()", _CLOCK) for name in ("now", "utcnow", "today")}
_MAKERS = ("uuid", "secrets", "random")
"""Modules that call these for what they return. Calls that may be given a time to convert, such as
`time.gmtime`, are not watched: a profiler does not see their arguments.
"""
_SEEDED = random.Random.seed.__code__


class Witness:
    """Notes which of these calls code makes between `begin` and `end`, in this thread. What they
    return is not changed. It notes nothing if a profiler is at work in the thread when `start` is
    called. `is_other_seed`: the hashes of texts are others than they were.
    """

    def __init__(self, *, is_other_seed: bool) -> None:
        self._is_able = False
        self._calls = _CALLS | ({hash: ("hash()", _HASH)} if is_other_seed else {})
        self._found: dict[tuple[str, str], str] = {}
        """Call and place, and what helps."""

    @property
    def told(self) -> Iterator[str]:
        """A sentence for each call, in the order in which they were made first."""
        for (call, where), cure in self._found.items():
            yield f"{call} at {where} {cure}"

    def start(self) -> None:
        """Watch this thread from now on."""
        self._is_able = sys.getprofile() is None

    def begin(self) -> None:
        """Code of the strategy goes on."""
        if self._is_able:
            sys.setprofile(self._look)

    def end(self) -> None:
        """It waits, or is in a bus call."""
        if self._is_able:
            sys.setprofile(None)

    def _look(self, frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call":
            known = self._calls.get(called)
            if known is None:
                name = called.__name__
                if name not in _DATES or not _is_date(called):
                    return
                known = _DATES[name]
            self._note(frame, *known)
        elif event == "call" and frame.f_code is _SEEDED and frame.f_locals.get("a") is None:
            self._note(frame.f_back, _UNSEEDED, _SEED)

    def _note(self, frame: FrameType | None, call: str, cure: str) -> None:
        """Note a call that code makes itself, or by a module whose business it is."""
        while frame is not None and not is_users(frame):
            module = frame.f_globals.get("__name__", "")
            if module not in _MAKERS:
                return
            if call != _UNSEEDED:
                call = f"{module}.{frame.f_code.co_name}()"
            frame = frame.f_back
        if frame is not None and len(self._found) < MOST_CALLS:
            self._found.setdefault((call, place(frame)), cure)


def _is_date(called: Any) -> bool:
    owner = getattr(called, "__self__", None)
    return isinstance(owner, type) and issubclass(owner, datetime.date)
