"""The bounded queue in front of a handler or stream, and what happens when it is full.

Owns the four overflow policies and the order of what waits. Three kinds of things wait: encoded
events of this process, events, and batches of another process, which are parsed when they are
taken. An `Event` of a reserved type is a notice, which tells of the events around it: it is never
conflated, and what comes after it is handed over after it. A subscription to system events alone
has no notices; its system events are rows like others. Pure: a publisher that has to wait does so
elsewhere.
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
    """It was taken, and an older event was thrown away."""
    REFUSED = auto()
    """There was no room; nothing changed."""


TAKEN = PutResult.TAKEN  # an Enum is slow to ask for its members, and each event does


Item = bytes | Event[Any]
"""An encoded event of this process; or an event of another, or a notice."""


class Inbox(Protocol):
    """What a subscription needs of its inbox, whatever the policy."""

    @property
    def items(self) -> Collection[object]:
        """Empty exactly when nothing waits, which costs no call to learn."""
        ...

    def __len__(self) -> int: ...
    def offer(self, event: Item, type: str, key: str) -> PutResult:
        """Put an event in by the rules of the policy."""
        ...

    def admit(self, event: Item, type: str, key: str) -> PutResult:
        """Put an event in even if there is no room: it was asked for, or tells of a gap."""
        ...

    def extend(self, events: list[Event[Any]]) -> list[PutResult]:
        """Put all in, even what the policy would refuse. Returns the outcomes other than TAKEN."""
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
    """First in, first out, and nothing that waits is lost. When full, it refuses ("catch_up") or
    grows ("block", whose publishers wait outside). `on_error` is given each batch whose rows prove
    to be no events.
    """

    __slots__ = ("_inner", "_maxsize", "_mixed", "_on_error", "_refuses", "items")

    def __init__(
        self, maxsize: int, *, refuses: bool, on_error: Callable[[LazyBatch], None]
    ) -> None:
        self.items: deque[Item | LazyBatch] = deque()
        self._maxsize = maxsize
        self._refuses = refuses
        self._on_error = on_error
        self._inner = 0
        """Events that are in the inbox beyond one for each item."""
        self._mixed = 0
        """Items that are no rows."""

    def __len__(self) -> int:
        return len(self.items) + self._inner

    def offer(self, event: Item, type: str, key: str) -> PutResult:
        if len(self.items) + self._inner >= self._maxsize and self._refuses:
            return PutResult.REFUSED
        self.items.append(event)
        if event.__class__ is not bytes:
            self._mixed += 1
        return TAKEN

    def admit(self, event: Item, type: str, key: str) -> PutResult:
        self.items.append(event)
        self._mixed += event.__class__ is not bytes
        return TAKEN

    def extend(self, events: list[Event[Any]]) -> list[PutResult]:
        self.items.extend(events)
        self._mixed += len(events)
        return []

    def put_batch(self, batch: LazyBatch) -> None:
        """Admit all events of a batch, which has some."""
        self.items.append(batch)
        self._inner += batch.left - 1
        self._mixed += 1

    def take(self, max_bytes: int) -> list[Any]:
        items = self.items
        run: list[Any] = list(islice(items, BATCH))
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


class DroppingInbox:
    """Over `maxsize`, the oldest event goes. With `conflates`, a newer event takes the place of an
    older one of its (type, key). Hands out one at a time, since what is taken can no longer go.

    A notice gives way only if more than `maxsize` of them wait and nothing else, and if it has a
    number: a gap has none, and stays.
    """

    __slots__ = (
        "_conflates", "_count", "_first", "_later", "_maxsize", "_newest", "_told", "items",
    )  # fmt: skip

    def __init__(self, maxsize: int, *, conflates: bool) -> None:
        # A plain dict's first key is slow to find after many pops.
        self.items: OrderedDict[object, Item] = OrderedDict()
        """By (type, key), or else by a number; a notice by an object that nothing else equals."""
        self._maxsize = maxsize
        self._conflates = conflates
        self._count = 0
        self._first: deque[Event[Any]] = deque()
        """Notices that come before `items`, which is not empty then. With them in `items`, each
        event that is thrown away would have to be looked for behind them.
        """
        self._told = 0
        """Notices that have a number."""
        self._newest: Event[Any] | None = None
        """The last notice that waits."""
        self._later: set[object] = set()
        """If it conflates, the names of the events behind that notice."""

    def __len__(self) -> int:
        return len(self.items) + len(self._first)

    def offer(self, event: Item, type: str, key: str) -> PutResult:
        if self._conflates and (type, key) in self.items:
            return self.admit(event, type, key)
        is_full = len(self.items) + len(self._first) >= self._maxsize
        outcome = PutResult.DROPPED if is_full and self._make_room() else TAKEN
        self.admit(event, type, key)
        return outcome

    def _make_room(self) -> bool:
        """Throw the oldest event away. False if there are only notices, and not too many."""
        items, first = self.items, self._first
        while items:
            name, item = items.popitem(last=False)
            if name.__class__ is not object:
                self._later.discard(name)
                return True
            first.append(item)  # type: ignore[arg-type]  # it has the name of a notice
        if self._told <= self._maxsize:
            return False
        self._told -= 1
        del first[next(place for place, notice in enumerate(first) if notice.seq)]
        return True

    def admit(self, event: Item, type: str, key: str) -> PutResult:
        if event.__class__ is not bytes and type.startswith(RESERVED):
            self._notify(event)  # type: ignore[arg-type]  # no row, so an Event
            return TAKEN
        if not self._conflates:
            self._count += 1
            self.items[self._count] = event
            return TAKEN
        name, items = (type, key), self.items
        outcome = PutResult.CONFLATED if name in items else TAKEN
        items[name] = event
        if self._newest is not None and name not in self._later:
            items.move_to_end(name)
            self._later.add(name)
        return outcome

    def _notify(self, notice: Event[Any]) -> None:
        self.items[object()] = self._newest = notice
        self._told += notice.seq > 0
        self._later.clear()

    def extend(self, events: list[Event[Any]]) -> list[PutResult]:
        outcomes = [self.offer(event, event.type, event.key) for event in events]
        return [outcome for outcome in outcomes if outcome is not TAKEN]

    def take(self, max_bytes: int) -> list[Any]:
        item: Any
        if self._first:
            item = self._first.popleft()
        elif self.items:
            name, item = self.items.popitem(last=False)
            if name.__class__ is not object:
                return [item]
        else:
            return []
        self._told -= item.seq > 0
        if item is self._newest:
            self._newest = None
            self._later.clear()
        return [item]

    def clear(self) -> None:
        self.items.clear()
        self._first.clear()
        self._later.clear()
        self._told, self._newest = 0, None


def make_inbox(overflow: Overflow, maxsize: int, on_error: Callable[[LazyBatch], None]) -> Inbox:
    """The inbox for a policy."""
    if overflow in ("latest", "drop_oldest"):
        return DroppingInbox(maxsize, conflates=overflow == "latest")
    return FifoInbox(maxsize, refuses=overflow == "catch_up", on_error=on_error)
