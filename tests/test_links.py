"""Who is there and what is done about it, by a clock that is turned by hand."""

import asyncio
from collections.abc import Callable, Collection
from typing import Any

import pytest
from conftest import HandClock

from aiobus import clock as epochs
from aiobus.discovery import Member
from aiobus.errors import BusError
from aiobus.keyring.members import Members
from aiobus.limits import Limits
from aiobus.mesh import Driver, Probe, byes, links, namesakes
from aiobus.mesh import peers as unplaced
from aiobus.mesh.byes import BYE_LOOK, BYE_SECONDS
from aiobus.mesh.interest import Interest
from aiobus.mesh.links import LENIENCE, QUIET, READ_SECONDS, Links
from aiobus.mesh.peers import DROP, GRACE, RELINK, STALE, Peer
from aiobus.publisher import Publisher
from aiobus.query import Query
from aiobus.transport import Source
from aiobus.wire import Answer, Ask, Mark, PeerId, WireError, parse_from_subscriber

ME = PeerId("me", 100, "tcp://127.0.0.1:1")
BOT = PeerId("bot", 50, "tcp://127.0.0.1:2")
BOT_2 = PeerId("bot", 60, BOT.endpoint)
"""The same name, started again."""
FEED = PeerId("feed", 70, "tcp://127.0.0.1:3")


class Wires:
    """A `Network` and a `Discovery`, as far as links go, that write down what they are told."""

    unreached = ()
    members = Members()

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[str]]] = []
        """The number of each question, and whom it is to."""
        self.log: list[tuple[str, str]] = []
        self.outside: set[str] = set()
        self.deaf: set[str] = set()
        """Endpoints where no process listens."""
        self.remembered: list[Member] = []
        self.forgotten: list[Member] = []

    def is_claimed(self, member: Member) -> bool:
        return False

    def remember(self, member: Member) -> None:
        self.remembered.append(member)

    def forget(self, member: Member) -> None:
        self.forgotten.append(member)

    async def probe_accepting(self, members: Collection[Member]) -> list[Member]:
        await asyncio.sleep(0)
        return [member for member in members if member.endpoint not in self.deaf]

    async def probe_absent(self, members: Collection[Member]) -> list[Member]:
        await asyncio.sleep(0)
        return [member for member in members if member.endpoint in self.deaf]

    def allows(self, member: Member) -> bool:
        return member.endpoint not in self.outside

    def ask(self, question: bytes, to: str) -> None:
        found = parse_from_subscriber(question)
        assert isinstance(found, Ask)
        self.asked.append((found.nonce, [found.to]))

    def tell_refused(self, to: str, cause: str) -> None:
        self.log.append(("told", f"{to} {cause}"))

    def connect(self, endpoint: str, name: str) -> None:
        self.log.append(("connect", endpoint))

    def disconnect(self, endpoint: str) -> None:
        self.log.append(("disconnect", endpoint))

    def take(self) -> list[tuple[str, str]]:
        log, self.log = self.log, []
        return log


class Watch:
    """A `Diagnostics`, and a catch-up's ear for those who leave."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []

    def peer_joined(self, name: str, epoch: int) -> None:
        self.log.append(("joined", name, epoch))

    def peer_left(self, name: str, epoch: int, last: int, reason: str) -> None:
        self.log.append(("left", name, epoch, last, reason))

    def stale(self, name: str, epoch: int, last: int) -> None:
        self.log.append(("stale", name, epoch, last))

    def fresh(self, name: str, epoch: int, last: int, silent: float) -> None:
        self.log.append(("fresh", name, epoch, last, silent))

    def unreached(self, places: Collection[str]) -> None:
        self.log.append(("unreached", places))

    def fail(self, error: BusError) -> None:
        self.log.append(("fail", error))

    def trouble(self, topic: str, text: str) -> None:
        self.log.append(("trouble", text))

    def refused(self, address: str, name: str, cause: str, count: int, text: str) -> None:
        self.log.append(("refused", address, name, cause, text))

    def take(self) -> list[tuple[Any, ...]]:
        log, self.log = self.log, []
        return log


class Sub:
    """An `Inlet`, as far as links go: it writes down whom it meets and who leaves it."""

    def __init__(self) -> None:
        self.query = Query.of("TRADE")
        self.met: list[Source] = []
        self.left: list[Source] = []
        self.dead: list[Source] = []
        self.back: list[tuple[Source, int]] = []
        self.confirmed: list[str] = []

    def meet(self, source: Source, seq: int, started: float) -> None:
        self.met.append(source)

    beginning = ()
    behind = ()

    def confirm(self, name: str) -> None:
        self.confirmed.append(name)

    def note_said(self, source: Source, seq: int) -> None:
        pass

    def go_back(self, source: Source, seq: int) -> None:
        self.back.append((source, seq))

    def leave(self, source: Source, newest: int, *, is_dead: bool = False) -> None:
        self.left.append(source)
        self.dead += [source] * is_dead


class Desk:
    """The links of one bus, with one subscription, and all that they lead to."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.wires = Wires()
        self.watch = Watch()
        self.interest = Interest()
        self.sub = Sub()
        self.interest.add(self.sub)  # type: ignore[arg-type]
        self.replies: list[PeerId] = []
        self.publisher = Publisher("me", Limits())
        self.publisher.public_seq = 7
        self._probes: set[asyncio.Task[None]] = set()
        wires: Any = self.wires
        self.due: list[Callable[[], None]] = []
        """What is to be done a moment later."""
        soon = asyncio.get_running_loop().call_soon
        driver = Driver(soon, lambda seconds, step: self.due.append(step), self._begin)
        self.links = Links(ME, self.publisher, wires, wires, self.watch, self.interest, driver)
        self.links.rounds.number = 0
        self.rounds, self.asked = self.links.rounds, self.wires.asked

    def _begin(self, probe: Probe) -> None:
        self._probes.add(asyncio.create_task(self.probe(probe)))

    async def probe(self, probe: Probe) -> None:
        """Carry a probe out."""
        look = self.wires.probe_accepting if probe.for_accepting else self.wires.probe_absent
        probe.conclude(await look(probe.members))
        probe.is_over = True

    def questions(self) -> list[list[str]]:
        """Who is asked when what is unanswered is asked again, question by question."""
        self.asked.clear()
        self.rounds.repeat()
        return [names for _, names in self.asked]

    def find(self, who: PeerId) -> Peer:
        self.links.find(Member(who.name, who.endpoint))
        return self.peer(who)

    def peer(self, who: PeerId) -> Peer:
        (peer,) = [peer for peer in self.links if peer.endpoint == who.endpoint]
        return peer

    def is_asked(self, who: PeerId) -> None:
        """It asks whether its queries are live here."""
        if (peer := self.links.known(who)) is not None:
            self.replies.append(who)
            self.links.note_answered(peer)

    def hear_answer(
        self, who: PeerId, nonce: int = 0, *, seq: int = 5, is_open: bool = True
    ) -> None:
        """It answers the question of that number; without one, each that may be under way."""
        for number in [nonce] if nonce else range(1, 50):
            self.links.hear_answer(Answer(number, who, 10.0, seq, is_open))

    def link(self, who: PeerId, *, quiet: float = QUIET) -> Peer:
        """Each asks the other and answers, until they are linked. Then nothing comes for `quiet`
        seconds.
        """
        peer = self.find(who)
        self.links.hello(who)
        self.is_asked(who)
        self.hear_answer(who)
        assert peer.is_there
        self.wires.take(), self.watch.take()
        self.clock.now += quiet
        return peer

    async def succeed(self, who: PeerId) -> Peer:
        """The same beside one of its name, which is looked for first."""
        peer = self.find(who)
        self.links.hello(who)
        self.is_asked(who)
        self.hear_answer(who)
        assert not peer.is_linked
        await searched()
        return peer

    def wait(self, seconds: float, *heard: PeerId) -> None:
        """Seconds go by in halves; each is judged, and `heard` are heard of all the while."""
        for _ in range(int(seconds * 2)):
            self.clock.now += 0.5
            for who in heard:
                self.links.hear((who.name, who.epoch), 5)
            self.links.judge(self.clock.now)


