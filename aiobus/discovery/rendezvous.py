"""`tcp://host:port[,host:port...]`: members meet at rendezvous addresses, which every member knows.

Owns what one member does at all of them together: its start and its end, and the members that it
has heard of anywhere. What it does at one address is in `meeting`, and where it listens itself in
`own_address`. Must not know of queries, links or heartbeats, nor which of two members may
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
from aiobus.discovery import DiscoveryCallbacks, Member, place_of
from aiobus.discovery.meeting import MeetingPoint, Party
from aiobus.discovery.own_address import OwnAddress
from aiobus.discovery.refusal import Refused
from aiobus.discovery.roster import Address, KnownMembers, Place, Roster, is_possible, places_in
from aiobus.discovery.tcp_socket import has_half_closed, probe_all
from aiobus.errors import KeyringError
from aiobus.keyring import Keyring
from aiobus.keyring.files import Hidden
from aiobus.refusals import TOLD, Refusal, Refusals

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
        self._refusals = Refusals()
        self._places = places_in(addresses)
        self._own = OwnAddress(self._places, listen, advertise)
        self.is_loopback = self._own.is_loopback
        """True if only processes of this host can be members."""
        self.out_of_reach: list[Member] = []
        """The members that `join` has returned though their host does not answer."""
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
            bound = self._own.bind(bind, await self._own_address(name), observes=observes)
            me = Member(name, await self._own.told(name, bound))
            if not self.allows(me):
                raise ValueError(f"{me} cannot be a member here")
        except BaseException:
            await self.leave()
            raise
        self._me = me
        party = Party(
            *(me, self._points, self._known),
            is_loopback=self.is_loopback,
            outward=self._own.outward,
            secrets=self._secrets,
            on_roster=self._learn,
            on_hello=self._take_hello,
            on_gone=self._lose,
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
            found = await probe_all([*self._known, *self._known.claimed])
            self._known.forget([member for member, accepts in found.items() if not accepts])
            if not self.is_loopback:  # on this host it is a process that is frozen
                self.out_of_reach = [
                    each for each in (*self._known, *self._known.claimed) if each not in found
                ]
        except BaseException:
            await self.leave()
            raise
        self._on_discovered = on_discovered
        return [*self._known, *self._known.claimed]

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

    def is_claimed(self, member: Member) -> bool:
        """True on a desk with keys for a member that has said hello to a registry, and has not
        proven its name on a link yet. The seal proves the secret of the desk, which all members
        have.
        """
        return self._known.is_claimed(member)

    def forget(self, member: Member) -> None:
        """A member has closed: it is on no roster of this member from now on."""
        self._known.forget([member])

    def watch(self, callbacks: DiscoveryCallbacks, bind: Callable[[str], str]) -> None:
        """End the connections that were sealed by a secret which the desk has no more: they are
        made again. The tasks of the addresses do the rest.
        """
        if self._callbacks is None:
            self._refusals = Refusals()  # what a start has logged is told to the user as well
        self._callbacks = callbacks
        for said in self._refusals.due(elapsed()):
            self._say_refused(said, self._me.name)
        if (secrets := self._secrets()) is None:
            return
        for point in self._points:
            point.end_outdated(secrets)

    def tell_refused(self, to: str, cause: str) -> None:
        """Let the member named `to` know that this one makes no link to it, and why. On every
        sealed way, since any of them may end at a frozen registry. Raises ValueError if `cause` is
        none of TOLD.
        """
        if cause not in TOLD:
            raise ValueError(f"{cause!r} is none of {', '.join(sorted(TOLD))}")
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
        known = (self._me, *self._known, *self._known.claimed)
        own.update(place_of(each.endpoint) for each in known)
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

    async def _own_address(self, name: str) -> Address:
        """Where to listen, by the way to the rendezvous addresses."""
        if not self.is_loopback:
            async with asyncio.TaskGroup() as group:
                for point in self._points:
                    group.create_task(point.resolve(ANSWER_SECONDS / 2), context=Context())
        toward = [point.address for point in self._points if point.address is not None]
        own = self._own.choose(name, toward)
        for point in self._points:
            point.leave_loopback(name, self._own.outward)
        return own

    # What is heard at any address.

    def _secrets(self) -> Sequence[Hidden] | None:
        """The secrets of the desk as they are now; None if it has no keys."""
        return None if self.keyring is None else self.keyring.desk_secrets

    def _take_told(self, source: str, cause: str) -> None:
        if self._callbacks is not None:
            self._callbacks.on_told(source, cause)

    def _learn(self, roster: Roster) -> None:
        # Another member with this name is reported too: who keeps it is decided elsewhere.
        members, claimed = roster
        news = self._known.learn(each for each in members if each != self._me)
        news += self._known.claim(each for each in claimed if each != self._me)
        self._announce(news)
        for member in news:
            if self._on_discovered is None:
                continue
            try:
                self._on_discovered(member)
            except Exception:
                log.exception("%s was found, but could not be linked", member)

    def _take_hello(self, member: Member) -> None:
        if self.keyring is None:
            self._learn(Roster([member], []))
        else:
            self._learn(Roster([], [member]))

    def _lose(self, members: Collection[Member]) -> None:
        """The claims of these members have ended at one address."""
        served = [each.registry for each in self._points if each.registry is not None]
        still = {each for registry in served for each in registry.connected}
        lost = [each for each in members if self._known.is_claimed(each) and each not in still]
        self._known.forget(lost)
        for point in self._points if lost else ():
            point.take_back(lost)
        if self._callbacks is not None:
            for member in lost:
                self._callbacks.on_gone(member)

    def _announce(self, news: list[Member]) -> None:
        """Announce members, heard of at any address or on the bus, where this member serves."""
        for point in self._points:
            point.announce(news)

    def _on_refused(self, place: Place, peer: str, reason: str) -> None:
        """Count a refused connection of `peer`. It is said once a minute for each peer and reason,
        so that one who knocks again and again fills no log.
        """
        self.refused += 1
        if (said := self._refusals.note(Refusal(peer, reason), elapsed())) is not None:
            self._say_refused(said, place)

    def _say_refused(self, said: Refusal, at: object) -> None:
        peer, reason, _, times = said
        if self._callbacks is not None and self._callbacks.on_refused is not None:
            self._callbacks.on_refused(peer, reason, times)
        else:
            count = f" ({times} times)" if times > 1 else ""
            who = peer or "someone"
            where = "" if who == str(at) else f"{at}: refused a connection: "
            log.warning("%s%s %s%s", where, who, reason, count)
