"""`tcp://host:port[,host:port...]`: members meet at rendezvous addresses, which every member knows.

Owns what one member does at all of them together: where it listens and what others are told of
that, its start and its end, and the members that it has heard of anywhere. What it does at one
address is in `meeting`. Must not know of queries, links or heartbeats, nor which of two members may
keep a name.

A member serves at one address at most, so a frozen process blocks one address at most.

The addresses may be those of several hosts. One that refuses and that this host cannot bind is of
another host, which has no bus yet: it is asked again until one is there.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from contextvars import Context

from aiobus.clock import elapsed
from aiobus.discovery import CAUSES, OBSERVES, DiscoveryCallbacks, Member, is_observer, place_of
from aiobus.discovery.hosts import Resolver, outward
from aiobus.discovery.meeting import CONNECT_SECONDS, MeetingPoint, Party
from aiobus.discovery.refusal import Refused, Repeats
from aiobus.discovery.roster import (
    Address,
    KnownMembers,
    Place,
    advertise_in,
    is_possible,
    listen_in,
    places_in,
)
from aiobus.discovery.tcp_socket import has_half_closed, probe_all
from aiobus.errors import BusError, KeyringError
from aiobus.keyring import Keyring

__all__ = ["Rendezvous"]

log = logging.getLogger("aiobus.mesh")

SUCCESSION_SECONDS = 0.5
"""For which `join` waits after a takeover: the members of the previous registry reconnect."""
ANSWER_SECONDS = 2.0
"""For which `join` waits for an address; an address without an answer is unreached after it."""


class Rendezvous:
    """The discovery of the members at `addresses`, the part of a URL after `tcp://`. Nothing is
    opened before `join`.

    `listen`: where this member listens, a `host` or `host:port` of this host; `0.0.0.0` and `[::]`
    are all of its addresses. By default a free port of the address that others see.
    `advertise`: what others are told instead, if they reach it by another address, name or port.

    Raises ValueError if one of these is invalid. Give every member of a bus the same addresses: a
    registry hears of the members at another address only by its own connection to it.

    With a `keyring`, every line is sealed by a secret of the desk, and members without one are
    refused, as registries or as guests. The secrets are read anew for each connection.
    """

    def __init__(
        self,
        addresses: str,
        keyring: Keyring | None = None,
        *,
        listen: str | None = None,
        advertise: str | None = None,
    ) -> None:
        self.keyring = keyring
        """The keys of the desk; None on a desk without."""
        self._callbacks: DiscoveryCallbacks | None = None
        self._repeats = Repeats()
        self._places = places_in(addresses)
        self._own = None if listen is None else listen_in(listen)
        self._advertise = None if advertise is None else advertise_in(advertise)
        self.is_loopback = all(each.is_loopback for each in self._places) and (
            self._own is None or self._own.is_loopback
        )
        """True if only processes of this host can be members: the addresses are loopback, and where
        this member listens is so too.
        """
        if self.is_loopback and not (self._advertise is None or self._advertise.is_loopback):
            raise ValueError(
                f"advertise={advertise!r}: this bus listens on a loopback address, which no other"
                " host reaches, as all of this url are; give listen= too, such as listen='0.0.0.0'"
            )
        told = self._advertise or self._own
        if not self.is_loopback and told is not None and told.is_loopback:
            given = f"advertise={advertise!r}" if self._advertise else f"listen={listen!r}"
            raise ValueError(
                f"{given}: no other host reaches a loopback address; give advertise= an address"
                " that it reaches"
            )
        self.out_of_reach: list[Member] = []
        """The members that `join` has returned though their host does not answer."""
        self._outward = ""
        """The address of this host that others see, once it is known."""
        self.refused = 0
        """Connections that were ended or not served because of what the other side did."""
        self._me = Member("", "")
        self._known = KnownMembers()
        self._on_discovered: Callable[[Member], None] | None = None
        self._points: list[MeetingPoint] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def held(self) -> frozenset[str]:
        """The addresses, as `host:port`, at which this member serves."""
        return frozenset(str(each.place) for each in self._points if each.registry is not None)

    @property
    def endpoint(self) -> str:
        """What others are told of where this member listens; "" before `join` has bound it."""
        return self._me.endpoint

    @property
    def unreached(self) -> list[str]:
        """The addresses, as `tcp://host:port`, that have not answered for 2 s: there may be members
        that this one has not met. It ends when an address answers, when this member serves there,
        or when it refuses a connection while this member serves at another one, or while it is
        that of another host and a registry at another address has answered.
        """
        now = elapsed()
        return [
            each.place.endpoint
            for each in self._points
            if each.reach.unknown_for(now) >= ANSWER_SECONDS
        ]

    async def join(
        self,
        name: str,
        bind: Callable[[str], str],
        on_discovered: Callable[[Member], None],
        *,
        observes: bool = False,
    ) -> list[Member]:
        """Be a member under `name` at every address; an observer serves at none, since nobody could
        meet there while it is frozen. Returns the other members, including one of
        the same name. Call it once.

        Waits at most 2 s for names to be resolved and for addresses that do not answer, of another
        host until one attempt to connect has timed out; 0.5 s after a takeover; and 1 s to leave
        out members that refuse a connection. A warning names the addresses that do not answer, and
        they are tried again. Raises ValueError if `name` or the endpoint that `bind` returns is
        invalid. Raises BusError if another program answers at an address, if the desk there has
        other keys and no registry at another address has proven these, if nothing listens there and
        this process may not though the address is of this host, if no address of this host is found
        or its `listen` is taken, and if the name of `advertise` cannot be resolved. Raises
        KeyringError if other hosts can reach this member and there is no keyring. Cancelling or
        failing leaves nothing open.
        """
        if self.keyring is None and not self.is_loopback:
            raise KeyringError(
                f"tcp://{','.join(map(str, self._places))} can be reached by other hosts, and"
                f" {name!r} has no keyring: whoever reaches it could send orders. Make its key once"
                f" on this host by `python -m aiobus keygen {name}`, and copy desk.members and"
                " desk.seal to the other hosts; then give keyring=Keyring.load('keys'), or set"
                " AIOBUS_KEYRING=keys. For one machine alone use tcp://127.0.0.1:port or ipc://"
            )
        loop = asyncio.get_running_loop()
        end = loop.time() + ANSWER_SECONDS
        self._points = [MeetingPoint(each, is_loopback=self.is_loopback) for each in self._places]
        try:
            bound = self._bind(bind, await self._own_address(name), observes=observes)
            me = Member(name, await self._advertised(name, bound))
            if not self.allows(me):
                raise ValueError(f"{me} cannot be a member here")
        except BaseException:
            await self.leave()
            raise
        self._me = me
        party = Party(
            *(me, self._points, self._known),
            is_loopback=self.is_loopback,
            outward=self._outward,
            secrets=self._secrets,
            on_members=self._learn,
            on_told=self._take_told,
            on_refused=self._on_refused,
        )
        self._tasks = [
            loop.create_task(
                each.run(party), name=f"aiobus {name} rendezvous {each.place}", context=Context()
            )
            for each in self._points
        ]
        try:
            ready = [each.ready for each in self._points]
            await asyncio.wait(ready, timeout=max(0.0, end - loop.time()))
            self._report_late(name)
            for point in self._points:
                if point.registry is None:
                    continue
                if point.registry.is_successor:
                    # The members of the previous registry reconnect now. Nothing else tells which
                    # members these are.
                    await asyncio.sleep(SUCCESSION_SECONDS)
                if has_half_closed(point.registry.address):
                    log.warning(
                        "%s has taken over %s, and an unknown member that was connected there is"
                        " frozen",
                        *(name, point.place),
                    )
                    point.reach.note_frozen()
            found = await probe_all([*self._known])
            self._known.forget([member for member, accepts in found.items() if not accepts])
            if not self.is_loopback:  # on this host it is a process that is frozen
                self.out_of_reach = [each for each in self._known if each not in found]
        except BaseException:
            await self.leave()
            raise
        self._on_discovered = on_discovered
        return [*self._known]

    def _report_late(self, name: str) -> None:
        """Say which addresses a start goes on without. Raises BusError if one is of no use."""
        late = [each for each in self._points if each.reach.is_vacant or not each.reach.is_known]
        for point in late:
            if point.reach.is_unusable:
                raise point.reach.error
        for point in late:
            log.warning(
                "%s joins without %s: %s. It is linked with the buses that it met at other"
                " addresses, and meets the rest once that address answers",
                *(name, point.place, point.reach.problem),
            )

    def allows(self, member: Member) -> bool:
        """True if `member` has a valid name, and an endpoint that a member of these addresses may
        have: loopback if only this host can take part, else one that other hosts may reach.
        """
        return is_possible(member, on_loopback=self.is_loopback)

    def remember(self, member: Member) -> None:
        """A member was met on the bus: the registry of this member, now or later, lists it."""
        self._announce(self._known.learn([member]))

    def watch(self, callbacks: DiscoveryCallbacks, bind: Callable[[str], str]) -> None:
        """End the connections that were sealed by a secret which the desk has no more: they are
        made again. The tasks of the addresses do the rest.
        """
        if self._callbacks is None:
            self._repeats = Repeats()  # what a start has logged is told to the user as well
        self._callbacks = callbacks
        if (secrets := self._secrets()) is None:
            return
        for point in self._points:
            point.end_outdated(secrets)

    def tell_refused(self, to: str, cause: str) -> None:
        """Let the member named `to` know that this one makes no link to it, and why. On every
        sealed way, since any of them may end at a frozen registry. Raises ValueError if `cause` is
        none of CAUSES.
        """
        if cause not in CAUSES:
            raise ValueError(f"{cause!r} is none of {', '.join(sorted(CAUSES))}")
        if self.keyring is None:
            return
        refused = Refused(self._me.name, to, cause)
        for point in self._points:
            point.tell(refused)

    async def probe_accepting(self, members: Collection[Member]) -> list[Member]:
        """The members that accept a connection. Waits 1 s at most."""
        return [member for member, accepts in (await probe_all(members)).items() if accepts]

    async def probe_absent(self, members: Collection[Member]) -> list[Member]:
        """The members that refuse a connection. Waits 1 s at most; a member that has not answered
        by then is not absent.
        """
        return [member for member, accepts in (await probe_all(members)).items() if not accepts]

    def owns_address(self, address: object) -> bool:
        """True if `address` is a rendezvous address, or the endpoint of this or of a known member:
        a forked child must not keep such a socket open.
        """
        match address:
            case (str(host), int(port), *_):
                endpoint = Address(host, port).endpoint
            case _:
                return False
        places = (point.address for point in self._points)
        own = {each.endpoint for each in places if each is not None}
        own.update(place_of(each.endpoint) for each in (self._me, *self._known))
        return endpoint in own

    def descriptors(self) -> set[int]:
        """None: `owns_address` recognises every socket of this object."""
        return set()

    async def leave(self) -> None:
        """Free every address and end every connection; other members notice at once. Again, or
        before `join`: no effect. Cancelling it does not stop it.
        """
        looking = [each for point in self._points if (each := point.close())]
        for task in self._tasks:
            task.cancel()
        if ending := [*self._tasks, *looking]:
            await asyncio.wait(ending)

    # Where this member is.

    async def _own_address(self, name: str) -> Address:
        """Where to listen. Port 0 is any free one."""
        if self.is_loopback:
            host, port = self._own or (self._places[0].host, 0)
            return Address(host, port)
        wait = min(CONNECT_SECONDS, ANSWER_SECONDS / 2)
        async with asyncio.TaskGroup() as group:
            for point in self._points:
                group.create_task(point.resolve(wait), context=Context())
        is_v6, problem = None, ""
        if self._own is not None and self._own.host != "::":
            is_v6 = Address(*self._own).is_v6
        toward = [point.address for point in self._points if point.address is not None]
        try:
            self._outward = outward(toward, is_v6=is_v6)
        except OSError as error:
            problem = str(error.strerror)
        given = None if self._own is None else Address(*self._own)
        if given is not None and not (given.is_wildcard or given.is_loopback):
            self._outward = given.host
        for point in self._points:
            point.leave_loopback(name, self._outward)
        if given is not None and (self._outward or self._advertise is not None):
            return given
        if given is None and self._outward:
            return Address(self._outward, 0)
        raise BusError(
            f"{name} finds no address of this host that others could reach ({problem}). Give it"
            " one: listen='10.0.0.5', or listen='0.0.0.0' with what others are told as advertise="
        )

    def _bind(self, bind: Callable[[str], str], own: Address, *, observes: bool) -> str:
        endpoint = own.with_port(own.port or "*")
        try:
            return bind(endpoint + OBSERVES if observes else endpoint)
        except OSError as error:
            if self._own is None:
                raise
            raise BusError(
                f"listen={str(own) if own.port else own.host!r}: this bus cannot listen there"
                f" ({error.strerror or error}). Give every bus of a host a port of its own, or"
                " leave the port out for any free one"
            ) from error

    async def _advertised(self, name: str, bound: str) -> str:
        """The endpoint that others are told, of one that is bound."""
        end = OBSERVES if is_observer(bound) else ""
        host, port = _split(place_of(bound))
        place = self._advertise or Place(host, port)
        resolver = Resolver(place)
        try:
            address = await resolver.address(ANSWER_SECONDS / 2)
        except OSError as error:
            raise BusError(
                f"advertise={place.host!r}: it cannot be resolved here ({error.strerror or error});"
                " give the address itself"
            ) from error
        finally:
            resolver.cancel()
        if self._advertise is None and not address.is_wildcard:
            return bound
        is_renamed = address.is_loopback and not self.is_loopback and bool(self._outward)
        if address.is_wildcard or is_renamed:
            if is_renamed:
                text = "%s: %s is %s on this host, which no other host reaches: others are told %s"
                log.info(text, name, place.host, address.host, self._outward)
            address = Address(self._outward, address.port)
        return Address(address.host, address.port or port).endpoint + end

    # What is heard at any address.

    def _secrets(self) -> Sequence[bytes] | None:
        """The secrets of the desk as they are now; None if it has no keys."""
        return None if self.keyring is None else self.keyring.desk_secrets

    def _take_told(self, source: str, cause: str) -> None:
        if self._callbacks is not None:
            self._callbacks.on_told(source, cause)

    def _learn(self, members: list[Member]) -> None:
        # Another member with this name is reported too: who keeps it is decided elsewhere.
        news = self._known.learn(member for member in members if member != self._me)
        self._announce(news)
        for member in news:
            if self._on_discovered is None:
                continue
            try:
                self._on_discovered(member)
            except Exception:
                log.exception("%s was found, but could not be linked", member)

    def _announce(self, news: list[Member]) -> None:
        """Announce members, heard of at any address or on the bus, where this member serves."""
        for point in self._points:
            point.announce(news)

    def _on_refused(self, place: Place, peer: str, reason: str) -> None:
        """Count a refused connection of `peer`. It is said once a minute for each peer and reason,
        so that one who knocks again and again fills no log.
        """
        self.refused += 1
        now = asyncio.get_running_loop().time()
        peer, count = self._repeats.due(peer, reason, now)
        if count and self._callbacks is not None and self._callbacks.on_refused is not None:
            self._callbacks.on_refused(peer, reason, count)
        elif count:
            times = f" ({count} times)" if count > 1 else ""
            text = "%s: refused a connection: %s %s%s"
            log.warning(text, place, peer or "someone", reason, times)


def _split(endpoint: str) -> tuple[str, int]:
    """The host, which may be a wildcard, and the port of an endpoint."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
