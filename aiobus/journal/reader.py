"""Reading a journal, also while it is written, here and from other processes.

Owns what a reader may ask for. Must not know who writes.
"""

import math
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from time import sleep
from typing import Any, NamedTuple, Self

import orjson

from aiobus.errors import JournalCorrupt, JournalError
from aiobus.event import Event
from aiobus.journal.export import export
from aiobus.journal.format import COLUMNS, MAX_NAMES, TAPE, checksum, rebuilt
from aiobus.journal.mark import MAKING, read_mark
from aiobus.journal.scan import (
    MAX_ROUTES,
    WRONG,
    Database,
    Found,
    Route,
    Walk,
    check_schema,
    checked_path,
    connect,
    is_unavailable,
    said,
    verified,
)
from aiobus.limits import EARLIEST, LATEST, way_out
from aiobus.query import EVERYTHING, Query

__all__ = ["Journal", "JournalPage"]

PAGE_LOOK = 4_096
"""Numbers of a source that one page looks at."""
PAGE_BYTES = 256 * 1024
CLAUSE_NUMBERS = 256
"""Numbers of types or keys that SQLite compares; of more, a page looks at each event itself."""
MAX_CLAUSES = 1_024
FOLLOW_SECONDS = 0.2


class JournalPage(NamedTuple):
    """A stretch of one source: every event in `(after, to]` that was asked for and is there."""

    to: int
    """How far was looked."""
    removed: int
    """The highest seq of this source that `keep=` has removed; 0 if there is none."""
    rows: list[tuple[int, str, str, bytes]]
    """(seq, type, key, row), oldest first."""


