"""Strangers at the TCP port of a bus: each bound is crossed from a socket that is no aiobus, beside
two honest buses in processes of their own. These miss nothing, and memory stays where it was.
"""

import asyncio
import contextlib
import resource
import socket
import struct
import sys
from collections.abc import Collection, Iterator
from typing import Any

import pytest
import zmq
import zmq.asyncio
from actors import Actor, Nursery, free_port, tcp_url

from aiobus.discovery.gate import RESERVE
from aiobus.mesh.answers import MAX_ASKS, MAX_PAGES
from aiobus.mesh.fanout import MAX_OF_LINK, MAX_VAIN
from aiobus.mesh.sockets import MAX_MESSAGE
from aiobus.wire import Ask, PageAsk, PeerId, up

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
    pytest.mark.slow,
]

FILES = 1_024
"""That each honest process may open: fewer than there are strangers."""
EVENTS = 200
"""That each of the two publishes beside an attack."""

PREPARE = """
import resource
from aiobus.discovery.unix_socket import spare_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
self.gaps, self.spare = [], spare_descriptors
"""
LISTEN = """
async def on_gap(event):
    self.gaps.append(event.data)
await self.bus.subscribe("aiobus.gap", on_gap)
"""
PUBLISH = """
for number in range(first, first + count):
    await bus.publish(Event(type, number))
    await asyncio.sleep(0)
while not {*await bus.flush()} <= {*beside}:
    pass
"""
SPARE = "open('/dev/null').close(); return self.spare()"
RSS = """
import mmap
with open("/proc/self/statm") as statm:
    return int(statm.read().split()[1]) * mmap.PAGESIZE // 2**20
"""
REFUSED = "return bus.stats().refused"
PEERS = "return [each.name for each in bus.peers]"
SERVED = "return len(bus._transport.session.fanout)"
SUBSCRIBES = """
made = await bus.subscribe("T", print, key=key, timeout=40)
return sorted(made.unconfirmed)
"""


class Pair:
    """Two honest buses: `feed`, at whose port the strangers are, and `strategy`. `host` serves the
    rendezvous address.
    """

    def __init__(
        self, nursery: Nursery, host: Actor, feed: Actor, strategy: Actor, url: str
    ) -> None:
        self.nursery, self.host, self.feed, self.strategy = nursery, host, feed, strategy
        self.url = url
        self.endpoint = ""
        self._traded = 0

    @property
    def address(self) -> tuple[str, int]:
        """Where the feed listens."""
        host, _, port = self.endpoint.removeprefix("tcp://").rpartition(":")
        return host, int(port)

    async def trade(self, beside: Collection[str] = ()) -> None:
        """Events in both ways: all arrive, in order, and are confirmed, but by those `beside` the
        two: a stranger that has said hello and confirms nothing is named as any member is.
        """
        first = self._traded
        self._traded += EVENTS
        values = {"first": first, "count": EVENTS, "beside": [*beside]}
        await asyncio.gather(
            self.feed(PUBLISH, type="QUOTE", **values),
            self.strategy(PUBLISH, type="ORDER", **values),
        )
        for each in (self.feed, self.strategy):
            assert await each.heard(self._traded) == [*range(self._traded)]
            assert await each("return self.gaps") == []

    async def newcomer(self) -> None:
        """One more bus starts, and is linked with the feed."""
        made = await self.nursery.actor()
        await made.start(self.url, "newcomer")
        await made(
            """
            async with bus.stream("aiobus.peer_joined") as joined:
                while "feed" not in [each.name for each in bus.peers]:
                    await anext(joined)
            """
        )


@pytest.fixture(params=["plain"])
async def pair(request: pytest.FixtureRequest, nursery: Nursery) -> Pair:
    """Two buses that are linked, and the one that serves the rendezvous address."""
    url = tcp_url()
    host, feed, strategy = await nursery.actors(3)
    await host(PREPARE, files=FILES)
    await host.start(url, "host")
    for actor, name, hears in ((feed, "feed", "ORDER"), (strategy, "strategy", "QUOTE")):
        await actor(PREPARE, files=FILES)
        await actor.start(url, name)
        await actor.hear(hears)
        await actor(LISTEN)
    made = Pair(nursery, host, feed, strategy, url)
    made.endpoint = await feed("return bus._transport.session.me.endpoint")
    await made.trade()
    return made


