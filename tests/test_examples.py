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
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest
from websockets.asyncio.server import ServerConnection, serve

from aiobus import AsyncEventBus, Event, EventType, Journal, explain
from aiobus.discovery import directory

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
BOTS = ("feed", "strategy", "broker", "monitor")
URL = "ipc://desk"
TICKS, TRADES, QUOTES = 2_452, 2_001, 451
CHAIN = re.compile(
    r"trade [\d,.]+ --.* -> signal (buy |sell) --.* -> order --.* -> fill [\d,.]+  = .*"
)


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where the directories of named buses and the temporary files of all examples are. Its path is
    short, since that of a socket has to be; when all is over nothing is left in it.

    No environment variable moves `ipc://desk`, so every interpreter that is started here begins by
    putting the directory in the place of /tmp.
    """
    with tempfile.TemporaryDirectory(prefix="aiobus-") as place:
        code = f"from aiobus.discovery import directory; directory.TMP = {place!r}"
        (tmp_path / "sitecustomize.py").write_text(code)
        paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
        monkeypatch.setattr(directory, "TMP", place)
        monkeypatch.setenv("TMPDIR", place)
        monkeypatch.setenv("AIOBUS_LOG", "WARNING")  # whatever is logged then is a complaint
        yield Path(place)
        left = [path for path in Path(place).rglob("*") if path.name != f"aiobus-{os.geteuid()}"]
        assert left == []


def run(*command: str, complaints: str = "") -> list[str]:
    """The lines that `python command...` prints. It has to succeed, in any directory, and must not
    complain of anything but what the pattern `complaints` matches.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(complaints, of_the_example(done.stderr)), done.stderr
    return done.stdout.splitlines()


def of_the_example(errors: str) -> str:
    """What it complains of, less the line that says that this machine has not run it for a while:
    the suite takes all processors. It may be the recorder that says so, whose disk is not the
    cause: `test_recorder.py` shows that a recording never waits for one on the loop.
    """
    held = (
        r"[^\n]*the event loop of \S+ was held for [\d.]+ s, by other code of this process[^\n]*\n"
    )
    return re.sub(held, "", errors)


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


@pytest.mark.slow
def test_a_gateway_that_is_killed_executes_each_order_once_and_says_what_is_unknown() -> None:
    lines = run(example("journaled_gateway.py"))
    assert [line for line in lines if line.startswith("exchange")] == [
        f"exchange: buy {quantity}" for quantity in range(1, 6)
    ]
    heard = [line.removeprefix("strategy: ") for line in lines if line.startswith("strategy")]
    restart = [line for line in heard if line.startswith("aiobus.peer_restarted")]
    assert heard == [
        *("FILL 1", "FILL 2", *restart, "UNKNOWN ask the exchange"),
        *("FILL 4", "FILL 5"),
    ]
    assert len(restart) == 1


def test_a_gateway_replies_from_the_reader_of_its_connection() -> None:
    assert run(example("gateway_reply.py")) == [
        *("order of 1: ACK by gateway", "  filled: True"),
        *("order of 2: ACK by gateway", "  filled: True"),
        "order of 3: REJECT by gateway",
    ]


def test_a_recorded_desk_tells_how_long_each_fill_took() -> None:
    lines = run(example("record_desk.py"))
    assert [re.sub(r"[\d.]+ ms", "ms", line) for line in lines] == [
        f"BTCUSDT {quantity} filled after ms" for quantity in range(1, 4)
    ]


def test_a_recording_explains_its_last_fill_and_how_long_each_hop_took() -> None:
    lines = run(example("explain_fill.py"))
    assert re.match(r"FILL broker@\w+\.\d+ explained, ", lines[0])
    for type, line in zip(("TRADE", "ORDER", "FILL"), lines[3:6], strict=True):
        assert f" {type} BTCUSDT " in line
    assert {" ".join(line.split()[:3]) for line in lines[8:]} == {"TRADE -> ORDER", "ORDER -> FILL"}


@pytest.mark.slow
def test_a_replayed_session_has_the_same_signals_at_each_speed() -> None:
    lines = run(example("replay_session.py"))
    assert lines == [
        *("paused at 33 of 2,014 events", "2,001 trades played, 12 signals, speed unlimited"),
        *("paused at 33 of 2,014 events", "2,001 trades played, 12 signals, speed 10"),
    ]


@pytest.mark.slow
def test_what_if_names_the_first_order_that_another_limit_changes() -> None:
    lines = run(example("what_if.py"))
    same, other = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert same[1:] == [
        "in place of gateway: gateway: Fill each order after 5 ms, at the price of the last trade.",
        "answers FILL: 12 then, 12 now",
        "ORDER BTCUSDT: 12 then, 12 now, the first 12 equal",
        "no difference",
    ]
    assert other[4] == "first difference: ORDER BTCUSDT, number 1"
    assert '{"side":"sell","quantity":1.0}' in other[5]
    assert '{"side":"sell","quantity":2.0}' in other[6]
    assert other[7] == "  differs in: data.quantity"


