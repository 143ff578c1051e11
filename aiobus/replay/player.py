"""A bus whose calls do what the tape says, for code that is replayed.

Owns what that code is given, and the comparison of what it publishes. Must not know which file the
events are in.
"""

import asyncio
import inspect
import math
import random
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from types import CoroutineType, TracebackType
from typing import Any, Self, TypeVar

import orjson

from aiobus.bus import AsyncEventBus, parts_of, watch
from aiobus.codec import copied, decode
from aiobus.delivery import caused_by
from aiobus.dispatcher import Callback
from aiobus.errors import AlreadyReplied, BusError, EncodeError
from aiobus.event import Event, event_id, parse_id
from aiobus.limits import Limits
from aiobus.options import (
    SubscriptionOptions,
    Where,
    check_name,
    check_timeout,
    selects,
)
from aiobus.payload import Fit
from aiobus.query import RESERVED, Query
from aiobus.replay.attach import (
    Strategy,
    add_open,
    asked,
    open_of,
    options_of,
    requested_of,
    run_strategy,
)
from aiobus.replay.evidence import Witness
from aiobus.replay.report import Fingerprint, compare, shown
from aiobus.replay.schedule import Gated, PlayerLoop, Schedule
from aiobus.replay.tape import CALLS, NAMES, Entry, Kind, Reference, made
from aiobus.replies import Request
from aiobus.strand import Called, awaited, here, running
from aiobus.stream import EventStream
from aiobus.subscription import Subscription
from aiobus.sync import TimeSlice

__all__ = ["Player", "Rows"]

E = TypeVar("E", bound=Event[Any])
T = TypeVar("T")

DELIVER, WAIT, INSIDE, GO_ON, OUTPUT, OUTCOME = map(int, list(Kind)[:6])
CLOCK, SUBSCRIBED, TIMER, RAISED, WOKE = map(int, list(Kind)[6:])
PUBLISH, REQUEST, SUBSCRIBE = CALLS["publish"], CALLS["request"], CALLS["subscribe"]
STEP, ENTRY, REPLY = CALLS["stream step"], CALLS["stream entry"], CALLS["reply"]
NOT_NUMBERED = 2 * PUBLISH, 2 * REPLY, 2 * REQUEST
"""The places of calls that publish, before their event has its number."""
MOST_CAUSES = 8
LOOK = 64
"""Entries in which an output that comes too soon is looked for."""
LOOK_FAR = 65_536
"""Entries in which the output of a call is looked for that waits before it publishes."""
DECISION = ("type", "key", "data")
MOST_REPLAYED = 65_536
"""Outputs that differ in what is ignored, and that the code is given as it has published them."""

Rows = Callable[[str, int, int], bytes | None]
"""The row of the event with this source, epoch and seq. None if the recording does not have it."""


class _Call:
    """A bus call of a strand. It waits if it did so when it was recorded."""

    def __init__(self, player: "Player", strand: Gated, number: int) -> None:
        self._player, self.strand, self.number = player, strand, number
        self.is_away = self.is_numbered = False

    def __enter__(self) -> Self:
        self._player.witness.end()
        self.strand.call = self.number
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.strand.call = 0
        if here.strand is self.strand:
            self._player.witness.begin()

    async def wait(self) -> None:
        """Wait if it did, until the next entry is of this strand."""
        player, strand = self._player, self.strand
        is_inside = player.is_head(INSIDE, strand)
        if is_inside and player.head[2] == self.number * 2 + self.is_numbered:
            player.take()
            self.is_away = True
        while self.is_away and not strand.is_due():
            strand.gate = gate = player.loop.create_future()
            try:
                await gate
            except asyncio.CancelledError as error:
                if player.is_over:
                    raise
                strand.cancel = (strand.coroutine.throw, error)
            finally:
                strand.gate = None

    async def end(self) -> None:
        """Return when it did. Raises CancelledError if it was cancelled then."""
        await self.wait()
        if not self.is_away:
            return
        player, strand = self._player, self.strand
        entry = player.expect(GO_ON, strand)
        if entry is None:
            await player.stop(f"{strand} returns from a bus call", strand)
            return
        player.loop.reach(entry[2])
        if entry[3] and strand.cancel is not None:
            (_, error), strand.cancel = strand.cancel, None
            raise error


