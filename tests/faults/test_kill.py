"""Killed without a word, at random instants, under 20,000 events/s."""

import time

import pytest

from aiobus.sequence import LEFT
from faults.desk import Desk
from faults.scenario import MIXED, prove, scenario

pytestmark = [*MIXED, pytest.mark.slow]

PACE = 20_000


@scenario("kill -9 of a publisher", soak=200, gaps=[LEFT])
async def publisher_is_killed(desk: Desk) -> None:
    """What is known of it has no hole; its next start is heard from its first event on."""
    publisher, one, other, peer = await desk.bots("publisher", "one", "other", "peer")
    for each in (one, other):
        await each.do("hear", ["T", "P"])
    await publisher.do("load", PACE)
    await peer.do("load", 500, "P")
    await one.do("until_handled", 100)
    await desk.chance(0.4)
    await publisher.kill()
    again = await desk.bot("publisher")
    healed = time.monotonic()
    await again.do("burst", 50)
    await desk.recovered(healed, [again, peer], [one, other])


@scenario("kill -9 of a subscriber", soak=200)
async def subscriber_is_killed(desk: Desk) -> None:
    """The other loses nothing, and a bus that takes its name gets all from then on."""
    publisher, victim, other = await desk.bots("publisher", "victim", "other")
    for each in (victim, other):
        await each.do("hear")
    await publisher.do("load", PACE)
    await victim.do("until_handled", 100)
    await desk.chance(0.4)
    await victim.kill()
    again = await desk.bot("victim")
    await again.do("hear")
    healed = time.monotonic()
    await publisher.do("burst", 1)
    await desk.recovered(healed, [publisher], [again, other])


@scenario(
    "kill -9 of the holder of the tcp address", soak=200, transports=("tcp", "keys"), gaps=[LEFT]
)
async def holder_is_killed(desk: Desk) -> None:
    """Those it brought together go on, and a newcomer finds them."""
    holder, publisher, subscriber = await desk.bots("holder", "publisher", "subscriber")
    for each in (publisher, subscriber):
        await each.do("hear", ["T", "H"])
    await holder.do("load", 500, "H")
    await publisher.do("load", PACE)
    await subscriber.do("until_handled", 100)
    await desk.chance(0.4)
    await holder.kill()
    newcomer = await desk.bot("newcomer")
    await newcomer.do("hear")
    healed = time.monotonic()
    await publisher.do("burst", 1)
    await newcomer.do("burst", 50)
    await desk.recovered(healed, [publisher, newcomer], [subscriber])
    await desk.recovered(healed, [publisher], [newcomer])


async def test_a_killed_publisher_leaves_no_hole_in_what_is_known_of_it() -> None:
    await prove(publisher_is_killed)


async def test_a_killed_subscriber_costs_the_others_nothing() -> None:
    await prove(subscriber_is_killed)


async def test_when_the_holder_of_the_address_is_killed_no_bus_loses_anything() -> None:
    await prove(holder_is_killed)
