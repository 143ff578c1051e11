"""Flush marks: who has everything that this bus has sent, and who is told that this bus has all.

Owns the asking for acknowledgements, and the giving of them as soon as they are true. Must not know
when a mark is reached (`inlets`), what was sent (`streams`) or who is there (`links`).
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

from aiobus.clock import elapsed
from aiobus.peers import Peer
from aiobus.transport.inlets import Inlets
from aiobus.transport.links import Links
from aiobus.transport.network import Network
from aiobus.transport.rounds import Rounds
from aiobus.transport.streams import Streams
from aiobus.wire import Ack, Mark, Who, mark, up

__all__ = ["LAST", "Marks"]

LAST = 0
"""The number of a mark that is the last: nobody acknowledges it."""

MARK_STREAMS = 4_096
"""Streams that one mark names: 4 MB at most, and a message over 16 MiB ends its link."""


class Marks:
    """The marks that one bus sends and receives."""

    def __init__(
        self,
        me: Who,
        network: Network,
        links: Links,
        rounds: Rounds,
        streams: Streams,
        inlets: Inlets,
    ) -> None:
        self._me = me
        self._network = network
        self._links = links
        self._rounds = rounds
        self._streams = streams
        self._inlets = inlets

    def acknowledge(self) -> None:
        """Tell each source whose mark has been reached."""
        if self._inlets.marks:
            for reached in self._inlets.reached(self._links.doubts.sources):
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
