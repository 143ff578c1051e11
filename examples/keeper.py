"""A gateway ends and has no journal. What starts after it knows its position and its HALT, and so
does the gateway when it comes back empty.

Run it: python examples/keeper.py
"""

import asyncio
import sys
import tempfile

from aiobus import AsyncEventBus, Event, EventType, Keeper

URL = "ipc://keeper-example"


async def gateway() -> None:
    """Ask for the own state first, then publish what is true, and end."""
    async with AsyncEventBus(URL, name="gateway") as bus:
        size = 0.0

        def on_position(event: Event) -> None:
            nonlocal size
            size = event.data["size"]

        await bus.subscribe(EventType.POSITION, on_position, key="BTCUSDT", since="last")
        await bus.settle()
        print(f"the gateway begins with a position of {size}", flush=True)
        await bus.publish(Event(EventType.POSITION, {"size": size + 1.5}, key="BTCUSDT"))
        await bus.publish(Event(EventType.HALT, {"reason": "daily loss"}))


async def main() -> None:
    """Let the gateway live twice, and ask for the state of the desk."""
    with tempfile.TemporaryDirectory() as folder:
        async with Keeper(URL, f"{folder}/state.db"):
            for _ in range(2):
                process = await asyncio.create_subprocess_exec(sys.executable, __file__, "gateway")
                await process.wait()
            async with (
                AsyncEventBus(URL, name="strategy") as bus,
                bus.stream([EventType.POSITION, EventType.HALT], since="last") as state,
            ):
                for _ in range(2):
                    event = await anext(aiter(state))
                    print(f"the strategy hears {event.type} {event.data} from {event.source}")


if __name__ == "__main__":
    asyncio.run(gateway() if sys.argv[1:] else main())
