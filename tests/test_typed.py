"""Typed payloads: the same objects over every transport, in every way to get an event."""

import asyncio
import datetime
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import orjson
import pydantic
import pytest
from desks import NETWORKS, TRANSPORTS, Desk, Seen, open_desk
from kinds import KINDS, AsModel, AsStruct, Kind

from aiobus import (
    AsyncEventBus,
    EncodeError,
    Event,
    Keeper,
    PayloadError,
    Replay,
    Topic,
    record,
    run_virtual,
    verify,
)

TICK = Topic[AsStruct]("TICK")
GOOD = {"price": 1.5, "legs": []}
BAD = {"price": "1.5", "legs": []}


class Bots(NamedTuple):
    """One that publishes, and two that consume; over inproc:// they are one."""

    feed: AsyncEventBus
    first: AsyncEventBus
    second: AsyncEventBus
    make: Callable[[str], AsyncEventBus]


Take = Callable[[Event], Awaitable[None] | None]


def typed(kind: Kind, take: Take) -> Callable[..., Awaitable[None]]:
    async def handle(event: Any) -> None:
        result = take(event)
        if result is not None:
            await result

    handle.__annotations__["event"] = Event[kind.payload]
    return handle


Way = Callable[[Bots, Kind, str], Awaitable[list[Any]]]


async def by_callback(bots: Bots, kind: Kind, type: str) -> list[Any]:
    seen, other = Seen(), Seen()
    await bots.first.subscribe(type, typed(kind, seen.append))
    await bots.second.subscribe(type, typed(kind, other.append))
    await bots.feed.publish(Event(type, kind.published))
    assert await bots.feed.flush() == []
    await asyncio.gather(bots.first.settle(), bots.second.settle())
    return [*seen.data, *other.data]


async def by_stream(bots: Bots, kind: Kind, type: str) -> list[Any]:
    stream = bots.first.stream(type, payload=kind.payload)
    async with stream as one, bots.second.stream(type, payload=kind.payload) as two:
        await bots.feed.publish(Event(type, kind.published))
        return [(await anext(one)).data, (await anext(two)).data]


async def by_wait_for(bots: Bots, kind: Kind, type: str) -> list[Any]:
    async with asyncio.TaskGroup() as group:
        waits = [
            group.create_task(bus.wait_for(type, payload=kind.payload))
            for bus in (bots.first, bots.second)
        ]
        await asyncio.sleep(0)  # both begin
        # What has begun is live at the feed once another subscription of the same bus is.
        for bus in (bots.first, bots.second):
            await bus.subscribe("MARK", print)
        await bots.feed.publish(Event(type, kind.published))
    return [wait.result().data for wait in waits]


async def by_request(bots: Bots, kind: Kind, type: str) -> list[Any]:
    async def answer(event: Event) -> None:
        await bots.feed.publish(Event(type, kind.published))

    await bots.feed.subscribe(f"ASK.{type}", answer)
    return [
        (await bus.request(Event(f"ASK.{type}", {}), type, payload=kind.payload)).data
        for bus in (bots.first, bots.second)
    ]


async def by_on(bots: Bots, kind: Kind, type: str) -> list[Any]:
    seen = Seen()
    bus = bots.make(f"on-{type}")
    for _ in range(2):
        bus.on(type)(typed(kind, seen.append))
    async with bus:
        feed = bus if bots.feed is bots.first else bots.feed
        await feed.publish(Event(type, kind.published))
        assert await feed.flush() == []
        await bus.settle()
        return seen.data


async def by_page_of_since(bots: Bots, kind: Kind, type: str) -> list[Any]:
    seen, other = Seen(), Seen()
    await bots.feed.publish(Event(type, kind.published))
    await bots.first.subscribe(type, typed(kind, seen.take), since="last")
    await bots.second.subscribe(type, typed(kind, other.take), since=0)
    await seen.until(lambda: bool(seen))
    await other.until(lambda: bool(other))
    return [*seen.data, *other.data]


