"""An oracle that cannot fail proves nothing: each kind of violation is one that it finds."""

from pathlib import Path
from typing import Any

import pytest

from aiobus import AsyncEventBus, Event
from aiobus.sequence import UNKNOWN
from faults.bots import Bot
from faults.ledger import Entry, Ledger, read
from faults.oracle import Verdict, judge


def rows(*seqs: int, type: str = "T", key: str = "") -> list[Entry]:
    return [[seq, type, key, 1000 + seq] for seq in seqs]


def publisher(*seqs: int, is_whole: bool = True, end: int | None = None) -> list[Entry]:
    """The ledger of one that publishes those at time 10."""
    entries: list[Entry] = [["started", "p", 7, 0.0], ["published", "p", 7, 10.0, rows(*seqs)]]
    return [*entries, ["ended", "p", 7, end or seqs[-1]]] if is_whole else entries


def subscriber(
    *seen: Entry, counted: int | None = 0, types: str = "T", **terms: Any
) -> list[Entry]:
    """The ledger of one that was live at time 5, and what came to it."""
    begin: list[Entry] = [
        ["subscribes", "s", [types.split(), None], terms],
        ["subscribed", "s", 5.0, []],
    ]
    end: list[Entry] = [] if counted is None else [["complete", "s", counted]]
    return [*begin, *seen, *end]


def handled(*seqs: int, **names: str) -> Entry:
    return ["handled", "s", "p", 7, rows(*seqs, **names)]


def gap(after: int, upto: int, reason: str = "history no longer holds it") -> Entry:
    return ["gap", "s", "p", 7, after, upto, reason]


def verdict(*ledgers: list[Entry]) -> Verdict:
    return judge(ledgers)


def kinds(*ledgers: list[Entry]) -> dict[str, int]:
    return dict(verdict(*ledgers).violations)


# What is right.


def test_everything_that_was_published_and_delivered_is_right() -> None:
    found = verdict(publisher(1, 2, 3), subscriber(handled(1, 2, 3)))
    found.check()
    assert (found.published, found.owed, found.delivered) == (3, 3, 3)


def test_a_gap_is_right_where_just_its_events_are_missing() -> None:
    found = verdict(publisher(1, 2, 3, 4), subscriber(handled(1), gap(1, 3), handled(4)))
    found.check()
    assert (found.delivered, found.gaps, found.lost) == (2, 1, 2)


def test_drops_are_right_where_they_were_chosen_and_counted() -> None:
    ledger = subscriber(handled(1, 4), counted=2, overflow="drop_oldest")
    found = verdict(publisher(1, 2, 3, 4), ledger)
    found.check()
    assert (found.delivered, found.dropped) == (2, 2)


def test_latest_may_disorder_keys_but_no_key() -> None:
    ledger = subscriber(handled(2, key="b"), handled(3, key="a"), counted=1, overflow="latest")
    source = publisher(1, 2, 3)
    source[1][4] = rows(1, 3, key="a") + rows(2, key="b")
    source[1][4].sort()
    assert kinds(source, ledger) == {}


def test_what_a_killed_publisher_could_not_write_down_may_be_delivered() -> None:
    found = verdict(publisher(1, 2, is_whole=False), subscriber(handled(1, 2, 3, 4)))
    found.check()


def test_the_last_words_of_a_killed_publisher_are_no_loss_but_are_counted() -> None:
    found = verdict(publisher(1, 2, 3, is_whole=False), subscriber(handled(1)))
    found.check()
    assert found.tail == 2


def test_what_a_killed_subscriber_handled_last_is_unknown() -> None:
    found = verdict(publisher(1, 2, 3), subscriber(handled(1), counted=None))
    found.check()
    assert found.tail == 2


def test_nothing_is_owed_of_what_was_published_before_the_subscription() -> None:
    source = publisher(1, 2, 3)
    source[2:2] = [["published", "p", 7, 10.0, rows(4)]]
    source[1][3], source[-1][3] = 4.0, 4
    verdict(source, subscriber(handled(4))).check()
    verdict(source, subscriber(handled(3, 4))).check()


