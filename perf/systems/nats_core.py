"""nats-py with a nats-server: core NATS, a subject for each type and key."""

from collections.abc import Sequence
from typing import Any

import nats

from perf.envelope import Event, decode, encode, topic
from perf.systems import Callback, Setup, program

__all__ = ["Event", "Side", "server"]


def server(setup: Setup) -> list[str]:
    """nats-server, by default settings but for its address."""
    binary = program("nats-server")
    assert binary is not None
    return [binary, "--addr", "127.0.0.1", "--port", str(setup.ports[0])]


class Side:
    """A client."""

    def __init__(self, setup: Setup) -> None:
        self._url = f"nats://127.0.0.1:{setup.ports[0]}"

    async def open(self, *, publishes: bool) -> None:
        """Connect."""
        self._client = await nats.connect(self._url)

    async def subscribe(
        self, types: Sequence[str], keys: Sequence[str] | None, callback: Callback
    ) -> None:
        """Live at the server on return."""

        async def on_message(message: Any) -> None:
            await callback(decode(message.data))

        for type in types:
            for key in keys or [">"]:
                await self._client.subscribe(topic(type, key), cb=on_message)
        await self._client.flush()

    async def publish(self, event: Event) -> None:
        """Put it into the client's buffer, which a task of the client sends."""
        await self._client.publish(topic(event.type, event.key), encode(event))

    async def close(self) -> None:
        """Disconnect."""
        await self._client.close()
