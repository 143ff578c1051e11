"""Questions of others that are not answered yet.

Owns their bound and their order: so many of each link, and one of each link in turn. An asker
without a pause then costs itself the most. Pure; must not know when a question is answered.
"""

from aiobus.transport.askers import Link
from aiobus.wire import Ask, PageAsk, Who, WireError

__all__ = ["MAX_ASKS", "MAX_PAGES", "Owed"]

MAX_PAGES = 256
"""Questions for pages of one link. A bus has 32 under way to one source, and those it repeats."""
MAX_ASKS = 8_192
"""Questions of one link whether its queries are live: one for each subscription that is awaited."""


class Owed:
    """The questions of one sign that are under way: read, and not answered yet. At most `most` of
    each link.
    """

    def __init__(self, sign: str, most: int) -> None:
        self._begin = b'["%b"' % sign.encode()
        self._most = most
        self._links: dict[Link, dict[tuple[int, Who], tuple[bytes, Ask | PageAsk]]] = {}
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
        """To be answered. Of several questions with one number, the last counts. Raises WireError
        for one too many; an asker repeats what it still wants to know.
        """
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
