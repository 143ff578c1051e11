"""Which strand of a replay goes on next: the one whose entry is next on the tape.

Owns the order, and the first difference from it. Must not know what buses do. Nothing depends on
time: a strand that is ready before its entry waits at a gate, and a timer fires only if the next
entry needs one.
"""

import asyncio
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from types import FrameType
from typing import Any

from aiobus.confinement import current, is_users
from aiobus.errors import LeavesProcess
from aiobus.event import event_id
from aiobus.replay.evidence import Failure, Witness
from aiobus.replay.report import Difference
from aiobus.replay.tape import END, NAMES, Entry, Kind, microseconds
from aiobus.strand import (
    DoneCallback,
    Strand,
    StrandTask,
    entered,
    here,
    is_for_strand,
    is_package,
    is_strike,
    is_users_call,
    plain_task,
    running,
    wakes,
)
from aiobus.virtual_loop import VirtualLoop, frames, place

__all__ = ["Gated", "LeftBehind", "PlayerLoop", "Schedule"]

DELIVER, WAIT, INSIDE, GO_ON, OUTPUT, OUTCOME = map(int, list(Kind)[:6])
CLOCK, SUBSCRIBED, TIMER, RAISED, WOKE = map(int, list(Kind)[6:])
NOTHING: Entry = (END, 0)
LOOPS = ("asyncio.events", "asyncio.base_events")
"""Modules that run callbacks: what called them is not the code of a strand."""
OTHER_CLOCK = (
    "it looks as if a clock was read that is not recorded, such as time.monotonic(): read"
    " loop.time() or aiobus.clock.time()"
)
TURNS_TO_END = 10_000
"""Turns of the loop in which what is cancelled at the end has to end."""


class LeftBehind(Exception):
    """A task of the strategy ignores that it is cancelled at the end of a replay."""


class Exited(Exception):
    """Ends a task in place of SystemExit, which would end the loop, and with it the process."""


class Gated(Strand):
    """A strand of a replay. `held`: with what it goes on once its entry is next. `cancel`: it was
    cancelled meanwhile; whether that was before or after it went on, its entry tells.
    """

    __slots__ = ("about", "awaited", "cancel", "gate", "has_run", "held", "schedule")

    def __init__(
        self, schedule: "Schedule", coroutine: Any = None, *, about: Any, is_fresh: bool = False
    ) -> None:
        schedule.made += 1
        super().__init__(schedule.made, coroutine, is_fresh=is_fresh)
        self.schedule = schedule
        self.about = about
        """What it is of, for texts: a function or a coroutine, or a callback with type and id of
        the event that it handles.
        """
        self.awaited: Any = None
        """For what it waits, of its own."""
        self.has_run = False
        self.held: tuple[Any, ...] | None = None
        self.cancel: tuple[Any, ...] | None = None
        self.gate: asyncio.Future[None] | None = None
        if coroutine is not None or is_fresh:
            schedule.alive[self.number] = self

    def __str__(self) -> str:
        about, text = self.about, ""
        if isinstance(about, tuple):
            about, type, id = about
            text = f" with {type} {event_id(*id)}"
        about = _function(about)
        return f"{getattr(about, '__qualname__', about)}{text}"

    @property
    def begins(self) -> str:
        """Where its code begins."""
        about = _function(self.about[0] if isinstance(self.about, tuple) else self.about)
        code = getattr(about, "cr_code", getattr(about, "__code__", None))
        return "" if code is None else f"{self} ({code.co_filename}:{code.co_firstlineno})"

    def send(self, value: Any) -> Any:
        """As of any coroutine, once its entry is next."""
        return self._arrive((self.coroutine.send, value), None)

    def throw(self, *error: Any) -> Any:
        """As of any coroutine, once its entry is next."""
        wake = (self.coroutine.throw, *error)
        kind = error[0] if isinstance(error[0], type) else type(error[0])
        is_cancel = issubclass(kind, asyncio.CancelledError)
        return self._arrive(None, wake) if is_cancel else self._arrive(wake, None)

    def _arrive(self, wake: tuple[Any, ...] | None, cancel: tuple[Any, ...] | None) -> Any:
        if self.schedule.is_over or self.call or self.is_fresh:
            self.is_fresh = False
            return self._run(wake or cancel or ())
        if self.gate is not None:  # it was let through, or it was cancelled there
            self.gate = None
        elif wake is not None:
            self.held = wake
        self.cancel = cancel or self.cancel
        return self._go_on() if self.is_due() else self._wait()

    def is_due(self) -> bool:
        """True if the next entry is of this strand, and it is ready for that."""
        kind, number, *rest = self.schedule.head
        if number != self.number or self.schedule.is_stopped:
            return False
        if kind != GO_ON:
            return bool(self.call) and not (kind == OUTCOME and rest[0] == 0)
        return self.cancel is not None if rest[1] else bool(self.call) or self.held is not None

    def _wait(self) -> Any:
        self.gate = gate = self.schedule.loop.create_future()
        gate._asyncio_future_blocking = True
        return gate

    def _go_on(self) -> Any:
        _, _, time, is_cancelled = self.schedule.take()
        self.schedule.loop.reach(time)
        self.schedule.waiting.pop(self.awaited, None)
        held, self.held = self.held, None
        if is_cancelled:
            held, self.cancel = self.cancel, None
        assert held is not None
        return self._run(held)

    def _run(self, wake: tuple[Any, ...]) -> Any:
        schedule = self.schedule
        if not self.has_run:
            self.has_run = True
            schedule.ran += 1
        step, *arguments = wake
        outer, here.strand = here.strand, self
        if not self.call:
            schedule.witness.begin()
        try:
            awaited = step(*arguments)
        except BaseException as error:
            schedule.witness.end()
            schedule.ended(self, None if isinstance(error, StopIteration) else error)
            if isinstance(error, SystemExit):
                raise Exited from error
            raise
        finally:
            schedule.witness.end()
            here.strand = outer
        if self.call or schedule.is_over:
            return awaited
        if not schedule.is_stopped and schedule.expect(WAIT, self) is None:
            what = "waits after it has read the clock" if schedule.has_read else "waits"
            schedule.differ(f"{self} {what}", self)
        if schedule.is_stopped:
            return self._wait()
        if awaited is not None:
            self.awaited = awaited
            schedule.waiting[awaited] = self
            if self.cancel is not None and awaited.cancel():
                self.cancel = None
        return awaited


