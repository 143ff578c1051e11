"""The faults of a network in memory: messages that are lost, doubled, late or overtaken.

Owns the faults, the partitions, the limit of messages on their way, the seeded random numbers that
decide, and the order of one direction of a link. Must not know which buses are linked. Only a
fault that is a function of the message looks at its content.
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
    "SLICE",
    "Channel",
    "Faults",
    "Message",
    "SimulatedNetwork",
]

SLICE = 64
"""Messages that a channel delivers before it yields to the loop."""
REORDER_SECONDS = 0.01
"""A message that is to be overtaken waits so long for the next one, then it is sent."""
END = b""
"""The last message of a link: it ends the link."""


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
    """The bytes that docs/protocol.md describes."""

    @property
    def kind(self) -> Kind:
        """The kind of message. `"events"` is a frame with events, `"beacon"` a frame without any. A
        `"subscription"` begins or ends one.
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
        """The events of a frame; empty for any other message."""
        if self.kind != "events":
            return []
        batch, events = LazyBatch(Frame(b"", self.data)), []
        while batch.left:
            events += batch.take()
        return events


Figure = float | Callable[[Message], float]
"""One figure for all messages, or a function that is called for each; True and False are 1 and 0.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """The faults that messages meet on their way. A figure out of its range raises ValueError.

    `loss`, `duplication` and `reorder` are probabilities for each message, from 0 to 1: that it
    does not arrive, that it arrives twice, and that the next one overtakes it. Subscriptions have
    none of the three. Each message takes up to `delay` seconds, drawn evenly; a delay alone does
    not change the order.

    Each of the four may be a function of the `Message` that returns the figure::

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


class SimulatedNetwork:
    """What all messages of one network share: faults, partitions, random numbers and counters."""

    def __init__(self, seed: int, faults: Faults | None, high_water_mark: int) -> None:
        self.seed = seed
        self.faults = faults or Faults()
        """May be changed at any time."""
        self.high_water_mark = high_water_mark
        self.delivered = 0
        """Messages that arrived; a doubled one counts twice. Subscriptions are never counted."""
        self.lost = 0
        """Messages that did not arrive, because of `Faults.loss`, a partition, a link that was cut,
        a bus that was killed, or too many messages on their way.
        """
        self.duplicated = 0
        self.reordered = 0
        self._partitions: list[tuple[frozenset[str], frozenset[str]]] = []
        """Pairs of names: no message passes from the first to the second."""
        self._rngs: dict[tuple[str, str, str], random.Random] = {}

    def is_blocked(self, source: str, target: str) -> bool:
        """True while no message passes from `source` to `target`."""
        return any(source in one and target in other for one, other in self._partitions)

    def is_split(self, one: str, other: str) -> bool:
        """True while no message passes in one or both directions."""
        return self.is_blocked(one, other) or self.is_blocked(other, one)

    def rng(self, source: str, target: str, direction: str) -> random.Random:
        """The random numbers for the messages from `source` to `target`, on every link of them."""
        names = (source, target, direction)
        if names not in self._rngs:
            self._rngs[names] = random.Random(f"{self.seed} {' '.join(names)}")
        return self._rngs[names]


class Channel:
    """One direction of a link: the messages on their way, in order, and their faults. Each is
    handed to `deliver` in a later callback of the loop.
    """

    def __init__(
        self,
        network: SimulatedNetwork,
        source: str,
        target: str,
        direction: str,
        deliver: Callable[[bytes], None],
    ) -> None:
        self._network = network
        self._names = (source, target)
        self._rng = network.rng(source, target, direction)
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._queue: deque[tuple[float, bytes, bool]] = deque()
        """Of each message: when it is due, its bytes, whether it is reliable."""
        self._overtaken: bytes | None = None
        """Waits until the next message has overtaken it."""
        self._timer: asyncio.Handle | None = None
        self._reorder_timer: asyncio.Handle | None = None

    def put(self, message: bytes, *, is_reliable: bool = False, limit: float = math.inf) -> None:
        """Send a message. It is lost if `limit` messages are on their way; a reliable one is never
        lost, doubled or overtaken.
        """
        network, faults = self._network, self._network.faults
        due = 0.0
        if delay := self._figure(faults.delay, message):
            due = self._loop.time() + self._rng.random() * delay
        if is_reliable:
            if message == END:
                self._release()
            self._add(due, message, is_reliable=True)
            self._release()
            return
        # All three are always drawn: the fate of a message must not depend on that of another.
        loss, duplication, reorder = (self._rng.random() for _ in range(3))
        if loss < self._figure(faults.loss, message) or len(self._queue) >= limit:
            network.lost += 1
            return
        if self._overtaken is None and reorder < self._figure(faults.reorder, message):
            network.reordered += 1
            self._overtaken = message
            self._reorder_timer = self._loop.call_later(
                REORDER_SECONDS, self._release, context=self._context
            )
            return
        self._add(due, message)
        if duplication < self._figure(faults.duplication, message):
            network.duplicated += 1
            self._add(due, message)
        self._release()

    def _figure(self, figure: Figure, message: bytes) -> float:
        return figure(Message(*self._names, message)) if callable(figure) else figure

    def _add(self, due: float, message: bytes, *, is_reliable: bool = False) -> None:
        if self._queue:
            due = max(due, self._queue[-1][0])
        self._queue.append((due, message, is_reliable))
        self.schedule()

    def _release(self) -> None:
        if self._overtaken is not None and self._reorder_timer is not None:
            self._reorder_timer.cancel()
            message, self._overtaken = self._overtaken, None
            self._add(0.0, message)

    @property
    def is_idle(self) -> bool:
        """True if no message is on its way but those that a partition holds back."""
        is_blocked = self._network.is_blocked(*self._names)
        return self._overtaken is None and all(is_blocked and each[2] for each in self._queue)

    def schedule(self) -> None:
        """Deliver the first message when it is due."""
        if self._queue and self._timer is None:
            due = self._queue[0][0]
            if due > self._loop.time():
                self._timer = self._loop.call_at(due, self._run, context=self._context)
            else:
                self._timer = self._loop.call_soon(self._run, context=self._context)

    def _run(self) -> None:
        self._timer = None
        if self._network.is_blocked(*self._names):
            kept = [each for each in self._queue if each[2]]
            self._network.lost += len(self._queue) - len(kept)
            self._queue = deque(kept)
            return
        now = self._loop.time()
        try:
            for _ in range(SLICE):
                if not self._queue or self._queue[0][0] > now:
                    break
                self._deliver_first()
        finally:
            self.schedule()

    def flush(self) -> None:
        """Deliver all messages on their way at once: they may have arrived without being read."""
        self._release()
        if not self._network.is_blocked(*self._names):
            while self._queue:
                self._deliver_first()

    def _deliver_first(self) -> None:
        _, message, is_reliable = self._queue.popleft()
        self._network.delivered += not is_reliable
        self._deliver(message)

    def clear(self) -> None:
        """Lose all messages on their way."""
        if self._overtaken is not None and self._reorder_timer is not None:
            self._reorder_timer.cancel()
            self._overtaken = None
            self._network.lost += 1
        self._network.lost += sum(not is_reliable for _, _, is_reliable in self._queue)
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
