"""Whether something listens at a tcp address of this machine, and whether this process may.

Owns the connections that are made to find out. Must not know what is said over them.


`tcp://host:port[,host:port...]`: members meet at addresses that everybody knows.

Owns what one member does there: hold one address that is free, stay connected to the holder of each
other one, tell of the members that it hears of, and say which addresses are in doubt. Must not know
of queries, links or heartbeats, nor who deserves a name: it says who listens where.

A member holds one address at most, so that a frozen process blocks one address at most."""

import asyncio
import errno
import logging
import math
import socket
from collections.abc import Callable, Collection
from contextlib import suppress
from contextvars import Context

from aiobus.clock import elapsed
from aiobus.discovery import Member, Told
from aiobus.discovery.registry import CHUNK, Registry, keep_alive
from aiobus.discovery.roster import (
    MAX_ROSTER,
    Address,
    Lines,
    Malformed,
    Met,
    address_of,
    addresses_in,
    hello_line,
    is_possible,
    parse_roster,
)
from aiobus.errors import BusError

__all__ = [
    "Rendezvous",
    "ban",
    "connected",
    "is_left_open",
    "probed",
]

log = logging.getLogger("aiobus.mesh")

PROBE_SECONDS = 1.0
CLOSE_WAIT = "08"
PROBES = 64
"""Probes under way at once: each takes a descriptor."""


def ban(address: Address) -> str:
    """Why this process may not listen at `address`, or an empty text when it may, unless another
    does. Also asked where this member does not want to listen: the next one may have to.
    """
    try:
        with socket.socket(socket.AF_INET6 if address.is_v6 else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return str(error.strerror)
    return ""


def is_left_open(address: Address) -> bool:
    """True when a connection to a former holder of `address` has not been closed at its other end:
    the member there is frozen, or it would have. Also True when there is no descriptor to find out
    with. Only Linux tells; elsewhere False.
    """
    packed = socket.inet_pton(socket.AF_INET6 if address.is_v6 else socket.AF_INET, address.host)
    words = [packed[at : at + 4][::-1].hex().upper() for at in range(0, len(packed), 4)]
    remote = f"{''.join(words)}:{address.port:04X}"
    try:
        with open(f"/proc/net/{'tcp6' if address.is_v6 else 'tcp'}") as table:
            return any(row.split()[2:4] == [remote, CLOSE_WAIT] for row in table)
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)


async def connected(address: Address) -> socket.socket:
    """A connection to `address`. Raises OSError; cancelling leaves nothing open."""
    sock = socket.socket(socket.AF_INET6 if address.is_v6 else socket.AF_INET)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
        if sock.getsockname() == sock.getpeername():
            # No process listens. By chance the kernel gave this socket that very port.
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens at {address}")
    except BaseException:
        sock.close()
        raise
    return sock


async def probed(members: Collection[Member]) -> dict[Member, bool]:
    """Which of `members` accept a connection (True) and which refuse one. Waits at most 1 s; one
    that has done neither by then is left out.
    """
    found: dict[Member, bool] = {}
    gate = asyncio.Semaphore(PROBES)

    async def probe(member: Member) -> None:
        if (address := address_of(member.endpoint)) is None:
            return
        async with gate:
            try:
                (await connected(address)).close()
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


HEIR_SECONDS = 0.5
"""Between taking an address over in `join` and asking who is there."""
ANSWER_SECONDS = 2.0
"""For which `join` waits for an address, and after which one that does not answer is unreached."""
CENSUS_SECONDS = 3.0
"""Between two looks of a holder at the members that are not connected to it."""
FIRST_PAUSE = 0.05
LAST_PAUSE = 0.5
CONNECT_SECONDS = 1.0
"""A network that is there again is noticed by the next attempt; the kernel's own get slower."""


