"""Which bus a link with keys leads to: it is known by name before it has said anything."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import keys
import pytest
from actors import tcp_url

from aiobus import AsyncEventBus, Event
from aiobus.discovery import Member
from aiobus.keyring import Keyring

pytestmark = pytest.mark.usefixtures("no_task_is_left")


@pytest.fixture
async def apart(tmp_path: Path) -> AsyncIterator[tuple[Any, Any]]:
    """Two buses of one desk that do not meet at an address, and its keyring has a third member."""
    ring: Keyring = keys.make(tmp_path / "keys", "feed", "strategy", "ghost")
    async with AsyncExitStack() as stack:
        feed, strategy = [
            await stack.enter_async_context(AsyncEventBus(tcp_url(), name=name, keyring=ring))
            for name in ("feed", "strategy")
        ]
        yield feed, strategy


async def test_a_bus_that_was_said_to_be_another_is_linked_once_its_name_is_known(
    apart: tuple[Any, Any],
) -> None:
    feed, strategy = apart
    endpoint = feed._transport.session.me.endpoint
    async with strategy.stream("aiobus.refused") as refusals:
        strategy._transport.find(Member("ghost", endpoint))
        refusal = await anext(refusals)
    assert (refusal.data["name"], refusal.data["cause"]) == ("ghost", "key")
    strategy._transport.find(Member("feed", endpoint))
    await strategy.wait_for_peer("feed", timeout=5)
    async with strategy.stream("T") as events:
        await feed.publish(Event("T", 1))
        assert (await anext(events)).data == 1
