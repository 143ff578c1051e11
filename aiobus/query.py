"""The query of a subscription: event types and keys, and their text for other buses.

Owns the rules for names and keys, and the matching. Pure: must not know subscriptions or sources.

A query is sorted patterns separated by a space: `TYPE`, `TYPE/key`, `TYPE/prefix*` or `*`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from aiobus.limits import MAX_KEY, MAX_QUERY
from aiobus.system import DATA, EVERY

__all__ = [
    "EVERYTHING", "EVERY_TYPE", "RESERVED", "SYSTEM", "Query", "bad_key", "bad_name", "bad_type",
    "kind_of", "parse_query", "plain", "starred", "unquoted",
]  # fmt: skip

EVERY_TYPE = "*"
"""In place of a type: every type that is not reserved."""
RESERVED = "aiobus."
"""The prefix of system events. A user cannot publish such a type, no other bus gets one, and `*`
does not match it.
"""

SYSTEM = tuple(DATA)
"""All reserved types. Every other reserved name is refused with this list."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ESCAPE = re.compile(r"%([0-9A-F]{2})")
_ESCAPES = {code: f"%{code:02X}" for code in (*range(33), 127, *map(ord, "%*/"))}


def plain(text: str) -> str:
    """`text` as an exact str: `str(text)` of a member of a (str, Enum) is `"Kind.TRADE"`."""
    return str.__str__(text)


