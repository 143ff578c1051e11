"""The verification of a journal: each event in order of offset, compared with its checksum, and the
whole with its mark.

Owns how the columns of the file are read, and what counts as damage. Each read transaction is
short: a long one keeps the writer from emptying its write-ahead log.
"""

import math
import os
import sqlite3
import struct
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote

from aiobus.errors import JournalCorrupt, JournalError, JournalRemoved
from aiobus.event import KNOWN
from aiobus.journal.format import (
    APPLICATION,
    COLUMNS,
    FORMAT,
    SCHEMA,
    chained,
    checksum,
    origin,
    origin_checksum,
    unsealed,
)
from aiobus.journal.mark import MAKING, Mark, read_mark

__all__ = [
    "MAX_ROUTES", "WRONG", "Database", "Found", "Route", "Walk", "check_schema", "checked_path",
    "connect",
    "is_unavailable", "said", "verified",
]  # fmt: skip

CHUNK_EVENTS = 1_024
CHUNK_BYTES = 4 * 1024 * 1024
"""Bytes of data after which no further event is read in one go."""
MAX_ROUTES = 65_536
"""(source, type, key) that are remembered."""
BUSY_SECONDS = 5.0
OLDEST = (3, 33)

WRONG = (struct.error, TypeError, ValueError, LookupError, OverflowError, AttributeError)
"""What a damaged column raises."""


def checked_path(argument: str, path: Any) -> str:
    """The path as a string. Raises TypeError if it is none, and JournalError for a directory."""
    text = path if isinstance(path, str) else getattr(path, "__fspath__", lambda: None)()
    if not isinstance(text, str) or not text:
        raise TypeError(f"{argument}={path!r}: the path of a file is needed, a str or a Path")
    if os.path.isdir(text):
        raise JournalError(f"{text} is a directory: give the path of a file in it")
    return text


def connect(path: str, mode: str) -> sqlite3.Connection:
    """A connection in which each statement is a transaction, and a text is bytes. Raises
    JournalError if SQLite is too old for 1,000 rows in a statement.
    """
    if sqlite3.sqlite_version_info < OLDEST:
        raise JournalError(f"SQLite {sqlite3.sqlite_version} is too old: 3.33 is needed")
    path = os.path.abspath(path)
    if not os.access(os.path.dirname(path), os.W_OK) and not os.path.exists(f"{path}-wal"):
        mode = "ro&immutable=1"  # where SQLite cannot make a file of its own
    connection = sqlite3.connect(
        f"file:{quote(path)}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=BUSY_SECONDS,
        check_same_thread=False,
        cached_statements=64,
    )
    connection.text_factory = bytes
    return connection


_PASSING = (
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,  # what cannot be read says nothing of what is there
)  # fmt: skip


def is_unavailable(error: Exception) -> bool:
    """True if the database cannot be used now, which says nothing of what is in it."""
    if isinstance(error, sqlite3.ProgrammingError):  # it is closed
        return True
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING


def said(error: Exception) -> str:
    """What SQLite or Python says is wrong."""
    name = getattr(error, "sqlite_errorname", None)
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) or not isinstance(error, WRONG):
        return f"{text} ({name})" if name else text or type(error).__name__
    return f"a column of it is damaged ({type(error).__name__}: {text})"


def check_schema(path: str, connection: sqlite3.Connection) -> None:
    """Raises ValueError unless the tables are exactly those of a journal, and JournalError if the
    file never was one.
    """
    has_mark = os.path.exists(f"{path}.mark")
    try:
        ((application,),) = connection.execute("PRAGMA application_id")
        ((version,),) = connection.execute("PRAGMA user_version")
        is_own = (application, version) == (APPLICATION, FORMAT)
    except sqlite3.DatabaseError as error:
        if has_mark or is_unavailable(error):
            raise
        is_own = False
    if not is_own and not has_mark:
        raise JournalError(f"{path} is no journal: give another path. It is left as it is")
    own = sqlite3.connect(":memory:")
    own.text_factory = bytes
    for statement in SCHEMA:
        own.execute(statement)
    select = "SELECT type, name, tbl_name, sql FROM sqlite_schema"
    expected = own.execute(select).fetchall()
    own.close()
    if not is_own or connection.execute(select).fetchall() != expected:
        raise ValueError("its schema is damaged")


class Route(NamedTuple):
    """What events of one source, type and key have in common."""

    start: int
    source: str
    epoch: int
    type: str
    key: str
    is_wanted: bool


