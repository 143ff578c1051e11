"""The columns of a journal: rows of events to columns and back, and their checksums.

Owns the schema. Pure: must not know where the columns are kept. Each event has a CRC-32 of all that
it says, with the texts that its numbers stand for: one altered name would else rename every event
that refers to it. A running CRC over these shows that none is missing, exchanged or in another
place.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple
from zlib import crc32

import orjson

from aiobus.event import Event, event_id

__all__ = [
    "APPLICATION", "COLUMNS", "FORMAT", "MAX_INTEGER", "MAX_NAMES", "MAX_SOURCES", "SCHEMA",
    "TAPE", "Entry", "Texts", "chained", "checksum", "encode_columns", "entries_of", "entry_of",
    "insertion", "origin", "origin_checksum", "rebuilt", "sealed", "tape_of", "unsealed",
]  # fmt: skip

APPLICATION = 0x61696F62
"""The application_id of the database: "aiob"."""
FORMAT = 1
"""The user_version of the database."""

TAPE = "aiobus.tape"
"""The type of a stretch of a tape (`record(attach=)`), which is stored as an event."""

COLUMNS = '"offset", source, seq, time, type, key, cause_source, cause_seq, cause, data, crc'
_WIDTH = COLUMNS.count(",") + 1

_EVENTS = """CREATE TABLE events (
    "offset" INTEGER PRIMARY KEY, source INTEGER, seq INTEGER, time REAL, type, key,
    cause_source INTEGER, cause_seq INTEGER, cause TEXT, data TEXT, crc INTEGER,
    UNIQUE (source, seq)
)"""
_LOG = """CREATE VIEW log AS SELECT
    e."offset", s.name AS source, s.epoch, e.seq, s.origin || e.seq AS id, e.time,
    CASE typeof(e.type) WHEN 'text' THEN e.type ELSE t.text END AS type,
    CASE typeof(e.key) WHEN 'text' THEN e.key ELSE k.text END AS key,
    coalesce(c.origin || e.cause_seq, e.cause, '') AS cause, e.data
FROM events e JOIN sources s ON s.id = e.source LEFT JOIN sources c ON c.id = e.cause_source
LEFT JOIN names t ON t.id = e.type LEFT JOIN names k ON k.id = e.key"""
SCHEMA = (
    "CREATE TABLE meta (data TEXT, crc INTEGER)",
    "CREATE TABLE sources (id INTEGER PRIMARY KEY, name TEXT, epoch INTEGER, origin TEXT)",
    "CREATE TABLE names (id INTEGER PRIMARY KEY, text TEXT)",
    _EVENTS,  # a column without a type keeps an integer as an integer and a text as a text
    "CREATE INDEX caused ON events (cause_source, cause_seq) WHERE cause_source IS NOT NULL",
    "CREATE TABLE stretches (first INTEGER PRIMARY KEY, written REAL, latest REAL)",
    _LOG,
)
"""`origin` of a source is the id of its events without the seq, for the view."""

MAX_NAMES = 16_384
"""Types and keys that are kept once and referred to by number. Any further one stands in the event
itself, so keys that never repeat fill no table.
"""
MAX_SOURCES = 4_096
"""Sources above which a cause is kept as text, unless it is an event of a source that is there."""
MAX_ORIGINS = 65_536
"""Checksums of (source, type, key) that are remembered."""
MAX_INTEGER = 2**63 - 1

NO_CAUSE = None, None, None
_HEAD = Struct("<qqdI")
_ID = re.compile(r"([A-Za-z0-9._-]{1,64})@(-?[0-9a-z]{1,13})\.([1-9][0-9]{0,18})")


def tape_of(name: str) -> str:
    """The source of the tape of the bus `name`. No bus has such a name, since it has a space."""
    return f"tape {name}"


class Entry(NamedTuple):
    """One event as it is stored: the fields of its `row`, and the row as `codec.encode` makes it.
    `cause` is "" for none.
    """

    source: str
    epoch: int
    seq: int
    time: float
    type: str
    key: str
    cause: str
    row: bytes


def entries_of(rows: Sequence[bytes], source: str, epoch: int) -> list[Entry]:
    """The entries of rows as `codec.encode` made them, of one source."""
    entries = []
    for row, fields in zip(rows, orjson.loads(b"[%b]" % b",".join(rows)), strict=True):
        if len(fields) == 5:
            seq, time, type, key, _ = fields
            cause = ""
        else:
            seq, time, type, key, _, cause = fields
        entries.append(Entry(source, epoch, seq, time, type, key, cause, row))
    return entries


def entry_of(event: Event[Any]) -> Entry:
    """The entry of an event as it was decoded, and not changed since."""
    seq, time, type, key = event.seq, event.timestamp, event.type, event.key
    data, cause = event.data, event.cause
    row = orjson.dumps(
        (seq, time, type, key, data, cause) if cause else (seq, time, type, key, data)
    )
    return Entry(event.source, event.epoch, seq, time, type, key, cause, row)


class Texts:
    """The types, keys and sources that events refer to by number."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.sources: dict[tuple[str, int], int] = {}
        self._origins: dict[tuple[str, int, str, str], Origin] = {}

    def name(self, text: str) -> int | str:
        """The number of a type or key; the text itself if there is no room for one more."""
        number = self.names.get(text)
        if number is None:
            if len(self.names) >= MAX_NAMES:
                return text
            number = self.names[text] = len(self.names) + 1
        return number

    def source(self, name: str, epoch: int) -> int:
        """The number of a source."""
        return self.sources.setdefault((name, epoch), len(self.sources) + 1)

    def cause(self, cause: str) -> tuple[int | None, int | None, str | None]:
        """The columns of a cause: by number if it is the id of an event, else the text."""
        if found := _ID.fullmatch(cause):
            name, epoch, seq = found[1], int(found[2], 36), int(found[3])
            is_known = (name, epoch) in self.sources or len(self.sources) < MAX_SOURCES
            if (
                is_known
                and seq <= MAX_INTEGER
                and abs(epoch) <= MAX_INTEGER
                and event_id(name, epoch, seq) == cause
            ):
                return self.source(name, epoch), seq, None
        return None, None, cause

    def origin(self, entry: Entry) -> "Origin":
        """What an event has in common with others of its source, type and key."""
        place = entry.source, entry.epoch, entry.type, entry.key
        found = self._origins.get(place)
        if found is None:
            if len(self._origins) >= MAX_ORIGINS:
                self._origins.clear()
            found = self._origins[place] = Origin(
                origin_checksum(*place),
                self.source(*place[:2]),
                self.name(entry.type),
                self.name(entry.key),
                len(_quoted(entry.type)) + len(_quoted(entry.key)) + 3,
            )
        return found


