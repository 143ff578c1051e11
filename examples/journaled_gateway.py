"""A gateway that may be killed at any moment: no order is executed twice, and what is unknown is
said. The script starts one, kills it between an execution and its FILL, and starts it again.
"""

import asyncio
import os
import signal
import sys
import tempfile

import aiobus
from aiobus import AsyncEventBus, Event, Journal

URL = "ipc://journaled-gateway"


async def gateway(path: str, bus: AsyncEventBus) -> None:
    """Execute the orders that come, and those that came while no gateway was there."""
    with Journal(path) as journal:  # the last that is known of each order, oldest order first
        known = {event.cause: event.type for _, event in journal.read()}
    for order in [order for order, type in known.items() if type == "EXECUTING"]:
        await bus.publish(Event("UNKNOWN", "ask the exchange", cause=order))

    async def execute(order: Event) -> None:
        # On the disk before the exchange hears of it, so the next start does not repeat it.
        await bus.publish(Event("EXECUTING", None, cause=order.id))
        print(f"exchange: buy {order.data}", flush=True)
        if order.data == 3 and not known:
            os.kill(os.getpid(), signal.SIGKILL)
        await bus.publish(Event("FILL", order.data, cause=order.id))

    last = {order.partition("@")[0]: order for order in known}  # of each strategy
    await bus.subscribe("ORDER", execute, after=last.values(), since=0, max_age=30)


async def main() -> None:
    """Be the strategy: send five orders, and hear of each."""
    with tempfile.TemporaryDirectory() as folder:
        command = (sys.executable, __file__, f"{folder}/gateway.db")
        types = ["FILL", "UNKNOWN", "aiobus.peer_restarted"]
        async with AsyncEventBus(URL, name="strategy") as bus, bus.stream(types) as events:
            for quantity in range(1, 6):
                await bus.publish(Event("ORDER", quantity))
            await (await asyncio.create_subprocess_exec(*command)).wait()
            print("the gateway was killed; it starts again", flush=True)
            process = await asyncio.create_subprocess_exec(*command)
            async for event in events:
                print(f"strategy: {event.type} {event.data}", flush=True)
                if (event.type, event.data) == ("FILL", 5):
                    break
            process.terminate()
            await process.wait()


if __name__ == "__main__":
    if path := "".join(sys.argv[1:]):
        aiobus.run(lambda bus: gateway(path, bus), URL, "gateway", journal=path)
    else:
        asyncio.run(main())
