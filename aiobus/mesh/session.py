"""A bus among its peers: which queries are live where, whose events these are, and who has them.

Owns the conversation: hello, `?`, frames, pages, flush marks, bye. Must not know how bytes travel
(`network`), how a message looks (`wire`), who is there (`links`) or what is missing (`Inlet`).
"""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial

from aiobus.catchup import CatchUp as Inlet
from aiobus.clock import elapsed
from aiobus.diagnostics import Diagnostics as Witness
from aiobus.discovery import Member
from aiobus.errors import BusClosed, BusError, NameInUse
from aiobus.history import Page, Want
from aiobus.mesh import Network
from aiobus.mesh.answers import Answers
from aiobus.mesh.confirm import LAST, Marks, Queries, Readers
from aiobus.mesh.fanout import Fanout, Link
from aiobus.mesh.interest import Interest, Pages
from aiobus.mesh.links import Links
from aiobus.mesh.round_trips import RoundTrips
from aiobus.publisher import Publisher
from aiobus.query import parse_query
from aiobus.rows import Source
from aiobus.stats import PeerStats
from aiobus.transport import Standing
from aiobus.wire import (
    HEARTBEATS,
    Ack,
    Answer,
    Ask,
    Frame,
    Heartbeat,
    Mark,
    OtherVersion,
    PageAnswer,
    PageAsk,
    PeerId,
    WireError,
    heartbeat,
    parse_from_publisher,
    parse_from_subscriber,
    parse_topic,
    up,
)

__all__ = [
    "MeshSession",
]

START_SECONDS = 5.0
LOOK = 0.05
"""Seconds between two looks whether a meeting place has answered, while a flush waits for it."""
TICK = 1.0
"""Seconds between heartbeats, beacons, and looks at what is silent or unanswered."""

log = logging.getLogger("aiobus.mesh")


