"""The list of a desk's members: the public key of each, and what it may publish and subscribe to.

Owns the form of the list as text, and the questions that a bus asks of it. Pure: where the text
comes from, and whose secret keys there are, is not known here. A list does not change; a change of
it is another list, whose number is higher.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from aiobus.errors import KeyringError
from aiobus.limits import MAX_MEMBERS
from aiobus.query import RESERVED, Query, bad_name, bad_type, kind_of

__all__ = ["EVERYTHING", "NOTHING", "Member", "Members", "Rules", "bad_key_text", "bad_rule"]

KEY = 40
"""Characters of a key as Z85 (ZeroMQ RFC 32)."""
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
VALUES = {digit: value for value, digit in enumerate(DIGITS)}
MOST_NUMBER = 2**53
"""Beyond it another program that reads the list as JSON would round."""
RULES = ("publish", "subscribe")


def bad_key_text(key: object) -> str:
    """The reason why `key` is no public key; "" if it is one. Does not quote it, because a secret
    may have been given by mistake.
    """
    if not isinstance(key, str):
        return f"a key is a text, not {kind_of(key)}"
    if len(key) != KEY or not VALUES.keys() >= {*key}:
        return f"a key is {KEY} characters of Z85, as `python -m aiobus keygen` prints it"
    for start in range(0, KEY, 5):
        value = 0
        for digit in key[start : start + 5]:
            value = value * 85 + VALUES[digit]
        if value >= 2**32:
            return f"a key is 32 bytes as Z85, and characters {start + 1} to {start + 5} are none"
    return ""


def bad_rule(type: object) -> str:
    """The reason why `type` cannot be named by a rule; "" if it can."""
    if type == "*":
        return "'*' is no type: leave the rule out, and every type is allowed"
    if reason := bad_type(type):
        return reason
    if str(type).startswith(RESERVED):
        return f"{type!r}: types that begin with {RESERVED!r} are the bus's own and need no rule"
    return ""


@dataclass(frozen=True, slots=True)
class Rules:
    """The types that a member may publish and may subscribe to; None: every type."""

    publish: frozenset[str] | None = None
    subscribe: frozenset[str] | None = None

    def may_publish(self, type: str) -> bool:
        """True if the member may publish events of this type."""
        return self.publish is None or type in self.publish

    def may_subscribe(self, query: Query) -> bool:
        """True if the member may be sent all that `query` matches. So `*` of a restricted member is
        refused, and not narrowed: it would seem to get everything.
        """
        if self.subscribe is None:
            return True
        return not query.every and not self.denied(query)

    def denied(self, query: Query) -> frozenset[str]:
        """The types that `query` names and the member may not subscribe to."""
        return frozenset() if self.subscribe is None else query.types - self.subscribe

    def told(self, queries: str) -> str:
        """Of the queries that a member tells to have, those that it is sent."""
        if self.subscribe is None:
            return queries
        some = (each for each in queries.split() if each.partition("/")[0] in self.subscribe)
        return " ".join(some)


EVERYTHING = Rules()
NOTHING = Rules(frozenset(), frozenset())


@dataclass(frozen=True, slots=True)
class Member:
    """A member by name, its public key as Z85, and its rules."""

    name: str
    key: str
    rules: Rules = EVERYTHING


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Members:
    """A list: the members by name, and the names of revoked keys. `number` is that of the list."""

    number: int = 0
    by_name: Mapping[str, Member] = field(default_factory=_nothing)
    revoked: Mapping[str, str] = field(default_factory=_nothing)

    @cached_property
    def by_key(self) -> Mapping[str, Member]:
        """The members by public key."""
        return MappingProxyType({member.key: member for member in self.by_name.values()})

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that another list does not have."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def rules_of(self, name: str) -> Rules:
        """What a bus of this name may do: everything on a desk without keys, whose list is empty,
        and nothing if it is no member any more.
        """
        if not (self.by_name or self.revoked):
            return EVERYTHING
        member = self.by_name.get(name)
        return NOTHING if member is None else member.rules

    @property
    def text(self) -> str:
        """The list as a file, which `parse` reads."""
        lines = [f"number = {self.number}", ""]
        for member in sorted(self.by_name.values(), key=lambda each: each.name):
            lines += [f'[members."{member.name}"]', f'key = "{member.key}"']
            for what in RULES:
                if (types := getattr(member.rules, what)) is not None:
                    listed = ", ".join(f'"{each}"' for each in sorted(types))
                    lines.append(f"{what} = [{listed}]")
            lines.append("")
        lines.append("[revoked]")
        lines += [f'"{key}" = "{name}"' for key, name in sorted(self.revoked.items())]
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, text: str, where: str = "desk.members") -> "Members":
        """The list that `text` is. Raises KeyringError that begins with `where`, and names the line
        or the member, and the way out.
        """
        import tomllib  # not sooner: a bus without keys does not pay for it

        try:
            said = tomllib.loads(text)
        except RecursionError:
            raise KeyringError(f"{where}: it is nested too deep to be a list of members") from None
        except ValueError as error:  # the text has line and column
            raise KeyringError(f"{where} is no TOML: {error}") from None
        try:
            return cls._of(said)
        except _Wrong as wrong:
            raise KeyringError(f"{where}: {wrong}") from None

    @classmethod
    def _of(cls, said: dict[str, Any]) -> "Members":
        _only(said, ("number", "members", "revoked"), "the list")
        number = said.get("number")
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number < MOST_NUMBER:
            raise _Wrong("`number = N` is needed, from 1 on, and higher with each change")
        by_name = {
            name: _member(name, each) for name, each in _table(said, "members", MAX_MEMBERS).items()
        }
        revoked = _table(said, "revoked", MAX_MEMBERS)
        for at, (key, name) in enumerate(revoked.items(), 1):
            if reason := bad_key_text(key):
                raise _Wrong(f"[revoked], entry {at}: {reason}")
            if reason := bad_name(name):
                raise _Wrong(f"[revoked], entry {at}: its name {reason}")
        owners: dict[str, str] = {}
        for member in by_name.values():
            if (other := owners.setdefault(member.key, member.name)) != member.name:
                raise _Wrong(
                    f"{other!r} and {member.name!r} have the same key: each member has its own,"
                    f" made by `python -m aiobus keygen {member.name}` on its host"
                )
            if member.key in revoked:
                raise _Wrong(
                    f"the key of {member.name!r} is revoked as well: take the member out, or make"
                    " it a new key; a key that was revoked is never used again"
                )
        return cls(number, MappingProxyType(by_name), MappingProxyType(revoked))

    def with_member(self, member: Member) -> "Members":
        """The next list, with this member, in place of one of its name. Raises KeyringError if that
        list could not be read.
        """
        by_name = {**self.by_name, member.name: member}
        return self._next(by_name=by_name)

    def without(self, name: str) -> "Members":
        """The next list, in which this member is revoked. Raises KeyError if it is none,
        KeyringError if that list could not be read.
        """
        by_name = dict(self.by_name)
        key = by_name.pop(name).key
        return self._next(by_name=by_name, revoked={**self.revoked, key: name})

    def _next(self, **changed: Any) -> "Members":
        """Read again from its text, so that nothing is written that cannot be read."""
        for member in changed["by_name"].values():
            if reason := bad_name(member.name) or bad_key_text(member.key):
                raise KeyringError(f"member {member.name!r}: {reason}")
            for type in (member.rules.publish or frozenset()) | (member.rules.subscribe or set()):
                if reason := bad_rule(type):
                    raise KeyringError(f"member {member.name!r}: {reason}")
        return Members.parse(replace(self, number=self.number + 1, **changed).text, "the next list")


class _Wrong(ValueError):
    """What is wrong with a list, without its file."""


def _only(said: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    for name, value in said.items():
        if name not in known:
            hint = ""
            if what != "the list" and isinstance(value, dict):
                hint = '. A name with a dot stands in quotes, such as [members."feed.binance"]'
            raise _Wrong(f"{what} has {_short(name)}, and it may have {', '.join(known)}{hint}")


def _table(said: Mapping[str, Any], name: str, most: int) -> dict[str, Any]:
    table = said.get(name, {})
    if not isinstance(table, dict):
        raise _Wrong(f"`{name}` is {kind_of(table)}; a table [{name}] is needed")
    if len(table) > most:
        hint = "remove lines of it: a key that is not on the list is refused as well"
        raise _Wrong(
            f"[{name}] has {len(table):,} entries, more than {most:,}"
            + (f"; {hint}" if name == "revoked" else "; a desk has no more")
        )
    return table


def _member(name: str, said: Any) -> Member:
    if bad_name(name):
        raise _Wrong(f"member {_short(name)}: a name is 1-64 characters of A-Z a-z 0-9 . _ -")
    what = f"member {name!r}"
    if not isinstance(said, dict):
        raise _Wrong(f"{what} is {kind_of(said)}; a table [members.{name}] with its key is needed")
    _only(said, ("key", *RULES), what)
    if "key" not in said:
        raise _Wrong(f"{what} has no key; `python -m aiobus keygen {name}` on its host prints one")
    if reason := bad_key_text(said["key"]):
        raise _Wrong(f"{what}: {reason}")
    return Member(name, said["key"], Rules(*(_rule(what, said, each) for each in RULES)))


def _rule(what: str, said: Mapping[str, Any], rule: str) -> frozenset[str] | None:
    if rule not in said:
        return None
    types = said[rule]
    if not isinstance(types, list):
        raise _Wrong(f'{what}: `{rule}` is {kind_of(types)}; a list such as ["TRADE"] is needed')
    for type in types:
        if reason := bad_rule(type):
            raise _Wrong(f"{what}: `{rule}`: {_cut(reason)}")
    return frozenset(types)


def _short(name: object) -> str:
    return _cut(repr(name))


def _cut(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:80]} ... {text[-80:]}"
