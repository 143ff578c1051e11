"""State that outlives its publisher: who answers for whom, and what is never told."""

import asyncio
import os
import re
import signal
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from actors import Nursery, tcp_url
from desks import Seen

from aiobus import (
    AsyncEventBus,
    BusError,
    Event,
    EventType,
    JournalError,
    JournalFailed,
    JournalInUse,
    Keeper,
    Limits,
    NameInUse,
    StateCorrupt,
    record,
    verify,
)
from aiobus.keeper.file import KeptFile
from aiobus.sequence import LATE
from aiobus.testing import MemoryNetwork

POSITION, HALT, RESUME = EventType.POSITION, EventType.HALT, EventType.RESUME
EVICTED = "history no longer holds it"


class Desk:
    """Makes buses that meet, and keepers; closes them at the end."""

    def __init__(self, make: Callable[..., AsyncEventBus], folder: Path) -> None:
        self.make = make
        self.folder = folder
        self.stack = AsyncExitStack()

    async def bus(self, name: str, **options: Any) -> AsyncEventBus:
        return await self.stack.enter_async_context(self.make(name=name, **options))

    async def keeper(self, **options: Any) -> Keeper:
        return await self.stack.enter_async_context(self.made(**options))

    def made(self, file: str = "state.db", **options: Any) -> Keeper:
        return Keeper(self.make(name="keeper"), self.folder / file, **options)


@pytest.fixture(params=["memory", "ipc", "tcp"])
async def desk(request: pytest.FixtureRequest, no_task_is_left: None) -> AsyncIterator[Desk]:
    with tempfile.TemporaryDirectory(prefix="ab", dir="/tmp") as folder:
        url = tcp_url() if request.param == "tcp" else f"ipc://{folder}/d"
        if request.param == "memory":
            make = MemoryNetwork().bus
        else:

            def make(name: str, **options: Any) -> AsyncEventBus:
                return AsyncEventBus(url, name=name, **options)

        made = Desk(make, Path(folder))
        async with made.stack:
            yield made


@pytest.fixture
async def network(no_task_is_left: None) -> MemoryNetwork:
    return MemoryNetwork()


@asynccontextmanager
async def met(
    network: MemoryNetwork, folder: Path
) -> AsyncIterator[tuple[Keeper, AsyncEventBus, AsyncEventBus]]:
    """A keeper, who asks it, and whose state it holds."""
    async with (
        Keeper(network.bus("keeper"), folder / "s.db") as keeper,
        network.bus("strategy") as strategy,
        network.bus("gateway") as gateway,
    ):
        yield keeper, strategy, gateway


@asynccontextmanager
async def cut_off(network: MemoryNetwork, folder: Path) -> AsyncIterator[AsyncEventBus]:
    """One who asks a keeper that has a position of a gateway, which is cut off from both."""
    async with met(network, folder) as (keeper, strategy, gateway):
        await published(gateway, keeper, position(1))
        network.partition({"keeper", "strategy"}, {"gateway"}, cut=True)
        yield strategy


def position(size: float, key: str = "BTC", **fields: Any) -> Event:
    return Event(POSITION, {"size": size}, key=key, **fields)


async def published(bus: AsyncEventBus, keeper: Keeper, *events: Event) -> None:
    """Publish, and wait until the keeper has it on disk."""
    for event in events:
        await bus.publish(event)
    assert await bus.flush() == []
    await keeper.bus.settle()


async def state(bus: AsyncEventBus, *types: str, **options: Any) -> list[Event]:
    """What a subscription with `since="last"` is told."""
    seen: list[Event] = []
    options = {"since": "last", **options}
    subscription = await bus.subscribe(list(types) or [POSITION, HALT], seen.append, **options)
    assert not subscription.unconfirmed
    await bus.settle()
    await subscription.unsubscribe()
    return seen


