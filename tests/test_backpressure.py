"""`block` really slows the publisher, and handlers that publish to each other never stop."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from aiobus import AsyncEventBus, Event, EventType

Logged = Callable[[str], AbstractContextManager[asyncio.Event]]

pytestmark = pytest.mark.usefixtures("no_task_is_left")


async def test_a_chain_of_three_block_handlers_really_slows_its_feed(bus: AsyncEventBus) -> None:
    go = asyncio.Semaphore(0)
    stored: list[int] = []
    sent = 0

    async def first(event: Event) -> None:
        await bus.publish(Event("B", event.data))

    async def second(event: Event) -> None:
        await bus.publish(Event("C", event.data))

    async def third(event: Event) -> None:
        await go.acquire()
        stored.append(event.data)

    for type, handler in [("A", first), ("B", second), ("C", third)]:
        await bus.subscribe(type, handler, overflow="block", maxsize=2)

    async def feed() -> None:
        nonlocal sent
        for sent in range(1, 101):
            await bus.publish(Event("A", sent))

    feeding = asyncio.create_task(feed())
    in_the_chain = (
        3 * (2 + 1) + 3
    )  # each inbox, each hand, and one over the bound for each publisher
    for released in (0, 1, 5, 50):
        for _ in range(released):
            go.release()
        for _ in range(2_000):
            await asyncio.sleep(0)
        assert sent - len(stored) <= in_the_chain
        assert not feeding.done()
    for _ in range(100):
        go.release()
    await feeding
    await bus.settle()
    assert stored == list(range(1, 101))
    assert sum(each.overshoot for each in bus.stats().subscriptions) == 0


POLICIES = ["catch_up", "block", "latest", "drop_oldest"]


@pytest.mark.parametrize("maxsize", [1, 2])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("ring", [1, 2, 3])
async def test_handlers_publishing_to_each_other_in_a_circle_go_on(
    bus: AsyncEventBus, policy: str, maxsize: int, ring: int
) -> None:
    handled = 0

    def make(number: int):  # type: ignore[no-untyped-def]
        async def handler(event: Event) -> None:
            nonlocal handled
            handled += 1
            if event.data:
                for _ in range(2):  # two for each: no bounded inbox could hold them all
                    if handled < 500:
                        await bus.publish(Event(f"T{(number + 1) % ring}", event.data - 1))

        return handler

    for number in range(ring):
        await bus.subscribe(f"T{number}", make(number), overflow=policy, maxsize=maxsize)  # type: ignore[arg-type]
    for _ in range(10):
        await bus.publish(Event("T0", 30))
    await bus.settle(10)
    if policy in ("catch_up", "block"):
        assert handled >= 500


async def test_an_event_that_could_only_wait_for_itself_overshoots_and_is_counted(
    bus: AsyncEventBus,
) -> None:
    seen: list[int] = []

    async def handler(event: Event) -> None:
        seen.append(event.data)
        if event.data == 0:
            for number in range(1, 6):
                await bus.publish(Event("LOOP", number))

    subscription = await bus.subscribe("LOOP", handler, overflow="block", maxsize=1)
    await bus.publish(Event("LOOP", 0))
    await bus.settle()
    assert seen == [0, 1, 2, 3, 4, 5]
    assert subscription.stats.overshoot == 4


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_gather_of_publishes_in_a_handler_goes_on(bus: AsyncEventBus, policy: str) -> None:
    handled = 0

    async def handler(event: Event) -> None:
        nonlocal handled
        handled += 1
        if event.data:
            await asyncio.gather(*(bus.publish(Event("LOOP", event.data - 1)) for _ in range(5)))

    await bus.subscribe("LOOP", handler, overflow=policy, maxsize=1)  # type: ignore[arg-type]
    await bus.publish(Event("LOOP", 3))
    await bus.settle(10)
    if policy in ("catch_up", "block"):
        assert handled == 1 + 5 + 25 + 125


async def test_a_task_spawned_by_a_handler_waits_no_circle_while_the_handler_awaits_it(
    bus: AsyncEventBus,
) -> None:
    seen: list[int] = []

    async def burst() -> None:
        for number in range(1, 4):
            await bus.publish(Event("LOOP", number))

    async def handler(event: Event) -> None:
        seen.append(event.data)
        if event.data == 0:
            await asyncio.create_task(burst())

    await bus.subscribe("LOOP", handler, overflow="block", maxsize=1)
    await bus.publish(Event("LOOP", 0))
    await bus.settle()
    assert seen == [0, 1, 2, 3]


async def test_publishing_to_a_streams_own_inbox_from_its_body_goes_on(bus: AsyncEventBus) -> None:
    seen: list[int] = []
    async with bus.stream("LOOP", overflow="block", maxsize=1) as events:
        await bus.publish(Event("LOOP", 3))
        async for event in events:
            seen.append(event.data)
            for _ in range(event.data):
                await bus.publish(Event("LOOP", event.data - 1))
            if len(seen) == 1 + 3 + 6 + 6:
                break
    assert sorted(seen) == [0] * 6 + [1] * 6 + [2] * 3 + [3]


async def test_publishing_in_a_stream_before_its_first_step_goes_on(bus: AsyncEventBus) -> None:
    async with bus.stream("A", overflow="block", maxsize=1) as events:
        for number in range(5):
            await bus.publish(Event("A", number))
        assert [(await anext(events)).data for _ in range(5)] == list(range(5))


async def test_a_feed_spawned_inside_a_stream_does_wait_for_it(bus: AsyncEventBus) -> None:
    sent = 0

    async def feed() -> None:
        nonlocal sent
        for sent in range(1, 21):
            await bus.publish(Event("A", sent))

    async with bus.stream("A", overflow="block", maxsize=2) as events:
        feeding = asyncio.create_task(feed())
        for _ in range(100):
            await asyncio.sleep(0)
        assert sent == 3
        assert [(await anext(events)).data for _ in range(20)] == list(range(1, 21))
        await feeding


async def test_a_stream_and_a_handler_that_wait_for_each_others_room_go_on(
    bus: AsyncEventBus,
) -> None:
    async def echo(event: Event) -> None:
        for _ in range(3):
            await bus.publish(Event("A", event.data))

    taken = 0
    await bus.subscribe("B", echo, overflow="block", maxsize=1)
    async with bus.stream("A", overflow="block", maxsize=1) as events:
        for number in range(5):
            await bus.publish(Event("B", number))
        async for _ in events:
            taken += 1
            if taken == 15:
                break


async def test_a_handler_that_publishes_to_itself_inside_a_stream_goes_on(
    bus: AsyncEventBus,
) -> None:
    seen: list[int] = []

    async def handler(event: Event) -> None:
        seen.append(event.data)
        if event.data == 0:
            async with bus.stream("B"):
                for number in range(1, 4):
                    await bus.publish(Event("A", number))

    await bus.subscribe("A", handler, overflow="block", maxsize=1)
    await bus.publish(Event("A", 0))
    await bus.settle()
    assert seen == [0, 1, 2, 3]


async def test_publishing_to_the_outer_of_two_streams_goes_on(bus: AsyncEventBus) -> None:
    async with (
        bus.stream("A", overflow="block", maxsize=1) as outer,
        bus.stream("B") as inner,
    ):
        for number in range(4):
            await bus.publish(Event("A", number))
        await bus.publish(Event("B", 0))
        await anext(inner)
        for number in range(4, 8):
            await bus.publish(Event("A", number))
        assert [(await anext(outer)).data for _ in range(8)] == list(range(8))


async def test_streams_left_out_of_order_do_not_forget_each_other(bus: AsyncEventBus) -> None:
    first = bus.stream("A")
    second = bus.stream("B", overflow="block", maxsize=1)
    await first.__aenter__()
    await second.__aenter__()
    await first.__aexit__(None, None, None)
    for number in range(3):
        await bus.publish(Event("B", number))
    assert [(await anext(second)).data for _ in range(3)] == [0, 1, 2]
    await second.__aexit__(None, None, None)
    assert (await bus.publish(Event("A", 1))).cause == ""


async def test_a_task_that_enters_a_stream_that_another_task_iterates_does_wait_for_it(
    bus: AsyncEventBus,
) -> None:
    most = 0
    taken: list[int] = []

    async def consume() -> None:
        async for event in events:
            taken.append(event.data)
            for _ in range(3):
                await asyncio.sleep(0)
            if len(taken) == 100:
                return

    async with bus.stream("A", overflow="block", maxsize=4) as events:
        consuming = asyncio.create_task(consume())
        await asyncio.sleep(0)
        for number in range(100):
            published = await bus.publish(Event("A", number))
            most = max(most, events.subscription.stats.pending)
            assert published.cause == ""
        await consuming
    assert taken == list(range(100))
    assert most <= 5


async def test_a_step_that_timed_out_counts_as_iterating(bus: AsyncEventBus) -> None:
    """As where a fixture enters the stream and the test's own task iterates."""
    events = bus.stream("A", overflow="block", maxsize=1)
    await asyncio.create_task(events.__aenter__())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await anext(events)
    for number in range(3):
        await bus.publish(Event("A", number))
    assert [(await anext(events)).data for _ in range(3)] == [0, 1, 2]
    await events.__aexit__(None, None, None)
    assert (await bus.publish(Event("B", 1))).cause == ""


