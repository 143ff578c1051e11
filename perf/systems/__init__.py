"""The systems that are compared, each in a module of its own that is imported only when it is used.

Owns the list, what a module has to offer, and whether a system is to be had on this machine. Must
not know how one works or what is measured with it.
"""

import importlib
import importlib.metadata
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from perf import copies

__all__ = ["BASE", "SYSTEMS", "Callback", "Setup", "Side", "System", "SystemModule", "program"]

BASE = "3b5aca6"
"""The commit that aiobus is measured beside: the processor time of an event is a multiple of its.
"""

Callback = Callable[[Any], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Setup:
    """The folder, ports and transport of one system, and the number of this process in it."""

    folder: str
    """A directory for these processes alone."""
    ports: list[int]
    """Free ports of 127.0.0.1: one for a server, or one for each publisher."""
    transport: str
    """"ipc", "tcp" or "inproc", for systems that have several transports."""
    publishers: int = 1
    name: str = "publisher-0"
    index: int = 0
    """The number of this publisher, or of this subscriber."""

    def endpoint(self, publisher: int) -> str:
        """The endpoint of a publisher, for systems without a server."""
        if self.transport == "tcp":
            return f"tcp://127.0.0.1:{self.ports[publisher]}"
        return f"ipc://{self.folder}/{publisher}.sock"


class Side(Protocol):
    """A publisher, a subscriber, or both of one process."""

    publish: Callable[[Any], Awaitable[object]]
    """As one would write it with this system; returns when the system lets go of the caller."""

    async def open(self, *, publishes: bool) -> None:
        """Connect."""
        ...

    async def subscribe(
        self, types: Sequence[str], keys: Sequence[str] | None, callback: Callback
    ) -> None:
        """Await `callback` with each event of these types and keys (None: all)."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


class SystemModule(Protocol):
    """The interface of a module for one system."""

    Side: Callable[[Setup], Side]
    Event: Callable[..., Any]
    """What it publishes: `perf.envelope.Event`, but aiobus its own."""

    def server(self, setup: Setup) -> list[str] | None:
        """The command that starts its server; None when it needs none."""
        ...


@dataclass(frozen=True, slots=True)
class System:
    """One row of the comparison."""

    name: str
    module: str
    needs: tuple[str, ...] = ()
    """Distributions that must be installed."""
    program: str = ""
    """A program that must be there."""
    loop: str = "uvloop"
    transport: str = "ipc"
    delivers: bool = True
    """False for what has two sides with nothing in between."""
    commit: str = ""
    """The package as it was at this commit, measured by the code of today."""

    def absence(self) -> str:
        """Why it cannot be measured here; "" when it can."""
        for name in self.needs:
            try:
                importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                return f"{name} is not installed"
        if self.program and program(self.program) is None:
            return f"there is no {self.program}"
        if self.commit and not copies.is_known(self.commit):
            return f"commit {self.commit} is not in this clone"
        return ""

    def folder(self) -> Path | None:
        """Where its processes run; None: in this directory."""
        return copies.at(self.commit) if self.commit else None

    def offer(self) -> SystemModule:
        """Its module."""
        return cast(SystemModule, importlib.import_module(f"perf.systems.{self.module}"))


def program(name: str) -> str | None:
    """A program beside this interpreter, or on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


SYSTEMS = {
    system.name: system
    for system in (
        System("aiobus", "mesh"),
        System("aiobus, tcp", "mesh", transport="tcp"),
        System("aiobus, asyncio loop", "mesh", loop="asyncio"),
        System(f"aiobus at {BASE}", "mesh", commit=BASE),
        System("zmq.asyncio", "zmq_asyncio"),
        System("zmq.asyncio, tcp", "zmq_asyncio", transport="tcp"),
        System("pyzmq, blocking", "zmq_blocking"),
        System("nats-py", "nats_core", ("nats-py",), "nats-server"),
        System("redis-py", "redis_pubsub", ("redis",), "redis-server"),
        System("redis-py, tcp", "redis_pubsub", ("redis",), "redis-server", transport="tcp"),
        System("zenoh", "zenoh_peer", ("eclipse-zenoh",)),
        System("codec floor", "codec", delivers=False),
        System("aiobus, inproc", "mesh", transport="inproc"),
        System("aiobus, inproc, asyncio loop", "mesh", loop="asyncio", transport="inproc"),
        System(f"aiobus at {BASE}, inproc", "mesh", transport="inproc", commit=BASE),
        System("blinker", "blinker_signal", ("blinker",)),
        System("blinker, no codec", "blinker_plain", ("blinker",)),
        System("pyee", "pyee_emitter", ("pyee",)),
        System("bubus", "bubus_bus", ("bubus",)),
        System("asyncio.Queue", "asyncio_queue"),
    )
}
