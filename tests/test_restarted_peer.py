"""A peer that has a journal starts again: what a neighbour hands over, and in which order."""

import asyncio
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from actors import tcp_url

from aiobus import AsyncEventBus, Event, VirtualLoop, wire
from aiobus.durable import SPREAD
from aiobus.errors import CommitFailed, JournalRestored
from aiobus.inbox import Overflow
from aiobus.journal.mark import read_mark, write_mark
from aiobus.mesh.peers import STEADY
from aiobus.testing import Faults, MemoryNetwork

pytestmark = [pytest.mark.usefixtures("no_task_is_left"), pytest.mark.paired]

RESTARTED = "aiobus.peer_restarted"
Make = Callable[..., AsyncEventBus]


@pytest.fixture(params=["memory", "ipc", "tcp"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    """Makes buses that meet."""
    with tempfile.TemporaryDirectory(prefix="ab") as directory:
        url = tcp_url() if request.param == "tcp" else f"ipc://{directory}/d"
        network = MemoryNetwork()

        def bus(name: str, **options: Any) -> AsyncEventBus:
            if request.param == "memory":
                return network.bus(name, **options)
            return AsyncEventBus(url, name=name, **options)

        yield bus


@contextmanager
def commits_held(bus: AsyncEventBus, error: Exception | None = None) -> Iterator[None]:
    """Inside, what the bus publishes waits for its commit, which fails then if there is an error.
    On virtual time no thread commits.
    """
    assert bus._durable is not None
    writer: Any = bus._durable._writer
    store, goes_on = writer._opened, threading.Event()
    commit, step = store.commit, writer._step

    def wait(*batch: Any) -> None:
        goes_on.wait()
        if error is not None:
            raise error
        commit(*batch)

    store.commit = wait
    if writer._thread is None:
        writer._step = lambda store: None
    try:
        yield
    finally:
        goes_on.set()
        if writer._thread is None:
            writer._step = step
            step(store)
        elif error is None:
            store.commit = commit


def noting(seen: list[Any]) -> Callable[[Event], None]:
    """A handler that writes down the data of events and the type of system events."""

    def note(event: Event) -> None:
        if event.type == RESTARTED:
            seen.append((RESTARTED, event.data["start"]))
        else:
            seen.append(event.type if event.type.startswith("aiobus.") else event.data)

    return note


TYPES = ["T", RESTARTED, "aiobus.gap"]


@pytest.mark.parametrize("error", [None, CommitFailed("monitor.db", "the disk is full")], ids=str)
async def test_a_restart_is_announced_before_the_next_event_also_behind_own_events_that_wait(
    make: Make, tmp_path: Path, error: Exception | None
) -> None:
    seen: list[Any] = []
    async with make("monitor", journal=tmp_path / "monitor.db") as monitor:
        await monitor.subscribe(TYPES, noting(seen))
        async with make("desk", journal=tmp_path / "desk.db") as desk:
            await desk.publish(Event("T", 0))
            assert await desk.flush() == []
        await monitor.settle()
        with commits_held(monitor, error):
            monitor.publish_nowait(Event("OWN", 1))
            async with make("desk", journal=tmp_path / "desk.db") as desk:
                await desk.publish(Event("T", 1))
                assert await desk.flush(1.2) == ["monitor"]
                assert seen == [0]
                # Closes with what the monitor has not taken in, which its next start brings.
                await desk.close(0.1)
        async with make("desk", journal=tmp_path / "desk.db") as desk:
            await desk.publish(Event("T", 2))
            assert await desk.flush() == []
        await monitor.settle()
    assert seen == [0, (RESTARTED, 1), (RESTARTED, 2), 1, 2]


async def test_what_was_left_until_a_restart_was_announced_follows_at_once(
    make: Make, tmp_path: Path
) -> None:
    seen: list[Any] = []
    async with make("monitor", journal=tmp_path / "monitor.db") as monitor:
        await monitor.subscribe(TYPES, noting(seen))
        async with make("desk", journal=tmp_path / "desk.db") as desk:
            await desk.publish(Event("T", 0))
            assert await desk.flush() == []
        await monitor.settle()
        desk = make("desk", journal=tmp_path / "desk.db")
        with commits_held(monitor):
            monitor.publish_nowait(Event("OWN", 1))
            await desk.start()
            await desk.publish(Event("T", 1))
            assert await desk.flush(0.3) == ["monitor"]
        assert await desk.flush() == []
        await desk.publish(Event("T", 2))
        assert await desk.close() == []
        await monitor.settle()
    assert seen == [0, (RESTARTED, 1), 1, 2]


async def test_who_did_not_ask_for_restarts_gets_the_next_events_though_a_commit_of_its_bus_hangs(
    make: Make, tmp_path: Path
) -> None:
    seen: asyncio.Queue[object] = asyncio.Queue()
    async with make("monitor", journal=tmp_path / "monitor.db") as monitor, asyncio.timeout(10):
        await monitor.subscribe("T", lambda event: seen.put_nowait(event.data))
        await monitor.subscribe(TYPES, lambda event: None)
        async with make("desk", journal=tmp_path / "desk.db") as desk:
            await desk.publish(Event("T", 0))
        assert await seen.get() == 0
        with commits_held(monitor):
            monitor.publish_nowait(Event("OWN", 1))
            desk = make("desk", journal=tmp_path / "desk.db")
            await desk.start()
            await desk.publish(Event("T", 1))
            assert await seen.get() == 1
        assert await desk.close() == []


async def test_who_subscribes_while_a_restart_waits_for_a_commit_gets_the_restart_first(
    make: Make, tmp_path: Path
) -> None:
    seen: list[Any] = []
    early: asyncio.Queue[object] = asyncio.Queue()
    async with make("monitor", journal=tmp_path / "monitor.db") as monitor, asyncio.timeout(10):
        await monitor.subscribe("T", lambda event: early.put_nowait(event.data))
        async with make("desk", journal=tmp_path / "desk.db") as desk:
            await desk.publish(Event("T", 0))
        assert await early.get() == 0
        desk = make("desk", journal=tmp_path / "desk.db")
        with commits_held(monitor):
            monitor.publish_nowait(Event("OWN", 1))
            await desk.start()
            await desk.publish(Event("T", 1))
            assert await early.get() == 1
            await monitor.subscribe(TYPES, noting(seen))
            await desk.publish(Event("T", 2))
            assert await early.get() == 2
            assert await desk.flush(0.5) == ["monitor"]
            assert seen == []
        assert await desk.close() == []
        await monitor.settle()
    assert seen == [(RESTARTED, 1), 2]


async def test_a_restart_is_announced_before_the_next_event_also_if_the_inbox_is_full(
    make: Make, tmp_path: Path
) -> None:
    """The announcement is left to the history of the bus, behind other events of its own."""
    seen: list[Any] = []
    goes_on = asyncio.Event()
    note = noting(seen)

    async def take(event: Event) -> None:
        await goes_on.wait()
        note(event)
        await asyncio.sleep(0.001)  # pages come meanwhile

    async with make("monitor") as monitor:
        subscription = await monitor.subscribe([*TYPES, "OWN"], take, maxsize=10)
        async with make("desk", journal=tmp_path / "desk.db") as desk:
            await desk.publish(Event("T", 0))
            assert await desk.flush() == []
        for number in range(1, 500):
            await monitor.publish(Event("OWN", -number))
        assert subscription.stats.behind
        restarted = asyncio.create_task(monitor.wait_for(RESTARTED))
        async with make("desk", journal=tmp_path / "desk.db") as desk:
            for number in range(1, 100):
                await desk.publish(Event("T", number))
            await restarted
            goes_on.set()
            assert await desk.flush(20) == []
            await monitor.settle(20)
    before = seen.index((RESTARTED, 1))
    assert sorted(seen[:before], reverse=True) == list(range(0, -500, -1))
    assert [each for each in seen[before + 1 :] if each >= 0] == list(range(1, 100))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("catch_up", [0, 0, (RESTARTED, 1), 1, 1, (RESTARTED, 2), 2, 2]),
        ("block", [0, 0, (RESTARTED, 1), 1, 1, (RESTARTED, 2), 2, 2]),
        ("latest", [0, (RESTARTED, 1), (RESTARTED, 2), 2, 2]),
        ("drop_oldest", [0, (RESTARTED, 1), (RESTARTED, 2), 2, 2]),
    ],
)
async def test_each_restart_is_announced_before_the_next_event_under_each_policy(
    make: Make, tmp_path: Path, policy: Overflow, expected: list[Any]
) -> None:
    seen: list[Any] = []
    entered, goes_on, note = asyncio.Event(), asyncio.Event(), noting(seen)

    async def take(event: Event) -> None:
        entered.set()
        await goes_on.wait()
        note(event)

    maxsize = 4 if policy == "drop_oldest" else 100
    async with make("monitor") as monitor:
        await monitor.subscribe(TYPES, take, overflow=policy, maxsize=maxsize)
        for start in range(3):
            async with make("desk", journal=tmp_path / "desk.db") as desk:
                await desk.publish(Event("T", start, key="one"))
                await entered.wait()
                await desk.publish(Event("T", start, key="other"))
                assert await desk.flush() == []
        goes_on.set()
        await monitor.settle()
    assert seen == expected


