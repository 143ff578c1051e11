"""The page about the wire protocol is true: its reader reads, its messages are those sent."""

import asyncio
import hmac
import importlib
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
import zmq

from aiobus import AsyncEventBus, Event, EventType
from aiobus.codec import encode
from aiobus.discovery import Member
from aiobus.discovery.refusal import Refused, denied_line
from aiobus.discovery.roster import gone_line, hello_line, parse_roster, roster_line
from aiobus.discovery.seal import accepted, answered, opening
from aiobus.keyring.files import Hidden
from aiobus.query import Query
from aiobus.refusals import DENIALS, TOLD
from aiobus.wire import (
    Ack,
    Answer,
    Ask,
    Mark,
    PacedMark,
    PageAsk,
    PeerId,
    Refusal,
    frame,
    heartbeat,
    mail,
    page,
    progress_topic,
    topic,
    up,
)

PAGE = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text()
UNITS = {"": 1, "s": 1, "ms": 1, "bytes": 1, "KiB": 1024, "MiB": 1024 * 1024}

# What the page says byte by byte. Where it breaks a line, the bytes do not.

SHOWN = {
    name: text.replace("\n", "").replace("\\0", "\0").replace("\\n", "\n").encode()
    for name, text in re.findall(r"```text (\w+)\n(.*?)```", PAGE, re.DOTALL)
}
MONITOR = PeerId("monitor", 1_700_000_000_000_000, "tcp://127.0.0.1:7001")
FEED = PeerId("feed", 1_700_000_000_000_001, "tcp://127.0.0.1:7002")
TRADES = topic(Query.of(EventType.TRADE, "BTCUSDT").text)


def row(seq: int, price: float, cause: str = "") -> bytes:
    data = {"price": price}
    return encode(seq, 1_700_000_002.5, EventType.TRADE, "BTCUSDT", data, cause, limit=1024)


SECRET = Hidden(bytes([7]) * 32)
GUEST_NONCE, REGISTRY_NONCE = bytes(range(16)).hex(), bytes(range(16, 32)).hex()
FIRST_LINE = opening([SECRET], GUEST_NONCE)
SERVED, ANSWERED = answered(FIRST_LINE.rstrip(b"\n"), [SECRET], REGISTRY_NONCE)
CAME = accepted(FIRST_LINE, [SECRET], ANSWERED.rstrip(b"\n"))
ROSTER = roster_line([Member("feed", FEED.endpoint), Member("monitor", MONITOR.endpoint)])
CLAIM = roster_line([Member("feed", FEED.endpoint)], [Member("monitor", MONITOR.endpoint)])
FIRST, SECOND = row(43, 38_990.5), row(44, 38_991.0, f"{FEED}.43")
SENT = {
    "topic": topic(Query.of([EventType.TRADE, EventType.BAR], "BTC/USDT").text),
    "hello": MONITOR.topic,
    "observer_hello": PeerId("tail", MONITOR.epoch, f"{MONITOR.endpoint}+").topic,
    "lone": frame(TRADES, "feed", FEED.epoch, 41, 43, [FIRST]),
    "frame": frame(TRADES, "feed", FEED.epoch, 41, 44, [FIRST, SECOND]),
    "beacon": frame(TRADES, "feed", FEED.epoch, 44, 44, []),
    "progress_topic": progress_topic(TRADES),
    "progress_message": frame(progress_topic(TRADES), "feed", FEED.epoch, 44, 44, []),
    "heartbeat": heartbeat("feed", FEED.epoch, 44),
    "bye": heartbeat("feed", FEED.epoch, 44, leaving=True),
    "ask": up(Ask("feed", 7, MONITOR)),
    "answer": mail(MONITOR, Answer(7, FEED, 12.5, 44, is_open=True)),
    "refusal": mail(
        MONITOR,
        Refusal(
            7, FEED, 12.5, 44, True, True, {"TRADE/BTCUSDT": "32768 queries are served already"}
        ),
    ),
    "page_ask": up(PageAsk("feed", 3, MONITOR, FEED.epoch, "TRADE/BTCUSDT", 41, 8192, None, 0)),
    "page": page(MONITOR, 3, "feed", FEED.epoch, 0, 41, 0, 43, 44, None, [FIRST]),
    "mark": mail(MONITOR, Mark(9, FEED, (("TRADE/BTCUSDT", 44),))),
    "paced_mark": mail(MONITOR, PacedMark(9, FEED, (("TRADE/BTCUSDT", 44),), 52, ("feed",))),
    "ack": up(Ack("feed", 9, MONITOR)),
    "hello_line": hello_line(Member("monitor", MONITOR.endpoint)).rstrip(b"\n"),
    "roster_line": ROSTER.rstrip(b"\n"),
    "denied_line": denied_line("keys").rstrip(b"\n"),
    "refused_line": Refused("feed", "monitor", "unknown").line.rstrip(b"\n"),
    "seal_line": FIRST_LINE.rstrip(b"\n"),
    "sealed_answer": ANSWERED.rstrip(b"\n"),
    "sealed_hello": CAME.seal(hello_line(Member("monitor", MONITOR.endpoint))).rstrip(b"\n"),
    "gone_line": gone_line([Member("monitor", MONITOR.endpoint)]).rstrip(b"\n"),
    "sealed_roster": SERVED.seal(CLAIM).rstrip(b"\n"),
}


