"""A gateway with a journal that is away for most of an hour, and for more than one."""

import asyncio
import math
from pathlib import Path

import pytest
from journals import at_death

from aiobus import AsyncEventBus, Event, run_virtual
from aiobus.testing import MemoryNetwork

MINUTE = 60.0
SYSTEM = ["aiobus.peer_left", "aiobus.peer_restarted", "aiobus.peer_joined"]


class Away:
    """A strategy, and a gateway that is killed after 30 orders and comes back to send one more."""

    network: MemoryNetwork
    strategy: AsyncEventBus
    gateway: AsyncEventBus

    def __init__(self, path: Path, *, is_moving: bool) -> None:
        self.path = path
        self.is_moving = is_moving
        self.live: list[object] = []
        """What a handler gets that keeps up."""
        self.slow: list[object] = []
        """The same of one that waits for `go_on`."""
        self.gaps: list[str] = []
        """The reasons of all gaps."""

    async def start(self) -> None:
        self.go_on = asyncio.Event()
        self.network = MemoryNetwork()
        self.network.is_moving = self.is_moving
        self.strategy = self.network.bus("strategy")
        await self.strategy.start()

        def note(event: Event) -> None:
            self.live.append(event.data if event.type == "ORDER" else event.type)

        async def note_slowly(event: Event) -> None:
            await self.go_on.wait()
            self.slow.append(event.data if event.type == "ORDER" else event.data["reason"])

        options = {"since": 0.0, "max_age": math.inf}
        await self.strategy.subscribe(["ORDER", *SYSTEM], note, **options)
        await self.strategy.subscribe(["ORDER", "aiobus.gap"], note_slowly, maxsize=5)
        await self.strategy.subscribe("aiobus.gap", lambda e: self.gaps.append(e.data["reason"]))
        self.gateway = self.network.bus("gateway", journal=self.path)
        await self.gateway.start()
        for number in range(30):
            await self.gateway.publish(Event("ORDER", number))
        await asyncio.sleep(1.0)
        self.network.kill("gateway")
        with at_death(self.path):
            await self.gateway.close(0)

    async def come_back(self) -> None:
        self.gateway = self.network.bus("gateway", journal=self.path)
        await self.gateway.start()
        await self.gateway.publish(Event("ORDER", "next"))
        await asyncio.sleep(3.0)

    async def close(self) -> None:
        self.go_on.set()
        await self.network.settle()
        await self.gateway.close()
        await self.strategy.close()


@pytest.mark.parametrize("is_moving", [False, True], ids=["same endpoint", "another endpoint"])
def test_after_59_minutes_all_that_is_missing_follows_and_nothing_is_told_as_lost(
    tmp_path: Path, is_moving: bool
) -> None:
    away = Away(tmp_path / "gateway.db", is_moving=is_moving)

    async def main() -> None:
        await away.start()
        await asyncio.sleep(59 * MINUTE)
        await away.come_back()
        assert away.slow == []
        await away.close()

    run_virtual(main)
    assert away.slow == [*range(30), "next"]
    told = ["aiobus.peer_left", "aiobus.peer_restarted", "aiobus.peer_joined"]
    assert away.live == ["aiobus.peer_joined", *range(30), *told, "next", "aiobus.peer_left"]


@pytest.mark.parametrize("is_moving", [False, True], ids=["same endpoint", "another endpoint"])
def test_after_more_than_an_hour_what_is_missing_is_a_gap_and_old_orders_come_no_more(
    tmp_path: Path, is_moving: bool
) -> None:
    away = Away(tmp_path / "gateway.db", is_moving=is_moving)

    async def main() -> None:
        await away.start()
        await asyncio.sleep(59 * MINUTE)
        assert away.gaps == []
        await asyncio.sleep(4 * MINUTE)
        assert away.gaps == ["its source has left"]
        await away.come_back()
        await away.close()

    run_virtual(main)
    taken = [each for each in away.slow if isinstance(each, int)]
    assert away.slow == [*taken, "its source has left", "next"]
    assert taken == list(range(len(taken)))
    assert 5 <= len(taken) < 30
    told = ["aiobus.peer_left", "aiobus.peer_joined"]  # what was known of it is forgotten
    assert away.live == ["aiobus.peer_joined", *range(30), *told, "next", "aiobus.peer_left"]
