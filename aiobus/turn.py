"""Fair shares of the event loop: when to let the others run.

Owns the budget of one turn, 64 events or 0.5 ms, whichever is used up first. A task that does not
give the loop back delays everybody's HALT; one that gives it back after every event is slow.
"""

from aiobus.clock import elapsed

__all__ = ["Turn"]

EVENTS = 64
SECONDS = 0.0005


class Turn:
    """One turn at the loop. Call `spend` for each event; once it says True, await something and
    `renew`.
    """

    __slots__ = ("_events", "_until")

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """A new turn begins now."""
        self._events = EVENTS
        self._until = elapsed() + SECONDS

    def spend(self) -> bool:
        """Count one event; True when the turn is over."""
        self._events -= 1
        return self._events <= 0 or elapsed() > self._until
