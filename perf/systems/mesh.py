"""aiobus: two calls, whether between processes or in one."""

from collections.abc import Sequence

from aiobus import AsyncEventBus, Event
from perf.systems import Callback, Setup

__all__ = ["Event", "Side", "server"]


def server(setup: Setup) -> None:
    """There is none."""


class Side:
    """A bus with the limits that it has by default."""

    def __init__(self, setup: Setup) -> None:
        urls = {
            "ipc": f"ipc://{setup.folder}/desk",
            "tcp": f"tcp://127.0.0.1:{setup.ports[0]}",
            "inproc": "inproc://",
        }
        self._bus = AsyncEventBus(urls[setup.transport], name=setup.name)
        self.publish = self._bus.publish

    async def open(self, *, publishes: bool) -> None:
        """Start the bus."""
        await self._bus.start()

    async def subscribe(
        self, types: Sequence[str], keys: Sequence[str] | None, callback: Callback
    ) -> None:
        """Live at every peer on return."""
        await self._bus.subscribe(types, callback, key=keys)

    async def close(self) -> None:
        """Close the bus."""
        await self._bus.close(1.0)
