"""The peers that have said bye, until it is known that they have closed.

Owns the look whether they still listen. Any process can say bye in the name of another, and it
parts the two buses if it is not true. Must not know how peers are found and linked (`links`).
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from aiobus.clock import elapsed
from aiobus.discovery import Member, is_observer
from aiobus.mesh import Driver, Probe
from aiobus.wire import PeerId

__all__ = ["Bye", "Byes"]

MAX_BYES = 1024
"""At once, as many as a bus has peers."""
BYE_SECONDS = 2.0
"""After its bye, a peer that still listens has not closed: it is linked again."""
BYE_LOOK = 0.05
"""Between two looks whether a peer listens that said bye and whose hello is gone: it ends one
connection after the other.
"""


@dataclass(slots=True)
class Bye:
    """A peer said bye at `said`. `found_at`: that of the peer. `is_here`: its hello is."""

    who: PeerId
    said: float
    found_at: int
    is_here: bool


class Byes:
    """The byes of one bus. `on_closed` takes a peer that has closed, `on_wrong` the bye of one that
    still listens, which it has to `pop`.
    """

    def __init__(
        self,
        driver: Driver,
        on_closed: Callable[[PeerId], None],
        on_wrong: Callable[[Bye], None],
    ) -> None:
        self._driver = driver
        self._on_closed = on_closed
        self._on_wrong = on_wrong
        self._byes: dict[str, Bye] = {}  # by endpoint
        self._looking: Probe | None = None

    def add(self, bye: Bye) -> bool:
        """A peer has said bye. False if there is no place to remember it."""
        if len(self._byes) >= MAX_BYES:
            return False
        self._byes[bye.who.endpoint] = bye
        self.look()
        return True

    def at(self, endpoint: str) -> Bye | None:
        """The bye of the peer that listens there; None if it has said none."""
        return self._byes.get(endpoint)

    def pop(self, endpoint: str) -> Bye | None:
        """The same, which is forgotten, since a peer is there again."""
        return self._byes.pop(endpoint, None)

    def withdraw(self, who: PeerId) -> None:
        """The hello of a peer is gone. No error if it has not said bye."""
        if (bye := self._byes.get(who.endpoint)) is not None and bye.who == who:
            bye.is_here = False
            self.look()

    def owed(self, newest: float = math.inf) -> set[str]:
        """Names of those that may not have closed, and are owed events below `newest`."""
        byes = [each for each in self._byes.values() if each.found_at < newest]
        return {each.who.name for each in byes if not is_observer(each.who.endpoint)}

    def look(self) -> None:
        """Look whether those still listen that have said bye and whose hello is gone or overdue."""
        now = elapsed()
        due = [
            each
            for each in self._byes.values()
            if not each.is_here or now - each.said >= BYE_SECONDS
        ]
        if due and (self._looking is None or self._looking.is_over):
            members = [Member(each.who.name, each.who.endpoint) for each in due]
            self._looking = Probe(members, partial(self._conclude, due))
            self._driver.probe(self._looking)

    def _conclude(self, due: list[Bye], absent: Collection[Member]) -> None:
        """Tell which peers have closed, and whose bye was wrong: those that still listen long after
        it.
        """
        for bye in due:
            who = bye.who
            if self._byes.get(who.endpoint) is not bye:
                continue  # it has said hello again
            if Member(who.name, who.endpoint) in absent:
                del self._byes[who.endpoint]
                self._on_closed(who)
            elif elapsed() - bye.said >= BYE_SECONDS:
                self._on_wrong(bye)
        if not all(each.is_here for each in self._byes.values()):
            self._driver.later(BYE_LOOK, self.look)
