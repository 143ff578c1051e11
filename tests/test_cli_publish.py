"""`aiobus publish` and `aiobus peers`: who has an event, and who is there."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from actors import Nursery
from commands import COMMAND, ENVIRONMENT, ROOT, ran, running

from aiobus import AsyncEventBus, Event
from aiobus.cli.peers import FIELDS
from aiobus.cli.session import LOOK_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.one_loop]


async def test_each_subscriber_has_it_when_the_command_ends(url: str) -> None:
    heard: list[Event[Any]] = []
    async with AsyncEventBus(url, name="risk") as bus:
        await bus.subscribe("HALT", heard.append)
        given = ["--key", "BTC", "--cause", "me", "--name", "hand"]
        code, out, errors = await ran("publish", url, "HALT", '{"reason": "test"}', *given)
        await bus.settle()
    assert (code, errors) == (0, "risk has it\n")
    (event,) = heard
    assert event == Event("HALT", {"reason": "test"}, key="BTC")
    assert (event.source, event.cause, event.id) == ("hand", "me", out.strip())


async def test_the_data_comes_from_stdin(url: str) -> None:
    heard: list[Event[Any]] = []
    async with AsyncEventBus(url, name="risk") as bus:
        await bus.subscribe("ORDER", heard.append)
        code, out, _ = await ran("publish", url, "ORDER", "-", "--json", given=b'[1, "x"]\n')
        await bus.settle()
    assert (code, json.loads(out)["data"], heard[0].data) == (0, [1, "x"], [1, "x"])


async def test_nobody_who_subscribes_to_it_is_a_warning_and_the_code_3(url: str) -> None:
    async with AsyncEventBus(url, name="risk") as bus:
        await bus.subscribe("HALT", print)
        code, out, errors = await ran("publish", url, "HALTED", "{}")
    assert (code, errors) == (
        3,
        f"! published, and nobody subscribes to HALTED at {url}: nobody has it\n",
    )
    assert out.startswith("publish-")


async def test_it_waits_for_somebody_who_subscribes(url: str) -> None:
    heard: list[Event[Any]] = []
    async with (
        running("publish", url, "START", "1", "--wait", "40") as command,
        AsyncEventBus(url, name="late") as bus,
    ):
        await bus.subscribe("START", heard.append)
        code, _, errors = await command.ended()
        await bus.settle()
    assert (code, errors, heard) == (0, "late has it\n", [Event("START", 1)])


async def test_a_signal_before_it_was_published_is_no_success(url: str) -> None:
    # Once the name is linked, the command has its handlers of signals, and waits.
    wait = ("publish", url, "START", "1", "--wait", "60", "--name", "hand")
    async with AsyncEventBus(url, name="other") as bus:
        for how, wanted in ((signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)):
            async with running(*wait) as command:
                await bus.wait_for_peer("hand", timeout=30)
                assert (await command.end(how))[:2] == (wanted, "")


async def test_it_is_published_though_nobody_reads_its_output(url: str) -> None:
    heard: list[Event[Any]] = []
    read, write = os.pipe()
    os.close(read)
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "publish", url, "START", "1", "--wait", "60", "--name", "hand"),
        stdout=write, cwd=ROOT, env=ENVIRONMENT,
    )  # fmt: skip
    os.close(write)
    async with AsyncEventBus(url, name="late") as bus:
        await bus.wait_for_peer("hand", timeout=30)
        await asyncio.sleep(3 * LOOK_SECONDS)  # in which it sees that, and would end
        await bus.subscribe("START", heard.append)
        assert await process.wait() == 0
        await bus.settle()
    assert heard == [Event("START", 1)]


async def test_a_name_in_use_is_said_and_nothing_is_published(url: str) -> None:
    async with AsyncEventBus(url, name="risk"):
        code, out, errors = await ran("publish", url, "HALT", "{}", "--name", "risk")
    assert (code, out) == (1, "")
    assert "risk" in errors
    assert "Traceback" not in errors


async def test_peers_tells_who_is_there_and_what_they_subscribe_to(url: str) -> None:
    async with AsyncEventBus(url, name="risk") as bus, AsyncEventBus(url, name="feed") as feed:
        await bus.subscribe("HALT", print)
        code, out, errors = await ran("peers", url)
        assert (code, errors) == (0, "")
        head, *lines = out.splitlines()
        assert head.split() == ["NAME", "SINCE", "SILENT", "CLOCK", "SUBSCRIBES", "TO"]
        assert [(line.split()[0], line.split()[-1]) for line in lines] == [
            ("feed", "-"),
            ("risk", "HALT"),
        ]
        code, out, _ = await ran("peers", url, "--json")
        told = [json.loads(line) for line in out.splitlines()]
    assert [(each["name"], each["subscribed"]) for each in told] == [
        ("feed", []),
        ("risk", ["HALT"]),
    ]
    assert abs(told[0]["since"] - feed.stats().epoch / 1e6) < 3


async def test_no_key_that_a_peer_subscribes_to_moves_the_cursor(url: str) -> None:
    async with AsyncEventBus(url, name="risk") as bus:
        await bus.subscribe("HALT", print, key="\x9b2J\u202e")
        for options in ((), ("--json",)):
            _, out, _ = await ran("peers", url, *options)
            assert "HALT" in out
            assert all(line.isprintable() for line in out.split("\n"))


async def test_peers_shows_a_bus_that_does_not_answer_with_a_mark(
    url: str, nursery: Nursery
) -> None:
    frozen = await nursery.actor()
    async with AsyncEventBus(url, name="risk"):
        await frozen.start(url, "frozen")
        frozen.kill(signal.SIGSTOP)
        (code, out, _), (_, lines, _) = await asyncio.gather(
            ran("peers", url), ran("peers", url, "--json")
        )
    assert code == 0
    marked = [line.split()[0] for line in out.splitlines() if "!" in line]
    assert marked == ["frozen"]
    told = {each["name"]: each for each in map(json.loads, lines.splitlines())}
    assert told["frozen"] == {**dict.fromkeys(FIELDS), "name": "frozen"}
    assert told["risk"]["silent"] is not None


async def test_a_frozen_bus_alone_is_somebody(folder: Path, nursery: Nursery) -> None:
    frozen = await nursery.actor()
    await frozen.start(f"ipc://{folder}/d", "frozen")
    frozen.kill(signal.SIGSTOP)
    code, out, errors = await ran("peers", f"ipc://{folder}/d")
    assert (code, "frozen" in out, "nobody" in errors) == (0, True, False)


async def test_peers_says_that_nobody_is_there(url: str) -> None:
    code, out, errors = await ran("peers", url)
    assert (code, out) == (3, "")
    assert errors.startswith(f"nobody is at {url} ({url.partition('://')[2]})")


async def test_peers_names_the_desks_where_somebody_is_the_most_similar_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiobus.discovery.directory.TMP", str(folder))
    async with AsyncEventBus("ipc://alpha"), AsyncEventBus("ipc://nu-desk"):
        code = (
            "import sys; from aiobus.discovery import directory; from aiobus.__main__ import main;"
            "directory.TMP = sys.argv[1]; sys.exit(main(['peers', 'ipc://nu-dsk']))"
        )
        command = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, str(folder), stderr=asyncio.subprocess.PIPE, cwd=ROOT
        )
        _, errors = await command.communicate()
    assert command.returncode == 3
    assert errors.decode().endswith("; somebody is at ipc://nu-desk, ipc://alpha\n")
