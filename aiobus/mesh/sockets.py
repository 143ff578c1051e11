"""The sockets of one bus: an XPUB to which others listen and an XSUB by which it listens to
them; when they are read, and what a forked child must not keep of them.

Owns the ZeroMQ context, every socket option, the reader's turn, and the hook after `os.fork`. Must
not know what the bytes say.

ZeroMQ's descriptor is edge-triggered, and each call that sends, connects or disconnects can swallow
the edge for good: then a socket is full of messages and nothing wakes its reader (pyzmq#1021,
#1085). So a socket is drained when its descriptor is readable, after each such call, and once a
second. A child inherits every descriptor, so while it lives its dead parent would still seem to
listen: its name in use, its links up (measured). The child closes just the sockets of a mesh.
"""

import asyncio
import contextlib
import logging
import os
import socket
import stat
import sys
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator
from contextvars import Context
from threading import Thread
from typing import Protocol
from weakref import WeakSet

import zmq

from aiobus.discovery import Discovery, Member
from aiobus.discovery.doorway import raise_limit
from aiobus.errors import BusClosed
from aiobus.mesh import Ears
from aiobus.sync import READER_MESSAGES, READER_SECONDS, Notifier, TimeSlice

__all__ = [
    "Drain",
    "Keeper",
    "UpDrain",
    "ZmqNetwork",
    "register",
]


class Keeper(Protocol):
    """Whoever has descriptors that a child must close."""

    def mine(self, address: object) -> bool:
        """True when a socket with this own or peer address belongs to it."""
        ...

    def descriptors(self) -> set[int]:
        """Other descriptors that belong to it."""
        ...

    def leave_process(self) -> None:
        """This process is a forked child: use nothing of it here any more."""
        ...


_keepers: WeakSet[Keeper] = WeakSet()

register: Callable[[Keeper], None] = _keepers.add
"""Close what belongs to the keeper in every child forked from now on, while the keeper lives."""


def _close_in_child() -> None:
    keepers = list(_keepers)
    if not keepers:
        return
    for keeper in keepers:
        keeper.leave_process()
    mine = {descriptor for keeper in keepers for descriptor in keeper.descriptors()}
    for descriptor in _open_descriptors():
        addresses = _addresses(descriptor)
        if any(keeper.mine(address) for keeper in keepers for address in addresses):
            mine.add(descriptor)
    # The numbers stay taken: objects of the parent that are still here will close them once more,
    # and must not hit a file that the child has opened since.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in mine:
        os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


def _open_descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/dev/fd")]


def _addresses(descriptor: int) -> Iterator[object]:
    """Its own and its peer's address, if it is a socket."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            yield copy.getsockname()
            yield copy.getpeername()
    except OSError:  # not open any more, or not connected
        return


os.register_at_fork(after_in_child=_close_in_child)


EVENTS = int(zmq.EVENTS)
SRCFD = int(zmq.SRCFD)
POLLIN = int(zmq.POLLIN)
LOOKS = 3
"""Turns of the loop in which it would have found a descriptor readable."""

log = logging.getLogger("aiobus.mesh")


class Drain:
    """Reads one socket dry, a turn of the loop at a time, and hands on what it reads."""

    def __init__(self, socket: "zmq.Socket[bytes]", hear: Callable[..., None]) -> None:
        self.socket = socket
        """Without futures: they cost 20 x in throughput and lose messages when cancelled
        (pyzmq#1925).
        """
        self._send = super(zmq.Socket, socket).send  # two calls less than the Python one
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._turn = TimeSlice(READER_SECONDS, READER_MESSAGES)
        self._is_due = self._is_closed = False
        self._runs = 0
        self.found = 0
        """Messages that only `watch` has found."""

    def start(self) -> None:
        """Read from now on, beginning with the next turn of the loop."""
        self._loop.add_reader(self.socket.FD, self._on_readable)
        self.soon()

    def _on_readable(self) -> None:
        # Else both would run in this iteration, and schedule a run each: one more each time.
        if not self._is_due:
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
        self._handle(self.socket.recv(zmq.NOBLOCK))

    def _has_message(self) -> bool:
        return bool(self.socket.get(EVENTS) & POLLIN)  # type: ignore[operator]

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
        if self._is_due or self._is_closed or runs != self._runs or not self.socket.poll(0):
            return
        if looks:
            self._loop.call_soon(self._suspect, runs, looks - 1, context=self._context)
        else:
            self.found += 1
            self.soon()

    def leave_process(self) -> None:
        """This process is a forked child. Its loop may run on, and a socket of the parent seems to
        have messages without end here.
        """
        self._is_closed = True

    def close(self, linger: float) -> None:
        """Read no more; what was sent has `linger` seconds to leave. Again: nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self.socket.FD)
            self.socket.close(linger=int(linger * 1000))


class UpDrain(Drain):
    """The same for the socket that others listen to: `hear` is told which connection it was.

    When a connection ends, ZeroMQ withdraws all its topics one after another, its hello among the
    last: until that is read, a peer seems to listen whose topics are withdrawn already.
    """

    def __init__(self, socket: "zmq.Socket[bytes]", hear: Callable[..., None]) -> None:
        super().__init__(socket, hear)
        self._is_within_end = False
        self._moved = Notifier()

    def run(self, *, is_readable: bool = False) -> None:
        """As above."""
        super().run(is_readable=is_readable)
        if self._is_within_end and (self._is_closed or not self._has_message()):
            self._is_within_end = False
        self._moved.wake()

    def _read(self) -> None:
        frame = self.socket.recv(zmq.NOBLOCK, copy=False)
        try:
            link: int | None = frame.get(SRCFD)
        except zmq.ZMQError:  # a withdrawal of ZeroMQ itself: its connection has ended
            link = None
        self._is_within_end = link is None
        self._handle(frame.bytes, link)

    async def read_ends(self) -> None:
        """Return once no end of a connection is half read. Cancelling stops the waiting."""
        while self._is_within_end and not self._is_closed:
            await self._moved.wait()

    def close(self, linger: float) -> None:
        """As above."""
        super().close(linger)
        self._moved.wake()


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


class ZmqNetwork:
    """The `Network` of `ipc://` and `tcp://`; `meeting` tells who is there."""

    def __init__(self, meeting: Discovery, high_water_mark: int) -> None:
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
        register(self)
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
