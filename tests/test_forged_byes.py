"""A bye that is not true: what was parted by it links again, and until then no call says yes."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from actors import tcp_url

from aiobus import AsyncEventBus, Event, wire
from aiobus.mesh import byes
from aiobus.testing import Faults, MemoryNetwork

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_task_is_left")]

Make = Callable[..., AsyncEventBus]


@pytest.fixture(params=["memory", "ipc", "tcp"])
async def make(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Make]:
    """Makes buses that meet. After a bye that was wrong they link again as soon as `again` says."""
    monkeypatch.setattr(byes, "BYE_SECONDS", 3_600.0)
    with tempfile.TemporaryDirectory(prefix="ab") as directory:
        url = tcp_url() if request.param == "tcp" else f"ipc://{directory}/d"
        network = MemoryNetwork()

        def bus(name: str) -> AsyncEventBus:
            return network.bus(name) if request.param == "memory" else AsyncEventBus(url, name=name)

        yield bus


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on, a peer that has said bye and still listens has not closed."""
    return lambda: monkeypatch.setattr(byes, "BYE_SECONDS", 0.0)


def say_bye(bus: AsyncEventBus) -> None:
    """Send the bye of a bus that does not close, as any process can."""
    mesh: Any = bus._transport
    me, seq = mesh.session.me, bus.stats().published
    mesh.network.send(wire.heartbeat(me.name, me.epoch, seq, leaving=True))


async def test_two_buses_that_two_byes_have_parted_link_again_and_are_named_until_then(
    make: Make, again: Callable[[], None]
) -> None:
    got: list[Event] = []
    async with make("feed") as feed, make("watch") as watch:
        await watch.subscribe(["TRADE", "aiobus.gap"], got.append)
        for number in range(3):
            await feed.publish(Event("TRADE", number))
        assert await feed.flush() == []
        async with (
            watch.stream("aiobus.peer_left") as here,
            feed.stream("aiobus.peer_left") as there,
        ):
            say_bye(feed)
            say_bye(watch)
            await asyncio.gather(anext(here), anext(there))
        for number in range(3, 6):
            await feed.publish(Event("TRADE", number))
        assert (await feed.flush(0), feed.peers) == (["watch"], ())
        again()
        assert await feed.flush(30) == []
        await watch.settle()
        assert [event.data for event in got] == [*range(6)]


async def test_a_bye_that_is_read_while_a_flush_waits_confirms_nothing(
    make: Make, again: Callable[[], None]
) -> None:
    gate = asyncio.Event()

    async def hang(event: Event) -> None:
        await gate.wait()

    async with make("feed") as feed, make("watch") as watch:
        await watch.subscribe("TRADE", hang, maxsize=1)
        for number in range(300):
            await feed.publish(Event("TRADE", number))
        async with feed.stream("aiobus.peer_left") as left:
            flushing = asyncio.create_task(feed.flush(0.5))
            await asyncio.sleep(0)  # it asks
            say_bye(watch)
            await anext(left)
            assert await flushing == ["watch"]
        gate.set()
        again()
        assert await feed.flush(30) == []


@pytest.mark.parametrize("timeout", [0.1, 30.0])
async def test_a_bus_whose_bye_was_wrong_confirms_a_subscription_or_is_named(
    make: Make, again: Callable[[], None], timeout: float
) -> None:
    got: list[Any] = []
    async with make("feed") as feed, make("watch") as watch:
        async with watch.stream("aiobus.peer_joined") as joined:
            async with watch.stream("aiobus.peer_left") as left:
                say_bye(feed)
                await anext(left)
            if timeout > 1.0:
                again()
            subscription = await watch.subscribe(
                "TRADE", lambda event: got.append(event.data), timeout=timeout
            )
            assert set(subscription.unconfirmed) == (set() if timeout > 1.0 else {"feed"})
            again()
            await anext(joined)
        assert set(subscription.unconfirmed) == set()
        for number in range(5):
            await feed.publish(Event("TRADE", number))
        assert await feed.flush() == []
        await watch.settle()
        assert got == [*range(5)]


async def test_a_bye_that_is_read_while_a_subscription_waits_confirms_nothing() -> None:
    network = MemoryNetwork()
    async with network.bus("feed") as feed, network.bus("watch") as watch:
        network.faults = Faults(loss=lambda message: message.kind == "answer")
        async with watch.stream("aiobus.peer_left") as left:
            subscribing = asyncio.create_task(watch.subscribe("TRADE", print, timeout=0.5))
            await asyncio.sleep(0)  # it asks
            say_bye(feed)
            await anext(left)
        subscription = await subscribing
        assert set(subscription.unconfirmed) == {"feed"}
        async with watch.stream("aiobus.peer_joined") as joined:
            network.faults = Faults()
            await anext(joined)
        assert set(subscription.unconfirmed) == set()
