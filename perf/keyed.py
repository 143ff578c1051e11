"""What do keys cost? CURVE beside plain tcp, and a full mesh of 30 buses with keys beside one
without.

A publisher and a subscriber, in a process each, twice: with keys and without, in turns within one
run. Goals, the median of the ratios within a round: events a second at 80 B and at 1 KiB at least
80 % of plain; processor time of both processes for an event at most 1.25 x; the p50 of the latency
of one event at most 1.15 x. A newcomer's handshake with a bus whose loop is blocked: at most 50 ms
at the median. Shown as well: how long 30 buses in one process take until all are linked, that of 8
processes which start at once, and descriptors for each peer. Run: python -m perf.keyed
"""

import argparse
import asyncio
import contextlib
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import zmq

from aiobus import AsyncEventBus, Event, EventStream, EventType, Keyring
from aiobus.keyring.changes import make_key
from aiobus.keyring.members import EVERYTHING
from perf.frozen import LOOPS, START_SECONDS, by_round
from perf.vitals import cpu_seconds

ROUNDS = 15
SIZES = {80: 60_000, 1024: 30_000}
"""Bytes of an event's text, and how many are published in a burst."""
PINGS = 400
PING_SECONDS = 0.002
HANDSHAKES = 15
BLOCK_SECONDS = 0.3
MESH = 30
AT_ONCE = 8
GOAL_RATE = 0.80
GOAL_CPU = 1.25
GOAL_LATENCY = 1.15
GOAL_HANDSHAKE_MS = 50.0
BURST_SECONDS = 60.0

_ports = count(7600 + os.getpid() % 20_000)


def address() -> str:
    """A URL on this machine."""
    return f"tcp://127.0.0.1:{next(_ports)}"


def keyring(path: str) -> Keyring | None:
    """The keyring of a directory; None for ""."""
    return Keyring.load(path) if path else None


def make_keyring(path: Path, names: list[str]) -> str:
    """A keyring with the keys of these members."""
    for name in names:
        make_key(str(path), name, EVERYTHING)
    return str(path)


# The other processes.


async def watch(bus: AsyncEventBus) -> None:
    """Be the subscriber: tell at the end of each burst how many events are missing or out of order,
    when the last came, and the processor time used since the first.
    """
    expected = wrong = 0
    used = 0.0

    async def on_event(event: Event) -> None:
        nonlocal expected, wrong, used
        number, last, _ = event.data
        if number == 0:
            used = cpu_seconds()
        wrong += number != expected
        expected = number + 1
        if expected == last:
            await bus.publish(Event("CAME", [wrong, time.time(), cpu_seconds() - used]))
            expected = wrong = 0

    async def on_ping(event: Event[float]) -> None:
        delays.append(time.time() - event.data)
        if len(delays) == PINGS:
            await bus.publish(Event("TIMED", statistics.median(delays)))
            delays.clear()

    delays: list[float] = []
    await bus.subscribe(EventType.TRADE, on_event)
    await bus.subscribe("PING", on_ping)


async def play(role: str, url: str, keys: str) -> None:
    """Be the subscriber, or a bus whose loop is blocked, until stdin ends."""
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), end.set)
    async with AsyncEventBus(url, name=role, keyring=keyring(keys)) as bus:
        if role == "strategy":
            await watch(bus)
        elif role == "blocked":
            await bus.subscribe("BLOCK", lambda event: time.sleep(event.data))
        await bus.publish(Event("READY", role))
        await end.wait()
        loop.remove_reader(sys.stdin.fileno())


@contextlib.asynccontextmanager
async def beside(bus: AsyncEventBus, role: str, loop: str, keys: str) -> AsyncIterator[None]:
    """A process that is subscribed on entry and dead on exit."""
    async with bus.stream("READY") as ready:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "perf.keyed", "--role", role),
            *("--url", bus.url, "--loop", loop, "--keys", keys),
            stdin=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                await anext(ready)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


# The publisher's process.


