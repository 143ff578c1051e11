"""A network that loses, repeats and disorders messages: in memory, by seeded dice.

Rounds share their wall time: what they wait for is the next beacon, or that a question is asked
again.
"""

import time
from collections.abc import Callable

import pytest

from aiobus.testing import Faults, MemoryNetwork, Message
from faults.desk import Desk, Local
from faults.scenario import Scenario, prove, scenario

pytestmark = [pytest.mark.usefixtures("no_task_is_left"), pytest.mark.slow]

Lossy = Callable[[str, Faults], Scenario]


def events(message: Message) -> bool:
    """What a publisher sends of its events."""
    return message.kind == "events"


async def meet(desk: Desk, names: str = "ab") -> tuple[MemoryNetwork, Local, list[Local]]:
    """A publisher and those that listen to it, so far without any trouble."""
    network = MemoryNetwork(seed=desk.dice.randrange(10**6))
    publisher, *listeners = [await desk.local(network, name) for name in ("p", *names)]
    for each in listeners:
        await each.do("hear")
    return network, publisher, listeners


async def mend(desk: Desk, network: MemoryNetwork, publisher: Local, others: list[Local]) -> None:
    """The trouble is over, and what was missing arrives."""
    network.faults = Faults()
    await desk.recovered(time.monotonic(), [publisher], others)


def troubled(title: str, faults: Faults) -> Scenario:
    """Bursts of every size while something goes wrong all the time, with every kind of message."""

    @scenario(title, soak=50, transports=("memory",), at_once=3)
    async def play(desk: Desk) -> None:
        network, publisher, listeners = await meet(desk)
        network.faults = faults
        for _ in range(10):
            await publisher.do("bursts", desk.dice.randrange(1, 30), 1)
            await publisher.do("burst", desk.dice.randrange(1, 200))
        await mend(desk, network, publisher, listeners)

    return play


@scenario("loss of only the last event", soak=50, transports=("memory",), at_once=3)
async def last_is_lost(desk: Desk) -> None:
    """A beacon tells."""
    network, publisher, listeners = await meet(desk)
    await publisher.do("burst", 100)
    network.faults = Faults(loss=events)
    await publisher.do("burst", 1)
    await mend(desk, network, publisher, listeners)
    assert network.lost == len(listeners)


@scenario("loss of 30 % of beacons", soak=50, transports=("memory",), at_once=3)
async def beacons_are_lost(desk: Desk) -> None:
    """One of the next tells; what was lost is asked for while beacons still go missing."""
    network, publisher, listeners = await meet(desk)
    beacons = Faults(loss=lambda message: 0.3 if message.kind == "beacon" else 0)
    for _ in range(2):
        network.faults = Faults(loss=events)
        place = [*publisher.bot.source, await publisher.do("burst", desk.dice.randrange(1, 50))]
        network.faults = beacons
        for each in listeners:
            await each.do("until", *place)
    network.faults = Faults(loss=lambda message: 0.3 if message.kind in ("beacon", "events") else 0)
    await publisher.do("bursts", 200, 1)
    await mend(desk, network, publisher, listeners)


@scenario("drops in runs of 5,000", soak=50, transports=("memory",))
async def runs_are_lost(desk: Desk) -> None:
    """As when a queue is full until half of it is read."""
    network, publisher, listeners = await meet(desk, "a")
    await publisher.do("bursts", desk.dice.randrange(1, 100), 3)
    network.faults = Faults(loss=events)
    await publisher.do("bursts", 500, 10)
    network.faults = Faults()
    await publisher.do("bursts", desk.dice.randrange(1, 100), 3)
    await mend(desk, network, publisher, listeners)
    assert network.lost >= 500 * len(listeners)


LOST = [
    last_is_lost,
    beacons_are_lost,
    troubled("drops of 1 %", Faults(loss=0.01)),
    troubled("drops of 10 %", Faults(loss=0.1)),
]
DISORDERED = [
    troubled("duplicates", Faults(duplication=0.3)),
    troubled("reordering", Faults(reorder=0.3)),
    troubled(
        "drops, duplicates, reordering and delay",
        Faults(loss=0.05, duplication=0.1, reorder=0.1, delay=0.02),
    ),
]


async def test_what_the_network_loses_arrives_all_the_same() -> None:
    await prove(*LOST)


async def test_a_run_of_5_000_that_is_lost_arrives_all_the_same() -> None:
    await prove(runs_are_lost)


async def test_what_the_network_repeats_or_disorders_arrives_once_and_in_order() -> None:
    await prove(*DISORDERED)
