"""What aiobus has to achieve beside the others, and whether it did.

Owns the goals. Only ratios of one run are judged, but for the two that a desk asks for in seconds.
Must not know how anything was measured.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from perf.results import Results

__all__ = ["GOALS", "Goal", "Verdict", "judge"]

Find = Callable[[Results], float | None]


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio, and what it has to be."""

    text: str
    find: Find
    limit: float
    is_least: bool = True
    unit: str = "x"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and what was found."""

    goal: Goal
    value: float | None
    """None: it was not measured."""

    @property
    def held(self) -> bool:
        """True when it was achieved."""
        value, limit = self.value, self.goal.limit
        return value is not None and (value >= limit if self.goal.is_least else value <= limit)

    @property
    def missed(self) -> bool:
        """True when it was measured and not achieved."""
        return self.value is not None and not self.held


def judge(results: Results) -> Iterator[Verdict]:
    """Each goal that this run can tell of; of a full run every one, measured or not."""
    for goal in GOALS:
        value = goal.find(results)
        if value is not None or results.mode == "full":
            yield Verdict(goal, value)


ONE = "throughput, 1 key"
MANY = "throughput, 100 keys x 4 types"
LATENCY = "latency, 5,000/s"
WITHIN = "in process"
WITHIN_LATENCY = "in process, latency, 5,000/s"
MINE = "aiobus"
INPROC = "aiobus, inproc"
HALT = "halt among 50,000 quotes/s"
BROKERS = ["nats-py", "redis-py", "zenoh"]


def _ratio(mine: float | None, other: float | None) -> float | None:
    return mine / other if mine is not None and other else None


def _against(case: str, name: str, mine: str, other: str) -> Find:
    return lambda results: _ratio(
        results.median(case, mine, name), results.median(case, other, name)
    )


def _between(system: str, name: str, case: str, other: str) -> Find:
    return lambda results: _ratio(
        results.median(case, system, name), results.median(other, system, name)
    )


def _paired(system: str, name: str, case: str, other: str) -> Find:
    return lambda results: results.paired((case, system, name), (other, system, name))


def _plain(case: str, system: str, name: str) -> Find:
    return lambda results: results.median(case, system, name)


GOALS = [
    Goal("throughput beside literal zmq.asyncio", _against(ONE, "rate", MINE, "zmq.asyncio"), 15.0),
    Goal("throughput beside zenoh", _against(ONE, "rate", MINE, "zenoh"), 4.0),
    Goal("throughput beside nats-py", _against(ONE, "rate", MINE, "nats-py"), 4.0),
    Goal("throughput beside redis-py", _against(ONE, "rate", MINE, "redis-py"), 8.0),
    Goal("throughput beside the codec floor", _against(ONE, "rate", MINE, "codec floor"), 0.6),
    Goal("100 keys x 4 types beside 1 key", _between(MINE, "rate", MANY, ONE), 0.8),
    Goal(
        "throughput on asyncio's own loop beside uvloop",
        _against(ONE, "rate", "aiobus, asyncio loop", MINE),
        0.6,
    ),
    Goal(
        "latency p50 at 5,000/s beside literal zmq.asyncio",
        _against(LATENCY, "p50", MINE, "zmq.asyncio"),
        1.1,
        is_least=False,
    ),
    Goal(
        "latency p50 at 5,000/s beside the best of nats-py, redis-py and zenoh",
        lambda results: _ratio(
            results.median(LATENCY, MINE, "p50"), results.best(LATENCY, BROKERS, "p50")
        ),
        0.75,
        is_least=False,
    ),
    Goal(
        "latency p50 at 5,000/s with uvloop beside asyncio's own loop",
        _against(LATENCY, "p50", MINE, "aiobus, asyncio loop"),
        0.6,
    ),
    Goal(
        "in process beside blinker with the same codec",
        _against(WITHIN, "rate", INPROC, "blinker"),
        0.8,
    ),
    Goal(
        "in process on asyncio's own loop beside uvloop",
        _against(WITHIN, "rate", "aiobus, inproc, asyncio loop", INPROC),
        0.6,
    ),
    Goal("in process beside pyee", _against(WITHIN, "rate", INPROC, "pyee"), 2.5),
    Goal("in process beside bubus", _against(WITHIN, "rate", INPROC, "bubus"), 100.0),
    Goal(
        "in process, latency p50",
        _plain(WITHIN_LATENCY, INPROC, "p50"),
        15.0,
        is_least=False,
        unit=" us",
    ),
    Goal(
        "an event beside 1,000 subscriptions that do not match, to one beside none, in process",
        _paired(INPROC, "publisher_us", "1,000 unmatched, in process", "0 unmatched, in process"),
        1.1,
        is_least=False,
    ),
    Goal(
        "the same, the subscriptions being in another process",
        _paired(MINE, "publisher_us", "1,000 unmatched, across", "0 unmatched, across"),
        1.1,
        is_least=False,
    ),
    Goal(
        "1 symbol of 500: bytes on the wire beside those of the matching events",
        _plain("1 symbol of 500", "aiobus, tcp", "overhead"),
        1.2,
        is_least=False,
    ),
    Goal(
        "halt among 50,000 quotes/s of another process, p99",
        _plain(HALT, MINE, "p99"),
        20.0,
        is_least=False,
        unit=" ms",
    ),
    Goal("quotes/s beside the halts", _plain(HALT, MINE, "rate"), 47_500, unit=""),
    Goal("halts lost", _plain(HALT, MINE, "lost"), 0.0, is_least=False, unit=""),
    Goal(
        "switched-off logging beside none",
        lambda results: results.paired(("logging", INPROC, "with"), ("logging", INPROC, "without")),
        1.02,
        is_least=False,
    ),
]
