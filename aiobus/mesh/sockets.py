"""The sockets of one bus: an XPUB to which others listen and an XSUB by which it listens to
them; when they are read, and what a forked child must not keep of them.

Owns the ZeroMQ context, every socket option, the reader's share of the loop, and the hook after
`os.fork`. Must not know what the bytes say.

ZeroMQ's descriptor is edge-triggered, and each call that sends, connects or disconnects can swallow
the edge for good: then a socket is full of messages and nothing wakes its reader (pyzmq#1021,
#1085). So a socket is drained when its descriptor is readable, after each such call, and once a
second. A child inherits every descriptor, so while it lives its dead parent would still seem to
listen: its name in use, its links up (measured). The child closes just the sockets of a mesh.
"""

import asyncio
import contextlib
import logging
import math
import os
import socket
import stat
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextvars import Context
from threading import Thread, current_thread
from typing import Any
from weakref import WeakSet

import zmq

from aiobus.clock import elapsed, stopwatch
from aiobus.confinement import check
from aiobus.discovery import OBSERVES, Discovery, is_observer, place_of
from aiobus.discovery.gate import Gate
from aiobus.discovery.hosts import is_own
from aiobus.discovery.roster import Address, is_unicast
from aiobus.discovery.tcp_socket import bound_socket
from aiobus.discovery.unix_socket import raise_limit
from aiobus.keyring.members import Members
from aiobus.lockout import enter_desk, leave_desk
from aiobus.mesh import FromPublisher, FromSubscriber, KeyCallbacks
from aiobus.sync import READER_MESSAGES, READER_SECONDS, Notifier

__all__ = ["SocketReader", "SubscriberReader", "ZmqNetwork", "place_on_wire"]


_networks: WeakSet["ZmqNetwork"] = WeakSet()
"""The networks whose descriptors every child that is forked from now on closes."""


def _close_in_child() -> None:
    networks = list(_networks)
    if not networks:
        return
    for network in networks:
        network.leave_process()
    mine = {descriptor for network in networks for descriptor in network.descriptors()}
    for descriptor in _open_descriptors():
        addresses = _addresses(descriptor)
        if any(network.owns_address(address) for network in networks for address in addresses):
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


def _leave(message: bytes, beside: Any, name: str) -> None:
    """Nothing is read before `start`."""


MISTAKE = "a message of %d bytes could not be handled"
"""Logged for a fault of this package. The next messages must be read all the same."""


