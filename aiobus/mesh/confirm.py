"""What is confirmed: which queries are live at which peer, and which peer has everything that
was sent.

Owns the conversation that begins with `subscribe`, the swapping of topics between frames and
progress messages, the marks that are sent, for a flush or for a publisher that does not outrun its
readers, and the acknowledgements that are given as soon as
they are true. Must not know when a mark is reached (`interest`), what was sent (`fanout`) or who is
there (`links`).
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial

from aiobus.catchup import CatchUp as Inlet
from aiobus.clock import elapsed
from aiobus.mesh import Network
from aiobus.mesh.fanout import Fanout
from aiobus.mesh.interest import Interest
from aiobus.mesh.links import Links
from aiobus.mesh.peers import Peer
from aiobus.mesh.round_trips import RoundTrip, RoundTrips, Send
from aiobus.query import Query
from aiobus.rows import Source
from aiobus.transport import Standing
from aiobus.wire import Ack, Mark, PacedMark, PeerId, mark, up

__all__ = [
    "LAST",
    "Marks",
    "Queries",
    "Readers",
]

LAST = 0
"""The number of a mark that is the last: nobody acknowledges it."""

MARK_STREAMS = 4_096
"""Streams that one mark names: 4 MB at most, and a message over 16 MiB ends its link."""


class Marks:
    """The marks that one bus sends and receives."""

    def __init__(
        self,
        me: PeerId,
        network: Network,
        links: Links,
        rounds: RoundTrips,
        streams: Fanout,
        inlets: Interest,
    ) -> None:
        self._me = me
        self._network = network
        self._links = links
        self._rounds = rounds
        self._streams = streams
        self._interest = inlets

    def acknowledge(self) -> None:
        """Tell each source whose mark has been reached."""
        if self._interest.marks:
            for reached in self._interest.reached(self._links.doubts.sources):
                self._network.ask(up(Ack(reached.who.name, reached.mark, self._me)))

    def end(self) -> None:
        """Tell each peer what was sent last on each stream, as this bus closes."""
        sent = list(self._streams.sent().items())
        for begin in range(0, len(sent), MARK_STREAMS):
            streams = tuple(sent[begin : begin + MARK_STREAMS])
            for peer in self._links:
                if peer.who is not None and peer.is_listening:
                    self._network.send(mark(peer.who, Mark(LAST, self._me, streams)))

    async def flush(self, timeout: float) -> Collection[str]:
        """Wait until every peer has what was published since it was found; return the names of
        those that did not confirm it within `timeout` seconds.

        A peer that has said nothing yet may have subscribed to anything: it counts as one that has
        nothing until it has answered and confirmed, or until no process listens at its endpoint. A
        peer whose link is cut is named, unless its bye is just about to be read. One for which
        there was no place is named until it has one, or has ended.
        """
        end = elapsed() + timeout
        try:
            async with asyncio.timeout(timeout):
                # Or a peer whose link has ended seems to have asked for less, and to have all.
                await self._network.read_ends()
        except TimeoutError:
            names = {each.name for each in self._links if not each.has_left}
            names.update(each.member.name for each in self._links.left_out())
            return names | self._links.nameless()
        newest, owed, doubts = self._streams.newest, self._streams.owed(), self._streams.doubts
        left_out = self._links.left_out(newest)
        peers = [each for each in self._links if not each.has_left and each.found_at < newest]
        heard = {each for each in peers if each.is_listening}
        if not owed:
            peers = [each for each in peers if each not in heard]
        if strange := [each for each in peers if not (each.is_linked or each in heard)]:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, end - elapsed())):
                    await self._links.drop_absent(strange)
        async with asyncio.TaskGroup() as group:
            asked = {
                each: group.create_task(self._has_all(each, owed if each in heard else None, end))
                for each in peers
            }
            closing = group.create_task(self._links.see_closed(newest, end - elapsed()))
        missing = {each.name for each, task in asked.items() if not task.result()}
        missing |= closing.result()
        # Not asked yet: one that has come back since its bye was wrong, or that has a place by now.
        confirmed = set()
        for peer in [each for each in self._links if each not in asked]:
            if peer.has_left or peer.found_at >= newest:
                continue
            if await self._has_all(peer, None, end):
                confirmed.add(peer.endpoint)
            else:
                missing.add(peer.name)
        for left in await self._links.see_left_out(left_out, end - elapsed(), newest):
            if left.member.endpoint not in confirmed:
                missing.add(left.member.name)
        missing |= self._links.nameless(newest)
        if not missing and doubts == self._streams.doubts:  # else a peer that came was not asked
            self._streams.confirm(owed)
        return missing

    async def _has_all(self, peer: Peer, owed: dict[bytes, int] | None, end: float) -> bool:
        """Wait until `peer` confirms what is owed; False if it does not by `end`. True also once it
        has closed, or if it turns out that no process is there. `owed` is None if it had not said
        hello: what it has subscribed to is not known before.
        """
        if peer.other_version:
            return False
        if owed is None:
            await self._change(peer, lambda: peer.is_listening or peer.is_cut, end - elapsed())
            owed = self._streams.owed()  # with what it has subscribed to by now
        streams = [(name[:-1].decode(), seq) for name, seq in owed.items()]
        has_all = peer.is_listening
        for begin in range(0, len(streams), MARK_STREAMS):
            some = tuple(streams[begin : begin + MARK_STREAMS])
            is_there = has_all and peer in self._links and peer.is_listening
            has_all = is_there and await self._confirms(peer, some, end - elapsed())
        if not has_all and peer.is_cut:
            await self._links.see_off([peer])
        return has_all or (peer not in self._links and not peer.has_lost_place)

    async def _change(self, peer: Peer, is_enough: Callable[[], bool], timeout: float) -> None:
        """Wait until something is enough, `peer` has left, or `timeout` seconds are over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, timeout)):
                while peer in self._links and not (peer.has_left or is_enough()):
                    await self._links.changed.wait()

    async def _confirms(
        self, peer: Peer, streams: tuple[tuple[str, int], ...], timeout: float
    ) -> bool:
        """Ask `peer` for an acknowledgement of these streams; False if there is none in time."""

        def send(number: int, _: Collection[str]) -> None:
            if peer.who is not None:
                self._network.send(mark(peer.who, Mark(number, self._me, streams)))

        round = self._rounds.ask([peer.endpoint], send, lambda _: None)
        try:
            return not (await round.done(max(0.0, timeout)) | round.gone)
        finally:
            self._rounds.drop(round)


