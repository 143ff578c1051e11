"""request(): publish, and await the first event it caused."""

import asyncio

import pytest

from aiobus import AsyncEventBus, BusClosed, Event, EventType, NoSubscribers, RequestTimeout

pytestmark = pytest.mark.usefixtures("no_task_is_left")


async def acknowledge(bus: AsyncEventBus) -> None:
    async def on_order(event: Event) -> None:
        await bus.publish(Event(EventType.ACK, {"order": event.id}))

    await bus.subscribe(EventType.ORDER, on_order)


async def test_any_of_several_reply_types_will_do(bus: AsyncEventBus) -> None:
    await bus.subscribe(EventType.ORDER, lambda e: bus.publish(Event(EventType.REJECT, "no")))
    reply = await bus.request(Event(EventType.ORDER, 1), [EventType.ACK, EventType.REJECT])
    assert reply == Event(EventType.REJECT, "no")


async def test_a_reply_may_name_its_request_itself(bus: AsyncEventBus) -> None:
    orders: asyncio.Queue[str] = asyncio.Queue()

    async def websocket() -> None:
        await bus.publish(Event(EventType.ACK, 1, cause=await orders.get()))

    answering = asyncio.create_task(websocket())
    await bus.subscribe(EventType.ORDER, lambda event: orders.put_nowait(event.id))
    assert (await bus.request(Event(EventType.ORDER, 1), EventType.ACK)).data == 1
    await answering


async def test_beside_a_monitor_of_everything_who_names_the_type_answers(
    bus: AsyncEventBus,
) -> None:
    await bus.subscribe("*", lambda event: None)
    await acknowledge(bus)
    order = Event(EventType.ORDER, 1)
    assert (await bus.request(order, EventType.ACK)).cause == order.id


async def test_who_only_listens_for_replies_does_not_count_as_subscribed(
    bus: AsyncEventBus,
) -> None:
    await acknowledge(bus)
    await bus.request(Event(EventType.ORDER, 1), [EventType.ACK, EventType.CANCEL])
    with pytest.raises(NoSubscribers):
        await bus.request(Event(EventType.CANCEL, 1), EventType.ACK)


async def test_a_timeout_of_the_callers_own_stays_the_callers(bus: AsyncEventBus) -> None:
    await bus.subscribe(EventType.ORDER, lambda event: None)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.01):
            await bus.request(Event(EventType.ORDER, 1), EventType.ACK)
    assert not isinstance(caught.value, RequestTimeout)


async def test_the_reply_subscription_is_made_once_and_stays(bus: AsyncEventBus) -> None:
    await acknowledge(bus)
    for number in range(3):
        await bus.request(Event(EventType.ORDER, number), EventType.ACK)
    names = [each.name for each in bus.stats().subscriptions]
    assert names.count("replies(ACK)") == 1


async def test_a_request_in_a_handler_works_and_names_its_cause(bus: AsyncEventBus) -> None:
    await acknowledge(bus)
    orders: list[Event] = []
    done = asyncio.Event()

    async def on_signal(event: Event) -> None:
        order = Event(EventType.ORDER, 1)
        await bus.request(order, EventType.ACK)
        orders.append(order)
        done.set()

    await bus.subscribe(EventType.SIGNAL, on_signal)
    signal = await bus.publish(Event(EventType.SIGNAL, 1))
    await done.wait()
    assert orders[0].cause == signal.id


async def test_closing_the_bus_ends_the_wait() -> None:
    asked = asyncio.Event()
    bus = AsyncEventBus()
    await bus.start()
    await bus.subscribe(EventType.ORDER, lambda event: asked.set())
    asking = asyncio.create_task(bus.request(Event(EventType.ORDER, 1), EventType.ACK))
    await asked.wait()
    await bus.close()
    with pytest.raises(BusClosed):
        await asking


async def test_a_bad_request_is_refused_before_anything_is_subscribed(bus: AsyncEventBus) -> None:
    with pytest.raises(ValueError, match="reserved"):
        await bus.request(Event("aiobus.error", 1), EventType.ACK)
    assert bus.stats().subscriptions == ()
