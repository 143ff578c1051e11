"""A strand: a piece of watched code that runs from one wait to the next. The attached coroutine is
one, and each task, handler call, plain timer callback, done callback and strike of asyncio.timeout
that comes of it.

Owns which strand runs now, and its number. Must not know what is written down, or enforced, when a
strand goes on: a `Tape` does that.
"""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, FrameType, FunctionType, MethodType
from typing import Any, Protocol, TypeVar

from aiobus.event import Event
from aiobus.options import SubscriptionOptions
from aiobus.query import Query
from aiobus.replies import Request
from aiobus.stream import EventStream
from aiobus.subscription import Subscription

__all__ = [
    "Called", "DoneCallback", "Strand", "StrandTask", "Tape", "awaited", "entered", "here",
    "is_for_strand", "is_package", "is_strike", "is_users_call", "plain_task", "running",
]  # fmt: skip

E = TypeVar("E", bound=Event[Any])
T = TypeVar("T")


class Here(threading.local):
    """The strand that runs now in this thread, within a bus call or not."""

    strand: "Strand | None" = None
    is_cancelling = False
    """A task is cancelled, which may cancel those that it waits for."""


here = Here()


async def awaited(result: Awaitable[object]) -> object:
    """A coroutine of what a callback has returned, which may be any awaitable."""
    return await result


class Strand(Coroutine[Any, Any, Any]):
    """A coroutine whose steps a tape is told. `call`: the bus call that it is in, as the tape names
    it, and 0 for none. Within a bus call its waits are those of the bus, and not its own.
    """

    __slots__ = ("__weakref__", "call", "coroutine", "is_fresh", "number")

    def __init__(self, number: int, coroutine: Any = None, *, is_fresh: bool = False) -> None:
        self.number = number
        self.coroutine = coroutine
        self.call = 0
        self.is_fresh = is_fresh
        """Its first step is on the tape already, as a delivery."""

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # an iterator that has `send` and `throw` as well

    def __iter__(self) -> "Strand":
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def close(self) -> None:
        """As of any coroutine."""
        if self.coroutine is not None:
            self.coroutine.close()

    def cut(self) -> None:
        """Code that is not watched has cancelled its task."""

    # What tracebacks, `repr` of tasks and `inspect` read of a coroutine.

    @property
    def cr_running(self) -> bool:
        """True while its code runs."""
        return bool(getattr(self.coroutine, "cr_running", False))

    @property
    def cr_suspended(self) -> bool:
        """True while it waits."""
        return bool(getattr(self.coroutine, "cr_suspended", False))

    @property
    def cr_origin(self) -> Any:
        """Where it was made, if `sys` keeps track of that."""
        return getattr(self.coroutine, "cr_origin", None)

    @property
    def __name__(self) -> str:
        """Its name."""
        return str(getattr(self.coroutine, "__qualname__", type(self).__name__))

    @property
    def cr_code(self) -> Any:
        """Its code."""
        return getattr(self.coroutine, "cr_code", None)

    @property
    def cr_frame(self) -> Any:
        """Where it waits."""
        return getattr(self.coroutine, "cr_frame", None)

    @property
    def cr_await(self) -> Any:
        """For what it waits."""
        return getattr(self.coroutine, "cr_await", None)


def running() -> Strand | None:
    """The strand whose own code runs now. None in code that is not watched, and in a bus call."""
    strand = here.strand
    return None if strand is None or strand.call else strand


@contextmanager
def entered(strand: Strand | None) -> Iterator[None]:
    """Let `strand` run the body, which does not wait."""
    outer, here.strand = here.strand, strand
    try:
        yield
    finally:
        here.strand = outer


@contextmanager
def unwatched() -> Iterator[None]:
    """What the body does is the bus's, and not that of the code that has called it."""
    outer, here.strand = here.strand, None
    try:
        yield
    finally:
        here.strand = outer


class StrandTask(asyncio.Task[Any]):
    """A task of watched code. Its hash is the number of its strand, so that sets of tasks iterate
    in the same order when they are recorded and when they are replayed. What is called when it is
    done, also by a TaskGroup, is a strand too: whether that comes before or after another strand
    goes on decides which task is cancelled where.
    """

    def __init__(
        self, strand: Strand, called: Callable[..., "DoneCallback"], **options: Any
    ) -> None:
        self._number = strand.number
        self._called = called
        super().__init__(strand, **options)

    def __hash__(self) -> int:
        return self._number

    def add_done_callback(self, function: Any, /, *, context: Any = None) -> None:
        """As of other tasks."""
        # What awaits this task is a strand already, or belongs to the bus.
        if running() is not None:
            function = self._called(function)
        super().add_done_callback(function, context=context)

    def cancel(self, msg: Any = None) -> bool:
        """As of other tasks. Its strand is told if code that is not watched does that."""
        strand: Any = self.get_coro()
        is_inner = here.is_cancelling or running() is not None
        if is_inner or is_package(frame := sys._getframe(1)) or is_timeout(frame, self):
            # What follows when a future is cancelled for which the bus waits is none of the code's.
            with entered(strand if strand.call else here.strand):
                return super().cancel(msg)
        here.is_cancelling = True
        try:
            with entered(strand):
                is_cancelled = super().cancel(msg)
        finally:
            here.is_cancelling = False
        if is_cancelled:
            strand.cut()
        return is_cancelled


