"""How a piece of the code ends is on the tape: an exception that is raised now alone, or was raised
then alone, is a difference with its file and line.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from replays import session, trades

from aiobus import AsyncEventBus, EncodeError, Event, Report, RequestTimeout, record, verify
from aiobus.replay.attach import Strategy

EXITS = "exits"


class Bug(Exception):
    """Of the code that is tested."""


def fails(text: str) -> None:
    """Raise, unless nothing is to be raised."""
    if text:
        raise SystemExit(text) if text == EXITS else Bug(text)


Piece = Callable[[AsyncEventBus, str], Awaitable[None]]
PIECES: dict[str, Piece] = {}


def piece(piece: Piece) -> Piece:
    """A strategy with a piece that raises the text that it is given, and publishes nothing."""
    PIECES[piece.__name__.replace("_", " ")] = piece
    return piece


@piece
async def the_attached_coroutine(bus: AsyncEventBus, text: str) -> None:
    fails(text)


@piece
async def the_attached_coroutine_after_a_wait(bus: AsyncEventBus, text: str) -> None:
    await asyncio.sleep(0)
    fails(text)


@piece
async def a_handler(bus: AsyncEventBus, text: str) -> None:
    async def on_trade(trade: Event) -> None:
        fails(text)

    await bus.subscribe("TRADE", on_trade)


@piece
async def a_handler_after_a_wait(bus: AsyncEventBus, text: str) -> None:
    async def on_trade(trade: Event) -> None:
        await asyncio.sleep(0)
        fails(text)

    await bus.subscribe("TRADE", on_trade)


@piece
async def a_handler_after_it_has_published(bus: AsyncEventBus, text: str) -> None:
    async def on_trade(trade: Event) -> None:
        await bus.publish(Event("SEEN", trade.data))
        fails(text)

    await bus.subscribe("TRADE", on_trade)


@piece
async def a_handler_after_a_reply(bus: AsyncEventBus, text: str) -> None:
    async def on_ask(ask: Event) -> None:
        await bus.publish(Event("ANSWER", {}))

    async def on_trade(trade: Event) -> None:
        await bus.request(Event("ASK", {}), "ANSWER")
        fails(text)

    await bus.subscribe("ASK", on_ask)
    await bus.subscribe("TRADE", on_trade)


@piece
async def a_plain_handler(bus: AsyncEventBus, text: str) -> None:
    await bus.subscribe("TRADE", lambda trade: fails(text))


@piece
async def a_handler_that_returns_a_future(bus: AsyncEventBus, text: str) -> None:
    async def work() -> None:
        fails(text)

    await bus.subscribe("TRADE", lambda trade: asyncio.ensure_future(work()))


@piece
async def a_task(bus: AsyncEventBus, text: str) -> None:
    async def work() -> None:
        fails(text)

    with suppress(Bug):
        await asyncio.create_task(work())


@piece
async def a_member_of_a_task_group(bus: AsyncEventBus, text: str) -> None:
    async def work() -> None:
        fails(text)

    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(work())


@piece
async def a_callback_of_call_soon(bus: AsyncEventBus, text: str) -> None:
    asyncio.get_running_loop().call_soon(fails, text)
    await asyncio.sleep(0)


@piece
async def a_timer(bus: AsyncEventBus, text: str) -> None:
    asyncio.get_running_loop().call_later(0.001, fails, text)
    await asyncio.sleep(0.002)


@piece
async def a_callback_of_a_task_that_is_done(bus: AsyncEventBus, text: str) -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    task.add_done_callback(lambda _: fails(text))
    await asyncio.wait([task])
    await asyncio.sleep(0)


async def strategy(
    bus: AsyncEventBus, piece: Piece, text: str, done: asyncio.Event | None = None
) -> None:
    """Publishes as much with each piece, whether that raises or not."""

    async def on_trade(trade: Event) -> None:
        await bus.publish(Event("SIGNAL", trade.data, key=trade.key))

    await bus.subscribe("TRADE", on_trade)
    await piece(bus, text)
    if done is not None:
        done.set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "strategy.db"


async def recorded(path: Path, piece: Piece, text: str) -> None:
    """Record it. Callbacks that raise tell it to the loop."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    done = asyncio.Event()

    async def drive(bus: AsyncEventBus) -> None:
        await trades(bus, 2)
        await done.wait()

    await session(path, partial(strategy, piece=piece, text=text, done=done), drive)


