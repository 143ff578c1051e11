"""The cases: what is measured, for which systems, and how often.

Owns the cases and the interleaving: all systems of a case are up at once and idle but for the one
whose turn it is, round by round in changing order, so that a machine that drifts favours no system.
Must not know how a system works or what would be good.
"""

import contextlib
import random
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from perf.books import NESTED
from perf.desk import Desk, DeskFailed, Layout
from perf.envelope import encode
from perf.results import Results
from perf.systems import BASE, SYSTEMS
from perf.trades import symbols, trades

__all__ = ["FULL", "QUICK", "Contender", "Heat", "measure"]

Measured = dict[str, Any]
WARM_SECONDS = 0.3
FOUR_TYPES = ("TRADE", "QUOTE", "BAR", "ORDER")
SYMBOLS = 500
UNMATCHED = (0, 1, 10, 100, 1_000)
MILLION = 1_000_000
WAITING = 12_000
"""Events of a round in which whole windows wait: a multiple of each window."""
WAITING_SECONDS = 60.0
"""More than they take."""
BUBUS_RATE = 50
"""A second. It handles a few hundred at most, so at 1,000 its latency would be that of its queue.
"""


@dataclass(frozen=True, slots=True)
class Contender:
    """A system in a case: who is there, and what is asked each round."""

    case: str
    system: str
    layout: Layout
    ask: Callable[[Desk], Awaitable[Measured]]

    def __str__(self) -> str:
        return f"{self.case} / {self.system}"

    async def warm(self, desk: Desk) -> None:
        """The first turn of all, which is of no interest."""
        if self.layout.callback == "when all wait":
            await self.ask(desk)  # a window must be whole
        else:
            await flow(WARM_SECONDS)(desk)


@dataclass(frozen=True, slots=True)
class Heat:
    """Contenders whose rounds are interleaved, because they are compared."""

    contenders: tuple[Contender, ...]
    rounds: int = 5


async def measure(heat: Heat, results: Results) -> None:
    """Run a heat. A contender that is absent or breaks is noted, and the others go on."""
    async with contextlib.AsyncExitStack() as stack:
        desks: dict[Contender, Desk] = {}
        for contender in heat.contenders:
            system = SYSTEMS[contender.system]
            if reason := system.absence():
                results.absent[system.name] = reason
                continue
            with _noting(results, contender):
                desk = await stack.enter_async_context(Desk.open(system, contender.layout))
                if heat.rounds > 1:
                    await contender.warm(desk)
                desks[contender] = desk
                results.figures.setdefault(contender.case, {})  # cases stay in this order
        for number in range(heat.rounds):
            turns = [each for each in heat.contenders if each in desks]
            random.Random(number).shuffle(turns)  # a rotation would leave all their neighbours
            for contender in turns:
                with _noting(results, contender, desks):
                    measured = await contender.ask(desks[contender])
                    results.add(contender.case, contender.system, measured)


@contextlib.contextmanager
def _noting(
    results: Results, contender: Contender, desks: dict[Contender, Desk] | None = None
) -> Iterator[None]:
    try:
        yield
    except (DeskFailed, OSError, TimeoutError) as error:
        said = traceback.format_exception_only(error)[-1].strip()
        results.failed[str(contender)] = said
        if desks is not None:
            del desks[contender]


# What a desk can be asked.


def flow(seconds: float, count: int | None = None) -> Callable[[Desk], Awaitable[Measured]]:
    """Full rate."""

    async def ask(desk: Desk) -> Measured:
        if not desk.system.delivers:
            return await desk.codec(seconds)
        return await desk.throughput(seconds, count)

    return ask


def pace(rate: float, seconds: float) -> Callable[[Desk], Awaitable[Measured]]:
    """A steady rate."""

    async def ask(desk: Desk) -> Measured:
        return await desk.latency(BUBUS_RATE if desk.system.name == "bubus" else rate, seconds)

    return ask


async def one_symbol(desk: Desk) -> Measured:
    """Full rate, of which one symbol is wanted; how many bytes come for one of encoding."""
    measured = await desk.throughput(1.0, share=SYMBOLS)
    wanted = next(trades(desk.layout.types, desk.layout.keys))
    matching = measured["handled"] / SYMBOLS
    measured["bytes_each"] = measured["received"] / matching
    measured["overhead"] = measured["bytes_each"] / len(encode(wanted))
    measured["subscriber_us"] = 1e6 * measured["subscriber_cpu"] / matching
    return measured


async def waiting(desk: Desk) -> Measured:
    """So many events that each window is whole."""
    return await desk.throughput(WAITING_SECONDS, WAITING)


async def million(desk: Desk) -> Measured:
    """A million events; by how much the memory of each process has grown then."""
    before = (await desk.publishers[0].do("mark"))["rss"]
    server = (await desk.throughput(0.1))["server_rss"]
    measured = await desk.throughput(40.0, MILLION)
    measured["publisher_growth"] = measured["publisher_rss"] - before
    measured["server_growth"] = measured["server_rss"] - server
    return measured


# The cases.

BEFORE = f"aiobus at {BASE}"
BEFORE_INPROC = f"aiobus at {BASE}, inproc"
ACROSS = ("aiobus", "zmq.asyncio", "nats-py", "redis-py", "zenoh")
MORE = ("aiobus, tcp", "aiobus, asyncio loop", "pyzmq, blocking", "codec floor")
WITHIN = (
    *("aiobus, inproc", "aiobus, inproc, asyncio loop", "blinker", "blinker, no codec", "pyee"),
    *("bubus", "asyncio.Queue"),
)
TCP = ("aiobus, tcp", "zmq.asyncio, tcp", "nats-py", "redis-py, tcp", "zenoh")

