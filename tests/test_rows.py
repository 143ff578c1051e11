"""Rows of another bus: what was sent is handed over, a few at a time, and up to the first that is
wrong.
"""

import sys
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from values import all_of, events, json_values, row_of

from aiobus import Event, EventType, rows
from aiobus.codec import decode
from aiobus.rows import (
    MAX_NUMBER,
    MAX_TYPES,
    MIN_ROW,
    OPENED,
    OPENED_BYTES,
    SEPARATOR,
    SHORT,
    LazyBatch,
    Rows,
    WireError,
    shape,
)

SOURCE = ("desk", 7)
MARKER = "S3CRET"


def row(**changed: Any) -> bytes:
    """A row that is right, but for what is changed."""
    fields = {"seq": 5, "timestamp": 1.5, "type": "TRADE", "key": "BTC", "data": {"price": 1}}
    return orjson.dumps(list((fields | changed).values()))


def numbered(first: int, last: int, data: Any = 1) -> list[bytes]:
    return [row(seq=seq, data=data) for seq in range(first, last + 1)]


def batch_of(
    *parts: bytes,
    prev: int = 4,
    newest: int | None = None,
    count: int | None = None,
    separator: bytes = SEPARATOR,
    is_frame: bool = True,
) -> LazyBatch:
    """A batch of these rows in the midst of a message. Without `newest`, it is that of the last."""
    if newest is None:
        newest = orjson.loads(parts[-1])[0]
    text = separator.join(parts)
    span, count = (prev, newest), len(parts) if count is None else count
    message, begin = b"head[%b]]" % text, 5
    return LazyBatch(
        Rows(message, begin, begin + len(text), SOURCE, span, count, is_frame=is_frame)
    )


def chunks(batch: LazyBatch) -> list[list[Event[Any]]]:
    """What each `take` returns until nothing is left."""
    found = []
    while batch.left:
        found.append(batch.take())
    return found


def taken(batch: LazyBatch) -> list[Event[Any]]:
    return [event for chunk in chunks(batch) for event in chunk]


def seqs(batch: LazyBatch) -> list[int]:
    return [event.seq for event in taken(batch)]


def said(batch: LazyBatch) -> str:
    """Why the rest of a batch is no events, which is taken to its end."""
    taken(batch)
    assert batch.error is not None
    return str(batch.error)


# What is right.


@given(
    sent=st.lists(st.tuples(events, st.integers(1, 1000)), min_size=1, max_size=100),
    prev=st.integers(0, 2**40),
    separator=st.sampled_from([SEPARATOR, b",", b", ", b"\n,\n"]),
    is_frame=st.booleans(),
)
def test_events_arrive_as_the_codec_would_decode_them(
    sent: list[tuple[Event, int]], prev: int, separator: bytes, is_frame: bool
) -> None:
    parts, seq = [], prev
    for event, step in sent:
        seq += step
        parts.append(row_of(event, seq))
    batch = batch_of(*parts, prev=prev, separator=separator, is_frame=is_frame)
    expected = [all_of(event) for event in decode(parts, *SOURCE)]
    assert [all_of(event) for event in taken(batch)] == expected
    assert (batch.error, batch.left, batch.last) == (None, 0, seq)


@given(st.lists(st.integers(0, OPENED_BYTES * 2), min_size=1, max_size=100))
def test_however_large_they_are_all_arrive_in_chunks_of_32_and_of_16_kib_if_of_several(
    sizes: list[int],
) -> None:
    parts = [row(seq=seq, data="x" * size) for seq, size in enumerate(sizes, 5)]
    batch = batch_of(*parts)
    place = 0
    while batch.left:
        left = batch.left
        some = batch.take()
        assert batch.left == left - len(some)
        assert 0 < len(some) <= OPENED
        size = sum(map(len, parts[place : place + len(some)]))
        assert len(some) == 1 or size <= OPENED_BYTES
        place += len(some)
        assert batch.last == some[-1].seq == 4 + place
    assert (place, batch.error) == (len(sizes), None)


