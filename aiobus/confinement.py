"""Refuses what leaves the process while a thread runs in virtual time.

Owns which calls those are, and the refusal. A refusal is kept: code may catch it, and the run ends
with it all the same. An audit hook sees connections, name look-ups, processes and files that are
opened; what it does not see is patched while any thread is confined. Other threads pay for a look
at a dict. Must not know of virtual loops or buses.
"""

import asyncio
import atexit
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from threading import Lock, Thread, get_ident
from types import FrameType
from typing import Any

from aiobus.errors import LeavesProcess

__all__ = [
    "EVENTS",
    "Confinement",
    "check",
    "confined",
    "current",
    "is_users",
    "refused",
    "start_unconfined",
    "written",
]

EVENTS: dict[str, tuple[str, int | None]] = {
    "socket.connect": ("socket.connect", 1),
    "socket.bind": ("socket.bind", 1),
    "socket.sendto": ("socket.sendto", 1),
    "socket.sendmsg": ("socket.sendmsg", 1),
    "socket.getaddrinfo": ("socket.getaddrinfo", 0),
    "socket.getnameinfo": ("socket.getnameinfo", 0),
    "socket.gethostbyname": ("socket.gethostbyname", 0),
    "socket.gethostbyaddr": ("socket.gethostbyaddr", 0),
    "subprocess.Popen": ("subprocess.Popen", 1),
    "os.system": ("os.system", 0),
    "os.exec": ("os.exec", 0),
    "os.posix_spawn": ("os.posix_spawn", 0),
    "os.fork": ("os.fork", None),
    "os.forkpty": ("os.forkpty", None),
    "os.kill": ("os.kill", 0),
    "os.killpg": ("os.killpg", 0),
}
"""The audit events of Python that are refused: the call, and which argument its text shows."""

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
HARMLESS: tuple[str | int, ...] = (*(f"/dev/{name}" for name in DEVICES), 1, 2)
"""What may be opened for writing though it is no ordinary file. What is written there goes to
nothing but a person, or where stdout and stderr (1 and 2) go to anyway.
"""
MOST_WRITTEN = 100
"""Files whose names are kept."""


class Confinement:
    """What one thread may do. `allow`: callers whose calls are let through, as "module.function".

    Raises TypeError if `allow` is no collection of such names.
    """

    def __init__(self, allow: Collection[str] = ()) -> None:
        names = () if isinstance(allow, str) or not isinstance(allow, Collection) else allow
        if names is not allow or not all(isinstance(name, str) for name in names):
            raise TypeError(
                f"allow={allow!r}: a tuple of callers is needed, each as 'module.function'"
            )
        self._allow = frozenset(allow)
        self._printed: set[tuple[str, str]] = set()
        self.refusal: LeavesProcess | None = None
        """The first one."""
        self.is_over = False
        """The run has ended, or is told to: what is refused now ends nothing."""
        self._interrupt: BaseException | None = None
        self.is_lifted = False
        self.written: list[str] = []
        """The first ordinary files that were opened for writing, and databases, each once."""

    def check(self, name: str, rest: str = "()") -> None:
        """Raise LeavesProcess, unless a caller is let through: that is printed, once for a call."""
        if self.is_lifted:
            return
        callers = list(_callers())
        for caller in callers:
            if (known := _name(caller)) in self._allow:
                if (known, name) not in self._printed:
                    self._printed.add((known, name))
                    sys.stderr.write(f"virtual time: {known} is let through to {name}{rest}\n")
                return
        others = [caller for caller in callers if not _is_ours(caller)]
        users = [*filter(is_users, others), *others]  # a strategy may be installed as a library is
        raise self.refuse(name + rest, _name(users[0]) if users else "")

    def check_file(self, path: Any, mode: str | None) -> None:
        """A file is opened for writing. Raise LeavesProcess if that is a FIFO, a device or a
        socket: behind it may be a gateway.
        """
        if not _stays(path):
            self.check("os.open" if mode is None else "open", f"({path!r})")
        else:
            self.note_written(path)

    def note_written(self, path: Any) -> None:
        """An ordinary file, or a database, is opened for writing."""
        name = os.path.abspath(os.fsdecode(path))
        is_cache = "__pycache__" in name  # of a module that is imported
        if len(self.written) < MOST_WRITTEN and not is_cache and name not in self.written:
            self.written.append(name)

    def refuse(self, call: str, caller: str, replayed: str = "") -> LeavesProcess:
        """A refusal to raise. The first one ends the run as well."""
        error = LeavesProcess(call, caller, replayed)
        if self.refusal is None:
            self.refusal = error
        return error

    def interrupt(self, error: BaseException) -> None:
        """End the run with `error`, at the next turn of its loop. Thread-safe. Never waits."""
        self._interrupt = error

    def raise_ending(self) -> None:
        """Raise what is to end the run, once, as its tasks are cancelled then and clean up. Call it
        at each turn of the loop.
        """
        if self._interrupt is not None:
            error, self._interrupt = self._interrupt, None
            raise error
        if self.refusal is not None and not self.is_over:
            self.is_over = True
            raise self.refusal


