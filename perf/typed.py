"""What do typed payloads cost? Run: python -m perf.typed

Two ratios of one run are judged, on both loops. What a typed subscription takes more for each event
than an untyped one, beside a bare conversion of the same data by the library of the type (goal: at
most 1.3 times that). That of pydantic is its own strict reading of JSON: of Python objects it
either refuses the text of a time or takes "1.5" for a float. And `publish` of a flat dataclass or
Struct beside that of a dict with the same fields (goal: at most 1.5 times that; the model of
pydantic is shown). What is compared takes turns, and of each the best turn counts. Exits with 1
when a goal is missed.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson
import pydantic
import uvloop

from aiobus import AsyncEventBus, Event

EVENTS = 2_000
TURNS = 60
GOAL_TYPED = 1.3
GOAL_PUBLISH = 1.5

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@dataclass
class Dataclass:
    """A flat tick."""

    symbol: str
    price: float
    size: float
    side: str


class Struct(msgspec.Struct):
    """The same."""

    symbol: str
    price: float
    size: float
    side: str


class Model(pydantic.BaseModel):
    """The same."""

    symbol: str
    price: float
    size: float
    side: str


TICK: dict[str, Any] = {"symbol": "BTCUSDT", "price": 39_000.5, "size": 0.25, "side": "buy"}
KINDS = {"dataclass": Dataclass, "Struct": Struct, "pydantic": Model}


def converting(kind: Any) -> float:
    """Nanoseconds of a bare conversion of what orjson has read, the loop and the assignment
    included.
    """
    row = orjson.dumps(TICK)
    events = [Event("TICK", orjson.loads(row)) for _ in range(EVENTS)]
    begin = time.thread_time_ns()
    if issubclass(kind, pydantic.BaseModel):
        for event in events:
            event.data = kind.model_validate_json(orjson.dumps(event.data), strict=True)
    else:
        for event in events:
            event.data = msgspec.convert(event.data, kind)
    return (time.thread_time_ns() - begin) / EVENTS


async def handing_over(kind: Any) -> float:
    """Nanoseconds in which one event is decoded and handed over."""

    async def on_tick(event: Event) -> None:
        pass

    async with AsyncEventBus() as bus:
        await bus.subscribe("TICK", on_tick, payload=kind)
        for _ in range(EVENTS):
            bus.publish_nowait(Event("TICK", TICK))
        begin = time.thread_time_ns()
        await bus.settle()
        return (time.thread_time_ns() - begin) / EVENTS


async def publishing(data: Any) -> float:
    """Nanoseconds of one `publish`."""
    async with AsyncEventBus() as bus:
        publish = bus.publish
        begin = time.thread_time_ns()
        for _ in range(EVENTS):
            await publish(Event("TICK", data))
        return (time.thread_time_ns() - begin) / EVENTS


def judge() -> int:
    """Print a line for each figure; 1 when a goal is missed."""
    is_missed = False

    def say(name: str, figure: str, ratio: float, goal: float | None) -> None:
        nonlocal is_missed
        verdict = "shown"
        if goal is not None:
            verdict = f"goal {goal:g}: {'held' if ratio <= goal else 'missed'}"
            is_missed |= ratio > goal
        print(f"typed      {name:34} {figure:44} {ratio:5.2f} x, {verdict}")

    for loop, factory in LOOPS.items():
        with asyncio.Runner(loop_factory=factory) as runner:
            run = runner.run
            untyped = dictionary = float("inf")
            bares = dict.fromkeys(KINDS, float("inf"))
            typed = dict.fromkeys(KINDS, float("inf"))
            published = dict.fromkeys(KINDS, float("inf"))
            for _ in range(TURNS):
                untyped = min(untyped, run(handing_over(None)))
                dictionary = min(dictionary, run(publishing(TICK)))
                for name, kind in KINDS.items():
                    made: Any = kind
                    bares[name] = min(bares[name], converting(kind))
                    typed[name] = min(typed[name], run(handing_over(kind)))
                    published[name] = min(published[name], run(publishing(made(**TICK))))
        for name in KINDS:
            more = typed[name] - untyped
            figure = f"+{more:.0f} ns, a bare conversion {bares[name]:.0f} ns"
            say(f"handing over a {name}, {loop}", figure, more / bares[name], GOAL_TYPED)
        for name in KINDS:
            figure = f"{published[name]:.0f} ns, a dict {dictionary:.0f} ns"
            goal = None if name == "pydantic" else GOAL_PUBLISH
            say(f"publish of a {name}, {loop}", figure, published[name] / dictionary, goal)
    return int(is_missed)


if __name__ == "__main__":
    sys.exit(judge())
