"""The server at one rendezvous address: reads hellos and sends the roster.

Owns the listening socket and every connection to it, their bounds and their ends. Must not know of
other addresses or of takeovers.

A connection that has said no hello is dropped as soon as there are too many of them, the oldest of
the host that has the most first. So strangers who connect and say nothing keep no member out, which
says hello at once, and take a quarter of the descriptors at most.

The server uses sockets and reader callbacks, not streams. So a thousand connections need no tasks,
`close` is one plain call, and no accepted connection is between two steps when the server closes
(cpython#109564).
"""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable

from aiobus.discovery import Member, place_of
from aiobus.discovery.gate import RESERVE
from aiobus.discovery.roster import (
    Address,
    KnownMembers,
    LineReader,
    ProtocolError,
    parse_hello,
    roster_line,
)
from aiobus.discovery.tcp_socket import bound_socket, keep_alive
from aiobus.discovery.unix_socket import spare_descriptors
from aiobus.limits import MAX_CONNECTIONS, MAX_HELLO, MAX_MEMBERS, MAX_UNSENT

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

    __slots__ = ("host", "lines", "member", "sock", "timer", "unsent")

    def __init__(self, sock: socket.socket, host: str) -> None:
        self.sock = sock
        self.host = host
        self.timer: asyncio.TimerHandle
        self.lines = LineReader(MAX_HELLO)
        self.unsent = bytearray()
        self.member: Member | None = None
        """The member that has said hello on it."""


class Registry:
    """Serves at `address` from its construction until `close`, in the running loop. Raises OSError
    if it cannot bind, mostly because another process serves there.

    On the roster are `me`, every connected member, and the `known` members that are not connected:
    such a member may be frozen, so its name stays taken. `on_hello(member)` is called at each
    hello. `on_refused(reason)` is called for each connection that is not served, or closed, because
    of what its peer did. Neither may raise.
    """

    def __init__(
        self,
        address: Address,
        me: Member,
        known: KnownMembers,
        *,
        on_hello: Callable[[Member], None],
        on_refused: Callable[[str], None],
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
        self._address = address
        self._on_hello = on_hello
        self._on_refused = on_refused
        self._connections: set[Connection] = set()
        self._silent: dict[str, dict[Connection, None]] = {}
        """Those without a hello, by host, the oldest first."""
        self._most_silent = int(max(FEWEST, min(MAX_CONNECTIONS, spare_descriptors() // 4)))
        self._me = me
        self._known = known
        self._news: list[Member] = []
        self._pause: asyncio.TimerHandle | None = None
        self._accept_when_readable()

    @property
    def roster(self) -> list[Member]:
        """One member at each endpoint, at most 4,096: `me` first, the unconnected last."""
        found: dict[str, Member] = {}
        for member in (self._me, *self._connected, *self._known):
            found.setdefault(place_of(member.endpoint), member)
        return [*found.values()][:MAX_MEMBERS]

    @property
    def absent(self) -> list[Member]:
        """The members that are on the roster and not connected."""
        return [*{*self._known}.difference(self._connected)]

    @property
    def _connected(self) -> list[Member]:
        return [each.member for each in self._connections if each.member is not None]

    def announce(self, news: list[Member]) -> None:
        """Send members that were not known before to every connection, at the next turn of the
        loop.
        """
        if news and not self._news:  # all of one turn are sent together
            self._loop.call_soon(self._send_news)
        self._news += news

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
            sock, (host, *_) = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            # Out of descriptors. The listener stays readable: without a pause the loop would spin.
            self._loop.remove_reader(self._listener.fileno())
            self._pause = self._loop.call_later(ACCEPT_AGAIN_SECONDS, self._accept_when_readable)
            self._on_refused(f"it cannot be accepted yet: {error.strerror}")
            return
        while sum(map(len, self._silent.values())) >= self._most_silent:
            self._end_oldest()
        if len(self._connections) >= MAX_CONNECTIONS and not self._make_room():
            sock.close()
            self._on_refused(f"there are {MAX_CONNECTIONS:,} connections already")
            return
        sock.setblocking(False)
        keep_alive(sock)
        connection = Connection(sock, host)
        reason = f"no hello within {HELLO_SECONDS:g} s"
        connection.timer = self._loop.call_later(HELLO_SECONDS, self._refuse, connection, reason)
        self._connections.add(connection)
        self._silent.setdefault(host, {})[connection] = None
        self._loop.add_reader(sock.fileno(), self._read, connection)

    def _make_room(self) -> bool:
        """End one connection without a hello. False if there is none."""
        while self._silent:
            if self._end_oldest():
                return True
        return False

    def _end_oldest(self) -> bool:
        """Of those without a hello, read from the oldest of the host that has the most, and end it.
        False if its hello has come by now: it stays.
        """
        most = max(self._silent, key=lambda host: len(self._silent[host]))
        oldest = next(iter(self._silent[most]))
        self._read(oldest)
        if oldest in self._connections and oldest.member is None:
            self._refuse(oldest, "no hello yet, and others need its place")
        return oldest not in self._connections

    def _has_spoken(self, connection: Connection) -> None:
        """It has said hello, or has ended. Again: no effect."""
        if (silent := self._silent.get(connection.host)) is not None:
            silent.pop(connection, None)
            if not silent:
                del self._silent[connection.host]

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
        except ProtocolError as error:
            self._refuse(connection, str(error))
        except Exception:
            # Otherwise it would be raised again for every byte, and the loop's own handler does not
            # name the address.
            log.exception("%s: a connection failed and was closed", self._address)
            self._close(connection)

    def _on_line(self, connection: Connection, line: bytes) -> None:
        if connection.member is not None:
            raise ProtocolError("a line after its hello")
        connection.member = member = parse_hello(line)
        connection.timer.cancel()
        self._has_spoken(connection)
        log.debug("%s: %s at %s is here", self._address, *member)
        self._send(connection, roster_line(self.roster))
        self._on_hello(member)

    def _send_news(self) -> None:
        news, self._news = self._news, []
        line = roster_line(news[:MAX_MEMBERS])
        for connection in list(self._connections):
            if connection.member is not None:
                self._send(connection, line)

    def _send(self, connection: Connection, line: bytes) -> None:
        if connection not in self._connections:
            return
        is_waiting = bool(connection.unsent)
        connection.unsent += line
        if len(connection.unsent) > MAX_UNSENT:
            self._refuse(connection, "it does not read what is sent to it")
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
        self._on_refused(reason)

    def _close(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        self._has_spoken(connection)
        connection.timer.cancel()
        self._loop.remove_reader(connection.sock.fileno())
        self._loop.remove_writer(connection.sock.fileno())
        connection.sock.close()
