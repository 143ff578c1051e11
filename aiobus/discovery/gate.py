"""The gate of a listening TCP socket: while descriptors are short, no connection comes in.

Owns how many descriptors are kept for what the process itself opens, how many connections may wait
to be accepted, and the filter that keeps out those that are new. Must not know who accepts, nor
what is said on a connection.

A process that connects without end takes every descriptor that there is. ZeroMQ then spins until
one is free, no journal can open a file, and the process that listens cannot tell others why.
ZeroMQ accepts in a thread of its own and cannot be told to stop, and to shut its socket down aborts
the process. So the kernel drops what arrives for the listening socket. Connections that are made
already do not notice. A bus that connects meanwhile gets no answer, and tries again.
"""

import asyncio
import logging
import socket
import struct
import sys
from array import array
from collections.abc import Callable
from contextvars import Context

from aiobus.discovery.unix_socket import DescriptorReserve, spare_descriptors

__all__ = ["RESERVE", "Gate"]

log = logging.getLogger("aiobus.mesh")

RESERVE = 16
"""Descriptors that strangers leave to the process: for journals, and for the links it makes."""
FEWEST, MOST = 8, 128
"""Connections that wait to be accepted: the bound is between these."""
LOOK_SECONDS = 0.002
"""Between two looks while connections come in."""

SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
"""Of Linux, in <asm-generic/socket.h>; the `socket` module does not know them."""
DROP_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""The program of a socket filter (BPF) with one instruction: keep 0 bytes of each packet."""


class Gate:
    """Watches over `sock`, which is bound to a TCP address, from its construction until `close`, in
    the running loop. It listens from now on, and may be given away: the gate has a copy. Raises
    OSError.

    `watch` is to be called several times a second. Between two calls, the gate looks by itself
    whenever connections come in. If the loop is blocked meanwhile, all descriptors may be used up
    but the reserve, which is there as soon as the loop goes on. Other systems than Linux have no
    such filter: there it only says that descriptors are short, and has a reserve.
    """

    def __init__(self, sock: socket.socket) -> None:
        spare = int(min(spare_descriptors(), 16 * MOST))
        self.backlog = max(FEWEST, spare // 16)
        """Connections that wait to be accepted, at most. They still are when the gate is shut."""
        self.short = max(FEWEST, spare // 8)
        """Spare descriptors, besides the reserve; with fewer, the gate is shut."""
        self.ample = self.short + max(FEWEST // 2, spare // 16)
        """Spare descriptors, besides the reserve, at which it is open again."""
        self._reserve = DescriptorReserve(self.backlog + 1 + RESERVE)
        """Held while the gate is open. Freed when it is shut, since by then others may be used up:
        the loop may have been blocked. Those that wait to be accepted leave RESERVE of it.
        """
        self.is_shut = False
        """True while no connection comes in."""
        self._is_said = self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._pause: asyncio.TimerHandle | None = None
        try:
            sock.listen(self.backlog)
            self._copy = sock.dup()
        except BaseException:
            self._reserve.close()
            raise
        self._begin_looking()

    def watch(self, on_problem: Callable[[str, str], None]) -> None:
        """Shut or open the gate, and report each change: its topic, and a sentence. Never waits."""
        if self._is_closed:
            return
        if not self.is_shut:
            self._look()
        elif self._is_said and spare_descriptors() >= self.ample + self._reserve.count:
            self._open()
        if self._is_said == self.is_shut:
            return
        self._is_said = self.is_shut
        # Two topics: each of the two is logged, however soon after the other.
        if not self.is_shut:
            text = "there are descriptors again: other buses can link with this one"
            on_problem("descriptors again", text)
            return
        short, ample = (each + self._reserve.count for each in (self.short, self.ample))
        if sys.platform == "linux":
            then = f"no other bus can link with this one until it may open {ample}"
        else:
            then = "connections from outside can use up the rest, until they end"
        on_problem(
            "too few descriptors",
            f"this process may open fewer than {short} more files: {then}; existing links"
            " stay. Close files, keep strangers from the port, or raise the limit (ulimit -n)",
        )

    def _begin_looking(self) -> None:
        # The loop runs a reader in a copy of the context that is current when it is added.
        self._context.run(self._look_when_readable)

    def _look_when_readable(self) -> None:
        self._pause = None
        if sys.platform == "linux":
            self._loop.add_reader(self._copy.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        """Connections wait to be accepted, which another thread does."""
        self._loop.remove_reader(self._copy.fileno())  # or this is called until they are
        if not self._is_closed:
            self._look()
        if not (self._is_closed or self.is_shut):
            self._pause = self._loop.call_later(
                LOOK_SECONDS, self._look_when_readable, context=self._context
            )

    def _look(self) -> None:
        if spare_descriptors() >= self.short:
            return
        self.is_shut = True
        self._shut()
        self._reserve.close()  # not before: a connection would take it

    def _shut(self) -> None:
        if sys.platform != "linux":
            return
        program = array("B", DROP_ALL)
        address, _ = program.buffer_info()
        try:
            option = struct.pack("@HP", 1, address)
            self._copy.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, option)
        except OSError as error:
            log.debug("connections cannot be kept out: %s", error)
        self._stop_looking()

    def _open(self) -> None:
        self.is_shut = False
        self._reserve.fill()
        if sys.platform != "linux":
            return
        try:
            self._copy.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        except OSError as error:
            log.debug("connections were not kept out: %s", error)
        self._begin_looking()

    def _stop_looking(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._loop.remove_reader(self._copy.fileno())

    def leave_process(self) -> None:
        """This process is a forked child: the socket is not its own any more."""
        self._is_closed = True
        self._reserve.close()

    def close(self) -> None:
        """Watch no more. The socket stays open where it was given to. Again: no effect."""
        if not self._is_closed:
            self._is_closed = True
            self._stop_looking()
        self.abandon()

    def abandon(self) -> None:
        """As `close`, when there may be no loop any more."""
        self._is_closed = True
        self._copy.close()
        self._reserve.close()
