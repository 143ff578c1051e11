"""The buses that listen to this one, by the link that each came on: who it is, what it is refused.

Owns what an answer to `?` must admit. The queries of a link come before its hello, and a message
may name any sender, so all of this goes by the number that the network gives a link. Pure.
"""

from collections.abc import Iterator
from itertools import islice

from aiobus.pattern import MAX_QUERY
from aiobus.wire import QUIET, Who

__all__ = ["MAX_JUNK", "MAX_NAMED", "MAX_VAIN", "Askers", "Link"]

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
    """Who has said hello on which link, and which of its queries are not served."""

    def __init__(self) -> None:
        self._who: dict[Link, Who] = {}
        self._refused: dict[Link, dict[bytes, str]] = {}
        self._uncounted: set[Link] = set()
        """Links of which more was refused than is remembered."""
        self._junk: dict[Link, int] = {}
        self._vain: dict[Link, int] = {}
        self._bytes = 0

    def __contains__(self, link: Link) -> bool:
        """True when a hello has come on this link."""
        return link in self._who

    def is_from(self, link: Link, who: Who) -> bool:
        """True when `who` has said hello on this link, and so has sent its queries before."""
        return self._who.get(link) == who

    def who(self, link: Link) -> Who | None:
        """The bus that has said hello on this link."""
        return self._who.get(link)

    def hello(self, link: Link, who: Who) -> list[Link]:
        """`who` is at the other end of `link`; return the links on which it said so before."""
        before = [each for each, other in self._who.items() if other == who and each != link]
        if self._who.pop(link, who) != who:
            self._junk[link] = self._junk.get(link, 0) + 1
        self._who[link] = who
        if len(self._who) > MAX_LINKS:
            del self._who[next(iter(self._who))]
        return before

    def withdraw(self, who: Who) -> list[Link]:
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

    def at(self, endpoint: str) -> Who | None:
        """Who says hello from this endpoint on some link; None when nobody does."""
        return next((who for who in self._who.values() if who.endpoint == endpoint), None)

    def refuse(self, link: Link, name: bytes, reason: str) -> None:
        """The topic `name` is not served to `link`."""
        if _query(name) is None:
            self._junk[link] = self._junk.get(link, 0) + 1
            return  # a member asks for no such topic, so it misses nothing
        self._vain[link] = self._vain.get(link, 0) + 1
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
        """Why which queries of `link` are not served, and whether those are all; None: all are
        served.
        """
        refused = self._refused.get(link, {})
        if not refused and link not in self._uncounted:
            return None
        named = {_query(name) or "": reason for name, reason in islice(refused.items(), MAX_NAMED)}
        return len(refused) <= MAX_NAMED and link not in self._uncounted, named

    def lacking(self) -> Iterator[tuple[str, list[str], bool]]:
        """Each bus that is refused something: its name, some queries, and whether those are all."""
        for link, who in self._who.items():
            if (refused := self.refused(link)) is not None:
                is_all, named = refused
                yield who.name, list(named), is_all


def _query(name: bytes) -> str | None:
    """The text of the query that a topic stands for; None when no query has such a topic."""
    text = name.removeprefix(QUIET)
    if not 2 <= len(text) <= MAX_QUERY + 1 or text.find(b"\0") != len(text) - 1:
        return None
    try:
        return None if text.startswith(b"~") else text[:-1].decode()
    except UnicodeDecodeError:
        return None