async def left(desk: Desk, name: str, keeper: Keeper, *events: Event) -> None:
    """Publish as a bus that ends. The keeper has heard of that when this returns."""
    async with keeper.bus.stream("aiobus.peer_left") as leaving:
        async with desk.make(name=name) as bus:
            await published(bus, keeper, *events)
        async for event in leaving:
            if event.data["name"] == name:
                return


# Who answers.


@pytest.mark.transports
async def test_a_position_outlives_its_publisher(desk: Desk) -> None:
    keeper = await desk.keeper()
    original = position(2.5, timestamp=1_700_000_000.25)
    await left(desk, "gateway", keeper, original)
    (kept,) = await state(await desk.bus("strategy"))
    assert kept == position(2.5)
    assert (kept.source, kept.timestamp, kept.cause) == ("keeper", 1_700_000_000.25, original.id)
    assert kept.past


@pytest.mark.transports
async def test_what_a_publisher_published_last_is_told_though_it_ends_at_once(desk: Desk) -> None:
    await desk.keeper()
    strategy = await desk.bus("strategy")
    for _ in range(3):
        async with desk.make(name="gateway") as gateway:
            for size in range(300):
                await gateway.publish(position(size))
        assert [each.data["size"] for each in await state(strategy)] == [299]


@pytest.mark.transports
async def test_with_both_up_each_position_is_seen_once_and_from_its_publisher(desk: Desk) -> None:
    keeper, gateway = await desk.keeper(), await desk.bus("gateway")
    await published(gateway, keeper, position(1), position(2, "ETH"), position(3))
    seen = await state(await desk.bus("strategy"))
    assert [(each.source, each.key, each.data["size"]) for each in seen] == [
        ("gateway", "ETH", 2),
        ("gateway", "BTC", 3),
    ]


@pytest.mark.transports
async def test_what_is_kept_comes_in_no_other_way_and_leaves_no_hole(desk: Desk) -> None:
    keeper, strategy = await desk.keeper(), await desk.bus("strategy")
    seen: dict[str, list[Event]] = {"live": [], "since": [], "small": []}
    types = [POSITION, "NOTE", "aiobus.gap"]
    await strategy.subscribe(types, seen["live"].append)
    await strategy.subscribe(types, seen["since"].append, since=0)
    await strategy.subscribe(types, seen["small"].append, maxsize=1)
    await keeper.bus.publish(Event("NOTE", 0))
    await left(desk, "gateway", keeper, position(1), position(2, "ETH"))
    assert {each.key for each in await state(strategy)} == {"BTC", "ETH"}
    for note in range(1, 50):  # the small one catches up from before the numbers that were used
        await keeper.bus.publish(Event("NOTE", note))
    await keeper.bus.flush()
    await strategy.settle()
    for events in seen.values():
        assert [each.data for each in events if each.source == "keeper"] == [*range(50)]
        assert {each.type for each in events} == {POSITION, "NOTE"}
    late = await state(strategy, *types, since=0)
    assert [each.data for each in late] == [*range(50)]


@pytest.mark.transports
async def test_a_publisher_that_returns_empty_gets_its_state_and_is_answered_for_until_then(
    desk: Desk,
) -> None:
    keeper, strategy = await desk.keeper(), await desk.bus("strategy")
    await left(desk, "gateway", keeper, position(1), position(2, "ETH"))
    gateway = await desk.bus("gateway")
    assert {each.key: each.data["size"] for each in await state(gateway)} == {"BTC": 1, "ETH": 2}
    await published(gateway, keeper, position(5))
    seen = await state(strategy)
    assert {(each.source, each.key, each.data["size"]) for each in seen} == {
        ("keeper", "ETH", 2),
        ("gateway", "BTC", 5),
    }
    assert len(seen) == 2


@pytest.mark.transports
async def test_a_publisher_with_a_journal_that_returns_answers_by_itself(desk: Desk) -> None:
    keeper, journal = await desk.keeper(), desk.folder / "gateway.db"
    async with desk.make(name="gateway", journal=journal) as gateway:
        await published(gateway, keeper, position(1))
    strategy = await desk.bus("strategy")
    assert [each.source for each in await state(strategy)] == ["keeper"]
    await desk.bus("gateway", journal=journal)
    assert [each.source for each in await state(strategy)] == ["gateway"]


