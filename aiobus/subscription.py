"""The receiving half: one query's events, from the moment they match to the moment they are
handed over, and what a user holds of it.

Owns the inbox, the decoding and the place in the own history of one subscription; its places among
the events of other buses are those of its `catchup`. Must not know who consumes: `pop` is all that
a dispatcher or a stream needs, and `wait` tells when to look again.
"""

import asyncio
from collections.abc import Collection
from dataclasses import replace
from typing import Any, Protocol

from aiobus import clock
from aiobus.catchup import PACE, CatchUp
from aiobus.codec import copied, decode
from aiobus.delivery import BackpressureGate, Delivery, Hand, Name
from aiobus.diagnostics import GAP, Diagnostics, LoopWatch
from aiobus.event import Event
from aiobus.history import Want
from aiobus.inbox import FifoInbox, GapMarker, Item, PutResult, make_inbox
from aiobus.limits import LATEST, way_out
from aiobus.options import SubscriptionOptions, Where, selects
from aiobus.publisher import Publisher
from aiobus.query import RESERVED, parse_query
from aiobus.rows import LazyBatch, Source
from aiobus.sequence import Cursor, Gap
from aiobus.stats import SubscriptionStats
from aiobus.sync import Notifier
from aiobus.transport import Transport

__all__ = [
    "Receiver",
    "Subscription",
]

DECODE_BYTES = 16 * 1024
"""Bytes of rows decoded at once: about 100 us, so that large events do not hold up the loop."""
TAKEN = PutResult.TAKEN  # an Enum is slow to ask for its members, and each event does
EXPIRED = 1_024
"""Events older than `max_age` that are dropped in one go."""
PULL_ROWS = 64
PULL_LOOK = 512
"""Bounds of a page from the own history, for the same reason; the next one is as cheap."""


class Owner(Protocol):
    """Whoever keeps the receivers of a bus."""

    held: LoopWatch
    """What is told how long a `where` took."""

    def check_thread(self) -> None:
        """Raise WrongLoop where counters may change while they are read."""
        ...

    @property
    def is_forked(self) -> bool:
        """True in a forked child, to which none of this belongs."""
        ...

    def check_loop(self) -> None:
        """Raise WrongLoop unless called where the bus lives."""
        ...

    def drop(self, receiver: "Receiver") -> None:
        """End it: hand it nothing more, and forget it."""
        ...

    def note_idle(self) -> None:
        """A receiver has nothing left to do."""
        ...

    def fail(self, error: BaseException) -> None:
        """The bus cannot go on."""
        ...