def diverged(path: Path, code: Strategy) -> Report:
    report = verify(path, code)
    assert report.verdict == "DIVERGES", str(report)
    assert report.difference is not None
    return report


IS_ATTACHED = "the attached coroutine"


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES)
async def test_what_raises_now_and_did_not_then_diverges_with_file_and_line(
    path: Path, piece: Piece
) -> None:
    await recorded(path, piece, "")
    assert verify(path, partial(strategy, piece=piece, text=""))
    difference = diverged(path, partial(strategy, piece=piece, text="no price")).difference
    assert difference is not None
    line = fails.__code__.co_firstlineno + 3
    place = f"fails ({__file__}:{line})"
    assert f"raises Bug('no price') at {place}, and did not then" in difference.text
    assert difference.where == place


async def test_what_raises_now_is_found_on_each_transport(path: Path, url: str) -> None:
    code = partial(strategy, piece=a_handler_after_a_wait)
    attached = partial(code, text="")
    async with (
        AsyncEventBus(url, name="feed") as feed,
        AsyncEventBus(url, name="desk") as bus,
        record(bus, path, attach=attached),
    ):
        async with bus.stream("SIGNAL") as signals:
            for _ in range(3):
                await trades(feed, 1)
                await anext(signals)
        await bus.settle()
    assert verify(path, attached)
    report = str(diverged(path, partial(code, text="no price")))
    assert "raises Bug('no price') at fails (" in report


@pytest.mark.parametrize(
    "piece", [each for name, each in PIECES.items() if not name.startswith(IS_ATTACHED)],
    ids=[name for name in PIECES if not name.startswith(IS_ATTACHED)],
)  # fmt: skip
async def test_what_raised_then_and_does_not_now_diverges(path: Path, piece: Piece) -> None:
    await recorded(path, piece, "no price")
    agrees = verify(path, partial(strategy, piece=piece, text="no price"))
    assert agrees, str(agrees)
    difference = diverged(path, partial(strategy, piece=piece, text="")).difference
    assert difference is not None
    assert "raised an exception then" in difference.text
    assert difference.recorded.startswith("Bug('no price') at fails (")
    assert "raises another exception" in str(
        diverged(path, partial(strategy, piece=piece, text="no quantity"))
    )


async def test_an_attached_coroutine_that_failed_the_bus_fails_again(path: Path) -> None:
    async def broken(bus: AsyncEventBus, text: str) -> None:
        async with bus.stream("TRADE") as stream:
            trade = await anext(stream)
        await bus.publish(Event("SIGNAL", trade.data))
        fails(text)

    attached = partial(broken, text="no price")
    with pytest.raises(Bug):
        async with AsyncEventBus(name="desk") as bus, record(bus, path, attach=attached):
            await trades(bus, 1)
            await bus.wait_closed()
    report = verify(path, attached)
    assert report, str(report)
    assert "raised an exception then" in str(diverged(path, partial(broken, text="")))


