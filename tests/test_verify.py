"""A recorded session runs through the same code once more, and the first difference is named."""

import asyncio
import importlib
import os
import random
import re
import shutil
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import count as numbers
from pathlib import Path
from typing import Any

import pytest
from replays import desk, session, strategy, trades

from aiobus import (
    AsyncEventBus,
    BusError,
    Event,
    Journal,
    RequestTimeout,
    assert_replays,
    clock,
    record,
    verify,
)
from aiobus.bus import parts_of
from aiobus.options import SubscribeKeywords
from aiobus.replay.attach import Strategy

verification = importlib.import_module("aiobus.replay.verify")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "strategy.db"


async def echo(bus: AsyncEventBus) -> None:
    """Publishes what it is given."""

    async def on_trade(trade: Event) -> None:
        await bus.publish(Event("SIGNAL", trade.data, key=trade.key))

    await bus.subscribe("TRADE", on_trade)


async def test_a_session_agrees_with_the_code_that_was_recorded(path: Path) -> None:
    await session(path, echo, trades)
    report = verify(path, echo)
    assert report.verdict == "AGREES", str(report)
    assert (report.deliveries, report.agreed, report.ignored) == (5, 5, 0)
    assert report.outside == {"TRADE": 5}
    assert report.strands == 6  # the strategy, and five calls of its handler
    assert report.recordings == 1


