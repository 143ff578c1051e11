"""The waits of a bus for its peers: until each confirms a subscription, or has everything that was
sent.

Owns which peers are waited for, how often they are asked, and which are named in the end. Must not
know when a mark is reached or a query is live (`session`), nor how endpoints are probed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from math import inf

from aiobus.catchup import CatchUp
from aiobus.clock import elapsed
from aiobus.discovery import is_observer
from aiobus.errors import BusClosed
from aiobus.mesh import Network, Probe
from aiobus.mesh.links import AT_SIGHT
from aiobus.mesh.peers import Left, Peer, PeerState, RoundTrip, batches
from aiobus.mesh.session import Session, in_marks
from aiobus.publisher import Publisher
from aiobus.query import Query, parse_query
from aiobus.rows import Source
from aiobus.transport import Standing
from aiobus.wire import Ack, PageAsk, topic

__all__ = [
    "Confirmations",
    "Readers",
    "answered",
]

FIRST_PAUSE = 0.1
LAST_PAUSE = 1.0
"""Seconds until a question that a task waits for is repeated, at first and at last; each pause is
twice the one before.
"""
ASK_AGAIN = 10.0
"""Seconds until a peer that has not confirmed is looked for anew: another may have its name."""
BYE = 0.2
"""Seconds for which the bye of a peer whose hello is gone is waited for: each comes on a connection
of its own, so the end of a peer that closes may be read before its bye.
"""


async def answered(
    round: RoundTrip, timeout: float, is_excused: Callable[[str], bool] = lambda _: False
) -> set[str]:
    """Wait until each peer has answered, has gone or is excused, `timeout` seconds at most; return
    those that have not answered and have not gone. The question goes on. While a task waits it is
    repeated sooner than every second: of a burst, ZeroMQ drops what it cannot queue, this among it.
    """
    pause = FIRST_PAUSE
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            while not all(map(is_excused, round.waiting)):
                try:
                    async with asyncio.timeout(pause):
                        await round.changed.wait()
                except TimeoutError:
                    round.send(round.number, round.waiting)
                    pause = min(2 * pause, LAST_PAUSE)
    return set(round.waiting)


class Confirmations:
    """The waits of one session. `probe` carries a probe out, and waits 1 s at most."""

    def __init__(
        self, session: Session, network: Network, probe: Callable[[Probe], Awaitable[None]]
    ) -> None:
        self._session = session
        self._links = session.links
        self._fanout = session.fanout
        self._interest = session.interest
        self._network = network
        self._probe = probe

    async def flush(self, timeout: float) -> Collection[str]:
        """Wait until every peer has what was published since it was found; return the names of
        those that did not confirm it within `timeout` seconds.

        A peer that has said nothing yet may have subscribed to anything: it counts as one that has
        nothing until it has answered and confirmed, or until no process listens at its endpoint. A
        peer whose link is cut is named, unless its bye is just about to be read. One for which
        there was no place is named until it has one, or has ended.
        """
        if self._session.is_outdated:
            return [each.name for each in self._owed()]
        end = elapsed() + timeout
        try:
            async with asyncio.timeout(timeout):
                # Else a peer whose link has ended seems to have asked for less, and to have all.
                await self._network.read_ends()
        except TimeoutError:
            names = {each.name for each in self._owed()}
            names.update(each.member.name for each in self._links.left_out())
            return names | self._links.nameless()
        newest, owed, doubts = self._fanout.newest, self._fanout.owed(), self._fanout.doubts
        left_out = self._links.left_out(newest)
        peers = [each for each in self._owed() if each.found_at < newest]
        heard = {each for each in peers if each.is_listening}
        if not owed:
            peers = [each for each in peers if each not in heard]
        if strange := [each for each in peers if not (each.is_linked or each in heard)]:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, end - elapsed())):
                    await self._probe(self._links.dropping(strange))
        async with asyncio.TaskGroup() as group:
            asked = {
                each: group.create_task(self._has_all(each, owed if each in heard else None, end))
                for each in peers
            }
        missing = {each.name for each, task in asked.items() if not task.result()}
        # A bye may have been read meanwhile, so this comes after the others were asked.
        missing |= await self._see_closed(newest, end - elapsed())
        # Not asked yet: one that has come back since its bye was wrong, or that has a place by now.
        confirmed: set[str] = set()
        met = {*asked}
        while late := [each for each in self._owed() if each not in met]:
            met.update(late)
            for peer in late:
                if peer.found_at >= newest:
                    continue
                if await self._has_all(peer, None, end):
                    confirmed.add(peer.endpoint)
                else:
                    missing.add(peer.name)
            missing |= await self._see_closed(newest, end - elapsed())
        for left in await self._see_left_out(left_out, end - elapsed(), newest):
            if left.member.endpoint not in confirmed:
                missing.add(left.member.name)
        missing |= self._links.nameless(newest)
        if not missing and doubts == self._fanout.doubts:  # else a peer that came was not asked
            self._fanout.confirm(owed)
        return missing

    def _owed(self) -> list[Peer]:
        """The peers that are waited for."""
        return [
            each
            for each in self._links
            if not (each.has_left or each.is_observer or self._links.is_shut_out(each))
        ]

    async def show(self, timeout: float) -> Collection[str]:
        """Wait until each observer has what was published; return the names of the others."""
        end = elapsed() + timeout

        async def has_all(peer: Peer) -> bool:
            await self._change(peer, lambda: peer.is_listening or peer.is_cut, timeout)
            # All of it: what other peers have confirmed says nothing of an observer.
            sent = {topic(text): seq for text, seq in self._fanout.sent().items()}
            return await self._has_all(peer, sent, end)

        observers = [each for each in self._links if each.is_observer and not each.has_left]
        async with asyncio.TaskGroup() as group:
            asked = {each: group.create_task(has_all(each)) for each in observers}
        return {each.name for each, task in asked.items() if not task.result()}

    async def _has_all(self, peer: Peer, owed: dict[bytes, int] | None, end: float) -> bool:
        """Wait until `peer` confirms what is owed; False if it does not by `end`. True also once it
        has closed, or if it turns out that no process is there. `owed` is None if it had not said
        hello: what it has subscribed to is not known before.
        """
        if peer.other_version:
            return False
        if owed is None:
            await self._change(peer, lambda: self._has_said(peer), end - elapsed())
            owed = self._fanout.owed()  # with what it has subscribed to by now
        streams = [(name[:-1].decode(), seq) for name, seq in owed.items()]
        has_all = peer.is_listening
        for some in in_marks(streams):
            is_there = has_all and peer in self._links and peer.is_listening
            has_all = is_there and await self._confirms(peer, some, end - elapsed())
        if not has_all and peer.is_cut:
            await self._see_off([peer])
        return has_all or (peer not in self._links and not peer.has_lost_place)

    @staticmethod
    def _has_said(peer: Peer) -> bool:
        """True once no hello is waited for: it is here, its link is cut, or there will be none."""
        return peer.is_listening or peer.is_cut or peer.is_refusing

    async def _change(self, peer: Peer, is_enough: Callable[[], bool], timeout: float) -> None:
        """Wait until something is enough, `peer` has left, or `timeout` seconds are over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, timeout)):
                while peer in self._links and not (peer.has_left or is_enough()):
                    await self._links.changed.wait()

    async def _confirms(self, peer: Peer, streams: list[tuple[str, int]], timeout: float) -> bool:
        """Ask `peer` for an acknowledgement of these streams; False if there is none in time."""

        def send(number: int, _: Collection[str]) -> None:
            if peer.who is not None:
                self._session.send_mark(peer.who, number, streams)

        round = self._links.rounds.ask([peer.endpoint], send, lambda _: None, Ack)
        try:
            return not (await answered(round, max(0.0, timeout)) | round.gone)
        finally:
            self._links.rounds.drop(round)

    async def until_there(self, name: str, query: Query | None) -> Peer:
        """Wait until a peer of this name is linked, tells that it has subscribed to `query`, and
        confirms on being asked that it knows where this bus is: from then on it is owed each event
        of it. Raises BusClosed. Returns as soon as all that is so.
        """
        while True:
            self._check_open()
            peer = self._links.named(name)
            if peer is None or not (query is None or peer.patterns.cover(query)):
                await self._links.attended.wait()
            elif await self._confirms_all(peer, query) and self._links.named(name) is peer:
                return peer

    def _check_open(self) -> None:
        if self._session.is_closing:
            raise BusClosed(f"{self._session.me.name} is closed")

    async def _confirms_all(self, peer: Peer, query: Query | None) -> bool:
        """Ask `peer` for its word that it has what was published of these types; without a query,
        only for its word. False if there is none for a while, or the peer has gone.
        """
        streams: dict[str, int] = {}
        if query is not None and query.every:
            streams = self._fanout.sent()
        for type in () if query is None else query.types:
            streams.update(self._fanout.of_type(type))
        self._session.beat()  # a peer that was misled about this bus is to ask before it confirms
        for some in [*in_marks(streams.items())] or [[]]:
            if not await self._confirms(peer, some, ASK_AGAIN):
                return False
        return True

    async def subscribe(self, catchup: CatchUp, timeout: float) -> Collection[str]:
        """Ask every other bus for the query of `catchup`; return the names of those that did not
        confirm, or refuse it. They are asked again until they confirm.

        A peer that has not answered anything yet is waited for like a linked one, as long as it is
        not silent: its `start` may have returned, since it ends when that peer has *sent* its
        answer. A peer whose link is cut cannot be asked, and is named, unless
        its bye is just about to be read; so is one for which there was no place. One that said bye
        is waited for until it has closed, or says hello again since its bye was wrong. An observer
        is asked, and neither waited for nor named.
        """
        self._session.add(catchup)
        end = elapsed() + timeout
        await self._see_closed(inf, timeout)
        known = {
            each.endpoint: each
            for each in self._links
            if self._links.is_awaited(each) or each.is_there
        }
        cut = [each for each in self._owed() if each.is_cut or each.other_version]

        def is_excused(endpoint: str) -> bool:
            # One that was found long ago and never linked holds up no subscription.
            peer = known[endpoint]
            return peer.is_observer or peer.is_overdue(elapsed())

        left_out = self._links.left_out()
        round = self._links.rounds.ask(
            known, self._links.ask, partial(self._interest.meet, [catchup])
        )
        try:
            missing = await answered(round, end - elapsed(), is_excused)
            names = await self._begun(catchup, end - elapsed()) | self._interest.refusing(catchup)
            lost = [known[each] for each in missing | round.gone if not is_observer(each)] + cut
            if ended := [each for each in lost if each.is_cut]:
                await self._see_off(ended)
            names |= await self._see_closed(inf, end - elapsed())
            said_bye = [
                each for each in known.values() if each not in self._links and not each.is_observer
            ]
            for peer in lost + said_bye:
                now = self._links.at(
                    peer.endpoint
                )  # another if it lost its place and has one again
                if now is not None and not (now.has_left or (now is not peer and now.is_linked)):
                    names.add(peer.name)
            for left in await self._see_left_out(left_out, end - elapsed()):
                now = self._links.at(left.member.endpoint)
                if now is None or not now.is_linked:  # else it was asked about this one as well
                    names.add(left.member.name)
            self._links.unconfirmed |= names
            return names | self._links.nameless()
        finally:
            # From now on, one question about all subscriptions is repeated, not one for each.
            self._links.rounds.drop(round)
            for endpoint in round.waiting:
                if not self._session.is_closing and (peer := known[endpoint]) in self._links:
                    self._links.link(peer)

    async def _begun(self, catchup: CatchUp, timeout: float) -> set[str]:
        """Wait until each peer has said where in its past the subscription begins; return the names
        of those that have not.
        """

        def waiting() -> set[str]:
            if self._session.is_closing:
                return set()
            return {each[0] for each in catchup.beginning if self._links.is_owed(each)}

        try:
            async with asyncio.timeout(max(0.0, timeout)):
                while waiting():
                    await self._links.changed.wait()
        except TimeoutError:
            pass
        return waiting()

    async def _see_closed(self, newest: float, timeout: float) -> set[str]:
        """Wait for `timeout` seconds, and a moment at least, until the peers have closed that said
        bye, or say hello again since their bye was wrong; return the names of the others.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(max(BYE, timeout)):
                while self._links.byes.owed(newest):
                    await self._links.changed.wait()
        return self._links.byes.owed(newest)

    async def _see_off(self, peers: Collection[Peer]) -> None:
        """Learn which of `peers`, whose links are cut, are gone for good: wait a moment for their
        byes, and drop those that never were linked and do not listen any more.
        """
        links = self._links
        with suppress(TimeoutError):
            async with asyncio.timeout(BYE):
                while any(peer in links and peer.is_cut for peer in peers):
                    await links.changed.wait()
        strange = [each for each in peers if each in links and not each.is_linked]
        await self._probe(links.dropping(strange))

    async def _see_left_out(
        self, before: Collection[Left], timeout: float, newest: float = inf
    ) -> list[Left]:
        """Look, `timeout` seconds at most, which of the peers that are left out, or were `before`,
        have ended; return the others. Some of them may have a place by then.
        """
        owed = dict.fromkeys([*before, *self._links.left_out(newest)])
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, timeout)):
                for some in batches(owed, AT_SIGHT):
                    await self._probe(self._links.sorting(some))
                    await asyncio.sleep(0)
        return [left for left in owed if not left.has_ended]


class Readers:
    """The confirmations of each peer by type, for a publisher that does not outrun its readers.

    A peer confirms a type at once if it has not subscribed to it. Which peers have is not known
    here: ZeroMQ tells of a subscription once, however many have it.
    """

    def __init__(self, session: Session, publisher: Publisher) -> None:
        self._session = session
        self._links = session.links
        self._fanout = session.fanout
        self._publisher = publisher
        self._confirmed: dict[str, dict[Source, int]] = {}
        self._moves: dict[Source, int] = {}
        self._asked: dict[tuple[str, bool], tuple[object, list[RoundTrip]]] = {}
        """The last questions about each type, while a publisher waits and ahead of time."""
        session.note_place = self._note_place

    def standings(self, type: str) -> dict[Source, Standing]:
        """Where each peer is that may listen to `type`. One whose link is cut counts until it is
        said to have left: it may come back and ask for what it has missed. It has withdrawn all
        queries by that, so what it has told of them before counts.
        """
        is_served, moves = self._fanout.serves(type), self._moves
        confirmed = self._confirmed.get(type, {})
        return {
            source: Standing(confirmed.get(source, 0), moves.get(source, 0))
            for source, peer in self._peers().items()
            if is_served
            or (
                peer.state is PeerState.CUT
                and (source in confirmed or peer.patterns.may_match_type(type))
            )
        }

    def _peers(self) -> dict[Source, Peer]:
        return {
            each.who.source: each
            for each in self._links
            if each.who is not None
            and not each.is_observer
            and each.state in (PeerState.LISTENING, PeerState.CUT)
        }

    def ask(self, type: str, upto: int, waiting: Collection[str] | None) -> None:
        """Ask each for its word that it has what it wants of `type` up to this seq, in place of
        what was asked before: ahead of time (None), or while a publisher waits.
        """
        said, before = self._asked.pop((type, waiting is None), (None, []))
        streams = [(text, min(sent, upto)) for text, sent in self._fanout.of_type(type).items()]
        known = self._peers()
        was = self._confirmed.get(type, {})
        confirmed = self._confirmed[type] = {each: was[each] for each in known if each in was}
        self._moves = {each: count for each, count in self._moves.items() if each in known}
        lacking = [peer.endpoint for each, peer in known.items() if confirmed.get(each, 0) < upto]
        parts = [tuple(part) for part in in_marks(streams)]
        say = (parts, upto, waiting)
        if say == said and all({*lacking} <= each.waiting for each in before):
            self._asked[type, waiting is None] = (say, before)
            for each in before:  # under the number it has, or it would count several times there
                each.send(each.number, each.waiting)
            return
        for each in before:
            self._links.rounds.drop(each)
        left = dict.fromkeys(known, len(parts))

        def confirm(ack: Ack) -> None:
            source = ack.who.source
            left[source] = left.get(source, len(parts)) - 1
            if not left[source]:
                seqs = self._confirmed.setdefault(type, {})
                seqs[source] = max(upto, seqs.get(source, 0))
            self._note_move(source)

        self._session.beat()  # a peer that was misled about this bus is to ask before it confirms
        asked = [
            self._links.rounds.ask(
                lacking, partial(self._send, part, upto, tuple(waiting or ())), confirm, Ack
            )
            for part in parts
        ]
        self._asked[type, waiting is None] = (say, asked)

    def _send(
        self,
        streams: tuple[tuple[str, int], ...],
        upto: int,
        waiting: tuple[str, ...],
        number: int,
        endpoints: Collection[str],
    ) -> None:
        for endpoint in endpoints:
            if (peer := self._links.at(endpoint)) is not None and peer.who is not None:
                self._session.send_paced_mark(peer.who, number, streams, upto, waiting)

    def _note_place(self, asked: PageAsk) -> None:
        """A peer asks for what a query matches after a seq, so it has not got that yet: of some
        types it may have confirmed more.
        """
        if is_observer(asked.who.endpoint):
            return
        source = asked.who.source
        self._note_move(source)
        try:
            query = parse_query(asked.query)
        except ValueError:
            return  # it is refused when it is its turn
        after = asked.after if asked.since is None else 0
        for type, seqs in self._confirmed.items():
            if seqs.get(source, 0) > after and query.matches_type(type):
                seqs[source] = after
                self._publisher.history.safe.pop(type, None)

    def _note_move(self, source: Source) -> None:
        self._moves[source] = self._moves.get(source, 0) + 1
        self._publisher.room.wake()