@pytest.mark.transports
async def test_a_publisher_with_a_journal_that_returns_tells_nothing_again_that_the_keeper_told(
    desk: Desk,
) -> None:
    keeper, journal = await desk.keeper(), desk.folder / "gateway.db"
    async with keeper.bus.stream("aiobus.peer_left") as leaving:
        async with desk.make(name="gateway", journal=journal) as gateway:
            await gateway.publish(Event("OTHER", "which no keeper holds"))
            await published(gateway, keeper, position(1), Event(HALT, "x"))
        await anext(leaving)
    strategy, operator, seen = await desk.bus("strategy"), await desk.bus("operator"), Seen()
    await strategy.subscribe([POSITION, HALT, RESUME, "OTHER"], seen.take, since="last")
    await seen.until(lambda: len(seen) == 2)
    await operator.publish(Event(RESUME, "go"))
    await seen.until(lambda: len(seen) == 3)
    gateway = await desk.bus("gateway", journal=journal)
    await gateway.publish(position(2))
    await seen.until(lambda: seen[-1].source == "gateway" and seen[-1].type == POSITION)
    assert [(each.source, each.type) for each in seen] == [
        ("keeper", POSITION),
        ("keeper", HALT),
        ("operator", RESUME),
        ("gateway", "OTHER"),
        ("gateway", POSITION),
    ]
    assert seen[-1].data == {"size": 2}


@pytest.mark.transports
async def test_a_subscription_gets_each_of_thousands_of_keys_once_the_oldest_first(
    desk: Desk,
) -> None:
    keeper = await desk.keeper()
    await left(desk, "gateway", keeper, *(position(n, f"K{n}") for n in range(1_100)))
    seen = await state(await desk.bus("strategy"), maxsize=100)
    assert [each.data["size"] for each in seen] == [*range(1_100)]


async def own_state_of(desk: Desk) -> list[tuple[str, float]]:
    keeper = await desk.keeper()
    await left(desk, "gateway", keeper, position(1))
    gateway = await desk.bus("gateway")
    await gateway.publish(position(7))  # which the keeper may not have by the time it is asked
    return [(each.source, each.data["size"]) for each in await state(gateway)]


@pytest.mark.transports
async def test_what_is_kept_never_comes_behind_what_its_publisher_has_published_since(
    desk: Desk,
) -> None:
    assert await own_state_of(desk) in (
        [("keeper", 1), ("gateway", 7)],
        [("gateway", 7)],
    )


# HALT.


@pytest.mark.transports
async def test_a_halt_outlives_a_restart_of_its_publisher_and_ends_with_a_resume_of_its_key(
    desk: Desk,
) -> None:
    keeper, strategy = await desk.keeper(), await desk.bus("strategy")
    await left(desk, "risk", keeper, Event(HALT, "loss", key="BTC"), Event(HALT, "all"))
    await desk.bus("risk")
    assert {each.data for each in await state(strategy, HALT)} == {"loss", "all"}
    await left(desk, "operator", keeper, Event(RESUME, None, key="BTC"))
    assert [each.data for each in await state(strategy, HALT)] == ["all"]


@pytest.mark.transports
async def test_a_halt_that_was_ended_does_not_come_back_with_the_keeper(desk: Desk) -> None:
    async with desk.make(name="risk") as risk:
        async with desk.made() as keeper:
            await published(risk, keeper, Event(HALT, "loss"))
            await left(desk, "operator", keeper, Event(RESUME, None))
            assert keeper.held == []
        keeper = await desk.keeper()
        assert keeper.held == []
        await published(risk, keeper, Event(HALT, "again"))
        assert keeper.held == [Event(HALT, "again")]


# The keeper goes and comes.


