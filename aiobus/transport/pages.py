"""Requests for pages of history under way: so many to each source, the others wait for their turn.

Owns the bound. Without it 5,000 subscriptions that miss something ask at once, and most answers,
more than ZeroMQ queues, are dropped and asked for again. Pure but for the clock it is told; must
not know what a page is.
"""

from collections.abc import Callable

from aiobus.history import Want
from aiobus.rows import Source
from aiobus.sequence import RETRY
from aiobus.transport import Inlet

__all__ = ["Pages"]

AT_ONCE = 32
"""Questions to one source that have no answer yet."""

Send = Callable[[Inlet, Source, Want, int], None]


class Pages:
    """The requests of one bus. `send` sends one: an inlet, a source, what is wanted, how many."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._under_way: dict[Source, dict[Inlet, float]] = {}
        self._waiting: dict[Source, dict[Inlet, tuple[Want, int]]] = {}

    def ask(self, inlet: Inlet, source: Source, want: Want, limit: int, now: float) -> bool:
        """Ask now or when it is its turn; True when it has to wait. Again for the same inlet: the
        last counts.
        """
        under_way = self._under_way.setdefault(source, {})
        if inlet in under_way or len(under_way) < AT_ONCE:
            under_way[inlet] = now
            self._send(inlet, source, want, limit)
            return False
        self._waiting.setdefault(source, {})[inlet] = (want, limit)
        return True

    def answered(self, inlet: Inlet, source: Source, now: float) -> None:
        """An answer has come: the next may ask."""
        self._under_way.get(source, {}).pop(inlet, None)
        self._go_on(source, now)

    def tick(self, now: float) -> None:
        """A second has passed: what has no answer by now will have none."""
        for source, under_way in list(self._under_way.items()):
            for inlet in [each for each, asked in under_way.items() if now - asked >= RETRY]:
                del under_way[inlet]
            self._go_on(source, now)
            if not under_way:
                del self._under_way[source]

    def _go_on(self, source: Source, now: float) -> None:
        waiting = self._waiting.get(source, {})
        while waiting and len(self._under_way.get(source, ())) < AT_ONCE:
            inlet = next(iter(waiting))
            self.ask(inlet, source, *waiting.pop(inlet), now)
        if not waiting:
            self._waiting.pop(source, None)

    def forget(self, inlet: Inlet) -> None:
        """It asks for nothing any more."""
        for under_way in self._under_way.values():
            under_way.pop(inlet, None)
        for waiting in self._waiting.values():
            waiting.pop(inlet, None)