def _function(callback: Any) -> Any:
    while isinstance(callback, partial):
        callback = callback.func
    return callback


class _DoneAgain(DoneCallback):
    """A callback of a task that is done. It runs when its entry is next."""

    def __init__(self, schedule: "Schedule", function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._schedule, self._strand = schedule, Gated(schedule, about=function)

    def __call__(self, future: Any) -> None:
        schedule, strand = self._schedule, self._strand
        if schedule.is_over:
            self.function(future)
            return
        what = (strand, self.function, (future,))
        schedule.calls[strand.number] = asyncio.Handle(
            schedule.run_call, what, schedule.loop, copy_context()
        )


class _Timer(asyncio.TimerHandle):
    """A timer of a replay: its number, and that of the strand that has made it."""

    __slots__ = ("number", "owner")

    def __init__(
        self, number: int, owner: int, when: float, callback: Any, arguments: Any, *rest: Any
    ) -> None:
        super().__init__(when, callback, arguments, *rest)
        self.number = number
        self.owner = owner


class PlayerLoop(VirtualLoop):
    """A virtual loop that asks a schedule what happens next."""

    schedule: "Schedule | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.slow_callback_duration = math.inf  # in debug mode: its clock jumps within a callback
        self._timers: dict[int, _Timer] = {}
        self._signals: set[int] = set()
        self._made = self._turns = 0
        self._origin = 0.0

    def begin(self, now: float, wall: float) -> None:
        """Its time is `now`, and Unix seconds are `wall`."""
        self._origin = self._now = now
        self._start = wall - now

    def reach(self, time: int) -> None:
        """So many microseconds after it began, at least."""
        self._now = max(self._now, self._origin + time / 1e6)

    def wall_time(self) -> float:
        """What the clock told the strand that asks."""
        told = None if self.schedule is None else self.schedule.read_clock(0)
        return super().wall_time() if told is None else told

    def time(self) -> float:
        """What it told the strand that asks, which is not before what it tells other code."""
        if self.schedule is not None and running() is not None and not is_package(sys._getframe(1)):
            told = self.schedule.read_clock(1)
            self._now = max(self._now, told or 0.0)
            return self._now if told is None else told
        return self._now

    def call_soon(  # type: ignore[override]
        self, callback: Any, *arguments: Any, context: Any = None
    ) -> Any:
        """As of other loops. What is a strand runs when its entry is next."""
        if self.schedule is not None:
            if wakes(callback) and not arguments[0].cancelled():
                self.schedule.note_wake(arguments[0])
            elif is_for_strand(callback):
                return self._note_call(callback, arguments, context)
        return super().call_soon(callback, *arguments, context=context)

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *arguments: Any, context: Any = None
    ) -> Any:
        """As of other loops, which end asynchronous generators by it."""
        if self.schedule is not None and running() is not None:
            return self._note_call(callback, arguments, context)
        return super().call_soon_threadsafe(callback, *arguments, context=context)

    def add_signal_handler(  # type: ignore[override]
        self, sig: int, callback: Any, *arguments: Any
    ) -> None:
        """As of other loops, but no signal comes: what one has led to comes from outside."""
        self._signals.add(sig)

    def remove_signal_handler(self, sig: int) -> bool:
        """As of other loops."""
        is_there = sig in self._signals
        self._signals.discard(sig)
        return is_there

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *arguments: Any, context: Any = None
    ) -> Any:
        """As of other loops."""
        is_users = running() is not None and is_users_call()
        if self.schedule is not None and not is_package(sys._getframe(1)):
            self.schedule.set_timer(when, 1)
        return self._note(when, callback, arguments, context, is_users=is_users)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *arguments: Any, context: Any = None
    ) -> Any:
        """As of other loops."""
        is_users = running() is not None and is_users_call()
        if self.schedule is not None and not is_package(sys._getframe(1)):
            self.schedule.set_timer(delay, 0)
        return self._note(self._now + delay, callback, arguments, context, is_users=is_users)

    def _note(
        self, when: float, callback: Any, arguments: Any, context: Any, *, is_users: bool
    ) -> asyncio.Handle:
        self._check_closed()
        is_strand = is_users or (is_strike(callback) and running() is not None)
        if is_strand and self.schedule is not None and not self.schedule.is_over:
            return self._note_call(callback, arguments, context, when)
        owner = 0 if here.strand is None else here.strand.number
        self._made += 1
        timer = _Timer(self._made, owner, when, callback, arguments, self, context)
        self._timers[timer.number] = timer
        return timer

    def _note_call(
        self, callback: Any, arguments: Any, context: Any, when: float | None = None
    ) -> asyncio.Handle:
        schedule = self.schedule
        assert schedule is not None
        strand = Gated(schedule, about=callback)
        what = (strand, callback, arguments)
        if when is None:
            handle = asyncio.Handle(schedule.run_call, what, self, context)
            if schedule.is_over:
                self.run_soon(handle)
                return handle
        else:
            handle = _Timer(-strand.number, 0, when, schedule.run_call, what, self, context)
        schedule.calls[strand.number] = handle
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if isinstance(handle, _Timer):
            self._timers.pop(handle.number, None)
            if self.schedule is not None:
                self.schedule.calls.pop(-handle.number, None)

    def fire(self, owner: int) -> bool:
        """Fire a timer: of those that the strand `owner` has made, else of all, the one that is due
        first. False if there is none.
        """
        own = [each for each in self._timers.values() if each.owner == owner]
        due = min(
            own or self._timers.values(),
            default=None,
            key=lambda each: (each.when(), each.number),
        )
        if due is None:
            return False
        del self._timers[due.number]
        if due.when() < math.inf:
            self._now = max(self._now, due.when())
        self.run_soon(due)
        return True

    def let_go(self, handle: asyncio.Handle) -> None:
        """Run what was held: in the next turn, or by its timer."""
        if isinstance(handle, _Timer):
            self._timers[handle.number] = handle
        else:
            self.run_soon(handle)

    def run_soon(self, handle: asyncio.Handle) -> None:
        """Run it in the next turn."""
        self._ready.append(handle)

    _ready: "deque[asyncio.Handle]"
    """Of BaseEventLoop: what runs in the next turn."""

    def select(self, timeout: float | None) -> list[Any]:
        """Bring about the next entry if nothing is ready."""
        schedule = self.schedule
        if schedule is None:
            return super().select(timeout)
        if schedule.is_over:
            self._turns += 1
            if self._turns > TURNS_TO_END:
                raise LeftBehind
        if timeout == 0:
            return []
        if not schedule.is_over and (confinement := current()) is not None:
            try:
                confinement.raise_ending()
            except LeavesProcess as refusal:
                schedule.fail(refusal)
                return []
            except BaseException:
                schedule.is_over = True
                raise
        if (schedule.is_over or not schedule.go_on()) and not self.fire(0):
            return super().select(timeout)
        return []


