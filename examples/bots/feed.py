"""The feed: plays the recorded trades and quotes once, as soon as a subscriber is live.

Run it: python examples/bots/feed.py [ipc://desk] [--speed 10]
"""

import argparse
import asyncio

import aiobus
from aiobus import AsyncEventBus, Event
from recording import SYMBOL, ticks
from terminal import command_line

WANTED = {"strategy": ("TRADE", "SIGNAL"), "broker": ("QUOTE", "ORDER")}  # others look on: "*"


async def feed(bus: AsyncEventBus, speed: float = 1.0) -> None:
    """Publish all that was recorded, `speed` times as fast as it happened."""
    print(f"46 s of BTCUSDT, recorded on 2021-01-08, at {speed:g} times its speed", flush=True)
    now = asyncio.get_running_loop().time
    recorded = ticks()
    start, opening = now(), recorded[0][1]["exchange_time"]
    for type, data in recorded:
        due = start + (data["exchange_time"] - opening) / speed
        await asyncio.sleep(due - now())
        await bus.publish(Event(type, data, key=SYMBOL))


async def meet(bus: AsyncEventBus, name: str) -> None:
    """Wait until the bot of this name has subscribed. The two may start in any order."""
    if name not in [peer.name for peer in bus.peers]:
        print(f"the feed waits for a {name}", flush=True)
    await bus.wait_for_peer(name, subscribed=WANTED.get(name, "*"), key=SYMBOL)


def positive(text: str) -> float:
    """A speed on the command line."""
    if not (speed := float(text)) > 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return speed


def main() -> None:
    """Read the command line, wait for the audience, play."""
    parser = command_line("The feed of the desk: 46 recorded seconds of BTCUSDT.")
    parser.add_argument("--speed", type=positive, default=1.0, help="times real time (default 1)")
    parser.add_argument("--audience", default="strategy", help="bots to wait for: a,b,c")
    options = parser.parse_args()

    async def play(bus: AsyncEventBus) -> None:
        for name in options.audience.split(","):
            await meet(bus, name)
        await feed(bus, options.speed)

    aiobus.run(play, options.url, "feed")


if __name__ == "__main__":
    main()
