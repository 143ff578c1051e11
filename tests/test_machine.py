"""The core of the protocol in any order in which things can happen, without a loop and sockets.

Sources, subscriptions and the links between them, built of the real parts that decide what is
numbered, kept, sent, missing and lost: `Publisher` and `History`, `Stream`, `Inlets` and `Pages`,
`Intake` and its cursors, and the bytes between them. A state machine of Hypothesis publishes,
loses, repeats, disorders, cuts, kills and waits; then everything is brought to rest, and each
subscription must have been handed what it is owed, once and in order, or told exactly what is lost.

The examples are the same in each run; MACHINE_EXAMPLES=5000 draws that many others.
"""

import math
import os
from collections import defaultdict, deque
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
)

from aiobus import Event, Limits, sequence, wire
from aiobus.history import Page, Since, Want
from aiobus.intake import Intake
from aiobus.pattern import Query
from aiobus.peers import Peer
from aiobus.publisher import Publisher
from aiobus.rows import LazyBatch
from aiobus.sequence import EVICTED, UNKNOWN, WENT_BACK, Gap
from aiobus.stream import Stream
from aiobus.testing import Message
from aiobus.transport import Inlet
from aiobus.transport.inlets import Inlets
from aiobus.transport.marks import LAST
from aiobus.transport.pages import Pages
from aiobus.wire import Answer, Ask, Frame, Heartbeat, Mark, PageAnswer, PageAsk, Who, WireError

PATIENCE, RETRY = 10.0, 1.0
"""Seconds, as the protocol has it."""
FORGED = 2**62
"""A seq that no source here ever has: it is somebody's lie, or a bug."""
FRAME_EVENTS = 3
"""Of a frame here, so that a burst is several of them."""
NAMES = ("feed", "broker")
QUERIES = (
    Query.of("A"),
    Query.of(("A", "B")),
    Query.of("*"),
    Query.of(("A", "B"), "x"),
)


class HandClock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Link:
    """Between a source and a process that listens to it. What is on its way is in `down` and `up`.

    While it is not `up`, nothing can be sent, but what has arrived can still be read.
    """

    def __init__(self, source: "Source", process: "Process") -> None:
        self.source = source
        self.process = process
        self.is_up = False
        self.has_been_left = False
        self.is_orderly = True
        """Nothing came down twice or out of order."""
        self.is_whole = True
        """Nothing was lost on its way down."""
        self.is_forged = False
        """Something came down that the source never said."""
        self.ended = 0
        """Up to where the source was heard of when it left."""
        self.topics: set[bytes] = set()
        """What is asked for, as far as the source knows."""
        self.down: list[bytes] = []
        self.up: list[bytes] = []
        self.heard: deque[bytes] = deque(maxlen=8)
        self.forged: set[bytes] = set()
        """What came down, or will, that the source never said."""
        self.peer = Peer(source.id[0], source.who.endpoint, 0.0)
        self.doubt: int | None = None
        """The number of the question to a source that said less than was heard of it."""
        self.asked: dict[int, list[Intake]] = {}
        """Questions without an answer: for which subscriptions each was asked."""

    def connect(self) -> None:
        self.is_up = True
        self.has_been_left = False
        self.up += [b"\1" + topic for topic in sorted(self.process.topics)]
        self.process.ask(self, list(self.process.inlets))

    def cut(self, kept: int) -> None:
        """Of what was on its way down, only the first `kept` have arrived."""
        self.is_up = False
        del self.down[kept:]
        self.up.clear()
        for topic in sorted(self.topics):
            self.source.withdraw(self, topic)

    def deliver(self) -> None:
        self.heard.append(self.down.pop(0))
        self.process.hear(self, self.heard[-1])

    def deliver_up(self) -> None:
        self.source.hear(self, self.up.pop(0))


