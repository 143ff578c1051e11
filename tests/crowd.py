"""Members at rendezvous addresses, in the process of a test: a crowd of them leaves at its end."""

import asyncio
import socket
from collections.abc import Callable
from typing import Generic, Self, TypeVar

from actors import tcp_url

from aiobus.discovery import Member
from aiobus.discovery.rendezvous import Rendezvous
from aiobus.keyring import Keyring

__all__ = ["Bot", "Crowd", "free_address"]


def free_address() -> str:
    """A `host:port` that no other test has."""
    return tcp_url().removeprefix("tcp://")


class Bot:
    """A member, the socket it listens at, and whom it knows."""

    def __init__(self, url: str, name: str, keys: Keyring | None = None) -> None:
        self.name = name
        self.discovery = Rendezvous(url, keys)
        self.listener = socket.socket()
        self.port = 0
        """Where to listen; 0 is any free one."""
        self.asked_for = ""
        self.joined: set[str] = set()
        """Names, as `join` returned them."""
        self.found: list[Member] = []
        self.news = asyncio.Event()

    def bind(self, endpoint: str) -> str:
        self.asked_for = endpoint
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", self.port))
        self.listener.listen()
        return self.endpoint

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"

    @property
    def met(self) -> set[str]:
        """The names of all that it knows by now."""
        return self.joined | {member.name for member in self.found}

    def take(self, member: Member) -> None:
        self.found.append(member)
        self.news.set()

    async def join(self) -> Self:
        members = await self.discovery.join(self.name, self.bind, self.take)
        self.joined = {member.name for member in members}
        return self

    async def knows(self, *names: str) -> bool:
        """Wait until it knows all of `names`."""
        while not self.met >= {*names}:
            self.news.clear()
            await self.news.wait()
        return True

    async def leave(self) -> None:
        await self.discovery.leave()
        self.listener.close()


B = TypeVar("B", bound=Bot)


class Crowd(Generic[B]):
    """Makes bots, by `make(url, name, ...)`, and lets all of them leave at the end."""

    def __init__(self, make: Callable[..., B]) -> None:
        self.bots: list[B] = []
        self._make = make

    def bot(self, url: str, name: str, *more: bytes) -> B:
        self.bots.append(bot := self._make(url, name, *more))
        return bot

    async def join(self, url: str, name: str, *more: bytes) -> B:
        return await self.bot(url, name, *more).join()

    async def join_at_once(self, url: str, *names: str) -> list[B]:
        return await asyncio.gather(*(self.join(url, name) for name in names))

    async def leave(self) -> None:
        for bot in self.bots:
            await bot.leave()
