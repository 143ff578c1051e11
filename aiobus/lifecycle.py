"""The life of a bus: not started, starting, open, closing, closed. A bus never opens again.

Owns the rules in which state, loop, thread and process a call is allowed, and the failure that ends
a bus: the body of `async with`, `settle` and `wait_closed` raise it once each. Must not know what
is started, published or closed.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextvars import Context
from enum import Enum
from threading import get_ident
from typing import Any
from weakref import WeakSet

from aiobus.errors import BusClosed, NameInUse, WrongLoop

__all__ = [
    "Lifecycle",
    "State",
]


class State(Enum):
    """The states of a bus, in their order."""

    NEW = "not started"
    STARTING = "starting"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Lifecycle:
    """The state of one bus, its loop, and the failure that ended it.

    `is_at_work()` is true inside a handler of this bus.
    """

    def __init__(self, name: str, is_at_work: Callable[[], bool], url: str) -> None:
        self.name = name or "this bus"
        self.url = url
        self._is_at_work = is_at_work
        self.state = State.NEW
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = 0
        self.is_running: Callable[[], bool] = lambda: False
        """Whether `loop` runs now, in `thread`."""
        self.failure: BaseException | None = None
        self.settling: set[asyncio.Task[Any] | None] = set()
        """Tasks inside `settle`: it raises the failure itself, so these are not cancelled."""
        self._is_raised = self.is_forked = False
        self.on_fork: Callable[[], None] = lambda: None
        """Called in a forked child, to stop what must not run there."""
        self._body: asyncio.Task[Any] | None = None
        self._cancels_before: int | None = None
        self._over = asyncio.Event()
        self._closing: asyncio.Task[list[str]] | None = None
        self._has_begun = False
        _lives.add(self)

    def bind_to_loop(self) -> asyncio.AbstractEventLoop:
        """Bind the bus to the running loop and return the loop."""
        self.loop = loop = asyncio.get_running_loop()
        self.thread, self.is_running = get_ident(), loop.is_running
        return loop

    def check(self) -> None:
        """Raise BusClosed unless the bus is open, WrongLoop unless the caller runs in its loop.

        While the bus starts or closes, its handlers may still use it.
        """
        self.check_loop()
        is_between = self.state in (State.STARTING, State.CLOSING)
        if self.state is State.OPEN or (is_between and self._is_at_work()):
            return
        if self.state in (State.NEW, State.STARTING):
            hint = "use it inside `async with AsyncEventBus(...) as bus:`"
            raise BusClosed(f"{self.name} is {self.state.value}: {hint}")
        hint = "a bus does not open again, make a new AsyncEventBus"
        text = f"{self.name} is {self.state.value}; nothing was done: {hint}"
        raise BusClosed(text) from self.failure

    def check_loop(self) -> None:
        """Raise WrongLoop unless called in the loop, thread and process that started the bus."""
        self.check_process()
        if self.loop is None:
            return
        try:
            if asyncio.get_running_loop() is self.loop:
                return
        except RuntimeError:  # none runs here
            pass
        if not self.is_running():
            raise WrongLoop(
                f"{self.name} belongs to an event loop that has ended, or does not run now. Each"
                " asyncio.run() makes another: start, use and close the bus within one. A notebook"
                " has a loop of its own: await bus.start() there, without asyncio.run()"
            )
        if get_ident() == self.thread:
            raise WrongLoop(
                f"{self.name} belongs to another event loop of this thread; make one bus for each"
            )
        raise self._elsewhere()

    def check_thread(self) -> None:
        """Raise WrongLoop if the state of the bus may change while it is read: in another thread
        while the loop runs. Raise it in a forked child, too, where the bus does not exist.
        """
        self.check_process()
        if self.loop is not None and get_ident() != self.thread and self.is_running():
            raise self._elsewhere()

    def _elsewhere(self) -> WrongLoop:
        return WrongLoop(
            f"{self.name} belongs to the event loop of another thread. From here:"
            " asyncio.run_coroutine_threadsafe(bus.publish(event), loop) with that loop, and the"
            " same with a coroutine of your own that calls stats() or takes from a stream"
        )

    def check_process(self) -> None:
        """Raise WrongLoop in a forked child."""
        if self.is_forked:
            raise WrongLoop(
                f"{self.name} was started by the process that this one was forked from;"
                " make a bus of its own here"
            )

    def note_twin(self, error: BaseException) -> None:
        """If `error` is NameInUse and the other bus is in this process, set `is_here`."""
        if isinstance(error, NameInUse):
            error.is_here = any(
                (each.name, each.url) == (self.name, self.url)
                and each is not self
                and each.state not in (State.NEW, State.CLOSED)
                for each in _lives
            )

    def enter_body(self) -> None:
        """The current task is the body of `async with`: a failure cancels it."""
        self._body = asyncio.current_task()

    def leave_body(self) -> bool:
        """The body has ended. True if the cancelling by `fail` ended it; that is then undone."""
        body, self._body = self._body, None
        return (
            body is not None
            and self._cancels_before is not None
            and body.uncancel() <= self._cancels_before
        )

    @property
    def has_cancelled_body(self) -> bool:
        """True once a failure has cancelled the body."""
        return self._cancels_before is not None

    def fail(self, error: BaseException) -> None:
        """End the bus with `error`: wake `wait_closed` and cancel the body. Without effect while an
        earlier failure was not raised.
        """
        if self.has_unraised_failure:
            return
        self.failure = error
        self._is_raised = False
        self._over.set()
        if self.loop is not None:
            # Not at once: the body may only yield to the loop in a `publish`, and its next line may
            # be the `settle` that expects the failure.
            self.loop.call_soon(self._cancel_body, error, context=Context())

    def _cancel_body(self, error: BaseException) -> None:
        body = self._body
        is_told = self.failure is not error or self._is_raised
        if body is None or is_told or body in self.settling or body.done():
            return
        self._cancels_before = body.cancelling()
        body.cancel(f"{self.name} failed: {type(error).__name__}")

    def raise_failure(self, *, again: bool = False) -> None:
        """Raise the failure if it was not raised yet. With `again`, raise it in any case."""
        if self.failure is not None and (again or not self._is_raised):
            self._is_raised = True
            raise self.failure

    def pop_failure(self) -> None:
        """Raise the failure if it was not raised yet, and forget it: the caller is a test that may
        expect it, so the bus goes on.
        """
        if (failure := self.failure) is not None and not self._is_raised:
            self.failure = None
            if self.state is not State.CLOSED:
                self._over.clear()
            raise failure

    @property
    def has_unraised_failure(self) -> bool:
        """True if there is a failure that was not raised yet."""
        return self.failure is not None and not self._is_raised

    def end(self) -> None:
        """The bus is closed."""
        self.state = State.CLOSED
        self._over.set()

    async def close(self, shut: Callable[[], Coroutine[Any, Any, list[str]]]) -> list[str]:
        """Run `shut` once, in a task of its own, and return its result; again: the same result.

        Cancelling stops the waiting only. If Ctrl-C ends the loop, the loop cancels every task,
        perhaps this one before it has begun. The caller that waits then runs `shut` itself.
        """
        self.check_process()
        if self.state is State.NEW:
            self.end()
        if self._closing is None and self.state is State.CLOSED:
            return []
        self.check_loop()
        try:
            if self._closing is None and self.loop is not None:
                self.state = State.CLOSING
                name, work = f"aiobus {self.name} close", self._begin(shut)
                self._closing = self.loop.create_task(work, name=name, context=Context())
            return [] if self._closing is None else await asyncio.shield(self._closing)
        except BaseException as error:
            if self._is_cut_off:
                await shut()
            elif isinstance(error, KeyboardInterrupt) and self._closing is not None:
                await asyncio.wait([self._closing])
            raise

    async def _begin(self, shut: Callable[[], Coroutine[Any, Any, list[str]]]) -> list[str]:
        self._has_begun = True
        return await shut()

    @property
    def _is_cut_off(self) -> bool:
        """True if the task that closes was cancelled or never began, so it will not finish."""
        closing = self._closing
        if closing is None or not self._has_begun:
            return closing is None or closing.cancelling() > 0 or closing.done()
        is_over = closing.done() and not closing.cancelled()
        return is_over and isinstance(closing.exception(), KeyboardInterrupt)

    def cut_close(self) -> None:
        """A `close` that is under way goes on without waiting for anything more."""
        if self._closing is not None:
            self._closing.cancel()

    async def wait_closed(self) -> None:
        """Wait until the bus has closed. Raises the failure that ended it, if there is one."""
        self.check_loop()
        await self._over.wait()
        self.raise_failure(again=True)
        if self._closing is not None:
            await asyncio.shield(self._closing)

    def leave_process(self) -> None:
        """Called in a forked child: every further call of this copy raises WrongLoop."""
        self.is_forked = self.loop is not None
        if self.is_forked:
            self.state = State.CLOSED
            if get_ident() == self.thread:  # the loop of another thread does not run on here
                self.on_fork()


_lives: WeakSet[Lifecycle] = WeakSet()


def _leave_process() -> None:
    for life in _lives:
        life.leave_process()


os.register_at_fork(after_in_child=_leave_process)
