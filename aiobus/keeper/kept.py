"""What a keeper holds: the newest event of each publisher, type and key, and which of it a
subscription with `since="last"` is told.

Owns the rules: what replaces and what ends an event, what a gap puts in doubt, and who answers for
a publisher. A change is drafted first and applied once it is on the disk, so nothing is told that a
crash would take back. Pure: must not know where it is stored, or who is linked.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from aiobus.event import event_id
from aiobus.history import Page, Want, joined
from aiobus.journal.format import rebuilt
from aiobus.query import Query
from aiobus.rows import Source

__all__ = ["DOUBTFUL", "ENDED", "SEEN_OUT", "Draft", "Excerpt", "Held", "Kept", "Place", "Presence"]

ENDED = 1
"""A flag: an event of the ending type came. It is still there, so that it is not taken for new."""
DOUBTFUL = 2
"""A flag: a newer one may have been lost on the way to the keeper."""
SEEN_OUT = 4
"""A flag: the start that published it was seen to its end."""
MAX_BYTES = 64 * 1024 * 1024
OVERHEAD = 200
"""Bytes counted for each event beside its data."""

Place = tuple[str, str, str]
Presence = Callable[[Source], bool | None]
"""True if a source is linked, False if it has left or was never met, None if it may be there."""


class Held(NamedTuple):
    """One event that is held. `origin`, `epoch`, `seq`: its own. `data`: as JSON."""

    origin: str
    epoch: int
    seq: int
    type: str
    key: str
    time: float
    data: bytes
    flags: int = 0

    @property
    def place(self) -> Place:
        """What a newer event replaces it by."""
        return self.origin, self.type, self.key

    @property
    def source(self) -> Source:
        """The start that published it."""
        return self.origin, self.epoch

    @property
    def id(self) -> str:
        """That of the original event."""
        return event_id(self.origin, self.epoch, self.seq)

    @property
    def size(self) -> int:
        """Bytes that are counted for it."""
        return len(self.data) + OVERHEAD


class Excerpt(NamedTuple):
    """The rows that answer one question, in order of number. Up to the number `lost` some may be
    missing, which are not certain, or were not held.
    """

    rows: list[tuple[int, str, str, bytes]]
    lost: int

    def on(self, page: Page, want: Want, limit: int) -> Page:
        """The page of the own history that answers `want`, with what is told in its place."""
        if want.since is not None and self.lost:
            # A subscription does not miss what was gone before it began: it begins here, and the
            # next page says what is lost.
            return replace(page, to=page.after, rows=[])
        if want.after < self.lost <= want.upto:
            page = replace(page, evicted=max(page.evicted, self.lost))
        return joined(page, self.rows, limit)


class Slot:
    """One event that may be told, and the number under which it is; 0 before it was. With that
    number it stays in its place of the keeper's own source.
    """

    __slots__ = ("held", "is_doubtful", "number", "source")

    def __init__(self, held: Held, number: int, *, is_doubtful: bool) -> None:
        self.held = held
        self.number = number
        self.source = held.source
        self.is_doubtful = is_doubtful


class Kept:
    """What is held, by publisher, type and key. `types`: what may be. `ends`: by type, the type
    that ends it. `number` draws a number of the keeper's own source.
    """

    def __init__(
        self, types: Query, ends: Mapping[str, str], most: int, number: Callable[[], int]
    ) -> None:
        self.types = types
        self.ends = ends
        self.most = most
        self.size = 0
        """Bytes of all that is held."""
        self.refused = 0
        """Events that were not held for want of room."""
        self.lost: set[str] = set()
        """Their types."""
        self.is_current: Callable[[], bool] = lambda: False
        """Asked before an answer: False while what was received is not taken in yet."""
        self.on_current: Callable[[], object] = lambda: None
        """Called when something was taken in, or a publisher has left."""
        self._held: dict[Place, Held] = {}
        self._slots: dict[str, dict[Place, Slot]] = {}
        """What may be told, by type, and below by key."""
        self._of_key: dict[str, dict[Place, Slot]] = {}
        self._number = number
        self._lost_numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held.values())

    def at(self, place: Place) -> Held | None:
        """What is held there."""
        return self._held.get(place)

    def is_watched(self, held: Held) -> bool:
        """False for what the file has of a type or key that is not held any more: of that nothing
        newer comes, so it is not told.
        """
        return self.types.matches(held.type, held.key)

    def put(self, place: Place, held: Held | None) -> None:
        """Hold this in that place, or nothing any more."""
        _, type, key = place
        if (before := self._held.pop(place, None)) is not None:
            self.size -= before.size
        slots, of_key = self._slots.setdefault(type, {}), self._of_key.setdefault(key, {})
        slot = slots.pop(place, None)
        of_key.pop(place, None)
        if held is not None:
            self.size += held.size
            self._held[place] = held
            if self.is_watched(held) and not held.flags & ENDED:
                is_same = slot is not None and slot.held._replace(flags=held.flags) == held
                number = slot.number if slot is not None and is_same else 0
                slots[place] = of_key[place] = Slot(
                    held, number, is_doubtful=self._is_doubtful(held)
                )
        if not of_key:
            del self._of_key[key]

    def told(
        self, query: Query, presence: Presence, after: int = 0, limit: int = 1_024
    ) -> Excerpt | None:
        """What a question with `since="last"` is told of those that are gone: `limit` events above
        the number `after`, or one more if there are more. None if that is not known now: it is to
        be asked again.
        """
        if not self._may_match(query):
            return Excerpt([], 0)
        if not self.is_current():
            return None
        found: list[Slot] = []
        standing: dict[Source, bool] = {}
        for slot in self._matching(query):
            is_there = standing.get(slot.source)
            if is_there is None:
                if (is_there := presence(slot.source)) is None:
                    return None
                standing[slot.source] = is_there
            if not is_there:
                found.append(slot)
        # Numbers are drawn when they are needed, for what is older first.
        new = [slot for slot in found if not slot.number]
        for slot in sorted(new, key=lambda slot: slot.held.time):
            slot.number = self._number()
        lost = max((slot.number for slot in found if slot.is_doubtful), default=0)
        for type in filter(query.matches_type, self.lost):
            if type not in self._lost_numbers:
                self._lost_numbers[type] = self._number()
            lost = max(lost, self._lost_numbers[type])
        certain = [slot for slot in found if slot.number > after and not slot.is_doubtful]
        certain.sort(key=lambda slot: slot.number)
        return Excerpt([_row(slot) for slot in certain[: limit + 1]], lost)

    def _may_match(self, query: Query) -> bool:
        return query.every or any(map(query.matches_type, self.types.types))

    def _matching(self, query: Query) -> Iterator[Slot]:
        if query.keys and not query.prefixes:
            for key in query.keys:
                for (_, type, _), slot in self._of_key.get(key, {}).items():
                    if query.matches_type(type):
                        yield slot
            return
        for type, slots in self._slots.items():
            if not query.matches_type(type):
                continue
            if not query.prefixes:
                yield from slots.values()
            else:
                yield from (slot for slot in slots.values() if query.matches_key(slot.held.key))

    def _is_doubtful(self, held: Held) -> bool:
        """True if it is not served: it may be old. Whatever is ended by an event of its own is
        served all the same, because a HALT too many harms less than one that is missing.
        """
        return bool(held.flags & DOUBTFUL) and held.type not in self.ends


def _row(slot: Slot) -> tuple[int, str, str, bytes]:
    held, number = slot.held, slot.number
    row = rebuilt(number, held.time, held.type, held.key, held.id, held.data)
    return number, held.type, held.key, row


class Draft:
    """Changes of a `Kept` that are not on the disk yet."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self.changes: dict[Place, Held | None] = {}
        """What is to be held in each place; None: nothing any more."""
        self.lost: set[str] = set()
        """Types of which an event is not held, for want of room."""
        self.refused: list[Held] = []
        self._size, self._count = kept.size, len(kept)

    def __bool__(self) -> bool:
        return bool(self.changes or self.lost - self._kept.lost)

    def apply(self) -> None:
        """It is on the disk."""
        for place, held in self.changes.items():
            self._kept.put(place, held)
        self._kept.lost |= self.lost
        self._kept.refused += len(self.refused)

    def _now(self, place: Place) -> Held | None:
        return self.changes[place] if place in self.changes else self._kept.at(place)

    def _all(self) -> list[Held]:
        held = {each.place: each for each in self._kept}
        return [each for each in {**held, **self.changes}.values() if each is not None]

    def _put(self, place: Place, held: Held | None) -> None:
        before = self._now(place)
        self._size += (0 if held is None else held.size) - (0 if before is None else before.size)
        self._count += (held is not None) - (before is not None)
        self.changes[place] = held

    def take(self, event: Held) -> None:
        """An event came. It is the newest of its source, type and key, and maybe known already."""
        if not self._kept.types.matches(event.type, event.key):
            return
        before = self._now(event.place)
        # Not by the id alone: a source may take numbers back, and use them again.
        if before is not None and before._replace(flags=0) == event:
            if before.flags & (DOUBTFUL | SEEN_OUT):
                self._put(event.place, before._replace(flags=before.flags & ENDED))
        elif self._has_room(event, before):
            self._put(event.place, event)
        else:
            self.refused.append(event)
            self.lost.add(event.type)
            if before is not None:
                self._put(event.place, before._replace(flags=before.flags | DOUBTFUL))

    def check(self, event: Held) -> None:
        """The same of an event that is the newest in the history of its source, and may be known
        or even be followed by another.
        """
        before = self._now(event.place)
        if before is None or (before.epoch == event.epoch and before.seq <= event.seq):
            self.take(event)

    def _has_room(self, event: Held, before: Held | None) -> bool:
        if self._count >= self._kept.most and before is None:
            ended = next((each for each in self._all() if each.flags & ENDED), None)
            if ended is None:
                return False
            self._put(ended.place, None)
        return self._size + event.size - (0 if before is None else before.size) <= MAX_BYTES

    def end(self, event: Held) -> None:
        """An event came whose type may end others: those of its key that are not newer. Of one
        start the order of numbers counts, of two the timestamps.
        """
        ended = {type for type, ending in self._kept.ends.items() if ending == event.type}
        for each in self._all() if ended else ():
            is_older = each.time <= event.time or each.source == event.source
            if each.type in ended and each.key == event.key and is_older:
                self._put(each.place, each._replace(flags=each.flags | ENDED))

    def doubt(self, source: Source) -> bool:
        """Events of a source were lost: what is held of it may be old. True if that is anything."""
        found = [each for each in self._all() if each.source == source and not each.flags & ENDED]
        for each in found:
            self._put(each.place, each._replace(flags=each.flags | DOUBTFUL))
        return bool(found)

    def see_out(self, source: Source) -> None:
        """A source has left, and what came of it was taken."""
        for each in self._all():
            if each.source == source and not each.flags & SEEN_OUT and self._kept.is_watched(each):
                self._put(each.place, each._replace(flags=each.flags | SEEN_OUT))

    def see_back(self, source: Source) -> None:
        """A source is there again: it may go on."""
        for each in self._all():
            if each.source == source and each.flags & SEEN_OUT and self._kept.is_watched(each):
                self._put(each.place, each._replace(flags=each.flags & ~SEEN_OUT))

    def forget(self, types: Query, source: str | None) -> int:
        """Hold what matches no more; return how many events that is. `source`: of that publisher
        alone.
        """
        found = [
            each
            for each in self._all()
            if types.matches(each.type, each.key) and source in (None, each.origin)
        ]
        for each in found:
            self._put(each.place, None)
        return sum(not each.flags & ENDED for each in found)
