"""A network between two hosts that is cut, both ways and one way, without a word to either end, or
that is far and loses packets.

On each host one bus, the address of the first one's is known to both; both publish, and after each
cut both must have everything that was published meanwhile within 3 s.
"""

import asyncio
import socket
import time
from collections.abc import Collection
from itertools import count
from typing import Any

import pytest

from aiobus.mesh.peers import RELINK
from aiobus.mesh.sockets import RETRANSMIT, TCP_RTO_MAX_MS
from aiobus.sequence import LEFT
from faults.desk import LOOPS, Desk, Process
from faults.namespaces import Wire, move, why_not
from faults.scenario import Scenario, prove, scenario
from faults.signs import TAKE, WATCH

pytestmark = [
    pytest.mark.usefixtures("no_task_is_left"),
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.timeout(60),
]

BOTH, FIRST, SECOND = frozenset({0, 1}), frozenset({0}), frozenset({1})
LONG = 10.0
"""Seconds from which on there is less load: what is published in 120 s is to be in history."""
HOSTS = FIRST_HOST, SECOND_HOST = "127.77.0.1", "127.77.0.2"
_ports = count(7001)

LENIENT_UNTIL = "return bus._transport.session.links._lenient_until"


class Pair:
    """Two bots on two hosts, and the wire between them."""

    def __init__(self, desk: Desk, wire: Wire, bots: list[Process]) -> None:
        self.desk = desk
        self.wire = wire
        self.bots = bots

    async def load(self, pace: float) -> None:
        """Both publish from now on, so many events a second."""
        for bot in self.bots:
            await bot.do("load", pace, bot.name)

    async def signs(self) -> list[list[list[Any]]]:
        """What each has said of the other since it was asked last."""
        return [await bot.actor(TAKE) for bot in self.bots]

    async def cut(self, directions: Collection[int], seconds: float) -> None:
        """Cut the wire for so long, under load, and see that both recover."""
        await self.load(500 if seconds < LONG else 50)
        await self.meet()
        await self.signs()
        began = time.monotonic()
        self.wire.cut = frozenset(directions)
        await asyncio.sleep(seconds)
        self.wire.cut = frozenset()
        healed = time.monotonic()
        await self.recovered(healed)
        both = await self.signs()
        # The second cannot reach the first's address, and does not sit on a dead connection.
        assert seconds < 12 or any(kind == "unmet" for kind, _ in both[1])
        for bot, signs in zip(self.bots, both, strict=True):
            # A bus that was itself held up, on a busy machine, judges no peer for a while.
            if await bot.actor(LENIENT_UNTIL) < began:
                check(signs, began, healed, is_one_way=len(directions) == 1)

    async def meet(self) -> None:
        """The load arrives."""
        for bot in self.bots:
            await bot.do("until_handled", await bot.actor("return self.bot.handled") + 50)

    async def recovered(self, healed: float) -> None:
        """Both have what was published until now."""
        places = [await bot.do("pause") for bot in self.bots]
        waits = [
            bot.do("until", *place) for bot, place in zip(self.bots, reversed(places), strict=True)
        ]
        self.desk.recoveries.append(max(await asyncio.gather(*waits)) - healed)


def check(signs: list[list[Any]], began: float, healed: float, *, is_one_way: bool) -> None:
    """What a bus said of one that was silent so long is true and in time."""
    length, late = healed - began, [(kind, round(at - began, 2)) for kind, at in signs]
    stale = [at - began for kind, at in signs if kind == "stale"]
    # The last sign of life came up to a second before the cut, and is judged once a second. One
    # way, more comes until the kernel sends nothing without an acknowledgement: for seconds.
    assert len(stale) == (length > 3) or (is_one_way and length < 6), late
    assert all(1.9 < seconds < (9 if is_one_way else 4.6) for seconds in stale), late
    relinks = [at - began for kind, at in signs if kind == "relink"]
    # A link that is only silent is kept until its endpoint accepts, which it does not before.
    assert all(seconds > length for seconds in relinks), late
    assert not relinks or length > RELINK - 1.1, late
    if length < 15:
        assert all(kind in ("stale", "relink", "unmet") for kind, _ in signs), late


async def pair(desk: Desk) -> Pair:
    """A bus on each of two hosts, that have heard each other."""
    urls = [f"tcp://{FIRST_HOST}:{next(_ports)}"]
    # A bus listens on the host of its first address.
    urls.append(f"tcp://{SECOND_HOST}:{next(_ports)},{urls[0].removeprefix('tcp://')}")
    actors = [await desk.nursery.actor(desk.dice.choice(LOOPS)) for _ in urls]
    devices = [await move(each, host) for each, host in zip(actors, HOSTS, strict=True)]
    wire = Wire(*devices, desk.dice.randrange(2**32))
    desk.at_end.callback(wire.close)
    bots = []
    for actor, name, url in zip(actors, "AB", urls, strict=True):
        bots.append(await desk.hire(actor, name, url))
        await actor(WATCH)
    for bot, other in (bots, bots[::-1]):
        await bot.do("hear", other.name)
    return Pair(desk, wire, bots)


def can_hurry() -> bool:
    """True where the kernel can be told not to double its pauses without end (Linux 6.15)."""
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, int(RETRANSMIT * 1000))
        except OSError:
            return False
    return True


def cut(
    title: str, directions: frozenset[int], short: float, full: float, *transports: str
) -> Scenario:
    """A scenario: a second, so long, and a second again; or once for very long."""

    @scenario(title, soak=3, transports=transports or ("tcp", "keys"), weight=3, gaps=[LEFT])
    async def play(desk: Desk) -> None:
        made = await pair(desk)
        length = desk.scale.length(short, full)
        desk.size = f"{length:.3g} s"
        for seconds in (length,) if length > LONG else (1.0, length, 1.0):
            await made.cut(directions, seconds)

    return play


CUTS = [
    cut("a network that is cut both ways", BOTH, 5.0, 120.0),
    cut("a network that is cut one way", FIRST, 5.0, 120.0),
    cut("a network that is cut the other way", SECOND, 5.0, 120.0),
    cut("a network that is cut until links are tried again", BOTH, 12.5, 20.0, "keys", "tcp"),
]
HURRIED = cut("a network that is cut until the kernel hardly tries", BOTH, 7.0, 7.0, "keys", "tcp")


@scenario("a network with 100 ms and 2 % loss", soak=3, transports=("tcp", "keys"))
async def far(desk: Desk) -> None:
    """Each way, for 5 s."""
    made = await pair(desk)
    made.wire.delay, made.wire.loss = 0.1, 0.02
    await made.load(500)
    await asyncio.sleep(5)
    assert min(made.wire.lost) > 0
    await made.recovered(time.monotonic())
    for signs in await made.signs():
        assert [kind for kind, _ in signs if kind in ("stale", "peer_left")] == []


@pytest.mark.one_loop
async def test_a_bus_that_was_cut_off_has_all_that_it_missed_and_nothing_twice() -> None:
    """Both ways, one way and the other, three cuts each; and one for which links are tried."""
    await prove(*CUTS, *([HURRIED] if can_hurry() else []), far, rounds=1)
