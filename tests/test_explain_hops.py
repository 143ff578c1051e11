"""How long each kind of hop took over a session."""

import json
import math
import random
import sqlite3
import tracemalloc
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
from commands import called
from journals import EPOCH, START, entry, make

from aiobus import Hops, JournalCorrupt, explain, explain_hops
from aiobus.event import event_id
from aiobus.journal.format import Entry
from aiobus.replay import hops


def ident(source: str, seq: int) -> str:
    return event_id(source, EPOCH, seq)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "desk.db"


def session(durations: Iterable[float]) -> list[Entry]:
    """Trades, each before a signal that it led to after so many seconds."""
    some = []
    for seq, each in enumerate(durations, 1):
        trade, time = ident("feed", seq), START + seq
        some.append(entry(seq, 1, source="feed", time=time))
        some.append(entry(seq, 1, source="strategy", type="SIGNAL", time=time + each, cause=trade))
    return some


def kinds(found: Hops) -> dict[tuple[str, str], int]:
    return {(hop.cause, hop.effect): hop.count for hop in found.hops}


@pytest.mark.parametrize("count", [1, 2, 9, 100, 1_999])
def test_percentiles_are_exact_to_one_percent_and_the_ends_are_exact(
    path: Path, count: int
) -> None:
    chance = random.Random(count)
    some = session(chance.lognormvariate(-6, 2) for _ in range(count))
    make(path, some)
    took = sorted(
        effect.time - cause.time for cause, effect in zip(some[::2], some[1::2], strict=True)
    )
    found = explain_hops(path)
    assert (found.events, found.without, found.left_out) == (2 * count, 0, 0)
    (hop,) = found.hops
    assert (hop.cause, hop.effect, hop.count) == ("TRADE", "SIGNAL", count)
    assert (hop.least, hop.longest) == (took[0], took[-1])
    for percent, value in ((50, hop.p50), (90, hop.p90), (99, hop.p99)):
        assert value == pytest.approx(took[math.ceil(count * percent / 100) - 1], rel=0.01)


def test_durations_of_zero_and_below_are_counted_as_what_they_are(path: Path) -> None:
    make(path, session([-0.5, 0.0, 0.0, 0.25]))
    (hop,) = explain_hops(path).hops
    assert (hop.least, hop.p50, hop.p90, hop.longest) == (-0.5, 0.0, 0.25, 0.25)


def test_each_pair_of_types_is_a_kind_and_the_most_frequent_is_first(path: Path) -> None:
    more = [entry(seq, type="ORDER", cause=ident("strategy", 1)) for seq in range(100, 110)]
    make(path, [*session([1.0] * 5), *more])
    assert [*kinds(explain_hops(path)).items()] == [
        (("SIGNAL", "ORDER"), 10),
        (("TRADE", "SIGNAL"), 5),
    ]


def test_a_hop_is_counted_though_its_cause_is_recorded_later_or_elsewhere_or_long_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hops, "RECENT", 2)
    some = session([0.5] * 50)
    late, one, two = (tmp_path / f"{name}.db" for name in ("late", "one", "two"))
    make(late, [*some[1::2], *some[::2]])
    make(one, some[1::2])
    make(two, some[::2])
    for paths in (late, [one, two], [two, one]):
        found = explain_hops(paths)
        assert kinds(found) == {("TRADE", "SIGNAL"): 50}
        assert (found.hops[0].least, found.hops[0].longest, found.without) == (0.5, 0.5, 0)
    assert explain_hops(one).without == 50


def test_a_hop_that_is_in_two_files_is_counted_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    some = session([0.5] * 20)
    make(one, some[:30])
    make(two, some[10:])
    assert kinds(explain_hops([one, two])) == {("TRADE", "SIGNAL"): 20}


def test_a_cause_that_is_in_no_file_or_is_no_id_is_counted_as_missing(path: Path) -> None:
    missing = ["the exchange", "feed@gqll7vatq8.999", "broker@1.7", f"feed@1.{10**19 - 1}"]
    make(path, [*session([0.5]), *(entry(50 + n, cause=each) for n, each in enumerate(missing))])
    found = explain_hops(path)
    assert (kinds(found), found.without) == ({("TRADE", "SIGNAL"): 1}, 4)
    assert "4 events have a cause that is not in the files" in str(found)


def test_too_many_kinds_of_hops_are_counted_together(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hops, "MOST_KINDS", 3)
    cause = ident("feed", 1)
    make(path, [entry(1), *(entry(seq, type=f"T{seq}", cause=cause) for seq in range(2, 12))])
    found = explain_hops(path)
    assert (len(found.hops), found.left_out) == (3, 7)
    assert "7 hops are of further kinds" in str(found)


def test_a_damaged_file_gives_no_percentiles(path: Path) -> None:
    make(path, session([0.5] * 20))
    connection = sqlite3.connect(path)
    connection.execute('UPDATE events SET time = time + 1 WHERE "offset" = 30')
    connection.commit()
    connection.close()
    with pytest.raises(JournalCorrupt):
        explain_hops(path)


def peak(path: Path) -> int:
    """Bytes that are needed at most."""
    tracemalloc.start()
    try:
        explain_hops(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hops, "RECENT", 100)
    monkeypatch.setattr("aiobus.journal.scan.CHUNK_EVENTS", 100)
    short, long = tmp_path / "short.db", tmp_path / "long.db"
    chance = random.Random(1)
    make(short, session(chance.random() for _ in range(3_000)))
    make(long, session(chance.random() for _ in range(15_000)))
    peak(short)
    assert peak(long) < peak(short) + 64 * 1024


def test_the_table_has_a_line_for_each_kind(path: Path) -> None:
    make(path, session([0.000_125, 0.25, 2.0]))
    assert str(explain_hops(path)).splitlines() == [
        "hop                 count       least         p50         p90         p99     longest",
        "TRADE -> SIGNAL         3      125 us   250.80 ms     2.000 s     2.000 s     2.000 s",
    ]


def test_a_file_without_causes_has_no_hops(path: Path) -> None:
    make(path, [entry(1), entry(2)])
    found = explain_hops(path)
    assert (found.hops, found.events) == ([], 2)
    assert str(found).splitlines() == [
        "hop     count       least         p50         p90         p99     longest"
    ]


shell = partial(called, "explain")


def test_the_shell_prints_the_hops_with_or_without_an_event(tmp_path: Path) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    some = session([0.5] * 20)
    make(one, some[:30])
    make(two, some[10:])
    asked, table = ident("strategy", 3), str(explain_hops([one, two]))
    assert shell(one, two, "--hops") == (0, f"{table}\n", "")
    assert shell(one, "--hops") == (0, f"{explain_hops(one)}\n", "")
    explanation = explain([one, two], asked, tz="UTC")
    text = f"{explanation}\n\n{table}\n"
    assert shell(one, two, asked, "--hops", "--tz", "UTC") == (0, text, "")
    code, out, _ = shell(one, two, asked, "--hops", "--json", "--tz", "UTC")
    assert code == 0
    assert json.loads(out) == {
        "explanation": explanation.to_dict(),
        "hops": explain_hops([one, two]).to_dict(),
    }
