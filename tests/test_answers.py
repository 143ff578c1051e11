"""An asker that makes no pause gets little of its source's time, and the others theirs."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from ports import opened

from aiobus import AsyncEventBus, Event
from aiobus.mesh.answers import MAX_PAGES, Owed
from aiobus.testing import MemoryNetwork
from aiobus.testing.faults import SLICE
from aiobus.wire import (
    Answer,
    Ask,
    Frame,
    Heartbeat,
    Mark,
    PageAnswer,
    PageAsk,
    PeerId,
    WireError,
    parse_from_publisher,
    up,
)

pytestmark = pytest.mark.usefixtures("no_task_is_left")

MANY = 1_000
TURNS = MANY // SLICE + 2
"""In which the network brings so many messages."""


class Asker:
    """A port that listens to a bus and asks it what it is told to."""

    def __init__(self, network: MemoryNetwork, name: str, bus: AsyncEventBus) -> None:
        self.who = PeerId(name, 1, f"memory://{name}")
        self.port = network.port()
        self.epoch = bus.stats().epoch
        self.pages: list[int] = []
        """Their numbers."""
        self.answers: list[int] = []
        self._grown = asyncio.Event()

    def from_publisher(self, message: bytes, now: float, name: str) -> None:
        found = parse_from_publisher(message, self.who)
        match found:
            case PageAnswer():
                self.pages.append(found.nonce)
            case Answer():
                self.answers.append(found.nonce)
            case Frame() | Heartbeat() | Mark():
                pass
        self._grown.set()

    async def connect(self, *, says_hello: bool = True) -> None:
        await opened(self.port, self.who.name, from_publisher=self.from_publisher)
        self.port.connect("memory://feed", "feed")
        self.port.subscribe(self.who.topic if says_hello else b"~other@1 memory://other\0")

    def ask(self, *numbers: int) -> None:
        """For a page, under each of these numbers."""
        for number in numbers:
            what = (self.epoch, "T", 0, 10, None, 0)
            self.port.ask(up(PageAsk("feed", number, self.who, *what)))

    async def answered(self, number: int = 77) -> None:
        """All that was asked before has been heard."""
        self.port.ask(up(Ask("feed", number, self.who)))
        await self.until_page_or_answer(self.answers, number)

    async def until_page_or_answer(self, where: list[int], number: int) -> None:
        while number not in where:
            self._grown.clear()
            await self._grown.wait()


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
async def feed(network: MemoryNetwork) -> AsyncIterator[AsyncEventBus]:
    async with network.bus("feed") as bus:
        for number in range(100):
            await bus.publish(Event("T", number))
        yield bus


@pytest.fixture
async def asker(network: MemoryNetwork, feed: AsyncEventBus) -> AsyncIterator[Asker]:
    made = Asker(network, "asker", feed)
    await made.connect()
    await made.answered(1)
    yield made
    await made.port.close(0)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_one_question_asked_again_and_again_gets_a_page_a_turn_at_most(asker: Asker) -> None:
    asker.ask(*[5] * MANY)
    await asker.answered()
    await turns(5)
    assert 1 <= len(asker.pages) <= TURNS


async def test_a_question_that_is_repeated_after_its_page_was_sent_gets_another(
    asker: Asker,
) -> None:
    """The first may have been lost."""
    for count in (1, 2, 3):
        asker.ask(5)
        await asker.answered(count + 10)
        assert len(asker.pages) == count


async def test_who_has_not_said_hello_on_its_link_gets_no_page_and_no_answer(
    network: MemoryNetwork, feed: AsyncEventBus
) -> None:
    async with asyncio.timeout(20):
        asker = Asker(network, "asker", feed)
        await asker.connect(says_hello=False)
        asker.ask(*[5] * MANY)
        asker.port.subscribe(asker.who.topic)
        await asker.answered()
        await turns(5)
        assert (asker.pages, asker.answers) == ([], [77])
        await asker.port.close(0)


async def test_a_question_in_the_name_of_another_link_is_left(
    network: MemoryNetwork, feed: AsyncEventBus, asker: Asker
) -> None:
    other = Asker(network, "other", feed)
    await other.connect()
    await other.answered(1)
    other.who = asker.who
    other.ask(5)
    other.port.ask(up(Ask("feed", 6, asker.who)))
    other.who = PeerId("other", 1, "memory://other")
    await other.answered()
    await asker.answered()
    assert (asker.pages, asker.answers) == ([], [1, 77])
    await other.port.close(0)


async def test_questions_beyond_the_bound_of_a_link_are_counted_and_the_others_answered(
    asker: Asker, feed: AsyncEventBus
) -> None:
    before = feed.stats().refused
    asker.ask(*range(MANY))
    await asker.answered(2_000)
    last = MAX_PAGES - 1
    await asker.until_page_or_answer(asker.pages, last)
    await turns(MANY)
    assert len(asker.pages) + feed.stats().refused - before == MANY
    assert len(set(asker.pages)) == len(asker.pages) >= MAX_PAGES


async def test_whether_its_queries_are_live_is_told_once_for_a_question_that_is_under_way(
    asker: Asker,
) -> None:
    for _ in range(MANY):
        asker.port.ask(up(Ask("feed", 5, asker.who)))
    await asker.answered()
    assert 1 <= asker.answers.count(5) <= TURNS


@pytest.mark.slow
@pytest.mark.virtual
async def test_a_thousand_subscriptions_at_once_are_confirmed_without_a_refusal(
    network: MemoryNetwork, feed: AsyncEventBus
) -> None:
    async with network.bus("strategy") as bus:
        made = await asyncio.gather(
            *(bus.subscribe("T", print, key=str(number)) for number in range(MANY))
        )
    assert not any(each.unconfirmed for each in made)
    assert feed.stats().refused == 0


async def test_another_asker_does_not_wait_behind_all_that_one_has_asked(
    network: MemoryNetwork, feed: AsyncEventBus, asker: Asker
) -> None:
    other = Asker(network, "other", feed)
    await other.connect()
    await other.answered(1)
    asker.ask(*range(SLICE))
    asker.ask(*range(SLICE, MAX_PAGES))
    other.ask(7)
    await other.until_page_or_answer(other.pages, 7)
    assert len(asker.pages) < MAX_PAGES
    await other.port.close(0)


async def test_what_one_that_is_gone_has_asked_is_dropped(
    network: MemoryNetwork, feed: AsyncEventBus
) -> None:
    asker = Asker(network, "asker", feed)
    await asker.connect()
    await asker.answered(1)
    asker.ask(*range(MAX_PAGES))
    await asker.answered()
    await asker.port.close(0)
    await turns(5)
    owed = feed._transport.session.answers._pages  # type: ignore[attr-defined]
    assert len(owed) == 0


# Questions that wait for their answer.


BOT = PeerId("bot", 50, "ipc:///bot")
FEED = PeerId("feed", 70, "ipc:///feed")
ONE, TWO = 11, 12


def asked(nonce: int, after: int = 0, who: PeerId = BOT) -> PageAsk:
    return PageAsk("desk", nonce, who, 1, "T", after, 10, None, 0)


def put(owed: Owed, link: int, *questions: PageAsk) -> None:
    """As they come: what need not be read is left."""
    for question in questions:
        message = up(question)
        if not owed.leaves(link, message):
            owed.put(link, message, question)


def is_refused(owed: Owed, link: int, question: PageAsk) -> bool:
    try:
        put(owed, link, question)
    except WireError:
        return True
    return False


def taken(owed: Owed) -> list[Ask | PageAsk]:
    found: list[Ask | PageAsk] = []
    while (next := owed.take()) is not None:
        found.append(next[1])
    return found


def test_questions_of_one_link_are_answered_in_the_order_asked() -> None:
    owed = Owed("!", MAX_PAGES)
    put(owed, ONE, asked(1), asked(2), asked(3))
    assert taken(owed) == [asked(1), asked(2), asked(3)]
    assert len(owed) == 0


def test_a_question_that_is_repeated_while_it_is_under_way_is_answered_once() -> None:
    owed = Owed("!", MAX_PAGES)
    put(owed, ONE, asked(1), asked(1), asked(2), asked(1))
    assert taken(owed) == [asked(1), asked(2)]


def test_a_question_that_is_repeated_after_its_answer_is_answered_again() -> None:
    """The first answer may have been lost."""
    owed = Owed("!", MAX_PAGES)
    for _ in range(2):
        put(owed, ONE, asked(1))
        assert taken(owed) == [asked(1)]


def test_of_several_questions_under_one_number_the_last_is_answered_in_the_place_of_the_first() -> (
    None
):
    owed = Owed("!", MAX_PAGES)
    put(owed, ONE, asked(1), asked(2), asked(1, after=7), asked(1))
    assert taken(owed) == [asked(1), asked(2)]


def test_one_number_of_two_askers_is_two_questions() -> None:
    owed = Owed("!", MAX_PAGES)
    put(owed, ONE, asked(1), asked(1, who=FEED))
    assert len(taken(owed)) == 2


def test_links_take_turns() -> None:
    owed = Owed("!", MAX_PAGES)
    put(owed, ONE, *(asked(number) for number in range(1, 4)))
    put(owed, TWO, asked(9, who=FEED))
    assert [question.nonce for question in taken(owed)] == [1, 9, 2, 3]


def test_of_several_links_each_is_answered_as_often_as_one_that_asks_without_a_pause() -> None:
    """Its k-th question is answered within k rounds, of one question of each link."""
    owed = Owed("!", MAX_PAGES)
    put(owed, 1, *(asked(number) for number in range(MAX_PAGES)))
    others = range(2, 6)
    for link in others:
        put(owed, link, *(asked(number) for number in range(10)))
    count = dict.fromkeys(others, 0)
    turns = 0
    while min(count.values()) < 10:
        found = owed.take()
        assert found is not None
        turns += 1
        link, _ = found
        if link == 1:
            put(owed, 1, asked(MAX_PAGES + turns))  # it asks on at once
        else:
            count[link] += 1
            assert turns <= count[link] * (1 + len(others))


def test_beyond_the_bound_of_its_link_a_question_is_refused_until_one_is_answered() -> None:
    owed = Owed("!", MAX_PAGES)
    put(owed, ONE, *(asked(number) for number in range(MAX_PAGES)))
    assert is_refused(owed, ONE, asked(MAX_PAGES))
    assert not is_refused(owed, ONE, asked(0))
    assert not is_refused(owed, TWO, asked(1))
    assert owed.take() == (ONE, asked(0))
    assert not is_refused(owed, ONE, asked(MAX_PAGES))
    assert len(owed) == MAX_PAGES + 1


def test_what_a_link_that_is_gone_has_asked_is_dropped() -> None:
    owed = Owed("!", MAX_PAGES)
    put(owed, ONE, asked(1), asked(2))
    put(owed, TWO, asked(3))
    owed.drop(ONE)
    assert taken(owed) == [asked(3)]
    put(owed, ONE, asked(1))
    assert taken(owed) == [asked(1)]
