"""A desk with keys on two hosts: what is promised while the wire between them is cut, and while a
list, a key or a desk secret changes on one host and then on the other.
"""

import asyncio
import json
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from actors import Actor, ActorError, Nursery
from faults.namespaces import why_not
from hosts import PORT, V4, V6, Bot, Hosts, copy_list, copy_seal, set_up, url_of
from keys import key, make, replaced

from aiobus import Journal
from aiobus.keyring import Keyring
from aiobus.keyring.changes import make_key, retire, revoke, rotate
from aiobus.keyring.members import EVERYTHING

pytestmark = [
    pytest.mark.one_loop,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

URL = url_of(V4)
families = pytest.mark.parametrize("at", [V4, V6], ids=["IPv4", "IPv6"])


@pytest.fixture
async def hosts(nursery: Nursery) -> AsyncIterator[Hosts]:
    with ExitStack() as stack:
        yield Hosts(nursery, stack)


async def pair(hosts: Hosts, folder: Path, url: str, **options: Any) -> tuple[Bot, Bot]:
    """A feed on the first host, with these options, and a strategy on the second."""
    first, second = await hosts.make()
    keys = set_up(folder, ("feed", "late", "doctor"), ("strategy", "risk", "spy"))
    feed = await Bot.start(first, url, "feed", keys[0], **options)
    strategy = await Bot.start(second, url, "strategy", keys[1])
    await feed.links("strategy")
    return feed, strategy


# The four bots, each a program of its own.

TICKS = 2_452
BOTS = Path(__file__).parent.parent / "examples" / "bots"
RUN = """
import subprocess
self.programs = getattr(self, "programs", {})
with open(screen, "wb") as out:
    self.programs[screen] = subprocess.Popen(
        command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "AIOBUS_KEYRING": keys}
    )
"""
END = """
program = self.programs.pop(screen)
if number:
    program.send_signal(number)
return await asyncio.to_thread(program.wait)
"""
KILL = """
for program in getattr(self, "programs", {}).values():
    program.kill()
    program.wait()
"""


class Program:
    """A program on a host, and its screen."""

    def __init__(self, actor: Actor, screen: Path) -> None:
        self._actor = actor
        self._screen = screen

    @classmethod
    async def run(cls, actor: Actor, screen: Path, keys: Path, *command: str) -> "Program":
        whole = [sys.executable, "-u", "-W", "error", *command]
        await actor(RUN, command=whole, screen=str(screen), keys=str(keys))
        return cls(actor, screen)

    async def reads(self, text: str) -> None:
        """Wait until this is on its screen."""
        while text not in self._screen.read_text():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.02)

    async def ends(self, number: int = 0, code: int = 0) -> str:
        """Send a signal, if one is given; it ends with this code, and that was on its screen."""
        found = await self._actor(END, screen=str(self._screen), number=number)
        shown = self._screen.read_text()
        assert found == code, shown
        return shown


