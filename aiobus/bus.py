"""`AsyncEventBus`: everything a user calls.

Puts the parts together and says what each call promises. What is matched, encoded, kept, handed
over or waited for is decided in the modules below.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from functools import partial
from os import PathLike
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self, Unpack, overload

from aiobus import clock as epochs
from aiobus.attendance import Attendance
from aiobus.delivery import caused_by
from aiobus.diagnostics import Diagnostics
from aiobus.dispatcher import Callback, check_callback
from aiobus.durable import Durable
from aiobus.errors import BusClosed, BusError, QueueFull
from aiobus.event import Event, Topic
from aiobus.journal.retention import Keep
from aiobus.journal.store import Sync
from aiobus.journal.writer import JournalWriter
from aiobus.keyring import Keyring
from aiobus.lifecycle import Lifecycle, State
from aiobus.limits import Limits
from aiobus.options import (
    Keys,
    Names,
    StreamKeywords,
    SubscribeKeywords,
    SubscriptionOptions,
    Types,
    Where,
    check_name,
    check_timeout,
    takes,
)
from aiobus.pace import Pace
from aiobus.payload import Payload
from aiobus.presence import Peer
from aiobus.publisher import Publisher, Route
from aiobus.query import Query, bad_name, plain
from aiobus.replies import Replies, requested
from aiobus.requests import Requests
from aiobus.stats import BusStats
from aiobus.strand import Tape, running
from aiobus.stream import EventStream
from aiobus.subscriber import Subscriber
from aiobus.subscription import Subscription
from aiobus.sync import TURN_SECONDS, TimeSlice, wait_for_space
from aiobus.transport import Transport
from aiobus.url import adapter, check_no_address

__all__ = [
    "AsyncEventBus", "Handler", "Parts", "Publishable", "close_at_once", "is_in_use", "parts_of",
    "refusing", "unheard", "unmet", "watch",
]  # fmt: skip

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    R = TypeVar("R", default=Any)
    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    R = TypeVar("R")
    T = TypeVar("T")
F = TypeVar("F", bound=Callback)
Handler = Callable[[Event[T]], R]


class Publishable(Protocol):
    """An Event, as what publishes one takes it. Were it an Event[Any], then mypy and pyright would
    pass an Event(TICK, ...) of other data than that of the topic, since Any is the context then.
    """

    key: str
    timestamp: float
    cause: str
    source: str
    epoch: int
    seq: int
    past: bool

    @property
    def id(self) -> str:
        """See `Event.id`."""
        ...


CLOSE_SECONDS = 5.0
DRAIN_SHARE = 0.8
"""Of the time `close` has, the part in which handlers may finish; in the rest they are cancelled.
"""

SAID = "publish %s %s key=%r cause=%s"
OPEN = State.OPEN  # an Enum is slow to ask for its members, and each publish does

log = logging.getLogger("aiobus.bus")


class AsyncEventBus:
    """Publish events and hand them to coroutines. One bus belongs to one event loop, one thread and
    one process.

    `async with AsyncEventBus() as bus:` starts and closes it. What it promises: within one
    subscription the events of one source arrive once, in the order published, or their absence is
    reported; a slow, hung or failing handler delays no other.

    `url`: `inproc://`, this bus object alone, without sockets; `ipc://desk`, every bus of this user
    on this machine that says `desk`; `tcp://127.0.0.1:7555`, every bus that meets at this address.
    `name`: 1-64 characters of A-Z a-z 0-9 . _ -, by default made up at the start; it is the
    `source` of what is published here. `on_error`: "log" goes on after a handler failed; "raise",
    for tests, raises the first failure in the `async with` body and from `settle`. `limits`: what
    may be held in memory. `pace`: `publish` waits before history would forget what a reader (a peer
    that listens, or a subscription of this bus that lags) has not taken in, so a replay at full
    rate loses nothing. A reader that takes in nothing for `Limits.pace_seconds` is left behind, and
    `aiobus.left_behind` says so. `journal`: a file in which each event is committed before any
    subscription receives it; the next start goes on with the same epoch, unless `new_epoch`. With
    it, `publish` waits for the commit, history reaches back into the file, and `pace` has nothing
    to wait for. `keep` removes its oldest events beyond so many bytes or a timedelta; `sync` is
    what a commit survives: "power", a power failure as well, or "process", the end of the process.
    `observer`: this bus looks on; it may publish and ask, but no other bus waits for it, whether it
    runs or is stopped: no `start`, `subscribe`, `flush`, `close` or paced `publish`. Nor is it told
    of in system events, and its subscriptions answer no request ("block" is "catch_up"). It has no
    journal. `keyring`: who is a member of this desk, on `tcp://`; no other bus can link.
    None takes the directory in the environment variable AIOBUS_KEYRING, if it is set. `listen` and
    `advertise` are for `tcp://` across hosts: `host` or `host:port` where this bus listens (an
    address of this host, or `0.0.0.0` or `[::]` for all; by default a free port of the address that
    the other hosts see), and what the others are told instead, if they reach it by another address,
    name or port. Wrong values raise ValueError, limits that are no Limits TypeError.
    """

    def __init__(
        self,
        url: str | Transport = "inproc://",
        *,
        name: str | None = None,
        on_error: Literal["log", "raise"] = "log",
        limits: Limits | None = None,
        pace: bool = False,
        journal: str | PathLike[str] | None = None,
        keep: Keep = None,
        sync: Sync = "power",
        new_epoch: bool = False,
        observer: bool = False,
        keyring: Keyring | None = None,
        listen: str | None = None,
        advertise: str | None = None,
    ) -> None:
        if name is not None and (reason := bad_name(name)):
            raise ValueError(f"name={reason}")
        if on_error not in ("log", "raise"):
            raise ValueError(f"on_error={on_error!r}: 'log' or 'raise' is needed")
        if limits is None:
            limits = Limits()
        elif not isinstance(limits, Limits):
            hint = "such as Limits(history_events=1000)"
            raise TypeError(f"limits={limits!r}: aiobus.Limits is needed, {hint}")
        if keyring is not None and not isinstance(keyring, Keyring):
            hint = "such as Keyring.load('keys')"
            raise TypeError(f"keyring={keyring!r}: aiobus.Keyring is needed, {hint}")
        if keyring is not None and isinstance(url, Transport):
            raise ValueError(f"keyring={keyring!r}: it is for tcp:// URLs, and {url} has no keys")
        self.url = str(url)
        self.name = name or ""
        """The `source` of every event published here; "" before the start that makes it up."""
        if isinstance(url, Transport):
            check_no_address(url, listen, advertise)
            self._transport = url
        else:
            self._transport = adapter(url, limits, keyring, listen=listen, advertise=advertise)
        self._life = Lifecycle(
            self.name, lambda: self._subscriptions.at_work() is not None, self.url
        )
        if not isinstance(observer, bool):
            raise TypeError(f"observer={observer!r}: True or False is needed")
        self._publisher = Publisher(self.name, limits)
        self._publisher.observes = observer
        raising = self._fail if on_error == "raise" else None
        self._reports = Diagnostics(self._publisher, raising, self._end)
        # A test must not depend on how fast the machine is: turns are counted in events alone.
        is_timed = raising is None
        self._subscriptions = Subscriber(
            self._publisher,
            self._reports,
            self._transport,
            self._life,
            is_timed=is_timed,
        )
        self._turn_seconds = TURN_SECONDS if is_timed else math.inf
        readers = () if observer else self._subscriptions
        parts = (self._publisher, readers, self._transport, self._reports, self._life)
        # A journal forgets nothing that a reader lacks.
        self._pace = Pace(*parts, limits) if pace and journal is None else None
        self._durable: Durable | None = None
        if journal is not None:
            if observer:
                hint = "an observer keeps no journal; leave one of the two out"
                raise ValueError(f"journal={journal!r} and observer=True: {hint}")
            if name is None:
                raise ValueError(
                    f"journal={journal!r}: give the bus a name, since a file is of one"
                )
            if not isinstance(new_epoch, bool):
                raise TypeError(f"new_epoch={new_epoch!r}: True or False is needed")
            writer = JournalWriter(journal, keep=keep, sync=sync)
            self._durable = Durable(writer, self._publisher, limits, self._reports, self._life)
        elif new_epoch or keep is not None or sync != "power":
            given = {"keep": keep, "sync": sync, "new_epoch": new_epoch}
            raise ValueError(f"{given}: these are for a bus with a journal, journal=")
        self._new_epoch = new_epoch
        self._tape: Tape | None = None
        """Is asked in place of this bus if watched code calls it."""
        self._context = Context()  # empty: what belongs to the bus is caused by no event
        self._is_in_tick = self._is_debugged = False
        self._requests = Requests(
            self._publisher,
            self._subscriptions,
            self._route,
            self._publish_requested,
            self._transport,
        )
        self._replies = Replies()
        self._attendance = Attendance(
            self._life, self._publisher, self._subscriptions, self._transport
        )
        self._registered: list[tuple[Callback, SubscriptionOptions]] = []
        self._life.on_fork = self._leave_process

    def __repr__(self) -> str:
        pending = sum(each.pending for each in tuple(self._subscriptions))
        return (
            f"<AsyncEventBus {self._life.name} {self.url} {self._life.state.value}"
            f" published={self._published} subscriptions={len(self._subscriptions)}"
            f" pending={pending}>"
        )

    # Life.

    async def start(self) -> None:
        """Connect. On return every other bus has this one's queries and this one has theirs; `on`
        callbacks are live.

        Raises NameInUse when another bus has this name, also when that may be frozen; BusError when
        something else than a bus answers at a tcp address. Where an address does not answer the bus
        starts all the same and may be alone: `aiobus.unreached` and `stats()` say so, and if it
        then meets an older bus of its name, it fails with NameInUse.

        A bus starts once; again raises BusError. Cancelling or failing leaves it closed, with
        nothing left open.
        """
        life = self._life
        if life.state is not State.NEW:
            life.check_process()
            raise BusError(
                f"{life.name} was started before and is {life.state.value}: a bus starts once, and"
                " belongs to one asyncio.run(); make a new AsyncEventBus for the next"
            )
        life.state = State.STARTING
        if not self.name:  # not sooner: a process forked before the start gets another
            self.name = life.name = self._publisher.name = f"bus-{epochs.token()}"
        log.debug("start %s", self.name)
        self._loop = life.bind_to_loop()
        self._turn = TimeSlice(self._turn_seconds)
        self._reports.watch.start(self.name)
        self._publisher.epoch = epochs.fresh()
        self._attendance.since = epochs.time()
        try:
            if self._durable is not None:
                await self._durable.open(new_epoch=self._new_epoch)
            await self._transport.start(self._publisher, self._reports)
            for callback, options in self._registered:
                await self._subscriptions.serve(_name(callback), options, callback)
            life.raise_failure()
            if life.state is not State.STARTING:
                raise BusClosed(f"{self.name} was closed while it started")
        except BaseException as error:
            life.note_twin(error)
            await self._close(CLOSE_SECONDS, drain=False)
            life.raise_failure()
            raise
        life.state = State.OPEN
        log.info("%s started on %s%s", self.name, self.url, self._attendance.said())

    async def close(self, timeout: float = CLOSE_SECONDS) -> list[str]:
        """Stop publishing, let handlers finish what has arrived, tell the others, and end. Returns
        within `timeout` seconds.

        Returns the names of peers that did not confirm they have everything, and each rendezvous
        address that does not answer. What was not handed to a handler here is logged with its
        count, and a handler that is cut off with its event. Once handlers are done, the bus's own
        events (`aiobus.peer_left`) come no more. Handlers may publish until they are done, others
        get BusClosed. Inside a handler it does not wait for that handler. Cancelling stops the
        waiting; the closing goes on by itself. Again: waits for the same end.
        """
        check_timeout(timeout)
        if self._tape is not None and (strand := running()) is not None:
            return await self._tape.wait(strand, "close", partial(self.close, timeout), timeout)
        return await self._close(timeout, drain=True)

    async def _close(self, timeout: float, *, drain: bool) -> list[str]:
        exempt = self._subscriptions.at_work()
        return await self._life.close(lambda: self._shut(timeout, exempt, drain))

    async def _shut(self, timeout: float, exempt: Subscription | None, drain: bool) -> list[str]:
        log.debug("close %s", self.name)
        end = self._loop.time() + timeout
        missing: set[str] = set()
        try:
            try:
                try:
                    if drain:
                        await self._until_committed(self._loop.time() + timeout * DRAIN_SHARE)
                        await self._subscriptions.until_idle(timeout * DRAIN_SHARE, exempt)
                        # Else an event that another task publishes may come just as this ends.
                        self._subscriptions.hear_no_more()
                    self._reports.hush()
                    if not await self._until_committed(end):
                        missing.add(self.name)
                    flushed = self._publisher.public_seq
                    missing.update(await self._transport.flush(max(0.0, end - self._loop.time())))
                finally:
                    self._end_all(exempt)
                if not await self._until_committed(end):
                    missing.add(self.name)
                if self._publisher.public_seq > flushed:  # by a handler that was still at work
                    missing.update(await self._transport.flush(max(0.0, end - self._loop.time())))
            finally:
                missing.update(await self._transport.close(max(0.0, end - self._loop.time())))
        finally:
            try:
                await self._subscriptions.ended(max(0.0, end - self._loop.time()), exempt)
            finally:
                if self._durable is not None:
                    await self._durable.close(end - self._loop.time())
        log.info("%s closed", self.name)
        return sorted(missing)

    def _end_all(self, exempt: Subscription | None) -> None:
        """What must happen however the bus ends. If a Ctrl-C falls into a step, those behind it are
        done all the same: `close` would wait for what was not ended.
        """
        steps = iter(
            (
                self._life.end,
                partial(self._requests.close, self.name),
                self._publisher.room.wake,
                partial(self._subscriptions.close, exempt),
                self._reports.watch.close,
                self._reports.close,
            )
        )
        try:
            for step in steps:
                step()
        finally:
            for step in steps:
                step()

    async def _until_committed(self, end: float) -> bool:
        """Wait until the journal has what was published. False at `end` by the loop's time."""
        return self._durable is None or await self._durable.until_committed(
            max(0.0, end - self._loop.time())
        )

    async def wait_closed(self) -> None:
        """Wait until the bus has closed; raise its failure. Cancelling only stops the waiting."""
        if self._tape is not None and (strand := running()) is not None:
            await self._tape.wait(strand, "wait_closed", self.wait_closed)
            return
        await self._life.wait_closed()

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        self._life.enter_body()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close: after a normal end handlers may finish, after an exception they are cancelled at
        once.

        Raises the failure that ended the body, if that is what ended it. In a forked child nothing
        is closed: the bus is its parent's.
        """
        if self._life.is_forked:  # it is its parent's to close
            return
        try:
            await self._close(CLOSE_SECONDS, drain=error is None)
        except asyncio.CancelledError:
            if not self._life.has_cancelled_body:
                raise
            await self._close(CLOSE_SECONDS, drain=False)  # our own cancelling, arriving late
        is_ours = self._life.leave_body()
        if error is not self._life.failure:
            self._life.raise_failure(again=is_ours)

    def _leave_process(self) -> None:
        """Hand over and say nothing in a forked child, whose loop may run on: its parent does."""
        self._reports.watch.close()
        self._reports.leave_process()
        self._subscriptions.leave_process()

    def _fail(self, error: BaseException) -> None:
        self._subscriptions.fail(error)

    def _end(self, error: BusError) -> None:
        """Fail, and close without waiting for handlers: the body of `async with` raises `error`."""
        self._life.note_twin(error)
        self._fail(error)
        ending, name = self._close(CLOSE_SECONDS, drain=False), f"aiobus {self.name} end"
        self._ending = self._loop.create_task(ending, name=name, context=Context())

    # Publishing.

    async def publish(self, event: Publishable) -> Event[Any]:
        """Encode, number, keep and hand out `event`; return the same object, stamped with source,
        epoch, seq and cause.

        All of that happens before the first wait, so a cancelled publish has published. Only with
        `pace=True` it may wait before, for readers: if it is cancelled then, nothing is published,
        and `event.seq` stays as it was. With a journal, the same holds while 4,096 events (or 32
        MiB) wait for their commit, or no numbers are reserved: it waits for room. Otherwise it is
        numbered before the first wait, and handed out once it is committed, whether this is
        cancelled or not; CommitFailed and JournalFailed say that it was not. It waits for room in
        full "block" inboxes of this process, and lets the loop turn now and then, so that a loop
        that only publishes starves no other task. Raises EncodeError (no number is used up),
        BusClosed, WrongLoop, TypeError for what is no Event.
        """
        sent: Event[Any] = event  # type: ignore[assignment] # nothing else has these fields
        if self._tape is not None and (strand := running()) is not None:
            return await self._tape.publish(strand, sent)
        life = self._life
        # Only one loop can run in a thread, so it need not be asked which one does: Python 3.11
        # makes a system call of that.
        if life.state is not OPEN or get_ident() != life.thread or not life.is_running():
            life.check()
        if not self._is_in_tick:
            self._begin_tick()
        try:
            if self._durable is None:
                route = self._publisher.publish(sent)
            else:
                route = await self._durable.publish(sent)
        except QueueFull:
            if self._pace is None:
                raise
            route = await self._pace.publish(sent)
        if self._is_debugged:
            log.debug(SAID, route.type, sent.id, route.key, sent.cause)
        for gate in route.blocking:
            if gate.is_over():
                await wait_for_space(route.blocking)
                break
        turn = self._turn
        turn.left -= 1
        # With a journal, each publish has waited for its commit, and the loop has turned.
        if self._durable is None and (turn.left <= 0 or turn.elapsed() > turn.until):
            await asyncio.sleep(0)
        return sent

    def publish_nowait(self, event: Publishable) -> Event[Any]:
        """The same without ever waiting, also for the commit of a journal: if that fails,
        `aiobus.error` names the event. Raises QueueFull, with nothing published, where a "block"
        inbox is full, where `publish` would wait for readers (`pace=True`), and where 4,096 events
        wait for their commit.
        """
        sent: Event[Any] = event  # type: ignore[assignment]
        if self._tape is not None and (strand := running()) is not None:
            return self._tape.publish_nowait(strand, sent)
        # What waits for its commit may go into the same inboxes.
        coming = 0 if self._durable is None else self._durable.uncommitted
        for gate in self._route(sent).blocking:
            if gate.is_full(coming):
                raise QueueFull(gate.name, gate.maxsize)
        if self._durable is None:
            self._publish(sent)
        else:
            self._durable.publish_nowait(sent)
        return sent

    def _route(self, event: Event[Any]) -> Route:
        """Where the event would go, if it can be published now."""
        self._life.check()
        if not self._is_in_tick:
            self._begin_tick()
        return self._publisher.route(event)

    def _publish(self, event: Event[Any]) -> Route:
        """Publish what `_route` has let pass just now."""
        route = self._publisher.publish(event)
        if self._is_debugged:
            log.debug(SAID, route.type, event.id, route.key, event.cause)
        return route

    async def _publish_requested(self, event: Event[Any], stamped: Callable[[], object]) -> Route:
        """The same, once history may forget what it has to for that, and the journal has it."""
        if self._durable is not None:
            return await self._durable.publish(event, stamped)
        try:
            route = self._publish(event)
        except QueueFull:
            if self._pace is None:
                raise
            route = await self._pace.publish(event)
        stamped()
        return route

    def _begin_tick(self) -> None:
        """The first event in this turn of the loop."""
        self._is_in_tick = True
        self._turn.renew()
        self._is_debugged = log.isEnabledFor(logging.DEBUG)
        self._loop.call_soon(self._end_tick, context=self._context)

    def _end_tick(self) -> None:
        self._is_in_tick = False

    async def request(
        self,
        event: Publishable,
        reply_types: Topic[T] | Names,
        *,
        to: str | None = None,
        timeout: float | None = 5.0,
        payload: type[T] | Payload = None,
    ) -> Event[T]:
        """Publish `event` and return the first event of `reply_types` whose `cause` is its id: what
        the handler of `event` publishes, or what `reply` does. What the caller publishes next does
        not name the reply as its cause, unless it gives `Event(cause=reply.id)`.

        `to`: the name of a bus, whose reply alone counts. The event goes to each that subscribes to
        it all the same. It may be the name of this bus. On `inproc://`, each name means this bus.

        Raises NoSubscribers at once, publishing nothing and using up no number, when no
        subscription of any bus, or of the bus `to`, names its type and takes its key ("*", a
        monitor's, does not count; of other buses also not a list of types of more than 1,024
        bytes); RequestTimeout, which carries the event, after `timeout` seconds (None: never), and
        says so if it waited for the very handler that made the request; RequestInterrupted when
        each bus that could answer has left or started again; BusClosed when the bus closes first;
        ValueError for a `to` that no bus can have as its name. Cancelling stops the waiting only.
        The first request for a reply type also subscribes to it, before its time runs.
        `payload`: as in `stream`; PayloadError says that a reply came, and is none.
        """
        sent: Event[Any] = event  # type: ignore[assignment]
        options = SubscriptionOptions.of("request", reply_types, {}, payload)
        if self._tape is not None and (strand := running()) is not None:
            reply = await self._tape.request(strand, sent, options.query, timeout, to)
        else:
            self._life.check()
            check_timeout(timeout, optional=True)
            if to is not None:
                check_name("to", to)
            only = "" if to is None else plain(to)
            reply = await self._requests.request(sent, options.query, timeout, only)
        if options.fit is not None:
            options.fit(reply)
        return reply

    async def reply(self, request: Event[Any] | str, event: Publishable) -> Event[Any]:
        """Publish `event` with the id of `request` as its cause, and return it as `publish` does.
        If it is the first event that `request` has caused of the types that are waited for, then
        the `request()` returns it.

        `request`: the event that was received, or its id. Any task may call this, at any time:
        inside the handler of `request`, after that has returned, or while another event is handled;
        also for a request that an earlier start of this bus has received.

        A request has one reply of this bus: AlreadyReplied says that it has it. What follows, such
        as a FILL behind an ACK, is published as `Event(..., cause=request.id)`. What is remembered
        of that: 65,536 requests since the bus started. If more were replied to, then each request
        that is not newer than one that was forgotten of its source is refused, too. A reply that
        raises, or is cancelled before its event has a number, does not count.

        Waits as `publish` does, and raises what that raises. Raises TypeError and ValueError for
        what is no published event and no id of one, for an `event` that has another cause already,
        and for the request itself.
        """
        sent: Event[Any] = event  # type: ignore[assignment]
        asked = requested(request, sent)
        if self._tape is not None and (strand := running()) is not None:
            return await self._tape.reply(strand, asked, sent)
        self._route(sent)
        with self._replies.once(asked, sent), caused_by(*asked):
            return await self.publish(sent)

    # Subscribing.

    @takes(SubscribeKeywords)
    async def subscribe(
        self,
        types: Topic[T] | Names,
        callback: Handler[T, Awaitable[object] | object],
        *,
        payload: type[T] | Payload = None,
        **keywords: Unpack[SubscribeKeywords],
    ) -> Subscription:
        """Call `callback` with each matching event, from now on; live at every peer on return.

        `types`: one, several, "*" (every type that is not reserved), or "aiobus.*" (every system
        event). `key`: one, several, "prefix*"; None for every key. `where`: a plain function of the
        event, asked before the inbox. `callback`: a coroutine function; a plain one runs inline.

        `overflow`, when `maxsize` events wait: "catch_up" leaves events to history and pulls them
        when there is room, so only what history no longer holds is lost, and reported as
        `aiobus.gap`; "block" makes publishers of this process wait (each after its event is in, so
        the inbox holds one more for each that waits); "latest" keeps the newest of each (type,
        key); "drop_oldest" drops. Drops are counted, and announced once per episode. Beside data,
        these two drop a system event only if more than `maxsize` of them wait.

        `concurrency`: that many calls at once, started in order; with 1, one after another.
        `max_age`: seconds after which an event is not handed over but counted; nor is one of
        another program whose timestamp is no time. The age is this host's clock minus the
        timestamp, which is of the publisher's clock: a skew of the two adds to it (`Peer.skew`).
        `since`: "last" begins with the newest event of
        each (type, key) in the history of every bus that is there, behind what a `Keeper` has of
        those that are gone. A time in seconds since 1970 (`time.time() - 60`) begins with
        everything from then on, as far as their histories go (`reached`); 0 is before all. Both
        need `max_age` or `after` with ORDER or CANCEL, which may have been executed before.
        `after`: the id of the last event that was handled, or one for each of several sources: what
        these have published behind it. `timeout`: seconds to wait for peers; one that does not
        answer, whose link is cut, or that refuses the query because it serves too many, is named in
        `unconfirmed` until it confirms. Its events are owed from then on. `name`: what stats, the
        log and system events call it, 1-64 characters of A-Z a-z 0-9 . _ -; by default the name of
        the callback with the query.

        A callback that raises is logged, counted and announced as `aiobus.error`; the subscription
        goes on. Raises TypeError and ValueError for wrong arguments. Cancelling leaves nothing
        subscribed.
        """
        strand = None if self._tape is None else running()
        if strand is None:
            self._life.check()
        check_callback(callback)
        options = SubscriptionOptions.of("subscribe", types, keywords, payload)
        options = options.for_callback(callback)
        if self._tape is not None and strand is not None:
            return await self._tape.subscribe(strand, callback, options, self._serve)
        return await self._serve(callback, options)

    async def _serve(self, callback: Callback, options: SubscriptionOptions) -> Subscription:
        self._life.check()
        return await self._subscriptions.serve(_name(callback), options, callback)

    async def unsubscribe(self, types: Types, callback: Callback) -> None:
        """End every subscription of `callback` (compared by ==) to exactly these types, whatever
        its keys.

        Never waits: a call in progress goes on, no new one starts. Raises ValueError when there is
        none.
        """
        self._life.check()
        found = self._subscriptions.find(Query.of(types), callback)
        if not found:
            hint = "give the callback and all the types that `subscribe` was given"
            raise ValueError(f"{callback!r} is not subscribed to {types!r} here; {hint}")
        for subscription in found:
            self._subscriptions.drop(subscription)

    @overload
    def on(
        self, types: Topic[T], **keywords: Unpack[SubscribeKeywords]
    ) -> Callable[[Handler[T, R]], Handler[T, R]]: ...
    @overload
    def on(
        self, types: Names, *, payload: object = None, **keywords: Unpack[SubscribeKeywords]
    ) -> Callable[[F], F]: ...
    @takes(SubscribeKeywords)
    def on(
        self,
        types: Types,
        *,
        payload: object = None,
        **keywords: Unpack[SubscribeKeywords],
    ) -> Callable[[Any], Any]:
        """A decorator: subscribe the function when the bus starts, with the keywords of
        `subscribe`. The function stays itself.

        Raises BusError after start, and what `subscribe` raises for wrong arguments.
        """
        if self._life.state is not State.NEW:
            hint = "decorate before start, or `await bus.subscribe(...)` now"
            raise BusError(f"{self._life.name} is {self._life.state.value}: {hint}")
        options = SubscriptionOptions.of("on", types, keywords, payload)

        def register(callback: Callback) -> Callback:
            check_callback(callback)
            self._registered.append((callback, options.for_callback(callback)))
            return callback

        return register

    @takes(StreamKeywords)
    def stream(
        self,
        types: Topic[T] | Names,
        *,
        payload: type[T] | Payload = None,
        **keywords: Unpack[StreamKeywords],
    ) -> EventStream[T]:
        """`async with bus.stream(...) as events: async for event in events`: taken by the caller's
        own task.

        The keywords are those of `subscribe`. Live on entry, closed on exit, ends when the bus
        closes. See `EventStream`. Raises WrongLoop in another thread.
        """
        self._life.check_thread()
        options = SubscriptionOptions.of("stream", types, keywords, payload)

        async def enter(options: SubscriptionOptions) -> Subscription:
            self._life.check()
            return await self._subscriptions.open("stream", options)

        if self._tape is not None and running() is not None:
            return self._tape.stream(options, enter)
        return EventStream(partial(enter, options), options.fit)

    async def wait_for(
        self,
        types: Topic[T] | Names,
        *,
        key: Keys = None,
        where: Where | None = None,
        timeout: float | None = None,
        payload: type[T] | Payload = None,
    ) -> Event[T]:
        """The next matching event. Raises TimeoutError after `timeout` seconds, BusClosed when the
        bus closes first, PayloadError if its data is not what `payload` says.

        Cancelling leaves nothing subscribed.
        """
        self._life.check()
        check_timeout(timeout, optional=True)
        limit = asyncio.timeout(timeout)
        try:
            stream = self.stream(types, key=key, where=where, payload=payload)
            async with limit, stream as events:
                async for event in events:
                    return event
        except TimeoutError:
            if timeout is not None and limit.expired():
                hint = self._in_the_way()
                raise TimeoutError(f"no event of {types!r} within {timeout:g} s{hint}") from None
            raise
        raise BusClosed(f"{self.name} closed while {types!r} was awaited")

    def _in_the_way(self) -> str:
        """Which handler waits with the calling code, and so takes no other event meanwhile. Only
        what is the same again when the code is replayed.
        """
        subscription = self._subscriptions.at_work()
        if subscription is None or subscription.slots > 1:
            return ""
        return (
            f"; {subscription.name} takes its next event only once this handler has returned: if"
            " that had to come first, wait in a task that the handler does not await, or give it"
            " more concurrency="
        )

    # Who is there.

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The other buses that are linked now, by name: since when each runs, for how long it has
        been silent, and what it subscribes to. This bus is not among them, and on `inproc://` there
        are none. While the link to a bus is cut, it is left out. Never waits. Raises WrongLoop as
        `stats` does.
        """
        if self._tape is not None and (strand := running()) is not None:
            told = self._tape.read(strand, "peers", lambda: [each.told() for each in self.peers])
            return tuple(map(Peer.of, told))
        self._life.check_thread()
        return tuple(self._transport.peers)

    async def wait_for_peer(
        self,
        name: str,
        *,
        subscribed: Types | None = None,
        key: Keys = None,
        timeout: float | None = None,
    ) -> Peer:
        """Wait until the bus `name` is linked and answers; return it. At once if that is so.

        `subscribed`: one type, or several, to each of which it must have subscribed by name, with
        every key, or with each `key` (one, several, "prefix*"). Each event of these types and keys
        that is published after this returns is delivered to it. A subscription to "*", which is for
        monitors and recorders, counts for `subscribed="*"` alone, as for `request`. What was
        published of these types before has arrived there, as after a `flush`.

        The name of this bus means this bus, which its own subscriptions make ready. On `inproc://`,
        where all share one bus, each name does. In a replay, a source of the recording is there.

        A wait of more than 5 s is told in the log, with what is missing. Raises PeerTimeout, a
        TimeoutError that says who is there and what they subscribe to, after `timeout` seconds
        (None: never); BusClosed when the bus closes first; TypeError and ValueError for wrong
        arguments. Cancelling only stops the waiting.
        """
        check_name("name", name)
        if subscribed is None and key is not None:
            raise ValueError(f"key={key!r}: give the types as well, subscribed=")
        query = None if subscribed is None else Query.of(subscribed, key)
        if query is not None and query.reserved:
            hint = "no peer gets the system events of this bus"
            raise ValueError(f"subscribed={subscribed!r}: {hint}")
        check_timeout(timeout, optional=True)
        if self._tape is not None and (strand := running()) is not None:

            async def again() -> list[Any]:
                return (await self._attendance.wait(name, query, timeout)).told()

            about = name if query is None else f"{name} subscribed to {query}"
            wait = self._tape.wait(strand, "wait_for_peer", again, timeout, about)
            return Peer.of(await wait)
        self._life.check()
        return await self._attendance.wait(name, query, timeout)

    # Waiting.

    async def flush(self, timeout: float = 5.0) -> list[str]:
        """Wait until every other bus has received what it asked for of all that was published here.

        Returns the names of those that did not confirm within `timeout` seconds, and each
        rendezvous address that does not answer (`stats().unreached`), where there may be buses that
        this one has not met: [] is success. A bus counts from the moment it is found until it has
        left, also while it has not answered yet: what it has subscribed to is not known then. One
        whose link is cut, or without a place among 1,024 peers, is named without waiting.
        Cancelling only stops the waiting.
        """
        if self._tape is not None and (strand := running()) is not None:
            return await self._tape.wait(strand, "flush", partial(self.flush, timeout), timeout)
        self._life.check()
        check_timeout(timeout)
        end = self._loop.time() + timeout
        missing: set[str] = set()
        if self._durable is not None and not await self._durable.until_committed(timeout):
            missing.add(self.name)
        return sorted({*missing, *await self._transport.flush(max(0.0, end - self._loop.time()))})

    async def settle(self, timeout: float = 5.0) -> None:
        """Wait until every inbox of this bus is empty, every handler has returned and every stream
        consumer came back for more.

        Tasks that a strategy spawned are not seen. Raises TimeoutError that names who is still busy
        after `timeout` seconds; BusError inside a handler, for which it would wait itself; with
        on_error="raise", the first failure of a handler. Cancelling only stops the waiting.
        """
        if self._tape is not None and (strand := running()) is not None:
            await self._tape.wait(strand, "settle", partial(self.settle, timeout), timeout)
            return
        self._life.check()
        check_timeout(timeout)
        if self._subscriptions.at_work() is not None:
            raise BusError("settle() inside a handler would wait for it; call it from outside")
        task = asyncio.current_task()
        self._life.settling.add(task)
        try:
            is_idle = await self._until_idle(timeout)
        finally:
            self._life.settling.discard(task)
        self._life.pop_failure()
        if not is_idle:
            busy = [
                f"{each.name} ({each.backlog} waiting, {each.in_hand} in hand)"
                for each in self._subscriptions.busy()
            ]
            if self._durable is not None and self._durable.uncommitted:
                busy.append(f"the journal ({self._durable.uncommitted} events not committed)")
            raise TimeoutError(f"not settled within {timeout:g} s: {', '.join(busy)}")

    async def _until_idle(self, timeout: float) -> bool:
        """True when all is committed and handled, False after `timeout` seconds."""
        end = self._loop.time() + timeout
        while True:
            if not await self._until_committed(end):
                return False
            if not await self._subscriptions.until_idle(max(0.0, end - self._loop.time())):
                return False
            if self._durable is None or self._durable.is_idle or self._life.has_unraised_failure:
                return True

    @property
    def _published(self) -> int:
        return self._publisher.seq if self._durable is None else self._durable.published

    def stats(self) -> BusStats:
        """A frozen snapshot of plain counters. Never waits; works in every state, also after the
        loop has ended. Raises WrongLoop in another thread while the loop runs, and in a forked
        child.
        """
        self._life.check_thread()
        return BusStats(
            name=self.name,
            url=self.url,
            epoch=self._publisher.epoch,
            published=self._published,
            unreached=tuple(self._transport.unreached),
            refused=self._transport.refused,
            history_events=len(self._publisher.history),
            history_bytes=self._publisher.history.bytes,
            uncommitted=0 if self._durable is None else self._durable.uncommitted,
            subscriptions=tuple(each.stats for each in self._subscriptions),
        )


