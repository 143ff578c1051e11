"""What the peers of one bus say of themselves beside the conversation: the time of their clock, and
which list of the desk's members they have.

Owns the question once a minute, and what is said to the user. Must not know how a skew is estimated
(`skew`), nor who is a peer (`links`). Nothing that is found here changes what the bus does.
"""

from collections.abc import Callable, Iterable

from aiobus import clock
from aiobus.diagnostics import Diagnostics
from aiobus.mesh.peers import Peer, RoundTrip, RoundTrips, Send
from aiobus.mesh.skew import Clock, Sample
from aiobus.presence import Standing
from aiobus.wire import Options

__all__ = ["Survey", "standing"]


def standing(mine: Options, theirs: Options) -> Standing:
    """How the list of a peer stands to that of this bus."""
    if not (mine.members_digest and theirs.members_digest):
        return ""
    if mine.members != theirs.members:
        return "older" if theirs.members < mine.members else "newer"
    return "" if mine.members_digest == theirs.members_digest else "other"


class Survey:
    """The clocks and lists of `peers`. `ask` sends a `?`; `elapsed` is the monotonic clock."""

    def __init__(
        self,
        peers: Iterable[Peer],
        rounds: RoundTrips,
        ask: Send,
        diagnostics: Diagnostics,
        elapsed: Callable[[], float],
    ) -> None:
        self.mine = Options()
        """`members` and `members_digest` of this bus."""
        self._peers = peers
        self._rounds = rounds
        self._ask = ask
        self._diagnostics = diagnostics
        self._elapsed = elapsed
        self._clock = Clock()
        self._asking: RoundTrip | None = None
        self._untold: set[Peer] = set()
        """Those that were not told that the list of this bus is another one since `_changed`."""
        self._changed = 0.0
        self._said: list[str] = []

    def note_list(self, number: int, digest: str) -> None:
        """This bus has that list of members now. All peers are told by a question within a second,
        which is asked again until it is answered.
        """
        mine = Options(members=number, members_digest=digest)
        if mine != self.mine:
            self._untold, self._changed = {*self._peers}, self._elapsed()
        self.mine = mine
        for peer in self._peers:
            peer.list_standing = standing(mine, peer.list)

    def hear(self, peer: Peer, options: Options, asked: float | None = None) -> None:
        """A peer says this of itself. `asked`: when it was asked first, if this answers it."""
        if options.members_digest:
            peer.list = Options(members=options.members, members_digest=options.members_digest)
            peer.list_standing = standing(self.mine, peer.list)
        if asked is None:
            return
        if asked >= self._changed:
            self._untold.discard(peer)
        wall, now = self._look()
        if options.clock:
            peer.skew.add(Sample.of(options.clock / 1e6, asked, now, wall))
        peer.skew.note_asked(now)
        self._judge(peer, now)

    def _look(self) -> tuple[float, float]:
        """The time by the clock, and right after it by the monotonic one."""
        before = self._elapsed()
        wall = clock.time()
        after = self._elapsed()
        if self._clock.is_set(before, wall, after):
            for peer in self._peers:
                peer.skew.forget()
        return wall, after

    def tick(self, now: float) -> None:
        """A second has passed. What was asked in the last one gets another number: the answer to a
        question that is repeated would not be exact.
        """
        self._rounds.drop(self._asking)
        self._look()
        there = [peer for peer in self._peers if peer.is_there and not peer.is_silent(now)]
        due = [peer.endpoint for peer in there if peer in self._untold or peer.skew.is_due(now)]
        self._untold.intersection_update(self._peers)
        if due:
            self._asking = self._rounds.ask(due, self._ask, lambda _: None)
        for peer in there:
            if peer.skew.is_news:  # it was not linked yet
                self._judge(peer, now)
        self._compare()

    def _judge(self, peer: Peer, now: float) -> None:
        if peer.who is None or not peer.is_there:
            return
        if (found := peer.skew.judge(now)) is not None and not peer.is_observer:
            report = self._diagnostics.clock_skew
            where = peer.name, peer.who.epoch
            report(*where, found.skew, found.error, is_over=not peer.skew.is_warned)

    def _compare(self) -> None:
        """Say which peers have another list, once for each change of that."""
        differ = sorted(
            f"{peer.name} has {_told(peer.list_standing)} ({peer.list.members})"
            for peer in self._peers
            if peer.is_there and peer.list_standing and not peer.is_observer
        )
        if differ != self._said:
            self._said = differ
            self._diagnostics.lists_differ(self.mine.members, differ)


def _told(standing: Standing) -> str:
    told = {"older": "an older list", "newer": "a newer list"}
    return told.get(standing, "another list of the same number")
