"""The network in memory behaves like ZeroMQ's sockets, and the bus keeps its promises whatever
goes wrong there.
"""

import asyncio
from typing import Any, Self

import pytest
from ports import opened

from aiobus import AsyncEventBus, BusClosed, BusError, Event, EventType, NameInUse, Subscription
from aiobus.discovery import Member
from aiobus.mesh import Network, peers, session
from aiobus.mesh import transport as start_of
from aiobus.testing import Faults, MemoryNetwork, Message

pytestmark = pytest.mark.usefixtures("no_task_is_left")


class Heard:
    """Keeps what a port receives."""

    def __init__(self) -> None:
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self._grown = asyncio.Event()

    def from_subscriber(self, message: bytes, link: int | None, name: str) -> None:
        self.up.append(message)
        self._grown.set()

    def from_publisher(self, message: bytes, now: float, name: str) -> None:
        self.down.append(message)
        self._grown.set()

    async def until_up(self, message: bytes) -> list[bytes]:
        """All that came up so far, once that has."""
        while message not in self.up:
            self._grown.clear()
            await self._grown.wait()
        return self.up

    async def until_down(self, count: int) -> list[bytes]:
        """All that came down so far, once it is that many."""
        while len(self.down) < count:
            self._grown.clear()
            await self._grown.wait()
        return self.down


class Side:
    """A port that is open, and what it receives."""

    def __init__(self, port: Network, heard: Heard, name: str) -> None:
        self.port = port
        self.heard = heard
        self.endpoint = f"memory://{name}"


async def side(network: MemoryNetwork, name: str) -> Side:
    port, heard = network.port(), Heard()
    await opened(port, name, heard.from_subscriber, heard.from_publisher)
    return Side(port, heard, name)


async def linked(
    network: MemoryNetwork, below: str = "below", above: str = "above", topic: bytes = b"T"
) -> tuple[Side, Side]:
    """Two sides; the first is connected to the other and has asked for a topic."""
    lower, upper = await side(network, below), await side(network, above)
    lower.port.connect(upper.endpoint, "above")
    lower.port.subscribe(topic)
    await upper.heard.until_up(b"\1" + topic)
    return lower, upper


async def at_rest() -> None:
    """Everything that takes no time has happened: a message needs three turns there and back."""
    for _ in range(10):
        await asyncio.sleep(0)


# A link.


async def test_who_opens_is_told_where_it_listens_and_who_else_does() -> None:
    network = MemoryNetwork()
    one, two = network.port(), network.port()
    assert (await opened(one, "one"), one.endpoint) == ([], "memory://one")
    assert await opened(two, "two") == [Member("one", "memory://one")]
    assert one.allows(Member("two", "memory://two"))
    assert not one.allows(Member("two", "memory://three"))


async def test_nothing_arrives_within_the_call_that_sends_it() -> None:
    lower, upper = await linked(MemoryNetwork())
    upper.port.send(b"T1")
    lower.port.ask(b"?", "*")
    lower.port.subscribe(b"U")
    assert (lower.heard.down, upper.heard.up) == ([], [b"\1T"])
    await upper.heard.until_up(b"\1U")
    assert lower.heard.down == [b"T1"]


async def test_what_is_asked_for_reaches_a_port_that_opens_later_before_the_questions() -> None:
    network = MemoryNetwork()
    lower = await side(network, "below")
    lower.port.connect("memory://above", "above")
    lower.port.ask(b"?1", "*")
    lower.port.subscribe(b"U")
    lower.port.subscribe(b"T")
    lower.port.ask(b"?2", "*")
    upper = await side(network, "above")
    assert await upper.heard.until_up(b"?2") == [b"\1T", b"\1U", b"?1", b"?2"]


async def test_a_question_stays_behind_what_was_asked_for_before_it() -> None:
    lower, upper = await linked(MemoryNetwork())
    lower.port.subscribe(b"U")
    lower.port.ask(b"?", "*")
    lower.port.unsubscribe(b"U")
    assert await upper.heard.until_up(b"\0U") == [b"\1T", b"\1U", b"?", b"\0U"]


async def test_messages_go_down_to_those_only_who_asked_for_how_they_begin() -> None:
    network = MemoryNetwork()
    lower, upper = await linked(network)
    other = await side(network, "other")
    other.port.connect(upper.endpoint, "above")
    other.port.subscribe(b"TA")
    await upper.heard.until_up(b"\1TA")
    for message in (b"TA1", b"TB2", b"U3"):
        upper.port.send(message)
    await at_rest()
    assert (lower.heard.down, other.heard.down) == ([b"TA1", b"TB2"], [b"TA1"])


async def test_two_topics_with_one_beginning_bring_a_message_once() -> None:
    lower, upper = await linked(MemoryNetwork())
    lower.port.subscribe(b"TA")
    await upper.heard.until_up(b"\1TA")
    upper.port.send(b"TA1")
    await at_rest()
    assert lower.heard.down == [b"TA1"]


async def test_what_is_on_its_way_when_a_topic_is_withdrawn_is_not_heard() -> None:
    lower, upper = await linked(MemoryNetwork())
    upper.port.send(b"T1")
    lower.port.unsubscribe(b"T")
    await upper.heard.until_up(b"\0T")
    upper.port.send(b"T2")
    await at_rest()
    assert lower.heard.down == []


async def test_a_topic_that_was_asked_for_twice_is_to_be_withdrawn_twice() -> None:
    lower, upper = await linked(MemoryNetwork())
    lower.port.subscribe(b"T")
    lower.port.unsubscribe(b"T")
    lower.port.ask(b"?", "*")
    await upper.heard.until_up(b"?")
    lower.port.unsubscribe(b"T")
    assert await upper.heard.until_up(b"\0T") == [b"\1T", b"?", b"\0T"]


async def test_a_publisher_hears_of_each_who_asks_for_a_topic_and_of_the_last_to_leave() -> None:
    network = MemoryNetwork()
    one, upper = await linked(network)
    two = await side(network, "two")
    two.port.connect(upper.endpoint, "above")
    two.port.subscribe(b"T")
    two.port.ask(b"?1", "*")
    await upper.heard.until_up(b"?1")
    one.port.unsubscribe(b"T")
    one.port.ask(b"?2", "*")
    await upper.heard.until_up(b"?2")
    two.port.unsubscribe(b"T")
    assert await upper.heard.until_up(b"\0T") == [b"\1T", b"\1T", b"?1", b"?2", b"\0T"]