MANY = 100
"""Events that an inbox of one and a frame behind it do not hold."""


async def by_page_of_catching_up(bots: Bots, kind: Kind, type: str) -> list[Any]:
    seen, other = Seen(is_open=False), Seen(is_open=False)

    for bus, to in ((bots.first, seen), (bots.second, other)):

        async def handle(event: Any, to: Seen = to) -> None:
            await to.take(event)

        await bus.subscribe(type, handle, payload=kind.payload, maxsize=1)
    for _ in range(MANY):
        await bots.feed.publish(Event(type, kind.published))
    for one in (seen, other):
        one.gate.set()
        await one.until(lambda one=one: len(one) == MANY)  # type: ignore[misc]
    assert [event for event in seen if event.data != kind.got] == []
    return [seen[-1].data, other[-1].data]


WAYS: list[Way] = [
    by_callback, by_stream, by_wait_for, by_request, by_on, by_page_of_since,
    by_page_of_catching_up,
]  # fmt: skip


@pytest.mark.paired
@pytest.mark.transports
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_exact_type_arrives_in_every_way(
    way: Way, transport: str, no_task_is_left: None
) -> None:
    async with open_desk(transport) as desk:
        feed, first, second = [await desk.bus(name) for name in ("feed", "first", "second")]
        bots = Bots(feed, first, second, lambda name: desk._make(name=name))
        for name, kind in KINDS.items():
            found = await way(bots, kind, name.upper())
            assert found == [kind.got] * 2, name
            assert [type(each) for each in found] == [type(kind.got)] * 2, name
            assert found[0] is not found[1], name


@pytest.mark.paired
@pytest.mark.transports
@pytest.mark.parametrize("transport", NETWORKS)
async def test_what_a_keeper_holds_is_handed_over_as_the_same_types(
    transport: str, folder: Path, no_task_is_left: None
) -> None:
    async with open_desk(transport) as desk:
        names = [name.upper() for name in KINDS]
        async with Keeper(desk._make(name="keeper"), folder / "state.db", types=names) as keeper:
            async with keeper.bus.stream("aiobus.peer_left") as leaving:
                async with desk._make(name="gateway") as gateway:
                    for name, kind in zip(names, KINDS.values(), strict=True):
                        await gateway.publish(Event(name, kind.published))
                    assert await gateway.flush() == []
                await anext(leaving)
            for name, kind in zip(names, KINDS.values(), strict=True):
                found = []
                for number in range(2):
                    seen, bus = Seen(), await desk.bus(f"{number}-{name}")
                    await bus.subscribe(name, typed(kind, seen.take), since="last")
                    await seen.until(lambda seen=seen: bool(seen))  # type: ignore[misc]
                    assert seen[0].source == "keeper"
                    found += seen.data
                assert found == [kind.got] * 2, name
                assert [type(each) for each in found] == [type(kind.got)] * 2, name


