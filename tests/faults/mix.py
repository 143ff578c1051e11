"""Faults at random, one after another, on a desk that lives on: what leaks shows with time.

Owns the choice of the next fault, and the samples of memory and descriptors. Must not judge what
was delivered: the oracle does, when the desk is closed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from faults.desk import Desk, Process

__all__ = ["OVER", "Mix", "Samples"]

OVER = "keys"
"""The transport: tcp with a keyring, which has the most that could leak."""

SAMPLE_SECONDS = 5.0
MIB = 1024 * 1024


@dataclass
class Samples:
    """One process over time: (seconds, resident bytes, open descriptors)."""

    taken: list[tuple[float, int, int]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it was looked at."""
        return self.taken[-1][0] - self.taken[0][0] if self.taken else 0.0

    def growth(self) -> float:
        """MiB per minute, by least squares over the second half: what is set up fills up first."""
        half = self.taken[len(self.taken) // 2 :]
        count = len(half)
        if count < 3:
            return 0.0
        mean = sum(each[0] for each in half) / count
        level = sum(each[1] for each in half) / count
        over = sum((each[0] - mean) * (each[1] - level) for each in half)
        return over / sum((each[0] - mean) ** 2 for each in half) * 60 / MIB


MOST_GROWTH = 2.0
"""MiB per minute of a process that stays: the bots themselves write down each event they handle."""
WARM_UP = 120.0
"""Seconds of the first half, at least, for growth in the second to be judged: in less, caches and
histories are still filling up.
"""
MOST_FILES = 8
"""Descriptors more at the end than at the beginning: of victims that are just being missed."""


class Mix:
    """A feed and a watcher that stay, and three victims, each of which publishes and listens."""

    def __init__(self, desk: Desk) -> None:
        self.samples: dict[str, Samples] = {}
        self.done: dict[str, int] = {}
        self._desk = desk
        self._joined = 0
        self._victims: list[Process] = []

    async def play(self, seconds: float) -> None:
        """Faults for so long; in the end nothing is published any more."""
        desk = self._desk
        self._feed, self._watcher = await desk.bots("feed", "watcher")
        await self._feed.do("hear", "V")
        await self._watcher.do("hear", ["T", "V"])
        await self._feed.do("load", 1_000)
        for number in range(3):
            self._victims.append(await self._victim(f"victim{number}"))
        sampling = asyncio.ensure_future(self._sample())
        faults: list[Callable[[], Awaitable[None]]] = [
            self._kill,
            self._freeze,
            self._slow,
            self._join,
            self._cancel,
            self._break,
            self._flood,
        ]
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                fault = desk.dice.choice(faults)
                name = fault.__name__.strip("_")
                self.done[name] = self.done.get(name, 0) + 1
                async with asyncio.timeout(60):
                    await fault()
                await desk.chance(0.5)
        finally:
            sampling.cancel()
        for each in (self._feed, *self._victims):
            await each.do("pause")

    async def _victim(self, name: str) -> Process:
        victim = await self._desk.bot(name)
        await victim.do("hear", ["T", "V"])
        await victim.do("load", 100, "V")
        return victim

    async def _sample(self) -> None:
        begin = time.monotonic()
        while True:
            for each in (self._feed, self._watcher):
                resident, descriptors = await each.do("sample")
                samples = self.samples.setdefault(each.name, Samples())
                samples.taken.append((time.monotonic() - begin, resident, descriptors))
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _recovered(self, healed: float) -> None:
        """From a fault that has ended: all have what the feed has published."""
        await self._desk.recovered(healed, [self._feed], [self._watcher, *self._victims])
        await self._feed.do("load", 1_000)

    def check(self) -> None:
        """Raise AssertionError where a process that stays goes on growing, if it could be seen."""
        for name, samples in self.samples.items():
            files = [each[2] for each in samples.taken]
            growth = samples.growth() if samples.seconds >= 2 * WARM_UP else 0.0
            assert growth <= MOST_GROWTH, f"{name} grows by {growth:.2f} MiB a minute"
            assert files[-1] <= files[0] + MOST_FILES, f"{name} keeps {files[-1]} descriptors"

    async def _kill(self) -> None:
        victim = self._victims.pop(self._desk.dice.randrange(3))
        await victim.kill()
        await self._desk.chance(1.0)
        self._victims.append(await self._victim(victim.name))
        await self._feed.do("burst", 1)
        await self._recovered(time.monotonic())

    async def _freeze(self) -> None:
        victim = self._desk.dice.choice(self._victims)
        await victim.freeze()
        await self._desk.chance(6.0)
        await self._recovered(victim.thaw())

    async def _slow(self) -> None:
        victim = self._desk.dice.choice(self._victims)
        await victim.do("slow_down", 0.01)
        await self._desk.chance(3.0)
        await victim.do("slow_down", 0)
        await self._recovered(time.monotonic())

    async def _join(self) -> None:
        self._joined += 1
        joiner = await self._desk.bot(f"joiner{self._joined}")
        await joiner.do("hear")
        await self._feed.do("burst", 1)
        place = await self._feed.do("pause")
        await joiner.do("until", *place)
        await self._feed.do("load", 1_000)
        await self._desk.leave(joiner)

    async def _cancel(self) -> None:
        left = await self._watcher.run("faults.storm", "blow", self._desk.dice.randrange(10**6), 50)
        assert not left, f"left behind: {left}"

    async def _break(self) -> None:
        victim = self._desk.dice.choice(self._victims)
        await victim.do("relink")
        await self._recovered(time.monotonic())

    async def _flood(self) -> None:
        await self._feed.do("bursts", 10, 500)
        await self._recovered(time.monotonic())