async def test_connecting_twice_brings_everything_once() -> None:
    lower, upper = await linked(MemoryNetwork())
    lower.port.connect(upper.endpoint, "above")
    upper.port.send(b"T1")
    await at_rest()
    assert lower.heard.down == [b"T1"]


async def test_disconnecting_withdraws_and_first_hears_what_has_arrived() -> None:
    lower, upper = await linked(MemoryNetwork())
    upper.port.send(b"T1")
    lower.port.disconnect(upper.endpoint)
    assert lower.heard.down == [b"T1"]
    upper.port.send(b"T2")
    await upper.heard.until_up(b"\0T")
    await at_rest()
    assert lower.heard.down == [b"T1"]


async def test_disconnecting_hears_all_that_was_sent_down_however_much() -> None:
    network = MemoryNetwork()
    lower, upper = await linked(network)
    network.faults = Faults(delay=5.0)
    for number in range(500):
        upper.port.send(b"T%d" % number)
    lower.port.disconnect(upper.endpoint)
    assert lower.heard.down == [b"T%d" % number for number in range(500)]


async def test_connecting_again_asks_again() -> None:
    lower, upper = await linked(MemoryNetwork())
    lower.port.disconnect(upper.endpoint)
    await upper.heard.until_up(b"\0T")
    upper.heard.up.clear()
    lower.port.connect(upper.endpoint, "above")
    await upper.heard.until_up(b"\1T")
    upper.port.send(b"T1")
    assert await lower.heard.until_down(1) == [b"T1"]


async def test_what_was_sent_before_closing_arrives_and_then_the_topics_are_withdrawn() -> None:
    network = MemoryNetwork()
    one, two = await linked(network, "one", "two")
    two.port.connect(one.endpoint)
    two.port.subscribe(b"U")
    await one.heard.until_up(b"\1U")
    for number in range(500):
        two.port.send(b"T%d" % number)
    await two.port.close(1.0)
    await one.heard.until_up(b"\0U")
    assert await one.heard.until_down(500) == [b"T%d" % number for number in range(500)]
    two.port.send(b"T")
    one.port.ask(b"?", "*")
    await at_rest()
    assert (len(one.heard.down), two.heard.up) == (500, [b"\1T"])


async def test_a_link_goes_on_with_the_next_who_opens_under_the_name() -> None:
    network = MemoryNetwork()
    lower, upper = await linked(network)
    await upper.port.close(1.0)
    await at_rest()
    lower.port.ask(b"?", "*")
    again = await side(network, "above")
    assert await again.heard.until_up(b"?") == [b"\1T", b"?"]
    again.port.send(b"T1")
    assert await lower.heard.until_down(1) == [b"T1"]


async def test_of_who_is_killed_nothing_more_is_heard_but_that_its_topics_are_withdrawn() -> None:
    network = MemoryNetwork()
    one, two = await linked(network, "one", "two")
    two.port.connect(one.endpoint)
    two.port.subscribe(b"U")
    await one.heard.until_up(b"\1U")
    two.port.send(b"T1")
    two.port.ask(b"?", "*")
    one.port.send(b"U1")
    network.kill("two")
    await one.heard.until_up(b"\0U")
    await at_rest()
    assert (one.heard.up, one.heard.down, two.heard.down) == ([b"\1U", b"\0U"], [], [])


async def test_the_name_of_who_was_killed_or_closed_is_free_and_any_other_is_not() -> None:
    network = MemoryNetwork()
    one = await side(network, "one")
    with pytest.raises(NameInUse, match="one"):
        await opened(network.port(), "one")
    network.kill("one")
    again = await side(network, "one")
    await one.port.close(1.0)
    with pytest.raises(NameInUse, match="one"):
        await opened(network.port(), "one")
    await again.port.close(1.0)
    await again.port.close(1.0)
    await side(network, "one")


async def test_killing_who_is_not_there_raises() -> None:
    with pytest.raises(ValueError, match="nobody"):
        MemoryNetwork().kill("nobody")


# What goes wrong.


async def test_too_many_messages_on_their_way_are_lost_and_the_first_arrive() -> None:
    network = MemoryNetwork(high_water_mark=100)
    lower, upper = await linked(network)
    for number in range(150):
        upper.port.send(b"T%d" % number)
    await lower.heard.until_down(100)
    upper.port.send(b"T")
    await lower.heard.until_down(101)
    assert lower.heard.down == [*(b"T%d" % number for number in range(100)), b"T"]
    assert (network.lost, network.delivered) == (50, 101)


async def test_loss_takes_messages_and_questions_and_spares_what_is_asked_for() -> None:
    network = MemoryNetwork(faults=Faults(loss=1.0))
    lower, upper = await linked(network)
    lower.port.ask(b"?", "*")
    upper.port.send(b"T1")
    lower.port.unsubscribe(b"T")
    assert await upper.heard.until_up(b"\0T") == [b"\1T", b"\0T"]
    assert (lower.heard.down, network.lost, network.delivered) == ([], 2, 0)


async def test_duplication_brings_messages_twice() -> None:
    network = MemoryNetwork(faults=Faults(duplication=1.0))
    lower, upper = await linked(network)
    upper.port.send(b"T1")
    upper.port.send(b"T2")
    assert await lower.heard.until_down(4) == [b"T1", b"T1", b"T2", b"T2"]
    assert (network.duplicated, network.delivered) == (2, 4)


async def test_reordering_lets_the_next_message_overtake() -> None:
    network = MemoryNetwork(faults=Faults(reorder=1.0))
    lower, upper = await linked(network)
    for number in range(4):
        upper.port.send(b"T%d" % number)
    assert await lower.heard.until_down(4) == [b"T1", b"T0", b"T3", b"T2"]
    assert network.reordered == 2


async def test_a_message_that_nothing_overtakes_arrives_all_the_same() -> None:
    lower, upper = await linked(MemoryNetwork(faults=Faults(reorder=1.0)))
    upper.port.send(b"T1")
    assert await lower.heard.until_down(1) == [b"T1"]


