"""Bots for `test_run.py`, each of which runs as this process.

python running_bot.py BOT URL uvloop|asyncio [NAME]
"""

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiobus
from aiobus import AsyncEventBus, Event

BOTS: dict[str, tuple[Callable[[AsyncEventBus], Awaitable[object]], dict[str, Any]]] = {}


def bot(**options: Any) -> Callable[[Any], Any]:
    """A decorator: the function is a bot, run with these options."""

    def enter(function: Any) -> Any:
        BOTS[function.__name__] = function, options
        return function

    return enter


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the test waits for it


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


# Bots that end by a signal.


@bot()
async def waits(bus: AsyncEventBus) -> None:
    """Its function never returns, and cleans up."""
    try:
        say("live")
        await forever()
    finally:
        await bus.publish(Event("BYE", None))
        say("cleaned up")


@bot()
async def subscribes(bus: AsyncEventBus) -> None:
    """Its function returns, and it has a subscription."""
    await bus.subscribe("T", lambda event: None)
    say("live")


@bot()
async def has_a_task(bus: AsyncEventBus) -> None:
    """Its function returns, and it has a task."""
    task = asyncio.create_task(forever(), name="forever")
    task.add_done_callback(lambda task: say(f"cancelled {task.cancelled()}"))
    bus.keep = task  # type: ignore[attr-defined]
    say("live")


@bot()
async def is_at_work(bus: AsyncEventBus) -> None:
    """A signal finds a handler at work, one event in its inbox, and a connection of the function
    that both need.
    """
    is_connected = True
    answer = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, answer.set_result, None)

    async def handle(event: Event) -> None:
        if event.data == 1:
            say("live")
            await answer
        assert is_connected
        say(f"handled {event.data}")

    await bus.subscribe("T", handle)
    await bus.publish(Event("T", 1))
    await bus.publish(Event("T", 2))
    try:
        await forever()
    finally:
        is_connected = False


@bot(close_timeout=0.4)
async def hangs(bus: AsyncEventBus) -> None:
    """A handler hangs."""

    async def handle(event: Event) -> None:
        say("live")
        await forever()

    await bus.subscribe("T", handle)
    await bus.publish(Event("T", 1))


@bot(close_timeout=60)
async def hangs_long(bus: AsyncEventBus) -> None:
    """A handler hangs, and the end may take a minute."""
    await hangs(bus)


@bot(close_timeout=60)
async def tells(bus: AsyncEventBus) -> None:
    """It publishes what others may not be able to take, and its end may take a minute."""
    try:
        say("live")
        await forever()
    finally:
        await bus.publish(Event("T", 1))


@bot(close_timeout=0.4)
async def ignores_cancelling(bus: AsyncEventBus) -> None:
    """Its function goes on whatever happens."""
    say("live")
    while True:
        try:
            await forever()
        except asyncio.CancelledError:
            say("no")


@bot()
async def blocks(bus: AsyncEventBus) -> None:
    """Its loop never turns again."""
    signal.signal(signal.SIGUSR1, lambda number, frame: say("still blocked"))
    say("live")
    while True:
        time.sleep(0.01)  # noqa: ASYNC251


@bot()
async def waits_for_a_thread(bus: AsyncEventBus) -> None:
    """A thread of it never ends."""
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 1_000)
    say("live")
    await forever()


# Bots that end by themselves.


@bot()
async def returns(bus: AsyncEventBus) -> None:
    """It has nothing that it would stay for, since a request leaves nothing behind."""

    async def answer(event: Event) -> None:
        await bus.publish(Event("ANSWER", event.data))

    subscription = await bus.subscribe("QUESTION", answer)
    assert (await bus.request(Event("QUESTION", 1), "ANSWER")).data == 1
    await subscription.unsubscribe()
    say("live")


@bot(until="return")
async def returns_all_the_same(bus: AsyncEventBus) -> None:
    """It has a subscription, a task, and an event that is not handled yet."""

    async def handle(event: Event) -> None:
        await asyncio.sleep(0.05)
        say("handled")

    await bus.subscribe("T", handle)
    bus.keep = asyncio.create_task(forever())  # type: ignore[attr-defined]
    await bus.publish(Event("T", 1))
    say("live")


