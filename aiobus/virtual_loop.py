"""An event loop on virtual time: a day of timers passes as fast as their callbacks run.

Owns its two clocks, their pace, and the detection of deadlocks. Must not know of buses:
`aiobus.clock` reads the clocks of the running loop, so a bus on this loop follows them.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterator
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

SLICE = 0.05
"""Seconds of real time after which a loop that waits looks for what may end the waiting."""

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
    _ready: Collection[object]

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
        self._speed: float | None = None
        self._anchor = (0.0, 0.0)
        """A moment of the machine's clock, and that of `time()` then; with a speed."""
        self._is_still = False
        self._stopped: list[asyncio.Future[None]] = []

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

    @property
    def newest_epoch(self) -> int:
        """The highest that it has given; 0 if none."""
        return self._epoch

    def block(self, seconds: float) -> None:
        """Let `seconds` pass without running the loop, as code that computes does: timers that are
        due meanwhile are late. Raises ValueError for a negative number.
        """
        if not seconds >= 0:
            raise ValueError(f"block({seconds!r}): 0 seconds or more are needed")
        self._pass(seconds)

    def set_wall_time(self, seconds: float) -> None:
        """Let `wall_time()` go on from `seconds` (Unix), as a clock that is set. `time()`, and so
        each timer, stays as it is.
        """
        self._start = seconds - self._now

    def run_at(self, speed: float | None) -> None:
        """From now on, let time pass `speed` times as fast as real time. None, as at the beginning:
        do not wait for timers, jump to them. What runs, in which order and at which `time()`, is
        the same at each speed. If callbacks take longer than there is time, it is late and catches
        up. Raises ValueError if `speed` is neither None nor a finite number above 0.
        """
        is_number = isinstance(speed, int | float) and not isinstance(speed, bool)
        if speed is not None and not (is_number and 0 < speed < math.inf):
            raise ValueError(f"speed={speed!r}: None, or how many times real time, is needed")
        self._speed = speed
        self._anchor = time.monotonic(), self._now

    def stand_still(self, is_still: bool) -> None:
        """Stop the clocks, so that no timer runs, or let them go on. What is ready runs all the
        same. With stopped clocks and nothing ready, the loop waits in real time until another
        thread calls this; if there is no other, running the loop raises Deadlock. Thread-safe.
        """
        self._is_still = is_still

    async def until_moving(self) -> None:
        """Return when the clocks go on; at once if they do. Cancelling only stops the waiting."""
        while self._is_still:
            moved = self.create_future()
            self._stopped.append(moved)
            await moved

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

    # Of other loops these are refused, to code in virtual time.
    call_soon = asyncio.BaseEventLoop.call_soon
    call_at = asyncio.BaseEventLoop.call_at

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
        """Pass to the next timer, in `timeout` seconds. Raises Deadlock if there is none (None).
        Raises what is to end a confined run.
        """
        self._check_ending()
        if self._stopped and not self._is_still:
            self._go_on()
        elif timeout == 0:
            pass
        elif self._is_still:
            self._stand()
        elif timeout is None:
            raise Deadlock(self._now, _waiting(self))
        elif self._speed is None or self._wait(self._now + timeout):
            self._pass(timeout)
        return []

    def _check_ending(self) -> None:
        is_ending = self._main is not None and self._main.done()  # by itself, with its own error
        if not is_ending and (confinement := current()) is not None:
            confinement.raise_ending()

    def _go_on(self) -> None:
        stopped, self._stopped = self._stopped, []
        for moved in stopped:
            if not moved.done():
                moved.set_result(None)

    def _stand(self) -> None:
        """Wait in real time until the clocks go on, or a callback is ready (after a signal)."""
        began = time.monotonic()
        while self._is_still and not self._ready:
            if threading.active_count() == 1:
                reason = "its clock was stopped, and no other thread can let it go on"
                raise Deadlock(self._now, _waiting(self), reason)
            time.sleep(SLICE)
            self._check_ending()
        then, at = self._anchor
        self._anchor = then + time.monotonic() - began, at
        self._go_on()

    def _wait(self, until: float) -> bool:
        """Wait in real time for the moment `until` of `time()`. False if something came between."""
        then, at = self._anchor
        while not self._ready and not self._is_still and self._speed is not None:
            left = then + (until - at) / self._speed - time.monotonic()
            if left <= 0:
                return True
            time.sleep(min(left, SLICE))
            self._check_ending()
        return False

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


def place(frame: FrameType, line: int | None = None) -> str:
    """The function, and its file and line, or another `line` of it. Of a library's file, the path
    within the library.
    """
    path = frame.f_code.co_filename
    if not is_users(frame):
        depth = str(frame.f_globals.get("__name__", "")).count(".") + 1
        path = "/".join(path.split("/")[-depth:])
    return f"{frame.f_code.co_qualname} ({path}:{line or frame.f_lineno})"


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
