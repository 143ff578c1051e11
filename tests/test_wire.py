"""What crosses the wire: it arrives as it was sent, and whatever else arrives is refused."""

import string
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiobus import Event, EventType, wire
from aiobus.codec import decode, encode
from aiobus.pattern import Query
from aiobus.wire import (
    HEARTBEATS,
    MAX_SOURCES,
    Ack,
    Answer,
    Ask,
    Frame,
    Heartbeat,
    Mark,
    PageAnswer,
    PageAsk,
    Refusal,
    Who,
    WireError,
    answer,
    frame,
    glance,
    heartbeat,
    mark,
    page,
    quiet,
    read_down,
    read_topic,
    read_up,
    read_who,
    topic,
    up,
)

ME = Who("me", 1_700_000_000_000_000, "tcp://127.0.0.1:7001")
YOU = Who("you", 0, "ipc:///run/user/1000/aiobus/desk/you.sock")
MARKER = "S3CRET"

times = st.floats(0, 1e12)
numbers = st.integers(0, 2**63 - 1)
NAME_CHARACTERS = string.ascii_letters + string.digits + "._-"
names = st.text(NAME_CHARACTERS, min_size=1, max_size=64)
endpoints = st.text([chr(code) for code in range(33, 127)], min_size=1, max_size=256)
whos = st.builds(Who, names, numbers, endpoints)
queries = st.builds(
    lambda types, keys: Query.of(types, keys).text,
    st.lists(st.sampled_from(["A", "B", "TRADE", "*"]), min_size=1),
    st.none()
    | st.lists(st.from_regex(r"[ab/ %é\n]{0,4}[*]?", fullmatch=True), min_size=1, max_size=3),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
events = st.builds(
    Event,
    st.sampled_from([*EventType, "T", "my.type"]),
    json_values,
    st.floats(0, 1e11),
    key=st.text(max_size=32),
    cause=st.sampled_from(["", "desk@a.1"]),
)


def row_of(event: Event, seq: int) -> bytes:
    return encode(
        seq, event.timestamp, event.type, event.key, event.data, event.cause, limit=1024 * 1024
    )


def all_of(event: Event) -> tuple[Any, ...]:
    """Every field, those that equality leaves out among them."""
    return tuple(getattr(event, field) for field in Event.__dataclass_fields__)


def row(**changed: Any) -> list[Any]:
    """A row that is right, but for what is changed."""
    fields = {"seq": 5, "timestamp": 1.5, "type": "TRADE", "key": "BTC", "data": {"price": 1}}
    return list((fields | changed).values())


def data_frame(
    *rows: Any, version: Any = 1, source: Any = "desk", epoch: Any = 7, prev: Any = 4
) -> bytes:
    return topic("TRADE") + orjson.dumps([version, source, epoch, prev, list(rows)])


def mail(*fields: Any) -> bytes:
    return ME.topic + orjson.dumps(fields)


def nested(depth: int) -> bytes:
    """A list in a list in a list."""
    return b"[" * depth + b"]" * depth


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(WireError) as caught:
        read()
    return str(caught.value)


def said_by(read: Callable[[], object]) -> str:
    """The reason why it was refused; "" when it was not."""
    try:
        read()
    except WireError as error:
        return str(error)
    return ""


# Who is who.


@given(whos)
@settings(max_examples=60, deadline=None)
def test_a_bus_is_read_as_it_was_written(who: Who) -> None:
    assert read_who(who.text) == who
    assert read_topic(who.topic) == who


def test_a_bus_is_written_with_its_epoch_in_base_36_as_in_the_ids_of_its_events() -> None:
    who = Who("desk", 1_700_000_000_000_000, "ipc://x")
    assert Event("T", 1, source="desk", epoch=who.epoch, seq=9).id == f"{who}.9"
    assert who.text == f"{who} ipc://x"
    assert str(Who("desk", 0, "ipc://x")) == "desk@0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "desk",
        "desk@a",
        "desk@a ",
        "desk@ ipc://x",
        "desk@A ipc://x",
        "desk@00 ipc://x",
        "desk@0a ipc://x",
        "desk@-1 ipc://x",
        "desk@+1 ipc://x",
        "desk@1_0 ipc://x",
        "desk@٣ ipc://x",
        "desk@1y2p0ij32e8e8 ipc://x",  # 2**63
        "desk@zzzzzzzzzzzzzz ipc://x",
        "desk@a  ipc://x",
        "desk@a ipc://x ",
        "desk@a ipc://x\n",
        "desk@a ipc://ü",
        "desk@a@b ipc://x",
        f"desk@a {'x' * 257}",
        " desk@a ipc://x",
        "de sk@a ipc://x",
        f"{'x' * 65}@a ipc://x",
        "@a ipc://x",
    ],
)
def test_a_bus_written_in_any_other_way_is_refused(text: str) -> None:
    with pytest.raises(WireError):
        read_who(text)


