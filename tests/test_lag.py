"""A subscription that lags far behind is sent no frames, and loses nothing by it.

On a network in memory that writes down what goes where; at the end over real sockets.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import Any, Self

import orjson
import pytest

from aiobus import AsyncEventBus, Event, EventType, Limits, Subscription
from aiobus.mesh import fanout as streams
from aiobus.mesh import interest as topic
from aiobus.mesh import transport as mesh
from aiobus.mesh.interest import FAR, LEFT
from aiobus.publisher import FRAME_EVENTS
from aiobus.testing import Faults, MemoryNetwork, Message

pytestmark = pytest.mark.usefixtures("no_task_is_left")

MANY = LEFT * FRAME_EVENTS + FAR
"""Events that switch a subscription with little room to progress messages."""
MAXSIZE = 64
PROGRESS, LIVE = b"\1-TRADE\0", b"\1TRADE\0"


async def turn() -> None:
    """The loop runs what was to be run at its next turn."""
    await asyncio.sleep(0)


class Handler:
    """Hangs until it is let go."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self.gate = asyncio.Event()

    async def __call__(self, event: Event) -> None:
        await self.gate.wait()
        self.seen.append(event)

    @property
    def numbers(self) -> list[int]:
        return [event.data for event in self.seen if event.type == EventType.TRADE]


