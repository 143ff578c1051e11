"""Names, keys, and which events a query wants, here and in the text that others read."""

import enum
import re
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from aiobus import EventType
from aiobus.query import (
    SYSTEM,
    Query,
    bad_key,
    bad_name,
    bad_type,
    kind_of,
    parse_query,
    plain,
    starred,
)


class Kind(enum.StrEnum):
    TICK = "tick"


class OldKind(str, enum.Enum):  # noqa: UP042 - how it was written before there was StrEnum
    TICK = "tick"


class Number(enum.IntEnum):
    ONE = 1


class Words(str):
    __slots__ = ()


# Names.


@pytest.mark.parametrize("name", ["a", "A-1", "x" * 64, "9", "desk.main_2", "-", ".", "_"])
def test_a_name_is_1_to_64_of_the_allowed_characters(name: str) -> None:
    assert bad_name(name) == ""


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a/b", "a*", "ä", "a\n", "a@b", "٣", "\0"])
def test_any_other_name_is_refused_and_quoted(name: str) -> None:
    assert repr(name) in bad_name(name)


@pytest.mark.parametrize("name", [None, 5, b"desk", ["desk"], Number.ONE])
def test_a_name_that_is_no_string_is_refused_by_its_class(name: object) -> None:
    assert type(name).__name__ in bad_name(name)
    assert "not a string" in bad_name(name)


@given(st.text("aZ09._- @é\n", max_size=4).map(lambda text: text * 13))
def test_the_rule_for_names_is_the_one_in_the_sentence(name: str) -> None:
    allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert (bad_name(name) == "") == (1 <= len(name) <= 64 and set(name) <= allowed)


@pytest.mark.parametrize("name", [*EventType, Kind.TICK, OldKind.TICK, "T", "9.x", "aiobus.gap"])
def test_a_type_is_a_name_that_begins_with_a_letter_or_digit(name: str) -> None:
    assert bad_type(name) == ""


@pytest.mark.parametrize("name", [".hidden", "_x", "-x", "~x"])
def test_a_type_does_not_begin_with_anything_else(name: str) -> None:
    assert repr(name) in bad_type(name)


@pytest.mark.parametrize("name", [Number.ONE, 1, None, b"T", object()])
def test_a_type_that_is_no_string_is_told_what_types_are(name: object) -> None:
    assert type(name).__name__ in bad_type(name)
    assert "an EventType, your own StrEnum or plain text" in bad_type(name)


@pytest.mark.parametrize(
    ("value", "kind"), [(5, "an int"), (b"x", "a bytes"), (object(), "an object"), ({1}, "a set")]
)
def test_a_value_is_named_by_its_class_with_its_article(value: object, kind: str) -> None:
    assert kind_of(value) == kind


@pytest.mark.parametrize("key", ["", "BTC/USDT*", "x" * 128, "é" * 64, "\0\n %", "€" * 42])
def test_a_key_is_any_text_of_up_to_128_bytes(key: str) -> None:
    assert bad_key(key) == ""


@pytest.mark.parametrize("key", ["x" * 129, "é" * 65, "x" * 100_000])
def test_a_longer_key_is_refused_with_its_size_but_not_in_full(key: str) -> None:
    reason = bad_key(key)
    assert f"{len(key.encode())} bytes, more than 128" in reason
    assert len(reason) < 200


@pytest.mark.parametrize("key", [None, 5, b"BTC", ["BTC"]])
def test_a_key_that_is_no_string_is_refused_by_its_class(key: object) -> None:
    assert type(key).__name__ in bad_key(key)


def test_a_key_that_is_no_unicode_text_is_refused() -> None:
    assert "is not valid Unicode text" in bad_key("\ud800")


@pytest.mark.parametrize("text", [Kind.TICK, OldKind.TICK, Words("tick"), "tick"])
def test_the_plain_text_of_a_string_is_its_characters_whatever_its_class(text: str) -> None:
    assert (plain(text), type(plain(text))) == ("tick", str)


# Making a query.


def _culprit(given: Any) -> str:
    return re.escape(repr(given[-1] if isinstance(given, list) else given))


@pytest.mark.parametrize("types", ["TRADE", EventType.TRADE, ["TRADE"], {"TRADE"}, iter(["TRADE"])])
def test_types_are_given_one_by_one_or_in_any_collection(types: Any) -> None:
    assert Query.of(types) == Query.of("TRADE")


