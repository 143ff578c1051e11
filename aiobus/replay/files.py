"""Several journals as if they were one: an event may be in more than one of them.

Owns what counts as the same event, and what is said of one that is in none. Must not know how a
journal is looked up.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Self

import orjson

from aiobus.event import Event, event_id, parse_id
from aiobus.journal.lookup import Lookup, Span

__all__ = ["Copy", "Files", "Paths"]

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class Copy(NamedTuple):
    """An event, and what the files have of it."""

    event: Event[Any]
    path: str
    """The file in which it was found."""
    differs: list[str]
    """A sentence for each other file that says something else of it."""


class Files:
    """Several journals as if they were one: an event may be in more than one of them, and its cause
    in another. A file that is given twice counts once. Use it as a context manager. Raises
    ValueError without a path, JournalError and JournalCorrupt.
    """

    def __init__(self, paths: Paths) -> None:
        several = [paths] if isinstance(paths, str | os.PathLike) else paths
        names = {os.path.realpath(path): os.fspath(path) for path in reversed([*several])}
        self.paths = [*names.values()][::-1]
        if not self.paths:
            raise ValueError("no file: give the path of a journal, or several")
        self._stack = ExitStack()
        self.journals: list[Lookup] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.journals = [stack.enter_context(Lookup(path)) for path in self.paths]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def find(self, id: str) -> Copy | None:
        """The event with this id, of the first file that has it. Raises ValueError for what is no
        id.
        """
        place = parse_id(id)
        found = [(event, each.path) for each in self.journals if (event := each.find(*place))]
        return _copy(found) if found else None

    def effects(self, id: str, limit: int) -> tuple[int, list[Copy]]:
        """How many events name this one as their cause (of several files: at least), and the first
        `limit` of them, by time.
        """
        place = parse_id(id)
        return self._merged([each.effects(place, limit) for each in self.journals], limit)

    def check_effects(self, causes: Sequence[Event[Any]]) -> None:
        """Raises JournalCorrupt if a file has an effect of one of these, but not in its index."""
        for journal in self.journals:
            journal.check_effects(causes)

    def _merged(
        self, found: Sequence[tuple[int, list[Event[Any]]]], limit: int
    ) -> tuple[int, list[Copy]]:
        """What each file has of something, as if it was one file."""
        several: dict[str, tuple[Event[Any], str]] = {}
        for journal, (_, events) in zip(self.journals, found, strict=True):
            for event in events:
                several.setdefault(event.id, (event, journal.path))
        first = sorted(several.values(), key=lambda each: each[0].timestamp)[:limit]
        count = max(len(several), *(count for count, _ in found))
        return count, [self._compared(*each) for each in first]

    def _compared(self, event: Event[Any], path: str) -> Copy:
        """What other files have of an event."""
        place = event.source, event.epoch, event.seq
        others = [
            (other, each.path)
            for each in self.journals
            if each.path != path and (other := each.find(*place))
        ]
        return _copy([(event, path), *others])

    def within(
        self, span: Span, type: str | None, key: str | None, limit: int
    ) -> tuple[int, list[Copy]]:
        """How many such events there are in a span (of several files: at least), and the first
        `limit` of them.
        """
        found = [each.within(span, type, key, limit) for each in self.journals]
        return self._merged(found, limit)

    def nearest(self, spans: Sequence[Span], type: str | None, key: str | None) -> list[Event[Any]]:
        """The nearest such events around these spans, the nearest first, at most two."""
        away: dict[str, tuple[float, Event[Any]]] = {}
        for journal in self.journals:
            for begin, end in spans:
                for event in journal.nearest((begin, end), type, key):
                    far = max(begin - event.timestamp, event.timestamp - end)
                    known = away.get(event.id)
                    if known is None or far < known[0]:
                        away[event.id] = far, event
        return [event for _, event in sorted(away.values(), key=lambda each: each[0])[:2]]

    def why_absent(self, id: str) -> str:
        """Why no file has the event with this id, as far as can be told: a sentence for each.
        Raises JournalCorrupt if one has it, but not in its index.
        """
        source, epoch, seq = parse_id(id)
        said = []
        for journal in self.journals:
            journal.check_absent(source, epoch, seq)
            first, last, removed, others = journal.reach(source, epoch)
            path, start = journal.path, _start(source, epoch)
            if seq <= removed:
                text = f"keep= has removed the events of {start} up to {removed} from {path}"
            elif not first:
                text = f"{path} has no event of {start}: that was not recorded"
                if others:
                    text += f", or it is another start of this bus than {', '.join(others)}"
            elif seq < first:
                text = f"{path} has events of {start} from {first} on only"
            elif seq > last:
                text = f"{path} has events of {start} up to {last} only"
            else:
                text = (
                    f"{path} has events of {start} before and after it, so it was not among the"
                    " types and keys that are recorded, or it was lost, which an aiobus.gap in the"
                    " file says"
                )
            said.append(text)
        return "; ".join(said)


def _start(source: str, epoch: int) -> str:
    """A source as the ids of its events say it."""
    return event_id(source, epoch, 1).removesuffix(".1")


def _copy(found: Sequence[tuple[Event[Any], str]]) -> Copy:
    """The first of the copies of an event, and how the others differ from it."""
    (event, path), *others = found
    differs = []
    for other, elsewhere in others:
        here, there = _said(event), _said(other)
        if fields := [name for name in here if here[name] != there[name]]:
            differs.append(f"{elsewhere} has another {', '.join(fields)} for it")
    return Copy(event, path, differs)


def _said(event: Event[Any]) -> dict[str, object]:
    """All that an event says, but its identity; data so that True, 1 and 1.0 differ."""
    data = orjson.dumps(event.data, option=orjson.OPT_SORT_KEYS)
    return {
        "type": event.type,
        "key": event.key,
        "timestamp": event.timestamp,
        "cause": event.cause,
        "data": data,
    }
