"""Pin a strategy to a recorded session: the test fails with the first decision that differs.

Run it: pytest examples/regression_test.py (python examples/regression_test.py records it again)
"""

import asyncio
import sys
from pathlib import Path
from statistics import fmean  # sum() rounds otherwise since Python 3.12

import pytest

from aiobus import AsyncEventBus, Event, EventType, assert_replays, record, verify

sys.path.append(str(Path(__file__).parent / "bots"))
from recording import trades

SESSION = Path(__file__).parent / "data" / "whales.db"
TRADES, WHALE = 800, 1.0  # how many are recorded, and from how many BTC on one is large


async def follow_the_whales(bus: AsyncEventBus) -> None:
    """Signal the side of every large trade, with the mean price of the trades since the last."""
    prices: list[float] = []

    async def on_trade(trade: Event) -> None:
        prices.append(trade.data["price"])
        if trade.data["quantity"] >= WHALE:
            signal = {"side": trade.data["side"], "mean": fmean(prices)}
            prices.clear()
            await bus.publish(Event(EventType.SIGNAL, signal, key=trade.key))

    await bus.subscribe(EventType.TRADE, on_trade, key="BTCUSDT")


def test_the_strategy_decides_as_it_did() -> None:
    """If one signal is another, or is missing, this fails and says which."""
    assert assert_replays(SESSION, follow_the_whales).deliveries == TRADES


def test_a_changed_parameter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report names the first signal that differs, and the trade that led to it."""
    monkeypatch.setattr("regression_test.WHALE", 2.0)
    print(difference := str(verify(SESSION, follow_the_whales).difference))
    assert "an output is missing: follow_the_whales" in difference


async def main() -> None:
    """Record what the strategy does with the trades."""
    for path in SESSION.parent.glob(f"{SESSION.name}*"):
        path.unlink()
    async with AsyncEventBus(name="desk") as bus, record(bus, SESSION, attach=follow_the_whales):
        for type, data in list(trades())[:TRADES]:
            await bus.publish(Event(type, data, key="BTCUSDT"))
        await bus.settle()


if __name__ == "__main__":
    asyncio.run(main())
