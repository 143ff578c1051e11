"""`record(attach=)` runs a strategy, and leaves everything else as it was."""

import asyncio
import math
import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest
from replays import session, trades

from aiobus import AsyncEventBus, BusError, Event, Journal, record, verify
from aiobus.recorder import Recording
from aiobus.testing import Faults, MemoryNetwork, Message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "strategy.db"


async def echo(bus: AsyncEventBus) -> None:
    async def on_trade(trade: Event) -> None:
        await bus.publish(Event("SIGNAL", trade.data))

    await bus.subscribe("TRADE", on_trade)


async def test_what_is_attached_is_live_once_the_recording_is_entered(path: Path) -> None:
    async def endless(bus: AsyncEventBus) -> None:
        await echo(bus)
        async with bus.stream("QUOTE") as quotes:
            async for quote in quotes:
                await bus.publish(Event("MID", quote.data))

    async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=endless) as recording:
        assert [each.query for each in bus.stats().subscriptions][-2:] == ["TRADE", "QUOTE"]
        assert recording.attached is not None
        assert not recording.attached.done()


async def test_what_waits_by_itself_does_not_hold_up_the_recording(path: Path) -> None:
    async def sleeper(bus: AsyncEventBus) -> None:
        await echo(bus)
        await asyncio.Event().wait()

    async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=sleeper) as recording:
        assert recording.attached is not None
        assert not recording.attached.done()
        recording.attached.cancel()


async def test_an_error_of_the_set_up_is_raised_where_the_recording_is_entered(path: Path) -> None:
    async def broken(bus: AsyncEventBus) -> None:
        await echo(bus)
        raise LookupError("no symbol")

    async with AsyncEventBus(name="desk") as bus:
        with pytest.raises(LookupError, match="no symbol"):
            async with record(bus, path, attach=broken):
                pytest.fail("the body runs")
        assert asyncio.get_running_loop().get_task_factory() is None
        async with record(bus, path, attach=echo):  # the file and the bus are as before
            await trades(bus)
            await bus.settle()
    assert verify(path, echo)


async def test_a_later_error_fails_the_bus(path: Path) -> None:
    async def broken(bus: AsyncEventBus) -> None:
        async with bus.stream("TRADE") as stream:
            await anext(stream)
        raise LookupError("no symbol")

    with pytest.raises(LookupError, match="no symbol"):
        async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=broken):
            await trades(bus)
            await bus.wait_closed()


async def test_the_loop_is_as_before_when_the_recording_is_closed(path: Path) -> None:
    loop = asyncio.get_running_loop()

    def hooks() -> list[object]:
        names = "call_soon", "call_soon_threadsafe", "call_later", "call_at", "time"
        return [loop.get_task_factory(), *(getattr(loop, name) for name in names)]

    before = hooks()
    await session(path, echo, trades)
    assert hooks() == before


async def test_what_is_attached_runs_on_when_the_recording_is_closed(path: Path) -> None:
    async with AsyncEventBus(name="desk") as bus:
        async with record(bus, path, attach=echo):
            await trades(bus)
            await bus.settle()
        async with bus.stream("SIGNAL") as signals:
            await trades(bus, 1)
            assert (await anext(signals)).data == {"number": 1}
    assert verify(path, echo).agreed == 5


async def test_a_second_recording_with_attach_is_refused_on_the_same_loop(path: Path) -> None:
    async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=echo):
        with pytest.raises(BusError, match="task factory"):
            async with record(bus, path.with_name("other.db"), attach=echo):
                pytest.fail("the body runs")
        await trades(bus)
        await bus.settle()
    assert verify(path, echo)


async def test_the_tape_is_read_only_by_those_who_ask_for_it(path: Path) -> None:
    await session(path, echo, trades)
    with Journal(path) as journal:
        assert {event.source for _, event in journal} == {"desk"}
        tape = [event for _, event in journal.read(sources="tape desk")]
        assert {event.type for event in tape} == {"aiobus.tape"}
        assert tape[0].data["facts"]["strategy"] == "test_attach:echo"
        assert tape[-1].data["end"]
        lines = path.with_name("lines.jsonl")
        assert journal.export(lines) == 10
        assert "aiobus.tape" not in lines.read_text()


async def test_the_tape_of_code_that_ended_with_an_exception_is_there(path: Path) -> None:
    with pytest.raises(KeyError):
        async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=echo):
            await trades(bus)
            await bus.settle()
            raise KeyError
    assert verify(path, echo)


@pytest.mark.virtual
async def test_what_was_delivered_last_is_awaited_if_it_comes_later_to_the_recording(
    path: Path,
) -> None:
    def late(message: Message) -> float:
        return 0.5 if message.source == "feed" and message.data.startswith(b"*") else 0.0

    network = MemoryNetwork(faults=Faults(delay=late))
    bus = network.bus("strategy")
    attached = record(bus, path, attach=echo)
    async with network.bus("feed") as feed, bus, attached, bus.stream("SIGNAL") as signals:
        await feed.publish(Event("TRADE", {"number": 1}))
        await anext(signals)
        await asyncio.sleep(1)  # the recording has heard of the feed
        await feed.publish(Event("TRADE", {"number": 2}))
        await anext(signals)
    report = verify(path, echo)
    assert report, str(report)
    assert report.agreed == 2


