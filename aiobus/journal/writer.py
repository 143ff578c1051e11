"""Writing a journal: one thread that commits what was appended, and says on the loop what is on the
disk.

Owns the only connection that writes and checkpoints: before SQLite 3.51.3, two of them could
corrupt the file. One statement is one commit: `executemany` takes the GIL back for each row, which
beside a loop that computes takes up to 5 ms each time. On a virtual loop there is no thread, and
the loop's own turn commits.
"""

import asyncio
import errno
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Literal

from aiobus import clock
from aiobus.errors import CommitFailed, JournalCorrupt, JournalError, JournalFailed
from aiobus.journal.format import (
    APPLICATION,
    FORMAT,
    SCHEMA,
    Entry,
    Texts,
    encode_columns,
    insertion,
    origin,
    sealed,
)
from aiobus.journal.mark import FileLock, Mark, SpaceReserve, read_mark, sync_file, write_mark
from aiobus.journal.scan import Database, connect, is_busy, said, verified

__all__ = ["JournalWriter", "Sync"]

Sync = Literal["power", "process"]
Committed = Callable[[int, BaseException | None], None]

COMMIT_EVENTS = 1_000
COMMIT_BYTES = 1024 * 1024
QUEUE_EVENTS = 65_536
QUEUE_BYTES = 64 * 1024 * 1024
MARK_SECONDS = 1.0
CHECKPOINT_BYTES = 4 * 1024 * 1024
"""Bytes of rows after which the write-ahead log is emptied into the database."""
LONG_LOG_BYTES = 256 * 1024 * 1024

log = logging.getLogger("aiobus.journal")