def test_a_query_holds_plain_strings_and_not_the_members_they_came_from() -> None:
    query = Query.of([EventType.TRADE, OldKind.TICK], key=[Kind.TICK, Words("a")])
    assert {type(text) for text in query.types | query.keys} == {str}
    assert query == Query.of(["TRADE", "tick"], key=["tick", "a"])


def test_an_enum_class_of_types_means_all_its_members() -> None:
    assert Query.of(EventType).types == {member.value for member in EventType}


NO_STRINGS = [5, None, Number.ONE, b"TRADE", 1.5, [Number.ONE], ["TRADE", None], [["TRADE"]]]


@pytest.mark.parametrize(
    ("types", "key", "error", "reason"),
    [
        *((types, "", TypeError, _culprit(types)) for types in [*NO_STRINGS, [b"T"]]),
        *(("T", key, TypeError, _culprit(key)) for key in NO_STRINGS if key is not None),
        *((types, "", ValueError, "no event types were given") for types in ([], (), iter([]))),
        *(("T", key, ValueError, "an empty list of keys") for key in ([], (), iter([]))),
        *((types, "", ValueError, "is not 1-64 characters") for types in ("", "T R", ["x" * 65])),
        ("_x", "", ValueError, "does not begin"),
        *(("T", key, ValueError, "more than 128") for key in ("x" * 129, ["a", "é" * 65])),
        ("T", "\ud800", ValueError, "not valid Unicode"),
    ],
)
def test_what_is_no_query_is_refused_with_what_is_wrong_with_it(
    types: Any, key: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        Query.of(types, key)


@pytest.mark.parametrize("types", ["ORDER.*", "TRADE*", "**", "aiobus.**", ["TRADE", "T*"]])
def test_a_star_within_a_type_is_refused_with_the_ways_out(types: Any) -> None:
    culprit = types[-1] if isinstance(types, list) else types
    with pytest.raises(
        ValueError, match=re.escape(f"{culprit!r} is no type: a `*` stands")
    ) as caught:
        Query.of(types)
    assert "name each type, or put what varies into the key" in str(caught.value)


@pytest.mark.parametrize("name", ["aiobus.peer_leave", "aiobus.Gap", "aiobus.", "aiobus.x"])
def test_a_reserved_type_that_there_is_not_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name!r} is never published")) as caught:
        Query.of(["TRADE", name])
    assert ", ".join(SYSTEM) in str(caught.value)


@pytest.mark.parametrize("key", ["*USDT", "B*T", "**", "B**", ["BTC", "*T"]])
def test_a_star_that_is_not_the_end_of_a_key_is_refused_with_the_way_out(key: Any) -> None:
    culprit = key[-1] if isinstance(key, list) else key
    with pytest.raises(
        ValueError, match=re.escape(f"{culprit!r} has a `*` that is not its end")
    ) as caught:
        Query.of("TRADE", key)
    assert "with where=" in str(caught.value)


@pytest.mark.parametrize("key", ["*", "BTC*", "*USDT", "B*T"])
def test_no_event_may_have_a_key_with_a_star(key: str) -> None:
    assert f"{key!r} has a `*`" in starred(key)
    assert starred(key.replace("*", "")) == ""


# What it matches.


def test_without_keys_every_key_matches() -> None:
    query = Query.of("TRADE")
    assert query.matches("TRADE", "")
    assert query.matches("TRADE", "BTC")
    assert not query.matches("FILL", "BTC")


def test_the_empty_key_is_a_key_like_any_other() -> None:
    query = Query.of("TRADE", key="")
    assert query.matches("TRADE", "")
    assert not query.matches("TRADE", "BTC")


def test_a_star_at_the_end_of_a_key_asks_for_all_that_begin_so() -> None:
    query = Query.of("TRADE", key=["BTC*", "ETH"])
    assert query.matches("TRADE", "BTC")
    assert query.matches("TRADE", "BTCUSDT")
    assert query.matches("TRADE", "ETH")
    assert not query.matches("TRADE", "ETHUSDT")


def test_a_star_alone_as_the_key_is_every_key() -> None:
    assert Query.of("TRADE", key=["BTC", "*"]) == Query.of("TRADE")


def test_a_star_as_the_type_is_every_type_but_the_reserved() -> None:
    query = Query.of("*")
    assert query.matches("TRADE", "BTC")
    assert query.matches("aiobusy", "")
    assert not query.matches("aiobus.gap", "")
    assert not query.matches("aiobus.", "")


def test_a_star_beside_other_types_is_still_every_type() -> None:
    assert Query.of(["TRADE", "*"]) == Query.of("*")