@pytest.mark.parametrize("count", [1, OPENED - 1, OPENED, OPENED + 1, 3 * OPENED, 3 * OPENED + 5])
def test_small_ones_come_32_at_once(count: int) -> None:
    found = chunks(batch_of(*numbered(5, 4 + count)))
    assert [len(chunk) for chunk in found[:-1]] == [OPENED] * (len(found) - 1)
    assert len(found) == -(-count // OPENED)


def test_a_row_beyond_16_kib_comes_alone() -> None:
    large = row(seq=6, data="x" * (2 * OPENED_BYTES))
    assert [len(chunk) for chunk in chunks(batch_of(row(), large, row(seq=7)))] == [1, 1, 1]


def test_rows_of_exactly_16_kib_come_together_and_with_one_byte_more_do_not() -> None:
    size = (OPENED_BYTES - len(row(data="")) - len(row(seq=6, data=""))) // 2
    parts = [row(data="x" * size), row(seq=6, data="x" * size)]
    assert sum(map(len, parts)) in (OPENED_BYTES, OPENED_BYTES - 1)
    spare = OPENED_BYTES - sum(map(len, parts))
    parts[1] = row(seq=6, data="x" * (size + spare))
    assert len(chunks(batch_of(*parts))) == 1
    parts[1] = row(seq=6, data="x" * (size + spare + 1))
    assert len(chunks(batch_of(*parts))) == 2


@pytest.mark.parametrize("separator", [b",", b", ", b",\r\n", b"\n, "])
def test_rows_that_are_not_parted_by_comma_and_newline_are_opened_whole(separator: bytes) -> None:
    batch = batch_of(*numbered(5, 104), separator=separator)
    assert [event.seq for event in batch.take()] == list(range(5, 105))
    assert (batch.left, batch.error) == (0, None)


@pytest.mark.parametrize("data", [1, "x" * SHORT])
def test_rows_that_are_parted_in_another_way_from_some_row_on_all_arrive(data: object) -> None:
    parts = numbered(5, 104, data)
    parts[OPENED:] = [b"\n, ".join(parts[OPENED:])]
    batch = batch_of(*parts, count=100, newest=104)
    assert [event.seq for event in taken(batch)] == list(range(5, 105))
    assert batch.error is None


@pytest.mark.parametrize("data", [1, "x" * SHORT, "x" * 2 * OPENED_BYTES])
@pytest.mark.parametrize("lacking", [1, OPENED, OPENED + 1, 2 * OPENED, 99])
def test_a_row_without_a_comma_before_it_and_all_behind_it_are_no_events(
    lacking: int, data: object
) -> None:
    parts = numbered(5, 104, data)
    parts[lacking - 1 : lacking + 1] = [b"\n".join(parts[lacking - 1 : lacking + 1])]
    batch = batch_of(*parts, count=100, newest=104)
    assert [event.seq for event in taken(batch)] == list(range(5, 4 + lacking))
    assert batch.error is not None


def test_rows_with_newlines_of_another_hand_within_them_are_opened_whole() -> None:
    parts = [part.replace(b",", SEPARATOR) for part in numbered(5, 104)]
    batch = batch_of(*parts)
    assert len(batch.take()) == 100
    assert (batch.left, batch.error) == (0, None)


def test_what_a_text_has_in_it_parts_no_rows() -> None:
    data = [",\n", ",\\n", "[", "]],\n[", '",\n"']
    parts = [row(seq=seq, data=data) for seq in range(5, 105)]
    batch = batch_of(*parts)
    assert all(event.data == data for event in taken(batch))
    assert batch.error is None


def test_two_batches_of_the_same_rows_that_take_turns_get_the_same_and_share_nothing() -> None:
    one = batch_of(*numbered(5, 68, data=[1]))
    other = LazyBatch(one.rows)
    while one.left:
        for first, second in zip(one.take(), other.take(), strict=True):
            assert all_of(first) == all_of(second)
            assert first.data is not second.data
    assert other.left == 0


def test_what_is_done_to_an_event_another_batch_of_the_same_rows_does_not_see() -> None:
    one = batch_of(row(data={"legs": [1]}), row(seq=6))
    for event in taken(one):
        event.seq = 0
        event.data.clear()
    assert [(event.seq, event.data) for event in taken(LazyBatch(one.rows))] == [
        (5, {"legs": [1]}),
        (6, {"price": 1}),
    ]


def test_a_usual_type_arrives_as_the_member_it_is_each_time() -> None:
    for _ in range(2):  # the second time it is known
        found = taken(batch_of(row(), row(seq=6, type="mine")))
        assert [event.type for event in found] == [EventType.TRADE, "mine"]
        assert [type(event.type) for event in found] == [EventType, str]


def test_rows_with_ever_new_types_leave_nothing_behind() -> None:
    for number in range(2 * MAX_TYPES):
        assert len(taken(batch_of(row(type=f"T{number}")))) == 1
    assert len(rows._types) <= MAX_TYPES


@pytest.mark.parametrize(
    "changed",
    [
        {"seq": MAX_NUMBER},
        {"timestamp": 0},
        {"timestamp": -1.5},
        {"type": "x" * 64},
        {"key": ""},
        {"key": "é" * 64},
        {"key": "x" * 128},
        {"data": None},
        {"data": "[" * 500 + '"{'},
        {"cause": ""},
        {"cause": "c" * 256},
    ],
)
def test_what_just_fits_arrives(changed: dict[str, Any]) -> None:
    (event,) = taken(batch_of(row(**changed)))
    assert {name: getattr(event, name) for name in changed} == changed


def test_a_timestamp_that_another_program_wrote_as_a_whole_number_is_a_float() -> None:
    """As a journal gives it back."""
    (event,) = taken(batch_of(row(timestamp=1_700_000_000)))
    assert repr(event.timestamp) == "1700000000.0"


def test_of_a_page_the_last_row_may_lie_below_how_far_it_goes() -> None:
    batch = batch_of(*numbered(5, 7), newest=20, is_frame=False)
    assert seqs(batch) == [5, 6, 7]
    assert batch.error is None


# What is wrong.

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"seq": 4}, "seq"),
    ({"seq": 0}, "seq"),
    ({"seq": -1}, "seq"),
    ({"seq": 200}, "above the newest"),
    ({"seq": MAX_NUMBER}, "seq"),
    ({"seq": 2**63}, "seq"),
    ({"seq": 150.0}, "seq"),
    ({"seq": True}, "seq"),
    ({"seq": "150"}, "seq"),
    ({"seq": None}, "seq"),
    ({"seq": [150]}, "seq"),
    (
        {"timestamp": None},
        "no event: int, NoneType, str of length 5, str of length 3, dict of length 1",
    ),
    ({"timestamp": True}, "no event: int, bool, str"),
    ({"timestamp": "1.5"}, "no event: int, str of length 3, str"),
    ({"type": "aiobus.gap"}, "no type that is sent: str of length 10"),
    ({"type": ""}, "no type that is sent: str of length 0"),
    ({"type": "*"}, "no type that is sent"),
    ({"type": "_x"}, "no type that is sent"),
    ({"type": "x" * 65}, "no type that is sent"),
    ({"type": None}, "no event: int, float, NoneType, str"),
    ({"type": ["TRADE"]}, "no event: int, float, list of length 1, str"),
    ({"type": {}}, "no event: int, float, dict of length 0, str"),
    ({"key": None}, "no event: int, float, str of length 5, NoneType, dict"),
    ({"key": 5}, "no event: int, float, str of length 5, int, dict"),
    ({"key": "x" * 129}, "a key or cause that is too long: str of length 129, str of length 0"),
    ({"key": "é" * 65}, "a key or cause that is too long: str of length 65, str of length 0"),
    ({"cause": None}, "dict of length 1, NoneType"),
    ({"cause": "c" * 257}, "a key or cause that is too long: str of length 3, str of length 257"),
    ({"cause": "", "more": 1}, "no event: list of length 7"),
]
NO_ROWS = [
    b"null", b"5", b'"row of six"', b'"row!!"', b"{}", b'{"a":1,"b":2,"c":3,"d":4,"e":5}', b"[]",
    b"[150]", b'[150,1.5,"TRADE","BTC"]', b"[[150]]", b"[[],[],[],[],[]]",
]  # fmt: skip
NO_JSON = [
    b"", b"[", b"]", b"[150", b'[150,1.5,"TRADE","BTC",1', b'[150,1.5,"TRADE","BTC",1]]',
    b'[150,1.5,"TRADE","BTC",NaN]', b'[150,1e400,"TRADE","BTC",1]',
    b'[150,-1e999,"TRADE","BTC",1]', b'[150,Infinity,"TRADE","BTC",1]',
    b'[150,1.5,"TR\xffADE","BTC",1]', b'[150,1.5,"TRADE","\\ud800",1]', b"[0150]", b"x" * 30,
    b'[150,1.5,"TRADE","BTC",%b]' % (b"[" * 1000 + b"]" * 1000),
    b'[150,1.5,"TRADE","BTC",%b]' % (b"[" * 100_000 + b"]" * 100_000),
    b'[150,1.5,"TRADE","BTC",%b]' % (b"[" * 254 + b"]" * 254),
    b'[150,1.5,"TRADE","BTC",1]\0',
    b'[150,1.5,"TRADE"\n"BTC",1]',
]  # fmt: skip
ALL_WRONG = [row(**{"seq": 150} | changed) for changed, _ in WRONG] + NO_ROWS + NO_JSON


