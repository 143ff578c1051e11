"""The four policies of a bounded inbox, against a plain list that obeys the same rules."""

from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiobus import Event
from aiobus.inbox import (
    BATCH,
    DroppingInbox,
    FifoInbox,
    Inbox,
    Item,
    Overflow,
    PutResult,
    make_inbox,
)
from aiobus.rows import OPENED, SEPARATOR, LazyBatch, Rows

POLICIES: list[Any] = [*get_args(Overflow)]
SEVERAL_AT_ONCE: list[Any] = ["catch_up", "block"]
ONE_AT_A_TIME: list[Any] = ["latest", "drop_oldest"]
PLENTY = 1 << 20


def make(policy: Overflow, maxsize: int, errors: list[LazyBatch] | None = None) -> Inbox:
    """An inbox that writes down which of its batches prove to be wrong."""
    return make_inbox(policy, maxsize, [].append if errors is None else errors.append)


def notice(seq: int = 0) -> Event[Any]:
    """A gap, or with a number a restart."""
    event = Event[Any]("aiobus.peer_restarted" if seq else "aiobus.gap", {})
    event.seq = seq
    return event


def is_notice(item: object) -> bool:
    return isinstance(item, Event) and item.type.startswith("aiobus.")


def filled(policy: Any, maxsize: int, *items: Item) -> Inbox:
    """An inbox with these rows, each with a key of its own, and notices."""
    inbox = make(policy, maxsize)
    for item in items:
        if isinstance(item, Event):
            inbox.admit(item, item.type, item.key)
        else:
            inbox.offer(item, "T", item.decode())
    return inbox


def emptied(inbox: Inbox, max_bytes: int = PLENTY) -> list[Item]:
    """All that is in it, in the order in which it comes out."""
    items = []
    while taken := inbox.take(max_bytes):
        items += taken
    return items


# Any policy.


@pytest.mark.parametrize("policy", POLICIES)
def test_what_went_in_comes_out_in_order(policy: Overflow) -> None:
    assert emptied(filled(policy, 10, b"1", b"2", b"3", b"4")) == [b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cleared_inbox_is_empty_and_usable(policy: Overflow) -> None:
    inbox = filled(policy, 2, b"1", notice())
    inbox.clear()
    assert len(inbox) == 0
    assert inbox.offer(b"3", "T", "3") is PutResult.TAKEN
    assert emptied(inbox) == [b"3"]


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        ("catch_up", FifoInbox),
        ("block", FifoInbox),
        ("drop_oldest", DroppingInbox),
        ("latest", DroppingInbox),
    ],
)
def test_each_policy_has_its_inbox(policy: Overflow, kind: type) -> None:
    assert isinstance(make(policy, 1), kind)


def test_a_full_drop_oldest_inbox_throws_the_oldest_away() -> None:
    inbox = filled("drop_oldest", 2, b"1", b"2")
    assert inbox.offer(b"3", "T", "") is PutResult.DROPPED
    assert emptied(inbox) == [b"2", b"3"]


def test_latest_with_more_keys_than_room_throws_away_the_one_first_in_line() -> None:
    inbox = filled("latest", 2, b"1", b"2")
    inbox.offer(b"newer", "T", "1")
    assert inbox.offer(b"3", "T", "3") is PutResult.DROPPED
    assert emptied(inbox) == [b"2", b"3"]


# A full inbox.


# What came together from another process.


def batch_of(*seqs: int, wrong: bool = False) -> LazyBatch:
    """Events of another bus with these numbers; `wrong`: and behind them one that is none."""
    parts = [b'[%d,1.5,"T","",%d]' % (seq, seq) for seq in seqs]
    if wrong:
        parts.append(b"[what is no event at all]")
    text, newest = SEPARATOR.join(parts), seqs[-1] + wrong
    span = seqs[0] - 1, newest
    return LazyBatch(Rows(text, 0, len(text), ("desk", 7), span, len(parts), is_frame=True))


def opened(inbox: Inbox) -> list[int]:
    """What of the batch that comes first is opened next."""
    return [event.seq for event in inbox.take(0)]


def fifo(policy: Overflow, maxsize: int, errors: list[LazyBatch] | None = None) -> FifoInbox:
    inbox = make(policy, maxsize, errors)
    assert isinstance(inbox, FifoInbox)
    return inbox


