"""What one subscription does with frames and pages of other buses: when it decodes them, and how
much it asks for.
"""

from typing import Any

import pytest

from aiobus import AsyncEventBus, Event
from aiobus.receiver import PULL_ROWS, Receiver


class Batch:
    """Events of the type A of another bus with these numbers; counts how often they are decoded."""

    source, epoch, prev = "desk", 7, 0

    def __init__(self, *seqs: int) -> None:
        self.seqs = seqs
        self.newest = seqs[-1]
        self.count = len(seqs)
        self.decoded = 0

    def events(self) -> list[Event[Any]]:
        self.decoded += 1
        return [Event("A", seq, 0.0, key="k", source="desk", epoch=7, seq=seq) for seq in self.seqs]


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


async def test_of_what_was_missed_less_is_asked_for_the_more_waits(bus: AsyncEventBus) -> None:
    box = await receiver(bus, maxsize=1024)
    wishes = []
    for count in (127, 1, 384, 1):
        wishes.append(box.appetite)
        box.keep(Batch(*range(1, 1 + count)))
    assert [*wishes, box.appetite] == [1024, 897, PULL_ROWS, PULL_ROWS, 0]


@pytest.mark.parametrize("maxsize", [1, 2, 3])
async def test_the_smallest_inbox_asks_when_it_is_empty(bus: AsyncEventBus, maxsize: int) -> None:
    box = await receiver(bus, maxsize=maxsize)
    assert box.appetite == maxsize