@pytest.mark.slow
def test_a_recorder_that_is_killed_leaves_no_hole() -> None:
    killed = r"(recorder (left: another has taken its place|is silent since its seq \d+)\n)*"
    lines = run(example("resuming_recorder.py"), complaints=killed)
    assert lines[-1] == "the file has 900 trades, without a hole: True"


def test_the_bots_in_one_process_count_every_tick_and_fill_every_order() -> None:
    lines = run(example("bots/all_in_one.py"), "--speed", "50")
    counts = tally(lines)
    assert f"({TRADES:,} trades, {QUOTES} quotes)" in "\n".join(lines)
    assert counts["ticks"] == TICKS
    assert counts["signals"] == counts["orders"] == counts["fills"]
    assert 10 <= counts["fills"] <= 40


def test_the_chain_of_every_fill_is_shown_while_it_runs() -> None:
    lines = run(example("bots/all_in_one.py"), "--speed", "inf")
    chains = [line for line in lines if CHAIN.fullmatch(line)]
    assert len(chains) == tally(lines)["fills"]
    assert lines.index(chains[-1]) < next(i for i, x in enumerate(lines) if x.startswith("ticks"))
    assert re.search(r"p50 .+ p90 .+ p99 .+", lines[-1])


def test_ctrl_c_ends_the_bots_in_one_process_with_a_summary_of_what_happened_so_far() -> None:
    with Terminal("all_in_one") as bots:
        bots.reads("BTCUSDT 39,")
        lines = bots.ends_by(signal.SIGINT)
    assert 0 < tally(lines)["ticks"] < TICKS


