"""A network in memory: for tests of strategies that talk to each other, and of the bus itself.

Owns which bus is connected to which, what each asks for, as the sockets of ZeroMQ do, and when
several buses have settled. Must not know what the bytes mean, nor which faults hit a message: that
is `testing.faults`'. Everything runs on the running loop, in callbacks of its own; there are no
threads and no sockets.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from contextvars import Context
from typing import Any
from weakref import WeakSet

from aiobus.bus import AsyncEventBus
from aiobus.clock import elapsed
from aiobus.discovery import OBSERVES, DiscoveryCallbacks, Member, place_of
from aiobus.errors import BusClosed, BusError, NameInUse
from aiobus.keyring.members import Members
from aiobus.lifecycle import State
from aiobus.mesh import FromPublisher, FromSubscriber, KeyCallbacks
from aiobus.mesh.transport import MeshTransport
from aiobus.options import check_timeout
from aiobus.testing.faults import END, Channel, Faults, Message, SimulatedNetwork

__all__ = [
    "Faults",
    "MemoryNetwork",
    "Message",
]

URL = "memory://"
PAUSE = 0.01
"""Seconds between two checks in `settle`: no callback tells that a link is connected again."""


class MemoryNetwork(SimulatedNetwork):
    """Buses of one process that find each other as those of `ipc://` do, without sockets::

        network = MemoryNetwork(seed=7, faults=Faults(loss=0.01))
        async with network.bus("feed") as feed, network.bus("strategy") as strategy:
            network.partition({"feed"}, {"strategy"})
            ...
            network.heal()

    While `faults` stay the same, the fate of the n-th message of a link depends on `seed` alone.
    `faults` may be changed at any time. `high_water_mark` is how many messages may be on their way
    to a subscriber over one link; further ones are lost, as with ZeroMQ. Call all of it where the
    loop runs.
    """

    def __init__(
        self, *, seed: int = 0, faults: Faults | None = None, high_water_mark: int = 1000
    ) -> None:
        super().__init__(seed, faults, high_water_mark)
        self._ports: dict[str, _Port] = {}  # by endpoint
        self._links: dict[_Link, None] = {}
        self.links_made = self._ports_made = 0
        self.is_moving = False
        """A bus that starts listens at an endpoint that was not used before, as those of tcp do."""
        self._buses: WeakSet[AsyncEventBus] = WeakSet()

    def bus(self, name: str, **options: Any) -> AsyncEventBus:
        """A new bus on this network, with the keywords of `AsyncEventBus`. Its `start` raises
        NameInUse while another bus of that name is open.
        """
        port = _Port(self)
        bus = AsyncEventBus(MeshTransport(URL, port, port), name=name, **options)
        self._buses.add(bus)
        return bus

    def port(self) -> "_Port":
        """The side of one bus, not yet open."""
        return _Port(self)

    async def settle(self, timeout: float = 5.0) -> None:
        """Wait until every bus has the events that the others published for it, including those
        that were lost on the way, until every handler has returned, and until no bus has published
        meanwhile.

        Faults continue meanwhile. During a partition, `settle` waits for messages on their way and
        for handlers, not for events that are missing. Raises TimeoutError that names the busy buses
        after `timeout` seconds. Raises BusError inside a handler, because it would wait for that
        handler. Raises the first failure of a handler of a bus with on_error="raise". Cancelling
        only stops the waiting.
        """
        check_timeout(timeout)
        end = asyncio.get_running_loop().time() + timeout
        before: dict[str, int] | None = None
        now = self._published()
        while now != before:
            if before is not None and _left(end) == 0.0:
                raise self._unsettled(timeout, before)
            await asyncio.sleep(0)  # frames are sent at the end of a tick
            try:
                while busy := await self._busy(end):
                    if _left(end) == 0.0:
                        raise self._unsettled(timeout, before or {}, busy)
                    await asyncio.sleep(PAUSE)
                before, now = now, self._published()
            except BusClosed:
                pass  # a bus has closed meanwhile: ask the others

    def _open_buses(self) -> list[AsyncEventBus]:
        names = {port.name for port in self._ports.values()}
        buses = [bus for bus in self._buses if bus.name in names and bus._life.state is State.OPEN]
        return sorted(buses, key=lambda bus: bus.name)

    def _published(self) -> dict[str, int]:
        return {bus.name: bus.stats().published for bus in self._open_buses()}

    def _unsettled(self, timeout: float, before: dict[str, int], busy: str = "") -> TimeoutError:
        now = self._published()
        names = " and ".join(name for name in now if now[name] != before.get(name))
        reasons = filter(None, [busy, names and f"still published by {names}"])
        return TimeoutError(f"not settled within {timeout:g} s: {'; '.join(reasons)}")

    async def _busy(self, end: float) -> str:
        """Which buses are busy, in words; "" if none is. Waits until `end` for them to finish."""
        buses = self._open_buses()
        if any(bus._subscriptions.at_work() is not None for bus in buses):
            raise BusError("settle() inside a handler would wait for it; call it from outside")
        if self._partitions:
            return self._busy_in_partition(buses)
        names = {bus.name for bus in buses}
        lacking = {
            bus.name: names.intersection(
                {*await bus.flush(_left(end)), *await _observers(bus, _left(end))}
            )
            for bus in buses
        }
        busy = [
            f"{' and '.join(sorted(peers))} lacks events of {name}"
            for name, peers in lacking.items()
            if peers
        ]
        for bus in buses if not busy else ():
            try:
                await bus.settle(_left(end))
            except TimeoutError as error:
                busy.append(f"{bus.name} is {error}")
        return "; ".join(busy)

    def _busy_in_partition(self, buses: list[AsyncEventBus]) -> str:
        """As `_busy`, without the events that a partition holds back."""
        for bus in buses:
            bus._life.pop_failure()
        busy = [
            f"{bus.name} is at {receiver.name}"
            for bus in buses
            for receiver in bus._subscriptions
            if receiver.pending or receiver.in_hand
        ]
        if not self._is_idle():
            busy.append("messages are on their way")
        return "; ".join(busy)

    def _is_idle(self) -> bool:
        return all(channel.is_idle for link in self._links for channel in link.channels)

    def partition(
        self,
        one: Collection[str],
        other: Collection[str],
        *,
        one_way: bool = False,
        cut: bool = False,
    ) -> None:
        """Let no message pass between the buses named in `one` and those in `other`, until `heal`.
        The buses need not exist yet. Further partitions add to this one.

        Links stay up. As with TCP, subscriptions and the end of a link arrive after `heal`; every
        other message that is sent meanwhile is lost. `one_way`: only messages from `one` to `other`
        are held up. `cut`: the links break, so each side sees that the other asks for nothing any
        more; `heal` makes them again.
        """
        if one_way and cut:
            raise ValueError("one_way and cut: a link that breaks is broken both ways")
        ways = [(frozenset(one), frozenset(other))]
        if not one_way:
            ways.append((frozenset(other), frozenset(one)))
        self._partitions += ways
        if cut:
            asyncio.get_running_loop().call_soon(self._cut, ways[0], context=Context())

    def _cut(self, between: tuple[frozenset[str], frozenset[str]]) -> None:
        one, other = between
        for link in list(self._links):
            subscriber, publisher = link.subscriber.name, _name_at(link.endpoint)
            if (subscriber in one and publisher in other) or (
                subscriber in other and publisher in one
            ):
                link.disconnect()

    def heal(self) -> None:
        """End all partitions."""
        self._partitions.clear()
        asyncio.get_running_loop().call_soon(self._connect_links, context=Context())

    def _connect_links(self) -> None:
        for link in list(self._links):
            link.connect()

    def kill(self, name: str) -> None:
        """End a bus as a crash does: its links break, messages on their way are lost, it receives
        nothing any more, and its name is free. Raises ValueError if there is no such bus.

        Close the object all the same, with `await bus.close(0)`, so that its tasks end.
        """
        port = self._port_of(name)
        if port is None:
            raise ValueError(f"there is no bus named {name!r} here to be killed")
        port.end(is_dead=True)

    def _port_of(self, name: str) -> "_Port | None":
        return next((port for port in self._ports.values() if port.name == name), None)

    def _free_endpoint(self, name: str) -> str:
        self._ports_made += 1
        return f"{URL}{name}:{self._ports_made}" if self.is_moving else URL + name


async def _observers(bus: AsyncEventBus, timeout: float) -> Collection[str]:
    """The observers that lack something of `bus`: its `flush` does not wait for them."""
    transport = bus._transport
    return await transport.show(timeout) if isinstance(transport, MeshTransport) else ()


def _name_at(endpoint: str) -> str:
    return place_of(endpoint.removeprefix(URL)).partition(":")[0]


def _left(end: float) -> float:
    return max(0.0, end - asyncio.get_running_loop().time())


class _Port:
    """The `Network` and the `Discovery` of one bus, as the Protocols have them."""

    unreached: Collection[str] = ()
    out_of_reach: Collection[Member] = ()

    def __init__(self, network: MemoryNetwork) -> None:
        self.name = self.endpoint = ""
        self.members = Members()
        self.topics: Counter[bytes] = Counter()
        """The topics that this bus asks publishers for, and how often."""
        self.asked: Counter[bytes] = Counter()
        """The topics that subscribers ask this bus for, and how many of them."""
        self.subscribers: dict[_Link, None] = {}
        self._publishers: dict[str, _Link] = {}  # by endpoint
        self._network = network
        self._is_open = False
        self._from_subscriber: FromSubscriber | None = None
        self._from_publisher: FromPublisher | None = None

    def open(self, name: str) -> None:
        """Nothing to do before it is bound."""

    async def join(
        self,
        name: str,
        bind: Callable[[str], str],
        on_discovered: Callable[[Member], None],
        *,
        observes: bool = False,
    ) -> list[Member]:
        """Listen under `name`, and return the other members. Raises NameInUse."""
        if self._network._port_of(name) is not None:
            raise NameInUse(name, URL)
        members = [Member(each.name, at) for at, each in self._network._ports.items()]
        self.name, self._is_open = name, True
        endpoint = self._network._free_endpoint(name)
        self.endpoint = bind(endpoint + OBSERVES if observes else endpoint)
        self._network._ports[self.endpoint] = self
        self._network._connect_links()
        return members

    def bind(self, endpoint: str) -> str:
        return endpoint

    def start(
        self, from_subscriber: FromSubscriber, from_publisher: FromPublisher, keys: KeyCallbacks
    ) -> None:
        self._from_subscriber, self._from_publisher = from_subscriber, from_publisher

    def watch(self, callbacks: DiscoveryCallbacks, bind: Callable[[str], str]) -> None:
        """Nothing to do: every bus is found as long as it is open."""

    def check_admission(self, on_problem: Callable[[str, str], None]) -> None:
        """Nothing to do: a link takes no descriptor."""

    def check_wakeups(self) -> None:
        """Nothing to do: no message is ever overlooked here."""

    def allows(self, member: Member) -> bool:
        """True for an endpoint of this network with the name of the member."""
        return member.endpoint.startswith(URL) and _name_at(member.endpoint) == member.name

    def remember(self, member: Member) -> None:
        """Nothing to do: the network knows all members."""

    def is_claimed(self, member: Member) -> bool:
        """Never: names are not proven."""
        return False

    def forget(self, member: Member) -> None:
        """Nothing to do: the network knows who is there."""

    def tell_refused(self, to: str, cause: str) -> None:
        """Nothing to do: a network in memory has no keys."""

    async def probe_accepting(self, members: Collection[Member]) -> list[Member]:
        """The members that are open and not behind a partition."""
        return [
            member
            for member in members
            if member.endpoint in self._network._ports
            and not self._network.is_split(self.name, member.name)
        ]

    async def probe_absent(self, members: Collection[Member]) -> list[Member]:
        return [member for member in members if member.endpoint not in self._network._ports]

    def owns_address(self, address: object) -> bool:
        return False

    def descriptors(self) -> set[int]:
        return set()

    async def leave(self) -> None:
        """Nothing to do before it is closed."""

    def connect(self, endpoint: str, name: str = "") -> None:
        if endpoint not in self._publishers and self._is_open:
            link = self._publishers[endpoint] = _Link(self._network, self, endpoint)
            link.connect()

    def may_listen(self, endpoint: str, name: str) -> bool:
        """True: no names are proven."""
        return True

    def disconnect(self, endpoint: str) -> None:
        """End the link, once the messages on their way to this bus are handed over."""
        link = self._publishers.pop(endpoint, None)
        if link is not None:
            link.end()

    def end_link(self, link: int) -> None:
        """End the link of a subscriber; it is connected again at the next turn of the loop."""
        for each in list(self.subscribers):
            if each.number == link:
                each.disconnect()
                asyncio.get_running_loop().call_soon(each.connect, context=Context())

    def subscribe(self, topic: bytes) -> None:
        self.topics[topic] += 1
        if self.topics[topic] == 1:
            self.ask(b"\1" + topic)

    def unsubscribe(self, topic: bytes) -> None:
        self.topics[topic] -= 1
        if self.topics[topic] <= 0:
            del self.topics[topic]
            self.ask(b"\0" + topic)

    def ask(self, question: bytes, to: str = "*") -> None:
        for link in self._publishers.values():
            link.send_to_publisher(question)

    def send(self, message: bytes) -> None:
        if self._is_open:
            for link in self.subscribers:
                link.send_to_subscriber(message)

    async def read_ends(self) -> None:
        """Nothing to do: all topics of a link are withdrawn at once."""

    async def close(self, timeout: float) -> None:
        """End all links. Does not wait: messages that were sent arrive all the same."""
        self.end()

    def end(self, *, is_dead: bool = False) -> None:
        """Hand over nothing more and end all links. With `is_dead`, messages on their way are lost.
        Again: no effect.
        """
        self._is_open = False
        self._from_subscriber = self._from_publisher = None
        if self._network._ports.get(self.endpoint) is self:
            del self._network._ports[self.endpoint]
        for link in self.subscribers:
            link.end_by_publisher(is_dead=is_dead)
        for link in self._publishers.values():
            link.end(is_dead=is_dead)
        self._publishers.clear()

    def on_subscriber_message(self, message: bytes, link: int | None) -> None:
        if self._from_subscriber is not None:
            self._from_subscriber(message, link, "")

    def on_publisher_message(self, message: bytes) -> None:
        """Hand over a message of a publisher, unless its topic is not asked for any more."""
        if self._from_publisher is not None and message.startswith(tuple(self.topics)):
            self._from_publisher(message, elapsed(), "")


class _Link:
    """From one subscriber to the endpoint of a publisher: connected while a bus listens there and
    no partition is in between.
    """

    def __init__(self, network: MemoryNetwork, subscriber: _Port, endpoint: str) -> None:
        self.subscriber = subscriber
        self.endpoint = endpoint
        network.links_made += 1
        self.number = network.links_made
        self._network = network
        self._publisher: _Port | None = None
        self._is_over = False
        self._topics: set[bytes] = set()  # that the publisher has read
        self._waiting: list[bytes] = []
        own, name = subscriber.name, _name_at(endpoint)
        # "up" and "down" are part of the seed: with other words the same seed has other faults.
        self._up = Channel(network, own, name, "up", self._on_publisher_side)
        self._down = Channel(network, name, own, "down", self._on_subscriber_side)
        self.channels = (self._up, self._down)
        network._links[self] = None

    def connect(self) -> None:
        """A bus was opened or a partition healed: connect, or let what waits go on."""
        if self._publisher is not None:
            self._up.schedule()
            self._down.schedule()
            return
        publisher = self._network._ports.get(self.endpoint)
        if (
            publisher is None
            or self._is_over
            or self._network.is_split(self.subscriber.name, publisher.name)
        ):
            return
        self._publisher = publisher
        publisher.subscribers[self] = None
        for topic in sorted(self.subscriber.topics):  # ZeroMQ's order, not that of asking
            self._up.put(b"\1" + topic, is_reliable=True)
        for question in self._waiting:
            self._up.put(question)
        self._waiting.clear()

    def send_to_publisher(self, message: bytes) -> None:
        """Send a subscription, its end, or a question."""
        is_subscription = message[:1] in (b"\0", b"\1")
        if self._publisher is not None:
            self._up.put(message, is_reliable=is_subscription)
        elif not is_subscription:
            self._waiting.append(message)

    def send_to_subscriber(self, message: bytes) -> None:
        """Send a message if its topic is asked for and the link is not full."""
        if not self._is_over and message.startswith(tuple(self._topics)):
            self._down.put(message, limit=self._network.high_water_mark)

    def _on_publisher_side(self, message: bytes) -> None:
        publisher = self._publisher
        assert publisher is not None, "a link that is not connected carries nothing"
        topic = message[1:]
        if message == END:
            self.disconnect()
        elif message[:1] == b"\1":
            if topic not in self._topics:
                self._topics.add(topic)
                publisher.asked[topic] += 1
                publisher.on_subscriber_message(message, self.number)
        elif message[:1] == b"\0":
            self._withdraw(publisher, topic, self.number)
        else:
            publisher.on_subscriber_message(message, self.number)

    def _withdraw(self, publisher: _Port, topic: bytes, link: int | None) -> None:
        if topic in self._topics:
            self._topics.discard(topic)
            publisher.asked[topic] -= 1
            if not publisher.asked[topic]:
                del publisher.asked[topic]
                publisher.on_subscriber_message(b"\0" + topic, link)

    def _on_subscriber_side(self, message: bytes) -> None:
        if message == END:
            self.disconnect()
            self.connect()
        elif not self._is_over:
            self.subscriber.on_publisher_message(message)

    def end(self, *, is_dead: bool = False) -> None:
        """The subscriber disconnects, or has died."""
        if not is_dead:
            self._down.flush()
        self._is_over = True
        self._down.clear()
        if is_dead:
            self._up.clear()
        if self._publisher is None:
            self._network._links.pop(self, None)
        else:
            self._up.put(END, is_reliable=True)

    def end_by_publisher(self, *, is_dead: bool) -> None:
        """The publisher has closed, or has died."""
        if is_dead:
            self._down.clear()
        self._down.put(END, is_reliable=True)

    def disconnect(self) -> None:
        """The connection breaks; the publisher sees that the topics of this link are withdrawn."""
        publisher, self._publisher = self._publisher, None
        self._up.clear()
        self._down.clear()
        if self._is_over:
            self._network._links.pop(self, None)
        if publisher is not None:
            del publisher.subscribers[self]
            for topic in sorted(self._topics):
                self._withdraw(publisher, topic, None)
