"""Waiting until nothing happens any more among several buses.

Owns what that means, and who is named when it takes too long. Must not know how messages travel: it
is told whether any are on their way.
"""

import asyncio
from collections.abc import Callable

from aiobus.bus import AsyncEventBus
from aiobus.errors import BusClosed, BusError
from aiobus.terms import check_timeout

__all__ = ["Settling"]

PAUSE = 0.01
"""Seconds between two looks: a link that comes back is not announced to anybody."""


class Settling:
    """`buses` are those that are open now; `is_quiet` tells whether no message is on its way, and
    `is_partitioned` whether some cannot reach each other.
    """

    def __init__(
        self,
        buses: Callable[[], list[AsyncEventBus]],
        is_quiet: Callable[[], bool],
        is_partitioned: Callable[[], bool],
    ) -> None:
        self._buses = buses
        self._is_quiet = is_quiet
        self._is_partitioned = is_partitioned

    async def wait(self, timeout: float) -> None:
        """Wait, as `MemoryNetwork.settle` says."""
        check_timeout(timeout)
        end = asyncio.get_running_loop().time() + timeout
        before: dict[str, int] | None = None
        now = self._published()
        while now != before:
            if before is not None and _left(end) == 0.0:
                raise self._failure(timeout, before)
            await asyncio.sleep(0)  # what was joined for the end of the tick leaves
            try:
                while busy := await self._busy(end):
                    if _left(end) == 0.0:
                        raise self._failure(timeout, before or {}, busy)
                    await asyncio.sleep(PAUSE)
                before, now = now, self._published()
            except BusClosed:
                pass  # meanwhile: look again who is there

    def _published(self) -> dict[str, int]:
        return {bus.name: bus.stats().published for bus in self._buses()}

    def _failure(self, timeout: float, before: dict[str, int], busy: str = "") -> TimeoutError:
        now = self._published()
        names = " and ".join(name for name in now if now[name] != before.get(name))
        reasons = filter(None, [busy, names and f"still published by {names}"])
        return TimeoutError(f"not settled within {timeout:g} s: {'; '.join(reasons)}")

    async def _busy(self, end: float) -> str:
        """Who is busy, in words; "" when nobody. Waits until `end` for them to finish."""
        buses = self._buses()
        if any(bus._subscriptions.at_work() is not None for bus in buses):
            raise BusError("settle() inside a handler would wait for it; call it from outside")
        if self._is_partitioned():
            return self._under_way(buses)
        names = {bus.name for bus in buses}
        lacking = {bus.name: names.intersection(await bus.flush(_left(end))) for bus in buses}
        busy = [
            f"{' and '.join(sorted(who))} lacks events of {name}"
            for name, who in lacking.items()
            if who
        ]
        for bus in buses if not busy else ():
            try:
                await bus.settle(_left(end))
            except TimeoutError as error:
                busy.append(f"{bus.name} is {error}")
        return "; ".join(busy)

    def _under_way(self, buses: list[AsyncEventBus]) -> str:
        """The same where some things cannot arrive: what is missing is not waited for."""
        for bus in buses:
            bus._life.take_failure()
        busy = [
            f"{bus.name} is at {receiver.name}"
            for bus in buses
            for receiver in bus._subscriptions
            if receiver.pending or receiver.in_hand
        ]
        if not self._is_quiet():
            busy.append("messages are on their way")
        return "; ".join(busy)


def _left(end: float) -> float:
    return max(0.0, end - asyncio.get_running_loop().time())
