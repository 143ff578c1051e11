"""The system events of buses that end, freeze or come back, as docs/contract.md has them."""

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from actors import nursery, tcp_url

from aiobus import Event, EventType
from aiobus.testing import Faults, MemoryNetwork

pytestmark = pytest.mark.usefixtures("no_task_is_left")

NAMES = ["frozen", "killed", "restarted", "closed"]
WATCH = """
async def on_event(event):
    self.heard.append([event.type, event.data])
    async with self.came:
        self.came.notify_all()
types = ["aiobus." + kind for kind in ("peer_joined", "peer_left", "stale", "fresh")]
self.watching = await bus.subscribe(types, on_event)
"""
UNTIL = """
def has_come():
    return all([type, name] in [[t, d["name"]] for t, d in self.heard] for type, name in wanted)
async with self.came:
    await self.came.wait_for(has_come)
return self.heard
"""


@pytest.fixture(params=["ipc", "tcp"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "tcp":
        yield tcp_url()
        return
    folder = Path(tempfile.mkdtemp(prefix="ab"))
    (folder / "d").mkdir(mode=0o700)
    yield f"ipc://{folder}/d"
    shutil.rmtree(folder)


@pytest.mark.paired
async def test_a_bus_that_closes_dies_freezes_or_restarts_is_announced_as_the_contract_says(
    url: str,
) -> None:
    async with nursery() as made:
        strategy = await made.actor()
        await strategy.start(url, "strategy")
        await strategy(WATCH)
        buses = dict(zip(NAMES, await made.actors(len(NAMES)), strict=True))
        for name, bus in buses.items():
            await bus.start(url, name)
        await strategy(UNTIL, wanted=[["aiobus.peer_joined", name] for name in NAMES])

        buses["frozen"].kill(signal.SIGSTOP)
        buses["killed"].kill()
        buses["restarted"].kill()
        await buses["restarted"].code
        again = await made.actor()
        await again.start(url, "restarted")
        await buses["closed"]("await bus.close()")
        left = [["aiobus.peer_left", name] for name in ("killed", "restarted", "closed")]
        await strategy(UNTIL, wanted=[*left, ["aiobus.stale", "frozen"]])
        buses["frozen"].kill(signal.SIGCONT)
        heard: list[tuple[str, dict[str, Any]]] = await strategy(
            UNTIL, wanted=[["aiobus.fresh", "frozen"]]
        )

    of = {
        name: [
            (type.removeprefix("aiobus."), data)
            for type, data in heard
            # One that is gone may leave before it counts as stale, on a busy machine.
            if data["name"] == name and (name == "frozen" or type != "aiobus.stale")
        ]
        for name in NAMES
    }
    kinds = {name: [kind for kind, _ in said] for name, said in of.items()}
    assert kinds == {
        "frozen": ["peer_joined", "stale", "fresh"],
        "killed": ["peer_joined", "peer_left"],
        "restarted": ["peer_joined", "peer_left", "peer_joined"],
        "closed": ["peer_joined", "peer_left"],
    }
    assert of["frozen"][-1][1]["silent"] >= 3
    assert of["killed"][-1][1]["reason"] == "its link was cut and did not come back"
    assert of["closed"][-1][1]["reason"] == "it closed"
    first, end, second = (data["epoch"] for _, data in of["restarted"])
    assert first == end != second


async def test_the_gap_of_a_killed_source_comes_before_its_end_and_that_before_its_successor() -> (
    None
):
    seen: list[Event] = []
    succeeded = asyncio.Event()

    def on_event(event: Event) -> None:
        seen.append(event)
        if [each.type for each in seen].count("aiobus.peer_joined") == 2:
            succeeded.set()

    network = MemoryNetwork()
    types = [EventType.TRADE, "aiobus.gap", "aiobus.peer_left", "aiobus.peer_joined"]
    async with network.bus("strategy") as strategy:
        await strategy.subscribe(types, on_event)
        feed = network.bus("feed")
        await feed.start()
        await feed.publish(Event(EventType.TRADE, 0))
        await network.settle()
        network.faults = Faults(loss=1.0)
        lost = await feed.publish(Event(EventType.TRADE, 1))
        for _ in range(10):
            await asyncio.sleep(0)  # it was sent, and is lost
        network.faults = Faults(loss=lambda message: message.kind == "page_request")
        last = await feed.publish(Event(EventType.TRADE, 2))
        for _ in range(10):
            await asyncio.sleep(0)  # it has arrived, and what is missing is asked for
        network.kill("feed")
        network.faults = Faults()
        async with network.bus("feed"):
            await succeeded.wait()
        await feed.close(0)
    joined, trade, gap, left, again = seen[:5]
    assert [each.type for each in (joined, trade, gap, left, again)] == [
        "aiobus.peer_joined",
        "TRADE",
        "aiobus.gap",
        "aiobus.peer_left",
        "aiobus.peer_joined",
    ]
    assert (gap.data["after"], gap.data["upto"]) == (lost.seq - 1, last.seq)
    assert gap.data["reason"] == "its source has left"
    assert left.data["reason"] == "another has taken its place"
    assert left.data["last"] == last.seq
    assert again.data["epoch"] != left.data["epoch"] == lost.epoch