def test_nothing_is_owed_of_another_type_or_key() -> None:
    source = publisher(1, 2)
    source[1][4] = rows(1, type="U") + rows(2)
    verdict(source, subscriber(handled(2))).check()


def test_history_may_hold_one_type_still_where_another_is_gone() -> None:
    source = publisher(1, 2, 3, 4)
    source[1][4] = sorted(rows(1, 3) + rows(2, 4, type="F"))
    ledger = subscriber(gap(0, 3), handled(2, 4, type="F"), types="T F")
    found = verdict(source, ledger)
    found.check()
    assert (found.delivered, found.lost) == (2, 2)


def late(*seen: Entry, asked_at: float = 15.0) -> list[Entry]:
    """The ledger of one that asked at that time for the newest of each key, and then for all."""
    ledger = subscriber(*seen, since="last", asked_at=asked_at)
    ledger[1][2] = asked_at + 1
    return ledger


def two_keys() -> list[Entry]:
    """The ledger of one that publishes 1 and 3 of `a` and 2 of `b` at time 10, 4 of `a` at 14, 5 of
    `b` at 20.
    """
    source = publisher(1)
    source[1][4] = sorted(rows(1, 3, key="a") + rows(2, key="b"))
    source[2:] = [
        ["published", "p", 7, 14.0, rows(4, key="a")],
        ["published", "p", 7, 20.0, rows(5, key="b")],
        ["ended", "p", 7, 5],
    ]
    return source


def test_the_newest_of_each_key_and_all_that_follows_is_right() -> None:
    b, a, last = handled(2, key="b"), handled(3, 4, key="a"), handled(5, key="b")
    verdict(two_keys(), late(b, a, last)).check()
    # What comes while it asks may take the place of what was there before.
    verdict(two_keys(), late(b, handled(4, key="a"), last)).check()


# What is wrong.


def test_a_silent_loss_is_found() -> None:
    assert kinds(publisher(1, 2, 3), subscriber(handled(1, 3))) == {"silent loss": 1}


def test_the_loss_of_the_last_event_is_found() -> None:
    assert kinds(publisher(1, 2, 3), subscriber(handled(1, 2))) == {"silent loss": 1}


def test_the_loss_of_everything_is_found() -> None:
    assert kinds(publisher(1, 2, 3), subscriber()) == {"silent loss": 3}


def test_a_first_event_of_one_that_started_later_is_owed() -> None:
    source = publisher(1, 2)
    source[0][3] = 6.0
    assert kinds(source, subscriber(handled(2))) == {"silent loss": 1}


def test_a_hole_is_found_though_the_publisher_was_killed() -> None:
    ledgers = publisher(1, 2, 3, is_whole=False), subscriber(handled(1, 3))
    assert kinds(*ledgers) == {"silent loss": 1}


def test_a_hole_is_found_though_the_subscriber_was_killed() -> None:
    ledgers = publisher(1, 2, 3), subscriber(handled(1, 3), counted=None)
    assert kinds(*ledgers) == {"silent loss": 1}


def test_a_duplicate_is_found() -> None:
    assert kinds(publisher(1, 2), subscriber(handled(1, 2, 2))) == {"duplicate": 1}


def test_a_duplicate_is_found_though_its_publisher_could_not_write_it_down() -> None:
    ledgers = publisher(1, is_whole=False), subscriber(handled(1, 2, 2))
    assert kinds(*ledgers) == {"duplicate": 1}


def test_a_reorder_is_found() -> None:
    assert kinds(publisher(1, 2, 3), subscriber(handled(1, 3, 2))) == {"reorder": 1}


def test_a_reorder_within_a_key_is_found_under_latest() -> None:
    ledgers = publisher(1, 2), subscriber(handled(2, 1), overflow="latest")
    assert kinds(*ledgers) == {"reorder": 1}


def test_altered_bytes_are_found() -> None:
    ledger = subscriber(handled(1, 2))
    ledger[2][4][1][3] += 1
    assert kinds(publisher(1, 2), ledger) == {"altered": 1}


