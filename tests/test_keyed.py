"""Nobody without a key, and nobody speaks for another: each door of a bus with keys, tried."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from desks import until
from keys import KeyedDesk, Knocker, Rogue, endpoint_of

from aiobus import AsyncEventBus, Event
from aiobus.errors import NotPermitted
from aiobus.keyring.members import Rules
from aiobus.mesh.zap import Authenticator
from aiobus.wire import (
    Ack,
    Answer,
    Ask,
    Mark,
    PageAsk,
    PeerId,
    frame,
    heartbeat,
    mail,
    page,
    topic,
    up,
)

pytestmark = pytest.mark.usefixtures("no_task_is_left")

QUIET = 0.3
"""Seconds without a message after which none is taken to come: on one machine it takes 1 ms."""


@pytest.fixture
def desk(folder: Path) -> KeyedDesk:
    return KeyedDesk(folder / "keys", "feed", "strategy", "rogue")


@asynccontextmanager
async def knocking(bus: AsyncEventBus, **keys: Any) -> AsyncIterator[Knocker]:
    knocker = Knocker(endpoint_of(bus), **keys)
    try:
        yield knocker
    finally:
        knocker.close()


@asynccontextmanager
async def rogue_at(desk: KeyedDesk, bus: AsyncEventBus) -> AsyncIterator[Rogue]:
    """A linked rogue that gives signs of life."""
    rogue = Rogue(desk, "rogue")
    living = asyncio.create_task(rogue.live())
    try:
        async with bus.stream("aiobus.peer_joined") as joined:
            await rogue.link(bus)
            await anext(joined)
        yield rogue
    finally:
        living.cancel()
        await asyncio.wait([living])
        rogue.close()


async def hears(bus: AsyncEventBus, knocker: Knocker) -> None:
    """Return once it hears events."""
    while not await knocker.socket.poll(20):
        await bus.publish(Event("TRADE", 0))
    assert b'"feed"' in await knocker.socket.recv()
    await knocker.heard(QUIET)


async def publishes(bus: AsyncEventBus, *knockers: Knocker) -> list[list[bytes]]:
    """What each hears of an event."""
    await bus.publish(Event("TRADE", 1))
    return [await each.heard(QUIET) for each in knockers]


# Doors.


async def test_a_member_with_its_key_is_let_in_and_hears_events(desk: KeyedDesk) -> None:
    """The control of all that follow: the same knock, with the right key."""
    async with (
        desk.bus("feed") as feed,
        knocking(feed, server=desk.keys("feed")[0], keys=desk.keys("rogue")) as knocker,
    ):
        assert await knocker.outcome() == "let in"
        await hears(feed, knocker)


def null(desk: KeyedDesk) -> dict[str, Any]:
    return {}


def plain(desk: KeyedDesk) -> dict[str, Any]:
    return {"is_plain": True}


def random_key(desk: KeyedDesk) -> dict[str, Any]:
    public, secret = zmq.curve_keypair()
    return {"server": desk.keys("feed")[0], "keys": (public.decode(), secret.decode())}


def revoked_key(desk: KeyedDesk) -> dict[str, Any]:
    keys = desk.keys("rogue")
    desk.revoke("rogue")
    return {"server": desk.keys("feed")[0], "keys": keys}


def key_of_another_desk(desk: KeyedDesk) -> dict[str, Any]:
    other = KeyedDesk(desk.path.parent / "other", "feed", "rogue")
    return {"server": desk.keys("feed")[0], "keys": other.keys("rogue")}


def server_key_of_another_desk(desk: KeyedDesk) -> dict[str, Any]:
    other = KeyedDesk(desk.path.parent / "other", "feed", "rogue")
    return {"server": other.keys("feed")[0], "keys": desk.keys("rogue")}


def public_key_alone(desk: KeyedDesk) -> dict[str, Any]:
    """The list may be copied, so its keys are known: without the secret they open nothing."""
    secret = zmq.curve_keypair()[1].decode()
    return {"server": desk.keys("feed")[0], "keys": (desk.keys("rogue")[0], secret)}


DOORS = [
    null,
    plain,
    random_key,
    revoked_key,
    key_of_another_desk,
    server_key_of_another_desk,
    public_key_alone,
]


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
async def test_nobody_is_let_in_without_a_key_of_the_desk(
    desk: KeyedDesk, door: Callable[[KeyedDesk], dict[str, Any]]
) -> None:
    async with (
        desk.bus("feed") as feed,
        knocking(feed, server=desk.keys("feed")[0], keys=desk.keys("rogue")) as control,
    ):
        assert await control.outcome() == "let in"
        await hears(feed, control)
        async with knocking(feed, **door(desk)) as knocker:
            assert await knocker.outcome() != "let in"
            heard = await publishes(feed, knocker)
            assert heard == [[]]


async def test_a_member_whose_key_is_revoked_while_it_is_linked_hears_no_more_within_2_s(
    desk: KeyedDesk,
) -> None:
    async with (
        desk.bus("feed") as feed,
        knocking(feed, server=desk.keys("feed")[0], keys=desk.keys("rogue")) as knocker,
    ):
        assert await knocker.outcome() == "let in"
        await hears(feed, knocker)
        desk.revoke("rogue")
        async with asyncio.timeout(2):
            assert await knocker.outcome() == "cut"
        assert await publishes(feed, knocker) == [[]]


@pytest.mark.parametrize("how", ["before it is up", "after its thread has died"])
async def test_without_the_authenticator_not_even_a_member_is_let_in(
    desk: KeyedDesk, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ZAP_ENFORCE_DOMAIN libzmq then lets everybody in."""
    if how == "before it is up":
        monkeypatch.setattr("aiobus.mesh.keyed.Authenticator", lambda *_: None)
    else:

        def die(self: Authenticator) -> None:
            self._questions.close()
            self._failures.close()

        monkeypatch.setattr(Authenticator, "_run", die)
    async with (
        desk.bus("feed") as feed,
        knocking(feed, server=desk.keys("feed")[0], keys=desk.keys("rogue")) as knocker,
    ):
        assert await knocker.outcome() != "let in"
        assert await publishes(feed, knocker) == [[]]


