"""A keeper: a bus that holds the newest state of others on disk, and answers for them while they
are gone.

Owns the file, the subscription, and the order of the two: what came is committed, then it may be
told. What is told is decided in `kept`. docs/how-to/keeper.md says what to expect of it.
"""

import asyncio
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from contextvars import Context
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Self

import orjson

from aiobus import system
from aiobus.bus import AsyncEventBus, parts_of
from aiobus.codec import decode
from aiobus.errors import BusError, CommitFailed, JournalError
from aiobus.event import Event, EventType
from aiobus.journal.writer import in_thread
from aiobus.keeper.file import KeptFile
from aiobus.keeper.kept import DOUBTFUL, ENDED, SEEN_OUT, Draft, Held, Kept
from aiobus.limits import KEEPER
from aiobus.mesh.transport import MeshTransport
from aiobus.options import Keys, SubscriptionOptions, Types
from aiobus.query import RESERVED, Query
from aiobus.rows import Source
from aiobus.sequence import UNKNOWN
from aiobus.strand import running
from aiobus.subscription import Taken, are_rows

__all__ = ["Keeper"]

NAME, AGAIN = "aiobus.keeper", "aiobus.keeper again"
"""Of its subscriptions. No function has such a name."""
MOST_CHANGES = 1_024
"""Of one commit."""
RETRY_SECONDS = 1.0
"""Between two attempts to write to a full disk."""
REPAIR_SECONDS = 30.0
CLOSE_SECONDS = 5.0
TYPES = EventType.POSITION, EventType.HALT
ENDS: Mapping[str, str] = {EventType.HALT: EventType.RESUME}

log = logging.getLogger("aiobus.keeper")


