"""A bot of the desk of the examples in a process of its own, whose strategy is recorded.

Run: python tests/recorded_bot.py record URL FILE asyncio|uvloop
     python tests/recorded_bot.py verify FILE FAST
"""

import asyncio
import sys

import replays
import uvloop

from aiobus import AsyncEventBus, Event, record, verify


async def recorded(url: str, path: str) -> None:
    """Record until the feed has left."""
    bus = AsyncEventBus(url, name="strategy")
    async with bus, record(bus, path, attach=replays.strategy):

        async def say(_: Event | None = None) -> None:
            await bus.publish(Event("LIVE", {}, key="strategy"))

        await bus.subscribe("IS_LIVE", say, key="strategy")
        async with bus.stream("aiobus.peer_left") as left:
            await say()
            async for event in left:
                if event.data["name"] == "feed":
                    return


def main(command: str, *arguments: str) -> None:
    """Run a command."""
    if command == "record":
        url, path, loop = arguments
        factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(recorded(url, path))
    else:
        path, fast = arguments
        replays.FAST = int(fast)
        report = verify(path, replays.strategy)
        sys.stdout.write(f"{report}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