@pytest.fixture
async def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    clock = HandClock()
    for each in (byes, links, namesakes):
        monkeypatch.setattr(each, "elapsed", clock)
    return Desk(clock)


async def turn() -> None:
    """The loop runs what was to be run at its next turn."""
    await asyncio.sleep(0)


async def searched() -> None:
    """Each peer that was looked for is found or dropped, and its link ended a turn later."""
    for _ in range(4):
        await turn()


# Finding and linking.


async def test_a_bus_does_not_link_with_itself(desk: Desk) -> None:
    desk.links.find(Member("me", ME.endpoint))
    assert (desk.wires.log, list(desk.links)) == ([], [])


async def test_who_says_hello_is_remembered_once_and_who_was_only_found_is_not(desk: Desk) -> None:
    desk.find(BOT)
    desk.links.hello(FEED)
    desk.links.hello(FEED)
    assert desk.wires.remembered == [Member("feed", FEED.endpoint)]
    desk.links.hello(BOT)  # where names have to be proven, it has done so now
    assert desk.wires.remembered[1:] == [Member("bot", BOT.endpoint)]


async def test_a_hello_from_where_no_bus_can_be_is_refused(desk: Desk) -> None:
    desk.wires.outside.add(BOT.endpoint)
    with pytest.raises(
        WireError, match="a hello from an endpoint that no member of this bus can have"
    ):
        desk.links.hello(BOT)
    assert (desk.wires.log, list(desk.links)) == ([], [])


async def test_a_hello_from_the_own_endpoint_is_refused(desk: Desk) -> None:
    with pytest.raises(
        WireError, match="a hello from an endpoint that no member of this bus can have"
    ):
        desk.links.hello(PeerId("bot", 50, ME.endpoint))


async def test_a_peer_that_is_known_may_not_take_a_name_that_cannot_be_there(desk: Desk) -> None:
    """In a directory, each endpoint belongs to one name. By another, a peer once passed for a bus
    of that name, and ended it.
    """
    bot, other = desk.link(BOT), PeerId("feed", 50, BOT.endpoint)
    desk.links.withdraw(BOT)  # else what answers as another is left unread
    desk.wires.outside.add(BOT.endpoint)
    with pytest.raises(WireError, match="an answer from an endpoint that no member"):
        desk.hear_answer(other)
    with pytest.raises(WireError, match="a hello from an endpoint that no member"):
        desk.links.hello(other)
    assert (list(desk.links), bot.who, desk.watch.log) == ([bot], BOT, [])


def tool(number: int) -> PeerId:
    return PeerId(f"tool{number}", 1, f"tcp://127.0.0.1:{10_000 + number}")


LEFT_OUT = (
    "{} is left out: {} peers are known already; it is named as unconfirmed until there is a place"
    " for it, or it ends"
)


def left_out(desk: Desk, newest: float = 8) -> list[str]:
    return [left.member.name for left in desk.links.left_out(newest)]


async def test_who_had_to_give_way_is_left_out_and_said_so_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MAX_PEERS", 1)
    desk.find(BOT)
    desk.find(FEED)
    await searched()
    desk.wait(2.0)
    await searched()
    assert (left_out(desk), left_out(desk, newest=7)) == (["bot"], [])
    assert desk.watch.log == [("trouble", LEFT_OUT.format("bot", 1))]


async def test_who_had_to_give_way_is_missed_by_those_who_asked_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MAX_PEERS", 1)
    desk.find(BOT)
    round = desk.rounds.ask([BOT.endpoint], desk.links.ask, lambda _: None)
    desk.find(FEED)
    assert (round.waiting, round.gone) == (set(), {BOT.endpoint})


