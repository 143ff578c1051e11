"""What the comparison in perf/ says of its figures, without measuring any."""

import ast
import asyncio
import itertools
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from perf import calls, copies, unlogged
from perf.books import NESTED, book, ladder
from perf.cases import ACROSS, FULL, QUICK, Contender, Heat, flow, measure
from perf.desk import Desk, DeskFailed, Layout
from perf.envelope import Event as PeerEvent
from perf.envelope import decode, encode
from perf.goals import GOALS, HALT, judge
from perf.report import insert, lines
from perf.results import Results
from perf.systems import SYSTEMS, Setup, System
from perf.tally import Tally
from perf.trades import symbols, trades
from perf.worker import PUBLISHED, Worker

ROOT = Path(__file__).parent.parent
MACHINE = {"commit": "0", "cpu": "abacus", "cores": 2, "load": [0.0], "system": "", "versions": {}}
CASE = "throughput, 1 key"


def run_of(mine: float, theirs: float) -> Results:
    results = Results(MACHINE, "quick")
    for system, rate in (("aiobus", mine), ("zmq.asyncio", theirs)):
        for noise in (0.5, 1.0, 3.0):
            results.add(CASE, system, {"rate": rate * noise, "lost": 0})
    return results


def test_medians_are_compared_and_a_goal_is_held_from_its_limit_on() -> None:
    (verdict,) = judge(run_of(7.0, 1.0))
    assert (verdict.value, verdict.held, verdict.stretched) == (7.0, True, False)
    (verdict,) = judge(run_of(6.9, 1.0))
    assert not verdict.held


def test_a_stretch_is_in_the_table_and_said_when_it_is_reached_too() -> None:
    (verdict,) = judge(run_of(9.0, 1.0))
    assert (verdict.held, verdict.stretched) == (True, True)
    text = "\n".join(lines(run_of(9.0, 1.0)))
    assert ">= 7x |      9x | 9.00x | held, stretch too |" in text


def test_a_goal_whose_figures_were_not_measured_is_neither_held_nor_missed() -> None:
    assert list(judge(Results(MACHINE, "quick"))) == []
    verdicts = list(judge(Results(MACHINE, "full")))
    assert len(verdicts) == len(GOALS)
    assert not any(verdict.held or verdict.missed for verdict in verdicts)
    assert "| not measured |" in "\n".join(lines(Results(MACHINE, "full")))


def test_a_missed_goal_is_in_the_table_as_missed_and_who_is_absent_is_named() -> None:
    results = run_of(3.0, 1.0)
    results.absent["redis-py"] = "there is no redis-server"
    text = "\n".join(lines(results))
    assert "3.00x | **missed**" in text
    assert "- redis-py: there is no redis-server" in text


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    results = run_of(3.0, 1.0)
    results.write(tmp_path / "quick.json")
    assert Results.read(tmp_path / "quick.json") == results


def test_a_table_replaces_the_one_before_it() -> None:
    text = "before\n<!-- begin quick -->\nold\n<!-- end quick -->\nafter"
    once = insert(text, "quick", [r"new \1"])
    assert once == "before\n<!-- begin quick -->\n\nnew \\1\n\n<!-- end quick -->\nafter"
    assert insert(once, "quick", [r"new \1"]) == once
    with pytest.raises(ValueError, match="no place for a full run"):
        insert(once, "full", [])


def test_every_contender_of_a_run_is_known() -> None:
    named = {contender.system for heat in FULL + QUICK for contender in heat.contenders}
    assert named <= set(SYSTEMS)
    assert len({goal.text for goal in GOALS}) == len(GOALS)


def test_one_lost_halt_of_several_floods_is_a_goal_missed() -> None:
    results = Results(MACHINE, "quick")
    for lost in (0, 1, 0):
        results.add(HALT, "aiobus", {"lost": lost})
    (verdict,) = judge(results)
    assert verdict.missed


