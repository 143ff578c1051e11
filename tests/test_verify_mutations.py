"""`verify` is not green by itself: whatever of one output is altered, that output is named."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import replays
import uvloop

from aiobus import AsyncEventBus, Event, Report, RequestTimeout, VirtualLoop, record, verify
from aiobus.replay.attach import Strategy
from aiobus.testing import Faults, MemoryNetwork

OUTPUTS = int(os.environ.get("REPLAY_OUTPUTS", "4"))
"""Of a recording that are altered in each way; `make soak` has 50."""
KINDS = ("value", "type", "key", "cause", "timestamp", "drop", "add")
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


class Altered:
    """A bus that alters one call of those that publish, by its number, from 1."""

    def __init__(self, bus: AsyncEventBus, call: int = 0, kind: str = "") -> None:
        self.bus = bus
        self.events: list[Event] = []
        """Of each call, in the order in which they began."""
        self.begins: list[int] = []
        """How many outputs came before each call began. A request may wait before it publishes, and
        others publish meanwhile.
        """
        self._call, self._kind = call, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bus, name)

    def made(self) -> list[Event]:
        """The outputs by now."""
        return [event for event in self.events if event.seq]

    def _alter(self, event: Event) -> bool:
        self.begins.append(len(self.made()))
        self.events.append(event)
        is_it = len(self.events) == self._call
        if is_it and self._kind == "value":
            event.data = {**event.data, "altered": 1}
        elif is_it and self._kind == "type":
            event.type = "OTHER"
        elif is_it and self._kind == "key":
            event.key = "other"
        elif is_it and self._kind == "cause":
            event.cause = "feed@1.1"
        elif is_it and self._kind == "timestamp":
            event.timestamp += 1.0
        return is_it

    async def publish(self, event: Event) -> Event:
        is_it = self._alter(event)
        if is_it and self._kind == "add":
            await self.bus.publish(Event("EXTRA", {}, timestamp=1.0))
        if not (is_it and self._kind == "drop"):
            await self.bus.publish(event)
        return event

    def publish_nowait(self, event: Event) -> Event:
        is_it = self._alter(event)
        if is_it and self._kind == "add":
            self.bus.publish_nowait(Event("EXTRA", {}, timestamp=1.0))
        if not (is_it and self._kind == "drop"):
            self.bus.publish_nowait(event)
        return event

    async def request(self, event: Event, *types: Any, **options: Any) -> Event:
        is_it = self._alter(event)
        if is_it and self._kind == "drop":
            raise RequestTimeout(event, 1.0)
        if is_it and self._kind == "add":
            await self.bus.publish(Event("EXTRA", {}, timestamp=1.0))
        return await self.bus.request(event, *types, **options)


class Output(NamedTuple):
    seq: int
    call: int
    """Its call, from 1 in the order in which they began."""
    begin: int
    """How many outputs came before that call began."""


class Session(NamedTuple):
    path: Path
    code: Strategy
    outputs: list[Output]
    """In the order of seq."""


@pytest.fixture(scope="module", params=LOOPS)
def taken(request: pytest.FixtureRequest) -> Iterator[Session]:
    with tempfile.TemporaryDirectory(prefix="aiobus-") as folder:
        path = Path(folder) / "strategy.db"
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(replays.desk(f"ipc://{folder}", path, 500))
        session = counted(path, replays.strategy)
        assert len(session.outputs) > 100
        yield session


def counted(path: Path, code: Strategy) -> Session:
    """What the code has published, by a replay that agrees."""
    buses: list[Altered] = []

    async def watched(bus: AsyncEventBus) -> None:
        buses.append(Altered(bus))
        await code(buses[0])  # type: ignore[arg-type]

    report = verify(path, watched)
    assert report, str(report)
    (bus,) = buses
    calls = enumerate(zip(bus.events, bus.begins, strict=True), 1)
    outputs = [Output(event.seq, call, begin) for call, (event, begin) in calls if event.seq]
    assert report.agreed == len(outputs)
    return Session(path, code, sorted(outputs))


def altered(session: Session, call: int, kind: str) -> Report:
    async def strategy(bus: AsyncEventBus) -> None:
        await session.code(Altered(bus, call, kind))  # type: ignore[arg-type]

    return verify(session.path, strategy)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(OUTPUTS))
def test_an_output_that_is_altered_is_named(taken: Session, kind: str, number: int) -> None:
    place = (number * len(taken.outputs) + len(taken.outputs) // 2) // OUTPUTS
    check(taken, place, kind)


def check(taken: Session, place: int, kind: str) -> None:
    """Alter one output in this way."""
    seq, call, begin = taken.outputs[place]
    report = altered(taken, call, kind)
    assert report.verdict == "DIVERGES", str(report)
    difference = report.difference
    assert difference is not None
    assert report.agreed == (begin if kind in ("drop", "add") else place)
    assert f".{seq} " in difference.recorded, difference
    if kind == "add":
        assert difference.replayed.startswith("EXTRA"), difference
    elif kind != "drop":
        field = {"value": "data"}.get(kind, kind)
        output_id = next(word for word in difference.recorded.split() if word.endswith(f".{seq}"))
        assert difference.fields == (field,)
        assert difference.text == f"output {output_id} differs in {field}"
        assert not difference.is_reordered
        assert f".{seq} " in difference.replayed


async def ticking(bus: AsyncEventBus) -> None:
    """Asks for a fill of each trade, and publishes on its own meanwhile."""

    async def on_trade(trade: Event) -> None:
        reply = await bus.request(Event("ORDER", {"trade": trade.data}, timestamp=1.0), "FILL")
        await bus.publish(Event("FILLED", {"by": reply.source}, timestamp=1.0))

    await bus.subscribe("TRADE", on_trade)
    for number in range(30):
        await asyncio.sleep(0.02)
        await bus.publish(Event("TICK", {"number": number}, timestamp=1.0))


@pytest.fixture(scope="module")
def late() -> Iterator[Session]:
    """A session in which others publish while a request waits for the subscription to its reply."""
    with tempfile.TemporaryDirectory(prefix="aiobus-") as folder:
        path = Path(folder) / "strategy.db"

        async def main() -> None:
            network = MemoryNetwork()
            async with network.bus("broker") as broker, network.bus("strategy") as bus:

                async def on_order(order: Event) -> None:
                    await broker.publish(Event("FILL", None, timestamp=1.0))

                await broker.subscribe("ORDER", on_order)
                async with record(bus, path, attach=ticking):
                    await bus.subscribe("OTHER", print)  # the broker is known
                    network.faults = Faults(delay=0.1)
                    await broker.publish(Event("TRADE", 1, timestamp=1.0))
                    await asyncio.sleep(1)

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(main())
        yield counted(path, ticking)


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_is_named_whose_call_began_before_others(late: Session, kind: str) -> None:
    places = [place for place, output in enumerate(late.outputs) if output.begin < place]
    assert len(places) == 1
    check(late, places[0], kind)


# The order of two outputs.

PAIRS = 60


async def pairs(bus: AsyncEventBus, exchanged: int = 0) -> None:
    """Publishes two events for each."""

    async def on_trade(trade: Event) -> None:
        number = trade.data["number"]
        both = [Event(type, {"number": number}, timestamp=1.0) for type in ("ONE", "TWO")]
        if number == exchanged:
            both.reverse()
        for event in both:
            await bus.publish(event)

    await bus.subscribe("TRADE", on_trade)


@pytest.mark.parametrize("number", range(1, OUTPUTS + 1))
def test_two_outputs_that_are_exchanged_are_named_at_the_first(tmp_path: Path, number: int) -> None:
    path = tmp_path / "strategy.db"
    asyncio.run(replays.session(path, pairs, lambda bus: replays.trades(bus, PAIRS)))
    report = verify(path, lambda bus: pairs(bus, number))
    assert (report.verdict, report.agreed) == ("DIVERGES", 2 * number - 2)
    assert report.difference is not None
    assert report.difference.recorded.startswith("ONE")
    assert report.difference.replayed.startswith("TWO")
    assert report.difference.is_reordered
    assert "another order" in report.difference.text


@pytest.mark.parametrize(("field", "value"), [("cause", "feed@1.1"), ("timestamp", 2.0)])
def test_of_equal_outputs_one_with_another_time_or_cause_is_in_no_other_order(
    tmp_path: Path, field: str, value: object
) -> None:
    async def equal(bus: AsyncEventBus, **changed: Any) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("TICK", {}, **{"timestamp": 1.0, **changed}))

        await bus.subscribe("TRADE", on_trade)

    path = tmp_path / "strategy.db"
    asyncio.run(replays.session(path, equal, replays.trades))
    difference = verify(path, lambda bus: equal(bus, **{field: value})).difference
    assert difference is not None
    assert difference.text.startswith("output desk@")
    assert difference.fields == (field,)
    assert not difference.is_reordered


@pytest.mark.parametrize("fast", [replays.FAST - 1, replays.FAST + 1])
def test_a_changed_parameter_is_named_with_its_first_output(
    taken: Session, fast: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "FAST", fast)
    report = verify(taken.path, replays.strategy)
    assert report.verdict == "DIVERGES"
    assert report.difference is not None
    assert "SIGNAL" in report.difference.recorded + report.difference.replayed
    assert "TRADE" in report.difference.causes[0]
