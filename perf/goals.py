"""The goals of aiobus relative to other systems, and whether a run meets them.

Owns the goals. Only ratios of one run are judged, but for the two that a desk asks for in seconds.
Must not know how anything was measured.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from perf.results import Results
from perf.systems import BASE

__all__ = ["GOALS", "Goal", "Verdict", "judge"]

Find = Callable[[Results], float | None]


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio, what it has to be, and what would be better still."""

    text: str
    find: Find
    limit: float
    stretch: float | None = None
    is_least: bool = True
    unit: str = "x"

    def reached(self, value: float | None, limit: float | None) -> bool:
        """True when there is a value, and it is as good as the limit."""
        if value is None or limit is None:
            return False
        return value >= limit if self.is_least else value <= limit


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and what was found."""

    goal: Goal
    value: float | None
    """None: it was not measured."""

    @property
    def held(self) -> bool:
        """True when it was achieved."""
        return self.goal.reached(self.value, self.goal.limit)

    @property
    def stretched(self) -> bool:
        """True when more than the goal was achieved."""
        return self.held and self.goal.reached(self.value, self.goal.stretch)

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
TIMES = "processor time"
LATENCY = "latency, 5,000/s"
WITHIN = "in process"
WITHIN_LATENCY = "in process, latency, 5,000/s"
MINE = "aiobus"
INPROC = "aiobus, inproc"
BEFORE = f"aiobus at {BASE}"
HALT = "halt among 50,000 quotes/s"
NEIGHBOURS = "a healthy subscriber beside others"
AWAY = "to another process"
CALLS = "one event's way to a callback"
BROKERS = ["nats-py", "redis-py", "zenoh"]
SIDES = ("publisher_us", "subscriber_us")


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


def _paired(name: str, one: tuple[str, str], other: tuple[str, str]) -> Find:
    """Round by round; `one` and `other` are case and system."""
    return lambda results: results.paired((*one, name), (*other, name))


def _plain(case: str, system: str, name: str) -> Find:
    return lambda results: results.median(case, system, name)


def _worst(case: str, system: str, name: str) -> Find:
    """Of all rounds: a median would hide a loss."""

    def find(results: Results) -> float | None:
        spread = results.spread(case, system, name)
        return spread[1] if spread else None

    return find


def _sides(results: Results, case: str, system: str) -> list[float] | None:
    """Microseconds of processor time an event: of the publisher, and of the subscriber."""
    found = [results.median(case, system, name) for name in SIDES]
    sides = [value for value in found if value is not None]
    return sides if len(sides) == len(SIDES) else None


def _slower(mine: str, other: str, case: str) -> Find:
    """How much less the slower side of `mine` takes than that of `other`."""

    def find(results: Results) -> float | None:
        my, its = (_sides(results, case, system) for system in (mine, other))
        return max(its) / max(my) if my and its else None

    return find


def _together(system: str, case: str, other: str) -> Find:
    """Both sides in one case beside both in another."""

    def find(results: Results) -> float | None:
        my, its = (_sides(results, each, system) for each in (case, other))
        return sum(my) / sum(its) if my and its else None

    return find


def _beside(
    text: str, case: str, limits: dict[str, tuple[float, float | None]], mine: str = MINE
) -> list[Goal]:
    """Throughput in one case beside each of these, with its goal and stretch."""
    return [
        Goal(f"{text} beside {name}", _against(case, "rate", mine, system), limit, stretch)
        for system, (limit, stretch) in limits.items()
        for name in [f"literal {system}" if system == "zmq.asyncio" else system]
    ]


def _most(text: str, find: Find, limit: float, stretch: float | None = None) -> Goal:
    return Goal(text, find, limit, stretch, is_least=False)


def _counted(text: str, way: str, name: str, limit: float) -> Goal:
    return Goal(text, _plain(CALLS, way, name), limit, is_least=False, unit="")


GOALS = [
    *_beside(
        "throughput",
        ONE,
        {"zmq.asyncio": (7, 9), "nats-py": (1.9, 2.5), "zenoh": (1.7, 2), "redis-py": (8, None)},
    ),
    *(
        _most(
            f"processor time of the {side} for an event beside {BASE}",
            _paired(f"{side}_us", (TIMES, MINE), (TIMES, BEFORE)),
            0.75,
            stretch,
        )
        for side, stretch in (("publisher", 0.70), ("subscriber", 0.65))
    ),
    Goal(
        "processor time of the codec floor beside that of aiobus, slower side to slower side",
        _slower(MINE, "codec floor", ONE),
        0.43,
        0.50,
    ),
    Goal("100 keys x 4 types beside 1 key", _between(MINE, "rate", MANY, ONE), 0.8),
    Goal(
        "throughput on asyncio's own loop beside uvloop",
        _against(ONE, "rate", "aiobus, asyncio loop", MINE),
        0.6,
    ),
    *_beside(
        "order books of 2 x 20 levels",
        "nested: book of 2 x 20",
        {"zmq.asyncio": (2, 2.5), "nats-py": (1.2, 1.5), "zenoh": (1, 1.3)},
    ),
    *_beside(
        "order books of 2 x 250 levels",
        "nested: book of 2 x 250",
        {"zmq.asyncio": (1.2, 1.3), "nats-py": (1, 1.2), "zenoh": (1, 1.2)},
    ),
    _most(
        "processor time of the subscriber for a book of 2 x 20, 6,000 waiting beside 100",
        _paired("subscriber_us", ("6,000 books waiting", MINE), ("100 books waiting", MINE)),
        1.15,
        1.05,
    ),
    *_beside("payload of 1 KiB", "payload of 1 KiB", {"zenoh": (1, 1.3)}),
    *_beside(
        "payload of 10 KiB", "payload of 10 KiB", {"zmq.asyncio": (1.2, 1.5), "zenoh": (0.7, 1)}
    ),
    *_beside("fan-in of 8 publishers", "fan-in of 8", {"nats-py": (1.2, 1.6)}),
    _most(
        "processor time of both sides for an event, 8 publishers beside 1",
        _together(MINE, "fan-in of 8", "fan-in of 1"),
        1.4,
        1.2,
    ),
    _most(
        "latency p50 at 5,000/s beside literal zmq.asyncio",
        _against(LATENCY, "p50", MINE, "zmq.asyncio"),
        1.1,
    ),
    _most(
        "latency p50 at 5,000/s beside the best of nats-py, redis-py and zenoh",
        lambda results: _ratio(
            results.median(LATENCY, MINE, "p50"), results.best(LATENCY, BROKERS, "p50")
        ),
        0.95,
        0.85,
    ),
    Goal(
        "latency p50 at 5,000/s with uvloop beside asyncio's own loop",
        _against(LATENCY, "p50", MINE, "aiobus, asyncio loop"),
        0.6,
    ),
    Goal(
        "in process beside blinker with the same codec",
        _against(WITHIN, "rate", INPROC, "blinker"),
        1.0,
        1.3,
    ),
    *_beside("in process", WITHIN, {"pyee": (2, 2.5), "bubus": (100, None)}, INPROC),
    Goal(
        "in process on asyncio's own loop beside uvloop",
        _against(WITHIN, "rate", "aiobus, inproc, asyncio loop", INPROC),
        0.6,
    ),
    Goal(
        "in process, latency p50",
        _plain(WITHIN_LATENCY, INPROC, "p50"),
        16,
        15,
        is_least=False,
        unit=" us",
    ),
    _most(
        "an event beside 1,000 subscriptions that do not match, to one beside none, in process",
        _paired(
            "publisher_us",
            ("1,000 unmatched, in process", INPROC),
            ("0 unmatched, in process", INPROC),
        ),
        1.1,
    ),
    _most(
        "the same, the subscriptions being in another process",
        _paired("publisher_us", ("1,000 unmatched, across", MINE), ("0 unmatched, across", MINE)),
        1.1,
    ),
    _most(
        "1 symbol of 500: bytes on the wire beside those of the matching events",
        _plain("1 symbol of 500", "aiobus, tcp", "overhead"),
        1.5,
        1.25,
    ),
    Goal(
        "halt among 50,000 quotes/s of another process, p99",
        _plain(HALT, MINE, "p99"),
        12,
        8,
        is_least=False,
        unit=" ms",
    ),
    Goal("quotes/s beside the halts", _plain(HALT, MINE, "rate"), 47_500, unit=""),
    Goal("halts lost", _worst(HALT, MINE, "lost"), 0, is_least=False, unit=""),
    _most(
        "p99 of a healthy subscriber, one frozen and one slow beside it, to a second healthy one",
        _paired("p99", (NEIGHBOURS, "frozen and slow"), (NEIGHBOURS, "healthy")),
        1.1,
    ),
    Goal(
        "throughput beside one frozen and one slow subscriber, to that beside none",
        _paired("rate", (NEIGHBOURS, "frozen and slow"), (NEIGHBOURS, "none")),
        0.9,
    ),
    Goal(
        "events that the healthy one has lost then, or got out of order",
        _worst(NEIGHBOURS, "frozen and slow", "lost"),
        0,
        is_least=False,
        unit="",
    ),
    _most(
        "switched-off logging beside none",
        _paired("us", ("logging", "with"), ("logging", "without")),
        1.02,
    ),
    _counted("a lone event to another process: modules", f"lone, {AWAY}", "modules", 14),
    _counted("a lone event to another process: Python calls", f"lone, {AWAY}", "calls", 55),
    _counted("a lone event in process: modules", f"lone, {WITHIN}", "modules", 8),
    _counted("a lone event in process: Python calls", f"lone, {WITHIN}", "calls", 30),
    _counted("an event of a burst in process: Python calls", f"burst, {WITHIN}", "calls", 10),
]
