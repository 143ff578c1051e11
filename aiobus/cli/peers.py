"""`aiobus peers URL`: who is at a desk.

Owns how a bus looks in a line. Must not know how buses find each other.
"""

import difflib
from collections.abc import Collection
from typing import Annotated

import typer

from aiobus.bus import refusing, unmet
from aiobus.cli import Story
from aiobus.cli.arguments import BusName, Directory, Url, Zoned, desk, zone_of
from aiobus.cli.desk import neighbours, observing, place_of, shut_out
from aiobus.cli.findings import differing, inhabited
from aiobus.cli.session import Ends, run
from aiobus.cli.terminal import json_line
from aiobus.presence import Peer
from aiobus.replay.explanation import printable
from aiobus.replay.moments import Zone

__all__ = ["STORY", "table"]

NOBODY = 3
STALE = 3.0
MOST_DESKS = 8
FIELDS = ("name", "since", "silent", "subscribed", "skew", "skew_error", "member_list")


def peers(
    given: Url = None,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each bus.")] = False,
    tz: Zoned = None,
    keyring: Directory = None,
    name: BusName = None,
) -> int:
    """Show who is at a desk: name, since when, for how long it has been silent, by how much its
    clock is ahead of that of this machine, and what it subscribes to. A bus sends a heartbeat each
    second; one that is silent for 3 s (!) is frozen, or blocks its event loop. One that does not
    answer within 5 s, or is not linked because of keys, is marked as well, and only its name is
    known. A clock is marked if it surely
    is more than 0.1 s from this one.
    """
    url, zone = desk(given), zone_of(tz)
    bus = observing(url, "peers", name, keyring)

    async def body(ends: Ends) -> int:
        async with bus:
            found, frozen, unreached = neighbours(bus), unmet(bus), bus.stats().unreached
            others, closed = refusing(bus), shut_out(bus, url)
        for address in unreached:
            ends.out.tell(f"! {address} does not answer: there may be others")
        for each in found:
            if each.member_list:
                ends.out.tell(f"! {each.name} has {differing(each)}")
        if closed:
            ends.out.tell(f"! {closed}")
            return 1
        if json:
            ends.out.put(b"".join([*map(_json, found), *map(_json_unmet, [*frozen, *others])]))
        elif found or frozen:
            ends.out.put(f"{table(found, zone, frozen, others)}\n".encode())
        if found or frozen:
            return 0
        ends.out.tell(f"nobody is at {url} ({place_of(url)}){_elsewhere(url)}")
        return NOBODY

    return run(body)


def _elsewhere(url: str) -> str:
    """The desks where a bus is, the most similar first: the URL may have a typing error."""
    others = [each for each in inhabited() if each != url]
    if not others:
        return ""
    alike = difflib.get_close_matches(url, others, n=MOST_DESKS)
    shown = [*alike, *(each for each in others if each not in alike)][:MOST_DESKS]
    more = f" and {len(others) - len(shown)} more" if len(others) > len(shown) else ""
    return f"; somebody is at {', '.join(shown)}{more}"


def table(
    found: list[Peer], zone: Zone, frozen: Collection[str] = (), others: Collection[str] = ()
) -> str:
    """Lines with columns. `frozen`: names of buses that do not answer; `others`: of those that are
    not linked because of keys. What could move the cursor of a terminal is escaped.
    """
    rows = [("NAME", "SINCE", "SILENT", "CLOCK", "SUBSCRIBES TO")]
    for each in found:
        since = zone.local(each.since).strftime("%Y-%m-%d %H:%M:%S")
        silent = f"{each.silent:.1f} s{' !' if each.silent >= STALE else ''}"
        subscribed = " ".join(map(printable, each.subscribed))
        clock = "?" if each.skew is None else f"{each.skew:+,.3f} s"
        clock += " !" if each.is_skewed else ""
        rows.append((each.name, since, silent, clock, subscribed or "-"))
    rows += [(name, "?", "no answer !", "?", "?") for name in frozen]
    rows += [(name, "?", "not linked !", "?", "?") for name in others]
    rows[1:] = sorted(rows[1:])
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        for row in rows
    )


def _json(each: Peer) -> bytes:
    told = {name: getattr(each, name) for name in FIELDS}
    return json_line(told)


def _json_unmet(name: str) -> bytes:
    return json_line({**dict.fromkeys(FIELDS), "name": name})


STORY = Story(
    name="peers",
    run=peers,
    summary="Show who is at a desk, and what they subscribe to.",
    examples={
        "aiobus peers ipc://desk": "",
        "aiobus peers tcp://127.0.0.1:7555 --json | jq -r .name": "for a program",
    },
    codes={
        0: "somebody is there, perhaps one that does not answer (!)",
        1: "the desk cannot be joined, or no bus there lets this command in",
        3: "nobody is there",
    },
)
