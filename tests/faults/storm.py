"""A storm of cancellations in one process: every call of the bus, given up at random
instants, over real sockets.

Owns the calls and the dice. It runs in actors; what was delivered all the same is for the oracle,
from the ledger of the bot in whose process it is.
"""

import asyncio
import contextlib
import os
import random
from collections.abc import Awaitable, Callable

from aiobus import AsyncEventBus, Event
from aiobus.bus import CLOSE_SECONDS
from aiobus.keyring.changes import make_key
from aiobus.keyring.members import EVERYTHING
from aiobus.url import keyring_of_environment
from faults.bots import GAP, GUEST, Bot

__all__ = ["blow", "step", "until_descriptors"]


async def ignore(event: Event) -> None:
    """A handler of a subscription that is not to last."""


async def publish(bot: Bot, dice: random.Random) -> None:
    """A few events; each that got a number was published."""
    for _ in range(dice.randrange(1, 10)):
        await bot.publish()


async def subscribe(bot: Bot, dice: random.Random) -> None:
    """Nothing is left subscribed, whichever of the two is cancelled."""
    subscription = await bot.bus.subscribe("T", ignore, key=f"K{dice.randrange(3)}")
    await subscription.unsubscribe()


async def wait(bot: Bot, dice: random.Random) -> None:
    """For an event that comes, or not before it is given up."""
    await bot.bus.wait_for("T", timeout=1)


async def flush(bot: Bot, dice: random.Random) -> None:
    """What it waits for is not undone."""
    await bot.bus.flush(1)


async def come_and_go(bot: Bot, dice: random.Random) -> None:
    """A bus beside this one starts, and closes however that ends."""
    name = f"{GUEST}{dice.randrange(10**9)}"
    if (ring := keyring_of_environment()) is not None and "tcp" in bot.bus.url:
        make_key(ring.path, name, EVERYTHING)
    bus = AsyncEventBus(bot.bus.url, name=name)
    try:
        await bus.start()
        await bus.subscribe("T", ignore)
    finally:
        closing = asyncio.ensure_future(bus.close(1))
        if dice.random() < 0.5:
            await asyncio.sleep(dice.random() * 0.01)
            closing.cancel()
        await asyncio.wait([closing])
        await bus.close(1)  # cancelled only the waiting: this waits for the same end


CALLS: list[Callable[[Bot, random.Random], Awaitable[None]]] = [
    publish,
    publish,
    subscribe,
    subscribe,
    wait,
    flush,
    come_and_go,
]


async def blow(bot: Bot, seed: int, count: int) -> list[str]:
    """So many calls, a few at once, each cancelled after some turns of the loop or milliseconds.
    Returns what is left that should not be: names of tasks and subscriptions.
    """
    dice = random.Random(seed)
    tasks, subscriptions = asyncio.all_tasks(), len(bot.bus.stats().subscriptions)

    async def one() -> None:
        call = asyncio.ensure_future(dice.choice(CALLS)(bot, dice))
        if dice.random() < 0.5:
            for _ in range(dice.randrange(20)):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(dice.random() * 0.02)
        call.cancel()
        await asyncio.wait([call])
        if not call.cancelled() and (error := call.exception()) is not None:
            raise error

    for _ in range(0, count, 5):
        await asyncio.gather(*(one() for _ in range(5)))
    left = asyncio.all_tasks() - tasks - {asyncio.current_task()}
    if left:  # cancelling `close` stops the waiting only: what it closes goes on, and ends in time
        _, left = await asyncio.wait(left, timeout=CLOSE_SECONDS + 1)
    names = [each.get_name() for each in left]
    return names + [each.name for each in bot.bus.stats().subscriptions[subscriptions:]]


async def step(bot: Bot, seed: int, count: int) -> None:
    """Take that many events of a stream, each step given up after next to no time."""
    dice = random.Random(seed)
    bot.ledger.subscribes("stream", [["T"], None])
    async with bot.bus.stream(["T", GAP]) as events:
        bot.ledger.subscribed("stream", events.subscription)
        while count > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(dice.random() * 0.002):
                    while count > 0:
                        await bot.handle("stream", await anext(events))
                        count -= 1


async def until_descriptors(bot: Bot, most: int) -> None:
    """Wait until this process has no more than that open: links end when their `bye` was read."""
    while len(os.listdir("/dev/fd")) > most:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0.02)
