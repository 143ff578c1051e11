"""Record a session on real trades, and run the same strategy through it again: as fast as it
goes, then at a pace. Each time the replay pauses at the first signal.

Run it: python examples/replay_session.py
"""

import asyncio
import tempfile
from pathlib import Path

from aiobus import AsyncEventBus, Event, EventType, Replay, record, run_virtual
from quickstart import follow_the_whales
from quickstart import replay as publish_trades

URL = "ipc://replay-session"


async def session(path: Path) -> None:
    """Three buses, as three processes would have them; one of them records."""
    async with (
        AsyncEventBus(URL, name="recorder") as recorder,
        AsyncEventBus(URL, name="strategy") as strategy,
        AsyncEventBus(URL, name="feed") as feed,
        record(recorder, path),
    ):
        await follow_the_whales(strategy)
        await publish_trades(feed)
        await strategy.settle()
        await strategy.flush()


async def again(path: Path, speed: float | None) -> None:
    """The strategy as it was; the other side of its bus is the recording."""
    replay, signals, has_signal = Replay(path), list[Event](), asyncio.Event()

    def on_signal(signal: Event) -> None:
        signals.append(signal)
        if len(signals) == 1:
            replay.pause()  # the clock stands still: nothing times out meanwhile
            has_signal.set()

    async with AsyncEventBus(replay, name="strategy") as bus:
        await follow_the_whales(bus)
        await bus.subscribe(EventType.SIGNAL, on_signal)
        playing = asyncio.create_task(replay.play(speed))
        await has_signal.wait()
        print(f"paused at {replay.progress.offset:,} of {replay.progress.last_offset:,} events")
        replay.resume()
        played = await playing
        await bus.settle()
    print(f"{played:,} trades played, {len(signals)} signals, speed {speed or 'unlimited'}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(session(Path(folder) / "desk.db"))
        for speed in (None, 10):
            run_virtual(again(Path(folder) / "desk.db", speed))