async def test_the_code_runs_and_no_output_comes_from_the_file(path: Path) -> None:
    await session(path, echo, trades)
    ran = []

    async def marked(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            ran.append(trade.data["number"])
            await bus.publish(Event("SIGNAL", trade.data, key=trade.key))

        await bus.subscribe("TRADE", on_trade)

    assert verify(path, marked)
    assert ran == [1, 2, 3, 4, 5]


async def test_the_files_that_the_strategy_opens_for_writing_are_named(path: Path) -> None:
    log = path.with_suffix(".log")

    async def logs(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            with log.open("a") as file:
                file.write(f"{trade.id}\n")
            await bus.publish(Event("SIGNAL", trade.data, key=trade.key))

        await bus.subscribe("TRADE", on_trade)

    await session(path, logs, trades)
    report = verify(path, logs)
    assert report.verdict == "AGREES"
    assert report.written == (str(log),)
    assert f"opened for writing: {log}" in str(report)
    assert "opened for writing" not in str(verify(path, echo))


async def test_a_handler_that_does_nothing_diverges_at_its_first_output(path: Path) -> None:
    await session(path, echo, trades)

    async def idle(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            pass

        await bus.subscribe("TRADE", on_trade)

    report = verify(path, idle)
    assert report.verdict == "DIVERGES"
    assert (report.deliveries, report.agreed) == (1, 0)
    assert report.difference is not None
    assert report.difference.recorded.startswith("SIGNAL BTC desk@")
    assert "on_trade with TRADE desk@" in report.difference.text
    assert f"{__file__}:" in report.difference.where
    assert report.difference.causes[0].startswith("TRADE BTC desk@")


async def test_verify_runs_where_no_loop_runs(path: Path) -> None:
    await session(path, echo, trades)
    report = await asyncio.to_thread(verify, path, echo)
    assert report.verdict == "AGREES"


async def test_beside_a_live_bus_that_might_carry_an_order_nothing_is_verified(
    path: Path, folder: Path
) -> None:
    await session(path, echo, trades)
    async with AsyncEventBus(f"ipc://{folder}/d", name="strategy"):
        with pytest.raises(BusError, match=r"open: strategy on ipc://.*a process of its own"):
            verify(path, echo)
    assert verify(path, echo)


async def one_by_one(bus: AsyncEventBus) -> None:
    """Trades, each when the one before is handled. The recording has then had its turn, too."""
    for _ in range(20):
        await trades(bus, 1)
        await bus.settle()


# What cannot be compared is INCONCLUSIVE, and fails a test.


def undecided(path: Path, code: Strategy = echo, **options: Any) -> str:
    """The reason why nothing is said."""
    report = verify(path, code, **options)
    assert report.verdict == "INCONCLUSIVE", str(report)
    assert not report
    with pytest.raises(AssertionError, match="INCONCLUSIVE"):
        assert_replays(path, code, **options)
    return report.reason


def test_a_file_that_is_not_there_is_inconclusive(path: Path) -> None:
    assert "does not exist" in undecided(path)


async def test_a_recording_without_a_tape_is_inconclusive(path: Path) -> None:
    async with AsyncEventBus(name="desk") as bus, record(bus, path):
        await trades(bus)
    assert "has no tape" in undecided(path)


async def test_a_session_without_deliveries_is_inconclusive(path: Path) -> None:
    async def talker(bus: AsyncEventBus) -> None:
        await bus.publish(Event("HELLO", {"from": "me"}))

    await session(path, talker, trades)
    assert "nothing was delivered" in undecided(path, talker)


async def test_a_session_without_outputs_is_inconclusive(path: Path) -> None:
    async def listener(bus: AsyncEventBus) -> None:
        await bus.subscribe("TRADE", lambda trade: None)

    await session(path, listener, trades)
    assert "has published nothing" in undecided(path, listener)


@pytest.mark.parametrize("ignore", ["data", "data.*", "data.number"])
async def test_a_session_whose_data_is_ignored_is_inconclusive(path: Path, ignore: str) -> None:
    await session(path, echo, trades)
    assert "ignore=" in undecided(path, ignore=(ignore,))


def kept_now(path: Path) -> Path:
    """A copy of the file as a process that is killed now would leave it."""
    kept = path.with_name("kept.db")
    for suffix in ("", "-wal", ".mark"):
        shutil.copy(f"{path}{suffix}", f"{kept}{suffix}")
    return kept


async def killed(path: Path, count: int = 5) -> Path:
    """What is left of a recording that is killed after a flush."""
    async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=echo) as recording:
        await trades(bus, count)
        await bus.settle()
        await recording.flush()
        return kept_now(path)


async def test_a_recording_that_was_not_closed_is_inconclusive(path: Path) -> None:
    kept = await killed(path)
    reason = undecided(kept)
    assert "has no end" in reason
    assert "SIGTERM" in reason
    assert verify(kept, echo).agreed == 5  # what is there was compared


@pytest.mark.parametrize("count", [1, 2_000])
async def test_the_tape_of_what_was_flushed_is_in_the_file(path: Path, count: int) -> None:
    kept = await killed(path, count)
    assert "0 later events of desk are in the file" in undecided(kept)
    report = verify(kept, echo)
    assert (report.deliveries, report.agreed) == (count, count)


async def test_a_flush_in_a_flood_has_the_tape_of_all_that_was_published_before(path: Path) -> None:
    signals = 0

    async def counted(bus: AsyncEventBus) -> None:
        nonlocal signals
        signals = 0

        async def on_trade(trade: Event) -> None:
            nonlocal signals
            await bus.publish(Event("SIGNAL", trade.data, key=trade.key))
            signals += 1

        await bus.subscribe("TRADE", on_trade)

    async def flood(bus: AsyncEventBus) -> None:
        while True:
            await trades(bus, 20)
            await asyncio.sleep(0.001)

    async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=counted) as recording:
        flooding = asyncio.create_task(flood(bus))
        for _ in range(3):
            await bus.wait_for("SIGNAL")
            before = signals
            await asyncio.gather(*(recording.flush() for _ in range(3)))
        kept = kept_now(path)
        flooding.cancel()
    report = verify(kept, counted)
    assert report.reason.startswith("its tape has no end"), str(report)
    assert report.agreed >= before


async def test_events_behind_the_end_of_a_tape_that_was_cut_are_counted(path: Path) -> None:
    async with AsyncEventBus(name="desk") as bus:
        async with record(bus, path, attach=echo) as recording:
            await trades(bus, 2)
            await bus.settle()
            await recording.flush()
            kept = kept_now(path)
            await trades(bus, 3)
            await bus.settle()
        for subscription in list(parts_of(bus).subscriptions):
            await subscription.unsubscribe()
        async with record(bus, kept, attach=echo):  # it fetches the three, and their signals
            await trades(bus, 4)
            await bus.settle()
    assert verify(kept, echo).agreed == 4
    report = verify(kept, echo, recording=0)
    assert (report.verdict, report.agreed) == ("INCONCLUSIVE", 2)
    told = r"It ends at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    assert re.search(f"{told}, and 6 later events of desk are in the file", report.reason)


async def test_a_recording_that_is_still_written_is_told_from_one_that_was_killed(
    path: Path,
) -> None:
    async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=echo) as recording:
        await trades(bus)
        await bus.settle()
        await recording.flush()
        assert f"is still written, by process {os.getpid()} since" in undecided(path)


async def test_a_difference_before_a_missing_end_is_a_difference(path: Path) -> None:
    kept = await killed(path)

    async def other(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("SIGNAL", {"number": 0}, key=trade.key))

        await bus.subscribe("TRADE", on_trade)

    assert verify(kept, other).verdict == "DIVERGES"


async def in_stretches(path: Path) -> None:
    """A recording whose tape has a stretch for each trade."""
    async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=echo) as recording:
        for _ in range(5):
            await trades(bus, 1)
            await bus.settle()
            await recording.flush()


OF_THE_TAPE = "source = (SELECT id FROM sources WHERE name LIKE 'tape %')"


