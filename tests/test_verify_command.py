"""`aiobus verify FILE module:function`."""

import asyncio
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
from commands import called
from replays import session, trades

STRATEGY = """
from aiobus import AsyncEventBus, Event

async def echo(bus: AsyncEventBus) -> None:
    async def on_trade(trade: Event) -> None:
        await bus.publish(Event("SIGNAL", trade.data, key=trade.key))
    await bus.subscribe("TRADE", on_trade)

async def other(bus: AsyncEventBus) -> None:
    async def on_trade(trade: Event) -> None:
        await bus.publish(Event("SIGNAL", {"number": 0}, key=trade.key))
    await bus.subscribe("TRADE", on_trade)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [*sys.path])  # a command that is called puts its folder there
    monkeypatch.delitem(sys.modules, "bots", raising=False)
    (tmp_path / "bots.py").write_text(STRATEGY)
    names: dict[str, object] = {}
    exec(STRATEGY, names)
    asyncio.run(session(tmp_path / "bots.db", names["echo"], trades))  # type: ignore[arg-type]
    return tmp_path


SCRIPT = "import sys; from aiobus.__main__ import main; sys.exit(main())"


def installed(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """`aiobus` as pip installs it: its own folder comes first on the path of Python, and not the
    working directory.
    """
    script = folder / "bin" / "aiobus"
    script.parent.mkdir(exist_ok=True)
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=folder, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_the_installed_command_imports_a_strategy_from_the_working_directory(folder: Path) -> None:
    code, told, complaint = installed(folder, "verify", "bots.db", "bots:echo")
    assert (code, complaint) == (0, ""), told
    code, told, complaint = installed(folder, "replay", "bots.db", "bots:echo", "--name", "echo")
    assert (code, complaint) == (0, ""), told


@pytest.mark.parametrize("command", ["verify", "replay"])
@pytest.mark.parametrize("file", ["nope.db", "bots.py"])
def test_a_wrong_file_is_said_before_the_strategy_is_imported(
    folder: Path, command: str, file: str
) -> None:
    with chdir(folder):
        code, told, complaint = called(command, file, "none:echo")
    assert code == (2 if command == "verify" else 1)
    assert f"{file} " in told + complaint
    assert "No module named" not in told + complaint


def ran(folder: Path, *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-W", "error", "-m", "aiobus", "verify", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_the_code_is_0_if_it_agrees_1_if_it_diverges_and_2_if_nothing_is_said(
    folder: Path,
) -> None:
    code, told, complaint = ran(folder, "bots.db", "bots:echo")
    assert (code, complaint) == (0, ""), told
    assert told.startswith("bots.db: AGREES\n5 deliveries, 5 outputs agree")
    with chdir(folder):
        code, told, complaint = called("verify", "bots.db", "bots:other")
        assert (code, complaint) == (1, "")
        assert "differs in: data.number" in told
        assert called("verify", "bots.db", "bots:other", "--ignore", "data.number")[0] == 2
        assert called("verify", "none.db", "bots:echo")[:2] == (
            2,
            (
                "none.db: INCONCLUSIVE, none.db does not exist: give the path of a journal\n"
                "0 deliveries, 0 outputs agree\n"
            ),
        )


@pytest.mark.parametrize("name", ["bots", "none:echo", "bots:none"])
def test_what_cannot_be_imported_is_said(folder: Path, name: str) -> None:
    with chdir(folder):
        code, told, complaint = called("verify", "bots.db", name)
    assert (code, told) == (2, "")
    assert "Traceback" not in complaint
    assert len(complaint.splitlines()) == 1