@pytest.mark.virtual
@pytest.mark.parametrize("end", ["closes", "is killed"])
async def test_who_subscribes_while_a_source_is_away_gets_all_of_its_next_start_behind_the_restart(
    tmp_path: Path, end: str
) -> None:
    network = MemoryNetwork()
    seen: list[Any] = []
    async with network.bus("monitor") as monitor:
        await monitor.subscribe("T", lambda event: None)
        desk = network.bus("desk", journal=tmp_path / "desk.db")
        await desk.start()
        await desk.publish(Event("T", 0))
        assert await desk.flush() == []
        if end == "is killed":
            network.kill("desk")
        await desk.close(0)
        await asyncio.sleep(0.1)
        await monitor.subscribe(TYPES, noting(seen))
        # Its frames come before its answer, and the first of them is lost.
        network.faults = Faults(loss=lambda message: message.kind == "answer")
        async with network.bus("desk", journal=tmp_path / "desk.db") as desk:
            network.faults = Faults(loss=lambda message: message.kind in ("answer", "events"))
            await desk.publish(Event("T", 1))
            await asyncio.sleep(0.1)
            network.faults = Faults(loss=lambda message: message.kind == "answer")
            await desk.publish(Event("T", 2))
            await asyncio.sleep(0.1)
            assert seen == []
            network.faults = Faults()
            assert await desk.flush() == []
        await monitor.settle()
    assert seen == [(RESTARTED, 1), 1, 2]