@pytest.fixture
def take_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Deletes events of the recording by an SQL condition."""

    def delete(condition: str) -> None:
        monkeypatch.setattr(Journal, "verify", lambda self: 0)  # it would find the damage by itself
        with sqlite3.connect(path) as connection:
            connection.execute(f"DELETE FROM events WHERE {condition}")
        connection.close()

    return delete


async def test_a_tape_with_a_hole_is_inconclusive(
    path: Path, take_out: Callable[[str], None]
) -> None:
    await in_stretches(path)
    take_out(f"{OF_THE_TAPE} AND seq = 3")
    assert "has a hole: stretch 3" in undecided(path)


async def test_a_tape_whose_beginning_is_not_there_is_inconclusive(
    path: Path, take_out: Callable[[str], None]
) -> None:
    await in_stretches(path)
    take_out(f"{OF_THE_TAPE} AND seq < 3")
    reason = undecided(path)
    assert "the beginning of its tape is not in the file" in reason
    assert "keep=" not in reason


async def test_a_tape_whose_beginning_was_removed_by_keep_is_inconclusive(path: Path) -> None:
    options: dict[str, Any] = {"attach": echo, "keep": 8 * 2**20}
    async with AsyncEventBus(name="desk") as bus, record(bus, path, **options) as recording:
        await trades(bus, 1)
        await bus.settle()
        await recording.flush()
        for _ in range(12):  # MiB
            for _ in range(16):
                await bus.publish(Event("BOOK", "x" * 2**16))
            await bus.settle()
            await recording.flush()
        await trades(bus, 1)
        await bus.settle()
    assert "the beginning of its tape was removed by keep=" in undecided(path)


async def test_an_event_that_the_recording_has_lost_is_inconclusive_and_named(
    path: Path, take_out: Callable[[str], None]
) -> None:
    await session(path, echo, one_by_one)
    take_out("seq = 7 AND data LIKE '%number%'")
    assert re.search(r"desk@\w+\.7 was delivered and is not in the file", undecided(path))


async def test_a_damaged_tape_never_agrees(path: Path) -> None:
    await session(path, echo, trades)
    with sqlite3.connect(path) as connection:
        ((seq, data), *_) = connection.execute(
            f"SELECT seq, data FROM events WHERE {OF_THE_TAPE} ORDER BY length(data)"
        ).fetchall()
        chance = random.Random(1)
        for _ in range(20):
            place = chance.randrange(len(data))
            spoilt = f"{data[:place]}{chr(ord(data[place]) ^ 1)}{data[place + 1 :]}"
            connection.execute(
                f"UPDATE events SET data = ? WHERE {OF_THE_TAPE} AND seq = ?", (spoilt, seq)
            )
            connection.commit()
            assert "is damaged" in undecided(path)
    connection.close()


async def test_a_call_that_leaves_the_process_is_inconclusive_though_it_was_caught(
    path: Path,
) -> None:
    calls = []

    async def sender(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            with suppress(Exception), socket.socket() as other:
                other.connect(("127.0.0.1", 9))
                calls.append(trade.id)
            await bus.publish(Event("SIGNAL", trade.data))

        await bus.subscribe("TRADE", on_trade)

    await session(path, sender, trades)
    calls.clear()
    assert "socket.connect" in undecided(path, sender)
    assert calls == []


async def test_a_thread_is_refused_and_named(path: Path) -> None:
    async def thinker(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            number = await asyncio.to_thread(lambda: trade.data["number"])
            await bus.publish(Event("SIGNAL", {"number": number}))

        await bus.subscribe("TRADE", on_trade)

    await session(path, thinker, trades)
    reason = undecided(path, thinker)
    assert "loop.run_in_executor() at " in reason
    assert f"on_trade ({__file__}:" in reason
    assert "a bus of its own" in reason
    assert "MemoryNetwork" not in reason


async def test_a_refused_caller_is_let_through_as_verify_is_called(path: Path) -> None:
    def work() -> None:
        thread = threading.Thread(target=print)
        thread.start()
        thread.join()

    async def thinker(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            work()
            await bus.publish(Event("SIGNAL", trade.data))

        await bus.subscribe("TRADE", on_trade)

    await session(path, thinker, trades)
    reason = undecided(path, thinker)
    assert "Thread.start() at " in reason
    assert f"work ({__file__}:{work.__code__.co_firstlineno + 2})" in reason
    assert "run_virtual" not in reason
    (caller,) = re.findall(r"--allow (\S+)", reason)
    assert verify(path, thinker, allow=(caller,))


async def test_code_that_waits_for_what_is_not_attached_is_inconclusive_and_named(
    path: Path,
) -> None:
    queues: list[asyncio.Queue[int]] = []

    async def waiter(bus: AsyncEventBus) -> None:
        queues.append(asyncio.Queue())
        await bus.publish(Event("SIGNAL", {"number": await queues[-1].get()}))

    async def drive(bus: AsyncEventBus) -> None:
        async with bus.stream("SIGNAL") as signals:
            await queues[0].put(1)
            await anext(signals)

    await session(path, waiter, drive)
    reason = undecided(path, waiter)
    assert "not attached" in reason
    assert f"{__file__}:" in reason


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"ignore": "data.id"}, TypeError, "tuple of paths"),
        ({"ignore": ("id",)}, ValueError, "begins with one of"),
        ({"ignore": ("key.x",)}, ValueError, "begins with one of"),
        ({"allow": "x"}, TypeError, "allow="),
        ({"recording": 1}, ValueError, "the file has 1"),
    ],
)
async def test_wrong_arguments_raise(
    path: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    await session(path, echo, trades)
    with pytest.raises(error, match=says):
        verify(path, echo, **options)


async def test_what_is_no_function_cannot_be_attached_or_verified(path: Path) -> None:
    async with AsyncEventBus() as bus:
        with pytest.raises(TypeError, match="attach="):
            record(bus, path, attach=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="strategy="):
        verify(path, 5)  # type: ignore[arg-type]


class Bot:
    """A strategy with state."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.count = 0

    async def run(self, bus: AsyncEventBus) -> None:
        """What is attached."""

        async def on_trade(trade: Event) -> None:
            self.count += 1
            await bus.publish(Event(f"{self.prefix}SIGNAL", {"count": self.count}))

        await bus.subscribe("TRADE", on_trade)


