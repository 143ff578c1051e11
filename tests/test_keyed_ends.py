"""The end of a bus with keys, and a fork of its process: no thread and no descriptor stays."""

import subprocess
import sys
from pathlib import Path

import pytest
from keys import KeyedDesk
from test_unclosed import COLLECTED, WARNED, loop

__all__ = ["loop"]

START = """
import asyncio, gc, os, socket, sys, threading, time, uvloop
from aiobus import AsyncEventBus, Event
from aiobus.keyring import Keyring

def bus(name):
    return AsyncEventBus(sys.argv[1], name=name, keyring=Keyring.load(sys.argv[3]))

async def start():
    made = bus("forgotten")
    await made.start()
    await made.subscribe("T", print)
    await made.publish(Event("T", "heard"))
    await made.settle()
    return made

def sockets():
    found = []
    for each in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(each))) as copy:
                if copy.family == socket.AF_INET:
                    found.append(copy.getsockname())
        except OSError:
            pass
    return found

def left():
    end = time.monotonic() + 5
    while time.monotonic() < end:
        threads = [each.name for each in threading.enumerate() if each.name.startswith("aiobus")]
        files = len(os.listdir("/proc/self/fd")) - before
        if not threads and files <= 0:
            break
        time.sleep(0.01)
    print("left", threads, max(0, files))

factory = uvloop.new_event_loop if sys.argv[2] == "uvloop" else asyncio.new_event_loop
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(asyncio.sleep(0))  # uvloop keeps what its first loop opens
gc.collect()
before = len(os.listdir("/proc/self/fd"))
"""


def run(code: str, folder: Path, loop: str) -> tuple[list[str], str]:
    """What a process prints, and what it complains of. It ends by itself."""
    desk = KeyedDesk(folder / "keys", "forgotten", "other")
    warnings = "always::ResourceWarning"
    command = [sys.executable, "-W", warnings, "-c", START + code, desk.url, loop, str(desk.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("when", COLLECTED)
def test_a_bus_with_keys_that_is_collected_warns_by_its_name_and_leaves_no_thread(
    folder: Path, loop: str, when: str
) -> None:
    """The thread that lets others in held its loop, and the loop the bus."""
    lines, complaints = run(COLLECTED[when] + "gc.collect()\nleft()\n", folder, loop)
    assert lines[-2] == "end"
    if when != "with a loop that was not closed":  # `clock` keeps the last loop until the next runs
        assert lines[-1] == "left [] 0"
    assert complaints.count(WARNED) == 1


def test_so_does_one_that_is_collected_by_its_own_thread_which_lets_others_in(
    folder: Path, loop: str
) -> None:
    """That waited for its own end, and Python collected nothing any more."""
    code = """
gc.freeze()
gc.disable()
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(start())
del runner
by = []
gc.callbacks.append(lambda phase, info: by.append(threading.current_thread().name))
gc.enable()  # it is overdue: the next thread that makes an object collects
while not by:
    time.sleep(0.01)
left()
print("by", by[0])
"""
    lines, complaints = run(code, folder, loop)
    assert lines[-2:] == ["left [] 0", "by aiobus zap"]
    assert complaints.count(WARNED) == 1


def test_so_does_one_with_keys_that_is_there_when_the_interpreter_ends(
    folder: Path, loop: str
) -> None:
    code = """
runner = asyncio.Runner(loop_factory=factory)
made = runner.run(start())
print("end")
"""
    lines, complaints = run(code, folder, loop)
    assert lines[-1] == "end"
    assert complaints.count(WARNED) == 1


def test_one_with_keys_that_is_closed_leaves_no_thread_and_no_descriptor(
    folder: Path, loop: str
) -> None:
    code = """
async def main():
    made = await start()
    async with bus("other") as other:
        print([each.name for each in other.peers])
    await made.close()

for _ in range(3):
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
gc.collect()
left()
"""
    lines, complaints = run(code, folder, loop)
    assert lines[-1] == "left [] 0"
    assert lines.count("['forgotten']") == 3
    assert "never closed" not in complaints


def test_a_forked_child_keeps_no_connection_of_a_bus_with_keys(folder: Path, loop: str) -> None:
    code = """
async def main():
    made = await start()
    async with bus("other") as other:
        assert len(sockets()) > 4
        if (child := os.fork()) == 0:
            os._exit(len(sockets()))
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        await made.publish(Event("T", "on"))
        print(await made.flush(), [each.name for each in other.peers])
    await made.close()

with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
"""
    lines, _ = run(code, folder, loop)
    assert "[] ['forgotten']" in lines
    assert "child 0" in lines
