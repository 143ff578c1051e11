"""The buses of one replay: each is handed what was recorded, and what the others publish.

Owns who is subscribed, and that nothing which finds a full inbox is lost. Must not know from which
file the recorded events come, nor when.
"""

from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import Collection, Sequence
from functools import partial

from aiobus.catchup import CatchUp
from aiobus.clock import elapsed, fresh, time
from aiobus.diagnostics import Diagnostics
from aiobus.errors import BusClosed, BusError, NameInUse
from aiobus.history import Want
from aiobus.presence import MORE, Peer, patterns_of
from aiobus.publisher import Publisher, Route, Sink
from aiobus.query import Query
from aiobus.rows import SEPARATOR, Rows, Source
from aiobus.sync import Notifier
from aiobus.transport import Local

__all__ = ["Seat", "Stage"]

MAX_ROUTES = 65_536
"""(source, type, key) of which it is remembered who gets it."""

Place = tuple[Source, str, str]


class Stage:
    """The open buses of one replay, and the ways from what was recorded to their subscriptions."""

    def __init__(self) -> None:
        self.seats: list[Seat] = []
        """In the order in which they came."""
        self.loop: AbstractEventLoop | None = None
        """Where the replay is open."""
        self.recorded: Collection[Source] = ()
        """What the recording has numbers of, which no bus of the stage uses again."""
        self.changed = Notifier()
        """Woken when a bus comes or goes, subscribes or ceases to."""
        self._routes: dict[Place, list[_Reader]] = {}

    async def hand(self, place: Place, seq: int, row: bytes) -> None:
        """Hand over a recorded event, in order of seq of each source. Waits for room, in virtual
        time, where an inbox is full that leaves events to history. If it is cancelled, hand the
        event over again: the subscriptions that have it leave it out.
        """
        readers = self._routes.get(place)
        if readers is None:
            readers = self._route(place)
        for reader in readers:
            if not reader.catchup.has_room:
                await reader.catchup.until_room()
            reader.take(place[0], seq, row)

    def _route(self, place: Place) -> "list[_Reader]":
        _, type, key = place
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        found = self._routes[place] = [
            reader
            for seat in self.seats
            for reader in seat.readers.values()
            if reader.catchup.query.matches(type, key)
        ]
        return found

    def has(self, name: str) -> bool:
        """True if a bus of this name is there, which publishes what its source does now."""
        return any(seat.publisher.name == name for seat in self.seats)

    def recorded_peer(self, name: str) -> Peer | None:
        """The last start of this name in the recording; None for the name of a bus that is there.
        What it had subscribed to was not recorded.
        """
        epochs = [epoch for each, epoch in self.recorded if each == name]
        return None if not epochs or self.has(name) else Peer(name, max(epochs), 0, 0, 0, (MORE,))

    def forget_routes(self) -> None:
        """A bus has subscribed, or has ceased to."""
        self._routes.clear()
        self.changed.wake()


