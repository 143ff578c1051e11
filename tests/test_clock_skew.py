"""Processes whose clocks differ: it is measured, warned of, and shown. A process turns the clock of
its own `aiobus.clock`, on which all of the package depends, and no other of the machine.
"""

import asyncio
from typing import Any

import pytest
from actors import Actor, Nursery

pytestmark = [pytest.mark.paired, pytest.mark.slow]

TURN = """
from aiobus import clock
self.machine = clock.machine
clock.machine = lambda: self.machine() + seconds
"""
SET = """
from aiobus import clock
clock.machine = lambda: self.machine() + seconds
"""
WATCH = """
import logging
lines = self.lines = []
class Handler(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.getLogger("aiobus").addHandler(Handler(logging.INFO))
logging.getLogger("aiobus").setLevel(logging.INFO)
self.skews, self.came = [], asyncio.Condition()
async def on_skew(event):
    self.skews.append(event.data)
    async with self.came:
        self.came.notify_all()
await self.bus.subscribe(aiobus.system.CLOCK_SKEW, on_skew)
"""
SKEWS = """
async with self.came:
    await self.came.wait_for(lambda: len(self.skews) >= count)
return self.skews
"""
PEER = """
while True:
    for each in bus.peers:
        if each.name == name and each.skew is not None:
            return [each.skew, each.skew_error]
    await asyncio.sleep(0.02)
"""


async def skewed(nursery: Nursery, seconds: float) -> Actor:
    """A process whose clock is so far ahead."""
    actor = await nursery.actor()
    await actor(TURN, seconds=seconds)
    return actor


async def said(actor: Actor, count: int) -> list[dict[str, Any]]:
    """What was announced of clocks, once that was so often."""
    return list(await actor(SKEWS, count=count))


async def lines(actor: Actor) -> list[str]:
    """What it has logged of clocks."""
    return [line for line in await actor("return self.lines") if "the clock of" in line]


async def bot_and_feed(nursery: Nursery, url: str, seconds: float) -> tuple[Actor, Actor]:
    """A bot whose clock is right and that watches, and a feed whose clock is so far ahead."""
    bot, feed = await nursery.actor(), await skewed(nursery, seconds)
    await bot.start(url, "bot")
    await bot(WATCH)
    await feed.start(url, "feed")
    return bot, feed


@pytest.mark.parametrize("seconds", [0.4, -0.4])
async def test_peers_tell_by_how_much_a_clock_is_ahead(
    nursery: Nursery, url: str, seconds: float
) -> None:
    bot, feed = await bot_and_feed(nursery, url, seconds)
    skew, error = await bot(PEER, name="feed")
    assert abs(skew - seconds) <= error + 1e-5
    back, error = await feed(PEER, name="bot")
    assert abs(back + seconds) <= error + 1e-5


async def test_a_skew_is_said_once_with_what_it_means_and_what_to_do(
    nursery: Nursery, url: str
) -> None:
    bot, _ = await bot_and_feed(nursery, url, 30.0)
    (data,) = await said(bot, 1)
    assert data["name"] == "feed"
    assert data["skew"] == pytest.approx(30, abs=data["error"] + 1e-5)
    (line,) = await lines(bot)
    assert "the clock of feed is" in line
    assert "s ahead of that of bot" in line
    assert "younger than they are, to max_age" in line
    assert "chrony" in line


async def test_the_line_names_the_subscriptions_that_have_a_max_age(
    nursery: Nursery, url: str
) -> None:
    bot = await nursery.actor()
    await bot.start(url, "bot")
    await bot(WATCH)
    await bot.hear("TRADE", max_age=2.0, name="on_trade")
    feed = await skewed(nursery, -30.0)
    await feed.start(url, "feed")
    await said(bot, 1)
    (line,) = await lines(bot)
    assert "older than they are" in line
    assert line.endswith("max_age= is given here for on_trade")


async def test_a_clock_that_is_set_right_ends_the_warning(nursery: Nursery, url: str) -> None:
    bot, feed = await bot_and_feed(nursery, url, 30.0)
    await said(bot, 1)
    await feed(SET, seconds=0.0)
    # A question of its own is asked once a minute; each new subscription asks as well.
    await bot("await bus.subscribe('QUOTE', print)")
    over = (await said(bot, 2))[1]
    assert abs(over["skew"]) <= over["error"] + 1e-5
    assert (await lines(bot))[1].endswith("that is little enough")


async def test_a_step_of_the_own_clock_is_no_skew_that_stays(nursery: Nursery, url: str) -> None:
    _, feed = await bot_and_feed(nursery, url, 0.0)
    await feed(PEER, name="bot")
    await feed(WATCH)
    await feed(SET, seconds=5.0)
    (data,) = await said(feed, 1)
    assert data["name"] == "bot"
    assert data["skew"] == pytest.approx(-5, abs=data["error"] + 1e-4)


async def test_a_blocked_loop_is_no_skew(nursery: Nursery, url: str) -> None:
    bot, feed = await bot_and_feed(nursery, url, 0.0)
    await feed(WATCH)
    blocked = feed.tell("import time; time.sleep(1.5)")
    asked = [bot.tell("await bus.subscribe(f'T{number}', print)", number=i) for i in range(3)]
    await asyncio.gather(blocked, *asked)
    (skew, error), (back, other) = await bot(PEER, name="feed"), await feed(PEER, name="bot")
    assert abs(skew) <= error
    assert abs(back) <= other
    assert await bot("return self.skews") == await feed("return self.skews") == []