def test_every_kind_of_message_is_shown() -> None:
    assert SHOWN.keys() == SENT.keys()


@pytest.mark.parametrize("name", SENT)
def test_a_message_is_shown_as_it_is_sent(name: str) -> None:
    assert SHOWN[name] == SENT[name]


def test_a_code_is_what_the_page_says_it_is() -> None:
    """Computed anew, from the words of the page alone."""

    def code(direction: str, number: int, line: bytes) -> bytes:
        text = f"aiobus rendezvous 1 {direction} {number}\n".encode()
        text += SHOWN["seal_line"] + b"\n" + REGISTRY_NONCE.encode() + b"\n" + line
        return hmac.new(SECRET.value, text, "sha256").hexdigest().encode()

    identity = hmac.new(SECRET.value, b"aiobus rendezvous 1 id", "sha256").hexdigest()[:16]
    assert SHOWN["seal_line"] == orjson.dumps(["seal", 1, GUEST_NONCE, [identity]])
    for name, direction, number in [
        ("sealed_answer", "registry", 1),
        ("sealed_hello", "guest", 1),
        ("sealed_roster", "registry", 2),
    ]:
        assert SHOWN[name][:64] == code(direction, number, SHOWN[name][64:])
    assert parse_roster(SHOWN["sealed_roster"][64:]).claimed[0].name == "monitor"
    for codes in (TOLD, DENIALS):
        assert all(f"`{each}`" in PAGE for each in codes)


@pytest.mark.parametrize(
    ("figure", "constant"), re.findall(r"^\| ([^|]+) \| `(aiobus\.[\w.]+)` \|", PAGE, re.MULTILINE)
)
def test_a_figure_is_that_of_the_code(figure: str, constant: str) -> None:
    module, _, name = constant.rpartition(".")
    number, _, unit = figure.partition(" ")
    value = float(number.replace(",", "")) * UNITS[unit]
    assert getattr(importlib.import_module(module), name) == value


# The reader, in a process of its own.


@asynccontextmanager
async def reader(endpoint: str) -> AsyncIterator[asyncio.StreamReader]:
    """What the reader of the page prints about a publisher."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", code, endpoint, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.kill()
        await process.communicate()


async def test_the_reader_reads_every_event_of_a_bus_once_it_is_connected(
    folder: Path, no_task_is_left: None
) -> None:
    async with (
        AsyncEventBus(f"ipc://{folder}", name="feed") as bus,
        reader(f"ipc://{folder}/feed.sock") as lines,
    ):
        first = asyncio.ensure_future(lines.readline())
        while not first.done():  # nothing tells when it has connected: it is no member
            await bus.publish(Event(EventType.TRADE, {"price": 1}, key="BTC"))
            await asyncio.wait([first], timeout=0.01)
        seq = int(first.result().split()[1])
        while seq < bus.stats().published:
            seq += 1
            assert await lines.readline() == b'feed %d BTC {"price": 1}\n' % seq
        await bus.publish(Event(EventType.QUOTE, {"bid": 1}, key="BTC"))
        await bus.publish(Event(EventType.TRADE, {"price": 2}, key="BTC"))
        assert await lines.readline() == b'feed %d BTC {"price": 2}\n' % (seq + 2)


async def test_the_reader_tells_what_it_missed_and_prints_nothing_twice(folder: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.setsockopt(zmq.LINGER, 0)
        publisher.bind(f"ipc://{folder}/feed.sock")
        async with reader(f"ipc://{folder}/feed.sock") as lines:
            assert await asyncio.to_thread(publisher.recv) == b"\1TRADE\0"
            for prev, seqs in [(0, [1, 2]), (0, [1, 2]), (5, [6]), (9, [])]:
                rows = [row(seq, 1.0) for seq in seqs]
                publisher.send(frame(b"TRADE\0", "feed", 7, prev, [prev, *seqs][-1], rows))
            assert [await lines.readline() for _ in range(5)] == [
                b'feed 1 BTCUSDT {"price": 1.0}\n',
                b'feed 2 BTCUSDT {"price": 1.0}\n',
                b"feed: trades in (2, 5] are lost\n",
                b'feed 6 BTCUSDT {"price": 1.0}\n',
                b"feed: trades in (6, 9] are lost\n",
            ]
