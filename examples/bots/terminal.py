"""What a bot does in a terminal of its own: join the bus, say that it is live, end on Ctrl-C."""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable

from aiobus import AsyncEventBus, BusError, Event

Bot = Callable[[AsyncEventBus], Awaitable[None]]


def command_line(description: str) -> argparse.ArgumentParser:
    """A parser that knows the URL of the desk."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("url", nargs="?", default="ipc://desk", help="default: ipc://desk")
    return parser


def serve(name: str, bot: Bot) -> None:
    """Run a bot that returns when it is live, until Ctrl-C. It says that it is live to who asks."""

    async def stay(bus: AsyncEventBus) -> None:
        async def say_live(_: Event | None = None) -> None:
            await bus.publish(Event("LIVE", {}, key=name))

        await bot(bus)
        await bus.subscribe("IS_LIVE", say_live, key=name)
        await say_live()
        print(f"{name} is live on {bus.url}", flush=True)
        await bus.wait_closed()

    run(name, command_line(f"The {name} of the desk.").parse_args().url, stay)


def run(name: str, url: str, bot: Bot) -> None:
    """Run a bot until it returns or Ctrl-C. A second one of its name is refused."""

    async def session() -> None:
        async with AsyncEventBus(url, name=name) as bus:
            work = asyncio.ensure_future(bot(bus))
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, work.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await work
            # On the way out handlers finish, and what was published arrives.

    try:
        asyncio.run(session())
    except BusError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(f"{name} was interrupted")  # before it was live, or once more after its end
