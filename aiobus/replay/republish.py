"""A recording for dashboards: published again, on a desk of its own.

Owns who may be there, and what is never published again.
"""

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress

import orjson

from aiobus.bus import AsyncEventBus
from aiobus.errors import BusError
from aiobus.event import Event, event_id
from aiobus.options import ACTED_ON, Keys, Types
from aiobus.query import bad_name
from aiobus.replay.selection import Reel, Selection

__all__ = ["republish"]

LOOK = 0.1
"""Seconds between two looks who is there."""
MEET_SECONDS = 5.0
FLUSH_SECONDS = 5.0


async def republish(
    path: str | os.PathLike[str],
    url: str,
    *,
    types: Types,
    to: str | Iterable[str] = ("dashboard",),
    sources: str | Iterable[str] | None = None,
    key: Keys = None,
    start: float | None = None,
    end: float | None = None,
    speed: float | None = 1.0,
    name: str = "replay",
) -> int:
    """Publish recorded events on `url`, an address (ipc or tcp) that no desk uses, for the buses
    that `to` names; return how many.

    Each is a new event of the bus `name`, with its recorded type, key, data and timestamp, and the
    id of the original as its cause. ORDER and CANCEL are never published: naming them raises
    ValueError, and `"*"` leaves them out. The other keywords are those of `Replay`; `speed`: times
    real time, None: as fast as the readers take it in. If there is nothing to publish, or
    nothing of a source, type or key that is named, it raises ValueError and starts no bus.

    It waits 5 s for each of `to`. Raises BusError, with nothing published, if one does not come, if
    any other bus is there, or if an address does not answer, where others may be. If another bus
    joins later, it raises BusError before the next event. A bus has joined once it is linked; what
    is published in the milliseconds of its coming may reach it. Raises BusError if at the end one
    of `to` did not confirm that it has everything; JournalCorrupt, JournalRemoved and NameInUse;
    and LeavesProcess in virtual time, and while a `Replay` is open in this process. Reading blocks
    the loop for a few milliseconds every 1,000 events. Cancelling it publishes nothing more.
    """
    guests = frozenset([to] if isinstance(to, str) else to)
    if not guests or (wrong := [reason for each in guests if (reason := bad_name(each))]):
        raise ValueError(f"to={to!r}: {wrong[0] if guests else 'the name of a bus is needed'}")
    if speed is not None and not speed > 0:
        raise ValueError(f"speed={speed!r}: None, or how many times real time, is needed")
    if not str(url).startswith(("ipc://", "tcp://")):
        raise ValueError(f"url={url!r}: an ipc:// or tcp:// address is needed")
    selection = Selection(path, types, sources, key, start, end)
    if acted_on := ACTED_ON & selection.query.types:
        raise ValueError(
            f"types={types!r}: {', '.join(sorted(acted_on))} would be executed once more, and is"
            " never published again"
        )
    reel = Reel(selection)
    try:
        while (found := reel.peek()) is not None and found[1].type in ACTED_ON:
            reel.take()
        if found is None:
            raise ValueError(f"{selection.path} has no event of what was selected")
        async with AsyncEventBus(url, name=name, pace=True) as bus:
            return await _Party(bus, guests).publish(reel, speed)
    finally:
        reel.close()


class _Party:
    """Who may be there, and who has come."""

    def __init__(self, bus: AsyncEventBus, guests: frozenset[str]) -> None:
        self._bus = bus
        self._guests = guests
        self._has_come = asyncio.Event()
        self._count = 0

    async def publish(self, reel: Reel, speed: float | None) -> int:
        """Publish all that is to be; see `republish`."""
        loop = asyncio.get_running_loop()
        await self._bus.subscribe("aiobus.peer_joined", lambda _: self._has_come.set())
        await self._meet()
        first, began = None, loop.time()
        while (found := reel.take()) is not None:
            _, route, seq, time, _, data = found
            if route.type in ACTED_ON:
                continue
            first = time if first is None else first
            await self._pause(began if speed is None else began + (time - first) / speed)
            cause = event_id(route.source, route.epoch, seq)
            event = Event(route.type, orjson.loads(data), time, key=route.key, cause=cause)
            await self._bus.publish(event)
            self._count += 1
        if missing := await self._bus.flush(FLUSH_SECONDS):
            raise BusError(f"{', '.join(missing)} did not confirm all {self._count} events")
        return self._count

    async def _meet(self) -> None:
        """Wait for the guests."""
        with suppress(TimeoutError):
            async with asyncio.timeout(MEET_SECONDS):
                while self._missing():
                    self._check_strangers()
                    self._has_come.clear()
                    with suppress(TimeoutError):  # no event tells of an observer
                        async with asyncio.timeout(LOOK):
                            await self._has_come.wait()
        self._check()

    async def _pause(self, until: float) -> None:
        """Wait for a moment of the loop. Raises BusError as soon as another bus has come."""
        self._has_come.clear()
        self._check()
        if until <= asyncio.get_running_loop().time():
            return
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                while True:
                    await self._has_come.wait()
                    self._has_come.clear()
                    self._check()

    def _missing(self) -> list[str]:
        return sorted(self._guests.difference([each.name for each in self._bus.peers]))

    def _check(self) -> None:
        """Raise BusError unless the guests are there, and they alone."""
        self._check_strangers()
        if missing := self._missing():
            raise self._end(f"{', '.join(missing)} is not on {self._bus.url}")

    def _check_strangers(self) -> None:
        stats, peers = self._bus.stats(), self._bus.peers
        observers = {each.name for each in peers if each.observer}
        if guests := sorted(observers & self._guests):
            text = f"{', '.join(guests)} is an observer, which no bus waits for"
            raise self._end(f"{text}; start it without observer=True, or leave it out of to=")
        if stats.unreached:
            text = f"{', '.join(stats.unreached)} does not answer, so others may be there"
        elif strangers := sorted({each.name for each in peers} - self._guests - observers):
            text = f"{', '.join(strangers)} is on {stats.url}, and not named in to="
        else:
            return
        raise self._end(f"{text}; give an address that no desk uses")

    def _end(self, text: str) -> BusError:
        return BusError(f"{text}: {self._count} events were published, and no more are")
