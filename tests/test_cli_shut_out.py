"""Commands beside a desk with keys that does not let them in: what they say, and how they end."""

import json
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from commands import ran, running
from keys import KeyedDesk, keyed_bus, make, replaced

from aiobus import AsyncEventBus, Event
from aiobus.keyring.changes import revoke
from aiobus.keyring.members import Rules

pytestmark = [pytest.mark.slow, pytest.mark.one_loop]

WAY_OUT = "does not let this bus in: the list of members there does not have the key"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[KeyedDesk]:
    """`feed` and `risk` are there, and no command is on their list. `newer` is a keyring that has
    one for each, and for the bus `late`.
    """
    desk = KeyedDesk(tmp_path / "keys", "feed", "risk")
    shutil.copytree(desk.path, tmp_path / "newer")
    make(tmp_path / "newer", "late", "screen", "publish", screen=Rules(publish=frozenset()))
    async with desk.bus("feed"), desk.bus("risk") as risk:
        await risk.subscribe("HALT", print)
        yield desk


def newer(desk: KeyedDesk) -> tuple[str, str]:
    return "--keyring", str(desk.path.parent / "newer")


def late_on(desk: KeyedDesk) -> AsyncEventBus:
    return keyed_bus(desk.path.parent / "newer", desk.url, "late")


async def test_peers_ends_and_says_who_does_not_let_it_in_and_what_to_do(desk: KeyedDesk) -> None:
    code, out, errors = await ran("peers", desk.url, *newer(desk))
    assert (code, out) == (1, "")
    assert errors.count(WAY_OUT) == 2
    assert "copy the newest desk.members to that host" in errors
    assert f"! feed, risk do not link with screen, as which this command joins {desk.url}" in errors


async def test_publish_publishes_nothing_where_no_bus_lets_it_in(desk: KeyedDesk) -> None:
    code, out, errors = await ran("publish", desk.url, "HALT", "{}", *newer(desk))
    assert (code, out) == (1, "")
    assert WAY_OUT in errors
    assert "! not published: feed, risk do not link with publish" in errors


async def test_doctor_has_something_to_do_for_each_bus_that_does_not_let_it_in(
    desk: KeyedDesk,
) -> None:
    code, out, _ = await ran("doctor", desk.url, "--json", "--listen", "0", *newer(desk))
    found = {each["subject"]: each for each in map(json.loads, out.splitlines())}
    assert code == 1
    for name in ("feed", "risk"):
        assert found[name]["status"] == "todo"
        assert "does not let this bus in" in found[name]["text"]
        assert "copy the newest desk.members to that host" in found[name]["way"]
    assert found[desk.url]["text"] != "nobody is there"


async def test_tail_says_why_and_goes_on_once_it_is_let_in(desk: KeyedDesk) -> None:
    async with running("tail", desk.url, "-n", "1", "TRADE", *newer(desk)) as tail:
        await tail.says(WAY_OUT)
        await tail.says("see above. Waiting until one does")
        replaced(desk.path / "desk.members", (desk.path.parent / "newer/desk.members").read_text())
        await tail.says("is there")
        async with late_on(desk) as late:
            await tail.says("- late is there")
            await late.publish(Event("TRADE", 1))
            code, out, _ = await tail.ended()
    assert (code, out.count("TRADE")) == (0, 1)


async def test_record_says_why_and_waits(desk: KeyedDesk, tmp_path: Path) -> None:
    async with running("record", desk.url, f"{tmp_path}/desk.db", *newer(desk)) as recorder:
        await recorder.says(WAY_OUT)
        await recorder.says("see above. Waiting until one does")
        assert (await recorder.end(signal.SIGTERM))[0] == 0


async def test_where_one_bus_lets_it_in_the_others_are_marked(desk: KeyedDesk) -> None:
    """The list of one host is older."""
    async with late_on(desk):
        code, out, errors = await ran("peers", desk.url, *newer(desk))
        assert code == 0, errors
        assert "late" in out
        assert out.count("not linked !") == 2
        code, out, errors = await ran("publish", desk.url, "HALT", "{}", *newer(desk))
        assert code == 4
        assert "feed, risk" in errors


COMMANDS = {
    "peers": [],
    "tail": [],
    "publish": ["HALT", "{}"],
    "record": ["no.db"],
    "doctor": ["--listen", "0"],
}


@pytest.mark.parametrize("command", COMMANDS)
async def test_another_desk_secret_ends_each_command_with_1_and_says_so(
    desk: KeyedDesk, command: str
) -> None:
    replaced(desk.path.parent / "newer" / "desk.seal", "ab" * 32)
    code, out, errors = await ran(command, desk.url, *COMMANDS[command], *newer(desk))
    assert code == 1
    assert "does not share this desk's secret: copy the file desk.seal" in out + errors


@pytest.mark.parametrize("command", COMMANDS)
async def test_who_is_revoked_on_the_own_list_ends_with_1_and_is_told_its_way_back(
    desk: KeyedDesk, command: str
) -> None:
    name = "publish" if command == "publish" else "screen"
    revoke(str(desk.path.parent / "newer"), name)
    words = [*COMMANDS[command], "--name", name, *newer(desk)]
    code, out, errors = await ran(command, desk.url, *words)
    assert code == 1
    assert f"{name!r} was revoked in" in out + errors
    assert f"`python -m aiobus keygen {name}" in out + errors
