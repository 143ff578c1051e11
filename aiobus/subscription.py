"""One live query: its events, from the moment they match to the moment they are handed over.

Owns the inbox, the decoding, the counters, and what a user holds of a subscription. Must not know
who consumes: `pop` is all that a dispatcher or a stream needs, and `wait` tells when to look again.
Nor must it know how missing events are fetched: its `CatchUp` does that, and fills in `pull` and
`spoil`.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from aiobus import clock
from aiobus.codec import copied, decode
from aiobus.delivery import Consumer
from aiobus.diagnostics import Diagnostics
from aiobus.errors import PayloadError
from aiobus.event import Event
from aiobus.inbox import FifoInbox, Item, PutResult, make_inbox
from aiobus.lifecycle import Lifecycle, State
from aiobus.limits import LATEST, way_out
from aiobus.options import SubscriptionOptions, Where, selects
from aiobus.payload import Fit
from aiobus.publisher import Publisher, Sink
from aiobus.query import RESERVED, parse_query
from aiobus.rows import LazyBatch, Source
from aiobus.sequence import Cursor, Gap
from aiobus.stats import SubscriptionStats
from aiobus.sync import BackpressureGate, Notifier
from aiobus.system import GAP

__all__ = ["PACE", "Subscription", "Taken", "are_rows"]

PACE = 128
"""Events asked for at once while others wait. Twice as many delay a HALT in a flood (`python -m
perf.overload`); with half as many, round trips between busy processes bound a recovery.
"""
DECODE_BYTES = 16 * 1024
"""Bytes of rows decoded at once: about 100 us, so that large events do not hold up the loop."""
TAKEN = PutResult.TAKEN  # an Enum is slow to ask for its members, and each event does
EXPIRED = 1_024
"""Events older than `max_age` that are dropped in one go."""


Taken = list[Any]
"""Events in their order, all encoded (`are_rows`), or all of type Event."""


def are_rows(taken: Taken) -> bool:
    """True for encoded events, all of this process; there is at least one."""
    return bool(taken) and type(taken[0]) is bytes


class Subscription(Consumer):
    """A live subscription; made by `bus.subscribe`, and behind every stream."""

    def __init__(
        self,
        name: str,
        options: SubscriptionOptions,
        publisher: Publisher,
        reports: Diagnostics,
        life: Lifecycle,
        idle: Notifier,
        drop: Callable[["Subscription"], None],
    ) -> None:
        super().__init__()
        self._name = name
        self.options = options
        self.slots = options.concurrency
        self.maxsize = options.maxsize
        self.life = life
        # Beside data, `aiobus.gap` means this subscription's own gaps, in their place; alone, all.
        self._wants_gaps = GAP in options.query.reserved and options.query.wants_data
        self.selection = options.query.without(GAP) if self._wants_gaps else options.query
        """What is handed over, as others are asked for it and history is."""
        # The query sent to peers can be wider than this one (its text is limited to 1,024 bytes):
        # the excess is filtered here.
        text = self.selection.text
        is_exact = not text or parse_query(text) == self.selection.without(*self.selection.reserved)
        self._narrow = None if is_exact else self.selection
        self.own = _own_place(options, publisher)
        """The place among the events of this bus; it moves only while `behind`."""
        self.behind: dict[Source, None] = {}
        """The other buses of which something is missing, kept by the `CatchUp`."""
        self.pull: Callable[[], None]
        """Asks for what is missing, after events were handed over; the `CatchUp` sets it."""
        self.spoil: Callable[[LazyBatch], None]
        """Takes a batch whose rows proved to be no events; the `CatchUp` sets it."""
        self.is_held = False
        """The events of the own bus are to wait for `release`."""
        self.room = Notifier()
        """Woken when events were taken from the inbox, and at the end."""
        self.closed = False
        self.batch: list[Event[Any]] = []
        """What is decoded, newest first, so that it can be popped."""
        self._unconfirmed: frozenset[str] = frozenset()
        self._reached: float | None = None
        self._inbox = make_inbox(options.overflow, options.maxsize, lambda batch: self.spoil(batch))
        self._where = options.where
        self._is_bounded = options.overflow in ("catch_up", "block")
        # A policy that drops would take them for data; the others keep the order of all.
        is_mixed = self.selection.wants_data and bool(self.selection.reserved)
        self._has_notices = is_mixed and not self._is_bounded
        # Without `where` and a widened query, events are first looked at when it is their turn.
        is_blind = self._is_bounded and self._where is None and self._narrow is None
        self._blind = self._inbox if is_blind and isinstance(self._inbox, FifoInbox) else None
        self._publisher = publisher
        self._source = (publisher.name, publisher.epoch)
        self._past = publisher.options.begin
        self._reports = reports
        self._idle = idle
        self._drop = drop
        self._waiter: asyncio.Future[None] | None = None
        self._gate: BackpressureGate | None = None
        if options.overflow == "block":
            self._gate = BackpressureGate(self, name, options.maxsize, self._is_full, self._is_over)
        self.sink = Sink(self.selection, self.deliver, self, self._gate)
        self.is_plain = self._gate is None and options.max_age is None
        """True if an event may be popped from `batch` without `pop`."""
        self._failed = self._gaps = 0
        self._dropped = self._conflated = self._expired = self._misfits = 0
        self._is_overflowing = self._is_late = False  # an episode: one system event for each

    def __repr__(self) -> str:
        state = "closed" if self.closed else "behind" if self.is_behind else "live"
        return f"<Subscription {self.name} {state} pending={self.pending} handled={self.handled}>"

    # For users.

    @property
    def name(self) -> str:
        """How logs, stats and system events call it: the callback and the beginning of `query`."""
        return self._name

    @property
    def query(self) -> str:
        """The types and keys it selects: `TRADE/BTCUSDT`, `*/BTC*`, or several with spaces between.
        With keys for `*`, and with more than 1,024 bytes of them, other buses are asked for more
        than that, and this one leaves out the rest.
        """
        return str(self.selection)

    @property
    def unconfirmed(self) -> frozenset[str]:
        """Names of the buses that did not confirm it in time, that refuse its query, or whose link
        was cut, and rendezvous addresses that did not answer (`tcp://127.0.0.1:7555`). A name goes
        once its bus has left, or has confirmed; from then on its events are owed.
        """
        return self._unconfirmed

    @property
    def reached(self) -> float | None:
        """With `since=` a time: how far back the histories went, in Unix seconds. Of what the buses
        that run now have published since then, nothing is missing. Known when `subscribe` returns,
        except for the buses in `unconfirmed`.
        """
        return self._reached

    @property
    def stats(self) -> SubscriptionStats:
        """Its counters now, or at its end. Raises WrongLoop in another thread or a forked child."""
        self.life.check_thread()
        return SubscriptionStats(
            name=self.name,
            query=self.query,
            overflow=self.options.overflow,
            pending=self.pending,
            handled=self.handled,
            failed=self._failed,
            dropped=self._dropped,
            conflated=self._conflated,
            expired=self._expired,
            misfits=self._misfits,
            overshoot=self.outran + (0 if self._gate is None else self._gate.overshoot),
            gaps=self._gaps,
            behind=self.is_behind,
        )

    async def unsubscribe(self) -> None:
        """End it: no new call of the callback starts, events in the inbox are gone.

        Never waits: a call in progress goes on. Twice is fine. Raises WrongLoop elsewhere.
        """
        self.life.check_loop()
        self._drop(self)

    # For the package. What goes in.

    @property
    def was_dropped(self) -> bool:
        """True once it was ended by `unsubscribe` or by a fork, in the child: no call starts any
        more. Calls that had begun when the bus closed are waited for, or said to be cut off.
        """
        return self.closed and (self.life.state is not State.CLOSED or self.life.is_forked)

    def deliver(self, seq: int, row: bytes, type: str, key: str) -> None:
        """Take the next event of this process, or leave it to history if there is no room."""
        if self.own.behind or self.closed:
            return
        if self._where is not None and not self._selects(self._where, row):
            return
        item = self._notice(row, type) if self._has_notices else row
        outcome = self._inbox.offer(item, type, key)
        if outcome is not TAKEN:
            if outcome is PutResult.REFUSED:
                self.own.start_lagging(seq)
                self.start_lagging()
            else:
                self._count(outcome)
        if self._waiter is not None:
            self._wake()

    def _notice(self, row: bytes, type: str) -> Item:
        """A system event among data as what the inbox takes for a notice."""
        return decode([row], *self._source, self._past)[0] if type.startswith(RESERVED) else row

    def _selects(self, where: Where, item: bytes | Event[Any]) -> bool:
        """Ask `where`, on a copy that it may spoil."""
        if isinstance(item, bytes):
            (event,) = decode([item], *self._source)
        else:
            event = replace(item, data=copied(item.data))
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
            self._reports.watch.note(
                clock.elapsed() - began, lambda: f"the `where` of {self.name} at {event_id}"
            )

    def _count(self, outcome: PutResult) -> None:
        if outcome is PutResult.CONFLATED:
            self._conflated += 1
            return
        self._dropped += 1
        if not self._is_overflowing:
            self._reports.overflow(self.name, self.options.overflow, self._dropped)
        self._is_overflowing = True

    def start_lagging(self) -> None:
        """There was no room, so events are left to history; said once per episode."""
        if not self._is_overflowing:
            self._reports.behind(self.name, self.maxsize)
        self._is_overflowing = True

    @property
    def free_slots(self) -> int:
        """How many more events of other buses there is room for. "catch_up" and "block" leave the
        rest to the history of their source. The others drop what is too much, and ask for a page's
        worth.
        """
        if self._is_bounded:
            return self.maxsize - len(self._inbox) - len(self.batch)
        return max(self.maxsize, PACE)

    @property
    def wants_more(self) -> bool:
        """True while so few events wait that it may ask for all that there is room for."""
        return not self._is_bounded or len(self._inbox) * 8 < self.maxsize

    def keep(self, batch: LazyBatch, after: int = 0) -> None:
        """Take the events above `after` of another bus, which were asked for or there was room for.
        Where no policy or filter looks at them they are parsed when it is their turn.
        """
        if self._blind is not None and batch.last >= after:
            self._blind.put_batch(batch)
            if self._waiter is not None:
                self._wake()
            return
        self.keep_some(batch, lambda event: event.seq > after)

    def keep_some(self, batch: LazyBatch, is_wanted: Callable[[Event[Any]], bool]) -> None:
        """Take those events of another bus that are wanted. All are parsed now."""
        events: list[Event[Any]] = []
        while batch.left:
            events += filter(is_wanted, batch.take())
        self._accept(events)
        if batch.error is not None:
            self.spoil(batch)

    def _accept(self, events: list[Event[Any]]) -> None:
        where, query = self._where, self._narrow
        with self._publisher.no_publish():
            if query is not None:
                events = [event for event in events if query.matches(event.type, event.key)]
            if where is not None:
                events = [event for event in events if self._selects(where, event)]
            for outcome in self._inbox.extend(events):
                self._count(outcome)
        self._wake()

    def admit(self, rows: list[tuple[str, str, bytes]]) -> None:
        """Take a page of the own history, whatever the room: it was asked for."""
        for type, key, row in rows:
            if self._where is not None and not self._selects(self._where, row):
                continue
            item = self._notice(row, type) if self._has_notices else row
            if self._inbox.admit(item, type, key) is PutResult.CONFLATED:
                self._conflated += 1

    def lose(self, source: Source, gap: Gap) -> None:
        """Say that events are lost, in their place if the subscription asked for that."""
        self._gaps += 1
        event = self._reports.gap(self.name, self.query, source, gap)
        if self._wants_gaps:
            self._inbox.admit(event, event.type, event.key)
            self._wake()

    def miss(self, names: Collection[str]) -> None:
        """Buses of these names have not confirmed the query."""
        self._unconfirmed |= frozenset(names)

    def confirm(self, name: str) -> None:
        """The query is live at a bus that did not answer in time, or refused it."""
        self._unconfirmed -= {name}

    def refuse(self, name: str, reason: str) -> None:
        """A bus does not send what is asked of it, until it confirms."""
        self.miss([name])
        text = f"{self.name} gets nothing of {name}, which refuses its query: {reason}"
        self._reports.trouble("queries are refused", text)

    def reach(self, timestamp: float) -> None:
        """Of what one more bus has published from then on, Unix seconds, nothing is missing."""
        self._reached = timestamp if self._reached is None else max(self._reached, timestamp)

    # What comes out.

    @property
    def pending(self) -> int:
        """Events in the inbox, not yet handed over."""
        return len(self._inbox) + len(self.batch)

    @property
    def backlog(self) -> int:
        """`pending` and what is to be pulled from history, of which fewer may be selected."""
        if not self.own.behind:
            return self.pending
        return self.pending + self._publisher.history.count(self.selection, self.own.last)

    @property
    def is_selective(self) -> bool:
        """True when `key` or `where` selects among the events of its types."""
        return self._where is not None or bool(self.selection.keys or self.selection.prefixes)

    @property
    def is_behind(self) -> bool:
        """True while it catches up, with this bus's own events or another's."""
        return self.own.behind or bool(self.behind)

    @property
    def _bound(self) -> int:
        """How many events may wait before publishers of this process do: fewer while it catches up
        with another bus, which would never get a turn otherwise.
        """
        return max(0, self.maxsize - 2 * PACE) if self.behind else self.maxsize

    def _is_full(self, coming: int) -> bool:
        return self.pending + coming >= max(1, self._bound) or self.own.behind

    def _is_over(self) -> bool:
        return not self.closed and (self.pending > self._bound or self.own.behind)

    @property
    def is_idle(self) -> bool:
        """True when nothing is in the inbox, in hand or left to catch up with."""
        is_done = self.begun == self.handled
        return is_done and not (self.batch or self._inbox.items or self.own.behind or self.behind)

    def pop(self) -> Event[Any] | None:
        """The next event to hand over; None when there is none now (then `wait`). Never waits."""
        if self.options.max_age is None:
            event = self.batch.pop() if self.batch or self._refill() else None
        else:
            event = self._pop_fresh(self.options.max_age)
        if self._gate is not None and self._gate.space_available.futures and not self._is_over():
            if self.behind:
                self.pull()  # before those who are woken take the room
            self._gate.space_available.wake()
        return event

    def _pop_fresh(self, max_age: float) -> Event[Any] | None:
        for _ in range(EXPIRED):
            event = self.batch.pop() if self.batch or self._refill() else None
            if event is None or not self._is_expired(event, max_age):
                return event
        return None

    def take(self) -> Taken:
        """The next ones to hand over, several at once; empty if there is none now. Never waits. For
        a consumer that takes events of any age and for which no publisher waits.
        """
        if self.batch:
            taken = self.batch[::-1]
            self.batch.clear()
            return taken
        return self._take()

    def _take(self, *, is_last: bool = False) -> Taken:
        """The next of the inbox. Unless `is_last`, ask for more."""
        if not is_last and (self.behind or self.own.behind):
            self.pull()
        inbox = self._inbox
        if self.room.futures:
            self.room.wake()
        while inbox.items:
            if taken := inbox.take(DECODE_BYTES):
                return taken
        self._is_overflowing = self.own.behind or bool(self.behind)
        return []

    def _refill(self, *, is_last: bool = False) -> bool:
        """Decode the next events, and unless `is_last` ask for more; False when there are none."""
        batch, taken = self.batch, self._take(is_last=is_last)
        batch += decode(taken, *self._source, self._past) if are_rows(taken) else taken
        batch.reverse()
        return bool(batch)

    def _is_expired(self, event: Event[Any], max_age: float) -> bool:
        is_timeless = event.timestamp > LATEST  # of another program: this one publishes none
        is_late = is_timeless or clock.time() - event.timestamp > max_age
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
        if self.batch or self._inbox.items or self.closed or (self.own.behind and not self.is_held):
            await asyncio.sleep(0)
            return
        if self._idle.futures:
            self.note_idle()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    @property
    def is_waiting(self) -> bool:
        """True while its consumer waits for an event."""
        return self._waiter is not None

    def feed(self, event: Event[Any]) -> None:
        """Hand over this event next, past the inbox. For a replay, which has selected already."""
        self.batch.append(event)
        self._wake()

    def release(self) -> None:
        """What a keeper holds is there: the events of the own bus may follow."""
        self.is_held = False
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def note_idle(self) -> None:
        """Tell the bus, which may be settling, if nothing is left to do here."""
        if self.is_idle:
            self._idle.wake()

    def recheck(self) -> None:
        """Who waits for whom has changed: publishers that wait for space look again."""
        if self._gate is not None:
            self._gate.space_available.wake()

    def fail(self, type: str, event_id: str, error: BaseException) -> None:
        """The callback or `where` raised: counted and reported. The subscription goes on. The bus
        ends after a BaseException such as that of pytest.fail.
        """
        is_misfit = isinstance(error, PayloadError) and error.event == event_id
        self._misfits += is_misfit
        self._failed += not is_misfit
        self._reports.failure(self.name, type, event_id, error)
        is_to_stop = is_misfit and self.options.misfit == "stop"
        if is_to_stop or not isinstance(error, Exception | asyncio.CancelledError):
            self.life.fail(error)
            self._idle.wake()

    def convert(self, event: Event[Any], fit: Fit) -> None:
        """Convert the data of an event that a stream hands over. Raises PayloadError."""
        try:
            fit(event)
        except PayloadError:
            self._misfits += 1
            raise

    # Its end.

    def unhanded(self) -> int:
        """The `backlog` without system events. For the end: it takes these out of the inbox."""
        backlog = self.backlog
        if self.options.query.reserved:
            left = 0
            while self.batch or self._refill(is_last=True):
                left += self.batch.pop().type.startswith(RESERVED)
            backlog -= left
        return backlog

    def close(self) -> None:
        """Hand over nothing more, and empty the inbox. A call in progress goes on. Never waits."""
        self.closed = True
        self._inbox.clear()
        self.batch.clear()
        self.own = Cursor()
        self._wake()
        self.room.wake()
        self.recheck()


def _own_place(options: SubscriptionOptions, publisher: Publisher) -> Cursor:
    """Where a subscription begins among the events of its own bus."""
    if publisher.name not in options.places:
        return Cursor(since=options.since)
    epoch, seq = options.places[publisher.name]
    newest = publisher.history.newest
    cursor = Cursor(min(seq, newest) if epoch == publisher.epoch else 0)
    cursor.hear(newest)
    return cursor
