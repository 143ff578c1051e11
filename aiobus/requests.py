"""Requests: publish an event, await the first event it caused.

Owns the futures of requests under way and the subscriptions that resolve them, one per set of reply
types, made once and kept. A reply is an event whose `cause` is the request's id; its
sender need not know that it answers a request.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from contextvars import Context
from typing import Any

from aiobus.delivery import holding, waiting
from aiobus.errors import BusClosed, NoSubscribers, RequestInterrupted, RequestTimeout
from aiobus.event import Event
from aiobus.options import SubscriptionOptions
from aiobus.publisher import Route
from aiobus.query import Query
from aiobus.rows import Source
from aiobus.subscriber import Subscriber
from aiobus.subscription import Subscription
from aiobus.sync import wait_for_space

__all__ = ["Requests"]


class Requests:
    """The requests of one bus. `route(event)` returns the route of an event, or raises what
    publishing it would raise. `publish` publishes it and does not wait for space in inboxes; it
    takes a function to call as soon as the event has its id.
    """

    def __init__(
        self,
        subscriptions: Subscriber,
        route: Callable[[Event[Any]], Route],
        publish: Callable[[Event[Any], Callable[[], object]], Awaitable[object]],
        listeners: Callable[[str], Collection[Source] | None],
    ) -> None:
        self._subscriptions = subscriptions
        self._route = route
        self._publish = publish
        self._listeners = listeners
        self.unheard: Counter[str] = Counter()
        """By type, how many requests found no subscriber."""
        self._asked: dict[asyncio.Future[Event[Any]], tuple[Event[Any], set[Source]]] = {}
        """The request of each future that only these peers can answer, while they are there."""
        self._listening: dict[Query, asyncio.Task[Subscription]] = {}
        self._futures: dict[tuple[str, Query], asyncio.Future[Event[Any]]] = {}

    async def request(self, event: Event[Any], query: Query, timeout: float | None) -> Event[Any]:
        """See `AsyncEventBus.request`."""
        self._route(event)
        await self._listen(query)
        route = self._route(event)
        if not self._has_subscriber(route):
            self.unheard[route.type] += 1
            raise NoSubscribers(route.type, route.key)
        replies: dict[str, asyncio.Future[Event[Any]]] = {}
        peers = None if self._has_own(route) else self._listeners(route.type)
        limit = asyncio.timeout(timeout)

        def expect() -> None:
            # With a journal, the reply may come, and the peers may go, before this task goes on.
            reply = replies[event.id] = self._expect(event.id, query)
            if peers:
                self._asked[reply] = event, set(peers)

        try:
            await self._publish(event, expect)
            async with limit:
                (reply,) = replies.values()
                return await self._wait(reply, route)
        except TimeoutError:
            if timeout is not None and limit.expired():
                raise RequestTimeout(event, timeout) from None
            raise
        finally:
            for id, reply in replies.items():
                self._futures.pop((id, query), None)
                self._asked.pop(reply, None)
                reply.cancel()

    def _has_subscriber(self, route: Route) -> bool:
        """True if a subscription names the type. A subscription to `*` is a monitor and does not
        count; nor do the subscriptions to replies.
        """
        named = any(route.type in each.query.types for each in route.streams)
        return named or self._has_own(route)

    def _has_own(self, route: Route) -> bool:
        """The same for the subscriptions of this bus."""
        replies = {task.result().sink for task in self._listening.values() if task.done()}
        named = (each for each in route.sinks if route.type in each.query.types)
        return any(sink not in replies for sink in named)

    def lose(self, source: Source) -> None:
        """A peer has left, or has started again: end the requests that only it could answer."""
        for reply, (event, peers) in list(self._asked.items()):
            if source in peers:
                peers.discard(source)
                if not peers and not reply.done():
                    reply.set_exception(RequestInterrupted(event, source[0]))

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
            making = self._subscriptions.serve(
                "replies",
                SubscriptionOptions(query=query),
                lambda event: self._resolve(query, event),
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

    def _expect(self, request_id: str, query: Query) -> "asyncio.Future[Event[Any]]":
        future: asyncio.Future[Event[Any]] = asyncio.get_running_loop().create_future()
        self._futures[request_id, query] = future
        return future

    def _resolve(self, query: Query, event: Event[Any]) -> None:
        future = self._futures.pop((event.cause, query), None)
        if future is not None and not future.done():
            future.set_result(event)

    def close(self, name: str) -> None:
        """End every wait with BusClosed."""
        for task in self._listening.values():
            task.cancel()
        for future in self._futures.values():
            if not future.done():
                future.set_exception(BusClosed(f"{name} closed while a reply was awaited"))
