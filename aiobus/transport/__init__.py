"""The seam between a bus and whatever carries its events to other buses.

Owns the one Protocol an adapter implements. An adapter attaches an `Outlet` to the publisher for
each query that others ask for; what it receives it hands to subscriptions. It must not know of
callbacks, handlers or tasks of the user.
"""

from collections.abc import Collection
from typing import Protocol

from aiobus.pattern import Query
from aiobus.publisher import Publisher

__all__ = ["Transport"]


class Transport(Protocol):
    """What a bus asks of its adapter. Each wait is bounded by its `timeout` in seconds, and
    cancelling leaves nothing half-done.
    """

    async def start(self, publisher: Publisher) -> None:
        """Join; return when every other bus has this one's queries and this one has theirs. Raises
        NameInUse.
        """
        ...

    async def subscribe(self, query: Query, timeout: float) -> Collection[str]:
        """Ask every other bus for `query`; return the names of those that did not confirm."""
        ...

    def unsubscribe(self, query: Query) -> None:
        """Withdraw one `subscribe` of `query`."""
        ...

    async def flush(self, timeout: float) -> Collection[str]:
        """Wait until every subscribed bus has received all that was published; return the names of
        those that did not confirm.
        """
        ...

    async def close(self, timeout: float) -> Collection[str]:
        """Leave: nothing stays open when this returns or is cancelled. Returns as `flush` does."""
        ...
