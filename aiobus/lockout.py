"""A replay, and buses on ipc or tcp, exclude each other in one process.

Owns who of either kind is open. While a replay is open in any thread, no bus of this process can
join a desk, so what the replay hands over cannot reach a gateway through one. A replay does not
start while such a bus is open. Must not know what a replay or a bus does.
"""

import os
from threading import Lock, get_ident
from weakref import WeakKeyDictionary

from aiobus.errors import BusError, LeavesProcess

__all__ = ["enter_mesh", "enter_replay", "leave_mesh", "leave_replay"]

_lock = Lock()
_meshes: WeakKeyDictionary[object, str] = WeakKeyDictionary()
"""The name of the bus of each open network. One that is collected is not open."""
_replays: dict[int, str] = {}
"""What is replayed, by thread."""


def enter_mesh(network: object, name: str) -> None:
    """The bus `name` is about to open sockets. Raises LeavesProcess while a replay is open."""
    with _lock:
        if _replays:
            what = " and ".join(_replays.values())
            call = f"AsyncEventBus.start() of {name!r} on ipc:// or tcp://"
            raise LeavesProcess(call, "", what)
        _meshes[network] = name


def leave_mesh(network: object) -> None:
    """Its sockets are closed. Again: nothing."""
    with _lock:
        _meshes.pop(network, None)


def enter_replay(what: str) -> int:
    """This thread is about to replay `what`. Returns what `leave_replay` takes. Raises BusError
    while a bus on ipc or tcp is open in this process, or another replay in this thread.
    """
    with _lock:
        if _meshes:
            names = ", ".join(sorted(_meshes.values()))
            raise BusError(
                f"{what} is not replayed while this process has a bus on ipc:// or tcp:// open"
                f" ({names}), through which what is replayed could reach a desk: close it, or"
                " replay in a process of its own"
            )
        thread = get_ident()
        if thread in _replays:
            raise BusError(
                f"{what} is not replayed while {_replays[thread]} is: its loop has one clock"
            )
        _replays[thread] = what
        return thread


def leave_replay(thread: int) -> None:
    """The replay that `enter_replay` was told of in this thread has ended."""
    with _lock:
        _replays.pop(thread, None)


def _leave_process() -> None:
    """What is open is the parent's."""
    global _lock
    _lock = Lock()
    _meshes.clear()
    _replays.clear()


os.register_at_fork(after_in_child=_leave_process)
