"""Every message between buses, as bytes and back: subscriptions, data, heartbeats,
questions and answers.

Owns the form of every message, and the refusal of whatever is not of that form: no peer is trusted,
and what it sent raises WireError and nothing else, in time proportional to its length. Pure: who
sends, who asks, and what follows from an answer are not known here.

Down from a publisher comes a topic, which ends with a zero byte, and then JSON. Up to all
publishers goes a JSON list that names the bus it is for.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import orjson

from aiobus.history import Since
from aiobus.limits import MAX_QUERY, MAX_TOLD
from aiobus.query import Query, bad_name, parse_query
from aiobus.rows import MAX_NUMBER, SEPARATOR, Rows, Source, WireError, shape

__all__ = [
    "HEARTBEATS", "MAX_BEGINS", "NO_OPTIONS", "PROGRESS", "VERSION", "Ack", "Answer", "Ask",
    "Frame", "Heartbeat", "Mark", "Options", "OtherVersion", "PacedMark", "PageAnswer", "PageAsk",
    "PeerId", "Refusal", "WireError", "frame", "heartbeat", "mail", "page", "parse_from_publisher",
    "parse_from_subscriber", "parse_peer_id", "parse_topic", "progress_topic", "topic", "up",
]  # fmt: skip

VERSION = 2
HEARTBEATS = b"~\0"
"""The topic of heartbeats."""
PROGRESS = b"-"
"""The first byte of a topic that asks for progress messages alone."""
MAX_SOURCES = 4_096
MAX_BEGINS = 64
"""Starts that a journal remembers, and that an answer tells."""
MORE_REFUSED = "so many queries are refused that not all are named"
MAX_DIGITS = 20
"""Of a seq and the comma behind it."""


_DIGEST = re.compile("(?:[0-9a-f]{16})?")
_WHO = re.compile(r"([^@]+)@(0|[1-9a-z][0-9a-z]{0,12}) ([!-~]{1,256})")


class OtherVersion(WireError):
    """A message of a bus that speaks another version of this protocol."""

    def __init__(self, version: int) -> None:
        super().__init__(f"a message of version {version}, this is version {VERSION}")
        self.version = version


# Peers.


@dataclass(frozen=True, slots=True)
class PeerId:
    """A bus as others know it: its name, which start of it, and where it listens."""

    name: str
    epoch: int
    endpoint: str

    @property
    def text(self) -> str:
        """`name@epoch endpoint`, epoch in base 36: what `parse_peer_id` reads."""
        return f"{self} {self.endpoint}"

    @property
    def source(self) -> Source:
        """Whose numbers its events have."""
        return self.name, self.epoch

    @property
    def topic(self) -> bytes:
        """Its hello, by which others know that it is there, and its mailbox."""
        return b"~%b\0" % self.text.encode()

    def __str__(self) -> str:
        return f"{self.name}@{_base36(self.epoch)}"


@lru_cache(maxsize=4096)
def parse_peer_id(text: str) -> PeerId:
    """The bus that `text` is the text of, exactly. Raises WireError for every other text."""
    if not (found := _WHO.fullmatch(text)):
        raise WireError(f"no bus, which is `name@epoch endpoint`: {shape(text)}")
    return PeerId(_part("name", found[1]), _part("epoch", int(found[2], 36)), found[3])


@lru_cache(maxsize=4096)
def _base36(number: int) -> str:
    head = _base36(number // 36) if number >= 36 else ""
    return head + "0123456789abcdefghijklmnopqrstuvwxyz"[number % 36]


# Subscriptions.


def topic(query: str) -> bytes:
    """The topic to subscribe to for the events of `query`, which is the text of a Query."""
    return b"%b\0" % query.encode()


def progress_topic(topic: bytes) -> bytes:
    """The topic to subscribe to for the progress messages alone of `topic`."""
    return PROGRESS + topic


def parse_topic(topic: bytes) -> Query | PeerId | None:
    """The query whose events or beacons a subscription asks for, the bus whose mail, or None for
    heartbeats. Raises WireError for anything else.
    """
    if not topic.endswith(b"\0") or topic.count(b"\0") > 1:
        raise WireError(f"no subscription, which ends with its one zero byte: {len(topic)} bytes")
    if topic == HEARTBEATS:
        return None
    try:
        text = topic[:-1].decode()
        return (
            parse_peer_id(text[1:]) if text.startswith("~") else parse_query(text.removeprefix("-"))
        )
    except ValueError as error:
        raise WireError(f"no subscription: {error}") from None


# What comes down: data, heartbeats, and answers in a mailbox.


def frame(
    topic: bytes, source: str, epoch: int, prev: int, newest: int, rows: Sequence[bytes]
) -> bytes:
    """Rows of events, as the codec encodes them, after `prev` on this topic; the last of them has
    the seq `newest`. No rows: a beacon, which says that nothing came after `prev`.
    """
    head = b'%b[%d,"%b",%d,%d' % (topic, VERSION, source.encode(), epoch, prev)
    if len(rows) > 1:
        return b"%b,%d,%d\n,[%b]]" % (head, newest, len(rows), SEPARATOR.join(rows))
    # A lone event is most of what a subscriber of one symbol gets, so its head is short.
    return b"%b\n,%b]" % (head, rows[0]) if rows else head + b"]"


class Frame(Rows):
    """All events of one source after `prev` for the query of `topic`, which this bus may not have
    asked for. Its head says all that is to be decided; its rows are not looked at.
    """

    __slots__ = ("topic",)

    def __init__(self, topic: bytes, message: bytes) -> None:
        self.topic = topic
        begin = message.find(b"\0") + 1
        end = message.find(b"\n", begin)
        head = message[begin:] if end < 0 else message[begin:end] + b"]"
        try:
            fields = orjson.loads(head)
        except orjson.JSONDecodeError as error:
            raise _no_json(head, error) from None
        if type(fields) is not list:
            raise WireError(f"no frame: {shape(fields)}")
        length, size = len(fields), len(message)
        if length == 6 and message[end : end + 3] == b"\n,[" and message.endswith(b"]]"):
            newest, count = fields[4:]
            end, size = end + 3, size - 2
        elif length == 4 and message[end : end + 3] == b"\n,[" and message.endswith(b"]"):
            comma = message.find(b",", end + 3, end + 3 + MAX_DIGITS)
            seq = message[end + 3 : max(end + 3, comma)]  # the number at the beginning of the row
            newest, count = int(seq) if seq.isdigit() else None, 1
            end, size = end + 2, size - 1
        else:
            newest, count, end = fields[3] if length == 4 and end < 0 else None, 0, size
        source, prev = _checked(fields, newest, count)
        super().__init__(message, end, size, source, (prev, newest), count, is_frame=True)


def _checked(fields: Any, newest: Any, count: Any) -> tuple[Source, int]:
    """Source and prev of a frame. It is quick for a source that was right before."""
    try:
        version, source, epoch, prev = fields[:4]
        if (
            type(version) is type(epoch) is type(prev) is type(newest) is type(count) is int
            and version == VERSION
            and (known := _sources.get((source, epoch))) is not None
            and 0 <= prev <= newest <= MAX_NUMBER
            and 0 <= count <= newest - prev
            and (count > 0 or newest == prev)
        ):
            return known, prev
    except (TypeError, ValueError):
        pass  # what is wrong with it is about to be said
    match fields:
        case [int(version), *_] if version != VERSION:
            raise OtherVersion(version)
    _, source, epoch, prev, newest, count = _parts(
        "version name epoch seq seq seq", [*fields[:4], newest, count]
    )
    if not (0 < count <= newest - prev or (prev == newest and count == 0)):
        raise WireError(f"a frame of {count} events after {prev} up to {newest}")
    if len(_sources) >= MAX_SOURCES:
        _sources.clear()
    return _sources.setdefault((source, epoch), (source, epoch)), prev


_sources: dict[Source, Source] = {}
"""Names and epochs that were right. A peer cannot fill the memory with more."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A bus is alive, and `seq` is the number of its last event. `leaving`: it was its last."""

    name: str
    epoch: int
    seq: int
    leaving: bool


