"""What a bus says when something goes wrong: a line in the log, and a system event for those
who subscribe to it.

Owns the wording, the rate of repeated lines and the payloads of `aiobus.*` events. Must not decide
anything: others find the trouble, count it and go on. Reporting itself never fails.
"""

import asyncio
import logging
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from aiobus.errors import BusError, EncodeError
from aiobus.event import Event
from aiobus.publisher import Publisher
from aiobus.query import RESERVED
from aiobus.rows import Source
from aiobus.sequence import Gap
from aiobus.sync import LoopWatch

__all__ = [
    "ERROR",
    "FRESH",
    "GAP",
    "JOINED",
    "LEFT",
    "LEFT_BEHIND",
    "OVERFLOW",
    "STALE",
    "UNREACHED",
    "Diagnostics",
]

GAP = "aiobus.gap"
JOINED = "aiobus.peer_joined"
LEFT = "aiobus.peer_left"
STALE = "aiobus.stale"
FRESH = "aiobus.fresh"
UNREACHED = "aiobus.unreached"
ERROR = "aiobus.error"
OVERFLOW = "aiobus.overflow"
LEFT_BEHIND = "aiobus.left_behind"

REPEAT_SECONDS = 1.0
MAX_TEXT = 8_000
"""Characters of an error or traceback in an event: the log has the whole of it."""

log = logging.getLogger("aiobus.diagnostics")


@dataclass(slots=True)
class ThrottledLine:
    """A line that is not repeated for a while, and how often it would have been."""

    level: int
    timer: asyncio.TimerHandle
    count: int = 0
    last: str = ""
    """The text that was left out last, which may have another name or figure than the first."""