def test_another_key_is_found() -> None:
    assert kinds(publisher(1), subscriber(handled(1, key="a"))) == {"altered": 1}


def test_what_was_never_published_is_found() -> None:
    assert kinds(publisher(1, 2), subscriber(handled(1, 2, 3))) == {"phantom": 1}
    ledgers = publisher(1, 3, is_whole=False), subscriber(handled(1, 2, 3))
    assert kinds(*ledgers) == {"phantom": 1}


def test_what_was_not_asked_for_is_found() -> None:
    assert kinds(publisher(1), subscriber(handled(1), types="U")) == {"unasked": 1}


def test_a_drop_that_was_not_counted_is_found() -> None:
    ledger = subscriber(handled(1, 4), counted=1, overflow="drop_oldest")
    assert kinds(publisher(1, 2, 3, 4), ledger) == {"miscount": 1}


def test_a_drop_that_was_counted_and_is_none_is_found() -> None:
    ledger = subscriber(handled(1, 2), counted=1, max_age=2)
    assert kinds(publisher(1, 2), ledger) == {"miscount": 1}


def test_a_drop_where_no_policy_allows_one_is_found() -> None:
    ledgers = publisher(1, 2), subscriber(handled(2), counted=1)
    assert kinds(*ledgers) == {"silent loss": 1}


@pytest.mark.parametrize(
    ("seen", "kinds_found"),
    [
        ([handled(3, 4, key="a"), handled(5, key="b")], {"old last"}),  # nothing of b
        ([handled(1, key="a"), handled(2, key="b"), handled(4, key="a"), handled(5, key="b")],
         {"old last", "silent loss"}),  # an old one of a, and then a hole
        ([handled(2, key="b"), handled(3, key="a"), handled(5, key="b")], {"silent loss"}),  # 4
    ],
)  # fmt: skip
def test_a_beginning_that_is_not_the_newest_of_each_key_is_found(
    seen: list[Entry], kinds_found: set[str]
) -> None:
    assert kinds(two_keys(), late(*seen)).keys() == kinds_found


def test_what_was_heard_of_a_source_that_left_must_be_handed_over_or_in_a_gap() -> None:
    source, left = publisher(1, 2, 3, is_whole=False), ["left", "p", 7, 2]
    assert kinds(source, subscriber(handled(1), left)) == {"silent loss": 1}
    assert kinds(source, subscriber(handled(1), gap(1, 2, UNKNOWN), left)) == {}
    assert kinds(source, subscriber(handled(1, 2), left)) == {}


def test_of_what_a_killed_subscriber_was_told_last_it_may_have_handled_less() -> None:
    source = publisher(1, 2, 3, is_whole=False)
    assert kinds(source, subscriber(handled(1), ["left", "p", 7, 2], counted=None)) == {}


def test_a_gap_in_which_it_is_unknown_if_anything_matched_may_be_empty() -> None:
    found = verdict(publisher(1, 2), subscriber(handled(1, 2), gap(2, 9, UNKNOWN), types="U T"))
    assert found.violations == {"inexact gap": 1}, "but it reaches no further than its source did"
    found = verdict(publisher(1, 2, end=9), subscriber(handled(1, 2), gap(2, 9, UNKNOWN)))
    found.allow([])
    found.check()
    assert (found.gaps, found.lost) == (1, 0)


def test_what_its_source_still_has_of_such_a_gap_may_be_handed_over_after_it() -> None:
    ledger = subscriber(handled(1), gap(1, 3, UNKNOWN), gap(1, 2), handled(3))
    assert kinds(publisher(1, 2, 3), ledger) == {}


def test_such_a_gap_that_has_what_was_handed_over_before_it_is_found() -> None:
    ledger = subscriber(handled(1, 2, 3), gap(2, 3, UNKNOWN))
    assert kinds(publisher(1, 2, 3), ledger) == {"false gap": 1}


