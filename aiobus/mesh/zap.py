"""Who is let in: the handler of ZAP (ZeroMQ RFC 27), which ZeroMQ asks about each connection that
another bus makes to this one.

Owns the thread that answers, and reads the keyring again when its files have changed. A loop that
is blocked holds up no handshake, and the list of members is as new as the file all the same. Must
not know what becomes of a connection that is let in.

A refusal is final for who is refused (libzmq#3519: it does not try again), so 400 is for a key that
is not on the list as it is now: a member may be put on it and start at once. What is wrong here is
answered with 300, which leaves the other side to try again. An error of the thread itself is logged
and answered so, and the thread goes on.
"""

import asyncio
import logging
import socket
import struct
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from threading import Lock, Thread

import zmq
from zmq.utils import z85

from aiobus.keyring import Keyring

__all__ = [
    "GARBLED", "MISTAKEN", "PLAIN", "REVOKED", "UNKNOWN", "Authenticator", "Failures", "proven",
]  # fmt: skip

ADDRESS = "inproc://zeromq.zap.01"
MONITOR = "inproc://refused-here"
DOMAIN = "aiobus"
RELOAD_MS = 500
"""Milliseconds between two looks at the files of the keyring."""
EVENT = struct.Struct("=HI")
"""A monitor's event and its value (zmq_socket_monitor(3))."""
FAILED = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
ACCEPTED = int(zmq.EVENT_ACCEPTED)
ENDED = int(zmq.EVENT_DISCONNECTED)

UNKNOWN = "unknown"
"""A key that is not on the list."""
REVOKED = "revoked"
"""A key that was on the list."""
PLAIN = "plain"
"""A connection without keys, or by another mechanism."""
MISTAKEN = "mistaken"
"""A connection of one that takes this bus for one with another key."""
GARBLED = "garbled"
"""A connection of what speaks of keys, and not as ZeroMQ does."""
FAILURES = {
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): PLAIN,
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): MISTAKEN,
    int(zmq.PROTOCOL_ERROR_ZMTP_KEY_EXCHANGE): MISTAKEN,
}
"""What ended a handshake before ZAP was asked; GARBLED for anything else."""

log = logging.getLogger("aiobus.mesh")

PAUSE = 0.1
"""Seconds after an error of the thread itself, which may come again at once."""
MAX_EVENTS = 1_024
"""Of the monitor, between two looks at the questions."""
MAX_KNOCKS = 256
"""Refusals, by address, cause and name, that wait until the loop takes them. More are counted as
one, without an address.
"""

Knocked = Callable[[str, str, str, int], None]
"""Takes the address of who was not let in, the cause, the name if it is known, and how often."""


def proven(user_id: str) -> tuple[str, int]:
    """The key that has let a connection in, and the number of that connection."""
    key, _, number = user_id.rpartition(" ")
    return key, int(number)


class Failures:
    """Which handshakes have ended before ZAP was asked, and whose they were. A monitor tells why a
    handshake failed, and right after it which descriptor is closed, but not whose that was: the
    address is looked up while the connection is there.
    """

    def __init__(self, address_of: Callable[[int], str] | None = None) -> None:
        self._address_of = address_of or peer_address
        self._addresses: dict[int, str] = {}  # by descriptor
        self._cause = ""

    def take(self, events: Sequence[tuple[int, int]]) -> list[tuple[str, str]]:
        """Events in their order, with their values. Returns the address and the cause of each
        failure; the address is "" of one that was gone too soon.
        """
        failures = []
        # By now the descriptor of a connection that has ended may be that of another one.
        last = {value: event for event, value in events if event in (ACCEPTED, ENDED)}
        for event, value in events:
            if event == FAILED:
                self._cause = FAILURES.get(value, GARBLED)
            elif event == ENDED:
                address, cause = self._addresses.pop(value, ""), self._cause
                self._cause = ""
                if cause:
                    failures.append((address, cause))
            elif last[value] == ACCEPTED and (address := self._address_of(value)):
                self._addresses[value] = address
        return failures


def peer_address(descriptor: int) -> str:
    """The host at the other end of a connection of this process; "" if there is none any more."""
    try:
        connection = socket.socket(fileno=descriptor)
    except OSError:
        return ""
    try:
        return str(connection.getpeername()[0])
    except (OSError, IndexError):
        return ""
    finally:
        connection.detach()  # it is ZeroMQ's


