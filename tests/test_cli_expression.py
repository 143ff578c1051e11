"""`--where`: what an expression may say, what it says of an event, and what it can never do."""

import ast
import re
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobus import Event
from aiobus.cli.expression import MAX_DEPTH, MAX_LENGTH, NAMES, Expression
from aiobus.event import EventType

DATA: dict[str, Any] = {
    "price": 39_500.5,
    "size": 3,
    "side": "buy",
    "note": None,
    "is_last": True,
    "legs": [{"price": 1.0}, {"price": 2.0}],
    "class": "odd",
    "a-b": 7,
}


def event(data: Any = DATA, type: str = EventType.TRADE, key: str = "BTCUSDT") -> Event[Any]:
    made = Event(type, data, 1_700_000_000.5, key=key)
    made.source, made.epoch, made.seq = "feed", 36, 7
    return made


TRUE = [
    "type == 'TRADE'",
    'type != "QUOTE"',
    "key == 'BTCUSDT'",
    "'BTC' in key",
    "key[:3] == 'BTC'",
    "key[-4:] == 'USDT'",
    "key[0] == 'B'",
    "key[::2] == 'BCST'",
    "source == 'feed'",
    "timestamp > 1_600_000_000",
    "data.price > 39000",
    "data['price'] >= 39500.5",
    "data['a-b'] == 7",
    "39000 < data.price <= 40_000",
    "data.price * data.size > 100000",
    "data.price - 500.5 == 39000 and data.size + 1 == 4",
    "data.size / 2 == 1.5",
    "data.size // 2 == 1",
    "data.size % 2 == 1",
    "-data.size == -3 and +data.size == 3",
    "data.side in ('buy', 'sell')",
    "data.side in ['buy']",
    "data.side not in ['sell']",
    "data.legs[1].price == 2",
    "data.legs[-1]['price'] == 2",
    "data['legs'][0].price == 1",
    "data.note is None",
    "data.side is not None",
    "data.is_last is True",
    "data.is_last",
    "not data.note",
    "'price' in data",
    "'volume' not in data",
    "type == 'HALT' or data.side == 'buy'",
    "type == 'TRADE' or data.volume > 1",
    "not (type == 'HALT' and data.volume > 1)",
    "data",
    "1",
    "  type == 'TRADE'  ",
    "(data.price >\n 1)",
    "data.side < 'c'",
    "data == data",
    "[1, 2] == [1, 2]",
    "True",
]


@pytest.mark.parametrize("text", TRUE)
def test_an_expression_is_true_of_an_event(text: str) -> None:
    asked = Expression(text)
    assert asked.matches(event())
    assert (asked.failed, asked.failure) == (0, "")


@pytest.mark.parametrize(
    "text",
    [
        *("type == 'QUOTE'", "data.price < 1", "data.note", "None", "''", "0", "not data.side"),
        *("1 < data.price < 2", "data.side == 'sell' and data.volume > 1"),
        "data.is_last is False",
    ],
)
def test_an_expression_is_false_of_an_event(text: str) -> None:
    asked = Expression(text)
    assert not asked.matches(event())
    assert asked.failed == 0


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("data.volume > 1", "no field 'volume'"),
        ("data['volume'] > 1", "no ['volume'] in an object"),
        ("data.side.price > 1", "no field 'price' in a text"),
        ("data.note.price > 1", "no field 'price' in null"),
        ("data.size.price > 1", "no field 'price' in a number"),
        ("data.is_last.price > 1", "no field 'price' in true or false"),
        ("data.legs.price > 1", "no field 'price' in a list"),
        ("data.legs[2].price > 1", "no [2] in a list"),
        ("data.size[0] > 1", "no [0] in a number"),
        ("key[99] == 'x'", "no [99] in a text"),
        ("data.legs['x'] == 1", "list indices must be integers"),
        ("data[[]] == 1", "unhashable"),
        ("data.side > 1", "'>' not supported"),
        ("1 in data.size", "not iterable"),
        ("data.size / 0 > 1", "division by zero"),
        ("data.size % 0 > 1", "modulo"),
        ("key * 2 == 'x'", "a text is no number"),
        ("2 * key == 'x'", "a text is no number"),
        ("key + 'x' == 'x'", "a text is no number"),
        ("data.legs * 2 == 1", "a list is no number"),
        ("'%9d' % 3 == 'x'", "a text is no number"),
        ("-key == 1", "a text is no number"),
        ("key[data.side:] == 'x'", "slice indices"),
        ("data.size[1:] == 'x'", "not subscriptable"),
        ("data['legs':] == 'x'", ""),
    ],
)
def test_an_event_that_lacks_what_is_asked_for_does_not_match_and_is_counted(
    text: str, failure: str
) -> None:
    asked = Expression(text)
    assert not asked.matches(event())
    assert not asked.matches(event())
    assert asked.failed == 2
    assert asked.failure.startswith("TRADE feed@10.7: ")
    assert failure in asked.failure


