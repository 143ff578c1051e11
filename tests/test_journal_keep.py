"""`keep=` removes whole stretches of the oldest events. Readers that ask for them get an error."""

import os
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from journals import EPOCH, START, entries, entry, facts, read, writing

from aiobus import Journal, JournalCorrupt, JournalFailed, JournalRemoved, clock
from aiobus.journal import retention
from aiobus.journal.writer import JournalWriter
from aiobus.query import Query

STRETCH = 100
DAY = timedelta(days=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.db"


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "STRETCH_EVENTS", STRETCH)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the machine, which a test turns."""
    time = [START]
    monkeypatch.setattr(clock, "machine", lambda: time[0])
    return time


async def aged(path: Path, now: list[float], count: int = 250) -> None:
    """A journal of events of which the first two stretches are too old, after one more commit."""
    async with writing(path, keep=DAY) as ledger:
        for first in range(1, count, 50):
            await ledger.write(entries(50, first))
        now[0] += DAY.total_seconds() + 1
        await ledger.write(entries(1, count + 1))
        await ledger.write(entries(1, count + 2))
        await ledger.write(entries(1, count + 3))
        assert ledger.errors == []


async def test_stretches_that_were_committed_long_ago_are_removed(
    path: Path, now: list[float]
) -> None:
    await aged(path, now)
    assert [offset for offset, _ in read(path)] == [*range(201, 254)]


async def test_the_newest_stretch_stays_however_old_it_is(path: Path, now: list[float]) -> None:
    async with writing(path, keep=DAY) as ledger:
        await ledger.write(entries(50))
        now[0] += 2 * DAY.total_seconds()
        await ledger.write(entries(10, 51))
    assert len(read(path)) == 60


async def test_the_timestamp_of_an_old_event_does_not_make_its_commit_old(
    path: Path, now: list[float]
) -> None:
    async with writing(path, keep=DAY) as ledger:
        for seq in range(1, 301):
            await ledger.write([entry(seq, time=START - 1e8)])
    assert len(read(path)) == 300


async def test_what_is_over_so_many_bytes_is_removed_and_its_space_is_used_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LEAST_BYTES", 1)
    keep = 1024 * 1024
    async with writing(path, keep=keep) as ledger:
        for first in range(1, 8_000, 50):
            await ledger.write([entry(n, "x" * 1_000) for n in range(first, first + 50)])
        assert ledger.errors == []
    assert keep / 2 < os.stat(path).st_size < keep + 512 * 1024
    found = read(path)
    assert [event.seq for _, event in found] == [*range(found[0][0], 8_001)]
    plain = sqlite3.connect(path)
    ((stretches,),) = plain.execute("SELECT count(*) FROM stretches").fetchall()
    plain.close()
    assert stretches <= len(found) / STRETCH + 1
    assert len(found) > 500


async def test_a_journal_is_whole_after_its_beginning_was_removed(
    path: Path, now: list[float]
) -> None:
    await aged(path, now)
    with Journal(path) as journal:
        assert journal.verify() == 53
    async with writing(path) as ledger:
        await ledger.write(entries(1, 254))
    assert [offset for offset, _ in read(path)] == [*range(201, 255)]


async def test_a_reader_that_asks_for_an_offset_that_was_removed_gets_an_error(
    path: Path, now: list[float]
) -> None:
    await aged(path, now)
    with pytest.raises(JournalRemoved, match="before offset 201 were removed by keep=") as caught:
        read(path, start_offset=200)
    assert caught.value.first == 201
    assert len(read(path, start_offset=201)) == 53


async def test_a_reader_that_asks_for_a_time_whose_events_were_removed_gets_an_error(
    path: Path, now: list[float]
) -> None:
    await aged(path, now)
    last = START + 200 / 8
    with pytest.raises(JournalRemoved):
        read(path, since=last)
    assert len(read(path, since=last + 0.01)) == 53


async def test_a_page_says_up_to_which_seq_of_a_source_events_were_removed(
    path: Path, now: list[float]
) -> None:
    await aged(path, now)
    with Journal(path) as journal:
        page = journal.page(Query.of("*"), "feed", EPOCH, 0, 253, 1_000)
        assert (page.removed, page.rows[0][0]) == (200, 201)
        assert journal.page(Query.of("*"), "strategy", 1295, 0, 253, 1_000).removed == 0


async def test_a_reader_that_is_overtaken_gets_an_error_behind_what_it_had_read(
    path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobus.journal.scan.CHUNK_EVENTS", 10)
    async with writing(path, keep=DAY) as ledger:
        for first in range(1, 250, 50):
            await ledger.write(entries(50, first))
        with Journal(path) as journal:
            reading = journal.read()
            begun = [next(reading) for _ in range(10)]
            now[0] += 2 * DAY.total_seconds()
            for seq in range(251, 254):
                await ledger.write(entries(1, seq))
            with pytest.raises(JournalRemoved):
                next(reading)
    assert [offset for offset, _ in begun] == [*range(1, 11)]


async def test_without_keep_nothing_is_removed(path: Path, now: list[float]) -> None:
    async with writing(path) as ledger:
        for first in range(1, 500, 50):
            await ledger.write(entries(50, first))
            now[0] += 100 * DAY.total_seconds()
    assert len(read(path)) == 500
    assert [facts(event) for _, event in read(path)][-1][2] == 500


@pytest.mark.parametrize("keep", [30, 0, -1, 1e9, True, timedelta(0), "30 days"])
def test_a_keep_that_is_neither_bytes_nor_a_time_is_refused(path: Path, keep: object) -> None:
    with pytest.raises(ValueError, match=r"timedelta\(days=30\)"):
        JournalWriter(path, keep=keep)  # type: ignore[arg-type]


async def test_a_stretch_in_which_an_event_is_missing_is_not_removed(
    path: Path, now: list[float]
) -> None:
    async with writing(path, keep=DAY) as ledger:
        for first in range(1, 250, 50):
            await ledger.write(entries(50, first))
        other = sqlite3.connect(path)
        other.execute("DELETE FROM events WHERE seq = 5")
        other.commit()
        other.close()
        now[0] += 2 * DAY.total_seconds()
        with pytest.raises(JournalFailed, match="of the events before offset 101, 1 are missing"):
            for seq in range(251, 300):
                await ledger.write(entries(1, seq))
    with pytest.raises(JournalCorrupt) as caught:
        read(path)
    assert (caught.value.offset, caught.value.valid) == (5, 4)
