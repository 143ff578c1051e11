"""Random sessions against an oracle: what was published arrives once, in order, or is reported.

Each seed makes a bus with small bounds, subscriptions of every kind and handlers of every pace. A
failing seed can be run again by its number.
"""

import asyncio
import random
from typing import Any

import pytest

from aiobus import AsyncEventBus, Event, Limits, QueueFull, Subscription

pytestmark = pytest.mark.usefixtures("no_task_is_left")

TYPES = [["A"], ["A", "B"], ["A", "B", "C"], ["*"]]
KEYS: list[Any] = [None, "x", ["x", "y"], "z*"]


class Listener:
    """One subscription, what it was to see and what it saw."""

    def __init__(self, rng: random.Random) -> None:
        self.types = rng.choice(TYPES)
        self.key = rng.choice(KEYS)
        self.modulus = rng.choice([1, 1, 2, 3])
        self.overflow = rng.choice(["catch_up", "catch_up", "block", "drop_oldest"])
        self.pace = rng.choice([0, 0.1, 0.6, 0.95])
        self.options: dict[str, Any] = {
            "key": self.key,
            "where": (lambda event: event.data % self.modulus == 0) if self.modulus > 1 else None,
            "maxsize": rng.choice([1, 2, 3, 8, 64]),
            "concurrency": rng.choice([1, 1, 3]),
            "overflow": self.overflow,
        }
        self.rng = rng
        self.seen: list[Event] = []
        self.subscription: Subscription

    async def join(self, bus: AsyncEventBus) -> None:
        self.start = bus.stats().published
        types = [*self.types, "aiobus.gap"]
        self.subscription = await bus.subscribe(types, self.handle, **self.options)

    async def handle(self, event: Event) -> None:
        self.seen.append(event)
        if self.rng.random() < self.pace:
            for _ in range(self.rng.randint(1, 12)):
                await asyncio.sleep(0)

    def wants(self, event: Event) -> bool:
        keys = [self.key] if isinstance(self.key, str) else self.key
        return (
            event.seq > self.start
            and (self.types == ["*"] or event.type in self.types)
            and (keys is None or event.key in keys or (keys == ["z*"] and event.key[0] == "z"))
            and event.data % self.modulus == 0
        )

    def check(self, published: list[Event]) -> None:
        wanted = [event.seq for event in published if self.wants(event)]
        got = [event.seq for event in self.seen if event.type != "aiobus.gap"]
        gaps = [event.data for event in self.seen if event.type == "aiobus.gap"]
        stats = self.subscription.stats
        assert got == sorted(set(got)), "disordered or doubled"
        assert set(got) <= set(wanted), "not asked for"
        lost = set(wanted) - set(got)
        silent = [s for s in lost if not any(gap["after"] < s <= gap["upto"] for gap in gaps)]
        assert len(silent) == (stats.dropped if self.overflow == "drop_oldest" else 0)
        assert len(gaps) == stats.gaps
        assert (stats.handled, stats.pending, stats.behind) == (len(self.seen), 0, False)


async def session(seed: int) -> None:
    rng = random.Random(seed)
    limits = Limits(
        history_events=rng.choice([1, 2, 5, 20, 1000]),
        history_bytes=rng.choice([300, 2000, 1 << 24]),
        history_total_bytes=rng.choice([500, 3000, 1 << 26]),
    )
    published: list[Event] = []
    async with AsyncEventBus(limits=limits) as bus:
        listeners = [Listener(rng) for _ in range(rng.randint(1, 4))]
        for listener in listeners:
            await listener.join(bus)
        for _ in range(rng.randint(50, 300)):
            event = Event(
                rng.choice("AAABC"), rng.randint(0, 1000), key=rng.choice(["x", "y", "z1"])
            )
            try:
                bus.publish_nowait(event)
            except QueueFull:
                await bus.publish(event)
            published.append(event)
            if rng.random() < 0.02:
                listeners.append(Listener(rng))
                await listeners[-1].join(bus)
            if rng.random() < 0.1:
                for _ in range(rng.randint(0, 20)):
                    await asyncio.sleep(0)
        await bus.settle()
    for listener in listeners:
        listener.check(published)


@pytest.mark.parametrize("seed", range(25))
async def test_a_random_session_loses_nothing_in_silence(seed: int) -> None:
    await session(seed)