@pytest.mark.transports
async def test_a_keeper_that_starts_again_has_what_was_on_disk_and_learns_what_is_there(
    desk: Desk,
) -> None:
    feed = await desk.bus("feed")
    async with desk.made() as keeper:
        await published(feed, keeper, position(1, "FEED"))
        await left(desk, "gateway", keeper, position(1), Event(HALT, "x"))
    await feed.publish(position(2, "FEED"))
    keeper = await desk.keeper()
    assert {(each.key, str(each.data)) for each in keeper.held} == {
        ("FEED", "{'size': 2}"),
        ("BTC", "{'size': 1}"),
        ("", "x"),
    }
    assert keeper.unseen == ()
    seen = await state(await desk.bus("strategy"))
    assert sorted(each.source for each in seen) == ["feed", "keeper", "keeper"]


@pytest.mark.transports
async def test_who_ended_while_the_keeper_was_down_is_named(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk.make(name="gateway") as gateway:
        async with desk.made() as keeper:
            await published(gateway, keeper, position(1))
        await gateway.publish(position(2))
    keeper = await desk.keeper()
    assert keeper.unseen == ("gateway",)
    assert "these ended while it was down: gateway" in caplog.text
    assert [each.data["size"] for each in await state(await desk.bus("strategy"))] == [1]


@pytest.mark.transports
async def test_what_is_forgotten_is_told_no_more_and_stays_forgotten(desk: Desk) -> None:
    async with desk.made() as keeper:
        await left(desk, "old", keeper, position(1), position(2, "ETH"))
        await left(desk, "new", keeper, position(3))
        assert await keeper.forget(POSITION, source="old", key="BTC") == 1
        assert await keeper.forget(POSITION, source="old", key="BTC") == 0
    keeper = await desk.keeper()
    assert sorted(each.data["size"] for each in keeper.held) == [2, 3]


# One keeper.


@pytest.mark.transports
async def test_a_second_keeper_on_a_desk_is_refused_by_its_name(desk: Desk) -> None:
    await desk.keeper()
    with pytest.raises(NameInUse):
        await desk.keeper(file="other.db")


@pytest.mark.transports
async def test_a_file_has_one_keeper(desk: Desk) -> None:
    await desk.keeper()
    with pytest.raises(JournalInUse):
        async with Keeper(MemoryNetwork().bus("keeper"), desk.folder / "state.db"):
            pass


# Bounds.


@pytest.mark.transports
async def test_beyond_its_bound_a_key_is_counted_announced_and_a_gap_to_who_asks(
    desk: Desk,
) -> None:
    keeper, strategy = await desk.keeper(most=2), await desk.bus("strategy")
    told: list[Event] = []
    await keeper.bus.subscribe("aiobus.error", told.append)
    await left(desk, "gateway", keeper, *(position(1, key) for key in "ABC"))
    assert keeper.refused == 1
    assert "'C') is not held: there is no room" in told[0].data["error"]
    gap, *seen = await state(strategy, POSITION, "aiobus.gap")
    assert (gap.data["source"], gap.data["reason"]) == ("keeper", EVICTED)
    assert [each.key for each in seen] == ["A", "B"]
    assert await state(strategy, HALT, "aiobus.gap") == []


# What it lost.


@pytest.mark.virtual
async def test_what_may_be_old_after_a_gap_is_a_gap_to_who_asks_and_is_asked_for_again(
    network: MemoryNetwork, folder: Path
) -> None:
    async with (
        Keeper(network.bus("keeper"), folder / "s.db", types=[POSITION, "RISK"]) as keeper,
        network.bus("strategy") as strategy,
    ):
        async with network.bus("gateway", limits=Limits(history_events=10)) as gateway:
            await published(gateway, keeper, Event("RISK", 0), position(1, "ETH"), position(1))
            network.partition({"keeper"}, {"gateway"})
            for size in range(100):
                await gateway.publish(position(size))
            await asyncio.sleep(1)
            network.heal()
            await network.settle()
            # RISK was asked for again. Of ETH the publisher does not know any more either.
            assert keeper.doubtful == 1
            assert keeper.held == [Event("RISK", 0), position(1, "ETH"), position(99)]
        gap, *seen = await state(strategy, POSITION, "aiobus.gap")
        assert (gap.data["source"], gap.data["reason"]) == ("keeper", EVICTED)
        assert [(each.key, each.data["size"]) for each in seen] == [("BTC", 99)]
        assert await state(strategy, "RISK", "aiobus.gap") == [Event("RISK", 0)]


# While it is not known who is there.


@pytest.mark.virtual
async def test_while_the_link_to_a_publisher_is_cut_the_keeper_waits_with_its_answer(
    network: MemoryNetwork, folder: Path
) -> None:
    async with cut_off(network, folder) as strategy:
        await asyncio.sleep(0.5)
        seen: list[Event] = []
        began = asyncio.get_running_loop().time()
        await strategy.subscribe(POSITION, seen.append, since="last", timeout=8)
        took = asyncio.get_running_loop().time() - began
        await strategy.settle()
        assert [each.source for each in seen] == ["keeper"]
        assert 4 < took < 6  # virtual seconds: until the link counts as gone


@pytest.mark.virtual
async def test_who_starts_while_the_keeper_waits_comes_behind_what_is_kept(
    network: MemoryNetwork, folder: Path
) -> None:
    async with cut_off(network, folder) as strategy:
        seen: list[Event] = []
        subscribing = asyncio.ensure_future(
            strategy.subscribe(POSITION, seen.append, since="last", timeout=8)
        )
        await asyncio.sleep(0.5)
        async with network.bus("feed") as feed:
            await feed.publish(position(2))
            await feed.publish(position(3))
            await asyncio.sleep(0.5)
            assert seen == []
            await subscribing
            await feed.publish(position(4))
            await asyncio.sleep(5)  # no flush: it names the bus that is cut off
            told = [(each.source, each.data["size"]) for each in seen]
            assert told == [("keeper", 1), ("feed", 2), ("feed", 3), ("feed", 4)]


@pytest.mark.virtual
async def test_a_link_that_is_cut_for_a_moment_brings_nothing_twice(
    network: MemoryNetwork, folder: Path
) -> None:
    async with met(network, folder) as (keeper, strategy, gateway):
        await published(gateway, keeper, position(1))
        network.partition({"keeper"}, {"gateway"}, cut=True)
        await asyncio.sleep(0.5)
        seen: list[Event] = []
        subscribing = asyncio.ensure_future(
            strategy.subscribe(POSITION, seen.append, since="last", timeout=8)
        )
        await asyncio.sleep(1)
        assert seen == []
        network.heal()
        await subscribing
        await network.settle()
        assert [each.source for each in seen] == ["gateway"]


@pytest.mark.virtual
async def test_a_keeper_that_answers_too_late_is_a_gap_and_the_others_are_heard(
    network: MemoryNetwork, folder: Path
) -> None:
    async with (
        Keeper(network.bus("keeper"), folder / "s.db") as keeper,
        network.bus("strategy") as strategy,
        network.bus("feed") as feed,
    ):
        async with network.bus("gateway") as gateway:
            await published(gateway, keeper, position(1))
        await feed.publish(position(2, "FEED"))
        await network.settle()
        network.partition({"keeper"}, {"strategy"})
        seen: list[Event] = []
        await strategy.subscribe([POSITION, "aiobus.gap"], seen.append, since="last", timeout=8)
        await strategy.settle()
        assert [each.source for each in seen] == ["feed"]
        network.heal()
        await asyncio.sleep(10)
        await network.settle()
        assert [each.data["reason"] for each in seen[1:]] == [LATE]
        await keeper.bus.publish(position(3, "OWN"))
        await network.settle()
        assert seen[-1].source == "keeper"


# Its file.


async def test_on_a_full_disk_it_says_so_does_not_answer_and_goes_on_when_there_is_space(
    folder: Path,
) -> None:
    network = MemoryNetwork()
    async with met(network, folder) as (keeper, strategy, gateway):
        connection = keeper._file._connection
        assert connection is not None
        connection.execute("PRAGMA max_page_count = 3")  # the pages that it has: SQLITE_FULL
        failed = asyncio.Event()
        await keeper.bus.subscribe("aiobus.error", lambda event: failed.set())
        await gateway.publish(Event(POSITION, "x" * 10_000, key="BTC"))
        await failed.wait()
        assert keeper.held == []
        await gateway.close()
        stream = strategy.stream(POSITION, since="last", timeout=0.2)
        async with stream:
            connection.execute("PRAGMA max_page_count = 1000")
            assert (await anext(aiter(stream))).source == "keeper"
        assert len(keeper.held) == 1


async def test_a_disk_that_fails_ends_the_bus_of_the_keeper(folder: Path) -> None:
    network = MemoryNetwork()
    async with network.bus("gateway") as gateway:
        with pytest.raises(JournalFailed):
            async with Keeper(network.bus("keeper"), folder / "s.db") as keeper:
                assert keeper._file._connection is not None
                keeper._file._connection.close()
                await gateway.publish(position(1))
                await keeper.bus.wait_closed()


def made_file(folder: Path) -> Path:
    """A file with some events."""
    path = folder / "state.db"
    network = MemoryNetwork()

    async def fill() -> None:
        async with Keeper(network.bus("keeper"), path) as keeper, network.bus("gateway") as bus:
            await published(bus, keeper, *(position(n, f"K{n}") for n in range(20)))

    asyncio.run(fill())
    return path


def opened(path: Path) -> list[Any]:
    file = KeptFile(path)
    try:
        file.open()
        return sorted(file.held)
    finally:
        file.close()


def test_every_damage_of_a_byte_is_refused_or_changes_nothing(folder: Path) -> None:
    path = made_file(folder)
    whole, before = path.read_bytes(), opened(path)
    whole = path.read_bytes()
    refused = 0
    # Most bytes are 0, in space that is not used.
    for place in [place for place, byte in enumerate(whole) if byte][::29]:
        spoilt = bytearray(whole)
        spoilt[place] ^= 0x55
        path.write_bytes(spoilt)
        try:
            assert opened(path) == before, place
        except StateCorrupt:
            refused += 1
            assert path.read_bytes() == bytes(spoilt), "it was changed"
        path.write_bytes(whole)
    assert refused > 10
    assert opened(path) == before


@pytest.mark.parametrize("size", [0, 100, 4096, 8192])
def test_a_file_that_was_cut_is_refused(folder: Path, size: int) -> None:
    path = made_file(folder)
    os.truncate(path, size)
    with pytest.raises(StateCorrupt):
        opened(path)


def test_a_row_that_is_missing_or_came_back_is_refused(folder: Path) -> None:
    path = made_file(folder)
    with closing(sqlite3.connect(path)) as database:
        database.execute("DELETE FROM held WHERE key = 'K3'")
        database.commit()
    with pytest.raises(StateCorrupt, match="it has 19 events, and not the 20"):
        opened(path)


def test_what_is_no_file_of_a_keeper_is_refused(folder: Path) -> None:
    path = folder / "other.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE held (x)")
    with pytest.raises(StateCorrupt, match="not the file of a keeper"):
        opened(path)
    with pytest.raises(JournalError, match="does not exist: make it first"):
        opened(folder / "nowhere" / "s.db")


