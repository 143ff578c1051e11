"""A journal that is damaged while its bus runs: what its history hands over, and what is a gap."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from actors import tcp_url
from journals import START

from aiobus import AsyncEventBus, Event, Journal, Limits
from aiobus.journal import history
from aiobus.journal.history import Past
from aiobus.query import EVERYTHING

pytestmark = pytest.mark.usefixtures("no_task_is_left")

EVENTS = 300
IN_MEMORY = 20
LIMITS = Limits(history_events=IN_MEMORY)
"""So a restart has the rest in the file alone."""


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LOADED", IN_MEMORY)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feed.db"


@pytest.fixture(params=["inproc", "ipc", "tcp"])
def url(request: pytest.FixtureRequest, folder: Path) -> str:
    urls = {"inproc": "inproc://", "ipc": f"ipc://{folder}/d", "tcp": tcp_url()}
    return urls[request.param]


def text(seq: int) -> str:
    return f"<event {seq:06}>"


async def make(path: Path, count: int = EVENTS) -> None:
    async with AsyncEventBus(name="feed", journal=path) as bus:
        for seq in range(1, count + 1):
            event = Event("T", text(seq), START + seq)
            bus.publish_nowait(event)
            assert event.seq == seq
            if seq % 1_000 == 0:
                await bus.settle()


def altered(statement: str) -> Callable[[Path], None]:
    def alter(path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.commit()
        connection.close()

    return alter


def flipped(seq: int) -> Callable[[Path], None]:
    """A bit of this event."""

    def flip(path: Path) -> None:
        content = path.read_bytes()
        place = content.index(text(seq).encode())
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([content[place] ^ 1]))

    return flip


def malformed(seq: int) -> Callable[[Path], None]:
    """The page of the database with this event."""

    def spoil(path: Path) -> None:
        place = path.read_bytes().index(text(seq).encode())
        with path.open("r+b") as file:
            file.seek(place // 4096 * 4096)
            file.write(b"\xff")

    return spoil


async def heard(
    url: str,
    path: Path,
    damage: Callable[[Path], None],
    count: int = EVENTS,
    **options: Any,
) -> tuple[list[int], list[tuple[int, int]]]:
    """The numbers that a subscription since `since` gets, and its gaps, in order."""
    seqs: list[int] = []
    gaps: list[tuple[int, int]] = []
    done = asyncio.Event()

    async def note(event: Event) -> None:
        if event.type == "aiobus.gap":
            gaps.append((event.data["after"], event.data["upto"]))
        elif event.seq > count:
            if event.data == "last":
                done.set()
        else:
            assert event.data == text(event.seq)
            seqs.append(event.seq)

    async with AsyncEventBus(url, name="feed", journal=path, limits=LIMITS) as feed:
        damage(path)
        await feed.publish(Event("T", "behind a commit, SQLite reads each page again"))
        peer = feed if url == "inproc://" else AsyncEventBus(url, name="desk")
        try:
            if peer is not feed:
                await peer.start()
            await peer.subscribe(["T", "aiobus.gap"], note, **{"since": 0, **options})
            await feed.publish(Event("T", "last"))
            await done.wait()
        finally:
            await peer.close()
    return seqs, gaps


ONE = [(149, 150)]
DAMAGES: dict[str, tuple[Callable[[Path], None], list[tuple[int, int]]]] = {
    "a flipped bit": (flipped(150), ONE),
    "a flipped bit in the first event": (flipped(1), [(0, 1)]),
    "an altered time": (altered("UPDATE events SET time = 7 WHERE seq = 150"), ONE),
    "another type": (altered("UPDATE events SET type = 99 WHERE seq = 150"), ONE),
    "another key": (altered("UPDATE events SET key = 1 WHERE seq = 150"), ONE),
    "a missing event": (altered("DELETE FROM events WHERE seq = 150"), ONE),
    "several in a row": (altered("UPDATE events SET data = '1' WHERE seq IN (9,10,11)"), [(8, 11)]),
    "several apart": (
        altered("UPDATE events SET data = '1' WHERE seq IN (1, 9, 11, 279, 280)"),
        [(0, 1), (8, 9), (10, 11), (278, 280)],
    ),
    "other facts": (altered("UPDATE meta SET crc = crc + 1"), []),
}


@pytest.mark.parametrize(("damage", "gaps"), DAMAGES.values(), ids=DAMAGES)
async def test_all_is_handed_over_but_the_damaged_events_which_are_gaps(
    url: str, path: Path, damage: Callable[[Path], None], gaps: list[tuple[int, int]]
) -> None:
    await make(path)
    seqs, told = await heard(url, path, damage)
    lost = {seq for after, upto in gaps for seq in range(after + 1, upto + 1)}
    assert seqs == [seq for seq in range(1, EVENTS + 1) if seq not in lost]
    assert told == gaps


async def test_what_sqlite_cannot_read_is_a_gap_of_one_page_of_numbers(
    url: str, path: Path
) -> None:
    await make(path, 4_000)
    seqs, gaps = await heard(url, path, malformed(2_000), 4_000)
    ((after, upto),) = gaps
    assert after < 2_000 <= upto <= after + history.FILE_LOOK
    assert seqs == [seq for seq in range(1, 4_001) if not after < seq <= upto]


async def test_a_damaged_event_is_logged_once_with_its_offset(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await make(path)
    with caplog.at_level(logging.ERROR):
        async with AsyncEventBus(name="feed", journal=path, limits=LIMITS) as feed:
            flipped(150)(path)
            await feed.publish(Event("T", "behind a commit, SQLite reads each page again"))
            for _ in range(3):
                await feed.subscribe("T", lambda _: None, since=0)
            await feed.settle()
    (line,) = [line for line in caplog.messages if "damaged" in line]
    assert "the checksum of the event at offset 150 differs" in line


async def test_what_is_damaged_just_before_a_time_may_be_from_then_and_is_a_gap(
    url: str, path: Path
) -> None:
    await make(path)
    seqs, gaps = await heard(url, path, flipped(99), since=START + 100)
    assert seqs == [*range(100, EVENTS + 1)]
    assert gaps == [(98, 99)]


async def test_of_what_is_damaged_further_before_a_time_reached_says_that_it_is_not_known(
    path: Path,
) -> None:
    await make(path)
    since = START + 100
    async with AsyncEventBus(name="feed", journal=path, limits=LIMITS) as feed:
        altered("UPDATE events SET time = 0 WHERE seq = 90")(path)
        subscription = await feed.subscribe("T", lambda _: None, since=since)
        await feed.settle()
        assert subscription.reached is not None
        assert subscription.reached > since


class Counted:
    """The file, and how many events were looked at."""

    def __init__(self, file: Journal) -> None:
        self._file = file
        self.looked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def each(self, start: int) -> Iterator[Any]:
        for found in self._file.each(start):
            self.looked += 1
            yield found


async def test_a_long_run_of_damaged_events_is_looked_at_a_page_at_a_time(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And does not fill the log."""
    count = 20_000
    await make(path, count)
    with Journal(path) as file:
        (source,) = file.sources()
        altered("UPDATE events SET crc = crc + 1 WHERE seq BETWEEN 2 AND 19999")(path)
        counted = Counted(file)
        past, after, gaps, seqs = Past(counted, source), 0, set[int](), []  # type: ignore[arg-type]
        while after < count:
            counted.looked = 0
            to, damaged, rows = past.page(EVERYTHING, after, count, 1_000, 4_096)
            assert counted.looked <= history.FILE_LOOK + 3
            gaps.update(range(after + 1, damaged + 1))
            seqs += [row[0] for row in rows]
            after = max(to, damaged)
        counted.looked = 0
        _, reached = past.place_since(START + 15_000, count)
        assert counted.looked <= history.SINCE_LOOK + 3
        assert reached > START + 15_000
    assert (seqs, gaps) == ([1, count], {*range(2, count)})
    assert len(caplog.messages) <= history.MAX_TOLD + 2


async def test_a_file_that_cannot_be_read_for_a_moment_has_lost_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await make(path)
    with Journal(path) as file:
        (source,) = file.sources()
        real, busy = file.each, sqlite3.OperationalError("database is locked")
        busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
        tries = iter([busy])

        def each(start: int) -> Iterator[Any]:
            if (error := next(tries, None)) is not None:
                raise error
            return real(start)

        monkeypatch.setattr(file, "each", each)
        found = Past(file, source).page(EVERYTHING, 0, EVENTS, 1_000, 4_096)
        assert (found.damaged, len(found.rows)) == (0, EVENTS)
    assert caplog.messages == []
