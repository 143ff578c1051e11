"""The publishing half of a mesh: a stream for each query that others ask for, and pages of history.

Owns when frames leave: at the end of each tick of the loop, a beacon once a second, and one for
those who listen quietly soon after something was published. Must not know who asks, nor how bytes
get there.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextvars import Context
from dataclasses import replace
from itertools import islice

from aiobus.history import Page, Want
from aiobus.pattern import Query, read_query
from aiobus.publisher import Publisher
from aiobus.stream import Stream
from aiobus.transport.askers import Link
from aiobus.wire import QUIET, WireError

__all__ = ["Streams"]

MAX_STREAMS = 32_768
"""Distinct queries served. Each costs some 2 KB here, and a peer may ask for anything."""
MAX_OF_LINK = 8_192
"""Of these, those that one link has opened: what one peer asks for by mistake leaves the others
theirs.
"""
PAGE_EVENTS = 1024
SLICE = 32
BEACON_SECONDS = 0.8
"""Beacons leave in slices, spread over this time: 5,000 at once would hold up the loop, and fill
the queues of ZeroMQ, which then drops the last of them, every time.
"""
QUIET_SECONDS = 0.05
"""After which those who listen quietly are told of what was published: often enough that it counts
as heard of, and seldom enough that nobody who computes on the same core is held up.
"""
LOOKS = 256
"""Quiet topics looked at each time: what a peer asks for by the thousand costs others no more."""


class Streams:
    """The streams of one publisher. `send` takes a message and never waits."""

    def __init__(self, publisher: Publisher, send: Callable[[bytes], None]) -> None:
        self._publisher = publisher
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._context = Context()  # what leaves at the end of a tick is caused by no event
        self._streams: dict[bytes, Stream] = {}
        self._joining: list[Stream] = []
        self._beacons: Iterator[Stream] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._confirmed: dict[bytes, int] = {}
        self.doubts = 0
        """How often that was doubted."""
        self._owners: dict[bytes, Link] = {}
        self._opened: dict[Link, dict[bytes, None]] = {}
        """The streams that each link was the first to ask for."""
        self._quiet: dict[bytes, int] = {}
        """Topics that somebody listens to quietly, and what those were told of last."""
        self._telling: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, name: bytes, query: Query, link: Link = None) -> None:
        """Serve a query from now on, under the name of its topic or the quiet one. Raises WireError
        when there are too many already, in all or of this link.
        """
        topic = name.removeprefix(QUIET)
        if topic not in self._streams:
            self._begin(topic, query, link)
        if topic == name:
            self._streams[topic].is_loud = True
        else:
            # At once: it says where a new stream begins, and of an old one what was published while
            # this was on its way, when ZeroMQ was already leaving out the frames.
            if self._telling is None:
                self._tell_later()
            self._tell_of(topic)

    def may_open(self, name: bytes, link: Link) -> bool:
        """False when there are too many already, in all or of this link."""
        if name.removeprefix(QUIET) in self._streams:
            return True
        return len(self._streams) < MAX_STREAMS and len(self._opened.get(link, ())) < MAX_OF_LINK

    def _begin(self, topic: bytes, query: Query, link: Link) -> None:
        if len(self._streams) >= MAX_STREAMS:
            raise WireError(f"{MAX_STREAMS} queries are served already")
        if link is not None and len(self._opened.get(link, ())) >= MAX_OF_LINK:
            raise WireError(f"{MAX_OF_LINK} queries of one peer are served already")
        self._charge(topic, link)
        publisher = self._publisher
        source = (publisher.name, publisher.epoch)
        stream = Stream(query, topic, source, publisher.public_seq, self._send, self._join)
        stream.is_loud = False
        self._streams[topic] = stream
        # What was published before may be owed as well: to somebody whose link was cut meanwhile.
        self._confirmed[topic] = 0
        publisher.attach(stream)

    def _charge(self, topic: bytes, link: Link) -> None:
        self._owners[topic] = link
        self._opened.setdefault(link, {})[topic] = None

    def recharge(self, link: Link, to: Link) -> None:
        """The link is gone, and others may ask for what it opened: count that for `to`."""
        for topic in self._opened.pop(link, ()):
            self._charge(topic, to)

    def close(self, name: bytes) -> None:
        """Nobody asks for it by this name any more. No error when nobody did."""
        topic = name.removeprefix(QUIET)
        if (stream := self._streams.get(topic)) is None:
            return
        if topic == name:
            stream.is_loud = False
        else:
            self._quiet.pop(topic, None)
        if not stream.is_loud and topic not in self._quiet:
            self._end(stream)

    def _end(self, stream: Stream) -> None:
        if stream in self._joining:
            self._joining.remove(stream)  # or it would send behind one that is asked for anew
        self._publisher.detach(stream)
        del self._streams[stream.topic]
        del self._confirmed[stream.topic]
        link = self._owners.pop(stream.topic)
        del self._opened[link][stream.topic]
        if not self._opened[link]:
            del self._opened[link]

    def close_all(self) -> None:
        """Serve nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        self._quiet.clear()
        for stream in list(self._streams.values()):
            self._end(stream)

    def _join(self, stream: Stream) -> None:
        if not self._joining:
            self._loop.call_soon(self._end_tick, context=self._context)
        self._joining.append(stream)

    def _end_tick(self) -> None:
        try:
            self._joining = [stream for stream in self._joining if stream.end_tick()]
        finally:  # also where one could not send, or the others would never be told again
            if self._joining:
                self._loop.call_soon(self._end_tick, context=self._context)

    def flush(self) -> None:
        """Send what waits for the end of the tick."""
        for stream in self._joining:
            stream.flush()

    def is_owed(self, text: str) -> bool:
        """True when something may have been published that this query matches."""
        try:
            query = read_query(text)
        except ValueError:
            return False  # no event matches what is no query
        page = self._publisher.history.page(query, 0, 1)
        return bool(page.rows or page.evicted or page.to < page.newest)

    def page(self, topic: bytes, query: Query, want: Want, limit: int) -> Page:
        """A page of a query. What of it still waits for the end of the tick is sent first, so that
        it cannot come after what the page says is the newest.
        """
        stream = self._streams.get(topic)
        if stream is not None:
            stream.flush()
        page = self._publisher.history.answer(query, want, min(limit, PAGE_EVENTS))
        # The system events of this bus come last now and then, and are nobody else's: with their
        # numbers it would seem to go back to what its heartbeats say.
        most = self._publisher.public_seq
        after, to = min(page.after, most), min(page.to, most)
        return replace(page, after=after, to=to, newest=min(page.newest, most))

    def beacons(self) -> None:
        """Say on every stream what was sent last, within the second that follows."""
        if self._beacons is None and self._streams:
            self._beacons = iter(list(self._streams.values()))
            self._send_beacons(BEACON_SECONDS * SLICE / len(self._streams))

    def _send_beacons(self, pause: float) -> None:
        some = [] if self._beacons is None else list(islice(self._beacons, SLICE))
        for stream in some:
            if self._streams.get(stream.topic) is stream:
                self.beacon(stream.topic)
        if len(some) == SLICE:
            self._timer = self._loop.call_later(
                pause, self._send_beacons, pause, context=self._context
            )
        else:
            self._beacons = None

    @property
    def newest(self) -> int:
        """The seq of the last event that others may be handed."""
        return self._publisher.public_seq

    def beacon(self, topic: bytes) -> None:
        """Say on one stream what was sent last."""
        if topic in self._streams:
            self._streams[topic].beacon()
            if topic in self._quiet:
                self._tell_of(topic)

    def _tell_later(self) -> None:
        self._telling = self._loop.call_later(QUIET_SECONDS, self._tell, context=self._context)

    def _tell(self) -> None:
        self._telling = None
        if not self._quiet:
            return
        self._tell_later()  # first, or nobody would be told again where one could not be sent
        told = 0
        for topic in list(islice(self._quiet, LOOKS)):
            seq = self._quiet.pop(topic)
            self._quiet[topic] = seq  # it queues up anew, behind the others
            if self._streams[topic].newest > seq:
                self._tell_of(topic)
                told += 1
            if told == SLICE:
                break

    def _tell_of(self, topic: bytes) -> None:
        stream = self._streams[topic]
        self._quiet[topic] = stream.newest
        stream.quiet_beacon()

    def sent(self) -> dict[str, int]:
        """What was sent last, by query."""
        self.flush()
        return {each.query.text: each.sent for each in self._streams.values()}

    def owed(self) -> dict[bytes, int]:
        """What was sent last, by topic, where that was not confirmed yet."""
        self.flush()
        streams = self._streams.values()
        return {
            each.topic: each.sent for each in streams if each.sent > self._confirmed[each.topic]
        }

    def doubt(self) -> None:
        """A peer may not have what was confirmed: it is owed once more."""
        self.doubts += 1
        self._confirmed = dict.fromkeys(self._confirmed, 0)

    def confirm(self, owed: dict[bytes, int]) -> None:
        """Everybody has all of this."""
        for topic, seq in owed.items():
            if topic in self._confirmed:
                self._confirmed[topic] = max(self._confirmed[topic], seq)
