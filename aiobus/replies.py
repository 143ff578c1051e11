"""Which requests a bus has replied to, so that each gets one reply.

Owns what is remembered of that, and its bound: what is forgotten is refused, and not replied to
twice. Pure: it publishes nothing and waits for nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiobus.errors import AlreadyReplied
from aiobus.event import Event, event_id, parse_id
from aiobus.query import kind_of

__all__ = ["MAX_REPLIES", "MAX_SOURCES", "Replies", "Request", "requested"]

MAX_REPLIES = 65_536
"""Requests that are remembered, at some 200 bytes each."""
MAX_SOURCES = 1_024
"""Sources of which it is remembered up to where their requests are forgotten: as many as peers."""

Request = tuple[str, int, int]
"""The source, epoch and seq of the event that is replied to."""


class Replies:
    """The replies that one bus has given since its start. Of each source, what is not newer than a
    request that was forgotten counts as replied to.
    """

    def __init__(self, most: int = MAX_REPLIES, sources: int = MAX_SOURCES) -> None:
        self._most = most
        self._sources = sources
        self._given: dict[Request, str] = {}
        """The id of each reply, in the order in which they began; "" while one is under way."""
        self._forgotten: dict[tuple[str, int], int] = {}
        """By source, the highest seq that was forgotten. The source that was added to last is the
        last.
        """

    @contextmanager
    def once(self, request: Request, event: Event[Any]) -> Iterator[None]:
        """Inside, publish `event` as the reply to `request`. If it gets no number there, then the
        request has no reply yet. Raises AlreadyReplied if it has one, or may have.
        """
        if (reply := self._given.get(request)) is not None:
            raise AlreadyReplied(event_id(*request), reply)
        if request[2] <= self._forgotten.get(request[:2], 0):
            raise AlreadyReplied(event_id(*request), "", self._most)
        before = event.id
        self._given[request] = ""
        try:
            yield
        finally:
            # What has its number is published, also if the call is cancelled. A commit that fails
            # takes the number back.
            if event.id in ("", before):
                self._given.pop(request, None)
            else:
                self._given[request] = event.id
                self._forget()

    def _forget(self) -> None:
        while len(self._given) > self._most:
            oldest = next(iter(self._given))
            del self._given[oldest]
            source, seq = oldest[:2], oldest[2]
            self._forgotten[source] = max(seq, self._forgotten.pop(source, 0))
            if len(self._forgotten) > self._sources:
                del self._forgotten[next(iter(self._forgotten))]


def requested(request: object, event: object) -> Request:
    """What `event` would be the reply to. Raises TypeError and ValueError for what is no request,
    and for an event that cannot be its reply.
    """
    if not isinstance(event, Event):
        raise TypeError(
            f"{event!r} is {kind_of(event)}, not an Event: reply(request, Event(type, data))"
        )
    if not isinstance(request, Event | str):
        hint = "the event that is replied to, or its id, is needed"
        raise TypeError(f"{request!r} is {kind_of(request)}: {hint}")
    id = request.id if isinstance(request, Event) else request
    if not id:
        raise ValueError(
            f"{request!r} has no id, because it was not published: reply(request, event) takes the"
            " event that was received, and then the reply"
        )
    found = parse_id(id)
    if event is request or (event.seq and event.id == id):
        raise ValueError(f"{event!r} is the request itself: it would be published as a new one")
    if event.cause not in ("", id) and not event.seq:
        raise ValueError(
            f"cause={event.cause!r}: the cause of a reply is its request, {id!r}; leave cause= out,"
            " or `publish` the event"
        )
    return found
