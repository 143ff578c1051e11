"""`aiobus tail`: what it shows of a desk, what it says of what it does not show, and its codes."""

import asyncio
import json
import re
import signal
from typing import Any

import pytest
from commands import ran, running

from aiobus import AsyncEventBus, Event, Limits

pytestmark = [pytest.mark.slow, pytest.mark.one_loop]


async def publish(bus: AsyncEventBus, *events: tuple[str, Any, str]) -> None:
    for type, data, key in events:
        await bus.publish(Event(type, data, key=key))
    assert await bus.flush() == []


async def test_it_shows_each_event_as_a_line_with_its_cause(url: str) -> None:
    async with AsyncEventBus(url, name="feed") as bus, running("tail", url, "--tz", "UTC") as tail:
        await tail.says("there already")
        trade = await bus.publish(Event("TRADE", {"price": 1.5}, 1_700_000_000.25, key="BTC"))
        signal = await bus.publish(Event("SIGNAL", "\x1b[2J", 1_700_000_001.0, cause=trade.id))
        assert await tail.line() == (
            f'2023-11-14T22:13:20.250000+00:00 TRADE BTC {trade.id} {{"price":1.5}}'
        )
        assert await tail.line() == (
            f'2023-11-14T22:13:21.000000+00:00 SIGNAL - {signal.id} "\\u001b[2J" <- {trade.id}'
        )


async def test_json_lines_have_every_field(url: str) -> None:
    async with (
        AsyncEventBus(url, name="feed") as bus,
        running("tail", url, "--json", "-n", "1") as tail,
    ):
        await tail.says("there already")
        event = await bus.publish(Event("TRADE", {"price": 1.5}, key="BTC", cause="x"))
        code, out, _ = await tail.ended()
        assert (code, json.loads(out)) == (
            0,
            {
                "source": "feed",
                "epoch": event.epoch,
                "seq": event.seq,
                "id": event.id,
                "time": event.timestamp,
                "type": "TRADE",
                "key": "BTC",
                "cause": "x",
                "data": {"price": 1.5},
            },
        )


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["TRADE"], [1, 2, 3]),
        (["TRADE/BTC"], [1]),
        (["TRADE/BTC", "QUOTE"], [1, 4, 5]),
        (["TRADE/BT*", "ORDER"], [1, 2, 6]),
        (["*/BTC"], [1, 4, 6]),
        (["*", "TRADE/ETH"], [1, 2, 3, 4, 5, 6]),
        (["--where", "data % 2 == 0"], [2, 4, 6]),
        (["TRADE", "--where", "key[:2] == 'BT' and data > 1"], [2]),
        (["--where", "type in ['ORDER', 'QUOTE'] and source == 'feed'"], [4, 5, 6]),
    ],
)
async def test_it_shows_what_the_patterns_and_where_select(
    folder: Any, given: list[str], wanted: list[int]
) -> None:
    url = f"ipc://{folder}/d"
    async with (
        AsyncEventBus(url, name="feed") as bus,
        running("tail", url, "--json", *given) as tail,
    ):
        await tail.says("there already")
        events = [("TRADE", "BTC"), ("TRADE", "BTX"), ("TRADE", "ETH"), ("QUOTE", "BTC")]
        events += [("QUOTE", "ETH"), ("ORDER", "BTC")]
        await publish(bus, *((type, n, key) for n, (type, key) in enumerate(events, 1)))
        assert [(await tail.json())["data"] for _ in wanted] == wanted
        code, out, _ = await tail.end(signal.SIGTERM)
        assert (code, out) == (0, "")


async def test_since_last_begins_with_the_newest_of_each_type_and_key(url: str) -> None:
    async with AsyncEventBus(url, name="feed") as bus:
        await publish(bus, ("TRADE", 1, "BTC"), ("TRADE", 2, "BTC"), ("ORDER", 3, "BTC"))
        code, out, _ = await ran("tail", url, "--json", "--since", "last", "--n", "2")
        assert code == 0
        assert [json.loads(line)["data"] for line in out.splitlines()] == [2, 3]
        code, out, _ = await ran("tail", url, "TRADE", "--json", "--since", "10m", "-n2")
        assert [json.loads(line)["data"] for line in out.splitlines()] == [1, 2]


async def test_events_that_lack_what_where_asks_for_are_counted_at_the_end(url: str) -> None:
    async with (
        AsyncEventBus(url, name="feed") as bus,
        running("tail", url, "--json", "-n", "1", "--where", "data.price > 1") as tail,
    ):
        await tail.says("there already")
        await publish(bus, ("TRADE", {}, ""), ("TRADE", 5, ""), ("TRADE", {"price": 2}, ""))
        code, out, errors = await tail.ended()
        assert (code, json.loads(out)["data"]) == (0, {"price": 2})
        assert "! 2 events do not have what --where asks for, and do not match" in errors
        assert "no field 'price' in a number" in errors


