"""Two hosts of a test: processes in network namespaces with a wire between them, and a directory of
keys on each, as it is set up by hand.
"""

import shutil
from contextlib import ExitStack
from pathlib import Path

from actors import Actor, Nursery
from faults.namespaces import Wire, move

from aiobus.keyring.changes import make_key
from aiobus.keyring.files import DESK, LIST
from aiobus.keyring.members import EVERYTHING

__all__ = ["LOCAL", "PORT", "V4", "V6", "Hosts", "copy_list", "copy_seal", "set_up", "url_of"]

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


def set_up(folder: Path, first: tuple[str, ...], second: tuple[str, ...]) -> tuple[Path, Path]:
    """The directories of keys of two hosts: each has the secrets of its own members. The first
    begins the desk, the second gets copies of its list and its desk secret, makes the keys of its
    members, and the list goes back.
    """
    keys = folder / "host-a", folder / "host-b"
    for name in first:
        make_key(str(keys[0]), name, EVERYTHING)
    keys[1].mkdir(mode=0o700)
    copy_list(*keys)
    copy_seal(*keys)
    for name in second:
        make_key(str(keys[1]), name, EVERYTHING)
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
