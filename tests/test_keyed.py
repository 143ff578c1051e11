"""Nobody without a key, and nobody speaks for another: each door of a bus with keys, tried."""

import asyncio
import errno
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from actors import tcp_url
from desks import until
from keys import KeyedDesk, Knocker, Rogue, endpoint_of, make, replaced, who_of

from aiobus import AsyncEventBus, Event
from aiobus.discovery import Member
from aiobus.errors import NotPermitted
from aiobus.keyring.members import Rules
from aiobus.mesh.keyed import HANDSHAKE_MS, MAX_ASKED, PATIENCE
from aiobus.mesh.links import MAX_OF_NAME
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


@asynccontextmanager
async def trio(desk: KeyedDesk) -> AsyncIterator[tuple[AsyncEventBus, AsyncEventBus, Rogue]]:
    """Two buses, and a rogue that is linked with the first of them."""
    async with (
        desk.bus("feed") as feed,
        desk.bus("strategy") as strategy,
        rogue_at(desk, feed) as rogue,
    ):
        yield feed, strategy, rogue


async def hears(bus: AsyncEventBus, knocker: Knocker, asks: bytes = b"\1TRADE\0") -> None:
    """Return once it hears events, and has read all that were published so far."""
    type, count = asks[1:-1].decode(), 0
    await knocker.socket.send(asks)
    while not await knocker.socket.poll(20):
        count += 1
        await bus.publish(Event(type, count))
    message = b""
    while not message.endswith(b",%d]]" % count):
        message = await knocker.socket.recv()
        assert b'"feed"' in message


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