@pytest.mark.slow
@families
async def test_the_four_bots_trade_across_two_hosts_and_one_of_them_is_looked_at(
    hosts: Hosts, tmp_path: Path, at: tuple[str, str]
) -> None:
    """Started as one would: the feed on the first host waits for all others on the second."""
    first, second = await hosts.make()
    names = ("strategy", "broker", "monitor", "recorder")
    keys_a, keys_b = set_up(tmp_path, ("feed", "doctor"), (*names, "peers"))
    url = url_of(at)
    try:
        options = ("--speed", "200", "--audience", ",".join(names))
        script = str(BOTS / "feed.py")
        feed = await Program.run(first, tmp_path / "feed", keys_a, script, url, *options)
        await feed.reads("the feed waits for a strategy")
        bots = {}
        for name in names:
            file = ("--file", str(tmp_path / "desk.db")) if name == "recorder" else ()
            script = str(BOTS / f"{name}.py")
            screen = tmp_path / name
            bots[name] = await Program.run(second, screen, keys_b, script, url, *file)
            await bots[name].reads(f"{name} is live on {url}")
            if name == "broker":
                look = ("-m", "aiobus", "peers", url, "--json")
                peers = await Program.run(second, tmp_path / "peers", keys_b, *look)
                seen = [json.loads(line)["name"] for line in (await peers.ends()).splitlines()]
                assert sorted(seen) == ["broker", "feed", "strategy"]
        await feed.ends()
        screens = {name: await bots[name].ends(signal.SIGTERM) for name in names}
    finally:
        for host in (first, second):
            await host(KILL)
    lines = re.findall(r"^(ticks|signals|orders|fills) +([\d,]+)", screens["monitor"], re.MULTILINE)
    counts = {what: int(count.replace(",", "")) for what, count in lines}
    assert counts["ticks"] == TICKS
    assert counts["signals"] == counts["orders"] == counts["fills"] >= 10
    with Journal(tmp_path / "desk.db") as journal:
        recorded = Counter(event.type for _, event in journal.read())
    assert recorded["TRADE"] + recorded["QUOTE"] == TICKS
    assert recorded["FILL"] == counts["fills"]


# A wire that is cut.

HEAR = """
self.numbers, self.marks = [], []
async def on_event(event):
    if event.type == "T":
        self.numbers.append(event.data)
    else:
        self.marks.append([event.type, event.data])
await bus.subscribe(["T", "aiobus.gap", "aiobus.peer_left", "aiobus.peer_joined"], on_event)
"""
LOAD = """
self.sent = []
async def load():
    loop = asyncio.get_running_loop()
    begin = loop.time()
    while True:
        await asyncio.sleep(0.005)
        for _ in range(round((loop.time() - begin) * 1000) - len(self.sent)):
            event = bus.publish_nowait(Event("T", len(self.sent) + 1))
            self.sent.append(event.seq)
self.load = asyncio.create_task(load())
"""
STOP = """
self.load.cancel()
await asyncio.wait([self.load])
return len(self.sent)
"""
UNTIL = """
while not self.numbers or self.numbers[-1] < number:
    await asyncio.sleep(0.01)
"""
OLDEST = """
async with bus.stream("T", since=0.0) as events:
    return (await anext(events)).data
"""


@pytest.mark.slow
@families
async def test_a_silent_cut_of_8_s_at_1_000_events_a_second_loses_nothing(
    hosts: Hosts, tmp_path: Path, at: tuple[str, str]
) -> None:
    feed, strategy = await pair(hosts, tmp_path, url_of(at))
    await strategy(HEAR)
    await feed(LOAD)
    await strategy(UNTIL, number=500)
    hosts.cut()
    await asyncio.sleep(8)
    hosts.heal()
    await strategy(UNTIL, number=await feed(STOP))
    numbers = await strategy("return self.numbers")
    assert len(numbers) > 8_000
    assert numbers == [*range(1, len(numbers) + 1)]
    assert await strategy("return self.marks") == []


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_after_a_silent_cut_of_60_s_what_history_holds_arrives_and_the_rest_is_one_gap(
    hosts: Hosts, tmp_path: Path
) -> None:
    feed, strategy = await pair(hosts, tmp_path, URL, limits={"history_events": 20_000})
    await strategy(HEAR)
    await feed(LOAD)
    await strategy(UNTIL, number=500)
    hosts.cut()
    await asyncio.sleep(60)
    last, oldest = await feed(STOP), await feed(OLDEST)
    hosts.heal()
    await strategy(UNTIL, number=last)
    numbers, marks = await strategy("return [self.numbers, self.marks]")
    before = numbers.index(oldest)
    assert numbers == [*range(1, before + 1), *range(oldest, last + 1)]
    assert last - oldest > 19_000
    [gap] = [data for kind, data in marks if kind == "aiobus.gap"]
    sent = [0, *await feed("return self.sent")]  # seq by number: other types have some as well
    assert gap["source"] == "feed"
    assert sent[before] <= gap["after"] < sent[before + 1]
    assert sent[oldest - 1] <= gap["upto"] < sent[oldest]
    told = [(kind, data["name"]) for kind, data in marks if kind != "aiobus.gap"]
    assert told == [("aiobus.peer_left", "feed"), ("aiobus.peer_joined", "feed")]


