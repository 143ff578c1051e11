"""How every other system than aiobus puts an event into bytes, and takes it out again.

Owns the shortest exact form there is, so that nobody is slow for the sake of its format: orjson of
`[type, key, timestamp, data]`. Must not know who sends it.
"""

from typing import Any

import orjson

from aiobus import Event

__all__ = ["decode", "encode", "topic"]


def encode(event: Event[Any]) -> bytes:
    """The event in bytes."""
    return orjson.dumps((event.type, event.key, event.timestamp, event.data))


def decode(payload: bytes | memoryview) -> Event[Any]:
    """The event that was encoded."""
    type, key, timestamp, data = orjson.loads(payload)
    return Event(type, data, timestamp, key=key)


def topic(type: str, key: str) -> str:
    """What systems that route by subject route by."""
    return f"{type}.{key}"