class Journal:
    """The journal at `path`, for reading. Raises JournalError if there is none, and JournalCorrupt
    if it cannot be opened. Use it in one thread; `close` it, or use it as a context manager.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = checked_path("path", path)
        if not os.path.exists(self.path):
            raise JournalError(f"{self.path} does not exist: give the path of a journal")
        self._connection = connect(self.path, "ro")
        self._database = Database(self.path, self._connection)
        self._numbers: dict[tuple[str, int], int] = {}
        self._routes: dict[tuple[int, Any, Any], Route] = {}
        self._clauses: dict[tuple[Query, int], tuple[str, list[int]]] = {}
        try:
            check_schema(self.path, self._connection)
        except (sqlite3.Error, JournalError, *WRONG) as error:
            self._connection.close()
            if isinstance(error, JournalError):
                raise
            if is_unavailable(error):
                raise self._unavailable(error) from None
            with suppress(ValueError):
                if read_mark(self.path) == MAKING:
                    raise JournalError(f"{self.path} is being made: try again") from None
            raise JournalCorrupt(self.path, 1, 0, said(error)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[int, Event[Any]]]:
        return self.read()

    def __repr__(self) -> str:
        return f"<Journal {self.path}>"

    def close(self) -> None:
        """Read no more. A second call does nothing."""
        self._connection.close()

    def read(
        self,
        *,
        start_offset: int | None = None,
        since: float | None = None,
        until: float | None = None,
        types: str | Iterable[str] | None = None,
        keys: str | Iterable[str] | None = None,
        sources: str | Iterable[str] | None = None,
        follow: bool = False,
    ) -> Iterator[tuple[int, Event[Any]]]:
        """Offset and event of each event up to the present end of the file, oldest first: from
        `start_offset` on, with a timestamp from `since` on and before `until` (Unix seconds), of
        these types and keys (as in `subscribe`) and of these source names. What is not given does
        not select; without types and keys, events of reserved types are read as well. The
        tape of a recording (`record(attach=)`) is read only if `sources` names it. With `follow`
        the iteration does not end: it blocks, and looks five times a second for more.

        All events on the way are verified, also those that are not wanted. Raises JournalCorrupt
        behind the last event that is whole; `start_offset` behind the damage reads what follows it.
        Raises JournalRemoved if `keep=` has removed what was asked for, and ValueError or TypeError
        for a wrong argument, both at the first step.
        """
        if start_offset is not None and (type(start_offset) is not int or start_offset < 1):
            raise ValueError(f"start_offset={start_offset!r}: offsets are 1, 2, 3, ...")
        wants = _wanted(types, keys, sources)
        begin = _moment("since", since, -math.inf)
        end = _moment("until", until, math.inf)
        for found in self.columns(wants, start_offset, begin, end, follow=follow):
            yield from _events(found)

    def columns(
        self,
        wants: Callable[[str, str, str], bool],
        start_offset: int | None = None,
        since: float = -math.inf,
        until: float = math.inf,
        *,
        follow: bool = False,
    ) -> Iterator[list[Found]]:
        """What `read` makes events of, at most 1,024 at once. `wants` says of a source name, type
        and key if they are wanted. Raises as `read` does.
        """
        try:
            walk = Walk(self._database, start_offset, wants, since, until)
        except sqlite3.Error as error:
            raise self._unavailable(error) from None
        while follow or not walk.is_over:
            if walk.is_over:
                sleep(FOLLOW_SECONDS)
            try:
                found, damage = walk.chunk()
            except sqlite3.Error as error:
                raise self._unavailable(error) from None
            yield found
            if damage is not None:
                raise damage

    def export(self, path: str | os.PathLike[str], **selection: Any) -> int:
        """Write events to a new file whose name ends with `.jsonl` (JSON lines) or `.parquet` (with
        the extra `parquet`). The keywords are those of `read`; the fields are those of the view
        `log`, where `data` is JSON in Parquet. Returns how many. If the journal is damaged, the
        file has the events before that, and JournalCorrupt is raised. Blocks. Raises ValueError for
        another suffix, FileExistsError, and JournalError without pyarrow.
        """
        return export(self.read(**selection), os.fspath(path))

    def verify(self) -> int:
        """Compare everything with what was written, and return the number of events. Raises
        JournalCorrupt. Takes a few seconds for a million events.
        """
        try:
            return verified(self._database).count
        except sqlite3.Error as error:
            raise self._unavailable(error) from None

    def page(
        self, query: Query, source: str, epoch: int, after: int, upto: int, limit: int
    ) -> JournalPage:
        """The next events of one source above `after` and up to `upto` that `query` matches: at
        most `limit`, 256 KiB of rows (but at least one), and 4,096 numbers looked at, so one page
        never takes long. Raises JournalCorrupt if one of them is not what was written.
        """
        with self.judging():
            return self._page(query, source, epoch, after, min(upto, after + PAGE_LOOK), limit)

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Around what reads a few events: raises JournalCorrupt, with the exact place, if what they
        raise is a damage, and JournalError if the database cannot be used now.
        """
        try:
            yield
        except (sqlite3.Error, *WRONG) as error:
            if is_unavailable(error):
                raise self._unavailable(error) from None
            raise verified(self._database).corrupt(said(error)) from None

    def _page(
        self, query: Query, source: str, epoch: int, after: int, end: int, limit: int
    ) -> JournalPage:
        database = self._database
        number = self.number(source, epoch)
        clause, numbers = self._clause(query)
        removed = int(database.meta()["removed"].get(str(number), 0))
        rows: list[tuple[int, str, str, bytes]] = []
        size = 0
        cursor = self._connection.execute(
            f"SELECT {COLUMNS} FROM events WHERE source = ? AND seq > ? AND seq <= ?{clause}"
            " ORDER BY seq",
            (number, after, end, *numbers),
        )
        try:
            for at, of, seq, time, type_, key_, cause_of, cause_seq, text, data, crc in cursor:
                route = self._route(of, type_, key_)
                if not query.matches(route.type, route.key):
                    continue
                cause = database.cause(cause_of, cause_seq, text)
                if crc != checksum(route.start, at, seq, time, cause, data):
                    raise ValueError(f"the checksum of the event at offset {at} differs")
                row = rebuilt(seq, time, route.type, route.key, cause.decode(), data)
                size += len(row)
                if len(rows) >= limit or (rows and size > PAGE_BYTES):
                    return JournalPage(rows[-1][0], removed, rows)
                rows.append((seq, route.type, route.key, row))
        finally:
            cursor.close()
        return JournalPage(max(after, end), removed, rows)

    def last_of_keys(
        self, source: str, epoch: int, upto: int, most: int
    ) -> list[tuple[int, str, str, bytes]]:
        """(seq, type, key, row) of the newest event of each type and key of a source up to the seq
        `upto`, at most so many. Blocks for half a second per million events. Raises JournalCorrupt.
        """
        found = []
        where = (self.number(source, epoch), upto, most)
        with self.judging():
            for seq in self._connection.execute(
                # The seqs alone: a page verifies the rest.
                "SELECT max(seq) FROM events WHERE source = ? AND seq <= ?"
                " GROUP BY type, key LIMIT ?",
                where,
            ).fetchall():
                found += self._page(EVERYTHING, source, epoch, seq[0] - 1, seq[0], 1).rows
        return found

    def seq_before_last(self, source: str, epoch: int, count: int) -> int:
        """The seq before the last `count` events of a source; 0 if it has no more."""
        select = "SELECT seq FROM events WHERE source = ? ORDER BY seq DESC LIMIT 1 OFFSET ?"
        rows = self._connection.execute(select, (self.number(source, epoch), count)).fetchall()
        return int(rows[0][0]) if rows else 0

    def each(self, start: int) -> Iterator[tuple[int, Found | str]]:
        """What lies at each offset from `start` on: the event if it is what was written, else what
        is wrong; of several that are missing, one says it. Raises sqlite3.Error if SQLite can read
        no further.
        """
        cursor = self._connection.execute(
            f'SELECT {COLUMNS} FROM events WHERE "offset" >= ? ORDER BY "offset"', (start,)
        )
        try:
            for at, of, seq, time, type_, key_, cause_of, cause_seq, text, data, crc in cursor:
                if at != start:
                    yield start, f"the event at offset {start} is missing"
                start = at + 1
                try:
                    route = self._route(of, type_, key_)
                    cause = self._database.cause(cause_of, cause_seq, text)
                    is_written = crc == checksum(route.start, at, seq, time, cause, data)
                except WRONG as error:
                    yield at, f"the event at offset {at} is damaged: {said(error)}"
                    continue
                if is_written:
                    yield at, (at, route, seq, time, cause, data)
                else:
                    yield at, f"the checksum of the event at offset {at} differs"
        finally:
            cursor.close()

    def last_offset(self) -> int:
        """The offset of the last event; 0 if there is none. Raises JournalError."""
        try:
            return int(self.ask('SELECT max("offset") FROM events') or 0)
        except sqlite3.Error as error:
            raise self._unavailable(error) from None

    def sources(self) -> list[tuple[str, int]]:
        """Name and epoch of each source that the file knows, in the order in which they came: those
        of tapes and of causes alone among them. Raises JournalCorrupt.
        """
        with self.judging():
            self._database.load_texts()
        return list(self._database.sources.values())

    def may_have(self, text: str) -> bool:
        """False if no event in the file has this type or key. Raises JournalCorrupt."""
        with self.judging():
            self._database.load_texts()
        names = self._database.names
        return len(names) >= MAX_NAMES or text in names.values()

    def ask(self, select: str, *what: Any) -> Any:
        """The one value that a statement selects; None if there is none. Raises sqlite3.Error."""
        rows = self._connection.execute(select, what).fetchall()
        return rows[0][0] if rows else None

    def facts(self) -> dict[str, Any]:
        """What is noted of the events that `keep=` has removed. Raises ValueError if that is
        damaged, and sqlite3.Error.
        """
        return self._database.meta()

    def _clause(self, query: Query) -> tuple[str, list[int]]:
        """What leaves out most of what `query` does not match, and its parameters."""
        self._database.load_texts()
        names = self._database.names
        place = query, len(names)
        found = self._clauses.get(place)
        if found is None:
            clause, numbers = "", []
            is_keyed = (query.keys or query.prefixes) and not query.reserved
            for column, matches, is_needed in (
                ("type", query.matches_type, not query.every),
                ("key", query.matches_key, is_keyed),
            ):
                some = [number for number, text in names.items() if matches(text)]
                if is_needed and len(some) <= CLAUSE_NUMBERS:
                    marks = ", ".join("?" * len(some))
                    clause += f" AND ({column} IN ({marks}) OR typeof({column}) = 'text')"
                    numbers += some
            if len(self._clauses) >= MAX_CLAUSES:
                self._clauses.clear()
            found = self._clauses[place] = clause, numbers
        return found

    def number(self, source: str, epoch: int) -> int:
        """The number of a source; 0, which none has, if it is not there."""
        number = self._numbers.get((source, epoch), 0)
        if not number:
            self._database.load_texts()
            self._numbers = {known: each for each, known in self._database.sources.items()}
            number = self._numbers.get((source, epoch), 0)
        return number

    def _route(self, source: int, type_: Any, key: Any) -> Route:
        route = self._routes.get((source, type_, key))
        if route is None:
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            route = self._database.route(source, type_, key, lambda *_: True)
            self._routes[source, type_, key] = route
        return route

    def _unavailable(self, error: Exception) -> JournalError:
        return JournalError(
            f"{self.path} cannot be read now: {said(error)}. It must not be closed, nor locked by"
            " another program, and its directory must be one in which this user may write"
        )


