"""blinker in one process without a codec: every receiver gets the same object, which none may
change.
"""

from collections.abc import Sequence

import blinker

from perf.envelope import Event
from perf.systems import Callback, Setup

__all__ = ["Event", "Side", "server"]


def server(setup: Setup) -> None:
    """There is none."""


class Side:
    """A signal for each type. `send_async` returns when every receiver has."""

    def __init__(self, setup: Setup) -> None:
        self._signals = blinker.Namespace()

    async def open(self, *, publishes: bool) -> None:
        """Nothing to do."""

    async def subscribe(
        self, types: Sequence[str], keys: Sequence[str] | None, callback: Callback
    ) -> None:
        """Connect a receiver to each type."""

        async def receive(sender: object, event: Event) -> None:
            await callback(event)

        for type in types:
            self._signals.signal(type).connect(receive, weak=False)

    async def publish(self, event: Event) -> None:
        """Send it to all receivers, one after another."""
        await self._signals.signal(event.type).send_async(self, event=event)

    async def close(self) -> None:
        """Nothing to do."""
