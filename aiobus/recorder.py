"""A recording: everything that a bus hears, in a file.

Owns what goes into the file, where it goes on after an interruption, and how it ends. A recording
never makes a publisher wait, and if it ends, the bus goes on. What is on the tape of attached code
is the business of `replay.attach`.
"""

import asyncio
import logging
import math
import os
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack

import orjson

from aiobus import clock
from aiobus.bus import AsyncEventBus, parts_of
from aiobus.errors import BusError, JournalError
from aiobus.event import event_id
from aiobus.journal.format import TAPE, Entry, entries_of, entry_of, tape_of
from aiobus.journal.retention import Keep
from aiobus.journal.store import Sync
from aiobus.journal.writer import JournalWriter, in_thread
from aiobus.lockout import check_shut
from aiobus.options import Keys, Since, SubscribeKeywords, SubscriptionOptions, Types
from aiobus.query import RESERVED, SYSTEM, Query
from aiobus.replay.attach import Recorder, Strategy, check_strategy
from aiobus.subscription import Subscription, Taken, are_rows
from aiobus.sync import Notifier

__all__ = ["Recording", "record"]

log = logging.getLogger("aiobus.recorder")
DRAIN_SECONDS = 5.0
"""At the end, for what has come and is not recorded yet, and for the disk."""
CHUNK_SECONDS = 1.0
CHUNK_NUMBERS = 32_768
"""Numbers of a tape, about four of an entry, after which they are written."""
MOST_NUMBERS = 4_000_000
"""Numbers of a tape that wait for a disk. Beyond, the tape ends."""


def record(
    bus: AsyncEventBus,
    path: str | os.PathLike[str],
    *,
    types: Types = "*",
    key: Keys = None,
    since: Since = None,
    keep: Keep = None,
    sync: Sync = "process",
    attach: Strategy | None = None,
) -> "Recording":
    """Record what `bus` hears of `types` and `key`, its own events among it, and all its system
    events, so its gaps and drops as well::

        async with record(bus, "desk.db"):
            await bus.wait_closed()

    If the file is there, the recording goes on behind what is in it: what its sources still have in
    their histories is fetched, and the rest is a recorded gap. Of other sources it
    begins as `subscribe` does with `since`. `keep` removes the oldest events beyond so many bytes
    or a timedelta. `sync`: "process" survives the end of the process, "power" a power failure.

    `attach` is a coroutine function of the bus, such as a strategy. It runs in a task of its own as
    soon as the bus is recorded, and all that comes of it is watched: its subscriptions, tasks and
    timers. What `verify` needs to run it again goes into the file: a tape, which readers of the
    file do not see unless they ask for it. On return of `__aenter__` its subscriptions are live: it
    has returned, or waits for something that is no `subscribe`, `stream` or `publish`. If it
    raises, the `async with` raises that, or later the bus fails with it. When the recording is
    closed the tape ends; what is attached runs on. docs/replay.md says what code replays.

    Raises ValueError and TypeError for wrong arguments, such as a class, or a function that needs
    more than the bus.
    """
    if not isinstance(bus, AsyncEventBus):
        raise TypeError(f"bus={bus!r}: an AsyncEventBus is needed")
    if attach is not None:
        check_strategy("attach", attach)
    return Recording(bus, path, types, key, since, keep, sync, attach)


