"""What holds the loop for more than a second is said once it is over, and whose turn it was."""

import asyncio
import gc
import logging
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from aiobus import AsyncEventBus, Event, EventType
from aiobus.sync import LOOK
from aiobus.testing import MemoryNetwork
from aiobus.virtual_loop import VirtualLoop


class LoopOfYesterday(asyncio.SelectorEventLoop):
    """A loop with a time of its own, which does not jump."""

    def wall_time(self) -> float:
        return 86_400.0


Logged = Callable[[str], AbstractContextManager[asyncio.Event]]

pytestmark = [pytest.mark.usefixtures("no_task_is_left", "watched"), pytest.mark.virtual]

HELD = 1.2
"""Seconds: more than one. Of other code the 0.1 s until the next look is due are not counted."""


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual loop is taken for a real one, whose clock can be held, so it is watched."""
    monkeypatch.delattr(VirtualLoop, "fresh_epoch")


def hold(seconds: float = HELD) -> None:
    """Hold the loop, on virtual time: how long is exact, whatever else the machine does."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.block(seconds)


def holds(event: Event) -> None:
    hold()


async def holds_at_once(event: Event) -> None:
    hold()


async def holds_after_a_wait(event: Event) -> None:
    await asyncio.sleep(0.01)
    hold()


async def holds_when_cancelled(event: Event) -> None:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        hold()


@pytest.mark.parametrize(
    ("handler", "concurrency"),
    [(holds, 1), (holds_at_once, 4), (holds_after_a_wait, 1), (holds_after_a_wait, 4)],
)
async def test_a_handler_that_holds_the_loop_is_named_with_its_event(
    handler: Callable[[Event], Any], concurrency: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncEventBus(name="desk") as bus:
        await bus.subscribe(EventType.TRADE, handler, concurrency=concurrency)
        await bus.subscribe(EventType.TRADE, lambda event: None)
        event = await bus.publish(Event(EventType.TRADE, 1))
        await bus.settle(20)
        await asyncio.sleep(2 * LOOK)  # the looks at the loop have nothing to add
    (line,) = [each for each in caplog.messages if "held" in each]
    assert line == f"{handler.__qualname__}(TRADE) at {event.id} held the event loop for 1.2 s"


async def test_on_a_bus_with_peers_it_is_said_as_well(logged: Logged) -> None:
    network = MemoryNetwork()
    async with network.bus("feed") as feed, network.bus("strategy") as strategy:
        await strategy.subscribe(EventType.TRADE, holds)
        with logged("holds(TRADE) at feed@") as said:
            await feed.publish(Event(EventType.TRADE, 1))
            await said.wait()


async def test_a_where_that_holds_the_loop_is_named_with_its_event(logged: Logged) -> None:
    network = MemoryNetwork()
    async with network.bus("feed") as feed, network.bus("strategy") as strategy:
        await strategy.subscribe(EventType.TRADE, print, where=holds)
        with logged("the `where` of print(TRADE) at feed@") as said:
            await feed.publish(Event(EventType.TRADE, 1))
            await said.wait()


async def test_a_handler_is_not_blamed_for_the_where_that_it_published_to(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with AsyncEventBus(name="desk") as bus:
        await bus.subscribe(EventType.SIGNAL, print, where=holds)
        await bus.subscribe(EventType.TRADE, lambda e: bus.publish(Event(EventType.SIGNAL, 1)))
        await bus.publish(Event(EventType.TRADE, 1))
        await bus.settle(20)
    (line,) = [each for each in caplog.messages if "held" in each]
    assert line.startswith("the `where` of print(SIGNAL) at desk@")


async def test_what_else_holds_the_loop_is_said_to_be_other_code(logged: Logged) -> None:
    async with AsyncEventBus(name="desk"):
        with logged("the event loop of desk was held for 1.1 s, by other code") as said:
            await asyncio.sleep(0)
            hold()
            await said.wait()


block = time.sleep  # a loop that is held is what is tested


def test_on_a_real_loop_with_a_time_of_its_own_it_is_said_as_well(logged: Logged) -> None:
    async def main() -> None:
        async with AsyncEventBus(name="desk"):
            with logged("the event loop of desk was held for 1.") as said:
                await asyncio.sleep(0)
                block(HELD)
                await said.wait()

    with asyncio.Runner(loop_factory=LoopOfYesterday) as runner:
        runner.run(main())


async def test_several_handlers_that_hold_the_loop_together_are_not_taken_for_other_code(
    logged: Logged,
) -> None:
    async with AsyncEventBus(name="desk") as bus:
        for _ in range(6):
            await bus.subscribe(EventType.TRADE, lambda event: hold(HELD / 4))
        with logged("by several of its handlers") as said:
            await bus.publish(Event(EventType.TRADE, 1))
            await said.wait()


async def test_beside_a_handler_that_is_named_other_code_is_said_with_its_own_length(
    logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    """It was said to be several handlers, for as long as both together."""
    async with AsyncEventBus(name="desk") as bus:
        await bus.subscribe(EventType.TRADE, holds)
        with logged("the event loop of desk was held") as said:
            await bus.publish(Event(EventType.TRADE, 1))
            asyncio.get_running_loop().call_soon(hold)
            await said.wait()
    handler, other = [each for each in caplog.messages if "held" in each]
    assert handler.startswith("holds(TRADE) at desk@")
    assert other == (
        "the event loop of desk was held for 1.1 s more, by other code of this process, or the"
        " process was stopped"
    )


async def test_two_holds_of_one_look_are_told_apart_where_one_is_of_handlers(
    logged: Logged,
) -> None:
    async with AsyncEventBus(name="desk") as bus:
        for _ in range(4):
            await bus.subscribe(EventType.TRADE, lambda event: hold(HELD / 4))
        with logged("held for 2.3 s: 1.2 s by several of its handlers, 1.1 s by other") as said:
            await bus.publish(Event(EventType.TRADE, 1))
            asyncio.get_running_loop().call_soon(hold)
            await said.wait()


async def test_a_hold_of_other_code_that_follows_another_is_said_with_its_own_length(
    logged: Logged,
) -> None:
    """It was one more time, without a length."""
    async with AsyncEventBus(name="desk"):
        for _ in range(2):
            with logged("the event loop of desk was held for 1.1 s, by other code") as said:
                await asyncio.sleep(0)
                hold()
                await said.wait()


async def test_a_handler_that_is_cut_off_and_holds_the_loop_then_is_named(
    logged: Logged,
) -> None:
    bus = AsyncEventBus()
    await bus.start()
    await bus.subscribe(EventType.TRADE, holds_when_cancelled)
    await bus.publish(Event(EventType.TRADE, 1))
    with logged("holds_when_cancelled(TRADE) at bus-") as said:
        await bus.close(0.01)
        await said.wait()


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_handler_that_waits_holds_nothing(
    concurrency: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncEventBus(name="desk") as bus:
        await bus.subscribe(
            EventType.TRADE, lambda event: asyncio.sleep(HELD), concurrency=concurrency
        )
        await bus.publish(Event(EventType.TRADE, 1))
        await bus.settle(20)
    assert [each for each in caplog.messages if "asyncio" in each or "lambda" in each] == []


async def test_looking_does_not_keep_a_bus_alive_that_was_dropped() -> None:
    bus = AsyncEventBus()
    await bus.start()
    alive = weakref.ref(bus)
    del bus
    gc.collect()
    assert alive() is None


async def test_after_its_end_a_bus_looks_no_more(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="aiobus")
    async with AsyncEventBus(name="desk"):
        pass
    hold()
    await asyncio.sleep(2 * LOOK)
    assert caplog.messages == []