class JournalWriter:
    """The one writer of the journal at `path`.

    `sync="power"`: an event that is committed survives a power failure. `"process"`: it survives
    the end of the process in any way; a power failure may take the last second.
    """

    def __init__(self, path: str | os.PathLike[str], *, sync: Sync = "power") -> None:
        if sync not in ("power", "process"):
            raise ValueError(f"sync={sync!r}: 'power' or 'process' is needed")
        self.path = os.path.abspath(os.fspath(path))
        self._sync = sync
        self._lock: FileLock | None = None
        self._connection: sqlite3.Connection | None = None
        self._removed: dict[str, int] = {}
        """The highest seq that `keep=` has removed, by the number of the source."""
        self._texts = Texts()
        self._names = self._sources = 0
        """How many of the texts are in the file."""
        self._position = (0, 0)
        """The offset of the last committed event, and the running checksum behind it."""
        self._reserved: dict[str, tuple[int, int]] = {}
        self._unmarked_since: float | None = None
        """When the first event was committed that the mark does not know."""
        self._mark_lock = threading.Lock()
        self._is_untended = False
        """True if what is due beside commits has failed, and is to be tried again."""
        self._space = SpaceReserve(self.path)
        self._unchecked = 0
        """Bytes committed since the last checkpoint."""
        self._queue: deque[Entry] = deque()
        self._queued = self._queued_bytes = 0
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._committed: Committed | None = None
        self._is_closing = False
        self._is_stepping = False
        self._failed: JournalFailed | None = None

    # Opening.

    def open(self) -> None:
        """Lock the file, make it if it is not there, and verify it. Blocks, for a few seconds per
        million events. Raises JournalInUse, JournalCorrupt, and JournalError for a file that is no
        journal or that cannot be made.
        """
        try:
            self._lock = FileLock(self.path)
            self._open()
        except BaseException as error:
            self._shut()
            if isinstance(error, OSError) or (isinstance(error, sqlite3.Error) and is_busy(error)):
                raise JournalError(f"{self.path} cannot be opened: {said(error)}") from error
            raise

    def _open(self) -> None:
        mark, damage = None, ""
        try:
            mark = read_mark(self.path)
        except ValueError as error:
            damage = str(error)
        is_there = os.path.exists(self.path)
        if not is_there:
            if damage or (mark and (mark.offset or mark.reserved)):
                raise JournalCorrupt(self.path, 1, 0, damage or "it is missing; its mark is there")
            write_mark(self.path, Mark())  # first, so a journal without a mark is damaged
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        if not is_there or (mark == Mark() and not os.path.getsize(self.path)):
            self._create()
        # Verified by a connection that cannot write: when another one closes, SQLite empties the
        # write-ahead log, and with it what lies behind a damage in it.
        looking = connect(self.path, "ro")
        try:
            database = Database(self.path, looking)
            walk = verified(database)
            database.load_texts()
            self._connection = self._connect()
            self._removed = database.meta()["removed"]
        finally:
            looking.close()
        self._position = walk.offset, walk.chain
        self._reserved = dict(walk.mark.reserved)
        for number in sorted(database.names):
            self._texts.name(database.names[number])
        for number in sorted(database.sources):
            self._texts.source(*database.sources[number])
        self._names, self._sources = len(self._texts.names), len(self._texts.sources)
        self._write_mark()
        self._keep_space()

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self.path, "rw")
        full = 2 if self._sync == "power" else 1
        for pragma in ("wal_autocheckpoint = 0", f"synchronous = {full}", "fullfsync = 1"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        return connection

    def _create(self) -> None:
        """Make the tables. A write-ahead log that is cut would else take them with it."""
        connection = connect(self.path, "rw")
        try:
            ((mode,),) = connection.execute("PRAGMA journal_mode = WAL").fetchall()
            if mode != b"wal":
                raise JournalError(f"{self.path}: its file system is not local; use one that is")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            for statement in SCHEMA:
                connection.execute(statement)
            facts: dict[str, Any] = {"first": 1, "chain": 0, "latest": None, "removed": {}}
            connection.execute("INSERT INTO meta VALUES (?, ?)", sealed(facts))
            connection.execute("COMMIT")
        finally:
            connection.close()  # which empties the write-ahead log
        sync_file(os.path.dirname(self.path))

    def last_seq(self, source: str) -> tuple[int, int, int] | None:
        """The last epoch of this source name, the highest seq of it that was committed, and the
        highest that may have been used; None if the name is not there. Blocks for milliseconds.
        """
        assert self._connection is not None
        epoch, reserved = self._reserved.get(source, (None, 0))
        epochs = [each for name, each in self._texts.sources if name == source]
        if epoch is None:
            if not epochs:
                return None
            epoch = epochs[-1]
        number = self._texts.sources.get((source, epoch), 0)
        select = "SELECT max(seq) FROM events WHERE source = ?"
        ((seq,),) = self._connection.execute(select, (number,)).fetchall()
        seq = max(seq or 0, self._removed.get(str(number), 0))
        return epoch, seq, max(seq, reserved)

    def reserve(self, source: str, epoch: int, upto: int) -> None:
        """Note that numbers of this source up to `upto` may be used, on the disk when this returns,
        so that no later start uses one of them again. Blocks. Raises CommitFailed if the disk is
        full and JournalFailed.
        """
        if self._failed is not None:
            raise self._failed
        self._reserved = {**self._reserved, source: (epoch, upto)}
        try:
            self._with_reserve(self._write_mark)
        except (OSError, sqlite3.Error) as error:
            raise self._judged(error) from error

    # Appending: on the loop.

    def start(self, committed: Committed) -> None:
        """Begin to commit. `committed(count, error)` is called on the running loop, in order: so
        many of the oldest events that were appended are in the file, or (with an error) are not.
        """
        self._loop = loop = asyncio.get_running_loop()
        self._committed = committed
        if not hasattr(loop, "wall_time"):
            self._thread = threading.Thread(target=self._run, name="aiobus-journal", daemon=True)
            self._thread.start()

    @property
    def room(self) -> int:
        """How many more events the queue takes."""
        if self._queued_bytes >= QUEUE_BYTES:
            return 0
        return max(0, QUEUE_EVENTS - self._queued)

    def append(self, entry: Entry) -> None:
        """Queue an event for the next commit. Never waits. Raises JournalFailed, and JournalError
        if there is no `room`, before `start`, and once `close` has begun.
        """
        if self._failed is not None:
            raise self._failed
        if self._is_closing or self._loop is None:
            raise JournalError(f"{self.path} is not open for writing")
        if not self.room:
            raise JournalError(f"{self.path}: {self._queued} events wait to be committed already")
        self._queue.append(entry)
        self._queued += 1
        self._queued_bytes += len(entry.row)
        if self._thread is not None:
            if not self._wake.is_set():
                self._wake.set()
        elif not self._is_stepping:
            self._is_stepping = True
            self._loop.call_soon(self._step_inline)

    def _step_inline(self) -> None:
        self._is_stepping = False
        self._step()

    def _settle(self, count: int, size: int, error: BaseException | None) -> None:
        assert self._committed is not None
        self._queued -= count
        self._queued_bytes -= size
        self._committed(count, error)

    # Committing: in the thread.

    def _run(self) -> None:
        while not self._is_closing:
            self._wake.wait(MARK_SECONDS if self._is_untended else self._mark_due_in())
            self._wake.clear()
            self._step()

    def _step(self) -> None:
        """Commit whatever is queued."""
        while self._queue:
            batch: list[Entry] = []
            size = 0
            while self._queue and len(batch) < COMMIT_EVENTS and size < COMMIT_BYTES:
                batch.append(entry := self._queue.popleft())
                size += len(entry.row)
            error: JournalError | None = self._failed
            if error is None:
                try:
                    self._mark_if_due()
                    self._with_reserve(partial(self._commit, batch))
                    self._unchecked += size
                except Exception as wrong:  # noqa: BLE001 - whatever it is, these are not committed
                    error = self._judged(wrong)
            self._tell(len(batch), size, error)
            self._tend()
        self._tend()

    def _commit(self, batch: list[Entry]) -> None:
        offset, chain = self._position
        columns, chain = encode_columns(batch, self._texts, offset, chain)
        self._insert_texts()
        assert self._connection is not None
        self._connection.execute(insertion("events", len(batch)), columns)
        self._position = offset + len(batch), chain
        if self._unmarked_since is None:
            self._unmarked_since = clock.elapsed()

    def _insert_texts(self) -> None:
        """Names that no event refers to, since the commit behind them fails, do no harm."""
        assert self._connection is not None
        names, sources = self._texts.names, self._texts.sources
        if len(names) > self._names:
            new: list[int | str] = []
            for text, number in names.items():
                if number > self._names:
                    new += (number, text)
            self._connection.execute(insertion("names", len(new) // 2, 2), new)
            self._names = len(names)
        if len(sources) > self._sources:
            columns: list[int | str] = []
            for (name, epoch), number in sources.items():
                if number > self._sources:
                    columns += (number, name, epoch, origin(name, epoch))
            self._connection.execute(insertion("sources", len(columns) // 4, 4), columns)
            self._sources = len(sources)

    def _tell(self, count: int, size: int, error: BaseException | None) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop has ended, and with it all that waited
            self._loop.call_soon_threadsafe(self._settle, count, size, error)

    def _judged(self, error: Exception) -> JournalError:
        """What an error means for the events that were to be committed, and for the journal."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if _is_full(error) or is_busy(error) or code == sqlite3.SQLITE_CONSTRAINT:
            return CommitFailed(self.path, said(error))
        self._failed = JournalFailed(self.path, said(error))
        log.error("%s", self._failed, exc_info=error)
        return self._failed

    def _with_reserve(self, action: Callable[[], None]) -> None:
        """Take a step that needs disk space, with what is in reserve if there is no other."""
        try:
            action()
        except (OSError, sqlite3.Error) as error:
            if not _is_full(error) or not self._space.release():
                raise
            log.warning(
                "%s: the disk is full; the space kept in reserve is used now. Make space before the"
                " next commit fails",
                self.path,
            )
            action()

    # The mark, the write-ahead log, and the reserve.

    def _mark_due_in(self) -> float | None:
        """Seconds; None if the mark is up to date."""
        if self._unmarked_since is None or self._failed is not None:
            return None
        return max(0.0, self._unmarked_since + MARK_SECONDS - clock.elapsed())

    def _mark_if_due(self) -> None:
        if self._mark_due_in() == 0.0:
            self._with_reserve(self._write_mark)

    def _write_mark(self, *, is_clean: bool = False) -> None:
        with self._mark_lock:
            since, self._unmarked_since = self._unmarked_since, None
            position = self._position  # behind that, because a commit may end just now
            log_file = f"{self.path}-wal"
            try:
                if self._sync == "process" and os.path.exists(log_file):
                    # The mark is on the disk at once, and what it vouches for has to be.
                    sync_file(log_file)
                write_mark(self.path, Mark(*position, is_clean, self._reserved))
            except BaseException:
                self._unmarked_since = since
                raise

    def _tend(self) -> None:
        """What is due beside commits. If it fails for want of space, it is tried again."""
        if self._failed is not None:
            return
        try:
            self._mark_if_due()
            if self._unchecked >= CHECKPOINT_BYTES:
                self._checkpoint()
                self._unchecked = 0
            self._is_untended = False
        except (OSError, sqlite3.Error) as error:
            self._is_untended = True
            log.warning("%s: %s; it is tried again", self.path, said(self._judged(error)))

    def _checkpoint(self) -> None:
        assert self._connection is not None
        rows = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        ((_, pages, done),) = rows
        if (size := (pages - done) * 4096) > LONG_LOG_BYTES:
            log.warning(
                "%s: the write-ahead log has %d MiB, because another program keeps a transaction"
                " open: end that, or the disk fills",
                self.path,
                size // 2**20,
            )

    def _keep_space(self) -> None:
        with suppress(OSError):  # there is none to spare
            self._space.keep()

    # Closing.

    def close(self) -> None:
        """Commit what is queued, mark the journal as complete, and unlock it. Blocks. A second call
        does nothing. What cannot be committed is told to `committed` as ever.
        """
        if self._is_closing:
            return
        self._is_closing = True
        if self._thread is not None:
            self._wake.set()
            self._thread.join()
        self._step()
        try:
            if self._connection is not None and self._failed is None:
                self._checkpoint()
                self._with_reserve(partial(self._write_mark, is_clean=True))
        except (OSError, sqlite3.Error) as error:
            log.warning("%s", self._judged(error))
        finally:
            self._shut()

    def _shut(self) -> None:
        self._is_closing = True
        if self._connection is not None:
            if self._failed is not None:
                # A second connection keeps the first one from a checkpoint when it closes: after
                # an error of fsync, what SQLite would copy may not be what is on the disk.
                other = connect(self.path, "ro")
                with suppress(sqlite3.Error):
                    other.execute("SELECT 1 FROM meta").fetchall()
                self._connection.close()
                other.close()
            else:
                self._connection.close()
            self._connection = None
        if self._lock is not None:
            self._lock.release()


def _is_full(error: Exception) -> bool:
    """True if there was no space on the disk."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
