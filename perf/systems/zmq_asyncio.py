"""Code after the documentation of pyzmq: `zmq.asyncio`, one awaited call an event.

The queues are larger than the window, so that nothing is dropped; with the 1,000 of the default
much would be.
"""

import asyncio
from collections.abc import Sequence

import zmq
import zmq.asyncio

from perf.envelope import Event, decode, encode, topic
from perf.systems import Callback, Setup

__all__ = ["HIGH_WATER_MARK", "Event", "Side", "filters", "server"]

HIGH_WATER_MARK = 20_000


def server(setup: Setup) -> None:
    """There is none."""


def filters(types: Sequence[str], keys: Sequence[str] | None) -> list[bytes]:
    """The prefixes to subscribe to."""
    if keys is None:
        return [f"{type}.".encode() for type in types]
    return [topic(type, key).encode() for type in types for key in keys]


class Side:
    """A PUB that binds, or a SUB that connects to every publisher."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._context = zmq.asyncio.Context()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, *, publishes: bool) -> None:
        """Bind or connect."""
        self._socket = self._context.socket(zmq.PUB if publishes else zmq.SUB)
        self._socket.set_hwm(HIGH_WATER_MARK)
        if publishes:
            self._socket.bind(self._setup.endpoint(self._setup.index))
        else:
            for publisher in range(self._setup.publishers):
                self._socket.connect(self._setup.endpoint(publisher))

    async def subscribe(
        self, types: Sequence[str], keys: Sequence[str] | None, callback: Callback
    ) -> None:
        """Subscribe to prefixes. This is not confirmed."""
        for prefix in filters(types, keys):
            self._socket.subscribe(prefix)
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self._receive(callback)))

    async def _receive(self, callback: Callback) -> None:
        while True:
            _, payload = await self._socket.recv_multipart()
            await callback(decode(payload))

    async def publish(self, event: Event) -> None:
        """Send topic and payload."""
        await self._socket.send_multipart([topic(event.type, event.key).encode(), encode(event)])

    async def close(self) -> None:
        """Close the socket."""
        for task in self._tasks:
            task.cancel()
        self._context.destroy(linger=0)