def test_the_slower_sides_of_two_systems_are_compared() -> None:
    results = Results(MACHINE, "quick")
    results.add(CASE, "codec floor", {"publisher_us": 0.5, "subscriber_us": 1.0})
    results.add(CASE, "aiobus", {"publisher_us": 2.0, "subscriber_us": 1.5})
    (verdict,) = judge(results)
    assert verdict.value == 0.5


def test_a_copy_has_the_package_of_its_commit_and_the_measuring_code_of_here(
    tmp_path: Path,
) -> None:
    if not copies.is_known("HEAD"):
        pytest.skip("this is no clone")
    copies.copy(tmp_path / "old", "HEAD")
    copies.copy(tmp_path / "here")
    for name in ("old", "here"):
        here = (ROOT / "perf" / "worker.py").read_text()
        assert (tmp_path / name / "perf" / "worker.py").read_text() == here
        assert (tmp_path / name / "aiobus" / "bus.py").exists()


def test_a_commit_that_is_not_in_the_clone_is_named_as_absent() -> None:
    system = replace(SYSTEMS["aiobus"], commit="0" * 40)
    assert system.absence() == f"commit {'0' * 40} is not in this clone"


async def test_a_desk_says_when_it_does_not_measure_the_package_that_it_is_to_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies.copy(tmp_path)
    shutil.rmtree(tmp_path / "aiobus")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where it is found in its place
    with pytest.raises(DeskFailed, match="which is not in"):
        async with Desk.open(SYSTEMS["asyncio.Queue"], Layout(is_shared=True), tmp_path):
            pass


async def test_the_first_event_of_a_window_is_held_until_the_whole_window_is_published(
    tmp_path: Path,
) -> None:
    Tally.create(tmp_path / "tally")
    told = {"system": "asyncio.Queue", "types": ["TRADE"], "keys": ["SYM0000"], "window": 2}
    setup = asdict(Setup(str(tmp_path), [], "inproc"))
    worker = Worker({**told, "setup": setup, "callback": "when all wait"})
    counters, handle = Tally(tmp_path / "tally").counters, worker.callback()
    await worker.mark({})
    for window in (1, 2):
        counters[PUBLISHED] = 2 * window - 1
        held = asyncio.create_task(handle(None))
        await asyncio.wait({held}, timeout=0.02)
        assert counters[0] == 2 * window - 2
        counters[PUBLISHED] = 2 * window
        await held
        await handle(None)  # the second one is not held
        assert counters[0] == 2 * window


async def test_whole_windows_are_handled_whole_in_each_round() -> None:
    layout = Layout(is_shared=True, callback="when all wait", window=20)
    async with asyncio.timeout(20), Desk.open(SYSTEMS["aiobus, inproc"], layout) as desk:
        for _ in range(2):
            measured = await desk.throughput(60.0, 100)
            assert (measured["handled"], measured["lost"]) == (100, 0)


async def test_an_absent_system_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYSTEMS, "pigeon", System("pigeon", "pigeon", ("no-such-carrier",)))
    results = Results()
    await measure(Heat((Contender(CASE, "pigeon", Layout(), flow(0.1)),)), results)
    assert results.absent == {"pigeon": "no-such-carrier is not installed"}


@pytest.mark.slow
async def test_a_system_that_breaks_is_noted_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = replace(SYSTEMS["asyncio.Queue"], name="broken", loop="no such loop")
    monkeypatch.setitem(SYSTEMS, "broken", broken)
    results = Results()
    contenders = tuple(
        Contender(CASE, name, Layout(is_shared=True), flow(0.01))
        for name in ("broken", "asyncio.Queue")
    )
    async with asyncio.timeout(20):
        await measure(Heat(contenders, 1), results)
    assert list(results.failed) == [f"{CASE} / broken"]
    assert results.median(CASE, "asyncio.Queue", "lost") == 0


