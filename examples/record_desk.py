"""Record a desk of two bots, and look at what happened: each fill, and how long it took.

Run it: python examples/record_desk.py
"""

import asyncio
import tempfile
from pathlib import Path

from aiobus import AsyncEventBus, Event, EventType, Journal, record

URL = "ipc://record-desk"


async def broker(bus: AsyncEventBus) -> None:
    """Fill each order."""

    async def fill(order: Event) -> None:
        await bus.publish(Event(EventType.FILL, order.data, key=order.key))

    await bus.subscribe(EventType.ORDER, fill)


async def desk(path: Path) -> None:
    """Three buses, as three processes would have them; one of them records."""
    async with (
        AsyncEventBus(URL, name="recorder") as recorder,
        AsyncEventBus(URL, name="broker") as brokers,
        AsyncEventBus(URL, name="strategy") as strategy,
    ):
        await broker(brokers)
        async with record(recorder, path) as recording:
            for quantity in range(1, 4):
                order = Event(EventType.ORDER, {"quantity": quantity}, key="BTCUSDT")
                await strategy.request(order, EventType.FILL)
            await brokers.flush()  # strategy has the last fill, and the recorder by now as well
            await recording.flush()


def main() -> None:
    """Record, then read. `aiobus log FILE` shows the same in a shell."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "desk.db"
        asyncio.run(desk(path))
        with Journal(path) as journal:
            events = {event.id: event for _, event in journal.read(types=["ORDER", "FILL"])}
        for event in events.values():
            if event.type == EventType.FILL:
                took = event.timestamp - events[event.cause].timestamp
                print(f"{event.key} {event.data['quantity']} filled after {took * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
