"""The event in hand, and who waits for whom."""

import asyncio
import contextvars
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobus import AsyncEventBus, Event, EventType
from aiobus.delivery import (
    Consumer,
    Delivery,
    StreamBody,
    current,
    enter,
    holding,
    waiting,
    would_deadlock,
)

EVENT = Event(EventType.TRADE, 1, source="desk", epoch=36, seq=5)


class Handler(Consumer):
    """A consumer that may be at work on several events."""

    def waits_for(self, *consumers: Consumer) -> Delivery:
        """Begin an event that cannot go on before `consumers` do."""
        delivery = self.begin(EVENT)
        delivery.waits_for = consumers
        return delivery


def handlers(count: int) -> list[Handler]:
    return [Handler() for _ in range(count)]


# One delivery.


def test_a_delivery_names_the_event_by_its_id() -> None:
    assert Handler().begin(EVENT).id == EVENT.id == "desk@10.5"


def test_its_id_stays_when_the_handler_changes_the_event_or_publishes_it_again() -> None:
    event = Event(EventType.TRADE, 1, source="desk", epoch=36, seq=5)
    delivery = Handler().begin(event)
    event.source, event.epoch, event.seq = "other", 1, 99
    assert delivery.id == "desk@10.5"


def test_the_id_of_an_event_without_a_number_is_empty() -> None:
    assert Handler().begin(Event(EventType.TRADE, 1)).id == ""


def test_a_new_delivery_is_unfinished_and_waits_for_no_consumer() -> None:
    delivery = Handler().begin(EVENT)
    assert (delivery.finished, delivery.waits_for) == (False, ())


def test_it_waits_for_consumers_just_as_long_as_the_block_lasts() -> None:
    delivery, (a, b) = Handler().begin(EVENT), handlers(2)
    with waiting((delivery,), (a, b)):
        assert delivery.waits_for == (a, b)
    assert delivery.waits_for == ()


def test_it_stops_waiting_when_the_block_is_left_by_an_exception() -> None:
    delivery = Handler().begin(EVENT)
    with pytest.raises(KeyError), waiting((delivery,), handlers(2)):
        raise KeyError
    assert delivery.waits_for == ()


def test_an_iterator_of_consumers_is_read_once() -> None:
    delivery, both = Handler().begin(EVENT), handlers(2)
    with waiting((delivery,), iter(both)):
        assert delivery.waits_for == tuple(both)
    assert delivery.waits_for == ()


def test_waits_of_gathered_publishes_end_in_any_order() -> None:
    delivery, (a, b) = Handler().begin(EVENT), handlers(2)
    first, second = waiting((delivery,), (a,)), waiting((delivery,), (b,))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert delivery.waits_for == (b,)
    second.__exit__(None, None, None)
    assert delivery.waits_for == ()


def test_two_waits_for_the_same_consumer_are_two() -> None:
    delivery, (a,) = Handler().begin(EVENT), handlers(1)
    with waiting((delivery,), (a,)):
        with waiting((delivery,), (a,)):
            pass
        assert delivery.waits_for == (a,)


# The context.


def test_outside_of_all_deliveries_there_is_no_current_one() -> None:
    assert contextvars.Context().run(current) is None


def test_a_delivery_is_current_in_its_context_and_in_copies_of_it_only() -> None:
    delivery, context = Handler().begin(EVENT), contextvars.Context()
    context.run(enter, delivery)
    assert context.run(current) is delivery
    assert context.copy().run(current) is delivery
    assert contextvars.Context().run(current) is None


def test_a_context_can_be_emptied_again() -> None:
    context = contextvars.Context()
    context.run(enter, Handler().begin(EVENT))
    context.run(enter, None)
    assert context.run(current) is None


# One of one at a time, whose delivery is made when it is asked for.


async def test_while_an_event_is_in_hand_its_delivery_is_one_and_unfinished(
    bus: AsyncEventBus,
) -> None:
    seen: list[Delivery] = []

    async def on_event(event: Event) -> None:
        event.seq = 99  # what the handler does to it changes no name
        for _ in range(2):
            delivery = current()
            assert delivery is not None
            assert not delivery.finished
            assert [delivery] == holding()
            seen.append(delivery)
            await asyncio.sleep(0)

    subscription = await bus.subscribe("A", on_event)
    published = [await bus.publish(Event("A", number)) for number in range(3)]
    await bus.settle()
    assert subscription.stats.failed == 0
    assert [delivery.id for delivery in seen] == [event.id for event in published for _ in "12"]
    assert seen[0] is seen[1]
    assert seen[1] is not seen[2]
    assert all(delivery.finished for delivery in seen)
    assert subscription.running == set()