@pytest.mark.slow
@families
async def test_while_the_first_rendezvous_host_is_dead_a_newcomer_is_in_and_all_meet_afterwards(
    hosts: Hosts, tmp_path: Path, at: tuple[str, str]
) -> None:
    url = url_of(at)
    feed, strategy = await pair(hosts, tmp_path, url)
    hosts.cut()
    risk = await Bot.start(strategy.actor, url, "risk", tmp_path / "host-b")
    assert risk.seconds < 3
    assert "strategy" in await risk("return [each.name for each in bus.peers]")
    hosts.heal()
    await feed.links("strategy", "risk")
    await risk.links("feed", "strategy")


# Keys, lists and secrets that change.


@pytest.mark.slow
async def test_a_member_that_is_revoked_on_one_host_is_cut_off_there_and_told_who_lacks_the_list(
    hosts: Hosts, tmp_path: Path
) -> None:
    feed, strategy = await pair(hosts, tmp_path, URL)
    keys_a, keys_b = tmp_path / "host-a", tmp_path / "host-b"
    spy = await Bot.start(strategy.actor, URL, "spy", keys_b)
    await feed.links("strategy", "spy")
    await strategy(HEAR)
    await feed(LOAD)
    revoke(str(keys_a), "spy")
    assert await feed.links("strategy") < 2
    await feed.says("spy at tcp://10.77.0.2:")
    await spy.says("feed makes no link to this bus: its list of members says that the key of this")
    await feed.says("strategy has an older list (6)")
    await strategy.says("feed has a newer list (7)")
    standings = "return {each.name: each.member_list for each in bus.peers}"
    assert await feed(standings) == {"strategy": "older"}
    assert await strategy(standings) == {"feed": "newer", "spy": ""}
    look = ("-m", "aiobus", "doctor", URL, "--json")
    doctor = await Program.run(feed.actor, tmp_path / "doctor", keys_a, *look)
    lines = (await doctor.ends(code=1)).splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    todo = [(each["subject"], each["text"]) for each in found if each["status"] == "todo"]
    assert todo == [("strategy", "has an older list of members than this host")]
    copy_list(keys_a, keys_b)
    await feed.says("all peers of feed have its list of members, number 7")
    await strategy.links("feed")
    await spy.links()
    await strategy(UNTIL, number=await feed(STOP))
    numbers, marks = await strategy("return [self.numbers, self.marks]")
    assert numbers == [*range(1, len(numbers) + 1)]
    assert {data["name"] for _, data in marks} <= {"spy"}


@pytest.mark.slow
async def test_a_desk_secret_is_rotated_on_one_host_after_the_other_and_shuts_out_who_is_revoked(
    hosts: Hosts, tmp_path: Path
) -> None:
    """With the old secret one serves no rendezvous, and is let into none."""
    feed, strategy = await pair(hosts, tmp_path, URL)
    keys_a, keys_b = tmp_path / "host-a", tmp_path / "host-b"
    kept = tmp_path / "kept"
    shutil.copytree(keys_b, kept)
    await strategy(HEAR)
    await feed(LOAD)
    revoke(str(keys_a), "spy")
    copy_list(keys_a, keys_b)
    rotate(str(keys_a))
    copy_seal(keys_a, keys_b)
    late = await Bot.start(feed.actor, URL, "late", keys_a)
    retire(str(keys_a))
    # Before the other host has it as well, which would end the connection itself, without a word.
    await feed.says("the secret of a connection is not valid any more")
    retire(str(keys_b))
    risk = await Bot.start(strategy.actor, URL, "risk", keys_b)
    await risk.links("feed", "late", "strategy")
    await strategy(UNTIL, number=await feed(STOP))
    numbers, marks = await strategy("return [self.numbers, self.marks]")
    assert numbers == [*range(1, len(numbers) + 1)]
    assert [kind for kind, _ in marks if kind != "aiobus.peer_joined"] == []
    with pytest.raises(ActorError, match="does not share this desk's secret"):
        await Bot.start(strategy.actor, URL, "spy", kept)
    # All others of its host are gone, so it serves there alone, and nobody meets there.
    for each in (strategy, risk):
        await each.close()
    spy = await Bot.start(strategy.actor, f"tcp://{V4[1]}:{PORT}", "spy", kept)
    await late.close()
    late = await Bot.start(feed.actor, URL, "late", keys_a)
    await late.says(f"{V4[1]}:{PORT} does not share this desk's secret")
    await late.links("feed")
    await spy.links()


