"""A connection of one member to the registry of an address: it says hello and hears rosters.

Owns the order of the lines on it, sealed or not, and what is told to others over it. Must not know
of other addresses, nor what comes of the end of a connection.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Sequence

from aiobus.clock import elapsed
from aiobus.discovery import Member
from aiobus.discovery.refusal import Allowance, Refused, kind_of
from aiobus.discovery.roster import (
    LineReader,
    ProtocolError,
    Roster,
    hello_line,
    parse_gone,
    parse_roster,
)
from aiobus.discovery.seal import Seal, accepted, check_denied, new_nonce, opening
from aiobus.keyring.files import Hidden
from aiobus.limits import MAX_MEMBERS, MAX_REFUSALS, MAX_ROSTER

__all__ = ["Guest"]

log = logging.getLogger("aiobus.mesh")

CHUNK = 64 * 1024


class Guest:
    """The member `me` on the connected socket `sock`, with the secrets of its desk, the newest
    first; None on a desk without keys.

    `on_fragment()` is called when something came that is no whole line yet and may be of another
    protocol, `on_roster(roster)` at each roster, `on_gone(members)` if claims end, which all
    do with the connection, and `on_told(source, cause)` if the member `source` tells this one that
    it refuses it. None of these may raise anything but ProtocolError.
    `on_loopback`: only members that listen on this host.
    """

    def __init__(
        self,
        sock: socket.socket,
        me: Member,
        secrets: Sequence[Hidden] | None,
        *,
        on_fragment: Callable[[], None],
        on_roster: Callable[[Roster], None],
        on_gone: Callable[[Collection[Member]], None],
        on_told: Callable[[str, str], None],
        on_loopback: bool = True,
    ) -> None:
        self._sock = sock
        self._me = me
        self._secrets = secrets
        self._on_fragment = on_fragment
        self._on_roster = on_roster
        self._on_gone = on_gone
        self._on_told = on_told
        self._on_loopback = on_loopback
        self._seal: Seal | None = None
        self._is_member = False
        self._claimed: set[Member] = set()
        self._tells = Allowance(MAX_REFUSALS // 2)

    async def stay(self) -> None:
        """Say hello, and listen until the connection ends. Raises ProtocolError if the other end
        is no registry of this desk, Denied with the reason if that is known, and OSError.
        """
        try:
            await self._stay()
        finally:
            # Who still claims to be a member does so at the next registry as well.
            self._on_gone(self._claimed)

    async def _stay(self) -> None:
        loop, lines = asyncio.get_running_loop(), LineReader(MAX_ROSTER)
        hello = hello_line(self._me)
        first = hello if self._secrets is None else opening(self._secrets, new_nonce())
        await loop.sock_sendall(self._sock, first)
        while data := await loop.sock_recv(self._sock, CHUNK):
            for line in lines.feed(data):
                if self._secrets is not None and self._seal is None:
                    self._seal = accepted(first, self._secrets, line)
                    await loop.sock_sendall(self._sock, self._seal.seal(hello))
                    self._is_member = True
                else:
                    self._take(line)
            if self._seal is None:
                self._on_fragment()

    def _take(self, line: bytes) -> None:
        if self._seal is None:
            check_denied(line)
        else:
            line = self._seal.open(line)
            if kind_of(line) == "refused":
                refused = Refused.parse(line)
                if refused.to == self._me.name:
                    self._on_told(refused.source, refused.cause)
                return
            if kind_of(line) == "gone":
                gone = parse_gone(line, on_loopback=self._on_loopback)
                self._claimed.difference_update(gone)
                self._on_gone(gone)
                return
        roster = parse_roster(line, on_loopback=self._on_loopback)
        self._claimed.difference_update(roster.members)
        self._claimed.update(roster.claimed)
        if len(self._claimed) > MAX_MEMBERS:
            raise ProtocolError(f"more than {MAX_MEMBERS:,} claims")
        self._on_roster(roster)

    def tell(self, refused: Refused) -> None:
        """Send a refusal, which the registry hands on. Nothing is sent before this end has said
        hello, without a seal, or beyond 128 in a minute.
        """
        if self._seal is None or not self._is_member:
            return
        if not self._tells.has_room(elapsed()):
            return
        line = self._seal.seal(refused.line)
        try:
            is_sent = self._sock.send(line) == len(line)
        except OSError:
            is_sent = False
        if not is_sent:
            # The registry has not read what fills a buffer, and no line may be missing.
            log.debug("%s: a registry does not read; its connection is ended", self._me.name)
            self._end()

    def end_outdated(self, secrets: Sequence[Hidden]) -> None:
        """End the connection if the desk has its secret no more: `stay` returns."""
        if self._seal is not None and not self._seal.is_by(secrets):
            self._end()

    def _end(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            log.debug("%s: a connection had ended: %s", self._me.name, error)
