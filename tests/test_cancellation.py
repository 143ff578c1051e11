"""Cancelling any call at any await: no numbered event is lost, no task or subscription is left.

Each operation is started as a task, allowed a number of loop turns, then cancelled; the number
grows until the operation ends by itself, so every await it can be waiting in is met.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from aiobus import AlreadyReplied, AsyncEventBus, Event, EventType
from aiobus.event import event_id

pytestmark = pytest.mark.usefixtures("no_task_is_left")


class Session:
    """A bus with a witness that must see every numbered event, and a slow block inbox."""

    def __init__(self) -> None:
        self.bus = AsyncEventBus(name="desk")
        self.seen: list[int] = []

    async def open(self) -> None:
        await self.bus.start()
        await self.bus.subscribe("*", self.witness, maxsize=2)
        await self.bus.subscribe(EventType.TRADE, self.slow, overflow="block", maxsize=1)
        await self.bus.subscribe(EventType.ORDER, self.answer)

    async def witness(self, event: Event) -> None:
        await asyncio.sleep(0)
        self.seen.append(event.seq)

    async def slow(self, event: Event) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    async def answer(self, event: Event) -> None:
        await asyncio.sleep(0)
        await self.bus.publish(Event(EventType.ACK, 1))

    async def consume(self, count: int) -> None:
        async with self.bus.stream(EventType.ACK, maxsize=1) as acks:
            for _ in range(count):
                await self.bus.publish(Event(EventType.ACK, 1))
            async for _ in acks:
                count -= 1
                if not count:
                    break

    async def publish_some(self) -> None:
        for number in range(5):
            await self.bus.publish(Event(EventType.TRADE, number))

    async def await_a_bar(self) -> None:
        publishing = asyncio.create_task(self.bus.publish(Event(EventType.BAR, 1)))
        await self.bus.wait_for(EventType.BAR)
        await publishing

    async def reply_to_some(self) -> None:
        """Into the slow inbox; the second to one request is refused."""
        epoch = self.bus.stats().epoch
        for seq in (1, 2, 3, 3):
            with suppress(AlreadyReplied):
                await self.bus.reply(event_id("desk", epoch, seq), Event(EventType.TRADE, seq))

    async def subscribe_and_unsubscribe(self) -> None:
        await self.bus.subscribe(EventType.BAR, print)
        await self.bus.unsubscribe(EventType.BAR, print)


OPERATIONS: dict[str, Callable[[Session], Awaitable[object]]] = {
    "publish": lambda session: session.publish_some(),
    "subscribe": lambda session: session.subscribe_and_unsubscribe(),
    "wait_for": lambda session: session.await_a_bar(),
    "request": lambda session: session.bus.request(Event(EventType.ORDER, 1), EventType.ACK),
    "reply": lambda session: session.reply_to_some(),
    "stream": lambda session: session.consume(5),
    "flush": lambda session: session.bus.flush(),
    "settle": lambda session: session.bus.settle(),
    "close": lambda session: session.bus.close(),
}


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_cancelling_at_any_await_loses_no_numbered_event(
    operation: Callable[[Session], Awaitable[object]],
) -> None:
    before = descriptors()
    for turns in range(200):
        session = Session()
        await session.open()
        for number in range(3):
            session.bus.publish_nowait(Event(EventType.SIGNAL, number))
        task = asyncio.ensure_future(operation(session))
        for _ in range(turns):
            await asyncio.sleep(0)
        was_done = task.done()
        task.cancel()
        await asyncio.wait([task])
        if operation is not OPERATIONS["close"]:
            await session.bus.settle()
            left = {each.name for each in session.bus.stats().subscriptions[3:]}
            assert left <= {"replies(ACK)"}
        await session.bus.close()
        assert session.seen == list(range(1, session.bus.stats().published + 1))
        if was_done:
            break
    assert was_done
    assert descriptors() == before


async def test_a_storm_of_cancellations_loses_no_numbered_event() -> None:
    session = Session()
    await session.open()
    for round_ in range(50):
        tasks = [asyncio.ensure_future(start(session)) for start in list(OPERATIONS.values())[:-1]]
        for _ in range(round_ % 7):
            await asyncio.sleep(0)
        for task in tasks[round_ % 3 :: 2]:
            task.cancel()
        for task in tasks:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait(tasks)
    await session.bus.settle()
    await session.bus.close()
    assert session.seen == list(range(1, session.bus.stats().published + 1))