class Place:
    """One address and how this member stands there."""

    def __init__(self, address: Address, ready: asyncio.Future[None]) -> None:
        self.address = address
        self.holder: Registry | None = None
        self.ready = ready
        """Done once it is known which members can be met here."""
        self.was_answered = False
        """True once a holder has answered: holding the address is from then on taking it over."""
        self.ban = ban(address)
        """Why this process may not listen here, or an empty text."""
        self.trouble = "nobody serves there"
        """What is wrong while `ready` is not done, for people."""
        self.is_wrong = False
        """True when no member can be met here: something else is here, or a member may not be."""
        self._doubted_since: float | None = -math.inf

    def doubt(self, since: float) -> None:
        """It has not been known since then which members can be met here."""
        if self._doubted_since is None:
            self._doubted_since = since

    def be_sure(self) -> None:
        """This member serves here, a holder has answered, or nothing listens here."""
        self._doubted_since = None
        self.is_wrong = False
        if not self.ready.done():
            self.ready.set_result(None)

    @property
    def is_unreached(self) -> bool:
        """True when there may be members here that cannot be met."""
        since = self._doubted_since
        return since is not None and elapsed() - since >= ANSWER_SECONDS


class Rendezvous:
    """The meeting at `addresses`, what follows `tcp://` in a URL. Nothing is opened before `join`.

    Raises ValueError when they cannot be served. Members of one bus are to be given the same
    addresses: a holder hears of the members at another address by being connected to it.
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

    @property
    def unreached(self) -> list[str]:
        """The addresses, as `tcp://host:port`, that have not answered: there may be members that
        this one has not met. An address counts from when `join` has waited 2 s for it, or 2 s after
        its holder was lost, until it answers, is held by this member, or refuses a connection while
        this member holds another one.
        """
        return [place.address.endpoint for place in self._places if place.is_unreached]

    async def join(
        self, name: str, bind: Callable[[str], str], found: Callable[[Member], None]
    ) -> list[Member]:
        """Take a place under `name` at every address and return who is there, this member excepted,
        somebody else of its name included. Once per object.

        Waits at most 2 s for addresses that do not answer (a warning names them, `unreached` lists
        them, and they are tried again all the same), 0.5 s where another member has served until
        just now, and 1 s to leave out members who refuse a connection. `found` is told of others
        from then on, not before this returns. Raises ValueError when `name`, or the endpoint that
        `bind` returns, cannot be; BusError when something else than a bus answers at an address, or
        when nothing does and this process may not listen there. Cancelling or failing leaves
        nothing open.
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
            late = [place for place in self._places if not place.ready.done()]
            for place in late:
                if place.is_wrong:
                    raise BusError(
                        f"{place.address.endpoint} cannot be a meeting address: {place.trouble}."
                        " Free that address, or give every bus of this desk another one"
                    )
            for place in late:
                log.warning(
                    "%s joins without %s: %s. It goes on with whom it met elsewhere, and hears"
                    " of others once that address answers",
                    *(name, place.address, place.trouble),
                )
            for place in self._places:
                if place.holder is None:
                    continue
                if place.holder.is_heir:
                    # The members that were served here before come back at once, and no other one
                    # could tell which they are.
                    await asyncio.sleep(HEIR_SECONDS)
                if is_left_open(place.address):
                    log.warning(
                        "%s has taken over %s, and a member that was there is frozen: it is not"
                        " known which",
                        *(name, place.address),
                    )
                    place.doubt(-math.inf)
            self._met.forget(await self.absent([*self._met]))
        except BaseException:
            await self.leave()
            raise
        self._found = found
        return [*self._met]

    def admits(self, member: Member) -> bool:
        """True when `member` has a valid name and an endpoint on this machine."""
        return is_possible(member)

    def remember(self, member: Member) -> None:
        """A member was met on the bus: it is on the roster of this member, if that is a holder now
        or later.
        """
        self._tell(self._met.learn([member]))

    def watch(self, told: Told, bind: Callable[[str], str]) -> None:
        """Nothing to do: the tasks that attend to the addresses see to it."""

    async def accepting(self, members: Collection[Member]) -> list[Member]:
        """Those of `members` who accept a connection. Waits 1 s at most."""
        return [member for member, accepts in (await probed(members)).items() if accepts]

    async def absent(self, members: Collection[Member]) -> list[Member]:
        """Those of `members` who refuse a connection. Waits 1 s at most; who has not answered by
        then is given the benefit of the doubt.
        """
        return [member for member, accepts in (await probed(members)).items() if not accepts]

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
        """Be connected to the holder of one address, or be it."""
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            is_answered, began = False, loop.time()
            try:
                if place.holder is not None:
                    await self._count(place, place.holder)
                    continue
                # Before any pause: the others wait for one member to do it.
                if not self.held and self._serve(place, me):
                    continue
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
        """Hold an address from now on, if no other member does. True when that was done."""
        address = place.address
        try:
            place.holder = Registry(
                address,
                me,
                self._met,
                came=lambda member: self._learn([member], me),
                refused=lambda reason: self._refuse(address, reason),
            )
        except OSError as error:
            log.debug("%s cannot serve at %s: %s", me.name, address, error)
            return False
        if place.was_answered:
            log.info("%s has taken over %s: its holder has gone", me.name, address)
        else:
            log.debug("%s serves at %s", me.name, address)
        place.be_sure()
        return True

    async def _count(self, place: Place, holder: Registry) -> None:
        """Forget, a while from now, the members that are not connected here and do not listen any
        more. One that only lost its connection may be frozen, and its name is not free.
        """
        await asyncio.sleep(CENSUS_SECONDS)
        self._met.forget(await self.absent(holder.absent))
        if place.is_unreached and not is_left_open(place.address):
            place.be_sure()

    async def _visit(self, place: Place, me: Member) -> bool:
        """Be connected to the holder of an address until that ends. True when it has answered."""
        place.doubt(elapsed())
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                sock = await connected(place.address)
        except ConnectionRefusedError:
            self._miss(place)
            return False
        except OSError as error:
            what = str(error) or f"no answer within {CONNECT_SECONDS:g} s"
            log.debug("%s: no connection to %s: %s", me.name, place.address, what)
            place.trouble = f"it cannot be reached ({what})"
            return False
        with sock:
            keep_alive(sock)
            log.debug("%s is connected to %s", me.name, place.address)
            return await self._listen(place, sock, me)

    def _miss(self, place: Place) -> None:
        """Nothing listens at an address."""
        place.is_wrong = bool(place.ban)
        if place.ban:
            place.trouble = f"nothing listens there, and this process may not ({place.ban})"
        elif self.held:
            place.be_sure()  # it is left to a member that holds none
        else:
            place.trouble = "nobody serves there, and it is in use all the same"

    async def _listen(self, place: Place, sock: socket.socket, me: Member) -> bool:
        """Hear the holder of an address until the connection ends. True when it has answered."""
        loop, lines, is_answered = asyncio.get_running_loop(), Lines(MAX_ROSTER), False
        place.trouble = "whatever holds that address accepts connections but does not answer"
        try:
            await loop.sock_sendall(sock, hello_line(me))
            while data := await loop.sock_recv(sock, CHUNK):
                # A greeting of another protocol may never become a line.
                place.trouble, place.is_wrong = "what answers there is no aiobus", not is_answered
                for line in lines.feed(data):
                    self._learn(parse_roster(line), me)
                    is_answered = place.was_answered = True
                    place.be_sure()
        except Malformed as error:
            place.trouble, place.is_wrong = f"what answers there is no aiobus ({error})", True
            self._refuse(place.address, f"its holder sent {error}")
            return False
        except OSError as error:
            log.debug("%s: the connection to %s broke: %s", me.name, place.address, error)
        else:
            log.debug("%s: the connection to %s has ended", me.name, place.address)
        if not is_answered:
            place.trouble, place.is_wrong = "what holds it ends each connection unanswered", True
        return is_answered

    def _learn(self, members: list[Member], me: Member) -> None:
        # Somebody else of my name is told of: who deserves it is not decided here.
        news = self._met.learn(member for member in members if member != me)
        self._tell(news)
        for member in news:
            if self._found is None:
                continue
            try:
                self._found(member)
            except Exception:
                log.exception("%s was found, but not taken up", member)

    def _tell(self, news: list[Member]) -> None:
        """What this member hears at one address, or on the bus, is known where it holds one."""
        for place in self._places:
            if place.holder is not None:
                place.holder.tell(news)

    def _refuse(self, address: Address, reason: str) -> None:
        """Count a refused connection; say so at most once a second."""
        self.refused += 1
        now = asyncio.get_running_loop().time()
        if now - self._refusal_logged >= 1:
            self._refusal_logged = now
            log.warning("%s: refused a connection: %s (%d so far)", address, reason, self.refused)