def _events(found: list[Found]) -> Iterator[tuple[int, Event[Any]]]:
    images = orjson.loads(b"[%b]" % b",".join([each[5] for each in found]))
    for (offset, route, seq, time, cause, _), data in zip(found, images, strict=True):
        # As `Event(...)`, in half the time.
        event = _new(Event)
        event.type = route.type
        event.data = data
        event.timestamp = time
        event.key = route.key
        event.cause = cause.decode()
        event.source = route.source
        event.epoch = route.epoch
        event.seq = seq
        yield offset, event


_new = Event.__new__


def _wanted(
    types: str | Iterable[str] | None,
    keys: str | Iterable[str] | None,
    sources: str | Iterable[str] | None,
) -> Callable[[str, str, str], bool]:
    """Says of a source, type and key if they are wanted."""
    names = None if sources is None else {sources} if isinstance(sources, str) else set(sources)
    query = (
        None if types is None and keys is None else Query.of("*" if types is None else types, keys)
    )

    def wants(source: str, type: str, key: str) -> bool:
        if type == TAPE and names is None:
            return False
        return (names is None or source in names) and (query is None or query.matches(type, key))

    return wants


def _moment(name: str, value: float | None, absent: float) -> float:
    if value is None:
        return absent
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (value == 0 or EARLIEST <= value <= LATEST):
        raise ValueError(
            f"{name}={value!r}: {way_out(value)}seconds since 1970, such as time.time(), are needed"
        )
    return value
