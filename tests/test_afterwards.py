"""What still comes of a source that has left: nobody can be asked for what is missing of it."""

import asyncio
from typing import Any

from ports import opened

from aiobus import Event
from aiobus.testing import Faults, MemoryNetwork, Message
from aiobus.testing.virtual_loop import VirtualLoop


async def say(network: MemoryNetwork, name: str, message: bytes) -> None:
    """Let the bus of this name hear a message of somebody who is no bus."""
    port = network.port()
    await opened(port, "stranger")
    port.connect(f"memory://{name}")
    port.subscribe(b"~stranger@1 memory://stranger\0")
    await asyncio.sleep(0.1)
    port.send(message)
    await asyncio.sleep(0.1)
    await port.close(0)


def test_what_a_frame_shows_to_be_missing_of_a_source_that_has_left_is_said_to_be_lost() -> None:
    """Or its subscription would be behind, and `settle` wait, for the hour after which the source
    is forgotten.
    """
    seen: list[Any] = []

    async def main() -> None:
        network, sent = MemoryNetwork(), []

        def loss(message: Message) -> float:
            sent.append(message)
            return bool(message.events)

        async with network.bus("bot") as bot:
            await bot.subscribe(["A", "aiobus.gap"], seen.append)
            async with network.bus("feed") as feed:
                await feed.flush()
                network.faults = Faults(loss=loss)
                for number in range(2):
                    await feed.publish(Event("A", number))
                    await asyncio.sleep(0.01)
                network.faults = Faults()
                network.kill("feed")
                await feed.close(0)
            await asyncio.sleep(100)
            before = len(seen)
            (_, last) = [message.data for message in sent if message.events]
            await say(network, "bot", last)
            await bot.settle(3)
            assert [event.type for event in seen[before:]] == ["aiobus.gap"]
            assert bot.stats().subscriptions[0].behind is False

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


def test_a_hello_of_the_one_before_that_comes_late_does_not_hide_who_is_there() -> None:
    """Each start has a connection of its own, so the hello of an earlier one may be read last."""
    seen: list[Any] = []

    async def main() -> None:
        network = MemoryNetwork(seed=4)
        async with network.bus("bot") as bot:
            await bot.subscribe("A", seen.append)
            before = network.bus("feed")
            await before.start()
            network.partition({"feed"}, {"bot"}, cut=True)
            await asyncio.sleep(0.1)
            network.faults = Faults(delay=lambda message: 20 * (message.target == "bot"))
            network.heal()  # so it says hello again, which takes a while
            await asyncio.sleep(0.1)
            await before.close(0)
            network.faults = Faults()
            async with network.bus("feed") as feed:
                for number in range(60):
                    await feed.publish(Event("A", number))
                    await asyncio.sleep(1)
                assert [each.epoch for each in bot.stats().links] == [feed.stats().epoch]
                assert await feed.flush(3) == []
            assert [event.data for event in seen] == [*range(60)]

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
