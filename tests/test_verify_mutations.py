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

from aiobus import AsyncEventBus, Event, Report, RequestTimeout, verify

OUTPUTS = int(os.environ.get("REPLAY_OUTPUTS", "4"))
"""Of a recording that are altered in each way; `make soak` has 50."""
KINDS = ("value", "type", "key", "cause", "drop", "add")
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


class Altered:
    """A bus that alters one call of those that publish, by its number. `made`: the number of the
    call of each output, by its seq: a call may wait before it has its number.
    """

    def __init__(self, bus: AsyncEventBus, call: int = 0, kind: str = "") -> None:
        self.bus = bus
        self.made: dict[int, int] = {}
        self._call, self._kind, self._calls = call, kind, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bus, name)

    def _alter(self, event: Event) -> tuple[int, bool]:
        self._calls += 1
        is_it = self._calls == self._call
        if is_it and self._kind == "value":
            event.data = {**event.data, "altered": 1}
        elif is_it and self._kind == "type":
            event.type = "OTHER"
        elif is_it and self._kind == "key":
            event.key = "other"
        elif is_it and self._kind == "cause":
            event.cause = "feed@1.1"
        return self._calls, is_it

    async def publish(self, event: Event) -> Event:
        call, is_it = self._alter(event)
        if not (is_it and self._kind == "drop"):
            await self.bus.publish(event)
            self.made[event.seq] = call
        if is_it and self._kind == "add":
            await self.bus.publish(Event("EXTRA", {}, timestamp=1.0))
        return event

    def publish_nowait(self, event: Event) -> Event:
        call, is_it = self._alter(event)
        if not (is_it and self._kind == "drop"):
            self.bus.publish_nowait(event)
            self.made[event.seq] = call
        if is_it and self._kind == "add":
            self.bus.publish_nowait(Event("EXTRA", {}, timestamp=1.0))
        return event

    async def request(self, event: Event, *types: Any, **options: Any) -> Event:
        call, is_it = self._alter(event)
        if is_it and self._kind == "drop":
            raise RequestTimeout(event, 1.0)
        if is_it and self._kind == "add":
            await self.bus.publish(Event("EXTRA", {}, timestamp=1.0))
        try:
            return await self.bus.request(event, *types, **options)
        finally:
            if event.seq:
                self.made[event.seq] = call


class Session(NamedTuple):
    path: Path
    calls: list[tuple[int, int]]
    """Seq and call of each output, in the order of seq."""


@pytest.fixture(scope="module", params=LOOPS)
def taken(request: pytest.FixtureRequest) -> Iterator[Session]:
    with tempfile.TemporaryDirectory(prefix="aiobus-") as folder:
        path = Path(folder) / "strategy.db"
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(replays.desk(f"ipc://{folder}", path, 500))
        buses: list[Altered] = []

        async def watched(bus: AsyncEventBus) -> None:
            buses.append(Altered(bus))
            await replays.strategy(buses[0])  # type: ignore[arg-type]

        report = verify(path, watched)
        assert report, str(report)
        assert report.agreed >= len(buses[0].made) > 100
        yield Session(path, sorted(buses[0].made.items()))


def altered(session: Session, call: int, kind: str) -> Report:
    async def strategy(bus: AsyncEventBus) -> None:
        await replays.strategy(Altered(bus, call, kind))  # type: ignore[arg-type]

    return verify(session.path, strategy)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(OUTPUTS))
def test_an_output_that_is_altered_is_named(taken: Session, kind: str, number: int) -> None:
    place = (number * len(taken.calls) + len(taken.calls) // 2) // OUTPUTS
    seq, call = taken.calls[place]
    report = altered(taken, call, kind)
    assert report.verdict == "DIVERGES", str(report)
    difference = report.difference
    assert difference is not None
    if kind == "add":
        # Before a request, else behind its call, while which others may publish.
        assert report.agreed >= place
        assert difference.replayed.startswith("EXTRA"), difference
        return
    assert report.agreed == place
    assert f".{seq} " in difference.recorded, difference
    if kind != "drop":
        field = {"value": "data"}.get(kind, kind)
        assert difference.fields == (field,)
        assert f".{seq} " in difference.replayed


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
