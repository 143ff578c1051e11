"""What a keeper holds and tells, without a bus; and that a subscription hears it first."""

from collections.abc import Callable
from itertools import count

import orjson
import pytest
from conftest import HandClock
from test_catchup import Asked, Box, rows_of

from aiobus import Event, Limits
from aiobus.catchup import KEEPER_SECONDS, KEEPER_SILENCE, CatchUp
from aiobus.history import Page, Want
from aiobus.keeper.kept import (
    DOUBTFUL,
    ENDED,
    MAX_BYTES,
    OVERHEAD,
    SEEN_OUT,
    Draft,
    Excerpt,
    Held,
    Kept,
)
from aiobus.options import SubscriptionOptions
from aiobus.publisher import Publisher
from aiobus.query import Query
from aiobus.rows import LazyBatch, Source
from aiobus.sequence import LATE, Cursor, Gap

ALL = Query.of("*")


def held(seq: int, type: str = "POSITION", key: str = "", **changed: object) -> Held:
    made = Held("gateway", 7, seq, type, key, 100.0 + seq, b"%d" % seq)
    return made._replace(**changed)  # type: ignore[arg-type]


@pytest.fixture
def kept() -> Kept:
    made = Kept(Query.of(["POSITION", "HALT"]), {"HALT": "RESUME"}, 3, count(1).__next__)
    made.is_current = lambda: True
    return made


def change(kept: Kept, *steps: Callable[[Draft], object]) -> None:
    draft = Draft(kept)
    for step in steps:
        step(draft)
    draft.apply()


def taken(*events: Held) -> Callable[[Draft], object]:
    def take(draft: Draft) -> None:
        for event in events:
            draft.take(event)
            draft.end(event)

    return take


def gone(source: Source) -> bool | None:
    return False


def seqs(told: Excerpt | None) -> list[int]:
    assert told is not None
    return [orjson.loads(row)[4] for _, _, _, row in told.rows]


# What is held.


def test_the_newest_of_each_publisher_type_and_key_is_held(kept: Kept) -> None:
    change(kept, taken(held(1), held(2), held(3, key="A"), held(4, origin="other")))
    assert {(each.origin, each.key, each.seq) for each in kept} == {
        ("gateway", "", 2),
        ("gateway", "A", 3),
        ("other", "", 4),
    }


def test_what_is_drafted_is_not_told_before_it_is_on_the_disk(kept: Kept) -> None:
    draft = Draft(kept)
    draft.take(held(1))
    assert seqs(kept.told(ALL, gone)) == []
    draft.apply()
    assert seqs(kept.told(ALL, gone)) == [1]


def test_a_type_that_is_not_kept_is_not_held(kept: Kept) -> None:
    change(kept, taken(held(1, "TRADE")))
    assert not len(kept)


def test_beyond_its_bound_the_newest_keys_are_refused_and_their_types_known(kept: Kept) -> None:
    change(kept, taken(*(held(n, key=f"K{n}") for n in range(1, 5)), held(9, key="K1")))
    assert sorted(each.seq for each in kept) == [2, 3, 9]
    assert (kept.refused, kept.lost) == (1, {"POSITION"})


def test_beyond_its_bytes_what_was_held_in_that_place_is_in_doubt(kept: Kept) -> None:
    change(kept, taken(held(1, data=b"1")), taken(held(2, data=b"1" * (MAX_BYTES - OVERHEAD + 1))))
    assert [(each.seq, each.flags) for each in kept] == [(1, DOUBTFUL)]


def test_what_was_ended_makes_room_if_there_is_no_other(kept: Kept) -> None:
    change(kept, taken(held(1, "HALT"), held(2, "RESUME")))
    change(kept, taken(*(held(n, key=f"K{n}") for n in range(3, 6))))
    assert [each.seq for each in kept] == [3, 4, 5]
    assert not kept.refused


# What ends.


