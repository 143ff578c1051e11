"""The verbs of a benchmark: what they publish, wait for and say, whatever the machine's speed."""

import asyncio
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest

from aiobus import AsyncEventBus, Event, EventType
from perf.bench import Arrivals, Paced, Throughput, latency, throughput


def events() -> Iterator[Event[int]]:
    return (Event(EventType.TRADE, number, key="BTCUSDT") for number in itertools.count())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perf.bench.STALL_SECONDS", 0.01)


async def test_every_event_of_a_throughput_is_published_and_handled() -> None:
    arrivals = Arrivals()
    async with AsyncEventBus() as bus:
        await bus.subscribe(EventType.TRADE, arrivals.count)
        flow = await throughput(
            bus.publish, events(), handled=arrivals.handled, seconds=math.inf, count=1_000
        )
    assert (flow.sent, flow.handled, flow.lost) == (1_000, 1_000, 0)
    assert flow.rate == 1_000 / flow.seconds


async def test_no_more_than_the_window_is_under_way() -> None:
    arrivals, sent, most = Arrivals(), 0, 0

    async def publish(event: Event[Any]) -> None:
        nonlocal sent, most
        sent += 1
        most = max(most, sent - arrivals.handled())
        asyncio.get_running_loop().call_soon(asyncio.ensure_future, arrivals.count(event))

    await throughput(
        publish, events(), handled=arrivals.handled, seconds=math.inf, count=1_000, window=10
    )
    assert most == 10


@pytest.mark.usefixtures("impatient")
async def test_what_is_never_handled_is_lost_and_does_not_hold_up_the_rest() -> None:
    arrivals = Arrivals()

    async def publish(event: Event[int]) -> None:
        if event.data % 2:
            await arrivals.count(event)

    flow = await throughput(
        publish, events(), handled=arrivals.handled, seconds=math.inf, count=100, window=10
    )
    assert (flow.sent, flow.handled, flow.lost) == (100, 50, 50)


async def test_a_throughput_counts_from_where_the_count_stands() -> None:
    arrivals = Arrivals()
    for event in itertools.islice(events(), 5):
        await arrivals.count(event)
    flow = await throughput(
        arrivals.count, events(), handled=arrivals.handled, seconds=math.inf, count=10
    )
    assert flow.handled == 10


async def test_the_count_is_told_where_others_can_read_it() -> None:
    tally = [0, 0]
    arrivals = Arrivals(tally, 1)
    for event in itertools.islice(events(), 3):
        await arrivals.count(event)
    assert tally == [0, 3]


async def test_a_schedule_publishes_each_event_and_its_delay_is_known() -> None:
    arrivals = Arrivals()
    async with AsyncEventBus() as bus:
        await bus.subscribe(EventType.TRADE, arrivals.time)
        paced = await latency(bus.publish, events(), rate=1_000, seconds=0.02)
        await bus.settle()
    assert paced.sent == len(arrivals.delays) == 20
    assert 0 <= arrivals.percentile(50) <= arrivals.percentile(99.9) == max(arrivals.delays)


async def test_an_event_that_had_to_wait_for_the_publisher_is_timed_from_when_it_was_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("perf.bench.elapsed", lambda: now)
    stamps = []

    async def until(due: float) -> None:
        nonlocal now
        now = due

    async def publish(event: Event[Any]) -> None:
        nonlocal now
        stamps.append(round(event.timestamp - 0.01, 6))
        now += 0.25 if event.data == 1 else 0.0

    paced = await latency(publish, events(), rate=10, seconds=0.5, until=until)
    assert stamps == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert paced == Paced(sent=5, late=2)


def test_there_is_no_percentile_of_nothing() -> None:
    assert math.isnan(Arrivals().percentile(50))


def test_nothing_in_no_time_is_no_rate() -> None:
    assert Throughput(0, 0, 0.0).rate == 0.0
