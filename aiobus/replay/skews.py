"""By how much the clocks of two sources differed, as far as a recording says.

Owns what an `aiobus.clock_skew` of a file is worth: its recorder has measured the clock of a peer,
and that holds until it says something else. Nothing is made up: a clock of which a file says
nothing is not known.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiobus import system
from aiobus.event import Event
from aiobus.journal.lookup import Lookup
from aiobus.replay.moments import duration

__all__ = ["Skews"]

MOST = 4_096
"""Of a file. A clock that is well or that is wrong is announced once."""
ALWAYS = (-math.inf, math.inf)


class _Said(NamedTuple):
    time: float
    skew: float
    error: float


class Skews:
    """What journals say of clocks. Reads each once."""

    def __init__(self, journals: Sequence[Lookup]) -> None:
        self.problems: list[str] = []
        self._said: dict[str, dict[str, list[_Said]]] = {}
        """By recorder and by peer, the earliest first."""
        for journal in journals:
            count, found = journal.within(ALWAYS, system.CLOCK_SKEW, None, MOST)
            if count > len(found):
                text = f"{journal.path} says {count:,} times how far a clock is wrong"
                self.problems.append(f"{text}: the first {len(found):,} are read")
            for event in found:
                self._read(event)
        for of in self._said.values():
            for said in of.values():
                said.sort()

    def _read(self, event: Event[Any]) -> None:
        match event.data:
            case {"name": str(name), "skew": float() | int() as skew, "error": float() as error}:
                said = _Said(event.timestamp, float(skew), error)
                self._said.setdefault(event.source, {}).setdefault(name, []).append(said)

    def between(self, cause: Event[Any], effect: Event[Any]) -> str:
        """A sentence on the clocks of two events, of which one has caused the other; "" if no file
        has measured either, or both are of one source.
        """
        if cause.source == effect.source:
            return ""
        for recorder in self._said:
            one, other = (self._at(recorder, each) for each in (cause, effect))
            if one is not None and other is not None:
                return _both(recorder, cause, effect, one, other)
            for event, said, unknown in ((cause, one, effect), (effect, other, cause)):
                if said is not None and said.skew:
                    text = _differs(event.source, said.skew, said.error, recorder)
                    return f"{text}; of that of {unknown.source} nothing is recorded"
        return ""

    def worst(self) -> list[str]:
        """A sentence for each clock that was measured to be wrong at any time."""
        found = []
        for recorder, of in sorted(self._said.items()):
            for name, said in sorted(of.items()):
                most = max(said, key=lambda each: abs(each.skew))
                text = _differs(name, most.skew, most.error, recorder)
                found.append(f"{text}: hops from and to its events may be wrong by as much")
        return found

    def _at(self, recorder: str, event: Event[Any]) -> _Said | None:
        """The last that a recorder has said of the clock of an event; its own is right."""
        if event.source == recorder:
            return _Said(event.timestamp, 0.0, 0.0)
        # The event has its time from the clock that is wrong.
        said = self._said[recorder].get(event.source, [])
        known = [each for each in said if each.time <= event.timestamp - each.skew]
        return known[-1] if known else None


def _both(recorder: str, cause: Event[Any], effect: Event[Any], one: _Said, other: _Said) -> str:
    ahead, error = other.skew - one.skew, one.error + other.error
    if abs(ahead) <= error:
        return ""
    hop = effect.timestamp - cause.timestamp
    text = _differs(effect.source, ahead, error, cause.source)
    by = "" if recorder in (cause.source, effect.source) else f", as {recorder} has measured"
    told = f"{text}{by}: without that the hop is {duration(hop - ahead)}"
    is_why = hop < 0 <= hop - ahead + error
    return f"{told}, and it is below 0 for no other reason" if is_why else told


def _differs(source: str, ahead: float, error: float, other: str) -> str:
    where = "ahead of" if ahead > 0 else "behind"
    size = f"{duration(abs(ahead))} {where} that of {other}"
    return f"the clock of {source} was {size}, right to {duration(error)}"