async def test_a_task_that_outlives_its_handler_has_its_event_as_cause_and_holds_nothing_up(
    bus: AsyncEventBus,
) -> None:
    go_on = asyncio.Event()
    late: list[tuple[str, bool, list[Delivery]]] = []
    tasks: list[asyncio.Task[None]] = []

    async def afterwards() -> None:
        await go_on.wait()
        delivery = current()
        assert delivery is not None
        late.append((delivery.id, delivery.finished, holding()))

    async def on_event(event: Event) -> None:
        tasks.append(asyncio.create_task(afterwards()))

    await bus.subscribe("A", on_event)
    published = [await bus.publish(Event("A", number)) for number in range(2)]
    await bus.settle()
    go_on.set()
    await asyncio.gather(*tasks)
    assert late == [(event.id, True, []) for event in published]


async def test_a_task_of_an_earlier_event_does_not_take_the_one_in_hand_for_its_own(
    bus: AsyncEventBus,
) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    late: list[asyncio.Task[tuple[str, list[Delivery]]]] = []

    async def afterwards() -> tuple[str, list[Delivery]]:
        await first.wait()
        delivery = current()
        assert delivery is not None
        assert delivery.finished
        return delivery.id, holding()

    async def on_event(event: Event) -> None:
        if event.data:
            first.set()
            await second.wait()
        else:
            late.append(asyncio.create_task(afterwards()))

    subscription = await bus.subscribe("A", on_event)
    one, other = [await bus.publish(Event("A", number)) for number in range(2)]
    await first.wait()
    assert await late[0] == (one.id, [])
    (running,) = subscription.running
    assert (running.id, running.finished) == (other.id, False)
    second.set()
    await bus.settle()
    assert running.finished


async def test_an_event_that_no_code_asks_about_counts_as_running_while_it_is_in_hand(
    bus: AsyncEventBus,
) -> None:
    """Those who look for circles of waits ask the consumer, not the handler."""
    inside, leave = asyncio.Event(), asyncio.Event()

    async def on_event(event: Event) -> None:
        inside.set()
        await leave.wait()

    subscription = await bus.subscribe("A", on_event)
    assert list(subscription.running) == []
    event = await bus.publish(Event("A", 1))
    await inside.wait()
    (delivery,) = subscription.running
    assert (delivery.id, list(subscription.running), subscription.in_hand) == (
        event.id,
        [delivery],
        1,
    )
    leave.set()
    await bus.settle()
    assert (delivery.finished, list(subscription.running), subscription.in_hand) == (True, [], 0)


async def test_a_handler_that_raises_has_finished_with_its_event() -> None:
    seen: list[Delivery | None] = []

    async def on_event(event: Event) -> None:
        seen.append(current())
        raise ValueError

    async with AsyncEventBus() as bus:
        subscription = await bus.subscribe("A", on_event)
        await bus.publish(Event("A", 1))
        await bus.settle()
        (delivery,) = seen
        assert delivery is not None
        assert delivery.finished
        assert (subscription.stats.failed, subscription.in_hand) == (1, 0)


# The body of a stream.

LATER = Event(EventType.FILL, 2, source="desk", epoch=36, seq=6)


def here() -> bool:
    return True


def elsewhere() -> bool:
    return False


def current_after(delivery: Delivery) -> Delivery | None:
    """What is current where `delivery` was entered or inherited."""
    context = contextvars.Context()
    context.run(enter, delivery)
    return context.run(current)


def test_the_body_of_a_stream_is_current_in_the_task_that_entered_it() -> None:
    body = StreamBody(Handler(), Handler().begin(EVENT), here)
    assert current_after(body) is body


def test_the_body_of_a_stream_of_another_task_is_passed_over_for_what_was_before_it() -> None:
    outer = Handler().begin(EVENT)
    assert current_after(StreamBody(Handler(), outer, elsewhere)) is outer


def test_where_nothing_was_before_the_stream_of_another_task_nothing_is_current() -> None:
    assert current_after(StreamBody(Handler(), None, elsewhere)) is None