def with_wrong(good: int, wrong: bytes, after: int) -> LazyBatch:
    """So many good rows from 5 on, a wrong one, and good rows after it. Up to 150 any seq is."""
    wrong = wrong.rjust(MIN_ROW)  # or the count would be refused at once
    return batch_of(*numbered(5, 4 + good), wrong, *numbered(151, 150 + after), newest=150 + after)


@pytest.mark.parametrize("after", [0, 40])
@pytest.mark.parametrize("good", [0, 31, 32])
@pytest.mark.parametrize("wrong", ALL_WRONG)
def test_before_a_row_that_is_wrong_all_are_handed_over_and_none_behind_it(
    wrong: bytes, good: int, after: int
) -> None:
    batch = with_wrong(good, wrong, after)
    assert seqs(batch) == list(range(5, 5 + good))
    assert isinstance(batch.error, WireError)
    assert (batch.left, batch.last) == (0, 4 + good)


@pytest.mark.parametrize("good", [0, 32])
@pytest.mark.parametrize("separator", [b",", b", "])
@pytest.mark.parametrize(("changed", "_"), WRONG)
def test_before_an_event_that_no_bus_sends_all_are_handed_over_of_rows_that_are_opened_whole(
    changed: dict[str, Any], _: str, separator: bytes, good: int
) -> None:
    wrong = row(**{"seq": 150} | changed)
    batch = batch_of(*numbered(5, 4 + good), wrong, separator=separator, newest=150)
    assert seqs(batch) == list(range(5, 5 + good))
    assert isinstance(batch.error, WireError)


