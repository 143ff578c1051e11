"""A member that was put on the list a moment ago is linked as one that was there before."""

from pathlib import Path
from typing import Any

import keys
import pytest
from actors import tcp_url

from aiobus.mesh import transport, zap

pytestmark = pytest.mark.usefixtures("no_task_is_left")


async def test_who_is_put_on_the_list_and_starts_at_once_is_linked_without_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first question, and not by one that is asked again with a tick of the clock. The list
    is read again for its key, although it was read just now.
    """
    monkeypatch.setattr(transport, "TICK", 60.0)
    monkeypatch.setattr(zap, "AT_ONCE", 60.0)
    url, path = tcp_url(), tmp_path / "keys"
    said: list[Any] = []
    async with keys.keyed_bus(path, url, "feed") as feed:
        await feed.subscribe("aiobus.refused", said.append)
        for number in range(zap.LOOKS):
            async with keys.keyed_bus(path, url, f"bot{number}") as bot:
                assert [each.name for each in bot.peers] == ["feed"]
                await feed.wait_for_peer(bot.name)
        await feed.settle()
    assert said == []
