"""Names that somebody with the desk's secret claims at a rendezvous address and has not proven."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from desks import until
from keys import KeyedDesk, make

from aiobus import AsyncEventBus, Event, NameInUse
from aiobus.discovery import Member, registry
from aiobus.discovery.rendezvous import Rendezvous
from aiobus.discovery.roster import hello_line
from aiobus.discovery.seal import Seal, accepted, new_nonce, opening
from aiobus.keyring import Keyring
from aiobus.keyring.changes import retire, rotate
from aiobus.mesh import transport

pytestmark = pytest.mark.usefixtures("no_task_is_left")


@pytest.fixture
def desk(folder: Path) -> KeyedDesk:
    return KeyedDesk(folder / "keys", "feed", "strategy", "late")


class Claimant:
    """It has the secret of the desk and no key of a member. Its endpoint accepts and is mute."""

    def __init__(self, desk: KeyedDesk, member: Member) -> None:
        host, port = desk.url.removeprefix("tcp://").split(":")
        self.member = member
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


Claim = Callable[..., Any]


@pytest.fixture
async def claimed(desk: KeyedDesk) -> AsyncIterator[Claim]:
    """`await claimed(name)`: somebody has claimed it, at an endpoint of its own or `at` another."""
    open_: list[socket.socket] = []

    async def claim(name: str, at: str = "") -> Claimant:
        door = socket.create_server(("127.0.0.1", 0))
        endpoint = at or f"tcp://127.0.0.1:{door.getsockname()[1]}"
        claimant = Claimant(desk, Member(name, endpoint))
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


@pytest.mark.slow
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


async def test_of_two_buses_of_one_name_that_start_at_once_one_does(desk: KeyedDesk) -> None:
    """Each is only claimed when the other hears of it."""
    async with desk.bus("feed"):
        twins = [desk.bus("strategy") for _ in range(2)]
        came = await asyncio.gather(*(each.start() for each in twins), return_exceptions=True)
        assert [type(each) for each in came if each is not None] == [NameInUse]
        for each in twins:
            await each.close()


async def test_of_two_buses_of_one_name_one_starts_though_the_registry_may_meet_neither(
    desk: KeyedDesk,
) -> None:
    """The list of its host is older."""
    shutil.copytree(desk.path, desk.path.parent / "old")
    make(desk.path, "new")
    async with (
        AsyncEventBus(desk.url, name="feed", keyring=Keyring.load(desk.path.parent / "old")),
        desk.bus("new"),
    ):
        with pytest.raises(NameInUse):
            await desk.bus("new").start()


@pytest.mark.slow
async def test_no_call_waits_for_a_name_that_is_only_claimed_and_it_is_named(
    desk: KeyedDesk, claimed: Claim, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk.bus("feed") as feed, desk.bus("strategy") as strategy:
        claimant = await claimed("late")
        for bus in (feed, strategy):
            await until(lambda bus=bus: links_of(bus).at(claimant.member.endpoint) is not None)  # type: ignore[misc]
            await bus.publish(Event("TRADE", 1))
            for _ in range(2):
                assert await bus.flush(3_600) == ["late"]  # it may be about to prove it
            other = await bus.subscribe("OTHER", print, timeout=3_600)
            assert set(other.unconfirmed) == {"late"}
        claimant.sock.close()
        for bus in (feed, strategy):
            await until(lambda bus=bus: links_of(bus).at(claimant.member.endpoint) is None)  # type: ignore[misc]
            assert await bus.flush(3_600) == []
    assert "that it is late at" in caplog.text


@pytest.mark.slow
async def test_a_start_beside_a_claim_goes_on_without_it(
    desk: KeyedDesk, claimed: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "START_SECONDS", 3_600.0)
    async with desk.bus("feed") as feed:
        await claimed("late")
        async with desk.bus("strategy") as strategy, hearing(strategy) as hears:
            await hears(feed)


@pytest.mark.slow
async def test_a_member_is_claimed_until_the_registry_has_met_it(
    desk: KeyedDesk, claimed: Claim
) -> None:
    async with desk.bus("feed") as feed:
        claimant = await claimed("strategy")
        async with desk.bus("late") as late, desk.bus("strategy") as strategy:
            true = Member("strategy", discovery_of(strategy).endpoint)
            for bus in (feed, late):
                known = discovery_of(bus)._known
                await until(lambda known=known: true in known)  # type: ignore[misc]
                assert known.claimed == [claimant.member]


async def test_a_claim_does_not_outlive_the_registry_at_which_it_was_made(
    desk: KeyedDesk, claimed: Claim
) -> None:
    """The port of the claimant still accepts connections."""
    async with desk.bus("feed") as feed, desk.bus("strategy") as strategy:
        claimant = await claimed("late")
        await until(lambda: discovery_of(strategy)._known.claimed == [claimant.member])
        await feed.close()
        await until(lambda: bool(discovery_of(strategy).held))
        assert discovery_of(strategy)._known.claimed == []
        assert links_of(strategy).at(claimant.member.endpoint) is None
        async with desk.bus("feed") as again:
            assert discovery_of(again)._known.claimed == []


@pytest.mark.slow
async def test_a_second_claim_to_an_endpoint_makes_no_member_of_the_first(
    desk: KeyedDesk, claimed: Claim
) -> None:
    async with desk.bus("feed") as feed:
        first = await claimed("strategy")
        second = await claimed("other", at=first.member.endpoint)
        async with desk.bus("late") as late:
            known = discovery_of(late)._known
            assert [*known] == [Member("feed", discovery_of(feed).endpoint)]
            assert {*known.claimed} <= {first.member, second.member}


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["other", "strategy", "feed"])
async def test_a_full_registry_gives_a_member_the_place_of_one_that_has_proven_nothing(
    desk: KeyedDesk, claimed: Claim, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Who had the secret could take all connections, and no member could start any more. What it
    says is that it is nobody known, or one that is.
    """
    make(desk.path, "other")
    async with desk.bus("feed") as feed, desk.bus("strategy") as strategy:
        member = Member("strategy", discovery_of(strategy).endpoint)
        await until(lambda: member in discovery_of(feed)._known)
        monkeypatch.setattr(registry, "MAX_CONNECTIONS", 3)
        at = {"strategy": member.endpoint, "feed": discovery_of(feed).endpoint}
        for _ in range(2):
            await claimed(name, at=at.get(name, ""))
        async with desk.bus("late") as late, hearing(late) as hears:
            await hears(feed)
            assert {"feed", "strategy"} <= {each.name for each in late.peers}