class Source:
    """One start of a bus that publishes."""

    def __init__(self, name: str, epoch: int, limits: Limits, clock: HandClock) -> None:
        self.publisher = Publisher(name, limits)
        self.publisher.epoch = epoch
        self.id = (name, epoch)
        self.born = clock.now
        self.is_alive = True
        self.events: list[Event[Any]] = []
        self.links: list[Link] = []
        self._clock = clock
        self._streams: dict[bytes, Stream] = {}
        self._joining: list[Stream] = []
        self.pasts: dict[tuple[str, int], list[int]] = {}
        """What `"last"` meant, by query and by the newest seq when it was asked."""

    @property
    def who(self) -> Who:
        return Who(*self.id, f"ipc:///{self.id[0]}")

    def publish(self, type: str, key: str) -> None:
        event = Event(type, None, 0.0, key=key)
        self.publisher.publish(event)
        self.events.append(event)

    def end_tick(self) -> None:
        self._joining[:] = [stream for stream in self._joining if stream.end_tick()]

    def send(self, message: bytes) -> None:
        topic = message[: message.index(b"\0") + 1]
        for link in self.links:
            if topic in link.topics:
                link.down.append(message)

    def beacon(self) -> None:
        for stream in self._streams.values():
            stream.beacon()
            stream.quiet_beacon()

    def beat(self, *, leaving: bool = False) -> None:
        """Say where it is; of a link that is cut nothing comes."""
        for link in self.links:
            if link.is_up:
                link.down.append(wire.heartbeat(*self.id, self.publisher.seq, leaving=leaving))

    def mark(self, number: int) -> None:
        for stream in self._joining:
            stream.flush()
        streams = tuple((each.query.text, each.sent) for each in self._streams.values())
        self.beat()
        for link in self.links:
            if link.is_up:
                mark = Mark(number, self.who, streams)
                link.down.append(wire.mark(link.process.me, mark))

    def withdraw(self, link: Link, name: bytes) -> None:
        link.topics.discard(name)
        topic = name.removeprefix(wire.QUIET)
        names = {topic, wire.quiet(topic)}
        if not any(names & each.topics for each in self.links) and topic in self._streams:
            stream = self._streams.pop(topic)
            self.publisher.detach(stream)
            if stream in self._joining:
                self._joining.remove(stream)

    def hear(self, link: Link, message: bytes) -> None:
        if message[:1] == b"\1":
            self._serve(link, message[1:])
            return
        if message[:1] == b"\0":
            self.withdraw(link, message[1:])
            return
        match said := wire.read_up(message):
            case Ask():
                for stream in self._joining:
                    stream.flush()
                age = self._clock.now - self.born
                answer = Answer(said.nonce, self.who, age, self.publisher.seq, is_open=True)
                link.down.append(wire.answer(link.process.me, answer))
            case PageAsk() if said.epoch == self.id[1]:
                self._answer_page(link, said)

    def _serve(self, link: Link, name: bytes) -> None:
        link.topics.add(name)
        query, topic = wire.read_topic(name), name.removeprefix(wire.QUIET)
        if topic not in self._streams:
            assert isinstance(query, Query)
            seq, join = self.publisher.seq, self._joining.append
            stream = self._streams[topic] = Stream(query, topic, self.id, seq, self.send, join)
            self.publisher.attach(stream)

    def _answer_page(self, link: Link, asked: PageAsk) -> None:
        topic = wire.topic(asked.query)
        if topic in self._streams:
            self._streams[topic].flush()
        query = wire.read_topic(topic)
        assert isinstance(query, Query)
        want = Want(asked.after, asked.since, asked.upto)
        history = self.publisher.history
        if asked.since == "last":
            self.pasts[asked.query, history.newest] = self._past(query)
        page = history.answer(query, want, asked.limit, look=4)
        rows = [row for _, _, row in page.rows]
        where = (page.after, page.evicted, page.to, page.newest, page.reached)
        link.down.append(wire.page(link.process.me, asked.nonce, *self.id, *where, rows))

    def _past(self, query: Query) -> list[int]:
        newest: dict[tuple[str, str], int] = {}
        for each in self.events:
            ring = self.publisher.history.ring(each.type)
            assert ring is not None
            if query.matches(each.type, each.key) and each.seq > ring.evicted:
                newest[each.type, each.key] = each.seq
        return sorted(newest.values())

    def die(self, kept: int) -> None:
        self.is_alive = False
        for link in self.links:
            link.cut(kept)

    def leave(self) -> None:
        """Say bye behind the data."""
        for stream in self._joining:
            stream.flush()
        self.beacon()
        self.mark(LAST)
        self.beat(leaving=True)
        self.die(1000)


