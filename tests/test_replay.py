"""A recording is the other side of a bus: each event as it was, at its time, and none is lost."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from journals import EPOCH, START, entries, entry, facts, make, read, writing

from aiobus import (
    AsyncEventBus,
    BusClosed,
    BusError,
    Deadlock,
    Event,
    JournalCorrupt,
    JournalError,
    JournalRemoved,
    NameInUse,
    Replay,
    RequestTimeout,
    VirtualLoop,
    clock,
    run_virtual,
)
from aiobus.journal import retention

Main = Callable[[AsyncEventBus, Replay], Awaitable[Any]]


def replayed(path: Path, main: Main, *, name: str = "strategy", **given: Any) -> Any:
    """What `main` returns, on a bus of this name whose other side is the recording."""

    async def run() -> Any:
        replay = Replay(path, **given)
        async with AsyncEventBus(replay, name=name, on_error="raise") as bus:
            return await main(bus, replay)

    return run_virtual(run)


async def seen(bus: AsyncEventBus, replay: Replay) -> list[Event]:
    """Every event, once it is over."""
    found: list[Event] = []
    await bus.subscribe("*", found.append)
    await replay.play()
    await bus.settle()
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A recording of 40 events of a feed, eight a second."""
    path = tmp_path / "desk.db"
    make(path, entries(40))
    return path


# What is handed over.


def test_each_event_has_its_identity_time_cause_key_and_data(path: Path) -> None:
    assert [facts(event) for event in replayed(path, seen)] == [
        facts(event) for _, event in read(path)
    ]


