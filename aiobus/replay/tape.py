"""The entries of a tape, and their bytes.

Pure. Each entry has its kind and the number of its strand. What depends on the moment, and cannot
come again by itself, is in the entry: the time, what the clock told, how a bus call ended.
"""

from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from enum import IntEnum
from struct import Struct
from typing import Any, NamedTuple
from zlib import compress, decompress

import orjson

from aiobus import errors
from aiobus.event import Event

__all__ = [
    "CALLS", "END", "NAMES", "VERSION", "Chunk", "Entry", "Kind", "Reference", "Row", "Source",
    "entries", "is_again", "made", "microseconds", "told",
]  # fmt: skip

VERSION = 2


class Kind(IntEnum):
    """What an entry tells."""

    DELIVER = 1
    """A delivery begins: subscription, source, seq, time. If the rows of the source are in the
    tape, then instead of the seq the place of the row among those of this chunk. To a callback it
    begins a strand. To a stream it is what a step returns."""
    WAIT = 2
    """The strand waits for something of its own."""
    INSIDE = 3
    """It waits in a bus call: 2 * call + is_numbered. Once for each call that waits."""
    GO_ON = 4
    """It goes on: time, is_cancelled. After WAIT, or at the end of a call that has waited."""
    OUTPUT = 5
    """It has published the event with this seq."""
    OUTCOME = 6
    """How a bus call ended: 2 * call + is_numbered, index of the outcome. If the event could not be
    encoded: which seq it would have had. Before calls that have arguments beside an event or a
    subscription: these. With 0: code that is not attached has cancelled the task of the strand."""
    CLOCK = 7
    """It has read a clock: 0 for that of `aiobus.clock.time`, 1 for the loop's. The value is a
    double."""
    SUBSCRIBE = 8
    """It begins to subscribe: number of the subscription."""
    TIMER = 9
    """It sets a timer, such as that of a sleep: microseconds, 0 for a delay and 1 for a time of
    the loop, such as that of asyncio.timeout."""
    RAISED = 10
    """It has ended with an exception: index of the outcome, which has type, text and place."""
    WOKE = 11
    """It has completed, and not cancelled, a future for which another strand waits: which one."""


END = 0
"""The kind of what follows the last entry."""
_WIDTHS = {1: 6, 2: 2, 3: 3, 4: 4, 5: 3, 6: 4, 7: 3, 8: 3, 9: 4, 10: 3, 11: 3}
NAMES = (
    "", "publish", "request", "subscribe", "stream step", "stream entry", "flush", "settle",
    "close", "wait_closed", "reply", "peers", "wait_for_peer",
)  # fmt: skip
CALLS = {name: number for number, name in enumerate(NAMES)}

Entry = tuple[Any, ...]
"""Kind, strand, and what the kind says."""
Source = tuple[str, int, bool]
"""Name and epoch of a source, and whether the rows of its events are in the tape itself."""
Row = tuple[int, bool, str]
"""Seq, `past` and row of an event."""
_HEAD = Struct("<II")
LONGEST = 2**62
"""Microseconds: some 146,000 years, and what `sleep(math.inf)` is taken for."""


class Chunk(NamedTuple):
    """A stretch of a tape."""

    first: int
    """The number of the first chunk of this recording."""
    numbers: Sequence[int]
    clocks: Sequence[float]
    outcomes: list[Any]
    sources: list[Source]
    """Those that appear for the first time; deliveries refer to them by their place."""
    rows: list[Row]
    """Of delivered events that the recording does not have."""
    outputs: dict[int, str]
    """The rows of outputs that the recording leaves out, by seq."""
    published: int
    """The seq of the last event that the bus had published when this was taken."""
    facts: dict[str, Any] | None = None
    """Of the first chunk."""
    end: dict[str, Any] | None = None
    """Of the last chunk, if the recording was closed."""

    def encoded(self) -> dict[str, Any]:
        """It as the data of an event."""
        numbers, clocks = array("q", self.numbers).tobytes(), array("d", self.clocks).tobytes()
        body = _HEAD.pack(len(numbers), len(clocks)) + numbers + clocks
        data: dict[str, Any] = {
            "first": self.first,
            "published": self.published,
            "entries": b64encode(compress(body, 1)).decode(),
        }
        for name in ("outcomes", "sources", "rows", "outputs", "facts", "end"):
            if value := getattr(self, name):
                data[name] = value
        if self.outputs:
            data["outputs"] = {str(seq): row for seq, row in self.outputs.items()}
        return data

    @classmethod
    def decoded(cls, data: dict[str, Any]) -> "Chunk":
        """What `encoded` made."""
        body = decompress(b64decode(data["entries"]))
        size, rest = _HEAD.unpack_from(body)
        numbers, clocks, begin = array("q"), array("d"), _HEAD.size
        numbers.frombytes(body[begin : begin + size])
        clocks.frombytes(body[begin + size : begin + size + rest])
        return cls(
            data["first"], numbers, clocks, data.get("outcomes", []),
            [(name, epoch, bool(own)) for name, epoch, own in data.get("sources", [])],
            [(seq, bool(past), row) for seq, past, row in data.get("rows", [])],
            {int(seq): row for seq, row in data.get("outputs", {}).items()},
            data["published"], data.get("facts"), data.get("end"),
        )  # fmt: skip


