"""What one query is sent of this process's events: joined into frames, each of which says what the
one before ended with.

Owns the batch and the `prev` link. Pure: it is given rows and hands out bytes; when a tick of the
loop is over it must be told.

The first event of a tick leaves at once, so a lone event has no batching delay; what follows in the
same tick is joined, and after such a tick the first of the next one as well, so a burst has full
frames.
"""

from collections.abc import Callable

from aiobus.codec import seq_of
from aiobus.history import LARGE
from aiobus.pattern import Query
from aiobus.wire import frame, quiet

__all__ = ["Stream"]

FRAME_EVENTS = 64
FRAME_BYTES = FRAME_EVENTS * LARGE


class Stream:
    """The events of one query on their way to other processes.

    The publisher appends to `rows`, since most events need nothing else, and calls `fill` when
    there are `full_at` of them, or the row has more bytes than `LARGE`. Such a row takes the places
    of several, so that a frame of full length has full size without a look at each row.

    `newest` begins as the source's seq at that moment: whoever asks for the stream now is owed
    nothing before. With 0 instead, 692 of 5,160 events were lost unnoticed over 12 reconnects.
    `send` takes a frame and never waits; `join` is called with the first event of a tick, to have
    `end_tick` called when that is over, and then each tick for as long as it says True.
    """

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
        self.sent = seq
        """The last event that was sent."""
        self.rows: list[bytes] = []
        """What was joined since."""
        self.full_at = 1
        """How many rows make a frame: one, while none was sent in this tick."""
        self.is_loud = True
        """Somebody wants the frames, and not the beacons alone."""
        self._source, self._epoch = source
        self._send = send
        self._join = join
        self._is_joining = self._is_busy = False

    @property
    def newest(self) -> int:
        """The last event that was sent or is about to be."""
        return seq_of(self.rows[-1]) if self.rows else self.sent

    def fill(self, size: int) -> None:
        """A row of so many bytes was appended, which may make a frame."""
        if not self._is_joining:
            self._emit()
            self._is_joining = True
            self.full_at = FRAME_EVENTS
            self._join(self)
        else:
            self.full_at -= size // LARGE
            if len(self.rows) >= self.full_at:
                self._emit()

    def flush(self) -> None:
        """Send what was joined so far."""
        if self.rows:
            self._emit()

    def end_tick(self) -> bool:
        """Send what was joined. True to join what comes in the next tick as well; else the next
        event leaves at once again.
        """
        self.flush()
        self._is_joining, self._is_busy = self._is_busy, False
        self.full_at = FRAME_EVENTS if self._is_joining else 1
        return self._is_joining

    def beacon(self) -> None:
        """Send a frame in any case: one without events reveals that the last with some was lost."""
        self._emit()

    def quiet_beacon(self) -> None:
        """Say the same to those who want nothing else, behind what was joined."""
        self.flush()
        self._send(frame(quiet(self.topic), self._source, self._epoch, self.sent, self.sent, ()))

    def _emit(self) -> None:
        rows, prev = self.rows, self.sent
        if rows:
            self.sent = seq_of(rows[-1])
            self.rows = []
            if self._is_joining:
                self._is_busy = True
                self.full_at = FRAME_EVENTS
        if self.is_loud:
            self._send(frame(self.topic, self._source, self._epoch, prev, self.sent, rows))
