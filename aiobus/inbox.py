"""The bounded queue in front of a handler or stream, and what happens when it is full.

Owns the four overflow policies and the order of what waits. Pure: nobody looks into an event, and
nobody waits here; a publisher that should wait does so elsewhere.
"""

from collections import OrderedDict, deque
from enum import Enum, auto
from itertools import accumulate, islice, takewhile
from typing import Any, Literal, Protocol

from aiobus.event import Event
from aiobus.rows import LazyBatch

__all__ = ["GapMarker", "Inbox", "Item", "Overflow", "PutResult", "make_inbox"]

BATCH = 64
"""Rows taken at once, where what is taken may not be dropped or conflated any more."""

Overflow = Literal["catch_up", "block", "latest", "drop_oldest"]
"""What a full inbox does. See `AsyncEventBus.subscribe`."""


class PutResult(Enum):
    """What became of an offered item."""

    TAKEN = auto()
    CONFLATED = auto()
    """It took the place of an older one of the same (type, key)."""
    DROPPED = auto()
    """It was taken and the oldest was thrown away."""
    REFUSED = auto()
    """There was no room; nothing changed."""


TAKEN = PutResult.TAKEN  # an Enum is slow to ask for its members, and each event does


class GapMarker:
    """An item that says something about the others (a gap), in its place among them.

    It is never conflated and never dropped.
    """

    __slots__ = ("item",)

    def __init__(self, item: Event[Any]) -> None:
        self.item = item


Offered = bytes | Event[Any]
"""An encoded event of this process, or an event of another."""
Item = Offered | GapMarker


class Inbox(Protocol):
    """What a subscription needs of its inbox, whatever the policy."""

    def __len__(self) -> int: ...
    def offer(self, event: Offered, type: str, key: str) -> PutResult:
        """Put an event in by the rules of the policy."""
        ...

    def admit(self, event: Offered, type: str, key: str) -> PutResult:
        """Put an event in even if there is no room: it was asked for, and must not be lost."""
        ...

    def extend(self, events: list[Event[Any]]) -> list[PutResult]:
        """Offer all of these, and admit what would be refused. What became of those that were not
        simply taken.
        """
        ...

    def notify(self, notice: GapMarker) -> None:
        """Put a notice in, whether there is room or not."""
        ...

    def take(self, max_bytes: int) -> list[Item]:
        """Remove and return the oldest items: as many as may be taken at once, at least one if
        there is any, and no second one that would pass `max_bytes` of encoded events. None if a
        batch comes first.
        """
        ...

    def clear(self) -> None:
        """Throw everything away."""
        ...


