"""docs/contract.md, clause by clause, on every transport: a URL changes nothing a user relies on.

`desk` has all of them; where `inproc` has one bus object, every name gives that. `mesh` has those
with several buses. What one bus alone promises has its tests elsewhere.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import fields
from enum import StrEnum
from typing import Any

import orjson
import pytest
from desks import NETWORKS, Desk, Seen, arrive, open_desk, publish, waits

from aiobus import (
    AsyncEventBus,
    BusClosed,
    Event,
    EventType,
    Limits,
    NameInUse,
    NoSubscribers,
    RequestTimeout,
)
from aiobus.mesh import byes, links, peers
from aiobus.mesh import transport as start_of
from aiobus.publisher import FRAME_EVENTS
from aiobus.sequence import NO_EVENTS, WENT_BACK
from aiobus.wire import frame, heartbeat, page, topic


@pytest.fixture(params=NETWORKS)
async def doubted(request: pytest.FixtureRequest, no_task_is_left: None) -> AsyncIterator[Desk]:
    """As `mesh`, where a test sends what is no event, so that it is counted."""
    async with open_desk(request.param, refuses=True) as desk:
        yield desk


@pytest.fixture(params=[each for each in NETWORKS if each != "keys"])
async def plain(request: pytest.FixtureRequest, no_task_is_left: None) -> AsyncIterator[Desk]:
    """As `mesh`, where any bus can speak for another: with keys that is refused."""
    async with open_desk(request.param) as desk:
        yield desk


# Clause 1: order. Clause 3: no duplicates.


async def test_one_subscription_gets_all_types_and_keys_in_the_order_published(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    rng = random.Random(1)
    seen = Seen()
    await strategy.subscribe(["A", "B", "C"], seen.take, key=["x", "y", "z*"])
    published = []
    for number in range(500):
        event = Event(rng.choice("ABC"), number, key=rng.choice(["x", "y", "z1", "z2"]))
        published.append(await feed.publish(event))
        if rng.random() < 0.1:
            await asyncio.sleep(0)  # so that frames of all lengths are sent
    await arrive(feed, strategy)
    assert [(e.seq, e) for e in seen] == [(e.seq, e) for e in published]


async def test_twenty_thousand_events_arrive_complete_and_in_order(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen()
    subscription = await strategy.subscribe(EventType.QUOTE, seen.take)
    for number in range(20_000):
        await feed.publish(Event(EventType.QUOTE, number))
    await seen.until(lambda: len(seen) >= 20_000)
    await arrive(feed, strategy)
    assert seen.data == list(range(20_000))
    assert subscription.stats.gaps == 0


async def test_each_source_keeps_its_order_while_all_publish_at_once(mesh: Desk) -> None:
    buses = [await mesh.bus(name) for name in ("one", "two", "three")]
    lists = [Seen() for _ in buses]
    for bus, seen in zip(buses, lists, strict=True):
        await bus.subscribe(EventType.TRADE, seen.take)
    await asyncio.gather(*(publish(bus, 300) for bus in buses))
    for bus in buses:
        assert await bus.flush() == []
    for bus, seen in zip(buses, lists, strict=True):
        await bus.settle()
        for source in buses:
            assert [e.data for e in seen if e.source == source.name] == list(range(300))


async def test_an_event_arrives_once_at_each_of_several_subscriptions(desk: Desk) -> None:
    feed, strategy, risk = [await desk.bus(name) for name in ("feed", "strategy", "risk")]
    lists = [Seen() for _ in range(4)]
    await strategy.subscribe("*", lists[0].take)
    await strategy.subscribe(EventType.TRADE, lists[1].take)
    await strategy.subscribe(EventType.TRADE, lists[2].take)
    await risk.subscribe([EventType.TRADE, EventType.BAR], lists[3].take, key=["k*", "k1"])
    await publish(feed, 100)
    await arrive(feed, strategy, risk)
    assert [seen.data for seen in lists] == [list(range(100))] * 4


# Clause 2: no silent loss.


async def test_a_subscription_is_live_everywhere_when_subscribe_returns(desk: Desk) -> None:
    feed, gateway, strategy = [await desk.bus(name) for name in ("feed", "gateway", "strategy")]
    for number in range(25):
        seen = Seen()
        subscription = await strategy.subscribe(EventType.TRADE, seen.take, key=f"k{number}")
        await feed.publish(Event(EventType.TRADE, "first", key=f"k{number}"))
        await gateway.publish(Event(EventType.TRADE, "second", key=f"k{number}"))
        await seen.until(lambda seen=seen: len(seen) == 2)
        await subscription.unsubscribe()


async def test_a_handler_of_on_is_live_everywhere_when_start_returns(mesh: Desk) -> None:
    feed = await mesh.bus("feed")
    seen = Seen()
    strategy = mesh._make(name="strategy")
    strategy.on(EventType.TRADE)(seen.take)
    async with strategy:
        await feed.publish(Event(EventType.TRADE, 1))
        await arrive(feed, strategy)
    assert seen.data == [1]


async def receive_by_subscribe(bus: AsyncEventBus, seen: Seen) -> None:
    subscription = await bus.subscribe("T", seen.take)
    assert subscription.unconfirmed == frozenset()


async def receive_by_stream(bus: AsyncEventBus, seen: Seen) -> None:
    events = bus.stream("T")
    await events.__aenter__()

    async def take() -> None:
        async for event in events:
            await seen.take(event)

    task = asyncio.create_task(take())
    task.add_done_callback(lambda task: task.exception())


@pytest.mark.paired
@pytest.mark.parametrize("receive", [receive_by_subscribe, receive_by_stream])
async def test_what_is_published_by_a_bus_that_has_just_started_arrives(
    mesh: Desk, receive: Callable[[AsyncEventBus, Seen], Any]
) -> None:
    """A start once returned before the other bus had read its answer: `subscribe` there did not
    wait for it, and all that came then was lost without a word.
    """
    await mesh.bus("host")  # or each round would take over a tcp address, which takes half a second
    for number in range(10):
        strategy = await mesh.bus(f"strategy{number}")
        feed = await mesh.bus(f"feed{number}")
        seen = Seen()
        await receive(strategy, seen)
        for data in range(5):
            await feed.publish(Event("T", data))
        assert await feed.flush() == []
        await seen.until(lambda seen=seen: len(seen) >= 5)
        assert seen.data == [0, 1, 2, 3, 4]
        await asyncio.gather(feed.close(), strategy.close())


@pytest.mark.paired
async def test_a_request_to_a_bus_that_has_just_started_is_answered(mesh: Desk) -> None:
    await mesh.bus("host")  # as above
    for number in range(10):
        broker = await mesh.bus(f"broker{number}")
        strategy = await mesh.bus(f"strategy{number}")

        async def on_order(order: Event, broker: AsyncEventBus = broker) -> None:
            await broker.publish(Event("ACK", order.data))

        await broker.subscribe("ORDER", on_order)
        reply = await strategy.request(Event("ORDER", number), "ACK")
        assert reply.data == number
        await asyncio.gather(broker.close(), strategy.close())


async def test_the_first_event_of_a_source_that_starts_later_arrives(desk: Desk) -> None:
    strategy = await desk.bus("strategy")
    seen = Seen()
    await strategy.subscribe(EventType.ORDER, seen.take)
    for number in range(5):
        bot = await desk.bus(f"bot-{number}")
        await bot.publish(Event(EventType.ORDER, number))
        await arrive(bot, strategy)
    assert seen.data == list(range(5))


async def test_what_is_published_on_start_arrives_before_a_bot_that_closes_at_once(
    mesh: Desk,
) -> None:
    strategy = await mesh.bus("strategy")
    seen = Seen()
    await strategy.subscribe(EventType.ORDER, seen.take)
    for number in range(5):
        async with mesh._make(name="bot") as bot:
            await bot.publish(Event(EventType.ORDER, number))
    await seen.until(lambda: len(seen) == 5)
    assert seen.data == list(range(5))


async def test_a_subscription_sees_nothing_from_before_it(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    await publish(feed, 10)
    seen = Seen()
    await strategy.subscribe(EventType.TRADE, seen.take)
    await feed.publish(Event(EventType.TRADE, "new"))
    await arrive(feed, strategy)
    assert seen.data == ["new"]


async def test_subscribing_to_a_busy_source_loses_nothing_from_there_on(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen()
    is_over = False

    async def produce() -> list[Event]:
        published = []
        while not is_over:
            published += await publish(feed, 5)
            await asyncio.sleep(0)  # a busy source, not the only one
        return published

    producing = asyncio.create_task(produce())
    await strategy.subscribe(EventType.TRADE, seen.take)
    begin = feed.stats().published
    await seen.until(lambda: len(seen) >= 200)
    is_over = True
    published = await producing
    await arrive(feed, strategy)
    seqs = [event.seq for event in seen]
    assert seqs == [event.seq for event in published if event.seq >= seqs[0]]
    assert seqs[0] <= begin + 1


async def test_catching_up_over_many_pages_loses_nothing(
    desk: Desk, logged: Callable[[str], AbstractContextManager[asyncio.Event]]
) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen(is_open=False)
    subscription = await strategy.subscribe(EventType.TRADE, seen.take, maxsize=4)
    with logged("fell behind") as said:
        published = await publish(feed, 500)
        await said.wait()
    seen.gate.set()
    await arrive(feed, strategy)
    assert [event.seq for event in seen] == [event.seq for event in published]
    assert (subscription.stats.gaps, subscription.stats.behind) == (0, False)


async def test_a_subscription_that_catches_up_goes_on_live(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen(is_open=False)
    await strategy.subscribe(EventType.TRADE, seen.take, maxsize=2)
    await publish(feed, 100)
    seen.gate.set()
    await publish(feed, 100)  # while it may still catch up
    await arrive(feed, strategy)
    await publish(feed, 100)
    await arrive(feed, strategy)
    assert seen.data == [*range(100)] * 3


async def test_what_history_no_longer_holds_is_exactly_the_range_of_a_gap_in_its_place(
    desk: Desk,
) -> None:
    feed = await desk.bus("feed", limits=Limits(history_events=50))
    strategy = await desk.bus("strategy")
    seen = Seen(is_open=False)
    subscription = await strategy.subscribe(
        [EventType.TRADE, "aiobus.gap"], seen.take, maxsize=4, key="k*"
    )
    first = await feed.publish(Event(EventType.TRADE, 0, key="k"))
    await seen.until(lambda: seen.started == 1)
    published = [first, *await publish(feed, 500)]
    seen.gate.set()
    await arrive(feed, strategy)
    check_accounted(seen, published)
    gaps = [event.data for event in seen if event.type == "aiobus.gap"]
    assert len(gaps) == subscription.stats.gaps == 1
    assert (gaps[0]["source"], gaps[0]["epoch"]) == (feed.name, first.epoch)
    assert gaps[0]["query"] == subscription.query
    assert gaps[0]["upto"] == published[-51].seq
    assert seen[-1].data == 499


def check_accounted(seen: list[Event], published: list[Event]) -> None:
    """Each event was delivered, once and in order, or is in a gap that stands where it was."""
    at = 0
    accounted = []
    for event in seen:
        if event.type == "aiobus.gap":
            after, at_end = event.data["after"], event.data["upto"]
            assert at <= after < at_end
            accounted += [e.seq for e in published if after < e.seq <= at_end]
            at = at_end
        else:
            assert at < event.seq
            accounted.append(event.seq)
            at = event.seq
    assert accounted == [event.seq for event in published]


async def test_a_restarted_source_is_heard_to_its_end_and_from_its_beginning(mesh: Desk) -> None:
    strategy = await mesh.bus("strategy")
    seen = Seen()
    await strategy.subscribe(EventType.TRADE, seen.take)
    published = []
    for _ in range(3):
        feed = await mesh.bus("feed")
        published += await publish(feed, 20)
        assert await feed.close() == []
    await seen.until(lambda: len(seen) == 60)
    assert [event.id for event in seen] == [event.id for event in published]
    assert len({event.epoch for event in seen}) == 3


# Clause 4: no alteration.

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.0, 0.1, -0.0, 5e-324, 1.7976931348623157e308, 1e16, 1e-7,
    2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, "", " ", "\0", "\n\r\t", "\u2028", "ключ", "🚀",
    '"\\', [], {}, [[]], [{}], {"": ""}, {"a": {"b": [1, [2.0, None, {"c": "d"}]]}}, {"ключ": "値"},
    {"price": 40_000.000000000001, "quantity": 1e-8}, [0.1 + 0.2, 1 / 3, 2**0.5], "x" * 100_000,
    list(range(1000)), {f"k{n}": n for n in range(1000)}, {"a b": 1, "*": 2, "%2A": 3, "\0": 4},
]  # fmt: skip


async def test_values_arrive_bit_for_bit(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen()
    await strategy.subscribe(EventType.NEW_DATA, seen.take)
    for value in VALUES:
        await feed.publish(Event(EventType.NEW_DATA, value))
    await arrive(feed, strategy)
    assert list(map(repr, seen.data)) == list(map(repr, VALUES))


async def test_the_largest_event_that_is_accepted_arrives(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen()
    await strategy.subscribe(EventType.NEW_DATA, seen.take)
    await feed.publish(Event(EventType.NEW_DATA, "x" * 1_048_000))
    await feed.publish(Event(EventType.NEW_DATA, "y" * 1_048_000))
    await arrive(feed, strategy)
    assert [(text[0], len(text)) for text in seen.data] == [("x", 1_048_000), ("y", 1_048_000)]


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


async def test_the_deepest_data_arrives_through_a_predicate_that_is_shown_a_copy(
    desk: Desk,
) -> None:
    feed, bot = await desk.bus("feed"), await desk.bus("bot")
    heard: list[Any] = []
    await bot.subscribe(
        "BOOK", lambda event: heard.append(event.data), where=lambda event: event.data.clear() or 1
    )
    await feed.publish(Event("BOOK", nested(253)))
    assert await feed.flush() == []
    await bot.settle()
    assert heard == [nested(253)]


KEYS = ["", "BTC", "BTCUSDT", "ETH", "a b", "a/b", "50%", "x", "%2A", "ключ", "k" * 128, "\n"]


async def test_keys_arrive_as_they_are(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen()
    await strategy.subscribe(EventType.TRADE, seen.take)
    for key in KEYS:
        await feed.publish(Event(EventType.TRADE, 1, key=key))
    await arrive(feed, strategy)
    assert [event.key for event in seen] == KEYS


async def test_an_event_is_the_same_on_both_sides_in_all_its_fields(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen()
    await strategy.subscribe(EventType.FILL, seen.take)
    event = Event(EventType.FILL, {"price": 1.5}, 1_700_000_000.123456, key="BTC", cause="a@b.1")
    assert await feed.publish(event) is event
    await arrive(feed, strategy)
    for field in fields(Event):
        assert getattr(seen[0], field.name) == getattr(event, field.name), field.name
    assert seen[0].id == event.id
    assert event.source == feed.name
    assert event.epoch == feed.stats().epoch


class Own(StrEnum):
    NEWS = "NEWS"


async def test_a_known_type_arrives_as_its_member_and_any_other_as_text(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen()
    await strategy.subscribe([EventType.TRADE, Own.NEWS, "a.type-of_my.own"], seen.take)
    await feed.publish(Event("TRADE", 1))
    await feed.publish(Event(Own.NEWS, 2))
    await feed.publish(Event("a.type-of_my.own", 3))
    await arrive(feed, strategy)
    assert [event.type for event in seen] == ["TRADE", Own.NEWS, "a.type-of_my.own"]
    assert [type(event.type) for event in seen] == [EventType, str, str]


async def test_two_subscriptions_of_one_query_share_nothing(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    spoiled, seen = Seen(), Seen()

    async def spoil(event: Event) -> None:
        event.data["legs"].clear()
        event.key = "spoiled"
        await spoiled.take(event)

    await strategy.subscribe(EventType.ORDER, spoil)
    await strategy.subscribe(EventType.ORDER, seen.take)
    await feed.publish(Event(EventType.ORDER, {"legs": [1, 2]}, key="BTC"))
    await arrive(feed, strategy)
    assert spoiled.data == [{"legs": []}]
    assert list(seen) == [Event(EventType.ORDER, {"legs": [1, 2]}, key="BTC")]


async def test_where_may_spoil_what_it_is_asked_about(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen()

    def where(event: Event) -> bool:
        return event.data["legs"].pop() == 2

    await strategy.subscribe(EventType.ORDER, seen.take, where=where)
    await feed.publish(Event(EventType.ORDER, {"legs": [1, 2]}))
    await feed.publish(Event(EventType.ORDER, {"legs": [2, 1]}))
    await arrive(feed, strategy)
    assert seen.data == [{"legs": [1, 2]}]


# Which events a subscription gets.

RULES: list[tuple[Any, list[str]]] = [
    (None, KEYS),
    ("*", KEYS),
    ("", [""]),
    ("BTC", ["BTC"]),
    ("BTC*", ["BTC", "BTCUSDT"]),
    (["ETH", "BTC"], ["BTC", "ETH"]),
    (["BTC", "a*"], ["BTC", "a b", "a/b"]),
    ("a b", ["a b"]),
    ("a/*", ["a/b"]),
    ("50%", ["50%"]),
    ("x*", ["x"]),
    ("%2A", ["%2A"]),
    ("ключ", ["ключ"]),
    ("кл*", ["ключ"]),
    ("k" * 128, ["k" * 128]),
    (["\n", "missing"], ["\n"]),
    ("missing", []),
]


async def test_a_rule_for_keys_selects_exactly_what_it_says(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    lists = [Seen() for _ in RULES]
    for (rule, _), seen in zip(RULES, lists, strict=True):
        await strategy.subscribe([EventType.TRADE, EventType.BAR], seen.take, key=rule)
    for key in KEYS:
        for type in (EventType.TRADE, EventType.QUOTE, EventType.BAR):
            await feed.publish(Event(type, 1, key=key))
    await arrive(feed, strategy)
    got = [
        (rule, [(e.type, e.key) for e in seen])
        for (rule, _), seen in zip(RULES, lists, strict=True)
    ]
    assert got == [
        (rule, [(type, key) for key in keys for type in ("TRADE", "BAR")]) for rule, keys in RULES
    ]


async def test_a_list_of_keys_too_long_for_a_query_selects_exactly_what_it_says(
    desk: Desk,
) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen()
    wanted = [f"SYMBOL-{number}" for number in range(0, 1000, 2)]
    subscription = await strategy.subscribe(EventType.QUOTE, seen.take, key=wanted)
    for number in range(1000):
        await feed.publish(Event(EventType.QUOTE, number, key=f"SYMBOL-{number}"))
    await feed.publish(Event(EventType.QUOTE, 0, key="other"))
    await arrive(feed, strategy)
    assert [event.key for event in seen] == wanted
    assert subscription.query.split(" ") == sorted(f"QUOTE/{key}" for key in wanted)
    assert subscription.stats.query == subscription.query
    assert "(QUOTE/SYMBOL-0 QUOTE/SYMBOL-10 " in subscription.name


async def test_a_key_of_every_type_selects_exactly_that_and_is_shown(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen()
    subscription = await strategy.subscribe("*", seen.take, key="BTC")
    for key in ("BTC", "ETH"):
        await feed.publish(Event(EventType.QUOTE, 1, key=key))
    await arrive(feed, strategy)
    assert [event.key for event in seen] == ["BTC"]
    assert (subscription.query, subscription.stats.query) == ("*/BTC", "*/BTC")
    assert subscription.name.endswith("(*/BTC)")


async def test_a_star_matches_every_type_but_the_reserved_ones(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen, errors = Seen(), Seen()

    async def fails(event: Event) -> None:
        raise ZeroDivisionError

    await strategy.subscribe("*", seen.take)
    await strategy.subscribe("aiobus.error", errors.take)
    await strategy.subscribe(EventType.TRADE, fails)
    await feed.publish(Event(EventType.TRADE, 1))
    await feed.publish(Event("else", 2))
    await arrive(feed, strategy)
    assert [event.type for event in seen] == [EventType.TRADE, "else"]
    assert len(errors) == 1


async def test_where_selects_before_the_inbox(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen(is_open=False)
    subscription = await strategy.subscribe(
        EventType.TRADE, seen.take, where=lambda event: event.data % 100 == 0, maxsize=10
    )
    await publish(feed, 1000)
    assert await feed.flush() == []
    assert subscription.stats.pending + seen.started == 10
    seen.gate.set()
    await strategy.settle()
    assert seen.data == list(range(0, 1000, 100))


async def test_unsubscribing_ends_it_at_the_publisher_as_well(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen()
    await strategy.subscribe(EventType.ORDER, seen.take)
    await strategy.unsubscribe(EventType.ORDER, seen.take)
    await strategy.subscribe(EventType.BAR, seen.take)  # is confirmed behind the withdrawal
    with pytest.raises(NoSubscribers):
        await feed.request(Event(EventType.ORDER, 1), EventType.ACK)
    await feed.publish(Event(EventType.ORDER, 2))
    await arrive(feed, strategy)
    assert seen == []


async def test_ending_one_of_two_subscriptions_of_a_query_leaves_the_other(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    ended, seen = Seen(), Seen()
    subscription = await strategy.subscribe(EventType.TRADE, ended.take)
    await strategy.subscribe(EventType.TRADE, seen.take)
    await publish(feed, 10)
    await arrive(feed, strategy)
    await subscription.unsubscribe()
    await publish(feed, 10)
    await arrive(feed, strategy)
    assert (len(ended), seen.data) == (10, [*range(10)] * 2)


async def test_subscribing_again_begins_again(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    await strategy.subscribe(EventType.BAR, print)
    for number in range(5):
        seen = Seen()
        subscription = await strategy.subscribe(EventType.TRADE, seen.take)
        await feed.publish(Event(EventType.TRADE, number))
        await arrive(feed, strategy)
        await subscription.unsubscribe()
        await feed.publish(Event(EventType.TRADE, "missed"))
        await feed.publish(Event(EventType.BAR, number))
        await arrive(
            feed, strategy
        )  # what was missed came before, so it is not on its way any more
        assert seen.data == [number]


# Streams, waiting, requests, lineage.


async def test_a_stream_is_live_on_entry_and_hands_over_in_order(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    async with strategy.stream(EventType.TRADE, key="k1") as events:
        await publish(feed, 300)
        assert [(await anext(events)).data for _ in range(100)] == list(range(1, 300, 3))


async def test_a_stream_that_was_left_is_withdrawn(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    async with strategy.stream(EventType.ORDER):
        pass
    await strategy.subscribe(EventType.BAR, Seen().take)  # is confirmed behind the withdrawal
    with pytest.raises(NoSubscribers):
        await feed.request(Event(EventType.ORDER, 1), EventType.ACK)


async def test_wait_for_returns_the_next_match(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    waiting = asyncio.create_task(
        strategy.wait_for(EventType.FILL, key="BTC", where=lambda event: event.data > 1)
    )
    await asyncio.sleep(0)  # it has asked,
    await strategy.subscribe(EventType.BAR, Seen().take)  # and this is confirmed behind it
    for data, key in [(1, "BTC"), (2, "ETH"), (3, "BTC"), (4, "BTC")]:
        await feed.publish(Event(EventType.FILL, data, key=key))
    assert (await waiting).data == 3


async def test_a_request_is_answered_by_another_bus(desk: Desk) -> None:
    gateway, strategy = await desk.bus("gateway"), await desk.bus("strategy")

    async def on_order(event: Event) -> None:
        await gateway.publish(Event(EventType.ACK, event.data * 2, key=event.key))

    await gateway.subscribe(EventType.ORDER, on_order)
    for number in range(20):
        order = Event(EventType.ORDER, number, key="BTC")
        reply = await strategy.request(order, [EventType.ACK, EventType.REJECT])
        assert (reply.data, reply.cause, reply.source) == (number * 2, order.id, gateway.name)


async def test_many_requests_at_once_get_each_their_own_reply(desk: Desk) -> None:
    gateway, strategy = await desk.bus("gateway"), await desk.bus("strategy")

    async def on_order(event: Event) -> None:
        await asyncio.sleep(0)  # replies come out of turn
        await gateway.publish(Event(EventType.ACK, event.data))

    await gateway.subscribe(EventType.ORDER, on_order, concurrency=8)
    orders = [Event(EventType.ORDER, number) for number in range(50)]
    replies = await asyncio.gather(*(strategy.request(each, EventType.ACK) for each in orders))
    assert [reply.data for reply in replies] == list(range(50))


async def test_a_request_that_no_bus_is_subscribed_to_raises_at_once(desk: Desk) -> None:
    gateway, strategy = await desk.bus("gateway"), await desk.bus("strategy")
    await gateway.subscribe(EventType.ORDER, Seen().take, key="ETH")
    published = strategy.stats().published
    with pytest.raises(NoSubscribers) as raised:
        await strategy.request(Event(EventType.ORDER, 1, key="BTC"), EventType.ACK)
    assert (raised.value.type, raised.value.key) == ("ORDER", "BTC")
    assert strategy.stats().published == published


async def test_a_monitor_of_everything_on_another_bus_is_no_subscriber_of_a_request(
    desk: Desk,
) -> None:
    monitor, strategy = await desk.bus("monitor"), await desk.bus("strategy")
    seen = Seen()
    await monitor.subscribe("*", seen.take)
    await monitor.subscribe("*", seen.take, key="k0")
    published = strategy.stats().published
    with pytest.raises(NoSubscribers):
        await strategy.request(Event(EventType.ORDER, 1, key="k0"), EventType.ACK)
    assert strategy.stats().published == published
    await publish(strategy, 1)
    await arrive(strategy, monitor)
    assert len(seen) == 2


async def test_a_request_without_an_answer_arrives_all_the_same(desk: Desk) -> None:
    gateway, strategy = await desk.bus("gateway"), await desk.bus("strategy")
    seen = Seen()
    await gateway.subscribe(EventType.ORDER, seen.take)
    order = Event(EventType.ORDER, 1)
    with pytest.raises(RequestTimeout) as raised:
        await strategy.request(order, EventType.ACK, timeout=0)
    assert raised.value.event is order
    await arrive(strategy, gateway)
    assert [event.id for event in seen] == [order.id]


async def test_a_fill_can_be_walked_back_to_its_tick_across_buses(desk: Desk) -> None:
    chain = [EventType.TRADE, EventType.SIGNAL, EventType.ORDER, EventType.FILL]
    buses = [await desk.bus(name) for name in ("feed", "strategy", "risk", "gateway")]
    events: dict[str, Event] = {}

    def step(bus: AsyncEventBus, type: EventType) -> Callable[[Event], Any]:
        async def handle(event: Event) -> None:
            events[event.id] = event
            await bus.publish(Event(type, None))

        return handle

    for bus, before, after in zip(buses[1:], chain, chain[1:], strict=False):
        await bus.subscribe(before, step(bus, after))
    async with buses[0].stream(EventType.FILL) as fills:
        trade = await buses[0].publish(Event(EventType.TRADE, None))
        fill = await anext(fills)
    walked = [fill]
    while walked[-1].cause:
        walked.append(events[walked[-1].cause])
    assert [event.type for event in walked] == chain[::-1]
    assert walked[-1].id == trade.id
    assert [event.source for event in walked] == [bus.name for bus in buses[::-1]]


# Clause 5: what was published has left. Clause 8: close.


async def test_after_flush_everything_is_in_the_inboxes_of_the_others(desk: Desk) -> None:
    feed, strategy, risk = [await desk.bus(name) for name in ("feed", "strategy", "risk")]
    lists = [Seen(is_open=False) for _ in range(2)]
    one = await strategy.subscribe(EventType.TRADE, lists[0].take)
    two = await risk.subscribe("*", lists[1].take)
    await publish(feed, 200)
    assert await feed.flush() == []
    # Nothing is awaited in between.
    assert one.stats.pending + lists[0].started == 200
    assert two.stats.pending + lists[1].started == 200
    for seen in lists:
        seen.gate.set()


async def test_flush_names_who_cannot_take_what_was_published(mesh: Desk) -> None:
    feed, strategy, risk = [await mesh.bus(name) for name in ("feed", "strategy", "risk")]
    hung, seen = Seen(is_open=False), Seen()
    await strategy.subscribe(EventType.TRADE, hung.take, maxsize=1)
    await risk.subscribe(EventType.TRADE, seen.take)
    await publish(feed, 200)
    await seen.until(lambda: len(seen) == 200)
    assert await feed.flush(0.05) == ["strategy"]
    hung.gate.set()
    assert await feed.flush() == []


async def test_what_was_published_right_before_close_arrives(mesh: Desk) -> None:
    feed, strategy = await mesh.bus("feed"), await mesh.bus("strategy")
    seen = Seen()
    await strategy.subscribe(EventType.TRADE, seen.take)
    await publish(feed, 1000)
    assert await feed.close() == []
    await strategy.settle()
    assert seen.data == list(range(1000))


async def test_what_a_handler_publishes_while_its_bus_closes_arrives(mesh: Desk) -> None:
    feed, strategy, gateway = [await mesh.bus(name) for name in ("feed", "strategy", "gateway")]
    seen = Seen()

    async def on_trade(event: Event) -> None:
        await strategy.publish(Event(EventType.ORDER, event.data))

    await gateway.subscribe(EventType.ORDER, seen.take)
    await strategy.subscribe(EventType.TRADE, on_trade)
    await publish(feed, 100)
    assert await feed.flush() == []
    assert await strategy.close() == []
    await gateway.settle()
    assert seen.data == list(range(100))


@pytest.mark.paired
async def test_close_names_who_lacks_what_a_handler_published_while_it_flushed(mesh: Desk) -> None:
    """The handler is still at work when the time for handlers is over."""
    strategy, gateway, log = [await mesh.bus(name) for name in ("strategy", "gateway", "log")]
    orders, fills = Seen(is_open=False), Seen(is_open=False)
    await gateway.subscribe(EventType.ORDER, orders.take, maxsize=8)
    await log.subscribe(EventType.FILL, fills.take, maxsize=64)
    asked: Any = log._transport

    async def on_trade(event: Event) -> None:
        await publish(strategy, 200, EventType.FILL)
        while not asked.session.interest.marks:  # noqa: ASYNC110 - nothing tells that a flush has begun
            await asyncio.sleep(0)
        await publish(strategy, 200, EventType.ORDER)
        fills.gate.set()  # all that the flush has asked for is confirmed
        await asyncio.Event().wait()

    await strategy.subscribe(EventType.TRADE, on_trade)
    await strategy.publish(Event(EventType.TRADE, 1))
    assert await strategy.close(1.0) == ["gateway"]
    orders.gate.set()


@pytest.mark.paired
async def test_close_names_none_when_what_a_handler_published_while_it_flushed_has_arrived(
    mesh: Desk,
) -> None:
    strategy, gateway = await mesh.bus("strategy"), await mesh.bus("gateway")
    seen = Seen()
    await gateway.subscribe(EventType.ORDER, seen.take)
    count = 0

    async def on_trade(event: Event) -> None:
        nonlocal count
        while True:
            await strategy.publish(Event(EventType.ORDER, count))
            count += 1
            await asyncio.sleep(0.001)  # so that what is under way at the end is little

    await strategy.subscribe(EventType.TRADE, on_trade)
    await strategy.publish(Event(EventType.TRADE, 1))
    assert await strategy.close(1.0) == []
    await gateway.settle()
    assert seen.data == list(range(count))


async def test_a_bus_that_closes_when_all_is_handled_leaves_nothing_of_a_feed_that_goes_on(
    mesh: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    feed = await mesh.bus("feed")
    await feed.subscribe("U", Seen().take)
    is_over = asyncio.Event()

    async def publish_on() -> None:
        while not is_over.is_set():
            await feed.publish(Event("T", 1))
            await asyncio.sleep(0)

    feeding = asyncio.create_task(publish_on())
    for number in range(2):
        strategy = await mesh.bus(f"strategy{number}")
        seen = Seen()
        await strategy.subscribe("T", seen.take)
        await seen.until(lambda seen=seen: len(seen) > 0)
        await strategy.publish(Event("U", 1))  # so that there is something to flush
        assert await strategy.close() == []
    is_over.set()
    await feeding
    assert "not handed" not in caplog.text


async def test_all_close_at_once_and_within_their_time(mesh: Desk) -> None:
    buses = [await mesh.bus(f"bus-{number}") for number in range(4)]
    lists = [Seen() for _ in buses]
    for bus, seen in zip(buses, lists, strict=True):
        await bus.subscribe(EventType.TRADE, seen.take)
        await publish(bus, 10)
    async with asyncio.timeout(10):  # a guard: each has 5 s
        await asyncio.gather(*(bus.close() for bus in buses))


async def test_a_closed_bus_has_no_peers(mesh: Desk) -> None:
    feed, strategy = await mesh.bus("feed"), await mesh.bus("strategy")
    assert await strategy.close() == []
    assert strategy.peers == ()
    assert await feed.close() == []


async def test_a_closed_bus_refuses_to_publish_and_the_others_go_on(mesh: Desk) -> None:
    feed, strategy, risk = [await mesh.bus(name) for name in ("feed", "strategy", "risk")]
    seen = Seen()
    await risk.subscribe(EventType.TRADE, seen.take)
    assert await strategy.close() == []
    with pytest.raises(BusClosed):
        await strategy.publish(Event(EventType.TRADE, 1))
    await feed.publish(Event(EventType.TRADE, 2))
    await arrive(feed, risk)
    assert seen.data == [2]


# Clause 6: isolation.


async def test_a_hung_subscriber_delays_no_other_bus(mesh: Desk) -> None:
    feed, slow, quick = [await mesh.bus(name) for name in ("feed", "slow", "quick")]
    hung, seen = Seen(is_open=False), Seen()
    for overflow in ("catch_up", "block", "latest", "drop_oldest"):
        await slow.subscribe(EventType.TRADE, hung.take, maxsize=1, overflow=overflow)
    await quick.subscribe(EventType.TRADE, seen.take)
    await publish(feed, 1000)
    await seen.until(lambda: len(seen) == 1000)
    assert hung == []
    hung.gate.set()


async def test_a_hung_subscriber_delays_no_other_of_its_own_bus(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    hung, seen = Seen(is_open=False), Seen()
    await strategy.subscribe(EventType.TRADE, hung.take, maxsize=1)
    await strategy.subscribe(EventType.TRADE, seen.take)
    await publish(feed, 1000)
    await seen.until(lambda: len(seen) == 1000)
    assert hung == []
    hung.gate.set()


async def test_a_failing_subscriber_gets_every_event_and_harms_no_other(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen()

    async def fails(event: Event) -> None:
        raise ZeroDivisionError

    failing = await strategy.subscribe(EventType.TRADE, fails)
    await strategy.subscribe(EventType.TRADE, seen.take)
    await publish(feed, 100)
    await arrive(feed, strategy)
    assert (failing.stats.failed, len(seen)) == (100, 100)


async def test_a_failure_stays_on_the_bus_where_it_happened(mesh: Desk) -> None:
    feed = await mesh.bus("feed", on_error="raise")
    strategy = await mesh.bus("strategy")

    async def fails(event: Event) -> None:
        raise ZeroDivisionError

    failing = await strategy.subscribe(EventType.TRADE, fails)
    await feed.publish(Event(EventType.TRADE, 1))
    await arrive(feed, strategy)
    assert failing.stats.failed == 1
    await feed.settle()


async def test_events_of_the_bus_itself_never_reach_another(mesh: Desk) -> None:
    feed, strategy = await mesh.bus("feed"), await mesh.bus("strategy")
    near, far = Seen(), Seen()

    async def fails(event: Event) -> None:
        raise ZeroDivisionError

    reserved = ["aiobus.error", "aiobus.overflow", "aiobus.gap"]
    await feed.subscribe(reserved, near.take)
    await strategy.subscribe([*reserved, EventType.BAR], far.take)
    await feed.subscribe(EventType.TRADE, fails)
    await feed.publish(Event(EventType.TRADE, 1))
    await near.until(lambda: len(near) == 1)
    await feed.publish(Event(EventType.BAR, 2))
    await arrive(feed, strategy)
    assert [event.type for event in far] == [EventType.BAR]


# Clause 7: memory is bounded, by the policy that was chosen.


async def test_latest_keeps_the_newest_of_each_key_and_counts_the_others(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen(is_open=False)
    subscription = await strategy.subscribe(EventType.QUOTE, seen.take, overflow="latest")
    await feed.publish(Event(EventType.QUOTE, "first"))
    await seen.until(lambda: seen.started == 1)
    await publish(feed, 300, EventType.QUOTE)
    assert await feed.flush() == []
    seen.gate.set()
    await strategy.settle()
    assert [(event.key, event.data) for event in seen] == [
        ("", "first"), ("k0", 297), ("k1", 298), ("k2", 299),
    ]  # fmt: skip
    assert (subscription.stats.conflated, subscription.stats.dropped) == (297, 0)


async def test_drop_oldest_keeps_the_newest_and_counts_the_others(desk: Desk) -> None:
    feed, strategy = await desk.bus("feed"), await desk.bus("strategy")
    seen = Seen(is_open=False)
    subscription = await strategy.subscribe(
        EventType.TRADE, seen.take, overflow="drop_oldest", maxsize=3
    )
    await feed.publish(Event(EventType.TRADE, "first"))
    await seen.until(lambda: seen.started == 1)
    await publish(feed, 300)
    assert await feed.flush() == []
    seen.gate.set()
    await strategy.settle()
    assert seen.data == ["first", 297, 298, 299]
    assert (subscription.stats.dropped, subscription.stats.gaps) == (297, 0)


@pytest.mark.parametrize("overflow", ["block", "catch_up"])
async def test_an_inbox_holds_its_bound_and_a_frame_and_loses_nothing(
    mesh: Desk, overflow: Any
) -> None:
    feed, strategy = await mesh.bus("feed"), await mesh.bus("strategy")
    seen: list[int] = []
    held: list[int] = []

    async def handle(event: Event) -> None:
        await asyncio.sleep(0)  # slower than the source
        seen.append(event.data)
        held.append(subscription.stats.pending)

    subscription = await strategy.subscribe(EventType.TRADE, handle, overflow=overflow, maxsize=4)
    await publish(feed, 1000)
    await arrive(feed, strategy)
    assert seen == list(range(1000))
    assert max(held) <= 4 + FRAME_EVENTS


# Who is there.


async def test_a_bus_knows_all_others_once_it_has_started(mesh: Desk) -> None:
    assert (await mesh.bus("feed")).peers == ()
    assert [each.name for each in (await mesh.bus("gateway")).peers] == ["feed"]
    assert [each.name for each in (await mesh.bus("strategy")).peers] == ["feed", "gateway"]


async def test_buses_that_start_at_once_know_each_other(mesh: Desk) -> None:
    names = [f"bus-{number}" for number in range(6)]
    buses = await asyncio.gather(*(mesh.bus(name) for name in names))
    seen = Seen()
    await buses[0].subscribe(EventType.TRADE, seen.take)
    for bus in buses:
        await bus.publish(Event(EventType.TRADE, bus.name))
        await arrive(bus, buses[0])
    assert seen.data == names


async def test_who_joins_and_who_leaves_is_announced(mesh: Desk) -> None:
    strategy = await mesh.bus("strategy")
    async with strategy.stream(["aiobus.peer_joined", "aiobus.peer_left"]) as news:
        feed = await mesh.bus("feed")
        joined = await anext(news)
        await publish(feed, 10)
        stats = feed.stats()
        assert await feed.close() == []
        left = await anext(news)
    who = {"name": "feed", "epoch": stats.epoch}
    assert (joined.type, joined.data) == ("aiobus.peer_joined", who)
    last = {"last": stats.published, "reason": "it closed"}
    assert (left.type, left.data) == ("aiobus.peer_left", {**who, **last})
    assert strategy.peers == ()


@waits
async def test_no_bus_that_has_closed_is_said_to_join_again(mesh: Desk) -> None:
    """Its hello may be here for a moment after its bye, and is no sign of life."""
    watch = await mesh.bus("watch")
    said: list[tuple[str, str]] = []
    system = ["aiobus.peer_joined", "aiobus.peer_left"]
    await watch.subscribe(system, lambda event: said.append((event.type, event.data["name"])))
    for number in range(100):
        await (await mesh.bus(f"b{number}")).close()
    async with watch.stream("aiobus.peer_left") as left:
        last = await mesh.bus("last")
        await asyncio.sleep(byes.BYE_SECONDS + 1)  # the time in which a peer is looked for
        await last.close()
        await anext(left)
    await watch.settle()
    names = [f"b{number}" for number in range(100)] + ["last"]
    assert said == [
        (f"aiobus.{what}", name) for name in names for what in ("peer_joined", "peer_left")
    ]


@waits
async def test_two_buses_that_a_forged_bye_has_parted_find_each_other_again(
    plain: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byes, "BYE_SECONDS", 0.3)
    feed, strategy, liar = [await plain.bus(name) for name in ("feed", "strategy", "liar")]
    seen = Seen()
    await strategy.subscribe("T", seen.take)
    async with strategy.stream(["aiobus.peer_joined", "aiobus.peer_left"]) as news:
        epoch = feed.stats().epoch
        liar._transport.network.send(heartbeat("feed", epoch, 0, leaving=True))
        assert ((left := await anext(news)).type, left.data["name"]) == (
            "aiobus.peer_left",
            "feed",
        )
        await feed.publish(Event("T", 1))
        assert ((joined := await anext(news)).type, joined.data["name"]) == (
            "aiobus.peer_joined",
            "feed",
        )
    await feed.publish(Event("T", 2))
    assert await feed.flush() == []
    await strategy.settle()
    assert seen.data == [1, 2]


@waits
async def test_what_was_owed_to_a_bus_before_a_forged_bye_is_owed_to_it_afterwards(
    plain: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`flush` once took the bye for the end of a bus that was only slow."""
    monkeypatch.setattr(byes, "BYE_SECONDS", 0.5)
    feed, strategy, liar = [await plain.bus(name) for name in ("feed", "strategy", "liar")]
    seen = Seen(is_open=False)
    await strategy.subscribe("T", seen.take, maxsize=1)
    async with feed.stream(["aiobus.peer_joined", "aiobus.peer_left"]) as news:
        for number in range(2):  # the first is in hand, and the second fills the inbox
            await feed.publish(Event("T", number))
            assert await feed.flush() == []
        for number in range(2, 5):
            await feed.publish(Event("T", number))
        assert await feed.flush(0.1) == ["strategy"]
        epoch = strategy.stats().epoch
        liar._transport.network.send(heartbeat("strategy", epoch, 0, leaving=True))
        while (await anext(news)).type != "aiobus.peer_left":
            pass
        assert "strategy" in await feed.flush(0.1)
        assert (await anext(news)).type == "aiobus.peer_joined"
        assert await feed.flush(0.1) == ["strategy"]
    seen.gate.set()
    assert await feed.flush() == []
    await strategy.settle()
    assert seen.data == [0, 1, 2, 3, 4]


