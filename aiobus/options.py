"""The options of a subscription, checked once, when it is made.

Owns the keywords of `subscribe`, `on` and `stream`, their defaults, and the errors for wrong
values. Pure: must not know what uses them.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from types import AsyncGeneratorType, GeneratorType
from typing import Any, Literal, Self, TypedDict, TypeVar, get_args

from aiobus.codec import shown
from aiobus.event import Event, EventType, Topic, parse_id
from aiobus.history import Since
from aiobus.inbox import Overflow
from aiobus.limits import EARLIEST, LATEST, way_out
from aiobus.payload import Fit, annotated, check_annotation, fit_of
from aiobus.query import Query, bad_name, bad_type

__all__ = [
    "After", "Keys", "Names", "OnMisfit", "Since", "StreamKeywords", "SubscribeKeywords",
    "SubscriptionOptions", "Types", "Where", "check_function", "check_name",
    "check_timeout", "selects", "takes",
]  # fmt: skip

Names = str | Iterable[str | Topic[Any]]
"""Event types by name, or several of them."""
Types = Topic[Any] | Names
"""One or several event types. What depends on the payload of a topic takes `Topic[T] | Names`."""
Keys = str | Iterable[str] | None
Where = Callable[[Event[dict[str, Any]]], object]
"""It is asked with plain data, so a type checker refuses `event.data.price`. A function of other
data, such as lists, takes an `Event`.
"""
After = str | Iterable[str]
OnMisfit = Literal["report", "stop"]
ACTED_ON = frozenset({EventType.ORDER, EventType.CANCEL})
"""Types whose events are executed: an argument left out must not execute an old one again."""


class StreamKeywords(TypedDict, total=False):
    """The keywords of `stream`; their defaults are those of `SubscriptionOptions`."""

    key: Keys
    where: Where | None
    overflow: Overflow
    maxsize: int
    max_age: float | None
    since: Since
    after: After
    timeout: float
    name: str | None


class SubscribeKeywords(StreamKeywords, total=False):
    """The keywords of `subscribe` and `on`."""

    concurrency: int
    misfit: OnMisfit


Call = TypeVar("Call", bound=Callable[..., object])


def takes(keywords: type[StreamKeywords]) -> Callable[[Call], Call]:
    """A decorator: `inspect.signature` and `help` show each keyword with its default."""
    defaults = {each.name: each.default for each in fields(SubscriptionOptions)}
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(name),
            annotation=annotation,
        )
        for name, annotation in keywords.__annotations__.items()
    ]

    def show(call: Call) -> Call:
        signature = inspect.signature(call)
        named = list(signature.parameters.values())[:-1]
        shown = signature.replace(parameters=[*named, *parameters])
        call.__signature__ = shown  # type: ignore[attr-defined]
        return call

    return show


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionOptions:
    """The options of one subscription. Raises TypeError or ValueError that names the value."""

    query: Query
    where: Where | None = None
    overflow: Overflow = "catch_up"
    maxsize: int = 8192
    concurrency: int = 1
    max_age: float | None = None
    since: Since = None
    after: After = ()
    timeout: float = 5.0
    misfit: OnMisfit = "report"
    name: str | None = None
    payload: object = None
    """What the data of its events becomes; None if nothing is said of that."""
    topics: Mapping[str, object] = field(default_factory=dict)
    """What the topics say that it asks for, by event type."""
    fit: Fit | None = field(init=False, default=None)
    """What `payload` and `topics` ask for; None for plain data."""

    @classmethod
    def of(
        cls,
        call: str,
        types: Types,
        keywords: StreamKeywords,
        payload: object = None,
    ) -> Self:
        """The options of a call of `call`. Raises TypeError or ValueError for wrong keywords."""
        options: dict[str, Any] = {**keywords}
        known = SubscribeKeywords if call in ("subscribe", "on") else StreamKeywords
        has = ["payload", *known.__annotations__]
        for name in options.keys() - {*has}:
            near = difflib.get_close_matches(name, has, 1)
            hint = f"did you mean {near[0]}=? It" if near else "it"
            text = f"{call}() got an unexpected keyword argument {name!r}: {hint} has"
            raise TypeError(f"{text} {', '.join(has)}")
        wanted = [*types] if isinstance(types, Iterator) else types
        query = Query.of(wanted, options.pop("key", None))
        if isinstance(payload, Mapping):
            _check_names(payload, query)
        return cls(query=query, payload=payload, topics=_topics(wanted), **options)

    def __post_init__(self) -> None:
        if self.where is not None and not callable(self.where):
            raise TypeError(f"where={self.where!r}: a function of an event is needed")
        if inspect.iscoroutinefunction(self.where) or inspect.iscoroutinefunction(
            type(self.where).__call__
        ):
            raise TypeError(f"where={self.where!r}: a plain function is needed, it is not awaited")
        if self.where is not None:
            check_function("where", self.where)
            if (kind := annotated(self.where)) is not None and fit_of(kind) is not None:
                raise TypeError(
                    f"where={self.where!r} takes an Event of {kind}: it is asked before the data is"
                    " converted; let it take an Event, and look at event.data['...']"
                )
        if self.overflow not in get_args(Overflow):
            raise ValueError(f"overflow={self.overflow!r}: one of {get_args(Overflow)} is needed")
        if not _is_count(self.maxsize):
            raise ValueError(f"maxsize={self.maxsize!r}: a whole number of events from 1 is needed")
        if not _is_count(self.concurrency):
            raise ValueError(f"concurrency={self.concurrency!r}: a whole number from 1 is needed")
        if self.max_age is not None and not _is_age(self.max_age):
            is_moment = _is_number(self.max_age) and self.max_age >= EARLIEST
            hint = "a time is given as since=; " if is_moment else _length(self.max_age)
            raise ValueError(
                f"max_age={shown(self.max_age)}: {hint}seconds that an event may be old, such as"
                " 2.5, are needed"
            )
        if not (self.since in (None, "last") or _is_time(self.since)):
            raise ValueError(
                f"since={shown(self.since)}: {_moment(self.since)}'last', or seconds since 1970"
                " such as time.time() - 60 for the last minute, are needed"
            )
        try:
            after = [self.after] if isinstance(self.after, str) else [*self.after]
        except TypeError:
            text = f"after={self.after!r}: the id of an event, or several of them, are needed"
            raise TypeError(text) from None
        if len({parse_id(id)[0] for id in after}) < len(after):
            raise ValueError(f"after={after!r}: of one source one event at most is the last")
        object.__setattr__(self, "after", tuple(after))
        is_acted_on = ACTED_ON.intersection(self.query.types)
        if self.since is not None and is_acted_on and self.max_age is None and not after:
            raise ValueError(
                f"since={self.since!r} hands over old events of {', '.join(sorted(is_acted_on))},"
                " which may have been executed before: give max_age= seconds, or after= the id of"
                " the last one that was handled"
            )
        check_timeout(self.timeout)
        if self.misfit not in get_args(OnMisfit):
            raise ValueError(f"misfit={self.misfit!r}: one of {get_args(OnMisfit)} is needed")
        if self.name is not None:
            check_name("name", self.name)
        fit = fit_of(self.payload, self.topics)
        if fit is not None:
            fit.check(self.query)
        object.__setattr__(self, "fit", fit)

    def for_callback(self, callback: Callable[..., object]) -> Self:
        """These, with what the annotation of `callback` says if `payload=` says nothing. Raises
        TypeError if that cannot be resolved, contradicts a topic, or says that `callback` takes no
        event.
        """
        if self.payload is not None:
            check_annotation(callback)
            return self
        return replace(self, payload=annotated(callback))

    def untyped(self) -> Self:
        """These for what converts the data by itself."""
        return replace(self, payload=Any)

    @property
    def places(self) -> dict[str, tuple[int, int]]:
        """The epoch and seq of the event that it begins after, by source."""
        return {name: (epoch, seq) for name, epoch, seq in map(parse_id, self.after)}


def _topics(types: Any) -> dict[str, object]:
    """The payloads of those that are topics and have one."""
    each: list[Any] = [types] if isinstance(types, str) else types
    kinds = {str(name): name.payload for name in each if isinstance(name, Topic)}
    return {name: kind for name, kind in kinds.items() if kind is not Any}


def _check_names(payload: Mapping[Any, object], query: Query) -> None:
    """Raise ValueError if it is about a type that the subscription does not ask for."""
    for name in payload:
        if reason := bad_type(name):
            raise ValueError(f"payload={{{reason}}}")
        if not query.matches_type(name):
            raise ValueError(f"payload={{{name!r}: ...}}: the types that are asked for are {query}")


def check_function(name: str, function: Callable[..., object]) -> None:
    """Raise TypeError if it is certain that calling `function` with one event fails or runs none of
    its code. `name` is the name of the argument.
    """
    is_generator = (inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(kind(each) for kind in is_generator for each in (function, type(function).__call__)):
        raise TypeError(
            f"{name}={function!r} is a generator: calling it would run none of its code;"
            " give a function that does not yield"
        )
    if hasattr(function, "__signature__"):  # functools.wraps copies that of another function
        return
    call: tuple[object, ...] = (None,)
    if inspect.ismethod(function):  # `inspect` makes no signature of a method without `self`
        call, function = (function.__self__, None), function.__func__
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # a function written in C may have no signature
        return
    try:
        signature.bind(*call)
    except TypeError as error:
        raise TypeError(
            f"{name}={function!r} takes {signature} and is called with the event alone: {error};"
            " functools.partial or a lambda gives it the rest"
        ) from None


def selects(where: Where, event: Event[Any]) -> bool:
    """The result of `where(event)`. Raises what `where` raises, and TypeError for a result that is
    true for every event: an awaitable or a generator.
    """
    answer = where(event)
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()  # avoids the warning "was never awaited"
        raise TypeError("`where` returned an awaitable; a plain function is needed")
    if isinstance(answer, GeneratorType | AsyncGeneratorType):
        raise TypeError("`where` returned a generator; a plain function is needed")
    return bool(answer)


def check_timeout(timeout: object, *, optional: bool = False) -> None:
    """Raise ValueError unless `timeout` is a number of seconds from 0, or None if `optional`."""
    if timeout is None and optional:
        return
    if not (_is_number(timeout) and timeout >= 0):  # type: ignore[operator]
        hint = _length(timeout)
        raise ValueError(f"timeout={shown(timeout)}: {hint}seconds from 0 are needed")


def check_name(argument: str, name: object) -> None:
    """Raise ValueError unless `name` can be the name of a bus; TypeError for what is no string.
    `argument` is the name of the argument.
    """
    if reason := bad_name(name):
        raise (ValueError if isinstance(name, str) else TypeError)(f"{argument}={reason}")


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) <= LATEST  # a larger one may not fit into a float
    return isinstance(value, float) and value == value  # not NaN


def _is_time(value: object) -> bool:
    """True for a time, and for 0, which is before every event."""
    return _is_number(value) and (value == 0 or EARLIEST <= value <= LATEST)  # type: ignore[operator]


def _is_age(value: float) -> bool:
    """True for a duration, `inf` among them, and not for a time, which is decades."""
    return _is_number(value) and (0 < value < EARLIEST or value == math.inf)


def _moment(value: object) -> str:
    """The hint for a `value` that is no time, with "; " behind it."""
    if _is_number(value) and abs(value) < EARLIEST:  # type: ignore[arg-type]
        return f"for the last {abs(value):g} s, time.time() - {abs(value):g}; "  # type: ignore[arg-type]
    return way_out(value)


def _length(value: object) -> str:
    """The hint for a `value` that is no duration, with "; " behind it."""
    return "give its .total_seconds(); " if isinstance(value, timedelta) else ""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
