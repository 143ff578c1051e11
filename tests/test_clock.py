"""Wall time belongs to the loop; elapsed time never goes back."""

import asyncio
import time

from aiobus import Event, clock


class LoopOfYesterday(asyncio.SelectorEventLoop):
    """A loop with a wall time of its own."""

    def wall_time(self) -> int:
        return 86_400


async def wall() -> float:
    return clock.wall()


async def timestamp() -> float:
    return Event("TRADE", 1).timestamp


def test_without_a_loop_wall_time_is_the_machines() -> None:
    before = time.time()
    assert before <= clock.wall() <= time.time()


async def test_in_a_usual_loop_wall_time_is_the_machines() -> None:
    before = time.time()
    assert before <= clock.wall() <= time.time()


def test_a_loop_with_a_wall_time_is_asked_for_it() -> None:
    with asyncio.Runner(loop_factory=LoopOfYesterday) as runner:
        assert runner.run(wall()) == 86_400.0


def test_wall_time_is_a_float_whatever_the_loop_says() -> None:
    with asyncio.Runner(loop_factory=LoopOfYesterday) as runner:
        assert type(runner.run(wall())) is float


def test_an_event_is_made_at_the_wall_time_of_its_loop() -> None:
    with asyncio.Runner(loop_factory=LoopOfYesterday) as runner:
        assert runner.run(timestamp()) == 86_400.0


def test_after_such_a_loop_wall_time_is_the_machines_again() -> None:
    with asyncio.Runner(loop_factory=LoopOfYesterday) as runner:
        runner.run(wall())
    assert clock.wall() > 1_600_000_000


def test_elapsed_time_never_goes_back() -> None:
    moments = [clock.elapsed() for _ in range(1000)]
    assert moments == sorted(moments)
