"""Mutated messages and bytes against a running bus with keys, beside a pair that notices nothing.

`make test` tries some 2,000. More, such as for a soak::

    FUZZ=1000000 TEST_SECONDS=90000 python -m pytest -q -s --timeout 0 tests/test_fuzz_keyed.py

says how many were tried, how many a second, and by how much the process has grown. FUZZ_SEED is
that of the dice.
"""

import asyncio
import contextlib
import logging
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from keys import KeyedDesk, Rogue, endpoint_of, who_of

from aiobus import AsyncEventBus, Event
from aiobus.keyring.members import Rules
from aiobus.wire import (
    Ack,
    Answer,
    Ask,
    Mark,
    PageAsk,
    PeerId,
    frame,
    heartbeat,
    mail,
    page,
    topic,
    up,
)

pytestmark = [pytest.mark.usefixtures("no_task_is_left"), pytest.mark.one_loop]

COUNT = int(os.environ.get("FUZZ", "20000"))
SEED = int(os.environ.get("FUZZ_SEED", "11"))
BURST = 200
"""Messages between two looks at the honest pair."""
GROWTH = 16 * 2**20
"""Bytes by which the process may grow in the second half: what has a bound fills up before."""
KINDS = ("down", "up", "stranger", "bytes")


def mutated(dice: random.Random, message: bytes, others: list[bytes]) -> bytes:
    """The message with some bytes changed, left out, doubled, or from another."""
    data = bytearray(message)
    for _ in range(dice.choice((0, 1, 1, 1, 2, 4))):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << dice.randrange(8)
            case 1 if data:
                data[at % len(data)] = dice.randrange(256)
            case 2:
                del data[at : at + dice.randrange(1, 9)]
            case 3:
                data[at:at] = dice.randbytes(dice.randrange(1, 9))
            case 4:
                other = dice.choice(others)
                begin = dice.randrange(len(other) + 1)
                data[at:] = other[begin:]
            case 5:
                data[at:at] = data[at : at + dice.randrange(1, 30)]
            case 6:
                data[at:at] = dice.choice(TOKENS)
            case _:
                del data[at:]
    return bytes(data)


TOKENS = [
    *(b"\0", b"\n,[", b"[", b"]]", b",", b'"', b"~", b"-", b"*", b"null", b"true", b"1e400"),
    *(b"-1", b"9007199254740993", b"18446744073709551616", b'"bye"', b"rogue", b"feed", b"\xff"),
    *(b"strategy", b"aiobus.error", b"T" * 300, b"[" * 500, b"{}", b'"?"', b'"!"', b'"="'),
]


def seeds(me: PeerId, rogue: PeerId, other: PeerId) -> dict[str, list[bytes]]:
    """A message of each form, by the way that it goes."""
    rows = [b'[%d,1.0,"TRADE","BTC",%d]' % (seq, -seq) for seq in (1, 2, 3)]
    down = [
        frame(topic("TRADE"), "rogue", 1, 0, 3, rows),
        frame(topic("TRADE"), "rogue", 1, 0, 1, rows[:1]),
        frame(topic("*"), "rogue", 1, 0, 3, rows),
        frame(topic("TRADE"), "rogue", 1, 3, 3, []),
        frame(topic("TRADE"), "strategy", other.epoch, 0, 3, rows),
        heartbeat("rogue", 1, 3),
        heartbeat("strategy", other.epoch, 3, leaving=True),
        mail(me, Answer(1, rogue, 1.0, 3, True)),
        mail(me, Answer(1, other, 1.0, 3, True)),
        mail(me, Mark(1, rogue, (("TRADE", 3),))),
        page(me, 1, "rogue", 1, 0, 0, 0, 3, 3, None, rows),
    ]
    questions = [
        up(Ask("*", 1, rogue)),
        up(Ask("feed", 1, other)),
        up(PageAsk("feed", 1, rogue, me.epoch, "TRADE", 0, 10, None, 0)),
        up(PageAsk("feed", 1, rogue, me.epoch, "*", 0, 1000, "last", 0)),
        up(Ack("feed", 1, rogue)),
    ]
    topics = [topic("TRADE"), topic("*"), topic("A B"), b"-" + topic("TRADE"), b"~\0"]
    hellos = [rogue.topic, other.topic, me.topic]
    asked = [b"\1" + each for each in (*topics, *hellos, *questions)]
    return {"down": down, "up": [*asked, *(b"\0" + each[1:] for each in asked), *questions]}


GREETING = b"\xff\0\0\0\0\0\0\0\1\x7f\3\1CURVE" + bytes(15) + bytes(32)
"""Of ZMTP 3.1 (RFC 37), by a client."""
HANDSHAKE = [
    GREETING,
    GREETING.replace(b"CURVE", b"NULL\0"),
    GREETING.replace(b"CURVE", b"PLAIN"),
    GREETING + b"\4\xc8\5HELLO\1\0" + bytes(72) + bytes(32) + bytes(8) + bytes(80),
    GREETING.replace(b"CURVE", b"NULL\0") + b"\4\x19\5READY\x0bSocket-Type\0\0\0\3SUB",
    GREETING + b"\4\x64\x08INITIATE" + bytes(91),
]


class Pair:
    """Two honest buses: each hears what the other publishes."""

    def __init__(self, feed: AsyncEventBus, strategy: AsyncEventBus) -> None:
        self.feed, self.strategy = feed, strategy
        self.sent = 0
        self.heard: dict[str, list[int]] = {"feed": [], "strategy": []}
        self.came = asyncio.Event()

    async def begin(self) -> None:
        for bus in (self.feed, self.strategy):
            await bus.subscribe("PRICE", self.take)

    async def take(self, event: Event) -> None:
        self.heard[event.source].append(event.data)
        self.came.set()

    async def check(self) -> None:
        """An event of each arrives once at both."""
        for bus in (self.feed, self.strategy):
            await bus.publish(Event("PRICE", self.sent))
        while min(map(len, self.heard.values())) < 2:
            self.came.clear()
            await self.came.wait()
        assert self.heard == {"feed": [self.sent] * 2, "strategy": [self.sent] * 2}
        for each in self.heard.values():
            each.clear()
        self.sent += 1