class Readers:
    """What each peer has confirmed of each type, for a publisher that does not outrun its readers.

    A peer confirms a type at once if it has not subscribed to it. Which peers have is not known
    here: ZeroMQ tells of a subscription once, whoever else has it. `beat` tells all of the seq that
    this bus is at, and `on_move` is called when a peer has shown that it reads.
    """

    def __init__(
        self,
        me: PeerId,
        network: Network,
        links: Links,
        rounds: RoundTrips,
        streams: Fanout,
        beat: Callable[[], None],
        on_move: Callable[[], None],
    ) -> None:
        self._me = me
        self._network = network
        self._links = links
        self._rounds = rounds
        self._streams = streams
        self._beat = beat
        self._on_move = on_move
        self._confirmed: dict[str, dict[Source, int]] = {}
        self._moves: dict[Source, int] = {}
        self._asked: dict[tuple[str, bool], tuple[object, list[RoundTrip]]] = {}
        """What was asked last of each type, while a publisher waits and ahead of time."""

    def standings(self, type: str) -> dict[Source, Standing]:
        """Where each peer is that may listen to `type`. One whose link is cut counts until it is
        said to have left: it may come back and ask for what it has missed. What it listens to is
        not known meanwhile.
        """
        is_served, moves = self._streams.serves(type), self._moves
        confirmed = self._confirmed.get(type, {})
        if not (is_served or confirmed):
            return {}
        return {
            source: Standing(confirmed.get(source, 0), moves.get(source, 0))
            for source, peer in self._peers().items()
            if is_served or (peer.is_cut and source in confirmed)
        }

    def _peers(self) -> dict[Source, Peer]:
        return {
            _source(each.who): each
            for each in self._links
            if each.who is not None and each.has_said_hello and not each.has_left
        }

    def ask(self, type: str, upto: int, waiting: Collection[str] | None) -> None:
        """Ask each for its word that it has what it wants of `type` up to this seq, in place of
        what was asked before: ahead of time (None), or while a publisher waits.
        """
        said, before = self._asked.pop((type, waiting is None), (None, []))
        streams = [(text, min(sent, upto)) for text, sent in self._streams.of_type(type).items()]
        known = self._peers()
        was = self._confirmed.get(type, {})
        confirmed = self._confirmed[type] = {each: was[each] for each in known if each in was}
        self._moves = {each: count for each, count in self._moves.items() if each in known}
        lacking = [peer.endpoint for each, peer in known.items() if confirmed.get(each, 0) < upto]
        parts = [
            tuple(streams[begin : begin + MARK_STREAMS])
            for begin in range(0, len(streams), MARK_STREAMS)
        ]
        say = (parts, waiting)
        if say == said and all({*lacking} <= each.waiting for each in before):
            self._asked[type, waiting is None] = (say, before)
            for each in before:  # under the number it has, or it would count several times there
                each.send(each.number, each.waiting)
            return
        for each in before:
            self._rounds.drop(each)
        left = dict.fromkeys(known, len(parts))

        def confirm(ack: Ack) -> None:
            source = _source(ack.who)
            left[source] = left.get(source, len(parts)) - 1
            if not left[source]:
                seqs = self._confirmed.setdefault(type, {})
                seqs[source] = max(upto, seqs.get(source, 0))
            self._note_move(source)

        self._beat()  # a peer that was misled about this bus is to ask before it confirms
        asked = [
            self._rounds.ask(lacking, partial(self._send, part, tuple(waiting or ())), confirm)
            for part in parts
        ]
        self._asked[type, waiting is None] = (say, asked)

    def _send(
        self,
        streams: tuple[tuple[str, int], ...],
        waiting: tuple[str, ...],
        number: int,
        endpoints: Collection[str],
    ) -> None:
        fields = (number, self._me, streams)
        value = PacedMark(*fields, waiting) if waiting else Mark(*fields)
        for endpoint in endpoints:
            if (peer := self._links.at(endpoint)) is not None and peer.who is not None:
                self._network.send(mark(peer.who, value))

    def go_back(self, who: PeerId, query: Query, after: int) -> Collection[str]:
        """A peer asks for what `query` matches after this seq, so it has not got that yet. Returns
        the types of which it had confirmed more.
        """
        source = _source(who)
        self._note_move(source)
        types = [type for type, seqs in self._confirmed.items() if seqs.get(source, 0) > after]
        lowered = [type for type in types if query.matches_type(type)]
        for type in lowered:
            self._confirmed[type][source] = after
        return lowered

    def _note_move(self, source: Source) -> None:
        self._moves[source] = self._moves.get(source, 0) + 1
        self._on_move()


