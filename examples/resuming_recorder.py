"""A recorder that is killed and started again: what the feed published meanwhile is fetched from
the history of the feed, so the file has no hole.

Run it: python examples/resuming_recorder.py
"""

import asyncio
import sys
import tempfile

import aiobus
from aiobus import AsyncEventBus, Event, Journal, record

URL = "ipc://resuming-recorder"


async def recorder(bus: AsyncEventBus) -> None:
    """Record until the feed has left; the file may have the beginning already."""
    async with record(bus, sys.argv[1], since=0):
        await bus.wait_for("END")


async def main() -> None:
    """Be the feed: publish for as long as the recorder is killed twice."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/desk.db"
        async with AsyncEventBus(URL, name="feed") as bus:
            for hundreds in (3, 6, 9):
                process = await asyncio.create_subprocess_exec(sys.executable, __file__, path)
                await bus.wait_for("aiobus.peer_joined")
                for count in range(hundreds * 100 - 299, hundreds * 100 + 1):
                    await bus.publish(Event("TRADE", count))
                    await asyncio.sleep(0.001)
                if hundreds == 9:
                    await bus.publish(Event("END", None))
                else:
                    process.kill()
                    print(f"the recorder is killed after {hundreds}00 trades")
                await process.wait()
        with Journal(path) as journal:
            trades = [event.data for _, event in journal.read(types="TRADE")]
        print(f"the file has {len(trades)} trades, without a hole: {trades == [*range(1, 901)]}")


if __name__ == "__main__":
    if sys.argv[1:]:
        aiobus.run(recorder, URL, "recorder")
    else:
        asyncio.run(main())
