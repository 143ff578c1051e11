"""Which bus a link with keys leads to: it is known by name before it has said anything."""

import os
import resource
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import keys
import pytest
import zmq
import zmq.asyncio
from actors import tcp_url
from desks import until
from keys import Rogue

from aiobus import AsyncEventBus, Event
from aiobus.bus import refusing, unmet
from aiobus.discovery import Member
from aiobus.keyring import Keyring
from aiobus.keyring.changes import revoke
from aiobus.mesh import transport

pytestmark = pytest.mark.usefixtures("no_task_is_left")


@pytest.fixture
async def apart(tmp_path: Path) -> AsyncIterator[tuple[Any, Any]]:
    """Two buses of one desk that do not meet at an address, and its keyring has a third member."""
    ring: Keyring = keys.make(tmp_path / "keys", "feed", "strategy", "ghost")
    async with AsyncExitStack() as stack:
        feed, strategy = [
            await stack.enter_async_context(AsyncEventBus(tcp_url(), name=name, keyring=ring))
            for name in ("feed", "strategy")
        ]
        yield feed, strategy


async def test_a_bus_that_was_said_to_be_another_is_linked_once_its_name_is_known(
    apart: tuple[Any, Any],
) -> None:
    feed, strategy = apart
    endpoint = feed._transport.session.me.endpoint
    async with strategy.stream("aiobus.refused") as refusals:
        strategy._transport.find(Member("ghost", endpoint))
        refusal = await anext(refusals)
    assert (refusal.data["name"], refusal.data["cause"]) == ("ghost", "key")
    strategy._transport.find(Member("feed", endpoint))
    await strategy.wait_for_peer("feed", timeout=5)
    async with strategy.stream("T") as events:
        await feed.publish(Event("T", 1))
        assert (await anext(events)).data == 1


async def test_a_link_that_is_ended_can_be_made_again_at_once(apart: tuple[Any, Any]) -> None:
    """As when the list has changed: libzmq has not yet freed what the link had before."""
    feed, strategy = apart
    endpoint = feed._transport.session.me.endpoint
    network = strategy._transport.network
    strategy._transport.find(Member("feed", endpoint))
    await strategy.wait_for_peer("feed", timeout=5)
    link = network._links[endpoint]
    for _ in range(20):
        network._break(link)
        network._make(link)
    async with strategy.stream("T") as events:
        await feed.publish(Event("T", 1))
        assert (await anext(events)).data == 1


@pytest.mark.slow
@pytest.mark.parametrize("spare", range(3))
async def test_a_link_for_which_no_descriptor_is_left_is_made_once_there_are_some(
    apart: tuple[Any, Any], spare: int
) -> None:
    """It stayed unmade, or half of its sockets stayed open and held up the end of the bus."""
    feed, strategy = apart
    endpoint = feed._transport.session.me.endpoint
    network = strategy._transport.network
    sockets = len(network._sockets)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) - 1 + spare, hard))
    try:
        strategy._transport.find(Member("feed", endpoint))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(network._sockets) == sockets
    await strategy.wait_for_peer("feed", timeout=5)
    async with strategy.stream("T") as events:
        await feed.publish(Event("T", 1))
        assert (await anext(events)).data == 1


async def test_a_change_of_the_list_is_carried_out_though_no_descriptor_is_left(
    tmp_path: Path,
) -> None:
    """At the first link that could not be made again, the rest stayed as it was."""
    desk = keys.KeyedDesk(tmp_path / "keys", "feed", "a", "gone")
    async with desk.bus("feed") as feed:
        network: Any = feed._transport.network
        for port, name in enumerate(("a", "gone"), 9):  # where nobody listens
            network.connect(f"tcp://127.0.0.1:{port}", name)
        a, gone = network._links.values()
        members = desk.members.without("gone")
        desk.write(members.without("a").with_member(keys.Member("a", keys.key())))
        network.keyring.reload()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # all of these are open
        try:
            network._on_change()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (a.xsub, gone.xsub) == (None, None)


async def test_nobody_waits_for_a_bus_that_is_revoked_and_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host has not the newest list, or it was not ended. Here who waited would do so for an
    hour.
    """
    monkeypatch.setattr(transport, "START_SECONDS", 3_600.0)
    url, folder = tcp_url(), tmp_path / "keys"
    keys.make(folder, "feed", "strategy")
    shutil.copytree(folder, tmp_path / "old")
    revoke(str(folder), "feed")
    async with AsyncEventBus(url, name="feed", keyring=Keyring.load(tmp_path / "old")):
        ring = Keyring.load(folder)
        async with AsyncEventBus(url, name="strategy", keyring=ring) as strategy:
            subscription = await strategy.subscribe("T", lambda event: None, timeout=3_600.0)
            await strategy.publish(Event("T", 1))
            assert await strategy.flush(3_600.0) == []
            assert list(subscription.unconfirmed) == []
            assert list(unmet(strategy)) == []


@pytest.mark.one_loop
async def test_nobody_waits_for_a_bus_that_has_refused_and_it_is_linked_once_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of its host is older, and lacks the newcomer."""
    monkeypatch.setattr(transport, "START_SECONDS", 3_600.0)
    url, folder = tcp_url(), tmp_path / "keys"
    keys.make(folder, "feed", "risk")
    shutil.copytree(folder, tmp_path / "old")
    keys.make(folder, "late")
    old = Keyring.load(tmp_path / "old")
    async with (
        AsyncEventBus(url, name="feed", keyring=old) as feed,
        AsyncEventBus(url, name="risk", keyring=Keyring.load(folder)) as risk,
    ):
        await risk.wait_for_peer("feed")
        async with AsyncEventBus(url, name="late", keyring=Keyring.load(folder)) as late:
            subscription = await late.subscribe("T", lambda event: None, timeout=3_600.0)
            await late.publish(Event("T", 1))
            assert await late.flush(3_600.0) == ["feed"]
            assert [each.name for each in late.peers] == ["risk"]
            assert set(subscription.unconfirmed) == {"feed"}
            assert list(unmet(late)) == []
            assert "does not let this bus in" in refusing(late)["feed"]
            keys.replaced(tmp_path / "old" / "desk.members", (folder / "desk.members").read_text())
            await late.wait_for_peer("feed", timeout=8)
            await until(lambda: not subscription.unconfirmed)
            assert await late.flush() == []
            assert refusing(late) == {}
        await feed.wait_for_peer("risk")


async def test_nobody_waits_for_a_port_where_another_key_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a bus that was killed, whose port another bus has got."""
    monkeypatch.setattr(transport, "START_SECONDS", 3_600.0)
    url, folder = tcp_url(), tmp_path / "keys"
    ring = keys.make(folder, "feed", "ghost", "strategy")
    async with AsyncEventBus(url, name="feed", keyring=ring) as feed:
        mesh: Any = feed._transport
        with zmq.asyncio.Context() as context, context.socket(zmq.XPUB) as other:
            public, secret = zmq.curve_keypair()
            Rogue.listen(other, (public.decode(), secret.decode()))
            port = other.bind_to_random_port("tcp://127.0.0.1")
            mesh.discovery.remember(Member("ghost", f"tcp://127.0.0.1:{port}"))
            async with AsyncEventBus(url, name="strategy", keyring=ring) as strategy:
                assert [each.name for each in strategy.peers] == ["feed"]
                assert (
                    "does not prove the key that the list here has" in refusing(strategy)["ghost"]
                )
    assert "strategy starts without ghost: their keys do not allow a link" in caplog.text
