"""More than a reader can take: slow consumers, overrun rings, many at once."""

import asyncio
import time

import pytest

from aiobus.history import EVICT_PART
from aiobus.sequence import EVICTED, LEFT
from faults.desk import Desk, Process
from faults.scenario import MIXED, prove, scenario

pytestmark = [*MIXED, pytest.mark.slow]


@scenario("a consumer ten times too slow", soak=1, at_once=3, weight=3, gaps=[EVICTED])
async def consumer_is_slow(desk: Desk) -> None:
    """It holds up no other; once it is quick again it has everything, or a gap for it."""
    publisher, victim, other = await desk.bots("publisher", "victim", "other")
    await victim.do("hear", maxsize=512)  # so that it falls behind within 2 s
    await other.do("hear")
    await victim.do("slow_down", 0.01)
    await publisher.do("load", 1_000)
    await desk.last(2, 600)
    place = await publisher.do("pause")
    await other.do("until", *place)
    await victim.do("slow_down", 0)
    await desk.recovered(time.monotonic(), [publisher], [victim])


@scenario("ring overrun", soak=50, gaps=[EVICTED])
async def ring_is_overrun(desk: Desk) -> None:
    """One gap, exactly from the last it was handed to the last that is gone."""
    ring = 8_192
    publisher = await desk.bot("publisher", history_events=ring, high_water_mark=64)
    victim = await desk.bot("victim", high_water_mark=64)
    await victim.do("hear")
    source, epoch, _ = await publisher.do("pause")
    await victim.do("until", source, epoch, await publisher.do("burst", 100))
    await victim.freeze()
    # Beyond what the queues of ZeroMQ and of the system take, and beyond what history holds.
    last = await publisher.do("bursts", 30 + desk.dice.randrange(10), 1_000)
    victim.thaw()
    await victim.do("until", source, epoch, last)
    ((label, after, upto),) = await victim.do("gaps")
    gone = await publisher.do("oldest_kept") - 1
    assert upto == gone, f"{label}: lost up to {upto}, and the last that is gone is {gone}"
    beyond = await publisher.do("seq_from_end", ring)
    assert beyond <= gone <= beyond + ring // EVICT_PART, f"a ring of {ring} ends at {gone}"
    assert after == await victim.do("handled_before_gap"), f"{label}: lost after {after}"


@scenario(
    "1 FILL/s beside 50,000 QUOTEs/s, the FILL subscriber frozen",
    soak=20,
    weight=2,
    gaps=[EVICTED],
)
async def fills_are_beside_quotes(desk: Desk) -> None:
    """Every FILL arrives, with each query that matches it; the quotes are in gaps.

    Only FILLs are timed: to handle all that history holds of the quotes takes this test seconds.
    """
    feed, victim = await desk.bots("feed", "victim")
    await victim.do("hear", "FILL", "fills")
    await victim.do("hear", ["FILL", "QUOTE"], "both")
    await feed.do("load", 50_000, "QUOTE", 50)
    await feed.do("load", 1 if desk.scale.affords(20) else 10, "FILL")
    await victim.do("until_handled", 1_000)
    await victim.freeze()
    await desk.last(1, 20)
    place = await feed.do("pause")
    fill = await feed.do("burst", 1, "FILL")
    await desk.recovered(victim.thaw(), [feed], [victim], "fills")
    await victim.do("until", *place[:2], fill, "both")
    assert "fills" not in [label for label, _, _ in await victim.do("gaps")]
    assert await victim.do("handled_of", "FILL") == 2 * await feed.do("published_of", "FILL")


@scenario("5 late joiners at full rate", soak=200)
async def joiners_are_late(desk: Desk) -> None:
    """Each gets everything from the moment its `subscribe` returned, or from when it asked for."""
    publisher = await desk.bot("publisher")
    await publisher.do("load", 20_000, keys=10)

    async def join(number: int) -> Process:
        await desk.chance(0.3)
        joiner = await desk.bot(f"joiner{number}")
        since = desk.dice.choice([None, "last", time.time() - 0.2])
        await joiner.do("hear", **({} if since is None else {"since": since}))
        return joiner

    joiners = await asyncio.gather(*map(join, range(5)))
    await desk.chance(0.2)
    # The load may rest since before the last has subscribed: it would wait for what it is not owed.
    await publisher.do("burst", 1, keys=10)
    await desk.recovered(time.monotonic(), [publisher], joiners)


