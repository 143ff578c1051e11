"""`tcp://host:port[,host:port...]`: members meet at rendezvous addresses, which every member knows.

Owns what one member does there: it serves at one free address (`Registry`), stays connected to the
registry of every other address, reports the members that it hears of, and reports which addresses
are unreached. Must not know of queries, links or heartbeats, nor which of two members may keep a
name.

A member serves at one address at most, so a frozen process blocks one address at most.

The addresses may be those of several hosts. One that refuses and that this host cannot bind is of
another host, which has no bus yet: it is asked again until one is there.
"""

import asyncio
import errno
import logging
import math
import socket
from collections.abc import Callable, Collection, Sequence
from contextvars import Context

from aiobus.clock import elapsed
from aiobus.discovery import (
    CAUSES,
    OBSERVES,
    DiscoveryCallbacks,
    Member,
    is_observer,
    place_of,
)
from aiobus.discovery.guest import Guest
from aiobus.discovery.hosts import Resolver, outward
from aiobus.discovery.refusal import Denied, Refused, Repeats
from aiobus.discovery.registry import Registry
from aiobus.discovery.roster import (
    Address,
    KnownMembers,
    Place,
    ProtocolError,
    advertise_in,
    is_possible,
    listen_in,
    places_in,
)
from aiobus.discovery.tcp_socket import (
    bind_error,
    connect,
    has_half_closed,
    keep_alive,
    probe_all,
)
from aiobus.errors import BusError, KeyringError
from aiobus.keyring import Keyring

__all__ = ["Rendezvous"]

log = logging.getLogger("aiobus.mesh")

SUCCESSION_SECONDS = 0.5
"""For which `join` waits after a takeover: the members of the previous registry reconnect."""
ANSWER_SECONDS = 2.0
"""For which `join` waits for an address; an address without an answer is unreached after it."""
ABSENT_SECONDS = 3.0
"""Between two probes of the members that are not connected to the registry of this member."""
FIRST_PAUSE = 0.05
LAST_PAUSE = 0.5
CONNECT_SECONDS = 1.0
"""Shorter than the kernel's own retries, which slow down: a network that is back is noticed soon.
"""