async def test_a_question_never_overtakes_what_was_asked_for_before_it() -> None:
    lower, upper = await linked(MemoryNetwork(faults=Faults(reorder=1.0)))
    lower.port.ask(b"?1", "*")
    lower.port.subscribe(b"U")
    lower.port.ask(b"?2", "*")
    lower.port.ask(b"?3", "*")
    assert await upper.heard.until_up(b"?2") == [b"\1T", b"\1U", b"?1", b"?3", b"?2"]


async def test_delay_disorders_nothing() -> None:
    network = MemoryNetwork(faults=Faults(delay=0.005))
    lower, upper = await linked(network)
    for number in range(100):
        upper.port.send(b"T%d" % number)
    assert await lower.heard.until_down(100) == [b"T%d" % number for number in range(100)]


async def fates(seed: int, faults: Faults) -> tuple[list[bytes], tuple[int, ...]]:
    """What arrives of 300 messages, and the counters."""
    network = MemoryNetwork(seed=seed)
    lower, upper = await linked(network)
    network.faults = faults
    for number in range(300):
        upper.port.send(b"T%d" % number)
    network.faults = Faults()
    upper.port.send(b"TEND")
    while b"TEND" not in lower.heard.down:
        await lower.heard.until_down(len(lower.heard.down) + 1)
    counters = (network.lost, network.duplicated, network.reordered, network.delivered)
    return lower.heard.down, counters


async def test_the_same_seed_brings_the_same_and_another_something_else() -> None:
    faults = Faults(loss=0.1, duplication=0.1, reorder=0.1)
    once, again, other = [await fates(seed, faults) for seed in (1, 1, 2)]
    assert once == again
    assert once != other
    assert all(15 <= count <= 60 for count in once[1][:3])


async def test_a_fault_may_depend_on_the_message() -> None:
    network = MemoryNetwork(faults=Faults(loss=lambda message: message.data == b"T2"))
    lower, upper = await linked(network)
    for number in range(4):
        upper.port.send(b"T%d" % number)
    assert await lower.heard.until_down(3) == [b"T0", b"T1", b"T3"]
    assert network.lost == 1


@pytest.mark.parametrize("fault", ["loss", "duplication", "reorder", "delay"])
async def test_a_fault_that_depends_on_the_message_draws_as_the_same_figure_does(
    fault: str,
) -> None:
    heard: list[Message] = []

    def tenth(message: Message) -> float:
        heard.append(message)
        return 0.1 / 1000 if fault == "delay" else 0.1

    figure = 0.1 / 1000 if fault == "delay" else 0.1
    assert await fates(1, Faults(**{fault: tenth})) == await fates(1, Faults(**{fault: figure}))
    assert {(each.source, each.target) for each in heard} == {("above", "below")}


@pytest.mark.virtual
async def test_a_message_says_what_it_is() -> None:
    said: list[Message] = []
    beacon = asyncio.Event()

    def listen(message: Message) -> float:
        said.append(message)
        if message.kind == "beacon":
            beacon.set()
        return 0.0

    def lose_events(message: Message) -> bool:
        listen(message)
        return bool(message.events)

    network = MemoryNetwork(faults=Faults(loss=listen, delay=listen))
    async with (
        network.bus("feed") as feed,
        network.bus("strategy") as strategy,
        strategy.stream("A") as stream,
    ):
        network.faults = Faults(loss=lose_events, delay=listen)
        await feed.publish(Event("A", "lost"))
        await at_rest()
        network.faults = Faults(loss=listen, delay=listen)
        await feed.publish(Event("A", "kept"))  # and tells of the other
        assert [(await anext(stream)).data for _ in range(2)] == ["lost", "kept"]
        assert not await feed.flush()
        await beacon.wait()
    up = {"subscription", "question", "page_request", "acknowledgement"}
    down = {"events", "beacon", "heartbeat", "answer", "page", "mark"}
    assert {message.kind for message in said} == up | down
    frames = {(each.source, each.target, each.events[0].data) for each in said if each.events}
    assert frames == {("feed", "strategy", "lost"), ("feed", "strategy", "kept")}


@pytest.mark.parametrize(
    "figures", [{"loss": 1.1}, {"duplication": -0.1}, {"reorder": float("nan")}, {"delay": -1}]
)
def test_figures_that_make_no_sense_are_refused(figures: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(figures))):
        Faults(**figures)


# Partitions.


async def test_a_partition_loses_messages_and_holds_up_what_is_asked_for() -> None:
    network = MemoryNetwork()
    lower, upper = await linked(network)
    network.partition({"below"}, {"above"})
    lower.port.ask(b"?1", "*")
    lower.port.subscribe(b"U")
    upper.port.send(b"T1")
    await at_rest()
    assert (upper.heard.up, lower.heard.down, network.lost) == ([b"\1T"], [], 2)
    network.heal()
    lower.port.ask(b"?2", "*")
    assert await upper.heard.until_up(b"?2") == [b"\1T", b"\1U", b"?2"]
    upper.port.send(b"T2")
    assert await lower.heard.until_down(1) == [b"T2"]


async def test_a_partition_one_way_lets_everything_pass_the_other_way() -> None:
    network = MemoryNetwork()
    lower, upper = await linked(network)
    network.partition({"above"}, {"below"}, one_way=True)
    upper.port.send(b"T1")
    lower.port.ask(b"?", "*")
    await upper.heard.until_up(b"?")
    assert lower.heard.down == []


async def test_a_partition_is_between_its_two_groups_only() -> None:
    network = MemoryNetwork()
    lower, upper = await linked(network)
    network.partition({"below", "above"}, {"other"})
    upper.port.send(b"T1")
    assert await lower.heard.until_down(1) == [b"T1"]


async def test_no_port_connects_across_a_partition_until_it_heals() -> None:
    network = MemoryNetwork()
    lower, upper = await side(network, "below"), await side(network, "above")
    network.partition({"below"}, {"above"})
    lower.port.connect(upper.endpoint, "above")
    lower.port.subscribe(b"T")
    await at_rest()
    assert upper.heard.up == []
    network.heal()
    await upper.heard.until_up(b"\1T")