@pytest.mark.parametrize("script", ["all_in_one", "desk", "feed"])
def test_a_recording_does_not_stand_still(script: str) -> None:
    command = [sys.executable, example(f"bots/{script}.py"), "--speed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)
    assert done.returncode == 2
    assert "--speed: must be above 0" in done.stderr


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


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_the_test_of_a_strategy_passes(mode: str) -> None:
    way = ("-p", "no:cacheprovider", "-o", f"asyncio_mode={mode}")
    lines = run("-m", "pytest", *way, example("test_strategy.py"))
    assert "3 passed" in lines[-1]


@pytest.mark.slow
def test_the_recorded_session_of_the_regression_test_is_found_to_agree() -> None:
    way = ("-p", "no:cacheprovider", "-s")
    lines = run("-m", "pytest", *way, example("regression_test.py"))
    assert "2 passed" in lines[-1]
    assert any(line.startswith("  recorded: SIGNAL BTCUSDT desk@") for line in lines)
    session = EXAMPLES / "data" / "whales.db"
    assert session.stat().st_size < 300_000
    assert session.with_name("whales.db.mark").exists()


# The bots, each a process of its own.


class Terminal:
    """`python <folder>/<name>.py arguments...`, as if in a terminal of its own."""

    def __init__(self, name: str, *arguments: str, folder: Path = EXAMPLES / "bots") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-W", "error", str(folder / f"{name}.py"), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def reads(self, text: str) -> None:
        """Read until a line has `text` in it."""
        assert self.process.stdout is not None
        while text not in (line := self.process.stdout.readline()):
            assert line, f"ended without {text!r}: {self.process.communicate()}"

    def ends_by(self, number: signal.Signals) -> list[str]:
        """Send a signal to all that runs in it; it ends in order. The lines not read before."""
        os.killpg(self.process.pid, number)
        return self.ends(130 if number == signal.SIGINT else 0)

    def ends(self, code: int = 0) -> list[str]:
        """It ends by itself, and whatever it started as well: its output has an end."""
        output, errors = self.process.communicate(timeout=20)
        assert (self.process.returncode, of_the_example(errors)) == (code, ""), output
        return output.splitlines()


@pytest.fixture
def terminals() -> Iterator[ExitStack]:
    """Whatever is opened is closed."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.slow
@pytest.mark.parametrize(
    "order",
    [
        ("strategy", "broker", "monitor", "feed"),
        ("feed", "monitor", "broker", "strategy"),
        ("monitor", "feed", "broker", "strategy"),
    ],
    ids=" ".join,
)
def test_the_bots_may_be_started_in_any_order(terminals: ExitStack, order: tuple[str, ...]) -> None:
    bots = {}
    for name in order:
        speed = ("--speed", "200") if name == "feed" else ()
        bots[name] = terminals.enter_context(Terminal(name, URL, *speed))
        if name != "feed":
            bots[name].reads(f"{name} is live on {URL}")
        elif name != order[-1]:
            bots[name].reads("waits for a strategy")
    bots["feed"].ends()
    for name in ("strategy", "broker"):
        bots[name].ends_by(signal.SIGINT)
    counts = tally(bots["monitor"].ends_by(signal.SIGTERM))
    assert counts["ticks"] == TICKS
    assert 10 <= counts["signals"] == counts["orders"] == counts["fills"]


@pytest.mark.slow
def test_the_bots_may_be_stopped_in_any_order(terminals: ExitStack) -> None:
    bots = {name: terminals.enter_context(Terminal(name, URL)) for name in BOTS}
    bots["monitor"].reads("BTCUSDT 39,")
    for name in ("broker", "monitor", "feed", "strategy"):
        bots[name].ends_by(signal.SIGINT)


@pytest.mark.slow
def test_ctrl_c_in_all_terminals_at_once_ends_every_bot_without_a_word(
    terminals: ExitStack,
) -> None:
    bots = {name: terminals.enter_context(Terminal(name, URL)) for name in BOTS}
    bots["monitor"].reads("BTCUSDT 39,")
    for bot in bots.values():
        os.killpg(bot.process.pid, signal.SIGINT)
    for bot in bots.values():
        bot.ends(130)


@pytest.mark.slow
def test_the_monitor_tells_the_tally_when_the_feed_leaves_and_goes_on(terminals: ExitStack) -> None:
    monitor = terminals.enter_context(Terminal("monitor", URL))
    for _ in range(2):
        run(example("bots/feed.py"), URL, "--speed", "200", "--audience", "monitor")
        monitor.reads("tick to fill")
    assert monitor.ends_by(signal.SIGINT) == []


def test_a_bot_needs_no_url_and_then_meets_the_others_at_the_desk(
    terminals: ExitStack,
) -> None:
    strategy = terminals.enter_context(Terminal("strategy"))
    strategy.reads("strategy is live on ipc://desk")
    run(example("bots/feed.py"), "--speed", "200")
    strategy.ends_by(signal.SIGINT)


def test_a_second_feed_is_refused_with_a_sentence(terminals: ExitStack) -> None:
    feed = terminals.enter_context(Terminal("feed", URL))
    feed.reads("waits for a strategy")
    command = [sys.executable, example("bots/feed.py"), URL]
    second = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr.endswith(
        f" feed did not start: a bus named 'feed' is on {URL} already: end"
        f" that one first. It may be frozen or stopped (Ctrl-Z), see `aiobus doctor {URL}`. Give"
        " another name= only to another bot: two that take the same orders both execute them\n"
    )
    assert second.stderr.count("\n") == 1
    feed.ends_by(signal.SIGINT)


# The demo: all four at once.


@pytest.mark.slow
def test_the_demo_ends_by_itself_with_the_summary() -> None:
    with Terminal("desk", "--speed", "100") as demo:
        lines = demo.ends()
    counts = tally(lines)
    chains = [line for line in lines if CHAIN.fullmatch(line)]
    assert counts["ticks"] == TICKS
    assert 10 <= counts["signals"] == counts["orders"] == counts["fills"] == len(chains)
    assert any(re.search(r"p50 .+ p90 .+ p99 .+", line) for line in lines)


VERIFIED = "the strategy once more, on what it was given:"


@pytest.mark.slow
def test_the_demo_shows_at_its_end_that_the_strategy_decides_the_same_once_more() -> None:
    with Terminal("desk", "--speed", "100") as demo:
        lines = demo.ends()
    verdict, counts, fingerprint = lines[lines.index(VERIFIED) + 2 :]
    outputs = 2 * int(tally(lines)["signals"])  # a SIGNAL and its ORDER
    assert verdict.endswith("strategy.db: AGREES")
    assert counts.endswith(f" deliveries, {outputs} outputs agree")
    assert re.fullmatch("fingerprint [0-9a-f]{12}", fingerprint)


@pytest.mark.slow
def test_the_demo_shows_at_its_end_how_a_fill_came_about() -> None:
    with Terminal("desk", "--speed", "100") as demo:
        lines = demo.ends()
    title = f"from the recording, the last of {tally(lines)['fills']} fills:"
    head, _, _, *steps = lines[lines.index(title) + 2 : lines.index(VERIFIED) - 1]
    assert re.fullmatch(r"FILL broker@\w+\.\d+ explained, .* \(UTC.\d\d:\d\d\)", head)
    types = ["TRADE", "SIGNAL", "ORDER", "FILL", "POSITION"]
    for type, line in zip(types, steps, strict=True):
        assert f" {type} BTCUSDT " in line


@pytest.mark.slow
def test_every_fill_is_explained_by_the_events_and_the_times_that_the_monitor_printed_live(
    tmp_path: Path, load: Callable[[str], ModuleType]
) -> None:
    file = tmp_path / "desk.db"
    with Terminal("desk", "--speed", "100", "--file", str(file)) as demo:
        lines = demo.ends()
    with Journal(file) as journal:
        fills = [event.id for _, event in journal.read(types=EventType.FILL)]
    explained = [explain(file, fill) for fill in fills]
    chain_line = load("report").chain_line
    told = [chain_line([step.event for step in each.chain]) for each in explained]
    printed = [line for line in lines if CHAIN.fullmatch(line)]
    assert sorted(told) == sorted(printed)
    assert len(told) >= 10
    for each in explained:
        assert {step.event.source for step in each.steps} == set(BOTS)
        assert [step.event.type for step in each.steps][-2:] == ["FILL", "POSITION"]
        assert each.beyond == ""


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_with_a_summary_of_what_happened_so_far() -> None:
    with Terminal("desk") as demo:
        demo.reads("BTCUSDT 39,")
        os.killpg(demo.process.pid, signal.SIGINT)
        lines = demo.ends()
    assert 0 < tally(lines)["ticks"] < TICKS


@pytest.mark.slow
def test_ctrl_c_while_the_bots_of_the_demo_start_ends_it_without_a_word() -> None:
    with Terminal("desk") as demo:
        demo.reads(" is live on ")
        os.killpg(demo.process.pid, signal.SIGINT)
        demo.ends()


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


async def test_an_order_without_an_answer_is_cancelled(
    bus: AsyncEventBus,
    seen: list[Event[Any]],
    load: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bots = load("strategy")
    monkeypatch.setattr(bots, "PATIENCE", 0.01)
    await bots.strategy(bus)
    await bus.subscribe(EventType.ORDER, lambda order: None)
    await bus.publish(signal_event())
    await bus.settle()
    _, order, cancel = seen
    assert order.type == EventType.ORDER
    assert cancel == Event(EventType.CANCEL, {"order": order.id}, key="BTCUSDT")


async def test_a_signal_that_waited_for_a_broker_is_not_acted_on_any_more(
    bus: AsyncEventBus, seen: list[Event[Any]], load: Callable[[str], ModuleType]
) -> None:
    await load("broker").broker(bus)
    await load("strategy").strategy(bus)
    await bus.publish(Event(EventType.QUOTE, {"bid": 99.0, "ask": 101.0}, key="BTCUSDT"))
    old = signal_event()
    old.timestamp -= 3.0
    await bus.publish(old)
    await bus.settle()
    assert EventType.ORDER not in [event.type for event in seen]
    await bus.publish(signal_event())
    await bus.settle()
    assert [event.type for event in seen][-3:] == [EventType.ORDER, EventType.ACK, EventType.FILL]


async def test_a_monitor_is_no_broker(
    bus: AsyncEventBus, load: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    await load("strategy").strategy(bus)
    await load("monitor").monitor(bus, load("report").Tally())
    await bus.publish(signal_event())
    await bus.settle()
    assert "no broker is there" in capsys.readouterr().out


async def test_a_fill_that_overtakes_its_cause_is_shown_once_that_is_there(
    bus: AsyncEventBus,
    load: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:
    watched = load("report").Tally()
    await load("monitor").monitor(bus, watched)
    trade = await bus.publish(Event(EventType.TRADE, {"price": 100.0}))
    order = Event(EventType.ORDER, {}, cause=trade.id)
    order_id = f"{trade.id.rpartition('.')[0]}.{trade.seq + 3}"  # behind fill and position
    data = {"side": "sell", "quantity": 1.0, "price": 101.0}
    await bus.publish(Event(EventType.FILL, data, cause=order_id))
    await bus.settle()
    assert capsys.readouterr().out == ""
    await bus.publish(order)
    await bus.settle()
    assert re.fullmatch(
        r"trade 100\.00 --.* -> order --.* -> fill 101\.00  = .*\n", capsys.readouterr().out
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
    recorded = [Event(type, data, key="BTCUSDT") for type, data in load("recording").trades()]
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
    assert (client.returncode, errors) == (130, b"")


@pytest.mark.slow
def test_a_day_in_virtual_time_cancels_what_is_not_filled_in_30_seconds_and_repeats() -> None:
    *lines, summary = run(example("virtual_time.py"))
    assert lines[3] == "..."
    orders, cancelled = re.findall(r"\d+", summary)
    assert 0 < int(cancelled) < int(orders)
    assert summary.endswith("again the same: True")
