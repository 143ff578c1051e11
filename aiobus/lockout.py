"""A replay excludes, in one process, what a desk would hear of: buses on ipc or tcp, and journals.

Owns who of either kind is open. While a replay is open in any thread, no bus of this process can
join a desk, and none can write to a journal, whose next start hands its orders to a gateway. A
replay does not start while such a bus is open. Must not know what a replay or a bus does.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from weakref import WeakKeyDictionary

from aiobus.confinement import current
from aiobus.errors import BusError, LeavesProcess

__all__ = [
    "check_shut", "enter_desk", "enter_replay", "leave_desk", "leave_replay", "replaying", "shut",
]  # fmt: skip

_lock = Lock()
_desks: WeakKeyDictionary[object, str] = WeakKeyDictionary()
"""What is open for each network and journal. One that is collected is not open."""
_shut: list[tuple[str, list[BusError]]] = []
"""What goes on while nothing is to be started, and what was refused meanwhile."""
_replays: dict[int, str] = {}
"""What is replayed, by thread."""


def enter_desk(way: object, name: str, where: str) -> None:
    """The bus `name` is about to open its network or journal, `way`. Raises LeavesProcess while a
    replay is open, and BusError while a command that replays is at work.
    """
    check_shut(f"{name} {where}")
    with _lock:
        what = " and ".join(_replays.values())
        if not what:
            _desks[way] = f"{name} {where}"
            return
    call, here = f"AsyncEventBus.start() of {name!r} {where}", current()
    raise LeavesProcess(call, "", what) if here is None else here.refuse(call, "", what)


def leave_desk(way: object) -> None:
    """It is closed. Again: nothing."""
    with _lock:
        _desks.pop(way, None)


def enter_replay(what: str) -> int:
    """This thread is about to replay `what`. Returns what `leave_replay` takes. Raises BusError
    while a bus of this process is on ipc or tcp or has a journal, or another replay is open in this
    thread.
    """
    with _lock:
        if _desks:
            names = ", ".join(sorted(_desks.values()))
            raise BusError(
                f"{what} is not replayed while this process has open: {names}. What is replayed"
                " could reach a desk by it: close it, or replay in a process of its own"
            )
        thread = get_ident()
        if thread in _replays:
            raise BusError(
                f"{what} is not replayed while {_replays[thread]} is: its loop has one clock"
            )
        _replays[thread] = what
        return thread


@contextmanager
def shut(what: str) -> Iterator[None]:
    """While the body runs, which is `what`, a bus that would join a desk or open a journal, and a
    recording, raise BusError in every thread that is not in virtual time. On exit, the first of
    these errors is raised again, since the code that met it may have caught it.
    """
    met: list[BusError] = []
    with _lock:
        _shut.append((what, met))
    try:
        yield
    finally:
        with _lock:
            _shut.remove((what, met))
    if met:
        raise met[0]


def check_shut(started: str) -> None:
    """Raise BusError if `shut` says that nothing is to be started now."""
    if _shut and current() is None:
        what, met = _shut[-1]
        error = BusError(
            f"{what} starts {started}: put what starts a bus under"
            ' `if __name__ == "__main__":`, so that the module can be imported without that'
        )
        met.append(error)
        raise error


@contextmanager
def replaying(what: str) -> Iterator[None]:
    """The body replays `what` without a `Replay`. As `enter_replay`. If this thread replays
    already, that excludes all that this would.
    """
    if get_ident() in _replays:
        yield
        return
    thread = enter_replay(what)
    try:
        yield
    finally:
        leave_replay(thread)


def leave_replay(thread: int) -> None:
    """The replay that `enter_replay` was told of in this thread has ended."""
    with _lock:
        _replays.pop(thread, None)


def _leave_process() -> None:
    """What is open is the parent's."""
    global _lock
    _lock = Lock()
    _desks.clear()
    _replays.clear()
    _shut.clear()


os.register_at_fork(after_in_child=_leave_process)