@asynccontextmanager
async def open_pair(folder: Path) -> AsyncIterator[tuple[KeyedDesk, Pair]]:
    rules = Rules(frozenset({"TRADE", "ORDER"}), frozenset({"TRADE"}))
    desk = KeyedDesk(folder / "keys", "feed", "strategy", "rogue", rogue=rules)
    async with desk.bus("feed") as feed, desk.bus("strategy") as strategy:
        pair = Pair(feed, strategy)
        await pair.begin()
        yield desk, pair


class Attack:
    """What is sent, by one way."""

    def __init__(self, kind: str, desk: KeyedDesk, feed: AsyncEventBus, other: PeerId) -> None:
        self.kind = kind
        self.desk = desk
        self.feed = feed
        self.dice = random.Random(SEED)
        self.rogue = Rogue(desk, "rogue")
        self.other = other
        self.seeds = seeds(who_of(feed), self.rogue.who, other)
        self.server = desk.keys("feed")[0]
        self.living: asyncio.Task[None] | None = None
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.up: zmq.Socket[bytes] | None = None

    async def begin(self) -> None:
        if self.kind == "stranger":  # no member, and linked to by nobody
            self.rogue.keys = tuple(each.decode() for each in zmq.curve_keypair())  # type: ignore[assignment]

    async def link(self) -> None:
        """Anew: one of the messages before was a bye."""
        if self.living is not None:
            self.living.cancel()
            await asyncio.wait([self.living])
            self.rogue.close()
            self.rogue = Rogue(self.desk, "rogue")
        self.seeds = seeds(who_of(self.feed), self.rogue.who, self.other)
        self.living = asyncio.create_task(self.rogue.live())
        async with self.feed.stream("aiobus.peer_joined") as joined:
            await self.rogue.link(self.feed)
            await anext(joined)

    def connect(self) -> None:
        """Anew, since all that was asked for is asked for again when a link is made again."""
        if self.up is not None:
            self.up.close(200)
        self.up = self.rogue.knock(endpoint_of(self.feed), self.server, self.context)
        self.up.send(b"\1" + self.rogue.who.topic)

    async def burst(self) -> None:
        if self.kind in ("up", "stranger"):
            self.connect()
        elif self.kind == "down" and "rogue" not in {each.name for each in self.feed.peers}:
            await self.link()
        for _ in range(BURST):
            await self.one()

    async def one(self) -> None:
        if self.kind == "bytes":
            await self.knock(mutated(self.dice, self.dice.choice(HANDSHAKE), HANDSHAKE))
        elif self.kind == "down":
            found = self.seeds["down"]
            await self.rogue.down.send(mutated(self.dice, self.dice.choice(found), found))
        else:
            found = self.seeds["up"]
            message = mutated(self.dice, self.dice.choice(found), found)
            if message[:1] not in (b"\0", b"\1") and self.dice.random() < 0.995:
                message = b"\1" + message  # else most is behind what ends the link
            assert self.up is not None
            self.up.send(message)

    async def knock(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        host, _, port = endpoint_of(self.feed).removeprefix("tcp://").rpartition(":")
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, (host, int(port)))
            with contextlib.suppress(OSError):
                await loop.sock_sendall(sock, data)
                if self.dice.random() < 0.1:
                    async with asyncio.timeout(0.02):
                        await loop.sock_recv(sock, 4096)

    async def end(self) -> None:
        if self.living is not None:
            self.living.cancel()
            await asyncio.wait([self.living])
        self.rogue.close()
        self.context.destroy(linger=0)


@pytest.fixture
def no_error_is_logged() -> Iterator[None]:
    """What this package takes for a fault of its own it logs as an error."""
    found: list[str] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(f"{record.getMessage()} {record.exc_info}")

    watch = Watch(logging.ERROR)
    for name in ("aiobus", "asyncio"):
        logging.getLogger(name).addHandler(watch)
    yield
    for name in ("aiobus", "asyncio"):
        logging.getLogger(name).removeHandler(watch)
    assert found == []


def memory_of_process() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("kind", KINDS)
async def test_mutated_messages_raise_nothing_keep_nothing_and_harm_nobody(
    folder: Path, kind: str, no_error_is_logged: None
) -> None:
    count = COUNT // len(KINDS)
    begun = time.monotonic()
    async with open_pair(folder) as (desk, pair):
        attack = Attack(kind, desk, pair.feed, who_of(pair.strategy))
        await attack.begin()
        first = memory_of_process()
        for done in range(0, count, BURST):
            await attack.burst()
            await pair.check()
            if done <= count // 2:
                first = memory_of_process()
        await attack.end()
        grown, refused = memory_of_process() - first, pair.feed.stats().refused
        seconds = time.monotonic() - begun
        logging.getLogger("fuzz").info(
            "%s: %d in %.0f s, %d refused, grown by %.1f MiB",
            kind, count, seconds, refused, grown / 2**20,
        )  # fmt: skip
        assert grown < GROWTH
        assert [each.name for each in pair.strategy.peers if each.name == "feed"] == ["feed"]
        assert kind == "down" or pair.strategy.stats().refused == 0
    # How many depends on how often a link is ended, and what was behind on it is not read.
    assert kind in ("stranger", "bytes") or refused > 0
