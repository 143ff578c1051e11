"""The server at one rendezvous address: reads hellos, sends the roster, and forwards refusals.

Owns the listening socket and every connection to it, their bounds and their ends. Must not know of
other addresses or of takeovers.

A connection that has said no hello is dropped as soon as there are too many of them, the oldest of
the host that has the most first. So strangers who connect and say nothing keep no member out, which
says hello at once, and take a quarter of the descriptors at most. On a desk with keys, a hello
proves no name: if all places are taken, one of a claimed member makes room in the same way.

The server uses sockets and reader callbacks, not streams. So a thousand connections need no tasks,
`close` is one plain call, and no accepted connection is between two steps when the server closes
(cpython#109564).
"""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from aiobus.clock import elapsed
from aiobus.discovery import Member, place_of
from aiobus.discovery.gate import RESERVE
from aiobus.discovery.refusal import Allowance, Denied, Refused, denied_line
from aiobus.discovery.roster import (
    Address,
    KnownMembers,
    LineReader,
    ProtocolError,
    gone_line,
    parse_hello,
    roster_line,
)
from aiobus.discovery.seal import Seal, answered, check_plain, new_nonce
from aiobus.discovery.tcp_socket import bound_socket, keep_alive
from aiobus.discovery.unix_socket import spare_descriptors
from aiobus.keyring.files import Hidden
from aiobus.limits import MAX_CONNECTIONS, MAX_HELLO, MAX_MEMBERS, MAX_REFUSALS, MAX_UNSENT

__all__ = ["Registry"]

log = logging.getLogger("aiobus.mesh")

HELLO_SECONDS = 5.0
ACCEPT_AGAIN_SECONDS = 0.25
BACKLOG = 1_024
CHUNK = 64 * 1024
FEWEST = 8
"""Connections that may have said no hello, at least."""


class Connection:
    """One connection to a registry."""

    __slots__ = ("lines", "member", "peer", "seal", "sock", "tells", "timer", "unsent")

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.sock = sock
        self.peer = peer
        """The address of the other side, without the port, which is another each time."""
        self.seal: Seal | None = None
        """None on a desk without keys, and before the first line."""
        self.tells = Allowance(MAX_REFUSALS)
        """Of the refusals that it tells of."""
        self.timer: asyncio.TimerHandle
        self.lines = LineReader(MAX_HELLO)
        self.unsent = bytearray()
        self.member: Member | None = None
        """The member that has said hello on it."""


class ByHost:
    """Connections by the host of the other side, the oldest first."""

    def __init__(self) -> None:
        self._hosts: dict[str, dict[Connection, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._hosts.values()))

    @property
    def oldest(self) -> Connection:
        """That of the host that has the most."""
        most: dict[Connection, None] = max(self._hosts.values(), key=len)
        return next(iter(most))

    def add(self, connection: Connection) -> None:
        self._hosts.setdefault(connection.peer, {})[connection] = None

    def discard(self, connection: Connection) -> None:
        """Again: no effect."""
        of_host = self._hosts.get(connection.peer, {})
        of_host.pop(connection, None)
        if not of_host:
            self._hosts.pop(connection.peer, None)


