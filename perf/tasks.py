"""How many events a second do so many tasks of one process publish to a handler of their bus?

It uses what every version of the package has, so that a copy of it can measure an earlier one.
Run: python -m perf.tasks TASKS LOOP, which prints the figure.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Callable

import uvloop

from aiobus import AsyncEventBus, Event
from perf.trades import symbols, trades

__all__ = ["LOOPS", "throughput"]

EVENTS = 50_000

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


async def ignore(event: Event) -> None:
    """A handler."""


async def throughput(bus: AsyncEventBus, tasks: int) -> float:
    """Events a second, from the first publish to the last callback."""
    async with bus:
        await bus.subscribe(["TRADE", "QUOTE"], ignore)

        async def publish() -> None:
            for event in itertools.islice(
                trades(["TRADE", "QUOTE"], symbols(40), make=Event), EVENTS // tasks
            ):
                await bus.publish(event)

        begin = time.perf_counter()
        await asyncio.gather(*(publish() for _ in range(tasks)))
        await bus.settle(60.0)
        return EVENTS / (time.perf_counter() - begin)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=LOOPS[sys.argv[2]]) as runner:
        print(runner.run(throughput(AsyncEventBus(), int(sys.argv[1]))))