def test_what_decides_before_a_missing_field_is_the_answer() -> None:
    asked = Expression("type == 'TRADE' and data.price > 1")
    assert not asked.matches(event({}, "HALT"))
    assert asked.failed == 0
    assert not asked.matches(event({}, "TRADE"))
    assert asked.failed == 1


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("key.startswith('BTC')", "calls are not; key[:3] == 'BTC'"),
        ("len(key) > 3", "calls are not"),
        ("__import__('os').system('true')", "calls are not"),
        ("open('/etc/passwd')", "calls are not"),
        ("key.upper == 1", "only data has fields"),
        ("type.__class__ == 1", "only data has fields"),
        ("''.__class__", "only data has fields"),
        ("(1).real", "only data has fields"),
        ("(data.a + data.b).real", "only data has fields"),
        ("[data][0].x", "only data has fields"),
        ("data.price ** 2 > 1", "** is not; multiply"),
        ("9**9**9**9", "** is not; multiply"),
        ("data.size & 1", "& is not; use `and`"),
        ("data.size | 1", "| is not; use `or`"),
        ("~data.size", "~ is not; use `not`"),
        ("1 << 99", "is not allowed"),
        ("data.size ^ 1", "is not allowed"),
        ("data @ data", "is not allowed"),
        ("lambda: 1", "is not allowed"),
        ("(x := 1)", "is not allowed"),
        ("1 if key else 2", "use `and` and `or`"),
        ("[x for x in key]", "is not allowed"),
        ("{x for x in key}", "is not allowed"),
        ("{x: x for x in key}", "is not allowed"),
        ("(x for x in key)", "is not allowed"),
        ("{1: 2}", "is not allowed"),
        ("{1, 2}", "is not allowed"),
        ("f'{key}'", "f-strings are not"),
        ("[*key]", "is not allowed"),
        ("b'x' == key", "is not allowed"),
        ("1j == key", "is not allowed"),
        ("... == key", "is not allowed"),
        ("data is data", "`is` compares with None"),
        ("key is 'BTCUSDT'", "`is` compares with None"),
        ("await key", "is n"),
        ("(yield)", "is n"),
        ("price > 1", "a field is data.price, and a text stands in quotes, 'price'"),
        ("type == TRADE", "a text stands in quotes, 'TRADE'"),
        ("event.data", "only data has fields"),
        ("event", "there are type, key, source, data, timestamp"),
        ("__builtins__", "is no name"),
        ("type = 'TRADE'", "is no expression: "),
        ("type == 'TRADE' && key", "is no expression: "),
        ("import os", "is no expression: "),
        ("x; y", "is no expression: "),
        ("", "is no expression: "),
        ("   ", "is no expression: "),
        ("data.", "is no expression: "),
        ("'unended", "is no expression: "),
        ("1\n2", "is no expression: "),
        ("key == '\0'", "is no expression: "),
        ("(" * 500, "is no expression: "),
    ],
)
def test_what_is_not_allowed_is_refused_with_a_way_out(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(hint)) as caught:
        Expression(text)
    assert len(str(caught.value).splitlines()) == 1


def test_an_expression_is_bounded_in_length_and_in_depth() -> None:
    padded = "1 " + " " * (MAX_LENGTH - 2)
    assert Expression(padded).matches(event())
    with pytest.raises(ValueError, match=f"1,001 characters: {MAX_LENGTH:,} are allowed"):
        Expression(padded + " ")
    assert Expression("not " * (MAX_DEPTH - 1) + "1")
    for deep in ("not " * MAX_DEPTH + "1", "-" * 900 + "1", "data" + ".a" * MAX_DEPTH):
        with pytest.raises(ValueError, match=f"nested too deeply: {MAX_DEPTH} levels"):
            Expression(deep)


