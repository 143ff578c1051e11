"""Where the time of aiobus goes: the publisher, the subscriber and the bus of one process, each at
full rate.

Must not judge. Run: python -m perf.profile
"""

import asyncio

from perf.desk import Desk, Layout
from perf.systems import SYSTEMS

__all__ = ["profiles"]

SECONDS = 3.0


async def profiles() -> dict[str, list[str]]:
    """The profiles, by the name of the process."""
    found = {}
    async with Desk.open(SYSTEMS["aiobus"], Layout()) as desk:
        await desk.throughput(0.5)
        for process in (desk.publishers[0], desk.subscribers[0]):
            await process.do("profile")
        await desk.throughput(SECONDS)
        for part, process in (
            ("the publisher, across processes", desk.publishers[0]),
            ("the subscriber, across processes", desk.subscribers[0]),
        ):
            found[part] = (await process.do("profiled"))["lines"]
    async with Desk.open(SYSTEMS["aiobus, inproc"], Layout(is_shared=True)) as desk:
        await desk.throughput(0.5)
        await desk.publishers[0].do("profile")
        await desk.throughput(SECONDS)
        found["the bus in process"] = (await desk.publishers[0].do("profiled"))["lines"]
    return found


def main() -> None:
    """Print it."""
    for part, lines in asyncio.run(profiles()).items():
        print(part, *lines, sep="\n    ")


if __name__ == "__main__":
    main()
