"""The sockets of one bus: an XPUB to which others listen and an XSUB by which it listens to them.

Owns the ZeroMQ context and every socket option. Must not know what the bytes say, nor when a socket
is read (`reader`).
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys
import warnings
import weakref
from collections.abc import Collection
from contextvars import Context
from threading import Thread

import zmq

from aiobus.errors import BusClosed
from aiobus.transport import fork
from aiobus.transport.descriptors import raise_limit
from aiobus.transport.meeting import Meeting, Member
from aiobus.transport.network import Ears
from aiobus.transport.reader import Drain, UpDrain

__all__ = ["ZmqNetwork"]

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes. A larger message ends the link that it came on; never near what `publish` accepts."""
BACKLOG = 1_024
TCP_RTO_MAX_MS = 44
"""Of Linux since 6.15; the `socket` module does not know it yet."""
RETRANSMIT = 1.0
"""Seconds between two attempts of the kernel to send what was not acknowledged, at most. It
doubles them otherwise, and after a network was cut for 7 s is silent for another 5.
"""
TERM = 0.5
"""Seconds beyond that for ZeroMQ to end."""
LINGER = 1.0
"""Seconds that what was sent has to leave, at most: a frozen peer never takes it."""

LOOK = 0.1
"""Seconds between two looks at the own place. A process that uses up its descriptors between them
is aborted if somebody connects before the next.
"""

log = logging.getLogger("aiobus.transport")


