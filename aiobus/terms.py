"""The terms of a subscription: what the user asked for, checked once, at the call.

Owns the keywords of `subscribe`, their defaults and the sentences for wrong ones. Pure: knows
nothing of who will serve them.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypedDict, get_args

from aiobus.event import Event
from aiobus.history import Since
from aiobus.inbox import Overflow
from aiobus.pattern import Query

__all__ = ["Keys", "Since", "SubscribeOptions", "Terms", "Types", "Where", "check_timeout"]

Types = str | Iterable[str]
Keys = str | Iterable[str] | None
Where = Callable[[Event[Any]], object]


class SubscribeOptions(TypedDict, total=False):
    """The keywords of `subscribe`, for `on`."""

    key: Keys
    where: Where | None
    overflow: Overflow
    maxsize: int
    concurrency: int
    max_age: float | None
    since: Since
    timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What one subscription is to do. Raises TypeError or ValueError that names the value."""

    query: Query
    where: Where | None = None
    overflow: Overflow = "catch_up"
    maxsize: int = 8192
    concurrency: int = 1
    max_age: float | None = None
    since: Since = None
    timeout: float = 5.0

    def __post_init__(self) -> None:
        if self.where is not None and not callable(self.where):
            raise TypeError(f"where={self.where!r}: a function of an event is needed")
        if inspect.iscoroutinefunction(self.where) or inspect.iscoroutinefunction(
            type(self.where).__call__
        ):
            raise TypeError(f"where={self.where!r}: a plain function is needed, it is not awaited")
        if self.overflow not in get_args(Overflow):
            raise ValueError(f"overflow={self.overflow!r}: one of {get_args(Overflow)} is needed")
        if not _is_count(self.maxsize):
            raise ValueError(f"maxsize={self.maxsize!r}: a whole number of events from 1 is needed")
        if not _is_count(self.concurrency):
            raise ValueError(f"concurrency={self.concurrency!r}: a whole number from 1 is needed")
        if self.max_age is not None and not (_is_number(self.max_age) and self.max_age > 0):
            raise ValueError(f"max_age={self.max_age!r}: seconds above 0 are needed")
        if not (self.since in (None, "last") or _is_time(self.since)):
            raise ValueError(f"since={self.since!r}: 'last' or Unix seconds are needed")
        check_timeout(self.timeout)


def check_timeout(timeout: object, *, optional: bool = False) -> None:
    """Raise ValueError for what is no number of seconds from 0 (None is one where `optional`)."""
    if timeout is None and optional:
        return
    if not (_is_number(timeout) and timeout >= 0):  # type: ignore[operator]
        raise ValueError(f"timeout={timeout!r}: seconds from 0 are needed")


def _is_number(value: object) -> bool:
    is_real = isinstance(value, float | int) and not isinstance(value, bool)
    return is_real and value == value  # NaN is no number of seconds


def _is_time(value: object) -> bool:
    return _is_number(value) and isfinite(value)  # type: ignore[arg-type]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
