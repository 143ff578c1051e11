"""What a bot does in a terminal of its own: join the desk, say that it is live, end on Ctrl-C."""

import argparse
from collections.abc import Awaitable, Callable

import aiobus
from aiobus import AsyncEventBus

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
        say_live(bus)

    aiobus.run(live, command_line(f"The {name} of the desk.").parse_args().url, name)


def say_live(bus: AsyncEventBus) -> None:
    """Say that the bot is live."""
    print(f"{bus.name} is live on {bus.url}", flush=True)