class Authenticator:
    """Answers for the sockets of `context` until the context is terminated. `on_knock` is called in
    the loop for each connection that is refused, `on_change` after the keyring has been read again.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        xpub: "zmq.Socket[bytes]",
        keyring: Keyring,
        on_knock: Knocked,
        on_change: Callable[[], None],
    ) -> None:
        self._keyring = keyring
        self._on_knock = on_knock
        self._on_change = on_change
        # The thread must not keep a loop alive that was never closed, and with it the bus.
        self._loop = weakref.ref(asyncio.get_running_loop())
        self._numbers = count(1)
        self._seen = (keyring.members, keyring.problem)
        self._lock = Lock()
        self._knocks: Counter[tuple[str, str, str]] = Counter()
        self._questions = context.socket(zmq.REP)
        self._questions.linger = 0
        self._questions.bind(ADDRESS)
        # Who does not speak CURVE is refused before ZAP is asked. The monitor is drained by this
        # thread, or it would stop the I/O thread (libzmq#2829).
        xpub.monitor(MONITOR, ACCEPTED | FAILED | ENDED)
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.linger = 0
        self._monitor.connect(MONITOR)
        self._failures = Failures()
        self.thread = Thread(target=self._run, name="aiobus zap", daemon=True)
        """Ends with the context."""
        self.thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._questions, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll(RELOAD_MS))
                try:
                    self._step(self._monitor in ready, self._questions in ready)
                except zmq.ContextTerminated:
                    raise
                except Exception:
                    log.exception("who may be let in could not be looked at")
                    time.sleep(PAUSE)
        except zmq.ContextTerminated:
            pass
        finally:
            self._questions.close()
            self._monitor.close()

    def _step(self, has_failed: bool, is_asked: bool) -> None:
        if has_failed:
            self._note_failures()
        if is_asked:
            self._answer()
        else:
            self._reload()

    def _answer(self) -> None:
        question = self._questions.recv_multipart()
        number = question[1] if len(question) > 1 else b""
        status, text, user = b"300", b"the members cannot be told just now", b""
        try:
            status, text, user = self._judge(question)
        except Exception:
            log.exception("a connection could not be judged, and is put off")
        self._questions.send_multipart([b"1.0", number, status, text, user, b""])

    def _judge(self, question: list[bytes]) -> tuple[bytes, bytes, bytes]:
        """The status, its text and the user of a connection."""
        _, _, _, address, _, mechanism, *credentials = question
        self._reload()
        if self._keyring.list_problem:
            return b"300", b"the list of members cannot be read", b""
        if mechanism != b"CURVE" or len(credentials) != 1:
            self._tell(address.decode(errors="replace"), PLAIN, "")
            return b"400", b"a key is needed", b""
        key = z85.encode(credentials[0]).decode()
        members = self._keyring.members
        if key in members.by_key:
            return b"200", b"", f"{key} {next(self._numbers)}".encode()
        name = members.revoked.get(key, "")
        self._tell(address.decode(errors="replace"), REVOKED if name else UNKNOWN, name)
        return b"400", b"not a member", b""

    def _reload(self) -> None:
        self._keyring.reload()
        # Another bus of this process may have read the files again before.
        before, self._seen = self._seen, (self._keyring.members, self._keyring.problem)
        if before != self._seen:
            self._call(self._on_change)

    def _note_failures(self) -> None:
        events: list[tuple[int, int]] = []
        with suppress(zmq.Again):
            while len(events) < MAX_EVENTS:
                event, *_ = self._monitor.recv_multipart(zmq.NOBLOCK)
                events.append(EVENT.unpack_from(event))
        for address, cause in self._failures.take(events):
            self._tell(address, cause, "")

    def _tell(self, address: str, cause: str, name: str) -> None:
        with self._lock:
            is_first = not self._knocks
            knock = (address, cause, name)
            if len(self._knocks) >= MAX_KNOCKS and knock not in self._knocks:
                knock = ("", cause, "")
            self._knocks[knock] += 1
        if is_first:  # else the loop is about to take them
            self._call(self._take_knocks)

    def _take_knocks(self) -> None:
        with self._lock:
            knocks, self._knocks = self._knocks, Counter()
        for knock, times in knocks.items():
            self._on_knock(*knock, times)

    def _call(self, function: Callable[[], None]) -> None:
        if (loop := self._loop()) is not None:
            with suppress(RuntimeError):  # it is closed, and the context about to be terminated
                loop.call_soon_threadsafe(function)
