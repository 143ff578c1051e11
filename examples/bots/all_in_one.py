"""The four bots in one process, on one inproc:// bus: the bots are the same, only the URL differs.

Run it: python examples/bots/all_in_one.py [--speed 10]
"""

import argparse

import aiobus
from aiobus import AsyncEventBus
from broker import broker
from feed import feed, positive
from monitor import monitor
from report import Tally
from strategy import strategy


async def trade(bus: AsyncEventBus, speed: float, tally: Tally) -> None:
    """Start the subscribers first: each is live when its line returns. The feed is last."""
    await monitor(bus, tally)
    await broker(bus)
    await strategy(bus)
    await feed(bus, speed)
    await bus.settle()


def main() -> None:
    """Read the command line, trade. Ctrl-C ends it early, with the summary so far."""
    parser = argparse.ArgumentParser(description="Four bots trade 46 recorded seconds of BTCUSDT.")
    parser.add_argument("--speed", type=positive, default=1.15, help="times real time")
    speed, tally = parser.parse_args().speed, Tally()
    try:
        aiobus.run(lambda bus: trade(bus, speed, tally), "inproc://", "desk", until="return")
    finally:
        tally.say()


if __name__ == "__main__":
    main()
