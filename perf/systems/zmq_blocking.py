"""Plain pyzmq without asyncio, one message an event: what the transport can do for Python.

The subscriber blocks its thread in `recv`, as a bot cannot; only when nothing came for a while does
its loop turn.
"""

import asyncio
from collections.abc import Sequence

import zmq

from perf.envelope import Event, decode, encode, topic
from perf.systems import Callback, Setup
from perf.systems.zmq_asyncio import HIGH_WATER_MARK, filters

__all__ = ["Event", "Side", "server"]

IDLE_MS = 50


def server(setup: Setup) -> None:
    """There is none."""


class Side:
    """A PUB that binds, or a SUB that connects to every publisher."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._context = zmq.Context()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, *, publishes: bool) -> None:
        """Bind or connect."""
        self._socket = self._context.socket(zmq.PUB if publishes else zmq.SUB)
        self._socket.set_hwm(HIGH_WATER_MARK)
        if publishes:
            self._socket.bind(self._setup.endpoint(self._setup.index))
        else:
            self._socket.rcvtimeo = IDLE_MS
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
        receive = self._socket.recv_multipart
        while True:
            try:
                while True:
                    _, payload = receive()
                    await callback(decode(payload))
            except zmq.Again:
                await asyncio.sleep(0.001)

    async def publish(self, event: Event) -> None:
        """Send topic and payload."""
        self._socket.send_multipart([topic(event.type, event.key).encode(), encode(event)])

    async def close(self) -> None:
        """Close the socket."""
        for task in self._tasks:
            task.cancel()
        self._context.destroy(linger=0)