async def test_a_replay_hands_over_the_same_types(folder: Path) -> None:
    path = folder / "desk.db"
    async with AsyncEventBus(name="feed") as feed, record(feed, path):
        for name, kind in KINDS.items():
            await feed.publish(Event(name.upper(), kind.published))

    async def main() -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {name: [] for name in KINDS}
        replay = Replay(path)
        bus = AsyncEventBus(replay, name="bot")
        for name, kind in KINDS.items():
            take = found[name].append
            bus.on(name.upper())(typed(kind, lambda event, take=take: take(event.data)))
        async with bus, asyncio.TaskGroup() as group:
            for name, kind in KINDS.items():
                take = found[name].append

                async def one(name: str, kind: Kind, take: Callable[[Any], None]) -> None:
                    async with bus.stream(name.upper(), payload=kind.payload) as events:
                        take((await anext(events)).data)

                async def wait(name: str, kind: Kind, take: Callable[[Any], None]) -> None:
                    take((await bus.wait_for(name.upper(), payload=kind.payload)).data)

                await bus.subscribe(
                    name.upper(), typed(kind, lambda event, take=take: take(event.data))
                )
                for way in (one, wait):
                    group.create_task(way(name, kind, take))
            await asyncio.sleep(1)  # virtual: all have begun
            await replay.play()
            for name, kind in KINDS.items():

                async def answer(event: Event, name: str = name, kind: Kind = kind) -> None:
                    await bus.publish(Event(f"ANSWER.{name}", kind.published))

                await bus.subscribe(f"ASK.{name}", answer)
                ask = Event(f"ASK.{name}", {})
                reply = await bus.request(ask, f"ANSWER.{name}", payload=kind.payload)
                found[name].append(reply.data)
                page = Seen()
                await bus.subscribe(f"ANSWER.{name}", typed(kind, page.take), since="last")
                await page.until(lambda page=page: bool(page))  # type: ignore[misc]
                found[name] += page.data
        return found

    for name, data in run_virtual(main).items():
        # A handler of `on`, a callback, a stream, `wait_for`, a reply, and a page of `since=`: that
        # is of what the bot has published, since recorded sources have no history.
        assert data == [KINDS[name].got] * 6, name
        assert [type(each) for each in data] == [type(KINDS[name].got)] * 6, name
        assert len(set(map(id, data))) == 6, name


