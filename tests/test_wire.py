"""What crosses the wire: it arrives as it was sent, and whatever else arrives is refused."""

import string
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from values import all_of, events, json_values, row_of

from aiobus import Event, wire
from aiobus.codec import decode
from aiobus.query import Query
from aiobus.rows import LazyBatch, Rows
from aiobus.wire import (
    HEARTBEATS,
    MAX_BEGINS,
    MAX_SOURCES,
    Ack,
    Answer,
    Ask,
    Frame,
    Heartbeat,
    Mark,
    Options,
    OtherVersion,
    PacedMark,
    PageAnswer,
    PageAsk,
    PeerId,
    Refusal,
    WireError,
    frame,
    heartbeat,
    mail,
    page,
    parse_from_publisher,
    parse_from_subscriber,
    parse_peer_id,
    parse_topic,
    progress_topic,
    topic,
    up,
)

ME = PeerId("me", 1_700_000_000_000_000, "tcp://127.0.0.1:7001")
YOU = PeerId("you", 0, "ipc:///run/user/1000/aiobus/desk/you.sock")
MARKER = "S3CRET"

times = st.floats(0, 1e12)
numbers = st.integers(0, 2**63 - 1)
NAME_CHARACTERS = string.ascii_letters + string.digits + "._-"
names = st.text(NAME_CHARACTERS, min_size=1, max_size=64)
endpoints = st.text([chr(code) for code in range(33, 127)], min_size=1, max_size=256)
whos = st.builds(PeerId, names, numbers, endpoints)
queries = st.builds(
    lambda types, keys: Query.of(types, keys).text,
    st.lists(st.sampled_from(["A", "B", "TRADE", "*"]), min_size=1),
    st.none()
    | st.lists(st.from_regex(r"[ab/ %é\n]{0,4}[*]?", fullmatch=True), min_size=1, max_size=3),
)


def row(**changed: Any) -> list[Any]:
    """A row that is right, but for what is changed."""
    fields = {"seq": 5, "timestamp": 1.5, "type": "TRADE", "key": "BTC", "data": {"price": 1}}
    return list((fields | changed).values())


def data_frame(
    *rows: Any,
    version: Any = 2,
    source: Any = "desk",
    epoch: Any = 7,
    prev: Any = 4,
    **more: Any,
) -> bytes:
    """A frame of these rows: a lone one unless `newest` or `count` are given."""
    head = [version, source, epoch, prev]
    if len(rows) != 1 or more:
        head += [more.get("newest", rows[-1][0] if rows else 5), more.get("count", len(rows))]
    texts = b",\n".join(map(orjson.dumps, rows))
    texts = texts if len(head) == 4 else b"[%b]" % texts
    return topic("TRADE") + orjson.dumps(head)[:-1] + b"\n," + texts + b"]"


def page_message(**changed: Any) -> bytes:
    """A page with one row, which is right but for what is changed."""
    fields = {"kind": "!", "nonce": 1, "source": "desk", "epoch": 7, "start": 0}
    fields |= {"after": 4, "evicted": 0, "to": 6, "newest": 9, "reached": None, "count": 1}
    rows = changed.pop("rows", [row()])
    head = orjson.dumps(list((fields | changed).values()))
    return ME.topic + head[:-1] + b"\n,[" + b",\n".join(map(orjson.dumps, rows)) + b"]]"


def taken(rows: Rows) -> list[Event]:
    """All its events, of which none is wrong."""
    batch, events = LazyBatch(rows), []
    while batch.left:
        events += batch.take()
    assert batch.error is None
    return events


def read_frame(message: bytes) -> Frame:
    read = parse_from_publisher(message, ME)
    assert isinstance(read, Frame)
    return read


def letter(*fields: Any) -> bytes:
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
def test_a_bus_is_read_as_it_was_written(who: PeerId) -> None:
    assert parse_peer_id(who.text) == who
    assert parse_topic(who.topic) == who


def test_a_bus_is_written_with_its_epoch_in_base_36_as_in_the_ids_of_its_events() -> None:
    who = PeerId("desk", 1_700_000_000_000_000, "ipc://x")
    assert Event("T", 1, source="desk", epoch=who.epoch, seq=9).id == f"{who}.9"
    assert who.text == f"{who} ipc://x"
    assert str(PeerId("desk", 0, "ipc://x")) == "desk@0"


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
        parse_peer_id(text)


