"""The command in a real terminal: Ctrl-C, Ctrl-Z, a closed pipe, a window that changes its size."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest
from commands import COMMAND, ENVIRONMENT, ROOT
from journals import entries, make

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

FEED = """
import asyncio, sys
from aiobus import AsyncEventBus, Event

async def main():
    async with AsyncEventBus(sys.argv[1], name="feed") as bus:
        print("LIVE", flush=True)
        number = 0
        while True:
            number += 1
            await bus.publish(Event("TRADE", {"number": number}, key="BTC"))
            await asyncio.sleep(float(sys.argv[2]))

asyncio.run(main())
"""
AIOBUS = " ".join(COMMAND)


@contextmanager
def feeding(url: str, seconds: float = 0.02) -> Iterator[subprocess.Popen[str]]:
    """A process that publishes a TRADE each so many seconds."""
    process = subprocess.Popen(
        [sys.executable, "-c", FEED, url, str(seconds)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "LIVE\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def shell() -> Iterator[Any]:
    """An interactive shell in a terminal of 30 lines."""
    made = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile", "-i"],
        env={**ENVIRONMENT, "PS1": "", "PS2": "", "HISTFILE": "/dev/null"},
        cwd=str(ROOT),
        dimensions=(30, 120),
        encoding="utf-8",
        timeout=30,
    )
    made.sendline("PS1='READY> '; bind 'set enable-bracketed-paste off'; stty -echo")
    made.expect("READY> $")
    yield made
    made.close(force=True)


def settings(shell: Any) -> str:
    """How the terminal is set."""
    shell.sendline("stty -a")
    shell.expect("READY> $")
    return str(shell.before)


def code(shell: Any) -> int:
    """Of the last command."""
    shell.sendline("echo CODE=$?")
    shell.expect(r"CODE=(\d+)")
    found = int(shell.match[1])
    shell.expect("READY> $")
    return found


def test_ctrl_c_ends_a_tail_with_130_and_leaves_the_terminal_as_it_was(
    shell: Any, folder: Path
) -> None:
    url = f"ipc://{folder}/d"
    before = settings(shell)
    with feeding(url):
        shell.sendline(f"{AIOBUS} tail {url}")
        shell.expect('{"number":')
        shell.sendintr()
        shell.expect("READY> $")
        assert "Traceback" not in shell.before
        assert code(shell) == 130
    assert settings(shell) == before


def test_ctrl_c_ends_a_tail_that_waits_for_somebody(shell: Any, folder: Path) -> None:
    shell.sendline(f"{AIOBUS} tail ipc://{folder}/d")
    shell.expect("nobody is at")
    shell.sendintr()
    shell.expect("READY> $")
    assert "Traceback" not in shell.before
    assert code(shell) == 130


def test_ctrl_c_ends_a_recording_with_what_is_in_it(shell: Any, folder: Path) -> None:
    url = f"ipc://{folder}/d"
    with feeding(url):
        shell.sendline(f"{AIOBUS} record {url} {folder}/desk.db")
        shell.expect(r"[1-9]\d* events, ")
        shell.sendintr()
        shell.expect(rf"(\d+) events, .* MB, in {folder}/desk.db")
        shell.expect("READY> $")
        assert "Traceback" not in shell.before
        assert code(shell) == 130
    shell.sendline(f"{AIOBUS} log {folder}/desk.db --verify")
    shell.expect("events, all as they were written")


def test_a_tail_that_was_stopped_by_ctrl_z_goes_on_with_all_that_it_missed(
    shell: Any, folder: Path
) -> None:
    url = f"ipc://{folder}/d"
    with feeding(url):
        shell.sendline(f"{AIOBUS} tail {url} TRADE --json > {folder}/out.jsonl")
        shell.expect("there already")
        while not (folder / "out.jsonl").read_text().count("\n"):
            pass
        shell.sendcontrol("z")
        shell.expect("Stopped")
        shell.expect("READY> $")
        count = (folder / "out.jsonl").read_text().count("\n")
        shell.sendline(f"{AIOBUS} tail {url} TRADE --quiet -n 60 > /dev/null")  # time passes
        shell.expect("READY> $")
        shell.sendline("fg")
        while (folder / "out.jsonl").read_text().count("\n") < count + 120:
            pass
        shell.sendintr()
        shell.expect("READY> $")
        assert code(shell) == 130
    numbers = re.findall(r'"number":(\d+)', (folder / "out.jsonl").read_text())
    first = int(numbers[0])
    assert [*map(int, numbers)] == [*range(first, first + len(numbers))]


@pytest.mark.parametrize("seconds", [0.0001, 0.02])
def test_a_closed_pipe_ends_a_tail_quietly(shell: Any, folder: Path, seconds: float) -> None:
    url = f"ipc://{folder}/d"
    with feeding(url, seconds):
        shell.sendline(f"{AIOBUS} tail {url} -q | head -n 1; echo CODES=${{PIPESTATUS[*]}}")
        shell.expect("CODES=0 0")
        assert "Traceback" not in shell.before
        assert shell.before.count("TRADE") == 1


def test_a_closed_pipe_ends_a_tail_of_a_desk_where_nothing_happens(
    shell: Any, folder: Path
) -> None:
    shell.sendline(f"{AIOBUS} tail ipc://{folder}/d | true; echo CODES=${{PIPESTATUS[*]}}")
    shell.expect("CODES=0 0")
    assert "Traceback" not in shell.before


def test_a_tail_shows_colors_in_a_terminal_and_none_in_a_pipe(shell: Any, folder: Path) -> None:
    url = f"ipc://{folder}/d"
    with feeding(url):
        shell.sendline(f"{AIOBUS} tail {url} -n 1")
        shell.expect("READY> $")
        assert "\x1b[36mTRADE\x1b[0m BTC" in shell.before
        for way in (f"NO_COLOR=1 {AIOBUS} tail {url} -n 1", f"{AIOBUS} tail {url} -n 1 | cat"):
            shell.sendline(way)
            shell.expect("READY> $")
            assert " TRADE BTC feed@" in shell.before


def test_a_window_may_change_its_size(shell: Any, folder: Path) -> None:
    url = f"ipc://{folder}/d"
    with feeding(url):
        shell.sendline(f"{AIOBUS} tail {url} -n 60")
        shell.expect("TRADE")
        for rows, columns in ((10, 20), (60, 200)):
            shell.setwinsize(rows, columns)
            shell.expect("TRADE")
        shell.expect("READY> $")
        assert code(shell) == 0


def test_a_terminal_that_is_held_holds_up_no_bot(shell: Any, folder: Path) -> None:
    url = f"ipc://{folder}/d"
    with feeding(url, 0.001):
        shell.sendline(f"{AIOBUS} tail {url}")
        shell.expect("TRADE")
        shell.sendcontrol("s")
        told = subprocess.run(
            [*COMMAND, "tail", url, "--quiet", "-n", "3000"],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (told.returncode, told.stderr) == (0, "")
        shell.sendcontrol("q")
        shell.expect("TRADE")
        shell.sendintr()
        shell.expect("READY> $")


def test_an_export_that_takes_long_shows_how_far_it_is(shell: Any, tmp_path: Path) -> None:
    make(tmp_path / "desk.db", entries(60_000))
    (tmp_path / "impatient.py").write_text(
        "import sys; from aiobus.__main__ import main; from aiobus.cli import terminal;"
        " terminal.PATIENCE = 0.0; sys.exit(main(sys.argv[1:]))"
    )
    export = f"{sys.executable} {tmp_path}/impatient.py export {tmp_path}/desk.db {tmp_path}"
    shell.sendline(f"{export}/desk.jsonl")
    shell.expect(r"exporting to desk.jsonl.*/60000")
    shell.expect("60000 events")
    shell.expect("READY> $")
    assert code(shell) == 0
    shell.sendline(f"{export}/more.jsonl 2>&1 | cat")
    shell.expect("READY> $")
    assert shell.before.strip() == "60000 events"


def test_a_second_ctrl_c_ends_what_does_not_end(shell: Any, folder: Path) -> None:
    url = f"ipc://{folder}/d"
    shell.sendline(f"{AIOBUS} record {url} {folder}/desk.db")
    shell.expect("nobody is at")
    shell.sendintr()
    shell.sendintr()
    shell.expect("READY> $")
    assert "Traceback" not in shell.before
    assert code(shell) == 130


def test_the_demo_trades_in_a_terminal_and_explains_its_last_fill(shell: Any, folder: Path) -> None:
    shell.sendline(f"{AIOBUS} demo --seconds 3 --url ipc://{folder}/d --file {folder}/demo.db")
    shell.expect(rf"aiobus tail ipc://{folder}/d")
    for type in ("SIGNAL", "ORDER", "FILL"):
        shell.expect(f"{type}.{{0,10}} DEMO")
    shell.expect(r"FILL broker@\w+\.\d+ explained")
    for type in (
        "TRADE DEMO feed@",
        "SIGNAL DEMO strategy@",
        "ORDER DEMO gateway@",
        "> .*FILL DEMO",
    ):
        shell.expect(type)
    shell.expect("READY> $")
    assert code(shell) == 0


def test_the_bench_prints_its_figures(shell: Any) -> None:
    shell.sendline(f"{AIOBUS} bench --seconds 0.5")
    for what in ("json", "inproc", "ipc"):
        shell.expect(rf"{what} +[\d,]+ events/s")
    shell.expect(r"latency +[\d,]+ us \(p50\)")
    shell.expect("READY> $")
    assert code(shell) == 0
