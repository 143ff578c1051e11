"""The strategy, recorded so that `aiobus verify` can run it again.

Run it: python examples/bots/recorded_strategy.py [ipc://desk] [--file strategy.db]
"""

import aiobus
from aiobus import AsyncEventBus, record
from strategy import strategy
from terminal import command_line, say_live


def main() -> None:
    """Read the command line, trade until Ctrl-C."""
    parser = command_line("The strategy of the desk, recorded.")
    parser.add_argument("--file", default="strategy.db", help="default: strategy.db")
    options = parser.parse_args()

    async def live(bus: AsyncEventBus) -> None:
        async with record(bus, options.file, attach=strategy):
            say_live(bus)
            await bus.wait_closed()  # Ctrl-C ends that, and so the recording

    aiobus.run(live, options.url, "strategy")


if __name__ == "__main__":
    main()