def test_streams_of_another_task_within_each_other_are_all_passed_over() -> None:
    outer = Handler().begin(EVENT)
    body = StreamBody(Handler(), outer, elsewhere)
    assert current_after(StreamBody(Handler(), body, elsewhere)) is outer


def test_a_stream_of_this_task_is_found_below_one_of_another() -> None:
    body = StreamBody(Handler(), None, here)
    assert current_after(StreamBody(Handler(), body, elsewhere)) is body


async def test_a_task_spawned_inside_a_stream_sees_what_was_before_it() -> None:
    task, outer = asyncio.current_task(), Handler().begin(EVENT)
    body = StreamBody(Handler(), outer, lambda: asyncio.current_task() is task)

    async def look() -> Delivery | None:
        return current()

    enter(body)
    assert (current(), await look(), await asyncio.create_task(look())) == (body, body, outer)


@pytest.mark.parametrize(("outer", "event_id"), [(Handler().begin(EVENT), "desk@10.5"), (None, "")])
def test_before_its_first_event_a_stream_is_caused_by_what_was_before_it(
    outer: Delivery | None, event_id: str
) -> None:
    assert StreamBody(Handler(), outer, here).id == event_id


@pytest.mark.parametrize("outer", [Handler().begin(EVENT), None])
def test_the_id_of_a_stream_is_that_of_the_event_in_hand(outer: Delivery | None) -> None:
    body = StreamBody(Handler(), outer, here)
    body.hold(LATER)
    assert body.id == LATER.id == "desk@10.6"


@pytest.mark.parametrize(("outer", "event_id"), [(Handler().begin(EVENT), "desk@10.5"), (None, "")])
def test_between_events_a_stream_is_caused_by_what_was_before_it_again(
    outer: Delivery | None, event_id: str
) -> None:
    body = StreamBody(Handler(), outer, here)
    body.hold(LATER)
    body.hold(None)
    assert body.id == event_id


def test_the_id_of_a_stream_stays_when_the_event_in_hand_is_changed() -> None:
    event = Event(EventType.FILL, 2, source="desk", epoch=36, seq=6)
    body = StreamBody(Handler(), None, here)
    body.hold(event)
    event.source, event.epoch, event.seq = "other", 1, 99
    assert body.id == "desk@10.6"


# Circles. `would_deadlock(waiter, target)`: target cannot go on before waiter does.


def test_a_delivery_that_has_finished_closes_no_circle() -> None:
    a, b = handlers(2)
    delivery = b.waits_for(a)
    b.acting.discard(delivery)
    assert not would_deadlock(a, b)


def test_the_body_of_a_stream_closes_a_circle_with_what_it_waits_for() -> None:
    a, stream = handlers(2)
    body = StreamBody(stream, None, here)
    stream.acting.add(body)
    assert not would_deadlock(a, stream)
    with waiting((body,), (a,)):
        assert would_deadlock(a, stream)
    assert not would_deadlock(a, stream)


def test_the_body_of_a_stream_closes_a_circle_beside_an_event_that_waits_for_none() -> None:
    a, stream = handlers(2)
    stream.waits_for()
    body = StreamBody(stream, None, elsewhere)
    stream.acting.add(body)
    with waiting((body,), (a,)):
        assert would_deadlock(a, stream)


def test_what_a_stream_waits_for_is_not_waited_for_by_what_was_before_it() -> None:
    a, handler, stream = handlers(3)
    body = StreamBody(stream, handler.waits_for(), here)
    stream.acting.add(body)
    with waiting((body,), (a,)):
        assert not would_deadlock(a, handler)


def test_a_stream_that_was_left_closes_no_circle() -> None:
    a, stream = handlers(2)
    body = StreamBody(stream, None, here)
    stream.acting.add(body)
    with waiting((body,), (a,)):
        stream.acting.discard(body)
        assert not would_deadlock(a, stream)


def test_a_long_chain_does_not_exhaust_the_stack() -> None:
    line = handlers(5000)
    for one, other in itertools.pairwise(line):
        one.waits_for(other)
    assert would_deadlock(line[-1], line[0])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=14))
def test_a_circle_is_closed_exactly_when_a_path_leads_back(waits: list[tuple[int, int]]) -> None:
    everyone = handlers(6)
    for one, other in waits:
        everyone[one].waits_for(everyone[other])
    reached: set[Any] = {1}
    for _ in everyone:
        reached |= {other for one, other in waits if one in reached}
    assert would_deadlock(everyone[0], everyone[1]) is (0 in reached)