async def test_nobody_is_there_is_said_and_who_comes_later_is_shown(url: str) -> None:
    async with running("tail", url, "-n", "1") as tail:
        assert await tail.says("nobody is at") == (
            f"nobody is at {url} ({url.partition('://')[2]}) yet: waiting"
        )
        async with AsyncEventBus(url, name="late") as bus:
            await tail.says("late is there")
            await publish(bus, ("TRADE", 1, ""))
            code, out, _ = await tail.ended()
            assert (code, " TRADE - late@" in out) == (0, True)


async def test_who_leaves_is_said(url: str) -> None:
    async with running("tail", url) as tail:
        await tail.says("nobody is at")
        async with AsyncEventBus(url, name="feed"):
            await tail.says("feed is there")
        assert await tail.says("feed has left") == "- feed has left: it closed"
        assert (await tail.end())[0] == 130


async def test_what_is_lost_is_a_line_in_its_place_and_an_exit_code(folder: Any) -> None:
    """A tail that is stopped while more is published than history holds."""
    url, limits = f"ipc://{folder}/d", Limits(history_events=100, high_water_mark=64)
    async with (
        AsyncEventBus(url, name="feed", limits=limits) as bus,
        running("tail", url, "--json", "TRADE") as tail,
    ):
        await tail.says("there already")
        await publish(bus, ("TRADE", 0, ""))
        assert (await tail.json())["data"] == 0
        tail.process.send_signal(signal.SIGSTOP)
        for number in range(1, 40_001):
            bus.publish_nowait(Event("TRADE", number))
            if number % 1_000 == 0:
                await asyncio.sleep(0)
        tail.process.send_signal(signal.SIGCONT)
        shown, lost = [0], 0
        while shown[-1] < 40_000:
            event = await tail.json()
            if event["type"] == "aiobus.gap":
                lost += event["data"]["upto"] - event["data"]["after"]
            else:
                shown.append(event["data"])
        code, _, errors = await tail.end(signal.SIGTERM)
    assert code == 3
    assert shown == sorted(set(shown))
    assert 0 < 40_001 - len(shown) <= lost
    assert f"! lost: {lost:,} events at most, in " in errors


async def test_a_stopped_tail_changes_nothing_for_the_desk_and_goes_on(folder: Any) -> None:
    url = f"ipc://{folder}/d"
    async with (
        AsyncEventBus(url, name="feed") as bus,
        running("tail", url, "--json", "TRADE") as tail,
    ):
        await tail.says("there already")
        tail.process.send_signal(signal.SIGSTOP)
        for number in range(5_000):
            await bus.publish(Event("TRADE", number))
        assert await bus.flush(5) == []
        tail.process.send_signal(signal.SIGCONT)
        assert [(await tail.json())["data"] for _ in range(5_000)] == list(range(5_000))


async def test_it_shows_system_events_that_are_asked_for(url: str) -> None:
    async with running("tail", url, "aiobus.*", "--json") as tail:
        await tail.says("nobody is at")
        async with AsyncEventBus(url, name="feed") as bus:
            await publish(bus, ("TRADE", 1, ""))
            joined = await tail.json()
        left = await tail.json()
        assert (await tail.end())[0] == 130
    assert (joined["type"], joined["data"]["name"]) == ("aiobus.peer_joined", "feed")
    assert (left["type"], left["data"]["reason"]) == ("aiobus.peer_left", "it closed")


async def test_a_line_of_json_is_the_event_and_moves_no_cursor(url: str) -> None:
    odd = "\x9b2J\u202e\u2028\U000e0001"
    async with (
        AsyncEventBus(url, name="feed") as bus,
        running("tail", url, "--json", "-n", "1") as tail,
    ):
        await tail.says("there already")
        await publish(bus, ("TRADE", {odd: odd, "name": "日本"}, odd))
        line = await tail.line()
    assert line.rstrip("\n").isprintable()
    event = json.loads(line)
    assert (event["key"], event["data"]) == (odd, {odd: odd, "name": "日本"})


async def test_colors_are_for_who_asks_and_no_data_moves_the_cursor(url: str) -> None:
    async with (
        AsyncEventBus(url, name="feed") as bus,
        running("tail", url, "--color", "-n", "1") as tail,
    ):
        await tail.says("there already")
        await publish(bus, ("TRADE", "\x9b2J", "\x1b]0;x\x07"))
        line = await tail.line()
    assert "\x1b[36mTRADE\x1b[0m" in line
    assert re.sub(r"\x1b\[\d+m", "", line).isprintable()
