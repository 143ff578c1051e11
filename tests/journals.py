"""Journals for tests: entries, and a writer whose commits can be awaited."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from aiobus import Event, Journal
from aiobus.codec import encode
from aiobus.journal.format import Entry
from aiobus.journal.retention import Keep
from aiobus.journal.store import Store
from aiobus.journal.writer import JournalWriter, Sync

START = 1_700_000_000.0
EPOCH = 1_700_000_000_000_000


def entry(
    seq: int,
    data: Any = None,
    *,
    type: str = "TRADE",
    key: str = "BTCUSDT",
    cause: str = "",
    source: str = "feed",
    epoch: int = EPOCH,
    time: float | None = None,
) -> Entry:
    """An event as it is stored. Without data, it has its seq as price."""
    time = START + seq / 8 if time is None else time
    data = {"price": float(seq)} if data is None else data
    row = encode(seq, time, type, key, data, cause, 2**20)
    return Entry(source, epoch, seq, time, type, key, cause, row)


def entries(count: int, first: int = 1) -> list[Entry]:
    """So many events of one source, in different types and keys, some with causes."""
    return [
        entry(
            seq,
            {"price": 39_000 + seq / 4, "size": seq % 7, "side": "buy"},
            type=("TRADE", "QUOTE", "FILL")[seq % 3],
            key=f"KEY{seq % 5}",
            cause=f"strategy@{'zz'}.{seq}" if seq % 4 == 0 else "",
        )
        for seq in range(first, first + count)
    ]


class Ledger:
    """What a writer said of what was appended to it: `committed`, and errors, in order."""

    def __init__(self, writer: JournalWriter) -> None:
        self.writer = writer
        self.committed = 0
        self.errors: list[BaseException] = []
        self._told = asyncio.Event()
        self._settled = 0
        writer.start(self._settle)

    def _settle(self, count: int, error: BaseException | None) -> None:
        self._settled += count
        if error is None:
            self.committed += count
        else:
            self.errors += [error] * count
        self._told.set()

    async def write(self, some: Iterable[Entry]) -> None:
        """Append, and wait until all of it is committed or has failed."""
        goal = self._settled + self.writer._queued
        for each in some:
            while not self.writer.room:
                await self._next()
            self.writer.append(each)
            goal += 1
        while self._settled < goal:
            await self._next()

    async def _next(self) -> None:
        self._told.clear()
        await self._told.wait()


@asynccontextmanager
async def writing(
    path: Path, *, sync: Sync = "process", keep: Keep = None
) -> AsyncIterator[Ledger]:
    """An open journal."""
    writer = JournalWriter(path, sync=sync, keep=keep)
    writer.open()
    try:
        yield Ledger(writer)
    finally:
        writer.close()


async def written(path: Path, some: Sequence[Entry]) -> None:
    """A closed journal with these events."""
    async with writing(path) as ledger:
        await ledger.write(some)
        assert ledger.errors == []


def make(path: Path, some: Sequence[Entry]) -> None:
    """The same, for a test that is no coroutine."""
    asyncio.run(written(path, some))


def facts(event: Event[Any]) -> tuple[Any, ...]:
    """All that an event says."""
    return (
        *(event.source, event.epoch, event.seq, event.timestamp, event.type, event.key),
        *(event.cause, event.data),
    )


def read(path: Path, **given: Any) -> list[tuple[int, Event[Any]]]:
    """What a journal has."""
    with Journal(path) as journal:
        return list(journal.read(**given))


def fill(store: Store) -> Callable[[], None]:
    """Let the database have no page more, as on a full disk; returns how to end that. The thread of
    the writer does both with its next commit, since the connection is its own.
    """
    insert, connection = store._insert, store._connection

    def with_pages(pages: int | None) -> None:
        def limited(batch: Sequence[Entry]) -> None:
            ((count,),) = connection.execute("PRAGMA page_count").fetchall()
            connection.execute(f"PRAGMA max_page_count = {pages or count}").fetchall()
            insert(batch)

        store._insert = limited  # type: ignore[method-assign]

    with_pages(None)
    return lambda: with_pages(1_000_000)


@contextmanager
def at_death(path: Path) -> Iterator[None]:
    """What the bus of a journal writes meanwhile to end in this process is undone: the files are
    what its process leaves if it is killed now, and they are unlocked.
    """
    ends = ("", "-wal", ".mark")
    files = [Path(f"{path}{end}") for end in ends]
    left = {file: file.read_bytes() for file in files if file.exists()}
    yield
    for file in (*files, Path(f"{path}-shm")):
        file.unlink(missing_ok=True)
    for file, content in left.items():
        file.write_bytes(content)
