"""The seams of a mesh: the network that carries its bytes, and the event loop that drives it.

Owns the Protocol of a network, of which there are two: sockets, and one in memory. A network
connects, filters by topic and keeps the order of each link; it may lose messages. Owns what the
conversation asks of its driver. What the bytes mean, who is there and what was lost is the
conversation's business (`session`).
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from aiobus.discovery import Member
from aiobus.keyring.members import Members

__all__ = ["Driver", "FromPublisher", "FromSubscriber", "KeyCallbacks", "Network", "Probe"]

FromSubscriber = Callable[[bytes, int | None, str], None]
"""Takes a message of a bus that is connected to this one, the number of its connection, and the
name that its sender has proven, "" if the network proves none. The message is a topic that it asks
for (first byte 1) or withdraws (0), or a question. A topic comes with each connection that asks for
it, its withdrawal with the last; if that connection has ended, the number is None, and may be used
again. Neither waits nor raises.
"""
FromPublisher = Callable[[bytes, float, str], None]
"""Takes a message of a bus that this one is connected to, on a topic that this one asked for, when
it was read, in monotonic seconds, and the name that its sender has proven, as above. Neither waits
nor raises.
"""


class KeyCallbacks(NamedTuple):
    """What a network that proves names asks, and tells. Nothing here waits or raises."""

    admit: Callable[[bytes, int, str], bool]
    """True if the bus that has proven this name may be sent what begins with a topic, on the
    connection of that number. Asked for each topic that is asked for.
    """
    on_refused: Callable[[str, str, str, int], None]
    """Takes the address of a bus that is not linked because of keys, the cause (`refusals`), its
    name or "", and how often: this bus does not let it in, or it does not let this one in.
    """
    on_strange: Callable[[str], None]
    """A message has come that is no topic, of the bus of this name; "" for one that is no member
    any more. Its link is ended.
    """
    on_members: Callable[[], None]
    """The list of members was read again."""
    on_problem: Callable[[str, str], None]
    """The keyring cannot be read: a topic, and a sentence."""


@dataclass(slots=True, eq=False)
class Probe:
    """A look at endpoints. `conclude` takes those that refuse, or accept if `for_accepting`."""

    members: Collection[Member]
    conclude: Callable[[Collection[Member]], None]
    for_accepting: bool = False
    is_over: bool = False
    """The look has concluded, or failed. The driver says so."""


class Driver(NamedTuple):
    """The event loop, as the conversation uses it. Nothing here waits or raises."""

    soon: Callable[[Callable[[], None]], object]
    """Calls a function at the next turn of the loop."""
    later: Callable[[float, Callable[[], None]], object]
    """Calls a function after so many seconds, unless the bus closes before. Asked again for the
    same function before that, it calls it once, at the later request's time.
    """
    probe: Callable[[Probe], object]
    """Begins a probe, which concludes at a later turn of the loop, unless the bus closes before."""


class Network(Protocol):
    """The links of one bus. Questions and topics go to publishers, messages go to subscribers."""

    @property
    def members(self) -> Members:
        """Who may be linked, and do what; empty if the network proves no names."""
        ...

    def open(self, name: str) -> None:
        """Get ready to `bind` and `connect`. What arrives waits for `start`."""
        ...

    def bind(self, endpoint: str) -> str:
        """Listen, and return the endpoint with the port that was given. Raises OSError."""
        ...

    def start(
        self, from_subscriber: FromSubscriber, from_publisher: FromPublisher, keys: KeyCallbacks
    ) -> None:
        """Hand over what arrives, from the next turn of the loop on."""
        ...

    def connect(self, endpoint: str, name: str) -> None:
        """Link to the bus that listens there, now or later, and again after each break. A network
        that proves names links with the bus of this name alone.
        """
        ...

    def may_listen(self, endpoint: str, name: str) -> bool:
        """False if it is known that another bus than the one of this name listens there. True
        where no names are proven.
        """
        ...

    def disconnect(self, endpoint: str) -> None:
        """End the link. What was received on it is handed over first."""
        ...

    def end_link(self, link: int) -> None:
        """End a link that another bus has made to this one, by its number. The other side may make
        it again at once. No error if it has ended already.
        """
        ...

    def subscribe(self, topic: bytes) -> None:
        """Ask every link for messages that begin with `topic`, now and after each break."""
        ...

    def unsubscribe(self, topic: bytes) -> None:
        """Withdraw one `subscribe`."""
        ...

    def ask(self, question: bytes, to: str) -> None:
        """Send a question to the publisher of this name, or to all for "*", behind earlier topics.
        It may get lost, and others may get it as well.
        """
        ...

    def send(self, message: bytes) -> None:
        """Send to all subscribers of its topic; a slow one loses it. Neither waits nor raises."""
        ...

    async def read_ends(self) -> None:
        """Return once no end of a link is half read: each of its topics is withdrawn by a message
        of its own, and until all are read its bus seems to listen, and to ask for less.
        """
        ...

    def check_wakeups(self) -> None:
        """Look for messages that arrived without waking the reader. Call it once a second."""
        ...

    def check_admission(self, on_problem: Callable[[str, str], None]) -> None:
        """Let no bus link with this one while file descriptors are short, and report each change:
        its topic, and a sentence. Call it several times a second. Never waits.
        """
        ...

    async def close(self, timeout: float) -> None:
        """End all links. What was sent has `timeout` seconds to leave. Again: nothing."""
        ...
