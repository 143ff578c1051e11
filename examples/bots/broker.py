"""The broker: a paper one, that fills every order at the last quote it saw.

Run it: python examples/bots/broker.py [ipc://desk]
"""

from aiobus import AsyncEventBus, Event, EventType
from terminal import serve

STALE = 2.0  # seconds after which an order is not executed any more: its sender has given it up


async def broker(bus: AsyncEventBus) -> None:
    """Answer each ORDER with an ACK and a FILL, buys at the ask and sells at the bid. Live when
    this returns.
    """
    quotes: dict[str, dict[str, float]] = {}

    def on_quote(quote: Event) -> None:
        quotes[quote.key] = quote.data

    async def on_order(order: Event) -> None:
        quote = quotes.get(order.key)
        if quote is None:
            await bus.publish(Event(EventType.REJECT, {"reason": "no quote yet"}, key=order.key))
            return
        await bus.publish(Event(EventType.ACK, {}, key=order.key))
        price = quote["ask"] if order.data["side"] == "buy" else quote["bid"]
        await bus.publish(Event(EventType.FILL, {**order.data, "price": price}, key=order.key))

    await bus.subscribe(EventType.QUOTE, on_quote, overflow="latest")
    await bus.subscribe(EventType.ORDER, on_order, max_age=STALE)


if __name__ == "__main__":
    serve("broker", broker)
