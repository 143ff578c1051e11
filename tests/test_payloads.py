"""What a desk publishes arrives whole over every transport, or is refused where it is published."""

import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from test_contract import TRANSPORTS, Desk, open_desk

from aiobus import EncodeError, Event


@pytest.fixture(params=TRANSPORTS)
async def desk(request: pytest.FixtureRequest, no_task_is_left: None) -> AsyncIterator[Desk]:
    async with open_desk(request.param) as desk:
        yield desk


class NaTType(dt.datetime):
    """As pandas.NaT: a datetime that is none."""

    def utcoffset(self) -> dt.timedelta | None:
        raise ValueError("NaTType does not support utcoffset")


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def circle() -> list[Any]:
    value: list[Any] = [1]
    value.append(value)
    return value


def linked(levels: int) -> Any:
    value: Any = None
    for _ in range(levels):
        value = (1, value)
    return value


REFUSED = {
    "NaT": ({"legs": [{"expiry": NaTType(1, 1, 1)}]}, "data['legs'][0]['expiry']"),
    "too deep": (nested(254), "data" + "[0]" * 253),
    "tuples too deep": (linked(300), "data" + "[1]" * 253),
    "containing itself": (circle(), "data" + "[1]" * 253),
    "Fragment": ([orjson.Fragment(b'1],[2,2.0,"HALT","",null')], "data[0]"),
}


@pytest.mark.parametrize(("data", "path"), REFUSED.values(), ids=REFUSED)
async def test_what_is_refused_takes_no_number_and_the_feed_goes_on(
    desk: Desk, data: Any, path: str
) -> None:
    feed, bot = await desk.bus("feed"), await desk.bus("bot")
    heard: list[Any] = []
    await bot.subscribe("*", lambda event: heard.append((event.type, event.data)), key="BTC")
    first = await feed.publish(Event("TRADE", 1, key="BTC"))
    with pytest.raises(EncodeError) as caught:
        await feed.publish(Event("TRADE", data, key="BTC"))
    assert caught.value.path == path
    second = await feed.publish(Event("TRADE", 2, key="BTC"))
    assert second.seq == first.seq + 1
    assert await feed.flush() == []
    await bot.settle()
    assert heard == [("TRADE", 1), ("TRADE", 2)]


async def test_the_deepest_data_arrives_through_a_predicate_that_is_shown_a_copy(
    desk: Desk,
) -> None:
    feed, bot = await desk.bus("feed"), await desk.bus("bot")
    heard: list[Any] = []
    await bot.subscribe(
        "BOOK", lambda event: heard.append(event.data), where=lambda event: event.data.clear() or 1
    )
    await feed.publish(Event("BOOK", nested(253)))
    assert await feed.flush() == []
    await bot.settle()
    assert heard == [nested(253)]
