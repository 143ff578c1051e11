"""How the tasks of a bus share the event loop: when a task wakes, and when it yields.

Owns four rules. A `Notifier` wakes a waiter, which then checks its condition again; a waiter is
never given a value, so cancelling it loses nothing. A `TimeSlice` ends the turn of a task after a
number of events or a time, whichever comes first: a task that does not yield delays every HALT, and
one that yields after every event is slow and fills no frame. A `BackpressureGate` lets a publisher
wait for space in inboxes of its own process. It does not wait if that would be a deadlock, so
handlers that publish to each other never stop for ever. A `LoopWatch` measures each step of the
bus's own tasks and, ten times a second, how late the loop is. Lateness that no step of the bus
explains is other code of the process.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextvars import Context
from types import coroutine
from typing import Any
from weakref import ref

from aiobus.clock import is_virtual, stopwatch
from aiobus.delivery import Consumer, holding, waiting, would_deadlock

__all__ = [
    "EVENTS", "HANDLER_EVENTS", "HANDLER_SECONDS", "LONG", "READER_MESSAGES", "READER_SECONDS",
    "TURN_SECONDS", "BackpressureGate", "LoopWatch", "Notifier", "TimeSlice", "wait_for_space",
]  # fmt: skip


class Notifier:
    """The tasks that wait for one kind of change. `bool()` is true while any task waits."""

    __slots__ = ("futures",)

    def __init__(self) -> None:
        self.futures: dict[asyncio.Future[None], None] = {}
        """One for each waiting task, in the order in which they wait: a set would wake them in the
        order of addresses. Reading this costs half of a call of `__bool__`.
        """

    def __bool__(self) -> bool:
        return bool(self.futures)

    async def wait(self) -> None:
        """Return at the next `wake`. The caller then checks its condition again."""
        future = asyncio.get_running_loop().create_future()
        self.futures[future] = None
        try:
            await future
        finally:
            self.futures.pop(future, None)

    def wake(self) -> None:
        """Wake every waiting task, the one that has waited longest first."""
        for future in self.futures:
            if not future.done():
                future.set_result(None)


EVENTS = 128
"""Of a turn that publishes or consumes a stream: one full frame."""
HANDLER_EVENTS = 2 * EVENTS
"""Twice that of a publisher: otherwise a handler lags behind a publisher that does nothing else."""
TURN_SECONDS = 0.0005
HANDLER_SECONDS = 0.0003
"""A HALT waits for a turn of each busy handler, twice: it is read, and handed over. With ten
handlers and 0.5 ms it took 20 ms at 99 %.
"""
READER_MESSAGES = 256
READER_SECONDS = 0.006
"""Of the turn that reads a socket. It is only used up in a flood. With 0.5 ms the reader lagged
behind ten busy handlers, and a HALT waited for seconds in ZeroMQ's queue.
"""


class TimeSlice:
    """One turn at the loop: `events`, or `seconds` (infinity: events alone). Call `spend` for each
    event; once it is True, await something and `renew`. It reads the clock of the loop in which it
    is made.
    """

    __slots__ = ("_events", "_seconds", "elapsed", "left", "until")

    def __init__(self, seconds: float = TURN_SECONDS, events: int = EVENTS) -> None:
        self._seconds = seconds
        self._events = events
        self.elapsed = stopwatch()
        self.renew()

    def renew(self) -> tuple[int, float]:
        """Begin a new turn. Returns for how many events, and until when by `elapsed`, for a loop
        that counts in place: a call for each event takes as long as what it counts.
        """
        self.left = self._events
        self.until = self.elapsed() + self._seconds
        return self.left, self.until

    def spend(self) -> bool:
        """Count one event. Returns True if the turn is over."""
        self.left -= 1
        return self.left <= 0 or self.elapsed() > self.until


WARN_SECONDS = 1.0

log = logging.getLogger("aiobus.sync")


class BackpressureGate:
    """Where publishers of this process wait for space in the inbox of `consumer`, whose policy is
    "block". `is_full(coming)`: one more event, behind so many that are coming, would be one too
    many. `is_over`: the last one was, so its publisher waits.
    """

    def __init__(
        self,
        consumer: Consumer,
        name: str,
        maxsize: int,
        is_full: Callable[[int], bool],
        is_over: Callable[[], bool],
    ) -> None:
        self.consumer = consumer
        self.name = name
        self.maxsize = maxsize
        self.overshoot = 0
        """Events that were put beyond `maxsize`, because waiting would have been a deadlock."""
        self.space_available = Notifier()
        """Woken when `is_over` may have changed."""
        self.is_full = is_full
        self.is_over = is_over
        self._warning: asyncio.TimerHandle | None = None

    async def wait(self) -> None:
        """Wait until `is_over` is false, or until waiting for that would be a deadlock."""
        if self._warning is None:
            text = "a publisher has waited %g s for room in the inbox of %s"
            loop = asyncio.get_running_loop()
            self._warning = loop.call_later(
                WARN_SECONDS, log.warning, text, WARN_SECONDS, self.name
            )
        try:
            while self.is_over():
                holders = holding()
                if any(would_deadlock(holder.consumer, self.consumer) for holder in holders):
                    self.overshoot += 1
                    return
                with waiting(holders, (self.consumer,)):
                    await self.space_available.wait()
        finally:
            if not self.space_available and self._warning is not None:  # the last that waited
                self._warning.cancel()
                self._warning = None


async def wait_for_space(gates: Iterable[BackpressureGate]) -> None:
    """Wait until none of `gates` holds more than its maxsize. Cancelling only stops the waiting.

    While a publisher waits, the handlers and stream bodies that it is part of cannot go on. If an
    inbox cannot empty before one of them goes on, it is not waited for, and the event counts as
    `overshoot`.
    """
    for gate in gates:
        if gate.is_over():
            await gate.wait()


LONG = 1.0
"""Seconds after which a blocked loop is reported: heartbeats, timeouts and a HALT are late."""
LOOK = 0.1
"""Seconds between two looks at how late the loop is."""


class LoopWatch:
    """The watch of one bus; `say` logs a text."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._ours = self._said = 0.0
        """Seconds of all steps of the bus's own tasks, and of the steps that were reported."""
        self._timer: asyncio.TimerHandle | None = None

    def start(self, name: str) -> None:
        """Check the running loop from now on, for the bus of this name. A virtual loop is not: its
        time does not pass while code holds it, and with this timer it would never see that nothing
        can happen any more.
        """
        self._name = name
        self._loop = asyncio.get_running_loop()
        if not is_virtual():
            self._look_later()

    def close(self) -> None:
        """Stop checking. Again: no effect."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self._due = self._loop.time() + LOOK
        self._before = (self._ours, self._said)
        # A weak reference: the loop must not keep a bus alive that was dropped without `close`.
        self._timer = self._loop.call_at(self._due, _look, ref(self), context=Context())

    def look(self) -> None:
        """Say how long the loop was held since the last look, without the steps already named."""
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
            # A share shorter than LOOK may be an error of measurement.
            told = [(seconds, who) for seconds, who in shares if seconds > LOOK]
            parts = ", ".join(f"{seconds:.1f} s {who}" for seconds, who in told)
            by = f", {told[0][1]}" if len(told) == 1 else f": {parts}"
            more = " more" if said else ""
            self._say(f"the event loop of {self._name} was held for {late:.1f} s{more}{by}")
        self._look_later()

    def note(self, seconds: float, whose: Callable[[], str]) -> None:
        """Add a step of the bus's own tasks. If it was long, report whose it was."""
        self._ours += seconds
        if seconds > LONG:
            self._said += seconds
            self._say(f"{whose()} held the event loop for {seconds:.1f} s")

    async def timed(
        self, work: Callable[[], Coroutine[Any, Any, None]], whose: Callable[[], str]
    ) -> None:
        """Run `work`, and note each of its steps from one `await` to the next."""
        await self._steps(work(), whose)

    @coroutine
    def _steps(
        self, driven_coroutine: Coroutine[Any, Any, None], whose: Callable[[], str]
    ) -> Generator[Any, Any, None]:
        elapsed = stopwatch()
        step: Callable[[Any], Any] = driven_coroutine.send
        value: Any = None
        while True:
            began, ours = elapsed(), self._ours
            try:
                awaited = step(value)
            except StopIteration:
                return
            finally:
                # Without steps inside this one that were noted by themselves, as a `where` is.
                self.note(elapsed() - began - (self._ours - ours), whose)
            try:
                step, value = driven_coroutine.send, (yield awaited)
            except BaseException as error:  # noqa: BLE001 - it is for the coroutine to take
                step, value = driven_coroutine.throw, error


def _look(held: "ref[LoopWatch]") -> None:
    if (alive := held()) is not None:
        alive.look()
