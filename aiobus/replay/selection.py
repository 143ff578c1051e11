"""Which events of a recording are played, and in which order they come: that of the file.

Owns that what is damaged or was removed is raised, each time, and never left out in silence. Must
not know what an event is played to, nor when.
"""

import math
import os
from collections.abc import Iterable
from typing import NamedTuple

from aiobus.errors import JournalError
from aiobus.event import parse_id
from aiobus.journal.format import tape_of
from aiobus.journal.reader import Journal
from aiobus.journal.scan import Found
from aiobus.limits import EARLIEST, LATEST, way_out
from aiobus.options import Keys, Types
from aiobus.query import Query
from aiobus.rows import Source
from aiobus.system import GAP

__all__ = ["Bound", "Reel", "Selection"]


class Bound(NamedTuple):
    """A place in a recording: an offset, or else a time in Unix seconds."""

    offset: int | None = None
    time: float | None = None

    @classmethod
    def of(cls, name: str, value: float | None) -> "Bound":
        """What a user gave as `name`. A whole number below 100,000,000 is an offset. Raises
        ValueError for what is neither an offset nor a time.
        """
        if value is None:
            return cls()
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and isinstance(value, int) and 1 <= value < EARLIEST:
            return cls(offset=value)
        if is_number and EARLIEST <= value <= LATEST:
            return cls(time=float(value))
        raise ValueError(
            f"{name}={value!r}: {way_out(value)}the offset of an event from 1 on, as `python -m"
            " aiobus log` shows it, or a time in seconds since 1970, such as"
            " datetime.fromisoformat('2026-11-29T09:30+01:00').timestamp(), is needed"
        )

    def is_after(self, found: Found) -> bool:
        """True if it comes after an event."""
        if self.offset is not None:
            return found[0] < self.offset
        return self.time is not None and found[3] < self.time


class Selection:
    """The recording at `path`, and the events of it that are wanted. Raises ValueError and
    TypeError for wrong arguments; the file is not looked at.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        types: Types | None = None,
        sources: str | Iterable[str] | None = None,
        key: Keys = None,
        start: float | None = None,
        end: float | None = None,
        without: Iterable[str] = (),
    ) -> None:
        self.path = os.fspath(path)
        self.query = Query.of("*" if types is None else types, key)
        if self.query.reserved:
            reserved = ", ".join(sorted(self.query.reserved))
            raise ValueError(
                f"types={types!r}: {reserved} told of the recording bus, and is not played;"
                f" Journal({self.path!r}).read() has it"
            )
        names = [sources] if isinstance(sources, str) else sources
        self.sources = None if names is None else frozenset(names)
        self.start, self.end = Bound.of("start", start), Bound.of("end", end)
        self.without = frozenset(map(parse_id, without))
        """Source, epoch and seq of the events that are left out."""

    def wants(self, source: str, type: str, key: str) -> bool:
        """True for an event that is wanted."""
        return (self.sources is None or source in self.sources) and self.query.matches(type, key)


class Reel:
    """The events of a selection, one after the other. Raises JournalError if there is no file that
    can be read, and ValueError if it has nothing of a source, type or key that is named.
    """

    def __init__(self, selection: Selection) -> None:
        self.gaps = 0
        """How many gaps of the recorder came so far, in what is selected of its beginning and end.
        """
        self.path = selection.path
        self._journal = Journal(selection.path)
        try:
            self._check_names(selection)
        except BaseException:
            self._journal.close()
            raise
        self.end = self._journal.last_offset()
        """The last offset in the file, when it was opened."""
        self._end, self._without = selection.end, selection.without
        start, end = selection.start, selection.end
        self._chunks = self._journal.columns(
            lambda source, type, key: type == GAP or selection.wants(source, type, key),
            # Without a time the beginning of the file is asked for, which `keep=` may have removed.
            None if start.time is not None else start.offset or 1,
            -math.inf if start.time is None else start.time,
            math.inf if end.time is None else end.time,
        )
        self._coming: list[Found] = []
        """What was read, newest first."""
        self._is_over = False
        self._damage: JournalError | None = None

    def _check_names(self, selection: Selection) -> None:
        names = {name for name, _ in self.sources}
        if missing := sorted((selection.sources or names) - names):
            known = sorted(name for name in names if not name.startswith(tape_of("")))
            raise ValueError(
                f"nothing of {', '.join(missing)} was recorded;"
                f" the sources of {self.path} are {', '.join(known)}"
            )
        query = selection.query
        named = [*query.types, *query.keys]
        if missing := [each for each in named if not self._journal.may_have(each)]:
            raise ValueError(
                f"no event of {', '.join(missing)} was recorded in {self.path};"
                f" `aiobus log {self.path}` prints what was"
            )

    @property
    def sources(self) -> set[Source]:
        """The sources in the file, and those that its causes name."""
        return set(self._journal.sources())

    def peek(self) -> Found | None:
        """The next event; None at the end. Raises JournalCorrupt behind the last event that is
        whole, and JournalRemoved, and from then on raises it again.
        """
        coming = self._coming
        while coming or self._read():
            found = coming[-1]
            if self._end.offset is not None and not self._end.is_after(found):
                self._is_over = True
                coming.clear()
            elif found[1].type == GAP:
                self.gaps += 1
                coming.pop()
            elif self._without and (found[1].source, found[1].epoch, found[2]) in self._without:
                coming.pop()
            else:
                return found
        return None

    def take(self) -> Found | None:
        """The same, and the one behind it is the next from then on."""
        found = self.peek()
        if found is not None:
            self._coming.pop()
        return found

    def _read(self) -> bool:
        """Read some more. False at the end."""
        if self._damage is not None:
            raise self._damage
        while not self._coming and not self._is_over:
            try:
                chunk = next(self._chunks, None)
            except JournalError as error:
                self._damage = error
                raise
            self._is_over = chunk is None
            self._coming += reversed(chunk or ())
        return bool(self._coming)

    def close(self) -> None:
        """Read no more."""
        self._is_over = True
        self._coming.clear()
        self._journal.close()