@bot()
async def ends_with_its_last_task(bus: AsyncEventBus) -> None:
    async def handle(event: Event) -> None:
        asyncio.create_task(ending())  # noqa: RUF006

    async def ending() -> None:
        await subscription.unsubscribe()
        await asyncio.sleep(0.3)
        say("over")

    subscription = await bus.subscribe("T", handle)
    await bus.publish(Event("T", 1))
    say("live")


@bot()
async def closes_its_bus(bus: AsyncEventBus) -> None:
    await bus.subscribe("T", lambda event: None)
    bus.keep = asyncio.create_task(forever())  # type: ignore[attr-defined]
    say("live")
    await bus.close()


# Bots that fail.


@bot()
async def fails(bus: AsyncEventBus) -> None:
    say("live")
    raise KeyError("the bot is wrong")


@bot()
async def fails_as_it_cleans_up(bus: AsyncEventBus) -> None:
    try:
        say("live")
        await forever()
    finally:
        raise KeyError("the bot is wrong")


@bot(on_error="raise")
async def has_a_failing_handler(bus: AsyncEventBus) -> None:
    async def handle(event: Event) -> None:
        raise KeyError("the handler is wrong")

    await bus.subscribe("T", handle)
    await bus.publish(Event("T", 1))
    say("live")
    asyncio.create_task(bus.wait_closed())  # noqa: RUF006 - raises the same
    await bus.wait_closed()


async def fail_later() -> None:
    await asyncio.sleep(0)
    raise KeyError("the task is wrong")


@bot()
async def has_a_failing_task(bus: AsyncEventBus) -> None:
    """Nothing has a reference to it, and the bot goes on."""
    await bus.subscribe("T", lambda event: say("still there"))
    asyncio.create_task(fail_later(), name="the feed")  # noqa: RUF006
    await asyncio.sleep(0.01)
    await bus.publish(Event("T", 1))
    say("live")


@bot()
async def keeps_a_failed_task(bus: AsyncEventBus) -> None:
    """It has a reference to it, and nothing else that it would stay for."""
    bus.keep = asyncio.create_task(fail_later(), name="the feed")  # type: ignore[attr-defined]
    say("live")


@bot(on_error="raise")
async def raises_for_a_failed_task(bus: AsyncEventBus) -> None:
    """It would go on otherwise."""
    await bus.subscribe("T", lambda event: None)
    asyncio.create_task(fail_later(), name="the feed")  # noqa: RUF006
    say("live")
    await forever()


@bot()
async def awaits_a_failed_task(bus: AsyncEventBus) -> None:
    """As it should be."""
    task = asyncio.create_task(fail_later())
    await asyncio.wait([task])
    try:
        await task
    except KeyError:
        say("live")


@bot()
async def is_cancelled_by_itself(bus: AsyncEventBus) -> None:
    say("live")
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await forever()


@bot()
async def exits(bus: AsyncEventBus) -> None:
    """It ends the process as any program does."""

    async def handle(event: Event) -> None:
        await asyncio.sleep(0.05)
        say("handled")

    await bus.subscribe("T", handle)
    await bus.publish(Event("T", 1))
    say("live")
    sys.exit(7)


@bot()
async def exits_in_a_handler(bus: AsyncEventBus) -> None:
    async def handle(event: Event) -> None:
        say("live")
        sys.exit(7)

    await bus.subscribe("T", handle)
    await bus.publish(Event("T", 1))
    await forever()


# A bot that is recorded.


async def strategy(bus: AsyncEventBus) -> None:
    """It publishes in a handler, in a task, and in a task of a handler."""

    async def later(count: int) -> None:
        await asyncio.sleep(0.001)
        await bus.publish(Event("LATER", count))

    async def handle(event: Event) -> None:
        await bus.publish(Event("SIGNAL", event.data))
        await asyncio.create_task(later(event.data))

    await bus.subscribe("T", handle)
    task = asyncio.create_task(later(0))
    await task


@bot()
async def is_recorded(bus: AsyncEventBus) -> None:
    async with (
        aiobus.record(bus, "strategy.db", attach=strategy),
        bus.stream("LATER") as events,
    ):
        await bus.publish(Event("T", 1))
        async for event in events:
            if event.data == 1:
                break
        say("live")
        await bus.wait_closed()


if __name__ == "__main__":
    name, url, loop, *called = sys.argv[1:]
    function, options = BOTS[name]
    try:
        aiobus.run(function, url, *(called or ["bot"]), uvloop=loop == "uvloop", **options)
        say("run has returned")
    finally:
        say("finally")