def test_the_highest_epoch_is_still_an_epoch() -> None:
    assert parse_peer_id("desk@1y2p0ij32e8e7 ipc://x").epoch == 2**63 - 1


# Subscriptions.


def long_query() -> str:
    """The text of a query as long as one may be."""
    keys = [f"k{n}".ljust(126, ".") for n in range(7)] + ["k7".ljust(119, ".")]
    return Query.of("T", keys).text


@given(queries)
def test_a_query_is_read_from_its_topic(text: str) -> None:
    query = parse_topic(topic(text))
    assert isinstance(query, Query)
    assert query.text == text


def test_a_progress_topic_asks_for_the_same_query() -> None:
    query = parse_topic(progress_topic(topic("TRADE/BTC")))
    assert isinstance(query, Query)
    assert query.text == "TRADE/BTC"


def test_the_topic_of_heartbeats_is_neither_a_query_nor_a_bus() -> None:
    assert parse_topic(HEARTBEATS) is None


def test_a_topic_of_1024_bytes_and_its_zero_byte_is_read() -> None:
    assert len(topic(long_query())) == 1025
    assert isinstance(parse_topic(topic(long_query())), Query)


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
    assert reason in refusal(lambda: parse_topic(subscription))


# Data.


def test_a_frame_is_a_topic_and_json_that_any_client_can_read() -> None:
    rows = [b'[4,1.5,"TRADE","BTC",{}]', b'[7,1.5,"TRADE","BTC",1]']
    head = b'TRADE/BTC\0[2,"desk",7,3'
    beacon, lone, several = (
        frame(topic("TRADE/BTC"), "desk", 7, 3, newest, rows[:count])
        for count, newest in enumerate((3, 4, 7))
    )
    assert beacon == head + b"]"
    assert lone == head + b'\n,[4,1.5,"TRADE","BTC",{}]]'
    assert several == head + b',7,2\n,[[4,1.5,"TRADE","BTC",{}],\n[7,1.5,"TRADE","BTC",1]]]'
    for message in (beacon, lone, several):
        assert orjson.loads(message.partition(b"\0")[2])[:4] == [2, "desk", 7, 3]


def test_a_frame_without_events_is_a_beacon_whose_newest_is_its_prev() -> None:
    read = read_frame(frame(topic("TRADE"), "desk", 7, 41, 41, []))
    assert (read.prev, read.newest, read.count, taken(read)) == (41, 41, 0, [])


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_frame_says_of_itself_is_known_though_its_rows_are_no_events(count: int) -> None:
    rows = [b"[5,no event at all]", b"neither is that.........."][:count]
    read = read_frame(frame(topic("TRADE"), "desk", 7, 4, 4 + count, rows))
    assert (read.prev, read.newest, read.count) == (4, 4 + count, count)
    batch = LazyBatch(read)
    assert (batch.take(), batch.left) == ([], 0)
    assert isinstance(batch.error, WireError)


def test_a_lone_event_may_be_sent_as_one_of_several() -> None:
    read = read_frame(data_frame(row(), count=1))
    assert [event.seq for event in taken(read)] == [5]


@pytest.mark.parametrize(
    "changed",
    [
        {"source": ""},
        {"source": "a/b"},
        {"source": None},
        {"source": ["desk"]},
        {"source": {}},
        {"epoch": -1},
        {"epoch": 2**63},
        {"epoch": 7.0},
        {"epoch": True},
        {"epoch": [7]},
        {"prev": -1},
        {"prev": 2**63},
        {"prev": 4.0},
        {"prev": False},
        {"version": True},
        {"version": 2.0},
        {"version": "2"},
        {"version": None},
        {"newest": 4},
        {"newest": 3},
        {"newest": -1},
        {"newest": 5},
        {"newest": 2**63},
        {"newest": 6.0},
        {"newest": True},
        {"newest": None},
        {"newest": "6"},
        {"newest": [6]},
        {"count": 0},
        {"count": 3},
        {"count": -1},
        {"count": 2**63},
        {"count": 2.0},
        {"count": True},
        {"count": None},
        {"count": "2"},
        {"count": 1_000, "newest": 2_000},
    ],
)
def test_a_frame_whose_head_is_wrong_is_refused(changed: dict[str, Any]) -> None:
    rows = row(), row(seq=6)
    read_frame(data_frame(*rows))  # its source is known from now on
    refusal(lambda: parse_from_publisher(data_frame(*rows, **changed), ME))
    if not {"newest", "count"} & changed.keys():
        refusal(lambda: parse_from_publisher(data_frame(row(), **changed), ME))