class Registry:
    """Serves at `address` from its construction until `close`, in the running loop. Raises OSError
    if it cannot bind, mostly because another process serves there.

    On the roster are `me`, every connected member, and the `known` members that are not connected:
    such a member may be frozen, so its name stays taken. `secrets()` are the secrets of the desk,
    the newest first, and None on a desk without keys; they may change. On a desk with keys, the
    roster says which members are only claimed: by a hello, and `known` has not learned of them.
    `on_loopback`: only members that listen on this host.

    `on_hello(member)` is called at each hello, and `on_gone(member)` at the end of a connection
    whose member is still claimed. `on_refused(peer, reason)` is called for each
    connection that is not served, or closed, because of what its peer did, and for each refusal of
    a member that tells of too many; `peer`, an address, is the subject of `reason`, and "" if it is
    not known. `on_told(source, cause)` is called if the member `source` tells `me` that it refuses
    it. None of these may raise.
    """

    def __init__(
        self,
        address: Address,
        me: Member,
        known: KnownMembers,
        *,
        secrets: Callable[[], Sequence[Hidden] | None],
        on_hello: Callable[[Member], None],
        on_gone: Callable[[Member], None],
        on_refused: Callable[[str, str], None],
        on_told: Callable[[str, str], None],
        on_loopback: bool = True,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.is_successor = False
        """True if another registry served here a moment ago: its members are reconnecting now."""
        try:
            self._listener = bound_socket(address, reuse=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # Connections to the previous registry linger there, or another process listens. Only
            # `listen` tells which: with SO_REUSEADDR several may bind, but one may listen.
            self._listener = bound_socket(address, reuse=True)
            self.is_successor = True
        try:
            # Accepted sockets inherit the option; without it they would keep a successor out.
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.setblocking(False)
            self._listener.listen(BACKLOG)
        except BaseException:
            self._listener.close()
            raise
        self.address = address
        self._secrets = secrets
        self._on_loopback = on_loopback
        self._on_hello = on_hello
        self._on_gone = on_gone
        self._on_refused = on_refused
        self._on_told = on_told
        self._connections: set[Connection] = set()
        self._silent = ByHost()
        """Those without a hello."""
        self._unproven = ByHost()
        """Those with a hello, on a desk with keys, whose member is claimed."""
        self._most_silent = int(max(FEWEST, min(MAX_CONNECTIONS, spare_descriptors() // 4)))
        self._me = me
        self._known = known
        self._news: list[Member] = []
        self._pause: asyncio.TimerHandle | None = None
        self._accept_when_readable()

    @property
    def roster(self) -> list[Member]:
        """One member at each endpoint, at most 4,096: `me` first, and those last that are only
        claimed. A claim is that of a connection.
        """
        found: dict[str, Member] = {}
        connected = sorted(self.connected, key=self._is_claimed)
        proven = len(connected) - sum(map(self._is_claimed, connected))
        for member in (self._me, *connected[:proven], *self._known, *connected[proven:]):
            found.setdefault(place_of(member.endpoint), member)
        return [*found.values()][:MAX_MEMBERS]

    @property
    def absent(self) -> list[Member]:
        """The members that are on the roster and not connected."""
        return [*{*self._known}.difference(self.connected)]

    @property
    def connected(self) -> list[Member]:
        """The members of its connections, the claimed as well."""
        return [each.member for each in self._connections if each.member is not None]

    def announce(self, news: list[Member]) -> None:
        """Send members that were not known before to every connection, at the next turn of the
        loop.
        """
        if news and not self._news:  # all of one turn are sent together
            self._loop.call_soon(self._send_news)
        self._news += news
        met = {each for each in news if not self._is_claimed(each)}
        for connection in self._connections if self._unproven else ():
            if connection.member in met:
                self._unproven.discard(connection)

    def tell(self, refused: Refused) -> None:
        """Send a refusal to the member that it is for, if that is connected and reads."""
        for connection in list(self._connections):
            member = connection.member
            if member is not None and member.name == refused.to and not connection.unsent:
                self._send(connection, refused.line)

    def take_back(self, members: Collection[Member]) -> None:
        """Tell every connected member that the claims of `members` have ended."""
        for connection in list(self._connections):
            if connection.member is not None:
                self._send(connection, gone_line(members))

    def end_outdated(self) -> None:
        """End the connections that were sealed by a secret which the desk has no more."""
        for connection in list(self._connections):
            if connection.seal is not None and not connection.seal.is_by(self._secrets() or ()):
                log.info("%s: the secret of a connection is not valid any more", self.address)
                self._close(connection)

    def close(self) -> None:
        """End every connection and free the address, at once. Again: no effect."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listener.fileno() >= 0:
            # Before the connections: a member that sees its connection end finds the address free.
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
        for connection in list(self._connections):
            self._close(connection)

    def _accept_when_readable(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        is_short = spare_descriptors() < RESERVE
        try:
            if is_short and not self._make_room():
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            sock, (peer, *_) = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            # Out of descriptors. The listener stays readable: without a pause the loop would spin.
            self._loop.remove_reader(self._listener.fileno())
            self._pause = self._loop.call_later(ACCEPT_AGAIN_SECONDS, self._accept_when_readable)
            self._on_refused("", f"cannot be accepted yet: {error.strerror}")
            return
        while len(self._silent) >= self._most_silent:
            self._end_oldest()
        if len(self._connections) >= MAX_CONNECTIONS and not self._make_room():
            sock.close()
            self._on_refused(peer, f"came when there were {MAX_CONNECTIONS:,} connections already")
            return
        sock.setblocking(False)
        keep_alive(sock)
        connection = Connection(sock, peer)
        reason = f"said no hello within {HELLO_SECONDS:g} s"
        connection.timer = self._loop.call_later(HELLO_SECONDS, self._refuse, connection, reason)
        self._connections.add(connection)
        self._silent.add(connection)
        self._loop.add_reader(sock.fileno(), self._read, connection)

    def _make_room(self) -> bool:
        """End one connection without a hello, or else one of a claimed member, or of a member that
        has another connection. False if there is no such connection.
        """
        while self._silent:
            if self._end_oldest():
                return True
        if self._unproven:
            reason = "has not proven its name, and others needed its place"
            self._refuse(self._unproven.oldest, reason)
            return True
        # With keys, a hello for a member that is known proves no more: that one is here as well.
        seen = {self._me}
        for connection in self._connections:
            if connection.member in seen and connection.seal is not None:
                self._refuse(connection, "is connected twice, and others needed its place")
                return True
            if connection.member is not None:
                seen.add(connection.member)
        return False

    def _end_oldest(self) -> bool:
        """Of those without a hello, read from the oldest of the host that has the most, and end it.
        False if its hello has come by now: it stays.
        """
        oldest = self._silent.oldest
        self._read(oldest)
        if oldest in self._connections and oldest.member is None:
            self._refuse(oldest, "had said no hello yet, and others needed its place")
        return oldest not in self._connections

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""  # reset by a peer that died
        try:
            if data:
                for line in connection.lines.feed(data):
                    self._on_line(connection, line)
            else:
                connection.lines.end()
                self._close(connection)
        except Denied as error:
            self._say_last(connection, denied_line(error.code))
            self._refuse(connection, str(error))
        except ProtocolError as error:
            self._refuse(connection, f"sent {error}")
        except Exception:
            # Otherwise it would be raised again for every byte, and the loop's own handler does not
            # name the address.
            log.exception("%s: a connection failed and was closed", self.address)
            self._close(connection)

    def _on_line(self, connection: Connection, line: bytes) -> None:
        secrets = self._secrets()
        if secrets is None:
            if connection.member is not None:
                raise ProtocolError("a line after its hello")
            check_plain(line)
        elif connection.seal is None:
            connection.seal, answer = answered(line, secrets, new_nonce())
            self._write_soon(connection, answer)
            return
        else:
            line = connection.seal.open(line)
            if connection.member is not None:
                self._take_refusal(connection, connection.member, Refused.parse(line))
                return
        connection.member = member = parse_hello(line, on_loopback=self._on_loopback)
        connection.timer.cancel()
        self._silent.discard(connection)
        log.debug("%s: %s at %s is here", self.address, *member)
        self._on_hello(member)
        if self._is_claimed(member):
            self._unproven.add(connection)
        self._send(connection, self._line(self.roster))

    def _take_refusal(self, connection: Connection, member: Member, refused: Refused) -> None:
        if refused.source != member.name:
            raise ProtocolError("a refusal in the name of another")
        if not connection.tells.has_room(elapsed()):
            self._on_refused(
                connection.peer, f"told of more than {MAX_REFUSALS} refusals in a minute"
            )
        elif refused.to == self._me.name:
            self._on_told(refused.source, refused.cause)
        else:
            self.tell(refused)

    def _send_news(self) -> None:
        news, self._news = self._news, []
        line = self._line(news[:MAX_MEMBERS])
        for connection in list(self._connections):
            if connection.member is not None:
                self._send(connection, line)

    def _line(self, members: list[Member]) -> bytes:
        """The line that announces `members`."""
        claimed = [each for each in members if self._is_claimed(each)]
        return roster_line([each for each in members if not self._is_claimed(each)], claimed)

    def _is_claimed(self, member: Member) -> bool:
        """True if the member has said hello on a desk with keys, and no bus is known that has met
        it on a link.
        """
        is_known = member == self._me or member in self._known
        return not is_known and self._secrets() is not None

    def _send(self, connection: Connection, line: bytes) -> None:
        """Send a line, sealed if the desk has keys."""
        if connection.seal is not None:
            line = connection.seal.seal(line)
        self._write_soon(connection, line)

    def _say_last(self, connection: Connection, line: bytes) -> None:
        """Say why the connection is about to be ended, if there is room."""
        if connection in self._connections and not connection.unsent:
            with suppress(OSError):
                connection.sock.send(line)

    def _write_soon(self, connection: Connection, line: bytes) -> None:
        if connection not in self._connections:
            return
        is_waiting = bool(connection.unsent)
        connection.unsent += line
        if len(connection.unsent) > MAX_UNSENT:
            self._refuse(connection, "does not read what is sent to it")
        elif not is_waiting:
            self._write(connection)

    def _write(self, connection: Connection) -> None:
        try:
            sent = connection.sock.send(connection.unsent)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._close(connection)
            return
        del connection.unsent[:sent]
        if connection.unsent:
            self._loop.add_writer(connection.sock.fileno(), self._write, connection)
        else:
            self._loop.remove_writer(connection.sock.fileno())

    def _refuse(self, connection: Connection, reason: str) -> None:
        self._close(connection)
        self._on_refused(connection.peer, reason)

    def _close(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        self._silent.discard(connection)
        self._unproven.discard(connection)
        member, is_open = connection.member, self._listener.fileno() >= 0
        if member is not None and is_open and self._is_claimed(member):
            self._on_gone(member)
        connection.timer.cancel()
        self._loop.remove_reader(connection.sock.fileno())
        self._loop.remove_writer(connection.sock.fileno())
        connection.sock.close()
