"""Two hosts of a test: processes in network namespaces with a wire between them, and a directory of
keys on each, as it is set up by hand.
"""

import asyncio
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from actors import Actor, Nursery
from faults.namespaces import Wire, move
from keys import make

from aiobus.keyring.files import DESK, LIST

__all__ = [
    "LOCAL", "PORT", "V4", "V6", "Bot", "Hosts", "copy_list", "copy_seal", "set_up", "url_of",
]  # fmt: skip

LOCAL = "127.0.0.1 localhost\n"
V4 = ("10.77.0.1", "10.77.0.2")
V6 = ("[fd77::1]", "[fd77::2]")
PORT = 7555


def url_of(at: tuple[str, str]) -> str:
    """A URL with one rendezvous address on each host."""
    return "tcp://" + ",".join(f"{host}:{PORT}" for host in at)


class Hosts:
    """Two hosts of one process each, and the wire between them."""

    def __init__(self, nursery: Nursery, stack: ExitStack) -> None:
        self._nursery = nursery
        self._stack = stack

    async def make(self, *names: str, has_exit: bool = False) -> tuple[Actor, Actor]:
        """`names`: what each has in /etc/hosts, besides localhost."""
        first, second = await self._nursery.actors(2)
        devices = []
        for index, each in enumerate((first, second)):
            devices.append(
                await move(
                    each,
                    V4[index],
                    v6=V6[index].strip("[]"),
                    names=LOCAL + names[index] if names else "",
                    has_exit=has_exit,
                )
            )
        self.wire = Wire(*devices, 1)
        self._stack.callback(self.wire.close)
        return first, second

    def cut(self) -> None:
        """Lose all packets from now on, without a word to either host."""
        self.wire.cut = frozenset({0, 1})

    def heal(self) -> None:
        """Carry packets again."""
        self.wire.cut = frozenset()


START = """
import logging
if not hasattr(self, "screen"):
    screen, self.buses, self.refusals = [], {}, []
    class Screen(logging.Handler):
        def emit(self, record):
            screen.append(record.getMessage())
    log = logging.getLogger("aiobus")
    log.addHandler(Screen(logging.INFO))
    log.setLevel(logging.INFO)
    log.propagate = False
    self.screen = screen
limits = aiobus.Limits(**options.pop("limits", {}))
keyring = aiobus.Keyring.load(keys)
bus = aiobus.AsyncEventBus(url, name=name, keyring=keyring, limits=limits, **options)
began = asyncio.get_running_loop().time()
await bus.start()
took = asyncio.get_running_loop().time() - began
self.buses[name] = bus
await bus.subscribe("aiobus.refused", lambda event: self.refusals.append(event.data))
return took
"""
SAID = """
found = []
while not found:
    found = [line for line in self.screen if text in line]
    await asyncio.sleep(0.02 if not found else 0)
return found[0]
"""
PEERS = """
while sorted(each.name for each in bus.peers) != sorted(names):
    await asyncio.sleep(0.01)
"""


class Bot:
    """A bus in the process of a host, and the screen of that process: what it has logged."""

    def __init__(self, actor: Actor, name: str) -> None:
        self.actor = actor
        self.name = name

    @classmethod
    async def start(cls, actor: Actor, url: str, name: str, keys: Path, **options: Any) -> Self:
        """Start one. `limits`: a dict of the keywords of `Limits`."""
        made = cls(actor, name)
        values = {"url": url, "name": name, "keys": str(keys), "options": options}
        made.seconds = float(await actor(START, **values))
        return made

    seconds = 0.0
    """That its start took."""

    async def __call__(self, code: str, **values: Any) -> Any:
        """Run code with this `bus`."""
        return await self.actor(f"bus = self.buses[own]\n{code}", own=self.name, **values)

    async def links(self, *names: str) -> float:
        """Wait until it is linked with these and no other; return the seconds that took."""
        began = asyncio.get_running_loop().time()
        await self(PEERS, names=names)
        return asyncio.get_running_loop().time() - began

    async def says(self, text: str) -> str:
        """Wait for a line on the screen that has this text in it."""
        return str(await self.actor(SAID, text=text))

    async def screen(self) -> list[str]:
        """What is on the screen, which is empty afterwards."""
        return list(await self.actor("lines = self.screen[:]; self.screen.clear(); return lines"))

    async def refusals(self) -> set[tuple[str, str]]:
        """The name and the cause of each aiobus.refused."""
        found = await self.actor("return self.refusals")
        return {(each["name"], each["cause"]) for each in found}

    async def close(self) -> None:
        """Leave."""
        await self("await self.buses.pop(own).close(1)")


def set_up(folder: Path, first: tuple[str, ...], second: tuple[str, ...]) -> tuple[Path, Path]:
    """The directories of keys of two hosts: each has the secrets of its own members. The first
    begins the desk, the second gets copies of its list and its desk secret, makes the keys of its
    members, and the list goes back.
    """
    keys = folder / "host-a", folder / "host-b"
    make(keys[0], *first)
    keys[1].mkdir(mode=0o700)
    copy_list(*keys)
    copy_seal(*keys)
    make(keys[1], *second)
    copy_list(keys[1], keys[0])
    return keys


def copy_list(source: Path, target: Path) -> None:
    """Bring the list of members to another host, as `scp` to a temporary name and `mv` do."""
    _copy(source / LIST, target / LIST)


def copy_seal(source: Path, target: Path) -> None:
    """The same with the desk secrets."""
    _copy(source / DESK, target / DESK)


def _copy(source: Path, target: Path) -> None:
    new = target.with_name(target.name + ".new")
    shutil.copy(source, new)  # with the permissions of the file
    new.replace(target)