class SocketReader:
    """Reads one socket dry, a slice of time a turn; hands over each message, its time, and the name
    that the other end of the socket has proven, "" for none.
    """

    def __init__(self, socket: "zmq.Socket[bytes]", proven: str = "") -> None:
        self.socket = socket
        """Without futures, which cost 20 x in throughput and lose messages (pyzmq#1925)."""
        self.send_raw = super(zmq.Socket, socket).send  # two calls less than the Python one
        self._receive: Callable[[bytes, Any, str], None] = _leave
        self._proven = proven
        self._is_started = False
        self._loop = asyncio.get_running_loop()
        self._clock = stopwatch()
        self._context = Context()
        self.is_due = self.is_closed = self._is_within_end = False
        self._moved = Notifier()
        self._runs = 0
        self.found = 0
        """Messages that only `check_wakeup` has found."""

    def start(self, receive: Callable[[bytes, Any, str], None]) -> None:
        """Read from now on, beginning with the next turn of the loop."""
        self._receive, self._is_started = receive, True
        # The loop runs the reader in a copy of the context that is current here.
        self._context.run(self._loop.add_reader, self.socket.FD, self.run, True)
        self.soon()

    def soon(self) -> None:
        """Read at the next turn of the loop: the socket was used."""
        if self._is_started and not (self.is_due or self.is_closed):
            self.is_due = True
            self._loop.call_soon(self.run, context=self._context)

    def run(self, is_readable: bool = False) -> None:
        """Read for one slice of time. `is_readable`: there probably is something."""
        if not is_readable:
            self.is_due = False
        elif self.is_due:  # else both would run in this turn, and schedule a run each: one more
            return
        self._runs += 1
        if is_readable or (not self.is_closed and self.socket.get(EVENTS) & POLLIN):  # type: ignore[operator]
            left, clock = READER_MESSAGES, self._clock
            now = clock()
            until = now + READER_SECONDS
            # Asking first takes half the time of the exception that tells there is nothing.
            while not self.is_closed and (is_readable or self.socket.get(EVENTS) & POLLIN):  # type: ignore[operator]
                is_readable = False
                try:
                    self._read(now)
                except zmq.Again:  # a link was made, or a peer took something
                    continue
                left, now = left - 1, clock()
                if left <= 0 or now > until:
                    self.soon()
                    break
        if self._is_within_end and (self.is_closed or not self.has_message()):
            self._is_within_end = False
        if self._moved.futures:
            self._moved.wake()

    def run_dry(self, most: int) -> None:
        """Read all that is there now, at most so many messages: others may be sending."""
        for _ in range(most):
            if not self.has_message():
                return
            self._read(self._clock())

    def _read(self, now: float) -> None:
        message = self.socket.recv(zmq.NOBLOCK)
        try:
            self._receive(message, now, self._proven)
        except Exception:
            log.exception(MISTAKE, len(message))

    def has_message(self) -> bool:
        """True if there is one to be read now."""
        return bool(self.socket.get(EVENTS) & POLLIN)  # type: ignore[operator]

    def send(self, message: bytes) -> None:
        """Send, unless closed: never waits."""
        if not self.is_closed:
            self.send_raw(message, zmq.NOBLOCK)
            if not self.is_due:
                self.soon()

    async def read_ends(self) -> None:
        """Return once no end of a connection is half read. Cancelling stops the waiting."""
        while self._is_within_end and not self.is_closed:
            await self._moved.wait()

    def check_wakeup(self) -> None:
        """Look for messages that did not wake the reader."""
        self._suspect(self._runs, LOOKS)

    def _suspect(self, runs: int, looks: int) -> None:
        if self.is_due or self.is_closed or runs != self._runs or not self.socket.poll(0):
            return
        if looks:
            self._loop.call_soon(self._suspect, runs, looks - 1, context=self._context)
        else:
            self.found += 1
            self.soon()

    def leave_process(self) -> None:
        """Read no more in a forked child, where the socket seems to have messages without end."""
        self.is_closed = True

    def close(self, linger: float) -> None:
        """Read no more; what was sent has `linger` seconds to leave. Again: nothing."""
        if not self.is_closed:
            self.is_closed = True
            self._loop.remove_reader(self.socket.FD)
            self.socket.close(linger=int(linger * 1000))
        self._moved.wake()


class SubscriberReader(SocketReader):
    """Reads the socket that others subscribe at; hands over each message with the number of its
    connection.

    When a connection ends, ZeroMQ withdraws its topics one by one, its hello among the last: until
    then, a peer seems to listen whose topics are withdrawn already.
    """

    def _read(self, now: float) -> None:
        frame = self.socket.recv(zmq.NOBLOCK, copy=False)
        try:
            link: int | None = frame.get(SRCFD)
        except zmq.ZMQError:  # a withdrawal of ZeroMQ itself: its connection has ended
            link = None
        self._is_within_end = link is None
        try:
            self._receive(frame.bytes, link, "")
        except Exception:
            log.exception(MISTAKE, len(frame.bytes))


MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes. A larger message ends the link that it came on; never near what `publish` accepts."""
BACKLOG = 1_024
TCP_RTO_MAX_MS = 44
"""Of Linux since 6.15; the `socket` module does not know it yet."""
RETRANSMIT = 1.0
"""Seconds between two attempts of the kernel to send what was not acknowledged, at most. It
doubles them otherwise, and after a network was cut for 7 s is silent for another 5.
"""
HELD_UP = 1.5
"""Seconds without a look at the clock, which is due each second: this process was held up."""
READ_SECONDS = 1.0
"""For which it only reads then, and sends nothing to publishers."""
MAX_HELD = 10_000
"""Messages that wait for that. With more, all are sent."""
TERM = 0.5
"""Seconds beyond that for ZeroMQ to end."""
LINGER = 1.0
"""Seconds that what was sent has to leave, at most: a frozen peer never takes it."""


class ZmqNetwork:
    """The `Network` of `ipc://` and `tcp://`. A forked child closes all its descriptors."""

    def __init__(self, discovery: Discovery, high_water_mark: int) -> None:
        self._discovery = discovery
        self._high_water_mark = high_water_mark
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._connected: dict[str, set[str]] = {}
        """The endpoints that are linked to, by where the connection goes: one may be that of an
        observer that is dead, whose port another bus has now.
        """
        self._endpoint = ""
        self.members = Members()
        """Nobody is listed: whoever can connect is let in, and proves no name."""
        self._gates: list[Gate] = []
        """Of the TCP port that is listened at: one at most."""
        self._readers: list[SocketReader] = []
        self._looked = math.inf
        """When `check_wakeups` was called last."""
        self._reads_until = 0.0
        self._held: list[tuple[SocketReader, bytes]] = []
        """What is to be sent to publishers once what has arrived was read."""
        self._threads: list[Thread] = []
        """Those that have sockets of the context, and close them once it ends."""

    def open(self, name: str) -> None:
        """Make the sockets. Raises ZMQError if the process may open no more files, LeavesProcess
        in virtual time, and while a replay is open in this process.
        """
        check("AsyncEventBus.start", f"() of {name!r} on ipc:// or tcp://")
        enter_desk(self, name, "on ipc:// or tcp://")
        raise_limit()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context = context
        self._sockets: list[zmq.Socket[bytes]] = []
        # It keeps the sockets until they are closed: a context that is collected before them waits
        # for them without end.
        self._abandoned = weakref.finalize(
            self, _abandon, name, context, self._sockets, self._gates, self._threads, os.getpid()
        )
        _networks.add(self)
        self._open_sockets(context)

    def _open_sockets(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self._xpub = SubscriberReader(self._socket(context, zmq.XPUB))
        self._readers.append(self._xpub)
        self._xsub = SocketReader(self._socket(context, zmq.XSUB))
        self._readers.append(self._xsub)

    def start(
        self, from_subscriber: FromSubscriber, from_publisher: FromPublisher, keys: KeyCallbacks
    ) -> None:
        """Hand over what arrives, from the next turn of the loop on."""
        self._xpub.start(from_subscriber)
        self._xsub.start(from_publisher)

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
            # So that a hello is heard again when its link was made again.
            options[zmq.XPUB_VERBOSE] = 1
        for option, value in options.items():
            socket.set(option, value)
        return socket

    def bind(self, endpoint: str) -> str:
        """Listen, and return the endpoint with the port that was given."""
        if endpoint.startswith("tcp") and is_observer(endpoint):
            return self.bind(place_of(endpoint)) + OBSERVES
        self._xpub.socket.set(zmq.IPV6, "[" in endpoint)
        self._close_gates()  # else a port could not be listened at again
        with _bound(endpoint) as sock:
            if endpoint.startswith("tcp"):
                self._gates.append(Gate(sock))
            try:
                self._xpub.socket.set(zmq.USE_FD, sock.fileno())
                self._xpub.socket.bind(endpoint)
            except BaseException:
                self._close_gates()
                raise
            sock.detach()  # ZeroMQ's from now on
        self._xpub.soon()
        self._endpoint = self._xpub.socket.get_string(zmq.LAST_ENDPOINT)
        return self._endpoint

    def _is_at(self, address: object) -> bool:
        """True for the address of a socket where this bus listens, which may be on all addresses of
        this host.
        """
        if _endpoint(address) == self._endpoint:
            return True
        host, _, port = self._endpoint.rpartition(":")
        match address:
            case (str(own), int(number), *_) if host in ("tcp://0.0.0.0", "tcp://[::]"):
                literal = own.removeprefix(MAPPED)
                with contextlib.suppress(OSError):  # no descriptor is left to find out
                    return str(number) == port and is_unicast(literal) and is_own(literal)
        return False

    def _close_gates(self) -> None:
        while self._gates:
            self._gates.pop().close()

    def check_admission(self, on_problem: Callable[[str, str], None]) -> None:
        """Accept no link while descriptors are short. An ipc socket is its discovery's business."""
        for gate in self._gates:
            gate.watch(on_problem)

    def owns_address(self, address: object) -> bool:
        """True when a socket's own or peer address belongs to this bus, and not to a forked
        child.
        """
        is_tcp = isinstance(address, tuple)
        if is_tcp and (_endpoint(address) in self._connected or self._is_at(address)):
            return True
        return self._discovery.owns_address(address)

    def leave_process(self) -> None:
        """This process is a forked child: read and send nothing here any more."""
        for reader in self._readers:
            reader.leave_process()
        for gate in self._gates:
            gate.leave_process()

    def descriptors(self) -> set[int]:
        """Other descriptors of this bus that a forked child must close."""
        return self._discovery.descriptors()

    def connect(self, endpoint: str, name: str) -> None:
        """Link to the bus that listens there, once: of two links all would come twice."""
        place = place_on_wire(endpoint)
        linked = self._connected.setdefault(place, set())
        if endpoint in linked or self._context is None:
            return
        linked.add(endpoint)
        if len(linked) > 1:
            return
        self._xsub.socket.set(zmq.IPV6, "[" in place)
        self._xsub.socket.connect(place)
        self._xsub.soon()

    def may_listen(self, endpoint: str, name: str) -> bool:
        """True: without keys, each bus is what it says."""
        return True

    def disconnect(self, endpoint: str) -> None:
        """End the link, after reading it: ZeroMQ throws the rest away (10 of 500 arrived)."""
        place = place_on_wire(endpoint)
        if endpoint in (linked := self._connected.get(place, set())):
            self._xsub.run_dry(self._high_water_mark * len(self._connected))
            linked.discard(endpoint)
            if not linked and self._connected.pop(place, None) is not None:
                self._xsub.socket.disconnect(place)
                self._xsub.soon()

    def end_link(self, link: int) -> None:
        """End the connection of this descriptor, if it is one that was made to this bus."""
        try:
            sock = socket.socket(fileno=link)
        except OSError:  # it has ended by itself
            return
        try:
            # Another file of this process may have the number by now.
            if self._is_at(sock.getsockname()):
                sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            log.debug("connection %d cannot be ended: %s", link, error)
        finally:
            sock.detach()  # ZeroMQ closes it

    def subscribe(self, topic: bytes) -> None:
        """Ask every publisher for a topic."""
        self._send_up(self._xsub, b"\1" + topic)

    def unsubscribe(self, topic: bytes) -> None:
        """Withdraw it."""
        self._send_up(self._xsub, b"\0" + topic)

    def ask(self, question: bytes, to: str) -> None:
        """Send a question to every publisher; those that it is not for ignore it."""
        self._send_up(self._xsub, question)

    def _send_up(self, xsub: SocketReader, message: bytes) -> None:
        """Send to a publisher; a second later if this process was held up until now, as one that
        was stopped. The publisher may have died meanwhile. If something is sent to it, ZeroMQ gives
        up its connection, and what had arrived on that and is not read yet is lost.
        """
        if not self._is_reading_first():
            xsub.send(message)
            return
        self._held.append((xsub, message))
        if len(self._held) >= MAX_HELD:
            self._release()

    def _is_reading_first(self) -> bool:
        now = elapsed()
        if now - self._looked > HELD_UP:
            self._looked, self._reads_until = now, now + READ_SECONDS
            asyncio.get_running_loop().call_later(READ_SECONDS, self._release, context=Context())
        return now < self._reads_until

    def _look_at_clock(self) -> None:
        self._is_reading_first()
        self._looked = elapsed()

    def _release(self) -> None:
        self._reads_until = 0.0
        held, self._held = self._held, []
        for xsub, message in held:
            xsub.send(message)

    def send(self, message: bytes) -> None:
        """Send a message to all subscribers of its topic."""
        xpub = self._xpub  # `SocketReader.send`, one call less for each frame
        if not xpub.is_closed:
            xpub.send_raw(message, zmq.NOBLOCK)
            if not xpub.is_due:
                xpub.soon()

    async def read_ends(self) -> None:
        """Return once no end of a link is half read."""
        await self._xpub.read_ends()

    def check_wakeups(self) -> None:
        """Look for messages that did not wake the reader. To be called each second."""
        self._look_at_clock()
        self._xpub.check_wakeup()
        self._xsub.check_wakeup()

    async def close(self, timeout: float) -> None:
        """Close the sockets, and end the context in a thread of its own, since that waits for what
        was sent to leave; what takes longer than `timeout` goes on without us. Again: nothing.
        """
        try:
            await self._close(timeout)
        finally:
            leave_desk(self)

    async def _close(self, timeout: float) -> None:
        context, self._context = self._context, None
        self._connected.clear()
        if context is None:
            return
        linger = min(timeout, LINGER)
        self._abandoned.detach()
        self._close_gates()
        for reader in reversed(self._readers):
            reader.close(linger if reader is self._xpub else 0)
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
    gates: list[Gate],
    threads: list[Thread],
    pid: int,
) -> None:
    """The bus was collected, or the interpreter ends, before it was closed."""
    if pid != os.getpid():  # it is its parent's
        return
    for gate in gates:
        gate.abandon()
    for each in sockets:
        each.close(linger=0)
    if current_thread() in threads:
        # The collector runs in any thread. This one would wait for itself, and Python collect no
        # more garbage.
        Thread(target=context.term, name="aiobus end", daemon=True).start()
    else:
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


