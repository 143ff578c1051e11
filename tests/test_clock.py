"""Wall time belongs to the loop; elapsed time never goes back."""

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from aiobus import Event, clock


class LoopOfYesterday(asyncio.SelectorEventLoop):
    """A loop with a wall time of its own."""

    def wall_time(self) -> int:
        return 86_400


async def unix_seconds() -> float:
    return clock.time()


async def timestamp() -> float:
    return Event("TRADE", 1).timestamp


def test_without_a_loop_wall_time_is_the_machines() -> None:
    before = time.time()
    assert before <= clock.time() <= time.time()


async def test_in_a_usual_loop_wall_time_is_the_machines() -> None:
    before = time.time()
    assert before <= clock.time() <= time.time()


def test_a_loop_with_a_wall_time_is_asked_for_it() -> None:
    with asyncio.Runner(loop_factory=LoopOfYesterday) as runner:
        assert runner.run(unix_seconds()) == 86_400.0


def test_wall_time_is_a_float_whatever_the_loop_says() -> None:
    with asyncio.Runner(loop_factory=LoopOfYesterday) as runner:
        assert type(runner.run(unix_seconds())) is float


def test_an_event_is_made_at_the_wall_time_of_its_loop() -> None:
    with asyncio.Runner(loop_factory=LoopOfYesterday) as runner:
        assert runner.run(timestamp()) == 86_400.0


def test_after_such_a_loop_wall_time_is_the_machines_again() -> None:
    with asyncio.Runner(loop_factory=LoopOfYesterday) as runner:
        runner.run(unix_seconds())
    assert clock.time() > 1_600_000_000


def test_a_usual_loop_that_ran_before_does_not_hide_that_this_one_has_a_time_of_its_own() -> None:
    with asyncio.Runner() as usual, asyncio.Runner(loop_factory=LoopOfYesterday) as runner:
        for _ in range(2):
            before = time.time()
            assert before <= usual.run(timestamp()) <= time.time()
            assert runner.run(timestamp()) == 86_400.0


def test_a_usual_loop_that_runs_in_another_thread_does_not_hide_it_either() -> None:
    is_seen, is_done = threading.Event(), threading.Event()

    async def usual() -> None:
        clock.time()
        is_seen.set()
        await asyncio.to_thread(is_done.wait)

    with ThreadPoolExecutor() as pool, asyncio.Runner(loop_factory=LoopOfYesterday) as runner:
        other = pool.submit(asyncio.run, usual())
        is_seen.wait()
        try:
            assert runner.run(timestamp()) == 86_400.0
        finally:
            is_done.set()
        other.result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_that_was_forked_from_a_running_loop_follows_a_loop_of_its_own() -> None:
    async def fork() -> int:
        clock.time()
        child = os.fork()
        if child:
            return child
        try:
            with asyncio.Runner(loop_factory=LoopOfYesterday) as runner:
                os._exit(runner.run(timestamp()) != 86_400.0)
        finally:
            os._exit(2)

    assert os.waitstatus_to_exitcode(os.waitpid(asyncio.run(fork()), 0)[1]) == 0


def test_elapsed_time_never_goes_back() -> None:
    moments = [clock.elapsed() for _ in range(1000)]
    assert moments == sorted(moments)
