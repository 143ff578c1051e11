"""An older copy of a journal is put in place of it, and later the true file comes back. If a
subscription lags when its bus has heard of more than the copy has, the bus of the copy ends, and
nothing that was committed is missing. If its bus knows of no more, it takes what the copy has; then
what it lacks of the true file is a gap.
"""

import asyncio
import secrets
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from actors import Actor, Nursery

from aiobus import AsyncEventBus, Event, Journal, JournalRestored, durable
from aiobus.sequence import FORKED
from aiobus.testing import MemoryNetwork

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_task_is_left")]

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


# A neighbour that knows of nothing that the copy lacks.


def check_that_all_is_told(seen: list[list[Any]], path: Path) -> list[list[Any]]:
    """Each event of the file was handed over or is in a gap, and no number came twice. Returns
    the gaps.
    """
    heard = {seq: data for type, seq, data in seen if type == "T"}
    assert len(heard) == sum(type == "T" for type, *_ in seen)
    gaps = [data for type, _, data in seen if type == "aiobus.gap"]
    with Journal(path) as journal:
        lost = [e.seq for _, e in journal.read() if heard.get(e.seq, ...) != e.data]
    missed = [seq for seq in lost if not any(g["after"] < seq <= g["upto"] for g in gaps)]
    assert missed == []
    return [[gap["reason"], gap["after"], gap["upto"]] for gap in gaps]


async def publish(bus: AsyncEventBus, word: str, count: int) -> int:
    """Returns the last number."""
    for number in range(count):
        event = await bus.publish(Event("T", [word, number]))
    return event.seq


@pytest.mark.parametrize("copies", [1, 3], ids=lambda count: f"{count} starts of the copy")
@pytest.mark.parametrize("lag", ["it is live", "it lags"])
async def test_what_a_copy_used_the_numbers_of_is_a_gap_for_a_neighbour_that_knew_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: int, lag: str
) -> None:
    files, network, elsewhere = Files(tmp_path), MemoryNetwork(), MemoryNetwork()
    leaving_out(monkeypatch, 100, 500, *[20] * (copies - 1), 7, 7)
    seen: list[list[Any]] = []
    goes_on = asyncio.Event()

    async def note(event: Event) -> None:
        if lag == "it lags":
            await goes_on.wait()
        seen.append([event.type, event.seq, event.data])

    async with network.bus("monitor") as monitor:
        await monitor.subscribe(TYPES, note, maxsize=10)
        async with network.bus("desk", journal=files.path) as desk:
            first = await publish(desk, "first", 20)
            assert lag == "it lags" or await desk.flush() == []
            await desk.close(0.2)
        files.keep("copy")
        async with elsewhere.bus("desk", journal=files.path) as desk:
            await publish(desk, "true", 2_000)
        files.keep("true")
        files.put_back("copy")
        for number in range(copies):
            async with network.bus("desk", journal=files.path) as desk:
                last = await publish(desk, f"copy {number}", 30)
                goes_on.set()
                assert await desk.flush() == []
        files.put_back("true")
        for word in ("again", "and again"):
            async with network.bus("desk", journal=files.path) as desk:
                await publish(desk, word, 5)
                assert await desk.flush() == []
        await monitor.settle()
    ((reason, after, upto),) = check_that_all_is_told(seen, files.path)
    assert (reason, upto) == (FORKED, last)
    assert after == first or lag == "it lags"
    assert after <= first


async def test_the_bus_of_the_true_file_names_both_ways_out_if_its_copy_used_higher_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, network, elsewhere = Files(tmp_path), MemoryNetwork(), MemoryNetwork()
    leaving_out(monkeypatch, 100, 3_000, 7)
    async with network.bus("monitor") as monitor:
        await monitor.subscribe("T", lambda event: None)
        async with network.bus("desk", journal=files.path) as desk:
            await publish(desk, "first", 20)
        files.keep("copy")
        async with elsewhere.bus("desk", journal=files.path) as desk:
            await publish(desk, "true", 1_000)
        files.keep("true")
        files.put_back("copy")
        async with network.bus("desk", journal=files.path) as desk:
            await publish(desk, "copy", 30)
            assert await desk.flush() == []
        files.put_back("true")
        text = "put it back. If this is the newer file, start once with new_epoch=True"
        with pytest.raises(JournalRestored, match=text):
            async with network.bus("desk", journal=files.path) as desk:
                await desk.wait_closed()


@pytest.mark.parametrize("missed", [1, 2, 5])
async def test_a_neighbour_that_missed_starts_gets_all_of_them_and_no_gap(
    tmp_path: Path, missed: int
) -> None:
    path, network, elsewhere = tmp_path / "desk.db", MemoryNetwork(), MemoryNetwork()
    seen: list[list[Any]] = []
    async with network.bus("monitor") as monitor:
        await monitor.subscribe(
            TYPES, lambda event: seen.append([event.type, event.seq, event.data])
        )
        async with network.bus("desk", journal=path) as desk:
            await publish(desk, "first", 20)
        for number in range(missed):
            async with elsewhere.bus("desk", journal=path) as desk:
                await publish(desk, f"missed {number}", 20)
        for word in ("again", "and again"):
            async with network.bus("desk", journal=path) as desk:
                await publish(desk, word, 20)
                assert await desk.flush() == []
        await monitor.settle()
    assert check_that_all_is_told(seen, path) == []
    assert sum(type == "T" for type, *_ in seen) == 20 * (3 + missed)


DRAW = """
import secrets
from aiobus import durable
real = secrets.randbelow
secrets.randbelow = lambda most: number if most == durable.SPREAD else real(most)
"""


@pytest.mark.paired
@pytest.mark.parametrize("has_copy", [True, False], ids=["and a copy", "and no copy"])
async def test_a_neighbour_that_was_frozen_during_a_start_is_told_what_it_lacks_of_it(
    nursery: Nursery, url: str, tmp_path: Path, has_copy: bool
) -> None:
    """Without a copy it was frozen during two starts, and lacks nothing."""
    files = Files(tmp_path)

    async def desk(number: int) -> Actor:
        made = await nursery.actor()
        await made(DRAW, number=number)
        await made.start(url, "desk", journal=str(files.path))
        return made

    monitor = await nursery.actor()
    await monitor.start(url, "monitor")
    await monitor(HEAR, types=TYPES)
    await monitor("self.is_held = False")
    first = await desk(0)
    await first(PUBLISH, word="first", count=50)
    assert await first("return await bus.flush(30)") == []
    await first.end()
    files.keep("copy")
    monitor.kill(signal.SIGSTOP)
    second = await desk(100)
    await second(PUBLISH, word="second", count=3_000)
    second.kill()
    await second.code
    files.keep("true")
    if has_copy:
        files.put_back("copy")
    third = await desk(500)
    await third(PUBLISH, word="third", count=100)
    monitor.kill(signal.SIGCONT)
    assert await third("return await bus.flush(30)") == []
    await third.end()
    if has_copy:
        files.put_back("true")
    fourth = await desk(7)
    await fourth(PUBLISH, word="fourth", count=10)
    assert await fourth("return await bus.flush(30)") == []
    await monitor("await bus.settle(30)")
    seen = await monitor("return self.seen")
    # There are two subscriptions.
    seen = [each for place, each in enumerate(seen) if each not in seen[:place]]
    gaps = check_that_all_is_told(seen, files.path)
    assert [reason for reason, *_ in gaps] == [FORKED] * has_copy
