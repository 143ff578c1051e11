"""A recording has what its bus heard, its gaps and drops among it, and never holds up the bus."""

import asyncio
from pathlib import Path

import pytest
from journals import fill

from aiobus import AsyncEventBus, BusError, Event, Journal, JournalError, record
from aiobus.query import RESERVED
from aiobus.testing import MemoryNetwork


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "desk.db"


def recorded(path: Path) -> list[Event]:
    with Journal(path) as journal:
        return [event for _, event in journal.read() if not event.type.startswith(RESERVED)]


async def test_it_has_the_events_of_all_buses_as_they_were_published(path: Path) -> None:
    network = MemoryNetwork()
    async with network.bus("feed") as feed, network.bus("recorder") as bus, record(bus, path):
        sent = [
            await feed.publish(Event("TRADE", {"price": 1.5, "note": "é"}, key="BTC")),
            await bus.publish(Event("BAR", [1, None, -0.5], 1_700_000_000)),
            await feed.publish(Event("TRADE", 2, cause="me@1.1")),
        ]
        await network.settle()
    found = {event.id: event for event in recorded(path)}
    assert found == {event.id: event for event in sent}
    for event in sent:
        same = found[event.id]
        assert (same.timestamp, same.cause) == (event.timestamp, event.cause)


async def test_it_has_the_system_events_of_its_bus(path: Path) -> None:
    network = MemoryNetwork()
    async with network.bus("recorder") as bus, record(bus, path):
        async with network.bus("feed") as feed:
            await feed.publish(Event("T", 1))
        await network.settle()
    with Journal(path) as journal:
        types = [event.type for _, event in journal.read()]
    assert types == ["aiobus.peer_joined", "T", "aiobus.peer_left"]


async def test_it_goes_on_behind_what_is_in_the_file(path: Path) -> None:
    network = MemoryNetwork()
    async with network.bus("feed") as feed:
        for start in range(3):
            async with network.bus("recorder") as bus, record(bus, path):
                for number in range(5):
                    await feed.publish(Event("T", [start, number]))
                await network.settle()
            await feed.publish(Event("T", [start, "while nothing recorded"]))
    assert [event.data for event in recorded(path)] == [
        *([0, number] for number in range(5)),
        [0, "while nothing recorded"],
        *([1, number] for number in range(5)),
        [1, "while nothing recorded"],
        *([2, number] for number in range(5)),
    ]


async def test_what_has_come_is_recorded_before_the_end(path: Path) -> None:
    async with AsyncEventBus() as bus, record(bus, path):
        for number in range(2_000):
            await bus.publish(Event("T", number))
    assert [event.data for event in recorded(path)] == list(range(2_000))


async def test_on_a_full_disk_it_ends_with_an_error_event_and_the_bus_goes_on(path: Path) -> None:
    async with AsyncEventBus() as bus:
        seen: list[Event] = []
        await bus.subscribe("aiobus.error", seen.append)
        async with record(bus, path) as recording:
            await bus.publish(Event("T", 1))
            await recording.flush()
            assert len(recorded(path)) == 1
            fill(recording._writer._opened)
            for _ in range(200):
                await bus.publish(Event("T", "x" * 1_000))
            with pytest.raises(JournalError, match="full"):
                await recording.flush()
            last = await bus.publish(Event("T", 2))
            await bus.settle()
        assert last.seq
    assert [event.data["subscription"] for event in seen] == [f"record({path})"]
    assert recorded(path)[0].data == 1


async def test_a_file_has_one_purpose(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "gateway.db"
    async with AsyncEventBus(name="gateway", journal=other) as gateway:
        await gateway.publish(Event("T", 1))
    async with AsyncEventBus(name="gateway") as bus:
        with pytest.raises(JournalError, match="is the journal of gateway"):
            await record(bus, other).__aenter__()
        async with record(bus, path) as recording:
            await bus.publish(Event("T", 1))
            with pytest.raises(BusError, match="entered before"):
                await recording.__aenter__()
    with pytest.raises(JournalError, match="but a recording"):
        await AsyncEventBus(name="gateway", journal=path).start()


async def test_a_flush_ends_under_a_steady_flood(path: Path) -> None:
    async with AsyncEventBus() as bus, record(bus, path) as recording:
        is_over = False

        async def flood() -> None:
            while not is_over:
                await bus.publish(Event("T", 0))

        task = asyncio.create_task(flood())
        last = await bus.publish(Event("LAST", 1))
        await recording.flush(timeout=40.0)  # the thread that commits may hardly get its turn
        assert last.seq in [event.seq for event in recorded(path) if event.type == "LAST"]
        is_over = True
        await task
