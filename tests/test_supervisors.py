"""What docs/how-to/systemd-and-docker.md shows does what the page says."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aiobus import AsyncEventBus, Event, EventType
from aiobus.bot.process import CLOSE_SECONDS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "how-to" / "systemd-and-docker.md").read_text()
SHOWN = dict(re.findall(r"```\w+ ([\w.-]+)\n(.*?)```", PAGE, re.DOTALL))
UNIT, DOCKERFILE = SHOWN["desk-strategy.service"], SHOWN["Dockerfile"]


def setting(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)
    return str(value)


@pytest.mark.one_loop
async def test_the_bot_of_the_page_trades_and_ends_with_0_at_sigterm(
    tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "strategy.py").write_text(SHOWN["strategy.py"])
    url = f"ipc://{folder}/d"
    environment = {**os.environ, "AIOBUS_URL": url, "AIOBUS_LOG": "WARNING"}
    environment["PYTHONPATH"] = str(ROOT)
    async with AsyncEventBus(url, name="feed") as bus:
        async with bus.stream(["aiobus.peer_joined", EventType.SIGNAL]) as events:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "strategy.py"),
                cwd=tmp_path,
                env=environment,
                stderr=subprocess.PIPE,
            )
            assert (await anext(events)).data["name"] == "strategy"
            signalled: Event | None = None
            while signalled is None:  # it subscribes after it has joined
                await bus.publish(Event(EventType.TRADE, {"price": 38_990.5}, key="BTCUSDT"))
                try:
                    async with asyncio.timeout(0.1):
                        signalled = await anext(events)
                except TimeoutError:
                    pass
            assert signalled.data == {"side": "buy"}
        process.send_signal(signal.SIGTERM)
        _, logged = await process.communicate()
    assert (process.returncode, logged) == (0, b"")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_has_no_mistake_that_systemd_finds(tmp_path: Path) -> None:
    """It names a program that is not here, so this interpreter takes its place."""
    command = setting("ExecStart").replace("/opt/desk/.venv/bin/python", sys.executable)
    unit = UNIT.replace(setting("ExecStart"), command)
    assert verified(tmp_path, unit) == ""
    assert "'RestartSeconds'" in verified(tmp_path, unit.replace("RestartSec=", "RestartSeconds="))


def verified(folder: Path, unit: str) -> str:
    """What systemd complains of in this unit. Others of the machine are none of our business."""
    file = folder / "desk-strategy.service"
    file.write_text(unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return "".join(line for line in done.stderr.splitlines(True) if file.name in line)


def test_a_supervisor_waits_longer_than_the_end_of_a_bot_takes() -> None:
    assert int(setting("TimeoutStopSec")) > CLOSE_SECONDS
    (docker,) = re.findall(r"--stop-timeout (\d+)", PAGE)
    assert int(docker) > CLOSE_SECONDS
    assert f"`close_timeout` ({CLOSE_SECONDS:g} s)" in PAGE


def test_the_command_of_the_image_is_no_shell_that_keeps_the_signal() -> None:
    assert re.search(r'^CMD \["python", "strategy.py"\]$', DOCKERFILE, re.MULTILINE)