def _callers() -> Iterator[FrameType]:
    """The frames of other modules that led here, innermost first."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals is not globals():
            yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _name(frame: FrameType) -> str:
    return f"{_module(frame)}.{frame.f_code.co_qualname}"


def _is_ours(frame: FrameType) -> bool:
    """True for code of Python and of what this package is made of."""
    top = _module(frame).partition(".")[0]
    return top in sys.stdlib_module_names or top in ("aiobus", "zmq")


def is_users(frame: FrameType) -> bool:
    """True for code that is not of a library, as far as can be told."""
    return not _is_ours(frame) and "site-packages" not in frame.f_code.co_filename


_confined: dict[int, Confinement] = {}
"""By thread."""
_lock = Lock()
_undo: list[Callable[[], None]] = []
_is_hooked = False


def current() -> Confinement | None:
    """The confinement of this thread."""
    return _confined.get(get_ident())


def check(name: str, rest: str = "()") -> None:
    """Raise LeavesProcess if this thread is confined and no caller is let through to the call."""
    if (here := current()) is not None:
        here.check(name, rest)


def refused(call: str) -> LeavesProcess:
    """A refusal to raise in any thread, of a call for which there is nothing that does it."""
    here = current()
    return LeavesProcess(call, "") if here is None else here.refuse(call, "")


def written() -> tuple[str, ...]:
    """The first files that this thread has opened for writing while it is confined."""
    here = current()
    return () if here is None else tuple(here.written)


@contextmanager
def confined(confinement: Confinement) -> Iterator[None]:
    """Confine this thread while the body runs. Other threads are not. On exit it raises the first
    refusal, also if the body has caught it or raised another exception.
    """
    global _is_hooked
    thread = get_ident()
    with _lock:
        if not _is_hooked:  # a hook stays for ever
            sys.addaudithook(_audit)
            _is_hooked = True
        if not _undo:
            _patch()
        outer = _confined.get(thread)
        _confined[thread] = confinement
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit as well, or a skipped test
        if confinement.refusal not in (None, error):
            raise confinement.refusal from error
        raise
    finally:
        confinement.is_over = True
        with _lock:
            if outer is None:
                _confined.pop(thread, None)  # a forked child has none
            else:
                _confined[thread] = outer
            if not _confined:
                _unpatch()
    if confinement.refusal is not None:
        raise confinement.refusal


def start_unconfined(thread: Thread) -> None:
    """Start a thread of the package itself, from a confined thread too."""
    if (here := current()) is None:
        thread.start()
        return
    here.is_lifted = True
    try:
        thread.start()
    finally:
        here.is_lifted = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _confined:
        return
    if event in EVENTS and (here := current()) is not None:
        name, shown = EVENTS[event]
        here.check(name, "()" if shown is None else f"({arguments[shown]!r})")
    elif event == "open":
        path, mode, flags = arguments
        # A number is a descriptor that is open already.
        if flags & (os.O_WRONLY | os.O_RDWR) and not isinstance(path, int) and (here := current()):
            here.check_file(path, mode)
    elif event == "sqlite3.connect" and (here := current()) is not None:
        name = os.fsdecode(arguments[0])
        if name and ":memory:" not in name and "mode=ro" not in name:
            here.note_written(name.removeprefix("file:").partition("?")[0])


def _stays(path: Any) -> bool:
    """True if what is written to a file stays in the machine: it is an ordinary file or one that is
    not there yet, a harmless device, or what this process writes to as stdout or stderr.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # it is made now, or cannot be opened
        return True
    if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
        return True
    for known in HARMLESS:
        with suppress(OSError):
            if os.path.samestat(os.stat(known), found):
                return True
    return False


