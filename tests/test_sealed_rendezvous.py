"""A desk with keys at its rendezvous addresses, on real sockets: who is let in, who is not, and
what both sides say of it.
"""

import asyncio
import logging
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self

import pytest
from crowd import Bot, Crowd, free_address
from desks import until

from aiobus.discovery import DiscoveryCallbacks, Member, rendezvous
from aiobus.discovery import registry as registry_module
from aiobus.discovery.refusal import Refused
from aiobus.discovery.registry import Registry
from aiobus.discovery.roster import (
    KnownMembers,
    ProtocolError,
    address_of,
    hello_line,
    roster_line,
)
from aiobus.discovery.seal import MAC, Seal, accepted, new_nonce, opening
from aiobus.errors import BusError
from aiobus.keyring import Keyring
from aiobus.keyring.files import Hidden
from aiobus.keyring.members import Members
from aiobus.limits import MAX_CONNECTIONS, MAX_HELLO, MAX_REFUSALS
from aiobus.refusals import TOLD

pytestmark = pytest.mark.usefixtures("no_task_is_left")

OLD, NEW, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))


def keyring_in(folder: Path, *secrets: bytes) -> Keyring:
    """A keyring in a directory of this user alone, with a list of members that is empty."""
    (folder / "desk.members").write_text(Members(1).text)
    write_secrets(folder, *secrets)
    return Keyring.load(folder)


def write_secrets(folder: Path, *secrets: bytes) -> None:
    file = folder / "desk.seal"
    file.touch(mode=0o600)
    file.write_text("".join(f"{each.hex()}\n" for each in secrets))


