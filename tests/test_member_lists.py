"""Which peers have another list of the desk's members: shown, and said once for each change."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import orjson
import pytest
from desks import Desk

from aiobus import AsyncEventBus
from aiobus.bus import parts_of
from aiobus.mesh.survey import standing
from aiobus.mesh.transport import MeshTransport
from aiobus.wire import NO_OPTIONS, Options, WireError, parse_from_subscriber

Logged = Callable[[str], AbstractContextManager[asyncio.Event]]
A, B = "0123456789abcdef", "fedcba9876543210"


def give(bus: AsyncEventBus, number: int, digest: str) -> None:
    """The host of this bus has this list now."""
    transport = parts_of(bus).transport
    assert isinstance(transport, MeshTransport)
    assert transport.session is not None
    transport.session.links.survey.note_list(number, digest)


async def until_standing(bus: AsyncEventBus, **standings: str) -> None:
    """Wait until the lists of the peers stand so to that of this bus."""
    while {each.name: each.member_list for each in bus.peers} != standings:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def test_a_list_is_older_newer_or_another_of_the_same_number() -> None:
    mine = Options(members=2, members_digest=A)
    assert standing(mine, Options(members=1, members_digest=B)) == "older"
    assert standing(mine, Options(members=3, members_digest=B)) == "newer"
    assert standing(mine, Options(members=2, members_digest=B)) == "other"
    assert standing(mine, mine) == ""


def test_a_bus_without_a_keyring_has_no_list_that_differs() -> None:
    mine = Options(members=2, members_digest=A)
    assert standing(mine, NO_OPTIONS) == standing(NO_OPTIONS, mine) == ""


@pytest.mark.parametrize("digest", ["x", A[:-1], A.upper(), A + "\n", 7])
def test_a_digest_that_is_none_is_refused(digest: Any) -> None:
    options = {"members": 1, "members_digest": digest}
    message = orjson.dumps(["?", 2, "*", 1, "bot@1 tcp://127.0.0.1:7001", options])
    with pytest.raises(WireError, match="members_digest"):
        parse_from_subscriber(message)


@pytest.mark.slow
@pytest.mark.paired
async def test_until_all_have_the_new_list_a_line_names_those_that_have_not(
    mesh: Desk, logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiobus")
    feed, bot, risk = await mesh.bus("feed"), await mesh.bus("bot"), await mesh.bus("risk")
    for bus in (feed, bot, risk):
        give(bus, 4, A)
    await until_standing(feed, bot="", risk="")
    line = "feed has number 5, and bot has an older list (4), risk has an older list (4)."
    with logged(line) as differ, logged("and feed has a newer list (5).") as behind:
        give(feed, 5, B)
        await differ.wait()
        await behind.wait()
    await until_standing(feed, bot="older", risk="older")
    with logged("feed has number 5, and risk has an older list (4).") as fewer:
        give(bot, 5, B)
        await fewer.wait()
    with logged("all peers of feed have its list of members, number 5") as over:
        give(risk, 5, B)
        await over.wait()
    await until_standing(feed, bot="", risk="")


@pytest.mark.paired
async def test_two_lists_of_one_number_are_named(mesh: Desk, logged: Logged) -> None:
    feed, bot = await mesh.bus("feed"), await mesh.bus("bot")
    with logged("bot has another list of the same number (5)") as said:
        give(feed, 5, A)
        give(bot, 5, B)
        await said.wait()
    await until_standing(feed, bot="other")