async def test_a_cut_withdraws_at_once_and_healing_asks_again_but_loses_questions() -> None:
    network = MemoryNetwork()
    lower, upper = await linked(network)
    lower.port.ask(b"?1", "*")
    upper.port.send(b"T1")
    network.partition({"above"}, {"below"}, cut=True)
    assert await upper.heard.until_up(b"\0T") == [b"\1T", b"\0T"]
    upper.heard.up.clear()
    lower.port.subscribe(b"U")
    network.heal()
    lower.port.ask(b"?2", "*")
    assert await upper.heard.until_up(b"?2") == [b"\1T", b"\1U", b"?2"]
    assert (lower.heard.down, network.lost) == ([], 2)


async def test_the_end_of_a_link_is_heard_of_once_a_partition_heals() -> None:
    network = MemoryNetwork()
    _, upper = await linked(network)
    network.partition({"below"}, {"above"})
    network.kill("below")
    await at_rest()
    assert upper.heard.up == [b"\1T"]
    network.heal()
    await upper.heard.until_up(b"\0T")


async def test_a_cut_one_way_is_refused() -> None:
    with pytest.raises(ValueError, match="one_way"):
        MemoryNetwork().partition({"a"}, {"b"}, one_way=True, cut=True)


# Buses on it.


class Desk:
    """A network, its buses, and what was seen."""

    def __init__(self, network: MemoryNetwork, **options: Any) -> None:
        self.network = network
        self.options = options
        self.buses: list[AsyncEventBus] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.network.faults = Faults()
        self.network.heal()
        await asyncio.gather(*(bus.close(0.2) for bus in self.buses))

    async def bus(self, name: str) -> AsyncEventBus:
        bus = self.network.bus(name, **self.options)
        await bus.start()
        self.buses.append(bus)
        return bus


class Listener:
    """A subscription that asks for its gaps as well, what it was to see and what it saw."""

    def __init__(self, types: list[str], key: Any = None, **options: Any) -> None:
        self.types = types
        self.key = key
        self.options = options
        self.seen: list[Event] = []
        self.subscription: Subscription

    async def join(self, bus: AsyncEventBus) -> None:
        types = [*self.types, "aiobus.gap"]
        self.subscription = await bus.subscribe(types, self.handle, key=self.key, **self.options)

    async def handle(self, event: Event) -> None:
        self.seen.append(event)
        if len(self.seen) % 7 == 0:
            await asyncio.sleep(0)  # so that small inboxes run full

    def wants(self, event: Event) -> bool:
        return (self.types == ["*"] or event.type in self.types) and self.key in (None, event.key)

    def check(self, published: list[Event], *, has_gaps: bool) -> None:
        gaps = [event.data for event in self.seen if event.type == "aiobus.gap"]
        assert has_gaps or not gaps
        for source in {(event.source, event.epoch) for event in published}:
            own = [each for each in published if (each.source, each.epoch) == source]
            seen = [each for each in self.seen if (each.source, each.epoch) == source]
            wanted = [event.seq for event in own if self.wants(event)]
            got = [event.seq for event in seen if event.type != "aiobus.gap"]
            assert got == sorted(set(got)), "disordered or doubled"
            assert set(got) <= set(wanted), "not asked for"
            ranges = [
                range(gap["after"] + 1, gap["upto"] + 1)
                for gap in gaps
                if (gap["source"], gap["epoch"]) == source
            ]
            lost = sorted(set(wanted) - set(got))
            assert [seq for seq in lost if not any(seq in each for each in ranges)] == [], "silent"


async def feed_and_strategy(desk: Desk) -> tuple[AsyncEventBus, AsyncEventBus, Listener]:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    listener = Listener([EventType.TRADE])
    await listener.join(strategy)
    return feed, strategy, listener


async def publish(bus: AsyncEventBus, count: int) -> list[Event]:
    return [await bus.publish(Event(EventType.TRADE, number)) for number in range(count)]


@pytest.mark.parametrize("cut", [False, True])
async def test_what_was_published_during_a_partition_arrives_after_it(cut: bool) -> None:
    async with Desk(MemoryNetwork()) as desk:
        feed, strategy, listener = await feed_and_strategy(desk)
        published = await publish(feed, 100)
        desk.network.partition({"feed"}, {"strategy"}, cut=cut)
        published += await publish(feed, 100)
        await at_rest()
        desk.network.heal()
        published += await publish(feed, 100)
        await at_rest()  # flush names whose hello is not back yet, and does not wait for it
        assert await feed.flush(10) == []
        await strategy.settle()
        listener.check(published, has_gaps=False)


async def test_the_past_of_a_source_that_is_reached_late_is_told_then() -> None:
    async with Desk(MemoryNetwork()) as desk:
        feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
        await publish(feed, 10)
        desk.network.partition({"feed"}, {"strategy"}, cut=True)
        await at_rest()
        seen: list[int] = []
        subscription = await strategy.subscribe(
            EventType.TRADE, lambda event: seen.append(event.data), since=0
        )
        assert (seen, subscription.reached) == ([], 0)
        desk.network.heal()
        await at_rest()
        assert await feed.flush() == []
        await strategy.settle()
        assert seen == list(range(10))


async def test_a_bus_that_waits_for_the_past_of_another_hears_that_the_own_bus_closes() -> None:
    is_asked = asyncio.Event()

    def lose_pages(message: Message) -> float:
        if message.kind == "page":
            is_asked.set()
        return float(message.kind == "page")

    async with Desk(MemoryNetwork()) as desk:
        feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
        await publish(feed, 10)
        desk.network.faults = Faults(loss=lose_pages)
        waiting = asyncio.create_task(
            strategy.subscribe(EventType.TRADE, print, since=0, timeout=600)
        )
        await is_asked.wait()
        await strategy.close(0.2)
        with pytest.raises(BusClosed, match="closed while"):
            await waiting


@pytest.mark.parametrize("cut", [False, True])
async def test_flush_names_who_is_behind_a_partition(cut: bool) -> None:
    async with Desk(MemoryNetwork()) as desk:
        feed, _, _ = await feed_and_strategy(desk)
        desk.network.partition({"feed"}, {"strategy"}, cut=cut)
        await publish(feed, 100)
        await at_rest()
        assert await feed.flush(0.05) == ["strategy"]


