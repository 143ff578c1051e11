"""`aiobus replay` runs a strategy through a recording, and says what it published."""

import re
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
from journals import START, entries, entry, make

from aiobus import AsyncEventBus, Event, Journal, verify
from aiobus.__main__ import main
from aiobus.event import event_id

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

async def raises(bus):
    raise KeyError("ask")

async def handler_raises(bus):
    await bus.subscribe("TRADE", lambda trade: trade.data["ask"])

async def never_begins(bus):
    await bus.wait_for("NEVER")

async def ends(bus):
    raise SystemExit(0)

async def threads(bus):
    import threading
    await bus.subscribe("TRADE", lambda trade: threading.Thread(target=print).start())

class Bot:
    async def strategy(self, bus):
        await bus.subscribe("TRADE", print)

async def writes(bus):
    async def on_trade(trade):
        with open("orders.txt", "a") as file:
            file.write(trade.id)
    await bus.subscribe("TRADE", on_trade)

constant = 1
"""
LIVE = """
import asyncio, sys
from aiobus import AsyncEventBus, Event, record

async def strategy(bus):
    pass

async def main():
    async with {bus} as bus:
        print("LIVE")

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bots_of_replay.py").write_text(BOTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bots_of_replay", raising=False)
    path = tmp_path / "desk.db"
    make(path, entries(30))
    return path


NOT_RECORDED = (
    "{} was not recorded, so the events of no source were left out for it: if the strategy is one"
    " of feed, strategy, name it by --name"
)


def said(capsysbinary: pytest.CaptureFixture[bytes]) -> tuple[list[str], str]:
    out, errors = capsysbinary.readouterr()
    return out.decode().splitlines(), errors.decode()


def test_it_prints_what_the_strategy_publishes_and_a_summary(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    broker = "broker=bots_of_replay:broker"
    given = ["--beside", broker, "--type", "TRADE", "--speed", "100", "--tz", "UTC"]
    assert main(["replay", str(path), "bots_of_replay:strategy", *given]) == 0
    lines, _ = said(capsysbinary)
    assert len(lines) == 21
    assert re.fullmatch(
        r"1 2023-11-14T22:13:20.\d+\+00:00 ORDER - strategy@\w+\.1 \{.*\} <- feed@gqll7vatq8\.3",
        lines[0],
    )
    assert lines[-1] == (
        "10 events played, 0 gaps; strategy published 10 DONE, 10 ORDER; 0 calls of its handlers"
        " raised"
    )


@pytest.mark.parametrize("speed", [[], ["--speed", "1000"]])
def test_without_a_strategy_it_shows_what_was_recorded(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes], speed: list[str]
) -> None:
    assert main(["replay", str(path), "--type", "TRADE", "--tz", "UTC", *speed]) == 0
    lines, _ = said(capsysbinary)
    with Journal(path) as journal:
        recorded = [event.id for _, event in journal.read(types="TRADE")]
    assert [line.split(" ")[4] for line in lines[:-1]] == recorded
    assert lines[-1] == f"{len(recorded)} events played, 0 gaps"
    assert main(["replay", str(path), "--beside", "broker=bots_of_replay:broker"]) == 2


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
        "10 events played, 0 gaps; other published nothing; 0 calls of its handlers raised",
        NOT_RECORDED.format("other"),
    ]


@pytest.mark.parametrize(
    ("bot", "code", "text"),
    [
        ("strategy", 2, "a module and a function are needed"),
        ("no_such_module:strategy", 2, "No module named"),
        ("bots_of_replay:nothing", 2, "has no nothing"),
        ("bots_of_replay:constant", 2, "is no function"),
        ("bots_of_replay.py:strategy", 2, "without .py, such as bots_of_replay:strategy"),
        ("bots_of_replay:leaves", 1, "was refused: nothing leaves the process"),
        ("bots_of_replay:raises", 1, "a strategy raised KeyError: 'ask' at "),
    ],
)
def test_what_goes_wrong_is_said_in_a_sentence(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes], bot: str, code: int, text: str
) -> None:
    assert main(["replay", str(path), bot]) == code
    _, errors = said(capsysbinary)
    assert text in errors


def test_the_command_works_in_a_shell(path: Path) -> None:
    command = [sys.executable, "-m", "aiobus", "replay", str(path), "bots_of_replay:broker"]
    done = subprocess.run(
        command, cwd=path.parent, capture_output=True, text=True, timeout=25, check=True
    )
    assert done.stdout.startswith("30 events played")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--beside", "nonsense"], "--beside 'nonsense': a name and a bot are needed"),
        (["--start", "09:30"], "'09:30': Unix seconds, or a date and time"),
    ],
)
def test_a_wrong_argument_is_named(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes], given: list[str], text: str
) -> None:
    assert main(["replay", str(path), "bots_of_replay:broker", *given]) == 2
    assert text in said(capsysbinary)[1]


def test_a_handler_that_raises_is_an_exit_code(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["replay", str(path), "bots_of_replay:handler_raises"]) == 1
    assert "10 calls of its handlers raised" in said(capsysbinary)[0][0]


def test_requests_that_found_no_bot_are_counted_with_the_way_out(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["replay", str(path), "bots_of_replay:strategy"]) == 1
    lines, _ = said(capsysbinary)
    assert lines[1] == (
        "10 requests for ORDER found no subscriber: give the bot that answers them by --beside"
    )


def test_a_strategy_that_has_not_begun_is_named_with_its_place(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["replay", str(path), "bots_of_replay:never_begins"]) == 0
    lines, _ = said(capsysbinary)
    assert re.search(r"waits at never_begins .*bots_of_replay\.py", lines[1])


