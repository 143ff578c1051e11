"""A gateway that answers from the reader of its connection: the handler of an order sends it and
returns, and what the exchange says later is the reply. The exchange is a small server, here.
"""

import asyncio
import json

from aiobus import AsyncEventBus, Event, EventType

URL = "ipc://gateway-reply"
ANSWERS = [EventType.ACK, EventType.REJECT]


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept orders of up to 2, and fill what was accepted."""
    async for line in reader:
        order = json.loads(line)
        for type in ["ACK", "FILL"] if order["quantity"] <= 2 else ["REJECT"]:
            writer.write(f"{json.dumps({'type': type, 'id': order['id']})}\n".encode())
    writer.close()


async def read(bus: AsyncEventBus, reader: asyncio.StreamReader) -> None:
    """Tell what the exchange says of the orders, until it hangs up."""
    async for line in reader:
        said = json.loads(line)
        if said["type"] in ANSWERS:  # the second for an order would raise AlreadyReplied
            await bus.reply(said["id"], Event(said["type"], "from the exchange"))
        else:  # what follows the reply
            await bus.publish(Event(said["type"], "from the exchange", cause=said["id"]))


async def main() -> None:
    """Run the gateway, and a strategy that has three orders for it alone."""
    server = await asyncio.start_server(exchange, "127.0.0.1", 0)
    async with AsyncEventBus(URL, name="gateway") as venue, AsyncEventBus(URL) as strategy:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())

        def send(order: Event) -> None:
            writer.write(f"{json.dumps({**order.data, 'id': order.id})}\n".encode())

        await venue.subscribe(EventType.ORDER, send)
        reading = asyncio.create_task(read(venue, reader))
        async with strategy.stream(EventType.FILL) as fills:
            for quantity in range(1, 4):
                order = Event(EventType.ORDER, {"quantity": quantity})
                reply = await strategy.request(order, ANSWERS, to="gateway")
                print(f"order of {quantity}: {reply.type} by {reply.source}")
                if reply.type == EventType.ACK:
                    print("  filled:", (await anext(fills)).cause == order.id)
        writer.close()
        await reading
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
