"""The publishing half of a bus: check an event, encode and number it, keep it, and hand it to
every sink that asked for it; and the frames in which other processes get it.

Owns the seq, the history and the routes: which sinks get the events of a type and key. Owns the
rows that one query is sent, and the `prev` link between its frames. Pure: all of it happens between
two awaits, so nothing here waits, and when a tick of the loop is over it must be told. What a sink
does with an event is not known here.

The first event of a tick leaves at once, so a lone event has no batching delay. What follows in the
same tick is joined, and after such a tick the first of the next one as well, so a burst has full
frames.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiobus.codec import encode, seq_of
from aiobus.delivery import Consumer, current, entered
from aiobus.errors import BusError, EncodeError, NotPermitted
from aiobus.event import Event, own_fields
from aiobus.history import LARGE, History, Ring
from aiobus.journal.format import Entry
from aiobus.keeper.kept import Kept
from aiobus.limits import Limits
from aiobus.query import EVERY_TYPE, RESERVED, Query, bad_key, bad_type, kind_of, plain, starred
from aiobus.sync import BackpressureGate, Notifier
from aiobus.wire import Options, frame, progress_topic

__all__ = [
    "Publisher",
    "Route",
    "Routes",
    "Sink",
    "Stream",
]

FRAME_EVENTS = 128
"""A frame of 64 costs the publisher 1.08 and the subscriber 1.11 times as much an event."""
FRAME_BYTES = FRAME_EVENTS * LARGE


class Stream:
    """The events of one query on their way to other processes.

    The publisher appends to `rows`, since most events need nothing else, and calls `fill` when
    there are `full_at` of them. For each whole `LARGE` of a row it lowers `full_at` by 1, so that a
    frame leaves once its rows have `FRAME_BYTES`, without a look at each row.

    `newest` begins as the source's seq at that moment: a peer that asks for the stream now is
    owed nothing before. With 0 instead, 692 of 5,160 events were lost unnoticed over 12 reconnects.
    `send` takes a frame and never waits; `join` is called with the first event of a tick, to have
    `end_tick` called when that is over, and then each tick for as long as it says True.
    """

    def __init__(
        self,
        query: Query,
        topic: bytes,
        source: tuple[str, int],
        seq: int,
        send: Callable[[bytes], None],
        join: Callable[["Stream"], None],
    ) -> None:
        self.query = query
        self.topic = topic
        self.sent = seq
        """The last event that was sent."""
        self.rows: list[bytes] = []
        """What was joined since."""
        self.full_at = 1
        """How many rows make a frame: one, while none was sent in this tick."""
        self.is_live = True
        """False if progress messages alone are wanted."""
        self._source, self._epoch = source
        self._send = send
        self._join = join
        self._is_joining = self._is_busy = False

    @property
    def newest(self) -> int:
        """The last event that was sent or is about to be."""
        return seq_of(self.rows[-1]) if self.rows else self.sent

    def fill(self) -> None:
        """There are `full_at` rows."""
        if not self._is_joining:
            self._emit()
            self._is_joining = True
            self.full_at = FRAME_EVENTS
            self._join(self)
        else:
            self._emit()

    def flush(self) -> None:
        """Send what was joined so far."""
        if self.rows:
            self._emit()

    def end_tick(self) -> bool:
        """Send what was joined. True to join what comes in the next tick as well; else the next
        event leaves at once again.
        """
        if self.rows:
            self._emit()
        self._is_joining, self._is_busy = self._is_busy, False
        self.full_at = FRAME_EVENTS if self._is_joining else 1
        return self._is_joining

    def beacon(self) -> None:
        """Send a frame in any case: one without events reveals that the last with some was lost."""
        self._emit()

    def send_progress(self) -> None:
        """Send the progress message, which has no events, behind what was joined."""
        self.flush()
        self._send(
            frame(progress_topic(self.topic), self._source, self._epoch, self.sent, self.sent, ())
        )

    def _emit(self) -> None:
        rows, prev = self.rows, self.sent
        if rows:
            self.sent = seq_of(rows[-1])
            self.rows = []
            if self._is_joining:
                self._is_busy = True
                self.full_at = FRAME_EVENTS
        if self.is_live:
            self._send(frame(self.topic, self._source, self._epoch, prev, self.sent, rows))


FROM_WHERE = "publishing from `where` would disorder events; do it in the callback"
MAX_ROUTES = 65_536
"""Routes remembered. Keys are the user's and may never repeat, so the memory of them is thrown away
when it is full.
"""
Place = str | tuple[str, str]
"""A type, or a type and a key."""


@dataclass(frozen=True, eq=False, slots=True)
class Sink:
    """Where matching events go in this process: a subscription."""

    query: Query
    deliver: Callable[[int, bytes, str, str], None]
    """Takes the seq, row, type and key of the next event. Must not raise, wait or publish."""
    consumer: Consumer
    gate: BackpressureGate | None = None
    """Where publishers wait for space, if they do."""


Target = Sink | Stream
"""Where events go, here or, by the stream of a query, to other processes."""


class Route:
    """What there is to know about events of one (type, key), worked out once."""

    __slots__ = ("blocking", "is_public", "key", "ring", "sinks", "streams", "type")

    def __init__(self, type: str, key: str, ring: Ring, targets: Iterable[Target]) -> None:
        self.is_public = not type.startswith(RESERVED)
        """False for a system event, which stays in this process."""
        self.type = type
        self.key = key
        self.ring = ring
        targets = tuple(targets)
        sinks = tuple(target for target in targets if not isinstance(target, Stream))
        streams = tuple(target for target in targets if isinstance(target, Stream))
        self.sinks: tuple[Sink, ...] = sinks
        self.streams = streams if self.is_public else ()
        self.blocking = tuple(gate for sink in sinks if (gate := sink.gate) is not None)
        """Those of the sinks whose publishers wait while an inbox is over its bound."""

    @property
    def targets(self) -> tuple[Target, ...]:
        """All that get the event."""
        return (*self.streams, *self.sinks)


class Routes:
    """The sinks and streams of one publisher, found by what they ask for.

    Those that name their keys lie under (type, key), the others under the type alone: with 5,000
    subscriptions of a symbol each, an event meets one of them, not 5,000.
    """

    def __init__(self) -> None:
        self._places: dict[Place, list[Target]] = {}

    def add(self, target: Target) -> None:
        """Find `target` from now on."""
        for place in _places(target.query):
            self._places.setdefault(place, []).append(target)

    def remove(self, target: Target) -> None:
        """Find it no more. Raises ValueError when it was not there."""
        for place in _places(target.query):
            targets = self._places.get(place, [])
            targets.remove(target)
            if not targets:
                del self._places[place]

    def matching(self, type: str, key: str) -> Iterator[Target]:
        """Each that wants events of this type and key, once."""
        places: tuple[Place, ...] = ((type, key), (EVERY_TYPE, key), type, EVERY_TYPE)
        found = (target for place in places for target in self._places.get(place, ()))
        return (target for target in dict.fromkeys(found) if target.query.matches(type, key))


def _places(query: Query) -> Iterable[Place]:
    """Where to find a query: reserved types whatever the key, others by key where it can be."""
    types = {EVERY_TYPE} if query.every else query.types
    if query.keys and not query.prefixes:
        return [*query.reserved, *((type, key) for type in types for key in query.keys)]
    return [*query.reserved, *types]


class Publisher:
    """One source: `name`, `epoch`, and every event it ever numbers."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.epoch = 0
        """Which start of this source it is (`epochs`), set before the first event. With a journal,
        all its starts have one epoch.
        """
        self.options = Options()
        """What other buses are told of this start."""
        self.in_file = 0
        """With a journal: the last seq that an earlier start has committed."""
        self.seq = self.public_seq = 0
        """The number of the last event, and of the last that others may be handed. With the former,
        a bus that came, published nothing and left was said to have lost its system events.
        """
        self.history = History(limits)
        self.kept: Kept | None = None
        """Of the bus of a keeper: what it holds for publishers that are gone."""
        self.is_handing_out = False
        """True while events are handed to the sinks, which then must not publish."""
        self.observes = False
        """The bus is an observer: no other bus, and no publisher, waits for it."""
        self.pace: Callable[[Ring, int], None] | None = None
        """Makes room in a ring for a row of so many bytes; raises QueueFull when that has to wait
        for a reader.
        """
        self.room = Notifier()
        """Woken when a reader may have moved for which that waits."""
        self._limits = limits
        self.most_bytes = limits.event_bytes
        """Of an encoded event."""
        self._targets = Routes()
        self._routes: dict[tuple[str, str], Route] = {}
        self.permits: Callable[[str], bool] | None = None
        """True if the rules of a desk with keys let this bus publish a type. None: every type."""
        self._postponed: deque[Callable[[], object]] = deque()

    def publish(self, event: Event[Any], *, is_own: bool = False) -> Route:
        """Encode, number, keep and hand out `event`, stamp the object, and tell where it went.
        Never waits.

        `is_own`: a system event of the bus itself, which has a reserved type and is caused by what
        it says. Before a number is taken it raises EncodeError, QueueFull if `pace` does, and
        TypeError for what is no Event. It raises BusError when called from within itself (a `where`
        that publishes): other sinks would then see the later event first.
        """
        if self.is_handing_out:
            raise BusError(FROM_WHERE)
        if type(event) is not Event:
            _check(event)
        try:
            route = self._routes[event.type, event.key]
        except (KeyError, TypeError):  # a new one, or no strings, or not even hashable
            route = self._new_route(event.type, event.key, is_own)
        cause = event.cause
        if (not cause or event.seq) and not is_own:
            cause = _cause()
        self.is_handing_out = True
        try:
            seq, timestamp, type_, key = self.seq + 1, event.timestamp, route.type, route.key
            row = encode(seq, timestamp, type_, key, event.data, cause, self.most_bytes)
            places, ring = len(row) // LARGE, route.ring
            if places:
                ring.settle_at -= 3 * places
            is_due = len(ring.cells) >= ring.settle_at
            if is_due and self.pace is not None and not is_own:
                self.pace(ring, len(row))
            self.seq = self.history.newest = seq
            if route.is_public:
                self.public_seq = seq
            ring.cells += (row, key, timestamp)
            if is_due:
                self.history.settle(ring)
            event.source = self.name
            event.epoch = self.epoch
            event.seq = seq
            event.cause = cause
            for stream in route.streams:
                stream.rows.append(row)
                if places:
                    stream.full_at -= places
                if len(stream.rows) >= stream.full_at:
                    stream.fill()
            for sink in route.sinks:
                sink.deliver(seq, row, type_, key)
        finally:
            self.is_handing_out = False
        if self._postponed and not is_own:
            self._catch_up()
        return route

    def number(self, event: Event[Any], *, is_own: bool = False) -> Entry:
        """The first half of `publish`: encode, number and stamp `event`. Raises as `publish`."""
        if self.is_handing_out:
            raise BusError(FROM_WHERE)
        route, cause = self.route(event, is_own=is_own), event.cause
        if (not cause or event.seq) and not is_own:
            cause = _cause()
        seq, timestamp, type, key = self.seq + 1, event.timestamp, route.type, route.key
        row = encode(seq, timestamp, type, key, event.data, cause, self.most_bytes)
        self.seq = event.seq = seq
        event.source, event.epoch, event.cause = self.name, self.epoch, cause
        return Entry(self.name, self.epoch, seq, timestamp, type, key, cause, row)

    def release(self, entry: Entry) -> Route:
        """The second half: keep it, hand it out, and tell where it went. To be called in the order
        of numbers; some may be left out.
        """
        _, _, seq, timestamp, type, key, _, row = entry
        # Not the route it had when it was numbered: a subscription made since then is to receive it
        # too.
        route = self._routes.get((type, key))
        if route is None:
            route = self._new_route(type, key, type.startswith(RESERVED))
        # The same as in `publish`, where a call for each event would cost 5 %.
        places, ring = len(row) // LARGE, route.ring
        self.is_handing_out = True
        try:
            ring.settle_at -= 3 * places
            is_due = len(ring.cells) >= ring.settle_at
            self.history.newest = seq
            if route.is_public:
                self.public_seq = seq
            ring.cells += (row, key, timestamp)
            if is_due:
                self.history.settle(ring)
            for stream in route.streams:
                stream.rows.append(row)
                stream.full_at -= places
                if len(stream.rows) >= stream.full_at:
                    stream.fill()
            for sink in route.sinks:
                sink.deliver(seq, row, type, key)
        finally:
            self.is_handing_out = False
        if self._postponed:
            self._catch_up()
        return route

    def draw_number(self) -> int:
        """The next number, for an event of another source that is not handed out: others get it
        only if they ask what is kept. On no stream is it missing, since none has it.
        """
        self.seq = self.public_seq = self.history.newest = self.seq + 1
        return self.seq

    def route(self, event: Event[Any], *, is_own: bool = False) -> Route:
        """Where `event` would go. Raises EncodeError when it cannot be published (also for a
        subclass with fields of its own, which would not travel), TypeError for what is no Event.
        """
        if type(event) is not Event:
            _check(event)
        try:
            return self._routes[event.type, event.key]
        except (KeyError, TypeError):  # a new one, or no strings, or not even hashable
            return self._new_route(event.type, event.key, is_own)

    def _new_route(self, type: str, key: str, is_own: bool) -> Route:
        if reason := bad_type(type):
            raise EncodeError("type", reason) from None  # of the KeyError by which it was new
        if reason := bad_key(key) or starred(key):
            raise EncodeError("key", reason) from None
        # Plain strings, so that a member of a user's own StrEnum is not kept alive, nor found to be
        # one by orjson at each event.
        type, key = plain(type), plain(key)
        if type.startswith(RESERVED) and not is_own:
            raise EncodeError(
                "type",
                f"{type!r} is reserved: types that begin with {RESERVED!r} are the bus's own",
            ) from None
        if self.permits is not None and not is_own and not self.permits(type):
            raise NotPermitted(self.name, "publish", type) from None
        ring = self.history.ring(type)
        if ring is None:
            raise EncodeError(
                "type",
                f"{type!r} would be one more than {self._limits.types} types (Limits.types);"
                " put what varies into the key",
            ) from None
        route = Route(type, key, ring, self._targets.matching(type, key))
        if route.is_public:  # or a user's own event of that type would find it
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            self._routes[type, key] = route
        return route

    def attach(self, target: Target) -> None:
        """From the next event on, hand `target` what its query matches."""
        self._targets.add(target)
        self._forget_routes(target.query)

    def detach(self, target: Target) -> None:
        """Hand `target` nothing more."""
        self._targets.remove(target)
        self._forget_routes(target.query)

    def forget_routes(self) -> None:
        """What is permitted may be another by now."""
        self._routes.clear()

    def _forget_routes(self, query: Query) -> None:
        """Work out again where the events go that `query` may match."""
        if query.every or query.prefixes or not query.keys:
            self._routes.clear()
        for type in query.types:
            for key in query.keys:
                self._routes.pop((type, key), None)

    def when_free(self, step: Callable[[], object]) -> None:
        """Take a step that publishes a system event: now, or once the event that is being handed
        out has been. The step must not raise.
        """
        self._postponed.append(step)
        if not self.is_handing_out:
            self._catch_up()

    def _catch_up(self) -> None:
        while self._postponed:
            self._postponed.popleft()()

    @contextmanager
    def no_publish(self) -> Iterator[None]:
        """Inside, older events are handed out, so publishing raises BusError there as well."""
        self.is_handing_out = True
        try:
            yield
        finally:
            self.is_handing_out = False
        self._catch_up()


def _cause() -> str:
    """The id of the event whose handler publishes, also if it publishes one that was received."""
    return "" if entered() is None or (delivery := current()) is None else delivery.id


def _check(event: object) -> None:
    """Raise for what is no Event, or would not travel in whole."""
    kind = type(event).__name__
    if not isinstance(event, Event):
        raise TypeError(f"{event!r} is {kind_of(event)}, not an Event: publish(Event(type, data))")
    if names := own_fields(event):
        raise EncodeError(
            names[0],
            f"the fields of {kind} beside those of Event would not travel ({', '.join(names)}):"
            " put them into `data`",
        )
