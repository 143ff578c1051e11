"""How fast is a bus, and how soon is an event there? The two verbs of a benchmark.

Owns the pace of a publisher, the counting of a subscriber, and what is said of both. Must not know
the bus: `publish` is any coroutine function of an event and the callbacks take one, so that other
systems can be timed by the very same code.

    arrivals = Arrivals()
    await bus.subscribe("TRADE", arrivals.count)
    print(await throughput(bus.publish, events, handled=arrivals.handled))

    await bus.subscribe("TRADE", arrivals.time)
    await latency(bus.publish, events, rate=5_000)
    print(arrivals.percentile(99.9))

Across processes the subscriber writes its count where the publisher can read it: `tally`, such as a
shared memory of 8-byte counters. Times are those of `aiobus.clock.elapsed`, which the processes of
one machine share.
"""

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from aiobus.clock import elapsed
from aiobus.event import Event

__all__ = ["WINDOW", "Arrivals", "Paced", "Throughput", "latency", "throughput"]

T = TypeVar("T")

WINDOW = 10_000
"""Events that may be under way. Without such a bound one measures how fast a publisher outruns its
subscriber, and how much is thrown away.
"""
BURST = 256
"""Events between two looks at the clock and at the count."""
POLL_SECONDS = 0.001
STALL_SECONDS = 3.0
"""What was not handled when nothing was for so long is lost. A bus that repeats what was dropped is
to have done so by then.
"""
LEAD_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Throughput:
    """The result of publishing at full rate."""

    sent: int
    handled: int
    seconds: float
    """From the first publish to the last event handled; to the end where some were lost."""

    @property
    def lost(self) -> int:
        """Events that were published and never handled."""
        return max(0, self.sent - self.handled)

    @property
    def rate(self) -> float:
        """Events handled a second."""
        return self.handled / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Paced:
    """The result of publishing by a schedule."""

    sent: int
    late: int
    """Events that were due while the one before was still being published. They are timed from the
    moment they were due, so a publisher that is held up does not look quick.
    """


class Tally(Protocol):
    """Where counts are written: a list, or memory that a publisher of another process reads."""

    def __setitem__(self, place: int, handled: int, /) -> None: ...


class Arrivals:
    """The subscriber's side: subscribe `count`, or `time` to know the delays as well.

    `tally[place]` is set to the number of events handled, from 1.
    """

    def __init__(self, tally: Tally | None = None, place: int = 0) -> None:
        self._tally: Tally = [0] if tally is None else tally
        self._place = place
        self._handled = 0
        self.delays = array("d")
        """Seconds from the publish of each event that `time` was given."""

    def handled(self) -> int:
        """How many events there were so far."""
        return self._handled

    async def count(self, event: Event[Any]) -> None:
        """A callback that counts."""
        self._handled += 1
        self._tally[self._place] = self._handled

    async def time(self, event: Event[Any]) -> None:
        """A callback that counts, and notes how long ago the event was published. Its `timestamp`
        must be one of `aiobus.clock.elapsed`, which `latency` sees to.
        """
        self.delays.append(elapsed() - event.timestamp)
        self._handled += 1
        self._tally[self._place] = self._handled

    def percentile(self, share: float) -> float:
        """Of the delays, in seconds: `share` percent were no longer. NaN when there are none."""
        if not self.delays:
            return float("nan")
        return sorted(self.delays)[min(len(self.delays) - 1, int(len(self.delays) * share / 100))]


async def throughput(
    publish: Callable[[T], Awaitable[object]],
    events: Iterator[T],
    *,
    handled: Callable[[], int],
    seconds: float = 1.0,
    count: int | None = None,
    window: int = WINDOW,
) -> Throughput:
    """Publish `events` as fast as can be for `seconds`, or until there were `count` of them; wait
    until they are handled.

    `handled` tells how many events the slowest subscriber has handled; no more than `window` are
    ever under way. Every `BURST` events, and while it waits, the loop turns. What is not handled
    within `STALL_SECONDS` without any progress is lost, which the result says. Raises what
    `publish` raises.
    """
    base, sent, done, given_up = handled(), 0, 0, 0
    begin = progressed = elapsed()
    while True:
        now = elapsed()
        if (newest := handled() - base) != done:
            done, progressed = newest, now
        under_way = sent - given_up - done
        is_over = now - begin >= seconds or (count is not None and sent >= count)
        if is_over and under_way <= 0:
            break
        if under_way > 0 and now - max(progressed, begin) > STALL_SECONDS:
            if is_over:
                break
            given_up, progressed = sent - done, now
        elif is_over or under_way >= window:
            await asyncio.sleep(POLL_SECONDS)
        else:
            room = min(BURST, window - under_way)
            if count is not None:
                room = min(room, count - sent)
            for event in islice(events, room):
                await publish(event)
            sent += room
            await asyncio.sleep(0)
    return Throughput(sent, done, (now if sent > done else progressed) - begin)


async def latency(
    publish: Callable[[Event[Any]], Awaitable[object]],
    events: Iterator[Event[Any]],
    *,
    rate: float,
    seconds: float = 1.0,
    until: Callable[[float], Awaitable[None]] | None = None,
) -> Paced:
    """Publish `rate` events a second on an absolute schedule, each stamped with the moment.

    `until(due)` waits for a moment of `aiobus.clock.elapsed`; by default asyncio's timers do, which
    are no finer than 1 ms, so that at higher rates events come in bunches. Raises what `publish`
    raises.
    """
    begin, late = elapsed() + LEAD_SECONDS, 0
    count = int(rate * seconds)
    for number, event in enumerate(islice(events, count)):
        due = begin + number / rate
        wait = due - elapsed()
        if wait > 0:
            await (asyncio.sleep(wait) if until is None else until(due))
            event.timestamp = elapsed()
        else:
            event.timestamp = due
            late += 1
        await publish(event)
    return Paced(count, late)
