"""Events of a journal in the shell, and in files of other programs."""

import json
import signal
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import called
from journals import START, entries, entry, make, read

from aiobus import Journal, JournalCorrupt, JournalError
from aiobus.__main__ import main

ROOT = Path(__file__).parent.parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gateway.db"


def plain(path: Path, **given: Any) -> list[dict[str, Any]]:
    """What a journal has, as an export says it."""
    return [
        {
            "offset": offset,
            "source": event.source,
            "epoch": event.epoch,
            "seq": event.seq,
            "id": event.id,
            "time": event.timestamp,
            "type": event.type,
            "key": event.key,
            "cause": event.cause,
            "data": event.data,
        }
        for offset, event in read(path, **given)
    ]


def damage(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE events SET time = time + 1 WHERE seq = 5")
    connection.commit()
    connection.close()


# Files.


def test_json_lines_have_every_field_of_every_event(path: Path, tmp_path: Path) -> None:
    make(path, entries(50))
    out = tmp_path / "out.jsonl"
    with Journal(path) as journal:
        assert journal.export(out) == 50
    assert [json.loads(line) for line in out.read_text().splitlines()] == plain(path)
    assert out.stat().st_mode & 0o777 == 0o600


def test_an_export_selects_as_read_does(path: Path, tmp_path: Path) -> None:
    make(path, entries(50))
    out = tmp_path / "out.jsonl"
    with Journal(path) as journal:
        assert journal.export(out, types="FILL", since=START + 2) == 12
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines == plain(path, types="FILL", since=START + 2)


def test_parquet_has_every_field_of_every_event_and_is_read_by_pandas(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `parquet` is not installed")
    monkeypatch.setattr("aiobus.journal.export.GROUP_EVENTS", 20)
    make(path, entries(50))
    out = tmp_path / "out.parquet"
    with Journal(path) as journal:
        assert journal.export(out) == 50
    rows = parquet.read_table(out).to_pylist()
    assert [{**row, "data": json.loads(row["data"])} for row in rows] == plain(path)


def test_parquet_without_pyarrow_says_what_to_install(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    make(path, entries(5))
    with Journal(path) as journal, pytest.raises(JournalError, match=r"aiobus-zmq\[parquet\]"):
        journal.export(tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_an_export_of_a_damaged_journal_has_the_events_before_the_damage(
    path: Path, tmp_path: Path
) -> None:
    make(path, entries(20))
    damage(path)
    out = tmp_path / "out.jsonl"
    with Journal(path) as journal, pytest.raises(JournalCorrupt) as caught:
        journal.export(out)
    assert caught.value.valid == len(out.read_text().splitlines()) == 4


def test_an_export_replaces_no_file(path: Path, tmp_path: Path) -> None:
    make(path, entries(5))
    (tmp_path / "out.jsonl").write_text("mine")
    with Journal(path) as journal:
        with pytest.raises(FileExistsError):
            journal.export(tmp_path / "out.jsonl")
        with pytest.raises(ValueError, match=r"\.jsonl or \.parquet is needed"):
            journal.export(tmp_path / "out.csv")
    assert (tmp_path / "out.jsonl").read_text() == "mine"


# The shell.


shell = partial(called, "log")


def test_the_shell_prints_a_line_for_each_event(path: Path) -> None:
    make(path, [*entries(3), entry(4, {"price": 1}, cause="feed@gqx6g1nk74.3")])
    code, out, err = shell(path, "--tz", "Asia/Kolkata")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 4
    assert lines[3] == (
        "4 2023-11-15T03:43:20.500000+05:30 TRADE BTCUSDT feed@gqmdgydcjk.4"
        ' {"price":1} <- feed@gqx6g1nk74.3'
    ).replace("feed@gqmdgydcjk.4", read(path)[3][1].id)


def test_the_shell_prints_json_that_programs_read(path: Path) -> None:
    make(path, entries(20))
    code, out, _ = shell(path, "--json", "--type", "FILL", "--key", "KEY*", "--start", 10)
    assert code == 0
    wanted = plain(path, types="FILL", keys="KEY*", start_offset=10)
    assert [json.loads(line) for line in out.splitlines()] == wanted
    assert wanted


@pytest.mark.parametrize("since", [str(START + 1), "2023-11-14T22:13:21+00:00"])
def test_the_shell_takes_a_time_in_seconds_or_in_iso_8601(path: Path, since: str) -> None:
    make(path, entries(20))
    code, out, _ = shell(path, "--since", since, "--source", "feed")
    assert (code, len(out.splitlines())) == (0, 13)


def test_the_shell_prints_what_is_whole_and_then_says_what_is_damaged(path: Path) -> None:
    make(path, entries(20))
    damage(path)
    code, out, err = shell(path)
    assert (code, len(out.splitlines())) == (1, 4)
    assert "is damaged from offset 5 on" in err
    assert "The 4 events before that are whole" in err
    code, out, err = shell(path, "--verify")
    assert (code, out) == (1, "")
    assert "offset 5" in err


def test_the_shell_verifies_and_exports(path: Path, tmp_path: Path) -> None:
    make(path, entries(20))
    assert shell(path, "--verify") == (0, "20 events, all as they were written\n", "")
    out = tmp_path / "out.jsonl"
    assert shell(path, "--export", out, "--type", "FILL") == (0, "7 events\n", "")
    assert len(out.read_text().splitlines()) == 7


def test_the_shell_says_in_a_sentence_that_a_file_is_no_journal(path: Path) -> None:
    code, out, err = shell(path)
    assert (code, out) == (1, "")
    assert err == f"{path} does not exist: give the path of a journal\n"
    path.write_text("a letter, and longer than the head of a database is: " + "x" * 100)
    code, out, err = shell(path)
    assert (code, out) == (1, "")
    assert "is no journal" in err
    code, out, err = shell(path, "--since", "yesterday")
    assert code == 2
    assert "yesterday" in err


def test_the_shell_writes_no_control_character_to_a_terminal(path: Path) -> None:
    make(path, [entry(1, "\x1b[2J\x9b", key="\x1b]0;title\x07")])
    _, out, _ = shell(path)
    assert out.rstrip("\n").isprintable()


def test_the_shell_follows_what_is_written(path: Path) -> None:
    make(path, entries(3))
    follower = subprocess.Popen(
        [sys.executable, "-m", "aiobus", "log", str(path), "--follow", "--type", "FILL"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert follower.stdout is not None
    try:
        assert follower.stdout.readline().startswith("2 ")
        make(path, entries(3, 4))
        assert follower.stdout.readline().startswith("5 ")
        make(path, entries(3, 7))
        assert follower.stdout.readline().startswith("8 ")
    finally:
        follower.send_signal(signal.SIGINT)
        assert follower.wait() == 130
        follower.stdout.close()


def test_the_shell_ends_quietly_if_what_reads_its_output_ends(path: Path) -> None:
    make(path, entries(20_000))
    ends = f"{sys.executable} -m aiobus log {path} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", ends], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.stdout.splitlines()[-1], done.stderr) == ("0", "")


def test_the_command_may_be_called_from_python(
    path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    make(path, entries(2))
    assert main(["log", str(path)]) == 0
    assert len(capsysbinary.readouterr().out.splitlines()) == 2
