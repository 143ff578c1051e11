"""The task that hands a subscription's events to its callback.

Owns the calling: one after another or `concurrency` at once, the isolation of failures, and giving
the loop back in time. Must not know where events come from or what overflow means.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from functools import partial
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from aiobus.delivery import Delivery, enter
from aiobus.event import Event, event_id
from aiobus.options import check_function
from aiobus.payload import misfit
from aiobus.subscription import Subscription, Taken
from aiobus.sync import LoopWatch, Notifier, TimeSlice

__all__ = ["BatchCallback", "BatchDispatcher", "Callback", "Dispatcher", "check_callback"]

Callback = Callable[[Event[Any]], Awaitable[object] | object]
BatchCallback = Callable[[Taken], Awaitable[None]]

log = logging.getLogger("aiobus.dispatcher")


def check_callback(callback: object) -> None:
    """Raise TypeError for what could never be called with events, as far as can be told."""
    if not callable(callback):
        hint = (
            " (already called; give the function itself)" if inspect.iscoroutine(callback) else ""
        )
        raise TypeError(f"callback={callback!r}: a coroutine function of one event is needed{hint}")
    check_function("callback", callback)


def _is_to_await(result: object) -> bool:
    """True for an awaitable. Raises TypeError for a generator, which runs none of its code."""
    if inspect.isawaitable(result):
        return True
    if isinstance(result, GeneratorType | AsyncGeneratorType):
        raise TypeError(f"the callback returned {result!r}: none of its code has run")
    return False


class Dispatcher:
    """Calls `callback` with each event of `subscription` until that is closed, in one task that
    runs `run`. `turn`: the time slice of that task. `watch` is given the time of each step.
    """

    def __init__(
        self, subscription: Subscription, callback: Callback, turn: TimeSlice, watch: LoopWatch
    ) -> None:
        self.subscription = subscription
        self._watch = watch
        self.callback = callback
        fit, query = subscription.options.fit, subscription.options.query
        self._call_with = callback if fit is None else fit.before(callback)
        self._only = None if fit is None else fit.only(query)
        """The conversion of each event, if that is one."""
        self._turn = turn
        self._concurrency = subscription.options.concurrency
        self._calls: set[asyncio.Task[None]] = set()
        self._returned = Notifier()

    def run(self) -> Coroutine[Any, Any, None]:
        """Hand over events until the subscription is closed and all calls have returned."""
        work = self._hand_over if self._concurrency == 1 else self._spawn_calls
        return self._watch.timed(work, lambda: _place(self.subscription))

    async def _hand_over(self) -> None:
        """One event after another. All that is handed over goes through this loop."""
        subscription, callback = self.subscription, self._call_with
        convert, kind = self._only or (None, None)
        if convert is not None:  # here: a call more takes half as long as it
            callback = self.callback
        pop, batch = subscription.pop, subscription.batch
        debug = log.isEnabledFor(logging.DEBUG)
        left, until = self._turn.renew()
        elapsed = self._turn.elapsed
        while not subscription.closed:
            event = batch.pop() if batch and subscription.is_plain else pop()
            if event is None:
                await subscription.wait()
                debug = log.isEnabledFor(logging.DEBUG)
                left, until = self._turn.renew()
                continue
            if debug:
                log.debug("dispatch %s %s to %s", event.type, event.id, subscription.name)
            # As `begin`, in a fifth of the time.
            hand = (subscription, event.type, event.source, event.epoch, event.seq)
            subscription.hand = hand
            subscription.begun += 1
            enter(hand)
            try:
                if convert is not None:
                    try:
                        event.data = convert(event.data, kind)
                    except Exception as error:
                        raise misfit(event, error) from error
                result = callback(event)
                if type(result) is CoroutineType or (result is not None and _is_to_await(result)):
                    await result  # type: ignore[misc]
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - reported
                _fail(subscription, hand[1], event_id(*hand[2:]), error)
            finally:
                subscription.handled += 1
                if subscription.delivery is not None:
                    subscription.end_delivery()
            left -= 1
            if left <= 0 or elapsed() > until:
                await asyncio.sleep(0)
                debug = log.isEnabledFor(logging.DEBUG)
                left, until = self._turn.renew()

    async def _spawn_calls(self) -> None:
        """Up to `concurrency` events at once, each in a task of its own."""
        subscription, turn = self.subscription, self._turn
        turn.renew()
        try:
            while not subscription.closed:
                event = subscription.pop()
                if event is None:
                    await subscription.wait()
                    turn.renew()
                    continue
                log.debug("dispatch %s %s to %s", event.type, event.id, subscription.name)
                self._spawn(event)
                while len(self._calls) >= self._concurrency:
                    await self._returned.wait()
                if turn.spend():
                    await asyncio.sleep(0)
                    turn.renew()
            if subscription.life.is_forked:
                self._calls.clear()  # they are its parent's, and no loop runs here to wait in
            while self._calls:
                await self._returned.wait()  # also when unsubscribed, no call is cut off
        finally:
            for call in self._calls:
                call.cancel()
            while self._calls:
                await self._returned.wait()

    async def _call(self, event: Event[Any], delivery: Delivery) -> None:
        kind = event.type
        enter(delivery)
        try:
            if self.subscription.was_dropped:  # after it was spawned, and before it first ran
                self.subscription.take_back(delivery)
                return
            result = self._call_with(event)
            if type(result) is CoroutineType or (result is not None and _is_to_await(result)):
                await result  # type: ignore[misc]
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - reported
            _fail(self.subscription, kind, delivery.id, error)
        finally:
            self.subscription.finish(delivery)

    def _spawn(self, event: Event[Any]) -> None:
        """Start a call in a task of its own. It counts as begun at once, whenever it first runs."""
        type, delivery = event.type, self.subscription.begin(event)
        call = asyncio.get_running_loop().create_task(
            self._watch.timed(
                partial(self._call, event, delivery),
                lambda: f"{self.subscription.name} at {delivery.id}",
            ),
            name=f"{self.subscription.name} call",
            context=Context(),
        )
        self._calls.add(call)
        call.add_done_callback(lambda call: self._on_return(call, type, delivery))

    def _on_return(self, call: "asyncio.Task[None]", type: str, delivery: Delivery) -> None:
        self._calls.discard(call)
        self.subscription.finish(delivery)  # for a call that was cancelled before it first ran
        if call.cancelled():
            if not self.subscription.closed:
                own = asyncio.CancelledError("the callback cancelled its own task")
                self.subscription.fail(type, delivery.id, own)
        elif (error := call.exception()) is not None:
            # What pytest.fail raises, for one. It ends the bus, as where calls come one by one.
            self.subscription.fail(type, delivery.id, error)
        self._returned.wake()
        self.subscription.note_idle()


class BatchDispatcher:
    """Calls `callback` with several events of `subscription` at once, as they are taken: a third of
    the time of one after another. Rows of this process are not decoded. For the package alone.
    """

    def __init__(
        self,
        subscription: Subscription,
        callback: BatchCallback,
        turn: TimeSlice,
        watch: LoopWatch,
    ) -> None:
        self._subscription = subscription
        self._callback = callback
        self._turn = turn
        self._watch = watch

    def run(self) -> Coroutine[Any, Any, None]:
        """As that of a `Dispatcher`."""
        return self._watch.timed(self._hand_over, lambda: self._subscription.name)

    async def _hand_over(self) -> None:
        subscription, turn = self._subscription, self._turn
        turn.renew()
        while not subscription.closed:
            taken = subscription.take()
            if not taken:
                await subscription.wait()
                turn.renew()
                continue
            subscription.begun += len(taken)
            try:
                await self._callback(taken)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - reported
                _fail(subscription, f"{len(taken)} events", "", error)
            finally:
                subscription.handled += len(taken)
            if turn.elapsed() > turn.until:
                await asyncio.sleep(0)
                turn.renew()


def _fail(subscription: Subscription, type: str, id: str, error: BaseException) -> None:
    """Report what a callback raised; raise it again when this task is being cancelled."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise error
        # This task was not cancelled: something that the callback awaited was.
    subscription.fail(type, id, error)


def _place(subscription: Subscription) -> str:
    """The event whose call began last, or is in progress."""
    hand = subscription.hand
    return subscription.name if hand is None else f"{subscription.name} at {event_id(*hand[2:])}"