@pytest.mark.parametrize("policy", SEVERAL_AT_ONCE)
def test_a_batch_counts_as_its_events_and_comes_with_nothing_else(policy: Overflow) -> None:
    inbox, gap = fifo(policy, 10), notice()
    inbox.offer(b"1", "T", "")
    inbox.put_batch(batch_of(1, 2, 3))
    inbox.put_batch(batch_of(4, 5))
    inbox.admit(gap, gap.type, "")
    inbox.offer(b"2", "T", "")
    assert len(inbox) == 8
    assert (inbox.take(PLENTY), len(inbox)) == ([b"1"], 7)
    assert (opened(inbox), len(inbox)) == ([1, 2, 3], 4)
    assert (opened(inbox), len(inbox)) == ([4, 5], 2)
    assert (inbox.take(PLENTY), len(inbox)) == ([gap], 1)
    assert (inbox.take(PLENTY), len(inbox)) == ([b"2"], 0)


@pytest.mark.parametrize("count", [1, OPENED - 1, OPENED, OPENED + 1, 3 * OPENED, 3 * OPENED + 5])
def test_a_batch_that_is_opened_a_few_at_once_counts_as_what_is_left_of_it(count: int) -> None:
    inbox = fifo("catch_up", count)
    inbox.put_batch(batch_of(*range(1, count + 1)))
    seqs: list[int] = []
    while len(inbox):
        some = opened(inbox)
        assert 0 < len(some) <= OPENED
        seqs += some
        assert len(inbox) == count - len(seqs)
    assert seqs == [*range(1, count + 1)]
    inbox.offer(b"1", "T", "")
    assert len(inbox) == 1
    assert inbox.take(PLENTY) == [b"1"]


@pytest.mark.parametrize("count", [1, OPENED - 1, OPENED, 2 * OPENED + 5])
def test_a_batch_that_proves_to_be_wrong_counts_as_nothing_any_more(count: int) -> None:
    errors: list[LazyBatch] = []
    inbox, batch = fifo("catch_up", 1_000, errors), batch_of(*range(1, count + 1), wrong=True)
    inbox.put_batch(batch)
    inbox.offer(b"1", "T", "")
    assert len(inbox) == count + 2
    seqs: list[int] = []
    while not errors:
        seqs += opened(inbox)
    assert (seqs, errors) == ([*range(1, count + 1)], [batch])
    assert (len(inbox), inbox.take(PLENTY), len(inbox)) == (1, [b"1"], 0)


def test_a_cleared_inbox_forgets_how_much_was_in_its_batches() -> None:
    inbox = fifo("catch_up", 3)
    inbox.put_batch(batch_of(1, 2, 3))
    inbox.clear()
    assert (len(inbox), opened(inbox)) == (0, [])
    assert filled("catch_up", 3, b"1").take(PLENTY) == [b"1"]


# The latest of each.


def test_latest_does_not_mix_up_where_the_type_ends_and_the_key_begins() -> None:
    inbox = make("latest", 8)
    inbox.offer(b"1", "A", "BC")
    assert inbox.offer(b"2", "AB", "C") is PutResult.TAKEN


def test_latest_conflates_even_when_it_is_full() -> None:
    inbox = filled("latest", 2, b"1", b"2")
    assert inbox.offer(b"newer", "T", "2") is PutResult.CONFLATED
    assert emptied(inbox) == [b"1", b"newer"]


@pytest.mark.parametrize("policy", ONE_AT_A_TIME)
def test_what_is_dropped_is_the_oldest_row_and_not_the_notice_before_it(policy: Overflow) -> None:
    gap = notice()
    inbox = filled(policy, 3, gap, b"1", b"2")
    assert inbox.offer(b"3", "T", "3") is PutResult.DROPPED
    assert emptied(inbox) == [gap, b"2", b"3"]


@pytest.mark.parametrize("policy", ONE_AT_A_TIME)
def test_where_only_notices_wait_nothing_is_dropped(policy: Overflow) -> None:
    gaps = [notice(), notice()]
    inbox = filled(policy, 2, *gaps)
    assert inbox.offer(b"1", "T", "1") is PutResult.TAKEN
    assert emptied(inbox) == [*gaps, b"1"]


# Notices.


def tell(inbox: Inbox, seq: int) -> PutResult:
    """A system event with this number is published."""
    return inbox.offer(notice(seq), "aiobus.peer_restarted", "")


@pytest.mark.parametrize("policy", POLICIES)
def test_notices_of_one_type_are_all_handed_over(policy: Overflow) -> None:
    inbox = make(policy, 8)
    assert [tell(inbox, 1), tell(inbox, 2)] == [PutResult.TAKEN] * 2
    assert emptied(inbox) == [notice(1), notice(2)]


def test_latest_takes_an_older_events_place_only_behind_the_newest_notice() -> None:
    inbox = filled("latest", 8, b"a", b"b", notice(1), b"c", b"d")
    assert inbox.offer(b"newer a", "T", "a") is PutResult.CONFLATED
    assert inbox.offer(b"newest a", "T", "a") is PutResult.CONFLATED
    assert inbox.offer(b"newer c", "T", "c") is PutResult.CONFLATED
    assert emptied(inbox) == [b"b", notice(1), b"newer c", b"d", b"newest a"]