async def test_a_damaged_file_is_refused_when_a_keeper_starts_and_stays_unlocked(
    folder: Path,
) -> None:
    (folder / "state.db").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(StateCorrupt, match="it is empty"):
            async with Keeper(MemoryNetwork().bus("keeper"), folder / "state.db"):
                pass


# Real deaths.


async def kept_by(nursery: Nursery, url: str, path: Path) -> Any:
    actor = await nursery.actor()
    await actor(
        """
        self.keeper = await Keeper(url, path).__aenter__()
        self.bus = self.keeper.bus
        """,
        url=url,
        path=str(path),
    )
    return actor


@pytest.mark.paired
async def test_a_gateway_and_a_keeper_that_are_killed_have_lost_nothing_that_was_kept(
    nursery: Nursery, folder: Path, url: str
) -> None:
    path = folder / "state.db"
    keeper = await kept_by(nursery, url, path)
    gateway = await nursery.actor()
    await gateway.start(url, "gateway")
    await gateway(
        """
        for size in range(200):
            await bus.publish(Event("POSITION", size, key=f"K{size % 10}"))
        await bus.publish(Event("HALT", "loss"))
        assert await bus.flush() == []
        """
    )
    await keeper("await self.keeper.bus.settle()")
    gateway.kill()
    await gateway.code
    async with AsyncEventBus(url, name="strategy") as strategy:
        first = await state(strategy)  # within its timeout, though the link was cut just now
        assert {each.source for each in first} == {"keeper"}
        keeper.kill()
        await keeper.code
        await kept_by(nursery, url, path)
        await strategy.wait_for_peer("keeper")  # on tcp, the keeper may start before they meet
        again = await state(strategy)
    expected = [(f"K{size % 10}", size) for size in range(190, 200)] + [("", "loss")]
    for seen in (first, again):
        assert [(each.key, each.data) for each in seen] == expected


