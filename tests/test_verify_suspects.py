"""What may have made a difference beside the strategy: what it read of the machine is named."""

import asyncio
import datetime
import os
import random
import secrets
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import time_ns as nanoseconds

import pytest
from replays import session, trades

from aiobus import AsyncEventBus, Event, Report, clock, record, verify

Source = Callable[[], object]


async def reading(bus: AsyncEventBus, source: Source, offset: int) -> None:
    """Reads `source`, which has no part in what is published."""

    async def on_trade(trade: Event) -> None:
        source()
        await bus.publish(Event("SIGNAL", {"number": trade.data["number"] + offset}))

    await bus.subscribe("TRADE", on_trade)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "strategy.db"


async def suspects(path: Path, source: Source) -> tuple[str, ...]:
    """Those of a difference that comes of a parameter."""
    await session(path, partial(reading, source=source, offset=0), partial(trades, count=1))
    report = verify(path, partial(reading, source=source, offset=0))
    assert report, str(report)
    return told(verify(path, partial(reading, source=source, offset=1)))


def told(report: Report) -> tuple[str, ...]:
    assert report.verdict == "DIVERGES", str(report)
    assert report.difference is not None
    return report.difference.suspects


READ: dict[str, Source] = {
    "time.time()": lambda: time.time(),
    "time.time_ns()": lambda: nanoseconds(),
    "time.monotonic()": lambda: time.monotonic(),
    "time.perf_counter()": lambda: time.perf_counter(),
    "datetime.now()": lambda: datetime.datetime.now(datetime.UTC),
    "datetime.today()": lambda: datetime.date.today(),
    "os.urandom()": lambda: os.urandom(8),
    "uuid.uuid4()": lambda: uuid.uuid4(),
    "secrets.token_hex()": lambda: secrets.token_hex(),
    "random.random()": lambda: random.SystemRandom().random(),
    "a random generator without a seed": lambda: random.Random(),
    "id()": lambda: id(time),
}


@pytest.mark.parametrize("name", READ)
async def test_what_code_reads_of_the_machine_is_a_suspect_with_file_and_line(
    path: Path, name: str
) -> None:
    source = READ[name]
    found = await suspects(path, source)
    line = f"<lambda> ({__file__}:{source.__code__.co_firstlineno})"
    assert any(text.startswith(f"{name} at {line} is ") for text in found), found


@pytest.mark.parametrize(
    "source",
    [
        clock.time,
        random.random,
        lambda: random.Random(7).random(),
        lambda: hash("x"),
        asyncio.Event,
        lambda: time.gmtime(5),
        lambda: datetime.datetime.fromtimestamp(5, datetime.UTC),
    ],
    ids=[
        "the clock",
        "random",
        "a seed",
        "a hash under the same seed",
        "asyncio",
        "gmtime",
        "date",
    ],
)
async def test_what_is_the_same_in_each_run_is_no_suspect(path: Path, source: Source) -> None:
    assert await suspects(path, source) == ()


async def test_a_clock_that_decides_whether_to_publish_is_a_suspect(path: Path) -> None:
    is_over = False

    async def hasty(bus: AsyncEventBus) -> None:
        until = time.time() + (-1 if is_over else 60)

        async def on_trade(trade: Event) -> None:
            if time.time() < until:
                await bus.publish(Event("SIGNAL", trade.data))

        await bus.subscribe("TRADE", on_trade)

    await session(path, hasty, trades)
    is_over = True
    report = verify(path, hasty)
    assert report.difference is not None
    assert "an output is missing" in report.difference.text
    assert sum(text.startswith("time.time() at ") for text in told(report)) == 2


async def test_a_profiler_of_the_caller_is_left_alone(path: Path) -> None:
    await session(path, partial(reading, source=time.time, offset=0), trades)
    reports: list[Report] = []

    def profile(frame: object, event: str, argument: object) -> None:
        return

    def profiled() -> None:
        sys.setprofile(profile)
        try:
            reports.append(verify(path, partial(reading, source=time.time, offset=1)))
            assert sys.getprofile() is profile
        finally:
            sys.setprofile(None)

    await asyncio.to_thread(profiled)
    assert told(reports[0]) == ()
    assert sys.getprofile() is None


