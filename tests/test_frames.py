"""What one query is sent: how events join into frames, and what each says of the one before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobus import Event, Limits, wire
from aiobus.publisher import FRAME_BYTES, FRAME_EVENTS, Publisher, Stream
from aiobus.query import Query
from aiobus.rows import LazyBatch
from aiobus.wire import Frame, PeerId

ME = PeerId("me", 7, "ipc:///me")
EPOCH = 36


def events_of(frame: Frame) -> list[Event]:
    """Its events, which are as many as its head says, and the last the one that it names."""
    batch, events = LazyBatch(frame), []
    while batch.left:
        events += batch.take()
    assert batch.error is None
    return events


class Link:
    """A publisher with a stream, what that has sent, and who is to be told of the end of the tick.

    The seq of an event that is published can be chosen: what lies before went to others.
    """

    def __init__(self, seq: int = 0, query: Query | None = None) -> None:
        self.messages: list[bytes] = []
        self.joining: list[Stream] = []
        self.publisher = Publisher("desk", Limits())
        self.publisher.epoch = EPOCH
        query = query or Query.of("TRADE", "BTC")
        topic = wire.topic(query.text)
        self.stream = Stream(
            query, topic, ("desk", EPOCH), seq, self.messages.append, self.joining.append
        )
        self.publisher.attach(self.stream)

    def deliver(self, *seqs: int, size: int = 1) -> None:
        for seq in seqs:
            self.publisher.seq = seq - 1
            self.publisher.publish(Event("TRADE", "." * size, 0.5, key="BTC"))

    @property
    def frames(self) -> list[Frame]:
        frames = [wire.parse_from_publisher(message, ME) for message in self.messages]
        assert all(isinstance(frame, Frame) for frame in frames)
        return frames  # type: ignore[return-value]

    @property
    def sent(self) -> list[tuple[int, list[int]]]:
        """Of each frame its `prev` and its seqs."""
        return [(frame.prev, [event.seq for event in events_of(frame)]) for frame in self.frames]


def test_the_first_event_of_a_tick_leaves_at_once() -> None:
    link = Link()
    link.deliver(1)
    assert link.sent == [(0, [1])]


def test_what_follows_in_the_same_tick_is_joined_and_leaves_at_its_end() -> None:
    link = Link()
    link.deliver(1, 2, 3)
    assert link.sent == [(0, [1])]
    link.stream.end_tick()
    assert link.sent == [(0, [1]), (1, [2, 3])]


def test_the_end_of_a_tick_is_asked_for_once_until_it_says_that_nothing_is_joined() -> None:
    link = Link()
    link.deliver(1, 2, 3)
    assert link.stream.end_tick()
    link.deliver(4, 5)
    assert link.joining == [link.stream]
    assert link.stream.end_tick()
    assert not link.stream.end_tick()
    link.deliver(6)
    assert link.joining == [link.stream] * 2


def test_after_a_tick_of_one_event_the_next_leaves_at_once_again() -> None:
    link = Link()
    link.deliver(1)
    assert not link.stream.end_tick()
    link.deliver(2)
    assert link.sent == [(0, [1]), (1, [2])]


def test_while_one_tick_after_another_has_several_events_all_are_joined() -> None:
    link = Link()
    link.deliver(1, 2)
    link.stream.end_tick()
    link.deliver(3, 4)
    assert link.sent == [(0, [1]), (1, [2])]
    link.stream.end_tick()
    link.deliver(5)
    link.stream.end_tick()
    assert link.sent == [(0, [1]), (1, [2]), (2, [3, 4]), (4, [5])]


def test_after_a_tick_without_events_the_next_leaves_at_once_again() -> None:
    link = Link()
    link.deliver(1, 2)
    link.stream.end_tick()
    link.stream.end_tick()
    link.deliver(3)
    assert link.sent == [(0, [1]), (1, [2]), (2, [3])]


def test_a_frame_that_is_full_does_not_wait_for_the_end_of_the_tick() -> None:
    link = Link()
    link.deliver(*range(1, 1 + 1 + FRAME_EVENTS))
    assert link.sent == [(0, [1]), (1, list(range(2, 2 + FRAME_EVENTS)))]


@pytest.mark.parametrize("count", [2, 1 + FRAME_EVENTS])
def test_after_a_tick_of_several_events_the_first_of_the_next_is_joined_however_they_left(
    count: int,
) -> None:
    link = Link()
    link.deliver(*range(1, 1 + count))
    link.stream.beacon()
    assert link.stream.end_tick()


def test_a_burst_makes_frames_of_128_events() -> None:
    link = Link()
    link.deliver(*range(1, 401))
    link.stream.end_tick()
    assert [len(seqs) for _, seqs in link.sent] == [1, 128, 128, 128, 15]


def test_large_events_leave_as_soon_as_there_are_64_kib_of_them() -> None:
    link = Link()
    link.deliver(*range(1, 9), size=FRAME_BYTES // 4)
    assert [seqs for _, seqs in link.sent] == [[1], [2, 3, 4, 5]]


def test_the_count_of_bytes_begins_again_with_each_frame() -> None:
    link = Link()
    link.deliver(1, 2, size=FRAME_BYTES // 2)
    link.stream.end_tick()
    link.deliver(3, 4, size=FRAME_BYTES // 2)
    assert [seqs for _, seqs in link.sent] == [[1], [2], [3, 4]]


def test_an_event_larger_than_a_frame_is_a_frame() -> None:
    link = Link()
    link.deliver(1, 2, size=FRAME_BYTES)
    assert [seqs for _, seqs in link.sent] == [[1], [2]]


def test_flushing_sends_what_was_joined_and_the_tick_goes_on() -> None:
    link = Link()
    link.deliver(1, 2)
    link.stream.flush()
    link.deliver(3)
    assert link.sent == [(0, [1]), (1, [2])]
    link.stream.end_tick()
    assert link.sent[2:] == [(2, [3])]


def test_a_new_stream_begins_where_its_source_is() -> None:
    link = Link(seq=41)
    assert (link.stream.newest, link.stream.sent) == (41, 41)
    link.deliver(45)
    assert link.sent == [(41, [45])]


def test_a_beacon_says_what_was_sent_last() -> None:
    link = Link(seq=41)
    link.stream.beacon()
    link.deliver(45)
    link.stream.beacon()
    assert link.sent == [(41, []), (41, [45]), (45, [])]


def test_a_beacon_takes_along_what_was_joined() -> None:
    link = Link()
    link.deliver(1, 2)
    link.stream.beacon()
    link.stream.end_tick()
    assert link.sent == [(0, [1]), (1, [2])]


def test_what_was_sent_and_what_is_about_to_be_are_told_apart() -> None:
    link = Link()
    link.deliver(1, 2)
    assert (link.stream.sent, link.stream.newest) == (1, 2)
    link.stream.flush()
    assert (link.stream.sent, link.stream.newest) == (2, 2)


def test_a_frame_names_its_topic_and_its_source() -> None:
    link = Link()
    link.deliver(1)
    (frame,) = link.frames
    assert (frame.topic, frame.source, frame.epoch) == (b"TRADE/BTC\0", "desk", EPOCH)


def test_an_event_arrives_as_it_was_published() -> None:
    link = Link()
    event = Event("TRADE", {"price": 1.5, "note": "\0é"}, key="BTC", cause="other@1.7")
    link.publisher.publish(event)
    (frame,) = link.frames
    (arrived,) = events_of(frame)
    assert arrived == event
    assert (arrived.id, arrived.cause) == (event.id, "other@1.7")


ROWS = ["event", "event", "event", "burst", "large", "flush", "end_tick", "beacon"]


@given(st.integers(0, 5), st.lists(st.sampled_from(ROWS), max_size=40))
def test_frames_bring_every_event_once_in_order_each_after_the_one_before(
    begin: int, steps: list[str]
) -> None:
    link, seq = Link(begin), begin
    for step in steps:
        if step in ("event", "burst", "large"):
            for _ in range(50 if step == "burst" else 1):
                seq += 1
                link.deliver(seq, size=FRAME_BYTES // 3 if step == "large" else 1)
        else:
            getattr(link.stream, step)()
    link.stream.end_tick()
    place = begin
    for prev, seqs in link.sent:
        assert (prev, len(seqs) <= FRAME_EVENTS) == (place, True)
        assert seqs == list(range(prev + 1, prev + 1 + len(seqs)))
        place = prev + len(seqs)
    assert place == seq


@pytest.mark.parametrize("query", [Query.of("*"), Query.of(["A", "B"], ["x*", "é"])])
def test_a_frame_can_be_read_whatever_the_query(query: Query) -> None:
    link = Link(query=query)
    link.stream.beacon()
    (frame,) = link.frames
    assert frame.topic == wire.topic(query.text)
