"""`aiobus explain FILE ... ID`: what led to an event, and what followed from it.

Owns the arguments of the command. Must not know how causes are found.
"""

import os
from typing import Annotated, Any

import orjson
import typer

from aiobus.cli.arguments import Zoned
from aiobus.cli.story import Story
from aiobus.cli.terminal import say, working
from aiobus.replay.explain import explain
from aiobus.replay.hops import explain_hops

__all__ = ["STORY"]


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
        say(orjson.dumps(plain, option=orjson.OPT_APPEND_NEWLINE))
    else:
        say("\n\n".join(map(str, parts.values())).encode() + b"\n")


STORY = Story(
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
