"""The recorder: all that the desk hears, in a file, for `aiobus log` and `explain`.

Run it: python examples/bots/recorder.py [ipc://desk] [--file desk.db]
"""

import aiobus
from aiobus import AsyncEventBus, record
from terminal import command_line, say_live


def main() -> None:
    """Read the command line, record until Ctrl-C."""
    parser = command_line("The recorder of the desk.")
    parser.add_argument("--file", default="desk.db", help="default: desk.db")
    options = parser.parse_args()

    async def recorder(bus: AsyncEventBus) -> None:
        async with record(bus, options.file):
            say_live(bus)
            await bus.wait_closed()  # Ctrl-C ends that, and so the recording

    aiobus.run(recorder, options.url, "recorder")


if __name__ == "__main__":
    main()