@pytest.mark.parametrize(("changed", "reason"), WRONG)
def test_what_is_wrong_is_said_with_its_place(changed: dict[str, Any], reason: str) -> None:
    wrong = row(**{"seq": 150} | changed)
    first, second = said(with_wrong(0, wrong, 0)), said(with_wrong(1, wrong, 0))
    assert first.startswith("a row after seq 4: ")
    assert reason in first
    assert second == first.replace("seq 4", "seq 5")


@pytest.mark.parametrize("numbers", [[5, 5], [6, 5], [5, 6, 6], [3], [4], [5, 4]])
def test_numbers_that_do_not_rise_from_above_prev_end_the_batch(numbers: list[int]) -> None:
    batch = batch_of(*[row(seq=seq) for seq in numbers], newest=9)
    assert "a seq that is not above the one before" in said(batch)


@pytest.mark.parametrize("deep", [b"[%b]", b'{"a":%b}', b'[1,{"a":%b},2]', b'["]",%b,"["]'])
@pytest.mark.parametrize("others", [0, 1, 31, 100])
def test_data_nested_253_deep_arrives_and_of_a_deeper_one_the_depth_is_said(
    others: int, deep: bytes
) -> None:
    levels = 2 if deep.count(b"%b") and deep.startswith(b"[1,{") else 1
    data = b"1"
    for _ in range(253 // levels):
        data = deep.replace(b"%b", data)
    if levels == 2:
        data = b"[%b]" % data
    good = numbered(5, 4 + others, {"bids": [[1, 2]]})
    fitting = b'[150,1.5,"T","",%b]' % data
    batch = batch_of(*good, fitting)
    found = taken(batch)
    assert batch.error is None
    assert orjson.dumps(found[-1].data) == data
    deeper = b'[150,1.5,"T","",[%b]]' % data
    batch = batch_of(*good, deeper)
    assert len(taken(batch)) == others
    assert str(batch.error).endswith("data nested more than 253 deep")


def test_the_codec_sends_just_as_deep_as_is_read() -> None:
    sent = row_of(Event("T", orjson.loads(b"[" * 253 + b"]" * 253)), 5)
    assert len(taken(batch_of(sent))) == 1


def test_many_brackets_that_are_not_deep_arrive() -> None:
    data = {"bids": [[1.5, 2]] * 60, "note": "[" * 200}
    batch = batch_of(*numbered(5, 68, data))
    assert len(taken(batch)) == 64
    assert batch.error is None


# Heads that are wrong.


@pytest.mark.parametrize("is_frame", [True, False])
@pytest.mark.parametrize("others", [1, 20, 31, 32, 33, 100])
@pytest.mark.parametrize("more", [1, 2])
def test_rows_that_are_fewer_than_the_head_says_are_all_handed_over_and_that_is_said(
    others: int, more: int, is_frame: bool
) -> None:
    parts = numbered(5, 4 + others, "x" * 30)
    batch = batch_of(*parts, count=others + more, newest=200, is_frame=is_frame)
    assert seqs(batch) == list(range(5, 5 + others))
    assert str(batch.error) == f"not {others + more} rows, as the head says"
    assert (batch.left, batch.last) == (0, 4 + others)


@pytest.mark.parametrize("is_frame", [True, False])
@pytest.mark.parametrize("others", [2, 20, 31, 32, 33, 100])
def test_rows_that_are_more_than_the_head_says_are_an_error(others: int, is_frame: bool) -> None:
    batch = batch_of(*numbered(5, 4 + others), count=others - 1, newest=200, is_frame=is_frame)
    found = seqs(batch)
    assert found == list(range(5, 5 + len(found)))
    assert str(batch.error) == f"not {others - 1} rows, as the head says"
    assert batch.left == 0


@pytest.mark.parametrize("others", [1, 2, 31, 32, 33, 100])
def test_a_frame_that_does_not_end_with_its_newest_is_handed_over_and_lacks_the_rest(
    others: int,
) -> None:
    batch = batch_of(*numbered(5, 4 + others), newest=200)
    assert seqs(batch) == list(range(5, 5 + others))
    assert str(batch.error) == "a last row that is not the one the head names"
    assert (batch.left, batch.last) == (0, 4 + others)


@pytest.mark.parametrize("extra", [b"[5]", row(seq=101)])
def test_two_rows_where_one_is_to_be_end_the_batch(extra: bytes) -> None:
    """Parted by a comma alone, so that the number of parts is right."""
    parts = numbered(5, 104)
    parts[50] = parts[50] + b"," + extra
    batch = batch_of(*parts)
    assert seqs(batch) == list(range(5, 55))
    assert batch.error is not None
    assert batch.last == 54


@pytest.mark.parametrize("count", [2, 3, 1_000, MAX_NUMBER])
def test_a_count_that_its_bytes_cannot_hold_is_refused_at_once(count: int) -> None:
    text = b'[5,1,"T","",0]'
    assert len(text) == MIN_ROW
    with pytest.raises(WireError, match=f"^{count} rows in 14 bytes$"):
        Rows(text, 0, len(text), SOURCE, (4, MAX_NUMBER), count, is_frame=True)


def test_a_count_that_its_bytes_just_hold_is_taken() -> None:
    batch = batch_of(b'[5,1,"T","",0]')
    assert len(taken(batch)) == 1
    assert batch.error is None


@pytest.mark.parametrize(("begin", "end"), [(3, 3), (5, 3), (100, 100)])
def test_where_there_are_no_bytes_there_are_no_rows(begin: int, end: int) -> None:
    assert Rows(b"abcdef", begin, end, SOURCE, (4, 4), 0, is_frame=True).count == 0
    with pytest.raises(WireError):
        Rows(b"abcdef", begin, end, SOURCE, (4, 5), 1, is_frame=True)


# What the source may not publish.


def test_events_of_types_that_their_source_may_not_publish_are_left_out() -> None:
    rows = [row(seq=seq, type="BAD" if seq % 3 else "TICK") for seq in range(5, 5 + 100)]
    batch = batch_of(*rows)
    batch.rows.permits = lambda type: type == "TICK"
    events = chunks(batch)
    assert [event.seq for chunk in events for event in chunk] == list(range(6, 105, 3))
    assert all(events)  # nobody is given an empty chunk before the end
    assert batch.error is None


def test_a_batch_of_which_a_source_may_publish_nothing_is_empty_however_long_it_is() -> None:
    batch = batch_of(*numbered(5, 40_000))
    batch.rows.permits = lambda type: False
    assert batch.take() == []
    assert (batch.left, batch.error) == (0, None)


# Whatever comes.

PIECES = [b"[", b"]", b"{", b"}", b'"', b",", SEPARATOR, b"\0", b"9" * 30, b"true", b"\xff", b" "]
PIECES += [b"1e999", b"\\ud800", b"[" * 2000, b"[1]", b'{"a":1}', b"%", row(seq=7), b"4", b"6"]


@st.composite
def almost_right(draw: st.DrawFn) -> bytes:
    """Rows in which a few places were cut out, overwritten or have something between them."""
    text = SEPARATOR.join(numbered(5, 4 + draw(st.integers(1, 70))))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.sampled_from([start, start, start + 1, start + 5, start + 100, len(text)]))
        piece = draw(st.just(b"") | st.sampled_from(PIECES) | st.binary(max_size=3))
        text = text[:start] + piece + text[end:]
    return text


