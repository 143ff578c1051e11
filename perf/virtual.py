"""How long do 10,080 minute bars take in virtual time, and what does confinement cost elsewhere?

A week of bars: for each one a handler sets a timer, and the timer publishes an order, which is
handled too. Goal: 5 s, and two runs are equal byte for byte. The hook that Python calls at audit
events stays when the run is over. Measured is what it adds to an event: after a run, and while
another thread is in virtual time. Run: python -m perf.virtual
"""

import asyncio
import sys
import threading
import time
from collections.abc import Callable

from aiobus import AsyncEventBus, Event, EventType, run_virtual
from aiobus.codec import encode

BARS = 10_080
GOAL_SECONDS = 5.0
HOOK_NS = 500
"""For the call of a Python function that looks at one dict and returns."""
CALLS = 20_000
ROUNDS = 9


async def week() -> list[bytes]:
    """Every row that was handled."""
    rows: list[bytes] = []

    def keep(event: Event) -> None:
        parts = (event.seq, event.timestamp, event.type, event.key, event.data, event.cause)
        rows.append(encode(*parts, 2**20))

    async with AsyncEventBus(name="desk", on_error="raise") as bus:
        loop = asyncio.get_running_loop()

        def order(bar: Event) -> None:
            bus.publish_nowait(Event(EventType.ORDER, {"price": bar.data}, key=bar.key))

        def on_bar(bar: Event) -> None:
            keep(bar)
            loop.call_later(30, order, bar)

        await bus.subscribe("BAR", on_bar)
        await bus.subscribe(EventType.ORDER, keep)
        for number in range(BARS):
            await bus.publish(Event("BAR", 39_000 + number % 7, key="BTCUSDT"))
            await asyncio.sleep(60)
        await bus.settle()
    return rows


def nanoseconds() -> float:
    """Of a call that raises an audit event, the best of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter_ns()
        for _ in range(CALLS):
            sys.audit("perf.virtual")
        best = min(best, (time.perf_counter_ns() - begin) / CALLS)
    return best


def beside_a_run(measure: Callable[[], float]) -> float:
    """What `measure` returns while another thread is in virtual time."""
    is_in, is_over = threading.Event(), threading.Event()

    async def main() -> None:
        is_in.set()
        is_over.wait()

    thread = threading.Thread(target=run_virtual, args=(main,))
    thread.start()
    is_in.wait()
    try:
        return measure()
    finally:
        is_over.set()
        thread.join()


def main() -> int:
    """Print a line for each promise; 1 when a goal is missed."""
    before = nanoseconds()
    runs = []
    began = time.perf_counter()
    runs.append(run_virtual(week))
    seconds = time.perf_counter() - began
    runs.append(run_virtual(week))
    is_equal = runs[0] == runs[1] and len(runs[0]) == 2 * BARS
    is_held = is_equal and seconds < GOAL_SECONDS
    print(
        f"virtual    {BARS:,} bars with a timer each  {seconds:.2f} s  twice"
        f" {'equal' if is_equal else 'DIFFERENT'}  goals {GOAL_SECONDS:g} s, equal:"
        f" {'held' if is_held else 'missed'}"
    )
    after, beside = nanoseconds(), beside_a_run(nanoseconds)
    is_cheap = max(after, beside) - before < HOOK_NS
    print(
        f"virtual    an audit event  {before:.0f} ns before any run  {after:.0f} ns after one"
        f"  {beside:.0f} ns beside one  goal {HOOK_NS} ns more: {'held' if is_cheap else 'missed'}"
    )
    return int(not (is_held and is_cheap))


if __name__ == "__main__":
    sys.exit(main())