class ZmqNetwork:
    """The `Network` of `ipc://` and `tcp://`; `meeting` tells who is there."""

    def __init__(self, meeting: Meeting, high_water_mark: int) -> None:
        self._meeting = meeting
        self._high_water_mark = high_water_mark
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._connected: set[str] = set()
        self._endpoint = ""
        self._drains: list[Drain] = []
        self._looking: asyncio.TimerHandle | None = None

    @property
    def unreached(self) -> Collection[str]:
        """The meeting places where there may be members that this one has not met."""
        return self._meeting.unreached

    async def open(self, name: str, ears: Ears) -> tuple[str, list[Member]]:
        """Listen, join, and return the own endpoint and who is there. Raises NameInUse."""
        raise_limit()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context = context
        self._sockets: list[zmq.Socket[bytes]] = []
        # It keeps the sockets until they are closed: a context that is collected before them waits
        # for them without end.
        self._abandoned = weakref.finalize(
            self, _abandon, name, context, self._sockets, os.getpid()
        )
        fork.register(self)
        try:
            self._up = UpDrain(self._socket(context, zmq.XPUB), ears.on_up)
            self._drains.append(self._up)
            self._down = Drain(self._socket(context, zmq.XSUB), ears.on_down)
            self._drains.append(self._down)
            members = await self._meeting.join(name, self._bind, ears.on_found)
            self._check_open()
        except BaseException:
            await self.close(0)
            raise
        self._up.start()
        self._down.start()
        self._look(ears, asyncio.get_running_loop(), Context())
        return self._endpoint, members

    def _look(self, ears: Ears, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        self._looking = loop.call_later(LOOK, self._look, ears, loop, context, context=context)
        self._meeting.watch(ears, self._bind)

    def _socket(self, context: "zmq.Context[zmq.Socket[bytes]]", kind: int) -> "zmq.Socket[bytes]":
        socket = context.socket(kind)
        self._sockets.append(socket)
        options = {
            zmq.LINGER: 0,
            zmq.SNDHWM: self._high_water_mark,
            zmq.RCVHWM: self._high_water_mark,
            zmq.MAXMSGSIZE: MAX_MESSAGE,
            zmq.BACKLOG: BACKLOG,
            zmq.IMMEDIATE: 0,
            # A peer that stalls for longer than a ZMTP heartbeat aborts this process when it comes
            # back (libzmq#3937, #4767): silence is judged by the mesh.
            zmq.HEARTBEAT_IVL: 0,
            zmq.HANDSHAKE_IVL: 5_000,
            zmq.RECONNECT_IVL: 100,
            # Both bound what a network that is there again still costs: a first packet is sent with
            # each attempt, and the kernel's own repetitions get slower and slower.
            zmq.CONNECT_TIMEOUT: 1_000,
            zmq.RECONNECT_IVL_MAX: 500,
            zmq.TCP_KEEPALIVE: 1,
            zmq.TCP_KEEPALIVE_IDLE: 30,
            zmq.TCP_KEEPALIVE_INTVL: 5,
            zmq.TCP_KEEPALIVE_CNT: 3,
            # It also ends the link of a process that is frozen while others send, and that is as
            # alive as one that is cut off: not before a link is given up anyhow.
            zmq.TCP_MAXRT: 60_000,
        }
        if kind == zmq.XSUB:
            # Subscriptions count against it and are dropped beyond it without a word
            # (libzmq#4064): of 5,000, a publisher saw 1,000.
            options[zmq.SNDHWM] = 0
        else:
            # One peer that does not read would stop all others.
            options[zmq.XPUB_NODROP] = 0
            # With more, ZeroMQ reads on within one call for as long as a link sends subscriptions
            # faster than it can file them: 30,000 held up the loop for 1 s and took 350 MB. None is
            # lost, since the other side keeps what is not taken.
            options[zmq.RCVHWM] = 1
            # So that a hello is heard again when its link was made anew.
            options[zmq.XPUB_VERBOSE] = 1
        for option, value in options.items():
            socket.set(option, value)
        return socket

    def _check_open(self) -> None:
        if self._context is None:
            raise BusClosed("the bus was closed while it started")

    def _bind(self, endpoint: str) -> str:
        self._check_open()
        self._up.socket.set(zmq.IPV6, "[" in endpoint)
        with _listening(endpoint) as sock:
            self._up.socket.set(zmq.USE_FD, sock.fileno())
            self._up.socket.bind(endpoint)
            sock.detach()  # ZeroMQ's from now on
        if self._endpoint:
            self._up.soon()
        self._endpoint = self._up.socket.get_string(zmq.LAST_ENDPOINT)
        return self._endpoint

    def admits(self, member: Member) -> bool:
        """True when a member may be listening there."""
        return self._meeting.admits(member)

    def remember(self, member: Member) -> None:
        """A member was met that said hello by itself."""
        self._meeting.remember(member)

    async def accepting(self, members: Collection[Member]) -> list[Member]:
        """Those of `members` whose endpoint accepts a connection."""
        return await self._meeting.accepting(members)

    async def absent(self, members: Collection[Member]) -> list[Member]:
        """Those of `members` at whose endpoint nobody listens any more."""
        return await self._meeting.absent(members)

    def mine(self, address: object) -> bool:
        """True when a socket's own or peer address belongs to this bus: not a forked child's."""
        is_tcp = isinstance(address, tuple)
        if is_tcp and _endpoint(address) in self._connected | {self._endpoint}:
            return True
        return self._meeting.mine(address)

    def leave_process(self) -> None:
        """This process is a forked child: read and send nothing here any more."""
        for drain in self._drains:
            drain.leave_process()

    def descriptors(self) -> set[int]:
        """Other descriptors of this bus that a forked child must close."""
        return self._meeting.descriptors()

    def connect(self, endpoint: str) -> None:
        """Link to whoever listens there, now or later. Twice is once: ZeroMQ would make two links
        and bring everything twice.
        """
        if endpoint not in self._connected and self._context is not None:
            self._connected.add(endpoint)
            self._down.socket.set(zmq.IPV6, "[" in endpoint)
            self._down.socket.connect(endpoint)
            self._down.soon()

    def disconnect(self, endpoint: str) -> None:
        """End the link, once all that it brought has been read: ZeroMQ throws the rest away (10 of
        500 arrived).
        """
        if endpoint in self._connected:
            self._down.run_dry(self._high_water_mark * len(self._connected))
            self._connected.discard(endpoint)
            self._down.socket.disconnect(endpoint)
            self._down.soon()

    def end_link(self, link: int) -> None:
        """End the connection of this descriptor, if it is one that was made to this bus."""
        try:
            sock = socket.socket(fileno=link)
        except OSError:  # it has ended by itself
            return
        try:
            # Another file of this process may have the number by now.
            if _endpoint(sock.getsockname()) == self._endpoint:
                sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            log.debug("connection %d cannot be ended: %s", link, error)
        finally:
            sock.detach()  # ZeroMQ closes it

    def subscribe(self, topic: bytes) -> None:
        """Ask every link for a topic."""
        self._down.send(b"\1" + topic)

    def unsubscribe(self, topic: bytes) -> None:
        """Withdraw it."""
        self._down.send(b"\0" + topic)

    def ask(self, question: bytes) -> None:
        """Send a question up every link."""
        self._down.send(question)

    def send(self, message: bytes) -> None:
        """Send a message down to all who asked for its topic."""
        self._up.send(message)

    async def read_ends(self) -> None:
        """Return once no end of a link is half read."""
        await self._up.read_ends()

    def watch(self) -> None:
        """Look whether something came that nobody was woken for."""
        self._up.watch()
        self._down.watch()

    async def close(self, timeout: float) -> None:
        """Leave the meeting, close the sockets, and end the context in a thread of its own, since
        that waits for what was sent to leave; what takes longer than `timeout` goes on without us.
        """
        context, self._context = self._context, None
        self._connected.clear()
        if self._looking is not None:
            self._looking.cancel()
        try:
            await self._meeting.leave()
        finally:
            if context is not None:
                await self._term(context, min(timeout, LINGER))

    async def _term(self, context: "zmq.Context[zmq.Socket[bytes]]", linger: float) -> None:
        self._abandoned.detach()
        for drain in reversed(self._drains):
            drain.close(linger if drain is self._up else 0)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        Thread(target=_end, args=(context, loop, ended), name="aiobus end", daemon=True).start()
        try:
            async with asyncio.timeout(linger + TERM):
                await ended.wait()
        except TimeoutError:
            log.warning("ZeroMQ takes longer than %g s to end", linger + TERM)


def _abandon(
    name: str,
    context: "zmq.Context[zmq.Socket[bytes]]",
    sockets: "list[zmq.Socket[bytes]]",
    pid: int,
) -> None:
    """The bus was collected, or the interpreter ends, before it was closed."""
    if pid != os.getpid():  # it is its parent's
        return
    for each in sockets:
        each.close(linger=0)
    context.term()
    text = f"bus {name!r} was never closed: use `async with`, or `await bus.close()`"
    log.warning("%s", text)  # Python shows no ResourceWarning unless it is asked to
    warnings.warn(text, ResourceWarning, stacklevel=2)


def _end(
    context: "zmq.Context[zmq.Socket[bytes]]", loop: asyncio.AbstractEventLoop, ended: asyncio.Event
) -> None:
    context.term()
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(ended.set)


def _endpoint(address: object) -> str:
    """The endpoint of a socket's address, as the `socket` module gives it."""
    match address:
        case (str(host), int(port), *_):
            return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        case str() | bytes():
            return f"ipc://{os.fsdecode(address)}"
    return ""


def _listening(endpoint: str) -> socket.socket:
    """A socket that listens there. ZeroMQ, given an ipc endpoint, would remove whatever has its
    path; and connections inherit what it has no option for.
    """
    scheme, _, address = endpoint.partition("://")
    if scheme == "ipc":
        sock = socket.socket(socket.AF_UNIX)
    else:
        sock = socket.socket(socket.AF_INET6 if "[" in address else socket.AF_INET)
    try:
        sock.setblocking(False)
        if scheme == "ipc":
            sock.bind(address)
        else:
            host, _, port = address.rpartition(":")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sys.platform == "linux":
                with contextlib.suppress(OSError):  # an older kernel
                    sock.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, int(RETRANSMIT * 1000))
            sock.bind((host.strip("[]"), 0 if port == "*" else int(port)))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