async def test_an_authenticator_that_fails_at_a_connection_puts_it_off_and_lets_the_next_in(
    desk: KeyedDesk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    judge = Authenticator._judge

    def fail(self: Authenticator, question: list[bytes]) -> tuple[bytes, bytes, bytes]:
        monkeypatch.setattr(Authenticator, "_judge", judge)
        raise RuntimeError("a fault")

    monkeypatch.setattr(Authenticator, "_judge", fail)
    keys = {"server": desk.keys("feed")[0], "keys": desk.keys("rogue")}
    async with desk.bus("feed") as feed:
        async with knocking(feed, **keys) as knocker:
            assert await knocker.outcome() != "let in"
        async with knocking(feed, **keys) as knocker:
            assert await knocker.outcome() == "let in"
    assert "a connection could not be judged, and is put off" in caplog.text


def broken(desk: KeyedDesk) -> Callable[[], None]:
    file = desk.path / "desk.members"
    text = file.read_text()
    file.write_text(text + "[")
    return lambda: file.write_text(text) and None


def missing(desk: KeyedDesk) -> Callable[[], None]:
    file = desk.path / "desk.members"
    file.rename(desk.path / "away")
    return lambda: (desk.path / "away").rename(file) and None


def open_to_all(desk: KeyedDesk) -> Callable[[], None]:
    file = desk.path / "desk.members"
    file.chmod(0o666)
    return lambda: file.chmod(0o644)


@pytest.mark.parametrize("spoil", [broken, missing, open_to_all], ids=lambda each: each.__name__)
async def test_while_the_list_cannot_be_read_a_member_is_put_off_and_is_linked_after(
    desk: KeyedDesk, spoil: Callable[[KeyedDesk], Callable[[], None]]
) -> None:
    """Within 5 s of its mending, without a restart of either. Who was linked stays so."""
    keys = {"server": desk.keys("feed")[0], "keys": desk.keys("strategy")}
    async with desk.bus("feed") as feed, desk.bus("rogue") as linked:
        strategy = desk.bus("strategy")  # it has read the list before
        mend = spoil(desk)
        async with feed.stream("aiobus.peer_joined") as joined:
            starting = asyncio.create_task(strategy.start())
            async with knocking(feed, **keys) as knocker:
                assert await knocker.outcome() != "let in"
            assert [each.name for each in linked.peers] == ["feed"]
            mend()
            async with asyncio.timeout(5):
                while (await anext(joined)).data["name"] != "strategy":
                    pass
            await starting
            await strategy.close()


# Names: up to a bus, and down.


def who_of(bus: AsyncEventBus) -> PeerId:
    who: PeerId = bus._transport.session.me  # type: ignore[attr-defined]
    return who


QUESTIONS: dict[str, Callable[[PeerId, PeerId], bytes]] = {
    "?": lambda me, other: up(Ask("*", 7, other)),
    "!": lambda me, other: up(PageAsk(me.name, 7, other, me.epoch, "TRADE", 0, 10, None, 0)),
    "=": lambda me, other: up(Ack(me.name, 7, other)),
}


@pytest.mark.parametrize("sign", QUESTIONS)
async def test_a_question_in_the_name_of_another_is_refused_counted_and_said(
    desk: KeyedDesk, sign: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        desk.bus("feed") as feed,
        desk.bus("strategy") as strategy,
        rogue_at(desk, feed) as rogue,
    ):
        before = feed.stats().refused
        await rogue.question(QUESTIONS[sign](who_of(feed), rogue.who))
        await rogue.ask(2)
        assert feed.stats().refused == before
        await rogue.question(QUESTIONS[sign](who_of(feed), who_of(strategy)))
        await rogue.ask(3)
        assert feed.stats().refused == before + 1
        assert "a question of strategy, which rogue has sent" in caplog.text


async def test_a_hello_in_the_name_of_another_ends_the_link_and_moves_no_peer(
    desk: KeyedDesk, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk.bus("feed") as feed, desk.bus("strategy") as strategy:
        keys = {"server": desk.keys("feed")[0], "keys": desk.keys("rogue")}
        for endpoint in (who_of(strategy).endpoint, "tcp://127.0.0.1:1"):
            hello = PeerId("strategy", who_of(strategy).epoch + 1, endpoint).topic
            async with knocking(feed, **keys, asks=(hello,)) as knocker:
                assert await knocker.outcome() == "let in"
                assert await knocker.outcome() == "cut"
        assert feed.stats().refused == 2
        assert "a hello of strategy, which rogue has sent" in caplog.text
        assert [each.epoch for each in feed.peers] == [who_of(strategy).epoch]
        assert await feed.flush() == []


def row(seq: int, type: str, data: int) -> bytes:
    return b'[%d,1.0,"%b","",%d]' % (seq, type.encode(), data)


DOWN: dict[str, Callable[[PeerId, PeerId], bytes]] = {
    "a frame": lambda me, other: frame(
        topic("TRADE"), other.name, other.epoch, 0, 1, [row(1, "TRADE", 666)]
    ),
    "a heartbeat": lambda me, other: heartbeat(other.name, other.epoch, 2**40),
    "a bye": lambda me, other: heartbeat(other.name, other.epoch, 0, leaving=True),
    "an answer": lambda me, other: mail(me, Answer(1, other, 60.0, 2**40, True)),
    "a page": lambda me, other: page(
        me, 1, other.name, other.epoch, 0, 0, 0, 1, 1, None, [row(1, "TRADE", 666)]
    ),
    "a mark": lambda me, other: mail(me, Mark(0, other, (("TRADE", 2**40),))),
}


@pytest.mark.parametrize("what", DOWN)
async def test_what_comes_down_in_the_name_of_another_is_refused_counted_and_said(
    desk: KeyedDesk, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """From a bus that the victim links to because it says hello. The other stays where it is."""
    async with (
        desk.bus("feed") as feed,
        desk.bus("strategy") as strategy,
        feed.stream("TRADE") as trades,
        rogue_at(desk, feed) as rogue,
    ):
        before = feed.stats().refused
        await rogue.down.send(DOWN[what](who_of(feed), who_of(strategy)))
        await rogue.publish(1)
        assert (await anext(trades)).source == "rogue"
        assert feed.stats().refused == before + 1
        assert f"{what} of strategy, which rogue has sent" in caplog.text
        await strategy.publish(Event("TRADE", 2))
        assert (await anext(trades)).data == 2
        assert [each.name for each in feed.peers] == ["rogue", "strategy"]


# Mailboxes.


def exactly(hello: bytes) -> bytes:
    return hello


def everything(hello: bytes) -> bytes:
    return b""


def all_mail(hello: bytes) -> bytes:
    return b"~"


def a_beginning(hello: bytes) -> bytes:
    return hello[:6]


def all_but_the_end(hello: bytes) -> bytes:
    return hello[:-1]


@pytest.mark.parametrize(
    "prefix",
    [exactly, everything, all_mail, a_beginning, all_but_the_end],
    ids=lambda p: p.__name__,
)
async def test_a_mailbox_is_read_by_its_owner_alone(
    desk: KeyedDesk, prefix: Callable[[bytes], bytes]
) -> None:
    async with desk.bus("feed") as feed, desk.bus("strategy") as strategy:
        hello = who_of(strategy).topic
        keys = {"server": desk.keys("feed")[0], "keys": desk.keys("rogue")}
        async with knocking(feed, **keys, asks=(b"OTHER\0", prefix(hello))) as knocker:
            before = feed.stats().refused
            assert await knocker.outcome() == "let in"
            await strategy.subscribe("TRADE", lambda event: None)  # feed has answered by mail
            await until(lambda: feed.stats().refused > before)
            await strategy.subscribe("QUOTE", lambda event: None)
            assert [each for each in await knocker.heard(QUIET) if each[:1] == b"~"] == []


async def test_the_owner_of_a_mailbox_reads_it(desk: KeyedDesk) -> None:
    """The control."""
    async with desk.bus("feed") as feed, rogue_at(desk, feed) as rogue:
        assert (await rogue.ask(2)).who == who_of(feed)


# Rules.


@pytest.fixture
def ruled(folder: Path) -> KeyedDesk:
    """The rogue may publish and subscribe to TRADE alone."""
    rules = Rules(frozenset({"TRADE"}), frozenset({"TRADE"}))
    return KeyedDesk(folder / "keys", "feed", "strategy", "rogue", rogue=rules)


async def test_a_restricted_member_is_told_by_its_own_bus_what_it_may_not(
    ruled: KeyedDesk,
) -> None:
    """A `*` is refused, and not narrowed: it would seem to get everything."""
    async with ruled.bus("rogue") as rogue:
        for types in ("*", "QUOTE", ["TRADE", "QUOTE"]):
            with pytest.raises(NotPermitted, match="rogue may not subscribe to"):
                await rogue.subscribe(types, lambda event: None)
        with pytest.raises(NotPermitted, match="rogue may not subscribe to"):
            await rogue.subscribe("QUOTE", lambda event: None, key="BTC")
        with pytest.raises(NotPermitted, match="rogue may not publish QUOTE"):
            await rogue.publish(Event("QUOTE", 1))
        await rogue.subscribe("TRADE", lambda event: None)
        await rogue.publish(Event("TRADE", 1))


@pytest.mark.parametrize("query", ["*", "QUOTE", "QUOTE TRADE", "QUOTE/BTC"])
@pytest.mark.parametrize("sign", ["", "-"])
async def test_what_a_member_may_not_subscribe_to_it_is_not_sent_and_the_answer_says_why(
    ruled: KeyedDesk, query: str, sign: str
) -> None:
    """Nor the progress of it, which tells when and how much is published."""
    async with ruled.bus("feed") as feed, rogue_at(ruled, feed) as rogue:
        await rogue.up.send(b"\1" + sign.encode() + topic(query))
        await rogue.up.send(b"\1" + topic("TRADE"))
        reply = await rogue.ask(2)
        assert "rogue may not subscribe to it" in (reply.refusal(query) or "")
        await feed.publish(Event("QUOTE", 1, key="BTC"))
        await feed.publish(Event("TRADE", 2))
        while not (message := await rogue.up.recv()).endswith(b",2]]"):
            assert not message.startswith((b"*", b"QUOTE", b"-"))


@pytest.mark.parametrize("query", ["QUOTE", "*", "QUOTE TRADE"])
async def test_a_page_of_what_a_member_may_not_subscribe_to_is_refused(
    ruled: KeyedDesk, query: str
) -> None:
    async with ruled.bus("feed") as feed, rogue_at(ruled, feed) as rogue:
        await feed.publish(Event("QUOTE", 1))
        await feed.publish(Event("TRADE", 2))
        me, before = who_of(feed), feed.stats().refused
        for nonce, each in ((8, query), (9, "TRADE")):
            await rogue.question(
                up(PageAsk("feed", nonce, rogue.who, me.epoch, each, 0, 10, None, 0))
            )
        while not (message := await rogue.up.recv()).startswith(rogue.who.topic + b'["!",'):
            pass
        assert message[len(rogue.who.topic) :].startswith(b'["!",9,'), "the control comes first"
        assert feed.stats().refused == before + 1
        assert [m for m in await rogue_hears(rogue) if b'["!",8,' in m] == []


async def rogue_hears(rogue: Rogue) -> list[bytes]:
    found = []
    while await rogue.up.poll(int(QUIET * 1000)):
        found.append(await rogue.up.recv())
    return found


async def test_an_event_of_a_type_that_its_sender_may_not_publish_is_left_out_and_counted(
    ruled: KeyedDesk, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        ruled.bus("feed") as feed,
        feed.stream("*") as events,
        feed.stream("QUOTE") as quotes,
        rogue_at(ruled, feed) as rogue,
    ):
        before = feed.stats().refused
        await rogue.publish(1, "QUOTE")
        rows = [row(seq, type, seq) for seq, type in ((2, "TRADE"), (3, "QUOTE"), (4, "TRADE"))]
        await rogue.down.send(frame(topic("*"), "rogue", 1, 0, 4, rows))
        rogue.seq = 4
        assert [(await anext(events)).data for _ in range(2)] == [2, 4]
        await feed.publish(Event("QUOTE", 5))
        assert (await anext(quotes)).data == 5
        assert (await anext(events)).data == 5
        assert feed.stats().refused == before + 2
        assert "which may not publish QUOTE by the rules" in caplog.text
        assert [each.gaps for each in feed.stats().subscriptions] == [0, 0]


async def test_a_member_whose_rules_are_narrowed_is_cut_and_is_back_with_less(
    desk: KeyedDesk,
) -> None:
    async with (
        desk.bus("feed") as feed,
        desk.bus("strategy") as strategy,
    ):
        heard: list[Any] = []
        came = asyncio.Event()

        async def on_event(event: Event) -> None:
            heard.append((event.type, event.data))
            came.set()

        await strategy.subscribe("QUOTE", on_event)
        await strategy.subscribe("TRADE", on_event)
        desk.admit("strategy", Rules(subscribe=frozenset({"TRADE"})))
        number = desk.members.number
        async with asyncio.timeout(5):
            await until(lambda: bus_number(feed) == bus_number(strategy) == number)
            while await feed.flush(0.2) != ["strategy"]:  # it is refused what it had
                await feed.publish(Event("QUOTE", 0))
        heard.clear()
        await feed.publish(Event("QUOTE", 1))
        await feed.publish(Event("TRADE", 2))
        async with asyncio.timeout(5):
            while ("TRADE", 2) not in heard:
                came.clear()
                await came.wait()
        assert ("QUOTE", 1) not in heard


async def test_a_member_whose_rules_are_widened_is_sent_what_it_asked_for_in_vain(
    ruled: KeyedDesk,
) -> None:
    async with ruled.bus("feed") as feed, rogue_at(ruled, feed) as rogue:
        await rogue.up.send(b"\1" + topic("QUOTE"))
        assert (await rogue.ask(2)).refusal("QUOTE") is not None
        ruled.admit("rogue", Rules())
        async with asyncio.timeout(5):
            while not await rogue.up.poll(10):
                await feed.publish(Event("QUOTE", 1))
            while not (await rogue.up.recv()).startswith(b"QUOTE\0"):
                pass


def bus_number(bus: AsyncEventBus) -> int:
    number: int = bus._transport.network.members.number  # type: ignore[attr-defined]
    return number
