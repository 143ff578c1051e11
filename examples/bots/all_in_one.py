"""Four bots on one bus: feed -> strategy -> broker, and a monitor that prints how every fill came
about. This is `make demo`; Ctrl-C ends it early, with the summary so far.

Run it: python examples/bots/all_in_one.py [--speed 10]
"""

import argparse
import asyncio
import contextlib
import logging

from aiobus import AsyncEventBus
from broker import broker
from feed import feed
from monitor import monitor
from strategy import strategy


async def demo(speed: float) -> None:
    """Whoever listens comes first: each is live when its line returns, and then the feed begins."""
    async with AsyncEventBus(name="desk") as bus:
        tally = await monitor(bus)
        await broker(bus)
        await strategy(bus)
        print(
            f"46 s of BTCUSDT, recorded on 2021-01-08, at {speed:g} times its speed\n", flush=True
        )
        try:
            await feed(bus, speed)
            await bus.settle()
        finally:
            print(f"\n{tally}")


def main() -> None:
    """Read the command line, run the demo."""
    parser = argparse.ArgumentParser(description="Four bots trade 46 recorded seconds of BTCUSDT.")
    parser.add_argument("--speed", type=float, default=1.15, help="times real time (default 1.15)")
    speed = parser.parse_args().speed
    if not speed > 0:
        parser.error("--speed must be above 0")
    logging.basicConfig()  # a failing handler says so on stderr
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(demo(speed))


if __name__ == "__main__":
    main()
