"""System events: reserved types, delivered to this process only."""

import asyncio
import dataclasses
import logging
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from aiobus import AsyncEventBus, BusError, Event, EventType, Limits

Logged = Callable[[str], AbstractContextManager[asyncio.Event]]

pytestmark = pytest.mark.usefixtures("no_task_is_left")


async def fails(event: Event) -> None:
    raise ValueError("too bad")


async def test_a_failing_handler_is_announced_with_its_traceback() -> None:
    errors: list[Event] = []
    async with AsyncEventBus() as bus:
        await bus.subscribe("aiobus.error", errors.append)
        await bus.subscribe(EventType.TRADE, fails)
        trade = await bus.publish(Event(EventType.TRADE, 1))
        await bus.settle()
    (error,) = errors
    assert error.data["subscription"] == "fails(TRADE)"
    assert error.data["event"] == error.cause == trade.id
    assert error.data["error"] == "ValueError('too bad')"
    assert "in fails" in error.data["traceback"]
    assert (error.source, error.type) == (trade.source, "aiobus.error")


async def test_a_failing_where_is_announced_after_the_event_that_met_it() -> None:
    seen: list[str] = []
    async with AsyncEventBus() as bus:
        await bus.subscribe(EventType.TRADE, print, where=lambda event: 1 / 0)
        await bus.subscribe(["*", "aiobus.error"], lambda event: seen.append(event.type))
        await bus.publish(Event(EventType.TRADE, 1))
        await bus.settle()
    assert seen == ["TRADE", "aiobus.error"]


