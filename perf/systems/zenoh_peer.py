"""eclipse-zenoh, peer to peer, without scouting: its Rust core does the work in threads of its own.

It has no asyncio interface. What its thread receives goes to the loop in a deque, and the loop is
woken once for all that is in it, which is the quickest way there is.
"""

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from typing import Any

import zenoh

from perf.envelope import Event, decode, encode
from perf.systems import Callback, Setup

__all__ = ["Event", "Side", "server"]


def server(setup: Setup) -> None:
    """There is none."""


class Side:
    """A session that listens when it publishes, and connects to every publisher otherwise."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._publishers: dict[tuple[str, str], Any] = {}
        self._subscribers: list[Any] = []
        self._received: deque[bytes] = deque()
        self._is_awake = False
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, *, publishes: bool) -> None:
        """Open a session."""
        setup = self._setup
        config = zenoh.Config()
        config.insert_json5("mode", '"peer"')
        config.insert_json5("scouting/multicast/enabled", "false")
        config.insert_json5("scouting/gossip/enabled", "false")
        mine = [self._endpoint(setup.index)] if publishes else []
        others = [] if publishes else [self._endpoint(each) for each in range(setup.publishers)]
        config.insert_json5("listen/endpoints", json.dumps(mine))
        config.insert_json5("connect/endpoints", json.dumps(others))
        self._loop = asyncio.get_running_loop()
        self._session = zenoh.open(config)

    def _endpoint(self, publisher: int) -> str:
        return f"tcp/127.0.0.1:{self._setup.ports[publisher]}"

    async def subscribe(
        self, types: Sequence[str], keys: Sequence[str] | None, callback: Callback
    ) -> None:
        """Declare subscribers. This is not confirmed."""
        for type in types:
            for key in keys or ["**"]:
                declared = self._session.declare_subscriber(f"{type}/{key}", self._on_sample)
                self._subscribers.append(declared)
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self._receive(callback)))

    def _on_sample(self, sample: Any) -> None:
        """Called in a thread of zenoh."""
        self._received.append(sample.payload.to_bytes())
        if not self._is_awake:
            self._is_awake = True
            self._loop.call_soon_threadsafe(self._wake.set)

    async def _receive(self, callback: Callback) -> None:
        received = self._received
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._is_awake = False
            while received:
                await callback(decode(received.popleft()))

    async def publish(self, event: Event) -> None:
        """Put it; nothing is dropped where its queue is full."""
        where = event.type, event.key
        publisher = self._publishers.get(where)
        if publisher is None:
            publisher = self._publishers[where] = self._session.declare_publisher(
                "/".join(where), congestion_control=zenoh.CongestionControl.BLOCK
            )
        publisher.put(encode(event))

    async def close(self) -> None:
        """Close the session."""
        for task in self._tasks:
            task.cancel()
        self._session.close()