async def needy(bus: AsyncEventBus, symbol: str) -> None:
    """Needs one argument more."""


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (Bot, "is a class: give a method of an instance, such as Bot().run"),
        (needy, "with the bus alone, and there is missing a required argument: 'symbol'"),
        (lambda: None, "with the bus alone, and there is too many positional arguments"),
    ],
)
async def test_what_cannot_be_called_with_the_bus_alone_is_refused_at_once(
    path: Path, code: Any, says: str
) -> None:
    async with AsyncEventBus() as bus:
        with pytest.raises(TypeError, match=re.escape(says)):
            record(bus, path, attach=code)
    with pytest.raises(TypeError, match=re.escape(says)):
        verify(path, code)


async def test_code_that_is_no_coroutine_function_is_told_as_it_is_recorded(path: Path) -> None:
    async with AsyncEventBus() as bus:
        with pytest.raises(TypeError, match=r"returned \[\]"):
            async with record(bus, path, attach=lambda bus: []):  # type: ignore[arg-type,return-value]
                pytest.fail("the body runs")


async def test_an_object_that_has_run_before_is_a_suspect(path: Path) -> None:
    used = Bot()
    await session(path, used.run, trades)
    assert verify(path, Bot().run)
    report = verify(path, used.run)
    assert report.verdict == "DIVERGES"
    assert "this object has run before in this process" in str(report)
    assert "run before" not in str(verify(path, Bot("OTHER_").run))


# What is ignored, and what is outside.


async def test_what_is_ignored_is_counted_and_handed_on_as_it_is_now(path: Path) -> None:
    """A strategy that finds its own ids again."""
    open_orders: set[str] = set()

    async def trader(bus: AsyncEventBus) -> None:
        open_orders.clear()

        async def on_trade(trade: Event) -> None:
            client_id = str(uuid.uuid4())
            open_orders.add(client_id)
            data = {"number": trade.data["number"], "client_id": client_id}
            await bus.publish(Event("ORDER", data))

        async def on_order(order: Event) -> None:
            open_orders.remove(order.data["client_id"])
            await bus.publish(Event("DONE", {"open": len(open_orders)}))

        await bus.subscribe("TRADE", on_trade)
        await bus.subscribe("ORDER", on_order)

    await session(path, trader, trades)
    report = verify(path, trader, ignore=("data.client_id",))
    assert report, str(report)
    assert (report.agreed, report.ignored) == (10, 5)
    differs = verify(path, trader)
    assert differs.difference is not None
    assert differs.difference.fields == ("data.client_id",)
    assert "looks like a uuid" in differs.difference.suspects[0]


async def test_outputs_of_code_that_is_not_attached_are_counted_by_type(path: Path) -> None:
    async def drive(bus: AsyncEventBus) -> None:
        for number in range(3):
            await trades(bus, 1)
            await bus.publish(Event("OTHER", {"number": number}))

    await session(path, echo, drive)
    report = verify(path, echo)
    assert report.outside == {"TRADE": 3, "OTHER": 3}
    assert "6 events of code that was not attached (3 OTHER, 3 TRADE)" in str(report)


def test_each_keyword_that_decides_what_is_handed_over_is_tried() -> None:
    assert {*CHANGED, "misfit", "name"} == {*SubscribeKeywords.__annotations__}


CHANGED: dict[str, Any] = {
    "overflow": "latest",
    "maxsize": 7,
    "concurrency": 2,
    "max_age": 5.0,
    "since": "last",
    "after": {"feed@hom2w47ro2.37", "news@hom2w47ro2.5"},
    "timeout": 2.0,
    "where": lambda trade: True,
    "key": "BTC",
}


