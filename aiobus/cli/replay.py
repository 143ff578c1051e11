"""`aiobus replay FILE MODULE:FUNCTION` and `aiobus verify FILE MODULE:FUNCTION`: a strategy on what
was recorded, and what differs first from then.

Owns the arguments of the commands, what is told of the strategy's work, and the exit code of a
verdict.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Annotated, Any

import orjson
import typer

from aiobus.bus import AsyncEventBus, unheard
from aiobus.cli import Story
from aiobus.cli.arguments import Keys, Sources, Types, WrongArgument, Zoned, place
from aiobus.cli.strategy import parts_of, strategy_named, told
from aiobus.cli.terminal import drop_output, plain_line, say, working
from aiobus.confinement import current, is_users, written
from aiobus.delivery import Consumer
from aiobus.errors import BusError, JournalError, LeavesProcess
from aiobus.event import Event
from aiobus.journal.format import tape_of
from aiobus.journal.reader import Journal
from aiobus.lockout import shut
from aiobus.publisher import Sink
from aiobus.query import Query
from aiobus.replay.evidence import raised_at
from aiobus.replay.moments import Zone
from aiobus.replay.report import Report
from aiobus.replay.session import Bot, acting, play_out
from aiobus.replay.transport import Replay
from aiobus.replay.verify import verify
from aiobus.virtual_loop import frames
from aiobus.virtual_loop import place as place_of
from aiobus.virtual_run import run_virtual

__all__ = ["REPLAY", "VERIFY"]

MONITOR = "aiobus.replay"
"""The name of a bus that only looks at a recording; no bot has it by accident."""

Named = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:FUNCTION",
        help="As Python imports it from this directory.",
        show_default=False,
    ),
]


def print_replay(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The recording.", show_default=False)],
    strategy: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE:FUNCTION]",
            help="As Python imports it from this directory; else the recording is shown.",
            show_default=False,
        ),
    ] = None,
    speed: Annotated[
        float | None, typer.Option(help="Times real time; else as fast as it goes.", min=0.0)
    ] = None,
    name: Annotated[str, typer.Option(help="Of its bus, and not played.")] = "strategy",
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODULE:FUNCTION",
            help="Another bot, in place of the source of this name. May be repeated.",
        ),
    ] = None,
    start: Annotated[str | None, typer.Option(metavar="PLACE", help="An offset or a time.")] = None,
    end: Annotated[
        str | None, typer.Option(metavar="PLACE", help="Before this offset or time.")
    ] = None,
    tz: Zoned = None,
    type: Types = None,
    key: Keys = None,
    source: Sources = None,
) -> int:
    """Play a recording: each event at its time, in virtual time or paced. Without a strategy, print
    each. Else run the strategy, a coroutine function of a bus, through it, and print what that
    publishes, and a summary. Nothing leaves the process. A request finds only bots that are given
    by --beside.
    """
    zone = Zone.of(tz)

    def tell(event: Event[Any]) -> None:
        say(plain_line(event.seq, event, zone))
        if speed is not None:
            sys.stdout.flush()

    if strategy is None and beside:
        raise WrongArgument("--beside is for bots beside a strategy: give MODULE:FUNCTION, too")
    try:
        parts_of(strategy or "aiobus:run")
    except ValueError as error:
        raise WrongArgument(str(error)) from error
    with Journal(file):  # before anything is imported: a wrong file is not blamed on a module
        pass
    with shut("aiobus replay"):
        begin, before = place(start, zone), place(end, zone)
        if strategy is None:
            chosen = {"start": begin, "end": before, "types": type, "key": key, "sources": source}
            say(f"{show(file, tell, speed=speed, **chosen)}\n".encode())
            return 0
        bot, others = imported(strategy), bots_beside(beside or [])
        with working(f"replaying {file}"):
            summary, is_well = replay(
                file,
                bot,
                tell,
                name=name,
                speed=speed,
                beside=others,
                start=begin,
                end=before,
                types=type,
                key=key,
                sources=source,
            )
    say(f"{summary}\n".encode())
    return 0 if is_well else 1


def imported(text: str) -> Bot:
    """The bot that `module:function` names. Raises WrongArgument."""
    try:
        return strategy_named(text)
    except ValueError as error:
        raise WrongArgument(str(error)) from error


def bots_beside(texts: Sequence[str]) -> dict[str, Bot]:
    """Bots by the names of their buses. Raises WrongArgument."""
    parts = [text.partition("=") for text in texts]
    for text, (name, _, bot) in zip(texts, parts, strict=True):
        if not (name and bot):
            raise WrongArgument(
                f"--beside {text!r}: a name and a bot are needed, risk=module:function"
            )
    return {name: imported(bot) for name, _, bot in parts}


def print_verification(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A recording with attach=.", show_default=False)
    ],
    strategy: Named,
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
            report = _verified(file, strategy, ignore or [], allow or [], recording)
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


def _verified(
    file: str, strategy: str, ignore: Sequence[str], allow: Sequence[str], recording: int
) -> Report:
    """The report. A file that is no journal is reported before the strategy is imported."""
    parts_of(strategy)
    try:
        with Journal(file):
            pass
    except JournalError as error:
        return Report(file, "INCONCLUSIVE", reason=str(error))
    bot = strategy_named(strategy)
    with working(f"verifying {file}"):
        return verify(file, bot, ignore=ignore, allow=allow, recording=recording)


REPLAY = Story(
    name="replay",
    run=print_replay,
    summary="Play a recording, and run a strategy through it.",
    examples={
        "aiobus replay desk.db --speed 1": "each event at its time, as it was",
        "aiobus replay desk.db strategy:strategy": "as fast as it goes",
        "aiobus replay desk.db strategy:strategy --speed 10 --start 2026-11-29T09:30": "",
        "aiobus replay desk.db strategy:strategy --beside broker=broker:broker": "with the bot"
        " that answers its requests",
    },
    codes={
        0: "all was played, and no handler raised",
        1: "the strategy or a handler raised, or the recording cannot be played",
    },
)

VERIFY = Story(
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


def _place(task: "asyncio.Task[None]") -> str:
    """Where a task waits, in code of the user's."""
    found = [*frames(task.get_coro())]
    return place_of(([*filter(is_users, found)] or found)[-1])


