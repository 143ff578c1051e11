"""Requests: publish an event, await the first event it caused.

Owns the requests under way, who can answer each, and the subscriptions that resolve them, one per
set of reply types, made once and kept. A reply is an event whose `cause` is the request's id; its
sender need not know that it answers a request.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from contextvars import Context
from dataclasses import replace
from typing import Any

from aiobus.delivery import Consumer, holding, is_stuck, waiting
from aiobus.errors import BusClosed, NoSubscribers, RequestInterrupted, RequestTimeout
from aiobus.event import Event
from aiobus.options import SubscriptionOptions
from aiobus.publisher import Publisher, Route
from aiobus.query import Query
from aiobus.rows import Source
from aiobus.subscriber import Subscriber
from aiobus.subscription import Subscription
from aiobus.sync import wait_for_space
from aiobus.system import PEER_LEFT, PEER_RESTARTED
from aiobus.transport import Transport

__all__ = ["Requests"]


SILENT_SECONDS = 3.0
"""As for `aiobus.stale`."""
AWAY = frozenset((PEER_LEFT, PEER_RESTARTED))


class Asked:
    """A request under way. `query`: what may answer it. `own`: the subscriptions of this process
    that can. `peers`: the other buses that can; None if that is not known. `to`: the one bus whose
    reply counts, or "". `since`: the last number of this bus before it. What had left by then, and
    was back, is said to have left by an event with that or a lower one.
    """

    def __init__(
        self,
        event: Event[Any],
        query: Query,
        own: Collection[Consumer],
        peers: Collection[Source] | None,
        to: str,
        since: int,
    ) -> None:
        self.event = event
        self.query = query
        self.own = own
        self.peers = None if peers is None else set(peers)
        self.to = to
        self.since = since
        self.reply: asyncio.Future[Event[Any]] = asyncio.get_running_loop().create_future()

    def lose(self, source: Source, seq: int) -> None:
        """This peer will not answer any more, as the event `seq` says. If it was the last that
        could, nothing will.
        """
        if seq > self.since and self.peers and source in self.peers:
            self.peers.discard(source)
            if not (self.peers or self.own or self.reply.done()):
                self.reply.set_exception(RequestInterrupted(self.event, source[0]))

    def end(self) -> None:
        """Nothing waits for the reply any more."""
        if not (self.reply.cancel() or self.reply.cancelled()):
            self.reply.exception()  # or the loop says that nothing has looked at it


class Requests:
    """The requests of one bus. `route(event)` returns the route of an event, or raises what
    publishing it would raise. `publish` publishes it and does not wait for space in inboxes; it
    takes a function to call as soon as the event has its id.
    """

    def __init__(
        self,
        publisher: Publisher,
        subscriptions: Subscriber,
        route: Callable[[Event[Any]], Route],
        publish: Callable[[Event[Any], Callable[[], object]], Awaitable[object]],
        transport: Transport,
    ) -> None:
        self._publisher = publisher
        self._subscriptions = subscriptions
        self._route = route
        self._publish = publish
        self._transport = transport
        self.unheard: Counter[tuple[str, str]] = Counter()
        """How many requests found no subscriber, by type and by the bus that they were for."""
        self._listening: dict[Query, asyncio.Task[Subscription]] = {}
        self._asking: dict[Asked, None] = {}
        """The requests under way, in the order in which they began."""
        self._asked: dict[tuple[str, Query], Asked] = {}
        """Those that are published, by the id of the event and the query of the replies."""

    @property
    def replies(self) -> set[Subscription]:
        """The subscriptions to replies that are live."""
        made = [task for task in self._listening.values() if task.done() and not task.cancelled()]
        return {task.result() for task in made if task.exception() is None}

    async def request(
        self, event: Event[Any], query: Query, timeout: float | None, to: str
    ) -> Event[Any]:
        """See `AsyncEventBus.request`. `to` is "" for any bus."""
        if to and self._transport.is_alone:
            to = self._publisher.name
        self._route(event)
        await self._listen(query)
        route = self._route(event)
        own, peers = self._answering(route, to)
        if not own and peers is not None and not peers:
            self.unheard[route.type, to] += 1
            raise self._unheard(route, to)
        asked = Asked(event, query, own, peers, to, self._publisher.seq)
        limit = asyncio.timeout(timeout)
        ids: list[str] = []

        def expect() -> None:
            # With a journal, the reply may come before this task goes on.
            ids.append(event.id)
            self._asked[event.id, query] = asked

        self._asking[asked] = None  # a peer may go before the event is published
        try:
            await self._publish(event, expect)
            async with limit:
                return await self._wait(asked.reply, route)
        except TimeoutError:
            if timeout is not None and limit.expired():
                waited, silent = self._waited(asked), self._silent(asked)
                raise RequestTimeout(event, timeout, waited, silent) from None
            raise
        finally:
            del self._asking[asked]
            for id in ids:
                self._asked.pop((id, query), None)
            asked.end()

    def _answering(
        self, route: Route, to: str
    ) -> tuple[Collection[Consumer], Collection[Source] | None]:
        """The subscriptions of this process that can answer, and the peers; None if not all of
        these are known. A subscription to `*` is a monitor's and does not count; nor do those of
        observers, and the subscriptions to replies.
        """
        if not to:
            return self._own(route), self._transport.listeners(route)
        if to != self._publisher.name:
            return (), self._transport.listeners(route, to)
        here = set(self._subscriptions)
        return [each for each in self._own(route) if each in here], ()

    def _unheard(self, route: Route, to: str) -> NoSubscribers:
        linked = [each.name for each in self._transport.peers]
        is_there = to in ("", self._publisher.name, *linked)
        error = NoSubscribers(route.type, route.key, to, None if is_there else linked)
        if to and (reason := self._transport.why_deaf(to)):
            error.add_note(reason)
        return error

    def _own(self, route: Route) -> list[Consumer]:
        """The subscriptions of this process that name the type."""
        if self._publisher.observes:
            return []
        replies = {task.result().sink for task in self._listening.values() if task.done()}
        named = (each for each in route.sinks if route.type in each.query.types)
        return [sink.consumer for sink in named if sink not in replies]

    def _waited(self, asked: "Asked") -> list[str]:
        """The names of the subscriptions that alone can answer, if they cannot go on before the
        calling code does.
        """
        holders = holding()
        is_alone = asked.own and asked.peers is not None and not asked.peers
        if not (holders and is_alone and all(is_stuck(each, holders) for each in asked.own)):
            return []
        return [each.name for each in asked.own if isinstance(each, Subscription)]

    def _silent(self, asked: "Asked") -> list[str]:
        """The names of the peers that alone can answer, if no one of them sends anything."""
        if asked.own or not asked.peers:
            return []
        silent = {
            (each.name, each.epoch): each.name
            for each in self._transport.peers
            if each.silent >= SILENT_SECONDS
        }
        return sorted(silent[each] for each in asked.peers) if asked.peers <= silent.keys() else []

    async def _wait(self, reply: "asyncio.Future[Event[Any]]", route: Route) -> Event[Any]:
        await wait_for_space(route.blocking)
        if not (holders := holding()):
            return await reply
        # Without this, the handler that answers could wait for space in an inbox that empties only
        # once this one has its answer.
        with waiting(holders, [sink.consumer for sink in route.sinks]):
            self._subscriptions.recheck()
            return await reply

    async def _listen(self, query: Query) -> None:
        """Subscribe to replies, once per query. If this is cancelled, the subscription is made all
        the same, for the next request.
        """
        task = self._listening.get(query)
        if task is None:
            # A peer that goes does so behind what it has published, which may be the reply.
            wanted = replace(query, reserved=query.reserved | AWAY)
            making = self._subscriptions.serve(
                "replies",
                SubscriptionOptions(query=wanted),
                lambda event: self._take(query, event),
                about=query,
            )
            task = asyncio.get_running_loop().create_task(making, context=Context())
            task.add_done_callback(lambda task: self._on_listening(query, task))
            self._listening[query] = task
        # A tape takes what is called when a future is cancelled for attached code: no `shield`, and
        # no callback on a future that a request awaits.
        if not task.done():
            await asyncio.wait([task])
        task.result()

    def _on_listening(self, query: Query, task: "asyncio.Task[Subscription]") -> None:
        if task.cancelled() or task.exception() is not None:
            self._listening.pop(query, None)

    def _take(self, query: Query, event: Event[Any]) -> None:
        asked = self._asked.get((event.cause, query))
        if asked is not None and asked.to in ("", event.source) and not asked.reply.done():
            asked.reply.set_result(event)
        if event.type in AWAY:
            source = event.data["name"], event.data["epoch"]
            for each in self._asking:
                if each.query == query:
                    each.lose(source, event.seq)

    def close(self, name: str) -> None:
        """End every wait with BusClosed."""
        for task in self._listening.values():
            task.cancel()
        for asked in self._asking:
            if not asked.reply.done():
                asked.reply.set_exception(BusClosed(f"{name} closed while a reply was awaited"))
