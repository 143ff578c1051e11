"""Single events of a journal: by id, by cause and by time.

Owns which index answers what. Must not know what is made of the events. An event that is handed
over was compared with its checksum. A damaged index may find fewer, which `check_absent` and
`check_effects` notice.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from aiobus.errors import JournalError
from aiobus.event import Event, event_id
from aiobus.journal.format import COLUMNS, MAX_INTEGER, MAX_SOURCES, checksum
from aiobus.journal.mark import read_mark
from aiobus.journal.reader import Journal
from aiobus.query import RESERVED

__all__ = ["Lookup", "Reach", "Span"]

_IN_TIME = "time >= ? AND time < ?"
_PLACES_AT_ONCE = 1_024
_MOST_ABSENT = 65_536
_MOST_TYPES = 20
_MOST_EPOCHS = 3


Span = tuple[float, float]
"""From this time on, and before that: Unix seconds."""


class Reach(NamedTuple):
    """What a journal has of one source."""

    first: int
    """The lowest seq; 0 if there is no event of it."""
    last: int
    """The highest seq; 0 if there is no event of it."""
    removed: int
    """The highest seq that `keep=` has removed; 0 if there is none."""
    others: list[str]
    """If there is no event of it: ids without the seq of some other starts of its bus."""


class Lookup(Journal):
    """A journal in which events are looked up. Raises JournalCorrupt if it has fewer events than
    its mark says, or fewer sources than its events name; each call, if one of the events that it
    reads is not what was written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._absent: set[tuple[str, int]] = set()
        try:
            self._check_reach()
        except JournalError:
            self.close()
            raise

    def _check_reach(self) -> None:
        """Raises JournalCorrupt if events or sources are missing at the end: else what is asked for
        might be one of them, and not found.
        """
        with self.judging():
            mark, last = read_mark(self.path), self.last_offset()
            if mark is not None and last < mark.offset:
                raise ValueError(f"the events up to offset {mark.offset} are missing")
            self._database.load_texts()
            if (self.ask("SELECT max(source) FROM events") or 0) > len(self._database.sources):
                raise ValueError("its table `sources` is damaged")

    def number(self, source: str, epoch: int) -> int:
        """As of a Journal, but a source that is not there is looked for once."""
        if (source, epoch) in self._absent:
            return 0
        number = super().number(source, epoch)
        if not number and len(self._absent) < _MOST_ABSENT:
            self._absent.add((source, epoch))
        return number

    def find(self, source: str, epoch: int, seq: int) -> Event[Any] | None:
        """The event with this identity; None if it is not in the file. One look into an index."""
        if seq > MAX_INTEGER:
            return None
        with self.judging():
            place = self.number(source, epoch), seq
            return next(self._select("source = ? AND seq = ?", *place), None)

    def check_absent(self, source: str, epoch: int, seq: int) -> None:
        """Raises JournalCorrupt if the event is in the file, but not in the index of `find`. Walks
        through the file, a tenth of a second for a million events.
        """
        if seq <= MAX_INTEGER:
            self._check_index("source", "seq", [(self.number(source, epoch), seq)])

    def check_effects(self, causes: Sequence[Event[Any]]) -> None:
        """The same for the index of `effects`: raises JournalCorrupt if an effect of one of these
        events is not in it. One walk for 1,000 causes.
        """
        places = [(self.number(each.source, each.epoch), each.seq) for each in causes]
        for begin in range(0, len(places), _PLACES_AT_ONCE):
            some = places[begin : begin + _PLACES_AT_ONCE]
            self._check_index("cause_source", "cause_seq", some)

    def _check_index(self, source: str, seq: str, places: Sequence[tuple[int, int]]) -> None:
        """Raises JournalCorrupt unless as many events are found by an index, place by place, as the
        table has. In one statement, because the file may be written meanwhile.
        """
        values = ", ".join(map(str, places))
        with self.judging():
            if not self.ask(
                f"WITH places(a, b) AS (VALUES {values}) SELECT"
                f" (SELECT count(*) FROM events NOT INDEXED WHERE {source} IS NOT NULL"
                f"  AND ({source}, {seq}) IN (SELECT a, b FROM places))"
                f" = (SELECT count(*) FROM places CROSS JOIN events"
                f"    WHERE {source} = a AND {seq} = b)"
            ):
                raise ValueError("an index has not the events that the table has")

    def moment(self, source: str, epoch: int, seq: int) -> tuple[str, float] | None:
        """The type and time of an event, not compared with its checksum; None if it is not in the
        file.
        """
        if seq > MAX_INTEGER:
            return None
        with self.judging():
            select = "SELECT type, time FROM events WHERE source = ? AND seq = ?"
            place = self.number(source, epoch), seq
            for type, time in self._connection.execute(select, place).fetchall():
                return self._database.text(type), time
        return None

    def effects(self, cause: tuple[str, int, int], limit: int) -> tuple[int, list[Event[Any]]]:
        """How many events name this one as their cause, and the first `limit` of them, in the order
        in which they were committed. Looks into an index, and through the whole file only if that
        has 4,096 sources, of which later ones are kept as text.
        """
        source, epoch, seq = cause
        if seq > MAX_INTEGER:
            return 0, []
        with self.judging():
            where = "cause_source = ? AND cause_seq = ?"
            what: list[int | str] = [self.number(source, epoch), seq]
            if len(self._database.sources) >= MAX_SOURCES:
                where, what = f"({where} OR cause = ?)", [*what, event_id(*cause)]
            count = self.ask(f"SELECT count(*) FROM events WHERE {where}", *what)
            return count, list(self._select(f'{where} ORDER BY "offset" LIMIT ?', *what, limit))

    def reach(self, source: str, epoch: int) -> Reach:
        """What the file has of a source."""
        with self.judging():
            number = self.number(source, epoch)
            first, last = self._connection.execute(
                "SELECT (SELECT min(seq) FROM events WHERE source = ?1),"
                " (SELECT max(seq) FROM events WHERE source = ?1)",
                (number,),
            ).fetchone()
            removed = int(self.facts()["removed"].get(str(number), 0))
            others: list[str] = []
            for place, (name, other) in self._database.sources.items():
                if first is None and name == source and len(others) < _MOST_EPOCHS:
                    select = "SELECT seq FROM events WHERE source = ? LIMIT 1"
                    if self.ask(select, place) is not None:
                        others.append(event_id(name, other, 1).removesuffix(".1"))
            return Reach(first or 0, last or 0, removed, others)

    # By time, of which there is no index: one walk through the file, of a tenth of a second for a
    # million events.

    def minutes(self, type: str | None, key: str | None, most: int) -> list[int]:
        """The minutes since 1970 in which there are such events, of which at most so many."""
        with self.judging():
            such, what = self._such(type, key)
            select = f"SELECT DISTINCT CAST(time / 60 AS INTEGER) FROM events WHERE {such} LIMIT ?"
            return [m for (m,) in self._connection.execute(select, (*what, most)).fetchall()]

    def within(
        self, span: Span, type: str | None, key: str | None, limit: int
    ) -> tuple[int, list[Event[Any]]]:
        """How many such events there are in a span, and the first `limit` of them by time."""
        with self.judging():
            such, what = self._such(type, key)
            where = f"{_IN_TIME} AND {such}"
            count = self.ask(f"SELECT count(*) FROM events WHERE {where}", *span, *what)
            first = f'SELECT "offset" FROM events WHERE {where} ORDER BY time, "offset" LIMIT ?'
            found = self._select(
                f'"offset" IN ({first}) ORDER BY time, "offset"', *span, *what, limit
            )
            return count, list(found)

    def nearest(self, span: Span, type: str | None, key: str | None) -> list[Event[Any]]:
        """The last such event before a span, and the first behind it, if they are there."""
        found: list[Event[Any]] = []
        begin, end = span
        with self.judging():
            such, what = self._such(type, key)
            for where, order, moment in (("time < ?", "DESC", begin), ("time >= ?", "ASC", end)):
                found += self._select(
                    f'{where} AND {such} ORDER BY time {order}, "offset" {order} LIMIT 1',
                    *(moment, *what),
                )
        return found

    def types(self) -> list[str]:
        """Some of the types of events in the file, without the reserved ones."""
        with self.judging():
            such, what = self._such(None, None)
            select = f"SELECT DISTINCT type FROM events WHERE {such} LIMIT {_MOST_TYPES}"
            rows = self._connection.execute(select, what).fetchall()
            return sorted(self._database.text(column) for (column,) in rows)

    def _such(self, type: str | None, key: str | None) -> tuple[str, list[Any]]:
        """The condition for events of a type (None: each but the reserved ones) and of a key or
        `prefix*` (None: each), and its parameters. A name that is no number stands in the event.
        """
        self._database.load_texts()
        names = self._database.names
        if type is None:
            numbers = [str(each) for each, text in names.items() if text.startswith(RESERVED)]
            where = f"type NOT IN ({', '.join(numbers)})"
            where += " AND (typeof(type) = 'integer' OR substr(type, 1, ?) <> ?)"
            what: list[Any] = [len(RESERVED), RESERVED]
        else:
            numbers = [str(each) for each, text in names.items() if text == type]
            where, what = f"type IN ({', '.join([*numbers, '?'])})", [type]
        if key is not None:
            is_prefix, begin = key.endswith("*"), key.removesuffix("*")
            numbers = [
                str(each)
                for each, text in names.items()
                if (text.startswith(begin) if is_prefix else text == key)
            ]
            listed = f"key IN ({', '.join(numbers)})"
            if is_prefix:
                where += f" AND ({listed} OR typeof(key) = 'text' AND substr(key, 1, ?) = ?)"
                what += [len(begin), begin]
            else:
                where += f" AND ({listed} OR key = ?)"
                what.append(key)
        return where, what

    def _select(self, where: str, *what: Any) -> Iterator[Event[Any]]:
        """Events as they were written. Raises ValueError for one that is not."""
        cursor = self._connection.execute(f"SELECT {COLUMNS} FROM events WHERE {where}", what)
        try:
            for at, of, seq, time, type_, key_, cause_of, cause_seq, text, data, crc in cursor:
                route = self._route(of, type_, key_)
                cause = self._database.cause(cause_of, cause_seq, text)
                if crc != checksum(route.start, at, seq, time, cause, data):
                    raise ValueError(f"the checksum of the event at offset {at} differs")
                yield Event(
                    *(route.type, orjson.loads(data), time),
                    key=route.key,
                    cause=cause.decode(),
                    source=route.source,
                    epoch=route.epoch,
                    seq=seq,
                )
        finally:
            cursor.close()
