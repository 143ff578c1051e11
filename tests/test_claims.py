"""Names that somebody with the desk's secret claims at a rendezvous address and has not proven."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from desks import until
from keys import KeyedDesk, make

from aiobus import AsyncEventBus, Event
from aiobus.discovery import Member, registry
from aiobus.discovery.rendezvous import Rendezvous
from aiobus.discovery.roster import hello_line
from aiobus.discovery.seal import Seal, accepted, new_nonce, opening
from aiobus.keyring import Keyring
from aiobus.keyring.changes import retire, rotate
from aiobus.mesh import links as mesh_links

pytestmark = pytest.mark.usefixtures("no_task_is_left")


@pytest.fixture
def desk(folder: Path) -> KeyedDesk:
    return KeyedDesk(folder / "keys", "feed", "strategy", "late")


class Claimant:
    """It has the secret of the desk and no key of a member. Its endpoint accepts and is mute."""

    def __init__(self, desk: KeyedDesk, name: str, door: socket.socket) -> None:
        host, port = desk.url.removeprefix("tcp://").split(":")
        self.member = Member(name, f"tcp://127.0.0.1:{door.getsockname()[1]}")
        self._desk = desk
        self._at = host, int(port)
        self.sock = socket.socket()
        self.sock.setblocking(False)

    async def claim(self) -> None:
        loop, secrets = asyncio.get_running_loop(), Keyring.load(self._desk.path).desk_secrets
        await loop.sock_connect(self.sock, self._at)
        first = opening(secrets, new_nonce())
        await loop.sock_sendall(self.sock, first)
        seal: Seal = accepted(first, secrets, await self._line())
        await loop.sock_sendall(self.sock, seal.seal(hello_line(self.member)))
        assert b'"roster"' in seal.open(await self._line())

    async def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            line += await asyncio.get_running_loop().sock_recv(self.sock, 1)
        return line[:-1]

    async def is_sent_away(self) -> None:
        """Return once the registry has ended the connection."""
        while await asyncio.get_running_loop().sock_recv(self.sock, 65536):
            pass


Claim = Callable[[str], Any]


@pytest.fixture
async def claimed(desk: KeyedDesk) -> AsyncIterator[Claim]:
    """`await claimed(name)`: somebody has claimed it, at an endpoint of its own."""
    open_: list[socket.socket] = []

    async def claim(name: str) -> Claimant:
        door = socket.create_server(("127.0.0.1", 0))
        claimant = Claimant(desk, name, door)
        open_.extend((door, claimant.sock))
        await claimant.claim()
        return claimant

    yield claim
    for each in open_:
        each.close()


@asynccontextmanager
async def hearing(bus: AsyncEventBus) -> AsyncIterator[Callable[[AsyncEventBus], Any]]:
    """Let another bus publish, and return once this one has it."""
    async with bus.stream("TRADE") as trades:

        async def hears(feed: AsyncEventBus) -> None:
            await feed.publish(Event("TRADE", 1))
            assert (await anext(trades)).data == 1

        yield hears


def links_of(bus: AsyncEventBus) -> Any:
    return bus._transport.session.links  # type: ignore[attr-defined]


def discovery_of(bus: AsyncEventBus) -> Rendezvous:
    found = bus._transport.discovery  # type: ignore[attr-defined]
    assert isinstance(found, Rendezvous)
    return found


async def test_a_name_that_is_only_claimed_keeps_its_bus_from_nothing(
    desk: KeyedDesk, claimed: Claim
) -> None:
    """It could not start: a bus of its name seemed to be there, frozen."""
    async with desk.bus("feed") as feed:
        claimant = await claimed("strategy")
        await until(lambda: links_of(feed).at(claimant.member.endpoint) is not None)
        async with desk.bus("strategy") as strategy, hearing(strategy) as hears:
            await hears(feed)
            assert [each.name for each in feed.peers] == ["strategy"]


async def test_a_bus_that_serves_starts_though_its_own_name_is_claimed_there(
    desk: KeyedDesk, claimed: Claim
) -> None:
    async with desk.bus("feed") as feed:
        claimant = await claimed("feed")
        async with desk.bus("strategy") as strategy, hearing(strategy) as hears:
            await hears(feed)
        assert links_of(feed).at(claimant.member.endpoint) is None


async def test_nobody_waits_for_a_name_that_is_only_claimed(
    desk: KeyedDesk, claimed: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh_links, "CLAIM_SECONDS", 0.2)
    async with desk.bus("feed") as feed, desk.bus("strategy") as strategy:
        claimant = await claimed("late")
        await until(lambda: links_of(feed).at(claimant.member.endpoint) is not None)
        await until(lambda: links_of(strategy).at(claimant.member.endpoint) is not None)
        for bus in (feed, strategy):
            await bus.publish(Event("TRADE", 1))
            assert set(await bus.flush(600)) <= {"late"}  # as long as it may be about to prove it
            links = links_of(bus)
            peer = links.at(claimant.member.endpoint)
            await until(lambda links=links, peer=peer: links.is_shut_out(peer))  # type: ignore[misc]
            assert await bus.flush(600) == []


async def test_a_member_is_claimed_until_the_registry_has_met_it(
    desk: KeyedDesk, claimed: Claim
) -> None:
    async with desk.bus("feed") as feed:
        claimant = await claimed("strategy")
        async with desk.bus("late") as late, desk.bus("strategy") as strategy:
            true = Member("strategy", discovery_of(strategy).endpoint)
            for bus in (feed, late):
                known = discovery_of(bus)._known
                await until(lambda known=known: known.has_met(true))  # type: ignore[misc]
                assert known.is_claimed(claimant.member)
                assert claimant.member not in [*known]


async def test_a_claim_ends_with_its_connection(desk: KeyedDesk, claimed: Claim) -> None:
    async with desk.bus("feed") as feed:
        claimant = await claimed("strategy")
        assert discovery_of(feed)._known.claimed == [claimant.member]
        claimant.sock.close()
        await until(lambda: not discovery_of(feed)._known.claimed)


async def test_the_claims_of_a_retired_secret_end(desk: KeyedDesk, claimed: Claim) -> None:
    async with desk.bus("feed") as feed:
        claimant = await claimed("strategy")
        rotate(str(desk.path))
        retire(str(desk.path))
        await claimant.is_sent_away()
        assert discovery_of(feed)._known.claimed == []


async def test_a_full_registry_gives_a_member_the_place_of_one_that_nobody_has_met(
    desk: KeyedDesk, claimed: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who had the secret could take all connections, and no member could start any more."""
    make(desk.path, "other")
    async with desk.bus("feed") as feed, desk.bus("strategy") as strategy:
        member = Member("strategy", discovery_of(strategy).endpoint)
        await until(lambda: discovery_of(feed)._known.has_met(member))
        monkeypatch.setattr(registry, "MAX_CONNECTIONS", 3)
        claimants = [await claimed("other") for _ in range(2)]
        async with desk.bus("late") as late, hearing(late) as hears:
            await claimants[0].is_sent_away()
            await hears(feed)
            assert strategy.stats().unreached == ()  # a member that was met keeps its place
            assert {each.name for each in late.peers} >= {"feed"}