@pytest.mark.parametrize(
    ("ending", "is_ended"),
    [
        (held(2, "RESUME"), True),
        (held(2, "RESUME", origin="operator"), True),
        (held(2, "RESUME", key="A"), False),
        (held(2, "POSITION"), False),
        (held(2, "RESUME", origin="operator", time=100.0), False),  # made before the HALT
        (held(2, "RESUME", time=100.0), True),  # but published after it by the same start
    ],
)
def test_a_halt_ends_by_a_resume_of_its_key_that_is_not_older(
    kept: Kept, ending: Held, is_ended: bool
) -> None:
    change(kept, taken(held(1, "HALT")), taken(ending))
    (halt,) = [each for each in kept if each.type == "HALT"]
    assert bool(halt.flags & ENDED) is is_ended
    assert (1 not in seqs(kept.told(Query.of("HALT"), gone))) is is_ended


def test_the_same_halt_does_not_come_back_and_another_does(kept: Kept) -> None:
    change(kept, taken(held(1, "HALT"), held(2, "RESUME")), taken(held(1, "HALT")))
    assert seqs(kept.told(ALL, gone)) == []
    change(kept, taken(held(3, "HALT")))
    assert seqs(kept.told(ALL, gone)) == [3]


# What is told.


def test_each_start_is_told_of_if_it_is_gone_and_of_none_as_long_as_one_is_unknown(
    kept: Kept,
) -> None:
    change(kept, taken(held(1), held(2, origin="other")))
    assert seqs(kept.told(ALL, lambda source: source[0] == "other")) == [1]
    assert kept.told(ALL, lambda source: None if source[0] == "other" else False) is None
    assert seqs(kept.told(Query.of("HALT"), lambda source: None)) == []


def test_while_something_is_not_taken_in_only_what_is_kept_waits(kept: Kept) -> None:
    kept.is_current = lambda: False
    assert kept.told(Query.of("POSITION"), gone) is None
    assert kept.told(Query.of("*"), gone) is None
    assert seqs(kept.told(Query.of("TRADE"), gone)) == []


def test_an_event_keeps_its_number_and_its_successor_gets_another(kept: Kept) -> None:
    change(kept, taken(held(1)))
    first, again = kept.told(ALL, gone), kept.told(ALL, gone)
    assert first == again
    change(kept, taken(held(2)))
    later = kept.told(ALL, gone)
    assert first is not None
    assert later is not None
    assert later.rows[0][0] > first.rows[0][0]


def test_what_is_in_doubt_is_lost_to_who_asks_but_a_halt_is_told(kept: Kept) -> None:
    change(kept, taken(held(1), held(2, "HALT"), held(3, origin="other")))
    change(kept, lambda draft: draft.doubt(("gateway", 7)))
    told = kept.told(ALL, gone)
    assert seqs(told) == [2, 3]
    assert told is not None
    assert told.lost == 1  # the number of the POSITION
    halts = kept.told(Query.of("HALT"), gone)
    assert halts is not None
    assert halts.lost == 0
    change(kept, taken(held(4)))
    assert seqs(kept.told(ALL, gone)) == [2, 3, 4]


def test_the_same_event_once_more_ends_the_doubt(kept: Kept) -> None:
    change(kept, taken(held(1)), lambda draft: draft.doubt(("gateway", 7)))
    change(kept, lambda draft: draft.check(held(1)))
    assert seqs(kept.told(ALL, gone)) == [1]


def test_what_is_checked_replaces_nothing_newer_and_no_other_start(kept: Kept) -> None:
    change(kept, taken(held(5)))
    change(kept, lambda draft: draft.check(held(4)), lambda draft: draft.check(held(9, epoch=6)))
    assert [each.seq for each in kept] == [5]
    change(kept, lambda draft: draft.check(held(6)))
    assert [each.seq for each in kept] == [6]


def test_a_number_that_is_used_again_is_another_event(kept: Kept) -> None:
    change(kept, taken(held(1, "HALT"), held(2, "RESUME")))
    change(kept, taken(held(1, "HALT", data=b"9")))
    assert seqs(kept.told(ALL, gone)) == [9]


