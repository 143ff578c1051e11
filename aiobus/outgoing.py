"""The way out of a published event: may it go now, what caused it, when does the loop turn?

Owns the order of checks before a number is taken, lineage, and the budget of a publisher's turn.
Must not know who gets the event: the publisher's routes do.
"""

import asyncio
import logging
from contextvars import Context
from threading import get_ident
from typing import Any

from aiobus.delivery import current
from aiobus.errors import EncodeError
from aiobus.event import Event, own_fields
from aiobus.life import Life, State
from aiobus.publisher import Publisher, Route
from aiobus.reports import Reports
from aiobus.turn import Turn

__all__ = ["Outgoing"]

OPEN = State.OPEN  # an Enum is slow to ask for its members, and each publish does

log = logging.getLogger("aiobus.bus")


class Outgoing:
    """Two steps, `route` and `commit`, between which nothing may be awaited."""

    def __init__(self, life: Life, publisher: Publisher, reports: Reports, turn: Turn) -> None:
        self.turn = turn
        self._life = life
        self._publisher = publisher
        self._routes = publisher.routes
        self._reports = reports
        self._context = Context()  # empty: what belongs to the bus is caused by no event
        self._is_in_tick = self._debug = False

    def route(self, event: Event[Any]) -> Route:
        """Where the event goes. Raises BusClosed, WrongLoop, EncodeError (also for a subclass with
        fields of its own, which would not travel), and TypeError for what is no Event.
        """
        life = self._life
        # Only one loop can run in a thread, so it need not be asked which one does: Python 3.11
        # makes a system call of that.
        if life.state is not OPEN or get_ident() != life.thread or not life.is_running():
            life.check()
        if type(event) is not Event:
            _check(event)
        try:
            return self._routes[event.type, event.key]
        except (KeyError, TypeError):  # a new one, or no strings
            return self._publisher.route(event.type, event.key)

    def commit(self, event: Event[Any], route: Route) -> None:
        """Stamp the cause, unless the caller did, and publish. Raises EncodeError."""
        if not self._is_in_tick:
            self._begin_tick()
        cause = event.cause
        if not cause or event.seq:
            delivery = current()
            cause = "" if delivery is None else delivery.id
        self._publisher.commit(event, cause, route)
        if self._reports.waiting:
            self._reports.flush()
        if self._debug:
            log.debug("publish %s %s key=%r cause=%s", route.type, event.id, route.key, cause)

    def _begin_tick(self) -> None:
        self._is_in_tick = True
        self.turn.renew()
        self._debug = log.isEnabledFor(logging.DEBUG)
        asyncio.get_running_loop().call_soon(self._end_tick, context=self._context)

    def _end_tick(self) -> None:
        self._is_in_tick = False


def _check(event: object) -> None:
    """Raise for what is no Event, or would not travel in whole."""
    kind = type(event).__name__
    if not isinstance(event, Event):
        raise TypeError(f"{event!r} is a {kind}, not an Event: publish(Event(type, data))")
    if names := own_fields(event):
        raise EncodeError(
            names[0],
            f"the fields of {kind} beside those of Event would not travel ({', '.join(names)}):"
            " put them into `data`",
        )
