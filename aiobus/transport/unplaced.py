"""Peers for which there was no place among those that are linked or looked for: who they are, and
since when they are owed what is published here.

Owns the memory of them, and its bound. Must not know whether a process is there, nor when there is
a place again. Pure.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from aiobus.transport.meeting import Member
from aiobus.wire import Who

__all__ = ["MORE", "Left", "Unplaced"]

MAX_LEFT_OUT = 16_384
"""Peers that are remembered by name."""
MORE = "(more peers than are remembered)"
"""Stands for the peers beyond these. It is no name that a bus can have."""


@dataclass(slots=True, eq=False)
class Left:
    """A peer that was left out. `who`: as it has said, while its hello is here."""

    member: Member
    found_at: int
    who: Who | None
    is_said: bool = False
    """It was looked for, and is there."""
    has_ended: bool = False
    """It was looked for, and no process listens there."""


class Unplaced:
    """The peers without a place, by endpoint."""

    def __init__(self) -> None:
        self._left: dict[str, Left] = {}
        self._more_since: float = math.inf
        """What was published after that is owed to peers whose names are not remembered."""

    def __contains__(self, left: Left) -> bool:
        return self._left.get(left.member.endpoint) is left

    def __len__(self) -> int:
        return len(self._left)

    def add(self, member: Member, found_at: int, who: Who | None) -> bool:
        """There is no place for a peer that is owed what is published after `found_at`. False when
        its name cannot be remembered.
        """
        before = self._left.get(member.endpoint)
        if before is not None:
            before.who = who or before.who
        elif len(self._left) < MAX_LEFT_OUT:
            self._left[member.endpoint] = Left(member, found_at, who)
        else:
            self._more_since = min(self._more_since, found_at)
            return False
        return True

    def pop(self, endpoint: str) -> Left | None:
        """The one at this endpoint has a place now, or is gone; return it if it was left out."""
        return self._left.pop(endpoint, None)

    def withdraw(self, who: Who) -> None:
        """The hello of `who` is gone."""
        left = self._left.get(who.endpoint)
        if left is not None and left.who == who:
            left.who = None

    def unsaid(self, most: int) -> list[Left]:
        """Some of those that were not looked for yet."""
        return list(islice((each for each in self._left.values() if not each.is_said), most))

    def turn(self, most: int) -> list[Left]:
        """Some of all; each time those that had to wait."""
        some = list(islice(self._left.values(), most))
        for each in some:
            self._left[each.member.endpoint] = self._left.pop(each.member.endpoint)
        return some

    def owed(self, newest: float) -> list[Left]:
        """Those that are owed something of what was published up to `newest`."""
        return [each for each in self._left.values() if each.found_at < newest]

    def more(self, newest: float) -> set[str]:
        """`MORE`, if something of that is owed to peers whose names are not remembered."""
        return {MORE} if self._more_since < newest else set()


def batches(some: Iterable[Left], size: int) -> Iterable[list[Left]]:
    """`some` in lists of at most `size`."""
    rest = iter(some)
    while batch := list(islice(rest, size)):
        yield batch
