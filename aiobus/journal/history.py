"""The history of a bus with a journal: what memory no longer holds is read from the file.

Owns where the one ends and the other begins. Must not know who asks, or what is published.
"""

import logging

import orjson

from aiobus.errors import JournalError
from aiobus.history import PAGE_LOOK, History, Page
from aiobus.journal.reader import Journal
from aiobus.limits import Limits
from aiobus.query import Query
from aiobus.rows import Source

__all__ = ["JournaledHistory"]

LOADED = 65_536
"""Events of earlier starts that are kept in memory from the beginning: `since="last"` looks at
these, and who has lagged a little asks for them.
"""
log = logging.getLogger("aiobus.journal")
EVERY = Query.of("*")


class JournaledHistory(History):
    """A `History` that reaches back into the journal of its source, once `reach_back` was called.
    `since="last"` looks at memory alone.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._file: Journal | None = None
        self._source: Source = ("", 0)
        self._floor = 0
        """Events up to this seq are in the file alone."""

    def reach_back(self, file: Journal, source: Source, newest: int) -> None:
        """Take the newest events of `source` up to `newest` into memory, and read older ones from
        `file` when they are asked for. Blocks for less than a second.
        """
        self._file, self._source = file, source
        self._floor = after = file.seq_before_last(*source, LOADED)
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

    def evicted(self, query: Query) -> int:
        """The highest seq that is gone: only what `keep=` has removed from the file is."""
        if self._file is None:
            return super().evicted(query)
        return self._file.removed(*self._source)

    def page(
        self, query: Query, after: int, limit: int, look: int = PAGE_LOOK, upto: int = 0
    ) -> Page:
        """As in `History`, out of the file where memory does not reach back to `after`."""
        floor = max(self._floor, super().evicted(query))
        if self._file is None or upto or after >= floor:
            return super().page(query, after, limit, look, upto)
        try:
            found = self._file.page(query, *self._source, after, floor, limit)
        except JournalError as error:
            log.error("events up to seq %d are lost to those who lag: %s", floor, error)
            return Page(after, floor, floor, self.newest, [])
        rows = [(type, key, row) for _, type, key, row in found.rows]
        return Page(after, found.removed, found.to, self.newest, rows)

    def since(self, query: Query, timestamp: float) -> tuple[int, float]:
        """As in `History`, out of the file where memory does not reach back to `timestamp`."""
        begin, reached = super().since(query, timestamp)
        if self._file is None:
            return begin, reached
        floor = max(self._floor, super().evicted(query))
        found = self._file.first_since(*self._source, timestamp, floor)
        return (begin, timestamp) if found is None else (found - 1, timestamp)

    def close(self) -> None:
        """Read the file no more."""
        if self._file is not None:
            self._file.close()
