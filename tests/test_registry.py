"""A registry and its connections: hellos, garbage, silence and too much of everything."""

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import orjson
import pytest

from aiobus.discovery import Member
from aiobus.discovery import registry as registry_module
from aiobus.discovery.gate import RESERVE
from aiobus.discovery.refusal import Refused
from aiobus.discovery.registry import Registry
from aiobus.discovery.roster import Address, KnownMembers, hello_line
from aiobus.limits import MAX_CONNECTIONS, MAX_HELLO, MAX_MEMBERS

pytestmark = pytest.mark.usefixtures("no_task_is_left")

ME, A, B = (Member(f"bot-{number}", f"tcp://127.0.0.1:{number}") for number in (1, 2, 3))


def free_address() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return Address(*free.getsockname())


class Desk:
    """A registry, why it refused, and raw connections to it."""

    def __init__(self, secrets: tuple[bytes, ...] | None = None) -> None:
        self.secrets = secrets
        self.told: list[tuple[str, ...]] = []
        self.address = free_address()
        self.met = KnownMembers()
        self.came: list[Member] = []
        self.refusals: list[str] = []
        self.has_refused = asyncio.Event()
        self.registry = self.another()
        self._stack = AsyncExitStack()

    def another(self) -> Registry:
        return Registry(
            *(self.address, ME, self.met),
            secrets=lambda: self.secrets,
            on_hello=self._take,
            on_gone=print,
            on_refused=self._note,
            on_told=lambda *told: self.told.append(told),
        )

    def _take(self, member: Member) -> None:
        self.came.append(member)
        self.registry.announce(self.met.learn([member]))

    def _note(self, peer: str, reason: str) -> None:
        assert peer == ("" if "accepted" in reason else self.address.host)
        self.refusals.append(reason)
        self.has_refused.set()

    async def connect(self, say: bytes = b"") -> "Raw":
        sock = socket.socket()
        self._stack.callback(sock.close)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.address)
        raw = Raw(sock)
        if say:
            await raw.say(say)
        return raw

    async def close(self) -> None:
        self.registry.close()
        await self._stack.aclose()


