"""HALT overtakes: with a subscription of its own it does not wait for the quotes of others.

Run it: python examples/kill_switch.py
"""

import asyncio
import time
from statistics import fmean

from aiobus import AsyncEventBus, Event, EventType

STRATEGIES = 4
QUOTES = 2_000


async def main() -> None:
    """Flood four strategies with quotes, then stop them."""

    async def on_quote(quote: Event) -> None:
        fmean(quote.data["bid"] + i for i in range(2_000))  # some 200 us of thinking

    async with AsyncEventBus() as bus:
        strategies = [await bus.subscribe(EventType.QUOTE, on_quote) for _ in range(STRATEGIES)]

        async def on_halt(halt: Event) -> None:
            took = time.time() - halt.timestamp
            handled = sum(strategy.stats.handled for strategy in strategies)
            pending = sum(strategy.stats.pending for strategy in strategies)
            for strategy in strategies:
                await strategy.unsubscribe()
            queue = (halt.timestamp - flood) / handled * pending
            print(f"HALT ({halt.data['reason']}) was handled {took * 1e3:.1f} ms after it was sent")
            print(f"{pending:,} quotes were pending then, and no strategy acts on them any more")
            print(f"in line behind them it would have waited {queue * 1e3:,.0f} ms")

        await bus.subscribe(EventType.HALT, on_halt)
        flood = time.time()
        for i in range(QUOTES):
            await bus.publish(Event(EventType.QUOTE, {"bid": 39_432.0 + i}, key="BTCUSDT"))
        await bus.publish(Event(EventType.HALT, {"reason": "kill switch"}))
        await bus.settle()


if __name__ == "__main__":
    asyncio.run(main())