MAPPED = "::ffff:"
"""Begins an IPv4 address as a socket of IPv6 has it that listens for both."""


def place_on_wire(endpoint: str) -> str:
    """What ZeroMQ is told of an endpoint: to TCP the mark of an observer means nothing."""
    return place_of(endpoint) if endpoint.startswith("tcp") else endpoint


def _endpoint(address: object) -> str:
    """The endpoint of a socket's address, as the `socket` module gives it."""
    match address:
        case (str(host), int(port), *_):
            return Address(host.removeprefix(MAPPED), port).endpoint
        case str() | bytes():
            return f"ipc://{os.fsdecode(address)}"
    return ""


def _bound(endpoint: str) -> socket.socket:
    """A bound socket; one of ipc listens. ZeroMQ would remove whatever has the path of it."""
    scheme, _, address = endpoint.partition("://")
    if scheme == "ipc":
        sock = socket.socket(socket.AF_UNIX)
    else:
        host, _, port = address.rpartition(":")
        sock = bound_socket(Address(host.strip("[]"), int(port.replace("*", "0"))), reuse=True)
    try:
        sock.setblocking(False)
        if scheme == "ipc":
            sock.bind(address)
            sock.listen(BACKLOG)
        elif sys.platform == "linux":
            with contextlib.suppress(OSError):  # an older kernel
                sock.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, int(RETRANSMIT * 1000))
    except BaseException:
        sock.close()
        raise
    return sock
