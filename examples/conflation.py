"""A slow handler that never works on an old quote: overflow="latest" keeps one of each symbol.

Run it: python examples/conflation.py
"""

import asyncio
import random
from statistics import fmean

from aiobus import AsyncEventBus, Event, EventType

QUOTES = 20_000


async def option_price(bid: float) -> float:
    """An at-the-money call by simulation, slow beside the quotes; the loop turns meanwhile."""
    means = []
    for _ in range(5):
        means.append(fmean(max(random.gauss(0.0, bid * 0.02), 0.0) for _ in range(200)))
        await asyncio.sleep(0)
    return fmean(means)


async def main() -> None:
    """Flood a pricer with random walks, then look at what it worked on."""
    newest: dict[str, Event] = {}
    priced: dict[str, Event] = {}
    outdated = 0

    async def on_quote(quote: Event) -> None:
        nonlocal outdated
        outdated += quote != newest[quote.key]
        await option_price(quote.data["bid"])
        priced[quote.key] = quote

    async with AsyncEventBus() as bus:
        pricer = await bus.subscribe(EventType.QUOTE, on_quote, overflow="latest")
        bids = {"BTCUSDT": 39_432.0, "ETHUSDT": 1_214.0, "LTCUSDT": 172.0}
        for symbol in random.choices(list(bids), k=QUOTES):
            bids[symbol] *= random.gauss(1.0, 1e-4)
            newest[symbol] = Event(EventType.QUOTE, {"bid": bids[symbol]}, key=symbol)
            await bus.publish(newest[symbol])
        await bus.settle()

        stats = pricer.stats
        print(f"{QUOTES:,} quotes published")
        print(f"{stats.conflated:,} conflated: a newer one of the symbol took their place")
        print(f"{stats.handled:,} priced, {outdated} of them outdated when the pricer began")
        for symbol, quote in newest.items():
            bid, last = quote.data["bid"], priced[symbol].data["bid"]
            print(f"{symbol}   newest bid {bid:>9,.2f}   last priced {last:>9,.2f}")


if __name__ == "__main__":
    asyncio.run(main())
