"""`python -m aiobus log | explain | replay | verify FILE`: what is in journals, in the shell.

Owns the arguments and what is printed. Must not know how a journal is read or replayed.
"""

import argparse
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

import orjson

from aiobus import BusError, Event, Journal, explain, explain_hops, verify
from aiobus.journal.export import json_line
from aiobus.lockout import shut
from aiobus.replay.command import replay, strategy_named, told
from aiobus.replay.explanation import printable
from aiobus.replay.moments import Zone
from aiobus.replay.session import Bot

__all__ = ["main"]


ZONE = "times are read and printed so, such as UTC or Europe/Berlin; else local"


def moment(text: str | None, zone: Zone) -> float | None:
    """A time as Unix seconds or in ISO 8601, of this zone if it says none."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise ArgumentTypeError(
                f"{text!r}: Unix seconds, or a date and time such as 2026-11-29T10:31, are needed"
            ) from None
    return (when if when.tzinfo else when.replace(tzinfo=zone.info)).timestamp()


def parser() -> argparse.ArgumentParser:
    """What may be given."""
    made = argparse.ArgumentParser(prog="python -m aiobus", description="Tools for aiobus.")
    commands = made.add_subparsers(required=True, metavar="command")
    log = commands.add_parser(
        "log",
        help="print the events of a journal",
        description="Print the events of a journal, oldest first, also while it is written: offset,"
        " time, type, key, id, data, and the id of the cause. Each event is compared with its"
        " checksum. Exits with 1 if the journal is damaged, behind the events before that.",
    )
    log.add_argument("file", help="the journal")
    log.add_argument("--start", type=int, metavar="OFFSET", help="begin with this offset")
    log.add_argument("--since", metavar="TIME", help="ISO 8601 or Unix seconds")
    log.add_argument("--until", metavar="TIME", help="before this time")
    log.add_argument("--tz", metavar="ZONE", help=ZONE)
    log.add_argument("--type", action="append", help="only this type; may be repeated")
    log.add_argument("--key", action="append", help="only this key or 'prefix*'; may be repeated")
    log.add_argument("--source", action="append", help="only this bus; may be repeated")
    form = log.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a line of JSON for each event")
    form.add_argument("--export", metavar="PATH", help="write a new .jsonl or .parquet file")
    form.add_argument("--verify", action="store_true", help="verify all of it, and print a count")
    log.add_argument("--follow", action="store_true", help="go on with what is written, until ^C")
    log.set_defaults(run=print_log)
    add_explain(commands)
    _add_replay(commands)
    verification = commands.add_parser(
        "verify",
        help="run a recorded strategy again",
        description="Run a strategy again on what it was given when it was recorded, and print what"
        " differs first. Exits with 0 if it AGREES, with 1 if it DIVERGES, and with 2 if nothing"
        " certain can be said.",
    )
    verification.add_argument("file", help="a recording with attach=")
    verification.add_argument("strategy", help="module:function, as Python imports it from here")
    verification.add_argument(
        "--ignore", action="append", default=[], metavar="PATH", help="such as data.client_id"
    )
    verification.add_argument(
        "--allow", action="append", default=[], metavar="CALLER", help="may leave the process"
    )
    verification.add_argument(
        "--recording", type=int, default=-1, metavar="N", help="of several, from 0; else the last"
    )
    verification.set_defaults(run=print_verification)
    return made


def add_explain(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The arguments of `explain`."""
    command = commands.add_parser(
        "explain",
        help="print what led to an event, and what followed from it",
        description="Print the causes and the effects of an event, with the time of each hop, from"
        " one journal or several: by its id, or the first one at a time. Each event that is printed"
        " is compared with its checksum. Exits with 1 if the event is not there or the file is"
        " damaged.",
    )
    command.add_argument("file", nargs="+", help="the journals; behind them the id, without --at")
    command.add_argument("--at", metavar="TIME", help="10:31, 10:31:05.25, or ISO 8601 or Unix")
    command.add_argument("--type", help="with --at: the type of the event, such as FILL")
    command.add_argument("--key", help="with --at: its key or 'prefix*'")
    command.add_argument("--tz", metavar="ZONE", help=ZONE)
    command.add_argument("--most", type=int, default=1_000, help="causes and effects (1000)")
    command.add_argument("--json", action="store_true", help="one object of JSON")
    command.add_argument(
        "--hops",
        action="store_true",
        help="how long each kind of hop took over all of the files, with or without an event",
    )
    command.set_defaults(run=print_explanation)


def _add_replay(commands: Any) -> None:
    replay = commands.add_parser(
        "replay",
        help="run a strategy through a recording",
        description="Run a strategy, a coroutine function of a bus, through a recording: each event"
        " at its time, in virtual time or paced. Nothing leaves the process. Prints what the"
        " strategy publishes, and a summary. A request finds only bots that are given by --beside."
        " Exits with 1 if the strategy or one of its handlers raised.",
    )
    replay.add_argument("file", help="the recording")
    replay.add_argument("strategy", help="module:function, as Python imports it from here")
    replay.add_argument("--speed", type=float, help="times real time; else as fast as it goes")
    replay.add_argument("--name", default="strategy", help="of its bus, and not played (strategy)")
    replay.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="NAME=module:function",
        help="another bot, in place of the source of this name; may be repeated",
    )
    replay.add_argument("--start", metavar="PLACE", help="an offset or a time")
    replay.add_argument("--end", metavar="PLACE", help="before this offset or time")
    replay.add_argument("--tz", metavar="ZONE", help=ZONE)
    replay.add_argument("--type", action="append", help="only this type; may be repeated")
    replay.add_argument("--key", action="append", help="only this key or 'prefix*'; repeatable")
    replay.add_argument("--source", action="append", help="only this bus; may be repeated")
    replay.set_defaults(run=print_replay)


