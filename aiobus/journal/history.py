"""The history of a bus with a journal: what memory no longer holds is read from the file.

Owns where the one ends and the other begins, and what a damage of the file costs: the events that
it hit, and no others. Must not know who asks, or what is published.
"""

import logging
import math
import sqlite3
import threading
from contextlib import suppress
from dataclasses import replace
from heapq import merge
from typing import Any, NamedTuple

import orjson

from aiobus.codec import seq_of
from aiobus.history import PAGE_BYTES, PAGE_LOOK, History, Page, Ring, Want, joined
from aiobus.journal.format import rebuilt
from aiobus.journal.reader import Journal
from aiobus.journal.scan import WRONG, is_unavailable, said
from aiobus.limits import Limits
from aiobus.query import EVERYTHING, RESERVED, Query
from aiobus.rows import Source

__all__ = ["JournaledHistory", "Past"]

LOADED = 65_536
"""Events of earlier starts that are in memory from the beginning: a reader that lags asks for them.
"""
MAX_LAST = 16_384
"""Types and keys of which the newest event is known, where memory does not hold it any more. To
sort them for `since="last"` takes 10 ms.
"""
FILE_LOOK = 1_024
"""Numbers that a page of the file looks at: each event is verified, which takes 2 us."""
SINCE_LOOK = 10_000
"""Events that the question where a time begins looks at: those of two stretches, and more."""
MISSING = "is missing"
CLOSED = "Cannot operate on a closed database."
MAX_TOLD = 1_024
"""Damages that are remembered, so that each is logged once."""
log = logging.getLogger("aiobus.journal")


class Stretch(NamedTuple):
    """What the file has of the numbers from where it was asked up to `to`."""

    to: int
    damaged: int
    """Of the numbers up to this one nothing can be read; 0 if there are none."""
    rows: list[tuple[int, str, str, bytes]]
    """(seq, type, key, row), oldest first."""


