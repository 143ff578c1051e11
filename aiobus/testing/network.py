"""Waiting until nothing happens any more among several buses.

Owns what that means, and who is named when it takes too long. Must not know how messages travel: it
is told whether any are on their way.


A network in memory: for tests of strategies that talk to each other, and of the bus itself.

Owns who is connected to whom and what is asked for where, just as with the sockets of ZeroMQ. Must
not know what the bytes say; what goes wrong with them is `transport.memory`'s. Everything happens
on the running loop, in callbacks of its own; there are no threads and no sockets."""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from contextvars import Context
from typing import Any
from weakref import WeakSet

from aiobus.bus import AsyncEventBus
from aiobus.clock import elapsed
from aiobus.discovery import Member, Told
from aiobus.errors import BusClosed, BusError, NameInUse
from aiobus.lifecycle import State
from aiobus.mesh import FromPublisher, FromSubscriber
from aiobus.mesh.transport import MeshTransport
from aiobus.options import check_timeout
from aiobus.testing.faults import END, Faults, Lane, Medium, Message

__all__ = [
    "Faults",
    "MemoryNetwork",
    "Message",
    "Settling",
]

PAUSE = 0.01
"""Seconds between two looks: a link that comes back is not announced to anybody."""


class Settling:
    """`buses` are those that are open now; `is_quiet` tells whether no message is on its way, and
    `is_partitioned` whether some cannot reach each other.
    """

    def __init__(
        self,
        buses: Callable[[], list[AsyncEventBus]],
        is_quiet: Callable[[], bool],
        is_partitioned: Callable[[], bool],
    ) -> None:
        self._buses = buses
        self._is_quiet = is_quiet
        self._is_partitioned = is_partitioned

    async def wait(self, timeout: float) -> None:
        """Wait, as `MemoryNetwork.settle` says."""
        check_timeout(timeout)
        end = asyncio.get_running_loop().time() + timeout
        before: dict[str, int] | None = None
        now = self._published()
        while now != before:
            if before is not None and _left(end) == 0.0:
                raise self._failure(timeout, before)
            await asyncio.sleep(0)  # what was joined for the end of the tick leaves
            try:
                while busy := await self._busy(end):
                    if _left(end) == 0.0:
                        raise self._failure(timeout, before or {}, busy)
                    await asyncio.sleep(PAUSE)
                before, now = now, self._published()
            except BusClosed:
                pass  # meanwhile: look again who is there

    def _published(self) -> dict[str, int]:
        return {bus.name: bus.stats().published for bus in self._buses()}

    def _failure(self, timeout: float, before: dict[str, int], busy: str = "") -> TimeoutError:
        now = self._published()
        names = " and ".join(name for name in now if now[name] != before.get(name))
        reasons = filter(None, [busy, names and f"still published by {names}"])
        return TimeoutError(f"not settled within {timeout:g} s: {'; '.join(reasons)}")

    async def _busy(self, end: float) -> str:
        """Who is busy, in words; "" if none is. Waits until `end` for them to finish."""
        buses = self._buses()
        if any(bus._subscriptions.at_work() is not None for bus in buses):
            raise BusError("settle() inside a handler would wait for it; call it from outside")
        if self._is_partitioned():
            return self._under_way(buses)
        names = {bus.name for bus in buses}
        lacking = {bus.name: names.intersection(await bus.flush(_left(end))) for bus in buses}
        busy = [
            f"{' and '.join(sorted(who))} lacks events of {name}"
            for name, who in lacking.items()
            if who
        ]
        for bus in buses if not busy else ():
            try:
                await bus.settle(_left(end))
            except TimeoutError as error:
                busy.append(f"{bus.name} is {error}")
        return "; ".join(busy)

    def _under_way(self, buses: list[AsyncEventBus]) -> str:
        """The same where some things cannot arrive: what is missing is not waited for."""
        for bus in buses:
            bus._life.pop_failure()
        busy = [
            f"{bus.name} is at {receiver.name}"
            for bus in buses
            for receiver in bus._subscriptions
            if receiver.pending or receiver.in_hand
        ]
        if not self._is_quiet():
            busy.append("messages are on their way")
        return "; ".join(busy)


def _left(end: float) -> float:
    return max(0.0, end - asyncio.get_running_loop().time())


URL = "memory://"


