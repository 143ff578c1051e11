"""A process that runs out of file descriptors while others connect to it."""

import os
import resource
import signal
from collections.abc import Iterator

import pytest
from actors import Actor, ActorError, Nursery

from aiobus.discovery import unix_socket as descriptors
from aiobus.discovery.roster import Address
from aiobus.discovery.tcp_socket import has_half_closed
from aiobus.discovery.unix_socket import NEEDED, DescriptorReserve, raise_limit, spare_descriptors
from aiobus.errors import BusError

# The counting and the reserve.


@pytest.fixture
def limit() -> Iterator[None]:
    """The limit is as it was when the test is over."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def limit_to(count: int) -> None:
    """Let this process open `count` more files."""
    soft = len(os.listdir("/dev/fd")) - 1 + count
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


def test_what_is_spare_is_what_may_still_be_opened(limit: None) -> None:
    limit_to(20)
    before = spare_descriptors()
    with open(os.devnull), open(os.devnull):
        assert spare_descriptors() == before - 2
    assert 18 <= before <= 20


def test_where_the_kernel_does_not_count_it_is_counted_here(
    limit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_to(20)
    before = spare_descriptors()

    def refuse(path: str) -> os.stat_result:
        raise FileNotFoundError(path)

    monkeypatch.setattr(descriptors.os, "stat", refuse)
    assert abs(spare_descriptors() - before) <= 1


def test_a_reserve_holds_as_many_as_it_is_told_and_frees_them_for_a_while() -> None:
    before = len(os.listdir("/dev/fd"))
    reserve = DescriptorReserve(3)
    assert len(os.listdir("/dev/fd")) == before + 3
    with reserve.released():
        assert len(os.listdir("/dev/fd")) == before
    assert len(os.listdir("/dev/fd")) == before + 3
    reserve.close()
    reserve.close()
    assert len(os.listdir("/dev/fd")) == before


def test_a_bus_does_not_start_with_less_than_it_needs(
    limit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "WANTED", 0)
    limit_to(NEEDED // 2)
    with pytest.raises(BusError, match=f"{NEEDED} are needed .*ulimit -n"):
        raise_limit()


def test_without_a_descriptor_an_address_counts_as_left_open_by_a_frozen_member() -> None:
    address = Address("127.0.0.1", 9)
    assert not has_half_closed(address)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    is_open = has_half_closed(address)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert is_open


# A process.


WATCH_LOG = """
import logging
self.lines, self.said = [], asyncio.Condition()
class Watch(logging.Handler):
    def emit(watch, record):
        self.lines.append(record.getMessage())
        if "descriptors again" in self.lines[-1] or "more files" in self.lines[-1]:
            asyncio.ensure_future(wake())
async def wake():
    async with self.said:
        self.said.notify_all()
logging.getLogger("aiobus").setLevel(logging.WARNING)
logging.getLogger("aiobus").addHandler(Watch(logging.WARNING))
"""
USE_UP = """
import os
self.hogs = []
try:
    while True:
        self.hogs.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
"""
FREE = """
import os
while self.hogs:
    os.close(self.hogs.pop())
"""


async def says(actor: Actor, text: str) -> None:
    code = """
        async with self.said:
            await self.said.wait_for(lambda: any(text in line for line in self.lines))
    """
    await actor(code, text=text)


async def poor(nursery: Nursery, url: str) -> Actor:
    """A bus named `poor` whose process may open 150 files."""
    actor = await nursery.actor()
    await actor("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150))")
    await actor(WATCH_LOG)
    await actor.start(url, "poor")
    return actor


@pytest.mark.paired
async def test_who_runs_out_of_descriptors_lives_on_when_others_start_and_links_with_them_later(
    nursery: Nursery, url: str
) -> None:
    victim = await poor(nursery, url)
    friend, newcomer = await nursery.actors(2)
    await friend.start(url, "friend")
    await friend.hear("T")
    await victim(USE_UP)
    await says(victim, "fewer than")
    await newcomer("from aiobus.mesh import transport; transport.START_SECONDS = 0.5")
    await newcomer.start(url, "newcomer")
    await newcomer.hear("T", timeout=0)
    await victim("await bus.publish(Event('T', 1))")
    assert await friend.heard(1) == [1]
    await victim(FREE)
    await says(victim, "descriptors again")
    await newcomer(
        """
        async with bus.stream("aiobus.peer_joined") as joined:
            while "poor" not in [each.name for each in bus.peers]:
                await anext(joined)
        """
    )
    await victim("await bus.publish(Event('T', 2))")
    assert (await newcomer.heard(1))[-1:] == [2]
    assert await friend.heard(2) == [1, 2]


@pytest.mark.parametrize("url", ["ipc"], indirect=True)
@pytest.mark.paired
async def test_a_bus_that_accepts_no_peer_for_want_of_descriptors_keeps_its_name(
    nursery: Nursery, url: str
) -> None:
    victim = await poor(nursery, url)
    await victim(USE_UP)
    await says(victim, "fewer than")
    other = await nursery.actor()
    with pytest.raises(ActorError, match="NameInUse"):
        await other.start(url, "poor")
    await victim(FREE)
    await says(victim, "descriptors again")
    with pytest.raises(ActorError, match="NameInUse"):
        await other.start(url, "poor")


@pytest.mark.parametrize("url", ["ipc"], indirect=True)
@pytest.mark.paired
async def test_a_bus_that_closes_without_a_descriptor_leaves_no_file(
    nursery: Nursery, url: str
) -> None:
    victim = await poor(nursery, url)
    await victim(USE_UP)
    await says(victim, "fewer than")
    assert await victim("return await bus.close()") == []
    assert os.listdir(url.removeprefix("ipc://")) == []
    await victim(FREE)


@pytest.mark.paired
async def test_a_bus_without_a_descriptor_names_a_frozen_one_in_flush_and_close(
    nursery: Nursery, url: str
) -> None:
    frozen = await nursery.actor()
    await frozen.start(url, "frozen")
    frozen.kill(signal.SIGSTOP)
    victim = await nursery.actor()
    await victim("from aiobus.mesh import transport; transport.START_SECONDS = 0.5")
    await victim("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150))")
    await victim.start(url, "victim")
    await victim(USE_UP)
    await victim("await bus.publish(Event('T', 1))")
    missing = await victim("return [await bus.flush(0.5), await bus.close(0.5)]")
    assert all(missing), missing
    if url.startswith("ipc"):
        assert missing == [["frozen"], ["frozen"]]
    frozen.kill(signal.SIGCONT)
    await frozen("await bus.close()")
