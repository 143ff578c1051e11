"""The peers of one bus: found, linked, silent, gone, and the links to them.

Owns which peers there are and what is done about them: connecting, asking whether all that is
subscribed here is live there, making a link again, and settling with a peer that has left. Owns
what follows from its own probes of endpoints. Must not know what else is said over a link. `peers`
judges when silence is too long, `byes` who has closed, `namesakes` which of two buses of one name
ends, `doubts` who says too little.
"""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice

from aiobus import clock as epochs
from aiobus.clock import elapsed
from aiobus.diagnostics import CLOSED, Diagnostics
from aiobus.discovery import Discovery, Member
from aiobus.mesh import Driver, Network, Probe
from aiobus.mesh.byes import Bye, Byes
from aiobus.mesh.doubts import Doubts
from aiobus.mesh.interest import Interest
from aiobus.mesh.namesakes import Namesakes
from aiobus.mesh.peers import (
    MAX_LEFT_OUT,
    Left,
    Peer,
    PeerState,
    RoundTrip,
    RoundTrips,
    Unplaced,
    Verdict,
)
from aiobus.mesh.survey import Survey
from aiobus.presence import Patterns
from aiobus.publisher import Publisher, Route
from aiobus.refusals import Refusal
from aiobus.rows import Source
from aiobus.sync import Notifier
from aiobus.wire import VERSION, Answer, Ask, Options, PeerId, WireError, up

__all__ = ["MAX_OF_NAME", "Links"]

log = logging.getLogger("aiobus.mesh")


MAX_PEERS = 1024
"""Peers at once. Beyond it the oldest that never answered gives way. A peer that gives way, or
finds no place, is named by `flush` and `subscribe` until it is linked or has ended.
"""
MAX_OF_NAME = 32
"""Peers of one name at once on a desk with keys, where a name is proven: a few starts of one bus,
or observers. More are endpoints that no bus has. Each would cost two sockets and a place.
"""
AT_SIGHT = 64
"""Peers without an answer that are connected to at once. The endpoints of more are probed first:
ZeroMQ keeps each question for a connection that is never accepted.
"""
STARTS_AT_SIGHT = 4
"""The same, of one name on a desk with keys."""
CLAIM_SECONDS = 3.0
"""A bus proves its name on its link. No call waits longer for one that is only claimed."""
UNPROVEN = "unproven"
"""The refusal of such a bus, one of `refusals.NOTICED`."""
READ_SECONDS = 1.0
"""After the end of its link, what had arrived of a peer was read."""
QUIET = 0.1
"""Seconds in which nothing comes of a dead peer, then what had arrived of it was read."""
DELAY = 0.5
"""An own delay above this may be why others seem silent; they are not judged for a while."""
LENIENCE = 3.0