async def test_a_key_that_one_host_lacks_is_said_on_both_screens_and_linked_once_it_is_copied(
    hosts: Hosts, tmp_path: Path
) -> None:
    feed, strategy = await pair(hosts, tmp_path, URL)
    keys_a, keys_b = tmp_path / "host-a", tmp_path / "host-b"
    make(keys_b, "new")
    starting = asyncio.ensure_future(Bot.start(strategy.actor, URL, "new", keys_b))
    await feed.says("new at tcp://10.77.0.2:")
    line = await feed.says("a bus at 10.77.0.2 has a key that is not on the list of members here")
    assert "copy the newest desk.members to this host" in line
    line = await strategy.says(
        "feed makes no link to this bus: its list of members does not have the key"
    )
    assert line.endswith("copy the newest desk.members to that host")
    assert ("", "unknown") in await feed.refusals()
    copy_list(keys_b, keys_a)
    new = await starting
    assert await feed.links("new", "strategy") < 5
    await new.links("feed", "strategy")


@pytest.mark.slow
async def test_a_wrong_key_on_one_list_is_said_on_both_screens_and_linked_once_it_is_mended(
    hosts: Hosts, tmp_path: Path
) -> None:
    """The second host has another key of the feed."""
    first, second = await hosts.make()
    keys_a, keys_b = set_up(tmp_path, ("feed",), ("strategy",))
    listed = keys_b / "desk.members"
    right = Keyring.load(keys_a).members.by_name["feed"].key
    replaced(listed, listed.read_text().replace(right, key()).replace("number = 2", "number = 1"))
    feed = await Bot.start(first, URL, "feed", keys_a)
    starting = asyncio.ensure_future(Bot.start(second, URL, "strategy", keys_b))
    line = await feed.says("10.77.0.2 expects another key of this bus")
    assert "its desk.members is not that of this host" in line
    await feed.says(
        "strategy makes no link to this bus: this bus did not prove the key that its list"
    )
    await feed.says("strategy at tcp://10.77.0.2:")
    strategy = Bot(second, "strategy")
    line = await strategy.says("what listens at tcp://10.77.0.1:")
    assert "does not prove the key that the list here has of feed" in line
    await strategy.says("a bus at 10.77.0.1 has a key that is not on the list of members here")
    assert {("", "mistaken"), ("strategy", "told key")} <= await feed.refusals()
    copy_list(keys_a, keys_b)
    strategy = await starting
    assert await strategy.links("feed") < 5
    await feed.links("strategy")


async def test_a_key_that_was_made_anew_is_said_on_both_screens_and_linked_once_it_is_copied(
    hosts: Hosts, tmp_path: Path
) -> None:
    """The first host has the key that the strategy had before."""
    first, second = await hosts.make()
    keys_a, keys_b = set_up(tmp_path, ("feed",), ("strategy",))
    (keys_b / "strategy.secret").unlink()
    revoke(str(keys_b), "strategy")
    make_key(str(keys_b), "strategy", EVERYTHING)
    feed = await Bot.start(first, URL, "feed", keys_a)
    starting = asyncio.ensure_future(Bot.start(second, URL, "strategy", keys_b))
    line = await feed.says("what listens at tcp://10.77.0.2:")
    assert "does not prove the key that the list here has of strategy" in line
    await feed.says("a bus at 10.77.0.2 has a key that is not on the list of members here")
    strategy = Bot(second, "strategy")
    await strategy.says("10.77.0.1 expects another key of this bus")
    await strategy.says("feed at tcp://10.77.0.1:")
    await strategy.says(
        "feed makes no link to this bus: this bus did not prove the key that its list"
    )
    copy_list(keys_b, keys_a)
    strategy = await starting
    assert await strategy.links("feed") < 5
    await feed.links("strategy")


