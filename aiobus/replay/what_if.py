"""What would a strategy have decided with another gateway, or another line of code?

Owns which recorded events would not have happened so, and the run beside the broker. A decision is
an event that the strategy publishes.
"""

import asyncio
import inspect
import os
import re
import traceback
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson

from aiobus.bus import AsyncEventBus, parts_of, unheard
from aiobus.clock import SPREAD
from aiobus.confinement import written
from aiobus.delivery import Consumer
from aiobus.event import Event, event_id, parse_id
from aiobus.limits import EARLIEST
from aiobus.options import Types
from aiobus.publisher import Sink
from aiobus.query import EVERYTHING, Query
from aiobus.replay.comparison import (
    Decision,
    Raised,
    WhatIfReport,
    compared,
    paths_of_data,
    said_time,
)
from aiobus.replay.evidence import Witness
from aiobus.replay.selection import Reel, Selection
from aiobus.replay.session import Bot, acting, play_out
from aiobus.replay.transport import Replay
from aiobus.system import ERROR
from aiobus.virtual_loop import VirtualLoop
from aiobus.virtual_run import run_virtual

__all__ = ["what_if"]

ERRORS = Query.of(ERROR)
OWN = str(Path(__file__).parents[1])
"""Where this package is: of a traceback, the last line of other code is told."""
UNSTATED = "its rules of price and latency are not stated: give it a docstring"
MOST_STARTS = 5
"""Starts of a strategy that are told."""
MOST_RAISED = 1_000
"""Tasks that raised and are kept until it is known whether anything looks at that."""
_LINE = re.compile(r'File "(.*)", line (\d+)')


