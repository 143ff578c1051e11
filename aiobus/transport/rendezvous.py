"""`tcp://host:port[,host:port...]`: members meet at addresses that everybody knows.

Owns what one member does there: serve at each address that is free, stay connected to every one,
take over those whose holder goes, and tell of whoever it hears of. Must not know of queries, links
or heartbeats, nor who deserves a name: it says who listens where.
"""

import asyncio
import errno
import logging
import math
import socket
from collections.abc import Callable, Collection
from contextlib import suppress
from contextvars import Context

from aiobus.transport.address import Address, address_of, addresses_in
from aiobus.transport.holder import CHUNK, Holder, keep_alive
from aiobus.transport.meeting import Member, Told
from aiobus.transport.roster import (
    MAX_ROSTER,
    Lines,
    Malformed,
    Met,
    hello_line,
    is_possible,
    parse_roster,
)

__all__ = ["Rendezvous"]

log = logging.getLogger("aiobus.transport")

HEIR_SECONDS = 0.5
"""Between taking an address over in `join` and asking who is there."""
ANSWER_SECONDS = 2.0
PROBE_SECONDS = 1.0
PROBES = 64
"""Probes under way at once: each takes a descriptor."""
FIRST_PAUSE = 0.05
LAST_PAUSE = 0.5
CONNECT_SECONDS = 1.0
"""A network that is there again is noticed by the next attempt; the kernel's own get slower."""


class Place:
    """One address and how this member stands there."""

    def __init__(self, address: Address, ready: asyncio.Future[None]) -> None:
        self.address = address
        self.holder: Holder | None = None
        self.ready = ready
        """Done once this member serves here or somebody has answered."""
        self.was_answered = False
        """True once somebody has: serving here is from then on taking over."""
        self.trouble = "nobody serves there"
        """What is wrong while `ready` is not done, for people."""

    def be_ready(self) -> None:
        """This member serves here, or somebody has answered."""
        if not self.ready.done():
            self.ready.set_result(None)


