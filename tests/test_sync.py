"""Fair shares of the loop, by a clock that is turned by hand."""

import asyncio
from typing import Literal

import pytest
from conftest import HandClock

from aiobus import AsyncEventBus, Event
from aiobus.sync import (
    EVENTS,
    HANDLER_EVENTS,
    HANDLER_SECONDS,
    TURN_SECONDS,
    Notifier,
    TimeSlice,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    clock = HandClock()
    monkeypatch.setattr("aiobus.sync.stopwatch", lambda: clock)
    return clock


def test_a_turn_is_64_events_while_time_stands_still(clock: HandClock) -> None:
    turn = TimeSlice()
    assert [turn.spend() for _ in range(EVENTS)] == [False] * 127 + [True]


def test_a_turn_is_at_most_half_a_millisecond() -> None:
    assert 0 < TURN_SECONDS <= 0.0005


def test_a_turn_is_over_when_its_time_is(clock: HandClock) -> None:
    turn = TimeSlice()
    clock.now += TURN_SECONDS / 2
    assert not turn.spend()
    clock.now += TURN_SECONDS
    assert turn.spend()


def test_a_turn_that_is_over_stays_over_until_it_is_renewed(clock: HandClock) -> None:
    turn = TimeSlice()
    clock.now += 2 * TURN_SECONDS
    assert [turn.spend(), turn.spend()] == [True, True]
    turn.renew()
    assert not turn.spend()


def test_a_turn_that_goes_on_beyond_its_events_stays_over(clock: HandClock) -> None:
    turn = TimeSlice()
    assert [turn.spend() for _ in range(EVENTS + 3)][EVENTS:] == [True] * 3


def test_a_renewed_turn_has_all_its_events_and_time_again(clock: HandClock) -> None:
    turn = TimeSlice()
    turn.spend()
    clock.now += TURN_SECONDS / 2
    turn.renew()
    clock.now += TURN_SECONDS * 0.9
    assert [turn.spend() for _ in range(EVENTS)] == [False] * 127 + [True]


def test_by_the_real_clock_a_turn_ends_as_well() -> None:
    turn = TimeSlice()
    assert True in [turn.spend() for _ in range(EVENTS)]


@pytest.mark.parametrize(("on_error", "turn"), [("log", 3), ("raise", HANDLER_EVENTS)])
async def test_handlers_give_the_loop_back_in_time_and_in_tests_after_as_many_events_as_ever(
    clock: HandClock, on_error: Literal["log", "raise"], turn: int
) -> None:
    handled = 0
    turns: list[int] = []

    async def on_event(event: Event) -> None:
        nonlocal handled
        if not handled:
            asyncio.get_running_loop().call_soon(lambda: turns.append(handled))
        handled += 1
        clock.now += HANDLER_SECONDS * 0.4

    async with AsyncEventBus(on_error=on_error) as bus:
        await bus.subscribe("A", on_event)
        for number in range(2 * HANDLER_EVENTS):
            bus.publish_nowait(Event("A", number))
        await bus.settle()
    assert turns == [turn]


async def test_those_that_wait_for_the_same_thing_wake_in_the_order_in_which_they_began() -> None:
    """A set of futures woke them in the order of addresses."""
    notifier = Notifier()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await notifier.wait()
        woken.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(500):
            group.create_task(wait(number))
        await asyncio.sleep(0)
        notifier.wake()
    assert woken == list(range(500))
