"""One process of one system: it publishes, subscribes or both, as it is told line by line.

Owns the commands. Each line of stdin is one, in JSON, and each is answered by one line of stdout.
How fast and when to publish is `perf.bench`'s affair, how to is the system's. It ends when stdin
does, as it does however the measuring process ends. Run by `perf.desk`.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvloop

import aiobus
from perf.bench import Arrivals, latency, throughput
from perf.sampler import Sampler
from perf.systems import SYSTEMS, Callback, Setup
from perf.tally import COUNTERS, Tally
from perf.ticker import Ticker
from perf.trades import trades
from perf.vitals import cpu_seconds, rss, tcp_received

__all__ = ["PUBLISHED", "Worker"]

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
PROBE_SECONDS = 0.01
QUIET_SECONDS = 0.1
HELD_SECONDS = 0.001
LIVE_SECONDS = 15.0
QUANTILES = [*range(100), *(99 + tenth / 10 for tenth in range(10)), 99.95, 100]

PACKAGE = Path(aiobus.__file__).resolve().parent
"""What is measured here."""
PUBLISHED = COUNTERS - 1
"""Which counter is the publisher's, where a handler is held for it."""

Answer = dict[str, Any]


class Worker:
    """The commands. `told`: which system, which part, which events."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._told = told
        self._setup = Setup(**told["setup"])
        self._types: list[str] = told["types"]
        self._keys: list[str] = told["keys"]
        system = SYSTEMS[told["system"]]
        offer = system.offer()
        self._side, self._make = offer.Side(self._setup), offer.Event
        self._tally = Tally(Path(self._setup.folder) / "tally")
        self._arrivals = Arrivals(self._tally.counters, self._setup.index)
        self._cpu, self._received = 0.0, 0
        self._taken: int | None = None  # events since the mark
        self._commands: dict[str, Callable[[dict[str, Any]], Awaitable[Answer]]] = {
            "probe": self.probe,
            "throughput": self.throughput,
            "latency": self.latency,
            "hand over": self.hand_over,
            "mark": self.mark,
            "tell": self.tell,
            "profile": self.profile,
            "profiled": self.profiled,
        }

    async def run(self) -> None:
        """Begin, obey until stdin ends, end."""
        told = self._told
        await self._side.open(publishes="publish" in told["part"])
        if "subscribe" in told["part"]:
            for number in range(told["unmatched"]):
                await self._side.subscribe(self._types, [f"NOT{number:05}"], self.callback())
            if told["matched"]:
                await self._side.subscribe(self._types, told["only"], self.callback())
        _answer({"package": str(PACKAGE)})
        async for line in _lines():
            _answer(await self._commands[line["do"]](line))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3.0):
                await self._side.close()

    def callback(self) -> Callback:
        """Each process has one kind of callback, the cheapest for what is measured."""
        kind: str = self._told["callback"]
        if kind == "by publisher":
            return self._by_publisher()
        if kind == "when all wait":
            return self._when_all_wait()
        callback: Callback = getattr(self._arrivals, kind)
        return callback

    def _by_publisher(self) -> Callback:
        counters, handled = self._tally.counters, dict.fromkeys(self._told["only"] or [], 0)
        places = {key: place for place, key in enumerate(handled)}

        async def by_publisher(event: Any) -> None:
            key = event.key
            handled[key] += 1
            counters[places[key]] = handled[key]

        return by_publisher

    def _when_all_wait(self) -> Callback:
        """Each window begins with a handler that is held, asleep, until the whole window is
        published. So a window of events waits here, however fast this process is.
        """
        counters, window, count = self._tally.counters, self._told["window"], self._arrivals.count

        async def when_all_wait(event: Any) -> None:
            if self._taken is not None:
                if self._taken % window == 0:
                    target = self._taken + window
                    while counters[PUBLISHED] < target:  # noqa: ASYNC110 - another process counts
                        await asyncio.sleep(HELD_SECONDS)
                self._taken += 1
            await count(event)

        return when_all_wait

    def _events(self) -> Iterator[Any]:
        told = self._told
        return trades(self._types, self._keys, told["size"], told["shape"], self._make)

    async def probe(self, line: dict[str, Any]) -> Answer:
        """Publish now and then until every subscriber was heard of, and then nothing for a while:
        some systems have no other way to know that a subscription is live.
        """
        counters, places = self._tally.counters, line["places"]
        key = line["key"] or self._keys[0]
        events = trades(self._types, [key], make=self._make)
        before = list(counters)
        async with asyncio.timeout(LIVE_SECONDS):
            while any(counters[place] == before[place] for place in places):
                await self._side.publish(next(events))
                await asyncio.sleep(PROBE_SECONDS)
            last: list[int] = []
            while last != (last := list(counters)):  # noqa: ASYNC110 - another process counts
                await asyncio.sleep(QUIET_SECONDS)
        return {}

    async def throughput(self, line: dict[str, Any]) -> Answer:
        """Publish at full rate."""
        places, tally = line["places"], self._tally
        share: int = line.get("share", 1)
        base = tally.least(places) if places else 0
        taken = 0

        def counted() -> Iterator[Any]:
            nonlocal taken
            for event in self._events():
                taken += 1
                yield event

        def noted() -> Iterator[Any]:
            for number, event in enumerate(self._events(), 1):
                tally.counters[PUBLISHED] = number
                yield event

        events = self._events()
        if not places:
            events = counted()
        elif self._told["callback"] == "when all wait":
            events = noted()

        def handled() -> int:
            if not places:
                return taken  # there is no subscriber to wait for
            # A filter lets the first of `share` events through: the others count with it.
            return (tally.least(places) - base) * share

        begin = cpu_seconds()
        flow = await throughput(
            self._side.publish,
            events,
            handled=handled,
            seconds=line["seconds"],
            count=line.get("count"),
            window=line["window"],
        )
        return {**asdict(flow), "cpu": cpu_seconds() - begin, "rss": rss()}

    async def latency(self, line: dict[str, Any]) -> Answer:
        """Publish at a steady rate."""
        ticker = Ticker() if sys.platform == "linux" else None
        begin = cpu_seconds()
        paced = await latency(
            self._side.publish,
            self._events(),
            rate=line["rate"],
            seconds=line["seconds"],
            until=None if ticker is None else ticker.until,
        )
        if ticker is not None:
            ticker.close()
        return {**asdict(paced), "cpu": cpu_seconds() - begin, "rss": rss()}

    async def hand_over(self, line: dict[str, Any]) -> Answer:
        """Of the codec alone: decode and await at full rate."""
        side: Any = self._side
        begin = cpu_seconds()
        flow = await throughput(
            side.hand_over,
            itertools.cycle(side.payloads),
            handled=self._arrivals.handled,
            seconds=line["seconds"],
        )
        return {**asdict(flow), "cpu": cpu_seconds() - begin, "rss": rss()}

    async def mark(self, line: dict[str, Any]) -> Answer:
        """Begin to count at zero."""
        self._arrivals.delays = type(self._arrivals.delays)("d")
        self._taken = self._tally.counters[PUBLISHED] = 0
        self._cpu, self._received = cpu_seconds(), tcp_received()
        return {"rss": rss()}

    async def tell(self, line: dict[str, Any]) -> Answer:
        """The measurements since the mark."""
        cpu, received = cpu_seconds() - self._cpu, tcp_received() - self._received
        delays = sorted(self._arrivals.delays)
        last = len(delays) - 1
        return {
            "cpu": cpu,
            "received": received,
            "rss": rss(),
            "timed": len(delays),
            "quantiles": [
                [share, delays[min(last, int(len(delays) * share / 100))]]
                for share in (QUANTILES if delays else [])
            ],
        }

    async def profile(self, line: dict[str, Any]) -> Answer:
        """Look where the time goes from now on."""
        self._sampler = Sampler()
        self._sampler.start()
        return {}

    async def profiled(self, line: dict[str, Any]) -> Answer:
        """Where it went."""
        return {"lines": self._sampler.stop()}


async def _lines() -> Any:
    """Each command, until stdin ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


def _answer(answer: Answer) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Be the process that the first argument describes."""
    logging.getLogger("aiobus").setLevel(logging.CRITICAL)
    told = json.loads(sys.argv[1])

    async def run() -> None:
        await Worker(told).run()

    with asyncio.Runner(loop_factory=LOOPS[SYSTEMS[told["system"]].loop]) as runner:
        runner.run(run())


if __name__ == "__main__":
    main()