class Database:
    """The tables of one journal, whose texts are remembered."""

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        self.path = path
        self.connection = connection
        self.names: dict[int, str] = {}
        self.sources: dict[int, tuple[str, int]] = {}
        self._origins: dict[int, bytes] = {}

    def meta(self) -> dict[str, Any]:
        """The facts of `meta`, which change when `keep=` removes events."""
        return unsealed(self.connection.execute("SELECT data, crc FROM meta"))

    def load_texts(self) -> None:
        """Read the types, keys and sources that were added since the last time."""
        for number, text in self.connection.execute(
            "SELECT id, text FROM names WHERE id > ? ORDER BY id", (len(self.names),)
        ).fetchall():
            if number != len(self.names) + 1:
                raise ValueError("its table `names` is damaged")
            self.names[number] = text.decode()
        for number, name, epoch, begin in self.connection.execute(
            "SELECT id, name, epoch, origin FROM sources WHERE id > ? ORDER BY id",
            (len(self.sources),),
        ).fetchall():
            if number != len(self.sources) + 1 or begin.decode() != origin(name.decode(), epoch):
                raise ValueError("its table `sources` is damaged")
            self.sources[number] = name.decode(), epoch

    def text(self, column: int | bytes) -> str:
        """A type or key."""
        if isinstance(column, bytes):
            return column.decode()
        if column not in self.names:
            self.load_texts()
        return self.names[column]

    def source(self, number: int) -> tuple[str, int]:
        """The name and epoch of a source."""
        if number not in self.sources:
            self.load_texts()
        return self.sources[number]

    def route(self, source: int, type: Any, key: Any, wants: Callable[..., bool]) -> Route:
        """What these columns stand for."""
        name, epoch = self.source(source)
        texts = self.text(type), self.text(key)
        start = origin_checksum(name, epoch, *texts)
        type_, key_ = texts
        return Route(start, name, epoch, KNOWN.get(type_, type_), key_, wants(name, *texts))

    def cause(self, source: int | None, seq: int | None, cause: bytes | None) -> bytes:
        """The text of a cause."""
        if source is None or seq is None:
            return cause or b""
        begin = self._origins.get(source)
        if begin is None:
            begin = self._origins[source] = origin(*self.source(source)).encode()
        return b"%b%d" % (begin, seq)


Found = tuple[int, Route, int, float, bytes, bytes]
"""Offset, route, seq, time, cause and data of an event."""