@pytest.mark.parametrize("name", CHANGED)
async def test_another_subscription_diverges(path: Path, name: str) -> None:
    """Which events come is taken from the tape, so the options that decide that are compared."""
    await session(path, echo, trades)

    async def other(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("SIGNAL", trade.data, key=trade.key))

        options: SubscribeKeywords = {name: CHANGED[name]}  # type: ignore[misc]
        await bus.subscribe("TRADE", on_trade, **options)

    report = verify(path, other)
    assert report.verdict == "DIVERGES", str(report)
    assert report.difference is not None
    assert "another subscription" in report.difference.text
    assert (name if name != "key" else "TRADE/BTC") in report.difference.replayed


Change = Callable[[AsyncEventBus, bool], Awaitable[None]]
CHANGES: dict[str, Change] = {}


def change(change: Change) -> Change:
    """Code whose outputs are the same, though a parameter of it was changed."""
    CHANGES[change.__name__] = change
    return change


@change
async def a_longer_sleep(bus: AsyncEventBus, changed: bool) -> None:
    await asyncio.sleep(0.002 if changed else 0.001)


@change
async def a_longer_timeout_of_a_request(bus: AsyncEventBus, changed: bool) -> None:
    with suppress(RequestTimeout):
        await bus.request(Event("ASK", {}), "ANSWER", timeout=0.003 if changed else 0.002)


@change
async def a_longer_timeout_of_a_cancelled_request(bus: AsyncEventBus, changed: bool) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(0.001):
            await bus.request(Event("ASK", {}), "ANSWER", timeout=60 if changed else 30)


@change
async def other_replies_to_a_request(bus: AsyncEventBus, changed: bool) -> None:
    with suppress(RequestTimeout):
        await bus.request(Event("ASK", {}), "FILL" if changed else "ACK", timeout=0.002)


@change
async def a_shorter_timeout_of_flush(bus: AsyncEventBus, changed: bool) -> None:
    await bus.flush(0.001 if changed else 5)


@change
async def a_shorter_timeout_of_settle(bus: AsyncEventBus, changed: bool) -> None:
    with suppress(BusError):
        await bus.settle(0.001 if changed else 5)


@change
async def a_longer_asyncio_timeout(bus: AsyncEventBus, changed: bool) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(3600 if changed else 0.001):
            await asyncio.Event().wait()


@change
async def a_timeout_that_is_moved_further(bus: AsyncEventBus, changed: bool) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(3600) as limit:
            limit.reschedule(asyncio.get_running_loop().time() + (60 if changed else 0.001))
            await asyncio.Event().wait()


@change
async def a_longer_timeout_that_does_not_strike(bus: AsyncEventBus, changed: bool) -> None:
    async with asyncio.timeout(3600 if changed else 60):
        await asyncio.sleep(0)


@change
async def a_longer_asyncio_wait_for(bus: AsyncEventBus, changed: bool) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 3600 if changed else 0.001)


@change
async def a_longer_asyncio_wait(bus: AsyncEventBus, changed: bool) -> None:
    await asyncio.wait([asyncio.create_task(asyncio.sleep(0))], timeout=3600 if changed else 1)


@change
async def a_longer_wait_for(bus: AsyncEventBus, changed: bool) -> None:
    with suppress(TimeoutError):
        await bus.wait_for("NEVER", timeout=60 if changed else 0.001)


@change
async def a_later_call(bus: AsyncEventBus, changed: bool) -> None:
    asyncio.get_running_loop().call_later(3600 if changed else 60, print)


@change
async def a_call_at_a_later_time(bus: AsyncEventBus, changed: bool) -> None:
    loop = asyncio.get_running_loop()
    loop.call_at(loop.time() + (3600 if changed else 0.001), int)


@change
async def a_call_at_a_time_in_place_of_a_delay(bus: AsyncEventBus, changed: bool) -> None:
    loop = asyncio.get_running_loop()
    time = loop.time()
    loop.call_at(time, int) if changed else loop.call_later(time, int)


@change
async def another_clock(bus: AsyncEventBus, changed: bool) -> None:
    clock.time() if changed else asyncio.get_running_loop().time()


@change
async def a_task_more(bus: AsyncEventBus, changed: bool) -> None:
    if changed:
        await asyncio.create_task(asyncio.sleep(0))


@change
async def a_task_that_has_not_run(bus: AsyncEventBus, changed: bool) -> None:
    if changed:
        asyncio.get_running_loop().call_later(100, print)


@change
async def a_subscription_that_does_not_end(bus: AsyncEventBus, changed: bool) -> None:
    subscription = await bus.subscribe("HELLO", print)
    if not changed:
        await subscription.unsubscribe()


@change
async def a_wait_more(bus: AsyncEventBus, changed: bool) -> None:
    if changed:
        await asyncio.sleep(0)


async def waits_for(wake: asyncio.Event) -> None:
    while True:
        await wake.wait()
        wake.clear()


