"""What a bus has published lately: one ring of encoded events per type, merged by seq when a page
is asked for.

Owns what is kept and what is forgotten, and knows exactly how far it reaches back. Pure: it is told
what to keep and is asked for pages; who asks, and why, is not known here.

A ring per type means that a flood of quotes never evicts fills. A ring is one list of row, key and
timestamp, row, key and timestamp, none of which the garbage collector tracks, so a full history
costs it next to nothing; the seq is read from the row when it is asked for.

Publishing is frequent and asking is rare. So an event is kept by extending one list, and its size
is counted later: a ring pays in advance for as many rows as fit into every limit even if each has
`LARGE` bytes, a larger row takes the places of several, and the ring is settled when these are used
up. So no limit is passed in between.
"""

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Any, Literal, NamedTuple

from aiobus.codec import seq_of
from aiobus.limits import Limits
from aiobus.query import RESERVED, Query

__all__ = ["History", "Page", "Since", "Want", "joined"]

Since = Literal["last"] | float | None
"""Where in the past a subscription begins: with the newest event of each (type, key), at a time in
Unix seconds, or (None) not in the past at all.
"""

ROW_OVERHEAD = 80
"""Bytes counted for each kept event beside its row: the rest of the bytes object, a float and three
pointers (sys.getsizeof).
"""
LARGE = 512
"""Bytes up to which a row is paid for in advance."""
AHEAD = 64
"""Events that a ring pays for in advance, at most, and of what is left of the total of all rings
one part in so many: the others may need it as well.
"""
EVICT_PART = 512
"""One at a time took a tenth of a publish."""
PAGE_BYTES = 256 * 1024
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


def joined(page: Page, others: list[tuple[int, str, str, bytes]], limit: int) -> Page:
    """The page with those of `others` that belong to its stretch, in order of seq, which comes
    first in them. It ends sooner if it would have more than `limit` events, or too many bytes.
    """
    first = bisect_right(others, page.after, key=itemgetter(0))
    end = bisect_right(others, page.to, key=itemgetter(0))
    rows = [(seq_of(row), type, key, row) for type, key, row in page.rows]
    rows = list(merge(rows, others[first:end]))
    to, size = page.to, 0
    for place, (_, _, _, row) in enumerate(rows):
        size += len(row)
        if place and (place >= limit or size > PAGE_BYTES):
            to, rows = rows[place - 1][0], rows[:place]
            break
    return replace(page, to=to, rows=[(type, key, row) for _, type, key, row in rows])


