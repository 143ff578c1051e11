"""The strategy: a moving-average cross on trades. Its SIGNALs become ORDERs that wait for an ACK.

Run it: python examples/bots/strategy.py [ipc://desk]
"""

from collections import deque
from statistics import fmean

from aiobus import AsyncEventBus, Event, EventType, NoSubscribers, RequestTimeout
from terminal import serve

SYMBOL = "BTCUSDT"
FAST, SLOW = 20, 100  # trades
QUANTITY = 0.01  # BTC
FRESH = 1.0  # seconds after which a signal that had to wait, for a broker, is not acted on any more
PATIENCE = 2.0  # seconds an order may wait for its answer


async def strategy(bus: AsyncEventBus) -> None:
    """Buy when the fast average rises above the slow one, sell when it falls below. Live when this
    returns.
    """
    prices: deque[float] = deque(maxlen=SLOW)
    last_side = ""

    async def on_trade(trade: Event) -> None:
        nonlocal last_side
        prices.append(trade.data["price"])
        if len(prices) < SLOW:
            return
        fast, slow = fmean(list(prices)[-FAST:]), fmean(prices)
        side = "buy" if fast > slow else "sell"
        if last_side and side != last_side:
            signal = {"side": side, "fast": fast, "slow": slow}
            await bus.publish(Event(EventType.SIGNAL, signal, key=trade.key))
        last_side = side

    async def on_signal(signal: Event) -> None:
        data = {"side": signal.data["side"], "quantity": QUANTITY}
        order = Event(EventType.ORDER, data, key=signal.key)
        try:
            reply = await bus.request(order, (EventType.ACK, EventType.REJECT), timeout=PATIENCE)
        except NoSubscribers:
            print(f"no broker is there, so the {data['side']} signal is dropped")
        except RequestTimeout:  # it was published, so it may still be acted on
            print(f"no answer to order {order.id}, so it is cancelled")
            await bus.publish(Event(EventType.CANCEL, {"order": order.id}, key=order.key))
        else:
            if reply.type == EventType.REJECT:
                print(f"order {order.id} was rejected: {reply.data['reason']}")

    await bus.subscribe(EventType.SIGNAL, on_signal, key=SYMBOL, max_age=FRESH)
    await bus.subscribe(EventType.TRADE, on_trade, key=SYMBOL)


if __name__ == "__main__":
    serve("strategy", strategy)