class MemoryNetwork(Medium):
    """Buses of one process that meet as those of `ipc://` do, without sockets::

        network = MemoryNetwork(seed=7, faults=Faults(loss=0.01))
        async with network.bus("feed") as feed, network.bus("strategy") as strategy:
            network.partition({"feed"}, {"strategy"})
            ...
            network.heal()

    What happens to the n-th message of a link depends on `seed` and nothing else, as long as
    `faults` stay the same; they may be changed at any time. `high_water_mark` is how many messages
    may be on their way down a link; further ones are lost, as with ZeroMQ. All of it is to be
    called where the loop runs.
    """

    def __init__(
        self, *, seed: int = 0, faults: Faults | None = None, high_water_mark: int = 1000
    ) -> None:
        super().__init__(seed, faults, high_water_mark)
        self._ports: dict[str, _Port] = {}  # by endpoint
        self._links: dict[_Link, None] = {}
        self.links_made = 0
        self._buses: WeakSet[AsyncEventBus] = WeakSet()

    def bus(self, name: str, **options: Any) -> AsyncEventBus:
        """A new bus on this network, with the keywords of `AsyncEventBus`. Its `start` raises
        NameInUse while another of that name is open.
        """
        port = _Port(self)
        bus = AsyncEventBus(MeshTransport(URL, port, port), name=name, **options)
        self._buses.add(bus)
        return bus

    async def settle(self, timeout: float = 5.0) -> None:
        """Wait until every bus has what the others published for it, what was lost on the way
        included, every handler has returned, and none of them has published anything more.

        Faults go on meanwhile. During a partition it waits for what is on its way and at work, and
        not for what is missing. Raises TimeoutError that names who is still busy after `timeout`
        seconds; BusError inside a handler, for which it would wait itself; and, of a bus with
        on_error="raise", the first failure of a handler. Cancelling only stops the waiting.
        """
        await Settling(self._open, self._is_quiet, lambda: bool(self._walls)).wait(timeout)

    def _open(self) -> list[AsyncEventBus]:
        names = {port.name for port in self._ports.values()}
        buses = [bus for bus in self._buses if bus.name in names and bus._life.state is State.OPEN]
        return sorted(buses, key=lambda bus: bus.name)

    def _is_quiet(self) -> bool:
        return all(lane.is_at_rest for link in self._links for lane in link.lanes)

    def port(self) -> "_Port":
        """The side of one bus, not yet open."""
        return _Port(self)

    def partition(
        self,
        one: Collection[str],
        other: Collection[str],
        *,
        one_way: bool = False,
        cut: bool = False,
    ) -> None:
        """Let nothing pass between the buses named in `one` and those in `other`, until `heal`.
        Names of buses that do not exist yet will do; further partitions add to this one.

        Links stay up: what is sent over them meanwhile is lost, and only subscriptions and the end
        of a link arrive when it heals, as TCP would have it. `one_way`: only what goes from `one`
        to `other` is held up. `cut`: the links break, so each side is told that the other asks for
        nothing any more; they are made again when it heals.
        """
        if one_way and cut:
            raise ValueError("one_way and cut: a link that breaks is broken both ways")
        ways = [(frozenset(one), frozenset(other))]
        if not one_way:
            ways.append((frozenset(other), frozenset(one)))
        self._walls += ways
        if cut:
            asyncio.get_running_loop().call_soon(self._cut, ways[0], context=Context())

    def _cut(self, between: tuple[frozenset[str], frozenset[str]]) -> None:
        one, other = between
        for link in list(self._links):
            below, above = link.below.name, link.endpoint.removeprefix(URL)
            if (below in one and above in other) or (below in other and above in one):
                link.detach()

    def heal(self) -> None:
        """End all partitions."""
        self._walls.clear()
        asyncio.get_running_loop().call_soon(self._join, context=Context())

    def _join(self) -> None:
        for link in list(self._links):
            link.go_on()

    def kill(self, name: str) -> None:
        """Let a bus die without a word: its links break, what was on its way is lost, it hears
        nothing any more, and its name is free. Raises ValueError when there is none.

        The object that is left still wants to be closed, `await bus.close(0)`, for its tasks to
        end.
        """
        port = self._ports.get(URL + name)
        if port is None:
            raise ValueError(f"there is no bus named {name!r} here to be killed")
        port.end(is_dead=True)


