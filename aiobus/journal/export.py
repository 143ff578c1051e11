"""Events of a journal in files of other programs: JSON lines, and Parquet.

Owns the fields, which are those of the view `log`. Must not know where the events come from.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import orjson

from aiobus.errors import JournalError
from aiobus.event import Event

__all__ = ["event_fields", "export", "fields"]

GROUP_EVENTS = 8_192
GROUP_BYTES = 64 * 1024 * 1024
"""Characters of data. What is in one row group of Parquet is in memory together."""

Events = Iterable[tuple[int, Event[Any]]]


def export(events: Events, path: str) -> int:
    """Write `events` to a new file, as its suffix says: `.jsonl` or `.parquet`, which needs the
    extra `parquet`. Returns how many. If the journal is damaged, the file has the events before
    that, and the error is raised. Raises ValueError for another suffix and FileExistsError.
    """
    if path.endswith(".parquet"):
        write = _write_parquet
        _pyarrow()
    elif path.endswith(".jsonl"):
        write = _write_lines
    else:
        raise ValueError(f"{path!r}: a path that ends with .jsonl or .parquet is needed")
    counted = _Counted(events)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            write(counted, file)
    except BaseException:
        os.unlink(path)
        raise
    if counted.error is not None:
        raise counted.error
    return counted.count


class _Counted:
    """Events up to the error that ends them, if there is one."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self.count = 0
        self.error: JournalError | None = None

    def __iter__(self) -> Iterator[tuple[int, Event[Any]]]:
        try:
            for each in self._events:
                self.count += 1
                yield each
        except JournalError as error:
            self.error = error


def event_fields(event: Event[Any]) -> dict[str, Any]:
    """An event as plain values."""
    return {
        "source": event.source,
        "epoch": event.epoch,
        "seq": event.seq,
        "id": event.id,
        "time": event.timestamp,
        "type": str(event.type),
        "key": event.key,
        "cause": event.cause,
        "data": event.data,
    }


def fields(offset: int, event: Event[Any]) -> dict[str, Any]:
    """The same, with its place in the file."""
    return {"offset": offset, **event_fields(event)}


def _line(offset: int, event: Event[Any]) -> bytes:
    """One event as a line of JSON, with its end."""
    return orjson.dumps(fields(offset, event), option=orjson.OPT_APPEND_NEWLINE)


def _write_lines(events: Events, file: BinaryIO) -> None:
    file.writelines(_line(offset, event) for offset, event in events)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise JournalError(
            "a .parquet file needs pyarrow: pip install 'aiobus-zmq[parquet]', or export to .jsonl"
        ) from error
    return pyarrow


def _write_parquet(events: Events, file: BinaryIO) -> None:
    arrow = _pyarrow()
    text, whole = arrow.dictionary(arrow.int32(), arrow.string()), arrow.int64()
    schema = arrow.schema(
        {
            "offset": whole,
            "source": text,
            "epoch": whole,
            "seq": whole,
            "id": arrow.string(),
            "time": arrow.float64(),
            "type": text,
            "key": text,
            "cause": arrow.string(),
            "data": arrow.string(),
        }
    )
    rows: list[dict[str, Any]] = []
    size = 0
    with arrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
            rows.clear()

        for offset, event in events:
            row = fields(offset, event)
            row["data"] = data = orjson.dumps(event.data).decode()
            rows.append(row)
            size += len(data)
            if len(rows) >= GROUP_EVENTS or size >= GROUP_BYTES:
                flush()
                size = 0
        flush()
