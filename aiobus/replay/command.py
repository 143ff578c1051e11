"""`python -m aiobus replay FILE MODULE:FUNCTION`: a strategy through a recording, in the shell.

Owns what of its work is told. Must not know how arguments are written.
"""

import importlib
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import orjson

from aiobus.bus import AsyncEventBus
from aiobus.confinement import written
from aiobus.delivery import Consumer
from aiobus.event import Event
from aiobus.publisher import Sink
from aiobus.query import Query
from aiobus.replay.session import Bot, acting, play_out
from aiobus.replay.transport import Replay
from aiobus.virtual_run import run_virtual

__all__ = ["bot_named", "replay"]


def bot_named(text: str) -> Bot:
    """The coroutine function of a bus that `module:function` names. Raises ValueError."""
    module, colon, function = text.partition(":")
    if not (module and colon and function):
        raise ValueError(f"{text!r}: a module and a function are needed, such as strategy:main")
    try:
        found: object = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"{text!r}: {error}; give its directory by PYTHONPATH") from None
    for name in function.split("."):
        if not hasattr(found, name):
            raise ValueError(f"{text!r}: {module} has no {function}")
        found = getattr(found, name)
    if not callable(found):
        raise ValueError(f"{text!r} is no function")
    bot: Bot = found
    return bot


def replay(
    path: str,
    bot: Bot,
    tell: Callable[[Event[Any]], None],
    *,
    name: str,
    speed: float | None,
    beside: Mapping[str, Bot],
    **selection: Any,
) -> str:
    """Run `bot` on a bus called `name` through the recording, and `tell` each event that it
    publishes. `beside`: other bots by the names of their buses, which take the places of these
    sources. Returns a summary. Blocks. Raises as `Replay` does, and what a bot raises beside its
    handlers.
    """
    counts: Counter[str] = Counter()

    async def main() -> str:
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
                async with acting(bot, bus):
                    played = await play_out(recording, *buses, speed=speed)
            failed = sum(each.failed for each in bus.stats().subscriptions)
            published = ", ".join(f"{count:,} {type}" for type, count in sorted(counts.items()))
            files = written()
            return (
                f"{played:,} events played, {recording.progress.gaps:,} gaps; {name} published"
                f" {published or 'nothing'}; {failed:,} calls of its handlers raised"
                + (f"\nopened for writing: {', '.join(files)}" if files else "")
            )

    return run_virtual(main)