class FifoInbox:
    """First in, first out. When full: refuse ("catch_up"), grow ("block", whose publishers wait
    outside) or drop the oldest.
    """

    __slots__ = ("_inner", "_items", "_maxsize", "_mixed", "_most", "_when_full")

    def __init__(self, maxsize: int, when_full: PutResult) -> None:
        self._items: deque[Item | LazyBatch] = deque()
        self._maxsize = maxsize
        self._inner = 0
        """Events that are in the inbox beyond one for each item."""
        self._mixed = 0
        """Items that are no rows."""
        self._when_full = when_full
        # What is taken can no longer be dropped, so that policy hands out one at a time.
        self._most = 1 if when_full is PutResult.DROPPED else BATCH

    def __len__(self) -> int:
        return len(self._items) + self._inner

    def offer(self, event: Offered, type: str, key: str) -> PutResult:
        outcome = TAKEN
        if len(self._items) + self._inner >= self._maxsize:
            outcome = self._when_full
            if outcome is PutResult.REFUSED:
                return outcome
            if outcome is PutResult.DROPPED and not self._drop_oldest():
                outcome = TAKEN
        self._items.append(event)
        if event.__class__ is not bytes:
            self._mixed += 1
        return outcome

    def _drop_oldest(self) -> bool:
        for index, item in enumerate(self._items):
            if not isinstance(item, GapMarker):
                self._mixed -= type(item) is not bytes
                del self._items[index]
                return True
        return False

    def admit(self, event: Offered, type: str, key: str) -> PutResult:
        self._items.append(event)
        self._mixed += event.__class__ is not bytes
        return PutResult.TAKEN

    def extend(self, events: list[Event[Any]]) -> list[PutResult]:
        if self._when_full is PutResult.DROPPED:
            outcomes = [self.offer(event, event.type, event.key) for event in events]
            return [outcome for outcome in outcomes if outcome is not PutResult.TAKEN]
        self._items.extend(events)
        self._mixed += len(events)
        return []

    def notify(self, notice: GapMarker) -> None:
        self._items.append(notice)
        self._mixed += 1

    def put_batch(self, batch: LazyBatch) -> None:
        """Admit all events of a batch, not to be used with "drop_oldest"."""
        self._items.append(batch)
        self._inner += batch.left - 1
        self._mixed += 1

    @property
    def first_batch(self) -> LazyBatch | None:
        """The batch that comes next, if one does: take from it, and then call `note_taken`."""
        if not self._mixed:
            return None
        first = self._items[0]
        return first if type(first) is LazyBatch else None

    def note_taken(self, batch: LazyBatch, before: int) -> None:
        """Events of the first batch were taken, of which `before` were left."""
        if batch.left:
            self._inner -= before - batch.left
        else:
            self._inner -= before - 1
            self._mixed -= 1
            self._items.popleft()

    def take(self, max_bytes: int) -> list[Item]:
        items = self._items
        head: list[Any] = list(islice(items, self._most))
        if self._mixed:
            head = list(takewhile(lambda item: type(item) is not LazyBatch, head))
        sizes = list(map(_size if self._mixed else len, head))
        if sum(sizes) > max_bytes:
            head = head[: max(1, sum(1 for size in accumulate(sizes) if size <= max_bytes))]
        if self._mixed:
            self._mixed -= sum(type(item) is not bytes for item in head)
        if len(head) == len(items):
            items.clear()
        else:
            for _ in head:
                items.popleft()
        return head

    def clear(self) -> None:
        self._items.clear()
        self._inner = self._mixed = 0


def _size(item: Item) -> int:
    """Its bytes, if it is to be parsed."""
    return len(item) if type(item) is bytes else type(item) is not GapMarker


class LatestInbox:
    """One row per (type, key): a newer one takes the place in line of the older. Over `maxsize`
    keys, the oldest goes.
    """

    __slots__ = ("_items", "_maxsize")

    def __init__(self, maxsize: int) -> None:
        # A plain dict's first key is slow to find after many pops.
        self._items: OrderedDict[tuple[str, str] | GapMarker, Item] = OrderedDict()
        self._maxsize = maxsize

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, event: Offered, type: str, key: str) -> PutResult:
        if (type, key) in self._items or len(self._items) < self._maxsize:
            return self.admit(event, type, key)
        has_dropped = self._drop_oldest()
        self._items[type, key] = event
        return PutResult.DROPPED if has_dropped else PutResult.TAKEN

    def _drop_oldest(self) -> bool:
        for name in self._items:
            if not isinstance(name, GapMarker):
                del self._items[name]
                return True
        return False

    def admit(self, event: Offered, type: str, key: str) -> PutResult:
        outcome = PutResult.CONFLATED if (type, key) in self._items else PutResult.TAKEN
        self._items[type, key] = event
        return outcome

    def extend(self, events: list[Event[Any]]) -> list[PutResult]:
        outcomes = [self.offer(event, event.type, event.key) for event in events]
        return [outcome for outcome in outcomes if outcome is not PutResult.TAKEN]

    def notify(self, notice: GapMarker) -> None:
        self._items[notice] = notice

    def take(self, max_bytes: int) -> list[Item]:
        return [self._items.popitem(last=False)[1]] if self._items else []

    def clear(self) -> None:
        self._items.clear()


def make_inbox(overflow: Overflow, maxsize: int) -> Inbox:
    """The inbox for a policy."""
    match overflow:
        case "catch_up":
            return FifoInbox(maxsize, PutResult.REFUSED)
        case "block":
            return FifoInbox(maxsize, PutResult.TAKEN)
        case "drop_oldest":
            return FifoInbox(maxsize, PutResult.DROPPED)
        case "latest":
            return LatestInbox(maxsize)
