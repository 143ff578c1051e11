"""A peer of another version of the protocol: it is named, and not waited for."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import zmq.asyncio

from aiobus import AsyncEventBus, Event, NameInUse
from aiobus.mesh import transport
from aiobus.wire import PeerId, topic

pytestmark = pytest.mark.usefixtures("no_task_is_left")

AN_HOUR = 3_600.0
"""As long as that would wait what waited for the peer at all."""
QUESTIONS = {
    1: lambda who: ["?", "*", 7, who],
    3: lambda who: ["?", 3, {"whatever": "comes"}, 7, who],
}


class Other:
    """A bus of another version: it says hello and asks as that has it, and answers nothing."""

    def __init__(self, folder: Path, version: int, name: str = "other") -> None:
        self.who = PeerId(name, 1, f"ipc://{folder}/{name}.sock")
        self.context: zmq.asyncio.Context = zmq.asyncio.Context()
        self.down = self.context.socket(zmq.XPUB)
        self.down.bind(self.who.endpoint)
        self.ups: list[zmq.asyncio.Socket] = []
        self.question = orjson.dumps(QUESTIONS[version](self.who.text))

    async def meet(self, bus: PeerId) -> None:
        """Link as far as it goes."""
        up = self.context.socket(zmq.XSUB)
        self.ups.append(up)
        up.connect(bus.endpoint)
        for name in (topic("TRADE"), self.who.topic):
            await up.send(b"\1" + name)
        await up.send(self.question)

    async def greeted(self) -> PeerId:
        """The next bus that says hello."""
        while True:
            message = await self.down.recv()
            if message[:2] == b"\1~" and message[2:3] != b"\0":
                name, _, endpoint = message[2:-1].decode().partition(" ")
                return PeerId(name.partition("@")[0], 1, endpoint)

    async def live(self) -> None:
        """Meet each bus that comes."""
        while True:
            await self.meet(await self.greeted())


@pytest.fixture(params=[1, 3])
async def other(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[Other]:
    made = Other(folder, request.param)
    living = asyncio.create_task(made.live())
    yield made
    living.cancel()
    await asyncio.wait([living])
    made.context.destroy(linger=0)


async def test_a_peer_of_another_version_is_named_and_not_waited_for(
    folder: Path,
    other: Other,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.WARNING, "aiobus")
    monkeypatch.setattr(transport, "START_SECONDS", AN_HOUR)
    async with AsyncEventBus(f"ipc://{folder}", name="bus") as bus:
        subscription = await bus.subscribe("TRADE", lambda event: None, timeout=AN_HOUR)
        assert subscription.unconfirmed == {"other"}
        assert bus.peers == ()
        await bus.publish(Event("TRADE", 1))
        assert await bus.flush(AN_HOUR) == ["other"]
        assert await bus.close(AN_HOUR) == ["other"]
    (line,) = [line for line in caplog.messages if "speaks version" in line]
    assert other.who.endpoint in line
    assert "and this bus version 2" in line
    assert "run the same version of aiobus" in line


async def test_a_strategy_is_told_of_a_peer_of_another_version(folder: Path) -> None:
    async with AsyncEventBus(f"ipc://{folder}", name="bus") as bus:
        async with bus.stream("aiobus.refused") as refusals:
            other = Other(folder, 3)
            up = other.context.socket(zmq.XSUB)
            other.ups.append(up)
            up.connect(bus._transport.session.me.endpoint)  # type: ignore[attr-defined]
            await up.send(b"\1" + other.who.topic)
            await up.send(other.question)
            refusal = await anext(refusals)
        other.context.destroy(linger=0)
    assert (refusal.data["name"], refusal.data["cause"]) == ("other", "version")
    assert "run the same version of aiobus" in refusal.data["text"]


@pytest.mark.parametrize("version", [1, 3])
async def test_the_name_of_a_bus_of_another_version_is_in_use(folder: Path, version: int) -> None:
    other = Other(folder, version, "bus")
    living = asyncio.create_task(other.live())
    try:
        with pytest.raises(NameInUse):
            await AsyncEventBus(f"ipc://{folder}", name="bus").start()
    finally:
        living.cancel()
        await asyncio.wait([living])
        other.context.destroy(linger=0)


async def test_a_peer_of_this_version_at_the_place_of_one_of_another_is_linked(
    folder: Path, other: Other
) -> None:
    async with AsyncEventBus(f"ipc://{folder}", name="bus") as bus:
        await bus.publish(Event("TRADE", 1))
        assert await bus.flush() == ["other"]
        other.context.destroy(linger=0)
        async with AsyncEventBus(f"ipc://{folder}", name="other") as successor:
            got = asyncio.Queue[object]()
            await successor.subscribe("TRADE", lambda event: got.put_nowait(event.data))
            await bus.publish(Event("TRADE", 2))
            assert await got.get() == 2
            assert await bus.flush() == []