async def test_flush_asks_for_more_streams_than_one_mark_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "MARK_STREAMS", 2)
    async with Desk(MemoryNetwork()) as desk:
        feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
        gate = asyncio.Event()
        for number in range(5):
            await strategy.subscribe(f"T{number}", lambda event: gate.wait(), maxsize=1)
        for number in range(4):
            await feed.publish(Event(f"T{number}", 1))
        assert await feed.flush() == []
        for _ in range(3):  # one is in hand, one in the inbox, and one is left to history
            await feed.publish(Event("T4", 1))
            await at_rest()
        assert await feed.flush(0.05) == ["strategy"]
        gate.set()
        assert await feed.flush() == []


@pytest.mark.virtual
async def test_a_clean_exit_loses_nothing_over_a_lossy_link_and_names_none() -> None:
    async with Desk(MemoryNetwork(seed=3)) as desk:
        feed, strategy, listener = await feed_and_strategy(desk)
        desk.network.faults = Faults(loss=0.2, duplication=0.1, reorder=0.1)
        published = await publish(feed, 2000)
        assert await feed.close(20) == []
        await strategy.settle()
        listener.check(published, has_gaps=False)


async def test_flush_names_who_was_cut_off_before_anything_was_published() -> None:
    async with Desk(MemoryNetwork()) as desk:
        feed, _, _ = await feed_and_strategy(desk)
        desk.network.partition({"feed"}, {"strategy"}, cut=True)
        await at_rest()
        await publish(feed, 100)
        assert await feed.flush(0.05) == ["strategy"]


async def test_after_a_cut_has_healed_flush_waits_for_what_was_published_meanwhile() -> None:
    async with Desk(MemoryNetwork()) as desk:
        feed, _, listener = await feed_and_strategy(desk)
        desk.network.partition({"feed"}, {"strategy"}, cut=True)
        await at_rest()
        await publish(feed, 100)
        desk.network.faults = Faults(loss=1.0)  # it asks again, but its question gets lost
        desk.network.heal()
        await at_rest()
        desk.network.faults = Faults()
        missing = await feed.flush()
        # Nothing is awaited in between.
        held = listener.subscription.stats.pending + len(listener.seen)
        assert missing == ["strategy"] or (missing, held) == ([], 100)


async def test_after_a_cut_has_healed_close_tells_whether_all_has_arrived() -> None:
    async with Desk(MemoryNetwork()) as desk:
        feed, strategy, listener = await feed_and_strategy(desk)
        published = await publish(feed, 10)
        desk.network.partition({"feed"}, {"strategy"}, cut=True)
        await at_rest()
        published += await publish(feed, 100)
        desk.network.faults = Faults(loss=1.0)  # it asks again, but its question gets lost
        desk.network.heal()
        await at_rest()
        desk.network.faults = Faults()
        assert await feed.close() == []
        await strategy.settle()
        listener.check(published, has_gaps=False)


async def test_flush_does_not_take_the_word_of_others_for_one_whose_link_was_cut() -> None:
    async with Desk(MemoryNetwork()) as desk:
        feed, _, listener = await feed_and_strategy(desk)
        other = Listener([EventType.TRADE])
        await other.join(await desk.bus("other"))
        desk.network.partition({"feed"}, {"strategy"}, cut=True)
        await at_rest()
        await publish(feed, 100)
        assert await feed.flush() == ["strategy"]
        desk.network.heal()
        await at_rest()
        missing = await feed.flush()
        # Nothing is awaited in between.
        held = listener.subscription.stats.pending + len(listener.seen)
        assert missing == ["strategy"] or (missing, held) == ([], 100)


async def test_a_peer_that_was_never_linked_is_named_as_unconfirmed_until_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start_of, "START_SECONDS", 0.05)
    monkeypatch.setattr(peers, "STALE", 0.0)
    async with Desk(MemoryNetwork()) as desk:
        await desk.bus("feed")
        desk.network.partition({"feed"}, {"strategy"})
        strategy = await desk.bus("strategy")
        subscription = await strategy.subscribe(EventType.TRADE, print)
        assert subscription.unconfirmed == {"feed"}
        async with strategy.stream("aiobus.peer_joined") as joined:
            desk.network.heal()
            await anext(joined)
        assert subscription.unconfirmed == frozenset()


async def test_flush_and_close_name_a_peer_that_was_found_and_has_not_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kill switch beside a strategy that computes was told that all had its HALT."""
    monkeypatch.setattr(start_of, "START_SECONDS", 0.05)
    async with Desk(MemoryNetwork()) as desk:
        await desk.bus("strategy")
        desk.network.partition({"strategy"}, {"tool"})
        tool = await desk.bus("tool")
        assert await tool.flush(0.05) == []  # nothing was published
        await tool.publish(Event(EventType.HALT, "now"))
        assert await tool.flush(0.05) == ["strategy"]
        assert await tool.close(0.05) == ["strategy"]


@pytest.mark.virtual
async def test_a_flush_asks_a_peer_that_comes_back_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its word was not asked for, and this flush and the next took it for given."""
    monkeypatch.setattr(peers, "GRACE", 0.0)
    async with Desk(MemoryNetwork()) as desk:
        feed, _, _ = await feed_and_strategy(desk)
        other = Listener([EventType.TRADE])
        await other.join(await desk.bus("other"))
        async with feed.stream("aiobus.peer_left") as left:
            desk.network.partition({"feed"}, {"other"}, cut=True)
            await anext(left)
        await publish(feed, 10)
        lost = {("acknowledgement", "strategy"), ("question", "other"), ("page_request", "other")}
        desk.network.faults = Faults(loss=lambda message: (message.kind, message.source) in lost)
        flushing = asyncio.create_task(feed.flush(2))
        await at_rest()
        desk.network.heal()
        await at_rest()
        lost.discard(("acknowledgement", "strategy"))
        assert await flushing == ["other"]
        assert await feed.flush(0.05) == ["other"]
        lost.clear()
        assert await feed.flush() == []


