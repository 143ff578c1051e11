"""`aiobus log FILE`, `aiobus export FILE OUT` and `aiobus explain FILE ... ID`: the events of a
journal, and what led to one of them.

Owns the arguments of these commands. Must not know how a journal is read, nor how causes are found.
"""

import os
import sys
from functools import partial
from typing import Annotated, Any

import orjson
import typer

from aiobus.cli import Story
from aiobus.cli.arguments import Keys, Sources, Types, WrongArgument, Zoned, moment
from aiobus.cli.terminal import (
    event_json_at,
    json_line,
    plain_line,
    say,
    tracked,
    working,
)
from aiobus.journal.export import export
from aiobus.journal.reader import Journal
from aiobus.replay.explain import explain
from aiobus.replay.hops import explain_hops
from aiobus.replay.moments import Zone

__all__ = ["EXPLAIN", "EXPORT", "LOG"]

File = Annotated[str, typer.Argument(metavar="FILE", help="The journal.", show_default=False)]
Start = Annotated[
    int | None, typer.Option(metavar="OFFSET", help="Begin with this offset.", show_default=False)
]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="ISO 8601 or Unix seconds.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Before this time.")]


def print_log(
    file: File,
    start: Start = None,
    since: Since = None,
    until: Until = None,
    tz: Zoned = None,
    type: Types = None,
    key: Keys = None,
    source: Sources = None,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each event.")] = False,
    out: Annotated[
        str | None,
        typer.Option("--export", metavar="PATH", help="As the command export."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Verify all of it, and print a count.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written, until Ctrl-C.")
    ] = False,
) -> None:
    """Print the events of a journal, oldest first, also while it is written: offset, time, type,
    key, id, data, and the id of the cause. Each event is compared with its checksum.
    """
    if sum((json, out is not None, verify)) > 1:
        raise WrongArgument("--json, --export and --verify exclude each other")
    selection = _selection(start, since, until, Zone.of(tz), type, key, source)
    with Journal(file) as journal:
        if verify:
            with working(f"verifying {file}"):
                count = journal.verify()
            say(b"%d events, all as they were written\n" % count)
        elif out is not None:
            say(b"%d events\n" % _export(journal, out, selection))
        else:
            line = event_json_at if json else partial(plain_line, zone=Zone.of(tz))
            for offset, event in journal.read(**selection, follow=follow):
                say(line(offset, event))
                if follow:
                    sys.stdout.flush()


def print_export(
    file: File,
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="A new file: .jsonl, or .parquet with pyarrow.", show_default=False
        ),
    ],
    start: Start = None,
    since: Since = None,
    until: Until = None,
    tz: Zoned = None,
    type: Types = None,
    key: Keys = None,
    source: Sources = None,
) -> None:
    """Write the events of a journal to a new file: lines of JSON (.jsonl), or Parquet (.parquet),
    which needs pip install 'aiobus-zmq[parquet]'. Each event is compared with its checksum.
    """
    selection = _selection(start, since, until, Zone.of(tz), type, key, source)
    with Journal(file) as journal:
        say(b"%d events\n" % _export(journal, out, selection))


def _selection(
    start: int | None,
    since: str | None,
    until: str | None,
    zone: Zone,
    types: list[str] | None,
    keys: list[str] | None,
    sources: list[str] | None,
) -> dict[str, Any]:
    return {
        "start_offset": start,
        "since": moment(since, zone),
        "until": moment(until, zone),
        "types": types or None,
        "keys": keys or None,
        "sources": sources or None,
    }


def _export(journal: Journal, out: str, selection: dict[str, Any]) -> int:
    events = journal.read(**selection)
    total = journal.last_offset()
    return export(tracked(events, f"exporting to {os.path.basename(out)}", total), out)


def print_explanation(
    file: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE... [ID]",
            help="The journals; behind them the id, without --at.",
            show_default=False,
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="10:31, 10:31:05.25, or ISO 8601 or Unix seconds."),
    ] = None,
    type: Annotated[
        str | None, typer.Option(help="With --at: the type of the event, such as FILL.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="With --at: its key or 'prefix*'.")] = None,
    tz: Zoned = None,
    most: Annotated[int, typer.Option(help="Causes and effects.")] = 1_000,
    json: Annotated[bool, typer.Option("--json", help="One object of JSON.")] = False,
    hops: Annotated[
        bool,
        typer.Option(
            "--hops",
            help="How long each kind of hop took over all of the files, with or without an event.",
        ),
    ] = False,
) -> None:
    """Print the causes and the effects of an event, with the time of each hop, from one journal or
    several: by its id, or the first one at a time. Each event that is printed is compared with its
    checksum.
    """
    files, id = file or [], None
    if at is None and (type or key):
        raise ValueError("--type and --key belong to --at: an id is one event")
    if not files:
        raise ValueError("give a journal, and the id of an event behind it, or --at")
    if at is None and (len(files) > 1 or not hops):
        *files, id = files
        if hops and os.path.exists(id):
            files, id = [*files, id], None
        elif not files or os.path.exists(id):
            raise ValueError("give the id of an event behind the files, or --at")
    parts: dict[str, Any] = {}
    if id is not None or at is not None:
        parts["explanation"] = explain(files, id, at=at, type=type, key=key, tz=tz, most=most)
    if hops:
        with working("reading every event"):
            parts["hops"] = explain_hops(files)
    if json:
        plain = {name: part.to_dict() for name, part in parts.items()}
        for step in plain.get("explanation", {}).get("steps", ()):
            step["data"] = orjson.Fragment(orjson.dumps(step["data"]))  # it may be 253 levels deep
        say(json_line(plain))
    else:
        say("\n\n".join(map(str, parts.values())).encode() + b"\n")


_DAMAGED = "the file is damaged, or no journal; what stands before the damage was printed"
LOG = Story(
    name="log",
    run=print_log,
    summary="Print the events of a journal.",
    examples={
        "aiobus log desk.db": "a line for each event",
        "aiobus log desk.db --type FILL --follow": "and those that come",
        "aiobus log desk.db --json --since 2026-11-29T09:30": "for a program",
        "aiobus log desk.db --verify": "compare everything with what was written",
    },
    codes={0: "all was printed, and is as it was written", 1: _DAMAGED},
)
EXPORT = Story(
    name="export",
    run=print_export,
    summary="Write the events of a journal to a .jsonl or .parquet file.",
    examples={
        "aiobus export desk.db day.parquet": "for pandas, polars or DuckDB",
        "aiobus export desk.db fills.jsonl --type FILL --key 'BTC*'": "",
    },
    codes={
        0: "all was written",
        1: "the journal is damaged (OUT has what stands before that), or OUT is there already,"
        " or pyarrow is missing",
    },
)
EXPLAIN = Story(
    name="explain",
    run=print_explanation,
    summary="Print what led to an event, and what followed from it.",
    examples={
        "aiobus explain desk.db --at 10:31 --type FILL": "the first fill of that minute",
        "aiobus explain desk.db broker@h0lvy81pam.17": "the event with this id",
        "aiobus explain desk.db gateway.db --at 10:31 --tz UTC": "a cause may be in another file",
        "aiobus explain desk.db --hops": "how long each kind of hop took",
    },
    codes={
        0: "it is explained",
        1: "the event is not in the files, a file is damaged, or the time or id cannot be read",
    },
)
