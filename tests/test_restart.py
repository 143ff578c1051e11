"""No two starts of one name have the same epoch, whatever the clocks say."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from actors import nursery

from aiobus import AsyncEventBus, Event, run_virtual
from aiobus import clock as epochs
from aiobus.testing import MemoryNetwork

NEW_YEAR = 1_704_067_200.0


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's clock stands still, as with freezegun."""
    monkeypatch.setattr(epochs, "machine", lambda: NEW_YEAR)


class LoopOfADay(asyncio.SelectorEventLoop):
    """A loop whose wall time stands while a replayed day is set up."""

    def wall_time(self) -> float:
        return 1_600_000_000.0


async def two_days(watch: AsyncEventBus, feeds: list[AsyncEventBus]) -> list[Any]:
    """What `watch` gets of two starts of a feed that publish one event each, gaps included."""
    got: list[Any] = []
    async with watch:
        await watch.subscribe(["BAR", "aiobus.gap"], lambda event: got.append(event.data))
        for number, feed in enumerate(feeds):
            async with feed:
                await feed.publish(Event("BAR", number))
                assert await feed.flush() == []
        await watch.settle()
    assert feeds[0].stats().epoch != feeds[1].stats().epoch
    return got


@pytest.mark.parametrize("url", ["ipc", "tcp"], indirect=True)
async def test_a_restart_under_a_frozen_clock_is_another_source(url: str, frozen: None) -> None:
    feeds = [AsyncEventBus(url, name="feed") for _ in range(2)]
    assert await two_days(AsyncEventBus(url, name="watch"), feeds) == [0, 1]


async def test_so_it_is_on_a_network_in_memory(frozen: None) -> None:
    network = MemoryNetwork()
    feeds = [network.bus("feed") for _ in range(2)]
    assert await two_days(network.bus("watch"), feeds) == [0, 1]


def test_a_restart_in_virtual_time_is_another_source(tmp_path: Path) -> None:
    buses = [AsyncEventBus(f"ipc://{tmp_path}/desk", name=name) for name in ("watch", "feed")]
    again = AsyncEventBus(f"ipc://{tmp_path}/desk", name="feed")
    with asyncio.Runner(loop_factory=LoopOfADay) as runner:
        assert runner.run(two_days(buses[0], [buses[1], again])) == [0, 1]


def test_buses_of_one_virtual_loop_have_different_epochs_and_ids_that_repeat_in_each_run() -> None:
    async def main() -> list[str]:
        ids = []
        for _ in range(3):
            async with AsyncEventBus(name="feed") as feed, AsyncEventBus() as other:
                ids += [(await bus.publish(Event("BAR", 1))).id for bus in (feed, other)]
        return ids

    ids = run_virtual(main())
    assert len(set(ids)) == 6
    assert run_virtual(main()) == ids


async def test_an_epoch_is_of_the_machines_clock_and_not_of_the_loops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(epochs, "_highest", 0)
    monkeypatch.setattr(asyncio.get_running_loop(), "wall_time", lambda: 0.0, raising=False)
    before = int(time.time() * 1_000_000)
    async with AsyncEventBus() as bus:
        epoch = bus.stats().epoch
    assert before <= epoch <= int(time.time() * 1_000_000) + epochs.SPREAD


def test_epochs_of_one_process_rise_when_the_clock_is_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = epochs.fresh()
    monkeypatch.setattr(epochs, "machine", lambda: NEW_YEAR)
    drawn = [epochs.fresh() for _ in range(100)]
    assert drawn == sorted(set(drawn))
    assert first < drawn[0]


def test_threads_that_start_at_the_same_time_have_different_epochs(frozen: None) -> None:
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: epochs.fresh(), range(4000)))
    assert len(set(drawn)) == len(drawn)


def test_an_epoch_that_was_heard_of_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "_highest", 0)
    far = int(time.time() * 1_000_000) + 3600 * 1_000_000
    epochs.heard(far)
    epochs.heard(far - 5)
    assert epochs.fresh() > far


def test_an_epoch_that_no_clock_can_have_leaves_room_above_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(epochs, "_highest", 0)
    epochs.heard(2**63 - 1)
    assert epochs.fresh() < 2**62


def test_processes_whose_clocks_stand_at_one_time_draw_different_epochs(
    monkeypatch: pytest.MonkeyPatch, frozen: None
) -> None:
    drawn = set()
    for _ in range(8):
        monkeypatch.setattr(epochs, "_highest", 0)  # as in a process of its own
        drawn.add(epochs.fresh())
    assert len(drawn) > 1


@pytest.mark.paired
@pytest.mark.parametrize("url", ["ipc", "tcp"], indirect=True)
async def test_a_restart_in_another_process_with_a_frozen_clock_is_another_source(url: str) -> None:
    got: list[Any] = []
    async with nursery() as made, AsyncEventBus(url, name="watch") as watch:
        await watch.subscribe(["BAR", "aiobus.gap"], lambda event: got.append(event.data))
        for number in range(2):
            feed = await made.actor()
            await feed(
                "from aiobus import clock; clock.machine = lambda: noon\n"
                "self.bus = AsyncEventBus(url, name='feed'); await self.bus.start()\n"
                "await self.bus.publish(Event('BAR', number))\n"
                "assert await self.bus.close() == []",
                url=url,
                noon=NEW_YEAR,
                number=number,
            )
        await watch.settle()
    assert got == [0, 1]