class AddressClient:
    """One rendezvous address and the state of this member there."""

    def __init__(self, place: Place, ready: asyncio.Future[None]) -> None:
        self.place = place
        self.resolver = Resolver(place)
        self.address: Address | None = place.address
        """Where the place is, as far as this host knows; None before its name is resolved."""
        self.registry: Registry | None = None
        """The registry here, while this member serves."""
        self.guest: Guest | None = None
        """The connection to the registry here, while there is one."""
        self.ready = ready
        """Done once all members at this address can be met, or no more is to be had by waiting."""
        self.was_reached = False
        """True once a registry has answered: serving here is from then on a takeover."""
        self.is_connected = False
        """True while this member has a connection to a registry here that has answered."""
        self.is_renamed = False
        """It was said that its name is a loopback address on this host, and what is taken for it.
        """
        self.is_vacant = False
        """True if it is of another host, which refuses connections: no bus of that host is here."""
        self.problem = "no bus serves there"
        """The problem while `ready` is not done: a part of a sentence in warnings and errors."""
        self.denial = ""
        """What is wrong with the keys of the registry here and of this member, and the way out."""
        self.is_unusable = False
        """True if no member can be met here: another program answers, or no member may bind it."""
        self.is_ended = False
        """True if the last connection was ended unanswered: by a registry that died, or by another
        program, which does it again.
        """
        self._unknown_since: float | None = -math.inf

    @property
    def error(self) -> BusError:
        """What is raised by a start if `is_unusable`."""
        if self.denial:
            return BusError(f"{self.place.endpoint} {self.denial}")
        return BusError(
            f"{self.place.endpoint} cannot be a rendezvous address: {self.problem}. Free that"
            " address, or give every bus of this desk another one"
        )

    def mark_unknown(self, since: float) -> None:
        """Since then there may be members here that this one has not met."""
        if self._unknown_since is None:
            self._unknown_since = since

    def mark_known(self) -> None:
        """This member serves here, a registry has answered, or nothing listens here."""
        self._unknown_since = None
        self.denial = ""
        self.is_unusable = self.is_ended = False
        self.stop_waiting()

    @property
    def is_known(self) -> bool:
        """True if there are no members here that this one has not met."""
        return self._unknown_since is None

    def stop_waiting(self) -> None:
        """Whoever waits for this address goes on without it."""
        if not self.ready.done():
            self.ready.set_result(None)

    @property
    def is_unreached(self) -> bool:
        """True if for 2 s there may have been members here that this one has not met."""
        since = self._unknown_since
        return since is not None and elapsed() - since >= ANSWER_SECONDS


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
        self._observes = False
        self._known = KnownMembers()
        self._on_discovered: Callable[[Member], None] | None = None
        self._clients: list[AddressClient] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def held(self) -> frozenset[str]:
        """The addresses, as `host:port`, at which this member serves."""
        return frozenset(
            str(client.place) for client in self._clients if client.registry is not None
        )

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
        return [client.place.endpoint for client in self._clients if client.is_unreached]

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
        self._clients = [AddressClient(each, loop.create_future()) for each in self._places]
        try:
            bound = self._bind(bind, await self._own_address(name), observes=observes)
            me = Member(name, await self._advertised(name, bound))
            if not self.allows(me):
                raise ValueError(f"{me} cannot be a member here")
        except BaseException:
            await self.leave()
            raise
        self._me, self._observes = me, is_observer(me.endpoint)
        self._tasks = [
            loop.create_task(
                self._run(client),
                name=f"aiobus {name} rendezvous {client.place}",
                context=Context(),
            )
            for client in self._clients
        ]
        try:
            ready = [client.ready for client in self._clients]
            await asyncio.wait(ready, timeout=max(0.0, end - loop.time()))
            late = [each for each in self._clients if each.is_vacant or not each.is_known]
            for client in late:
                if client.is_unusable:
                    raise client.error
            for client in late:
                log.warning(
                    "%s joins without %s: %s. It is linked with the buses that it met at other"
                    " addresses, and meets the rest once that address answers",
                    *(name, client.place, client.problem),
                )
            for client in self._clients:
                if client.registry is None:
                    continue
                if client.registry.is_successor:
                    # The members of the previous registry reconnect now. Nothing else tells which
                    # members these are.
                    await asyncio.sleep(SUCCESSION_SECONDS)
                if has_half_closed(client.registry.address):
                    log.warning(
                        "%s has taken over %s, and an unknown member that was connected there is"
                        " frozen",
                        *(name, client.place),
                    )
                    client.mark_unknown(-math.inf)
            found = await probe_all([*self._known])
            self._known.forget([member for member, accepts in found.items() if not accepts])
            if not self.is_loopback:  # on this host it is a process that is frozen
                self.out_of_reach = [each for each in self._known if each not in found]
        except BaseException:
            await self.leave()
            raise
        self._on_discovered = on_discovered
        return [*self._known]

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
        for client in self._clients:
            if client.guest is not None:
                client.guest.end_outdated(secrets)
            if client.registry is not None:
                client.registry.end_outdated()

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
        for client in self._clients:
            if client.guest is not None:
                client.guest.tell(refused)
            if client.registry is not None:
                client.registry.tell(refused)

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
        places = (client.address for client in self._clients)
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
        for client in self._clients:
            if client.registry is not None:
                client.registry.close()
                client.registry = None
        looking = [each for client in self._clients if (each := client.resolver.cancel())]
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
            for client in self._clients:
                group.create_task(self._resolve_first(client, wait), context=Context())
        is_v6, problem = None, ""
        if self._own is not None and self._own.host != "::":
            is_v6 = Address(*self._own).is_v6
        toward = [client.address for client in self._clients if client.address is not None]
        try:
            self._outward = outward(toward, is_v6=is_v6)
        except OSError as error:
            problem = str(error.strerror)
        given = None if self._own is None else Address(*self._own)
        if given is not None and not (given.is_wildcard or given.is_loopback):
            self._outward = given.host
        for client in self._clients:
            self._leave_loopback(name, client)
        if given is not None and (self._outward or self._advertise is not None):
            return given
        if given is None and self._outward:
            return Address(self._outward, 0)
        raise BusError(
            f"{name} finds no address of this host that others could reach ({problem}). Give it"
            " one: listen='10.0.0.5', or listen='0.0.0.0' with what others are told as advertise="
        )

    async def _resolve_first(self, client: AddressClient, seconds: float) -> None:
        try:
            client.address = await client.resolver.address(seconds)
        except OSError as error:
            client.problem = f"its name cannot be resolved ({error.strerror or error})"

    def _leave_loopback(self, name: str, client: AddressClient) -> None:
        """A name that is a loopback address here, as Debian has it for its own, is another one
        elsewhere.
        """
        address = client.address
        is_own = address is not None and address.is_loopback and client.place.address is None
        if address is None or not is_own or not self._outward:
            return
        client.address = Address(self._outward, address.port)
        if not client.is_renamed:
            client.is_renamed = True
            log.info(
                "%s: %s is %s on this host, which no other host reaches: it is taken for %s",
                *(name, client.place.host, address.host, self._outward),
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

    # The tasks of the addresses.

    async def _run(self, client: AddressClient) -> None:
        """Serve at one address, or stay connected to its registry."""
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            is_answered, began = False, loop.time()
            try:
                if client.registry is not None:
                    await self._forget_absent(client, client.registry)
                    continue
                # Before any pause: the other members wait until one serves.
                if not (self.held or self._observes) and self._serve(client):
                    continue
                await asyncio.sleep(pause)
                began = loop.time()
                is_answered = await self._connect(client)
            except Exception:
                log.exception("%s at %s failed and tries again", self._me.name, client.place)
            if is_answered:
                # Else a registry that answers and closes at once would be called in a loop.
                pause = 0.0 if loop.time() - began > FIRST_PAUSE else FIRST_PAUSE
            else:
                pause = min(max(FIRST_PAUSE, 2 * pause), LAST_PAUSE)

    def _serve(self, client: AddressClient) -> bool:
        """Serve at an address, if no other member does. Returns True if this member serves now."""
        address, me = client.address, self._me
        if address is None:
            return False
        try:
            client.registry = Registry(
                address,
                me,
                self._known,
                secrets=self._secrets,
                on_hello=lambda member: self._learn([member]),
                on_refused=lambda peer, reason: self._on_refused(client.place, peer, reason),
                on_told=self._take_told,
                on_loopback=self.is_loopback,
            )
        except OSError as error:
            log.debug("%s cannot serve at %s: %s", me.name, address, error)
            return False
        client.is_vacant = False
        if client.was_reached:
            text = "%s has taken over %s: the bus that served there has gone"
            log.info(text, me.name, client.place)
        else:
            log.debug("%s serves at %s", me.name, client.place)
        client.mark_known()
        return True

    async def _forget_absent(self, client: AddressClient, registry: Registry) -> None:
        """Wait, then forget the members that are not connected and refuse a connection. A member
        that only lost its connection may be frozen, so its name stays taken.
        """
        await asyncio.sleep(ABSENT_SECONDS)
        self._known.forget(await self.probe_absent(registry.absent))
        if client.is_unreached and not has_half_closed(registry.address):
            client.mark_known()

    async def _connect(self, client: AddressClient) -> bool:
        """Stay connected to the registry of an address. Returns, at the end of the connection,
        whether it has answered.
        """
        client.mark_unknown(elapsed())
        try:
            client.address = await client.resolver.address(CONNECT_SECONDS)
        except OSError as error:
            client.problem = f"its name cannot be resolved ({error.strerror or error})"
            client.stop_waiting()
            return False
        self._leave_loopback(self._me.name, client)
        address = client.address
        client.is_vacant = False
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                sock = await connect(address)
        except ConnectionRefusedError:
            self._note_refusal(client, bind_error(address))
            return False
        except OSError as error:
            what = str(error) or f"no answer within {CONNECT_SECONDS:g} s"
            log.debug("%s: no connection to %s: %s", self._me.name, client.place, what)
            client.problem = f"it cannot be reached ({what})"
            if not self.is_loopback:  # its host is down
                client.stop_waiting()
            return False
        with sock:
            keep_alive(sock)
            log.debug("%s is connected to %s", self._me.name, client.place)
            try:
                return await self._listen(client, sock)
            finally:
                client.is_connected = False

    def _note_refusal(self, client: AddressClient, error: OSError | None) -> None:
        """An address refuses a connection; `error` tells why this member may not serve there."""
        is_elsewhere = error is not None and error.errno == errno.EADDRNOTAVAIL
        client.is_vacant = is_elsewhere and not (self.is_loopback or self._observes)
        client.is_unusable = error is not None and not (client.is_vacant or self._observes)
        if self._observes:
            client.mark_known()  # it waits for a bus that serves there
        elif client.is_vacant:
            client.problem = "that is another host, and no bus serves there yet"
            others = (each for each in self._clients if each is not client)
            if any(each.registry is not None or each.is_connected for each in others):
                client.mark_known()  # a bus of that host takes it
        elif error is not None:
            text = f"nothing listens there, and this process may not ({error.strerror})"
            client.problem = text
        elif self.held:
            client.mark_known()  # the next member that serves nowhere takes it
        else:
            client.problem = "no bus serves there, and it is in use all the same"

    async def _listen(self, client: AddressClient, sock: socket.socket) -> bool:
        """Read rosters until the connection ends. Returns True if the registry has answered."""
        is_answered = False

        def suspect() -> None:
            # The greeting of another protocol may have no end of a line.
            if not is_answered:
                self._distrust(client, "another program answers there")

        def learn(members: list[Member]) -> None:
            nonlocal is_answered
            self._learn(members)
            is_answered = client.was_reached = client.is_connected = True
            client.mark_known()

        if not client.is_unusable:
            client.problem = (
                "the process that listens there accepts connections but does not answer"
            )
        client.guest = Guest(
            *(sock, self._me, self._secrets()),
            on_fragment=suspect,
            on_roster=learn,
            on_told=self._take_told,
            on_loopback=self.is_loopback,
        )
        try:
            await client.guest.stay()
        except Denied as error:
            self._distrust(client, f"it {error}", denial=str(error))
            self._on_refused(client.place, str(client.place), str(error))
            return False
        except ProtocolError as error:
            self._distrust(client, f"another program answers there ({error})")
            self._on_refused(client.place, str(client.place), f"sent {error}")
            return False
        except OSError as error:
            log.debug("%s: the connection to %s broke: %s", self._me.name, client.place, error)
        else:
            log.debug("%s: the connection to %s has ended", self._me.name, client.place)
        finally:
            client.guest = None
        if not is_answered:
            what = "the process that listens there closes each connection unanswered"
            if client.is_unusable or client.is_ended:
                self._distrust(client, what)
            client.problem, client.is_ended = what, True
        return is_answered

    def _distrust(self, client: AddressClient, problem: str, *, denial: str = "") -> None:
        """What answers at an address is no registry of this desk. A start fails for that, but not
        if another registry has proven that it shares a secret with this member: then a stranger has
        taken an address of the desk, and is to keep no member of it from starting.
        """
        is_proven = self.keyring is not None and any(each.was_reached for each in self._clients)
        client.problem, client.denial, client.is_unusable = problem, denial, not is_proven

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
        for client in self._clients:
            if client.registry is not None:
                client.registry.announce(news)

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
