"""Publishing with a journal: what was published survives, and is handed to nobody before. And where
a subscription begins that goes on behind what was handled before.
"""

import asyncio
import errno
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from journals import fill

from aiobus import AsyncEventBus, Event, Journal, Limits, durable
from aiobus.bus import parts_of
from aiobus.errors import (
    CommitFailed,
    JournalFailed,
    JournalInUse,
    JournalRestored,
    QueueFull,
    RequestInterrupted,
)
from aiobus.event import event_id
from aiobus.journal.mark import read_mark
from aiobus.testing import Faults, MemoryNetwork


def stored(path: Path) -> list[tuple[int, str, object]]:
    with Journal(path) as journal:
        return [(event.seq, event.type, event.data) for _, event in journal.read()]


async def test_an_event_is_in_the_file_before_a_handler_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    seen: list[object] = []

    async def look(event: Event) -> None:
        seen.append((event.seq, event.type, event.data) in stored(path))

    async with AsyncEventBus(name="desk", journal=path) as bus:
        await bus.subscribe("T", look)
        for number in range(10):
            await bus.publish(Event("T", number))
        await bus.settle()
    assert seen == [True] * 10


async def test_numbers_go_on_in_the_epoch_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    async with AsyncEventBus(name="desk", journal=path) as bus:
        first = await bus.publish(Event("T", 1))
    async with AsyncEventBus(name="desk", journal=path) as bus:
        second = await bus.publish(Event("T", 2))
    assert second.epoch == first.epoch
    assert second.seq > first.seq
    assert [data for _, _, data in stored(path)] == [1, 2]