class _Port:
    """The `Network` and the `Discovery` of one bus, as the Protocols have them."""

    unreached: Collection[str] = ()

    def __init__(self, network: MemoryNetwork) -> None:
        self.name = self.endpoint = ""
        self.topics: Counter[bytes] = Counter()
        """What it asks publishers for, and how often."""
        self.asked: Counter[bytes] = Counter()
        """What subscribers ask it for, and how many of them."""
        self.below: dict[_Link, None] = {}
        self._above: dict[str, _Link] = {}  # by endpoint
        self._network = network
        self._is_open = False
        self._from_subscriber: FromSubscriber | None = None
        self._from_publisher: FromPublisher | None = None

    def open(self, name: str) -> None:
        """Nothing to do before it is bound."""

    async def join(
        self, name: str, bind: Callable[[str], str], found: Callable[[Member], None]
    ) -> list[Member]:
        """Listen under `name`, and return who else is there. Raises NameInUse."""
        if URL + name in self._network._ports:
            raise NameInUse(name, URL)
        members = [Member(each.name, at) for at, each in self._network._ports.items()]
        self.name, self.endpoint, self._is_open = name, bind(URL + name), True
        self._network._ports[self.endpoint] = self
        self._network._join()
        return members

    def bind(self, endpoint: str) -> str:
        return endpoint

    def start(self, from_subscriber: FromSubscriber, from_publisher: FromPublisher) -> None:
        self._from_subscriber, self._from_publisher = from_subscriber, from_publisher

    def watch(self, told: Told, bind: Callable[[str], str]) -> None:
        """Nothing to do: every bus is found as long as it is open."""

    def check_wakeups(self) -> None:
        """Nothing to do: no message is ever overlooked here."""

    def admits(self, member: Member) -> bool:
        """True for an endpoint of this network with the name of the member."""
        return member.endpoint == URL + member.name

    def remember(self, member: Member) -> None:
        """Nothing to do: the network knows who is there."""

    async def accepting(self, members: Collection[Member]) -> list[Member]:
        """Those of `members` that are open and not behind a wall."""
        own, ports = self.name, self._network._ports
        return [
            Member(name, endpoint)
            for name, endpoint in members
            if endpoint in ports
            and not (self._network.is_held(own, name) or self._network.is_held(name, own))
        ]

    async def absent(self, members: Collection[Member]) -> list[Member]:
        return [member for member in members if member.endpoint not in self._network._ports]

    def mine(self, address: object) -> bool:
        return False

    def descriptors(self) -> set[int]:
        return set()

    async def leave(self) -> None:
        """Nothing to do before it is closed."""

    def connect(self, endpoint: str) -> None:
        if endpoint not in self._above and self._is_open:
            link = self._above[endpoint] = _Link(self._network, self, endpoint)
            link.go_on()

    def disconnect(self, endpoint: str) -> None:
        """End the link, once what was sent down it has been heard."""
        link = self._above.pop(endpoint, None)
        if link is not None:
            link.end()

    def end_link(self, link: int) -> None:
        """End a link from below; it is made again at the next turn of the loop."""
        for each in list(self.below):
            if each.number == link:
                each.detach()
                asyncio.get_running_loop().call_soon(each.go_on, context=Context())

    def subscribe(self, topic: bytes) -> None:
        self.topics[topic] += 1
        if self.topics[topic] == 1:
            self._say(b"\1" + topic)

    def unsubscribe(self, topic: bytes) -> None:
        self.topics[topic] -= 1
        if self.topics[topic] <= 0:
            del self.topics[topic]
            self._say(b"\0" + topic)

    def ask(self, question: bytes) -> None:
        self._say(question)

    def _say(self, message: bytes) -> None:
        for link in self._above.values():
            link.say(message)

    def send(self, message: bytes) -> None:
        if self._is_open:
            for link in self.below:
                link.send(message)

    async def read_ends(self) -> None:
        """Nothing to do: all topics of a link are withdrawn at once."""

    async def close(self, timeout: float) -> None:
        """End all links. Does not wait: what was sent arrives all the same."""
        self.end()

    def end(self, *, is_dead: bool = False) -> None:
        """Hand over nothing more and end all links; what was sent is lost if `is_dead`. Again: no
        error.
        """
        self._is_open = False
        self._from_subscriber = self._from_publisher = None
        if self._network._ports.get(self.endpoint) is self:
            del self._network._ports[self.endpoint]
        for link in self.below:
            link.end_from_above(is_dead=is_dead)
        for link in self._above.values():
            link.end(is_dead=is_dead)
        self._above.clear()

    def hear_up(self, message: bytes, link: int | None) -> None:
        if self._from_subscriber is not None:
            self._from_subscriber(message, link)

    def hear_down(self, message: bytes) -> None:
        """Something came from a publisher; what is not asked for any more is left out."""
        if self._from_publisher is not None and message.startswith(tuple(self.topics)):
            self._from_publisher(message, elapsed())