def heartbeat(name: str, epoch: int, seq: int, *, leaving: bool = False) -> bytes:
    """A sign of life; with `leaving` the last one."""
    return HEARTBEATS + orjson.dumps([name, epoch, seq, *(["bye"] if leaving else [])])


@dataclass(frozen=True, slots=True)
class Options:
    """A bus says these of itself in each `?` and its answer. An option that is left out has the
    value below. A reader ignores other options, so later versions of aiobus may say more.
    """

    begin: int = 0
    """The seq after which this start of the bus publishes: above 0 if its epoch goes on, and then
    above each seq that an earlier start can have used.
    """
    start: int = 0
    """The number of this start within its epoch, from 0."""
    begins: tuple[int, ...] = ()
    """In an answer to a bus that knows another start of this epoch: the `begin` of each of the last
    starts in the journal, this one last. Each is drawn at random, so another copy of the journal
    that has gone on names others.
    """
    journaled: bool = False
    """Its events outlive its process."""
    queries: str = ""
    """In a `?`: what it has subscribed to, as `presence` writes it."""
    known_epoch: int = 0
    known_start: int = 0
    known_begin: int = 0
    known_seq: int = 0
    """If the other bus has a journal: its epoch, `start` and `begin` as the sender knows them, and
    the seq that it surely had reached in that start.
    """
    numbered: int = 0
    """In an answer: the seq of its newest event if that is above the `seq` of the answer. The
    events between wait to be committed.
    """
    clock: int = 0
    """In an answer: Unix microseconds by the clock of its sender as it answered."""
    members: int = 0
    members_digest: str = ""
    """The number of its sender's list of members, and 16 hexadecimal digits of what is in it; of a
    bus with a keyring.
    """

    @property
    def lineage(self) -> dict[int, int]:
        """The last starts of the journal that are told, by number, and the `begin` of each."""
        begins = self.begins or (self.begin,)
        return dict(enumerate(begins, self.start + 1 - len(begins)))


