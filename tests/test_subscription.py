"""What one subscription does with frames and pages of other buses: when it decodes them, and how
much it asks for.
"""

import asyncio
import time
from typing import Any

import pytest

from aiobus import AsyncEventBus, Event, QueueFull
from aiobus.catchup import CatchUp
from aiobus.history import Page, Want
from aiobus.rows import OPENED, SEPARATOR, LazyBatch, Rows, Source
from aiobus.subscription import PACE, Subscription

DESK = ("desk", 7)
MANY_KEYS = ["k", *(f"{number}".ljust(100, ".") for number in range(20))]
"""More than the text of a query has room for, so that others send all keys."""


def batch_of(*seqs: int, wrong: bool = False, age: float = 0.0) -> LazyBatch:
    """Events of the type A of another bus with these numbers; `wrong`: and a row that is none."""
    at = time.time() - age
    parts = [b'[%d,%d,"A","k",%d]' % (seq, at, seq) for seq in seqs]
    if wrong:
        parts.append(b"[what is no event at all]")
    text, newest = SEPARATOR.join(parts), seqs[-1] + wrong
    span = seqs[0] - 1, newest
    return LazyBatch(Rows(text, 0, len(text), DESK, span, len(parts), is_frame=True))


class Asked:
    """A transport whose questions have no answer."""

    def __init__(self) -> None:
        self.limits: list[int] = []
        self.doubts: list[Source] = []

    def doubt(self, source: Source, error: ValueError) -> bool:
        self.doubts.append(source)
        return True

    def ask(self, catchup: object, source: object, want: object, limit: int) -> bool:
        self.limits.append(limit)
        return False


class Answering:
    """A transport by which one source, which has published `newest` events, answers in a turn of
    the loop.
    """

    def __init__(self, newest: int) -> None:
        self.newest = newest

    def ask(self, catchup: CatchUp, source: Any, want: Want, limit: int) -> bool:
        to = min(self.newest, want.after + limit)
        page = Page(want.after, 0, to, self.newest, [])
        rows = batch_of(*range(want.after + 1, to + 1)).rows
        asyncio.get_running_loop().call_soon(catchup.take_page, source, page, rows)
        return False


async def subscribed(bus: AsyncEventBus, **keywords: Any) -> Subscription:
    """One that hands nothing over while the test does not let the loop turn."""
    return await bus.subscribe("A", lambda event: None, **keywords)


def catchup_of(bus: AsyncEventBus, subscription: Subscription, pages: Any = None) -> CatchUp:
    """What catches up for `subscription`; from now on it asks `pages`, if given."""
    catchup = bus._subscriptions._open[subscription]
    if pages is not None:
        catchup._pages = pages
    return catchup


def popped(subscription: Subscription) -> list[int]:
    """The numbers of all that is handed over."""
    seqs = []
    while (event := subscription.pop()) is not None:
        seqs.append(event.seq)
    return seqs


@pytest.mark.parametrize("max_age", [None, 99.0])
@pytest.mark.parametrize("overflow", ["catch_up", "block"])
async def test_what_came_together_is_decoded_when_it_is_its_turn(
    bus: AsyncEventBus, overflow: str, max_age: float | None
) -> None:
    box = await subscribed(bus, overflow=overflow, max_age=max_age)
    first, second = batch_of(1, 2), batch_of(3)
    box.keep(first)
    box.keep(second)
    assert (box.pending, box.free_slots, first.left) == (3, box.maxsize - 3, 2)
    assert (box.pop(), first.left, second.left) == (Event("A", 1, key="k"), 0, 1)
    assert (box.pending, popped(box)) == (2, [2, 3])
    assert (box.pending, second.left) == (0, 0)