class Unspeakable(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no words")


async def test_an_error_without_a_repr_is_reported_all_the_same() -> None:
    errors: list[Event] = []

    async def fails_oddly(event: Event) -> None:
        raise Unspeakable

    async with AsyncEventBus() as bus:
        await bus.subscribe("aiobus.error", errors.append)
        await bus.subscribe(EventType.TRADE, fails_oddly)
        await bus.subscribe(EventType.TRADE, print, where=fails_oddly_at_once)
        await bus.publish(Event(EventType.TRADE, 1))
        await bus.settle()
    assert {e.data["error"] for e in errors} == {"Unspeakable whose repr() failed"}
    assert len(errors) == 2


def fails_oddly_at_once(event: Event) -> bool:
    raise Unspeakable


async def test_publishing_in_where_is_refused_while_catching_up_as_well() -> None:
    gate = asyncio.Event()
    seen: list[int] = []
    async with AsyncEventBus() as bus:
        await bus.subscribe(
            EventType.TRADE,
            lambda event: gate.wait(),
            maxsize=2,
            where=lambda e: e.data < 3 or bus.publish_nowait(Event(EventType.TRADE, 0)),
        )
        witness = await bus.subscribe(EventType.TRADE, lambda event: seen.append(event.data))
        for number in range(10):
            await bus.publish(Event(EventType.TRADE, number))
        gate.set()
        await bus.settle()
        assert witness.stats.handled == 10
    assert seen == list(range(10))


async def test_a_failure_met_while_catching_up_is_announced_after_the_page() -> None:
    seen: list[tuple[int, str]] = []
    gate = asyncio.Event()

    async def handle(event: Event) -> None:
        await gate.wait()
        seen.append((event.seq, event.type))

    async with AsyncEventBus() as bus:
        await bus.subscribe(
            [EventType.TRADE, "aiobus.error"], handle, maxsize=2, where=lambda e: 1 / (e.data != 6)
        )
        for number in range(9):
            await bus.publish(Event(EventType.TRADE, number))
        gate.set()
        await bus.settle()
    assert [seq for seq, _ in seen] == sorted(seq for seq, _ in seen)


@pytest.mark.parametrize("text", ["\ud800", "x" * 2_000_000], ids=["surrogate", "2 MB"])
async def test_a_failure_whose_text_cannot_travel_is_announced_all_the_same(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="aiobus")  # nor could pytest report such a line
    errors: list[Event] = []

    async def fails_oddly(event: Event) -> None:
        raise ValueError(text)

    async with AsyncEventBus() as bus:
        await bus.subscribe("aiobus.error", errors.append)
        await bus.subscribe(EventType.TRADE, fails_oddly)
        await bus.publish(Event(EventType.TRADE, 1))
        await bus.settle()
    assert len(errors) == 1
    assert errors[0].data["error"].startswith("ValueError(")


async def test_what_is_too_small_a_limit_for_an_announcement_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with AsyncEventBus(limits=Limits(event_bytes=100)) as bus:
        await bus.subscribe(EventType.TRADE, fails)
        await bus.publish(Event(EventType.TRADE, 1))
        await bus.settle()
    assert any(m.startswith("aiobus.error could not be announced") for m in caplog.messages)


async def test_a_property_that_publishes_while_its_event_is_encoded_is_refused() -> None:
    async with AsyncEventBus() as bus:

        @dataclasses.dataclass
        class Sneaky:
            price: int = 1

            def __getattribute__(self, name: str) -> object:
                if name == "price":
                    bus.publish_nowait(Event(EventType.BAR, 1))
                return object.__getattribute__(self, name)

        with pytest.raises(BusError):
            await bus.publish(Event(EventType.TRADE, Sneaky()))
        assert (await bus.publish(Event(EventType.TRADE, 1))).seq == 1


async def test_a_handler_of_system_events_that_fails_is_logged_but_not_announced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with AsyncEventBus() as bus:
        await bus.subscribe("aiobus.error", fails)
        await bus.subscribe(EventType.TRADE, fails)
        await bus.publish(Event(EventType.TRADE, 1))
        await bus.settle()
        assert bus.stats().published == 2
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert [line.split(" failed on ")[0] for line in lines] == [
        "fails(TRADE)",
        "fails(aiobus.error)",
    ]


async def test_publishing_in_where_is_refused_and_spoils_nothing() -> None:
    seen: list[object] = []
    async with AsyncEventBus() as bus:
        await bus.subscribe(
            EventType.TRADE, print, where=lambda e: bus.publish_nowait(Event(EventType.BAR, 1))
        )
        await bus.subscribe("*", lambda event: seen.append(event.data))
        for number in range(3):
            await bus.publish(Event(EventType.TRADE, number))
        await bus.settle()
        failed = bus.stats().subscriptions[0].failed
    assert (seen, failed) == ([0, 1, 2], 3)


async def test_an_overflow_of_a_monitor_does_not_announce_itself_for_ever() -> None:
    async with AsyncEventBus() as bus:
        await bus.subscribe(
            ["aiobus.error", "aiobus.overflow"], lambda e: None, overflow="drop_oldest", maxsize=1
        )
        await bus.subscribe(EventType.TRADE, fails)
        for number in range(100):
            bus.publish_nowait(Event(EventType.TRADE, number))
        await bus.settle()
        assert bus.stats().published < 500


@pytest.mark.virtual
async def test_repeats_of_a_line_are_counted_with_what_was_said_last(
    logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    """Of three names that were used twice, two were only counted."""
    async with AsyncEventBus() as bus:
        for number in (10, 200, 3000):
            bus._reports.trouble("queries are refused", f"bus-{number} refuses a query")
        bus._reports.overflow("take(T)", "latest", 1)
        bus._reports.overflow("take(T)", "latest", 900)
        with logged("take(T) drops events (latest): 1 more times") as said:
            await said.wait()
    assert caplog.messages == [
        "bus-10 refuses a query",
        "take(T) drops events (latest): 1 so far, see stats()",
        "queries are refused: 2 more times, last: bus-3000 refuses a query",
        "take(T) drops events (latest): 1 more times, last: 900 so far, see stats()",
    ]


@pytest.mark.one_loop
async def test_on_a_real_loop_a_handler_that_sleeps_is_named_with_its_length(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def sleeps(event: Event) -> None:
        time.sleep(1.2)

    async with AsyncEventBus(name="desk") as bus:
        await bus.subscribe(EventType.TRADE, sleeps)
        await bus.publish(Event(EventType.TRADE, 1))
        await bus.settle(20)
    (length,) = [
        float(found[1])
        for each in caplog.messages
        if (found := re.search(r"sleeps\(TRADE\) at .* held the event loop for (.*) s$", each))
    ]
    assert length >= 1.2