class Receiver:
    """A live query with an inbox of its own. A `Sink` of the publisher, a gate if it blocks, a
    `Consumer` to those that ask who waits for whom.
    """

    def __init__(
        self,
        name: str,
        terms: SubscriptionOptions,
        publisher: Publisher,
        reports: Diagnostics,
        transport: Transport,
        owner: Owner,
    ) -> None:
        self.name = name
        self.terms = terms
        self.maxsize = terms.maxsize
        self.owner = owner
        # Beside data, `aiobus.gap` means this subscription's own gaps, in their place; alone, all.
        self._wants_gaps = GAP in terms.query.reserved and terms.query.wants_data
        self.query = terms.query.without(GAP) if self._wants_gaps else terms.query
        # What others are asked for may be more than is wanted; what exceeds it is left out here.
        text = self.query.text
        is_exact = not text or parse_query(text) == self.query.without(*self.query.reserved)
        self._narrow = None if is_exact else self.query
        self.catchup = CatchUp(self.query, self, transport, terms.since)
        self.reached: float | None = None
        self.closed = False
        self.acting: set[Delivery] = set()
        """Deliveries that have begun and are not finished, and the body of a stream."""
        self.begun = self.handled = 0
        """Events handed over, and those of them that are finished with."""
        self.hand: Hand | None = None
        """The last event that was handed to a consumer of one at a time."""
        self.delivery: Delivery | None = None
        """Its delivery, if somebody asked for it and it is not finished."""
        self.space_available = Notifier()
        """Publishers that wait until `is_over` is false."""
        self.overshoot = 0
        self.warning: asyncio.TimerHandle | None = None
        self._arrivals = Notifier()
        self._inbox = make_inbox(terms.overflow, terms.maxsize)
        self.batch: list[Event[Any]] = []
        """What is decoded, newest first, so that it can be popped."""
        self._where = terms.where
        self._is_bounded = terms.overflow in ("catch_up", "block")
        self._is_blocking = terms.overflow == "block"
        self.is_plain = not self._is_blocking and terms.max_age is None
        """True if an event may be popped from `batch` without `pop`."""
        # Where nobody needs to look at the events before it is their turn.
        is_blind = self._is_bounded and self._where is None and self._narrow is None
        self._blind = self._inbox if is_blind and isinstance(self._inbox, FifoInbox) else None
        self._publisher = publisher
        self._own = (publisher.name, publisher.epoch)
        self._reports = reports
        self._cursor = Cursor()
        self._failed = self._gaps = 0
        self._dropped = self._conflated = self._expired = 0
        self._is_overflowing = self._is_late = False  # an episode: one system event for each
        if terms.since is not None:
            self._cursor = Cursor(since=terms.since)
            self._pull()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "behind" if self.is_behind else "live"
        return f"{self.name} {state} pending={self.pending} handled={self.handled}"

    # What goes in.

    def deliver(self, seq: int, row: bytes, type: str, key: str) -> None:
        """Take the next event of this process: into the inbox, or leave it to history when there is
        no room.
        """
        if self._cursor.behind or self.closed:
            return
        if self._where is not None and not self._selects(self._where, row):
            return
        outcome = self._inbox.offer(row, type, key)
        if outcome is not TAKEN:
            if outcome is PutResult.REFUSED:
                self._cursor.start_lagging(seq)
                self.start_lagging()
            else:
                self._count(outcome)
        if self._arrivals.futures:
            self._arrivals.wake()

    def _selects(self, where: Where, item: bytes | Event[Any]) -> bool:
        """Ask `where`, on a copy that it may spoil."""
        (event,) = self._decoded([item])
        if event is item:
            event = replace(event, data=copied(event.data))
        type, event_id = event.type, event.id
        began = clock.elapsed()
        try:
            return selects(where, event)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            self.fail(type, event_id, error)
            return False
        finally:
            self.owner.held.note(
                clock.elapsed() - began, lambda: f"the `where` of {self.name} at {event_id}"
            )

    def _count(self, outcome: PutResult) -> None:
        if outcome is PutResult.CONFLATED:
            self._conflated += 1
            return
        self._dropped += 1
        if not self._is_overflowing:
            self._reports.overflow(self.name, self.terms.overflow, self._dropped)
        self._is_overflowing = True

    def start_lagging(self) -> None:
        """There was no room, so events are left to history; said once per episode."""
        if not self._is_overflowing:
            self._reports.behind(self.name, self.maxsize)
        self._is_overflowing = True

    @property
    def free_slots(self) -> int:
        """How many more events of other buses are welcome. Only "catch_up" and "block" ever have
        none: publishers of other processes do not wait, so the events are left to their history.
        The others drop what is too much, and are asked for a page's worth: an inbox of one event
        would catch up by one a round trip.
        """
        if self._is_bounded:
            return self.maxsize - self.pending
        return max(self.maxsize, PACE)

    @property
    def wants_more(self) -> bool:
        """True while so few events wait that it may ask for all that there is room for."""
        return not self._is_bounded or len(self._inbox) * 8 < self.maxsize

    def keep(self, batch: LazyBatch, after: int = 0) -> None:
        """Take the events above `after` of another bus, which were asked for or there was room for.
        Where nobody has to look at them they are parsed when it is their turn.
        """
        if self._blind is not None and batch.last >= after:
            self._blind.put_batch(batch)
            if self._arrivals.futures:
                self._arrivals.wake()
            return
        events = []
        while batch.left:
            events += [event for event in batch.take() if event.seq > after]
        self._accept(events)
        if batch.error is not None:
            self.catchup.spoil(batch)

    def _accept(self, events: list[Event[Any]]) -> None:
        where, query = self._where, self._narrow
        with self._publisher.no_publish():
            if query is not None:
                events = [event for event in events if query.matches(event.type, event.key)]
            if where is not None:
                events = [event for event in events if self._selects(where, event)]
            for outcome in self._inbox.extend(events):
                self._count(outcome)
        self._arrivals.wake()

    def lose(self, source: Source, gap: Gap) -> None:
        """Say that events are lost, in their place if the subscription asked for that."""
        self._gaps += 1
        event = self._reports.gap(self.name, str(self.query), source, gap)
        if self._wants_gaps:
            self._inbox.notify(GapMarker(event))
            self._arrivals.wake()

    def refuse(self, name: str, reason: str) -> None:
        """Say that a bus does not send what is asked of it."""
        text = f"{self.name} gets nothing of {name}, which refuses its query: {reason}"
        self._reports.trouble("queries are refused", text)

    def reach(self, timestamp: float) -> None:
        """Of what one more bus has published from then on, Unix seconds, nothing is missing."""
        self.reached = timestamp if self.reached is None else max(self.reached, timestamp)

    def _pull(self) -> None:
        """Catch up by one page, as far as there is room."""
        room = min(PULL_ROWS, self.maxsize - len(self._inbox))
        cursor = self._cursor
        want = Want(cursor.last, cursor.since, cursor.upto)
        page = self._publisher.history.answer(self.query, want, room, PULL_LOOK)
        if page.reached is not None:
            self.reach(page.reached)
        with self._publisher.no_publish():
            gap = cursor.advance(page)
            if gap is not None:
                self.lose(self._own, gap)
            for type, key, row in page.rows:
                if self._where is not None and not self._selects(self._where, row):
                    continue
                if self._inbox.admit(row, type, key) is PutResult.CONFLATED:
                    self._conflated += 1

    # What comes out.

    @property
    def pending(self) -> int:
        """Events in the inbox, not yet handed over."""
        return len(self._inbox) + len(self.batch)

    @property
    def backlog(self) -> int:
        """Events not yet handed over: `pending`, and those still to be pulled from history, of
        which `key` and `where` may select fewer.
        """
        if not self._cursor.behind:
            return self.pending
        return self.pending + self._publisher.history.count(self.query, self._cursor.last)

    @property
    def is_selective(self) -> bool:
        """True when `key` or `where` selects among the events of its types."""
        return self._where is not None or bool(self.query.keys or self.query.prefixes)

    @property
    def gate(self) -> BackpressureGate | None:
        """Itself when publishers of this process wait for it, else None."""
        return self if self._is_blocking else None

    @property
    def is_behind(self) -> bool:
        """True while it catches up, with this bus's own events or another's."""
        return self._cursor.behind or bool(self.catchup.behind)

    @property
    def _bound(self) -> int:
        """How many events may wait before publishers of this process do: fewer while some of
        another are missing, or those here would fill whatever room there is, for ever.
        """
        return max(0, self.maxsize - 2 * PACE) if self.catchup.behind else self.maxsize

    @property
    def is_full(self) -> bool:
        """True when one more event would be over the bound."""
        return self.pending >= max(1, self._bound) or self._cursor.behind

    @property
    def is_over(self) -> bool:
        """True when the inbox holds more than its bound, or catches up: publishers wait."""
        return not self.closed and (self.pending > self._bound or self._cursor.behind)

    @property
    def is_idle(self) -> bool:
        """True when nothing is in the inbox, nothing is left to catch up with, and nobody is at
        work on an event.
        """
        is_done = self.begun == self.handled
        return is_done and not (self.batch or self.is_behind or len(self._inbox))

    def pop(self) -> Event[Any] | None:
        """The next event to hand over; None when there is none now (then `wait`). Never waits."""
        event = None
        max_age = self.terms.max_age
        for _ in range(EXPIRED):
            event = self.batch.pop() if self.batch or self._refill() else None
            if event is None or max_age is None or not self._is_expired(event, max_age):
                break
            event = None
        if self._is_blocking and self.space_available and not self.is_over:
            if self.catchup.behind:
                self.catchup.pull(has_moved=True)  # before those who are woken take the room
            self.space_available.wake()
        return event

    def _refill(self) -> bool:
        """Decode the next events; False when there are none now."""
        if self.catchup.behind:
            self.catchup.pull(has_moved=True)
        if self._cursor.behind and len(self._inbox) * 2 <= self.maxsize:
            self._pull()
        if not len(self._inbox):
            self._is_overflowing = self.is_behind
            return False
        return self._decode()

    def _decode(self) -> bool:
        blind = self._blind
        while len(self._inbox) and not self.batch:
            if blind is not None and (first := blind.first_batch) is not None:
                left = first.left
                self.batch += first.take()
                blind.note_taken(first, left)
                if first.error is not None:
                    self.catchup.spoil(first)
            else:
                self.batch += self._decoded(self._inbox.take(DECODE_BYTES))
        self.batch.reverse()
        return bool(self.batch)

    def _decoded(self, items: list[Item]) -> list[Event[Any]]:
        rows = [item for item in items if type(item) is bytes]
        events = decode(rows, *self._own) if rows else []
        if len(rows) == len(items):
            return events
        own = iter(events)
        return [
            item if type(item) is Event else item.item if type(item) is GapMarker else next(own)
            for item in items
        ]

    def _is_expired(self, event: Event[Any], max_age: float) -> bool:
        is_timeless = event.timestamp > LATEST  # of another program: this one publishes none
        is_late = is_timeless or clock.wall() - event.timestamp > max_age
        is_late = is_late and not event.type.startswith(RESERVED)
        if is_timeless:
            topic = f"{self.name} cannot tell how old events of {event.source} are"
            hint = way_out(event.timestamp).removesuffix("; ") or "it is no time"
            text = f"{topic}: {event.id} is left out, its timestamp is {event.timestamp!r}; {hint}"
            self._reports.trouble(topic, text)
        if is_late:
            self._expired += 1
            if not self._is_late:
                self._reports.overflow(self.name, "max_age", self._expired)
        self._is_late = is_late
        return is_late

    async def wait(self) -> None:
        """Return when `pop` may have something, or when closed. Cancelling it loses nothing."""
        if self._cursor.behind or self.pending or self.closed:
            await asyncio.sleep(0)
            return
        self.note_idle()
        await self._arrivals.wait()

    def note_idle(self) -> None:
        """Tell the bus, which may be settling, if nothing is left to do here."""
        if self.is_idle:
            self.owner.note_idle()

    # Who is at work.

    def begin(self, event: Event[Any], body: Delivery | None = None) -> Delivery:
        """The consumer starts with `event`, until `finish`; in a stream, as part of its `body`."""
        delivery = Delivery(self, event, body)
        self.acting.add(delivery)
        self.begun += 1
        return delivery

    def finish(self, delivery: Delivery) -> None:
        """The consumer is done with the event, however it went. Again: nothing."""
        if not delivery.finished:
            delivery.finished = True
            self.acting.discard(delivery)
            self.handled += 1

    def delivery_of(self, hand: Hand) -> Delivery:
        """The delivery of an event that is, or was, in hand."""
        if hand is self.hand and self.delivery is not None:
            return self.delivery
        delivery = Delivery(self, Name(*hand[2:]))
        if hand is self.hand and self.begun > self.handled:
            self.delivery = delivery
            self.acting.add(delivery)
        else:
            delivery.finished = True
        return delivery

    def end_delivery(self) -> None:
        """The event in hand is finished with, and somebody has asked for its delivery."""
        if self.delivery is not None:
            self.delivery.finished = True
            self.acting.discard(self.delivery)
            self.delivery = None

    @property
    def in_hand(self) -> int:
        """Events handed over and not yet finished with."""
        return self.begun - self.handled

    @property
    def running(self) -> Collection[Delivery]:
        """Deliveries that are not finished, and the body of a stream."""
        if self.hand is not None and self.begun > self.handled:
            self.delivery_of(self.hand)
        return self.acting

    def fail(self, type: str, event_id: str, error: BaseException) -> None:
        """The callback or `where` raised on an event: counted and reported. The subscription goes
        on, but the bus not after what pytest.fail raises, for one.
        """
        self._failed += 1
        self._reports.failure(self.name, type, event_id, error)
        if not isinstance(error, Exception | asyncio.CancelledError):
            self.owner.fail(error)

    def unhanded(self) -> int:
        """The `backlog`, without events of the bus itself in the inbox, which no user published.
        For the end: it takes them out.
        """
        backlog = self.backlog
        if self.terms.query.reserved:
            left = 0
            while self.batch or self._decode():
                left += self.batch.pop().type.startswith(RESERVED)
            backlog -= left
        return backlog

    def close(self) -> None:
        """Hand over nothing more; forget what is in the inbox. A call in progress goes on. Waits
        for nothing; twice is no error.
        """
        self.closed = True
        self._inbox.clear()
        self.batch.clear()
        self._cursor = Cursor()
        self._arrivals.wake()
        self.space_available.wake()

    @property
    def stats(self) -> SubscriptionStats:
        """A snapshot of its counters."""
        return SubscriptionStats(
            name=self.name,
            query=str(self.query),
            overflow=self.terms.overflow,
            pending=self.pending,
            handled=self.handled,
            failed=self._failed,
            dropped=self._dropped,
            conflated=self._conflated,
            expired=self._expired,
            overshoot=self.overshoot,
            gaps=self._gaps,
            behind=self.is_behind,
        )


