"""`--where`: an expression about an event, such as `key[:3] == "BTC" and data.price > 39_000`.

Owns the syntax that is allowed, its bounds, and what an expression says of an event. Nothing is
evaluated as Python: the text is parsed, and each node that is allowed becomes a function here.
There are no calls, no `**` and no arithmetic of texts, so an expression ends at once, needs little
memory, and changes nothing. Pure: must not know where events come from.
"""

import ast
import operator
import warnings
from collections.abc import Callable
from typing import Any

from aiobus.event import Event

__all__ = ["MAX_DEPTH", "MAX_LENGTH", "NAMES", "Expression"]

MAX_LENGTH = 1_000
"""Characters of an expression."""
MAX_DEPTH = 30
"""Levels of an expression: `not (a or b)` has three."""

Value = Callable[[Event[Any]], Any]
"""What a part of an expression is, of an event."""

NAMES: dict[str, Value] = {
    "type": lambda event: str(event.type),
    "key": lambda event: event.key,
    "source": lambda event: event.source,
    "data": lambda event: event.data,
    "timestamp": lambda event: event.timestamp,
}
"""The names that an expression may use."""

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
    ast.Is: lambda left, right: left is right,
    ast.IsNot: lambda left, right: left is not right,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_INSTEAD: dict[type[ast.AST], str] = {
    ast.Call: "calls are not; key[:3] == 'BTC' compares the beginning of a key",
    ast.Pow: "** is not; multiply",
    ast.JoinedStr: "f-strings are not",
    ast.IfExp: "`x if y else z` is not; use `and` and `or`",
    ast.BitAnd: "& is not; use `and`",
    ast.BitOr: "| is not; use `or`",
    ast.Invert: "~ is not; use `not`",
}
_MISFITS = (LookupError, TypeError, ArithmeticError, ValueError, RecursionError)
"""What Python raises if a value is not what the expression takes it for."""


class Expression:
    """What `text` says of events. Raises ValueError, with the place and a way out, for what is not
    allowed. The names are `type`, `key`, `source`, `timestamp` and `data`; `data.price` is
    `data["price"]`.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.failed = 0
        """Events of which it could not be asked: a field is missing, or has another type."""
        self.failure = ""
        """Why the last of these could not be asked; "" if there is none."""
        if len(text) > MAX_LENGTH:
            raise ValueError(
                f"an expression of {len(text):,} characters: {MAX_LENGTH:,} are allowed"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of an escape such as "\\d", which stays as it is
                tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error)
            raise ValueError(
                f"{text!r} is no expression: {reason or 'it is nested too deeply'}; such as"
                " \"data.price > 39000 and key == 'BTCUSDT'\""
            ) from None
        self._value = _compiled(tree.body, text.strip(), MAX_DEPTH)

    def __repr__(self) -> str:
        return f"<Expression {self.text!r}>"

    def matches(self, event: Event[Any]) -> bool:
        """True if it is true of `event`. False, and counted in `failed`, if it cannot be asked."""
        try:
            return bool(self._value(event))
        except _MISFITS as error:
            self.failed += 1
            self.failure = f"{event.type} {event.id}: {_told(error)}"
            return False


def _told(error: Exception) -> str:
    return str(error.args[0] if isinstance(error, LookupError) and error.args else error)


def _compiled(node: ast.expr, text: str, depth: int) -> Value:
    """The function that `node` stands for. Raises ValueError for what is not allowed."""
    if depth == 0:
        raise ValueError(f"{text!r} is nested too deeply: {MAX_DEPTH} levels are allowed")

    def inner(node: ast.expr) -> Value:
        return _compiled(node, text, depth - 1)

    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return lambda event: value
        case ast.Name(id=name):
            if name not in NAMES:
                raise ValueError(
                    f"{name!r} is no name in {text!r}: there are {', '.join(NAMES)}; a field is"
                    f" data.{name}, and a text stands in quotes, '{name}'"
                )
            return NAMES[name]
        case ast.Attribute(value=owner, attr=name):
            if not _is_data(owner):
                raise ValueError(
                    f"{ast.unparse(node)!r} is not allowed in {text!r}: only data has fields, such"
                    " as data.price"
                )
            return _field(inner(owner), name)
        case ast.Subscript(value=owner, slice=ast.Slice() as cut):
            begin, end, step = (
                None if part is None else inner(part) for part in (cut.lower, cut.upper, cut.step)
            )
            return _slice(inner(owner), begin, end, step)
        case ast.Subscript(value=owner, slice=place):
            return _item(inner(owner), inner(place))
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            values = [inner(part) for part in parts]
            return lambda event: [value(event) for value in values]
        case ast.BoolOp(op=op, values=parts):
            return _joined([inner(part) for part in parts], is_and=isinstance(op, ast.And))
        case ast.UnaryOp(op=ast.Not(), operand=part):
            asked = inner(part)
            return lambda event: not asked(event)
        case ast.UnaryOp(op=sign, operand=part) if type(sign) in _SIGNS:
            return _signed(_SIGNS[type(sign)], inner(part))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _reckoned(_ARITHMETIC[type(op)], inner(left), inner(right))
        case ast.Compare(left=left, ops=ops, comparators=rest):
            for ask, part in zip(ops, rest, strict=True):
                if isinstance(ask, ast.Is | ast.IsNot) and not _is_singleton(part):
                    raise ValueError(
                        f"{ast.unparse(node)!r} is not allowed in {text!r}: `is` compares with"
                        " None, True and False; use =="
                    )
            asks = [_COMPARISONS[type(ask)] for ask in ops]
            return _compared(inner(left), asks, [inner(part) for part in rest])
    raise _refused(node, text)


def _refused(node: ast.expr, text: str) -> ValueError:
    kinds = [type(node), type(getattr(node, "op", None))]
    hint = next((_INSTEAD[kind] for kind in reversed(kinds) if kind in _INSTEAD), "")
    part = ast.unparse(node)
    return ValueError(
        f"{part[:80]!r} is not allowed in {text!r}: comparisons, and/or/not, in, + - * / // %,"
        f" subscripts and data.field are{'; ' + hint if hint else ''}"
    )


def _is_data(node: ast.expr) -> bool:
    """True if `node` is `data`, or a part of it."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return isinstance(node, ast.Name) and node.id == "data"


