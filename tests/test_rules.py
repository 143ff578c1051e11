"""What the rules of a desk forbid is refused at the own bus, and names what it is."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import keys
import pytest
from actors import tcp_url
from desks import until

from aiobus import AsyncEventBus, Event, NotPermitted
from aiobus.keyring.changes import revoke
from aiobus.keyring.members import Rules

pytestmark = pytest.mark.usefixtures("no_task_is_left")

STRATEGY = Rules(publish=frozenset({"ORDER"}), subscribe=frozenset({"FILL", "QUOTE"}))
GATEWAY = Rules(publish=frozenset({"FILL"}), subscribe=frozenset({"ORDER"}))


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[tuple[AsyncEventBus, AsyncEventBus]]:
    ring = keys.make(tmp_path / "keys", "strategy", "gateway", strategy=STRATEGY, gateway=GATEWAY)
    url = tcp_url()
    async with AsyncExitStack() as stack:
        strategy, gateway = [
            await stack.enter_async_context(AsyncEventBus(url, name=name, keyring=ring))
            for name in ("strategy", "gateway")
        ]
        yield strategy, gateway


def leave(event: Event) -> None:
    """A handler."""


async def listen(bus: AsyncEventBus, types: str | list[str]) -> None:
    async with bus.stream(types):
        pytest.fail("it is refused")


REFUSED: dict[str, tuple[str, str, Callable[[AsyncEventBus], Awaitable[object]]]] = {
    "publish": ("publish", "FILL", lambda bus: bus.publish(Event("FILL", 1))),
    "request": ("publish", "FILL", lambda bus: bus.request(Event("FILL", 1), "QUOTE")),
    "reply": ("subscribe to", "NEWS", lambda bus: bus.request(Event("ORDER", 1), "NEWS")),
    "subscribe": ("subscribe to", "ORDER", lambda bus: bus.subscribe("ORDER", leave)),
    "several": ("subscribe to", "ORDER", lambda bus: bus.subscribe(["FILL", "ORDER"], leave)),
    "everything": ("subscribe to", "*", lambda bus: bus.subscribe("*", leave)),
    "stream": ("subscribe to", "ORDER", lambda bus: listen(bus, "ORDER")),
    "wait_for": ("subscribe to", "ORDER", lambda bus: bus.wait_for("ORDER")),
}


@pytest.mark.parametrize("call", REFUSED)
async def test_what_the_rules_forbid_is_refused_by_name_and_nothing_is_half_done(
    desk: tuple[AsyncEventBus, AsyncEventBus], call: str
) -> None:
    strategy, gateway = desk
    what, types, forbidden = REFUSED[call]
    before = strategy.stats()
    with pytest.raises(NotPermitted) as raised:
        await forbidden(strategy)
    assert (raised.value.name, raised.value.what) == ("strategy", what)
    assert raised.value.types == types
    after = strategy.stats()
    assert (after.published, after.subscriptions) == (before.published, before.subscriptions)
    assert (strategy.stats().refused, gateway.stats().refused) == (0, 0)


async def test_publish_nowait_of_what_is_forbidden_is_refused(
    desk: tuple[AsyncEventBus, AsyncEventBus],
) -> None:
    with pytest.raises(NotPermitted):
        desk[0].publish_nowait(Event("FILL", 1))


async def test_a_request_and_its_reply_that_the_rules_allow_find_each_other(
    desk: tuple[AsyncEventBus, AsyncEventBus],
) -> None:
    strategy, gateway = desk

    async def fill(order: Event) -> None:
        await gateway.reply(order, Event("FILL", order.data))

    await gateway.subscribe("ORDER", fill)
    await strategy.wait_for_peer("gateway", subscribed="ORDER")
    assert (await strategy.request(Event("ORDER", 7), "FILL", to="gateway")).data == 7


async def test_the_own_system_events_need_no_rule(
    desk: tuple[AsyncEventBus, AsyncEventBus],
) -> None:
    await desk[0].subscribe("aiobus.*", leave)


async def test_a_bus_whose_own_key_is_revoked_may_do_nothing_any_more(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed")
    async with AsyncEventBus(tcp_url(), name="feed", keyring=ring) as feed:
        await feed.publish(Event("TRADE", 1))
        revoke(str(path), "feed")
        network: Any = feed._transport.network  # type: ignore[attr-defined]
        await until(lambda: not network.members.by_name)
        with pytest.raises(NotPermitted):
            await feed.publish(Event("TRADE", 2))
        with pytest.raises(NotPermitted):
            await feed.subscribe("TRADE", leave)
