"""A recorded gateway that replies from a reader, and a strategy that asks one bus, run again."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from journals import START, entry, make
from replays import session, trades

from aiobus import (
    AlreadyReplied,
    AsyncEventBus,
    BusClosed,
    Event,
    NoSubscribers,
    Replay,
    RequestInterrupted,
    RequestTimeout,
    record,
    run_virtual,
    verify,
    what_if,
)
from aiobus.testing import MemoryNetwork


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "desk.db"


TASKS: set[asyncio.Task[None]] = set()


def keep(task: asyncio.Task[None]) -> None:
    """Until it ends: a loop has no strong reference to a task that waits."""
    TASKS.add(task)
    task.add_done_callback(TASKS.discard)


async def gateway(bus: AsyncEventBus, *, other: bool = False) -> None:
    """Reply to each TRADE, as if it was an order, from a reader; a second reply is refused."""
    orders: asyncio.Queue[Event] = asyncio.Queue()
    before: list[Event] = []

    async def reader() -> None:
        while True:
            order = await orders.get()
            before.append(order)
            await asyncio.sleep(0.001)
            await bus.reply(before[0] if other else order, Event("ACK", order.data, key=order.key))
            await bus.publish(Event("FILL", order.data, cause=order.id))
            try:
                await bus.reply(order.id, Event("ACK", "again"))
            except AlreadyReplied as error:
                await bus.publish(Event("REFUSED", [error.request, error.reply, str(error)]))

    await bus.subscribe("TRADE", orders.put_nowait)
    keep(asyncio.create_task(until_closed(reader())))
    await bus.publish(Event("READY", 1))


async def until_closed(work: Awaitable[None]) -> None:
    with suppress(BusClosed, asyncio.CancelledError):
        await work


async def test_a_gateway_that_replies_from_a_reader_replays(path: Path) -> None:
    refused: list[Event] = []
    all_are = asyncio.Event()

    async def drive(bus: AsyncEventBus) -> None:
        def on_refused(event: Event) -> None:
            refused.append(event)
            if len(refused) == 5:
                all_are.set()

        await bus.subscribe("REFUSED", on_refused)
        await trades(bus)
        await all_are.wait()

    await session(path, gateway, drive)
    report = verify(path, gateway)
    assert report, str(report)
    assert report.agreed == 16


async def test_a_reply_to_another_request_is_named_by_its_cause(path: Path) -> None:
    acks: list[Event] = []

    async def one(bus: AsyncEventBus, *, other: bool) -> None:
        orders: list[Event] = []

        async def on_trade(trade: Event) -> None:
            orders.append(trade)
            if len(orders) == 2:
                await bus.reply(orders[0 if other else 1], Event("ACK", 1))

        await bus.subscribe("TRADE", on_trade)

    async def drive(bus: AsyncEventBus) -> None:
        await bus.subscribe("ACK", acks.append)
        await trades(bus)

    await session(path, partial(one, other=False), drive)
    assert verify(path, partial(one, other=False))
    difference = verify(path, partial(one, other=True)).difference
    assert difference is not None
    assert "differs in cause" in difference.text
    assert acks[0].cause in difference.causes[0]


async def test_a_reply_that_is_missing_is_named(path: Path) -> None:
    async def one(bus: AsyncEventBus, *, is_silent: bool) -> None:
        async def on_trade(trade: Event) -> None:
            if not is_silent:
                await bus.reply(trade, Event("ACK", trade.data))

        await bus.subscribe("TRADE", on_trade)

    journal = path.with_name("bus.db")
    async with (
        AsyncEventBus(name="desk", journal=journal) as bus,  # so that a reply waits
        record(bus, path, attach=partial(one, is_silent=False)),
    ):
        await trades(bus)
        await bus.settle()
    report = verify(path, partial(one, is_silent=False))
    assert report, str(report)
    assert report.agreed == 5
    difference = verify(path, partial(one, is_silent=True)).difference
    assert difference is not None
    assert "an output is missing" in difference.text
    assert difference.recorded.startswith("ACK desk@")


async def test_what_is_attached_is_live_though_it_replies_before(path: Path) -> None:
    async def one(bus: AsyncEventBus) -> None:
        order = await bus.publish(Event("ORDER", 1))
        await bus.reply(order, Event("ACK", 1))
        await bus.subscribe("TRADE", lambda trade: None)
        await bus.wait_closed()

    journal = path.with_name("bus.db")
    async with (
        AsyncEventBus(name="desk", journal=journal) as bus,
        record(bus, path, attach=one),
    ):
        assert "TRADE" in [each.query for each in bus.stats().subscriptions]
        await trades(bus)
        await bus.settle()
    report = verify(path, one)
    assert report, str(report)


async def test_a_refusal_of_another_reply_is_named(path: Path) -> None:
    async def one(bus: AsyncEventBus, *, other: bool) -> None:
        orders: list[Event] = []

        async def on_trade(trade: Event) -> None:
            orders.append(trade)
            await bus.reply(trade, Event("ACK", 1))
            if len(orders) == 2:
                with suppress(AlreadyReplied):
                    await bus.reply(orders[0 if other else 1], Event("ACK", 2))

        await bus.subscribe("TRADE", on_trade)

    await session(path, partial(one, other=False), trades)
    assert verify(path, partial(one, other=False))
    difference = verify(path, partial(one, other=True)).difference
    assert difference is not None
    assert "replies to another request" in difference.text
    assert difference.recorded != difference.replayed
    assert difference.recorded.startswith("desk@")


async def test_a_refusal_because_of_code_that_is_not_recorded_comes_again(path: Path) -> None:
    async def late(bus: AsyncEventBus) -> None:
        async def on_told(told: Event) -> None:
            try:
                await bus.reply(told.data, Event("ACK", "attached"))
            except AlreadyReplied as error:
                await bus.publish(Event("REFUSED", str(error)))

        await bus.subscribe("TOLD", on_told)

    async def drive(bus: AsyncEventBus) -> None:
        order = await bus.publish(Event("ORDER", 1))
        await bus.reply(order, Event("ACK", "not attached"))
        await bus.publish(Event("TOLD", order.id))

    await session(path, late, drive)
    report = verify(path, late)
    assert report, str(report)
    assert report.agreed == 1


async def test_what_a_reply_raises_is_raised_again(path: Path) -> None:
    async def wrong(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            attempts: list[tuple[Any, Event]] = [
                (trade, Event("ACK", float("nan"))),
                (trade, Event("ACK", "x" * 2_000_000)),
                (trade, Event("aiobus.error", 1)),
                (Event("ORDER", 1), Event("ACK", 1)),
                (1, Event("ACK", 1)),
            ]
            for request, event in attempts:
                try:
                    await bus.reply(request, event)
                except (TypeError, ValueError) as error:
                    text = str(error).partition("Event(")[0]
                    await bus.publish(Event("WRONG", [type(error).__name__, text]))
            await bus.reply(trade, Event("ACK", 1))

        await bus.subscribe("TRADE", on_trade)

    await session(path, wrong, trades)
    report = verify(path, wrong)
    assert report, str(report)
    assert report.agreed == 30


async def test_a_reply_that_finds_its_bus_closed_does_so_again(path: Path) -> None:
    async def closing(bus: AsyncEventBus) -> None:
        orders: list[Event] = []

        async def later() -> None:
            await bus.wait_closed()
            with suppress(BusClosed):
                await bus.reply(orders[0], Event("ACK", 1))

        await bus.subscribe("TRADE", orders.append)
        await bus.publish(Event("READY", 1))
        asyncio.get_running_loop().create_task(later())

    await session(path, closing, trades)
    report = verify(path, closing)
    assert report, str(report)


# Requests for one bus.


async def asks(bus: AsyncEventBus, *, to: str = "desk") -> None:
    async def on_trade(trade: Event) -> None:
        try:
            reply = await bus.request(Event("ASK", trade.data), "ANSWER", to=to, timeout=0.005)
            await bus.publish(Event("REPLIED", [reply.id, reply.cause]))
        except RequestTimeout as error:
            await bus.publish(Event("TIMEOUT", [*error.waited, str(error)[:9]]))
        for name in ("gateway", "a b"):
            try:
                await bus.request(Event("NOT_TAKEN", 1), "ANSWER", to=name)
            except (NoSubscribers, ValueError) as error:
                await bus.publish(Event("NOBODY", str(error)))

    await bus.subscribe("TRADE", on_trade)


async def test_requests_for_one_bus_replay_and_another_name_is_named(path: Path) -> None:
    async def drive(bus: AsyncEventBus) -> None:
        async def answer(ask: Event) -> None:
            if ask.data["number"] != 3:
                await bus.reply(ask, Event("ANSWER", 1))

        await bus.subscribe("ASK", answer)
        await trades(bus)

    await session(path, asks, drive)
    report = verify(path, asks)
    assert report, str(report)
    assert report.agreed == 20
    difference = verify(path, partial(asks, to="risk")).difference
    assert difference is not None
    assert "calls request with other arguments" in difference.text
    assert difference.recorded == "for ANSWER of desk with timeout=0.005"
    assert difference.replayed == "for ANSWER of risk with timeout=0.005"


async def test_a_request_that_on_inproc_any_name_answers_replays(path: Path) -> None:
    async def strategy(bus: AsyncEventBus, *, to: str) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.wait_for_peer(to, subscribed="ASK")
            reply = await bus.request(Event("ASK", trade.data), "ANSWER", to=to)
            await bus.publish(Event("DONE", [reply.source, reply.data]))

        await bus.subscribe("TRADE", on_trade)

    async def drive(bus: AsyncEventBus) -> None:
        await bus.subscribe("ASK", lambda ask: bus.reply(ask, Event("ANSWER", ask.data)))
        await trades(bus)

    code = partial(strategy, to="gateway")
    await session(path, code, drive)
    report = verify(path, code)
    assert report, str(report)
    assert report.agreed == 10
    difference = verify(path, partial(strategy, to="risk")).difference
    assert difference is not None


async def test_a_request_that_waited_for_itself_replays_with_the_same_text(path: Path) -> None:
    async def stuck(bus: AsyncEventBus) -> None:
        async def handle(event: Event) -> None:
            if event.type != "TRADE":
                return
            try:
                await bus.request(Event("ASK", event.data), "ANSWER", timeout=0.001)
            except RequestTimeout as error:
                await bus.publish(Event("STUCK", [*error.waited, "this very" in str(error)]))
            try:
                await bus.wait_for("ANSWER", timeout=0.001)
            except TimeoutError as error:
                await bus.publish(Event("WAITED", str(error)))

        await bus.subscribe(["TRADE", "ASK"], handle)

    stuck_texts: list[Event] = []

    async def drive(bus: AsyncEventBus) -> None:
        await bus.subscribe(["STUCK", "WAITED"], stuck_texts.append)
        await trades(bus)

    await session(path, stuck, drive)
    report = verify(path, stuck)
    assert report, str(report)
    assert len(stuck_texts) == 10
    assert stuck_texts[0].data[1] is True
    assert "handle(ASK TRADE) takes its next event only once" in stuck_texts[1].data


async def test_a_request_that_is_interrupted_replays(path: Path) -> None:
    network = MemoryNetwork()

    async def asking(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            try:
                await bus.request(Event("ORDER", 1), "ACK", to="gateway", timeout=None)
            except RequestInterrupted as error:
                await bus.publish(Event("INTERRUPTED", [error.name, type(error.event).__name__]))

        await bus.subscribe("TRADE", on_trade)

    async with network.bus("strategy") as bus, network.bus("gateway") as gone:
        has_come = asyncio.Event()
        await gone.subscribe("ORDER", lambda order: has_come.set())
        async with record(bus, path, attach=asking):
            await trades(bus, 1)
            await has_come.wait()
            await gone.close()
            await bus.settle()
    report = verify(path, asking)
    assert report, str(report)
    assert report.agreed == 2


# On a stage.


def bought(path: Path) -> Path:
    """A desk with a strategy that has bought by a gateway, which has replied."""
    rows = []
    for number in range(1, 4):
        order = f"strategy@10.{number}"
        given: dict[str, Any] = {"epoch": 36, "time": START + number}
        rows.append(entry(number, {"price": number}, **given))
        rows.append(entry(number, {"n": number}, source="strategy", type="ORDER", **given))
        rows.append(entry(number, {}, source="gateway", type="ACK", cause=order, **given))
    make(path, rows)
    return path


async def buyer(bus: AsyncEventBus) -> None:
    async def on_trade(trade: Event) -> None:
        order = Event("ORDER", {"n": int(trade.data["price"])}, key=trade.key)
        with suppress(RequestTimeout, NoSubscribers):
            await bus.request(order, "ACK", to="gateway", timeout=1)

    await bus.subscribe("TRADE", on_trade)


def test_a_recorded_bus_that_is_asked_is_said_to_answer_nothing(path: Path) -> None:
    bought(path)

    async def main() -> None:
        replay = Replay(path)
        async with AsyncEventBus(replay, name="strategy") as bus:
            with pytest.raises(NoSubscribers, match="of gateway names ORDER") as raised:
                await bus.request(Event("ORDER", 1), "ACK", to="gateway")
            (note,) = raised.value.__notes__
            assert "gateway is of the recording, and what is recorded answers nothing" in note
            async with AsyncEventBus(replay.beside(), name="gateway") as gateway:
                with pytest.raises(NoSubscribers) as raised:
                    await bus.request(Event("ORDER", 1), "ACK", to="gateway")
                assert not hasattr(raised.value, "__notes__")
                await gateway.subscribe(
                    "ORDER", lambda order: gateway.reply(order, Event("ACK", 1))
                )
                await bus.request(Event("ORDER", 1), "ACK", to="gateway")

    run_virtual(main)


async def broker(bus: AsyncEventBus) -> None:
    """Acknowledge from a reader, 1 ms later."""
    orders: asyncio.Queue[Event] = asyncio.Queue()
    await bus.subscribe("ORDER", orders.put_nowait)
    while True:
        order = await orders.get()
        await asyncio.sleep(0.001)
        await bus.reply(order, Event("ACK", {}))


def test_a_broker_that_replies_from_a_reader_answers_what_is_for_it(path: Path) -> None:
    found = what_if(bought(path), buyer, broker=broker, keep=())
    assert found, str(found)
    acks = [event for event in found.events if event.type == "ACK"]
    orders = [event for event in found.events if event.type == "ORDER"]
    assert [each.cause for each in acks] == [each.id for each in orders]
    assert len(acks) == 3


def test_without_a_broker_a_request_for_one_bus_is_told_with_its_name(path: Path) -> None:
    found = what_if(bought(path), buyer)
    (note,) = found.notes
    assert note == (
        "3 requests for ORDER found no subscriber of gateway: gateway answered when it was"
        " recorded, and now the broker is to answer, which has the first name of replaces="
    )


def test_on_a_stage_each_bus_is_found_by_its_name(path: Path) -> None:
    answers: list[str] = []
    bought(path)

    async def main() -> None:
        replay = Replay(path, sources="feed")
        async with (
            AsyncEventBus(replay, name="strategy", on_error="raise") as bus,
            AsyncEventBus(replay.beside(), name="gateway", on_error="raise") as gateway,
            AsyncEventBus(replay.beside(), name="risk", on_error="raise") as risk,
        ):

            async def ask(key: str, to: str) -> None:
                try:
                    order = Event("ORDER", 1, key=key)
                    reply = await bus.request(order, "ACK", to=to, timeout=1)
                    answers.append(reply.source)
                except NoSubscribers as error:
                    answers.append(str(error).partition(",")[0].partition(" (")[0])

            await gateway.subscribe("ORDER", lambda e: gateway.reply(e, Event("ACK", 1)), key="BTC")
            await risk.subscribe("ORDER", lambda e: risk.reply(e, Event("ACK", 1)))
            for key, to in [
                ("BTC", "gateway"),
                ("BTC", "risk"),
                ("ETH", "gateway"),
                ("ETH", "risk"),
                ("BTC", "strategy"),
                ("BTC", "feed"),
            ]:
                await ask(key, to)

    run_virtual(main)
    assert answers == [
        "gateway",
        "risk",
        "no subscription of gateway names ORDER with key 'ETH'",
        "risk",
        "no subscription of strategy names ORDER with key 'BTC'",
        "no subscription of feed names ORDER with key 'BTC'",  # recorded, so it is there
    ]