@pytest.mark.slow
@pytest.mark.parametrize("how", ["before it is up", "after its thread has died"])
async def test_without_the_authenticator_not_even_a_member_is_let_in(
    desk: KeyedDesk, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ZAP_ENFORCE_DOMAIN libzmq then lets everybody in."""
    if how == "before it is up":
        never = SimpleNamespace(thread=Thread())
        monkeypatch.setattr("aiobus.mesh.keyed.Authenticator", lambda *_: never)
    else:

        def die(self: Authenticator) -> None:
            self._questions.close()
            self._monitor.close()

        monkeypatch.setattr(Authenticator, "_run", die)
    async with (
        desk.bus("feed") as feed,
        knocking(feed, server=desk.keys("feed")[0], keys=desk.keys("rogue")) as knocker,
    ):
        assert await knocker.outcome() != "let in"
        assert await publishes(feed, knocker) == [[]]


@pytest.mark.one_loop
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


@pytest.mark.slow
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


QUESTIONS: dict[str, Callable[[PeerId, PeerId], bytes]] = {
    "?": lambda me, other: up(Ask("*", 7, other)),
    "!": lambda me, other: up(PageAsk(me.name, 7, other, me.epoch, "TRADE", 0, 10, None, 0)),
    "=": lambda me, other: up(Ack(me.name, 7, other)),
}


@pytest.mark.parametrize("sign", QUESTIONS)
async def test_a_question_in_the_name_of_another_is_refused_counted_and_said(
    desk: KeyedDesk, sign: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with trio(desk) as (feed, strategy, rogue):
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


@pytest.mark.parametrize("by", ["hello", "answer"])
async def test_a_member_that_says_it_listens_where_another_does_cuts_nobody_off(
    desk: KeyedDesk, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In its own name, which it has proven: the place is what is not its own."""
    async with trio(desk) as (feed, strategy, rogue), feed.stream("SIGNAL") as signals:
        left: list[Event[Any]] = []
        await feed.subscribe("aiobus.peer_left", left.append)
        before = feed.stats().refused
        claim = replace(rogue.who, epoch=2, endpoint=who_of(strategy).endpoint)
        if by == "hello":
            keys = {"server": desk.keys("feed")[0], "keys": rogue.keys}
            async with knocking(feed, **keys, asks=(claim.topic,)) as knocker:
                assert await knocker.outcome() == "let in"
                assert await knocker.outcome() == "cut"
        else:
            await rogue.down.send(mail(who_of(feed), Answer(1, claim, 60.0, 0, True)))
        await until(lambda: feed.stats().refused > before)
        assert f"of the bus at {claim.endpoint}, which rogue has sent" in caplog.text
        await strategy.publish(Event("SIGNAL", 1))
        async with asyncio.timeout(5):
            assert (await anext(signals)).data == 1
        assert left == []


@pytest.mark.slow
async def test_a_bus_that_comes_where_another_was_is_linked_by_its_own_name(
    desk: KeyedDesk,
) -> None:
    """The one before said no bye: a member has said that it listens there, and never did."""
    async with desk.bus("feed") as feed, rogue_at(desk, feed) as rogue:
        claim = replace(rogue.who, epoch=2, endpoint=tcp_url())
        keys = {"server": desk.keys("feed")[0], "keys": rogue.keys}
        async with knocking(feed, **keys, asks=(claim.topic,)) as knocker:
            assert await knocker.outcome() == "let in"
            async with desk.bus("strategy", listen=claim.endpoint[6:]) as strategy:
                await feed.wait_for_peer("strategy", timeout=5)
                assert who_of(strategy).endpoint == claim.endpoint


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
    async with trio(desk) as (feed, strategy, rogue), feed.stream("TRADE") as trades:
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


# Topics go to who has asked for them.


ROUNDS = 30


@pytest.mark.slow
@pytest.mark.one_loop
async def test_a_message_that_no_member_sends_moves_no_topic_to_another_connection(
    desk: KeyedDesk,
) -> None:
    """libzmq takes a connection from its queue for each message, also for one that is no
    subscription: the mailbox that one asked for went to the next (measured with 4.3.5).
    """
    honest = PeerId("strategy", 1, "tcp://127.0.0.1:1").topic
    server, network = desk.keys("feed")[0], None
    async with desk.bus("feed") as feed:
        network = feed._transport.network  # type: ignore[attr-defined]
        owner = Knocker(
            endpoint_of(feed), server=server, keys=desk.keys("strategy"), reconnects=True
        )
        assert await owner.outcome() == "let in"
        await hears(feed, owner)
        await owner.socket.send(b"\1" + honest)
        for _ in range(ROUNDS):
            keys = {"server": server, "keys": desk.keys("rogue")}
            enemies = [Knocker(endpoint_of(feed), **keys, asks=()) for _ in range(3)]
            again = Knocker(endpoint_of(feed), server=server, keys=desk.keys("strategy"), asks=())
            for each in (*enemies, again):
                assert await each.outcome() == "let in"
            # The loop does not run meanwhile, so all of this is in one queue.
            first, second, third = enemies
            first.now(b"rubbish")
            pause()
            again.now(b"\1" + honest)
            again.now(b"\1TRADE\0")
            pause()
            second.now(b"\1OTHER\0")
            third.now(b"\0TRADE\0")
            pause()
            assert await first.outcome() == "cut"
            async with asyncio.timeout(5):
                while not await owner.socket.poll(20):
                    network.send(honest + b"secret")
            await publishes(feed)
            async with asyncio.timeout(5):
                while not (await owner.socket.recv()).startswith(b"TRADE"):
                    pass
            for each in (*enemies, again):
                assert [
                    m for m in await each.heard(0.02) if m[:1] == b"~" and each is not again
                ] == []
                each.close()
            await owner.heard(0.02)
        owner.close()


def pause() -> None:
    """Time for the I/O threads, and none for the loop."""
    time.sleep(0.02)


async def test_who_asks_for_the_hello_of_another_and_goes_makes_it_seem_neither_gone_nor_there(
    desk: KeyedDesk,
) -> None:
    keys = {"server": desk.keys("feed")[0], "keys": desk.keys("rogue")}
    async with desk.bus("feed") as feed, feed.stream("aiobus.peer_left") as left:
        async with desk.bus("strategy") as strategy:
            await strategy.subscribe("TRADE", lambda event: None)
            hello = who_of(strategy).topic
            for asks in ((hello, hello), (b"TRADE\0", hello), (hello,)):
                async with knocking(feed, **keys, asks=asks) as knocker:
                    assert await knocker.outcome() == "let in"
                    assert await knocker.outcome() == "cut"
                async with knocking(feed, **keys, asks=()) as knocker:
                    assert await knocker.outcome() == "let in"
                    await knocker.socket.send(b"\0" + hello)
                    await hears(feed, knocker, b"\1OTHER\0")
            assert [each.name for each in feed.peers] == ["strategy"]
            await feed.publish(Event("TRADE", 1))
            assert await feed.flush(2) == []
            async with knocking(feed, **keys, asks=(hello,)) as knocker:
                assert await knocker.outcome() == "let in"
        async with asyncio.timeout(3):
            assert (await anext(left)).data["name"] == "strategy"
        assert feed.peers == ()


# Revocation.


@pytest.mark.slow
async def test_a_revocation_cuts_one_member_and_costs_the_others_nothing(desk: KeyedDesk) -> None:
    """1,000 events a second go on across it: each arrives once, in order."""
    count, heard, left = 3_000, [], []
    done = asyncio.Event()

    async def on_event(event: Event) -> None:
        heard.append(event.data)
        if event.data == count - 1:
            done.set()

    async with desk.bus("feed") as feed, desk.bus("strategy") as strategy:
        rogue = desk.bus("rogue")
        await rogue.start()
        await strategy.subscribe("TRADE", on_event)
        async with feed.stream("aiobus.peer_left") as gone, feed.stream("aiobus.refused") as said:
            begin = time.monotonic()
            for number in range(count):
                await feed.publish(Event("TRADE", number))
                if number == count // 3:
                    desk.revoke("rogue")
                    revoked = asyncio.create_task(timed(anext(said)))
                await asyncio.sleep(max(0.0, begin + number / 1000 - time.monotonic()))
            await done.wait()
            seconds, event = await revoked
            assert (event.data["name"], event.data["cause"]) == ("rogue", "revoked")
            assert seconds < 2
            left = (await anext(gone)).data
            assert left["name"] == "rogue"
        assert heard == list(range(count))
        assert [each.name for each in feed.peers] == ["strategy"]
        assert [each.gaps for each in strategy.stats().subscriptions] == [0]
        await rogue.close(0.1)


async def timed(what: Any) -> tuple[float, Any]:
    """How long it takes, and what comes."""
    begin = time.monotonic()
    value = await what
    return time.monotonic() - begin, value


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
"""Of ZMTP 3.1 (ZeroMQ RFC 37), of a client."""
HELLO = b"\x04\xc8\x05HELLO\x01\x00" + bytes(72)
"""The head of the command that follows; its key is none."""
UNFINISHED = {
    "nothing": b"",
    "half a greeting": GREETING[:20],
    "a greeting": GREETING,
    "half a hello": GREETING + HELLO[:40],
}


@pytest.mark.slow
@pytest.mark.parametrize("said", UNFINISHED)
async def test_a_handshake_with_keys_that_is_not_finished_is_ended_after_2_s(
    desk: KeyedDesk, said: str
) -> None:
    """From raw sockets, beside two members that miss nothing."""
    loop, heard = asyncio.get_running_loop(), []

    async def on_event(event: Event) -> None:
        heard.append(event.data)

    async with desk.bus("feed") as feed, desk.bus("strategy") as strategy:
        await strategy.subscribe("TRADE", on_event)
        host, _, port = endpoint_of(feed).removeprefix("tcp://").rpartition(":")
        with ExitStack() as stack:
            knockers = [stack.enter_context(socket.socket()) for _ in range(50)]
            begin = loop.time()
            for each in knockers:
                each.setblocking(False)
                await loop.sock_connect(each, (host, int(port)))
                await loop.sock_sendall(each, UNFINISHED[said])
            ends = [asyncio.create_task(ended(each)) for each in knockers]
            number = 0
            while not all(each.done() for each in ends):
                await feed.publish(Event("TRADE", number))
                assert await feed.flush() == []
                number += 1
                await asyncio.sleep(0.01)
            seconds = sorted([(await each) - begin for each in ends])
        await strategy.settle()
    least = HANDSHAKE_MS / 1000
    assert least - 0.1 <= seconds[0] <= seconds[-1] < least + 1.5
    assert heard == list(range(number))


async def ended(sock: socket.socket) -> float:
    """When the other end has ended the connection. What it has said before is read."""
    loop = asyncio.get_running_loop()
    with suppress(ConnectionError):
        while await loop.sock_recv(sock, 1024):
            pass
    return loop.time()


# What is said.


async def cause_at(
    refused: Any, cause: str, name: str | None = None, also: str = ""
) -> dict[str, Any]:
    while True:
        data: dict[str, Any] = (await anext(refused)).data
        if data["cause"] in (cause, also) and name in (None, data["name"]):
            return data


@pytest.mark.slow
async def test_a_key_that_is_not_on_the_list_is_said_on_both_sides_and_linked_once_it_is(
    desk: KeyedDesk, caplog: pytest.LogCaptureFixture
) -> None:
    """The newcomer's own list has it, and that of the other does not: an old copy."""
    newer = KeyedDesk(desk.path.parent / "newer", "feed")
    shutil.rmtree(newer.path)
    shutil.copytree(desk.path, newer.path)
    make(newer.path, "late")
    newer.url = desk.url
    async with desk.bus("feed") as feed, feed.stream("aiobus.*") as said:
        late = newer.bus("late")
        starting = asyncio.create_task(late.start())
        async with asyncio.timeout(2):
            found = [(await anext(said)).data for _ in range(2)]
            await until(lambda: "does not let this bus in" in caplog.text)
        assert {each["cause"] for each in found} == {"unknown", "unlisted"}
        await starting
        assert "has a key that is not on the list of members" in caplog.text
        desk.write(newer.members)
        async with asyncio.timeout(5):
            while (await anext(said)).type != "aiobus.peer_joined":
                pass
        await late.close(0.1)


@pytest.mark.slow
async def test_a_key_that_is_revoked_is_said_on_both_sides_and_linked_once_it_is_not(
    desk: KeyedDesk, caplog: pytest.LogCaptureFixture
) -> None:
    members = desk.members
    async with desk.bus("feed") as feed, feed.stream("aiobus.*") as said:
        rogue = desk.bus("rogue")
        desk.write(members.without("rogue"))
        await until(lambda: bus_number(feed) == members.number + 1)
        starting = asyncio.create_task(rogue.start())
        async with asyncio.timeout(2):
            while (await anext(said)).data.get("cause") != "revoked":
                pass
            await until(lambda: "does not let this bus in" in caplog.text)
        await starting
        lines = [each.getMessage() for each in caplog.records]
        assert sum("its key is revoked on the list" in each for each in lines) == 1
        desk.write(replace(members, number=members.number + 2))
        async with asyncio.timeout(5):
            while (await anext(said)).type != "aiobus.peer_joined":
                pass
        await rogue.close(0.1)


async def test_a_keyring_that_cannot_be_read_is_a_warning_and_that_it_can_again_is_none(
    desk: KeyedDesk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiobus")

    def level(text: str) -> list[str]:
        return [each.levelname for each in caplog.records if text in each.getMessage()]

    text = (desk.path / "desk.members").read_text()
    async with desk.bus("feed"):
        replaced(desk.path / "desk.members", "broken")
        await until(lambda: level("the keyring cannot be read again, and stays as it was: "))
        replaced(desk.path / "desk.members", text)
        await until(lambda: level(f"the keyring can be read again: {desk.path}"))
    assert level("the keyring cannot be read again") == ["WARNING"]
    assert level("the keyring can be read again") == ["INFO"]


def speaks_without_keys(rogue: Rogue) -> Any:
    return rogue.context.socket(zmq.XPUB)


def has_another_key(rogue: Rogue) -> Any:
    public, secret = zmq.curve_keypair()
    socket = rogue.context.socket(zmq.XPUB)
    rogue.listen(socket, (public.decode(), secret.decode()))
    return socket


def is_mute(rogue: Rogue) -> Any:
    return None


WRONG = {"plain": speaks_without_keys, "key": has_another_key, "mute": is_mute}


@pytest.mark.slow
@pytest.mark.parametrize("cause", WRONG)
async def test_what_listens_in_the_place_of_a_member_is_told_apart_and_it_is_linked_once_it_does(
    desk: KeyedDesk, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk.bus("feed") as feed, feed.stream("aiobus.refused") as said:
        rogue = Rogue(desk, "rogue")
        rogue.down.close()
        down = WRONG[cause](rogue)
        listener = socket.socket()
        if down is None:
            await bound(lambda: listener.bind(rogue.address))
            listener.listen()
        else:
            await bound(lambda: down.bind(rogue.who.endpoint))
        await rogue.link(feed)
        async with asyncio.timeout(3 if cause == "mute" else 2):
            # What speaks without keys may end a connection before its greeting is read.
            found = await cause_at(said, cause, also="key" if cause == "plain" else cause)
        assert (found["name"], found["address"]) == ("rogue", rogue.who.endpoint)
        assert found["text"] in caplog.text
        if down is not None:
            down.close()
        listener.close()
        rogue.down = rogue.context.socket(zmq.XPUB)
        rogue.listen(rogue.down, rogue.keys)
        async with asyncio.timeout(5):
            await bound(lambda: rogue.down.bind(rogue.who.endpoint))
            while not (await rogue.down.recv()).startswith(b"\1" + who_of(feed).topic):
                pass
        rogue.close()


async def test_handshakes_that_are_silent_or_broken_off_in_turn_tell_of_no_other_key(
    desk: KeyedDesk,
) -> None:
    """A bus that cannot read its list does both, as its thread is quick or slow."""
    async with desk.bus("feed") as feed, desk.bus("strategy") as strategy:
        network: Any = feed._transport.network  # type: ignore[attr-defined]
        link = network._links[endpoint_of(strategy)]
        for error in (errno.EPIPE, errno.EPIPE, errno.EAGAIN) * 3:
            network._on_outcome(link, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, error)
            assert link.xsub is not None
        for _ in range(PATIENCE):
            assert link.xsub is not None
            network._on_outcome(link, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, errno.EPIPE)
        assert link.xsub is None


async def bound(bind: Callable[[], object]) -> None:
    """The I/O thread closes the socket that had the place before."""
    is_bound = False
    while not is_bound:
        try:
            bind()
            is_bound = True
        except (OSError, zmq.ZMQError):
            await asyncio.sleep(0.01)


GREETING = b"\xff" + bytes(8) + b"\x7f\3\1NULL".ljust(55, b"\0")
"""All that ZeroMQ sends without keys before it knows the other side (RFC 23)."""


async def knocks_without_keys(desk: KeyedDesk, bus: AsyncEventBus) -> None:
    """ZeroMQ itself may end the connection, before it has sent what tells that it has no keys."""
    host, port = endpoint_of(bus).removeprefix("tcp://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(GREETING)
    await reader.read()  # until it is cut
    writer.close()
    await writer.wait_closed()


async def knocks_with_a_random_key(desk: KeyedDesk, bus: AsyncEventBus) -> None:
    async with knocking(bus, **random_key(desk)) as knocker:
        assert await knocker.outcome() != "let in"


KNOCKS = {
    "speaks without keys": knocks_without_keys,
    "a key that is not on the list of members": knocks_with_a_random_key,
}


@pytest.mark.slow
@pytest.mark.parametrize(("reason", "knocks"), KNOCKS.items())
@pytest.mark.one_loop
async def test_who_knocks_a_thousand_times_is_said_once_and_leaves_nothing(
    desk: KeyedDesk,
    reason: str,
    knocks: Callable[[KeyedDesk, AsyncEventBus], Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[int] = []
    async with desk.bus("feed") as feed:
        await feed.subscribe("aiobus.refused", lambda event: told.append(event.data["count"]))
        for number in range(1_000):
            await knocks(desk, feed)
            if number == 99:
                files, memory = descriptors(), memory_of_process()
        transport: Any = feed._transport

        def counted() -> int:
            unsaid = transport._refusals._unsaid.values()
            return sum(told) + sum(each.times for each in unsaid)

        await until(lambda: counted() >= 1_000)
        lines = [each.message for each in caplog.records if each.levelno >= logging.WARNING]
        # Of some the address is not known, which are gone too soon.
        assert len({*lines}) == len(lines) == len(told) <= 2
        assert all(reason in line for line in lines)
        await until(lambda: descriptors() <= files + 4)
        assert memory_of_process() - memory < 8 * 2**20
        assert counted() == 1_000


@pytest.mark.slow
@pytest.mark.one_loop
async def test_a_member_that_connects_a_thousand_times_leaves_nothing_and_cuts_nobody(
    desk: KeyedDesk,
) -> None:
    keys = {"server": desk.keys("feed")[0], "keys": desk.keys("rogue")}
    async with desk.bus("feed") as feed, desk.bus("strategy") as strategy:
        await strategy.subscribe("TRADE", lambda event: None)
        network: Any = feed._transport.network  # type: ignore[attr-defined]
        fanout: Any = feed._transport.session.fanout  # type: ignore[attr-defined]
        topics: set[bytes] = set()
        for number in range(1_000):
            asks = (b"T%d\0" % number, PeerId("rogue", number, f"tcp://127.0.0.1:{number}").topic)
            knocker = Knocker(endpoint_of(feed), **keys, asks=asks)
            assert await knocker.outcome() == "let in"
            topics.add(asks[0])
            await until(lambda: topics <= fanout._streams.keys())
            topics.clear()
            knocker.close()
            if number == 99:
                files = descriptors()
        await until(lambda: len(fanout) == 1)
        assert len(network._incoming) < 32
        assert len(network._xpub.topics) < 32
        await until(lambda: descriptors() <= files + 4)
        await feed.publish(Event("TRADE", 1))
        assert await feed.flush() == []


@pytest.mark.slow
async def test_a_member_that_claims_many_endpoints_costs_as_much_as_one_with_a_few(
    desk: KeyedDesk,
) -> None:
    make(desk.path, "late")
    rogue = Rogue(desk, "rogue")
    doors = [socket.create_server(("127.0.0.1", 0)) for _ in range(3 * MAX_OF_NAME)]
    async with desk.bus("feed") as feed, desk.bus("strategy") as strategy:
        links: Any = feed._transport.session.links  # type: ignore[attr-defined]
        network: Any = feed._transport.network  # type: ignore[attr-defined]
        ups = []
        for number, door in enumerate(doors):  # each listens, and the newest always has a place
            who = PeerId("rogue", number, f"tcp://127.0.0.1:{door.getsockname()[1]}")
            ups.append(rogue.knock(endpoint_of(feed), desk.keys("feed")[0]))
            await ups[-1].send(b"\1" + who.topic)
            await until(lambda who=who: links.at(who.endpoint) is not None)  # type: ignore[misc]
            assert len([each for each in links if each.name == "rogue"]) <= MAX_OF_NAME
        assert len(network._links) <= MAX_OF_NAME + 2
        async with desk.bus("late") as late, late.stream("TRADE") as trades:
            await feed.publish(Event("TRADE", 1))
            assert (await anext(trades)).data == 1
            assert {"late", "strategy"} <= {each.name for each in feed.peers}
        rogue.close()
        for door in doors:
            door.close()
        await until(lambda: [each.name for each in links if each.is_listening] == ["strategy"])
        assert strategy.stats().refused == 0


async def test_what_is_only_said_of_a_name_takes_no_place_of_its_bus(desk: KeyedDesk) -> None:
    async with desk.bus("feed") as feed, desk.bus("strategy") as strategy:
        links: Any = feed._transport.session.links  # type: ignore[attr-defined]
        await until(lambda: links.named("strategy") is not None)
        for number in range(2 * MAX_OF_NAME):
            links.find(Member("strategy", f"tcp://127.9.9.9:{number + 1}"))
        assert len([each for each in links if each.name == "strategy"]) == MAX_OF_NAME
        assert links.named("strategy").endpoint == endpoint_of(strategy)
        async with strategy.stream("TRADE") as trades:
            await feed.publish(Event("TRADE", 1))
            assert (await anext(trades)).data == 1


async def test_a_second_hello_on_a_connection_is_refused(desk: KeyedDesk) -> None:
    keys = {"server": desk.keys("feed")[0], "keys": desk.keys("rogue")}
    hellos = [PeerId("rogue", 1, f"tcp://127.9.9.9:{port}") for port in (1, 2)]
    async with desk.bus("feed") as feed:
        links: Any = feed._transport.session.links  # type: ignore[attr-defined]
        async with knocking(feed, **keys, asks=(hellos[0].topic,)) as knocker:
            assert await knocker.outcome() == "let in"
            await until(lambda: links.at(hellos[0].endpoint) is not None)
            await knocker.socket.send(b"\1" + hellos[1].topic)
            await until(lambda: feed.stats().refused == 1)
            assert links.at(hellos[1].endpoint) is None
        async with knocking(feed, **keys, asks=(hellos[1].topic,)) as knocker:  # the control
            assert await knocker.outcome() == "let in"
            await until(lambda: links.at(hellos[1].endpoint) is not None)


async def test_a_member_that_never_reads_fills_no_memory(desk: KeyedDesk) -> None:
    async with desk.bus("feed") as feed:
        network: Any = feed._transport.network  # type: ignore[attr-defined]
        deaf = Rogue(desk, "strategy")  # it listens, and what is asked of it stays in the queue
        network.connect(deaf.who.endpoint, "strategy")
        link = network._links[deaf.who.endpoint]
        question = up(Ask("strategy", 1, PeerId("feed", 1, endpoint_of(feed))))
        for _ in range(MAX_ASKED):
            network.ask(question, "strategy")
        before = memory_of_process()
        for _ in range(4 * MAX_ASKED):
            network.ask(question, "strategy")
        assert memory_of_process() - before < 16 * 2**20
        assert link.xsub is not None
        deaf.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def memory_of_process() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_handshake_ends_while_the_loop_is_blocked(desk: KeyedDesk) -> None:
    async with desk.bus("feed") as feed:
        keys = {"server": desk.keys("feed")[0], "keys": desk.keys("rogue")}
        is_in: list[bool] = []

        def knock() -> None:
            """In a thread, with a loop of its own."""

            async def run() -> None:
                knocker = Knocker(endpoint, **keys)
                is_in.append(await knocker.outcome() == "let in")
                knocker.close()

            asyncio.run(run())

        endpoint, thread = endpoint_of(feed), threading.Thread(target=knock)
        thread.start()
        thread.join()  # which blocks this loop; perf/keyed.py has the milliseconds
        assert is_in == [True]
