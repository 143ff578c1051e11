"""What led to an event, and what followed from it, from journals that may lack, contradict or forge
what is asked for.
"""

import asyncio
import json
import os
import random
import re
import sqlite3
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import COMMAND, ENVIRONMENT, called
from journals import EPOCH, START, entry, make, writing

from aiobus import Explanation, Journal, JournalCorrupt, JournalError, NotRecorded, explain
from aiobus.event import event_id
from aiobus.journal import format, lookup, retention
from aiobus.journal.format import Entry
from aiobus.journal.lookup import Lookup

DAMAGE_ROUNDS = int(os.environ.get("DAMAGE_ROUNDS", "50")) * 4
FOUND = (3969, 461, 562)
"""A bit of the index of causes, because of which SQLite finds fewer effects without an error, and
two because of which it does not find an event.
"""
BEFORE = "feed@gqll7vatq7.1"
"""An event of another start."""


def ident(source: str, seq: int) -> str:
    return event_id(source, EPOCH, seq)


def chain(time: float = START, first: int = 1) -> list[Entry]:
    """A trade, and what it led to at four buses. `first` is the seq of the trade and the fill."""
    trade, signal, order = ident("feed", first), ident("strategy", first), ident("gateway", first)
    fill = ident("broker", first + 1)
    return [
        entry(first, source="feed", time=time),
        entry(first, source="strategy", type="SIGNAL", time=time + 0.125, cause=trade),
        entry(first, source="gateway", type="ORDER", time=time + 0.375, cause=signal),
        entry(first, source="broker", type="ACK", time=time + 0.5, cause=order),
        entry(first + 1, source="broker", type="FILL", time=time + 0.875, cause=order),
        entry(first, source="monitor", type="POSITION", time=time + 1.0, cause=fill),
    ]