async def test_of_many_that_came_together_32_are_decoded_at_once(bus: AsyncEventBus) -> None:
    box = await subscribed(bus)
    batch = batch_of(*range(1, 101))
    box.keep(batch)
    for handed in range(1, 101):
        assert box.pop() is not None
        assert box.pending == 100 - handed
        assert batch.left == max(0, 100 - OPENED * -(-handed // OPENED))
    assert box.pop() is None


async def test_events_that_are_too_old_expire_when_they_are_popped(bus: AsyncEventBus) -> None:
    box = await subscribed(bus, max_age=1.0)
    box.keep(batch_of(*range(1, 101), age=60))
    assert (box.pending, box.stats.expired) == (100, 0)
    assert popped(box) == []
    assert (box.pending, box.stats.expired) == (0, 100)


@pytest.mark.parametrize(
    ("keywords", "seqs"),
    [
        ({"overflow": "latest"}, [3]),
        ({"overflow": "drop_oldest", "maxsize": 2}, [2, 3]),
        ({"where": lambda event: event.seq != 2}, [1, 3]),
        ({"key": MANY_KEYS}, [1, 2, 3]),
    ],
)
async def test_where_the_events_decide_they_are_looked_at_on_arrival(
    bus: AsyncEventBus, keywords: dict[str, Any], seqs: list[int]
) -> None:
    box = await subscribed(bus, **keywords)
    batch = batch_of(1, 2, 3)
    box.keep(batch)
    assert (batch.left, popped(box)) == (0, seqs)


@pytest.mark.parametrize("keywords", [{}, {"overflow": "drop_oldest"}, {"key": MANY_KEYS}])
@pytest.mark.parametrize("after", [0, 1, 2, 40])
async def test_of_what_came_together_only_what_is_above_a_seq_is_handed_over(
    bus: AsyncEventBus, keywords: dict[str, Any], after: int
) -> None:
    box = await subscribed(bus, **keywords)
    box.keep(batch_of(*range(1, 101)), after)
    assert popped(box) == list(range(after + 1, 101))


WAYS: list[dict[str, Any]] = [
    {},
    {"overflow": "block"},
    {"overflow": "drop_oldest"},
    {"where": lambda event: True},
    {"max_age": 99.0},
    {"key": MANY_KEYS},
]


@pytest.mark.parametrize("keywords", WAYS)
@pytest.mark.parametrize("good", [1, 31, 32, 33, 100])
async def test_of_what_proves_to_be_wrong_the_good_are_handed_over_and_the_source_is_asked(
    bus: AsyncEventBus, keywords: dict[str, Any], good: int
) -> None:
    box, asked = await subscribed(bus, **keywords), Asked()
    catchup = catchup_of(bus, box, asked)
    box.keep(batch_of(*range(1, good + 1), wrong=True))
    box.keep(batch_of(good + 2, good + 3))
    assert popped(box) == [*range(1, good + 1), good + 2, good + 3]
    assert asked.doubts == [DESK]
    assert box.pending == 0
    assert box.stats.gaps == 0, "its source is to say first where it is"
    catchup.note_said(DESK, good + 3)
    assert box.stats.gaps == 1


@pytest.mark.parametrize("keywords", WAYS)
async def test_what_is_wrong_from_its_first_row_holds_up_nothing_behind_it(
    bus: AsyncEventBus, keywords: dict[str, Any]
) -> None:
    box, asked = await subscribed(bus, **keywords), Asked()
    catchup_of(bus, box, asked)
    for seq in (1, 3, 5):
        text = b"[what is no event at all]"
        rows = Rows(text, 0, len(text), DESK, (seq - 1, seq), 1, is_frame=True)
        box.keep(LazyBatch(rows))
        box.keep(batch_of(seq + 1))
    assert popped(box) == [2, 4, 6]
    assert asked.doubts == [DESK] * 3


async def test_a_gap_that_is_found_when_rows_are_opened_is_told_to_who_asked_for_gaps(
    bus: AsyncEventBus,
) -> None:
    box = await bus.subscribe(["A", "aiobus.gap"], lambda event: None)
    catchup = catchup_of(bus, box, Asked())
    box.keep(batch_of(1, 2, wrong=True))
    assert [box.pop(), box.pop(), box.pop()][-1] is None
    catchup.note_said(DESK, 3)
    told = box.pop()
    assert told is not None
    assert told.type == "aiobus.gap"
    assert (told.data["after"], told.data["upto"]) == (2, 3)


@pytest.mark.parametrize(
    ("keywords", "wishes"),
    [
        ({"maxsize": 1024}, [True, True, False]),
        ({"maxsize": 1024, "overflow": "block"}, [True, True, False]),
        ({"maxsize": 1}, [True, False, False]),
        ({"maxsize": 8}, [True, False, False]),
        # Full is how these are all day, and they lose nothing of what they ask for by it.
        ({"maxsize": 1024, "overflow": "latest"}, [True, True, True]),
        ({"maxsize": 8, "overflow": "drop_oldest"}, [True, True, True]),
    ],
)
async def test_it_is_hungry_until_an_eighth_waits_if_its_room_has_a_bound(
    bus: AsyncEventBus, keywords: dict[str, Any], wishes: list[bool]
) -> None:
    box = await subscribed(bus, **keywords)
    seen = []
    for count in (127, 1):
        seen.append(box.wants_more)
        box.keep(batch_of(*range(1, 1 + count)))
    assert [*seen, box.wants_more] == wishes


@pytest.mark.parametrize(("overflow", "welcome"), [("latest", PACE), ("drop_oldest", PACE)])
async def test_an_inbox_that_drops_catches_up_by_whole_pages_however_small_it_is(
    bus: AsyncEventBus, overflow: str, welcome: int
) -> None:
    box = await subscribed(bus, overflow=overflow, maxsize=1)
    box.keep(batch_of(*range(1, 4)))
    assert (box.free_slots, popped(box), box.stats.dropped + box.stats.conflated) == (
        welcome,
        [3],
        2,
    )


@pytest.mark.virtual
async def test_what_others_have_is_asked_for_beside_what_is_missing_of_the_own(
    bus: AsyncEventBus,
) -> None:
    box = await subscribed(bus, maxsize=128)
    asked = Asked()
    catchup = catchup_of(bus, box, asked)
    for number in range(1000):
        bus.publish_nowait(Event("A", number))
    catchup.meet(("desk", 7), 0, 0.0)
    catchup.meet(("desk", 7), 5000, 0.0)
    for _ in range(300):
        box.pop()
    assert asked.limits[0] > 0, "the own history fills the inbox again and again"


@pytest.mark.parametrize("publishers", [1, 4])
@pytest.mark.parametrize("maxsize", [1, 3, 64, 1_000])
async def test_publishers_here_that_fill_an_inbox_leave_room_for_what_another_bus_has(
    bus: AsyncEventBus, maxsize: int, publishers: int
) -> None:
    total = 3 * PACE
    theirs: list[int] = []
    is_full, has_all = asyncio.Event(), asyncio.Event()

    async def on_event(event: Event) -> None:
        if event.epoch == 7:
            theirs.append(event.seq)
            if event.seq == total:
                has_all.set()
        elif event.seq > maxsize:
            is_full.set()
        await asyncio.sleep(0)

    async def flood() -> None:
        while True:
            await bus.publish(Event("A", 0))

    subscription = await bus.subscribe("A", on_event, overflow="block", maxsize=maxsize)
    catchup = catchup_of(bus, subscription, Answering(total))
    floods = [asyncio.create_task(flood()) for _ in range(publishers)]
    await is_full.wait()
    catchup.meet(("desk", 7), 0, 0.0)
    catchup.meet(("desk", 7), total, 0.0)
    async with asyncio.timeout(20):
        await has_all.wait()
    for each in floods:
        each.cancel()
    await asyncio.gather(*floods, return_exceptions=True)
    assert theirs == list(range(1, total + 1))


@pytest.mark.parametrize(("maxsize", "accepted"), [(1, 1), (300, 300 - 2 * PACE)])
async def test_an_inbox_keeps_room_for_another_bus_while_it_misses_something_of_it(
    bus: AsyncEventBus, maxsize: int, accepted: int
) -> None:
    box = await subscribed(bus, overflow="block", maxsize=maxsize)
    catchup = catchup_of(bus, box, Asked())
    catchup.meet(("desk", 7), 0, 0.0)
    catchup.meet(("desk", 7), 5_000, 0.0)
    for number in range(accepted):
        bus.publish_nowait(Event("A", number))
    with pytest.raises(QueueFull):
        bus.publish_nowait(Event("A", 0))
    catchup.leave(("desk", 7), 0)
    popped(box)


@pytest.mark.parametrize(
    ("timestamp", "says"),
    [
        (1_700_000_000_000, "these look like milliseconds: divide by 1_000"),
        (1e300, "it is no time"),
    ],
)
async def test_an_event_of_another_program_whose_timestamp_is_no_time_is_not_taken_for_fresh(
    bus: AsyncEventBus, timestamp: float, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    old, plain = await subscribed(bus, max_age=60), await subscribed(bus)
    other = Event("A", 1, timestamp, source="desk", epoch=7, seq=1)
    young = Event("A", 2, source="desk", epoch=7, seq=2)
    for box in (old, plain):
        box._accept([other, young])
    assert (popped(old), old.stats.expired, popped(plain)) == ([2], 1, [1, 2])
    (line,) = [each for each in caplog.messages if "how old" in each]
    assert line == (
        "<lambda>(A) cannot tell how old events of desk are: desk@7.1 is left out,"
        f" its timestamp is {timestamp!r}; {says}"
    ).replace("<lambda>", subscribed.__qualname__ + ".<locals>.<lambda>")