class Ring:
    """The kept events of one type, oldest first. The event at `place` has its row, key and
    timestamp in `cells` from `3 * place` on. `start` is the place of the oldest: the cells before
    it are spent.

    Where the events of a key lie is worked out when a page first asks, and then from page to
    page, so that publishing does not pay for it; it is thrown away when the cells are moved.
    """

    __slots__ = (
        "_indexed", "_places", "bytes", "cells", "counted", "evicted", "evicted_time", "paid",
        "settle_at", "start", "type",
    )  # fmt: skip

    def __init__(self, type: str) -> None:
        self.type = type
        self.cells: list[Any] = []
        self.start = 0
        self.counted = 0
        """The place up to which sizes are counted."""
        self.paid = 0
        """Bytes paid in advance for what comes behind it."""
        self.settle_at = 0
        """More cells than these are not paid for. A row above `LARGE` bytes lowers it."""
        self.bytes = 0
        """What is counted and paid."""
        self.evicted = 0
        self.evicted_time = -math.inf
        """The latest timestamp of all that was forgotten: they need not rise."""
        self._places: dict[str, array[int]] = {}
        self._indexed = 0

    @property
    def end(self) -> int:
        """The place behind the newest event."""
        return len(self.cells) // 3

    def __len__(self) -> int:
        return self.end - self.start

    def seq(self, place: int) -> int:
        """Its seq."""
        return seq_of(self.cells[3 * place])

    def timestamps(self, first: int, end: int) -> list[float]:
        """The timestamps of the events from `first` on, before `end`."""
        return self.cells[3 * first + 2 : 3 * end : 3]

    def count(self) -> int:
        """Count what was kept since the last time; return by how much `bytes` has changed."""
        new = len(self.cells) // 3 - self.counted
        size = sum(map(len, self.cells[3 * self.counted :: 3])) + new * ROW_OVERHEAD - self.paid
        self.counted += new
        self.paid = self.settle_at = 0
        self.bytes += size
        return size

    def pay(self, events: int) -> int:
        """Pay in advance for so many, which need not be counted one by one; return the bytes."""
        self.paid = events * (LARGE + ROW_OVERHEAD)
        self.bytes += self.paid
        self.settle_at = len(self.cells) + 3 * events
        return self.paid

    @property
    def doomed(self) -> int:
        """The seq up to which `evict` forgets. There must be an event."""
        return self.seq(self.start + max(1, len(self) // EVICT_PART) - 1)

    @property
    def doomed_cells(self) -> list[Any]:
        """The cells of the events that `evict` forgets."""
        count = max(1, len(self) // EVICT_PART)
        return self.cells[3 * self.start : 3 * (self.start + count)]

    def evict(self) -> int:
        """Forget the oldest event, and of many the oldest 512th at once; return the bytes that were
        counted for them. Only what was counted can be forgotten.
        """
        count = max(1, len(self) // EVICT_PART)
        first, end = 3 * self.start, 3 * (self.start + count)
        size = sum(map(len, self.cells[first:end:3])) + count * ROW_OVERHEAD
        self.evicted = self.seq(self.start + count - 1)
        self.evicted_time = max(self.evicted_time, *self.cells[first + 2 : end : 3])
        self.cells[first:end] = (b"", "", 0.0) * count
        self.bytes -= size
        self.start += count
        if self.start > 64 and self.start * 2 > self.end:
            del self.cells[:end]
            self.counted -= self.start
            self.start = self._indexed = 0
            self._places.clear()
        return size

    def between(self, after: int, upto: int) -> range:
        """Where the events with a seq in `(after, upto]` lie."""
        return range(self.behind(after), self.behind(upto))

    def behind(self, seq: int) -> int:
        """The place of the first event above `seq`."""
        end = self.end
        if end == self.start or self.seq(end - 1) <= seq:
            return end
        return bisect_right(range(end), seq, self.start, key=self.seq)

    def of_key(self, key: str, after: int, upto: int) -> Iterable[int]:
        """The same for those with this key, without looking at the others."""
        places, within = self._index().get(key, ()), self.between(after, upto)
        first, end = bisect_left(places, within.start), bisect_left(places, within.stop)
        return places[first:end]

    def is_last(self, place: int, key: str, end: int) -> bool:
        """True when no event between this one, which has `key`, and the place `end` has that."""
        places = self._index()[key]
        following = bisect_right(places, place)
        return following == len(places) or places[following] >= end

    def _index(self) -> "dict[str, array[int]]":
        first, end = max(self.start, self._indexed), self.end
        if first == end:
            return self._places
        for place, key in enumerate(self.cells[3 * first + 1 :: 3], first):
            self._places.setdefault(key, array("q")).append(place)
        self._indexed = end
        return self._places


class Full(NamedTuple):
    """No row fits in before `ring` forgets something. `limit`: which of `Limits` it has reached."""

    ring: Ring
    limit: str


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
        self._bytes = 0
        """Of all rings, counted and paid."""
        self.newest = 0
        self.is_paced = False
        """`make_room` is called before each event of a user that `settle` is called for."""
        self.safe: dict[str, int] = {}
        """Paced: up to which seq the events of a type may be forgotten, as far as is known."""

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

    def settle(self, ring: Ring) -> None:
        """Count what was appended to `ring`, and forget the oldest where a limit is passed.

        The publisher extends `ring.cells` by the row, key and timestamp of an event whose seq is
        above all before, which is then the `newest`. For each whole `LARGE` of a row with more
        bytes than that it lowers `ring.settle_at` by 3 cells. It calls this at once when there are
        more cells than `ring.settle_at`.
        """
        self._bytes += ring.count()
        while len(ring) > self._most_events or ring.bytes > self._most_bytes:
            self._bytes -= self._evict(ring)
        if self._bytes > self._most_total:  # perhaps only by what is paid in advance
            self._count_all()
        while self._bytes > self._most_total:
            # Paced, a system event, which does not wait, forgets none that readers may still need.
            self._bytes -= self._evict(ring if self.is_paced else self._largest())
        each = LARGE + ROW_OVERHEAD
        ahead = min(
            AHEAD,
            self._most_events - len(ring),
            (self._most_bytes - ring.bytes) // each,
            (self._most_total - self._bytes) // each // AHEAD,
        )
        if ahead:
            self._bytes += ring.pay(ahead)

    def make_room(self, ring: Ring, size: int, may_forget: Callable[[Ring], bool]) -> Full | None:
        """Forget the oldest until one more row of `size` bytes fits into `ring`. Returns the ring
        whose `doomed` may not be forgotten, so that the row does not fit yet, and why.
        """
        size += ROW_OVERHEAD
        self._bytes += ring.count()
        while (has_all := len(ring) >= self._most_events) or ring.bytes + size > self._most_bytes:
            if not may_forget(ring):
                return Full(ring, "history_events" if has_all else "history_bytes")
            self._bytes -= self._evict(ring)
        if self._bytes + size > self._most_total:
            self._count_all()
        while self._bytes + size > self._most_total:
            if not may_forget(largest := self._largest()):
                return Full(largest, "history_total_bytes")
            self._bytes -= self._evict(largest)
        return None

    def _evict(self, ring: Ring) -> int:
        return ring.evict()

    def _largest(self) -> Ring:
        return max(self._rings.values(), key=lambda ring: ring.bytes)

    def _count_all(self) -> None:
        for ring in self._rings.values():
            if ring.paid:
                self._bytes += ring.count()

    def answer(self, query: Query, want: Want, limit: int, look: int = PAGE_LOOK) -> Page:
        """The page that answers `want`, of what `query` matches; see `page`."""
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

        At most `limit` events, 256 KiB of rows (but at least one event), and `look` events looked
        at, so one page never takes long.
        """
        rows: list[tuple[str, str, bytes]] = []
        size = 0
        last: tuple[Ring, int] | None = None
        ends = {ring: ring.behind(upto) for ring in self._matching(query)} if upto else {}
        to = max(after, end := upto or self.newest)
        for looked, (ring, place) in enumerate(self._between(query, after, end)):
            if looked >= look:
                break
            key = ring.cells[3 * place + 1]
            if query.matches(ring.type, key) and (not upto or ring.is_last(place, key, ends[ring])):
                row = ring.cells[3 * place]
                size += len(row)
                if len(rows) >= limit or (rows and size > PAGE_BYTES):
                    break
                rows.append((ring.type, key, row))
            last = ring, place
        else:
            return Page(after, self.evicted(query), to, self.newest, rows)
        to = after if last is None else last[0].seq(last[1])
        return Page(after, self.evicted(query), to, self.newest, rows)

    def count(self, query: Query, after: int) -> int:
        """How many events above `after` are kept of the types `query` matches, whatever their keys:
        it must be quick, since a closing bus asks for each subscription that is behind.
        """
        rings = self._matching(query)
        return sum(ring.end - ring.behind(after) for ring in rings)

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
        kept: list[list[float]] = []
        for ring in self._matching(query):
            first = ring.behind(evicted)
            missing = max(missing, ring.evicted_time, *ring.timestamps(ring.start, first))
            kept.append(ring.timestamps(first, ring.end))
            late = (place for place, time in enumerate(kept[-1], first) if time >= timestamp)
            begin = min(begin, *(ring.seq(place) - 1 for place in islice(late, 1)), begin)
        if missing < timestamp:
            return begin, timestamp
        after = math.nextafter(missing, math.inf)
        later = (time for times in kept for time in times if time > missing)
        return begin, float(min(later, default=after))  # a timestamp may be an int

    def _matching(self, query: Query) -> list[Ring]:
        return [ring for ring in self._rings.values() if query.matches_type(ring.type)]

    def _between(self, query: Query, after: int, upto: int) -> Iterator[tuple[Ring, int]]:
        """(ring, place) of the kept events in `(after, upto]` that `query` may match, in order of
        seq: those of its types, and where it names its keys, of no others.
        """
        walks: list[tuple[Ring, Iterable[int]]] = []
        for ring in self._matching(query):
            if query.keys and not query.prefixes and ring.type not in query.reserved:
                walks += [(ring, ring.of_key(key, after, upto)) for key in query.keys]
            else:
                walks.append((ring, ring.between(after, upto)))
        if len(walks) == 1:
            ring, places = walks[0]
            return ((ring, place) for place in places)
        # No two events have the same seq, so rings are never compared.
        return ((ring, place) for _, ring, place in merge(*(_walk(*walk) for walk in walks)))

    @property
    def bytes(self) -> int:
        """How much is kept."""
        self._count_all()
        return self._bytes


def _walk(ring: Ring, places: Iterable[int]) -> Iterator[tuple[int, Ring, int]]:
    cells = ring.cells
    for place in places:
        yield seq_of(cells[3 * place]), ring, place