@scenario("subscriptions reconnected again and again", soak=5, weight=4)
async def links_are_made_again(desk: Desk) -> None:
    """Each has what was published while its link was broken.

    5,000 of them are not held to 3 s, since each asks for a page of its own.
    """
    keys, times = (5_000, 20) if desk.scale.affords(55) else (200, 3)
    desk.size = f"{keys} subscriptions {times} times"
    publisher, subscriber = await desk.bots("publisher", "subscriber")
    await subscriber.do("hear_each", keys)
    for number in range(times):
        await subscriber.do("relink")
        healed = time.monotonic()
        await publisher.do("burst", keys, keys=keys)
        await subscriber.do("until_handled", keys * (number + 1))
        if keys == 200:
            desk.recoveries.append(time.monotonic() - healed)


@scenario("many ask for all of history at once", soak=5, weight=4)
async def all_ask_at_once(desk: Desk) -> None:
    """Each gets all of it, and no page holds up for long what another is to get live."""
    count, events = (50, 20_000) if desk.scale.affords(55) else (8, 2_000)
    desk.size = f"{count} subscribers for {events} events each"
    names = [f"s{number}" for number in range(count)]
    publisher, live, *many = await desk.bots("publisher", "live", *names)
    for each in (live, *many):
        await each.do("hear", maxsize=1_024)
    await live.do("hear", "L", "live")
    await publisher.do("burst", 1)
    for each in many:
        await each.do("until_handled", 1)
        await each.freeze()
    # A frame for each event: the queues of ZeroMQ hold hundreds, the rest has to be asked for.
    last = await publisher.do("bursts", events, 1)
    source, epoch, _ = await publisher.do("pause")
    await live.do("until", source, epoch, last)
    for each in many:
        each.thaw()
    all_there = asyncio.gather(*(each.do("until", source, epoch, last) for each in many))
    longest = 0.0
    while not all_there.done():
        begun = time.monotonic()
        seq = await publisher.do("burst", 1, "L")
        longest = max(longest, await live.do("until", source, epoch, seq, "live") - begun)
        await desk.chance(0.1)
    await all_there
    desk.recoveries.append(longest)
    gaps = [gap for each in many for gap in await each.do("gaps")]
    assert not gaps, f"history holds everything, and was given up: {gaps}"


@scenario("the answering source killed in mid-page", soak=50, gaps=[LEFT])
async def source_is_killed_in_mid_page(desk: Desk) -> None:
    """What came of it has no hole, and what is known to be missing is a gap once it has left."""
    publisher, victim = await desk.bots("publisher", "victim")
    await victim.do("hear", maxsize=256)
    await publisher.do("burst", 100)
    await victim.do("until_handled", 100)
    await victim.freeze()
    await publisher.do("bursts", 8_000, 1)
    victim.thaw()
    await victim.do("until_handled", 600 + desk.dice.randrange(5_000))
    await publisher.kill()
    again = await desk.bot("publisher")
    healed = time.monotonic()
    await again.do("burst", 10)
    await desk.recovered(healed, [again], [victim])


async def test_a_slow_consumer_holds_up_no_other_and_catches_up() -> None:
    await prove(consumer_is_slow)


async def test_an_overrun_ring_is_one_gap_with_exact_bounds() -> None:
    await prove(ring_is_overrun)


async def test_no_flood_of_quotes_costs_a_frozen_subscriber_a_fill() -> None:
    await prove(fills_are_beside_quotes)


async def test_late_joiners_get_everything_from_then_on() -> None:
    await prove(joiners_are_late)


async def test_history_serves_many_who_ask_at_once() -> None:
    await prove(all_ask_at_once)


async def test_a_source_that_is_killed_in_mid_page_leaves_no_hole() -> None:
    await prove(source_is_killed_in_mid_page)


async def test_each_of_many_subscriptions_has_what_was_published_while_links_were_broken() -> None:
    await prove(links_are_made_again)