def what_if(
    path: str | os.PathLike[str],
    strategy: Bot,
    *,
    broker: Bot | None = None,
    replaces: str | Iterable[str] = ("gateway",),
    name: str = "strategy",
    keep: str | Iterable[str] = (),
    start: float | None = None,
    end: float | None = None,
    types: Types = "*",
    ignore: Collection[str] = (),
    allow: Collection[str] = (),
) -> WhatIfReport:
    """Run `strategy`, a coroutine function of a bus, through the recording at `path`, and compare
    what it publishes with what the recorded bus `name` published. Blocks; nothing leaves the
    process, except by the callers that `allow` names (`run_virtual`).

    Played is what others have published, at its time. Left out are the events of `replaces` and of
    `name`, and what followed from them: each event that names one of these as its cause, or an
    event that is left out for this reason. If a source of these is not in `replaces`, then the
    result says how many, and from what they followed. Of sources in `keep` all is played: a feed
    that begins when the strategy subscribes names that event as its cause. An event that depended
    on them without naming its cause is played as it was recorded.

    `broker`, a coroutine function of a bus, acts in place of all of `replaces`, on one bus, which
    has the first of these names: it gets what is played and what the strategy publishes, and
    answers by its own rules of price and latency (`asyncio.sleep`). A `request(to=)` finds it by
    that name alone. Its docstring is to state them:
    the result quotes it. Without one, no bus answers. The result has what both publish (`events`),
    what raised (`failures`), and which requests found no subscriber.

    `start` and `end` are those of `Replay`: a recording with several sessions needs them, since the
    strategy runs once, from `start` to `end`. Causes are followed in that range.

    Compared is, for each type and key, the data of the decisions in their order: no ids, no times
    and no causes. As in `verify`, 1, 1.0 and true differ, and `ignore` has paths that are not
    compared, such as "data.order" or "data.legs.*.id". `types` selects the types. Virtual time does
    not repeat the order in which a real loop ran tasks at one moment, so decisions that hang on a
    race may differ; `verify` is what repeats it. Code that reads `time.time()` gets the time of
    now; `aiobus.clock.time()` tells that of the recording. If there is a difference, then each such
    call is a suspect, with file and line.

    Raises ValueError if a name is not in the recording, if `name` has decided nothing there, if
    nothing is left to play, or for wrong arguments; TypeError if a bot is no coroutine function of
    a bus, or `ignore` no tuple; JournalCorrupt and JournalRemoved as `Replay` does; and what the
    strategy or the broker raises beside its handlers.
    """
    for said, bot in (("strategy", strategy), ("broker", broker)):
        _check_bot(said, bot)
    replaced = [replaces] if isinstance(replaces, str) else [*replaces]
    if not replaced or name in replaced:
        raise ValueError(
            f"replaces={replaces!r}: the names of other sources than {name!r} are needed"
        )
    kept = {keep} if isinstance(keep, str) else {*keep}
    if wrong := kept & {name, *replaced}:
        raise ValueError(f"keep={keep!r}: {', '.join(sorted(wrong))} is replaced")
    wanted, paths = Query.of(types), paths_of_data(ignore)
    past = _Past(Selection(path, start=start, end=end), name, {*replaced}, kept, wanted)
    now, witness = _Now(), Witness(is_other_seed=False)

    async def main() -> tuple[int, int, Mapping[tuple[str, str], int], tuple[str, ...]]:
        now.watch_loop(asyncio.get_running_loop())
        replay = Replay(path, sources=past.played, without=past.followed, start=start, end=end)
        async with AsyncEventBus(replay, name=name) as bus, AsyncExitStack() as others:
            now.watch(bus)
            buses = [bus]
            if broker is not None:
                other = AsyncEventBus(replay.beside(), name=replaced[0])
                buses.append(await others.enter_async_context(other))
                now.watch(other)
                await others.enter_async_context(acting(broker, other))
            async with acting(strategy, bus):
                played = await play_out(replay, *buses, until=past.end)
            now.note_tasks()
            return played, replay.progress.gaps, unheard(bus), written()

    async def witnessed() -> tuple[int, int, Mapping[tuple[str, str], int], tuple[str, ...]]:
        witness.start()
        witness.begin()
        try:
            return await main()
        finally:
            witness.end()

    played, gaps, requests, files = run_virtual(witnessed, allow=allow)
    decisions = now.decisions(name, wanted)
    agreed, difference = compared(past.decisions, decisions, paths)
    if difference is not None:
        suspects = dict.fromkeys([*difference.suspects, *witness.told])
        difference = difference._replace(suspects=tuple(suspects))
    answers = Counter(event.type for event in now.events if event.source != name)
    return WhatIfReport(
        name=name,
        then={place: len(each) for place, each in past.decisions.items()},
        now={place: len(each) for place, each in decisions.items()},
        agreed=agreed,
        difference=difference,
        played=played,
        left_out=past.left_out,
        gaps=gaps,
        failures=tuple(now.failures.values()),
        rules=_rules(broker, replaced),
        answers={type: (past.answers[type], answers[type]) for type in past.answers | answers},
        events=tuple(now.events),
        notes=tuple(past.notes(requests)),
        written=files,
    )


def _check_bot(said: str, bot: object) -> None:
    if bot is None and said == "broker":
        return
    if not callable(bot):
        hint = "; replaces= has the name that it takes the place of" if isinstance(bot, str) else ""
        raise TypeError(f"{said}={bot!r}: a coroutine function of a bus is needed{hint}")
    if inspect.isclass(bot):
        name = bot.__name__
        raise TypeError(f"{said}={name} is a class: give a method, such as {name}().run")


