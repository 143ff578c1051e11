"""What does one `await bus.publish(event)` cost when nobody has subscribed, and line by line what?

Each step is timed by itself, on the very objects that a bus uses, and the whole is timed beside it:
the steps are to add up to it. Nanoseconds, the smallest of many repetitions, since whatever
disturbs only adds; with a full history, as a bus has it that runs for a while. Must look into the
bus, which nobody else does. Run: python -m perf.lone
"""

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import islice, repeat
from time import perf_counter_ns
from typing import Any

import orjson
import uvloop

from aiobus import AsyncEventBus, Event, Limits
from aiobus.codec import encode
from perf.trades import trades

__all__ = ["explain"]

EVENTS = 2_000
REPEAT = 60
CAUSE = ""

Step = tuple[str, str, float]


def timed(step: Callable[[Event[Any]], object], events: list[Event[Any]]) -> float:
    """Nanoseconds of a step. Nothing that it returns is kept."""
    best = float("inf")
    for _ in range(REPEAT):
        begin = perf_counter_ns()
        deque(map(step, events), 0)
        best = min(best, perf_counter_ns() - begin)
    return best / len(events)


async def awaited(
    step: Callable[[Event[Any]], Awaitable[object]], events: list[Event[Any]]
) -> float:
    """Nanoseconds of awaiting a step."""
    best = float("inf")
    for _ in range(REPEAT):
        begin = perf_counter_ns()
        for event in events:
            event.cause = CAUSE  # as a new event has it
            await step(event)
        best = min(best, perf_counter_ns() - begin)
    return best / len(events)


async def looped(events: list[Event[Any]]) -> float:
    """Nanoseconds of the loop in `awaited` without its await."""
    best = float("inf")
    for _ in range(REPEAT):
        begin = perf_counter_ns()
        for event in events:
            event.cause = CAUSE
        best = min(best, perf_counter_ns() - begin)
    return best / len(events)


async def turned() -> float:
    """Nanoseconds of one `asyncio.sleep(0)`."""
    best = float("inf")
    for _ in range(REPEAT):
        begin = perf_counter_ns()
        for _ in repeat(None, 100):
            await asyncio.sleep(0)
        best = min(best, perf_counter_ns() - begin)
    return best / 100


async def explain() -> list[Step]:
    """Steps as (name, what it does, nanoseconds); the last two are their sum and the whole."""
    events = list(islice(trades(["TRADE"], ["BTCUSDT"]), EVENTS))
    async with AsyncEventBus() as bus:
        for number in range(Limits().history_events + 1):
            await bus.publish(events[number % EVENTS])
        loop = await looped(events)
        whole = await awaited(bus.publish, events) - loop
        outgoing = bus._outgoing
        publisher, turn, route = outgoing._publisher, outgoing.turn, outgoing.route(events[0])
        limit, history, ring = publisher._limits.event_bytes, publisher.history, route.ring
        row = encode(1, 1e9, "TRADE", "BTCUSDT", events[0].data, "", limit)

        # Each is called by a function of its own, whose cost is that of `nothing`.

        def nothing(event: Event[Any]) -> None:
            event.cause = CAUSE

        async def coroutine(event: Event[Any]) -> Event[Any]:
            return event

        def dumped(event: Event[Any]) -> None:
            event.cause = CAUSE
            orjson.dumps([1, event.timestamp, "TRADE", "BTCUSDT", event.data])

        def encoded(event: Event[Any]) -> None:
            event.cause = CAUSE
            encode(1, event.timestamp, "TRADE", "BTCUSDT", event.data, CAUSE, limit)

        def kept(event: Event[Any]) -> None:
            event.cause = CAUSE
            publisher.seq += 1
            history.keep(ring, publisher.seq, event.timestamp, "BTCUSDT", row)

        def committed(event: Event[Any]) -> None:
            event.cause = CAUSE
            publisher.commit(event, CAUSE, route)

        def let_out(event: Event[Any]) -> None:
            event.cause = CAUSE
            outgoing.commit(event, route)

        def routed(event: Event[Any]) -> None:
            event.cause = CAUSE
            outgoing.route(event)

        def spent(event: Event[Any]) -> None:
            event.cause = CAUSE
            if turn.spend():
                turn.renew()

        base = timed(nothing, events)
        dumping, encoding = timed(dumped, events) - base, timed(encoded, events) - base
        keeping, committing = timed(kept, events) - base, timed(committed, events) - base
        steps: list[Step] = [
            ("await", "make a coroutine, run it", await awaited(coroutine, events) - loop),
            ("route", "open? this loop? an Event? then one dict", timed(routed, events) - base),
            ("commit", "tick, cause, reports", timed(let_out, events) - base - committing),
            ("number", "seq, stamp four fields, try", committing - encoding - keeping),
            ("orjson.dumps", "the row", dumping),
            ("encode", "is it flat and finite? exact copy of the row", encoding - dumping),
            ("history", "append four, add up, evict one", keeping),
            ("turn", "count, read the clock", timed(spent, events) - base),
            ("loop", "a turn of the loop, for each 64 events", await turned() / 64),
        ]
    summed = sum(nanoseconds for _, _, nanoseconds in steps)
    return [*steps, ("sum", "of the steps", summed), ("whole", "timed in one piece", whole)]


def main() -> int:
    """Print the steps."""
    logging.getLogger("aiobus").setLevel(logging.CRITICAL)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for name, what, nanoseconds in runner.run(explain()):
            print(f"lone       {name:12} {nanoseconds:6.0f} ns  {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
