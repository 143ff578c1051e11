"""The publishing half of a bus: number an event, keep it, hand it to everyone who asked.

Owns the seq, the history and the routes. Pure: all of it happens between two awaits, so it must not
wait, and whether an outlet is an inbox of this process or a stream to another one is not known
here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiobus.codec import encode
from aiobus.errors import BusError, EncodeError
from aiobus.event import Event
from aiobus.history import History, Ring
from aiobus.limits import Limits
from aiobus.outlets import Outlet, Outlets
from aiobus.pattern import RESERVED, Query, bad_key, bad_type, plain, starred

__all__ = ["Publisher", "Route"]

MAX_ROUTES = 65_536
"""Routes remembered. Keys are the user's and may never repeat, so the memory of them is thrown away
when it is full.
"""


class Route:
    """What there is to know about events of one (type, key), worked out once."""

    __slots__ = ("gates", "is_public", "key", "outlets", "ring", "type")

    def __init__(self, type: str, key: str, ring: Ring, outlets: tuple[Outlet, ...]) -> None:
        self.is_public = not type.startswith(RESERVED)
        self.type = type
        self.key = key
        self.ring = ring
        self.outlets = outlets
        self.gates = tuple(gate for outlet in outlets if (gate := outlet.gate) is not None)


class Publisher:
    """One source: `name`, `epoch`, and every event it ever numbers."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.epoch = 0
        """Which start of this source it is (`epochs`), set before the first event."""
        self.seq = self.public_seq = 0
        """The number of the last event, and of the last that others may be handed. With the former,
        a bus that came, published nothing and left was said to have lost its system events.
        """
        self.history = History(limits)
        self._limits = limits
        self._outlets = Outlets()
        self.routes: dict[tuple[str, str], Route] = {}
        """What `route` has found, for as long as it is true."""
        self.is_committing = False
        """True while events are handed out, when nobody may publish."""

    def attach(self, outlet: Outlet) -> None:
        """From the next event on, hand `outlet` what its query matches."""
        self._outlets.add(outlet)
        self._forget_routes(outlet.query)

    def detach(self, outlet: Outlet) -> None:
        """Hand `outlet` nothing more."""
        self._outlets.remove(outlet)
        self._forget_routes(outlet.query)

    def _forget_routes(self, query: Query) -> None:
        """Work out anew where the events go that `query` may match."""
        if query.every or query.prefixes or not query.keys:
            self.routes.clear()
        for type in query.types:
            for key in query.keys:
                self.routes.pop((type, key), None)

    def route(self, type: str, key: str, *, reserved: bool = False) -> Route:
        """Where events of this type and key go. Raises EncodeError when there can be none."""
        try:
            return self.routes[type, key]
        except KeyError:
            pass
        except TypeError:  # unhashable: no string, which is about to be said
            pass
        if reason := bad_type(type):
            raise EncodeError("type", reason)
        if reason := bad_key(key) or starred(key):
            raise EncodeError("key", reason)
        # Plain strings, so that a member of a user's own StrEnum is not kept alive, nor found to be
        # one by orjson at each event.
        return self._new_route(plain(type), plain(key), reserved)

    def _new_route(self, type: str, key: str, reserved: bool) -> Route:
        is_local = type.startswith(RESERVED)
        if is_local and not reserved:
            raise EncodeError(
                "type",
                f"{type!r} is reserved: types that begin with {RESERVED!r} are the bus's own",
            )
        ring = self.history.ring(type)
        if ring is None:
            raise EncodeError(
                "type",
                f"{type!r} would be one more than {self._limits.types} types (Limits.types);"
                " put what varies into the key",
            )
        outlets = self._outlets.matching(type, key)
        if is_local:
            outlets = (outlet for outlet in outlets if outlet.is_local)
        route = Route(type, key, ring, tuple(outlets))
        if not is_local:
            if len(self.routes) >= MAX_ROUTES:
                self.routes.clear()
            self.routes[type, key] = route
        return route

    def commit(self, event: Event[Any], cause: str, route: Route) -> None:
        """Encode, number, keep and hand out `event`, and stamp the object. Never waits.

        Raises EncodeError before a number is taken, and BusError when called from within itself (a
        `where` that publishes): other outlets would then see the later event first.
        """
        if self.is_committing:
            hint = "publishing from `where` would disorder events; do it in the callback"
            raise BusError(hint)
        self.is_committing = True
        try:
            seq, limit = self.seq + 1, self._limits.event_bytes
            row = encode(seq, event.timestamp, route.type, route.key, event.data, cause, limit)
            self.seq = seq
            if route.is_public:
                self.public_seq = seq
            self.history.keep(route.ring, seq, event.timestamp, route.key, row)
            event.source = self.name
            event.epoch = self.epoch
            event.seq = seq
            event.cause = cause
            for outlet in route.outlets:
                outlet.deliver(seq, row, route.type, route.key)
        finally:
            self.is_committing = False

    @contextmanager
    def handing_out(self) -> Iterator[None]:
        """Inside, older events are handed out, and nobody may publish either."""
        self.is_committing = True
        try:
            yield
        finally:
            self.is_committing = False
