"""An event loop on virtual time: a day of timers passes as fast as their callbacks run.

Owns its two clocks, and the detection of deadlocks. Must not know of buses: `aiobus.clock` reads
the clocks of the running loop, so a bus on this loop follows them.
"""

import asyncio
import math
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from itertools import count
from types import FrameType
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack

from aiobus.errors import BusError

__all__ = ["Deadlock", "VirtualLoop"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START = 1_700_000_000.0
"""Unix seconds at which the wall clock of a loop begins. It is the same in each run, so that runs
repeat exactly.
"""
ABSENT = (
    *("run_in_executor", "add_reader", "add_writer", "add_signal_handler"),
    *("sock_accept", "sock_connect", "sock_recv", "sock_recv_into", "sock_recvfrom"),
    *("sock_recvfrom_into", "sock_sendall", "sock_sendfile", "sock_sendto", "sendfile"),
    *("create_connection", "create_server", "create_datagram_endpoint", "connect_accepted_socket"),
    *("create_unix_connection", "create_unix_server", "start_tls", "getaddrinfo", "getnameinfo"),
    *("connect_read_pipe", "connect_write_pipe", "subprocess_exec", "subprocess_shell"),
)
"""Methods of a loop whose results come from outside, at a real time."""


class Deadlock(BusError):
    """No callback is ready and no timer is set, so no task on this loop can ever go on. `waiting`
    has one line for each waiting task, with the file and line of each of its frames.
    """

    def __init__(self, time: float, waiting: list[str]) -> None:
        tasks = "".join(f"\n  {line}" for line in waiting) or " none"
        super().__init__(
            f"nothing can ever happen again after {time:g} s of virtual time, because no timer is"
            f" set; tasks that wait:{tasks}"
        )
        self.waiting = waiting


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

    If nothing can ever happen again, running the loop raises Deadlock; other loops would hang.
    There are no sockets, pipes, processes, signal handlers or threads: methods that need them raise
    NotImplementedError, and `call_soon_threadsafe` from another thread raises RuntimeError.
    """

    _thread_id: int | None
    """Of BaseEventLoop: the thread that runs the loop now."""

    def __init__(self, *, start: float = START) -> None:
        super().__init__()
        self._start = start
        self._now = 0.0
        self._clock_resolution = math.ulp(0.0)
        self._selector = self
        self._created = count()
        self.set_task_factory(_make_task)

    def __repr__(self) -> str:
        return f"<VirtualLoop at {self._now:g} s>"

    def time(self) -> float:
        """Seconds of virtual time since the loop was made."""
        return self._now

    def wall_time(self) -> float:
        """Unix seconds of virtual time."""
        return self._start + self._now

    def block(self, seconds: float) -> None:
        """Let `seconds` pass without running the loop, as code that computes does: timers that are
        due meanwhile are late. Raises ValueError for a negative number.
        """
        if not seconds >= 0:
            raise ValueError(f"block({seconds!r}): 0 seconds or more are needed")
        self._pass(seconds)

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

    # BaseEventLoop calls these methods of its subclass.

    def select(self, timeout: float | None) -> list[Any]:
        """Jump to the next timer, in `timeout` seconds. Raises Deadlock if there is none (None)."""
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
        raise NotImplementedError(
            f"loop.{name}() on a VirtualLoop, which has no sockets, pipes, processes, signal"
            " handlers or threads; buses that are to talk to each other on it need a MemoryNetwork"
        )

    return refuse


def _none_to_remove(*args: object) -> bool:
    return False


for _name in ABSENT:
    setattr(VirtualLoop, _name, _absent(_name))
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


def _make_task(
    loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
) -> "asyncio.Task[Any]":
    assert isinstance(loop, VirtualLoop)
    return _Task(coroutine, loop, options)


def _waiting(loop: VirtualLoop) -> list[str]:
    tasks = sorted(asyncio.all_tasks(loop), key=hash)  # in the order of creation
    return [f"{task.get_name()}: {_where(task.get_coro())}" for task in tasks]


def _where(awaited: Any) -> str:
    """The frames in which a task waits, innermost first."""
    frames = [f"{frame.f_code.co_name} ({_line(frame)})" for frame in _frames(awaited)]
    return " in ".join(reversed(frames)) or "not begun"


def _line(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _frames(awaited: Any) -> Iterator[FrameType]:
    """The Python frames of an awaited object, outermost first."""
    while awaited is not None:
        for kind, inner in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            if (frame := getattr(awaited, f"{kind}_frame", None)) is not None:
                yield frame
                awaited = getattr(awaited, inner)
                break
        else:
            return