class _Now:
    """What happens in the replay."""

    def __init__(self) -> None:
        self.events: list[Event[Any]] = []
        self.failures: dict[tuple[str, str, str], Raised] = {}
        """By bus, handler or place in the code, and kind of the error."""
        self._raised: list[asyncio.Task[Any]] = []
        """Tasks that raised what nothing had looked at when they ended."""

    def watch(self, bus: AsyncEventBus) -> None:
        """Note what a bus publishes, and what its handlers raise."""
        publisher = parts_of(bus).publisher

        def note(seq: int, row: bytes, type: str, key: str) -> None:
            _, time, _, _, data, *cause = orjson.loads(row)
            event = Event(type, data, time, key=key, cause="".join(cause))
            event.source, event.epoch, event.seq = publisher.name, publisher.epoch, seq
            self.events.append(event)

        def note_failure(seq: int, row: bytes, type: str, key: str) -> None:
            data = orjson.loads(row)[4]
            self._fail(publisher.name, data["subscription"], data["error"], data["traceback"], data)

        publisher.attach(Sink(EVERYTHING, note, Consumer()))
        publisher.attach(Sink(ERRORS, note_failure, Consumer()))

    def watch_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Note which callbacks and tasks raise. A task whose exception nothing looks at tells it
        when it is collected, which is too late if a bot keeps it.
        """
        assert isinstance(loop, VirtualLoop)

        def make_task(_: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
            task = loop.plain_task(coroutine, options)
            task.add_done_callback(self._note_end)
            return task

        loop.set_exception_handler(self.note_other)
        loop.set_task_factory(make_task)

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        if _is_unseen(task):
            self._raised.append(task)
            if len(self._raised) == MOST_RAISED:
                self.note_tasks()

    def note_tasks(self) -> None:
        """Note the tasks that raised what nothing has looked at."""
        raised, self._raised = self._raised, []
        for task in filter(_is_unseen, raised):
            message = f"the task {getattr(task.get_coro(), '__qualname__', '')}"
            context = {"message": message, "exception": task.exception(), "task": task}
            self.note_other(task.get_loop(), context)

    def note_other(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A task or a callback raised, which nothing has awaited."""
        error = context.get("exception")
        text = context.get("message", "") if error is None else repr(error)
        lines = "" if error is None else "".join(traceback.format_exception(error))
        place = context.get("message", "").removeprefix("Exception in ")
        self._fail("", place, text, lines, {})
        loop.default_exception_handler(context)

    def _fail(self, bus: str, place: str, error: str, lines: str, data: Mapping[str, Any]) -> None:
        found = [each for each in _LINE.findall(lines) if not each[0].startswith(OWN)]
        where = ":".join(found[-1]) if found else ""
        # A callback is told with its arguments, so its place in the code is what it is known by.
        kind = bus, place if bus else where, error.partition("(")[0]
        if (known := self.failures.get(kind)) is not None:
            known.count += 1
        else:
            self.failures[kind] = Raised(bus, place, error, where, data.get("event", ""))

    def decisions(self, name: str, wanted: Query) -> dict[tuple[str, str], list[Decision]]:
        """What the strategy has published of what is compared."""
        found: dict[tuple[str, str], list[Decision]] = defaultdict(list)
        for event in self.events:
            if event.source == name and wanted.matches(event.type, event.key):
                decision = Decision(event.id, event.timestamp, event.data)
                found[event.type, event.key].append(decision)
        return found


def _is_unseen(task: asyncio.Task[Any]) -> bool:
    """True if it raised, and nothing has looked at that. To ask for the exception is to look."""
    return task._log_traceback