@pytest.mark.parametrize("seq", [4, 0, -1, 2**63, 5.0, 1e19, True, "5", None, [5], {}])
def test_a_lone_row_that_does_not_begin_with_a_seq_above_prev_is_refused(seq: Any) -> None:
    refusal(lambda: parse_from_publisher(data_frame(row(seq=seq)), ME))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[",
        b"[5",
        b"[5]",
        b"[,1,1,1,1,1,1,1,1]",
        b"[ 5,1.5,1,1,1,1,1]",
        b"5,1.5,1,1,1,1,1,1]",
        b"{5,1.5,1,1,1,1,1,1}",
        b"[" + b"9" * 19 + b',1.5,"T","",1]',
        b"[" + b"9" * 400 + b',1.5,"T","",1]',
        b"[" + b"9" * 400,
        b"[" + b"9" * 5_000,
        b"[" + b"9" * 500_000,
        "[\uff15".encode() + b',1.5,"TRADE","",1]',
        b'[5_0,1.5,"TRADE","",1]',
        b'[+5,1.5,"TRADE","",1]',
    ],
)
def test_a_lone_row_that_begins_with_no_number_is_refused(text: bytes) -> None:
    refusal(lambda: parse_from_publisher(b'TRADE\0[2,"desk",7,4\n,%b]' % text, ME))


def test_frames_of_ever_new_sources_leave_nothing_behind() -> None:
    for epoch in range(3 * MAX_SOURCES):
        parse_from_publisher(data_frame(row(), epoch=epoch), ME)
    assert len(wire._sources) <= MAX_SOURCES


def test_frames_of_one_source_share_its_name() -> None:
    one, other = (read_frame(data_frame(row(seq=seq))) for seq in (5, 6))
    assert one.source is other.source


@pytest.mark.parametrize(
    "json",
    [
        b"",
        b"\n",
        b"[",
        b"null",
        b"true",
        b"1",
        b"1.5",
        b'"x"',
        b'"abcd"',
        b"{}",
        b'{"a":1}',
        b"[]",
        b"[[]]",
        b"[2]",
        b'[2,"desk",7]',
        b'[2,"desk",7,4,{}]',
        b'[2,"desk",7,4,4]',
        b'[2,"desk",7,4,4,0]',
        b'[2,"desk",7,4,[]]',
        b'[2,"desk",7,4,[],0]',
        b'[2,"desk",7,4]x',
        b'[2,"desk",7,4]\0',
        b'[2,"desk",7,4\n]',
        b'[2,"desk",7,4]\n',
        b'[2,"desk",7,4\n,]',
        b'[2,"desk",7,4\n,[]',
        b'[2,"desk",7,4\n,[]]',
        b'[2,"desk",7,4\n,[5,1.5,"TRADE","BTC",1]]x',
        b'[2,"desk",7,4\n[5,1.5,"TRADE","BTC",1]]',
        b'[2,"desk",7,4,[5,1.5,"TRADE","BTC",1]]',
        b'[2,"desk",7,4,5,1,[[5,1.5,"TRADE","BTC",1]]]',
        b'[2,"desk",7,4,5,1\n[[5,1.5,"TRADE","BTC",1]]]',
        b'[2,"desk",7,4,5,1\n,[[5,1.5,"TRADE","BTC",1]]]x',
        b'[2,"desk",7,4,5,1,0\n,[[5,1.5,"TRADE","BTC",1]]]',
        b'[2,"desk",7,4,5\n,[[5,1.5,"TRADE","BTC",1]]]',
        b'[2,"d\xffsk",7,4]',
        b'[2,"\\ud800",7,4]',
    ],
)
def test_a_frame_of_another_form_is_refused(json: bytes) -> None:
    refusal(lambda: parse_from_publisher(topic("TRADE") + json, ME))