@pytest.mark.paired
async def test_a_keeper_that_is_killed_while_it_writes_has_a_whole_file_with_what_was_settled(
    nursery: Nursery, folder: Path, url: str
) -> None:
    path = folder / "state.db"
    async with AsyncEventBus(url, name="gateway") as gateway:
        for round in range(4):
            keeper = await kept_by(nursery, url, path)
            await gateway.publish(Event(POSITION, round, key="settled"))
            await gateway.flush()
            await keeper("await self.keeper.bus.settle()")
            for size in range(300):
                await gateway.publish(Event(POSITION, size, key=f"K{size}"))
            keeper.kill()
            await keeper.code
            held = {each.key: each.data for each in opened(path)}
            assert held["settled"] == b"%d" % round


@pytest.mark.paired
async def test_a_keeper_that_is_frozen_holds_up_nobody_for_long(
    nursery: Nursery, folder: Path, url: str
) -> None:
    keeper = await kept_by(nursery, url, folder / "state.db")
    async with (
        AsyncEventBus(url, name="gateway") as gateway,
        AsyncEventBus(url, name="strategy") as strategy,
    ):
        await gateway.publish(position(1))
        keeper.kill(signal.SIGSTOP)
        seen: list[Event] = []
        subscription = await strategy.subscribe(POSITION, seen.append, since="last", timeout=4.5)
        assert subscription.unconfirmed == {"keeper"}
        await strategy.settle()
        assert seen == [position(1)]
        keeper.kill(signal.SIGCONT)


