"""The bounded queue in front of a handler or stream, and what happens when it is full.

Owns the four overflow policies and the order of what waits. Three kinds of things wait: encoded
events of this process, events, and batches of another process, which are parsed when they are
taken. An event of a reserved type is a notice, which tells of a gap among the others: it is never
conflated and never dropped. Pure: a publisher that has to wait does so elsewhere.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from enum import Enum, auto
from itertools import accumulate, islice, takewhile
from typing import Any, Literal, Protocol

from aiobus.event import Event
from aiobus.query import RESERVED
from aiobus.rows import LazyBatch

__all__ = ["Inbox", "Item", "Overflow", "PutResult", "make_inbox"]

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


Item = bytes | Event[Any]
"""An encoded event of this process; or an event of another, or a notice."""


class Inbox(Protocol):
    """What a subscription needs of its inbox, whatever the policy."""

    @property
    def items(self) -> Collection[object]:
        """What waits: empty exactly when the inbox is, which costs no call to learn."""
        ...

    def __len__(self) -> int: ...
    def offer(self, event: Item, type: str, key: str) -> PutResult:
        """Put an event in by the rules of the policy."""
        ...

    def admit(self, event: Item, type: str, key: str) -> PutResult:
        """Put an event in even if there is no room: it was asked for, and must not be lost."""
        ...

    def extend(self, events: list[Event[Any]]) -> list[PutResult]:
        """Put all in, even what the policy would refuse. Returns the outcomes other than TAKEN."""
        ...

    def notify(self, notice: Event[Any]) -> None:
        """Put a notice in, whether there is room or not."""
        ...

    def take(self, max_bytes: int) -> list[Any]:
        """Remove and return the oldest, all rows or all events: several if they may be taken at
        once, but no second row beyond `max_bytes`. Empty if nothing is left, or if the next rows
        are no events.
        """
        ...

    def clear(self) -> None:
        """Throw everything away."""
        ...


class FifoInbox:
    """First in, first out. When full: refuse ("catch_up"), grow ("block", whose publishers wait
    outside) or drop the oldest. `on_error` is given each batch whose rows prove to be no events.
    """

    __slots__ = ("_inner", "_maxsize", "_mixed", "_most", "_on_error", "_when_full", "items")

    def __init__(
        self, maxsize: int, when_full: PutResult, on_error: Callable[[LazyBatch], None]
    ) -> None:
        self.items: deque[Item | LazyBatch] = deque()
        self._maxsize = maxsize
        self._on_error = on_error
        self._inner = 0
        """Events that are in the inbox beyond one for each item."""
        self._mixed = 0
        """Items that are no rows."""
        self._when_full = when_full
        # What is taken can no longer be dropped, so that policy hands out one at a time.
        self._most = 1 if when_full is PutResult.DROPPED else BATCH

    def __len__(self) -> int:
        return len(self.items) + self._inner

    def offer(self, event: Item, type: str, key: str) -> PutResult:
        outcome = TAKEN
        if len(self.items) + self._inner >= self._maxsize:
            outcome = self._when_full
            if outcome is PutResult.REFUSED:
                return outcome
            if outcome is PutResult.DROPPED and not self._drop_oldest():
                outcome = TAKEN
        self.items.append(event)
        if event.__class__ is not bytes:
            self._mixed += 1
        return outcome

    def _drop_oldest(self) -> bool:
        for index, item in enumerate(self.items):
            if not _is_notice(item):
                self._mixed -= type(item) is not bytes
                del self.items[index]
                return True
        return False

    def admit(self, event: Item, type: str, key: str) -> PutResult:
        self.items.append(event)
        self._mixed += event.__class__ is not bytes
        return TAKEN

    def extend(self, events: list[Event[Any]]) -> list[PutResult]:
        if self._when_full is PutResult.DROPPED:
            outcomes = [self.offer(event, event.type, event.key) for event in events]
            return [outcome for outcome in outcomes if outcome is not TAKEN]
        self.items.extend(events)
        self._mixed += len(events)
        return []

    def notify(self, notice: Event[Any]) -> None:
        self.items.append(notice)
        self._mixed += 1

    def put_batch(self, batch: LazyBatch) -> None:
        """Admit all events of a batch, which has some. Not to be used with "drop_oldest"."""
        self.items.append(batch)
        self._inner += batch.left - 1
        self._mixed += 1

    def take(self, max_bytes: int) -> list[Any]:
        items = self.items
        run: list[Any] = list(islice(items, self._most))
        if self._mixed:
            kind = type(run[0])
            if kind is LazyBatch:
                return self._open(run[0])
            run = list(takewhile(lambda item: type(item) is kind, run))
            if kind is not bytes:
                self._mixed -= len(run)
                return self._remove(run)
        if len(run) > 1 and sum(map(len, run)) > max_bytes:
            run = run[: max(1, sum(1 for size in accumulate(map(len, run)) if size <= max_bytes))]
        return self._remove(run)

    def _remove(self, run: list[Any]) -> list[Any]:
        if len(run) == len(self.items):
            self.items.clear()
        else:
            for _ in run:
                self.items.popleft()
        return run

    def _open(self, batch: LazyBatch) -> list[Event[Any]]:
        """Parse the next events of the batch that comes first, a few at once."""
        before = batch.left
        events = batch.take()
        if batch.left:
            self._inner -= before - batch.left
            return events
        self._inner -= before - 1
        self._mixed -= 1
        self.items.popleft()
        if batch.error is not None:
            self._on_error(batch)
        return events

    def clear(self) -> None:
        self.items.clear()
        self._inner = self._mixed = 0


def _is_notice(item: object) -> bool:
    return type(item) is Event and item.type.startswith(RESERVED)


class LatestInbox:
    """One event a (type, key): a newer takes the older's place. Over `maxsize`, the oldest goes."""

    __slots__ = ("_maxsize", "items")

    def __init__(self, maxsize: int) -> None:
        # A plain dict's first key is slow to find after many pops.
        self.items: OrderedDict[object, Item] = OrderedDict()
        """By (type, key); a notice by an object that nothing else equals."""
        self._maxsize = maxsize

    def __len__(self) -> int:
        return len(self.items)

    def offer(self, event: Item, type: str, key: str) -> PutResult:
        if (type, key) in self.items or len(self.items) < self._maxsize:
            return self.admit(event, type, key)
        has_dropped = self._drop_oldest()
        self.items[type, key] = event
        return PutResult.DROPPED if has_dropped else TAKEN

    def _drop_oldest(self) -> bool:
        for name in self.items:
            if isinstance(name, tuple):
                del self.items[name]
                return True
        return False

    def admit(self, event: Item, type: str, key: str) -> PutResult:
        outcome = PutResult.CONFLATED if (type, key) in self.items else TAKEN
        self.items[type, key] = event
        return outcome

    def extend(self, events: list[Event[Any]]) -> list[PutResult]:
        outcomes = [self.offer(event, event.type, event.key) for event in events]
        return [outcome for outcome in outcomes if outcome is not TAKEN]

    def notify(self, notice: Event[Any]) -> None:
        self.items[object()] = notice

    def take(self, max_bytes: int) -> list[Any]:
        return [self.items.popitem(last=False)[1]] if self.items else []

    def clear(self) -> None:
        self.items.clear()


def make_inbox(overflow: Overflow, maxsize: int, on_error: Callable[[LazyBatch], None]) -> Inbox:
    """The inbox for a policy."""
    if overflow == "latest":
        return LatestInbox(maxsize)
    full = {"catch_up": PutResult.REFUSED, "block": TAKEN, "drop_oldest": PutResult.DROPPED}
    return FifoInbox(maxsize, full[overflow], on_error)