@pytest.mark.parametrize(
    "json",
    [
        b'[2,"desk",7,4\n,[5,1.5,"TRADE","BTC",1]',
        b'[2,"desk",7,4\n,[5,1.5,"TRADE","BTC",1],[6,1.5,"TRADE","BTC",1]]',
        b'[2,"desk",7,4,5,1\n,[5,1.5,"TRADE","BTC",1]]',
        b'[2,"desk",7,4,5,1\n,[[5,1.5,"TRADE","BTC",1]]',
        b'[2,"desk",7,4,6,1\n,[[5,1.5,"TRADE","BTC",1],\n[6,1.5,"TRADE","BTC",1]]]',
        b'[2,"desk",7,4,6,2\n,[[5,1.5,"TRADE","BTC",1],\n[6,1.5,"TRADE","BTC",1]]',
    ],
)
def test_a_frame_whose_rows_end_elsewhere_than_its_head_says_is_an_error_once_it_is_opened(
    json: bytes,
) -> None:
    batch = LazyBatch(read_frame(topic("TRADE") + json))
    while batch.left:
        batch.take()
    assert isinstance(batch.error, WireError)


def test_rows_behind_a_head_that_says_there_are_none_are_refused() -> None:
    """Or what they are would be lost, and nothing would say so."""
    assert said_by(lambda: parse_from_publisher(data_frame(row(seq=4), newest=4, count=0), ME))
    assert said_by(lambda: parse_from_publisher(page_message(count=0), ME))


@pytest.mark.parametrize("text", ["TRADE", "*", "T/" + "x" * 128, long_query()])
def test_a_progress_message_is_read_as_a_beacon_of_its_topic(text: str) -> None:
    read = parse_from_publisher(frame(progress_topic(topic(text)), "desk", 7, 41, 41, []), ME)
    assert isinstance(read, Frame)
    assert (read.topic, read.prev, read.newest, read.count) == (topic(text), 41, 41, 0)


@pytest.mark.parametrize("version", [1, 3, 2**62])
@pytest.mark.parametrize(
    "rest", [b"]", b',"desk",7,4,[]]', b',{"of":"another shape"}]', b',"desk",7,4\n,[5]]']
)
def test_a_frame_of_another_version_is_refused_as_such(rest: bytes, version: int) -> None:
    with pytest.raises(OtherVersion) as caught:
        parse_from_publisher(b"TRADE\0[%d%b" % (version, rest), ME)
    assert caught.value.version == version
    assert str(caught.value) == f"a message of version {version}, this is version 2"


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
    assert "do not begin with a topic" in refusal(lambda: parse_from_publisher(message, ME))


# Depth.


@pytest.mark.parametrize("depth", [300, 1000, 1024, 1025, 100_000])
@pytest.mark.parametrize(
    "message",
    [
        b"T\0%b",
        b"T\0[2,%b,7,0]",
        b'T\0[2,"d",7,%b]',
        b'T\0[2,"d",7,0,%b,1\n,[[1,1.5,"T","",1]]]',
        b'T\0[2,"d",7,0\n,%b]',
        ME.topic + b'["!",1,"d",7,0,0,0,1,1,%b,1\n,[[1,1.5,"T","",1]]]',
        ME.topic + b"%b",
        ME.topic + b'["=",1,%b,[]]',
        ME.topic + b'["=",1,"you@0 x",%b]',
        HEARTBEATS + b"[%b,1,1]",
    ],
)
def test_depth_where_no_depth_belongs_is_refused_like_any_other_mistake(
    message: bytes, depth: int
) -> None:
    refusal(lambda: parse_from_publisher(message % nested(depth), ME))
    refusal(lambda: parse_from_subscriber(message.partition(b"\0")[2] % nested(depth)))


# Heartbeats.


@given(names, numbers, numbers, st.booleans())
def test_a_heartbeat_is_read_as_it_was_sent(name: str, epoch: int, seq: int, leaving: bool) -> None:
    message = heartbeat(name, epoch, seq, leaving=leaving)
    assert message.startswith(HEARTBEATS)
    assert parse_from_publisher(message, ME) == Heartbeat(name, epoch, seq, leaving)


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
    refusal(lambda: parse_from_publisher(HEARTBEATS + orjson.dumps(fields), ME))


# Answers.


