"""The sockets of one bus: an XPUB to which others listen and an XSUB by which it listens to them.

Owns the ZeroMQ context, every socket option, and the reading. Must not know what the bytes say.

ZeroMQ's descriptor is edge-triggered, and each call that sends, connects or disconnects can swallow
the edge for good: then a socket is full of messages and nobody is woken (pyzmq#1021, #1085). So a
socket is drained when its descriptor is readable, after each such call, and once a second.
"""

import asyncio
import contextlib
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable, Collection
from contextvars import Context
from threading import Thread

import zmq
import zmq.asyncio

from aiobus.errors import BusClosed, BusError
from aiobus.transport import fork
from aiobus.transport.meeting import Meeting, Member
from aiobus.transport.network import Ears
from aiobus.turn import READER_MESSAGES, READER_SECONDS, Turn

__all__ = ["ZmqNetwork"]

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes. A larger message ends the link that it came on; never near what `publish` accepts."""
DESCRIPTORS = 8_192
SPARE_DESCRIPTORS = 64
BACKLOG = 1_024
TCP_RTO_MAX_MS = 44
"""Of Linux since 6.15; the `socket` module does not know it yet."""
RETRANSMIT = 1.0
"""Seconds between two attempts of the kernel to send what was not acknowledged, at most. It
doubles them otherwise, and after a network was cut for 7 s is silent for another 5.
"""
EVENTS = int(zmq.EVENTS)
SRCFD = int(zmq.SRCFD)
POLLIN = int(zmq.POLLIN)
LOOKS = 3
"""Turns of the loop in which it would have found a descriptor readable."""
TERM = 0.5
"""Seconds beyond that for ZeroMQ to end."""
LINGER = 1.0
"""Seconds that what was sent has to leave, at most: a frozen peer never takes it."""

log = logging.getLogger("aiobus.transport")


class Drain:
    """Reads one socket dry, a turn of the loop at a time, and hands on what it reads."""

    def __init__(self, socket: "zmq.asyncio.Socket", hear: Callable[..., None]) -> None:
        self._socket = socket
        self.shadow: zmq.Socket[bytes] = zmq.Socket.shadow(socket.underlying)
        """The same socket, without futures: they cost 20 x in throughput and lose messages when
        cancelled (pyzmq#1925).
        """
        self._send = super(zmq.Socket, self.shadow).send  # two calls less than the Python one
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._turn = Turn(READER_SECONDS, READER_MESSAGES)
        self._is_due = self._is_closed = False
        self._runs = 0
        self.found = 0
        """Messages that only `watch` has found."""

    def start(self) -> None:
        """Read from now on, beginning with the next turn of the loop."""
        self._loop.add_reader(self._socket.FD, self._on_readable)
        self.soon()

    def _on_readable(self) -> None:
        self._context.run(self.run, is_readable=True)

    def soon(self) -> None:
        """Read at the next turn of the loop: the socket was used."""
        if not (self._is_due or self._is_closed):
            self._is_due = True
            self._loop.call_soon(self.run, context=self._context)

    def run(self, *, is_readable: bool = False) -> None:
        """Read what is there, for one turn of the loop; the rest at the next. `is_readable`: there
        probably is something.
        """
        self._is_due = False
        self._runs += 1
        self._turn.renew()
        # Asking first takes half the time of the exception that tells there is nothing.
        while not self._is_closed and (is_readable or self._has_message()):
            is_readable = False
            try:
                self._read()
            except zmq.Again:  # a link was made, or a peer took something
                continue
            if self._turn.spend():
                self.soon()
                return

    def run_dry(self, most: int) -> None:
        """Read all that is there now, at most so many messages: others may be sending."""
        for _ in range(most):
            if not self._has_message():
                return
            self._read()

    def _read(self) -> None:
        self._handle(self.shadow.recv(zmq.NOBLOCK))

    def _has_message(self) -> bool:
        return bool(self.shadow.get(EVENTS) & POLLIN)  # type: ignore[operator]

    def _handle(self, message: bytes, *link: int | None) -> None:
        try:
            self._hear(message, *link)
        except Exception:
            # A mistake of ours that a message brought to light: the next ones must be read.
            log.exception("a message of %d bytes could not be handled", len(message))

    def send(self, message: bytes) -> None:
        """Send, unless closed: never waits."""
        if not self._is_closed:
            self._send(message, zmq.NOBLOCK)
            self.soon()

    def watch(self) -> None:
        """Look whether there is something that nobody is woken for: that the loop's next looks at
        the descriptor do not find.
        """
        self._suspect(self._runs, LOOKS)

    def _suspect(self, runs: int, looks: int) -> None:
        if self._is_due or self._is_closed or runs != self._runs or not self.shadow.poll(0):
            return
        if looks:
            self._loop.call_soon(self._suspect, runs, looks - 1, context=self._context)
        else:
            self.found += 1
            self.soon()

    def close(self, linger: float) -> None:
        """Read no more; what was sent has `linger` seconds to leave. Again: nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._socket.FD)
            self._socket.close(linger=int(linger * 1000))


