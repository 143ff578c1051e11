"""An event loop on virtual time: a day of timers passes as fast as their callbacks run.

Owns its two clocks, the detection of deadlocks, and `run_virtual`. What must not be called in
virtual time is `confinement`'s business. Must not know of buses: `aiobus.clock` reads the clocks of
the running loop, so a bus on this loop follows them.
"""

import asyncio
import inspect
import math
import signal
import threading
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from itertools import count
from types import FrameType
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack

from aiobus.confinement import Confinement, confined, current, refused, start_unconfined
from aiobus.errors import Deadlock

__all__ = ["VirtualLoop", "run_virtual"]

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

    def __init__(self, *, start: float = START) -> None:
        super().__init__()
        if not isinstance(start, int | float) or not math.isfinite(start):
            self.close()
            raise ValueError(f"start={start!r}: Unix seconds are needed, such as 1_700_000_000.0")
        self._start = start
        self._epoch = 0
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
        """Jump to the next timer, in `timeout` seconds. Raises Deadlock if there is none (None).
        Raises what is to end a confined run.
        """
        if (confinement := current()) is not None:
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


def run_virtual(
    main: Coroutine[Any, Any, T] | Callable[[], Coroutine[Any, Any, T]],
    *,
    start: float = START,
    allow: Collection[str] = (),
) -> T:
    """Run `main`, a coroutine or a coroutine function without arguments, on a VirtualLoop to its
    end; return what it returns, raise what it raises::

        fills = run_virtual(backtest())  # a week of minute bars in a second

    Sleeps, timeouts, timers, `request`, `max_age` and the timestamps of events are in virtual time,
    which begins at `start` in Unix seconds. `aiobus.clock.time()` tells it.

    Nothing leaves the process meanwhile. To connect, bind or send by a socket, to look up a host
    name, to start or signal a process, to start a thread or use an executor, to make or use a
    zmq socket, to call into the loop of another thread, or to start a bus on ipc or tcp raises
    LeavesProcess. That ends the run with this error at the next turn of the loop, also if the code
    catches it, and whatever `on_error` says. `allow` names callers that may do so all the same, by
    module and function (`allow=("reports.Mailer.send",)`). It counts if the caller is anywhere in
    the stack, and what is let through is printed to stderr once. Files and sqlite3 stay in the
    machine and are not refused. Not seen are calls by ctypes and other extensions in C, methods of
    sockets that were looked up before, pipes that were open before, and threads that run already
    and are handed work by a queue.

    If a loop runs in the calling thread already (a notebook, a coroutine test), a thread of its own
    runs `main`, and the caller waits: its loop stands still until the end. Ctrl-C ends the run: its
    tasks are cancelled, and KeyboardInterrupt is raised. Raises Deadlock if nothing can ever happen
    again, TypeError and ValueError for wrong arguments.
    """
    try:
        if not callable(main) and not inspect.iscoroutine(main):
            raise TypeError(f"main={main!r}: a coroutine is needed, or a coroutine function")
        confinement, loop = Confinement(allow), VirtualLoop(start=start)
    except BaseException:
        if inspect.iscoroutine(main):
            main.close()  # else Python complains that it was never awaited
        raise

    def run() -> T:
        try:
            with confined(confinement), asyncio.Runner(loop_factory=lambda: loop) as runner:
                try:
                    result: T = runner.run(main() if callable(main) else main)
                finally:
                    confinement.is_over = True
        except (Exception, asyncio.CancelledError) as error:
            if confinement.refusal not in (None, error):
                raise confinement.refusal from error
            raise
        if confinement.refusal is not None:
            raise confinement.refusal
        return result

    return _in_own_thread(run, confinement) if _is_loop_running() else run()


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _in_own_thread(run: Callable[[], T], confinement: Confinement) -> T:
    results: list[T] = []
    errors: list[BaseException] = []
    is_done = threading.Event()  # a `join` that a signal handler interrupts takes it for ended

    def work() -> None:
        try:
            results.append(run())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            errors.append(error)
        is_done.set()

    work_here = copy_context().run
    thread = threading.Thread(target=work_here, args=(work,), name="run_virtual", daemon=True)
    with _interruptible():
        try:
            start_unconfined(thread)
            is_done.wait()
        except BaseException:  # Ctrl-C, or what another signal handler raises
            confinement.interrupt(KeyboardInterrupt())
            if thread.is_alive():
                is_done.wait()
            raise
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def _interruptible() -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt. The handler of the caller's loop would only note it for
    that loop, which stands still.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