class Past:
    """What `file` has of `source`, whose events are its last, while it is written. It was verified
    when it was opened, and may be damaged since. So each event that is looked at is verified, and
    each damage is logged once. A question raises nothing, and looks at 10,000 events at most, which
    takes 20 ms.
    """

    def __init__(self, file: Journal, source: Source) -> None:
        self._file = file
        self._source = source
        self._removed = 0
        self._told: set[str] = set()

    def page(self, query: Query, after: int, upto: int, limit: int, look: int) -> Stretch:
        """The next events above `after` and up to `upto` that `query` matches: at most `limit`, and
        256 KiB of rows (but at least one), among `look` or 1,024 numbers. It ends before an event
        that is damaged. If such events come first, they are `damaged`, and what follows them is
        there. If SQLite cannot read on, all these numbers are.
        """
        end = min(upto, after + min(look, FILE_LOOK))
        try:
            try:
                return self._page(query, after, end, limit)
            except sqlite3.Error as error:
                if not is_unavailable(error) or str(error) == CLOSED:
                    raise
                return self._page(query, after, end, limit)  # it may have been for a moment
        except (sqlite3.Error, *WRONG) as error:
            if str(error) == CLOSED:
                return Stretch(after, 0, [])
            self._tell(said(error), f"the events {after + 1} to {end} are lost to their readers")
            return Stretch(end, end, [])

    def _page(self, query: Query, after: int, end: int, limit: int) -> Stretch:
        begin = self._ask('"offset"', "seq > ? ORDER BY seq", after)
        if begin is None:
            return Stretch(end, 0, [])
        rows: list[tuple[int, str, str, bytes]] = []
        to, size, damaged = after, 0, 0
        is_damaged = False
        try:
            last = self._ask('"offset"', "seq <= ? ORDER BY seq DESC", end)
            # From the event before that: if the index is damaged, it belongs here as well.
            for offset, found in self._file.each(max(1, begin - 1)):
                if offset > max(begin, min(last or 0, begin + FILE_LOOK)):
                    break
                if isinstance(found, str):
                    is_before = offset < begin and not found.endswith(MISSING)
                    if is_before or self._is_removed(offset):
                        continue
                    if to > after:
                        return Stretch(to, damaged, rows)
                    self._tell(found, "it is lost to its readers")
                    is_damaged = True
                    continue
                _, route, seq, _, cause, data = found
                if offset < begin:
                    if seq > after and (route.source, route.epoch) == self._source:
                        raise ValueError(f"the index has event {seq} in another place")
                    continue
                if is_damaged:
                    is_damaged, damaged = False, self._last_before(min(seq, end + 1), after)
                if seq > end:
                    break
                if query.matches(route.type, route.key):
                    row = rebuilt(*(seq, found[3], route.type, route.key, cause.decode()), data)
                    size += len(row)
                    if rows and (len(rows) >= limit or size > PAGE_BYTES):
                        return Stretch(to, damaged, rows)
                    rows.append((seq, route.type, route.key, row))
                to = seq
        except sqlite3.Error:
            if to == after:
                raise
            return Stretch(to, damaged, rows)
        if is_damaged:
            damaged = self._last_before(end + 1, after)
        return Stretch(end, damaged, rows)

    def _last_before(self, seq: int, after: int) -> int:
        """The last number below `seq` that was used, if the index knows one above `after`."""
        last = self._ask("seq", "seq < ? ORDER BY seq DESC", seq)
        return int(last) if last is not None and last > after else seq - 1

    def _ask(self, what: str, where: str, *given: object) -> Any:
        select = f"SELECT {what} FROM events WHERE source = ? AND {where} LIMIT 1"
        return self._file.ask(select, self._file.number(*self._source), *given)

    def place_since(self, time: float, upto: int) -> tuple[int | None, float]:
        """The seq behind which the events with a timestamp from `time` on begin, if one is there up
        to the seq `upto`; and from when on nothing is missing. Damaged events directly before the
        first may be from then, and lie behind that place. If there are others, the time is later.
        """
        reached, is_damaged = time, False
        last: int | None = None
        try:
            # All events before the stretch are older.
            begin = self._file.ask("SELECT max(first) FROM stretches WHERE latest < ?", time) or 1
            first = self._ask('"offset"', "seq > 0 ORDER BY seq")
            if first is None:
                return None, reached
            if first >= begin:
                begin, last = first, self.removed()
            for offset, found in self._file.each(max(1, begin - 1)):
                if offset > begin + SINCE_LOOK:  # so many are damaged
                    return last, math.nextafter(time, math.inf)
                if isinstance(found, str):
                    if not self._is_removed(offset):
                        self._tell(found, "it is lost to its readers")
                        is_damaged = True
                elif (found[1].source, found[1].epoch) != self._source:
                    continue
                elif found[2] > upto:
                    break
                elif found[3] < time:
                    if is_damaged:
                        is_damaged, reached = False, math.nextafter(time, math.inf)
                    last = found[2]
                elif is_damaged and last is not None:
                    return last, reached
                else:
                    return found[2] - 1, math.nextafter(time, math.inf) if is_damaged else reached
        except (sqlite3.Error, *WRONG) as error:
            self._tell(said(error), f"where events since {time} begin is not known")
            return last, math.nextafter(time, math.inf)
        if is_damaged:  # where memory begins
            return last, reached if last is not None else math.nextafter(time, math.inf)
        return None, reached

    def removed(self) -> int:
        """The highest seq that `keep=` has removed; 0 if there is none."""
        try:
            number = str(self._file.number(*self._source))
            self._removed = int(self._file.facts()["removed"].get(number, 0))
        except (sqlite3.Error, *WRONG) as error:
            self._tell(said(error), "what was removed is told by what is there")
            with suppress(sqlite3.Error, *WRONG):
                first = self._ask("seq", "seq > 0 ORDER BY seq")
                self._removed = self._removed if first is None else max(self._removed, first - 1)
        return self._removed

    def latest_removed(self) -> float:
        """The latest timestamp of what `keep=` has removed; -inf if that is nothing, and inf if it
        cannot be read.
        """
        try:
            latest = self._file.facts()["latest"]
            return -math.inf if latest is None else float(latest)
        except (sqlite3.Error, *WRONG) as error:
            self._tell(said(error), "how far it goes back in time is not known")
            return math.inf

    def _is_removed(self, offset: int) -> bool:
        """True if `keep=` has removed the event at this offset since it was looked up."""
        try:
            return bool(self._file.facts()["first"] > offset)
        except (sqlite3.Error, *WRONG):
            return False

    def _tell(self, what: str, so: str) -> None:
        if what in self._told or what == CLOSED or len(self._told) > MAX_TOLD:
            return
        self._told.add(what)
        log.error("%s is damaged: %s; %s", self._file.path, what, so)
        if len(self._told) > MAX_TOLD:
            log.error("%s: further damages are not logged one by one", self._file.path)

    def close(self) -> None:
        """Read the file no more."""
        self._file.close()