@dataclass
class Pair:
    """A publisher here, and what it has seen of its subscriber, round by round."""

    bus: AsyncEventBus
    came: EventStream
    timed: EventStream
    rates: dict[int, list[float]] = field(default_factory=lambda: {size: [] for size in SIZES})
    """Events a second, by size."""
    costs: dict[int, list[float]] = field(default_factory=lambda: {size: [] for size in SIZES})
    """Microseconds of the processor for an event, of both processes."""
    latencies: list[float] = field(default_factory=list)
    """Microseconds, at p50."""

    async def burst(self, size: int) -> None:
        """Publish at full rate."""
        events, text = SIZES[size], "x" * size
        used, begin = cpu_seconds(), time.time()
        for number in range(events):
            await self.bus.publish(Event(EventType.TRADE, [number, events, text], key="BTCUSDT"))
        async with asyncio.timeout(BURST_SECONDS):
            wrong, end, other = (await anext(self.came)).data
        mine = cpu_seconds() - used
        if wrong:
            raise RuntimeError(f"{wrong} events were lost or out of order")
        self.rates[size].append(events / (end - begin))
        self.costs[size].append(1e6 * (mine + other) / events)

    async def ping(self) -> None:
        """Publish one event now and then."""
        for _ in range(PINGS):
            await self.bus.publish(Event("PING", time.time()))
            await asyncio.sleep(PING_SECONDS)
        async with asyncio.timeout(BURST_SECONDS):
            self.latencies.append(1e6 * (await anext(self.timed)).data)


@contextlib.asynccontextmanager
async def pair(keys: str, loop: str) -> AsyncIterator[Pair]:
    """A publisher here and its subscriber in another process."""
    async with (
        AsyncEventBus(address(), name="feed", keyring=keyring(keys)) as bus,
        bus.stream("CAME") as came,
        bus.stream("TIMED") as timed,
        beside(bus, "strategy", loop, keys),
    ):
        yield Pair(bus, came, timed)


async def measure(keys: str, loop: str) -> tuple[Pair, Pair]:
    """All rounds: with keys, and without."""
    async with pair(keys, loop) as keyed, pair("", loop) as plain:
        for each in (keyed, plain):  # fills history
            for size in SIZES:
                await each.burst(size)
        for made in (keyed.rates, plain.rates, keyed.costs, plain.costs):
            for figures in made.values():
                figures.clear()
        for number in range(ROUNDS):
            turn = (keyed, plain) if number % 2 else (plain, keyed)
            for size in SIZES:
                for each in turn:
                    await each.burst(size)
            for each in turn:
                await each.ping()
    return keyed, plain


def handshake(endpoint: str, ring: Keyring, name: str) -> float:
    """Milliseconds until a connection with the keys of `feed` is made to the bus `name`."""
    with zmq.Context() as context, context.socket(zmq.XSUB) as socket:
        socket.linger = 0
        socket.curve_publickey = ring.members.by_name["feed"].key.encode()
        socket.curve_secretkey = ring.secret_of("feed").encode()
        socket.curve_serverkey = ring.members.by_name[name].key.encode()
        with socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) as monitor:
            begin = time.perf_counter()
            socket.connect(endpoint)
            is_made = monitor.poll(int(BURST_SECONDS * 1000))
            seconds = time.perf_counter() - begin
            socket.disable_monitor()
        if not is_made:
            raise RuntimeError(f"no handshake within {BURST_SECONDS:g} s")
    return seconds * 1e3


async def handshakes(keys: str, loop: str) -> list[float]:
    """Milliseconds of each handshake with a bus whose loop is blocked by a handler."""
    made: list[float] = []
    ring = Keyring.load(keys)
    async with (
        AsyncEventBus(address(), name="feed", keyring=ring) as bus,
        beside(bus, "blocked", loop, keys),
    ):
        (peer,) = bus._transport.session.links  # type: ignore[attr-defined]
        for _ in range(HANDSHAKES):
            await bus.publish(Event("BLOCK", BLOCK_SECONDS))
            await asyncio.sleep(0.05)  # its handler has begun
            made.append(await asyncio.to_thread(handshake, peer.endpoint, ring, peer.name))
            await bus.flush()
    return made


async def mesh(keys: str, count: int = MESH) -> tuple[float, int]:
    """Seconds until all of a mesh are linked that start at once, and the descriptors they take."""
    url, ring = address(), keyring(keys)
    buses = [AsyncEventBus(url, name=f"m{number}", keyring=ring) for number in range(count)]
    before, begin = len(os.listdir("/dev/fd")), time.perf_counter()
    async with contextlib.AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(bus) for bus in buses))
        async with asyncio.timeout(BURST_SECONDS):
            while any(len(bus.peers) < count - 1 for bus in buses):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        seconds = time.perf_counter() - begin
        return seconds, len(os.listdir("/dev/fd")) - before


