"""Several bots, each a process of its own, from the first to the last of them."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import Process
from pathlib import Path

Command = tuple[str, ...]
"""The name of a bot, and its arguments."""


async def run_together(commands: list[Command]) -> int:
    """Start the bots all at once; when one ends, normally the feed, end the others in order."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    bots: list[Process] = []
    try:
        for command in commands:
            bot = await start(*command)
            bots.append(bot)
        ends = [asyncio.ensure_future(end) for end in (stopped.wait(), *(b.wait() for b in bots))]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for bot in bots:
            with contextlib.suppress(ProcessLookupError):
                bot.terminate()
            await bot.wait()  # then what it published last is with those behind it
    return 0 if stopped.is_set() else max(abs(bot.returncode or 0) for bot in bots)


async def start(name: str, *arguments: str) -> Process:
    """A bot in a session of its own: Ctrl-C is for this script, which ends the bots in order."""
    command = (sys.executable, "-u", str(Path(__file__).with_name(f"{name}.py")), *arguments)
    quiet = {"AIOBUS_LOG": "WARNING", **os.environ}  # five bots share this terminal
    return await asyncio.create_subprocess_exec(*command, env=quiet, start_new_session=True)