CODE = """
import asyncio, sys
sys.path[:0] = [{folder!r}]
from replays import session, trades
from aiobus import Event, verify

async def strategy(bus):
    async def on_trade(trade):
        await bus.publish(Event("SIGNAL", {{"x": {value}}}))
    await bus.subscribe("TRADE", on_trade)

if sys.argv[1] == "record":
    asyncio.run(session({path!r}, strategy, trades))
else:
    print(verify({path!r}, strategy))
"""


@pytest.mark.parametrize(
    "value", ["next(iter({*'abcdefghijklmnopqrstuvwxyz'}))", "hash('BTC')"], ids=["set", "hash"]
)
def test_another_hash_seed_is_said_with_each_difference(path: Path, value: str) -> None:
    code = CODE.format(folder=str(Path(__file__).parent), path=str(path), value=value)

    def run(step: str, seed: str) -> str:
        command = [sys.executable, "-c", code, step]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout

    run("record", "1")
    assert "AGREES" in run("verify", "1")
    report = run("verify", "3")
    assert "DIVERGES" in report
    assert "suspect: it was recorded under another PYTHONHASHSEED" in report
    assert ("hash() at strategy.<locals>.on_trade" in report) == value.startswith("hash")


def test_another_function_is_the_first_suspect_and_another_hash_seed_the_last(path: Path) -> None:
    wrong = "async def other(bus): id(bus); await bus.publish(Event('OTHER'))"
    code = CODE.format(folder=str(Path(__file__).parent), path=str(path), value="1")
    code += f"    {wrong}\n    print(*verify({str(path)!r}, other).difference.suspects, sep='\\n')"

    def run(step: str, seed: str) -> list[str]:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, step]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return done.stdout.splitlines()

    run("record", "1")
    first, between, last = run("verify", "3")[-3:]
    assert first.startswith("__main__:strategy was recorded, and __main__:other was verified")
    assert between.startswith("id() at ")
    assert last.startswith("it was recorded under another PYTHONHASHSEED, which is random unless")


async def test_a_bot_that_would_record_into_the_file_under_test_does_not_touch_it(
    path: Path,
) -> None:
    async def echo(bus: AsyncEventBus) -> None:
        await bus.subscribe("TRADE", lambda trade: bus.publish(Event("SIGNAL", trade.data)))

    async def recorded(bus: AsyncEventBus) -> None:
        async with record(bus, path, attach=echo):
            await bus.wait_closed()

    await session(path, echo, trades)
    report = verify(path, recorded)
    assert report.verdict == "DIVERGES"
    assert report.written == ()


async def test_the_address_of_an_object_does_not_look_like_a_time(path: Path) -> None:
    kept: list[object] = []

    async def addressed(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            kept.append(object())
            await bus.publish(Event("SIGNAL", {"x": id(kept[-1])}))

        await bus.subscribe("TRADE", on_trade)

    await session(path, addressed, trades)
    found = told(verify(path, addressed))
    assert not any("looks like a time" in text for text in found)
    assert any(text.startswith("id() at ") for text in found)


@pytest.mark.parametrize("unit", [1, 1e3, 1e6, 1e9, "iso"])
async def test_a_time_in_any_unit_looks_like_one(path: Path, unit: float | str) -> None:
    async def timed(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            now = datetime.datetime.now(datetime.UTC)
            at = now.isoformat() if isinstance(unit, str) else now.timestamp() * unit
            await bus.publish(Event("SIGNAL", {"x": at}))

        await bus.subscribe("TRADE", on_trade)

    await session(path, timed, trades)
    assert told(verify(path, timed))[0].startswith("data.x looks like a time")