class Schedule:
    """The strands of one replay, and the tape that they follow. `tape` has its entries, and
    `witness` looks on while code runs.
    """

    def __init__(self, loop: PlayerLoop, tape: Iterator[Entry], witness: Witness) -> None:
        self.loop = loop
        self.witness = witness
        self._tape = tape
        self._next: deque[Entry] = deque()
        self.position = 0
        """How many entries have come to pass."""
        self.made = self.ran = 0
        """Strands that were made, and those that have run."""
        self.alive: dict[int, Gated] = {}
        self.calls: dict[int, asyncio.Handle] = {}
        """Plain callbacks that wait for their entries, by strand."""
        self.waiting: dict[Any, Gated] = {}
        """The strands that wait for a future of their own, by that."""
        self.difference: Difference | None = None
        self.problem = ""
        """Why nothing can be said of what follows."""
        self.refusal: BaseException | None = None
        """A call that leaves the process."""
        self.has_read = False
        """The strand that runs has read the clock where it had not. It may go on until its next
        call or wait, since the event that it publishes says more.
        """
        self.is_at_end = False
        """The difference is behind the end of the tape."""
        self.is_over = False
        """All that is held is let go, so that it comes to its end."""
        self.done: asyncio.Future[None] = loop.create_future()

    # The tape.

    @property
    def is_stopped(self) -> bool:
        """True from the first difference on."""
        return self.difference is not None or bool(self.problem) or self.refusal is not None

    @property
    def head(self) -> Entry:
        """The next entry."""
        if not self._next and not self._load():
            return NOTHING
        return self._next[0]

    def _load(self) -> bool:
        entry = next(self._tape, None)
        if entry is not None:
            self._next.append(entry)
        return entry is not None

    def ahead(self) -> Iterator[Entry]:
        """The next entry, and those behind it."""
        place = 0
        while place < len(self._next) or self._load():
            yield self._next[place]
            place += 1

    def take(self) -> Entry:
        """The next entry has come to pass."""
        self.position += 1
        return self._next.popleft()

    def is_head(self, kind: int, strand: Strand) -> bool:
        """True if the next entry is of this kind and strand."""
        is_astray = self.is_stopped or self.has_read
        return not is_astray and self.head[:2] == (kind, strand.number)

    def expect(self, kind: int, strand: Strand) -> Entry | None:
        """Take the next entry if it is of this kind and strand."""
        return self.take() if self.is_head(kind, strand) else None

    # The first difference.

    def differ(self, text: str, strand: Gated | None, **more: Any) -> None:
        """The first difference is here."""
        confinement = current()
        if confinement is not None and confinement.refusal is not None:
            self.fail(confinement.refusal)  # the code has gone on without what was refused
        if not self.is_stopped and not self.is_over:
            if self.has_read and "read the clock" not in text:
                text = f"{text}, after it has read the clock where it had not"
            more.setdefault("where", self.where(strand))
            more.setdefault("recorded", self.said())
            self.difference = Difference(self.position, text, **more)
            self.is_at_end = self.head[0] == END
            self._finish()

    def fail(self, problem: str | BaseException) -> None:
        """Nothing can be said of what follows."""
        if not self.is_stopped and not self.is_over:
            if isinstance(problem, str):
                self.problem = problem
            else:
                self.refusal = problem
            self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    async def stop(self, text: str, strand: Gated, **more: Any) -> None:
        """The first difference is here, in a bus call, which never returns: an exception could be
        caught.
        """
        self.differ(text, strand, **more)
        await self.loop.create_future()

    def where(self, strand: Gated | None) -> str:
        """Function, file and line in which a strand is, or waits."""
        if strand is None:
            return ""
        if here.strand is strand:
            frame: FrameType | None = sys._getframe()
            while frame is not None and frame.f_globals["__name__"] not in LOOPS:
                if is_users(frame):
                    return place(frame)
                frame = frame.f_back
            return strand.begins
        found = list(frames(strand))
        users = [frame for frame in found if is_users(frame)]
        return place((users or found)[-1]) if found else strand.begins

    def said(self) -> str:
        """The next entry, for people."""
        kind, number, *rest = self.head
        if kind == END:
            return "the tape ends here"
        words = WORDS[kind]
        if kind == RAISED:
            words = f"raises {Failure(*rest[0])}"
        elif kind == OUTCOME and rest[0] == 0:
            words = "is cancelled by code that is not attached"
        elif kind == OUTCOME and rest[1][0] == "refused":
            words = "publishes what cannot be encoded"
        elif kind == OUTCOME and rest[1][0] == "asked":
            words = f"calls {NAMES[rest[0] // 2]} {rest[1][1]}"
        strand = self.alive.get(number, "a task, timer or callback that has not begun now")
        return f"{strand} {words}"

    def ended(self, strand: Gated, error: BaseException | None = None) -> None:
        """A strand has come to its end, or has raised `error`."""
        if not self.is_over and not self.is_stopped:
            self._compare_end(strand, None if error is None else Failure.of(error))
        self.alive.pop(strand.number, None)

    def _compare_end(self, strand: Gated, now: Failure | None) -> None:
        entry = self.expect(RAISED, strand)
        then = None if entry is None else Failure(*entry[2])
        behind = " after it has read the clock" if self.has_read else ""
        if now is not None and then is None:
            where = now.place or strand.begins
            self.differ(f"{strand} raises {now}{behind}, and did not then", strand, where=where)
        elif now is not None and then is not None and not now.is_like(then):
            self.differ(
                f"{strand} raises another exception than it did",
                strand,
                recorded=str(then),
                replayed=str(now),
                where=now.place or strand.begins,
            )
        elif now is None and then is not None:
            self.differ(f"{strand} ends, and raised an exception then", strand, recorded=str(then))
        elif behind:
            self.differ(f"{strand} ends{behind}", strand)
        elif self.head[1] == strand.number:
            self.differ(f"{strand} ends, and has left something out", strand)

    # The loop.

    def go_on(self) -> bool:
        """Nothing is ready: bring about the next entry. False if there is none to bring about."""
        if self.is_stopped:
            return False
        kind, number, *rest = self.head
        if kind == END:
            self.at_end()
            self._finish()
            return True
        strand = self.alive.get(number)
        if kind == OUTCOME and rest[0] == 0 and strand is not None and self._cut(strand):
            return True
        if kind == DELIVER and self.deliver(number, *rest):
            return True
        if kind == GO_ON and number in self.calls:
            self.loop.run_soon(self.calls.pop(number))
            return True
        if strand is not None and strand.gate is not None and strand.is_due():
            if not strand.gate.done():
                strand.gate.set_result(None)
            return True
        if self.is_stopped or self.loop.fire(number):
            return True
        if strand is None:
            self.differ(f"there are {self.made} strands now, and the recording has more", None)
        elif kind == GO_ON and rest[1] and not isinstance(strand.about, tuple):
            # What code that is not attached cancels is on the tape as that.
            self.differ(f"{strand} is not cancelled now, and waits", strand)
        else:
            # If it is fed by code that was not attached, that is no difference of its own.
            place = self.where(strand)
            self.fail(
                f"{strand} waits at {place} for something that does not come: it was brought about"
                " by code that was not attached, or is not any more"
            )
        return True

    def _cut(self, strand: Gated) -> bool:
        """Cancel the task of a strand, as code that is not attached did. False if there is none."""
        for task in asyncio.all_tasks(self.loop):
            if task.get_coro() is strand:
                self.take()
                with entered(strand):
                    return task.cancel()
        return False

    def at_end(self) -> None:
        """The tape has come to its end."""

    def deliver(self, strand: int, subscription: int, time: int, event: Any) -> bool:
        """Hand over an event. False if that is not possible now."""
        raise NotImplementedError

    def make_task(self, loop: Any, coroutine: Any, **options: Any) -> Any:
        """The task factory of the loop."""
        if running() is None:
            return plain_task(loop, coroutine, options)
        options.pop("eager_start", None)
        strand = Gated(self, coroutine, about=coroutine)
        return StrandTask(strand, partial(_DoneAgain, self), loop=loop, **options)

    def first_task(self, coroutine: Any, about: Any) -> "asyncio.Task[Any]":
        """The task of what is attached."""
        strand = Gated(self, coroutine, about=about)
        return StrandTask(strand, partial(_DoneAgain, self), loop=self.loop)

    def run_call(self, strand: Gated, callback: Any, arguments: Any) -> None:
        """Run a plain callback."""
        if self.is_over:
            callback(*arguments)
            return
        entry = self.take()
        self.loop.reach(entry[2])
        self.ran += 1
        with self.running(strand):
            callback(*arguments)
        self.ended(strand)

    @contextmanager
    def running(self, strand: Gated) -> Iterator[None]:
        """Let `strand` run the body, which does not wait. What it raises, ends the strand."""
        try:
            with entered(strand):
                self.witness.begin()
                try:
                    yield
                finally:
                    self.witness.end()
        except BaseException as error:
            self.ended(strand, error)
            if isinstance(error, SystemExit):
                raise Exited from error
            raise

    def set_timer(self, when: float, is_at: int) -> None:
        """The strand that runs sets a timer: it has to be the same one. `when` is a delay, or with
        `is_at` a time. Other code may set any.
        """
        strand = running()
        if not isinstance(strand, Gated) or self.is_over or self.is_stopped:
            return
        now, base = microseconds(when), microseconds(self.loop._now)
        if not self.is_head(TIMER, strand):
            (said,) = _timers(base, (now, is_at))
            self.differ(f"{strand} sets a timer of {said}", strand)
        elif self.head[2:] != (now, is_at):
            then, was_at = self.head[2:]
            recorded, replayed = _timers(base, (then, was_at), (now, is_at))
            # Parameters differ by a round number.
            is_read = (now - then) % 100 not in (0, 1, 99) or was_at != is_at
            self.differ(
                f"{strand} sets another timer, such as that of a sleep or a timeout",
                strand,
                recorded=recorded,
                replayed=replayed,
                suspects=(OTHER_CLOCK,) if is_read else (),
            )
        else:
            self.take()

    def timers(self) -> dict[int, Gated]:
        """The plain callbacks that timers of the code are to run, by strand."""
        set_ = [each for each in self.calls.values() if isinstance(each, asyncio.TimerHandle)]
        strands: list[Gated] = [each._args[0] for each in set_]
        return {each.number: each for each in strands if not is_strike(each.about)}

    def note_wake(self, future: Any) -> None:
        """The strand that runs has completed a future: if another strand waits for it, it has to be
        the one that was woken here.
        """
        strand, woken = running(), self.waiting.get(future)
        if woken is None or not isinstance(strand, Gated) or self.is_over or self.is_stopped:
            return
        if self.is_head(WOKE, strand) and self.head[2] == woken.number:
            self.take()
        else:
            self.differ(f"{strand} wakes {woken}, which waits", strand)

    def let_go(self) -> None:
        """The replay is over: hold nothing any more, and run the calls that were held."""
        self.is_over = True
        for handle in self.calls.values():
            self.loop.let_go(handle)
        self.calls.clear()

    def read_clock(self, which: int) -> float | None:
        """What a clock told the strand that runs; None for other code."""
        strand = running()
        if not isinstance(strand, Gated) or self.is_over or self.is_stopped:
            return None
        if not self.is_head(CLOCK, strand) or self.head[2] != which:
            self.has_read = True
            return None
        return float(self.take()[3])


def _timers(base: int, *timers: tuple[int, int]) -> list[str]:
    """What is said of timers of so many microseconds from now, `base`, or at such a time. Code that
    sets one for a time has read the clock a moment before now (a timeout reads it twice): of those
    as many digits are said as tell one from the other.
    """
    seconds = [((time - base) if is_at else time) / 1e6 for time, is_at in timers]

    def said(digits: int) -> list[str]:
        return [
            f"about {float(f'{each:.{digits}g}'):.12g} s" if is_at else f"{each:.12g} s"
            for each, (_, is_at) in zip(seconds, timers, strict=True)
        ]

    is_enough = (digits for digits in range(3, 12) if len(set(said(digits))) == len(timers))
    return said(next(is_enough, 12))


WORDS = {
    DELIVER: "is given an event",
    WAIT: "waits here",
    INSIDE: "waits in a bus call",
    GO_ON: "goes on",
    OUTPUT: "publishes",
    OUTCOME: "returns from a bus call",
    CLOCK: "reads the clock, makes an Event, or sets a timeout",
    SUBSCRIBED: "subscribes",
    TIMER: "sets a timer, such as that of a sleep",
    WOKE: "wakes another task, or another call of a handler",
}
