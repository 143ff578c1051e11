"""The conversation of two buses, fed with bytes by hand, without a loop; and the probes of a bus
that runs on one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any

import pytest

from aiobus import Event, Limits, wire
from aiobus.clock import elapsed
from aiobus.discovery import Member
from aiobus.keyring.members import Members
from aiobus.mesh import Driver
from aiobus.mesh.links import AT_SIGHT
from aiobus.mesh.peers import STALE
from aiobus.mesh.session import Session
from aiobus.publisher import Publisher
from aiobus.query import Query
from aiobus.rows import Rows, Source
from aiobus.testing import MemoryNetwork
from aiobus.wire import Ack, PeerId


class Diary:
    """What a session reports, in order."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *what: self.said.append((name, *what))


class Sub:
    """A subscription that writes down the frames and pages that reach it."""

    behind = beginning = ()
    missing = 0

    def __init__(self) -> None:
        self.query = Query.of("TRADE")
        self.frames: list[tuple[str, int]] = []

    def take(self, frame: Rows, started: float | None, heard: int) -> bool:
        self.frames.append((frame.source, frame.newest))
        return True

    def has(self, source: Source, seq: int, started: float | None, upto: int = 0) -> bool:
        return any(newest >= seq for _, newest in self.frames)

    def take_nothing(self, *_: object) -> None:
        """Of no matter here."""

    meet = turn = confirm = tick = leave = take_nothing


class Side:
    """A session, its end of the cable, and what its driver is to do."""

    unreached = ()

    def __init__(self, name: str) -> None:
        self.topics: set[bytes] = set()
        self.to_subscribers: deque[bytes] = deque()
        self.to_publishers: deque[bytes] = deque()
        self.soon: deque[Callable[[], None]] = deque()
        self.diary = Diary()
        self.publisher = Publisher(name, Limits())
        self.publisher.epoch = 7
        me = PeerId(name, 7, f"memory://{name}")
        driver = Driver(self.soon.append, lambda *_: None, lambda _: None)
        wire: Any = self
        diary: Any = self.diary
        self.session = Session("memory://", me, self.publisher, wire, wire, diary, driver)

    def subscribe(self, topic: bytes) -> None:
        self.topics.add(topic)
        self.to_publishers.append(b"\1" + topic)

    def unsubscribe(self, topic: bytes) -> None:
        self.topics.discard(topic)
        self.to_publishers.append(b"\0" + topic)

    members = Members()

    def ask(self, question: bytes, to: str) -> None:
        self.to_publishers.append(question)

    def send(self, message: bytes) -> None:
        self.to_subscribers.append(message)

    def connect(self, endpoint: str, name: str = "") -> None:
        """There is one cable, and it is plugged in."""

    disconnect = connect

    def allows(self, member: Member) -> bool:
        return True

    def is_claimed(self, member: Member) -> bool:
        return False

    def remember(self, member: Member) -> None:
        """Nothing to do."""

    forget = remember


def carry(one: Side, other: Side) -> None:
    """Carry each message to the other side, and do what is due soon, until nothing is left."""
    sides = ((one, other), (other, one))
    while any(each.soon or each.to_publishers or each.to_subscribers for each in (one, other)):
        for side, peer in sides:
            while side.to_publishers:
                peer.session.receive_from_subscriber(side.to_publishers.popleft(), 1, "")
            while side.to_subscribers:
                message = side.to_subscribers.popleft()
                if message.startswith(tuple(peer.topics)):
                    peer.session.receive_from_publisher(message, elapsed(), "")
            while side.soon:
                side.soon.popleft()()


def linked() -> tuple[Side, Side]:
    one, other = Side("one"), Side("other")
    one.session.links.find(Member("other", "memory://other"))
    other.session.links.find(Member("one", "memory://one"))
    carry(one, other)
    return one, other


def joined(side: Side) -> Collection[str]:
    return [what[1] for what in side.diary.said if what[0] == "peer_joined"]


