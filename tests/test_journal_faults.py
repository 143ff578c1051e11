"""A journal whose process is killed, whose disk is full or whose disk fails: what was said to be
committed is there, and what is not is said.
"""

import asyncio
import errno
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from journals import Ledger, entries, entry, make, read, writing

from aiobus import CommitFailed, Journal, JournalError, JournalFailed, JournalInUse
from aiobus.journal.mark import Place, SpaceReserve, read_mark
from aiobus.journal.writer import JournalWriter

HERE = Path(__file__).parent

TYPE = "FILL"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.db"


def command(code: str, *arguments: object) -> list[str]:
    """What runs `code` in a coroutine, with these arguments in `given`."""
    body = "\n".join(f"    {line}" for line in code.strip().splitlines())
    program = (
        "import asyncio, json, os, resource, signal, sys\n"
        "from pathlib import Path\n"
        "from journals import entries, entry, read, writing\n"
        "from aiobus import Journal, JournalRemoved\n"
        "from aiobus.journal.writer import JournalWriter\n"
        f"async def main(given):\n{body}\n"
        "asyncio.run(main(sys.argv[1:]))\n"
    )
    return [sys.executable, "-c", program, *map(str, arguments)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}"}


def process(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Another process that runs `code`."""
    told = command(code, *arguments)
    return subprocess.Popen(told, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


# Killed.

APPEND_FOR_EVER = """
path, sync = given
writer = JournalWriter(path, sync=sync)
writer.open()
seq = told = sum(writer.last_of_sources().values())
def committed(count, error):
    nonlocal told
    assert error is None
    told += count
    os.write(1, b"%d\\n" % told)
writer.start(committed)
while True:
    for _ in range(1 + seq % 97):
        seq += 1
        writer.append(entry(seq, {"price": seq, "text": "x" * (seq % 300)}))
    await asyncio.sleep(0 if seq % 3 else 0.001)
"""


@pytest.mark.parametrize("sync", ["power", "process"])
def test_a_process_that_is_killed_has_left_all_that_it_said_was_committed_once_and_in_order(
    path: Path, sync: str
) -> None:
    chosen = random.Random(sync)
    told = 0
    for _ in range(5):
        writer = process(APPEND_FOR_EVER, path, sync)
        assert writer.stdout is not None
        told = int(writer.stdout.readline())
        time.sleep(chosen.uniform(0.01, 0.3))  # any instant will do
        writer.kill()
        lines = writer.stdout.read().split("\n")
        writer.wait()
        writer.stdout.close()
        told = max([told, *map(int, filter(None, lines[:-1]))])  # the last may be cut
        found = read(path)
        assert [offset for offset, _ in found] == [event.seq for _, event in found]
        assert [offset for offset, _ in found] == [*range(1, len(found) + 1)]
        assert len(found) >= told
        assert all(event.data["text"] == "x" * (event.seq % 300) for _, event in found)
    assert told > 100


def test_the_mark_of_a_process_that_is_killed_knows_what_was_committed_a_second_ago(
    path: Path,
) -> None:
    writer = process(
        """
async with writing(Path(given[0])) as ledger:
    await ledger.write(entries(100))
    print("committed", flush=True)
    await asyncio.sleep(60)
""",
        path,
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    until = time.monotonic() + 10
    while (mark := read_mark(str(path))) is None or mark.offset < 100:
        assert time.monotonic() < until
        time.sleep(0.01)
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert not mark.is_clean
    with Journal(path) as journal:
        assert journal.verify() == 100


def test_a_child_that_was_forked_does_not_keep_the_lock_of_its_parent(path: Path) -> None:
    writer = process(
        """
async with writing(Path(given[0])) as ledger:
    await ledger.write(entries(3))
    if os.fork() == 0:
        os.write(1, b"%d\\n" % os.getpid())
        os.close(1)
        signal.pause()
    await asyncio.sleep(60)
""",
        path,
    )
    assert writer.stdout is not None
    child = int(writer.stdout.readline())
    try:
        with pytest.raises(JournalInUse, match=f"process {writer.pid} since"):
            JournalWriter(path).open()
        writer.kill()
        writer.wait()
        again = JournalWriter(path)
        again.open()
        again.close()
    finally:
        writer.stdout.close()
        os.kill(child, signal.SIGKILL)
    assert len(read(path)) == 3


# The disk is full.


def limited(ledger: Ledger, pages: int) -> None:
    """Let the database have so many pages more; then SQLite says that the disk is full."""
    connection = ledger.writer._opened._connection
    ((count,),) = connection.execute("PRAGMA page_count").fetchall()
    connection.execute(f"PRAGMA max_page_count = {count + pages}").fetchall()


def big(seq: int) -> Any:
    return entry(seq, "x" * 20_000)


async def test_events_for_which_there_is_no_space_fail_and_later_ones_are_committed(
    path: Path,
) -> None:
    async with writing(path) as ledger:
        await ledger.write([big(1)])
        limited(ledger, 1)
        await ledger.write([big(2)])
        await ledger.write([big(3)])
        assert [type(error) for error in ledger.errors] == [CommitFailed, CommitFailed]
        assert "full" in str(ledger.errors[0])
        limited(ledger, 1_000)
        await ledger.write([big(4)])
        assert (ledger.committed, len(ledger.errors)) == (2, 2)
    assert [(offset, event.seq) for offset, event in read(path)] == [(1, 1), (2, 4)]
    with Journal(path) as journal:
        assert journal.verify() == 2


async def test_a_warning_comes_before_the_space_in_reserve_is_used(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with writing(path) as ledger:
        assert SpaceReserve(str(path)).release()  # there was one
        SpaceReserve(str(path)).keep()
        await ledger.write([big(1)])
        limited(ledger, 1)
        await ledger.write([big(2)])
        assert len(ledger.errors) == 1
        assert "the space kept in reserve is used now" in caplog.text


def full(*given: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_journal_is_opened_with_the_space_in_reserve_if_there_is_no_other(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(path, entries(3))
    real = os.fsync
    fails = iter([full])
    monkeypatch.setattr(os, "fsync", lambda descriptor: next(fails, real)(descriptor))
    writer = JournalWriter(path)
    writer.open()
    writer.close()
    assert "the space kept in reserve is used now" in caplog.text


def test_a_reserve_for_which_there_is_no_space_is_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full)
    make(path, entries(3))
    assert not SpaceReserve(str(path)).release()
    assert len(read(path)) == 3


FILL_THE_DISK = """
path = Path(given[0])
said = {"committed": 0, "failed": 0, "errors": []}
async with writing(path, sync="power") as ledger:
    seq = 0
    while not ledger.errors:
        seq += 1
        await ledger.write([entry(seq, "x" * 20_000)])
    said["before"] = ledger.committed
    said["error"] = type(ledger.errors[0]).__name__
    (path.parent / "ballast").unlink()
    seq += 1
    await ledger.write([entry(seq, "after")])
    said["after"] = ledger.committed
    said["errors"] = len(ledger.errors)
said["valid"] = len(read(path))
print(json.dumps(said), flush=True)
"""

ON_A_SMALL_DISK = r"""
mkdir -p "$1"
mount -t tmpfs -o size=24m none "$1" || exit 77
head -c 2m /dev/zero > "$1/ballast"
shift
exec "$@"
"""


CANNOT_MOUNT = 77
IN_A_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def in_a_namespace(script: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run a script of the shell that mounts a file system; without the right to, skip the test."""
    if not shutil.which("unshare"):
        pytest.skip("only Linux has namespaces to mount a file system in")
    done = subprocess.run(
        [*IN_A_NAMESPACE, "sh", "-c", script, "sh", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    if done.returncode == CANNOT_MOUNT or "unshare" in done.stderr:
        pytest.skip(f"no file system of its own can be mounted here: {done.stderr}")
    return done


def test_a_full_disk_fails_what_it_has_no_room_for_and_nothing_else(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    outer = in_a_namespace(ON_A_SMALL_DISK, disk, *command(FILL_THE_DISK, disk / "gateway.db"))
    said = json.loads(outer.stdout)
    assert said["error"] == "CommitFailed"
    assert said["before"] > 100
    assert (said["after"], said["errors"]) == (said["before"] + 1, 1)
    assert said["valid"] == said["after"]
    assert "the space kept in reserve is used now" in outer.stderr


ON_A_READ_ONLY_DISK = r"""
mkdir -p "$2"
mount -t tmpfs none "$2" || exit 77
cp "$1" "$1.mark" "$2" && mount -o remount,ro "$2" || exit 77
exec "$3" -m aiobus log "$2/gateway.db" --verify
"""


def test_a_closed_journal_is_read_on_a_read_only_disk(path: Path) -> None:
    make(path, entries(20))
    done = in_a_namespace(ON_A_READ_ONLY_DISK, path, path.parent / "disk", sys.executable)
    assert (done.stdout, done.stderr) == ("20 events, all as they were written\n", "")


# The disk fails.


def log_of(path: Path) -> os.stat_result:
    """Raises FileNotFoundError if there is no write-ahead log."""
    return os.stat(f"{path}-wal")


async def test_a_mark_vouches_for_nothing_that_is_not_on_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    async with writing(path, sync="process") as ledger:
        await ledger.write(entries(3))
        monkeypatch.setattr(os, "fsync", fsync)
        ledger.writer.reserve("feed", Place(1, 0, 10_000))
        mark = os.stat(f"{path}.mark").st_ino
        assert synced == [log_of(path).st_ino, mark, os.stat(path.parent).st_ino]


@pytest.mark.parametrize(("sync", "level"), [("power", 2), ("process", 1)])
async def test_with_power_each_commit_is_synced(path: Path, sync: Any, level: int) -> None:
    async with writing(path, sync=sync) as ledger:
        connection = ledger.writer._opened._connection
        assert connection.execute("PRAGMA synchronous").fetchall() == [(level,)]


async def test_after_an_error_of_fsync_nothing_is_written_before_the_journal_is_opened_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with writing(path) as ledger:
        await ledger.write(entries(3))
        real = os.fsync

        def fail(descriptor: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(JournalFailed, match="Input/output error"):
            ledger.writer.reserve("feed", Place(1, 0, 10_000))
        monkeypatch.setattr(os, "fsync", real)
        with pytest.raises(JournalFailed, match="open the journal again"):
            ledger.writer.append(entry(4))
    # Nothing was copied out of the write-ahead log, which is perhaps not on the disk.
    assert log_of(path).st_size > 0
    async with writing(path) as ledger:
        await ledger.write(entries(3, 4))
        assert ledger.committed == 3
    assert [event.seq for _, event in read(path)] == [*range(1, 7)]


async def test_a_journal_whose_mark_cannot_be_written_at_the_end_is_not_marked_as_complete(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with writing(path) as ledger:
        await ledger.write(entries(3))
        monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.undo()
    assert "is not marked as complete" in caplog.text
    assert log_of(path).st_size > 0
    assert len(read(path)) == 3


LIMIT_THE_FILE = """
path = Path(given[0])
async with writing(path) as ledger:
    await ledger.write(entries(5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024 * 1024, -1))
    seq = 5
    while not ledger.errors:
        some = [entry(n, "x" * 50_000) for n in range(seq + 1, seq + 100)]
        seq += 99
        await ledger.write(some)
    assert ledger.committed + len(ledger.errors) == seq
    try:
        ledger.writer.append(entry(seq + 1))
    except Exception as error:
        again = type(error).__name__
    print(json.dumps([ledger.committed, type(ledger.errors[0]).__name__, again]), flush=True)
"""


def test_after_an_error_of_writing_nothing_is_written_before_the_journal_is_opened_again(
    path: Path,
) -> None:
    writer = process(LIMIT_THE_FILE, path)
    text, _ = writer.communicate()
    committed, first, again = json.loads(text)
    assert (first, again) == ("JournalFailed", "JournalFailed")
    store = JournalWriter(path)
    store.open()
    store.close()
    assert [event.seq for _, event in read(path)] == [*range(1, committed + 1)]


async def test_a_foreign_lock_fails_the_commit_and_not_the_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobus.journal.scan.BUSY_SECONDS", 0.05)
    async with writing(path) as ledger:
        await ledger.write(entries(1))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await ledger.write(entries(1, 2))
        other.execute("ROLLBACK")
        other.close()
        await ledger.write(entries(1, 3))
        assert [str(error).endswith("(SQLITE_BUSY)") for error in ledger.errors] == [True]
    assert [event.seq for _, event in read(path)] == [1, 3]


async def test_a_number_that_was_used_before_is_refused(path: Path) -> None:
    async with writing(path) as ledger:
        await ledger.write(entries(3))
        await ledger.write(entries(1, 2))
        assert [type(error) for error in ledger.errors] == [CommitFailed]
        await ledger.write(entries(1, 4))
    assert [event.seq for _, event in read(path)] == [1, 2, 3, 4]


async def test_a_loop_that_ends_while_events_are_committed_loses_none_of_them(path: Path) -> None:
    def run() -> JournalWriter:
        writer = JournalWriter(path)
        writer.open()

        async def main() -> None:
            writer.start(lambda count, error: None)
            for each in entries(2_000):
                writer.append(each)

        asyncio.run(main())
        return writer

    writer = await asyncio.to_thread(run)
    await asyncio.to_thread(writer.close)
    assert len(read(path)) == 2_000


# Read by other processes meanwhile.

READ_AGAIN_AND_AGAIN = """
counts = []
while not os.path.exists(given[1]):
    with Journal(given[0]) as journal:
        try:
            counts.append(journal.verify())
            seqs = [event.seq for _, event in journal.read(types="FILL")]
            assert seqs == sorted(set(seqs))
        except JournalRemoved:
            counts.append(0)
    Path(given[2]).touch()
print(json.dumps(counts), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("keep", [None, 1])
def test_a_reader_elsewhere_never_takes_what_is_being_written_for_a_damage(
    path: Path, keep: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobus.journal.store.CHECKPOINT_BYTES", 50_000)
    monkeypatch.setattr("aiobus.journal.store.MARK_SECONDS", 0.01)
    monkeypatch.setattr("aiobus.journal.retention.LEAST_BYTES", 1)
    monkeypatch.setattr("aiobus.journal.retention.STRETCH_EVENTS", 2_000)
    make(path, entries(1))
    stop = path.with_name("stop")
    begun = [path.with_name(f"begun {number}") for number in range(2)]
    readers = [process(READ_AGAIN_AND_AGAIN, path, stop, each) for each in begun]
    while not all(each.exists() for each in begun):
        assert [reader.poll() for reader in readers] == [None, None]
        time.sleep(0.01)

    async def write() -> None:
        for first in range(2, 40_000, 10_000):  # closed and opened again as well
            async with writing(path, keep=keep) as ledger:
                for begin in range(first, first + 10_000, 100):
                    await ledger.write(entries(100, begin))
                assert ledger.errors == []

    asyncio.run(write())
    stop.touch()
    for reader in readers:
        text, _ = reader.communicate(timeout=30)
        counts = json.loads(text)
        assert reader.returncode == 0
        assert counts
        if keep is None:
            assert counts == sorted(counts)
    with Journal(path) as journal:
        assert journal.verify() == 40_001 if keep is None else journal.verify() < 10_000


def test_a_lock_whose_holder_cannot_be_noted_is_let_go_in_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        writer = JournalWriter(path)
        writer.open()
        with pytest.raises(JournalInUse, match="another process"):
            JournalWriter(path).open()
        writer.close()
    writer = JournalWriter(path)
    writer.open()
    writer.close()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_opening_that_fails_on_a_full_disk_keeps_no_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(JournalError, match="No space left"):
            JournalWriter(path).open()
    writer = JournalWriter(path)
    writer.open()
    writer.close()


def test_a_disk_without_space_for_the_reserve_is_told_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full)
    make(path, entries(3))
    assert caplog.text.count("none is kept in reserve now") == 1
