"""A desk on each transport: buses that meet, and what the tests of a desk share. The fixtures
`desk` and `mesh` are in conftest.py.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from actors import tcp_url
from keys import keyed_bus

from aiobus import AsyncEventBus, Event, EventType
from aiobus.testing import MemoryNetwork

NETWORKS = ["memory", "ipc", "tcp", "keys"]
"""The transports of several buses. "keys" is tcp with a keyring."""
TRANSPORTS = ["inproc", *NETWORKS]


def waits(test: Callable[..., Any]) -> Callable[..., Any]:
    """Of a test that takes seconds: each transport and each loop, not each with each."""
    return pytest.mark.paired(pytest.mark.transports(test))


class Desk:
    """Makes buses that meet; closes them at the end."""

    def __init__(
        self, make: Callable[..., AsyncEventBus], *, has_names: bool = True, keys: str = ""
    ) -> None:
        self._make = make
        self.keys = keys
        """The directory of its keyring; "" without keys."""
        self._has_names = has_names
        self._buses: list[AsyncEventBus] = []

    async def bus(self, name: str, **options: Any) -> AsyncEventBus:
        """A started bus. Without names, the one there is."""
        if self._has_names or not self._buses:
            bus = self._make(name=name, **options)
            await bus.start()
            self._buses.append(bus)
        return self._buses[-1]

    async def close(self, *, refuses: bool = False) -> None:
        await asyncio.gather(*(bus.close(0.2) for bus in self._buses))
        assert refuses or [bus.stats().refused for bus in self._buses] == [0] * len(self._buses)


@asynccontextmanager
async def open_desk(transport: str, *, refuses: bool = False) -> AsyncIterator[Desk]:
    # pytest's own directories are too long for the path of a socket.
    with tempfile.TemporaryDirectory(prefix="ab") as directory:
        desk = {
            "inproc": lambda: Desk(AsyncEventBus, has_names=False),
            "memory": lambda: Desk(MemoryNetwork().bus),
            "ipc": lambda: Desk(lambda **rest: AsyncEventBus(f"ipc://{directory}/d", **rest)),
            "tcp": lambda: Desk(url_of(tcp_url())),
            "keys": lambda: keyed_desk(Path(directory, "keys"), tcp_url()),
        }[transport]()
        try:
            yield desk
        finally:
            await desk.close(refuses=refuses)


def keyed_desk(path: Path, url: str) -> Desk:
    return Desk(partial(keyed_bus, path, url), keys=str(path))


def url_of(url: str) -> Callable[..., AsyncEventBus]:
    return lambda **options: AsyncEventBus(url, **options)


class Seen(list[Event]):
    """A handler that keeps what it gets; while `gate` is not set, it hangs."""

    def __init__(self, *, is_open: bool = True) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.started = 0
        self._grown = asyncio.Event()
        if is_open:
            self.gate.set()

    async def take(self, event: Event) -> None:
        self.started += 1
        self._grown.set()
        await self.gate.wait()
        self.append(event)
        self._grown.set()

    async def until(self, is_enough: Callable[[], bool]) -> None:
        """Wait for something that changes when an event is taken."""
        while not is_enough():
            self._grown.clear()
            await self._grown.wait()

    @property
    def data(self) -> list[Any]:
        return [event.data for event in self]


async def arrive(source: AsyncEventBus, *targets: AsyncEventBus) -> None:
    """All that `source` has published has been handled."""
    assert await source.flush() == []
    for target in targets:
        await target.settle()


async def publish(bus: AsyncEventBus, count: int, type: str = EventType.TRADE) -> list[Event]:
    return [await bus.publish(Event(type, number, key=f"k{number % 3}")) for number in range(count)]


async def until(is_so: Callable[[], object]) -> None:
    """Wait for what no event tells."""
    while not is_so():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
