"""Who caused what: the id of the event being handled becomes the cause of what is published."""

import asyncio

import pytest

from aiobus import AsyncEventBus, Event, EventType

pytestmark = pytest.mark.usefixtures("no_task_is_left")


async def test_a_plain_functions_publish_is_caused_as_well(bus: AsyncEventBus) -> None:
    signals: list[Event] = []
    await bus.subscribe(
        EventType.TRADE, lambda event: bus.publish_nowait(Event(EventType.SIGNAL, 1)) and None
    )
    await bus.subscribe(EventType.SIGNAL, signals.append)
    trade = await bus.publish(Event(EventType.TRADE, 1))
    await bus.settle()
    assert signals[0].cause == trade.id


async def test_a_cause_named_by_the_caller_wins(bus: AsyncEventBus) -> None:
    acks: list[Event] = []
    await bus.subscribe(
        EventType.TRADE, lambda event: bus.publish(Event(EventType.ACK, 1, cause="mine@1.7"))
    )
    await bus.subscribe(EventType.ACK, acks.append)
    await bus.publish(Event(EventType.TRADE, 1))
    await bus.settle()
    assert acks[0].cause == "mine@1.7"


async def test_publishing_a_received_event_again_makes_it_a_new_one_caused_by_itself(
    bus: AsyncEventBus,
) -> None:
    seen: list[Event] = []
    more: list[Event] = []

    async def again(event: Event) -> None:
        event.type = EventType.BAR
        event.cause = "stale"
        await bus.publish(event)
        more.append(await bus.publish(Event(EventType.SIGNAL, 1)))

    await bus.subscribe(EventType.TRADE, again)
    await bus.subscribe(EventType.BAR, seen.append)
    trade = await bus.publish(Event(EventType.TRADE, 1))
    await bus.settle()
    (bar,) = seen
    assert bar.cause == trade.id
    assert bar.id != trade.id
    assert more[0].cause == trade.id


async def test_a_task_spawned_in_a_handler_inherits_the_cause(bus: AsyncEventBus) -> None:
    tasks: list[asyncio.Task[Event]] = []

    async def later() -> Event:
        for _ in range(5):
            await asyncio.sleep(0)
        return await bus.publish(Event(EventType.SIGNAL, 1))

    async def spawn(event: Event) -> None:
        tasks.append(asyncio.create_task(later()))

    await bus.subscribe(EventType.TRADE, spawn)
    trade = await bus.publish(Event(EventType.TRADE, 1))
    await bus.settle()
    assert (await tasks[0]).cause == trade.id


async def test_concurrent_calls_keep_their_causes_apart(bus: AsyncEventBus) -> None:
    signals: list[Event] = []

    async def on_trade(event: Event) -> None:
        await asyncio.sleep(0)
        await bus.publish(Event(EventType.SIGNAL, event.id))

    await bus.subscribe(EventType.TRADE, on_trade, concurrency=8)
    await bus.subscribe(EventType.SIGNAL, signals.append)
    for number in range(50):
        await bus.publish(Event(EventType.TRADE, number))
    await bus.settle()
    assert [signal.cause for signal in signals] == [signal.data for signal in signals]


async def test_a_subscription_made_in_a_handler_does_not_inherit_its_cause(
    bus: AsyncEventBus,
) -> None:
    causes: list[str] = []

    async def publishes(event: Event) -> None:
        causes.append((await bus.publish(Event(EventType.SIGNAL, 1))).cause)

    async def subscribes(event: Event) -> None:
        await bus.subscribe(EventType.BAR, publishes)

    await bus.subscribe(EventType.TRADE, subscribes)
    await bus.publish(Event(EventType.TRADE, 1))
    await bus.settle()
    bar = await bus.publish(Event(EventType.BAR, 1))
    await bus.settle()
    assert causes == [bar.id]


async def test_outside_of_all_handlers_nothing_is_the_cause(bus: AsyncEventBus) -> None:
    await bus.subscribe(EventType.TRADE, lambda event: None)
    await bus.publish(Event(EventType.TRADE, 1))
    await bus.settle()
    assert (await bus.publish(Event(EventType.TRADE, 2))).cause == ""
