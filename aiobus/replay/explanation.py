"""What `explain` says of an event: as data, and as text for a person.

Owns the words. Pure: must not know where the events come from.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from aiobus.event import Event
from aiobus.journal.export import event_fields
from aiobus.replay.moments import Zone, duration

__all__ = ["Explanation", "Step", "printable"]

DATA_WIDTH = 120
"""Characters of data in a line of text."""
MOST_INDENTED = 24
"""Levels of effects that are indented; of deeper ones the level is written."""
NO_CAUSE = "no cause"
"""In place of a hop: the event names none, so what led to it is not known. Other times count from
it.
"""


@dataclass(slots=True)
class Step:
    """One event of an explanation, and how it came about."""

    event: Event[Any]
    path: str
    """The file in which it was found."""
    role: Literal["cause", "event", "effect"]
    """"event" is the one that is explained."""
    depth: int
    """How many hops from the event that is explained; below 0 for a cause."""
    hop: float | None
    """Seconds since its cause; None for the first. Times are those of the events, which a publisher
    may set: below 0 if the cause is later.
    """
    total: float
    """Seconds since the first event of the explanation."""
    more: int = 0
    """How many of its effects are not in the explanation. Of several files: at least so many."""
    differs: list[str] = field(default_factory=list)
    """A sentence for each other file that has other content under this id."""
    clocks: str = ""
    """By how much the clock of its source was ahead of that of its cause's, and what the hop is
    without that; "" if the files do not say that they differed.
    """


@dataclass(slots=True)
class Explanation:
    """The causes and effects of an event. `str` of it is a table for a person."""

    steps: list[Step]
    """The causes, the first of them first; the event; then its effects, each followed by its own.
    """
    beyond: str
    """If the first event names a cause: why that is not shown; "" if it names none."""
    problems: list[str]
    """What else is wrong or left out, a sentence each."""
    alike: list[Event[Any]]
    """Asked for a time: the next such events at that time, without the one that is explained."""
    count: int
    """Asked for a time: how many such events there are (of several files: at least); else 1."""
    paths: list[str]
    zone: Zone

    @property
    def event(self) -> Event[Any]:
        """The event that is explained."""
        return next(step.event for step in self.steps if step.role == "event")

    @property
    def chain(self) -> list[Step]:
        """The event that is explained behind its causes, the first of them first."""
        return [step for step in self.steps if step.role != "effect"]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; times are Unix seconds, durations seconds."""
        return {
            "id": self.event.id,
            "total": self.chain[-1].total,
            "steps": [_plain(step) for step in self.steps],
            "beyond": self.beyond,
            "problems": self.problems,
            "alike": [event.id for event in self.alike],
            "count": self.count,
            "files": self.paths,
            "zone": self.zone.name,
        }

    def __str__(self) -> str:
        return "\n".join(printable(line) for line in self._lines())

    def _lines(self) -> Iterator[str]:
        event, zone = self.event, self.zone
        day = zone.day(event.timestamp)
        is_one_day = all(zone.day(step.event.timestamp) == day for step in self.steps)
        form = "%H:%M:%S.%f" if is_one_day else "%Y-%m-%d %H:%M:%S.%f %z"
        yield f"{event.type} {event.id} explained, {day}"
        if self.count > 1:
            others = ", ".join(
                f"{each.id} at {zone.local(each.timestamp):%H:%M:%S.%f}" for each in self.alike
            )
            least = "at least " if len(self.paths) > 1 else ""
            yield f"the first of {least}{self.count:,} at that time; the next: {others}"
        yield ""
        width = len(f"{zone.local(event.timestamp):{form}}")
        yield f"  {'time':{width}} {'hop':>12} {'total':>12}  event"
        if self.beyond:
            yield f"  {'?':{width}} {'':>12} {'':>12}  {self.beyond}"
        for step in self.steps:
            at = f"{zone.local(step.event.timestamp):{form}}"
            hop = "" if step.event.cause else NO_CAUSE
            hop = hop if step.hop is None else duration(step.hop)
            total = "" if step.hop is None else duration(step.total)
            mark = ">" if step.role == "event" else " "
            indent = _indent(step.depth)
            yield f"{mark} {at} {hop:>12} {total:>12}  {indent}{self._said(step)}"
            blank = f"  {'':{width}} {'':>12} {'':>12}  {_indent(step.depth + 1)}"
            if step.clocks:
                yield f"{blank}! {step.clocks}"
            for sentence in step.differs:
                yield f"{blank}! {sentence}"
            if step.more:
                least = "at least " if len(self.paths) > 1 else ""
                yield f"{blank}... {least}{step.more:,} more effects: a higher most= tells them"
        for problem in self.problems:
            yield f"! {problem}"

    def _said(self, step: Step) -> str:
        event = step.event
        data = orjson.dumps(event.data).decode()
        if len(data) > DATA_WIDTH:
            data = f"{data[:DATA_WIDTH]}... ({len(data):,} characters)"
        parts = [event.type, event.key, event.id, data]
        if len(self.paths) > 1:
            parts.append(f"[{step.path}]")
        return " ".join(part for part in parts if part)


def _indent(depth: int) -> str:
    return "  " * depth if depth <= MOST_INDENTED else "  " * MOST_INDENTED + f"({depth}) "


def _plain(step: Step) -> dict[str, Any]:
    return {
        "role": step.role,
        "depth": step.depth,
        "hop": step.hop,
        "total": step.total,
        **event_fields(step.event),
        "file": step.path,
        "more": step.more,
        "differs": step.differs,
        "clocks": step.clocks,
    }


def printable(text: str) -> str:
    """A line in which nothing can move the cursor of a terminal."""
    return text if text.isprintable() else ascii(text)[1:-1]
