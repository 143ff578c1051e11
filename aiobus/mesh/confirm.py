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
from aiobus.mesh import Network, Probe
from aiobus.mesh.links import AT_SIGHT
from aiobus.mesh.peers import Left, Peer, RoundTrip, batches
from aiobus.mesh.session import Session, in_marks

__all__ = [
    "Confirmations",
    "answered",
]

FIRST_PAUSE = 0.1
LAST_PAUSE = 1.0
"""Seconds until a question that a task waits for is repeated, at first and at last; each pause is
twice the one before.
"""
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
        end = elapsed() + timeout
        try:
            async with asyncio.timeout(timeout):
                # Else a peer whose link has ended seems to have asked for less, and to have all.
                await self._network.read_ends()
        except TimeoutError:
            names = {each.name for each in self._links if not each.has_left}
            names.update(each.member.name for each in self._links.left_out())
            return names | self._links.nameless()
        newest, owed, doubts = self._fanout.newest, self._fanout.owed(), self._fanout.doubts
        left_out = self._links.left_out(newest)
        peers = [each for each in self._links if not each.has_left and each.found_at < newest]
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
            closing = group.create_task(self._see_closed(newest, end - elapsed()))
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
        for left in await self._see_left_out(left_out, end - elapsed(), newest):
            if left.member.endpoint not in confirmed:
                missing.add(left.member.name)
        missing |= self._links.nameless(newest)
        if not missing and doubts == self._fanout.doubts:  # else a peer that came was not asked
            self._fanout.confirm(owed)
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
            owed = self._fanout.owed()  # with what it has subscribed to by now
        streams = [(name[:-1].decode(), seq) for name, seq in owed.items()]
        has_all = peer.is_listening
        for some in in_marks(streams):
            is_there = has_all and peer in self._links and peer.is_listening
            has_all = is_there and await self._confirms(peer, some, end - elapsed())
        if not has_all and peer.is_cut:
            await self._see_off([peer])
        return has_all or (peer not in self._links and not peer.has_lost_place)

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

        round = self._links.rounds.ask([peer.endpoint], send, lambda _: None)
        try:
            return not (await answered(round, max(0.0, timeout)) | round.gone)
        finally:
            self._links.rounds.drop(round)

    async def subscribe(self, catchup: CatchUp, timeout: float) -> Collection[str]:
        """Ask every other bus for the query of `catchup`; return the names of those that did not
        confirm, or refuse it. They are asked again until they confirm.

        A peer that has not answered anything yet is waited for like a linked one, as long as it is
        not silent: its `start` may have returned, since it ends when that peer has *sent* its
        answer. A peer whose link is cut cannot be asked, and is named, unless
        its bye is just about to be read; so is one for which there was no place.
        """
        self._session.add(catchup)
        end = elapsed() + timeout
        known = {each.endpoint: each for each in self._links if each.is_awaited or each.is_there}
        cut = [each for each in self._links if each.is_cut or each.other_version]
        left_out = self._links.left_out()
        round = self._links.rounds.ask(
            known, self._links.ask, partial(self._interest.meet, [catchup])
        )
        try:
            # One that was found long ago and never linked holds up no subscription.
            missing = await answered(round, timeout, lambda each: known[each].is_overdue(elapsed()))
            names = await self._begun(catchup, end - elapsed()) | self._interest.refusing(catchup)
            lost = [known[each] for each in missing | round.gone] + cut
            if ended := [each for each in lost if each.is_cut]:
                await self._see_off(ended)
            for peer in lost:
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
            return {each[0] for each in catchup.beginning if self._links.is_there(each)}

        try:
            async with asyncio.timeout(max(0.0, timeout)):
                while waiting():
                    await self._links.changed.wait()
        except TimeoutError:
            pass
        return waiting()

    async def _see_closed(self, newest: int, timeout: float) -> set[str]:
        """Wait for `timeout` seconds, and a moment at least, until the peers have closed that said
        bye, or say hello again since their bye was wrong; return the names of the others.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(max(BYE, timeout)):
                while self._links.closing(newest):
                    await self._links.changed.wait()
        return self._links.closing(newest)

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