@pytest.fixture
def many_files() -> Iterator[None]:
    """This process may open 6,000 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 6_000:
        pytest.skip("this process may not open 6,000 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (6_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def raw(stack: contextlib.ExitStack, address: tuple[str, int]) -> socket.socket:
    """Begin to connect."""
    sock = socket.socket()
    stack.callback(sock.close)
    sock.setblocking(False)
    sock.connect_ex(address)
    return sock


@pytest.mark.usefixtures("many_files")
async def test_5000_connections_that_say_nothing_leave_descriptors_and_a_newcomer_links_after_them(
    pair: Pair,
) -> None:
    before = await pair.feed(RSS)
    with contextlib.ExitStack() as stack:
        for _ in range(5_000):
            raw(stack, pair.address)
        for _ in range(3):
            await pair.trade()
            assert await pair.feed(SPARE) >= RESERVE - 1  # one file is open in between
        assert await pair.feed(RSS) - before < 32
    await pair.newcomer()
    await pair.trade()


@pytest.mark.usefixtures("many_files")
async def test_20000_connections_that_come_and_go_cost_no_descriptor_and_no_memory(
    pair: Pair,
) -> None:
    spare, before = await pair.feed(SPARE), await pair.feed(RSS)
    reset = struct.pack("ii", 1, 0)
    for _ in range(40):
        with contextlib.ExitStack() as stack:
            for number in range(500):
                sock = raw(stack, pair.address)
                if number % 2:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        await asyncio.sleep(0)
    await pair.trade()
    assert await pair.feed(RSS) - before < 16
    await pair.newcomer()  # which takes two descriptors
    while await pair.feed(SPARE) < spare - 2:
        await pair.trade()


@pytest.mark.usefixtures("many_files")
async def test_a_bus_whose_loop_is_blocked_meanwhile_has_its_reserve_when_it_goes_on(
    pair: Pair,
) -> None:
    busy = pair.feed.tell("import time; time.sleep(0.5)")
    with contextlib.ExitStack() as stack:
        for _ in range(5_000):
            raw(stack, pair.address)
        await busy
        await pair.trade()
        assert await pair.feed(SPARE) >= RESERVE - 1
    await pair.newcomer()
    await pair.trade()


@pytest.mark.usefixtures("many_files")
async def test_a_member_starts_beside_2000_connections_that_say_nothing_to_the_registry(
    pair: Pair,
) -> None:
    host, _, port = pair.url.removeprefix("tcp://").rpartition(":")
    before = await pair.host(RSS)
    with contextlib.ExitStack() as stack:
        for _ in range(2_000):
            raw(stack, (host, int(port)))
        member = await pair.nursery.actor()
        await member.start(pair.url, "member")
        # Not later: it has not had to wait for a place.
        assert await member(PEERS) == ["feed", "host", "strategy"]
        await pair.trade()
        assert await pair.host(SPARE) >= RESERVE - 1
        assert await pair.host(RSS) - before < 16


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x04XSUB"


async def test_greetings_that_are_half_written_end_none_but_their_own_connection(
    pair: Pair,
) -> None:
    before = await pair.feed(RSS)
    with contextlib.ExitStack() as stack:
        for number in range(4 * len(GREETING)):
            sock = socket.create_connection(pair.address)
            stack.callback(sock.close)
            sock.sendall((GREETING + READY)[: number % len(GREETING) + 1])
            if number % 2:
                sock.close()
        await pair.trade()
        await pair.newcomer()
        await pair.trade()
    assert await pair.feed(RSS) - before < 16


@pytest.mark.parametrize("size", [MAX_MESSAGE + 1, 2**40, 2**63 - 1])
async def test_a_message_that_is_too_large_ends_its_link_at_its_head(pair: Pair, size: int) -> None:
    before = await pair.feed(RSS)
    reader, writer = await asyncio.open_connection(*pair.address)
    writer.write(GREETING + READY + b"\x02" + size.to_bytes(8, "big") + bytes(1_000))
    with contextlib.suppress(ConnectionError):
        while await reader.read(65_536):
            pass  # until the feed has ended it
    writer.close()
    await pair.trade()
    assert await pair.feed(RSS) - before < 16


class Stranger:
    """A socket of ZeroMQ that says what it is told, as fast as it is taken."""

    def __init__(self, pair: Pair) -> None:
        # Where no process listens: it is not waited for.
        self.who = PeerId("stranger", 1, f"tcp://127.0.0.1:{free_port()}")
        self.context: zmq.asyncio.Context = zmq.asyncio.Context()
        self.up: Any = self.context.socket(zmq.XSUB)
        self.up.set(zmq.SNDHWM, 0)
        self.up.connect(pair.endpoint)

    async def hello(self) -> None:
        await self.up.send(b"\1" + self.who.topic)

    def close(self) -> None:
        self.context.destroy(linger=0)


async def until_refused(pair: Pair, count: int, beside: Collection[str] = ()) -> None:
    """Return once the feed has refused so many messages; others trade meanwhile."""
    while await pair.feed(REFUSED) < count:
        await pair.trade(beside)


async def test_subscriptions_beyond_those_of_a_link_leave_the_others_theirs(pair: Pair) -> None:
    before = await pair.feed(RSS)
    stranger = Stranger(pair)
    try:
        for number in range(MAX_OF_LINK + 1_000):
            await stranger.up.send(b"\1T/stranger%d\0" % number)
        await until_refused(pair, 1_000)
        assert await pair.strategy(SUBSCRIBES, key="mine") == []
        await pair.trade()
        assert await pair.feed(RSS) - before < 64
    finally:
        stranger.close()


async def test_subscriptions_in_vain_without_end_end_the_link_of_who_asks_and_no_other(
    pair: Pair,
) -> None:
    before = await pair.feed(RSS)
    stranger = Stranger(pair)
    try:
        for number in range(MAX_OF_LINK + MAX_VAIN + 1_000):
            await stranger.up.send(b"\1T/stranger%d\0" % number)
        await until_refused(pair, MAX_VAIN)
        while await pair.feed(SERVED) >= MAX_OF_LINK:
            await pair.trade()
        assert await pair.strategy(SUBSCRIBES, key="mine") == []
        await pair.trade()
        assert await pair.feed(RSS) - before < 128
    finally:
        stranger.close()


@pytest.mark.one_loop  # what is named is waited for, 5 s each time
async def test_questions_for_pages_without_a_pause_keep_no_other_from_its_history(
    pair: Pair,
) -> None:
    await pair.feed("for number in range(5_000): await bus.publish(Event('OLD', number))")
    epoch = await pair.feed("return bus.stats().epoch")
    before = await pair.feed(RSS)
    stranger = Stranger(pair)
    late = await pair.nursery.actor()
    try:
        await stranger.hello()
        for number in range(20_000):
            ask = PageAsk("feed", number, stranger.who, epoch, "OLD", 0, 1_000, None, 0)
            await stranger.up.send(up(ask))
        await late.start(pair.url, "late")
        await late.hear("OLD", since=0)
        assert await late.heard(5_000) == [*range(5_000)]
        await until_refused(pair, MAX_PAGES, {"stranger"})
        await pair.trade(beside={"stranger"})
        assert await pair.feed(RSS) - before < 64
    finally:
        stranger.close()


@pytest.mark.one_loop  # what is named is waited for, 5 s each time
async def test_questions_whether_queries_are_live_without_a_pause_leave_the_others_theirs_answered(
    pair: Pair,
) -> None:
    before = await pair.feed(RSS)
    stranger = Stranger(pair)
    try:
        await stranger.hello()
        for number in range(4 * MAX_ASKS):
            await stranger.up.send(up(Ask("feed", number, stranger.who)))
        assert await pair.strategy(SUBSCRIBES, key="mine") == []
        await until_refused(pair, MAX_ASKS, {"stranger"})
        await pair.trade(beside={"stranger"})
        assert await pair.feed(RSS) - before < 64
    finally:
        stranger.close()
