"""Whatever becomes of the files of a journal: what was before the mark is read unaltered, or its
damage is reported, with the exact number of events before it. Nothing is deleted for it.
"""

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from journals import EPOCH, Ledger, at_death, entries, entry, make, read, writing
from spoilt import KINDS, PARTS, Snapshot, snapshot, spoil

from aiobus import Journal, JournalCorrupt
from aiobus.journal import retention
from aiobus.journal.mark import Place
from aiobus.journal.writer import JournalWriter
from aiobus.query import Query

ROUNDS = int(os.environ.get("DAMAGE_ROUNDS", "8"))
"""Of each kind of damage to each file; `make soak` has 200."""


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot(tmp_path_factory.mktemp("taken"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.db"


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_every_damage_of_a_file_is_reported_and_leaves_the_events_before_it(
    taken: Snapshot, tmp_path: Path, part: str, kind: str, seed: int
) -> None:
    spoil(taken, tmp_path, part, kind, seed)


def test_most_damages_that_are_made_here_are_no_harmless_ones(
    taken: Snapshot, tmp_path: Path
) -> None:
    reported = {
        (part, kind): sum(spoil(taken, tmp_path, part, kind, seed) for seed in range(4))
        for part in PARTS
        for kind in KINDS
    }
    assert reported["-wal", "truncation"] == reported["-wal", "flip"] == 4
    assert reported[".mark", "truncation"] == reported[".mark", "flip"] == 4
    assert reported["", "truncation"] == 4
    assert reported["", "flip"] > 0


# What no accident does: other events in the place of those that were written.


def altered(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


CASES: dict[str, tuple[list[str], int]] = {
    "an altered text": (["UPDATE events SET data = replace(data, '39', '38') WHERE seq = 5"], 5),
    "an altered time": (["UPDATE events SET time = time + 1 WHERE seq = 5"], 5),
    "another key": (["UPDATE events SET key = 1 WHERE seq = 5"], 5),
    "another cause": (["UPDATE events SET cause_seq = 7 WHERE seq = 8"], 8),
    "a renamed type": (["UPDATE names SET text = 'QUOTED' WHERE text = 'QUOTE'"], 1),
    "a renamed source": (["UPDATE sources SET name = 'food' WHERE name = 'feed'"], 1),
    "a missing event": (["DELETE FROM events WHERE seq = 5"], 5),
    "a missing end": (["DELETE FROM events WHERE seq > 15"], 16),
    "all is missing": (["DELETE FROM events"], 1),
    "two events exchanged": (
        [
            'UPDATE events SET "offset" = 99 WHERE seq = 5',
            'UPDATE events SET "offset" = 5 WHERE seq = 6',
            'UPDATE events SET "offset" = 6 WHERE seq = 5',
        ],
        5,
    ),
    "a number in the place of a text": (["UPDATE events SET data = 5 WHERE seq = 5"], 5),
    "nothing in the place of a text": (["UPDATE events SET data = NULL WHERE seq = 5"], 5),
    "a type that is not there": (["UPDATE events SET type = 99 WHERE seq = 5"], 5),
    "a table is missing": (["DROP TABLE names"], 1),
    "other facts": (["UPDATE meta SET data = replace(data, '1', '2')"], 1),
    "an index is missing": (["DROP INDEX caused"], 1),
}


@pytest.mark.parametrize(("statements", "offset"), CASES.values(), ids=CASES)
def test_events_that_are_not_those_that_were_written_are_reported(
    path: Path, statements: list[str], offset: int
) -> None:
    make(path, entries(20))
    altered(path, *statements)
    for look in (lambda: JournalWriter(path).open(), lambda: Journal(path).verify()):
        with pytest.raises(JournalCorrupt) as caught:
            look()
        assert (caught.value.offset, caught.value.valid) == (offset, offset - 1)


def test_an_event_of_another_journal_in_the_place_of_one_is_reported(path: Path) -> None:
    other = path.with_name("other.db")
    make(path, [entry(n, {"price": n}) for n in range(1, 21)])
    make(other, [entry(n, {"price": n * (1 + (n == 5))}) for n in range(1, 21)])
    altered(
        path,
        f"ATTACH '{other}' AS other",
        "DELETE FROM events WHERE seq = 5",
        "INSERT INTO events SELECT * FROM other.events WHERE seq = 5",
    )
    with pytest.raises(JournalCorrupt, match="is not the one that was written") as caught:
        JournalWriter(path).open()
    assert caught.value.offset == 20  # the mark is the one witness


def test_an_index_that_does_not_agree_with_its_table_is_reported(path: Path) -> None:
    make(path, entries(20))
    select = "SELECT rowid, * FROM sqlite_master WHERE name = 'caused'"
    connection = sqlite3.connect(path)
    (kept,) = connection.execute(select).fetchall()
    connection.close()
    altered(path, "UPDATE events SET cause_seq = 99 WHERE seq = 8", HIDDEN, DROPPED)
    altered(path, "UPDATE events SET cause_seq = 8 WHERE seq = 8", HIDDEN, RESTORED.format(*kept))
    assert len(read(path)) == 20
    with pytest.raises(JournalCorrupt, match="index caused"):
        JournalWriter(path).open()


HIDDEN = "PRAGMA writable_schema = 1"
DROPPED = "DELETE FROM sqlite_master WHERE name = 'caused'"
RESTORED = (
    "INSERT INTO sqlite_master (rowid, type, name, tbl_name, rootpage, sql)"
    " VALUES ({}, '{}', '{}', '{}', {}, '{}')"
)


@pytest.mark.parametrize("suffix", ["", ".mark"])
def test_a_journal_without_one_of_its_files_is_reported(path: Path, suffix: str) -> None:
    make(path, entries(20))
    path.with_name(path.name + suffix).unlink()
    with pytest.raises(JournalCorrupt, match="missing"):
        JournalWriter(path).open()
    assert path.exists() == bool(suffix)


def test_an_older_copy_of_the_file_beside_its_mark_is_reported(path: Path) -> None:
    make(path, entries(10))
    copy = path.read_bytes()
    make(path, entries(10, first=11))
    path.write_bytes(copy)
    with pytest.raises(JournalCorrupt, match="up to offset 20 are missing") as caught:
        JournalWriter(path).open()
    assert (caught.value.offset, caught.value.valid) == (11, 10)


def test_an_older_copy_of_the_mark_is_reported(path: Path) -> None:
    mark = path.with_name("gateway.db.mark")
    make(path, entries(10))
    copy = mark.read_bytes()
    make(path, entries(10, first=11))
    mark.write_bytes(copy)
    with pytest.raises(JournalCorrupt, match="mark is older than the file"):
        JournalWriter(path).open()


async def one_start(path: Path, place: Place, *, is_killed: bool) -> None:
    """A start of the bus that has this journal publishes ten events; its numbers are reserved."""
    writer = JournalWriter(path, sync="process")
    writer.open()
    writer.reserve("feed", place)
    some = entries(10, place.upto - 999)
    await Ledger(writer).write([each._replace(epoch=place.epoch) for each in some])
    with at_death(path) if is_killed else nullcontext():
        writer.close()


@pytest.mark.parametrize("later", ["another start", "a new epoch"])
@pytest.mark.parametrize("is_killed", [False, True], ids=["it closed", "it was killed"])
def test_a_mark_of_an_earlier_start_is_reported_however_that_ended(
    path: Path, is_killed: bool, later: str
) -> None:
    mark = path.with_name("gateway.db.mark")

    async def starts() -> bytes:
        await one_start(path, Place(EPOCH, 0, 1_000), is_killed=is_killed)
        copy = mark.read_bytes()
        place = Place(EPOCH, 1, 2_000) if later == "another start" else Place(EPOCH + 1, 0, 1_000)
        await one_start(path, place, is_killed=is_killed)
        return copy

    copy = asyncio.run(starts())
    assert len(read(path)) == 20
    mark.write_bytes(copy)
    for look in (lambda: JournalWriter(path).open(), lambda: Journal(path).verify()):
        with pytest.raises(JournalCorrupt, match="mark is older than the file") as caught:
            look()
        assert (caught.value.offset, caught.value.valid) == (21, 20)


def test_what_follows_a_damage_is_read_from_the_offset_behind_it(path: Path) -> None:
    make(path, entries(20))
    altered(path, "UPDATE events SET time = time + 1 WHERE seq = 5")
    assert [offset for offset, _ in read(path, start_offset=6)] == [*range(6, 21)]


def test_a_page_with_a_damaged_event_is_reported_with_its_offset(path: Path) -> None:
    make(path, entries(20))
    altered(path, "UPDATE events SET time = time + 1 WHERE seq = 5")
    with Journal(path) as journal:
        assert len(journal.page(Query.of("*"), "feed", EPOCH, 5, 20, 100).rows) == 15
        with pytest.raises(JournalCorrupt) as caught:
            journal.page(Query.of("*"), "feed", EPOCH, 0, 20, 100)
    assert (caught.value.offset, caught.value.valid) == (5, 4)


def test_a_write_ahead_log_without_its_database_is_reported_and_kept(
    taken: Snapshot, tmp_path: Path
) -> None:
    path = tmp_path / "gateway.db"
    left = path.with_name("gateway.db-wal")
    left.write_bytes(taken.path.with_name("gateway.db-wal").read_bytes())
    with pytest.raises(JournalCorrupt, match="other files of it are there"):
        JournalWriter(path).open()
    assert left.stat().st_size > 0
    assert not path.exists()


def test_the_count_of_valid_events_leaves_out_those_that_were_removed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "STRETCH_EVENTS", 10)
    monkeypatch.setattr(retention, "LEAST_BYTES", 1)

    async def write() -> None:
        async with writing(path, keep=1) as ledger:
            for first in range(1, 45, 5):
                await ledger.write(entries(5, first))

    asyncio.run(write())
    ((first, _), *_) = read(path)
    assert first > 10
    altered(path, f"UPDATE events SET time = time + 1 WHERE seq = {first + 3}")
    with pytest.raises(JournalCorrupt) as caught:
        JournalWriter(path).open()
    assert (caught.value.offset, caught.value.valid) == (first + 3, 3)


# The page that says how to verify a journal without aiobus.


def verified_as_the_page_says(path: Path) -> "subprocess.CompletedProcess[str]":
    page = (Path(__file__).parent.parent / "docs" / "journal.md").read_text()
    (code,) = re.findall(r"^```python verify\.py\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )


def test_the_program_of_the_page_verifies_a_journal(path: Path) -> None:
    make(path, [*entries(100), entry(1, "ü", key="ü", cause="not an id", source="other")])
    done = verified_as_the_page_says(path)
    assert (done.stdout, done.stderr) == ("101 events\n", "")


def test_the_program_of_the_page_finds_a_damage(path: Path) -> None:
    make(path, entries(20))
    altered(path, "UPDATE events SET time = time + 1 WHERE seq = 5")
    assert verified_as_the_page_says(path).stderr.endswith("AssertionError: 5\n")
