"""The event of every system but aiobus, and its bytes.

Owns a class of its own and the shortest exact form there is: orjson of `[type, key, timestamp,
data]`. Neither is the class or the codec of aiobus, or the peers and the codec floor would become
faster whenever aiobus does. Must not know which system sends the bytes.
"""

import time
from typing import Any

import orjson

__all__ = ["Event", "decode", "encode", "topic"]


class Event:
    """The event that a user of zmq.asyncio and orjson would write. `timestamp` is in seconds since
    1970.
    """

    __slots__ = ("data", "key", "timestamp", "type")

    def __init__(
        self, type: str, data: Any, timestamp: float | None = None, *, key: str = ""
    ) -> None:
        self.type = type
        self.data = data
        self.timestamp = time.time() if timestamp is None else timestamp
        self.key = key


def encode(event: Event) -> bytes:
    """The event in bytes."""
    return orjson.dumps((event.type, event.key, event.timestamp, event.data))


def decode(payload: bytes | memoryview) -> Event:
    """The event that was encoded."""
    type, key, timestamp, data = orjson.loads(payload)
    return Event(type, data, timestamp, key=key)


def topic(type: str, key: str) -> str:
    """The subject, for systems that route by subject."""
    return f"{type}.{key}"
