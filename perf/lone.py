"""What does one `await bus.publish(event)` cost when nobody has subscribed, and line by line what?

The real `publish` of a real bus is timed again and again, first with every part replaced by a
function that does nothing and then with one more real part each time: what a part costs is the
difference that it makes in its place, so the steps add up to the whole. Nanoseconds, the smallest
of many repetitions, since whatever disturbs only adds; with a full history, as a bus has it that
runs for a while. Must look into the bus, which nobody else does. Run: python -m perf.lone
"""

import asyncio
import logging
import sys
from contextlib import ExitStack
from itertools import islice
from time import perf_counter_ns
from typing import Any
from unittest.mock import patch

import orjson
import uvloop

from aiobus import AsyncEventBus, Event, Limits, publisher
from aiobus.codec import encode
from perf.trades import trades

__all__ = ["explain"]

EVENTS = 2_000
REPEAT = 25
ROUNDS = 4
"""All steps in turn, so that a machine that drifts favours none."""

Step = tuple[str, str, float]
Part = tuple[str, str, Any, str, Any]
"""Its name, what it does, whose attribute it is, which one, and what stands in for it."""


async def published(bus: AsyncEventBus, events: list[Event[Any]], without: list[Part]) -> float:
    """Nanoseconds of `await bus.publish(event)` without these parts."""
    best = float("inf")
    with ExitStack() as stack:
        for _, _, owner, name, instead in reversed(without):  # of two of one name, the first stays
            stack.enter_context(patch.object(owner, name, instead))
        for _ in range(REPEAT):
            await asyncio.sleep(0)
            begin = perf_counter_ns()
            for event in events:
                event.cause = ""  # as a new event has it
                await bus.publish(event)
            best = min(best, perf_counter_ns() - begin)
    return best / len(events)


def looped(events: list[Event[Any]]) -> float:
    """Nanoseconds of the loop in `published` without its await."""
    best = float("inf")
    for _ in range(REPEAT):
        begin = perf_counter_ns()
        for event in events:
            event.cause = ""
        best = min(best, perf_counter_ns() - begin)
    return best / len(events)


def parts(bus: AsyncEventBus, event: Event[Any]) -> list[Part]:
    """In the order in which they become real."""
    outgoing = bus._outgoing
    source, turn, route = outgoing._publisher, outgoing.turn, outgoing.route(event)
    row = encode(1, 1e9, "TRADE", "BTCUSDT", event.data, "", 1_000_000)

    class Endless:
        """A turn that is never over."""

        renew = turn.renew

        def spend(self) -> bool:
            return False

    def nothing(*_: object) -> None:
        pass

    def dumped(seq: int, timestamp: float, type: str, key: str, data: Any, *_: object) -> bytes:
        orjson.dumps((seq, timestamp, type, key, data))
        return row

    return [
        ("route", "open? this loop? an Event? then one dict", outgoing, "route", lambda _: route),
        ("commit", "tick, cause, reports", outgoing, "commit", nothing),
        ("number", "seq, stamp four fields, try", source, "commit", nothing),
        ("orjson.dumps", "the row", publisher, "encode", lambda *_: row),
        (
            "encode",
            "is there a null, a Fragment? exact copy of the row",
            publisher,
            "encode",
            dumped,
        ),
        ("history", "append four, add up, evict now and then", source.history, "keep", nothing),
        ("turn", "count, read the clock, let the loop turn", outgoing, "turn", Endless()),
    ]


async def explain() -> list[Step]:
    """Steps as (name, what it does, nanoseconds); the last is the whole."""
    events = list(islice(trades(["TRADE"], ["BTCUSDT"], make=Event), EVENTS))
    async with AsyncEventBus() as bus:
        for number in range(Limits().history_events + 1):
            await bus.publish(events[number % EVENTS])
        all_parts = parts(bus, events[0])
        best = [float("inf")] * (len(all_parts) + 1)
        for _ in range(ROUNDS):
            for place in range(len(best)):
                found = await published(bus, events, all_parts[place:])
                best[place] = min(best[place], found)
        loop = looped(events)
    steps: list[Step] = [("await", "the coroutine itself, and its calls", best[0] - loop)]
    for (name, what, *_), before, after in zip(all_parts, best, best[1:], strict=False):
        steps.append((name, what, after - before))
    return [*steps, ("whole", "the sum, timed in one piece", best[-1] - loop)]


def main() -> int:
    """Print the steps."""
    logging.getLogger("aiobus").setLevel(logging.CRITICAL)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for name, what, nanoseconds in runner.run(explain()):
            print(f"lone       {name:12} {nanoseconds:6.0f} ns  {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
