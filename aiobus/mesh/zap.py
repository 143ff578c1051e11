"""Who is let in: the handler of ZAP (ZeroMQ RFC 27), which ZeroMQ asks about each connection that
another bus makes to this one.

Owns the thread that answers, and reads the keyring again when its files have changed. A loop that
is blocked holds up no handshake, and the list of members is as new as the file all the same. Must
not know what becomes of a connection that is let in.

A refusal is final for who is refused (libzmq#3519: it does not try again), so 400 is for a key that
is not on the list. What is wrong here is answered with 300, which leaves the other side to try
again. An error of the thread itself is logged and answered so, and the thread goes on.
"""

import asyncio
import logging
import struct
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from threading import Lock, Thread

import zmq
from zmq.utils import z85

from aiobus.keyring import Keyring

__all__ = ["PLAIN", "REVOKED", "UNKNOWN", "Authenticator", "proven"]

ADDRESS = "inproc://zeromq.zap.01"
MONITOR = "inproc://refused-here"
DOMAIN = "aiobus"
RELOAD_MS = 500
"""Milliseconds between two looks at the files of the keyring."""
EVENT = struct.Struct("=HI")
"""A monitor's event and its value (zmq_socket_monitor(3))."""
FAILED = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)

UNKNOWN = "unknown"
"""A key that is not on the list."""
REVOKED = "revoked"
"""A key that was on the list."""
PLAIN = "plain"
"""A connection without keys, or by another mechanism."""

log = logging.getLogger("aiobus.mesh")

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
        xpub.monitor(MONITOR, FAILED)
        self._failures = context.socket(zmq.PAIR)
        self._failures.linger = 0
        self._failures.connect(MONITOR)
        self._thread = Thread(target=self._run, name="aiobus zap", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._questions, zmq.POLLIN)
        poller.register(self._failures, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll(RELOAD_MS))
                try:
                    self._step(self._failures in ready, self._questions in ready)
                except zmq.ContextTerminated:
                    raise
                except Exception:
                    log.exception("who may be let in could not be looked at")
        except zmq.ContextTerminated:
            pass
        finally:
            self._questions.close()
            self._failures.close()

    def _step(self, has_failed: bool, is_asked: bool) -> None:
        if has_failed:
            self._note_failure()
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

    def _note_failure(self) -> None:
        self._failures.recv_multipart()
        self._tell("", PLAIN, "")

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
