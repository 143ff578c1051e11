"""All subscriptions of one bus, and the tasks that serve them.

Owns who is subscribed: opening, finding, dropping, waiting until all are idle, and ending the
tasks. Must not know what is published or which transport asks the others.
"""

import asyncio
import logging
import math
from collections.abc import Iterator
from contextvars import Context

from aiobus.delivery import holding
from aiobus.diagnostics import Diagnostics, LoopWatch
from aiobus.dispatcher import Callback, Dispatcher
from aiobus.errors import BusClosed, BusError
from aiobus.lifecycle import Lifecycle, State
from aiobus.options import SubscriptionOptions
from aiobus.publisher import Publisher
from aiobus.query import Query
from aiobus.subscription import Receiver
from aiobus.sync import HANDLER_EVENTS, HANDLER_SECONDS, Notifier, TimeSlice
from aiobus.transport import Transport

__all__ = [
    "Subscriber",
]

SAID = 8
"""Events named of the calls that are cut off; there may be any number of them at once."""

log = logging.getLogger("aiobus.subscriber")


class Subscriber:
    """The receivers of one bus and the tasks that serve them."""

    def __init__(
        self,
        publisher: Publisher,
        reports: Diagnostics,
        transport: Transport,
        life: Lifecycle,
        held: LoopWatch,
        *,
        is_timed: bool,
    ) -> None:
        self.held = held
        self._turn_seconds = HANDLER_SECONDS if is_timed else math.inf
        self._publisher = publisher
        self._reports = reports
        self._transport = transport
        self._life = life
        self._open: dict[Receiver, None] = {}  # in the order they were made
        self._dispatchers: dict[Receiver, Dispatcher] = {}
        self._tasks: dict[asyncio.Task[None], Receiver] = {}
        self._idle = Notifier()

    def __iter__(self) -> Iterator[Receiver]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    async def open(self, name: str, terms: SubscriptionOptions) -> Receiver:
        """Make a query live here at once, then at the others. Cancelling undoes it."""
        receiver = self._attach(name, terms)
        await self._confirm(receiver)
        return receiver

    async def serve(self, name: str, terms: SubscriptionOptions, callback: Callback) -> Receiver:
        """The same, with a task that hands its events to `callback`."""
        receiver = self._attach(name, terms)
        dispatcher = self._dispatchers[receiver] = Dispatcher(
            receiver, callback, TimeSlice(self._turn_seconds, HANDLER_EVENTS)
        )
        name = f"aiobus {self._publisher.name} {receiver.name}"
        loop = asyncio.get_running_loop()
        task = loop.create_task(dispatcher.run(), name=name, context=Context())
        self._tasks[task] = receiver
        task.add_done_callback(self._on_end)
        await self._confirm(receiver)
        return receiver

    def _attach(self, name: str, terms: SubscriptionOptions) -> Receiver:
        if self._life.state is State.CLOSED:  # while start was waiting for a peer
            raise BusClosed(f"{self._life.name} is closed; nothing was subscribed")
        label = str(terms.query)
        name = f"{name}({label if len(label) <= 80 else label[:77] + '...'})"
        receiver = Receiver(name, terms, self._publisher, self._reports, self._transport, self)
        self._publisher.attach(receiver)
        self._open[receiver] = None
        log.debug("subscribe %s", name)
        return receiver

    async def _confirm(self, receiver: Receiver) -> None:
        try:
            missing = await self._transport.subscribe(receiver.catchup, receiver.terms.timeout)
        except BaseException:
            self.drop(receiver)
            raise
        if receiver.closed and self._life.state is State.CLOSED:
            raise BusClosed(f"{self._life.name} closed while {receiver.name} was awaited")
        silent = frozenset(missing) - receiver.catchup.unconfirmed  # who refuses was told already
        if silent:
            receiver.catchup.unconfirmed |= silent
            text = "%s is not yet live at %s: no answer within %g s, or the link was cut"
            names = ", ".join(sorted(silent))
            log.warning(text, receiver.name, names, receiver.terms.timeout)

    def drop(self, receiver: Receiver) -> None:
        """End it; its task ends when the call in progress has returned. No error when it has ended
        before.
        """
        if receiver.closed:
            return
        log.debug("unsubscribe %s", receiver.name)
        del self._open[receiver]
        self._dispatchers.pop(receiver, None)
        self._publisher.detach(receiver)
        self._transport.unsubscribe(receiver.catchup)
        receiver.close()
        self.note_idle()

    def find(self, query: Query, callback: Callback) -> list[Receiver]:
        """Those of `callback` (compared by ==) with exactly the types of `query`, whatever their
        keys.
        """
        return [
            receiver
            for receiver, dispatcher in self._dispatchers.items()
            if dispatcher.callback == callback and receiver.terms.query.has_types_of(query)
        ]

    def at_work(self) -> Receiver | None:
        """Whose handler or stream body, with an event in hand, the caller is part of."""
        for delivery in holding():
            receiver = delivery.consumer
            if isinstance(receiver, Receiver) and receiver.owner is self and receiver.in_hand:
                return receiver
        return None

    def check_loop(self) -> None:
        """Raise WrongLoop unless called where the bus lives."""
        self._life.check_loop()

    def check_thread(self) -> None:
        """Raise WrongLoop where its counters may change while they are read."""
        self._life.check_thread()

    @property
    def is_forked(self) -> bool:
        """True in a forked child, to which none of this belongs."""
        return self._life.is_forked

    # Rest.

    def note_idle(self) -> None:
        """Somebody has nothing left to do: whoever waits for that looks again."""
        self._idle.wake()

    def busy(self, exempt: Receiver | None = None) -> list[Receiver]:
        """Those with an event in the inbox, in hand or to catch up with."""
        # One that was dropped may still have a call in progress.
        everyone = dict.fromkeys([*self._open, *self._tasks.values()])
        return [each for each in everyone if not each.is_idle and each is not exempt]

    def recheck(self) -> None:
        """Who waits for whom has changed: publishers that wait for space look again."""
        for receiver in self._open:
            receiver.space_available.wake()

    async def until_idle(self, timeout: float, exempt: Receiver | None = None) -> bool:
        """True when all but `exempt` are idle, or when a failure is to be told of; False when
        `timeout` seconds were not enough.
        """
        try:
            async with asyncio.timeout(timeout):
                while self.busy(exempt) and not self._life.has_news:
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def fail(self, error: BaseException) -> None:
        """The bus cannot go on; whoever waits until all are idle hears of it."""
        self._life.fail(error)
        self.note_idle()

    # The end.

    def hear_no_more(self) -> None:
        """Take nothing more from other buses; what has come is still handed over."""
        for receiver in self._open:
            self._transport.unsubscribe(receiver.catchup)

    def leave_process(self) -> None:
        """This process is a forked child: hand over nothing more here, or an order that waits would
        be sent by both.
        """
        for receiver in {*self._open, *self._tasks.values()}:
            receiver.close()

    def close(self, exempt: Receiver | None = None) -> None:
        """Drop all, and cancel the calls in progress, but those of `exempt`. Says what was not
        handed over, and which calls were cut off.
        """
        try:
            for receiver in list(self._open):
                up_to = "up to " if receiver.is_behind and receiver.is_selective else ""
                if missed := receiver.unhanded():
                    text = "%s%d events were not handed to %s: the bus closed"
                    log.warning(text, up_to, missed, receiver.name)
                self.drop(receiver)
        finally:
            for task, receiver in self._tasks.items():
                if receiver is not exempt:
                    if receiver.in_hand:
                        text = "the call of %s with %s was cut off: the bus closed"
                        log.warning(text, receiver.name, _ids(receiver))
                    task.cancel()

    async def ended(self, timeout: float, exempt: Receiver | None = None) -> None:
        """Wait for the tasks to end; name those that did not, because their callback ignores being
        cancelled.
        """
        tasks = [task for task, receiver in self._tasks.items() if receiver is not exempt]
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=timeout)
            for task in stuck:
                text = "%s ignores that it was cancelled and is left behind"
                log.error(text, self._tasks[task].name)

    def _on_end(self, task: "asyncio.Task[None]") -> None:
        receiver = self._tasks.pop(task)
        self.note_idle()
        error: BaseException | None = None
        if not task.cancelled():
            error = task.exception()
        elif not receiver.closed:
            # A bare CancelledError would look to a TaskGroup as if the bus was ended on purpose.
            error = BusError(
                f"the task of {receiver.name} was cancelled, so the bus cannot go on: by its"
                " handler, which may cancel only tasks of its own, by code that cancels all tasks,"
                " or asyncio.run ended before the bus was closed: use `async with`"
            )
        if error is not None:
            log.error("%s was ended, the bus cannot go on", receiver.name, exc_info=error)
            self.fail(error)


def _ids(receiver: Receiver) -> str:
    """Which events its calls in progress are about."""
    running = sorted(receiver.running, key=lambda delivery: (delivery.source, delivery.seq))
    more = f" and {len(running) - SAID} more" if len(running) > SAID else ""
    return ", ".join(delivery.id for delivery in running[:SAID]) + more