def test_a_reserved_type_asked_for_by_name_matches_whatever_the_key() -> None:
    query = Query.of(["TRADE", "aiobus.gap"], key="BTC")
    assert query.matches("aiobus.gap", "")
    assert query.matches("aiobus.gap", "ETH")
    assert not query.matches("aiobus.error", "BTC")
    assert not query.matches("TRADE", "ETH")


def test_a_star_and_a_reserved_type_match_both() -> None:
    query = Query.of(["*", "aiobus.gap"])
    assert query.matches("TRADE", "")
    assert query.matches("aiobus.gap", "")
    assert not query.matches("aiobus.error", "")


@pytest.mark.parametrize(
    ("types", "wants"),
    [("TRADE", True), ("*", True), ("aiobus.gap", False), (["aiobus.gap", "TRADE"], True)],
)
def test_a_query_wants_data_unless_all_its_types_are_reserved(types: Any, wants: bool) -> None:
    assert Query.of(types).wants_data is wants


def test_a_query_without_a_reserved_type_keeps_all_else() -> None:
    query = Query.of(["TRADE", "aiobus.gap", "aiobus.error"], key=["BTC", "E*"])
    assert query.without("aiobus.gap") == Query.of(["TRADE", "aiobus.error"], key=["BTC", "E*"])


def test_two_queries_have_the_same_types_whatever_their_keys() -> None:
    query = Query.of(["TRADE", "aiobus.gap"], key="BTC")
    assert query.has_types_of(Query.of(["aiobus.gap", "TRADE"]))
    assert not query.has_types_of(Query.of("TRADE", key="BTC"))
    assert not Query.of("*").has_types_of(Query.of("TRADE"))


# Properties, against the plainest matcher there can be.

TYPES = ["A", "B", "AB", "T-1", "aiobus.gap", "aiobus.error"]
KEYS = st.text("ab/ %é\n\x7f", max_size=4)
ENDS = st.sampled_from(["", "*"])
RULES = st.builds("{}{}".format, KEYS, ENDS)


def wants(types: list[str], keys: list[str] | None, type: str, key: str) -> bool:
    if type.startswith("aiobus."):
        return type in types
    if type not in types and "*" not in types:
        return False
    return keys is None or any(
        key.startswith(rule[:-1]) if rule.endswith("*") else key == rule for rule in keys
    )


def fits(pattern: str, type: str, key: str) -> bool:
    """`TYPE`, `TYPE/key`, `TYPE/prefix*` or `*`, read as a stranger would."""
    name, slash, rule = pattern.partition("/")
    if pattern == "*":
        return True
    if not slash:
        return name == type
    if rule.endswith("*"):
        return name == type and key.startswith(unquote(rule[:-1], errors="strict"))
    return name == type and key == unquote(rule, errors="strict")


def asks_for(text: str, type: str, key: str) -> bool:
    return any(fits(pattern, type, key) for pattern in text.split(" "))


queries = st.tuples(
    st.lists(st.sampled_from([*TYPES, "*"]), min_size=1, max_size=4),
    st.none() | st.lists(RULES, min_size=1, max_size=4),
)
events = st.tuples(st.sampled_from(TYPES), KEYS)


@given(queries, events)
def test_a_query_matches_exactly_what_was_asked_for(
    query: tuple[list[str], list[str] | None], event: tuple[str, str]
) -> None:
    assert Query.of(*query).matches(*event) is wants(*query, *event)


@given(queries, events)
def test_a_type_matches_when_some_key_of_it_could(
    query: tuple[list[str], list[str] | None], event: tuple[str, str]
) -> None:
    made, (type, key) = Query.of(*query), event
    assert made.matches_type(type) or not made.matches(type, key)
    if made.matches_type(type) and type not in made.reserved:
        assert made.matches_key(key) is made.matches(type, key)


# Lists of keys that share a beginning and are long enough to be widened, and many types.
LONG_KEYS = st.builds(
    lambda start, ends: [start + end for end in ends],
    KEYS,
    st.lists(
        st.builds("{}{}".format, st.text("abé/ ", max_size=28), ENDS), min_size=1, max_size=12
    ),
)
MANY_TYPES = st.sampled_from([3, 20]).map(lambda count: [f"{n:060}" for n in range(count)])


