"""The file of a keeper: what it holds, committed before it is told.

Owns the database and its verification. Each row has a checksum, and all rows together have another,
in the same transaction: a row that is missing or that came back shows as well. A rollback journal
and no write-ahead log, because SQLite takes a damage in the latter for its end, without a word.
Everything here blocks. Must not know threads or loops, or what is told to whom.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from typing import Any
from zlib import crc32

import orjson

from aiobus import clock
from aiobus.errors import CommitFailed, JournalError, JournalFailed, StateCorrupt
from aiobus.journal.format import sealed, unsealed
from aiobus.journal.mark import FileLock, sync_file
from aiobus.journal.scan import WRONG, connect, is_unavailable, said
from aiobus.keeper.kept import Held, Place

__all__ = ["KeptFile"]

APPLICATION = 0x61696F6B
"""The application_id of the database: "aiok"."""
FORMAT = 1
NEW = ".new"
WIDTH = 9
COLUMNS = "origin, type, key, epoch, seq, time, flags, data, crc"
_HELD = """CREATE TABLE held (
    origin TEXT, type TEXT, key TEXT, epoch INTEGER, seq INTEGER, time REAL, flags INTEGER,
    data TEXT, crc INTEGER, PRIMARY KEY (origin, type, key)
) WITHOUT ROWID"""
SCHEMA = "CREATE TABLE meta (data TEXT, crc INTEGER)", _HELD
PASSING = sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY
"""What SQLite rolls back, and may not say the next time."""
MODULUS = 2**62


class KeptFile:
    """The file at `path`, once it is open."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.held: list[Held] = []
        """What it had when it was opened."""
        self.written: float | None = None
        """When it was last known to be complete, in Unix seconds; None if it is new."""
        self.lost: set[str] = set()
        """Types of which an event was not held, for want of room."""
        self.is_verified = False
        """It was opened, and is what was written."""
        self._crcs: dict[Place, int] = {}
        self._sum = 0
        self._failed = ""
        self._lock: FileLock | None = None
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Lock and verify it; make it if it is not there. Raises JournalInUse, StateCorrupt, and
        JournalError if it cannot be opened.
        """
        folder = os.path.dirname(self.path)
        if not os.path.isdir(folder):
            raise JournalError(f"{self.path}: the directory {folder} does not exist: make it first")
        try:
            self._lock = FileLock(self.path)
            if not os.path.exists(self.path):
                self._create()
            self._connection = connect(self.path, "rw")
            self.held = self._verified(self._connection)
            self.is_verified = True
        except (OSError, sqlite3.Error) as error:
            text = f"{self.path} cannot be opened for writing: {said(error)}"
            raise JournalError(text) from error

    def _create(self) -> None:
        """Under another name, so that a file of the right name is whole: SQLite takes an empty one
        for a new database.
        """
        if os.path.exists(f"{self.path}-journal"):
            raise StateCorrupt(self.path, "it is missing, and its rollback journal is there")
        new = self.path + NEW
        for each in (new, f"{new}-journal"):
            with suppress(FileNotFoundError):
                os.remove(each)
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with closing(connect(new, "rw")) as connection:
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            for statement in SCHEMA:
                connection.execute(statement)
            connection.execute("INSERT INTO meta VALUES (?, ?)", self._meta(None))
            connection.execute("COMMIT")
        os.rename(new, self.path)
        sync_file(os.path.dirname(self.path))

    def _meta(self, written: float | None) -> tuple[str, int]:
        facts = {
            "count": len(self._crcs),
            "sum": self._sum,
            "written": written,
            "lost": sorted(self.lost),
        }
        return sealed(facts)

    # What is there.

    def _verified(self, connection: sqlite3.Connection) -> list[Held]:
        try:
            return self._read(connection.execute)
        except (sqlite3.DatabaseError, *WRONG) as error:
            if isinstance(error, sqlite3.Error) and is_unavailable(error):
                raise  # what cannot be read may be whole
            raise StateCorrupt(self.path, said(error)) from error

    def _read(self, ask: Callable[[str], sqlite3.Cursor]) -> list[Held]:
        if not os.path.getsize(self.path):
            raise ValueError("it is empty")
        for pragma in ("journal_mode = DELETE", "synchronous = EXTRA", "fullfsync = 1"):
            ask(f"PRAGMA {pragma}").fetchall()
        ((application,),) = ask("PRAGMA application_id").fetchall()
        ((version,),) = ask("PRAGMA user_version").fetchall()
        if (application, version) != (APPLICATION, FORMAT):
            raise ValueError("it is not the file of a keeper, or of another version of aiobus")
        if (found := ask("PRAGMA integrity_check(1)").fetchall()) != [(b"ok",)]:
            raise ValueError(str(found[0][0], "utf-8", "replace"))
        facts = unsealed(ask("SELECT data, crc FROM meta").fetchall())
        held = [self._checked(row) for row in ask(f"SELECT {COLUMNS} FROM held").fetchall()]
        if (len(held), self._sum) != (facts["count"], facts["sum"]):
            raise ValueError(f"it has {len(held)} events, and not the {facts['count']} written")
        self.written, self.lost = facts["written"], set(facts["lost"])
        return held

    def _checked(self, row: tuple[Any, ...]) -> Held:
        origin, type, key, epoch, seq, time, flags, data, crc = row
        each = Held(origin.decode(), epoch, seq, type.decode(), key.decode(), time, data, flags)
        if _checksum(each) != crc:
            raise ValueError(f"{each.type} {each.key!r} of {each.origin} has a wrong checksum")
        self._add(each.place, crc)
        return each

    def _add(self, place: Place, crc: int | None) -> None:
        """Note the checksum of a row; None if it is no more. The sum follows."""
        self._sum -= self._crcs.pop(place, 0)
        if crc is not None:
            self._crcs[place] = crc
            self._sum += crc
        self._sum %= MODULUS

    # Commits.

    def commit(self, changes: Mapping[Place, Held | None], lost: Iterable[str]) -> None:
        """Write what is to be held in each place, all or none. On the disk when this returns.
        Raises CommitFailed if it may succeed later, and JournalFailed if nothing more is written.
        """
        if self._failed or self._connection is None:
            raise JournalFailed(self.path, self._failed or "it is not open")
        before = {place: self._crcs.get(place) for place in changes}
        lost_before, self.lost = self.lost, self.lost.union(lost)
        try:
            self._write(self._connection.execute, changes)
        except Exception as error:
            for place, crc in before.items():
                self._add(place, crc)
            self.lost = lost_before
            with suppress(sqlite3.Error):  # it may have rolled back by itself
                self._connection.execute("ROLLBACK")
            raise self._judged(error) from error

    def _write(
        self, ask: Callable[..., sqlite3.Cursor], changes: Mapping[Place, Held | None]
    ) -> None:
        ask("BEGIN IMMEDIATE")
        for place, held in changes.items():
            if held is None:
                ask("DELETE FROM held WHERE origin = ? AND type = ? AND key = ?", place)
                self._add(place, None)
                continue
            crc = _checksum(held)
            row = *place, held.epoch, held.seq, held.time, held.flags, held.data.decode(), crc
            ask(f"INSERT OR REPLACE INTO held VALUES ({', '.join('?' * WIDTH)})", row)
            self._add(place, crc)
        ask("UPDATE meta SET data = ?, crc = ?", self._meta(clock.machine()))
        ask("COMMIT")

    def _judged(self, error: Exception) -> JournalError:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in PASSING:
            return CommitFailed(self.path, said(error))
        self._failed = said(error)
        return JournalFailed(self.path, self._failed)

    def close(self) -> None:
        """Note that it is complete, and unlock it. No error if it was not opened."""
        try:
            if self._connection is not None:
                if self.is_verified and not self._failed:
                    with suppress(JournalError):
                        self.commit({}, ())
                self._connection.close()
        finally:
            self._connection = None
            if self._lock is not None:
                self._lock.release()


def _checksum(held: Held) -> int:
    origin, epoch, seq, type, key, time, data, flags = held
    return crc32(data, crc32(orjson.dumps([origin, type, key, epoch, seq, float(time), flags])))
