"""Sessions for tests of replays: a desk in one process, and a strategy that does what one may."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiobus import AsyncEventBus, BusClosed, Event, NoSubscribers, RequestTimeout, clock, record
from aiobus.replay.attach import Strategy

FAST = 20
"""Trades between two signals: the parameter that a test changes."""


async def strategy(bus: AsyncEventBus) -> None:
    """Latest quotes, a stream with timeouts, `wait_for`, a timer, requests whose timeouts fire, a
    TaskGroup that fails, `asyncio.wait` and cancelling, spawned tasks, `call_later`, four calls at
    once, random numbers, the clock, a lock, and state that is shared across awaits.
    """
    prices: deque[float] = deque(maxlen=100)
    state = {"bid": 0.0, "trades": 0, "orders": 0}
    tasks: set[asyncio.Task[None]] = set()
    lock = asyncio.Lock()

    async def on_quote(quote: Event) -> None:
        state["bid"] = quote.data["bid"]
        await asyncio.sleep(0)
        if quote.seq % 7 == 0:
            await bus.publish(Event("MID", {**state, "at": clock.time()}, key=quote.key))

    async def part(number: int, delay: float) -> None:
        await asyncio.sleep(delay)
        await bus.publish(Event("PART", {"part": number, "chance": random.random(), **state}))
        if number == 2 and state["trades"] % 3 == 0:
            raise ValueError("part 2")

    async def spawned(trades: int) -> None:
        await asyncio.sleep(0.0007 * (trades % 5))
        await bus.publish(Event("SPAWNED", {"by": trades, "open": len(tasks), **state}))

    async def group(trades: int) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(4):
                    group.create_task(part(number, 0.0005 * (number + trades % 3)))
        except* ValueError as errors:
            await bus.publish(Event("FAILED", {"count": len(errors.exceptions)}))

    async def race() -> None:
        some = [asyncio.create_task(part(10 + i, 0.001 + 0.0001 * i)) for i in range(4)]
        done, left = await asyncio.wait(some, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        await bus.publish(Event("WAITED", {"done": len(done)}))

    async def on_trade(trade: Event) -> None:
        prices.append(trade.data["price"])
        state["trades"] += 1
        trades = state["trades"]
        if trades % 10 == 0:
            task = asyncio.create_task(spawned(trades))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if trades % FAST == 0:
            mean = sum(prices) / len(prices)
            await bus.publish(Event("SIGNAL", {"mean": mean, **state}, key=trade.key))
        if trades % 35 == 0:
            await group(trades)
        if trades % 45 == 0:
            await race()
        if trades % 60 == 0:
            later = Event("LATER", {"asked": trades})
            asyncio.get_running_loop().call_later(0.002, lambda: bus.publish_nowait(later))

    async def on_signal(signal: Event) -> None:
        async with lock:
            state["orders"] += 1
        data = {"side": "buy", "quantity": 1.0, "number": state["orders"], **state}
        order = Event("ORDER", data, key=signal.key)
        try:
            reply = await bus.request(order, ("ACK", "REJECT"), timeout=0.004)
        except RequestTimeout:
            await bus.publish(Event("CANCEL", {"order": order.id, **state}))
        except NoSubscribers:
            await bus.publish(Event("NOBODY", {}))
        else:
            await bus.publish(Event("ACKED", {"order": order.id, "by": reply.cause, **state}))

    async def reader() -> None:
        seen = 0
        async with bus.stream("QUOTE", key="BTC*") as quotes:
            while True:
                try:
                    async with asyncio.timeout(0.003):
                        await anext(quotes)
                except TimeoutError:
                    await bus.publish(Event("QUIET", {"seen": seen, **state}))
                    continue
                seen += 1
                if seen % 9 == 0:
                    await bus.publish(Event("SEEN", {"seen": seen, **state}))
                    try:
                        trade = await bus.wait_for("TRADE", timeout=0.002)
                        await bus.publish(Event("GOT", {"trade": trade.id}))
                    except TimeoutError:
                        await bus.publish(Event("NONE", {}))

    async def ticker() -> None:
        while True:
            await asyncio.sleep(0.01)
            await bus.publish(Event("TICK", {"open": len(tasks), **state}))

    async def ending(work: Awaitable[None]) -> None:
        try:
            await work
        except (BusClosed, StopAsyncIteration):  # the bus has closed
            return

    await bus.subscribe("QUOTE", on_quote, overflow="latest")
    await bus.subscribe("TRADE", on_trade)
    await bus.subscribe("SIGNAL", on_signal, concurrency=4, max_age=5)
    for work in (reader(), ticker()):
        tasks.add(asyncio.create_task(ending(work)))


async def feed(bus: AsyncEventBus, count: int) -> None:
    """Publish so many trades and quotes, in bursts."""
    chance, price = random.Random(5), 100.0
    left = count
    while left > 0:
        for _ in range(min(left, chance.randint(1, 4))):
            left -= 1
            price += chance.gauss(0, 1)
            if chance.random() < 0.5:
                await bus.publish(Event("TRADE", {"price": price}, key="BTC"))
            else:
                await bus.publish(Event("QUOTE", {"bid": price, "ask": price + 1}, key="BTC"))
        await asyncio.sleep(chance.expovariate(1 / 0.0015))


async def desk(url: str, path: Path, count: int) -> None:
    """Feed, broker and the strategy, which is recorded, each with a bus of its own."""
    async with (
        AsyncEventBus(url, name="feed") as market,
        AsyncEventBus(url, name="broker") as broker,
        AsyncEventBus(url, name="strategy") as bus,
    ):

        async def on_order(order: Event) -> None:
            await asyncio.sleep(0.001 * (order.data["number"] % 7))
            await broker.publish(Event("ACK", {}, key=order.key))

        await broker.subscribe("ORDER", on_order, concurrency=8)
        async with record(bus, path, attach=strategy):
            await feed(market, count)


async def session(
    path: Path,
    attached: Strategy,
    drive: Callable[[AsyncEventBus], Awaitable[object]],
    **options: Any,
) -> None:
    """Record what `attached` does on a bus of its own while `drive` runs on the same bus."""
    async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=attached, **options):
        await drive(bus)
        await bus.settle()


async def trades(bus: AsyncEventBus, count: int = 5) -> None:
    """Publish so many trades."""
    for number in range(1, count + 1):
        await bus.publish(Event("TRADE", {"number": number}, key="BTC"))