def kind_of(value: object) -> str:
    """The class of `value` with its article, such as "an int"."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def bad_name(name: object) -> str:
    """The reason why `name` cannot be the name of a bus; "" if it can."""
    if not isinstance(name, str):
        return f"{name!r} is {kind_of(name)}, not a string"
    return "" if _NAME.fullmatch(name) else f"{name!r} is not 1-64 characters of A-Z a-z 0-9 . _ -"


def bad_type(name: object) -> str:
    """The reason why `name` cannot be an event type; "" if it can. A reserved type can."""
    if not isinstance(name, str):
        kinds = "an EventType, your own StrEnum or plain text"
        return f"{name!r} is {kind_of(name)}; an event type is a string ({kinds})"
    text = plain(name)
    return bad_name(text) or (
        "" if text[0].isalnum() else f"{text!r} does not begin with a letter or digit"
    )


def bad_key(key: object) -> str:
    """The reason why `key` cannot be a key; "" if it can."""
    if not isinstance(key, str):
        return f"{key!r} is {kind_of(key)}, not a string"
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return f"{key!r} is not valid Unicode text"
    return "" if size <= MAX_KEY else f"{key[:40]!r}... has {size} bytes, more than {MAX_KEY}"


def starred(key: str) -> str:
    """The reason why no subscription can ask for `key`, so that no event may have it; "" if one
    can.
    """
    if "*" not in key:
        return ""
    return f"{key!r} has a `*`, which in `subscribe` stands for the rest of a key"


@dataclass(frozen=True, slots=True)
class Query:
    """What one subscription asks for. Make it with `Query.of`; compare by value. Keys select among
    ordinary types only: a reserved type that is named always matches.
    """

    types: frozenset[str]
    """The ordinary types by name; empty with `every`."""
    every: bool
    """True for `"*"`: every type that is not reserved."""
    reserved: frozenset[str]
    keys: frozenset[str]
    prefixes: tuple[str, ...]
    """With neither `keys` nor `prefixes`, every key matches."""

    @classmethod
    def of(cls, types: Any, key: str | Iterable[str] | None = None) -> "Query":
        """Check and sort what a user wrote: one or several types, `"*"` or `"aiobus.*"`; one or
        several keys or `"prefix*"`es. Raises TypeError for what is no string, ValueError for what
        can never match.
        """
        wanted = [types] if isinstance(types, str) else _listed(types, "types")
        rules = [] if key is None else [key] if isinstance(key, str) else _listed(key, "key")
        if not wanted:
            raise ValueError("no event types were given; name one, several, or '*' for all")
        if key is not None and not rules:
            raise ValueError(
                "an empty list of keys matches nothing; leave key= out to get every key"
            )
        for name in wanted:
            if name not in (EVERY_TYPE, EVERY):
                _refuse(name, _bad_wish(name))
        for rule in rules:
            _refuse(rule, _bad_rule(rule))
        prefixes = {rule[:-1] for rule in rules if rule.endswith("*")}
        names = {plain(name) for name in wanted} - {EVERY_TYPE, EVERY}
        if EVERY in wanted:
            names.update(SYSTEM)
        reserved = frozenset(name for name in names if name.startswith(RESERVED))
        return cls(
            types=frozenset() if "*" in wanted else frozenset(names - reserved),
            every="*" in wanted,
            reserved=reserved,
            keys=frozenset()
            if "" in prefixes
            else frozenset(plain(rule) for rule in rules if not rule.endswith("*")),
            prefixes=() if "" in prefixes else tuple(sorted(prefixes)),
        )

    def without(self, *reserved: str) -> "Query":
        """The same query without these reserved types."""
        return replace(self, reserved=self.reserved.difference(reserved))

    @property
    def named(self) -> list[str]:
        """The types as a user may write them."""
        return sorted([*self.types, *self.reserved, *(["*"] if self.every else [])])

    @property
    def wants_data(self) -> bool:
        """True if it asks for any type that is not reserved."""
        return self.every or bool(self.types)

    def has_types_of(self, other: "Query") -> bool:
        """True if both name the same types, with equal or different keys."""
        return (self.types, self.every, self.reserved) == (other.types, other.every, other.reserved)

    def matches(self, type: str, key: str) -> bool:
        """True if an event of this type and key is wanted."""
        return self.matches_type(type) and (type in self.reserved or self.matches_key(key))

    def matches_type(self, type: str) -> bool:
        """True if some event of this type could be wanted."""
        return (
            type in self.types
            or type in self.reserved
            or (self.every and not type.startswith(RESERVED))
        )

    def matches_key(self, key: str) -> bool:
        """True if an event of an ordinary type with this key could be wanted."""
        if not self.keys and not self.prefixes:
            return True
        return key in self.keys or key.startswith(self.prefixes)

    @property
    def text(self) -> str:
        """The query as another bus reads it: at most 1,024 bytes, so it may ask for more than is
        wanted, never for less. Without reserved types: "" if there is nothing else.
        """
        if self.every:
            return "*"
        shared = _common_prefix([*self.keys, *self.prefixes])
        for rules in (self.rules, [f"{_quoted(shared)}*"] if shared else [], []):
            text = " ".join(_patterns(self.types, rules))
            if len(text.encode()) <= MAX_QUERY:
                return text
        return "*"

    def __str__(self) -> str:
        """The exact query, of any length."""
        types = {"*"} if self.every else self.types
        reserved = [EVERY] if len(self.reserved) == len(SYSTEM) else sorted(self.reserved)
        return " ".join([*_patterns(types, self.rules), *reserved])

    @property
    def rules(self) -> list[str]:
        """Its keys and prefixes as the text has them, escaped; none for every key."""
        return [*map(_quoted, self.keys), *(f"{_quoted(prefix)}*" for prefix in self.prefixes)]


def parse_query(text: str) -> Query:
    """The query whose `text` is this: `parse_query(text).text == text`.

    Raises ValueError for every other text. Its reason quotes at most 80 characters of the text.
    """
    if len(text.encode()) > MAX_QUERY:
        raise ValueError(f"it has more than {MAX_QUERY} bytes")
    if text == "*":
        return Query.of(text)
    patterns = text.split(" ")
    types: set[str] = set()
    rules: set[str] = set()
    for pattern in patterns:
        name, slash, rule = pattern.partition("/")
        if reason := bad_type(name[:65]):
            raise ValueError(reason)
        if name.startswith(RESERVED):
            raise ValueError(f"{name!r} is reserved: such events do not leave their bus")
        types.add(name)
        rules.add(slash + rule)
    prefixes = {unquoted(rule[1:-1]) for rule in rules if rule.endswith("*")}
    if "" in prefixes:
        raise ValueError("a type with every key is written without a key")
    query = Query(
        types=frozenset(types),
        every=False,
        reserved=frozenset(),
        keys=frozenset(unquoted(rule[1:]) for rule in rules if rule and not rule.endswith("*")),
        prefixes=tuple(sorted(prefixes)),
    )
    if patterns != sorted(set(patterns)):
        raise ValueError("the patterns are not sorted, or one is there twice")
    # The counts are compared first, because the text of mismatched types and keys can be very long.
    if len(types) * len(rules) != len(patterns) or query.text != text:
        raise ValueError("not every type is there with every key; subscribe once for each")
    return query


def _quoted(key: str) -> str:
    return key.translate(_ESCAPES)


def unquoted(text: str) -> str:
    """The key, or its beginning, that this text stands for. Raises ValueError for other texts."""
    key = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text)
    if reason := bad_key(key):
        raise ValueError(reason)
    if _quoted(key) != text:
        raise ValueError(f"{key[:40]!r} is not escaped as it should be")
    return key


def _patterns(types: Iterable[str], rules: Iterable[str]) -> list[str]:
    return sorted(f"{name}/{rule}" for name in types for rule in rules) or sorted(types)


def _common_prefix(texts: list[str]) -> str:
    first, last = min(texts, default=""), max(texts, default="")
    return first[
        : next(
            (index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
            len(first),
        )
    ]


def _listed(values: object, what: str) -> list[str]:
    if not isinstance(values, Iterable) or isinstance(values, bytes):
        raise TypeError(f"{what}={values!r}: a string or several strings are needed")
    return list(values)


def _bad_wish(name: object) -> str:
    """The reason why no subscription can ask for the type `name`; "" if one can."""
    if isinstance(name, str) and "*" in name:
        return (
            f"{name!r} is no type: a `*` stands for every type and only by itself ({EVERY} is every"
            " system event); name each type, or put what varies into the key, of which 'beginning*'"
            " can be asked for"
        )
    reason = bad_type(name)
    if not reason and isinstance(name, str) and name.startswith(RESERVED) and name not in SYSTEM:
        own = f"{EVERY} is every type of the bus's own: {', '.join(SYSTEM)}"
        reason = f"{name!r} is never published; {own}"
    return reason


def _bad_rule(rule: object) -> str:
    """The reason why `rule` matches no key; "" if one can."""
    key = rule.removesuffix("*") if isinstance(rule, str) else rule
    if reason := bad_key(key):
        return reason
    if isinstance(rule, str) and starred(str(key)):
        return (
            f"{rule!r} has a `*` that is not its end: no key has one, and 'beginning*' is all that"
            " it can ask for; select by anything else with where="
        )
    return ""


def _refuse(value: object, reason: str) -> None:
    if reason:
        raise (ValueError if isinstance(value, str) else TypeError)(reason)


EVERYTHING = Query.of(EVERY_TYPE)
"""What a monitor asks for."""
