"""Requests as gateways answer them: `reply` from any task, and `request(to=)`, everywhere."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from desks import Desk, Seen, arrive

from aiobus import (
    AlreadyReplied,
    AsyncEventBus,
    BusClosed,
    EncodeError,
    Event,
    EventType,
    Limits,
    NoSubscribers,
    QueueFull,
    RequestInterrupted,
    RequestTimeout,
    WrongLoop,
    explain,
    record,
)
from aiobus.replies import MAX_REPLIES, Replies
from aiobus.testing import MemoryNetwork

ORDER, ACK, FILL = EventType.ORDER, EventType.ACK, EventType.FILL


class Gateway:
    """Takes orders in a handler that returns at once. `orders` has them for a reader."""

    def __init__(self, bus: AsyncEventBus) -> None:
        self.bus = bus
        self.orders: asyncio.Queue[Event] = asyncio.Queue()

    async def open(self, **options: Any) -> "Gateway":
        await self.bus.subscribe(ORDER, self.orders.put_nowait, **options)
        return self


async def asking(bus: AsyncEventBus, **options: Any) -> tuple[Event, "asyncio.Task[Event]"]:
    """An order, and a task that requests it."""
    order = Event(ORDER, {"quantity": 1}, key="BTC")
    return order, asyncio.create_task(bus.request(order, ACK, **options))


# One reply, from anywhere.


async def test_a_reply_comes_from_a_reader_after_the_handler_has_ended(desk: Desk) -> None:
    gateway, strategy = await desk.bus("gateway"), await desk.bus("strategy")
    orders = (await Gateway(gateway).open()).orders

    async def reader() -> None:
        for _ in range(20):
            order = await orders.get()
            await gateway.settle()  # its handler has ended
            reply = Event(ACK, order.data, key=order.key)
            assert await gateway.reply(order, reply) is reply

    reading = asyncio.create_task(reader())
    for _ in range(20):
        order, request = await asking(strategy)
        reply = await request
        assert (reply.cause, reply.source, reply.key) == (order.id, gateway.name, "BTC")
    await reading


async def test_replies_out_of_turn_reach_each_its_request(desk: Desk) -> None:
    gateway, strategy = await desk.bus("gateway"), await desk.bus("strategy")
    orders = (await Gateway(gateway).open()).orders
    asked = [Event(ORDER, number) for number in range(30)]
    requests = [asyncio.create_task(strategy.request(each, ACK)) for each in asked]
    taken = [await orders.get() for _ in asked]
    for order in reversed(taken):
        await gateway.reply(order, Event(ACK, order.data))
    assert [(await each).data for each in requests] == list(range(30))


async def test_a_reply_to_an_id_is_one_to_the_event(desk: Desk) -> None:
    gateway, strategy = await desk.bus("gateway"), await desk.bus("strategy")
    orders = (await Gateway(gateway).open()).orders
    order, request = await asking(strategy)
    id = (await orders.get()).id  # as an exchange returns it
    await gateway.reply(id, Event(ACK, 1))
    assert (await request).cause == order.id
    with pytest.raises(AlreadyReplied):
        await gateway.reply(order, Event(ACK, 2))


async def test_its_cause_is_the_request_whatever_is_handled_meanwhile(desk: Desk) -> None:
    gateway, strategy = await desk.bus("gateway"), await desk.bus("strategy")
    orders = (await Gateway(gateway).open()).orders
    causes: list[str] = []

    async def on_report(report: Event) -> None:
        order = await orders.get()
        ack = await gateway.reply(order, Event(ACK, "in a handler"))
        after = await gateway.publish(Event("LOG", 1))
        causes.extend([ack.cause, after.cause, report.id])

    reports = await gateway.subscribe("REPORT", on_report)
    order, request = await asking(strategy)
    await strategy.publish(Event("REPORT", 1))
    reply = await request
    await arrive(strategy, gateway)
    assert reply.cause == causes[0] == order.id
    assert causes[1] == causes[2]  # what follows is of the handler again
    await reports.unsubscribe()

    order, request = await asking(strategy)
    async with gateway.stream("REPORT") as stream:
        report = await strategy.publish(Event("REPORT", 2))
        async for _ in stream:
            await gateway.reply(await orders.get(), Event(ACK, "in a stream"))
            assert (await gateway.publish(Event("LOG", 2))).cause == report.id
            break
    assert (await request).cause == order.id
    assert (await gateway.publish(Event("LOG", 3))).cause == ""


async def test_a_received_event_that_is_given_as_a_reply_gets_the_request_as_its_cause(
    desk: Desk,
) -> None:
    gateway, strategy = await desk.bus("gateway"), await desk.bus("strategy")
    orders = (await Gateway(gateway).open()).orders
    received = await gateway.publish(Event(ACK, "of a venue", cause="x@1.1"))
    order, request = await asking(strategy)
    await gateway.reply(await orders.get(), received)
    assert (await request).cause == order.id


async def test_a_second_reply_is_refused_and_names_the_first(desk: Desk) -> None:
    gateway, strategy = await desk.bus("gateway"), await desk.bus("strategy")
    orders = (await Gateway(gateway).open()).orders
    seen = Seen()
    await strategy.subscribe(ACK, seen.take)
    order, request = await asking(strategy)
    first = await gateway.reply(await orders.get(), Event(ACK, 1))
    await request
    published = gateway.stats().published
    second = Event(ACK, 2)
    with pytest.raises(AlreadyReplied) as raised:
        await gateway.reply(order, second)
    assert (raised.value.request, raised.value.reply) == (order.id, first.id)
    assert (second.id, second.cause, gateway.stats().published) == ("", "", published)
    await arrive(gateway, strategy)
    assert seen.data == [1]


async def test_what_follows_a_reply_is_published_with_the_request_as_its_cause(desk: Desk) -> None:
    gateway, strategy = await desk.bus("gateway"), await desk.bus("strategy")
    orders = (await Gateway(gateway).open()).orders
    async with strategy.stream(FILL) as fills:
        order, request = await asking(strategy)
        taken = await orders.get()
        await gateway.reply(taken, Event(ACK, 1))
        await gateway.publish(Event(FILL, 2, cause=taken.id))
        assert (await request).type == ACK
        assert (await anext(fills)).cause == order.id


async def test_each_bus_may_reply_once(mesh: Desk) -> None:
    gateway, risk = await mesh.bus("gateway"), await mesh.bus("risk")
    strategy = await mesh.bus("strategy")
    ours = (await Gateway(gateway).open()).orders
    theirs = (await Gateway(risk).open()).orders
    _, request = await asking(strategy)
    await gateway.reply(await ours.get(), Event(ACK, "gateway"))
    reply = await request
    await risk.reply(await theirs.get(), Event(ACK, "risk"))
    assert reply.data == "gateway"


# What does not count.


async def test_a_reply_that_cannot_be_encoded_does_not_count(desk: Desk) -> None:
    gateway, strategy = await desk.bus("gateway"), await desk.bus("strategy")
    orders = (await Gateway(gateway).open()).orders
    _, request = await asking(strategy)
    order = await orders.get()
    for wrong in (Event(ACK, float("nan")), Event("aiobus.error", 1)):
        with pytest.raises(EncodeError):
            await gateway.reply(order, wrong)
        assert (wrong.seq, wrong.cause) == (0, "")
    await gateway.reply(order, Event(ACK, 1))
    assert (await request).data == 1


@pytest.mark.parametrize(
    ("request_", "event", "error", "text"),
    [
        (Event(ORDER, 1), Event(ACK, 1), ValueError, "has no id, because it was not published"),
        ("", Event(ACK, 1), ValueError, "has no id"),
        ("42", Event(ACK, 1), ValueError, "'42' is not the id of an event"),
        (42, Event(ACK, 1), TypeError, "42 is an int: the event that is replied to, or its id"),
        ("desk@1.1", {"a": 1}, TypeError, "is a dict, not an Event: reply"),
        ("desk@1.1", Event(ACK, 1, cause="x@1.1"), ValueError, "the cause of a reply is its"),
    ],
    ids=["unpublished", "empty", "no id", "no event", "a dict", "another cause"],
)
async def test_what_is_no_request_or_no_reply_is_named(
    bus: AsyncEventBus, request_: Any, event: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        await bus.reply(request_, event)
    assert bus.stats().published == 0


async def test_a_request_is_not_published_again_as_its_own_reply(bus: AsyncEventBus) -> None:
    """It would be executed twice."""
    order = await bus.publish(Event(ORDER, 1))
    for request in (order, order.id):
        with pytest.raises(ValueError, match="is the request itself"):
            await bus.reply(request, order)
    assert bus.stats().published == 1


async def test_the_cause_that_a_reply_would_get_may_be_there_already(bus: AsyncEventBus) -> None:
    order = await bus.publish(Event(ORDER, 1))
    assert (await bus.reply(order, Event(ACK, 1, cause=order.id))).cause == order.id


async def test_a_closed_bus_replies_to_nothing() -> None:
    async with AsyncEventBus() as bus:
        order = await bus.publish(Event(ORDER, 1))
    with pytest.raises(BusClosed):
        await bus.reply(order, Event(ACK, 1))


async def test_a_reply_from_another_thread_is_refused_and_one_through_the_loop_is_given(
    bus: AsyncEventBus,
) -> None:
    order = await bus.publish(Event(ORDER, 1))
    loop = asyncio.get_running_loop()

    def executed() -> Event:
        with pytest.raises(WrongLoop):
            asyncio.run(bus.reply(order, Event(ACK, 1)))
        ack = bus.reply(order, Event(ACK, 2))
        return asyncio.run_coroutine_threadsafe(ack, loop).result()

    assert (await loop.run_in_executor(None, executed)).cause == order.id


async def test_of_two_calls_at_once_one_replies(tmp_path: Path) -> None:
    async with AsyncEventBus(name="gateway", journal=tmp_path / "gateway.db") as bus:
        order = await bus.publish(Event(ORDER, 1))
        calls = [bus.reply(order, Event(ACK, number)) for number in range(2)]
        first, second = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(first, Event)
        assert isinstance(second, AlreadyReplied)
        assert "is being replied to by another call" in str(second)
        assert first.cause == order.id


async def test_a_reply_that_is_cancelled_while_its_commit_is_awaited_counts(tmp_path: Path) -> None:
    async with AsyncEventBus(name="gateway", journal=tmp_path / "gateway.db") as bus:
        order = await bus.publish(Event(ORDER, 1))
        ack = Event(ACK, 1)
        replying = asyncio.create_task(bus.reply(order, ack))
        await asyncio.sleep(0)
        replying.cancel()
        with suppress(asyncio.CancelledError):
            await replying
        with pytest.raises(AlreadyReplied) as raised:
            await bus.reply(order, Event(ACK, 2))
        assert raised.value.reply == ack.id != ""


async def test_a_reply_to_a_request_of_before_a_restart_names_it(tmp_path: Path) -> None:
    path = tmp_path / "gateway.db"
    async with AsyncEventBus(name="gateway", journal=path) as bus:
        order = await bus.publish(Event(ORDER, 1))
    async with AsyncEventBus(name="gateway", journal=path) as bus:
        acks = [await bus.reply(order.id, Event(ACK, 1))]
        async with bus.stream(ORDER, since=0, max_age=3_600) as orders:
            again = await anext(orders)
        with pytest.raises(AlreadyReplied):
            await bus.reply(again, Event(ACK, 2))
    assert acks[0].cause == order.id


async def test_a_reply_waits_for_room_and_one_that_was_cancelled_there_has_been_given(
    bus: AsyncEventBus,
) -> None:
    seen = Seen(is_open=False)
    await bus.subscribe(ACK, seen.take, overflow="block", maxsize=1)
    order = await bus.publish(Event(ORDER, 1))
    await bus.publish(Event(ACK, 1))
    await seen.until(lambda: seen.started > 0)
    await bus.publish(Event(ACK, 2))
    with pytest.raises(QueueFull):
        bus.publish_nowait(Event(ACK, 3))
    replying = asyncio.create_task(bus.reply(order, Event(ACK, 3)))
    await asyncio.sleep(0)
    assert not replying.done()
    replying.cancel()
    with suppress(asyncio.CancelledError):
        await replying
    with pytest.raises(AlreadyReplied):
        await bus.reply(order, Event(ACK, 4))
    seen.gate.set()
    await bus.settle()
    assert seen.data == [1, 2, 3]


async def test_a_reply_inside_a_handler_does_not_wait_for_room_in_its_own_inbox(
    bus: AsyncEventBus,
) -> None:
    orders = [await bus.publish(Event(ORDER, number)) for number in range(4)]
    seen: list[Any] = []

    async def handle(event: Event) -> None:
        seen.append(event.data)
        if event.type == "SIGNAL":
            for order in orders:
                await bus.reply(order, Event(ACK, order.data))

    await bus.subscribe(["SIGNAL", ACK], handle, overflow="block", maxsize=1)
    await bus.publish(Event("SIGNAL", "signal"))
    await bus.settle()
    assert seen == ["signal", 0, 1, 2, 3]


async def test_a_handler_may_reply_while_its_bus_closes(mesh: Desk) -> None:
    gateway, strategy = await mesh.bus("gateway"), await mesh.bus("strategy")
    taken = Seen(is_open=False)

    async def on_order(order: Event) -> None:
        await taken.take(order)
        await gateway.reply(order, Event(ACK, 1))

    await gateway.subscribe(ORDER, on_order)
    _, request = await asking(strategy)
    await taken.until(lambda: taken.started > 0)
    closing = asyncio.create_task(gateway.close())
    await asyncio.sleep(0)
    taken.gate.set()
    await closing
    assert (await request).data == 1


async def test_a_reply_that_is_cancelled_before_it_has_a_number_does_not_count(mesh: Desk) -> None:
    limits = Limits(history_events=20)
    gateway = await mesh.bus("gateway", limits=limits, pace=True)
    reader = Seen(is_open=False)
    await (await mesh.bus("reader")).subscribe(ACK, reader.take, maxsize=5)
    order = await gateway.publish(Event(ORDER, 1))
    number = 0
    with suppress(QueueFull):
        while number < 1_000:
            gateway.publish_nowait(Event(ACK, number))
            number += 1
    replying = asyncio.create_task(gateway.reply(order, Event(ACK, "cancelled")))
    await asyncio.sleep(0)
    replying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await replying
    again = asyncio.create_task(gateway.reply(order, Event(ACK, "given")))
    reader.gate.set()
    assert (await again).cause == order.id
    await reader.until(lambda: reader.data[-1:] == ["given"])
    assert reader.data == [*range(number), "given"]


# What is remembered.


def give(replies: Replies, source: str, seq: int) -> None:
    event = Event(ACK, 1)
    with replies.once((source, 1, seq), event):
        event.source, event.epoch, event.seq = "gateway", 1, seq + 1


def test_what_is_forgotten_is_refused_and_not_replied_to_twice() -> None:
    replies = Replies(most=3)
    for seq in (4, 2, 6, 8, 10):
        give(replies, "desk", seq)
    for seq in (2, 4, 6, 8, 10):
        with pytest.raises(AlreadyReplied) as raised:
            give(replies, "desk", seq)
        assert raised.value.most == (3 if seq in (2, 4) else 0)
    with pytest.raises(AlreadyReplied, match="is not known any more"):
        give(replies, "desk", 3)  # never replied to, which is not known
    give(replies, "desk", 5)
    give(replies, "other", 1)


def test_the_sources_of_what_is_forgotten_are_bounded_too() -> None:
    replies = Replies(most=1, sources=2)
    for number in range(10):
        give(replies, f"desk{number}", 1)
    for number in (7, 8):
        with pytest.raises(AlreadyReplied, match="is not known any more"):
            give(replies, f"desk{number}", 1)
    assert len(replies._given) == 1
    assert len(replies._forgotten) == 2


def test_what_was_not_published_is_not_remembered() -> None:
    replies, event = Replies(), Event(ACK, 1)
    for _ in range(2):
        with pytest.raises(OSError, match="disk"), replies.once(("desk", 1, 1), event):
            raise OSError("disk")
    published = Event(ACK, 1, source="desk", epoch=1, seq=7)
    with replies.once(("desk", 1, 1), published):
        pass  # it has the number that it had before
    give(replies, "desk", 1)


async def test_a_bus_remembers_as_many_replies_as_its_contract_says(bus: AsyncEventBus) -> None:
    assert MAX_REPLIES == 65_536
    assert bus._replies._most == MAX_REPLIES


# A request for one bus.


async def test_only_the_reply_of_the_bus_that_is_named_counts(mesh: Desk) -> None:
    fast, slow = await mesh.bus("fast"), await mesh.bus("slow")
    strategy = await mesh.bus("strategy")
    await fast.subscribe(ORDER, lambda order: fast.reply(order, Event(ACK, "fast")))
    orders = (await Gateway(slow).open()).orders
    order, request = await asking(strategy, to="slow")
    taken = await orders.get()
    await arrive(strategy, fast)
    assert await fast.flush() == []  # its reply was there first
    await strategy.settle()
    await slow.reply(taken, Event(ACK, "slow"))
    reply = await request
    assert (reply.data, reply.source, reply.cause) == ("slow", "slow", order.id)


async def test_the_own_name_may_be_given_if_it_subscribes(desk: Desk) -> None:
    bus, other = await desk.bus("desk"), await desk.bus("other")
    with pytest.raises(NoSubscribers, match="no subscription of desk names ORDER"):
        await bus.request(Event(ORDER, 1), ACK, to="desk")
    await bus.subscribe("*", lambda event: None)  # a monitor
    if other is not bus:
        await other.subscribe(ORDER, lambda order: other.reply(order, Event(ACK, "other")))
    with pytest.raises(NoSubscribers, match="no subscription of desk names ORDER"):
        await bus.request(Event(ORDER, 1), ACK, to="desk")
    await bus.subscribe(ORDER, lambda order: bus.reply(order, Event(ACK, "own")), key="BTC")
    with pytest.raises(NoSubscribers, match="no subscription of desk names ORDER with key 'ETH'"):
        await bus.request(Event(ORDER, 1, key="ETH"), ACK, to="desk")
    assert (await bus.request(Event(ORDER, 1, key="BTC"), ACK, to="desk")).data == "own"


async def test_the_replies_that_a_bus_waits_for_are_no_subscription_of_it(desk: Desk) -> None:
    bus = await desk.bus("desk")
    await bus.subscribe(ORDER, lambda order: bus.reply(order, Event(ACK, 1)))
    await bus.request(Event(ORDER, 1), ACK, to="desk")
    with pytest.raises(NoSubscribers):
        await bus.request(Event(ACK, 1), ORDER, to="desk")


async def test_on_inproc_the_one_bus_stands_for_each_name(bus: AsyncEventBus) -> None:
    with pytest.raises(NoSubscribers, match="no subscription of desk names ORDER"):
        await bus.request(Event(ORDER, 1), ACK, to="gateway")
    await bus.subscribe(ORDER, lambda order: bus.reply(order, Event(ACK, "filled")))
    await bus.wait_for_peer("gateway", subscribed=ORDER)
    reply = await bus.request(Event(ORDER, 1), ACK, to="gateway")
    assert (reply.data, reply.source) == ("filled", "desk")


async def test_a_bus_that_is_not_there_is_named_with_those_that_are(mesh: Desk) -> None:
    bus, other = await mesh.bus("desk"), await mesh.bus("other")
    await other.subscribe(ORDER, lambda order: None)
    order, published = Event(ORDER, 1), bus.stats().published
    with pytest.raises(NoSubscribers) as raised:
        await bus.request(order, ACK, to="gateway")
    assert raised.value.linked == ("other",)
    assert "no bus named 'gateway' is linked" in str(raised.value)
    assert (order.id, bus.stats().published) == ("", published)


async def test_a_peer_that_does_not_subscribe_is_named_though_another_does(mesh: Desk) -> None:
    gateway, risk = await mesh.bus("gateway"), await mesh.bus("risk")
    strategy = await mesh.bus("strategy")
    await risk.subscribe(ORDER, lambda order: risk.reply(order, Event(ACK, 1)))
    await gateway.subscribe("*", lambda event: None)  # a monitor
    await gateway.subscribe(EventType.CANCEL, lambda event: None)
    published = strategy.stats().published
    with pytest.raises(NoSubscribers) as raised:
        await strategy.request(Event(ORDER, 1), ACK, to="gateway")
    assert (raised.value.to, raised.value.linked) == ("gateway", None)
    assert strategy.stats().published == published
    assert (await strategy.request(Event(ORDER, 1), ACK, to="risk")).source == "risk"
    await gateway.subscribe(ORDER, lambda order: gateway.reply(order, Event(ACK, 2)))
    assert (await strategy.request(Event(ORDER, 1), ACK, to="gateway")).source == "gateway"


async def test_a_peer_that_takes_another_key_is_named_though_another_takes_this(
    mesh: Desk,
) -> None:
    """The other would execute what the caller believes was for the first."""
    btc, eth = await mesh.bus("btc"), await mesh.bus("eth")
    strategy = await mesh.bus("strategy")
    for bus, keys in ((btc, ["BTC", "BTCUSDT"]), (eth, "ETH*")):
        await bus.subscribe(ORDER, lambda order, bus=bus: bus.reply(order, Event(ACK, 1)), key=keys)
    for key in ("ETH", "ETHUSDT"):
        with pytest.raises(
            NoSubscribers, match=f"no subscription of btc names ORDER with key '{key}'"
        ):
            await strategy.request(Event(ORDER, 1, key=key), ACK, to="btc")
        reply = await strategy.request(Event(ORDER, 1, key=key), ACK, to="eth")
        assert reply.source == "eth"
    assert (await strategy.request(Event(ORDER, 1, key="BTC"), ACK, to="btc")).source == "btc"


@pytest.mark.parametrize("has_other", [False, True], ids=["alone", "beside another"])
async def test_a_peer_that_has_unsubscribed_is_named(mesh: Desk, has_other: bool) -> None:
    gateway, strategy = await mesh.bus("gateway"), await mesh.bus("strategy")
    subscription = await gateway.subscribe(ORDER, lambda order: None)
    if has_other:
        await (await mesh.bus("risk")).subscribe(ORDER, lambda order: None)
    await subscription.unsubscribe()
    await gateway.subscribe(EventType.BAR, lambda bar: None)  # is confirmed behind the withdrawal
    with pytest.raises(NoSubscribers, match="no subscription of gateway names ORDER"):
        await strategy.request(Event(ORDER, 1), ACK, to="gateway")


async def test_a_peer_that_takes_a_key_no_more_is_named_though_another_does_since(
    mesh: Desk,
) -> None:
    gateway, risk = await mesh.bus("gateway"), await mesh.bus("risk")
    strategy = await mesh.bus("strategy")
    await gateway.subscribe(ORDER, lambda order: None, key="BTC")
    ended = await gateway.subscribe(ORDER, lambda order: None, key="ETH")
    await ended.unsubscribe()
    await gateway.subscribe(EventType.BAR, lambda bar: None)  # is confirmed behind the withdrawal
    await risk.subscribe(ORDER, lambda order: risk.reply(order, Event(ACK, 1)), key="ETH")
    with pytest.raises(NoSubscribers, match="of gateway names ORDER with key 'ETH'"):
        await strategy.request(Event(ORDER, 1, key="ETH"), ACK, to="gateway")
    assert await strategy.request(Event(ORDER, 1, key="ETH"), ACK, to="risk")


async def test_a_request_ends_when_the_bus_that_is_named_leaves_though_another_could_answer(
    mesh: Desk,
) -> None:
    gateway, risk = await mesh.bus("gateway"), await mesh.bus("risk")
    strategy = await mesh.bus("strategy")
    orders = (await Gateway(gateway).open()).orders
    await risk.subscribe(ORDER, lambda order: None)
    order, request = await asking(strategy, to="gateway", timeout=None)
    await orders.get()
    await gateway.close()
    with pytest.raises(RequestInterrupted) as raised:
        await request
    assert (raised.value.event, raised.value.name) == (order, "gateway")


@pytest.mark.virtual
async def test_a_timeout_says_if_what_alone_could_answer_is_silent() -> None:
    network = MemoryNetwork()
    async with network.bus("strategy") as strategy, network.bus("gateway") as gateway:
        await gateway.subscribe(ORDER, lambda order: None)
        await strategy.wait_for_peer("gateway", subscribed=ORDER)
        with pytest.raises(RequestTimeout, match="If its handler has failed") as raised:
            await strategy.request(Event(ORDER, 1), ACK, to="gateway", timeout=5)
        assert raised.value.silent == ()
        network.partition({"gateway"}, {"strategy"})
        with pytest.raises(RequestTimeout, match="gateway, which may be frozen") as raised:
            await strategy.request(Event(ORDER, 1), ACK, to="gateway", timeout=5)
        assert raised.value.silent == ("gateway",)
        await strategy.subscribe(ORDER, lambda order: None)  # it could answer as well
        with pytest.raises(RequestTimeout, match="If its handler has failed"):
            await strategy.request(Event(ORDER, 1), ACK, timeout=5)
        network.heal()


async def test_the_reply_of_a_bus_that_leaves_right_after_it_arrives(mesh: Desk) -> None:
    """Behind many others, so that it still waits when the bus is told to have left."""
    gateway, strategy = await mesh.bus("gateway"), await mesh.bus("strategy")
    orders = (await Gateway(gateway).open()).orders
    _, request = await asking(strategy, timeout=None)
    taken = await orders.get()
    for number in range(4_000):
        gateway.publish_nowait(Event(ACK, number))
    await gateway.reply(taken, Event(ACK, "the reply"))
    await gateway.close()
    assert (await request).data == "the reply"


@pytest.mark.parametrize("has_journal", [False, True])
async def test_a_request_ends_when_the_bus_that_is_named_starts_again(
    tmp_path: Path, has_journal: bool
) -> None:
    network = MemoryNetwork()
    options: dict[str, Any] = {"journal": tmp_path / "gateway.db"} if has_journal else {}
    async with network.bus("strategy") as strategy, network.bus("risk") as risk:
        await risk.subscribe(ORDER, lambda order: None)
        gateway = network.bus("gateway", **options)
        await gateway.start()
        orders = (await Gateway(gateway).open()).orders
        order, request = await asking(strategy, to="gateway", timeout=None)
        taken = await orders.get()
        network.kill("gateway")
        await gateway.close(0)
        async with network.bus("gateway", **options) as again:
            with pytest.raises(RequestInterrupted) as raised:
                await request
            await again.reply(taken, Event(ACK, 1))  # it is late, and an ordinary event
    assert (raised.value.event, raised.value.name) == (order, "gateway")


async def test_who_hears_of_a_restart_may_ask_at_once(tmp_path: Path) -> None:
    """What tells that the bus was away is told to the request as well, and is older than that."""
    network, path = MemoryNetwork(), tmp_path / "gateway.db"
    replies: list[Event] = []
    done = asyncio.Event()

    async def on_restart(event: Event) -> None:
        replies.append(await strategy.request(Event(ORDER, 2), ACK, to="gateway"))
        done.set()

    async def gateway() -> AsyncEventBus:
        bus = network.bus("gateway", journal=path)
        await bus.start()
        await bus.subscribe(ORDER, lambda order: bus.reply(order, Event(ACK, order.data)))
        return bus

    async with network.bus("strategy") as strategy:
        await strategy.subscribe("aiobus.peer_restarted", on_restart)
        killed = await gateway()
        first = await strategy.request(Event(ORDER, 1), ACK, to="gateway")
        network.kill("gateway")
        await killed.close(0)
        again = await gateway()
        await done.wait()
        await again.close()
    assert (first.data, [each.data for each in replies]) == (1, [2])


@pytest.mark.parametrize(
    ("name", "error"),
    [("", ValueError), ("a b", ValueError), ("x" * 65, ValueError), (1, TypeError)],
)
async def test_a_name_that_no_bus_can_have_is_refused(
    bus: AsyncEventBus, name: Any, error: type[Exception]
) -> None:
    await bus.subscribe(ORDER, lambda order: None)
    with pytest.raises(error, match="to="):
        await bus.request(Event(ORDER, 1), ACK, to=name)
    assert bus.stats().published == 0


# A request that waits for itself.


async def raised(bus: AsyncEventBus, handler: Any, types: Any, **options: Any) -> list[Exception]:
    """What requests of `handler` raise, once it is given a SIGNAL."""
    errors: list[Exception] = []

    async def handle(event: Event) -> None:
        try:
            await handler(event)
        except Exception as error:  # noqa: BLE001 - a test looks at it
            errors.append(error)

    await bus.subscribe(types, handle, **options)
    await bus.publish(Event("SIGNAL", 1))
    await bus.settle()
    return errors


def waited(errors: list[Exception]) -> list[tuple[str, ...]]:
    assert [type(each) for each in errors] == [RequestTimeout] * len(errors)
    return [each.waited for each in errors if isinstance(each, RequestTimeout)]


async def test_a_timeout_says_that_the_request_waited_for_its_own_handler(desk: Desk) -> None:
    bus = await desk.bus("desk")

    async def handle(event: Event) -> None:
        if event.type == "SIGNAL":
            await bus.request(Event(ORDER, 1), ACK, timeout=0.01)
        else:
            await bus.reply(event, Event(ACK, 1))

    errors = await raised(bus, handle, ["SIGNAL", ORDER])
    (names,) = waited(errors)
    assert len(names) == 1
    assert names[0].endswith("handle(ORDER SIGNAL)")
    assert "alone could answer, and cannot take it before the handler" in str(errors[0])


async def test_the_way_out_of_it_works(bus: AsyncEventBus) -> None:
    async def handle(event: Event) -> None:
        if event.type == "SIGNAL":
            await bus.request(Event(ORDER, 1), ACK, timeout=5)
        else:
            await bus.reply(event, Event(ACK, 1))

    assert await raised(bus, handle, ["SIGNAL", ORDER], concurrency=2) == []


async def test_a_timeout_says_so_of_a_stream_too(bus: AsyncEventBus) -> None:
    async with bus.stream(["SIGNAL", ORDER]) as events:
        await bus.publish(Event("SIGNAL", 1))
        async for _ in events:
            with pytest.raises(RequestTimeout) as error:
                await bus.request(Event(ORDER, 1), ACK, timeout=0.01)
            break
        assert error.value.waited == ("stream(ORDER SIGNAL)",)
        with pytest.raises(RequestTimeout) as error:  # also before the next step
            await bus.request(Event(ORDER, 1), ACK, timeout=0.01)
    assert error.value.waited == ("stream(ORDER SIGNAL)",)


async def test_a_timeout_says_so_if_it_waited_by_way_of_another_handler(
    bus: AsyncEventBus,
) -> None:
    errors: list[Exception] = []

    async def on_order(order: Event) -> None:
        try:
            await bus.request(Event("SIGNAL", "of on_order"), "RISK", timeout=0.01)
        except RequestTimeout as error:
            errors.append(error)
        await bus.reply(order, Event(ACK, 1))

    async def on_signal(signal: Event) -> None:
        if signal.data == 1:
            await bus.request(Event(ORDER, 1), ACK)

    await bus.subscribe(ORDER, on_order)
    assert await raised(bus, on_signal, "SIGNAL") == []
    (names,) = waited(errors)
    assert names[0].endswith("handle(SIGNAL)")


async def test_a_timeout_says_so_if_all_calls_at_once_wait_for_each_other(
    bus: AsyncEventBus,
) -> None:
    errors: list[Exception] = []
    limits = iter([0.01, 5, 5])
    done = asyncio.Event()

    async def handle(event: Event) -> None:
        if event.type == ORDER:
            await bus.reply(event, Event(ACK, 1))
            return
        try:
            await bus.request(Event(ORDER, 1), ACK, timeout=next(limits))
        except RequestTimeout as error:
            errors.append(error)
        done.set()

    await bus.subscribe(["SIGNAL", ORDER], handle, concurrency=3)
    for _ in range(3):
        await bus.publish(Event("SIGNAL", 1))
    await done.wait()
    await bus.settle()
    assert [len(names) for names in waited(errors)] == [1]


async def test_a_timeout_does_not_say_so_while_the_handler_may_take_another(
    bus: AsyncEventBus,
) -> None:
    async def handle(event: Event) -> None:
        if event.type == "SIGNAL":
            await bus.request(Event(ORDER, 1), ACK, timeout=0.01)

    assert waited(await raised(bus, handle, ["SIGNAL", ORDER], concurrency=2)) == [()]


async def test_a_timeout_does_not_say_so_if_another_could_answer(desk: Desk) -> None:
    bus, other = await desk.bus("desk"), await desk.bus("other")
    await other.subscribe(ORDER, lambda order: None)

    async def handle(event: Event) -> None:
        if event.type == "SIGNAL":
            await bus.request(Event(ORDER, 1), ACK, timeout=0.01)

    assert waited(await raised(bus, handle, ["SIGNAL", ORDER])) == [()]


async def test_a_timeout_says_so_if_the_other_is_not_the_one_that_is_named(mesh: Desk) -> None:
    bus, other = await mesh.bus("desk"), await mesh.bus("other")
    await other.subscribe(ORDER, lambda order: None)

    async def handle(event: Event) -> None:
        if event.type == "SIGNAL":
            await bus.request(Event(ORDER, 1), ACK, to="desk", timeout=0.01)

    (names,) = waited(await raised(bus, handle, ["SIGNAL", ORDER]))
    assert names[0].endswith("handle(ORDER SIGNAL)")


async def test_a_timeout_does_not_say_so_of_a_task_whose_handler_has_returned(
    bus: AsyncEventBus,
) -> None:
    requests: list[asyncio.Task[Event]] = []

    async def handle(event: Event) -> None:
        if event.type == "SIGNAL":
            _, request = await asking(bus, timeout=0.01)
            requests.append(request)

    assert await raised(bus, handle, ["SIGNAL", ORDER]) == []
    with pytest.raises(RequestTimeout) as error:
        await requests[0]
    assert error.value.waited == ()


async def test_a_timeout_does_not_say_so_of_a_task_beside_which_the_stream_goes_on(
    bus: AsyncEventBus,
) -> None:
    async with bus.stream(["SIGNAL", ORDER]) as events:
        await bus.publish(Event("SIGNAL", 1))
        await anext(events)
        _, request = await asking(bus, timeout=0.01)
        assert (await anext(events)).type == ORDER
        with pytest.raises(RequestTimeout) as error:
            await request
    assert error.value.waited == ()


async def test_wait_for_says_in_whose_handler_it_waited(bus: AsyncEventBus) -> None:
    errors: list[Exception] = []

    async def handle(event: Event) -> None:
        if event.type == "SIGNAL":
            await bus.publish(Event(ORDER, 1))
            try:
                await bus.wait_for(ACK, timeout=0.01)
            except TimeoutError as error:
                errors.append(error)
        else:
            await bus.publish(Event(ACK, 1))

    assert await raised(bus, handle, ["SIGNAL", ORDER]) == []
    (error,) = errors
    assert "no event of <EventType.ACK: 'ACK'> within 0.01 s" in str(error)
    assert "handle(ORDER SIGNAL) takes its next event only once this handler" in str(error)
    with pytest.raises(TimeoutError) as outside:
        await bus.wait_for(ACK, timeout=0)
    assert "handler" not in str(outside.value)


# What is told of it afterwards.


async def test_a_reply_of_a_reader_is_explained_by_its_order(mesh: Desk, tmp_path: Path) -> None:
    gateway, strategy = await mesh.bus("gateway"), await mesh.bus("strategy")
    orders = (await Gateway(gateway).open()).orders
    path = tmp_path / "desk.db"
    async with record(strategy, path) as recording:
        order, request = await asking(strategy)
        await gateway.reply(await orders.get(), Event(ACK, 1))
        ack = await request
        await gateway.publish(Event(FILL, 1, cause=order.id))
        await arrive(gateway, strategy)
        await recording.flush()
    lines = str(explain(path, ack.id)).splitlines()
    assert [order.id in lines[-2], ack.id in lines[-1]] == [True, True], lines
    effects = str(explain(path, order.id)).splitlines()[-2:]
    assert ["ACK" in effects[0], "FILL" in effects[1]] == [True, True], effects
