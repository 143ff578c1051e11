"""The same strategy decides the same, and what a change would have decided is counted and named."""

import asyncio
import importlib
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from journals import EPOCH, START, entry, make

import aiobus
from aiobus import (
    AsyncEventBus,
    Event,
    EventType,
    LeavesProcess,
    NoSubscribers,
    record,
    what_if,
)

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
    assert found, str(found)
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
    assert not found
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
    assert what_if(path, buyer, ignore=("data.id",))
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
    assert not found
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

    assert what_if(session(tmp_path / "desk.db"), endless, ignore=("data.id",))
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
    assert what_if(path, slow)


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
    assert (found.failed, bool(found)) == (3, False)
    assert "! strategy raised 3 times in " in str(found)


@pytest.mark.parametrize(
    ("then", "now"),
    [(1, True), (2, 2.0), ([0], [False]), ({"a": 1, "b": 2}, {"b": 2, "a": 1})],
)
def test_data_that_python_takes_for_equal_and_json_does_not_differs_as_in_verify(
    tmp_path: Path, then: Any, now: Any
) -> None:
    async def orders(bus: AsyncEventBus) -> None:
        await bus.subscribe("TRADE", lambda _: bus.publish(Event("ORDER", {"quantity": now})))

    path = tmp_path / "desk.db"
    order = number(1, "strategy", "ORDER", id("feed", 1), {"quantity": then})
    make(path, [number(1, "feed", "TRADE"), order, number(1, "gateway", "FILL")])
    found = what_if(path, orders)
    assert not found
    assert found.difference is not None
    (field,) = found.difference.fields
    assert field.startswith("data.quantity")
    assert f"differs in: {field}" in str(found)
    assert what_if(path, orders, ignore=("data.quantity",))


def test_paths_that_are_ignored_are_those_of_verify(tmp_path: Path) -> None:
    async def orders(bus: AsyncEventBus) -> None:
        legs = [{"id": 8, "price": 1}, {"id": 9, "price": 2}]
        await bus.subscribe("TRADE", lambda _: bus.publish(Event("ORDER", {"legs": legs})))

    path = tmp_path / "desk.db"
    legs = [{"id": 1, "price": 1}, {"id": 2, "price": 2}]
    order = number(1, "strategy", "ORDER", id("feed", 1), {"legs": legs})
    make(path, [number(1, "feed", "TRADE"), order, number(1, "gateway", "FILL")])
    assert not what_if(path, orders)
    assert not what_if(path, orders, ignore=("data.legs.0.id",))
    assert what_if(path, orders, ignore=("data.legs.*.id",))
    assert what_if(path, orders, ignore=("data.legs.0.id", "data.legs.1.id"))


def test_a_time_of_now_in_a_decision_is_named_with_what_is_to_be_read(tmp_path: Path) -> None:
    async def orders(bus: AsyncEventBus) -> None:
        await bus.subscribe("TRADE", lambda _: bus.publish(Event("ORDER", {"at": time.time()})))

    path = tmp_path / "desk.db"
    order = number(1, "strategy", "ORDER", id("feed", 1), {"at": START})
    make(path, [number(1, "feed", "TRADE"), order, number(1, "gateway", "FILL")])
    found = what_if(path, orders)
    assert "suspect: data.at looks like a time: read it by aiobus.clock.time()" in str(found)


