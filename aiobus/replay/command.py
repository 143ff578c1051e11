"""`python -m aiobus replay FILE MODULE:FUNCTION`: a strategy through a recording, in the shell.

Owns how a strategy is imported, and what of its work is told. Must not know how arguments are
written.
"""

import asyncio
import importlib
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

import orjson

from aiobus.bus import AsyncEventBus, unheard
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
from aiobus.replay.session import Bot, acting, play_out
from aiobus.replay.transport import Replay
from aiobus.virtual_loop import frames, place
from aiobus.virtual_run import run_virtual

__all__ = ["replay", "strategy_named", "told"]


def strategy_named(text: str) -> Bot:
    """The coroutine function of a bus that `module:function` names. The module is imported, and
    does not see the arguments of this command. Raises ValueError, with what the import raised and
    where.
    """
    module, colon, function = text.partition(":")
    if not (module and colon and function):
        raise ValueError(f"{text!r}: a module and a function are needed, such as strategy:main")
    if module.endswith(".py") or os.sep in module:
        name = module.removesuffix(".py").replace(os.sep, ".")
        raise ValueError(f"{text!r}: a module is named without .py, such as {name}:{function}")
    given, sys.argv = sys.argv, sys.argv[:1]
    try:
        with shut(f"importing {module}"):
            found: object = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # it runs any code
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{text!r}: {error}; give its directory by PYTHONPATH") from None
        if isinstance(error, BusError):
            raise ValueError(f"{text!r}: {error}") from None
        raise ValueError(f"{text!r}: importing {module} raised {told(error)}") from error
    finally:
        sys.argv = given
    for name in function.split("."):
        if not hasattr(found, name):
            raise ValueError(f"{text!r}: {module} has no {function}")
        found = getattr(found, name)
    if not callable(found):
        raise ValueError(f"{text!r} is no function")
    bot: Bot = found
    return bot


def told(error: BaseException) -> str:
    """The error, and the last line of code of the user's that led to it."""
    *_, said = traceback.format_exception_only(error)
    if isinstance(error, SyntaxError):
        return f"{said.strip()} at {error.filename}:{error.lineno}"
    return f"{said.strip()} at {where}" if (where := raised_at(error)) else said.strip()


def _place(task: "asyncio.Task[None]") -> str:
    """Where a task waits, in code of the user's."""
    found = [*frames(task.get_coro())]
    return place(([*filter(is_users, found)] or found)[-1])


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