def test_a_gap_for_a_reason_that_no_source_had_is_found() -> None:
    found = verdict(publisher(1, 2, 3), subscriber(handled(1), gap(1, 2), handled(3)))
    found.allow(["history no longer holds it"])
    found.check()
    found.allow(["its source has left"])
    assert found.violations == {"needless gap": 1}


def test_a_source_that_never_started_is_found() -> None:
    strange = ["handled", "s", "p", 8, rows(1)]
    assert kinds(publisher(1), subscriber(handled(1), strange)) == {"phantom": 1}
    lost = ["gap", "s", "p", 8, 0, 5, "its source has left"]
    assert kinds(publisher(1), subscriber(handled(1), lost)) == {"phantom": 1}


def test_a_gap_in_which_nothing_was_asked_for_is_found() -> None:
    source = publisher(1, 2, 3)
    source[1][4] = sorted(rows(1, 3) + rows(2, type="F"))
    assert kinds(source, subscriber(handled(1), gap(1, 2), handled(3))) == {"false gap": 1}


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        ((handled(1, 2), gap(1, 3), handled(4)), "false gap"),  # 2 was handed over before it
        ((handled(1), gap(1, 3), handled(3, 4)), "false gap"),  # 3 is after it
        ((handled(1), gap(1, 2), gap(1, 3), handled(4)), "inexact gap"),  # said twice
        ((handled(1), gap(1, 9)), "inexact gap"),  # there is no 9
        ((handled(1, 2, 3, 4), gap(4, 4)), "inexact gap"),  # of nothing
        ((handled(1), gap(1, 2), handled(4)), "silent loss"),  # too short
    ],
)
def test_a_gap_that_is_not_exact_is_found(seen: tuple[Entry, ...], kind: str) -> None:
    assert kind in kinds(publisher(1, 2, 3, 4), subscriber(*seen))


def test_a_gap_that_leaves_a_hole_in_what_follows_it_is_found() -> None:
    source = publisher(1, 2, 3, 4)
    source[1][4] = sorted(rows(4) + rows(1, 2, 3, type="F"))
    ledger = subscriber(gap(0, 4), handled(1, 3, type="F"), types="T F")
    assert kinds(source, ledger) == {"false gap": 1}


def test_a_publisher_that_numbers_twice_is_found() -> None:
    assert "disordered seqs" in kinds(publisher(1, 2, 2, end=2))


# The ledger.


def test_a_line_that_a_kill_has_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    ledger = Ledger(path)
    ledger.started("p", 7, 0.0)
    ledger.ended("p", 7, 3)
    path.write_bytes(path.read_bytes()[:-3])
    assert list(read(path)) == [["started", "p", 7, 0.0]]


async def test_a_bot_writes_down_what_it_publishes_and_handles(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    bot = Bot(str(path))
    await bot.start("inproc://", "p")
    await bot.hear()
    place = [*bot.source, bot.burst(100, keys=3)]
    await bot.until(*place)
    assert await bot.flush() == []
    await bot.complete()
    assert await bot.close() == []
    found = judge([read(path)])
    found.check()
    assert (found.published, found.delivered) == (100, 100)


async def test_what_was_altered_on_the_way_has_another_checksum(tmp_path: Path) -> None:
    """A bus that alters: its handler is given something else than was published."""
    path = tmp_path / "a.jsonl"
    ledger = Ledger(path)
    async with AsyncEventBus(name="p") as bus:
        epoch = bus.stats().epoch
        ledger.started("p", epoch, 0.0)
        ledger.subscribes("s", [["T"], None])
        subscription = await bus.subscribe("T", print)
        ledger.subscribed("s", subscription)
        event = await bus.publish(Event("T", {"price": 0.1}))
        ledger.publishes(event)
        ledger.end_burst("p", epoch, 10.0**9)
        event.data = {"price": 0.1 + 2**-55}
        ledger.handles("s", event)
        ledger.complete("s", subscription)
        ledger.ended("p", epoch, 1)
    ledger.close()
    assert dict(judge([read(path)]).violations) == {"altered": 1}
