"""`aiobus record URL FILE`: everything that a desk says, in a file.

Owns what is shown meanwhile, and what the end of a recording is as an exit code. Must not know how
events come into the file.
"""

import asyncio
import os
import re
import sys
from contextlib import suppress
from datetime import timedelta
from shutil import get_terminal_size
from typing import Annotated, Any, Literal, cast

import typer

from aiobus.cli import Story
from aiobus.cli.arguments import (
    URL,
    BusName,
    Directory,
    Keys,
    Types,
    WrongArgument,
    Zoned,
    desk_and,
    since,
    zone_of,
)
from aiobus.cli.desk import observing, waiting_for
from aiobus.cli.session import Ends, Output, run
from aiobus.event import Event
from aiobus.journal.retention import Keep
from aiobus.recorder import Recording, record
from aiobus.system import GAP

__all__ = ["STORY"]

SHOWN_SECONDS = 0.5
_SIZES = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_KEEP = re.compile(r"(\d+(?:\.\d+)?) ?(h|d|MB|GB|TB|MiB|GiB|TiB)")


def record_desk(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[URL] FILE",
            help=f"{URL} FILE is the recording; it goes on behind what is in it.",
            show_default=False,
        ),
    ] = None,
    type: Types = None,
    key: Keys = None,
    begin: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="last|TIME",
            help="Begin earlier, as far as histories reach; 5m is so long ago.",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="AMOUNT", help="Remove the oldest beyond 10GB, or 30d."),
    ] = None,
    sync: Annotated[
        str, typer.Option(metavar="power|process", help="What a commit survives the failure of.")
    ] = "process",
    name: BusName = None,
    tz: Zoned = None,
    keyring: Directory = None,
) -> int:
    """Record everything that a desk says until Ctrl-C or SIGTERM, its gaps among it. If FILE is
    there, the recording goes on: what the bots still have in their histories is fetched. It is an
    observer: no bot waits for it.
    """
    url, (file,) = desk_and(words or [], "FILE")
    if sync not in ("power", "process"):
        raise WrongArgument(f"--sync {sync!r}: power or process is needed")
    options: dict[str, Any] = {"keep": _keep(keep), "sync": cast(Literal["power"], sync)}
    options |= {"types": type or "*", "key": key or None, "since": since(begin, zone_of(tz))}
    bus = observing(url, "record", name, keyring)

    async def body(ends: Ends) -> int:
        gaps: list[int] = []
        async with bus:
            await bus.subscribe(GAP, lambda gap: gaps.append(_most(gap)), name="gaps")
            async with record(bus, file, **options) as recording:
                ends.out.tell(f"recording {url} into {file}: Ctrl-C ends it")
                if text := waiting_for(bus, url):
                    ends.out.tell(text)
                ends.is_orderly = True
                await _until_asked(ends, bus, recording, file)
                if recording.error is None:
                    await recording.flush()
                count = _recorded(bus)
        if recording.error is not None:
            return 1
        ends.out.tell(f"{count:,} events, {_size(file)}, in {file}")
        if gaps:
            ends.out.tell(f"! lost: {sum(gaps):,} events at most, in {len(gaps):,} gaps")
        return 3 if gaps else 0

    return run(body)


async def _until_asked(ends: Ends, bus: Any, recording: Recording, file: str) -> None:
    """Show how far it is, on a terminal, until it is to end or has ended with an error."""
    is_shown = sys.stderr.isatty()
    try:
        while not ends.asked.is_set() and recording.error is None:
            if is_shown:
                _show(ends.out, f"{_recorded(bus):,} events, {_size(file)}")
            with suppress(TimeoutError):
                async with asyncio.timeout(SHOWN_SECONDS):
                    await ends.asked.wait()
    finally:
        if is_shown:
            ends.out.show(b"\r\x1b[K")


def _most(gap: Event[Any]) -> int:
    """How many events a gap may be."""
    return int(gap.data["upto"] - gap.data["after"])


def _show(out: Output, text: str) -> None:
    width = get_terminal_size().columns - 1
    out.show(f"\r\x1b[K{text[:width]}\r".encode())


def _recorded(bus: Any) -> int:
    return sum(each.handled for each in bus.stats().subscriptions if each.name.startswith("record"))


def _size(file: str) -> str:
    size = 0
    for suffix in ("", "-wal"):
        with suppress(OSError):
            size += os.stat(file + suffix).st_size
    return f"{size / 1e6:,.1f} MB"


def _keep(text: str | None) -> Keep:
    if text is None:
        return None
    found = _KEEP.fullmatch(text)
    if found is None:
        raise WrongArgument(f"--keep {text!r}: bytes such as 10GB, or a time such as 30d or 12h")
    number, unit = float(found[1]), found[2]
    if unit in _SIZES:
        return int(number * _SIZES[unit])
    return timedelta(hours=number) if unit == "h" else timedelta(days=number)


STORY = Story(
    name="record",
    run=record_desk,
    summary="Record everything that a desk says, in a file.",
    usage="[URL] FILE",
    examples={
        "aiobus record ipc://desk desk.db": "until Ctrl-C; once more, and it goes on",
        "aiobus record ipc://desk fills.db --type FILL --type ORDER --since 10m": "",
        "aiobus record ipc://desk desk.db --keep 30d --sync power": "",
    },
    codes={
        0: "ended by SIGTERM, and nothing was lost",
        1: "the recording cannot begin, or has ended with an error: what is in FILE is whole",
        3: "ended by SIGTERM, and events were lost: FILE has each gap",
    },
)