# A source that is silent for long.


async def fall_behind(
    monitor: AsyncEventBus, desk: AsyncEventBus, seen: list[Any]
) -> asyncio.Event:
    """A subscription of the monitor misses most of 300 events, until what is returned is set."""
    goes_on, note = asyncio.Event(), noting(seen)

    async def take(event: Event) -> None:
        await goes_on.wait()
        note(event)

    await monitor.subscribe(["T", "aiobus.gap"], take, maxsize=5)
    for number in range(300):
        await desk.publish(Event("T", number))
    await asyncio.sleep(1)
    return goes_on


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a test for hours of virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main)


@pytest.mark.parametrize("seconds", [12, 40, 3000])
@pytest.mark.parametrize("fault", ["silent", "cut", "no pages come"])
def test_a_subscription_misses_nothing_of_a_journal_however_long_its_source_does_not_answer(
    tmp_path: Path, fault: str, seconds: int
) -> None:
    seen: list[Any] = []

    async def main() -> None:
        network = MemoryNetwork()
        async with (
            network.bus("monitor") as monitor,
            network.bus("desk", journal=tmp_path / "desk.db") as desk,
        ):
            goes_on = await fall_behind(monitor, desk, seen)
            if fault == "no pages come":
                network.faults = Faults(loss=lambda message: message.kind == "page")
            else:
                network.partition({"monitor"}, {"desk"}, cut=fault == "cut")
            goes_on.set()
            await asyncio.sleep(seconds)
            assert len(seen) < 20
            network.faults = Faults()
            network.heal()
            await desk.publish(Event("T", 300))
            assert await desk.flush(20) == []
            await network.settle()

    run(main())
    assert seen == list(range(301))