class Seat(Local):
    """The transport of one bus at a stage: to the bus, the others there are peers. It opens no
    socket. The histories of recorded sources cannot be asked for: `since=` gets what is handed over
    from now on, and `after=` what follows that event.
    """

    is_alone = False

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._publisher: Publisher | None = None
        self._since = 0.0
        self.readers: dict[CatchUp, _Reader] = {}
        self._links: dict[CatchUp, list[_Link]] = {}

    @property
    def publisher(self) -> Publisher:
        """That of its bus, which has started."""
        assert self._publisher is not None
        return self._publisher

    @property
    def peers(self) -> Sequence[Peer]:
        """The other buses of the stage, and what was recorded: to a bus, both are the others."""
        others = [seat.shown() for seat in self._stage.seats if seat is not self]
        names = {name for name, _ in self._stage.recorded}
        recorded = (self._stage.recorded_peer(name) for name in names)
        found = [*others, *(each for each in recorded if each is not None)]
        return sorted(found, key=lambda peer: peer.name)

    def shown(self) -> Peer:
        """Its bus as the others see it."""
        told = patterns_of(catchup.query for catchup in self.readers)
        who = self.publisher
        return Peer(who.name, who.epoch, self._since, who.public_seq, 0.0, told)

    async def until_peer(self, name: str, query: Query | None) -> Peer:
        """Wait until a bus of this name is at the stage and has subscribed to `query`. A source of
        the recording is there, and takes what it is sent: its orders were executed then.
        """
        while self in self._stage.seats:
            for seat in self._stage.seats:
                peer = seat.shown()
                if seat is not self and peer.name == name and (query is None or peer.covers(query)):
                    return peer
            if (recorded := self._stage.recorded_peer(name)) is not None:
                return recorded
            await self._stage.changed.wait()
        raise BusClosed(f"{self.publisher.name} is closed")

    async def start(self, publisher: Publisher, reports: Diagnostics) -> None:
        """Take the seat. The subscriptions of the other buses are live for this one at once. Raises
        NameInUse if one of them has this name, and BusError unless the replay is open in this loop.
        """
        if self._stage.loop is not get_running_loop():
            raise BusError(f"{publisher.name} starts on this loop once the bus of the replay has")
        if self._stage.has(publisher.name):
            raise NameInUse(publisher.name, "this replay")
        self._publisher, self._since = publisher, time()
        while (publisher.name, publisher.epoch) in self._stage.recorded:  # made in virtual time
            publisher.epoch = fresh()
        for seat in self._stage.seats:
            for catchup in seat.readers:
                seat.link(catchup, self)
        self._stage.seats.append(self)
        self._stage.forget_routes()

    async def subscribe(self, catchup: CatchUp, timeout: float) -> Collection[str]:
        """It gets what is handed over from now on. Never waits."""
        self.readers[catchup] = _Reader(catchup)
        self._stage.forget_routes()
        for seat in self._stage.seats:
            if seat is not self:
                self.link(catchup, seat)
        return ()

    def link(self, catchup: CatchUp, other: "Seat") -> None:
        """Let a subscription of this bus have what another one publishes."""
        if catchup.query.wants_data:
            link = _Link(catchup, other.publisher)
            self._links.setdefault(catchup, []).append(link)
            link.begin()

    def unsubscribe(self, catchup: CatchUp) -> None:
        """It gets nothing more."""
        if (reader := self.readers.pop(catchup, None)) is not None:
            reader.is_over = True
        self._stage.forget_routes()
        for link in self._links.pop(catchup, ()):
            link.cut()

    def listeners(self, route: Route, to: str = "") -> Collection[Source] | None:
        """With `to`: the other bus of this name at the stage; a recorded one answers nothing. All
        that a bus of the stage may answer is in the sinks of `route`.
        """
        for seat in self._stage.seats:
            if seat is not self and seat.publisher.name == to:
                queries = [each.query for each in seat.readers if route.type in each.query.types]
                if any(each.matches(route.type, route.key) for each in queries):
                    return [(to, seat.publisher.epoch)]
        return ()

    def why_deaf(self, name: str) -> str:
        """A source of the recording is there, and answers nothing."""
        if self._stage.recorded_peer(name) is None:
            return ""
        return (
            f"{name} is of the recording, and what is recorded answers nothing: let a bot of this"
            " name answer, on replay.beside() (in a shell --beside)"
        )

    def ask(self, catchup: CatchUp, source: Source, want: Want, limit: int) -> bool:
        """Ask another bus of the stage, which answers in the next turn of the loop."""
        for link in self._links.get(catchup, ()):
            if link.source == source:
                get_running_loop().call_soon(partial(link.answer, want, limit))
        return False

    async def close(self, timeout: float) -> Collection[str]:
        """Leave. Never waits."""
        for catchup in list(self.readers):
            self.unsubscribe(catchup)
        if self in self._stage.seats:
            self._stage.seats.remove(self)
            self._stage.forget_routes()
        return ()


class _Reader:
    """What was recorded, on its way to one subscription."""

    __slots__ = ("_lasts", "catchup", "is_over")

    def __init__(self, catchup: CatchUp) -> None:
        self.catchup = catchup
        self.is_over = False
        self._lasts: dict[Source, int] = {}

    def take(self, source: Source, seq: int, row: bytes) -> None:
        """Take an event, for which there is room."""
        last = self._lasts.get(source)
        if last is None:
            last = self._lasts[source] = self.catchup.begin(source)
        if seq > last and not self.is_over:
            self._lasts[source] = seq
            frame = Rows(row, 0, len(row), source, (last, seq), 1, is_frame=True)
            self.catchup.take(frame, None)


class _Link:
    """What one bus of a stage publishes, on its way to one subscription of another."""

    def __init__(self, catchup: CatchUp, publisher: Publisher) -> None:
        self.source = publisher.name, publisher.epoch
        self._catchup = catchup
        self._query = catchup.query.without(*catchup.query.reserved)
        """System events do not leave their bus."""
        self._publisher = publisher
        self._last = publisher.public_seq
        self._is_cut = False
        self._sink = Sink(self._query, self._take, catchup.consumer)
        publisher.attach(self._sink)

    def begin(self) -> None:
        """Let the subscription begin with this source, in its past if `since` says so."""
        self._catchup.meet(self.source, self._last, elapsed())

    def _take(self, seq: int, row: bytes, type: str, key: str) -> None:
        span, self._last = (self._last, seq), seq
        self._catchup.take(Rows(row, 0, len(row), self.source, span, 1, is_frame=True), None)

    def answer(self, want: Want, limit: int) -> None:
        """Hand over a page of history, as it was asked for."""
        if not self._is_cut:
            page = self._publisher.history.answer(self._query, want, limit)
            text = SEPARATOR.join(row for _, _, row in page.rows)
            span = page.after, page.to
            rows = Rows(text, 0, len(text), self.source, span, len(page.rows), is_frame=False)
            self._catchup.take_page(self.source, page, rows)

    def cut(self) -> None:
        """Nothing more comes by it."""
        self._is_cut = True
        self._publisher.detach(self._sink)
