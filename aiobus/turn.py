"""Fair shares of the event loop: when to let the others run.

Owns the budget of one turn: so many events or so long, whichever is used up first. A task that
does not give the loop back delays everybody's HALT; one that gives it back after every event is
slow, and its frames are empty.
"""

from aiobus.clock import stopwatch

__all__ = [
    "EVENTS", "HANDLER_EVENTS", "HANDLER_SECONDS", "READER_MESSAGES", "READER_SECONDS",
    "TURN_SECONDS", "Turn",
]  # fmt: skip

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


class Turn:
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
