"""Real processes on one bus: started in any order, killed, frozen, restarted, in great number."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import pytest
from actors import Actor, Nursery, tcp_url

pytestmark = [pytest.mark.usefixtures("no_task_is_left"), pytest.mark.paired]

NAMES = "abcdefghij"
TCP_ONLY = pytest.mark.parametrize("url", ["tcp"], indirect=True)


async def desk(nursery: Nursery, url: str, names: Sequence[str]) -> list[Actor]:
    """Processes with a bus each, started one after another."""
    actors = await nursery.actors(len(names))
    for actor, name in zip(actors, names, strict=True):
        await actor.start(url, name)
    return actors


PUBLISH = "for i in numbers: await bus.publish(Event('T', [bus.name, i]))"


# Live when `subscribe` returns, heard from the first event on.


async def test_nothing_is_missed_when_a_subscriber_tells_the_publisher_over_a_pipe(
    nursery: Nursery, url: str, tmp_path: Path
) -> None:
    """1,000 rounds "A subscribes, tells B, B publishes at once", over both transports and loops."""
    a, b = await desk(nursery, url, "ab")
    with tempfile.TemporaryDirectory(prefix="ab") as folder:
        pipe = f"{folder}/pipe"
        await b(
            """
            async def on_line(reader, writer):
                while line := await reader.readline():
                    await bus.publish(Event(line.decode().strip(), 1))
                writer.close()
            self.server = await asyncio.start_unix_server(on_line, pipe)
            """,
            pipe=pipe,
        )
        await a(
            """
            _, writer = await asyncio.open_unix_connection(pipe)
            for number in range(1000):
                heard = asyncio.Event()
                subscription = await bus.subscribe(f"T{number}", lambda event: heard.set())
                writer.write(b"T%d\\n" % number)
                async with asyncio.timeout(5):
                    await heard.wait()
                await subscription.unsubscribe()
            writer.close()
            """,
            pipe=pipe,
        )
        await b("self.server.close()")


@pytest.mark.slow
async def test_a_bus_that_publishes_as_its_first_act_and_exits_is_heard_every_time(
    nursery: Nursery, url: str
) -> None:
    """150 rounds on each loop, so 300 over each transport."""
    rounds, at_once = range(150), asyncio.Semaphore(4)
    (listener,) = await desk(nursery, url, "a")
    await listener.hear("HELLO")

    async def live_once(number: int) -> None:
        async with at_once:
            actor = await nursery.actor()
            await actor(
                """
                async with aiobus.AsyncEventBus(url, name=f"bot{number}") as bus:
                    await bus.publish(Event("HELLO", number))
                """,
                url=url,
                number=number,
            )
            await actor.end()

    await asyncio.gather(*map(live_once, rounds))
    assert sorted(await listener.heard(len(rounds))) == list(rounds)


@pytest.mark.slow
async def test_in_every_order_of_starting_all_who_are_there_hear_the_first_event(
    nursery: Nursery, url: str
) -> None:
    for order in permutations("abcd"):
        url = tcp_url() if url.startswith("tcp") else url
        actors = await nursery.actors(len(order))
        for actor, name in zip(actors, order, strict=True):
            await actor.start(url, name)
            await actor("await bus.publish(Event('FIRST', bus.name))")
            await actor.hear("FIRST")
        for place, actor in enumerate(actors):
            later = list(order[place + 1 :])
            assert await actor.heard(len(later)) == later
        await asyncio.gather(*(actor.end() for actor in actors))


async def test_four_that_start_at_once_hear_all_that_is_published_then(
    nursery: Nursery, url: str
) -> None:
    actors = await nursery.actors(4)
    await asyncio.gather(
        *(each.start(url, name) for each, name in zip(actors, NAMES, strict=False))
    )
    await asyncio.gather(*(actor.hear("T") for actor in actors))
    await asyncio.gather(*(actor(PUBLISH, numbers=[1, 2]) for actor in actors))
    for actor in actors:
        heard = await actor.heard(8)
        assert sorted(heard) == [[name, i] for name in "abcd" for i in (1, 2)]


# Killed.


NOTE_LOG = """
import logging
self.log, note = [], logging.Handler()
note.emit = lambda record: self.log.append(record.getMessage())
logging.getLogger("aiobus").addHandler(note)
logging.getLogger("aiobus").setLevel("WARNING")
"""


@pytest.mark.parametrize("victim", range(2), ids=["the first", "the second"])
async def test_after_a_kill_a_newcomer_joins_without_waiting_for_the_dead_bus(
    nursery: Nursery, url: str, victim: int
) -> None:
    actors = await desk(nursery, url, "abc")
    actors.pop(victim).kill()
    newcomer = await nursery.actor()
    await newcomer(NOTE_LOG)
    await newcomer.start(url, "d")
    assert [line for line in await newcomer("return self.log") if "starts without" in line] == []
    await newcomer.hear("T")
    for actor in actors:
        await actor(PUBLISH, numbers=[1])
    names = await actors[0]("return bus.name"), await actors[1]("return bus.name")
    assert sorted(await newcomer.heard(2)) == [[name, 1] for name in names]


async def test_the_name_of_one_that_was_killed_is_free_at_once(nursery: Nursery, url: str) -> None:
    a, b = await desk(nursery, url, "ab")
    await a.hear("T")
    b.kill()
    again = await nursery.actor()
    await again.start(url, "b")
    await again(PUBLISH, numbers=[7])
    assert await a.heard(1) == [["b", 7]]


# Frozen.


@pytest.mark.slow
async def test_a_bus_that_closes_beside_a_frozen_one_says_bye_to_the_others_and_names_it(
    nursery: Nursery, url: str
) -> None:
    a, b, c = await desk(nursery, url, "abc")
    await b.hear("aiobus.peer_left")
    await c.hear("T")
    for number in range(20):
        c.kill(signal.SIGSTOP)
        leaver = await nursery.actor()
        starting = leaver.start(url, f"d{number}")
        c.kill(signal.SIGCONT)
        await starting
        c.kill(signal.SIGSTOP)
        await leaver(PUBLISH, numbers=[1])
        assert await leaver("return await bus.close(0.3)") == ["c"]
        left = (await b.heard(number + 1))[number]
        assert (left["name"], left["reason"]) == (f"d{number}", "it closed")
        c.kill(signal.SIGCONT)
    assert a.code.done() is False


@pytest.mark.slow
async def test_flush_and_close_of_a_tool_name_a_frozen_peer_that_never_heard_of_it(
    nursery: Nursery, url: str
) -> None:
    """A kill switch was told that all have its HALT, while a strategy was frozen."""
    _, strategy = await desk(nursery, url, ["holder", "strategy"])
    await strategy.hear("HALT")
    strategy.kill(signal.SIGSTOP)
    tool = await nursery.actor()
    await tool.start(url, "tool")
    await tool("await bus.publish(Event('HALT', 'now'))")
    assert await tool("return await bus.flush(0.2)") == ["strategy"]
    flushing = tool.tell("return await bus.flush(20)")
    strategy.kill(signal.SIGCONT)
    assert await flushing == []
    assert await strategy.heard(1) == ["now"]
    strategy.kill(signal.SIGSTOP)
    await tool("await bus.publish(Event('HALT', 'again'))")
    assert await tool("return await bus.close(0.2)") == ["strategy"]


async def test_a_tool_closes_at_once_beside_what_dead_processes_have_left(
    nursery: Nursery, url: str
) -> None:
    """A file or an address where no process listens any more is not waited for."""
    a, *dead = await desk(nursery, url, "abcd")
    for each in dead:
        each.kill()
        await each.code
    tool = await nursery.actor()
    await tool.start(url, "tool")
    await tool("await bus.publish(Event('HALT', 'now'))")
    assert await tool("return await bus.close(600)") == []
    assert a.code.done() is False


# Many.


@pytest.mark.slow
async def test_50_buses_find_each_other_and_close_cleanly(nursery: Nursery, url: str) -> None:
    actors = await nursery.actors(5)
    started = [
        actor(
            """
            self.buses = [AsyncEventBus(url, name=f"{name}{i}") for i in range(10)]
            await asyncio.gather(*(each.start() for each in self.buses))
            """,
            url=url,
            name=name,
        )
        for actor, name in zip(actors, NAMES, strict=False)
    ]
    await asyncio.gather(*started)
    # Not at once after start: on a busy machine that may take longer than start waits for a peer.
    linked = """
        async def all_linked(each):
            async with each.stream("aiobus.peer_joined") as joined:
                while len(each.peers) < 49:
                    await anext(joined)
        await asyncio.gather(*map(all_linked, self.buses))
        return [len(each.peers) for each in self.buses]
    """
    assert await asyncio.gather(*(actor(linked) for actor in actors)) == [[49] * 10] * 5
    closed = [
        actor("return await asyncio.gather(*(each.close() for each in self.buses))")
        for actor in actors
    ]
    assert await asyncio.gather(*closed) == [[[]] * 10] * 5


async def test_of_17_that_start_at_once_with_one_name_twice_just_one_is_refused(
    nursery: Nursery, url: str
) -> None:
    names = ["twice", *(f"b{number}" for number in range(15)), "twice"]
    actors = await nursery.actors(17)
    started = [each.start(url, name) for each, name in zip(actors, names, strict=True)]
    outcomes = await asyncio.gather(*started, return_exceptions=True)
    refused = [each for each in outcomes if each is not None]
    assert [str(each).partition(":")[0] for each in refused] == ["NameInUse"]
    assert outcomes.index(refused[0]) in (0, 16)


@pytest.mark.slow
async def test_5_000_subscriptions_are_live_and_still_are_when_the_peer_restarts(
    nursery: Nursery, url: str
) -> None:
    a, b = await desk(nursery, url, "ab")
    await a(
        """
        keys = [f"K{i}" for i in range(5000)]
        async def on_event(event):
            self.heard.append(event.data)
        for some in range(0, 5000, 500):
            await asyncio.gather(
                *(bus.subscribe("T", on_event, key=key) for key in keys[some : some + 500])
            )
        """
    )
    publish = """
        for i in range(5000):
            await bus.publish(Event("T", i, key=f"K{i}"))
            if i % 200 == 199:  # each event has a frame of its own, and queues hold 256
                # A peer makes its link to a successor again, and is named while that is cut.
                while await bus.flush():
                    pass
        return await bus.flush()
    """
    assert await b(publish) == []
    assert sorted(await a("await bus.settle(); return self.heard")) == list(range(5000))
    b.kill()
    await b.code
    again = await nursery.actor()
    await again.start(url, "b")
    assert await again(publish) == []
    heard = await a("await bus.settle(); return self.heard[5000:]")
    assert sorted(heard) == list(range(5000))


@pytest.mark.slow
@TCP_ONLY
async def test_20_races_for_the_address_end_with_one_holder_each(
    nursery: Nursery, url: str
) -> None:
    is_holder = "return bool(bus._transport.discovery.held)"
    actors = await desk(nursery, url, NAMES)
    for number in range(20):
        holders = [each for each in actors if await each(is_holder)]
        assert len(holders) == 1
        actors.remove(holders[0])
        holders[0].kill()
        await holders[0].code
        newcomer = await nursery.actor()
        await newcomer("from aiobus.discovery import rendezvous as r; r.SUCCESSION_SECONDS = 0.05")
        await newcomer.start(url, f"n{number}")
        actors.append(newcomer)
        await newcomer(
            """
            async with bus.stream("aiobus.peer_joined") as joined:
                while len(bus.peers) < 9:
                    await anext(joined)
            """
        )


# Woken.


async def test_a_message_that_comes_while_a_busy_process_sends_wakes_it(
    nursery: Nursery, url: str
) -> None:
    """ZeroMQ's descriptor is edge-triggered: a send can swallow the edge. Busy for 5 ms, one send,
    idle: what came meanwhile must have been found before the look once a second.
    """
    a, b = await desk(nursery, url, "ab")
    await a.hear("T")
    busy = """
        import time
        for number in range(100):
            end = time.perf_counter() + 0.005
            while time.perf_counter() < end:
                pass
            await bus.publish(Event("T", number))
            await bus.subscribe(f"U{number}", print)
    """
    await asyncio.gather(a(busy), b(busy))
    found = "network = bus._transport.network; return [network._xpub.found, network._xsub.found]"
    assert [await a(found), await b(found)] == [[0, 0], [0, 0]]


# Forked.


async def test_what_a_forked_child_does_not_close_does_not_keep_its_dead_parent_on_the_bus(
    nursery: Nursery, url: str
) -> None:
    a, b = await desk(nursery, url, "ab")
    await b.hear("aiobus.peer_left")
    child = await a(
        FORK.replace("os._exit(0)", "signal.pause()") + "os.read(out, 1000)\nreturn pid"
    )
    try:
        a.kill()
        await a.code
        again = await nursery.actor()
        await again.start(url, "a")  # raises NameInUse while a process listens there
        left = (await b.heard(1))[0] if url.startswith("ipc") else None
        assert left is None or left["name"] == "a"
    finally:
        os.kill(child, signal.SIGKILL)


FORK = """
import os, signal
out, into = os.pipe()
pid = os.fork()
if pid == 0:
    try:
        bus.publish_nowait(Event("T", 1))
    except Exception as error:
        os.write(into, type(error).__name__.encode())
    os._exit(0)
