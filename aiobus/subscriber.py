"""All subscriptions of one bus, and the tasks that serve them.

Owns who is subscribed: opening, finding, dropping, waiting until all are idle, and ending the
tasks. Must not know what is published or which transport asks the others.
"""

import asyncio
import logging
import math
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from contextvars import Context
from dataclasses import replace
from typing import Any

from aiobus.catchup import CatchUp
from aiobus.confinement import current
from aiobus.delivery import holding
from aiobus.diagnostics import Diagnostics
from aiobus.dispatcher import BatchCallback, BatchDispatcher, Callback, Dispatcher
from aiobus.errors import BusClosed, BusError
from aiobus.lifecycle import Lifecycle, State
from aiobus.options import SubscriptionOptions
from aiobus.publisher import Publisher
from aiobus.query import Query
from aiobus.strand import unwatched
from aiobus.subscription import Subscription
from aiobus.sync import HANDLER_EVENTS, HANDLER_SECONDS, Notifier, TimeSlice
from aiobus.transport import Transport

__all__ = ["Subscriber"]

SAID = 8
"""Events named of the calls that are cut off; there may be any number of them at once."""

log = logging.getLogger("aiobus.subscriber")


class Subscriber:
    """The subscriptions of one bus and the tasks that serve them."""

    def __init__(
        self,
        publisher: Publisher,
        reports: Diagnostics,
        transport: Transport,
        life: Lifecycle,
        *,
        is_timed: bool,
    ) -> None:
        self._turn_seconds = HANDLER_SECONDS if is_timed else math.inf
        self._publisher = publisher
        self._reports = reports
        reports.aging = self.aging
        self._transport = transport
        self._life = life
        self._open: dict[Subscription, CatchUp] = {}  # in the order they were made
        self._dispatchers: dict[Subscription, Dispatcher] = {}
        self._tasks: dict[asyncio.Task[None], Subscription] = {}
        self._idle = Notifier()
        self.changed = Notifier()
        """Woken when there is one more, or one less, and at the end."""
        self.cut_off = 0
        """Events that were not handed over, and calls that were cancelled, as the bus closed."""

    def __iter__(self) -> Iterator[Subscription]:
        return iter(self._open)

    def aging(self) -> list[str]:
        """The names of those that leave out what is older than their `max_age`."""
        ages = {each.name: each.options.max_age for each in self._open}
        return [name for name, age in ages.items() if age is not None and age < math.inf]

    def __len__(self) -> int:
        return len(self._open)

    async def open(self, name: str, options: SubscriptionOptions) -> Subscription:
        """Make a query live here at once, then at the others. Cancelling undoes it."""
        subscription = self._attach(name, options)
        await self._confirm(subscription)
        return subscription

    async def serve(
        self,
        name: str,
        options: SubscriptionOptions,
        callback: Callback,
        *,
        about: Query | None = None,
    ) -> Subscription:
        """Open a subscription with a task that hands its events to `callback`. `about`: what of its
        query is part of its name, if not all.
        """
        subscription = self._attach(name, options, about)
        dispatcher = Dispatcher(subscription, callback, self._turn(), self._reports.watch)
        self._dispatchers[subscription] = dispatcher
        return await self._run(subscription, dispatcher.run())

    async def serve_batches(
        self, name: str, options: SubscriptionOptions, callback: BatchCallback
    ) -> Subscription:
        """The same, several events at once."""
        subscription = self._attach(name, options)
        dispatcher = BatchDispatcher(subscription, callback, self._turn(), self._reports.watch)
        return await self._run(subscription, dispatcher.run())

    def _turn(self) -> TimeSlice:
        return TimeSlice(self._turn_seconds, HANDLER_EVENTS)

    async def _run(
        self, subscription: Subscription, work: Coroutine[Any, Any, None]
    ) -> Subscription:
        name = f"aiobus {self._publisher.name} {subscription.name}"
        task = asyncio.get_running_loop().create_task(work, name=name, context=Context())
        self._tasks[task] = subscription
        task.add_done_callback(self._on_end)
        await self._confirm(subscription)
        return subscription

    def _attach(
        self, name: str, options: SubscriptionOptions, about: Query | None = None
    ) -> Subscription:
        if self._life.state is State.CLOSED:  # while start was waiting for a peer
            raise BusClosed(f"{self._life.name} is closed; nothing was subscribed")
        if self._publisher.observes and options.overflow == "block":
            options = replace(options, overflow="catch_up")  # no publisher waits for an observer
        label = str(about or options.query)
        name = options.name or f"{name}({label if len(label) <= 80 else label[:77] + '...'})"
        subscription = Subscription(
            name, options, self._publisher, self._reports, self._life, self._idle, self.drop
        )
        if subscription.own.behind:
            self._publisher.history.safe.clear()
        is_last = options.since == "last" and subscription.selection.wants_data
        self._open[subscription] = CatchUp(
            subscription,
            self._publisher,
            self._transport,
            has_keeper=is_last and self._transport.has_keeper,
        )
        self._publisher.attach(subscription.sink)
        log.debug("subscribe %s", name)
        self.changed.wake()
        return subscription

    async def _confirm(self, subscription: Subscription) -> None:
        try:
            catchup, timeout = self._open[subscription], subscription.options.timeout
            missing = await self._transport.subscribe(catchup, timeout)
        except BaseException:
            self.drop(subscription)
            raise
        if subscription.closed and self._life.state is State.CLOSED:
            raise BusClosed(f"{self._life.name} closed while {subscription.name} was awaited")
        silent = frozenset(missing) - subscription.unconfirmed  # a refusal was reported already
        if silent:
            subscription.miss(silent)
            text = "%s is not yet live at %s: no answer within %g s, or the link was cut"
            names = ", ".join(sorted(silent))
            log.warning(text, subscription.name, names, subscription.options.timeout)

    def drop(self, subscription: Subscription) -> None:
        """End it; its task ends when the call in progress has returned. No error when it has ended
        before.
        """
        if subscription.closed:
            return
        log.debug("unsubscribe %s", subscription.name)
        catchup = self._open.pop(subscription)
        self._dispatchers.pop(subscription, None)
        with unwatched():  # other buses may be told
            self._publisher.detach(subscription.sink)
            self._transport.unsubscribe(catchup)
            subscription.close()
            self._idle.wake()
            self.changed.wake()
            self._publisher.room.wake()
        stats = subscription.stats
        lost = {"dropped": stats.dropped, "expired": stats.expired, "gaps": stats.gaps}
        if said := ", ".join(f"{count} {kind}" for kind, count in lost.items() if count):
            log.warning("%s has ended, in all: %s", subscription.name, said)

    def find(self, query: Query, callback: Callback) -> list[Subscription]:
        """Subscriptions of `callback` (compared by ==) with exactly the types of `query`, whatever
        their keys.
        """
        return [
            subscription
            for subscription, dispatcher in self._dispatchers.items()
            if dispatcher.callback == callback and subscription.options.query.has_types_of(query)
        ]

    def at_work(self) -> Subscription | None:
        """The subscription whose handler or stream body, with an event in hand, is calling."""
        for delivery in holding():
            subscription = delivery.consumer
            if (
                isinstance(subscription, Subscription)
                and subscription.life is self._life
                and subscription.in_hand
            ):
                return subscription
        return None

    # Rest.

    def busy(self, exempt: Subscription | None = None) -> list[Subscription]:
        """Subscriptions with an event in the inbox, in hand or to catch up with."""
        # One that was dropped may still have a call in progress.
        everyone = dict.fromkeys([*self._open, *self._tasks.values()])
        return [each for each in everyone if not each.is_idle and each is not exempt]

    async def finish(self, subscription: Subscription, timeout: float) -> None:
        """Let it take nothing more of other buses, hand over what has come for `timeout` seconds,
        and end it.
        """
        if not subscription.closed:
            self._transport.unsubscribe(self._open[subscription])
            subscription.behind.clear()  # what it misses does not come any more
        with suppress(TimeoutError):
            await self.until_handed(subscription, timeout)
        self.drop(subscription)

    async def until_handed(self, subscription: Subscription, timeout: float) -> None:
        """Wait until its inbox is empty and its handler has returned. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while not (subscription.closed or subscription.is_idle):
                await self._idle.wait()

    def recheck(self) -> None:
        """Who waits for whom has changed: publishers that wait for space look again."""
        for subscription in self._open:
            subscription.recheck()

    async def until_idle(self, timeout: float, exempt: Subscription | None = None) -> bool:
        """True when all but `exempt` are idle, or when a failure is to be told of; False when
        `timeout` seconds were not enough.
        """
        try:
            async with asyncio.timeout(timeout):
                while self.busy(exempt) and not self._life.has_unraised_failure:
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def fail(self, error: BaseException) -> None:
        """The bus cannot go on; those that wait until all are idle look again."""
        self._life.fail(error)
        self._idle.wake()

    # The end.

    def hear_no_more(self) -> None:
        """Take nothing more from other buses; what has come is still handed over."""
        for catchup in self._open.values():
            self._transport.unsubscribe(catchup)

    def leave_process(self) -> None:
        """This process is a forked child: hand over nothing more here, or an order that waits would
        be sent by both.
        """
        for subscription in {*self._open, *self._tasks.values()}:
            subscription.close()

    def close(self, exempt: Subscription | None = None) -> None:
        """Drop all, and cancel the calls in progress, but those of `exempt`. Says what was not
        handed over, and which calls were cut off.
        """
        try:
            for subscription in list(self._open):
                up_to = "up to " if subscription.is_behind and subscription.is_selective else ""
                if missed := subscription.unhanded():
                    text = "%s%d events were not handed to %s: the bus closed"
                    log.warning(text, up_to, missed, subscription.name)
                    self.cut_off += missed
                self.drop(subscription)
        finally:
            self.changed.wake()
            cut = [each for each in self._tasks.items() if each[1] is not exempt]
            try:
                for _, subscription in cut:
                    if subscription.in_hand:
                        text = "the call of %s with %s was cut off: the bus closed"
                        log.warning(text, subscription.name, _ids(subscription))
                        self.cut_off += len(subscription.running)
            finally:
                for task, _ in cut:
                    task.cancel()

    async def ended(self, timeout: float, exempt: Subscription | None = None) -> None:
        """Wait for the tasks to end; name those that did not, because their callback ignores being
        cancelled.
        """
        if self._open:  # a Ctrl-C fell into `close`
            self.close(exempt)
        tasks = [task for task, subscription in self._tasks.items() if subscription is not exempt]
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=timeout)
            for task in stuck:
                text = "%s ignores that it was cancelled and is left behind"
                log.error(text, self._tasks[task].name)

    def _on_end(self, task: "asyncio.Task[None]") -> None:
        subscription = self._tasks.pop(task)
        self._idle.wake()
        error: BaseException | None = None
        if not task.cancelled():
            error = task.exception()
        elif not subscription.closed:
            # A bare CancelledError would look to a TaskGroup as if the bus was ended on purpose.
            error = BusError(
                f"the task of {subscription.name} was cancelled, so the bus cannot go on: by its"
                " handler, which may cancel only tasks of its own, by code that cancels all tasks,"
                " or asyncio.run ended before the bus was closed: use `async with`"
            )
        if error is not None:
            if (here := current()) is None or here.refusal is None:  # else the run has ended it
                log.error("%s was ended, the bus cannot go on", subscription.name, exc_info=error)
            self.fail(error)


def _ids(subscription: Subscription) -> str:
    """Which events its calls in progress are about."""
    running = sorted(subscription.running, key=lambda delivery: (delivery.source, delivery.seq))
    more = f" and {len(running) - SAID} more" if len(running) > SAID else ""
    return ", ".join(delivery.id for delivery in running[:SAID]) + more
