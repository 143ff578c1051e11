"""The event being handled: who handles it, and for whose room that handler waits.

Owns lineage within a process (a context variable, inherited by every task a handler spawns) and the
rule that no wait may close a circle. Pure: it starts no task, waits for nothing and reads no clock.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from aiobus.event import event_id

__all__ = [
    "BackpressureGate",
    "Consumer",
    "Delivery",
    "Hand",
    "Name",
    "StreamBody",
    "current",
    "current_id",
    "enter",
    "entered",
    "holding",
    "leave",
    "waiting",
    "would_deadlock",
]


class Consumer(Protocol):
    """Whoever is handed events: a subscription."""

    @property
    def running(self) -> Collection["Delivery"]:
        """Its deliveries that are not finished."""
        ...


class Space(Protocol):
    """What a publisher waits at. Truth: a publisher does."""

    def __bool__(self) -> bool: ...
    async def wait(self) -> None:
        """Return when there may be space; the caller looks, and waits again if not."""
        ...


class BackpressureGate(Consumer, Protocol):
    """A consumer that publishers of this process wait for, because its policy is "block"."""

    name: str
    maxsize: int
    overshoot: int
    warning: Any
    """The timer of a warning that publishers have waited for long; kept by those who wait."""

    @property
    def is_full(self) -> bool:
        """True when one more event would be one too many."""
        ...

    @property
    def is_over(self) -> bool:
        """True when the last event was one too many, so that its publisher should wait."""
        ...

    @property
    def space_available(self) -> Space:
        """Where to wait until `is_over` may have changed."""
        ...


class Origin(Protocol):
    """What names an event: an event, or a delivery of one."""

    source: str
    epoch: int
    seq: int


class Delivery:
    """One event in the hands of one consumer: until its handler returns, or the next stream step.

    It notes what names the event, not the event itself, which the handler may change or publish
    again: it would then name another cause. `outer` is the stream body it is part of, if any.
    """

    __slots__ = ("consumer", "epoch", "finished", "outer", "seq", "source", "waits_for")

    def __init__(self, consumer: Consumer, origin: Origin, outer: "Delivery | None" = None) -> None:
        self.consumer = consumer
        self.source = origin.source
        self.epoch = origin.epoch
        self.seq = origin.seq
        self.outer = outer
        self.finished = False
        self.waits_for: tuple[Consumer, ...] = ()

    @property
    def id(self) -> str:
        """The id of the event being handled; "" for none."""
        return event_id(self.source, self.epoch, self.seq)


@dataclass(slots=True)
class Name:
    """What names an event; as it is, of what no event led to."""

    source: str = ""
    epoch: int = 0
    seq: int = 0


class Handler(Consumer, Protocol):
    """A consumer that handles one event after another."""

    def delivery_of(self, hand: "Hand") -> Delivery:
        """The delivery of an event that it handles, or has handled."""
        ...


Hand = tuple[Handler, str, str, int, int]
"""One event in the hands of a consumer that has one at a time: the consumer, and the event's type,
source, epoch and seq. A tuple takes a fifth of the time of a `Delivery`, which is made when it is
asked for.
"""


class StreamBody(Delivery):
    """The inside of an `async with bus.stream(...)`, from entry to exit, between steps as well.

    It is about one task, the one that iterates (`is_here` tells), because that task's waiting holds
    up the stream, even before the first step. Whoever else inherits it by its context sees `outer`
    instead: a feed started inside a stream is not caused by what the stream takes, and waits for
    room in it like anybody.
    """

    __slots__ = ("is_here",)

    def __init__(
        self, consumer: Consumer, outer: Delivery | None, is_here: Callable[[], bool]
    ) -> None:
        super().__init__(consumer, outer or Name(), outer)
        self.is_here = is_here

    def hold(self, event: Origin | None) -> None:
        """`event` is in hand now; None: what was before the stream."""
        origin = event or self.outer or Name()
        self.source, self.epoch, self.seq = origin.source, origin.epoch, origin.seq


_current: ContextVar[Delivery | Hand | None] = ContextVar("aiobus_delivery", default=None)

enter = _current.set
"""Make a delivery, a hand, or None, the current one of this context."""
entered = _current.get
"""What was entered last in this context. None: there is no `current` delivery, which costs less to
learn here; else ask `current`.
"""


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


def current_id() -> str:
    """The id of the event that this code was started from; "" outside of all."""
    delivery = _current.get()
    if delivery is None:
        return ""
    if isinstance(delivery, tuple):
        return event_id(*delivery[2:])
    if type(delivery) is StreamBody:
        delivery = _inside(delivery)
    return "" if delivery is None else delivery.id


def holding() -> list[Delivery]:
    """The deliveries that are held up while this code waits: the unfinished ones it is part of,
    from the innermost outwards (a handler may have opened a stream, in whose body this is).
    """
    found = []
    delivery = current()
    while delivery is not None:
        if not delivery.finished:
            found.append(delivery)
        delivery = _inside(delivery.outer)
    return found


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
    """True when `target` cannot go on before `waiter` does: it waits for it, if only by way of
    others (or is the same). One delivery that waits counts for its whole consumer, so with
    `concurrency` above 1 an event may overshoot that could have waited.
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
