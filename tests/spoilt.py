"""Journals whose files are damaged by accident: cut, or with a bit flipped."""

import asyncio
import random
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

from journals import entries, facts, writing

from aiobus import Journal, JournalCorrupt
from aiobus.journal.mark import read_mark
from aiobus.journal.writer import JournalWriter

PARTS = ["", "-wal", ".mark"]
KINDS = ["truncation", "flip"]
EVENTS = 2_000


class Snapshot(NamedTuple):
    """The files of a journal that a process left behind which was killed, and what is in it."""

    path: Path
    events: list[tuple[Any, ...]]


def snapshot(folder: Path) -> Snapshot:
    """Half of the events is in the database, half in the write-ahead log; the mark knows all."""
    path, copy = folder / "live.db", folder / "gateway.db"

    async def write() -> None:
        async with writing(path) as ledger:
            await ledger.write(entries(EVENTS // 2))
        async with writing(path) as ledger:
            for first in range(EVENTS // 2, EVENTS, 20):
                await ledger.write(entries(20, first + 1))
            await asyncio.to_thread(_marked, path)
            for part in PARTS:
                shutil.copy(f"{path}{part}", f"{copy}{part}")
        assert ledger.errors == []

    asyncio.run(write())
    with Journal(path) as journal:
        events = [facts(event) for _, event in journal.read()]
    assert len(events) == EVENTS
    return Snapshot(copy, events)


def _marked(path: Path) -> None:
    while (mark := read_mark(str(path))) is None or mark.offset < EVENTS:
        time.sleep(0.01)


def spoil(taken: Snapshot, folder: Path, part: str, kind: str, seed: int) -> bool:
    """Damage one file of a copy. True if that is reported; if not, everything must be there."""
    path = folder / "gateway.db"
    for each in folder.glob("gateway.db*"):
        each.unlink()
    for each in PARTS:
        shutil.copy(f"{taken.path}{each}", f"{path}{each}")
    spoilt = Path(f"{path}{part}")
    content = bytearray(spoilt.read_bytes())
    chosen = random.Random(f"{part} {kind} {seed}")
    place = chosen.randrange(len(content))
    if kind == "truncation":
        del content[place:]
    else:
        content[place] ^= 1 << chosen.randrange(8)
    spoilt.write_bytes(content)
    said = f"{kind} of {part or 'the database'} at {place}"
    before = {each: Path(f"{path}{each}").read_bytes() for each in PARTS}
    writer = JournalWriter(path)
    damage = None
    try:
        writer.open()
    except JournalCorrupt as error:
        damage = error
    writer.close()
    if damage is None:
        assert whole(path) == taken.events, said
        return False
    assert before == {each: Path(f"{path}{each}").read_bytes() for each in PARTS}, said
    assert damage.offset == damage.valid + 1, said
    assert whole(path) == taken.events[: damage.valid], said
    return True


def whole(path: Path) -> list[tuple[Any, ...]]:
    """The events that can be read before a damage."""
    found = []
    damage = None
    try:
        with Journal(path) as journal:
            for _, event in journal.read():
                found.append(facts(event))
    except JournalCorrupt as error:
        damage = error
    assert damage is None or damage.valid == len(found)
    return found
