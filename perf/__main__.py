"""aiobus beside its alternatives on the same work in the same run. Run: python -m perf [--quick]

Owns the order of a run and where its results go. Exits with 1 when a goal is missed or a contender
broke; a full run then shows where aiobus's time goes.
"""

import argparse
import asyncio
import contextlib
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import uvloop

from perf import calls, frozen, overload, unlogged
from perf.cases import FULL, QUICK, Heat, measure
from perf.goals import BEFORE, CALLS, HALT, MINE, NEIGHBOURS, judge
from perf.machine import describe
from perf.profile import profiles
from perf.report import lines
from perf.results import FOLDER, Results
from perf.systems import SYSTEMS

FLOODS = 3


async def run(heats: list[Heat], results: Results, only: str, path: Path) -> None:
    """Every heat whose cases contain `only`. What is known is written after each: a long run that
    is ended half way leaves what it has measured.
    """
    start = time.monotonic()
    for heat in heats:
        contenders = tuple(each for each in heat.contenders if only in each.case)
        if not contenders:
            continue
        begin = time.monotonic()
        await measure(replace(heat, contenders=contenders), results)
        results.seconds = time.monotonic() - start
        results.write(path)
        cases = dict.fromkeys(each.case for each in contenders)
        print(f"{time.monotonic() - begin:6.1f} s  {', '.join(cases)}", file=sys.stderr)


async def ways(results: Results) -> None:
    """How many calls an event makes, and how many it made before."""
    with noting(results, CALLS):
        for system in (SYSTEMS[MINE], SYSTEMS[BEFORE]):
            if reason := system.absence():
                results.absent[system.name] = reason
                continue
            suffix = "" if system.name == MINE else f", at {system.commit}"
            for name, counts in (await calls.measure(system.folder())).items():
                results.add(CALLS, name + suffix, counts)


async def others(results: Results) -> None:
    """Run the measurements that compare no systems. A failure is noted, and the rest goes on."""
    with noting(results, HALT):
        for _ in range(FLOODS):
            results.add(HALT, MINE, await overload.flood("uvloop"))
            results.add(HALT, "aiobus, asyncio loop", await overload.flood("asyncio"))
    with noting(results, "logging"):
        costs, _ = await unlogged.measure()
        for name, values in costs.items():
            for value in values:
                results.add("logging", name, {"us": value})
    with noting(results, NEIGHBOURS):
        for loop in ("uvloop", "asyncio"):
            suffix = "" if loop == "uvloop" else ", asyncio loop"
            for neighbour, rounds in (await frozen.rounds(loop)).items():
                for each in rounds:
                    results.add(NEIGHBOURS, neighbour + suffix, each)


@contextlib.contextmanager
def noting(results: Results, case: str) -> Iterator[None]:
    """Note what goes wrong inside: minutes of measuring are not to be lost by it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - it is in the report, and the exit code is 1
        results.failed[case] = traceback.format_exception_only(error)[-1].strip()


def draw(results: Results, folder: Path) -> None:
    """The pictures, where they can be drawn."""
    try:
        from perf import plots
    except ImportError as error:
        print(f"no pictures: {error}", file=sys.stderr)
    else:
        plots.draw(results, folder)


def main() -> int:
    """Measure, write, print, judge."""
    logging.getLogger("aiobus").setLevel(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="beside 3b5aca6 and the main peers, about 2 minutes"
    )
    parser.add_argument("--only", default="", help="cases whose name contains this, not on record")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    given = parser.parse_args()
    begin = time.monotonic()
    mode = "part" if given.only else "quick" if given.quick else "full"
    results = Results(describe(), mode)
    path = given.out or FOLDER / f"{mode}.json"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(QUICK if given.quick else FULL, results, given.only, path))
        if mode != "part":
            runner.run(ways(results))
        if mode == "full":
            runner.run(others(results))
        missed = [verdict for verdict in judge(results) if verdict.missed]
        if missed and mode == "full":
            with noting(results, "profiles"):
                results.profiles = runner.run(profiles())
    results.seconds = time.monotonic() - begin
    results.write(path)
    if mode == "full":
        draw(results, path.parent)
    print("\n".join(lines(results)))
    return int(bool(missed or results.failed))


if __name__ == "__main__":
    sys.exit(main())
