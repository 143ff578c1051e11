"""The subscriptions of others: which peer asked on which link, and the frames of each query.

Owns what an answer to `?` must admit: the queries of a link come before its hello, and a message
may name any sender, so this goes by the number that the network gives a link. Owns when messages
leave: frames at the end of each tick of the loop, a beacon once a second, and progress messages
soon after something was published. Must not know how bytes travel.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from aiobus.discovery import is_observer
from aiobus.history import Page, Want
from aiobus.limits import MAX_QUERY
from aiobus.mesh import Driver
from aiobus.publisher import Publisher, Stream
from aiobus.query import Query, parse_query
from aiobus.wire import PROGRESS, PeerId, WireError

__all__ = ["MAX_JUNK", "MAX_NAMED", "MAX_VAIN", "Askers", "Fanout", "Link"]

Link = int | None
"""The number of a link; None where it is not known."""
MAX_NAMED = 1_024
"""Refused queries that one answer names, and that are tried again when one is asked for."""
MAX_BYTES = 8 * 1024 * 1024
"""Of all refused queries that are remembered: some 60,000. ZeroMQ itself holds more of each."""
OVERHEAD = 128
MAX_JUNK = 1_024
"""Subscriptions of one link that no member has: what is no query, and the hellos of others. ZeroMQ
keeps each of them, at 50 bytes a character that no other topic shares.
"""
MAX_VAIN = 32_768
"""Queries that one link asks for and is refused."""
MAX_REASON = 200
MAX_LINKS = 4_096


class Askers:
    """The bus that has said hello on each link, and which of its queries are not served."""

    def __init__(self) -> None:
        self._who: dict[Link, PeerId] = {}
        self._refused: dict[Link, dict[bytes, str]] = {}
        self._uncounted: set[Link] = set()
        """Links of which more was refused than is remembered."""
        self._junk: dict[Link, int] = {}
        self._vain: dict[Link, int] = {}
        self._bytes = 0

    def __contains__(self, link: Link) -> bool:
        """True when a hello has come on this link."""
        return link in self._who

    def is_from(self, link: Link, who: PeerId) -> bool:
        """True when `who` has said hello on this link, and so has sent its queries before."""
        return self._who.get(link) == who

    def who(self, link: Link) -> PeerId | None:
        """The bus that has said hello on this link."""
        return self._who.get(link)

    def hello(self, link: Link, who: PeerId) -> list[Link]:
        """`who` is at the other end of `link`; return the links on which it said so before."""
        before = [each for each, other in self._who.items() if other == who and each != link]
        if self._who.pop(link, who) != who:
            self._junk[link] = self._junk.get(link, 0) + 1
        self._who[link] = who
        if len(self._who) > MAX_LINKS:
            del self._who[next(iter(self._who))]
        return before

    def observers(self) -> dict[Link, PeerId]:
        """The observers that have said hello, by link."""
        return {link: who for link, who in self._who.items() if is_observer(who.endpoint)}

    def withdraw(self, who: PeerId) -> list[Link]:
        """The last hello of `who` is gone; return the links that are gone with it."""
        gone = [link for link, other in self._who.items() if other == who]
        for link in gone:
            del self._who[link]
            for name in list(self._refused.get(link, ())):
                self.serve(link, name)
            self._refused.pop(link, None)
            self._uncounted.discard(link)
            self.renew(link)
        return gone

    def is_abusive(self, link: Link) -> bool:
        """True when more is asked for in vain on this link than any member asks for."""
        return self._junk.get(link, 0) > MAX_JUNK or self._vain.get(link, 0) > MAX_VAIN

    def renew(self, link: Link) -> None:
        """The link has ended, or is about to: count what is asked for in vain from 0."""
        self._junk.pop(link, None)
        self._vain.pop(link, None)

    def at(self, endpoint: str) -> PeerId | None:
        """The bus that says hello from this endpoint on some link; None if none does."""
        return next((who for who in self._who.values() if who.endpoint == endpoint), None)

    def refuse(self, link: Link, name: bytes, reason: str) -> None:
        """The topic `name` is not served to `link`."""
        if _query(name) is None:
            _count(self._junk, link)
            return  # a member asks for no such topic, so it misses nothing
        _count(self._vain, link)
        self.serve(link, name)
        refused = self._refused.setdefault(link, {})
        size = len(name) + OVERHEAD
        if self._bytes + size > MAX_BYTES:
            self._uncounted.add(link)
        else:
            self._bytes += size
            refused[name] = reason[:MAX_REASON]

    def serve(self, link: Link, name: bytes) -> None:
        """The topic is served to `link`, or was withdrawn. No error when it was not refused."""
        if self._refused.get(link, {}).pop(name, None) is not None:
            self._bytes -= len(name) + OVERHEAD

    def close(self, name: bytes, link: Link) -> None:
        """No link asks for this topic any more. `link` withdrew it; None: the last link died."""
        for each in list(self._refused):
            was_refused = name in self._refused[each]
            self.serve(each, name)
            # Of a link without a hello nothing but the end of its last topic tells that it died.
            # One that has said hello lives until that is gone: what died is another link.
            has_died = link is None and was_refused and each not in self._who
            if not self._refused[each] and (has_died or each not in self._uncounted):
                del self._refused[each]
                self._uncounted.discard(each)

    def some(self, link: Link) -> list[bytes]:
        """Topics that `link` is refused, at most `MAX_NAMED`; each time those that had to wait."""
        refused = self._refused.get(link, {})
        names = list(islice(refused, MAX_NAMED))
        if len(names) < len(refused):
            for name in names:
                refused[name] = refused.pop(name)
        return names

    def refused(self, link: Link) -> tuple[bool, dict[str, str]] | None:
        """Whether all refused queries are named, and the reason of each; None: all are served."""
        refused = self._refused.get(link, {})
        if not refused and link not in self._uncounted:
            return None
        named = {_query(name) or "": reason for name, reason in islice(refused.items(), MAX_NAMED)}
        return len(refused) <= MAX_NAMED and link not in self._uncounted, named

    def lacking(self) -> Iterator[tuple[str, list[str], bool]]:
        """Each bus that is refused something: its name, some queries, and whether those are all. No
        observer is among them.
        """
        for link, who in self._who.items():
            if not is_observer(who.endpoint) and (refused := self.refused(link)) is not None:
                is_all, named = refused
                yield who.name, list(named), is_all


def _count(counts: dict[Link, int], link: Link) -> None:
    """One more of a link. The end of a link that never said hello is not told, so the one that was
    counted first is forgotten beyond a bound.
    """
    counts[link] = counts.get(link, 0) + 1
    if len(counts) > MAX_LINKS:
        del counts[next(iter(counts))]


def _query(name: bytes) -> str | None:
    """The text of the query that a topic stands for; None when no query has such a topic."""
    text = name.removeprefix(PROGRESS)
    if not 2 <= len(text) <= MAX_QUERY + 1 or text.find(b"\0") != len(text) - 1:
        return None
    try:
        return None if text.startswith(b"~") else text[:-1].decode()
    except UnicodeDecodeError:
        return None


MAX_STREAMS = 32_768
"""Distinct queries served. Each costs some 2 KB here, and a peer may ask for anything."""
MAX_OF_LINK = 8_192
"""Of these, those that one link has opened, so that one peer leaves the others theirs."""
PAGE_EVENTS = 1024
SLICE = 32
BEACON_SECONDS = 0.8
"""Beacons leave in slices, spread over this time: 5,000 at once would hold up the loop, and fill
the queues of ZeroMQ, which then drops the last of them, every time.
"""
PROGRESS_SECONDS = 0.05
"""Interval of the progress messages of a query: lagging subscribers learn soon what was published,
and other processes on the same core are not disturbed.
"""
LOOKS = 256
"""Queries looked at each time: what a peer asks for by the thousand costs others no more."""


class Fanout:
    """The streams of one publisher. `send` takes a message and never waits."""

    def __init__(self, publisher: Publisher, send: Callable[[bytes], None], driver: Driver) -> None:
        self._publisher = publisher
        self._send = send
        self._driver = driver
        self._streams: dict[bytes, Stream] = {}
        self._joining: list[Stream] = []
        self._beacons: Iterator[Stream] | None = None
        self._pause = 0.0
        """Seconds between two slices of the beacons."""
        self._confirmed: dict[bytes, int] = {}
        self.doubts = 0
        """How often that was doubted."""
        self._owners: dict[bytes, Link] = {}
        self._opened: dict[Link, dict[bytes, None]] = {}
        """The streams that each link was the first to ask for."""
        self._progress: dict[bytes, int] = {}
        """Topics whose progress is subscribed to, and the seq that was sent last as such."""
        self._is_scheduled = False

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, name: bytes, query: Query, link: Link = None) -> None:
        """Serve a query from now on: frames, or progress, as its `name` says. Raises WireError
        when there are too many already, in all or of this link.
        """
        if reason := self.refusal(name, link):
            raise WireError(reason)
        topic = name.removeprefix(PROGRESS)
        if topic not in self._streams:
            self._begin(topic, query, link)
        if topic == name:
            self._streams[topic].is_live = True
        else:
            # At once: it says where a new stream begins, and of an old one what was published while
            # this was on its way, when ZeroMQ was already leaving out the frames.
            if not self._is_scheduled:
                self._schedule_progress()
            self._send_progress_of(topic)

    def refusal(self, name: bytes, link: Link) -> str:
        """Why `open` would raise for this topic on this link; "" if it would not."""
        if name.removeprefix(PROGRESS) in self._streams:
            return ""
        if len(self._streams) >= MAX_STREAMS:
            return f"{MAX_STREAMS} queries are served already"
        if link is not None and len(self._opened.get(link, ())) >= MAX_OF_LINK:
            return f"{MAX_OF_LINK} queries of one peer are served already"
        return ""

    def _begin(self, topic: bytes, query: Query, link: Link) -> None:
        self._charge(topic, link)
        publisher = self._publisher
        source = (publisher.name, publisher.epoch)
        stream = Stream(query, topic, source, publisher.public_seq, self._send, self._join)
        stream.is_live = False
        self._streams[topic] = stream
        # What was published before may be owed as well: to a peer whose link was cut meanwhile.
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
        """No link asks for the topic `name` any more. No error if none did."""
        topic = name.removeprefix(PROGRESS)
        if (stream := self._streams.get(topic)) is None:
            return
        if topic == name:
            stream.is_live = False
        else:
            self._progress.pop(topic, None)
        if not stream.is_live and topic not in self._progress:
            self._end(stream)

    def _end(self, stream: Stream) -> None:
        if stream in self._joining:
            self._joining.remove(stream)  # else it sends behind its successor on this topic
        self._publisher.detach(stream)
        del self._streams[stream.topic]
        del self._confirmed[stream.topic]
        link = self._owners.pop(stream.topic)
        del self._opened[link][stream.topic]
        if not self._opened[link]:
            del self._opened[link]

    def close_all(self) -> None:
        """Serve no query any more."""
        self._beacons = None
        self._progress.clear()
        for stream in list(self._streams.values()):
            self._end(stream)

    def _join(self, stream: Stream) -> None:
        if not self._joining:
            self._driver.soon(self._end_tick)
        self._joining.append(stream)

    def _end_tick(self) -> None:
        try:
            self._joining = [stream for stream in self._joining if stream.end_tick()]
        finally:  # also if one could not send: else the others would never send again
            if self._joining:
                self._driver.soon(self._end_tick)

    def flush(self) -> None:
        """Send what waits for the end of the tick."""
        for stream in self._joining:
            stream.flush()

    def is_owed(self, text: str) -> bool:
        """True when something may have been published that this query matches."""
        try:
            query = parse_query(text)
        except ValueError:
            return False  # no event matches what is no query
        page = self._publisher.history.page(query, 0, 1)
        return bool(page.rows or page.evicted or page.to < page.newest)

    def page(self, topic: bytes, query: Query, want: Want, limit: int) -> Page:
        """A page of a query. What waits on its stream is sent first: the page says `newest`."""
        stream = self._streams.get(topic)
        if stream is not None:
            stream.flush()
        page = self._publisher.history.answer(query, want, min(limit, PAGE_EVENTS))
        # The newest events may be system events, which no other bus may have. With their numbers
        # this bus would seem to go back to what its heartbeats say.
        most = self._publisher.public_seq
        after, to = min(page.after, most), min(page.to, most)
        return replace(page, after=after, to=to, newest=min(page.newest, most))

    def beacons(self) -> None:
        """Say on every stream what was sent last, within the second that follows."""
        if self._beacons is None and self._streams:
            self._beacons = iter(list(self._streams.values()))
            self._pause = BEACON_SECONDS * SLICE / len(self._streams)
            self._send_beacons()

    def _send_beacons(self) -> None:
        some = [] if self._beacons is None else list(islice(self._beacons, SLICE))
        for stream in some:
            if self._streams.get(stream.topic) is stream:
                self.beacon(stream.topic)
        if len(some) == SLICE:
            self._driver.later(self._pause, self._send_beacons)
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
            if topic in self._progress:
                self._send_progress_of(topic)

    def _schedule_progress(self) -> None:
        self._is_scheduled = True
        self._driver.later(PROGRESS_SECONDS, self._send_progress)

    def _send_progress(self) -> None:
        self._is_scheduled = False
        if not self._progress:
            return
        self._schedule_progress()  # first: else none is sent again if one could not be
        sent = 0
        for topic in list(islice(self._progress, LOOKS)):
            seq = self._progress.pop(topic)
            self._progress[topic] = seq  # it goes behind the others
            if self._streams[topic].newest > seq:
                self._send_progress_of(topic)
                sent += 1
            if sent == SLICE:
                break

    def _send_progress_of(self, topic: bytes) -> None:
        stream = self._streams[topic]
        self._progress[topic] = stream.newest
        stream.send_progress()

    def serves(self, type: str) -> bool:
        """True when a query that others have asked for may match events of this type."""
        return any(each.query.matches_type(type) for each in self._streams.values())

    def of_type(self, type: str) -> dict[str, int]:
        """The seq that was sent last, by query, where the query may match events of this type."""
        streams = self._streams.values()
        found = [each for each in streams if each.query.matches_type(type)]
        for each in found:
            each.flush()
        return {each.query.text: each.sent for each in found}

    def sent(self) -> dict[str, int]:
        """The seq that was sent last, by query."""
        self.flush()
        return {each.query.text: each.sent for each in self._streams.values()}

    def owed(self) -> dict[bytes, int]:
        """The seq that was sent last, by topic, where that was not confirmed yet."""
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
        """Every peer has all of this."""
        for topic, seq in owed.items():
            if topic in self._confirmed:
                self._confirmed[topic] = max(self._confirmed[topic], seq)
