"""`python -m aiobus replay` runs a strategy through a recording, and says what it published."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from journals import START, entries, make

from aiobus.__main__ import main

BOTS = """
from aiobus import Event

async def strategy(bus):
    async def on_trade(trade):
        fill = await bus.request(Event("ORDER", trade.data), "FILL", timeout=1)
        await bus.publish(Event("DONE", fill.data))
    await bus.subscribe("TRADE", on_trade)

async def broker(bus):
    async def on_order(order):
        await bus.publish(Event("FILL", order.data))
    await bus.subscribe("ORDER", on_order)

async def leaves(bus):
    async def on_trade(trade):
        import urllib.request
        urllib.request.urlopen("http://127.0.0.1:9")
    await bus.subscribe("TRADE", on_trade)

async def writes(bus):
    async def on_trade(trade):
        with open("orders.txt", "a") as file:
            file.write(trade.id)
    await bus.subscribe("TRADE", on_trade)

constant = 1
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bots_of_replay.py").write_text(BOTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bots_of_replay", raising=False)
    path = tmp_path / "desk.db"
    make(path, entries(30))
    return path


def said(capsysbinary: pytest.CaptureFixture[bytes]) -> tuple[list[str], str]:
    out, errors = capsysbinary.readouterr()
    return out.decode().splitlines(), errors.decode()


def test_it_prints_what_the_strategy_publishes_and_a_summary(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    broker = "broker=bots_of_replay:broker"
    given = ["--beside", broker, "--type", "TRADE", "--speed", "100"]
    assert main(["replay", str(path), "bots_of_replay:strategy", *given]) == 0
    lines, _ = said(capsysbinary)
    assert len(lines) == 21
    assert re.fullmatch(
        r"1 2023-11-14T22:13:20.\d+Z ORDER - strategy@\w+\.1 \{.*\} <- feed@gqll7vatq8\.3", lines[0]
    )
    assert lines[-1] == (
        "10 events played, 0 gaps; strategy published 10 DONE, 10 ORDER; 0 calls of its handlers"
        " raised"
    )


def test_it_names_the_files_that_were_opened_for_writing(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    assert main(["replay", str(path), "bots_of_replay:writes"]) == 0
    lines, _ = said(capsysbinary)
    assert lines[-1] == f"opened for writing: {path.parent / 'orders.txt'}"


def test_it_begins_and_ends_where_it_is_told(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    given = ["--start", "11", "--end", str(START + 21 / 8), "--name", "other"]
    assert main(["replay", str(path), "bots_of_replay:broker", *given]) == 0
    lines, _ = said(capsysbinary)
    assert lines == [
        "10 events played, 0 gaps; other published nothing; 0 calls of its handlers raised"
    ]


@pytest.mark.parametrize(
    ("bot", "text"),
    [
        ("strategy", "a module and a function are needed"),
        ("no_such_module:strategy", "No module named"),
        ("bots_of_replay:nothing", "has no nothing"),
        ("bots_of_replay:constant", "is no function"),
        ("bots_of_replay:leaves", "was refused: nothing leaves the process"),
    ],
)
def test_what_goes_wrong_is_said_in_a_sentence(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes], bot: str, text: str
) -> None:
    assert main(["replay", str(path), bot]) == 1
    _, errors = said(capsysbinary)
    assert text in errors


def test_the_command_works_in_a_shell(path: Path) -> None:
    command = [sys.executable, "-m", "aiobus", "replay", str(path), "bots_of_replay:broker"]
    done = subprocess.run(
        command, cwd=path.parent, capture_output=True, text=True, timeout=25, check=True
    )
    assert done.stdout.startswith("30 events played")
