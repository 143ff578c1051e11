"""A member that was put on the list a moment ago is linked as one that was there before."""

from pathlib import Path
from typing import Any

import keys
import pytest
from actors import tcp_url

from aiobus.mesh import transport

pytestmark = pytest.mark.usefixtures("no_task_is_left")


async def test_who_is_put_on_the_list_and_starts_at_once_is_linked_without_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first question, and not by one that is asked again with a tick of the clock. The list
    is read again for its key, although it was read just now.
    """
    monkeypatch.setattr(transport, "TICK", 60.0)
    url, path = tcp_url(), tmp_path / "keys"
    said: list[Any] = []
    async with keys.keyed_bus(path, url, "feed") as feed:
        await feed.subscribe("aiobus.refused", said.append)
        for number in range(4):
            async with keys.keyed_bus(path, url, f"bot{number}") as bot:
                assert [each.name for each in bot.peers] == ["feed"]
                await feed.wait_for_peer(bot.name)
        await feed.settle()
    assert said == []


async def test_a_link_that_is_ended_and_made_at_once_again_is_made(tmp_path: Path) -> None:
    """The monitor of the link before may still have its address."""
    url, path = tcp_url(), tmp_path / "keys"
    async with keys.keyed_bus(path, url, "feed"), keys.keyed_bus(path, url, "bot") as bot:
        mesh: Any = bot._transport
        (peer,) = mesh.session.links
        for _ in range(20):
            mesh.network.disconnect(peer.endpoint)
            mesh.network.connect(peer.endpoint, peer.name)
        assert mesh.network._links[peer.endpoint].xsub is not None
