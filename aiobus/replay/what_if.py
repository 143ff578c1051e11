"""What would a strategy have decided with another gateway, or another line of code?

Owns which recorded events would not have happened so, and the comparison of decisions. A decision
is an event that the strategy publishes.
"""

import inspect
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from aiobus.bus import AsyncEventBus
from aiobus.delivery import Consumer
from aiobus.event import event_id, parse_id
from aiobus.options import Types
from aiobus.publisher import Sink
from aiobus.query import Query
from aiobus.replay.selection import Reel, Selection
from aiobus.replay.session import Bot, acting, play_out
from aiobus.replay.transport import Replay
from aiobus.virtual_run import run_virtual

__all__ = ["Comparison", "Decision", "Difference", "what_if"]

EVERY = Query.of("*")
UNSTATED = "its rules of price and latency are not stated: give it a docstring"


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


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `what_if` found. As a string, a report for a person."""

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
    failed: int
    """Calls of handlers that raised in the replay. The log has each."""
    rules: str
    """What the broker says of its rules of price and latency; that there is no broker."""

    @property
    def is_same(self) -> bool:
        """True if every recorded decision was made again, and no other."""
        return self.difference is None

    def __str__(self) -> str:
        left = ", ".join(f"{count:,} of {name}" for name, count in sorted(self.left_out.items()))
        lines = [
            f"{self.played:,} recorded events played, left out: {left or 'none'}",
            self.rules,
        ]
        if self.gaps or self.failed:
            lines.append(f"gaps in the recording: {self.gaps}, handlers that raised: {self.failed}")
        for type, key in sorted({*self.then, *self.now}):
            place = type, key
            counts = self.then.get(place, 0), self.now.get(place, 0), self.agreed.get(place, 0)
            lines.append(
                "{} {}: {:,} then, {:,} now, the first {:,} equal".format(type, key, *counts)
            )
        if (found := self.difference) is None:
            return "\n".join([*lines, "no difference"])
        lines.append(f"first difference: {found.type} {found.key}, number {found.number:,}")
        return "\n".join([*lines, f"  then {_said(found.then)}", f"  now  {_said(found.now)}"])


def _said(decision: Decision | None) -> str:
    if decision is None:
        return "nothing"
    when = datetime.fromtimestamp(decision.time, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    return f"{orjson.dumps(decision.data).decode()} at {when} UTC, {decision.id}"


def what_if(
    path: str | os.PathLike[str],
    strategy: Bot,
    *,
    broker: Bot | None = None,
    replaces: str | Iterable[str] = ("gateway",),
    name: str = "strategy",
    types: Types = "*",
    ignore: Collection[str] = (),
) -> Comparison:
    """Run `strategy`, a coroutine function of a bus, through the recording at `path`, and compare
    what it publishes with what the recorded bus `name` published. Blocks; nothing leaves the
    process (`run_virtual`).

    Played is what others have published, at its time. Left out are the events of `replaces` and of
    `name`, and what followed from them: each event whose chain of causes leads to one of these, as
    it would not have happened so. An event that depended on them without naming its cause is played
    as it was recorded.

    `broker`, a coroutine function of a bus, takes the place of the first of `replaces`: it gets
    what is played and what the strategy publishes, and answers by its own rules of price and
    latency (`asyncio.sleep`). Its docstring is to state them: the result quotes it. Without one, no
    bus answers.

    Compared is, for each type and key, the data of the decisions in their order: no ids, no times
    and no causes. `types` selects the types; `ignore` has paths that are not compared, such as
    "data.order". Virtual time does not repeat the order in which a real loop ran tasks at one
    moment, so decisions that hang on a race may differ; `verify` is what repeats it.

    Raises ValueError if a name is not in the recording, if `name` has decided nothing there, if
    nothing is left to play, or for wrong arguments; JournalCorrupt and JournalRemoved as `Replay`
    does; and what the strategy or the broker raises beside its handlers.
    """
    taken = [replaces] if isinstance(replaces, str) else [*replaces]
    if not taken or name in taken:
        raise ValueError(
            f"replaces={replaces!r}: the names of other sources than {name!r} are needed"
        )
    wanted = Query.of(types)
    without = _Paths(ignore)
    past = _Past(path, name, {*taken}, wanted)
    rules = _rules(broker, taken)
    now: dict[tuple[str, str], list[Decision]] = defaultdict(list)

    async def main() -> tuple[int, int, int]:
        replay = Replay(path, sources=past.played, without=past.followed)
        async with AsyncEventBus(replay, name=name) as bus:

            def note(seq: int, row: bytes, type: str, key: str) -> None:
                if wanted.matches(type, key):
                    _, time, _, _, data, *_ = orjson.loads(row)
                    id = event_id(bus.name, bus.stats().epoch, seq)
                    now[type, key].append(Decision(id, time, data))

            replay.publisher.attach(Sink(EVERY, note, Consumer()))
            if broker is None:
                async with acting(strategy, bus):
                    played = await play_out(replay, bus, until=past.end)
                buses = [bus]
            else:
                async with AsyncEventBus(replay.beside(), name=taken[0]) as other:
                    buses = [bus, other]
                    async with acting(broker, other), acting(strategy, bus):
                        played = await play_out(replay, *buses, until=past.end)
            failed = sum(each.failed for one in buses for each in one.stats().subscriptions)
            return played, replay.progress.gaps, failed

    played, gaps, failed = run_virtual(main)
    agreed, difference = _compared(past.decisions, now, without)
    return Comparison(
        then={place: len(each) for place, each in past.decisions.items()},
        now={place: len(each) for place, each in now.items()},
        agreed=agreed,
        difference=difference,
        played=played,
        left_out=past.left_out,
        gaps=gaps,
        failed=failed,
        rules=rules,
    )


class _Past:
    """One way through the recording: what was decided, and what would not have happened so.

    Holds the decisions, and the id of each event of others that names a cause.
    """

    def __init__(
        self, path: str | os.PathLike[str], name: str, taken: set[str], wanted: Query
    ) -> None:
        self.decisions: dict[tuple[str, str], list[Decision]] = defaultdict(list)
        self.left_out: Counter[str] = Counter()
        self.played: set[str] = set()
        """The names of the sources of which events are left."""
        self.followed: set[str] = set()
        """The ids of events of these that followed from what is left out."""
        self.end = 0.0
        """The last time that was recorded, Unix seconds."""
        effects: dict[str, list[tuple[str, str]]] = defaultdict(list)
        counts: Counter[str] = Counter()
        reel = Reel(Selection(path))
        try:
            while (found := reel.take()) is not None:
                _, (_, source, epoch, type, key, _), seq, time, cause, data = found
                self.end = max(self.end, time)
                counts[source] += 1
                id = event_id(source, epoch, seq)
                if source == name:
                    self.left_out[source] += 1
                    if wanted.matches(type, key):
                        self.decisions[type, key].append(Decision(id, time, orjson.loads(data)))
                elif source in taken:
                    self.left_out[source] += 1
                elif cause and _source(text := cause.decode()) in taken | {name}:
                    self.followed.add(id)
                    self.left_out[source] += 1
                elif cause:
                    effects[text].append((id, source))
        finally:
            reel.close()
        known = f"{reel.path} has as its sources {', '.join(sorted(counts)) or 'none'}"
        if missing := sorted({name, *taken} - counts.keys()):
            raise ValueError(f"nothing of {', '.join(missing)} was recorded; {known}")
        if not self.decisions:
            raise ValueError(f"{name} has published nothing of {wanted}; {known}")
        reached = list(self.followed)
        while reached:
            for id, source in effects.pop(reached.pop(), ()):
                self.followed.add(id)
                self.left_out[source] += 1
                reached.append(id)
        self.played = {each for each in counts if counts[each] > self.left_out[each]}
        if not self.played:
            raise ValueError(f"nothing is left to play; {known}")


def _source(cause: str) -> str:
    """The name of the source of an event, of its id; "" if it is none."""
    try:
        return parse_id(cause)[0]
    except ValueError:
        return ""


class _Paths:
    """Data without what is not compared."""

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


def _rules(broker: Bot | None, taken: list[str]) -> str:
    if broker is None:
        return f"no bus answers in place of {', '.join(taken)}"
    said = " ".join((inspect.getdoc(broker) or UNSTATED).split())
    return f"in place of {', '.join(taken)}: {getattr(broker, '__qualname__', broker)}: {said}"


def _compared(
    then: Mapping[tuple[str, str], list[Decision]],
    now: Mapping[tuple[str, str], list[Decision]],
    without: _Paths,
) -> tuple[dict[tuple[str, str], int], Difference | None]:
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
