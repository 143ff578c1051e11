"""What is kept, what is forgotten, and the pages in which it is read."""

import dataclasses
import gc
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiobus import Event, EventType, Limits
from aiobus.codec import seq_of
from aiobus.history import (
    AHEAD,
    EVICT_PART,
    LARGE,
    PAGE_BYTES,
    PAGE_LOOK,
    ROW_OVERHEAD,
    History,
    Page,
    Ring,
    Want,
)
from aiobus.publisher import Publisher
from aiobus.query import Query

ALL = Query.of("*")


def keep(
    history: History, seq: int, type: str, key: str = "", size: int = 0, time: float | None = None
) -> None:
    """Keep an event as the publisher does, made `seq` seconds after the beginning."""
    ring, row = history.ring(type), row_of(seq, size)
    assert ring is not None
    history.newest = seq
    ring.cells += (row, key, float(seq) if time is None else time)
    if len(row) > LARGE:
        ring.settle_at -= 3 * (len(row) // LARGE)
    if len(ring.cells) > ring.settle_at:
        history.settle(ring)


def row_of(seq: int, size: int = 0) -> bytes:
    """A row of `size` bytes that says its seq, if there is room for that."""
    return (b"[%d," % seq).ljust(size, b".")


def seqs(rows: list[tuple[str, str, bytes]]) -> list[int]:
    return [seq_of(row) for _, _, row in rows]


def history_of(*types: str, **limits: int) -> History:
    history = History(Limits(**limits))
    for seq, type in enumerate(types, 1):
        keep(history, seq, type)
    return history


def walk(
    history: History, query: Query, after: int, limit: int, look: int = PAGE_LOOK
) -> list[Page]:
    """The pages from `after` to the newest."""
    pages = [history.page(query, after, limit, look)]
    while pages[-1].to < pages[-1].newest:
        pages.append(history.page(query, pages[-1].to, limit, look))
    return pages


# The plainest history there can be, and any sequence of events for both.


@dataclass
class Plain:
    """Every event ever kept, in deques per type that obey the limits."""

    limits: Limits
    rings: dict[str, deque[tuple[int, str, bytes]]] = field(default_factory=dict)
    evicted: dict[str, int] = field(default_factory=dict)

    def keep(self, seq: int, type: str, key: str, row: bytes) -> None:
        ring = self.rings.setdefault(type, deque())
        ring.append((seq, key, row))
        while len(ring) > self.limits.history_events or size(ring) > self.limits.history_bytes:
            self.evicted[type] = ring.popleft()[0]
        while sum(map(size, self.rings.values())) > self.limits.history_total_bytes:
            largest = max(self.rings, key=lambda type: size(self.rings[type]))
            self.evicted[largest] = self.rings[largest].popleft()[0]

    def kept(self, query: Query, after: int = 0) -> list[int]:
        return sorted(
            seq
            for type, ring in self.rings.items()
            for seq, key, _ in ring
            if query.matches(type, key) and seq > after
        )


def size(ring: deque[tuple[int, str, bytes]]) -> int:
    return sum(len(row) + ROW_OVERHEAD for _, _, row in ring)


TYPES = ["A", "B", "C", "aiobus.gap"]
KEYS = ["x", "y"]
kept_events = st.lists(
    st.tuples(st.sampled_from(TYPES), st.sampled_from(KEYS), st.integers(0, 150)), max_size=40
)
small_limits = st.builds(
    Limits,
    history_events=st.integers(1, 6),
    history_bytes=st.integers(1, 600),
    history_total_bytes=st.integers(1, 900),
)
queries = st.builds(
    Query.of,
    st.lists(st.sampled_from([*TYPES, "*"]), min_size=1, max_size=3),
    st.none() | st.sampled_from(KEYS),
)


def both(limits: Limits, events: list[tuple[str, str, int]]) -> tuple[History, Plain]:
    history, plain = History(limits), Plain(limits)
    for seq, (type, key, length) in enumerate(events, 1):
        keep(history, seq, type, key, length)
        plain.keep(seq, type, key, row_of(seq, length))
    return history, plain


# Bounds.


def held(history: History, type: str) -> list[bytes]:
    """The rows of a type that are in memory, whatever was counted of them so far."""
    ring = history.ring(type)
    assert ring is not None
    return ring.cells[3 * ring.start :: 3]


any_limits = small_limits | st.builds(
    Limits,
    history_events=st.integers(1, 300),
    history_bytes=st.integers(1, 200_000),
    history_total_bytes=st.integers(1, 400_000),
)
bursts = st.lists(
    st.tuples(
        st.sampled_from(TYPES),
        st.sampled_from([1, 7, 100]),
        st.sampled_from([0, 100, LARGE, LARGE + 1, 20 * LARGE]),
    ),
    max_size=12,
)


@given(any_limits, bursts)
def test_no_bound_is_ever_passed_and_nothing_forgotten_for_less(
    limits: Limits, events: list[tuple[str, int, int]]
) -> None:
    history, plain, seq = History(limits), Plain(limits), 0
    for type, count, length in events:
        for _ in range(count):
            seq += 1
            keep(history, seq, type, size=length)
            plain.keep(seq, type, "", row_of(seq, length))
            for name, ring in plain.rings.items():
                assert held(history, name) == [row for _, _, row in ring]
    assert history.bytes == sum(map(size, plain.rings.values()))
    assert len(history) == sum(map(len, plain.rings.values()))


def test_sizes_are_not_counted_one_by_one_while_there_is_space() -> None:
    history = history_of("A")
    ring = history.ring("A")
    assert ring is not None
    for seq in range(2, 2 + AHEAD):
        keep(history, seq, "A")
        assert ring.counted == 1
    keep(history, 2 + AHEAD, "A")
    assert ring.counted == 2 + AHEAD


def test_a_large_event_is_paid_for_with_the_places_of_several() -> None:
    history = history_of("A")
    ring = history.ring("A")
    assert ring is not None
    for seq in range(2, 2 + AHEAD // 11):
        keep(history, seq, "A", size=10 * LARGE)
        assert ring.counted == 1
    keep(history, 2 + AHEAD // 11, "A", size=10 * LARGE)
    assert ring.counted == 2 + AHEAD // 11


def test_nothing_is_forgotten_for_what_was_only_paid_in_advance() -> None:
    history = History(Limits(history_total_bytes=200_000))
    keep(history, 1, "B", size=1000)
    ring = history.ring("B")
    assert ring is not None
    assert ring.paid > 1000
    for seq in range(2, 20):
        keep(history, seq, "A", size=10_000)
    keep(history, 20, "A", size=200_000 - 1000 - 18 * 10_000 - 20 * ROW_OVERHEAD)
    assert (len(history), history.bytes) == (20, 200_000)


def test_an_event_larger_than_its_bound_is_forgotten_at_once_and_said_to_be() -> None:
    history = History(Limits(history_bytes=100))
    keep(history, 1, "A", size=200)
    assert (len(history), history.bytes, history.newest) == (0, 0, 1)
    assert history.page(ALL, 0, 10) == Page(after=0, evicted=1, to=1, newest=1, rows=[])


def test_a_flood_of_one_type_evicts_no_other() -> None:
    history = history_of("FILL", "FILL", *["QUOTE"] * 5000, history_events=100)
    assert seqs(history.page(Query.of("FILL"), 0, 10).rows) == [1, 2]
    assert history.evicted(Query.of("FILL")) == 0


def test_a_flood_that_fills_the_total_evicts_itself_and_no_smaller_type() -> None:
    history = history_of("FILL", "FILL", *["QUOTE"] * 5000, history_total_bytes=10_000)
    assert seqs(history.page(Query.of("FILL"), 0, 10).rows) == [1, 2]
    assert history.evicted(Query.of("QUOTE")) > 4000


def test_over_the_total_the_type_that_holds_most_gives_way_first() -> None:
    history = History(Limits(history_total_bytes=900))
    keep(history, 1, "A", size=250 - ROW_OVERHEAD)
    keep(history, 2, "B", size=100 - ROW_OVERHEAD)
    keep(history, 3, "C", size=200 - ROW_OVERHEAD)
    keep(history, 4, "C", size=200 - ROW_OVERHEAD)
    assert seqs(history.page(ALL, 0, 10).rows) == [1, 2, 3, 4]
    keep(history, 5, "B", size=200 - ROW_OVERHEAD)
    assert seqs(history.page(ALL, 0, 10).rows) == [1, 2, 4, 5]


@pytest.mark.parametrize("limit", [EVICT_PART, 2 * EVICT_PART, 4 * EVICT_PART + 7])
def test_a_large_ring_forgets_its_oldest_512th_at_once_and_knows_which(limit: int) -> None:
    history = history_of(history_events=limit)
    for seq in range(1, 3 * limit):
        keep(history, seq, "T")
        evicted = history.evicted(ALL)
        assert seq - limit <= evicted <= max(0, seq - limit + limit // EVICT_PART)
        assert len(history) == seq - evicted
    kept = [seq for page in walk(history, ALL, 0, 100) for seq in seqs(page.rows)]
    assert kept == list(range(evicted + 1, 3 * limit))
    assert history.bytes == sum(len(row_of(seq)) + ROW_OVERHEAD for seq in kept)


def test_room_is_made_for_a_row_to_the_byte_and_only_by_what_may_be_forgotten() -> None:
    row = 100 + ROW_OVERHEAD
    history = History(Limits(history_bytes=3 * row, history_total_bytes=4 * row))
    for seq in (1, 2, 3):
        keep(history, seq, "A", size=100)
    keep(history, 4, "B", size=100)
    asked: list[tuple[str, int]] = []

    def may_forget(ring: Ring) -> bool:
        asked.append((ring.type, ring.doomed))
        return ring.doomed < 2

    a, b = history.ring("A"), history.ring("B")
    assert a is not None
    assert b is not None
    assert history.make_room(b, 100, may_forget) is None  # in all, by the type that holds most
    assert asked == [("A", 1)]
    assert history.make_room(b, 100, may_forget) is None
    assert history.make_room(a, 101, may_forget) == (a, "history_bytes")
    assert asked == [("A", 1), ("A", 2)]
    assert (history.evicted(Query.of("A")), len(history)) == (1, 3)


def test_in_a_paced_history_an_event_of_the_bus_itself_forgets_no_other() -> None:
    row = 100 + ROW_OVERHEAD
    history = History(Limits(history_total_bytes=3 * row))
    history.is_paced = True
    for seq in (1, 2):
        keep(history, seq, "A", size=100)
    for seq in (3, 4, 5):
        keep(history, seq, "aiobus.gap", size=100)
    assert history.evicted(Query.of("A")) == 0
    assert history.evicted(Query.of("aiobus.gap")) == 4


def test_there_is_no_ring_for_one_type_too_many() -> None:
    history = History(Limits(types=2))
    first, second = history.ring("A"), history.ring("B")
    assert history.ring("C") is None
    assert (history.ring("A"), history.ring("B")) == (first, second)


def test_reserved_types_are_not_counted_so_that_the_bus_can_always_speak() -> None:
    history = History(Limits(types=1))
    assert history.ring("aiobus.gap") is not None
    assert history.ring("A") is not None
    assert history.ring("aiobus.error") is not None
    assert history.ring("B") is None


def test_nothing_in_a_ring_is_tracked_by_the_garbage_collector() -> None:
    publisher = Publisher("desk", Limits())
    event = Event(EventType.TRADE, {"legs": [1.5]}, key=EventType.FILL)
    publisher.publish(event)
    ring = publisher.history.ring("TRADE")
    assert ring is not None
    assert [gc.is_tracked(cell) for cell in ring.cells] == [False] * 3


# Pages.


looks = st.integers(1, 8) | st.just(PAGE_LOOK)


@given(small_limits, kept_events, queries, st.integers(0, 40), st.integers(1, 8), looks)
def test_walking_the_pages_gives_every_kept_matching_event_once_in_order(
    limits: Limits,
    events: list[tuple[str, str, int]],
    query: Query,
    after: int,
    limit: int,
    look: int,
) -> None:
    history, plain = both(limits, events)
    after = min(after, len(events))
    pages = walk(history, query, after, limit, look)
    assert [seq for page in pages for seq in seqs(page.rows)] == plain.kept(query, after)
    assert pages[-1].to == history.newest


@given(small_limits, kept_events, queries, st.integers(0, 40), st.integers(1, 8))
def test_a_page_holds_all_that_matches_between_after_and_to(
    limits: Limits, events: list[tuple[str, str, int]], query: Query, after: int, limit: int
) -> None:
    history, plain = both(limits, events)
    after = min(after, len(events))
    page = history.page(query, after, limit)
    assert seqs(page.rows) == [seq for seq in plain.kept(query, after) if seq <= page.to]
    assert len(page.rows) <= limit
    assert after <= page.to <= page.newest == len(events)


@given(small_limits, kept_events, queries)
def test_a_page_says_exactly_how_far_the_forgotten_reach(
    limits: Limits, events: list[tuple[str, str, int]], query: Query
) -> None:
    history, plain = both(limits, events)
    gone = [seq for type, seq in plain.evicted.items() if query.matches_type(type)]
    assert history.evicted(query) == max(gone, default=0)
    assert history.page(query, 0, 1).evicted == max(gone, default=0)


def test_a_page_holds_64_kib_of_rows() -> None:
    history = History(Limits())
    for seq in range(1, 10):
        keep(history, seq, "A", size=PAGE_BYTES // 4)
    page = history.page(ALL, 0, 100)
    assert (seqs(page.rows), page.to) == ([1, 2, 3, 4], 4)


def test_a_page_holds_an_event_even_if_that_alone_is_larger() -> None:
    history = History(Limits())
    keep(history, 1, "A", size=PAGE_BYTES + 1)
    keep(history, 2, "A")
    page = history.page(ALL, 0, 100)
    assert (seqs(page.rows), page.to) == ([1], 1)


def test_a_page_looks_at_no_more_than_4096_events() -> None:
    history = history_of(*["A"] * (PAGE_LOOK + 10))
    query = Query.of("A", key="nobody*")
    first = history.page(query, 0, 10)
    assert (first.rows, first.to) == ([], PAGE_LOOK)
    assert history.page(query, first.to, 10).to == PAGE_LOOK + 10


def test_a_page_looks_at_no_more_events_than_it_is_told_to() -> None:
    history = History(Limits())
    for seq, key in enumerate("xxyx", 1):
        keep(history, seq, "A", key)
    page = history.page(Query.of("A", "y*"), 0, 10, look=2)
    assert (page.rows, page.to) == ([], 2)
    page = history.page(Query.of("A", "y*"), 2, 10, look=2)
    assert (seqs(page.rows), page.to) == ([3], 4)


# How many are left.


@given(small_limits, kept_events, queries, st.integers(0, 40))
def test_the_count_is_that_of_the_kept_events_of_its_types_above_a_place(
    limits: Limits, events: list[tuple[str, str, int]], query: Query, after: int
) -> None:
    history, plain = both(limits, events)
    after = min(after, len(events))
    any_key = dataclasses.replace(query, keys=frozenset(), prefixes=())
    assert history.count(query, after) == len(plain.kept(any_key, after))


def test_the_count_goes_on_where_a_page_would_end() -> None:
    assert history_of(*["A"] * (PAGE_LOOK + 10)).count(ALL, 0) == PAGE_LOOK + 10


# Since a time, and the last of each.


@given(small_limits, kept_events, queries, st.integers(0, 41))
def test_since_a_time_begins_where_nothing_newer_is_left_out_or_missing(
    limits: Limits, events: list[tuple[str, str, int]], query: Query, timestamp: int
) -> None:
    history, plain = both(limits, events)
    begin, reached = history.since(query, float(timestamp))
    delivered = plain.kept(query, begin)
    promised = [
        seq
        for seq, (type, key, _) in enumerate(events, 1)
        if query.matches(type, key) and seq >= timestamp and seq >= reached
    ]
    assert set(promised) <= set(delivered)
    assert begin >= history.evicted(query) or not delivered
    assert reached >= timestamp


@given(small_limits, kept_events, queries, st.integers(0, 41))
@example(Limits(), [("A", "x", 0)] * 3, ALL, 2)
def test_since_a_time_begins_no_earlier_than_it_must(
    limits: Limits, events: list[tuple[str, str, int]], query: Query, timestamp: int
) -> None:
    history, _ = both(limits, events)
    begin, _ = history.since(query, float(timestamp))
    assert begin >= min(timestamp - 1, history.newest)


@pytest.mark.parametrize("timestamp", [1.5, 2.0, 3.0])
def test_since_a_time_within_history_begins_with_the_first_event_not_before_it(
    timestamp: float,
) -> None:
    history = history_of("A", "B", "A", "B", "A")
    assert history.since(Query.of("A"), timestamp) == (2, timestamp)


# The newest of each type and key.


@given(small_limits, kept_events, queries, st.integers(1, 3), st.integers(1, 40))
def test_the_last_are_the_newest_kept_of_each_type_and_key_in_order_however_the_pages_fall(
    limits: Limits, events: list[tuple[str, str, int]], query: Query, limit: int, look: int
) -> None:
    history, plain = both(limits, events)
    newest: dict[Any, int] = {}
    for seq in plain.kept(query):
        newest[events[seq - 1][:2]] = seq
    pages = [history.answer(query, Want(0, "last"), limit, look)]
    upto = pages[0].newest
    while pages[-1].to < upto:
        pages.append(history.answer(query, Want(pages[-1].to, upto=upto), limit, look))
    assert [seq for page in pages for seq in seqs(page.rows)] == sorted(newest.values())
    assert pages[0].after == 0


def test_what_comes_while_the_last_are_read_neither_adds_to_them_nor_takes_from_them() -> None:
    history = History(Limits())
    for seq, key in enumerate("xyz", 1):
        keep(history, seq, "A", key)
    first = history.answer(ALL, Want(0, "last"), 1)
    for seq, key in enumerate("yx", 4):
        keep(history, seq, "A", key)
    rest = history.answer(ALL, Want(first.to, upto=first.newest), 10)
    assert seqs([*first.rows, *rest.rows]) == [1, 2, 3]
    assert (rest.to, rest.newest) == (3, 5)


def test_since_a_time_the_first_page_tells_how_far_history_reached() -> None:
    history = history_of("A", "A", "A", history_events=2)
    page = history.answer(ALL, Want(0, 0.0), 10)
    assert (page.after, page.reached, seqs(page.rows)) == (1, 2.0, [2, 3])
    assert history.answer(ALL, Want(0, 3.0), 10).reached == 3.0


@given(
    small_limits,
    st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 9)), max_size=40),
    queries,
    st.integers(0, 10),
)
def test_from_reached_on_nothing_is_missing_though_timestamps_do_not_rise(
    limits: Limits, events: list[tuple[str, int]], query: Query, asked: int
) -> None:
    history = History(limits)
    for seq, (type, time) in enumerate(events, 1):
        keep(history, seq, type, "x", time=float(time))
    begin, reached = history.since(query, float(asked))
    delivered = set(seqs(history.page(query, begin, 1000).rows))
    published = [
        (seq, time) for seq, (type, time) in enumerate(events, 1) if query.matches(type, "x")
    ]
    assert {seq for seq, time in published if time >= reached} <= delivered
    assert reached >= asked
    missing = [time for seq, time in published if seq not in delivered and time >= asked]
    assert missing or query.keys or query.prefixes or reached == asked, "later than it must be"


def test_reached_is_a_float_though_timestamps_may_be_whole_numbers() -> None:
    history = History(Limits(history_events=2))
    for seq in (1, 2, 3):
        keep(history, seq, "A", time=seq)
    reached = history.since(ALL, 0.0)[1]
    assert (reached, type(reached)) == (2.0, float)


# Where the events of a key lie.


@given(small_limits, kept_events, st.sets(st.sampled_from(["x", "y", ""]), min_size=1))
def test_what_names_its_keys_gets_what_a_look_at_every_event_would_find(
    limits: Limits, events: list[tuple[str, str, int]], keys: set[str]
) -> None:
    """Asked after each event, so that what is known of keys is taken up and thrown away again."""
    history, query = History(limits), Query.of("*", keys)
    for seq, (type, key, size) in enumerate(events, 1):
        keep(history, seq, type, key, size)
        everything = history.page(ALL, 0, 1000).rows
        expected = [row for row in everything if row[1] in keys]
        assert history.page(query, 0, 1000).rows == expected


def test_who_names_a_key_is_led_past_any_number_of_events_with_others() -> None:
    history = History(Limits())
    for seq in range(1, PAGE_LOOK + 10):
        keep(history, seq, "A", "x")
    keep(history, PAGE_LOOK + 10, "A", "y")
    page = history.page(Query.of("A", "y"), 0, 10, look=1)
    assert (seqs(page.rows), page.to) == ([PAGE_LOOK + 10], PAGE_LOOK + 10)


def test_what_is_forgotten_leaves_neither_its_row_nor_its_key_in_memory() -> None:
    history = History(Limits(history_events=2))
    for seq in range(1, 5):
        keep(history, seq, "A", f"key-{seq}")
    ring = history.ring("A")
    assert ring is not None
    assert not [cell for cell in ring.cells if cell in ("key-1", "key-2")]
    assert list(ring.cells[3 * ring.start + 1 :: 3]) == ["key-3", "key-4"]
