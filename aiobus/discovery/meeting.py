"""One rendezvous address, and what one member does there: it serves, or is a guest of who serves.

Owns the task at one address: look its name up, serve if no member does, else stay connected to the
registry there, and again after each end. Must not know how a member finds its own address, nor what
becomes of the members that it hears of. What is known of the address is judged in `reach`.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from aiobus.clock import elapsed
from aiobus.discovery import Member, is_observer
from aiobus.discovery.guest import Guest
from aiobus.discovery.hosts import Resolver
from aiobus.discovery.reach import Reach
from aiobus.discovery.refusal import Denied, Refused
from aiobus.discovery.registry import Registry
from aiobus.discovery.roster import Address, KnownMembers, Place, ProtocolError, Roster
from aiobus.discovery.tcp_socket import (
    bind_error,
    connect,
    has_half_closed,
    keep_alive,
    probe_all,
)
from aiobus.keyring.files import Hidden

__all__ = ["MeetingPoint", "Party"]

log = logging.getLogger("aiobus.mesh")

ABSENT_SECONDS = 3.0
"""Between two probes of the members that are not connected to the registry of this member."""
FIRST_PAUSE = 0.05
LAST_PAUSE = 0.5
CONNECT_SECONDS = 1.0
"""Shorter than the kernel's own retries, which slow down: a network that is back is noticed soon.
"""


class Party(NamedTuple):
    """One member, as it takes part at all of its meeting points. None of its callables raises."""

    me: Member
    points: "Sequence[MeetingPoint]"
    known: KnownMembers
    """The members that were heard of at any of them."""
    is_loopback: bool
    """True if all members are on this host."""
    outward: str
    """The address of this host that others see; "" if only this host can take part."""
    secrets: Callable[[], Sequence[Hidden] | None]
    """The secrets of the desk as they are now; None if it has no keys."""
    on_roster: Callable[[Roster], None]
    """A registry tells of these."""
    on_hello: Callable[[Member], None]
    """This member has said hello at an address."""
    on_gone: Callable[[Collection[Member]], None]
    """The claims of these members have ended."""
    on_told: Callable[[str, str], None]
    """The member of this name tells this one that it refuses it, and why: one of TOLD."""
    on_refused: Callable[[Place, str, str], None]
    """A connection at an address was refused: the place, the address of the other side, the reason.
    """

    @property
    def observes(self) -> bool:
        """True if it serves nowhere: no members could meet there while it is frozen."""
        return is_observer(self.me.endpoint)

    @property
    def serves(self) -> bool:
        """True while it serves at one of its points, which is one at most."""
        return any(point.registry is not None for point in self.points)

    @property
    def is_proven(self) -> bool:
        """True if a registry has proven that it shares a secret of the desk with this member."""
        return self.secrets() is not None and any(point.reach.was_reached for point in self.points)


class MeetingPoint:
    """One rendezvous address of a member. It is to be made and run in the running loop."""

    def __init__(self, place: Place, *, is_loopback: bool) -> None:
        self.place = place
        self.address: Address | None = place.address
        """Where the place is, as far as this host knows; None before its name is resolved."""
        self.registry: Registry | None = None
        """The registry here, while this member serves."""
        self.guest: Guest | None = None
        """The connection to the registry here, while there is one."""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once all members here can be met, or no more is to be had by waiting."""
        self.reach = Reach(place.endpoint, self._stop_waiting, is_loopback=is_loopback)
        self._resolver = Resolver(place)
        self._is_renamed = False
        """It was said that its name is a loopback address on this host, and what is taken for it.
        """
        self._party: Party

    def _stop_waiting(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    # Before the member has an address of its own.

    async def resolve(self, seconds: float) -> None:
        """Look its name up for the first time. Waits for `seconds` at most."""
        try:
            self.address = await self._resolver.address(seconds)
        except OSError as error:
            self.reach.note_unresolved(error, is_final=False)

    def leave_loopback(self, name: str, outward: str) -> None:
        """A name that is a loopback address here, as Debian has it for its own, is another one
        elsewhere: that of this host which others see, if there is one.
        """
        address = self.address
        if address is None or not (address.is_loopback and outward):
            return
        if self.place.address is not None:  # given as that very address
            return
        self.address = Address(outward, address.port)
        if not self._is_renamed:
            self._is_renamed = True
            log.info(
                "%s: %s is %s on this host, which no other host reaches: it is taken for %s",
                *(name, self.place.host, address.host, outward),
            )

    # While it is a member.

    async def run(self, party: Party) -> None:
        """Serve here, or stay connected to the registry here, until this is cancelled."""
        self._party = party
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            is_answered, began = False, loop.time()
            try:
                if self.registry is not None:
                    await self._forget_absent(self.registry)
                    continue
                # Before any pause: the other members wait until one serves.
                if not (party.serves or party.observes) and self._serve():
                    continue
                await asyncio.sleep(pause)
                began = loop.time()
                is_answered = await self._connect()
            except Exception:
                log.exception("%s at %s failed and tries again", party.me.name, self.place)
            if is_answered:
                # Else a registry that answers and closes at once would be called in a loop.
                pause = 0.0 if loop.time() - began > FIRST_PAUSE else FIRST_PAUSE
            else:
                pause = min(max(FIRST_PAUSE, 2 * pause), LAST_PAUSE)

    def announce(self, news: list[Member]) -> None:
        """Announce members to those that are connected, if this member serves here."""
        if self.registry is not None:
            self.registry.announce(news)

    def take_back(self, members: Collection[Member]) -> None:
        """Tell the connected members that the claims of `members` have ended, if this member
        serves here.
        """
        if self.registry is not None:
            self.registry.take_back(members)

    def tell(self, refused: Refused) -> None:
        """Send a refusal by the sealed ways that there are here."""
        if self.guest is not None:
            self.guest.tell(refused)
        if self.registry is not None:
            self.registry.tell(refused)

    def end_outdated(self, secrets: Sequence[Hidden]) -> None:
        """End the connections that were sealed by a secret which is none of these any more."""
        if self.guest is not None:
            self.guest.end_outdated(secrets)
        if self.registry is not None:
            self.registry.end_outdated()

    def close(self) -> "asyncio.Task[Address | OSError] | None":
        """Free the address at once, if this member serves here. Returns the look-up that ends now,
        if one is under way. Again: no effect.
        """
        if self.registry is not None:
            self.registry.close()
            self.registry = None
        return self._resolver.cancel()

    # Serving.

    def _serve(self) -> bool:
        """Serve here, if no other member does. Returns True if this member serves now."""
        address, party = self.address, self._party
        if address is None:
            return False
        try:
            self.registry = Registry(
                address,
                party.me,
                party.known,
                secrets=party.secrets,
                on_hello=party.on_hello,
                on_gone=lambda member: party.on_gone([member]),
                on_refused=lambda peer, reason: party.on_refused(self.place, peer, reason),
                on_told=party.on_told,
                on_loopback=party.is_loopback,
            )
        except OSError as error:
            log.debug("%s cannot serve at %s: %s", party.me.name, address, error)
            return False
        if self.reach.was_reached:
            text = "%s has taken over %s: the bus that served there has gone"
            log.info(text, party.me.name, self.place)
        else:
            log.debug("%s serves at %s", party.me.name, self.place)
        self.reach.note_serving()
        return True

    async def _forget_absent(self, registry: Registry) -> None:
        """Wait, then forget the members that are not connected and refuse a connection. A member
        that only lost its connection may be frozen, so its name stays taken.
        """
        await asyncio.sleep(ABSENT_SECONDS)
        accepts = await probe_all(registry.absent)
        self._party.known.forget([member for member, is_there in accepts.items() if not is_there])
        if not (self.reach.is_known or has_half_closed(registry.address)):
            self.reach.note_thawed()

    # Being a guest.

    async def _connect(self) -> bool:
        """Stay connected to the registry here. Returns, at the end of the connection, whether it
        has answered.
        """
        reach, party = self.reach, self._party
        reach.note_try(elapsed())
        try:
            self.address = await self._resolver.address(CONNECT_SECONDS)
        except OSError as error:
            reach.note_unresolved(error)
            return False
        self.leave_loopback(party.me.name, party.outward)
        address = self.address
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                sock = await connect(address)
        except ConnectionRefusedError:
            others = [each for each in party.points if each is not self]
            reach.note_refusal(
                bind_error(address),
                observes=party.observes,
                serves=any(each.registry is not None for each in others),
                is_linked=any(each.reach.is_connected for each in others),
            )
            return False
        except OSError as error:
            what = str(error) or f"no answer within {CONNECT_SECONDS:g} s"
            log.debug("%s: no connection to %s: %s", party.me.name, self.place, what)
            reach.note_silence(what)
            return False
        with sock:
            keep_alive(sock)
            log.debug("%s is connected to %s", party.me.name, self.place)
            reach.note_connection()
            try:
                return await self._listen(sock)
            finally:
                reach.is_connected = False

    async def _listen(self, sock: socket.socket) -> bool:
        """Read rosters until the connection ends. Returns True if the registry has answered."""
        reach, party = self.reach, self._party
        is_answered = False

        def suspect() -> None:
            # The greeting of another protocol may have no end of a line.
            if not is_answered:
                self._distrust("another program answers there")

        def learn(roster: Roster) -> None:
            nonlocal is_answered
            party.on_roster(roster)
            is_answered = True
            reach.note_answer()

        self.guest = Guest(
            *(sock, party.me, party.secrets()),
            on_fragment=suspect,
            on_roster=learn,
            on_gone=party.on_gone,
            on_told=party.on_told,
            on_loopback=party.is_loopback,
        )
        try:
            await self.guest.stay()
        except Denied as error:
            self._distrust(f"it {error}", denial=str(error))
            party.on_refused(self.place, str(self.place), str(error))
            return False
        except ProtocolError as error:
            self._distrust(f"another program answers there ({error})")
            party.on_refused(self.place, str(self.place), f"sent {error}")
            return False
        except OSError as error:
            log.debug("%s: the connection to %s broke: %s", party.me.name, self.place, error)
        else:
            log.debug("%s: the connection to %s has ended", party.me.name, self.place)
        finally:
            self.guest = None
        reach.note_end(is_answered=is_answered, is_proven=party.is_proven)
        return is_answered

    def _distrust(self, problem: str, *, denial: str = "") -> None:
        self.reach.note_distrust(problem, is_proven=self._party.is_proven, denial=denial)