@change
async def a_wake_more(bus: AsyncEventBus, changed: bool) -> None:
    wake = asyncio.Event()
    task = asyncio.create_task(waits_for(wake))
    await asyncio.sleep(0)
    if changed:
        wake.set()
    task.cancel()


@change
async def a_wake_less(bus: AsyncEventBus, changed: bool) -> None:
    await a_wake_more(bus, not changed)


@change
async def a_timer_that_is_not_cancelled(bus: AsyncEventBus, changed: bool) -> None:
    timer = asyncio.get_running_loop().call_later(0.001, int)
    if not changed:
        timer.cancel()


@change
async def a_task_that_is_not_cancelled(bus: AsyncEventBus, changed: bool) -> None:
    task = asyncio.create_task(waits_for(asyncio.Event()))
    await asyncio.sleep(0)
    if not changed:
        task.cancel()
    await asyncio.sleep(0)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_change_that_no_output_shows_diverges(path: Path, change: Change) -> None:
    """When code goes on is on the tape, so outputs are the same whatever it waits for."""

    async def strategy(bus: AsyncEventBus, changed: bool) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("SIGNAL", trade.data, key=trade.key))
            await change(bus, changed)

        await bus.subscribe("ASK", lambda ask: None)
        await bus.subscribe("TRADE", on_trade)

    await session(path, partial(strategy, changed=False), partial(trades, count=1))
    assert verify(path, partial(strategy, changed=False))
    report = verify(path, partial(strategy, changed=True))
    assert report.verdict == "DIVERGES", str(report)


async def test_another_timeout_of_close_diverges_and_is_named(path: Path) -> None:
    async def closing(bus: AsyncEventBus, timeout: float) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("SIGNAL", trade.data))
            await bus.close(timeout)

        await bus.subscribe("TRADE", on_trade)

    bus = AsyncEventBus(name="desk")
    async with bus, record(bus, path, attach=partial(closing, timeout=2)):
        await trades(bus, 1)
        await bus.wait_closed()
    assert verify(path, partial(closing, timeout=2.0))
    difference = verify(path, partial(closing, timeout=0.5)).difference
    assert difference is not None
    assert "calls close with other arguments" in difference.text
    assert difference.recorded == "with timeout=2"
    assert difference.replayed == "with timeout=0.5"


async def test_other_replies_to_a_request_are_named(path: Path) -> None:
    async def asking(bus: AsyncEventBus, replies: str | tuple[str, ...]) -> None:
        async def on_trade(trade: Event) -> None:
            with suppress(RequestTimeout):
                await bus.request(Event("ORDER", {}), replies, timeout=0.001)

        await bus.subscribe("ORDER", lambda order: None)
        await bus.subscribe("TRADE", on_trade)

    await session(path, partial(asking, replies=("ACK", "REJECT")), trades)
    assert verify(path, partial(asking, replies=("REJECT", "ACK")))
    difference = verify(path, partial(asking, replies="FILL")).difference
    assert difference is not None
    assert difference.recorded == "for ACK REJECT with timeout=0.001"
    assert difference.replayed == "for FILL with timeout=0.001"


async def test_a_clock_that_is_read_now_is_named_at_the_next_call(path: Path) -> None:
    """What is called next is what was: without that, the report would say the same twice."""

    async def reading(bus: AsyncEventBus, reads: bool) -> None:
        if reads:
            asyncio.get_running_loop().time()
        await echo(bus)

    await session(path, partial(reading, reads=False), trades)
    difference = verify(path, partial(reading, reads=True)).difference
    assert difference is not None
    assert "subscribes, after it has read the clock" in difference.text
    assert difference.recorded.endswith("subscribes")


async def test_a_delay_that_hangs_on_another_clock_diverges_and_says_so(path: Path) -> None:
    async def sleeper(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("SIGNAL", trade.data))
            await asyncio.sleep(next(delays))

        await bus.subscribe("TRADE", on_trade)

    delays = (0.001 + number * 0.000_013 for number in numbers())  # as of time.monotonic()
    await session(path, sleeper, trades)
    report = verify(path, sleeper)
    assert report.difference is not None, str(report)
    assert "another timer" in report.difference.text
    assert "loop.time()" in report.difference.suspects[0]


async def test_a_parameter_of_a_timeout_is_named_and_no_clock_is_suspected(path: Path) -> None:
    async def sleeper(bus: AsyncEventBus, stale: float) -> None:
        async def on_trade(trade: Event) -> None:
            now = asyncio.get_running_loop().time()
            time.sleep(0.002)  # noqa: ASYNC251 - the clock goes on between reading it and a timer
            async with asyncio.timeout_at(now + stale):
                await bus.publish(Event("SIGNAL", trade.data))

        await bus.subscribe("TRADE", on_trade)

    await session(path, partial(sleeper, stale=5.0), trades)
    assert verify(path, partial(sleeper, stale=5.0))
    report = verify(path, partial(sleeper, stale=30.0))
    assert report.difference is not None, str(report)
    assert report.difference.recorded == "about 5 s"
    assert report.difference.replayed == "about 30 s"
    assert report.difference.suspects == ()
    assert f"{__file__}:" in report.difference.where


