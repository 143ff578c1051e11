"""A process forks while it writes a journal: the child does not write, and nothing is the worse for
the parent.
"""

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from journals import read

from aiobus import AsyncEventBus, Event, Journal, JournalInUse, WrongLoop, record
from aiobus.journal.mark import read_mark
from aiobus.journal.writer import JournalWriter
from aiobus.recorder import Recording

# Python 3.12 and later warn of a fork beside threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
Call = Callable[[], Any]


def is_refused(call: Call) -> bool:
    """At once: a coroutine is driven up to its first wait, since no loop runs in a child."""
    try:
        if inspect.iscoroutine(made := call()):
            made.send(None)
    except WrongLoop:
        return True
    return False


class Forked(Exception):
    """Leaves the body in the child."""


async def fork(calls: list[Call]) -> None:
    """Fork. In the child, each call is refused, and the body is left, with an error if one was not;
    the parent waits for its end.
    """
    if (child := os.fork()) == 0:
        raise Forked([is_refused(call) for call in calls])
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a program that forks. Its child ends here, after it has left all bodies."""

    async def guarded() -> None:
        try:
            await main()
        except Forked as forked:
            os._exit(0 if all(forked.args[0]) else 1)
        except BaseException:
            if os.getpid() != parent:
                os._exit(2)
            raise

    parent = os.getpid()
    asyncio.run(guarded())


def check_untouched(path: Path) -> None:
    """The parent still writes the file, and the child has not closed it."""
    mark = read_mark(str(path))
    assert mark is not None
    assert not mark.is_clean
    with pytest.raises(JournalInUse, match=f"process {os.getpid()} since"):
        JournalWriter(path).open()


def test_a_forked_child_publishes_nothing_into_the_journal_of_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"

    async def main() -> None:
        async with AsyncEventBus(name="desk", journal=path) as bus:
            await bus.publish(Event("T", 0))
            await fork(
                [
                    lambda: bus.publish(Event("T", "child")),
                    lambda: bus.publish_nowait(Event("T", "child")),
                    lambda: bus.request(Event("T", "child"), "U"),
                    lambda: bus.reply("desk@1.1", Event("T", "child")),
                    lambda: bus.settle(),
                    lambda: bus.flush(),
                    lambda: bus.close(),
                ]
            )
            check_untouched(path)
            await bus.publish(Event("T", 1))

    run(main)
    assert [event.data for _, event in read(path)] == [0, 1]
    with Journal(path) as journal:
        assert journal.verify() == 2


def test_a_forked_child_does_not_commit_what_waits_in_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"

    async def main() -> None:
        async with AsyncEventBus(name="desk", journal=path) as bus:
            for number in range(100):
                bus.publish_nowait(Event("T", number))
            await fork([lambda: bus.publish(Event("T", "child"))])
            await bus.settle()
            check_untouched(path)

    run(main)
    assert [event.data for _, event in read(path)] == list(range(100))


def test_a_forked_child_leaves_a_recording_to_its_parent(tmp_path: Path) -> None:
    path, other = tmp_path / "desk.db", tmp_path / "child.db"

    async def main() -> None:
        async with AsyncEventBus(name="desk") as bus, record(bus, path) as recording:
            for number in range(10):
                await bus.publish(Event("T", number))
            await recording.flush()
            for number in range(10, 20):  # these may wait to be recorded when it forks
                await bus.publish(Event("T", number))
            await fork([lambda: recording.flush(), lambda: entered(record(bus, other))])
            assert not other.exists()
            check_untouched(path)
            for number in range(20, 30):
                await bus.publish(Event("T", number))
            await recording.flush()

    run(main)
    assert [event.data for _, event in read(path, types="T")] == list(range(30))


async def entered(recording: Recording) -> None:
    await recording.__aenter__()