def test_a_subscription_to_the_past_of_a_silent_journal_ends_in_time_and_gets_it_later(
    tmp_path: Path,
) -> None:
    seen: list[Any] = []

    async def main() -> None:
        network = MemoryNetwork()
        async with (
            network.bus("monitor") as monitor,
            network.bus("desk", journal=tmp_path / "desk.db") as desk,
        ):
            await desk.publish(Event("T", 0))
            network.faults = Faults(loss=lambda message: message.kind == "page")
            async with asyncio.timeout(5):
                subscription = await monitor.subscribe(
                    ["T", "aiobus.gap"], noting(seen), since=0, timeout=3
                )
            assert subscription.unconfirmed == {"desk"}
            await desk.publish(Event("T", 1))
            await asyncio.sleep(200)
            await desk.publish(Event("T", 2))
            await asyncio.sleep(1)
            assert seen == []
            network.faults = Faults()
            await network.settle()
            assert subscription.unconfirmed == frozenset()

    run(main())
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("seconds", [3500, 3700])
def test_what_a_subscription_misses_of_a_journal_is_lost_after_an_hour_and_not_before(
    tmp_path: Path, seconds: int
) -> None:
    seen: list[Any] = []

    async def main() -> None:
        network = MemoryNetwork()
        async with network.bus("monitor") as monitor:
            desk = network.bus("desk", journal=tmp_path / "desk.db")
            await desk.start()
            goes_on = await fall_behind(monitor, desk, seen)
            network.kill("desk")
            await desk.close(0)
            goes_on.set()
            await asyncio.sleep(seconds)
            async with network.bus("desk", journal=tmp_path / "desk.db") as desk:
                await desk.publish(Event("T", 300))
                await network.settle()

    run(main())
    if seconds < 3600:
        assert seen == list(range(301))
    else:
        assert [each for each in seen if isinstance(each, str)] == ["aiobus.gap"]


# What a neighbour says that the journal has to have.

FORGED = 2**62


async def forge(stranger: AsyncEventBus, desk: AsyncEventBus) -> None:
    """Another process sends a heartbeat in the name of the desk. All have read it on return."""
    mesh: Any = stranger._transport
    mesh.network.send(wire.heartbeat("desk", desk.stats().epoch, FORGED))
    await stranger.publish(Event("T", "behind it"))
    assert "monitor" not in await stranger.flush(1)


async def test_a_forged_heartbeat_does_not_end_a_bus_that_starts_again_with_its_journal(
    make: Make, tmp_path: Path
) -> None:
    seen: list[Any] = []
    async with make("monitor") as monitor, make("stranger") as stranger:
        await monitor.subscribe(TYPES, noting(seen))
        for number in range(3):
            async with make("desk", journal=tmp_path / "desk.db") as desk:
                await desk.publish(Event("T", number))
                assert await desk.flush() == []
                await forge(stranger, desk)
        await monitor.settle()
    assert [each for each in seen if isinstance(each, int)] == [0, 1, 2]


@pytest.mark.virtual
@pytest.mark.parametrize("when", ["while it runs", "while it is dead", "all the time"])
@pytest.mark.parametrize("away", [0.5, 4.5, 8.0])
async def test_a_flood_of_forged_heartbeats_does_not_end_it_either(
    tmp_path: Path, when: str, away: float
) -> None:
    network = MemoryNetwork()
    seen: list[Any] = []
    goes_on = True

    async def flood() -> None:
        while goes_on:
            await forge(stranger, desk)
            await asyncio.sleep(0.05)

    async with network.bus("monitor") as monitor, network.bus("stranger") as stranger:
        await monitor.subscribe(TYPES, noting(seen))
        for number in range(3):
            desk = network.bus("desk", journal=tmp_path / "desk.db")
            await desk.start()
            await desk.publish(Event("T", number))
            goes_on = when != "while it is dead"
            flooding = asyncio.create_task(flood())
            if number == 0:
                await asyncio.sleep(3 * STEADY)
            goes_on = when == "all the time"
            await flooding if not goes_on else None
            network.kill("desk")
            await desk.close(0)
            if when == "while it is dead":
                goes_on = True
                flooding = asyncio.create_task(flood())
            await asyncio.sleep(away)
            goes_on = False
            await flooding
        async with network.bus("desk", journal=tmp_path / "desk.db") as desk:
            await desk.publish(Event("T", 3))
            assert await desk.flush() == []
        await monitor.settle()
    assert [each for each in seen if isinstance(each, int)] == [0, 1, 2, 3]


