"""Members on two hosts: which address each has, and a host that is down or has no bus yet."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from actors import Actor, ActorError, Nursery
from faults.namespaces import why_not
from hosts import V4, V6, Hosts, set_up, url_of
from keys import make
from seats import JOIN

pytestmark = [
    pytest.mark.one_loop,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

Join = Callable[..., Awaitable[dict[str, Any]]]
OTHER = "that is another host, and no bus serves there yet"


@pytest.fixture
async def hosts(nursery: Nursery) -> AsyncIterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(nursery, stack)


@pytest.fixture
def join(tmp_path: Path) -> Join:
    """Takes a seat in a process. All have the secret of the desk, and a seat needs no other."""
    keys = make(tmp_path / "keys", "desk").path

    async def take(actor: Actor, url: str, name: str, **options: Any) -> dict[str, Any]:
        return dict(await actor(JOIN, url=url, name=name, keys=keys, options=options))

    return take


async def knows(actor: Actor, *names: str) -> float:
    return float(await actor("return await self.seat.knows(*names)", names=names))


@pytest.mark.parametrize("at", [V4, V6], ids=["IPv4", "IPv6"])
async def test_members_of_two_hosts_meet_each_at_the_address_that_the_other_sees(
    hosts: Hosts, join: Join, at: tuple[str, str]
) -> None:
    """The first starts at once, says that the other host has no bus, and waits for it."""
    first, second = await hosts.make()
    url = ",".join(f"{host}:7555" for host in at)
    a = await join(first, url, "a")
    assert a["asked"] == f"tcp://{at[0]}:*"
    assert a["endpoint"].startswith(f"tcp://{at[0]}:")
    assert (a["held"], a["joined"], a["unreached"]) == ([f"{at[0]}:7555"], [], [])
    assert a["seconds"] < 1.5
    [said] = a["said"]
    assert said.startswith(f"a joins without {at[1]}:7555: {OTHER}")
    b = await join(second, url, "b")
    assert b["endpoint"].startswith(f"tcp://{at[1]}:")
    assert (b["held"], b["joined"], b["unreached"]) == ([f"{at[1]}:7555"], ["a"], [])
    assert b["said"] == []
    assert await knows(first, "b") < 3


async def test_a_host_without_a_bus_is_unreached_if_no_other_address_answers(
    hosts: Hosts, join: Join
) -> None:
    """The only rendezvous is there: who is alone is told of no success."""
    first, second = await hosts.make()
    url = f"{V4[0]}:7555"
    b = await join(second, url, "b")
    assert (b["held"], b["joined"], b["unreached"]) == ([], [], [f"tcp://{url}"])
    assert b["said"][0].startswith(f"b joins without {url}: {OTHER}")
    assert b["seconds"] < 3
    assert (await join(first, url, "a"))["held"] == [url]
    assert await knows(second, "a") < 3
    await second("await self.seat.reaches_all()")


async def test_a_host_that_is_down_at_start_is_waited_for_and_met_when_it_comes(
    hosts: Hosts, join: Join
) -> None:
    first, second = await hosts.make()
    hosts.cut()
    url = f"{V4[0]}:7555,{V4[1]}:7555"
    b = await join(second, url, "b")
    assert (b["held"], b["joined"]) == ([f"{V4[1]}:7555"], [])
    assert b["unreached"] == [f"tcp://{V4[0]}:7555"]
    assert b["said"][0].startswith(f"b joins without {V4[0]}:7555: it cannot be reached (")
    assert b["seconds"] < 3
    hosts.heal()
    assert (await join(first, url, "a"))["joined"] in (["b"], [])
    assert await knows(first, "b") < 3
    assert await knows(second, "a") < 3
    await second("await self.seat.reaches_all()")


NEWCOMER = """
from seats import Seat
self.newcomer = Seat(url, "c", keys)
return await self.newcomer.join()
"""


async def test_while_the_rendezvous_host_is_dead_a_newcomer_is_in_and_all_meet_when_it_returns(
    hosts: Hosts, join: Join, tmp_path: Path
) -> None:
    first, second = await hosts.make()
    url = f"{V4[0]}:7555,{V4[1]}:7555"
    await join(first, url, "a")
    await join(second, url, "b")
    hosts.cut()
    c = await second(NEWCOMER, url=url, keys=str(tmp_path / "keys"))
    assert (c["joined"], c["unreached"]) == (["a", "b"], [f"tcp://{V4[0]}:7555"])
    assert c["seconds"] < 3
    hosts.heal()
    assert await knows(first, "c") < 3
    await second("await self.newcomer.reaches_all()")
    await second("await self.newcomer.leave()")


async def test_a_host_whose_own_name_is_a_loopback_address_serves_at_the_one_that_others_see(
    hosts: Hosts, join: Join
) -> None:
    """As Debian has it in /etc/hosts."""
    first, second = await hosts.make(
        "127.0.1.1 feed-host\n", "10.77.0.1 feed-host\n", has_exit=True
    )
    a = await join(first, "feed-host:7555", "a")
    assert (a["held"], a["unreached"]) == (["feed-host:7555"], [])
    assert a["endpoint"].startswith("tcp://10.77.0.1:")
    assert a["said"] == [
        (
            "a: feed-host is 127.0.1.1 on this host, which no other host reaches: it is taken for"
            " 10.77.0.1"
        )
    ]
    b = await join(second, "feed-host:7555", "b")
    assert (b["joined"], b["unreached"]) == (["a"], [])


async def test_a_name_that_cannot_be_resolved_is_waited_for_like_a_host_that_is_down(
    hosts: Hosts, join: Join
) -> None:
    first, second = await hosts.make("", "")
    url = "feed-host:7555,10.77.0.2:7555"
    b = await join(second, url, "b")
    assert (b["held"], b["unreached"]) == (["10.77.0.2:7555"], ["tcp://feed-host:7555"])
    [said] = b["said"]
    assert said.startswith("b joins without feed-host:7555: its name cannot be resolved (")
    assert b["seconds"] < 3
    a = await join(first, "10.77.0.1:7555", "a")
    assert a["held"] == ["10.77.0.1:7555"]
    await second("with open('/etc/hosts', 'a') as f: f.write('10.77.0.1 feed-host\\n')")
    await knows(second, "a")
    await second("await self.seat.reaches_all()")


async def test_without_a_route_a_member_is_told_to_say_where_it_listens(
    hosts: Hosts, join: Join
) -> None:
    """No packet can leave for 203.0.113.1."""
    first, _ = await hosts.make()
    url = "203.0.113.1:7555"
    with pytest.raises(ActorError, match=r"a finds no address of this host .*listen=") as refused:
        await join(first, url, "a")
    assert refused.value.kind == "BusError"
    assert "203.0.113.1:7555: Network is unreachable" in str(refused.value)
    said = await join(first, url, "a", listen="0.0.0.0:7600", advertise=V4[0])
    assert (said["asked"], said["endpoint"]) == ("tcp://0.0.0.0:7600", "tcp://10.77.0.1:7600")
    assert said["unreached"] == [f"tcp://{url}"]


async def test_an_advertised_name_that_is_loopback_here_is_told_as_the_address_that_others_see(
    hosts: Hosts, join: Join
) -> None:
    first, _ = await hosts.make("127.0.1.1 feed-host\n", "")
    a = await join(first, "10.77.0.2:7555", "a", listen="0.0.0.0", advertise="feed-host")
    assert a["endpoint"].startswith("tcp://10.77.0.1:")
    assert "others are told 10.77.0.1" in a["said"][0]


@pytest.mark.slow
async def test_who_listens_at_all_addresses_tells_the_one_that_others_see(
    hosts: Hosts, join: Join
) -> None:
    first, _ = await hosts.make()
    for listen, told in (("0.0.0.0", V4[0]), ("[::]:7600", V4[0]), ("[fd77::1]", V6[0])):
        a = await join(first, f"{V4[1]}:7555,{V6[1]}:7556", "a", listen=listen)
        assert a["endpoint"].startswith(f"tcp://{told}:")
        await first("await self.seat.leave()")


START = """
keyring = aiobus.Keyring.load(keys)
setattr(self, name, aiobus.AsyncEventBus(url, name=name, keyring=keyring, **options))
began = asyncio.get_running_loop().time()
await getattr(self, name).start()
return asyncio.get_running_loop().time() - began
"""


async def start(actor: Actor, url: str, name: str, keys: Path, **options: Any) -> float:
    values = {"url": url, "name": name, "keys": str(keys), "options": options}
    return float(await actor(START, **values))


async def peers(actor: Actor, name: str) -> list[str]:
    return list(await actor(f"return [each.name for each in self.{name}.peers]"))


MEETS = """
while other not in [each.name for each in getattr(self, name).peers]:
    await asyncio.sleep(0.01)
