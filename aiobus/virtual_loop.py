"""An event loop on virtual time: a day of timers passes as fast as their callbacks run.

Owns its two clocks and the detection of deadlocks. Must not know of buses: `aiobus.clock` reads the
clocks of the running loop, so a bus on this loop follows them.
"""

import asyncio
import math
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from itertools import count
from operator import itemgetter
from types import FrameType
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack

from aiobus.confinement import current, is_users, refused
from aiobus.errors import Deadlock

__all__ = ["START", "VirtualLoop", "frames", "place"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START = 1_700_000_000.0
"""Unix seconds at which the wall clock of a loop begins. It is the same in each run, so that runs
repeat exactly.
"""
ABSENT = (
    *("run_in_executor", "add_reader", "add_writer"),
    *("sock_accept", "sock_connect", "sock_recv", "sock_recv_into", "sock_recvfrom"),
    *("sock_recvfrom_into", "sock_sendall", "sock_sendfile", "sock_sendto", "sendfile"),
    *("create_connection", "create_server", "create_datagram_endpoint", "connect_accepted_socket"),
    *("create_unix_connection", "create_unix_server", "start_tls", "getaddrinfo", "getnameinfo"),
    *("connect_read_pipe", "connect_write_pipe", "subprocess_exec", "subprocess_shell"),
)
"""Methods of a loop that leave the process, or whose results come from outside at a real time."""


DRIVEN = "driven_coroutine"
"""The local variable of a generator that sends to a coroutine in place of awaiting it."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop whose clock stands still while a callback is ready. Otherwise the clock jumps
    to the next timer::

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())  # an hour of `asyncio.sleep` takes milliseconds

    `time()` begins at 0, and `wall_time()` at `start` in Unix seconds. A bus on this loop uses
    these clocks alone, for timeouts, silent peers and the timestamps of events. `time.time()`,
    `time.monotonic()` and `time.sleep()` are the machine's as ever.

    Runs repeat exactly: sets of tasks and futures of this loop iterate in the order of creation,
    not of addresses. The caller avoids all else that differs from run to run: `random` without a
    seed, sets of strings, real clocks.

    If nothing can ever happen again, running the loop raises Deadlock; other loops would hang. (An
    open bus of a MemoryNetwork always has a next heartbeat. If tests with such buses may wait for
    ever, give them a timeout.) There are no sockets, pipes, processes or threads: methods that need
    them raise LeavesProcess. `add_signal_handler` raises NotImplementedError, as where a system has
    no signals, and `call_soon_threadsafe` from another thread raises RuntimeError. `run_virtual`
    refuses what code calls beside the loop. Raises ValueError if `start` is no time.
    """

    _thread_id: int | None
    """Of BaseEventLoop: the thread that runs the loop now."""
    _check_closed: Callable[[], None]

    def __init__(self, *, start: float = START) -> None:
        super().__init__()
        if not isinstance(start, int | float) or not math.isfinite(start):
            self.close()
            raise ValueError(f"start={start!r}: Unix seconds are needed, such as 1_700_000_000.0")
        self._start = start
        self._epoch = 0
        self._main: asyncio.Future[Any] | None = None
        self._now = 0.0
        self._clock_resolution = math.ulp(0.0)
        self._selector = self
        self._created = count()

    def __repr__(self) -> str:
        return f"<VirtualLoop at {self._now:g} s>"

    def time(self) -> float:
        """Seconds of virtual time since the loop was made."""
        return self._now

    def wall_time(self) -> float:
        """Unix seconds of virtual time."""
        return self._start + self._now

    def fresh_epoch(self) -> int:
        """An epoch that no other bus of this loop has: the same in each run, so that the ids of
        events repeat. Nothing outside this process hears of it.
        """
        self._epoch = max(self._epoch + 1, int(self.wall_time() * 1_000_000))
        return self._epoch

    def block(self, seconds: float) -> None:
        """Let `seconds` pass without running the loop, as code that computes does: timers that are
        due meanwhile are late. Raises ValueError for a negative number.
        """
        if not seconds >= 0:
            raise ValueError(f"block({seconds!r}): 0 seconds or more are needed")
        self._pass(seconds)

    def create_task(self, coro: Any, **options: Any) -> "asyncio.Task[Any]":
        """A task of this loop, as of other loops."""
        if self.get_task_factory() is not None:
            return super().create_task(coro, **options)
        self._check_closed()
        return self.plain_task(coro, options)

    def plain_task(self, coroutine: Any, options: dict[str, Any]) -> "asyncio.Task[Any]":
        """The task that it makes without a task factory: a factory may call this."""
        return _Task(coroutine, self, options)

    def create_future(self) -> "asyncio.Future[Any]":
        """A future of this loop."""
        return _Future(loop=self)

    def call_soon_threadsafe(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """As `call_soon`. Raises RuntimeError in another thread than the one that runs the loop."""
        if self._thread_id not in (None, threading.get_ident()):
            raise RuntimeError(
                "call_soon_threadsafe from another thread: when it would take effect depends on"
                " real time, which a VirtualLoop does not have"
            )
        return self.call_soon(callback, *args, context=context)

    def run_until_complete(self, future: Any) -> Any:
        """As that of other loops."""
        self._main = future if asyncio.isfuture(future) else None
        return super().run_until_complete(future)

    # BaseEventLoop calls these methods of its subclass.

    def select(self, timeout: float | None) -> list[Any]:
        """Jump to the next timer, in `timeout` seconds. Raises Deadlock if there is none (None).
        Raises what is to end a confined run.
        """
        is_ending = self._main is not None and self._main.done()  # by itself, with its own error
        if not is_ending and (confinement := current()) is not None:
            confinement.raise_ending()
        if timeout is None:
            raise Deadlock(self._now, _waiting(self))
        self._pass(timeout)
        return []

    def _pass(self, seconds: float) -> None:
        self._now += seconds
        # The loop runs timers that are due before `time()` plus this resolution: only those of now.
        self._clock_resolution = math.ulp(self._now)

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


def _absent(name: str) -> Callable[..., NoReturn]:
    def refuse(*args: object, **options: object) -> NoReturn:
        raise refused(f"loop.{name}()")

    return refuse


def _no_signals(*args: object) -> NoReturn:
    # Programs expect this: they go on without, and nothing leaves the process by it.
    raise NotImplementedError("loop.add_signal_handler() on a VirtualLoop, which has no signals")


def _none_to_remove(*args: object) -> bool:
    return False


for _name in ABSENT:
    setattr(VirtualLoop, _name, _absent(_name))
setattr(VirtualLoop, "add_signal_handler", _no_signals)  # noqa: B010 - as for the others
for _name in ("remove_reader", "remove_writer", "remove_signal_handler"):
    setattr(VirtualLoop, _name, _none_to_remove)


class _Future(asyncio.Future[T]):
    """Its hash is its number, so that sets iterate in the same order in each run."""

    def __init__(self, *, loop: VirtualLoop) -> None:
        self._number = next(loop._created)
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number


class _Task(asyncio.Task[T]):
    """Its hash is its number, so that sets iterate in the same order in each run."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], loop: VirtualLoop, options: Any) -> None:
        self._number = next(loop._created)
        super().__init__(coroutine, loop=loop, **options)

    def __hash__(self) -> int:
        return self._number


def _waiting(loop: VirtualLoop) -> list[str]:
    """A line for each task, those of the user's code first, in the order of creation."""
    found = []
    for task in sorted(asyncio.all_tasks(loop), key=hash):
        found_there = list(frames(task.get_coro()))
        is_others = not any(map(is_users, found_there))
        places = " in ".join(map(place, reversed(found_there))) or "not begun"
        found.append((is_others, f"{task.get_name()}: {places}{_awaited(task)}"))
    return [line for _, line in sorted(found, key=itemgetter(0))]


def _awaited(task: "asyncio.Task[Any]") -> str:
    """The tasks that a task waits for, as far as it tells."""
    future = getattr(task, "_fut_waiter", None)
    awaited = [future] if isinstance(future, asyncio.Task) else getattr(future, "_children", [])
    names = [each.get_name() for each in awaited if isinstance(each, asyncio.Task)]
    return f", for {' and '.join(names)}" if names else ""


def place(frame: FrameType) -> str:
    """The function, and its file and line. Of a library's file, the path within the library."""
    path = frame.f_code.co_filename
    if not is_users(frame):
        depth = str(frame.f_globals.get("__name__", "")).count(".") + 1
        path = "/".join(path.split("/")[-depth:])
    return f"{frame.f_code.co_qualname} ({path}:{frame.f_lineno})"


def frames(awaited: Any) -> Iterator[FrameType]:
    """The Python frames of an awaited object, outermost first."""
    while awaited is not None:
        for kind, inner in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            if (frame := getattr(awaited, f"{kind}_frame", None)) is not None:
                yield frame
                # What times the steps of a coroutine drives it by itself, under this name.
                awaited = getattr(awaited, inner) or frame.f_locals.get(DRIVEN)
                break
        else:
            return
