"""The history of a bus with a journal: what memory no longer holds is read from the file.

Owns where the one ends and the other begins. Must not know who asks, or what is published.
"""

import logging
import math
import sqlite3
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from heapq import merge
from operator import itemgetter
from typing import Any, TypeVar

import orjson

from aiobus.codec import seq_of
from aiobus.errors import JournalError
from aiobus.history import PAGE_BYTES, PAGE_LOOK, History, Page, Ring
from aiobus.journal.reader import EVERY, Journal, JournalPage
from aiobus.journal.scan import WRONG
from aiobus.limits import Limits
from aiobus.query import RESERVED, Query
from aiobus.rows import Source

__all__ = ["JournaledHistory"]

T = TypeVar("T")
LOADED = 65_536
"""Events of earlier starts that are in memory from the beginning: a reader that lags asks for them.
"""
MAX_LAST = 16_384
"""Types and keys of which the newest event is known, where memory does not hold it any more. To
sort them for `since="last"` takes 10 ms.
"""
log = logging.getLogger("aiobus.journal")


class JournaledHistory(History):
    """A `History` that reaches back into the journal of its source, after `reach_back`."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._file: Journal | None = None
        self._source: Source = ("", 0)
        self._floor = 0
        """Events of earlier starts up to this seq are in the file alone."""
        self._last: dict[tuple[str, str], bytes] = {}
        """The newest row of each type and key that memory does not hold any more."""
        self._is_complete = True
        """There was room for each of them."""
        self._sorted: tuple[object, list[tuple[int, str, str, bytes]]] = (None, [])
        """Those that were asked for last, in order of seq, and what was asked."""

    def reach_back(self, file: Journal, source: Source, newest: int) -> None:
        """Take the newest events of `source` up to `newest` into memory, and read older ones from
        `file` when they are asked for. Blocks for a second, and half of one per million events.
        """
        self._file, self._source = file, source
        self._floor = after = file.seq_before_last(*source, LOADED)
        for _, type, key, row in file.last_of_keys(*source, after, MAX_LAST):
            self._last[type, key] = row
        while after < newest:
            found = file.page(EVERY, *source, after, newest, LOADED)
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
        if self._file is None:
            return super().evicted(query)
        gone = super().evicted(_system(query)) if query.reserved else 0
        if not query.wants_data:
            return gone
        floor = max(self._floor, super().evicted(query))  # above it, memory has all
        return max(gone, min(floor, self._ask(self._file.removed, floor, *self._source)))

    def _ask(self, question: Callable[..., T], otherwise: T, *what: Any) -> T:
        """What the file says; `otherwise` if it cannot be read, which the log then says."""
        try:
            return question(*what)
        except (JournalError, *WRONG, sqlite3.Error) as error:
            log.error("the journal of %s cannot be read: %s", self._source[0], error)
            return otherwise

    def page(
        self, query: Query, after: int, limit: int, look: int = PAGE_LOOK, upto: int = 0
    ) -> Page:
        """As in `History`, out of the file where memory does not reach back to `after`."""
        floor = max(self._floor, super().evicted(query))
        if self._file is None or after >= floor or not query.wants_data:
            return super().page(query, after, limit, look, upto)
        if upto:
            return self._page_of_last(query, after, limit, look, upto)
        lost = JournalPage(floor, floor, [])
        found = self._ask(self._file.page, lost, query, *self._source, after, floor, limit)
        rows, to = found.rows, found.to
        if query.reserved:  # system events are in memory alone
            system = super().page(_system(query), after, limit, look)
            own = [(seq_of(row), type, key, row) for type, key, row in system.rows]
            rows, to = list(merge(rows, own)), min(to, system.to)
            rows = [each for each in rows if each[0] <= to]
        evicted = max(found.removed, self.evicted(query))
        return Page(after, evicted, to, self.newest, [each[1:] for each in rows])

    def _page_of_last(self, query: Query, after: int, limit: int, look: int, upto: int) -> Page:
        """The newest of each type and key up to `upto`: those in memory, and among them those that
        memory does not hold any more.
        """
        page = super().page(query, after, limit, look, upto)
        older = self._older(query, upto)
        first = bisect_right(older, after, key=itemgetter(0))
        end = bisect_right(older, page.to, key=itemgetter(0))
        rows = [(seq_of(row), type, key, row) for type, key, row in page.rows]
        rows = list(merge(rows, older[first:end]))
        to, size = page.to, 0
        for place, (_, _, _, row) in enumerate(rows):
            size += len(row)
            if place and (place >= limit or size > PAGE_BYTES):
                to, rows = rows[place - 1][0], rows[:place]
                break
        return replace(page, to=to, rows=[(type, key, row) for _, type, key, row in rows])

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
        if self._file is None or not query.wants_data:
            return begin, reached
        floor = max(self._floor, super().evicted(query))
        found = self._ask(self._file.first_since, None, *self._source, timestamp, floor)
        removed = self._ask(self._file.latest_removed, None)
        if removed is not None and removed >= timestamp:
            timestamp = math.nextafter(removed, math.inf)
        return (begin if found is None else found - 1), timestamp

    def close(self) -> None:
        """Read the file no more."""
        if self._file is not None:
            self._file.close()


def _system(query: Query) -> Query:
    """The part of a query that asks for system events."""
    return Query.of(sorted(query.reserved))
