"""`bus.wait_for_peer`: wait until a bus is there and subscribes to what is about to be published.

Owns when a wait is over, and the words for what it lacks. Must not know how peers are linked
(`transport`), nor what they have told of themselves (`presence`).
"""

import asyncio
import logging
from contextvars import Context

from aiobus.errors import BusClosed, PeerTimeout
from aiobus.lifecycle import Lifecycle, State
from aiobus.presence import Peer, patterns_of
from aiobus.publisher import Publisher
from aiobus.query import EVERY_TYPE, Query
from aiobus.subscriber import Subscriber
from aiobus.transport import Transport

__all__ = ["Attendance"]

NOTICE_SECONDS = 5.0
"""A wait that takes so long is told in the log, once, with what it lacks."""
MAX_NAMED = 16
"""Peers that a text names."""
MAX_PATTERNS = 8
"""Patterns that a text names of each."""

log = logging.getLogger("aiobus.bus")


class Attendance:
    """The waits of one bus for others."""

    def __init__(
        self,
        life: Lifecycle,
        publisher: Publisher,
        subscriptions: Subscriber,
        transport: Transport,
    ) -> None:
        self._life = life
        self._publisher = publisher
        self._subscriptions = subscriptions
        self._transport = transport
        self.since = 0.0
        """When this bus started, in Unix seconds."""

    async def wait(self, name: str, query: Query | None, timeout: float | None) -> Peer:
        """See `AsyncEventBus.wait_for_peer`."""
        limit, loop = asyncio.timeout(timeout), asyncio.get_running_loop()
        notice = None
        if timeout is None or timeout > NOTICE_SECONDS:
            notice = loop.call_later(NOTICE_SECONDS, self._say, name, query, context=Context())
        try:
            async with limit:
                if self._is_own(name):
                    return await self._until_own(query)
                return await self._transport.until_peer(name, query)
        except TimeoutError:
            if timeout is None or not limit.expired():
                raise
            there = {each.name: [*each.subscribed] for each in self._transport.peers}
            wanted = "" if query is None else str(query)
            raise PeerTimeout(name, wanted, timeout, self._lack(name, query), there) from None
        finally:
            if notice is not None:
                notice.cancel()

    def said(self) -> str:
        """Who is there, behind "started on ..."; "" if there cannot be others."""
        if self._transport.is_alone:
            return ""
        names = [each.name for each in self._transport.peers if not each.observer]
        if not names:
            return "; nobody else is there yet"
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        verb = "is" if len(names) == 1 else "are"
        return f"; {', '.join(names[:MAX_NAMED])}{more} {verb} there"

    def _is_own(self, name: str) -> bool:
        """True if this bus itself is meant."""
        return name == self._publisher.name or self._transport.is_alone

    async def _until_own(self, query: Query | None) -> Peer:
        """Wait until this bus itself has subscribed to `query`."""
        while self._life.state is not State.CLOSED:
            own = self._own()
            if query is None or own.covers(query):
                return own
            await self._subscriptions.changed.wait()
        raise BusClosed(
            f"{self._publisher.name} closed while a subscription to {query} was awaited"
        )

    def _own(self) -> Peer:
        """This bus as others see it."""
        who, told = self._publisher, patterns_of(each.options.query for each in self._subscriptions)
        return Peer(who.name, who.epoch, self.since, who.public_seq, 0.0, told)

    def _say(self, name: str, query: Query | None) -> None:
        log.warning("%s waits for %s: %s", self._publisher.name, name, self._lack(name, query))

    def _lack(self, name: str, query: Query | None) -> str:
        """What a wait still lacks, in a sentence."""
        peers = self._transport.peers
        if query is not None and self._is_own(name):
            own, is_alone = self._own(), self._transport.is_alone
            here = f"{self._publisher.name}, which has no peers," if is_alone else "this bus"
            return f"{here} subscribes to {_said(own)}, not to {query}{_hint(own, query)}"
        peer = next((each for each in peers if each.name == name), None)
        if peer is None:
            others = [f"{each.name} (subscribes to {_said(each)})" for each in peers[:MAX_NAMED]]
            more = f" and {len(peers) - MAX_NAMED} more" if len(peers) > MAX_NAMED else ""
            text = f"there is no bus {name!r}, but {', '.join(others)}{more}"
            if not peers:
                text = f"there is no bus {name!r}, and no other one"
            if unreached := self._transport.unreached:
                text += f"; {', '.join(unreached)} does not answer, so there may be more"
            return text
        if query is not None and not peer.covers(query):
            wanted = f"{query}{_hint(peer, query)}"
            return f"{name} is there and subscribes to {_said(peer)}, not to {wanted}"
        return f"{name} is there, and does not answer: it was last heard {peer.silent:.1f} s ago"


def _said(peer: Peer) -> str:
    """What a peer subscribes to, for people."""
    some, more = peer.subscribed[:MAX_PATTERNS], len(peer.subscribed) - MAX_PATTERNS
    return " ".join([*some, *([f"and {more} more"] if more > 0 else [])]) or "nothing"


def _hint(peer: Peer, query: Query) -> str:
    """Why what a peer subscribes to is not enough, if that is easily overlooked."""
    if query.every:
        return ""
    if EVERY_TYPE in peer.subscribed:
        return "; its `*` is a monitor's, and counts for subscribed='*' alone"
    wanted = tuple(f"{type}/" for type in query.types)
    if any(pattern.startswith(wanted) for pattern in peer.subscribed):
        return " with every key" if not query.rules else " with all of these keys"
    return ""