def test_the_highest_epoch_is_still_an_epoch() -> None:
    assert read_who("desk@1y2p0ij32e8e7 ipc://x").epoch == 2**63 - 1


# Subscriptions.


def long_query() -> str:
    """The text of a query as long as one may be."""
    keys = [f"k{n}".ljust(126, ".") for n in range(7)] + ["k7".ljust(119, ".")]
    return Query.of("T", keys).text


@given(queries)
@settings(max_examples=60, deadline=None)
def test_a_query_is_read_from_its_topic(text: str) -> None:
    query = read_topic(topic(text))
    assert isinstance(query, Query)
    assert query.text == text


def test_a_quiet_topic_asks_for_the_same_query() -> None:
    query = read_topic(quiet(topic("TRADE/BTC")))
    assert isinstance(query, Query)
    assert query.text == "TRADE/BTC"


def test_the_topic_of_heartbeats_is_neither_a_query_nor_a_bus() -> None:
    assert read_topic(HEARTBEATS) is None


def test_a_topic_of_1024_bytes_and_its_zero_byte_is_read() -> None:
    assert len(topic(long_query())) == 1025
    assert isinstance(read_topic(topic(long_query())), Query)


@pytest.mark.parametrize(
    ("subscription", "reason"),
    [
        (b"", "ends with its one zero byte: 0 bytes"),
        (b"\0", "is not 1-64 characters"),
        (b"TRADE", "ends with its one zero byte: 5 bytes"),
        (b"TRADE\0TRADE", "ends with its one zero byte"),
        (b"TRADE\0\0", "ends with its one zero byte"),
        (b"\0TRADE\0", "ends with its one zero byte"),
        (b"A/\xff\0", "can't decode byte 0xff in position 2"),
        (b"A/" + b"x" * 1023 + b"\0", "more than 1024 bytes"),
        (b"x" * 1_000_000 + b"\0", "more than 1024 bytes"),
        (b"aiobus.gap\0", "'aiobus.gap' is reserved"),
        (b"B A\0", "not sorted"),
        (b"A/x B/y\0", "subscribe once for each"),
        (b"--A\0", "does not begin with a letter or digit"),
        (b"-~\0", "is not 1-64 characters"),
        (b"-" + ME.topic, "no subscription"),
        (b"~~\0", "no bus"),
        (b"~desk\0", "no bus"),
        (b"~desk@a\0", "no bus, which is `name@epoch endpoint`: str of length 6"),
        (b"~de/sk@a ipc://x\0", "no name: str of length 5"),
    ],
)
def test_a_subscription_to_anything_else_is_refused_with_the_reason(
    subscription: bytes, reason: str
) -> None:
    assert reason in refusal(lambda: read_topic(subscription))


# Data.


@given(
    batch=st.lists(st.tuples(events, st.integers(1, 1000)), max_size=5),
    query=queries,
    source=names,
    epoch=numbers,
    prev=st.integers(0, 2**40),
)
@settings(max_examples=100, deadline=None)
def test_events_arrive_as_the_codec_would_decode_them(
    batch: list[tuple[Event, int]], query: str, source: str, epoch: int, prev: int
) -> None:
    rows, seq = [], prev
    for event, step in batch:
        seq += step
        rows.append(row_of(event, seq))
    read = read_down(frame(topic(query), source, epoch, prev, rows), ME)
    assert isinstance(read, Frame)
    assert (read.topic, read.source, read.epoch) == (topic(query), source, epoch)
    assert (read.prev, read.newest) == (prev, seq)
    expected = [all_of(event) for event in decode(rows, source, epoch)]
    assert [all_of(event) for event in read] == expected
    assert [all_of(event) for event in read] == expected


def test_a_frame_is_a_topic_and_json_that_any_client_can_read() -> None:
    message = frame(topic("TRADE/BTC"), "desk", 7, 3, [b'[4,1.5,"TRADE","BTC",{}]', b"[5]"])
    assert message == b'TRADE/BTC\0[1,"desk",7,3,[[4,1.5,"TRADE","BTC",{}],[5]]]'


def test_a_usual_type_arrives_as_the_member_it_is() -> None:
    read = read_down(data_frame(row(), row(seq=6, type="mine")), ME)
    assert isinstance(read, Frame)
    assert [event.type for event in read] == [EventType.TRADE, "mine"]
    assert type(next(iter(read)).type) is EventType