async def test_with_keys_a_forged_bye_is_counted_as_refused_and_parts_nobody(
    no_task_is_left: None,
) -> None:
    async with open_desk("keys", refuses=True) as desk:
        feed, strategy, liar = [await desk.bus(name) for name in ("feed", "strategy", "liar")]
        seen = Seen()
        await strategy.subscribe(["T", "aiobus.peer_left"], seen.take)
        epoch = feed.stats().epoch
        liar._transport.network.send(heartbeat("feed", epoch, 0, leaving=True))  # type: ignore[attr-defined]
        assert await liar.flush() == []  # behind it on the same links
        await feed.publish(Event("T", 1))
        await arrive(feed, strategy)
        assert seen.data == [1]
        assert [bus.stats().refused for bus in (feed, strategy, liar)] == [1, 1, 0]
        assert [each.name for each in strategy.peers] == ["feed", "liar"]


async def test_a_bus_that_closes_during_subscribe_is_not_named_as_unconfirmed(mesh: Desk) -> None:
    """Its end may be read before its bye: a Ctrl-C in all terminals once left warnings of it."""
    strategy = await mesh.bus("strategy")
    for number in range(20):
        feed = await mesh.bus(f"feed{number}")
        subscribing = [strategy.subscribe(f"T{each}", print) for each in range(5)]
        *subscriptions, _ = await asyncio.gather(*subscribing, feed.close())
        assert [each.unconfirmed for each in subscriptions] == [frozenset()] * 5


