"""`asyncio.Queue` in one process: one bounded queue and one task that takes from it."""

import asyncio
from collections.abc import Sequence

from perf.envelope import Event, decode, encode
from perf.systems import Callback, Setup

__all__ = ["Event", "Side", "server"]

MAXSIZE = 8_192
"""As an inbox of aiobus has."""


def server(setup: Setup) -> None:
    """There is none."""


class Side:
    """A queue of payloads."""

    def __init__(self, setup: Setup) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(MAXSIZE)
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, *, publishes: bool) -> None:
        """Nothing to do."""

    async def subscribe(
        self, types: Sequence[str], keys: Sequence[str] | None, callback: Callback
    ) -> None:
        """Start the task that takes."""
        self._tasks.append(asyncio.create_task(self._take(callback)))

    async def _take(self, callback: Callback) -> None:
        while True:
            await callback(decode(await self._queue.get()))

    async def publish(self, event: Event) -> None:
        """Wait for room, and put it in."""
        await self._queue.put(encode(event))

    async def close(self) -> None:
        """End the task."""
        for task in self._tasks:
            task.cancel()