class Raw:
    """A connection that says what it likes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._lines = bytearray()

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def hear(self) -> set[Member]:
        """The members on the next roster."""
        while b"\n" not in self._lines:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
            assert data, "the registry closed the connection"
            self._lines += data
        line, _, self._lines = self._lines.partition(b"\n")
        kind, version, rows = orjson.loads(line)
        assert (kind, version) == ("roster", 1)
        return {Member(*row) for row in rows}

    async def is_closed(self) -> bool:
        """Wait for the end of the connection; what comes before it does not count."""
        try:
            while await asyncio.get_running_loop().sock_recv(self.sock, 65536):
                pass
        except ConnectionError:
            pass
        return True


@pytest.fixture
async def desk(no_task_is_left: None) -> AsyncIterator[Desk]:
    desk = Desk()
    yield desk
    await desk.close()


async def test_who_says_hello_is_told_who_is_there_and_the_others_are_told_of_it(
    desk: Desk,
) -> None:
    first = await desk.connect(hello_line(A))
    assert await first.hear() == {ME, A}
    second = await desk.connect(hello_line(B))
    assert await second.hear() == {ME, A, B}
    while B not in await first.hear():
        pass
    assert desk.came == [A, B]


async def test_a_hello_may_come_in_pieces(desk: Desk) -> None:
    raw = await desk.connect()
    for byte in hello_line(A):
        await raw.say(bytes([byte]))
    assert await raw.hear() == {ME, A}


async def test_a_member_whose_connection_has_ended_is_absent_and_on_the_roster_until_forgotten(
    desk: Desk,
) -> None:
    gone = await desk.connect(hello_line(A))
    await gone.hear()
    assert desk.registry.absent == []
    gone.sock.close()
    while desk.registry.absent != [A]:  # noqa: ASYNC110 - nothing tells when the end was read
        await asyncio.sleep(0)
    assert await (await desk.connect(hello_line(B))).hear() == {ME, A, B}
    desk.met.forget(desk.registry.absent)
    assert await (await desk.connect(hello_line(B))).hear() == {ME, B}


async def test_a_member_connected_twice_is_present_until_both_connections_end(desk: Desk) -> None:
    raws = [await desk.connect(hello_line(A)) for _ in range(2)]
    for left, raw in zip((1, 0), raws, strict=True):
        await raw.hear()
        assert desk.registry.absent == []
        raw.sock.close()
        while len(desk.registry._connections) > left:  # noqa: ASYNC110 - nothing tells when
            await asyncio.sleep(0)
    assert (desk.registry.roster, desk.registry.absent) == ([ME, A], [A])


async def test_a_roster_never_has_more_members_than_its_line_may_carry(desk: Desk) -> None:
    desk.met.learn(Member("x", f"tcp://127.0.0.1:{port}") for port in range(10, MAX_MEMBERS + 20))
    raw = await desk.connect(hello_line(A))
    assert {ME, A} < await raw.hear()
    assert (len(desk.registry.roster), desk.registry.roster[:2]) == (MAX_MEMBERS, [ME, A])


async def test_a_member_that_was_met_elsewhere_is_on_the_roster_and_the_connections_are_told(
    desk: Desk,
) -> None:
    member = await desk.connect(hello_line(B))
    assert await member.hear() == {ME, B}
    desk.registry.announce(desk.met.learn([A]))
    while await member.hear() != {A}:
        pass
    assert await (await desk.connect(hello_line(B))).hear() == {ME, A, B}


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "binary": bytes(range(256)) * 16,
    "zmtp": b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48) + b"\n",
    "not a hello": b"[]\n",
    "another version": b'["hello", 2, "bot", "tcp://127.0.0.1:5"]\n',
    "a name that cannot be": b'["hello", 1, "a b", "tcp://127.0.0.1:5"]\n',
    "an endpoint elsewhere": b'["hello", 1, "bot", "tcp://10.0.0.1:5"]\n',
    "a line too long": b"x" * (MAX_HELLO + 1),
    "a hello and then garbage": hello_line(B) + b"more\n",
    "a hello twice": hello_line(B) * 2,
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_what_is_no_hello_ends_its_own_connection_and_no_other(desk: Desk, kind: str) -> None:
    good = await desk.connect(hello_line(A))
    assert await good.hear() == {ME, A}
    assert await (await desk.connect(GARBAGE[kind])).is_closed()
    assert len(desk.refusals) == 1
    assert A in await (await desk.connect(hello_line(B))).hear()
    while B not in await good.hear():
        pass


async def test_half_a_hello_is_refused(desk: Desk) -> None:
    raw = await desk.connect(hello_line(A)[:-5])
    raw.sock.shutdown(socket.SHUT_WR)
    assert await raw.is_closed()
    assert desk.refusals == ["sent half a line"]


async def test_a_connection_that_comes_and_goes_is_no_error(desk: Desk) -> None:
    raw = await desk.connect()
    raw.sock.shutdown(socket.SHUT_WR)
    assert await raw.is_closed()
    assert desk.refusals == []


async def test_who_never_says_hello_is_sent_away(
    monkeypatch: pytest.MonkeyPatch, desk: Desk
) -> None:
    monkeypatch.setattr(registry_module, "HELLO_SECONDS", 0.05)
    good = await desk.connect(hello_line(A))
    silent = await desk.connect(b'["hello"')
    assert await silent.is_closed()
    assert desk.refusals == ["said no hello within 0.05 s"]
    assert await good.hear() == {ME, A}
    await desk.connect(hello_line(B))
    while B not in await good.hear():
        pass


async def test_an_error_of_our_own_is_logged_and_ends_one_connection(
    monkeypatch: pytest.MonkeyPatch, desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(line: bytes, **_: object) -> Member:
        raise ZeroDivisionError("ours")

    good = await desk.connect(hello_line(A))
    assert await good.hear() == {ME, A}
    with monkeypatch.context() as patch:
        patch.setattr(registry_module, "parse_hello", fails)
        assert await (await desk.connect(hello_line(B))).is_closed()
    assert "ZeroDivisionError: ours" in caplog.text
    assert await (await desk.connect(hello_line(B))).hear() == {ME, A, B}


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("this process may not open 4,096 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
async def test_one_member_too_many_is_refused_until_another_ends(
    monkeypatch: pytest.MonkeyPatch, desk: Desk
) -> None:
    monkeypatch.setattr(registry_module, "MAX_CONNECTIONS", 20)
    good = await desk.connect(hello_line(A))
    assert await good.hear() == {ME, A}
    others = [await desk.connect(hello_line(A)) for _ in range(19)]
    for each in others:
        assert await each.hear() == {ME, A}
    assert await (await desk.connect(hello_line(B))).is_closed()
    assert desk.refusals == ["came when there were 20 connections already"]
    others[0].sock.shutdown(socket.SHUT_WR)
    assert await others[0].is_closed()
    assert B in await (await desk.connect(hello_line(B))).hear()


@pytest.mark.usefixtures("many_descriptors")
async def test_2000_connections_that_say_nothing_keep_no_member_out_and_end_no_connection_of_one(
    desk: Desk,
) -> None:
    good = await desk.connect(hello_line(A))
    assert await good.hear() == {ME, A}
    silent = [await desk.connect() for _ in range(2_000)]
    late = await desk.connect(hello_line(B))
    assert await late.hear() == {ME, A, B}
    while B not in await good.hear():
        pass
    dropped = len(desk.refusals)
    assert {*desk.refusals} == {"had said no hello yet, and others needed its place"}
    assert 2_000 - MAX_CONNECTIONS <= dropped < 2_000
    assert len(desk.registry._connections) <= MAX_CONNECTIONS
    for each in silent[:dropped]:
        assert await each.is_closed()  # the oldest


async def silent_ones(desk: Desk, count: int, host: str = "127.0.0.1") -> list[Raw]:
    """Connections from `host` without a hello, all of which the registry has accepted."""
    made = []
    for _ in range(count):
        sock = socket.socket()
        desk._stack.callback(sock.close)
        sock.bind((host, 0))
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, desk.address)
        made.append(Raw(sock))
    last = made[-1].sock.getsockname()
    while all(each.sock.getpeername() != last for each in desk.registry._connections):
        await turn()
    return made


async def turn() -> None:
    await asyncio.sleep(0)


async def test_of_those_that_say_nothing_the_host_that_has_the_most_loses_one(desk: Desk) -> None:
    desk.registry._most_silent = 10
    (slow,) = await silent_ones(desk, 1, "127.0.0.2")
    many = await silent_ones(desk, 30)
    assert len(desk.refusals) == 21
    for each in many[:21]:
        assert await each.is_closed()
    await slow.say(hello_line(A))
    assert await slow.hear() == {ME, A}


async def test_a_hello_that_has_come_counts_before_its_connection_is_dropped(desk: Desk) -> None:
    """Both come in while the loop is busy, and the listening socket may be looked at first."""
    desk.registry._most_silent = 2
    first, second = await silent_ones(desk, 2)
    first.sock.send(hello_line(A))
    third = socket.create_connection(desk.address)
    desk._stack.callback(third.close)
    desk.registry._accept()
    assert await first.hear() == {ME, A}
    assert len(desk.registry._connections) == 3
    assert desk.refusals == []
    await second.say(hello_line(B))
    assert B in await second.hear()


async def test_where_descriptors_are_short_one_that_says_nothing_gives_way_to_the_next(
    desk: Desk,
) -> None:
    silent, *_ = await silent_ones(desk, 2)
    newcomer = socket.socket()
    desk._stack.callback(newcomer.close)
    newcomer.setblocking(False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + RESERVE - 1, hard))
    try:
        await asyncio.get_running_loop().sock_connect(newcomer, desk.address)
        raw = Raw(newcomer)
        await raw.say(hello_line(A))
        assert await raw.hear() == {ME, A}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await silent.is_closed()
    assert desk.refusals == ["had said no hello yet, and others needed its place"]


async def test_who_cannot_be_accepted_for_want_of_descriptors_is_accepted_later(
    desk: Desk,
) -> None:
    sock = socket.socket()
    sock.setblocking(False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        await asyncio.get_running_loop().sock_connect(sock, desk.address)
        await desk.has_refused.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert desk.refusals == ["cannot be accepted yet: Too many open files"]
    raw = Raw(sock)
    await raw.say(hello_line(A))
    assert await raw.hear() == {ME, A}
    sock.close()


async def frozen(desk: Desk) -> Raw:
    """A member that reads nothing, with the smallest buffers on the way to it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    desk._stack.callback(sock.close)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, desk.address)
    raw = Raw(sock)
    await raw.say(hello_line(Member("frozen", "tcp://127.0.0.1:9")))
    return raw


