"""The peers that say less of themselves than was heard of them, and what they answer when asked.

Owns one question to each of them. Must not know who is linked, nor what goes back with a source
that takes back a number: the peer and the inlets do.
"""

from collections.abc import Collection
from functools import partial

from aiobus.peers import Peer
from aiobus.rows import Source
from aiobus.transport import Witness
from aiobus.transport.inlets import Inlets
from aiobus.transport.rounds import Round, Rounds, Send
from aiobus.wire import Answer

__all__ = ["Doubts"]


class Doubts:
    """The doubts of one bus. `ask` sends a `?` under a number of `rounds`."""

    def __init__(self, rounds: Rounds, ask: Send, witness: Witness, inlets: Inlets) -> None:
        self._rounds = rounds
        self._ask = ask
        self._witness = witness
        self._inlets = inlets
        self._questions: dict[Source, Round] = {}

    @property
    def sources(self) -> Collection[Source]:
        """Those that are being asked."""
        return [source for source, round in self._questions.items() if round.waiting]

    def weigh(self, peer: Peer, seq: int) -> None:
        """A peer says `seq` of itself. If that is less than was heard of it, either this is late or
        what was heard is not true. Its answer to a question that is asked now tells.
        """
        if seq < peer.last:
            self.ask(peer)

    def ask(self, peer: Peer) -> None:
        """Ask a peer where it is, unless it is being asked."""
        if peer.who is None:
            return
        source = (peer.who.name, peer.who.epoch)
        if source not in self.sources:
            peer.doubt()
            confirm = partial(self._confirm, peer, source)
            self._questions[source] = self._rounds.ask([peer.endpoint], self._ask, confirm)

    def _confirm(self, peer: Peer, source: Source, value: Answer) -> None:
        del self._questions[source]
        was = peer.last
        if peer.confirm(value.seq):
            text = f"{peer} says that it is at seq {peer.last}, and was heard of up to {was}:"
            self._witness.trouble(f"{peer.name} went back", f"{text} its events go on from there")
            self._inlets.go_back(source, peer.last)
        else:
            self._inlets.note_said(source, value.seq)
            self.weigh(peer, value.seq)  # more may have been heard meanwhile, as little true

    def drop(self, source: Source) -> None:
        """The source has left. No error when it was not asked."""
        self._rounds.drop(self._questions.pop(source, None))
