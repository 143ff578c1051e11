"""`aiobus demo`: a small desk that trades, and how its last fill came about.

Owns the bots of the demo and what is shown of them. The prices are made up: no exchange is asked.
"""

import asyncio
import os
import random
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import typer

from aiobus.bus import AsyncEventBus
from aiobus.cli import Story
from aiobus.cli.arguments import Directory, WrongArgument, checked_url
from aiobus.cli.desk import keyring_for
from aiobus.cli.session import Ends, Output, run
from aiobus.cli.terminal import event_line, is_colored
from aiobus.event import Event, EventType
from aiobus.journal.reader import Journal
from aiobus.recorder import record
from aiobus.replay.explain import explain
from aiobus.replay.moments import Zone

__all__ = ["STORY"]

SYMBOL = "DEMO"
PERIOD = 8
"""Trades of which the strategy takes the mean."""
RATE = 20
"""Trades a second."""


@dataclass(frozen=True, slots=True)
class Trade:
    """What the feed publishes."""

    price: float
    quantity: float


@dataclass(frozen=True, slots=True)
class Order:
    """What the strategy wants, as a signal and as an order, and what the broker has filled."""

    side: Literal["buy", "sell"]
    price: float
    quantity: float = 0.1


async def feed(bus: AsyncEventBus, seconds: float) -> None:
    """Publish trades at a price that walks at random: the same walk each time."""
    chance, price = random.Random(7), 39_000.0
    for _ in range(max(1, round(seconds * RATE))):
        price = round(price + chance.gauss(0, 4), 2)
        trade = Trade(price, round(chance.uniform(0.01, 0.5), 3))
        await bus.publish(Event(EventType.TRADE, trade, key=SYMBOL))
        await asyncio.sleep(1 / RATE)


async def strategy(bus: AsyncEventBus) -> None:
    """Buy when the price rises above its mean, sell when it falls below."""
    prices: deque[float] = deque(maxlen=PERIOD)
    side = ""

    async def on_trade(trade: Event[Any]) -> None:
        nonlocal side
        price = trade.data["price"]
        mean = sum(prices) / len(prices) if prices else price
        prices.append(price)
        wanted: Literal["buy", "sell"] = "buy" if price > mean else "sell"
        if len(prices) == PERIOD and wanted != side:
            side = wanted
            await bus.publish(Event(EventType.SIGNAL, Order(wanted, price), key=trade.key))

    await bus.subscribe(EventType.TRADE, on_trade)


async def gateway(bus: AsyncEventBus) -> None:
    """Make an order of each signal."""

    async def on_signal(signal: Event[Any]) -> None:
        await bus.publish(Event(EventType.ORDER, signal.data, key=signal.key))

    await bus.subscribe(EventType.SIGNAL, on_signal)


async def broker(bus: AsyncEventBus) -> None:
    """Fill each order, at a price that is a little worse."""

    async def on_order(order: Event[Any]) -> None:
        worse = 0.5 if order.data["side"] == "buy" else -0.5
        price = round(order.data["price"] + worse, 2)
        await bus.publish(Event(EventType.FILL, {**order.data, "price": price}, key=order.key))

    await bus.subscribe(EventType.ORDER, on_order)


BOTS = {"strategy": strategy, "gateway": gateway, "broker": broker}
NAMES = ("monitor", "feed", *BOTS)


def demo(
    url: Annotated[
        str | None,
        typer.Option(help="Trade there; else at an ipc:// of its own.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long it trades.")] = 10.0,
    file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Keep the recording.", show_default=False)
    ] = None,
    keyring: Directory = None,
) -> int:
    """Let a feed, a strategy, a gateway and a broker trade for ten seconds, each on a bus of its
    own, record all of it, and explain the last fill. The prices are made up. Meanwhile, in another
    terminal, look at it by the command that is printed first.
    """
    if file is not None and os.path.exists(file):
        raise WrongArgument(f"--file {file}: it is there already; give a new file")

    async def body(ends: Ends) -> int:
        with tempfile.TemporaryDirectory(prefix="aiobus-demo-") as folder:
            path = file or os.path.join(folder, "demo.db")
            where = checked_url(url if url is not None else f"ipc://demo-{os.getpid()}")
            keys = keyring_for(where, keyring)
            if keys is not None:
                for name in NAMES:  # all of them, before one starts
                    keys.secret_of(name)
            ends.out.put(f"in another terminal:  aiobus tail {where}\n\n".encode())
            await _trade(ends.out, partial(AsyncEventBus, where, keyring=keys), path, seconds)
            ends.out.put(f"\n{await asyncio.to_thread(_explained, path)}\n".encode())
            if file is not None:
                ends.out.put(f"\nthe recording:  aiobus log {file}\n".encode())
            return 0

    return run(body)


async def _trade(
    out: Output, made: Callable[..., AsyncEventBus], path: str, seconds: float
) -> None:
    zone, colored = Zone.of(None), is_colored(sys.stdout)

    def show(event: Event[Any]) -> None:
        out.put(event_line(event, zone, colored=colored))

    async with AsyncExitStack() as stack:
        monitor = await stack.enter_async_context(made(name="monitor"))
        await stack.enter_async_context(record(monitor, path))
        await monitor.subscribe((EventType.SIGNAL, EventType.ORDER, EventType.FILL), show)
        buses = []
        for name, bot in BOTS.items():
            bus = await stack.enter_async_context(made(name=name))
            await bot(bus)
            buses.append(bus)
        source = await stack.enter_async_context(made(name="feed"))
        await feed(source, seconds)
        for bus in (source, *buses):  # in the order of a trade's way
            await bus.flush()
            await bus.settle()
        await monitor.settle()


def _explained(path: str) -> str:
    with Journal(path) as journal:
        fills = [event.id for _, event in journal.read(types=EventType.FILL)]
    if not fills:
        return "nothing was filled: let it trade for longer, --seconds 10"
    told = explain(path, fills[-1])
    return f"the last of {len(fills)} fills, as its recording explains it:\n\n{told}"


STORY = Story(
    name="demo",
    run=demo,
    summary="Let a small desk trade, and explain its last fill.",
    examples={
        "aiobus demo": "",
        "aiobus demo --url ipc://desk --seconds 60 --file demo.db": "to look at from elsewhere",
    },
    codes={0: "it has traded", 1: "a bus could not start, or a bot of this name is there already"},
)