"""


@pytest.mark.slow
async def test_a_bus_starts_within_3_s_while_a_member_and_its_rendezvous_are_cut_off(
    hosts: Hosts, tmp_path: Path
) -> None:
    """It is linked with all others by then, and with that member once its host is back."""
    first, second = await hosts.make()
    keys_a, keys_b = set_up(tmp_path, ("a",), ("b", "c"))
    url = url_of(V4)
    await start(first, url, "a", keys_a)
    await start(second, url, "b", keys_b)
    assert await peers(second, "b") == ["a"]
    hosts.cut()
    assert await start(second, url, "c", keys_b) < 3
    assert await peers(second, "c") == ["b"]
    assert await second("return await self.c.flush(0.1)") == [f"tcp://{V4[0]}:7555"]
    hosts.heal()
    await first(MEETS, name="a", other="c")
    await second(MEETS, name="c", other="a")
    for actor, name in ((second, "c"), (second, "b"), (first, "a")):
        await actor(f"await self.{name}.close()")


@pytest.mark.parametrize("listen", ["0.0.0.0", "[::]:7600"])
async def test_a_bus_that_listens_everywhere_is_linked_by_what_it_tells(
    hosts: Hosts, tmp_path: Path, listen: str
) -> None:
    """It also ends the link of one that sends what no member sends."""
    first, second = await hosts.make()
    keys_a, keys_b = set_up(tmp_path, ("a",), ("b",))
    url = f"tcp://{V4[0]}:7555"
    await start(first, url, "a", keys_a, listen=listen)
    await start(second, url, "b", keys_b)
    assert await peers(second, "b") == ["a"]
    told = await second("return [each.who.endpoint for each in self.b._transport.session.links]")
    assert told[0].startswith(f"tcp://{V4[0]}:")
    assert await second(JUNK, endpoint=told[0], keys=str(keys_b)) is True
    for actor, name in ((second, "b"), (first, "a")):
        await actor(f"await self.{name}.close()")


JUNK = """
import zmq
with zmq.Context() as context, context.socket(zmq.XSUB) as junk:
    junk.set(zmq.LINGER, 0)
    junk.set(zmq.SNDHWM, 0)
    keyring = aiobus.Keyring.load(keys)
    junk.set(zmq.CURVE_SERVERKEY, keyring.members.by_name["a"].key.encode())
    junk.set(zmq.CURVE_PUBLICKEY, keyring.members.by_name["b"].key.encode())
    junk.set(zmq.CURVE_SECRETKEY, keyring.secret_of("b").encode())
    monitor = junk.get_monitor_socket()
    junk.connect(endpoint)
    for number in range(2000):
        junk.send(b"\\1junk%d" % number)
    while True:
        if await asyncio.to_thread(monitor.poll, 5000) == 0:
            return False
        event, _ = monitor.recv_multipart()
        if int.from_bytes(event[:2], "little") == zmq.EVENT_DISCONNECTED:
            junk.disable_monitor()
            return True
"""
