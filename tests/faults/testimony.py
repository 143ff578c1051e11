"""What the ledgers of a round say, in columns: there may be millions of events.

Owns what was published and what each subscription saw. Pure, and judges nothing: that is
`oracle`'s.
"""

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import merge
from itertools import product
from typing import Any

from faults.ledger import Entry

__all__ = ["Published", "Seen", "Source", "Strand"]

Source = tuple[str, int]
"""The name of a bus, and which start of it."""


class Published:
    """What one start of one bus published, in order."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.end: int | None = None
        """Its last number; None when it was killed before it could tell."""
        self.seqs = array("q")
        self.checksums = array("L")
        self.subjects = array("L")
        self.names: list[tuple[str, str]] = []
        self._places: dict[tuple[str, str], int] = {}
        self._indices: list[array[int]] = []
        self.bursts: list[tuple[float, int]] = []
        """When each burst began, and at which index."""

    def add(self, begun: float, rows: list[Entry]) -> None:
        self.bursts.append((begun, len(self.seqs)))
        for seq, type, key, checksum in rows:
            self.seqs.append(seq)
            self.checksums.append(checksum)
            name = (type, key)
            if name not in self._places:
                self._places[name] = len(self.names)
                self.names.append(name)
                self._indices.append(array("L"))
            self._indices[self._places[name]].append(len(self.subjects))
            self.subjects.append(self._places[name])

    @property
    def is_whole(self) -> bool:
        return self.end is not None

    @property
    def last(self) -> int:
        return self.seqs[-1] if self.seqs else 0

    def index(self, seq: int, guess: int) -> int | None:
        """Where `seq` is; it is probably at `guess`."""
        if guess < len(self.seqs) and self.seqs[guess] == seq:
            return guess
        index = bisect_left(self.seqs, seq)
        return index if index < len(self.seqs) and self.seqs[index] == seq else None

    def asked_for(self, seen: "Seen") -> Iterator[tuple[int, str]]:
        """(seq, type) of what a subscription wants, in order."""
        # Thousands of subscriptions to one key each must not look at every name.
        is_exact = seen.types != ["*"] and not any(key.endswith("*") for key in seen.keys or "*")
        names = product(seen.types, seen.keys or ()) if is_exact else self.names
        places = [self._places.get(name) for name in names if is_exact or seen.wants(*name)]
        columns = [self._indices[place] for place in places if place is not None]
        for index in merge(*columns):
            yield self.seqs[index], self.names[self.subjects[index]][0]

    def by_name(self, seen: "Seen") -> Iterator[list[int]]:
        """The seqs of each (type, key) that a subscription wants."""
        for name, indices in zip(self.names, self._indices, strict=True):
            if seen.wants(*name):
                yield [self.seqs[index] for index in indices]

    def last_before(self, time: float) -> int:
        """The last seq of the bursts that were over by then, for another had begun."""
        place = bisect_left(self.bursts, (time, 0)) - 1
        index = self.bursts[place][1] if place >= 0 else 0
        return self.seqs[index - 1] if index else 0

    def first_after(self, time: float) -> int | None:
        """The first seq of a burst that began after `time`."""
        place = bisect_left(self.bursts, (time, 0))
        return self.seqs[self.bursts[place][1]] if place < len(self.bursts) else None


@dataclass
class Strand:
    """What one subscription saw of one source."""

    seqs: "array[int]" = field(default_factory=lambda: array("q"))
    gaps: list[tuple[int, int, int]] = field(default_factory=list)
    """(after, upto, how many events were seen before it)"""
    doubts: list[tuple[int, int, int]] = field(default_factory=list)
    """The same, where it is unknown whether anything in it matched."""
    guess: int = 0
    newest: dict[tuple[str, str], int] = field(default_factory=dict)


class Seen:
    """One subscription."""

    def __init__(self, label: str, asked: Entry, terms: dict[str, Any]) -> None:
        self.label = label
        self.time = math.inf
        """When `subscribe` returned."""
        self.types: list[str] = asked[0]
        self.keys: list[str] | None = asked[1]
        self.overflow: str = terms.get("overflow", "catch_up")
        self.unconfirmed: list[str] = []
        self.may_drop = self.overflow in ("latest", "drop_oldest") or "max_age" in terms
        self.since: float = terms.get("since_monotonic", math.inf)
        """From when on it asked for the past."""
        self.asked_at: float = terms.get("asked_at", math.inf)
        """When `subscribe` was called."""
        self.begins_with_last = terms.get("since") == "last"
        self.counted: int | None = None
        """What its counters said once the load had ended; None when that never came to be."""
        self.lasts: dict[Source, int] = {}
        """What `aiobus.peer_left` told its process of those who left."""
        self.strands: dict[Source, Strand] = {}

    def wants(self, type: str, key: str) -> bool:
        if self.types != ["*"] and type not in self.types:
            return False
        if self.keys is None:
            return True
        return any(
            key == each or (each.endswith("*") and key.startswith(each[:-1])) for each in self.keys
        )