def _is_singleton(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool))


def _field(owner: Value, name: str) -> Value:
    def field(event: Event[Any]) -> Any:
        holder = owner(event)
        if not isinstance(holder, dict):
            raise TypeError(f"no field {name!r} in {_kind(holder)}")
        if name not in holder:
            raise LookupError(f"no field {name!r}")
        return holder[name]

    return field


def _item(owner: Value, place: Value) -> Value:
    def item(event: Event[Any]) -> Any:
        holder, at = owner(event), place(event)
        if not isinstance(holder, dict | list | str):
            raise TypeError(f"no [{at!r}] in {_kind(holder)}")
        try:
            return holder[at]
        except LookupError:
            raise LookupError(f"no [{at!r}] in {_kind(holder)}") from None

    return item


def _slice(owner: Value, *ends: Value | None) -> Value:
    def cut(event: Event[Any]) -> Any:
        begin, end, step = (None if each is None else each(event) for each in ends)
        return owner(event)[begin:end:step]

    return cut


def _joined(values: list[Value], *, is_and: bool) -> Value:
    """`and` and `or`, as in Python: what decides is the result, and what follows is not asked."""

    def joined(event: Event[Any]) -> Any:
        result: Any = None
        for value in values:
            result = value(event)
            if bool(result) is not is_and:
                break
        return result

    return joined


def _signed(sign: Callable[[Any], Any], value: Value) -> Value:
    return lambda event: sign(_number(value(event)))


def _reckoned(reckon: Callable[[Any, Any], Any], left: Value, right: Value) -> Value:
    return lambda event: reckon(_number(left(event)), _number(right(event)))


def _compared(left: Value, asks: list[Callable[[Any, Any], Any]], rest: list[Value]) -> Value:
    def compared(event: Event[Any]) -> bool:
        value = left(event)
        for ask, part in zip(asks, rest, strict=True):
            other = part(event)
            if not ask(value, other):
                return False
            value = other
        return True

    return compared


def _number(value: Any) -> Any:
    """`value`, if it is a number: `"x" * 10**9` and `"%999999999d" % 1` would fill the memory."""
    if isinstance(value, int | float):
        return value
    raise TypeError(f"{_kind(value)} is no number")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "a number")