NO_OPTIONS = Options()


@dataclass(frozen=True, slots=True)
class Answer:
    """To an Ask: I know your subscriptions. I am `age` seconds old, my last event was `seq`."""

    nonce: int
    who: PeerId
    age: float
    seq: int
    is_open: bool
    options: Options = field(default=NO_OPTIONS, kw_only=True)

    def refusal(self, query: str) -> str | None:
        """Why this query is not live there; None when it is."""
        return None


@dataclass(frozen=True, slots=True)
class Refusal(Answer):
    """An Answer, but not all of your queries are live here: `refused` says which are not, and why.
    Unless it `is_all`, there are more of them, and of no other query is it known that it is live.
    """

    is_all: bool
    refused: dict[str, str]

    def refusal(self, query: str) -> str | None:
        """Why this query is not live there, or may not be; None when it is."""
        return self.refused.get(query, None if self.is_all else MORE_REFUSED)


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """To a PageAsk: the kept events in `(after, to]` that the query matches. Those up to `evicted`
    are forgotten; there is more while `to` is below `newest`. `begin`: that of the start that
    answers. `reached`: where it began at a time, the Unix seconds from which on nothing is missing.
    """

    nonce: int
    source: str
    epoch: int
    begin: int
    after: int
    evicted: int
    to: int
    newest: int
    reached: float | None
    rows: Rows


@dataclass(frozen=True, slots=True)
class Mark:
    """Send an Ack when you have reached these: (query, seq) of the streams you were sent."""

    mark: int
    who: PeerId
    streams: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class PacedMark(Mark):
    """The Mark of a publisher that does not outrun its readers. On each of the streams nothing was
    sent between its seq and `upto`. Handlers of the buses `waiting` wait for it.
    """

    upto: int
    waiting: tuple[str, ...]


def mail(to: PeerId, value: Answer | Mark) -> bytes:
    """`value` in the mailbox of `to`."""
    return to.topic + _dumps(value)


