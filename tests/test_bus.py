"""The API as a user meets it: publish, subscribe, unsubscribe, on, wait_for, stats, wrong use."""

import asyncio
import inspect
import os
import re
import tempfile
import threading
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import pytest

from aiobus import AsyncEventBus, BusClosed, BusError, EncodeError, Event, EventType, WrongLoop

pytestmark = pytest.mark.usefixtures("no_task_is_left")


class Inbox:
    """A handler that remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def handle(self, event: Event) -> None:
        self.events.append(event)

    @property
    def data(self) -> list[object]:
        return [event.data for event in self.events]


async def test_publish_returns_the_same_object_with_its_stamps(bus: AsyncEventBus) -> None:
    event = Event(EventType.TRADE, 1)
    assert event.id == ""
    assert await bus.publish(event) is event
    assert (event.source, event.seq, event.cause) == ("desk", 1, "")
    assert event.epoch == bus.stats().epoch
    assert event.id.startswith("desk@")
    assert event.id.endswith(".1")


async def test_changing_the_data_after_publish_changes_nothing(bus: AsyncEventBus) -> None:
    inbox = Inbox()
    await bus.subscribe(EventType.TRADE, inbox.handle)
    data = {"price": 1}
    await bus.publish(Event(EventType.TRADE, data))
    data["price"] = 2
    await bus.settle()
    assert inbox.data == [{"price": 1}]


async def test_a_plain_function_is_called_inline(bus: AsyncEventBus) -> None:
    seen: list[Event] = []
    await bus.subscribe(EventType.TRADE, seen.append)
    await bus.publish(Event(EventType.TRADE, 1))
    await bus.settle()
    assert seen == [Event(EventType.TRADE, 1)]


async def test_anything_awaitable_that_a_callback_returns_is_awaited(bus: AsyncEventBus) -> None:
    done = asyncio.get_running_loop().create_future()
    await bus.subscribe(EventType.TRADE, lambda event: asyncio.sleep(0, done.set_result(event)))
    await bus.publish(Event(EventType.TRADE, 1))
    await bus.settle()
    assert done.done()


async def test_a_loop_that_only_publishes_lets_its_subscribers_keep_up(bus: AsyncEventBus) -> None:
    lag = 0
    sent = handled = 0

    async def on_trade(event: Event) -> None:
        nonlocal handled
        handled += 1

    await bus.subscribe(EventType.TRADE, on_trade)
    for sent in range(1, 5_001):
        await bus.publish(Event(EventType.TRADE, sent))
        lag = max(lag, sent - handled)
    assert lag <= 1_000


async def test_publish_nowait_hands_out_at_once(bus: AsyncEventBus) -> None:
    inbox = Inbox()
    await bus.subscribe(EventType.TRADE, inbox.handle)
    assert bus.publish_nowait(Event(EventType.TRADE, 1)).seq == 1
    assert bus.stats().subscriptions[0].pending == 1
    await bus.settle()
    assert inbox.data == [1]


async def test_a_refused_event_burns_no_number(bus: AsyncEventBus) -> None:
    with pytest.raises(EncodeError) as caught:
        await bus.publish(Event(EventType.TRADE, {"legs": [{"price": float("nan")}]}))
    assert caught.value.path == "data['legs'][0]['price']"
    assert (await bus.publish(Event(EventType.TRADE, 1))).seq == 1


@pytest.mark.parametrize(
    ("event", "path"),
    [
        (Event(IntEnum("Kind", "A").A, 1), "type"),  # type: ignore[arg-type]
        (Event("has space", 1), "type"),
        (Event("aiobus.error", 1), "type"),
        (Event(EventType.TRADE, 1, key="x" * 129), "key"),
        (Event(EventType.TRADE, 1, float("nan")), "timestamp"),
        (Event(EventType.TRADE, 1, 1_700_000_000_000), "timestamp"),
        (Event(EventType.TRADE, 1, -1.0), "timestamp"),
    ],
)
async def test_what_cannot_be_published_is_refused_by_name(
    bus: AsyncEventBus, event: Event, path: str
) -> None:
    with pytest.raises(EncodeError) as caught:
        await bus.publish(event)
    assert caught.value.path == path


async def test_publishing_something_else_says_what_to_publish(bus: AsyncEventBus) -> None:
    with pytest.raises(TypeError, match=r"is a dict, not an Event"):
        await bus.publish({"type": "TRADE"})  # type: ignore[type-var]


async def test_a_subscription_ends_itself_twice_without_complaint(bus: AsyncEventBus) -> None:
    subscription = await bus.subscribe(EventType.TRADE, lambda event: None)
    await subscription.unsubscribe()
    await subscription.unsubscribe()
    assert bus.stats().subscriptions == ()


async def test_unsubscribing_what_is_not_subscribed_is_an_error(bus: AsyncEventBus) -> None:
    await bus.subscribe(EventType.TRADE, Inbox().handle)
    with pytest.raises(ValueError, match="is not subscribed to"):
        await bus.unsubscribe(EventType.TRADE, Inbox().handle)


async def test_unsubscribe_does_not_wait_for_the_call_in_progress_and_starts_no_new_one(
    bus: AsyncEventBus,
) -> None:
    started, go = asyncio.Event(), asyncio.Event()
    calls: list[str] = []

    async def on_trade(event: Event) -> None:
        calls.append("started")
        started.set()
        await go.wait()
        calls.append("returned")

    subscription = await bus.subscribe(EventType.TRADE, on_trade)
    await bus.publish(Event(EventType.TRADE, 1))
    await bus.publish(Event(EventType.TRADE, 2))
    await started.wait()
    await subscription.unsubscribe()
    assert calls == ["started"]
    go.set()
    await bus.settle()
    assert calls == ["started", "returned"]


async def test_on_subscribes_at_start_and_leaves_the_function_alone() -> None:
    bus = AsyncEventBus(on_error="raise")
    seen: list[object] = []

    @bus.on(EventType.TRADE, key="BTC")
    async def on_trade(event: Event) -> None:
        seen.append(event.data)

    await on_trade(Event(EventType.TRADE, "direct"))
    async with bus:
        await bus.publish(Event(EventType.TRADE, "published", key="BTC"))
        await bus.settle()
        with pytest.raises(BusError, match="decorate before start"):
            bus.on(EventType.TRADE)
    assert seen == ["direct", "published"]


async def test_wait_for_times_out_and_leaves_nothing_subscribed(bus: AsyncEventBus) -> None:
    with pytest.raises(TimeoutError):
        await bus.wait_for(EventType.FILL, timeout=0.01)
    assert bus.stats().subscriptions == ()


async def test_wait_for_ends_when_the_bus_closes() -> None:
    async with AsyncEventBus() as bus:
        waiting = asyncio.create_task(bus.wait_for(EventType.FILL))
        await asyncio.sleep(0)  # it subscribes before its first await
    with pytest.raises(BusClosed):
        await waiting


async def test_flush_confirms_at_once_where_there_are_no_peers(bus: AsyncEventBus) -> None:
    await bus.publish(Event(EventType.TRADE, 1))
    assert await bus.flush() == []


async def test_settle_waits_for_the_whole_chain_of_handlers(bus: AsyncEventBus) -> None:
    seen: list[str] = []

    async def pass_on(event: Event) -> None:
        await asyncio.sleep(0)
        seen.append(event.type)
        if event.type == "TRADE":
            await bus.publish(Event(EventType.SIGNAL, 1))

    await bus.subscribe([EventType.TRADE, EventType.SIGNAL], pass_on)
    await bus.publish(Event(EventType.TRADE, 1))
    await bus.settle()
    assert seen == ["TRADE", "SIGNAL"]


async def test_settle_names_who_is_still_busy() -> None:
    async with AsyncEventBus() as bus:
        never = asyncio.Event()

        async def stuck(event: Event) -> None:
            await never.wait()

        await bus.subscribe(EventType.TRADE, stuck)
        await bus.publish(Event(EventType.TRADE, 1))
        with pytest.raises(TimeoutError, match=r"stuck\(TRADE\)"):
            await bus.settle(0.05)
        never.set()


async def test_settle_inside_a_handler_is_refused() -> None:
    async with AsyncEventBus(on_error="log") as bus:
        errors: list[BaseException] = []

        async def on_trade(event: Event) -> None:
            try:
                await bus.settle()
            except BusError as error:
                errors.append(error)

        await bus.subscribe(EventType.TRADE, on_trade)
        await bus.publish(Event(EventType.TRADE, 1))
        await bus.settle()
    assert "inside a handler" in str(errors[0])


async def test_stats_count_what_happened(bus: AsyncEventBus) -> None:
    await bus.subscribe(EventType.TRADE, Inbox().handle, key="BTC")
    for number in range(3):
        await bus.publish(Event(EventType.TRADE, number, key="BTC"))
    await bus.settle()
    stats = bus.stats()
    assert (stats.name, stats.published, stats.history_events) == ("desk", 3, 3)
    (mine,) = stats.subscriptions
    assert (mine.query, mine.handled, mine.pending, mine.dropped) == ("TRADE/BTC", 3, 0, 0)
    assert mine.name.endswith("Inbox.handle(TRADE/BTC)")


async def test_the_repr_shows_live_state(bus: AsyncEventBus) -> None:
    subscription = await bus.subscribe(EventType.TRADE, lambda event: None)
    bus.publish_nowait(Event(EventType.TRADE, 1))
    assert repr(bus) == "<AsyncEventBus desk inproc:// open published=1 subscriptions=1 pending=1>"
    assert repr(subscription).endswith("live pending=1 handled=0>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "ftp://x"}, "are the transports there are"),
        ({"url": "inproc://desk"}, "share the object"),
        ({"name": "two words"}, "name='two words' is not 1-64 characters"),
        ({"on_error": "ignore"}, "'log' or 'raise' is needed"),
        ({"url": None}, "url=None: 'inproc://', 'ipc://name' and"),
        ({"url": 5}, "url=5: 'inproc://', 'ipc://name' and"),
        ({"url": object}, "url=<class 'object'>: 'inproc://', 'ipc://name' and"),
        ({"limits": {}}, "limits={}: aiobus.Limits is needed, such as Limits("),
        ({"limits": {"types": 5}}, "limits={'types': 5}: aiobus.Limits is needed"),
        ({"limits": 0}, "limits=0: aiobus.Limits is needed"),
    ],
)
def test_a_wrong_argument_of_the_bus_is_named(arguments: dict[str, Any], message: str) -> None:
    error = TypeError if "limits" in arguments else ValueError
    with pytest.raises(error, match=re.escape(message)):
        AsyncEventBus(**arguments)


@pytest.mark.parametrize("key", ["*", "*USDT", "B*T", "BTC*"])
async def test_a_key_that_no_subscription_could_ask_for_is_refused_before_a_number_is_used(
    bus: AsyncEventBus, key: str
) -> None:
    with pytest.raises(EncodeError, match=re.escape(f"key: {key!r} has a `*`")):
        await bus.publish(Event(EventType.TRADE, 1, key=key))
    assert bus.stats().published == 0


async def test_a_key_given_in_the_place_of_the_timestamp_is_told_to_be_named(
    bus: AsyncEventBus,
) -> None:
    event: Any = Event(EventType.TRADE, 1, "BTC")  # type: ignore[arg-type]
    with pytest.raises(EncodeError, match=r"timestamp: 'BTC' .* Event\(type, data, key=\.\.\.\)"):
        await bus.publish(event)
    assert bus.stats().published == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"overflow": "explode"}, ValueError, "overflow='explode'"),
        ({"where": 5}, TypeError, "where=5"),
        ({"key": []}, ValueError, "matches nothing"),
    ],
)
async def test_a_wrong_argument_of_subscribe_is_named_and_leaves_nothing_subscribed(
    bus: AsyncEventBus, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await bus.subscribe(EventType.TRADE, print, **options)  # type: ignore[arg-type]
    assert bus.stats().subscriptions == ()


async def test_an_async_where_is_refused(bus: AsyncEventBus) -> None:
    async def where(event: Event) -> bool:
        return True

    with pytest.raises(TypeError, match="a plain function is needed"):
        await bus.subscribe(EventType.TRADE, print, where=where)


async def test_a_callback_that_could_never_run_is_refused(bus: AsyncEventBus) -> None:
    async def generator(event: Event):  # type: ignore[no-untyped-def]
        yield event

    with pytest.raises(TypeError, match="is a generator"):
        await bus.subscribe(EventType.TRADE, generator)
    with pytest.raises(TypeError, match="a coroutine function of one event is needed"):
        await bus.subscribe(EventType.TRADE, None)  # type: ignore[arg-type]


CALLS = {
    "publish": lambda bus: bus.publish(Event(EventType.TRADE, 1)),
    "subscribe": lambda bus: bus.subscribe(EventType.TRADE, print),
    "unsubscribe": lambda bus: bus.unsubscribe(EventType.TRADE, print),
    "request": lambda bus: bus.request(Event(EventType.TRADE, 1), EventType.ACK),
    "reply": lambda bus: bus.reply("desk@1.1", Event(EventType.ACK, 1)),
    "wait_for": lambda bus: bus.wait_for(EventType.TRADE),
    "stream": lambda bus: bus.stream(EventType.TRADE).__aenter__(),
    "flush": lambda bus: bus.flush(),
    "settle": lambda bus: bus.settle(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_bus_that_is_not_open_refuses(call: Callable[[AsyncEventBus], Any]) -> None:
    bus = AsyncEventBus()
    with pytest.raises(BusClosed, match="is not started: use it inside `async with"):
        await call(bus)
    await bus.start()
    await bus.close()
    with pytest.raises(BusClosed, match="is closed; nothing was done"):
        await call(bus)


async def test_another_thread_is_told_how_to_publish(bus: AsyncEventBus) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            bus.publish_nowait(Event(EventType.TRADE, 1))
        except WrongLoop as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "asyncio.run_coroutine_threadsafe(bus.publish(event), loop)" in str(errors[0])
    assert bus.stats().published == 0


READS: dict[str, Callable[[AsyncEventBus], object]] = {
    "stats": lambda bus: bus.stats(),
    "stream": lambda bus: bus.stream(EventType.TRADE),
}


@pytest.mark.parametrize("call", READS.values(), ids=READS)
async def test_what_only_reads_is_refused_in_another_thread_as_well(
    bus: AsyncEventBus, call: Callable[[AsyncEventBus], object]
) -> None:
    with pytest.raises(WrongLoop, match="a coroutine of your own that calls stats"):
        await asyncio.to_thread(call, bus)
    call(bus)


async def test_the_counters_of_a_subscription_are_refused_in_another_thread(
    bus: AsyncEventBus,
) -> None:
    subscription = await bus.subscribe(EventType.TRADE, print)
    with pytest.raises(WrongLoop, match="of another thread"):
        await asyncio.to_thread(lambda: subscription.stats)
    assert subscription.stats.handled == 0


def test_the_counters_can_be_read_after_the_loop_has_ended_by_any_thread() -> None:
    async def main() -> AsyncEventBus:
        async with AsyncEventBus(name="desk") as bus:
            await bus.publish(Event(EventType.TRADE, 1))
        return bus

    bus = asyncio.run(main())
    names: list[str] = [bus.stats().name]
    thread = threading.Thread(target=lambda: names.append(bus.stats().name))
    thread.start()
    thread.join()
    assert names == ["desk", "desk"]


def test_a_second_run_is_told_to_make_a_new_bus() -> None:
    bus = AsyncEventBus(name="desk")

    async def main() -> None:
        async with bus:
            pass

    asyncio.run(main())
    says = (
        r"desk was started before and is closed: .* one asyncio.run\(\); make a new AsyncEventBus"
    )
    with pytest.raises(BusError, match=says):
        asyncio.run(main())


async def test_what_is_waited_for_in_vain_is_named(bus: AsyncEventBus) -> None:
    """The text of the TimeoutError was empty."""
    with pytest.raises(TimeoutError, match=r"^no event of \['TRADE'\] within 0.01 s$"):
        await bus.wait_for(["TRADE"], timeout=0.01)


async def test_a_timeout_of_the_caller_is_not_taken_for_that_of_wait_for(
    bus: AsyncEventBus,
) -> None:
    with pytest.raises(TimeoutError, match=r"^$"):
        async with asyncio.timeout(0.01):
            await bus.wait_for("TRADE", timeout=60)


async def test_who_is_at_work_when_a_bus_does_not_settle_is_named_with_what_is_in_hand(
    bus: AsyncEventBus,
) -> None:
    gate = asyncio.Event()
    await bus.subscribe("T", lambda event: gate.wait())
    for number in range(3):
        await bus.publish(Event("T", number))
    with pytest.raises(TimeoutError, match=r"\(T\) \(2 waiting, 1 in hand\)$"):
        await bus.settle(0.01)
    gate.set()


async def test_a_closed_bus_and_a_wrong_unsubscribe_say_what_to_do(bus: AsyncEventBus) -> None:
    with pytest.raises(ValueError, match="give the callback and all the types"):
        await bus.unsubscribe("T", print)
    await bus.close()
    with pytest.raises(BusClosed, match="does not open again, make a new AsyncEventBus"):
        await bus.publish(Event("T", 1))


async def test_the_way_out_for_threads_works(bus: AsyncEventBus) -> None:
    loop = asyncio.get_running_loop()

    def work() -> int:
        coroutine = bus.publish(Event(EventType.TRADE, 1))
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(5).seq

    assert await asyncio.to_thread(work) == 1


async def test_a_thread_with_a_loop_of_its_own_is_told_the_same(bus: AsyncEventBus) -> None:
    async def elsewhere() -> None:
        with pytest.raises(WrongLoop, match=r"of another thread.*run_coroutine_threadsafe"):
            await bus.publish(Event(EventType.TRADE, 1))

    await asyncio.to_thread(lambda: asyncio.run(elsewhere()))


@pytest.mark.parametrize("call", ["publish", "close"])
def test_a_bus_whose_loop_has_ended_says_so_and_what_a_notebook_does(call: str) -> None:
    bus = AsyncEventBus(name="desk")
    asyncio.run(bus.start())

    async def in_the_next_cell() -> None:
        with pytest.raises(WrongLoop, match="an event loop that has ended") as caught:
            await (bus.close() if call == "close" else bus.publish(Event(EventType.TRADE, 1)))
        assert "A notebook has a loop of its own: await bus.start()" in str(caught.value)
        assert "run_coroutine_threadsafe" not in str(caught.value)

    asyncio.run(in_the_next_cell())


def test_outside_of_its_loop_while_that_stands_still_a_bus_says_so() -> None:
    loop = asyncio.new_event_loop()
    bus = AsyncEventBus(name="desk")
    loop.run_until_complete(bus.start())
    with pytest.raises(WrongLoop, match="has ended, or does not run now"):
        bus.publish_nowait(Event(EventType.TRADE, 1))
    loop.run_until_complete(bus.close())
    loop.close()


async def test_a_made_up_name_is_drawn_at_the_start() -> None:
    bus, other = AsyncEventBus(), AsyncEventBus()
    assert (bus.name, bus.stats().name) == ("", "")
    with pytest.raises(BusClosed, match="this bus is not started"):
        await bus.publish(Event(EventType.TRADE, 1))
    async with bus, other:
        assert re.fullmatch(r"bus-[0-9a-f]{8}", bus.name)
        assert bus.name != other.name
        assert (await bus.publish(Event(EventType.TRADE, 1))).source == bus.name
        assert bus.stats().name == bus.name
        assert bus.name in repr(bus)


async def test_a_name_that_was_given_is_there_from_the_beginning() -> None:
    assert AsyncEventBus(name="desk").name == "desk"


async def test_another_loop_is_refused(bus: AsyncEventBus) -> None:
    async def elsewhere() -> None:
        with pytest.raises(WrongLoop):
            await bus.publish(Event(EventType.TRADE, 1))
        with pytest.raises(WrongLoop):
            await bus.subscribe(EventType.TRADE, print)
        with pytest.raises(WrongLoop):
            await bus.close()

    await asyncio.to_thread(lambda: asyncio.run(elsewhere()))


def test_a_bus_that_was_forked_before_its_start_starts_in_both_processes_under_two_names() -> None:
    with tempfile.TemporaryDirectory(prefix="aiobus-") as place:
        bus = AsyncEventBus(f"ipc://{place}/d")
        (told, telling), (ends, ending) = os.pipe(), os.pipe()

        async def stay() -> None:
            async with bus:
                os.write(telling, bus.name.encode())
                await asyncio.to_thread(os.read, ends, 1)

        async def meet(name: str) -> None:
            async with bus:
                assert [each.name for each in bus.peers] == [name]
                assert bus.name != name
                os.write(ending, b".")

        child = os.fork()
        if child == 0:
            code = 1
            try:
                asyncio.run(stay())
                code = 0
            finally:
                os._exit(code)
        asyncio.run(meet(os.read(told, 64).decode()))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        for descriptor in (told, telling, ends, ending):
            os.close(descriptor)


IN_A_CHILD: dict[str, Callable[[AsyncEventBus], Any]] = {
    **CALLS,
    "start": lambda bus: bus.start(),
    "close": lambda bus: bus.close(),
    "wait_closed": lambda bus: bus.wait_closed(),
    "publish_nowait": lambda bus: bus.publish_nowait(Event(EventType.TRADE, 1)),
    "stats": lambda bus: bus.stats(),
}


@pytest.mark.parametrize("call", IN_A_CHILD.values(), ids=IN_A_CHILD)
def test_a_forked_child_is_refused(call: Callable[[AsyncEventBus], Any]) -> None:
    async def main() -> int:
        async with AsyncEventBus() as bus:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    if inspect.isawaitable(made := call(bus)):
                        await made
                except WrongLoop as error:
                    code = 42 if "make a bus of its own here" in str(error) else 2
                finally:
                    os._exit(code)
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            return os.waitstatus_to_exitcode(status)

    assert asyncio.run(main()) == 42
