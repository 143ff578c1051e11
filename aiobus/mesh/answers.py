"""Service to subscribers: their queries served or refused, answers, and pages.

Owns what it says of itself to each link, and the questions that wait for an answer, with their
bound and their order: so many of each link, and one of each link in turn. An asker without a pause
then costs itself the most. Must not know who is linked (`links`), nor when a question is answered
(`session`).
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from aiobus import clock
from aiobus.clock import elapsed
from aiobus.history import Want
from aiobus.keeper.kept import Presence
from aiobus.keyring.members import Rules
from aiobus.mesh.fanout import PAGE_EVENTS, Askers, Fanout, Link
from aiobus.publisher import Publisher
from aiobus.query import Query, parse_query
from aiobus.wire import (
    Answer,
    Ask,
    Options,
    PageAsk,
    PeerId,
    Refusal,
    WireError,
    mail,
    page,
    parse_topic,
    topic,
)

__all__ = ["MAX_ASKS", "MAX_PAGES", "Answers", "Owed"]

MAX_PAGES = 256
"""Questions for pages of one link. A bus has 32 under way to one source, and those it repeats."""
MAX_ASKS = 8_192
"""Questions of one link whether its queries are live: one for each subscription that is awaited."""


class Owed:
    """The questions of one sign that are not answered yet, at most `most` of each link."""

    def __init__(self, sign: str, most: int) -> None:
        self._begin = b'["%b"' % sign.encode()
        self._most = most
        self._links: dict[Link, dict[tuple[int, PeerId], tuple[bytes, Ask | PageAsk]]] = {}
        self._messages: dict[Link, set[bytes]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._links.values()))

    def leaves(self, link: Link, message: bytes) -> bool:
        """True when this very question is under way. Raises WireError when it is seen to be one too
        many. It looks at the bytes alone: to read them takes ten times as long.
        """
        messages = self._messages.get(link, ())
        if message in messages:
            return True
        if message.startswith(self._begin):
            self._check(len(messages))
        return False

    def put(self, link: Link, message: bytes, asked: Ask | PageAsk) -> None:
        """Keep a question; of one number, the last. Raises WireError for one too many."""
        waiting = self._links.setdefault(link, {})
        messages = self._messages.setdefault(link, set())
        key = (asked.nonce, asked.who)
        if key in waiting:
            messages.discard(waiting[key][0])
        self._check(len(messages))
        waiting[key] = (message, asked)
        messages.add(message)

    def _check(self, others: int) -> None:
        if others >= self._most:
            raise WireError(f"a question, {self._most} of its link wait already")

    def take(self) -> tuple[Link, Ask | PageAsk] | None:
        """The next question to be answered, of the link that has waited the longest."""
        if not self._links:
            return None
        link = next(iter(self._links))
        waiting = self._links.pop(link)
        message, asked = waiting.pop(next(iter(waiting)))
        self._messages[link].discard(message)
        if waiting:
            self._links[link] = waiting
        else:
            del self._messages[link]
        return link, asked

    def drop(self, link: Link) -> None:
        """The link is gone, and what it asked with it."""
        self._links.pop(link, None)
        self._messages.pop(link, None)


class Answers:
    """The answers of one bus. `send` takes a message and never waits."""

    def __init__(
        self, me: PeerId, publisher: Publisher, streams: Fanout, send: Callable[[bytes], None]
    ) -> None:
        self._me = me
        self._publisher = publisher
        self._streams = streams
        self._send = send
        self.born = elapsed()
        """When this bus started, in monotonic seconds of this process."""
        self.askers = Askers()
        self._asks = Owed("?", MAX_ASKS)
        self._pages = Owed("!", MAX_PAGES)

    # Subscriptions.

    def serve(self, name: bytes, link: Link) -> PeerId | None:
        """A topic is asked for on `link`: serve it, or return the bus that says hello with it.
        Raises WireError if it is refused, which the answers on this link say from then on.
        """
        try:
            asked = parse_topic(name)
            if isinstance(asked, PeerId):
                return asked
            if asked is not None:
                self._streams.open(name, asked, link)
                self.askers.serve(link, name)
        except WireError as error:
            self.askers.refuse(link, name, str(error))
            raise WireError(f"{error}: {name[:100]!r}") from None
        return None

    def greet(self, link: Link, who: PeerId) -> None:
        """`who` has said hello on `link`, behind all its queries."""
        for before in self.askers.hello(link, who):
            self._streams.recharge(before, link)

    def gives_up(self, link: Link) -> bool:
        """True, once, when a link asks for more in vain than any member does: it is to be ended."""
        if is_abusive := self.askers.is_abusive(link):
            self.askers.renew(link)
        return is_abusive

    def close(self, name: bytes, link: Link) -> None:
        """No link asks for a topic any more; `link` was the last."""
        self._streams.close(name)
        self.askers.close(name, link)

    def part(self, who: PeerId) -> PeerId | None:
        """Drop the questions of `who`. Returns another bus that says hello from its endpoint."""
        for link in self.askers.withdraw(who):
            self._asks.drop(link)
            self._pages.drop(link)
            self._streams.recharge(link, None)
        return self.askers.at(who.endpoint)

    def lacking(self) -> set[str]:
        """Names of the peers that were refused a query that a published event may match."""
        return {
            name
            for name, queries, is_all in self.askers.lacking()
            if any(map(self._streams.is_owed, queries)) or (not is_all and self._streams.newest)
        }

    # Questions.

    def leaves(self, link: Link, message: bytes) -> bool:
        """True if a question need not be read: no hello came on its link, or it is under way
        already. Raises WireError for one too many.
        """
        if link not in self.askers:
            return True
        return self._asks.leaves(link, message) or self._pages.leaves(link, message)

    def tell(self, asked: Ask, link: Link, known: Options, rules: Rules, *, is_open: bool) -> None:
        """Answer whether the queries of a link are live here, and what is `known` of the asker."""
        for name in self.askers.some(link):
            with suppress(WireError):
                query = parse_topic(name)
                is_allowed = isinstance(query, Query) and rules.may_subscribe(query)
                if is_allowed and not self._streams.refusal(name, link):
                    self.serve(name, link)  # less is asked for than before
        self._streams.flush()  # so that what was published before is received before
        age, seq, numbered = elapsed() - self.born, self._publisher.public_seq, self._publisher.seq
        fields = (asked.nonce, self._me, age, seq, is_open)
        refused = self.askers.refused(link)
        mine, theirs = self._publisher.options, asked.options
        # A peer that knows another start is told whether that is one of this journal.
        is_other = (theirs.known_start, theirs.known_begin) != (mine.start, mine.begin)
        is_told = is_other and theirs.known_epoch == self._me.epoch
        options = replace(
            mine,
            begins=mine.begins if is_told else (),
            known_epoch=known.known_epoch,
            known_start=known.known_start,
            known_begin=known.known_begin,
            known_seq=known.known_seq,
            numbered=numbered if mine.journaled and numbered > seq else 0,
            clock=round(clock.time() * 1e6),
            members=known.members,
            members_digest=known.members_digest,
        )
        if refused is None:
            reply = Answer(*fields, options=options)
        else:
            reply = Refusal(*fields, *refused, options=options)
        self._send(mail(asked.who, reply))

    def put(self, asked: Ask | PageAsk, link: Link, message: bytes) -> None:
        """A question is to be answered. Raises WireError for one too many of its link."""
        (self._pages if isinstance(asked, PageAsk) else self._asks).put(link, message, asked)

    @property
    def is_asked(self) -> bool:
        """True while a question waits for its answer."""
        return bool(self._asks or self._pages)

    def next(self) -> Iterator[tuple[Link, Ask | PageAsk]]:
        """The next question of each kind, of the link that has waited the longest."""
        for owed in (self._asks, self._pages):
            if (found := owed.take()) is not None:
                yield found

    def send_page(self, asked: PageAsk, presence: Presence) -> bool:
        """Answer with a page. Raises WireError if what is asked for is no query. False if this is
        the bus of a keeper that cannot tell now: the asker asks again.
        """
        try:
            query = parse_query(asked.query)
        except ValueError as error:
            raise WireError(f"a page is asked of no query: {error}") from None
        want = Want(asked.after, asked.since, asked.upto)
        kept, told, limit = self._publisher.kept, None, min(asked.limit, PAGE_EVENTS)
        if kept is not None and (want.since == "last" or want.upto):
            told = kept.told(query, presence, 0 if want.since else want.after, limit)
            if told is None:
                return False
        found = self._streams.page(topic(asked.query), query, want, asked.limit)
        if told is not None:
            found = told.on(found, want, limit)
        rows = [row for _, _, row in found.rows]
        where = (found.after, found.evicted, found.to, found.newest)
        me = (self._me.name, self._me.epoch, self._publisher.options.begin)
        self._send(page(asked.who, asked.nonce, *me, *where, found.reached, rows))
        return True
