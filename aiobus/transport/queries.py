"""What this bus asks of all others: its queries, loudly or quietly, and if they are live there.

Owns the conversation that begins with `subscribe`, and the swapping of topics that have turned.
Must not know what comes of it: frames and pages are the mesh's, and when a topic turns is `topic`'s
to say.
"""

import asyncio
import logging
from collections.abc import Collection
from functools import partial

from aiobus.clock import elapsed
from aiobus.transport import Inlet
from aiobus.transport.inlets import Inlets
from aiobus.transport.links import Links
from aiobus.transport.network import Network
from aiobus.transport.rounds import Round, Rounds, Send

__all__ = ["Queries"]

log = logging.getLogger("aiobus.transport")


class Queries:
    """The subscriptions of one bus at the others. `ask` sends a `?` under a number of `rounds`."""

    def __init__(
        self, network: Network, links: Links, inlets: Inlets, rounds: Rounds, ask: Send
    ) -> None:
        self._network = network
        self._links = links
        self._inlets = inlets
        self._rounds = rounds
        self._ask = ask
        self._turning: list[Round] = []
        self._late: list[Round] = []
        self._is_closed = False

    async def subscribe(self, inlet: Inlet, timeout: float) -> Collection[str]:
        """Ask every other bus for the query of `inlet`; return the names of those that did not
        confirm, or refuse it. They are asked again until they confirm.

        A peer that has not answered anything yet is waited for like a linked one, as long as it is
        not silent: its `start` may have returned, since it ends when that peer has *sent* its
        answer. A peer whose link is cut cannot be asked, and is named, unless
        its bye is just about to be read; so is one for which there was no place.
        """
        if (new := self._inlets.add(inlet)) is not None:
            self._network.subscribe(new)
        self.turn()
        end = elapsed() + timeout
        known = {each.endpoint: each for each in self._links if each.is_awaited or each.is_there}
        cut = [each for each in self._links if each.is_cut or each.other_version]
        left_out = self._links.left_out()
        round = self._rounds.ask(known, self._ask, partial(self._inlets.meet, [inlet]))
        try:
            # One that was found long ago and never linked holds up no subscription.
            missing = await round.done(timeout, lambda each: known[each].is_overdue(elapsed()))
            names = await self._begun(inlet, end - elapsed()) | self._inlets.refusing(inlet)
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
        while self._inlets.turned:
            topic = self._inlets.turned.pop()
            log.debug("%s listens to %s", self._links.me, topic)
            self._network.subscribe(topic.live)
            # Not before: a stream that nobody asks for closes, and owes nothing any more.
            self._network.unsubscribe(topic.other)
            if not topic.is_quiet:
                loud.extend(topic.inlets)
        if loud:
            there = [peer.endpoint for peer in self._links if peer.is_there]
            meet = partial(self._inlets.meet, loud)
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
        for who, inlets in self._inlets.refused.items():
            if inlets and self._links.is_there((who.name, who.epoch)):
                meet = partial(self._inlets.meet, list(inlets))
                self._turning.append(self._rounds.ask([who.endpoint], self._ask, meet))

    def unsubscribe(self, inlet: Inlet) -> None:
        """Withdraw it. No error when it was not subscribed."""
        if (old := self._inlets.remove(inlet)) is not None:
            self._network.unsubscribe(old)

    def close(self) -> None:
        """Wait for nobody any more."""
        self._is_closed = True