options = st.builds(
    Options,
    begin=numbers,
    start=numbers,
    journaled=st.booleans(),
    begins=st.lists(numbers, max_size=3).map(tuple),
)


@given(
    st.builds(Answer, numbers, whos, st.floats(0, 1e300), numbers, st.booleans(), options=options),
    whos,
)
def test_an_answer_is_read_as_it_was_sent(value: Answer, to: PeerId) -> None:
    assert parse_from_publisher(mail(to, value), to) == value


refusals = st.builds(
    Refusal, numbers, whos, st.floats(0, 1e300), numbers, st.booleans(), st.booleans(),
    st.dictionaries(queries, st.text(max_size=20), max_size=3), options=options,
)  # fmt: skip


@given(refusals, whos)
def test_a_refusal_is_read_as_it_was_sent(value: Refusal, to: PeerId) -> None:
    assert parse_from_publisher(mail(to, value), to) == value


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
    right = letter("-", 2, 1, YOU.text, 3, 4, True, True, [], {})
    assert parse_from_publisher(right, ME) == Refusal(1, YOU, 3.0, 4, True, True, {})
    refusal(lambda: parse_from_publisher(letter("-", 2, 1, YOU.text, 3, 4, True, *fields, {}), ME))
    refusal(lambda: parse_from_publisher(letter("-", 2, 1, YOU.text, 3, 4, True, *fields), ME))


def test_an_age_in_whole_seconds_is_an_age() -> None:
    read = parse_from_publisher(letter("?", 2, 1, YOU.text, 3, 4, True, {}), ME)
    assert read == Answer(1, YOU, 3.0, 4, True)


# Versions, and what a bus says of itself.


@pytest.mark.parametrize("kind", ["?", "-"])
@pytest.mark.parametrize("version", [0, 1, 3, 2**62])
@pytest.mark.parametrize("rest", [[], [1], [{"of": "another shape"}], [1, YOU.text, 3, 4, True]])
def test_an_answer_of_another_version_is_refused_as_such_whatever_its_form(
    kind: str, version: int, rest: list[Any]
) -> None:
    with pytest.raises(OtherVersion) as caught:
        parse_from_publisher(letter(kind, version, *rest), ME)
    assert caught.value.version == version


@pytest.mark.parametrize("version", [0, 1, 3, 2**62])
@pytest.mark.parametrize("rest", [[], [1], [{"of": "another shape"}], ["desk", 1, ME.text, {}]])
def test_a_question_of_another_version_is_refused_as_such_whatever_its_form(
    version: int, rest: list[Any]
) -> None:
    with pytest.raises(OtherVersion) as caught:
        parse_from_subscriber(orjson.dumps(["?", version, *rest]))
    assert caught.value.version == version


def test_a_question_of_version_1_is_known_by_its_form_for_it_does_not_say_its_version() -> None:
    with pytest.raises(OtherVersion) as caught:
        parse_from_subscriber(orjson.dumps(["?", "desk", 1, ME.text]))
    assert caught.value.version == 1


def test_what_is_as_usual_is_not_said() -> None:
    assert up(Ask("desk", 1, ME)).endswith(b",{}]")
    assert up(Ask("desk", 1, ME, options=Options(journaled=True))).endswith(b',{"journaled":true}]')


@pytest.mark.parametrize("begins", [(0,), (0, 7), tuple(range(MAX_BEGINS))])
def test_the_starts_of_a_journal_are_read_as_they_were_said(begins: tuple[int, ...]) -> None:
    value = Answer(1, YOU, 3.0, 4, True, options=Options(start=90, begins=begins))
    read = parse_from_publisher(mail(ME, value), ME)
    assert read == value
    assert isinstance(read, Answer)
    assert [*read.options.lineage.items()] == [
        (91 - len(begins) + place, begin) for place, begin in enumerate(begins)
    ]


def test_of_a_bus_that_does_not_say_its_earlier_starts_the_present_one_is_known() -> None:
    assert Options(start=3, begin=70).lineage == {3: 70}