async def test_flush_waits_for_a_peer_that_was_found_and_answers_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start_of, "START_SECONDS", 0.05)
    async with Desk(MemoryNetwork()) as desk:
        strategy = await desk.bus("strategy")
        listener = Listener([EventType.HALT])
        await listener.join(strategy)
        desk.network.partition({"strategy"}, {"tool"})
        tool = await desk.bus("tool")
        halt = await tool.publish(Event(EventType.HALT, "now"))
        flushing = asyncio.create_task(tool.flush(20))
        await at_rest()
        desk.network.heal()
        assert await flushing == []
        await strategy.settle()
        listener.check([halt], has_gaps=False)


async def test_a_peer_that_was_found_and_is_provably_dead_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start_of, "START_SECONDS", 0.05)
    async with Desk(MemoryNetwork()) as desk:
        await desk.bus("strategy")
        desk.network.partition({"strategy"}, {"tool"})
        tool = await desk.bus("tool")
        await tool.publish(Event(EventType.HALT, "now"))
        desk.network.kill("strategy")
        assert await tool.flush(600) == []


async def test_what_was_published_before_a_peer_was_found_is_not_owed_to_it() -> None:
    async with Desk(MemoryNetwork()) as desk:
        feed = await desk.bus("feed")
        await publish(feed, 10)
        mute = desk.network.port()
        await opened(mute, "mute")
        feed._transport.find(Member("mute", "memory://mute"))
        assert await feed.flush(0.05) == []
        await publish(feed, 1)
        assert await feed.flush(0.05) == ["mute"]
        await mute.close(0)
        assert await feed.flush() == []


async def test_a_peer_that_is_cut_off_during_subscribe_is_named_as_unconfirmed() -> None:
    async with Desk(MemoryNetwork()) as desk:
        _, strategy, _ = await feed_and_strategy(desk)
        desk.network.partition({"feed"}, {"strategy"})
        subscribing = asyncio.create_task(strategy.subscribe(EventType.BAR, print, timeout=600))
        await at_rest()
        desk.network.partition({"feed"}, {"strategy"}, cut=True)
        subscription = await subscribing
        assert subscription.unconfirmed == {"feed"}
        desk.network.heal()
        while subscription.unconfirmed:
            await at_rest()
        assert [each.name for each in strategy.peers] == ["feed"]


async def test_a_peer_that_was_cut_off_before_subscribe_is_named_without_waiting() -> None:
    async with Desk(MemoryNetwork()) as desk:
        _, strategy, _ = await feed_and_strategy(desk)
        desk.network.partition({"feed"}, {"strategy"}, cut=True)
        await at_rest()
        subscription = await strategy.subscribe(EventType.BAR, print, timeout=600)
        assert subscription.unconfirmed == {"feed"}


@pytest.mark.virtual
async def test_a_peer_that_left_is_not_unconfirmed_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "GRACE", 0.0)
    async with Desk(MemoryNetwork()) as desk:
        _, strategy, _ = await feed_and_strategy(desk)
        async with strategy.stream("aiobus.peer_left") as left:
            desk.network.partition({"feed"}, {"strategy"}, cut=True)
            await at_rest()
            subscription = await strategy.subscribe(EventType.BAR, print)
            assert subscription.unconfirmed == {"feed"}
            await anext(left)
            assert subscription.unconfirmed == frozenset()


@pytest.mark.virtual
async def test_stats_tell_how_long_each_peer_has_been_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "STALE", 1.5)
    async with Desk(MemoryNetwork()) as desk:
        feed, strategy, _ = await feed_and_strategy(desk)
        published = await publish(feed, 3)
        assert await feed.flush() == []
        (link,) = strategy.peers
        assert (link.name, link.epoch, link.last) == (
            "feed",
            published[-1].epoch,
            published[-1].seq,
        )
        assert link.silent < 1.5
        async with strategy.stream(["aiobus.stale", "aiobus.fresh"]) as news:
            desk.network.partition({"feed"}, {"strategy"})
            stale = await anext(news)
            assert (stale.type, stale.data["name"]) == ("aiobus.stale", "feed")
            (link,) = strategy.peers
            assert link.silent >= 1.5
            desk.network.heal()
            fresh = await anext(news)
        assert fresh.type == "aiobus.fresh"
        assert fresh.data.pop("silent") >= 1.5
        last = published[-1].seq
        assert fresh.data == {"name": "feed", "epoch": published[0].epoch, "last": last}


async def test_who_waits_for_a_peer_is_told_when_its_bus_closes() -> None:
    async with Desk(MemoryNetwork()) as desk:
        _, strategy, _ = await feed_and_strategy(desk)
        desk.network.partition({"feed"}, {"strategy"})
        calls = [
            asyncio.create_task(strategy.subscribe(EventType.BAR, print)),
            asyncio.create_task(strategy.wait_for(EventType.BAR)),
        ]
        await at_rest()
        await strategy.close(0.1)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in outcomes] == [BusClosed, BusClosed]


async def test_a_start_that_waits_for_a_peer_ends_when_its_bus_is_closed() -> None:
    async with Desk(MemoryNetwork()) as desk:
        await desk.bus("feed")
        desk.network.partition({"feed"}, {"strategy"})
        strategy = desk.network.bus("strategy")
        starting = asyncio.create_task(strategy.start())
        await at_rest()
        await strategy.close(0.1)
        with pytest.raises(BusClosed):
            await starting


async def test_a_handler_that_is_called_while_its_bus_still_starts_may_publish() -> None:
    async with Desk(MemoryNetwork()) as desk:
        feed = await desk.bus("feed")
        signals = Listener([EventType.SIGNAL])
        await signals.join(feed)
        strategy = desk.network.bus("strategy", on_error="raise")
        called = asyncio.Event()

        @strategy.on(EventType.TRADE)
        async def on_trade(trade: Event) -> None:
            await strategy.publish(Event(EventType.SIGNAL, trade.data))
            called.set()

        @strategy.on(EventType.QUOTE)
        def on_quote(quote: Event) -> None:
            pass

        async def flood() -> None:
            while not called.is_set():
                await feed.publish(Event(EventType.TRADE, 1))
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            group.create_task(flood())
            await strategy.start()
            await called.wait()
        await strategy.close()


