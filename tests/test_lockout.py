"""A replay, and buses on ipc or tcp or with a journal, exclude each other in one process."""

import asyncio
import gc
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from journals import entries, make

from aiobus import AsyncEventBus, BusError, Event, LeavesProcess, Replay, run_virtual


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "desk.db"
    make(path, entries(10))
    return path


async def open_bus(url: str) -> None:
    async with AsyncEventBus(url, name="live"):
        pass


async def replay(path: Path) -> int:
    playing = Replay(path)
    async with AsyncEventBus(playing, name="strategy"):
        return await playing.play()


@pytest.mark.paired
async def test_a_replay_does_not_start_beside_an_open_bus_and_names_it(
    path: Path, url: str
) -> None:
    async with AsyncEventBus(url, name="live") as bus:
        with pytest.raises(BusError, match=r"while this process has open: live on ipc://"):
            run_virtual(replay(path))
        await bus.publish(Event("A", 1))  # it goes on
    assert run_virtual(replay(path)) == 10


async def test_a_replay_does_not_start_beside_a_bus_with_a_journal(
    path: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "strategy.db"
    async with AsyncEventBus(name="live", journal=journal):
        with pytest.raises(BusError, match=f"live with the journal {journal}"):
            run_virtual(replay(path))
    assert run_virtual(replay(path)) == 10


def test_in_a_replay_no_bus_writes_to_a_journal_whatever_catches_the_error(
    path: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "strategy.db"

    async def beside() -> None:
        async with AsyncEventBus(Replay(path), name="strategy"):
            with suppress(LeavesProcess):
                await AsyncEventBus(name="second", journal=journal).start()
            await asyncio.sleep(1)
            reached.append(1)

    async def itself() -> None:
        await AsyncEventBus(Replay(path), name="strategy", journal=journal).start()

    reached: list[int] = []
    with pytest.raises(LeavesProcess, match=f"with the journal {journal} was refused while"):
        run_virtual(beside)
    assert not reached
    assert not journal.exists()
    with pytest.raises(BusError, match=f"strategy with the journal {journal}"):
        run_virtual(itself)


@pytest.mark.parametrize("runs", [asyncio.run, uvloop.run])
def test_while_a_replay_is_open_no_bus_of_the_process_starts_in_any_thread(
    path: Path, runs: Any, folder: Path
) -> None:
    url = f"ipc://{folder}/d"
    go, gone = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def elsewhere() -> None:
        go.wait(20)
        try:
            runs(open_bus(url))
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        gone.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()

    async def main() -> int:
        playing = Replay(path)
        async with AsyncEventBus(playing, name="strategy"):
            go.set()
            assert gone.wait(20)
            return await playing.play()

    assert run_virtual(main) == 10
    thread.join()
    (error,) = errors
    assert isinstance(error, LeavesProcess)
    assert f"'live' on ipc:// or tcp:// was refused while the recording {path} is" in str(error)
    runs(open_bus(url))


def test_a_bus_in_the_thread_of_the_replay_is_refused_whatever_is_allowed(
    path: Path, folder: Path
) -> None:
    allowed = "test_lockout.open_bus"

    async def main() -> None:
        playing = Replay(path)
        async with AsyncEventBus(playing, name="strategy"):
            await open_bus(f"ipc://{folder}/d")

    with pytest.raises(LeavesProcess, match="is replayed in this process"):
        run_virtual(main, allow=(allowed,))


def test_a_replay_that_fails_to_start_locks_nothing(path: Path, folder: Path) -> None:
    async def main() -> None:
        async with AsyncEventBus(Replay(path, end=1), name="strategy"):
            pass

    with pytest.raises(ValueError, match="nothing to play"):
        run_virtual(main)
    asyncio.run(open_bus(f"ipc://{folder}/d"))


@pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # of Python 3.13 and later
def test_a_replay_that_was_never_closed_locks_until_it_is_collected(
    path: Path, folder: Path
) -> None:
    async def main() -> None:
        await AsyncEventBus(Replay(path), name="strategy").start()

    run_virtual(main)
    gc.collect()
    asyncio.run(open_bus(f"ipc://{folder}/d"))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_forked_child_neither_is_open(path: Path, folder: Path) -> None:
    async def main() -> int:
        async with AsyncEventBus(f"ipc://{folder}/d", name="live"):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    thread = threading.Thread(
                        target=lambda: codes.append(run_virtual(replay(path)))
                    )
                    codes: list[int] = []
                    thread.start()
                    thread.join()
                    code = 0 if codes == [10] else 2
                finally:
                    os._exit(code)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])  # noqa: ASYNC222

    assert asyncio.run(main()) == 0