class DoneCallback:
    """Stands for `function`, and is equal to it: `remove_done_callback` compares."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __eq__(self, other: object) -> bool:
        return self is other or bool(self.function == other)

    def __hash__(self) -> int:
        return hash(self.function)


class Called:
    """Stands for the callback of a subscription, and is equal to it: `unsubscribe` compares."""

    def __init__(self, number: int, callback: Callable[..., Any]) -> None:
        self.number = number
        self.callback = callback
        self.__qualname__ = str(getattr(callback, "__qualname__", type(callback).__qualname__))

    def __eq__(self, other: object) -> bool:
        return bool(self.callback == other)

    def __hash__(self) -> int:
        return hash(self.callback)


def is_users_call(depth: int = 2) -> bool:
    """True if the caller of the calling function is neither asyncio nor this package."""
    name = sys._getframe(depth).f_globals.get("__name__", "")
    return not name.startswith(("asyncio.", "aiobus."))


def is_package(frame: FrameType) -> bool:
    """True if the code of this frame is of this package."""
    return str(frame.f_globals.get("__name__", "")).startswith("aiobus.")


def is_timeout(frame: FrameType, task: Any) -> bool:
    """True if the code of this frame is that of an asyncio.timeout in this task. That of watched
    code strikes as a strand, so this one is the bus's.
    """
    name, timeout = frame.f_globals.get("__name__"), frame.f_locals.get("self")
    return name == "asyncio.timeouts" and getattr(timeout, "_task", None) is task


def is_strike(callback: Any) -> bool:
    """True for the callback by which asyncio.timeout cancels its task. It is a strand if watched
    code has set it: which ones have struck before the task goes on, and whether a shielded task had
    ended by then, decides what the code is told.
    """
    return type(callback) is MethodType and callback.__module__ == "asyncio.timeouts"


def wakes(callback: Any) -> bool:
    """True for a callback by which a future that watched code has completed wakes a task. To be
    asked by `call_soon`.
    """
    strand = here.strand
    if strand is None or strand.call or type(callback) is not BuiltinFunctionType:
        return False
    if not isinstance(callback.__self__, asyncio.Task):
        return False
    # What `asyncio.wait` and its like wake follows from the tasks that end, which are on the tape,
    # unless a timer of theirs came first, which is not.
    return sys._getframe(2).f_globals.get("__name__") not in _IMPLIED


_IMPLIED = ("asyncio.tasks", "asyncio.taskgroups", "asyncio.timeouts")
_PLAIN = (FunctionType, MethodType, partial)
_STEP = "TaskStepMethWrapper"
"""The type, written in C, of what `call_soon` is given for a step of a task."""


def is_for_strand(callback: Any) -> bool:
    """True for a callback that watched code hands to `call_soon`, by itself or as it completes a
    future that has one. False for the steps of tasks, and for what is a strand already.
    """
    strand = here.strand  # as `running`: the loop asks this of each of its callbacks
    if strand is None or strand.call:
        return False
    kind = type(callback)
    if kind in _PLAIN:
        return not _is_packages(callback)
    if kind is BuiltinFunctionType:  # such as what wakes a task
        return not isinstance(callback.__self__, asyncio.Task) and is_users_call(3)
    return kind.__name__ != _STEP and not isinstance(callback, DoneCallback)


def _is_packages(callback: Any) -> bool:
    """True for a function of this package, such as what sends to other buses: a replay has none."""
    while type(callback) is partial:
        callback = callback.func
    return str(getattr(callback, "__module__", "")).startswith("aiobus.")


def plain_task(loop: Any, coroutine: Any, options: dict[str, Any]) -> "asyncio.Task[Any]":
    """The task that `loop` makes of a coroutine if it has no task factory."""
    make = getattr(loop, "plain_task", None)
    if make is not None:
        return make(coroutine, options)  # type: ignore[no-any-return]
    return asyncio.Task(coroutine, loop=loop, **options)


class Tape(Protocol):
    """What a bus asks if watched code calls it: a recorder, or a player."""

    async def publish(self, strand: Strand, event: E) -> E:
        """As the bus does."""
        ...

    def publish_nowait(self, strand: Strand, event: E) -> E:
        """As the bus does."""
        ...

    async def request(
        self,
        strand: Strand,
        event: Event[Any],
        replies: Query,
        timeout: float | None,
        to: str | None,
    ) -> Event[Any]:
        """As the bus does."""
        ...

    async def reply(self, strand: Strand, request: Request, event: E) -> E:
        """As the bus does."""
        ...

    async def subscribe(
        self,
        strand: Strand,
        callback: Callable[[Event[Any]], object],
        options: SubscriptionOptions,
        serve: Callable[[Any, SubscriptionOptions], Awaitable[Subscription]],
    ) -> Subscription:
        """As the bus does."""
        ...

    def stream(
        self,
        options: SubscriptionOptions,
        enter: Callable[[SubscriptionOptions], Awaitable[Subscription]],
    ) -> EventStream[Any]:
        """As the bus does."""
        ...

    async def wait(
        self,
        strand: Strand,
        call: str,
        again: Callable[[], Awaitable[T]],
        timeout: float | None = None,
        about: str = "",
    ) -> T:
        """Any other call that waits. `about`: its arguments beside `timeout`."""
        ...

    def read(self, strand: Strand, call: str, again: Callable[[], T]) -> T:
        """Any other call that does not wait, and returns plain values."""
        ...
