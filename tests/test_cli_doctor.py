"""`aiobus doctor`: what is well, and what to do."""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import keys
import pytest
from actors import Nursery, tcp_url
from commands import ran

from aiobus import AsyncEventBus, Event, EventType, Keyring
from aiobus.cli import findings
from aiobus.cli.findings import Clocks
from aiobus.keyring.members import Rules
from aiobus.presence import Peer

pytestmark = [pytest.mark.slow, pytest.mark.one_loop]


async def examined(url: str, *given: str) -> tuple[int, list[dict[str, Any]]]:
    code, out, _ = await ran("doctor", url, "--json", *given)
    return code, [json.loads(line) for line in out.splitlines()]


def texts(found: list[dict[str, Any]], subject: str, status: str) -> str:
    return " ".join(
        f"{each['text']} {each['way']}"
        for each in found
        if (each["subject"], each["status"]) == (subject, status)
    )


async def test_versions_limits_and_who_is_there_are_told(url: str) -> None:
    async with AsyncEventBus(url, name="risk") as bus:
        await bus.subscribe("HALT", print)
        code, found = await examined(url, "--listen", "0.1")
    assert [each for each in found if each["status"] == "todo"] == []
    assert code == 0
    subjects = [each["subject"] for each in found]
    assert {"python", "aiobus", "pyzmq", "orjson", "uvloop", "sqlite"} <= set(subjects)
    assert {"descriptors", "memory", url} <= set(subjects)
    assert "subscribes to HALT" in texts(found, "risk", "ok")
    is_known = url.startswith("ipc") and sys.platform == "linux"
    assert (f"is process {os.getpid()}, with" in texts(found, "risk", "ok")) is is_known


async def test_a_stopped_bus_is_something_to_do(url: str, nursery: Nursery) -> None:
    frozen = await nursery.actor()
    async with AsyncEventBus(url, name="risk"):  # it serves a tcp:// address, which so answers
        await frozen.start(url, "frozen")
        frozen.kill(signal.SIGSTOP)
        code, out, errors = await ran("doctor", url, "--json", "--listen", "0")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert "! doctor " in errors
    assert "<locals>" not in errors
    if sys.platform == "linux" and url.startswith("ipc"):
        assert f"kill -CONT {frozen.pid}" in texts(found, "frozen", "todo")
    assert "listens, and does not answer" in texts(found, "frozen", "todo")


async def test_a_bus_that_lets_nobody_in_may_be_unable_to_read_its_keyring_and_not_only_frozen(
    tmp_path: Path,
) -> None:
    address, path = tcp_url(), tmp_path / "keys"
    here = keys.make(path, "feed", "risk", "screen", screen=Rules(publish=frozenset()))
    shutil.copytree(path, tmp_path / "other")
    async with (
        AsyncEventBus(address, name="feed", keyring=Keyring.load(tmp_path / "other")) as feed,
        AsyncEventBus(address, name="risk", keyring=Keyring.load(tmp_path / "other")),
    ):
        await feed.wait_for_peer("risk")
        (tmp_path / "other" / "desk.members").write_text("broken")
        code, found = await examined(address, "--listen", "0", "--keyring", str(here.path))
    assert code == 1
    [finding] = [each for each in found if each["subject"] == "risk"]
    # If its answers that it cannot tell are quick, its handshakes are broken off and not silent.
    assert "cannot read its" in str(finding)


async def test_what_a_killed_bus_has_left_is_told_before_it_is_removed(folder: Path) -> None:
    directory = folder / "d"
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "gone.sock"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / "tail.sock+"))
    (directory / "odd.sock").write_text("mine")
    code, found = await examined(f"ipc://{directory}", "--listen", "0")
    assert code == 1
    assert "gone, tail+ ended without closing" in texts(found, f"ipc://{directory}", "note")
    assert "odd: a file that is no socket" in texts(found, f"ipc://{directory}", "todo")
    (directory / "odd.sock").unlink()


async def test_a_desk_that_cannot_be_joined_is_something_to_do(folder: Path) -> None:
    (folder / "d").mkdir(mode=0o755)
    code, found = await examined(f"ipc://{folder}/d", "--listen", "0")
    assert code == 1
    assert "cannot be joined" in texts(found, f"ipc://{folder}/d", "todo")


async def test_nobody_is_there_is_a_note(url: str) -> None:
    code, out, _ = await ran("doctor", url, "--listen", "0")
    assert code == 0
    assert "-> start a bot, or look for a typing error" in out


def event(source: str, timestamp: float) -> Event[Any]:
    made = Event("TRADE", {}, timestamp)
    made.source = source
    return made


def test_clocks_that_differ_are_named_with_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiobus.clock.time", lambda: 1_000_000_000.0)
    clocks = Clocks()
    for source, late in (("near", 0.9), ("near", 0.02), ("ahead", -2.0), ("behind", 60.0)):
        clocks.hear(event(source, 1_000_000_000.0 - late))
    told = {each.subject: each for each in clocks.findings(1)}
    assert (told["near"].status, told["near"].text) == (
        "ok",
        "its events are 20.0 ms from this clock",
    )
    assert told["ahead"].status == told["behind"].status == "todo"
    assert "2.0 s ahead of this machine's clock" in told["ahead"].text
    assert "60.0 s behind this machine's clock" in told["behind"].text
    (silent,) = Clocks().findings(1.5)
    assert silent.text == "nothing was published in 1.5 s, so no clock was compared"