def _source(who: PeerId) -> Source:
    return who.name, who.epoch


log = logging.getLogger("aiobus.mesh")


class Queries:
    """The subscriptions of one bus at the others. `ask` sends a `?` under a number of `rounds`."""

    def __init__(
        self, network: Network, links: Links, inlets: Interest, rounds: RoundTrips, ask: Send
    ) -> None:
        self._network = network
        self._links = links
        self._interest = inlets
        self._rounds = rounds
        self._ask = ask
        self._turning: list[RoundTrip] = []
        self._late: list[RoundTrip] = []
        self._is_closed = False

    async def subscribe(self, inlet: Inlet, timeout: float) -> Collection[str]:
        """Ask every other bus for the query of `inlet`; return the names of those that did not
        confirm, or refuse it. They are asked again until they confirm.

        A peer that has not answered anything yet is waited for like a linked one, as long as it is
        not silent: its `start` may have returned, since it ends when that peer has *sent* its
        answer. A peer whose link is cut cannot be asked, and is named, unless
        its bye is just about to be read; so is one for which there was no place.
        """
        if (new := self._interest.add(inlet)) is not None:
            self._network.subscribe(new)
        self.turn()
        end = elapsed() + timeout
        known = {each.endpoint: each for each in self._links if each.is_awaited or each.is_there}
        cut = [each for each in self._links if each.is_cut or each.other_version]
        left_out = self._links.left_out()
        round = self._rounds.ask(known, self._ask, partial(self._interest.meet, [inlet]))
        try:
            # One that was found long ago and never linked holds up no subscription.
            missing = await round.done(timeout, lambda each: known[each].is_overdue(elapsed()))
            names = await self._begun(inlet, end - elapsed()) | self._interest.refusing(inlet)
            lost = [known[each] for each in missing | round.gone] + cut
            if ended := [each for each in lost if each.is_cut]:
                await self._links.see_off(ended)
            for peer in lost:
                now = self._links.at(
                    peer.endpoint
                )  # another if it lost its place and has one again
                if now is not None and not (now.has_left or (now is not peer and now.is_linked)):
                    names.add(peer.name)
            for left in await self._links.see_left_out(left_out, end - elapsed()):
                now = self._links.at(left.member.endpoint)
                if now is None or not now.is_linked:  # else it was asked about this one as well
                    names.add(left.member.name)
            self._links.unconfirmed |= names
            return names | self._links.nameless()
        finally:
            # From now on, one question about all subscriptions is repeated, not one for each.
            self._rounds.drop(round)
            for endpoint in round.waiting:
                if not self._is_closed and (peer := known[endpoint]) in self._links:
                    self._links.link(peer)

    async def _begun(self, inlet: Inlet, timeout: float) -> set[str]:
        """Wait until `inlet` has heard from each peer where in its past it begins; return the names
        of those that did not say.
        """

        def waiting() -> set[str]:
            if self._is_closed:
                return set()
            return {each[0] for each in inlet.beginning if self._links.is_there(each)}

        try:
            async with asyncio.timeout(max(0.0, timeout)):
                while waiting():
                    await self._links.changed.wait()
        except TimeoutError:
            pass
        return waiting()

    def turn(self) -> None:
        """Swap the topics that have turned quiet or loud, and ask what was published meanwhile."""
        loud: list[Inlet] = []
        while self._interest.turned:
            topic = self._interest.turned.pop()
            log.debug("%s listens to %s", self._links.me, topic)
            self._network.subscribe(topic.live)
            # Not before: a stream that nobody asks for closes, and owes nothing any more.
            self._network.unsubscribe(topic.other)
            if not topic.is_quiet:
                loud.extend(topic.inlets)
        if loud:
            there = [peer.endpoint for peer in self._links if peer.is_there]
            meet = partial(self._interest.meet, loud)
            self._turning.append(self._rounds.ask(there, self._ask, meet))

    def tick(self) -> None:
        """A second has passed: whoever was asked before the last and has not answered tells it by a
        beacon.
        """
        for round in self._late:
            self._rounds.drop(round)
        self._late, self._turning = self._turning, []

    def ask_refused(self) -> None:
        """A second has passed: ask each peer that refused a query whether it serves it by now."""
        for who, inlets in self._interest.refused.items():
            if inlets and self._links.is_there((who.name, who.epoch)):
                meet = partial(self._interest.meet, list(inlets))
                self._turning.append(self._rounds.ask([who.endpoint], self._ask, meet))

    def unsubscribe(self, inlet: Inlet) -> None:
        """Withdraw it. No error when it was not subscribed."""
        if (old := self._interest.remove(inlet)) is not None:
            self._network.unsubscribe(old)

    def close(self) -> None:
        """Wait for nobody any more."""
        self._is_closed = True
