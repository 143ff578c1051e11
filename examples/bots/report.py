"""The words of the monitor: how a quote, a chain of events and the summary look as text."""

from collections import Counter, deque
from collections.abc import Sequence
from itertools import pairwise
from math import ceil

from aiobus import Event, EventType

STEPS: dict[str, str] = {
    EventType.TRADE: "trade {price:,.2f}",
    EventType.SIGNAL: "signal {side:<4}",
    EventType.ORDER: "order",
    EventType.FILL: "fill {price:,.2f}",
}


class Tally:
    """How much happened, and how fast."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.tick_to_fill: deque[float] = deque(maxlen=10_000)  # seconds

    def __str__(self) -> str:
        trades, quotes = self.counts[EventType.TRADE], self.counts[EventType.QUOTE]
        times = sorted(self.tick_to_fill)
        ranks = [(percent, ceil(len(times) * percent / 100)) for percent in (50, 90, 99)]
        speed = "   ".join(f"p{percent} {duration(times[n - 1])}" for percent, n in ranks if n)
        return (
            f"ticks     {trades + quotes:>6,}   ({trades:,} trades, {quotes:,} quotes)\n"
            f"signals   {self.counts[EventType.SIGNAL]:>6,}\n"
            f"orders    {self.counts[EventType.ORDER]:>6,}\n"
            f"fills     {self.counts[EventType.FILL]:>6,}\n"
            f"tick to fill       {speed or 'none yet'}"
        )


def duration(seconds: float) -> str:
    """Microseconds below one millisecond, milliseconds above."""
    return f"{seconds * 1e6:4.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:4.1f} ms"


def quote_line(quote: Event, trades: int) -> str:
    """Where the market is."""
    bid, ask = quote.data["bid"], quote.data["ask"]
    return f"{quote.key} {bid:,.2f} / {ask:,.2f} after {trades:,} trades"


def chain_line(chain: Sequence[Event]) -> str:
    """Each event, the time from one to the next, and the time of the whole."""
    line = STEPS[chain[0].type].format(**chain[0].data)
    for cause, effect in pairwise(chain):
        step = STEPS[effect.type].format(**effect.data)
        line += f" --{duration(effect.timestamp - cause.timestamp)} -> {step}"
    return f"{line}  = {duration(chain[-1].timestamp - chain[0].timestamp)}"
