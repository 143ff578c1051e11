"""When something held the event loop: said once it is over, with whose turn it was.

Owns two measures: how long each step of the bus's own tasks takes, and, ten times a second, how
late the loop is. Lateness that no step of the bus explains is other code of the process. Must not
know what a step does.
"""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from types import coroutine
from typing import Any
from weakref import ref

from aiobus.clock import stopwatch

__all__ = ["LONG", "Held"]

LONG = 1.0
"""Seconds that whatever shares the loop notices: heartbeats, timeouts, a HALT."""
LOOK = 0.1
"""Seconds between two looks at how late the loop is; a look comes late by this much less than the
loop was held.
"""


class Held:
    """Of one bus: `say` logs a text. Each is about a second of its own, so none need be held back
    for another.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._ours = self._said = 0.0
        """Seconds that the bus's own steps have taken, and those of them that were named."""
        self._timer: asyncio.TimerHandle | None = None

    def start(self, name: str) -> None:
        """Look at the running loop from now on, for the bus of this name."""
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._look_later()

    def close(self) -> None:
        """Look no more. Again: nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self._due = self._loop.time() + LOOK
        self._before = (self._ours, self._said)
        # The loop is not to keep a bus alive that was dropped without being closed.
        self._timer = self._loop.call_at(self._due, _look, ref(self), context=Context())

    def look(self) -> None:
        """Say how long the loop was held since the last look, without the steps that are named
        already, and by whom.
        """
        late = self._loop.time() - self._due
        ours, said = (
            now - then for now, then in zip((self._ours, self._said), self._before, strict=True)
        )
        late, ours = late - said, ours - said
        if late > LONG - LOOK:
            shares = [
                (ours, "by several of its handlers"),
                (late - ours, "by other code of this process, or the process was stopped"),
            ]
            # A share that is shorter than a look may be an error of the measure.
            told = [(seconds, who) for seconds, who in shares if seconds > LOOK]
            parts = ", ".join(f"{seconds:.1f} s {who}" for seconds, who in told)
            by = f", {told[0][1]}" if len(told) == 1 else f": {parts}"
            more = " more" if said else ""
            self._say(f"the event loop of {self._name} was held for {late:.1f} s{more}{by}")
        self._look_later()

    def note(self, seconds: float, whose: Callable[[], str]) -> None:
        """A step of the bus's own has taken so long; if that is long, it is said whose it was."""
        self._ours += seconds
        if seconds > LONG:
            self._said += seconds
            self._say(f"{whose()} held the event loop for {seconds:.1f} s")

    async def timed(
        self, work: Callable[[], Coroutine[Any, Any, None]], whose: Callable[[], str]
    ) -> None:
        """Run `work`, and note each of its steps, from one wait to the next."""
        await self._steps(work(), whose)

    @coroutine
    def _steps(
        self, work: Coroutine[Any, Any, None], whose: Callable[[], str]
    ) -> Generator[Any, Any, None]:
        elapsed = stopwatch()
        step: Callable[[Any], Any] = work.send
        value: Any = None
        while True:
            began, ours = elapsed(), self._ours
            try:
                awaited = step(value)
            except StopIteration:
                return
            finally:
                # Less what was noted meanwhile: the `where` of a subscription, for one.
                self.note(elapsed() - began - (self._ours - ours), whose)
            try:
                step, value = work.send, (yield awaited)
            except BaseException as error:  # noqa: BLE001 - it is for `work` to take
                step, value = work.throw, error


def _look(held: "ref[Held]") -> None:
    if (alive := held()) is not None:
        alive.look()
