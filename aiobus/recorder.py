"""A recording: everything that a bus hears, in a file.

Owns what goes into the file, where it goes on after an interruption, and how it ends. A recording
never makes a publisher wait, and if it ends, the bus goes on.
"""

import asyncio
import logging
import math
import os
from types import TracebackType
from typing import Any, Self, Unpack

import orjson

from aiobus import clock
from aiobus.bus import AsyncEventBus
from aiobus.errors import BusError, JournalError
from aiobus.event import Event, event_id
from aiobus.journal.format import Entry
from aiobus.journal.retention import Keep
from aiobus.journal.store import Sync
from aiobus.journal.writer import JournalWriter, in_thread
from aiobus.options import Keys, Since, SubscribeKeywords, Types
from aiobus.query import RESERVED, SYSTEM
from aiobus.subscription import Subscription
from aiobus.sync import Notifier

__all__ = ["Recording", "record"]

log = logging.getLogger("aiobus.recorder")
DRAIN_SECONDS = 5.0
"""At the end, for what has come and is not recorded yet, and for the disk."""


def record(
    bus: AsyncEventBus,
    path: str | os.PathLike[str],
    *,
    types: Types = "*",
    key: Keys = None,
    since: Since = None,
    keep: Keep = None,
    sync: Sync = "process",
) -> "Recording":
    """Record what `bus` hears of `types` and `key`, its own events among it, and all its system
    events, so its gaps and drops as well::

        async with record(bus, "desk.db"):
            await bus.wait_closed()

    If the file is there, the recording goes on behind what is in it: what its sources still have in
    their histories is fetched, and the rest is a recorded gap. Of other sources it
    begins as `subscribe` does with `since`. `keep` removes the oldest events beyond so many bytes
    or a timedelta. `sync`: "process" survives the end of the process, "power" a power failure.
    Raises ValueError and TypeError for wrong arguments.
    """
    if not isinstance(bus, AsyncEventBus):
        raise TypeError(f"bus={bus!r}: an AsyncEventBus is needed")
    return Recording(bus, path, types, key, since, keep, sync)


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
    ) -> None:
        self.error: JournalError | None = None
        """Why it has ended before its time."""
        self._bus = bus
        self._types, self._key, self._since = types, key, since
        self._writer = JournalWriter(
            path, keep=keep, sync=sync, ends_with_error=True, argument="path"
        )
        self._last: dict[tuple[str, int], int] = {}
        """The last seq of each source that is in the file or on its way there."""
        self._appended = self._committed = 0
        self._changed = Notifier()
        self._subscriptions: list[Subscription] = []
        self._is_open = False

    def __repr__(self) -> str:
        state = "ended" if self.error else "open" if self._is_open else "closed"
        return f"<Recording {self._writer.path} {state}>"

    async def __aenter__(self) -> Self:
        """Open the file and subscribe. Raises JournalInUse, JournalCorrupt, and JournalError for a
        file that belongs to a bus (`journal=`), and BusError if entered before. If the bus is not
        open, raises BusClosed or WrongLoop and makes no file.
        """
        self._bus._life.check()
        if self._subscriptions or self._is_open:
            raise BusError(f"{self!r} was entered before: call record() for another")
        try:
            await in_thread(self._writer.open)
            self._last = await in_thread(self._writer.last_of_sources)
            if self._last and clock.is_virtual():
                raise JournalError(
                    f"{self._writer.path} has events already: in virtual time a source has the same"
                    " numbers in each run, so give each run a file of its own"
                )
            self._writer.start(self._note_committed)
            self._is_open = True
            # A later start of a source comes later in the file.
            after = {name: event_id(name, epoch, seq) for (name, epoch), seq in self._last.items()}
            await self._subscribe(SYSTEM)
            # Old orders are recorded, and not executed: their age does not matter.
            max_age = None if self._since is None else math.inf
            await self._subscribe(
                self._types,
                key=self._key,
                since=self._since,
                after=after.values(),
                max_age=max_age,
            )
        except BaseException:
            await self._close()
            raise
        return self

    async def flush(self, timeout: float = 5.0) -> None:
        """Wait until what has come to the recording by now is in the file. Raises TimeoutError
        after `timeout` seconds, the JournalError that has ended the recording, and WrongLoop in a
        forked child.
        """
        self._bus._life.check_process()
        ends = [(each, each.begun + each.pending) for each in self._subscriptions]
        async with asyncio.timeout(timeout):
            while self.error is None and any(
                each.handled < end and not each.closed for each, end in ends
            ):
                await self._changed.wait()
            last = self._appended
            while self._committed < last and self.error is None:
                await self._changed.wait()
        if self.error is not None:
            raise self.error

    async def _subscribe(self, types: Types, **options: Unpack[SubscribeKeywords]) -> None:
        subscription = await self._bus.subscribe(types, self._record, **options)
        self._subscriptions.append(subscription)

    async def _record(self, event: Event[Any]) -> None:
        try:
            await self._put(event)
        finally:
            self._changed.wake()

    async def _put(self, event: Event[Any]) -> None:
        source = (event.source, event.epoch)
        if not event.type.startswith(RESERVED):
            if event.seq <= self._last.get(source, 0):
                text = f"{event.source} uses numbers again that are in {self._writer.path}"
                self._bus._reports.trouble(text, f"{text}: {event.id} is not recorded")
                return
            self._last[source] = event.seq
        while not self._writer.room and self.error is None:
            await self._changed.wait()
        if self.error is not None:
            return
        place, what = (event.seq, event.timestamp), (event.type, event.key)
        cause = (event.cause,) if event.cause else ()
        row = orjson.dumps((*place, *what, event.data, *cause))  # as it came
        try:
            self._writer.append(Entry(*source, *place, *what, event.cause, row))
        except JournalError as error:
            self._end(error)
        else:
            self._appended += 1

    def _note_committed(self, count: int, error: BaseException | None) -> None:
        self._committed += count
        if isinstance(error, JournalError):
            self._end(error)
        self._changed.wake()

    def _end(self, error: JournalError) -> None:
        """The file takes nothing more: what is in it stays, and the bus goes on."""
        if self.error is None:
            self.error = error
            self._bus._reports.recording_ended(self._writer.path, error)
            self._changed.wake()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Record what has come, and close the file. Nothing in a forked child."""
        if not self._bus._life.is_forked:
            await self._close()

    async def _close(self) -> None:
        """If it is cancelled, what was not recorded by then is not, and all is closed the same."""
        try:
            for subscription in self._subscriptions:
                await self._bus._subscriptions.finish(subscription, DRAIN_SECONDS)
        finally:
            for subscription in self._subscriptions:
                self._bus._subscriptions.drop(subscription)
            self._is_open = False
            closing = asyncio.ensure_future(in_thread(self._writer.close))
            await asyncio.wait([closing], timeout=DRAIN_SECONDS)
            if not closing.done():
                log.error("%s is left to a disk that does not answer", self._writer.path)