@pytest.mark.virtual
@pytest.mark.parametrize("cut", [False, True])
async def test_a_last_event_that_was_lost_arrives_without_another(cut: bool) -> None:
    async with Desk(MemoryNetwork()) as desk:
        feed, strategy, _ = await feed_and_strategy(desk)
        async with strategy.stream(EventType.TRADE) as events:
            desk.network.partition({"feed"}, {"strategy"}, cut=cut)
            await feed.publish(Event(EventType.TRADE, "last"))
            await at_rest()
            desk.network.heal()
            assert (await anext(events)).data == "last"


async def test_subscribing_during_a_partition_is_confirmed_by_itself_after_it() -> None:
    async with Desk(MemoryNetwork()) as desk:
        feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
        desk.network.partition({"feed"}, {"strategy"})
        async with strategy.stream(EventType.TRADE, timeout=0.05) as events:
            assert events.subscription.unconfirmed == {"feed"}
            desk.network.heal()
            while events.subscription.unconfirmed:
                await strategy.subscribe(EventType.BAR, print)  # takes as long as an answer
            await feed.publish(Event(EventType.TRADE, 1))
            assert (await anext(events)).data == 1


async def test_of_who_died_and_came_back_is_said_up_to_where_it_was_heard() -> None:
    async with Desk(MemoryNetwork()) as desk:
        feed, strategy, listener = await feed_and_strategy(desk)
        async with strategy.stream("aiobus.peer_left") as news:
            published = await publish(feed, 10)
            assert await feed.flush() == []
            last = published[-1].seq
            desk.network.kill("feed")
            again = await desk.bus("feed")
            left = await anext(news)
        assert (left.data["epoch"], left.data["last"]) == (published[0].epoch, last)
        published += await publish(again, 10)
        assert await again.flush() == []
        await strategy.settle()
        listener.check(published, has_gaps=False)


async def test_of_who_died_while_something_was_missing_is_said_what_was_lost() -> None:
    async with Desk(MemoryNetwork()) as desk:
        feed, strategy, listener = await feed_and_strategy(desk)
        published = await publish(feed, 10)
        assert await feed.flush() == []
        desk.network.faults = Faults(loss=1.0)
        published += await publish(feed, 10)
        await at_rest()
        desk.network.faults = Faults()
        feed.publish_nowait(Event("else", 1))
        published += await publish(feed, 1)
        await at_rest()
        desk.network.kill("feed")
        again = await desk.bus("feed")
        published += await publish(again, 10)
        assert await again.flush() == []
        await strategy.settle()
        listener.check(published, has_gaps=True)


@pytest.mark.virtual
async def test_flush_waits_for_a_bus_that_has_just_started() -> None:
    async def start_and_flush(seed: int) -> None:
        async with Desk(MemoryNetwork(seed=seed, faults=Faults(delay=0.02))) as desk:
            feed, _, listener = await feed_and_strategy(desk)
            await feed.publish(Event(EventType.TRADE, seed))
            missing = await feed.flush()
            # Nothing is awaited in between.
            held = listener.subscription.stats.pending + len(listener.seen)
            assert (missing, held) == ([], 1)

    async with asyncio.TaskGroup() as group:
        for seed in range(30):
            group.create_task(start_and_flush(seed))


@pytest.mark.virtual
@pytest.mark.parametrize("loss", [0.0, 0.3])
async def test_what_was_published_before_a_subscription_does_not_come_though_no_time_has_passed(
    loss: float,
) -> None:
    async def subscribe_late(seed: int) -> None:
        await asyncio.sleep(seed / 41)
        async with Desk(MemoryNetwork(seed=seed, faults=Faults(loss=loss))) as desk:
            strategy, feed = await desk.bus("strategy"), await desk.bus("feed")
            for number in range(3):
                await feed.publish(Event(EventType.TRADE, number))
            listener = Listener([EventType.TRADE])
            await listener.join(strategy)
            await feed.publish(Event(EventType.TRADE, 3))
            desk.network.faults = Faults()
            assert await feed.flush() == []
            await strategy.settle()
            assert [each.data for each in listener.seen] == [3]

    async with asyncio.TaskGroup() as group:
        for seed in range(40):
            group.create_task(subscribe_late(seed))


