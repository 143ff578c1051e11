"""`python -m aiobus log FILE`: the events of a journal, in the shell; `replay`: through a strategy.

Owns the arguments and what is printed. Must not know how a journal is read or replayed.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from aiobus import BusError, Event, Journal
from aiobus.journal.export import json_line
from aiobus.replay.command import bot_named, replay
from aiobus.replay.session import Bot

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
    _add_replay(commands)
    return made


def _add_replay(commands: Any) -> None:
    replay = commands.add_parser(
        "replay",
        help="run a strategy through a recording",
        description="Run a strategy, a coroutine function of a bus, through a recording: each event"
        " at its time, in virtual time or paced. Nothing leaves the process. Prints what the"
        " strategy publishes, and a summary.",
    )
    replay.add_argument("file", help="the recording")
    replay.add_argument("bot", metavar="module:function", help="such as strategy:main")
    replay.add_argument("--speed", type=float, help="times real time; else as fast as it goes")
    replay.add_argument("--name", default="strategy", help="of its bus, and not played (strategy)")
    replay.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="NAME=module:function",
        help="another bot, in place of the source of this name; may be repeated",
    )
    replay.add_argument("--start", type=place, metavar="PLACE", help="an offset or a time")
    replay.add_argument("--end", type=place, metavar="PLACE", help="before this offset or time")
    replay.add_argument("--type", action="append", help="only this type; may be repeated")
    replay.add_argument("--key", action="append", help="only this key or 'prefix*'; repeatable")
    replay.add_argument("--source", action="append", help="only this bus; may be repeated")
    replay.set_defaults(run=print_replay)


def place(text: str) -> float:
    """An offset, or a time."""
    return int(text) if text.isdigit() else moment(text)


def beside(texts: Sequence[str]) -> dict[str, Bot]:
    """Bots by the names of their buses."""
    parts = [text.partition("=") for text in texts]
    return {name: bot_named(bot) for name, _, bot in parts}


def print_replay(given: argparse.Namespace) -> None:
    """The command `replay`."""
    selection = {"types": given.type, "key": given.key, "sources": given.source}

    def tell(event: Event) -> None:
        say(plain_line(event.seq, event))
        if given.speed is not None:
            sys.stdout.flush()

    summary = replay(
        given.file,
        bot_named(given.bot),
        tell,
        name=given.name,
        speed=given.speed,
        beside=beside(given.beside),
        start=given.start,
        end=given.end,
        **selection,
    )
    say(f"{summary}\n".encode())


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
        given.run(given)
        sys.stdout.flush()
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (BusError, ValueError, OSError) as error:
        sys.stdout.flush()
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
