"""The monitor: each chain trade -> signal -> order -> fill with the time of every hop, from lineage
alone. It publishes the POSITION after each fill, and says the tally when the feed has left.

Run it: python examples/bots/monitor.py [ipc://desk]
"""

from collections import Counter, OrderedDict

from aiobus import AsyncEventBus, Event, EventType
from report import Tally, chain_line, quote_line
from terminal import serve

WATCHED = (EventType.TRADE, EventType.QUOTE, EventType.SIGNAL, EventType.ORDER, EventType.FILL)
LEFT = "aiobus.peer_left"
MEMORY = 10_000  # events that may still turn out to be a cause


async def monitor(bus: AsyncEventBus, tally: Tally) -> None:
    """Print every fill with all that led to it, and every 50th quote. Live when this returns."""
    recent, held = OrderedDict[str, Event](), Counter[str]()
    early: dict[str, Event] = {}  # by the id of a cause that it overtook on its way here

    def on_event(event: Event) -> None:
        if event.type == LEFT and event.data["name"] == "feed":
            tally.say()
        if event.type not in WATCHED:
            return
        tally.counts[event.type] += 1
        recent[event.id] = event
        if len(recent) > MEMORY:
            recent.popitem(last=False)
        if event.type == EventType.FILL:
            trace(event)
            held[event.key] += event.data["quantity"] * (1 if event.data["side"] == "buy" else -1)
            bus.publish_nowait(Event("POSITION", round(held[event.key], 8), key=event.key))
        elif event.id in early:
            trace(early.pop(event.id))
        elif event.type == EventType.QUOTE and tally.counts[event.type] % 50 == 1:
            print(quote_line(event, tally.counts[EventType.TRADE]), flush=True)

    def trace(fill: Event) -> None:
        chain = [fill]
        while cause := recent.get(chain[0].cause):
            chain.insert(0, cause)
        if missing := chain[0].cause:
            early[missing] = fill
        else:
            tally.tick_to_fill.append(fill.timestamp - chain[0].timestamp)
            print(chain_line(chain), flush=True)

    await bus.subscribe(("*", LEFT), on_event)  # to name ORDER is to say that one answers it


if __name__ == "__main__":
    tally = Tally()
    try:
        serve("monitor", lambda bus: monitor(bus, tally))
    finally:  # Ctrl-C ends the process
        tally.say()