def test_what_a_later_bus_says_of_itself_is_ignored_and_the_rest_is_read() -> None:
    said = {"begin": 7, "colour": "red", "more": [None, {}]}
    read = parse_from_subscriber(orjson.dumps(["?", 2, "desk", 1, ME.text, said]))
    assert read == Ask("desk", 1, ME, options=Options(begin=7))
    read = parse_from_publisher(letter("?", 2, 1, YOU.text, 3, 4, True, said), ME)
    assert read == Answer(1, YOU, 3.0, 4, True, options=Options(begin=7))


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        "begin",
        {"begin": -1},
        {"begin": 2**63},
        {"begin": True},
        {"begin": 1.0},
        {"begin": None},
        {"start": "1"},
        {"start": []},
        {"journaled": 1},
        {"journaled": None},
        {"begins": 7},
        {"begins": "7"},
        {"begins": [-1]},
        {"begins": [1.0]},
        {"begins": [True]},
        {"begins": [[]]},
        {"begins": [0] * (MAX_BEGINS + 1)},
    ],
)
def test_what_a_bus_says_wrongly_of_itself_is_refused(said: Any) -> None:
    refusal(lambda: parse_from_subscriber(orjson.dumps(["?", 2, "desk", 1, ME.text, said])))
    refusal(lambda: parse_from_publisher(letter("?", 2, 1, YOU.text, 3, 4, True, said), ME))


@given(
    st.builds(Mark, numbers, whos, st.lists(st.tuples(queries, numbers), max_size=3).map(tuple)),
    whos,
)
def test_a_mark_is_read_as_it_was_sent(value: Mark, to: PeerId) -> None:
    assert parse_from_publisher(mail(to, value), to) == value


@given(
    st.builds(
        PacedMark,
        numbers,
        whos,
        st.lists(st.tuples(queries, numbers), max_size=3).map(tuple),
        numbers,
        st.lists(st.sampled_from(["feed", "bot"]), max_size=3).map(tuple),
    ),
    whos,
)
def test_a_mark_of_a_waiting_publisher_is_read_as_it_was_sent(value: PacedMark, to: PeerId) -> None:
    assert parse_from_publisher(mail(to, value), to) == value


@pytest.mark.parametrize("waiting", [None, {}, "feed", [1], ["no name"], [["feed"]], [""]])
def test_a_mark_of_a_waiting_publisher_has_names_of_buses(waiting: Any) -> None:
    refusal(lambda: parse_from_publisher(letter("&", 9, YOU.text, [["T", 44]], 44, waiting), ME))


@given(
    st.lists(events, max_size=5),
    numbers,
    names,
    numbers,
    st.lists(st.integers(0, 2**40), min_size=4, max_size=4).map(sorted),
    st.none() | times,
)
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
    read = parse_from_publisher(page(ME, nonce, source, epoch, 3, *where, rows), ME)
    assert isinstance(read, PageAnswer)
    assert (read.nonce, read.source, read.epoch, read.begin) == (nonce, source, epoch, 3)
    assert (read.after, read.evicted, read.to, read.newest, read.reached) == where
    expected = [all_of(event) for event in decode(rows, source, epoch)]
    assert [all_of(event) for event in taken(read.rows)] == expected


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
        {"count": 3},
        {"count": -1},
        {"count": 2**62, "to": 2**63 - 1, "newest": 2**63 - 1},
        {"count": 1.0},
        {"count": True},
        {"count": None},
        {"more": 1},
    ],
)
def test_a_page_that_contradicts_itself_is_refused(changed: dict[str, Any]) -> None:
    assert isinstance(parse_from_publisher(page_message(), ME), PageAnswer)
    refusal(lambda: parse_from_publisher(page_message(**changed), ME))


@pytest.mark.parametrize(
    "json",
    [
        b'["!"]',
        b'["!",1,"desk",7,0,4,0,6,9,null,0]',
        b'["!",1,"desk",7,0,4,0,6,9,null,[]]',
        b'["!",1,"desk",7,0,4,0,6,9,null,0\n]',
        b'["!",1,"desk",7,0,4,0,6,9,null,0\n,[]',
        b'["!",1,"desk",7,0,4,0,6,9,null,0\n[]]',
        b'["!",1,"desk",7,0,4,0,6,9,null,0,[]]',
        b'["!"\n,[]]',
        b'["!"',
        b'["!",',
        b'["!"\n',
        b'["!"]\n,[]]',
    ],
)
def test_a_page_of_another_form_is_refused(json: bytes) -> None:
    refusal(lambda: parse_from_publisher(ME.topic + json, ME))


