"""`explain`: which events led to an event, what followed from it, and how long each hop took.

Owns the way through the files, and its bounds. Files may be forged or damaged: a chain of causes
may be a circle, an event may have any number of effects, and an index may have lost some.
"""

from collections import deque
from datetime import datetime, tzinfo
from typing import Any

from aiobus.errors import NotRecorded
from aiobus.event import Event, parse_id
from aiobus.query import bad_key, bad_type
from aiobus.replay.explanation import Explanation, Step
from aiobus.replay.files import Copy, Files, Paths
from aiobus.replay.moments import Zone, parse_moment, windows
from aiobus.replay.skews import Skews

__all__ = ["explain"]

MOST_MINUTES = 50_000
"""Minutes with events of which a time without a date may be one."""
MOST_DAYS = 32
"""Days on which it may be."""
MOST_ALIKE = 10


def explain(
    path: Paths,
    event_id: str | None = None,
    *,
    at: str | float | datetime | None = None,
    type: str | None = None,
    key: str | None = None,
    tz: str | tzinfo | None = None,
    most: int = 1_000,
) -> Explanation:
    """The causes and effects of an event, with the time of each hop, from a journal or several, of
    which one may have the cause and another the effect. The event is the one with this id, or the
    first at a time, such as `at="10:31", type="FILL"`: of this type (without one, of any that is
    not reserved) and this key or `prefix*`.

    A time is in the zone `tz`, such as "Europe/Berlin"; without one, in that of the machine. Said
    to the minute it is that minute, and so on: "10:31" on any day of the files, "10:31:05.25",
    "2026-11-29T10:31", the same with an offset. A number (Unix seconds) and a datetime begin a
    second. At most `most` causes and `most` effects are in the explanation, the nearest first; it
    says what it leaves out. What is told was compared with its checksum, and the indexes with the
    table. Whether a damaged event is missing at a time, only `Journal.verify` says.

    Blocks: about 0.1 s per million events for an id, and up to 0.5 s for a time. A file may be
    written meanwhile. Raises NotRecorded if the event is not there, ValueError or TypeError for a
    wrong argument and for a time that may be more than one, JournalError for a file that cannot be
    read, and JournalCorrupt if an event or an index is not what was written.
    """
    if (event_id is None) == (at is None):
        raise TypeError("explain() needs the id of an event, or at=, and not both")
    if event_id is not None and (type is not None or key is not None):
        raise TypeError("type= and key= belong to at=: an id is one event")
    if most < 1:
        raise ValueError(f"most={most!r}: at least 1 is needed")
    if event_id is not None:
        parse_id(event_id)
    zone = Zone.of(tz)
    with Files(path) as files:
        if event_id is not None:
            count, found = 1, [_by_id(files, event_id)]
        else:
            assert at is not None
            count, found = _by_time(files, at, type, key, zone)
        asked, *alike = found
        problems: list[str] = []
        causes, beyond = _causes(files, asked, most, problems)
        begin = (causes[0] if causes else asked).event.timestamp
        steps: list[Step] = []
        for depth, copy in enumerate([*causes, asked], -len(causes)):
            before = steps[-1].event if steps else None
            steps.append(_step(copy, "event" if depth == 0 else "cause", depth, before, begin))
        effects = _effects(files, steps, most, begin)
        files.check_effects([asked.event, *(step.event for step in effects)])
        steps += effects
        _compare_clocks(files, steps, problems)
        others = [copy.event for copy in alike]
        return Explanation(steps, beyond, problems, others, count, files.paths, zone)


def _compare_clocks(files: Files, steps: list[Step], problems: list[str]) -> None:
    """Note at each hop how far the clocks of its two ends were apart, where a file says so."""
    if len({step.event.source for step in steps}) < 2:
        return
    skews = Skews(files.journals)
    problems += skews.problems
    events = {step.event.id: step.event for step in steps}
    for step in steps:
        if (cause := events.get(step.event.cause)) is not None and step.hop is not None:
            step.clocks = skews.between(cause, step.event)


def _step(copy: Copy, role: Any, depth: int, cause: Event[Any] | None, begin: float) -> Step:
    time = copy.event.timestamp
    hop = None if cause is None else time - cause.timestamp
    return Step(copy.event, copy.path, role, depth, hop, time - begin, differs=copy.differs)