def _patch() -> None:
    """Guard what raises no audit event."""
    import _posixsubprocess
    import _thread
    import ssl
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

    import zmq

    for owner, names, says in (
        (socket.socket, ("send", "sendall", "sendfile"), "socket"),
        (ssl.SSLSocket, ("send", "sendall", "write"), "ssl.SSLSocket"),
        (zmq.Socket, ("__init__", "bind", "connect", "send"), "zmq.Socket"),
        (Thread, ("start",), "Thread"),
        (_thread, ("start_new_thread",), "_thread"),
        (ThreadPoolExecutor, ("submit",), "ThreadPoolExecutor"),  # its threads may be there
        (ProcessPoolExecutor, ("submit",), "ProcessPoolExecutor"),
        (_posixsubprocess, ("fork_exec",), "_posixsubprocess"),  # multiprocessing, where it spawns
        (asyncio, ("run_coroutine_threadsafe",), "asyncio"),
        (signal, ("pidfd_send_signal",) if hasattr(signal, "pidfd_send_signal") else (), "signal"),
        (asyncio.BaseEventLoop, ("call_soon_threadsafe",), "loop"),  # that of a real loop
    ):
        for name in names:
            _guard(owner, name, f"{says}.{name}".removesuffix(".__init__"))
    for name in ("call_soon", "call_at"):
        _guard(asyncio.BaseEventLoop, name, f"loop.{name}", _is_foreign)
    _confine_exits()


def _is_foreign(loop: asyncio.BaseEventLoop, *_: Any, **options: Any) -> bool:
    """True for a call into another loop, by which each task, future or queue of it is woken."""
    return asyncio._get_running_loop() not in (None, loop)


def _guard(
    owner: Any, name: str, call: str, leaves: Callable[..., bool] = lambda *args, **options: True
) -> None:
    original = getattr(owner, name)

    @wraps(original)
    def guarded(*args: Any, **options: Any) -> Any:
        if leaves(*args, **options):
            check(call)
        return original(*args, **options)

    if name in vars(owner):
        _undo.append(lambda: setattr(owner, name, original))
    else:  # inherited
        _undo.append(lambda: delattr(owner, name))
    setattr(owner, name, guarded)


def _confine_exits() -> None:
    """What code in virtual time asks to be called at the end of the process is confined then."""
    register: Any = atexit.register

    def guarded(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if current() is None or not is_users(sys._getframe(1)):
            return register(function, *args, **options)

        def confined_call() -> None:
            with confined(Confinement()):
                function(*args, **options)

        register(confined_call)
        return function

    atexit.register = guarded  # type: ignore[assignment]
    _undo.append(lambda: setattr(atexit, "register", register))


def _unpatch() -> None:
    while _undo:
        _undo.pop()()


def _leave_process() -> None:
    """A forked child has no other threads, and threads of its own may get their numbers."""
    global _lock
    _lock = Lock()
    _confined.clear()
    _unpatch()


os.register_at_fork(after_in_child=_leave_process)
