"""Where a subscription stands in one source's numbers, and what that says about loss.

Owns the decision "is something missing, and what exactly?", for events of this process and of
others: gaps, duplicates, falling behind, catching up by pages, giving up. Pure: it is told what
came and what time it is, and answers what to do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from aiobus.history import Page, Since

__all__ = [
    "FORGOTTEN", "FORKED", "LATE", "LEFT", "NO_EVENTS", "PATIENCE", "PATIENCE_ALIVE", "RETRY",
    "UNKNOWN", "WENT_BACK",
    "Cursor", "Gap", "Start",
]  # fmt: skip

RETRY = 1.0
"""Seconds after which a page is asked for again: ZeroMQ does not send such a message twice."""
PATIENCE = 10.0
"""Seconds without any answer after which what is missing counts as lost, if the source has no
journal.
"""
PATIENCE_ALIVE = 60.0
"""The same while the source sends anything: it may have many to answer. Asked for 20,000 events
each by 50 at once, 32 of them gave it up after 10 s.
"""

EVICTED = "history no longer holds it"
UNANSWERED = "its source did not answer"
LEFT = "its source has left"
FORGOTTEN = "its source was away while many others left, so what arrived of this is not known"
UNKNOWN = "its source has left, and whether anything in it matched is unknown"
NO_EVENTS = "what its source sent of this are no events"
WENT_BACK = "its source says less than was heard of it"
LATE = "its keeper answered too late: it may be older than what was handed over"
FORKED = "its source went on from another copy of its journal"

Start = tuple[int, int]
"""The number of a start of a source that has a journal, and the seq above which it publishes. That
is drawn at random, so two copies of the journal that go on have different ones.
"""
MAX_MET = 64
"""Starts of a source of which a cursor keeps where it stood."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The events of one source in `(after, upto]` that a query matched are lost: exact in seqs, an
    upper bound in events. What history still holds of them, being of another type, is handed over
    after it, and so is what a frame brings that was on its way when history forgot it.

    With the reason UNKNOWN, nothing may be lost, and what its source still has is handed over if it
    comes back. With WENT_BACK, some of it may have been handed over before, and its numbers are
    used again. With FORKED, what was handed over of it may be of the other copy.
    """

    after: int
    upto: int
    reason: str


class Cursor:
    """One subscription's place in the numbers of one (source, epoch).

    While it is live, events are handed over as they come. Once `behind`, it moves by pages, and by
    frames that go on where it stands, until all is there that was heard of.
    """

    __slots__ = (
        "_asked", "_asked_after", "_began", "_deadline", "_known", "_limit", "_met", "_past",
        "_reported", "_sure", "_unknown", "behind", "clear", "has_timed_out", "last", "since",
        "upto",
    )  # fmt: skip

    def __init__(self, last: int = 0, *, since: Since = None) -> None:
        self.last = last
        """Handed over or reported up to here; of own events, only while `behind`."""
        self.clear = 0
        """No event up to here is missing that is not known to be: the source had said that it was
        so far when a frame vouched for all before it.
        """
        self.behind = since is not None
        self.since = since
        """Where it begins in the past, until the first page has said after which seq that is."""
        self.upto = 0
        """Above 0: only the newest of each (type, key) up to this seq is wanted so far."""
        self.has_timed_out = False
        self._known = self._reported = self._past = self._unknown = 0
        self._sure = [(last, last)]
        """No event up to the first number is missing that is not known to be, and that stays true
        if the source takes back what is above it. It was said at the second number, by the
        beginning or a beacon. The last two; if the source takes back the number of one, the other
        is what is left.
        """
        self._asked: float | None = None
        self._asked_after = 0
        self._deadline: float | None = None
        self._limit = 0.0
        self._began = last
        self._met: dict[Start, int] = {}
        """Where it stood when it met each start of its source, of those in one journal."""

    # Events of this process, one by one.

    def start_lagging(self, seq: int) -> None:
        """`seq` is the first event there was no room for; everything before it was handed over."""
        self.last = seq - 1
        self._be_behind(seq)

    # Frames of another process.

    def hear(self, seq: int) -> None:
        """The source says that it is at `seq`: a reason to ask what is missing, not to skip it."""
        if seq > self.last:
            self._be_behind(seq)

    @property
    def missing(self) -> int:
        """The lag in sequence numbers; 0 without a place yet, or if the source does not answer."""
        is_asking = self.behind and not self.has_timed_out and self.since is None
        return self._known - self.last if is_asking else 0

    @property
    def highest(self) -> int:
        """The highest seq that it has passed, or that is known to be missing."""
        return max(self.last, self._known)

    def skip(self, seq: int, upto: int) -> None:
        """The source has sent nothing in `(seq, upto]` that is wanted. Else the place would stay
        where the last such event was, and what history forgets behind that would seem to be lost.
        """
        if self.since is None and seq <= self.last < upto:
            self._move(upto)
            if self.last >= self._known:
                self._be_live()

    def lost_before(self, prev: int) -> Gap | None:
        """After giving up, a frame that follows `prev` ends what is missing, and that is lost."""
        if not self.has_timed_out or (prev <= self.last and self.since is None):
            return None
        gap = self._gap(prev, UNANSWERED)
        self.last = prev
        self._be_live()
        self.behind = prev < self._known  # of that it is not known to be lost
        return gap

    def go_on(self, prev: int, newest: int) -> bool:
        """Take a frame that follows `last` if nothing is missing. False: use `take`."""
        if prev != self.last or self.behind:
            return False
        self.last = newest
        return True

    def take(self, prev: int, newest: int, has_room: bool) -> int | None:
        """Take a frame. Returns the seq above which it is handed over; None to leave it."""
        last = self.last
        if prev > last or self.since is not None:
            self._be_behind(newest)
            return None
        if self.has_timed_out:  # it is there again, perhaps only the room is not
            self.has_timed_out = False
            self._asked = self._deadline = None
        if not has_room and newest > last:
            self._be_behind(newest)
            return None
        self._move(newest)
        is_even = prev == newest == last
        upto, said = self._sure[-1]
        if is_even and prev > said:
            self._sure = [self._sure[-1], (prev, prev)]
        elif prev < upto:
            self._sure = [(min(prev, upto), said) for upto, said in self._sure]
        # A beacon vouches for what was heard of; a frame of before says nothing of it.
        if self.last >= self._known or is_even:
            self._be_live()
        return last

    def is_due(self, now: float) -> bool:
        """True if something is missing and no answer is due at `now`, in monotonic seconds."""
        is_waiting = self._asked is not None and now < self._asked + RETRY
        is_waiting = is_waiting and not self.is_overdue(now)
        return self.behind and not self.has_timed_out and not is_waiting

    def is_overdue(self, now: float) -> bool:
        """True if the time for an answer is over at `now`."""
        return self._deadline is not None and now >= self._deadline

    def ask(self, now: float, *, may_give_up: bool = True) -> int | None:
        """The seq to ask a page after, if there is room; None if none is due, or the time for an
        answer is over: then it gives up if it may.
        """
        if not self.is_due(now):
            return None
        if self._deadline is None:
            self._deadline = now + PATIENCE
            self._limit = now + PATIENCE_ALIVE
        if self.is_overdue(now):
            self.has_timed_out = may_give_up
            return None
        self._asked, self._asked_after = now, self.last
        return self.last

    def defer(self) -> None:
        """Want of room or time is no timeout. What was just asked is not asked again at once."""
        self._deadline = None

    def wait_on(self, now: float) -> None:
        """The source lives, so its answer may still be on its way."""
        if self._deadline is not None:
            self._deadline = max(self._deadline, min(now + PATIENCE, self._limit))

    def expects(self, page: Page) -> bool:
        """True for the answer to the last question. Frames may have moved `last` meanwhile."""
        is_sound = page.after <= page.to <= (self.upto or page.newest)
        is_next = page.after == self._asked_after or self.since is not None
        return self._asked is not None and is_next and is_sound

    def advance(self, page: Page) -> Gap | None:
        """Take the page that was asked for; return what is lost before its first event."""
        gap = None
        is_begun = self.since is not None
        if self.since is not None:  # what was forgotten by then is not missed
            self.last, self._past = page.after, page.evicted
            self._began = page.after
            self.upto = page.newest if self.since == "last" else 0
            self.since = None
        # A page that was overtaken tells nothing: the next will, unless frames still bring it.
        told = max(self.last, self._reported, self._past)
        if page.evicted > told and page.to >= self.last:
            gap = self._gap(page.evicted, EVICTED)
            self._reported = page.evicted
        # Else it leads nowhere, and asking at once would be a busy loop.
        if page.to > page.after or is_begun:
            self._asked = self._deadline = None
        self._move(page.to)
        self._known = max(self._known, page.newest)
        self.has_timed_out = False
        if self.last >= self._known:
            self._be_live()
        return gap

    def suspend(self) -> None:
        """The source is away, and has all that is missing: no answer is due until it is back."""
        self.has_timed_out = False
        self._asked = self._deadline = None

    def leave(self, newest: int) -> list[Gap]:
        """The source has left and was heard of up to `newest`. Returns the gaps: what is missing is
        lost; of what no frame vouched for it is unknown.
        """
        gaps: list[Gap | None] = []
        if self.behind:
            gaps.append(self._gap(self._known, LEFT))
            self.last = max(self.last, self._known)
            self._be_live()
        self.last = max(self.last, self.clear)
        after = max(self.last, self._reported, self._unknown)
        if newest > after:
            gaps.append(Gap(after, newest, UNKNOWN))
            self._unknown = newest  # if it comes back, what is lost for certain is still told
        return [gap for gap in gaps if gap is not None]

    def go_back(self, seq: int) -> Gap | None:
        """The source takes back what it said beyond `seq`. Nothing up to there is handed over
        again; the gap has all of which that makes a loss, and what was taken back.
        """
        highest = max(self.last, self._reported, self._unknown)
        gap = None
        self.last, self.clear = min(self.last, seq), min(self.clear, seq)
        self._began = min(self._began, seq)
        self._met = {start: min(place, seq) for start, place in self._met.items()}
        if highest > seq:
            # What a beacon said beyond `seq` is as little true as the numbers that led there.
            after = max((upto for upto, said in self._sure if said <= seq), default=0)
            gap = Gap(after, highest, WENT_BACK)
            self._sure = [(after, after), (self.last, self.last)]
        self._known, self._reported = min(self._known, seq), min(self._reported, seq)
        self._past, self._unknown = min(self._past, seq), min(self._unknown, seq)
        self.upto = min(self.upto, seq)
        self.has_timed_out = False
        self._asked = self._deadline = None
        if self.since is None and self.last >= self._known:
            self._be_live()
        return gap

    def enter(self, known: Start, lineage: Mapping[int, int]) -> Gap | None:
        """The source has started again. `lineage` has the last starts of its journal, the new one
        last, by number: the seq above which each publishes. If `known`, the start before, is none
        of them, it was that of another copy of the journal: the gap has the numbers that were used
        by both. It begins where the cursor met the first start of that copy.
        """
        first, new = next(iter(lineage)), next(reversed(lineage))
        met, gap = self._met, None
        if not met:
            met[known] = self._began
        if known[0] >= first and lineage.get(known[0]) != known[1]:
            after = self.last
            while met:
                (number, begin), place = met.popitem()
                if lineage.get(number) == begin:
                    met[number, begin] = place
                    after = max(after, begin)  # up to there both copies have the same
                    break
                after = place
            if after < self.last:
                gap = Gap(after, self.last, FORKED)
            self.clear, self._past = min(self.clear, self.last), min(self._past, self.last)
        if len(met) >= MAX_MET:
            oldest, following = islice(met, 2)
            met[following] = met.pop(oldest)
        met.setdefault((new, lineage[new]), self.last)
        return gap

    def take_late(self, prev: int, newest: int) -> tuple[Gap | None, int]:
        """A frame of a source that is dead, or a mark (equal: without events). What is missing
        before it is lost. Its events above the seq that is returned are handed over.
        """
        gap = self._gap(prev, LEFT)
        after = max(self.last, prev)
        self.last = max(after, newest)
        return gap, after

    def _move(self, seq: int) -> None:
        self.last = max(self.last, seq)
        if self.last >= self.upto:
            self.upto = 0

    def _gap(self, upto: int, reason: str) -> Gap | None:
        after = max(self.last, self._reported)
        return Gap(after, upto, reason) if upto > after else None

    def _be_behind(self, known: int) -> None:
        self.behind = True
        self._known = max(self._known, known)

    def _be_live(self) -> None:
        self.behind = self.has_timed_out = False
        self._asked = self._deadline = self.since = None
        self.upto = 0
