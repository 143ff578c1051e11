"""What `explain` says of hops between hosts whose clocks differed."""

from pathlib import Path
from typing import Any

import pytest
from actors import Nursery
from journals import EPOCH, START, entry, make
from test_clock_skew import bot_and_feed, said

from aiobus import Journal, explain, explain_hops
from aiobus.event import event_id
from aiobus.journal.format import Entry

TRADE, SIGNAL = event_id("feed", EPOCH, 1), event_id("bot", EPOCH, 1)


def skew(seconds: float, *, name: str = "bot", time: float = START - 60, seq: int = 1) -> Entry:
    """What a recorder has measured of the clock of a peer."""
    data = {"name": name, "epoch": EPOCH, "skew": seconds, "error": 0.002}
    return entry(seq, source="recorder", type="aiobus.clock_skew", time=time, data=data)


def hop(seconds: float) -> list[Entry]:
    """A trade of the feed, and a signal of the bot with a later time."""
    return [
        entry(1, source="feed", time=START),
        entry(1, source="bot", type="SIGNAL", time=START + seconds, cause=TRADE),
    ]


def clocks(path: Path) -> str:
    """What is said of the hop."""
    explanation = explain(path, SIGNAL)
    assert (explanation.to_dict()["steps"][-1]["clocks"] or "! ") in f"{explanation}! "
    return explanation.steps[-1].clocks


def test_a_negative_hop_is_said_to_come_of_the_clocks(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    make(path, [skew(-0.5), skew(0.25, name="feed", seq=2), *hop(-0.625)])
    assert clocks(path) == (
        "the clock of bot was 750.00 ms behind that of feed, right to 4.00 ms, as recorder has"
        " measured: without that the hop is 125.00 ms, and it is below 0 for no other reason"
    )


def test_a_hop_that_seems_long_is_told_without_the_skew(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    make(path, [skew(0.5), skew(0.0, name="feed", seq=2), *hop(0.625)])
    said = clocks(path)
    assert "500.00 ms ahead of that of feed" in said
    assert said.endswith("without that the hop is 125.00 ms")


def test_of_one_clock_that_was_measured_it_is_said_that_the_other_was_not(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    make(path, [skew(0.5), *hop(0.625)])
    assert clocks(path) == (
        "the clock of bot was 500.00 ms ahead of that of recorder, right to 2.00 ms; of that of"
        " feed nothing is recorded"
    )


@pytest.mark.parametrize(
    "before",
    [
        [],
        [skew(0.5, name="other")],
        [skew(0.5, time=START + 60)],
        [entry(1, source="recorder", type="aiobus.clock_skew", time=START - 60, data=["forged"])],
    ],
)
def test_what_no_file_says_is_not_made_up(tmp_path: Path, before: list[Entry]) -> None:
    path = tmp_path / "desk.db"
    make(path, [*before, *hop(-0.625)])
    assert clocks(path) == ""


def test_the_last_that_was_measured_before_an_event_counts(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    later: Any = [skew(3.0, time=START + 60, seq=3)]
    make(path, [skew(9.0), skew(0.5, time=START - 30, seq=2), *hop(0.625), *later])
    assert "500.00 ms ahead of" in clocks(path)


def test_the_percentiles_of_hops_name_the_clocks_that_were_wrong(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    make(path, [skew(0.5), skew(-2.0, time=START - 30, seq=2), *hop(0.625)])
    hops = explain_hops(path)
    (sentence,) = hops.clocks
    assert sentence.startswith("the clock of bot was 2.000 s behind that of recorder")
    assert f"! {sentence}" in str(hops)


@pytest.mark.paired
async def test_a_skew_that_was_known_before_is_in_the_recording(
    nursery: Nursery, url: str, tmp_path: Path
) -> None:
    bot, _ = await bot_and_feed(nursery, url, 30.0)
    await said(bot, 1)
    record = "async with aiobus.record(bus, path) as recording:\n    await recording.flush()"
    await bot(record, path=str(tmp_path / "desk.db"))
    with Journal(tmp_path / "desk.db") as journal:
        (event,) = [each for _, each in journal.read() if each.type == "aiobus.clock_skew"]
    assert event.data["name"] == "feed"
    assert event.data["skew"] == pytest.approx(30, abs=event.data["error"] + 1e-5)