class Diagnostics:
    """The voice of one bus. Nothing here waits or raises; `raising` is given each failure when the
    bus was made with on_error="raise", and `ending` is given what ends the bus.
    """

    def __init__(
        self,
        publisher: Publisher,
        raising: Callable[[BaseException], None] | None,
        ending: Callable[[BusError], None],
    ) -> None:
        self._publisher = publisher
        self._raising = raising
        self._ending = ending
        self._is_closed = self._is_hushed = False
        self._held: dict[str, ThrottledLine] = {}
        self.watch = LoopWatch(lambda text: self.trouble(text, text))

    def failure(self, subscription: str, type: str, event_id: str, error: BaseException) -> None:
        """A callback or a `where` raised on an event.

        The same kind of error from the same line again: one line a second with a count, and its
        events come without the traceback.
        """
        topic = f"{subscription} failed with {_place(error)}"
        text = f"{subscription} failed on {type} {event_id}"
        is_first = self._say(logging.ERROR, topic, text, error)
        if not type.startswith(RESERVED):
            lines = traceback.format_exception(error) if is_first else []
            data = {
                "subscription": subscription,
                "event": event_id,
                "error": _clean(_text(error)),
                "traceback": _clean("".join(lines)[-MAX_TEXT:]),
            }
            self.announce(ERROR, data, event_id)
        if self._raising is not None:
            if isinstance(error, asyncio.CancelledError):
                # Bare, it would look to a TaskGroup as if the bus was ended on purpose.
                cause, error = error, BusError(f"{text}: {_text(error)}")
                error.__cause__ = cause
            self._raising(error)

    def overflow(self, subscription: str, policy: str, dropped: int) -> None:
        """Events are being thrown away; said when an episode begins. `dropped` counts since the
        subscription was made.
        """
        topic = f"{subscription} drops events ({policy})"
        self._say(logging.WARNING, topic, f"{topic}: {dropped} so far, see stats()")
        data = {"subscription": subscription, "dropped": dropped, "policy": policy}
        self.announce(OVERFLOW, data, "")

    def behind(self, subscription: str, maxsize: int) -> None:
        """An inbox is full; its subscription catches up from history, nothing is lost so far."""
        topic = f"{subscription} fell behind"
        text = f"{topic}: its inbox of {maxsize} is full, it catches up from history"
        self._say(logging.WARNING, topic, text)

    def gap(self, subscription: str, query: str, source: Source, gap: Gap) -> Event[Any]:
        """Events are lost. Returns the event for the subscription's own inbox; who watches system
        events only gets one as well.
        """
        name, epoch = source
        data = {
            "subscription": subscription,
            "source": name,
            "epoch": epoch,
            "after": gap.after,
            "upto": gap.upto,
            "query": query,
            "reason": gap.reason,
        }
        topic = f"{subscription} lost events of {name}"
        self._say(logging.WARNING, topic, f"{topic}: ({gap.after}, {gap.upto}], {gap.reason}")
        self.announce(GAP, data, "")
        return Event(GAP, dict(data), source=self._publisher.name, epoch=self._publisher.epoch)

    def peer_joined(self, name: str, epoch: int) -> None:
        """A peer is linked: its queries are live here and ours there."""
        log.info("%s joined", name)
        self.announce(JOINED, {"name": name, "epoch": epoch}, "")

    def peer_left(self, name: str, epoch: int, last: int, reason: str) -> None:
        """A peer is gone; it was heard of up to its seq `last`, by events or heartbeats."""
        log.info("%s left: %s", name, reason)
        data = {"name": name, "epoch": epoch, "last": last, "reason": reason}
        self.announce(LEFT, data, "")

    def stale(self, name: str, epoch: int, last: int) -> None:
        """A peer has been silent for seconds."""
        self._say(logging.WARNING, f"{name} is silent", f"{name} is silent since its seq {last}")
        self.announce(STALE, {"name": name, "epoch": epoch, "last": last}, "")

    def fresh(self, name: str, epoch: int, last: int, silent: float) -> None:
        """A peer that was announced as stale is heard again, after `silent` seconds."""
        text = f"{name} is heard again after {silent:.1f} s of silence"
        self._say(logging.WARNING, f"{name} is heard again", text)
        self.announce(FRESH, {"name": name, "epoch": epoch, "last": last, "silent": silent}, "")

    def left_behind(self, reader: str, type: str, after: int, seconds: int) -> None:
        """A reader has taken in nothing for so many seconds while `publish` waited for it."""
        topic = f"{reader} is left behind"
        text = (
            f"{topic}: {type} after seq {after} is not confirmed, and nothing was for {seconds} s"
        )
        self._say(logging.WARNING, topic, text)
        self.announce(LEFT_BEHIND, {"reader": reader, "type": type, "after": after}, "")

    def unreached(self, addresses: Collection[str]) -> None:
        """The set of rendezvous addresses that do not answer has changed."""
        if addresses:
            text = f"{self._publisher.name} may be alone: no answer from {', '.join(addresses)}"
            self._say(logging.WARNING, text, text)
        else:
            log.info("every rendezvous address answers %s", self._publisher.name)
        self.announce(UNREACHED, {"addresses": [*addresses]}, "")

    def fail(self, error: BusError) -> None:
        """The bus may not go on."""
        log.error("%s ends: %s", self._publisher.name, error)
        self._ending(error)

    def trouble(self, topic: str, text: str) -> None:
        """Something is wrong that a user should read of; at most one line a second per `topic`."""
        self._say(logging.WARNING, topic, text)

    def announce(self, type: str, data: dict[str, Any], cause: str) -> None:
        """Publish a system event to this process, now or as soon as the event being handed out has
        been; not at all after `hush`.
        """
        event = Event(type, data, cause=cause)
        self._publisher.when_free(lambda: self._publish(event))

    def _publish(self, event: Event[Any]) -> None:
        if self._is_hushed:
            return
        try:
            self._publisher.publish(event, is_own=True)
        except EncodeError as error:  # a very small Limits.event_bytes
            log.error("%s could not be announced: %s", event.type, error)

    def _say(self, level: int, topic: str, text: str, error: BaseException | None = None) -> bool:
        """Log `text`, unless the same `topic` was logged within the last second: then count it."""
        if topic in self._held:
            held = self._held[topic]
            held.count += 1
            held.last = text
            return False
        log.log(level, "%s", text, exc_info=error)
        if not self._is_closed:
            self._hold(level, topic)
        return True

    def _hold(self, level: int, topic: str) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(REPEAT_SECONDS, self._sum_up, topic)
        self._held[topic] = ThrottledLine(level, timer)

    def _sum_up(self, topic: str) -> None:
        held = self._held.pop(topic)
        held.timer.cancel()
        if held.count:
            last = held.last.removeprefix(topic).lstrip(":, ")
            tail = f", last: {last}" if last else ""
            log.log(held.level, "%s: %d more times%s", topic, held.count, tail)
            if not self._is_closed:
                self._hold(held.level, topic)

    def hush(self) -> None:
        """The bus ends: announce nothing more, or the end of a peer that ends just then would come
        when no handler takes it. What goes wrong is still logged.
        """
        self._is_hushed = True

    def leave_process(self) -> None:
        """This process is a forked child: from now on only log, at once. What was held back is its
        parent's to say.
        """
        self._is_closed = self._is_hushed = True
        for held in self._held.values():
            held.timer.cancel()
        self._held.clear()

    def close(self) -> None:
        """Say what was held back; from now on only log, at once."""
        self._is_closed = self._is_hushed = True
        for topic in list(self._held):
            self._sum_up(topic)


def _place(error: BaseException) -> str:
    """The kind of error and the line it came from; not its text, which may differ each time."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f" ({frame.tb_frame.f_code.co_filename}:{frame.tb_lineno})" if frame else ""
    return type(error).__name__ + where


def _text(error: BaseException) -> str:
    try:
        return repr(error)[:MAX_TEXT]
    except Exception:  # noqa: BLE001 - a user's __repr__, and reporting must not fail
        return f"{type(error).__name__} whose repr() failed"


def _clean(text: str) -> str:
    """`text` without what UTF-8 cannot say."""
    return text.encode(errors="backslashreplace").decode()
