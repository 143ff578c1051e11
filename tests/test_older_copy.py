"""An older copy of a journal is put in place of it while a subscription still lacks events of the
last start. The bus of the copy ends, the true file comes back, and nothing that was committed is
missing.
"""

import asyncio
import secrets
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from actors import Actor, Nursery

from aiobus import Event, Journal, JournalRestored, durable
from aiobus.testing import MemoryNetwork

pytestmark = pytest.mark.usefixtures("no_task_is_left")

TYPES = ["T", "aiobus.gap", "aiobus.peer_restarted"]
LAST = 100
"""Events of the start that the copy does not know."""


class Files:
    """The journal of the desk, and copies of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal" / "desk.db"
        self.path.parent.mkdir()
        self._folder = folder

    def keep(self, name: str) -> None:
        shutil.copytree(self.path.parent, self._folder / name)

    def put_back(self, name: str) -> None:
        shutil.rmtree(self.path.parent)
        shutil.copytree(self._folder / name, self.path.parent)


def leaving_out(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """The next starts that go on leave out so many numbers, which are drawn at random else: those
    of the copy lie among those of the start that it does not know.
    """
    drawn, real = iter(numbers), secrets.randbelow
    draw = lambda most: next(drawn) if most == durable.SPREAD else real(most)  # noqa: E731
    monkeypatch.setattr(secrets, "randbelow", draw)


@pytest.mark.parametrize("skipped", [0, 50, 99, 150])
async def test_what_was_committed_follows_when_the_true_file_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skipped: int
) -> None:
    files, network = Files(tmp_path), MemoryNetwork()
    make = network.bus
    leaving_out(monkeypatch, 100, skipped, 0)
    seen: list[Any] = []
    goes_on = asyncio.Event()

    async def note(event: Event) -> None:
        await goes_on.wait()
        seen.append(event.data if event.type == "T" else (event.type, event.data.get("start")))

    async with make("monitor") as monitor:
        await monitor.subscribe(TYPES, note, maxsize=10)
        async with make("desk", journal=files.path) as desk:
            await desk.publish(Event("T", "first"))
            await desk.flush(0.2)
        files.keep("copy")
        desk = make("desk", journal=files.path)
        await desk.start()
        for number in range(LAST):
            await desk.publish(Event("T", number))
        await desk.flush(0.2)  # the monitor lacks most of it, and has heard of all
        network.kill("desk")
        await desk.close(0)
        files.keep("true")
        files.put_back("copy")
        asyncio.get_running_loop().call_soon(goes_on.set)
        with pytest.raises(JournalRestored):
            async with make("desk", journal=files.path) as desk:
                for number in range(1_000_000):
                    await desk.publish(Event("T", f"of the copy {number}"))
        files.put_back("true")
        async with make("desk", journal=files.path) as desk:
            await desk.publish(Event("T", "again"))
            assert await desk.flush() == []
        await monitor.settle()
    told = [each for each in seen if isinstance(each, tuple)]
    assert told == [("aiobus.peer_restarted", 1), ("aiobus.peer_restarted", 2)]
    assert [each for each in seen if each not in told] == ["first", *range(LAST), "again"]


HEAR = """
self.seen = []
async def note(event):
    while self.is_held and event.type == "T":
        await asyncio.sleep(0.01)
    self.seen.append([event.type, event.seq, event.data])
self.is_held = True
await bus.subscribe(types, note)
await bus.subscribe(types, note, maxsize=20)
"""
PUBLISH = """
for number in range(count):
    await bus.publish(Event("T", [word, number]))
"""
FLOOD = """
async def flood():
    for number in range(1_000_000):
        await bus.publish(Event("T", ["copy", number]))
        if number % 50 == 0:
            await asyncio.sleep(0.001)
self.flood = asyncio.create_task(flood())
while bus.stats().published < 3_000:
    await asyncio.sleep(0.01)
"""
END = """
try:
    await bus.wait_closed()
except Exception as error:
    return type(error).__name__
"""


async def test_a_neighbour_that_was_frozen_takes_nothing_of_the_copy(
    nursery: Nursery, url: str, tmp_path: Path
) -> None:
    """When it goes on it finds the frames of the copy before all else that tells of it."""
    files = Files(tmp_path)

    async def desk() -> Actor:
        made = await nursery.actor()
        await made.start(url, "desk", journal=str(files.path))
        return made

    monitor = await nursery.actor()
    await monitor.start(url, "monitor")
    await monitor(HEAR, types=TYPES)
    first = await desk()
    await first(PUBLISH, word="first", count=50)
    await first.end()
    files.keep("copy")
    second = await desk()
    await second(PUBLISH, word="second", count=3_000)
    second.kill()
    await second.code
    files.keep("true")
    monitor.kill(signal.SIGSTOP)
    files.put_back("copy")
    copy = await desk()  # after 5 s, without the monitor
    await copy(FLOOD)
    monitor.kill(signal.SIGCONT)
    assert await copy(END) == "JournalRestored"
    await copy.end()
    files.put_back("true")
    third = await desk()
    await third(PUBLISH, word="third", count=10)
    await monitor("self.is_held = False")
    assert await third("return await bus.flush(30)") == []
    await monitor("await bus.settle(30)")
    seen = await monitor("return self.seen")
    with Journal(files.path) as journal:
        events = [["T", event.seq, event.data] for _, event in journal.read()]
    heard = [each for each in seen if each[0] == "T"]
    assert sorted(heard, key=lambda each: each[1]) == sorted([*events, *events], key=lambda e: e[1])
    starts = [each[2]["start"] for each in seen if each[0] == TYPES[2]]
    assert sorted(starts) == [1, 1, 2, 2]
    assert [each for each in seen if each[0] == "aiobus.gap"] == []
