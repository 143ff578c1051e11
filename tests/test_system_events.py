"""The constants and the types of system events are those that are published, and `aiobus.*` is all
of them. A subscription has the name that it was given.
"""

import asyncio
import logging
import re
from pathlib import Path
from typing import Any, get_type_hints, is_typeddict

import pytest
from replays import session, trades
from test_docs import quoted, table

from aiobus import AsyncEventBus, Event, system, verify
from aiobus.query import SYSTEM, Query
from aiobus.testing import Faults, MemoryNetwork

CONSTANTS = {
    name: value
    for name, value in vars(system).items()
    if name.isupper() and isinstance(value, str) and value != system.EVERY
}


def is_of(value: Any, kind: Any) -> bool:
    """True if `value` is exactly of this type, or a list of it."""
    inner = getattr(kind, "__args__", None)
    if inner:
        return type(value) is list and all(type(each) is inner[0] for each in value)
    return type(value) is kind


def misfit(event: Event) -> str:
    """What is wrong with the data of a system event; "" if nothing is."""
    hints = get_type_hints(system.DATA[event.type])
    if set(event.data) != set(hints):
        return f"{event.type} has {sorted(event.data)}"
    wrong = [name for name, kind in hints.items() if not is_of(event.data[name], kind)]
    return f"{event.type} has another type in {wrong}" if wrong else ""


def test_there_is_a_constant_for_each_type_named_as_the_type_is() -> None:
    assert {f"aiobus.{name.lower()}": value for name, value in CONSTANTS.items()} == {
        type: type for type in SYSTEM
    }


def test_each_type_has_a_typed_dict_with_the_fields_of_the_contract() -> None:
    told = {
        quoted(name)[0]: quoted(cells[0])
        for name, cells in table("## System events", "type").items()
    }
    assert all(map(is_typeddict, system.DATA.values()))
    assert {type: [*get_type_hints(data)] for type, data in system.DATA.items()} == told


def test_the_class_of_data_is_named_as_its_constant_is() -> None:
    for name, value in CONSTANTS.items():
        assert system.DATA[value].__name__ == name.title().replace("_", "")


# What is really published.


def listening(bus: AsyncEventBus) -> list[Event]:
    """What `bus` publishes of its own, from its start on."""
    found: list[Event] = []

    @bus.on(system.EVERY)
    async def note(event: Event) -> None:
        found.append(event)

    return found


@pytest.mark.virtual
async def test_what_a_mesh_announces_fits_its_type() -> None:
    """A peer joins, falls silent, is heard again and leaves."""
    network = MemoryNetwork()
    feed = network.bus("feed")
    found = listening(feed)
    async with feed:
        async with network.bus("bot"):
            await feed.wait_for_peer("bot")
            network.faults = Faults(loss=lambda message: message.source == "bot")
            await feed.wait_for(system.STALE, timeout=30)
            network.faults = Faults()
            await feed.wait_for(system.FRESH, timeout=30)
        await feed.settle()
    types = [event.type for event in found]
    assert types == [system.PEER_JOINED, system.STALE, system.FRESH, system.PEER_LEFT]
    assert [misfit(event) for event in found] == [""] * 4


async def test_what_one_bus_announces_fits_its_type() -> None:
    """A handler fails, and a subscription drops events."""
    bus = AsyncEventBus(name="desk")
    found = listening(bus)
    gate = asyncio.Event()

    @bus.on("TRADE")
    async def fail(event: Event) -> None:
        raise ValueError("no price")

    @bus.on("QUOTE", overflow="drop_oldest", maxsize=1)
    async def hang(event: Event) -> None:
        await gate.wait()

    async with bus:
        await bus.publish(Event("TRADE", 1))
        for number in range(4):
            await bus.publish(Event("QUOTE", number))
            await asyncio.sleep(0)
        gate.set()
        await bus.settle()
    assert {event.type for event in found} == {system.ERROR, system.OVERFLOW}
    assert [misfit(event) for event in found if misfit(event)] == []


# Every system event.


def test_every_is_each_reserved_type_and_no_other() -> None:
    query = Query.of("aiobus.*")
    assert query == Query.of(SYSTEM)
    assert all(query.matches(type, "any key") for type in SYSTEM)
    assert not query.matches("TRADE", "")
    assert not query.wants_data
    assert str(query) == "aiobus.*"
    assert str(Query.of(["aiobus.*", "TRADE"])) == "TRADE aiobus.*"
    assert str(Query.of(["aiobus.*", "*"], "BTC")) == "*/BTC aiobus.*"
    assert not any(Query.of("*").matches(type, "") for type in SYSTEM)


@pytest.mark.parametrize("types", ["aiobus.peer*", "aiobus.**", "aiobus*", "aiobus.", "aiobus.x"])
def test_no_other_pattern_of_system_events_is_taken(types: str) -> None:
    with pytest.raises(ValueError, match=re.escape("aiobus.*")):
        Query.of(types)


async def test_every_can_be_streamed_and_waited_for() -> None:
    async with AsyncEventBus() as bus, bus.stream("aiobus.*") as events:
        await bus.subscribe("TRADE", lambda _: None, where=lambda _: 1 / 0 > 0)
        waiting = asyncio.create_task(bus.wait_for("aiobus.*"))
        await asyncio.sleep(0)
        await bus.publish(Event("TRADE", 1))
        assert (await anext(events)).type == (await waiting).type == system.ERROR


# The name of a subscription.


async def test_a_subscription_has_the_name_that_it_is_given(
    bus: AsyncEventBus, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Event] = []
    await bus.subscribe(system.ERROR, seen.append)

    async def fail(event: Event) -> None:
        raise ValueError("no price")

    made = await bus.subscribe("TRADE", fail, name="book-1")
    assert made.name == made.stats.name == "book-1"
    with caplog.at_level(logging.ERROR), pytest.raises(ValueError, match="no price"):
        await bus.publish(Event("TRADE", 1))
        await bus.settle()
    await bus.settle()
    assert [error.data["subscription"] for error in seen] == ["book-1"]
    assert caplog.messages[0].startswith("book-1 failed on TRADE ")


async def test_two_subscriptions_may_have_one_name_and_a_stream_may_have_one() -> None:
    bus = AsyncEventBus()
    bus.on("TRADE", name="twice")(lambda event: None)
    bus.on("QUOTE", name="twice")(lambda event: None)
    async with bus, bus.stream("TRADE", name="reader") as events:
        assert [each.name for each in bus.stats().subscriptions] == ["twice", "twice", "reader"]
        assert events.subscription.name == "reader"


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("", ValueError, "name='' is not 1-64 characters"),
        ("a b", ValueError, "name='a b' is not 1-64 characters"),
        (7, TypeError, "name=7 is an int, not a string"),
    ],
)
@pytest.mark.parametrize("call", ["subscribe", "on", "stream"])
async def test_a_name_that_is_none_is_refused(
    name: Any, kind: type[Exception], text: str, call: str
) -> None:
    bus = AsyncEventBus()
    with pytest.raises(kind, match=re.escape(text)):
        if call == "on":
            bus.on("TRADE", name=name)
        async with bus:
            if call == "stream":
                bus.stream("TRADE", name=name)
            await bus.subscribe("TRADE", print, name=name)


async def test_another_name_of_a_subscription_is_no_other_decision(tmp_path: Path) -> None:
    path, names = tmp_path / "strategy.db", ["then"]

    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("SIGNAL", trade.data))

        await bus.subscribe("TRADE", on_trade, name=names[0])

    await session(path, strategy, trades)
    names[0] = "now"
    report = verify(path, strategy)
    assert report.verdict == "AGREES", str(report)
