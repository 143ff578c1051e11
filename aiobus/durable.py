"""Publishing with a journal: an event is committed before any subscription receives it, and the
numbers go on where the start before has left them.

Owns the events that have a number and wait for their commit, the order in which they are handed
out, and the numbers that are reserved on the disk before they are used. Must not know how a journal
stores them.
"""

import asyncio
import logging
import math
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from copy import copy
from functools import partial
from typing import Any, NamedTuple

from aiobus import clock
from aiobus.diagnostics import Diagnostics
from aiobus.errors import JournalError, JournalFailed, QueueFull
from aiobus.event import Event, event_id
from aiobus.journal.format import Entry
from aiobus.journal.history import JournaledHistory
from aiobus.journal.mark import Place
from aiobus.journal.writer import JournalWriter, in_thread
from aiobus.lifecycle import Lifecycle
from aiobus.limits import Limits
from aiobus.lockout import enter_desk, leave_desk
from aiobus.publisher import Publisher, Route
from aiobus.sync import Notifier
from aiobus.wire import MAX_BEGINS, Options

__all__ = ["BLOCK", "MAX_UNCOMMITTED", "Durable", "Uncommitted"]

MAX_UNCOMMITTED = 4_096
MAX_BYTES = 32 * 1024 * 1024
"""Events that wait for their commit, and their bytes: four commits of 1,000 rows. Then publishers
wait.
"""
CLOSE_SECONDS = 1.0
BLOCK = 65_536
"""Numbers that are reserved at once, when half of those before are used."""
MARGIN = 2 * MAX_UNCOMMITTED
"""Reserved numbers that publishers leave to system events, which cannot wait for more."""
SPREAD = 4_096
"""A start leaves out up to so many numbers, at random: then two starts from the same copy of a file
do not begin at the same one, and a peer that knows the one tells it from the other.
"""

log = logging.getLogger("aiobus.durable")


class Pending(NamedTuple):
    """An event that has a number and is not handed out. `done` is what its publisher waits for;
    None if it does not. A system event of the bus itself has no `event` to be stamped. `then` is
    called once it is handed out.
    """

    entry: Entry
    event: Event[Any] | None = None
    done: asyncio.Future[Route] | None = None
    then: Callable[[], object] | None = None


