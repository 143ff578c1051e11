"""What happens within one turn of the loop, in an order that no clock tells, replays as it was."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from replays import session, trades

from aiobus import AsyncEventBus, Event, record, verify

Work = Callable[[AsyncEventBus], Awaitable[object]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "strategy.db"


def hold_the_loop() -> None:
    """Until all that is due in a millisecond or two is due in the next turn."""
    time.sleep(0.005)  # as on a machine that is busy


async def agrees(path: Path, work: Work) -> None:
    """Let a handler do this work with each trade, and replay it."""

    async def strategy(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            said = await work(bus)
            await bus.publish(Event("SAID", {"said": said}))

        await bus.subscribe("TRADE", on_trade)

    async def drive(bus: AsyncEventBus) -> None:
        async def never(ask: Event) -> None:
            pass

        await bus.subscribe("ASK", never)
        await trades(bus, 3)
        await bus.settle()
        await asyncio.sleep(0.005)

    await session(path, strategy, drive)
    report = verify(path, strategy)
    assert report, str(report)
    assert report.agreed >= 3


async def test_two_timeouts_that_have_both_struck_before_the_task_goes_on(path: Path) -> None:
    async def work(bus: AsyncEventBus) -> str:
        said = "neither"
        with suppress(TimeoutError):
            async with asyncio.timeout(0.002):
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.001):
                        hold_the_loop()
                        await asyncio.Event().wait()
                said = "inner"
                await asyncio.Event().wait()
        return said

    await agrees(path, work)


async def test_two_timeouts_of_which_one_has_struck_before_the_task_goes_on(path: Path) -> None:
    async def work(bus: AsyncEventBus) -> str:
        said = "neither"
        with suppress(TimeoutError):
            async with asyncio.timeout(0.02) as outer:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.001):
                        await asyncio.Event().wait()
                said = "inner"
                outer.reschedule(asyncio.get_running_loop().time() + 0.001)
                await asyncio.Event().wait()
        return said

    await agrees(path, work)


async def test_a_timeout_that_is_due_as_it_is_entered_and_a_task_that_is_ready(path: Path) -> None:
    async def work(bus: AsyncEventBus) -> str:
        event = asyncio.Event()

        async def sets() -> None:
            event.set()
            await bus.publish(Event("SET", {}))

        task = asyncio.create_task(sets())
        try:
            async with asyncio.timeout(0):
                await event.wait()
            return "in time"
        except TimeoutError:
            return "late"
        finally:
            await task

    await agrees(path, work)


async def test_a_timeout_that_strikes_as_what_it_shields_has_just_ended(path: Path) -> None:
    async def work(bus: AsyncEventBus) -> str:
        async def shielded() -> None:
            hold_the_loop()
            await asyncio.sleep(0)  # it goes on, and the timeout is due, in the next turn

        try:
            async with asyncio.timeout(0.001):
                await asyncio.shield(shielded())
            return "in time"
        except TimeoutError:
            return "late"

    await agrees(path, work)


async def test_a_task_that_ends_as_the_timeout_of_asyncio_wait_is_over(path: Path) -> None:
    async def work(bus: AsyncEventBus) -> bool:
        event = asyncio.Event()
        task = asyncio.create_task(event.wait())

        async def sets() -> None:
            await asyncio.sleep(0)  # `asyncio.wait` has begun
            hold_the_loop()
            event.set()  # the task ends in the turn in which the timeout is over

        setter = asyncio.create_task(sets())
        done, _ = await asyncio.wait([task], timeout=0.001)
        await setter
        return task in done

    await agrees(path, work)


async def test_bus_calls_that_are_cancelled_by_a_task(path: Path) -> None:
    async def work(bus: AsyncEventBus) -> list[bool]:
        tasks = [
            asyncio.create_task(bus.request(Event("ASK", {}), "ANSWER", timeout=60.0)),
            asyncio.create_task(bus.request(Event("ASK", {}), ("ANSWER", "OTHER"))),
            asyncio.create_task(bus.wait_for("NEVER", timeout=60.0)),
            asyncio.create_task(bus.wait_closed()),
        ]
        for waits in (0.0, 0.002):
            await asyncio.sleep(waits)
            tasks.pop(0).cancel()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return [task.cancelled() for task in tasks]

    await agrees(path, work)


async def test_a_request_that_is_cancelled_by_asyncio_timeout(path: Path) -> None:
    async def work(bus: AsyncEventBus) -> str:
        try:
            async with asyncio.timeout(0.002):
                await bus.request(Event("ASK", {}), "ANSWER", timeout=60.0)
            return "answered"
        except TimeoutError:
            return "late"

    await agrees(path, work)


async def test_a_handler_that_is_cancelled_in_a_request_by_another_task(path: Path) -> None:
    async def work(bus: AsyncEventBus) -> str:
        task = asyncio.current_task()
        assert task is not None

        async def cancels() -> None:
            await asyncio.sleep(0.001)
            task.cancel()

        other = asyncio.create_task(cancels())
        try:
            await bus.request(Event("ASK", {}), "ANSWER", timeout=60.0)
            return "answered"
        except asyncio.CancelledError:
            task.uncancel()
            return "cancelled"
        finally:
            await other

    await agrees(path, work)


async def test_a_reader_of_a_stream_that_cancels_itself(path: Path) -> None:
    """It is cancelled at its next wait: a step for which an event is there has none."""

    async def strategy(bus: AsyncEventBus) -> None:
        async def read() -> None:
            async with bus.stream("TRADE") as stream:
                async for trade in stream:
                    task.cancel()
                    bus.publish_nowait(Event("READ", trade.data))

        task = asyncio.create_task(read())

    async def drive(bus: AsyncEventBus) -> None:
        await asyncio.sleep(0.01)
        await trades(bus, 5)

    await session(path, strategy, drive)
    report = verify(path, strategy)
    assert report, str(report)
    assert report.agreed >= 1  # on a busy machine, its turn may be over at any of them


async def test_code_that_is_not_attached_cancels_a_task_that_shields_another(path: Path) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        async def shielded() -> None:
            for _ in range(3):
                await asyncio.sleep(0)
            await bus.publish(Event("SHIELDED", {}))

        async with bus.stream("TRADE") as stream:
            await anext(stream)
            await bus.publish(Event("BEGINS", {}))
            await asyncio.shield(shielded())

    async with (
        AsyncEventBus(name="desk") as bus,
        bus.stream("BEGINS") as begun,
        record(bus, path, attach=strategy) as recording,
    ):
        await trades(bus, 1)
        await anext(begun)
        assert recording.attached is not None
        recording.attached.cancel()
        await asyncio.wait([recording.attached])
        await asyncio.sleep(0.005)
    report = verify(path, strategy)
    assert report, str(report)
    assert report.agreed == 2


async def test_a_timeout_of_code_that_is_not_attached_cancels_a_task(path: Path) -> None:
    async def strategy(bus: AsyncEventBus) -> None:
        await bus.subscribe("TRADE", lambda trade: bus.publish_nowait(Event("SIGNAL", trade.data)))
        try:
            await asyncio.Event().wait()
        finally:
            await bus.publish(Event("ENDS", {}))

    async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=strategy) as recording:
        await trades(bus, 2)
        await bus.settle()
        assert recording.attached is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await recording.attached
    report = verify(path, strategy)
    assert report, str(report)
    assert report.agreed == 3