@pytest.mark.one_loop
async def test_as_a_program_it_ends_in_order_with_sigterm_and_names_what_is_wrong(
    folder: Path,
) -> None:
    url, path = f"ipc://{folder}/d", folder / "state.db"

    async def program(*url: str, **environment: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aiobus.keeper", *url, str(path), "POSITION"),
            env={**os.environ, **environment},
            stderr=asyncio.subprocess.PIPE,
        )

    async with AsyncEventBus(url, name="gateway") as gateway:
        running = await program(AIOBUS_URL=url)
        assert running.stderr is not None
        while b"keeps POSITION" not in (line := await running.stderr.readline()):
            assert line
        second = await program(url)
        _, said = await second.communicate()
        assert second.returncode == 1
        assert b"in use" in said or b"already" in said
        await gateway.publish(position(1))
        await gateway.flush()
        running.terminate()
        await running.communicate()
        assert running.returncode == 0
    assert [each.key for each in opened(path)] == ["BTC"]
    interrupted = await program(url)
    assert interrupted.stderr is not None
    while b"keeps POSITION" not in await interrupted.stderr.readline():
        pass
    interrupted.send_signal(signal.SIGINT)
    _, said = await interrupted.communicate()
    assert (interrupted.returncode, b"Traceback" in said) == (130, False)
    path.write_bytes(b"")
    broken = await program(url)
    _, said = await broken.communicate()
    assert broken.returncode == 1
    assert b"is damaged: it is empty" in said
    assert b"Traceback" not in said
    assert b"Warning" not in said


