"""`aiobus verify FILE MODULE:FUNCTION`: a recorded strategy once more, and what differs first.

Owns the arguments of the command, and the exit code of a verdict.
"""

import sys
from contextlib import suppress
from typing import Annotated

import typer

from aiobus.cli.story import Story
from aiobus.cli.strategy import strategy_named, told
from aiobus.cli.terminal import drop_output, say, working
from aiobus.errors import BusError
from aiobus.lockout import shut
from aiobus.replay.verify import verify

__all__ = ["STORY"]


def print_verification(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A recording with attach=.", show_default=False)
    ],
    strategy: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION", help="As Python imports it from here.", show_default=False
        ),
    ],
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Not compared, such as data.client_id. Repeatable."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="CALLER", help="May leave the process. May be repeated."),
    ] = None,
    recording: Annotated[
        int, typer.Option(metavar="N", help="Of several, from 0; else the last.")
    ] = -1,
) -> int:
    """Run a strategy again on what it was given when it was recorded, and print what differs first.
    All but a verdict exits with 2, whatever the strategy raises.
    """
    try:
        with shut("aiobus verify"):
            bot = strategy_named(strategy)
            with working(f"verifying {file}"):
                report = verify(
                    file, bot, ignore=ignore or [], allow=allow or [], recording=recording
                )
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a script takes the code for a verdict
        sys.stderr.write(f"{error if isinstance(error, BusError | ValueError) else told(error)}\n")
        return 2
    code = {"AGREES": 0, "DIVERGES": 1}.get(report.verdict, 2)
    with suppress(BrokenPipeError):
        say(f"{report}\n".encode())
        sys.stdout.flush()
        return code
    drop_output()
    return code


STORY = Story(
    name="verify",
    run=print_verification,
    summary="Run a recorded strategy again, and print what differs.",
    examples={
        "aiobus verify strategy.db bots:strategy": "yesterday's session, today's code",
        "aiobus verify strategy.db bots:strategy --ignore data.client_id": "",
    },
    codes={
        0: "AGREES: each decision is the recorded one",
        1: "DIVERGES: the first difference is printed",
        2: "INCONCLUSIVE, or a wrong argument: nothing certain can be said",
    },
)