def test_a_frame_without_events_is_a_beacon_whose_newest_is_its_prev() -> None:
    read = read_down(frame(topic("TRADE"), "desk", 7, 41, []), ME)
    assert isinstance(read, Frame)
    assert (read.prev, read.newest, list(read)) == (41, 41, [])


@given(queries, names, numbers, st.integers(0, 10**18 - 1), json_values)
def test_a_glance_sees_what_a_reader_sees(
    query: str, name: str, epoch: int, prev: int, data: Any
) -> None:
    message = frame(topic(query), name, epoch, prev, [orjson.dumps(row(seq=prev + 1, data=data))])
    read = read_down(message, ME)
    assert isinstance(read, Frame)
    for _ in range(2):  # the head is remembered
        assert glance(message) == (read.topic, read.source, read.epoch, read.prev)


@pytest.mark.parametrize(
    "message",
    [
        frame(topic("T"), "bot", 7, 4, []),
        frame(topic("T"), "bot", 7, 10**18, [orjson.dumps(row())]),
        heartbeat("bot", 7, 4),
        b'T\0[1,"bot",7,-4,[[5,0,"T","",1]]]',
        b'T\0[1,"bot",7,4.5,[[5,0,"T","",1]]]',
        b'T\0[1,"bot",7, 4,[[5,0,"T","",1]]]',
        b'T\0[2,"bot",7,4,[[5,0,"T","",1]]]',
        b'T\0[1,7,7,4,[[5,0,"T","",1]]]',
        b'T\0[1,"bot",{},4,[[5,0,"T","",1]]]',
        b'T\0[1,"bot","7",4,[[5,0,"T","",1]]]',
        b'T\0[1,"bot",7.5,4,[[5,0,"T","",1]]]',
        b'T\0[1,"bot",true,4,[[5,0,"T","",1]]]',
        b'T\0[1,"bot",null,4,[[5,0,"T","",1]]]',
        b'T\0[1,"bot",7,04,[[5,0,"T","",1]]]',
        b'\0[1,"bot",7,4,[[5,0,"T","",1]]]',
        b'[1,"bot",7,4,[[5,0,"T","",1]]]',
        b'T\0[1,"bot",7,4,4,[[5,0,"T","",1]]]',
        b'T\0[1,"bot,7,4,[[5,0,"T","",1]]]',
        b'T\0[1,"%b",7,4,[[5,0,"T","",1]]]' % (b"x" * 200),
        frame(quiet(topic("T")), "bot", 7, 4, [orjson.dumps(row())]),
        b"~bot" + frame(topic("T"), "bot", 7, 4, [orjson.dumps(row())]),
        b"T" * 2_000 + frame(topic("T"), "bot", 7, 4, [orjson.dumps(row())]),
        b"T",
        b"",
    ],
)
def test_a_glance_leaves_to_a_reader_what_is_no_usual_frame_with_events(message: bytes) -> None:
    assert glance(message) is None


def test_two_readers_of_one_frame_that_take_turns_get_the_same_and_share_nothing() -> None:
    read = read_down(data_frame(*(row(seq=seq, data=[seq]) for seq in range(5, 9))), ME)
    assert isinstance(read, Frame)
    for _ in range(2):
        for one, other in zip(read, read, strict=True):
            assert one == other
            assert one.data is not other.data
        read.forget()


def test_what_one_reader_does_to_its_events_the_next_does_not_see() -> None:
    read = read_down(data_frame(row(data={"legs": [1]}), row(seq=6)), ME)
    assert isinstance(read, Frame)
    for _ in range(3):
        taken = list(read)
        assert [(event.seq, event.data) for event in taken] == [
            (5, {"legs": [1]}),
            (6, {"price": 1}),
        ]
        taken[0].data["legs"].append(2)
        taken[0].seq = 0
        del taken[1]


@pytest.mark.parametrize(
    "changed",
    [
        {"seq": 2**63 - 1},
        {"timestamp": 0},
        {"timestamp": -1.5},
        {"timestamp": 1_700_000_000_000},
        {"timestamp": 1e300},
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
    read = read_down(data_frame(row(**changed)), ME)
    assert isinstance(read, Frame)
    (event,) = read
    assert {name: getattr(event, name) for name in changed} == changed


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"seq": 4}, "seq"),
        ({"seq": 0}, "seq"),
        ({"seq": -1}, "seq"),
        ({"seq": 2**63}, "seq"),
        ({"seq": 5.0}, "seq"),
        ({"seq": True}, "seq"),
        ({"seq": "5"}, "seq"),
        ({"seq": None}, "seq"),
        ({"seq": [5]}, "seq"),
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
        (
            {"cause": "c" * 257},
            "a key or cause that is too long: str of length 3, str of length 257",
        ),
        ({"cause": "", "more": 1}, "no event: list of length 7"),
    ],
)
def test_an_event_that_no_bus_sends_is_refused_with_its_place(
    changed: dict[str, Any], reason: str
) -> None:
    first = refusal(lambda: read_down(data_frame(row(**changed)), ME))
    assert first.startswith("row 0: ")
    assert reason in first
    second = refusal(lambda: read_down(data_frame(row(), row(**({"seq": 6} | changed))), ME))
    assert second == first.replace("row 0", "row 1")


