"""`aiobus record`, `log` and `export`: a desk in a file, and from there to another."""

import asyncio
import json
import signal
from pathlib import Path

import pytest
from commands import ran, running

from aiobus import AsyncEventBus, Event, Journal

pytestmark = [pytest.mark.slow, pytest.mark.one_loop]


async def recorded(file: str, type: str, count: int) -> None:
    """Wait until so many events are in a file: nothing waits for an observer."""
    with Journal(file) as journal:
        while sum(1 for _ in journal.read(types=type)) < count:  # noqa: ASYNC110 - of a process
            await asyncio.sleep(0.02)


async def test_it_records_until_a_signal_and_goes_on_behind_what_is_there(
    url: str, tmp_path: Path
) -> None:
    file = str(tmp_path / "desk.db")
    async with AsyncEventBus(url, name="feed") as bus:
        for how, wanted in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
            async with running("record", url, file) as recorder:
                await recorder.says("recording ")
                for number in range(3):
                    await bus.publish(Event("TRADE", number, key="BTC"))
                await recorded(file, "TRADE", 6 if wanted else 3)
                code, out, errors = await recorder.end(how)
            assert (code, out) == (wanted, "")
            assert errors.startswith("3 events, ")
    with Journal(file) as journal:
        assert [event.data for _, event in journal.read(types="TRADE")] == [0, 1, 2] * 2


async def test_what_is_recorded_is_exported(url: str, tmp_path: Path) -> None:
    file, out = str(tmp_path / "desk.db"), tmp_path / "fills.jsonl"
    async with (
        AsyncEventBus(url, name="feed") as bus,
        running("record", url, file, "--type", "FILL") as recorder,
    ):
        await recorder.says("recording ")
        await bus.publish(Event("TRADE", 1))
        await bus.publish(Event("FILL", 2))
        await recorded(file, "FILL", 1)
        assert (await recorder.end(signal.SIGTERM))[0] == 0
    assert await ran("export", file, str(out), "--type", "FILL") == (0, "1 events\n", "")
    assert json.loads(out.read_text())["data"] == 2
    code, _, errors = await ran("export", file, str(out))
    assert (code, "exists" in errors) == (1, True)
    code, _, errors = await ran("export", file, str(tmp_path / "x.csv"))
    assert (code, ".jsonl or .parquet is needed" in errors) == (1, True)
