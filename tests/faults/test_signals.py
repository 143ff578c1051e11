"""Ended by a signal under load, as a user's bot is: in time, with a truthful exit code, and nothing
left behind.
"""

import asyncio
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aiobus import AsyncEventBus, Event
from aiobus.diagnostics import Diagnostics
from aiobus.lifecycle import Lifecycle
from aiobus.requests import Requests
from aiobus.sequence import LEFT
from aiobus.subscriber import Subscriber
from aiobus.sync import LoopWatch
from faults.desk import Desk
from faults.scenario import prove, scenario

EXIT_SECONDS = 5.0
SESSION = Path(__file__).parent / "session.py"


@asynccontextmanager
async def session(desk: Desk, kind: str) -> AsyncIterator[Process]:
    """A bot in a terminal, live and under load; ended for good if the test did not."""
    arguments = [sys.executable, str(SESSION), kind, desk.url, str(desk.folder / "bot.jsonl")]
    desk.admit("bot")
    keys = {"AIOBUS_KEYRING": desk.keys} if desk.keys else {}
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=PIPE, stderr=PIPE, env={**os.environ, **keys}
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"live\n"
        await desk.chance(0.3)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(desk: Desk, process: Process) -> tuple[int, bytes]:
    """The exit code, which is there in time, and its last words. Nothing is left on disk."""
    try:
        async with asyncio.timeout(EXIT_SECONDS):
            code = await process.wait()
    except TimeoutError:
        process.send_signal(signal.SIGABRT)
        _, errors = await process.communicate()
        raise AssertionError(f"not ended after {EXIT_SECONDS:g} s: {errors!r}") from None
    _, errors = await process.communicate()
    assert not list(desk.folder.glob("d/bot*"))
    return code, errors


@scenario("SIGTERM under load", soak=500, at_once=3)
async def bot_is_terminated(desk: Desk) -> None:
    """What it published arrives before it ends, and its end is none of an error."""
    (peer,) = await desk.bots("peer")
    await peer.do("hear")
    await peer.do("load", 5_000, "O")
    async with session(desk, "handled") as process:
        process.send_signal(signal.SIGTERM)
        code, errors = await ended(desk, process)
    assert code == 0, f"exit code {code}: {errors!r}"


@scenario("double SIGINT under load", soak=500, at_once=3, gaps=[LEFT])
async def bot_is_interrupted_twice(desk: Desk) -> None:
    """A bot under `aiobus.run` says so by its exit code, also if the second signal meets it on its
    way out. Any other is ended by the signal.
    """
    (peer,) = await desk.bots("peer")
    await peer.do("hear")
    await peer.do("load", 5_000, "O")
    kind = desk.dice.choice(["handled", "plain"])
    async with session(desk, kind) as process:
        process.send_signal(signal.SIGINT)
        await desk.chance(0.05)
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        code, errors = await ended(desk, process)
    desk.aborted.add("bot")  # the second signal does not wait for what is on its way
    is_told = kind == "handled" and code == 130 and b"Traceback" not in errors
    assert is_told or code == -signal.SIGINT, f"{kind}: exit code {code}: {errors!r}"


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_bot_that_is_ended_by_a_signal_ends_in_time_and_leaves_nothing_behind() -> None:
    await prove(bot_is_terminated, bot_is_interrupted_twice)


def test_ctrl_c_in_the_middle_of_closing_leaves_nothing_open(tmp_path: Path) -> None:
    """It may fall into any step, and does so into the slow ones: here, into a line of the log."""
    meeting = tmp_path / "d"
    meeting.mkdir(mode=0o700)
    ended: list[str] = []

    class CtrlC(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "were not handed" in record.getMessage():
                raise KeyboardInterrupt

    async def hang(event: Event) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(event.type)

    async def main() -> None:
        async with AsyncEventBus(f"ipc://{meeting}", name="bot") as bus:
            await bus.subscribe("T", hang)
            for number in range(3):
                await bus.publish(Event("T", number))
            await bus.close(0.5)

    handler = CtrlC()
    logging.getLogger("aiobus").addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
    finally:
        logging.getLogger("aiobus").removeHandler(handler)
    assert ended == ["T"]
    assert not meeting.exists() or not list(meeting.iterdir())


STEPS: dict[str, tuple[type, str]] = {
    "the end of its life": (Lifecycle, "end"),
    "its requests": (Requests, "close"),
    "its subscriptions": (Subscriber, "close"),
    "the watch of the loop": (LoopWatch, "close"),
    "its reports": (Diagnostics, "close"),
}


@pytest.mark.parametrize("interrupted", STEPS)
def test_ctrl_c_in_a_step_of_its_end_leaves_the_others_to_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    """It once took as long as `close` may take, since what was not ended was waited for."""
    calls = dict.fromkeys(STEPS, 0)

    def noting(step: str) -> Callable[..., object]:
        real = getattr(*STEPS[step])

        def call(*given: object) -> object:
            calls[step] += 1
            if step == interrupted and calls[step] == 1:
                raise KeyboardInterrupt
            return real(*given)

        return call

    async def main() -> None:
        async with AsyncEventBus(f"ipc://{tmp_path}/d", name="bot") as bus:
            await bus.subscribe("T", print)
            for step, where in STEPS.items():
                monkeypatch.setattr(*where, noting(step))
            await bus.close(3_600.0)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert all(calls.values()), calls
    assert not list(tmp_path.glob("d/*"))


def test_ctrl_c_while_it_says_bye_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = tmp_path / "d"
    meeting.mkdir(mode=0o700)

    async def main() -> None:
        async with AsyncEventBus(f"ipc://{meeting}", name="bot") as bus:
            await bus.subscribe("T", print)

            def ctrl_c(message: bytes) -> None:
                monkeypatch.undo()
                raise KeyboardInterrupt

            monkeypatch.setattr(bus._transport.network, "send", ctrl_c)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert not list(meeting.iterdir())


async def test_after_ctrl_c_while_it_says_bye_the_others_hear_of_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = tmp_path / "d"
    meeting.mkdir(mode=0o700)
    async with AsyncEventBus(f"ipc://{meeting}", name="peer") as peer:
        async with peer.stream("aiobus.peer_left") as ends:
            bot = AsyncEventBus(f"ipc://{meeting}", name="bot")
            await bot.start()

            def ctrl_c(message: bytes) -> None:
                monkeypatch.undo()
                raise KeyboardInterrupt

            monkeypatch.setattr(bot._transport.network, "send", ctrl_c)
            with pytest.raises(KeyboardInterrupt):
                await bot._transport.close(1.0)
            assert (await anext(ends)).data["reason"] == "it closed"
        await bot.close()


async def test_a_closing_that_is_cancelled_before_it_begins_is_done_all_the_same(
    tmp_path: Path,
) -> None:
    """As a loop does it that ends for a Ctrl-C: it cancels every task."""
    meeting = tmp_path / "d"
    meeting.mkdir(mode=0o700)
    bot = AsyncEventBus(f"ipc://{meeting}", name="bot")
    await bot.start()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    closing = asyncio.create_task(bot.close())
    await asyncio.sleep(0)
    made = asyncio.all_tasks() - others - {asyncio.current_task()}
    assert len(made) == 2
    for task in made:
        task.cancel()
    await asyncio.wait(made)
    assert closing.cancelled()
    assert not list(meeting.iterdir())
    assert bot.peers == ()
