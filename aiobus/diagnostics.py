"""The reports of a bus: for each problem a line in the log, and a system event (`aiobus.*`).

Owns the wording, the rate of repeated lines and the data of system events. Must not decide
anything: other modules detect a problem, count it and go on. Reporting never fails.
"""

import asyncio
import logging
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from aiobus import system
from aiobus.errors import BusError, EncodeError, PayloadError
from aiobus.event import Event
from aiobus.limits import KEEPER
from aiobus.publisher import Publisher
from aiobus.query import RESERVED
from aiobus.rows import Source
from aiobus.sequence import EVICTED, UNKNOWN, Gap
from aiobus.sync import LoopWatch

__all__ = ["CLOSED", "Diagnostics"]

REPEAT_SECONDS = 1.0
CLOSED = "it closed"
"""Why a peer has left that was not lost."""
MAX_ADVISED = 1_024
"""Subscriptions that are remembered to have had their advice."""
MAX_NAMED = 16
"""Names in one line."""
MAX_TEXT = 8_000
"""Characters of an error or traceback in an event; the log has all of it."""

ADVICE = (
    '. It is slower than its events: give it overflow="latest" or a faster handler, or raise'
    " Limits.history_events of the source; `gaps` in stats() counts on"
)

log = logging.getLogger("aiobus.diagnostics")


def _nothing() -> None:
    """What follows from most system events."""


@dataclass(slots=True)
class ThrottledLine:
    """A line that was logged less than a second ago, and how often it was left out since."""

    level: int
    timer: asyncio.TimerHandle
    count: int = 0
    last: str = ""
    """The last text that was left out; its names and figures may differ from the first."""