def test_two_sessions_are_linked_by_their_bytes_alone() -> None:
    one, other = linked()
    assert (joined(one), joined(other)) == (["other"], ["one"])


def test_an_event_reaches_the_subscription_of_the_other_session() -> None:
    one, other = linked()
    sub: Any = Sub()
    other.session.add(sub)
    carry(one, other)
    one.publisher.publish(Event("TRADE", 1))
    carry(one, other)
    assert sub.frames[-1] == ("one", 1)


def test_a_flush_mark_is_acknowledged_once_the_events_before_it_have_come() -> None:
    one, other = linked()
    sub: Any = Sub()
    other.session.add(sub)
    carry(one, other)
    answers: list[object] = []
    send = lambda number, _: one.session.send_mark(other.session.me, number, [("TRADE", 1)])  # noqa: E731
    one.session.links.rounds.ask([other.session.me.endpoint], send, answers.append, Ack)
    carry(one, other)
    assert answers == []
    one.publisher.publish(Event("TRADE", 1))
    carry(one, other)
    assert len(answers) == 1


def test_a_peer_that_is_silent_for_three_ticks_is_stale() -> None:
    one, _ = linked()
    now = elapsed()
    for second in range(int(STALE) + 1):
        one.session.tick(now + second)
    assert ("stale", "other", 7, 0) in one.diary.said


def test_a_session_that_ends_says_so_and_the_other_hears_it() -> None:
    one, other = linked()
    one.session.say_bye()
    carry(one, other)
    assert ("peer_left", "one", 7, 0, "it closed") in other.diary.said


@pytest.mark.parametrize("message", [b"", b"T", b"~\0[]", wire.topic("T") + b"[", b"\xff\0{}"])
def test_what_is_no_message_is_refused_and_counted(message: bytes) -> None:
    one, _ = linked()
    one.session.receive_from_publisher(message, 0.0, "")
    assert one.session.refused == 1


async def test_a_probe_of_endpoints_ends_with_its_bus(
    monkeypatch: pytest.MonkeyPatch, no_task_is_left: None
) -> None:
    began, forever = asyncio.Event(), asyncio.Event()

    async def probe_absent(members: Collection[Member]) -> list[Member]:
        began.set()
        await forever.wait()
        return []

    async with MemoryNetwork().bus("feed") as bus:
        transport: Any = bus._transport
        monkeypatch.setattr(transport.discovery, "probe_absent", probe_absent)
        for number in range(AT_SIGHT + 1):
            transport.find(Member(f"tool{number}", f"memory://tool{number}"))
        await began.wait()


async def test_a_probe_that_fails_is_logged_and_the_next_one_goes_on(
    monkeypatch: pytest.MonkeyPatch,
    logged: Callable[[str], AbstractContextManager[asyncio.Event]],
) -> None:
    async with MemoryNetwork().bus("feed") as bus:
        transport: Any = bus._transport
        links, probe_absent = transport.session.links, transport.discovery.probe_absent

        async def fails(members: Collection[Member]) -> list[Member]:
            monkeypatch.setattr(transport.discovery, "probe_absent", probe_absent)
            raise OSError("no more descriptors")

        monkeypatch.setattr(transport.discovery, "probe_absent", fails)
        with logged("looking for peers failed") as failed:
            for number in range(AT_SIGHT + 1):
                transport.find(Member(f"tool{number}", f"memory://tool{number}"))
            await failed.wait()
        assert len(list(links)) == AT_SIGHT + 1
        transport.find(Member("late", "memory://late"))
        await links.changed.wait()
        assert links.at("memory://late") is None, "it was probed, and is not there"


async def test_a_bus_that_has_closed_begins_no_probe_however_many_members_it_is_told_of() -> None:
    """A roster may be read behind the bye."""
    bus = MemoryNetwork().bus("late")
    await bus.start()
    transport: Any = bus._transport
    await bus.close()
    for number in range(AT_SIGHT + 1):
        transport.find(Member(f"bot-{number}", f"memory://bot-{number}"))
    assert asyncio.all_tasks() == {asyncio.current_task()}