@given(
    almost_right() | st.binary() | json_values.map(orjson.dumps),
    st.integers(1, 80),
    st.integers(0, 80),
    st.booleans(),
)
def test_of_whatever_a_peer_sends_events_that_rise_are_handed_over_and_the_rest_is_an_error(
    text: bytes, count: int, span: int, is_frame: bool
) -> None:
    try:
        found = Rows(text, 0, len(text), SOURCE, (4, 4 + span), count, is_frame=is_frame)
    except WireError:
        assert count * MIN_ROW > len(text) or (count == 0 and text)
        return
    batch = LazyBatch(found)
    got = seqs(batch)
    assert got == sorted(set(got))
    assert all(4 < seq <= 4 + span for seq in got)
    assert batch.last == (got[-1] if got else 4)
    if batch.error is None:
        assert len(got) == count
        assert not is_frame or got[-1] == 4 + span
    else:
        assert len(str(batch.error)) < 300


def test_what_is_wrong_takes_time_in_proportion_to_its_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is given to the parser is counted, for time itself differs from run to run."""
    given: list[int] = []

    class Counting:
        @staticmethod
        def loads(text: bytes) -> Any:
            given.append(len(text))
            return orjson.loads(text)

    monkeypatch.setattr(rows, "orjson", Counting)
    good = numbered(5, 1_004)
    for wrong in (b"[", b"null", b"[" * 254 + b"]" * 254):
        given.clear()
        batch = batch_of(*good, wrong, newest=2_000)
        assert len(taken(batch)) == 1_000
        assert sum(given) < 3 * len(batch.rows.text)


SECRET = {"seq": 5, "type": f"T.{MARKER}", "key": MARKER, "data": {MARKER: [MARKER]}}


@pytest.mark.parametrize("field", ["seq", "timestamp", "type", "key", "data", "cause", "more"])
@pytest.mark.parametrize("value", [MARKER * 50, [MARKER], {MARKER: MARKER}, f"aiobus.{MARKER}"])
def test_no_field_of_an_event_is_quoted_when_it_is_wrong(field: str, value: Any) -> None:
    spoilt = row(**SECRET | {"cause": MARKER} | {field: value})
    for text in (spoilt, b"[%b]" % spoilt, spoilt[:-1], spoilt + b"x"):
        batch = batch_of(text, newest=5)
        taken(batch)
        assert MARKER not in str(batch.error)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "NoneType"), (5, "int"), ("abc", "str of length 3"), ([], "list of length 0")],
)
def test_a_shape_is_a_kind_and_a_length(value: object, text: str) -> None:
    assert shape(value) == text


def test_rows_are_held_as_the_message_they_came_in() -> None:
    """Not as a copy, nor parsed."""
    message = b",\n".join(numbered(5, 5_000))
    found = Rows(message, 0, len(message), SOURCE, (4, 5_000), 4_996, is_frame=True)
    assert sys.getsizeof(found) < 200
    assert found.text == message
