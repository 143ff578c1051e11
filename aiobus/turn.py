"""Fair shares of the event loop: when to let the others run.

Owns the budget of one turn, 64 events or 0.5 ms, whichever is used up first. A task that does not
give the loop back delays everybody's HALT; one that gives it back after every event is slow.
"""

from aiobus.clock import elapsed

__all__ = ["PUBLISH_SECONDS", "TURN_SECONDS", "Turn"]

EVENTS = 64
TURN_SECONDS = 0.0005
PUBLISH_SECONDS = TURN_SECONDS / 2
"""A publisher's turn is shorter than a handler's, or handlers fall behind it on a busy machine."""


class Turn:
    """One turn at the loop. Call `spend` for each event; once it says True, await something and
    `renew`. `seconds`: how long it may last; infinity makes it a matter of events alone.
    """

    __slots__ = ("_events", "_seconds", "_until")

    def __init__(self, seconds: float = TURN_SECONDS) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """A new turn begins now."""
        self._events = EVENTS
        self._until = elapsed() + self._seconds

    def spend(self) -> bool:
        """Count one event; True when the turn is over."""
        self._events -= 1
        return self._events <= 0 or elapsed() > self._until
