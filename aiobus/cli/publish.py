"""`aiobus publish URL TYPE JSON`: one event, from a shell.

Owns who must have it, and the exit codes for who has not. Must not know how it travels.
"""

import asyncio
import sys
from typing import Annotated, Any

import orjson
import typer

from aiobus.cli import Story
from aiobus.cli.arguments import URL, BusName, Directory, WrongArgument, desk_and
from aiobus.cli.desk import joining, neighbours, shut_out
from aiobus.cli.session import Ends, run
from aiobus.cli.terminal import event_json
from aiobus.event import Event
from aiobus.presence import Patterns
from aiobus.query import RESERVED, bad_key, bad_name, bad_type, starred

__all__ = ["STORY"]

NOBODY, UNCONFIRMED = 3, 4
LOOK_SECONDS = 0.1


def publish(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[URL] TYPE JSON",
            help=f"{URL} TYPE is such as HALT, and JSON its data; - reads stdin.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[str, typer.Option(help="Such as BTCUSDT.", show_default=False)] = "",
    cause: Annotated[
        str, typer.Option(metavar="ID", help="The event that led to it.", show_default=False)
    ] = "",
    name: BusName = None,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="For somebody who subscribes to it.")
    ] = 0.0,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="For subscribers to confirm.")
    ] = 5.0,
    json: Annotated[bool, typer.Option("--json", help="Print the event as JSON.")] = False,
    keyring: Directory = None,
) -> int:
    """Publish one event, and wait until each subscriber has it. Prints its id, and who has it.

    The bus that publishes it is gone when the command ends: who subscribes later does not get it,
    whatever since= says.
    """
    url, (type, data) = desk_and(words or [], "TYPE", "JSON")
    event = _checked(type, data, key, cause)
    if name is not None and (reason := bad_name(name)):
        raise WrongArgument(f"--name: {reason}")
    bus = joining(url, "publish", name, keyring)

    async def body(ends: Ends) -> int:
        ends.needs_reader = False  # what counts is who has the event
        async with bus:
            found = await _until_wanted(bus, event, wait)
            if closed := shut_out(bus, url):
                ends.out.tell(f"! not published: {closed}")
                return 1
            await bus.publish(event)
            missing = await bus.flush(timeout)
        has = [name for name in found if name not in missing]
        ends.out.put(event_json(event) if json else f"{event.id}\n".encode())
        if missing:
            ends.out.tell(f"! published, and not confirmed within {timeout:g} s: {_all(missing)}")
        if has:
            ends.out.tell(f"{_all(has)} {'has' if len(has) == 1 else 'have'} it")
        if missing:
            return UNCONFIRMED
        if not found:
            ends.out.tell(
                f"! published, and nobody subscribes to {type}{f'/{key}' if key else ''} at {url}:"
                " nobody has it"
            )
            return NOBODY
        if not any(found.values()):
            ends.out.tell(f"! only subscriptions to '*' got it: none names {type}")
        return 0

    return run(body)


async def _until_wanted(bus: Any, event: Event[Any], seconds: float) -> dict[str, bool]:
    """The names of those that subscribe to it, and if by the name of its type: once there is one
    that does so, or when the time is over.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        told = {each.name: Patterns.of(each.subscribed) for each in neighbours(bus)}
        place = event.type, event.key
        found = {name: each.take(*place) for name, each in told.items() if each.want(*place)}
        if loop.time() >= end or any(found.values()):
            return found
        await asyncio.sleep(LOOK_SECONDS)


def _checked(type: str, data: str, key: str, cause: str) -> Event[Any]:
    """The event. Raises WrongArgument."""
    if reason := bad_type(type) or bad_key(key) or starred(key):
        raise WrongArgument(reason)
    if type.startswith(RESERVED):
        raise WrongArgument(f"{type!r}: types that begin with {RESERVED!r} are the bus's own")
    text = sys.stdin.buffer.read() if data == "-" else data.encode(errors="surrogateescape")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise WrongArgument(
            f"{text[:80].decode(errors='replace')!r} is no JSON: {error}; an object is"
            " '{\"price\": 1.5}', a text '\"stop\"'"
        ) from None
    return Event(type, value, key=key, cause=cause)


def _all(names: Any) -> str:
    return ", ".join(names)


STORY = Story(
    name="publish",
    run=publish,
    summary="Publish one event, and wait until its subscribers have it.",
    usage="[URL] TYPE JSON",
    examples={
        'aiobus publish ipc://desk HALT \'{"halted": true, "reason": "by hand"}\'': "",
        'aiobus publish ipc://desk QUOTE \'{"bid": 1.0, "ask": 1.1}\' --key EURUSD': "",
        "jq '.[0]' orders.json | aiobus publish ipc://desk ORDER -": "the data from stdin",
        "aiobus publish ipc://desk START '{}' --wait 30": "once somebody subscribes to START",
    },
    codes={
        0: "each subscriber has it",
        1: "it was not published: the desk cannot be joined, no bus there lets this command in, or"
        " the event cannot travel",
        3: "it was published, and nobody subscribes to it",
        4: "it was published, and a bus has not confirmed it in time: it is named",
    },
)
