"""A recording has no hole: it ends at the first commit that fails, goes on behind what is in its
file, and has no number twice.
"""

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
from journals import entry, read, written

from aiobus import AsyncEventBus, CommitFailed, Event, Journal, record
from aiobus.recorder import Recording


def numbers(path: Path) -> list[Any]:
    """The data of what was recorded, whose file is whole."""
    with Journal(path) as journal:
        journal.verify()
    return [event.data for _, event in read(path, types="T")]


class Disk:
    """The disk of a recording: it waits for `goes_on`, and then has no space for the second commit,
    also not after the reserve was given back. All others succeed.
    """

    def __init__(self, recording: Recording) -> None:
        self.goes_on = threading.Event()
        self._commits = 0
        store = recording._writer._opened
        self._insert, store._insert = store._insert, self._spoil  # type: ignore[method-assign]

    def _spoil(self, batch: Any) -> None:
        self.goes_on.wait()
        self._commits += 1
        if self._commits in (2, 3):
            raise OSError(errno.ENOSPC, "No space left on device")
        self._insert(batch)


async def test_what_waits_behind_a_commit_that_failed_is_not_recorded_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobus.journal.writer.COMMIT_EVENTS", 10)
    path = tmp_path / "desk.db"
    async with AsyncEventBus(name="desk") as bus:
        async with record(bus, path) as recording:
            disk = Disk(recording)
            for number in range(100):
                await bus.publish(Event("T", number))
            await bus.settle()
            disk.goes_on.set()
            with pytest.raises(CommitFailed):
                await recording.flush()
        first = numbers(path)
        assert first == list(range(len(first)))
        assert 0 < len(first) < 100
        async with record(bus, path):  # the disk has space again
            await bus.publish(Event("T", 100))
    assert numbers(path) == list(range(101))


async def test_a_source_that_uses_numbers_again_is_recorded_behind_what_is_in_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "desk.db"
    async with AsyncEventBus(name="desk") as bus:
        epoch = bus.stats().epoch
        before = [entry(seq, "before", type="T", source="desk", epoch=epoch) for seq in range(1, 6)]
        await written(path, before)
        async with record(bus, path) as recording:
            for number in range(1, 9):
                await bus.publish(Event("T", number))
            await recording.flush()
            assert recording.error is None
    assert numbers(path) == ["before"] * 5 + [6, 7, 8]
    assert "desk uses numbers again that are in" in caplog.text