@pytest.mark.parametrize("bad", [None, 5, "row", {}, [], [5], [5, 1.5, "TRADE", "BTC"], [[5]]])
def test_a_row_that_is_no_event_is_refused(bad: Any) -> None:
    assert "row 1: no event" in refusal(lambda: read_down(data_frame(row(), bad), ME))


@pytest.mark.parametrize("seqs", [[5, 5], [6, 5], [5, 6, 6], [3], [4]])
def test_numbers_that_do_not_rise_from_above_prev_are_refused(seqs: list[int]) -> None:
    message = data_frame(*[row(seq=seq) for seq in seqs])
    assert "a seq that is not above the one before" in refusal(lambda: read_down(message, ME))


@pytest.mark.parametrize("number", ["1e400", "NaN", "Infinity", "-1e999"])
def test_a_timestamp_that_is_not_finite_is_refused(number: str) -> None:
    message = b'TRADE\0[1,"desk",7,4,[[5,%b,"TRADE","BTC",1]]]' % number.encode()
    assert "not JSON" in refusal(lambda: read_down(message, ME))


@pytest.mark.parametrize(
    "changed",
    [
        {"source": ""},
        {"source": "a/b"},
        {"source": None},
        {"source": ["desk"]},
        {"epoch": -1},
        {"epoch": 2**63},
        {"epoch": 7.0},
        {"epoch": True},
        {"prev": -1},
        {"prev": 2**63},
        {"prev": 4.0},
        {"prev": False},
        {"version": True},
        {"version": 1.0},
        {"version": "1"},
        {"version": None},
    ],
)
def test_a_frame_whose_head_is_wrong_is_refused(changed: dict[str, Any]) -> None:
    assert isinstance(read_down(data_frame(row()), ME), Frame)  # its source is known from now on
    refusal(lambda: read_down(data_frame(row(), **changed), ME))


def test_frames_of_ever_new_sources_leave_nothing_behind() -> None:
    for epoch in range(3 * MAX_SOURCES):
        read_down(data_frame(row(), epoch=epoch), ME)
    assert len(wire._sources) <= MAX_SOURCES


@pytest.mark.parametrize(
    "json",
    [
        b"",
        b"[",
        b"null",
        b"1",
        b'"x"',
        b"{}",
        b"[]",
        b"[1]",
        b'[1,"desk",7,4]',
        b'[1,"desk",7,4,{}]',
        b'[1,"desk",7,4,[],0]',
        b'[1,"desk",7,4,[]]x',
        b'[1,"desk",7,4,[]]\0',
        b'[1,"d\xffsk",7,4,[]]',
        b'[1,"desk",7,4,["\\ud800"]]',
    ],
)
def test_a_frame_that_is_no_list_of_five_is_refused(json: bytes) -> None:
    refusal(lambda: read_down(topic("TRADE") + json, ME))


@pytest.mark.parametrize("text", ["TRADE", "*", "T/" + "x" * 128, long_query()])
def test_a_quiet_beacon_is_read_as_one_of_its_topic(text: str) -> None:
    read = read_down(frame(quiet(topic(text)), "desk", 7, 41, []), ME)
    assert isinstance(read, Frame)
    assert (read.topic, read.prev, read.newest, read.count) == (topic(text), 41, 41, 0)


@pytest.mark.parametrize("parts", [[], ["desk", 7, 4, []], [{"of": "another shape"}]])
def test_a_frame_of_a_later_version_is_refused_as_such(parts: list[Any]) -> None:
    message = topic("TRADE") + orjson.dumps([2, *parts])
    assert refusal(lambda: read_down(message, ME)) == "a frame of version 2, this is 1"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0",
        b"[]",
        b"TRADE",
        b"\0[]",
        b"A" * 1025 + b"\0[]",
        b"-" + b"A" * 1025 + b"\0",
        b"A" * 1_000_000,
    ],
)
def test_a_message_without_a_topic_is_refused(message: bytes) -> None:
    assert "do not begin with a topic" in refusal(lambda: read_down(message, ME))


# Depth.


