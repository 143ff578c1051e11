"""The subscriptions of this bus: by topic, by number, and what is owed to each.

Owns the way of a frame to the subscriptions that asked for it, when a flush mark is reached, how
old each source is, and how many requests for pages are under way at each source: without that bound
5,000 subscriptions that miss something ask at once, and most answers, more than ZeroMQ queues, are
dropped. Owns the switch of a topic to progress messages alone while all its subscriptions lag far.
Pure: the caller passes the time.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from aiobus import wire
from aiobus.catchup import Announcement, CatchUp
from aiobus.discovery import is_observer
from aiobus.history import Page, Want
from aiobus.presence import Told
from aiobus.rows import Rows, Source
from aiobus.sequence import RETRY
from aiobus.wire import (
    NO_OPTIONS,
    Answer,
    Frame,
    Mark,
    Options,
    PacedMark,
    PeerId,
    progress_topic,
    topic,
)

__all__ = ["Interest", "Pages", "Topic"]

LEFT = 32
"""Frames in a row that all subscriptions leave before a topic is switched to progress messages."""
FAR = 2048
NEAR = 1024
"""Hysteresis of progress-only mode, in sequence numbers. A topic enters it if every subscription
lags more than FAR, and leaves it once one lags NEAR or less, which is a page.
"""


class Topic:
    """The subscriptions to one query. `name`: the topic of its frames."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.catchups: dict[CatchUp, None] = {}
        self.is_progress_only = False
        self.left = 0
        """Frames in a row that all subscriptions have left."""
        self.sent: dict[Source, int] = {}
        """Where the stream of each source that has a journal was, by its last frame."""

    def __str__(self) -> str:
        what = "progress" if self.is_progress_only else "events"
        return f"the {what} of {self.name[:-1].decode()}"

    @property
    def subscribed(self) -> bytes:
        """The topic that is subscribed to now: that of the frames, or of the progress messages."""
        return progress_topic(self.name) if self.is_progress_only else self.name

    @property
    def other(self) -> bytes:
        """The topic that is not subscribed to now."""
        return self.name if self.is_progress_only else progress_topic(self.name)

    def note_left(self) -> bool:
        """All subscriptions have left a frame with events. True if the mode changes."""
        self.left += 1
        if self.is_progress_only or self.left < LEFT:
            return False
        self.left = 0
        self.is_progress_only = all(catchup.missing > FAR for catchup in self.catchups)
        return self.is_progress_only

    def note_moved(self) -> bool:
        """A subscription may lag less than before. True if the mode changes."""
        if not self.is_progress_only or all(catchup.missing > NEAR for catchup in self.catchups):
            return False
        self.is_progress_only, self.left = False, 0
        return True


AT_ONCE = 32
"""Questions to one source that have no answer yet."""

Send = Callable[[CatchUp, Source, Want, int], None]


