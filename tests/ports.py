"""A side of a network in memory that is no bus: it sends and receives what a test says."""

from typing import Any

from aiobus.discovery import Member
from aiobus.mesh import FromPublisher, FromSubscriber


def nothing(*_: object) -> Any:
    """Receive a message, and leave it."""


async def opened(
    port: Any,
    name: str,
    from_subscriber: FromSubscriber = nothing,
    from_publisher: FromPublisher = nothing,
) -> list[Member]:
    """Open a port under this name; return who is there."""
    port.open(name)
    members: list[Member] = await port.join(name, port.bind, nothing)
    port.start(from_subscriber, from_publisher, nothing)
    return members
