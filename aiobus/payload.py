"""What a handler gets as `event.data`: plain data, or what its annotation or `payload=` says.

Owns how that is read, and how plain data becomes it. The conversion is that of msgspec, and of
pydantic where one of its models is part of the type. Either is imported only if a type needs it.
Pure.
"""

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import orjson

from aiobus.errors import PayloadError
from aiobus.event import Event
from aiobus.query import RESERVED, Query, plain
from aiobus.system import DATA

__all__ = ["Fit", "Payload", "annotated", "check_annotation", "fit_of", "misfit"]

Convert = Callable[[Any, Any], Any]
"""Makes of plain data what the second argument says."""

Payload = Mapping[str, Any] | types.UnionType | None
"""What `payload=` may be beside a class."""

ANYTHING = (Any, object)
PLAIN = (
    *(*ANYTHING, dict, list, dict[str, Any], dict[str, object], list[Any], list[object]),
    *DATA.values(),
)
"""Types that change nothing. The data of a system event is what this package has made."""
SCALARS = (str, int, float, bool, types.NoneType)
WAY_OUT = "give payload=, such as payload=Tick, or payload=Any for plain data"
_PLACE = re.compile(r"(.*?)(?: - at (?:`key` in )?`\$?(.*)`)?", re.DOTALL)
_BARE = re.compile(r"(\w+\.)*Event")


class Conversion(NamedTuple):
    """`convert(data, kind)`."""

    convert: Convert
    kind: Any


class Fit:
    """How the data of an event becomes what its consumer gets: as `by_type` says, or else `every`,
    which leaves out system events.
    """

    def __init__(self, every: Conversion | None, by_type: Mapping[str, Conversion | None]) -> None:
        self._every = every
        self._by_type = by_type

    def __call__(self, event: Event[Any]) -> None:
        """Convert the data of an event, in place. Raises PayloadError, with the data as it is."""
        type = event.type
        if type in self._by_type:
            found = self._by_type[type]
        else:
            found = None if type.startswith(RESERVED) else self._every
        if found is not None:
            try:
                event.data = found.convert(event.data, found.kind)
            except Exception as error:
                raise misfit(event, error) from error

    def check(self, query: Query) -> None:
        """Raise TypeError if a consumer of `query` would get plain data in place of its type."""
        left = sorted(query.reserved - self._by_type.keys())
        if left and self._every is not None:
            raise TypeError(
                f"the data of {', '.join(left)} is plain, and {_said(self._every.kind)} is asked"
                " for: give payload={TYPE: Class, ...} by event type"
            )

    def only(self, query: Query) -> Conversion | None:
        """The conversion of all events that match `query`; None if there are several."""
        if query.reserved or (query.every and self._by_type):
            return None
        kinds = {self._by_type.get(type, self._every) for type in query.types or ("",)}
        return kinds.pop() if len(kinds) == 1 else None

    def before(self, callback: Callable[[Event[Any]], Any]) -> Callable[[Event[Any]], Any]:
        """A function that converts the data of an event and calls `callback`. Raises PayloadError
        in place of the call.
        """

        def call(event: Event[Any]) -> Any:
            self(event)
            return callback(event)

        return call


def fit_of(payload: object, topics: Mapping[str, object] | None = None) -> Fit | None:
    """What `payload` asks for, and the topics that are subscribed to; None for plain data. Raises
    TypeError, with the way out, if they contradict each other, for types that cannot be told apart,
    and if the library that they need is not installed.
    """
    if payload in ANYTHING:
        return None
    by_type = {**topics} if topics else {}
    every: object = None
    if isinstance(payload, Mapping):
        said = {plain(name): kind for name, kind in payload.items()}
        for name in by_type.keys() & said.keys():
            _check_topic(name, by_type[name], [said[name]])
        by_type |= said
    elif payload is not None:
        every = payload
        for name, kind in by_type.items():
            _check_topic(name, kind, [payload, *_members(payload)])
    one = _conversion(every)
    if not by_type:
        return None if one is None else Fit(one, {})
    each = {name: _conversion(kind) for name, kind in by_type.items()}
    return None if one is None and not any(each.values()) else Fit(one, each)


def _check_topic(name: str, kind: object, said: list[Any]) -> None:
    if kind not in said:
        raise TypeError(
            f"{name} is a Topic[{_said(kind)}], and its consumer asks for {_said(said[0])}: they"
            " have to be the same"
        )


