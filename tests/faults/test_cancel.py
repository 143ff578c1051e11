"""Everything cancelled at random instants, over real sockets, under load."""

import asyncio

import pytest

from faults.desk import Desk
from faults.scenario import MIXED, prove, scenario

pytestmark = [*MIXED, pytest.mark.slow]


@scenario("a storm of cancellations", soak=50, at_once=3)
async def calls_are_cancelled(desk: Desk) -> None:
    """Every numbered event arrives, no step loses one, no task or descriptor is left."""
    stormy, peer = await desk.bots("stormy", "peer")
    for each in (stormy, peer):
        await each.do("hear")
    await peer.do("load", 1_000)
    await stormy.do("until_handled", 100)
    before = [(each, (await each.do("sample"))[1]) for each in (stormy, peer)]
    seed = desk.dice.randrange(10**6)
    steps = stormy.run("faults.storm", "step", seed, 1_500)
    left = await stormy.run("faults.storm", "blow", seed, 200)
    await steps
    assert not left, f"left behind: {left}"
    await asyncio.gather(
        *(each.run("faults.storm", "until_descriptors", open_) for each, open_ in before)
    )


async def test_what_is_cancelled_costs_no_event_no_task_and_no_descriptor() -> None:
    await prove(calls_are_cancelled)
