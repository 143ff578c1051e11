"""Real buses in any order in which things can happen, on virtual time.

A state machine of Hypothesis starts, closes, kills and freezes buses on a network in memory, has
them publish and subscribe, loses, doubles, disorders and delays what they say, forges some of it,
cuts them off and lets hours pass. Then everything is brought to rest, and `witness.py` judges what
each subscription was handed: each event once, in order, or told of.

Some of the buses of `WithJournals` have a journal. They are killed and come back, after a moment or
after more than the time for which they are remembered (an hour, which is a hundred seconds here).

The examples are the same in each run; MACHINE_EXAMPLES=5000 draws that many others.
"""

import asyncio
import os
import re
import tempfile
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from journals import at_death
from ports import opened
from witness import FORGED, MEMORY, Desk, Listener, Trouble

from aiobus import AsyncEventBus, BusError, Event, Limits
from aiobus.testing import Faults, MemoryNetwork, Message
from aiobus.virtual_loop import VirtualLoop

NAMES = ("feed", "broker", "bot", "desk")
MOST_STARTS = 8
MOST_LISTENERS = 6
FREEZE = 15.0
"""Seconds after which a frozen bus has read what was sent to it, at most."""
RECOVERY = 100.0
"""Seconds of a sound network after which each bus has everything."""
QUERIES: tuple[tuple[list[str], str | None], ...] = (
    (["A"], None),
    (["A", "B"], None),
    (["*"], None),
    (["A", "B"], "x"),
    (["*"], "x*"),
)
POLICIES = ("catch_up", "catch_up", "catch_up", "block", "latest", "drop_oldest")