def test_a_clock_of_now_that_decides_whether_to_order_is_a_suspect_with_its_place(
    tmp_path: Path,
) -> None:
    async def orders_while_it_is_fresh(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            if time.time() - trade.timestamp < 5:
                await bus.publish(Event("ORDER", {"price": trade.data}))

        await bus.subscribe("TRADE", on_trade)

    path = session(tmp_path / "desk.db")
    found = what_if(path, orders_while_it_is_fresh, ignore=("data.id",))
    assert found.difference is not None
    assert found.difference.now is None
    (suspect,) = found.difference.suspects
    assert re.match(rf"time\.time\(\) at .*on_trade \({__file__}:\d+\) ", suspect)
    assert f"suspect: {suspect}" in str(found)


def test_without_a_call_of_such_a_clock_nothing_is_a_suspect(tmp_path: Path) -> None:
    async def orders_less(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            if aiobus.clock.time() >= trade.timestamp and trade.data < 3:
                await bus.publish(Event("ORDER", {"price": trade.data}))

        await bus.subscribe("TRADE", on_trade)

    found = what_if(session(tmp_path / "desk.db"), orders_less, ignore=("data.id",))
    assert found.difference is not None
    assert found.difference.suspects == ()


# What makes a result say less than it seems to.


async def fails_in_a_handler(bus: AsyncEventBus) -> None:
    def on_order(order: Event) -> None:
        raise KeyError("price")

    await bus.subscribe("ORDER", on_order)


async def fails_in_a_task(bus: AsyncEventBus) -> None:
    async def fill() -> None:
        raise KeyError("price")

    def on_order(order: Event) -> None:
        asyncio.get_running_loop().create_task(fill())

    await bus.subscribe("ORDER", on_order)


class Worker:
    """A broker that keeps its task: what it raised is told when it is collected, which is late."""

    async def fails_in_tasks_that_are_kept(self, bus: AsyncEventBus) -> None:
        self.tasks: list[asyncio.Task[None]] = []

        async def fill() -> None:
            raise KeyError("price")

        def on_order(order: Event) -> None:
            self.tasks.append(asyncio.get_running_loop().create_task(fill()))

        await bus.subscribe("ORDER", on_order)


async def fails_in_a_timer(bus: AsyncEventBus) -> None:
    def fill() -> None:
        raise KeyError("price")

    def on_order(order: Event) -> None:
        asyncio.get_running_loop().call_later(0, fill)

    await bus.subscribe("ORDER", on_order)


@pytest.mark.parametrize(
    "broker",
    [
        fails_in_a_handler,
        fails_in_a_task,
        Worker().fails_in_tasks_that_are_kept,
        fails_in_a_timer,
    ],
)
def test_a_broker_that_raises_is_no_sign_of_agreement(tmp_path: Path, broker: Any) -> None:
    path = session(tmp_path / "desk.db")
    found = what_if(path, buyer, broker=broker, ignore=("data.id",))
    assert found.difference is None
    assert (bool(found), found.failed) == (False, 3)
    (failure,) = found.failures
    assert failure.error == "KeyError('price')"
    assert failure.where.startswith(f"{__file__}:")
    assert f"! {failure}" in str(found)
    assert "raised 3 times" in str(failure)
    assert str(found).endswith("no difference, but code raised, see above")


def test_what_a_task_raises_and_the_code_itself_handles_is_no_failure(tmp_path: Path) -> None:
    async def handles(bus: AsyncEventBus) -> None:
        async def late() -> None:
            await asyncio.sleep(0.01)
            raise KeyError("price")

        async def on_order(order: Event) -> None:
            task = asyncio.get_running_loop().create_task(late())
            with pytest.raises(KeyError):
                await task

        await bus.subscribe("ORDER", on_order)

    found = what_if(session(tmp_path / "desk.db"), buyer, broker=handles, ignore=("data.id",))
    assert found, str(found)


def subscribed(path: Path) -> Path:
    """A feed that begins when the strategy asks it to, and what it led to at another source."""
    ask = id("strategy", 1)
    make(
        path,
        [
            number(1, "strategy", "SUBSCRIBE"),
            number(1, "feed", "TRADE", ask, data=1),
            number(2, "strategy", "ORDER", id("feed", 1), {"price": 1}),
            number(1, "gateway", "FILL", id("strategy", 2)),
            number(1, "book", "BOOK", id("feed", 1)),
        ],
    )
    return path


async def asks_for_trades(bus: AsyncEventBus) -> None:
    async def on_trade(trade: Event) -> None:
        await bus.publish(Event("ORDER", {"price": trade.data}))

    await bus.subscribe("TRADE", on_trade)
    await bus.publish(Event("SUBSCRIBE", 1))


def test_a_source_that_is_left_out_for_its_causes_is_named_with_the_first_of_them(
    tmp_path: Path,
) -> None:
    path = subscribed(tmp_path / "desk.db")
    said = (
        r"1 of feed were left out, because they followed from .* \(first from SUBSCRIBE"
        r" strategy@10\.1\)\. If they come all the same, give keep=\('feed',\)"
    )
    with pytest.raises(ValueError, match=f"nothing is left to play; .*{said}"):
        what_if(path, asks_for_trades)
    make(path, [number(1, "news", "NEWS")])
    found = what_if(path, asks_for_trades)
    assert not found
    assert any(re.match(said, note) for note in found.notes)
    assert any(note.startswith("1 of book were left out") for note in found.notes)


def test_a_source_that_is_kept_is_played_with_what_followed_from_it(tmp_path: Path) -> None:
    path = subscribed(tmp_path / "desk.db")
    found = what_if(path, asks_for_trades, keep="feed")
    assert found, str(found)
    assert found.left_out == {"strategy": 2, "gateway": 1}
    assert found.notes == ()


def asked(path: Path) -> Path:
    """A strategy that asks risk by a request before each order."""
    make(
        path,
        [
            number(1, "feed", "TRADE", data=1),
            number(1, "strategy", "CHECK", id("feed", 1)),
            number(1, "risk", "RISK_OK", id("strategy", 1)),
            number(2, "strategy", "ORDER", id("feed", 1), {"price": 1}),
            number(1, "gateway", "FILL", id("strategy", 2)),
        ],
    )
    return path


@pytest.mark.parametrize("is_caught", [True, False])
def test_requests_that_find_no_subscriber_are_told_with_what_answered_them(
    tmp_path: Path, is_caught: bool
) -> None:
    async def asks(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            try:
                await bus.request(Event("CHECK", 1), "RISK_OK", timeout=1)
            except NoSubscribers:
                if is_caught:
                    return
                raise
            await bus.publish(Event("ORDER", {"price": trade.data}))

        await bus.subscribe("TRADE", on_trade)

    async def risk(bus: AsyncEventBus) -> None:
        await bus.subscribe("CHECK", lambda check: bus.publish(Event("RISK_OK", 1)))

    path = asked(tmp_path / "desk.db")
    said = "1 requests for CHECK found no subscriber: risk answered when it was recorded, and "
    cure = "Name risk in replaces=, and let the broker answer"
    found = what_if(path, asks)
    assert [*found.notes] == [f"{said}that is left out. {cure}"]
    assert found.failed == (0 if is_caught else 1)
    found = what_if(path, asks, replaces=["gateway", "risk"])
    assert [*found.notes] == [f"{said}now the broker is to answer"]
    found = what_if(path, asks, replaces=["gateway", "risk"], broker=risk)
    assert found, str(found)


def twice(path: Path) -> Path:
    """A strategy that orders at each second trade, started twice."""
    events = []
    for start in (EPOCH, EPOCH + 60_000_000):
        for seq in (1, 2, 3):
            when = start / 1_000_000 + 2 + seq
            trade = {"key": "", "time": when, "epoch": start}
            events.append(entry(seq, seq, **trade))
            if seq == 2:
                events.append(entry(1, seq, source="strategy", type="ORDER", **trade))
                events.append(entry(1, seq, source="gateway", type="FILL", **trade))
    make(path, events)
    return path


async def every_second(bus: AsyncEventBus) -> None:
    count = 0

    async def on_trade(trade: Event) -> None:
        nonlocal count
        count += 1
        if count % 2 == 0:
            await bus.publish(Event("ORDER", trade.data))

    await bus.subscribe("TRADE", on_trade)


def test_several_starts_of_the_strategy_are_told_and_one_can_be_chosen(tmp_path: Path) -> None:
    path = twice(tmp_path / "desk.db")
    found = what_if(path, every_second)
    assert not found
    (note,) = found.notes
    assert note.startswith("strategy was started 2 times in this range (first event at offset 3, ")
    begins = [float(each) for each in re.findall(r"start=([0-9.]+)", note)]
    assert begins == pytest.approx([START, START + 60], abs=1.1)
    for start, end in ((None, begins[1]), (begins[1], None), (6, None)):
        found = what_if(path, every_second, start=start, end=end)
        assert found, str(found)
        assert found.notes == ()
        assert found.played == 3


def test_what_the_broker_answers_is_counted_and_given(tmp_path: Path) -> None:
    async def broker(bus: AsyncEventBus) -> None:
        async def on_order(order: Event) -> None:
            if order.data["price"] != 2:
                await bus.publish(Event("FILL", {"at": order.data["price"]}))

        await bus.subscribe("ORDER", on_order)

    path = session(tmp_path / "desk.db")
    found = what_if(path, buyer, broker=broker, ignore=("data.id",))
    assert found.answers == {"FILL": (3, 2)}
    assert "answers FILL: 3 then, 2 now" in str(found)
    fills = [event for event in found.events if event.type == "FILL"]
    assert [(each.source, each.data) for each in fills] == [("gateway", {"at": n}) for n in (1, 3)]
    orders = {event.id: event for event in found.events if event.source == "strategy"}
    assert [orders[each.cause].data["price"] for each in fills] == [1, 3]


def test_what_is_written_meanwhile_is_named_and_a_caller_may_be_let_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, fifo = tmp_path / "orders.txt", tmp_path / "fifo"
    os.mkfifo(fifo)

    async def writes(bus: AsyncEventBus) -> None:
        def on_trade(trade: Event) -> None:
            log.open("a").close()
            os.close(os.open(fifo, os.O_RDWR))

        await bus.subscribe("TRADE", on_trade)

    path = session(tmp_path / "desk.db")
    with pytest.raises(LeavesProcess, match=r"os\.open"):
        what_if(path, writes)
    found = what_if(path, writes, allow=(f"{__name__}.{writes.__qualname__}.<locals>.on_trade",))
    assert found.written == (str(log),)
    assert f"opened for writing: {log}" in str(found)


def test_a_bot_that_is_no_function_of_a_bus_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    class Strategy:
        async def run(self, bus: AsyncEventBus) -> None:
            await buyer(bus)

    path = session(tmp_path / "desk.db")
    for strategy, broker, text in (
        (buyer, "gateway", "broker='gateway': a coroutine function .* replaces= has the name"),
        (None, None, "strategy=None: a coroutine function of a bus is needed"),
        (Strategy, None, r"Strategy is a class: give a method, such as Strategy\(\)\.run"),
    ):
        with pytest.raises(TypeError, match=text):
            what_if(path, strategy, broker=broker)  # type: ignore[arg-type]
    assert what_if(path, Strategy().run, ignore=("data.id",))


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
        ({"ignore": ("timestamp",)}, "ignore="),
        ({"keep": "feeds"}, f"nothing of feeds was recorded; .* {sources}"),
        ({"keep": "gateway"}, "keep=.*gateway is replaced"),
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
    assert not what_if(path, echo)
    assert what_if(path, echo, types="HEARD")


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

    assert what_if(session(tmp_path / "desk.db"), asks, broker=broker, ignore=("data.id",))
    assert took == pytest.approx([0.02] * 3, abs=1e-5)