class Pages:
    """The requests of one bus. `send` sends one: an catchup, a source, what is wanted, how many."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._under_way: dict[Source, dict[CatchUp, float]] = {}
        self._waiting: dict[Source, dict[CatchUp, tuple[Want, int]]] = {}

    def ask(self, catchup: CatchUp, source: Source, want: Want, limit: int, now: float) -> bool:
        """Ask now, or later: then True. A later request of the same `catchup` replaces it."""
        under_way = self._under_way.setdefault(source, {})
        if catchup in under_way or len(under_way) < AT_ONCE:
            under_way[catchup] = now
            self._send(catchup, source, want, limit)
            return False
        self._waiting.setdefault(source, {})[catchup] = (want, limit)
        return True

    def answered(self, catchup: CatchUp, source: Source, now: float) -> None:
        """An answer has come: the next may ask."""
        self._under_way.get(source, {}).pop(catchup, None)
        self._go_on(source, now)

    def tick(self, now: float) -> None:
        """A second has passed: what has no answer by now will have none."""
        for source, under_way in list(self._under_way.items()):
            for catchup in [each for each, asked in under_way.items() if now - asked >= RETRY]:
                del under_way[catchup]
            self._go_on(source, now)
            if not under_way:
                del self._under_way[source]

    def _go_on(self, source: Source, now: float) -> None:
        waiting = self._waiting.get(source, {})
        while waiting and len(self._under_way.get(source, ())) < AT_ONCE:
            catchup = next(iter(waiting))
            self.ask(catchup, source, *waiting.pop(catchup), now)
        if not waiting:
            self._waiting.pop(source, None)

    def forget(self, catchup: CatchUp) -> None:
        """`catchup` asks for nothing any more."""
        for under_way in self._under_way.values():
            under_way.pop(catchup, None)
        for waiting in self._waiting.values():
            waiting.pop(catchup, None)


MAX_MARKS = 8
"""Of one source that are not reached; it repeats them, so none is left out for good."""
MEMORY = 3600.0
"""Seconds for which the place in a source's numbers is kept after it left: it may come back."""
MAX_LEFT = 1_024
MAX_CURSORS = 65_536
"""Sources that left of which each subscription keeps its own place, and places in all. Of one that
left before them, the lowest and the highest of these places are kept.
"""
MAX_PAST = 16_384
"""Sources of which only those two are kept: one each second for four hours."""


class Away(NamedTuple):
    """A source that left long ago: its catchups stood between `low` and `high`."""

    low: int
    high: int
    number: int
    """The last catchup that there was by then."""
    left: float


