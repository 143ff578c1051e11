"""A journal holds what was committed to it, once and in order, and says so only when it does."""

import asyncio
import os
import random
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from journals import EPOCH, START, Ledger, entries, entry, facts, make, read, writing, written

from aiobus import (
    AsyncEventBus,
    Event,
    Journal,
    JournalCorrupt,
    JournalError,
    JournalInUse,
    record,
)
from aiobus.codec import decode
from aiobus.journal.format import Entry, Texts, encode_columns, rebuilt
from aiobus.journal.history import Past
from aiobus.journal.mark import MAKING, Place, read_mark, write_mark
from aiobus.journal.writer import JournalWriter
from aiobus.query import Query


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a journal may be."""
    return tmp_path / "gateway.db"


def originals(some: list[Entry]) -> list[Event]:
    return [decode([each.row], each.source, each.epoch)[0] for each in some]


ODD = [
    entry(1, [1, [2, {"a": None}]], type="aiobus.gap", key='q"uo\\te, ü\x00\n'),
    entry(2, "text, with [brackets]", key="", cause="not an id"),
    entry(3, -0.0, cause="feed@0.1", time=0.1 + 0.2),
    entry(4, {"x": 1e-300}, cause="feed@00.1"),
    entry(5, {}, cause=f"feed@{'z' * 13}.5", time=1e11),
    entry(6, 1e22, cause="feed@zz.9223372036854775808", source="other", epoch=-5),
    entry(7, "ü" * 1000, cause="feed@zz.9223372036854775807", type="A" * 64, key="k" * 128),
    entry(8, True, cause='ü,]"', time=0.0),
    entry(9, False, time=-0.0),
]


@pytest.mark.parametrize("each", ODD, ids=lambda each: str(each.seq))
async def test_an_event_is_read_as_it_was_published(path: Path, each: Entry) -> None:
    await written(path, [each])
    (((offset, event)),) = read(path)
    (original,) = originals([each])
    assert (offset, facts(event)) == (1, facts(original))
    assert type(event.type) is type(original.type)


def test_a_row_is_rebuilt_byte_by_byte() -> None:
    for each in [*ODD, *entries(20)]:
        columns, _ = encode_columns([each], Texts(), 0, 0)
        data = columns[-2].encode()
        again = rebuilt(each.seq, each.time, each.type, each.key, each.cause, data)
        assert again == each.row


async def test_events_are_read_in_the_order_in_which_they_were_appended(path: Path) -> None:
    some = entries(3_000)
    await written(path, some)
    found = read(path)
    assert [offset for offset, _ in found] == [*range(1, 3_001)]
    assert [facts(event) for _, event in found] == [facts(event) for event in originals(some)]


async def test_the_files_of_a_journal_are_for_their_owner_alone(path: Path) -> None:
    async with writing(path) as ledger:
        await ledger.write(entries(5))
        files = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert set(files) == {
        f"gateway.db{suffix}" for suffix in ("", "-wal", "-shm", ".mark", ".lock", ".reserve")
    }
    assert set(files.values()) == {0o600}


async def test_a_journal_that_is_opened_again_goes_on_behind_its_last_event(path: Path) -> None:
    await written(path, entries(10))
    await written(path, entries(10, first=11))
    assert [(offset, event.seq) for offset, event in read(path)] == [(n, n) for n in range(1, 21)]


async def test_a_journal_is_read_while_it_is_written(path: Path) -> None:
    async with writing(path) as ledger:
        with Journal(path) as journal:
            assert list(journal) == []
            await ledger.write(entries(1_500))
            assert [offset for offset, _ in journal] == [*range(1, 1_501)]
            await ledger.write([entry(1_501, type="NEW", key="new", source="another")])
            ((_, event),) = journal.read(start_offset=1_501)
            assert (event.type, event.key, event.source) == ("NEW", "new", "another")


async def test_what_is_committed_is_there_before_committed_is_called(path: Path) -> None:
    writer = JournalWriter(path)
    writer.open()
    seen: list[int] = []
    done = asyncio.Event()
    some = entries(300)

    def committed(count: int, error: BaseException | None) -> None:
        assert error is None
        seen.append(count)
        assert len(read(path)) >= sum(seen)
        if sum(seen) == len(some):
            done.set()

    writer.start(committed)
    for each in some:
        writer.append(each)
        await asyncio.sleep(0)
    await done.wait()
    writer.close()


def committing(path: Path, count: int) -> tuple[JournalWriter, list[int]]:
    """A writer to which so many events were given, and how many each commit has had."""
    writer = JournalWriter(path)
    writer.open()
    seen: list[int] = []
    writer.start(lambda count, error: seen.append(count))
    for each in entries(count):
        writer.append(each)
    return writer, seen


@pytest.mark.virtual
async def test_on_a_virtual_loop_the_loop_itself_commits(path: Path) -> None:
    writer, seen = committing(path, 3)
    await asyncio.sleep(0.001)
    assert seen == [3]
    assert writer._thread is None
    writer.close()
    assert len(read(path)) == 3


@pytest.mark.virtual
async def test_closing_commits_what_is_queued_on_a_virtual_loop_too(path: Path) -> None:
    writer, seen = committing(path, 3)
    writer.close()
    await asyncio.sleep(0.001)
    assert seen == [3]
    assert len(read(path)) == 3


async def test_closing_commits_what_is_queued_and_tells_of_it(path: Path) -> None:
    writer, seen = committing(path, 2_500)
    await asyncio.to_thread(writer.close)
    await asyncio.sleep(0)
    assert sum(seen) == 2_500
    assert len(read(path)) == 2_500
    mark = read_mark(str(path))
    assert mark is not None
    assert (mark.offset, mark.is_clean) == (2_500, True)


async def test_a_second_writer_is_refused_and_told_who_the_first_is(path: Path) -> None:
    async with writing(path):
        with pytest.raises(JournalInUse, match=r"is written by process [0-9]+ since") as caught:
            JournalWriter(path).open()
    assert caught.value.path == str(path)
    async with writing(path) as ledger:
        await ledger.write(entries(1))


def test_another_database_is_no_journal_and_is_left_as_it_is(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE mine (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(JournalError):
        JournalWriter(path).open()
    with pytest.raises(JournalError):
        Journal(path)
    assert path.read_bytes() == before


def test_a_file_in_a_directory_that_does_not_exist_is_refused_with_its_path(path: Path) -> None:
    with pytest.raises(JournalError, match=r"gateway\.db"):
        JournalWriter(path.parent / "absent" / "gateway.db").open()
    with pytest.raises(JournalError, match="does not exist"):
        Journal(path)


@pytest.mark.parametrize("begins", [(0, 40, 90, 8_192), (8_192,), ()], ids=str)
async def test_numbers_that_were_reserved_are_known_after_a_crash(
    path: Path, begins: tuple[int, ...]
) -> None:
    """A mark of an earlier version of aiobus has one start, or none."""
    place = Place(EPOCH, 3, 10_000, begins)
    async with writing(path) as ledger:
        assert ledger.writer.place("feed") is None
        ledger.writer.reserve("feed", place)
        await ledger.write(entries(7))
    async with writing(path) as ledger:
        assert ledger.writer.place("feed") == place
        with pytest.raises(JournalError, match="not the journal of 'other', but of feed"):
            ledger.writer.place("other")


async def test_a_recording_is_no_journal_of_a_source(path: Path) -> None:
    async with writing(path) as ledger:
        await ledger.write(entries(7))
        with pytest.raises(JournalError, match="not the journal of 'feed', but a recording"):
            ledger.writer.place("feed")


async def test_a_writer_that_is_closed_or_not_started_takes_nothing(path: Path) -> None:
    writer = JournalWriter(path)
    with pytest.raises(JournalError, match="is not open for writing"):
        writer.append(entry(1))
    async with writing(path) as ledger:
        pass
    with pytest.raises(JournalError, match="is not open for writing"):
        ledger.writer.append(entry(1))


@pytest.mark.parametrize("ask", ["last_seq", "last_of_sources"])
async def test_what_is_in_a_file_is_asked_before_it_is_written_and_not_beside_that(
    path: Path, ask: str
) -> None:
    """SQLite refuses a checkpoint while another thread reads by the same connection, and then the
    journal fails.
    """
    await written(path, entries(7))
    source = ("feed", EPOCH) if ask == "last_seq" else ()
    writer = JournalWriter(path)
    writer.open()
    assert getattr(writer, ask)(*source)
    Ledger(writer)
    with pytest.raises(JournalError, match="ask what is in it before `start`"):
        getattr(writer, ask)(*source)
    writer.close()


async def test_the_queue_has_a_bound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiobus.journal.writer.QUEUE_EVENTS", 3)
    async with writing(path) as ledger:
        for each in entries(3):
            ledger.writer.append(each)
        assert ledger.writer.room == 0
        with pytest.raises(JournalError, match="3 events wait to be committed already"):
            ledger.writer.append(entry(4))
        await ledger.write([])
        assert (ledger.writer.room, ledger.committed) == (3, 3)


# What a reader may ask for.


async def test_a_reader_selects_by_offset_time_type_key_and_source(path: Path) -> None:
    some = [*entries(60), entry(1, source="broker", type="aiobus.gap", key="KEY1")]
    await written(path, some)

    def numbers(**given: object) -> list[int]:
        return [offset for offset, _ in read(path, **given)]

    assert numbers(start_offset=58) == [58, 59, 60, 61]
    assert numbers(since=START + 1, until=START + 2) == [*range(8, 16)]
    assert numbers(types="FILL") == [*range(2, 61, 3)]
    assert numbers(types=["FILL", "TRADE"], keys="KEY0") == [
        n for n in range(1, 61) if n % 3 != 1 and n % 5 == 0
    ]
    assert numbers(keys=["KEY1", "KEY2*"], start_offset=50) == [51, 52, 56, 57]
    assert numbers(sources="broker") == numbers(types="aiobus.gap") == [61]
    assert numbers(sources=["broker", "feed"]) == [*range(1, 62)]


async def test_a_page_has_the_rows_of_one_source_as_they_were_published(path: Path) -> None:
    some = entries(40)
    mixed = [row for each in some for row in (each, each._replace(source="other"))]
    await written(path, mixed)
    with Journal(path) as journal:
        page = journal.page(Query.of("FILL"), "feed", EPOCH, 5, 30, 4)
        wanted = [each for each in some if each.type == "FILL" and 5 < each.seq <= 30]
        assert page.rows == [(each.seq, each.type, each.key, each.row) for each in wanted[:4]]
        assert (page.to, page.removed) == (wanted[3].seq, 0)
        rest = journal.page(Query.of("FILL"), "feed", EPOCH, page.to, 30, 100)
        assert [row[0] for row in rest.rows] == [each.seq for each in wanted[4:]]
        assert rest.to == 30
        assert journal.page(Query.of("*"), "absent", 1, 0, 30, 4).rows == []


@pytest.mark.parametrize("names", [4, 16_384])
async def test_a_page_has_what_its_query_matches_whether_texts_have_numbers_or_not(
    path: Path, names: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobus.journal.format.MAX_NAMES", names)
    monkeypatch.setattr("aiobus.journal.reader.CLAUSE_NUMBERS", 8)
    some = [
        entry(n, type=("aiobus.gap", "TRADE", "QUOTE", "FILL")[n % 4], key=f"K{n % 17}")
        for n in range(1, 301)
    ]
    await written(path, some)
    with Journal(path) as journal:
        for query in (
            Query.of("*"),
            Query.of("*", "K1*"),
            Query.of(["TRADE", "FILL"]),
            Query.of(["TRADE", "FILL"], ["K3", "K1*"]),
            Query.of(["TRADE", "aiobus.gap"], "K5"),
            Query.of("ABSENT"),
        ):
            page = journal.page(query, "feed", EPOCH, 7, 290, 1_000)
            wanted = [e for e in some if query.matches(e.type, e.key) and 7 < e.seq <= 290]
            assert [row[3] for row in page.rows] == [each.row for each in wanted], query


async def test_the_view_opens_with_plain_sqlite(path: Path) -> None:
    some = entries(12)
    await written(path, some)
    plain = sqlite3.connect(path)
    rows = plain.execute(
        'SELECT "offset", source, epoch, seq, id, time, type, key, cause, data FROM log'
        ' ORDER BY "offset"'
    ).fetchall()
    plain.close()
    for offset, (row, event) in enumerate(zip(rows, originals(some), strict=True), 1):
        assert row[:9] == (
            *(offset, event.source, event.epoch, event.seq, event.id, event.timestamp),
            *(event.type, event.key, event.cause),
        )


@pytest.mark.parametrize("given", [{"since": 60}, {"until": 1_700_000_000_000}, {"since": "1"}])
async def test_a_time_that_is_no_unix_time_is_refused(path: Path, given: dict[str, object]) -> None:
    await written(path, entries(1))
    with pytest.raises(ValueError, match="seconds since 1970"):
        read(path, **given)


# Bounds.


async def test_keys_that_never_repeat_fill_no_table_and_are_read_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobus.journal.format.MAX_NAMES", 10)
    monkeypatch.setattr("aiobus.journal.format.MAX_SOURCES", 3)
    some = [
        entry(n, type=f"T{n % 7}", key=str(n), cause=f"bus{n}@zz.{n}", source=f"feed{n % 5}")
        for n in range(1, 101)
    ]
    await written(path, some)
    assert [facts(event) for _, event in read(path)] == [facts(each) for each in originals(some)]
    plain = sqlite3.connect(path)
    assert plain.execute("SELECT count(*) FROM names").fetchall() == [(10,)]
    assert len(plain.execute("SELECT * FROM sources").fetchall()) <= 3 + 5  # of causes, and own
    rows = plain.execute('SELECT type, key, cause FROM log ORDER BY "offset"').fetchall()
    plain.close()
    assert rows == [(each.type, each.key, each.cause) for each in some]
    with Journal(path) as journal:
        page = journal.page(Query.of("*"), "feed3", EPOCH, 0, 100, 100)
        assert [row[3] for row in page.rows] == [each.row for each in some if each.seq % 5 == 3]


async def test_the_write_ahead_log_is_emptied_while_events_are_written(path: Path) -> None:
    async with writing(path) as ledger:
        for first in range(1, 20_000, 1_000):
            await ledger.write([entry(n, "x" * 1_000) for n in range(first, first + 1_000)])
        assert os.stat(path).st_size > 12 * 2**20 > os.stat(f"{path}-wal").st_size


async def test_a_reader_that_keeps_the_log_from_being_emptied_is_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("aiobus.journal.store.LONG_LOG_BYTES", 2**20)
    monkeypatch.setattr("aiobus.journal.store.CHECKPOINT_BYTES", 2**20)
    async with writing(path) as ledger:
        await ledger.write(entries(1))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM events").fetchall()
        for first in range(2, 4_000, 1_000):
            await ledger.write([entry(n, "x" * 1_000) for n in range(first, first + 1_000)])
        other.close()
        await ledger.write(entries(1, 5_000))
        assert "because another program keeps a transaction open" in caplog.text
        assert ledger.errors == []


# Making a journal.

STEPS = 24
"""Statements of which the first makes the database and the last is behind its verification."""


@pytest.mark.parametrize("step", range(STEPS))
def test_a_process_that_is_killed_while_it_makes_a_journal_leaves_one_that_can_be_opened(
    path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(STEPS))

    class Killed(BaseException):
        pass

    opened: list[sqlite3.Connection] = []

    class Connection(sqlite3.Connection):
        def execute(self, *given: object) -> sqlite3.Cursor:  # type: ignore[override]
            if self not in opened:
                opened.append(self)
            if next(steps, None) == step:
                raise Killed
            return super().execute(*given)  # type: ignore[arg-type]

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Connection, **k))
    with pytest.raises(Killed):
        JournalWriter(path).open()
    monkeypatch.undo()
    for connection in opened:  # as the end of a process does
        connection.close()
    writer = JournalWriter(path)
    writer.open()
    writer.close()
    assert read(path) == []


def test_an_sqlite_that_is_too_old_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 32, 3))
    with pytest.raises(JournalError, match=r"is too old: 3\.33 is needed"):
        JournalWriter(path).open()


def test_a_journal_that_another_process_is_making_is_no_damaged_one(path: Path) -> None:
    path.touch()
    write_mark(str(path), MAKING)
    with pytest.raises(JournalError, match="is being made: try again"):
        Journal(path)


async def test_a_journal_that_is_closed_says_so_and_not_that_it_is_damaged(path: Path) -> None:
    await written(path, entries(3))
    journal = Journal(path)
    reading = journal.read()
    next(reading)
    journal.close()
    for use in (
        journal.verify,
        lambda: next(journal.read()),
        lambda: [*reading],
        lambda: journal.page(Query.of("*"), "feed", EPOCH, 0, 3, 3),
    ):
        with pytest.raises(JournalError, match="cannot be read now: Cannot operate on a") as caught:
            use()
        assert not isinstance(caught.value, JournalCorrupt)


async def test_a_journal_that_another_program_has_locked_is_no_damaged_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await written(path, entries(3))
    monkeypatch.setattr("aiobus.journal.scan.BUSY_SECONDS", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
    other.execute("BEGIN EXCLUSIVE")
    for use in (lambda: Journal(path), lambda: JournalWriter(path).open()):
        with pytest.raises(JournalError, match="SQLITE_BUSY") as caught:
            use()
        assert not isinstance(caught.value, JournalCorrupt)
    other.close()
    assert len(read(path)) == 3


async def test_the_first_event_from_a_time_on_is_found(path: Path) -> None:
    chosen = random.Random(1)
    some = [
        each._replace(time=START + each.seq * 0.01 + chosen.uniform(-2.0, 2.0))
        for each in entries(20_000)
    ]
    async with writing(path) as ledger:
        for begin in range(0, 20_000, 500):
            await ledger.write(some[begin : begin + 500])
    with Journal(path) as journal:
        ((stretches,),) = journal._connection.execute("SELECT count(*) FROM stretches").fetchall()
        assert stretches >= 4
        past = Past(journal, ("feed", EPOCH))
        for time in (START - 10, START, START + 77.7, START + 199.9, START + 500):
            for upto in (5_000, 20_000):
                found = (each.seq - 1 for each in some[:upto] if each.time >= time)
                assert past.place_since(time, upto) == (next(found, None), time)


@pytest.mark.parametrize("is_closed", [True, False])
async def test_an_offset_behind_the_end_is_no_damage(path: Path, is_closed: bool) -> None:
    if is_closed:
        await written(path, entries(3))
        assert [read(path, start_offset=offset) for offset in (4, 5, 999_999)] == [[], [], []]
        return
    async with writing(path) as ledger:
        await ledger.write(entries(3))
        assert [read(path, start_offset=offset) for offset in (4, 5, 999_999)] == [[], [], []]


@pytest.mark.parametrize("offset", [0, -1, "3", 1.0, True])
def test_an_offset_that_cannot_be_is_refused(path: Path, offset: Any) -> None:
    make(path, entries(3))
    with pytest.raises(ValueError, match=r"offsets are 1, 2, 3"):
        read(path, start_offset=offset)


@pytest.mark.parametrize("given", [3, None, True, b"desk.db", ""])
def test_a_path_that_is_none_is_refused_by_the_name_of_its_argument(given: Any) -> None:
    with pytest.raises(TypeError, match=r"path=.*the path of a file is needed"):
        Journal(given)
    with pytest.raises(TypeError, match=r"path=.*the path of a file is needed"):
        record(AsyncEventBus(), given)
    if given is not None:
        with pytest.raises(TypeError, match=r"journal=.*the path of a file is needed"):
            AsyncEventBus(name="desk", journal=given)


def test_a_directory_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="is a directory"):
        Journal(tmp_path)
    with pytest.raises(JournalError, match="is a directory"):
        AsyncEventBus(name="desk", journal=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", ["no", 5, None])
def test_a_new_epoch_is_begun_by_true_alone(path: Path, given: Any) -> None:
    with pytest.raises(TypeError, match="True or False is needed"):
        AsyncEventBus(name="desk", journal=path, new_epoch=given)


def test_a_recording_is_of_a_bus(path: Path) -> None:
    with pytest.raises(TypeError, match="an AsyncEventBus is needed"):
        record("desk", path)  # type: ignore[arg-type]
    assert list(path.parent.iterdir()) == []


def test_a_copy_without_its_mark_is_told_what_it_lacks(path: Path) -> None:
    make(path, entries(3))
    Path(f"{path}.mark").unlink()
    with pytest.raises(JournalCorrupt, match="a copy needs it as well") as raised:
        JournalWriter(path).open()
    assert raised.value.valid == 3
