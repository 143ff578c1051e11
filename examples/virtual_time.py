"""A trading day in a moment: the timeouts of a strategy in virtual time, twice the same.

Run it: python examples/virtual_time.py
"""

import asyncio
import random

from aiobus import AsyncEventBus, Event, EventType, RequestTimeout, clock, run_virtual


async def broker(bus: AsyncEventBus, chance: random.Random) -> None:
    """Fill each order after a while, which is sometimes too long."""

    async def on_order(order: Event) -> None:
        await asyncio.sleep(chance.expovariate(1 / 10))
        await bus.publish(Event(EventType.FILL, order.data, key=order.key))

    await bus.subscribe(EventType.ORDER, on_order, concurrency=4)


async def strategy(bus: AsyncEventBus, lines: list[str]) -> None:
    """Order at each bar that closes lower. Cancel what is not filled in 30 seconds."""
    last = float("inf")

    async def on_bar(bar: Event) -> None:
        nonlocal last
        before, last = last, bar.data
        if last >= before:
            return
        order = Event(EventType.ORDER, {"price": last}, key=bar.key)
        try:
            fill = await bus.request(order, EventType.FILL, timeout=30)
            lines.append(f"{fill.timestamp - bar.timestamp:.1f} s to fill {fill.cause}")
        except RequestTimeout:
            await bus.publish(Event(EventType.CANCEL, order.id, key=bar.key))
            lines.append(f"{clock.time() - bar.timestamp:.1f} s and no fill of {order.id}")

    await bus.subscribe("BAR", on_bar)


async def day() -> list[str]:
    """A bar each minute. The clock jumps from one timer to the next."""
    lines: list[str] = []
    chance = random.Random(7)  # without a seed, two runs differ
    async with AsyncEventBus(name="desk") as bus:
        await broker(bus, chance)
        await strategy(bus, lines)
        for _ in range(24 * 60):
            await bus.publish(Event("BAR", round(chance.gauss(39_000, 50), 2), key="BTCUSDT"))
            await asyncio.sleep(60)
    return lines


if __name__ == "__main__":
    first = run_virtual(day)
    print(*first[:3], "...", *first[-3:], sep="\n")
    late = sum("no fill" in line for line in first)
    print(len(first), "orders,", late, "cancelled, again the same:", first == run_virtual(day))
