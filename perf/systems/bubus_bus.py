"""bubus in one process: pydantic events, each awaited, since the bus refuses more than 100 that are
not done.
"""

from collections.abc import Sequence

import bubus

from perf.envelope import Event, decode, encode
from perf.systems import Callback, Setup

__all__ = ["Event", "Side", "server"]


def server(setup: Setup) -> None:
    """There is none."""


class Payload(bubus.BaseEvent):  # type: ignore[misc]  # bubus is not type-checked
    """The event that is dispatched."""

    payload: bytes


class Side:
    """A bus with the settings that it has by default."""

    def __init__(self, setup: Setup) -> None:
        self._bus = bubus.EventBus()

    async def open(self, *, publishes: bool) -> None:
        """Nothing to do."""

    async def subscribe(
        self, types: Sequence[str], keys: Sequence[str] | None, callback: Callback
    ) -> None:
        """Register a handler; of one kind of event, which is enough here."""

        async def receive(event: Payload) -> None:
            await callback(decode(event.payload))

        self._bus.on(Payload, receive)

    async def publish(self, event: Event) -> None:
        """Dispatch it and wait until it is handled."""
        await self._bus.dispatch(Payload(payload=encode(event)))

    async def close(self) -> None:
        """Stop the bus."""
        await self._bus.stop(timeout=1.0)