async def test_history_reaches_back_into_the_file(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    async with AsyncEventBus(name="desk", journal=path) as bus:
        for number in range(100):
            await bus.publish(Event("T", number))
    async with AsyncEventBus(name="desk", journal=path) as bus:
        seen: list[Event] = []
        await bus.subscribe("T", seen.append, since=0)
        await bus.publish(Event("T", 100))
        await bus.settle()
    assert [event.data for event in seen] == list(range(101))
    assert [event.past for event in seen] == [True] * 100 + [False]


async def test_concurrent_publishers_share_commits_and_are_handed_out_in_order(
    tmp_path: Path,
) -> None:
    path = tmp_path / "desk.db"
    async with AsyncEventBus(name="desk", journal=path) as bus:
        seen: list[int] = []
        await bus.subscribe("T", lambda event: seen.append(event.seq))
        await asyncio.gather(*(bus.publish(Event("T", number)) for number in range(500)))
        await bus.settle()
    assert seen == sorted(seen)
    assert seen == [seq for seq, _, _ in stored(path)]


async def test_a_publish_that_is_cancelled_has_published(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    async with AsyncEventBus(name="desk", journal=path) as bus:
        seen: list[object] = []
        await bus.subscribe("T", lambda event: seen.append(event.data))
        task = asyncio.create_task(bus.publish(Event("T", 1)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await bus.settle()
    assert seen == [1]
    assert [data for _, _, data in stored(path)] == [1]


async def test_a_publish_that_is_cancelled_while_it_waits_for_room_has_published_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, event = tmp_path / "desk.db", Event("T", "cancelled")
    async with AsyncEventBus(name="desk", journal=path) as bus:
        with monkeypatch.context() as patched:
            patched.setattr(durable, "MAX_UNCOMMITTED", 0)
            task = asyncio.create_task(bus.publish(event))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert event.seq == 0
        await bus.publish(Event("T", "next"))
    assert [(seq, data) for seq, _, data in stored(path)] == [(1, "next")]


async def test_who_subscribes_between_number_and_commit_gets_the_event(tmp_path: Path) -> None:
    async with AsyncEventBus(name="desk", journal=tmp_path / "desk.db") as bus:
        seen: list[object] = []
        bus.publish_nowait(Event("T", 1))
        await bus.subscribe("T", lambda event: seen.append(event.data))
        await bus.settle()
    assert seen == [1]


async def test_system_events_wait_for_what_was_numbered_before_them(tmp_path: Path) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError

    async with AsyncEventBus(name="desk", journal=tmp_path / "desk.db") as bus:
        seen: list[int] = []
        await bus.subscribe(["T", "aiobus.error"], lambda event: seen.append(event.seq))
        await bus.subscribe("T", fail)
        for number in range(50):
            bus.publish_nowait(Event("T", number))
            if number % 10 == 0:
                await asyncio.sleep(0.001)
        await bus.settle()
    assert len(seen) == 100
    assert seen == sorted(seen)


async def test_a_new_epoch_begins_at_1(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    async with AsyncEventBus(name="desk", journal=path) as bus:
        first = await bus.publish(Event("T", 1))
    async with AsyncEventBus(name="desk", journal=path, new_epoch=True) as bus:
        second = await bus.publish(Event("T", 2))
    assert second.epoch > first.epoch
    assert second.seq == 1
    assert [data for _, _, data in stored(path)] == [1, 2]


async def test_a_bus_that_never_started_leaves_no_journal(tmp_path: Path) -> None:
    bus = AsyncEventBus(name="desk", journal=tmp_path / "desk.db")
    await bus.close()
    assert os.listdir(tmp_path) == []


async def test_a_journal_that_is_in_use_leaves_the_second_bus_closed(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    async with AsyncEventBus(name="desk", journal=path) as bus:
        with pytest.raises(JournalInUse, match="is written by"):
            await AsyncEventBus(name="desk", journal=path).start()
        await bus.publish(Event("T", 1))
    assert [data for _, _, data in stored(path)] == [1]


async def test_a_reply_to_a_journaled_request_is_never_missed(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with (
        network.bus("strategy", journal=tmp_path / "strategy.db") as strategy,
        network.bus("gateway") as gateway,
    ):

        async def answer(order: Event) -> None:
            await gateway.publish(Event("ACK", order.data))

        await gateway.subscribe("ORDER", answer)
        replies = await asyncio.gather(
            *(strategy.request(Event("ORDER", number), "ACK") for number in range(100))
        )
    assert [reply.data for reply in replies] == list(range(100))


async def test_a_restored_backup_is_noticed_when_the_first_peer_is_there(tmp_path: Path) -> None:
    path, copy = tmp_path / "desk.db", tmp_path / "copy"
    network = MemoryNetwork()
    async with network.bus("monitor") as monitor:
        await monitor.subscribe("T", print)
        async with network.bus("desk", journal=path) as desk:
            await desk.publish(Event("T", 1))
        shutil.copytree(tmp_path, copy)
        async with network.bus("desk", journal=path) as desk:
            last = await desk.publish(Event("T", 2))
            await network.settle()
        for file in copy.iterdir():
            shutil.copy(file, tmp_path / file.name)
        with pytest.raises(JournalRestored, match=f"up to seq {last.seq}") as raised:
            await network.bus("desk", journal=path).start()
        assert raised.value.seq == last.seq
        async with network.bus("desk", journal=path, new_epoch=True) as desk:
            await desk.publish(Event("T", 3))
            assert await desk.flush() == []


async def test_a_journal_remembers_above_which_seq_each_of_its_last_starts_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "MAX_BEGINS", 3)
    path, begins = tmp_path / "desk.db", list[int]()
    for start in range(5):
        async with AsyncEventBus(name="desk", journal=path) as bus:
            options = parts_of(bus).publisher.options
            begins.append(options.begin)
            assert (options.start, options.begins) == (start, (*begins[-3:],))
        mark = read_mark(str(path))
        assert mark is not None
        assert mark.reserved["desk"].begins == options.begins
    assert begins[0] == 0


async def test_a_neighbour_hears_of_a_restart_before_the_next_event(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    network = MemoryNetwork()
    seen: list[object] = []

    def note(event: Event) -> None:
        seen.append(event.data if event.type == "T" else event.type)

    async with network.bus("monitor") as monitor:
        await monitor.subscribe(
            ["T", "aiobus.peer_restarted", "aiobus.peer_left", "aiobus.gap"], note
        )
        for number in range(3):
            async with network.bus("desk", journal=path) as desk:
                await desk.publish(Event("T", number))
                assert await desk.flush() == []
        await network.settle()
    restart = ["aiobus.peer_left", "aiobus.peer_restarted"]
    assert seen == [0, *restart, 1, *restart, 2, "aiobus.peer_left"]


@pytest.mark.one_loop
async def test_what_a_lagging_peer_has_missed_follows_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    network = MemoryNetwork()
    async with (
        network.bus("monitor") as monitor,
        monitor.stream(["T", "aiobus.gap"], maxsize=5) as events,
    ):
        async with network.bus("desk", journal=path) as desk:
            for number in range(100):
                await desk.publish(Event("T", number))
            network.kill("desk")
        async with network.bus("desk", journal=path) as desk:
            await desk.publish(Event("T", 100))
            seen = [(await anext(events)).data for _ in range(101)]
    assert seen == list(range(101))


async def test_a_request_ends_at_once_when_the_bus_that_could_answer_has_started_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "gateway.db"
    network = MemoryNetwork()
    async with network.bus("strategy") as strategy, network.bus("monitor") as monitor:
        await monitor.subscribe("*", lambda event: None)
        gateway = network.bus("gateway", journal=path)
        await gateway.start()
        has_come = asyncio.Event()
        await gateway.subscribe("ORDER", lambda event: has_come.set())
        order = Event("ORDER", 1)
        request = asyncio.create_task(strategy.request(order, "ACK", timeout=None))
        await has_come.wait()
        network.kill("gateway")
        await gateway.close(0)
        async with network.bus("gateway", journal=path):
            with pytest.raises(RequestInterrupted, match="gateway has left or started") as raised:
                await request
    assert raised.value.event is order


async def test_a_request_that_another_bus_can_answer_goes_on(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with network.bus("strategy") as strategy, network.bus("other") as other:
        asked = asyncio.Event()

        async def answer(order: Event) -> None:
            await asked.wait()
            await other.publish(Event("ACK", order.data))

        await other.subscribe("ORDER", answer)
        async with network.bus("gateway", journal=tmp_path / "gateway.db") as gateway:
            await gateway.subscribe("ORDER", lambda event: None)
            request = asyncio.create_task(strategy.request(Event("ORDER", 1), "ACK"))
            await strategy.flush()
        asked.set()
        assert (await request).data == 1


def fill_disk(bus: AsyncEventBus) -> Callable[[], None]:
    """As `fill`, for the journal of a bus."""
    assert bus._durable is not None
    return fill(bus._durable._writer._opened)


BIG = "x" * 20_000
size_of = os.path.getsize


def put_back(copy: Path, folder: Path) -> None:
    """Replace a journal by a copy of it."""
    for file in folder.glob("desk.db*"):
        file.unlink()
    for file in copy.iterdir():
        shutil.copy(file, folder / file.name)


async def test_on_a_full_disk_publish_raises_and_hands_out_nothing_until_there_is_space(
    tmp_path: Path,
) -> None:
    path = tmp_path / "desk.db"
    async with AsyncEventBus(name="desk", journal=path) as bus:
        seen: list[object] = []
        await bus.subscribe("T", lambda event: seen.append(event.data))
        await bus.publish(Event("T", 0))
        make_space = fill_disk(bus)
        failing = Event("T", BIG)
        with pytest.raises(CommitFailed, match="full"):
            await bus.publish(failing)
        assert failing.seq == 0
        make_space()
        again = await bus.publish(failing)
        await bus.settle()
        assert seen == [0, BIG]
    assert [seq for seq, _, _ in stored(path)] == [1, again.seq]
    assert again.seq > 2


async def test_an_event_that_is_not_committed_and_not_awaited_is_an_error_event(
    tmp_path: Path,
) -> None:
    async with AsyncEventBus(name="desk", journal=tmp_path / "desk.db") as bus:
        seen: list[Event] = []
        await bus.subscribe("aiobus.error", seen.append)
        make_space = fill_disk(bus)
        one, other = Event("T", BIG), Event("T", BIG)
        bus.publish_nowait(one)
        ids = [one.id]
        task = asyncio.create_task(bus.publish(other))
        await asyncio.sleep(0)
        ids.append(other.id)
        task.cancel()
        await bus.settle()
        make_space()
    assert [event.data["event"] for event in seen] == ids
    assert all("CommitFailed" in event.data["error"] for event in seen)


async def test_an_event_from_before_the_start_of_its_subscriber_is_marked() -> None:
    network = MemoryNetwork()
    async with network.bus("feed") as feed:
        await feed.publish(Event("T", "before"))
        async with network.bus("strategy") as strategy:
            seen: list[Event] = []
            await feed.publish(Event("T", "while it runs"))
            await strategy.subscribe("T", seen.append, since=0)
            await feed.publish(Event("T", "live"))
            await network.settle()
    assert [(event.data, event.past) for event in seen] == [
        ("before", True),
        ("while it runs", False),
        ("live", False),
    ]


async def test_a_subscription_begins_behind_the_events_that_it_names() -> None:
    network = MemoryNetwork()
    async with network.bus("one") as one, network.bus("two") as two:
        events = [await bus.publish(Event("ORDER", n)) for bus in (one, two) for n in range(5)]
        async with network.bus("gateway") as gateway:
            seen: list[object] = []
            await gateway.subscribe(
                "ORDER",
                lambda event: seen.append((event.source, event.data)),
                after=[events[2].id, events[9].id],
            )
            await one.publish(Event("ORDER", 5))
            await network.settle()
    assert seen == [("one", 3), ("one", 4), ("one", 5)]


async def test_behind_an_event_of_an_earlier_start_comes_all_of_the_present_one() -> None:
    network = MemoryNetwork()
    async with network.bus("desk") as desk:
        last = await desk.publish(Event("ORDER", 1))
    async with network.bus("desk") as desk:
        await desk.publish(Event("ORDER", 2))
        async with network.bus("gateway") as gateway:
            seen: list[object] = []
            await gateway.subscribe("ORDER", lambda e: seen.append(e.data), after=last.id)
            await network.settle()
    assert seen == [2]


async def test_a_position_that_a_source_has_not_reached_leaves_out_nothing_that_comes() -> None:
    network = MemoryNetwork()
    async with network.bus("desk") as desk, network.bus("gateway") as gateway:
        last = await desk.publish(Event("ORDER", 1))
        beyond = event_id("desk", last.epoch, last.seq + 100)
        seen: list[object] = []
        await gateway.subscribe("ORDER", lambda event: seen.append(event.data), after=beyond)
        await desk.publish(Event("ORDER", 2))
        await network.settle()
    assert seen == [2]


async def test_the_own_bus_begins_behind_an_event_as_well(tmp_path: Path) -> None:
    async with AsyncEventBus(name="desk") as bus:
        events = [await bus.publish(Event("ORDER", number)) for number in range(5)]
        seen: list[object] = []
        await bus.subscribe("ORDER", lambda event: seen.append(event.data), after=events[1].id)
        await bus.publish(Event("ORDER", 5))
        await bus.settle()
    assert seen == [2, 3, 4, 5]


@pytest.mark.parametrize("more", [{"new_epoch": True}, {"keep": 1_000_000}, {"sync": "process"}])
def test_what_is_for_a_journal_needs_one(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="journal="):
        AsyncEventBus(**more)


def test_a_bus_with_a_journal_needs_a_name() -> None:
    with pytest.raises(ValueError, match="give the bus a name"):
        AsyncEventBus(journal="desk.db")


@pytest.mark.parametrize("is_restarted", [False, True], ids=["the same start", "the next start"])
async def test_the_newest_of_each_key_is_handed_over_also_if_only_the_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_restarted: bool
) -> None:
    monkeypatch.setattr("aiobus.journal.history.LOADED", 20)
    path, limits = tmp_path / "desk.db", Limits(history_events=30)
    chosen = random.Random(7)
    newest: dict[tuple[str, str], int] = {}

    async def publish(bus: AsyncEventBus, count: int) -> None:
        for number in range(count):
            type = chosen.choice(["POSITION", "BAR"])
            key = f"K{min(chosen.randrange(40), chosen.randrange(40))}"
            newest[type, key] = number
            await bus.publish(Event(type, number, key=key))

    async def last(bus: AsyncEventBus, **options: Any) -> dict[tuple[str, str], object]:
        seen: list[Event] = []
        await bus.subscribe(["POSITION", "BAR"], seen.append, since="last", **options)
        await bus.settle()
        assert [event.seq for event in seen] == sorted(event.seq for event in seen)
        found = {(event.type, event.key): event.data for event in seen}
        assert len(found) == len(seen)
        return found

    async with AsyncEventBus(name="desk", journal=path, limits=limits) as bus:
        await publish(bus, 500)
        if not is_restarted:
            assert await last(bus) == newest
            assert await last(bus, maxsize=3) == newest
            some = {each: data for each, data in newest.items() if each[1] in ("K1", "K7")}
            assert await last(bus, key=["K1", "K7"]) == some
    async with AsyncEventBus(name="desk", journal=path, limits=limits) as bus:
        assert await last(bus) == newest
        await publish(bus, 100)
        assert await last(bus) == newest


async def test_publish_nowait_raises_where_publish_would_wait_for_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobus.durable.MAX_UNCOMMITTED", 3)
    async with AsyncEventBus(name="desk", journal=tmp_path / "desk.db") as bus:
        for number in range(3):
            bus.publish_nowait(Event("T", number))
        assert bus.stats().uncommitted == 3
        refused = Event("T", 3)
        with pytest.raises(QueueFull, match="wait for their commit"):
            bus.publish_nowait(refused)
        assert refused.seq == 0
        await bus.publish(refused)
        assert bus.stats().uncommitted == 0
    assert [data for _, _, data in stored(tmp_path / "desk.db")] == [0, 1, 2, 3]


async def test_an_order_of_events_holds_when_system_events_come_in_the_middle_of_a_commit(
    tmp_path: Path,
) -> None:
    async with AsyncEventBus(name="desk", journal=tmp_path / "desk.db") as bus:
        seqs: list[int] = []
        await bus.subscribe(["T", "aiobus.overflow"], lambda event: seqs.append(event.seq))
        await bus.subscribe("T", lambda event: None, overflow="drop_oldest", maxsize=1)
        await asyncio.gather(*(bus.publish(Event("T", number)) for number in range(50)))
        await bus.settle()
    assert seqs == sorted(seqs)
    assert len(seqs) > 50


async def test_publishing_goes_on_after_more_system_events_than_numbers_are_reserved_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobus.durable.BLOCK", 500)
    monkeypatch.setattr("aiobus.durable.MARGIN", 20)

    async with AsyncEventBus(name="desk", journal=tmp_path / "desk.db") as bus:
        for number in range(30):
            for _ in range(100):
                bus._reports.announce("aiobus.unreached", {"addresses": []}, "")
            await bus.publish(Event("T", number))
    assert [data for _, _, data in stored(tmp_path / "desk.db")] == list(range(30))


async def test_publishing_works_again_after_numbers_could_not_be_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobus.durable.BLOCK", 200)
    monkeypatch.setattr("aiobus.durable.MARGIN", 20)
    async with AsyncEventBus(name="desk", journal=tmp_path / "desk.db") as bus:
        assert bus._durable is not None
        reserve, is_full = bus._durable._writer.reserve, True

        def fail(name: str, place: Any) -> None:
            if is_full:
                raise CommitFailed("desk.db", "the disk is full")
            reserve(name, place)

        monkeypatch.setattr(bus._durable._writer, "reserve", fail)
        with pytest.raises(CommitFailed):
            for number in range(1_000):
                await bus.publish(Event("T", number))
        is_full = False
        for number in range(1_000):
            await bus.publish(Event("T", number))


async def test_a_subscription_that_lags_gets_system_events_in_their_place(tmp_path: Path) -> None:
    limits = Limits(history_events=50)

    def fail(event: Event) -> None:
        if event.data % 10 == 0:
            raise RuntimeError

    async with AsyncEventBus(name="desk", journal=tmp_path / "desk.db", limits=limits) as bus:
        seen: list[Event] = []
        gate = asyncio.Event()

        async def take(event: Event) -> None:
            await gate.wait()
            seen.append(event)

        await bus.subscribe("T", fail)
        await bus.subscribe(["T", "aiobus.error"], take, maxsize=5)
        for number in range(400):
            await bus.publish(Event("T", number))
        gate.set()
        await bus.settle()
    assert [event.data for event in seen if event.type == "T"] == list(range(400))
    assert len([event for event in seen if event.type == "aiobus.error"]) == 40
    assert [event.seq for event in seen] == sorted(event.seq for event in seen)


async def test_an_older_copy_of_a_running_journal_is_noticed(tmp_path: Path) -> None:
    path, copy = tmp_path / "desk.db", tmp_path / "copy"
    network = MemoryNetwork()
    async with network.bus("monitor") as monitor:
        await monitor.subscribe("T", lambda event: None)
        async with network.bus("desk", journal=path) as desk:
            await desk.publish(Event("T", 1))
            shutil.copytree(tmp_path, copy)
            last = await desk.publish(Event("T", 2))
            await network.settle()
        put_back(copy, tmp_path)
        with pytest.raises(JournalRestored, match=f"up to seq {last.seq}"):
            await network.bus("desk", journal=path).start()


@pytest.mark.virtual
async def test_a_journal_is_no_older_copy_if_a_peer_hears_of_a_start_before_it_is_answered(
    tmp_path: Path,
) -> None:
    path, network, loop = tmp_path / "desk.db", MemoryNetwork(), asyncio.get_running_loop()
    async with network.bus("monitor") as monitor:
        await monitor.subscribe("T", lambda event: None)
        async with network.bus("desk", journal=path) as desk:
            assert await desk.flush() == []
        end = loop.time() + 8.0
        network.faults = Faults(
            loss=lambda message: float(message.kind == "answer" and loop.time() < end)
        )
        async with network.bus("desk", journal=path) as desk:
            await asyncio.sleep(10.0)
            await desk.publish(Event("T", 1))
            assert await desk.flush() == []


async def test_the_write_ahead_log_stays_small_also_with_one_event_in_each_commit(
    tmp_path: Path,
) -> None:
    path = tmp_path / "desk.db"
    async with AsyncEventBus(name="desk", journal=path, sync="process") as bus:
        for number in range(3_000):
            await bus.publish(Event("T", number))
        assert size_of(f"{path}-wal") < 16 * 2**20


async def test_waits_end_when_a_bus_closes_while_its_disk_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = AsyncEventBus(name="desk", journal=tmp_path / "desk.db")
    await bus.start()
    assert bus._durable is not None
    goes_on = threading.Event()
    commit = bus._durable._writer._opened.commit

    def hang(*batch: Any) -> None:
        goes_on.wait()
        commit(*batch)

    monkeypatch.setattr(bus._durable._writer._opened, "commit", hang)
    task = asyncio.create_task(bus.publish(Event("T", 1)))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError, match="the journal"):
        await bus.settle(0.01)
    assert await bus.close(0.01) == ["desk"]
    with pytest.raises(JournalFailed, match="the bus closed before"):
        await task
    goes_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("aiobus-journal"):
            await asyncio.to_thread(thread.join)


async def test_what_waits_for_its_commit_counts_for_the_bound_of_a_block_inbox(
    tmp_path: Path,
) -> None:
    async with AsyncEventBus(name="desk", journal=tmp_path / "desk.db") as bus:
        seen: list[object] = []
        await bus.subscribe("T", lambda e: seen.append(e.data), overflow="block", maxsize=10)
        for number in range(10):
            bus.publish_nowait(Event("T", number))
        with pytest.raises(QueueFull, match="maxsize=10"):
            bus.publish_nowait(Event("T", 10))
        await bus.settle()
    assert seen == list(range(10))


async def test_after_an_error_of_the_disk_nothing_is_published_before_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "desk.db"
    async with AsyncEventBus(name="desk", journal=path) as bus:
        seen: list[object] = []
        await bus.subscribe("T", lambda event: seen.append(event.data))
        await bus.publish(Event("T", 1))
        assert bus._durable is not None

        def fail(batch: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(bus._durable._writer._opened, "_insert", fail)
        failed = await asyncio.gather(
            *(bus.publish(Event("T", 2)) for _ in range(3)), return_exceptions=True
        )
        assert [type(each) for each in failed] == [JournalFailed] * 3
        monkeypatch.undo()
        with pytest.raises(JournalFailed, match="open the journal again"):
            await bus.publish(Event("T", 3))
        await bus.settle()
        assert seen == [1]
    async with AsyncEventBus(name="desk", journal=path) as bus:
        await bus.publish(Event("T", 4))
    assert [data for _, _, data in stored(path)] == [1, 4]


@pytest.mark.one_loop
async def test_what_keep_has_removed_is_a_gap_to_a_peer_that_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobus.journal.history.LOADED", 10)
    path, limits, data = tmp_path / "desk.db", Limits(history_events=20), "x" * 4_000
    network = MemoryNetwork()
    options = {"journal": path, "limits": limits, "keep": 9 * 2**20, "sync": "process"}
    async with network.bus("monitor") as monitor, network.bus("desk", **options) as desk:
        for number in range(6_000):
            await desk.publish(Event("T", [number, data]))
        seen: list[Event] = []
        await monitor.subscribe(["T", "aiobus.gap"], seen.append, since=0)
        await network.settle()
        numbers = [event.data[0] for event in seen if event.type == "T"]
    assert numbers == list(range(numbers[0], 6_000))
    assert 0 < numbers[0] < 5_900


async def test_published_counts_what_this_start_has_handed_out(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    for _ in range(3):
        async with AsyncEventBus(name="desk", journal=path) as bus:
            assert bus.stats().published == 0
            for number in range(5):
                await bus.publish(Event("T", number))
            assert bus.stats().published == 5
            assert " published=5 " in repr(bus)
            make_space = fill_disk(bus)
            with pytest.raises(CommitFailed):
                await bus.publish(Event("T", BIG))
            assert bus.stats().published == 5
            make_space()
            await bus.publish(Event("T", BIG))
            assert bus.stats().published == 6