class Walk:
    """One way through a journal from the offset `start`, or from its first event, to its present
    end. `wants` says of a source name, type and key if they are wanted; all events are verified.

    Raises JournalCorrupt if there are no facts to begin with, and JournalRemoved if `keep=` has
    removed events from `since` on. Other errors come with a chunk.
    """

    def __init__(
        self,
        database: Database,
        start: int | None = None,
        wants: Callable[[str, str, str], bool] = lambda *_: False,
        since: float = -math.inf,
        until: float = math.inf,
    ) -> None:
        self._database = database
        self._path = database.path
        self._wants = wants
        self._since, self._until = since, until
        self._routes: dict[tuple[int, Any, Any], Route] = {}
        self._first = 1
        self.offset = self._begin = 0
        """The last event that was verified, and that before the first."""
        self._read_mark()
        try:
            facts = database.meta()
            self._first, latest, chain = facts["first"], facts["latest"], facts["chain"]
        except (sqlite3.Error, *WRONG) as error:
            if is_unavailable(error):
                raise
            raise self.corrupt(said(error)) from None
        if latest is not None and -math.inf < since <= latest:
            raise JournalRemoved(self._path, self._first)
        self._is_whole = start is None or start == self._first
        self.offset = self._begin = (self._first if start is None else start) - 1
        self.chain: int = chain
        """The running checksum behind it, if the walk began with the first event."""
        self.is_over = False

    def _read_mark(self) -> None:
        self.mark, self._problem = (
            Mark(),
            f"{self._path}.mark is missing (a copy needs it as well, and a link does not have it)",
        )
        try:
            if (mark := read_mark(self._path)) is not None:
                self.mark, self._problem = mark, ""
        except ValueError as error:
            self._problem = str(error)

    def chunk(self) -> tuple[list[Found], JournalError | None]:
        """The next events that are wanted, and what is wrong behind them. `is_over` is True then,
        and at the end. Raises sqlite3.Error if the database cannot be
        used now.
        """
        found: list[Found] = []
        before = self.offset
        error: JournalError | None = None
        try:
            self._check(found)
            self.is_over = self.offset == before
            if self.is_over:
                self._check_end()
        except (sqlite3.Error, *WRONG) as wrong:
            if is_unavailable(wrong):
                raise
            self.is_over = True
            error = self._removed() or self.corrupt(said(wrong))
        return found, error

    def _check(self, found: list[Found]) -> None:
        database, routes, wants = self._database, self._routes, self._wants
        since, until, verify, chain_of = self._since, self._until, checksum, chained
        marked = self.mark.offset if self._is_whole else -1
        offset, chain, size = self.offset, self.chain, 0
        if len(routes) > MAX_ROUTES:
            routes.clear()
        cursor = database.connection.execute(
            f'SELECT {COLUMNS} FROM events WHERE "offset" > ? ORDER BY "offset" LIMIT ?',
            (offset, CHUNK_EVENTS),
        )
        try:
            for at, source, seq, time, type, key, cause_of, cause_seq, cause, data, crc in cursor:
                if at != offset + 1:
                    raise ValueError("the event is missing")
                place = source, type, key
                route = routes.get(place)
                if route is None:
                    route = routes[place] = database.route(source, type, key, wants)
                if cause_of is not None or cause is not None:
                    cause = database.cause(cause_of, cause_seq, cause)
                else:
                    cause = b""
                if crc != verify(route[0], at, seq, time, cause, data):
                    raise ValueError("its checksum differs")
                following = chain_of(chain, crc)
                if at == marked and following != self.mark.chain:
                    raise ValueError("one of the events up to it is not the one that was written")
                offset, chain = at, following
                if route[5] and since <= time < until:
                    found.append((at, route, seq, time, cause, data))
                size += len(data)
                if size > CHUNK_BYTES:
                    break
        finally:
            self.offset, self.chain = offset, chain
            cursor.close()

    def _check_end(self) -> None:
        """Raises ValueError if this cannot be the end."""
        if self._problem:
            raise ValueError(self._problem)
        if self.offset < self.mark.offset:
            raise ValueError(f"the events up to offset {self.mark.offset} are missing")
        # Nothing follows a mark that is clean, or was written before the tables were.
        is_last = self.mark.is_clean or self.mark == MAKING
        # An offset behind the end was asked for, and nothing is there.
        end = max(self.mark.offset, self._begin if self.offset == self._begin else 0)
        is_past = end < (self.offset if is_last else self._first - 1) or self._has_unreserved()
        if is_past and read_mark(self._path) == self.mark:  # no writer has opened it meanwhile
            raise ValueError(f"{self._path}.mark is older than the file")

    def _has_unreserved(self) -> bool:
        """True if the file has an event whose number the mark does not reserve. Each is reserved on
        the disk before it is used, so whatever the crash, the mark is of an earlier start.
        """
        select = "SELECT max(seq) FROM events WHERE source = ?"
        for number, (name, epoch) in self._database.sources.items():
            if (place := self.mark.reserved.get(name)) is not None:
                ((seq,),) = self._database.connection.execute(select, (number,)).fetchall()
                if (epoch, seq or 0) > (place.epoch, place.upto):
                    return True
        return False

    def _removed(self) -> JournalRemoved | None:
        """If `keep=` has removed the next event during the walk."""
        try:
            first = self._database.meta()["first"]
        except (sqlite3.Error, *WRONG):
            return None
        return JournalRemoved(self._path, first) if first > self.offset + 1 else None

    def corrupt(self, reason: str) -> JournalCorrupt:
        """The error for a damage behind the last event that was verified."""
        return JournalCorrupt(self._path, self.offset + 1, self.count, reason)

    @property
    def count(self) -> int:
        """How many events were verified, if the walk began with the first."""
        return max(0, self.offset + 1 - self._first)


def verified(database: Database) -> Walk:
    """The walk through a whole journal. Raises JournalCorrupt if anything in it is not what was
    written, and sqlite3.Error if the database cannot be used now.
    """
    try:
        check_schema(database.path, database.connection)
        walk = Walk(database)
    except (sqlite3.Error, *WRONG) as wrong:
        if is_unavailable(wrong):
            raise
        raise JournalCorrupt(database.path, 1, 0, said(wrong)) from None
    while not walk.is_over:
        _, error = walk.chunk()
        if error is not None:
            raise error
    try:
        ((verdict,),) = database.connection.execute("PRAGMA integrity_check(1)").fetchall()
        if verdict != b"ok":
            raise ValueError(f"SQLite says: {verdict.decode(errors='replace')}")
    except (sqlite3.Error, *WRONG) as wrong:
        if is_unavailable(wrong):
            raise
        raise walk.corrupt(said(wrong)) from None
    return walk
