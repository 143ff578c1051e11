"""One event's way to a callback: how many modules, Python calls, C calls and changes of module.

`sys.setprofile` counts in the package alone, from the making of an event until its callback is done
and everything waits again: of a lone event and of a burst, in process and to another process (over
ipc, with both buses in this process). A coroutine that goes on counts as another call. Not all ways
are alike, since timers of the bus run as well: the commonest one is told. Must not judge.
Run: python -m perf.calls [--list]
"""

import argparse
import asyncio
import contextlib
import json
import logging
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from itertools import groupby, islice
from pathlib import Path
from types import FrameType
from typing import Any

import aiobus
from aiobus import AsyncEventBus, Event
from perf.trades import trades

__all__ = ["Way", "measure"]

PACKAGE = Path(aiobus.__file__).parent
LONE = 40
BURST = 1_000
BURSTS = 5
TITLES = [
    ("modules", "modules"),
    ("calls", "Python calls"),
    ("c_calls", "C calls"),
    ("changes", "changes of module"),
]
REST_SECONDS = 0.01
"""After this nothing is under way, and what runs is no event's."""


class Way:
    """The calls that `sys.setprofile` reports for the package, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        """Module and function of each Python call."""
        self.c_calls = 0
        self._modules: dict[str, str | None] = {}

    def see(self, frame: FrameType, event: str, _: Any) -> None:
        """For `sys.setprofile`."""
        if event == "call":
            if module := self._module(frame):
                self.calls.append((module, frame.f_code.co_qualname))
        elif event == "c_call" and self._module(frame):
            self.c_calls += 1

    def _module(self, frame: FrameType) -> str | None:
        name = frame.f_code.co_filename
        if name not in self._modules:
            path = Path(name)
            is_ours = path.is_relative_to(PACKAGE)
            self._modules[name] = (
                path.relative_to(PACKAGE).with_suffix("").as_posix() if is_ours else None
            )
        return self._modules[name]

    def figures(self, events: int) -> dict[str, float]:
        """The counts, for each of so many events. During a burst other things happen as well, so
        its modules are not counted.
        """
        modules = [module for module, _ in self.calls]
        return {
            **({"modules": len(set(modules))} if events == 1 else {}),
            "calls": len(modules) / events,
            "c_calls": self.c_calls / events,
            "changes": (len(list(groupby(modules))) - 1) / events,
        }

    def __str__(self) -> str:
        """A line for each stay in a module."""
        return "\n".join(
            f"{module:24} {', '.join(name for _, name in stay)}"
            for module, stay in groupby(self.calls, key=lambda call: call[0])
        )


@contextlib.asynccontextmanager
async def buses(is_shared: bool) -> AsyncIterator[tuple[AsyncEventBus, AsyncEventBus]]:
    """The publisher's bus and the subscriber's."""
    async with contextlib.AsyncExitStack() as stack:
        if is_shared:
            bus = await stack.enter_async_context(AsyncEventBus())
            yield bus, bus
            return
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ab"))
        url = f"ipc://{folder}/d"
        yield (
            await stack.enter_async_context(AsyncEventBus(url, name="publisher")),
            await stack.enter_async_context(AsyncEventBus(url, name="subscriber")),
        )


async def ways(is_shared: bool, burst: int, count: int) -> list[Way]:
    """So many ways of so many events each."""
    left, done = 0, asyncio.Event()

    async def callback(event: Event[Any]) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    found = []
    events = trades(["TRADE"], ["SYM0000"], make=Event)
    async with buses(is_shared) as (publisher, subscriber):
        await subscriber.subscribe("TRADE", callback)
        for _ in range(count + 1):  # the first fills caches
            await asyncio.sleep(REST_SECONDS)
            way, left = Way(), burst
            done.clear()
            sys.setprofile(way.see)
            for event in islice(events, burst):
                await publisher.publish(event)
            await done.wait()
            await asyncio.sleep(REST_SECONDS)
            sys.setprofile(None)
            found.append(way)
    return found[1:]


def commonest(found: list[Way]) -> Way:
    """One of those that are alike most often; of several kinds the shortest."""
    kinds = Counter(len(way.calls) for way in found)
    often = max(kinds.values())
    length = min(length for length, number in kinds.items() if number == often)
    return next(way for way in found if len(way.calls) == length)


async def lone() -> dict[str, Way]:
    """A lone event's way, by where it goes."""
    return {
        "lone, in process": commonest(await ways(True, 1, LONE)),
        "lone, to another process": commonest(await ways(False, 1, LONE)),
    }


async def count() -> dict[str, dict[str, float]]:
    """All four, of the package that is imported."""
    found = {name: way.figures(1) for name, way in (await lone()).items()}
    for name, is_shared in (("burst, in process", True), ("burst, to another process", False)):
        each = [way.figures(BURST) for way in await ways(is_shared, BURST, BURSTS)]
        found[name] = {key: statistics.median(one[key] for one in each) for key in each[0]}
    return found


async def measure(folder: Path | None) -> dict[str, dict[str, float]]:
    """All four, of the package in `folder`; None: in this directory."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "perf.calls", "--json"),
        stdout=asyncio.subprocess.PIPE,
        cwd=folder,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"perf.calls ended with {process.returncode}")
    found: dict[str, dict[str, float]] = json.loads(output)
    return found


def main() -> None:
    """Print the counts, or the ways themselves."""
    logging.getLogger("aiobus").setLevel(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="each call of a lone event, in order")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.list:
        for name, way in asyncio.run(lone()).items():
            print(f"{name}:", *str(way).splitlines(), sep="\n    ")
        return
    found = asyncio.run(count())
    if given.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        told = ", ".join(f"{figures[key]:.1f} {title}" for key, title in TITLES if key in figures)
        print(f"calls      {name:26} {told}")


if __name__ == "__main__":
    main()
