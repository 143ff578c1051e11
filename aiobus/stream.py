"""`async with bus.stream(...) as events: async for event in events`: events pulled by the
consumer's own task.

A class and not an async generator, because a generator that is cancelled or timed out while it
waits is finished for good, while here the next step goes on where the last one stopped. Must not
know how events arrive: it pops and waits.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Self

from aiobus.delivery import Delivery, StreamBody, current, enter, leave
from aiobus.errors import BusError
from aiobus.event import Event, T
from aiobus.payload import Fit
from aiobus.subscription import Subscription
from aiobus.sync import TimeSlice

__all__ = ["EventStream"]

log = logging.getLogger("aiobus.dispatcher")


class EventStream(Generic[T]):
    """The events of one query, in order, for one consumer. Live on entry, closed on exit; it ends
    when the bus closes.

    Taking an event makes it the cause of whatever this task publishes until it takes the next one;
    tasks spawned meanwhile inherit it (on Python 3.11 not if the step ran under asyncio.wait_for,
    which makes a task of it; asyncio.timeout does not). If one task enters and another iterates,
    let it begin before publishing to a "block" stream of this process.
    A step that is cancelled or timed out loses nothing. If an event is not what `payload=` says,
    its step raises PayloadError, and the next step goes on behind it. A second task that iterates
    at the same time gets a BusError.
    """

    def __init__(self, open: Callable[[], Awaitable[Subscription]], fit: Fit | None = None) -> None:
        self._open = open
        self._fit = fit
        self._subscription: Subscription | None = None
        self._body: StreamBody | None = None
        self._delivery: Delivery | None = None
        self._turn: TimeSlice
        self._debug = log.isEnabledFor(logging.DEBUG)
        self._is_waiting = False
        self._entered_by: asyncio.Task[Any] | None = None
        self._stepping: asyncio.Task[Any] | None = None

    @property
    def subscription(self) -> Subscription:
        """The subscription behind it: its stats and `reached`. Raises BusError before entry."""
        return self._entered()

    def _entered(self) -> Subscription:
        if self._subscription is None:
            raise BusError(
                "a stream is live inside `async with` only:"
                " `async with bus.stream(...) as events: async for event in events: ...`"
            )
        return self._subscription

    async def __aenter__(self) -> Self:
        """Subscribe; live on return. Raises BusError if entered before. Cancelling undoes it."""
        if self._subscription is not None:
            raise BusError("this stream was entered before; call bus.stream() for another")
        self._subscription = subscription = await self._open()
        self._entered_by = asyncio.current_task()
        self._turn = TimeSlice()  # not sooner: it reads the clock of the loop in which it is made
        self._body = StreamBody(subscription, current(), self._is_iterated_here)
        subscription.acting.add(self._body)
        enter(self._body)
        return self

    async def __aexit__(self, *error: object) -> None:
        """Unsubscribe, without a wait; nothing in a forked child. Raises WrongLoop elsewhere."""
        subscription = self._entered()
        if subscription.life.is_forked:
            return
        subscription.life.check_loop()
        self._finish()
        if self._body is not None:
            self._body.finished = True
            subscription.acting.discard(self._body)
            leave(self._body)
        await subscription.unsubscribe()

    def __aiter__(self) -> Self:
        """Itself, once entered; raises BusError otherwise."""
        self._entered()
        return self

    async def __anext__(self) -> Event[T]:
        """Wait for the next event. Cancelling loses nothing and leaves the stream usable. Ends when
        the bus or the stream closes. Raises WrongLoop elsewhere.
        """
        subscription = self._entered()
        subscription.life.check_loop()
        if self._is_waiting:
            raise BusError(
                "another task waits for this stream's next event; give each task its own stream"
            )
        self._finish()
        self._stepping = asyncio.current_task()
        enter(self._body)
        self._is_waiting = True
        try:
            if self._turn.spend():
                await asyncio.sleep(0)
                self._renew()
            event = subscription.pop()
            if event is None:
                event = await self._wait(subscription)
        finally:
            self._is_waiting = False
        if self._debug:
            log.debug("dispatch %s %s to %s", event.type, event.id, subscription.name)
        self._delivery = subscription.begin(event, self._body)
        enter(self._delivery)
        if self._body is not None:
            self._body.hold(event)
        if self._fit is not None:
            subscription.convert(event, self._fit)
        return event

    async def _wait(self, subscription: Subscription) -> Event[Any]:
        """The next event, once there is one. Raises StopAsyncIteration when the subscription is
        closed. The streams of a replay do this in another way.
        """
        while not subscription.closed:
            await subscription.wait()
            self._renew()
            event = subscription.pop()
            if event is not None:
                return event
        raise StopAsyncIteration

    def _renew(self) -> None:
        self._turn.renew()
        self._debug = log.isEnabledFor(logging.DEBUG)  # once a turn, not once an event

    def _finish(self) -> None:
        """The event taken last is done with."""
        if self._delivery is not None and self._body is not None and self._subscription is not None:
            self._subscription.finish(self._delivery)
            self._delivery = None
            self._body.hold(None)
            self._subscription.note_idle()

    def _is_iterated_here(self) -> bool:
        """True for the task that took the last step, or that entered if that one has ended."""
        task = self._stepping
        owner = self._entered_by if task is None or task.done() else task
        return asyncio.current_task() is owner
