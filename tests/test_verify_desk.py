"""The desk of the examples in four processes: its strategy is recorded, and replays under each hash
seed.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DESKS = int(os.environ.get("REPLAY_DESKS", "3"))
"""How many are recorded, in turns on both loops; `make soak` has 20."""
SEEDS = ("0", "1", "2", "3", "random")
HERE = Path(__file__).parent
BOTS = HERE.parent / "examples" / "bots"
BOT = HERE / "recorded_bot.py"


def python(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "error", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "AIOBUS_LOG": "WARNING", **environment},
    )


def finished(process: "subprocess.Popen[str]") -> str:
    """What it has printed. It has to succeed without a complaint."""
    told, complaint = process.communicate(timeout=50)
    assert (process.returncode, complaint) == (0, ""), told
    return told


def verified(path: Path, fast: int, seed: str) -> str:
    return finished(python(BOT, "verify", path, fast, PYTHONHASHSEED=seed))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("desk", range(DESKS))
def test_a_desk_of_four_processes_replays_and_a_changed_parameter_is_named(desk: int) -> None:
    with tempfile.TemporaryDirectory(prefix="aiobus-") as folder:
        url, path = f"ipc://{folder}", Path(folder) / "strategy.db"
        loop = ("asyncio", "uvloop")[desk % 2]
        others = [python(BOTS / f"{name}.py", url) for name in ("broker", "monitor")]
        strategy = python(BOT, "record", url, path, loop)
        feed = python(BOTS / "feed.py", url, "--speed", 30, "--audience", "strategy,broker")
        try:
            finished(feed)
            strategy.communicate(timeout=50)  # at its end it complains of tasks that are cut off
            assert strategy.returncode == 0
        finally:
            for process in (*others, feed, strategy):
                process.terminate()
                process.communicate()
        reports = [verified(path, 20, seed) for seed in SEEDS]
        assert {report.splitlines()[0] for report in reports} == {f"{path}: AGREES"}, reports
        assert len(set(reports)) == 1  # with one fingerprint
        found = re.search(r"(\d+) outputs agree", reports[0])
        assert found is not None
        assert int(found[1]) > 100  # on a busy machine more quotes are conflated
        changed = verified(path, 21, "0")
        assert changed.startswith(f"{path}: DIVERGES")
        assert "SIGNAL BTCUSDT strategy@" in changed
        assert "caused by: TRADE BTCUSDT feed@" in changed
