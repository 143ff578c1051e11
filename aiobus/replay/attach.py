"""The live side of a tape: what attached code was given, when it went on, and what it published.

Owns what is written down. Must not know where it is stored. It works on any event loop, and changes
nothing that the code could notice, except the hash of its tasks.
"""

import asyncio
import inspect
import platform
import random
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import fields
from functools import partial
from types import CoroutineType, FunctionType
from typing import Any, Self, TypeVar
from weakref import WeakValueDictionary

from aiobus import clock
from aiobus.bus import AsyncEventBus, parts_of, watch
from aiobus.codec import encode
from aiobus.dispatcher import Callback
from aiobus.errors import BusError, EncodeError
from aiobus.event import Event, event_id
from aiobus.lifecycle import State
from aiobus.options import SubscriptionOptions
from aiobus.payload import Fit
from aiobus.query import RESERVED, Query
from aiobus.replay.evidence import Failure
from aiobus.replay.tape import (
    CALLS,
    VERSION,
    Chunk,
    Kind,
    Row,
    Source,
    is_again,
    microseconds,
    told,
)
from aiobus.replies import Request
from aiobus.strand import (
    Called,
    DoneCallback,
    Strand,
    StrandTask,
    awaited,
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
from aiobus.stream import EventStream
from aiobus.subscription import Subscription

__all__ = [
    "Recorder", "Strategy", "add_open", "asked", "check_strategy", "open_of", "options_of",
    "origin_of", "ran_before", "run_strategy",
]  # fmt: skip

E = TypeVar("E", bound=Event[Any])
T = TypeVar("T")

Strategy = Callable[[AsyncEventBus], Awaitable[object]]
"""What is attached: a coroutine function of a bus."""

DELIVER, WAIT, INSIDE, GO_ON, OUTPUT, OUTCOME = map(int, list(Kind)[:6])
CLOCK, SUBSCRIBED, TIMER, RAISED, WOKE = map(int, list(Kind)[6:])
PUBLISH, REQUEST, SUBSCRIBE = CALLS["publish"], CALLS["request"], CALLS["subscribe"]
STEP, ENTRY, REPLY = CALLS["stream step"], CALLS["stream entry"], CALLS["reply"]
SETTING_UP = {PUBLISH, REPLY, SUBSCRIBE, ENTRY}
"""Calls in which an attached coroutine waits while it is not live yet."""
NOT_TOLD = ("query", "where", "name", "misfit", "payload", "topics", "fit")
"""The first two are told by themselves. What becomes of the data is up to the code."""
OPTIONS = [each.name for each in fields(SubscriptionOptions) if each.name not in NOT_TOLD]
MOST_ENDED = 1_024
"""Subscriptions of which some have ended, such as those of `wait_for`."""
MOST_TIMERS = 1_024
"""Timers of which some were cancelled."""
MOST_TYPES = 4_096
"""Types that are remembered."""
MOST_BYTES = 2**40
"""Of a row; the bus has seen to the true limit."""
Cancelled = asyncio.CancelledError


class _Recorded(Strand):
    """A strand of a live bus."""

    __slots__ = ("_before", "_event", "awaited", "is_away", "is_numbered", "recorder")

    def __init__(
        self, recorder: "Recorder", coroutine: Any = None, *, is_fresh: bool = False
    ) -> None:
        # What `Strand` does, since each call of a handler makes one.
        self.number = recorder.strands = recorder.strands + 1
        self.coroutine = coroutine
        self.call = 0
        self.is_fresh = is_fresh
        self.recorder = recorder
        self.awaited: Any = None
        """For what it waits. The first step of a handler is taken as it is called."""
        self._event: Event[Any] | None = None
        """What the present bus call publishes, until it has its number."""
        self._before: tuple[str, int, int] | None = None
        """Its id before, if it was published before."""
        self.is_numbered = self.is_away = False
        """The present bus call has published; it has waited."""

    def send(self, value: Any) -> Any:
        """As of any coroutine."""
        if self.is_fresh:
            self.is_fresh = False
            return self.awaited
        return self._step(self.coroutine.send, value)

    def __next__(self) -> Any:  # as `send(None)`, which it calls for each step
        if self.is_fresh:
            self.is_fresh = False
            return self.awaited
        return self._step(self.coroutine.send, None)

    def throw(self, *error: Any) -> Any:
        """As of any coroutine."""
        return self._step(self.coroutine.throw, *error)

    def _step(self, step: Callable[..., Any], *arguments: Any) -> Any:
        recorder = self.recorder
        if not self.call:
            recorder.log += (GO_ON, self.number, recorder.now(), _is_cancelled(arguments[0]))
            if self.awaited is not None:
                recorder.waiting.pop(self.awaited, None)
        outer, here.strand = here.strand, self
        try:
            awaited = step(*arguments)
        except StopIteration:
            raise
        except BaseException as error:
            recorder.note_error(self, error)
            raise
        finally:
            here.strand = outer
        self.note_wait(awaited)
        return awaited

    def note_wait(self, awaited: Any) -> None:
        """It has stopped to wait."""
        recorder = self.recorder
        if not self.call:
            recorder.log += (WAIT, self.number)
            self.awaited = awaited
            if awaited is not None and not recorder.is_over:
                recorder.waiting[awaited] = self.number
            return
        self._note_output()
        if not self.is_away:
            self.is_away = True
            recorder.log += (INSIDE, self.number, self.call * 2 + self.is_numbered)

    def _note_output(self) -> None:
        """Note the event of the present call once it has its number. Nothing else is numbered
        before this, because it is called at the end of each step.
        """
        event = self._event
        if event is None or not event.seq:
            return
        if self._before is not None and self._before == (event.source, event.epoch, event.seq):
            return
        self._event, self.is_numbered = None, True
        self.recorder.note_output(self, event)

    def cut(self) -> None:
        """Code that is not watched has cancelled its task."""
        self.recorder.note_cut(self)

    def enter(self, call: int, event: Event[Any] | None = None) -> None:
        """A bus call begins."""
        self.call = call
        self.is_numbered = self.is_away = False
        self._event = event if isinstance(event, Event) else None
        if self._event is not None:
            is_new = not self._event.seq
            self._before = None if is_new else (event.source, event.epoch, event.seq)  # type: ignore[union-attr]

    def leave(self, error: BaseException | None = None) -> None:
        """It ends."""
        self._note_output()
        self.call, self._event = 0, None
        if self.is_away:
            recorder = self.recorder
            recorder.log += (GO_ON, self.number, recorder.now(), isinstance(error, Cancelled))


class _First(_Recorded):
    """The attached coroutine. `live` is done once it has ended or waits for more than set-up."""

    __slots__ = ("live",)

    def __init__(self, recorder: "Recorder", coroutine: Any) -> None:
        super().__init__(recorder, coroutine)
        self.live = asyncio.get_running_loop().create_future()

    def _step(self, step: Callable[..., Any], *arguments: Any) -> Any:
        is_live = True
        try:
            awaited = super()._step(step, *arguments)
            is_live = self.call not in SETTING_UP
            return awaited
        finally:
            if is_live and not self.live.done():
                self.live.set_result(None)


def _is_cancelled(error: Any) -> bool:
    return isinstance(error, Cancelled) or error is Cancelled


class _Done(DoneCallback):
    """A callback of a watched task that is done."""

    def __init__(self, recorder: "Recorder", function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._recorder, self._strand = recorder, _Recorded(recorder)

    def __call__(self, future: Any) -> None:
        self._recorder.run_call(self._strand, self.function, (future,))


class _Callback(Called):
    """A callback of watched code. Each call is a delivery, and a strand. The tape needs the data as
    it came, so it is converted here.
    """

    def __init__(
        self, recorder: "Recorder", number: int, callback: Callable[..., Any], fit: Fit | None
    ) -> None:
        super().__init__(number, callback)
        self._recorder = recorder
        self._call_with = callback if fit is None else fit.before(callback)

    def __call__(self, event: Event[Any]) -> Any:
        recorder = self._recorder
        if recorder.is_over:
            return self._call_with(event)
        strand = _Recorded(recorder, is_fresh=True)
        recorder.deliver(strand, self.number, event)
        outer, here.strand = here.strand, strand
        result = None
        try:
            result = self._call_with(event)
            if type(result) is not CoroutineType:
                if not inspect.isawaitable(result):
                    return result
                result = awaited(result)
            # Its first step at once: most handlers need no other, and then nothing is awaited.
            strand.coroutine = result
            strand.awaited = result.send(None)
        except StopIteration as error:
            if result is not None:
                return None
            recorder.note_error(strand, error)  # a plain callback has raised it
            raise
        except BaseException as error:
            recorder.note_error(strand, error)
            raise
        finally:
            here.strand = outer
        strand.note_wait(strand.awaited)
        return strand


class _Taken(EventStream[Any]):
    """A stream of watched code. Code that is not watched may step it: that is not written down."""

    def __init__(
        self,
        recorder: "Recorder",
        open: Callable[[], Awaitable[Subscription]],
        fit: Fit | None,
    ) -> None:
        super().__init__(open)
        self._recorder = recorder
        self._number = -1
        self._later_fit = fit

    async def __aenter__(self) -> Self:
        recorder, strand = self._recorder, running()
        if not isinstance(strand, _Recorded) or recorder.is_over:
            await super().__aenter__()
            return self
        self._number = recorder.note_subscription(strand)
        with _Call(recorder, strand, ENTRY):
            await super().__aenter__()
        recorder.note_made(strand, ENTRY, self._number, self.subscription)
        return self

    async def __anext__(self) -> Event[Any]:
        event = await self._next()
        if self._later_fit is not None:
            self.subscription.convert(event, self._later_fit)
        return event

    async def _next(self) -> Event[Any]:
        """The next event as it came, since the tape needs that."""
        strand = running()
        if not isinstance(strand, _Recorded) or self._number < 0 or self._recorder.is_over:
            return await super().__anext__()
        with _Call(self._recorder, strand, STEP):
            event = await super().__anext__()
        if not self._recorder.is_over:
            self._recorder.deliver(strand, self._number, event)
        return event


class _Call:
    """A bus call of a strand, from its beginning to its end."""

    __slots__ = ("_call", "_event", "_recorder", "_strand")

    def __init__(
        self, recorder: "Recorder", strand: _Recorded, call: int, event: Event[Any] | None = None
    ) -> None:
        self._recorder, self._strand, self._call, self._event = recorder, strand, call, event

    def __enter__(self) -> None:
        self._strand.enter(self._call, self._event)

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._strand.leave()
        else:
            self._recorder.note_failure(self._strand, self._call, error, self._event)


class _Nothing(list[int]):
    """The log of a recorder that has stopped, while strands of its code still run."""

    def __iadd__(self, _: Any) -> Self:  # type: ignore[override,misc]
        return self


class Recorder:
    """Writes the tape of the code that `attach` runs on `bus`, until `stop`. `selects` is what the
    recording has of the events; rows of others go into the tape.
    """

    def __init__(self, bus: AsyncEventBus, selects: Query) -> None:
        self._bus = bus
        self._publisher = parts_of(bus).publisher
        self._selects = selects
        self._takes_all = selects.every and not selects.keys and not selects.prefixes
        self.log: list[int] = []
        self.strands = 0
        self.is_over = False
        self._is_setting = False
        self.waiting: dict[Any, int] = {}
        """The strands that wait for a future of their own, by that."""
        self._timers: dict[int, asyncio.TimerHandle] = {}
        """Timers of watched code that have not run, by strand; cancelled ones for a while."""
        self._clocks: list[float] = []
        self._outcomes: list[Any] = []
        self._places: dict[Source, int] = {}
        self._told_sources = 0
        self._rows: list[Row] = []
        self._row_places: dict[tuple[int, int, bool], int] = {}
        """Which of these rows is that of an event. Some have no number, such as `aiobus.gap`."""
        self._outputs: dict[int, str] = {}
        self._begins: dict[tuple[str, int], list[int]] = {}
        """Of each source: its place, the first seq that the recording has, and the last that was
        delivered and is for the recording to have.
        """
        self._whole: set[str] = set()
        """Types of which the recording has every key."""
        self._subscriptions = 0
        self._made: dict[int, Subscription] = {}
        self._facts: dict[str, Any] | None = None

    def attach(self, strategy: Strategy) -> "tuple[asyncio.Task[Any], asyncio.Future[None]]":
        """Run `strategy`, and watch all that comes of it. Returns its task, and a future that is
        done once it waits for more than its setting up, or has ended. Raises BusError if the loop
        has a task factory already, or another recording is attached to the bus or the loop.
        """
        self._loop = loop = asyncio.get_running_loop()
        if loop.get_task_factory() is not None:
            raise BusError(
                "attach= needs the task factory of the loop, which has one already: end the other"
                " recording with attach=, or take that factory away"
            )
        watch(self._bus, self)
        self._time = loop.time
        self._began = loop.time()
        self._facts = {
            "tape": VERSION,
            "name": self._bus.name,
            "epoch": self._publisher.epoch,
            "url": self._bus.url,
            "event_bytes": self._publisher.most_bytes,
            "published": self._publisher.seq,
            "began": self._began,
            "wall": clock.time(),
            "strategy": origin_of(strategy),
            "random": random.getstate(),
            "hash": hash("aiobus"),
            "python": platform.python_version(),
            "loop": f"{type(loop).__module__}.{type(loop).__qualname__}",
        }
        loop.set_task_factory(self._make_task)
        names = "call_soon", "call_soon_threadsafe", "call_later", "call_at", "time"
        self._real = real = {name: getattr(loop, name) for name in names}
        hooks: dict[str, Callable[..., Any]] = {
            "call_soon": self._soon(real["call_soon"], is_for_strand),
            # By this one, the loop ends an asynchronous generator that was left before its end.
            "call_soon_threadsafe": self._soon(
                real["call_soon_threadsafe"], lambda _: running() is not None
            ),
            "call_later": self._timed(real["call_later"], 0),
            "call_at": self._timed(real["call_at"], 1),
            "time": self._loop_time(real["time"]),
        }
        for name, hook in hooks.items():
            setattr(loop, name, hook)
        clock.read_by(self._read_clock)

        first = _First(self, run_strategy(strategy, self._bus))
        name = f"aiobus {self._bus.name} attached"
        return StrandTask(first, partial(_Done, self), loop=loop, name=name), first.live

    def stop(self) -> None:
        """Watch nothing more. What was attached runs on."""
        if self.is_over:
            return
        self.is_over = True
        watch(self._bus, None)
        clock.read_by(None)
        self._loop.set_task_factory(None)
        for name in self._real:
            delattr(self._loop, name)
        self._published = self._publisher.seq
        timers = [number for number, timer in self._timers.items() if not timer.cancelled()]
        self._end = {"strands": self.strands, "open": open_of(self._made), "timers": timers}
        self._timers.clear()
        self.waiting.clear()
        self._last, self.log = self.log, _Nothing()

    def begin(self, source: str, epoch: int, seq: int) -> None:
        """The recording has the events of a source from this one on."""
        place = self._places.setdefault((source, epoch, False), len(self._places))
        self._begins.setdefault((source, epoch), [place, seq, 0])

    def delivered(self) -> dict[tuple[str, int], int]:
        """Of each source, the last event that was delivered and that the recording is to have."""
        return {source: last for source, (_, _, last) in self._begins.items()}

    @property
    def size(self) -> int:
        """How many numbers wait to be taken by `chunk`."""
        return len(self.log)

    def chunk(self, first: int) -> Chunk:
        """What was written down since the last chunk. After `stop` it is the last one."""
        log = self._last if self.is_over else self.log
        sources = list(self._places)
        made = Chunk(
            first=first,
            numbers=log,
            clocks=self._clocks,
            outcomes=self._outcomes,
            sources=sources[self._told_sources :],
            rows=self._rows,
            outputs=self._outputs,
            published=self._published if self.is_over else self._publisher.seq,
            facts=self._facts,
            end=self._end if self.is_over else None,
        )
        self._told_sources = len(sources)
        self._facts = None
        self._clocks, self._outcomes, self._outputs = [], [], {}
        self._rows, self._row_places = [], {}
        if not self.is_over:
            self.log = []
        return made

    def now(self) -> int:
        """Microseconds since the start."""
        return int((self._time() - self._began) * 1e6)

    # What the loop is asked.

    def _make_task(self, loop: Any, coroutine: Any, **options: Any) -> Any:
        if running() is None:
            return plain_task(loop, coroutine, options)
        if options.pop("eager_start", False):
            raise BusError("a task that starts eagerly cannot be recorded: create it without that")
        return StrandTask(_Recorded(self, coroutine), partial(_Done, self), loop=loop, **options)

    def _timed(self, real: Callable[..., Any], is_at: int) -> Callable[..., Any]:
        def call(when: float, callback: Any, *arguments: Any, context: Any = None) -> Any:
            caller = running()
            if caller is None or self._is_setting or is_package(sys._getframe(1)):
                return real(when, callback, *arguments, context=context)
            self.log += (TIMER, caller.number, microseconds(when), is_at)
            made = self.strands
            if is_strike(callback):
                callback, arguments = self._strike, (_Recorded(self), caller, callback)
            elif is_users_call():
                strand = _Recorded(self)
                callback, arguments = self._run_timer, (strand, callback, arguments)
            self._is_setting = True  # one of these methods may call the other
            try:
                timer = real(when, callback, *arguments, context=context)
                if callback == self._run_timer:
                    self._note_timer(arguments[0].number, timer)
                return timer
            except BaseException:
                self.strands = made  # what the loop refuses is no strand
                raise
            finally:
                self._is_setting = False

        return call

    def _soon(self, real: Callable[..., Any], is_ours: Callable[..., bool]) -> Callable[..., Any]:
        soon = self._real["call_soon"]

        def call(callback: Any, *arguments: Any, context: Any = None) -> Any:
            if wakes(callback) and not arguments[0].cancelled():
                # When a task is cancelled hangs on whether it was about to go on.
                woken = self.waiting.get(arguments[0])
                if woken is not None and here.strand is not None:
                    self.log += (WOKE, here.strand.number, woken)
            elif is_ours(callback):
                caller, strand = running(), _Recorded(self)
                if is_strike(callback):
                    return soon(self._strike, strand, caller, callback, context=context)
                return soon(self.run_call, strand, callback, arguments, context=context)
            return real(callback, *arguments, context=context)

        return call

    def run_call(self, strand: _Recorded, callback: Any, arguments: Any) -> None:
        """Run a plain callback, which is a strand."""
        self.log += (GO_ON, strand.number, self.now(), 0)
        try:
            with entered(strand):
                callback(*arguments)
        except BaseException as error:
            self.note_error(strand, error)
            raise

    def _note_timer(self, number: int, timer: asyncio.TimerHandle) -> None:
        if len(self._timers) >= MOST_TIMERS:
            there = [each for each in self._timers.items() if not each[1].cancelled()]
            self._timers = dict(there)
        self._timers[number] = timer

    def _run_timer(self, strand: _Recorded, callback: Any, arguments: Any) -> None:
        self._timers.pop(strand.number, None)
        self.run_call(strand, callback, arguments)

    def _strike(self, strand: _Recorded, owner: Strand, callback: Any) -> None:
        """An asyncio.timeout of the strand `owner` strikes."""
        self.log += (GO_ON, strand.number, self.now(), 0)
        # If a bus call of the owner is cancelled, the futures of the bus are none of its code.
        with entered(owner if owner.call else strand):
            callback()

    def _read_clock(self, read: Callable[[], float]) -> float:
        told_time, strand = read(), running()
        if strand is not None:
            self.log += (CLOCK, strand.number, 0)
            self._clocks.append(told_time)
        return told_time

    def _loop_time(self, real: Callable[[], float]) -> Callable[[], float]:
        def read() -> float:
            strand = here.strand
            if strand is None or self.is_over:  # the loop itself, in each of its turns
                return real()
            told_time = real()
            if not (strand.call or self._is_setting or is_package(sys._getframe(1))):
                self.log += (CLOCK, strand.number, 1)
                self._clocks.append(told_time)
            return told_time

        return read

    # What is written down.

    def deliver(self, strand: _Recorded, number: int, event: Event[Any]) -> None:
        """A delivery begins."""
        begin, seq = self._begins.get((event.source, event.epoch)), event.seq
        # As `_place` and `now`, whose calls take a tenth of this.
        if begin is None or seq < begin[1] or event.type not in self._whole or event.past:
            place, seq = self._place(event)
        else:
            place = begin[0]
            if seq > begin[2]:
                begin[2] = seq
        time = int((self._time() - self._began) * 1e6)
        self.log += (DELIVER, strand.number, number, place, seq, time)

    def _place(self, event: Event[Any]) -> tuple[int, int]:
        """The place of the source of an event, and its seq. A row that the recording does not have
        is kept: then it is which of the rows it is.
        """
        begin = self._begins.get((event.source, event.epoch))
        if begin is not None and event.seq >= begin[1] and not event.past:
            type, seq = event.type, event.seq
            if type in self._whole or self._is_there(type, event.key):
                if seq > begin[2]:
                    begin[2] = seq
                return begin[0], seq
        place = self._places.setdefault((event.source, event.epoch, True), len(self._places))
        key, number = (place, event.seq, event.past), len(self._rows)
        if event.seq:
            number = self._row_places.setdefault(key, number)
        if number == len(self._rows):
            self._rows.append((event.seq, event.past, _row(event)))
        return place, number

    def _is_there(self, type: str, key: str) -> bool:
        if type.startswith(RESERVED):
            return False
        if self._takes_all and len(self._whole) < MOST_TYPES:
            self._whole.add(type)
        return self._takes_all or self._selects.matches(type, key)

    def note_output(self, strand: _Recorded, event: Event[Any]) -> None:
        """Watched code has published."""
        self.log += (OUTPUT, strand.number, event.seq)
        if not self._takes_all and not self._selects.matches(event.type, event.key):
            self._outputs[event.seq] = _row(event)

    def note_failure(
        self,
        strand: _Recorded,
        call: int,
        error: BaseException,
        event: Event[Any] | None = None,
    ) -> None:
        """A bus call ends with `error`. If that depends on the moment, it is written down."""
        strand.leave(error)
        if isinstance(error, EncodeError) and event is not None:
            # Its text may tell the length of the row, which has the seq that the event did not get.
            self._note_outcome(strand, call, ["refused", self._publisher.seq + 1])
        elif isinstance(error, Exception) and not is_again(error):
            self._note_outcome(strand, call, told(error, event))

    def _note_outcome(self, strand: _Recorded, call: int, outcome: list[Any]) -> None:
        number = len(self._outcomes)
        self.log += (OUTCOME, strand.number, call * 2 + strand.is_numbered, number)
        self._outcomes.append(outcome)

    def note_cut(self, strand: _Recorded) -> None:
        """Code that is not watched has cancelled the task of a strand."""
        if not self.is_over:
            self.log += (OUTCOME, strand.number, 0, len(self._outcomes))
            self._outcomes.append(["cancelled"])

    def note_error(self, strand: _Recorded, error: BaseException) -> None:
        """Watched code ends with `error`."""
        if not self.is_over:
            self.log += (RAISED, strand.number, len(self._outcomes))
            self._outcomes.append(list(Failure.of(error)))

    def note_subscription(self, strand: _Recorded) -> int:
        """A subscription begins. Returns its number."""
        self._subscriptions += 1
        self.log += (SUBSCRIBED, strand.number, self._subscriptions)
        return self._subscriptions

    def note_made(self, strand: _Recorded, call: int, number: int, made: Subscription) -> None:
        """It is there."""
        add_open(self._made, number, made)
        outcome = ["made", made.name, made.query, options_of(made.options)]
        self._note_outcome(strand, call, outcome)

    # What the bus is asked.

    async def publish(self, strand: Any, event: E) -> E:
        """As the bus does."""
        with _Call(self, strand, PUBLISH, event):
            await self._bus.publish(event)
        return event

    def publish_nowait(self, strand: Any, event: E) -> E:
        """As the bus does."""
        with _Call(self, strand, PUBLISH, event):
            self._bus.publish_nowait(event)
        return event

    async def reply(self, strand: Any, request: Request, event: E) -> E:
        """As the bus does."""
        with _Call(self, strand, REPLY, event):
            await self._bus.reply(event_id(*request), event)
        return event

    async def request(
        self,
        strand: Any,
        event: Event[Any],
        replies: Query,
        timeout: float | None,
        to: str | None,
    ) -> Event[Any]:
        """As the bus does."""
        with _Call(self, strand, REQUEST, event):
            with suppress(TypeError, ValueError):  # which the bus raises as well
                self._note_outcome(strand, REQUEST, asked(timeout, requested_of(replies, to)))
            reply = await self._bus.request(event, replies.named, to=to, timeout=timeout)
        self._note_outcome(strand, REQUEST, ["reply", *self._place(reply)])
        return reply

    async def subscribe(
        self,
        strand: Any,
        callback: Callback,
        options: SubscriptionOptions,
        serve: Callable[[Any, SubscriptionOptions], Awaitable[Subscription]],
    ) -> Subscription:
        """As the bus does."""
        number = self.note_subscription(strand)
        with _Call(self, strand, SUBSCRIBE):
            again = _Callback(self, number, callback, options.fit)
            made = await serve(again, options.untyped())
        self.note_made(strand, SUBSCRIBE, number, made)
        return made

    def stream(
        self,
        options: SubscriptionOptions,
        enter: Callable[[SubscriptionOptions], Awaitable[Subscription]],
    ) -> EventStream[Any]:
        """As the bus does."""
        return _Taken(self, partial(enter, options.untyped()), options.fit)

    async def wait(
        self,
        strand: Any,
        call: str,
        again: Callable[[], Awaitable[T]],
        timeout: float | None = None,
        about: str = "",
    ) -> T:
        """As the bus does. What came of it is always written down."""
        number = CALLS[call]
        strand.enter(number)
        self._note_outcome(strand, number, asked(timeout, about))
        try:
            result = await again()
        except BaseException as error:
            strand.leave(error)
            if isinstance(error, Exception):
                self._note_outcome(strand, number, told(error, None))
            raise
        strand.leave()
        self._note_outcome(strand, number, ["returned", result])
        return result

    def read(self, strand: Any, call: str, again: Callable[[], T]) -> T:
        """As the bus does. What it returned is written down."""
        number = CALLS[call]
        strand.enter(number)
        try:
            result = again()
        finally:
            strand.leave()
        self._note_outcome(strand, number, ["returned", result])
        return result


def _row(event: Event[Any]) -> str:
    place = event.seq, event.timestamp, event.type, event.key
    return encode(*place, event.data, event.cause, MOST_BYTES).decode()


def add_open(found: dict[int, Subscription], number: int, made: Subscription) -> None:
    """Add a subscription. Those that have ended are forgotten once they are many."""
    found[number] = made
    if len(found) >= MOST_ENDED:
        for each in [each for each, subscription in found.items() if subscription.closed]:
            del found[each]


def open_of(found: dict[int, Subscription]) -> list[int] | None:
    """The subscriptions that have not ended; None if the bus has closed, which ends them all."""
    if any(subscription.life.state is not State.OPEN for subscription in found.values()):
        return None
    return sorted(number for number, subscription in found.items() if not subscription.closed)


def check_strategy(name: str, strategy: object) -> None:
    """Raise TypeError unless the argument `name` may be called with a bus alone, and be awaited."""
    if isinstance(strategy, type) and not hasattr(strategy, "__await__"):
        raise TypeError(
            f"{name}={strategy.__qualname__} is a class: give a method of an instance, such as"
            f" {strategy.__qualname__}().run"
        )
    if not callable(strategy):
        raise TypeError(f"{name}={strategy!r}: a coroutine function of a bus is needed")
    try:
        signature = inspect.signature(strategy)
    except (TypeError, ValueError):
        return  # of a function in C
    try:
        signature.bind(None)
    except TypeError as error:
        text = f"{name}={origin_of(strategy)}{signature}: it is called with the bus alone"
        raise TypeError(f"{text}, and there is {error}; see functools.partial") from None


async def run_strategy(strategy: Strategy, bus: AsyncEventBus) -> object:
    """Run what is attached."""
    with suppress(TypeError):  # an object with slots has no weak references
        _ran[id(_state_of(strategy))] = _state_of(strategy)
    result = strategy(bus)
    if not inspect.isawaitable(result):
        raise TypeError(f"{origin_of(strategy)} is no coroutine function: it returned {result!r}")
    return await result


_ran: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""The objects whose methods were attached in this process, or replayed."""


def _state_of(strategy: Any) -> Any:
    """The object that keeps the state of a strategy, which is a method of it."""
    while isinstance(strategy, partial):
        strategy = strategy.func
    return getattr(strategy, "__self__", strategy)


def ran_before(strategy: Strategy) -> bool:
    """True if this is a method of an object of which one has run before in this process."""
    state = _state_of(strategy)
    return not isinstance(state, FunctionType | type) and _ran.get(id(state)) is state


def options_of(options: SubscriptionOptions) -> str:
    """What of the options decides which events are handed over, how many at once, and when."""
    given: dict[str, Any] = {name: getattr(options, name) for name in OPTIONS}
    given["after"] = sorted(given["after"])  # it may be a set
    told = [f"{name}={value!r}" for name, value in given.items()]
    return ", ".join([*told, *(["where="] if options.where is not None else [])])


def requested_of(replies: Query, to: str | None) -> str:
    """What a request asks for, as the tape has it."""
    return str(replies) if to is None else f"{replies} of {to}"


def asked(timeout: float | None, about: str = "") -> list[Any]:
    """The arguments of a bus call as the tape has them, before the call does anything."""
    limit = "without a timeout"
    if timeout is not None:
        limit = f"with timeout={microseconds(timeout) / 1e6:.15g}"
    return ["asked", f"for {about} {limit}" if about else limit]


def origin_of(strategy: Any) -> str:
    """The module and name of what is attached."""
    while isinstance(strategy, partial):
        strategy = strategy.func
    name = getattr(strategy, "__qualname__", type(strategy).__qualname__)
    return f"{getattr(strategy, '__module__', '')}:{name}"