async def test_a_member_that_does_not_read_delays_no_other_and_is_sent_away_when_too_much_waits(
    monkeypatch: pytest.MonkeyPatch, desk: Desk
) -> None:
    monkeypatch.setattr(registry_module, "MAX_UNSENT", 32 * 1024)
    await frozen(desk)
    good = await desk.connect(hello_line(A))
    port = 10
    while not desk.refusals:
        port += 1
        newcomer = Member("x" * 64, f"tcp://127.0.0.1:{port}")
        raw = await desk.connect(hello_line(newcomer))
        assert newcomer in await raw.hear()
        raw.sock.close()
        while newcomer not in await good.hear():
            pass
        desk.met.forget([newcomer])  # else the roster itself would be too much
    assert desk.refusals == ["does not read what is sent to it"]


async def test_what_waits_for_a_slow_reader_arrives_whole(desk: Desk) -> None:
    slow = await frozen(desk)
    told: set[Member] = set()
    # Until the buffers on the way are full and much waits in the registry.
    while sum(len(connection.unsent) for connection in desk.registry._connections) < 10_000:
        told.add(newcomer := Member("x" * 64, f"tcp://127.0.0.1:{len(told) + 10}"))
        raw = await desk.connect(hello_line(newcomer))
        assert newcomer in await raw.hear()
        raw.sock.close()
    heard: set[Member] = set()
    while not heard >= told:
        heard |= await slow.hear()
    assert desk.refusals == []


