"""What happens to messages on their way through a network in memory.

Owns what may go wrong (faults, walls, too many at once), the dice that decide it, and the order of
one direction of a link. Must not know who is linked to whom. What the bytes say is only told to
those faults that depend on it, and changes nothing by itself.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Literal

from aiobus.event import Event
from aiobus.rows import LazyBatch
from aiobus.wire import HEARTBEATS, Frame

__all__ = [
    "END",
    "LATE",
    "Faults",
    "Lane",
    "Medium",
    "Message",
]

SLICE = 64
"""Messages handed on before the loop turns."""
LATE = 0.01
"""Seconds after which a message that is to be overtaken waits no longer for another to do it."""
END = b""
"""The last that arrives on a link, which is then over."""


Kind = Literal[
    "subscription", "question", "page_request", "acknowledgement",  # up to a publisher
    "events", "beacon", "heartbeat", "answer", "page", "mark",  # down from it
]  # fmt: skip
_KINDS: dict[tuple[bool, bytes], Kind] = {
    (True, b"?"): "question",
    (True, b"!"): "page_request",
    (True, b"="): "acknowledgement",
    (False, b"?"): "answer",
    (False, b"-"): "answer",
    (False, b"!"): "page",
    (False, b"="): "mark",
    (False, b"&"): "mark",
}


@dataclass(frozen=True, slots=True)
class Message:
    """One message on its way from the bus named `source` to the one named `target`."""

    source: str
    target: str
    data: bytes
    """As docs/protocol.md has it."""

    @property
    def kind(self) -> Kind:
        """What it is. `"events"` are a frame with some, a `"beacon"` is one without any; a
        `"subscription"` may also end one.
        """
        data = self.data
        topic, _, json = data.partition(b"\0")
        if data[:1] in (b"", b"\0", b"\1"):
            return "subscription"
        if data[:1] == b"[":
            return _KINDS[True, data[2:3]]
        if data.startswith(HEARTBEATS):
            return "heartbeat"
        if topic[:1] == b"~":
            return _KINDS[False, json[2:3]]
        return "events" if b"\n" in json else "beacon"

    @property
    def events(self) -> list[Event[Any]]:
        """The events of a frame; of anything else, none."""
        if self.kind != "events":
            return []
        batch, events = LazyBatch(Frame(b"", self.data)), []
        while batch.left:
            events += batch.take()
        return events


Figure = float | Callable[[Message], float]
"""For all messages, or asked for each of them; True and False are 1 and 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong with messages on their way. A figure out of its range raises ValueError.

    `loss`, `duplication` and `reorder` are probabilities for each message, from 0 to 1: that it
    does not arrive, that it arrives twice, and that the next one overtakes it. What a bus asks for
    (its subscriptions) is spared. Each message takes up to `delay` seconds, drawn evenly; that
    alone disorders nothing.

    Each of the four may be a function of the `Message` instead, which answers with the figure::

        Faults(loss=lambda message: 0.3 if message.kind == "beacon" else 0)
        Faults(delay=lambda message: 0.05 if message.target == "strategy" else 0)
        Faults(loss=lambda message: any(event.seq == 7 for event in message.events))
    """

    loss: Figure = 0.0
    duplication: Figure = 0.0
    reorder: Figure = 0.0
    delay: Figure = 0.0

    def __post_init__(self) -> None:
        for name in ("loss", "duplication", "reorder"):
            value = getattr(self, name)
            if not callable(value) and not 0 <= value <= 1:
                raise ValueError(f"Faults({name}={value!r}): a number from 0 to 1 is needed")
        if not callable(self.delay) and not 0 <= self.delay < math.inf:
            raise ValueError(f"Faults(delay={self.delay!r}): seconds are needed, 0 or more")


class Medium:
    """What all messages of one network go through."""

    def __init__(self, seed: int, faults: Faults | None, high_water_mark: int) -> None:
        self.seed = seed
        self.faults = faults or Faults()
        """May be changed at any time."""
        self.high_water_mark = high_water_mark
        self.delivered = 0
        """Messages that arrived, a doubled one twice. Subscriptions are not counted anywhere."""
        self.lost = 0
        """Messages that did not arrive: by `Faults.loss`, a partition, a cut, a death, or because
        too many were on their way.
        """
        self.duplicated = 0
        self.reordered = 0
        self._walls: list[tuple[frozenset[str], frozenset[str]]] = []
        self._dice: dict[tuple[str, str, str], random.Random] = {}

    def is_held(self, source: str, target: str) -> bool:
        """True while nothing passes from one name to the other."""
        return any(source in one and target in other for one, other in self._walls)

    def dice(self, source: str, target: str, way: str) -> random.Random:
        """What decides over the messages from one name to the other, whichever link they take."""
        names = (source, target, way)
        if names not in self._dice:
            self._dice[names] = random.Random(f"{self.seed} {' '.join(names)}")
        return self._dice[names]


class Lane:
    """One direction of a link: what is on its way, in order, and what goes wrong with it."""

    def __init__(
        self,
        medium: Medium,
        source: str,
        target: str,
        way: str,
        hear: Callable[[bytes], None],
    ) -> None:
        self._medium = medium
        self._names = (source, target)
        self._dice = medium.dice(source, target, way)
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._queue: deque[tuple[float, bytes, bool]] = deque()
        self._late: bytes | None = None
        self._timer: asyncio.Handle | None = None
        self._late_timer: asyncio.Handle | None = None

    def put(self, message: bytes, *, is_safe: bool = False, bound: float = math.inf) -> None:
        """Send it on its way; it arrives in a later callback. One that `is_safe` is not lost."""
        medium, faults = self._medium, self._medium.faults
        due = 0.0
        if delay := self._figure(faults.delay, message):
            due = self._loop.time() + self._dice.random() * delay
        if is_safe:
            if message == END:
                self._release()
            self._add(due, message, is_safe=True)
            self._release()
            return
        # Drawn in any case, so that what is decided of one message does not depend on another.
        loss, duplication, reorder = (self._dice.random() for _ in range(3))
        if loss < self._figure(faults.loss, message) or len(self._queue) >= bound:
            medium.lost += 1
            return
        if self._late is None and reorder < self._figure(faults.reorder, message):
            medium.reordered += 1
            self._late = message
            self._late_timer = self._loop.call_later(LATE, self._release, context=self._context)
            return
        self._add(due, message)
        if duplication < self._figure(faults.duplication, message):
            medium.duplicated += 1
            self._add(due, message)
        self._release()

    def _figure(self, figure: Figure, message: bytes) -> float:
        return figure(Message(*self._names, message)) if callable(figure) else figure

    def _add(self, due: float, message: bytes, *, is_safe: bool = False) -> None:
        if self._queue:
            due = max(due, self._queue[-1][0])
        self._queue.append((due, message, is_safe))
        self.wake()

    def _release(self) -> None:
        if self._late is not None and self._late_timer is not None:
            self._late_timer.cancel()
            message, self._late = self._late, None
            self._add(0.0, message)

    @property
    def is_at_rest(self) -> bool:
        """True when nothing is on its way but what a wall holds up."""
        is_held = self._medium.is_held(*self._names)
        return self._late is None and all(is_held and is_safe for _, _, is_safe in self._queue)

    def wake(self) -> None:
        """See to it that what is there is handed on when its time comes."""
        if self._queue and self._timer is None:
            due = self._queue[0][0]
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self._pump, context=self._context)
            else:
                self._timer = self._loop.call_soon(self._pump, context=self._context)

    def _pump(self) -> None:
        self._timer = None
        if self._medium.is_held(*self._names):
            self._drop()
            return
        now = self._loop.time()
        try:
            for _ in range(SLICE):
                if not self._queue or self._queue[0][0] > now:
                    break
                self._hand_on()
        finally:
            self.wake()

    def run_dry(self) -> None:
        """Hand on all that is on its way, at once: it may have arrived without being heard yet."""
        self._release()
        if not self._medium.is_held(*self._names):
            while self._queue:
                self._hand_on()

    def _hand_on(self) -> None:
        _, message, is_safe = self._queue.popleft()
        self._medium.delivered += not is_safe
        self._hear(message)

    def _drop(self) -> None:
        kept = [each for each in self._queue if each[2]]
        self._medium.lost += len(self._queue) - len(kept)
        self._queue = deque(kept)

    def clear(self) -> None:
        """Lose what is on its way."""
        if self._late is not None and self._late_timer is not None:
            self._late_timer.cancel()
            self._late = None
            self._medium.lost += 1
        self._medium.lost += sum(not is_safe for _, _, is_safe in self._queue)
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