class Process:
    """A bus that listens: what of it decides where a message belongs."""

    def __init__(self, number: int, clock: HandClock) -> None:
        self.me = Who(f"bot-{number}", 7, f"ipc:///bot-{number}")
        self.inlets = Inlets()
        self.links: list[Link] = []
        self.boxes: dict[Intake, Box] = {}
        self.topics: set[bytes] = set()
        self._clock = clock
        self._pages = Pages(self._ask_page)
        self._last_nonce = 0

    def subscribe(self, query: Query, room: int, since: Since = None) -> "Box":
        box = Box(self, query, room, self._clock, since)
        self.boxes[box.intake] = box
        if (topic := self.inlets.add(box.intake)) is not None:
            self.topics.add(topic)
            self._say(b"\1" + topic)
        self.turn()
        self._ask_all([box.intake])
        return box

    def _say(self, message: bytes) -> None:
        for link in self.links:
            if link.is_up:
                link.up.append(message)

    def _ask_all(self, inlets: list[Intake]) -> None:
        for link in self.links:
            if link.is_up:
                self.ask(link, inlets)

    def turn(self) -> None:
        """As `Mesh`, where something has turned quiet or loud."""
        while self.inlets.turned:
            topic = self.inlets.turned.pop()
            self.topics.add(topic.live)
            self.topics.discard(topic.other)
            self._say(b"\1" + topic.live)
            self._say(b"\0" + topic.other)
            if not topic.is_quiet:
                self._ask_all(
                    [box.intake for box in self.boxes.values() if box.intake in topic.inlets]
                )

    def ask(self, link: Link, inlets: list[Intake]) -> None:
        """Whether their queries are live there."""
        self._last_nonce += 1
        link.asked[self._last_nonce] = inlets
        self._repeat(link, self._last_nonce)

    def _repeat(self, link: Link, nonce: int) -> None:
        link.up.append(wire.up(Ask(link.source.id[0], nonce, self.me)))

    def ask_page(self, inlet: Intake, source: tuple[str, int], want: Want, limit: int) -> bool:
        return self._pages.ask(inlet, source, want, limit, self._clock.now)

    def _ask_page(self, inlet: Inlet, source: tuple[str, int], want: Want, limit: int) -> None:
        number = self.inlets.number(inlet)
        assert number is not None
        name, epoch = source
        what = (inlet.query.text, want.after, limit, want.since, want.upto)
        ask = PageAsk(name, number, self.me, epoch, *what)
        for link in self.links:
            if link.is_up and link.source.id[0] == name:
                link.up.append(wire.up(ask))

    def hear(self, link: Link, message: bytes) -> None:
        """As `Mesh.on_down`."""
        try:
            self._hear(link, message)
        except WireError:
            assert link.is_forged, "refused"  # a page that was asked for after a forged number
        self.turn()

    def _hear(self, link: Link, message: bytes) -> None:
        source, peer, now = link.source, link.peer, self._clock.now
        topic = message[: message.index(b"\0") + 1]
        if not topic.startswith(b"~") and message not in link.forged:
            topic = topic.removeprefix(wire.QUIET)
            frame = Frame(topic, message)
            for box in self.boxes.values():
                if wire.topic(box.query.text) == topic:
                    box.accounts[source.id].hear(frame.prev, frame.newest)
        match said := wire.read_down(message, self.me):
            case Frame():
                peer.hear(now, said.newest)
                self.inlets.take(said, peer.last)
            case Answer():
                self._hear_answer(link, said)
            case PageAnswer():
                inlet = self.inlets.numbered(said.nonce)
                assert inlet is not None
                peer.hear(now, said.newest)
                page = Page(said.after, said.evicted, said.to, said.newest, [], said.reached)
                self._pages.answered(inlet, source.id, self._clock.now)
                account = self.boxes[inlet].accounts[source.id]
                if message not in link.forged:
                    account.heard = max(account.heard, said.newest)
                was_beginning = source.id in inlet.beginning
                self.inlets.turn(inlet, source.id, page, said.rows)
                if was_beginning and source.id not in inlet.beginning:
                    self.boxes[inlet].begin(source, said)
            case Mark():
                peer.hear(now, max((seq for _, seq in said.streams), default=0))
                if said.mark == LAST:
                    self.inlets.end(said, peer.last)
                else:
                    self.inlets.mark(said)
            case Heartbeat() if said.leaving:
                peer.hear(now, said.seq)
                self.leave(link)
            case Heartbeat():
                self._weigh(link, said.seq)
                peer.hear(now, said.seq)
        for mark in self.inlets.reached([link.source.id for link in self.links if link.doubt]):
            self._check_mark(mark)

    def _weigh(self, link: Link, seq: int) -> None:
        """As `Links`, of what a source says of itself."""
        if seq < link.peer.last and link.doubt is None and link.is_up:
            link.peer.doubt()
            self.ask(link, [])
            link.doubt = self._last_nonce

    def _confirm(self, link: Link, said: Answer) -> None:
        if said.nonce == link.doubt:
            link.doubt = None
            if link.peer.confirm(said.seq):
                assert link.is_forged, "it went back without a reason"
                self.inlets.go_back(link.source.id, link.peer.last)
            else:
                self._weigh(link, said.seq)

    def _hear_answer(self, link: Link, said: Answer) -> None:
        source = link.source.id
        self._weigh(link, said.seq)
        link.peer.hear(self._clock.now, said.seq)
        self.inlets.note_start(source, self._clock.now - said.age)
        for box in self.boxes.values():
            box.accounts[source].seems_younger |= self._clock.now - said.age > box.made
        inlets = link.asked.pop(said.nonce, [])
        for inlet in inlets:
            # Of what was sent before, nothing comes behind it, where things arrive in order.
            if said.seq < FORGED:
                account = self.boxes[inlet].accounts[source]
                account.hear(said.seq, said.seq if link.is_orderly else 0)
        self.inlets.meet(inlets, said)
        self._confirm(link, said)

    def _check_mark(self, mark: Mark) -> None:
        """A source is about to be told that all it sent has arrived."""
        who = (mark.who.name, mark.who.epoch)
        (link,) = [link for link in self.links if link.source.id == who]
        source = link.source
        if link.is_forged and not (link.is_orderly and link.is_whole):
            return  # the heartbeat before it, which raises a doubt, may not have come before it
        for text, seq in mark.streams:
            if seq >= FORGED:
                continue  # nobody waits for that
            for box in self.boxes.values():
                if box.query.text == text:
                    assert box.silently_lost(source, seq) == [], "a false acknowledgement"

    def leave(self, link: Link, *, is_dead: bool = False) -> None:
        """The source has said bye, or its link was cut for too long, or (`is_dead`) another has
        taken its place.
        """
        link.has_been_left = True
        for box in self.boxes.values():
            box.accounts[link.source.id].has_left = True
        peer, source = link.peer, link.source.id
        if link.doubt is not None:
            del link.asked[link.doubt]
            link.doubt = None
        self.inlets.leave(source, self._clock.now, peer.last, is_dead=is_dead)
        link.ended = min(peer.last, link.source.publisher.seq)
        self.turn()

    def excuse(self) -> None:
        """It was held up: patience begins anew."""
        for box in self.boxes.values():
            box.have_patience_anew()
        self.inlets.excuse()

    def tick(self) -> None:
        for link in self.links:
            for nonce in link.asked:
                if link.is_up:
                    self._repeat(link, nonce)
        self._pages.tick(self._clock.now)
        for box in self.boxes.values():
            if box.vacancy <= 0 and len(box.intake.behind) == 1 and not box.intake.beginning:
                box.have_patience_anew(self._clock.now - RETRY)
        self.inlets.tick(self._clock.now, (), ())
        self.turn()
        for box in self.boxes.values():
            box.lose_patience()