async def test_a_where_that_selects_less_diverges_at_the_first_event(path: Path) -> None:
    least = 2

    async def large(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("SIGNAL", trade.data, key=trade.key))

        await bus.subscribe("TRADE", on_trade, where=lambda trade: trade.data["number"] >= least)

    await session(path, large, trades)
    assert verify(path, large).deliveries == 4
    least = 4
    report = verify(path, large)
    assert report.verdict == "DIVERGES", str(report)
    assert "`where` does not select TRADE desk@" in str(report)
    assert report.agreed == 0


async def test_equal_decisions_have_an_equal_fingerprint(path: Path) -> None:
    await session(path, echo, trades)
    prints = [verify(path, echo).fingerprint for _ in range(2)]
    assert prints[0] == prints[1] != ""
    assert re.fullmatch(r"[0-9a-f]{12}", prints[0])
    assert verify(path, echo, ignore=("key",)).fingerprint != prints[0]


async def test_the_last_of_several_recordings_is_verified_and_any_other_by_its_place(
    path: Path,
) -> None:
    async def drive(bus: AsyncEventBus, count: int) -> None:
        await trades(bus, count)

    for count in (2, 3, 4):
        await session(path, echo, partial(drive, count=count))
    found = [verify(path, echo, recording=place) for place in (-1, 0, 1)]
    assert [each.agreed for each in found] == [4, 2, 3]
    assert all(found)
    assert found[0].recordings == 3


async def test_a_report_says_which_of_several_recordings_it_is_about(path: Path) -> None:
    await session(path, echo, trades)
    assert "recording" not in str(verify(path, echo))
    await session(path, echo, trades)
    last, first = str(verify(path, echo)), str(verify(path, echo, recording=0))
    assert "recording 1 of 0..1 (the last); recording 0 was not compared" in last
    assert "--recording 0, recording=0" in last
    assert "recording 0 of 0..1; recording 1 was not compared" in first
    await session(path, echo, trades)
    assert "recordings 0, 1 were not compared" in str(verify(path, echo))


