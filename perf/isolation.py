"""What does a healthy subscriber notice of a bad neighbour, and how long does close() take there?

The neighbour raises, meets a cancelled task, sleeps 60 s or never returns. Measured: the longest
wait of any event at the healthy subscriber (goal: 100 ms), and close(0.5) (goal: 0.5 s and 100 ms
for the loop). Run: python -m perf.isolation
"""

import asyncio
import logging
import sys
import time

import uvloop

from aiobus import AsyncEventBus, Event, EventType

EVENTS = 5_000
GOAL_SECONDS = 0.100
CLOSE_SECONDS = 0.5


async def raises(event: Event) -> None:
    """Fail at every event."""
    raise ValueError(event.data)


async def awaits_a_cancelled_task(event: Event) -> None:
    """Let a CancelledError through, although the dispatch task is not cancelled."""
    inner = asyncio.create_task(asyncio.sleep(60))
    inner.cancel()
    await inner


async def sleeps_a_minute(event: Event) -> None:
    """Hold the subscription for a minute."""
    await asyncio.sleep(60)


async def never_returns(event: Event) -> None:
    """Hold the subscription for ever."""
    await asyncio.get_running_loop().create_future()


BAD = [raises, awaits_a_cancelled_task, sleeps_a_minute, never_returns]


async def neighbour(bad: object) -> tuple[float, float]:
    """The longest wait of an event at the healthy subscriber, and the seconds close() took."""
    longest = 0.0
    done = asyncio.Event()

    async def healthy(event: Event) -> None:
        nonlocal longest
        longest = max(longest, time.perf_counter() - event.data)
        if event.seq and event.key == "last":
            done.set()

    bus = AsyncEventBus()
    await bus.start()
    await bus.subscribe(EventType.TRADE, bad)  # type: ignore[arg-type]
    await bus.subscribe(EventType.TRADE, healthy)
    for number in range(EVENTS):
        key = "last" if number == EVENTS - 1 else ""
        await bus.publish(Event(EventType.TRADE, time.perf_counter(), key=key))
    await done.wait()
    before = time.perf_counter()
    await bus.close(CLOSE_SECONDS)
    return longest, time.perf_counter() - before


def main() -> int:
    """Print a line for each loop and neighbour; 1 when a goal is missed."""
    logging.getLogger("aiobus").setLevel(logging.CRITICAL)
    missed = 0
    for name, factory in [("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop)]:
        for bad in BAD:
            with asyncio.Runner(loop_factory=factory) as runner:
                longest, closing = runner.run(neighbour(bad))
            is_missed = longest > GOAL_SECONDS or closing > CLOSE_SECONDS + 0.1
            missed += is_missed
            print(
                f"isolation  {name:8} {bad.__name__:24} longest wait {longest * 1e3:5.1f} ms"
                f"  close(0.5) {closing:5.3f} s  goals 100 ms, 0.5 s:"
                f" {'missed' if is_missed else 'held'}"
            )
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
