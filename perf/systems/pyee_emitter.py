"""pyee in one process: `AsyncIOEventEmitter`, a task for each event and receiver."""

from collections.abc import Sequence

from pyee.asyncio import AsyncIOEventEmitter

from perf.envelope import Event, decode, encode
from perf.systems import Callback, Setup

__all__ = ["Event", "Side", "server"]


def server(setup: Setup) -> None:
    """There is none."""


class Side:
    """An emitter. `emit` returns when the tasks are made."""

    def __init__(self, setup: Setup) -> None:
        self._emitter = AsyncIOEventEmitter()

    async def open(self, *, publishes: bool) -> None:
        """Nothing to do."""

    async def subscribe(
        self, types: Sequence[str], keys: Sequence[str] | None, callback: Callback
    ) -> None:
        """Register a receiver for each type."""

        async def receive(payload: bytes) -> None:
            await callback(decode(payload))

        for type in types:
            self._emitter.on(type, receive)

    async def publish(self, event: Event) -> None:
        """Make a task for each receiver."""
        self._emitter.emit(event.type, encode(event))

    async def close(self) -> None:
        """Nothing to do."""