async def test_events_of_attached_code_behind_the_difference_are_not_taken_for_others(
    path: Path,
) -> None:
    """Nor are those of a recording before it in the file."""
    is_changed = False

    async def fifth(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            number = trade.data["number"]
            if number % 5 == 0:
                changed = is_changed and number == 20
                await bus.publish(Event("ORDER", {"number": number + changed}))

        await bus.subscribe("TRADE", on_trade)

    await session(path, fifth, partial(trades, count=7))
    await session(path, fifth, partial(trades, count=60))
    assert verify(path, fifth).outside == {"TRADE": 60}
    is_changed = True
    report = verify(path, fifth)
    assert (report.verdict, report.agreed) == ("DIVERGES", 3)
    assert [*report.outside] == ["TRADE"]
    assert report.outside["TRADE"] <= 60


async def test_two_recordings_of_one_start_are_two(path: Path) -> None:
    async with AsyncEventBus(name="desk") as bus:
        for count in (2, 3):
            async with record(bus, path, attach=echo) as recording:
                assert recording.attached is not None
                await trades(bus, count)
                await bus.settle()
            for subscription in list(parts_of(bus).subscriptions):
                await subscription.unsubscribe()
    assert [verify(path, echo, recording=place).agreed for place in (0, 1)] == [2, 3]


async def test_recordings_are_in_the_order_of_time_though_their_buses_take_turns(
    path: Path,
) -> None:
    def saying(text: str) -> Strategy:
        async def strategy(bus: AsyncEventBus) -> None:
            await bus.subscribe("TRADE", lambda _: bus.publish_nowait(Event("SAID", text)))

        return strategy

    turns = ["a1", "b2", "a3", "a4", "b5"]
    async with AsyncEventBus(name="a") as a, AsyncEventBus(name="b") as b:
        for text in turns:
            bus = a if text[0] == "a" else b
            async with record(bus, path, attach=saying(text)):
                await trades(bus, 2)
                await bus.settle()
            for subscription in list(parts_of(bus).subscriptions):
                await subscription.unsubscribe()
    for place, text in enumerate(turns):
        assert verify(path, saying(text), recording=place)
        assert verify(path, saying(text), recording=place - len(turns))
    assert verify(path, saying("b5"))


# Where it runs.


async def test_the_random_numbers_of_the_session_come_again_and_those_of_the_caller_go_on(
    path: Path,
) -> None:
    async def gambler(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("SIGNAL", {"chance": random.random()}))

        await bus.subscribe("TRADE", on_trade)

    await session(path, gambler, trades)
    random.seed(1)
    expected = random.random()
    random.seed(1)
    assert verify(path, gambler)
    assert random.random() == expected


async def test_a_strategy_that_ignores_that_it_is_cancelled_does_not_hold_up_the_report(
    path: Path,
) -> None:
    is_live = True

    async def stubborn(bus: AsyncEventBus) -> None:
        await echo(bus)
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if is_live:
                    raise

    async with AsyncEventBus(name="desk") as bus:
        async with record(bus, path, attach=stubborn) as recording:
            await trades(bus)
            await bus.settle()
        assert recording.attached is not None
        recording.attached.cancel()
    is_live = False
    assert verify(path, stubborn)


async def test_what_the_bus_logs_meanwhile_is_in_the_report_alone(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("SIGNAL", trade.data))
            raise ValueError("on purpose")

        await bus.subscribe("TRADE", on_trade)

    await session(path, failing, trades)
    caplog.clear()
    report = verify(path, failing)
    assert report, str(report)
    assert "failed on TRADE" in report.log[0]
    assert caplog.records == []


async def test_a_desk_agrees_on_each_transport(path: Path, url: str) -> None:
    await desk(url, path, 150)
    report = verify(path, strategy)
    assert report, str(report)
    assert report.agreed > 50


async def lock_stepped(bus: AsyncEventBus, threshold: int) -> None:
    """A worker that a handler wakes, and which reads what is true then."""
    wake, newest = asyncio.Event(), 0

    async def work() -> None:
        while True:
            await wake.wait()
            wake.clear()
            await bus.publish(Event("ORDER", {"number": newest}))

    async def on_trade(trade: Event) -> None:
        nonlocal newest
        newest = trade.data["number"]
        if newest > threshold:
            wake.set()

    tasks.add(asyncio.create_task(work()))
    await bus.subscribe("TRADE", on_trade)


tasks: set[asyncio.Task[None]] = set()


@pytest.mark.parametrize("threshold", [1, 5])
async def test_a_worker_that_is_woken_more_or_less_often_diverges(
    path: Path, threshold: int
) -> None:
    async def drive(bus: AsyncEventBus) -> None:
        for number in range(1, 9):
            await bus.publish(Event("TRADE", {"number": number}))
            await bus.settle()
            await asyncio.sleep(0.001)

    await session(path, partial(lock_stepped, threshold=3), drive)
    assert verify(path, partial(lock_stepped, threshold=3))
    report = verify(path, partial(lock_stepped, threshold=threshold))
    assert report.verdict == "DIVERGES", str(report)
    for task in tasks:
        task.cancel()
    tasks.clear()


@pytest.mark.parametrize("ends", ["wait_for", "stream", "unsubscribe"])
async def test_the_last_subscription_to_a_type_may_end_on_each_transport(
    path: Path, url: str, ends: str
) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        for _ in range(3):
            trade = await one(bus)
            await bus.publish(Event("SIGNAL", trade.data))

    async def one(bus: AsyncEventBus) -> Event:
        if ends == "wait_for":
            return await bus.wait_for("TRADE")
        if ends == "stream":
            async with bus.stream("TRADE") as trades:
                return await anext(trades)
        found: asyncio.Queue[Event] = asyncio.Queue()
        subscription = await bus.subscribe("TRADE", found.put_nowait)
        trade = await found.get()
        await subscription.unsubscribe()
        return trade

    async with AsyncEventBus(url, name="strategy") as bus, asyncio.timeout(20):
        feed = bus if url.startswith("inproc") else AsyncEventBus(url, name="feed")
        if feed is not bus:
            await feed.start()
        async with record(bus, path, attach=strategy) as recording:
            assert recording.attached is not None
            while not recording.attached.done():
                await feed.publish(Event("TRADE", {"price": 1.5}))
                await asyncio.sleep(0.001)
        if feed is not bus:
            await feed.close()
    report = verify(path, strategy)
    assert report, str(report)


async def test_events_and_stretches_of_the_tape_are_read_as_they_are_needed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "PAGE", 8)
    monkeypatch.setattr(verification, "MOST_PAGES", 2)
    rows: list[int] = []
    read = verification._Pages.row

    def counted(self: Any, source: str, epoch: int, seq: int) -> bytes | None:
        row = read(self, source, epoch, seq)
        rows.append(sum(map(len, self._pages.values())))
        return row

    monkeypatch.setattr(verification._Pages, "row", counted)
    await session(path, echo, partial(trades, count=300))
    report = verify(path, echo)
    assert report, str(report)
    assert report.agreed == 300
    assert max(rows) <= 16


def test_two_threads_record_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.db" for number in range(2)]
    barrier = threading.Barrier(2)

    async def drive(bus: AsyncEventBus) -> None:
        barrier.wait()
        await one_by_one(bus)

    threads = [
        threading.Thread(target=lambda path=path: asyncio.run(session(path, echo, drive)))
        for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for path in paths:
        report = verify(path, echo)
        assert report, str(report)
        assert report.agreed == 20