def test_latest_takes_an_older_events_place_again_once_no_notice_waits() -> None:
    inbox = filled("latest", 8, notice(1), b"a", b"b")
    inbox.take(PLENTY)
    assert inbox.offer(b"newer a", "T", "a") is PutResult.CONFLATED
    assert emptied(inbox) == [b"newer a", b"b"]


@pytest.mark.parametrize("policy", ONE_AT_A_TIME)
def test_data_gives_way_to_notices(policy: Overflow) -> None:
    inbox = filled(policy, 2, b"1", notice(1))
    assert tell(inbox, 2) is PutResult.DROPPED
    assert inbox.offer(b"2", "T", "2") is PutResult.TAKEN
    assert inbox.offer(b"3", "T", "3") is PutResult.DROPPED
    assert emptied(inbox) == [notice(1), notice(2), b"3"]


@pytest.mark.parametrize("policy", ONE_AT_A_TIME)
def test_of_notices_alone_the_oldest_gives_way_but_no_gap(policy: Overflow) -> None:
    gap = notice()
    inbox = filled(policy, 2, gap, notice(1), notice(2), notice(3))
    assert tell(inbox, 4) is PutResult.DROPPED
    assert inbox.offer(b"1", "T", "1") is PutResult.DROPPED
    assert emptied(inbox) == [gap, notice(3), notice(4), b"1"]


# How much is taken at once.


@pytest.mark.parametrize("policy", SEVERAL_AT_ONCE)
def test_64_are_taken_at_once_where_nothing_that_waits_can_change(policy: Overflow) -> None:
    inbox = filled(policy, 200, *[b"1"] * 150)
    assert [len(inbox.take(PLENTY)) for _ in range(4)] == [64, 64, 22, 0]


@pytest.mark.parametrize("policy", ONE_AT_A_TIME)
def test_one_is_taken_at_once_where_what_waits_may_yet_go(policy: Overflow) -> None:
    inbox = filled(policy, 8, b"1", notice(), b"2")
    assert [len(inbox.take(PLENTY)) for _ in range(4)] == [1, 1, 1, 0]


@pytest.mark.parametrize("policy", SEVERAL_AT_ONCE)
def test_rows_that_are_exactly_as_much_as_may_be_taken_come_together(policy: Overflow) -> None:
    inbox = filled(policy, 8, b"12", b"34", b"5")
    assert [inbox.take(4), inbox.take(4)] == [[b"12", b"34"], [b"5"]]


def due(items: list[Item], policy: Overflow, max_bytes: int) -> list[Item]:
    """What ought to be taken of `items`: the first, and more of its kind as long as they fit."""
    taken = items[:1]
    for item in items[1 : BATCH if policy in SEVERAL_AT_ONCE else 1]:
        if type(item) is not type(items[0]):
            break
        if isinstance(item, bytes) and sum(map(len, [*taken, item])) > max_bytes:
            break
        taken.append(item)
    return taken


@given(
    st.sampled_from(POLICIES),
    st.lists(st.none() | st.integers(0, 30), max_size=200),
    st.integers(0, 2000),
)
@example("catch_up", [1] * 150, PLENTY)
@example("block", [None] * 150, 0)
@example("catch_up", [0, 0, 3, 3], 2)
def test_as_much_is_taken_as_fits_and_at_least_one(
    policy: Overflow, sizes: list[int | None], max_bytes: int
) -> None:
    items: list[Item] = [
        notice() if size is None else b"." * size if size else Event("T", "decoded")
        for size in sizes
    ]
    inbox = make(policy, 200)
    for number, item in enumerate(items):
        if is_notice(item):
            inbox.admit(item, "aiobus.gap", "")
        else:
            inbox.offer(item, "T", str(number))
    while items:
        taken = inbox.take(max_bytes)
        assert taken == due(items, policy, max_bytes)
        items = items[len(taken) :]
    assert (len(inbox), inbox.take(max_bytes)) == (0, [])


# The model.

types, keys, sizes = st.sampled_from("AB"), st.sampled_from("xyz"), st.integers(0, 12)