@pytest.mark.virtual
async def test_the_warning_outlives_the_first_publisher_that_waits(
    bus: AsyncEventBus, logged: Logged
) -> None:
    gate = asyncio.Event()

    with logged("has waited") as warned:
        await bus.subscribe("A", lambda event: gate.wait(), overflow="block", maxsize=1)
        publishing = [asyncio.create_task(bus.publish(Event("A", n))) for n in range(5)]
        for _ in range(5):
            await asyncio.sleep(0)
        for task in publishing[:-1]:
            task.cancel()
        await warned.wait()
        gate.set()
        await asyncio.wait(publishing)


async def test_while_it_catches_up_a_block_inbox_makes_publishers_wait(bus: AsyncEventBus) -> None:
    seen: list[int] = []
    for number in range(50):
        await bus.publish(Event("A", number))

    async def slow(event: Event) -> None:
        await asyncio.sleep(0)
        seen.append(event.data)

    await bus.subscribe("A", slow, overflow="block", maxsize=2, since=0.0)
    for number in range(50, 100):
        await bus.publish(Event("A", number))
        assert number - len(seen) <= 6
    await bus.settle()
    assert seen == list(range(100))


@pytest.mark.virtual
async def test_many_publishers_that_wait_are_warned_of_once(
    bus: AsyncEventBus, caplog: pytest.LogCaptureFixture, logged: Logged
) -> None:
    gate = asyncio.Event()

    with logged("has waited") as warned:
        await bus.subscribe("A", lambda event: gate.wait(), overflow="block", maxsize=1)
        publishing = [asyncio.create_task(bus.publish(Event("A", n))) for n in range(20)]
        await warned.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*publishing)
    assert sum("has waited" in message for message in caplog.messages) == 1


