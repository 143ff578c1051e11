"""`run_virtual`: runs a program to its end in virtual time.

Owns where it runs, and how Ctrl-C ends it. What must not be called meanwhile is `confinement`'s
business, and time is that of `virtual_loop`.
"""

import asyncio
import inspect
import signal
import threading
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import Any, TypeVar

from aiobus.confinement import Confinement, confined, start_unconfined
from aiobus.virtual_loop import START, VirtualLoop

__all__ = ["run_confined", "run_virtual"]

T = TypeVar("T")


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
    name, to start or signal a process, to start a thread or use an executor, to make or use a zmq
    socket, to call into the loop of another thread, to open a FIFO, a device or a socket file for
    writing, or to start a bus on ipc or tcp raises LeavesProcess. That ends the run with this error
    at the next turn of the loop, also if the code catches it, and whatever `on_error` says. `allow`
    names callers that may do so all the same, by module and function
    (`allow=("reports.Mailer.send",)`). It counts if the caller is anywhere in the stack, and what
    is let through is printed to stderr once. Ordinary files and sqlite3 stay in the machine and are
    written. Not seen are calls by ctypes and other extensions in C (uvloop is one), methods that
    were looked up before, writes to a file, pipe, device or bare file descriptor that was open
    before, os.open with dir_fd=, shared memory, and threads that run already and are handed work by
    a queue.

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
    result: T = run_confined(main, loop, confinement)
    return result


def run_confined(
    main: Coroutine[Any, Any, T] | Callable[[], Coroutine[Any, Any, T]],
    loop: VirtualLoop,
    confinement: Confinement,
) -> T:
    """Run `main` as `run_virtual` does, on this loop, which is closed at the end."""

    def run() -> T:
        with confined(confinement):
            try:
                with asyncio.Runner(loop_factory=lambda: loop) as runner:
                    try:
                        result: T = runner.run(main() if callable(main) else main)
                    finally:
                        confinement.is_over = True  # the clean-up is to come to its end
            finally:
                _end_what_is_left(loop)
        return result

    return _in_own_thread(run, confinement) if _is_loop_running() else run()


_unending: list[Any] = []
"""Coroutines that do not end. If one was collected, the rest of it would run unconfined."""


def _end_what_is_left(loop: VirtualLoop) -> None:
    """End the coroutines of tasks that ignored that they were cancelled, while their clean-up is
    confined.
    """
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        coroutine: Any = task.get_coro()
        with suppress(Exception):  # of its clean-up; a refusal is kept
            coroutine.close()
        if getattr(coroutine, "cr_frame", None) is not None:
            _unending.append(coroutine)


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
