"""Programs around the fragments that the reference pages show: what a fragment needs, and no more.

A fragment is a `python` block without a file name. Each has a program here, by its first line.
"""

import re
from textwrap import indent

from snippets import Block

DESK = """
import asyncio

import aiobus
from aiobus import *


async def strategy(bus):
    async def on_trade(trade):
        await bus.request(Event("ORDER", trade.data, key=trade.key), "FILL", timeout=5)

    await bus.subscribe("TRADE", on_trade)


async def paper_gateway(bus):
    "Fill each order at once, at its price."

    async def on_order(order):
        await bus.publish(Event("FILL", order.data, key=order.key))

    await bus.subscribe("ORDER", on_order)


async def trade():
    "Be feed and gateway until the strategy has its fills."
    async with (
        AsyncEventBus("ipc://desk", name="feed") as feed,
        AsyncEventBus("ipc://desk", name="gateway") as gateway,
        feed.stream("FILL") as fills,
    ):
        await paper_gateway(gateway)
        await feed.wait_for_peer("strategy", subscribed="TRADE")
        for price in (1, 2, 3):
            await feed.publish(Event("TRADE", {"price": price}, key="BTCUSDT"))
        while (await anext(fills)).data["price"] < 3:
            pass
        await gateway.flush()


async def session():
    names = ("recorder", "strategy")
    recorder, strategies = (AsyncEventBus("ipc://desk", name=name) for name in names)
    async with recorder, strategies, record(recorder, "desk.db") as recording:
        await strategy(strategies)
        await trade()
        await strategies.settle()
        await recording.flush()


async def journal():
    async with AsyncEventBus(name="gateway", journal="gateway.db") as bus:
        await bus.publish(Event("FILL", {"price": 1}, key="BTCUSDT"))
"""
"""A desk of two, with the names that the pages use."""

PLAIN = "from desk import *\n\nCODE"
COROUTINE = """
from desk import *


async def main():
CODE


asyncio.run(main())
"""
DASHBOARD = """
from desk import *


async def main():
    seen = []
    async with AsyncEventBus("ipc://yesterday", name="dashboard") as bus:
        await bus.subscribe(["TRADE", "FILL"], seen.append)
        await look()
        await bus.settle()
    assert {event.type for event in seen} == {"TRADE", "FILL"}


async def look():
CODE


asyncio.run(main())
"""
CANCELLED = """
from desk import *


async def record_it():
CODE


async def main():
    recorded = asyncio.create_task(record_it())
    await trade()
    recorded.cancel()
    await asyncio.wait([recorded])
    assert recorded.cancelled()


asyncio.run(main())
"""
WHEN = """
import re
from datetime import datetime
from zoneinfo import ZoneInfo
from desk import *

with Journal("desk.db") as journal:
    (fill, *_) = [event for _, event in journal.read(types="FILL")]
minute = datetime.fromtimestamp(fill.timestamp, ZoneInfo("Europe/Berlin")).strftime("%H:%M")
exec('''CODE'''.replace("10:31", minute))
assert explanation.chain[-1].event.id == fill.id
"""
PROCESS = (
    "python FILE & bot=$!; python -c 'from desk import *; asyncio.run(trade())';"
    " kill -TERM $bot; wait $bot"
)

PROGRAMS = {
    "replay.md": {
        "from aiobus import AsyncEventBus, Replay, run_virtual": (PLAIN, "python FILE"),
        "from aiobus import what_if": (PLAIN, "python FILE"),
        'found = what_if("desk.db", strategy, broker=paper_gateway)': (
            f"{PLAIN}\nassert len(then) == len(now) > 0",
            "python FILE",
        ),
        "await republish(": (DASHBOARD, "python FILE"),
        "from aiobus import explain": (WHEN, "python FILE"),
        'async with AsyncEventBus("ipc://desk", name="strategy") as bus:': (
            CANCELLED,
            "python FILE",
        ),
        "async def recorded(bus: AsyncEventBus) -> None:": (PLAIN, PROCESS),
        'report = verify("strategy.db", strategy)': (
            f'{PLAIN}\nassert report.verdict == "AGREES"',
            "python FILE",
        ),
    },
    "journal.md": {"from aiobus import Journal": (PLAIN, "python FILE")},
}
"""By page and by the beginning of a fragment: the program around it, and how that is run."""


def program(page: str, block: Block, file: str) -> tuple[str, str]:
    """The program around this fragment, and the command that runs it as `file`."""
    first, _, _ = block.text.partition("\n")
    for begin, (around, command) in PROGRAMS[page].items():
        if first.startswith(begin):
            inner = re.search(r"^CODE$", around, re.MULTILINE) and "async def" in around
            code = indent(block.text, "    ") if inner else block.text
            return around.replace("CODE", code), command.replace("FILE", file)
    raise AssertionError(f"{page}:{block.line}: no program of fragments.py runs this: {first}")