FILL = ident("broker", 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "desk.db"


def told(explanation: Explanation) -> list[tuple[Any, ...]]:
    """Of each event: its type, how far it is from the one that is explained, hop and total."""
    return [(step.event.type, step.depth, step.hop, step.total) for step in explanation.steps]


def ids(explanation: Explanation) -> list[str]:
    return [step.event.id for step in explanation.steps]


def alter(path: Path, what: str) -> None:
    """Change a file that was closed, without a change of its checksums."""
    connection = sqlite3.connect(path)
    connection.execute(what)
    connection.commit()
    connection.close()


# Causes and effects.


def test_a_fill_is_explained_by_its_causes_and_its_effects_with_the_time_of_each_hop(
    path: Path,
) -> None:
    make(path, [*chain(), *chain(START + 10, 3)])
    explanation = explain(path, FILL)
    assert told(explanation) == [
        ("TRADE", -3, None, 0.0),
        ("SIGNAL", -2, 0.125, 0.125),
        ("ORDER", -1, 0.25, 0.375),
        ("FILL", 0, 0.5, 0.875),
        ("POSITION", 1, 0.125, 1.0),
    ]
    assert explanation.event.id == FILL
    assert [step.role for step in explanation.steps] == ["cause"] * 3 + ["event", "effect"]
    assert (explanation.beyond, explanation.problems) == ("", [])


def test_the_first_cause_is_explained_by_all_that_followed_from_it(path: Path) -> None:
    make(path, chain())
    assert [step[:2] for step in told(explain(path, ident("feed", 1)))] == [
        ("TRADE", 0),
        ("SIGNAL", 1),
        ("ORDER", 2),
        ("ACK", 3),
        ("FILL", 3),
        ("POSITION", 4),
    ]


def test_an_event_comes_before_its_own_effects_and_those_before_its_next_neighbour(
    path: Path,
) -> None:
    a, b = ident("feed", 2), ident("feed", 3)
    tree = [(2, ident("feed", 1)), (3, ident("feed", 1)), (4, b), (5, a), (6, a)]
    make(path, [entry(1), *(entry(seq, cause=cause) for seq, cause in tree)])
    assert [step.event.seq for step in explain(path, ident("feed", 1)).steps] == [1, 2, 5, 6, 3, 4]


def test_a_system_event_is_an_effect_as_well(path: Path) -> None:
    make(path, [entry(1), entry(2, type="aiobus.error", cause=ident("feed", 1))])
    assert [step.event.type for step in explain(path, ident("feed", 1)).steps] == [
        "TRADE",
        "aiobus.error",
    ]


def test_a_cause_that_is_later_than_its_effect_is_a_negative_hop(path: Path) -> None:
    make(path, [entry(1, time=START + 1), entry(2, time=START, cause=ident("feed", 1))])
    explanation = explain(path, ident("feed", 2))
    assert told(explanation)[1] == ("TRADE", 0, -1.0, -1.0)
    assert "-1.000 s" in str(explanation)


async def test_a_file_is_explained_while_it_is_written(path: Path) -> None:
    async with writing(path) as ledger:
        await ledger.write(chain())
        assert len(explain(path, FILL).steps) == 5
        await ledger.write([entry(2, source="monitor", type="RISK", cause=FILL)])
        assert len(explain(path, FILL).steps) == 6


def steps_of_sqlite(path: Path) -> int:
    """How much SQLite does for the causes and effects of one event."""
    count = 0

    def note() -> None:
        nonlocal count
        count += 1

    with Lookup(path) as journal:
        journal.find("feed", EPOCH, 1)  # the texts are read
        journal._connection.set_progress_handler(note, 1)
        assert journal.find("broker", EPOCH, 2)
        assert journal.effects(("broker", EPOCH, 2), 10)[0] == 1
        assert journal.find("broker", EPOCH, 1_000_000) is None
        assert journal.moment("broker", EPOCH, 2)
    return count


def test_what_is_looked_up_by_id_or_cause_takes_no_longer_in_a_larger_file(path: Path) -> None:
    make(path, chain())
    few = steps_of_sqlite(path)
    make(path, [entry(seq, cause=ident("broker", seq + 1)) for seq in range(2, 5_000)])
    assert steps_of_sqlite(path) <= few + 10


# Text and data.


def test_the_text_names_the_time_zone_and_marks_the_event(path: Path) -> None:
    make(path, chain())
    lines = str(explain(path, FILL, tz="Europe/Berlin")).splitlines()
    feed, strategy, gateway, monitor = (
        f"BTCUSDT {ident(source, 1)}" for source in ("feed", "strategy", "gateway", "monitor")
    )
    assert lines == [
        f"FILL {FILL} explained, 2023-11-14, Europe/Berlin (UTC+01:00)",
        "",
        "  time                     hop        total  event",
        f'  23:13:20.000000     no cause               TRADE {feed} {{"price":1.0}}',
        f'  23:13:20.125000    125.00 ms    125.00 ms  SIGNAL {strategy} {{"price":1.0}}',
        f'  23:13:20.375000    250.00 ms    375.00 ms  ORDER {gateway} {{"price":1.0}}',
        f'> 23:13:20.875000    500.00 ms    875.00 ms  FILL BTCUSDT {FILL} {{"price":2.0}}',
        f'  23:13:21.000000    125.00 ms      1.000 s    POSITION {monitor} {{"price":1.0}}',
    ]


def test_an_event_that_names_no_cause_is_said_to_name_none(path: Path) -> None:
    """An order that a task publishes names no trade: its times are not those from a tick."""
    make(path, [entry(1, source="strategy", type="ORDER"), *chain()[3:]])
    first = str(explain(path, ident("strategy", 1))).splitlines()[3]
    assert re.match(r"> \S+ +no cause +ORDER BTCUSDT strategy@", first)
    assert "no cause" not in str(explain(path, FILL))  # it names one, which is not there


def test_events_of_several_days_are_told_with_their_dates_and_offsets(path: Path) -> None:
    summer, winter = datetime(2026, 10, 24, tzinfo=UTC), datetime(2026, 10, 26, tzinfo=UTC)
    first = entry(1, time=summer.timestamp())
    make(path, [first, entry(2, time=winter.timestamp(), cause=ident("feed", 1))])
    lines = str(explain(path, ident("feed", 2), tz="Europe/Berlin")).splitlines()
    assert "2026-10-24 02:00:00.000000 +0200" in lines[3]
    assert "2026-10-26 01:00:00.000000 +0100" in lines[4]
    assert "172,800.000 s" in lines[4]


def test_the_zone_of_the_machine_is_said_as_local_time(path: Path) -> None:
    make(path, chain())
    offset = datetime.fromtimestamp(START).astimezone().strftime("%z")
    wanted = f"local time (UTC{offset[:3]}:{offset[3:]})"
    assert str(explain(path, FILL)).splitlines()[0].endswith(wanted)


def test_an_unknown_zone_is_refused_with_its_name(path: Path) -> None:
    make(path, chain())
    for tz in ("Mars/Olympus", "/etc/passwd", ""):
        with pytest.raises(ValueError, match="is no time zone of this machine"):
            explain(path, FILL, tz=tz)


def test_the_data_has_all_that_is_told(path: Path) -> None:
    make(path, chain())
    plain = explain(path, FILL, tz=UTC).to_dict()
    assert plain["id"] == FILL
    assert plain["total"] == 0.875
    assert (plain["beyond"], plain["problems"], plain["zone"]) == ("", [], "UTC")
    assert plain["steps"][3] == {
        "role": "event",
        "depth": 0,
        "hop": 0.5,
        "total": 0.875,
        "source": "broker",
        "epoch": EPOCH,
        "seq": 2,
        "id": FILL,
        "time": START + 0.875,
        "type": "FILL",
        "key": "BTCUSDT",
        "cause": ident("gateway", 1),
        "data": {"price": 2.0},
        "file": str(path),
        "more": 0,
        "differs": [],
        "clocks": "",
    }


def test_the_text_has_no_control_character_and_no_megabyte(path: Path) -> None:
    make(path, [entry(1, "\x1b[2J" + "x" * 100_000, key="\x1b]0;title\x07")])
    lines = str(explain(path, ident("feed", 1))).splitlines()
    assert all(line.isprintable() and len(line) < 400 for line in lines)
    assert "(100,011 characters)" in lines[-1]


# By time.


@pytest.mark.parametrize(
    "at",
    [
        "22:13",
        "22:13:22",
        "22:13:22.1",
        "22:13:22,125",
        "22:13:22.125000",
        "2023-11-14T22:13",
        "2023-11-14 22:13:22",
        "2023-11-14T22:13:22Z",
        "2023-11-14T23:13:22+01:00",
        "22:13Z",
        "14:13-0800",
        START + 2.125,
        int(START) + 2,
        str(START + 2.125),
        datetime(2023, 11, 14, 22, 13, 22),
        datetime(2023, 11, 14, 22, 13, 22, tzinfo=UTC),
        datetime(2023, 11, 15, 0, 13, 22, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_an_event_is_found_by_its_time_however_that_is_said(
    path: Path, at: str | float | datetime
) -> None:
    early = entry(1, type="FILL", time=START - 61)
    late = entry(3, type="FILL", time=START + 61)
    found = entry(2, type="FILL", time=START + 2.125)
    make(path, [early, entry(4, time=START + 2.125), found, late])
    explanation = explain(path, at=at, type="FILL", tz="UTC")
    assert (explanation.event.seq, explanation.count, explanation.alike) == (2, 1, [])


def test_a_time_as_it_is_printed_finds_the_event_again(path: Path) -> None:
    times = [START + each / 7_777_777 for each in range(1, 2_000, 90)]
    make(path, [entry(seq, time=time) for seq, time in enumerate(times, 1)])
    for seq in range(1, len(times) + 1):
        line = str(explain(path, ident("feed", seq), tz="UTC")).splitlines()[3]
        assert explain(path, at=line.split()[1], tz="UTC").event.seq == seq


@pytest.mark.parametrize(
    "at",
    ["yesterday", "25:00", "10:60", "10:31:61", "1030", "10", "2023-02-30T10:31", "", "10:31 PM",
     "2023-11-14", "9999-01-01T10:31"],
)  # fmt: skip
def test_a_text_that_is_no_time_is_refused_with_what_is_needed(path: Path, at: str) -> None:
    make(path, chain())
    if at in ("10", "1030"):  # seconds since 1970
        with pytest.raises(NotRecorded):
            explain(path, at=at)
        return
    with pytest.raises(ValueError, match=r"at='.*'"):
        explain(path, at=at, tz="UTC")


def test_what_is_no_time_at_all_is_refused(path: Path) -> None:
    make(path, chain())
    for at in (True, b"10:31", [1], float("nan"), float("inf"), -1.0, 1e12):
        with pytest.raises((TypeError, ValueError), match="at="):
            explain(path, at=at, tz="UTC")  # type: ignore[arg-type]


def test_of_several_events_at_that_time_the_first_is_explained_and_the_next_are_named(
    path: Path,
) -> None:
    make(path, [entry(seq, type="FILL", time=START + 30 - seq) for seq in range(1, 21)])
    explanation = explain(path, at="22:13", type="FILL", tz="UTC")
    assert (explanation.event.seq, explanation.count) == (20, 20)
    assert [event.seq for event in explanation.alike] == [*range(19, 9, -1)]
    said = str(explanation).splitlines()[1]
    assert said.startswith(f"the first of 20 at that time; the next: {ident('feed', 19)} at 22:13")


def test_a_time_without_an_event_names_the_nearest(path: Path) -> None:
    make(path, [entry(1, time=START), *chain(START + 600, 10), *chain(START + 6_000, 20)])
    with pytest.raises(NotRecorded) as caught:
        explain(path, at="22:33", type="FILL", tz="UTC")
    assert caught.value.nearest == [ident("broker", 11), ident("broker", 21)]
    assert str(caught.value) == (
        "no event of type FILL is recorded at 22:33 (UTC); the nearest:"
        f" {ident('broker', 11)} at 2023-11-14 22:23:20.875000+00:00 and"
        f" {ident('broker', 21)} at 2023-11-14 23:53:20.875000+00:00"
    )


@pytest.mark.parametrize("at", ["22:33", "2026-11-29T22:33", START])
def test_a_type_that_is_not_there_at_all_is_answered_with_those_that_are(
    path: Path, at: str | float
) -> None:
    make(path, chain())
    with pytest.raises(NotRecorded) as caught:
        explain(path, at=at, type="fill", tz="UTC")
    assert caught.value.nearest == []
    assert str(caught.value).endswith(
        "nor at any other time; there are: ACK, FILL, ORDER, POSITION, SIGNAL, TRADE"
    )


def test_a_file_without_events_says_so(path: Path) -> None:
    make(path, [])
    with pytest.raises(NotRecorded, match="there are: no events"):
        explain(path, at="10:31")


def test_a_time_of_several_days_names_them_all(path: Path) -> None:
    day = 86_400
    make(path, [entry(seq, type="FILL", time=START + seq * day) for seq in range(1, 4)])
    with pytest.raises(ValueError, match="at='22:13' may be") as caught:
        explain(path, at="22:13", type="FILL", tz="UTC")
    for date in ("2023-11-15", "2023-11-16", "2023-11-17"):
        assert f"{date}T22:13:00+00:00 (1)" in str(caught.value)
    assert explain(path, at="2023-11-16T22:13", type="FILL", tz="UTC").event.seq == 2


def test_a_time_of_one_of_several_days_needs_no_date(path: Path) -> None:
    times = [START, START + 86_400 + 3_600, START + 5 * 86_400 + 7_200]
    make(path, [entry(seq, time=time) for seq, time in enumerate(times, 1)])
    assert [explain(path, at=at, tz="UTC").event.seq for at in ("22:13", "23:13", "00:13")] == [
        1,
        2,
        3,
    ]


def test_a_time_of_too_many_days_asks_for_the_date(path: Path) -> None:
    make(path, [entry(seq, time=START + seq * 86_400) for seq in range(1, 60)])
    with pytest.raises(ValueError, match="give the date as well"):
        explain(path, at="22:13", tz="UTC")
    assert explain(path, at="2023-11-15 22:13", tz="UTC").event.seq == 1


def test_a_time_that_the_clocks_showed_twice_names_both(path: Path) -> None:
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC).timestamp()
    make(path, [entry(1, time=first), entry(2, time=first + 3_600)])
    for at in ("02:30", "2026-10-25T02:30"):
        with pytest.raises(ValueError, match="may be") as caught:
            explain(path, at=at, tz="Europe/Berlin")
        assert "2026-10-25T02:30:00+02:00 (1) or 2026-10-25T02:30:00+01:00 (1)" in str(caught.value)
    assert explain(path, at="2026-10-25T02:30+01:00", tz="Europe/Berlin").event.seq == 2
    assert explain(path, at="02:30+02:00", tz="Europe/Berlin").event.seq == 1


def test_a_time_that_the_clocks_left_out_is_said_to_be_none(path: Path) -> None:
    make(path, [entry(1, time=datetime(2026, 3, 29, 1, 30, tzinfo=UTC).timestamp())])
    with pytest.raises(ValueError, match="the clocks of Europe/Berlin leave this time out"):
        explain(path, at="2026-03-29T02:30", tz="Europe/Berlin")


def test_a_key_or_its_beginning_selects(path: Path) -> None:
    keys = ["BTCUSDT", "ETHUSDT", "ETHEUR", ""]
    make(path, [entry(seq, key=key, time=START + seq) for seq, key in enumerate(keys, 1)])
    assert explain(path, at="22:13", key="ETHUSDT", tz="UTC").event.seq == 2
    found = explain(path, at="22:13", key="ETH*", tz="UTC")
    assert (found.event.seq, found.count) == (2, 2)
    assert explain(path, at="22:13", key="", tz="UTC").event.seq == 4
    assert explain(path, at="22:13", tz="UTC").count == 4


def test_types_and_keys_that_stand_in_the_events_are_found_as_well(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format, "MAX_NAMES", 2)
    make(path, [entry(seq, type=f"T{seq}", key=f"K{seq}", time=START + seq) for seq in range(1, 9)])
    for given in ({"type": "T7"}, {"key": "K7"}, {"key": "K7*", "type": "T7"}):
        found = explain(path, at="22:13", tz="UTC", **given)
        assert (found.event.seq, found.count) == (7, 1)


def test_reserved_events_are_found_by_time_only_if_they_are_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = [entry(1, type="aiobus.gap", time=START), entry(2, time=START + 1)]
    make(path, several)
    assert explain(path, at="22:13", tz="UTC").event.seq == 2
    assert explain(path, at="22:13", type="aiobus.gap", tz="UTC").event.seq == 1
    monkeypatch.setattr(format, "MAX_NAMES", 0)
    make(other := path.with_name("other.db"), several)
    assert explain(other, at="22:13", tz="UTC").event.seq == 2


# What is asked wrongly, and what is not there.


def test_what_is_asked_wrongly_is_refused_with_what_is_needed(path: Path) -> None:
    make(path, chain())
    with pytest.raises(TypeError, match="needs the id of an event, or at="):
        explain(path)
    with pytest.raises(TypeError, match="and not both"):
        explain(path, FILL, at="10:31")
    with pytest.raises(TypeError, match="type= and key= belong to at="):
        explain(path, FILL, type="FILL")
    with pytest.raises(ValueError, match="at least 1"):
        explain(path, FILL, most=0)
    with pytest.raises(ValueError, match="no file"):
        explain([], FILL)
    with pytest.raises(ValueError, match="a b"):
        explain(path, at="10:31", type="a b")
    with pytest.raises(JournalError, match="does not exist"):
        explain(path.with_name("none.db"), FILL)
    for id in ("feed", "feed@.1", "feed@gqll7vatq8.0", "", "feed@GQLL.1", 7):
        with pytest.raises(ValueError, match="is not the id of an event, such as"):
            explain(path, id)  # type: ignore[arg-type]


def test_an_id_that_is_not_there_is_answered_with_what_is_known_of_its_source(path: Path) -> None:
    make(path, [entry(seq) for seq in (5, 6, 9)])
    for id, said in (
        (ident("feed", 4), f"{path} has events of feed@gqll7vatq8 from 5 on only"),
        (ident("feed", 10), f"{path} has events of feed@gqll7vatq8 up to 9 only"),
        (ident("feed", 10**18), "up to 9 only"),
        (f"feed@gqll7vatq8.{10**18 * 9 + 5 * 10**17}", "up to 9 only"),
        (ident("feed", 7), "before and after it, so it was not among the types and keys"),
        (ident("broker", 1), f"{path} has no event of broker@gqll7vatq8: that was not recorded"),
        (BEFORE, "it is another start of this bus than feed@gqll7vatq8"),
    ):
        with pytest.raises(NotRecorded) as caught:
            explain(path, id)
        assert str(caught.value).startswith(f"{id} is not recorded: {path} has ")
        assert said in str(caught.value)
        assert caught.value.nearest == []


def test_a_cause_of_a_source_that_was_not_recorded_is_said_to_be_missing(path: Path) -> None:
    make(path, chain()[2:])
    explanation = explain(path, FILL)
    assert [step.event.type for step in explanation.steps] == ["ORDER", "FILL", "POSITION"]
    assert explanation.beyond == (
        f"its cause {ident('strategy', 1)} is not recorded: {path} has no event of"
        " strategy@gqll7vatq8: that was not recorded"
    )
    assert f"?{' ' * 42}{explanation.beyond}" in str(explanation)


def test_a_cause_that_is_no_id_is_said_to_be_none(path: Path) -> None:
    make(path, [entry(1, cause="the exchange")])
    explanation = explain(path, ident("feed", 1))
    assert explanation.beyond == "its cause is 'the exchange', which is not the id of an event"


async def test_a_cause_that_keep_has_removed_is_said_to_be_that(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "STRETCH_EVENTS", 100)
    time = [START]
    monkeypatch.setattr("aiobus.clock.machine", lambda: time[0])
    async with writing(path, keep=timedelta(days=1)) as ledger:
        for first in range(1, 200, 50):
            await ledger.write([entry(seq) for seq in range(first, first + 50)])
        time[0] += 86_401
        for seq in (201, 202, 203):
            await ledger.write([entry(seq, cause=ident("feed", 7))])
        assert ledger.errors == []
    with Journal(path) as journal:
        (removed,) = journal.facts()["removed"].values()
    assert removed in (100, 200)
    explanation = explain(path, ident("feed", 203))
    assert len(explanation.steps) == 1
    assert explanation.beyond == (
        f"its cause {ident('feed', 7)} is not recorded: keep= has removed the events of"
        f" feed@gqll7vatq8 up to {removed} from {path}"
    )


# Several files.


def test_causes_and_effects_are_followed_from_file_to_file(tmp_path: Path) -> None:
    parts = [tmp_path / f"{number}.db" for number in range(3)]
    for number, part in enumerate(parts):
        make(part, chain()[number::3])
    for some in (parts, parts[::-1]):
        explanation = explain(some, FILL)
        assert [step[:2] for step in told(explanation)] == [
            ("TRADE", -3),
            ("SIGNAL", -2),
            ("ORDER", -1),
            ("FILL", 0),
            ("POSITION", 1),
        ]
        assert [Path(step.path).name for step in explanation.steps] == [
            *("0.db", "1.db", "2.db", "1.db", "2.db")
        ]
        assert f"[{parts[1]}]" in str(explanation).splitlines()[6]
    assert "is not recorded" in explain(parts[1], FILL).beyond


def test_an_event_that_is_in_two_files_is_told_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    make(one, chain())
    make(two, chain()[3:])
    make(two, [entry(2, source="monitor", type="RISK", time=START + 2, cause=FILL)])
    explanation = explain([one, two], FILL)
    assert [step.event.type for step in explanation.steps] == [
        *("TRADE", "SIGNAL", "ORDER", "FILL", "POSITION", "RISK")
    ]
    assert all(step.differs == [] and step.more == 0 for step in explanation.steps)
    found = explain([one, two], at="22:13", type="FILL", tz="UTC")
    assert (found.event.id, found.count) == (FILL, 1)


def test_a_file_that_is_given_twice_counts_once(path: Path) -> None:
    make(path, chain())
    (link := path.with_name("link.db")).symlink_to(path)
    explanation = explain([path, str(path), link], FILL)
    assert explanation.paths == [str(path)]


@pytest.mark.parametrize(
    ("other", "field"),
    [
        ({"data": {"price": 3.0}}, "data"),
        ({"data": {"price": 2}}, "data"),
        ({"time": START + 0.75}, "timestamp"),
        ({"key": "ETHUSDT"}, "key"),
        ({"type": "ACK"}, "type"),
        ({"cause": ident("gateway", 9)}, "cause"),
    ],
)
def test_an_event_that_two_files_tell_differently_is_told_with_the_difference(
    tmp_path: Path, other: dict[str, Any], field: str
) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    make(one, chain())
    same: dict[str, Any] = {"type": "FILL", "time": START + 0.875, "cause": ident("gateway", 1)}
    make(two, [entry(2, source="broker", **{**same, **other})])
    said = [f"{two} has another {field} for it"]
    asked = explain([one, two], FILL)
    assert [step.differs for step in asked.steps] == [[], [], [], said, []]
    assert f"! {said[0]}" in str(asked)
    for id in (ident("feed", 1), ident("monitor", 1)):  # as an effect, and as a cause
        explanation = explain([one, two], id)
        assert [step.differs for step in explanation.steps if step.event.id == FILL] == [said]


# What is damaged or forged.


@pytest.mark.parametrize("source", ["feed", "strategy", "broker", "monitor"])
def test_an_event_that_was_altered_in_the_file_is_not_told(path: Path, source: str) -> None:
    make(path, chain())
    alter(
        path,
        f"""UPDATE events SET data = '{{"price":9.0}}' WHERE type <> 4 AND source =
        (SELECT id FROM sources WHERE name = '{source}')""",
    )
    with pytest.raises(JournalCorrupt):
        explain(path, FILL)
    with pytest.raises(JournalCorrupt):
        explain(path, ident("feed", 1))


@pytest.mark.parametrize(
    "loss",
    [
        'DELETE FROM events WHERE "offset" > 3',
        'DELETE FROM events WHERE "offset" = (SELECT max("offset") FROM events)',
        "DELETE FROM sources",
        "DELETE FROM sources WHERE id = (SELECT max(source) FROM events)",
    ],
)
def test_what_was_taken_from_the_file_is_not_told_as_never_recorded(path: Path, loss: str) -> None:
    make(path, chain())
    alter(path, loss)
    for asked in (FILL, ident("feed", 1)):
        with pytest.raises(JournalCorrupt):
            explain(path, asked)


@pytest.mark.parametrize("part", range(4))
def test_an_altered_bit_of_the_file_alters_no_explanation(path: Path, part: int) -> None:
    make(path, [each for first in range(0, 40, 2) for each in chain(START + first, 1 + first)])
    whole = path.read_bytes()
    wanted = {
        asked: explain(path, asked).to_dict()
        for asked in (ident("strategy", 21), ident("broker", 22))
    }
    damaged = 0
    for seed in (*range(part, DAMAGE_ROUNDS, 4), *FOUND):
        spoilt, chosen = bytearray(whole), random.Random(seed)
        spoilt[chosen.randrange(len(spoilt))] ^= 1 << chosen.randrange(8)
        path.write_bytes(spoilt)
        for other in path.parent.glob("desk.db-*"):
            other.unlink()
        for asked, whole_story in wanted.items():
            try:
                assert explain(path, asked).to_dict() == whole_story, seed
            except JournalCorrupt:
                damaged += 1
    assert damaged


def test_a_name_that_was_altered_in_the_file_is_not_told(path: Path) -> None:
    make(path, chain())
    alter(path, "UPDATE names SET text = 'FILM' WHERE text = 'FILL'")
    for given in ({"event_id": FILL}, {"at": "22:13", "type": "FILM"}):
        with pytest.raises(JournalCorrupt):
            explain(path, tz="UTC", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [1, 2, 50])
@pytest.mark.parametrize("most", [10, 1_000])
def test_causes_that_form_a_circle_end_and_are_told(path: Path, length: int, most: int) -> None:
    make(
        path,
        [
            entry(seq, cause=ident("feed", seq - 1 or length), time=START + seq)
            for seq in range(1, length + 1)
        ],
    )
    for asked in {1, length}:
        explanation = explain(path, ident("feed", asked), most=most)
        shown = ids(explanation)
        assert len(shown) == len(set(shown)) == min(length, 2 * most + 1)
        if length <= most:
            assert "the causes form a circle" in explanation.beyond
            assert len(explanation.problems) == 1
        else:
            assert explanation.beyond.startswith("more causes: explain ")


def test_a_long_chain_of_causes_is_bounded_and_said_to_go_on(path: Path) -> None:
    make(
        path,
        [entry(seq, cause=ident("feed", seq - 1) if seq > 1 else "") for seq in range(1, 3001)],
    )
    explanation = explain(path, ident("feed", 2_000))
    assert [step.event.seq for step in explanation.steps] == [*range(1_000, 3_001)]
    assert explanation.beyond == f"more causes: explain {ident('feed', 999)}"
    lines = str(explanation).splitlines()
    assert max(map(len, lines)) < 250
    assert "(1000) TRADE" in lines[-1]
    explanation = explain(path, ident("feed", 2_500), most=100)
    assert (explanation.steps[-1].event.seq, explanation.steps[-1].more) == (2_600, 1)


def test_a_hundred_thousand_effects_are_bounded_and_counted(path: Path) -> None:
    make(path, [entry(1), *(entry(seq, 0, cause=ident("feed", 1)) for seq in range(2, 100_002))])
    explanation = explain(path, ident("feed", 1))
    assert [step.event.seq for step in explanation.steps] == [*range(1, 1_002)]
    assert explanation.steps[0].more == 99_000
    assert "... 99,000 more effects: a higher most= tells them" in str(explanation)
    assert len(str(explanation).splitlines()) == 3 + 1_001 + 1
    assert [step.more for step in explain(path, ident("feed", 1), most=7).steps] == [
        99_993,
        *[0] * 7,
    ]


def test_effects_that_are_left_out_are_counted_with_each_event(path: Path) -> None:
    below = [entry(seq, cause=ident("feed", 1)) for seq in (2, 3, 4)]
    deeper = [entry(seq, cause=ident("feed", 2 + seq % 3)) for seq in range(5, 35)]
    make(path, [entry(1), *below, *deeper])
    explanation = explain(path, ident("feed", 1), most=3)
    assert [(step.event.seq, step.more) for step in explanation.steps] == [
        *((1, 0), (2, 10), (3, 10), (4, 10))
    ]


def test_effects_whose_cause_is_kept_as_text_are_found(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format, "MAX_SOURCES", 2)
    monkeypatch.setattr(lookup, "MAX_SOURCES", 2)
    make(path, [entry(1, source="a"), entry(1, source="b"), *chain()[1:], chain()[0]])
    connection = sqlite3.connect(path)
    ((texts,),) = connection.execute("SELECT count(cause) FROM events")
    connection.close()
    assert texts == 1
    assert ident("strategy", 1) in ids(explain(path, ident("feed", 1)))


# In the shell.


shell = partial(called, "explain")


def test_the_shell_explains_an_event_by_its_id_and_by_its_time(path: Path) -> None:
    make(path, chain())
    text = f"{explain(path, FILL, tz='UTC')}\n"
    words = [*COMMAND, "explain", str(path), FILL, "--tz", "UTC"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, text, "")
    assert shell(path, "--tz", "UTC", FILL) == (0, text, "")
    assert shell("--tz=UTC", path, "--at", "22:13", "--type", "FILL") == (0, text, "")
    assert shell(path, "--at", "22:13", "--type=FILL", "--key", "BTC*", "--tz=UTC") == (0, text, "")


def test_the_shell_prints_the_data_as_json_however_deep_it_is(path: Path) -> None:
    deep: Any = 1
    for _ in range(253):
        deep = [deep]
    make(path, [entry(1, deep)])
    code, out, err = shell(path, ident("feed", 1), "--json", "--tz", "UTC")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"explanation": explain(path, ident("feed", 1), tz="UTC").to_dict()}


def test_the_shell_explains_over_several_files(tmp_path: Path) -> None:
    parts = [tmp_path / "one.db", tmp_path / "two.db"]
    for number, part in enumerate(parts):
        make(part, chain()[number::2])
    code, out, err = shell(*parts, FILL, "--json")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["explanation"]["steps"]) == 5


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 1, "give the id of an event behind the files, or --at"),
        (["feed17"], 1, "'feed17' is not the id of an event, such as"),
        ([BEFORE], 1, "is not recorded"),
        ([FILL, "--type", "FILL"], 1, "--type and --key belong to --at"),
        (["--at", "10:31"], 1, "no event is recorded at 10:31 (UTC); the nearest: "),
        (["--at", "soon"], 1, "at='soon'"),
        ([FILL, "--most", "0"], 1, "at least 1"),
        ([FILL, "--tz", "Mars"], 1, "is no time zone"),
        ([FILL, "--often"], 2, "No such option: --often"),
        ([FILL, "--at", "10:31"], 1, f"{FILL} does not exist"),
    ],
)
def test_the_shell_says_in_a_sentence_what_is_wrong(
    path: Path, arguments: Sequence[str], code: int, said: str
) -> None:
    make(path, chain())
    zone = [] if "--tz" in arguments else ["--tz", "UTC"]
    result = shell(path, *arguments, *zone)
    assert (result[0], result[1]) == (code, "")
    assert said in result[2]
    assert "Traceback" not in result[2]


def test_the_shell_says_that_a_file_is_damaged(path: Path) -> None:
    make(path, chain())
    alter(path, "UPDATE events SET time = time + 1 WHERE seq = 2")
    code, out, err = shell(path, FILL)
    assert (code, out) == (1, "")
    assert "is damaged from offset 5 on" in err


async def test_explain_beside_a_loop_may_be_left_to_a_thread(path: Path) -> None:
    async with writing(path) as ledger:
        await ledger.write(chain())
    assert len((await asyncio.to_thread(explain, path, FILL)).steps) == 5
    with Journal(path) as journal:
        assert journal.verify() == 6
