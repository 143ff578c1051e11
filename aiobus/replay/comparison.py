"""What `what_if` says: the decisions then and now, and what else a person has to know of them.

Pure. Owns how decisions are compared, and the texts.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from aiobus.event import Event

__all__ = ["Comparison", "Decision", "Difference", "Failure", "Paths", "compared", "said_time"]


class Decision(NamedTuple):
    """What a strategy has published."""

    id: str
    time: float
    """Unix seconds; in a replay, of its clock."""
    data: Any


class Difference(NamedTuple):
    """The first decision that is another one."""

    type: str
    key: str
    number: int
    """Which decision of this type and key it is, from 1."""
    then: Decision | None
    """None: nothing was decided any more."""
    now: Decision | None


@dataclass(slots=True)
class Failure:
    """Code that raised in the replay: the first time, and how often."""

    bus: str
    """Of whose handlers; "" for other code: a task or a callback."""
    place: str
    """The handler, or what the loop says of the other code."""
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
        whose = f"{self.bus} raised {times} in {self.place}" if self.bus else ""
        return f"{whose or f'code outside of handlers raised {times}'}: {self.error}{where}{first}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `what_if` found. As a string, a report for a person."""

    name: str
    """The bus whose decisions are compared."""
    then: Mapping[tuple[str, str], int]
    """How many decisions were recorded, by type and key."""
    now: Mapping[tuple[str, str], int]
    """How many the strategy has made in the replay."""
    agreed: Mapping[tuple[str, str], int]
    """How many of these are equal, up to the first that differs."""
    difference: Difference | None
    """The earliest difference; None if all decisions are equal, in number and order."""
    played: int
    """Recorded events that were played."""
    left_out: Mapping[str, int]
    """Recorded events that were not, by source: of those that were replaced, and what followed."""
    gaps: int
    """Gaps of the recording: of what was missed there nothing is known."""
    failures: tuple[Failure, ...]
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

    @property
    def is_same(self) -> bool:
        """True if every recorded decision was made again, and no other, and nothing raised but
        handlers of the strategy: decisions beside a broker that fails say nothing.
        """
        return self.difference is None and all(each.bus == self.name for each in self.failures)

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
        return "\n".join([*lines, f"  then {_said(found.then)}", f"  now  {_said(found.now)}"])


def _said(decision: Decision | None) -> str:
    if decision is None:
        return "nothing"
    data = orjson.dumps(decision.data).decode()
    return f"{data} at {said_time(decision.time)}, {decision.id}"


def said_time(time: float) -> str:
    """Unix seconds, for a person."""
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S.%f} UTC"


class Paths:
    """Data without what is not compared. Raises ValueError for what is no path of data."""

    def __init__(self, ignore: Collection[str]) -> None:
        if isinstance(ignore, str) or not all(each.startswith("data.") for each in ignore):
            raise ValueError(f"ignore={ignore!r}: paths such as ('data.order',) are needed")
        self._paths = [each.split(".")[1:] for each in ignore]

    def left(self, data: Any) -> Any:
        """What is compared of `data`, which is not altered."""
        for path in self._paths:
            data = _dropped(data, path)
        return data


def _dropped(data: Any, path: list[str]) -> Any:
    name, *rest = path
    if not isinstance(data, dict) or name not in data:
        return data
    if rest:
        return {**data, name: _dropped(data[name], rest)}
    return {each: value for each, value in data.items() if each != name}


def compared(
    then: Mapping[tuple[str, str], list[Decision]],
    now: Mapping[tuple[str, str], list[Decision]],
    without: Paths,
) -> tuple[dict[tuple[str, str], int], Difference | None]:
    """How many decisions are equal, by type and key, and the earliest difference."""
    agreed: dict[tuple[str, str], int] = {}
    found: list[tuple[float, Difference]] = []
    for place in sorted({*then, *now}):
        one, other = then.get(place, []), now.get(place, [])
        same = 0
        while same < min(len(one), len(other)) and without.left(one[same].data) == without.left(
            other[same].data
        ):
            same += 1
        agreed[place] = same
        if same < max(len(one), len(other)):
            pair = [each[same] if same < len(each) else None for each in (one, other)]
            when = min(each.time for each in pair if each is not None)
            found.append((when, Difference(*place, same + 1, pair[0], pair[1])))
    return agreed, min(found, key=lambda each: each[0])[1] if found else None