@pytest.mark.slow
async def test_another_desk_secret_is_said_on_both_screens_and_linked_once_it_is_copied(
    hosts: Hosts, tmp_path: Path
) -> None:
    """Each has started while the other could not be reached; one that starts later says it and
    ends.
    """
    first, second = await hosts.make()
    keys_a, keys_b = set_up(tmp_path, ("feed", "late"), ("strategy",))
    rotate(str(keys_b))
    retire(str(keys_b))
    hosts.cut()
    feed = await Bot.start(first, URL, "feed", keys_a)
    strategy = await Bot.start(second, URL, "strategy", keys_b)
    hosts.heal()
    said = "does not share this desk's secret: copy the file desk.seal of the one host to the other"
    for bot, other in ((feed, V4[1]), (strategy, V4[0])):
        assert (await bot.says(f"{other}:{PORT} does not share")) == f"{other}:{PORT} {said}"
        assert (await bot.says(f"{other} does not share")) == f"{other} {said}"
        assert ("", "stranger") in await bot.refusals()
    with pytest.raises(ActorError, match=f"{PORT} {said}"):
        await Bot.start(first, f"tcp://{V4[1]}:{PORT}", "late", keys_a)
    copy_seal(keys_a, keys_b)
    assert await strategy.links("feed") < 5
    await feed.links("strategy")


PLAIN = """
import zmq
with zmq.Context() as context:
    while not self.is_seen:  # on a busy machine its end may be read before its greeting
        with context.socket(zmq.XSUB) as plain:
            plain.linger = 0
            plain.connect(endpoint)
            await asyncio.to_thread(plain.poll, 500, zmq.POLLIN)
"""


async def test_a_program_without_keys_is_said_with_its_host(hosts: Hosts, tmp_path: Path) -> None:
    """A bus without a keyring does not start on such a URL, and says what to do."""
    first, second = await hosts.make()
    keys_a, _ = set_up(tmp_path, ("feed",), ("strategy",))
    feed = await Bot.start(first, URL, "feed", keys_a)
    endpoint = await feed("return bus._transport.session.me.endpoint")
    hosts.wire.delay = 0.002  # as between two data centres
    await second("self.is_seen = False")
    plain = second.tell(PLAIN, endpoint=endpoint)
    line = await feed.says("speaks without keys")
    await second("self.is_seen = True")
    await plain
    assert line.startswith("a program at 10.77.0.2 speaks without keys: ")
    assert "AIOBUS_KEYRING" in line
    with pytest.raises(ActorError, match=r"'strategy' has no keyring.*python -m aiobus keygen"):
        await second("await aiobus.AsyncEventBus(url, name='strategy').start()", url=URL)


async def test_a_clock_that_is_wrong_on_one_host_is_said_on_both_screens(
    hosts: Hosts, tmp_path: Path
) -> None:
    first, second = await hosts.make()
    keys_a, keys_b = set_up(tmp_path, ("feed",), ("strategy",))
    await second(
        "from aiobus import clock; before = clock.machine; clock.machine = lambda: before() - 3"
    )
    feed = await Bot.start(first, URL, "feed", keys_a)
    strategy = await Bot.start(second, URL, "strategy", keys_b)
    line = await feed.says("the clock of strategy is ")
    assert "s behind that of feed" in line
    assert "NTP" in line
    assert "s ahead of that of strategy" in await strategy.says("the clock of feed is ")