class _CallbackAgain(Called):
    """A callback of the code that is replayed."""

    def __init__(
        self, player: "Player", number: int, callback: Callable[..., Any], fit: Fit | None
    ) -> None:
        super().__init__(number, callback)
        self._player = player
        self._call_with = callback if fit is None else fit.before(callback)

    def __call__(self, event: Event[Any]) -> Any:
        player = self._player
        if player.is_over or player.is_stopped:
            return None
        about = (self.callback, event.type, (event.source, event.epoch, event.seq))
        strand = Gated(player, about=about, is_fresh=True)
        if player.head[:3] != (DELIVER, strand.number, self.number):
            player.differ(
                "another number of tasks, timers or calls was started before this", strand
            )
            return None
        player.take()
        player.deliveries += 1
        player.ran += 1
        strand.has_run = True
        with player.running(strand):
            result = self._call_with(event)
        if type(result) is CoroutineType:
            strand.coroutine = result
            return strand
        if inspect.isawaitable(result):
            strand.coroutine = awaited(result)
            return strand
        player.ended(strand)
        return result


class _Given(EventStream[Any]):
    """A stream of the code that is replayed."""

    def __init__(
        self,
        player: "Player",
        options: SubscriptionOptions,
        enter: Callable[[], Awaitable[Subscription]],
    ) -> None:
        super().__init__(enter)
        self._player = player
        self._options = options
        self._later_fit = options.fit
        self._number = -1
        self._call: _Call | None = None

    async def __aenter__(self) -> Self:
        player = self._player
        self._number = await player.begin_subscription(player.strand(), self._options)
        with player.call(ENTRY) as call:
            await super().__aenter__()
            self._turn = TimeSlice(math.inf, sys.maxsize)  # a step waits if it did
            add_open(player.subscriptions, self._number, self.subscription)
            await call.end()
        await player.end_subscription(call, self._number, self.subscription, self._options)
        return self

    async def __anext__(self) -> Event[Any]:
        strand = running()
        if not isinstance(strand, Gated) or self._player.is_over:
            return await super().__anext__()
        with self._player.call(STEP) as self._call:
            try:
                event = await super().__anext__()
            except BusError:
                if self._call is not None:  # it is refused as it was
                    self._player.outcome(self._call)
                raise
        self._player.deliveries += 1
        if self._later_fit is not None:
            self.subscription.convert(event, self._later_fit)
        return event

    async def _wait(self, subscription: Subscription) -> Event[Any]:
        player, call, self._call = self._player, self._call, None
        if call is None:
            return await super()._wait(subscription)
        strand = call.strand
        await call.end()
        if player.is_head(DELIVER, strand) and player.head[2] == self._number:
            _, _, _, time, reference = player.take()
            player.loop.reach(time)
            event = player.selected(self._number, reference)
            if event is not None:
                return event
        elif (error := player.raised(call)) is not None:
            raise error
        await player.stop(f"{strand} asks a stream for an event", strand)
        raise AssertionError