async def descriptors(keys: str) -> float:
    """Descriptors for each peer: what a bus takes that is alone is no peer's."""
    (_, all_), (_, lone) = await mesh(keys), await mesh(keys, 1)
    return (all_ - MESH * lone) / MESH / (MESH - 1)


async def at_once(keys: str, loop: str) -> float:
    """Seconds until processes that start at once are linked with a bus that is there."""
    async with contextlib.AsyncExitStack() as stack:
        bus = await stack.enter_async_context(
            AsyncEventBus(address(), name="feed", keyring=keyring(keys))
        )
        begin = time.perf_counter()
        await asyncio.gather(
            *(
                stack.enter_async_context(beside(bus, f"m{each}", loop, keys))
                for each in range(AT_ONCE)
            )
        )
        return time.perf_counter() - begin


def judge(loops: list[str]) -> int:
    """Print a line for each figure; 1 when a goal is missed."""
    missed = 0

    def say(name: str, figure: str, goal: str, is_held: bool | None) -> None:
        nonlocal missed
        missed += is_held is False
        verdict = "" if is_held is None else f"  goal {goal}: {'held' if is_held else 'missed'}"
        print(f"keyed      {name:44} {figure}{verdict}", flush=True)

    with tempfile.TemporaryDirectory(prefix="keyed-") as made:
        names = ["feed", "strategy", "blocked", *(f"m{number}" for number in range(MESH))]
        keys = make_keyring(Path(made) / "desk", names)
        for loop in loops:
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                keyed, plain = runner.run(measure(keys, loop))
                for size in SIZES:
                    mine, other = keyed.rates[size], plain.rates[size]
                    share = by_round(mine, other)
                    figure = f"{_both(mine, other)} /s, {share:4.0%}"
                    goal = f"{GOAL_RATE:.0%}"
                    say(f"throughput at {size} B, {loop}", figure, goal, share >= GOAL_RATE)
                    mine, other = keyed.costs[size], plain.costs[size]
                    more = by_round(mine, other)
                    figure = f"{_both(mine, other, '.2f')} us, {more:4.2f} x"
                    goal = f"{GOAL_CPU} x"
                    say(f"processor time at {size} B, {loop}", figure, goal, more <= GOAL_CPU)
                mine, other = keyed.latencies, plain.latencies
                more = by_round(mine, other)
                figure = f"{_both(mine, other)} us, {more:4.2f} x"
                say(f"latency p50, {loop}", figure, f"{GOAL_LATENCY} x", more <= GOAL_LATENCY)
                found = runner.run(handshakes(keys, loop))
                middle = statistics.median(found)
                figure = f"{middle:.1f} ms, at most {max(found):.1f} ms"
                goal = f"{GOAL_HANDSHAKE_MS:g} ms"
                name = f"a handshake while the loop is blocked, {loop}"
                say(name, figure, goal, middle <= GOAL_HANDSHAKE_MS)
                meshes = [(runner.run(mesh(keys)), runner.run(mesh(""))) for _ in range(3)]
                mine, other = ([each[side][0] for each in meshes] for side in (0, 1))
                figure = f"{_both(mine, other, '.2f')} s, {by_round(mine, other):4.2f} x"
                say(f"{MESH} buses in a process, all linked, {loop}", figure, "", None)
                files = [runner.run(descriptors(each)) for each in (keys, "")]
                figure = f"{files[0]:.2f}, plain {files[1]:.2f}"
                say(f"descriptors for each peer, {loop}", figure, "", None)
                starts = [runner.run(at_once(each, loop)) for each in (keys, "")]
                figure = f"{starts[0]:.2f} s, plain {starts[1]:.2f} s"
                say(f"{AT_ONCE} processes start at once, {loop}", figure, "", None)
    return int(missed > 0)


def _both(mine: list[float], other: list[float], form: str = ",.0f") -> str:
    return f"{statistics.median(mine):{form}}, plain {statistics.median(other):{form}}"


def main() -> int:
    """Measure, or be one of the other processes."""
    logging.getLogger("aiobus").setLevel(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", help="be this process; the others go with it")
    parser.add_argument("--url")
    parser.add_argument("--keys", help="the directory of the keyring")
    parser.add_argument("--loop", choices=LOOPS, help="only on this kind of loop")
    given = parser.parse_args()
    if given.role is None:
        return judge([given.loop] if given.loop else list(LOOPS))
    with asyncio.Runner(loop_factory=LOOPS[given.loop]) as runner:
        runner.run(play(given.role, given.url, given.keys))
    return 0


if __name__ == "__main__":
    sys.exit(main())