class Diagnostics:
    """The reports of one bus. Nothing here waits or raises. With on_error="raise", `raising` is
    called with each failure of a handler. `ending` is called with an error that ends the bus.
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
        self.publish_own: Callable[[Event[Any], Callable[[], object]], object] = self._hand_out
        """Publishes a system event of the bus itself, and calls the second once it is handed out or
        cannot be.
        """
        self._held: dict[str, ThrottledLine] = {}
        self._advised: set[str] = set()
        """Subscriptions whose log has said what to do against loss."""
        self.aging: Callable[[], Collection[str]] = tuple
        """The names of the subscriptions with `max_age`."""
        self.watch = LoopWatch(lambda text: self.trouble(text, text))

    def failure(self, subscription: str, type: str, event_id: str, error: BaseException) -> None:
        """A callback or a `where` raised `error` on an event.

        If the same kind of error comes from the same line again, the log has one line a second with
        a count, and the system event has no traceback.
        """
        topic = f"{subscription} failed with {_place(error)}"
        text = f"{subscription} failed on {type} {event_id}"
        is_misfit = isinstance(error, PayloadError) and error.event == event_id
        if is_misfit:  # where it is raised tells nothing
            is_first = self._say(logging.ERROR, topic, f"{text}: {error}")
        else:
            is_first = self._say(logging.ERROR, topic, text, error)
        if not type.startswith(RESERVED):
            lines = traceback.format_exception(error) if is_first and not is_misfit else []
            data: system.Error = {
                "subscription": subscription,
                "event": event_id,
                "error": _clean(_text(error)),
                "traceback": _clean("".join(lines)[-MAX_TEXT:]),
            }
            self.announce(system.ERROR, data, event_id)
        if self._raising is not None:
            if isinstance(error, asyncio.CancelledError):
                # A TaskGroup ignores a bare CancelledError, as if the bus was ended on purpose.
                cause, error = error, BusError(f"{text}: {_text(error)}")
                error.__cause__ = cause
            self._raising(error)

    def overflow(self, subscription: str, policy: str, dropped: int) -> None:
        """A subscription begins to drop events. `dropped` counts since it was made."""
        topic = f"{subscription} drops events ({policy})"
        self._say(logging.WARNING, topic, f"{topic}: {dropped} so far, see stats()")
        data: system.Overflow = {"subscription": subscription, "dropped": dropped, "policy": policy}
        self.announce(system.OVERFLOW, data, "")

    def behind(self, subscription: str, maxsize: int) -> None:
        """An inbox is full: the subscription catches up from history, and nothing is lost yet."""
        topic = f"{subscription} fell behind"
        text = f"{topic}: its inbox of {maxsize} is full, it catches up from history"
        self._say(logging.WARNING, topic, text)

    def gap(self, subscription: str, query: str, source: Source, gap: Gap) -> Event[Any]:
        """Events are lost. Returns the `aiobus.gap` for the inbox of that subscription; another one
        is published to the subscriptions to system events alone.
        """
        name, epoch = source
        data: system.Gap = {
            "subscription": subscription,
            "source": name,
            "epoch": epoch,
            "after": gap.after,
            "upto": gap.upto,
            "query": query,
            "reason": gap.reason,
        }
        if gap.reason == UNKNOWN:
            self._say_unknown(name, gap)
        else:
            self._say_lost(subscription, name, gap)
        self.announce(system.GAP, data, "")
        return Event(
            system.GAP, dict(data), source=self._publisher.name, epoch=self._publisher.epoch
        )

    def _say_unknown(self, name: str, gap: Gap) -> None:
        """A line for all subscriptions, each of which has a gap of its own: maybe none has lost
        anything.
        """
        what = f"any event of it up to {gap.upto} is missing"
        text = f"{name} has left, and whether {what} is unknown"
        if text not in self._held:
            self._say(logging.WARNING, text, text)

    def _say_lost(self, subscription: str, name: str, gap: Gap) -> None:
        topic = f"{subscription} lost events of {name}"
        text = f"{topic}: ({gap.after}, {gap.upto}], {gap.reason}"
        is_slow = gap.reason == EVICTED and name != KEEPER
        is_advised = is_slow and subscription not in self._advised
        said = self._say(logging.WARNING, topic, text + ADVICE if is_advised else text)
        if said and is_advised and len(self._advised) < MAX_ADVISED:
            self._advised.add(subscription)

    def peer_joined(self, name: str, epoch: int) -> None:
        """A peer is linked: its queries are live here and those of this bus there."""
        log.info("%s joined", name)
        data: system.PeerJoined = {"name": name, "epoch": epoch}
        self.announce(system.PEER_JOINED, data, "")

    def peer_left(self, name: str, epoch: int, last: int, reason: str) -> None:
        """A peer is gone. `last` is its highest seq that an event or a heartbeat named."""
        log.log(logging.INFO if reason == CLOSED else logging.WARNING, "%s left: %s", name, reason)
        data: system.PeerLeft = {"name": name, "epoch": epoch, "last": last, "reason": reason}
        self.announce(system.PEER_LEFT, data, "")

    def refused(self, address: str, name: str, cause: str, count: int, text: str) -> None:
        """A link is not made, because of keys or of the version of the protocol."""
        log.warning("%s", text)
        data: system.Refused = {
            "address": address, "name": name, "cause": cause, "count": count, "text": text,
        }  # fmt: skip
        self.announce(system.REFUSED, data, "")

    def peer_restarted(
        self, name: str, epoch: int, start: int, last: int, then: Callable[[], object]
    ) -> None:
        """A peer that has a journal was away and goes on, as its start number `start`. `last` is
        the highest seq that was heard of before. `then` is called once the event is handed out, or
        cannot be.
        """
        log.info("%s was away, and goes on from its journal", name)
        data: system.PeerRestarted = {"name": name, "epoch": epoch, "start": start, "last": last}
        self.announce(system.PEER_RESTARTED, data, "", then)

    def stale(self, name: str, epoch: int, last: int) -> None:
        """A peer has sent nothing for seconds."""
        self._say(logging.WARNING, f"{name} is silent", f"{name} is silent since its seq {last}")
        data: system.Stale = {"name": name, "epoch": epoch, "last": last}
        self.announce(system.STALE, data, "")

    def fresh(self, name: str, epoch: int, last: int, silent: float) -> None:
        """A peer that was announced as stale is heard again, after `silent` seconds."""
        text = f"{name} is heard again after {silent:.1f} s of silence"
        self._say(logging.WARNING, f"{name} is heard again", text)
        data: system.Fresh = {"name": name, "epoch": epoch, "last": last, "silent": silent}
        self.announce(system.FRESH, data, "")

    def uncommitted(self, ids: Collection[str], error: BaseException) -> None:
        """Events were not committed to the journal, after nothing waited for them any more."""
        text = f"not in the journal, and not published: {', '.join(ids)}"
        self._say(logging.ERROR, "events are not in the journal", text, error)
        for id in ids:
            data: system.Error = {
                "subscription": "",
                "event": id,
                "error": _clean(_text(error)),
                "traceback": "",
            }
            self.announce(system.ERROR, data, id)

    def recording_ended(self, path: str, error: BaseException) -> None:
        """A recording takes nothing more, and is whole up to there."""
        name = f"record({path})"
        self._say(logging.ERROR, f"{name} has ended", f"{name} has ended: {error}", None)
        data: system.Error = {
            "subscription": name,
            "event": "",
            "error": _clean(_text(error)),
            "traceback": "",
        }
        self.announce(system.ERROR, data, "")

    def keeper(self, path: str, text: str) -> None:
        """A keeper does not hold or does not serve what it should."""
        name = f"Keeper({path})"
        self._say(logging.ERROR, f"{name}: {text[:40]}", f"{name}: {text}")
        data: system.Error = {
            "subscription": name, "event": "", "error": _clean(text), "traceback": "",
        }  # fmt: skip
        self.announce(system.ERROR, data, "")

    def left_behind(self, reader: str, type: str, after: int, seconds: int) -> None:
        """A reader has confirmed nothing for `seconds` while `publish` waited for it."""
        topic = f"{reader} is left behind"
        text = (
            f"{topic}: {type} after seq {after} is not confirmed, and nothing was for {seconds} s"
        )
        self._say(logging.WARNING, topic, text)
        data: system.LeftBehind = {"reader": reader, "type": type, "after": after}
        self.announce(system.LEFT_BEHIND, data, "")

    def clock_skew(
        self, name: str, epoch: int, skew: float, error: float, *, is_over: bool = False
    ) -> None:
        """The clock of a peer's host is `skew` seconds ahead of that of this one, right to `error`
        seconds. `is_over`: that is no trouble any more.
        """
        where = "ahead of" if skew > 0 else "behind"
        text = (
            f"the clock of {name} is {abs(skew):,.3f} s {where} that of {self._publisher.name},"
            f" right to {error:.3f} s"
        )
        if is_over:
            log.info("%s: that is little enough", text)
        else:
            older = "younger" if skew > 0 else "older"
            text += (
                f": by timestamps its events seem {abs(skew):,.3f} s {older} than they are, to"
                " max_age, since= and whoever compares times of the two. Let NTP set the clocks of"
                " both hosts (chrony, systemd-timesyncd); `chronyc tracking` shows which is wrong"
            )
            if named := self._named(self.aging()):
                text += f". max_age= is given here for {named}"
            self._say(logging.WARNING, f"the clock of {name} differs", text)
        self.note_skew(name, epoch, skew, error)

    def note_skew(self, name: str, epoch: int, skew: float, error: float) -> None:
        """The same as a system event alone."""
        data: system.ClockSkew = {"name": name, "epoch": epoch, "skew": skew, "error": error}
        self.announce(system.CLOCK_SKEW, data, "")

    def _named(self, names: Collection[str]) -> str:
        """Some of them, and how many there are beside."""
        some = ", ".join(sorted(names)[:MAX_NAMED])
        more = len(names) - MAX_NAMED
        return f"{some} and {more} more" if more > 0 else some

    def lists_differ(self, number: int, differ: Collection[str]) -> None:
        """Peers have another list of the desk's members than this bus, whose list has this number.
        `differ`: what is said of each; empty if all have the same again.
        """
        me = self._publisher.name
        if not differ:
            log.info("all peers of %s have its list of members, number %d", me, number)
            return
        text = (
            f"not all have the same list of members: {me} has number {number}, and"
            f" {self._named(differ)}. Copy the newest desk.members to the hosts that have another;"
            " of two with one number, make a next one that has all changes"
        )
        self._say(logging.WARNING, text, text)

    def unreached(self, addresses: Collection[str]) -> None:
        """The set of rendezvous addresses that do not answer has changed."""
        if addresses:
            text = f"{self._publisher.name} may be alone: no answer from {', '.join(addresses)}"
            self._say(logging.WARNING, text, text)
        else:
            log.info("every rendezvous address answers %s", self._publisher.name)
        data: system.Unreached = {"addresses": [*addresses]}
        self.announce(system.UNREACHED, data, "")

    def fail(self, error: BusError) -> None:
        """The bus ends with `error`."""
        log.error("%s ends: %s", self._publisher.name, error)
        self._ending(error)

    def trouble(self, topic: str, text: str) -> None:
        """Log a problem that a user should know; at most one line a second per `topic`."""
        self._say(logging.WARNING, topic, text)

    def announce(
        self, type: str, data: Mapping[str, Any], cause: str, then: Callable[[], object] = _nothing
    ) -> None:
        """Publish a system event to this process, now or right after the event that is being
        published. Without effect after `hush`. Then call `then`, in any case: of a bus with a
        journal once what was numbered before the event is committed or has failed.
        """
        event = Event[Any](type, data, cause=cause)
        self._publisher.when_free(lambda: self._publish(event, then))

    def _publish(self, event: Event[Any], then: Callable[[], object]) -> None:
        if self._is_hushed:
            then()
            return
        try:
            self.publish_own(event, then)
        except EncodeError as error:  # a very small Limits.event_bytes
            log.error("%s could not be announced: %s", event.type, error)
            then()

    def _hand_out(self, event: Event[Any], then: Callable[[], object]) -> None:
        self._publisher.publish(event, is_own=True)
        then()

    def _say(self, level: int, topic: str, text: str, error: BaseException | None = None) -> bool:
        """Log `text`. If the same `topic` was logged within the last second, only count it."""
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
        """The bus closes: publish no more system events, since no handler would take them. Problems
        are still logged.
        """
        self._is_hushed = True

    def leave_process(self) -> None:
        """Called in a forked child: log at once, and publish nothing. The parent logs the lines
        that were held back.
        """
        self._is_closed = self._is_hushed = True
        for held in self._held.values():
            held.timer.cancel()
        self._held.clear()

    def close(self) -> None:
        """Log the lines that were held back. From now on, log at once, and publish nothing."""
        self._is_closed = self._is_hushed = True
        for topic in list(self._held):
            self._sum_up(topic)


def _place(error: BaseException) -> str:
    """The kind of error and the line that raised it, without its text, which may vary."""
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
    """`text` with an escape for each character that UTF-8 cannot encode."""
    return text.encode(errors="backslashreplace").decode()
