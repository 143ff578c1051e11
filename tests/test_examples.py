"""Every example does what it says, run the way a newcomer runs it."""

import asyncio
import csv
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from aiobus import AsyncEventBus, Event, EventType

EXAMPLES = Path(__file__).parents[1] / "examples"
TICKS, TRADES, QUOTES = 2_452, 2_001, 451
CHAIN = re.compile(
    r"trade [\d,.]+ -- .* -> signal (buy |sell) -- .* -> order -- .* -> fill [\d,.]+  = .*"
)


def run(*command: str) -> list[str]:
    """The lines that `python command...` prints. It has to succeed, in any directory, and must not
    complain of anything.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout.splitlines()


def example(name: str) -> str:
    return str(EXAMPLES / name)


def tally(lines: list[str]) -> dict[str, int]:
    """The numbers of the demo's summary."""
    counts = (re.match(r"(ticks|signals|orders|fills) +([\d,]+)", line) for line in lines)
    return {found[1]: int(found[2].replace(",", "")) for found in counts if found}


def number_in(line: str) -> int:
    """The first number of a line."""
    found = re.search(r"[\d,]+", line)
    assert found, line
    return int(found[0].replace(",", ""))


# As scripts.


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.name)
def test_an_example_is_under_60_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60


def test_the_quickstart_prints_a_signal_for_every_large_trade() -> None:
    lines = run(example("quickstart.py"))
    assert len(lines) == 12
    assert re.fullmatch(r"BTCUSDT sell at 39,430\.36   caused by desk@\w+\.\d+", lines[0])


def test_the_demo_counts_every_tick_and_fills_every_order() -> None:
    lines = run(example("bots/all_in_one.py"), "--speed", "50")
    counts = tally(lines)
    assert f"({TRADES:,} trades, {QUOTES} quotes)" in "\n".join(lines)
    assert counts["ticks"] == TICKS
    assert counts["signals"] == counts["orders"] == counts["fills"]
    assert 10 <= counts["fills"] <= 40


def test_the_demo_shows_the_chain_of_every_fill_while_it_runs() -> None:
    lines = run(example("bots/all_in_one.py"), "--speed", "inf")
    chains = [line for line in lines if CHAIN.fullmatch(line)]
    assert len(chains) == tally(lines)["fills"]
    assert lines.index(chains[-1]) < next(i for i, x in enumerate(lines) if x.startswith("ticks"))
    assert re.search(r"p50 .+ p90 .+ p99 .+", lines[-1])


