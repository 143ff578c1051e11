"""How long does a HALT wait while quotes flood the bus?

10,000 quotes go to ten subscriptions whose handlers compute for 20 us each; every 10 ms another
task publishes a HALT, which has a subscription of its own. Measured: from just before its publish
to its handler. Goal: 20 ms at p99. The same for 1,000 order books of 4 kB, which cost more to
decode than to handle, and for quotes that subscriptions with `where` catch up with from history.
Run: python -m perf.halt
"""

import asyncio
import logging
import statistics
import sys
import time

import uvloop

from aiobus import AsyncEventBus, Event, EventType
from aiobus.options import SubscribeKeywords

SUBSCRIPTIONS = 10
HANDLER_SECONDS = 20e-6
GOAL_SECONDS = 0.020


BOOK = [[39_432.0 + level, 0.5 * level] for level in range(200)]
QUOTE = {"bid": 39_432.0, "ask": 39_432.5}
CATCHING_UP = SubscribeKeywords(maxsize=64, where=lambda event: "bid" in event.data)

FLOODS: list[tuple[str, int, object, SubscribeKeywords]] = [
    ("quotes", 10_000, QUOTE, SubscribeKeywords()),
    ("books", 1_000, BOOK, SubscribeKeywords()),
    ("catching up", 10_000, QUOTE, CATCHING_UP),
]


async def flood(events: int, data: object, options: SubscribeKeywords) -> list[float]:
    """The seconds each HALT waited during one flood."""
    waits: list[float] = []
    left = events * SUBSCRIPTIONS
    all_handled = asyncio.Event()

    def compute(event: Event) -> None:
        nonlocal left
        until = time.perf_counter() + HANDLER_SECONDS
        while time.perf_counter() < until:
            pass
        left -= 1
        if not left:
            all_handled.set()

    async with AsyncEventBus() as bus:
        for _ in range(SUBSCRIPTIONS):
            await bus.subscribe(EventType.QUOTE, compute, **options)
        await bus.subscribe(
            EventType.HALT, lambda event: waits.append(time.perf_counter() - event.data)
        )

        async def halt_now_and_then() -> None:
            while True:
                await asyncio.sleep(0.010)
                await bus.publish(Event(EventType.HALT, time.perf_counter()))

        halting = asyncio.create_task(halt_now_and_then())
        for _ in range(events):
            await bus.publish(Event(EventType.QUOTE, data))
        await all_handled.wait()
        halting.cancel()
        await bus.settle()
    return waits


def main() -> int:
    """Print a line for each loop and flood; 1 when a goal is missed."""
    logging.getLogger("aiobus").setLevel(logging.CRITICAL)
    missed = 0
    for name, factory in [("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop)]:
        for load, events, data, options in FLOODS:
            waits: list[float] = []
            for _ in range(3):
                with asyncio.Runner(loop_factory=factory) as runner:
                    waits += runner.run(flood(events, data, options))
            p50, p99 = (statistics.quantiles(waits, n=100)[cut] for cut in (49, 98))
            missed += p99 > GOAL_SECONDS
            print(
                f"halt       {name:8} {load:12} {len(waits):4} HALTs  p50 {p50 * 1e3:5.1f} ms"
                f"  p99 {p99 * 1e3:5.1f} ms  max {max(waits) * 1e3:5.1f} ms  goal p99 20 ms:"
                f" {'missed' if p99 > GOAL_SECONDS else 'held'}"
            )
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
