"""How the tasks of a bus share the event loop: when to wake a task, and when to yield.

Owns the one way in which anything here waits for something to change: a waiter is woken and looks
again, it is never given anything. So a waiter that is cancelled, even after it was woken, takes
nothing with it. Owns the budget of one turn, too: so many events or so long, whichever is used up
first. A task that does not yield delays every HALT; one that yields after every event is slow, and
its frames are empty. And owns the wait of a publisher for space in the inboxes of its own process:
a wait that would close a circle is not waited, so no policy and no size of inbox can make handlers
that publish to each other stop for ever.
"""

import asyncio
import logging
from collections.abc import Iterable

from aiobus.clock import stopwatch
from aiobus.delivery import BackpressureGate, holding, waiting, would_deadlock

__all__ = [
    "EVENTS",
    "HANDLER_EVENTS",
    "HANDLER_SECONDS",
    "READER_MESSAGES",
    "READER_SECONDS",
    "TURN_SECONDS",
    "Notifier",
    "TimeSlice",
    "wait_for_space",
]


class Notifier:
    """Whoever waits for one kind of change. Truth: somebody does."""

    __slots__ = ("futures",)

    def __init__(self) -> None:
        self.futures: set[asyncio.Future[None]] = set()
        """One for each that waits. Asking for them costs half of asking whether somebody does."""

    def __bool__(self) -> bool:
        return bool(self.futures)

    async def wait(self) -> None:
        """Return at the next `wake`; then look whether it was for you."""
        future = asyncio.get_running_loop().create_future()
        self.futures.add(future)
        try:
            await future
        finally:
            self.futures.discard(future)

    def wake(self) -> None:
        """Let everybody look again."""
        for future in self.futures:
            if not future.done():
                future.set_result(None)


EVENTS = 64
"""Of a turn that publishes, or consumes a stream: a full frame."""
HANDLER_EVENTS = 2 * EVENTS
"""A handler's turn is longer, or it falls behind a publisher that does nothing else."""
TURN_SECONDS = 0.0005
HANDLER_SECONDS = 0.0003
"""There may be many handlers, and a HALT waits for a turn of each, twice: it is read, and handed
over. With ten that are busy, 0.5 ms made it 10 ms at the median, and 20 ms at 99 %.
"""
READER_MESSAGES = 256
READER_SECONDS = 0.006
"""Of the turn that reads a socket: longer than it ever needs, unless it is flooded. With 0.5 ms
it fell behind ten busy handlers, and a HALT waited for seconds in ZeroMQ's queue.
"""


class TimeSlice:
    """One turn at the loop. Call `spend` for each event; once it says True, await something and
    `renew`. `seconds`: how long it may last; infinity makes it a matter of events alone.
    """

    __slots__ = ("_events", "_seconds", "elapsed", "left", "until")

    def __init__(self, seconds: float = TURN_SECONDS, events: int = EVENTS) -> None:
        self._seconds = seconds
        self._events = events
        self.renew()

    def renew(self) -> tuple[int, float]:
        """A new turn begins now. For how many events, and until when by `elapsed`, for a loop that
        counts by itself: a call for each event takes as long as what it counts.
        """
        self.left = self._events
        self.elapsed = stopwatch()
        self.until = self.elapsed() + self._seconds
        return self.left, self.until

    def spend(self) -> bool:
        """Count one event; True when the turn is over."""
        self.left -= 1
        return self.left <= 0 or self.elapsed() > self.until


WARN_SECONDS = 1.0

log = logging.getLogger("aiobus.sync")


async def wait_for_space(gates: Iterable[BackpressureGate]) -> None:
    """Wait until none of `gates` holds more than its maxsize. Cancelling it stops the waiting and
    nothing else.

    While a publisher waits, the handlers and stream bodies it is part of cannot go on. An inbox
    that cannot empty before one of them does is not waited for; the event counts as `overshoot`.
    """
    for gate in gates:
        if gate.is_over:
            await _wait(gate)


async def _wait(gate: BackpressureGate) -> None:
    if gate.warning is None:
        gate.warning = _warn_later(gate)
    try:
        while gate.is_over:
            holders = holding()
            if any(would_deadlock(holder.consumer, gate) for holder in holders):
                gate.overshoot += 1
                return
            with waiting(holders, (gate,)):
                await gate.space_available.wait()
    finally:
        if not gate.space_available:  # the last that waited
            gate.warning.cancel()
            gate.warning = None


def _warn_later(gate: BackpressureGate) -> asyncio.TimerHandle:
    text = "a publisher has waited %g s for room in the inbox of %s"
    loop = asyncio.get_running_loop()
    return loop.call_later(WARN_SECONDS, log.warning, text, WARN_SECONDS, gate.name)
