"""The seam between a mesh and the way its members find each other: a directory, or an address that
everybody knows.

Owns the one Protocol. A meeting knows where members listen and nothing else: what they say to each
other, and whether they still answer, is the mesh's business.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

from aiobus.errors import BusError

__all__ = [
    "Discovery",
    "Member",
    "Told",
]


class Member(NamedTuple):
    """Somebody who listens at `endpoint` under `name`."""

    name: str
    endpoint: str


class Told(NamedTuple):
    """What is called with what `Discovery.watch` notices. Nothing here waits or raises."""

    on_found: Callable[[Member], None]
    """Another member was found."""
    on_trouble: Callable[[str, str], None]
    """Something is wrong, or is no more, that a user should read: a topic, and a sentence."""
    on_lost: Callable[[BusError], None]
    """Another bus has this one's name by now: this one is to end."""


class Discovery(Protocol):
    """How a bus finds the others of its URL."""

    @property
    def unreached(self) -> Collection[str]:
        """The meeting places that have not answered: there may be members that this one has not
        met. Empty where that cannot be.
        """
        ...

    async def join(
        self, name: str, bind: Callable[[str], str], found: Callable[[Member], None]
    ) -> list[Member]:
        """Take a place under `name` and return who else is there; `found` is told of whoever is
        heard of later, perhaps more than once.

        `bind(endpoint)` makes this bus listen and returns the endpoint that it got; it is called
        once here. Raises NameInUse where the meeting itself can tell, and BusError where members
        cannot meet. Cancelling or failing leaves nothing behind.
        """
        ...

    def watch(self, told: Told, bind: Callable[[str], str]) -> None:
        """Look whether others can still find this bus, and say to `told` what is wrong. Call
        it several times a second from the end of `join` until `leave`. Never waits.
        """
        ...

    def admits(self, member: Member) -> bool:
        """True when a member of this meeting may be listening there: peers are not trusted to say
        where to connect to.
        """
        ...

    def remember(self, member: Member) -> None:
        """Somebody was met otherwise: whoever asks this bus who is there is to hear of it."""
        ...

    async def accepting(self, members: Collection[Member]) -> list[Member]:
        """Those of `members` whose endpoint accepts a connection. Waits 1 s at most."""
        ...

    async def absent(self, members: Collection[Member]) -> list[Member]:
        """Those of `members` at whose endpoint it is certain that no process listens any more: they
        are given up for good. Waits 1 s at most.
        """
        ...

    def mine(self, address: object) -> bool:
        """True when a socket's own or peer `address`, as the `socket` module gives it, belongs to
        the meeting: what a forked child must not keep open.
        """
        ...

    def descriptors(self) -> set[int]:
        """Descriptors, other than sockets that `mine` tells, that a forked child must close."""
        ...

    async def leave(self) -> None:
        """Give the place up: nothing stays open and no file is left. Again: nothing."""
        ...