async def test_two_handlers_that_wait_for_each_other_through_a_request_go_on(
    bus: AsyncEventBus,
) -> None:
    """The broker waits for room at the strategy while the strategy waits for the broker's ACK."""
    acks: list[str] = []
    fills = 0

    async def broker(event: Event) -> None:
        for _ in range(3):
            await bus.publish(Event(EventType.FILL, 1))
        await bus.publish(Event(EventType.ACK, 1, cause=event.id))

    async def strategy(event: Event) -> None:
        nonlocal fills
        if event.type == EventType.FILL:
            fills += 1
            return
        reply = await bus.request(Event(EventType.ORDER, 1), EventType.ACK, timeout=20)
        acks.append(reply.type)

    await bus.subscribe(EventType.ORDER, broker, overflow="block", maxsize=1)
    await bus.subscribe([EventType.TRADE, EventType.FILL], strategy, overflow="block", maxsize=1)
    for _ in range(3):
        await bus.publish(Event(EventType.TRADE, 1))
    await bus.settle(15)
    assert (acks, fills) == (["ACK"] * 3, 9)


async def test_a_wait_that_began_before_the_request_is_given_up_when_the_request_closes_the_circle(
    bus: AsyncEventBus,
) -> None:
    waiting = asyncio.Event()
    acks = 0

    async def broker(event: Event) -> None:
        if event.data == "first":
            waiting.set()
            await bus.publish(Event(EventType.TRADE, "for the full inbox"))
        await bus.publish(Event(EventType.ACK, 1, cause=event.id))

    async def strategy(event: Event) -> None:
        nonlocal acks
        if event.data == "begin":
            await bus.publish(Event(EventType.ORDER, "first"))
            await waiting.wait()
            for _ in range(5):
                await asyncio.sleep(0)
            await bus.request(Event(EventType.ORDER, "second"), EventType.ACK, timeout=20)
            acks += 1

    await bus.subscribe(EventType.ORDER, broker)
    mine = await bus.subscribe(EventType.TRADE, strategy, overflow="block", maxsize=1)
    bus.publish_nowait(Event(EventType.TRADE, "begin"))
    await asyncio.sleep(0)
    bus.publish_nowait(Event(EventType.TRADE, "fills the inbox"))
    await bus.settle(15)
    assert acks == 1
    assert mine.stats.overshoot == 1


async def test_a_task_that_outlives_its_handler_waits_like_any_other(bus: AsyncEventBus) -> None:
    tasks: list[asyncio.Task[None]] = []
    gate = asyncio.Event()
    sent = 0

    async def feed() -> None:
        nonlocal sent
        await asyncio.sleep(0)
        for sent in range(1, 11):
            await bus.publish(Event("OUT", sent))

    async def spawns(event: Event) -> None:
        tasks.append(asyncio.create_task(feed()))

    async def slow(event: Event) -> None:
        await gate.wait()

    await bus.subscribe("IN", spawns)
    await bus.subscribe("OUT", slow, overflow="block", maxsize=2)
    await bus.publish(Event("IN", 1))
    for _ in range(200):
        await asyncio.sleep(0)
    assert sent == 4
    gate.set()
    await tasks[0]
    await bus.settle()


async def test_a_cancelled_publish_has_published(bus: AsyncEventBus) -> None:
    gate = asyncio.Event()
    seen: list[int] = []

    async def slow(event: Event) -> None:
        await gate.wait()
        seen.append(event.data)

    await bus.subscribe("T", slow, overflow="block", maxsize=1)
    for number in range(2):
        await bus.publish(Event("T", number))
    for number in range(2, 6):
        publishing = asyncio.create_task(bus.publish(Event("T", number)))
        await asyncio.sleep(0)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
    gate.set()
    await bus.settle()
    assert seen == [0, 1, 2, 3, 4, 5]
