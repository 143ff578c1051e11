"""A scenario and its rounds: three in `make test`, as many as the issue asks for in `make soak`.

Owns the seeds, the deadline that turns a hang into a failure, and the sums. Must not know what
happens in a round.
"""

import asyncio
import os
import random
import secrets
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

import pytest
from actors import Nursery
from actors import nursery as make_nursery

from faults.desk import Desk, Scale, desk
from faults.oracle import Verdict

__all__ = ["MIXED", "Result", "Scenario", "play_all", "prove", "scenario"]

MIXED = [
    pytest.mark.skipif(sys.platform != "linux", reason="what became of a process is in /proc"),
    pytest.mark.asyncio(loop_factories=["asyncio"]),
    pytest.mark.usefixtures("no_task_is_left"),
]
"""For tests of real processes: these draw lots for their loops, so one run has both, together."""
ROUNDS = 3
HANG_SECONDS = 25.0
"""Beyond what a round takes upon itself; `make test` gives a test 30 s."""


class Violated(Exception):
    """The oracle found what must not be; it is counted already."""


@dataclass(frozen=True)
class Scenario:
    """What happens in one round, and how many rounds there are to be."""

    title: str
    play: Callable[[Desk], Awaitable[None]]
    soak: int
    """Rounds that the issue asks for."""
    transports: tuple[str, ...]
    """Round by round. "keys" is tcp with a keyring."""
    at_once: int
    """Rounds that may share their time, because they mostly wait."""
    weight: int
    """How much of the time of a soak it is to have."""
    gaps: tuple[str, ...]
    """The reasons for which events may be lost in it; for any other, they were there to be had."""


def scenario(
    title: str,
    *,
    soak: int,
    transports: tuple[str, ...] = ("ipc", "tcp", "keys"),
    at_once: int = 1,
    weight: int = 1,
    gaps: Collection[str] = (),
) -> Callable[[Callable[[Desk], Awaitable[None]]], Scenario]:
    """Make a scenario of a coroutine function that plays one round."""
    return lambda play: Scenario(title, play, soak, transports, at_once, weight, tuple(gaps))


@dataclass
class Result:
    """The rounds of one scenario, added up."""

    rounds: int = 0
    sums: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """Each with what is needed to look into it."""

    def add(self, verdict: Verdict, desk: Desk) -> None:
        """One more round."""
        self.rounds += 1
        self.sizes[desk.size] += 1
        for name in ("published", "owed", "delivered", "dropped", "gaps", "lost", "tail"):
            self.sums[name] += getattr(verdict, name)
        self.violations += verdict.violations
        self.recoveries += desk.recoveries

    def __str__(self) -> str:
        sums = ", ".join(f"{count} {name}" for name, count in self.sums.items() if count)
        longest = f"{max(self.recoveries):.2f} s" if self.recoveries else "none"
        return f"{self.rounds} rounds: {sums}; {dict(self.violations)}; longest recovery {longest}"

    def fail(self, kind: str, text: str) -> None:
        """A round that could not be judged."""
        self.violations[kind] += 1
        self.failures.append(text)


async def play(
    scenario: Scenario,
    number: int,
    seed: int,
    nursery: Nursery,
    to: Result,
    scale: Scale,
) -> None:
    """One round. What goes wrong in it is in the result, and nothing is raised."""
    transport = scenario.transports[number % len(scenario.transports)]
    dice = random.Random(f"{seed} {scenario.title} {number}")
    where = f"{scenario.title}, round {number} over {transport}, AIOBUS_SEED={seed}"
    made: list[str] = []
    deadline = HANG_SECONDS + 2 * scale.seconds
    limit = asyncio.timeout(deadline)
    try:
        async with limit, desk(nursery, transport, dice, scale) as table:
            made.append(str(table.folder))
            await scenario.play(table)
            verdict = await table.finish()
            verdict.allow(scenario.gaps)
            to.add(verdict, table)
            if verdict.violations:
                raise Violated("\n".join(verdict.examples))
    except Violated as error:
        to.failures.append(f"{where}: {error}; {made}")
    except Exception as error:  # noqa: BLE001 - recorded, and the soak goes on
        if limit.expired():
            to.fail("hang", f"{where}: not over after {deadline:g} s; {made}")
        else:
            to.fail("failure", f"{where}: {type(error).__name__}: {error}; {made}")


def seed() -> int:
    """Of this run; `AIOBUS_SEED` replays another."""
    return int(os.environ.get("AIOBUS_SEED") or secrets.randbelow(10**6))


async def play_all(
    scenario: Scenario, rounds: range, seed: int, nursery: Nursery, to: Result, scale: Scale
) -> None:
    """Several rounds, as many at once as the scenario allows."""
    slots = asyncio.Semaphore(scenario.at_once)

    async def one(number: int) -> None:
        async with slots:
            await play(scenario, number, seed, nursery, to, scale)

    await asyncio.gather(*map(one, rounds))


async def prove(*scenarios: Scenario, rounds: int = ROUNDS) -> None:
    """Play the rounds that `make test` can afford, of all scenarios at once; raise AssertionError
    for whatever went wrong. `AIOBUS_ROUND` is the first of them, such as one of a soak.
    """
    chosen, first = seed(), int(os.environ.get("AIOBUS_ROUND", "0"))
    print(f"AIOBUS_SEED={chosen}")  # noqa: T201 - pytest shows it when the test fails
    results = [Result() for _ in scenarios]
    async with make_nursery() as nursery:
        await asyncio.gather(
            *(
                play_all(each, range(first, first + rounds), chosen, nursery, result, Scale())
                for each, result in zip(scenarios, results, strict=True)
            )
        )
    for each, result in zip(scenarios, results, strict=True):
        print(each.title, result)  # noqa: T201
    failures = [text for result in results for text in result.failures]
    assert not failures, "\n".join(failures)
