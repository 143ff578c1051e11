"""Ended by a signal under load, as a user's bot is: in time, with a truthful exit code, and nothing
left behind.
"""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from faults.desk import Desk
from faults.scenario import MIXED, prove, scenario

pytestmark = MIXED

EXIT_SECONDS = 5.0
SESSION = Path(__file__).parent / "session.py"


@asynccontextmanager
async def session(desk: Desk, kind: str) -> AsyncIterator[Process]:
    """A bot in a terminal, live and under load; ended for good if the test did not."""
    arguments = [sys.executable, str(SESSION), kind, desk.url, str(desk.folder / "bot.jsonl")]
    process = await asyncio.create_subprocess_exec(*arguments, stdout=PIPE, stderr=PIPE)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"live\n"
        await desk.chance(0.3)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(desk: Desk, process: Process) -> int:
    """The exit code, which is there in time, and nothing is left on disk."""
    async with asyncio.timeout(EXIT_SECONDS):
        code = await process.wait()
    assert not list(desk.folder.glob("d/bot*"))
    return code


@scenario("SIGTERM under load", soak=500, at_once=2)
async def bot_is_terminated(desk: Desk) -> None:
    """What it published arrives before it ends, and its end is none of an error."""
    (peer,) = await desk.bots("peer")
    await peer.do("hear")
    await peer.do("load", 5_000, "O")
    async with session(desk, "handled") as process:
        process.send_signal(signal.SIGTERM)
        code = await ended(desk, process)
    assert code == 0, f"exit code {code}"


@scenario("double SIGINT under load", soak=500, at_once=2)
async def bot_is_interrupted_twice(desk: Desk) -> None:
    """A bot that handles signals closes all the same; any other says that it was interrupted."""
    (peer,) = await desk.bots("peer")
    await peer.do("hear")
    await peer.do("load", 5_000, "O")
    kind = desk.dice.choice(["handled", "plain"])
    async with session(desk, kind) as process:
        process.send_signal(signal.SIGINT)
        await desk.chance(0.05)
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        code = await ended(desk, process)
    assert code == (0 if kind == "handled" else -signal.SIGINT), f"exit code {code} ({kind})"


async def test_a_bot_that_is_ended_by_a_signal_ends_in_time_and_leaves_nothing_behind() -> None:
    await prove(bot_is_terminated, bot_is_interrupted_twice)
