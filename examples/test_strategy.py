"""How to test a strategy: give it a bus, publish what it should see, settle, compare.

Run it: pytest examples/test_strategy.py (with pytest-asyncio in any mode, or without it)
"""

import pytest

from aiobus import AsyncEventBus, Event, EventType
from quickstart import follow_the_whales

pytest_plugins = ["aiobus.testing"]  # the fixture `bus`; with several files, in conftest.py


async def watch(bus: AsyncEventBus) -> list[Event]:
    """Every signal of a desk that follows the whales."""
    seen: list[Event] = []
    await bus.subscribe(EventType.SIGNAL, seen.append)
    await follow_the_whales(bus)
    return seen


def trade(side: str, price: float, quantity: float, symbol: str = "BTCUSDT") -> Event:
    """A trade as the feed publishes it."""
    data = {"side": side, "price": price, "quantity": quantity}
    return Event(EventType.TRADE, data, key=symbol)


async def test_a_large_trade_is_followed(bus: AsyncEventBus) -> None:
    """Events are equal when type, data and key are."""
    seen = await watch(bus)
    cause = await bus.publish(trade("sell", 39_430.5, 2.0))
    await bus.settle()
    assert seen == [Event(EventType.SIGNAL, {"side": "sell", "price": 39_430.5}, key="BTCUSDT")]
    assert seen[0].cause == cause.id


@pytest.mark.parametrize(("symbol", "quantity"), [("BTCUSDT", 0.99), ("ETHUSDT", 2.0)])
async def test_any_other_trade_is_not(bus: AsyncEventBus, symbol: str, quantity: float) -> None:
    """What `key=` and `where=` keep out never reaches the strategy."""
    seen = await watch(bus)
    await bus.publish(trade("buy", 39_430.5, quantity, symbol))
    await bus.settle()
    assert seen == []