def test_what_is_not_to_be_held_any_more_is_not_told(kept: Kept) -> None:
    kept.put(held(1, "TRADE").place, held(1, "TRADE"))
    change(kept, taken(held(2)), lambda draft: draft.see_out(("gateway", 7)))
    assert seqs(kept.told(ALL, gone)) == [2]
    assert [each.flags for each in kept] == [0, SEEN_OUT]


def test_a_question_is_told_no_more_than_it_has_room_for_and_one(kept: Kept) -> None:
    change(kept, taken(held(3, key="C"), held(1, key="A"), held(2, key="B")))
    assert seqs(kept.told(ALL, gone, 0, 1)) == [1, 2]
    assert seqs(kept.told(ALL, gone, 1, 1)) == [2, 3]
    assert seqs(kept.told(ALL, gone, 2, 1)) == [3]


def test_a_start_that_was_seen_out_is_so_until_it_is_back(kept: Kept) -> None:
    change(kept, taken(held(1)), lambda draft: draft.see_out(("gateway", 7)))
    assert [each.flags for each in kept] == [SEEN_OUT]
    change(kept, lambda draft: draft.see_back(("gateway", 7)))
    assert [each.flags for each in kept] == [0]


PAGE = Page(0, 0, 9, 9, [("POSITION", "", b'[4,1.0,"POSITION","",0]')])


def rows_at(*numbers: int) -> list[tuple[int, str, str, bytes]]:
    return [(n, "POSITION", "", b'[%d,1.0,"POSITION","",0]' % n) for n in numbers]


def numbers_of(page: Page) -> list[int]:
    return [orjson.loads(row)[0] for _, _, row in page.rows]


def test_a_page_has_what_is_kept_among_the_own_events_in_order_of_number() -> None:
    page = Excerpt(rows_at(2, 7, 11), 0).on(PAGE, Want(0, "last"), 10)
    assert (numbers_of(page), page.to) == ([2, 4, 7], 9)
    page = Excerpt(rows_at(2, 7, 11), 0).on(PAGE, Want(0, "last"), 2)
    assert (numbers_of(page), page.to) == ([2, 4], 4)


def test_what_is_lost_is_said_by_the_page_behind_the_first() -> None:
    told = Excerpt(rows_at(2, 7), 5)
    first = told.on(PAGE, Want(0, "last"), 10)
    assert (first.rows, first.to, first.evicted) == ([], 0, 0)
    second = told.on(PAGE, Want(0, None, 9), 10)
    assert (numbers_of(second), second.evicted) == ([2, 4, 7], 5)
    cursor = Cursor(since="last")
    cursor.ask(1.0)
    assert cursor.advance(first) is None
    cursor.ask(2.0)
    gap = cursor.advance(second)
    assert gap is not None
    assert (gap.after, gap.upto) == (0, 5)


# A subscription hears it first.


DESK, KEEPER = ("desk", 1), ("keeper", 1)


class LastBox(Box):
    """The box of a subscription that began with `since="last"`."""

    def __init__(self) -> None:
        super().__init__()
        self.options = SubscriptionOptions(query=self.selection, since="last")
        self.own = Cursor(since="last")
        self.is_held = False
        self.pending = 0
        self.past: list[int] = []

    def keep(self, batch: LazyBatch, after: int = 0) -> None:
        self.keep_some(batch, lambda event: event.seq > after)

    def keep_some(self, batch: LazyBatch, is_wanted: Callable[[Event], bool]) -> None:
        events = [*filter(is_wanted, batch.take())]
        self.log += [event.seq for event in events]
        self.past += [event.seq for event in events if event.past]

    def release(self) -> None:
        self.is_held = False

    def admit(self, rows: list[tuple[str, str, bytes]]) -> None:
        self.log += ["own"] * len(rows)  # type: ignore[list-item]


