"""Recorded events are published once more for dashboards, and for no bus that is not named."""

import asyncio
import sys
from pathlib import Path
from typing import Any, Self

import pytest
from journals import entries, entry, make, read
from test_replay import damage

from aiobus import (
    AsyncEventBus,
    BusError,
    Event,
    JournalCorrupt,
    LeavesProcess,
    republish,
    run_virtual,
)

pytestmark = pytest.mark.paired


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """40 events, and an order and a cancel among them."""
    path = tmp_path / "desk.db"
    orders = [entry(41, type="ORDER"), entry(42, type="CANCEL"), entry(43, type="FILL")]
    make(path, [*entries(40), *orders])
    return path


class Dashboard:
    """What a bus of this name has seen."""

    def __init__(self, url: str, name: str = "dashboard") -> None:
        self.bus = AsyncEventBus(url, name=name)
        self.seen: list[Event] = []

    async def __aenter__(self) -> Self:
        await self.bus.start()
        await self.bus.subscribe("*", self.seen.append)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.bus.close()


@pytest.mark.parametrize(
    "given", [{"types": "FIL"}, {"sources": "fed"}, {"end": 1}, {"start": 41, "end": 43}]
)
async def test_a_selection_of_nothing_is_an_error_and_no_bus_waits_for_it(
    path: Path, url: str, given: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"was recorded|has no event of what was selected"):
        await republish(path, url, **{"types": "*", **given})


async def test_each_is_a_new_event_that_was_caused_by_the_original(path: Path, url: str) -> None:
    originals = [event for _, event in read(path) if event.type not in ("ORDER", "CANCEL")]
    async with Dashboard(url) as dashboard:
        assert await republish(path, url, types="*", speed=None) == 41
        await dashboard.bus.settle()
        assert [event.cause for event in dashboard.seen] == [event.id for event in originals]
        assert dashboard.seen == originals  # type, key and data
        assert [each.timestamp for each in dashboard.seen] == [each.timestamp for each in originals]
        assert {event.source for event in dashboard.seen} == {"replay"}


@pytest.mark.parametrize("types", ["ORDER", ["TRADE", "CANCEL"]])
async def test_what_is_executed_is_never_published_again(path: Path, url: str, types: Any) -> None:
    with pytest.raises(ValueError, match="would be executed once more"):
        await republish(path, url, types=types)


@pytest.mark.parametrize("name", ["gateway", "strategy"])
async def test_it_publishes_nothing_where_another_bus_is(path: Path, url: str, name: str) -> None:
    async with Dashboard(url) as dashboard, Dashboard(url, name) as other:
        with pytest.raises(BusError, match=f"{name} is on .* and not named in to="):
            await republish(path, url, types="TRADE", speed=None)
        await dashboard.bus.settle()
        assert not dashboard.seen
        assert not other.seen


async def test_it_publishes_nothing_if_a_named_bus_does_not_come(
    path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["aiobus.replay.republish"], "MEET_SECONDS", 0.1)
    with pytest.raises(BusError, match=r"dashboard is not on .*: 0 events were published"):
        await republish(path, url, types="TRADE")


async def test_it_stops_before_the_next_event_if_another_bus_joins(path: Path, url: str) -> None:
    async with Dashboard(url) as dashboard:
        publishing = asyncio.create_task(republish(path, url, types="*", speed=1e-3))
        await dashboard.bus.wait_for("*")
        async with Dashboard(url, "strategy") as other:
            with pytest.raises(BusError, match=r"strategy is on .*: 1 events were published"):
                await publishing
            assert not other.seen
        await dashboard.bus.settle()
        assert len(dashboard.seen) == 1


async def test_it_stops_if_a_named_bus_leaves(path: Path, url: str) -> None:
    async with Dashboard(url) as dashboard, Dashboard(url, "screen"):
        publishing = asyncio.create_task(
            republish(path, url, types="*", to=["dashboard", "screen"], speed=1.0)
        )
        await dashboard.bus.wait_for("*")
    with pytest.raises(BusError, match="is not on "):
        await publishing


async def test_damage_is_raised_and_not_taken_for_the_end(path: Path, url: str) -> None:
    damage(path, 21)
    async with Dashboard(url) as dashboard:
        with pytest.raises(JournalCorrupt):
            await republish(path, url, types="*", speed=None)
        await dashboard.bus.settle()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"to": ()}, "to="),
        ({"to": "a b"}, "to="),
        ({"speed": 0}, "speed="),
        ({"url": "inproc://"}, "url="),
        ({"types": ["aiobus.gap"]}, "types="),
        ({"start": -1}, "start="),
    ],
)
async def test_wrong_arguments_are_refused(path: Path, url: str, given: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        await republish(path, **{"url": url, "types": "TRADE", **given})


def test_in_virtual_time_it_is_refused(path: Path, folder: Path) -> None:
    async def main() -> None:
        await republish(path, f"ipc://{folder}/d", types="TRADE")

    with pytest.raises(LeavesProcess):
        run_virtual(main)


async def test_an_observer_may_look_on_and_is_no_guest(path: Path, url: str) -> None:
    async with (
        Dashboard(url) as board,  # on tcp, an observer is met where another bus serves
        AsyncEventBus(url, name="tail", observer=True),
    ):
        with pytest.raises(BusError, match="tail is an observer, which no bus waits for"):
            await republish(path, url, types="TRADE", to=["dashboard", "tail"])
        count = await republish(path, url, types="TRADE", to="dashboard")
        await board.bus.settle()
        assert len(board.seen) == count > 0
