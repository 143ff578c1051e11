"""`bus.peers` and `bus.wait_for_peer`: who is there, and when what is published is delivered."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from desks import Desk, Seen
from hypothesis import given
from hypothesis import strategies as st
from replays import session, trades

from aiobus import (
    AsyncEventBus,
    BusClosed,
    Event,
    EventType,
    Peer,
    PeerTimeout,
    Replay,
    WrongLoop,
    record,
    run_virtual,
    verify,
)
from aiobus.limits import MAX_TOLD
from aiobus.mesh.session import TELL_SECONDS
from aiobus.presence import MORE, Patterns, Told, patterns_of
from aiobus.query import Query
from aiobus.testing import Faults, MemoryNetwork


async def ignore(event: Event) -> None:
    pass


def peer_of(bus: AsyncEventBus, name: str) -> Peer:
    return next(peer for peer in bus.peers if peer.name == name)


async def until_told(bus: AsyncEventBus, *patterns: str) -> None:
    """Wait until the gateway has told `bus` that it subscribes to this and nothing else."""
    while peer_of(bus, "gateway").subscribed != patterns:  # noqa: ASYNC110 - it is not announced
        await asyncio.sleep(TELL_SECONDS)


# Who is there.


async def test_peers_tell_name_start_silence_and_what_they_subscribe_to(mesh: Desk) -> None:
    before = time.time()
    gateway, feed = await mesh.bus("gateway"), await mesh.bus("feed")
    await gateway.subscribe(EventType.ORDER, ignore)
    await gateway.subscribe(("QUOTE", "TRADE"), ignore, key=["BTC", "a b*"])
    await gateway.subscribe("aiobus.gap", ignore)
    (peer,) = feed.peers
    assert (peer.name, peer.epoch) == ("gateway", gateway.stats().epoch)
    assert peer.subscribed == ("ORDER", "QUOTE/BTC", "QUOTE/a%20b*", "TRADE/BTC", "TRADE/a%20b*")
    assert 0 <= peer.silent < 5
    assert before - 1 < peer.since <= time.time()
    assert [each.name for each in gateway.peers] == ["feed"]
    assert peer_of(gateway, "feed").subscribed == ()


async def test_a_peer_runs_since_the_same_moment_however_often_it_is_asked(mesh: Desk) -> None:
    gateway, feed = await mesh.bus("gateway"), await mesh.bus("feed")
    since = peer_of(feed, "gateway").since
    await feed.subscribe("FILL", ignore)
    await feed.subscribe("ACK", ignore)
    assert peer_of(feed, "gateway").since == since
    assert peer_of(gateway, "feed").since >= since - 1


async def test_what_a_peer_has_unsubscribed_from_is_told(mesh: Desk) -> None:
    gateway, feed = await mesh.bus("gateway"), await mesh.bus("feed")
    order = await gateway.subscribe("ORDER", ignore)
    await gateway.subscribe("CANCEL", ignore)
    assert peer_of(feed, "gateway").subscribed == ("CANCEL", "ORDER")
    await order.unsubscribe()
    await until_told(feed, "CANCEL")


async def test_what_a_peer_asks_for_twice_is_told_until_both_have_ended(mesh: Desk) -> None:
    gateway, feed = await mesh.bus("gateway"), await mesh.bus("feed")
    first = await gateway.subscribe("ORDER", ignore)
    second = await gateway.subscribe(("ORDER", "CANCEL"), ignore)
    await second.unsubscribe()
    await until_told(feed, "ORDER")
    await first.unsubscribe()
    await until_told(feed)


async def test_a_bus_that_has_closed_is_no_peer(mesh: Desk) -> None:
    gateway, feed = await mesh.bus("gateway"), await mesh.bus("feed")
    async with feed.stream("aiobus.peer_left") as left:
        await gateway.close()
        await anext(left)
    assert feed.peers == ()
    assert gateway.peers == ()


async def test_peers_of_a_bus_in_another_thread_are_refused(bus: AsyncEventBus) -> None:
    assert bus.peers == ()
    with pytest.raises(WrongLoop):
        await asyncio.to_thread(lambda: bus.peers)


# Waiting.


async def test_a_peer_that_is_there_is_returned_at_once(mesh: Desk) -> None:
    gateway, feed = await mesh.bus("gateway"), await mesh.bus("feed")
    await gateway.subscribe("ORDER", ignore)
    peer = await feed.wait_for_peer("gateway")
    assert (peer.name, peer.epoch) == ("gateway", gateway.stats().epoch)
    assert await feed.wait_for_peer("gateway", subscribed="ORDER", timeout=5)


async def test_what_is_published_after_the_wait_is_delivered(mesh: Desk) -> None:
    """The peer starts, and then subscribes, after the wait has begun."""
    feed, seen = await mesh.bus("feed"), Seen()
    waiting = asyncio.create_task(feed.wait_for_peer("gateway", subscribed=EventType.ORDER))

    async def publish() -> None:
        await waiting
        await feed.publish(Event(EventType.ORDER, "first"))

    publishing = asyncio.create_task(publish())
    gateway = await mesh.bus("gateway")
    assert not waiting.done()
    await gateway.subscribe("CANCEL", ignore)
    assert not waiting.done()
    await gateway.subscribe(EventType.ORDER, seen.take)
    await seen.until(lambda: bool(seen))
    await publishing
    assert seen.data == ["first"]
    assert "ORDER" in (await waiting).subscribed


@pytest.mark.virtual
async def test_it_is_delivered_though_answers_and_events_are_lost(no_task_is_left: None) -> None:
    """The peer is not taken for ready before it knows where this bus stands: else it would begin
    behind what was published to it.
    """
    network, seen = MemoryNetwork(), Seen()
    async with network.bus("feed") as feed, network.bus("gateway") as gateway:
        await feed.wait_for_peer("gateway")
        lost = {"answer", "events", "beacon"}
        network.faults = Faults(
            loss=lambda message: message.source == "feed" and message.kind in lost
        )
        subscription = await gateway.subscribe("ORDER", seen.take, timeout=0)
        assert subscription.unconfirmed == {"feed"}
        waiting = asyncio.create_task(feed.wait_for_peer("gateway", subscribed="ORDER"))
        await asyncio.sleep(3)
        assert peer_of(feed, "gateway").subscribed == ("ORDER",)
        assert not waiting.done()
        lost.remove("answer")
        await waiting
        await feed.publish(Event("ORDER", "lost on its way"))
        await asyncio.sleep(3)
        lost.clear()
        await seen.until(lambda: bool(seen))
        assert seen.data == ["lost on its way"]


@pytest.mark.virtual
async def test_a_peer_that_does_not_answer_is_waited_for(no_task_is_left: None) -> None:
    network = MemoryNetwork()
    async with network.bus("feed") as feed, network.bus("gateway") as gateway:
        await gateway.subscribe("ORDER", ignore)
        network.faults = Faults(loss=lambda message: message.source == "gateway")
        assert [each.name for each in feed.peers] == ["gateway"]
        for wanted in ("ORDER", None):
            with pytest.raises(PeerTimeout, match="is there, and does not answer: it was last"):
                await feed.wait_for_peer("gateway", subscribed=wanted, timeout=15)
        network.faults = Faults()
        await feed.wait_for_peer("gateway", subscribed="ORDER")


async def test_a_monitor_of_every_type_is_no_subscriber_of_one(mesh: Desk) -> None:
    feed, gateway = await mesh.bus("feed"), await mesh.bus("gateway")
    await gateway.subscribe("*", ignore)
    await feed.wait_for_peer("gateway", subscribed="*")
    with pytest.raises(PeerTimeout) as raised:
        await feed.wait_for_peer("gateway", subscribed="ORDER", timeout=0)
    assert str(raised.value) == (
        "gateway is there and subscribes to *, not to ORDER; its `*` is a monitor's, and counts for"
        " subscribed='*' alone, after 0 s"
    )


async def test_each_key_that_is_asked_for_has_to_be_subscribed(mesh: Desk) -> None:
    feed, gateway = await mesh.bus("feed"), await mesh.bus("gateway")
    await gateway.subscribe("ORDER", ignore, key="BTC")
    await gateway.subscribe("ORDER", ignore, key="ETH*")
    for key in ("BTC", "ETHUSD", ["BTC", "ETH"], "ETHU*"):
        await feed.wait_for_peer("gateway", subscribed="ORDER", key=key)
    for key in (None, "SOL", ["BTC", "SOL"], "E*"):
        with pytest.raises(PeerTimeout, match=r"subscribes to ORDER/BTC ORDER/ETH\*, not to"):
            await feed.wait_for_peer("gateway", subscribed="ORDER", key=key, timeout=0)


async def test_a_timeout_says_who_is_there_and_what_they_subscribe_to(mesh: Desk) -> None:
    feed, monitor = await mesh.bus("feed"), await mesh.bus("monitor")
    await monitor.subscribe(("FILL", "TRADE"), ignore)
    await mesh.bus("idle")
    with pytest.raises(TimeoutError) as raised:
        await feed.wait_for_peer("gateway", subscribed=("ORDER", "CANCEL"), timeout=0.01)
    error = raised.value
    assert isinstance(error, PeerTimeout)
    assert str(error) == (
        "there is no bus 'gateway', but idle (subscribes to nothing),"
        " monitor (subscribes to FILL TRADE), after 0.01 s"
    )
    assert (error.name, error.wanted, error.timeout) == ("gateway", "CANCEL ORDER", 0.01)
    assert error.there == {"idle": [], "monitor": ["FILL", "TRADE"]}


async def test_a_wait_ends_when_the_bus_closes(desk: Desk) -> None:
    feed = await desk.bus("feed")
    waiting = asyncio.create_task(feed.wait_for_peer("gateway", subscribed="ORDER"))
    await asyncio.sleep(0)
    await feed.close()
    with pytest.raises(BusClosed):
        await waiting
    with pytest.raises(BusClosed):
        await feed.wait_for_peer("gateway")


async def test_a_wait_that_is_cancelled_leaves_nothing(mesh: Desk) -> None:
    feed, gateway = await mesh.bus("feed"), await mesh.bus("gateway")
    waiting = asyncio.create_task(feed.wait_for_peer("gateway", subscribed="ORDER"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await gateway.subscribe("ORDER", ignore)
    await feed.wait_for_peer("gateway", subscribed="ORDER")


async def test_the_name_of_a_bus_is_itself_and_no_peer(desk: Desk) -> None:
    bus, seen = await desk.bus("desk"), Seen()
    assert bus.peers == ()
    waiting = asyncio.create_task(bus.wait_for_peer("desk", subscribed="ORDER"))
    await asyncio.sleep(0)
    assert not waiting.done()
    subscription = await bus.subscribe("ORDER", seen.take)
    own = await waiting
    assert (own.name, own.subscribed) == ("desk", ("ORDER",))
    await bus.publish(Event("ORDER", 1))
    await seen.until(lambda: bool(seen))
    await subscription.unsubscribe()
    with pytest.raises(PeerTimeout, match="subscribes to nothing, not to ORDER"):
        await bus.wait_for_peer("desk", subscribed="ORDER", timeout=0)


async def test_on_inproc_the_one_bus_stands_for_each_name(bus: AsyncEventBus) -> None:
    assert (await bus.wait_for_peer("gateway")).name == "desk"
    waiting = asyncio.create_task(bus.wait_for_peer("gateway", subscribed="ORDER"))
    with pytest.raises(PeerTimeout) as raised:
        await bus.wait_for_peer("gateway", subscribed="ORDER", timeout=0)
    assert str(raised.value) == (
        "desk, which has no peers, subscribes to nothing, not to ORDER, after 0 s"
    )
    await bus.subscribe("ORDER", ignore)
    assert (await waiting).name == "desk"


@pytest.mark.virtual
async def test_a_long_wait_is_told_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    network = MemoryNetwork()
    async with network.bus("feed") as feed, network.bus("gateway") as gateway:
        await gateway.subscribe("ORDER", ignore, key="BTC")
        with caplog.at_level(logging.WARNING), pytest.raises(PeerTimeout):
            await feed.wait_for_peer("gateway", subscribed="ORDER", timeout=20)
    (said,) = [line for line in caplog.messages if "waits" in line]
    assert said == (
        "feed waits for gateway: gateway is there and subscribes to ORDER/BTC,"
        " not to ORDER with every key"
    )


REFUSED: list[tuple[Callable[[AsyncEventBus], Any], type[Exception], str]] = [
    (lambda bus: bus.wait_for_peer("a b"), ValueError, "name='a b' is not 1-64 characters"),
    (lambda bus: bus.wait_for_peer(1), TypeError, "name=1 is an int"),
    (lambda bus: bus.wait_for_peer("a", key="BTC"), ValueError, "key='BTC': give the types"),
    (lambda bus: bus.wait_for_peer("a", subscribed="b c"), ValueError, "'b c' is not 1-64"),
    (
        lambda bus: bus.wait_for_peer("a", subscribed="aiobus.gap"),
        ValueError,
        "subscribed='aiobus.gap': no peer gets the system events",
    ),
    (lambda bus: bus.wait_for_peer("a", timeout=-1), ValueError, "timeout=-1: seconds"),
]


@pytest.mark.parametrize(("call", "kind", "text"), REFUSED)
async def test_wrong_arguments_of_a_wait_are_named(
    bus: AsyncEventBus,
    call: Callable[[AsyncEventBus], Any],
    kind: type[Exception],
    text: str,
) -> None:
    with pytest.raises(kind, match=text.replace("(", r"\(")):
        await call(bus)


# Recorded and replayed.


async def test_what_attached_code_is_told_of_its_peers_is_replayed(tmp_path: Path) -> None:
    path, network = tmp_path / "strategy.db", MemoryNetwork()

    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            there = [[each.name, each.since, each.silent, each.subscribed] for each in bus.peers]
            await bus.publish(Event("SEEN", there))

        await bus.subscribe("TRADE", on_trade)
        gateway = await bus.wait_for_peer("gateway", subscribed="ORDER")
        await bus.publish(Event("ORDER", [gateway.epoch, gateway.subscribes("ORDER")]))
        try:
            await bus.wait_for_peer("nobody", timeout=0.01)
        except PeerTimeout as error:
            await bus.publish(Event("ALONE", [str(error), error.there]))

    async with network.bus("strategy") as bus, network.bus("gateway") as gateway:
        alone = asyncio.create_task(gateway.wait_for("ALONE"))
        async with record(bus, path, attach=strategy):
            await gateway.wait_for_peer("strategy", subscribed="TRADE")
            await gateway.publish(Event("TRADE", 1))
            orders: list[Event] = []
            await gateway.subscribe("ORDER", orders.append)
            await alone
            await gateway.flush()
            await bus.settle()
        assert [order.data[1] for order in orders] == [True]
    report = verify(path, strategy)
    assert report.verdict == "AGREES", str(report)
    assert report.agreed == 3


async def test_another_wait_for_a_peer_diverges(tmp_path: Path) -> None:
    path, patience = tmp_path / "strategy.db", [5.0]

    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.wait_for_peer("gateway", subscribed="TRADE", timeout=patience[0])
            await bus.publish(Event("ORDER", 1))

        await bus.subscribe("TRADE", on_trade)

    await session(path, strategy, trades)
    assert verify(path, strategy)
    patience[0] = 6.0
    report = verify(path, strategy)
    assert report.difference is not None
    assert report.difference.recorded == "for gateway subscribed to TRADE with timeout=5"


async def test_code_that_looks_at_its_peers_only_now_diverges(tmp_path: Path) -> None:
    path, looks = tmp_path / "strategy.db", [False]

    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            if looks[0]:
                assert bus.peers == ()
            await bus.publish(Event("ORDER", 1))

        await bus.subscribe("TRADE", on_trade)

    await session(path, strategy, trades)
    assert verify(path, strategy)
    looks[0] = True
    report = verify(path, strategy)
    assert report.difference is not None
    assert "reads peers" in str(report.difference)


async def test_in_a_replay_a_recorded_source_is_there(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    async with AsyncEventBus(name="gateway") as gateway, record(gateway, path):
        await gateway.publish(Event("FILL", 1))
        epoch = gateway.stats().epoch

    async def main() -> None:
        replay = Replay(path)
        async with AsyncEventBus(replay, name="strategy") as bus:
            assert [(each.name, each.epoch) for each in bus.peers] == [("gateway", epoch)]
            peer = await bus.wait_for_peer("gateway", subscribed="ORDER", timeout=1)
            assert (peer.name, peer.subscribed) == ("gateway", (MORE,))
            with pytest.raises(PeerTimeout, match="there is no bus 'risk', but gateway"):
                await bus.wait_for_peer("risk", timeout=1)
            waiting = asyncio.create_task(bus.wait_for_peer("risk", subscribed="ORDER"))
            async with AsyncEventBus(replay.beside(), name="risk") as risk:
                await risk.subscribe("CANCEL", ignore)
                await asyncio.sleep(1)
                assert not waiting.done()
                await risk.subscribe("ORDER", ignore)
                assert (await waiting).subscribed == ("CANCEL", "ORDER")
                assert [each.name for each in bus.peers] == ["gateway", "risk"]
            waiting = asyncio.create_task(bus.wait_for_peer("risk"))
        with pytest.raises(BusClosed):
            await waiting

    run_virtual(main)


# What is told.


TYPES = st.sampled_from(["T", "TRADE", "ORDER", "a.b"])
KEYS = st.sampled_from(["", "BTC", "ETH", "a b", "x/y", "%", "é", "ETHUSD"])
RULES = KEYS | st.builds("{}*".format, KEYS)
QUERIES = st.builds(
    Query.of,
    st.just("*") | st.lists(TYPES, min_size=1, max_size=3),
    st.none() | st.lists(RULES, min_size=1, max_size=4),
)


@given(st.lists(QUERIES, max_size=5), QUERIES)
def test_what_is_told_covers_what_was_asked_for_and_no_event_more(
    queries: list[Query], wanted: Query
) -> None:
    read = Patterns.of(patterns_of(queries))
    for query in queries:
        assert read.cover(query)
    for type in ["T", "TRADE", "ORDER", "a.b"]:
        named = [query for query in queries if type in query.types]
        for key in ["", "BTC", "ETH", "a b", "x/y", "%", "é", "ETHUSD", "other"]:
            is_asked = any(query.matches_key(key) for query in named)
            assert read.cover(Query.of(type, key)) == is_asked
        assert read.may_match_type(type) == any(query.matches_type(type) for query in queries)
    if read.cover(wanted) and not wanted.every:
        for type in wanted.types:
            for key in filter(wanted.matches_key, ["", "BTC", "ETH", "other", "ETHUSD"]):
                assert read.cover(Query.of(type, key))


@given(st.lists(QUERIES, max_size=5), st.lists(QUERIES, max_size=5))
def test_what_was_added_and_removed_leaves_no_trace(kept: list[Query], gone: list[Query]) -> None:
    told = Told()
    for query in [*gone, *kept]:
        told.add(query)
    for query in gone:
        told.remove(query)
    assert tuple(told.text.split()) == patterns_of(kept)


def test_of_many_keys_it_is_told_that_there_are_more() -> None:
    many = Query.of("QUOTE", [f"S{number}" for number in range(5_000)])
    told = patterns_of([many, Query.of("ORDER")])
    assert told == ("ORDER", f"QUOTE/{MORE}")
    read = Patterns.of(told)
    assert read.cover(Query.of("ORDER"))
    assert not read.cover(Query.of("QUOTE", "S1"))
    assert read.types == {"ORDER", "QUOTE"}


def test_of_many_types_it_is_told_that_there_are_more() -> None:
    told = patterns_of([Query.of([f"TYPE{number}" for number in range(5_000)])])
    assert len(" ".join(told)) <= MAX_TOLD
    assert told[0] == MORE
    assert Patterns.of(told).has_more
    assert Patterns.of(told).may_match_type("OTHER")
    assert not Patterns.of(["ORDER"]).has_more


@pytest.mark.parametrize("pattern", ["a b", "ORDER/%", "ORDER/a*b", "aiobus.gap", "/x", "ORDER//"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"is reserved|is not 1-64|is not escaped|has a"):
        Patterns.of([pattern])