class MeshSession:
    """The `Transport` of `ipc://` and `tcp://`, and the `Ears` of its network."""

    def __init__(self, url: str, network: Network) -> None:
        self.url = url
        self.refused = 0
        self._network = network
        self._interest = Interest()
        self._rounds = RoundTrips()
        self._pages = Pages(self._ask_page)
        self._links: Links | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._told: Collection[str] = []
        """What was said to be unreached."""
        self._unconfirmed: set[str] = set()
        """What was unreached when something was subscribed."""
        self._is_closing = False
        self._context = Context()

    def __str__(self) -> str:
        return self.url

    @property
    def peers(self) -> Sequence[PeerStats]:
        """The buses that are linked now, by name."""
        now = elapsed()
        return [
            PeerStats(peer.name, peer.who.epoch, peer.last, peer.silence(now))
            for peer in sorted(self._links or (), key=lambda peer: peer.name)
            if peer.is_there and peer.who is not None
        ]

    @property
    def unreached(self) -> Collection[str]:
        """Meeting places that do not answer: there may be buses that this one has not met."""
        return () if self._links is None else sorted(self._network.unreached)

    # Coming.

    async def start(self, publisher: Publisher, witness: Witness) -> None:
        """Join; wait until everybody who is there is linked, or 5 s, and then warn of who is not.

        Raises NameInUse when another of this name is there that has started, or is the one of two
        that stays, or does not answer and may be frozen.
        """
        self._loop = asyncio.get_running_loop()
        self._publisher = publisher
        self._witness = witness
        self._streams = Fanout(publisher, self._network.send)
        self._rounds.number = publisher.epoch  # an answer to an earlier start of this bus is none
        endpoint, members = await self._network.open(publisher.name, self)
        self.me = me = PeerId(publisher.name, publisher.epoch, endpoint)
        log.info("%s listens at %s", me.name, endpoint)
        self._answers = Answers(
            me, publisher, self._streams, self._network.send, self._on_ask, self._refuse
        )
        asking = (self._interest, self._rounds, self._ask)
        links = Links(me, self._network, witness, *asking, self._owed_after)
        links.born = self._answers.born
        self._links = links
        self._queries = Queries(self._network, links, self._interest, self._rounds, self._ask)
        self._marks = Marks(me, self._network, links, self._rounds, self._streams, self._interest)
        self._readers = Readers(
            me, self._network, links, self._rounds, self._streams, self._beat, publisher.room.wake
        )
        self._network.subscribe(HEARTBEATS)
        self._network.subscribe(me.topic)
        for member in members:
            links.find(member)
        self._tick()
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._until_linked(links)
        except TimeoutError:
            names = ", ".join(sorted(peer.name for peer in links if peer.is_awaited))
            text = "%s starts without %s: no answer within %g s"
            log.warning(text, me.name, names, START_SECONDS)
        if self._is_closing:
            raise BusClosed(f"{me.name} was closed while it started")
        if links.is_late or any(
            peer.name == me.name and (peer.is_awaited or peer.other_version) for peer in links
        ):
            raise NameInUse(me.name, self.url)
        links.is_open = True

    async def _until_linked(self, links: Links) -> None:
        while any(peer.is_awaited for peer in links) and not (links.is_late or self._is_closing):
            try:
                async with asyncio.timeout(TICK):
                    await links.changed.wait()
            except TimeoutError:
                await links.drop_absent(
                    [peer for peer in links if peer.is_awaited and peer.who is None]
                )

    def _owed_after(self) -> int:
        """The seq after which a peer that is found now is owed what is published here: 0 if it was
        there already, perhaps, and could not be met.
        """
        return 0 if self._network.unreached else self._publisher.public_seq

    def on_found(self, member: Member) -> None:
        """Somebody listens there."""
        if self._links is not None:
            self._links.find(member)

    def on_trouble(self, topic: str, text: str) -> None:
        """Something is wrong where buses meet, or is no more."""
        self._witness.trouble(topic, text)

    def on_lost(self, error: BusError) -> None:
        """Another bus has this one's name by now."""
        self._witness.fail(error)

    def _ask(self, number: int, endpoints: Collection[str]) -> None:
        if self._links is None:
            return
        peers = [peer for each in endpoints if (peer := self._known.at(each)) is not None]
        name = peers[0].name if len(peers) == 1 else "*"
        self._network.ask(up(Ask(name, number, self.me)))

    # From below: those who listen to this bus.

    def on_up(self, message: bytes, link: Link) -> None:
        """A subscription, its end, or a question."""
        try:
            if message[:1] == b"\1":
                self._on_subscribed(message[1:], link)
            elif message[:1] == b"\0":
                self._on_unsubscribed(message[1:], link)
            elif not self._answers.leaves(link, message):
                self._on_question(parse_from_subscriber(message), message, link)
        except WireError as error:
            if isinstance(error, OtherVersion) and (who := self._answers.asker(link)) is not None:
                self._known.refuse_version(who, error.version)
            self._refuse(error)

    def _refuse(self, error: WireError) -> None:
        self.refused += 1
        self._witness.trouble("messages are refused", f"a message was refused: {error}")

    def _on_subscribed(self, name: bytes, link: Link) -> None:
        if self._is_closing:
            return
        try:
            if (who := self._answers.serve(name, link)) is not None:
                self._known.hello(who)
                self._answers.greet(link, who)
                self._streams.doubt()  # it may have missed what others have confirmed
        finally:
            if link is not None and self._answers.gives_up(link):
                text = "more subscriptions came on a connection than are served: it is ended"
                self._witness.trouble("a connection is ended", text)
                self._network.end_link(link)

    def _on_unsubscribed(self, name: bytes, link: Link) -> None:
        self._answers.close(name, link)
        if name[:1] == b"~" and isinstance(who := parse_topic(name), PeerId):
            other = self._answers.part(who)
            self._known.withdraw(who)
            if other is not None:
                # Each start has a connection of its own: the hello of the one before came last.
                self._known.hello(other)

    @property
    def _known(self) -> Links:
        assert self._links is not None, "nothing is heard before the network is open"
        return self._links

    def _on_question(self, question: Ask | PageAsk | Ack, message: bytes, link: Link) -> None:
        if question.to not in (self.me.name, "*") or not self._answers.is_from(link, question.who):
            return
        match question:
            case Ask():
                self._answers.owe(question, link, message)
            case PageAsk() if question.epoch == self.me.epoch:
                self._note_place(question)
                self._answers.owe(question, link, message)
            case Ack():
                self._rounds.answer(question.mark, question.who.endpoint, question)

    def _note_place(self, asked: PageAsk) -> None:
        if self._publisher.pace is not None:
            with suppress(ValueError):
                query, after = (
                    parse_query(asked.query),
                    0 if asked.since is not None else asked.after,
                )
                for type in self._readers.go_back(asked.who, query, after):
                    self._publisher.history.safe.pop(type, None)

    def _on_ask(self, asked: Ask, link: Link) -> None:
        is_open = self._known.is_open
        self._known.answer(asked.who, partial(self._answers.tell, asked, link, is_open=is_open))

    # From above: those whom this bus listens to.

    def on_down(self, message: bytes) -> None:
        """Events, a heartbeat, or an answer."""
        try:
            match value := parse_from_publisher(message, self.me):
                case Frame():
                    self._on_frame(value)
                case Heartbeat():
                    self._on_heartbeat(value)
                case Answer():
                    self._on_answer(value)
                case PageAnswer():
                    self._on_page(value)
                case Mark():
                    self._on_mark(value)
        except WireError as error:
            self._refuse(error)

    def _on_frame(self, frame: Frame) -> None:
        source = (frame.source, frame.epoch)
        if source == (self.me.name, self.me.epoch):
            raise WireError("a frame that claims to be from this bus")
        peer = self._known.hear(source, frame.newest)
        self._interest.take(frame, 0 if peer is None else peer.last)
        self._queries.turn()
        self._marks.acknowledge()

    def _on_heartbeat(self, beat: Heartbeat) -> None:
        source = (beat.name, beat.epoch)
        if not beat.leaving:
            self._known.hear_beat(source, beat.seq)
        elif (peer := self._known.hear(source, beat.seq)) is not None:
            self._known.bye(peer)

    def _on_answer(self, value: Answer) -> None:
        links = self._known
        was_late = links.is_late
        links.hear_answer(value)
        if links.is_open and links.is_late and not was_late:
            self._witness.fail(NameInUse(self.me.name, self.url))

    def _on_mark(self, value: Mark) -> None:
        newest = max((seq for _, seq in value.streams), default=0)
        peer = self._known.hear((value.who.name, value.who.epoch), newest)
        if value.mark == LAST:
            self._interest.end(value, 0 if peer is None else peer.last)
        elif peer is not None:  # else it is nobody that is known, or asks again before long
            self._interest.mark(value)
            self._marks.acknowledge()
            self._publisher.room.wake()  # a circle may have closed

    def _on_page(self, value: PageAnswer) -> None:
        page = Page(value.after, value.evicted, value.to, value.newest, [], value.reached)
        source = (value.source, value.epoch)
        self._known.hear(source, value.newest)
        if (inlet := self._interest.numbered(value.nonce)) is not None:
            self._pages.answered(inlet, source, elapsed())
            self._interest.turn(inlet, source, page, value.rows)
            self._queries.turn()
            self._known.changed.wake()  # it may have begun
        self._marks.acknowledge()

    # Subscribing and flushing.

    async def subscribe(self, inlet: Inlet, timeout: float) -> Collection[str]:
        """Ask every other bus for the query of `inlet`; return the names of those that did not
        confirm, and the meeting places that do not answer. They are asked again until they do.
        """
        if not inlet.query.wants_data:
            return ()
        missing = await self._queries.subscribe(inlet, timeout)
        self._unconfirmed.update(self.unreached)
        return {*missing, *self.unreached}

    def unsubscribe(self, inlet: Inlet) -> None:
        """Withdraw it. No error when it was not subscribed."""
        if self._links is not None:
            self._queries.unsubscribe(inlet)
        self._pages.forget(inlet)

    def ask(self, inlet: Inlet, source: Source, want: Want, limit: int) -> bool:
        """Ask a source for the next page of what `inlet` misses, as soon as few others do."""
        return self._pages.ask(inlet, source, want, limit, elapsed())

    def _ask_page(self, inlet: Inlet, source: Source, want: Want, limit: int) -> None:
        if (number := self._interest.number(inlet)) is not None:
            name, epoch = source
            what = (epoch, inlet.query.text, want.after, limit, want.since, want.upto)
            self._network.ask(up(PageAsk(name, number, self.me, *what)))

    # Publishing that waits for its readers.

    def standings(self, type: str) -> Mapping[Source, Standing]:
        """What each peer has confirmed, where any listens to events of `type`."""
        return {} if self._links is None else self._readers.standings(type)

    def mark(self, type: str, upto: int, waiting: Collection[str] | None) -> None:
        """Ask the peers to confirm the events of `type` up to a seq."""
        if self._links is not None:
            self._readers.ask(type, upto, waiting)

    def held(self) -> Iterable[tuple[Inlet, Collection[str]]]:
        """Whose cursors have not passed what another bus waits for."""
        return self._interest.held()

    def doubt(self, source: Source, error: ValueError) -> bool:
        """Rows of a source are no events: count it, say it, and ask the source where it is."""
        text = f"rows of {source[0]} are lost, which are no events: {error}"
        self.refused += 1
        self._witness.trouble(f"rows of {source[0]} are no events", text)
        return self._links is not None and self._links.doubt(source)

    async def flush(self, timeout: float) -> Collection[str]:
        """Wait until every bus that listens has what it asked for; return the names of those that
        did not confirm, or whose link was cut before they could, and the meeting places that do not
        answer: there may be a bus that has not even been met. If something was published, such a
        place is waited for, too.
        """
        if self._links is None:
            return ()
        if not (self._streams.newest and self.unreached):
            return {*await self._flush(timeout), *self.unreached}
        end = elapsed() + timeout
        async with asyncio.TaskGroup() as group:
            group.create_task(self._until_met(timeout))
            missing = await self._flush(timeout)
        if self.unreached:
            return {*missing, *self.unreached}
        # The members that are met now have yet to get what was published while they were not.
        return await self._flush(max(0.0, end - elapsed()))

    async def _flush(self, timeout: float) -> set[str]:
        self._beat()  # a peer that heard of a higher number is to ask before it confirms anything
        # What is refused has no stream, and no mark names it.
        return {*await self._marks.flush(timeout), *self._answers.lacking()}

    async def _until_met(self, timeout: float) -> None:
        """Wait until every meeting place has answered, for `timeout` seconds at most."""
        end = elapsed() + timeout
        while self.unreached and (left := end - elapsed()) > 0:
            # A meeting place does not tell when it has answered: it is asked.
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, LOOK)):
                    await self._known.changed.wait()

    def _beat(self, *, leaving: bool = False) -> None:
        name, epoch, seq = self.me.name, self.me.epoch, self._publisher.public_seq
        self._network.send(heartbeat(name, epoch, seq, leaving=leaving))

    # Every second.

    def _tick(self) -> None:
        now = elapsed()
        self._timer = self._loop.call_later(TICK, self._tick, context=self._context)
        self._network.watch()
        self._beat()
        self._streams.beacons()
        self._queries.tick()
        self._rounds.repeat()
        self._queries.ask_refused()
        self._pages.tick(now)
        if self._known.judge(now):
            self._interest.extend_deadlines()
        self._interest.tick(now, self._known.alive(now), self._known.sources)
        self._queries.turn()
        self._tell_unreached(self.unreached)

    def _tell_unreached(self, unreached: Collection[str]) -> None:
        if self._known.is_open and self._told != unreached:
            self._told = unreached
            self._witness.unreached(unreached)
        for place in self._unconfirmed.difference(unreached):
            self._unconfirmed.discard(place)
            for inlet in self._interest:
                inlet.confirm(place)

    # Going.

    async def close(self, timeout: float) -> Collection[str]:
        """Say bye behind the data and end all links. Returns nobody: `flush` has told who is
        missing.
        """
        try:
            try:
                self._say_bye()
            except BaseException:  # a Ctrl-C; the others are to hear of the end all the same
                self._say_bye()
                raise
        finally:
            try:
                await self._network.close(timeout)
            finally:
                self._links = None
        return ()

    def _say_bye(self) -> None:
        self._is_closing = True
        self._rounds.end()
        if self._links is not None:
            self._queries.close()
            self._links.changed.wake()
            self._links.end()
        if self._timer is not None:
            self._timer.cancel()
            self._answers.end()
            for name in self._streams.owed():
                self._streams.beacon(name)
            # Of each stream, where it ends, behind the number that this is true of: or whoever
            # hears of a higher number later could not tell if something of it was lost.
            self._beat()
            self._marks.end()
            self._beat(leaving=True)
            self._streams.close_all()
