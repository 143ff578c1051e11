"""What a bus has published lately: one ring of encoded events per type, merged by seq when somebody
asks for a page.

Owns what is kept and what is forgotten, and knows exactly how far it reaches back. Pure: it is told
what to keep and is asked for pages; who asks, and why, is not known here.

A ring per type means that a flood of quotes never evicts fills. Rows, keys and numbers lie in
parallel columns and no column holds an object that the garbage collector tracks, so a full history
costs it next to nothing.
"""

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from heapq import merge
from itertools import islice
from typing import Literal

from aiobus.limits import Limits
from aiobus.pattern import RESERVED, Query

__all__ = ["History", "Page", "Since", "Want"]

Since = Literal["last"] | float | None
"""Where in the past a subscription begins: with the newest event of each (type, key), at a time in
Unix seconds, or (None) not in the past at all.
"""

ROW_OVERHEAD = 64
"""Bytes counted for each kept event beside its row: the bytes object, two pointers and two numbers
(sys.getsizeof).
"""
EVICT_PART = 512
"""One at a time took a tenth of a publish (`python -m perf.lone`)."""
PAGE_BYTES = 64 * 1024
PAGE_LOOK = 4096


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of history: every kept event in `(after, to]` that the query matches."""

    after: int
    evicted: int
    """The highest seq already forgotten among the types the query matches: if above `after`,
    `(after, evicted]` is lost.
    """
    to: int
    """How far was looked; equal to `newest` when there is no more."""
    newest: int
    rows: list[tuple[str, str, bytes]]
    """(type, key, row) in order of seq."""
    reached: float | None = None
    """Where it was to begin at a time: from when on nothing is missing."""


@dataclass(frozen=True, slots=True)
class Want:
    """What is to be on a page."""

    after: int
    since: Since = None
    """Begin there, whatever `after` says: the page tells after which seq that is."""
    upto: int = 0
    """Above 0: of the events up to this seq the newest of each type and key, and none beyond."""


class Ring:
    """The kept events of one type, oldest first, in columns. `start` is where they begin: the cells
    before it are spent.

    Where the events of a key lie is worked out when somebody first asks, and then from page to
    page, so that publishing does not pay for it; it is thrown away when the columns are moved.
    """

    __slots__ = (
        "_indexed", "_places", "bytes", "evicted", "evicted_time", "keys", "rows", "seqs", "start",
        "timestamps", "type",
    )  # fmt: skip

    def __init__(self, type: str) -> None:
        self.type = type
        self.seqs = array("q")
        self.timestamps = array("d")
        self.keys: list[str] = []
        self.rows: list[bytes] = []
        self.start = 0
        self.bytes = 0
        self.evicted = 0
        self.evicted_time = -math.inf
        """The latest timestamp of all that was forgotten: they need not rise."""
        self._places: dict[str, array[int]] = {}
        self._indexed = 0

    def __len__(self) -> int:
        return len(self.rows) - self.start

    def evict(self) -> int:
        """Forget the oldest event, and of many the oldest 512th at once; return the bytes that were
        counted for them.
        """
        count = max(1, len(self) // EVICT_PART)
        spent = slice(self.start, self.start + count)
        size = sum(map(len, self.rows[spent])) + count * ROW_OVERHEAD
        self.evicted = self.seqs[spent.stop - 1]
        self.evicted_time = max(self.evicted_time, *self.timestamps[spent])
        self.rows[spent] = [b""] * count
        self.keys[spent] = [""] * count
        self.bytes -= size
        self.start = spent.stop
        if self.start > 64 and self.start * 2 > len(self.rows):
            for column in (self.seqs, self.timestamps, self.keys, self.rows):
                del column[: self.start]
            self.start = self._indexed = 0
            self._places.clear()
        return size

    def between(self, after: int, upto: int) -> range:
        """Where the events with a seq in `(after, upto]` lie."""
        seqs, start = self.seqs, self.start
        return range(bisect_right(seqs, after, start), bisect_right(seqs, upto, start))

    def of_key(self, key: str, after: int, upto: int) -> Iterable[int]:
        """The same for those with this key, without looking at the others."""
        places, within = self._index().get(key, ()), self.between(after, upto)
        first, end = bisect_left(places, within.start), bisect_left(places, within.stop)
        return places[first:end]

    def is_last(self, place: int, upto: int) -> bool:
        """True when no event up to the seq `upto` is newer than this one and has its key."""
        places = self._index()[self.keys[place]]
        following = bisect_right(places, place)
        return following == len(places) or self.seqs[places[following]] > upto

    def _index(self) -> "dict[str, array[int]]":
        for place in range(max(self.start, self._indexed), len(self.rows)):
            self._places.setdefault(self.keys[place], array("q")).append(place)
        self._indexed = len(self.rows)
        return self._places


class History:
    """The last events of one (source, epoch). `newest` is the highest seq it was given, of whatever
    type.
    """

    def __init__(self, limits: Limits) -> None:
        self._most_types = limits.types
        self._most_events = limits.history_events
        self._most_bytes = limits.history_bytes
        self._most_total = limits.history_total_bytes
        self._rings: dict[str, Ring] = {}
        self._types = 0
        self.newest = 0
        self.bytes = 0

    def __len__(self) -> int:
        return sum(map(len, self._rings.values()))

    def ring(self, type: str) -> Ring | None:
        """Where events of `type` are kept; None when there are as many types as `Limits.types`
        allows and it is another. Reserved types are few and do not count.
        """
        ring = self._rings.get(type)
        if ring is None:
            is_ordinary = not type.startswith(RESERVED)
            if is_ordinary and self._types >= self._most_types:
                return None
            self._types += is_ordinary
            ring = self._rings[type] = Ring(type)
        return ring

    def keep(self, ring: Ring, seq: int, timestamp: float, key: str, row: bytes) -> None:
        """Keep a row whose `seq` is above all before; forget the oldest where a limit is passed."""
        size = len(row) + ROW_OVERHEAD
        ring.seqs.append(seq)
        ring.timestamps.append(timestamp)
        ring.keys.append(key)
        ring.rows.append(row)
        ring.bytes += size
        self.bytes += size
        self.newest = seq
        # Not len(ring): a call for each event that is published.
        while len(ring.rows) - ring.start > self._most_events or ring.bytes > self._most_bytes:
            self.bytes -= ring.evict()
        while self.bytes > self._most_total:
            self.bytes -= max(self._rings.values(), key=lambda ring: ring.bytes).evict()

    def answer(self, query: Query, want: Want, limit: int, look: int = PAGE_LOOK) -> Page:
        """The page that somebody wants of what `query` matches; see `page`."""
        if want.since is None:
            return self.page(query, want.after, limit, look, want.upto)
        if want.since == "last":
            return self.page(query, 0, limit, look, self.newest)
        after, reached = self.since(query, want.since)
        return replace(self.page(query, after, limit, look), reached=reached)

    def page(
        self, query: Query, after: int, limit: int, look: int = PAGE_LOOK, upto: int = 0
    ) -> Page:
        """The next events above `after` that `query` matches, oldest first; with `upto`, only those
        up to it that are the newest of their type and key among them.

        At most `limit` events, 64 KiB of rows (but at least one event), and `look` events looked
        at, so one page never takes long.
        """
        rows: list[tuple[str, str, bytes]] = []
        size = 0
        to, end = after, upto or self.newest
        for looked, (seq, ring, place) in enumerate(self._between(query, after, end)):
            if looked >= look:
                break
            key = ring.keys[place]
            if query.matches(ring.type, key) and (not upto or ring.is_last(place, upto)):
                row = ring.rows[place]
                size += len(row)
                if len(rows) >= limit or (rows and size > PAGE_BYTES):
                    break
                rows.append((ring.type, key, row))
            to = seq
        else:
            to = max(to, end)
        return Page(after, self.evicted(query), to, self.newest, rows)

    def count(self, query: Query, after: int) -> int:
        """How many events above `after` are kept of the types `query` matches, whatever their keys:
        it must be quick, since a closing bus asks for each subscription that is behind.
        """
        rings = self._matching(query)
        return sum(len(ring.seqs) - bisect_right(ring.seqs, after, ring.start) for ring in rings)

    def evicted(self, query: Query) -> int:
        """The highest seq that is gone among the types `query` matches; 0 when nothing is."""
        return max((ring.evicted for ring in self._matching(query)), default=0)

    def since(self, query: Query, timestamp: float) -> tuple[int, float]:
        """Where to begin for everything since `timestamp`: the seq to read after, and the time from
        which on nothing is missing.

        The latter is `timestamp` itself unless something newer is not handed over; then it is the
        next time of what is.
        """
        evicted = self.evicted(query)
        begin, missing = self.newest, -math.inf
        kept: list[array[float]] = []
        for ring in self._matching(query):
            first = bisect_right(ring.seqs, evicted, ring.start)
            missing = max(missing, ring.evicted_time, *ring.timestamps[ring.start : first])
            kept.append(ring.timestamps[first:])
            late = (place for place, time in enumerate(kept[-1], first) if time >= timestamp)
            begin = min(begin, *(ring.seqs[place] - 1 for place in islice(late, 1)), begin)
        if missing < timestamp:
            return begin, timestamp
        after = math.nextafter(missing, math.inf)
        return begin, min(
            (time for times in kept for time in times if time > missing), default=after
        )

    def _matching(self, query: Query) -> list[Ring]:
        return [ring for ring in self._rings.values() if query.matches_type(ring.type)]

    def _between(self, query: Query, after: int, upto: int) -> Iterator[tuple[int, Ring, int]]:
        """(seq, ring, place) of the kept events in `(after, upto]` that `query` may match, in order
        of seq: those of its types, and where it names its keys, of no others.
        """
        walks = []
        for ring in self._matching(query):
            if query.keys and not query.prefixes and ring.type not in query.reserved:
                walks += [_walk(ring, ring.of_key(key, after, upto)) for key in query.keys]
            else:
                walks.append(_walk(ring, ring.between(after, upto)))
        if len(walks) == 1:
            return walks[0]
        return merge(*walks, key=lambda found: found[0])


def _walk(ring: Ring, places: Iterable[int]) -> Iterator[tuple[int, Ring, int]]:
    for place in places:
        yield ring.seqs[place], ring, place