def test_the_clock_tells_the_recorded_time_when_an_event_is_handled(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> list[float]:
        late: list[float] = []
        await bus.subscribe("*", lambda event: late.append(clock.time() - event.timestamp))
        assert clock.time() == pytest.approx(START + 1 / 8)
        await replay.play()
        await bus.settle()
        return late

    late = replayed(path, main)
    assert len(late) == 40
    assert max(map(abs, late)) < 1e-5


def test_timers_and_timeouts_run_between_the_events_where_they_are_due(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> list[Any]:
        happened: list[Any] = []
        loop = asyncio.get_running_loop()

        async def on_event(event: Event) -> None:
            happened.append(event.seq)
            if event.seq == 1:
                loop.call_later(0.3, happened.append, "timer")
            if event.seq == 8:
                with pytest.raises(RequestTimeout):
                    await bus.request(Event("ORDER", 1), "FILL", timeout=0.2)
                happened.append("timeout")

        await bus.subscribe(["TRADE", "QUOTE", "FILL"], on_event, concurrency=9)
        await bus.subscribe("ORDER", lambda order: None)
        await replay.play()
        return happened

    happened = replayed(path, main, types=["TRADE", "QUOTE", "FILL"])
    assert happened[:12] == [1, 2, 3, "timer", 4, 5, 6, 7, 8, 9, "timeout", 10]


def test_two_replays_are_equal_byte_for_byte(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> list[Any]:
        out: list[Any] = []

        async def answer(event: Event) -> None:
            await asyncio.sleep(0.01 * (event.seq % 7))
            out.append(facts(await bus.publish(Event("SIGNAL", event.data, key=event.key))))

        await bus.subscribe("*", answer, concurrency=4, where=lambda event: event.type != "SIGNAL")
        await replay.play()
        await bus.settle()
        return out

    first = replayed(path, main)
    assert len(first) == 40
    assert replayed(path, main) == first


def test_what_is_published_is_caused_by_the_original_event(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> list[Event]:
        async def answer(event: Event) -> None:
            await bus.publish(Event("SIGNAL", event.seq))

        await bus.subscribe("TRADE", answer)
        signals: list[Event] = []
        await bus.subscribe("SIGNAL", signals.append)
        await replay.play()
        await bus.settle()
        return signals

    causes = {event.cause for event in replayed(path, main)}
    assert causes == {event.id for _, event in read(path, types="TRADE")}


def test_sources_types_and_keys_select(path: Path, tmp_path: Path) -> None:
    assert {event.type for event in replayed(path, seen, types="TRADE")} == {"TRADE"}
    assert {event.key for event in replayed(path, seen, key=["KEY1", "KEY2"])} == {"KEY1", "KEY2"}
    mixed = tmp_path / "mixed.db"
    make(mixed, [entry(seq, source=f"bot{seq % 3}") for seq in range(1, 31)])
    assert {event.source for event in replayed(mixed, seen, sources="bot1")} == {"bot1"}


@pytest.mark.parametrize(
    ("given", "seqs"),
    [
        ({"start": 11}, range(11, 41)),
        ({"end": 11}, range(1, 11)),
        ({"start": 11, "end": 21}, range(11, 21)),
        ({"start": START + 11 / 8}, range(11, 41)),
        ({"end": START + 11 / 8}, range(1, 11)),
        ({"start": START + 11 / 8, "end": 21}, range(11, 21)),
    ],
)
def test_it_begins_and_ends_at_an_offset_or_a_time(
    path: Path, given: dict[str, Any], seqs: range
) -> None:
    assert [event.seq for event in replayed(path, seen, **given)] == [*seqs]


@pytest.mark.parametrize("name", ["start", "end"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "last", float("nan"), 1.7e12, START * 1000])
def test_what_is_neither_an_offset_nor_a_time_is_refused(path: Path, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}="):
        Replay(path, **{name: value})


def test_system_events_are_not_asked_for_but_read_from_the_file(path: Path) -> None:
    with pytest.raises(ValueError, match=r"aiobus\.gap told of the recording bus"):
        Replay(path, types=["TRADE", "aiobus.gap"])


@pytest.mark.parametrize("given", [{"types": ["TRADE", "FIL"]}, {"key": "FIL"}])
def test_a_type_or_key_that_was_not_recorded_is_named(path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no event of .*FIL was recorded"):
        replayed(path, seen, **given)


def test_the_events_of_the_bus_itself_are_left_out_unless_they_are_named(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    make(path, [entry(seq, source=("feed", "strategy")[seq % 2]) for seq in range(1, 21)])
    assert {event.source for event in replayed(path, seen)} == {"feed"}
    assert {event.source for event in replayed(path, seen, name="other")} == {"feed", "strategy"}
    named = replayed(path, seen, sources=["strategy"])
    assert [event.source for event in named] == ["strategy"] * 10


def test_a_selection_of_nothing_is_an_error_that_names_the_sources(path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to play of what was selected; its sources are"):
        replayed(path, seen, end=1)
    with pytest.raises(
        ValueError, match=r"nothing of fed was recorded; the sources of .* are feed"
    ):
        replayed(path, seen, sources=["feed", "fed"])
    with pytest.raises(ValueError, match="feed is the name of this bus, and played only if"):
        replayed(path, seen, name="feed")


def test_a_subscription_begins_behind_the_event_that_after_names(path: Path) -> None:
    events = [event for _, event in read(path)]

    async def main(bus: AsyncEventBus, replay: Replay) -> list[Event]:
        found: list[Event] = []
        await bus.subscribe("*", found.append, after=events[9].id)
        await replay.play()
        await bus.settle()
        return found

    assert [event.id for event in replayed(path, main)] == [event.id for event in events[10:]]


@pytest.mark.parametrize("since", ["last", START])
def test_a_subscription_with_since_begins_with_what_is_played_next(path: Path, since: Any) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> list[int]:
        found: list[int] = []
        await replay.step(5)
        await bus.subscribe("*", lambda event: found.append(event.seq), since=since)
        await replay.play()
        await bus.settle()
        return found

    assert replayed(path, main) == [*range(6, 41)]


# Full inboxes.


@pytest.mark.parametrize("overflow", ["catch_up", "block"])
@pytest.mark.parametrize("maxsize", [1, 3])
def test_what_finds_a_full_inbox_waits_for_room_and_is_not_lost(
    path: Path, overflow: Any, maxsize: int
) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> list[int]:
        found: list[int] = []

        async def slow(event: Event) -> None:
            await asyncio.sleep(1)
            found.append(event.seq)

        subscription = await bus.subscribe("*", slow, overflow=overflow, maxsize=maxsize)
        await bus.subscribe("*", lambda event: None)
        await replay.play()
        await bus.settle(100)
        assert subscription.stats.gaps == 0
        return found

    assert replayed(path, main) == [*range(1, 41)]


def test_a_stream_that_takes_slowly_gets_all(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> list[int]:
        async with bus.stream("*", maxsize=2) as events:
            playing = asyncio.create_task(replay.play())
            found = []
            async for event in events:
                await asyncio.sleep(1)
                found.append(event.seq)
                if event.seq == 40:
                    break
            await playing
            return found

    assert replayed(path, main) == [*range(1, 41)]


def test_a_subscription_that_ends_while_the_replay_waits_for_it_holds_up_nothing(
    path: Path,
) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> int:
        async def stuck(event: Event) -> None:
            await asyncio.sleep(3600)

        stuck_one = await bus.subscribe("*", stuck, maxsize=1)
        asyncio.get_running_loop().call_later(
            60, lambda: asyncio.ensure_future(stuck_one.unsubscribe())
        )
        return await replay.play()

    assert replayed(path, main) == 40


def test_latest_conflates_as_it_does_live(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> list[int]:
        found: list[int] = []

        async def slow(event: Event) -> None:
            found.append(event.seq)
            await asyncio.sleep(1)

        await bus.subscribe("TRADE", slow, key="KEY0", overflow="latest")
        await replay.play()
        await bus.settle()
        return found

    found = replayed(path, main)
    assert found[-1] == 30
    assert len(found) < 3


# Steering.


def test_a_step_hands_over_one_event_and_the_clock_stands_still(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> list[Any]:
        found: list[Any] = []
        await bus.subscribe("*", lambda event: found.append(event.seq))
        asyncio.get_running_loop().call_later(0.3, found.append, "timer")
        assert await replay.step() == 1
        await bus.settle()
        assert found == [1]
        assert await replay.step(3) == 3
        await bus.settle()
        assert found == [1, 2, 3, "timer", 4]
        assert clock.time() == pytest.approx(START + 4 / 8)
        assert await replay.step(100) == 36
        assert await replay.step() == 0
        return found

    replayed(path, main)


def test_a_handler_pauses_and_another_task_steps_and_resumes(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> None:
        found: list[int] = []
        is_paused = asyncio.Event()

        def on_event(event: Event) -> None:
            found.append(event.seq)
            if event.seq == 10:
                replay.pause()
                is_paused.set()

        await bus.subscribe("*", on_event)
        playing = asyncio.create_task(replay.play())
        await is_paused.wait()
        assert found[-1] == 10
        assert await replay.step(2) == 2
        await bus.settle()
        assert found[-1] == 12
        assert not playing.done()
        replay.resume()
        assert await playing == 40
        await bus.settle()
        assert found == [*range(1, 41)]

    replayed(path, main)


def test_a_pause_holds_a_play_that_was_called_before_and_has_not_begun(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> None:
        playing = asyncio.create_task(replay.play())
        replay.pause()
        await asyncio.sleep(0)
        assert replay.progress.played == 0
        replay.resume()
        assert await playing == 40

    replayed(path, main)


def test_a_second_play_is_refused_and_leaves_the_first_paused(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> None:
        playing = asyncio.create_task(replay.play())
        replay.pause()
        await asyncio.sleep(0)
        with pytest.raises(BusError, match="is played already"):
            await replay.play()
        for _ in range(20):
            await asyncio.sleep(0)
        assert replay.progress.played == 0
        replay.resume()
        assert await playing == 40

    replayed(path, main)


def test_a_play_that_begins_beside_a_step_goes_on_behind_it(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> None:
        playing = asyncio.create_task(replay.play())
        assert await replay.step(2) == 2
        await asyncio.sleep(0)
        assert replay.progress.played == 2
        replay.resume()
        assert await playing == 38

    replayed(path, main)


def test_another_thread_pauses_and_resumes_it(path: Path) -> None:
    is_paused, may_end = threading.Event(), threading.Event()
    made: list[Replay] = []

    async def main(bus: AsyncEventBus, replay: Replay) -> int:
        made.append(replay)
        await bus.subscribe(
            "*", lambda event: event.seq == 10 and (replay.pause(), is_paused.set())
        )
        return await replay.play()

    def steer() -> None:
        is_paused.wait(20)
        paused_at.append(made[0].progress.offset)
        made[0].resume()

    paused_at: list[int] = []
    thread = threading.Thread(target=steer)
    thread.start()
    assert replayed(path, main) == 40
    thread.join()
    may_end.set()
    assert paused_at == [10]


def test_a_pause_that_nothing_can_end_is_a_deadlock_that_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # whatever runs the tests has more

    async def main(bus: AsyncEventBus, replay: Replay) -> int:
        await bus.subscribe("*", lambda event: replay.pause())
        return await replay.play()

    with pytest.raises(Deadlock, match="its clock was stopped, and no other thread can let it"):
        replayed(path, main)


@pytest.mark.parametrize("to", [31, START + 31 / 8])
def test_seek_leaves_out_what_lies_before_and_sets_the_clock(path: Path, to: float) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> list[Any]:
        found: list[Any] = []
        await bus.subscribe("*", lambda event: found.append(event.seq))
        asyncio.get_running_loop().call_later(0.3, found.append, "timer")
        await replay.step(2)
        assert replay.seek(to) == 28
        assert clock.time() == pytest.approx(START + 31 / 8)
        await replay.play()
        await bus.settle()
        assert replay.progress[:3] == (12, 28, 0)
        return found

    found = replayed(path, main)
    assert [each for each in found if each != "timer"] == [1, 2, *range(31, 41)]
    assert found.index("timer") > found.index(31)  # it has 0.3 s of its own time, as before


def test_seek_in_a_handler_takes_effect_while_the_replay_waits_for_the_next_event(
    path: Path,
) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> list[int]:
        found: list[int] = []

        def on_event(event: Event) -> None:
            found.append(event.seq)
            if event.seq == 3:
                replay.seek(38)

        await bus.subscribe("*", on_event)
        await replay.play()
        await bus.settle()
        assert clock.time() == pytest.approx(START + 40 / 8)
        return found

    assert replayed(path, main) == [1, 2, 3, 38, 39, 40]


def test_seek_behind_the_end_is_refused_and_leaves_out_nothing(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> int:
        with pytest.raises(ValueError, match=r"to=99: the last offset of .* is 40"):
            replay.seek(99)
        return await replay.play()

    assert replayed(path, main) == 40


def test_seek_goes_forward_only(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> None:
        await replay.step(20)
        for to in (20, 3, START + 1):
            with pytest.raises(ValueError, match="is at offset 20 already, and goes forward only"):
                replay.seek(to)
        assert replay.seek(21) == 0
        assert replay.seek(START + 20 / 8) == 0

    replayed(path, main)


def test_progress_tells_how_far_it_is(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> None:
        last = [event for _, event in read(path)][:2][-1]
        assert (replay.progress.offset, replay.progress.last_offset) == (0, 40)
        await replay.step(2)
        progress = replay.progress
        assert (progress.played, progress.offset, progress.event) == (2, 2, last.id)
        assert progress.time == last.timestamp
        assert not progress.is_over
        await replay.play()
        assert (replay.progress.played, replay.progress.is_over) == (40, True)

    replayed(path, main)


def test_a_replay_is_played_by_one_task_at_a_time(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> None:
        playing = asyncio.create_task(replay.play())
        await asyncio.sleep(0)
        with pytest.raises(BusError, match="is played already"):
            await replay.play()
        await playing

    replayed(path, main)


def test_playing_that_is_cancelled_goes_on_where_it_was(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> list[int]:
        found: list[int] = []
        await bus.subscribe("*", lambda event: found.append(event.seq))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(replay.play(), 2.05)
        await replay.play()
        await bus.settle()
        return found

    assert replayed(path, main) == [*range(1, 41)]


def test_an_event_that_waits_for_room_when_playing_is_cancelled_is_handed_over_later(
    path: Path,
) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> tuple[list[int], list[int]]:
        fast: list[int] = []
        slow: list[int] = []

        async def on_event(event: Event) -> None:
            await asyncio.sleep(100)
            slow.append(event.seq)

        await bus.subscribe("*", lambda event: fast.append(event.seq))
        await bus.subscribe("*", on_event, maxsize=1)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(replay.play(), 120)
        await replay.play()
        await bus.settle(1000)
        return fast, slow

    assert replayed(path, main) == ([*range(1, 41)], [*range(1, 41)])


def test_playing_does_not_end_as_if_all_was_played_when_the_bus_closes(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> None:
        playing = asyncio.create_task(replay.play())
        await asyncio.sleep(1)
        await bus.close()
        with pytest.raises(BusClosed, match="is not open"):
            await playing

    replayed(path, main)


CTRL_C = """
import asyncio, sys, threading
from aiobus import AsyncEventBus, Replay, run_virtual

async def main():
    replay = Replay(sys.argv[1])
    async with AsyncEventBus(replay, name="strategy") as bus:
        await bus.subscribe("*", lambda event: print(event.seq, flush=True))
        {call}

threading.Thread(target=threading.Event().wait, daemon=True).start()  # it might resume
run_virtual(main())
"""


@pytest.mark.parametrize(
    "call",
    [
        "await replay.play(speed=1e-6)",
        "await replay.step(); await asyncio.get_running_loop().until_moving()",
    ],
    ids=["paced", "paused"],
)
def test_ctrl_c_ends_a_replay_that_waits_in_real_time(path: Path, call: str) -> None:
    code = CTRL_C.format(call=call)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "1\n"
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert errors.splitlines()[-1] == "KeyboardInterrupt"


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    path, count = tmp_path / "long.db", 12_000
    make(path, entries(count))

    async def main(bus: AsyncEventBus, replay: Replay) -> tuple[int, int]:
        sizes: list[int] = []

        def on_event(event: Event) -> None:
            if event.seq in (count // 4, count):
                sizes.append(tracemalloc.get_traced_memory()[0])

        await bus.subscribe("*", on_event)
        await replay.play()
        await bus.settle()
        early, late = sizes
        return early, late

    tracemalloc.start()
    try:
        early, late = replayed(path, main)
    finally:
        tracemalloc.stop()
    assert late - early < 500_000  # the file has 2 MB more by then


def test_outside_of_its_bus_nothing_is_played(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> None:
        other = Replay(path)
        for call in (other.play, other.step):
            with pytest.raises(BusClosed, match="is not open"):
                await call()
        for plain in (other.pause, lambda: other.seek(3)):
            with pytest.raises(BusClosed, match="is not open"):
                plain()
        await bus.close()
        with pytest.raises(BusClosed, match="is not open"):
            await replay.play()

    replayed(path, main)


# Pace.


@pytest.mark.parametrize("speed", [0, -1, float("inf"), float("nan"), "1", True])
def test_a_wrong_speed_is_refused(path: Path, speed: Any) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> None:
        with pytest.raises(ValueError, match="speed="):
            await replay.play(speed)

    replayed(path, main)


def test_at_a_speed_it_takes_its_time_and_the_same_happens(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay, speed: float | None) -> list[Any]:
        happened: list[Any] = []

        async def on_event(event: Event) -> None:
            await asyncio.sleep(0.2)
            happened.append((event.seq, asyncio.get_running_loop().time()))

        await bus.subscribe("*", on_event, concurrency=3)
        await replay.play(speed)
        await bus.settle()
        return happened

    began = time.monotonic()
    paced = replayed(path, lambda bus, replay: main(bus, replay, 20.0))
    assert time.monotonic() - began >= 39 / 8 / 20  # never sooner
    assert paced == replayed(path, lambda bus, replay: main(bus, replay, None))


async def test_it_is_paced_and_paused_inside_a_running_loop_as_well(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> int:
        return await replay.play(100.0)

    assert replayed(path, main) == 40


# Two buses.


def test_a_second_bus_beside_it_answers_requests(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> list[Any]:
        fills: list[Any] = []

        async def order(trade: Event) -> None:
            fills.append(await bus.request(Event("ORDER", trade.seq), "FILL", timeout=1))

        async with AsyncEventBus(replay.beside(), name="gateway", on_error="raise") as gateway:
            assert [each.name for each in bus.peers] == ["feed", "gateway"]

            async def fill(order: Event) -> None:
                assert order.source == "strategy"
                await asyncio.sleep(0.01)
                await gateway.publish(Event("FILL", order.data))

            await gateway.subscribe("ORDER", fill)
            await bus.subscribe("TRADE", order)
            trades: list[Event] = []
            await gateway.subscribe("TRADE", trades.append)
            await replay.play()
            await bus.settle()
            assert len(trades) == len(fills) > 10
        return fills

    fills = replayed(path, main, types=["TRADE", "QUOTE"])
    assert {fill.source for fill in fills} == {"gateway"}


def test_what_one_bus_publishes_beside_it_is_not_lost_to_a_slow_reader(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> None:
        found: list[int] = []

        async def slow(event: Event) -> None:
            await asyncio.sleep(0.001)
            found.append(event.data)

        await bus.subscribe(["NUMBER", "aiobus.error"], slow, maxsize=10)
        async with AsyncEventBus(replay.beside(), name="other") as other:
            for number in range(2_000):
                await other.publish(Event("NUMBER", number))
            await asyncio.sleep(10)
            await bus.settle(100)
            late: list[int] = []
            await bus.subscribe("NUMBER", lambda event: late.append(event.data), since=0)
            await asyncio.sleep(10)
            await bus.settle(100)
        assert found == late == [*range(2_000)]

    replayed(path, main)


def test_a_bus_beside_it_has_a_name_of_its_own_and_the_same_loop(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> None:
        with pytest.raises(NameInUse, match="'strategy' is on this replay"):
            await AsyncEventBus(replay.beside(), name="strategy").start()

        async def elsewhere(seat: Any) -> None:
            with pytest.raises(BusError, match="once the bus of the replay has"):
                await AsyncEventBus(seat, name="other").start()

        await elsewhere(Replay(path).beside())
        late = replay.beside()
        await replay.play()
        await bus.close()
        await elsewhere(late)

    replayed(path, main)


def test_system_events_of_a_bus_beside_it_stay_there(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> None:
        found: list[Event] = []
        own: list[Event] = []
        subscription = await bus.subscribe(["NUMBER", "aiobus.error"], found.append)
        async with AsyncEventBus(replay.beside(), name="other") as other:

            def fails(event: Event) -> None:
                raise ValueError(event.data)

            await other.subscribe("NUMBER", fails)
            await other.subscribe("aiobus.error", own.append)
            for number in range(3):
                await other.publish(Event("NUMBER", number))
                await other.settle()
            await bus.settle()
        assert [event.data for event in found] == [0, 1, 2]
        assert len(own) == 3
        assert subscription.stats.gaps == 0

    replayed(path, main)


def test_a_bus_beside_it_silences_its_recorded_source(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    make(path, [entry(seq, source=("feed", "gateway")[seq % 2]) for seq in range(1, 21)])

    async def main(bus: AsyncEventBus, replay: Replay) -> list[Event]:
        async with AsyncEventBus(replay.beside(), name="gateway"):
            return await seen(bus, replay)

    assert {event.source for event in replayed(path, main)} == {"feed"}


# What is wrong with the file.


def damage(path: Path, offset: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute('UPDATE events SET data = \'{"price":1}\' WHERE "offset" = ?', (offset,))
    connection.commit()
    connection.close()


def test_damage_is_raised_behind_the_last_event_that_is_whole_and_again(path: Path) -> None:
    damage(path, 21)

    async def main(bus: AsyncEventBus, replay: Replay) -> list[int]:
        found: list[int] = []
        await bus.subscribe("*", lambda event: found.append(event.seq))
        for _ in range(2):
            with pytest.raises(JournalCorrupt, match="21"):
                await replay.play()
        with pytest.raises(JournalCorrupt):
            replay.seek(30)
        await bus.settle()
        return found

    assert replayed(path, main) == [*range(1, 21)]


def test_damage_in_what_was_not_asked_for_is_raised_as_well(path: Path) -> None:
    damage(path, 21)  # it may have been what was asked for
    with pytest.raises(JournalCorrupt):
        replayed(path, seen, types="TRADE", key="KEY2")


def test_what_keep_has_removed_is_raised_unless_the_replay_begins_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "desk.db"
    with pytest.raises(JournalError, match="does not exist"):
        replayed(path, seen)
    with monkeypatch.context() as patches:
        now = [START]
        patches.setattr(retention, "STRETCH_EVENTS", 100)
        patches.setattr(clock, "machine", lambda: now[0])

        async def write() -> None:
            async with writing(path, keep=timedelta(days=1)) as ledger:
                for first in range(1, 250, 50):
                    await ledger.write(entries(50, first))
                now[0] += 86_401
                for seq in (251, 252, 253):
                    await ledger.write(entries(1, seq))

        asyncio.run(write())
    for start in (None, 200, START + 100 / 8):
        with pytest.raises(JournalRemoved):
            replayed(path, seen, start=start)
    assert replayed(path, seen, start=201)[0].seq == 201


def test_gaps_that_were_recorded_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "desk.db"
    gap = entry(3, {}, type="aiobus.gap", key="", source="recorder")
    make(path, [entry(1), gap, entry(9)])

    async def main(bus: AsyncEventBus, replay: Replay) -> int:
        assert await replay.play() == 2
        return replay.progress.gaps

    assert replayed(path, main, types="TRADE") == 1


# Where it runs.


async def test_on_a_real_loop_it_does_not_start_and_says_the_way_out(path: Path) -> None:
    with pytest.raises(BusError, match=r"run it by aiobus\.run_virtual\(main\)"):
        async with AsyncEventBus(Replay(path), name="strategy"):
            pass


def test_on_a_virtual_loop_that_refuses_nothing_it_does_not_start(path: Path) -> None:
    async def main() -> None:
        async with AsyncEventBus(Replay(path), name="strategy"):
            pass

    with (
        asyncio.Runner(loop_factory=VirtualLoop) as runner,
        pytest.raises(BusError, match="run it"),
    ):
        runner.run(main())


def test_two_replays_do_not_share_a_loop_nor_two_buses_a_replay(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> None:
        with pytest.raises(BusError, match="its loop has one clock"):
            await AsyncEventBus(Replay(path), name="other").start()
        with pytest.raises(BusError, match=r"a second bus takes replay\.beside\(\)"):
            await AsyncEventBus(replay, name="other").start()
        await replay.play()

    replayed(path, main)


def test_no_number_of_the_recording_is_used_again(path: Path) -> None:
    async def main(bus: AsyncEventBus, replay: Replay) -> int:
        await replay.play()
        return (await bus.publish(Event("SIGNAL", 1))).epoch

    # This recording has the epoch that a bus of the same name would have in virtual time.
    assert replayed(path, main, name="feed", sources="feed") != EPOCH
