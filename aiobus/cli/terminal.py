"""What is printed: lines of events, colors, and the progress of what takes long.

Owns how an event looks, and who may see colors and progress: a person at a terminal, never a pipe.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar

import orjson

from aiobus.event import Event
from aiobus.journal.export import event_fields, fields
from aiobus.query import RESERVED
from aiobus.replay.explanation import printable
from aiobus.replay.moments import Zone

__all__ = [
    "complain", "drop_output", "event_json", "event_json_at", "event_line", "is_colored",
    "json_line", "plain_line", "say", "tracked", "working",
]  # fmt: skip

T = TypeVar("T")

PATIENCE = 0.5
"""Seconds that something may take before it has a progress bar."""
LOOK = 256
"""Items of which each time the clock is read."""

RESET, DIM, BOLD, RED, YELLOW = "\x1b[0m", "\x1b[2m", "\x1b[1m", "\x1b[31m", "\x1b[33m"
_COLORS = {
    **dict.fromkeys(("TRADE", "QUOTE", "BAR", "NEW_DATA"), "\x1b[36m"),
    "SIGNAL": "\x1b[35m",
    **dict.fromkeys(("ORDER", "ACK", "CANCEL"), "\x1b[34m"),
    **dict.fromkeys(("FILL", "POSITION"), "\x1b[32m"),
    **dict.fromkeys(("REJECT", "RISK"), YELLOW),
    "HALT": RED + BOLD,
}


def say(line: bytes) -> None:
    """Print bytes, which are UTF-8 whatever the locale is."""
    sys.stdout.buffer.write(line)


def complain(text: str) -> None:
    """A sentence on stderr, behind what was printed."""
    sys.stdout.flush()
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def drop_output() -> None:
    """The reader of the output has ended: what is still in its buffer goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_colored(file: Any) -> bool:
    """True if `file` is a terminal that shows colors. https://no-color.org"""
    environment = os.environ
    return bool(
        file.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
    )


def _data(event: Event[Any]) -> str:
    return orjson.dumps(event.data).decode()


def plain_line(offset: int, event: Event[Any], zone: Zone) -> bytes:
    """One event of a file for a person. What could move the cursor of a terminal is escaped."""
    when = zone.local(event.timestamp).isoformat(timespec="microseconds")
    parts = [str(offset), when, event.type, event.key or "-", event.id, _data(event)]
    if event.cause:
        parts.append(f"<- {event.cause}")
    return f"{printable(' '.join(parts))}\n".encode()


def event_line(event: Event[Any], zone: Zone, *, colored: bool) -> bytes:
    """One event as it comes. With colors it is for a person: the time has no date."""
    when = zone.local(event.timestamp)
    key, id, data = event.key or "-", event.id or "-", _data(event)
    cause = f" <- {event.cause}" if event.cause else ""
    if not colored:
        time = when.isoformat(timespec="microseconds")
        return f"{printable(f'{time} {event.type} {key} {id} {data}{cause}')}\n".encode()
    time = when.strftime("%H:%M:%S.%f")
    color = _COLORS.get(event.type, BOLD)
    if event.type.startswith(RESERVED):
        color = RED
    return (
        f"{DIM}{time}{RESET} {color}{printable(event.type)}{RESET} {printable(key)}"
        f" {DIM}{printable(id)}{RESET} {printable(data)}{DIM}{printable(cause)}{RESET}\n"
    ).encode()


def event_json(event: Event[Any]) -> bytes:
    """One event as a line of JSON."""
    return json_line(event_fields(event))


def event_json_at(offset: int, event: Event[Any]) -> bytes:
    """The same of an event of a file, with its place there."""
    return json_line(fields(offset, event))


def json_line(value: Any) -> bytes:
    """A line of JSON. It may be shown by a terminal: what could move its cursor, and JSON allows as
    it is (such as U+009B), is escaped as JSON does.
    """
    line = orjson.dumps(value)
    text = line.decode()
    if not text.isprintable():
        line = "".join(map(_escaped, text)).encode()
    return line + b"\n"


def _escaped(char: str) -> str:
    """It is within a text: JSON has no such characters elsewhere."""
    if char.isprintable():
        return char
    units = char.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


# What takes long, on stderr and only if that is a terminal.


def tracked(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items, with a progress bar once they take longer than half a second."""
    if not sys.stderr.isatty():
        yield from items
        return
    begin, count, advance = monotonic(), 0, None
    with _closing() as opened:
        for item in items:
            yield item
            count += 1
            if count % LOOK:
                continue
            if advance is None and monotonic() - begin > PATIENCE:
                advance = opened(what, total)
            if advance is not None:
                advance(count)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A sign that the body, which says nothing of how far it is, is at work. Not where what it
    prints goes to the same terminal.
    """
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield
        return
    with _closing() as opened:
        opened(what, None)
        yield


@contextmanager
def _closing() -> Iterator[Callable[[str, int | None], Callable[[int], None]]]:
    """A function that shows a bar, which is gone at the end. Without a total it only moves."""
    shown: list[Any] = []

    def show(what: str, total: int | None) -> Callable[[int], None]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed
        from rich.progress import TimeRemainingColumn as Remaining

        counts = () if total is None else (MofNCompleteColumn(), Remaining())
        bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            *(() if total is None else (BarColumn(),)),
            *counts,
            Elapsed(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        bar.start()
        shown.append(bar)
        task = bar.add_task(what, total=total)
        return lambda count: bar.update(task, completed=count)

    try:
        yield show
    finally:
        for bar in shown:
            bar.stop()
