"""What a bus knows of another one: whether it is linked, silent or gone; of the peers for which
there is no place; and which questions to peers are under way.

Owns the judgement from what was heard and when; the times are those of the contract. Owns the
memory of peers that were left out, since when they are owed what is published here, and the bound
of that memory. Owns the repetition of questions: ZeroMQ does not send a message again after a
break. Pure: it takes what happened and what time it is, and returns what to do. Times are monotonic
seconds.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice
from typing import Any, TypeVar

from aiobus import presence
from aiobus.discovery import Member, is_observer
from aiobus.mesh.skew import Skew
from aiobus.presence import NOTHING, Patterns
from aiobus.sync import Notifier
from aiobus.wire import NO_OPTIONS, Answer, Options, PeerId

__all__ = ["MORE", "Left", "Peer", "RoundTrip", "RoundTrips", "Unplaced", "Verdict"]

T = TypeVar("T")

STALE = 3.0
"""Silence after which a peer is announced as stale: three heartbeats."""
STEADY = 2.0
"""Seconds in which a peer sends two heartbeats of its own, whatever others send in its name."""
RELINK = 10.0
"""Silence after which the link is made again; a loop that is blocked for less is not dead."""
RELINK_MAX = 30.0
GRACE = 5.0
"""Between a hello that is withdrawn and `peer_left`: the link may only have been cut."""
DROP = 60.0
"""Silence after which a peer without a hello is given up. If its endpoint accepts connections or
cannot be reached, it may be frozen or cut off, and is probed again as much later.
"""
FIRST_LOOK = 2.0
"""The same for a peer that was just found: it may have ended before it was linked, most likely with
keys, where a link takes longer to make.
"""


class PeerState(Enum):
    """Whether the hello of a peer is here.

    FOUND -> LISTENING -> CUT -> LEFT. A hello leads from each back to LISTENING, and the loss of
    the hello from FOUND to CUT as well.
    """

    FOUND = auto()
    """It has not said hello yet."""
    LISTENING = auto()
    """It gets what it asked for, or will make up for it."""
    CUT = auto()
    """Its hello is gone: it died, or its link was cut. It may come back."""
    LEFT = auto()
    """It was reported to have left."""


class Verdict(Enum):
    """What the silence of a peer calls for."""

    STALE = auto()
    RELINK = auto()
    LEFT = auto()
    DROP = auto()


class Peer:
    """Another bus, by the endpoint where it listens. `who` is None until it has said so."""

    def __init__(self, name: str, endpoint: str, now: float, found_at: int = 0) -> None:
        self.name = name
        self.endpoint = endpoint
        self.is_observer = is_observer(endpoint)
        """This bus waits for it in nothing, and says nothing of it."""
        self.renew(now, found_at)

    def renew(self, now: float, found_at: int) -> None:
        """Another bus listens there, or is about to, when this bus is at its seq `found_at`."""
        self.found_at = found_at
        """What was published later counts as missing there until the peer says otherwise."""
        self.found = now
        """When it was found: no question was sent to it before."""
        self.who: PeerId | None = None
        self.is_claimed = False
        """Only it itself has said that it is there, and it has not proven its name."""
        self.has_answered = False
        """It answered that my queries are live there."""
        self.was_answered = False
        """It asked the same of me and I answered."""
        self.is_linked = False
        self.state = PeerState.FOUND
        self.is_open = False
        """It has started; until then another of its name may stay in its place."""
        self.has_lost_place = False
        """It had to give way to others, and may be there all the same."""
        self.is_stale = False
        self.other_version = 0
        """The version of the protocol that it speaks, if that is not this bus's: it never links."""
        self.refusal = ""
        """Why there is no link to it because of keys (`refusals`), since it was found or linked."""
        self.queries = ""
        """What it subscribes to, as it has told last."""
        self.patterns: Patterns = NOTHING
        """The same, read."""
        self.started, self.since = -math.inf, 0.0
        """When it started: by the clock of `elapsed`, and in Unix seconds."""
        self.skew = Skew()
        """How far its clock is from that of this machine."""
        self.list: Options = NO_OPTIONS
        """`members` and `members_digest`: which list of the desk's members it has."""
        self.list_standing: presence.Standing = ""
        """How that stands to the list of this bus."""
        self.last = 0
        """The highest seq of its events that was heard of."""
        self.vouched = 0
        """The highest seq that it is known to have reached: by an event that was handed over, a
        page or an answer. Heartbeats do not count, which any process can send in its name.
        """
        self._recent = 0
        """What `last` would be since it was doubted last."""
        self._doubted = 0
        self._lowest = self._lowest_before = 0
        """The lowest seq of its heartbeats since `_lowest_since`, and in the span before that."""
        self._lowest_since = -math.inf
        self._heard = now
        self._cut = 0.0
        """When its hello was lost."""
        self._relinked = now
        self._sought = now - DROP + FIRST_LOOK
        self._backoff = RELINK

    def __str__(self) -> str:
        return str(self.who or self.name)

    def shown(self, now: float) -> presence.Peer:
        """It as a user sees it. It is linked."""
        assert self.who is not None
        where = self.name, self.who.epoch, self.since, self.last, self.silence(now)
        best = self.skew.best(now)
        return presence.Peer(
            *where,
            subscribed=tuple(self.queries.split()),
            observer=self.is_observer,
            skew=None if best is None else best.skew,
            skew_error=None if best is None else best.error,
            member_list=self.list_standing,
        )

    def hear(self, now: float, seq: int) -> float | None:
        """A message shows that it is at `seq`. Returns its seconds of silence if it was stale."""
        silent = self.silence(now) if self.is_stale else None
        self.last = max(self.last, seq)
        self._recent = max(self._recent, seq)
        self._heard = self._relinked = self._sought = now
        self._backoff = RELINK
        self.is_stale = False
        return silent

    def beat(self, now: float, seq: int) -> None:
        """A heartbeat says that it is at `seq`."""
        if now - self._lowest_since >= STEADY:
            self._lowest, self._lowest_before = seq, self._lowest
            self._lowest_since = now
        else:
            self._lowest = min(self._lowest, seq)

    def vouch(self, seq: int) -> None:
        """It is known to have been at `seq`."""
        self.vouched = max(self.vouched, seq)

    @property
    def steady(self) -> int:
        """The seq that no heartbeat of the last seconds was below. Any process can send one in the
        name of this peer, but one of them at least was its own unless it is silent: then it has
        reached this seq.
        """
        return min(self._lowest, self._lowest_before)

    def silence(self, now: float) -> float:
        """The seconds since it was last heard."""
        return now - self._heard

    def doubt(self) -> None:
        """It says less than was heard of it: what it says from now on decides."""
        self._doubted, self._recent = self.last, 0

    def confirm(self, seq: int) -> bool:
        """It answers that it is at `seq`. True when that is still less than was heard of before it
        was asked: then `last` goes back, and what is above it is not true.
        """
        self._recent = max(self._recent, seq)
        if self._recent >= self._doubted:
            return False
        self.last = self._recent
        self.vouched = min(self.vouched, self.last)
        return True

    def is_silent(self, now: float) -> bool:
        """True when it missed three heartbeats."""
        return self.silence(now) >= STALE

    def is_silent_since(self, then: float) -> bool:
        """True when nothing was heard of it after `then`, and its hello is not here."""
        return self._heard <= then and not self.is_listening

    def say_hello(self) -> None:
        """Its hello is there (again)."""
        self.state, self.refusal = PeerState.LISTENING, ""

    def withdraw(self, now: float) -> None:
        """Its hello is gone: it died, or its link to this bus was cut."""
        if not self.is_gone:
            self.state, self._cut = PeerState.CUT, now

    def cut_for(self, now: float) -> float:
        """The seconds since its hello was lost."""
        return now - self._cut

    def leave(self) -> None:
        """It was reported to have left."""
        self.state = PeerState.LEFT

    @property
    def is_gone(self) -> bool:
        """True from the loss of its hello until it says hello again."""
        return self.state is PeerState.CUT or self.state is PeerState.LEFT

    @property
    def is_cut(self) -> bool:
        """True while its hello is gone and it was not reported to have left: it may come back."""
        return self.state is PeerState.CUT

    @property
    def has_left(self) -> bool:
        """True once it was reported to have left, until it says hello again."""
        return self.state is PeerState.LEFT

    @property
    def is_awaited(self) -> bool:
        """True when it may still become linked soon."""
        return not (self.is_linked or self.is_gone or self.other_version)

    @property
    def is_refusing(self) -> bool:
        """True if it is not linked because of keys. It is tried again, and no call waits."""
        return self.is_awaited and bool(self.refusal)

    def may_want(self, type: str) -> bool:
        """True while it listens, if it may have subscribed to this type by name."""
        is_named = type in self.patterns.types or self.patterns.has_more
        return self.is_listening and (is_named or not self.was_answered)

    def is_overdue(self, now: float) -> bool:
        """True if it should be linked by now and is silent instead, or cannot be linked."""
        is_silent = self.is_awaited and self.is_silent(now)
        return bool(self.other_version) or self.is_refusing or is_silent

    @property
    def is_there(self) -> bool:
        """True when it is linked and, as far as is known, still listening."""
        return self.is_linked and not self.is_gone

    @property
    def is_listening(self) -> bool:
        """True while its hello is here: it gets what it asked for, or will make up for it."""
        return self.state is PeerState.LISTENING

    @property
    def may_link(self) -> bool:
        """True when each has answered the other, and they are not linked yet."""
        has_met = self.has_answered and self.was_answered
        return has_met and not (self.is_linked or self.other_version)

    def link(self) -> bool:
        """True once, when it may be."""
        if not self.may_link:
            return False
        self.is_linked = True
        self.refusal = ""
        return True

    def unlink(self) -> bool:
        """It has left; True if it was linked."""
        was_linked, self.is_linked, self.has_answered = self.is_linked, False, False
        self.is_stale = False  # what comes next is that it joins, and not that it is heard again
        return was_linked

    def judge(self, now: float, *, is_lenient: bool) -> Verdict | None:
        """What its silence calls for; `is_lenient` while it may be this process that was away."""
        if self.is_cut and now - self._cut >= GRACE and not is_lenient:
            self.leave()
            return Verdict.LEFT
        # If its link is cut, `peer_left` is reported first.
        if not self.is_listening and not self.is_cut and now - self._sought >= DROP:
            self._sought = now
            return Verdict.DROP
        if is_lenient or self.has_left:
            return None
        if self.has_answered and self.is_silent(now) and not self.is_stale:
            self.is_stale = True
            return Verdict.STALE
        return Verdict.RELINK if now - self._relinked >= self._backoff else None

    def relink(self, now: float) -> None:
        """Its link is made again; not once more so soon. Until then each second calls for it."""
        self._relinked = now
        self._backoff = min(self._backoff * 2, RELINK_MAX)


