"""Whether something listens at a tcp address of this machine, and whether this process may.

Owns the connections that are made to find out. Must not know what is said over them.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Collection
from contextlib import suppress
from contextvars import Context

from aiobus.transport.address import Address, address_of
from aiobus.transport.meeting import Member

__all__ = ["ban", "connected", "is_left_open", "probed"]

log = logging.getLogger("aiobus.transport")

PROBE_SECONDS = 1.0
CLOSE_WAIT = "08"
PROBES = 64
"""Probes under way at once: each takes a descriptor."""


def ban(address: Address) -> str:
    """Why this process may not listen at `address`, or an empty text when it may, unless another
    does. Also asked where this member does not want to listen: the next one may have to.
    """
    try:
        with socket.socket(socket.AF_INET6 if address.is_v6 else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return str(error.strerror)
    return ""


def is_left_open(address: Address) -> bool:
    """True when a connection to a former holder of `address` has not been closed at its other end:
    the member there is frozen, or it would have. Also True when there is no descriptor to find out
    with. Only Linux tells; elsewhere False.
    """
    packed = socket.inet_pton(socket.AF_INET6 if address.is_v6 else socket.AF_INET, address.host)
    words = [packed[at : at + 4][::-1].hex().upper() for at in range(0, len(packed), 4)]
    remote = f"{''.join(words)}:{address.port:04X}"
    try:
        with open(f"/proc/net/{'tcp6' if address.is_v6 else 'tcp'}") as table:
            return any(row.split()[2:4] == [remote, CLOSE_WAIT] for row in table)
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)


async def connected(address: Address) -> socket.socket:
    """A connection to `address`. Raises OSError; cancelling leaves nothing open."""
    sock = socket.socket(socket.AF_INET6 if address.is_v6 else socket.AF_INET)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
        if sock.getsockname() == sock.getpeername():
            # Nobody listens, and by chance the kernel gave the socket that very port.
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens at {address}")
    except BaseException:
        sock.close()
        raise
    return sock


async def probed(members: Collection[Member]) -> dict[Member, bool]:
    """Which of `members` accept a connection (True) and which refuse one. Waits at most 1 s; one
    that has done neither by then is left out.
    """
    found: dict[Member, bool] = {}
    gate = asyncio.Semaphore(PROBES)

    async def probe(member: Member) -> None:
        if (address := address_of(member.endpoint)) is None:
            return
        async with gate:
            try:
                (await connected(address)).close()
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