def peer(name: str, *subscribed: str) -> Peer:
    return Peer(name, 1, 1.0, 0, 0.5, subscribed)


@pytest.mark.parametrize(
    ("one", "other", "is_noted"),
    [
        ("ORDER", "ORDER", True),
        ("ORDER", "ORDER/BTC", True),
        ("ORDER/BTC", "ORDER/BTC", True),
        ("ORDER/BTC*", "ORDER/BTCUSDT", True),
        ("ORDER/BTC*", "ORDER/B*", True),
        ("ORDER/**", "ORDER/BTC", True),
        ("CANCEL", "CANCEL", True),
        ("ORDER/BTC", "ORDER/BTCUSDT", False),
        ("ORDER/BTC*", "ORDER/ETH*", False),
        ("ORDER/BTC*", "ORDER/ETH", False),
        ("ORDER", "*", False),
        ("ORDER", "CANCEL", False),
        ("FILL", "FILL", False),
    ],
)
@pytest.mark.parametrize("is_turned", [False, True])
def test_two_buses_that_are_given_the_same_order_are_a_note(
    one: str, other: str, *, is_noted: bool, is_turned: bool
) -> None:
    pair = (other, one) if is_turned else (one, other)
    others = [peer("gateway", pair[0]), peer("gateway2", pair[1]), peer("recorder", "*")]
    found = findings.doubles(others)
    assert [each.status for each in found] == ["note"] * is_noted
    assert all(each.text.startswith("gateway, gateway2 subscribe to the same") for each in found)


async def test_two_gateways_and_what_is_not_seen_are_told(url: str) -> None:
    async with AsyncEventBus(url, name="gateway") as a, AsyncEventBus(url, name="gateway2") as b:
        await a.subscribe(EventType.ORDER, print)
        await b.subscribe(EventType.ORDER, print)
        code, found = await examined(url, "--listen", "0")
    assert code == 0
    assert "executed twice" in texts(found, "ORDER", "note")
    assert "whether handlers keep up" in texts(found, url, "ok")


def test_several_buses_of_a_desk_are_there_and_one_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobus.discovery.directory.TMP", str(folder))
    desk = folder.resolve() / f"aiobus-{os.geteuid()}" / "desk"
    desk.mkdir(mode=0o700, parents=True)
    desk.parent.chmod(0o700)
    told = []
    with contextlib.ExitStack() as stack:
        for name in ("feed", "gateway"):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(str(desk / f"{name}.sock"))
            sock.listen()
            told += [each.text for each in findings.directories() if each.subject == "ipc://desk"]
    assert told == ["feed is there", "feed, gateway are there"]


def test_a_silent_bus_is_something_to_do() -> None:
    well, silent = findings.silences(
        [Peer("a", 1, 1.0, 0, 0.5, ("TRADE",)), Peer("b", 1, 1.0, 0, 4.0, ())]
    )
    assert (well.status, well.text) == ("ok", "sends heartbeats, and subscribes to TRADE")
    assert (silent.status, silent.text) == ("todo", "is silent for 4.0 s")


def test_a_skewed_clock_and_another_list_are_something_to_do() -> None:
    well = Peer("a", 1, 1.0, 0, 0.5, (), skew=-0.05, skew_error=0.001)
    wrong = Peer("b", 1, 1.0, 0, 0.5, (), skew=-0.4, skew_error=0.001, member_list="older")
    vague = Peer("c", 1, 1.0, 0, 0.5, (), skew=0.4, skew_error=0.35)
    unknown = Peer("d", 1, 1.0, 0, 0.5, ())
    others = [well, wrong, vague, unknown]
    assert [(each.subject, each.status) for each in findings.skews(others)] == [
        ("a", "ok"), ("b", "todo"), ("c", "ok"),
    ]  # fmt: skip
    assert "400.0 ms behind this machine's" in findings.skews([wrong])[0].text
    (finding,) = findings.lists(others)
    assert (finding.subject, finding.status) == ("b", "todo")
    assert "an older list of members" in finding.text


def test_low_limits_are_something_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        resource.RLIMIT_NOFILE: (100, 200),
        resource.RLIMIT_FSIZE: (10**9, 10**9),
        resource.RLIMIT_AS: (10**8, 10**8),
    }
    monkeypatch.setattr(resource, "getrlimit", known.__getitem__)
    told = {each.subject: each for each in findings.limits()}
    assert {name: each.status for name, each in told.items()} == dict.fromkeys(
        ("descriptors", "file size", "memory"), "todo"
    )
    assert "100 files (hard limit 200)" in told["descriptors"].text


def test_a_place_that_is_open_to_others_is_something_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobus.discovery.directory.TMP", str(tmp_path))
    place = tmp_path.resolve() / f"aiobus-{os.geteuid()}"
    (none,) = findings.directories()
    assert (none.status, none.subject) == ("ok", str(place))
    place.mkdir(mode=0o755)
    (found,) = findings.directories()
    assert (found.status, found.way) == (
        "todo",
        f"look who made it (ls -ld {place}), and remove it",
    )
    place.chmod(0o700)
    (place / "desk").mkdir()
    assert [each.subject for each in findings.directories()] == [str(place), "ipc://desk"]
