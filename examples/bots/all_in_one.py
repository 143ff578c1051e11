"""The four bots in one process, on one inproc:// bus: the bots are the same, only the URL differs.

Run it: python examples/bots/all_in_one.py [--speed 10]
"""

import argparse
import asyncio
import contextlib
import logging

from aiobus import AsyncEventBus
from broker import broker
from feed import feed, positive
from monitor import monitor
from report import Tally
from strategy import strategy


async def trade(speed: float) -> None:
    """Whoever listens comes first: each is live when its line returns, and then the feed begins."""
    tally = Tally()
    async with AsyncEventBus("inproc://", name="desk") as bus:
        await monitor(bus, tally)
        await broker(bus)
        await strategy(bus)
        try:
            await feed(bus, speed)
            await bus.settle()
        finally:
            tally.say()


def main() -> None:
    """Read the command line, trade. Ctrl-C ends it early, with the summary so far."""
    parser = argparse.ArgumentParser(description="Four bots trade 46 recorded seconds of BTCUSDT.")
    parser.add_argument("--speed", type=positive, default=1.15, help="times real time")
    logging.basicConfig()  # a failing handler says so on stderr
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(trade(parser.parse_args().speed))


if __name__ == "__main__":
    main()