class SealedBot(Bot):
    """A member with a keyring or without, and what it was told."""

    def __init__(self, url: str, name: str, *secrets: bytes) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ab", dir="/tmp")
        self.keys = keyring_in(Path(self._folder.name), *secrets) if secrets else None
        super().__init__(url, name, self.keys)
        self.told: list[tuple[str, str]] = []
        self.refused: list[tuple[str, str, int]] = []
        self._watching: asyncio.Task[None] | None = None

    async def join(self) -> Self:
        await super().join()
        self._watching = asyncio.create_task(self._watch())
        return self

    async def _watch(self) -> None:
        callbacks = DiscoveryCallbacks(
            self.take,
            lambda *problem: None,
            lambda error: None,
            on_told=lambda *told: self.told.append(told),
            on_refused=lambda *refused: self.refused.append(refused),
        )
        while True:
            self.discovery.watch(callbacks, lambda asked: asked)
            await asyncio.sleep(0.02)

    async def leave(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await super().leave()
        self._folder.cleanup()

    def change(self, *secrets: bytes) -> None:
        """These are in its file from now on, and it has been read again."""
        assert self.keys is not None
        write_secrets(Path(self.keys.path), *secrets)
        assert self.keys.reload()
        assert self.keys.problem == ""


@pytest.fixture
async def crowd(no_task_is_left: None) -> AsyncIterator[Crowd[SealedBot]]:
    crowd = Crowd(SealedBot)
    yield crowd
    await crowd.leave()


@pytest.fixture
def at() -> str:
    return free_address()


class Raw:
    """A connection that says what it likes, sealed or not."""

    def __init__(self, at: str) -> None:
        host, _, port = at.partition(":")
        self.sock = socket.create_connection((host, int(port)))
        self.sock.setblocking(False)
        self._rest = b""
        self.sent: list[bytes] = []

    async def say(self, data: bytes) -> None:
        self.sent.append(data)
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def line(self) -> bytes:
        """The next line, without its end; b"" if the connection has ended."""
        while b"\n" not in self._rest:
            try:
                data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
            except ConnectionError:
                data = b""
            if not data:
                return b""
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    async def meet(self, *secrets: bytes) -> Seal:
        """Agree on a secret."""
        known = [*map(Hidden, secrets)]
        first = opening(known, new_nonce())
        await self.say(first)
        return accepted(first, known, await self.line())

    async def enter(self, member: Member, *secrets: bytes) -> Seal:
        """Become a member, and read the roster."""
        seal = await self.meet(*secrets)
        await self.say(seal.seal(hello_line(member)))
        assert member.name.encode() in seal.open(await self.line())
        return seal

    async def is_closed(self) -> bool:
        while await self.line():
            pass
        return True


@asynccontextmanager
async def raw(at: str) -> AsyncIterator[Raw]:
    made = Raw(at)
    try:
        yield made
    finally:
        made.sock.close()


STRANGER = Member("stranger", "tcp://127.0.0.1:9")


# Who has the secret.


async def test_members_with_the_secret_meet(crowd: Crowd[SealedBot], at: str) -> None:
    a = await crowd.join(at, "a", NEW)
    b = await crowd.join(at, "b", NEW)
    c = await crowd.join(at, "c", OLD, NEW)
    assert (b.joined, c.joined) == ({"a"}, {"a", "b"})
    await until(lambda: a.met == {"b", "c"} and b.met == {"a", "c"})
    assert [bot.discovery.refused for bot in crowd.bots] == [0, 0, 0]


async def test_a_keyed_bus_takes_over_an_address_and_all_meet_again(
    crowd: Crowd[SealedBot], at: str
) -> None:
    a = await crowd.join(at, "a", NEW)
    b = await crowd.join(at, "b", NEW)
    await crowd.join(at, "c", NEW)
    await a.leave()
    d = await crowd.join(at, "d", NEW)
    await until(lambda: {"c", "d"} <= b.met and {"b", "c"} <= d.met)


async def test_with_the_secret_the_doors_open_which_are_shut_without_it(
    crowd: Crowd[SealedBot], at: str
) -> None:
    """The control of the tests below: what they say is refused for its seal alone."""
    await crowd.join(at, "a", NEW)
    async with raw(at) as friend:
        await friend.enter(STRANGER, NEW)
    a = crowd.bots[0]
    await until(lambda: a.met == {"stranger"})
    assert a.discovery.refused == 0


# Who has not. Each is said on both sides.

KEYS = "is a desk with keys and this bus has no keyring: give keyring= or AIOBUS_KEYRING"
MISMATCHES = {
    "another secret": ((NEW,), (OTHER,), "does not share this desk's secret", None),
    "a guest without keys": ((NEW,), (), KEYS, "has no keyring and this is a desk with keys"),
    "a registry without keys": (
        *((), (NEW,), "is a desk without keys and this bus has a keyring"),
        "has a keyring and this is a desk without keys",
    ),
}


@pytest.mark.parametrize("kind", MISMATCHES)
async def test_a_start_without_the_keys_of_the_desk_fails_and_both_sides_say_why(
    crowd: Crowd[SealedBot], at: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.3)
    there, here, guest_says, registry_says = MISMATCHES[kind]
    a = await crowd.join(at, "a", *there)
    for url in (at, f"{at},{free_address()}"):
        with pytest.raises(BusError, match=f"^tcp://{at} {guest_says}"):
            await crowd.join(url, "b", *here)
    await until(lambda: a.refused)
    assert a.discovery.refused > 1
    [(peer, reason, count)] = a.refused
    assert (peer, count) == ("127.0.0.1", 1)
    assert reason.startswith(registry_says or guest_says)
    assert a.met == set()


@pytest.mark.slow
@pytest.mark.parametrize("kind", MISMATCHES)
async def test_a_running_bus_that_cannot_be_let_in_says_so_and_is_in_once_it_is_mended(
    crowd: Crowd[SealedBot],
    kind: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs, because it has met others at another address."""
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.3)
    one, two = (free_address() for _ in range(2))
    there, here, guest_says, _ = MISMATCHES[kind]
    b = await crowd.join(f"{two},{one}", "b", *here)
    c = await crowd.join(f"{two},{one}", "c", *here)
    assert (b.discovery.held, c.discovery.held) == ({two}, {one})
    await c.leave()
    crowd.bots.remove(c)
    a = await crowd.join(one, "a", *there)
    # Unreached it is also while nobody serves there.
    await until(lambda: b.refused and b.discovery.unreached == [f"tcp://{one}"])
    assert b.discovery.refused
    [(address, reason, _)] = b.refused
    assert (address, reason.startswith(guest_says)) == (one, True)
    if b.keys is None or a.keys is None:
        return  # a keyring is given at the start
    b.change(*here, *there)
    async with asyncio.timeout(5):
        await until(lambda: b.met >= {"a"} and a.met == {"b"})
    assert b.discovery.unreached == []


async def test_a_wrong_secret_is_logged_by_a_start_that_fails_and_says_no_secret(
    crowd: Crowd[SealedBot],
    at: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.3)
    await crowd.join(at, "a", NEW)
    with pytest.raises(BusError):
        await crowd.join(at, "b", OTHER)
    said = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]
    words = (
        "does not share this desk's secret: copy the file desk.seal of the one host to the other"
    )
    assert said == [f"{at} {words}"]
    assert OTHER.hex() not in caplog.text


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "binary": bytes(range(256)) * 16,
    "a hello in the clear": hello_line(STRANGER),
    "a roster": roster_line([STRANGER]),
    "a line too long": b"x" * (MAX_HELLO + 1),
    "a refusal": Refused("a", "a", "key").line,
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_is_refused_before_and_after_the_seal_and_harms_nobody(
    crowd: Crowd[SealedBot], at: str, kind: str
) -> None:
    a = await crowd.join(at, "a", NEW)
    b = await crowd.join(at, "b", NEW)
    async with raw(at) as first, raw(at) as second, raw(at) as third:
        await first.say(GARBAGE[kind])
        assert await first.is_closed()
        await second.meet(NEW)
        await second.say(GARBAGE[kind])
        assert await second.is_closed()
        await third.enter(Member("third", STRANGER.endpoint), NEW)
        await third.say(GARBAGE[kind])
        assert await third.is_closed()
    await until(lambda: a.discovery.refused == 3)
    assert "stranger" not in a.met | b.met
    assert (a.told, b.discovery.refused) == ([], 0)
    await crowd.join(at, "c", NEW)
    await until(lambda: {"b", "c"} <= a.met and {"a", "c"} <= b.met)


async def test_a_guest_that_does_not_prove_the_secret_gets_no_roster(
    crowd: Crowd[SealedBot], at: str
) -> None:
    """It knows an id, which anyone reads who listens."""
    a = await crowd.join(at, "a", NEW)
    async with raw(at) as liar:
        first = opening((Hidden(NEW),), new_nonce())
        await liar.say(first)
        answer = await liar.line()
        assert b"tcp://" not in answer
        forged = Seal(Hidden(OTHER), first[:-1], new_nonce(), is_registry=False)
        await liar.say(forged.seal(hello_line(STRANGER)))
        assert await liar.line() == b""
    await until(lambda: a.discovery.refused == 1)
    assert a.met == set()


async def test_lines_that_were_recorded_open_no_other_connection(
    crowd: Crowd[SealedBot], at: str
) -> None:
    a = await crowd.join(at, "a", NEW)
    async with raw(at) as honest:
        await honest.enter(STRANGER, NEW)
        recorded = honest.sent
    async with raw(at) as thief:
        await thief.say(recorded[0])
        assert await thief.line()
        await thief.say(recorded[1])
        assert await thief.line() == b""
    async with raw(at) as thief:
        await thief.say(b"".join(recorded))
        answer = await thief.line()
        assert b"tcp://" not in answer
        assert await thief.line() == b""
    await until(lambda: a.discovery.refused == 2)


async def test_the_bounds_hold_before_the_seal_is_proven(
    crowd: Crowd[SealedBot], at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await crowd.join(at, "a", NEW)
    async with raw(at) as long:
        await long.meet(NEW)
        await long.say(b"0" * MAC + b"x" * (MAX_HELLO - MAC + 1))
        assert await long.is_closed()
    monkeypatch.setattr(registry_module, "HELLO_SECONDS", 0.1)
    async with raw(at) as silent:
        assert await silent.is_closed()
    late, has_met = 0, False
    while not has_met:
        async with raw(at) as sealed:
            with suppress(
                ProtocolError, ConnectionError
            ):  # on a busy machine its time may be over by then
                await sealed.meet(NEW)
                has_met = True
            late += not has_met
            assert await sealed.is_closed()
    await until(lambda: len(a.refused) == 2)
    assert {reason for _, reason, _ in a.refused} == {
        "said no hello within 0.1 s",
        f"sent a line of more than {MAX_HELLO:,} bytes",
    }
    assert a.discovery.refused == 3 + late
    assert MAX_CONNECTIONS == 1024


async def test_a_knocker_is_said_once_a_minute_however_often_it_knocks(
    crowd: Crowd[SealedBot], at: str
) -> None:
    a = await crowd.join(at, "a", NEW)
    for _ in range(50):
        async with raw(at) as knocker:
            await knocker.say(opening((Hidden(OTHER),), new_nonce()))
            assert await knocker.is_closed()
    await until(lambda: a.discovery.refused == 50)
    assert len(a.refused) == 1


# A secret that is changed.


@pytest.mark.slow
async def test_a_secret_is_changed_without_an_outage(crowd: Crowd[SealedBot], at: str) -> None:
    """Both are in the files while the new one is copied; then the old one is taken out."""
    bots = [await crowd.join(at, name, OLD) for name in "abc"]
    for secrets in ((NEW, OLD), (NEW,)):
        for bot in bots:
            bot.change(*secrets)
            await crowd.join(at, f"{bot.name}-{len(secrets)}", *secrets)
    names = {bot.name for bot in crowd.bots}
    await until(lambda: all(bot.met >= names - {bot.name} for bot in crowd.bots[:3]))
    assert [bot.discovery.refused for bot in crowd.bots] == [0] * 9
    assert all(bot.discovery.unreached == [] for bot in crowd.bots)


@pytest.mark.parametrize("first", ["registry", "guest"])
async def test_a_connection_of_a_retired_secret_is_ended_and_made_again_by_the_next(
    crowd: Crowd[SealedBot], at: str, first: str
) -> None:
    a, b = await crowd.join(at, "a", NEW, OLD), await crowd.join(at, "b", OLD)
    seals = [each.seal for each in registry_of(a)._connections]
    b.change(OLD, NEW)
    (a if first == "registry" else b).change(NEW)
    async with asyncio.timeout(2):
        await until(lambda: registry_of(a)._connections and is_sealed_anew(a, seals))
    assert a.discovery.refused == b.discovery.refused == 0


def registry_of(bot: SealedBot) -> Registry:
    [registry] = [each.registry for each in bot.discovery._points if each.registry]
    return registry


def is_sealed_anew(bot: SealedBot, seals: list[Seal | None]) -> bool:
    return all(
        each.member is not None and each.seal is not None and each.seal not in seals
        for each in registry_of(bot)._connections
    )


async def test_who_has_only_the_retired_secret_is_out_within_2_s(
    crowd: Crowd[SealedBot], at: str
) -> None:
    a, b = await crowd.join(at, "a", NEW, OLD), await crowd.join(at, "b", OLD)
    a.change(NEW)
    async with asyncio.timeout(2):
        await until(lambda: not registry_of(a)._connections and a.refused and b.refused)
    assert b.refused[0][0] == at
    assert "does not share this desk's secret" in b.refused[0][1]
    assert "does not share this desk's secret" in a.refused[0][1]


# Who serves though it is revoked, or lies though it has the secret.


@pytest.mark.slow
async def test_who_has_only_the_retired_secret_cannot_serve_and_is_replaced_when_it_goes(
    crowd: Crowd[SealedBot],
) -> None:
    one, two = (free_address() for _ in range(2))
    revoked = await crowd.join(two, "revoked", OLD)
    assert revoked.discovery.held == {two}
    first = await crowd.join(one, "first", NEW)
    b = await crowd.join(f"{one},{two}", "b", NEW)
    c = await crowd.join(f"{one},{two}", "c", NEW)
    await until(lambda: b.met == {"first", "c"} and c.met == {"first", "b"})
    await until(lambda: b.refused and c.refused and revoked.refused)
    for bot in (b, c):
        [(address, reason, _)] = bot.refused
        assert address == two
        assert reason.startswith("does not share this desk's secret")
    assert revoked.met == set()
    assert "revoked" not in first.met | b.met | c.met
    await until(lambda: b.discovery.unreached == c.discovery.unreached == [f"tcp://{two}"])
    await revoked.leave()
    await until(lambda: two in b.discovery.held | c.discovery.held)
    await until(lambda: not (b.discovery.unreached or c.discovery.unreached))
    newcomer = await crowd.join(two, "newcomer", NEW)
    await until(lambda: newcomer.met >= {"b", "c"})


async def test_a_registry_that_lies_can_only_have_others_call_a_wrong_address(
    crowd: Crowd[SealedBot],
) -> None:
    """It has the secret. Who answers at an address proves its key there; see the mesh."""
    one, two = (free_address() for _ in range(2))
    address = address_of(f"tcp://{two}")
    assert address is not None
    known = KnownMembers()
    known.learn([STRANGER])
    liar = Registry(
        *(address, Member("feed", "tcp://127.0.0.1:7"), known),
        secrets=lambda: (Hidden(NEW),),
        on_hello=lambda member: None,
        on_gone=print,
        on_refused=lambda peer, reason: None,
        on_told=lambda source, cause: None,
    )
    feed = await crowd.join(one, "feed", NEW)
    a = await crowd.join(f"{one},{two}", "a", NEW)
    b = await crowd.join(f"{one},{two}", "b", NEW)
    known_to_b = [*b.discovery._known, *b.discovery._known.claimed]
    assert Member("feed", feed.endpoint) in known_to_b
    assert Member("a", a.endpoint) in known_to_b
    assert b.discovery.unreached == []
    liar.close()


# What members tell each other.


async def test_a_member_learns_from_another_why_it_is_refused(crowd: Crowd[SealedBot]) -> None:
    """Whether that one is a guest, the registry, or a guest of two."""
    one, two = (free_address() for _ in range(2))
    url = f"{one},{two}"
    bots = [await crowd.join(url, name, NEW) for name in "abcd"]
    assert [bool(bot.discovery.held) for bot in bots] == [True, True, False, False]
    await until(lambda: all(len(bot.met) == 3 for bot in bots))
    for source in bots:
        for to in bots:
            if to is not source:
                source.discovery.tell_refused(to.name, "revoked")
                await until(lambda s=source, t=to: (s.name, "revoked") in t.told)
    for bot in bots:
        assert {*bot.told} == {(other.name, "revoked") for other in bots if other is not bot}
        assert bot.discovery.refused == 0


async def test_a_cause_that_is_none_is_refused_at_once(crowd: Crowd[SealedBot], at: str) -> None:
    a = await crowd.join(at, "a", NEW)
    for cause in TOLD:
        a.discovery.tell_refused("b", cause)
    with pytest.raises(ValueError, match="'because' is none of key, "):
        a.discovery.tell_refused("b", "because")


async def test_a_desk_without_keys_tells_nothing(crowd: Crowd[SealedBot], at: str) -> None:
    a, b = await crowd.join(at, "a"), await crowd.join(at, "b")
    b.discovery.tell_refused("a", "key")
    await crowd.join(at, "c")
    assert (a.told, a.discovery.refused) == ([], 0)


async def test_a_member_that_tells_in_the_name_of_another_is_sent_away(
    crowd: Crowd[SealedBot], at: str
) -> None:
    a = await crowd.join(at, "a", NEW)
    await crowd.join(at, "b", NEW)
    async with raw(at) as liar:
        seal = await liar.enter(STRANGER, NEW)
        await liar.say(seal.seal(Refused("b", "a", "key").line))
        assert await liar.is_closed()
    await until(lambda: a.refused)
    assert (a.told, a.refused[0][1]) == ([], "sent a refusal in the name of another")


async def test_who_tells_too_much_is_not_heard_for_the_rest_of_the_minute_and_stays(
    crowd: Crowd[SealedBot], at: str
) -> None:
    a, b = await crowd.join(at, "a", NEW), await crowd.join(at, "b", NEW)
    async with raw(at) as teller:
        seal = await teller.enter(STRANGER, NEW)
        for _ in range(MAX_REFUSALS + 5):
            await teller.say(seal.seal(Refused("stranger", "a", "key").line))
        await until(lambda: a.discovery.refused == 5)
        assert a.told == [("stranger", "key")] * MAX_REFUSALS
        assert a.refused == [("127.0.0.1", "told of more than 256 refusals in a minute", 1)]
        b.discovery.tell_refused("a", "mute")
        await until(lambda: a.told[-1] == ("b", "mute"))
        await crowd.join(at, "c", NEW)
        assert b"c" in seal.open(await teller.line())


async def test_a_member_tells_less_than_a_registry_takes(crowd: Crowd[SealedBot], at: str) -> None:
    a, b = await crowd.join(at, "a", NEW), await crowd.join(at, "b", NEW)
    for _ in range(MAX_REFUSALS):
        b.discovery.tell_refused("a", "key")
    await crowd.join(at, "c", NEW)
    await until(lambda: len(a.told) == MAX_REFUSALS // 2)
    assert a.discovery.refused == 0


@pytest.mark.one_loop
async def test_a_registry_that_reads_nothing_costs_its_teller_no_more_than_the_connection(
    crowd: Crowd[SealedBot], at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobus.discovery.guest.MAX_REFUSALS", 10**9)
    a, b = await crowd.join(at, "a", NEW), await crowd.join(at, "b", NEW)
    asyncio.get_running_loop().remove_reader(next(iter(registry_of(a)._connections)).sock.fileno())
    [point] = b.discovery._points
    guest = point.guest
    while point.guest is guest:
        for _ in range(1_000):
            b.discovery.tell_refused("a", "key")
        await asyncio.sleep(0)
    await until(lambda: point.guest is not None and b.discovery.unreached == [])
