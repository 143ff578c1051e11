"""Sockets of `tcp://` addresses, and what can be found out about an address with one.

Owns how a socket is bound, connected and kept alive, and the probes: whether a process listens at
an address, whether this process may, and whether a frozen process still has a connection to it.
Must not know what is sent over a connection.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Collection
from contextlib import suppress
from contextvars import Context

from aiobus.discovery import Member
from aiobus.discovery.roster import Address, address_of

__all__ = ["bind_error", "bound_socket", "connect", "has_half_closed", "keep_alive", "probe_all"]

log = logging.getLogger("aiobus.mesh")

KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 5, "TCP_USER_TIMEOUT": 10_000}
"""Seconds, seconds, times, milliseconds: if the network is cut, a connection ends after 10 s. A
connection can be silent for hours, so without these options neither side would notice.
"""
PROBE_SECONDS = 1.0
CLOSE_WAIT = "08"
PROBES = 64
"""Probes under way at once: each takes a descriptor."""


def family_of(address: Address) -> socket.AddressFamily:
    """The address family of sockets for `address`."""
    return socket.AF_INET6 if address.is_v6 else socket.AF_INET


def bound_socket(address: Address, *, reuse: bool) -> socket.socket:
    """A socket that is bound to `address` and does not listen. Raises OSError.

    With `reuse`, lingering connections of an earlier listener do not prevent it, nor does another
    socket that was bound with `reuse` and does not listen.
    """
    sock = socket.socket(family_of(address))
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def keep_alive(sock: socket.socket) -> None:
    """Let the kernel check whether the other side can still be reached."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if (option := getattr(socket, name, None)) is not None:  # not every system has each
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def bind_error(address: Address) -> OSError | None:
    """Why this process may not listen at `address`. None if it may, also if another process does so
    just now.
    """
    try:
        bound_socket(address, reuse=True).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return error
    return None


def has_half_closed(address: Address) -> bool:
    """True if a connection to an earlier registry of `address` is still open at its other end: the
    member there is frozen, because otherwise it would have closed it. Also True if no descriptor
    is left to find out. False on every system but Linux.
    """
    packed = socket.inet_pton(family_of(address), address.host)
    words = [packed[at : at + 4][::-1].hex().upper() for at in range(0, len(packed), 4)]
    remote = f"{''.join(words)}:{address.port:04X}"
    try:
        with open(f"/proc/net/{'tcp6' if address.is_v6 else 'tcp'}") as table:
            return any(row.split()[2:4] == [remote, CLOSE_WAIT] for row in table)
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)


async def connect(address: Address) -> socket.socket:
    """A connection to `address`. Raises OSError. Cancelling leaves nothing open."""
    sock = socket.socket(family_of(address))
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
        if sock.getsockname() == sock.getpeername():
            # No process listens: by chance the kernel gave this socket that very port.
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"no process listens at {address}")
    except BaseException:
        sock.close()
        raise
    return sock


async def probe_all(members: Collection[Member]) -> dict[Member, bool]:
    """Which of `members` accept a connection (True) and which refuse it (False). Waits 1 s at most;
    the result has no member that has done neither by then.
    """
    found: dict[Member, bool] = {}
    gate = asyncio.Semaphore(PROBES)

    async def probe(member: Member) -> None:
        if (address := address_of(member.endpoint)) is None:
            return
        async with gate:
            try:
                (await connect(address)).close()
                found[member] = True
            except ConnectionRefusedError:
                found[member] = False
            except OSError as error:
                log.debug("%s at %s cannot be probed: %s", *member, error)

    with suppress(TimeoutError):
        async with asyncio.timeout(PROBE_SECONDS), asyncio.TaskGroup() as group:
            for member in members:
                name = f"aiobus probe {member.name}"
                group.create_task(probe(member), name=name, context=Context())
    return found
