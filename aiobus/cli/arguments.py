"""What several commands take: times, keys and types, URLs, and what is wrong with them.

Owns how a text on the command line is read. Must not know what is done with it.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, NamedTuple

import typer

from aiobus.clock import time
from aiobus.options import SubscriptionOptions
from aiobus.query import SYSTEM, Query
from aiobus.replay.moments import Zone
from aiobus.system import EVERY
from aiobus.url import DESK, desk_in, meant

__all__ = [
    "URL", "BusName", "Directory", "Keys", "Pattern", "Sources", "Types", "Url", "Wanted",
    "WrongArgument", "Zoned", "checked_url", "desk", "desk_and", "moment", "place", "since",
    "zone_of",
]  # fmt: skip

_AGO = re.compile(r"(\d+(?:\.\d+)?)(s|m|min|h|d)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}


class WrongArgument(ValueError):
    """What was given cannot be meant. The command ends with 2."""


URL = "URL is that of the desk, such as ipc://desk; without it, that in AIOBUS_URL."
Url = Annotated[str | None, typer.Argument(metavar="URL", help=URL, show_default=False)]
Directory = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="The keys of a tcp:// desk; else AIOBUS_KEYRING.",
        show_default=False,
    ),
]
BusName = Annotated[
    str | None,
    typer.Option(
        help="Of its bus, on a desk with keys a member; else made up, or the one that fits.",
        show_default=False,
    ),
]
Zoned = Annotated[
    str | None,
    typer.Option(
        metavar="ZONE",
        help="Times are read and printed so, such as UTC or Europe/Berlin; else local.",
    ),
]
Types = Annotated[
    list[str] | None, typer.Option(metavar="TYPE", help="Only this type. May be repeated.")
]
Keys = Annotated[
    list[str] | None, typer.Option(metavar="KEY", help="Only this key or 'prefix*'. Repeatable.")
]
Sources = Annotated[
    list[str] | None, typer.Option(metavar="BUS", help="Only this bus. May be repeated.")
]


def moment(text: str | None, zone: Zone) -> float | None:
    """A time as Unix seconds or in ISO 8601, of this zone if it says none. Raises WrongArgument."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise WrongArgument(
                f"{text!r}: Unix seconds, or a date and time such as 2026-11-29T10:31, are needed"
            ) from None
    return (when if when.tzinfo else when.replace(tzinfo=zone.info)).timestamp()


def place(text: str | None, zone: Zone) -> float | None:
    """An offset, or a time. Raises WrongArgument."""
    return int(text) if text and text.isdigit() else moment(text, zone)


def since(text: str | None, zone: Zone) -> "float | str | None":
    """What `subscribe(since=)` takes: "last", a time, or so long ago as "5m" says. Raises
    WrongArgument.
    """
    if text is None or text == "last":
        return text
    if found := _AGO.fullmatch(text):
        return max(0.0, time() - float(found[1]) * _SECONDS[found[2]])
    try:
        at = moment(text, zone)
        SubscriptionOptions.of("stream", "*", {"since": at})
    except WrongArgument:
        raise WrongArgument(
            f"--since {text!r}: 'last', a time ago such as 90s, 5m or 2h, Unix seconds, or a date"
            " and time such as 2026-11-29T10:31, are needed"
        ) from None
    except (ValueError, OverflowError) as error:
        raise WrongArgument(f"--since {text}: {error}") from None
    return at


def zone_of(name: str | None) -> Zone:
    """The zone of `--tz`. Raises WrongArgument."""
    try:
        return Zone.of(name)
    except ValueError as error:
        raise WrongArgument(str(error)) from None


def desk(given: str | None) -> str:
    """The URL of the desk: `given`, else that in AIOBUS_URL. Raises WrongArgument."""
    return desk_and([])[0] if given is None else checked_url(given)


def desk_and(words: Sequence[str], *needed: str, more: bool = False) -> tuple[str, list[str]]:
    """The URL of the desk, and what follows it on the command line: as many words as are `needed`,
    by these names, or `more`. Raises WrongArgument.
    """
    try:
        url, rest = desk_in(words)
    except ValueError as error:
        raise WrongArgument(str(error)) from None
    if len(rest) < len(needed):
        raise WrongArgument(f"Missing argument {needed[len(rest)]!r} behind the URL {url}")
    if len(rest) > len(needed) and not more:
        raise WrongArgument(f"Got unexpected extra argument {rest[len(needed)]!r}")
    try:
        return checked_url(url), rest
    except WrongArgument as error:
        where = "" if url in words[:1] else f" ({DESK} is {url!r})"
        raise WrongArgument(f"{error}{where}") from None


def checked_url(url: str) -> str:
    """`url`, if another process can be there. Raises WrongArgument."""
    scheme, found, rest = url.partition("://")
    if scheme == "inproc" and found:
        raise WrongArgument(
            f"{url}: what is on an inproc:// bus is in one process, and cannot be seen from"
            " another: give the bots a URL such as ipc://desk"
        )
    if not found or scheme not in ("ipc", "tcp") or not rest:
        hint = f"; did you mean {found}?" if (found := meant(url)) else ""
        raise WrongArgument(f"{url!r}: a URL such as ipc://desk or tcp://127.0.0.1:7555{hint}")
    return url


class Pattern(NamedTuple):
    """TYPE or TYPE/KEY, where the type may be `*` and a key may end with one."""

    query: Query
    keys: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Pattern":
        """Raises WrongArgument."""
        name, slash, key = text.partition("/")
        types = SYSTEM if name == EVERY else (name,)
        try:
            return cls(Query.of(types, key if slash else None), (key,) if slash else ())
        except ValueError as error:
            raise WrongArgument(
                f"{text!r}: {error}; TRADE, TRADE/BTCUSDT or 'TRADE/BTC*'"
            ) from None


class Wanted:
    """What of the events is wanted: all if no pattern is given. Raises WrongArgument."""

    def __init__(self, texts: list[str]) -> None:
        self._patterns = [Pattern.of(text) for text in texts or ["*"]]

    @property
    def types(self) -> list[str]:
        """For `subscribe`; with `keys` they may ask for more than `matches`, never for less."""
        every = any(each.query.every for each in self._patterns)
        names = {name for each in self._patterns for name in each.query.types}
        return ["*"] if every else sorted(names)

    @property
    def reserved(self) -> frozenset[str]:
        """The types of system events that are asked for by name."""
        return frozenset[str]().union(*(each.query.reserved for each in self._patterns))

    @property
    def keys(self) -> list[str] | None:
        """For `subscribe`; None if one of the patterns has no key."""
        ordinary = [each for each in self._patterns if each.query.wants_data]
        if not all(each.keys for each in ordinary):
            return None
        return sorted({key for each in ordinary for key in each.keys}) or None

    def matches(self, type: str, key: str) -> bool:
        """True if an event of this type and key is wanted."""
        return any(each.query.matches(type, key) for each in self._patterns)
