"""What `keep=` removes from a journal, and when: whole stretches of the oldest events.

Owns the stretches, and what is noted of those that are gone, for readers that ask for them. Must
not know what else is written. A stretch is removed by one transaction, without reading its events
one by one: each row that SQLite hands over takes the GIL once.
"""

import math
from datetime import timedelta
from typing import Any

from aiobus import clock
from aiobus.journal.format import chained, sealed
from aiobus.journal.scan import Database

__all__ = ["Keep", "Retention", "check_keep"]

Keep = int | timedelta | None
"""Bytes of the database, or how long ago events were committed; None for everything."""

STRETCH_EVENTS = 4_096
STRETCH_BYTES = 1024 * 1024
LEAST_BYTES = 8 * STRETCH_BYTES


def check_keep(keep: Keep) -> None:
    """Raises ValueError for what is neither bytes nor a time."""
    if isinstance(keep, timedelta) and keep > timedelta(0):
        return
    if isinstance(keep, int) and not isinstance(keep, bool) and keep >= LEAST_BYTES:
        return
    if keep is not None:
        raise ValueError(
            f"keep={keep!r}: at least {LEAST_BYTES} bytes, such as 10 * 2**30, or a time, such as"
            " timedelta(days=30), or None for everything, is needed"
        )


class Retention:
    """Begins stretches as events are committed, and removes old ones."""

    def __init__(self, database: Database, keep: Keep, offset: int) -> None:
        self._database = database
        self._connection = database.connection
        self._bytes = keep if isinstance(keep, int) else 0
        self._seconds = keep.total_seconds() if isinstance(keep, timedelta) else 0.0
        select = "SELECT max(first), max(latest) FROM stretches"
        ((begun, latest),) = self._connection.execute(select).fetchall()
        self._begun, self._latest = begun or 0, -math.inf if latest is None else latest
        """Where the present stretch begins, and the latest timestamp of all events before it."""
        self._events = offset if begun is None else offset + 1 - begun
        self._size = 0
        self.facts: dict[str, Any] = database.meta()
        self._oldest = self._find_oldest()

    def committed(self, count: int, size: int) -> None:
        """Note that so many events and bytes more are there."""
        self._events += count
        self._size += size

    def divide(self, offset: int) -> None:
        """Begin a stretch behind `offset` if the present one is full."""
        if self._events < STRETCH_EVENTS and self._size < STRETCH_BYTES:
            return
        ((latest,),) = self._connection.execute(
            'SELECT max(time) FROM events WHERE "offset" >= ?', (self._begun,)
        ).fetchall()
        self._begun = offset + 1
        self._latest = max(self._latest, -math.inf if latest is None else latest)
        place = offset + 1, clock.machine()
        row = (*place, self._latest)
        self._connection.execute("INSERT OR REPLACE INTO stretches VALUES (?, ?, ?)", row)
        self._events = self._size = 0
        self._oldest = self._oldest or place

    def is_due(self) -> bool:
        """True if the oldest stretch is to be removed."""
        if self._oldest is None:
            return False
        if self._seconds:
            return clock.machine() - self._oldest[1] > self._seconds
        return bool(self._bytes) and self._used() > self._bytes

    def remove(self) -> None:
        """Remove the oldest stretch, if there is another one. The mark must know its events."""
        if self._oldest is None:
            return
        end = self._oldest[0]
        facts = self.facts
        # As one row: the order of a subquery is that of what is joined.
        ((count, latest, checksums),) = self._connection.execute(
            "SELECT count(*), max(time), group_concat(crc) FROM"
            ' (SELECT time, crc FROM events WHERE "offset" < ? ORDER BY "offset")',
            (end,),
        ).fetchall()
        if count != end - facts["first"]:
            missing = end - facts["first"] - count
            raise ValueError(f"of the events before offset {end}, {missing} are missing")
        chain = facts["chain"]
        for crc in checksums.split(b","):
            chain = chained(chain, int(crc))
        seqs = self._connection.execute(
            'SELECT source, max(seq) FROM events WHERE "offset" < ? GROUP BY source', (end,)
        ).fetchall()
        removed = {**facts["removed"], **{str(source): seq for source, seq in seqs}}
        latest = max(latest, facts["latest"] if facts["latest"] is not None else latest)
        facts = {"first": end, "chain": chain, "latest": latest, "removed": removed}
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.execute('DELETE FROM events WHERE "offset" < ?', (end,))
            self._connection.execute("DELETE FROM stretches WHERE first <= ?", (end,))
            self._connection.execute("UPDATE meta SET data = ?, crc = ?", sealed(facts))
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self.facts = facts
        self._oldest = self._find_oldest()

    def _find_oldest(self) -> tuple[int, float] | None:
        """Where the oldest stretch ends, and when that was; None if it has not ended."""
        rows = self._connection.execute(
            "SELECT first, written FROM stretches WHERE first > ? ORDER BY first LIMIT 1",
            (self.facts["first"],),
        ).fetchall()
        return rows[0] if rows else None

    def _used(self) -> int:
        pragmas = ("page_count", "freelist_count", "page_size")
        pages, free, size = (
            self._connection.execute(f"PRAGMA {each}").fetchall()[0][0] for each in pragmas
        )
        return int((pages - free) * size)