class Player(Schedule):
    """Gives the code that is attached to a bus what the tape has, and compares what it publishes.
    `facts` are those of the recording, and `end` tells those of its end once the tape has come
    there; `rows` has its events. `ignore`: paths of what is not compared in outputs.
    """

    def __init__(
        self,
        loop: PlayerLoop,
        tape: Iterator[Entry],
        facts: dict[str, Any],
        end: Callable[[], dict[str, Any] | None],
        rows: Rows,
        ignore: Collection[tuple[str, ...]],
    ) -> None:
        witness = Witness(is_other_seed=facts["hash"] != hash("aiobus"))
        super().__init__(loop, tape, witness)
        self._facts = facts
        self._end = end
        self._rows = rows
        self._ignore = ignore
        self._own = (str(facts["name"]), int(facts["epoch"]))
        self._last = int(facts["published"])
        """The seq of the last output, or of the event before the first."""
        self._replayed: OrderedDict[int, bytes] = OrderedDict()
        self.subscriptions: dict[int, Subscription] = {}
        """From the moment in which they begin."""
        self._made: dict[int, Subscription] = {}
        """From the moment in which `subscribe` returns."""
        self._wheres: dict[int, Where] = {}
        self.deliveries = self.agreed = self.ignored = 0
        self.has_data = False
        """True if the data of some output was compared."""
        self.outside: dict[str, int] = {}
        self.fingerprint = Fingerprint()

    async def run(self, strategy: Strategy) -> None:
        """Replay `strategy` to the first difference, or to the end of the tape."""
        facts = self._facts
        limits = Limits(event_bytes=facts["event_bytes"])  # what refuses an event
        bus = AsyncEventBus(name=facts["name"], limits=limits)
        self.loop.begin(facts["began"], facts["wall"])
        await bus.start()
        bus.url = facts["url"]
        self._publisher, self._subscriptions, reports, *_ = parts_of(bus)
        self._publisher.epoch = facts["epoch"]
        reports.publish_own = lambda event, then: then()  # what was delivered is on the tape
        version, state, gauss = facts["random"]
        before = random.getstate()
        random.setstate((version, tuple(state), gauss))
        watch(bus, self)
        self.witness.start()
        self.loop.schedule = self
        self.loop.set_task_factory(self.make_task)

        main = self.first_task(run_strategy(strategy, bus), strategy)
        try:
            await self.done
        finally:
            random.setstate(before)
            watch(bus, None)
            self.let_go()
            self.loop.set_task_factory(None)
            main.cancel()
            await bus.close(0.0)
            await asyncio.wait([main])
            main.cancelled() or main.exception()  # it was raised when it was recorded, too

    # What is asked of the player.

    def strand(self) -> Gated:
        """The strand that runs."""
        strand = running()
        assert isinstance(strand, Gated)
        return strand

    def call(self, number: int) -> _Call:
        """A call of the strand that runs."""
        return _Call(self, self.strand(), number)

    def outcome(self, call: _Call) -> Any:
        """How a call ended; None if the next entry does not say that."""
        place = call.number * 2 + call.is_numbered
        if self.is_head(OUTCOME, call.strand) and self.head[2] == place:
            return self.take()[3]
        return None

    def raised(self, call: _Call, event: Event[Any] | None = None) -> BaseException | None:
        """What a call has raised; None if it has raised nothing, or does not now."""
        if event is not None and self._is_refused(call.strand, call.number):
            return self._refusal(event)
        outcome = self.outcome(call)
        if outcome is None or outcome[0] != "raised":
            return None
        error = made(outcome, event)
        if error is None:
            self.fail(f"{call.strand} caught {outcome[1]} of a bus call, which is unknown here")
        return error

    def _is_refused(self, strand: Gated, call: int) -> bool:
        """True if the next entry is that the event of this call could not be encoded."""
        is_outcome = self.is_head(OUTCOME, strand) and self.head[2] == 2 * call
        return is_outcome and bool(self.head[3][0] == "refused")

    def _refusal(self, event: Event[Any]) -> BaseException | None:
        """What encoding an event raises that could not be encoded when it was recorded."""
        self._publisher.seq = self.head[3][1] - 1
        try:
            self._publisher.number(event)
        except EncodeError as error:
            self.take()
            return error
        return None

    def _route(self, strand: Gated, call: int, event: Event[Any]) -> None:
        """Raise what publishing raises before it does anything."""
        try:
            self._publisher.route(event)
        except EncodeError:
            if self._is_refused(strand, call):
                self.take()
            raise

    def deliver(self, strand: int, subscription: int, time: int, event: Reference) -> bool:
        """Hand an event to the dispatcher of a callback."""
        target = self.subscriptions.get(subscription)
        if target is None or not target.is_waiting:
            return False
        found = self.selected(subscription, event)
        if found is not None:
            self.loop.reach(time)
            target.feed(found)
        return True

    def selected(self, subscription: int, reference: Reference) -> Event[Any] | None:
        """The same as `event`, if the `where` of the subscription selects it now as it did."""
        event, where = self.event(reference), self._wheres.get(subscription)
        if event is None or where is None or event.type.startswith(RESERVED):
            return event
        try:
            if selects(where, replace(event, data=copied(event.data))):
                return event
        except (Exception, SystemExit) as error:  # noqa: BLE001 - it is not selected then
            self.differ(f"`where` fails on {event.type} {event.id}: {error!r}", None)
            return None
        text = f"`where` does not select {event.type} {event.id}, which was delivered"
        self.differ(text, None, recorded="", replayed="")
        return None

    def event(self, reference: Reference) -> Event[Any] | None:
        """One that was delivered. None ends the replay, because the recording does not have it."""
        name, epoch, seq, past, text = reference
        row: bytes | None = text.encode() if text is not None else None
        if row is None and (name, epoch) == self._own:
            row = self._replayed.get(seq)
        if row is None:
            row = self._rows(name, epoch, seq)
        if row is None:
            self._lack(event_id(name, epoch, seq), "was delivered")
            return None
        (event,) = decode([row], name, epoch)
        event.past = past
        return event

    def _lack(self, id: str, what: str) -> None:
        self.fail(f"{id} {what} and is not in the file: the recording has lost it, see its gaps")

    # The differences, for people.

    def differ(self, text: str, strand: Gated | None, **more: Any) -> None:
        """The first difference is here."""
        is_next = strand is not None and strand.number == self.head[1]
        if is_next and "replayed" not in more and (due := self._due()) is not None:
            text = f"an output is missing: {text}"
            more = {
                "recorded": shown(due, event_id(*self._own, 1)[:-1]),
                **self._causes(due),
                **more,
            }
        super().differ(text, strand, **more)

    def said(self) -> str:
        """The next entry, for people."""
        kind, _, *rest = self.head
        if kind != DELIVER:
            return super().said()
        number, _, (source, epoch, seq, _, text) = rest
        target = self.subscriptions.get(number)
        name = "a subscription that there is not now" if target is None else target.name
        row = text.encode() if text is not None else self._rows(source, epoch, seq)
        type = "" if row is None else f"{orjson.loads(row)[2]} "
        return f"{name} is given {type}{event_id(source, epoch, seq)}"

    def _due(self) -> bytes | None:
        """What the recording has published next, before the strand waits: more is said by that than
        by a clock that was read for it, or by a wait in the call that publishes it.
        """
        first, number, *rest = self.head
        is_called = first == INSIDE and rest[0] in NOT_NUMBERED
        is_called |= first == OUTCOME and rest[0] == 2 * REQUEST and rest[1][0] == "asked"
        for kind, strand, *rest in islice(self.ahead(), LOOK_FAR):
            if kind == OUTPUT and strand == number:
                return self._output_row(rest[0], rest[1])
            if strand != number and is_called:
                continue  # others go on meanwhile
            if kind == WAIT or strand != number or (kind == GO_ON and is_called):
                break
        return None

    def _output_row(self, seq: int, text: str | None) -> bytes | None:
        return text.encode() if text is not None else self._rows(*self._own, seq)

    def _causes(self, row: bytes) -> dict[str, Any]:
        """The chain of causes of an event, nearest first."""
        found: list[str] = []
        while len(image := orjson.loads(row)) > 5 and len(found) < MOST_CAUSES:
            try:
                name, epoch, seq = parse_id(image[5])
            except ValueError:
                found.append(str(image[5]))
                break
            above = self._rows(name, epoch, seq)
            if above is None:
                found.append(f"{image[5]}, which is not in the file")
                break
            row = above
            found.append(shown(row, event_id(name, epoch, 1)[:-1]))
        return {"causes": tuple(found)}

    # What is published.

    def output(self, call: _Call, event: Event[Any]) -> bool:
        """Compare what is published with what was. False if that is the first difference."""
        strand, publisher, origin = call.strand, self._publisher, event_id(*self._own, 1)[:-1]
        is_due = self.is_head(OUTPUT, strand)
        seq, text = self.head[2:4] if is_due else (self._last + 1, None)
        publisher.seq = seq - 1
        row = publisher.number(event).row
        if not is_due:
            recorded = self.said()
            due = self._due()
            if due is not None:
                recorded = shown(due, origin)
            self.differ(
                f"{strand} publishes what was not recorded here",
                strand,
                recorded=recorded,
                replayed=shown(row, origin),
                **self._causes(row),
            )
            return False
        then = self._output_row(seq, text)
        if then is None:
            self._lack(event_id(*self._own, seq), "was published")
            return False
        found = compare(then, row, self._ignore)
        if found.fields:
            # Another time or cause alone is no other decision.
            is_decision = any(name.startswith(DECISION) for name in found.fields)
            is_later = is_decision and self._comes_later(row)
            is_reordered = found.is_reordered or is_later
            text = f"output {event_id(*self._own, seq)} differs in {', '.join(found.fields)}"
            if is_later:
                text = f"outputs come in another order: {text}"
            self.differ(
                text,
                strand,
                is_reordered=is_reordered,
                recorded=shown(then, origin),
                replayed=shown(row, origin),
                fields=found.fields,
                suspects=found.suspects,
                **self._causes(then),
            )
            return False
        self.take()
        self.count_outside(seq)
        self.agreed += 1
        self.ignored += found.is_ignored
        self.has_data = self.has_data or found.has_data
        self.fingerprint.add(found.decision)
        if found.is_ignored:
            self._replayed[seq] = row
            if len(self._replayed) > MOST_REPLAYED:
                self._replayed.popitem(last=False)
        call.is_numbered = True
        return True

    def _comes_later(self, row: bytes) -> bool:
        """True if what is published now was published soon after this."""
        ahead = (entry for entry, _ in zip(self.ahead(), range(LOOK), strict=False))
        for kind, _, *rest in ahead:
            if kind == OUTPUT and (then := self._output_row(rest[0], rest[1])) is not None:
                fields = compare(then, row, self._ignore).fields
                if not any(name.startswith(DECISION) for name in fields):
                    return True
        return False

    def at_end(self) -> None:
        """What has begun, and what is subscribed, has to be what was."""
        end = self._end()
        if end is None:
            return
        if self.made != end["strands"]:
            self.differ(
                "another number of tasks, timers or calls has been started at the end",
                None,
                recorded=str(end["strands"]),
                replayed=str(self.made),
            )
        timers = self.timers()
        if odd := timers.keys() ^ {*end["timers"]}:
            more = [timers[number].begins for number in sorted(odd) if number in timers]
            self.differ(
                "a timer that was cancelled is not now" if more else "a timer is cancelled now",
                None,
                recorded=f"{len(end['timers'])} timers are set at the end",
                replayed=f"{len(timers)} timers are set at the end",
                where=more[0] if more else "",
            )
        then, now = end["open"], open_of(self._made)
        if then is not None and now is not None and now != then:
            self.differ(
                "other subscriptions are open at the end",
                None,
                recorded=self._said_of(then),
                replayed=self._said_of(now),
            )

    def _said_of(self, numbers: list[int]) -> str:
        found = (self._made.get(number) for number in numbers)
        return ", ".join(each.name if each is not None else "one that has ended" for each in found)

    def count_outside(self, upto: int) -> None:
        """Count the events of the bus before this seq that are no outputs of attached code."""
        for seq in range(self._last + 1, upto):
            row = self._rows(*self._own, seq)
            if row is not None:
                type = orjson.loads(row)[2]
                self.outside[type] = self.outside.get(type, 0) + 1
        self._last = max(self._last, upto)

    # What the bus is asked.

    async def _published(self, call: _Call, event: Event[Any]) -> None:
        """What a call does, up to its output if it has one."""
        await call.wait()
        kind, number, *rest = self.head
        is_own = number == call.strand.number and not self.is_stopped and not self.has_read
        if is_own and kind == GO_ON and call.is_away:
            return
        if is_own and kind == OUTCOME and rest[0] == call.number * 2:
            return
        if not self.output(call, event):
            await self.loop.create_future()

    async def publish(self, strand: Any, event: E) -> E:
        """As the bus does."""
        return await self._publish(strand, PUBLISH, event)

    async def _publish(self, strand: Any, number: int, event: E, request: str = "") -> E:
        self._route(strand, number, event)
        with self.call(number) as call:
            await self._published(call, event)
            await call.end()
        if (error := self.raised(call, event)) is not None:
            if isinstance(error, AlreadyReplied) and error.request != request:
                await self.stop(
                    f"{strand} replies to another request",
                    strand,
                    recorded=error.request,
                    replayed=request,
                )
            raise error
        if not call.is_numbered:
            await self.stop(f"{strand} publishes", strand)
        return event

    async def reply(self, strand: Any, request: Request, event: E) -> E:
        """As the bus does."""
        with caused_by(*request):
            return await self._publish(strand, REPLY, event, event_id(*request))

    def publish_nowait(self, strand: Any, event: E) -> E:
        """As the bus does."""
        self._route(strand, PUBLISH, event)
        with self.call(PUBLISH) as call:
            is_refused = self.is_head(OUTCOME, strand) and self.head[2] == PUBLISH * 2
            if not is_refused and not self.is_stopped:
                self.output(call, event)
        if (error := self.raised(call, event)) is not None:
            raise error
        if is_refused and not self.is_stopped:
            self.differ(f"{strand} publishes", strand)
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
        await self._ask(strand, REQUEST, asked(timeout, requested_of(replies, to)))
        check_timeout(timeout, optional=True)
        if to is not None:
            check_name("to", to)
        self._route(strand, REQUEST, event)
        with self.call(REQUEST) as call:
            await self._published(call, event)
            await call.end()
        if self._is_refused(strand, REQUEST):
            if (refusal := self._refusal(event)) is not None:
                raise refusal
            await self.stop(f"{strand} publishes", strand)
        match outcome := self.outcome(call):
            case ["reply", reference] if (reply := self.event(reference)) is not None:
                return reply
            case ["raised", *_] if (error := made(outcome, event)) is not None:
                raise error
        await self.stop(f"{strand} returns from a request", strand)
        raise AssertionError

    async def begin_subscription(self, strand: Gated, options: SubscriptionOptions) -> int:
        """Returns the number of the subscription that is made."""
        entry = self.expect(SUBSCRIBED, strand)
        if entry is None:
            await self.stop(f"{strand} subscribes", strand)
            raise AssertionError
        if options.where is not None:
            self._wheres[int(entry[2])] = options.where
        return int(entry[2])

    async def end_subscription(
        self, call: _Call, number: int, made_now: Subscription, given: SubscriptionOptions
    ) -> None:
        """It is there, if it was when it was recorded."""
        match self.outcome(call):
            case ["raised", *_] as outcome if (error := made(outcome, None)) is not None:
                self._subscriptions.drop(made_now)
                raise error
            case ["made", _, query, told] if (query, told) == (made_now.query, options_of(given)):
                add_open(self._made, number, made_now)
            case outcome:
                await self.stop(
                    f"{call.strand} makes another subscription",
                    call.strand,
                    recorded=" with ".join(outcome[2:]) if outcome else self.said(),
                    replayed=f"{made_now.query} with {options_of(given)}",
                )

    async def subscribe(
        self,
        strand: Any,
        callback: Callback,
        given: SubscriptionOptions,
        serve: Callable[[Any, SubscriptionOptions], Awaitable[Subscription]],
    ) -> Subscription:
        """As the bus does."""
        number = await self.begin_subscription(strand, given)
        again = _CallbackAgain(self, number, callback, given.fit)
        with self.call(SUBSCRIBE) as call:
            new = await self._subscriptions.serve(again.__qualname__, _bare(given), again)
            add_open(self.subscriptions, number, new)
            try:
                await call.end()
            except asyncio.CancelledError:
                self._subscriptions.drop(new)
                raise
        await self.end_subscription(call, number, new, given)
        return new

    def stream(
        self,
        options: SubscriptionOptions,
        enter: Callable[[SubscriptionOptions], Awaitable[Subscription]],
    ) -> EventStream[Any]:
        """As the bus does."""
        return _Given(self, options, partial(enter, _bare(options)))

    async def _ask(self, strand: Gated, call: int, asks: list[Any]) -> None:
        """The arguments of a call have to be what they were."""
        if not self.is_head(OUTCOME, strand) or self.head[2] != call * 2:
            return  # the call itself differs, which is found out next
        then = self.head[3]
        if then != asks:
            text = f"{strand} calls {NAMES[call]} with other arguments"
            await self.stop(text, strand, recorded=then[1], replayed=asks[1])
        self.take()

    async def wait(
        self,
        strand: Any,
        call: str,
        again: Callable[[], Awaitable[T]],
        timeout: float | None = None,
        about: str = "",
    ) -> T:
        """As the bus does."""
        await self._ask(strand, CALLS[call], asked(timeout, about))
        with self.call(CALLS[call]) as waiting:
            await waiting.end()
        match self.outcome(waiting):
            case ["returned", result]:
                return result  # type: ignore[no-any-return]
            case ["raised", *_] as outcome if (error := made(outcome, None)) is not None:
                raise error
        await self.stop(f"{strand} calls {call}", strand)
        raise AssertionError

    def read(self, strand: Any, call: str, again: Callable[[], T]) -> T:
        """As the bus does. After the first difference, what is so now."""
        with self.call(CALLS[call]) as reading:
            match self.outcome(reading):
                case ["returned", result]:
                    return result  # type: ignore[no-any-return]
            result = again()
        if not self.is_stopped:
            self.differ(f"{strand} reads {call}", strand)
        return result


def _bare(options: SubscriptionOptions) -> SubscriptionOptions:
    """Without what selects, which has been done, and what converts, which is done here."""
    bare = replace(options, overflow="catch_up", max_age=None, where=None, since=None, after=())
    return bare.untyped()