class Rendezvous:
    """The meeting at `addresses`, what follows `tcp://` in a URL. Nothing is opened before `join`.

    Raises ValueError when they cannot be served. Members of one bus are to be given the same
    addresses: nobody tells at one whom it has met at another.
    """

    def __init__(self, addresses: str) -> None:
        self._addresses = addresses_in(addresses)
        self.refused = 0
        """Connections ended, or not served, because of what the other side did."""
        self._refusal_logged = -math.inf
        self._me: Member | None = None
        self._met = Met()
        self._found: Callable[[Member], None] | None = None
        self._places: list[Place] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def held(self) -> frozenset[str]:
        """The addresses, as `host:port`, at which this member serves."""
        return frozenset(str(place.address) for place in self._places if place.holder is not None)

    async def join(
        self, name: str, bind: Callable[[str], str], found: Callable[[Member], None]
    ) -> list[Member]:
        """Take a place under `name` at every address and return who is there, this member excepted,
        somebody else of its name included. Once per object.

        Waits at most 2 s for addresses that do not answer (a warning names them, and they are
        attended to all the same), 0.5 s where somebody else has served until just now, and 1 s to
        leave out members who refuse a connection. `found` is
        told of others from then on, not before this returns. Raises ValueError when `name`, or the
        endpoint that `bind` returns, cannot be. Cancelling or failing leaves nothing open.
        """
        loop = asyncio.get_running_loop()
        me = Member(name, bind(self._addresses[0].with_port("*")))
        if not self.admits(me):
            raise ValueError(f"{me} cannot be a member here")
        self._me = me
        self._places = [Place(address, loop.create_future()) for address in self._addresses]
        self._tasks = [
            loop.create_task(
                self._attend(place, me),
                name=f"aiobus {name} rendezvous {place.address}",
                context=Context(),
            )
            for place in self._places
        ]
        try:
            await asyncio.wait([place.ready for place in self._places], timeout=ANSWER_SECONDS)
            for place in self._places:
                if not place.ready.done():
                    log.warning(
                        "%s joins without %s: %s. It goes on with whom it met elsewhere, and hears"
                        " of others once that address answers",
                        *(name, place.address, place.trouble),
                    )
            if any(place.holder is not None and place.holder.is_heir for place in self._places):
                # Whoever was served here before this member comes back at once, and nobody else
                # could tell who that is.
                await asyncio.sleep(HEIR_SECONDS)
            self._met.forget(await _refusing([*self._met]))
        except BaseException:
            await self.leave()
            raise
        self._found = found
        return [*self._met]

    def admits(self, member: Member) -> bool:
        """True when `member` has a valid name and an endpoint on this machine."""
        return is_possible(member)

    def remember(self, member: Member) -> None:
        """Somebody was met on the bus: told of by whoever serves next, which may be this member."""
        self._met.learn([member])

    def watch(self, told: Told, bind: Callable[[str], str]) -> None:
        """Nothing to do: the tasks that attend to the addresses see to it."""

    async def accepting(self, members: Collection[Member]) -> list[Member]:
        """Those of `members` who accept a connection. Waits 1 s at most."""
        return [member for member, accepts in (await _probed(members)).items() if accepts]

    async def absent(self, members: Collection[Member]) -> list[Member]:
        """Those of `members` who refuse a connection. Waits 1 s at most; who has not answered by
        then is given the benefit of the doubt.
        """
        return await _refusing(members)

    def mine(self, address: object) -> bool:
        """True when `address` is one of the rendezvous, this member's or that of a member it has
        heard of: what a forked child must not keep open.
        """
        match address:
            case (str(host), int(port), *_):
                endpoint = Address(host, port).endpoint
            case _:
                return False
        members = [*self._met] if self._me is None else [self._me, *self._met]
        return any(endpoint == own.endpoint for own in (*self._addresses, *members))

    def descriptors(self) -> set[int]:
        """None: everything it opens is a socket that `mine` tells."""
        return set()

    async def leave(self) -> None:
        """Give every address up and end every connection; the others notice at once. Again, or
        before `join`: nothing. Cancelling it does not stop it.
        """
        for place in self._places:
            if place.holder is not None:
                place.holder.close()
                place.holder = None
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _attend(self, place: Place, me: Member) -> None:
        """Be connected to who serves at one address, until it is this member itself."""
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            is_answered, began = False, loop.time()
            try:
                # Before any pause: the others wait for somebody to do it.
                if self._serve(place, me):
                    return
                await asyncio.sleep(pause)
                began = loop.time()
                is_answered = await self._visit(place, me)
            except Exception:
                log.exception("%s at %s failed and tries again", me.name, place.address)
            if is_answered:
                # A holder that answers and hangs up at once is not to be called without end.
                pause = 0.0 if loop.time() - began > FIRST_PAUSE else FIRST_PAUSE
            else:
                pause = min(max(FIRST_PAUSE, 2 * pause), LAST_PAUSE)

    def _serve(self, place: Place, me: Member) -> bool:
        """Serve at an address from now on, if nobody does. True when that was done."""
        address = place.address
        try:
            place.holder = Holder(
                address,
                me,
                [*self._met],
                came=lambda member: self._learn([member], me),
                refused=lambda reason: self._refuse(address, reason),
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                place.trouble = f"nobody serves there and this process cannot ({error.strerror})"
            return False
        if place.was_answered:
            log.info("%s has taken over %s: its holder has gone", me.name, address)
        else:
            log.debug("%s serves at %s", me.name, address)
        place.be_ready()
        return True

    async def _visit(self, place: Place, me: Member) -> bool:
        """Be connected to the holder of an address until that ends. True when it has answered."""
        is_answered = False
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                sock = await _connected(place.address)
            with sock:
                keep_alive(sock)
                log.debug("%s is connected to %s", me.name, place.address)
                place.trouble = "whoever holds that address accepts connections but does not answer"
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(sock, hello_line(me))
                lines = Lines(MAX_ROSTER)
                while data := await loop.sock_recv(sock, CHUNK):
                    for line in lines.feed(data):
                        self._learn(parse_roster(line), me)
                        is_answered = place.was_answered = True
                        place.be_ready()
            log.debug("%s: the connection to %s has ended", me.name, place.address)
        except Malformed as error:
            place.trouble = "whoever holds that address is no aiobus"
            self._refuse(place.address, f"its holder sent {error}")
            return False
        except OSError as error:
            what = str(error) or f"no answer within {CONNECT_SECONDS:g} s"
            log.debug("%s: no connection to %s: %s", me.name, place.address, what)
        return is_answered

    def _learn(self, members: list[Member], me: Member) -> None:
        # Somebody else of my name is told of: who deserves it is not decided here.
        for member in self._met.learn(member for member in members if member != me):
            if self._found is None:
                continue
            try:
                self._found(member)
            except Exception:
                log.exception("%s was found, but not taken up", member)

    def _refuse(self, address: Address, reason: str) -> None:
        """Count a refused connection; say so at most once a second."""
        self.refused += 1
        now = asyncio.get_running_loop().time()
        if now - self._refusal_logged >= 1:
            self._refusal_logged = now
            log.warning("%s: refused a connection: %s (%d so far)", address, reason, self.refused)


async def _connected(address: Address) -> socket.socket:
    """A connection to `address`. Raises OSError; cancelling leaves nothing open."""
    sock = socket.socket(socket.AF_INET6 if address.is_v6 else socket.AF_INET)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
        if sock.getsockname() == sock.getpeername():
            # Nobody listens, and by chance the kernel gave the socket that very port.
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens at {address}")
    except BaseException:
        sock.close()
        raise
    return sock


async def _refusing(members: Collection[Member]) -> list[Member]:
    """Those of `members` at whose endpoint nobody listens. Waits at most 1 s; who has not answered
    by then is given the benefit of the doubt.
    """
    return [member for member, accepts in (await _probed(members)).items() if not accepts]


async def _probed(members: Collection[Member]) -> dict[Member, bool]:
    """Who of `members` accepts a connection and who refuses one; within 1 s."""
    found: dict[Member, bool] = {}
    gate = asyncio.Semaphore(PROBES)

    async def probe(member: Member) -> None:
        if (address := address_of(member.endpoint)) is None:
            return
        async with gate:
            try:
                (await _connected(address)).close()
                found[member] = True
            except ConnectionRefusedError:
                found[member] = False
            except OSError as error:
                log.debug("%s at %s cannot be probed: %s", *member, error)

    with suppress(TimeoutError):
        async with asyncio.timeout(PROBE_SECONDS), asyncio.TaskGroup() as group:
            for member in members:
                name = f"aiobus probe {member.name}"
                group.create_task(probe(member), name=name, context=Context())
    return found
