"""`inproc://`: one bus, one process, nobody else. No sockets and nothing to wait for.

Own events never pass through a transport (the publisher hands them straight to the inboxes), so
there is nothing to do here but to say that nobody is missing.
"""

from collections.abc import Collection, Sequence

from aiobus.history import Want
from aiobus.publisher import Publisher
from aiobus.rows import Source
from aiobus.stats import PeerStats
from aiobus.transport import Inlet, Witness

__all__ = ["Local"]


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