@pytest.mark.parametrize("way", ["hello", "find"])
async def test_who_is_left_out_is_linked_once_there_is_a_place_and_owed_all_since_it_was_found(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(links, "MAX_PEERS", 1)
    bot = desk.link(BOT)
    if way == "hello":
        desk.links.hello(FEED)
    else:
        desk.links.find(Member("feed", FEED.endpoint))
    desk.publisher.public_seq = 20
    desk.links.bye(bot)
    desk.wait(1.0)
    await searched()
    feed = desk.peer(FEED)
    assert (feed.found_at, feed.is_listening, left_out(desk)) == (7, way == "hello", [])
    if way == "find":
        desk.links.hello(FEED)
    desk.is_asked(FEED)
    desk.hear_answer(FEED)
    assert feed.is_linked


async def test_who_is_left_out_and_whose_hello_is_gone_is_not_taken_for_listening(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MAX_PEERS", 1)
    bot = desk.link(BOT)
    desk.links.hello(FEED)
    desk.links.withdraw(FEED)
    desk.links.bye(bot)
    desk.wait(1.0)
    await searched()
    assert not desk.peer(FEED).is_listening


async def test_who_is_left_out_and_refuses_is_forgotten_and_unconfirmed_no_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MAX_PEERS", 1)
    desk.link(BOT)
    desk.links.unconfirmed.add("feed")
    desk.links.hello(FEED)
    desk.wires.deaf.add(FEED.endpoint)
    await searched()
    assert (left_out(desk), desk.sub.confirmed[-1], desk.watch.log) == ([], "feed", [])


async def test_of_those_left_out_before_only_the_ones_that_have_ended_are_excused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has a place by now was not asked."""
    monkeypatch.setattr(links, "MAX_PEERS", 1)
    bot = desk.link(BOT)
    for number in (1, 2):
        desk.links.find(Member(f"tool{number}", tool(number).endpoint))
    await searched()
    before = desk.links.left_out()
    desk.wires.deaf.add(tool(2).endpoint)
    desk.links.bye(bot)
    await desk.probe(desk.links.sorting(before))
    assert [left.member.name for left in before if not left.has_ended] == ["tool1"]
    assert (desk.peer(tool(1)).is_linked, left_out(desk)) == (False, [])


async def test_where_there_is_no_place_a_silent_stranger_that_refuses_loses_its_own(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MAX_PEERS", 1)
    desk.find(BOT)
    desk.find(FEED)
    await searched()
    desk.wires.deaf.add(FEED.endpoint)
    desk.wait(RELINK)
    await searched()
    desk.wait(1.0)
    await searched()
    assert (list(desk.links), left_out(desk)) == ([desk.peer(BOT)], [])


async def test_beyond_the_names_that_are_remembered_a_word_tells_that_there_are_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MAX_PEERS", 1)
    monkeypatch.setattr(unplaced, "MAX_LEFT_OUT", 2)
    desk.link(BOT)
    for number in range(2):
        desk.links.hello(tool(number))
    assert desk.links.nameless() == set()
    desk.links.hello(tool(2))
    desk.links.hello(tool(0))
    assert (desk.links.nameless(8), desk.links.nameless(7)) == ({unplaced.MORE}, set())
    assert left_out(desk) == ["tool0", "tool1"]
    assert sum("more than" in text for _, text in desk.watch.log) == 1


async def test_where_all_peers_are_linked_one_more_is_refused_however_it_is_found(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MAX_PEERS", 1)
    desk.link(BOT)
    desk.links.hello(BOT)
    desk.links.hello(FEED)
    desk.links.find(Member("feed", FEED.endpoint))
    await searched()
    desk.wait(2.0, BOT)
    await searched()
    assert desk.watch.log == [("trouble", LEFT_OUT.format("feed", 1))]
    assert list(desk.links) == [desk.peer(BOT)]


async def test_the_flush_mark_of_a_peer_that_is_pushed_out_is_forgotten(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MAX_PEERS", 1)
    desk.links.hello(BOT)
    desk.interest.mark(Mark(1, BOT, (("TRADE", 9),)))
    desk.links.hello(FEED)
    assert desk.interest.marks == {}


@pytest.mark.parametrize("way", ["hello", "find"])
async def test_of_2000_peers_that_do_not_exist_few_are_connected_to_and_a_real_one_is_linked(
    desk: Desk, way: str
) -> None:
    desk.link(BOT)
    tools = [tool(number) for number in range(2_000)]
    desk.wires.deaf.update(who.endpoint for who in tools)
    for who in tools:
        if way == "hello":
            desk.links.hello(who)
        else:
            desk.links.find(Member(who.name, who.endpoint))
    assert len(list(desk.links)) == links.MAX_PEERS
    desk.links.hello(FEED)
    while ("connect", FEED.endpoint) not in desk.wires.log:
        await turn()
    await searched()
    connected = [endpoint for what, endpoint in desk.wires.log if what == "connect"]
    assert len(connected) <= links.AT_SIGHT + 1
    assert len(list(desk.links)) <= links.AT_SIGHT + 2
    desk.is_asked(FEED)
    desk.hear_answer(FEED, nonce=desk.rounds.number)
    assert [desk.peer(BOT).is_there, desk.peer(FEED).is_there] == [True, True]


async def test_of_more_peers_than_are_connected_to_at_sight_all_that_listen_are_linked(
    desk: Desk,
) -> None:
    tools = [tool(number) for number in range(3 * links.AT_SIGHT)]
    for who in tools:
        desk.links.hello(who)
    while len(desk.wires.log) < len(tools):
        await turn()
    assert desk.wires.log == [("connect", who.endpoint) for who in tools]
    for number, who in enumerate(tools, 1):
        desk.is_asked(who)
        desk.hear_answer(who, nonce=number)
    assert len(desk.watch.log) == len(tools)


async def test_two_buses_are_linked_when_each_has_answered_the_other(desk: Desk) -> None:
    peer = desk.find(BOT)
    desk.links.hello(BOT)
    desk.hear_answer(BOT, nonce=1)
    assert (peer.is_linked, desk.watch.log) == (False, [])
    desk.is_asked(BOT)
    assert (peer.is_linked, desk.watch.log) == (True, [("joined", "bot", 50)])


async def test_who_asks_is_answered_once_it_has_said_hello(desk: Desk) -> None:
    desk.find(BOT)
    desk.is_asked(BOT)
    assert desk.replies == []
    desk.links.hello(BOT)
    desk.is_asked(FEED)
    desk.is_asked(BOT_2)
    desk.is_asked(BOT)
    assert desk.replies == [BOT]


async def test_what_is_sent_shows_that_a_peer_is_there_and_where(desk: Desk) -> None:
    peer = desk.link(BOT)
    desk.wait(100, BOT)
    assert desk.links.hear(("bot", 50), 30) is peer
    assert (peer.last, desk.watch.log, desk.wires.log) == (30, [], [])


# Silence.


async def test_a_silent_peer_is_stale_and_then_its_link_is_made_again(desk: Desk) -> None:
    desk.link(BOT)
    desk.wait(STALE)
    assert desk.watch.take() == [("stale", "bot", 50, 5)]
    desk.wait(RELINK - STALE)
    await searched()
    assert desk.wires.log == [("disconnect", BOT.endpoint), ("connect", BOT.endpoint)]
    assert desk.questions() == [["bot"]]


async def test_a_link_that_was_only_silent_is_kept_while_no_better_one_can_be_had(
    desk: Desk,
) -> None:
    """As when the file of its endpoint has vanished; it is looked for again each second."""
    desk.link(BOT)
    desk.wires.deaf = {BOT.endpoint}
    for _ in range(60):
        desk.wait(0.5)
        await searched()
    assert desk.wires.log == []
    desk.wires.deaf.clear()
    desk.wait(0.5)
    await searched()
    assert desk.wires.take() == [("disconnect", BOT.endpoint), ("connect", BOT.endpoint)]
    desk.wait(RELINK)
    await searched()
    assert desk.wires.log == []  # the next one is 20 s later


async def test_after_an_own_delay_no_peer_is_judged_for_a_while(desk: Desk) -> None:
    desk.link(BOT)
    desk.wait(1, BOT)
    desk.clock.now += 20.0
    desk.links.judge(desk.clock.now)
    desk.wait(LENIENCE - 0.5)
    assert (desk.watch.log, desk.wires.log) == ([], [])
    desk.wait(0.5)
    assert desk.watch.log == [("stale", "bot", 50, 5)]


async def test_a_peer_that_never_answers_is_kept_for_it_may_be_frozen(desk: Desk) -> None:
    peer = desk.find(BOT)
    desk.wait(DROP)
    await turn()
    assert list(desk.links) == [peer]
    assert desk.wires.log[-1] == ("connect", BOT.endpoint)
    assert (desk.questions(), desk.watch.log) == ([["bot"]], [])


async def test_of_those_who_never_answered_the_ones_that_do_not_listen_are_given_up(
    desk: Desk,
) -> None:
    for who in (BOT, FEED):
        desk.find(who)
    desk.wires.deaf = {BOT.endpoint}
    waiting = asyncio.create_task(desk.links.changed.wait())
    await turn()
    await desk.probe(desk.links.dropping(desk.links))
    await waiting
    assert [peer.name for peer in desk.links] == ["feed"]
    assert desk.questions() == [["feed"]]
    await turn()
    assert desk.wires.log[-1] == ("disconnect", BOT.endpoint)


async def test_who_is_given_up_is_unconfirmed_no_more(desk: Desk) -> None:
    desk.find(BOT)
    desk.find(FEED)
    desk.links.unconfirmed.update(["bot", "feed"])
    desk.wires.deaf = {BOT.endpoint}
    await desk.probe(desk.links.dropping(desk.links))
    assert (desk.sub.confirmed, desk.links.unconfirmed) == (["bot"], {"feed"})
    desk.link(FEED)
    assert desk.links.unconfirmed == set()


async def test_who_has_said_who_it_is_is_not_given_up_though_no_process_seems_to_listen(
    desk: Desk,
) -> None:
    desk.links.hello(BOT)
    desk.wires.deaf = {BOT.endpoint}
    await desk.probe(desk.links.dropping(desk.links))
    assert [peer.who for peer in desk.links] == [BOT]


async def test_who_answers_while_it_is_looked_for_is_not_given_up(desk: Desk) -> None:
    desk.find(BOT)
    desk.wires.deaf = {BOT.endpoint}
    looking = asyncio.create_task(desk.probe(desk.links.dropping(desk.links)))
    await turn()
    desk.is_asked(BOT)
    desk.links.hello(BOT)
    desk.is_asked(BOT)
    desk.hear_answer(BOT)
    await looking
    assert [peer.is_there for peer in desk.links] == [True]


# Leaving.


async def test_a_peer_whose_end_is_read_before_its_answer_has_joined_and_left(desk: Desk) -> None:
    """A bus that comes and goes at once: its subscriptions end on one socket, and what it says
    comes on another.
    """
    peer = desk.find(BOT)
    desk.links.hello(BOT)
    desk.is_asked(BOT)
    desk.links.withdraw(BOT)
    desk.hear_answer(BOT)
    desk.links.bye(peer)
    assert desk.watch.log == [("joined", "bot", 50), ("left", "bot", 50, 5, "it closed")]
    assert desk.sub.met == [("bot", 50)]


async def test_a_peer_that_had_left_joins_again_when_it_answers_again(desk: Desk) -> None:
    peer = desk.link(BOT)
    desk.links.withdraw(BOT)
    desk.wait(GRACE, BOT)
    desk.watch.take()
    desk.links.hello(BOT)
    assert not peer.is_there
    desk.hear_answer(BOT)
    assert (peer.is_there, desk.watch.log) == (True, [("joined", "bot", 50)])


async def test_a_peer_that_has_left_and_stays_silent_is_dropped(desk: Desk) -> None:
    desk.link(BOT)
    desk.links.withdraw(BOT)
    desk.wires.deaf = {BOT.endpoint}
    desk.wait(DROP)
    await searched()
    assert list(desk.links) == []
    assert desk.wires.log == [("disconnect", BOT.endpoint)]
    assert [entry[0] for entry in desk.watch.log if entry[0] != "stale"] == ["left"]


async def test_what_is_missing_of_a_peer_that_answered_and_never_linked_is_lost_when_it_is_dropped(
    desk: Desk,
) -> None:
    desk.find(BOT)
    desk.links.hello(BOT)
    desk.hear_answer(BOT)
    desk.links.withdraw(BOT)
    desk.wires.deaf = {BOT.endpoint}
    desk.clock.now += 0.5
    await desk.probe(desk.links.dropping(desk.links))
    assert (list(desk.links), desk.sub.left) == ([], [("bot", 50)])
    assert desk.watch.log == []  # it never joined


async def test_a_linked_peer_that_is_dropped_is_said_to_have_left(desk: Desk) -> None:
    desk.link(BOT)
    desk.links.withdraw(BOT)
    desk.wires.deaf = {BOT.endpoint}
    desk.clock.now += 0.5
    await desk.probe(desk.links.dropping(desk.links))
    reason = "its link was cut and did not come back"
    assert desk.watch.log == [("left", "bot", 50, 5, reason)]


async def test_a_peer_that_says_hello_while_it_is_looked_for_is_not_dropped(desk: Desk) -> None:
    peer = desk.link(BOT)
    desk.links.withdraw(BOT)
    desk.wires.deaf = {BOT.endpoint}
    desk.wait(DROP)
    desk.links.hello(BOT)
    await searched()
    assert list(desk.links) == [peer]


async def test_a_peer_that_closes_is_dropped_after_the_turn(desk: Desk) -> None:
    peer = desk.link(BOT)
    desk.links.bye(peer)
    assert desk.watch.log == [("left", "bot", 50, 5, "it closed")]
    assert (desk.sub.left, list(desk.links), desk.wires.log) == ([("bot", 50)], [], [])
    assert desk.links.hear(("bot", 50), 6) is None
    await turn()
    assert desk.wires.log == [("disconnect", BOT.endpoint)]


async def test_a_peer_that_closes_is_not_missed_by_those_who_await_its_answer(desk: Desk) -> None:
    peer = desk.link(BOT)
    round = desk.rounds.ask([BOT.endpoint], desk.links.ask, lambda _: None)
    desk.links.bye(peer)
    assert (round.gone, round.waiting) == (set(), set())


async def test_the_hello_of_a_peer_that_has_closed_may_go_afterwards(desk: Desk) -> None:
    desk.links.bye(desk.link(BOT))
    desk.links.withdraw(BOT)
    await turn()
    assert len(desk.watch.log) == 1


# Another start at the same endpoint.

TAKEN = ("left", "bot", 50, 5, "another has taken its place")


async def test_a_new_start_settles_the_old_one_and_is_linked_again(desk: Desk) -> None:
    peer = desk.link(BOT)
    desk.links.hello(BOT_2)
    assert (desk.watch.take(), desk.sub.left, desk.sub.dead) == ([TAKEN], *[[("bot", 50)]] * 2)
    assert (desk.peer(BOT_2), peer.who, peer.is_there) == (peer, BOT_2, False)
    await turn()
    assert desk.wires.log == [("disconnect", BOT.endpoint), ("connect", BOT.endpoint)]
    assert desk.questions() == [["bot"]]
    desk.is_asked(BOT_2)
    desk.hear_answer(BOT_2)
    assert desk.watch.log == [("joined", "bot", 60)]


async def test_after_this_process_was_stopped_the_old_start_is_read_before_it_is_settled(
    desk: Desk,
) -> None:
    """What has arrived meanwhile is read in any order."""
    peer = desk.link(BOT)
    desk.clock.now += 8.0
    desk.links.hello(BOT_2)
    desk.links.judge(desk.clock.now)
    desk.watch.take()
    desk.links.hear(("bot", 50), 7)  # more lay on the link
    desk.due.pop()()
    assert "left" not in [each[0] for each in desk.watch.take()]
    assert peer.who == BOT
    desk.clock.now += READ_SECONDS
    desk.due.pop()()
    assert (desk.watch.take(), peer.who) == ([(*TAKEN[:3], 7, TAKEN[4])], BOT_2)


async def test_a_new_start_that_has_gone_before_that_settles_nothing(desk: Desk) -> None:
    peer = desk.link(BOT)
    desk.clock.now += 8.0
    desk.links.hello(BOT_2)
    desk.links.withdraw(BOT_2)
    desk.links.judge(desk.clock.now)
    desk.clock.now += READ_SECONDS
    desk.due.pop()()
    assert peer.who == BOT
    assert "left" not in [each[0] for each in desk.watch.take()]


async def test_a_new_start_may_be_told_by_an_answer_before_its_hello(desk: Desk) -> None:
    desk.link(BOT)
    desk.links.withdraw(BOT)
    desk.hear_answer(BOT_2, nonce=1)
    assert (desk.watch.log, desk.peer(BOT).who) == ([TAKEN], BOT_2)
    desk.links.hello(BOT_2)
    await turn()
    assert (desk.watch.log, desk.questions()) == ([TAKEN], [["bot"]])


async def test_an_answer_of_the_old_start_that_comes_late_does_not_bring_it_back(
    desk: Desk,
) -> None:
    peer = desk.link(BOT)
    desk.links.hello(BOT_2)
    await turn()
    desk.hear_answer(BOT)
    await turn()
    assert (peer.who, peer.has_answered, desk.watch.log) == (BOT_2, False, [TAKEN])
    assert desk.questions() == [["bot"]]


async def test_what_the_old_start_had_answered_does_not_link_the_new_one(desk: Desk) -> None:
    desk.link(BOT)
    desk.links.hello(BOT_2)
    await turn()
    desk.watch.take()
    desk.is_asked(BOT_2)
    assert desk.watch.log == []


async def test_who_awaits_an_answer_of_the_old_start_is_told_that_it_is_gone(desk: Desk) -> None:
    desk.link(BOT)
    round = desk.rounds.ask([BOT.endpoint], desk.links.ask, lambda _: None)
    desk.links.hello(BOT_2)
    assert round.gone == {BOT.endpoint}


async def test_what_the_old_start_has_sent_says_nothing_of_the_new_one(desk: Desk) -> None:
    peer = desk.link(BOT)
    desk.links.hello(BOT_2)
    desk.links.hear(("bot", 50), 5000)  # it lay on the link, behind which the hello was quicker
    assert peer.last == 0


async def test_the_bye_of_the_old_start_is_not_that_of_the_new_one(desk: Desk) -> None:
    desk.link(BOT)
    desk.links.hello(BOT_2)
    old = desk.links.hear(("bot", 50), 5)  # what a mesh does with a bye that lay on the link
    if old is not None:
        desk.links.bye(old)
    await turn()
    assert [peer.who for peer in desk.links] == [BOT_2]


async def test_the_epoch_of_a_peer_is_not_used_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs, "_highest", 0)
    monkeypatch.setattr(epochs, "machine", lambda: -10.0)
    desk.link(BOT)
    assert epochs.fresh() > BOT.epoch


# One that asks in another version. Any process may say hello in any name and ask.


async def test_a_peer_that_asks_in_another_version_is_not_linked_nor_waited_for(
    desk: Desk,
) -> None:
    peer = desk.find(BOT)
    desk.links.hello(BOT)
    assert peer.is_awaited
    desk.links.refuse_version(BOT, 3)
    assert not peer.is_awaited
    desk.is_asked(BOT)
    assert not peer.is_linked
    assert "speaks version 3" in str(desk.watch.log)


async def test_a_peer_that_has_answered_is_not_taken_for_one_of_another_version(
    desk: Desk,
) -> None:
    peer = desk.link(BOT)
    desk.links.refuse_version(BOT, 3)
    assert (peer.other_version, peer.is_there, desk.watch.log) == (0, True, [])


async def test_a_peer_that_answers_is_linked_though_another_asked_in_its_name(desk: Desk) -> None:
    peer = desk.find(BOT)
    desk.links.hello(BOT)
    desk.links.refuse_version(BOT, 3)
    desk.is_asked(BOT)
    desk.hear_answer(BOT)
    assert (peer.other_version, peer.is_there) == (0, True)


async def test_a_peer_that_says_less_than_was_heard_of_it_is_asked_once(desk: Desk) -> None:
    peer = desk.link(BOT)
    desk.links.hear(SOURCE, 2**62)
    desk.asked.clear()
    desk.links.hear_beat(SOURCE, 6)
    desk.links.hear_beat(SOURCE, 7)
    assert (len(desk.asked), list(desk.links.doubts.sources)) == (1, [SOURCE])
    desk.hear_answer(BOT, desk.asked[0][0], seq=8)
    assert (desk.sub.back, peer.last, list(desk.links.doubts.sources)) == ([(SOURCE, 8)], 8, [])
    ((kind, text),) = desk.watch.take()
    assert kind == "trouble"
    assert f"says that it is at seq 8, and was heard of up to {2**62}" in text


# One that says less than was heard of it.

SOURCE = (BOT.name, BOT.epoch)


async def test_a_heartbeat_that_is_late_changes_nothing(desk: Desk) -> None:
    peer = desk.link(BOT)
    desk.links.hear(SOURCE, 9)
    desk.asked.clear()
    desk.links.hear_beat(SOURCE, 6)
    desk.hear_answer(BOT, desk.asked[0][0], seq=9)
    desk.links.hear_beat(SOURCE, 9)
    assert (desk.sub.back, peer.last, desk.watch.take()) == ([], 9, [])
    assert (len(desk.asked), list(desk.links.doubts.sources)) == (1, [])


async def test_what_was_heard_of_since_it_was_asked_is_not_taken_back(desk: Desk) -> None:
    peer = desk.link(BOT)
    desk.links.hear(SOURCE, 2**62)
    desk.asked.clear()
    desk.links.hear_beat(SOURCE, 6)
    desk.links.hear(SOURCE, 10)
    desk.hear_answer(BOT, desk.asked[0][0], seq=8)
    assert (desk.sub.back, peer.last) == ([(SOURCE, 10)], 10)


async def test_what_is_not_true_once_more_meanwhile_is_asked_about_once_more(desk: Desk) -> None:
    peer = desk.link(BOT)
    desk.links.hear(SOURCE, 2**62)
    desk.asked.clear()
    desk.links.hear_beat(SOURCE, 6)
    desk.links.hear(SOURCE, 2**62 + 1)
    desk.hear_answer(BOT, desk.asked[0][0], seq=8)
    assert (desk.sub.back, list(desk.links.doubts.sources)) == ([], [SOURCE])
    desk.hear_answer(BOT, desk.asked[1][0], seq=8)
    assert (desk.sub.back, peer.last) == ([(SOURCE, 8)], 8)


async def test_what_was_heard_of_a_peer_counts_when_it_is_found_again(desk: Desk) -> None:
    desk.links.bye(desk.link(BOT))
    desk.links.bye(desk.link(BOT))
    assert desk.sub.back == []
    desk.link(BOT)
    desk.links.hear(SOURCE, 2**62)
    desk.links.bye(desk.peer(BOT))
    peer = desk.link(BOT)
    assert (desk.sub.back, peer.last) == ([(SOURCE, 5)], 5)


# Another of the same name.


def namesake(epoch: int, endpoint: str = BOT.endpoint) -> PeerId:
    return PeerId("me", epoch, endpoint)


@pytest.mark.parametrize(
    ("other", "is_late"),
    [
        (namesake(99), True),
        (namesake(101), False),
        (namesake(100, "tcp://127.0.0.1:0"), True),
        (namesake(100, "tcp://127.0.0.1:2"), False),
    ],
)
async def test_of_two_that_start_under_one_name_the_one_with_the_lower_epoch_stays(
    desk: Desk, other: PeerId, is_late: bool
) -> None:
    desk.find(other)
    desk.hear_answer(other, is_open=False)
    await searched()
    assert (desk.links.namesakes.is_late, desk.watch.log) == (is_late, [])


@pytest.mark.parametrize("epoch", [99, 101])
async def test_one_that_has_started_stays_however_old_the_other_is(desk: Desk, epoch: int) -> None:
    other = namesake(epoch)
    desk.find(other)
    desk.hear_answer(other, is_open=True)
    await searched()
    assert desk.links.namesakes.is_late


@pytest.mark.parametrize(
    ("epoch", "is_open", "seconds", "is_late"),
    [
        (99, False, 0, False),  # it is about to start, and will hear that this one has
        (101, True, 20, False),
        (99, True, 20, False),  # the clock was set back before this one started
        (99, True, 5, True),
        (101, True, 5, True),
        (99, True, 10.5, True),  # about as old
        (101, True, 9.5, False),
    ],
)
async def test_of_two_that_have_started_the_older_stays_and_says_that_another_has_come(
    desk: Desk, epoch: int, is_open: bool, seconds: float, is_late: bool
) -> None:
    """The other is 10 s old. They could not meet before."""
    desk.links.namesakes.is_open = True
    desk.clock.now += seconds
    other = namesake(epoch)
    desk.find(other)
    desk.hear_answer(other, nonce=1, is_open=is_open)
    await searched()
    assert desk.links.namesakes.is_late == is_late
    said = ("trouble", f"another bus named 'me' has come, at {other.endpoint}")
    assert desk.watch.log == ([said] if is_open else [])


@pytest.mark.parametrize("has_started", [False, True])
async def test_a_namesake_ends_no_bus_if_nothing_listens_where_it_says_it_is(
    desk: Desk, has_started: bool
) -> None:
    ended: list[bool] = []
    desk.links.namesakes.on_late = lambda: ended.append(True)
    desk.links.namesakes.is_open = has_started
    other = namesake(99)
    desk.find(other)
    desk.wires.deaf.add(other.endpoint)
    desk.hear_answer(other, nonce=1)
    assert desk.links.is_meeting
    await searched()
    assert (desk.links.namesakes.is_late, ended) == (False, [])
    ((kind, text),) = desk.watch.take()
    assert (kind, text.endswith("has the name of this bus, but does not listen")) == (
        "trouble",
        True,
    )
    desk.wires.deaf.clear()
    desk.hear_answer(other, nonce=1)
    await searched()
    assert (desk.links.namesakes.is_late, ended) == (True, [True] * has_started)


async def test_a_bus_whose_start_ends_while_a_namesake_is_looked_for_ends_after_it(
    desk: Desk,
) -> None:
    ended: list[bool] = []
    desk.links.namesakes.on_late = lambda: ended.append(True)
    desk.find(namesake(99))
    desk.hear_answer(namesake(99), nonce=1)
    desk.links.namesakes.is_open = True
    await searched()
    assert ended == [True]


async def test_a_namesake_that_is_looked_for_hides_no_other(desk: Desk) -> None:
    first, second = namesake(98), namesake(99, FEED.endpoint)
    for who in (first, second):
        desk.find(who)
    desk.wires.deaf.add(first.endpoint)
    desk.hear_answer(first, nonce=1)
    desk.hear_answer(second, nonce=2)
    assert {each.endpoint for each in desk.links.possible_namesakes()} == {
        BOT.endpoint,
        FEED.endpoint,
    }
    await searched()
    assert desk.links.namesakes.is_late


async def test_who_is_late_is_woken_to_see_it(desk: Desk) -> None:
    waiting = asyncio.create_task(desk.links.changed.wait())
    await turn()
    desk.find(namesake(99))
    desk.hear_answer(namesake(99))
    await waiting
    assert desk.links.namesakes.is_late


async def test_other_names_are_no_matter(desk: Desk) -> None:
    desk.link(BOT)
    assert not desk.links.namesakes.is_late


MOVED = PeerId("bot", 60, "tcp://127.0.0.1:9")
"""The bot, started again where another port was free."""


async def test_the_end_of_a_dead_one_is_told_before_the_beginning_of_its_successor(
    desk: Desk,
) -> None:
    """Or a handler that goes by the name stops trading beside a feed that lives."""
    desk.link(BOT)
    desk.wires.deaf = {BOT.endpoint}
    await desk.succeed(MOVED)
    assert desk.watch.take() == [
        ("left", "bot", 50, 5, "another has taken its place"),
        ("joined", "bot", MOVED.epoch),
    ]
    assert desk.sub.dead == [("bot", 50)]
    desk.wait(2 * DROP, MOVED)
    assert desk.watch.take() == []


async def test_a_successor_waits_while_something_comes_of_the_dead_one(desk: Desk) -> None:
    desk.link(BOT)
    desk.wires.deaf = {BOT.endpoint}
    desk.links.hear(("bot", 50), 6)
    peer = await desk.succeed(MOVED)
    assert (desk.watch.log, peer.is_linked) == ([], False)
    desk.clock.now += QUIET / 2
    desk.links.hear(("bot", 50), 7)  # more lay on its link
    desk.clock.now += QUIET / 2
    desk.due.pop()()
    await searched()
    assert (desk.watch.log, peer.is_linked) == ([], False)
    desk.clock.now += QUIET
    desk.due.pop()()
    await searched()
    assert desk.watch.log == [(*TAKEN[:3], 7, TAKEN[4]), ("joined", "bot", MOVED.epoch)]


async def test_a_start_waits_a_second_for_one_whose_hello_is_gone_before_it_is_linked(
    desk: Desk,
) -> None:
    """It makes its link again if it took this bus for its predecessor, and the start was over."""
    desk.find(BOT)
    desk.links.hello(BOT)
    desk.links.withdraw(BOT)
    assert desk.links.is_meeting
    desk.clock.now += READ_SECONDS
    assert not desk.links.is_meeting


async def test_the_end_of_one_whose_link_was_cut_is_told_before_its_successor_joins(
    desk: Desk,
) -> None:
    desk.link(BOT)
    desk.links.withdraw(BOT)
    await desk.succeed(MOVED)
    assert [entry[:3] for entry in desk.watch.take()] == [
        ("left", "bot", 50),
        ("joined", "bot", MOVED.epoch),
    ]
    desk.wait(GRACE, MOVED)
    assert desk.watch.take() == []


async def test_of_two_living_ones_with_one_name_neither_is_said_to_have_left(desk: Desk) -> None:
    peer = desk.link(BOT)
    await desk.succeed(MOVED)
    said = desk.watch.take()
    assert [entry[0] for entry in said] == ["trouble", "joined"]
    assert BOT.endpoint in said[0][1]
    assert MOVED.endpoint in said[0][1]
    assert peer.is_there


async def test_a_successor_that_answers_twice_meanwhile_joins_once(desk: Desk) -> None:
    desk.link(BOT)
    desk.wires.deaf = {BOT.endpoint}
    peer = desk.find(MOVED)
    desk.links.hello(MOVED)
    desk.is_asked(MOVED)
    desk.hear_answer(MOVED)
    desk.hear_answer(MOVED)
    await searched()
    assert [entry[0] for entry in desk.watch.take()] == ["left", "joined"]
    assert peer.is_there


# A bye that was wrong.


async def test_a_peer_that_still_listens_2_s_after_its_bye_is_linked_again(desk: Desk) -> None:
    """A forged bye once parted two living buses for good."""
    peer = desk.link(BOT)
    desk.links.bye(peer)
    desk.watch.take()
    desk.wait(BYE_SECONDS)
    await searched()
    assert desk.watch.take()[0][0] == "trouble"
    desk.is_asked(BOT)
    desk.hear_answer(BOT)
    assert desk.watch.take() == [("joined", "bot", 50)]


async def test_a_peer_that_refuses_after_its_bye_is_not_looked_for_again(desk: Desk) -> None:
    peer = desk.link(BOT)
    desk.wires.deaf = {BOT.endpoint}
    desk.links.bye(peer)
    desk.wait(BYE_SECONDS)
    await searched()
    assert list(desk.links) == []
    assert desk.wires.forgotten == [Member("bot", BOT.endpoint)]


@pytest.mark.parametrize("is_looked_for", [False, True])
async def test_a_peer_whose_hello_is_withdrawn_after_its_bye_stays_gone(
    desk: Desk, is_looked_for: bool
) -> None:
    peer = desk.link(BOT)
    desk.links.bye(peer)
    if is_looked_for:
        desk.wait(BYE_SECONDS)
    desk.wires.deaf.add(BOT.endpoint)
    desk.links.withdraw(BOT)
    await searched()
    assert desk.links.byes.owed() == set()
    desk.wait(2 * BYE_SECONDS)
    await searched()
    assert list(desk.links) == []


@pytest.mark.parametrize("is_cut_before", [False, True])
async def test_a_peer_that_still_listens_after_its_bye_is_looked_for_though_its_hello_is_withdrawn(
    desk: Desk, is_cut_before: bool
) -> None:
    """Two forged byes once parted two living buses for good: each ended its link to the other."""
    peer = desk.link(BOT)
    desk.publisher.public_seq = 20
    if is_cut_before:
        desk.links.withdraw(BOT)
    desk.links.bye(peer)
    desk.links.withdraw(BOT)
    await searched()
    assert (desk.links.byes.owed(8), desk.links.byes.owed(7)) == ({"bot"}, set())
    assert list(desk.links) == []
    desk.wires.take()
    desk.wait(BYE_SECONDS)
    await searched()
    assert (desk.links.byes.owed(), desk.wires.take()) == (set(), [("connect", BOT.endpoint)])
    assert (desk.peer(BOT).found_at, desk.peer(BOT).is_listening) == (7, False)


async def test_a_peer_that_ends_one_connection_after_the_other_is_looked_for_again(
    desk: Desk,
) -> None:
    later: list[Any] = []
    driver = Driver(
        asyncio.get_running_loop().call_soon, lambda *how: later.append(how), desk._begin
    )
    desk.links.byes._driver = driver
    peer = desk.link(BOT)
    desk.links.bye(peer)
    desk.links.withdraw(BOT)
    await searched()
    ((seconds, look),) = later
    desk.wires.deaf.add(BOT.endpoint)
    look()
    await searched()
    assert (seconds, desk.links.byes.owed(), len(later)) == (BYE_LOOK, set(), 1)


async def test_of_more_byes_than_are_remembered_those_peers_are_left_out(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byes, "MAX_BYES", 1)
    for who in (BOT, FEED):
        desk.links.bye(desk.link(who))
    assert (desk.links.byes.owed(), left_out(desk)) == ({"bot"}, ["feed"])


async def test_who_closed_after_it_was_unconfirmed_is_unconfirmed_no_more(desk: Desk) -> None:
    desk.links.bye(desk.link(BOT))
    desk.links.unconfirmed.add("bot")
    desk.sub.confirmed.clear()
    desk.wires.deaf.add(BOT.endpoint)
    desk.links.withdraw(BOT)
    await searched()
    assert (desk.sub.confirmed, desk.links.unconfirmed) == (["bot"], set())


async def test_a_peer_that_is_heard_after_it_was_stale_is_fresh_once(desk: Desk) -> None:
    desk.link(BOT, quiet=0.0)
    desk.wait(STALE + 1)
    desk.links.hear((BOT.name, BOT.epoch), 9)
    desk.links.hear((BOT.name, BOT.epoch), 9)
    assert desk.watch.take() == [("stale", "bot", 50, 5), ("fresh", "bot", 50, 9, STALE + 1)]


async def test_a_peer_that_left_after_it_was_stale_joins_and_is_not_fresh(desk: Desk) -> None:
    desk.link(BOT)
    desk.links.withdraw(BOT)
    desk.wait(GRACE)
    desk.watch.take()
    desk.links.hello(BOT)
    desk.hear_answer(BOT)
    assert desk.watch.take() == [("joined", "bot", 50)]


# What peers say of themselves.


async def test_a_peer_is_told_of_a_new_list_of_members_until_it_has_answered(desk: Desk) -> None:
    desk.link(BOT, quiet=0.0)
    survey, now = desk.links.survey, desk.clock.now
    survey.tick(now)
    desk.asked.clear()
    survey.tick(now)
    assert desk.asked == [], "it has answered, and nothing is new"
    survey.note_list(2, "0123456789abcdef")
    survey.tick(now)
    survey.tick(now)
    (first, whom), (second, again) = desk.asked
    assert (whom, again) == ([BOT.name], [BOT.name])
    desk.hear_answer(BOT, first)
    survey.tick(now)
    assert len(desk.asked) == 3, "the answer to a number that was given up says nothing"
    assert first != second
    desk.hear_answer(BOT, desk.asked[-1][0])
    survey.tick(now)
    assert len(desk.asked) == 3


async def test_a_peer_that_does_not_tell_its_clock_has_no_skew(desk: Desk) -> None:
    peer = desk.link(BOT)
    desk.hear_answer(BOT)
    assert peer.shown(desk.clock.now).skew is None