def place(text: str | None, zone: Zone) -> float | None:
    """An offset, or a time."""
    return int(text) if text and text.isdigit() else moment(text, zone)


def imported(text: str) -> Bot:
    """The bot that `module:function` names."""
    try:
        return strategy_named(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def beside(texts: Sequence[str]) -> dict[str, Bot]:
    """Bots by the names of their buses."""
    parts = [text.partition("=") for text in texts]
    for text, (name, _, bot) in zip(texts, parts, strict=True):
        if not (name and bot):
            raise ArgumentTypeError(
                f"--beside {text!r}: a name and a bot are needed, risk=module:function"
            )
    return {name: imported(bot) for name, _, bot in parts}


def print_replay(given: argparse.Namespace) -> int:
    """The command `replay`."""
    selection = {"types": given.type, "key": given.key, "sources": given.source}
    zone = Zone.of(given.tz)

    def tell(event: Event) -> None:
        say(plain_line(event.seq, event, zone))
        if given.speed is not None:
            sys.stdout.flush()

    with shut("python -m aiobus replay"):
        summary, is_well = replay(
            given.file,
            imported(given.strategy),
            tell,
            name=given.name,
            speed=given.speed,
            beside=beside(given.beside),
            start=place(given.start, zone),
            end=place(given.end, zone),
            **selection,
        )
    say(f"{summary}\n".encode())
    return 0 if is_well else 1


def print_log(given: argparse.Namespace) -> None:
    """The command `log`."""
    zone = Zone.of(given.tz)
    selection: dict[str, Any] = {
        "since": moment(given.since, zone),
        "until": moment(given.until, zone),
        "types": given.type,
        "keys": given.key,
        "sources": given.source,
    }
    with Journal(given.file) as journal:
        if given.verify:
            say(b"%d events, all as they were written\n" % journal.verify())
        elif given.export:
            count = journal.export(given.export, start_offset=given.start, **selection)
            say(b"%d events\n" % count)
        else:
            line = json_line if given.json else partial(plain_line, zone=zone)
            selection |= {"start_offset": given.start, "follow": given.follow}
            for offset, event in journal.read(**selection):
                say(line(offset, event))
                if given.follow:
                    sys.stdout.flush()


def print_explanation(given: argparse.Namespace) -> None:
    """The command `explain`."""
    files, id = given.file, None
    if given.at is None and (given.type or given.key):
        raise ValueError("--type and --key belong to --at: an id is one event")
    if given.at is None and (len(files) > 1 or not given.hops):
        *files, id = files
        if given.hops and os.path.exists(id):
            files, id = given.file, None
        elif not files or os.path.exists(id):
            raise ValueError("give the id of an event behind the files, or --at")
    parts: dict[str, Any] = {}
    if id is not None or given.at is not None:
        parts["explanation"] = explain(
            files, id, at=given.at, type=given.type, key=given.key, tz=given.tz, most=given.most
        )
    if given.hops:
        parts["hops"] = explain_hops(files)
    if given.json:
        plain = {name: part.to_dict() for name, part in parts.items()}
        for step in plain.get("explanation", {}).get("steps", ()):
            step["data"] = orjson.Fragment(orjson.dumps(step["data"]))  # it may be 253 levels deep
        say(orjson.dumps(plain, option=orjson.OPT_APPEND_NEWLINE))
    else:
        say("\n\n".join(map(str, parts.values())).encode() + b"\n")


def print_verification(given: argparse.Namespace) -> int:
    """The command `verify`. All but a verdict exits with 2, whatever the strategy raises."""
    options = {"ignore": given.ignore, "allow": given.allow, "recording": given.recording}
    try:
        with shut("python -m aiobus verify"):
            report = verify(given.file, strategy_named(given.strategy), **options)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a script takes the code for a verdict
        sys.stderr.write(f"{error if isinstance(error, BusError | ValueError) else told(error)}\n")
        return 2
    code = {"AGREES": 0, "DIVERGES": 1}.get(report.verdict, 2)
    with suppress(BrokenPipeError):
        say(f"{report}\n".encode())
        sys.stdout.flush()
        return code
    _drop_output()
    return code


def say(line: bytes) -> None:
    """Print bytes, which are UTF-8 whatever the locale is."""
    sys.stdout.buffer.write(line)


def plain_line(offset: int, event: Event, zone: Zone) -> bytes:
    """One event for a person. What could move the cursor of a terminal is escaped."""
    when = zone.local(event.timestamp).isoformat(timespec="microseconds")
    data = orjson.dumps(event.data).decode()
    parts = [str(offset), when, event.type, event.key or "-", event.id, data]
    if event.cause:
        parts.append(f"<- {event.cause}")
    return f"{printable(' '.join(parts))}\n".encode()


def _drop_output() -> None:
    """The reader of the output has ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    made = parser()
    given, behind = made.parse_known_args(arguments)  # an option may stand before the id
    if behind:
        if given.run is not print_explanation or any(text.startswith("-") for text in behind):
            made.error(f"unrecognized arguments: {' '.join(behind)}")
        given.file += behind
    try:
        code: int | None = given.run(given)
        sys.stdout.flush()
    except BrokenPipeError:  # such as `| head`
        _drop_output()
        return 0
    except KeyboardInterrupt:
        return 130
    except ArgumentTypeError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (BusError, ValueError, OSError) as error:
        sys.stdout.flush()
        sys.stderr.write(f"{error}\n")
        return 1
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