@pytest.mark.virtual
@pytest.mark.parametrize("is_cut", [False, True])
@pytest.mark.parametrize("kind", ["heartbeat", "answer", "page"])
async def test_nor_does_a_flood_while_it_is_silent_before_it_dies(
    tmp_path: Path, kind: str, is_cut: bool
) -> None:
    """Then not one of the messages of some seconds is its own."""
    network = MemoryNetwork()
    seen: list[Any] = []
    async with network.bus("monitor") as monitor, network.bus("stranger") as stranger:
        mesh: Any = stranger._transport
        await monitor.subscribe(TYPES, noting(seen))
        desk: Any = network.bus("desk", journal=tmp_path / "desk.db")
        await desk.start()
        await desk.publish(Event("T", 0))
        assert await desk.flush() == []
        network.partition({"desk"}, {"monitor", "stranger"}, cut=is_cut)
        lie = wire.heartbeat("desk", desk.stats().epoch, FORGED)
        me, to = (each._transport.session.me for each in (desk, monitor))  # type: ignore[attr-defined]
        options = desk._publisher.options
        if kind == "page":
            page = (0, 0, 0, FORGED, None, ())
            lie = wire.page(to, 0, "desk", me.epoch, options.begin, *page)
        if kind == "answer":
            lie = wire.mail(to, wire.Answer(0, me, 60.0, FORGED, is_open=True, options=options))
        for _ in range(round(4 * STEADY / 0.1)):
            mesh.network.send(lie)
            await asyncio.sleep(0.1)
        network.kill("desk")
        await desk.close(0)
        network.heal()
        async with network.bus("desk", journal=tmp_path / "desk.db") as desk:
            await desk.publish(Event("T", 1))
            assert await desk.flush() == []
        await monitor.settle()
    assert [each for each in seen if isinstance(each, int)] == [0, 1]


def put_back(copy: Path, folder: Path) -> None:
    """Replace the journal of the desk by a copy of it."""
    for file in folder.glob("desk.db*"):
        file.unlink()
    for file in copy.iterdir():
        shutil.copy(file, folder / file.name)


@pytest.mark.virtual
@pytest.mark.parametrize("types", ["OTHER", "T"])
async def test_a_restored_backup_is_noticed_also_by_a_peer_that_heard_heartbeats_alone(
    tmp_path: Path, types: str
) -> None:
    network = MemoryNetwork()
    path, copy = tmp_path / "desk.db", tmp_path / "copy"
    async with network.bus("monitor") as monitor:
        await monitor.subscribe(types, lambda event: None)
        async with network.bus("desk", journal=path) as desk:
            await desk.publish(Event("T", 0))
        shutil.copytree(tmp_path, copy)
        for _ in range(2):  # on virtual time two starts from one copy have the same numbers
            async with network.bus("desk", journal=path) as desk:
                for number in range(10):
                    last = await desk.publish(Event("T", number))
                await asyncio.sleep(2 * STEADY)
        put_back(copy, tmp_path)
        with pytest.raises(JournalRestored, match=f"up to seq {last.seq}"):
            await network.bus("desk", journal=path).start()


# What is from before the start of its subscriber.


