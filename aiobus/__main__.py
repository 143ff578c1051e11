"""`python -m aiobus log | verify FILE`: the events of a journal, and a strategy on them once more.

Owns the arguments and what is printed. Must not know how a journal is read.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from aiobus import Event, Journal, JournalError, verify
from aiobus.journal.export import json_line

__all__ = ["main"]


def moment(text: str) -> float:
    """A time as Unix seconds or in ISO 8601; without an offset, it is local."""
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()


def parser() -> argparse.ArgumentParser:
    """What may be given."""
    made = argparse.ArgumentParser(prog="python -m aiobus", description="Tools for aiobus.")
    commands = made.add_subparsers(required=True, metavar="command")
    log = commands.add_parser(
        "log",
        help="print the events of a journal",
        description="Print the events of a journal, oldest first, also while it is written: offset,"
        " time (UTC), type, key, id, data, and the id of the cause. Each event is compared with its"
        " checksum. Exits with 1 if the journal is damaged, behind the events before that.",
    )
    log.add_argument("file", help="the journal")
    log.add_argument("--start", type=int, metavar="OFFSET", help="begin with this offset")
    log.add_argument("--since", type=moment, metavar="TIME", help="Unix seconds or ISO 8601")
    log.add_argument("--until", type=moment, metavar="TIME", help="before this time")
    log.add_argument("--type", action="append", help="only this type; may be repeated")
    log.add_argument("--key", action="append", help="only this key or 'prefix*'; may be repeated")
    log.add_argument("--source", action="append", help="only this bus; may be repeated")
    form = log.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a line of JSON for each event")
    form.add_argument("--export", metavar="PATH", help="write a new .jsonl or .parquet file")
    form.add_argument("--verify", action="store_true", help="verify all of it, and print a count")
    log.add_argument("--follow", action="store_true", help="go on with what is written, until ^C")
    log.set_defaults(run=print_log)
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
        "--recording", type=int, default=-1, metavar="N", help="of several, from 0 (the last)"
    )
    verification.set_defaults(run=print_verification)
    return made


def print_log(given: argparse.Namespace) -> None:
    """The command `log`."""
    selection: dict[str, Any] = {
        "since": given.since,
        "until": given.until,
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
            line = json_line if given.json else plain_line
            selection |= {"start_offset": given.start, "follow": given.follow}
            for offset, event in journal.read(**selection):
                say(line(offset, event))
                if given.follow:
                    sys.stdout.flush()


def print_verification(given: argparse.Namespace) -> int:
    """The command `verify`."""
    try:
        strategy = imported(given.strategy)
        options = {"ignore": given.ignore, "allow": given.allow, "recording": given.recording}
        report = verify(given.file, strategy, **options)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    say(f"{report}\n".encode())
    return {"AGREES": 0, "DIVERGES": 1}.get(report.verdict, 2)


def imported(name: str) -> Any:
    """What `module:function` names."""
    module, _, path = name.partition(":")
    if not path:
        raise ValueError(f"{name!r}: module:function is needed")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def say(line: bytes) -> None:
    """Print bytes, which are UTF-8 whatever the locale is."""
    sys.stdout.buffer.write(line)


def plain_line(offset: int, event: Event) -> bytes:
    """One event for a person. What could move the cursor of a terminal is escaped."""
    when = datetime.fromtimestamp(event.timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    data = orjson.dumps(event.data).decode()
    parts = [str(offset), f"{when}Z", event.type, event.key or "-", event.id, data]
    if event.cause:
        parts.append(f"<- {event.cause}")
    text = " ".join(parts)
    return f"{text if text.isprintable() else ascii(text)[1:-1]}\n".encode()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    given = parser().parse_args(arguments)
    try:
        code: int | None = given.run(given)
        sys.stdout.flush()
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (JournalError, ValueError, OSError) as error:
        sys.stdout.flush()
        sys.stderr.write(f"{error}\n")
        return 1
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
