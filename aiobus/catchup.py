"""What one subscription misses: of other buses, whose frames and pages are given to it, and of its
own bus.

Owns a cursor for each source, and so what is handed over, what is asked for again and what is said
to be lost. Must not know how anything travels: it asks for pages through the seam, `PageSource`.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aiobus.clock import elapsed, newest
from aiobus.event import Event, parse_id
from aiobus.history import Page, Want
from aiobus.limits import KEEPER
from aiobus.publisher import Publisher
from aiobus.rows import MAX_NUMBER, LazyBatch, Rows, Source
from aiobus.sequence import FORGOTTEN, LATE, LEFT, NO_EVENTS, PATIENCE_ALIVE, Cursor, Gap, Start
from aiobus.subscription import PACE, Subscription
from aiobus.system import PEER_RESTARTED

__all__ = ["Announcement", "CatchUp", "PageSource"]

PULL_ROWS = 64
PULL_LOOK = 512
"""Bounds of a page of the own history, in events and in events looked at: a page is read at once,
so a larger one holds up the loop.
"""
MAX_SPOILED = 64
"""Stretches of rows that are no events, of one source that is asked where it stands."""
KEEPER_SECONDS = 10.0
"""Seconds for which a subscription waits for a keeper before it asks the others."""
KEEPER_SILENCE = 3.0
"""The same for a keeper that sends nothing."""
SAME_MOMENT = 1e-6
"""Seconds by which two times of one virtual moment may differ: when a source has started, is told
by its age, which is rounded.
"""
MAX_UNMET = 1024
"""Sources whose frames came before their first answer. No mesh of honest buses has more."""


class PageSource(Protocol):
    """Where pages of the history of other buses are asked for: a transport."""

    def ask(self, catchup: "CatchUp", source: Source, want: Want, limit: int) -> bool:
        """Ask `source` for the next page of what is missing, at most `limit` events. The answer, if
        any, comes as `CatchUp.take_page`. True if the question waits and is not sent yet.
        """
        ...

    def doubt(self, source: Source, error: ValueError) -> bool:
        """Rows of `source` were opened and are no events: count it, say it, and ask the source
        where it is. Each `CatchUp` gets the answer, by `go_back` or `note_said`. False if the
        source has left.
        """
        ...


@dataclass(slots=True, eq=False)
class Announcement:
    """The `aiobus.peer_restarted` of one source. With a journal of this bus it may have to wait for
    a commit.
    """

    seq: float = math.inf
    """Its number, once it is handed out."""


class CatchUp:
    """A cursor for each source of one subscription. Nothing here waits or raises. `behind`: the
    sources of which something is missing.

    A source younger than the subscription is owed from its beginning, whichever connected first; an
    older one from `since`, or else from what its first answer or frame says; a known one from where
    it stands. The own bus is a source as well, whose history answers at once.
    """

    def __init__(
        self,
        subscription: Subscription,
        publisher: Publisher,
        pages: PageSource,
        *,
        has_keeper: bool = False,
    ) -> None:
        self.query = subscription.selection
        self.behind = subscription.behind
        self.consumer = self._subscription = subscription
        self._publisher = publisher
        self._pages = pages
        self._since = subscription.options.since
        self._after = subscription.options.places
        self._made, self._made_after = elapsed(), newest()
        self.begins: Mapping[Source, int] = {}
        """After which seq the present start of a source publishes, if its epoch goes on."""
        self.pasts: Mapping[Source, int] = {}
        """Up to which seq each source may have published before this bus started."""
        self._cursors: dict[Source, Cursor] = {}
        self._unmet: dict[Source, Gap] = {}
        """What was left of sources that have not answered yet."""
        self._dead: set[Source] = set()
        self._granted: dict[Source, int] = {}
        """Room that is spoken for, until a page fills it."""
        self._asked: set[Source] = set()
        """Those whose answer is still to come."""
        self._announced: dict[Source, Announcement] = {}
        """Of sources that have started again, what may have to come before their events."""
        self._spoiled: dict[Source, list[Gap]] = {}
        """What came as rows that are no events, of sources that have been asked where they are."""
        subscription.pull, subscription.spoil = self.refill, self.spoil
        self._told: dict[Source, dict[tuple[str, str], int]] = {}
        """By source, type and key: the seq of the event that a keeper has told in its place."""
        self._awaits_keeper, self._awaits_since = has_keeper, self._made
        """What a keeper holds comes first: what else `since="last"` asks for waits for its answer,
        or a position of long ago could come behind the one of now.
        """
        if has_keeper:
            subscription.is_held = True
        elif subscription.own.behind:
            self._pull_own()

    def meet(self, source: Source, seq: int, started: float) -> None:
        """A source has answered: it is at `seq`, and started at `started`, monotonic seconds."""
        self._dead.discard(source)  # it was taken for one that another had followed
        cursor = self._cursors.get(source) or self._begin(source, seq, started)
        cursor.hear(seq)
        self._follow(source, cursor)

    def restart(self, source: Source, announcement: Announcement) -> None:
        """A source has started again. If the subscription has asked for the announcement, what
        comes of the source waits until that is in the inbox: the announcement may have to wait for
        a commit of this bus first, and for a full inbox it is left to the history of this bus.
        """
        if PEER_RESTARTED in self.query.reserved:
            self._announced[source] = announcement

    def enter(self, source: Source, known: Start, lineage: Mapping[int, int]) -> None:
        """A source has started again after the start that is `known`. See `Cursor.enter`."""
        if (cursor := self._cursors.get(source)) is not None:
            gap = cursor.enter(known, lineage)
            if gap is not None:
                self._subscription.lose(source, gap)

    def note_announced(self, source: Source) -> None:
        """The announcement is handed out: ask for what has waited for it."""
        if source in self._announced:
            self.pull(has_moved=True)

    def _waits(self, source: Source) -> bool:
        if (announcement := self._announced.get(source)) is None:
            return False
        own = self._subscription.own
        if announcement.seq == math.inf or (own.behind and own.last < announcement.seq):
            return True
        del self._announced[source]
        return False

    def _is_held(self, source: Source) -> bool:
        """True if it waits for the answer of a keeper: also one that is younger than this
        subscription, since what is kept is older than all that it publishes.
        """
        return self._awaits_keeper and source[0] != KEEPER

    def _end_wait(self, name: str = KEEPER) -> None:
        """The bus of this name has answered, or will not in time: if it is a keeper, ask the
        others.
        """
        if self._awaits_keeper and name == KEEPER:
            self._awaits_keeper = False
            self._subscription.release()
            if self._subscription.own.behind:
                self._pull_own()
            self.pull()

    def _take_kept(self, source: Source, cursor: Cursor, rows: Rows, after: int) -> None:
        """What a keeper holds is there. It is older than this subscription, whatever its numbers
        say.
        """
        if self._awaits_keeper:

            def is_wanted(event: Event[Any]) -> bool:
                if event.seq > after:
                    self._note_told(event)
                return event.seq > after

            if rows.count and rows.newest > after:
                self._subscription.keep_some(LazyBatch(rows, MAX_NUMBER), is_wanted)
        elif rows.count:
            self._subscription.lose(source, Gap(after, rows.newest, LATE))
        if cursor.since is None and not cursor.upto:
            self._end_wait()

    def _note_told(self, kept: Event[Any]) -> None:
        """A keeper tells this in place of its original, whose publisher may come back with it."""
        try:
            name, epoch, seq = parse_id(kept.cause)
        except ValueError:
            return  # of a program that only has the name of a keeper
        self._told.setdefault((name, epoch), {})[kept.type, kept.key] = seq

    def _hand_over_untold(self, rows: Rows, after: int, told: Mapping[Any, int]) -> None:
        """The same as `_hand_over`, without the originals of what a keeper has told, and what is
        older than these.
        """
        if rows.count and rows.newest > after:
            self._subscription.keep_some(
                LazyBatch(rows, self.pasts.get((rows.source, rows.epoch), 0)),
                lambda event: event.seq > max(after, told.get((event.type, event.key), 0)),
            )

    def _begin(self, source: Source, seq: int, started: float) -> Cursor:
        """An older source begins at `seq`, or before the first of its frames that was left."""
        left = self._unmet.pop(source, None)
        begin, place = self.begins.get(source, 0), self._after.get(source[0])
        if place is not None:
            # What another start has published came after that event. A number that the source has
            # not used yet cannot be right: it would leave out what comes.
            cursor = Cursor(min(place[1], seq) if place[0] == source[1] else 0)
        elif not self._is_older(source, started) and (self._since is None or not begin):
            cursor = Cursor(begin)
        elif self._since is not None:
            cursor = Cursor(since=self._since)
        else:
            # What was left may be of another copy of its journal, with lower numbers.
            cursor = Cursor(seq if left is None else min(seq, max(left.after, begin)))
        self._cursors[source] = cursor
        return cursor

    def _is_older(self, source: Source, started: float) -> bool:
        """True if a source has started before this was made. On a virtual loop, whose time stands
        still while something happens, both may be at one moment. There epochs are in order; but one
        that goes on in a journal counts as older.
        """
        if self._made_after is not None and abs(started - self._made) < SAME_MOMENT:
            return source[1] <= self._made_after
        return started <= self._made

    def begin(self, source: Source) -> int:
        """A source begins here that has no past to be asked for. Returns the seq behind which its
        events are owed: that of the event given as `after=`, or 0.
        """
        place = self._after.get(source[0])
        last = place[1] if place is not None and place[0] == source[1] else 0
        self._cursors[source] = Cursor(last)
        return last

    @property
    def has_room(self) -> bool:
        """True if `take` has room for a frame of one event, or the subscription has ended."""
        return self._subscription.free_slots > 0 or self._subscription.closed

    async def until_room(self) -> None:
        """Wait for that. Cancelling only stops the waiting."""
        while not self.has_room:
            await self._subscription.room.wait()

    @property
    def beginning(self) -> Collection[Source]:
        """The sources of whose past it waits to hear where it begins."""
        return [each for each in self.behind if self._cursors[each].since is not None]

    def take(self, frame: Rows, started: float | None, heard: int = 0) -> bool:
        """Take a frame: hand over what is new, or leave it and ask; False if it is left. The source
        has said before it that it was at `heard`: what the query matches of that was sent by now.
        """
        source = (frame.source, frame.epoch)
        cursor = self._cursors.get(source)
        if source in self._dead:
            self._hand_over(frame, self._take_late(source, frame.prev, frame.newest, started))
            return True
        if cursor is None:
            if started is None:
                self.leave_unmet(frame)
                return False
            cursor = self._begin(source, frame.prev, started)
        if (self._announced and self._waits(source)) or self._is_held(source):
            cursor.hear(frame.newest)
            self._follow(source, cursor)
            return False
        has_room = self._subscription.free_slots > 0
        if has_room and frame.count and cursor.go_on(frame.prev, frame.newest):
            if heard > cursor.clear:
                cursor.clear = heard
            self._subscription.keep(LazyBatch(frame, self.pasts.get(source, 0)))
            return True
        gap = cursor.lost_before(frame.prev)
        if gap is not None:
            self._asked.discard(source)
            self._subscription.lose(source, gap)
        is_asking = source in self.behind
        after = cursor.take(frame.prev, frame.newest, has_room)
        if after is not None:
            self._hand_over(frame, after)
        elif not has_room:
            self._subscription.start_lagging()
        if not cursor.behind:
            cursor.clear = max(cursor.clear, heard)
        if after is None and is_asking:
            return False  # a page on its way, room or a tick asks for it; there may be thousands
        if cursor.behind or source in self.behind:
            self._follow(source, cursor)
        return after is not None

    def leave_unmet(self, frame: Rows) -> None:
        """A frame of a source that has not answered yet: whether it is owed from its beginning is
        not known. What is owed of it is pulled once that is.
        """
        source = (frame.source, frame.epoch)
        left = self._unmet.get(source)
        if source not in self._cursors and (left is not None or len(self._unmet) < MAX_UNMET):
            begin = frame.prev if left is None else left.after
            self._unmet[source] = Gap(begin, frame.newest, LEFT)

    def _hand_over(self, rows: Rows, after: int) -> None:
        if rows.count and rows.newest > after:
            past = self.pasts.get((rows.source, rows.epoch), 0)
            self._subscription.keep(LazyBatch(rows, past), after)

    def spoil(self, batch: LazyBatch) -> None:
        """The rows of a batch above `batch.last` are no events. The source is asked where it
        stands, which says how much is lost: the head of the frame may be as wrong as its rows.
        """
        source, after = (batch.rows.source, batch.rows.epoch), batch.last
        cursor = self._cursors.get(source)
        # If the source has taken back numbers meanwhile, no more than it stands by is lost.
        upto = batch.rows.newest if cursor is None else min(batch.rows.newest, cursor.highest)
        spoiled = self._spoiled.setdefault(source, [])
        if spoiled and spoiled[-1].upto == after < upto:
            after = spoiled.pop().after
        if upto > after:
            spoiled.append(Gap(after, upto, NO_EVENTS))
        if len(spoiled) > MAX_SPOILED:
            self._subscription.lose(source, spoiled.pop(0))
        is_asked = batch.error is not None and self._pages.doubt(source, batch.error)
        if not is_asked or source in self._dead:
            self._lose_spoiled(source)

    def note_said(self, source: Source, seq: int) -> None:
        """A source that was asked says that it is at `seq`, and takes nothing back."""
        for gap in [each for each in self._spoiled.get(source, ()) if each.upto <= seq]:
            self._spoiled[source].remove(gap)
            self._subscription.lose(source, gap)

    def _lose_spoiled(
        self, source: Source, told: Gap | None = None, upto: int = MAX_NUMBER
    ) -> None:
        """Report the gaps up to `upto` that wait for word of the source, less those in `told`."""
        for gap in self._spoiled.pop(source, ()):
            end = min(gap.upto, upto)
            if told is not None:
                end = min(end, told.after)
            if end > gap.after:
                self._subscription.lose(source, Gap(gap.after, end, NO_EVENTS))

    def _take_late(self, source: Source, prev: int, newest: int, started: float | None) -> int:
        """Of one that is dead, the seq above which events up to `newest` are to be handed over."""
        cursor = self._cursors.get(source)
        if cursor is None:
            is_older = started is not None and self._is_older(source, started)
            begin = self.begins.get(source, 0)
            cursor = self._cursors[source] = Cursor(prev if is_older else begin)
        gap, after = cursor.take_late(prev, newest)
        if gap is not None:
            self._subscription.lose(source, gap)
        return after

    @property
    def missing(self) -> int:
        """The largest lag in sequence numbers; 0 while the inbox is nearly empty."""
        if self._subscription.wants_more:
            return 0
        return max((self._cursors[source].missing for source in self.behind), default=0)

    def take_page(self, source: Source, page: Page, rows: Rows) -> None:
        """A page has come: hand it over, unless it answers nothing that was asked."""
        cursor = self._cursors.get(source)
        if cursor is None or not cursor.expects(page):
            return
        if self._announced and self._waits(source):
            return  # asked for before the source was known to have started again
        self._granted.pop(source, None)
        self._asked.discard(source)
        self.behind.pop(source, None)
        if cursor.since is not None:
            self.confirm(source[0])
        after = cursor.last
        is_kept = source[0] == KEEPER and (cursor.since == "last" or cursor.upto > 0)
        self._advance(source, cursor, page)
        if is_kept:
            self._take_kept(source, cursor, rows, after)
        elif (told := self._told.get(source)) is not None:
            self._hand_over_untold(rows, after, told)
        else:
            self._hand_over(rows, after)
        self._follow(source, cursor)

    def _advance(self, source: Source, cursor: Cursor, page: Page) -> None:
        gap = cursor.advance(page)
        if page.reached is not None:
            self._subscription.reach(page.reached)
        if gap is not None:
            self._subscription.lose(source, gap)

    def has(self, source: Source, seq: int, started: float | None, upto: int = 0) -> bool:
        """True if nothing up to `seq` is missing. What is missing is asked for, or lost if the
        source is dead. False if the source has never answered (`started` is None), since it may be
        owed more. The source has sent nothing between `seq` and `upto`, if that is higher.
        """
        cursor = self._cursors.get(source)
        if source in self._dead:
            self._take_late(source, seq, seq, started)
            return True
        if cursor is None:
            if started is None or (self._is_older(source, started) and source not in self._unmet):
                return False  # its answer, which is on its way, tells where it begins
            cursor = self._begin(source, seq, started)
        cursor.hear(seq)
        cursor.skip(seq, upto)
        self._follow(source, cursor)
        return cursor.last >= seq

    def leave(self, source: Source, newest: int, *, is_dead: bool = False) -> None:
        """A source has left, and was heard of up to `newest`: what is missing of it is lost.
        `is_dead`: it will not come back, but frames of it may still be on their way.
        """
        self._end_wait(source[0])
        self._lose_spoiled(source)
        left = self._unmet.pop(source, None)
        if left is not None:
            # How old it was is not known any more, so it may be owed from its beginning.
            self._cursors[source] = Cursor(self.begins.get(source, 0))
            self._cursors[source].hear(left.upto)
        if (cursor := self._cursors.get(source)) is not None:
            gaps = cursor.leave(newest)
            self._follow(source, cursor)
            for gap in gaps:
                self._subscription.lose(source, gap)
        if is_dead:
            self._dead.add(source)

    def suspend(self, source: Source) -> None:
        """A source has left whose journal has all that is missing: that waits for its return."""
        self._end_wait(source[0])
        if (cursor := self._cursors.get(source)) is not None:
            cursor.suspend()
        self._granted.pop(source, None)
        self._asked.discard(source)
        self.behind.pop(source, None)
        self._subscription.note_idle()

    def go_back(self, source: Source, seq: int) -> None:
        """A source takes back what it said beyond `seq`."""
        if (cursor := self._cursors.get(source)) is not None:
            gap = cursor.go_back(seq)
            if gap is not None:
                self._subscription.lose(source, gap)
            self._lose_spoiled(source, gap, seq)
            self._follow(source, cursor)

    def forget(self, source: Source, *, is_back_later: bool = False) -> int | None:
        """Drop a source. Returns the seq up to which nothing is owed; None if it was never met.
        `is_back_later`: its epoch goes on when it comes back, and then it begins where it stood.
        """
        cursor = self._cursors.pop(source, None)
        if is_back_later and cursor is not None and cursor.since is None:
            name, epoch = source
            if name in self._after or len(self._after) < MAX_UNMET:
                self._after[name] = epoch, cursor.last
        self._dead.discard(source)
        self._announced.pop(source, None)
        if not is_back_later:
            self._told.pop(source, None)
        self._lose_spoiled(source)
        self.behind.pop(source, None)
        self._granted.pop(source, None)
        self._asked.discard(source)
        return None if cursor is None else cursor.last

    def resume(self, source: Source, low: int, high: int) -> None:
        """A forgotten source is back: what lies between `low` and `high` counts as lost."""
        self._unmet.pop(source, None)
        cursor = self._cursors.get(source)
        self._cursors[source] = Cursor(high if cursor is None else max(high, cursor.last))
        if high > low and cursor is None:
            self._subscription.lose(source, Gap(low, high, FORGOTTEN))

    def extend_deadlines(self) -> None:
        """The event loop was blocked: a missing answer does not count as a timeout."""
        if elapsed() - self._made < PATIENCE_ALIVE:
            self._awaits_since = elapsed()
        for source in self.behind:
            self._cursors[source].defer()

    def tick(self, alive: Collection[Source]) -> None:
        """A second has passed: ask again for what is missing. `alive`: who was heard of lately."""
        if self.behind:
            now = elapsed()
            for source in self.behind:
                if source in alive:
                    self._cursors[source].wait_on(now)
            self.pull(has_moved=True, is_tick=True)
        if self._awaits_keeper:
            is_alive = any(name == KEEPER for name, _ in alive)
            if elapsed() - self._awaits_since >= (KEEPER_SECONDS if is_alive else KEEPER_SILENCE):
                self._end_wait()

    def confirm(self, name: str) -> None:
        """The query is live at a peer that did not answer in time, or refused it."""
        self._subscription.confirm(name)

    def refuse(self, name: str, reason: str) -> None:
        """A peer does not serve the query: its events do not come until it confirms."""
        self._subscription.refuse(name, reason)
        self._end_wait(name)

    def refill(self) -> None:
        """Events were handed over: fetch what is missing, of other buses and of this one."""
        if self.behind:
            self.pull(has_moved=True)
        subscription = self._subscription
        is_behind = subscription.own.behind and not self._awaits_keeper
        if is_behind and subscription.pending * 2 <= subscription.maxsize:
            self._pull_own()

    def _pull_own(self) -> None:
        """Take a page of the own history, as far as there is room."""
        subscription, publisher = self._subscription, self._publisher
        cursor = subscription.own
        want = Want(cursor.last, cursor.since, cursor.upto)
        room = min(PULL_ROWS, subscription.maxsize - subscription.pending)
        page = publisher.history.answer(self.query, want, room, PULL_LOOK)
        with publisher.no_publish():
            self._advance((publisher.name, publisher.epoch), cursor, page)
            subscription.admit(page.rows)
        publisher.room.wake()
        if self._announced:
            self.pull(has_moved=True)

    def pull(self, *, has_moved: bool = False, is_tick: bool = False) -> None:
        """Ask for what is missing, as far as there is room and nothing is under way. While other
        events wait it asks for little, of one source at a time, and only after some were handed
        over or a second has passed (`has_moved`): bursts hold up what is live. It waits until there
        is room for that little: pages of a few events cost several times as much an event.

        It gives up on a source only each second (`is_tick`), when it is known whether this process
        was held up. Before, what was answered meanwhile may not have been read.
        """
        now = elapsed()
        due = [source for source in self.behind if self._cursors[source].is_due(now)]
        if self._announced:
            due = [source for source in due if not self._waits(source)]
        if self._awaits_keeper:
            due = [source for source in due if source[0] == KEEPER]
        if not due:
            return
        silent = self._asked.intersection(due)
        for source in due:
            self._granted.pop(source, None)
        free = self._subscription.free_slots - sum(self._granted.values())
        is_paced = not self._subscription.wants_more
        if is_paced:
            enough = min(PACE, max(1, self._subscription.maxsize // 2))
            free = min(PACE, free) if has_moved and free >= enough else 0
        for place, source in enumerate(due):
            cursor = self._cursors[source]
            share = free if is_paced else -(-free // (len(due) - place))
            if source in silent and len(self.behind) > 1:
                share = 1  # it keeps no room from the others, and is given up in time
            elif cursor.since is not None:  # `subscribe` waits for that, room or not
                share = max(share, 1)
            if source in self.begins:  # a journal has it, however late it answers
                cursor.defer()
            # Want of room is no reason to wait longer for what was asked when there was some.
            is_over = cursor.is_overdue(now)
            if share <= 0 and not is_over:
                cursor.defer()
            if share <= 0 and not (is_over and is_tick):
                continue
            if (after := cursor.ask(now, may_give_up=is_tick)) is not None:
                self._granted[source] = share
                free -= share
                del self.behind[source]  # the next to ask are the others
                self.behind[source] = None
                want = Want(after, cursor.since, cursor.upto)
                if self._pages.ask(self, source, want, share):
                    cursor.defer()
                else:
                    self._asked.add(source)

    def _follow(self, source: Source, cursor: Cursor) -> None:
        if cursor.behind:
            self.behind[source] = None
            self.pull()
            return
        self._granted.pop(source, None)
        self._asked.discard(source)
        self.behind.pop(source, None)
        if self.behind:
            self.pull()  # what was spoken for is free
        else:
            self._subscription.note_idle()