# A module is imported, and nothing of it goes live.


@pytest.mark.parametrize("command", ["replay", "verify"])
@pytest.mark.parametrize(
    "bus",
    [
        'AsyncEventBus("ipc://{folder}/d", name="live")',
        'AsyncEventBus(name="live", journal="{folder}/live.db")',
        'AsyncEventBus() as live, record(live, "{folder}/record.db")',
    ],
)
def test_a_module_that_starts_a_bus_as_it_is_imported_is_refused(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes], command: str, bus: str
) -> None:
    text = LIVE.format(bus=bus.format(folder=path.parent))
    (path.parent / "live_bot.py").write_text(text)
    sys.modules.pop("live_bot", None)
    assert main([command, str(path), "live_bot:strategy"]) == 2
    lines, errors = said(capsysbinary)
    assert lines == []
    assert "importing live_bot starts " in errors
    assert 'put what starts a bus under `if __name__ == "__main__":`' in errors
    assert not (path.parent / "live.db").exists()


@pytest.mark.parametrize(
    "start",
    [
        "with contextlib.suppress(Exception): asyncio.run(main())",
        "t = threading.Thread(target=lambda: asyncio.run(main())); t.start(); t.join()",
        "threading.Timer(0, lambda: [going.wait(20), asyncio.run(main()), gone.set()]).start()",
    ],
)
def test_a_bus_that_such_a_module_starts_later_or_in_silence_is_refused_too(
    path: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
    start: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda arguments: gone.set())
    going, gone = threading.Event(), threading.Event()
    bus = f'AsyncEventBus("ipc://{path.parent}/d", name="live")'
    text = LIVE.format(bus=bus).replace("asyncio.run(main())", start)
    (path.parent / "live_bot.py").write_text(
        f"import contextlib, threading\nfrom test_signals import going, gone\n{text}"
    )
    signals = types.ModuleType("test_signals")
    signals.going, signals.gone = going, gone  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "test_signals", signals)
    sys.modules.pop("live_bot", None)

    def verify_meanwhile(*args: object, **options: object) -> object:
        going.set()
        assert "Timer" not in start or gone.wait(20)
        return verify(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("aiobus.cli.replay.verify", verify_meanwhile)
    assert main(["verify", str(path), "live_bot:strategy"]) == 2
    lines, errors = said(capsysbinary)
    assert "LIVE" not in lines
    assert "starts live on ipc://" in errors


async def test_a_strategy_that_ends_the_program_has_no_verdict(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    from replays import session, trades

    async def echo(bus: AsyncEventBus) -> None:
        await bus.subscribe("TRADE", lambda trade: bus.publish(Event("SIGNAL", trade.data)))

    taped = path.parent / "taped.db"
    await session(taped, echo, trades)
    assert main(["verify", str(taped), "bots_of_replay:ends"]) != 0


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("def (", "SyntaxError: invalid syntax at "),
        ("import no_such_library", "importing broken_bot raised ModuleNotFoundError"),
        ("raise RuntimeError('no key')", "raised RuntimeError: no key at "),
        ("import sys; sys.exit('usage')", "raised SystemExit: usage at "),
        ("import sys; sys.exit(len(sys.argv))", "raised SystemExit: 1 at "),
    ],
)
def test_a_module_that_cannot_be_imported_is_no_verdict(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes], code: str, text: str
) -> None:
    (path.parent / "broken_bot.py").write_text(code)
    for command in ("verify", "replay"):
        sys.modules.pop("broken_bot", None)
        assert main([command, str(path), "broken_bot:strategy"]) == 2
    assert text in said(capsysbinary)[1]


def test_an_error_that_is_not_of_the_strategy_is_not_said_to_be(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    given = ["replay", str(path), "bots_of_replay:broker", "--end", "1"]
    assert main(given) == 1
    assert said(capsysbinary)[1].startswith(f"the recording {path} has nothing to play")


def test_handlers_of_the_bots_beside_count_as_well(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    given = ["--beside", "other=bots_of_replay:handler_raises"]
    assert main(["replay", str(path), "bots_of_replay:broker", *given]) == 1
    assert "10 calls of handlers of other raised" in said(capsysbinary)[0]


def test_a_request_that_finds_no_subscriber_names_who_answered_it(
    path: Path, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    asked = entry(2, type="ORDER", source="strategy")
    cause = event_id(asked.source, asked.epoch, asked.seq)
    answer = entry(3, type="FILL", source="risk", cause=cause)
    make(tmp_path / "asked.db", [entry(1), asked, answer])
    assert main(["replay", str(tmp_path / "asked.db"), "bots_of_replay:strategy"]) == 1
    assert said(capsysbinary)[0][-1] == (
        "1 requests for ORDER found no subscriber: risk answered when it was recorded, so give"
        " --beside risk=module:function"
    )


def test_a_refused_thread_is_one_sentence_with_its_place(path: Path) -> None:
    command = [sys.executable, "-m", "aiobus", "replay", str(path), "bots_of_replay:threads"]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, timeout=25)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert re.match(r"Thread.start\(\) at threads.*bots_of_replay\.py:\d+\) was refused", last)
    assert "MemoryNetwork" not in last
    assert "cannot go on" not in done.stderr


def test_the_exit_code_of_a_verdict_does_not_hang_on_what_reads_it(
    path: Path,
) -> None:
    code = (
        "import os, sys; from aiobus.__main__ import main; "
        "r, w = os.pipe(); os.dup2(w, 1); os.close(r); os.close(w); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "verify", str(path), "bots_of_replay:broker"]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, timeout=25)
    assert (done.returncode, done.stderr) == (2, b"")
