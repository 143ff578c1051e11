"""A journal as a file that is written: opened, verified, committed to, marked and closed.

Owns the only connection that writes and checkpoints: before SQLite 3.51.3, two of them could
corrupt the file. Owns what an error means: whether the next commit may succeed, or nothing more is
written. Everything here blocks. Must not know threads or loops.
"""

import errno
import logging
import math
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
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
from aiobus.journal.mark import (
    MAKING,
    FileLock,
    Mark,
    Place,
    SpaceReserve,
    check_purpose,
    read_mark,
    sync_file,
    write_mark,
)
from aiobus.journal.retention import Keep, Retention
from aiobus.journal.scan import Database, Walk, connect, said, verified
from aiobus.query import RESERVED

__all__ = ["Store", "Sync"]

Sync = Literal["power", "process"]

MARK_SECONDS = 1.0
CHECKPOINT_BYTES = 4 * 1024 * 1024
"""About the bytes of the write-ahead log after which it is emptied into the database."""
COMMIT_BYTES = 12 * 1024
"""Bytes of the log that a commit takes beside its rows: three pages, which it changes in part."""
REPEAT_SECONDS = 1.0
LONG_LOG_BYTES = 256 * 1024 * 1024

log = logging.getLogger("aiobus.journal")


class Store:
    """The file at `path`, locked and verified. Raises JournalInUse, JournalCorrupt, and
    JournalError for a file that is no journal or that cannot be made.
    """

    def __init__(self, path: str, sync: Sync, keep: Keep) -> None:
        self.path = path
        self.failed = ""
        """Why nothing more is written; "" if it is."""
        self._sync = sync
        self._position = (0, 0)
        """The offset of the last committed event, and the running checksum behind it."""
        self._unmarked_since: float | None = None
        """When the first event was committed that the mark does not know."""
        self._unchecked = CHECKPOINT_BYTES  # what the start before has left is emptied soon
        """About the bytes in the write-ahead log."""
        self._said = -math.inf
        """When it was logged last that something is tried again."""
        self._has_reserve = True
        """False once it was logged that there is none."""
        self._mark_lock = threading.Lock()
        self._space = SpaceReserve(path)
        self._texts = Texts()
        if not os.path.isdir(folder := os.path.dirname(path)):
            raise JournalError(f"{path}: the directory {folder} does not exist: make it first")
        try:
            self._lock = FileLock(path)
        except OSError as error:
            raise self._unopened(error) from error
        try:
            self._open(keep)
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError | sqlite3.Error):
                raise self._unopened(error) from error
            raise

    def _unopened(self, error: Exception) -> JournalError:
        return JournalError(f"{self.path} cannot be opened for writing: {said(error)}")

    def _open(self, keep: Keep) -> None:
        mark, damage = None, ""
        try:
            mark = read_mark(self.path)
        except ValueError as error:
            damage = str(error)
        if not os.path.exists(self.path):
            log_file = f"{self.path}-wal"
            if damage or os.path.exists(log_file) or (mark is not None and mark != MAKING):
                what = damage or "it is missing, and other files of it are there"
                raise JournalCorrupt(self.path, 1, 0, what)
            mark = MAKING
            write_mark(self.path, mark)  # first, so a journal without a mark is damaged
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        if mark == MAKING:
            self._create()
        # Verified by a connection that cannot write: when another one closes, SQLite empties the
        # write-ahead log, and with it what lies behind a damage in it.
        looking = connect(self.path, "ro")
        try:
            database = Database(self.path, looking)
            walk = verified(database)
            database.load_texts()
            connection = connect(self.path, "rw")
        finally:
            looking.close()
        try:
            self._take_over(connection, database, walk, keep)
        except BaseException:
            connection.close()
            raise

    def _take_over(
        self, connection: sqlite3.Connection, database: Database, walk: Walk, keep: Keep
    ) -> None:
        self._connection = database.connection = connection
        full = 2 if self._sync == "power" else 1
        for pragma in ("wal_autocheckpoint = 0", f"synchronous = {full}", "fullfsync = 1"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        self._position = walk.offset, walk.chain
        self._reserved = dict(walk.mark.reserved)
        for number in sorted(database.names):
            self._texts.name(database.names[number])
        for number in sorted(database.sources):
            self._texts.source(*database.sources[number])
        self._names, self._sources = len(self._texts.names), len(self._texts.sources)
        self._retention = Retention(database, keep, walk.offset)
        self._with_reserve(self._write_mark)

    def _create(self) -> None:
        """Make the tables. A write-ahead log that is cut would else take them with it."""
        connection = connect(self.path, "rw")
        try:
            ((mode,),) = connection.execute("PRAGMA journal_mode = WAL").fetchall()
            if mode != b"wal":
                raise JournalError(f"{self.path}: its file system is not local; use one that is")
            if connection.execute("SELECT 1 FROM sqlite_schema").fetchall():
                return  # a process that made it ended before it could mark it
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

    # Numbers.

    def place(self, source: str) -> Place | None:
        """Where the last start of this source has left off; None if the file is new. Raises
        JournalError if the file is a recording, or the journal of another source.
        """
        check_purpose(self.path, Mark(*self._position, reserved=self._reserved), source)
        return self._reserved.get(source)

    def last_seq(self, source: str, epoch: int) -> int:
        """The highest seq of a source that was committed."""
        number = self._texts.sources.get((source, epoch), 0)
        select = "SELECT max(seq) FROM events WHERE source = ?"
        ((seq,),) = self._connection.execute(select, (number,)).fetchall()
        return max(int(seq or 0), int(self._retention.facts["removed"].get(str(number), 0)))

    def reserve(self, source: str, place: Place) -> None:
        """Note that numbers of this source up to `place.upto` may be used, on the disk when this
        returns. Raises CommitFailed and JournalFailed.
        """
        self.check()
        self.note_place(source, place)
        try:
            self._with_reserve(self._write_mark)
        except (OSError, sqlite3.Error) as error:
            raise self._judged(error) from error

    def note_place(self, source: str, place: Place) -> None:
        """The same, with the next mark that is written."""
        self._reserved = {**self._reserved, source: place}

    def last_of_sources(self) -> dict[tuple[str, int], int]:
        """The highest seq of each source in the file, in the order in which they came. Raises
        JournalError if the file is the journal of a bus, whose numbers are its own.
        """
        check_purpose(self.path, Mark(reserved=self._reserved), None)
        last: dict[tuple[str, int], int] = {}
        for source, number in self._texts.sources.items():
            # Not of system events, which come by another subscription and may be recorded sooner.
            system = [
                place for text, place in self._texts.names.items() if text.startswith(RESERVED)
            ]
            rows = self._connection.execute(
                "SELECT seq FROM events WHERE source = ? AND typeof(type) = 'integer'"
                f" AND type NOT IN ({', '.join('?' * len(system))}) ORDER BY seq DESC LIMIT 1",
                (number, *system),
            ).fetchall()
            seq = rows[0][0] if rows else 0
            last[source] = seq or self._retention.facts["removed"].get(str(number), 0)
        return {source: seq for source, seq in last.items() if seq}

    # Commits.

    def check(self) -> None:
        """Raises JournalFailed if nothing more can be written."""
        if self.failed:
            raise JournalFailed(self.path, self.failed)

    def commit(self, batch: Sequence[Entry], size: int) -> None:
        """Write the events of `batch`, whose rows have `size` bytes, all or none. Raises
        CommitFailed, and JournalFailed if nothing more can be written.
        """
        self.check()
        try:
            if self.mark_due_in() == 0.0:
                self._with_reserve(self._write_mark)
            self._with_reserve(partial(self._insert, batch))
        except Exception as error:
            raise self._judged(error) from error
        self._unchecked += size + COMMIT_BYTES
        self._retention.committed(len(batch), size)

    def _insert(self, batch: Sequence[Entry]) -> None:
        offset, chain = self._position
        columns, chain = encode_columns(batch, self._texts, offset, chain)
        self._insert_texts()
        self._connection.execute(insertion("events", len(batch)), columns)
        self._position = offset + len(batch), chain
        if self._unmarked_since is None:
            self._unmarked_since = clock.elapsed()

    def _insert_texts(self) -> None:
        """Names that no event refers to, since the commit behind them fails, do no harm."""
        names, sources = self._texts.names, self._texts.sources
        columns: list[int | str] = []
        if len(names) > self._names:
            for text, number in names.items():
                if number > self._names:
                    columns += (number, text)
            self._connection.execute(insertion("names", len(columns) // 2, 2), columns)
            self._names = len(names)
        if len(sources) > self._sources:
            columns = []
            for (name, epoch), number in sources.items():
                if number > self._sources:
                    columns += (number, name, epoch, origin(name, epoch))
            self._connection.execute(insertion("sources", len(columns) // 4, 4), columns)
            self._sources = len(sources)

    def _judged(self, error: Exception) -> JournalError:
        """What an error means for the events that were to be committed, and for the journal."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if _is_full(error) or code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CONSTRAINT):
            return CommitFailed(self.path, said(error))
        self.failed = said(error)
        failure = JournalFailed(self.path, self.failed)
        log.error("%s", failure, exc_info=error)
        return failure

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

    # What is due beside commits.

    def mark_due_in(self) -> float | None:
        """Seconds until the mark is to be written; None if it is up to date."""
        since = self._unmarked_since
        if since is None or self.failed:
            return None
        return max(0.0, since + MARK_SECONDS - clock.elapsed())

    def tend(self) -> bool:
        """Do what is due. False if there was no space for it, so that it is to be tried again."""
        if self.failed:
            return True
        try:
            if self.mark_due_in() == 0.0:
                self._with_reserve(self._write_mark)
            if self._unchecked >= CHECKPOINT_BYTES:
                self._checkpoint()
                self._unchecked = 0
            self._retention.divide(self._position[0])
            if self._retention.is_due():
                self._write_mark()
                self._retention.remove()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is judged and told
            is_told = clock.elapsed() - self._said < REPEAT_SECONDS
            if isinstance(self._judged(error), CommitFailed) and not is_told:
                self._said = clock.elapsed()
                log.warning("%s: %s; it is tried again", self.path, said(error))
            return False
        return True

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
        has_reserve = False
        with suppress(OSError):  # there is none to spare
            has_reserve = self._space.keep()
        if not has_reserve and self._has_reserve:
            text = "%s: the disk has no space to spare, so none is kept in reserve now"
            log.warning(text, self.path)
        self._has_reserve = has_reserve

    def _checkpoint(self) -> None:
        rows = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        ((_, pages, done),) = rows
        if (size := (pages - done) * 4096) > LONG_LOG_BYTES:
            log.warning(
                "%s: the write-ahead log has %d MiB, because another program keeps a transaction"
                " open: end that, or the disk fills",
                self.path,
                size // 2**20,
            )

    def close(self) -> None:
        """Mark the journal as complete, and unlock it."""
        try:
            if not self.failed:
                self._checkpoint()
                self._with_reserve(partial(self._write_mark, is_clean=True))
        except (OSError, sqlite3.Error) as error:
            self._judged(error)
            log.warning("%s is not marked as complete: %s", self.path, said(error))
        finally:
            self._disconnect()
            self._lock.release()

    def _disconnect(self) -> None:
        if not self.failed:
            self._connection.close()
            return
        # A second connection keeps the first one from a checkpoint when it closes: after an error
        # of fsync, what SQLite would copy may not be what is on the disk.
        other = connect(self.path, "ro")
        with suppress(sqlite3.Error):
            other.execute("SELECT 1 FROM meta").fetchall()
        self._connection.close()
        other.close()


def _is_full(error: Exception) -> bool:
    """True if there was no space on the disk."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