@pytest.mark.parametrize("refusals", [1, 3])
async def test_an_event_of_before_is_past_also_for_a_bus_that_met_an_older_copy_of_its_journal(
    make: Make, tmp_path: Path, refusals: int
) -> None:
    folder, copy, newer = (tmp_path / each for each in ("journal", "copy", "newer"))
    folder.mkdir()
    path, seen = folder / "desk.db", list[tuple[object, bool]]()
    async with make("monitor") as monitor:
        await monitor.subscribe("T", lambda event: None)
        async with make("desk", journal=path) as desk:
            await desk.publish(Event("T", 0))
        shutil.copytree(folder, copy)
        for number in (1, 2):
            async with make("desk", journal=path) as desk:
                await desk.publish(Event("T", number))
                assert await desk.flush() == []
        shutil.copytree(folder, newer)
        async with make("strategy") as strategy:
            await strategy.subscribe(
                ["T", "aiobus.gap"], lambda event: seen.append((event.data, event.past))
            )
            put_back(copy, folder)
            for _ in range(refusals):
                with pytest.raises(JournalRestored):
                    async with make("desk", journal=path) as desk:
                        await desk.wait_closed()
            put_back(newer, folder)
            async with make("desk", journal=path) as desk:
                # If the numbers of the copy were higher, those of the journal are in a gap first.
                for _ in range(2):
                    await desk.publish(Event("T", 3))
                    assert await desk.flush() == []
                await strategy.settle()
    events = [each for each in seen if isinstance(each[0], int)]
    assert events[-1] == (3, False)
    assert all(past for data, past in events if data != 3)


async def publish_many(bus: AsyncEventBus, event: Event, count: int) -> None:
    """Return when the event is committed `count` times."""
    for number in range(count):
        bus.publish_nowait(replace(event))
        if number % 1_000 == 0:
            await bus.settle()
    await bus.settle()


async def test_an_event_of_before_is_past_also_if_a_copy_of_its_journal_used_numbers_below_it(
    make: Make, tmp_path: Path
) -> None:
    """Nothing shows the copy by its numbers: those of the journal go beyond them."""
    folder, copy, newer = (tmp_path / each for each in ("journal", "copy", "newer"))
    folder.mkdir()
    path, seen = folder / "desk.db", list[tuple[object, bool]]()
    async with make("desk", journal=path) as desk:
        await desk.publish(Event("T", "before"))
    shutil.copytree(folder, copy)
    async with make("desk", journal=path) as desk:
        await publish_many(desk, Event("T", "before"), 3 * SPREAD)
    shutil.copytree(folder, newer)
    async with make("strategy") as strategy:
        await strategy.subscribe("OTHER", lambda event: None)
        put_back(copy, folder)
        async with make("desk", journal=path) as desk:
            await publish_many(desk, Event("OTHER", "copy"), SPREAD)
            assert await desk.flush(20) == []
        put_back(newer, folder)
        async with make("desk", journal=path) as desk:
            assert await desk.flush() == []
            await desk.publish(Event("T", "after"))
            await strategy.subscribe(
                "T", lambda e: seen.append((e.data, e.past)), since=0, maxsize=4 * SPREAD
            )
            assert await desk.flush(20) == []
            await strategy.settle(20)
    assert seen[-1] == ("after", False)
    assert {*seen[:-1]} == {("before", True)}


async def test_what_a_source_published_since_its_subscriber_started_is_not_past_however_it_came(
    make: Make, tmp_path: Path
) -> None:
    """The subscriber has known each start of the source, and had not heard of its last events."""
    seen: list[tuple[object, bool]] = []
    async with make("desk", journal=tmp_path / "desk.db") as desk:
        await desk.publish(Event("T", "before"))
        async with make("strategy") as strategy:
            restarts = asyncio.Queue[Event]()
            await strategy.subscribe(RESTARTED, restarts.put)
            for start in range(3):
                await desk.publish(Event("T", start))
                await desk.publish(Event("T", start))
                await desk.close()
                desk = make("desk", journal=tmp_path / "desk.db")
                await desk.start()
                assert (await restarts.get()).data["start"] == start + 1
            await strategy.subscribe("T", lambda e: seen.append((e.data, e.past)), since=0)
            await desk.flush()
            await strategy.settle()
            await desk.close()
    assert seen == [("before", True), *((start, False) for start in (0, 0, 1, 1, 2, 2))]


