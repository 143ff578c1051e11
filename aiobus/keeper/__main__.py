"""`python -m aiobus.keeper ipc://desk state.db POSITION HALT`: a keeper as a process of its own.

Owns the arguments, the signals that end it, and the exit code. What a keeper does is in `keeper`.
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

from aiobus import AsyncEventBus, BusError, EventType, Keeper, Keyring
from aiobus.limits import KEEPER
from aiobus.url import desk_in

__all__ = ["main"]

TYPES = EventType.POSITION, EventType.HALT

log = logging.getLogger("aiobus.keeper")


async def _run(bus: AsyncEventBus, path: str, types: Sequence[str]) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with Keeper(bus, path, types=types) as keeper:
        log.info("%r keeps %s on %s", keeper, ", ".join(types), bus.url)
        await stopped.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a keeper until SIGTERM, then return 0, or until Ctrl-C, then return 130. Returns 1 if it
    fails, with one line that says why.
    """
    parser = argparse.ArgumentParser(
        prog="python -m aiobus.keeper",
        usage="%(prog)s [-h] [--keyring DIR] [URL] FILE [TYPE ...]",
        description="Hold the newest state of a desk on disk, and answer for publishers that are"
        " gone.",
        epilog="Example: python -m aiobus.keeper ipc://desk state.db POSITION HALT",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[URL] FILE [TYPE ...]",
        help="the desk, such as ipc://desk, without it that in AIOBUS_URL; the file, which is made"
        " if it is not there; and the types, by default POSITION HALT",
    )
    parser.add_argument(
        "--keyring",
        metavar="DIR",
        help=f"the keys of a tcp:// desk, with a secret of {KEEPER}; default: AIOBUS_KEYRING",
    )
    given = parser.parse_args(arguments)
    try:
        url, rest = desk_in(given.words)
    except ValueError as error:
        parser.error(str(error))
    if not rest:
        parser.error(f"the file is needed behind the URL {url}, such as state.db")
    path, *types = rest
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        keyring = None if given.keyring is None else Keyring.load(given.keyring)
        bus = AsyncEventBus(url, name=KEEPER, keyring=keyring)
        asyncio.run(_run(bus, path, types or TYPES))
    except KeyboardInterrupt:
        return 130
    except (BusError, ValueError) as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
