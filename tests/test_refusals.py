"""A query that a bus refuses is never taken for confirmed: on either side, over every transport."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from desks import NETWORKS, Desk, Seen, arrive, open_desk, until, waits

from aiobus import AsyncEventBus, Event
from aiobus.mesh import fanout as askers
from aiobus.mesh import fanout as streams

FULL = "2 queries are served already"


@pytest.fixture(params=NETWORKS)
async def mesh(request: pytest.FixtureRequest, no_task_is_left: None) -> AsyncIterator[Desk]:
    """Buses that serve two queries each."""
    async with open_desk(request.param, refuses=True) as desk:
        yield desk


@pytest.fixture(autouse=True)
def two_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS", 2)


async def subscribed(bus: AsyncEventBus, *keys: str) -> list[Seen]:
    """Handlers of these keys, in the order in which their queries were asked for."""
    made = [Seen() for _ in keys]
    for seen, key in zip(made, keys, strict=True):
        await bus.subscribe("T", seen.take, key=key)
    return made


async def turn() -> None:
    await asyncio.sleep(0.005)


async def test_subscribe_names_the_bus_that_refuses_its_query_and_no_other_subscription_does(
    mesh: Desk,
) -> None:
    await mesh.bus("feed")
    strategy = await mesh.bus("strategy")
    made = [await strategy.subscribe("T", Seen().take, key=key) for key in "abc"]
    assert [set(each.unconfirmed) for each in made] == [set(), set(), {"feed"}]


async def test_a_refusal_is_logged_with_its_reason_on_both_sides(
    mesh: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "aiobus")
    await mesh.bus("feed")
    strategy = await mesh.bus("strategy")
    await subscribed(strategy, *"abc")
    lines = [record.getMessage() for record in caplog.records]
    assert sum("a message was refused: " + FULL in line and "T/c" in line for line in lines) == 1
    assert sum("(T/c) gets nothing of feed" in line and FULL in line for line in lines) == 1


async def test_flush_names_who_asked_in_vain_for_what_was_published_and_for_nothing_else(
    mesh: Desk,
) -> None:
    feed, strategy = await mesh.bus("feed"), await mesh.bus("strategy")
    a, _, c = await subscribed(strategy, *"abc")
    await feed.publish(Event("T", 1, key="a"))
    await arrive(feed, strategy)
    await feed.publish(Event("T", 2, key="c"))
    assert await feed.flush() == ["strategy"]
    await strategy.settle()
    assert (a.data, c.data) == ([1], [])


@waits
async def test_what_was_refused_is_confirmed_once_it_is_served_and_its_events_come(
    mesh: Desk,
) -> None:
    feed, strategy = await mesh.bus("feed"), await mesh.bus("strategy")
    first = await strategy.subscribe("T", Seen().take, key="a")
    seen = Seen()
    await subscribed(strategy, "b")
    refused = await strategy.subscribe("T", seen.take, key="c")
    await first.unsubscribe()
    await until(lambda: not refused.unconfirmed)
    await feed.publish(Event("T", 3, key="c"))
    await arrive(feed, strategy)
    assert seen.data == [3]


@pytest.mark.paired
async def test_of_a_younger_bus_that_refuses_at_first_nothing_is_lost_in_the_end(
    mesh: Desk,
) -> None:
    """It is owed from its first event, and history has it still."""
    strategy = await mesh.bus("strategy")
    seen = Seen()
    first = await strategy.subscribe("T", Seen().take, key="a")
    await subscribed(strategy, "b")
    refused = await strategy.subscribe("T", seen.take, key="c")
    assert refused.unconfirmed == set()
    feed = await mesh.bus("feed")
    await until(lambda: refused.unconfirmed == {"feed"})
    for number in range(100):
        await feed.publish(Event("T", number, key="c"))
    assert await feed.flush() == ["strategy"]
    await first.unsubscribe()
    await until(lambda: not refused.unconfirmed)
    await seen.until(lambda: len(seen) == 100)
    assert seen.data == list(range(100))


async def test_what_another_bus_asks_for_as_well_is_served_to_both(mesh: Desk) -> None:
    feed, one, two = [await mesh.bus(name) for name in ("feed", "one", "two")]
    await subscribed(one, *"ab")
    refused = await two.subscribe("T", Seen().take, key="c")
    shared = await two.subscribe("T", (seen := Seen()).take, key="a")
    assert "feed" in refused.unconfirmed
    assert "feed" not in shared.unconfirmed
    await feed.publish(Event("T", 4, key="a"))
    await seen.until(lambda: seen.data == [4])


async def test_a_bus_that_asks_for_too_much_leaves_the_others_theirs(
    mesh: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS", 6)
    monkeypatch.setattr(streams, "MAX_OF_LINK", 3)
    feed, greedy, modest = [await mesh.bus(name) for name in ("feed", "greedy", "modest")]
    many = [await greedy.subscribe("T", Seen().take, key=str(number)) for number in range(6)]
    assert [len(each.unconfirmed) for each in many] == [0, 0, 0, 2, 2, 2]
    (seen,) = await subscribed(modest, "x")
    await feed.publish(Event("T", 5, key="x"))
    await arrive(feed, modest)
    assert seen.data == [5]


async def test_close_names_who_asked_in_vain(mesh: Desk) -> None:
    feed, strategy = await mesh.bus("feed"), await mesh.bus("strategy")
    await subscribed(strategy, *"abc")
    await feed.publish(Event("T", 6, key="c"))
    assert await feed.close() == ["strategy"]


async def test_of_more_than_an_answer_names_none_is_taken_for_confirmed(
    mesh: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(askers, "MAX_NAMED", 1)
    await mesh.bus("feed")
    strategy = await mesh.bus("strategy")
    made = [await strategy.subscribe("T", Seen().take, key=key) for key in "abcd"]
    assert [set(each.unconfirmed) for each in made] == [set(), set(), {"feed"}, {"feed"}]


@waits
async def test_a_link_on_which_too_much_is_asked_for_is_ended_and_its_bus_loses_nothing(
    mesh: Desk,
    monkeypatch: pytest.MonkeyPatch,
    logged: Callable[[str], AbstractContextManager[asyncio.Event]],
) -> None:
    monkeypatch.setattr(askers, "MAX_JUNK", 3)
    feed, strategy = await mesh.bus("feed"), await mesh.bus("strategy")
    (seen,) = await subscribed(strategy, "a")
    network: Any = strategy._transport.network  # type: ignore[attr-defined]
    junk = [b"\xff%d\0" % number for number in range(4)]
    with logged("more subscriptions came on a connection than are served: it is ended") as said:
        for topic in junk:
            network.subscribe(topic)
        await said.wait()
    for topic in junk:
        network.unsubscribe(topic)
    for number in range(200):
        await feed.publish(Event("T", number, key="a"))
        await turn()
    await seen.until(lambda: len(seen) == 200)
    assert seen.data == list(range(200))
    assert await feed.flush() == []
