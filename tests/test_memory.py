"""Memory stays within the configured bounds: measured on a process of its own."""

import subprocess
import sys

MIB = 1024 * 1024

FLOOD = """
import asyncio, os
from aiobus import AsyncEventBus, Event, Limits

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

async def hang(event):
    await asyncio.get_running_loop().create_future()

async def main():
    limits = Limits(history_bytes=4 * 1024**2, history_total_bytes=8 * 1024**2)
    bus = AsyncEventBus(limits=limits)
    await bus.start()
    await bus.subscribe("*", hang)
    await bus.subscribe("*", hang, overflow="drop_oldest")
    await bus.subscribe("*", hang, overflow="latest", maxsize=1000)
    before = resident()
    for number in range(200_000):
        await bus.publish(Event(f"T{number % 4}", "x" * 200, key=str(number % 5000)))
    print(resident() - before)
    await bus.close(0.1)

asyncio.run(main())
"""


def test_a_flood_to_hung_subscribers_grows_memory_by_the_configured_bounds() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FLOOD], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    row = 200 + 60 + 64  # the data, its envelope and type, the object
    inboxes = (8192 + 8192 + 1000) * row
    # Twice the bounds: the allocator's free lists and the columns' growth by doubling are in it.
    assert int(done.stdout) < 2 * (8 * MIB + inboxes) + 4 * MIB
