"""Stopped and let go on: subscribers, publishers, and those whose handler holds up the loop.

Rounds share their wall time, for they mostly wait.
"""

import asyncio
import time

import pytest

from faults.desk import Desk
from faults.scenario import MIXED, prove, scenario
from faults.signs import TAKE, WATCH

pytestmark = [*MIXED, pytest.mark.slow]


@scenario("SIGSTOP of a subscriber", soak=20, at_once=2, weight=2)
async def subscriber_is_frozen(desk: Desk) -> None:
    """It catches up, or is told what history no longer holds; the other notices nothing."""
    publisher, victim, other = await desk.bots("publisher", "victim", "other")
    for each in (victim, other):
        await each.do("hear")
    await publisher.do("load", desk.dice.choice([300, 1_000]))
    await victim.do("until_handled", 100)
    await desk.chance(0.3)
    await victim.freeze()
    await desk.last(5, 30)
    place = await publisher.do("pause")
    await other.do("until", *place)
    await desk.recovered(victim.thaw(), [publisher], [victim])


@scenario("SIGSTOP of a subscriber whose policies drop", soak=20, at_once=2)
async def dropping_subscriber_is_frozen(desk: Desk) -> None:
    """Each inbox drops by its own rule, and counts it; one that may not drop has everything."""
    publisher, victim = await desk.bots("publisher", "victim")
    policies = {
        "oldest": {"overflow": "drop_oldest", "maxsize": 64},
        "latest": {"overflow": "latest", "maxsize": 64},
        "waits": {"overflow": "block", "maxsize": 1_024},
    }
    for label, policy in policies.items():
        await victim.do("hear", "T", label, **policy)
    await publisher.do("load", 1_000, "T", 16)
    await victim.do("until_handled", 300)
    await victim.freeze()
    await publisher.do("bursts", 40 if desk.scale.affords(10) else 10, 250, "T", 16)
    healed = victim.thaw()
    heard = [desk.recovered(healed, [publisher], [victim], label) for label in policies]
    await asyncio.gather(*heard)  # one after another, a recovery would count the wait before it


@scenario("SIGSTOP of a publisher", soak=20, at_once=4, weight=2)
async def publisher_is_frozen(desk: Desk) -> None:
    """It goes on where it stopped."""
    publisher, other, subscriber = await desk.bots("publisher", "other", "subscriber")
    await subscriber.do("hear", ["T", "O"])
    await other.do("hear", ["T"])
    await publisher.do("load", 1_000)
    await other.do("load", 300, "O")
    await subscriber.do("until_handled", 100)
    await desk.chance(0.3)
    await publisher.freeze()
    await desk.last(5, 30)
    place = await other.do("pause")
    await subscriber.do("until", *place)
    healed = publisher.thaw()
    await publisher.do("burst", 100)
    await desk.recovered(healed, [publisher], [subscriber, other])


@scenario("a handler blocks the loop for 5 s", soak=20, at_once=4, weight=2)
async def loop_is_blocked(desk: Desk) -> None:
    """The others go on, and neither leave it for dead nor make its link again; it has everything
    soon after.
    """
    publisher, victim, other = await desk.bots("publisher", "victim", "other")
    await other.actor(WATCH)
    for each in (victim, other):
        await each.do("hear", ["T", "V"])
    await publisher.do("load", 1_000)
    await victim.do("load", 100, "V")
    await victim.do("until_handled", 100)
    blocked = asyncio.ensure_future(victim.do("block", 5.0))
    await asyncio.sleep(4)  # it is still blocked for a second
    place = await publisher.do("pause")
    await other.do("until", *place)
    assert not blocked.done(), "they waited for the one that is blocked"
    await publisher.do("burst", 100)
    await blocked
    healed = time.monotonic()
    await victim.do("burst", 100, "V")
    await desk.recovered(healed, [publisher, victim], [victim, other])
    assert [kind for kind, _ in await other.actor(TAKE) if kind in ("peer_left", "relink")] == []


@scenario("a frozen order gateway with max_age=2", soak=20, at_once=4, weight=2)
async def gateway_is_frozen(desk: Desk) -> None:
    """No stale order is handed over; the oracle finds each in the counter."""
    strategy, gateway = await desk.bots("strategy", "gateway")
    await gateway.do("hear", "ORDER", max_age=2)
    await strategy.do("load", 50, "ORDER")
    await gateway.do("until_handled", 10)
    await gateway.freeze()
    frozen = time.time()
    await desk.last(3, 30)
    thawed = time.time()
    healed = gateway.thaw()
    await strategy.do("burst", 10, "ORDER")
    await desk.recovered(healed, [strategy], [gateway])
    stale = await gateway.do("handled_between", frozen, thawed - 2)
    assert stale == 0, f"{stale} orders of more than 2 s were handed over"
    assert await gateway.do("handled_between", thawed, time.time()) >= 10


async def test_a_bus_that_was_frozen_or_blocked_catches_up() -> None:
    await prove(
        subscriber_is_frozen, dropping_subscriber_is_frozen, publisher_is_frozen, loop_is_blocked
    )


async def test_a_frozen_order_gateway_is_handed_no_stale_order() -> None:
    await prove(gateway_is_frozen)
