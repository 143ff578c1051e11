"""Feed, strategy, broker and monitor, each a process of its own, on one ipc:// bus. This is
`make demo`; Ctrl-C ends it early, with the summary so far.

Run it: python examples/bots/desk.py [--speed 10]
"""

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from pathlib import Path

from feed import positive

BOTS = ("feed", "strategy", "broker", "monitor")  # the way of a tick


async def trade(url: str, speed: float) -> int:
    """Start the bots all at once; when one ends, normally the feed, end the others in order."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    options = {"feed": (f"--speed={speed}", f"--audience={','.join(BOTS[1:])}")}
    bots: list[Process] = []
    try:
        for name in BOTS:
            bot = await start(name, url, *options.get(name, ()))
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
    return await asyncio.create_subprocess_exec(*command, start_new_session=True)


def main() -> int:
    """Read the command line, trade in a directory that no other bus knows."""
    parser = argparse.ArgumentParser(description="Four bots trade 46 recorded seconds of BTCUSDT.")
    parser.add_argument("--speed", type=positive, default=1.15, help="times real time")
    speed = parser.parse_args().speed
    with tempfile.TemporaryDirectory(prefix="aiobus-desk-") as directory:
        return asyncio.run(trade(f"ipc://{directory}", speed))


if __name__ == "__main__":
    sys.exit(main())