class Keeper:
    """Holds the newest event of each publisher, type and key in the file at `path`, and answers
    `since="last"` for publishers that are gone::

        async with Keeper("ipc://desk", "state.db") as keeper:
            await keeper.bus.wait_closed()

    `bus`: the URL of a desk, or a bus named "keeper" that was not started and has no journal; the
    keeper starts and closes it. `types` and `key`: what is held, as of `subscribe` without "*"; by
    default POSITION and HALT. `ends`: by type, the type whose event ends those of the same key; by
    default RESUME ends HALT. `most`: how many events are held; further keys are not, which is
    counted in `refused` and told as `aiobus.error`.

    While the start of a publisher is there that published an event, the keeper says nothing of it;
    once that has ended, it answers, until the publisher publishes that type and key again. A kept
    event has `source` "keeper", the `timestamp` of the original, its `id` as `cause`, and `past`.

    Entering it waits until the buses that are there have told their state. It raises NameInUse if
    the desk has a keeper, JournalInUse if another has the file, StateCorrupt if it is damaged, and
    what `AsyncEventBus.start` raises. A keeper that cannot write any more ends its bus with
    JournalFailed, which is raised in the body. Cancelling leaves nothing open. Wrong arguments
    raise ValueError and TypeError, and code that is recorded with `attach` gets a BusError.
    """

    def __init__(
        self,
        bus: AsyncEventBus | str,
        path: str | os.PathLike[str],
        *,
        types: Types = TYPES,
        key: Keys = None,
        ends: Mapping[str, str] = ENDS,
        most: int = 16_384,
    ) -> None:
        if running() is not None:
            raise BusError("Keeper() in code that is recorded or replayed: give it its own process")
        if isinstance(bus, str):
            bus = AsyncEventBus(bus, name=KEEPER)
        if not isinstance(bus, AsyncEventBus):
            raise TypeError(f"bus={bus!r}: the URL of a desk, or an AsyncEventBus, is needed")
        if bus.name != KEEPER:
            hint = f"a desk has one keeper, whose bus has the name {KEEPER!r}: give name={KEEPER!r}"
            raise ValueError(f"bus={bus!r}: {hint}")
        parts = parts_of(bus)
        if not isinstance(parts.transport, MeshTransport):
            raise ValueError(f"bus={bus!r}: it has no peers whose state it could hold; use ipc://")
        if parts.durable is not None:
            raise ValueError(f"bus={bus!r}: a keeper has a file of its own, and no journal=")
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            raise ValueError(f"most={most!r}: a whole number of events from 1 is needed")
        self.bus = bus
        """Its bus, for `wait_closed`, or to subscribe to `aiobus.error`."""
        self.path = os.fspath(path)
        self.unseen: tuple[str, ...] = ()
        """Publishers that ended while the keeper was down, so what they published last is not
        known. It serves what it had of them.
        """
        self._parts, self._publisher = parts, parts.publisher
        held, ends = _checked(types, key, ends)
        self._kept = Kept(held, ends, most, self._publisher.draw_number)
        self._wanted = [
            *held.types,
            *ends.values(),
            system.GAP,
            system.PEER_JOINED,
            system.PEER_LEFT,
        ]
        self._data = [*held.types, *ends.values()]
        self._key = key
        self._file = KeptFile(path)
        self._draft = Draft(self._kept)
        """What came and is not committed yet."""
        self._noted = self._seen = 0
        """The last events of its own bus that are drafted, and taken in: who has joined, and who
        has left.
        """
        self._is_ready = False
        self._writing = asyncio.Lock()
        self._repairing: asyncio.Task[None] | None = None
        self._is_in_doubt = False
        self._stack = AsyncExitStack()

    def __repr__(self) -> str:
        state = "open" if self._is_ready else "closed"
        return f"<Keeper {self.path} {state} held={len(self.held)}>"

    @property
    def held(self) -> list[Event[Any]]:
        """What it holds, as it was published, the oldest first: a copy."""
        held = sorted(self._kept, key=lambda each: (each.time, each.origin, each.seq))
        return [
            Event(
                each.type,
                orjson.loads(each.data),
                each.time,
                key=each.key,
                source=each.origin,
                epoch=each.epoch,
                seq=each.seq,
                past=True,
            )
            for each in held
            if not each.flags & ENDED and self._kept.is_watched(each)
        ]

    @property
    def refused(self) -> int:
        """Events that were not held, because there are `most` already, or 64 MiB."""
        return self._kept.refused

    @property
    def doubtful(self) -> int:
        """Events of those held that may be old, since the keeper has lost some of their source."""
        return sum(bool(each.flags & DOUBTFUL) for each in self._kept)

    # Its life.

    async def __aenter__(self) -> Self:
        """Open the file, start the bus, and learn the state of those that are there."""
        try:
            await self._open()
        except BaseException as error:
            await self._stack.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def _open(self) -> None:
        file = self._file
        self._stack.push_async_callback(in_thread, file.close)
        await in_thread(file.open)
        for each in file.held:
            self._kept.put(each.place, each)
        self._kept.lost = set(file.lost)
        self._kept.is_current = self._is_current
        self._publisher.kept = self._kept  # before the first question can come
        await self._stack.enter_async_context(self.bus)
        self._stack.push_async_callback(self._stop)
        self._draft = Draft(self._kept)
        self._noted = self._seen = (
            self._publisher.seq
        )  # who is there by now is known to the transport
        options = SubscriptionOptions.of(
            "subscribe", self._wanted, {"key": self._key, "since": "last", "max_age": math.inf}
        )
        subscriptions = self._parts.subscriptions
        self._subscription = await subscriptions.serve_batches(NAME, options, self._take)
        with suppress(TimeoutError):  # of a peer that does not answer
            await subscriptions.until_handed(self._subscription, CLOSE_SECONDS)
        self._name_unseen(file.written)
        self._is_ready = True
        self._kept.on_current()

    def _name_unseen(self, written: float | None) -> None:
        links = self.bus.peers
        there = {(each.name, each.epoch) for each in links}
        unseen = {
            each.origin
            for each in filter(self._kept.is_watched, self._kept)
            if each.source not in there and not each.flags & (SEEN_OUT | ENDED)
        }
        self.unseen = tuple(sorted(unseen))
        if unseen and written is not None:
            last = datetime.fromtimestamp(written).isoformat(" ", "seconds")
            self._report(
                f"these ended while it was down: {', '.join(self.unseen)}. What they published last"
                f" is not known; what was held of them is served. It was written last at {last}"
            )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take in what has come, close the bus and then the file. Raises the failure of the bus."""
        if not self._parts.life.is_forked:
            await self._stack.__aexit__(kind, error, trace)

    async def _stop(self) -> None:
        if self._repairing is not None:
            self._repairing.cancel()
            await asyncio.wait([self._repairing])
        if (subscription := getattr(self, "_subscription", None)) is not None:
            await self._parts.subscriptions.finish(subscription, CLOSE_SECONDS)
        self._is_ready = False

    def _is_current(self) -> bool:
        """True if all that was received of a publisher before it left was taken in."""
        history = self._publisher.history
        rings = [history.ring(type) for type in (system.PEER_JOINED, system.PEER_LEFT)]
        newest = [ring.seq(ring.end - 1) for ring in rings if ring is not None and len(ring)]
        return self._is_ready and self._seen >= max(newest, default=0)

    # What comes.

    async def _take(self, taken: Taken) -> None:
        try:
            await self._take_in(taken)
        except Exception as error:
            # Else it would go on without these events, and tell what is older.
            failure = BusError(f"{self!r} cannot take in what came: {error!r}")
            failure.__cause__ = error
            self._parts.reports.fail(failure)
            raise

    async def _take_in(self, taken: Taken) -> None:
        async with self._writing:
            for event in self._decoded(taken):
                if event.type.startswith(RESERVED):
                    if event.seq > self._noted or event.type == system.GAP:
                        self._note(self._draft, event)
                        self._noted = max(self._noted, event.seq)
                elif event.source != KEEPER:
                    held = _held(event)
                    self._draft.take(held)
                    self._draft.end(held)
            # What waits is given here next: one commit for all costs little more than for one.
            is_last = not any(
                each.pending
                for each in self._parts.subscriptions
                if each.name.startswith(f"{NAME}(")
            )
            if is_last or len(self._draft.changes) >= MOST_CHANGES:
                await self._write()

    async def _write(self) -> None:
        """Commit what was drafted."""
        if await self._commit(self._draft):
            self._draft = Draft(self._kept)
            self._seen = self._noted
            self._kept.on_current()

    def _decoded(self, taken: Taken) -> Iterator[Event[Any]]:
        publisher = self._publisher
        yield from decode(taken, publisher.name, publisher.epoch, 0) if are_rows(taken) else taken

    def _note(self, draft: Draft, event: Event[Any]) -> None:
        data = event.data
        if event.type == system.PEER_LEFT:
            draft.see_out((data["name"], data["epoch"]))
        elif event.type == system.PEER_JOINED:
            draft.see_back((data["name"], data["epoch"]))
        elif event.type == system.GAP and data["reason"] != UNKNOWN:
            source: Source = data["source"], data["epoch"]
            if draft.doubt(source):
                self._report(f"what it holds of {source[0]} may be old: {data['reason']}")
                self._is_in_doubt = True
                if self._repairing is None or self._repairing.done():
                    self._repairing = asyncio.get_running_loop().create_task(
                        self._repair(), name="aiobus keeper asks again", context=Context()
                    )

    async def _commit(self, draft: Draft) -> bool:
        """Write the changes and apply them. While the disk is full, try again. False if the bus
        ends.
        """
        file = self._file
        while draft:
            try:
                await in_thread(partial(file.commit, draft.changes, draft.lost))
                break
            except CommitFailed as error:
                self._is_ready, was_ready = False, self._is_ready
                try:
                    self._report(f"it holds and serves nothing until it can write: {error.reason}")
                    await asyncio.sleep(RETRY_SECONDS)
                finally:
                    self._is_ready = was_ready
            except JournalError as error:
                self._is_ready = False
                self._parts.reports.fail(error)
                return False
        draft.apply()
        for each in draft.refused[:1]:
            text = f"{each.id} ({each.type} {each.key!r}) is not held: there is no room"
            self._report(f"{text}, {self._kept.refused} so far")
        return True

    def _report(self, text: str) -> None:
        self._parts.reports.keeper(self.path, text)

    async def _repair(self) -> None:
        """Ask those that are there for their newest once more, and be sure of these again."""
        subscriptions = self._parts.subscriptions
        options = SubscriptionOptions.of(
            "subscribe", self._data, {"key": self._key, "since": "last", "max_age": math.inf}
        )
        while self._is_in_doubt:
            self._is_in_doubt = False
            subscription = await subscriptions.serve_batches(AGAIN, options, self._check)
            with suppress(TimeoutError):
                await subscriptions.until_handed(subscription, REPAIR_SECONDS)
            subscriptions.drop(subscription)

    async def _check(self, taken: Taken) -> None:
        async with self._writing:
            for event in self._decoded(taken):
                if event.source != KEEPER:
                    self._draft.check(_held(event))
            await self._write()

    async def forget(self, types: Types, *, key: Keys = None, source: str | None = None) -> int:
        """Hold what is there of these types and keys no more, of all publishers or of `source`
        alone; return how many events that is. It is on the disk on return. Raises TypeError and
        ValueError for wrong types or keys, and BusClosed if the keeper is not open.
        """
        self._parts.life.check()
        wanted = Query.of(types, key)
        async with self._writing:
            count = self._draft.forget(wanted, source)
            await self._write()
        return count


def _held(event: Event[Any]) -> Held:
    source = event.source, event.epoch, event.seq
    return Held(*source, str(event.type), event.key, event.timestamp, orjson.dumps(event.data))


def _checked(types: Types, key: Keys, ends: Mapping[str, str]) -> tuple[Query, dict[str, str]]:
    """What is held, and what ends it. Raises TypeError and ValueError."""
    held = Query.of(types, key)
    if held.every or held.reserved:
        raise ValueError(f"types={types!r}: name the types whose newest event is to be held")
    for type, ending in ends.items():
        query = Query.of([type, ending])
        if query.every or query.reserved or type == ending:
            raise ValueError(f"ends={ends!r}: a type, and another that ends it, are needed")
    return held, {str(type): str(ends[type]) for type in ends if type in held.types}