def page(
    to: PeerId,
    nonce: int,
    source: str,
    epoch: int,
    begin: int,
    after: int,
    evicted: int,
    to_seq: int,
    newest: int,
    reached: float | None,
    rows: Sequence[bytes],
) -> bytes:
    """A PageAnswer in the mailbox of `to`, its rows as the codec encodes them."""
    where = [after, evicted, to_seq, newest, reached, len(rows)]
    fields = ["!", nonce, source, epoch, begin, *where]
    return b"%b%b\n,[%b]]" % (to.topic, orjson.dumps(fields)[:-1], SEPARATOR.join(rows))


def parse_from_publisher(
    message: bytes, me: PeerId
) -> Frame | Heartbeat | Answer | PageAnswer | Mark:
    """One message of a publisher to `me`, read. Raises WireError for anything else, and for mail of
    other buses.
    """
    end = message.find(b"\0", 0, MAX_QUERY + 1 + message.startswith(PROGRESS)) + 1
    if end < 2:
        raise WireError(f"{len(message)} bytes that do not begin with a topic")
    topic = message[:end]
    if not topic.startswith(b"~"):
        return Frame(topic.removeprefix(PROGRESS), message)
    if topic == HEARTBEATS:
        fields = _loads(message[end:])
        leaving = type(fields) is list and fields[3:] == ["bye"]
        name, epoch, seq = _parts("name epoch seq", fields[:3] if leaving else fields)
        return Heartbeat(name, epoch, seq, leaving)
    if topic != me.topic:
        raise WireError("mail for another bus")
    if message.startswith(b'["!"', end):
        return _read_page(message, end)
    found: Answer | Mark = _read((Answer, Refusal, Mark, PacedMark), message[end:])
    return found


def _read_page(message: bytes, at: int) -> PageAnswer:
    end = message.find(b"\n", at)
    if end < 0 or message[end : end + 3] != b"\n,[" or not message.endswith(b"]]"):
        raise WireError(f"a page of {len(message)} bytes without rows")
    fields = _loads(message[at:end] + b"]")[1:]
    nonce, name, epoch, begin, after, evicted, to, newest, reached, count = _parts(
        "nonce name epoch begin seq seq seq seq reached seq", fields
    )
    if not (after <= to <= newest and evicted <= newest and count <= to - after):
        raise WireError("a page whose numbers contradict each other")
    span = (name, epoch), (after, to)
    rows = Rows(message, end + 3, len(message) - 2, *span, count, is_frame=False)
    return PageAnswer(nonce, name, epoch, begin, after, evicted, to, newest, reached, rows)


# What goes up: questions.


@dataclass(frozen=True, slots=True)
class Ask:
    """Do you know my subscriptions? `to` is the name of a bus, or `"*"` for every bus."""

    to: str
    nonce: int
    who: PeerId
    options: Options = field(default=NO_OPTIONS, kw_only=True)


@dataclass(frozen=True, slots=True)
class PageAsk:
    """Send the events after `after` that you have kept of `query`, at most `limit`. `query` is a
    text that is not parsed yet; `since` and `upto` are as in a `Want`.
    """

    to: str
    nonce: int
    who: PeerId
    epoch: int
    query: str
    after: int
    limit: int
    since: Since
    upto: int


@dataclass(frozen=True, slots=True)
class Ack:
    """I have reached what your Mark named."""

    to: str
    mark: int
    who: PeerId


def up(question: Ask | PageAsk | Ack) -> bytes:
    """The message for all publishers, of whom `to` is meant."""
    return _dumps(question)


def parse_from_subscriber(message: bytes) -> Ask | PageAsk | Ack:
    """One question of another bus, read. Raises WireError for anything else."""
    question: Ask | PageAsk | Ack = _read((Ask, PageAsk, Ack), message)
    return question


# The form of questions and answers: a sign, and then the fields of the class.

_FORMS: dict[Any, str] = {
    Ask: "? version name* nonce who options",
    Answer: "? version nonce who age seq flag options",
    Refusal: "- version nonce who age seq flag flag refused options",
    PageAsk: "! name nonce who epoch query seq limit since seq",
    Mark: "= mark who streams",
    PacedMark: "& mark who streams seq waiting",
    Ack: "= name mark who",
}
ASK_OF_1 = ["?", str, int, str]
"""The fields of an Ask of version 1, which does not say its version."""