class UpDrain(Drain):
    """The same for the socket that others listen to: `hear` is told which connection it was."""

    def _read(self) -> None:
        frame = self.shadow.recv(zmq.NOBLOCK, copy=False)
        try:
            link: int | None = frame.get(SRCFD)
        except zmq.ZMQError:  # ZeroMQ withdraws what a connection that ended had asked for
            link = None
        self._handle(frame.bytes, link)


class ZmqNetwork:
    """The `Network` of `ipc://` and `tcp://`; `meeting` tells who is there."""

    def __init__(self, meeting: Meeting, high_water_mark: int) -> None:
        self._meeting = meeting
        self._high_water_mark = high_water_mark
        self._context: zmq.asyncio.Context | None = None
        self._connected: set[str] = set()
        self._endpoint = ""
        self._drains: list[Drain] = []

    async def open(self, name: str, ears: Ears) -> tuple[str, list[Member]]:
        """Listen, join, and return the own endpoint and who is there. Raises NameInUse."""
        _raise_descriptor_limit()
        context: zmq.asyncio.Context = zmq.asyncio.Context()
        self._context = context
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
        return self._endpoint, members

    def _socket(self, context: "zmq.asyncio.Context", kind: int) -> "zmq.asyncio.Socket":
        socket = context.socket(kind)
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
        self._up.shadow.set(zmq.IPV6, "[" in endpoint)
        if endpoint.startswith("tcp://"):
            with _listening(endpoint) as sock:
                self._up.shadow.set(zmq.USE_FD, sock.fileno())
                self._up.shadow.bind(endpoint)
                sock.detach()  # ZeroMQ's from now on
        else:
            self._up.shadow.bind(endpoint)
        self._endpoint = self._up.shadow.get_string(zmq.LAST_ENDPOINT)
        return self._endpoint

    def admits(self, member: Member) -> bool:
        """True when a member may be listening there."""
        return self._meeting.admits(member)

    def remember(self, member: Member) -> None:
        """A member was met that said hello by itself."""
        self._meeting.remember(member)

    async def absent(self, members: Collection[Member]) -> list[Member]:
        """Those of `members` at whose endpoint nobody listens any more."""
        return await self._meeting.absent(members)

    def mine(self, address: object) -> bool:
        """True when a socket's own or peer address belongs to this bus: not a forked child's."""
        if isinstance(address, tuple) and len(address) >= 2:
            host = f"[{address[0]}]" if ":" in str(address[0]) else address[0]
            if f"tcp://{host}:{address[1]}" in self._connected | {self._endpoint}:
                return True
        return self._meeting.mine(address)

    def descriptors(self) -> set[int]:
        """Other descriptors of this bus that a forked child must close."""
        return self._meeting.descriptors()

    def connect(self, endpoint: str) -> None:
        """Link to whoever listens there, now or later. Twice is once: ZeroMQ would make two links
        and bring everything twice.
        """
        if endpoint not in self._connected and self._context is not None:
            self._connected.add(endpoint)
            self._down.shadow.set(zmq.IPV6, "[" in endpoint)
            self._down.shadow.connect(endpoint)
            self._down.soon()

    def disconnect(self, endpoint: str) -> None:
        """End the link, once all that it brought has been read: ZeroMQ throws the rest away (10 of
        500 arrived).
        """
        if endpoint in self._connected:
            self._down.run_dry(self._high_water_mark * len(self._connected))
            self._connected.discard(endpoint)
            self._down.shadow.disconnect(endpoint)
            self._down.soon()

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
        try:
            await self._meeting.leave()
        finally:
            if context is not None:
                await self._term(context, min(timeout, LINGER))

    async def _term(self, context: "zmq.asyncio.Context", linger: float) -> None:
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


def _end(
    context: "zmq.asyncio.Context", loop: asyncio.AbstractEventLoop, ended: asyncio.Event
) -> None:
    context.term()
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(ended.set)


def _listening(endpoint: str) -> socket.socket:
    """A socket that listens there, and whose connections inherit what ZeroMQ has no option for."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    sock = socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET)
    try:
        sock.setblocking(False)
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


def _raise_descriptor_limit() -> None:
    """Without descriptors an ipc listener does not refuse: it aborts the process (pyzmq#1591). Two
    are needed for each peer, so the usual soft limit of 1,024 is raised as far as it may be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    spare = soft - len(os.listdir("/dev/fd"))
    if soft != resource.RLIM_INFINITY and spare < SPARE_DESCRIPTORS:
        raise BusError(
            f"only {spare} more files may be opened by this process, and {SPARE_DESCRIPTORS} are"
            " needed for a bus with peers: raise the limit (ulimit -n)"
        )