def deep_frame(data: bytes, others: int = 0, other: object = 1) -> bytes:
    rows = [orjson.dumps(row(seq=seq, data=other)) for seq in range(1, others + 1)]
    return frame(topic("T"), "desk", 7, 0, [*rows, b'[%d,1.5,"T","",%b]' % (others + 1, data)])


@pytest.mark.parametrize("others", [0, 1, 500])
@pytest.mark.parametrize("other", [1, {"price": 1.5}, [1], {"bids": [[1, 2]]}])
def test_data_nested_253_deep_arrives_and_deeper_data_is_refused(
    others: int, other: object
) -> None:
    for deepest in (nested(253), b'{"a":' * 253 + b"1" + b"}" * 253):
        read = read_down(deep_frame(deepest, others, other), ME)
        assert isinstance(read, Frame)
        assert orjson.dumps(list(read)[-1].data) == deepest
    for deeper in (nested(254), b'{"a":' * 254 + b"1" + b"}" * 254):
        said = refusal(lambda deeper=deeper: read_down(deep_frame(deeper, others, other), ME))
        assert said == "data nested more than 253 deep"


def test_the_codec_sends_just_as_deep_as_is_read() -> None:
    data = orjson.loads(nested(253))
    assert isinstance(
        read_down(frame(topic("T"), "d", 7, 0, [row_of(Event("T", data), 1)]), ME), Frame
    )


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":' * 254 + b"1" + b"}" * 254,
        b'[{"a":' * 127 + b"1" + b"}]" * 127,
        b"[1,2," * 254 + b"1" + b",3]" * 254,
        b'["]",' * 254 + b"1" + b',"["]' * 254,
        nested(1000),
    ],
)
def test_depth_is_found_in_whatever_shape_it_comes(data: bytes) -> None:
    assert refusal(lambda: read_down(deep_frame(data), ME)) == "data nested more than 253 deep"


@pytest.mark.parametrize("depth", [300, 1000, 1024, 1025, 100_000])
@pytest.mark.parametrize(
    "message",
    [
        b"T\0%b",
        b"T\0[1,%b,7,0,[]]",
        b'T\0[1,"d",7,0,%b]',
        b'T\0[1,"d",7,0,[[1,%b,"T","",1]]]',
        b'T\0[1,"d",7,0,[[1,1.5,"T",%b,1]]]',
        ME.topic + b"%b",
        ME.topic + b'["=",1,%b,[]]',
        ME.topic + b'["=",1,"you@0 x",%b]',
        HEARTBEATS + b"[%b,1,1]",
    ],
)
def test_depth_where_no_depth_belongs_is_refused_like_any_other_mistake(
    message: bytes, depth: int
) -> None:
    refusal(lambda: read_down(message % nested(depth), ME))
    refusal(lambda: read_up(message.partition(b"\0")[2] % nested(depth)))


def test_many_brackets_that_are_not_deep_arrive() -> None:
    books = [
        row(seq=seq, data={"bids": [[1.5, 2]] * 60, "note": "[" * 200}) for seq in range(1, 65)
    ]
    read = read_down(data_frame(*books, prev=0), ME)
    assert isinstance(read, Frame)
    assert read.newest == 64


# Heartbeats.