def _failed(bus: AsyncEventBus) -> int:
    """How many calls of its handlers raised."""
    return sum(each.failed for each in bus.stats().subscriptions)


def _answering(path: str, name: str, type: str) -> list[str]:
    """The sources that published what names a recorded request of this type as its cause."""
    with suppress(JournalError), Journal(path) as journal:
        asked = {event.id for _, event in journal.read(types=[type], sources=[name])}
        return sorted({each.source for _, each in journal.read() if each.cause in asked} - {name})
    return []


def _way_to(answering: list[str]) -> str:
    """How the bots that answer requests are given."""
    if not answering:
        return ": give the bot that answers them by --beside"
    options = " ".join(f"--beside {each}=module:function" for each in answering)
    return f": {', '.join(answering)} answered when it was recorded, so give {options}"


def show(
    path: str, tell: Callable[[Event[Any]], None], *, speed: float | None, **selection: Any
) -> str:
    """`tell` each event of the recording, at its time. Returns a summary. Blocks. Raises as
    `Replay` does.
    """

    async def main() -> str:
        recording = Replay(path, **selection)
        async with AsyncEventBus(recording, name=MONITOR) as bus:
            await bus.subscribe("*", tell)
            played = await play_out(recording, bus, speed=speed)
        return f"{played:,} events played, {recording.progress.gaps:,} gaps"

    return run_virtual(main)


def replay(
    path: str,
    bot: Bot,
    tell: Callable[[Event[Any]], None],
    *,
    name: str,
    speed: float | None,
    beside: Mapping[str, Bot],
    **selection: Any,
) -> tuple[str, bool]:
    """Run `bot` on a bus called `name` through the recording, and `tell` each event that it
    publishes. `beside`: other bots by the names of their buses, which take the places of these
    sources. Returns a summary, and whether no handler raised. Blocks. Raises as `Replay` does,
    ValueError for what a bot raises beside its handlers, and BusError for a call that would leave
    the process.
    """
    counts: Counter[str] = Counter()
    with Journal(path) as journal:
        names = {source for source, _ in journal.sources()}
    recorded = sorted(each for each in names if not each.startswith(tape_of("")))

    def tell_errors(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if (here := current()) is None or here.refusal is None:  # else that is why all has ended
            loop.default_exception_handler(context)

    async def main() -> tuple[str, bool]:
        asyncio.get_running_loop().set_exception_handler(tell_errors)
        recording = Replay(path, **selection)
        async with AsyncEventBus(recording, name=name) as bus:
            epoch = recording.publisher.epoch

            def note(seq: int, row: bytes, type: str, key: str) -> None:
                counts[type] += 1
                _, time, _, _, data, *cause = orjson.loads(row)
                event = Event(type, data, time, key=key, cause="".join(cause))
                event.source, event.epoch, event.seq = name, epoch, seq
                tell(event)

            recording.publisher.attach(Sink(Query.of("*"), note, Consumer()))
            async with AsyncExitStack() as others:
                buses = [bus]
                for each, other in beside.items():
                    seat = AsyncEventBus(recording.beside(), name=each)
                    buses.append(await others.enter_async_context(seat))
                    await others.enter_async_context(acting(other, seat))
                async with acting(bot, bus) as task:
                    played = await play_out(recording, *buses, speed=speed)
                    subscriptions = bus.stats().subscriptions
                    has_begun = task.done() or any(each.handled for each in subscriptions)
                    waits = "" if counts or has_begun else _place(task)
                failed = dict(zip([name, *beside], map(_failed, buses), strict=True))
            is_well = not any(failed.values())
            published = ", ".join(f"{count:,} {type}" for type, count in sorted(counts.items()))
            files = written()
            said = (
                f"{played:,} events played, {recording.progress.gaps:,} gaps; {name} published"
                f" {published or 'nothing'}; {failed.pop(name):,} calls of its handlers raised"
                + (f"\nopened for writing: {', '.join(files)}" if files else "")
            )
            for each, count in failed.items():
                said += f"\n{count:,} calls of handlers of {each} raised" if count else ""
            for (type, to), count in sorted(unheard(bus).items()):
                whose = f" of {to}" if to else ""
                said += f"\n{count:,} requests for {type} found no subscriber{whose}"
                said += _way_to(_answering(path, name, type))
            if waits:
                said += f"\n{name} was given nothing, and waits at {waits}"
            if name not in recorded:
                said += (
                    f"\n{name} was not recorded, so the events of no source were left out for it:"
                    f" if the strategy is one of {', '.join(recorded)}, name it by --name"
                )
            return said, is_well

    try:
        return run_virtual(main)
    except LeavesProcess as error:
        where = raised_at(error) or error.caller or "a library"
        raise BusError(
            f"{error.call} at {where} was refused: nothing leaves the process while a recording is"
            " replayed"
        ) from error
    except BusError:
        raise
    except Exception as error:
        if not raised_at(error):
            raise
        raise ValueError(f"a strategy raised {told(error)}") from error
