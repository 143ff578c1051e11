"""How long each kind of hop takes over a session: percentiles from the type of a cause to that of
its effect.

Owns the counting. Its memory does not grow with the files: durations are counted in classes that
are 1 % wide, and of recent events alone the time is remembered.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aiobus.event import Event, parse_id
from aiobus.journal.lookup import Lookup
from aiobus.replay.explanation import printable
from aiobus.replay.files import Files, Paths
from aiobus.replay.moments import duration
from aiobus.replay.skews import Skews

__all__ = ["Hop", "Hops", "explain_hops"]

RECENT = 16_384
MOST_KINDS = 1_024
CLASS = math.log(1.01)
LEAST = 1e-9
"""Seconds below which a duration counts as 0."""
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Hop:
    """One kind of hop. Durations are seconds, percentiles exact to 1 %, `least` and `longest`
    exact.
    """

    cause: str
    """The type of the causes."""
    effect: str
    count: int
    least: float
    """Below 0 if an effect has an earlier time than its cause."""
    p50: float
    p90: float
    p99: float
    longest: float

    def to_dict(self) -> dict[str, Any]:
        """Its fields as plain values."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Hops:
    """All kinds of hops, the most frequent first. `str` of it is a table."""

    hops: list[Hop]
    events: int
    """How many events were read; one that is in several files counts in each."""
    without: int
    """Events whose cause is in none of the files, or is not the id of an event."""
    left_out: int
    """Hops of further kinds, of which there are too many to be told."""
    clocks: list[str]
    """A sentence for each clock that was wrong, as far as the files say: the most that it was."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "hops": [hop.to_dict() for hop in self.hops],
            "events": self.events,
            "without": self.without,
            "left_out": self.left_out,
            "clocks": self.clocks,
        }

    def __str__(self) -> str:
        return "\n".join(printable(line) for line in self._lines())

    def _lines(self) -> Iterator[str]:
        heads = ("least", "p50", "p90", "p99", "longest")
        names = [f"{hop.cause} -> {hop.effect}" for hop in self.hops]
        width = max(map(len, [*names, "hop"]))
        yield f"{'hop':{width}} {'count':>9} " + " ".join(f"{head:>11}" for head in heads)
        for name, hop in zip(names, self.hops, strict=True):
            values = (hop.least, hop.p50, hop.p90, hop.p99, hop.longest)
            row = " ".join(f"{duration(value):>11}" for value in values)
            yield f"{name:{width}} {hop.count:>9,} {row}"
        if self.without:
            yield f"{self.without:,} events have a cause that is not in the files"
        if self.left_out:
            yield f"{self.left_out:,} hops are of further kinds"
        for sentence in self.clocks:
            yield f"! {sentence}"


class _Durations:
    """Counts durations in classes."""

    def __init__(self) -> None:
        self.count = 0
        self.least, self.longest = math.inf, -math.inf
        self._classes: dict[float, int] = {}

    def add(self, seconds: float) -> None:
        self.count += 1
        self.least = min(self.least, seconds)
        self.longest = max(self.longest, seconds)
        size, middle = abs(seconds), 0.0
        if size >= LEAST:
            middle = math.copysign(math.exp(round(math.log(size) / CLASS) * CLASS), seconds)
        self._classes[middle] = self._classes.get(middle, 0) + 1

    def percentiles(self) -> list[float]:
        """The durations below or at which so many percent are."""
        found: list[float] = []
        below = 0
        for middle in sorted(self._classes):
            below += self._classes[middle]
            value = self.longest if below == self.count else max(middle, self.least)
            while (
                len(found) < len(PERCENTILES)
                and below * 100 >= PERCENTILES[len(found)] * self.count
            ):
                found.append(value)
        return found


def explain_hops(path: Paths) -> Hops:
    """How long each kind of hop took over a journal, or over several as if they were one: from the
    time of a cause to that of its effect, by their types. Reads and verifies everything: blocks for
    a few seconds per million events, with flat memory. A file may be written meanwhile. Raises
    JournalError for a file that cannot be read, and JournalCorrupt.
    """
    kinds: dict[tuple[str, str], _Durations] = {}
    events = without = left_out = 0
    recent: OrderedDict[str, Moment] = OrderedDict()
    with Files(path) as files:
        for place, journal in enumerate(files.journals):
            for _, event in journal.read():
                events += 1
                recent[event.id] = event.type, event.timestamp
                if len(recent) > RECENT:
                    recent.popitem(last=False)
                if not event.cause or _is_in(files.journals[:place], event):
                    continue
                cause = recent.get(event.cause) or _looked_up(files.journals, event.cause)
                if cause is None:
                    without += 1
                    continue
                type, time = cause
                durations = kinds.get((type, event.type))
                if durations is None:
                    if len(kinds) == MOST_KINDS:
                        left_out += 1
                        continue
                    durations = kinds[type, event.type] = _Durations()
                durations.add(event.timestamp - time)
        skews = Skews(files.journals)
        clocks = [*skews.worst(), *skews.problems]
    hops = [_hop(*kind, durations) for kind, durations in kinds.items()]
    hops.sort(key=lambda hop: (-hop.count, hop.cause, hop.effect))
    return Hops(hops, events, without, left_out, clocks)


Moment = tuple[str, float]
"""The type and time of an event."""


def _looked_up(journals: Sequence[Lookup], id: str) -> Moment | None:
    try:
        place = parse_id(id)
    except ValueError:
        return None
    return next((found for each in journals if (found := each.moment(*place))), None)


def _is_in(journals: Sequence[Lookup], event: Event[Any]) -> bool:
    """True if an event was counted with one of these files."""
    return any(each.moment(event.source, event.epoch, event.seq) for each in journals)


def _hop(cause: str, effect: str, durations: _Durations) -> Hop:
    p50, p90, p99 = durations.percentiles()
    count, least, longest = durations.count, durations.least, durations.longest
    return Hop(str(cause), str(effect), count, least, p50, p90, p99, longest)