ONE = Layout()
TIMED = Layout(callback="time")
SHARED = Layout(is_shared=True)
SHARED_TIMED = Layout(is_shared=True, callback="time")
KEYS = Layout(types=FOUR_TYPES, keys=tuple(symbols(100)))
FILTER = Layout(keys=tuple(symbols(SYMBOLS)), only=("SYM0000",))


def _publishers(count: int) -> Layout:
    """Each with a symbol of its own."""
    names = tuple(symbols(count))
    return Layout(publishers=count, keys=names, only=names, callback="by publisher")


def versus(
    case: str, systems: tuple[str, ...], layout: Layout, ask: Callable[[Desk], Awaitable[Measured]]
) -> tuple[Contender, ...]:
    """These systems in one case."""
    return tuple(Contender(case, system, layout, ask) for system in systems)


def _fan_in(count: int, systems: tuple[str, ...] = ACROSS) -> tuple[Contender, ...]:
    return versus(f"fan-in of {count}", systems, _publishers(count), flow(0.7))


def _unmatched_across(*systems: str) -> tuple[Contender, ...]:
    return tuple(
        Contender(f"{count:,} unmatched, across", system, Layout(unmatched=count), flow(0.2))
        for count in UNMATCHED
        for system in systems
    )


# What is compared with itself takes many short rounds, since its ratios are taken round by round.

BOOKS = ("book of 2 x 20", "book of 2 x 250")
TIME = Layout(window=6_000)
"""An inbox holds 8,192 by default: no page is read."""


def _times(rounds: int) -> Heat:
    return Heat(versus("processor time", ("aiobus", BEFORE), TIME, flow(0.3)), rounds)


def _waiting(rounds: int) -> Heat:
    return Heat(
        tuple(
            Contender(
                f"{window:,} books waiting",
                "aiobus",
                Layout(shape=BOOKS[0], window=window, callback="when all wait"),
                waiting,
            )
            for window in (100, 6_000)
        ),
        rounds,
    )


QUICK = [
    _times(15),
    Heat(versus("in process", ("aiobus, inproc", BEFORE_INPROC, "blinker"), SHARED, flow(0.3)), 9),
    *(
        Heat(
            versus(
                f"nested: {shape}",
                ("aiobus", BEFORE, "zmq.asyncio", "nats-py", "zenoh"),
                Layout(shape=shape, window=1_000),
                flow(0.4),
            ),
            3,
        )
        for shape in BOOKS
    ),
    _waiting(5),
    Heat(
        versus(
            "throughput, 1 key",
            ("aiobus", "zmq.asyncio", "nats-py", "zenoh", "codec floor"),
            ONE,
            flow(0.7),
        ),
        3,
    ),
]

FULL = [
    _times(30),
    Heat(
        versus("throughput, 1 key", ACROSS + MORE, ONE, flow(1))
        + versus("throughput, 100 keys x 4 types", ACROSS, KEYS, flow(1))
    ),
    Heat(versus("latency, 1,000/s", (*ACROSS, *MORE[:3]), TIMED, pace(1_000, 2)), 3),
    Heat(versus("latency, 5,000/s", (*ACROSS, *MORE[:3]), TIMED, pace(5_000, 2)), 5),
    Heat(versus("in process", (*WITHIN, BEFORE_INPROC), SHARED, flow(1))),
    Heat(versus("in process, latency, 5,000/s", WITHIN, SHARED_TIMED, pace(5_000, 1))),
    *(
        Heat(versus(f"fan-out to {count}", ACROSS, Layout(subscribers=count), flow(0.7)), 3)
        for count in (1, 2, 4, 8)
    ),
    Heat(_fan_in(1, ACROSS[1:]), 3),
    *(Heat(_fan_in(count), 3) for count in (2, 4)),
    Heat(_fan_in(8) + _fan_in(1, ("aiobus",))),  # of aiobus the two are compared
    *(
        Heat(versus(f"payload of {label}", ACROSS, Layout(size=size), flow(0.7)))
        for label, size in (("100 B", 0), ("1 KiB", 900))
    ),
    # 10,000 of these are 100 MB: more than any default of a queue or a history. So both.
    Heat(versus("payload of 10 KiB", ACROSS, Layout(size=10_100, window=1_000), flow(0.7))),
    Heat(versus("10 KiB, 10,000 under way", ACROSS, Layout(size=10_100), flow(0.7)), 3),
    *(
        Heat(
            versus(f"nested: {shape}", ACROSS, Layout(shape=shape, window=1_000), flow(0.7)),
            5 if shape in BOOKS else 3,
        )
        for shape in NESTED
    ),
    _waiting(5),
    Heat(versus("1 symbol of 500", TCP, FILTER, one_symbol), 3),
    Heat(
        tuple(
            Contender(
                f"{count:,} unmatched, in process",
                "aiobus, inproc",
                Layout(is_shared=True, unmatched=count, is_matched=False),
                flow(0.15),
            )
            for count in UNMATCHED
        ),
        30,  # many and short, since their ratios are taken round by round
    ),
    Heat(_unmatched_across("aiobus"), 30),
    Heat(_unmatched_across("zmq.asyncio", "nats-py"), 3),
    Heat(
        versus("a million events", ("aiobus", "nats-py", "zenoh", "zmq.asyncio"), ONE, million), 1
    ),
]