def test_ctrl_c_ends_the_demo_with_a_summary_of_what_happened_so_far() -> None:
    with subprocess.Popen(
        [sys.executable, example("bots/all_in_one.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        assert "BTCUSDT" in demo.stdout.readline()
        demo.send_signal(signal.SIGINT)
        output, errors = demo.communicate(timeout=20)
    assert (demo.returncode, errors) == (0, "")
    assert tally(output.splitlines())["ticks"] < TICKS


def test_the_demo_refuses_to_stand_still() -> None:
    command = [sys.executable, example("bots/all_in_one.py"), "--speed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)
    assert done.returncode == 2
    assert "--speed must be above 0" in done.stderr


def test_a_conflated_subscription_never_hands_over_an_old_quote() -> None:
    published, conflated, priced, *symbols = run(example("conflation.py"))
    assert number_in(published) == number_in(conflated) + number_in(priced)
    assert " 0 of them outdated" in priced
    for line in symbols:
        newest, last = re.findall(r"[\d,]+\.\d+", line)
        assert newest == last
    assert len(symbols) == 3


def test_halt_overtakes_the_quotes_that_wait() -> None:
    took, pending, _ = run(example("kill_switch.py"))
    assert took.startswith("HALT (kill switch) was handled")
    assert number_in(pending) > 1_000


def test_a_blocked_pipeline_stores_everything_and_holds_no_more_than_it_has_room_for() -> None:
    stored, _, peak = run(example("pipeline.py"))
    assert stored == f"{TRADES:,} of {TRADES:,} trades stored"
    assert number_in(peak) <= 17


def test_the_test_of_a_strategy_passes() -> None:
    lines = run("-m", "pytest", "-p", "no:cacheprovider", example("test_strategy.py"))
    assert "3 passed" in lines[-1]


# Their bots, in this process.


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Import an example as its neighbours do, by its bare name; forgotten after the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(EXAMPLES / "bots"))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin is not None and Path(origin).is_relative_to(EXAMPLES):
            del sys.modules[name]


@pytest.fixture
async def seen(bus: AsyncEventBus) -> list[Event[Any]]:
    """Every event of the bus."""
    seen: list[Event[Any]] = []
    await bus.subscribe("*", seen.append)
    return seen


def signal_event() -> Event[Any]:
    return Event(EventType.SIGNAL, {"side": "buy"}, key="BTCUSDT")


@pytest.mark.parametrize(("side", "price"), [("buy", 101.0), ("sell", 99.0)])
async def test_the_broker_fills_buys_at_the_ask_and_sells_at_the_bid(
    bus: AsyncEventBus,
    seen: list[Event[Any]],
    load: Callable[[str], ModuleType],
    side: str,
    price: float,
) -> None:
    await load("broker").broker(bus)
    await bus.publish(Event(EventType.QUOTE, {"bid": 99.0, "ask": 101.0}, key="BTCUSDT"))
    await bus.settle()
    order = Event(EventType.ORDER, {"side": side, "quantity": 2.0}, key="BTCUSDT")
    await bus.publish(order)
    await bus.settle()
    fill = Event(EventType.FILL, {"side": side, "quantity": 2.0, "price": price}, key="BTCUSDT")
    assert seen[2:] == [Event(EventType.ACK, {}, key="BTCUSDT"), fill]
    assert {reply.cause for reply in seen[2:]} == {order.id}


async def test_an_order_before_the_first_quote_is_rejected(
    bus: AsyncEventBus,
    load: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:
    await load("broker").broker(bus)
    await load("strategy").strategy(bus)
    await bus.publish(signal_event())
    await bus.settle()
    assert "was rejected: no quote yet" in capsys.readouterr().out


async def test_a_signal_without_a_broker_is_dropped_and_said_so(
    bus: AsyncEventBus,
    load: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:
    await load("strategy").strategy(bus)
    await bus.publish(signal_event())
    await bus.settle()
    assert "no broker is there" in capsys.readouterr().out


async def test_an_order_that_nobody_answers_is_cancelled(
    bus: AsyncEventBus,
    seen: list[Event[Any]],
    load: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bots = load("strategy")
    monkeypatch.setattr(bots, "PATIENCE", 0.01)
    await bots.strategy(bus)
    await bus.publish(signal_event())
    await bus.settle()
    _, order, cancel = seen
    assert order.type == EventType.ORDER
    assert cancel == Event(EventType.CANCEL, {"order": order.id}, key="BTCUSDT")


async def test_a_fill_that_overtakes_its_cause_is_shown_once_that_is_there(
    bus: AsyncEventBus,
    load: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:
    watched = await load("monitor").monitor(bus)
    trade = await bus.publish(Event(EventType.TRADE, {"price": 100.0}))
    order = Event(EventType.ORDER, {}, cause=trade.id)
    order_id = f"{trade.id.rpartition('.')[0]}.{trade.seq + 2}"
    await bus.publish(Event(EventType.FILL, {"price": 101.0}, cause=order_id))
    await bus.settle()
    assert capsys.readouterr().out == ""
    await bus.publish(order)
    await bus.settle()
    assert re.fullmatch(
        r"trade 100\.00 -- .* -> order -- .* -> fill 101\.00  = .*\n", capsys.readouterr().out
    )
    assert len(watched.tick_to_fill) == 1


# The WebSocket feed, against an exchange of our own.


def binance_messages() -> list[str]:
    """The recorded trades as Binance would send them."""
    with (EXAMPLES / "data" / "btcusdt-trades-2021-01-08.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        json.dumps(
            {
                "e": "trade",
                "E": round(float(row["timestamp"]) * 1_000) + 1,
                "s": "BTCUSDT",
                "t": int(row["trade_id"]),
                "p": row["price"],
                "q": row["quantity"],
                "T": round(float(row["timestamp"]) * 1_000),
                "m": row["buyer_maker"] == "True",
                "M": True,
            }
        )
        for row in rows
    ]


class Exchange:
    """Sends the first half of the trades, drops the connection, and sends the rest on the next."""

    def __init__(self) -> None:
        messages = binance_messages()
        half = len(messages) // 2
        self.parts = [messages[:half], messages[half:]]
        self.connections = 0

    async def serve(self, connection: ServerConnection) -> None:
        part = self.parts[self.connections]
        self.connections += 1
        for message in part:
            await connection.send(message)
        if self.connections == 1:
            await (await connection.ping())  # all that was sent is there
            connection.transport.abort()
        await connection.wait_closed()


async def test_all_trades_of_a_websocket_arrive_though_it_is_dropped_once(
    bus: AsyncEventBus, load: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    exchange = Exchange()
    recorded = [Event(type, data, key="BTCUSDT") for type, data in load("feed").trades()]
    async with (
        serve(exchange.serve, "127.0.0.1", 0) as server,
        bus.stream(EventType.TRADE) as trades,
    ):
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        feed = asyncio.create_task(load("websocket_feed").websocket_feed(bus, url))
        seen = [await anext(trades) for _ in recorded]
        feed.cancel()
        await asyncio.wait([feed])
    assert seen == recorded
    assert exchange.connections == 2
    assert "connecting again" in capsys.readouterr().out


async def test_the_websocket_feed_prints_trades_until_ctrl_c(no_task_is_left: None) -> None:
    exchange = Exchange()
    async with serve(exchange.serve, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = await asyncio.create_subprocess_exec(
            sys.executable,
            example("websocket_feed.py"),
            url,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert client.stdout is not None
        assert await client.stdout.readline() == b"BTCUSDT 39432.48 sell\n"
        client.send_signal(signal.SIGINT)
        _, errors = await client.communicate()
    assert client.returncode == 0
    assert b"Traceback" not in errors
