"""A strategy on its way through a recording, from its start to the end of what it does then.

Owns the order of that: who begins, what plays, and how long it may go on. Must not know what
becomes of what the strategy publishes.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiobus.bus import AsyncEventBus
from aiobus.clock import time
from aiobus.replay.transport import Replay

__all__ = ["Bot", "acting", "play_out"]

Bot = Callable[[AsyncEventBus], Awaitable[object]]
"""A coroutine function of a bus, as `strategy`: it may return when it is live, or never."""

TURNS = 100
"""Turns of the loop in which a bot may subscribe. None of its calls waits for another process."""
SETTLE_SECONDS = 600.0
"""Of virtual time, for what handlers have begun when all is played."""


@asynccontextmanager
async def acting(bot: Bot, bus: AsyncEventBus) -> AsyncIterator["asyncio.Task[None]"]:
    """`bot(bus)` has begun on entry, in the task that is returned, and is cancelled on exit if it
    has not returned by then. What it raises is raised on entry, or on exit.
    """

    async def act() -> None:
        await bot(bus)

    task = asyncio.get_running_loop().create_task(act())
    try:
        for _ in range(TURNS):
            if task.done():
                break
            await asyncio.sleep(0)
        if task.done():
            task.result()
        yield task
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def play_out(
    replay: Replay, *buses: AsyncEventBus, speed: float | None = None, until: float = 0.0
) -> int:
    """Play all, let time pass `until` then (Unix seconds), and wait for the handlers of `buses`.
    Returns how many events were played. Raises as `Replay.play`, and TimeoutError that names the
    handlers that are still at work after 10 minutes of virtual time.
    """
    played = await replay.play(speed)
    await asyncio.sleep(max(0.0, until - time()))
    for bus in buses * 2:  # what one does last may be work for another
        await bus.settle(SETTLE_SECONDS)
    return played