async def test_what_may_be_of_another_copy_of_a_journal_is_past_up_to_the_start_that_is_there(
    make: Make, tmp_path: Path
) -> None:
    """The mark is of an earlier version, and does not say which start was the one before."""
    seen: list[tuple[object, bool]] = []
    path = tmp_path / "desk.db"
    async with make("strategy") as strategy:
        await strategy.subscribe("T", lambda event: None)
        async with make("desk", journal=path) as desk:
            await desk.publish(Event("T", 0))
            assert await desk.flush() == []
        mark = read_mark(str(path))
        assert mark is not None
        places = {name: place._replace(begins=()) for name, place in mark.reserved.items()}
        write_mark(str(path), mark._replace(reserved=places))
        async with make("desk", journal=path) as desk:
            assert await desk.flush() == []
            await desk.publish(Event("T", 2))
            await strategy.subscribe("T", lambda e: seen.append((e.data, e.past)), since=0)
            assert await desk.flush() == []
            await strategy.settle()
    assert [each for each in seen if each[0] != 2 and not each[1]] == []
    assert seen[0] == (0, True)


async def test_what_was_published_in_a_start_that_was_missed_is_not_past(
    make: Make, tmp_path: Path
) -> None:
    seen: list[tuple[object, bool]] = []
    path = tmp_path / "desk.db"
    async with make("desk", journal=path) as desk:
        await desk.publish(Event("T", "before"))
        async with make("strategy") as strategy:
            await strategy.subscribe("T", lambda event: None)
            await desk.close()
            for start in range(3):
                async with MemoryNetwork().bus("desk", journal=path) as desk:
                    await desk.publish(Event("T", start))
            async with make("desk", journal=path) as desk:
                await desk.publish(Event("T", 3))
                await strategy.subscribe("T", lambda e: seen.append((e.data, e.past)), since=0)
                assert await desk.flush() == []
                await strategy.settle()
    assert seen == [("before", True), *((start, False) for start in range(4))]


async def test_what_a_bus_had_heard_of_when_its_source_started_again_is_not_past(
    make: Make, tmp_path: Path
) -> None:
    seen: list[tuple[object, bool]] = []
    goes_on = asyncio.Event()

    async def take(event: Event) -> None:
        await goes_on.wait()
        seen.append((event.data, event.past))

    async with make("strategy") as strategy:
        subscription = await strategy.subscribe("T", take, maxsize=200)
        async with make("desk", journal=tmp_path / "desk.db") as desk:
            for number in range(100):
                await desk.publish(Event("T", number))
            assert await desk.flush() == []
        assert subscription.pending > 50
        async with make("desk", journal=tmp_path / "desk.db") as desk:
            await desk.publish(Event("T", 100))
            assert await desk.flush() == []
            goes_on.set()
            await strategy.settle()
    assert seen == [(number, False) for number in range(101)]


async def test_an_event_of_before_is_past_also_if_it_is_committed_after_its_subscriber_started(
    make: Make, tmp_path: Path
) -> None:
    seen: list[tuple[object, bool]] = []
    async with make("desk", journal=tmp_path / "desk.db") as desk, asyncio.timeout(10):
        with commits_held(desk):
            desk.publish_nowait(Event("T", "before"))
            gateway = make("gateway")
            await gateway.start()
            await gateway.subscribe("T", lambda event: seen.append((event.data, event.past)))
        await desk.publish(Event("T", "live"))
        assert await desk.flush() == []
        assert await gateway.close() == []
    assert seen == [("before", True), ("live", False)]


@pytest.mark.virtual
@pytest.mark.parametrize("seed", range(3))
async def test_an_event_of_before_is_past_also_if_the_answer_of_its_source_is_late(
    seed: int,
) -> None:
    network = MemoryNetwork(seed=seed)
    seen: list[tuple[object, bool]] = []
    async with network.bus("desk") as desk:
        await desk.publish(Event("T", "before"))
        await asyncio.sleep(1)
        network.faults = Faults(delay=lambda message: 20 * (message.kind == "answer"))
        async with network.bus("strategy") as strategy:
            await strategy.subscribe("T", lambda e: seen.append((e.data, e.past)), since=0)
            await desk.publish(Event("T", "not linked yet"))
            await asyncio.sleep(20)
            network.faults = Faults()
            await desk.publish(Event("T", "live"))
            await network.settle(40)
    assert seen[0] == ("before", True)
    assert seen[-1] == ("live", False)