class Reference(NamedTuple):
    """An event that was delivered. `row` is None if the recording has it."""

    source: str
    epoch: int
    seq: int
    past: bool = False
    row: str | None = None


def entries(chunk: Chunk, sources: list[Source]) -> Iterator[Entry]:
    """The entries of a chunk, complete. `sources` are those of all chunks up to this one.

    DELIVER: strand, subscription, time, Reference. WAIT: strand. INSIDE: strand, 2 * call +
    is_numbered. GO_ON: strand, time, is_cancelled. OUTPUT: strand, seq, the row if the recording
    leaves it out. OUTCOME: strand, 2 * call + is_numbered, outcome. CLOCK: strand, which,
    value. SUBSCRIBE: strand, subscription. TIMER: strand, microseconds, is_at. RAISED: strand,
    outcome. WOKE: strand, the other strand.
    """
    numbers, clocks = chunk.numbers, iter(chunk.clocks)

    def reference(source: int, seq: int) -> Reference:
        name, epoch, is_own = sources[source]
        return Reference(name, epoch, *(chunk.rows[seq] if is_own else (seq,)))

    at, end = 0, len(numbers)
    while at < end:
        kind = numbers[at]
        width = _WIDTHS[kind]
        entry: Entry = tuple(numbers[at : at + width])
        at += width
        if kind == Kind.DELIVER:
            _, strand, subscription, source, seq, time = entry
            entry = (kind, strand, subscription, time, reference(source, seq))
        elif kind == Kind.CLOCK:
            entry = (*entry, next(clocks))
        elif kind == Kind.OUTPUT:
            entry = (*entry, chunk.outputs.get(entry[2]))
        elif kind == Kind.OUTCOME:
            outcome = chunk.outcomes[entry[3]]
            if outcome[0] == "reply":
                outcome = ["reply", reference(*outcome[1:3])]
            entry = (*entry[:3], outcome)
        elif kind == Kind.RAISED:
            entry = (*entry[:2], chunk.outcomes[entry[2]])
        yield entry


def microseconds(delay: float) -> int:
    """A delay, or a time of a loop, as it is written down, and compared: no longer than the
    longest that fits. 0 for what is no number, which the loop refuses by itself.
    """
    try:
        return int(max(-LONGEST, min(LONGEST, delay * 1e6)))
    except OverflowError:
        return LONGEST
    except (TypeError, ValueError):
        return 0


# How a bus call ended.

_AGAIN = (TypeError, ValueError)
_RAISED: dict[str, Any] = {
    **{name: getattr(errors, name) for name in errors.__all__},
    "TimeoutError": TimeoutError,
    "StopAsyncIteration": StopAsyncIteration,
    "TypeError": TypeError,
    "ValueError": ValueError,
}


def is_again(error: BaseException) -> bool:
    """True for an error of the arguments, which comes again by itself."""
    return isinstance(error, _AGAIN)


def told(error: BaseException, event: Event[Any] | None) -> list[Any]:
    """The outcome of a call that has raised `error`; `event` is what the call publishes."""
    arguments = [None if each is event else each for each in error.args]
    try:
        arguments = orjson.loads(orjson.dumps(arguments))
    except TypeError:
        arguments = [str(error)]
    return ["raised", type(error).__name__, arguments]


def made(outcome: list[Any], event: Event[Any] | None) -> BaseException | None:
    """The error again. None if its class is not known here."""
    _, name, arguments, *_ = outcome
    kind = _RAISED.get(name)
    if kind is None:
        return None
    error: BaseException = kind(*[event if each is None else each for each in arguments])
    return error
