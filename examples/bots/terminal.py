"""What a bot does in a terminal of its own: join the bus, say that it is live, end on Ctrl-C."""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable

from aiobus import AsyncEventBus, BusError

Bot = Callable[[AsyncEventBus], Awaitable[None]]


def command_line(description: str) -> argparse.ArgumentParser:
    """A parser that knows the URL of the desk."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("url", nargs="?", default="ipc://desk", help="default: ipc://desk")
    return parser


def serve(name: str, bot: Bot) -> None:
    """Run a bot that returns when it is live, until Ctrl-C."""

    async def live(bus: AsyncEventBus) -> None:
        await bot(bus)
        await stay(bus)

    run(name, command_line(f"The {name} of the desk.").parse_args().url, live)


async def stay(bus: AsyncEventBus) -> None:
    """Say that the bot is live, until it ends."""
    print(f"{bus.name} is live on {bus.url}", flush=True)
    await bus.wait_closed()


def run(name: str, url: str, bot: Bot) -> None:
    """Run a bot until it returns or Ctrl-C. A second one of its name is refused."""

    async def session() -> None:
        async with AsyncEventBus(url, name=name) as bus:
            work = asyncio.ensure_future(bot(bus))
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, work.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await work  # on the way out handlers finish, and what was published arrives

    try:
        asyncio.run(session())
    except BusError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(f"{name} was interrupted")  # before it was live, or once more after its end