@pytest.mark.parametrize(
    "rows",
    [
        [row(), row()],
        [row(seq=4)],
        [row(seq=7)],
        [row(type="aiobus.gap")],
        [row(data=orjson.Fragment(nested(254)))],
    ],
)
def test_what_a_page_says_of_itself_is_known_though_its_rows_are_no_events(
    rows: list[Any],
) -> None:
    read = parse_from_publisher(page_message(rows=rows), ME)
    assert isinstance(read, PageAnswer)
    batch = LazyBatch(read.rows)
    while batch.left:
        batch.take()
    assert isinstance(batch.error, WireError)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["x"],
        ["?"],
        [["?"], 1, YOU.text, 1.5, 2, True],
        ["?", 2],
        ["?", 2, 1, YOU.text, 1.5, 2, True],
        ["?", 1, YOU.text, 1.5, 2, True, {}],
        ["?", True, 1, YOU.text, 1.5, 2, True, {}],
        ["?", 2.0, 1, YOU.text, 1.5, 2, True, {}],
        ["?", "2", 1, YOU.text, 1.5, 2, True, {}],
        ["?", None, 1, YOU.text, 1.5, 2, True, {}],
        ["?", 2, 1, YOU.text, 1.5, 2, 1, {}],
        ["?", 2, 1, YOU.text, 1.5, 2, None, {}],
        ["?", 2, 1, YOU.text, -0.5, 2, True, {}],
        ["?", 2, 1, YOU.text, True, 2, True, {}],
        ["?", 2, 1, YOU.text, "1", 2, True, {}],
        ["?", 2, 1, YOU.text, 1.5, -2, True, {}],
        ["?", 2, True, YOU.text, 1.5, 2, True, {}],
        ["?", 2, 1, str(YOU), 1.5, 2, True, {}],
        ["?", 2, 1, None, 1.5, 2, True, {}],
        ["?", 2, 1, YOU.text, 1.5, 2, True, {}, 0],
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
    assert isinstance(
        parse_from_publisher(letter("?", 2, 1, YOU.text, 1.5, 2, True, {}), ME), Answer
    )
    refusal(lambda: parse_from_publisher(letter(*fields), ME))


@pytest.mark.parametrize(
    "to",
    [YOU, PeerId(ME.name, ME.epoch + 1, ME.endpoint), PeerId(ME.name, ME.epoch, ME.endpoint + "0")],
)
def test_mail_for_another_bus_or_another_start_of_this_one_is_refused(to: PeerId) -> None:
    message = mail(to, Answer(1, YOU, 1.5, 2, True))
    assert refusal(lambda: parse_from_publisher(message, ME)) == "mail for another bus"


# Questions.

sinces = st.none() | st.just("last") | times
limits = st.integers(1, 1_000_000)
questions = (
    st.builds(Ask, names | st.just("*"), numbers, whos, options=options)
    | st.builds(PageAsk, names, numbers, whos, numbers, queries, numbers, limits, sinces, numbers)
    | st.builds(Ack, names, numbers, whos)
)


@given(questions)
def test_a_question_is_read_as_it_was_sent(question: Ask | PageAsk | Ack) -> None:
    assert parse_from_subscriber(up(question)) == question


@given(questions)
def test_no_question_can_be_taken_for_a_subscription(question: Ask | PageAsk | Ack) -> None:
    assert up(question)[0] not in (0, 1)


@pytest.mark.parametrize("query", ["", "B A", "no query at all", "T" * 1024, "é" * 512])
def test_the_query_of_a_page_is_left_for_the_publisher_to_judge(query: str) -> None:
    question = PageAsk("desk", 1, ME, 7, query, 4, 10, None, 0)
    assert parse_from_subscriber(up(question)) == question


