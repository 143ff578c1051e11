"""A gateway with a journal comes back at another endpoint, as on tcp after each start: its
neighbours hear that it has started again, and not that it has left.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from actors import Nursery
from journals import at_death

from aiobus import Event
from aiobus.testing import Faults, MemoryNetwork

SYSTEM = ["aiobus.gap", "aiobus.peer_joined", "aiobus.peer_left", "aiobus.peer_restarted"]


@pytest.mark.virtual
@pytest.mark.parametrize("seconds", [0.0, 1.0, 4.5])
async def test_it_is_told_as_restarted_and_never_as_left(tmp_path: Path, seconds: float) -> None:
    path, network, seen = tmp_path / "gateway.db", MemoryNetwork(), []
    network.is_moving = True

    def note(event: Event) -> None:
        seen.append(event.data if event.type == "T" else event.type)

    async with network.bus("strategy") as strategy:
        await strategy.subscribe(["T", *SYSTEM], note)
        for start in range(3):
            gateway = network.bus("gateway", journal=path)
            await gateway.start()
            await gateway.publish(Event("T", start))
            assert await gateway.flush() == []
            network.kill("gateway")
            with at_death(path):
                await gateway.close(0)
            await asyncio.sleep(seconds)
        async with network.bus("gateway", journal=path) as gateway:
            await asyncio.sleep(10.0)  # so that a grace that began before has ended
            await gateway.publish(Event("T", "last"))
            assert await gateway.flush() == []
            await strategy.settle()
            found, restarted = list(seen), "aiobus.peer_restarted"
    assert found == ["aiobus.peer_joined", 0, restarted, 1, restarted, 2, restarted, "last"]


@pytest.mark.virtual
async def test_it_has_not_left_if_it_is_there_again_and_its_answers_are_late(
    tmp_path: Path,
) -> None:
    path, network, loop = tmp_path / "gateway.db", MemoryNetwork(), asyncio.get_running_loop()
    network.is_moving = True
    seen: list[str] = []
    async with network.bus("strategy") as strategy:
        await strategy.subscribe(SYSTEM, lambda event: seen.append(event.type))
        gateway = network.bus("gateway", journal=path)
        await gateway.start()
        await gateway.publish(Event("T", 1))
        assert await gateway.flush() == []
        network.kill("gateway")
        with at_death(path):
            await gateway.close(0)
        await asyncio.sleep(4.0)
        end = loop.time() + 4.0
        network.faults = Faults(
            loss=lambda message: float(message.kind == "answer" and loop.time() < end)
        )
        async with network.bus("gateway", journal=path) as gateway:
            await asyncio.sleep(10.0)
            found = list(seen)
    assert found == ["aiobus.peer_joined", "aiobus.peer_restarted"]


FOLLOW = """
self.seen, self.reads, self.system = [], asyncio.Event(), []
async def note(event):
    await self.reads.wait()
    self.seen.append(event.data if event.type == "T" else event.type)
async def note_system(event):
    if event.data["name"] == "gateway":
        self.system.append(event.type)
await bus.subscribe(["T", "aiobus.gap"], note, maxsize=5)
await bus.subscribe(["aiobus.peer_left", "aiobus.peer_restarted"], note_system)
"""
PUBLISH = """
for number in range(begin, end):
    await bus.publish(Event("T", number))
return bus._transport.session.me.endpoint
"""
TAKE_OVER = """
from aiobus.mesh.sockets import ZmqNetwork
bind = ZmqNetwork.bind
ZmqNetwork.bind = lambda network, any_port: bind(network, endpoint)
self.bus = aiobus.AsyncEventBus(url, name="other")
await self.bus.start()
"""
UNTIL = """
self.reads.set()
while len(self.seen) < count:
    await asyncio.sleep(0.01)
return [self.seen, self.system]
"""


@pytest.mark.parametrize("url", ["tcp"], indirect=True)
async def test_what_is_missing_follows_also_if_another_bus_has_its_old_port(
    nursery: Nursery, url: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"journal": str(tmp_path / "gateway.db")}
    strategy, gateway, other, again = await nursery.actors(4)
    await strategy.start(url, "strategy")
    await strategy(FOLLOW)
    await gateway.start(url, "gateway", **options)
    endpoint = await gateway(PUBLISH, begin=0, end=100)
    gateway.kill()
    await gateway.code
    await other(TAKE_OVER, url=url, endpoint=endpoint)
    await again.start(url, "gateway", **options)
    assert await again(PUBLISH, begin=100, end=101) != endpoint
    seen, system = await strategy(UNTIL, count=101)
    assert seen == list(range(101))
    assert "aiobus.peer_restarted" in system
