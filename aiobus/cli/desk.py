"""A bus that looks at a desk: an observer, for which no bot waits. And who is there.

Owns how the commands join a desk. Must not know what they do there.
"""

from aiobus import clock
from aiobus.bus import AsyncEventBus
from aiobus.cli.arguments import WrongArgument, checked_url
from aiobus.discovery.directory import Directory
from aiobus.presence import Peer

__all__ = ["joining", "neighbours", "observing", "place_of"]


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


def neighbours(bus: AsyncEventBus) -> list[Peer]:
    """The buses that are linked with `bus`, by name, without observers."""
    return [each for each in bus.peers if not each.observer]


def place_of(url: str) -> str:
    """Where the buses of a URL meet, as a person finds it."""
    scheme, _, address = url.partition("://")
    return Directory(address).path if scheme == "ipc" else address
