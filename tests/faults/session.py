"""A bot in a terminal of its own: a program that publishes and handles until it is ended.

    python session.py handled|plain URL LEDGER

`handled` runs by `aiobus.run`, which ends on SIGTERM and Ctrl-C in order. `plain` is what one
writes first: `asyncio.run`, and no thought of signals.
"""

import asyncio
import faulthandler
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent)]

import aiobus  # noqa: E402 - behind the path
from aiobus import AsyncEventBus  # noqa: E402
from faults.bots import Bot  # noqa: E402

PACE = 2_000


async def work(bus: AsyncEventBus, path: str) -> None:
    """Publish and handle, until cancelled."""
    bot = Bot(path)
    bot.adopt(bus, time.monotonic() - 60)
    try:
        await bot.hear("O")
        bot.load(PACE)
        print("live", flush=True)  # noqa: T201 - the test waits for it
        await bus.wait_closed()
    finally:
        bot.stop()
        bot.end()


async def plain(url: str, path: str) -> None:
    """Join the bus; everything else is Python's."""
    async with AsyncEventBus(url, name="bot") as bus:
        await work(bus, path)


if __name__ == "__main__":
    faulthandler.enable()  # if it hangs, the test ends it by SIGABRT
    # A shell has its background jobs ignore SIGINT, and so would everything they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kind, url, path = sys.argv[1:]
    if kind == "plain":
        asyncio.run(plain(url, path))
    else:
        aiobus.run(lambda bus: work(bus, path), url, "bot", log_level="WARNING")
