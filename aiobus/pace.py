"""The wait of publishers that do not outrun their readers (`pace=True`).

Owns when history may forget, how long a reader is waited for, and how a circle of buses that wait
for each other is seen. Must not know how a peer confirms what it has.
"""

import asyncio
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from aiobus.clock import elapsed
from aiobus.delivery import Delivery, holding, waiting, would_deadlock
from aiobus.diagnostics import Diagnostics
from aiobus.errors import QueueFull
from aiobus.event import Event
from aiobus.history import ROW_OVERHEAD, Ring
from aiobus.lifecycle import Lifecycle, State
from aiobus.limits import Limits
from aiobus.publisher import Publisher, Route
from aiobus.rows import Source
from aiobus.subscription import Subscription
from aiobus.transport import Standing, Transport

__all__ = ["Pace"]

FIRST_PAUSE, LAST_PAUSE = 0.02, 0.25
"""Seconds until a wait for readers asks them again, at first and at last."""
MAX_WAITING = 64
"""Buses named as waiting for each other: a circle of more is open until `Limits.pace_seconds`."""
MAX_LEFT = 1_024
"""Readers that are known to be left behind; one that is forgotten is waited for again."""

Reader = Subscription | Source
"""Of what a bus publishes: a subscription of its own that lags, or a peer."""


