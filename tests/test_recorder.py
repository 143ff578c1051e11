"""A recording has what its bus heard, its gaps and drops among it, and never holds up the bus."""

import asyncio
import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from journals import entries, fill, make

from aiobus import AsyncEventBus, BusError, Event, Journal, JournalError, JournalInUse, record
from aiobus.journal.mark import FileLock
from aiobus.journal.writer import JournalWriter
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


async def test_what_may_not_write_to_a_file_does_not_lock_it(path: Path, tmp_path: Path) -> None:
    """The start that may write to it would else fail if it comes at the same moment."""
    other = tmp_path / "gateway.db"
    async with AsyncEventBus(name="gateway", journal=other) as gateway:
        await gateway.publish(Event("T", 1))
        async with record(gateway, path):
            await gateway.publish(Event("T", 2))
    locks = [FileLock(str(each)) for each in (path, other)]
    try:
        with pytest.raises(JournalError, match="not the journal of 'desk', but of gateway"):
            await AsyncEventBus(name="desk", journal=other).start()
        with pytest.raises(JournalError, match="not the journal of 'gateway', but a recording"):
            await AsyncEventBus(name="gateway", journal=path).start()
        async with AsyncEventBus() as bus:
            with pytest.raises(JournalError, match="is the journal of gateway"):
                await record(bus, other).__aenter__()
    finally:
        for lock in locks:
            lock.release()


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


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, bool]]:
    """Each step that may wait for a disk, and whether it was taken in the thread of this test."""
    seen: set[tuple[str, bool]] = set()
    here = threading.get_ident()

    def note(step: str) -> None:
        seen.add((step, threading.get_ident() == here))

    class Watched(sqlite3.Connection):
        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            note("execute")
            return super().execute(*arguments)

    def watch(module: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            note(name)
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Watched))
    watch(sqlite3, "connect")
    for name in ("fsync", "replace", "posix_fallocate", "statvfs", "pwrite"):
        watch(os, name)
    watch(fcntl, "flock")
    return seen


DISK = {"connect", "execute", "flock", "fsync", "posix_fallocate", "pwrite", "replace", "statvfs"}


async def test_a_recording_never_waits_for_a_disk_on_the_loop(
    path: Path, disk: set[tuple[str, bool]]
) -> None:
    """From its start to its end, in a new file and in one that goes on, so that a slow disk does
    not hold the bus.
    """
    for _ in range(2):
        async with AsyncEventBus(name="desk") as bus, record(bus, path) as recording:
            for number in range(100):
                await bus.publish(Event("T", number))
            await recording.flush()
    assert disk == {(step, False) for step in DISK}


async def test_what_is_attached_is_recorded_without_waiting_for_a_disk_on_the_loop(
    path: Path, disk: set[tuple[str, bool]]
) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        await bus.subscribe("T", lambda event: bus.publish(Event("U", event.data)))

    async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=strategy):
        for number in range(100):
            await bus.publish(Event("T", number))
        await bus.settle()
    assert disk == {(step, False) for step in DISK}


async def test_a_bus_with_a_journal_never_waits_for_a_disk_on_the_loop(
    path: Path, disk: set[tuple[str, bool]]
) -> None:
    """Its second start read the last number, and opened the file for readers, on the loop."""
    for _ in range(2):
        async with AsyncEventBus(name="desk", journal=path) as bus:
            for number in range(100):
                await bus.publish(Event("T", number))
    assert disk == {(step, False) for step in DISK}


async def until_unlocked(path: Path) -> None:
    """Wait until the file has no writer."""
    while True:
        writer = JournalWriter(path)
        try:
            await asyncio.to_thread(writer.open)
        except JournalInUse:
            await asyncio.sleep(0.01)
        else:
            await asyncio.to_thread(writer.close)
            return


@pytest.mark.parametrize("step", ["enter", "leave"])
async def test_a_recording_that_is_cancelled_at_any_await_leaves_nothing(
    path: Path, step: str
) -> None:
    async with AsyncEventBus() as bus:
        for turns in range(1, 40):
            recording = record(bus, path)
            if step == "enter":
                task = asyncio.create_task(recording.__aenter__())
            else:
                await recording.__aenter__()
                for number in range(20):
                    bus.publish_nowait(Event("T", number))
                task = asyncio.create_task(recording.__aexit__(None, None, None))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and step == "enter":
                await recording.__aexit__(None, None, None)
            assert bus.stats().subscriptions == ()
            await until_unlocked(path)


def locked(path: Path) -> sqlite3.Connection:
    """What holds up the opening of this file until it is closed."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
    other.execute("BEGIN EXCLUSIVE")
    return other


@pytest.mark.parametrize("user", ["bus", "recording"])
async def test_an_opening_that_is_cancelled_twice_does_not_keep_the_file(
    path: Path, user: str
) -> None:
    if user == "bus":
        async with AsyncEventBus(name="feed", journal=path):
            pass
    else:
        await asyncio.to_thread(make, path, entries(3))
    other = locked(path)
    async with AsyncEventBus() as bus:
        opening = (
            AsyncEventBus(name="feed", journal=path).start()
            if user == "bus"
            else record(bus, path).__aenter__()
        )
        task = asyncio.create_task(opening)
        for _ in range(2):
            await asyncio.sleep(0.05)
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        other.close()
        await until_unlocked(path)


async def test_a_recording_that_could_not_begin_is_not_begun_again(tmp_path: Path) -> None:
    async with AsyncEventBus(name="desk") as bus:
        again = record(bus, tmp_path / "desk.db")
        async with record(bus, tmp_path / "desk.db"):
            with pytest.raises(JournalInUse):
                await again.__aenter__()
        with pytest.raises(BusError, match="entered before: call record"):
            await again.__aenter__()