def _dumps(value: Ask | PageAsk | Ack | Answer | Mark) -> bytes:
    fields: list[Any] = [_text(getattr(value, name)) for name in value.__match_args__]
    if isinstance(value, Ask | Answer):
        usual = asdict(NO_OPTIONS)
        said = {name: each for name, each in asdict(value.options).items() if each != usual[name]}
        fields = [VERSION, *fields, said]
    return orjson.dumps([_FORMS[type(value)][0], *fields])


def _text(field: Any) -> Any:
    if isinstance(field, PeerId):
        return field.text
    return list(field.items()) if isinstance(field, dict) else field


def _read(forms: tuple[Any, ...], json: bytes) -> Any:
    fields = _loads(json)
    for form in forms:
        if type(fields) is not list or fields[:1] != [_FORMS[form][0]]:
            continue
        if not issubclass(form, Ask | Answer):
            return form(*_parts(_FORMS[form][2:], fields[1:]))
        if [fields[0], *map(type, fields[1:])] == ASK_OF_1:
            raise OtherVersion(1)
        if len(fields) > 1 and type(fields[1]) is int and fields[1] != VERSION:
            raise OtherVersion(fields[1])
        _, *parts, options = _parts(_FORMS[form][2:], fields[1:])
        return form(*parts, options=options)
    raise WireError(f"no question and no answer: {shape(fields)}")


def _parts(names: str, fields: Any) -> list[Any]:
    """The parts of a message, read, if there is one for each of the names."""
    parts = names.split()
    if type(fields) is not list or len(fields) != len(parts):
        raise WireError(f"not [{', '.join(parts)}] but {shape(fields)}")
    return list(map(_part, parts, fields))


def _part(name: str, value: Any) -> Any:
    """`value`, read as a part of this name; most are numbers."""
    kind = type(value)
    match name:
        case "name" | "name*":
            right = kind is str and (not bad_name(value) or (name, value) == ("name*", "*"))
        case "query":
            right = kind is str and len(value.encode()) <= MAX_QUERY
        case "reason":
            right = kind is str
        case "age":
            right = kind in (int, float) and value >= 0
        case "since" | "reached":
            right = value is None or kind in (int, float) or (name, value) == ("since", "last")
        case "who" | "flag" | "streams" | "refused" | "options" | "waiting":
            right = kind is {"who": str, "flag": bool, "options": dict}.get(name, list)
        case _:
            least, most = (1, 1_000_000) if name == "limit" else (0, MAX_NUMBER)
            right = kind is int and least <= value <= most
    if not right:
        raise WireError(f"no {name}: {shape(value)}")
    if name == "refused":
        return dict(_parts("query reason", each) for each in value)
    if name == "options":
        return _options(value)
    if name == "streams":
        return tuple(tuple(_parts("query seq", stream)) for stream in value)
    if name == "waiting":
        return tuple(_part("name", each) for each in value)
    return parse_peer_id(value) if name == "who" else value


def _options(said: dict[str, Any]) -> Options:
    options: dict[str, Any] = {}
    for name, usual in asdict(NO_OPTIONS).items():
        if name not in said:
            continue
        value, kind = said[name], type(usual)
        right = type(value) is (list if kind is tuple else kind)
        if right and kind is tuple:
            right = len(value) <= MAX_BEGINS
            value = tuple(_part("seq", each) for each in value)
        elif right:
            right = len(value) <= MAX_TOLD if kind is str else 0 <= value <= MAX_NUMBER
            right = right and (name != "members_digest" or bool(_DIGEST.fullmatch(value)))
        if not right:
            raise WireError(f"no option {name}: {shape(value)}")
        options[name] = value
    return Options(**options)


def _loads(json: bytes) -> Any:
    try:
        return orjson.loads(json)
    except orjson.JSONDecodeError as error:
        raise _no_json(json, error) from None


def _no_json(json: bytes, error: orjson.JSONDecodeError) -> WireError:
    return WireError(f"{len(json)} bytes that are not JSON at character {error.pos}")
