"""`aiobus doctor [URL]`: whether this machine and a desk are well, and what to do about it.

Owns the order of the findings and their exit code. What is looked at, is in `findings`.
"""

import asyncio
import os
import sys
from typing import Annotated

import orjson
import typer

from aiobus.bus import refusing, unmet
from aiobus.cli import Story
from aiobus.cli.arguments import URL, BusName, Directory, desk
from aiobus.cli.desk import keyring_for, neighbours, observing
from aiobus.cli.findings import (
    Clocks,
    Finding,
    directories,
    doubles,
    limits,
    lists,
    members,
    silences,
    skews,
    unanswered,
    unlinked,
    unseen,
    versions,
)
from aiobus.cli.session import Ends, run
from aiobus.cli.terminal import is_colored
from aiobus.errors import BusError
from aiobus.event import Event
from aiobus.url import DESK

__all__ = ["STORY"]

_MARKS = {"ok": ("ok  ", "\x1b[32m"), "note": ("note", "\x1b[33m"), "todo": ("TODO", "\x1b[31m")}


def doctor(
    given: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help=f"{URL} With neither, this machine alone.",
            show_default=False,
        ),
    ] = None,
    listen: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="How long to compare clocks.")
    ] = 1.5,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each finding.")] = False,
    keyring: Directory = None,
    name: BusName = None,
) -> int:
    """Look at the versions, the limits and the meeting places of this machine, and with a URL at
    who is there, whether a bus is silent, has few descriptors left, or has another clock. Each
    TODO says what to do; a note need not be done.
    """
    url = desk(given) if given is not None or os.environ.get(DESK) else None
    before = [*versions(), *limits(), *directories()]

    async def body(ends: Ends) -> int:
        found = [*before, *([] if url is None else await _desk(url, listen, name, keyring))]
        colored = is_colored(sys.stdout)
        for each in found:
            ends.out.put(_json(each) if json else _line(each, colored=colored))
        return 1 if any(each.status == "todo" for each in found) else 0

    return run(body)


async def _desk(url: str, seconds: float, name: str | None, keyring: str | None) -> list[Finding]:
    """What is found by joining a desk as an observer."""
    found = members(url)  # not later: a bus that joins removes what dead ones have left
    clocks = Clocks()

    def hear(event: Event[object]) -> None:
        clocks.hear(event)

    try:
        async with observing(url, "doctor", name, keyring) as bus:
            await bus.subscribe("*", hear, timeout=1, name="doctor")
            await asyncio.sleep(seconds)
            stats, others = bus.stats(), neighbours(bus)
            silent = unanswered(unmet(bus), with_keys=keyring_for(url, keyring) is not None)
            silent += unlinked(refusing(bus))
    except (BusError, OSError) as error:
        return [*found, Finding("todo", url, f"cannot be joined: {error}")]
    for address in stats.unreached:
        text = "does not answer: there may be buses that no newcomer meets"
        found.append(
            Finding("todo", address, text, "look for a bus of this desk that is stopped or hangs")
        )
    if stats.refused:
        text = f"{stats.refused:,} messages violated the protocol"
        found.append(
            Finding(
                "todo",
                url,
                text,
                "look for buses of another version of aiobus, or a program that is none",
            )
        )
    if not others and not silent:
        text = "nobody is there"
        found.append(Finding("note", url, text, "start a bot, or look for a typing error"))
    limit = [unseen(url)] if others else []
    live = [*silences(others), *skews(others), *lists(others), *doubles(others)]
    return [*found, *silent, *live, *clocks.findings(seconds), *limit]


def _line(each: Finding, *, colored: bool) -> bytes:
    mark, color = _MARKS[each.status]
    shown = f"{color}{mark}\x1b[0m" if colored else mark
    way = f"\n       -> {each.way}" if each.way else ""
    return f"{shown}   {each.subject}: {each.text}{way}\n".encode(errors="backslashreplace")


def _json(each: Finding) -> bytes:
    return orjson.dumps(each._asdict(), option=orjson.OPT_APPEND_NEWLINE)


STORY = Story(
    name="doctor",
    run=doctor,
    summary="Say whether this machine and a desk are well, and what to do.",
    examples={
        "aiobus doctor": "this machine",
        "aiobus doctor ipc://desk": "and who is at this desk",
        "aiobus doctor ipc://desk --json | jq 'select(.status == \"todo\")'": "",
    },
    codes={
        0: "all is well; there may be notes",
        1: "there is something to do: each TODO says what",
    },
)
