"""What a peer says of itself, against what was heard of it.

Owns the question to a peer that says less of itself than was heard of it: either what it says is
late, or what was heard is not of it. Must not know how peers are found and linked (`links`).
"""

from collections.abc import Collection
from functools import partial

from aiobus.diagnostics import Diagnostics
from aiobus.mesh.interest import Interest
from aiobus.mesh.peers import Peer, RoundTrip, RoundTrips, Send
from aiobus.rows import Source
from aiobus.wire import Answer

__all__ = ["Doubts"]


class Doubts:
    """The doubts of one bus. `ask` sends a `?` under a number of `rounds`."""

    def __init__(
        self, rounds: RoundTrips, ask: Send, diagnostics: Diagnostics, interest: Interest
    ) -> None:
        self._rounds = rounds
        self._ask = ask
        self._diagnostics = diagnostics
        self._interest = interest
        self._questions: dict[Source, RoundTrip] = {}

    @property
    def sources(self) -> Collection[Source]:
        """Those that are being asked."""
        return [source for source, round in self._questions.items() if round.waiting]

    def weigh(self, peer: Peer, seq: int) -> None:
        """A peer says `seq` of itself. If that is less than was heard of it, either this is late or
        that was not true: the answer to a question tells.
        """
        if seq < peer.last:
            self.ask(peer)

    def ask(self, peer: Peer) -> None:
        """Ask a peer where it is, unless it is being asked."""
        if peer.who is None:
            return
        source = peer.who.source
        if source not in self.sources:
            peer.doubt()
            confirm = partial(self._confirm, peer, source)
            self._questions[source] = self._rounds.ask([peer.endpoint], self._ask, confirm)

    def _confirm(self, peer: Peer, source: Source, value: Answer) -> None:
        del self._questions[source]
        was = peer.last
        if peer.confirm(value.seq):
            text = f"{peer} says that it is at seq {peer.last}, and was heard of up to {was}:"
            self._diagnostics.trouble(
                f"{peer.name} went back", f"{text} its events go on from there"
            )
            self._interest.go_back(source, peer.last)
        else:
            self._interest.note_said(source, value.seq)
            self.weigh(peer, value.seq)  # more may have been heard meanwhile, as little true

    def drop(self, source: Source) -> None:
        """The source has left. No error when it was not asked."""
        self._rounds.drop(self._questions.pop(source, None))