# Recordings.


async def flatten(bus: AsyncEventBus) -> None:
    """A strategy that begins with what is kept."""

    async def on_position(event: Event) -> None:
        await bus.publish(Event("ORDER", -event.data["size"], key=event.key))

    await bus.subscribe(POSITION, on_position, since="last")


def test_a_strategy_that_read_what_was_kept_gets_it_again_when_it_is_verified(
    folder: Path,
) -> None:
    network, path = MemoryNetwork(), folder / "session.db"

    async def live() -> None:
        async with (
            Keeper(network.bus("keeper"), folder / "s.db") as keeper,
            network.bus("strategy") as strategy,
        ):
            async with network.bus("gateway") as gateway:
                await published(gateway, keeper, position(1), position(2, "ETH"))
            async with record(strategy, path, since="last", attach=flatten) as recording:
                await strategy.settle()
                await recording.flush()

    asyncio.run(live())
    report = verify(path, flatten)
    assert report, report
    assert report.agreed == 2


# Wrong arguments.


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"types": "*"}, ValueError, "name the types"),
        ({"types": ["aiobus.gap"]}, ValueError, "name the types"),
        ({"types": []}, ValueError, "no event types"),
        ({"types": 3}, TypeError, "types"),
        ({"ends": {"HALT": "HALT"}}, ValueError, "another that ends it"),
        ({"ends": {"HALT": "*"}}, ValueError, "another that ends it"),
        ({"most": 0}, ValueError, "most=0"),
        ({"most": True}, ValueError, "most=True"),
        ({"bus": 3}, TypeError, "bus=3"),
        ({"bus": "inproc://"}, ValueError, "no peers"),
        ({"bus": "nowhere"}, ValueError, "url='nowhere'"),
    ],
)
async def test_wrong_arguments_are_named_before_anything_is_opened(
    folder: Path, change: dict[str, Any], error: type[Exception], text: str
) -> None:
    given: dict[str, Any] = {"bus": f"ipc://{folder}/d", "path": folder / "s.db", **change}
    with pytest.raises(error, match=re.escape(text)):
        Keeper(given.pop("bus"), given.pop("path"), **given)
    assert not (folder / "s.db").exists()


async def test_a_bus_of_another_name_or_with_a_journal_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="give name='keeper'"):
        Keeper(MemoryNetwork().bus("desk"), folder / "s.db")
    with pytest.raises(ValueError, match="no journal="):
        Keeper(MemoryNetwork().bus("keeper", journal=folder / "j.db"), folder / "s.db")
    with pytest.raises(ValueError, match="no peers"):
        Keeper(AsyncEventBus(name="keeper"), folder / "s.db")


async def test_code_that_is_recorded_makes_no_keeper(folder: Path) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        Keeper(f"ipc://{folder}/d", folder / "s.db")

    async with AsyncEventBus(name="desk") as bus:
        with pytest.raises(BusError, match="recorded or replayed"):
            async with record(bus, folder / "r.db", attach=strategy):
                pass


async def test_a_start_that_is_cancelled_leaves_the_file_free(folder: Path) -> None:
    for steps in range(12):
        network = MemoryNetwork()
        keeper = Keeper(network.bus("keeper"), folder / "s.db")
        starting = asyncio.ensure_future(keeper.__aenter__())
        for _ in range(steps):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled():
            await keeper.__aexit__(None, None, None)
    async with Keeper(MemoryNetwork().bus("keeper"), folder / "s.db"):
        pass
