"""The event: the one value that travels, and the names of its usual types.

Owns how an event looks, compares and is identified. Must not know how it is encoded, matched or
moved.
"""

from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, get_args

from aiobus import clock
from aiobus.query import bad_type, plain

__all__ = ["KNOWN", "Event", "EventType", "Topic", "event_id", "own_fields", "parse_id"]

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)  # a plain `Event` is an Event[Any] to a type checker
else:
    from typing import TypeVar

    T = TypeVar("T")


if TYPE_CHECKING:

    class Topic(Generic[T]):
        """See below. To a type checker it is no str: else each Topic would be one of any type."""

        def __init__(self, name: str) -> None: ...
        def __eq__(self, other: object) -> bool: ...  # so that it may be compared with a str
        def __hash__(self) -> int: ...
        @property
        def payload(self) -> Any:
            """The T of a Topic[T]; Any of a bare Topic."""

else:

    class Topic(str, Generic[T]):
        """An event type and the type of its data: `TICK = Topic[Tick]("TICK")`.

        It is the str "TICK" wherever an event type is. mypy and pyright refuse a handler that takes
        another type of data, and an Event(TICK, ...) of other data. What subscribes to it gets a
        Tick, also without an annotation. Raises ValueError for what is no event type.
        """

        def __new__(cls, name):  # noqa: D102
            if reason := bad_type(name):
                raise ValueError(f"Topic: {reason}")
            return super().__new__(cls, plain(name))

        @property
        def payload(self):
            """The T of a Topic[T]; Any of a bare Topic."""
            kind = getattr(self, "__orig_class__", None)
            return Any if kind is None else get_args(kind)[0]


class EventType(StrEnum):
    """The usual types of a trading desk, equal to their names. Any other string is a type too."""

    NEW_DATA = "NEW_DATA"
    TRADE = "TRADE"
    QUOTE = "QUOTE"
    BAR = "BAR"
    SIGNAL = "SIGNAL"
    ORDER = "ORDER"
    ACK = "ACK"
    FILL = "FILL"
    CANCEL = "CANCEL"
    REJECT = "REJECT"
    POSITION = "POSITION"
    RISK = "RISK"
    HALT = "HALT"
    RESUME = "RESUME"


KNOWN: dict[str, str] = {member.value: member for member in EventType}
"""Each usual type by its name."""


@lru_cache(maxsize=1024)
def _origin(source: str, epoch: int) -> str:
    digits, rest = "", abs(epoch)
    while rest:
        rest, digit = divmod(rest, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return f"{source}@{'-' if epoch < 0 else ''}{digits or '0'}."


def event_id(source: str, epoch: int, seq: int) -> str:
    """`name@epoch.seq`, epoch in base 36; "" for seq 0, which is an event not yet published."""
    return _origin(source, epoch) + str(seq) if seq else ""


def parse_id(id: object) -> tuple[str, int, int]:
    """The source, epoch and seq of an event, of its id. Raises ValueError for what is none."""
    try:
        if isinstance(id, str) and id.isascii():
            name, _, rest = id.rpartition("@")
            epoch, _, seq = rest.rpartition(".")
            found = name, int(epoch, 36), int(seq)
            if event_id(*found) == id:
                return found
    except ValueError:
        pass
    raise ValueError(f"{id!r} is not the id of an event, such as 'feed@h0lvy81pam.17'")


class _Now:
    """The default timestamp, as a signature shows it."""

    def __repr__(self) -> str:
        return "now"


_NOW: Any = _Now()


@dataclass(slots=True, init=False)  # the generated __init__ takes twice as long
class Event(Generic[T]):
    """Something that happened: a type, its data, and where it came from.

    Two events are equal when type, data and key are, so a test can compare what it saw with what it
    expects. The fields below `cause` are set by the bus: publishing stamps the very object it was
    given, and publishing a received event again makes it a new one. Order is `seq`, never
    `timestamp`.
    """

    type: str
    """An `EventType`, or 1-64 of A-Z a-z 0-9 . _ - that begin with a letter or digit."""
    data: T
    """Anything with an exact JSON image; a subscriber gets that image, decoded for it alone."""
    timestamp: float = field(default_factory=clock.time, compare=False)
    """Seconds since 1970 when the event was made; publishing refuses what is below 0 or above 1e11,
    such as milliseconds. An exchange's own time belongs into `data`.
    """
    key: str = field(default="", kw_only=True)
    """What it is about (a symbol, an account): any string up to 128 bytes of UTF-8 without a `*`.
    Subscriptions select by it.
    """
    cause: str = field(default="", kw_only=True, compare=False)
    """The `id` of the event that led to this one: the handler's event, unless you set it."""
    source: str = field(default="", kw_only=True, compare=False)
    """The name of the bus that published it."""
    epoch: int = field(default=0, kw_only=True, compare=False)
    """Which start of that bus: Unix microseconds, to be compared for equality only."""
    seq: int = field(default=0, kw_only=True, compare=False)
    """Its number among all events of (source, epoch), from 1; 0 before it was published."""
    past: bool = field(default=False, kw_only=True, compare=False, repr=False)
    """False if it was surely published after the start of the bus that hands it over. True if it
    may be from before, and may have been acted on then: out of the history (`since`, `after`) or
    the journal of its source. It may be True for a later one, that its source published before the
    two were linked; or before they were linked again, if its source has started again with a
    journal and this bus does not know the start before that one.
    """

    # Its defaults are those of the fields above, which a subclass that is a dataclass takes.
    def __init__(
        self,
        type: str | Topic[T],
        data: T,
        timestamp: float = _NOW,
        *,
        key: str = "",
        cause: str = "",
        source: str = "",
        epoch: int = 0,
        seq: int = 0,
        past: bool = False,
    ) -> None:
        self.type = type  # type: ignore[assignment]
        self.data = data
        self.timestamp = clock.time() if timestamp is _NOW else timestamp
        self.key = key
        self.cause = cause
        self.source = source
        self.epoch = epoch
        self.seq = seq
        self.past = past

    @property
    def id(self) -> str:
        """`name@epoch.seq`, unique for ever; "" before the event was published."""
        return event_id(self.source, self.epoch, self.seq)


_FIELDS = frozenset(each.name for each in fields(Event))


def own_fields(event: Event[Any]) -> list[str]:
    """The names of what an instance of a subclass holds beside the fields of `Event`."""
    names = {each.name for each in fields(event)}.union(getattr(event, "__dict__", ()))
    for kind in type(event).__mro__:
        slots = vars(kind).get("__slots__", ())
        names.update([slots] if isinstance(slots, str) else slots)
    return sorted(name for name in names - _FIELDS if not name.startswith("__"))