@pytest.mark.virtual
async def test_flush_waits_for_a_bus_that_has_not_heard_the_first_answer_yet(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def start_and_flush(seed: int) -> None:
        await asyncio.sleep(seed / 41)  # a time that is rounded
        async with Desk(MemoryNetwork(seed=seed)) as desk:
            strategy = await desk.bus("strategy")
            listener = Listener([EventType.TRADE])
            await listener.join(strategy)
            desk.network.faults = Faults(loss=0.3)
            feed = await desk.bus("feed")
            await feed.publish(Event(EventType.TRADE, seed))
            await at_rest()
            desk.network.faults = Faults()
            missing = await feed.flush()
            # Nothing is awaited in between.
            held = listener.subscription.stats.pending + len(listener.seen)
            assert (missing, held) == ([], 1)

    async with asyncio.TaskGroup() as group:
        for seed in range(300):  # of some of them, all of that is at one virtual moment
            group.create_task(start_and_flush(seed))
    assert "starts without :" not in caplog.text


async def test_a_bus_restarted_at_once_is_linked_though_the_old_ones_bye_comes_late() -> None:
    async with Desk(MemoryNetwork()) as desk:
        feed, strategy, listener = await feed_and_strategy(desk)
        published = await publish(feed, 10)
        assert await feed.flush() == []
        desk.network.faults = Faults(delay=5.0)
        await feed.close()
        desk.network.faults = Faults()
        feed = await desk.bus("feed")
        published += await publish(feed, 10)
        assert await feed.flush() == []
        await strategy.settle()
        listener.check(published, has_gaps=False)


async def test_an_answer_of_the_one_before_that_comes_late_does_not_settle_with_who_is_there() -> (
    None
):
    async with Desk(MemoryNetwork()) as desk:
        feed, strategy, listener = await feed_and_strategy(desk)
        subscribing = asyncio.create_task(strategy.subscribe(EventType.BAR, print))
        await asyncio.sleep(0)  # its question is on its way, and the answer will be for long
        desk.network.faults = Faults(delay=5.0)
        await at_rest()
        await feed.close(0)
        desk.network.faults = Faults()
        feed = await desk.bus("feed")
        published = await publish(feed, 10)
        assert await feed.flush() == []
        await subscribing
        await strategy.settle()
        listener.check(published, has_gaps=False)
        assert [each.name for each in strategy.peers] == ["feed"]


# Settling.


async def chain(network: MemoryNetwork) -> tuple[AsyncEventBus, AsyncEventBus, list[Any]]:
    """A feed, a strategy that answers each trade with a signal, and the signals the feed got."""
    feed = network.bus("feed", on_error="raise")
    strategy = network.bus("strategy", on_error="raise")
    await feed.start()
    await strategy.start()
    signals: list[Any] = []

    async def on_trade(trade: Event) -> None:
        await strategy.publish(Event(EventType.SIGNAL, trade.data))

    await strategy.subscribe(EventType.TRADE, on_trade)
    await feed.subscribe(EventType.SIGNAL, lambda signal: signals.append(signal.data))
    return feed, strategy, signals


# With half of all messages lost, a question and its answer both arrive once in four seconds on
# average, and one run in twenty takes longer than is waited here.
@pytest.mark.virtual
@pytest.mark.parametrize("faults", [Faults(), Faults(delay=0.02), Faults(loss=0.3, reorder=0.2)])
async def test_settled_is_when_what_followed_has_come_back_whatever_was_lost(
    faults: Faults,
) -> None:
    network = MemoryNetwork(seed=3)
    feed, strategy, signals = await chain(network)
    network.faults = faults
    for number in range(20):
        await feed.publish(Event(EventType.TRADE, number))
        await asyncio.sleep(0)
    await network.settle(20.0)
    assert signals == list(range(20))
    network.faults = Faults()
    await asyncio.gather(feed.close(), strategy.close())


@pytest.mark.parametrize("cut", [False, True])
async def test_settling_during_a_partition_waits_for_what_can_arrive(cut: bool) -> None:
    network = MemoryNetwork()
    feed, strategy, signals = await chain(network)
    network.partition({"feed"}, {"strategy"}, cut=cut)
    await feed.publish(Event(EventType.TRADE, 1))
    await network.settle()
    assert signals == []
    network.heal()
    await network.settle()
    assert signals == [1]
    await asyncio.gather(feed.close(), strategy.close())


@pytest.mark.virtual
async def test_settling_during_a_partition_waits_for_handlers_and_not_for_what_is_missing() -> None:
    network = MemoryNetwork()
    feed, strategy, signals = await chain(network)
    go_on = asyncio.Event()

    async def dawdle(quote: Event) -> None:
        await go_on.wait()

    await strategy.subscribe(EventType.QUOTE, dawdle)
    network.faults = Faults(loss=lambda message: any(event.data == 1 for event in message.events))
    network.partition({"strategy"}, {"feed"}, one_way=True)  # what is missing cannot be asked for
    await feed.publish(Event(EventType.TRADE, 1))
    await feed.publish(Event(EventType.TRADE, 2))
    await feed.publish(Event(EventType.QUOTE, "slow"))
    with pytest.raises(TimeoutError, match=r"strategy is at .*dawdle\(QUOTE\)"):
        await network.settle(0.05)
    go_on.set()
    await network.settle()
    assert signals == []
    network.heal()
    network.faults = Faults()
    await network.settle()
    assert signals == [1, 2]
    await asyncio.gather(feed.close(), strategy.close())


async def test_settling_inside_a_handler_is_refused() -> None:
    network = MemoryNetwork()
    feed, strategy, _ = await chain(network)
    await strategy.subscribe(EventType.TRADE, lambda trade: network.settle())
    await feed.publish(Event(EventType.TRADE, 1))
    with pytest.raises(BusError, match="inside a handler"):
        await network.settle()
    await asyncio.gather(feed.close(), strategy.close())


async def test_settling_does_not_wait_for_the_dead() -> None:
    network = MemoryNetwork()
    feed, strategy, _ = await chain(network)
    await feed.publish(Event(EventType.TRADE, 1))
    network.kill("strategy")
    await network.settle()
    await asyncio.gather(feed.close(), strategy.close(0))


@pytest.mark.virtual
async def test_settling_that_takes_too_long_names_who_is_busy() -> None:
    network = MemoryNetwork()
    feed, strategy, _ = await chain(network)
    network.faults = Faults(loss=1.0)
    await feed.publish(Event(EventType.TRADE, 1))
    with pytest.raises(TimeoutError, match="strategy lacks events of feed"):
        await network.settle(0.05)
    network.faults = Faults()
    go_on = asyncio.Event()

    async def dawdle(trade: Event) -> None:
        await go_on.wait()

    await strategy.subscribe(EventType.QUOTE, dawdle)
    await feed.publish(Event(EventType.QUOTE, 1))
    with pytest.raises(TimeoutError, match=r"strategy is .*dawdle\(QUOTE\)"):
        await network.settle(1.5)
    go_on.set()
    await network.settle()
    await asyncio.gather(feed.close(), strategy.close())


async def test_settling_names_who_publishes_on_and_on() -> None:
    network = MemoryNetwork()
    feed, strategy, _ = await chain(network)

    async def echo(signal: Event) -> None:
        await feed.publish(Event(EventType.TRADE, signal.data))

    await feed.subscribe(EventType.SIGNAL, echo)
    await feed.publish(Event(EventType.TRADE, 1))
    with pytest.raises(TimeoutError, match="feed"):
        await network.settle(0.1)
    network.kill("strategy")
    await asyncio.gather(feed.close(0.2), strategy.close(0))


async def test_settling_raises_what_a_handler_raised() -> None:
    network = MemoryNetwork()
    feed, strategy, _ = await chain(network)

    def fail(trade: Event) -> None:
        raise LookupError("no such symbol")

    await strategy.subscribe(EventType.TRADE, fail)
    await feed.publish(Event(EventType.TRADE, 1))
    with pytest.raises(LookupError, match="no such symbol"):
        await network.settle()
    await asyncio.gather(feed.close(), strategy.close())


async def test_settling_where_nothing_happens_is_done_at_once() -> None:
    await MemoryNetwork().settle(0)
