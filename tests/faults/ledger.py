"""What one process published and handled, in an append-only file that outlives it.

Owns the entries and the way they get into the file; must not know what they prove, which is
`oracle`'s.

What is in the file was true when it was written, and a process that is killed leaves out only the
end of its truth. So the oracle may rely on the following and on nothing else:

- *published*: a burst is written after its last event and before the publisher awaits anything.
  Some of its frames have then left already, so of a bus without an `ended` entry more may have
  been delivered than the file says, but only above the highest seq in it.
- *handled* and *gap*: written within milliseconds, each subscription's in the order it saw them. Of
  a process that was killed, more may have been handled than the file says, and nothing is known of
  it; what is there must still be without a hole.
- *complete*: no bus published any more, all had flushed and this process had settled. What is
  missing above it is missing.
- *ended*: a bus has published its last, of its own will, and all of it is in the file.

Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

import asyncio
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from aiobus import Event, Subscription

__all__ = ["Entry", "Ledger", "checksum", "read"]

FLUSH_SECONDS = 0.005
BATCH = 4096
"""Rows of a line at most: the rest of a line that a kill has cut short is lost."""

Entry = list[Any]
"""One line: its kind, then the fields that the method of that name below says."""


def checksum(event: Event) -> int:
    """Of what must arrive as it was sent."""
    return zlib.crc32(orjson.dumps([event.type, event.key, event.data]))


class Ledger:
    """The file of one process. Everything is called on one loop."""

    def __init__(self, path: Path | str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._published: list[Entry] = []
        self._handled: dict[tuple[str, str, int], list[Entry]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def write(self, *entry: Any) -> None:
        """Append one line now; the system has it when this returns, whatever becomes of us."""
        os.write(self._file, orjson.dumps(entry) + b"\n")

    def started(self, name: str, epoch: int, before: float) -> None:
        """A bus has started; `before` it did, at that time, no bus had heard of it."""
        self.write("started", name, epoch, before)

    def publishes(self, event: Event) -> None:
        """An event was stamped; it is written with `end_burst`."""
        self._published.append([event.seq, event.type, event.key, checksum(event)])

    def end_burst(self, name: str, epoch: int, begun: float) -> None:
        """Write what was published since `begun`, of one bus. Call it before the next await."""
        rows, self._published = self._published, []
        for first in range(0, len(rows), BATCH):
            self.write("published", name, epoch, begun, rows[first : first + BATCH])

    def subscribes(self, label: str, asked: Entry, **terms: Any) -> None:
        """`subscribe` is about to be called. `asked`: [types, keys], as it will be told them."""
        if isinstance(terms.get("since"), float):
            terms["since_monotonic"] = terms["since"] - time.time() + time.monotonic()
        terms["asked_at"] = time.monotonic()
        self.write("subscribes", label, asked, terms)

    def subscribed(self, label: str, subscription: Subscription) -> None:
        """It has returned: from now on all is owed that is published by who has confirmed."""
        self.write("subscribed", label, time.monotonic(), sorted(subscription.unconfirmed))

    def handles(self, label: str, event: Event) -> None:
        """A handler has it. Written soon."""
        batch = self._handled.setdefault((label, event.source, event.epoch), [])
        batch.append([event.seq, event.type, event.key, checksum(event)])
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def gap(self, label: str, data: dict[str, Any]) -> None:
        """A subscription was told that (after, upto] is lost, in its place among the events."""
        self.flush()
        where = (data["source"], data["epoch"], data["after"], data["upto"], data["reason"])
        self.write("gap", label, *where)

    def left(self, data: dict[str, Any]) -> None:
        """A bus has left, of which this process has heard up to `last`."""
        self.write("left", data["name"], data["epoch"], data["last"])

    def complete(self, label: str, subscription: Subscription) -> None:
        """The load has ended: what this one was owed, it has, or its counters and gaps say so."""
        self.flush()
        stats = subscription.stats
        self.write("complete", label, stats.dropped + stats.conflated + stats.expired)

    def flush(self) -> None:
        """Write what was handled so far."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        handled, self._handled = self._handled, {}
        for (label, source, epoch), rows in handled.items():
            for first in range(0, len(rows), BATCH):
                self.write("handled", label, source, epoch, rows[first : first + BATCH])

    def ended(self, name: str, epoch: int, seq: int) -> None:
        """A bus publishes nothing any more; its last number was `seq`."""
        self.flush()
        self.write("ended", name, epoch, seq)

    def close(self) -> None:
        """Nothing more will be written."""
        self.flush()
        os.close(self._file)


def read(path: Path) -> Iterator[Entry]:
    """The entries of a file. A last line without an end was cut short by a kill and is left out."""
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield orjson.loads(line)
