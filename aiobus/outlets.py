"""Who wants which events.

Owns the index from (type, key) to the outlets whose query matches. Pure: what an outlet does with
an event is not known here.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from aiobus.delivery import Consumer, Gate
from aiobus.pattern import Query

__all__ = ["Outlet", "Outlets"]

EVERY = "*"
Place = str | tuple[str, str]
"""A type, or a type and a key."""


class Outlet(Consumer, Protocol):
    """Where matching events go: an inbox of this process, or the stream of one query to other
    processes.
    """

    query: Query
    is_local: bool
    """True for an outlet of this process, which may see reserved types."""

    @property
    def gate(self) -> Gate | None:
        """Itself when publishers of this process wait for it, else None."""
        ...

    def deliver(self, seq: int, row: bytes, type: str, key: str) -> None:
        """Take the next event. Must not raise, wait or publish."""
        ...


class Outlets:
    """The outlets of one publisher, found by what they ask for.

    Those that name their keys lie under (type, key), the others under the type alone: with 5,000
    subscriptions of a symbol each, an event meets one of them, not 5,000.
    """

    def __init__(self) -> None:
        self._places: dict[Place, list[Outlet]] = {}

    def add(self, outlet: Outlet) -> None:
        """Find `outlet` from now on."""
        for place in _places(outlet.query):
            self._places.setdefault(place, []).append(outlet)

    def remove(self, outlet: Outlet) -> None:
        """Find it no more. Raises ValueError when it was not there."""
        for place in _places(outlet.query):
            outlets = self._places.get(place, [])
            outlets.remove(outlet)
            if not outlets:
                del self._places[place]

    def matching(self, type: str, key: str) -> Iterator[Outlet]:
        """Each outlet that wants events of this type and key, once."""
        places: tuple[Place, ...] = ((type, key), (EVERY, key), type, EVERY)
        found = (outlet for place in places for outlet in self._places.get(place, ()))
        return (outlet for outlet in dict.fromkeys(found) if outlet.query.matches(type, key))


def _places(query: Query) -> Iterable[Place]:
    """Where to find a query: reserved types whatever the key, others by key where it can be."""
    types = {EVERY} if query.every else query.types
    if query.keys and not query.prefixes:
        return [*query.reserved, *((type, key) for type in types for key in query.keys)]
    return [*query.reserved, *types]