def test_every_symbol_comes_with_every_type_and_every_neighbour_differs() -> None:
    events = list(itertools.islice(trades(["A", "B", "C", "D"], symbols(100)), 400))
    assert len({(event.type, event.key) for event in events}) == 400
    assert all(one.key != other.key for one, other in itertools.pairwise(events))
    assert set(events[0].data) == {"symbol", "price", "qty", "side"}


def test_the_codec_of_the_peers_is_exact() -> None:
    event = next(trades(["TRADE"], ["SYM0000"]))
    decoded = decode(encode(event))
    assert all(getattr(decoded, name) == getattr(event, name) for name in PeerEvent.__slots__)


def test_the_slowest_subscriber_is_the_one_that_counts(tmp_path: Path) -> None:
    Tally.create(tmp_path / "tally")
    one, other = Tally(tmp_path / "tally"), Tally(tmp_path / "tally")
    one.counters[0], one.counters[1] = 7, 5
    assert other.least([0, 1]) == 5


def test_no_line_of_the_log_that_is_usually_off_is_left_in_the_copy(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "aiobus", tmp_path / "aiobus")
    assert unlogged.delete(tmp_path / "aiobus") > 20
    for path in (tmp_path / "aiobus").rglob("*.py"):
        text = ast.unparse(ast.parse(path.read_text()))
        assert "log.debug" not in text
        assert "isEnabledFor" not in text


@pytest.mark.parametrize("shape", NESTED)
def test_nested_events_are_of_their_shape_and_differ(shape: str) -> None:
    taken = list(itertools.islice(trades(["BOOK"], ["A", "B"], shape=shape), 4))
    assert [event.key for event in taken] == ["A", "B", "A", "B"]
    first, second, *_ = (event.data for event in taken)
    assert first.keys() == second.keys() != {"symbol", "price", "qty", "side"}
    assert {**first, "symbol": "B"} != second


def test_a_book_has_its_levels_on_both_sides_as_lists_and_as_dicts() -> None:
    lists, dicts = book(500), ladder(500)
    assert [len(lists[side]) for side in ("bids", "asks")] == [500, 500]
    for side in ("bids", "asks"):
        assert lists[side] == [[level["price"], level["quantity"]] for level in dicts[side]]


def test_every_nested_shape_is_compared_with_all_systems() -> None:
    compared = {(each.layout.shape, each.system) for heat in FULL for each in heat.contenders}
    assert {(shape, system) for shape in NESTED for system in ACROSS} <= compared


def way(*modules: str) -> calls.Way:
    found = calls.Way()
    found.calls = [(module, "f") for module in modules]
    return found


def test_a_way_is_counted_in_calls_modules_and_changes_of_module() -> None:
    found = way("bus", "codec", "codec", "bus").figures(1)
    assert found == {"modules": 2, "calls": 4, "c_calls": 0, "changes": 2}


def test_the_commonest_way_is_told_and_of_equals_the_shortest() -> None:
    one, two, three = way("bus"), way("bus", "bus"), way("bus", "bus", "bus")
    assert calls.commonest([three, two, three, two, one]) is two


async def test_a_way_has_the_package_alone_and_is_longer_to_another_process() -> None:
    (near,), (far,) = await calls.ways(True, 1, 1), await calls.ways(False, 1, 1)
    assert len(far.calls) > len(near.calls) > 10
    for found in (near, far):
        # Twice where it let the loop turn: going on is a call as well.
        assert [name for _, name in found.calls].count("AsyncEventBus.publish") in (1, 2)
        assert all((ROOT / "aiobus" / f"{module}.py").exists() for module, _ in found.calls)
        assert found.c_calls > 10


async def test_of_a_burst_every_event_is_counted() -> None:
    (found,) = await calls.ways(True, 50, 1)
    # One that lets the loop turn goes on afterwards, which is a call as well.
    assert 50 <= [name for _, name in found.calls].count("AsyncEventBus.publish") < 100
    assert found.figures(50)["calls"] == len(found.calls) / 50
