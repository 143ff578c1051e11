"""What each subscription is owed by the contract, and whether it got it.

Owns the judgement. It knows what was published, what handlers were given and what the public API
says (`stats`, `unconfirmed`, `reached`, `aiobus.peer_left`), and nothing of how buses do it.
"""

import asyncio
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from journals import facts, read

from aiobus import AsyncEventBus, Event, Subscription
from aiobus.sequence import EVICTED, LEFT, UNANSWERED, UNKNOWN, WENT_BACK

FORGED = 2**62
"""Numbers from here on no source here ever has: they are a lie."""
PATIENCE = 10.0
"""Seconds without an answer after which what is missing counts as lost."""
GRACE = 5.0
"""Seconds after which one that was killed has left."""
MEMORY = 100.0
"""Seconds after which one that has left is forgotten, in place of an hour."""

Id = tuple[str, int]
"""Name and epoch: one start of a bus, or with a journal all of its starts."""


class Trouble:
    """What excuses a subscription from having everything."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.is_parted = False
        self.is_forged = False
        """Something was said that no bus had said."""
        self.is_disorderly = False
        """Something came twice or out of order, which networks see to that it does not."""
        self.is_tight = False
        """So few messages may be on their way that some are lost without a fault."""
        self.longest_delay = 0.0
        self._last = -math.inf
        self._is_lasting = False

    def note(self, *, is_lasting: bool | None = None) -> None:
        """There is some now; `is_lasting`: from now on, or no more."""
        self._last = self.now()
        self._is_lasting = self._is_lasting if is_lasting is None else is_lasting

    @property
    def is_recent(self) -> bool:
        """True when a question may have had no answer for as long as is waited for one."""
        is_there = self.is_parted or self._is_lasting or self.is_forged or self.is_tight
        # What was sent during it arrives this much later; what was given up is told with the next.
        since = self.now() - self._last
        return is_there or since <= PATIENCE + self.longest_delay + 3.0


@dataclass(frozen=True)
class Told:
    """A gap that a subscription was told of."""

    after: int
    upto: int
    reason: str


@dataclass(frozen=True)
class Published:
    """An event as it was published."""

    seq: int
    type: str
    key: str
    timestamp: float


class Desk:
    """A source: one start of a bus, or with a journal all of its starts; what it published, and
    whom it knew.
    """

    def __init__(
        self,
        name: str,
        history_events: int,
        trouble: Trouble,
        desks: list["Desk"],
        *,
        is_paced: bool = False,
        journal: Path | None = None,
    ) -> None:
        self.bus: AsyncEventBus
        self.is_paced = is_paced
        self.journal = journal
        self.name = name
        self.trouble = trouble
        self.desks = desks
        """All there are, this one among them once it has started."""
        self.history_events = history_events
        self.published: list[Published] = []
        self.has_ended = self.was_killed = False
        self.confirmed_at_end: set[Id] = set()
        """Those of which its `close` says that they have everything."""
        self.left: dict[Id, int] = {}
        """Up to which seq it had heard of those that left."""
        self._left_at: dict[Id, float] = {}
        self.forgotten: set[Id] = set()
        """Those that came back so late that nothing was known of them any more."""
        self._joined: dict[Id, None] = {}
        self.met: set[Id] = set()
        """Those that have joined."""
        self.joined_at: dict[Id, int] = {}
        """Its seq when each of them joined for the first time."""
        self.begins: list[int] = []
        """Its seq at the beginning of each start."""
        self.born = -math.inf
        """When the present start began."""
        self.away_since = math.inf
        self.longest_absence = self.last_absence = 0.0
        self._highest = 0
        """The highest number that it ever used."""
        self._sent: dict[int, Event[Any]] = {}
        self._confirmed: set[int] = set()
        """What it has published, and what `publish` has said to be in its journal."""

    async def open(self, bus: AsyncEventBus, *, is_watching: bool = False) -> None:
        """It starts, for the first time or with its journal once more. `is_watching`: it notes of
        each event whether the start of its source was told before.
        """
        self.bus, self.born = bus, self.trouble.now()
        self.had = {desk.source: desk.seq for desk in self.desks if desk is not self}
        """Where each other source was at that time."""
        if self.begins:
            absence = self.last_absence = self.born - self.away_since
            self.longest_absence = max(self.longest_absence, absence)
            for desk in self.desks if absence > MEMORY else ():
                desk._starts.pop(self.source, None)  # it may have been forgotten
                desk._unsure.add(self.source)
        await bus.start()
        stats = bus.stats()
        if self.begins:
            assert self.source == (self.name, stats.epoch), "its epoch does not go on"
            assert self.seq > self._highest, "numbers are used again"
        self.source = (self.name, stats.epoch)
        self.begins.append(self.seq)
        self.had[self.source] = self.seq
        self.has_ended = False
        self.confirmed_at_end = set()
        self.linked_at_start = {(each.name, each.epoch) for each in bus.peers} | {self.source}
        self._joined = {(each.name, each.epoch): None for each in bus.peers}
        self.met = set(self._joined)
        for each in self.met:
            self.joined_at.setdefault(each, self.seq)
        self._starts: dict[Id, int] = {}
        """Which start of each source it knows: of those that go on, as it was told."""
        self._unsure: set[Id] = set()
        """Those that it has to join again before that is known."""
        self._missed: set[Id] = set()
        """Those of which it may have missed a whole start."""
        types = ["aiobus.peer_joined", "aiobus.peer_left", "aiobus.peer_restarted"]
        if is_watching:
            types.append("*")
        await bus.subscribe(types, self._note_peer)

    def note_starts(self) -> None:
        """It knows the present start of each that it is linked with by now."""
        for desk in self.desks if not self.has_ended else ():
            is_known = desk.source in self._starts or desk.source in self._unsure
            if desk.source in self._joined and not is_known:
                self._starts[desk.source] = len(desk.begins) - 1

    def has_followed(self, desk: "Desk") -> bool:
        """It has known each start of that one since it was linked with it at its own start."""
        known = self._starts.get(desk.source)
        is_near = (
            known is not None and len(desk.begins) - 1 - known <= 1
        )  # the next may be on its way
        return is_near and desk.source in self.linked_at_start - self._missed

    def end(self, *, is_killed: bool = False) -> None:
        """It has ended. What `publish` has confirmed must be in the journal, and counts; what the
        journal does not have was never published.
        """
        self.has_ended, self.was_killed = True, is_killed
        self.away_since = self.trouble.now()
        if self.journal is not None:
            self._compare()

    def _compare(self) -> None:
        assert self.journal is not None
        stored = [event for _, event in read(self.journal)]
        in_file = {event.seq for event in stored}
        assert self._confirmed <= in_file, f"{self.name} lost {self._confirmed - in_file}"
        assert in_file <= self._sent.keys(), f"{self.name} has {in_file - self._sent.keys()}"
        assert [event.seq for event in stored] == sorted(in_file)
        for event in stored:
            assert facts(event) == facts(self._sent[event.seq])
        if not (self.has_ended and self.was_killed):
            assert in_file == self._sent.keys(), f"{self.name} has not all that it published"
        self._sent = {seq: event for seq, event in self._sent.items() if seq in in_file}
        self.published = [event for event in self.published if event.seq in in_file]

    def _note_peer(self, event: Event[Any]) -> None:
        if not event.type.startswith("aiobus."):
            self._note_event(event)
            return
        source = (event.data["name"], event.data["epoch"])
        if event.type == "aiobus.peer_joined":
            assert source not in self._joined, f"{source} joined {self.name} twice"
            names = [name for name, _ in self._joined]
            assert source[0] not in names, f"{source} joined {self.name} before the old one left"
            self._joined[source] = None
            self._unsure.discard(source)
            self.met.add(source)
            self.joined_at.setdefault(source, event.seq)
            if self.trouble.now() - self._left_at.pop(source, math.inf) > MEMORY:
                self.forgotten.add(source)
                self._starts.pop(source, None)
        elif event.type == "aiobus.peer_restarted":
            start = event.data["start"]
            assert start > self._starts.get(source, 0), f"{source} restarted at {self.name} twice"
            if start - 1 != self._starts.get(source):
                self._missed.add(source)
            self._starts[source] = start
            self._unsure.discard(source)
        else:
            assert source in self._joined, f"{source} left {self.name} and was not there"
            self._check_left(source)
            del self._joined[source]
            self._left_at[source] = self.trouble.now()
            self.left[source] = max(event.data["last"], self.left.get(source, 0))

    def _check_left(self, source: Id) -> None:
        """One that goes on in its journal has left if it has closed, or was away for 5 s."""
        desk = next((each for each in self.desks if each.source == source), None)
        if desk is None:  # it is only starting
            return
        away = self.trouble.now() - desk.away_since if desk.has_ended else desk.last_absence
        is_excused = desk.journal is None or not desk.was_killed or self.trouble.is_recent
        assert is_excused or away >= GRACE, f"{source} left {self.name} after {away:g} s"

    def _note_event(self, event: Event[Any]) -> None:
        """What a start has published comes behind the word that it has begun."""
        source = (event.source, event.epoch)
        known = self._starts.get(source)
        if known is not None and source != self.source:
            (desk,) = (each for each in self.desks if each.source == source)
            start = bisect_left(desk.begins, event.seq) - 1
            assert start <= known, f"{event.id} of start {start} came before that was told"

    def was_long_away(self, other: "Desk") -> bool:
        """True if another may have forgotten it once."""
        return self.longest_absence > MEMORY or self.source in other.forgotten

    def note(self, event: Event[Any], *, is_confirmed: bool = False) -> None:
        last = self.published[-1].seq if self.published else 0
        assert last < event.seq <= self.seq
        assert event.seq > self._highest, f"{self.name} uses {event.seq} again"
        self._highest = event.seq
        self.published.append(Published(event.seq, event.type, event.key, event.timestamp))
        if self.journal is not None:
            self._sent[event.seq] = event
            if is_confirmed:
                self._confirmed.add(event.seq)

    @property
    def seq(self) -> int:
        return self.bus._publisher.seq

    def held(self, upto: int = FORGED) -> list[Published]:
        """What its history holds when it has published up to a seq."""
        by_type: dict[str, list[Published]] = defaultdict(list)
        for event in self.published:
            if event.seq <= upto:
                by_type[event.type].append(event)
        most = 0 if self.journal is not None else self.history_events  # [-0:] is all
        kept = [event for each in by_type.values() for event in each[-most:]]
        return sorted(kept, key=lambda event: event.seq)

    @property
    def joined(self) -> set[Id]:
        """Those that it was told to have joined, and not to have left."""
        return {*self._joined}

    def check(self, alive: set[Id]) -> None:
        """Whom it is linked with when all has come to rest."""
        if not self.has_ended:
            assert self.joined == alive - {self.source}, f"{self.name} knows {self._joined}"
        if self.journal is not None and not self.has_ended:
            self._compare()


class Listener:
    """A subscription, what it is owed, and the log of what it was handed and told."""

    def __init__(
        self,
        desk: Desk,
        *,
        query: tuple[list[str], str | None],
        policy: Any,
        maxsize: int,
        since: Any,
        max_age: float | None,
        pace: float,
        trouble: Trouble,
    ) -> None:
        self.desk = desk
        self._bus = desk.bus
        self.types, self.key = query
        self.policy = policy
        self.since = since
        self.options = {
            "key": self.key,
            "overflow": policy,
            "maxsize": maxsize,
            "since": since,
            "max_age": max_age,
        }
        self.may_drop = policy in ("latest", "drop_oldest") or max_age is not None
        self.pace = pace
        self.trouble = trouble
        self.log: dict[Id, list[int | Told]] = defaultdict(list)
        self._strangers: set[Id] = set()
        """Those of which a gap was told before they had joined: no bus says that they leave."""
        self.begin: dict[Id, int] = {}
        """After which seq everything is owed, where that is certain."""
        self.past: dict[Id, set[int]] = {}
        """What is owed of before it."""
        self.floor: dict[Id, int] = {}
        """Up to which seq nothing may come."""
        self.confirmed: dict[Id, tuple[int, int]] = {}
        """Up to which seq a flush said that it has everything, and how many gaps there were then:
        some of them may have been in the inbox still.
        """
        self._told: list[tuple[Id, Told]] = []
        self.made = math.inf
        self.has_left = False
        self._known: dict[Id, Desk] = {}
        self._names: dict[Id, dict[int, tuple[str, str]]] = defaultdict(dict)
        self._reading = asyncio.Event()
        self._reading.set()
        self.subscription: Subscription

    @property
    def label(self) -> str:
        keys = "" if self.key is None else f"/{self.key}"
        return f"{self.policy} of {self.types}{keys} at {self.desk.name}"

    @property
    def is_open(self) -> bool:
        return not (self.has_left or self.desk.has_ended or self.desk.bus is not self._bus)

    def wants(self, event: Published) -> bool:
        of_type = self.types == ["*"] or event.type in self.types
        if self.key is None:
            return of_type
        prefix, star, _ = self.key.partition("*")
        return of_type and (event.key.startswith(prefix) if star else event.key == self.key)

    # What happens to it.

    async def join(self, desks: list[Desk]) -> None:
        await asyncio.sleep(0.001)  # so that nothing else has begun at this very moment
        called = self.trouble.now()
        for each in desks:
            self._known[each.source] = each
            is_older = each.born < called - self.trouble.longest_delay - 1.0 or each.has_ended
            if self.since is None and (is_older or each is self.desk):
                self.floor[each.source] = each.seq
        seqs = {each.source: each.seq for each in desks}
        self.subscription = await self.desk.bus.subscribe(
            [*self.types, "aiobus.gap"], self._handle, timeout=2.0, **self.options
        )
        self.made = self.trouble.now()
        for each in desks:
            if not each.has_ended and (each is self.desk or self._is_linked(each)):
                self.begin[each.source] = seqs[each.source]
                self.past[each.source] = self._past(each)

    def _past(self, desk: Desk) -> set[int]:
        wanted = [event for event in desk.published if self.wants(event)]
        if self.since is None:
            return set()
        if self.since == "last":
            held = {event.seq for event in desk.held()}
            newest = {(event.type, event.key): event.seq for event in wanted if event.seq in held}
            return set(newest.values())
        reached = self.subscription.reached
        assert reached is not None
        assert reached >= self.since
        return {event.seq for event in wanted if event.timestamp >= reached}

    def _is_linked(self, desk: Desk) -> bool:
        """True when the desk is known here, and has confirmed that the query is live there."""
        links = {(link.name, link.epoch) for link in self.desk.bus.peers}
        return desk.source in links and desk.name not in self.subscription.unconfirmed

    def note_links(self, desks: Iterable[Desk]) -> None:
        """A bus that has confirmed it owes it everything from now on."""
        for desk in desks if self.is_open and self.made < math.inf else ():
            self._known.setdefault(desk.source, desk)
            if desk.source in self.begin:
                continue
            if desk.born > self.made:
                if desk.journal is None or self._is_linked(desk):
                    self.begin[desk.source] = desk.begins[-1]
            elif self.since != "last" and not desk.has_ended and self._is_linked(desk):
                # Of one that is met later, "last" is asked then, and answered later still.
                self.begin[desk.source] = desk.seq

    async def leave(self) -> None:
        self.has_left = True
        await self.subscription.unsubscribe()

    def pause(self, is_paused: bool) -> None:
        (self._reading.clear if is_paused else self._reading.set)()

    async def _handle(self, event: Event[Any]) -> None:
        assert not self.has_left, "handed over after its end"
        if self.desk.journal is not None and self.desk.was_killed and not self.is_open:
            return  # its process is dead
        if event.type == "aiobus.gap":
            self._note_gap(event.data)
        elif event.seq < FORGED:
            self.log[event.source, event.epoch].append(event.seq)
            self._names[event.source, event.epoch][event.seq] = (event.type, event.key)
            self._check_past(event)
        if self.pace:
            await asyncio.sleep(self.pace)
        await self._reading.wait()

    def _check_past(self, event: Event[Any]) -> None:
        """It is marked if it is from before the start of this bus. What its source has published
        after that is not marked if this bus knows each start of it.
        """
        source = (event.source, event.epoch)
        desk = self._known.get(source)
        if self._bus is not self.desk.bus or (desk and desk.was_long_away(self.desk)):
            return
        had = self.desk.had.get(source, 0)
        is_new = desk is not None and event.seq > had and self.desk.has_followed(desk)
        assert event.past or event.seq > had, f"{event.id} is not marked at {self.label}"
        assert not (event.past and is_new), f"{event.id} is marked at {self.label}"

    def _note_gap(self, data: dict[str, Any]) -> None:
        source = (data["source"], data["epoch"])
        told = Told(data["after"], data["upto"], data["reason"])
        assert told.after < told.upto, told
        if told.reason == UNANSWERED:
            assert self.trouble.is_recent, f"{self.label} gave up {told}"
        if source not in self.desk.met:
            self._strangers.add(source)
        if told.reason == WENT_BACK or told.upto >= FORGED:
            assert self.trouble.is_forged, f"{source} went back without a reason: {told}"
            # What is beyond was never there, and will be handed over once it is.
            known = self._known.get(source)  # None: it is only starting
            newest = told.after if known is None else known.seq
            told = Told(told.after, min(told.upto, newest), told.reason)
        self.log[source].append(told)
        self._told.append((source, told))

    def is_owed(self, desk: Desk) -> bool:
        """True when it is certain that the desk owes it what it has published."""
        is_linked = desk is not self.desk and self.is_open and self._is_linked(desk)
        peers = {(link.name, link.epoch) for link in desk.bus.peers}
        return is_linked and desk.source in self.begin and self.desk.source in peers

    def note_confirmed(self, desk: Desk, upto: int) -> None:
        """A flush says that it has everything."""
        self.confirmed[desk.source] = (upto, self.subscription.stats.gaps)

    # What holds in the end.

    def seen(self, source: Id) -> list[int]:
        return [entry for entry in self.log[source] if isinstance(entry, int)]

    def gaps(self, source: Id) -> list[Told]:
        return [entry for entry in self.log[source] if isinstance(entry, Told)]

    def _is_told(self, source: Id, seq: int) -> bool:
        return any(gap.after < seq <= gap.upto for gap in self.gaps(source))

    def lost(self, desk: Desk, upto: int) -> list[int]:
        """What it is owed up to a seq, and was neither handed nor told of."""
        source = desk.source
        seen, past = set(self.seen(source)), self.past.get(source, set())
        first = [*seen, *(gap.after + 1 for gap in self.gaps(source))]
        begin = self.begin.get(source, math.inf)
        if self.since != "last" and first:
            begin = min(begin, min(first) - 1)
        return [
            event.seq
            for event in desk.published
            if self.wants(event)
            and (event.seq > begin or event.seq in past)
            and event.seq <= upto
            and event.seq not in seen
            and not self._is_told(source, event.seq)
        ]

    def upto(self, desk: Desk) -> float:
        """Up to which seq it must know of everything."""
        source = desk.source
        reach = max([0, *self.seen(source), *(gap.upto for gap in self.gaps(source))])
        if desk is self.desk or not desk.has_ended:
            return math.inf if self.is_open else reach
        if self.trouble.is_disorderly or self.trouble.is_forged:
            return 0  # it may hide what went before it, and no source is left to ask
        if not self.is_open:
            return reach
        if self.desk.source in desk.confirmed_at_end and source in self.begin:
            return math.inf
        return max(reach, self.desk.left.get(source, 0))

    def check(self, desks: list[Desk]) -> None:
        if self.made == math.inf:
            return
        known = {desk.source: desk for desk in desks}
        assert self.log.keys() <= known.keys(), f"{self.label} saw a phantom"
        missing = possible = 0
        for desk in desks:
            self._check_seen(desk)
            if self.policy != "latest":
                self._check_gaps(desk)
            lost = self.lost(desk, self.upto(desk))  # type: ignore[arg-type]
            missing += len(lost)
            possible += len({e.seq for e in desk.published if self.wants(e)})
            possible -= len(self.seen(desk.source))
            if not self.may_drop:
                assert lost == [], f"{self.label} silently lost {lost} of {desk.source}"
                self._check_confirmed(desk)
        if self.may_drop and self.is_open:
            stats = self.subscription.stats
            counted = stats.dropped + stats.conflated + stats.expired
            assert missing <= counted, f"{self.label} lost {missing}, and counted {counted}"
            assert counted <= possible or self.trouble.is_forged, f"{self.label} counts {counted}"
            if self.policy == "latest" and stats.dropped == stats.expired == 0:
                self._check_latest(desks)

    def _check_seen(self, desk: Desk) -> None:
        source = desk.source
        seen, names = self.seen(source), self._names[source]
        by_seq = {event.seq: event for event in desk.published}
        for seq in seen:
            event = by_seq.get(seq)
            assert event is not None, f"{self.label} saw {source} {seq}, which was never published"
            assert names[seq] == (event.type, event.key), f"{self.label}: {source} {seq} is altered"
            assert self.wants(event), f"{self.label} saw {event} and did not ask for it"
            is_early = seq <= self.floor.get(source, 0) and not self.trouble.is_forged
            assert not is_early, f"{self.label} saw {source} {seq} of before it was there"
        assert len(set(seen)) == len(seen), f"{self.label} saw {source} twice: {seen}"
        # Under `latest` a newer event takes the place of an older one of its type and key.
        for name in set(names.values()) if self.policy == "latest" else [None]:
            of_name = [seq for seq in seen if name in (None, names[seq])]
            assert of_name == sorted(of_name), f"{self.label}: {source} is disordered: {seen}"

    def _check_gaps(self, desk: Desk) -> None:
        source = desk.source
        handed_over = told = 0
        for entry in self.log[source]:
            where = f"{self.label} of {source}: {entry} in {self.log[source]}"
            if isinstance(entry, int):
                handed_over = max(handed_over, entry)
                # Of several types, one may be held where another is forgotten.
                assert entry > told or len(self.types) > 1 or self.types == ["*"], where
                continue
            if entry.reason in (LEFT, UNKNOWN):
                was_met = source not in self._strangers
                is_kept = desk.journal is not None and not desk.was_long_away(self.desk)
                assert not (is_kept and was_met), f"{where} is in its journal"
                has_left = source in self.desk.left or source in self._strangers
                assert desk.has_ended or has_left, where
            if entry.reason == EVICTED:
                self._check_evicted(desk, entry)
            if entry.reason != WENT_BACK and entry.upto > entry.after:
                assert entry.after >= max(handed_over, told), where
                assert entry.upto <= desk.seq, where
                if entry.reason != UNKNOWN:  # it may come back, and what was not lost with it
                    told = entry.upto

    def _check_evicted(self, desk: Desk, gap: Told) -> None:
        """It ends with an event that is forgotten, of a type that was asked for. A publisher that
        is paced outruns none that has joined and that it has not taken for gone.
        """
        joined_at = 0 if desk is self.desk else desk.joined_at.get(self.desk.source, FORGED)
        is_gone = self.desk.source in desk.left or self.trouble.is_forged
        is_excused = is_gone or gap.upto <= joined_at
        assert is_excused or not desk.is_paced, f"{self.label} was outrun by {desk.name}: {gap}"
        held = {event.seq for event in desk.held()}
        last = [event for event in desk.published if event.seq == gap.upto]
        is_forgotten = bool(last) and gap.upto not in held
        of_type = bool(last) and (self.types == ["*"] or last[0].type in self.types)
        assert (is_forgotten and of_type) or self.trouble.is_forged, f"{self.label}: needless {gap}"

    def _check_confirmed(self, desk: Desk) -> None:
        """What a flush said it had is not lost later."""
        if desk.source not in self.confirmed or self.trouble.is_disorderly or not self.is_open:
            return
        upto, count = self.confirmed[desk.source]
        gaps = [gap for source, gap in self._told[:count] if source == desk.source]
        seen = set(self.seen(desk.source))
        false = [
            event.seq
            for event in desk.published
            if self.wants(event)
            and self.begin[desk.source] < event.seq <= upto
            and event.seq not in seen
            and not any(gap.after < event.seq <= gap.upto for gap in gaps)
        ]
        assert false == [], f"{desk.name} was told that {self.label} has {false}"

    def _check_latest(self, desks: list[Desk]) -> None:
        """Of each type and key, the last to arrive was the newest of one of the sources."""
        newest: dict[tuple[str, str], dict[Id, int]] = defaultdict(dict)
        for desk in desks:
            for event in desk.published:
                if self.wants(event):
                    newest[event.type, event.key][desk.source] = event.seq
        ended = {desk.source for desk in desks if desk.has_ended}
        for name, lasts in newest.items():
            is_owed = any(self.begin.get(each, math.inf) < seq for each, seq in lasts.items())
            if not is_owed or ended & lasts.keys():  # one that has ended may have been the last
                continue
            is_there = any(
                seq in self.seen(each) or self._is_told(each, seq) for each, seq in lasts.items()
            )
            assert is_there, f"{self.label} has not the newest of {name}"
