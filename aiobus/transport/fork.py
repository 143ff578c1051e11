"""What a forked child must not keep: the links and addresses of the bus that its parent runs.

Owns the hook after `os.fork`. A child inherits every descriptor, so while it lives its dead parent
would still seem to listen: its name in use, its links up (measured). The child closes just the
sockets that belong to a mesh; its other descriptors are its own business.
"""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from typing import Protocol
from weakref import WeakSet

__all__ = ["Keeper", "register"]


class Keeper(Protocol):
    """Whoever has descriptors that a child must close."""

    def mine(self, address: object) -> bool:
        """True when a socket with this own or peer address belongs to it."""
        ...

    def descriptors(self) -> set[int]:
        """Other descriptors that belong to it."""
        ...

    def leave_process(self) -> None:
        """This process is a forked child: use nothing of it here any more."""
        ...


_keepers: WeakSet[Keeper] = WeakSet()

register: Callable[[Keeper], None] = _keepers.add
"""Close what belongs to the keeper in every child forked from now on, while the keeper lives."""


def _close_in_child() -> None:
    keepers = list(_keepers)
    if not keepers:
        return
    for keeper in keepers:
        keeper.leave_process()
    mine = {descriptor for keeper in keepers for descriptor in keeper.descriptors()}
    for descriptor in _open_descriptors():
        addresses = _addresses(descriptor)
        if any(keeper.mine(address) for keeper in keepers for address in addresses):
            mine.add(descriptor)
    # The numbers stay taken: objects of the parent that are still here will close them once more,
    # and must not hit a file that the child has opened since.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in mine:
        os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


def _open_descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/dev/fd")]


def _addresses(descriptor: int) -> Iterator[object]:
    """Its own and its peer's address, if it is a socket."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            yield copy.getsockname()
            yield copy.getpeername()
    except OSError:  # not open any more, or not connected
        return


os.register_at_fork(after_in_child=_close_in_child)
