"""A disk that one journal alone has filled to its last block: a real file system of a few MiB."""

import subprocess
import sys
from pathlib import Path

import pytest

PRIVATE = ["unshare", "--user", "--map-root-user", "--mount"]
"""A process that may mount a file system, which only it can see."""

PROGRAM = """
import asyncio, os, subprocess, sys
from aiobus import AsyncEventBus, Event, Journal
from aiobus.errors import CommitFailed, JournalError

disk, size = sys.argv[1], 16
path = f"{disk}/desk.db"
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", disk], check=True)
committed, handed, number = [], [], 0

def make_space():
    global size
    size += 8
    subprocess.run(["mount", "-o", f"remount,size={size}m", disk], check=True)

async def publish(bus, length):
    global number
    number += 1
    event = Event("T", [number, "x" * length])
    try:
        await bus.publish(event)
    except CommitFailed:
        assert event.seq == 0
        return False
    committed.append(number)
    return True

async def fill(bus):
    for length in (20_000, 1_000, 1):
        while await publish(bus, length):
            pass
    for _ in range(3):
        assert not await publish(bus, 20_000)

async def main():
    for start in range(3):
        bus = AsyncEventBus(name="desk", journal=path)
        if start:
            try:
                await bus.start()
            except JournalError as error:
                assert "No space left" in str(error), error
            else:
                raise AssertionError("a start needs space for its mark")
            make_space()
            bus = AsyncEventBus(name="desk", journal=path)
        await bus.start()
        await bus.subscribe("T", lambda event: handed.append(event.data[0]))
        await fill(bus)
        make_space()
        assert await publish(bus, 1)
        await asyncio.to_thread(until_marked, len(committed))
        await fill(bus)
        await bus.settle()
        assert handed == committed
        await bus.close()
    with Journal(path) as journal:
        assert journal.verify() == len(committed)
        assert [event.data[0] for _, event in journal.read()] == committed
    print(len(committed))

def until_marked(offset):
    from time import sleep
    from aiobus.journal.mark import read_mark
    while (mark := read_mark(path)) is None or mark.offset < offset:
        sleep(0.01)

asyncio.run(main())
"""


def may_mount(folder: Path) -> bool:
    told = [*PRIVATE, "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    try:
        return subprocess.run(told, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_journal_that_fills_its_disk_fails_commits_until_there_is_space(tmp_path: Path) -> None:
    """Twice in each of three starts, two of which are first tried on the full disk."""
    if not may_mount(tmp_path):
        pytest.skip("this user may not make a namespace to mount a file system in")
    told = [*PRIVATE, sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1_000