@given(
    types=st.lists(st.sampled_from([*TYPES, "*"]), min_size=1, max_size=4) | MANY_TYPES,
    keys=st.none() | LONG_KEYS,
    others=st.lists(KEYS, max_size=4),
)
@example(types=["A", "*"], keys=[f"BTC {n}*" for n in range(300)], others=["BTC 5", "BTC"])
@example(types=["A"], keys=[f"BTC {n}*" for n in range(300)], others=["BTC 5", "BTC"])
@example(types=["A"], keys=[f"{n}" for n in range(1000)], others=[""])
@example(types=[f"{n:064}" for n in range(20)], keys=["a"], others=["a"])
def test_the_text_asks_for_at_least_what_is_wanted(
    types: list[str], keys: list[str] | None, others: list[str]
) -> None:
    query = Query.of(types, keys)
    text = query.text
    wanted = [
        (type, key)
        for type in types
        for key in [*(keys or []), *others]
        if type != "*" and query.matches(type, key) and type not in query.reserved
    ]
    assert [event for event in wanted if not asks_for(text, *event)] == []


@given(
    types=st.lists(st.sampled_from([*TYPES, "*"]), min_size=1, max_size=4) | MANY_TYPES,
    keys=st.none() | LONG_KEYS,
)
def test_the_text_is_at_most_1024_bytes_of_sorted_patterns(
    types: list[str], keys: list[str] | None
) -> None:
    text = Query.of(types, keys).text
    assert len(text.encode()) <= 1024
    assert text.split(" ") == sorted(set(text.split(" ")))
    assert "\0" not in text
    assert text == Query.of(types[::-1], keys and keys[::-1]).text


@given(queries, events)
def test_a_text_that_fits_asks_for_nothing_else(
    query: tuple[list[str], list[str] | None], event: tuple[str, str]
) -> None:
    made = Query.of(*query)
    if not (made.every or event[0] in made.reserved):
        assert asks_for(made.text, *event) is made.matches(*event)


@pytest.mark.parametrize(
    ("types", "key", "text"),
    [
        ("TRADE", None, "TRADE"),
        (["TRADE", "FILL"], None, "FILL TRADE"),
        ("TRADE", "BTC", "TRADE/BTC"),
        ("TRADE", "", "TRADE/"),
        ("TRADE", "BTC*", "TRADE/BTC*"),
        ("TRADE", "*", "TRADE"),
        (["B", "A"], ["y", "x*"], "A/x* A/y B/x* B/y"),
        ("*", None, "*"),
        ("*", "BTC", "*"),
        (["TRADE", "aiobus.gap"], "BTC", "TRADE/BTC"),
        ("aiobus.gap", None, ""),
        (["aiobus.gap", "*"], None, "*"),
        ("T", "ab/c %d\n\x7f", "T/ab%2Fc%20%25d%0A%7F"),
        ("T", "Zürich", "T/Zürich"),
    ],
)
def test_the_text_of_a_query(types: Any, key: Any, text: str) -> None:
    assert Query.of(types, key).text == text


@pytest.mark.parametrize(
    ("types", "key", "text"),
    [
        ("TRADE", "BTC", "TRADE/BTC"),
        ("*", "BTC", "*/BTC"),
        ("*", ["E*", "BTC"], "*/BTC */E*"),
        ("aiobus.gap", None, "aiobus.gap"),
        (["TRADE", "aiobus.gap"], "BTC", "TRADE/BTC aiobus.gap"),
        ("T", [f"{n:04}" for n in range(1000)], " ".join(f"T/{n:04}" for n in range(1000))),
    ],
)
def test_as_text_for_people_a_query_says_all_that_is_wanted_and_nothing_else(
    types: Any, key: Any, text: str
) -> None:
    assert str(Query.of(types, key)) == text


def test_keys_too_many_for_the_text_become_the_beginning_they_share() -> None:
    assert Query.of("T", [f"a/b{n}" for n in range(1000)]).text == "T/a%2Fb*"


@pytest.mark.parametrize(("length", "text_length"), [(119, 1024), (120, len("T/k*"))])
def test_a_text_of_1024_bytes_is_sent_as_it_is_and_a_longer_one_is_not(
    length: int, text_length: int
) -> None:
    keys = [f"k{n}".ljust(126, ".") for n in range(7)] + ["k7".ljust(length, ".")]
    assert len(Query.of("T", keys).text) == text_length


def test_the_beginning_is_shared_by_keys_and_prefixes_alike() -> None:
    assert Query.of("T", ["ab*", *(f"a{n}" for n in range(1000))]).text == "T/a*"
    assert Query.of("T", ["b*", *(f"a{n}" for n in range(1000))]).text == "T"


