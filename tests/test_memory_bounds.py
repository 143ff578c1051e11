"""Memory stays within the configured bounds: measured on a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
]

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


SUBJECT = """
import asyncio, os, subprocess, sys
from aiobus import AsyncEventBus, Event, Limits

def peak():
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024

async def main(folder, code):
    # What ZeroMQ queues for a peer that does not read is this many messages, here pages of 50 KB:
    # of the default, 512, some 26 MiB. How far that fills up is left to the scheduler.
    limits = Limits(high_water_mark=64)
    async with AsyncEventBus(f"ipc://{folder}", name="feed", limits=limits) as bus:
        for number in range(20_000):
            await bus.publish(Event("T", {"number": number}, key=str(number % 100)))
        before, refused = peak(), bus.stats().refused
        epoch = str(bus.stats().epoch)
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, folder, epoch)
        ended = asyncio.ensure_future(process.wait())
        while not ended.done():
            await bus.publish(Event("T", {"number": 0}))
            await asyncio.sleep(0.001)
        assert ended.result() == 0
        async with AsyncEventBus(f"ipc://{folder}", name="strategy") as strategy:
            async with strategy.stream("U") as events:
                await bus.publish(Event("U", 1))
                assert (await anext(events)).data == 1
        while len(bus._transport.session.fanout):  # until what has ended is read
            await asyncio.sleep(0.001)
        print(peak() - before)

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""
PRELUDE = """
import json, sys, time, zmq
folder, epoch = sys.argv[1], int(sys.argv[2])
me = f"evil@1 ipc://{folder}/evil.sock"
socket = zmq.Context().socket(zmq.XSUB)
socket.set(zmq.SNDHWM, 0)
socket.set(zmq.RCVHWM, 1)  # what it does not read stays with the bus that has sent it
socket.set(zmq.LINGER, 60_000)
socket.connect(f"ipc://{folder}/feed.sock")
"""
EVIL = {
    "an asker without a pause": """
socket.send(b"\\1~" + me.encode() + b"\\0")
for number in range(100_000):
    question = ["!", "feed", number % 1_000, me, epoch, "*", 0, 1_000, None, 0]
    socket.send(json.dumps(question, separators=(",", ":")).encode())
""",
    "an asker that reads nothing, at a pace at which each question is answered": """
socket.send(b"\\1~" + me.encode() + b"\\0")
for number in range(6_000):
    question = ["!", "feed", number % 1_000, me, epoch, "*", 0, 1_000, None, 0]
    socket.send(json.dumps(question, separators=(",", ":")).encode())
    if number % 100 == 0:
        time.sleep(0.02)
""",
    "an asker that never said hello": """
for number in range(100_000):
    socket.send(json.dumps(["!", "feed", 1, me, epoch, "*", 0, 1_000, None, 0]).encode())
""",
    "a subscriber to junk": """
for number in range(60_000):
    socket.send(b"\\1T/junk%d\\0" % number)
""",
    "2,000 members that do not exist": """
for number in range(2_000):
    socket.send(b"\\1~tool%d@1 ipc://%b/tool%d.sock\\0" % (number, folder.encode(), number))
""",
}
END = """
while socket.poll(200):
    socket.recv()
socket.context.destroy(linger=3_000)  # more than it needs, unless its connection is ended for good
"""
BOUNDS = {
    "an asker that reads nothing, at a pace at which each question is answered": 8 * MIB,
    "a subscriber to junk": 64 * MIB,
    "2,000 members that do not exist": 48 * MIB,
}
"""Of memory. ZeroMQ itself keeps each subscription: some 15 MiB of 60,000."""


@pytest.mark.parametrize("evil", EVIL)
def test_a_peer_that_misbehaves_costs_a_bounded_amount_of_memory_and_no_other_bus(
    evil: str, tmp_path: Path
) -> None:
    folder = tmp_path / "d"
    code = PRELUDE + EVIL[evil] + END
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SUBJECT, str(folder), code],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < BOUNDS.get(evil, 32 * MIB)


STARTS = """
import asyncio, os, sys
from aiobus import AsyncEventBus, Event

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

async def come_and_go(url, times):
    for number in range(times):
        async with AsyncEventBus(url, name="tool") as tool:
            await tool.publish(Event("PING", number))

async def main(url):
    async with AsyncEventBus(url, name="strategy") as bus:
        for number in range(500):
            await bus.subscribe("TRADE", lambda event: None, key=f"S{number}")
        await come_and_go(url, 160)
        before = resident()
        await come_and_go(url, 160)
        print(resident() - before)

asyncio.run(main(sys.argv[1]))
"""


def test_a_bus_that_comes_and_goes_does_not_grow_the_memory_of_others_for_ever(
    tmp_path: Path,
) -> None:
    """160 starts beside 500 subscriptions grew it by 14 MiB."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", STARTS, f"ipc://{tmp_path / 'd'}"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 6 * MIB