def test_the_longest_chain_of_products_is_small() -> None:
    asked = Expression(" * ".join(["(" + "*".join(["data.n"] * 9) + ")"] * 12) + " > 1")
    assert asked.matches(event({"n": 2**63}))


def test_a_number_too_large_for_a_float_is_a_failure_and_no_crash() -> None:
    asked = Expression("*".join(["data.n"] * 20) + " / 1.5 > 1")
    assert not asked.matches(event({"n": 2**63}))
    assert "too large" in asked.failure


def test_data_that_is_no_object_may_be_asked_for() -> None:
    assert Expression("data > 3").matches(event(4))
    assert Expression("data[0] == 1").matches(event([1]))
    assert Expression("'halt' in data").matches(event("all halted: halt"))
    assert Expression("data is None").matches(event(None))


def test_a_field_with_the_name_of_an_attribute_of_python_is_only_a_field() -> None:
    assert Expression("data.__class__ == 1").matches(event({"__class__": 1}))
    asked = Expression("data.__class__ == 1")
    assert not asked.matches(event())
    assert "no field '__class__'" in asked.failure


def test_an_odd_escape_in_a_text_is_no_warning_on_the_screen() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not Expression(r"key == '\d'").matches(event())


# All of the syntax.

ALLOWED = {
    *("Expression", "Constant", "Name", "Load", "Attribute", "Subscript", "Slice", "List", "Tuple"),
    *("BoolOp", "And", "Or", "UnaryOp", "Not", "USub", "UAdd", "BinOp", "Add", "Sub", "Mult"),
    *("Div", "FloorDiv", "Mod", "Compare", "Eq", "NotEq", "Lt", "LtE", "Gt", "GtE", "In", "NotIn"),
    *("Is", "IsNot"),
}


def test_no_other_node_of_the_syntax_is_ever_accepted() -> None:
    trees = [ast.parse(text.strip(), mode="eval") for text in TRUE]
    assert {type(node).__name__ for tree in trees for node in ast.walk(tree)} == ALLOWED


@given(st.text(max_size=60) | st.text("datypeky.()[]'\"<>=!+-*/%0123456789 andornti", max_size=60))
def test_any_text_is_an_expression_of_allowed_nodes_or_a_value_error(text: str) -> None:
    try:
        asked = Expression(text)
    except ValueError:
        return
    nodes = {type(node).__name__ for node in ast.walk(ast.parse(text.strip(), mode="eval"))}
    assert nodes <= ALLOWED
    asked.matches(event())


class Fields(dict[str, Any]):
    """A dict as `data` is meant."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


numbers = st.sampled_from(["data.a", "data['b']", "data.c[0]", "1", "2.5", "-3", "timestamp"])
texts = st.sampled_from(["key", "type", "source", "'BTC'", "data.t", "key[:2]", "key[1]"])
sums = st.recursive(
    numbers,
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*/%"), inner),
    max_leaves=4,
)
signs = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
comparisons = st.one_of(
    st.builds("{} {} {}".format, sums, signs, sums),
    st.builds("{} {} {}".format, texts, signs, texts),
    st.builds("{} {} {} {} {}".format, sums, signs, sums, signs, sums),
    st.builds("{} {} [{}, {}]".format, texts, st.sampled_from(["in", "not in"]), texts, texts),
    st.builds("data.t is {}".format, st.sampled_from(["None", "not None"])),
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} or {})".format, inner, inner),
        st.builds("(not {})".format, inner),
    ),
    max_leaves=5,
)


@given(conditions, st.integers(-3, 3), st.sampled_from(["BTC", "TRADE", ""]))
def test_an_expression_says_what_python_says(text: str, number: int, word: str) -> None:
    data = {"a": number, "b": 1.5, "c": [2], "t": word}
    asked = event(data)
    names = {name: value(asked) for name, value in NAMES.items()}
    found = Expression(text)
    matches = found.matches(asked)
    try:
        wanted = bool(eval(text, {}, {**names, "data": Fields(data)}))
    except ArithmeticError:
        assert found.failed == 1
    else:
        assert (matches, found.failed) == (wanted, 0)