class Account:
    """What one subscription is owed by one source, by the contract, and what it got."""

    def __init__(self) -> None:
        self.place: int | None = None
        """What was heard first: before it nothing is owed of a source older than the subscription.
        """
        self.heard = 0
        """Up to where it has heard of the source: of more, nobody can tell when that is gone."""
        self.seems_younger = False
        """What a message takes to arrive makes its sender look younger."""
        self.has_left = False
        self.asked_since: float | None = None
        """Since when it waits for the answer to a question for a page."""
        self.asked_last = 0.0
        self.has_given_up = False
        self.is_of_the_past = False
        """Where it begins, the source has to tell."""
        self.past: list[int] = []
        """What of before that place it is owed all the same."""
        self.log: list[int | Gap] = []

    def hear(self, prev: int, newest: int) -> None:
        if self.place is None and not self.is_of_the_past:
            self.place = prev
        self.heard = max(self.heard, newest)

    @property
    def seen(self) -> list[int]:
        return [entry for entry in self.log if isinstance(entry, int)]

    @property
    def gaps(self) -> list[Gap]:
        return [entry for entry in self.log if isinstance(entry, Gap)]


class Box:
    """A subscription with room for few events, which writes down what it is handed and told."""

    def __init__(
        self, process: Process, query: Query, room: int, clock: HandClock, since: Since
    ) -> None:
        self.query = query
        self.since = since
        self.room = self.maxsize = self.vacancy = room
        self.made = clock.now
        self.accounts: dict[tuple[str, int], Account] = defaultdict(self._account)
        self._process = process
        self._clock = clock
        self.intake = Intake(query, self, self, since)  # type: ignore[arg-type]

    def _account(self) -> Account:
        account = Account()
        account.is_of_the_past = self.since is not None
        return account

    def begin(self, source: Source, said: PageAnswer) -> None:
        """A source has told where in its past this one begins."""
        account = self.accounts[source.id]
        place = said.newest if self.since == "last" else said.after
        account.place = min(place, source.publisher.seq)
        if self.since == "last":
            account.past = source.pasts.get((self.query.text, said.newest), [])

    def reach(self, timestamp: float) -> None:
        pass

    def note_idle(self) -> None:
        pass

    def ask(self, inlet: Intake, source: tuple[str, int], want: Want, limit: int) -> bool:
        account = self.accounts[source]
        if account.asked_since is None:
            account.asked_since = self._clock.now
        account.asked_last = self._clock.now
        return self._process.ask_page(inlet, source, want, limit)

    @property
    def is_hungry(self) -> bool:
        return self.vacancy == self.room

    def keep(self, batch: LazyBatch, after: int = 0) -> None:
        events = []
        while batch.left:
            events += [event for event in batch.take() if event.seq > after]
        assert batch.error is None
        self.vacancy -= len(events)
        for event in events:
            account = self.accounts[event.source, event.epoch]
            if event.seq < FORGED:
                account.log.append(event.seq)
            if (event.source, event.epoch) not in self.intake.behind:
                account.asked_since, account.has_given_up = None, False

    def lose(self, source: tuple[str, int], gap: Gap) -> None:
        account = self.accounts[source]
        (link,) = [link for link in self._process.links if link.source.id == source]
        if gap.upto >= FORGED or gap.reason == WENT_BACK:
            assert link.is_forged
            # What is beyond was never there, and will be handed over once it is.
            gap = Gap(gap.after, link.source.publisher.seq, gap.reason)
        if gap.after < gap.upto:
            account.log.append(gap)
        if account.is_of_the_past and account.place is None:
            account.place = gap.upto  # nobody told
        match gap.reason:
            case sequence.LEFT | sequence.UNKNOWN:
                assert account.has_left
            case "its source did not answer":
                assert account.asked_since is not None
                assert self._clock.now - account.asked_since >= PATIENCE, "given up too early"
        account.asked_since, account.has_given_up = None, False

    def have_patience_anew(self, asked: float = math.inf) -> None:
        """With those who were asked last at `asked` or before: nobody can answer who was not."""
        for account in self.accounts.values():
            if not account.has_given_up and account.asked_last <= asked:
                account.asked_since = None

    def lose_patience(self) -> None:
        for account in self.accounts.values():
            since = account.asked_since
            account.has_given_up |= since is not None and self._clock.now - since >= PATIENCE

    def fall_behind(self) -> None:
        pass

    def read(self, count: int) -> None:
        self.vacancy = min(self.room, self.vacancy + count)
        self.intake.pull(has_moved=True)

    def silently_lost(self, source: Source, upto: int) -> list[int]:
        """What it is owed of a source up to a seq, and was neither handed nor told of."""
        account = self.accounts[source.id]
        begin = 0 if source.born > self.made else account.place
        if account.place is None or begin is None:
            return []
        seen, gaps = set(account.seen), account.gaps
        return [
            seq
            for seq in self.matching(source)
            if (begin < seq or seq in account.past)
            and seq <= upto
            and seq not in seen
            and not any(gap.after < seq <= gap.upto for gap in gaps)
        ]

    def matching(self, source: Source) -> list[int]:
        return [each.seq for each in source.events if self.query.matches(each.type, each.key)]

    def check(self, source: Source) -> None:
        """What holds once everything has come to rest."""
        account = self.accounts[source.id]
        link = next(link for link in source.links if link.process is self._process)
        # Out of order, a frame may hide what went before it; the next would have shown it.
        # And of one that died before it could be asked, nobody can tell what of it was true.
        is_sure = link.is_orderly and not link.is_forged
        last = max(account.heard, link.ended) if is_sure else 0
        upto = source.publisher.seq if source.is_alive else last
        assert self.silently_lost(source, upto) == [], "silently lost"
        begin = 0 if account.seems_younger or source.born > self.made else account.place or 0
        if self.since is not None or link.is_forged:
            begin = 0
        allowed = [seq for seq in self.matching(source) if seq > begin]
        assert account.seen == sorted(set(account.seen) & set(allowed)), "disordered or not owed"
        handed_over = told = 0
        for entry in account.log:
            if isinstance(entry, int):
                handed_over = entry
                # Of several types, one may be held where another is forgotten.
                assert entry > told or len(self.query.types) != 1, "handed over, but told of"
            elif entry.reason != WENT_BACK:
                assert max(handed_over, told) <= entry.after < entry.upto, "told of what is there"
                assert entry.upto <= source.publisher.seq
                is_exact = link.is_forged or self._is_exact(source, entry.upto)
                assert entry.reason != EVICTED or is_exact
                if entry.reason != UNKNOWN:  # it may come back, and what was not lost with it
                    told = entry.upto
        assert not source.is_alive or source.id not in self.intake.behind

    def _is_exact(self, source: Source, upto: int) -> bool:
        """A gap of what was forgotten ends with such an event."""
        type = source.events[upto - 1].type
        ring = source.publisher.history.ring(type)
        return self.query.matches_type(type) and ring is not None and upto <= ring.evicted