async def test_a_full_disk_ends_the_tape_and_not_the_strategy(path: Path) -> None:
    async with AsyncEventBus(name="desk") as bus:
        async with record(bus, path, attach=echo) as recording:
            await trades(bus)
            await bus.settle()
            await recording.flush()
            store = recording._writer._store
            assert store is not None
            store.failed = "no space"
            async with bus.stream("SIGNAL") as signals:
                await trades(bus, 1)
                await anext(signals)
        assert recording.error is not None
    report = verify(path, echo)
    assert report.verdict == "INCONCLUSIVE", str(report)


async def test_the_tape_is_small(path: Path) -> None:
    """About 20 bytes an event, where an event itself has 150."""

    async def drive(bus: AsyncEventBus) -> None:
        for _ in range(100):
            await trades(bus, 50)
            await bus.settle()

    await session(path, echo, drive)
    connection = sqlite3.connect(path)
    where = "source IN (SELECT id FROM sources WHERE name = 'tape desk')"
    ((size,),) = connection.execute(f"SELECT sum(length(data)) FROM events WHERE {where}")
    connection.close()
    assert size < 10_000 * 25


@pytest.mark.parametrize("delay", [math.inf, 1e13])
async def test_a_delay_of_any_length_is_recorded_and_replays(path: Path, delay: float) -> None:
    """What does not fit into the tape raises nothing in the strategy, and takes no tape away."""

    async def sleeper(bus: AsyncEventBus) -> None:
        await echo(bus)
        tasks.append(asyncio.create_task(asyncio.sleep(delay)))
        tasks.append(asyncio.create_task(bus.wait_for("NEVER", timeout=delay)))
        loop = asyncio.get_running_loop()
        loop.call_at(delay, print)
        with pytest.raises(TypeError):
            loop.call_later("soon", print)  # type: ignore[arg-type]

    tasks: list[asyncio.Task[object]] = []
    async with AsyncEventBus(name="desk") as bus:
        async with record(bus, path, attach=sleeper):
            await trades(bus)
            await bus.settle()
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
    report = verify(path, sleeper)
    assert report, str(report)


async def test_a_tape_that_cannot_be_written_ends_the_recording_and_not_the_strategy(
    path: Path,
) -> None:
    async with AsyncEventBus(name="desk") as bus:
        seen: list[Event] = []
        await bus.subscribe("aiobus.error", seen.append)
        async with record(bus, path, attach=echo) as recording, bus.stream("SIGNAL") as signals:
            assert recording._tape is not None
            recording._tape._recorder.log.append(2**70)  # as no entry has it
            await recording._write_stretch()
            await trades(bus, 1)
            assert (await anext(signals)).data == {"number": 1}
        assert "tape cannot be written" in str(recording.error)
    assert [event.data["subscription"] for event in seen] == [f"record({path})"]
    assert not verify(path, echo)


async def test_nothing_is_kept_of_what_happens_after_the_recording(path: Path) -> None:
    heard: list[int] = []

    async def reader(bus: AsyncEventBus) -> None:
        stream = bus.stream("QUOTE")  # entered when the recording is over
        now = asyncio.get_running_loop().time

        async def read() -> None:
            async with bus.stream("TRADE") as trades:
                async for trade in trades:
                    heard.append(trade.data["number"] if now() else 0)
                    with suppress(BusError):
                        await anext(trades) if trade.data["number"] < 0 else None

        async def read_later() -> None:
            await over.wait()
            async with stream:
                await anext(stream)

        tasks.extend(asyncio.create_task(each) for each in (read(), read_later()))
        await asyncio.sleep(0)
        await bus.subscribe("TRADE", lambda trade: None)

    over, tasks = asyncio.Event(), []  # type: ignore[var-annotated]
    async with AsyncEventBus(name="desk") as bus:
        async with record(bus, path, types="OTHER", attach=reader) as recording:
            await trades(bus, 1)
            await bus.settle()
        assert recording._tape is not None
        recorder = recording._tape._recorder

        def size() -> int:
            kept = recorder._rows, recorder._outcomes, recorder._outputs, recorder._clocks
            return len(recorder._made) + sum(map(len, kept))

        before = size()
        over.set()
        await trades(bus, 50)
        async with bus.stream("QUOTE"):
            await bus.publish(Event("QUOTE", {}))
        await bus.settle()
        assert len(heard) == 51
        assert size() == before
        for task in tasks:
            task.cancel()


async def test_a_stretch_of_the_tape_waits_for_room_behind_the_events(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events come while it is compressed. One more than there is room for ends a recording."""
    monkeypatch.setattr("aiobus.journal.writer.QUEUE_EVENTS", 256)

    async def tenth(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            if trade.data["number"] % 10 == 0:
                await bus.publish(Event("SIGNAL", trade.data))

        await bus.subscribe("TRADE", on_trade)

    async def flush(recording: Recording) -> None:
        while True:
            await recording.flush(30)

    async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=tenth) as recording:
        flushing = asyncio.create_task(flush(recording))
        for number in range(60_000):
            await bus.publish(Event("TRADE", {"number": number}))
        await bus.settle(30)
        flushing.cancel()
        assert recording.error is None