MAX_LEFT_OUT = 16_384
"""Peers that are remembered by name."""
MORE = "(more peers than are remembered)"
"""Stands for the peers beyond these. It is no name that a bus can have."""


@dataclass(slots=True, eq=False)
class Left:
    """A peer that was left out. `who`: as it has said, while its hello is here."""

    member: Member
    found_at: int
    who: PeerId | None
    is_said: bool = False
    """It was looked for, and is there."""
    has_ended: bool = False
    """It was looked for, and no process listens there."""


class Unplaced:
    """The peers without a place, by endpoint."""

    def __init__(self) -> None:
        self._left: dict[str, Left] = {}
        self._more_since: float = math.inf
        """What was published after that is owed to peers whose names are not remembered."""

    def __contains__(self, left: Left) -> bool:
        return self._left.get(left.member.endpoint) is left

    def add(self, member: Member, found_at: int, who: PeerId | None) -> bool:
        """Leave out a peer that is owed events above `found_at`. False if it is not remembered."""
        before = self._left.get(member.endpoint)
        if before is not None:
            before.who = who or before.who
        elif len(self._left) < MAX_LEFT_OUT:
            self._left[member.endpoint] = Left(member, found_at, who)
        else:
            if not is_observer(member.endpoint):
                self._more_since = min(self._more_since, found_at)
            return False
        return True

    def pop(self, endpoint: str) -> Left | None:
        """The one at this endpoint has a place now, or is gone; return it if it was left out."""
        return self._left.pop(endpoint, None)

    def withdraw(self, who: PeerId) -> None:
        """The hello of `who` is gone."""
        left = self._left.get(who.endpoint)
        if left is not None and left.who == who:
            left.who = None

    def unsaid(self, most: int) -> list[Left]:
        """Some of those that were not looked for yet."""
        return list(islice((each for each in self._left.values() if not each.is_said), most))

    def rotate(self, most: int) -> list[Left]:
        """Some of all; each time those that had to wait."""
        some = list(islice(self._left.values(), most))
        for each in some:
            self._left[each.member.endpoint] = self._left.pop(each.member.endpoint)
        return some

    def owed(self, newest: float) -> list[Left]:
        """Those that are owed something of what was published up to `newest`; no observer is."""
        owed = (each for each in self._left.values() if each.found_at < newest)
        return [each for each in owed if not is_observer(each.member.endpoint)]

    def more(self, newest: float) -> set[str]:
        """`MORE`, if something of that is owed to peers whose names are not remembered."""
        return {MORE} if self._more_since < newest else set()