class Origin(NamedTuple):
    """What events of one source, type and key have in common as they are written."""

    start: int
    """With which their checksums begin."""
    source: int
    type: int | str
    key: int | str
    width: int
    """Bytes of a row from the comma before the type up to the data."""


def origin(source: str, epoch: int) -> str:
    """The id of an event of this source without its seq."""
    return event_id(source, epoch, 1)[:-1]


def origin_checksum(source: str, epoch: int, type: str, key: str) -> int:
    """With which the checksum of each event of this source, type and key begins."""
    return crc32(orjson.dumps([source, epoch, type, key]))


def checksum(start: int, offset: int, seq: int, time: float, cause: bytes, data: bytes) -> int:
    """The checksum of an event; `start` is that of its origin."""
    return crc32(data, crc32(_HEAD.pack(offset, seq, time, len(data)) + cause, start))


def chained(chain: int, crc: int) -> int:
    """The running checksum, behind an event with the checksum `crc`."""
    return crc32(crc.to_bytes(4, "little"), chain)


def encode_columns(
    entries: Sequence[Entry], texts: Texts, offset: int, chain: int
) -> tuple[list[Any], int]:
    """The columns of `entries`, one after the other, where `offset` and `chain` are those of the
    event before; and the running checksum behind them.
    """
    columns: list[Any] = []
    for entry in entries:
        offset += 1
        start, source, type, key, width = texts.origin(entry)
        _, _, seq, time, _, _, cause, row = entry
        begin = row.index(b",", row.index(b",") + 1) + width
        data = row[begin : -len(orjson.dumps(cause)) - 2 if cause else -1]
        time = float(time) + 0.0  # SQLite keeps -0.0 as 0
        crc = checksum(start, offset, seq, time, cause.encode(), data)
        chain = chained(chain, crc)
        cause_columns = texts.cause(cause) if cause else NO_CAUSE
        columns += (offset, source, seq, time, type, key, *cause_columns, data.decode(), crc)
    return columns, chain


@lru_cache(maxsize=256)
def insertion(table: str, rows: int, width: int = _WIDTH) -> str:
    """The one statement that inserts so many rows into `table`."""
    row = f"({', '.join('?' * width)})"
    return f"INSERT INTO {table} VALUES {', '.join([row] * rows)}"


def rebuilt(seq: int, time: float, type: str, key: str, cause: str, data: bytes) -> bytes:
    """The row of an event, as `codec.encode` makes it."""
    head = b"[%d,%b,%b,%b,%b" % (seq, orjson.dumps(time), _quoted(type), _quoted(key), data)
    return b"%b,%b]" % (head, orjson.dumps(cause)) if cause else head + b"]"


@lru_cache(maxsize=4_096)
def _quoted(text: str) -> bytes:
    return orjson.dumps(text)


def sealed(facts: dict[str, Any]) -> tuple[str, int]:
    """The columns of `meta`."""
    text = orjson.dumps(facts)
    return text.decode(), crc32(text)


def unsealed(rows: Iterable[tuple[bytes, int]]) -> dict[str, Any]:
    """The facts of `meta`. Raises ValueError if they are not what was written."""
    match list(rows):
        case [(bytes(text), crc)] if crc == crc32(text):
            return dict(orjson.loads(text))
    raise ValueError("its table `meta` is damaged")
