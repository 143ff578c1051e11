"""A member of a rendezvous without a bus, for a process on another host."""

import asyncio
import logging
import socket
from typing import Any

from aiobus.discovery import Member
from aiobus.discovery.rendezvous import Rendezvous
from aiobus.discovery.roster import Address
from aiobus.discovery.tcp_socket import bound_socket
from aiobus.keyring import Keyring

__all__ = ["JOIN", "Seat"]

JOIN = """
from seats import Seat
self.seat = Seat(url, name, keys, **options)
return await self.seat.join()
"""
"""Told to an actor: take a seat, and say what came of it."""


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


class Seat:
    """Joins, listens where it is asked to, and keeps whom it hears of. `keys`: the directory of its
    keyring.
    """

    def __init__(self, url: str, name: str, keys: str, **options: Any) -> None:
        self.name = name
        self.discovery = Rendezvous(url, Keyring.load(keys), **options)
        self.asked = ""
        self.known: set[str] = set()
        self.lines = Lines()
        self._news = asyncio.Event()
        self._listener: socket.socket | None = None
        log = logging.getLogger("aiobus")
        log.addHandler(self.lines)
        log.setLevel(logging.INFO)

    async def join(self) -> dict[str, Any]:
        """Join; return what came of it, and the seconds that it took."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        members = await self.discovery.join(self.name, self._bind, self._take)
        seconds = loop.time() - began
        self.known |= {member.name for member in members}
        return {
            "asked": self.asked,
            "endpoint": self.discovery.endpoint,
            "held": sorted(self.discovery.held),
            "joined": sorted(member.name for member in members),
            "said": self.lines.said,
            "seconds": seconds,
            "unreached": self.discovery.unreached,
        }

    async def knows(self, *names: str) -> float:
        """Wait until it has heard of these; returns the seconds that took."""
        began = asyncio.get_running_loop().time()
        while not self.known >= {*names}:
            self._news.clear()
            await self._news.wait()
        return asyncio.get_running_loop().time() - began

    async def reaches_all(self) -> None:
        """Wait until no address is unreached."""
        while self.discovery.unreached:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)

    async def leave(self) -> None:
        await self.discovery.leave()
        if self._listener is not None:
            self._listener.close()
        logging.getLogger("aiobus").removeHandler(self.lines)

    def _take(self, member: Member) -> None:
        self.known.add(member.name)
        self._news.set()

    def _bind(self, endpoint: str) -> str:
        self.asked = endpoint
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        address = Address(host.strip("[]"), int(port.replace("*", "0")))
        self._listener = bound_socket(address, reuse=True)
        self._listener.listen()
        return address.with_port(self._listener.getsockname()[1])
