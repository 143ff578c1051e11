"""Flush marks: who has everything that this bus has sent, and who is told that this bus has all.

Owns the asking for acknowledgements, and the giving of them as soon as they are true. Must not know
when a mark is reached (`inlets`), what was sent (`streams`) or who is there (`links`).
"""

from collections.abc import Collection

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
            for reached in self._inlets.reached(self._links.doubted):
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
        """Wait until every bus that listens has what it asked for; return the names of those that
        did not confirm, or whose link was cut before they could.
        """
        if not self._streams.is_owing:
            return ()
        end = elapsed() + timeout
        missing = {peer.name for peer in self._links if peer.is_linked and peer.is_withdrawn}
        there = {peer.endpoint: peer for peer in self._links if peer.is_listening}
        owed = list(self._streams.owed().items())
        for begin in range(0, len(owed), MARK_STREAMS):
            some = dict(owed[begin : begin + MARK_STREAMS])
            if without := await self._ask(some, there, max(0.0, end - elapsed())):
                missing |= {there[endpoint].name for endpoint in without}
            else:
                self._streams.confirm(some)
        return missing

    async def _ask(
        self, owed: dict[bytes, int], there: dict[str, Peer], timeout: float
    ) -> set[str]:
        """Ask each peer for an acknowledgement of these streams; return who gave none."""
        streams = tuple((name[:-1].decode(), seq) for name, seq in owed.items())

        def send(number: int, endpoints: Collection[str]) -> None:
            for endpoint in endpoints:
                if (who := there[endpoint].who) is not None:
                    self._network.send(mark(who, Mark(number, self._me, streams)))

        round = self._rounds.ask(there, send, lambda _: None)
        try:
            return await round.done(there, timeout) | round.gone
        finally:
            self._rounds.drop(round)
