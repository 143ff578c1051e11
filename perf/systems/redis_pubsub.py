"""redis-py with a redis-server: one awaited PUBLISH an event, and a client that listens."""

import asyncio
from collections.abc import Sequence
from typing import Any

import redis.asyncio

from perf.envelope import Event, decode, encode, topic
from perf.systems import Callback, Setup, program

__all__ = ["Event", "Side", "server"]


def server(setup: Setup) -> list[str]:
    """redis-server without files, at a port or a socket."""
    binary = program("redis-server")
    assert binary is not None
    command = [binary, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    command += ["--dir", setup.folder, "--port", str(setup.ports[0])]
    return [*command, "--unixsocket", _socket(setup)]


def _socket(setup: Setup) -> str:
    return f"{setup.folder}/redis.sock"


class Side:
    """A client: over the socket, which is the faster, or over TCP."""

    def __init__(self, setup: Setup) -> None:
        if setup.transport == "tcp":
            where: dict[str, Any] = {"host": "127.0.0.1", "port": setup.ports[0]}
        else:
            where = {"unix_socket_path": _socket(setup)}
        # One publisher needs no pool, of which each call would take a connection and give it back.
        self._client = redis.asyncio.Redis(single_connection_client=True, **where)
        self._heard: Any = None
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, *, publishes: bool) -> None:
        """Connect."""
        await self._client.ping()

    async def subscribe(
        self, types: Sequence[str], keys: Sequence[str] | None, callback: Callback
    ) -> None:
        """Subscribe to channels, or to patterns where all keys are asked for."""
        if self._heard is None:
            self._heard = self._client.pubsub(ignore_subscribe_messages=True)
        if keys is None:
            await self._heard.psubscribe(*(topic(type, "*") for type in types))
        else:
            await self._heard.subscribe(*(topic(type, key) for type in types for key in keys))
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self._listen(callback)))

    async def _listen(self, callback: Callback) -> None:
        async for message in self._heard.listen():
            await callback(decode(message["data"]))

    async def publish(self, event: Event) -> None:
        """Publish, and wait for the number of clients that got it."""
        await self._client.publish(topic(event.type, event.key), encode(event))

    async def close(self) -> None:
        """Disconnect."""
        for task in self._tasks:
            task.cancel()
        await self._client.aclose()
