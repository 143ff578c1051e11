"""`make soak`: the counts that the issue asks for, a mix of faults, and what came of it in writing.

`SOAK_MINUTES=20 make soak` fits as many rounds into that time as it can. A round that fails is
recorded with its seed and its ledgers are kept; the soak goes on, and ends with exit code 1.
"""

import asyncio
import os
import random
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

from actors import nursery as make_nursery

from aiobus.sequence import LEFT
from faults.desk import Scale, desk
from faults.mix import OVER, Mix
from faults.report import render
from faults.scenario import Result, Scenario, play_all, seed

MODULES = ["kill", "freeze", "flood", "lossy", "cancel", "signals", "network"]
"""Of scenarios; one that is not there is left out."""
MIX_SHARE = 0.25
"""Of a soak with a limit: for the mix."""
MIX_SECONDS = 1200.0
CHUNK = 8
"""Rounds of one nursery: it keeps what it knows of every process."""


def scenarios() -> list[Scenario]:
    """All there are."""
    found = []
    for name in MODULES:
        if (Path(__file__).parent / f"test_{name}.py").exists():
            module = vars(import_module(f"faults.test_{name}"))
            found += [each for each in module.values() if isinstance(each, Scenario)]
            found += [
                one
                for each in module.values()
                if isinstance(each, list)
                for one in each
                if isinstance(one, Scenario) and one not in found
            ]
    return found


async def soak(scenario: Scenario, seconds: float, chosen: int) -> Result:
    """As many rounds as there is time for, and at most those that the issue asks for."""
    result = Result()
    end = time.monotonic() + seconds
    number = 0
    while number < scenario.soak and (number == 0 or time.monotonic() < end):
        chunk = range(number, min(number + max(scenario.at_once, 1), scenario.soak))
        try:
            async with make_nursery() as nursery:
                while chunk and chunk.stop - number <= CHUNK:
                    scale = Scale(min(max(0.0, end - time.monotonic()), 600.0), is_timed=True)
                    await play_all(scenario, chunk, chosen, nursery, result, scale)
                    chunk = range(chunk.stop, min(chunk.stop + len(chunk), scenario.soak))
                    if time.monotonic() >= end:
                        break
        except Exception as error:  # noqa: BLE001 - a process that did not end well; go on
            result.fail("failure", f"{scenario.title}: {type(error).__name__}: {error}")
        number = max(number + 1, chunk.start)  # whatever happened, go on
    return result


async def mix(seconds: float, chosen: int) -> tuple[Result, Mix | None]:
    """A mix of faults at random."""
    result, mixed = Result(), None
    try:
        async with (
            make_nursery() as nursery,
            desk(nursery, OVER, random.Random(chosen), Scale(is_timed=True)) as table,
        ):
            where = table.folder
            mixed = Mix(table)
            await mixed.play(seconds)
            verdict = await table.finish()
            verdict.allow([LEFT])
            result.add(verdict, table)
            verdict.check()
            mixed.check()
    except Exception as error:  # noqa: BLE001 - recorded like any other
        result.fail("failure", f"mix, seed {chosen}: {type(error).__name__}: {error}; {where}")
    return result, mixed


def current_commit() -> str:
    """What is about to be soaked; whatever is committed meanwhile is not."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


async def main() -> bool:
    """Soak, write the results down, and tell whether all was well."""
    minutes = float(os.environ.get("SOAK_MINUTES", "inf"))
    chosen, begun, commit = seed(), time.time(), current_commit()
    everything = scenarios()
    unit = minutes * 60 * (1 - MIX_SHARE) / sum(each.weight for each in everything)
    results = {}
    print(f"AIOBUS_SEED={chosen}", flush=True)  # noqa: T201
    for each in everything:
        results[each] = await soak(each, unit * each.weight, chosen)
        print(f"{each.title}: {results[each]}", flush=True)  # noqa: T201
        for text in results[each].failures:
            print(f"  {text}", flush=True)  # noqa: T201
    seconds = min(MIX_SECONDS, minutes * 60 * MIX_SHARE)
    mixed = await mix(seconds, chosen)
    print(f"mix: {mixed[0]}", *mixed[0].failures, sep="\n", flush=True)  # noqa: T201
    text = render(results, mixed, seconds, chosen, begun, commit)
    Path(__file__).with_name("RESULTS.md").write_text(text)
    return not any(each.failures for each in [*results.values(), mixed[0]])


if __name__ == "__main__":
    sys.exit(not asyncio.run(main()))