async def consumer(bus: AsyncEventBus) -> None:
    """Publishes which types it was given, and which misfits. It has no handler of `on`, which is
    for a bus that has not started.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def said(way: str, event: Event) -> None:
        await bus.publish(Event("SAID", {"way": way, "type": type(event.data).__name__}))

    async def from_stream(type: str, kind: Kind) -> None:
        async with bus.stream(type, payload=kind.payload) as events:
            for way in ("stream", "step"):
                try:
                    await said(way, await anext(events))
                except PayloadError as error:
                    await bus.publish(Event("SAID", {"misfit": str(error)}))

    async def wait(type: str, kind: Kind) -> None:
        await said("wait_for", await bus.wait_for(type, payload=kind.payload))

    async def on_saved(event: Any) -> None:
        await said("page", event)

    async def on_bad(event: Event[AsStruct]) -> None:
        await said("callback of what fits", event)

    for name, kind in KINDS.items():

        async def on_event(event: Any) -> None:
            await said("callback", event)

        await bus.subscribe(name.upper(), on_event, payload=kind.payload)
        await bus.subscribe(f"SAVED.{name}", on_saved, payload=kind.payload, since="last")
        for way in (from_stream, wait):
            task = asyncio.create_task(way(name.upper(), kind))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    await bus.subscribe("BAD", on_bad)
    reply = await bus.request(Event("ASK", {}), "ANSWER", payload=AsStruct)
    await said("request", reply)


async def test_a_recorded_bot_gets_the_same_types_again(folder: Path) -> None:
    path = folder / "bot.db"
    async with AsyncEventBus(name="bot") as bus:

        async def answer(event: Event) -> None:
            await bus.publish(Event("ANSWER", GOOD))

        await bus.subscribe("ASK", answer)
        said = Seen()
        await bus.subscribe("SAID", said.take)
        for name, kind in KINDS.items():
            await bus.publish(Event(f"SAVED.{name}", kind.published))
        async with record(bus, path, types=["SAID", "BAD"], attach=consumer):
            for name, kind in KINDS.items():
                for data in (kind.published, BAD):
                    await bus.publish(Event(name.upper(), data))
            for data in (BAD, GOOD):
                await bus.publish(Event("BAD", data))
            await bus.settle()
        types = {name: type(kind.got).__name__ for name, kind in KINDS.items()}
        for way in ("callback", "stream", "wait_for", "page"):
            found = [data["type"] for data in said.data if data.get("way") == way]
            assert set(types.values()) <= set(found), way
        assert {"way": "callback of what fits", "type": "AsStruct"} in said.data
        assert {"way": "request", "type": "AsStruct"} in said.data
        assert len([data for data in said.data if "misfit" in data]) >= 4
    report = verify(path, consumer)
    assert report, str(report)
    assert report.agreed == len(said) + 1


# What does not fit.


@pytest.mark.paired
@pytest.mark.transports
async def test_a_misfit_is_counted_and_told_with_its_place_and_the_subscription_goes_on(
    desk: Desk,
) -> None:
    feed, bot = await desk.bus("feed"), await desk.bus("bot")
    seen, errors = Seen(), Seen()
    await bot.subscribe("aiobus.error", errors.take)
    made = await bot.subscribe(TICK, typed(Kind(AsStruct, None, None), seen.append))
    for data in (GOOD, BAD, GOOD):
        last = await feed.publish(Event("TICK", data))
        if data is BAD:
            bad = last.id
    assert await feed.flush() == []
    await errors.until(lambda: bool(errors))
    await bot.settle()
    assert seen.data == [AsStruct(1.5, [])] * 2
    (error,) = errors.data
    assert error["event"] == bad
    assert "data.price: expected float, got str" in error["error"]
    assert error["traceback"] == ""
    assert (made.stats.misfits, made.stats.failed, made.stats.handled) == (1, 0, 3)


async def test_a_stream_raises_at_a_misfit_and_goes_on_behind_it(bus: AsyncEventBus) -> None:
    async with bus.stream("TICK", payload=AsStruct) as ticks:
        for data in (BAD, GOOD):
            await bus.publish(Event("TICK", data))
        with pytest.raises(PayloadError, match=r"data\.price: expected float, got str"):
            await anext(ticks)
        assert (await anext(ticks)).data == AsStruct(1.5, [])
        assert ticks.subscription.stats.misfits == 1


async def test_wait_for_and_request_raise_at_a_misfit(bus: AsyncEventBus) -> None:
    async def answer(event: Event) -> None:
        await bus.publish(Event("ACK", BAD))

    await bus.subscribe("ASK", answer)
    with pytest.raises(PayloadError, match=r"data\.price") as caught:
        await bus.request(Event("ASK", {}), "ACK", payload=AsStruct)
    assert caught.value.type == "ACK"
    wait = asyncio.create_task(bus.wait_for("TICK", payload=AsStruct))
    await asyncio.sleep(0)  # it begins
    await bus.publish(Event("TICK", BAD))
    with pytest.raises(PayloadError, match=r"data\.price"):
        await wait


async def test_a_misfit_may_end_the_bot() -> None:
    async def on_tick(event: Event[AsStruct]) -> None: ...

    with pytest.raises(PayloadError, match=r"data\.price"):
        async with AsyncEventBus() as bus:
            await bus.subscribe("TICK", on_tick, misfit="stop")
            await bus.publish(Event("TICK", BAD))
            await bus.wait_closed()


async def test_a_misfit_raises_where_failures_of_handlers_do() -> None:
    async def on_tick(event: Event[AsStruct]) -> None: ...

    async with AsyncEventBus(on_error="raise") as bus:
        await bus.subscribe("TICK", on_tick)
        await bus.publish(Event("TICK", BAD))
        with pytest.raises(PayloadError, match=r"data\.price"):
            await bus.settle()


async def test_a_plain_handler_beside_a_typed_one_gets_plain_data(bus: AsyncEventBus) -> None:
    plain, made = Seen(), Seen()
    await bus.subscribe("TICK", plain.take)
    await bus.subscribe("TICK", typed(Kind(AsStruct, None, None), made.append))
    await bus.publish(Event("TICK", GOOD))
    await bus.settle()
    assert (plain.data, made.data) == ([GOOD], [AsStruct(1.5, [])])


async def test_where_is_asked_with_plain_data(bus: AsyncEventBus) -> None:
    seen = Seen()
    handle = typed(Kind(AsStruct, None, None), seen.append)
    await bus.subscribe("TICK", handle, where=lambda event: event.data["price"] > 1)
    for price in (1, 2):
        await bus.publish(Event("TICK", {**GOOD, "price": price}))
    await bus.settle()
    assert seen.data == [AsStruct(2.0, [])]


async def test_a_where_that_takes_a_type_is_refused(bus: AsyncEventBus) -> None:
    def is_high(event: Event[AsStruct]) -> bool:
        return event.data.price > 1

    wrong: Any = is_high
    with pytest.raises(TypeError, match="it is asked before the data is converted"):
        await bus.subscribe("TICK", print, where=wrong)
    assert bus.stats().subscriptions == ()


async def test_a_typed_handler_is_unsubscribed_as_it_was_subscribed(bus: AsyncEventBus) -> None:
    async def on_tick(event: Event[AsStruct]) -> None: ...

    await bus.subscribe(TICK, on_tick)
    await bus.unsubscribe(TICK, on_tick)
    assert bus.stats().subscriptions == ()


async def test_four_calls_at_once_get_the_type_too(bus: AsyncEventBus) -> None:
    seen = Seen()
    await bus.subscribe(TICK, seen.take, concurrency=4)
    for _ in range(8):
        await bus.publish(Event(TICK, AsStruct(1.5, [])))
    await bus.settle()
    assert seen.data == [AsStruct(1.5, [])] * 8


@pytest.mark.parametrize("call", ["subscribe", "on", "stream", "wait_for", "request"])
async def test_what_cannot_be_told_apart_is_refused_and_subscribes_nothing(call: str) -> None:
    @dataclass
    class One:
        price: float

    @dataclass
    class Two:
        price: float

    bus = AsyncEventBus()
    payload: Any = One | Two
    if call == "on":
        with pytest.raises(TypeError, match="payload="):
            bus.on("TICK", payload=payload)(print)
        return
    async with bus:
        with pytest.raises(TypeError, match="payload="):
            if call == "subscribe":
                await bus.subscribe("TICK", print, payload=payload)
            elif call == "stream":
                bus.stream("TICK", payload=payload)
            elif call == "wait_for":
                await bus.wait_for("TICK", payload=payload)
            else:
                await bus.request(Event("ASK", {}), "TICK", payload=payload)
        assert bus.stats().subscriptions == ()
        assert bus.stats().published == 0


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"TRDE": AsStruct}, r"payload=\{'TRDE': \.\.\.\}: the types that are asked for are TICK"),
        ({5: AsStruct}, "an event type is a string"),
        ({"aiobus.gap": AsStruct}, "the types that are asked for are TICK"),
    ],
)
async def test_a_payload_of_a_type_that_is_not_asked_for_is_refused(
    bus: AsyncEventBus, payload: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        await bus.subscribe("TICK", print, payload=payload)
    await bus.subscribe("*", print, payload={"TRDE": AsStruct})


async def test_a_type_that_system_events_would_not_get_is_refused(bus: AsyncEventBus) -> None:
    async def on_tick(event: Event[AsStruct]) -> None: ...

    for types in ("aiobus.error", "aiobus.*", ["TICK", "aiobus.gap"]):
        with pytest.raises(TypeError, match=r"payload=\{TYPE: Class"):
            await bus.subscribe(types, on_tick)
        with pytest.raises(TypeError, match=r"payload=\{TYPE: Class"):
            bus.stream(types, payload=AsStruct)
    assert bus.stats().subscriptions == ()
    await bus.subscribe(["TICK", "aiobus.gap"], print, payload={"TICK": AsStruct})


# What is published: the refusals of a dict, with the same places.


@dataclass
class ADataclass:
    value: Any


class AStruct(msgspec.Struct):
    value: Any


class AModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    value: Any


REFUSED: dict[str, Any] = {
    "NaN": float("nan"),
    "infinity": float("inf"),
    "65 bits": 2**64,
    "naive": datetime.datetime(2026, 11, 29),
    "set": {1},
    "bytes": b"1",
    "object": object(),
    "function": print,
    "key": {1: 2},
    "surrogate": "\ud800",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("make", [ADataclass, AStruct, AModel])
@pytest.mark.parametrize("nested", [False, True])
async def test_what_a_dict_may_not_hold_is_refused_with_the_same_place(
    bus: AsyncEventBus, name: str, make: Any, nested: bool
) -> None:
    value = [{"deep": REFUSED[name]}] if nested else REFUSED[name]
    places = []
    for data in ({"value": value}, make(value=value)):
        with pytest.raises(EncodeError) as caught:
            await bus.publish(Event("TICK", data))
        places.append((caught.value.path, caught.value.reason))
    assert places[0][0].replace("data['value']", "data.value") == places[1][0]
    assert places[0][1] == places[1][1]
    assert bus.stats().published == 0


@dataclass
class PrivateDataclass:
    price: float
    _secret: int = 1


class PrivateStruct(msgspec.Struct):
    price: float
    _secret: int = 1


class PrivateModel(pydantic.BaseModel):
    price: float
    _secret: int = pydantic.PrivateAttr(1)


@pytest.mark.parametrize("make", [PrivateDataclass, PrivateStruct, PrivateModel])
@pytest.mark.parametrize("nested", [False, True])
async def test_a_private_field_is_refused_since_it_would_not_travel(
    bus: AsyncEventBus, make: Any, nested: bool
) -> None:
    data = {"legs": [make(price=1.0)]} if nested else make(price=1.0)
    with pytest.raises(EncodeError, match="private field _secret, which would not") as caught:
        await bus.publish(Event("TICK", data))
    assert caught.value.path == ("data['legs'][0]" if nested else "data")


class AroundAny(pydantic.BaseModel):
    inner: Any


class AroundModel(pydantic.BaseModel):
    inner: PrivateModel


class AroundDataclass(pydantic.BaseModel):
    inner: list[PrivateDataclass]


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (AroundAny(inner=PrivateModel(price=1.0)), "data.inner"),
        (AroundAny(inner=PrivateStruct(price=1.0)), "data.inner"),
        (AroundModel(inner=PrivateModel(price=1.0)), "data.inner"),
        (AroundDataclass(inner=[PrivateDataclass(price=1.0)]), "data.inner[0]"),
    ],
)
async def test_a_model_does_not_hide_a_private_field_below_it(
    bus: AsyncEventBus, data: Any, path: str
) -> None:
    with pytest.raises(EncodeError, match="private field _secret, which would not") as caught:
        await bus.publish(Event("TICK", data))
    assert caught.value.path == path


Text = Annotated[int, pydantic.PlainSerializer(str)]


class Serialized(pydantic.BaseModel):
    texts: list[Text]
    left_out: int = pydantic.Field(1, exclude=True)

    @pydantic.computed_field
    def twice(self) -> int:
        return 2


class More(AsModel):
    more: int


class AroundMore(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    inner: AsModel


async def test_a_model_travels_as_it_says_and_else_with_all_of_its_fields(
    bus: AsyncEventBus,
) -> None:
    seen = Seen()
    await bus.subscribe("TICK", seen.take)
    await bus.publish(Event("TICK", Serialized(texts=[1])))
    more = More(price=1.5, legs=[], more=3)
    await bus.publish(Event("TICK", AroundMore(inner=more, extra=4)))  # type: ignore[call-arg]
    await bus.settle()
    plain = {"inner": {"price": 1.5, "legs": [], "more": 3}, "extra": 4}
    assert seen.data == [{"texts": ["1"], "twice": 2}, plain]


class Dumped(pydantic.BaseModel):
    price: float
    note: str = pydantic.Field("", exclude=True)

    @pydantic.computed_field
    def twice(self) -> float:
        return 2 * self.price


class Needed(Dumped):
    note: str = pydantic.Field(exclude=True)


class Private(pydantic.BaseModel):
    price: float
    _secret: int = pydantic.PrivateAttr(1)


class MorePrivate(Private):
    more: int


class AroundDumped(pydantic.BaseModel):
    dumped: Dumped
    inner: Private


async def test_of_a_model_that_dumps_itself_computed_fields_travel_and_excluded_ones_do_not() -> (
    None
):
    """Who asks for the same model ignores the first, and gets the default of the second."""
    seen, again = Seen(), Seen()
    async with AsyncEventBus() as bus:
        await bus.subscribe(["DUMPED", "NEEDED", "AROUND"], seen.append)
        await bus.subscribe("DUMPED", again.append, payload=Dumped)
        needed = await bus.subscribe("NEEDED", again.append, payload=Needed)
        await bus.publish(Event("DUMPED", Dumped(price=1.5, note="mine")))
        await bus.publish(Event("NEEDED", Needed(price=1.5, note="mine")))
        inner = MorePrivate(price=1.5, more=3)
        await bus.publish(Event("AROUND", AroundDumped(dumped=Dumped(price=1.5), inner=inner)))
        await bus.settle()
        assert needed.stats.misfits == 1
    dump = {"price": 1.5, "twice": 3.0}
    around = {"dumped": dump, "inner": {"price": 1.5}}
    assert seen.data == [dump, dump, around]
    assert again.data == [Dumped(price=1.5)]


class Rounded:
    """A descriptor that shows less than the object holds."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, value: Any, owner: type) -> Any:
        return 0.0 if value is None else round(value.__dict__[self.name])

    def __set__(self, value: Any, given: float) -> None:
        value.__dict__[self.name] = given


