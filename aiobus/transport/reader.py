"""The reading of a ZeroMQ socket: when it is read, and for how long at a time.

Owns the reader's turn. Must not know what the bytes say, nor which sockets there are (`zmq`).

ZeroMQ's descriptor is edge-triggered, and each call that sends, connects or disconnects can swallow
the edge for good: then a socket is full of messages and nobody is woken (pyzmq#1021, #1085). So a
socket is drained when its descriptor is readable, after each such call, and once a second.
"""

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context

import zmq

from aiobus.turn import READER_MESSAGES, READER_SECONDS, Turn
from aiobus.waiters import Waiters

__all__ = ["Drain", "UpDrain"]

EVENTS = int(zmq.EVENTS)
SRCFD = int(zmq.SRCFD)
POLLIN = int(zmq.POLLIN)
LOOKS = 3
"""Turns of the loop in which it would have found a descriptor readable."""

log = logging.getLogger("aiobus.transport")


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
        self._turn = Turn(READER_SECONDS, READER_MESSAGES)
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
        self._moved = Waiters()

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
