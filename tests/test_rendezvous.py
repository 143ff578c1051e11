"""Members who meet at tcp addresses: real sockets, and processes that die or freeze."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from crowd import Bot, Crowd, free_address

from aiobus.discovery import Discovery, Member, guest, meeting, rendezvous
from aiobus.discovery.rendezvous import Rendezvous
from aiobus.discovery.roster import hello_line, parse_roster, roster_line
from aiobus.errors import BusError

pytestmark = pytest.mark.usefixtures("no_task_is_left")

Logged = Callable[[str], AbstractContextManager[asyncio.Event]]

# A member with a process of its own: url, name. Says what it holds once it has joined.
MEMBER = """
import asyncio, socket, sys
from aiobus.discovery.rendezvous import Rendezvous

async def main(url, name):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        discovery = Rendezvous(url)
        await discovery.join(name, lambda asked: endpoint, print)
        print(*discovery.held, flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def crowd(no_task_is_left: None) -> AsyncIterator[Crowd[Bot]]:
    crowd = Crowd(Bot)
    yield crowd
    await crowd.leave()


@pytest.fixture
def at() -> str:
    return free_address()


@contextmanager
def process(url: str, name: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", MEMBER, url, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def joined(process: subprocess.Popen[str]) -> str:
    """Wait until it has; return what it holds."""
    assert process.stdout is not None
    return (await asyncio.to_thread(process.stdout.readline)).strip()


def descriptors() -> list[str]:
    """What this process has open; the look itself is always in it."""
    return sorted(os.listdir("/dev/fd"))


def test_a_rendezvous_is_a_discovery() -> None:
    discovery: Discovery = Rendezvous("localhost:7555")
    assert discovery.descriptors() == set()


async def test_the_first_who_comes_serves_and_is_alone(crowd: Crowd[Bot], at: str) -> None:
    first = await crowd.join(at, "first")
    assert not first.joined
    assert first.discovery.held == {at}
    assert first.asked_for == f"tcp://{at.partition(':')[0]}:*"


async def test_who_comes_later_is_told_who_is_there_and_they_are_told_of_it(
    crowd: Crowd[Bot], at: str
) -> None:
    a = await crowd.join(at, "a")
    b = await crowd.join(at, "b")
    c = await crowd.join(at, "c")
    assert (b.joined, c.joined) == ({"a"}, {"a", "b"})
    assert await a.knows("b", "c")
    assert await b.knows("a", "c")
    assert c.found == []
    assert [bot.name for bot in (a, b, c) if bot.discovery.held] == ["a"]


async def test_a_member_of_the_same_name_is_reported(crowd: Crowd[Bot], at: str) -> None:
    [first, second] = await crowd.join_at_once(at, "twin", "twin")
    assert await first.knows("twin")
    assert await second.knows("twin")
    third = await crowd.join(at, "third")
    assert third.joined == {"twin"}


async def test_who_has_left_is_not_met_by_who_comes_later(crowd: Crowd[Bot], at: str) -> None:
    a = await crowd.join(at, "a")
    b = await crowd.join(at, "b")
    await b.leave()
    c = await crowd.join(at, "c")
    assert c.joined == {"a"}
    assert await a.knows("c")


async def test_who_is_on_the_roster_but_does_not_listen_any_more_is_left_out(
    crowd: Crowd[Bot], at: str
) -> None:
    await crowd.join(at, "a")
    b = await crowd.join(at, "b")
    b.listener.close()
    c = await crowd.join(at, "c")
    assert c.joined == {"a"}


async def roster_of(at: str) -> list[Member]:
    """What the holder tells of who is there."""
    with raw_connection(at) as raw, socket.create_server(("127.0.0.1", 0)) as listener:
        looker = Member("looker", f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        await asyncio.get_running_loop().sock_sendall(raw, hello_line(looker))
        line = await asyncio.get_running_loop().sock_recv(raw, 65536)
    return [member for member in parse_roster(line.splitlines()[0]).members if member != looker]


async def test_who_was_left_out_is_told_of_when_it_is_heard_of_again(
    crowd: Crowd[Bot], at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "ABSENT_SECONDS", 0.01)
    await crowd.join(at, "a")
    b = await crowd.join(at, "b")
    endpoint = b.endpoint
    await b.leave()
    with raw_connection(at) as raw:  # on the roster, though no process listens
        await asyncio.get_running_loop().sock_sendall(raw, hello_line(Member("b", endpoint)))
        assert await asyncio.get_running_loop().sock_recv(raw, 65536)
        c = await crowd.join(at, "c")
        assert c.joined == {"a"}
    while Member("b", endpoint) in await roster_of(at):
        pass
    again = crowd.bot(at, "b")
    again.port = int(endpoint.rpartition(":")[2])
    await again.join()
    assert await c.knows("a", "b")


@contextmanager
def raw_connection(at: str) -> Iterator[socket.socket]:
    host, _, port = at.partition(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.setblocking(False)
        yield sock


# Taking over.


async def test_a_killed_holder_is_replaced_and_a_newcomer_meets_all_survivors(
    crowd: Crowd[Bot], at: str, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiobus")
    with process(at, "holder") as holder, logged(f"has taken over {at}") as taken_over:
        assert await joined(holder) == at
        [a, b] = await crowd.join_at_once(at, "a", "b")
        assert await a.knows("holder", "b")
        assert await b.knows("holder", "a")
        holder.kill()
        await asyncio.to_thread(holder.wait)
        await taken_over.wait()
        newcomer = await crowd.join(at, "newcomer")
        assert newcomer.joined == {"a", "b"}
        assert [held for bot in crowd.bots for held in bot.discovery.held] == [at]


@pytest.mark.one_loop
async def test_of_twenty_races_to_take_over_each_has_one_winner_and_loses_no_member(
    crowd: Crowd[Bot], at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "SUCCESSION_SECONDS", 0.05)
    bots = await crowd.join_at_once(at, *(f"bot-{number}" for number in range(10)))
    for race in range(20):
        [holder] = [bot for bot in bots if bot.discovery.held]
        bots.remove(holder)
        leaving = asyncio.create_task(holder.leave())
        newcomer = await crowd.join(at, f"newcomer-{race}")
        await leaving
        assert await newcomer.knows(*(bot.name for bot in bots))
        for bot in bots:
            assert await bot.knows(newcomer.name)
        bots.append(newcomer)
        assert [bot.discovery.held for bot in bots if bot.discovery.held] == [{at}]


async def test_a_new_holder_vouches_for_those_it_knew(
    crowd: Crowd[Bot], at: str, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    """Who is slow to come back is told of all the same."""
    caplog.set_level(logging.INFO, "aiobus")
    holder = await crowd.join(at, "holder")
    heir = await crowd.join(at, "heir")
    with socket.create_server(("127.0.0.1", 0)) as listener, logged("has taken over") as taken_over:
        slow = Member("slow", f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        with raw_connection(at) as raw:
            await asyncio.get_running_loop().sock_sendall(raw, hello_line(slow))
            assert await heir.knows("slow")
            await holder.leave()
        await taken_over.wait()
        newcomer = await crowd.join(at, "newcomer")
        assert newcomer.joined == {"heir", "slow"}


# Several addresses, and addresses where something is wrong.


async def test_rosters_of_several_addresses_are_united(crowd: Crowd[Bot]) -> None:
    one, two = free_address(), free_address()
    await crowd.join(one, "a")
    await crowd.join(two, "b")
    both = await crowd.join(f"{one},{two}", "both")
    assert both.joined == {"a", "b"}
    c = await crowd.join(two, "c")
    assert await both.knows("c")
    assert both.discovery.held == set()
    assert c.joined == {"b", "both"}


async def test_of_several_addresses_a_free_one_is_served(crowd: Crowd[Bot]) -> None:
    one, two = free_address(), free_address()
    await crowd.join(one, "a")
    both = await crowd.join(f"{one},{two}", "both")
    assert both.discovery.held == {two}


def names_met(bot: Bot) -> set[str]:
    return {member.name for member in bot.discovery._known}


def are_spread(bots: list[Bot], addresses: list[str]) -> bool:
    """True when no bot holds two addresses, none that holds no address leaves one free, and each is
    connected to the holder of each held one.
    """
    held = [bot.discovery.held for bot in bots]
    holders = [
        point.registry
        for bot in bots
        for point in bot.discovery._points
        if point.registry is not None
    ]
    return (
        all(len(each) <= 1 for each in held)
        and len(holders) == len(frozenset().union(*held)) == min(len(bots), len(addresses))
        and all(holder.absent == [] for holder in holders)
        and all({each.name for each in bots} - {bot.name} <= names_met(bot) for bot in bots)
    )


GRID = [(addresses, members) for addresses in (1, 2, 3) for members in (1, 2, 3, 4)]


@pytest.mark.parametrize(("addresses", "members"), GRID)
async def test_a_member_holds_one_address_at_most_and_the_others_take_what_is_free(
    crowd: Crowd[Bot], addresses: int, members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after each of them in turn has gone and another one has come."""
    monkeypatch.setattr(rendezvous, "SUCCESSION_SECONDS", 0.05)
    monkeypatch.setattr(meeting, "ABSENT_SECONDS", 0.05)
    places = [free_address() for _ in range(addresses)]
    url = ",".join(places)
    bots = await crowd.join_at_once(url, *(f"bot-{number}" for number in range(members)))
    await until(lambda: are_spread(bots, places))
    for number in range(members):
        assert all(bot.discovery.unreached == [] for bot in bots)
        await bots.pop(0).leave()
        await until(lambda: not bots or are_spread(bots, places))
        bots.append(await crowd.join(url, f"newcomer-{number}"))
        assert bots[-1].joined == {bot.name for bot in bots[:-1]}
        await until(lambda: are_spread(bots, places))


@pytest.mark.one_loop
@pytest.mark.parametrize("comes_to_both", [True, False])
async def test_a_newcomer_hears_of_a_frozen_holder_at_the_other_address(
    crowd: Crowd[Bot], *, comes_to_both: bool
) -> None:
    """Also of one that never said hello there, which may have frozen before it could."""
    one, two = free_address(), free_address()
    url = f"{one},{two}"
    with process(url if comes_to_both else one, "frozen") as frozen:
        assert await joined(frozen) == one
        b = await crowd.join(url, "b")
        assert (b.joined, b.discovery.held) == ({"frozen"}, {two})
        os.kill(frozen.pid, signal.SIGSTOP)
        await asyncio.to_thread(os.waitpid, frozen.pid, os.WUNTRACED)
        c = await crowd.join(url, "c")
        assert c.joined == {"frozen", "b"}
        assert c.discovery.unreached == [f"tcp://{one}"]
        frozen.kill()
        await asyncio.to_thread(frozen.wait)
        await until(lambda: c.discovery.unreached == [])
        assert c.discovery.held == {one}


async def test_one_that_takes_over_the_address_of_a_dead_holder_knows_that_another_is_frozen(
    crowd: Crowd[Bot], at: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No member is left that could tell which."""
    monkeypatch.setattr(meeting, "ABSENT_SECONDS", 0.05)
    with process(at, "holder") as holder:
        assert await joined(holder) == at
        with process(at, "frozen") as frozen:
            assert await joined(frozen) == ""
            os.kill(frozen.pid, signal.SIGSTOP)
            await asyncio.to_thread(os.waitpid, frozen.pid, os.WUNTRACED)
            holder.kill()
            await asyncio.to_thread(holder.wait)
            newcomer = await crowd.join(at, "newcomer")
            assert (newcomer.joined, newcomer.discovery.held) == (set(), {at})
            assert newcomer.discovery.unreached == [f"tcp://{at}"]
            assert "an unknown member that was connected there is" in caplog.text
            os.kill(frozen.pid, signal.SIGCONT)
            assert await newcomer.knows("frozen")
            await until(lambda: newcomer.discovery.unreached == [])


@pytest.mark.one_loop
async def test_a_frozen_holder_is_named_and_heard_of_once_it_goes_on(
    crowd: Crowd[Bot], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = free_address(), free_address()
    await crowd.join(two, "b")
    with process(one, "frozen") as frozen:
        assert await joined(frozen) == one
        os.kill(frozen.pid, signal.SIGSTOP)
        await asyncio.to_thread(os.waitpid, frozen.pid, os.WUNTRACED)
        async with asyncio.timeout(10):  # a guard: it is to wait for 2 s
            bot = await crowd.join(f"{one},{two}", "bot")
        assert bot.joined == {"b"}
        [warning] = [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
        assert warning.getMessage().startswith(
            f"bot joins without {one}: the process that listens there accepts connections but"
            " does not answer"
        )
        assert bot.discovery.unreached == [f"tcp://{one}"]
        os.kill(frozen.pid, signal.SIGCONT)
        assert await bot.knows("frozen")
        assert bot.discovery.unreached == []


async def test_an_address_that_no_member_serves_is_named_and_served_once_it_is_free(
    crowd: Crowd[Bot], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.1)
    with socket.socket() as squatter:  # it does not listen: no member can serve or connect
        squatter.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{squatter.getsockname()[1]}"
        a = await crowd.join(at, "a")
        assert a.discovery.held == set()
        assert f"a joins without {at}: no bus serves there" in caplog.text
        assert a.discovery.unreached == [f"tcp://{at}"]
    b = await crowd.join(at, "b")
    assert await a.knows("b")
    assert await b.knows("a")
    assert a.discovery.unreached == b.discovery.unreached == []


async def test_a_holder_that_freezes_after_a_takeover_leaves_its_address_in_doubt_after_2_s(
    crowd: Crowd[Bot], at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.2)
    other = free_address()
    a = await crowd.join(f"{at},{other}", "a")
    assert (a.discovery.held, a.discovery.unreached) == ({at}, [])
    host, _, port = other.partition(":")
    with socket.create_server((host, int(port))):  # it never accepts
        await until(lambda: a.discovery.unreached == [f"tcp://{other}"])
    await until(lambda: a.discovery.unreached == [])


class Impostor:
    """Something else at an address: gives each connection the next of its `answers`, or the last
    of them again, and ends it if that is so.
    """

    def __init__(self, *answers: bytes, hangs_up: bool = False) -> None:
        self._answers = list(answers)
        self._hangs_up = hangs_up
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        await reader.readline()
        writer.write(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])
        if self._hangs_up:
            writer.close()

    async def __aexit__(self, *exception: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await self._server.wait_closed()


WRONG = {
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a greeting without an end of line": b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f",
    "a list": b"[]\n",
    "another version": b'["roster", 2, []]\n',
    "a member elsewhere": b'["roster", 1, [["bot", "tcp://10.0.0.1:5"]]]\n',
    "a member without a name": b'["roster", 1, [["a b", "tcp://127.0.0.1:5"]]]\n',
    "a line without an end": b"x" * 600_000,
    "a hello": hello_line(Member("bot", "tcp://127.0.0.1:5")),
}


@pytest.mark.parametrize("kind", [kind for kind in WRONG if "greeting" not in kind])
async def test_a_holder_that_is_none_is_distrusted_and_asked_again(
    crowd: Crowd[Bot], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Impostor(WRONG[kind], WRONG[kind], roster_line([])) as at:
        bot = await crowd.join(at, "bot")
        assert (bot.joined, bot.discovery.refused) == (set(), 2)
        [warning] = [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
        assert warning.getMessage().startswith(f"{at} sent a ")
        await bot.leave()


@pytest.mark.one_loop
@pytest.mark.parametrize("kind", WRONG)
async def test_a_join_where_something_else_answers_fails_and_names_the_address(
    crowd: Crowd[Bot], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when another address is fine, and whichever is named first."""
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 1.0)
    async with Impostor(WRONG[kind]) as at:
        urls = (at, f"{at},{free_address()}", f"{free_address()},{at}")
        joining = [crowd.join(url, "bot") for url in urls]
        for outcome in await asyncio.gather(*joining, return_exceptions=True):
            with pytest.raises(BusError, match=f"^tcp://{at} cannot be .* another program"):
                raise outcome


async def test_a_join_where_each_connection_is_ended_unanswered_fails_and_names_the_address(
    crowd: Crowd[Bot], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 1.0)
    async with Impostor(b"", hangs_up=True) as at:
        with pytest.raises(BusError, match=f"^tcp://{at} .* closes each connection unanswered"):
            await crowd.join(at, "bot")


async def test_a_join_whose_first_connection_ends_with_its_registry_does_not_fail(
    crowd: Crowd[Bot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that dies ends it as another program may, but that does it again."""
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(meeting, "FIRST_PAUSE", 30.0)
    monkeypatch.setattr(meeting, "LAST_PAUSE", 30.0)
    async with Impostor(b"", hangs_up=True) as at:
        bot = await crowd.join(at, "bot")
        assert bot.discovery.unreached == [f"tcp://{at}"]


async def test_an_address_that_cannot_be_reached_is_named_and_in_doubt(
    crowd: Crowd[Bot], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The broadcast address is of this machine, and nothing can connect to it."""
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.255.255.255", 0)) as server:
        at = f"127.255.255.255:{server.getsockname()[1]}"
        bot = await crowd.join(at, "bot")
    assert bot.discovery.unreached == [f"tcp://{at}"]
    assert f"bot joins without {at}: it cannot be reached (" in caplog.text


# Says what came of joining at the address of its argument, as a user that may not use low ports.
FORBIDDEN = """
import asyncio, os, socket, sys
from aiobus.discovery.rendezvous import Rendezvous

async def main(url):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        discovery = Rendezvous(url)
        try:
            members = await discovery.join("bot", lambda asked: endpoint, print)
            print("joined", *(member.name for member in members))
        except Exception as error:
            print(type(error).__name__, error)
        await discovery.leave()

if os.geteuid() == 0:
    os.setuid(65534)
asyncio.run(main(*sys.argv[1:]))
"""


async def told_where_it_is_forbidden(url: str) -> str:
    command = [sys.executable, "-c", FORBIDDEN, url]
    return (await asyncio.to_thread(subprocess.check_output, command, text=True)).strip()


@pytest.mark.one_loop
@pytest.mark.parametrize("is_first", [True, False])
async def test_a_join_where_this_process_may_not_listen_fails_and_names_the_address(
    *, is_first: bool
) -> None:
    """Whichever address is named first."""
    host = free_address().partition(":")[0]
    forbidden, free = f"{host}:1", free_address()
    url = f"{forbidden},{free}" if is_first else f"{free},{forbidden}"
    said = await told_where_it_is_forbidden(url)
    assert said.startswith(
        f"BusError tcp://{forbidden} cannot be a rendezvous address: nothing listens there, and"
        " this process may not (Permission denied)."
    )


async def test_a_holder_that_hangs_up_at_once_is_asked_again(crowd: Crowd[Bot]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as rude:
        rude.setblocking(False)
        host, port = rude.getsockname()
        joining = asyncio.create_task(crowd.join(f"{host}:{port}", "bot"))
        for _ in range(3):
            sock, _ = await asyncio.get_running_loop().sock_accept(rude)
            sock.close()
        rude.close()
        bot = await joining
        assert bot.discovery.held == {f"{host}:{port}"}


async def test_garbage_at_a_served_address_is_counted_and_said_once_a_minute(
    crowd: Crowd[Bot], at: str, caplog: pytest.LogCaptureFixture
) -> None:
    [a, b] = await crowd.join_at_once(at, "a", "b")
    holder = a if a.discovery.held else b
    for _ in range(10):
        with raw_connection(at) as raw:
            await asyncio.get_running_loop().sock_sendall(raw, b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert await asyncio.get_running_loop().sock_recv(raw, 100) == b""
    assert holder.discovery.refused == 10
    said = [entry.message for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert said == [f"{at}: refused a connection: 127.0.0.1 sent a line that is not JSON"]
    assert "GET" not in caplog.text
    c = await crowd.join(at, "c")
    assert c.joined == {"a", "b"}


async def test_a_callback_that_fails_is_logged_and_the_others_are_still_told_of(
    crowd: Crowd[Bot], at: str, caplog: pytest.LogCaptureFixture
) -> None:
    a = await crowd.join(at, "a")

    def fails(member: Member) -> None:
        Bot.take(a, member)
        if member.name == "b":
            raise ZeroDivisionError("mine")

    a.discovery._on_discovered = fails
    await crowd.join_at_once(at, "b", "c", "d")
    assert await a.knows("b", "c", "d")
    assert "was found, but could not be linked" in caplog.text
    assert "ZeroDivisionError: mine" in caplog.text


async def test_an_error_of_our_own_is_logged_and_the_address_attended_to_again(
    crowd: Crowd[Bot], at: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(line: bytes, **_: object) -> list[Member]:
        monkeypatch.undo()
        raise ZeroDivisionError("ours")

    await crowd.join(at, "a")
    monkeypatch.setattr(guest, "parse_roster", fails)
    b = await crowd.join(at, "b")
    assert b.joined == {"a"}
    assert f"b at {at} failed and tries again" in caplog.messages
    assert "ZeroDivisionError: ours" in caplog.text


# Leaving.


async def test_leaving_leaves_nothing_open_and_may_be_done_twice(at: str) -> None:
    before = descriptors()
    bots = [Bot(at, name) for name in "abc"]
    await asyncio.gather(*(bot.join() for bot in bots))
    await asyncio.gather(*(bot.leave() for bot in bots), *(bot.leave() for bot in bots))
    await bots[0].discovery.leave()
    assert bots[0].discovery.held == set()
    assert descriptors() == before


async def test_leaving_what_was_never_joined_is_no_error(at: str) -> None:
    await Rendezvous(at).leave()


async def test_a_cancelled_leave_leaves_nothing_open(at: str) -> None:
    before = descriptors()
    bots = [Bot(at, name) for name in "ab"]
    await asyncio.gather(*(bot.join() for bot in bots))
    for bot in bots:
        leaving = asyncio.create_task(bot.leave())
        await asyncio.sleep(0)  # it has begun
        leaving.cancel()
        await asyncio.wait([leaving])
        await bot.leave()
    assert descriptors() == before


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_join_cancelled_at_any_step_leaves_nothing_open(at: str, is_first: bool) -> None:
    crowd = Crowd(Bot)
    if not is_first:
        await crowd.join_at_once(at, "a", "b")
        assert await crowd.bots[0].knows("b")
        assert await crowd.bots[1].knows("a")
    before, turns, was_cancelled = descriptors(), 0, True
    tasks = asyncio.all_tasks()
    bot = Bot(at, "late")
    while was_cancelled:
        joining = asyncio.create_task(bot.join())
        for _ in range(turns):
            await asyncio.sleep(0)
        was_cancelled = joining.cancel()
        await asyncio.wait([joining])
        if was_cancelled:
            assert asyncio.all_tasks() == tasks
            bot.listener.close()
            await until(lambda: descriptors() == before)
            bot = Bot(at, "late")
        turns += 1
    assert turns > 3
    await bot.leave()
    await crowd.leave()


async def until(condition: Callable[[], bool]) -> None:
    """The holder notices the end of a connection at its next look at the descriptors."""
    while not condition():  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("name", "endpoint"), [("not a name", "tcp://127.0.0.1:5"), ("bot", "tcp://10.0.0.1:5")]
)
async def test_who_cannot_be_a_member_is_told_so_and_opens_nothing(
    at: str, name: str, endpoint: str
) -> None:
    before = descriptors()
    with pytest.raises(ValueError, match="cannot be a member here"):
        await Rendezvous(at).join(name, lambda asked: endpoint, print)
    assert descriptors() == before


async def test_a_bind_that_fails_is_told_and_opens_nothing(at: str) -> None:
    def fails(asked: str) -> str:
        raise OSError("no port")

    before = descriptors()
    with pytest.raises(OSError, match="no port"):
        await Rendezvous(at).join("bot", fails, print)
    assert descriptors() == before


# What is asked without joining.


@pytest.mark.parametrize("url", ["*:7555", "localhost", "localhost:1,localhost:1", "224.0.0.1:5"])
def test_an_address_that_cannot_be_served_is_refused_before_anything_is_opened(url: str) -> None:
    with pytest.raises(ValueError, match=r"^tcp://"):
        Rendezvous(url)


def test_members_are_admitted_on_this_machine_only() -> None:
    discovery = Rendezvous("localhost:7555")
    assert discovery.allows(Member("bot", "tcp://127.0.0.1:5"))
    assert not discovery.allows(Member("bot", "tcp://10.0.0.1:5"))
    assert not discovery.allows(Member("not a name", "tcp://127.0.0.1:5"))


async def test_the_listening_endpoint_is_asked_for_where_the_first_address_is() -> None:
    asked: list[str] = []

    def bind(endpoint: str) -> str:
        asked.append(endpoint)
        raise OSError

    for url in ("127.0.0.7:5,localhost:6", "[::1]:5"):
        with pytest.raises(OSError):  # noqa: PT011 - there is no text
            await Rendezvous(url).join("bot", bind, print)
    assert asked == ["tcp://127.0.0.7:*", "tcp://[::1]:*"]


async def test_addresses_of_the_rendezvous_and_of_members_are_its_own(
    crowd: Crowd[Bot], at: str
) -> None:
    a = await crowd.join(at, "a")
    b = await crowd.join(at, "b")
    for endpoint in (f"tcp://{at}", a.endpoint, b.endpoint):
        host, _, port = endpoint.removeprefix("tcp://").partition(":")
        assert b.discovery.owns_address((host, int(port)))
        assert b.discovery.owns_address((host, int(port), 0, 0))
        assert not b.discovery.owns_address((host, int(port) + 1))
    for foreign in ("", "/run/x.sock", b"", None, (), ("127.0.0.1",), (1, 2), ("a", "b")):
        assert not b.discovery.owns_address(foreign)


@pytest.mark.one_loop
async def test_who_accepts_who_refuses_and_who_does_neither_are_told_apart() -> None:
    """Who does neither may be cut off: it is not given up, and its link not made again."""
    discovery = Rendezvous(free_address())
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_server(("127.0.0.1", 0)) as gone,
        socket.socket() as full,
        contextlib.ExitStack() as waiting,
    ):
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            each = waiting.enter_context(socket.socket())
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        accepts, refuses, neither = (
            Member(name, f"tcp://127.0.0.1:{each.getsockname()[1]}")
            for name, each in (("a", listener), ("b", gone), ("c", full))
        )
        gone.close()
        members = [accepts, refuses, neither]
        assert await discovery.probe_accepting(members) == [accepts]
        assert await discovery.probe_absent(members) == [refuses]