Work = Callable[[AsyncEventBus, Event], Awaitable[object]]
UNCAUGHT: dict[str, Work] = {
    "a request that times out": lambda bus, trade: bus.request(
        Event("ASK", {}), "ANSWER", timeout=0.001
    ),
    "a request without a subscriber": lambda bus, trade: bus.request(
        Event("NOTHING", {}), "ANSWER"
    ),
    "a wait that times out": lambda bus, trade: bus.wait_for("NEVER", timeout=0.001),
    "no event": lambda bus, trade: bus.publish(5),  # type: ignore[type-var]
    "data that is no JSON": lambda bus, trade: bus.publish(Event("WRONG", object())),
    "a subscription that there is not": lambda bus, trade: bus.unsubscribe("NEVER", print),
    "a settle of a handler": lambda bus, trade: bus.settle(),
    "a timeout": lambda bus, trade: asyncio.wait_for(asyncio.sleep(1), 0.001),
    "its own cancelling": lambda bus, trade: cancelled(),
    "several": lambda bus, trade: several(),
    "an error of an object": lambda bus, trade: asyncio.sleep("1"),  # type: ignore[arg-type]
}


async def cancelled() -> None:
    task = asyncio.create_task(asyncio.sleep(1))
    task.cancel()
    await task


async def several() -> None:
    async def member(text: str) -> None:
        await asyncio.sleep(0)
        fails(text)

    async with asyncio.TaskGroup() as group:
        for text in "ab":
            group.create_task(member(text))


@pytest.mark.parametrize("work", UNCAUGHT.values(), ids=UNCAUGHT)
async def test_an_exception_of_a_call_that_is_not_caught_is_the_same_again(
    path: Path, work: Work
) -> None:
    async def careless(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("SIGNAL", trade.data))
            await work(bus, trade)

        await bus.subscribe("ASK", lambda ask: None)
        await bus.subscribe("TRADE", on_trade)

    await session(path, careless, partial(trades, count=3))
    report = verify(path, careless)
    assert report, str(report)
    assert report.deliveries >= 3


async def test_what_comes_next_on_the_tape_is_told_by_handler_and_event(path: Path) -> None:
    piece = the_attached_coroutine
    await recorded(path, piece, "")
    report = str(diverged(path, partial(strategy, piece=piece, text="no price")))
    assert "strategy raises Bug" in report
    assert "on_trade(TRADE) is given TRADE desk@" in report


async def test_an_exception_that_keeps_an_output_from_being_published_is_named_with_it(
    path: Path,
) -> None:
    is_wrong = False

    async def quoting(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            if is_wrong:
                raise KeyError("ask")
            await bus.publish(Event("SIGNAL", trade.data))

        await bus.subscribe("TRADE", on_trade)

    await session(path, quoting, trades)
    is_wrong = True
    difference = diverged(path, quoting).difference
    assert difference is not None
    assert difference.text.startswith("an output is missing: ")
    assert "raises KeyError('ask') at " in difference.text
    assert f"{__file__}:" in difference.text
    assert difference.recorded.startswith("SIGNAL desk@")


async def test_the_address_of_an_object_in_the_text_of_an_exception_is_not_compared(
    path: Path,
) -> None:
    kept: list[object] = []

    async def careless(bus: AsyncEventBus) -> None:
        async def on_trade(trade: Event) -> None:
            await bus.publish(Event("SIGNAL", trade.data))
            kept.append(object())
            raise Bug(kept[-1])

        await bus.subscribe("TRADE", on_trade)

    await session(path, careless, trades)
    assert verify(path, careless)


async def test_a_callback_that_raises_stop_iteration_ends_as_without_a_recording(
    path: Path,
) -> None:
    nothing = iter(())

    async def stopping(bus: AsyncEventBus) -> None:
        await bus.subscribe("TRADE", lambda trade: next(nothing))
        await bus.subscribe("aiobus.error", lambda error: bus.publish_nowait(Event("FAILED", {})))

    await session(path, stopping, partial(trades, count=1))
    report = verify(path, stopping)
    assert report, str(report)
    assert report.agreed == 1


async def halting(bus: AsyncEventBus, text: str = "") -> None:
    """Publishes HALT once one of its handlers has failed."""

    async def on_trade(trade: Event) -> None:
        await bus.publish(Event("SIGNAL", trade.data))
        if trade.data["number"] == 3:
            fails(text)

    async def on_error(error: Event) -> None:
        await bus.publish(Event("HALT", {"error": error.data["error"]}))

    await bus.subscribe("TRADE", on_trade)
    await bus.subscribe("aiobus.error", on_error)


async def test_a_strategy_that_halts_because_of_its_new_error_diverges_there(path: Path) -> None:
    await session(path, halting, trades)
    assert verify(path, halting)
    report = verify(path, partial(halting, text="of today"))
    assert report.difference is not None, str(report)
    assert "raises Bug('of today') at fails" in report.difference.text
    assert report.agreed == 3


async def test_a_strategy_that_has_halted_because_of_a_mended_error_diverges(path: Path) -> None:
    broken = partial(halting, text="of then")
    await session(path, broken, trades)
    assert verify(path, broken)
    report = verify(path, halting)
    assert report.verdict == "DIVERGES", str(report)
    assert report.agreed == 3


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES)
async def test_code_that_exits_now_diverges_and_does_not_end_the_process(
    path: Path, piece: Piece
) -> None:
    await recorded(path, piece, "")
    difference = diverged(path, partial(strategy, piece=piece, text=EXITS)).difference
    assert difference is not None
    assert f"raises SystemExit({EXITS!r}) at fails" in difference.text


