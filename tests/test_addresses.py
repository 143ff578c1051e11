"""Where a member listens, what it tells others, and names that stand for several addresses or
for none. `look_up` of `aiobus.discovery.hosts` is the seam for names.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from actors import free_port, tcp_url
from crowd import free_address
from keys import make
from seats import Seat

from aiobus import AsyncEventBus, BusError
from aiobus.discovery import Member, hosts, rendezvous
from aiobus.discovery.hosts import Resolver, is_own, outward
from aiobus.discovery.rendezvous import Rendezvous
from aiobus.discovery.roster import Address, Place, places_in
from aiobus.replay.transport import Replay

pytestmark = pytest.mark.usefixtures("no_task_is_left")


def why_no_other_host() -> str:
    """Why this machine can be no host among others; "" if it can."""
    try:
        outward([])
    except OSError as error:
        return f"this machine has no address that another host could see: {error}"
    return ""


needs_an_outside = pytest.mark.skipif(bool(why_no_other_host()), reason=why_no_other_host())


class Names:
    """What names stand for: a list of addresses, or an error. Counts the look-ups."""

    def __init__(self) -> None:
        self.known: dict[str, list[str] | OSError] = {}
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def look_up(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        await self.gate.wait()
        found = self.known.get(host, socket.gaierror(socket.EAI_NONAME, "Name not known"))
        if isinstance(found, OSError):
            raise found
        return found


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    made = Names()
    monkeypatch.setattr(hosts, "look_up", made.look_up)
    return made


@pytest.fixture
async def seat(no_task_is_left: None, tmp_path: Path) -> AsyncIterator[Callable[..., Seat]]:
    """Makes members of one desk with keys, which leave at the end."""
    seats: list[Seat] = []
    keys = make(tmp_path / "keys", "desk").path

    def take(url: str, name: str = "bot", **options: Any) -> Seat:
        seats.append(made := Seat(url, name, keys, **options))
        return made

    yield take
    logging.getLogger("aiobus").setLevel(logging.NOTSET)
    for each in seats:
        await each.leave()


# Names.


async def test_of_several_addresses_of_a_name_the_first_that_can_be_used_is_taken(
    names: Names,
) -> None:
    names.known["feed"] = ["fe80::1%eth0", "0.0.0.0", "10.0.0.5", "10.0.0.6"]
    assert await Resolver(Place("feed", 7555)).address(1) == ("10.0.0.5", 7555)


async def test_a_literal_is_not_looked_up(names: Names) -> None:
    for text in ("10.0.0.5:7555", "[fd77::1]:7555", "localhost:7555"):
        [place] = places_in(text)
        assert await Resolver(place).address(0) == place.address
    assert names.asked == []


async def test_a_name_without_an_address_that_can_be_used_is_an_error(names: Names) -> None:
    names.known["feed"] = ["fe80::1%eth0"]
    with pytest.raises(OSError, match="none of its addresses can be used"):
        await Resolver(Place("feed", 7555)).address(1)
    with pytest.raises(OSError, match="Name not known"):
        await Resolver(Place("other", 7555)).address(1)


async def test_one_look_up_is_under_way_however_often_its_answer_is_asked_for(
    names: Names,
) -> None:
    """Each takes a thread of the executor, which others need as well."""
    names.known["feed"] = ["10.0.0.5"]
    names.gate.clear()
    resolver = Resolver(Place("feed", 7555))
    for _ in range(3):
        with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
            await resolver.address(0.01)
    assert names.asked == ["feed"]
    names.gate.set()
    assert await resolver.address(1) == ("10.0.0.5", 7555)
    await resolver.address(1)
    assert names.asked == ["feed", "feed"]


async def test_a_look_up_that_hangs_is_left_behind(names: Names) -> None:
    names.gate.clear()
    resolver = Resolver(Place("feed", 7555))
    with pytest.raises(TimeoutError):
        await resolver.address(0)
    task = resolver.cancel()
    assert task is not None
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_name_is_looked_up_by_this_machine() -> None:
    """Without the seam."""
    found = await hosts.look_up("localhost", 7555)
    assert {*found} <= {"127.0.0.1", "::1"}
    assert found


# The own address.


def test_an_own_address_is_one_that_a_socket_can_be_bound_to() -> None:
    assert is_own("127.0.0.1")
    assert is_own("127.9.8.7")
    assert not is_own("203.0.113.1")


@pytest.mark.parametrize(
    ("url", "options", "is_loopback"),
    [
        ("localhost:5,[::1]:6", {}, True),
        ("localhost:5", {"listen": "127.0.0.2:7600"}, True),
        ("localhost:5", {"advertise": "127.0.0.2"}, True),
        ("localhost:5", {"listen": "0.0.0.0"}, False),
        ("localhost:5", {"listen": "10.0.0.5"}, False),
        ("localhost:5,10.0.0.5:5", {}, False),
        ("feed:5", {}, False),
        ("feed:5", {"listen": "127.0.0.1", "advertise": "relay.example.com:7600"}, False),
    ],
)
def test_members_are_of_this_host_only_if_all_addresses_and_where_they_listen_are_loopback(
    url: str, options: dict[str, str], is_loopback: bool
) -> None:
    discovery = Rendezvous(url, **options)
    assert discovery.is_loopback == is_loopback
    assert discovery.allows(Member("bot", "tcp://127.0.0.1:5")) == is_loopback
    assert discovery.allows(Member("bot", "tcp://[::1]:5+")) == is_loopback
    for endpoint in ("tcp://10.0.0.5:5", "tcp://[fd77::1]:5", "tcp://10.0.0.5:5+"):
        assert discovery.allows(Member("bot", endpoint)) != is_loopback
    for endpoint in ("tcp://0.0.0.0:5", "tcp://224.0.0.1:5", "tcp://feed:5", "ipc:///x"):
        assert not discovery.allows(Member("bot", endpoint))


@pytest.mark.parametrize(
    ("url", "options", "sentence"),
    [
        ("localhost:5", {"advertise": "10.0.0.5"}, "advertise='10.0.0.5': .* give listen= too"),
        ("localhost:5", {"advertise": "feed"}, "advertise='feed': .* give listen= too"),
        ("feed:5", {"listen": "127.0.0.1"}, "listen='127.0.0.1': no other host reaches a loop"),
        ("feed:5", {"listen": "0.0.0.0", "advertise": "localhost"}, "advertise='localhost': no ot"),
        ("feed:5", {"listen": "feed"}, "listen='feed': 'feed' is a name"),
        ("feed:5", {"advertise": "0.0.0.0"}, "advertise='0.0.0.0': no process can connect"),
    ],
)
def test_what_other_hosts_could_not_reach_is_refused_before_anything_is_opened(
    url: str, options: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Rendezvous(url, **options)
    with pytest.raises(ValueError, match=sentence):
        AsyncEventBus(f"tcp://{url}", **options)


@pytest.mark.parametrize("url", ["inproc://", "ipc://desk", Replay("absent.db")])
@pytest.mark.parametrize("keyword", ["listen", "advertise"])
def test_a_bus_that_has_no_tcp_address_is_given_none(url: Any, keyword: str) -> None:
    with pytest.raises(ValueError, match=f"{keyword}='10.0.0.5' and url=.*leave {keyword}= out"):
        AsyncEventBus(url, **{keyword: "10.0.0.5"})


async def test_a_member_listens_at_the_port_that_it_is_given(seat: Callable[..., Seat]) -> None:
    port, url = free_port(), free_address()
    first = await seat(url, "a", listen=f"localhost:{port}").join()
    assert first["asked"] == first["endpoint"] == f"tcp://127.0.0.1:{port}"
    assert (await seat(url, "b").join())["joined"] == ["a"]


async def test_a_port_that_is_taken_is_named(seat: Callable[..., Seat]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(BusError, match=f"^listen='{listen}': .* in use.*a port of its own"):
            await seat(free_address(), listen=listen).join()
        bus = AsyncEventBus(tcp_url(), listen=listen)
        with pytest.raises(BusError, match=f"^listen='{listen}': .* in use"):
            await bus.start()


async def test_an_address_that_is_not_of_this_host_cannot_be_listened_at(
    seat: Callable[..., Seat],
) -> None:
    with pytest.raises(BusError, match=r"^listen='203\.0\.113\.1': this bus cannot listen there"):
        await seat(free_address(), listen="203.0.113.1").join()


async def test_others_are_told_what_is_advertised(seat: Callable[..., Seat]) -> None:
    port = free_port()
    told = await seat(free_address(), listen=f"127.0.0.1:{port}", advertise="127.0.0.9").join()
    assert told["endpoint"] == f"tcp://127.0.0.9:{port}"
    told = await seat(free_address(), advertise="127.0.0.9:7600").join()
    assert told["endpoint"] == "tcp://127.0.0.9:7600"


async def test_an_advertised_name_is_told_as_its_address(
    names: Names, seat: Callable[..., Seat]
) -> None:
    names.known["relay"] = ["203.0.113.9"]
    made = seat(free_address(), listen="0.0.0.0", advertise="relay:7600")
    assert (await made.join())["endpoint"] == "tcp://203.0.113.9:7600"


async def test_an_advertised_name_that_cannot_be_resolved_fails_the_start(
    names: Names, seat: Callable[..., Seat]
) -> None:
    with pytest.raises(BusError, match=r"^advertise='relay': it cannot be resolved here"):
        await seat(free_address(), listen="0.0.0.0", advertise="relay").join()


async def test_buses_are_linked_by_what_is_advertised() -> None:
    """The whole of 127.0.0.0/8 is this host, so the same port answers at another address if the bus
    listens at all of them.
    """
    url, port = tcp_url(), free_port()
    async with AsyncEventBus(url, name="a", listen=f"127.0.0.1:{port}") as a:
        assert a._transport.network.owns_address(("127.0.0.1", port))  # type: ignore[attr-defined]
        async with AsyncEventBus(url, name="b") as b:
            assert [each.name for each in b.peers] == ["a"]


# Several hosts, of which this is one.


def outside() -> str:
    host = outward([])
    return Address(host, 0).with_port("").removeprefix("tcp://").removesuffix(":")


@needs_an_outside
async def test_members_meet_at_a_name(names: Names, seat: Callable[..., Seat]) -> None:
    host = outward([])
    names.known["feed"] = [host]
    url = f"feed:{free_port(host)}"
    first = await seat(url, "a").join()
    assert (first["held"], first["asked"]) == ([url], f"tcp://{outside()}:*")
    second = await seat(url, "b").join()
    assert (second["joined"], second["said"]) == (["a"], [])


@needs_an_outside
async def test_a_name_that_is_a_loopback_address_here_is_taken_for_the_outward_one(
    names: Names, seat: Callable[..., Seat]
) -> None:
    names.known["feed"] = ["127.0.1.1"]
    url = f"feed:{free_port(outward([]))}"
    first, second = seat(url, "a"), seat(url, "b")
    told = await first.join()
    assert told["endpoint"].startswith(f"tcp://{outside()}:")
    assert (await second.join())["joined"] == ["a"]
    [said] = [each for each in second.lines.said if each.startswith("b: ")]
    assert said == (
        "b: feed is 127.0.1.1 on this host, which no other host reaches: it is taken for"
        f" {outward([])}"
    )


@needs_an_outside
async def test_a_name_is_looked_up_again_until_it_stands_for_something(
    names: Names, seat: Callable[..., Seat], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.2)
    host = outward([])
    url = f"feed:{free_port(host)}"
    bot = seat(url)
    told = await bot.join()
    assert (told["held"], told["unreached"]) == ([], [f"tcp://{url}"])
    assert "its name cannot be resolved (Name not known)" in told["said"][0]
    names.known["feed"] = [host]
    await bot.reaches_all()
    assert bot.discovery.held == {url}


@needs_an_outside
async def test_a_look_up_that_hangs_delays_a_start_by_a_bounded_time_and_no_end(
    names: Names, seat: Callable[..., Seat], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.2)
    names.gate.clear()
    url = f"feed:{free_port()}"
    told = await seat(url).join()
    assert told["seconds"] < 1
    assert told["unreached"] == [f"tcp://{url}"]
    assert "its name cannot be resolved (no answer within" in told["said"][0]


@needs_an_outside
async def test_a_loopback_endpoint_of_another_host_is_refused(
    seat: Callable[..., Seat],
) -> None:
    """Whoever connected to it would connect to itself."""
    url = f"{outside()}:{free_port(outward([]))}"
    made = seat(url)
    made._bind = lambda endpoint: "tcp://127.0.0.1:7600"  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="cannot be a member here"):
        await made.join()