def _name(callback: Callback) -> str:
    return str(getattr(callback, "__qualname__", type(callback).__qualname__))


class Parts(NamedTuple):
    """What a recording, a replay, a keeper and a process need of a bus beside its calls."""

    publisher: Publisher
    subscriptions: Subscriber
    reports: Diagnostics
    life: Lifecycle
    transport: Transport
    durable: Durable | None


def parts_of(bus: AsyncEventBus) -> Parts:
    """The parts of `bus`. For this package alone."""
    told = bus._publisher, bus._subscriptions, bus._reports, bus._life
    return Parts(*told, bus._transport, bus._durable)


def unheard(bus: AsyncEventBus) -> Mapping[tuple[str, str], int]:
    """How many requests of `bus` found no subscriber, by type and by the bus that they were for; ""
    for any. For this package alone.
    """
    return bus._requests.unheard


def unmet(bus: AsyncEventBus) -> Sequence[str]:
    """Names of buses that `bus` knows to be there, and that have not answered it. For this package
    alone.
    """
    return tuple(bus._transport.unmet)


def refusing(bus: AsyncEventBus) -> Mapping[str, str]:
    """Why buses that `bus` knows to be there are not linked with it because of keys, by name. For
    this package alone.
    """
    return bus._transport.refusing


def is_in_use(bus: AsyncEventBus) -> bool:
    """True while `bus` has a subscription, besides its own to replies, or a handler is at work. For
    this package alone.
    """
    subscriptions = bus._subscriptions
    return bool({*subscriptions} - bus._requests.replies or subscriptions.busy())


async def close_at_once(bus: AsyncEventBus, timeout: float) -> None:
    """Close `bus` without waiting for handlers, and hurry a `close` that is under way. For this
    package alone.
    """
    bus._life.cut_close()
    await bus._close(timeout, drain=False)


def watch(bus: AsyncEventBus, tape: Tape | None) -> None:
    """From now on `tape` is asked if watched code calls `bus`. None: the bus itself. For this
    package alone. Raises BusError if another tape is asked already.
    """
    if tape is not None and bus._tape is not None:
        raise BusError(f"{bus._life.name} is recorded with attach= already: one at a time")
    bus._tape = tape