@given(names, numbers, numbers, st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_heartbeat_is_read_as_it_was_sent(name: str, epoch: int, seq: int, leaving: bool) -> None:
    message = heartbeat(name, epoch, seq, leaving=leaving)
    assert message.startswith(HEARTBEATS)
    assert read_down(message, ME) == Heartbeat(name, epoch, seq, leaving)


@pytest.mark.parametrize(
    "fields",
    [
        None,
        {},
        [],
        ["desk", 7],
        ["desk", 7, 1, "by"],
        ["desk", 7, 1, True],
        ["desk", 7, 1, "bye", 0],
        ["de sk", 7, 1],
        [7, 7, 1],
        ["desk", -1, 1],
        ["desk", True, 1],
        ["desk", 7, 1.0],
        ["desk", 7, 2**63],
        ["desk", 7, "1"],
    ],
)
def test_any_other_heartbeat_is_refused(fields: Any) -> None:
    refusal(lambda: read_down(HEARTBEATS + orjson.dumps(fields), ME))


# Answers.


@given(st.builds(Answer, numbers, whos, st.floats(0, 1e300), numbers, st.booleans()), whos)
@settings(max_examples=60, deadline=None)
def test_an_answer_is_read_as_it_was_sent(value: Answer, to: Who) -> None:
    assert read_down(answer(to, value), to) == value


refusals = st.builds(
    Refusal, numbers, whos, st.floats(0, 1e300), numbers, st.booleans(), st.booleans(),
    st.dictionaries(queries, st.text(max_size=20), max_size=3),
)  # fmt: skip


@given(refusals, whos)
@settings(max_examples=60, deadline=None)
def test_a_refusal_is_read_as_it_was_sent(value: Refusal, to: Who) -> None:
    assert read_down(answer(to, value), to) == value


def test_a_refusal_tells_of_each_query_why_it_is_not_live() -> None:
    named = {"T/a": "full"}
    complete, partial = (Refusal(1, YOU, 3.0, 4, True, is_all, named) for is_all in (True, False))
    assert [complete.refusal(query) for query in ("T/a", "T/b")] == ["full", None]
    assert [partial.refusal(query) for query in ("T/a", "T/b")] == ["full", wire.MORE_REFUSED]
    assert Answer(1, YOU, 3.0, 4, True).refusal("T/a") is None


@pytest.mark.parametrize(
    "fields",
    [
        [True],
        [True, None],
        [1, []],
        [True, ["T"]],
        [True, [["T"]]],
        [True, [["T", 1]]],
        [True, [[1, "full"]]],
        [True, [["T" * 1_025, "full"]]],
        [True, {"T": "full"}],
        [True, [], 0],
    ],
)
def test_any_other_refusal_is_refused(fields: list[Any]) -> None:
    refusal(lambda: read_down(mail("-", 1, YOU.text, 3, 4, True, *fields), ME))


def test_an_age_in_whole_seconds_is_an_age() -> None:
    read = read_down(mail("?", 1, YOU.text, 3, 4, True), ME)
    assert read == Answer(1, YOU, 3.0, 4, True)


@given(
    st.builds(Mark, numbers, whos, st.lists(st.tuples(queries, numbers), max_size=3).map(tuple)),
    whos,
)
@settings(max_examples=60, deadline=None)
def test_a_mark_is_read_as_it_was_sent(value: Mark, to: Who) -> None:
    assert read_down(mark(to, value), to) == value


@given(
    st.lists(events, max_size=5),
    numbers,
    names,
    numbers,
    st.lists(st.integers(0, 2**40), min_size=4, max_size=4).map(sorted),
    st.none() | times,
)
@settings(max_examples=60, deadline=None)
def test_a_page_is_read_as_it_was_sent(
    batch: list[Event],
    nonce: int,
    source: str,
    epoch: int,
    bounds: list[int],
    reached: float | None,
) -> None:
    evicted, after, to, newest = bounds
    to, newest = to + len(batch), newest + len(batch)
    rows = [row_of(event, after + place) for place, event in enumerate(batch, 1)]
    where = (after, evicted, to, newest, reached)
    read = read_down(page(ME, nonce, source, epoch, *where, rows), ME)
    assert isinstance(read, PageAnswer)
    assert (read.nonce, read.source, read.epoch) == (nonce, source, epoch)
    assert (read.after, read.evicted, read.to, read.newest, read.reached) == where
    expected = [all_of(event) for event in decode(rows, source, epoch)]
    assert [all_of(event) for event in read.rows] == expected


def page_fields(**changed: Any) -> list[Any]:
    fields = {"kind": "!", "nonce": 1, "source": "desk", "epoch": 7, "after": 4, "evicted": 0}
    fields |= {"to": 6, "newest": 9, "reached": None, "rows": [row()]}
    return list((fields | changed).values())


@pytest.mark.parametrize(
    "changed",
    [
        {"nonce": -1},
        {"source": "a b"},
        {"epoch": 2**63},
        {"after": 7},
        {"after": -1},
        {"evicted": 10},
        {"evicted": None},
        {"to": 10},
        {"to": 3},
        {"to": 4},
        {"newest": 5},
        {"newest": 9.0},
        {"reached": "last"},
        {"reached": True},
        {"rows": {}},
        {"rows": [row(), row()]},
        {"rows": [row(seq=4)]},
        {"rows": [row(seq=7)]},
        {"rows": [row(type="aiobus.gap")]},
        {"rows": [row(data=orjson.Fragment(nested(254)))]},
        {"more": 1},
    ],
)
def test_a_page_that_contradicts_itself_is_refused(changed: dict[str, Any]) -> None:
    assert isinstance(read_down(mail(*page_fields()), ME), PageAnswer)
    refusal(lambda: read_down(mail(*page_fields(**changed)), ME))


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["x"],
        ["?"],
        [["?"], 1, YOU.text, 1.5, 2, True],
        ["?", 1, YOU.text, 1.5, 2],
        ["?", 1, YOU.text, 1.5, 2, 1],
        ["?", 1, YOU.text, 1.5, 2, None],
        ["?", 1, YOU.text, -0.5, 2, True],
        ["?", 1, YOU.text, True, 2, True],
        ["?", 1, YOU.text, "1", 2, True],
        ["?", 1, YOU.text, 1.5, -2, True],
        ["?", True, YOU.text, 1.5, 2, True],
        ["?", 1, str(YOU), 1.5, 2, True],
        ["?", 1, None, 1.5, 2, True],
        ["?", 1, YOU.text, 1.5, 2, True, 0],
        ["=", 1, YOU.text],
        ["=", 1, YOU.text, {}],
        ["=", 1, YOU.text, [1]],
        ["=", 1, YOU.text, ["T1"]],
        ["=", 1, YOU.text, [["T"]]],
        ["=", 1, YOU.text, [["T", 1, 1]]],
        ["=", 1, YOU.text, [["T", -1]]],
        ["=", 1, YOU.text, [[1, 1]]],
        ["=", 1, YOU.text, [["T" * 1025, 1]]],
        ["=", 1.0, YOU.text, []],
        ["=", 1, [YOU.text], []],
    ],
)
def test_any_other_mail_is_refused(fields: list[Any]) -> None:
    refusal(lambda: read_down(mail(*fields), ME))


