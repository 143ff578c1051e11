"""Feed, strategy, broker, monitor and recorder, each a process of its own, on one ipc:// bus; then,
from their recordings, how a fill came about, and the strategy once more. This is `make demo`.
Ctrl-C ends it early, with the summary so far.

Run it: python examples/bots/desk.py [--speed 10] [--file desk.db]
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from afterwards import tell
from feed import positive
from processes import run_together

BOTS = ("feed", "strategy", "broker", "monitor", "recorder")  # the way of a tick


def main() -> int:
    """Read the command line, trade in a directory that no other bus knows."""
    parser = argparse.ArgumentParser(description="Four bots trade 46 recorded seconds of BTCUSDT.")
    parser.add_argument("--speed", type=positive, default=1.15, help="times real time")
    parser.add_argument("--file", type=Path, help="keep the recording there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aiobus-desk-") as directory:
        recording = given.file or Path(directory) / "desk.db"
        tape = Path(directory) / "strategy.db"
        scripts = {"strategy": "recorded_strategy"}
        options = {
            "feed": (f"--speed={given.speed}", f"--audience={','.join(BOTS[1:])}"),
            "strategy": (f"--file={tape}",),
            "recorder": (f"--file={recording}",),
        }
        url = f"ipc://{directory}/bus"
        commands = [(scripts.get(bot, bot), url, *options.get(bot, ())) for bot in BOTS]
        status = asyncio.run(run_together(commands))
        tell(recording, tape)
    return status


if __name__ == "__main__":
    sys.exit(main())
