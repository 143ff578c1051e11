"""The list of a desk's members: the public key of each, and what it may publish and subscribe to.

Owns the form of the list as text, and the questions that a bus asks of it. Pure: where the text
comes from, and whose secret keys there are, is not known here. A list does not change; a change of
it is another list, whose number is higher.
"""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from aiobus.query import Query

__all__ = ["EVERYTHING", "Member", "Members", "Rules"]

KEY = 40
"""Characters of a key as Z85 (ZeroMQ RFC 32)."""
Z85 = frozenset(
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
)


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
        return not query.every and self.subscribe.issuperset(query.types)

    def told(self, queries: str) -> str:
        """Of the queries that a member tells to have, those that it is sent."""
        if self.subscribe is None:
            return queries
        some = (each for each in queries.split() if each.partition("/")[0] in self.subscribe)
        return " ".join(some)


EVERYTHING = Rules()


@dataclass(frozen=True, slots=True)
class Member:
    """A member by name, its public key as Z85, and its rules."""

    name: str
    key: str
    rules: Rules = EVERYTHING


@dataclass(frozen=True)
class Members:
    """A list: the members by name, and the names of revoked keys. `number` is that of the list."""

    number: int = 0
    by_name: Mapping[str, Member] = field(default_factory=dict)
    revoked: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def by_key(self) -> Mapping[str, Member]:
        """The members by public key."""
        return {member.key: member for member in self.by_name.values()}

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that another list does not have."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def text(self) -> str:
        """The list as a file, which `parse` reads."""
        lines = [f"number = {self.number}", ""]
        for member in sorted(self.by_name.values(), key=lambda each: each.name):
            lines += [f'[members."{member.name}"]', f'key = "{member.key}"']
            for what in ("publish", "subscribe"):
                if (types := getattr(member.rules, what)) is not None:
                    listed = ", ".join(f'"{each}"' for each in sorted(types))
                    lines.append(f"{what} = [{listed}]")
            lines.append("")
        lines.append("[revoked]")
        lines += [f'"{key}" = "{name}"' for key, name in sorted(self.revoked.items())]
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, text: str) -> "Members":
        """The list that `text` is. Raises ValueError that names what is wrong and where."""
        said = tomllib.loads(text)
        by_name = {
            name: Member(
                name,
                each["key"],
                Rules(
                    *(
                        frozenset(each[what]) if what in each else None
                        for what in ("publish", "subscribe")
                    )
                ),
            )
            for name, each in said.get("members", {}).items()
        }
        return cls(said["number"], by_name, said.get("revoked", {}))

    def with_member(self, member: Member) -> "Members":
        """The next list, with this member, in place of one of its name."""
        return replace(self, number=self.number + 1, by_name={**self.by_name, member.name: member})

    def without(self, name: str) -> "Members":
        """The next list, in which this member is revoked. Raises KeyError if it is none."""
        by_name = dict(self.by_name)
        key = by_name.pop(name).key
        return replace(
            self, number=self.number + 1, by_name=by_name, revoked={**self.revoked, key: name}
        )