@pytest.mark.parametrize(
    "to",
    [YOU, Who(ME.name, ME.epoch + 1, ME.endpoint), Who(ME.name, ME.epoch, ME.endpoint + "0")],
)
def test_mail_for_another_bus_or_another_start_of_this_one_is_refused(to: Who) -> None:
    message = answer(to, Answer(1, YOU, 1.5, 2, True))
    assert refusal(lambda: read_down(message, ME)) == "mail for another bus"


# Questions.

sinces = st.none() | st.just("last") | times
limits = st.integers(1, 1_000_000)
questions = (
    st.builds(Ask, names | st.just("*"), numbers, whos)
    | st.builds(PageAsk, names, numbers, whos, numbers, queries, numbers, limits, sinces, numbers)
    | st.builds(Ack, names, numbers, whos)
)


@given(questions)
@settings(max_examples=120, deadline=None)
def test_a_question_is_read_as_it_was_sent(question: Ask | PageAsk | Ack) -> None:
    assert read_up(up(question)) == question


@given(questions)
@settings(max_examples=60, deadline=None)
def test_no_question_can_be_taken_for_a_subscription(question: Ask | PageAsk | Ack) -> None:
    assert up(question)[0] not in (0, 1)


@pytest.mark.parametrize("query", ["", "B A", "no query at all", "T" * 1024, "é" * 512])
def test_the_query_of_a_page_is_left_for_the_publisher_to_judge(query: str) -> None:
    question = PageAsk("desk", 1, ME, 7, query, 4, 10, None, 0)
    assert read_up(up(question)) == question


@pytest.mark.parametrize(
    "fields",
    [
        None,
        5,
        "?",
        {},
        [],
        ["x", "desk", 1, ME.text],
        ["?", "desk", 1],
        ["?", "desk", 1, ME.text, 0],
        ["?", "", 1, ME.text],
        ["?", "**", 1, ME.text],
        ["?", None, 1, ME.text],
        ["?", ["*"], 1, ME.text],
        ["?", "desk", -1, ME.text],
        ["?", "desk", 2**63, ME.text],
        ["?", "desk", 1.0, ME.text],
        ["?", "desk", True, ME.text],
        ["?", "desk", "1", ME.text],
        ["?", "desk", 1, "me"],
        ["?", "desk", 1, None],
        ["=", "*", 1, ME.text],
        ["=", "desk", None, ME.text],
        ["=", "desk", 1, {}],
        ["!", "desk", 1, ME.text],
        ["!", "*", 1, ME.text, 7, "T", 4, 10, None, 0],
        ["!", "desk", 1, ME.text, 7, "T", 4, 0, None, 0],
        ["!", "desk", 1, ME.text, 7, "T", 4, 1_000_001, None, 0],
        ["!", "desk", 1, ME.text, 7, "T", 4, True, None, 0],
        ["!", "desk", 1, ME.text, 7, "T", -1, 10, None, 0],
        ["!", "desk", 1, ME.text, 7, "T", None, 10, None, 0],
        ["!", "desk", 1, ME.text, -7, "T", 4, 10, None, 0],
        ["!", "desk", 1, ME.text, 7, None, 4, 10, None, 0],
        ["!", "desk", 1, ME.text, 7, "T" * 1025, 4, 10, None, 0],
        ["!", "desk", 1, ME.text, 7, "é" * 513, 4, 10, None, 0],
        ["!", "desk", 1, ME.text, 7, ["T"], 4, 10, None, 0],
        ["!", "desk", 1, ME.text, 7, "T", 4, 10],
        ["!", "desk", 1, ME.text, 7, "T", 4, 10, None, 0, 0],
    ],
)
def test_any_other_question_is_refused(fields: Any) -> None:
    refusal(lambda: read_up(orjson.dumps(fields)))