def _members(kind: object) -> tuple[Any, ...]:
    """The types of a union."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else ()


# What the annotation of a function says.


def annotated(callback: object) -> object:
    """The payload of the event that a function takes as its first argument; None if it says nothing
    of that. Raises TypeError if it says something that cannot be resolved, or that its argument is
    no event.
    """
    function = _function_of(callback)
    annotation = _annotation(callback, function)
    if annotation is inspect.Parameter.empty:
        return None
    # What `functools.wraps` copies is said of another function.
    if not hasattr(function, "__wrapped__") and not hasattr(function, "__signature__"):
        _check_takes_event(callback, annotation)
    for variable in getattr(annotation, "__parameters__", ()):
        if variable in _parameters(getattr(function, "__self__", None)):
            raise _unresolved(callback, f"{variable} is a parameter of its class")
    return _payload(annotation)


def check_annotation(callback: object) -> None:
    """Raise TypeError if the annotation of `callback` says that its argument is no event. One that
    cannot be resolved is passed: the payload is known without it.
    """
    with suppress(_UnresolvedError):
        annotated(callback)


def _function_of(callback: object) -> Any:
    """What has the annotations of `callback`."""
    function: Any = callback
    while isinstance(function, functools.partial):
        function = function.func
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        function = getattr(function, "__call__", function)  # noqa: B004 - the method itself
    return function


def _annotation(callback: object, function: Any) -> Any:
    """That of the first parameter, resolved; `Parameter.empty` if there is none."""
    nothing = inspect.Parameter.empty
    try:
        parameters = inspect.signature(callback).parameters.values()  # type: ignore[arg-type]
        annotation = next(iter(parameters)).annotation
    except (TypeError, ValueError, StopIteration):  # a function in C may have no signature
        return nothing
    except NameError as error:  # annotations are first evaluated here from Python 3.14 on
        raise _unresolved(callback, str(error)) from None
    if isinstance(annotation, str):
        if _BARE.fullmatch(annotation):
            return nothing  # it may be imported for type checkers only
        return _resolved(annotation, inspect.unwrap(function), callback)
    return annotation


def _check_takes_event(callback: object, annotation: Any) -> None:
    if _is_no_event(annotation):
        said = _said(annotation)
        raise TypeError(
            f"the first parameter of {callback!r} is annotated with {said}, and it is given an"
            f" Event, whose .data is that: annotate it with Event[{said}]"
        )


def _is_no_event(annotation: Any) -> bool:
    """True if no Event can be what the annotation says. A class that knows it by its structure
    alone, a TypeVar and the like may take one.
    """
    annotation = getattr(annotation, "__value__", annotation)  # of a `type` statement
    if get_origin(annotation) is Annotated:
        return _is_no_event(get_args(annotation)[0])
    if members := _members(annotation):
        return all(_is_no_event(each) for each in members)
    kind = get_origin(annotation) or getattr(annotation, "__supertype__", annotation)
    if kind is Any or not inspect.isclass(kind) or getattr(kind, "_is_protocol", False):
        return False
    try:
        return not (issubclass(Event, kind) or issubclass(kind, Event))
    except TypeError:  # a class of its own kind, which does not answer
        return False


def _parameters(owner: object) -> set[object]:
    """The type variables of the class of a method. To a type checker they are types."""
    kind = owner if inspect.isclass(owner) else type(owner)
    return {each for base in kind.__mro__ for each in getattr(base, "__parameters__", ())}


def _resolved(text: str, function: Any, callback: object) -> object:
    inner = getattr(function, "__func__", function)
    names = dict(getattr(inner, "__globals__", {}))
    if getattr(inner, "__closure__", None):
        names.update(inspect.getclosurevars(inner).nonlocals)
    holder = type("_", (), {"__annotations__": {"event": text}})
    try:
        return get_type_hints(holder, names)["event"]
    except Exception as error:  # noqa: BLE001 - it evaluates what the user wrote
        raise _unresolved(callback, f"{text!r}: {error}") from None


class _UnresolvedError(TypeError):
    """An annotation cannot be resolved."""


def _unresolved(callback: object, reason: str) -> TypeError:
    return _UnresolvedError(
        f"the annotation of {callback!r} cannot be resolved ({reason}): {WAY_OUT}"
    )


def _payload(annotation: Any) -> object:
    """The T of an Event[T]. Of a union of such events, the union of these."""
    annotation = getattr(annotation, "__value__", annotation)  # of a `type` statement
    found = get_origin(annotation)
    if found is Annotated:
        return _payload(get_args(annotation)[0])
    if found is Event:
        (payload,) = get_args(annotation)
        return None if payload in ANYTHING or isinstance(payload, TypeVar) else payload
    if members := _members(annotation):
        payloads = [_payload(each) for each in members if each is not types.NoneType]
        return None if None in payloads else Union[tuple(payloads)]  # noqa: UP007
    return None


# How plain data becomes a type.


def _conversion(kind: Any) -> Conversion | None:
    """None if plain data is meant."""
    if kind is None or _is_plain(kind):
        return None
    if isinstance(kind, str):
        raise TypeError(f"payload={kind!r} is text: give the class itself")
    if not _is_type(kind):
        name = type(kind).__qualname__
        raise TypeError(f"payload={kind!r} is a value: give a class, such as payload={name}")
    parts = {*_parts(kind)}
    if any(hasattr(each, "__pydantic_validator__") for each in parts):
        return Conversion(_validated, _validator(kind))
    try:
        import msgspec
    except ImportError:
        raise TypeError(f"{_said(kind)} needs msgspec: pip install 'aiobus-zmq[typed]'") from None
    try:
        nodes = [*_nodes(msgspec.inspect.type_info(kind))]
    except (TypeError, NameError) as error:  # a field may have a type that is not there
        raise TypeError(f"{_said(kind)}: {error}; {WAY_OUT}") from None
    unknown = [node.cls for node in nodes if isinstance(node, msgspec.inspect.CustomType)]
    if any(hasattr(each, "__pydantic_validator__") for each in unknown):
        return Conversion(_validated, _validator(kind))
    if unknown:
        text = f"{_said(kind)}: {_said(unknown[0])} cannot be made of JSON data"
        raise TypeError(f"{text}: a dataclass, Struct, model or TypedDict is needed")
    plain_keys = msgspec.inspect.StrType, msgspec.inspect.AnyType
    for node in nodes:
        if isinstance(node, msgspec.inspect.DictType) and not isinstance(node.key_type, plain_keys):
            return Conversion(functools.partial(msgspec.convert, str_keys=True), kind)
    return Conversion(msgspec.convert, kind)


def _is_plain(kind: Any) -> bool:
    members = _members(kind)
    return all(map(_is_plain, members)) if members else kind in PLAIN


def _is_type(kind: Any) -> bool:
    """True for a class, and for what `typing` and its kind make of classes."""
    makers = ("typing", "types", "typing_extensions")
    return inspect.isclass(kind) or get_origin(kind) is not None or type(kind).__module__ in makers


def _parts(kind: Any) -> Iterator[Any]:
    """The type, and those in its brackets."""
    yield kind
    for each in get_args(kind):
        yield from _parts(each)


def _untold(kind: Any) -> Iterator[Any]:
    """The same without what is Annotated, which may have a discriminator."""
    if get_origin(kind) is not Annotated:
        yield kind
        for each in get_args(kind):
            yield from _untold(each)


def _nodes(node: Any) -> Iterator[Any]:
    """All that msgspec says of a type, and of those in it."""
    found, left = [node], [node]
    while left:
        node = left.pop()
        for name in node.__struct_fields__:
            value = getattr(node, name)
            for each in value if isinstance(value, tuple) else (value,):
                if hasattr(each, "__struct_fields__") and not any(each is old for old in found):
                    found.append(each)
                    left.append(each)
    return iter(found)


def _validator(kind: Any) -> Any:
    from pydantic import PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter

    for part in _untold(kind):
        if len([each for each in _members(part) if each not in SCALARS]) > 1:
            # pydantic would take the one that fits best.
            raise TypeError(
                f"{_said(part)} cannot be told apart: give payload={{TYPE: Model, ...}} by event"
                " type, or Annotated[..., pydantic.Field(discriminator=...)]"
            )
    try:
        adapter = TypeAdapter(kind)
        adapter.rebuild(raise_errors=True)  # a field may have a type that is not there
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        raise TypeError(f"{_said(kind)}: {error}; {WAY_OUT}") from None
    return adapter.validator


def _validated(data: Any, validator: Any) -> Any:
    """As from JSON, where an ISO text is a time, also if it is strict."""
    return validator.validate_json(orjson.dumps(data), strict=True)


def _said(kind: Any) -> str:
    return getattr(kind, "__qualname__", None) or str(kind)


def misfit(event: Event[Any], error: Exception) -> PayloadError:
    """Where and why, of what a library raised, or the code of a user's type."""
    try:
        path, text = _told(error)
    except Exception:  # noqa: BLE001 - it may be of a class of the user, whose code runs here
        path, text = "", type(error).__name__
    reason = text[:1].lower() + text[1:]
    return PayloadError(event.type, event.id, "data" + path, reason)


def _told(error: Exception) -> tuple[str, str]:
    """The path behind `data`, and the reason."""
    if callable(errors := getattr(error, "errors", None)):  # of pydantic
        first, *more = errors()
        path = "".join(
            f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]
        )
        text = f"{first['msg']}, got {type(first['input']).__name__}"
        return path, text + (f", and {len(more)} more" if more else "")
    found = _PLACE.fullmatch(str(error))
    assert found is not None
    return found[2] or "", found[1].replace("`", "") or type(error).__name__
