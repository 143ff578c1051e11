"""Discovery: how the members of a mesh find each other, in a directory or at rendezvous addresses.

Owns the Protocol of both. A discovery knows where members listen. What members send to each other,
and whether they still answer, belongs to the mesh.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

from aiobus.errors import BusError

__all__ = [
    "OBSERVES", "Discovery", "DiscoveryCallbacks", "Member", "is_observer", "place_of",
]  # fmt: skip

OBSERVES = "+"
"""Ends the endpoint of an observer. So whoever knows of one knows that it is one before it has said
anything: it may be frozen. And no message can make an observer of another bus.
"""


def is_observer(endpoint: str) -> bool:
    """True if the bus that listens there is an observer: no other bus waits for it."""
    return endpoint.endswith(OBSERVES)


def place_of(endpoint: str) -> str:
    """The endpoint without that mark. One process listens there, as an observer or not."""
    return endpoint.removesuffix(OBSERVES)


class Member(NamedTuple):
    """A bus named `name` that listens at `endpoint`."""

    name: str
    endpoint: str


def _ignore(*_: object) -> None:
    """Who does not listen to it, is not told."""


class DiscoveryCallbacks(NamedTuple):
    """What `Discovery.watch` calls. None of these may wait or raise."""

    on_discovered: Callable[[Member], None]
    """Another member was found."""
    on_problem: Callable[[str, str], None]
    """A problem has begun or ended that a user should know: its topic, and a sentence."""
    on_name_lost: Callable[[BusError], None]
    """Another bus has the name of this one by now, so this one has to end."""
    on_told: Callable[[str, str], None] = _ignore
    """A member, by name, has told this bus that it makes no link to it, and why: one of TOLD
    (`refusals`). Called once or several times for one refusal.
    """
    on_refused: Callable[[str, str, int], None] | None = None
    """A connection of or to an address was refused: the address, a sentence whose subject is that
    address, and how often since this was said last. Called once a minute at most for each address
    and sentence. The address is "" if many others were refused lately. None: it is logged.
    """
    on_gone: Callable[[Member], None] = _ignore
    """A member that was only claimed (`Discovery.is_claimed`) is claimed no more."""


class Discovery(Protocol):
    """How a bus finds the other buses of its URL."""

    @property
    def endpoint(self) -> str:
        """What other members are told of where this bus listens, from the end of `join` on."""
        ...

    @property
    def out_of_reach(self) -> Collection[Member]:
        """The members that `join` has returned though a connection to them was neither accepted nor
        refused: their host is down or cut off. A start does not wait for them.
        """
        ...

    @property
    def unreached(self) -> Collection[str]:
        """Where discovery does not answer: there may be members that this one has not met. Empty
        if that cannot be.
        """
        ...

    async def join(
        self,
        name: str,
        bind: Callable[[str], str],
        on_discovered: Callable[[Member], None],
        *,
        observes: bool = False,
    ) -> list[Member]:
        """Become a member under `name` and return the other members. `on_discovered(member)` is
        called for members that are heard of later, possibly more than once.

        `observes`: as an observer, which its endpoint says. `bind(endpoint)` makes this bus listen
        and returns its endpoint; it is called once here.
        Raises NameInUse if the discovery itself can tell, and BusError if members cannot meet.
        Cancelling or failing leaves nothing behind.
        """
        ...

    def watch(self, callbacks: DiscoveryCallbacks, bind: Callable[[str], str]) -> None:
        """Check that others can still find this bus, and report problems to `callbacks`. Call it
        several times a second from the end of `join` until `leave`. Never waits.
        """
        ...

    def allows(self, member: Member) -> bool:
        """True if a member may listen at this endpoint. Peers are not trusted to say where to
        connect to.
        """
        ...

    def remember(self, member: Member) -> None:
        """`member` was met on the bus: members that join here later are to find it."""
        ...

    def is_claimed(self, member: Member) -> bool:
        """True if only `member` itself has told where it listens, and no bus that is known here
        has met it on a link. Where names are not proven, always False.
        """
        ...

    def forget(self, member: Member) -> None:
        """`member` has closed, and no process listens there: members that join here later are not
        to look for it, as another program may have its port by then.
        """
        ...

    def tell_refused(self, to: str, cause: str) -> None:
        """Let the member named `to` know that this bus makes no link to it, and why: one of TOLD
        (`refusals`). Nothing happens if no sealed way leads there, or if much was told within the
        last minute. Never waits.
        """
        ...

    async def probe_accepting(self, members: Collection[Member]) -> list[Member]:
        """The members whose endpoint accepts a connection. Waits 1 s at most."""
        ...

    async def probe_absent(self, members: Collection[Member]) -> list[Member]:
        """The members at whose endpoint it is certain that no process listens: they are dropped for
        good. Waits 1 s at most.
        """
        ...

    def owns_address(self, address: object) -> bool:
        """True if `address`, a socket's own or peer address as the `socket` module gives it,
        belongs to this discovery: a forked child must close such a socket.
        """
        ...

    def descriptors(self) -> set[int]:
        """Descriptors that a forked child must close, besides the sockets of `owns_address`."""
        ...

    async def leave(self) -> None:
        """Stop being a member: nothing stays open and no file is left. Again: no effect."""
        ...