def _by_id(files: Files, id: str) -> Copy:
    found = files.find(id)
    if found is None:
        raise NotRecorded(f"{id} is not recorded: {files.why_absent(id)}", [])
    return found


def _by_time(
    files: Files, at: str | float | datetime, type: str | None, key: str | None, zone: Zone
) -> tuple[int, list[Copy]]:
    """How many events there are at that time, and the first of them."""
    for reason in (type is not None and bad_type(type), key is not None and bad_key(key)):
        if reason:
            raise ValueError(reason)
    moment = parse_moment(at)
    minutes: set[int] = set()
    if moment.is_of_any_day:
        for journal in files.journals:
            minutes.update(journal.minutes(type, key, MOST_MINUTES))
    spans = windows(moment, zone, sorted(minutes))
    if not spans and (minutes or not moment.is_of_any_day):
        raise ValueError(f"at={at!r}: the clocks of {zone.name} leave this time out")
    if len(minutes) >= MOST_MINUTES or len(spans) > MOST_DAYS:
        raise ValueError(f"at={at!r}: the files have many days; give the date as well")
    found = [(files.within(span, type, key, MOST_ALIKE + 1), span) for span in spans]
    found = [each for each in found if each[0][1]]
    if len(found) > 1:
        said = " or ".join(
            f"{zone.local(begin).isoformat()} ({count:,})" for (count, _), (begin, _) in found
        )
        raise ValueError(f"at={at!r} may be {said}: give the date, or the offset from UTC")
    if found:
        return found[0][0]
    nearest = files.nearest(spans, type, key)
    such = "event" + (f" of type {type}" if type else "") + (f" with key {key}" if key else "")
    text = f"no {such} is recorded at {moment.text} ({zone.name})"
    if nearest:
        near = " and ".join(
            f"{each.id} at {zone.local(each.timestamp).isoformat(' ')}" for each in nearest
        )
        text += f"; the nearest: {near}"
    else:
        text += ", nor at any other time"
        types = sorted({name for journal in files.journals for name in journal.types()})
        if key and (not type or type in types):
            text += "; `aiobus log` prints the keys that there are"
        else:
            text += f"; there are: {', '.join(types) or 'no events'}"
    raise NotRecorded(text, [each.id for each in nearest])


def _causes(files: Files, asked: Copy, most: int, problems: list[str]) -> tuple[list[Copy], str]:
    """The causes of an event, the first of them first, and why the cause of that is not there."""
    chain, seen, beyond = [asked], {asked.event.id}, ""
    while not beyond and (cause := chain[-1].event.cause):
        if cause in seen:
            beyond = f"its cause {cause} is below: the causes form a circle, which no bus makes"
            problems.append(f"{chain[-1].event.id} names as its cause what followed from it")
        elif len(chain) > most:
            beyond = f"more causes: explain {cause}"
        else:
            try:
                found = files.find(cause)
            except ValueError:
                beyond = f"its cause is {cause!r}, which is not the id of an event"
                break
            if found is None:
                beyond = f"its cause {cause} is not recorded: {files.why_absent(cause)}"
            else:
                chain.append(found)
                seen.add(cause)
    return chain[:0:-1], beyond


def _effects(files: Files, above: list[Step], most: int, begin: float) -> list[Step]:
    """What followed from the last of these, the nearest first up to `most`, in the order in which
    it is told: each event before its own effects.
    """
    asked = above[-1]
    seen = {step.event.id for step in above}
    below: dict[str, list[Step]] = {}
    waiting = deque([asked])
    left = most
    while waiting:
        cause = waiting.popleft()
        count, found = files.effects(cause.event.id, left)
        cause.more = count - len(found)
        for copy in found:
            if copy.event.id in seen:  # a circle, which was told with the causes
                continue
            seen.add(copy.event.id)
            left -= 1
            step = _step(copy, "effect", cause.depth + 1, cause.event, begin)
            below.setdefault(cause.event.id, []).append(step)
            waiting.append(step)
    told: list[Step] = []
    stack = below.get(asked.event.id, [])[::-1]
    while stack:
        told.append(step := stack.pop())
        stack += below.get(step.event.id, [])[::-1]
    return told
