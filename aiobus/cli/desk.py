"""A bus that looks at a desk: an observer, for which no bot waits. And who is there.

Owns how the commands join a desk. Must not know what they do there.
"""

from typing import NamedTuple

from aiobus import clock
from aiobus.bus import AsyncEventBus
from aiobus.cli.arguments import WrongArgument, checked_url
from aiobus.discovery.directory import Directory
from aiobus.query import parse_query

__all__ = ["Neighbour", "joining", "neighbours", "observing", "place_of"]


class Neighbour(NamedTuple):
    """Another bus of the desk."""

    name: str
    since: float
    """The Unix time at which it started, to a second."""
    silent: float
    """Seconds since its last message."""
    subscribed: tuple[str, ...]
    """TYPE, TYPE/key, TYPE/prefix* or *."""

    def wants(self, type: str, key: str) -> bool:
        """True if it gets events of this type and key, by the name of the type or by `*`."""
        return any(_matches(each, type, key) for each in self.subscribed)

    def names(self, type: str, key: str) -> bool:
        """True if it has subscribed to the type by its name, which a monitor does not."""
        return any(_matches(each, type, key) for each in self.subscribed if each[0] != "*")


def _matches(pattern: str, type: str, key: str) -> bool:
    name, _, rule = pattern.partition("/")
    if pattern == "**" or (rule == "**" and name in ("*", type)):
        return True  # there is more than was told
    if name == "*":
        return not rule or parse_query(f"{type}/{rule}").matches(type, key)
    return parse_query(pattern).matches(type, key)


def observing(url: str, role: str, name: str | None = None) -> AsyncEventBus:
    """A bus that looks at the desk at `url`. Raises WrongArgument."""
    return _made(url, name or f"{role}-{clock.token()}", observer=True)


def joining(url: str, role: str, name: str | None = None) -> AsyncEventBus:
    """A bus that takes part in the desk at `url`. Raises WrongArgument."""
    return _made(url, name or f"{role}-{clock.token()}", observer=False)


def _made(url: str, name: str, *, observer: bool) -> AsyncEventBus:
    url = checked_url(url)
    try:
        return AsyncEventBus(url, name=name, observer=observer)
    except ValueError as error:
        raise WrongArgument(str(error)) from None


def neighbours(bus: AsyncEventBus) -> list[Neighbour]:
    """The buses that are linked with `bus`, by name, without observers."""
    return [
        Neighbour(each.name, each.since, each.silent, each.subscribed)
        for each in sorted(bus.peers, key=lambda each: each.name)
        if not each.observer
    ]


def place_of(url: str) -> str:
    """Where the buses of a URL meet, as a person finds it."""
    scheme, _, address = url.partition("://")
    return Directory(address).path if scheme == "ipc" else address