"""


# A feed that does not outrun its readers.


@pytest.mark.slow
async def test_a_frozen_reader_of_a_paced_feed_is_left_behind_and_the_others_have_everything(
    nursery: Nursery, url: str
) -> None:
    feed, victim, other = await nursery.actors(3)
    await feed(
        """
        self.bus = aiobus.AsyncEventBus(
            url, name="feed", pace=True, limits=aiobus.Limits(history_events=50, pace_seconds=2)
        )
        await self.bus.start()
        self.left = asyncio.get_running_loop().create_future()
        async def on_left(event):
            self.left.set_result(event.data)
        await self.bus.subscribe("aiobus.left_behind", on_left)
        """,
        url=url,
    )
    for actor, name in ((victim, "victim"), (other, "other")):
        await actor.start(url, name)
        await actor.hear("T", "aiobus.gap", maxsize=10)
    replay = "for i in numbers: await bus.publish(aiobus.Event('T', [i, 'x' * 10_240]))"
    await feed(replay, numbers=list(range(500)))
    await victim.heard(500)
    victim.kill(signal.SIGSTOP)
    await feed(replay, numbers=list(range(500, 1_000)))
    told = await feed("return await self.left")
    assert (told["reader"], told["type"]) == ("victim", "T")
    assert [number for number, _ in await other.heard(1_000)] == list(range(1_000))
    victim.kill(signal.SIGCONT)
    await feed(replay, numbers=list(range(1_000, 1_200)))
    assert await feed("return await bus.flush(20)") == []
    for actor, is_told in ((victim, True), (other, False)):
        await actor("await bus.settle(20)")
        heard = await actor.heard(1)
        numbers = [each[0] for each in heard if isinstance(each, list)]
        assert (len(heard) > len(numbers)) == is_told
        assert numbers[:500] == list(range(500))
        assert numbers[-1] == 1_199
        assert numbers == sorted({*numbers})
