"""No system at all: one process builds and encodes events, another decodes, builds and awaits.

Nothing that uses this codec in two processes can be faster than the slower of the two.
"""

from collections.abc import Sequence
from itertools import islice

from perf.envelope import Event, decode, encode
from perf.systems import Callback, Setup
from perf.trades import trades

__all__ = ["Event", "Side", "server"]

PAYLOADS = 2_000


def server(setup: Setup) -> None:
    """There is none."""


class Side:
    """Encodes what it is given, or hands over what it has encoded before."""

    def __init__(self, setup: Setup) -> None:
        pass

    async def open(self, *, publishes: bool) -> None:
        """Nothing to do."""

    async def subscribe(
        self, types: Sequence[str], keys: Sequence[str] | None, callback: Callback
    ) -> None:
        """Have payloads ready for `hand_over`."""
        events = islice(trades(types, keys or ["SYM0000"]), PAYLOADS)
        self.payloads = [encode(event) for event in events]
        self._callback = callback

    async def publish(self, event: Event) -> None:
        """Encode it, and forget it."""
        encode(event)

    async def hand_over(self, payload: bytes) -> None:
        """Decode a payload, as a subscriber does."""
        await self._callback(decode(payload))

    async def close(self) -> None:
        """Nothing to do."""
