"""`inproc://`: one bus, one process, nobody else. No sockets and nothing to wait for.

Own events never pass through a transport (the publisher hands them straight to the inboxes), so
there is nothing to do here but to say that nobody is missing.
"""

from collections.abc import Collection

from aiobus.pattern import Query
from aiobus.publisher import Publisher

__all__ = ["Local"]


class Local:
    """The transport of a bus that has no peers."""

    async def start(self, publisher: Publisher) -> None:
        """Nobody to join."""

    async def subscribe(self, query: Query, timeout: float) -> Collection[str]:
        """Nobody to ask."""
        return ()

    def unsubscribe(self, query: Query) -> None:
        """Nobody to tell."""

    async def flush(self, timeout: float) -> Collection[str]:
        """Nobody to wait for."""
        return ()

    async def close(self, timeout: float) -> Collection[str]:
        """Nothing to close."""
        return ()
