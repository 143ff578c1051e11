"""Who is there: a peer as a user sees it, and what a bus says that it subscribes to.

Owns the text by which a bus tells others of its queries, its bound, and the question whether what
was told covers a query. Pure: must not know how it is told, nor who is linked.

The text has patterns with spaces between: `TYPE`, `TYPE/key`, `TYPE/prefix*`, and `*` in place of a
type for every type. It is the union of all queries of a bus. `TYPE/**` stands for more keys than
are told, and `**` for more types.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from aiobus.limits import MAX_TOLD
from aiobus.query import EVERY_TYPE, RESERVED, Query, bad_type, unquoted

__all__ = ["MORE", "MOST_SKEW", "NOTHING", "Patterns", "Peer", "Standing", "Told", "patterns_of"]

MORE = "**"
"""More than is told. No key has a `*`, and a pattern has an escape in its place."""

MOST_SKEW = 0.1
"""Seconds between two clocks beyond which a user is warned."""
Standing = Literal["", "older", "newer", "other"]
"""The list of a peer beside that of this bus; "" if it is the same, or if one of them has none.
"other": another list of the same number.
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another bus that is linked with this one, at one moment."""

    name: str
    epoch: int
    """Which start of it this is: equal to `event.epoch` of its events."""
    since: float
    """The Unix time at which it started, by its own word of how old it is."""
    last: int
    """The highest seq of its events that is known."""
    silent: float
    """Seconds since its last message. A bus sends a heartbeat each second, so up to 1 is usual;
    from 3 s on, `aiobus.stale` announces the silence.
    """
    subscribed: tuple[str, ...]
    """What it subscribes to, as it has told last: `TYPE`, `TYPE/key`, `TYPE/prefix*`, and `*` for
    every type. System events are not among it. `TYPE/**` stands for more keys than are told, and
    `**` for more types.
    """
    observer: bool = False
    """It is an observer (`AsyncEventBus(observer=True)`): nothing waits for it."""
    skew: float | None = None
    """Seconds that the clock of its host is ahead of that of this one, below 0 if it is behind;
    None while that is not known. It is measured once a minute, and warned of above 0.1.
    """
    skew_error: float | None = None
    """Seconds by which `skew` may be wrong, at most: half of the time that the answer took."""
    member_list: Standing = ""
    """Of a bus with a keyring: its list of the desk's members is "older" or "newer" than the list
    of this bus, or "other" with the same number; "" if it is the same.
    """

    @property
    def is_skewed(self) -> bool:
        """True if its clock surely is more than 0.1 s from that of this host."""
        if self.skew is None or self.skew_error is None:
            return False
        return abs(self.skew) - self.skew_error > MOST_SKEW

    def subscribes(
        self, types: str | Iterable[str], key: str | Iterable[str] | None = None
    ) -> bool:
        """True if it has told that it subscribes to each of `types` by name, with each `key` (by
        default: with every key). A subscription to `"*"`, a monitor's, counts for `"*"` alone.
        Raises TypeError and ValueError as `subscribe` does.
        """
        return self.covers(Query.of(types, key))

    def covers(self, query: Query) -> bool:
        """The same of a query."""
        return Patterns.of(self.subscribed).cover(query)

    def told(self) -> list[Any]:
        """It as plain values, which `Peer.of` reads."""
        where = self.name, self.epoch, self.since, self.last, self.silent
        clock = self.skew, self.skew_error
        return [*where, list(self.subscribed), self.observer, *clock, self.member_list]

    @classmethod
    def of(cls, told: Sequence[Any]) -> Self:
        """What `told` made, of this version of aiobus or of an older one, which told less."""
        name, epoch, since, last, silent, subscribed, *more = told
        return cls(name, epoch, since, last, silent, tuple(subscribed), *more)


class Told:
    """The queries of a bus, as it tells others of them."""

    def __init__(self) -> None:
        self._rules: dict[str, dict[str, int]] = {}
        """By type: how many queries have each rule for its keys: "/BTC", or "" for every key."""
        self._text: str | None = None

    def add(self, query: Query) -> None:
        """Tell of one more."""
        for type in _types_of(query):
            rules = self._rules.setdefault(type, {})
            for rule in _rules_of(query):
                rules[rule] = rules.get(rule, 0) + 1
        self._text = None

    def remove(self, query: Query) -> None:
        """Tell no more of one that was added."""
        for type in _types_of(query):
            rules = self._rules[type]
            for rule in _rules_of(query):
                rules[rule] -= 1
                if not rules[rule]:
                    del rules[rule]
            if not rules:
                del self._rules[type]
        self._text = None

    @property
    def text(self) -> str:
        """All of it, or as much as fits."""
        if self._text is None:
            self._text = " ".join(self._patterns())
        return self._text

    def _patterns(self) -> list[str]:
        found: list[str] = []
        left = MAX_TOLD - len(MORE)
        for type, rules in self._rules.items():
            if "" in rules:
                some = [type]
            elif len(rules) * (len(type) + 2) > left:  # not written down only to be left out
                some = [f"{type}/{MORE}"]
            else:
                some = [type + rule for rule in rules]
                if sum(map(len, some)) + len(some) > left:
                    some = [f"{type}/{MORE}"]
            left -= sum(map(len, some)) + len(some)
            if left < 0:
                return sorted([*found, MORE])
            found += some
        return sorted(found)


def patterns_of(queries: Iterable[Query]) -> tuple[str, ...]:
    """What a bus with these queries tells."""
    told = Told()
    for query in queries:
        told.add(query)
    return tuple(told.text.split())


def _types_of(query: Query) -> Iterable[str]:
    return [EVERY_TYPE] if query.every else query.types


def _rules_of(query: Query) -> list[str]:
    return [f"/{rule}" for rule in query.rules] or [""]


class Patterns:
    """What was told of the queries of a bus."""

    def __init__(self) -> None:
        self.types: frozenset[str] = frozenset()
        """The types that are subscribed to by name."""
        self.has_more = False
        """There are more types than were told."""
        self.has_every = False
        """Every type is subscribed to, perhaps only with some keys."""
        self._keys: dict[str, set[str]] = {}
        self._prefixes: dict[str, set[str]] = {}
        self._more_keys: set[str] = set()
        """Types of which there are more keys than were told."""

    @classmethod
    def of(cls, patterns: Iterable[str]) -> Self:
        """Read patterns. Raises ValueError for what is none."""
        found = cls()
        types: set[str] = set()
        for pattern in patterns:
            type, slash, rule = pattern.partition("/")
            if pattern == MORE:
                found.has_more = True
                continue
            if type != EVERY_TYPE and (reason := bad_type(type) or _reserved(type)):
                raise ValueError(reason)
            types.add(type)
            if not slash:
                found._prefixes.setdefault(type, set()).add("")
            elif rule.endswith("*") and rule != MORE:
                found._prefixes.setdefault(type, set()).add(unquoted(rule[:-1]))
            elif rule == MORE:
                found._more_keys.add(type)
            else:
                found._keys.setdefault(type, set()).add(unquoted(rule))
        found.types = frozenset(types - {EVERY_TYPE})
        found.has_every = EVERY_TYPE in types
        return found

    def may_match_type(self, type: str) -> bool:
        """False if no event of this type is asked for."""
        return self.has_every or self.has_more or type in self.types

    def take(self, type: str, key: str) -> bool:
        """True if an event of this type and key is asked for by the name of its type, or may be:
        there are more types or keys than were told.
        """
        return self._takes(type, key) if type in self.types else self.has_more

    def want(self, type: str, key: str) -> bool:
        """The same by the name of its type or by `*`."""
        return self.take(type, key) or self._takes(EVERY_TYPE, key)

    def _takes(self, type: str, key: str) -> bool:
        return (
            type in self._more_keys
            or key in self._keys.get(type, ())
            or key.startswith(tuple(self._prefixes.get(type, ())))
        )

    def cover(self, query: Query) -> bool:
        """True if each event that `query` matches is asked for by its type's name, or if `query` is
        for every type, by a query for every type.
        """
        return all(self._covers(type, query) for type in _types_of(query))

    def _covers(self, type: str, query: Query) -> bool:
        prefixes = tuple(self._prefixes.get(type, ()))
        if not query.keys and not query.prefixes:
            return "" in prefixes
        keys = self._keys.get(type, set())
        has_keys = all(key in keys or key.startswith(prefixes) for key in query.keys)
        return has_keys and all(prefix.startswith(prefixes) for prefix in query.prefixes)


NOTHING = Patterns()


def _reserved(type: str) -> str:
    is_reserved = type.startswith(RESERVED)
    return f"{type!r} is reserved: such events do not leave their bus" if is_reserved else ""