class _Link:
    """From one bus up to another's endpoint: attached while a bus listens there and no wall is
    in between.
    """

    def __init__(self, network: MemoryNetwork, below: _Port, endpoint: str) -> None:
        self.below = below
        self.endpoint = endpoint
        network.links_made += 1
        self.number = network.links_made
        self._network = network
        self._above: _Port | None = None
        self._is_over = False
        self._topics: set[bytes] = set()  # that are live above
        self._waiting: list[bytes] = []
        name = endpoint.removeprefix(URL)
        self._up = Lane(network, below.name, name, "up", self._hear_up)
        self._down = Lane(network, name, below.name, "down", self._hear_down)
        self.lanes = (self._up, self._down)
        network._links[self] = None

    def go_on(self) -> None:
        """A bus has come or a wall has gone: attach, or move what waits."""
        if self._above is not None:
            self._up.wake()
            self._down.wake()
            return
        above = self._network._ports.get(self.endpoint)
        if above is None or self._is_over or self._is_cut_off(above.name):
            return
        self._above = above
        above.below[self] = None
        for topic in sorted(self.below.topics):  # as ZeroMQ does it, not as they were asked for
            self._up.put(b"\1" + topic, is_safe=True)
        for question in self._waiting:
            self._up.put(question)
        self._waiting.clear()

    def _is_cut_off(self, name: str) -> bool:
        network, own = self._network, self.below.name
        return network.is_held(own, name) or network.is_held(name, own)

    def say(self, message: bytes) -> None:
        """Send a subscription, its end, or a question up."""
        is_safe = message[:1] in (b"\0", b"\1")
        if self._above is not None:
            self._up.put(message, is_safe=is_safe)
        elif not is_safe:
            self._waiting.append(message)

    def send(self, message: bytes) -> None:
        """Send a message down, if it was asked for and not too many are on their way."""
        if not self._is_over and message.startswith(tuple(self._topics)):
            self._down.put(message, bound=self._network.high_water_mark)

    def _hear_up(self, message: bytes) -> None:
        above = self._above
        assert above is not None, "a link that is not attached carries nothing"
        topic = message[1:]
        if message == END:
            self.detach()
        elif message[:1] == b"\1":
            if topic not in self._topics:
                self._topics.add(topic)
                above.asked[topic] += 1
                above.hear_up(message, self.number)
        elif message[:1] == b"\0":
            self._withdraw(above, topic, self.number)
        else:
            above.hear_up(message, self.number)

    def _withdraw(self, above: _Port, topic: bytes, link: int | None) -> None:
        if topic in self._topics:
            self._topics.discard(topic)
            above.asked[topic] -= 1
            if not above.asked[topic]:
                del above.asked[topic]
                above.hear_up(b"\0" + topic, link)

    def _hear_down(self, message: bytes) -> None:
        if message == END:
            self.detach()
            self.go_on()
        elif not self._is_over:
            self.below.hear_down(message)

    def end(self, *, is_dead: bool = False) -> None:
        """The one below disconnects, or `is_dead`."""
        if not is_dead:
            self._down.run_dry()
        self._is_over = True
        self._down.clear()
        if is_dead:
            self._up.clear()
        if self._above is None:
            self._network._links.pop(self, None)
        else:
            self._up.put(END, is_safe=True)

    def end_from_above(self, *, is_dead: bool) -> None:
        """The one above has closed, or `is_dead`."""
        if is_dead:
            self._down.clear()
        self._down.put(END, is_safe=True)

    def detach(self) -> None:
        """The link is broken; the one above is told what it took with it."""
        above, self._above = self._above, None
        self._up.clear()
        self._down.clear()
        if self._is_over:
            self._network._links.pop(self, None)
        if above is not None:
            del above.below[self]
            for topic in sorted(self._topics):
                self._withdraw(above, topic, None)
