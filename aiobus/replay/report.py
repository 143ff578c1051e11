"""What `verify` says: its verdict, and the first difference in words.

Pure. Owns how an output is compared with the recorded one, and the texts.
"""

import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

__all__ = [
    "Comparison",
    "Difference",
    "Fingerprint",
    "Report",
    "Verdict",
    "compare",
    "parse_paths",
    "shown",
]

Verdict = Literal["AGREES", "DIVERGES", "INCONCLUSIVE"]

FIELDS = ("seq", "timestamp", "type", "key", "data", "cause")
IGNORABLE = ("timestamp", "key", "data", "cause")
MOST_TEXT = 300
MOST_PLACES = 5
"""Recordings that a report lists."""
_UUID = re.compile(
    r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE
)


_ISO = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference."""

    step: int
    """How many entries of the tape came to pass before."""
    text: str
    """What it is, in a sentence."""
    recorded: str = ""
    replayed: str = ""
    """What was recorded, and what happens now. For an output: type, key, id and data."""
    fields: tuple[str, ...] = ()
    """What of an output differs: `type`, `data.price`."""
    where: str = ""
    """Function, file and line of the code that does it, or that waits."""
    causes: tuple[str, ...] = ()
    """The event that led to it, and the cause of that, and so on."""
    suspects: tuple[str, ...] = ()
    """What may have made the difference beside the strategy."""
    is_reordered: bool = False
    """The same values, or the same outputs, in another order."""

    def __str__(self) -> str:
        lines = [self.text]
        for name, text in (("recorded", self.recorded), ("replayed", self.replayed)):
            if text:
                lines.append(f"  {name}: {text}")
        if self.fields:
            lines.append(f"  differs in: {', '.join(self.fields)}")
        if self.where:
            lines.append(f"  where: {self.where}")
        lines += [f"  caused by: {cause}" for cause in self.causes]
        lines += [f"  suspect: {suspect}" for suspect in self.suspects]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found. `bool(report)` is true for AGREES alone."""

    path: str
    verdict: Verdict
    reason: str = ""
    """Why nothing certain can be said, for INCONCLUSIVE."""
    difference: Difference | None = None
    """For DIVERGES."""
    steps: int = 0
    """Entries of the tape that came to pass again."""
    strands: int = 0
    """Pieces of the strategy that ran: its coroutine, handler calls, tasks and callbacks."""
    deliveries: int = 0
    """Events that were handed to it."""
    agreed: int = 0
    """Outputs that are the recorded ones, in their place."""
    ignored: int = 0
    """Those of them that differ in what `ignore` names."""
    outside: dict[str, int] = field(default_factory=dict)
    """By type, events that the bus published from code that was not attached: not compared."""
    fingerprint: str = ""
    """Of the outputs that agreed: equal if two verifications of a recording made the same ones."""
    recordings: int = 0
    """How many recordings with a tape the file has; one of them was verified."""
    recording: int = 0
    """The place of that one, from 0."""
    log: tuple[str, ...] = ()
    """The first lines that the bus logged meanwhile."""

    def __bool__(self) -> bool:
        return self.verdict == "AGREES"

    def __str__(self) -> str:
        outside = sum(self.outside.values())
        kinds = ", ".join(f"{count} {type}" for type, count in sorted(self.outside.items()))
        counts = [f"{self.deliveries} deliveries", f"{self.agreed} outputs agree"]
        if self.ignored:
            counts.append(f"{self.ignored} of them except for what ignore= names")
        if outside:
            counts.append(f"{outside} events of code that was not attached ({kinds})")
        lines = [f"{self.path}: {self.verdict}"]
        if self.reason:
            lines[0] += f", {self.reason}"
        if self.difference is not None:
            lines.append(str(self.difference))
        lines.append(", ".join(counts))
        if self.recordings > 1:
            lines.append(_of_several(self.recording, self.recordings))
        if self.fingerprint:
            lines.append(f"fingerprint {self.fingerprint}")
        return "\n".join(lines)


def _of_several(place: int, count: int) -> str:
    others = [str(each) for each in range(count) if each != place]
    if len(others) > MOST_PLACES:
        others[MOST_PLACES - 1 : -1] = ["..."]
    is_last = " (the last)" if place == count - 1 else ""
    were = "recordings {} were" if len(others) > 1 else "recording {} was"
    return (
        f"recording {place} of 0..{count - 1}{is_last}; {were.format(', '.join(others))} not"
        f" compared: --recording {others[0]}, recording={others[0]}"
    )


# Comparing.