def batches(some: Iterable[T], size: int) -> Iterator[list[T]]:
    """`some` in lists of at most `size`."""
    rest = iter(some)
    while batch := list(islice(rest, size)):
        yield batch


Send = Callable[[int, Collection[str]], None]
"""Asks the peers at these endpoints, under a number that their answers will have."""


class RoundTrip:
    """One question under way. `waiting`: the endpoints of peers that have not answered; `gone`: of
    those that will not any more. `on_answer` takes what a peer answered, once. `kind`: what counts
    as an answer.
    """

    def __init__(
        self,
        number: int,
        peers: Iterable[str],
        send: Send,
        on_answer: Callable[[Any], None],
        kind: type[object],
    ) -> None:
        self.number = number
        self.kind = kind
        self.sent: float | None = None
        """When it was sent first, if that was noted."""
        self.waiting = set(peers)
        self.gone: set[str] = set()
        self.send = send
        self.on_answer = on_answer
        self.changed = Notifier()


class RoundTrips:
    """The questions under way of one bus."""

    def __init__(self, number: int = 0) -> None:
        self._rounds: dict[int, RoundTrip] = {}
        self.number = number
        """The number of the last question."""

    def ask(
        self,
        peers: Iterable[str],
        send: Send,
        on_answer: Callable[[Any], None],
        kind: type[object] = Answer,
    ) -> RoundTrip:
        """Ask each of `peers` now, and again with each `repeat` until it has answered by a `kind`:
        an Answer to a `?`, an Ack to a mark.
        """
        self.number += 1
        round = RoundTrip(self.number, peers, send, on_answer, kind)
        if round.waiting:
            self._rounds[self.number] = round
            send(self.number, round.waiting)
        return round

    def repeat(self) -> None:
        """A second has passed."""
        for number, round in self._rounds.items():
            round.send(number, round.waiting)

    def answer(self, number: int, peer: str, value: object) -> None:
        """A peer has answered; twice is no error. What answers another kind of question is left:
        it would confirm what its sender was not asked.
        """
        round = self._rounds.get(number)
        if round is not None and peer in round.waiting and isinstance(value, round.kind):
            self._leave(number, round, peer)
            round.on_answer(value)

    def awaits(self, number: int, peer: str) -> bool:
        """True if a peer has been asked under this number and has not answered yet."""
        return (round := self._rounds.get(number)) is not None and peer in round.waiting

    def note_sent(self, number: int, now: float) -> None:
        """The question of this number is sent, for the first time or again."""
        if (round := self._rounds.get(number)) is not None and round.sent is None:
            round.sent = now

    def sent(self, number: int, peer: str) -> float | None:
        """When a peer was asked first under this number; None unless its answer is awaited."""
        return self._rounds[number].sent if self.awaits(number, peer) else None

    def lose(self, peer: str, *, is_missed: bool = True) -> None:
        """A peer will not answer any more. It is not missed if it closed, or was never there."""
        for number, round in list(self._rounds.items()):
            if peer in round.waiting:
                if is_missed:
                    round.gone.add(peer)
                self._leave(number, round, peer)

    def drop(self, round: RoundTrip | None) -> None:
        """The answer is not wanted any more. No error if the question is not under way."""
        if round is not None and self._rounds.get(round.number) is round:
            del self._rounds[round.number]

    def end(self) -> None:
        """No peer will answer any more."""
        for number, round in list(self._rounds.items()):
            for peer in tuple(round.waiting):
                round.gone.add(peer)
                self._leave(number, round, peer)

    def _leave(self, number: int, round: RoundTrip, peer: str) -> None:
        round.waiting.discard(peer)
        if not round.waiting:
            del self._rounds[number]
        round.changed.wake()