class _Past:
    """One way through the recording: what was decided, and what would not have happened so.

    Holds the decisions, and the id of each event that names a cause or is replaced.
    """

    def __init__(
        self, selection: Selection, name: str, replaced: set[str], kept: set[str], wanted: Query
    ) -> None:
        self._name, self._replaced = name, replaced
        self.decisions: dict[tuple[str, str], list[Decision]] = defaultdict(list)
        self.answers: Counter[str] = Counter()
        """Events of the replaced sources, by type."""
        self.left_out: Counter[str] = Counter()
        self.played: set[str] = set()
        """The names of the sources of which events are left."""
        self.followed: dict[str, str] = {}
        """The ids of events of these that followed from what is left out: from which, in the end.
        """
        self.end = 0.0
        """The last time that was recorded, Unix seconds."""
        self._types: dict[str, str] = {}
        """By id, of the events of the strategy and of what is replaced."""
        self._replies: list[tuple[str, str]] = []
        """The cause of each event of others that names one of these, and the source."""
        self._starts: dict[int, tuple[int, float]] = {}
        """The epochs of the strategy, with offset and time of the first event."""
        counts = self._read(selection, kept, wanted)
        known = f"{selection.path} has as its sources {', '.join(sorted(counts)) or 'none'}"
        if missing := sorted({name, *replaced, *kept} - counts.keys()):
            raise ValueError(f"nothing of {', '.join(missing)} was recorded; {known}")
        if not self.decisions:
            raise ValueError(f"{name} has published nothing of {wanted}; {known}")
        self.played = {each for each in counts if counts[each] > self.left_out[each]}
        if not self.played:
            raise ValueError("; ".join(["nothing is left to play", *self.notes({}), known]))

    def _read(self, selection: Selection, kept: set[str], wanted: Query) -> Counter[str]:
        """How many events each source has."""
        gone = self._replaced | {self._name}
        effects: dict[str, list[tuple[str, str]]] = defaultdict(list)
        counts: Counter[str] = Counter()
        reel = Reel(selection)
        try:
            while (found := reel.take()) is not None:
                offset, (_, source, epoch, type, key, _), seq, time, cause, data = found
                self.end = max(self.end, time)
                counts[source] += 1
                id, text = event_id(source, epoch, seq), cause.decode()
                is_reply = bool(text) and _source(text) in gone
                if is_reply:
                    self._replies.append((text, source))
                if source in gone:
                    self.left_out[source] += 1
                    self._types[id] = type
                if source == self._name:
                    self._starts.setdefault(epoch, (offset, time))
                    if wanted.matches(type, key):
                        self.decisions[type, key].append(Decision(id, time, orjson.loads(data)))
                elif source in self._replaced:
                    self.answers[type] += 1
                elif is_reply and source not in kept:
                    self.followed[id] = text
                    self.left_out[source] += 1
                elif text and source not in kept:
                    effects[text].append((id, source))
        finally:
            reel.close()
        reached = list(self.followed)
        while reached:
            above = reached.pop()
            for id, source in effects.pop(above, ()):
                self.followed[id] = self.followed[above]
                self.left_out[source] += 1
                reached.append(id)
        return counts

    def notes(self, unheard: Mapping[tuple[str, str], int]) -> list[str]:
        """What may be a reason of a difference, in sentences: requests that found no subscriber, by
        type; what was left out of other sources; and several starts of the strategy.
        """
        said: list[str] = []
        answered: set[str] = set()
        for (type, to), count in sorted(unheard.items()):
            found = {each for cause, each in self._replies if self._types.get(cause) == type}
            answered |= found
            whose = f" of {to}" if to else ""
            text = f"{count:,} requests for {type} found no subscriber{whose}"
            names = ", ".join(sorted(found))
            if others := sorted(found - self._replaced):
                text += (
                    f": {names} answered when it was recorded, and that is left out. Name"
                    f" {', '.join(others)} in replaces=, and let the broker answer"
                )
            elif names:
                text += f": {names} answered when it was recorded, and now the broker is to answer"
                text += ", which has the first name of replaces=" if to else ""
            said.append(text)
        roots: dict[str, str] = {}
        for id, root in self.followed.items():
            roots.setdefault(_source(id), root)
        for source in sorted(roots.keys() - answered):
            root = roots[source]
            first = " ".join(filter(None, (self._types.get(root), root)))
            said.append(
                f"{self.left_out[source]:,} of {source} were left out, because they followed from"
                f" what the strategy or the replaced sources published (first from {first}). If"
                f" they come all the same, give keep=({source!r},)"
            )
        if len(self._starts) > 1:
            some = [*self._starts.items()][:MOST_STARTS]
            when = "; ".join(_start(epoch, *first) for epoch, first in some)
            said.append(
                f"{self._name} was started {len(self._starts):,} times in this range ({when}), and"
                " runs once through all of it now: choose one session by start= and end="
            )
        return said


def _start(epoch: int, offset: int, time: float) -> str:
    """A start of a strategy. An epoch is the time of it, and up to SPREAD later."""
    began = (epoch - SPREAD) / 1_000_000
    text = f"first event at offset {offset:,}, {said_time(time)}"
    if EARLIEST <= began <= time:
        text += f", start={began:.3f} is up to a second before it was started"
    return text


def _source(cause: str) -> str:
    """The name of the source of an event, of its id; "" if it is none."""
    try:
        return parse_id(cause)[0]
    except ValueError:
        return ""


def _rules(broker: Bot | None, replaced: list[str]) -> str:
    if broker is None:
        return f"no bus answers in place of {', '.join(replaced)}"
    said = " ".join((inspect.getdoc(broker) or UNSTATED).split())
    return f"in place of {', '.join(replaced)}: {getattr(broker, '__qualname__', broker)}: {said}"