class Desk:
    """A feed, a strategy that hangs, and what was said on the way."""

    def __init__(self) -> None:
        self.network = MemoryNetwork(faults=Faults(delay=self._note))
        self.said: list[bytes] = []
        """What the strategy has asked for, oldest first."""
        self.frames = 0
        """How many with events have left for it."""
        self.last_told = 0
        """The seq of the last progress message that has left for it."""
        self.handler = Handler()
        self.subscription: Subscription
        self.buses: list[AsyncEventBus] = []
        self.delay = 0.0
        """Seconds that what the strategy asks is under way."""
        self.questions = 0
        """How many `?` it has asked, of any bus."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.handler.gate.set()
        await asyncio.gather(*(bus.close(0.2) for bus in self.buses))

    def _note(self, message: Message) -> float:
        if message.source == "strategy" and message.data[:1] in b"\0\1":
            self.said.append(message.data)
        if message.source == "strategy" and message.kind == "question":
            self.questions += 1
            return self.delay
        if message.target == "strategy":
            self.frames += message.kind == "events"
            if message.data.startswith(b"-"):
                self.last_told = orjson.loads(message.data.partition(b"\0")[2])[3]
        return 0.0

    async def bus(self, name: str) -> AsyncEventBus:
        bus = self.network.bus(name, limits=Limits(history_events=4 * MANY))
        await bus.start()
        self.buses.append(bus)
        return bus

    async def open(self) -> None:
        self.feed, self.strategy = await self.bus("feed"), await self.bus("strategy")
        types = [EventType.TRADE, "aiobus.gap"]
        self.subscription = await self.strategy.subscribe(types, self.handler, maxsize=MAXSIZE)

    async def publish(self, count: int, first: int = 0) -> None:
        for number in range(first, first + count):
            await self.feed.publish(Event(EventType.TRADE, number))
            if number % FRAME_EVENTS == 0:
                await asyncio.sleep(0)

    async def turn_to_progress(self) -> None:
        self.said.clear()
        await self.publish(MANY)
        while PROGRESS not in self.said:
            await turn()
        await self.at_rest()

    async def at_rest(self) -> None:
        """Wait until nothing is on its way."""
        await turn()  # what was joined for the end of the tick leaves
        while not self.network._is_idle():
            await turn()

    async def let_go(self) -> None:
        """Let the handler go on, and wait until it has all."""
        self.handler.gate.set()
        await self.network.settle(10)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    """Its strategy gets progress messages alone, and has the first of MANY events in hand."""
    async with Desk() as desk, asyncio.timeout(20):
        await desk.open()
        await desk.turn_to_progress()
        yield desk


async def test_the_topic_is_withdrawn_behind_that_of_the_progress(desk: Desk) -> None:
    """Or its stream would close in between, and what is published then would be owed to no bus."""
    assert desk.said == [PROGRESS, b"\0TRADE\0"]


async def test_no_frame_is_sent_to_a_bus_that_gets_progress_messages_alone(desk: Desk) -> None:
    desk.frames = 0
    await desk.publish(1000, MANY)
    await desk.at_rest()
    assert desk.frames == 0


async def test_it_is_handed_everything_in_order_and_then_frames_again(desk: Desk) -> None:
    await desk.publish(1000, MANY)
    await desk.let_go()
    assert desk.said[-2:] == [LIVE, b"\0-TRADE\0"]
    desk.frames = 0
    await desk.publish(1, MANY + 1000)
    await desk.network.settle()
    assert desk.frames == 1
    assert desk.handler.numbers == list(range(MANY + 1001))
    assert desk.subscription.stats.gaps == 0


async def test_what_is_published_while_it_catches_up_is_handed_over_as_well(desk: Desk) -> None:
    desk.handler.gate.set()
    await desk.publish(3 * FAR, MANY)
    await desk.network.settle(10)
    assert desk.handler.numbers == list(range(MANY + 3 * FAR))


async def test_flush_waits_for_it(desk: Desk) -> None:
    assert await desk.feed.flush(0.05) == ["strategy"]
    flush = asyncio.ensure_future(desk.feed.flush(10))
    desk.handler.gate.set()
    assert await flush == []
    await desk.strategy.settle()
    assert desk.handler.numbers == list(range(MANY))


async def test_another_subscription_to_the_query_has_the_next_event_at_once(desk: Desk) -> None:
    async with desk.strategy.stream(EventType.TRADE) as events:
        await desk.publish(1, MANY)
        assert (await anext(events)).data == MANY
    assert LIVE in desk.said


async def test_an_unsubscribed_one_is_sent_nothing_and_owed_nothing(desk: Desk) -> None:
    await desk.subscription.unsubscribe()
    desk.handler.gate.set()
    await desk.at_rest()
    assert desk.said[-1] == b"\0-TRADE\0"
    assert await desk.feed.flush(1) == []


async def test_it_hears_of_what_a_bus_publishes_that_comes_meanwhile(desk: Desk) -> None:
    broker = await desk.bus("broker")
    await broker.publish(Event(EventType.TRADE, -1))
    await desk.let_go()
    assert sorted(desk.handler.numbers) == list(range(-1, MANY))


async def test_a_link_that_was_cut_meanwhile_is_asked_for_progress_again(desk: Desk) -> None:
    desk.said.clear()
    desk.network.partition({"feed"}, {"strategy"}, cut=True)
    await desk.publish(1000, MANY)
    desk.network.heal()
    while PROGRESS not in desk.said:
        await turn()
    assert LIVE not in desk.said
    await desk.let_go()
    assert desk.handler.numbers == list(range(MANY + 1000))
    assert desk.subscription.stats.gaps == 0


async def test_of_a_source_that_dies_meanwhile_is_said_what_was_lost_up_to_where_it_was_heard(
    desk: Desk,
) -> None:
    first = desk.handler
    await desk.publish(1000, MANY)
    last = desk.feed.stats().published
    while desk.last_told < last:
        await turn()
    await desk.at_rest()
    desk.network.kill("feed")
    again = await desk.bus("feed")
    first.gate.set()
    await again.publish(Event(EventType.TRADE, 1_000_000))
    assert await again.flush() == []
    await desk.strategy.settle()
    *handed_over, gap, alive = first.seen
    assert (gap.data["after"], gap.data["upto"]) == (handed_over[-1].seq, last)
    assert [event.data for event in handed_over] == list(range(len(handed_over)))
    assert alive.data == 1_000_000
    desk.frames = 0
    await again.publish(Event(EventType.TRADE, 1_000_001))
    assert await again.flush() == []
    assert desk.frames == 1


async def test_over_sockets_it_gets_progress_messages_catches_up_and_is_live_again(
    logged: Callable[[str], AbstractContextManager[asyncio.Event]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "aiobus")
    handler, limits = Handler(), Limits(history_events=4 * MANY)
    with tempfile.TemporaryDirectory(prefix="ab") as folder:
        url = f"ipc://{folder}/d"
        async with (
            AsyncEventBus(url, name="feed", limits=limits) as feed,
            AsyncEventBus(url, name="strategy") as strategy,
        ):
            await strategy.subscribe(EventType.TRADE, handler, maxsize=MAXSIZE)
            published = 0
            with logged("subscribes to the progress of TRADE") as is_switched:
                while not is_switched.is_set() and published < 3 * MANY:
                    await feed.publish(Event(EventType.TRADE, published))
                    published += 1
                    await asyncio.sleep(0)
            assert is_switched.is_set()
            with logged("subscribes to the events of TRADE") as is_live:
                handler.gate.set()
                assert await feed.flush(20) == []
                assert is_live.is_set()
            await strategy.settle()
            assert handler.numbers == list(range(published))


# What is asked when it is live again, and what is heard before.


@pytest.mark.parametrize("is_ticking", [False, True])
async def test_what_was_published_before_it_was_live_again_is_asked_for_at_once(
    monkeypatch: pytest.MonkeyPatch, is_ticking: bool
) -> None:
    """It is not left to the next beacon, of which there is none here. Of few events among many, one
    page brings all that is missing.
    """
    monkeypatch.setattr(mesh, "TICK", 3600.0)
    monkeypatch.setattr(streams, "PROGRESS_SECONDS", 3600.0)
    number = MAXSIZE + 3 * LEFT
    async with Desk() as desk, asyncio.timeout(20):
        await desk.open()
        for each in range(number):
            await desk.feed.publish(Event(EventType.TRADE, each))
            for _ in range(FAR // LEFT):
                desk.feed.publish_nowait(Event(EventType.QUOTE, 0))
            await turn()
        await desk.at_rest()
        assert desk.said[-2:] == [PROGRESS, b"\0TRADE\0"]
        desk.delay = 0.02
        desk.handler.gate.set()
        while desk.said[-1] != b"\0-TRADE\0":
            await turn()
        await desk.feed.publish(Event(EventType.TRADE, number))
        if is_ticking:
            desk.strategy._transport.session._drop_late()  # type: ignore[attr-defined]
        while number not in desk.handler.numbers:
            await turn()
        assert desk.handler.numbers == list(range(number + 1))


async def test_of_topics_that_are_live_again_together_is_asked_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = "abcdefgh"
    for key in keys:
        await desk.strategy.subscribe(EventType.BAR, desk.handler, key=key, maxsize=MAXSIZE)
    for number in range(FAR + 2 * LEFT):
        for key in keys:
            await desk.feed.publish(Event(EventType.BAR, number, key=key))
    await desk.at_rest()
    assert len([each for each in desk.said if each.startswith(b"\1-")]) == 1 + len(keys)
    monkeypatch.setattr(topic, "NEAR", 10**9)
    desk.questions = 0
    desk.strategy._transport.session.interest.tick(0.0, (), ())  # type: ignore[attr-defined]
    desk.strategy._transport.session.follow_up()  # type: ignore[attr-defined]
    await desk.at_rest()
    assert len([each for each in desk.said if each.startswith(b"\0-")]) == 1 + len(keys)
    assert desk.questions == 1


@pytest.mark.one_loop
async def test_an_older_source_that_is_first_met_while_it_is_switched_owes_what_comes_then() -> (
    None
):
    """From the moment its stream begins, though it is asked later."""
    async with Desk() as desk, asyncio.timeout(20):
        desk.network.partition({"broker"}, {"strategy"})
        broker = await desk.bus("broker")
        await broker.publish(Event(EventType.TRADE, -9))
        await desk.open()
        await desk.turn_to_progress()
        desk.delay = 0.02
        desk.network.heal()
        while not len(broker._transport.session.fanout):  # type: ignore[attr-defined]
            await turn()
        for number in range(-5, 0):
            await broker.publish(Event(EventType.TRADE, number))
        while "strategy" not in [each.name for each in broker.peers]:
            await turn()
        await desk.let_go()
        assert sorted(desk.handler.numbers) == list(range(-5, MANY))


async def test_a_subscription_that_is_heard_while_a_bus_closes_is_not_served(desk: Desk) -> None:
    transport = desk.feed._transport
    await desk.feed.close(0.2)
    transport.session.receive_from_subscriber(PROGRESS, 1, "")  # type: ignore[attr-defined]
    assert len(transport.session.fanout) == 0  # type: ignore[attr-defined]


async def test_a_source_that_does_not_answer_that_is_asked_twice_and_no_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beacon tells as well, and questions for each time a topic turned would pile up."""
    session: Any = desk.strategy._transport.session  # type: ignore[attr-defined]
    desk.network.partition({"feed"}, {"strategy"})
    monkeypatch.setattr(topic, "NEAR", 10**9)
    session.interest.tick(0.0, (), ())
    desk.questions = 0
    session.follow_up()
    for _ in range(3):
        session._drop_late()
        session.links.rounds.repeat()
    assert desk.questions == 2