async def test_a_where_that_exits_now_diverges(path: Path) -> None:
    async def selects(bus: AsyncEventBus, text: str) -> None:
        signal = partial(Event, "SIGNAL", {})
        await bus.subscribe(
            "TRADE", lambda _: bus.publish_nowait(signal()), where=lambda _: fails(text) is None
        )

    await session(path, partial(selects, text=""), trades)
    report = diverged(path, partial(selects, text=EXITS))
    assert "`where` fails on TRADE" in str(report)


async def test_code_that_exits_as_it_is_ended_does_not_end_the_process(path: Path) -> None:
    async def exits(bus: AsyncEventBus) -> None:
        await bus.subscribe("TRADE", lambda trade: bus.publish_nowait(Event("SIGNAL", trade.data)))
        try:
            await asyncio.Event().wait()
        finally:
            fails("" if is_live else EXITS)

    is_live = True
    async with AsyncEventBus(name="desk") as bus:
        async with record(bus, path, attach=exits) as recording:
            await trades(bus)
            await bus.settle()
        assert recording.attached is not None
        recording.attached.cancel()
    is_live = False
    assert verify(path, exits)


CALLS: dict[str, Callable[[AsyncEventBus, Event], Awaitable[object]]] = {
    "publish": lambda bus, event: bus.publish(event),
    "publish_nowait": lambda bus, event: asyncio.sleep(0, bus.publish_nowait(event)),
    "request": lambda bus, event: bus.request(event, "ANSWER", timeout=0.001),
}


WRONG = {"long": "x" * 2**21, "no JSON": object()}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_an_event_that_is_refused_is_refused_again_with_the_same_text(
    path: Path, call: Callable[[AsyncEventBus, Event], Awaitable[object]], wrong: str
) -> None:
    """The text has the length of the row, and the row the number that the event did not get."""

    async def code(bus: AsyncEventBus, data: object) -> None:
        async def on_trade(trade: Event) -> None:
            try:
                await call(bus, Event("ASK", data))
            except (EncodeError, RequestTimeout) as error:
                await bus.publish(Event("REFUSED", str(error)))

        await bus.subscribe("TRADE", on_trade)

    async def drive(bus: AsyncEventBus) -> None:
        await bus.subscribe("ASK", lambda ask: None)
        await trades(bus, 3)
        await bus.settle()
        await trades(bus, 100)  # of which verify knows no number by then
        await bus.settle()

    attached = partial(code, data=WRONG[wrong])
    await session(path, attached, drive)
    report = verify(path, attached)
    assert report, str(report)
    assert diverged(path, partial(code, data="x")).agreed == 0