@pytest.mark.parametrize("message", [b"", b"\0", b"\1TRADE\0", b"[", b"\xff", b'["?"', b"[]]"])
def test_a_question_that_is_no_json_is_refused(message: bytes) -> None:
    assert "not JSON" in refusal(lambda: read_up(message))


# Whatever comes.

VALID = [
    topic("TRADE/BTC"),
    quiet(topic("TRADE/BTC")),
    frame(quiet(topic("TRADE")), "desk", 7, 4, []),
    ME.topic,
    HEARTBEATS,
    frame(
        topic("TRADE"), "desk", 7, 4, [orjson.dumps(row(cause="desk@7.1")), b'[6,1,"T","",[{}]]']
    ),
    heartbeat("desk", 7, 5, leaving=True),
    answer(ME, Answer(1, YOU, 1.5, 2, True)),
    page(ME, 1, "desk", 7, 4, 0, 6, 9, None, [orjson.dumps(row())]),
    mark(ME, Mark(1, YOU, (("TRADE/BTC", 5), ("*", 6)))),
    up(Ask("*", 1, ME)),
    up(PageAsk("desk", 1, ME, 7, "TRADE/BTC", 4, 10, "last", 0)),
    up(Ack("desk", 1, ME)),
]
PIECES = [
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b",",
    b"\0",
    b"~",
    b"-",
    b"9" * 30,
    b"true",
    b"null",
    b"\xff",
]
PIECES += [b"1e999", b"\\ud800", b"[" * 2000, b"[1]", b'{"a":1}', b" ", b"%", b"0.5"]


@st.composite
def almost_valid(draw: st.DrawFn, messages: list[bytes]) -> bytes:
    """A message in which a few places were cut out, overwritten or have something between them."""
    message = draw(st.sampled_from(messages))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(message)))
        end = draw(st.sampled_from([start, start, start + 1, start + 5, len(message)]))
        piece = draw(st.just(b"") | st.sampled_from(PIECES) | st.binary(max_size=3))
        message = message[:start] + piece + message[end:]
    return message


def read_down_and_use(message: bytes) -> None:
    read = read_down(message, ME)
    if isinstance(read, Frame):
        first, second = list(read), list(read)
        assert first == second
        assert read.newest == (first[-1].seq if first else read.prev)


@given(st.binary() | almost_valid(VALID) | json_values.map(orjson.dumps))
@settings(max_examples=1000, deadline=None)
def test_whatever_a_peer_sends_is_read_or_a_wire_error(message: bytes) -> None:
    for sent in (message, topic("T") + message, HEARTBEATS + message, ME.topic + message):
        hash(glance(sent))
        for read in (read_up, read_topic, read_down_and_use):
            assert len(said_by(lambda read=read, sent=sent: read(sent))) < 300


SECRET = {"type": f"T.{MARKER}", "key": MARKER, "data": {MARKER: [MARKER]}, "cause": MARKER}


@pytest.mark.parametrize("field", ["seq", "timestamp", "type", "key", "data", "cause", "more"])
@pytest.mark.parametrize("value", [MARKER * 50, [MARKER], {MARKER: MARKER}, f"aiobus.{MARKER}"])
def test_no_field_of_an_event_is_quoted_when_it_is_refused(field: str, value: Any) -> None:
    spoilt = row(**SECRET | {field: value})
    for message in (data_frame(spoilt), data_frame([spoilt]), mail(*page_fields(rows=[spoilt]))):
        assert MARKER not in said_by(lambda sent=message: read_down(sent, ME))
        assert MARKER not in said_by(lambda sent=message: read_up(sent.partition(b"\0")[2]))


@given(almost_valid([data_frame(row(**SECRET)), mail(*page_fields(rows=[row(**SECRET)]))]))
@settings(max_examples=300, deadline=None)
def test_nothing_that_was_published_is_quoted_whatever_is_wrong_with_the_message(
    message: bytes,
) -> None:
    assert MARKER not in said_by(lambda: read_down(message, ME))
    assert MARKER not in said_by(lambda: read_up(message))
    assert MARKER not in said_by(lambda: read_up(message.partition(b"\0")[2]))


def test_a_refused_subscription_is_quoted_in_part_as_nothing_else_tells_whose_it_is() -> None:
    said = refusal(lambda: read_topic(b"trade,%b\0" % (b"Z" * 900)))
    assert "'trade,ZZ" in said
    assert said.count("Z") <= 80
