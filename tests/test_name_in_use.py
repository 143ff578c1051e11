"""Two buses of one name: what the later is told, and where both are to be found."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from actors import ActorError, Nursery, tcp_url

from aiobus import AsyncEventBus, NameInUse
from aiobus.testing import MemoryNetwork

pytestmark = pytest.mark.usefixtures("no_task_is_left")

HERE = "this very process has a bus named 'a' on {}: use that object, close it first, or give"


@pytest.fixture(params=["memory", "ipc", "tcp"])
def make(request: pytest.FixtureRequest, folder: Path) -> Callable[[], AsyncEventBus]:
    """Another bus named `a`."""
    if request.param == "memory":
        network = MemoryNetwork()
        return lambda: network.bus("a")
    url = f"ipc://{folder}/d" if request.param == "ipc" else tcp_url()
    return lambda: AsyncEventBus(url, name="a")


async def test_if_the_other_is_of_this_very_process_that_is_said(
    make: Callable[[], AsyncEventBus],
) -> None:
    async with make() as bus:
        make()  # one that was never started is not on the bus
        with pytest.raises(NameInUse, match=HERE.format(bus.url)) as caught:
            await make().start()
        assert caught.value.is_here


async def test_if_it_is_of_another_process_it_is_not(nursery: Nursery, folder: Path) -> None:
    url = f"ipc://{folder}/d"
    other = await nursery.actor()
    await other.start(url, "a")
    async with AsyncEventBus(url, name="b"):
        with pytest.raises(NameInUse, match=f"a bus named 'a' is on {url} already; give") as caught:
            await AsyncEventBus(url, name="a").start()
        assert not caught.value.is_here
        with pytest.raises(ActorError, match="a bus named 'b' is on"):
            await (await nursery.actor()).start(url, "b")


async def test_where_a_bus_is_to_be_found_is_in_the_log(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "aiobus"):
        async with AsyncEventBus(f"ipc://{folder}/d", name="a"):
            assert f"a listens at ipc://{folder}/d/a.sock" in caplog.messages


async def test_a_later_one_that_is_refused_is_not_said_to_have_come(
    make: Callable[[], AsyncEventBus], caplog: pytest.LogCaptureFixture
) -> None:
    async with make():
        with pytest.raises(NameInUse):
            await make().start()
    assert [line for line in caplog.messages if "has come" in line] == []
