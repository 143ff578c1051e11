"""The conversation of one bus with its peers: bytes come in, bytes and decisions go out.

    receive_from_subscriber   topics, hellos, questions
    receive_from_publisher    events, heartbeats, answers, pages, flush marks
    tick                      a second has passed

Owns what follows from each message: hello, `?`, frames, pages, flush marks, bye. Must not know how
bytes travel (`Network`), how a message looks (`wire`), who is there (`links`), nor who waits for an
answer (`confirm`). Nothing here waits. What is to happen later is left to the `Driver`.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial

from aiobus import clock as epochs
from aiobus.catchup import CatchUp
from aiobus.clock import elapsed
from aiobus.diagnostics import Diagnostics
from aiobus.discovery import Discovery
from aiobus.errors import JournalRestored, NameInUse
from aiobus.history import Page, Want
from aiobus.keyring.members import Rules
from aiobus.mesh import Driver, Network
from aiobus.mesh.answers import Answers
from aiobus.mesh.fanout import Fanout, Link
from aiobus.mesh.interest import Interest, Pages
from aiobus.mesh.links import Links
from aiobus.mesh.peers import RoundTrip, batches
from aiobus.publisher import Publisher
from aiobus.query import Query, parse_query
from aiobus.rows import Source
from aiobus.sync import TimeSlice
from aiobus.wire import (
    HEARTBEATS,
    Ack,
    Answer,
    Ask,
    Frame,
    Heartbeat,
    Mark,
    Options,
    OtherVersion,
    PacedMark,
    PageAnswer,
    PageAsk,
    PeerId,
    WireError,
    heartbeat,
    mail,
    parse_from_publisher,
    parse_from_subscriber,
    parse_topic,
    up,
)

__all__ = [
    "Session",
    "in_marks",
]

log = logging.getLogger("aiobus.mesh")

LAST = 0
"""The number of the mark that a bus sends as it closes: no peer acknowledges it."""
TELL_SECONDS = 0.05
"""After a subscription has ended, until the peers are told: a `wait_for` ends one each time."""
MARK_STREAMS = 4_096
"""Streams that one mark names: 4 MB at most, and a message over 16 MiB ends its link."""

MAX_PUT_OFF = 1024
"""Questions to a keeper that wait for what it does not know yet; of more, the next repeats."""


def in_marks(streams: Iterable[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """`streams`, as many at a time as one mark names."""
    return batches(streams, MARK_STREAMS)


class Impostor(WireError):
    """The bus `proven` speaks in the name of another."""

    def __init__(self, proven: str, said: str, what: str) -> None:
        super().__init__(f"{what} of {said}, which {proven} has sent")
        self.proven = proven


class Session:
    """The conversation of the bus `me`, from its first question until its bye."""

    def __init__(
        self,
        url: str,
        me: PeerId,
        publisher: Publisher,
        network: Network,
        discovery: Discovery,
        diagnostics: Diagnostics,
        driver: Driver,
    ) -> None:
        self.url = url
        self.me = me
        self.refused = 0
        """Messages and queries that were not of the protocol."""
        # With a journal the start before had the same epoch, and others may still answer that one.
        number = epochs.fresh()
        self.interest = Interest(number)
        self.fanout = Fanout(publisher, network.send, driver)
        self.answers = Answers(me, publisher, self.fanout, network.send)
        self.links = Links(me, publisher, network, discovery, diagnostics, self.interest, driver)
        self.links.rounds.number = number
        self.links.namesakes.born = self.answers.born
        self.links.namesakes.on_late = lambda: diagnostics.fail(NameInUse(me.name, url))
        self.pages = Pages(self._ask_page)
        self.is_closing = self.is_outdated = False
        """It answers and serves no more: it says bye; its journal is an older copy, which it ends
        for.
        """
        self.note_place: Callable[[PageAsk], None] | None = None
        """Takes each question for a page, which shows what a reader lacks; of a paced bus."""
        self._publisher = publisher
        self._network = network
        self._diagnostics = diagnostics
        self._driver = driver
        self._source = me.source
        self._sources = self.links.sources
        self._is_answering = self._is_telling = False
        self._telling: RoundTrip | None = None
        self._put_off_asks: dict[tuple[int, PeerId], tuple[PageAsk, Link]] = {}
        self._late_asks = self._put_off_asks
        """Put off before the last tick. Those of before are asked again by now."""
        self._switching: list[RoundTrip] = []
        self._late: list[RoundTrip] = []
        network.subscribe(HEARTBEATS)
        network.subscribe(me.topic)

    # Messages of subscribers.

    def admit(self, topic: bytes, link: int, name: str) -> bool:
        """True if `name` may be sent what begins with `topic`, on the connection `link`. A mailbox
        is read by its owner alone, and nobody says that it listens where another does. A query that
        the rules forbid is refused as one that is not served: the answers say so.
        """
        asked: Query | PeerId | None = None
        try:
            asked = parse_topic(topic)
            if isinstance(asked, PeerId):
                if asked.name != name:
                    self._network.end_link(link)
                    raise Impostor(name, asked.name, "a hello")
                if not self._network.may_listen(asked.endpoint, name):
                    self._network.end_link(link)  # it says so again, and by then may be there
                    raise Impostor(name, f"the bus at {asked.endpoint}", "a hello")
                if self.answers.askers.who(link) not in (None, asked):
                    # A bus says hello once on a connection. Each endpoint that is claimed costs
                    # who claims it a handshake.
                    self.answers.askers.refuse(link, topic, "")
                    raise WireError(f"a second hello of {name} on one connection")
            elif asked is not None and not self._rules(name).may_subscribe(asked):
                reason = f"{name} may not subscribe to it, by the rules of this desk"
                self.answers.askers.refuse(link, topic, reason)
                raise WireError(f"{reason}: {asked.text[:100]}")
        except WireError as error:
            if asked is None:
                self.answers.askers.refuse(link, topic, str(error))
            self._refuse(error)
            self._end_abuse(link)
            return False
        return True

    def refuse_strange(self, name: str) -> None:
        """The bus `name` has sent up what is no topic: on a desk with keys no member does that, and
        its link is ended.
        """
        self._refuse(WireError(f"{name or 'a bus'} sends what no member sends: its link is ended"))

    def _end_abuse(self, link: Link) -> None:
        if link is not None and self.answers.gives_up(link):
            text = "more subscriptions came on a connection than are served: it is ended"
            self._diagnostics.trouble("a connection is ended", text)
            self._network.end_link(link)

    def _rules(self, name: str) -> Rules:
        return self._network.members.rules_of(name)

    def _check_name(self, said: str, proven: str, what: str) -> None:
        """Raise WireError if a message names another bus than the one that has sent it."""
        if proven and said != proven:
            raise Impostor(proven, said, what)

    def receive_from_subscriber(self, message: bytes, link: Link, name: str) -> None:
        """A subscription, its end, or a question, on the connection `link`, of the bus that has
        proven to be `name`.
        """
        try:
            if message[:1] == b"\1":
                self._on_subscribed(message[1:], link)
            elif message[:1] == b"\0":
                self._on_unsubscribed(message[1:], link)
            elif name:
                asked = parse_from_subscriber(message)
                self._check_name(asked.who.name, name, "a question")
                self._check_page(asked, name)
                if not self.answers.leaves(link, message):
                    self._on_question(asked, message, link, name)
            elif not self.answers.leaves(link, message):  # before it is parsed, which takes longer
                self._on_question(parse_from_subscriber(message), message, link, name)
        except WireError as error:
            if (
                isinstance(error, OtherVersion)
                and (who := self.answers.askers.who(link)) is not None
            ):
                self.links.refuse_version(who, error.version)
            self._refuse(error)

    def _check_page(self, asked: Ask | PageAsk | Ack, name: str) -> None:
        """Raise WireError if a page is asked for of what the rules forbid to subscribe to."""
        if isinstance(asked, PageAsk) and (rules := self._rules(name)).subscribe is not None:
            try:
                is_allowed = rules.may_subscribe(parse_query(asked.query))
            except ValueError as error:
                raise WireError(f"a page is asked of no query: {error}") from None
            if not is_allowed:
                raise WireError(
                    f"a page for {name}, which may not subscribe to {asked.query[:100]}"
                )

    def _refuse(self, error: WireError) -> None:
        self.refused += 1
        topic = "messages are refused"
        if isinstance(error, Impostor):
            topic = f"messages of {error.proven} are refused"
        self._diagnostics.trouble(topic, f"a message was refused: {error}")

    def _on_subscribed(self, name: bytes, link: Link) -> None:
        if self.is_closing or self.is_outdated:
            return
        try:
            if (who := self.answers.serve(name, link)) is not None:
                self.links.hello(who)
                self.answers.greet(link, who)
                self.fanout.doubt()  # the peer may have missed what others have confirmed
        finally:
            self._end_abuse(link)

    def _on_unsubscribed(self, name: bytes, link: Link) -> None:
        self.answers.close(name, link)
        if name[:1] == b"~" and isinstance(who := parse_topic(name), PeerId):
            other = self.answers.part(who)
            self.links.withdraw(who)
            if other is not None:
                # Each start has a connection of its own: the hello of the one before came last.
                self.links.hello(other)

    def _on_question(
        self, question: Ask | PageAsk | Ack, message: bytes, link: Link, name: str
    ) -> None:
        if question.to not in (self.me.name, "*") or not self.answers.askers.is_from(
            link, question.who
        ):
            return
        if self.is_outdated:
            return  # what this bus would say of itself is not true
        if isinstance(question, Ack):
            self.links.rounds.answer(question.mark, question.who.endpoint, question)
        elif isinstance(question, Ask) or question.epoch == self.me.epoch:
            if isinstance(question, Ask):
                if self._is_outdated_by(question.options):
                    return
                if (peer := self.links.known(question.who)) is not None:
                    self.links.note_told(peer, self._rules(name).told(question.options.queries))
                    self.links.survey.hear(peer, question.options)
            elif self.note_place is not None:
                self.note_place(question)
            self.answers.put(question, link, message)
            if not self._is_answering:
                self._answer()

    def _is_outdated_by(self, known: Options) -> bool:
        """True if a peer has heard of more than the journal of this bus has. Then this bus ends,
        and sends nothing more that a peer could take for what the true journal has.
        """
        mine, seq = self._publisher.options, known.known_seq
        if not mine.journaled or known.known_epoch != self.me.epoch:
            return False
        then, now = (known.known_start, known.known_begin), (mine.start, mine.begin)
        # Of the present start this bus knows best. What an earlier one has told of beyond its
        # beginning was committed before.
        is_outdated = then != now and seq > max(known.known_begin, self._publisher.in_file)
        if is_outdated and not (self.is_closing or self.is_outdated):
            self.is_outdated = True
            self.fanout.close_all()
            self._diagnostics.fail(JournalRestored(self.me.name, seq, self._publisher.in_file))
        return is_outdated

    def _answer(self) -> None:
        """Answer questions for one turn of the loop, and the rest in the next turns. The first
        question of a burst is answered at once.
        """
        self._is_answering = False
        turn = TimeSlice()
        while self.answers.is_asked and not (self.is_closing or self.is_outdated):
            if not self._is_answering:
                self._is_answering = True
                self._driver.soon(self._answer)
            for link, asked in self.answers.next():
                try:
                    self._answer_one(asked, link)
                except WireError as error:
                    self._refuse(error)
            if turn.spend():
                break

    def _answer_one(self, asked: Ask | PageAsk, link: Link) -> None:
        if isinstance(asked, PageAsk):
            if not self.answers.send_page(asked, self.links.presence):
                self._put_off(asked, link)
        elif (peer := self.links.known(asked.who)) is not None:
            known = self.links.known_of(asked.who)
            rules = self._rules(asked.who.name)
            self.answers.tell(asked, link, known, rules, is_open=self.links.namesakes.is_open)
            self.links.note_answered(peer)

    def _put_off(self, asked: PageAsk, link: Link) -> None:
        """This bus is a keeper's, and does not know yet what to answer. The asker repeats its
        question each second; answered sooner, its `subscribe` ends in time.
        """
        if len(self._put_off_asks) < MAX_PUT_OFF:
            self._put_off_asks[asked.nonce, asked.who] = asked, link
        if (kept := self._publisher.kept) is not None:
            kept.on_current = self._answer_put_off

    def _answer_put_off(self) -> None:
        asks = {**self._late_asks, **self._put_off_asks}
        self._late_asks, self._put_off_asks = {}, {}
        for asked, link in asks.values():
            if self.is_closing or not self.answers.askers.is_from(link, asked.who):
                continue
            try:
                self._answer_one(asked, link)
            except WireError as error:
                self._refuse(error)

    # Messages of publishers.

    def receive_from_publisher(self, message: bytes, now: float, name: str) -> None:
        """Events, a heartbeat, an answer, a page or a flush mark, read at `now`, of the bus that
        has proven to be `name`.
        """
        try:
            value = parse_from_publisher(message, self.me)
            if type(value) is not Frame:
                self._on_mail(value, now, name)
                return
            source = (value.source, value.epoch)
            if name:
                self._check_name(value.source, name, "a frame")
                value.permits = self._permits(name)
            if source == self._source:
                raise WireError("a frame that claims to be from this bus")
            steady = 0
            if (peer := self._sources.get(source)) is not None:
                if (silent := peer.hear(now, value.newest)) is not None:
                    self.links.note_fresh(peer, silent)
                steady = peer.steady
            interest = self.interest
            is_taken = interest.take(value, steady)
            # What was left may be of a start that is not known yet.
            if is_taken and peer is not None and value.count and value.newest > peer.vouched:
                peer.vouched = value.newest
            if interest.switched or interest.marks or interest.suspects:
                self.follow_up()
        except WireError as error:
            self._refuse(error)

    def _on_mail(
        self, value: Frame | Heartbeat | Answer | PageAnswer | Mark, now: float, name: str
    ) -> None:
        match value:
            case Heartbeat():
                self._check_name(value.name, name, "a bye" if value.leaving else "a heartbeat")
                self._on_heartbeat(value)
            case Answer():
                self._check_name(value.who.name, name, "an answer")
                if name and not self._network.may_listen(value.who.endpoint, name):
                    raise Impostor(name, f"the bus at {value.who.endpoint}", "an answer")
                if not self._is_outdated_by(value.options):
                    self.links.hear_answer(value)
            case PageAnswer():
                self._check_name(value.source, name, "a page")
                value.rows.permits = self._permits(name)
                self._on_page(value, now)
            case Mark():
                self._check_name(value.who.name, name, "a mark")
                self._on_mark(value)

    def _permits(self, name: str) -> Callable[[str], bool] | None:
        """Which types of `name` are taken; None: each."""
        return None if self._rules(name).publish is None else partial(self._permits_type, name)

    def _permits_type(self, name: str, type: str) -> bool:
        if self._rules(name).may_publish(type):
            return True
        self.refused += 1
        text = f"an event of {name} was refused, which may not publish {type} by the rules"
        self._diagnostics.trouble(f"events of {name} are refused", text)
        return False

    def _on_heartbeat(self, beat: Heartbeat) -> None:
        source = (beat.name, beat.epoch)
        if not beat.leaving:
            self.links.hear_beat(source, beat.seq)
        elif (peer := self.links.hear(source, beat.seq)) is not None:
            self.links.bye(peer)

    def _on_mark(self, value: Mark) -> None:
        newest = max((seq for _, seq in value.streams), default=0)
        if isinstance(value, PacedMark):
            newest = max(newest, value.upto)
        peer = self.links.hear(value.who.source, newest)
        if value.mark == LAST:
            self.interest.end(value, 0 if peer is None else peer.last)
        elif peer is not None:  # else it is no peer that is known, or it asks again before long
            self.interest.mark(value)
        self.follow_up()
        self._publisher.room.wake()  # a circle may have closed

    def _on_page(self, value: PageAnswer, now: float) -> None:
        page = Page(value.after, value.evicted, value.to, value.newest, [], value.reached)
        source = (value.source, value.epoch)
        if value.begin != self.interest.begins.get(source, 0):
            return  # it has started again: its answer tells that first, and then it is asked again
        peer = self.links.hear(source, value.newest)
        if (catchup := self.interest.numbered(value.nonce)) is not None:
            if peer is not None:
                peer.vouch(value.newest)
            self.pages.answered(catchup, source, now)
            self.interest.take_page(catchup, source, page, value.rows)
            self.links.changed.wake()  # it may have begun
        self.follow_up()

    # What follows.

    def follow_up(self) -> None:
        """Switch the topics that lag far, or do so no more, ask sources whose streams have a break,
        and acknowledge the flush marks that have been reached.
        """
        if self.interest.switched:
            self._switch()
        while self.interest.suspects:
            self.links.ask_again(self.interest.suspects.pop())
        if self.interest.marks:
            for reached in self.interest.reached(self.links.doubts.sources):
                self._network.ask(
                    up(Ack(reached.who.name, reached.mark, self.me)), reached.who.name
                )

    def _switch(self) -> None:
        """Change the subscription of each topic between frames and progress messages. Ask for what
        was published meanwhile of those that are live again.
        """
        live: list[CatchUp] = []
        while self.interest.switched:
            topic = self.interest.switched.pop()
            log.debug("%s subscribes to %s", self.me, topic)
            self._network.subscribe(topic.subscribed)
            # Not before: a stream that no peer asks for closes, and owes nothing any more.
            self._network.unsubscribe(topic.other)
            if not topic.is_progress_only:
                live.extend(topic.catchups)
        if live:
            there = [peer.endpoint for peer in self.links if peer.is_there]
            self._ask_about(there, live)

    def _ask_about(self, endpoints: Collection[str], catchups: Collection[CatchUp]) -> None:
        meet = partial(self.interest.meet, list(catchups))
        self._switching.append(self.links.rounds.ask(endpoints, self.links.ask, meet))

    def add(self, catchup: CatchUp) -> None:
        """Subscribe at every peer to the query of `catchup`."""
        if (new := self.interest.add(catchup)) is not None:
            self._network.subscribe(new)
        self.follow_up()

    def remove(self, catchup: CatchUp) -> None:
        """Withdraw it. No error if it was not subscribed."""
        if (old := self.interest.remove(catchup)) is not None:
            self._network.unsubscribe(old)
            if not self._is_telling:
                self._is_telling = True
                self._driver.later(TELL_SECONDS, self._tell)
        self.pages.forget(catchup)

    def _tell(self) -> None:
        """Tell the peers what is subscribed to, of which some was withdrawn. A question tells it,
        and is repeated until it is answered.
        """
        self._is_telling = False
        if self._telling is not None:
            self.links.rounds.drop(self._telling)
        there = [peer.endpoint for peer in self.links if peer.is_there]
        self._telling = self.links.rounds.ask(there, self.links.ask, lambda _: None)

    def _ask_page(self, catchup: CatchUp, source: Source, want: Want, limit: int) -> None:
        if (number := self.interest.number(catchup)) is not None:
            name, epoch = source
            what = (epoch, catchup.query.text, want.after, limit, want.since, want.upto)
            self._network.ask(up(PageAsk(name, number, self.me, *what)), name)

    def doubt(self, source: Source, error: ValueError) -> bool:
        """Rows of a source are no events: count it, say it, and ask the source where it is. False
        if the source has left.
        """
        text = f"rows of {source[0]} are lost, which are no events: {error}"
        self.refused += 1
        self._diagnostics.trouble(f"rows of {source[0]} are no events", text)
        return self.links.doubt(source)

    def send_mark(
        self,
        to: PeerId,
        number: int,
        streams: Collection[tuple[str, int]],
    ) -> None:
        """Ask a peer to acknowledge when it has these: the text of a query, and a seq."""
        self._network.send(mail(to, Mark(number, self.me, tuple(streams))))

    def send_paced_mark(
        self,
        to: PeerId,
        number: int,
        streams: tuple[tuple[str, int], ...],
        upto: int,
        waiting: tuple[str, ...],
    ) -> None:
        """The same, of a publisher that does not outrun its readers. What was sent up to `upto` on
        these streams was sent up to their seqs. `waiting`: the buses whose handlers cannot go on
        before.
        """
        # Of an event that has a higher number, other buses do not know.
        upto = min(upto, self._publisher.public_seq)
        self._network.send(mail(to, PacedMark(number, self.me, streams, upto, waiting)))

    # Time.

    def tick(self, now: float) -> None:
        """A second has passed."""
        if self.is_outdated:
            return
        self.beat()
        self.fanout.beacons()
        self._drop_late()
        self.links.survey.tick(now)
        self.links.rounds.repeat()
        self._ask_refused()
        if self._put_off_asks or self._late_asks:
            self.links.look_for_cut()
        self._late_asks, self._put_off_asks = self._put_off_asks, {}
        self.pages.tick(now)
        if self.links.judge(now):
            self.interest.extend_deadlines()
        self.interest.tick(now, self.links.alive(now), self._sources.keys())
        self.follow_up()

    def beat(self, *, leaving: bool = False) -> None:
        """Send a heartbeat; with `leaving` the last one."""
        name, epoch, seq = self.me.name, self.me.epoch, self._publisher.public_seq
        self._network.send(heartbeat(name, epoch, seq, leaving=leaving))

    def _drop_late(self) -> None:
        """Repeat no question that was asked before the last tick: a peer that has not answered it
        by now tells the same by a beacon.
        """
        for round in self._late:
            self.links.rounds.drop(round)
        self._late, self._switching = self._switching, []

    def _ask_refused(self) -> None:
        """Ask each peer that refused a query whether it serves it by now."""
        for who, catchups in self.interest.refused.items():
            if catchups and self.links.is_there(who.source):
                self._ask_about([who.endpoint], catchups)

    # Going.

    def say_bye(self) -> None:
        """Say to each peer where each stream ends, and bye. Then answer and serve no more."""
        self.is_closing = True
        self.links.rounds.end()
        self.links.changed.wake()
        self.links.attended.wake()
        for name in self.fanout.owed():
            self.fanout.beacon(name)
        # Of each stream, where it ends, behind the number that this is true of. Else a peer that
        # hears of a higher number later could not tell if something of the stream was lost.
        self.beat()
        self._send_ends()
        self.beat(leaving=True)
        self.fanout.close_all()
        self._part_from_frozen()

    def _part_from_frozen(self) -> None:
        """End the links of observers that are silent: what was sent to them leaves only once they
        read, and the network is closed when all has left, or a second later.
        """
        now = elapsed()
        for link, who in self.answers.askers.observers().items():
            peer = self.links.known(who)
            if link is not None and peer is not None and peer.is_silent(now):
                self._network.end_link(link)

    def _send_ends(self) -> None:
        for streams in in_marks(self.fanout.sent().items()):
            for peer in self.links:
                if peer.who is not None and peer.is_listening:
                    self.send_mark(peer.who, LAST, streams)
