"""The bounded queue in front of a handler or stream, and what happens when it is full.

Owns the four overflow policies and the order of what waits. Pure: nobody looks into an event, and
nobody waits here; a publisher that should wait does so elsewhere.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from enum import Enum, auto
from itertools import accumulate, islice
from typing import Any, Literal, Protocol

from aiobus.event import Event

__all__ = ["Inbox", "Item", "Notice", "Offer", "Overflow", "Sealed", "make_inbox"]

BATCH = 64
"""Rows taken at once, where what is taken may not be dropped or conflated any more."""
OPENED = 32
"""Events of other processes taken at once. A page of 128 opened in one go holds up what shares the
loop, and the processor, longer than any other step of a subscription that catches up.
"""

Overflow = Literal["catch_up", "block", "latest", "drop_oldest"]
"""What a full inbox does. See `AsyncEventBus.subscribe`."""


class Offer(Enum):
    """What became of an offered item."""

    TAKEN = auto()
    CONFLATED = auto()
    """It took the place of an older one of the same (type, key)."""
    DROPPED = auto()
    """It was taken and the oldest was thrown away."""
    REFUSED = auto()
    """There was no room; nothing changed."""


TAKEN = Offer.TAKEN  # an Enum is slow to ask for its members, and each event does


class Notice:
    """An item that says something about the others (a gap), in its place among them.

    It is never conflated and never dropped.
    """

    __slots__ = ("item",)

    def __init__(self, item: Event[Any]) -> None:
        self.item = item


class Sealed:
    """Events of another process that came together. `events` makes them as it is asked for them,
    which is when it is their turn: ten subscriptions that do it on arrival hold up what arrives
    behind. `count`: how many are left.
    """

    __slots__ = ("count", "events")

    def __init__(self, count: int, events: Iterator[Event[Any]]) -> None:
        self.count = count
        self.events = events


Offered = bytes | Event[Any]
"""An encoded event of this process, or an event of another."""
Item = Offered | Notice


class Inbox(Protocol):
    """What a subscription needs of its inbox, whatever the policy."""

    def __len__(self) -> int: ...
    def offer(self, event: Offered, type: str, key: str) -> Offer:
        """Put an event in by the rules of the policy."""
        ...

    def admit(self, event: Offered, type: str, key: str) -> Offer:
        """Put an event in even if there is no room: it was asked for, and must not be lost."""
        ...

    def extend(self, events: list[Event[Any]]) -> list[Offer]:
        """Offer all of these, and admit what would be refused. What became of those that were not
        simply taken.
        """
        ...

    def notify(self, notice: Notice) -> None:
        """Put a notice in, whether there is room or not."""
        ...

    def take(self, max_bytes: int) -> list[Item]:
        """Remove and return the oldest items: as many as may be taken at once, at least one if
        there is any, and no second one that would pass `max_bytes` of encoded events. What is
        sealed comes opened, and nothing else with it.
        """
        ...

    def clear(self) -> None:
        """Throw everything away."""
        ...


class FifoInbox:
    """First in, first out. When full: refuse ("catch_up"), grow ("block", whose publishers wait
    outside) or drop the oldest.
    """

    __slots__ = ("_batch", "_items", "_maxsize", "_sealed", "_when_full")

    def __init__(self, maxsize: int, when_full: Offer) -> None:
        self._items: deque[Item | Sealed] = deque()
        self._maxsize = maxsize
        self._sealed = 0  # events that are in the inbox beyond one for each item
        self._when_full = when_full
        # What is taken can no longer be dropped, so that policy hands out one at a time.
        self._batch = 1 if when_full is Offer.DROPPED else BATCH

    def __len__(self) -> int:
        return len(self._items) + self._sealed

    def offer(self, event: Offered, type: str, key: str) -> Offer:
        outcome = TAKEN
        if len(self._items) + self._sealed >= self._maxsize:
            outcome = self._when_full
            if outcome is Offer.REFUSED:
                return outcome
            if outcome is Offer.DROPPED and not self._drop_oldest():
                outcome = TAKEN
        self._items.append(event)
        return outcome

    def _drop_oldest(self) -> bool:
        for index, item in enumerate(self._items):
            if not isinstance(item, Notice):
                del self._items[index]
                return True
        return False

    def admit(self, event: Offered, type: str, key: str) -> Offer:
        self._items.append(event)
        return Offer.TAKEN

    def extend(self, events: list[Event[Any]]) -> list[Offer]:
        if self._when_full is Offer.DROPPED:
            outcomes = [self.offer(event, event.type, event.key) for event in events]
            return [outcome for outcome in outcomes if outcome is not Offer.TAKEN]
        self._items.extend(events)
        return []

    def seal(self, events: Sealed) -> None:
        """Admit all of these as they are, not to be used with "drop_oldest"."""
        self._items.append(events)
        self._sealed += events.count - 1

    def notify(self, notice: Notice) -> None:
        self._items.append(notice)

    def take(self, max_bytes: int) -> list[Item]:
        items = self._items
        if items and type(first := items[0]) is Sealed:
            if first.count > OPENED:
                first.count -= OPENED
                self._sealed -= OPENED
            else:
                self._sealed -= first.count - 1
                items.popleft()
            return list(islice(first.events, OPENED))
        head: list[Any] = list(islice(items, self._batch))
        sizes = [
            len(item)
            if type(item) is bytes
            else max_bytes + 1
            if type(item) is Sealed
            else type(item) is not Notice
            for item in head
        ]
        if sum(sizes) > max_bytes:
            head = head[: max(1, sum(1 for size in accumulate(sizes) if size <= max_bytes))]
        if len(head) == len(items):
            items.clear()
        else:
            for _ in head:
                items.popleft()
        return head

    def clear(self) -> None:
        self._items.clear()
        self._sealed = 0


class LatestInbox:
    """One row per (type, key): a newer one takes the place in line of the older. Over `maxsize`
    keys, the oldest goes.
    """

    __slots__ = ("_items", "_maxsize")

    def __init__(self, maxsize: int) -> None:
        # A plain dict's first key is slow to find after many pops.
        self._items: OrderedDict[tuple[str, str] | Notice, Item] = OrderedDict()
        self._maxsize = maxsize

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, event: Offered, type: str, key: str) -> Offer:
        if (type, key) in self._items or len(self._items) < self._maxsize:
            return self.admit(event, type, key)
        has_dropped = self._drop_oldest()
        self._items[type, key] = event
        return Offer.DROPPED if has_dropped else Offer.TAKEN

    def _drop_oldest(self) -> bool:
        for name in self._items:
            if not isinstance(name, Notice):
                del self._items[name]
                return True
        return False

    def admit(self, event: Offered, type: str, key: str) -> Offer:
        outcome = Offer.CONFLATED if (type, key) in self._items else Offer.TAKEN
        self._items[type, key] = event
        return outcome

    def extend(self, events: list[Event[Any]]) -> list[Offer]:
        outcomes = [self.offer(event, event.type, event.key) for event in events]
        return [outcome for outcome in outcomes if outcome is not Offer.TAKEN]

    def notify(self, notice: Notice) -> None:
        self._items[notice] = notice

    def take(self, max_bytes: int) -> list[Item]:
        return [self._items.popitem(last=False)[1]] if self._items else []

    def clear(self) -> None:
        self._items.clear()


def make_inbox(overflow: Overflow, maxsize: int) -> Inbox:
    """The inbox for a policy."""
    match overflow:
        case "catch_up":
            return FifoInbox(maxsize, Offer.REFUSED)
        case "block":
            return FifoInbox(maxsize, Offer.TAKEN)
        case "drop_oldest":
            return FifoInbox(maxsize, Offer.DROPPED)
        case "latest":
            return LatestInbox(maxsize)
