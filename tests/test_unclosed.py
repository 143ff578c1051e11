"""A bus that was started and is never closed: its process goes on, and ends."""

import subprocess
import sys
from pathlib import Path

import pytest

START = """
import asyncio, atexit, gc, os, sys, uvloop
from aiobus import AsyncEventBus, Event

async def start():
    bus = AsyncEventBus(sys.argv[1], name="forgotten")
    await bus.start()
    await bus.subscribe("T", print)
    await bus.publish(Event("T", "heard"))
    await bus.settle()
    return bus

factory = uvloop.new_event_loop if sys.argv[2] == "uvloop" else asyncio.new_event_loop
"""
pytestmark = pytest.mark.parametrize(
    ("url", "loop"),
    [
        ("ipc", "asyncio"),
        ("tcp", "uvloop"),
        pytest.param("ipc", "uvloop", marks=pytest.mark.slow),
        pytest.param("tcp", "asyncio", marks=pytest.mark.slow),
    ],
    indirect=True,
)
runs_on_after_a_fork = pytest.mark.skipif(
    sys.version_info >= (3, 14),
    reason="from Python 3.14 on, asyncio runs no task in a forked child, with aiobus or without",
)
WARNED = "ResourceWarning: bus 'forgotten' was never closed"


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(
    code: str, url: str, loop: str, *, warnings: str = "always::ResourceWarning"
) -> tuple[list[str], str]:
    """What a process prints, and what it complains of. It ends by itself."""
    command = [sys.executable, "-W", warnings, "-c", START + code, url, loop]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


COLLECTED = {
    "after its loop": """
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(start())
gc.collect()
print("end")
""",
    "in a cycle of the user": """
class Strategy:
    pass
strategy = Strategy()
strategy.me = strategy
with asyncio.Runner(loop_factory=factory) as runner:
    strategy.bus = runner.run(start())
del strategy
gc.collect()
print("end")
""",
    "with a loop that was not closed": """
loop = factory()
loop.run_until_complete(start())
del loop
gc.collect()
print("end")
""",
    "by another thread": """
import threading
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(start())
thread = threading.Thread(target=gc.collect)
thread.start()
thread.join()
print("end")
""",
}


@pytest.mark.parametrize("when", COLLECTED)
def test_a_bus_that_is_collected_warns_by_its_name_and_closes_its_sockets(
    url: str, loop: str, when: str, folder: Path
) -> None:
    """It hung its process for ever."""
    lines, complaints = run(COLLECTED[when], url, loop)
    assert lines[-1] == "end"
    assert complaints.count(WARNED) == 1
    assert not list(folder.glob("d/*"))


def test_so_does_one_that_is_there_when_the_interpreter_ends(
    url: str, loop: str, folder: Path
) -> None:
    code = """
runner = asyncio.Runner(loop_factory=factory)
bus = runner.run(start())
print("end")
"""
    lines, complaints = run(code, url, loop)
    assert lines[-1] == "end"
    assert complaints.count(WARNED) == 1
    assert not list(folder.glob("d/*"))


@pytest.mark.parametrize(
    "code", [COLLECTED["after its loop"], "bus = asyncio.Runner(loop_factory=factory).run(start())"]
)
def test_it_is_logged_as_well_because_python_hides_such_a_warning(
    url: str, loop: str, code: str
) -> None:
    _, said = run(code, url, loop, warnings="default::UserWarning")
    assert "ResourceWarning" not in said
    assert said.count("bus 'forgotten' was never closed: use `async with`") == 1


@pytest.mark.parametrize("scheme", ["inproc", "ipc"])
def test_a_run_that_ends_before_its_bus_is_closed_is_named_as_what_cancels_a_subscription(
    scheme: str, url: str, loop: str
) -> None:
    """A handler that cancels was all that the error blamed."""
    url = "inproc://" if scheme == "inproc" else url
    _, said = run(COLLECTED["after its loop"], url, loop)
    assert "the task of print(T) was cancelled, so the bus cannot go on" in said
    assert "or asyncio.run ended before the bus was closed: use `async with`" in said


def test_after_that_its_name_is_free_in_the_same_process(url: str, loop: str) -> None:
    code = """
for _ in range(2):
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(start())
    gc.collect()
print("end")
"""
    lines, complaints = run(code, url, loop)
    assert (lines[-1], complaints.count(WARNED)) == ("end", 2)


def test_the_end_of_a_forked_child_is_no_end_of_its_parents_bus(url: str, loop: str) -> None:
    code = """
async def main():
    async with AsyncEventBus(sys.argv[1], name="parent") as bus:
        if (child := os.fork()) == 0:
            atexit._run_exitfuncs()  # as the end of the interpreter does
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        async with AsyncEventBus(sys.argv[1], name="other") as other:
            print([each.name for each in other.peers])

with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
"""
    lines, complaints = run(code, url, loop)
    assert lines == ["['parent']"]
    assert "never closed" not in complaints


@runs_on_after_a_fork
def test_a_forked_child_that_exits_within_the_loop_ends(url: str, loop: str) -> None:
    """The loop runs on there until all is closed, and once read the parent's socket for ever."""
    code = """
async def main():
    async with AsyncEventBus(sys.argv[1], name="parent") as bus:
        if (child := os.fork()) == 0:
            os.environ["CHILD"] = "1"
            sys.exit(0)
        os.waitpid(child, 0)
        async with AsyncEventBus(sys.argv[1], name="other") as other:
            print([each.name for each in other.peers])

try:
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
except BaseException:
    if "CHILD" not in os.environ:
        raise
    os._exit(0)
"""
    lines, _ = run(code, url, loop)
    assert lines == ["['parent']"]


@runs_on_after_a_fork
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["inproc", "ipc"])
def test_a_forked_child_that_leaves_the_body_complains_of_nothing_and_handles_nothing(
    scheme: str, url: str, loop: str
) -> None:
    """It printed two tracebacks, handled what waited in the inboxes once more, and made the
    concurrent calls that had been given a task.
    """
    code = """
async def main():
    async with AsyncEventBus(sys.argv[1], name="parent") as bus:
        await bus.subscribe("T", lambda event: print("handled", event.data))
        await bus.subscribe("T", takes, concurrency=2)
        await bus.subscribe("T", fails)
        await bus.publish(Event("T", 0))
        await bus.settle()
        await bus.subscribe("T", holds, concurrency=2)
        async with bus.stream("T") as events:
            await bus.publish(Event("T", 1))
            for _ in range(4):
                sys.stdout.flush()
                if (child := os.fork()) == 0:
                    os.environ["CHILD"] = "1"
                    return
                assert os.waitpid(child, 0)[1] == 0
                await asyncio.sleep(0)
            print("streamed", (await anext(events)).data)

async def takes(event):
    print("taken", event.data)

async def holds(event):
    await asyncio.sleep(0.05)

async def fails(event):
    if "CHILD" in os.environ:
        print("failed in the child")

with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
"""
    url = "inproc://" if scheme == "inproc" else url
    lines, complaints = run(code, url, loop, warnings="default::UserWarning")
    expected = [f"{what} {data}" for what in ("handled", "taken") for data in (0, 1)]
    assert sorted(lines) == sorted([*expected, "streamed 1"])
    # A loop of asyncio that ends in the child takes its parent's wake-up away with it.
    assert [line for line in complaints.splitlines() if "takes longer than" not in line] == []


def test_one_that_was_closed_warns_of_nothing(url: str, loop: str) -> None:
    code = """
async def main():
    bus = await start()
    await bus.close()

with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
gc.collect()
"""
    _, complaints = run(code, url, loop)
    assert "never closed" not in complaints