class InboxIsAList(RuleBasedStateMachine):
    """Any inbox beside a list of (name, item); `line` is what ought to be in it. The name of a row
    is its (type, key), a notice has none.
    """

    @initialize(policy=st.sampled_from(POLICIES), maxsize=st.integers(1, 4))
    def make(self, policy: Any, maxsize: int) -> None:
        self.policy, self.maxsize = policy, maxsize
        self.inbox = make(policy, maxsize)
        self.line: list[tuple[tuple[str, str] | None, Item]] = []
        self.count = self.extra = self.seq = 0

    def row(self, size: int) -> bytes:
        self.count += 1
        return f"{self.count} ".encode().ljust(size, b".")

    def put(self, item: Item, name: tuple[str, str] | None, *, is_asked: bool) -> PutResult:
        """Put an item into the list, by its name, as the inbox ought to."""
        names = [name for name, _ in self.line]
        if self.policy == "latest" and name is not None and name in names:
            place = names.index(name)
            if None in names[place:]:
                del self.line[place]
                self.line.append((name, item))
            else:
                self.line[place] = (name, item)
            return PutResult.CONFLATED
        outcome = PutResult.TAKEN
        if self.length >= self.maxsize and not is_asked:
            if self.policy == "catch_up":
                return PutResult.REFUSED
            if self.policy != "block" and (oldest := self.oldest()):
                self.line.remove(oldest)
                outcome = PutResult.DROPPED
        self.extra += self.length >= self.maxsize and is_asked
        self.line.append((name, item))
        return outcome

    def oldest(self) -> tuple[tuple[str, str] | None, Item] | None:
        """What gives way in a full inbox."""
        told = [each for each in self.line if isinstance(each[1], Event) and each[1].seq]
        data = [each for each in self.line if each[0] is not None]
        return data[0] if data else told[0] if len(told) > self.maxsize else None

    @rule(type=types, key=keys, size=sizes)
    def offer(self, type: str, key: str, size: int) -> None:
        row = self.row(size)
        assert self.inbox.offer(row, type, key) is self.put(row, (type, key), is_asked=False)

    @rule(is_asked=st.booleans())
    def tell(self, is_asked: bool) -> None:
        self.count += 1
        told = notice(self.count)
        put = self.inbox.admit if is_asked else self.inbox.offer
        assert put(told, told.type, "") is self.put(told, None, is_asked=is_asked)

    @property
    def length(self) -> int:
        """How many events and notices there ought to be."""
        return sum(item.left if isinstance(item, LazyBatch) else 1 for _, item in self.line)

    @precondition(lambda self: isinstance(self.inbox, FifoInbox))
    @rule(count=st.integers(1, 80), wrong=st.booleans())
    def put_batch(self, count: int, wrong: bool) -> None:
        batch = batch_of(*range(self.seq + 1, self.seq + count + 1), wrong=wrong)
        self.seq += count
        self.extra += batch.left
        self.inbox.put_batch(batch)
        self.line.append(((".", "batch"), batch))

    @property
    def is_batch_next(self) -> bool:
        return bool(self.line) and isinstance(self.line[0][1], LazyBatch)

    @precondition(lambda self: self.is_batch_next)
    @rule()
    def open(self) -> None:
        ((_, batch), *others) = self.line
        before = batch.last
        assert opened(self.inbox) == [*range(before + 1, batch.last + 1)]
        if not batch.left:
            self.line = others

    @rule(type=types, key=keys, size=sizes)
    def admit(self, type: str, key: str, size: int) -> None:
        row = self.row(size)
        assert self.inbox.admit(row, type, key) is self.put(row, (type, key), is_asked=True)

    @rule()
    def lose(self) -> None:
        gap = notice()
        self.inbox.admit(gap, gap.type, "")
        self.line.append((None, gap))

    @precondition(lambda self: not self.is_batch_next)
    @rule(max_bytes=st.integers(0, 40))
    def take(self, max_bytes: int) -> None:
        taken = self.inbox.take(max_bytes)
        assert taken == due([item for _, item in self.line], self.policy, max_bytes)
        self.line = self.line[len(taken) :]

    @rule()
    def clear(self) -> None:
        self.inbox.clear()
        self.line = []

    @invariant()
    def has_the_same_length(self) -> None:
        assert len(self.inbox) == self.length

    @invariant()
    def is_bounded_beside_what_was_admitted_and_gaps(self) -> None:
        gaps = sum(isinstance(item, Event) and not item.seq for _, item in self.line)
        bound = self.maxsize + (self.policy in ONE_AT_A_TIME) + self.extra
        assert self.policy == "block" or len(self.inbox) - gaps <= bound

    def teardown(self) -> None:
        while any(isinstance(item, LazyBatch) for _, item in self.line):
            self.open() if self.is_batch_next else self.take(PLENTY)
        assert emptied(self.inbox) == [item for _, item in self.line]


InboxIsAList.TestCase.settings = settings(stateful_step_count=25, print_blob=True)
TestAnInboxIsAListThatObeysItsPolicy = InboxIsAList.TestCase