@dataclass
class WithDescriptor:
    price: float = Rounded()  # type: ignore[assignment]


@dataclass(slots=True)
class WithSlots:
    price: float


def with_more() -> Any:
    data: Any = ADataclass(1)
    data.more = 2
    return data


def with_less() -> Any:
    data: Any = AStruct(1)
    del data.value
    return data


async def test_what_travels_of_an_object_are_its_fields_as_they_read(bus: AsyncEventBus) -> None:
    seen = Seen()
    await bus.subscribe("TICK", seen.take)
    for data in (WithDescriptor(1.7), WithSlots(1.5), with_more()):
        await bus.publish(Event("TICK", data))
    with pytest.raises(EncodeError, match="value"):
        await bus.publish(Event("TICK", with_less()))
    await bus.settle()
    assert seen.data == [{"price": 2}, {"price": 1.5}, {"value": 1}]


class Renamed(msgspec.Struct, rename="camel", tag="trade"):
    last_price: float


class Aliased(pydantic.BaseModel):
    last_price: float = pydantic.Field(alias="lastPrice")


async def test_what_travels_has_the_names_of_the_type_and_comes_back_as_it(
    bus: AsyncEventBus,
) -> None:
    plain, made = Seen(), Seen()
    await bus.subscribe(["RENAMED", "ALIASED"], plain.take)
    await bus.subscribe("RENAMED", made.take, payload=Renamed)
    await bus.subscribe("ALIASED", made.take, payload=Aliased)
    sent = [Renamed(1.5), Aliased(lastPrice=1.5)]
    for type, data in zip(("RENAMED", "ALIASED"), sent, strict=True):
        await bus.publish(Event(type, data))
    await bus.settle()
    assert plain.data == [{"type": "trade", "lastPrice": 1.5}, {"lastPrice": 1.5}]
    assert made.data == sent
    assert orjson.loads(msgspec.json.encode(sent[0])) == plain.data[0]