def parse_paths(ignore: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """What is to be ignored of each output: `data.client_id`, `data.legs.*.id`, `timestamp`. Raises
    TypeError if it is no collection of texts, and ValueError for what no output has.
    """
    if isinstance(ignore, str) or not all(isinstance(each, str) for each in ignore):
        raise TypeError(f"ignore={ignore!r}: a tuple of paths is needed, such as ('data.id',)")
    paths = tuple(tuple(each.split(".")) for each in ignore)
    for path in paths:
        if path[0] not in IGNORABLE or (path[0] != "data" and len(path) > 1) or not all(path):
            names = ", ".join(IGNORABLE)
            raise ValueError(f"ignore={'.'.join(path)!r}: a path begins with one of {names}")
    return paths


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of one output with the recorded one."""

    fields: tuple[str, ...] = ()
    """What differs, without what is ignored."""
    is_ignored: bool = False
    """It differs in what is ignored."""
    has_data: bool = True
    """False if all of its data is ignored."""
    decision: bytes = b""
    """Type, key, data and cause, without what is ignored."""
    suspects: tuple[str, ...] = ()
    is_reordered: bool = False
    """The same values in another order."""


def compare(recorded: bytes, replayed: bytes, ignore: Collection[tuple[str, ...]]) -> Comparison:
    """Compare two rows. Data is compared by its bytes: 1, 1.0 and true differ, and so does another
    order of names.
    """
    one, other = _image(recorded), _image(replayed)
    for image in (one, other):
        for path in ignore:
            _remove(image, path)
    decision = orjson.dumps([other[name] for name in ("type", "key", "data", "cause")])
    had_data = bool(orjson.loads(replayed)[4])
    has_data = "data" in other and (bool(other["data"]) or not had_data)
    if recorded == replayed or orjson.dumps(one) == orjson.dumps(other):
        is_ignored = recorded != replayed and _image(recorded) != _image(replayed)
        return Comparison((), is_ignored, has_data, decision)
    found = [
        (path, *values)
        for name in FIELDS
        for path, *values in _differing(name, one.get(name), other.get(name))
    ]
    suspects = tuple(filter(None, (_suspect(*each) for each in found)))
    is_reordered = sorted(_leaves(one["data"])) == sorted(_leaves(other["data"])) and any(
        path.startswith("data") for path, *_ in found
    )
    fields = tuple(path for path, *_ in found)
    return Comparison(fields, False, has_data, decision, suspects, is_reordered)


def _image(row: bytes) -> dict[str, Any]:
    image = dict(zip(FIELDS, [*orjson.loads(row), ""], strict=False))
    image["timestamp"] = float(image["timestamp"])
    return image


def _remove(value: Any, path: tuple[str, ...], depth: int = 0) -> None:
    depth = depth or len(path)
    name, *rest = path
    places = range(len(value)) if isinstance(value, list) else [*value]
    for place in places if name == "*" else [name]:
        if isinstance(value, list) and isinstance(place, str):
            if not place.isdigit() or int(place) >= len(value):
                continue
            place = int(place)
        elif isinstance(value, dict) and place not in value:
            continue
        if rest:
            if isinstance(value[place], dict | list):
                _remove(value[place], tuple(rest), depth)
        elif isinstance(value, dict) and len(path) < depth:
            del value[place]
        else:
            value[place] = None


def _differing(path: str, one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    """The paths of what differs, and both values."""
    if isinstance(one, dict) and isinstance(other, dict) and [*one] == [*other]:
        for name in one:
            yield from _differing(f"{path}.{name}", one[name], other[name])
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, pair in enumerate(zip(one, other, strict=True)):
            yield from _differing(f"{path}.{place}", *pair)
    elif orjson.dumps(one) != orjson.dumps(other):
        yield path, one, other


def _leaves(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict | list):
        for each in value.items() if isinstance(value, dict) else value:
            yield from _leaves(list(each) if isinstance(each, tuple) else each)
    else:
        yield orjson.dumps(value)


def _suspect(path: str, one: Any, other: Any) -> str:
    if path == "timestamp" or (_is_moment(one) and _is_moment(other)):
        return f"{path} looks like a time: read it by aiobus.clock.time(), which is recorded"
    texts = isinstance(one, str) and isinstance(other, str)
    if texts and _UUID.fullmatch(one) and _UUID.fullmatch(other):
        return (
            f"{path} looks like a uuid: make it from event.id or by random.getrandbits(128), or"
            f" give ignore=({path!r},)"
        )
    return ""


def _is_moment(value: Any) -> bool:
    """True for a time from 2001 to 2128, in ISO 8601 or in seconds, ms, us or ns since 1970."""
    if isinstance(value, str):
        return _ISO.match(value) is not None
    return isinstance(value, float | int) and any(
        1e9 * unit < value < 5e9 * unit for unit in (1, 1e3, 1e6, 1e9)
    )


# Texts.


def shown(row: bytes, source: str) -> str:
    """An event for people: type, key, id and data; `source` is its id without the seq."""
    seq, _, type, key, data, *_ = orjson.loads(row)
    text = orjson.dumps(data).decode()
    if len(text) > MOST_TEXT:
        text = f"{text[: MOST_TEXT // 2]} ... {text[-MOST_TEXT // 2 :]}"
    return " ".join([type, *([key] if key else []), f"{source}{seq}", text])


class Fingerprint:
    """Of decisions in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, decision: bytes) -> None:
        """One more."""
        self._hash.update(decision + b"\n")

    def __str__(self) -> str:
        return self._hash.hexdigest()[:12]