def test_keys_that_share_nothing_become_the_whole_type() -> None:
    assert Query.of(["T", "S"], [f"{n}" for n in range(1000)]).text == "S T"


def test_types_too_many_for_the_text_become_everything() -> None:
    assert Query.of([f"{n:060}" for n in range(20)]).text == "*"


# The text that others read, read.


@given(queries)
@example((["A"], ["ab*", "a", "a*", "", "/a"]))
def test_a_text_is_read_as_the_query_it_is_of(query: tuple[list[str], list[str] | None]) -> None:
    made = Query.of(*query)
    assume(made.wants_data)
    expected = Query.of("*") if made.every else made
    for reserved in made.reserved:
        expected = expected.without(reserved)
    assert parse_query(made.text) == expected


@given(
    types=st.lists(st.sampled_from(["A", "B", "*"]), min_size=1, max_size=4) | MANY_TYPES,
    keys=st.none() | LONG_KEYS,
)
def test_a_text_that_asks_for_more_than_was_wanted_can_be_read_as_well(
    types: list[str], keys: list[str] | None
) -> None:
    text = Query.of(types, keys).text
    assert parse_query(text).text == text


def test_a_star_that_is_a_character_is_not_read_as_the_end_of_a_prefix() -> None:
    query = parse_query("T/a%2A")
    assert query.matches("T", "a*")
    assert not query.matches("T", "ab")


def test_the_empty_key_and_every_key_are_read_apart() -> None:
    assert parse_query("T/") == Query.of("T", key="")
    assert parse_query("T") == Query.of("T")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not 1-64 characters"),
        (" ", "is not 1-64 characters"),
        ("A ", "is not 1-64 characters"),
        ("A  B", "is not 1-64 characters"),
        ("A\n", "is not 1-64 characters"),
        ("/x", "is not 1-64 characters"),
        ("*/x", "is not 1-64 characters"),
        ("* A", "is not 1-64 characters"),
        ("A*", "is not 1-64 characters"),
        ("x" * 65, "is not 1-64 characters"),
        ("~A", "is not 1-64 characters"),
        ("_A", "does not begin with a letter or digit"),
        ("aiobus.gap", "is reserved"),
        ("A aiobus.gap/x", "is reserved"),
        ("A/*", "written without a key"),
        ("A/x*y", "is not escaped as it should be"),
        ("A/x**", "is not escaped as it should be"),
        ("A/x/y", "is not escaped as it should be"),
        ("A/%", "is not escaped as it should be"),
        ("A/%2a", "is not escaped as it should be"),
        ("A/%41", "is not escaped as it should be"),
        ("A/%C3%A9", "is not escaped as it should be"),
        ("A/\t", "is not escaped as it should be"),
        ("A/" + "x" * 129, "has 129 bytes, more than 128"),
        ("A/" + "é" * 65 + "*", "has 130 bytes, more than 128"),
        ("B A", "not sorted"),
        ("A A", "there twice"),
        ("A/y A/x", "not sorted"),
        ("A/x B", "subscribe once for each"),
        ("A A/x", "subscribe once for each"),
        ("A/x B/y", "subscribe once for each"),
        ("A/x A/y B/x", "subscribe once for each"),
        (" ".join(f"A/{n:0100}" for n in range(10)), "has more than 1024 bytes"),
        ("é" * 600, "has more than 1024 bytes"),
        ("A/\ud800", "surrogates not allowed"),
    ],
)
def test_a_text_that_no_query_has_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_query(text)


def test_types_that_each_have_a_key_of_their_own_are_refused_before_all_pairs_are_made() -> None:
    text = " ".join(sorted(f"{n:03}/{n:03}" for n in range(120)))
    with pytest.raises(ValueError, match="subscribe once for each"):
        parse_query(text)


@given(st.text("AB*/ %20a_é\0~", max_size=12) | st.text())
def test_any_text_is_refused_or_the_text_of_what_was_read(text: str) -> None:
    try:
        query = parse_query(text)
    except ValueError:
        return
    assert query.text == text
    assert query.wants_data
    assert not query.reserved


@pytest.mark.parametrize("text", ["{}", "A/{}", "A/{}*", "A/%{}", "aiobus.{}", "A {}", "{}/x"])
@pytest.mark.parametrize("length", [50, 100, 1000])
def test_the_reason_quotes_no_more_than_80_characters(text: str, length: int) -> None:
    with pytest.raises(ValueError, match=r"Z|bytes") as caught:
        parse_query(text.format("Z" * length + "%"))
    assert str(caught.value).count("Z") <= 80
