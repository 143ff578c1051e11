"""What one query is sent of this process's events: joined into frames, each of which says what the
one before ended with.

Owns the batch and the `prev` link. Pure: it is given rows and hands out bytes; when a tick of the
loop is over it must be told.

The first event of a tick leaves at once, so a lone event has no batching delay; what follows in the
same tick is joined, and after such a tick the first of the next one as well, so a burst has full
frames.
"""

from collections.abc import Callable

from aiobus.delivery import Delivery
from aiobus.pattern import Query
from aiobus.wire import frame, quiet

__all__ = ["Stream"]

FRAME_EVENTS = 64
FRAME_BYTES = 64 * 1024


class Stream:
    """The events of one query on their way to other processes: an `Outlet`.

    `newest` begins as the source's seq at that moment: whoever asks for the stream now is owed
    nothing before. With 0 instead, 692 of 5,160 events were lost unnoticed over 12 reconnects.
    `send` takes a frame and never waits; `join` is called with the first event of a tick, to have
    `end_tick` called when that is over, and then each tick for as long as it says True.
    """

    is_local = False
    gate = None
    running: tuple[Delivery, ...] = ()

    def __init__(
        self,
        query: Query,
        topic: bytes,
        source: tuple[str, int],
        seq: int,
        send: Callable[[bytes], None],
        join: Callable[["Stream"], None],
    ) -> None:
        self.query = query
        self.topic = topic
        self.newest = self.sent = seq
        """The last event that was sent (`sent`) or is about to be."""
        self.is_loud = True
        """Somebody wants the frames, and not the beacons alone."""
        self._source, self._epoch = source
        self._send = send
        self._join = join
        self._rows: list[bytes] = []
        self._bytes = 0
        self._is_joining = self._is_busy = False

    def deliver(self, seq: int, row: bytes, type: str, key: str) -> None:
        """Send the event, or join it to those of the same tick."""
        self._rows.append(row)
        self._bytes += len(row)
        self.newest = seq
        if not self._is_joining:
            self._is_joining = True
            self._join(self)
            self._emit()
        else:
            self._is_busy = True
            if len(self._rows) >= FRAME_EVENTS or self._bytes >= FRAME_BYTES:
                self._emit()

    def flush(self) -> None:
        """Send what was joined so far."""
        if self._rows:
            self._emit()

    def end_tick(self) -> bool:
        """Send what was joined. True to join what comes in the next tick as well; else the next
        event leaves at once again.
        """
        self.flush()
        self._is_joining, self._is_busy = self._is_busy, False
        return self._is_joining

    def beacon(self) -> None:
        """Send a frame in any case: one without events reveals that the last with some was lost."""
        self._emit()

    def quiet_beacon(self) -> None:
        """Say the same to those who want nothing else, behind what was joined."""
        self.flush()
        self._send(frame(quiet(self.topic), self._source, self._epoch, self.sent, self.sent, ()))

    def _emit(self) -> None:
        rows, prev = self._rows, self.sent
        self._rows = []
        self._bytes = 0
        self.sent = self.newest
        if self.is_loud:
            self._send(frame(self.topic, self._source, self._epoch, prev, self.sent, rows))
