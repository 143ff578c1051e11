"""The seam between a bus and whatever carries its events to other buses, and the transport of a
bus without peers.

An adapter attaches a `Stream` to the publisher for each query that others ask for, hands what it
receives to the `CatchUp` of each subscription, and reports to `Diagnostics` who comes and goes. It
must not know of callbacks, handlers or tasks of the user.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

from aiobus.catchup import CatchUp, PageSource
from aiobus.diagnostics import Diagnostics
from aiobus.history import Want
from aiobus.presence import Peer
from aiobus.publisher import Publisher, Route
from aiobus.query import Query
from aiobus.rows import Source

__all__ = ["Local", "Standing", "Transport"]


class Standing(NamedTuple):
    """How far a reader has confirmed the events of one type, and how often it has shown that it
    reads.
    """

    seq: int
    moves: int


@runtime_checkable
class Transport(PageSource, Protocol):
    """What a bus asks of its adapter. Each wait is bounded by its `timeout` in seconds, and
    cancelling leaves nothing half-done.
    """

    @property
    def is_alone(self) -> bool:
        """True if there cannot be other buses: this one stands for each name."""
        ...

    @property
    def peers(self) -> Sequence[Peer]:
        """The buses that are linked now, by name."""
        ...

    async def until_peer(self, name: str, query: Query | None) -> Peer:
        """Wait, for ever if need be, until another bus of this name is linked and each event of
        `query` that is published from then on is owed to it; return it. Raises BusClosed. Not
        called if `is_alone`.
        """
        ...

    @property
    def unmet(self) -> Collection[str]:
        """Names of buses that are known to be there, and have not answered."""
        ...

    @property
    def refusing(self) -> Mapping[str, str]:
        """Why buses that are known to be there are not linked because of keys, by name."""
        ...

    @property
    def unreached(self) -> Collection[str]:
        """Meeting places that do not answer: there may be buses that this one has not met."""
        ...

    @property
    def refused(self) -> int:
        """Messages and queries that were not of the protocol."""
        ...

    @property
    def has_keeper(self) -> bool:
        """True if a keeper is there, or may be: `since="last"` asks it first."""
        ...

    async def start(self, publisher: Publisher, reports: Diagnostics) -> None:
        """Join; return when every other bus has this one's queries and this one has theirs. Raises
        NameInUse.
        """
        ...

    async def subscribe(self, catchup: CatchUp, timeout: float) -> Collection[str]:
        """Ask every other bus for the query of `catchup`, and where in its past that begins; return
        the names of those that did not confirm, and what is `unreached`. `catchup.refuse` is called
        for those that refuse.
        """
        ...

    def unsubscribe(self, catchup: CatchUp) -> None:
        """Withdraw it. No error when it was not subscribed."""
        ...

    async def flush(self, timeout: float) -> Collection[str]:
        """Wait until every subscribed bus has received all that was published; return the names of
        those that did not confirm, and what is `unreached`.
        """
        ...

    def listeners(self, route: Route, to: str = "") -> Collection[Source] | None:
        """The linked peers, without observers, that have subscribed to the type of `route` by name;
        None if there are some that are not known. With `to`: the peer of that name alone, if it
        takes the key of `route` as well.
        """
        ...

    def why_deaf(self, name: str) -> str:
        """Why the peer `name` answers no request, and what to do; "" if it could."""
        ...

    def standings(self, type: str) -> Mapping[Source, Standing]:
        """The peers that have not left, where any of them listens to events of `type`. It lowers
        `history.safe` where a peer goes back, and wakes `room` when one has moved.
        """
        ...

    def mark(self, type: str, upto: int, waiting: Collection[str] | None) -> None:
        """Ask those peers to confirm the events of `type` up to a seq. `waiting`: the buses whose
        handlers cannot go on before; None if nothing waits yet.
        """
        ...

    def held(self) -> Iterable[tuple[CatchUp, Collection[str]]]:
        """Whose cursors have not passed what another bus waits for, and the buses whose handlers
        wait with it.
        """
        ...

    async def close(self, timeout: float) -> Collection[str]:
        """Leave: nothing stays open when this returns or is cancelled. Returns as `flush` does."""
        ...


class Local:
    """The transport of a bus that has no peers."""

    unmet: Collection[str] = ()
    refusing: Mapping[str, str] = MappingProxyType({})
    unreached: Collection[str] = ()
    refused = 0
    has_keeper = False
    is_alone = True

    @property
    def peers(self) -> Sequence[Peer]:
        """There is no other bus."""
        return ()

    async def until_peer(self, name: str, query: Query | None) -> Peer:
        """There is no other bus."""
        raise NotImplementedError("no other bus will come")

    async def start(self, publisher: Publisher, reports: Diagnostics) -> None:
        """There is no other bus to join."""

    async def subscribe(self, catchup: CatchUp, timeout: float) -> Collection[str]:
        """There is no other bus to ask."""
        return ()

    def unsubscribe(self, catchup: CatchUp) -> None:
        """There is no other bus to tell."""

    def ask(self, catchup: CatchUp, source: Source, want: Want, limit: int) -> bool:
        """There is no other bus to ask."""
        return False

    def doubt(self, source: Source, error: ValueError) -> bool:
        """There is no other bus to ask."""
        return False

    def listeners(self, route: Route, to: str = "") -> Collection[Source] | None:
        """There is no other bus."""
        return ()

    def why_deaf(self, name: str) -> str:
        """There is no other bus."""
        return ""

    def standings(self, type: str) -> Mapping[Source, Standing]:
        """There is no other bus."""
        return {}

    def mark(self, type: str, upto: int, waiting: Collection[str] | None) -> None:
        """There is no other bus to ask."""

    def held(self) -> Iterable[tuple[CatchUp, Collection[str]]]:
        """There is no other bus that waits."""
        return ()

    async def flush(self, timeout: float) -> Collection[str]:
        """There is no other bus to wait for."""
        return ()

    async def close(self, timeout: float) -> Collection[str]:
        """Nothing to close."""
        return ()
