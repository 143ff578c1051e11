"""What the processes of a scenario do: publish at a pace, handle, and write both down.

Owns a bus with its ledger. It runs in actors; must not know which fault is coming, nor judge
anything: the oracle does, from what is written here.
"""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from aiobus import AsyncEventBus, Event
from faults.ledger import Ledger

__all__ = ["Bot"]

TICK = 0.01
"""Seconds between bursts: 20,000 events/s are 200 at a time."""
GAP = "aiobus.gap"
POLICY = ("overflow", "max_age", "since")
"""Keywords of `subscribe` that change what is owed."""


class Bot:
    """A bus whose every publication, delivery and gap is in its ledger."""

    def __init__(self, path: str) -> None:
        self._ledger = Ledger(path)
        self._subscriptions: dict[str, Any] = {}
        self._places: dict[tuple[str, str, int], int] = {}
        """How far each subscription has come in each source: handled, or told that it is lost."""
        self._moved = asyncio.Condition()
        self._awaiting = 0
        self._load: asyncio.Task[None] | None = None
        self._number = 0
        self._last = 0
        self.handled = 0

    async def start(self, url: str, name: str, **keywords: Any) -> AsyncEventBus:
        before = time.monotonic()
        self.bus = AsyncEventBus(url, name=name, **keywords)
        await self.bus.start()
        self.source = (name, self.bus.stats().epoch)
        self._ledger.started(*self.source, before)
        return self.bus

    # Publishing.

    def burst(self, count: int, type: str = "T", keys: int = 1, size: int = 0) -> int:
        """Publish that many events at once; return the last seq. Their numbers tell them apart."""
        begun = time.monotonic()
        try:
            for _ in range(count):
                self._number += 1
                data = {"number": self._number, "text": "x" * size}
                key = f"K{self._number % keys}"
                event = self.bus.publish_nowait(Event(type, data, key=key))
                self._ledger.publishes(event)
                self._last = event.seq
        finally:
            self._ledger.end_burst(*self.source, begun)
        return self._last

    def load(self, pace: float, type: str = "T", keys: int = 1, size: int = 0) -> None:
        """Publish at that pace from now on, in a task of its own."""
        self._load = asyncio.create_task(self._publish(pace, type, keys, size))

    async def _publish(self, pace: float, type: str, keys: int, size: int) -> None:
        owed, then = 0.0, time.monotonic()
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            # After a freeze it goes on at its pace: what it could not publish is not made up for.
            owed += pace * min(now - then, 5 * TICK)
            then = now
            if owed >= 1:
                self.burst(int(owed), type, keys, size)
                owed -= int(owed)

    async def pause(self) -> list[Any]:
        """Let the load rest; return the source, and the last seq that was published."""
        if self._load is not None:
            self._load.cancel()
            await asyncio.wait([self._load])
            self._load = None
        return [*self.source, self._last]

    # Handling.

    async def hear(
        self,
        types: str | list[str] = "T",
        label: str = "all",
        seconds: float = 0.0,
        **keywords: Any,
    ) -> None:
        """Subscribe; each event takes so many seconds to handle."""
        asked = [types] if isinstance(types, str) else list(types)

        async def on_event(event: Event) -> None:
            if event.type == GAP:
                self._ledger.gap(label, event.data)
                place = (event.data["source"], event.data["epoch"], event.data["upto"])
            else:
                self._ledger.handles(label, event)
                self.handled += 1
                place = (event.source, event.epoch, event.seq)
            self._places[label, *place[:2]] = place[2]
            if self._awaiting:
                async with self._moved:
                    self._moved.notify_all()
            if seconds:
                await asyncio.sleep(seconds)

        keys = keywords.get("key")
        policy = {name: keywords[name] for name in POLICY if name in keywords}
        self._ledger.subscribes(label, [asked, [keys] if isinstance(keys, str) else keys], **policy)
        subscription = await self.bus.subscribe([*asked, GAP], on_event, **keywords)
        self._subscriptions[label] = subscription
        self._ledger.subscribed(label, subscription)

    async def until_handled(self, count: int) -> None:
        """Wait until that many events were handled, by all subscriptions together."""
        await self._until(lambda: self.handled >= count)

    async def until(self, source: str, epoch: int, seq: int, label: str = "all") -> float:
        """Wait until a subscription has everything of a source up to `seq`, or was told that it is
        lost; return when that was.
        """
        await self._until(lambda: self._places.get((label, source, epoch), 0) >= seq)
        return time.monotonic()

    async def _until(self, condition: Callable[[], bool]) -> None:
        self._awaiting += 1
        try:
            async with self._moved:
                await self._moved.wait_for(condition)
        finally:
            self._awaiting -= 1

    async def drop(self, label: str) -> None:
        """End a subscription."""
        await self._subscriptions.pop(label).unsubscribe()

    # The end.

    async def flush(self) -> list[str]:
        """Publish no more and wait until the others have everything; return who does not."""
        await self.pause()
        missing = await self.bus.flush()
        self._ledger.ended(*self.source, self.bus.stats().published)
        return missing

    async def complete(self) -> None:
        """All others have flushed: handle what is here, and say that this is all."""
        await self.bus.settle()
        for label, subscription in self._subscriptions.items():
            self._ledger.complete(label, subscription)

    async def close(self) -> list[str]:
        """Leave the bus."""
        missing = await self.bus.close()
        self._ledger.close()
        return missing

    # What it costs.

    def sample(self) -> list[int]:
        """Resident bytes, and open descriptors."""
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        return [pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))]
