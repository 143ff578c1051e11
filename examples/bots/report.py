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
        self._said = str(self)

    def say(self) -> None:
        """Print it, unless nothing has happened since it was printed last."""
        if str(self) != self._said:
            self._said = str(self)
            print(f"\n{self._said}", flush=True)

    def __str__(self) -> str:
        trades, quotes = self.counts[EventType.TRADE], self.counts[EventType.QUOTE]
        times = sorted(self.tick_to_fill)
        ranks = [(each, ceil(len(times) * each / 100)) for each in (50, 90, 99)]
        speed = "   ".join(f"p{each} {duration(times[n - 1])}" for each, n in ranks if n)
        text = f"ticks     {trades + quotes:>6,}   ({trades:,} trades, {quotes:,} quotes)\n"
        for type in (EventType.SIGNAL, EventType.ORDER, EventType.FILL):
            text += f"{type.lower()}s".ljust(10) + f"{self.counts[type]:>6,}\n"
        return text + f"tick to fill       {speed or 'none yet'}"


def duration(seconds: float) -> str:
    """Microseconds below one millisecond, milliseconds above."""
    return f"{seconds * 1e6:4.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:4.1f} ms"


def quote_line(quote: Event, trades: int) -> str:
    """Where the market is."""
    return "{} {bid:,.2f} / {ask:,.2f} after {:,} trades".format(quote.key, trades, **quote.data)


def chain_line(chain: Sequence[Event]) -> str:
    """Each event, the time from one to the next, and the time of the whole."""
    line = STEPS[chain[0].type].format(**chain[0].data)
    for cause, effect in pairwise(chain):
        step = STEPS[effect.type].format(**effect.data)
        line += f" --{duration(effect.timestamp - cause.timestamp)} -> {step}"
    return f"{line}  = {duration(chain[-1].timestamp - chain[0].timestamp)}"
