"""`aiobus bench`: how fast a bus is on this machine, in a few seconds.

Owns what is measured and what is said of it. `perf/` of the project measures in earnest.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import quantiles
from time import perf_counter
from typing import Annotated, Any, NamedTuple

import orjson
import typer

from aiobus.bus import AsyncEventBus
from aiobus.cli import Story
from aiobus.cli.session import Ends, run
from aiobus.clock import time
from aiobus.event import Event

__all__ = ["STORY", "answer"]

TICK = {"price": 39_430.36, "quantity": 0.125, "side": "buy", "trade_id": 573_412}
RATE = 1_000
"""Events a second while latency is measured."""
SHARE = 0.25
"""Of the seconds of the command that each of its four parts takes, about."""


class Figure(NamedTuple):
    """One thing that was measured."""

    what: str
    value: float
    unit: str
    text: str


def bench(
    seconds: Annotated[float, typer.Option(min=0.2, help="About how long it takes.")] = 4.0,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each figure.")] = False,
) -> int:
    """Measure how many events a second a bus publishes and handles, in one process (inproc) and to
    another (ipc), and how long an event takes at 1,000 a second. The event is a dict of 4 fields.
    The ratio is to what encoding and decoding it as JSON takes alone. Other work on the machine
    makes the figures worse: compare only what was measured side by side.
    """

    async def body(ends: Ends) -> int:
        async for each in _figures(seconds * SHARE):
            if json:
                line = orjson.dumps(each._asdict(), option=orjson.OPT_APPEND_NEWLINE)
            else:
                line = f"{each.what:<10} {each.text}\n".encode()
            ends.out.put(line)
        return 0

    return run(body)


async def _figures(part: float) -> AsyncIterator[Figure]:
    alone = _json_rate(part / 4)
    yield _rate("json", alone, "encoded and decoded, which is the bound of all below")
    inside = await _inproc(part)
    yield _rate("inproc", inside, f"published and handled, {alone / inside:.1f} x the time of JSON")
    with tempfile.TemporaryDirectory(prefix="aiobus-bench-") as folder:
        url = f"ipc://{folder}/d"
        async with AsyncEventBus(url, name="bench", pace=True) as bus, _answering(bus, url):
            across = await _ipc(bus, part)
            beside = f"to another process, {inside / across:.1f} x the time of inproc"
            yield _rate("ipc", across, beside)
            late = await _latencies(bus, int(RATE * part))
    cuts = [each * 1e6 for each in quantiles(late, n=1000)]
    middle, high, worst = cuts[499], cuts[989], max(late) * 1e6
    text = f"{middle:,.0f} us (p50), {high:,.0f} us (p99), {worst:,.0f} us (the longest)"
    yield Figure("latency", middle, "us", f"{text} (ipc, {RATE:,} events a second)")


def _rate(what: str, rate: float, text: str) -> Figure:
    return Figure(what, rate, "events/s", f"{rate:>11,.0f} events/s {text}")


def _json_rate(seconds: float) -> float:
    count, begin = 0, perf_counter()
    while perf_counter() - begin < seconds:
        for _ in range(100):
            orjson.loads(orjson.dumps(TICK))
        count += 100
    return count / (perf_counter() - begin)


async def _inproc(seconds: float) -> float:
    count = 0

    async def on_event(event: Event[Any]) -> None:
        nonlocal count
        count += 1

    async with AsyncEventBus(name="bench") as bus:
        await bus.subscribe("BENCH", on_event, overflow="block")
        begin = perf_counter()
        while perf_counter() - begin < seconds:
            for _ in range(100):
                await bus.publish(Event("BENCH", TICK))
        await bus.settle(60)
        return count / (perf_counter() - begin)


@asynccontextmanager
async def _answering(bus: AsyncEventBus, url: str) -> AsyncIterator[None]:
    """The other process is there."""
    async with bus.stream("READY") as ready:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aiobus.cli.bench", url),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stderr=asyncio.subprocess.DEVNULL,  # that it falls behind in a flood is no news
            start_new_session=True,  # a Ctrl-C is for this process, which ends the other
        )
        try:
            await anext(ready)
            yield
        finally:
            process.terminate()
            await process.wait()


async def _ipc(bus: AsyncEventBus, seconds: float) -> float:
    count, begin = 0, perf_counter()
    while perf_counter() - begin < seconds:
        for _ in range(100):
            await bus.publish(Event("BENCH", TICK))
        count += 100
    reply = await bus.request(Event("ASK", "count"), "ANSWER", timeout=60)
    rate = count / (perf_counter() - begin)
    if reply.data != count:
        raise ValueError(f"{reply.data:,} of {count:,} events arrived: this is no measurement")
    return rate


async def _latencies(bus: AsyncEventBus, count: int) -> list[float]:
    begin, now = asyncio.get_running_loop().time(), asyncio.get_running_loop().time
    for number in range(count):
        await asyncio.sleep(begin + number / RATE - now())
        await bus.publish(Event("LATE", TICK))
    reply = await bus.request(Event("ASK", "latencies"), "ANSWER", timeout=60)
    return list(reply.data)


def answer(url: str) -> int:
    """The other process: counts what comes, until it is ended."""

    async def body(ends: Ends) -> int:
        count, late = 0, list[float]()

        async with AsyncEventBus(url, name="answer") as bus:

            async def on_event(event: Event[Any]) -> None:
                nonlocal count
                if event.type == "BENCH":
                    count += 1
                elif event.type == "LATE":
                    late.append(time() - event.timestamp)
                else:
                    told = count if event.data == "count" else late
                    await bus.publish(Event("ANSWER", told))

            await bus.subscribe(("BENCH", "LATE", "ASK"), on_event)
            await bus.publish(Event("READY", None))
            await ends.asked.wait()
        return 0

    return run(body)


STORY = Story(
    name="bench",
    run=bench,
    summary="Measure how fast a bus is on this machine, in a few seconds.",
    examples={"aiobus bench": "", "aiobus bench --seconds 20 --json": "longer, and for a program"},
    codes={0: "it was measured", 1: "it was not: not all events arrived, or no bus could start"},
)

if __name__ == "__main__":
    sys.exit(answer(sys.argv[1]))
