"""The event being handled: which subscription handles it, and for what that handler waits.

Owns lineage within a process (a context variable, inherited by every task a handler spawns), what a
subscription has in hand, and the rule that no wait may close a circle. Pure: it starts no task,
waits for nothing and reads no clock.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from aiobus.event import Event, event_id

__all__ = [
    "Consumer", "Delivery", "Hand", "StreamBody", "caused_by", "current", "enter", "entered",
    "holding", "is_stuck", "leave", "waiting", "would_deadlock",
]  # fmt: skip


class Consumer:
    """What handles events, and what it has in hand: a subscription."""

    def __init__(self) -> None:
        self.acting: set[Delivery] = set()
        """Deliveries that have begun and are not finished, and the body of a stream."""
        self.slots = 1
        """Events that its handler may have in hand at once."""
        self.begun = self.handled = 0
        """Events handed over, and those of them that are finished with."""
        self.outran = 0
        """Events that its handler published past a reader, because waiting for that would never
        have ended.
        """
        self.hand: Hand | None = None
        """The last event that was handed to a handler of one at a time."""
        self.delivery: Delivery | None = None
        """The delivery of `hand`, if it was asked for and is not finished."""

    def begin(self, event: Event[Any], body: "Delivery | None" = None) -> "Delivery":
        """The handler starts with `event`, until `finish`; in a stream, as part of its `body`."""
        delivery = Delivery(self, event.source, event.epoch, event.seq, body)
        self.acting.add(delivery)
        self.begun += 1
        return delivery

    def finish(self, delivery: "Delivery") -> None:
        """The handler is done with the event, however it went. Again: nothing."""
        if not delivery.finished:
            delivery.finished = True
            self.acting.discard(delivery)
            self.handled += 1

    def take_back(self, delivery: "Delivery") -> None:
        """The handler was not called, so it is not done with the event either."""
        delivery.finished = True
        self.acting.discard(delivery)
        self.begun -= 1

    def delivery_of(self, hand: "Hand") -> "Delivery":
        """The delivery of an event that is, or was, in hand."""
        if hand is self.hand and self.delivery is not None:
            return self.delivery
        delivery = Delivery(self, *hand[2:])
        if hand is self.hand and self.begun > self.handled:
            self.delivery = delivery
            self.acting.add(delivery)
        else:
            delivery.finished = True
        return delivery

    def end_delivery(self) -> None:
        """The event in hand is finished with, and its delivery was asked for."""
        if self.delivery is not None:
            self.delivery.finished = True
            self.acting.discard(self.delivery)
            self.delivery = None

    @property
    def in_hand(self) -> int:
        """Events handed over and not yet finished with."""
        return self.begun - self.handled

    @property
    def running(self) -> "Collection[Delivery]":
        """Deliveries that are not finished, and the body of a stream."""
        if self.hand is not None and self.begun > self.handled:
            self.delivery_of(self.hand)
        return self.acting


class Delivery:
    """One event in the hands of one consumer: until its handler returns, or the next stream step.

    It notes what names the event, not the event itself, which the handler may change or publish
    again: it would then name another cause. `outer` is the stream body it is part of, if any.
    """

    __slots__ = ("consumer", "epoch", "finished", "outer", "seq", "source", "waits_for")

    def __init__(
        self,
        consumer: Consumer,
        source: str = "",
        epoch: int = 0,
        seq: int = 0,
        outer: "Delivery | None" = None,
    ) -> None:
        self.consumer = consumer
        self.source = source
        self.epoch = epoch
        self.seq = seq
        self.outer = outer
        self.finished = False
        self.waits_for: tuple[Consumer, ...] = ()

    @property
    def id(self) -> str:
        """The id of the event being handled; "" for none."""
        return event_id(self.source, self.epoch, self.seq)


Hand = tuple[Consumer, str, str, int, int]
"""One event in the hands of a consumer, for handlers that have one at a time: consumer, type,
source, epoch, seq. A tuple takes a fifth of the time of a `Delivery`, which is made if asked for.
"""


class StreamBody(Delivery):
    """The inside of an `async with bus.stream(...)`, from entry to exit, between steps as well.

    It is about one task, the one that iterates (`is_here` tells), because that task's waiting holds
    up the stream, even before the first step. Another task that inherits it by its context sees
    `outer` instead: a feed started inside a stream is not caused by what the stream takes, and
    waits for room in it like any other code.
    """

    __slots__ = ("is_here",)

    def __init__(
        self, consumer: Consumer, outer: Delivery | None, is_here: Callable[[], bool]
    ) -> None:
        super().__init__(consumer, outer=outer)
        self.is_here = is_here
        self.hold(None)

    def hold(self, event: Event[Any] | None) -> None:
        """`event` is in hand now; None: what was before the stream."""
        origin = event or self.outer
        if origin is None:
            self.source, self.epoch, self.seq = "", 0, 0
        else:
            self.source, self.epoch, self.seq = origin.source, origin.epoch, origin.seq


_current: ContextVar[Delivery | Hand | None] = ContextVar("aiobus_delivery", default=None)

enter = _current.set
"""Make a delivery, a hand, or None, the current one of this context."""
entered = _current.get
"""What was entered last in this context. If it is None, so is `current()`, which costs more."""


def leave(body: StreamBody) -> None:
    """The stream is left: go back to what was before, unless something else was entered since."""
    delivery = _current.get()
    is_step = type(delivery) is Delivery and delivery.outer is body
    if delivery is body or is_step:
        _current.set(_inside(body.outer))


def _inside(delivery: Delivery | None) -> Delivery | None:
    """The innermost of a chain that this code is part of."""
    while type(delivery) is StreamBody and (delivery.finished or not delivery.is_here()):
        delivery = delivery.outer
    return delivery


def current() -> Delivery | None:
    """The delivery this code was started from, finished or not; None outside of all."""
    delivery = _current.get()
    if isinstance(delivery, tuple):
        return delivery[0].delivery_of(delivery)
    return _inside(delivery) if type(delivery) is StreamBody else delivery


def holding() -> list[Delivery]:
    """Unfinished deliveries that wait while the calling code does, innermost first."""
    found = []
    delivery = current()
    while delivery is not None:
        if not delivery.finished:
            found.append(delivery)
        delivery = _inside(delivery.outer)
    return found


@contextmanager
def caused_by(source: str, epoch: int, seq: int) -> Iterator[None]:
    """Inside, the calling code publishes as if this event was in its hand. What waits with it is
    what waits with it outside.
    """
    delivery = Delivery(Consumer(), source, epoch, seq, current())
    delivery.finished = True
    before = _current.set(delivery)
    try:
        yield
    finally:
        _current.reset(before)


@contextmanager
def waiting(holders: Iterable[Delivery], consumers: Iterable[Consumer]) -> Iterator[None]:
    """Inside, none of `holders` can go on before `consumers` do."""
    holders, added = tuple(holders), tuple(consumers)
    for holder in holders:
        holder.waits_for += added
    try:
        yield
    finally:
        for holder in holders:
            left = list(holder.waits_for)
            for consumer in added:
                left.remove(consumer)
            holder.waits_for = tuple(left)


def would_deadlock(waiter: Consumer, target: Consumer) -> bool:
    """True if `target` waits for `waiter`, directly or by way of others, or is it. One delivery
    that waits counts for its whole consumer, so with `concurrency` above 1 an event may overshoot
    that could have waited.
    """
    seen: set[int] = set()
    open_ = [target]
    while open_:
        consumer = open_.pop()
        if consumer is waiter:
            return True
        if id(consumer) not in seen:
            seen.add(id(consumer))
            open_.extend(other for delivery in consumer.running for other in delivery.waits_for)
    return False


def is_stuck(target: Consumer, holders: Collection[Delivery]) -> bool:
    """True if `target` takes no further event before one of `holders` is finished, or a wait is
    given up: all that it may have in hand at once is in their hands, or waits for nothing but
    consumers of which the same is true. Unlike `would_deadlock`, it is never true of one that could
    go on.
    """
    stuck, open_ = {target}, [target]
    while open_:
        waited_for = {each for delivery in open_.pop().running for each in delivery.waits_for}
        open_ += waited_for - stuck
        stuck |= waited_for
    while free := {each for each in stuck if not _is_held(each, holders, stuck)}:
        stuck -= free
    return target in stuck


def _is_held(consumer: Consumer, holders: Collection[Delivery], stuck: set[Consumer]) -> bool:
    running = consumer.running
    # Of a stream, the task that iterates counts, and not the events that others have in hand.
    bodies = [each for each in running if type(each) is StreamBody]
    if not bodies and len(running) < consumer.slots:
        return False
    return all(
        each in holders or (each.waits_for and stuck.issuperset(each.waits_for))
        for each in bodies or running
    )
