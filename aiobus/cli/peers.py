"""`aiobus peers URL`: who is at a desk.

Owns how a bus looks in a line. Must not know how buses find each other.
"""

from typing import Annotated

import typer

from aiobus.cli import Story
from aiobus.cli.arguments import Url, Zoned, zone_of
from aiobus.cli.desk import neighbours, observing, place_of
from aiobus.cli.session import Ends, run
from aiobus.cli.terminal import json_line
from aiobus.presence import Peer
from aiobus.replay.explanation import printable
from aiobus.replay.moments import Zone

__all__ = ["STORY", "table"]

NOBODY = 3
STALE = 3.0


def peers(
    url: Url,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each bus.")] = False,
    tz: Zoned = None,
) -> int:
    """Show who is at a desk: name, since when, for how long it has been silent, and what it
    subscribes to. A bus sends a heartbeat each second; one that is silent for 3 s is frozen, or
    blocks its event loop.
    """
    zone = zone_of(tz)
    bus = observing(url, "peers")

    async def body(ends: Ends) -> int:
        async with bus:
            found, unreached = neighbours(bus), bus.stats().unreached
        for address in unreached:
            ends.out.tell(f"! {address} does not answer: there may be others")
        if json:
            ends.out.put(b"".join(map(_json, found)))
        elif found:
            ends.out.put(f"{table(found, zone)}\n".encode())
        if not found:
            ends.out.tell(f"nobody is at {url} ({place_of(url)})")
        return 0 if found else NOBODY

    return run(body)


def table(found: list[Peer], zone: Zone) -> str:
    """Lines with columns. What could move the cursor of a terminal is escaped."""
    rows = [("NAME", "SINCE", "SILENT", "SUBSCRIBES TO")]
    for each in found:
        since = zone.local(each.since).strftime("%Y-%m-%d %H:%M:%S")
        silent = f"{each.silent:.1f} s{' !' if each.silent >= STALE else ''}"
        subscribed = " ".join(map(printable, each.subscribed))
        rows.append((each.name, since, silent, subscribed or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    )


def _json(each: Peer) -> bytes:
    told = {name: getattr(each, name) for name in ("name", "since", "silent", "subscribed")}
    return json_line(told)


STORY = Story(
    name="peers",
    run=peers,
    summary="Show who is at a desk, and what they subscribe to.",
    examples={
        "aiobus peers ipc://desk": "",
        "aiobus peers tcp://127.0.0.1:7555 --json | jq -r .name": "for a program",
    },
    codes={
        0: "somebody is there",
        1: "the desk cannot be joined",
        3: "nobody is there",
    },
)
