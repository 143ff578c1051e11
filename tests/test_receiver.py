"""What one subscription does with frames and pages of other buses: when it decodes them, and how
much it asks for.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from aiobus import AsyncEventBus, Event, QueueFull
from aiobus.history import Page, Want
from aiobus.intake import PACE, Intake
from aiobus.receiver import Receiver


class Batch:
    """Events of the type A of another bus with these numbers; counts how often they are decoded."""

    source, epoch, prev = "desk", 7, 0

    def __init__(self, *seqs: int) -> None:
        self.seqs = seqs
        self.newest = seqs[-1]
        self.count = len(seqs)
        self.decoded = 0

    def __iter__(self) -> Iterator[Event[Any]]:
        self.decoded += 1
        for seq in self.seqs:
            yield Event("A", seq, 0.0, key="k", source="desk", epoch=7, seq=seq)

    def forget(self) -> None:
        pass


class Asked:
    """A transport that nobody answers."""

    def __init__(self) -> None:
        self.limits: list[int] = []

    def ask(self, inlet: object, source: object, want: object, limit: int) -> bool:
        self.limits.append(limit)
        return False


class Answering:
    """A transport by which one source, which has published `newest` events, answers in a turn of
    the loop.
    """

    def __init__(self, newest: int) -> None:
        self.newest = newest

    def ask(self, inlet: Intake, source: Any, want: Want, limit: int) -> bool:
        to = min(self.newest, want.after + limit)
        page = Page(want.after, 0, to, self.newest, [])
        batch = Batch(*range(want.after + 1, to + 1))
        asyncio.get_running_loop().call_soon(inlet.turn, source, page, batch)
        return False


async def receiver(bus: AsyncEventBus, **keywords: Any) -> Receiver:
    """Of a subscription that hands nothing over while the test does not let the loop turn."""
    subscription = await bus.subscribe("A", lambda event: None, **keywords)
    return subscription._receiver


def popped(receiver: Receiver) -> list[int]:
    """The numbers of all that is handed over."""
    seqs = []
    while (event := receiver.pop()) is not None:
        seqs.append(event.seq)
    return seqs


@pytest.mark.parametrize("overflow", ["catch_up", "block"])
async def test_what_came_together_is_decoded_when_it_is_its_turn(
    bus: AsyncEventBus, overflow: str
) -> None:
    box = await receiver(bus, overflow=overflow)
    first, second = Batch(1, 2), Batch(3)
    box.keep(first)
    box.keep(second)
    assert (box.pending, box.vacancy, first.decoded) == (3, box.maxsize - 3, 0)
    assert (box.pop(), first.decoded, second.decoded) == (Event("A", 1, key="k"), 1, 0)
    assert popped(box) == [2, 3]
    assert (box.pending, first.decoded, second.decoded) == (0, 1, 1)


@pytest.mark.parametrize(
    ("keywords", "seqs"),
    [
        ({"overflow": "latest"}, [3]),
        ({"overflow": "drop_oldest", "maxsize": 2}, [2, 3]),
        ({"where": lambda event: event.seq != 2}, [1, 3]),
        ({"max_age": 1.0}, []),
        ({"key": ["k", "other"]}, [1, 2, 3]),
    ],
)
async def test_where_the_events_decide_they_are_looked_at_on_arrival(
    bus: AsyncEventBus, keywords: dict[str, Any], seqs: list[int]
) -> None:
    box = await receiver(bus, **keywords)
    batch = Batch(1, 2, 3)
    box.keep(batch)
    assert (popped(box), batch.decoded) == (seqs, 1)


@pytest.mark.parametrize(
    ("keywords", "wishes"),
    [
        ({"maxsize": 1024}, [True, True, False]),
        ({"maxsize": 1024, "overflow": "block"}, [True, True, False]),
        ({"maxsize": 1}, [True, False, False]),
        ({"maxsize": 8}, [True, False, False]),
        # Full is how these are all day, and they lose nothing of what they ask for by it.
        ({"maxsize": 1024, "overflow": "latest"}, [True, True, True]),
        ({"maxsize": 8, "overflow": "drop_oldest"}, [True, True, True]),
    ],
)
async def test_it_is_hungry_until_an_eighth_waits_if_its_room_has_a_bound(
    bus: AsyncEventBus, keywords: dict[str, Any], wishes: list[bool]
) -> None:
    box = await receiver(bus, **keywords)
    seen = []
    for count in (127, 1):
        seen.append(box.is_hungry)
        box.keep(Batch(*range(1, 1 + count)))
    assert [*seen, box.is_hungry] == wishes


@pytest.mark.parametrize(("overflow", "welcome"), [("latest", PACE), ("drop_oldest", PACE)])
async def test_an_inbox_that_drops_catches_up_by_whole_pages_however_small_it_is(
    bus: AsyncEventBus, overflow: str, welcome: int
) -> None:
    box = await receiver(bus, overflow=overflow, maxsize=1)
    box.keep(Batch(*range(1, 4)))
    assert (box.vacancy, popped(box), box.stats.dropped + box.stats.conflated) == (welcome, [3], 2)


async def test_what_others_have_is_asked_for_beside_what_is_missing_of_the_own(
    bus: AsyncEventBus,
) -> None:
    box = await receiver(bus, maxsize=128)
    asked = Asked()
    box.intake._transport = asked  # type: ignore[assignment]
    for number in range(1000):
        bus.publish_nowait(Event("A", number))
    box.intake.meet(("desk", 7), 0, 0.0)
    box.intake.meet(("desk", 7), 5000, 0.0)
    for _ in range(300):
        box.pop()
    assert asked.limits[0] > 0, "the own history fills the inbox again and again"


@pytest.mark.parametrize("publishers", [1, 4])
@pytest.mark.parametrize("maxsize", [1, 3, 64, 1_000])
async def test_publishers_here_that_fill_an_inbox_leave_room_for_what_another_bus_has(
    bus: AsyncEventBus, maxsize: int, publishers: int
) -> None:
    total = 3 * PACE
    theirs: list[int] = []
    is_full, has_all = asyncio.Event(), asyncio.Event()

    async def on_event(event: Event) -> None:
        if event.epoch == 7:
            theirs.append(event.seq)
            if event.seq == total:
                has_all.set()
        elif event.seq > maxsize:
            is_full.set()
        await asyncio.sleep(0)

    async def flood() -> None:
        while True:
            await bus.publish(Event("A", 0))

    subscription = await bus.subscribe("A", on_event, overflow="block", maxsize=maxsize)
    intake = subscription._receiver.intake
    intake._transport = Answering(total)  # type: ignore[assignment]
    floods = [asyncio.create_task(flood()) for _ in range(publishers)]
    await is_full.wait()
    intake.meet(("desk", 7), 0, 0.0)
    intake.meet(("desk", 7), total, 0.0)
    async with asyncio.timeout(20):
        await has_all.wait()
    for each in floods:
        each.cancel()
    await asyncio.gather(*floods, return_exceptions=True)
    assert theirs == list(range(1, total + 1))


@pytest.mark.parametrize(("maxsize", "accepted"), [(1, 1), (300, 300 - 2 * PACE)])
async def test_an_inbox_keeps_room_for_another_bus_while_it_misses_something_of_it(
    bus: AsyncEventBus, maxsize: int, accepted: int
) -> None:
    box = await receiver(bus, overflow="block", maxsize=maxsize)
    box.intake._transport = Asked()  # type: ignore[assignment]
    box.intake.meet(("desk", 7), 0, 0.0)
    box.intake.meet(("desk", 7), 5_000, 0.0)
    for number in range(accepted):
        bus.publish_nowait(Event("A", number))
    with pytest.raises(QueueFull):
        bus.publish_nowait(Event("A", 0))
    box.intake.leave(("desk", 7), 0)
    popped(box)


@pytest.mark.parametrize(
    ("timestamp", "says"),
    [
        (1_700_000_000_000, "these look like milliseconds: divide by 1_000"),
        (1e300, "it is no time"),
    ],
)
async def test_an_event_of_another_program_whose_timestamp_is_no_time_is_not_taken_for_fresh(
    bus: AsyncEventBus, timestamp: float, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    old, plain = await receiver(bus, max_age=60), await receiver(bus)
    other = Event("A", 1, timestamp, source="desk", epoch=7, seq=1)
    young = Event("A", 2, source="desk", epoch=7, seq=2)
    for box in (old, plain):
        box.accept([other, young])
    assert (popped(old), old.stats.expired, popped(plain)) == ([2], 1, [1, 2])
    (line,) = [each for each in caplog.messages if "how old" in each]
    assert line == (
        "<lambda>(A) cannot tell how old events of desk are: desk@7.1 is left out,"
        f" its timestamp is {timestamp!r}; {says}"
    ).replace("<lambda>", receiver.__qualname__ + ".<locals>.<lambda>")