class Subscription:
    """A live subscription; made by `bus.subscribe`, and behind every stream."""

    __slots__ = ("_receiver",)

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def __repr__(self) -> str:
        return f"<Subscription {self._receiver!r}>"

    @property
    def name(self) -> str:
        """How logs, stats and system events call it: the callback and the beginning of `query`."""
        return self._receiver.name

    @property
    def query(self) -> str:
        """The types and keys it selects: `TRADE/BTCUSDT`, `*/BTC*`, or several with spaces between.
        With keys for `*`, and with more than 1,024 bytes of them, other buses are asked for more
        than that, and this one leaves out the rest.
        """
        return str(self._receiver.query)

    @property
    def unconfirmed(self) -> frozenset[str]:
        """Names of the buses that did not confirm it in time, refuse its query, or whose link was
        cut, and meeting addresses that did not answer (`tcp://127.0.0.1:7555`). Each goes once it
        has confirmed, from when on its events are owed, or has left; always empty where there are
        no others.
        """
        return self._receiver.catchup.unconfirmed

    @property
    def reached(self) -> float | None:
        """With `since=` a time: how far back the histories went, in Unix seconds. Of what the buses
        that run now have published since then, nothing is missing. Known when `subscribe` returns,
        but for those in `unconfirmed`.
        """
        return self._receiver.reached

    @property
    def stats(self) -> SubscriptionStats:
        """A snapshot of its counters; after it has ended, the last ones. Raises WrongLoop in
        another thread while the loop runs, and in a forked child.
        """
        self._receiver.owner.check_thread()
        return self._receiver.stats

    async def unsubscribe(self) -> None:
        """End it: no new call of the callback starts, events in the inbox are gone.

        Never waits: a call in progress goes on. Twice is fine. Raises WrongLoop elsewhere.
        """
        self._receiver.owner.check_loop()
        self._receiver.owner.drop(self._receiver)