class Uncommitted:
    """The events that are numbered and not handed out, in order. Those of the bus itself are not
    stored: they wait for what was numbered before them.
    """

    def __init__(self) -> None:
        self._waiting: deque[Pending] = deque()
        self.stored = self.bytes = 0
        """How many of them are to be stored, and the bytes of their rows."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first(self) -> float:
        """The seq of the oldest; infinity if there is none."""
        return self._waiting[0].entry.seq if self._waiting else math.inf

    def add(self, new: Pending) -> None:
        """One more, numbered after all before."""
        self._waiting.append(new)
        if new.event is not None:
            self.stored += 1
            self.bytes += len(new.entry.row)

    def take(self, count: int) -> Iterator[Pending]:
        """The oldest, up to the last that waits for no more than the `count` oldest stored ones.
        One by one: what is announced while one is handed out has its place behind the others.
        """
        waiting = self._waiting
        while waiting and (count or waiting[0].event is None):
            oldest = waiting.popleft()
            if oldest.event is not None:
                count -= 1
                self.stored -= 1
                self.bytes -= len(oldest.entry.row)
            yield oldest


class Durable:
    """The journaled publishing of one bus, by a writer that is not open yet."""

    def __init__(
        self,
        writer: JournalWriter,
        publisher: Publisher,
        limits: Limits,
        reports: Diagnostics,
        life: Lifecycle,
    ) -> None:
        self._writer = writer
        self._publisher = publisher
        self._history = publisher.history = JournaledHistory(limits)
        self._reports = reports
        self._life = life
        self._uncommitted = Uncommitted()
        self._unpublished = 0
        """Events that were numbered and are not in the file."""
        self._reserved = 0
        """Numbers up to this one may be used."""
        self._reserving: asyncio.Task[None] | None = None
        self._problem: JournalError | None = None
        """Why no more numbers could be reserved."""
        self._changed = Notifier()
        reports.publish_own = self.publish_own

    # Opening.

    async def open(self, *, new_epoch: bool) -> None:
        """Open the journal, and let the numbers of the publisher go on where those in it end; with
        `new_epoch`, or in a new file, they begin at 1. Raises what `JournalWriter.open` raises,
        and LeavesProcess while a replay is open in this process. If it is cancelled, call `close`.
        """
        writer, publisher = self._writer, self._publisher
        self._loop = asyncio.get_running_loop()
        enter_desk(self, publisher.name, f"with the journal {writer.path}")
        await in_thread(partial(writer.check_purpose, publisher.name))
        await in_thread(writer.open)
        place = writer.place(publisher.name)
        if place is None:
            publisher.options = Options(begins=(0,), journaled=True)
        elif new_epoch:
            publisher.epoch = max(publisher.epoch, place.epoch + 1)
            publisher.options = Options(begins=(0,), journaled=True)
        else:
            publisher.epoch = place.epoch
            skipped = 1 if clock.is_virtual() else 1 + secrets.randbelow(SPREAD)
            begin = place.upto + skipped
            begins = (*place.begins, begin)[-MAX_BEGINS:]
            start = place.start + 1
            publisher.options = Options(begin=begin, start=start, begins=begins, journaled=True)
            last = partial(writer.last_seq, publisher.name, place.epoch)
            publisher.in_file = await in_thread(last)
        begin = publisher.options.begin
        publisher.seq = publisher.public_seq = self._history.newest = begin
        await self._reserve()
        self._source = (publisher.name, publisher.epoch)
        reach = partial(self._history.reach_back, writer.path, self._source, begin)
        await in_thread(reach)
        writer.start(self._note_committed)

    async def _reserve(self) -> None:
        upto = max(self._reserved, self._publisher.seq) + BLOCK
        place = self._place(upto)
        try:
            await in_thread(partial(self._writer.reserve, self._publisher.name, place))
        except JournalError as error:
            self._problem = error
            raise
        else:
            self._reserved, self._problem = upto, None
        finally:
            self._reserving = None
            self._changed.wake()

    def _place(self, upto: int) -> Place:
        mine = self._publisher.options
        return Place(self._publisher.epoch, mine.start, upto, mine.begins)

    # Publishing.

    def publish(
        self, event: Event[Any], stamped: Callable[[], object] | None = None
    ) -> Awaitable[Route]:
        """Number `event`, have it committed, hand it out, and tell where it went. `stamped` is
        called once it has its id. What this returns is to be awaited at once.

        It waits for the commit, and before that while 4,096 events wait for theirs. If it is
        cancelled in the latter wait, nothing is published; later, only the waiting ends. Raises
        CommitFailed if the event is not in the file: then no subscription receives it, and its
        number is not used again. Raises JournalFailed if that is not known.
        """
        if not self._has_room:
            return self._publish_later(event, stamped)
        done: asyncio.Future[Route] = self._loop.create_future()
        self._begin(event, done)
        if stamped is not None:
            stamped()
        return self._committed(done, event)

    async def _committed(self, done: "asyncio.Future[Route]", event: Event[Any]) -> Route:
        seq = event.seq
        try:
            return await done
        except asyncio.CancelledError:
            # It may have failed in the same turn of the loop, and nothing else would tell that.
            if not done.cancelled() and (error := done.exception()) is not None:
                self._reports.uncommitted([event_id(*self._source, seq)], error)
            raise

    async def _publish_later(
        self, event: Event[Any], stamped: Callable[[], object] | None
    ) -> Route:
        while not self._has_room:
            self._reserve_ahead()
            await self._changed.wait()
            self._life.check()
            if self._problem is not None and not self._has_numbers:
                raise _again(self._problem)
        return await self.publish(event, stamped)

    def publish_nowait(self, event: Event[Any]) -> None:
        """The same without a wait, also for the commit: a crash may lose it, and if the commit
        fails, `aiobus.error` names it. Raises QueueFull, with nothing published, if 4,096 events
        wait for their commit.
        """
        if not self._has_room:
            self._reserve_ahead()
            raise QueueFull("", MAX_UNCOMMITTED)
        self._begin(event, None)

    def publish_own(self, event: Event[Any], then: Callable[[], object]) -> None:
        """Publish a system event, behind all that was numbered before it. It is not stored. `then`
        is called once it is handed out, or cannot be since no number is left. Raises EncodeError,
        and then does not call it.
        """
        self._reserve_ahead()
        if self._publisher.seq < self._reserved and self._uncommitted:
            entry = self._publisher.number(event, is_own=True)
            self._uncommitted.add(Pending(entry, then=then))
            return
        if self._publisher.seq < self._reserved:
            self._publisher.publish(event, is_own=True)
        else:
            log.error("%s could not be announced: no number is reserved for it", event.type)
        then()

    @property
    def _has_room(self) -> bool:
        waiting = self._uncommitted
        return waiting.stored < MAX_UNCOMMITTED and waiting.bytes < MAX_BYTES and self._has_numbers

    @property
    def _has_numbers(self) -> bool:
        return self._publisher.seq < self._reserved - MARGIN

    def _begin(self, event: Event[Any], done: "asyncio.Future[Route] | None") -> None:
        entry = self._publisher.number(event)
        try:
            self._writer.append(entry)
        except JournalError:
            event.seq = 0
            self._unpublished += 1
            raise
        self._uncommitted.add(Pending(entry, event, done))

    def _note_committed(self, count: int, error: BaseException | None) -> None:
        """The `count` oldest events that were appended are committed, or failed with `error`."""
        release, failed = self._publisher.release, []
        for entry, event, done, then in self._uncommitted.take(count):
            if error is not None and event is not None:
                self._unpublished += 1
                if event.seq == entry.seq:  # else it was published again meanwhile
                    event.seq = 0
                if done is not None and not done.done():
                    done.set_exception(_again(error))
                else:
                    failed.append(event_id(entry.source, entry.epoch, entry.seq))
                continue
            route = release(entry)
            if done is not None and not done.done():
                done.set_result(route)
            if then is not None:
                then()
        if failed and error is not None:
            self._reports.uncommitted(failed, error)
        self._reserve_ahead()
        self._changed.wake()

    def _reserve_ahead(self) -> None:
        """Have more numbers reserved if half of the last block is used, or if that failed."""
        if self._reserved - self._publisher.seq < BLOCK // 2 and self._reserving is None:
            self._reserving = self._loop.create_task(self._reserve())
            self._reserving.add_done_callback(_retrieve)

    async def until_committed(self, timeout: float | None = None) -> bool:
        """Wait until all that was numbered before is handed out, or has failed. False if `timeout`
        seconds were not enough.
        """
        last = self._publisher.seq
        try:
            async with asyncio.timeout(timeout):
                while self._uncommitted.first <= last:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    @property
    def is_idle(self) -> bool:
        """True when nothing waits for its commit."""
        return not self._uncommitted

    @property
    def uncommitted(self) -> int:
        """How many events wait for their commit."""
        return self._uncommitted.stored

    @property
    def published(self) -> int:
        """How many events this start has handed out."""
        numbered = self._publisher.seq - self._publisher.options.begin
        return numbered - self._unpublished - len(self._uncommitted)

    # The end.

    async def close(self, timeout: float) -> None:
        """Commit what waits, and close the journal, in `timeout` seconds or the second that this
        takes at least on a slow disk; then it is left to its thread. Publishing raises from now on.
        """
        if self._reserving is not None:
            await asyncio.wait([self._reserving], timeout=timeout)
        if self._reserved:
            self._writer.note_place(self._publisher.name, self._place(self._publisher.seq))
        self._history.close()  # first: a reader keeps SQLite from removing the write-ahead log
        closing = asyncio.ensure_future(in_thread(self._writer.close))
        await asyncio.wait([closing], timeout=max(CLOSE_SECONDS, timeout))
        leave_desk(self)
        if self._uncommitted.stored:
            text = "%s: %d events were not committed, and not handed out: the bus closed"
            log.error(text, self._writer.path, self._uncommitted.stored)
            error = JournalFailed(self._writer.path, "the bus closed before the commit was done")
            self._unpublished += self._uncommitted.stored
            for each in self._uncommitted.take(self._uncommitted.stored):
                if each.done is not None and not each.done.done():
                    each.done.set_exception(error)
        self._changed.wake()


def _again(error: BaseException) -> BaseException:
    """The same error for one more caller: each gets a traceback of its own."""
    each = copy(error)
    each.__cause__ = error
    return each


def _retrieve(task: "asyncio.Task[None]") -> None:
    """The error of a task whose result is told in another way."""
    if not task.cancelled() and not isinstance(task.exception(), JournalError | None):
        log.error("numbers could not be reserved", exc_info=task.exception())