class Bench:
    """A subscription that asks a keeper, another bus and its own bus for what is newest."""

    def __init__(self, clock: HandClock) -> None:
        self.clock, self.box, self.asked = clock, LastBox(), Asked()
        publisher = Publisher("me", Limits())
        publisher.publish(Event("A", None))
        self.catchup = CatchUp(
            self.box,  # type: ignore[arg-type]
            publisher,
            self.asked,
            has_keeper=True,
        )
        for source in (DESK, KEEPER):
            self.catchup.meet(source, 4, clock.now - 1.0)

    def page(self, source: Source, *seqs: int, to: int = 4, after: int = 0) -> None:
        rows = rows_of(after, *seqs, source=source, is_frame=False)
        rows.newest = to
        self.catchup.take_page(source, Page(after, 0, to, 4, []), rows)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    clock = HandClock()
    monkeypatch.setattr("aiobus.catchup.elapsed", clock)
    return Bench(clock)


def asked_of(bench: Bench) -> list[str]:
    return [source[0] for source, _, _ in bench.asked.take()]


def test_a_keeper_is_asked_first_and_the_own_bus_and_the_others_once_all_of_it_is_there(
    bench: Bench,
) -> None:
    assert asked_of(bench) == ["keeper"]
    assert bench.box.log == []
    bench.page(KEEPER, 1, to=2)
    assert asked_of(bench) == ["keeper"]
    assert bench.box.is_held
    bench.page(KEEPER, 3, after=2)
    assert asked_of(bench) == ["desk"]
    assert bench.box.log == [1, 3, "own"]
    assert bench.box.past == [1, 3]
    bench.page(DESK, 4)
    assert bench.box.log == [1, 3, "own", 4]


def test_a_keeper_has_its_time_anew_after_this_process_was_held_up(bench: Bench) -> None:
    assert asked_of(bench) == ["keeper"]
    bench.clock.now += 2 * KEEPER_SECONDS
    bench.catchup.extend_deadlines()
    bench.catchup.tick([])
    assert asked_of(bench) == ["keeper"]
    assert bench.box.is_held


@pytest.mark.parametrize("alive", [True, False])
def test_the_others_are_asked_if_a_keeper_does_not_answer_in_time(
    bench: Bench, alive: bool
) -> None:
    asked_of(bench)
    end = KEEPER_SECONDS if alive else KEEPER_SILENCE
    bench.clock.now += end - 0.1
    bench.catchup.tick([KEEPER, DESK] if alive else [DESK])
    assert "desk" not in asked_of(bench)
    bench.clock.now += 0.2
    bench.catchup.tick([KEEPER, DESK] if alive else [DESK])
    assert "desk" in asked_of(bench)
    assert bench.box.log == ["own"]
    bench.page(DESK, 4)
    bench.page(KEEPER, 1, 3)
    assert bench.box.log == ["own", 4, Gap(0, 4, LATE)]


def test_a_keeper_that_has_nothing_to_tell_is_never_late(bench: Bench) -> None:
    bench.clock.now += KEEPER_SECONDS
    bench.catchup.tick([KEEPER, DESK])
    bench.page(KEEPER)
    assert bench.box.log == ["own"]


@pytest.mark.parametrize(
    "end",
    [
        lambda catchup: catchup.leave(KEEPER, 4),
        lambda catchup: catchup.suspend(KEEPER),
        lambda catchup: catchup.refuse("keeper", "too many"),
    ],
)
def test_the_others_are_asked_at_once_if_a_keeper_leaves_or_refuses(
    bench: Bench, end: Callable[[CatchUp], None]
) -> None:
    asked_of(bench)
    end(bench.catchup)
    assert asked_of(bench)[0] == "desk"
    assert not bench.box.is_held


def test_what_a_keeper_publishes_by_itself_comes_as_of_any_bus(bench: Bench) -> None:
    bench.page(KEEPER, 1)
    bench.catchup.take(rows_of(4, 5, source=KEEPER), bench.clock.now)
    assert bench.box.log == [1, "own", 5]
    assert bench.box.past == [1]
