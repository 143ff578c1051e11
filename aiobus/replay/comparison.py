"""What `what_if` says: the decisions then and now, and what else a person has to know of them.

Pure. Owns how decisions are compared, and the texts.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from aiobus.event import Event
from aiobus.replay.report import compare, parse_paths

__all__ = [
    "ChangedDecision",
    "Decision",
    "Raised",
    "WhatIfReport",
    "compared",
    "paths_of_data",
    "said_time",
]


class Decision(NamedTuple):
    """What a strategy has published."""

    id: str
    time: float
    """Unix seconds; in a replay, of its clock."""
    data: Any


class ChangedDecision(NamedTuple):
    """The first decision that is another one."""

    type: str
    key: str
    number: int
    """Which decision of this type and key it is, from 1."""
    then: Decision | None
    """None: nothing was decided any more."""
    now: Decision | None
    fields: tuple[str, ...] = ()
    """What of the data differs, if both are there: `data.price`."""
    suspects: tuple[str, ...] = ()
    """What may have made the difference beside the strategy and the broker: clocks of now and other
    calls with another result in each run, which either has made. It may have had no part.
    """


@dataclass(slots=True)
class Raised:
    """Code that raised in the replay: the first time, and how often."""

    bus: str
    """Of whose handlers; "" for other code: a task or a callback."""
    place: str
    """The handler or the task; or what the loop says of a callback."""
    error: str
    where: str
    """File and line; "" if they are not known."""
    event: str
    """The id of the event that was handled, the first time."""
    count: int = 1

    def __str__(self) -> str:
        times = "once" if self.count == 1 else f"{self.count:,} times"
        first = f", first on {self.event}" if self.event else ""
        where = f" at {self.where}" if self.where else ""
        whose = self.bus or "code outside of handlers"
        return f"{whose} raised {times} in {self.place}: {self.error}{where}{first}"


@dataclass(frozen=True, slots=True)
class WhatIfReport:
    """What `what_if` found. `bool(report)` is true if every recorded decision was made again, and
    no other, and nothing raised. As a string, a report for a person.
    """

    name: str
    """The bus whose decisions are compared."""
    then: Mapping[tuple[str, str], int]
    """How many decisions were recorded, by type and key."""
    now: Mapping[tuple[str, str], int]
    """How many the strategy has made in the replay."""
    agreed: Mapping[tuple[str, str], int]
    """How many of these are equal, up to the first that differs."""
    difference: ChangedDecision | None
    """The earliest difference; None if all decisions are equal, in number and order."""
    played: int
    """Recorded events that were played."""
    left_out: Mapping[str, int]
    """Recorded events that were not, by source: of those that were replaced, and what followed."""
    gaps: int
    """Gaps of the recording: of what was missed there nothing is known."""
    failures: tuple[Raised, ...]
    """What raised in the replay, each kind once. The log has each call."""
    rules: str
    """What the broker says of its rules of price and latency; that there is no broker."""
    answers: Mapping[str, tuple[int, int]]
    """By type, how many events the replaced sources published then, and the broker now."""
    events: tuple[Event[Any], ...]
    """What the strategy and the broker have published now, in order: the new fills among it."""
    notes: tuple[str, ...]
    """What may be the reason of a difference beside the strategy and the broker, in sentences."""
    written: tuple[str, ...]
    """The first ordinary files that were opened for writing."""

    @property
    def failed(self) -> int:
        """How often a handler, a task or a callback raised."""
        return sum(each.count for each in self.failures)

    def __bool__(self) -> bool:
        return self.difference is None and not self.failures

    def __str__(self) -> str:
        left = ", ".join(f"{count:,} of {name}" for name, count in sorted(self.left_out.items()))
        lines = [
            f"{self.played:,} recorded events played, left out: {left or 'none'}",
            self.rules,
        ]
        lines += [
            f"answers {type}: {then:,} then, {now:,} now"
            for type, (then, now) in sorted(self.answers.items())
        ]
        if self.gaps:
            lines.append(f"gaps in the recording: {self.gaps}")
        lines += [f"! {note}" for note in (*map(str, self.failures), *self.notes)]
        if self.written:
            lines.append(f"opened for writing: {', '.join(self.written)}")
        for type, key in sorted({*self.then, *self.now}):
            place = type, key
            counts = self.then.get(place, 0), self.now.get(place, 0), self.agreed.get(place, 0)
            lines.append(
                "{} {}: {:,} then, {:,} now, the first {:,} equal".format(type, key, *counts)
            )
        if (found := self.difference) is None:
            but = ", but code raised, see above" if self.failures else ""
            return "\n".join([*lines, f"no difference{but}"])
        lines.append(f"first difference: {found.type} {found.key}, number {found.number:,}")
        lines += [f"  then {_said(found.then)}", f"  now  {_said(found.now)}"]
        if found.fields:
            lines.append(f"  differs in: {', '.join(found.fields)}")
        return "\n".join([*lines, *(f"  suspect: {suspect}" for suspect in found.suspects)])


def _said(decision: Decision | None) -> str:
    if decision is None:
        return "nothing"
    data = orjson.dumps(decision.data).decode()
    return f"{data} at {said_time(decision.time)}, {decision.id}"


def said_time(time: float) -> str:
    """Unix seconds, for a person."""
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S.%f} UTC"


def paths_of_data(ignore: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """What is not compared, as `verify` takes it: "data.id", "data.legs.*.id". Raises ValueError
    for what is no data, and TypeError if it is no collection of texts.
    """
    paths = parse_paths(ignore)
    if any(path[0] != "data" for path in paths):
        raise ValueError(f"ignore={ignore!r}: nothing but data is compared, such as ('data.id',)")
    return paths


def compared(
    then: Mapping[tuple[str, str], list[Decision]],
    now: Mapping[tuple[str, str], list[Decision]],
    ignore: Collection[tuple[str, ...]],
) -> tuple[dict[tuple[str, str], int], ChangedDecision | None]:
    """How many decisions are equal, by type and key, and the earliest difference. Data is compared
    as `verify` does it: 1, 1.0 and true differ.
    """
    agreed: dict[tuple[str, str], int] = {}
    found: list[tuple[float, ChangedDecision]] = []
    for place in sorted({*then, *now}):
        one, other = then.get(place, []), now.get(place, [])
        for number in range(max(len(one), len(other))):
            pair = [each[number] if number < len(each) else None for each in (one, other)]
            before, after = pair
            fields: tuple[str, ...] = ()
            suspects: tuple[str, ...] = ()
            if before is not None and after is not None:
                result = compare(_row(place, before), _row(place, after), ignore)
                fields, suspects = result.fields, result.suspects
                if not fields:
                    continue
            when = min(each.time for each in pair if each is not None)
            change = ChangedDecision(*place, number + 1, before, after, fields, suspects)
            found.append((when, change))
            agreed[place] = number
            break
        else:
            agreed[place] = len(one)
    return agreed, min(found, key=lambda each: each[0])[1] if found else None


def _row(place: tuple[str, str], decision: Decision) -> bytes:
    """A decision as the row of an output, without what is not compared."""
    return orjson.dumps([0, 0, *place, decision.data, ""])
