"""What the processes of a scenario do: publish at a pace, handle, and write both down.

Owns a bus with its ledger. It runs in actors; must not know which fault is coming, nor judge
anything: the oracle does, from what is written here.
"""

import asyncio
import os
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any

from aiobus import AsyncEventBus, Event
from aiobus.mesh.peers import GRACE
from faults.ledger import Ledger

__all__ = ["GAP", "GUEST", "Bot"]

Handler = Callable[[Event], Awaitable[object]]

TICK = 0.01
"""Seconds between bursts: 20,000 events/s are 200 at a time."""
GAP = "aiobus.gap"
GUEST = "guest-"
"""How the names begin of buses that come and go within a round: a bus that flushes then may name
one, whose link was gone before it could confirm.
"""
POLICY = ("overflow", "max_age", "since")
"""Keywords of `subscribe` that change what is owed."""


ODD = 'é"\\\u2028\U0001f4c8'


def usual_size(number: int) -> int:
    """Characters of text in an event: few and varied, now and then more than is decoded at once."""
    return 20_000 if number % 1_000 == 0 else number % 97


class Bot:
    """A bus whose every publication, delivery and gap is in its ledger."""

    def __init__(self, path: str) -> None:
        self.ledger = Ledger(path)
        self._subscriptions: dict[str, Any] = {}
        self._places: dict[tuple[str, str, int], int] = {}
        """How far each subscription has come in each source: handled, or told that it is lost."""
        self._moved = asyncio.Condition()
        self._awaiting = 0
        self._loads: list[asyncio.Task[None]] = []
        self._number = 0
        self._last = 0
        self._seqs: deque[int] = deque(maxlen=10_000)
        self._seconds = 0.0
        self._seq = self._before_gap = 0
        self._handled_of: Counter[str] = Counter()
        self._published_of: Counter[str] = Counter()
        self._gaps: list[list[Any]] = []
        self._timestamps: deque[float] = deque(maxlen=10_000)
        self.handled = 0

    async def start(self, url: str, name: str, **keywords: Any) -> AsyncEventBus:
        """Make a bus and start it."""
        return await self.open(AsyncEventBus(url, name=name, **keywords))

    async def open(self, bus: AsyncEventBus) -> AsyncEventBus:
        """Start a bus that was made elsewhere."""
        before = time.monotonic()
        await bus.start()
        self.adopt(bus, before)
        await bus.subscribe("aiobus.peer_left", lambda event: self.ledger.left(event.data))
        return bus

    def adopt(self, bus: AsyncEventBus, before: float) -> None:
        """Take a bus that has started, after the time `before`."""
        self.bus = bus
        self.source = (bus.name, bus.stats().epoch)
        self.ledger.started(*self.source, before)

    # Publishing.

    def burst(self, count: int, type: str = "T", keys: int = 1, size: int = 0) -> int:
        """Publish that many events at once; return the last seq. Their numbers tell them apart."""
        begun = time.monotonic()
        try:
            for _ in range(count):
                self._number += 1
                data = {"number": self._number, "text": "x" * (size or usual_size(self._number))}
                if self._number % 16 == 0:
                    data |= {
                        "price": self._number / 7,
                        "note": ['é"\\\u2028\U0001f4c8', None, [True, {}]],
                    }
                key = f"K{self._number % keys}"
                event = self.bus.publish_nowait(Event(type, data, key=key))
                self.ledger.publishes(event)
                self._last = event.seq
                self._seqs.append(event.seq)
        finally:
            self.ledger.end_burst(*self.source, begun)
        self._published_of[type] += count
        return self._last

    async def bursts(self, count: int, size: int, type: str = "T", keys: int = 1) -> int:
        """Publish that many bursts, as fast as the loop turns; return the last seq."""
        for _ in range(count):
            self.burst(size, type, keys)
            await asyncio.sleep(0)
        return self._last

    def load(self, pace: float, type: str = "T", keys: int = 1, size: int = 0) -> None:
        """Publish at that pace from now on, in a task of its own."""
        self._loads.append(asyncio.create_task(self._publish(pace, type, keys, size)))

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

    def stop(self) -> list[asyncio.Task[None]]:
        """Publish no more load; returns what ends by that."""
        loads, self._loads = self._loads, []
        for load in loads:
            load.cancel()
        return loads

    async def pause(self) -> list[Any]:
        """Let all load rest; return the source, and the last seq that was published."""
        await asyncio.gather(*self.stop(), return_exceptions=True)
        return [*self.source, self._last]

    async def publish(self, type: str = "T") -> None:
        """Publish one event, waiting as `publish` does; it is written down if it got a number,
        however the waiting ends.
        """
        begun = time.monotonic()
        self._number += 1
        event = Event(type, {"number": self._number})
        try:
            await self.bus.publish(event)
        finally:
            if event.seq:
                self._last = event.seq
                self.ledger.publishes(event)
                self.ledger.end_burst(*self.source, begun)

    # Handling.

    async def hear(
        self,
        types: str | list[str] = "T",
        label: str = "all",
        **keywords: Any,
    ) -> None:
        """Subscribe."""
        asked = [types] if isinstance(types, str) else list(types)

        async def on_event(event: Event) -> None:
            await self.handle(label, event)

        await self._subscribe(label, asked, on_event, keywords)

    async def handle(self, label: str, event: Event) -> None:
        """Write down what a subscription or a stream was given."""
        if event.type == GAP:
            self.ledger.gap(label, event.data)
            self._gaps.append([label, event.data["after"], event.data["upto"]])
            self._before_gap = self._seq
            place = (event.data["source"], event.data["epoch"], event.data["upto"])
        else:
            self.ledger.handles(label, event)
            self.handled += 1
            self._seq = event.seq
            self._handled_of[event.type] += 1
            self._timestamps.append(event.timestamp)
            place = (event.source, event.epoch, event.seq)
        where = (label, *place[:2])
        self._places[where] = max(self._places.get(where, 0), place[2])  # `latest` mixes keys
        if self._awaiting:
            async with self._moved:
                self._moved.notify_all()
        if self._seconds:
            await asyncio.sleep(self._seconds)

    async def _subscribe(
        self, label: str, asked: list[str], on_event: Handler, keywords: dict[str, Any]
    ) -> None:
        keys = keywords.get("key")
        policy = {name: keywords[name] for name in POLICY if name in keywords}
        self.ledger.subscribes(label, [asked, [keys] if isinstance(keys, str) else keys], **policy)
        subscription = await self.bus.subscribe([*asked, GAP], on_event, **keywords)
        self._subscriptions[label] = subscription
        self.ledger.subscribed(label, subscription)

    async def hear_each(self, keys: int) -> None:
        """A subscription for each of so many keys."""
        names = [f"K{number}" for number in range(keys)]
        for some in range(0, keys, 500):
            hears = [self.hear("T", name, key=name) for name in names[some : some + 500]]
            await asyncio.gather(*hears)

    def relink(self) -> None:
        """Break the links to all others, and make them again: what was under way is lost."""
        network = self.bus._transport.network
        for peer in list(self.bus._transport.session.links):
            network.disconnect(peer.endpoint)
            network.connect(peer.endpoint, peer.name)

    def slow_down(self, seconds: float) -> None:
        """From now on each event takes that long to handle."""
        self._seconds = seconds

    def block(self, seconds: float) -> None:
        """Hold up the loop, as a handler does that computes."""
        time.sleep(seconds)

    def gaps(self) -> list[list[Any]]:
        """Those reported so far: of which subscription, after what, up to what."""
        return self._gaps

    def handled_before_gap(self) -> int:
        """The seq of the last event before the last gap."""
        return self._before_gap

    def handled_of(self, type: str) -> int:
        """How many events of a type were handled, by all subscriptions together."""
        return self._handled_of[type]

    def published_of(self, type: str) -> int:
        """How many events of a type were published."""
        return self._published_of[type]

    def seq_from_end(self, count: int) -> int:
        """The seq of the burst event that so many were published after."""
        return self._seqs[-1 - count]

    async def oldest_kept(self) -> int:
        """The seq of the oldest event of the bursts that this bus still has."""
        async with self.bus.stream("T", since=0.0) as events:
            return (await anext(events)).seq

    def handled_between(self, begin: float, end: float) -> int:
        """How many of the last 10,000 events handled were made between these Unix times."""
        return sum(begin < each < end for each in self._timestamps)

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
        missing = await self.confirm()
        self.end()
        return missing

    async def confirm(self) -> list[str]:
        """Wait until the others have everything so far; return who does not."""
        return await self.bus.flush(20)

    def end(self) -> None:
        """Nothing more will be published."""
        self.ledger.ended(*self.source, self.bus.stats().published)

    async def complete(self) -> None:
        """All others have flushed: handle what is here, and say that this is all. What is missing
        of one that was killed is said once it counts as having left.
        """
        await self.bus.settle(GRACE + 5)
        for label, subscription in self._subscriptions.items():
            self.ledger.complete(label, subscription)

    async def close(self) -> list[str]:
        """Leave the bus."""
        missing = await self.bus.close()
        self.ledger.close()
        return missing

    # What it costs.

    def sample(self) -> list[int]:
        """Resident bytes, and open descriptors."""
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        return [pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))]