class JournaledHistory(History):
    """A `History` that reaches back into the journal of its source, after `reach_back`."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._past: Past | None = None
        self._turn = threading.Lock()
        self._is_reading = self._is_closed = False
        """`reach_back` is under way; the file is to be closed, by it or by `close`."""
        self._source: Source = ("", 0)
        self._floor = 0
        """Events of earlier starts up to this seq are in the file alone."""
        self._last: dict[tuple[str, str], bytes] = {}
        """The newest row of each type and key that memory does not hold any more."""
        self._is_complete = True
        """There was room for each of them."""
        self._sorted: tuple[object, list[tuple[int, str, str, bytes]]] = (None, [])
        """Those that were asked for last, in order of seq, and what was asked."""

    def reach_back(self, path: str, source: Source, newest: int) -> None:
        """Take the newest events of `source` up to `newest` into memory, and read older ones from
        the journal at `path` when they are asked for. Blocks for a second, and half of one per
        million events. After `close`, the file is closed when this ends. Raises what `Journal`
        raises.
        """
        file = Journal(path)
        with self._turn:
            self._is_reading = True
            self._past, self._source = Past(file, source), source
        try:
            self._load(file, source, newest)
        finally:
            with self._turn:
                self._is_reading = False
                if self._is_closed:
                    file.close()

    def _load(self, file: Journal, source: Source, newest: int) -> None:
        self._floor = after = file.seq_before_last(*source, LOADED)
        for _, type, key, row in file.last_of_keys(*source, after, MAX_LAST):
            self._last[type, key] = row
        while after < newest:
            found = file.page(EVERYTHING, *source, after, newest, LOADED)
            for seq, type, key, row in found.rows:
                ring = self.ring(type)
                if ring is None:  # of more types than `Limits.types` the later ones stay there
                    self._floor = seq
                    continue
                ring.cells += (row, key, orjson.loads(row)[1])
                self.settle(ring)
            after = found.to
        self.newest = newest

    def _evict(self, ring: Ring) -> int:
        cells, last = ring.doomed_cells, self._last
        if not ring.type.startswith(RESERVED):
            self._sorted = None, []
            for row, key in zip(cells[::3], cells[1::3], strict=True):
                place = (ring.type, key)
                if place in last or len(last) < MAX_LAST:
                    last[place] = row
                elif self._is_complete:
                    self._is_complete = False
                    text = "%s: more than %d keys: since='last' leaves out those that are seldom"
                    log.warning(text, self._source[0], MAX_LAST)
        return super()._evict(ring)

    def evicted(self, query: Query) -> int:
        """The highest seq that is gone: what `keep=` has removed from the file, and of system
        events, which are not in it, what memory has forgotten.
        """
        if self._past is None:
            return super().evicted(query)
        gone = super().evicted(_system(query)) if query.reserved else 0
        if not query.wants_data:
            return gone
        floor = max(self._floor, super().evicted(query))  # above it, memory has all
        return max(gone, min(floor, self._past.removed()))

    def answer(self, query: Query, want: Want, limit: int, look: int = PAGE_LOOK) -> Page:
        """As in `History`. A page says where it begins, and not at once that events are damaged
        there: what is gone by then is not missed.
        """
        page = super().answer(query, want, limit, look)
        if want.since is not None and page.evicted > (evicted := self.evicted(query)):
            return replace(page, evicted=evicted, to=page.after, rows=[])
        return page

    def page(
        self, query: Query, after: int, limit: int, look: int = PAGE_LOOK, upto: int = 0
    ) -> Page:
        """As in `History`, out of the file where memory does not reach back to `after`."""
        floor = max(self._floor, super().evicted(query))
        if self._past is None or after >= floor or not query.wants_data:
            return super().page(query, after, limit, look, upto)
        if upto:
            return self._page_of_last(query, after, limit, look, upto)
        to, damaged, rows = self._past.page(query, after, floor, limit, look)
        if query.reserved:  # system events are in memory alone
            system = super().page(_system(query), after, limit, look)
            own = [(seq_of(row), type, key, row) for type, key, row in system.rows]
            rows, to = list(merge(rows, own)), min(to, system.to)
            rows = [each for each in rows if each[0] <= to]
        evicted = max(damaged, self.evicted(query))
        return Page(after, evicted, to, self.newest, [each[1:] for each in rows])

    def _page_of_last(self, query: Query, after: int, limit: int, look: int, upto: int) -> Page:
        """The newest of each type and key up to `upto`: those in memory, and among them those that
        memory does not hold any more.
        """
        page = super().page(query, after, limit, look, upto)
        return joined(page, self._older(query, upto), limit)

    def _older(self, query: Query, upto: int) -> list[tuple[int, str, str, bytes]]:
        """What `query` matches of the newest rows that memory does not hold, without those that a
        later one up to `upto` has followed.
        """
        asked = (query, upto)
        if self._sorted[0] != asked:
            found = [
                (seq_of(row), type, key, row)
                for (type, key), row in self._last.items()
                if query.matches(type, key) and not self._is_followed(type, key, upto)
            ]
            self._sorted = asked, sorted(found)
        return self._sorted[1]

    def _is_followed(self, type: str, key: str, upto: int) -> bool:
        ring = self.ring(type)
        return ring is not None and bool(ring.of_key(key, 0, upto))

    def since(self, query: Query, timestamp: float) -> tuple[int, float]:
        """As in `History`, out of the file where memory does not reach back to `timestamp`."""
        begin, reached = super().since(query, timestamp)
        if self._past is None or not query.wants_data:
            return begin, reached
        floor = max(self._floor, super().evicted(query))
        after, reached = self._past.place_since(timestamp, floor)
        removed = self._past.latest_removed()
        if removed >= timestamp:
            known = timestamp if math.isinf(removed) else removed
            reached = max(reached, math.nextafter(known, math.inf))
        return (begin if after is None else after), reached

    def close(self) -> None:
        """Read the file no more. Never waits."""
        with self._turn:
            self._is_closed = True
            if self._past is not None and not self._is_reading:
                self._past.close()


def _system(query: Query) -> Query:
    """The part of a query that asks for system events."""
    return Query.of(sorted(query.reserved))
