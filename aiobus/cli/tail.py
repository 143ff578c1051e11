"""`aiobus tail URL`: the events of a desk as they come.

Owns which events are shown, how many, and what is said of those that are not. Must not know how
they arrive.
"""

import asyncio
import math
import sys
from typing import Annotated, Any

import typer

from aiobus.cli import Story
from aiobus.cli.arguments import (
    URL,
    BusName,
    Directory,
    Wanted,
    WrongArgument,
    Zoned,
    desk_and,
    since,
    zone_of,
)
from aiobus.cli.desk import neighbours, observing, waiting_for
from aiobus.cli.expression import Expression
from aiobus.cli.session import Ends, Output, run
from aiobus.cli.terminal import event_json, event_line, is_colored
from aiobus.event import Event
from aiobus.query import RESERVED, SYSTEM
from aiobus.system import GAP, PEER_JOINED, PEER_LEFT, PEER_RESTARTED

__all__ = ["STORY"]

BATCH = 512
"""Lines that are written at once while more events wait."""


class Lost:
    """What was not shown, and has to be said at the end."""

    def __init__(self) -> None:
        self.gaps = self.most = 0

    def note(self, gap: Event[Any]) -> None:
        """A gap has come."""
        self.gaps += 1
        self.most += gap.data["upto"] - gap.data["after"]

    def tell(self, out: Output, where: Expression | None) -> None:
        """Say what was lost, and what could not be asked."""
        if self.gaps:
            out.tell(f"! lost: {self.most:,} events at most, in {self.gaps:,} gaps")
        if where is not None and where.failed:
            out.tell(
                f"! {where.failed:,} events do not have what --where asks for, and do not match;"
                f" the last: {where.failure}"
            )


def tail(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[URL] [TYPE[/KEY]]...",
            help=f"{URL} The others are such as TRADE, TRADE/BTCUSDT, 'TRADE/BTC*', '*/BTCUSDT' or"
            " 'aiobus.*'; without them, all.",
            show_default=False,
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="EXPR", help="Only events of which it is true, such as 'data.price > 39000'."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each event.")] = False,
    begin: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="last|TIME",
            help="Begin with the newest of each type and key, or with what came since a time: 5m"
            " (ago), Unix seconds or ISO 8601.",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--n", "-n", metavar="COUNT", min=1, help="End after so many.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Do not say who comes and goes.")
    ] = False,
    color: Annotated[
        bool | None,
        typer.Option("--color/--no-color", help="Else only on a terminal without NO_COLOR."),
    ] = None,
    tz: Zoned = None,
    keyring: Directory = None,
    name: BusName = None,
) -> int:
    """Show the events of a desk as they come, a line each: time, type, key, id, data, and the id of
    the cause. It is an observer: no bot waits for it. If events were lost on the way, that is a
    line `aiobus.gap` in their place, a sentence on stderr, and the exit code 3. If nobody is there,
    it says so and waits, also if no bus lets it in.
    """
    url, patterns = desk_and(words or [], more=True)
    wanted = Wanted(patterns)
    asked = _expression(where)
    zone = zone_of(tz)
    start: Any = since(begin, zone)
    colored = is_colored(sys.stdout) if color is None else color
    show = event_json if json else lambda event: event_line(event, zone, colored=colored)
    bus = observing(url, "tail", name, keyring)

    async def body(ends: Ends) -> int:
        out, lost = ends.out, Lost()
        # Old orders are shown, and not executed: their age does not matter.
        options: dict[str, Any] = {"key": wanted.keys, "since": start}
        options["max_age"] = None if start is None else math.inf
        left = math.inf if count is None else count
        try:
            async with bus, bus.stream((*wanted.types, *SYSTEM), **options) as events:
                there = {each.name for each in neighbours(bus)}
                if text := waiting_for(bus, url):
                    out.tell(text)
                elif not quiet:
                    out.tell(f"- {', '.join(sorted(there))}: there already")
                lines: list[bytes] = []
                async for event in events:
                    if event.type.startswith(RESERVED) and not quiet:
                        _tell(event, there, out)
                    if event.type == GAP:
                        lost.note(event)
                        lines.append(show(event))
                    elif wanted.matches(event.type, event.key) and (
                        asked is None or asked.matches(event)
                    ):
                        lines.append(show(event))
                        left -= 1
                    if lines and (not left or len(lines) >= BATCH or not _waits(events)):
                        out.put(b"".join(lines))
                        lines.clear()
                        await out.room()
                    if not left:
                        break
        except asyncio.CancelledError:
            if not ends.is_over:
                raise
        if not ends.is_over:
            await out.drained()
        lost.tell(out, asked)
        return 3 if lost.gaps and not out.is_closed else 0

    return run(body)


def _waits(events: Any) -> bool:
    """True if another event can be taken at once."""
    return bool(events.subscription.pending)


def _expression(text: str | None) -> Expression | None:
    try:
        return None if text is None else Expression(text)
    except ValueError as error:
        raise WrongArgument(f"--where: {error}") from None


def _tell(event: Event[Any], there: set[str], out: Output) -> None:
    """Who comes and goes. What is wrong is in the log, which is shown."""
    name = event.data.get("name", "")
    if event.type == PEER_JOINED and name not in there:
        there.add(name)
        out.tell(f"- {name} is there")
    elif event.type == PEER_LEFT:
        there.discard(name)
        out.tell(f"- {name} has left: {event.data['reason']}")
    elif event.type == PEER_RESTARTED:
        out.tell(f"- {name} has started again, and goes on from its journal")


STORY = Story(
    name="tail",
    run=tail,
    summary="Show the events of a desk as they come.",
    usage="[URL] [TYPE[/KEY]]...",
    examples={
        "aiobus tail ipc://desk": "all events",
        "aiobus tail ipc://desk ORDER FILL 'TRADE/BTC*'": "orders, fills, and trades of some keys",
        "aiobus tail ipc://desk TRADE --where 'data.price > 39000 and data.side == \"buy\"'": "",
        "aiobus tail ipc://desk POSITION --since last -n 3": "the newest positions, then end",
        "aiobus tail ipc://desk --json | jq .data.price": "for a program",
        "aiobus tail TRADE": "on the desk in AIOBUS_URL",
    },
    codes={
        0: "ended by -n, by SIGTERM, or since its output is not read any more (| head);"
        " nothing was lost",
        1: "the desk cannot be joined",
        3: "ended the same, and events were lost: each loss was a line aiobus.gap",
    },
)