class Pace:
    """Keeps one bus from outrunning its readers: nothing that one of them has not taken in is
    forgotten, and its publishers wait instead.

    A handler that waits holds up its own subscription, so others may wait for it in turn. A bus
    tells those that it waits for which handlers cannot go on before: its own, and those of the
    buses that wait for a subscription here that is held up so. If it hears its own name in that
    way, waiting would never end, and it does not wait.
    """

    def __init__(
        self,
        publisher: Publisher,
        subscriptions: Iterable[Subscription],
        transport: Transport,
        reports: Diagnostics,
        life: Lifecycle,
        limits: Limits,
    ) -> None:
        most = min(limits.history_bytes, limits.history_total_bytes) - ROW_OVERHEAD
        if most < limits.event_bytes:
            raise ValueError(
                f"pace=True: Limits(event_bytes={limits.event_bytes}) is more than history has room"
                f" for, {most} bytes"
            )
        self._publisher = publisher
        self._subscriptions = subscriptions
        self._transport = transport
        self._reports = reports
        self._life = life
        self._limits = limits
        self._left: dict[Reader, int] = {}
        """Readers that are left behind, and how often they had moved."""
        self._asked: dict[str, int] = {}
        """Up to which seq of a type a confirmation was asked for ahead of time."""
        self._waits: list[list[Delivery]] = []
        """For each publisher that waits, the deliveries that cannot go on meanwhile."""
        self._full: Ring
        self._is_forced = False
        publisher.pace = self._make_room
        publisher.history.is_paced = True

    def _make_room(self, ring: Ring, size: int) -> None:
        """Make room for one more row, or raise QueueFull. While that works, readers are asked to
        confirm each quarter of a ring, so that usually nothing waits.
        """
        history, type = self._publisher.history, ring.type
        full = history.make_room(ring, size, self._may_forget)
        if full is not None:
            self._full = full.ring
            raise QueueFull("", getattr(self._limits, full.limit), full.limit)
        unasked = ring.end - ring.behind(self._asked.get(type, 0))
        if unasked and unasked * 4 >= len(ring):
            self._asked[type] = history.newest
            self._transport.mark(type, history.newest, None)

    def _may_forget(self, ring: Ring) -> bool:
        history, doomed = self._publisher.history, ring.doomed
        if self._is_forced or doomed <= history.safe.get(ring.type, 0):
            return True
        seqs = (standing.seq for standing in self._readers(ring.type).values())
        history.safe[ring.type] = safe = min(seqs, default=history.newest)
        return doomed <= safe

    def _readers(self, type: str) -> dict[Reader, Standing]:
        """Where each reader of `type` is, without those that are left behind."""
        readers: dict[Reader, Standing] = {
            each: Standing(each.own.last, each.own.last + each.begun)
            for each in self._subscriptions
            if each.own.behind and each.selection.matches_type(type)
        }
        readers.update(self._transport.standings(type).items())
        self._left = {
            each: moves
            for each, moves in self._left.items()
            if each not in readers or readers[each].moves == moves
        }
        return {each: readers[each] for each in readers if each not in self._left}

    async def publish(self, event: Event[Any]) -> Route:
        """Publish what raised QueueFull just now, as soon as there is room. Cancelling it, nothing
        is published.
        """
        while True:
            is_circle = await self._wait(self._full)
            self._life.check()
            self._is_forced = is_circle
            try:
                return self._publisher.publish(event)
            except QueueFull:
                pass
            finally:
                self._is_forced = False

    async def _wait(self, ring: Ring) -> bool:
        """Wait until `ring` may forget its oldest; True if that would never be."""
        holders = holding()
        waited: dict[Reader, tuple[int, float]] = {}
        told: object = None
        pause, before = FIRST_PAUSE, elapsed()
        self._waits.append(holders)
        try:
            while len(ring) and not self._may_forget(ring) and self._life.state is not State.CLOSED:
                doomed, now = ring.doomed, elapsed()
                # A wait is not counted longer than it was meant to be: this process may have been
                # frozen itself.
                step, before = min(now - before, 2 * LAST_PAUSE), now
                readers = self._readers(ring.type)
                lacking = {each: at for each, at in readers.items() if at.seq < doomed}
                for reader, at in list(lacking.items()):
                    moves, seconds = waited.get(reader, (at.moves, 0.0))
                    seconds = seconds + step if moves == at.moves else 0.0
                    waited[reader] = (at.moves, seconds)
                    if seconds >= self._limits.pace_seconds:
                        self._leave_behind(reader, ring.type, at)
                        del lacking[reader]
                if not lacking:
                    continue
                own = [each for each in lacking if isinstance(each, Subscription)]
                if self._is_circle(holders, own):
                    holders[0].consumer.outran += 1
                    return True
                if told != (telling := (doomed, self._waiting())):
                    self._transport.mark(ring.type, doomed, telling[1])
                    told = telling
                with waiting(holders, own):
                    try:
                        async with asyncio.timeout(pause):
                            await self._publisher.room.wait()
                    except TimeoutError:
                        pause, told = min(2 * pause, LAST_PAUSE), None
        finally:
            self._waits.remove(holders)
        return False

    def _leave_behind(self, reader: Reader, type: str, at: Standing) -> None:
        self._left[reader] = at.moves
        if len(self._left) > MAX_LEFT:
            del self._left[next(iter(self._left))]
        self._publisher.history.safe.pop(type, None)
        name = reader.name if isinstance(reader, Subscription) else reader[0]
        self._reports.left_behind(name, type, at.seq, self._limits.pace_seconds)

    def _waiting(self) -> list[str]:
        """The buses whose handlers cannot go on before what publishers here wait for."""
        holders = [holder for each in self._waits for holder in each]
        names = dict.fromkeys([self._publisher.name] if holders else ())
        for waits_with in self._held(holders):
            names.update(dict.fromkeys(waits_with))
        return list(names)[:MAX_WAITING]

    def _is_circle(self, holders: list[Delivery], own: list[Subscription]) -> bool:
        """True if what is waited for cannot go on before one of `holders` does."""
        if any(would_deadlock(holder.consumer, each) for holder in holders for each in own):
            return True
        return any(self._publisher.name in names for names in self._held(holders))

    def _held(self, holders: list[Delivery]) -> Iterator[Collection[str]]:
        """The buses that wait for a subscription here that cannot go on before `holders` do."""
        for catchup, names in self._transport.held() if holders else ():
            if any(would_deadlock(holder.consumer, catchup.consumer) for holder in holders):
                yield names