async def test_refusals_are_dropped_for_a_member_that_does_not_read(desk: Desk) -> None:
    await frozen(desk)
    refused = Refused("bot", "frozen", "key")
    for _ in range(100_000):
        desk.registry.tell(refused)
        if any(connection.unsent for connection in desk.registry._connections):
            break
        await asyncio.sleep(0)
    [connection] = desk.registry._connections
    waiting = bytes(connection.unsent)
    assert waiting
    for _ in range(1_000):
        desk.registry.tell(refused)
    assert (bytes(connection.unsent), desk.refusals) == (waiting, [])


async def test_an_address_has_one_registry(desk: Desk) -> None:
    with pytest.raises(OSError, match="in use"):
        desk.another()


async def test_closing_frees_the_address_before_any_member_notices(desk: Desk) -> None:
    member = await desk.connect(hello_line(A))
    await member.hear()
    knocking = await desk.connect()
    desk.registry.close()
    desk.registry.close()
    desk.another().close()
    assert await member.is_closed()
    assert await knocking.is_closed()


async def test_an_ipv6_address_is_served_as_well() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as free:
            address = Address(*free.getsockname()[:2])
    except OSError:
        pytest.skip("this machine has no ::1")
    registry = Registry(
        *(address, ME, KnownMembers()),
        secrets=lambda: None,
        on_hello=print,
        on_gone=print,
        on_refused=print,
        on_told=print,
    )
    with socket.socket(socket.AF_INET6) as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
        raw = Raw(sock)
        await raw.say(hello_line(A))
        assert await raw.hear() == {ME, A}
    registry.close()
