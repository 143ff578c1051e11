"""The same strategy decides the same, and what a change would have decided is counted and named."""

import asyncio
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from journals import START, entry, make

from aiobus import AsyncEventBus, Event, EventType, record, what_if

EXAMPLES = Path(__file__).parents[1] / "examples" / "bots"


# The desk of the examples.


@pytest.fixture
def bots(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a bot by its bare name; forgotten after the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin is not None and Path(origin).is_relative_to(EXAMPLES):
            del sys.modules[name]


async def traded(bots: Any, url: str, path: Path) -> None:
    """Record a desk of four buses, 100 times as fast as it happened."""
    async with (
        AsyncEventBus(url, name="recorder") as recorder,
        AsyncEventBus(url, name="broker") as brokers,
        AsyncEventBus(url, name="strategy") as strategies,
        AsyncEventBus(url, name="feed") as feeds,
        record(recorder, path) as recording,
    ):
        await bots("broker").broker(brokers)
        await bots("strategy").strategy(strategies)
        await bots("feed").feed(feeds, 100.0)
        await feeds.flush()
        for bus in (strategies, brokers, strategies):
            await bus.settle()
            await bus.flush()
        await recording.flush()


async def test_the_unchanged_strategy_with_a_broker_that_does_what_the_gateway_did_is_the_same(
    bots: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "desk.db"
    await traded(bots, f"ipc://{folder}/d", path)
    found = what_if(
        path, bots("strategy").strategy, broker=bots("broker").broker, replaces="broker"
    )
    assert found.is_same, str(found)
    assert str(found).endswith("no difference")
    assert "in place of broker: broker: Answer each ORDER with an ACK and a FILL" in str(found)
    places = {("SIGNAL", "BTCUSDT"), ("ORDER", "BTCUSDT")}
    assert {*found.then} == places
    assert found.then == found.now == found.agreed
    assert 10 <= found.then["ORDER", "BTCUSDT"] <= 40
    assert found.played == 2_452
    assert found.left_out.keys() == {"strategy", "broker"}


async def test_a_changed_parameter_is_counted_and_its_first_other_decision_is_named(
    bots: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "desk.db"
    await traded(bots, f"ipc://{folder}/d", path)
    monkeypatch.setattr(bots("strategy"), "FAST", 21)
    found = what_if(
        path, bots("strategy").strategy, broker=bots("broker").broker, replaces="broker"
    )
    assert not found.is_same
    assert found.difference is not None
    assert found.difference.type == "SIGNAL"
    assert found.difference.then != found.difference.now
    assert "first difference: SIGNAL BTCUSDT, number" in str(found)


# What would not have happened so.


def number(seq: int, source: str, type: str, cause: str = "", data: Any = 1) -> Any:
    return entry(seq, data, source=source, type=type, cause=cause, key="", epoch=36)


def id(source: str, seq: int) -> str:
    return f"{source}@10.{seq}"


async def echo(bus: AsyncEventBus) -> None:
    """Decide whatever is heard, but for its own."""

    async def on_event(event: Event) -> None:
        await bus.publish(Event("HEARD", [event.source, event.seq]))

    await bus.subscribe(["TRADE", "FILL", "RISK", "BOOK"], on_event)


def heard(*events: tuple[str, int]) -> list[Any]:
    return [[source, seq] for source, seq in events]


def test_what_followed_from_the_replaced_is_left_out_however_long_its_chain_and_order(
    tmp_path: Path,
) -> None:
    path = tmp_path / "desk.db"
    make(
        path,
        [
            number(1, "feed", "TRADE"),
            number(1, "strategy", "HEARD", id("feed", 1), ["feed", 1]),
            # The chain is in the file before its beginning, as it may be that it overtook it.
            number(1, "book", "BOOK", id("risk", 1)),
            number(1, "risk", "RISK", id("gateway", 1)),
            number(1, "gateway", "FILL", id("strategy", 1)),
            number(2, "risk", "RISK", id("strategy", 1)),
            number(3, "risk", "RISK", id("feed", 1)),
            number(4, "risk", "RISK", "no id"),
            number(2, "book", "BOOK", id("book", 1)),
        ],
    )
    found = what_if(path, echo)
    assert found.played == 3
    assert found.left_out == {"strategy": 1, "gateway": 1, "book": 2, "risk": 2}
    difference = found.difference
    assert difference is not None
    assert (difference.then, difference.number) == (None, 2)
    assert difference.now is not None
    assert difference.now.data == ["risk", 3]
    assert found.now == {("HEARD", ""): 3}


def session(path: Path, orders: int = 3) -> Path:
    """A strategy that orders at each trade, and a gateway that fills after a second."""
    events = []
    for seq in range(1, orders + 1):
        events += [
            number(seq, "feed", "TRADE", data=seq),
            number(seq, "strategy", "ORDER", id("feed", seq), {"price": seq, "id": f"r{seq}"}),
            number(seq, "gateway", "FILL", id("strategy", seq), seq),
        ]
    make(path, events)
    return path


async def buyer(bus: AsyncEventBus) -> None:
    async def on_trade(trade: Event) -> None:
        await bus.publish(Event("ORDER", {"price": trade.data, "id": f"now{trade.data}"}))

    await bus.subscribe("TRADE", on_trade)


def test_paths_that_are_ignored_are_not_compared(tmp_path: Path) -> None:
    path = session(tmp_path / "desk.db")
    assert what_if(path, buyer, ignore=("data.id",)).is_same
    found = what_if(path, buyer)
    assert found.agreed == {("ORDER", ""): 0}
    assert found.difference is not None
    assert found.difference.number == 1


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_missing_and_an_added_decision_are_differences(tmp_path: Path, count: int) -> None:
    async def other(bus: AsyncEventBus) -> None:
        made = 0

        async def on_trade(trade: Event) -> None:
            nonlocal made
            for _ in range(2 if trade.data == 3 and count == 4 else 1):
                made += 1
                if made <= count:
                    await bus.publish(Event("ORDER", {"price": trade.data}))

        await bus.subscribe("TRADE", on_trade)

    found = what_if(session(tmp_path / "desk.db"), other, ignore=("data.id",))
    assert not found.is_same
    assert found.difference is not None
    assert found.difference.number == min(count, 3) + 1
    assert (found.difference.then is None) == (count == 4)
    assert (found.difference.now is None) == (count < 4)


def test_a_strategy_that_never_returns_and_its_timers_run_to_the_end(tmp_path: Path) -> None:
    is_ended: list[int] = []

    async def endless(bus: AsyncEventBus) -> None:
        try:
            async with bus.stream("TRADE") as trades:
                async for trade in trades:
                    await asyncio.sleep(0.01)
                    await bus.publish(Event("ORDER", {"price": trade.data}))
        finally:
            is_ended.append(1)

    assert what_if(session(tmp_path / "desk.db"), endless, ignore=("data.id",)).is_same
    assert is_ended == [1]


def test_a_timer_after_the_last_event_that_is_played_runs_as_long_as_was_recorded(
    tmp_path: Path,
) -> None:
    async def slow(bus: AsyncEventBus) -> None:
        """Decide 5 s after each trade, by a timer that no handler waits for."""
        loop = asyncio.get_running_loop()

        def on_trade(trade: Event) -> None:
            loop.call_later(5, bus.publish_nowait, Event("ORDER", {"price": trade.data}))

        await bus.subscribe("TRADE", on_trade)

    path = tmp_path / "desk.db"
    late = entry(2, {"price": 1}, source="strategy", type="ORDER", key="", time=START + 10)
    make(path, [number(1, "feed", "TRADE"), number(1, "gateway", "FILL"), late])
    assert what_if(path, slow).is_same


def test_what_the_strategy_raises_is_raised_and_a_handler_that_raises_is_counted(
    tmp_path: Path,
) -> None:
    path = session(tmp_path / "desk.db")

    async def wrong(bus: AsyncEventBus) -> None:
        raise ZeroDivisionError

    async def failing(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            raise ZeroDivisionError

        await bus.subscribe("TRADE", on_trade)

    with pytest.raises(ZeroDivisionError):
        what_if(path, wrong)
    found = what_if(path, failing)
    assert (found.failed, found.is_same) == (3, False)
    assert "handlers that raised: 3" in str(found)


def test_the_rules_of_the_broker_are_told_or_that_they_are_not_stated(tmp_path: Path) -> None:
    path = session(tmp_path / "desk.db")

    async def silent(bus: AsyncEventBus) -> None:
        pass

    assert "no bus answers in place of gateway" in str(what_if(path, buyer))
    assert "its rules of price and latency are not stated" in str(
        what_if(path, buyer, broker=silent)
    )


def test_a_name_that_is_not_in_the_recording_is_refused_and_not_taken_for_agreement(
    tmp_path: Path,
) -> None:
    path = session(tmp_path / "desk.db")
    sources = "has as its sources feed, gateway, strategy"
    for given, text in (
        ({"replaces": "broker"}, f"nothing of broker was recorded; .* {sources}"),
        ({"name": "bot"}, f"nothing of bot was recorded; .* {sources}"),
        ({"types": "SIGNAL"}, "strategy has published nothing of SIGNAL"),
        ({"replaces": ["gateway", "feed"]}, "nothing is left to play"),
        ({"replaces": "strategy"}, "replaces="),
        ({"replaces": ()}, "replaces="),
        ({"ignore": ("price",)}, "ignore="),
    ):
        with pytest.raises(ValueError, match=text):
            what_if(path, buyer, **given)  # type: ignore[arg-type]


def test_decisions_of_other_types_are_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    live = number(9, "strategy", "LIVE")
    make(
        path,
        [
            number(1, "feed", "TRADE"),
            number(1, "strategy", "HEARD", "", ["feed", 1]),
            live,
            number(1, "gateway", "FILL"),
        ],
    )
    assert not what_if(path, echo).is_same
    assert what_if(path, echo, types="HEARD").is_same


def test_the_broker_answers_with_its_own_latency(tmp_path: Path) -> None:
    took: list[float] = []

    async def asks(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            order = await bus.publish(Event("ORDER", {"price": trade.data}))
            fill = await bus.wait_for("FILL", where=lambda fill: fill.cause == order.id)
            took.append(fill.timestamp - order.timestamp)

        await bus.subscribe("TRADE", on_trade)

    async def broker(bus: AsyncEventBus) -> None:
        """Fill after 20 ms."""

        async def on_order(order: Event) -> None:
            await asyncio.sleep(0.02)
            await bus.publish(Event(EventType.FILL, order.data))

        await bus.subscribe("ORDER", on_order)

    assert what_if(session(tmp_path / "desk.db"), asks, broker=broker, ignore=("data.id",)).is_same
    assert took == pytest.approx([0.02] * 3, abs=1e-5)