IN_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where a journal does not wait for a disk, if there is such a place."""

number = st.integers(0, 7)
kinds = st.tuples(st.sampled_from("ABC"), st.sampled_from(["x", "xx", "y"]))

listening = st.fixed_dictionaries(
    {
        "place": number,
        "query": st.sampled_from(QUERIES),
        "policy": st.sampled_from(POLICIES),
        "maxsize": st.sampled_from([1, 2, 5, 300]),
        "since": st.sampled_from([None, None, "last", 0.0, 3.0]),
        "max_age": st.sampled_from([None, None, None, 1.0]),
        "pace": st.sampled_from([0.0, 0.0, 0.01, 0.4]),
    }
)


def forged(message: bytes, place: int, more: int) -> bytes:
    """The message with one of its whole numbers replaced by one that no source here ever has."""
    topic, zero, json = message.partition(b"\0")
    found = list(re.finditer(rb"(?<![\w.])\d+(?![\w.])", json))
    if not found:
        return message
    start, end = found[place % len(found)].span()
    return topic + zero + json[:start] + b"%d" % (FORGED + more) + json[end:]


class AnyOrder(RuleBasedStateMachine):
    """A network, the buses on it, and what is to be expected of them."""

    journaled: frozenset[str] = frozenset()
    """The names of those that have a journal."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("aiobus.publisher.FRAME_EVENTS", 3)  # a burst is several frames
        self.patch.setattr("aiobus.mesh.interest.AT_ONCE", 1)
        for name, few in (("LEFT", 2), ("FAR", 4), ("NEAR", 2)):
            self.patch.setattr(f"aiobus.mesh.interest.{name}", few)
        self.runner = asyncio.Runner(loop_factory=VirtualLoop)
        self.loop = self.runner.get_loop()
        self.network = MemoryNetwork()
        self.trouble = Trouble(self.loop.time)
        self.open: dict[str, Desk] = {}
        self.desks: list[Desk] = []
        self.listeners: list[Listener] = []
        self.faults = Faults()
        self.frozen: set[str] = set()
        self.heard: deque[bytes] = deque(maxlen=32)
        self.liars = self.started = 0
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.runner.run(work)
        for listener in self.listeners:
            listener.note_links(self.desks)
        for desk in self.desks:
            desk.note_starts()

    @initialize(
        seed=st.integers(0, 2**32),
        events=st.sampled_from([1, 2, 5, 1000]),
        high_water_mark=st.sampled_from([4, 1000, 1000]),
        is_paced=st.sampled_from([False, False, True]),
        asked=st.lists(listening, min_size=2, max_size=3),
    )
    def begin(
        self,
        seed: int,
        events: int,
        high_water_mark: int,
        is_paced: bool,
        asked: list[dict[str, Any]],
    ) -> None:
        self.network = MemoryNetwork(seed=seed, high_water_mark=high_water_mark)
        self.network.is_moving = bool(self.journaled) and seed % 2 == 1
        self.trouble.is_tight = high_water_mark < 1000
        self.limits = Limits(history_events=events)
        self.is_paced = is_paced
        self.set_faults()
        for name in range(3):
            self.start(name)
        for each in asked:
            self._subscribe(**each)

    # What buses do.

    def desk(self, place: int) -> Desk | None:
        found = list(self.open.values())
        return found[place % len(found)] if found else None

    @precondition(lambda self: self.started < MOST_STARTS)
    @rule(name=st.integers(0, len(NAMES) - 1))
    def start(self, name: int) -> None:
        free = [each for each in NAMES if each not in self.open]
        if free:
            self.run(self._start(free[name % len(free)]))

    async def _start(self, name: str) -> None:
        await asyncio.sleep(0.001)
        self.started += 1
        desk = next((each for each in self.desks if each.name == name and each.journal), None)
        journal = self.path(name) if name in self.journaled else None
        if is_new := desk is None:
            few, is_paced = self.limits.history_events, self.is_paced and journal is None
            desk = Desk(*(name, few, self.trouble, self.desks), is_paced=is_paced, journal=journal)
        await desk.open(self.bus(desk), is_watching=bool(self.journaled))
        self.open[name] = desk
        if is_new:
            self.desks.append(desk)

    def bus(self, desk: Desk) -> AsyncEventBus:
        kept = {} if desk.journal is None else {"journal": desk.journal, "sync": "process"}
        options = {"limits": self.limits, "pace": self.is_paced, "on_error": "raise"}
        return self.network.bus(desk.name, **options, **kept)

    def path(self, name: str) -> Path:
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(dir=IN_MEMORY)
        return Path(self.folder.name) / f"{name}.db"

    @rule(place=number, timeout=st.sampled_from([0.0, 1.0, 5.0]))
    def close(self, place: int, timeout: float) -> None:
        if len(self.open) > 1 and (desk := self.desk(place)):
            self.run(self._close(desk, timeout))

    async def _close(self, desk: Desk, timeout: float) -> None:
        peers = {link.name for link in desk.bus.peers}
        del self.open[desk.name]
        missing = await desk.bus.close(timeout)
        desk.end()
        for other in self.open.values():
            if other.name in peers and other.name not in missing:
                desk.confirmed_at_end.add(other.source)

    @rule(place=number)
    def kill(self, place: int) -> None:
        if len(self.open) > 1 and (desk := self.desk(place)):
            self.run(self._kill(desk))

    async def _kill(self, desk: Desk) -> None:
        del self.open[desk.name]
        self.network.kill(desk.name)
        desk.has_ended = desk.was_killed = True
        if desk.journal is None:
            await desk.bus.close(0)
        else:
            with at_death(desk.journal):
                await desk.bus.close(0)
        desk.end(is_killed=True)

    @rule(
        place=number,
        events=st.lists(kinds, min_size=1, max_size=8),
        times=st.sampled_from([1, 2, 6]),
        is_patient=st.booleans(),
    )
    def publish(
        self, place: int, events: list[tuple[str, str]], times: int, is_patient: bool
    ) -> None:
        if desk := self.desk(place):
            self.run(self._publish(desk, events * times, is_patient and times == 1))

    async def _publish(self, desk: Desk, kinds: list[tuple[str, str]], is_patient: bool) -> None:
        for type, key in kinds:
            event = Event(type, None, key=key)
            is_confirmed = False
            try:
                if is_patient:
                    async with asyncio.timeout(0.3):
                        await desk.bus.publish(event)
                        is_confirmed = True
                else:
                    desk.bus.publish_nowait(event)
            except TimeoutError:
                if not event.seq:  # else it has been published, and was not waited for
                    break
            except BusError:  # an inbox that blocks is full, or a reader would be outrun
                assert not event.seq
                break
            desk.note(event, is_confirmed=is_confirmed)

    @rule(place=number, timeout=st.sampled_from([0.5, 3.0]))
    def flush(self, place: int, timeout: float) -> None:
        if desk := self.desk(place):
            self.run(self._flush(desk, timeout))

    async def _flush(self, desk: Desk, timeout: float) -> None:
        owed, upto = [each for each in self.listeners if each.is_owed(desk)], desk.seq
        missing = await desk.bus.flush(timeout)
        for listener in owed:
            if listener.desk.name in self.open and listener.desk.name not in missing:
                listener.note_confirmed(desk, upto)

    # What subscriptions do.

    @precondition(lambda self: self.open and len(self.listeners) < MOST_LISTENERS)
    @rule(asked=listening)
    def subscribe(self, asked: dict[str, Any]) -> None:
        self._subscribe(**asked)

    def _subscribe(self, place: int, since: Any, **options: Any) -> None:
        desk = self.desk(place)
        assert desk is not None
        if isinstance(since, float):
            since = max(0.0, self.loop.wall_time() - since) if since else 0.0
        listener = Listener(desk, since=since, trouble=self.trouble, **options)
        self.run(listener.join([each for each in self.desks if each.journal or not each.has_ended]))
        self.listeners.append(listener)

    @rule(place=number)
    def unsubscribe(self, place: int) -> None:
        if open_ones := [each for each in self.listeners if each.is_open]:
            self.run(open_ones[place % len(open_ones)].leave())

    @rule(place=number, is_paused=st.booleans())
    def pause(self, place: int, is_paused: bool) -> None:
        if self.listeners:
            self.listeners[place % len(self.listeners)].pause(is_paused)

    # What happens on the way.

    def set_faults(self) -> None:
        faults, frozen, heard = self.faults, self.frozen, self.heard

        def loss(message: Message) -> float:
            if message.kind not in ("subscription", "question", "page_request", "acknowledgement"):
                heard.append(message.data)
            return faults.loss if not callable(faults.loss) else faults.loss(message)

        def delay(message: Message) -> float:
            is_frozen = message.source in frozen or message.target in frozen
            return FREEZE if is_frozen else faults.delay  # type: ignore[return-value]

        self.network.faults = Faults(
            loss=loss, duplication=faults.duplication, reorder=faults.reorder, delay=delay
        )
        self.trouble.note(is_lasting=faults != Faults() or bool(frozen))

    @rule(
        loss=st.sampled_from([0.0, 0.1, 0.5]),
        duplication=st.sampled_from([0.0, 0.0, 0.2]),
        reorder=st.sampled_from([0.0, 0.0, 0.0, 0.2]),
        delay=st.sampled_from([0.0, 0.01, 1.5]),
    )
    def disturb(self, **faults: float) -> None:
        self.faults = Faults(**faults)
        self.trouble.longest_delay = max(self.trouble.longest_delay, faults["delay"])
        self.trouble.is_disorderly |= bool(faults["duplication"] or faults["reorder"])
        self.set_faults()

    @rule(kind=st.sampled_from(["events", "answer", "page", "beacon", "mark", "heartbeat"]))
    def lose_kind(self, kind: str) -> None:
        self.faults = Faults(loss=lambda message: float(message.kind == kind))
        self.set_faults()

    @rule()
    def be_sound(self) -> None:
        self.faults = Faults()
        self.set_faults()

    @rule(place=number, is_frozen=st.booleans())
    def freeze(self, place: int, is_frozen: bool) -> None:
        """What a bus says and hears comes late, as when its process is stopped."""
        self.frozen.clear()
        if is_frozen and (desk := self.desk(place)):
            self.frozen.add(desk.name)
            self.trouble.longest_delay = FREEZE
        self.set_faults()

    @rule(
        split=st.integers(1, 2 ** len(NAMES) - 2),
        one_way=st.booleans(),
        cut=st.booleans(),
    )
    def partition(self, split: int, one_way: bool, cut: bool) -> None:
        one = {name for place, name in enumerate(NAMES) if split >> place & 1}
        self.run(self._partition(one, one_way and not cut, cut))

    async def _partition(self, one: set[str], one_way: bool, cut: bool) -> None:
        self.trouble.is_parted = True
        self.trouble.note()
        self.network.partition(one, {*NAMES} - one, one_way=one_way, cut=cut)

    @rule()
    def heal(self) -> None:
        self.run(self._heal())

    async def _heal(self) -> None:
        self.trouble.note()
        self.trouble.is_parted = False
        self.network.heal()
        await asyncio.sleep(0)

    @rule(place=number, which=number, more=number, count=st.sampled_from([0, 1, 1, 2]))
    def lie(self, place: int, which: int, more: int, count: int) -> None:
        """What was heard before comes once more, or with a number that its source never had. A bus
        with a journal ends if a peer knows more of it, so beside such it only comes once more.
        """
        if self.heard:
            message = self.heard[which * 4 % len(self.heard)]
            self.trouble.is_disorderly = True
            for each in range(0 if self.journaled else count):
                self.trouble.is_forged = True
                message = forged(message, place + each, more)
            self.run(self._lie(message))

    async def _lie(self, message: bytes) -> None:
        self.liars += 1
        port = self.network.port()
        for member in await opened(port, "liar"):
            if member.name in self.open:
                port.connect(member.endpoint)
        port.subscribe(b"~liar@%d memory://liar\0" % (self.liars % 10))
        await asyncio.sleep(0.02)
        port.send(message)
        await asyncio.sleep(0.02)
        await port.close(0)

    @rule(seconds=st.sampled_from([0.02, 0.3, 1.0, 2.5, 7.0, 12.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(seconds=st.sampled_from([0.4, 2.0, 20.0]))
    def hold(self, seconds: float) -> None:
        """The whole process is held up."""
        self.trouble.note()
        self.loop.block(seconds)
        self.run(asyncio.sleep(0))
        self.trouble.note()

    # The end.

    def teardown(self) -> None:
        try:
            self.run(self.rest())
            for listener in self.listeners:
                listener.check(self.desks)
            for desk in self.desks:
                desk.check({each.source for each in self.open.values()})
        finally:
            try:
                self.runner.run(self.end())
                self.runner.close()
            finally:
                self.patch.undo()
                if self.folder is not None:
                    self.folder.cleanup()

    async def rest(self) -> None:
        """Each bus is linked or gone, nothing is lost any more, and all is read."""
        self.faults = Faults()
        self.frozen.clear()
        self.set_faults()
        await self._heal()
        for desk in self.desks:
            if desk.journal is not None and desk.has_ended:
                await self._start(desk.name)
        for listener in self.listeners:
            listener.pause(False)
            listener.pace = 0.0
        end = self.loop.time() + RECOVERY
        while lacking := await self.lacking():
            assert self.loop.time() < end, f"not recovered after {RECOVERY:g} s: {lacking}"
            await asyncio.sleep(1.0)
        for desk in self.open.values():  # whatever has happened, its events go on to arrive
            await self._publish(desk, [("A", "x"), ("B", "y")], True)
        while lacking := await self.lacking():
            assert self.loop.time() < end + 20, f"the last events do not arrive: {lacking}"
            await asyncio.sleep(1.0)

    async def lacking(self) -> list[str]:
        """Who has not everything yet, in words."""
        desks, found = list(self.open.values()), []
        for desk in desks:
            others = {each.source for each in desks if each is not desk}
            if {(each.name, each.epoch) for each in desk.bus.peers} != others:
                found.append(f"{desk.name} is linked with {desk.bus.peers}")
            if desk.joined != others:  # the bye of one was lost, and its silence tells
                found.append(f"{desk.name} was told of {desk.joined}")
            if missing := await desk.bus.flush(2.0):
                found.append(f"{missing} lack events of {desk.name}")
            try:
                await desk.bus.settle(5.0)
            except TimeoutError as error:
                found.append(f"{desk.name} is {error}")
        return found

    async def end(self) -> None:
        for listener in self.listeners:
            listener.pause(False)
        await asyncio.gather(*(desk.bus.close(0) for desk in self.open.values()))


class WithJournals(AnyOrder):
    """The same, of buses of which some have a journal and come back."""

    journaled = frozenset({"feed", "broker", "bot"})

    def __init__(self) -> None:
        super().__init__()
        self.patch.setattr("aiobus.mesh.interest.MEMORY", MEMORY)

    @rule(
        place=number,
        events=st.lists(kinds, min_size=1, max_size=4),
        turns=st.integers(0, 4),
        is_killed=st.booleans(),
    )
    def interrupt(
        self, place: int, events: list[tuple[str, str]], turns: int, is_killed: bool
    ) -> None:
        """Publishers are cancelled, or killed, at some place between the number, the commit and the
        end.
        """
        if (desk := self.desk(place)) and desk.journal is not None:
            self.run(self._interrupt(desk, events, turns, is_killed and len(self.open) > 1))

    async def _interrupt(
        self, desk: Desk, kinds: list[tuple[str, str]], turns: int, is_killed: bool
    ) -> None:
        events = [Event(type, None, key=key) for type, key in kinds]
        tasks = [asyncio.create_task(desk.bus.publish(event)) for event in events]
        for _ in range(turns):
            await asyncio.sleep(0)
        for event, task in zip(events, tasks, strict=True):
            is_done = task.done() and not task.cancelled() and task.exception() is None
            if event.seq:
                desk.note(event, is_confirmed=is_done)
            if not is_killed:
                task.cancel()
        if is_killed:
            await self._kill(desk)
        await asyncio.gather(*tasks, return_exceptions=True)

    @rule(seconds=st.sampled_from([2.0, 4.0, 30.0, MEMORY + 50.0]), place=number)
    def stay_away(self, seconds: float, place: int) -> None:
        """One that is away comes back so much later."""
        away = [each for each in self.desks if each.journal is not None and each.has_ended]
        if away and self.started < 2 * MOST_STARTS:
            self.run(asyncio.sleep(seconds))
            self.run(self._start(away[place % len(away)].name))


EXAMPLES = os.environ.get("MACHINE_EXAMPLES", "")
AnyOrder.TestCase.settings = settings(
    max_examples=int(EXAMPLES or 200),
    derandomize=not EXAMPLES,
    stateful_step_count=50,
    phases=set(Phase) - {Phase.explain},
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
WithJournals.TestCase.settings = settings(
    AnyOrder.TestCase.settings,
    max_examples=int(EXAMPLES or 48) // 4,  # each takes four times as long
)
TestAnyOrder = AnyOrder.TestCase
TestAnyOrderWithJournals = WithJournals.TestCase
