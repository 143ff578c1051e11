"""The seam between a mesh and what carries its bytes: sockets, or a network in memory.

Owns the Protocols on both sides. A network connects, filters by topic and keeps the order of each
link; it may lose. What the bytes say, who is there and what was lost is the mesh's business.
"""

from collections.abc import Collection
from typing import Protocol

from aiobus.discovery import Member, Told

__all__ = [
    "Ears",
    "Network",
]


class Ears(Told, Protocol):
    """Who hears what a network brings. Nothing here waits or raises."""

    def on_up(self, message: bytes, link: int | None) -> None:
        """From below, somebody who is connected to this bus: a topic that is asked for (first byte
        1) or withdrawn (0), or a question. `link` is the number of the connection that it came on;
        None for a topic that was withdrawn because its last connection ended. A number may be used
        again once its connection has ended. A topic comes with each connection that asks for it,
        and its withdrawal with the last.
        """
        ...

    def on_down(self, message: bytes) -> None:
        """From above, somebody this bus is connected to: a message on a topic it asked for."""
        ...


class Network(Protocol):
    """Links of one bus to others: each carries topics and questions up and messages down."""

    @property
    def unreached(self) -> Collection[str]:
        """The meeting places where there may be members that this one has not met."""
        ...

    async def open(self, name: str, ears: Ears) -> tuple[str, list[Member]]:
        """Listen, join, and return the own endpoint and who is there. `ears` hear nothing before
        the caller's next await.

        Raises NameInUse. Cancelling or failing leaves nothing open.
        """
        ...

    def admits(self, member: Member) -> bool:
        """True when a member may be listening there."""
        ...

    def remember(self, member: Member) -> None:
        """A member was met that said hello by itself."""
        ...

    async def accepting(self, members: Collection[Member]) -> list[Member]:
        """Those of `members` whose endpoint accepts a connection. Waits 1 s at most."""
        ...

    async def absent(self, members: Collection[Member]) -> list[Member]:
        """Those of `members` at whose endpoint nobody listens any more. Waits 1 s at most."""
        ...

    def connect(self, endpoint: str) -> None:
        """Link to whoever listens there, now or later; again after a break, by itself."""
        ...

    def disconnect(self, endpoint: str) -> None:
        """End the link. What was received on it is heard first."""
        ...

    def end_link(self, link: int) -> None:
        """End a link that another bus has made to this one, by its number. The other side may make
        it again at once. No error when it has ended already.
        """
        ...

    def subscribe(self, topic: bytes) -> None:
        """Ask every link for messages that begin with `topic`, now and after each break."""
        ...

    def unsubscribe(self, topic: bytes) -> None:
        """Withdraw one `subscribe`."""
        ...

    def ask(self, question: bytes) -> None:
        """Send a question up every link, behind the topics asked for before. It may get lost."""
        ...

    def send(self, message: bytes) -> None:
        """Send a message down to all who asked for the topic that it begins with. It may get
        lost, for those who are too slow. Neither waits nor raises.
        """
        ...

    async def read_ends(self) -> None:
        """Return once no end of a link is half read: each of its topics is withdrawn by a message
        of its own, and until all are heard its bus seems to listen, and to ask for less.
        """
        ...

    def watch(self) -> None:
        """Look whether something came that nobody was woken for. Call it once a second."""
        ...

    async def close(self, timeout: float) -> None:
        """Give the place up and end all links; what was sent has `timeout` seconds to leave."""
        ...