class Interest:
    """The subscriptions of one bus, and what is owed to them. They are numbered above `number`."""

    def __init__(self, number: int = 0) -> None:
        self._topics: dict[bytes, Topic] = {}
        self.switched: list[Topic] = []
        """Topics whose mode has changed. No source knows of it yet."""
        self._numbers: dict[CatchUp, int] = {}
        self._numbered: dict[int, CatchUp] = {}
        self._last_number = number
        self._told = Told()
        """What `types` returns, until that may have changed."""
        self.started: dict[Source, float] = {}
        """When each source that ever answered has started, in monotonic seconds of this process."""
        self.begins: dict[Source, int] = {}
        """Where the present start of each source begins whose epoch goes on: the seq before."""
        self.pasts: dict[Source, int] = {}
        """Up to which seq each source may have published before this bus started."""
        self.starts: dict[Source, int] = {}
        """Which start that is, of each source that has a journal."""
        self._announcing: dict[Source, Announcement] = {}
        """Of those that have started again, what is not handed out yet."""
        self.vouched: dict[Source, int] = {}
        """Up to where each surely was in that start, while the next answer may be of another."""
        self.suspects: list[Source] = []
        """Sources with a journal that are to be asked which start they are. See `_goes_on`."""
        self._suspected: set[Source] = set()
        """Those that have not answered that yet."""
        self.marks: dict[Source, dict[int, tuple[Mark, list[tuple[str, int]]]]] = {}
        """The last marks of each source, by number, and what of each is not reached yet."""
        self.refused: dict[PeerId, dict[CatchUp, None]] = {}
        """Catchups whose query a peer does not serve."""
        self.ended: dict[Source, int] = {}
        """Up to where each source was heard of when it left."""
        self._left: dict[Source, float] = {}  # and when, the first to leave first
        self._past: dict[Source, Away] = {}

    def __iter__(self) -> Iterator[CatchUp]:
        return iter(self._numbers)

    def add(self, catchup: CatchUp) -> bytes | None:
        """Hand frames of its query to `catchup`; return the topic if it is the first to ask."""
        name = topic(catchup.query.text)
        self._last_number += 1
        self._told.add(catchup.query)
        self._numbers[catchup] = self._last_number
        catchup.begins, catchup.pasts = self.begins, self.pasts
        for source, announcement in self._announcing.items():
            catchup.restart(source, announcement)
        self._numbered[self._last_number] = catchup
        if is_new := name not in self._topics:
            self._topics[name] = Topic(name)
        self._topics[name].catchups[catchup] = None
        self._note_moved(self._topics[name])
        return name if is_new else None

    def _note_moved(self, asked: Topic) -> None:
        if asked.note_moved():
            self.switched.append(asked)

    def remove(self, catchup: CatchUp) -> bytes | None:
        """No more; return what was subscribed to for it if it was the last to ask."""
        number = self._numbers.pop(catchup, None)
        if number is None:
            return None
        del self._numbered[number]
        self._told.remove(catchup.query)
        for refused in self.refused.values():
            refused.pop(catchup, None)
        name = topic(catchup.query.text)
        asked = self._topics[name]
        del asked.catchups[catchup]
        if asked.catchups:
            return None
        del self._topics[name]
        return asked.subscribed

    @property
    def told(self) -> str:
        """What is subscribed to, as others are told of it."""
        return self._told.text

    def number(self, catchup: CatchUp) -> int | None:
        """By which number `numbered` finds it."""
        return self._numbers.get(catchup)

    def note_start(
        self, source: Source, started: float, options: Options = NO_OPTIONS, newest: int = 0
    ) -> None:
        """A source says how old it is. Its earliest word counts: delay makes it look younger. Up to
        `newest`, as it first says, it published before this bus started, or before it did. A
        restart (`is_restart`) is to be announced before: see `restart`.
        """
        if self.is_restart(source, options):
            known, lineage = (self.starts[source], self.begins[source]), options.lineage
            if lineage.get(known[0]) != known[1]:
                # The start that is known may have been that of another copy of the journal: what
                # this one has above the numbers of that may be older than this bus.
                del self.pasts[source]
            for catchup in tuple(self._numbers):
                catchup.enter(source, known, lineage)
            self.started.pop(source, None)
            self._suspected.add(source)
        self.pasts.setdefault(source, newest)
        if source in self._suspected:
            self._suspected.remove(source)
            for asked in self._topics.values():
                asked.sent.pop(source, None)
        if options.journaled:
            self.starts[source], self.begins[source] = options.start, options.begin
        self.started[source] = min(started, self.started.get(source, started))
        self._left.pop(source, None)
        self.vouched.pop(source, None)
        if (past := self._past.pop(source, None)) is not None:
            for catchup, number in self._numbers.items():
                if number <= past.number:
                    catchup.resume(source, past.low, past.high)

    def restart(self, source: Source) -> Announcement:
        """A source has started again, which is about to be announced: what comes of it waits for
        that where it was asked for. `note_announced` is to be called once it is handed out.
        """
        announcement = self._announcing[source] = Announcement()
        for catchup in self._numbers:
            catchup.restart(source, announcement)
        return announcement

    def note_announced(self, source: Source, announcement: Announcement, seq: int) -> None:
        """That a source has started again is handed out, as the event `seq` of this bus."""
        announcement.seq = seq
        if self._announcing.get(source) is announcement:
            del self._announcing[source]
        for catchup in tuple(self._numbers):
            catchup.note_announced(source)

    def is_restart(self, source: Source, options: Options) -> bool:
        """True if a source says another start, or another beginning of it, than is known: it has
        started again, with the epoch it had.
        """
        known = self.starts.get(source), self.begins.get(source)
        return source in self.begins and known != (options.start, options.begin)

    def doubt_start(self, source: Source, vouched: int) -> None:
        """A source may be about to start again: if it has a journal, its next answer tells. In the
        start that is known it was at `vouched` for certain.
        """
        if source in self.starts:
            self.started.pop(source, None)
            self.vouched.setdefault(source, vouched)

    def meet(self, catchups: Iterable[CatchUp], value: Answer) -> None:
        """A source has answered: the queries of these are live there, or it says why not."""
        source = value.who.source
        for catchup in catchups:
            if catchup not in self._numbers:
                continue
            if (reason := value.refusal(catchup.query.text)) is not None:
                refused = self.refused.setdefault(value.who, {})
                if catchup not in refused:
                    refused[catchup] = None
                    if not is_observer(value.who.endpoint):
                        catchup.refuse(value.who.name, reason)
            else:
                self.refused.get(value.who, {}).pop(catchup, None)
                catchup.meet(source, value.seq, self.started[source])
                if source not in catchup.beginning:  # else it confirms once it has said where
                    catchup.confirm(value.who.name)

    def refusing(self, catchup: CatchUp) -> set[str]:
        """Names of the peers that do not serve its query, without observers."""
        refusing = (who for who, catchups in self.refused.items() if catchup in catchups)
        return {who.name for who in refusing if not is_observer(who.endpoint)}

    def take(self, frame: Frame, heard: int = 0) -> bool:
        """Hand a frame to all that asked for it. Its source has said before it that it was at
        `heard`. False if all of them have left it.
        """
        if (asked := self._topics.get(frame.topic)) is None:
            return False
        source = (frame.source, frame.epoch)
        if source in self.starts and not self._goes_on(asked, source, frame):
            for catchup in asked.catchups if source not in self.started else ():
                catchup.leave_unmet(frame)
            return False
        started, heard = self.started.get(source), max(heard, frame.newest)
        is_taken = False
        for catchup in tuple(asked.catchups):
            is_taken |= catchup.take(frame, started, heard)
        if frame.count and not is_taken:  # a frame without events comes from each peer a second
            if asked.note_left():
                self.switched.append(asked)
        elif asked.is_progress_only:
            self._note_moved(asked)
        elif frame.count:
            asked.left = 0
        return is_taken

    def _goes_on(self, asked: Topic, source: Source, frame: Frame) -> bool:
        """False for a frame that does not follow the one before it on its stream. Frames were lost,
        or the source has started again and its hello is read later; and perhaps with an older copy
        of its journal, whose numbers may be those of events that this bus does not have yet. Its
        answer tells. Until then nothing that comes as this source is taken: what it has of that, it
        is asked for.
        """
        if source in self._suspected:
            return False
        sent = asked.sent.get(source, frame.prev)
        asked.sent[source] = frame.newest
        if sent == frame.prev or asked.is_progress_only:  # progress leaves out what lies between
            return True
        self._suspected.add(source)
        self.suspects.append(source)
        return False

    def take_page(self, catchup: CatchUp, source: Source, page: Page, rows: Rows) -> None:
        """A page has come that `catchup` has asked for."""
        catchup.take_page(source, page, rows)
        self._note_moved(self._topics[topic(catchup.query.text)])

    def numbered(self, number: int) -> CatchUp | None:
        """The one with this number, if it is still there."""
        return self._numbered.get(number)

    def mark(self, value: Mark) -> None:
        """A source wants to know when all it sent has arrived; its last such wishes count."""
        marks = self.marks.setdefault(value.who.source, {})
        marks.pop(value.mark, None)  # it goes to the end
        marks[value.mark] = (value, list(value.streams))
        if len(marks) > MAX_MARKS:
            del marks[next(iter(marks))]

    def held(self) -> Iterator[tuple[CatchUp, Collection[str]]]:
        """Each that has not passed what is marked, and the buses whose handlers wait for it."""
        for source, marks in self.marks.items():
            started = self.started.get(source)
            for value, streams in marks.values():
                waiting = value.waiting if isinstance(value, PacedMark) else ()
                for query, seq in streams if waiting else ():
                    asked = self._topics.get(topic(query))
                    for catchup in () if asked is None else tuple(asked.catchups):
                        if not catchup.has(source, seq, started):
                            yield catchup, waiting

    def end(self, value: Mark, heard: int) -> None:
        """A source that closes says where each stream ends: as much as a beacon on each."""
        who = value.who
        for query, seq in value.streams:
            if (name := topic(query)) in self._topics:
                self.take(Frame(name, wire.frame(name, who.name, who.epoch, seq, seq, ())), heard)

    def reached(self, doubted: Collection[Source] = ()) -> list[Mark]:
        """The marks reached since the last call. Sources in `doubted` are left out, because they
        may take seqs back.
        """
        found = []
        for source, marks in list(self.marks.items()):
            if source in doubted:
                continue
            for number, (value, streams) in list(marks.items()):
                upto = value.upto if isinstance(value, PacedMark) else 0
                while streams and self._has(source, *streams[-1], upto):
                    streams.pop()
                if not streams:
                    del marks[number]
                    found.append(value)
            if not marks:
                del self.marks[source]
        return found

    def _has(self, source: Source, query: str, seq: int, upto: int) -> bool:
        asked = self._topics.get(topic(query))
        started = self.started.get(source)
        catchups = () if asked is None else tuple(asked.catchups)
        return all(catchup.has(source, seq, started, upto) for catchup in catchups)

    def leave(self, source: Source, now: float, newest: int = 0, *, is_dead: bool = False) -> None:
        """A source has left; what is missing up to `newest` is lost, unless it has a journal and
        may come back. `is_dead`: for good.
        """
        self.marks.pop(source, None)
        self.refused = {who: each for who, each in self.refused.items() if who.source != source}
        self.ended[source] = newest
        self._left.pop(source, None)
        self._left[source] = now
        for catchup in self._numbers:
            catchup.confirm(source[0])  # it is not unconfirmed but gone, which `peer_left` says
            if source in self.starts and not is_dead:
                catchup.suspend(source)
            else:
                catchup.leave(source, newest, is_dead=is_dead)

    def go_back(self, source: Source, seq: int) -> None:
        """A source takes back what it said beyond `seq`."""
        self.ended.pop(source, None)
        self.marks.pop(source, None)  # if it is still wanted, it is said again
        for catchup in self._numbers:
            catchup.go_back(source, seq)

    def note_said(self, source: Source, seq: int) -> None:
        """A source that was asked says that it is at `seq`, and takes nothing back."""
        for catchup in self._numbers:
            catchup.note_said(source, seq)

    def extend_deadlines(self) -> None:
        """This process was held up."""
        for catchup in self._numbers:
            catchup.extend_deadlines()

    def tick(self, now: float, alive: Collection[Source], known: Collection[Source]) -> None:
        """A second has passed: these sources were heard of lately, and these may come back."""
        for catchup in tuple(self._numbers):
            catchup.tick(alive)
            for source in [each for each in catchup.behind if each in self._left]:
                if source in known:
                    continue
                if source in self.starts:
                    catchup.suspend(source)
                else:  # something of it came late, and it cannot be asked
                    catchup.leave(source, self.ended.get(source, 0))
        for asked in self._topics.values():
            self._note_moved(asked)  # perhaps its source has left
        for source in [each for each in self._left if each in known]:
            del self._left[source]  # it goes to the end
            self._left[source] = now
        while self._past and now - next(iter(self._past.values())).left > MEMORY:
            del self._past[next(iter(self._past))]
        most = min(MAX_LEFT, MAX_CURSORS // max(1, len(self._numbers)))
        while self._left:
            source, left = next(iter(self._left.items()))
            if now - left > MEMORY:
                self._forget(source)
            elif len(self._left) > most and source not in known:
                self._put_away(source, left)
            else:
                break

    def _forget(self, source: Source) -> list[int | None]:
        del self._left[source]
        self.started.pop(source, None)
        self.begins.pop(source, None)
        self.pasts.pop(source, None)
        self.vouched.pop(source, None)
        self._suspected.discard(source)
        for asked in self._topics.values():
            asked.sent.pop(source, None)
        newest = self.ended.pop(source, 0)
        has_journal = self.starts.pop(source, None) is not None
        if has_journal:
            for catchup in self._numbers:
                catchup.leave(source, newest)  # what its journal has was waited for in vain
        return [catchup.forget(source, is_back_later=has_journal) for catchup in self._numbers]

    def _put_away(self, source: Source, left: float) -> None:
        places = self._forget(source)
        if known := [place for place in places if place is not None]:
            low = min(known) if len(known) == len(places) else 0
            self._past[source] = Away(low, max(known), self._last_number, left)
            if len(self._past) > MAX_PAST:
                del self._past[next(iter(self._past))]