number = st.integers(0, 7)
kinds = st.tuples(st.sampled_from("ABC"), st.sampled_from("xy"))


class Protocol(RuleBasedStateMachine):
    """Two names under which sources start, two processes that listen, a link for each pair."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("aiobus.intake.elapsed", self.clock)
        self.patch.setattr("aiobus.stream.FRAME_EVENTS", FRAME_EVENTS)
        self.patch.setattr("aiobus.transport.pages.AT_ONCE", 1)
        for name, few in (("LEFT", 2), ("FAR", 2), ("NEAR", 1)):
            self.patch.setattr(f"aiobus.transport.topic.{name}", few)
        self.sources: list[Source] = []
        self.processes = [Process(number, self.clock) for number in range(2)]
        self.links: list[Link] = []
        self.boxes: list[Box] = []
        self.epochs = 0

    @initialize(events=st.sampled_from([1, 2, 5, 1000]), query=number, room=number)
    def begin(self, events: int, query: int, room: int) -> None:
        self.limits = Limits(history_events=events)
        self.start(0)
        self.clock.now += 1.0
        self.subscribe(0, query, room, None)
        for _ in range(4):
            self.up(0, 1)
            self.down(0, 1)

    # What sources do.

    def start(self, name: int) -> None:
        self.epochs += 1
        source = Source(NAMES[name % 2], self.epochs, self.limits, self.clock)
        self.sources.append(source)
        for process in self.processes:
            link = Link(source, process)
            source.links.append(link)
            process.links.append(link)
            self.links.append(link)
            link.connect()

    def alive(self, place: int) -> Source:
        found = [source for source in self.sources if source.is_alive]
        return found[place % len(found)]

    @rule(place=number, events=st.lists(kinds, min_size=1, max_size=8), ends=st.booleans())
    def publish(self, place: int, events: list[tuple[str, str]], ends: bool) -> None:
        source = self.alive(place)
        for type, key in events:
            source.publish(type, key)
        if ends:
            source.end_tick()

    @rule(place=number, says=st.sampled_from(["end_tick", "beacon", "beat", "mark"]))
    def say(self, place: int, says: str) -> None:
        source = self.alive(place)
        match says:
            case "end_tick":
                source.end_tick()
            case "beacon":
                source.beacon()
            case "beat":
                source.beat()
            case _:
                source.mark(1)

    @rule(place=number, kept=number, has_died=st.booleans())
    def restart(self, place: int, kept: int, has_died: bool) -> None:
        """It crashes or closes, and another comes; at first, another name comes beside it."""
        if len(self.sources) == 1:
            self.start(1)
            return
        if len(self.sources) < 5:
            source = self.alive(place)
            if has_died:
                source.die(kept)
            else:
                source.leave()
            self.start(NAMES.index(source.id[0]))

    # What happens on the way.

    def link(self, place: int) -> Link:
        """One of the links; rather one on which there is something."""
        found = [link for link in self.links if link.up or link.down] or self.links
        return found[place % len(found)]

    @rule(place=number, count=number)
    def up(self, place: int, count: int) -> None:
        link = self.link(place)
        for _ in range(min(count + 1, len(link.up))):
            link.deliver_up()

    @rule(place=number, count=number)
    def down(self, place: int, count: int) -> None:
        link = self.link(place)
        for _ in range(min(count + 1, len(link.down))):
            link.deliver()

    @rule(place=number, count=number)
    def there_and_back(self, place: int, count: int) -> None:
        """A link works as it should for a while."""
        link = self.link(place)
        for _ in range(count + 1):
            self.everything(link)

    @staticmethod
    def everything(link: Link) -> None:
        while link.up:
            link.deliver_up()
        Protocol.everything_down(link)

    @rule(place=number, first=number, count=number, is_up=st.booleans())
    def lose(self, place: int, first: int, count: int, is_up: bool) -> None:
        link = self.link(place)
        if is_up:
            link.up = [message for message in link.up if message[:1] in b"\0\1"]
        else:
            link.is_whole = False
            first %= len(link.down) or 1
            del link.down[first : first + count + 1]

    @rule(place=number, kind=st.sampled_from(["events", "answer", "page", "beacon"]))
    def lose_kind(self, place: int, kind: str) -> None:
        link = self.link(place)
        link.is_whole = False
        link.down = [each for each in link.down if Message("", "", each).kind != kind]

    @rule(place=number, which=number, later=number, is_moved=st.booleans())
    def disorder(self, place: int, which: int, later: int, is_moved: bool) -> None:
        """A message comes twice, or late."""
        link = self.link(place)
        if link.down:
            which %= len(link.down)
            message = link.down[which]
            link.is_orderly = False
            is_last = link.down[-1].endswith(b'"bye"]')  # and stays so
            link.down.insert(min(which + 1 + later, len(link.down) - is_last), message)
            if is_moved:
                del link.down[which]

    @rule(place=number, which=number)
    def repeat(self, place: int, which: int) -> None:
        """What was heard some time ago comes once more."""
        link = self.links[place % len(self.links)]
        if link.heard and link.source.is_alive:
            link.is_orderly = False
            link.down.insert(0, link.heard[which % len(link.heard)])

    @rule(place=number, where=number, kind=number, query=number, near=st.booleans())
    def forge(self, place: int, where: int, kind: int, query: int, near: bool) -> None:
        """Somebody else says something in the name of a source, with a number that it never had."""
        link = self.links[place % len(self.links)]
        source, me = link.source, link.process.me
        if not (source.is_alive and link.is_up):
            return
        seq = FORGED + 1 + where
        text = QUERIES[query % len(QUERIES)].text
        name, age = wire.topic(text), self.clock.now - source.born
        last = source.publisher.seq if near else seq - 1
        row = b'[%d,0.0,"A","x",null]' % seq
        boxes = [box for box in link.process.boxes.values() if box.query.text == text]
        message = [
            wire.frame(name, *source.id, last, seq, [row]),
            wire.frame(name, *source.id, seq, seq, []),
            wire.heartbeat(*source.id, seq),
            wire.mark(me, Mark(1, source.who, ((text, seq),))),
            wire.answer(me, Answer(next(iter(link.asked), 0), source.who, age, seq, True)),
        ]
        for box in boxes:
            number = link.process.inlets.number(box.intake)
            assert number is not None
            for after in {0, source.publisher.seq}:
                page = (after, seq if near else 0, seq, seq, None)
                message.append(wire.page(me, number, *source.id, *page, [row]))
        forged = message[kind % len(message)]
        link.forged.add(forged)
        link.is_forged = True
        link.down.insert(where % (len(link.down) + 1), forged)

    @rule(place=number, which=number)
    def repeat_question(self, place: int, which: int) -> None:
        questions = [message for message in self.link(place).up if message[:1] == b"["]
        if questions:
            self.link(place).up.append(questions[which % len(questions)])

    @rule(place=number, kept=number, is_left=st.booleans())
    def cut(self, place: int, kept: int, is_left: bool) -> None:
        link = self.links[place % len(self.links)]
        if link.is_up:
            link.cut(kept)
        if is_left and not link.has_been_left:
            while link.down:  # seconds have passed, in which what has arrived was read
                link.deliver()
        if is_left and not link.has_been_left:  # it may have been its bye
            link.process.leave(link)

    @rule(place=number)
    def take_the_place(self, place: int) -> None:
        """A new start says hello before all that the old one sent has been read."""
        link = self.links[place % len(self.links)]
        source = link.source
        names = [each.id[0] for each in self.sources if each.is_alive]
        if not source.is_alive and source.id[0] in names and not link.has_been_left:
            link.process.leave(link, is_dead=True)

    @rule()
    def heal(self) -> None:
        for link in self.links:
            if link.source.is_alive and not link.is_up:
                link.connect()

    # What listeners do.

    @precondition(lambda self: len(self.boxes) < 4)
    @rule(process=number, query=number, room=number, since=st.sampled_from([None, "last", 0.0]))
    def subscribe(self, process: int, query: int, room: int, since: Since) -> None:
        asked = QUERIES[query % len(QUERIES)]
        box = self.processes[process % 2].subscribe(asked, room + 1, since)
        self.boxes.append(box)

    @rule(place=number, count=number)
    def read(self, place: int, count: int) -> None:
        if self.boxes:
            self.boxes[place % len(self.boxes)].read(count + 1)

    @rule(
        seconds=st.sampled_from([0.1, 0.5, 1.0, 1.0, 2.0, PATIENCE]),
        is_late=st.sampled_from([False, False, False, True]),
    )
    def wait(self, seconds: float, is_late: bool) -> None:
        """Time passes; if `is_late`, the listeners were held up themselves."""
        self.clock.now += seconds
        for process in self.processes:
            if is_late:
                process.excuse()
            process.tick()

    @rule(place=number, seconds=st.sampled_from([9, 11]), is_late=st.booleans())
    def silence(self, place: int, seconds: int, is_late: bool) -> None:
        """Something is missing, and nobody answers for nearly, or more than, as long as is waited
        (if `is_late`, the listeners were held up meanwhile); then there is news.
        """
        link = self.links[place % len(self.links)]
        if not link.is_up:
            return
        self.everything(link)
        for box in self.boxes:
            box.read(8)
        self.news(link)
        link.down.clear()
        self.news(link)
        for second in range(seconds):
            self.everything_down(link)
            self.wait(1.0, is_late=is_late and second == 5)
            for each in self.links:
                each.up = [message for message in each.up if message[:1] in b"\0\1"]
        self.news(link)
        self.everything_down(link)

    @staticmethod
    def news(link: Link) -> None:
        link.source.publish("A", "x")
        link.source.end_tick()

    @staticmethod
    def everything_down(link: Link) -> None:
        while link.down:
            link.deliver()

    # The end.

    def rest(self) -> None:
        """Everybody is linked or gone, nothing is lost any more, and all is read."""
        self.heal()
        for _ in range(40):
            self.clock.now += 1.0
            for source in self.sources:
                if source.is_alive:
                    source.end_tick()
                    source.beat()
                    source.beacon()
            for box in self.boxes:
                box.read(8)
            for process in self.processes:
                process.tick()
            for _ in range(500):
                if not any(link.up or link.down for link in self.links):
                    break
                for link in self.links:
                    self.everything(link)
                for box in self.boxes:
                    box.read(8)
            else:
                raise AssertionError("asked and answered without an end")
            if not any(box.intake.behind for box in self.boxes):
                break
        for link in self.links:
            if not link.source.is_alive and not link.has_been_left:
                link.process.leave(link)

    def teardown(self) -> None:
        try:
            self.rest()
            for source in self.sources:
                if source.is_alive:  # whatever has happened, its events go on to arrive
                    source.publish("A", "x")
            self.rest()
            for box in self.boxes:
                for source in self.sources:
                    box.check(source)
        finally:
            self.patch.undo()


EXAMPLES = os.environ.get("MACHINE_EXAMPLES", "")
Protocol.TestCase.settings = settings(
    max_examples=int(EXAMPLES or 200),
    derandomize=not EXAMPLES,
    stateful_step_count=60,
    phases=set(Phase) - {Phase.explain},
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestAnyOrder = Protocol.TestCase