class Recording:
    """What `record` returns. Enter it once, while the bus is open."""

    def __init__(
        self,
        bus: AsyncEventBus,
        path: str | os.PathLike[str],
        types: Types,
        key: Keys,
        since: Since,
        keep: Keep,
        sync: Sync,
        attach: Strategy | None,
    ) -> None:
        self.attached: asyncio.Task[Any] | None = None
        """The task of `attach`. It ends when that returns."""
        self.error: JournalError | None = None
        """Why it has ended before its time."""
        self._bus, self._parts = bus, parts_of(bus)
        self._types, self._key, self._since = types, key, since
        self._writer = JournalWriter(
            path, keep=keep, sync=sync, ends_with_error=True, argument="path"
        )
        self._last: dict[tuple[str, int], int] = {}
        """The last seq of each source that is in the file or on its way there."""
        self._appended = self._committed = 0
        self._stretches = 0
        """Stretches of the tape among what was appended."""
        self._taped = 0
        """How much was appended up to the last of them."""
        self._changed = Notifier()
        self._subscriptions: list[Subscription] = []
        self._was_entered = self._is_open = self._is_waking = False
        self._attach = attach
        self._tape: _Tape | None = None
        self._writing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "ended" if self.error else "open" if self._is_open else "closed"
        return f"<Recording {self._writer.path} {state}>"

    async def __aenter__(self) -> Self:
        """Open the file, subscribe, and run what is attached until it is live. Raises JournalInUse,
        JournalCorrupt, and JournalError for a file that belongs to a bus (`journal=`), what is
        attached raises, and BusError if entered before, or if the loop has a task factory, as
        another recording with `attach` makes one. If the bus is not open, raises BusClosed or
        WrongLoop and makes no file.
        """
        self._parts.life.check()
        check_shut(f"a recording of {self._bus.name} into {self._writer.path}")
        if self._was_entered:
            raise BusError(f"{self!r} was entered before: call record() for another")
        self._was_entered = True
        try:
            await in_thread(partial(self._writer.check_purpose, None))
            if clock.is_virtual() and await in_thread(self._writer.has_events):
                raise self._used_before()  # nothing of it is touched: it may be what is replayed
            await in_thread(self._writer.open)
            self._last = await in_thread(self._writer.last_of_sources)
            if self._last and clock.is_virtual():
                raise self._used_before()
            self._loop = asyncio.get_running_loop()
            self._own = self._bus.name, self._parts.publisher.epoch
            tape = tape_of(self._own[0]), self._own[1]
            last_of_tape = await in_thread(partial(self._writer.last_seq, *tape))
            self._writer.start(self._note_committed)
            self._is_open = True
            # A later start of a source comes later in the file.
            after = {name: event_id(name, epoch, seq) for (name, epoch), seq in self._last.items()}
            await self._subscribe(SYSTEM)
            self._note_clocks()
            # Old orders are recorded, and not executed: their age does not matter.
            max_age = None if self._since is None else math.inf
            await self._subscribe(
                self._types,
                key=self._key,
                since=self._since,
                after=after.values(),
                max_age=max_age,
            )
            if self._attach is not None:
                await self._run_attached(self._attach, tape, last_of_tape)
        except BaseException:
            if self.attached is not None:
                self.attached.cancel()
            await self._close()
            raise
        return self

    def _note_clocks(self) -> None:
        """Have it in the file which clocks are wrong: that was announced before this began."""
        for peer in self._bus.peers:
            if peer.is_skewed and peer.skew is not None and peer.skew_error is not None:
                where = peer.name, peer.epoch
                self._parts.reports.note_skew(*where, peer.skew, peer.skew_error)

    def _used_before(self) -> JournalError:
        return JournalError(
            f"{self._writer.path} has events already: in virtual time a source has the same numbers"
            " in each run, so give each run a file of its own"
        )

    async def _run_attached(self, strategy: Strategy, tape: tuple[str, int], last: int) -> None:
        recorder = Recorder(self._bus, Query.of(self._types, self._key))
        self.attached, live = recorder.attach(strategy)
        self._tape = _Tape(recorder, self._writer, tape, last)
        self._write_tape_again()
        await live
        if self.attached.done():
            self.attached.result()
        self.attached.add_done_callback(self._on_attached_end)

    def _write_tape(self) -> None:
        """Begin to write what is there, unless that is under way."""
        if self._writing is None or self._writing.done():
            work = self._write_stretch()
            self._writing = self._loop.create_task(work, context=Context())

    async def _write_stretch(self) -> None:
        tape = self._tape
        if tape is not None and self.error is None and (encode := tape.next()) is not None:
            try:
                # In a thread, for the compression takes a microsecond of each event.
                stretch = await in_thread(encode)
            except Exception as error:  # noqa: BLE001 - the strategy is not to blame, and goes on
                self._end(JournalError(f"a stretch of the tape cannot be written: {error!r}"))
                return
            await self._until_room()  # events have come meanwhile
            self._append(stretch)
            self._stretches += 1
            self._taped = self._appended

    def _write_tape_again(self) -> None:
        self._write_tape()
        if self._tape is not None and self.error is None:
            self._tape.later(self._write_tape_again)

    async def _until_delivered(self) -> None:
        """Wait for what attached code was given already: its subscriptions are others, and another
        bus sends to each on a topic of its own.
        """
        delivered = {} if self._tape is None else self._tape.delivered()
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while (
                    any(self._last.get(source, 0) < seq for source, seq in delivered.items())
                    and self.error is None
                    and not self._subscriptions[-1].closed
                ):
                    await self._changed.wait()

    async def _flush_tape(self) -> None:
        """Wait until what is on the tape by now is on its way to the file."""
        tape = self._tape
        if tape is None:
            return
        end = tape.written + tape.size
        while True:
            self._write_tape()
            assert self._writing is not None
            await asyncio.wait([self._writing])
            if tape.written >= end or tape.is_over or self.error is not None:
                return
            await self._until_room()

    async def _until_room(self) -> None:
        while not self._writer.room and self.error is None:
            await self._changed.wait()

    async def _end_tape(self) -> None:
        with suppress(TimeoutError):  # of a disk that does not answer
            async with asyncio.timeout(DRAIN_SECONDS):
                while self._writing is not None and not self._writing.done():
                    await asyncio.wait([self._writing])
                await self._until_room()
                await self._write_stretch()

    def _on_attached_end(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("what is attached to %s has failed", self._bus.name, exc_info=error)
            self._parts.subscriptions.fail(error)

    async def flush(self, timeout: float = 5.0) -> None:
        """Wait until what has come to the recording by now is in the file, and the tape of what
        attached code has done by then. Raises TimeoutError after `timeout` seconds, the
        JournalError that has ended the recording, and WrongLoop in a forked child.
        """
        self._parts.life.check_process()
        ends = [(each, each.begun + each.pending) for each in self._subscriptions]
        # In a flood much more is on its way to the file by the time that this is.
        most = self._appended - self._stretches + sum(end - each.handled for each, end in ends)
        async with asyncio.timeout(timeout):
            while self.error is None and any(
                each.handled < end and not each.closed for each, end in ends
            ):
                await self._changed.wait()
            await self._flush_tape()
            last = max(min(most + self._stretches, self._appended), self._taped)
            while self._committed < last and self.error is None:
                await self._changed.wait()
        if self.error is not None:
            raise self.error

    async def _subscribe(self, types: Types, **options: Unpack[SubscribeKeywords]) -> None:
        made = SubscriptionOptions.of("record", types, options)
        subscriptions = self._parts.subscriptions
        self._subscriptions.append(await subscriptions.serve_batches("record", made, self._record))

    async def _record(self, taken: Taken) -> None:
        while self._writer.room < len(taken) and self.error is None:
            await self._changed.wait()
        if self.error is not None:
            return
        entries = entries_of(taken, *self._own) if are_rows(taken) else map(entry_of, taken)
        self._append(*filter(self._is_new, entries))
        if self._tape is not None and self._tape.is_long:
            self._write_tape()
        if self._changed.futures and not self._is_waking:
            # Once these events count as handled, which is what a flush looks at.
            self._is_waking = True
            self._loop.call_soon(self._wake)

    def _is_new(self, entry: Entry) -> bool:
        """Note that it comes next of its source. False if it cannot."""
        name, epoch, seq, _, type, _, _, _ = entry
        if type.startswith(RESERVED):
            return True
        source, tape = (name, epoch), self._tape
        if seq <= self._last.get(source, 0):
            text = f"{name} uses numbers again that are in {self._writer.path}"
            id = event_id(name, epoch, seq)
            self._parts.reports.trouble(text, f"{text}: {id} is not recorded")
            return False
        self._last[source] = seq
        if tape is not None and source not in tape.begun:
            tape.begin(source, seq)
        return True

    def _wake(self) -> None:
        self._is_waking = False
        self._changed.wake()

    def _append(self, *entries: Entry) -> None:
        if self.error is not None:
            return
        try:
            self._writer.append(*entries)
        except JournalError as error:
            self._end(error)
        else:
            self._appended += len(entries)

    def _note_committed(self, count: int, error: BaseException | None) -> None:
        self._committed += count
        if isinstance(error, JournalError):
            self._end(error)
        self._changed.wake()

    def _end(self, error: JournalError) -> None:
        """The file takes nothing more: what is in it stays, and the bus goes on."""
        if self.error is None:
            self.error = error
            self._parts.reports.recording_ended(self._writer.path, error)
            if self._tape is not None:
                self._tape.stop()
            self._changed.wake()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Record what has come, and close the file. Nothing in a forked child."""
        if not self._parts.life.is_forked:
            await self._close()

    async def _close(self) -> None:
        """If it is cancelled, what was not recorded by then is not, and all is closed the same."""
        if self._tape is not None:
            self._tape.stop()
        try:
            await self._until_delivered()
            for subscription in self._subscriptions:
                await self._parts.subscriptions.finish(subscription, DRAIN_SECONDS)
        finally:
            for subscription in self._subscriptions:
                self._parts.subscriptions.drop(subscription)
            self._is_open = False
            try:
                await self._end_tape()
            finally:
                closing = asyncio.ensure_future(in_thread(self._writer.close))
                await asyncio.wait([closing], timeout=DRAIN_SECONDS)
                if not closing.done():
                    log.error("%s is left to a disk that does not answer", self._writer.path)


class _Tape:
    """The tape of a recording, on its way into the file, where it is a source of its own behind
    the seq `last`.
    """

    def __init__(
        self, recorder: Recorder, writer: JournalWriter, source: tuple[str, int], last: int
    ) -> None:
        self._recorder = recorder
        self._writer = writer
        self._source = source
        self._first, self._last = last + 1, last
        self.begun: set[tuple[str, int]] = set()
        """Sources of which the recording has events."""
        self._timer: asyncio.TimerHandle | None = None
        self.is_over = False
        """Nothing more is written."""
        self.written = 0
        """Numbers of the tape that were taken for a stretch."""

    def begin(self, source: tuple[str, int], seq: int) -> None:
        """The recording has this event of a source."""
        self.begun.add(source)
        self._recorder.begin(*source, seq)

    def delivered(self) -> dict[tuple[str, int], int]:
        """Of each source, the last event that the recording is to have."""
        return self._recorder.delivered()

    @property
    def size(self) -> int:
        """Numbers that wait to be written."""
        return self._recorder.size

    @property
    def is_long(self) -> bool:
        """True once so much waits that it is to be written."""
        return self._recorder.size >= CHUNK_NUMBERS

    def next(self) -> Callable[[], Entry] | None:
        """Makes what is to be stored next; None if there is nothing, or no room for it now."""
        if self.is_over or not (self._recorder.size or self._recorder.is_over):
            return None
        if not self._writer.room:
            if self._recorder.size > MOST_NUMBERS:
                log.error("%s has ended: the disk does not keep up", self._source[0])
                self.stop()
                self.is_over = True  # without an end, so that it is not taken for whole
            return None
        self._last += 1
        self.written += self._recorder.size
        chunk = self._recorder.chunk(self._first)
        self.is_over = self._recorder.is_over
        place, what = (self._last, clock.time()), (TAPE, "")

        def encode() -> Entry:
            row = orjson.dumps((*place, *what, chunk.encoded()))
            return Entry(*self._source, *place, *what, "", row)

        return encode

    def later(self, write: Callable[[], None]) -> None:
        """Call `write` a second from now. Not in virtual time, where it would be a timer that
        never ends.
        """
        if not clock.is_virtual():
            self._timer = asyncio.get_running_loop().call_later(CHUNK_SECONDS, write)

    def stop(self) -> None:
        """Watch nothing more. A second call does nothing."""
        self._recorder.stop()
        if self._timer is not None:
            self._timer.cancel()
