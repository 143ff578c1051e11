"""The seam between a bus and whatever carries its events to other buses, and the transport of a
bus without peers.

Owns the Protocols on both sides of it. An adapter attaches a `Stream` to the publisher for each
query that others ask for, hands what it receives to an `Inlet`, and tells a `Witness` who comes and
goes. It must not know of callbacks, handlers or tasks of the user.
"""

from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

from aiobus.errors import BusError
from aiobus.history import Page, Want
from aiobus.publisher import Publisher
from aiobus.query import Query
from aiobus.rows import Rows, Source
from aiobus.stats import PeerStats

__all__ = [
    "Inlet",
    "Local",
    "Transport",
    "Witness",
]


class Inlet(Protocol):
    """Where events of other buses enter: one subscription. Nothing here waits or raises."""

    query: Query

    @property
    def behind(self) -> Collection[Source]:
        """The sources of which something is missing."""
        ...

    @property
    def beginning(self) -> Collection[Source]:
        """The sources of whose past it waits to hear where it begins."""
        ...

    def meet(self, source: Source, seq: int, started: float) -> None:
        """A source has answered that the query is live there: it is at `seq`, and started at
        `started`, monotonic seconds of this process.
        """
        ...

    def take(self, frame: Rows, started: float | None, heard: int) -> bool:
        """A frame has come; `started` is None while its source has never answered. Before it, the
        source was heard of up to `heard`: what the query matches of that was sent by now. False if
        the frame is left, to be asked for later.
        """
        ...

    @property
    def missing(self) -> int:
        """How many numbers are missing of the source of which most are, or 0 while so little waits
        to be handed over that whatever comes live would be next.
        """
        ...

    def turn(self, source: Source, page: Page, rows: Rows) -> None:
        """A page that was asked for has come, with these events."""
        ...

    def has(self, source: Source, seq: int, started: float | None) -> bool:
        """True when nothing up to `seq` is missing; what is, is asked for from now on, or lost if
        the source is dead. Of one that has never answered (`started` is None) nobody can say.
        """
        ...

    def leave(self, source: Source, newest: int, *, is_dead: bool = False) -> None:
        """A source has left, and was heard of up to `newest`: what is missing of it is lost.
        `is_dead`: it will not come back, but frames of it may still be on their way.
        """
        ...

    def go_back(self, source: Source, seq: int) -> None:
        """A source takes back what it said beyond `seq`."""
        ...

    def note_said(self, source: Source, seq: int) -> None:
        """A source that was asked says that it is at `seq`, and takes nothing back."""
        ...

    def forget(self, source: Source) -> int | None:
        """A source will hardly be heard of again. The seq up to which nothing of it is owed any
        more; None when it was never met.
        """
        ...

    def resume(self, source: Source, low: int, high: int) -> None:
        """A source that was forgotten is back. Nothing up to `low` is owed, and nothing above
        `high` was handed over; what lies between counts as lost.
        """
        ...

    def extend_deadlines(self) -> None:
        """This process was held up: that there is no answer yet is nobody's fault."""
        ...

    def tick(self, alive: Collection[Source]) -> None:
        """A second has passed: ask again for what is missing. `alive`: who was heard of lately."""
        ...

    def confirm(self, name: str) -> None:
        """The query is live at a peer that did not answer in time, or refused it."""
        ...

    def refuse(self, name: str, reason: str) -> None:
        """A peer does not serve the query: its events do not come until it confirms."""
        ...


class Witness(Protocol):
    """Who is told of peers."""

    def peer_joined(self, name: str, epoch: int) -> None:
        """A peer is linked: its queries are live here and ours there."""
        ...

    def peer_left(self, name: str, epoch: int, last: int, reason: str) -> None:
        """A peer is gone; it was heard of up to its seq `last`."""
        ...

    def stale(self, name: str, epoch: int, last: int) -> None:
        """A peer has been silent for seconds."""
        ...

    def fresh(self, name: str, epoch: int, last: int, silent: float) -> None:
        """A peer that was announced as stale is heard again, after `silent` seconds."""
        ...

    def unreached(self, places: Collection[str]) -> None:
        """Which meeting places do not answer has changed; with none the bus is not alone."""
        ...

    def trouble(self, topic: str, text: str) -> None:
        """Something is wrong that a user should read of; at most one line a second per `topic`."""
        ...

    def fail(self, error: BusError) -> None:
        """The bus cannot go on: it ends, and raises `error`."""
        ...


@runtime_checkable
class Transport(Protocol):
    """What a bus asks of its adapter. Each wait is bounded by its `timeout` in seconds, and
    cancelling leaves nothing half-done.
    """

    @property
    def peers(self) -> Sequence[PeerStats]:
        """The buses that are linked now, by name."""
        ...

    @property
    def unreached(self) -> Collection[str]:
        """Meeting places that do not answer: there may be buses that this one has not met."""
        ...

    @property
    def refused(self) -> int:
        """Messages and queries that were not of the protocol."""
        ...

    async def start(self, publisher: Publisher, witness: Witness) -> None:
        """Join; return when every other bus has this one's queries and this one has theirs. Raises
        NameInUse.
        """
        ...

    async def subscribe(self, inlet: Inlet, timeout: float) -> Collection[str]:
        """Ask every other bus for the query of `inlet`, and where in its past that begins; return
        the names of those that did not confirm, and what is `unreached`. `inlet.refuse` is called
        for those that refuse.
        """
        ...

    def unsubscribe(self, inlet: Inlet) -> None:
        """Withdraw it. No error when it was not subscribed."""
        ...

    def ask(self, inlet: Inlet, source: Source, want: Want, limit: int) -> bool:
        """Ask a source for the next page of what `inlet` misses, with at most `limit` events. The
        answer, if any, comes as `Inlet.turn`. True when it has to wait for its turn, and nobody can
        have answered yet.
        """
        ...

    def doubt(self, source: Source, error: ValueError) -> bool:
        """What `source` sent turned out to be wrong when it was opened: count it, say it, and ask
        the source where it is. Each inlet hears the answer, by `go_back` or `note_said`, or that
        the source leaves. False if it has left, and nobody can be asked.
        """
        ...

    async def flush(self, timeout: float) -> Collection[str]:
        """Wait until every subscribed bus has received all that was published; return the names of
        those that did not confirm, and what is `unreached`.
        """
        ...

    async def close(self, timeout: float) -> Collection[str]:
        """Leave: nothing stays open when this returns or is cancelled. Returns as `flush` does."""
        ...


class Local:
    """The transport of a bus that has no peers."""

    peers: Sequence[PeerStats] = ()
    unreached: Collection[str] = ()
    refused = 0

    async def start(self, publisher: Publisher, witness: Witness) -> None:
        """Nobody to join."""

    async def subscribe(self, inlet: Inlet, timeout: float) -> Collection[str]:
        """Nobody to ask."""
        return ()

    def unsubscribe(self, inlet: Inlet) -> None:
        """Nobody to tell."""

    def ask(self, inlet: Inlet, source: Source, want: Want, limit: int) -> bool:
        """Nobody to ask."""
        return False

    def doubt(self, source: Source, error: ValueError) -> bool:
        """Nobody to ask."""
        return False

    async def flush(self, timeout: float) -> Collection[str]:
        """Nobody to wait for."""
        return ()

    async def close(self, timeout: float) -> Collection[str]:
        """Nothing to close."""
        return ()