async def test_a_bus_that_is_refused_for_its_name_is_not_said_to_join_or_leave(mesh: Desk) -> None:
    """Or a handler that goes by the name stops trading beside a feed that lives."""
    watch = await mesh.bus("watch")
    async with watch.stream(["aiobus.peer_joined", "aiobus.peer_left"]) as news:
        await mesh.bus("feed")
        for _ in range(20):
            with pytest.raises(NameInUse):
                await mesh.bus("feed")
        await mesh.bus("last")
        said = [await anext(news) for _ in range(2)]
    assert [(event.type, event.data["name"]) for event in said] == [
        ("aiobus.peer_joined", "feed"),
        ("aiobus.peer_joined", "last"),
    ]


async def test_a_name_in_use_is_refused_and_its_owner_goes_on(mesh: Desk) -> None:
    feed, strategy = await mesh.bus("feed"), await mesh.bus("strategy")
    seen = Seen()
    await strategy.subscribe(EventType.TRADE, seen.take)
    with pytest.raises(NameInUse, match="feed"):
        await mesh._make(name="feed").start()
    await publish(feed, 10)
    await arrive(feed, strategy)
    assert seen.data == list(range(10))


@waits
async def test_a_bus_without_a_place_among_the_peers_is_named_on_both_sides_until_it_has_one(
    mesh: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a place for one peer, and the first two are linked."""
    monkeypatch.setattr(links, "MAX_PEERS", 1)
    feed, other = [await mesh.bus(name) for name in ("feed", "other")]
    await feed.wait_for_peer("other")  # a start does not wait for ever: then `late` has its place
    await other.wait_for_peer("feed")
    monkeypatch.setattr(start_of, "START_SECONDS", 0.3)
    monkeypatch.setattr(peers, "RELINK", 0.5)
    late = await mesh.bus("late")
    seen = Seen()
    subscription = await late.subscribe("T", seen.take, timeout=0.3)
    assert subscription.unconfirmed == {"feed", "other"}
    await feed.publish(Event("T", 1))
    assert await feed.flush(0.2) == ["late"]
    await other.close()
    async with asyncio.timeout(20):  # a guard
        while subscription.unconfirmed:  # noqa: ASYNC110 - nothing tells when it is confirmed
            await asyncio.sleep(0.01)
    await feed.publish(Event("T", 2))
    assert await feed.flush() == []
    await seen.until(lambda: 2 in seen.data)


async def test_the_name_of_a_closed_bus_can_be_used_again(mesh: Desk) -> None:
    strategy = await mesh.bus("strategy")
    for _ in range(5):
        feed = await mesh.bus("feed")
        assert [each.name for each in feed.peers] == ["strategy"]
        assert await feed.close() == []
    async with strategy.stream("aiobus.peer_joined") as news:
        await mesh.bus("feed")
        await anext(news)
    assert [each.name for each in strategy.peers] == ["feed"]


# The past.


async def test_since_last_begins_with_the_newest_of_each_type_and_key_and_goes_on_live(
    desk: Desk,
) -> None:
    feed = await desk.bus("feed")
    await publish(feed, 10)
    await publish(feed, 3, EventType.FILL)
    strategy = await desk.bus("strategy")
    seen = Seen()
    types = [EventType.TRADE, EventType.FILL]
    await strategy.subscribe(types, seen.take, since="last")
    await publish(feed, 2)
    await arrive(feed, strategy)
    expected = [("TRADE", 7), ("TRADE", 8), ("TRADE", 9), ("FILL", 0), ("FILL", 1), ("FILL", 2)]
    expected += [("TRADE", 0), ("TRADE", 1)]
    assert [(event.type, event.data) for event in seen] == expected


NOON = 1_700_000_000


async def test_since_a_time_begins_there_and_says_how_far_history_reached(desk: Desk) -> None:
    feed = await desk.bus("feed", limits=Limits(history_events=50))
    for number in range(100):
        await feed.publish(Event(EventType.TRADE, number, NOON + number))
    strategy = await desk.bus("strategy")
    within, beyond = Seen(), Seen()
    first = await strategy.subscribe(EventType.TRADE, within.take, since=NOON + 80)
    second = await strategy.subscribe(EventType.TRADE, beyond.take, since=0)
    assert (first.reached, second.reached) == (NOON + 80, NOON + 50)
    await feed.publish(Event(EventType.TRADE, 100))
    await arrive(feed, strategy)
    assert within.data == list(range(80, 101))
    assert beyond.data == list(range(50, 101))


async def test_reached_is_honest_after_the_clock_was_set_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = await desk.bus("feed", limits=Limits(history_events=50))
    noon = time.time()
    for number in range(100):
        await feed.publish(Event(EventType.TRADE, number))
    forgotten_until = time.time()
    monkeypatch.setattr(time, "time", lambda: noon - 3600)
    for number in range(100, 130):
        await feed.publish(Event(EventType.TRADE, number))
    strategy = await desk.bus("strategy")
    seen = Seen()
    late = await strategy.subscribe(EventType.TRADE, seen.take, since=noon - 3700)
    own = await feed.subscribe(EventType.TRADE, Seen().take, since=noon - 3700)
    await arrive(feed, strategy)
    assert seen.data == list(range(80, 130))
    assert late.reached is not None
    assert noon <= late.reached <= forgotten_until
    assert own.reached == late.reached


async def test_since_last_is_told_by_every_source_that_is_there(mesh: Desk) -> None:
    sources = [await mesh.bus(name) for name in ("a", "b", "own")]
    for source in sources:
        await source.publish(Event("T", "old", key="x"))
        await source.publish(Event("T", source.name, key="x"))
    seen = Seen()
    await sources[-1].subscribe("T", seen.take, since="last")
    await seen.until(lambda: len(seen) == 3)
    assert sorted(seen.data) == ["a", "b", "own"]


async def test_the_past_comes_through_an_inbox_that_is_smaller_than_it(mesh: Desk) -> None:
    feed, strategy = await mesh.bus("feed"), await mesh.bus("strategy")
    await publish(feed, 3000)
    seen = Seen()
    await strategy.subscribe(EventType.TRADE, seen.take, since=0, maxsize=7)
    await publish(feed, 10)
    await arrive(feed, strategy)
    assert seen.data == [*range(3000), *range(10)]


async def test_a_late_joiner_at_full_rate_misses_nothing_and_gets_nothing_twice(mesh: Desk) -> None:
    feed, strategy = await mesh.bus("feed"), await mesh.bus("strategy")
    is_over = asyncio.Event()

    async def flood() -> None:
        number = 0
        while not is_over.is_set():
            await feed.publish(Event("T", number, key=f"k{number % 50}"))
            number += 1

    flooding = asyncio.create_task(flood())
    joined: list[Seen] = []
    for _ in range(10):
        joined.append(Seen())
        await strategy.subscribe("T", joined[-1].take, since="last")
    is_over.set()
    await flooding
    await arrive(feed, strategy)
    last = feed.stats().published
    for seen in joined:
        seqs = [event.seq for event in seen]
        assert seqs == sorted({*seqs})
        assert seqs[-1] == last
        live = next((at for at in range(len(seqs) - 1, 0, -1) if seqs[at - 1] < seqs[at] - 1), 0)
        assert live < 50, "one of each key, then all there is"


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_of_buses_that_end_at_once_none_complains_of_the_end_of_another(
    desk: Desk, is_cancelled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    buses = [await desk.bus(name) for name in ("feed", "strategy", "broker", "monitor")]
    for bus in buses:
        await bus.subscribe([EventType.TRADE, "aiobus.peer_left"], Seen().take)
        await bus.subscribe("aiobus.peer_left", Seen().take)
    await buses[0].publish(Event(EventType.TRADE, 1))
    await arrive(*buses)
    error = asyncio.CancelledError() if is_cancelled else None
    kind = None if error is None else type(error)
    await asyncio.gather(*(bus.__aexit__(kind, error, None) for bus in buses))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# Rows that are no events. They are looked at when it is their turn, so what is wrong with them is
# found late, when the source may have had its acknowledgement.


def t_row(seq: int, timestamp: Any = None) -> bytes:
    return orjson.dumps([seq, time.time() if timestamp is None else timestamp, "T", "", seq])


def bad_row(seq: int) -> bytes:
    return t_row(seq, "soon")


async def number(feed: AsyncEventBus, count: int) -> None:
    """`feed` publishes so many events that no bus asks for: it is so far in its numbers, and what
    is sent in its name up to there is not more than it says of itself.
    """
    for each in range(count):
        await feed.publish(Event("U", each))


def forge(feed: AsyncEventBus, prev: int, newest: int, *rows: bytes) -> None:
    """Send a frame of these rows in the name of `feed`, on its own links."""
    source = feed.name, feed.stats().epoch
    feed._transport.network.send(frame(topic("T"), *source, prev, newest, rows))  # type: ignore[attr-defined]


def seqs(seen: Seen) -> list[int]:
    return [event.seq for event in seen if event.type == "T"]


def gaps(seen: Seen) -> list[tuple[int, int, str]]:
    told = [event.data for event in seen if event.type == "aiobus.gap"]
    return [(gap["after"], gap["upto"], gap["reason"]) for gap in told]


async def told(seen: Seen, count: int = 1) -> None:
    """So many gaps were handed over."""
    async with asyncio.timeout(10):
        await seen.until(lambda: len(gaps(seen)) >= count)


WANTED = ["T", "aiobus.gap"]
WAYS: list[dict[str, Any]] = [
    {},
    {"overflow": "block"},
    {"overflow": "drop_oldest"},
    {"where": lambda event: True},
    {"max_age": 99.0},
]


@pytest.mark.paired
@pytest.mark.parametrize("way", WAYS)
async def test_of_rows_behind_one_that_is_no_event_exactly_these_are_lost_and_that_is_said(
    doubted: Desk, way: dict[str, Any]
) -> None:
    feed, strategy = [await doubted.bus(name) for name in ("feed", "strategy")]
    seen = Seen()
    subscription = await strategy.subscribe(WANTED, seen.take, **way)
    await number(feed, 5)
    forge(feed, 0, 5, t_row(1), t_row(2), bad_row(3), t_row(4), t_row(5))
    sixth = await feed.publish(Event("T", 6))
    await arrive(feed, strategy)
    await told(seen)
    last = await feed.publish(Event("T", 7))
    await arrive(feed, strategy)
    assert (seqs(seen), gaps(seen)) == ([1, 2, sixth.seq, last.seq], [(2, 5, NO_EVENTS)])
    assert (subscription.stats.gaps, subscription.stats.pending) == (1, 0)
    assert (feed.stats().refused, strategy.stats().refused) == (0, 1)


@pytest.mark.paired
@pytest.mark.parametrize("good", [0, 1, 31, 32, 33, 100])
async def test_however_many_good_rows_come_before_one_that_is_no_event_all_are_handed_over(
    doubted: Desk, good: int
) -> None:
    feed, strategy = [await doubted.bus(name) for name in ("feed", "strategy")]
    seen = Seen()
    await strategy.subscribe(WANTED, seen.take)
    await number(feed, good + 2)
    rows = [t_row(seq) for seq in range(1, good + 1)]
    forge(feed, 0, good + 2, *rows, bad_row(good + 1), t_row(good + 2))
    last = await feed.publish(Event("T", 0))
    await arrive(feed, strategy)
    await told(seen)
    assert seqs(seen) == [*range(1, good + 1), last.seq]
    assert gaps(seen) == [(good, good + 2, NO_EVENTS)]


@pytest.mark.paired
@pytest.mark.parametrize(
    ("rows", "handed"),
    [
        ([bad_row(5)], []),  # a lone row has a head of its own
        ([t_row(1), t_row(2), t_row(4)], [1, 2, 4]),  # the last is not the one that the head names
        ([t_row(1), t_row(2), b"[]".ljust(30)], [1, 2]),
        ([t_row(1), t_row(2), t_row(2), t_row(5)], [1, 2]),
        ([t_row(1), t_row(2), b'[3,1.0,"T","",%b]' % (b"[" * 254 + b"]" * 254)], [1, 2]),
        ([t_row(1), t_row(2), b'[3,1.0,"aiobus.gap","",1]', t_row(5)], [1, 2]),
        ([t_row(1), t_row(2), b" " * 20, b" " * 20, t_row(5)], [1, 2]),
    ],
)
async def test_whatever_is_wrong_the_good_rows_before_it_are_handed_over(
    doubted: Desk, rows: list[bytes], handed: list[int]
) -> None:
    feed, strategy = [await doubted.bus(name) for name in ("feed", "strategy")]
    seen = Seen()
    await strategy.subscribe(WANTED, seen.take)
    await number(feed, 5)
    forge(feed, 0, 5, *rows)
    last = await feed.publish(Event("T", 6))
    await arrive(feed, strategy)
    await told(seen)
    assert seqs(seen) == [*handed, last.seq]
    assert gaps(seen) == [(max(handed, default=0), 5, NO_EVENTS)]


async def test_a_row_that_is_found_to_be_no_event_after_the_acknowledgement_is_told_all_the_same(
    doubted: Desk,
) -> None:
    feed, strategy = [await doubted.bus(name) for name in ("feed", "strategy")]
    seen = Seen(is_open=False)
    await strategy.subscribe(WANTED, seen.take)
    at = (await feed.publish(Event("T", 1))).seq
    assert await feed.flush() == []
    await number(feed, 3)
    forge(feed, at, at + 3, t_row(at + 1), bad_row(at + 2), t_row(at + 3))
    fifth = await feed.publish(Event("T", 5))
    assert await feed.flush() == []
    assert (seen, strategy.stats().refused) == ([], 0)
    seen.gate.set()
    await told(seen)
    last = await feed.publish(Event("T", 6))
    await arrive(feed, strategy)
    assert seqs(seen) == [at, at + 1, fifth.seq, last.seq]
    assert gaps(seen) == [(at + 1, at + 3, NO_EVENTS)]
    assert strategy.stats().refused == 1


async def test_a_row_that_is_found_to_be_no_event_after_its_source_has_closed_is_told_all_the_same(
    doubted: Desk,
) -> None:
    """There is no source to ask any more."""
    feed, strategy = [await doubted.bus(name) for name in ("feed", "strategy")]
    seen = Seen(is_open=False)
    await strategy.subscribe(WANTED, seen.take)
    at = (await feed.publish(Event("T", 1))).seq
    assert await feed.flush() == []
    await number(feed, 3)
    forge(feed, at, at + 3, t_row(at + 1), bad_row(at + 2), t_row(at + 3))
    assert await feed.flush() == []
    async with strategy.stream("aiobus.peer_left") as left:
        await feed.close()
        await anext(left)
    seen.gate.set()
    await told(seen)
    assert (seqs(seen), gaps(seen)) == ([at, at + 1], [(at + 1, at + 3, NO_EVENTS)])


async def test_a_source_that_closes_before_it_said_where_it_is_leaves_nothing_untold(
    doubted: Desk,
) -> None:
    feed, strategy = [await doubted.bus(name) for name in ("feed", "strategy")]
    seen = Seen()
    await strategy.subscribe(WANTED, seen.take)
    await number(feed, 3)
    forge(feed, 0, 3, t_row(1), bad_row(2), t_row(3))
    await feed.close()
    await told(seen)
    assert (seqs(seen), gaps(seen)) == ([1], [(1, 3, NO_EVENTS)])


async def test_two_subscriptions_of_one_query_are_each_told_of_rows_that_are_no_events(
    doubted: Desk,
) -> None:
    """One of them when the other's question has been answered."""
    feed, strategy = [await doubted.bus(name) for name in ("feed", "strategy")]
    first, second = Seen(), Seen(is_open=False)
    await strategy.subscribe(WANTED, first.take)
    await strategy.subscribe(WANTED, second.take)
    at = (await feed.publish(Event("T", 1))).seq
    assert await feed.flush() == []
    await number(feed, 3)
    forge(feed, at, at + 3, t_row(at + 1), bad_row(at + 2), t_row(at + 3))
    await told(first)
    second.gate.set()
    await told(second)
    for seen in (first, second):
        assert (seqs(seen), gaps(seen)) == ([at, at + 1], [(at + 1, at + 3, NO_EVENTS)])


async def test_good_events_between_rows_that_are_no_events_are_in_no_gap(doubted: Desk) -> None:
    feed, strategy = [await doubted.bus(name) for name in ("feed", "strategy")]
    seen = Seen()
    await strategy.subscribe(WANTED, seen.take)
    await number(feed, 6)
    forge(feed, 0, 2, t_row(1), bad_row(2))
    forge(feed, 2, 4, t_row(3), t_row(4))
    forge(feed, 4, 6, t_row(5), bad_row(6))
    last = await feed.publish(Event("T", 7))
    await arrive(feed, strategy)
    await told(seen, 2)
    assert seqs(seen) == [1, 3, 4, 5, last.seq]
    lost = {seq for after, upto, _ in gaps(seen) for seq in range(after + 1, upto + 1)}
    assert lost == {2, 6}


FAR = 2**62


async def test_a_forged_number_of_rows_that_are_no_events_silences_no_source(doubted: Desk) -> None:
    """The frame goes on where the subscription stands, so the number is believed at first."""
    feed, strategy = [await doubted.bus(name) for name in ("feed", "strategy")]
    seen = Seen()
    await strategy.subscribe(WANTED, seen.take)
    sent = [await feed.publish(Event("T", each)) for each in range(3)]
    assert await feed.flush() == []
    forge(feed, sent[-1].seq, FAR, bad_row(FAR))
    sent += [await feed.publish(Event("T", each)) for each in range(3)]
    assert await feed.flush() == []
    await told(seen)
    later = [await feed.publish(Event("T", each)) for each in range(3)]
    await arrive(feed, strategy)
    handed = seqs(seen)
    assert handed == sorted(set(handed))
    assert handed[:3] == [event.seq for event in sent[:3]]
    assert handed[-3:] == [event.seq for event in later]
    ((after, upto, reason),) = gaps(seen)
    assert (upto, reason) == (FAR, WENT_BACK)
    assert all(event.seq in handed or after < event.seq <= upto for event in sent)


async def test_what_comes_while_a_forged_number_counts_as_missing_is_pulled_and_nothing_is_lost(
    doubted: Desk,
) -> None:
    """The frame does not go on where the subscription stands, so it is left, and what is before it
    asked for.
    """
    feed, strategy = [await doubted.bus(name) for name in ("feed", "strategy")]
    seen = Seen()
    await strategy.subscribe(WANTED, seen.take)
    sent = [await feed.publish(Event("T", each)) for each in range(3)]
    assert await feed.flush() == []
    forge(feed, FAR - 1, FAR, bad_row(FAR))
    sent += [await feed.publish(Event("T", each)) for each in range(6)]
    await arrive(feed, strategy)
    assert (seqs(seen), gaps(seen)) == ([event.seq for event in sent], [])


async def test_good_rows_before_a_forged_number_are_handed_over_once(doubted: Desk) -> None:
    feed, strategy = [await doubted.bus(name) for name in ("feed", "strategy")]
    seen = Seen()
    await strategy.subscribe(WANTED, seen.take)
    await number(feed, 2)
    forge(feed, 0, FAR, t_row(1), t_row(2), bad_row(FAR))
    await told(seen)
    last = await feed.publish(Event("T", 3))
    await arrive(feed, strategy)
    assert seqs(seen) == [1, 2, last.seq]
    ((_, upto, reason),) = gaps(seen)
    assert (upto, reason) == (FAR, WENT_BACK)


async def test_of_a_page_whose_rows_are_no_events_exactly_what_it_reached_to_is_lost(
    doubted: Desk,
) -> None:
    feed, strategy = [await doubted.bus(name) for name in ("feed", "strategy")]
    seen = Seen()
    subscription = await strategy.subscribe(WANTED, seen.take)
    await number(feed, 5)
    mesh: Any = strategy._transport
    nonce = mesh.session.interest.number(strategy._subscriptions._open[subscription])
    source, rows = ("feed", feed.stats().epoch), [t_row(1), t_row(2), bad_row(3), t_row(5)]
    forge(feed, 5, 5)  # a beacon, by which something is missing, and an answer before it is asked
    feed._transport.network.send(page(mesh.session.me, nonce, *source, 0, 0, 0, 5, 5, None, rows))  # type: ignore[attr-defined]
    await told(seen)
    last = await feed.publish(Event("T", 6))
    await arrive(feed, strategy)
    assert (seqs(seen), gaps(seen)) == ([1, 2, last.seq], [(2, 5, NO_EVENTS)])
    assert strategy.stats().refused == 1
    assert not subscription.stats.behind
