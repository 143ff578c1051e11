"""mypy --strict and pyright on what a user writes: a typed desk passes, a wrong line does not.

basedpyright is pyright with its parser of Node in the package, so no download is needed.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.one_loop]

ROOT = Path(__file__).parent.parent

DESK = """
from dataclasses import dataclass
from typing import Any, assert_type

from aiobus import AsyncEventBus, Event, EventType, Topic

@dataclass
class Tick:
    price: float

@dataclass
class Quote:
    bid: float

@dataclass
class Order:
    quantity: float

@dataclass
class Ack:
    order: str

TICK = Topic[Tick]("TICK")
QUOTE = Topic[Quote]("QUOTE")
ORDER = Topic[Order]("ORDER")
ACK = Topic[Ack]("ACK")

async def on_tick(event: Event[Tick]) -> None:
    print(event.data.price)

async def on_quote(event: Event[Quote]) -> None:
    print(event.data.bid)

async def on_dict(event: Event[dict[str, Any]]) -> None:
    print(event.data["price"])

async def on_any(event: Event) -> None:
    print(event.data["price"])

async def on_either(event: Event[Tick] | Event[Quote]) -> None:
    print(event.data)

def is_deep(event: Event) -> bool:
    return len(event.data) > 10

class Strategy:
    async def on_tick(self, event: Event[Tick]) -> None:
        print(event.data.price)

async def bot(bus: AsyncEventBus) -> None:
    await bus.subscribe("TICK", on_tick)
    await bus.subscribe("TICK", on_dict, key="BTC*", maxsize=5)
    await bus.subscribe(TICK, on_tick, overflow="latest")
    await bus.subscribe(TICK, on_any)
    await bus.subscribe(TICK, Strategy().on_tick)
    await bus.subscribe(TICK, lambda event: print(event.data.price))
    await bus.subscribe(EventType.TRADE, print, payload=Tick)
    await bus.subscribe([TICK, QUOTE, "OTHER"], on_either)
    await bus.subscribe(["TICK", "QUOTE"], on_any, payload={"TICK": Tick, "QUOTE": Quote})
    await bus.subscribe(TICK, on_tick, where=lambda event: event.data["price"] > 3)
    await bus.subscribe("LEVELS", on_any, where=is_deep)
    await bus.unsubscribe(TICK, on_tick)
    async with bus.stream(TICK) as ticks:
        async for tick in ticks:
            assert_type(tick, Event[Tick])
    async with bus.stream("TICK", payload=Tick) as typed:
        async for tick in typed:
            assert_type(tick, Event[Tick])
    async with bus.stream("TICK") as plain:
        async for event in plain:
            assert_type(event, Event[Any])
    assert_type(await bus.wait_for(TICK), Event[Tick])
    assert_type(await bus.wait_for("TICK", payload=list[Tick]), Event[list[Tick]])
    assert_type(await bus.request(Event(ORDER, Order(1.0)), ACK), Event[Ack])
    reply = await bus.request(Event("ORDER", {"quantity": 1.0}), ["ACK", "REJECT"])
    print(reply.data["order"])
    await bus.publish(Event(TICK, Tick(1.0), key="BTC"))
    bus.publish_nowait(Event("TICK", {"price": 1.0}))
    order = await bus.publish(Event("ORDER", []))
    print(order.id, order.data)
    if order.type == TICK:
        print(str(TICK))

def registered(bus: AsyncEventBus) -> None:
    @bus.on(TICK, concurrency=4)
    async def one(event: Event[Tick]) -> None: ...

    @bus.on("TICK", payload=Tick, misfit="stop")
    async def two(event: Event[Tick]) -> None: ...

    @bus.on(EventType.HALT)
    def three(event: Event) -> None: ...

async def wrong(bus: AsyncEventBus) -> None:
    pass
"""

WRONG = {
    "handler": "await bus.subscribe(TICK, on_quote)",
    "handler of dicts": "await bus.subscribe(TICK, on_dict)",
    "handler that is a lambda": "await bus.subscribe(TICK, lambda event: print(event.data.bid))",
    "payload": 'await bus.subscribe("TICK", on_quote, payload=Tick)',
    "publish": "await bus.publish(Event(TICK, Quote(1.0)))",
    "publish a dict": 'await bus.publish(Event(TICK, {"price": 1.0}))',
    "publish without a wait": "bus.publish_nowait(Event(TICK, Quote(1.0)))",
    "request": "await bus.request(Event(ORDER, Tick(1.0)), ACK)",
    "stream": "async for tick in bus.stream(TICK): print(tick.data.bid)",
    "wait_for": "print((await bus.wait_for(TICK)).data.bid)",
    "reply": "print((await bus.request(Event(ORDER, Order(1.0)), ACK)).data.quantity)",
    "where": "await bus.subscribe(TICK, on_tick, where=lambda event: event.data.price > 3)",
    "decorator": "bus.on(TICK)(on_quote)",
    "option": 'await bus.subscribe(TICK, on_tick, overflow="dropp")',
    "keyword": "await bus.subscribe(TICK, on_tick, maxsise=4)",
    "no event": "await bus.publish(3)",
}


def mypy(folder: Path) -> set[int]:
    """The lines of desk.py that mypy --strict refuses."""
    options = ["--strict", "--no-error-summary", "--output", "json", "--python-version", "3.11"]
    done = run(["-m", "mypy", *options, "desk.py"], folder)
    return {json.loads(line)["line"] for line in done.splitlines()}


def pyright(folder: Path) -> set[int]:
    """Those that pyright refuses."""
    settings = {"include": ["desk.py"], "typeCheckingMode": "strict", "pythonVersion": "3.11"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    done = run(["-m", "basedpyright", "--outputjson", "--level", "error"], folder)
    found = json.loads(done)["generalDiagnostics"]
    return {each["range"]["start"]["line"] + 1 for each in found if each["severity"] == "error"}


def run(arguments: list[str], folder: Path) -> str:
    paths = {"PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT), "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**paths, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr + done.stdout
    return done.stdout


CHECKERS = [mypy, pyright]


@pytest.mark.parametrize("check", CHECKERS)
def test_a_typed_desk_passes_the_checkers(check: Callable[[Path], set[int]], folder: Path) -> None:
    (folder / "desk.py").write_text(DESK)
    assert check(folder) == set()


@pytest.mark.parametrize("check", CHECKERS)
def test_each_wrong_line_is_refused_by_both_checkers(
    check: Callable[[Path], set[int]], folder: Path
) -> None:
    text = DESK.removesuffix("    pass\n") + "".join(f"    {line}\n" for line in WRONG.values())
    (folder / "desk.py").write_text(text)
    first = text.count("\n") - len(WRONG) + 1
    refused = check(folder)
    assert refused == {*range(first, first + len(WRONG))}, [
        name for number, name in enumerate(WRONG, first) if number not in refused
    ]