class Links:
    """The other buses that the bus `me` knows, and its links to them."""

    def __init__(
        self,
        me: PeerId,
        publisher: Publisher,
        network: Network,
        discovery: Discovery,
        diagnostics: Diagnostics,
        interest: Interest,
        driver: Driver,
    ) -> None:
        self.me = me
        self.on_refused: Callable[[Refusal], object] = lambda refusal: None
        """Called with a claim that was not proven."""
        self.changed = Notifier()
        self.out_of_reach: Collection[str] = ()
        """Endpoints on hosts that do not answer: a start does not wait for these."""
        self.attended = Notifier()
        """Woken when a peer is there, or tells what it subscribes to."""
        self.unconfirmed: set[str] = set()
        """Names of the peers that did not confirm a subscription in time, as its user was told."""
        self.rounds = RoundTrips()
        self.doubts = Doubts(self.rounds, self.ask, diagnostics, interest)
        self.namesakes = Namesakes(me, diagnostics, driver, self.changed)
        self.byes = Byes(driver, self._forget_closed, self._link_again)
        self.survey = Survey(self, self.rounds, self.ask, diagnostics, elapsed)
        self.sources: dict[Source, Peer] = {}
        """Those of the peers that are linked or looked for."""
        self._publisher = publisher
        self._network = network
        self._discovery = discovery
        self._diagnostics = diagnostics
        self._interest = interest
        self._driver = driver
        self._peers: dict[str, Peer] = {}  # by endpoint
        self._linking: dict[str, RoundTrip] = {}
        self._judged = elapsed()
        self._lenient_until = 0.0
        self._strangers: dict[str, Peer] = {}
        """Those that never answered, the oldest first."""
        self._unseen: dict[str, Peer] = {}
        """Those of them that are not connected to yet."""
        self._early: dict[str, PeerId] = {}
        """Those that have said hello before all of the dead one at their endpoint was read."""
        self._succeeding: dict[Peer, Probe] = {}
        """Those that have the name of one that may be dead, until that is known."""
        self._joined: set[Source] = set()
        """Those that were said to have joined, and not to have left. One that has started again at
        another endpoint is two peers for a while.
        """
        self._checking: dict[Source, int] = {}
        """The question to each that has named another start than is known."""
        self._proving: dict[Source, RoundTrip] = {}
        """The question to each whose heartbeats alone tell that it is so far."""
        self._unplaced = Unplaced()
        self._looking: Probe | None = None
        self._sorting: Probe | None = None
        self._relinking: Probe | None = None
        self._sought: Probe | None = None

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers.values())

    def at(self, endpoint: str) -> Peer | None:
        """The peer that listens there, if it is known."""
        return self._peers.get(endpoint)

    def __contains__(self, peer: Peer) -> bool:
        return self._peers.get(peer.endpoint) is peer

    def ask(self, number: int, endpoints: Collection[str]) -> None:
        """Ask the peers at these endpoints whether all that is subscribed here is live there."""
        peers = [peer for each in endpoints if (peer := self._peers.get(each)) is not None]
        name, known = "*", self.survey.mine
        if len(peers) == 1:
            name, known = peers[0].name, self.known_of(peers[0].who)
        options = replace(known, queries=self._interest.told)
        self.rounds.note_sent(number, elapsed())
        self._network.ask(up(Ask(name, number, self.me, options=options)), name)

    def known_of(self, who: PeerId | None) -> Options:
        """What this bus knows of a peer that has a journal, which may have been put back since; and
        which list of members this bus has.
        """
        mine = self.survey.mine
        if who is None or who.source not in self._interest.begins:
            return mine
        peer = self.sources.get(who.source)
        seq = self._interest.vouched.get(who.source, 0 if peer is None else peer.vouched)
        start, begin = self._interest.starts[who.source], self._interest.begins[who.source]
        return replace(
            mine,
            known_epoch=who.epoch,
            known_start=start,
            known_begin=begin,
            known_seq=seq,
        )

    def _found_at(self) -> int:
        """The seq after which a peer found now is owed events: 0 if it may have been here."""
        return 0 if self._discovery.unreached else self._publisher.public_seq

    # Coming.

    def lose(self, member: Member) -> None:
        """The claim of this member has ended. No effect if the member has proven its name."""
        peer = self._peers.get(member.endpoint)
        if peer is not None and peer.is_claimed and peer.name == member.name:
            self._drop(peer)

    def find(self, member: Member) -> None:
        """A member listens there: link. Again: nothing. If it has not said who it is, it goes
        by this name: the one that was said to listen there is dead, and its port is another's. What
        is only claimed says nothing of one that others have met.
        """
        is_claimed = self._discovery.is_claimed(member)
        peer = self._peers.get(member.endpoint)
        if peer is None:
            if member.endpoint != self.me.endpoint:
                self._add(member, self._found_at())
        elif peer.who is None and (peer.is_claimed or not is_claimed):
            self._rename(peer, member.name)
            peer.is_claimed = is_claimed

    def _add(self, member: Member, found_at: int, who: PeerId | None = None) -> Peer | None:
        """A new peer; None when there is no place for it. `who`: if it has said hello."""
        if self._network.members.by_name and not self._make_room(member.name, is_here=bool(who)):
            return None
        if len(self._peers) >= MAX_PEERS:
            if not self._strangers:
                self._leave_out(member, found_at, who)
                return None
            oldest = next(iter(self._strangers.values()))
            oldest.has_lost_place = True
            self._drop(oldest)
            if not oldest.has_left:
                said = oldest.who if oldest.is_listening else None
                self._leave_out(Member(oldest.name, oldest.endpoint), oldest.found_at, said)
        peer = Peer(member.name, member.endpoint, elapsed(), found_at)
        peer.is_claimed = self._discovery.is_claimed(member)
        if (left := self._unplaced.pop(member.endpoint)) is not None:
            peer.found_at = min(found_at, left.found_at)
        if (before := self.byes.at(member.endpoint)) is not None:
            peer.found_at = min(peer.found_at, before.found_at)
        self._peers[member.endpoint] = self._strangers[member.endpoint] = peer
        if len(self._strangers) <= AT_SIGHT and not self._is_doubtful(member.name):
            self._connect(peer)
        else:
            self._unseen[peer.endpoint] = peer
            if self._looking is None or self._looking.is_over:
                self._look()
        return peer

    def _make_room(self, name: str, *, is_here: bool) -> bool:
        """Of as many peers as a proven name may have, one gives way to the next that has said hello
        (`is_here`): one whose hello is gone, or the oldest. So a start of a bus always has a place
        beside those that it has claimed before. False if none gives way: what is only said of a
        name, by who serves a rendezvous, takes no place of one that is there.
        """
        others = [each for each in self if each.name == name]
        if len(others) < MAX_OF_NAME:
            return True
        if not is_here:
            return False
        oldest = min(others, key=lambda each: (each.is_listening, each.is_linked))
        text = f"{name} is said to be at more than {MAX_OF_NAME} endpoints: {oldest.endpoint} goes"
        self._diagnostics.trouble(f"{name} has too many endpoints", text)
        self._settle(oldest, "another has taken its place")
        self._drop(oldest)
        return True

    def _is_doubtful(self, name: str) -> bool:
        """True if many endpoints of a proven name have never answered: the next is probed first."""
        same = sum(each.name == name for each in self._strangers.values())
        return same > STARTS_AT_SIGHT and bool(self._network.members.by_name)

    def _connect(self, peer: Peer) -> None:
        log.debug("%s connects to %s at %s", self.me, peer, peer.endpoint)
        self._network.connect(peer.endpoint, peer.name)
        self.link(peer)

    def _rename(self, peer: Peer, name: str) -> None:
        """Another bus listens there than was said. A network with keys links by name."""
        if name != peer.name:
            peer.name = name
            if peer.endpoint not in self._unseen:
                self._network.connect(peer.endpoint, name)

    def _probe(self, probe: Probe) -> Probe:
        self._driver.probe(probe)
        return probe

    def _look(self) -> None:
        """Connect to those of the unseen that listen, and drop the others."""
        some = [self._unseen.pop(each) for each in list(islice(self._unseen, AT_SIGHT))]
        members = {Member(peer.name, peer.endpoint): peer for peer in some if peer in self}

        def conclude(absent: Collection[Member]) -> None:
            for member, peer in members.items():
                if peer in self and member not in absent:
                    self._connect(peer)
                elif peer in self:
                    self._drop(peer)
                    self.changed.wake()
            if self._unseen:
                self._look()

        self._looking = self._probe(Probe(members, conclude))

    # No place.

    def _leave_out(self, member: Member, found_at: int, who: PeerId | None) -> None:
        if not self._unplaced.add(member, found_at, who):
            text = f"more than {MAX_LEFT_OUT:,} peers are left out: not all are known by name"
            self._diagnostics.trouble("more peers are left out than are remembered", text)
        elif self._sorting is None or self._sorting.is_over:
            self._sort_new()

    def _sort_new(self) -> None:
        if some := self._unplaced.unsaid(AT_SIGHT):
            self._sorting = self._probe(self.sorting(some, is_new=True))

    def sorting(self, some: Collection[Left], *, is_new: bool = False) -> Probe:
        """The probe that forgets those that do not listen, and links with others if it can."""
        members = [left.member for left in some]
        return Probe(members, partial(self._sort, some, is_new=is_new))

    def _sort(self, some: Collection[Left], absent: Collection[Member], *, is_new: bool) -> None:
        for left in some:
            if left not in self._unplaced:
                continue
            name, endpoint = left.member
            if left.member in absent:
                self._unplaced.pop(endpoint)
                left.has_ended = True
                self._excuse(name)
                self.changed.wake()
            elif len(self._peers) < MAX_PEERS:
                if left.who is None:
                    self._add(left.member, left.found_at)
                else:
                    self._greet(left.who)
            elif not left.is_said:
                left.is_said = True
                text = (
                    f"{name} is left out: {MAX_PEERS:,} peers are known already; it is named as"
                    " unconfirmed until there is a place for it, or it ends"
                )
                self._diagnostics.trouble("peers are left out", text)
        if is_new:
            self._sort_new()

    def left_out(self, newest: float = math.inf) -> list[Left]:
        """Those for which there is no place, and to which something up to `newest` is owed."""
        return self._unplaced.owed(newest)

    def nameless(self, newest: float = math.inf) -> set[str]:
        """A word for those of them whose names are not remembered, if there are any."""
        return self._unplaced.more(newest)

    def link(self, peer: Peer) -> None:
        """Ask a peer whether all that is subscribed here is live there, until it has answered."""
        self.rounds.drop(self._linking.get(peer.endpoint))
        catchups = list(self._interest)

        def on_answer(value: Answer) -> None:
            self._interest.meet(catchups, value)
            if peer in self:
                peer.has_answered = True
                self._note_link(peer)

        self._linking[peer.endpoint] = self.rounds.ask([peer.endpoint], self.ask, on_answer)

    def hello(self, who: PeerId) -> None:
        """A subscriber of this bus says who it is. Raises WireError if it cannot be a peer. If
        there is no place for it, it is left out, and linked as soon as there is one.
        """
        if not self._allows(who):
            raise WireError("a hello from an endpoint that no member of this bus can have")
        self._greet(who)

    def _allows(self, who: PeerId) -> bool:
        """True if a peer may have this name and this endpoint together. A peer that is known is
        no exception: by another name it would pass for another bus.
        """
        member = Member(who.name, who.endpoint)
        return who.endpoint != self.me.endpoint and self._discovery.allows(member)

    def _greet(self, who: PeerId) -> None:
        """The hello of `who`, which may be a peer, is there (again)."""
        member = Member(who.name, who.endpoint)
        before = self.byes.pop(who.endpoint)
        peer = self._peers.get(who.endpoint)
        if peer is None:
            found_at = self._found_at()
            if before is not None and before.who == who:
                found_at = before.found_at  # it never closed, and is owed what it was before
            peer = self._add(member, found_at, who)
            if peer is None:
                return
        elif peer.who is not None and peer.who != who:
            if self._was_held_up():
                self._early[who.endpoint] = who
                self._driver.later(QUIET, self._greet_early)
                return
            self._restart(peer, who)
        self._early.pop(who.endpoint, None)
        # A repeated hello says that its link was made again; perhaps ours was cut as well.
        is_news = peer.state is not PeerState.FOUND or peer.name != who.name
        self._introduce(peer, who)
        peer.say_hello()
        self.changed.wake()
        self.attended.wake()
        if is_news:
            self.link(peer)

    def _greet_early(self) -> None:
        for who in list(self._early.values()):
            self._greet(who)

    def _was_read(self, peer: Peer) -> bool:
        """True once what had arrived of a peer that is dead was read. Its successor says hello on
        another connection, so that may be read before: above all after this process was stopped.
        What is read after the end of a source is of no use, and its end would be lost unseen.
        """
        return not self._was_held_up() and peer.silence(elapsed()) >= QUIET

    def _was_held_up(self) -> bool:
        """True if this process was held up until less than a second ago."""
        now, back = elapsed(), self._lenient_until - LENIENCE
        return now - self._judged > 1.0 + DELAY or now - back < READ_SECONDS

    def _introduce(self, peer: Peer, who: PeerId) -> None:
        if peer.who != who:
            self._discovery.remember(Member(who.name, who.endpoint))
        peer.who, peer.is_claimed = who, False
        self._rename(peer, who.name)
        epochs.heard(who.epoch)
        # If it was here before, cursors stand where it was then.
        source = who.source
        before = self.sources.get(source, peer)
        peer.last = max(peer.last, before.last, self._interest.ended.get(source, 0))
        peer.vouched = max(peer.vouched, before.vouched, self._interest.vouched.get(source, 0))
        self.sources[source] = peer

    def known(self, who: PeerId) -> Peer | None:
        """The peer that has said hello as `who`."""
        peer = self._peers.get(who.endpoint)
        return peer if peer is not None and peer.who == who else None

    def listeners(self, route: Route, to: str = "") -> Collection[Source] | None:
        """See `Transport.listeners`."""
        type = route.type
        if not any(type in each.query.types for each in route.streams):
            return ()
        if to:
            peer = self.named(to)
            if peer is None or peer.who is None or peer.is_observer:
                return ()
            return [peer.who.source] if peer.patterns.take(type, route.key) else ()
        if self._is_only_observed(type):
            return ()
        peers = [each for each in self if each.is_there and not each.is_observer]
        if any(each.patterns.has_more for each in peers):
            return None
        named = [each.who.source for each in peers if each.who and type in each.patterns.types]
        return named or None

    def note_told(self, peer: Peer, queries: str) -> None:
        """A peer tells what it subscribes to. Raises WireError if that is no such text."""
        if queries == peer.queries:
            return
        try:
            peer.patterns = Patterns.of(queries.split())
        except ValueError as error:
            raise WireError(f"no queries of a peer: {error}") from None
        peer.queries = queries
        self.attended.wake()

    def named(self, name: str) -> Peer | None:
        """The linked peer of this name; of a start and the one before it, the newer."""
        found = [each for each in self if each.name == name and each.is_there]
        return max(found, key=lambda each: each.found, default=None)

    def _is_only_observed(self, type: str) -> bool:
        """True if observers may have subscribed to `type` by name, and surely no other peer has:
        ZeroMQ does not tell which peers have asked for a query.
        """
        wanting = [each.is_observer for each in self if each.may_want(type)]
        return bool(wanting) and all(wanting) and not self.left_out()

    @property
    def is_observed(self) -> bool:
        """True if an observer is known."""
        return any(each.is_observer for each in self)

    def note_answered(self, peer: Peer) -> None:
        """A peer was answered whether its queries are live here."""
        peer.was_answered = True
        self._note_link(peer)

    def hear_answer(self, value: Answer) -> None:
        """A peer has answered, and says how old it is. Raises WireError if it cannot be a peer."""
        who = value.who
        peer = self._peers.get(who.endpoint)
        if peer is None or (peer.is_listening and peer.who != who):
            return  # stale answer from an earlier process there: the latest hello decides
        if not self._allows(who):
            raise WireError("an answer from an endpoint that no member of this bus can have")
        if peer.who is not None and peer.who != who:
            self._restart(peer, who)
        self._introduce(peer, who)
        peer.other_version, peer.refusal = 0, ""  # else it could not have answered
        peer.is_open = value.is_open
        self._strangers.pop(peer.endpoint, None)
        now = elapsed()
        started, options = now - value.age, value.options
        # An answer that is late makes its sender look younger than it is.
        is_older = peer.found - value.age <= self.namesakes.born
        published = max(value.seq, options.numbered)  # a commit may take until long after it
        past = published if is_older or not self.namesakes.is_open else options.begin
        self.survey.hear(peer, options, self.rounds.sent(value.nonce, peer.endpoint))
        if self._is_to_check(peer, value):
            self._hear(peer, now, value.seq)
            return
        if self._interest.is_restart(who.source, options):
            self._announce_restart(peer, who.source, options.start)
        self._interest.note_start(who.source, started, options, past)
        started = self._interest.started[who.source]
        if abs(started - peer.started) > DELAY:  # else it is another message of the same start
            peer.started, peer.since = started, epochs.time() - (now - started)
        self._checking.pop(who.source, None)
        if self.rounds.awaits(value.nonce, peer.endpoint):
            peer.vouch(value.seq)
        self.doubts.weigh(peer, value.seq)
        self._hear(peer, now, value.seq)
        if who.name == self.me.name:
            self.namesakes.meet(value)
        self.rounds.answer(value.nonce, who.endpoint, value)
        asked = self._linking.get(peer.endpoint)
        # The end of its link came on another socket, and may have been read before this answer.
        if peer.is_cut and not peer.has_answered and asked and asked.number == value.nonce:
            asked.on_answer(value)

    def _is_to_check(self, peer: Peer, value: Answer) -> bool:
        """True if an answer names another start than is known. The peer is asked once more, and
        told what is known: a bus whose journal is an older copy ends by that, and does not answer.
        What another bus answers to this question counts, and not what is late.
        """
        source = value.who.source
        number = self._checking.get(source)
        if value.nonce == number or not self._interest.is_restart(source, value.options):
            return False
        self._interest.doubt_start(source, peer.vouched)
        asked = self._linking.get(peer.endpoint)
        if asked is None or asked.number != number or not asked.waiting:
            self.link(peer)
            self._checking[source] = self._linking[peer.endpoint].number
        return True

    def ask_again(self, source: Source) -> None:
        """What comes as a source does not go on where its stream was: ask it which start it is."""
        if (peer := self.sources.get(source)) is not None and not peer.has_left:
            self.link(peer)

    def _announce_restart(self, peer: Peer, source: Source, start: int) -> None:
        """Events of that start wait for it where it was asked for, and nowhere else."""
        announcement = self._interest.restart(source)

        def then() -> None:
            newest = self._publisher.history.newest
            self._interest.note_announced(source, announcement, newest)

        self._diagnostics.peer_restarted(*source, start, peer.last, then)

    def possible_namesakes(self) -> list[Member]:
        """Those of this name that may be there though they are not linked: they are being looked
        for, have not answered, or speak another version. Who only claims to be one takes no name.
        """
        unlinked = [
            Member(peer.name, peer.endpoint)
            for peer in self
            if peer.name == self.me.name
            and not peer.is_claimed
            and (peer.is_awaited or peer.other_version)
        ]
        return [*unlinked, *self.namesakes]

    def refuse_version(self, who: PeerId, version: int) -> None:
        """A peer speaks another version of the protocol: it is not linked, nor waited for."""
        peer = self._peers.get(who.endpoint)
        if peer is None or peer.who != who or peer.other_version == version:
            return
        if peer.has_answered:
            return  # it speaks this version, and another process has asked in its name
        peer.other_version = version
        text = (
            f"{who} at {who.endpoint} speaks version {version} of the protocol, and this bus"
            f" version {VERSION}: they are not linked, and get nothing of each other; run the same"
            " version of aiobus on both sides"
        )
        self._diagnostics.refused(who.endpoint, who.name, "version", 1, text)
        self._discovery.tell_refused(who.name, "version")
        self.changed.wake()

    def _note_link(self, peer: Peer) -> None:
        if not peer.may_link:
            return
        rivals = [each for each in self if each.name == peer.name and each.is_linked]
        if not rivals:
            self._join(peer)
        elif not self._is_succeeding(peer):
            self._succeed(peer, rivals)

    def _is_succeeding(self, peer: Peer) -> bool:
        probe = self._succeeding.get(peer)
        return probe is not None and not probe.is_over

    def _join(self, peer: Peer) -> None:
        if peer.link() and peer.who is not None:
            log.debug("%s is linked with %s", self.me, peer)
            self.unconfirmed.discard(peer.name)  # what it does not serve, it says
            if (source := peer.who.source) not in self._joined:
                self._joined.add(source)
                if not peer.is_observer:
                    self._diagnostics.peer_joined(*source)
            self.changed.wake()
            self.attended.wake()

    def _succeed(self, peer: Peer, rivals: list[Peer]) -> None:
        """Link with `peer` after `peer_left` of those that had its name: a handler that heard of
        the old one's end last would stop beside a feed that lives.
        """
        members = [Member(each.name, each.endpoint) for each in rivals]
        self._succeeding[peer] = self._probe(Probe(members, partial(self._replace, peer, rivals)))

    def _replace(self, peer: Peer, rivals: list[Peer], absent: Collection[Member]) -> None:
        self._succeeding.pop(peer, None)
        dead = {member.endpoint for member in absent}
        linked = [each for each in rivals if each in self and each.is_linked]
        ended = [each for each in linked if each.is_gone or each.endpoint in dead]
        if not all(map(self._was_read, ended)):
            self._driver.later(QUIET, self._look_for_successors)
            return
        for rival in linked:
            is_dead = rival.endpoint in dead
            if not (is_dead or rival.is_gone or peer.is_open):
                return  # it is about to be refused, and would be said to join and to leave
            if is_dead or rival.is_gone:
                # The same source has started again, at another endpoint, and has never left.
                if rival.who is None or peer.who is None or rival.who.source != peer.who.source:
                    self._settle(rival, "another has taken its place", is_dead=is_dead)
                rival.leave()
            else:
                text = f"two buses are named {peer.name!r}, at {rival.endpoint} and {peer.endpoint}"
                self._diagnostics.trouble(f"the name {peer.name!r} is used twice", text)
            if is_dead:
                self._drop(rival)
        if peer in self:
            self._join(peer)

    def _look_for_successors(self) -> None:
        for peer in list(self):
            if not self._is_succeeding(peer):
                self._note_link(peer)

    def is_there(self, source: Source) -> bool:
        """True while the peer that publishes as `source` is linked."""
        peer = self.sources.get(source)
        return peer is not None and peer.is_there

    def is_owed(self, source: Source) -> bool:
        """The same, and it is no observer: it is waited for."""
        return self.is_there(source) and not self.sources[source].is_observer

    def presence(self, source: Source) -> bool | None:
        """True while a source is linked. None if it may be there: its link is cut, or a peer of its
        name was found and is not linked yet. False if neither is known.
        """
        if self.is_there(source):
            return True
        # One that has left is looked for, and counts as gone.
        may_be = any(
            each.name == source[0] and not (each.is_there or each.has_left) for each in self
        )
        return None if may_be else False

    @property
    def is_meeting(self) -> bool:
        """True while a peer may still become linked soon, or prove to have the name of this bus."""
        now = elapsed()
        awaited = any(
            # A peer that takes this bus for its dead predecessor makes its link again.
            (self.is_awaited(peer) or (peer.is_cut and peer.cut_for(now) < READ_SECONDS))
            and not (peer.is_observer or peer.is_refusing or self.is_cut_off(peer))
            for peer in self
        )
        return awaited or bool(self.namesakes)

    def is_shut_out(self, peer: Peer) -> bool:
        """True on a desk with keys if its name is not on the list of members here, which was said:
        until it is, it is no bus of this desk, and nobody waits for it.
        """
        members = self._network.members
        return bool(members.number) and peer.name not in members.by_name

    def is_awaited(self, peer: Peer) -> bool:
        """True when it may still become linked soon."""
        return peer.is_awaited and not self.is_shut_out(peer)

    def is_cut_off(self, peer: Peer) -> bool:
        """True if its host did not answer when this bus joined."""
        return peer.endpoint in self.out_of_reach

    @property
    def is_meeting_observers(self) -> bool:
        """True while an observer may still become linked soon."""
        return any(peer.is_awaited and peer.is_observer for peer in self)

    def alive(self, now: float) -> set[Source]:
        """The sources that are not silent."""
        return {source for source, peer in self.sources.items() if not peer.is_silent(now)}

    def hear(self, source: Source, seq: int) -> Peer | None:
        """A source is at `seq`, or beyond; the peer it is, if it is known."""
        peer = self.sources.get(source)
        if peer is not None:
            self._hear(peer, elapsed(), seq)
        return peer

    def doubt(self, source: Source) -> bool:
        """What came of a source is wrong: ask it where it is. False if it has left."""
        peer = self.sources.get(source)
        if peer is None or peer.has_left:
            return False
        self.doubts.ask(peer)
        return True

    def hear_beat(self, source: Source, seq: int) -> None:
        """A source says that it is at `seq`."""
        if (peer := self.sources.get(source)) is not None:
            self.doubts.weigh(peer, seq)
            now = elapsed()
            peer.beat(now, seq)
            self._hear(peer, now, seq)
            if peer.steady > peer.vouched and source in self._interest.starts:
                self._prove(peer, source)

    def _prove(self, peer: Peer, source: Source) -> None:
        """Ask a peer that has a journal where it is, unless it is being asked. What its heartbeats
        say may be of another process, and a bus ends if it is told that it was further than its
        journal.
        """
        asked = self._proving.get(source)
        if peer.is_listening and (asked is None or not asked.waiting):
            self._proving[source] = self.rounds.ask([peer.endpoint], self.ask, lambda _: None)

    def _hear(self, peer: Peer, now: float, seq: int) -> None:
        if (silent := peer.hear(now, seq)) is not None:
            self.note_fresh(peer, silent)

    def note_fresh(self, peer: Peer, silent: float) -> None:
        """A peer that was stale is heard again, after `silent` seconds."""
        if peer.who is not None and not peer.is_observer:
            self._diagnostics.fresh(peer.name, peer.who.epoch, peer.last, silent)

    # Silence.

    def judge(self, now: float) -> bool:
        """Do each second what each silence calls for. True if this process was held up."""
        if is_late := now - self._judged > 1.0 + DELAY:
            self._lenient_until = now + LENIENCE
        self._judged = now
        silent: list[Peer] = []
        overdue: list[Peer] = []
        for peer in list(self._peers.values()):
            if peer.is_claimed and not peer.refusal and now - peer.found >= CLAIM_SECONDS:
                peer.refusal = UNPROVEN
                self.on_refused(Refusal(peer.endpoint, UNPROVEN, peer.name))
                self.changed.wake()
            if peer.may_link and not self._is_succeeding(peer):
                self.link(peer)  # it had not started yet, beside a living one of its name
            match peer.judge(now, is_lenient=now < self._lenient_until):
                case Verdict.STALE if peer.who is not None and not peer.is_observer:
                    self._diagnostics.stale(peer.name, peer.who.epoch, peer.last)
                case Verdict.RELINK:
                    overdue.append(peer)
                case Verdict.LEFT:
                    self._settle(peer, "its link was cut and did not come back")
                case Verdict.DROP:
                    silent.append(peer)
        if silent:
            self._probe(self.dropping(silent))
        if some := self._unplaced.rotate(AT_SIGHT):
            self._probe(self.sorting(some))
            self._probe(self.dropping(overdue))  # they may have their places for nothing
        if overdue and (self._relinking is None or self._relinking.is_over):
            members = {Member(peer.name, peer.endpoint): peer for peer in overdue}
            conclude = partial(self._relink_accepting, members)
            self._relinking = self._probe(Probe(members, conclude, for_accepting=True))
        self.byes.look()
        return is_late

    def look_for_cut(self) -> None:
        """An answer waits for what has become of those whose link is cut: if one does not listen
        any more, it has left, and not only after its grace. What had arrived of it was read by now.
        """
        cut = [each for each in self if each.is_cut and each.cut_for(elapsed()) >= READ_SECONDS]
        members = {Member(each.name, each.endpoint): each for each in cut}

        def conclude(absent: Collection[Member]) -> None:
            for peer in map(members.__getitem__, absent):
                if peer in self and peer.is_cut:
                    peer.leave()
                    self._settle(peer, "its link was cut and did not come back")

        if cut and (self._sought is None or self._sought.is_over):
            self._sought = self._probe(Probe(members, conclude))

    def _relink_accepting(self, members: dict[Member, Peer], accepting: Collection[Member]) -> None:
        """Make the links of silent peers again that can be had: one that is only silent may be the
        last there is, since the file of an ipc endpoint may have vanished under its peer.
        """
        for member in accepting:
            if (peer := members[member]) in self and peer.is_silent(now := elapsed()):
                log.debug("%s links again with %s", self.me, peer)
                peer.relink(now)
                self._relink(peer)

    def _relink(self, peer: Peer) -> None:
        if peer in self:
            self._network.disconnect(peer.endpoint)
        if peer in self:  # still: what was read at the end may have been its bye
            self._network.connect(peer.endpoint, peer.name)
            self.link(peer)

    # Going.

    def dropping(self, peers: Iterable[Peer]) -> Probe:
        """The probe that gives up those of `peers` that do not listen any more and stay silent. A
        peer that cannot be reached may listen; given up, it would never be found again.
        """
        began = elapsed()
        members = {Member(peer.name, peer.endpoint): peer for peer in peers}

        def conclude(absent: Collection[Member]) -> None:
            for member in absent:
                if (peer := members[member]) in self and peer.is_silent_since(began):
                    if not peer.has_left:  # frames of it may have come before it was linked
                        self._settle(peer, "its link was cut and did not come back")
                    self._drop(peer)

        return Probe(members, conclude)

    def withdraw(self, who: PeerId) -> None:
        """The hello of a peer is gone: it died, or its link to this bus was cut."""
        self.byes.withdraw(who)
        self._unplaced.withdraw(who)
        if self._early.get(who.endpoint) == who:
            del self._early[who.endpoint]
        peer = self._peers.get(who.endpoint)
        if peer is not None and peer.who == who:
            log.debug("%s: the hello of %s is gone", self.me, peer)
            self._interest.doubt_start(who.source, peer.vouched)
            peer.withdraw(elapsed())
            self.rounds.lose(peer.endpoint)
            self.changed.wake()

    def bye(self, peer: Peer) -> None:
        """A peer has closed, and this was its last message. Any process can say so, and parts the
        two if it is not true: then this bus ends its link, and the peer sees a hello withdrawn. So
        the peer is forgotten once its endpoint refuses, and not before.
        """
        who, is_here = peer.who, peer.is_listening
        self.rounds.lose(peer.endpoint, is_missed=False)
        self._settle(peer, CLOSED)
        self._drop(peer)
        if who is None:
            return
        if not self.byes.add(Bye(who, elapsed(), peer.found_at, is_here)):
            self._leave_out(Member(who.name, who.endpoint), peer.found_at, who if is_here else None)

    def _forget_closed(self, who: PeerId) -> None:
        """A peer has said bye and listens no more."""
        self._discovery.forget(Member(who.name, who.endpoint))
        self._excuse(who.name)
        self.changed.wake()

    def _link_again(self, bye: Bye) -> None:
        """A peer still listens long after its bye, which was wrong."""
        who = bye.who
        text = f"{who} has said bye and still listens at {who.endpoint}: linked again"
        self._diagnostics.trouble("a bye was wrong", text)
        if bye.is_here:
            self._greet(who)
        else:
            self.find(Member(who.name, who.endpoint))
            self.byes.pop(who.endpoint)
            self.changed.wake()

    def _restart(self, peer: Peer, who: PeerId) -> None:
        """Another process listens there, so the old one is dead: settle with it first. If that has
        a journal, it may come back at another endpoint, unless a new epoch of it is there.
        """
        has_journal = peer.who is not None and peer.who.source in self._interest.starts
        is_dead = not has_journal or peer.name == who.name
        self._settle(peer, "another has taken its place", is_dead=is_dead)
        self._forget(peer)
        peer.renew(elapsed(), self._found_at())
        self._driver.soon(partial(self._relink, peer))

    def _settle(self, peer: Peer, reason: str, *, is_dead: bool = False) -> None:
        """A peer has left: what is missing of its events is lost."""
        who = peer.who
        peer.unlink()
        if who is not None:
            is_elsewhere = self.sources.get(who.source, peer) is not peer  # it has started again
            if not is_elsewhere:
                self._interest.doubt_start(who.source, peer.vouched)
                self._interest.leave(who.source, elapsed(), peer.last, is_dead=is_dead)
            if not is_elsewhere and who.source in self._joined:
                self._joined.discard(who.source)
                if not peer.is_observer:
                    self._diagnostics.peer_left(who.name, who.epoch, peer.last, reason)
        self.rounds.lose(peer.endpoint)
        self.changed.wake()

    def _drop(self, peer: Peer) -> None:
        """End the link, after what arrived on it has been read."""
        del self._peers[peer.endpoint]
        self._strangers.pop(peer.endpoint, None)
        self._unseen.pop(peer.endpoint, None)
        self.rounds.drop(self._linking.pop(peer.endpoint, None))
        self._forget(peer)
        self.rounds.lose(peer.endpoint, is_missed=peer.has_lost_place)
        if not peer.has_lost_place:
            self._excuse(peer.name)
        self.changed.wake()
        self._driver.soon(partial(self._disconnect, peer.endpoint))

    def _excuse(self, name: str) -> None:
        """No process of that name is there: it is not unconfirmed but gone."""
        if name in self.unconfirmed and not any(each.name == name for each in self):
            self.unconfirmed.discard(name)
            for catchup in self._interest:
                catchup.confirm(name)

    def _forget(self, peer: Peer) -> None:
        """Events of it that still come say nothing of the peer that is there now."""
        for source in [source for source, each in self.sources.items() if each is peer]:
            del self.sources[source]
            self._interest.marks.pop(source, None)
            self.doubts.drop(source)
            self._checking.pop(source, None)
            self.rounds.drop(self._proving.pop(source, None))

    def _disconnect(self, endpoint: str) -> None:
        if endpoint not in self._peers:
            log.debug("%s disconnects from %s", self.me, endpoint)
            self._network.disconnect(endpoint)
