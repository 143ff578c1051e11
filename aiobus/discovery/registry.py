"""The holder of one rendezvous address: listens there, hears hellos and hands out the roster.

Owns the listening socket and every connection to it, their bounds and their ends; presence is the
connection. Must not know of other addresses, of taking over, or what the roster is good for.

Sockets and reader callbacks in place of streams: there is no task for each of a thousand guests, no
transport to wait for, and nothing under way between an accept and its connection when the holder
closes (cpython#109564). So `close` is one plain call.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from aiobus.discovery import Member
from aiobus.discovery.roster import (
    MAX_HELLO,
    MAX_MEMBERS,
    Address,
    Lines,
    Malformed,
    Met,
    Roster,
    parse_hello,
    roster_line,
)

__all__ = [
    "Registry",
    "keep_alive",
]

log = logging.getLogger("aiobus.mesh")

MAX_GUESTS = 1_024
MAX_UNSENT = 1024 * 1024
"""Bytes that wait for a guest who does not read, before it is sent away."""
HELLO_SECONDS = 5.0
ACCEPT_AGAIN_SECONDS = 0.25
BACKLOG = 1_024
CHUNK = 64 * 1024
KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 5, "TCP_USER_TIMEOUT": 10_000}
"""Seconds, seconds, times, milliseconds: a connection across a network that is cut ends after 10 s.
Nothing is sent on it for hours, so nobody would ever notice, and not hear of newcomers.
"""


class Guest:
    """One connection to a holder. Whose it is, the roster knows."""

    __slots__ = ("has_said_hello", "lines", "sock", "timer", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lines = Lines(MAX_HELLO)
        self.unsent = bytearray()
        self.has_said_hello = False
        self.timer: asyncio.TimerHandle | None = None


class Registry:
    """Serves at `address` from its making until `close`, in the running loop. Raises OSError when
    it cannot, which mostly means that somebody else does.

    `me` and those of `met` are on the roster without a connection. `came(member)` is called at each
    hello, `refused(reason)` for each connection that is not served, or no longer, because of what
    its peer did. Neither may raise.
    """

    def __init__(
        self,
        address: Address,
        me: Member,
        met: Met,
        *,
        came: Callable[[Member], None],
        refused: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            self._listener = _listening(address, again=False)
            self.is_heir = False
            """True when another served here just now: those it served may be on their way here."""
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            self._listener = _listening(address, again=True)
            self.is_heir = True
        self._address = address
        self._came = came
        self._refused = refused
        self._guests: set[Guest] = set()
        self._roster = Roster(me, met)
        self._news: list[Member] = []
        self._pause: asyncio.TimerHandle | None = None
        self._accept_when_readable()

    @property
    def absent(self) -> list[Member]:
        """The members that are on the roster and not connected."""
        return self._roster.absent

    def tell(self, news: list[Member]) -> None:
        """Tell each guest of members that were not known before, at the next turn of the loop."""
        if news and not self._news:  # those of one tick are told of together
            self._loop.call_soon(self._spread)
        self._news += news

    def close(self) -> None:
        """End every connection and give the address up, at once. Again: nothing."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listener.fileno() >= 0:
            # Before the connections, so that whoever sees its own end finds the address free.
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
        for guest in list(self._guests):
            self._dismiss(guest)

    def _accept_when_readable(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            # Out of descriptors. The listener stays readable: without a pause the loop would spin.
            self._loop.remove_reader(self._listener.fileno())
            self._pause = self._loop.call_later(ACCEPT_AGAIN_SECONDS, self._accept_when_readable)
            self._refused(f"it cannot be accepted yet: {error.strerror}")
            return
        if len(self._guests) >= MAX_GUESTS:
            sock.close()
            self._refused(f"there are {MAX_GUESTS:,} connections already")
            return
        sock.setblocking(False)
        keep_alive(sock)
        guest = Guest(sock)
        reason = f"no hello within {HELLO_SECONDS:g} s"
        guest.timer = self._loop.call_later(HELLO_SECONDS, self._refuse, guest, reason)
        self._guests.add(guest)
        self._loop.add_reader(sock.fileno(), self._read, guest)

    def _read(self, guest: Guest) -> None:
        try:
            data = guest.sock.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""  # reset by a peer that died
        try:
            if data:
                for line in guest.lines.feed(data):
                    self._hear(guest, line)
            else:
                guest.lines.end()
                self._dismiss(guest)
        except Malformed as error:
            self._refuse(guest, str(error))
        except Exception:
            # It would come again with every byte, and the loop's own handler names no address.
            log.exception("%s: a connection failed and was closed", self._address)
            self._dismiss(guest)

    def _hear(self, guest: Guest, line: bytes) -> None:
        if guest.has_said_hello:
            raise Malformed("a line after its hello")
        member = parse_hello(line)
        guest.has_said_hello = True
        if guest.timer is not None:
            guest.timer.cancel()
        log.debug("%s: %s at %s is here", self._address, *member)
        self._roster.enter(guest, member)
        self._send(guest, roster_line(self._roster.members()))
        self._came(member)

    def _spread(self) -> None:
        news, self._news = self._news, []
        line = roster_line(news[:MAX_MEMBERS])
        for guest in list(self._guests):
            if guest.has_said_hello:
                self._send(guest, line)

    def _send(self, guest: Guest, line: bytes) -> None:
        if guest not in self._guests:
            return
        is_waiting = bool(guest.unsent)
        guest.unsent += line
        if len(guest.unsent) > MAX_UNSENT:
            self._refuse(guest, "it does not read what it is told")
        elif not is_waiting:
            self._write(guest)

    def _write(self, guest: Guest) -> None:
        try:
            sent = guest.sock.send(guest.unsent)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._dismiss(guest)
            return
        del guest.unsent[:sent]
        if guest.unsent:
            self._loop.add_writer(guest.sock.fileno(), self._write, guest)
        else:
            self._loop.remove_writer(guest.sock.fileno())

    def _refuse(self, guest: Guest, reason: str) -> None:
        self._dismiss(guest)
        self._refused(reason)

    def _dismiss(self, guest: Guest) -> None:
        if guest not in self._guests:
            return
        self._guests.discard(guest)
        self._roster.leave(guest)
        if guest.timer is not None:
            guest.timer.cancel()
        self._loop.remove_reader(guest.sock.fileno())
        self._loop.remove_writer(guest.sock.fileno())
        guest.sock.close()


def keep_alive(sock: socket.socket) -> None:
    """Let the kernel see whether the other side can still be reached."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if (option := getattr(socket, name, None)) is not None:  # not every system has each
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _listening(address: Address, *, again: bool) -> socket.socket:
    """A socket that listens. `again`: although connections of who did so before linger there, which
    the kernel refuses otherwise.
    """
    sock = socket.socket(socket.AF_INET6 if address.is_v6 else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, again)
        sock.setblocking(False)
        sock.bind(address)
        # In any case from now on: what is accepted inherits it, and would else keep successors out.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # With the option several may bind, but only one of them may listen.
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