@pytest.mark.parametrize(
    "fields",
    [
        None,
        5,
        "?",
        {},
        [],
        ["x", "desk", 1, ME.text],
        ["?"],
        ["?", 2],
        ["?", "desk", 1],
        ["?", 2, "desk", 1, ME.text],
        ["?", 2, "desk", 1, ME.text, {}, 0],
        ["?", True, "desk", 1, ME.text, {}],
        ["?", 2.0, "desk", 1, ME.text, {}],
        ["?", 2, "", 1, ME.text, {}],
        ["?", 2, "**", 1, ME.text, {}],
        ["?", 2, None, 1, ME.text, {}],
        ["?", 2, ["*"], 1, ME.text, {}],
        ["?", 2, "desk", -1, ME.text, {}],
        ["?", 2, "desk", 2**63, ME.text, {}],
        ["?", 2, "desk", 1.0, ME.text, {}],
        ["?", 2, "desk", True, ME.text, {}],
        ["?", 2, "desk", "1", ME.text, {}],
        ["?", 2, "desk", 1, "me", {}],
        ["?", 2, "desk", 1, None, {}],
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
    refusal(lambda: parse_from_subscriber(orjson.dumps(fields)))


@pytest.mark.parametrize("message", [b"", b"\0", b"\1TRADE\0", b"[", b"\xff", b'["?"', b"[]]"])
def test_a_question_that_is_no_json_is_refused(message: bytes) -> None:
    assert "not JSON" in refusal(lambda: parse_from_subscriber(message))


# Whatever comes.

VALID = [
    topic("TRADE/BTC"),
    progress_topic(topic("TRADE/BTC")),
    frame(progress_topic(topic("TRADE")), "desk", 7, 4, 4, []),
    ME.topic,
    HEARTBEATS,
    frame(topic("TRADE"), "desk", 7, 4, 5, [orjson.dumps(row(cause="desk@7.1"))]),
    frame(
        topic("TRADE"), "desk", 7, 4, 6, [orjson.dumps(row()), b'[6,1,"TRADE","BTC",[{}],"me@1.1"]']
    ),
    heartbeat("desk", 7, 5, leaving=True),
    mail(ME, Answer(1, YOU, 1.5, 2, True, options=Options(begin=5, journaled=True))),
    mail(ME, Refusal(1, YOU, 1.5, 2, True, True, {"T": "full"})),
    page(ME, 1, "desk", 7, 0, 4, 0, 6, 9, None, [orjson.dumps(row())]),
    mail(ME, Mark(1, YOU, (("TRADE/BTC", 5), ("*", 6)))),
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
PIECES += [
    b"\n",
    b",\n",
    b"\n,[",
    b"]]",
    b"1e999",
    b"\\ud800",
    b"[" * 2000,
    b"[1]",
    b'{"a":1}',
    b" ",
    b"%",
    b"0.5",
]


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
    read = parse_from_publisher(message, ME)
    if isinstance(read, PageAnswer):
        read = read.rows
    if isinstance(read, Rows):
        batch, events = LazyBatch(read), []
        while batch.left:
            events += batch.take()
        assert [event.seq for event in events] == sorted({event.seq for event in events})
        assert batch.last == (events[-1].seq if events else read.prev) <= read.newest
        if batch.error is not None:
            raise batch.error
        assert len(events) == read.count
        assert not read.is_frame or batch.last == read.newest


@given(st.binary() | almost_valid(VALID) | json_values.map(orjson.dumps))
def test_whatever_a_peer_sends_is_read_or_a_wire_error(message: bytes) -> None:
    for sent in (message, topic("T") + message, HEARTBEATS + message, ME.topic + message):
        for read in (parse_from_subscriber, parse_topic, read_down_and_use):
            assert len(said_by(lambda read=read, sent=sent: read(sent))) < 300


SECRET = {"type": f"T.{MARKER}", "key": MARKER, "data": {MARKER: [MARKER]}, "cause": MARKER}


@given(
    almost_valid(
        [
            data_frame(row(**SECRET)),
            data_frame(row(**SECRET), row(**SECRET | {"seq": 6})),
            page_message(rows=[row(**SECRET)]),
        ]
    )
)
def test_nothing_that_was_published_is_quoted_whatever_is_wrong_with_the_message(
    message: bytes,
) -> None:
    assert MARKER not in said_by(lambda: read_down_and_use(message))
    assert MARKER not in said_by(lambda: parse_from_subscriber(message))
    assert MARKER not in said_by(lambda: parse_from_subscriber(message.partition(b"\0")[2]))


def test_a_refused_subscription_is_quoted_in_part_as_nothing_else_tells_whose_it_is() -> None:
    said = refusal(lambda: parse_topic(b"trade,%b\0" % (b"Z" * 900)))
    assert "'trade,ZZ" in said
    assert said.count("Z") <= 80
