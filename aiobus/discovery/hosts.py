"""What the name of a host stands for, and by which address this host is seen from another one.

Owns the look-up of names, of which one at a time is under way for each, and the questions to the
routing table. Must not know what an address is used for. Nothing here sends a packet to an address
that it asks about, and nothing blocks the loop.
"""

import asyncio
import errno
import socket
from collections.abc import Iterable
from contextvars import Context

from aiobus.discovery.roster import Address, Place, is_unicast
from aiobus.discovery.tcp_socket import family_of

__all__ = ["Resolver", "is_own", "outward"]

ELSEWHERE = (Address("192.0.2.1", 9), Address("2001:db8::1", 9))
"""Of no host (RFC 5737, RFC 3849): what leaves for these leaves by the default route."""


async def look_up(host: str, port: int) -> list[str]:
    """The addresses of a name, in the order of this machine (RFC 6724). Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class Resolver:
    """Resolves one place, as often as it is asked. The look-up of a name runs in a thread of the
    loop's executor; while one takes long, no second one is begun.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._task: asyncio.Task[Address | OSError] | None = None

    async def address(self, seconds: float) -> Address:
        """The address, at once for a literal. Of several addresses of a name it is the first.

        Waits for `seconds` at most. Raises OSError, also if there is no answer by then; the answer
        is for the next call. Cancelling it leaves the look-up to `cancel`.
        """
        if (literal := self._place.address) is not None:
            return literal
        if self._task is None:
            name = f"aiobus look-up of {self._place.host}"
            self._task = asyncio.create_task(self._resolve(), name=name, context=Context())
        task = self._task
        await asyncio.wait([task], timeout=seconds)
        if not task.done():
            raise TimeoutError(f"no answer within {seconds:g} s")
        self._task = None
        if isinstance(found := task.result(), OSError):
            raise found
        return found

    def cancel(self) -> "asyncio.Task[Address | OSError] | None":
        """Wait for no answer any more. Returns the task that ends now, if one is under way."""
        if self._task is not None:
            self._task.cancel()
        return self._task

    async def _resolve(self) -> Address | OSError:
        # It raises nothing: its caller may not wait for the result any more.
        host, port = self._place
        try:
            found = await look_up(host, port)
        except OSError as error:
            return error
        except UnicodeError as error:  # of the codec for names: a part is too long
            return OSError(errno.EINVAL, str(error))
        for each in found:
            if is_unicast(each):
                return Address(each, port)
        return OSError(errno.EADDRNOTAVAIL, f"none of its addresses can be used: {found}")


def outward(toward: Iterable[Address], *, is_v6: bool | None = None) -> str:
    """The address of this host that others see: the first of `toward` that is its own, or else the
    one from which it reaches the first of them that it has a route to. With none of these, that of
    the default route. `is_v6`: only such an address, or only IPv4.

    Loopback addresses are passed over. Raises OSError that tells of each why not.
    """
    reasons = []
    for address in (*toward, *ELSEWHERE):
        if address.is_loopback or (is_v6 is not None and address.is_v6 != is_v6):
            continue
        try:
            if is_own(address.host):
                return address.host
            host = _source(address)
        except OSError as error:
            reasons.append(f"{address}: {error.strerror}")
            continue
        if is_unicast(host) and not Address(host, 0).is_loopback:
            return host
        reasons.append(f"{address}: only from {host}")
    raise OSError(errno.ENETUNREACH, "; ".join(reasons) or "no address to ask the way to")


def is_own(host: str) -> bool:
    """True if the literal `host` is an address of this host: a socket can be bound to it. Raises
    OSError if no socket can be made.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((host, 0))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            return False
    return True


def _source(address: Address) -> str:
    # A datagram socket that connects chooses its route, and sends nothing.
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        return str(sock.getsockname()[0])
