"""`aiobus.run`: a bot as a process, from its start to its exit code. Each test but the last ones
runs a real process: the bots are in `running_bot.py`.
"""

import asyncio
import errno
import inspect
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import running_bot
from actors import tcp_url
from journals import entries, make

import aiobus
from aiobus import AsyncEventBus, BusError, Event, LeavesProcess, run_virtual, verify
from aiobus.bot.ending import Ending, Step
from aiobus.bot.process import BusKeywords
from aiobus.bot.tasks import BotTasks

SCRIPT = str(Path(__file__).with_name("running_bot.py"))
INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
SECONDS = 20.0


class Process:
    """A bot of `running_bot.py`."""

    def __init__(self, bot: str, loop: str, *place: str, **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, SCRIPT, bot, (place or ("inproc://",))[0], loop, *place[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self.said: list[str] = []
        self.logged = ""

    def reads(self, line: str) -> None:
        assert self._process.stdout is not None
        while (read := self._process.stdout.readline().rstrip("\n")) != line:
            assert read, (self.said, self._process.communicate())
            self.said.append(read)
        self.said.append(line)

    def logs(self, text: str) -> None:
        assert self._process.stderr is not None
        while text not in (line := self._process.stderr.readline()):
            assert line, (self.said, self.logged)
            self.logged += line
        self.logged += line

    def gets(self, *signals: signal.Signals) -> None:
        for number in signals:
            self._process.send_signal(number)

    def ends(self) -> tuple[int, str]:
        """Its exit code, and what it has logged."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.said += self._process.stdout.read().splitlines()  # communicate() forgets what it had
        self.logged += self._process.stderr.read()
        return self._process.wait(SECONDS), self.logged

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Starts bots, which are killed at the end."""
    with ExitStack() as stack:

        def start(*arguments: str, **options: Any) -> Process:
            process = Process(*arguments, **options)
            stack.callback(process.close)
            return process

        yield start


LOOPS = ("asyncio", "uvloop")


class Case(NamedTuple):
    """A bot, the signals that it gets once it is live, and how it ends."""

    bot: str
    signals: tuple[signal.Signals, ...]
    code: int
    said: tuple[str, ...] = ()
    logs: str = ""


CASES = [
    # The first signal ends it in order.
    Case("waits", (TERM,), 0, ("cleaned up",), "INFO aiobus.bot: SIGTERM: bot ends, within 5 s"),
    Case("waits", (INT,), 130, ("cleaned up",), "SIGINT: bot ends"),
    Case("waits", (HUP,), 129, ("cleaned up",), "SIGHUP: bot ends"),
    Case("subscribes", (TERM,), 0),
    Case("subscribes", (INT,), 130),
    Case("has_a_task", (TERM,), 0, ("cancelled True",)),
    Case("hangs", (TERM,), 1, (), "handle(T) with bot@"),
    Case("ignores_cancelling", (TERM,), 1, ("no",), "bot bot ignores that it was cancelled"),
    Case("fails_as_it_cleans_up", (TERM,), 1, (), "KeyError: 'the bot is wrong'"),
    Case("has_a_failing_task", (TERM,), 1, (), "KeyError: 'the task is wrong'"),
    # The second one cancels at once, and the third one does not ask the loop.
    Case("hangs_long", (TERM, TERM), 143, (), "SIGTERM: bot cancels everything at once"),
    Case("hangs_long", (INT, INT), 130, (), "SIGINT: bot cancels everything at once"),
    Case("hangs_long", (INT, TERM), 143),
    Case("blocks", (INT, INT, INT), 130),
    # It ends by itself, as below.
    Case("returns", (), 0, ("run has returned",)),
    Case("fails", (), 1, (), "KeyError: 'the bot is wrong'"),
    Case("exits", (), 7, ("handled",)),
]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join([case.bot, *(each.name for each in case.signals)])
)
def test_a_bot_ends_with_the_exit_code_that_tells_how(
    start: Callable[..., Process], case: Case, loop: str
) -> None:
    process = start(case.bot, loop)
    process.reads("live")
    for turn, number in enumerate(case.signals):
        process.gets(number)
        # Two that wait are one.
        if case.bot == "blocks" and turn < 2:
            process.gets(signal.SIGUSR1)  # Python handles the lower number first
            process.reads("still blocked")
        elif turn == 0:
            process.logs(f"{number.name}: bot ends")
    code, logged = process.ends()
    assert code == case.code, logged
    assert case.logs in logged
    assert [line for line in case.said if line not in process.said] == []
    assert ("run has returned" in process.said) == ("run has returned" in case.said)
    assert ("finally" in process.said) == (case.bot != "blocks")
    traces = logged.count("Traceback (most recent call last)")
    assert traces <= (2 if case.bot == "fails_as_it_cleans_up" else case.code in (1, 7)), logged
    assert "KeyboardInterrupt" not in logged


BY_THEMSELVES = [
    Case("returns", (), 0, (), "no subscription and no task: it ends"),
    Case("returns_all_the_same", (), 0, ("handled",)),
    Case("ends_with_its_last_task", (), 0, ("over",)),
    Case("closes_its_bus", (), 0, ()),
    Case("awaits_a_failed_task", (), 0, ()),
    Case("exits", (), 7, ("handled",)),
    Case("exits_in_a_handler", (), 7),
    # It fails.
    Case("fails", (), 1, (), "KeyError: 'the bot is wrong'"),
    Case("has_a_failing_handler", (), 1, (), "KeyError: 'the handler is wrong'"),
    Case("keeps_a_failed_task", (), 1, (), "KeyError: 'the task is wrong'"),
    Case("raises_for_a_failed_task", (), 1, (), "KeyError: 'the task is wrong'"),
    Case("is_cancelled_by_itself", (), 1, (), "was cancelled by its own code"),
]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("case", BY_THEMSELVES, ids=lambda case: case.bot)
def test_a_bot_that_ends_by_itself_returns_or_tells_why_not(
    case: Case, loop: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    bot, options = running_bot.BOTS[case.bot]
    caplog.set_level(logging.INFO)
    code: object = 0
    try:
        aiobus.run(bot, "inproc://", "bot", uvloop=loop == "uvloop", **options)
    except SystemExit as exit:
        code = exit.code
    assert code == case.code, caplog.text
    assert case.logs in caplog.text
    assert capsys.readouterr().out.splitlines() == ["live", *case.said]
    assert caplog.text.count("Traceback (most recent call last)") <= (case.code in (1, 7))


@pytest.mark.parametrize("loop", LOOPS)
def test_handlers_finish_what_has_come_before_the_bot_is_cancelled(
    start: Callable[..., Process], loop: str
) -> None:
    process = start("is_at_work", loop)
    process.reads("live")
    process.gets(TERM)
    process.logs("SIGTERM: bot ends and waits for is_at_work.<locals>.handle(T)")
    process.gets(signal.SIGUSR1)
    code, logged = process.ends()
    assert code == 0, logged
    assert process.said[-3:] == ["handled 1", "handled 2", "finally"]


@pytest.mark.parametrize("loop", LOOPS)
def test_signals_that_go_on_until_its_end_leave_a_bot_the_code_of_the_table(
    start: Callable[..., Process], loop: str
) -> None:
    for _ in range(4):
        bot = start("waits", loop)
        bot.reads("live")
        while bot._process.poll() is None:
            bot.gets(TERM)
        assert bot.ends()[0] in (0, 128 + TERM)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_second_signal_does_not_wait_for_a_thread(
    start: Callable[..., Process], loop: str
) -> None:
    process = start("waits_for_a_thread", loop)
    process.reads("live")
    process.gets(TERM)
    process.logs("bot has ended, and the process waits for its threads: ")
    process.gets(TERM)
    assert process.ends()[0] == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_a_second_signal_does_not_wait_for_a_frozen_peer(
    start: Callable[..., Process], loop: str, folder: Path
) -> None:
    process = start("tells", loop, f"ipc://{folder}/d")
    process.reads("live")
    peer = start("subscribes", loop, f"ipc://{folder}/d", "peer")
    peer.reads("live")
    peer.gets(signal.SIGSTOP)
    process.gets(TERM)
    process.logs("SIGTERM: bot ends")
    process.gets(TERM)
    assert process.ends()[0] == 143


@pytest.mark.parametrize("number", [TERM, INT])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_signal_while_the_bus_starts_ends_the_process(
    start: Callable[..., Process], loop: str, number: signal.Signals
) -> None:
    """The address of the desk is that of a process which says nothing."""
    url = tcp_url()
    host, _, port = url.removeprefix("tcp://").partition(":")
    with socket.create_server((host, int(port))) as silent:
        process = start("waits", loop, url)
        with silent.accept()[0]:
            process.gets(number)
            code, logged = process.ends()
    assert code == (0 if number is TERM else 130)
    assert process.said == ["finally"]
    assert "Traceback" not in logged


@pytest.mark.one_loop
async def test_what_a_bot_publishes_as_it_cleans_up_arrives_before_it_leaves(
    start: Callable[..., Process], folder: Path
) -> None:
    url = f"ipc://{folder}/d"
    async with AsyncEventBus(url, name="peer") as bus:
        async with bus.stream(["BYE", "aiobus.peer_left"]) as events:
            process = await asyncio.to_thread(start, "waits", "uvloop", url)
            await asyncio.to_thread(process.reads, "live")
            process.gets(TERM)
            assert (await anext(events)).type == "BYE"
            assert (await anext(events)).data["reason"] == "it closed"
        assert (await asyncio.to_thread(process.ends))[0] == 0


def test_a_name_that_is_taken_is_told_in_a_line(
    start: Callable[..., Process], folder: Path
) -> None:
    first = start("waits", "asyncio", f"ipc://{folder}/d")
    first.reads("live")
    code, logged = start("waits", "asyncio", f"ipc://{folder}/d").ends()
    assert code == 1
    _, line = logged.splitlines()
    assert "ERROR aiobus.bot: bot did not start: a bus named 'bot' is on ipc:///" in line


def test_a_signal_that_is_ignored_stays_so(start: Callable[..., Process]) -> None:
    """As under nohup, and in the background jobs of a script."""
    process = start("waits", "asyncio", preexec_fn=lambda: signal.signal(INT, signal.SIG_IGN))
    process.reads("live")
    process.gets(INT, TERM)
    assert process.ends()[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_a_recorded_bot_is_whole_after_sigterm_and_replays(
    start: Callable[..., Process], loop: str, tmp_path: Path
) -> None:
    process = start("is_recorded", loop, cwd=tmp_path)
    process.reads("live")
    process.gets(TERM)
    code, logged = process.ends()
    assert code == 0, logged
    report = verify(tmp_path / "strategy.db", running_bot.strategy)
    assert report, str(report)
    assert " 3 outputs agree, " in str(report)


# What it is given.


async def returns(bus: AsyncEventBus) -> None:
    """A bot without any need."""


def test_log_lines_have_a_time_a_level_and_a_name(start: Callable[..., Process]) -> None:
    _, logged = start("returns", "asyncio").ends()
    assert re.match(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO aiobus.bus: bot started on ", logged
    )


@pytest.mark.parametrize("level", ["debug", "WARNING"])
def test_the_environment_says_from_which_level_on_there_are_log_lines(
    start: Callable[..., Process], level: str
) -> None:
    _, logged = start("returns", "asyncio", env={**os.environ, "AIOBUS_LOG": level}).ends()
    assert ("DEBUG aiobus.bus: " in logged) == (level == "debug")
    assert (logged == "") == (level == "WARNING")


def test_logging_that_is_set_up_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    before = list(logging.root.handlers), logging.root.level
    assert before[0], "pytest has its own"
    aiobus.run(returns, "inproc://", log_level="DEBUG")
    assert (list(logging.root.handlers), logging.root.level) == before


def test_the_handlers_of_signals_are_back_at_the_end() -> None:
    numbers = (INT, TERM, HUP)
    before = [signal.getsignal(number) for number in numbers]
    aiobus.run(returns, "inproc://")
    assert [signal.getsignal(number) for number in numbers] == before


class Busy(asyncio.SelectorEventLoop):
    """Closes as uvloop does if a connection was left open and its peer ends it just then."""

    def close(self) -> None:
        was_open = not self.is_closed()
        super().close()
        if was_open:
            raise OSError(errno.EBUSY, "Device or resource busy")


def test_a_connection_that_a_bot_leaves_open_does_not_fail_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(asyncio, "new_event_loop", Busy)
    aiobus.run(returns, "inproc://", "bot", uvloop=False)
    assert "bot has ended with a connection open" in caplog.text


def test_the_url_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    urls: list[str] = []

    async def bot(bus: AsyncEventBus) -> None:
        urls.append(bus.url)

    monkeypatch.setenv("AIOBUS_URL", "inproc://")
    aiobus.run(bot)
    assert urls == ["inproc://"]


def test_a_wrong_url_of_the_environment_is_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOBUS_URL", "desk")
    with pytest.raises(ValueError, match="url='desk'") as caught:
        aiobus.run(returns)
    assert caught.value.__notes__ == ["AIOBUS_URL is 'desk'"]


@pytest.mark.parametrize("value", ["", None])
def test_without_any_url_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("AIOBUS_URL", raising=False)
    if value is not None:
        monkeypatch.setenv("AIOBUS_URL", value)
    with pytest.raises(ValueError, match=r"aiobus.run\(bot, 'ipc://desk'\), or set AIOBUS_URL"):
        aiobus.run(returns)


def test_the_loop_is_uvloop_unless_it_is_not_wanted() -> None:
    kinds: list[str] = []

    async def bot(bus: AsyncEventBus) -> None:
        kinds.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])

    for uvloop in (None, True, False):
        aiobus.run(bot, "inproc://", uvloop=uvloop)
    assert kinds == ["uvloop", "uvloop", "asyncio"]


def test_uvloop_is_taken_only_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    aiobus.run(returns, "inproc://")
    with pytest.raises(ValueError, match=r"pip install 'aiobus-zmq\[uvloop\]'"):
        aiobus.run(returns, "inproc://", uvloop=True)


def test_every_option_of_a_bus_is_passed_on() -> None:
    parameters = inspect.signature(AsyncEventBus).parameters
    assert set(BusKeywords.__annotations__) == set(parameters) - {"url", "name"}
    seen: list[float] = []

    async def bot(bus: AsyncEventBus) -> None:
        seen.append(bus._publisher.most_bytes)

    aiobus.run(bot, "inproc://", limits=aiobus.Limits(event_bytes=5_000))
    assert seen == [5_000]


class Bot:
    async def run(self, bus: AsyncEventBus) -> None: ...


@pytest.mark.parametrize(
    ("bot", "options", "text"),
    [
        (Bot, {}, "bot=Bot is a class"),
        (None, {}, "bot=None: a coroutine function of a bus is needed"),
        (lambda: None, {}, "it is called with the bus alone"),
        (returns, {"until": "never"}, "until='never': 'done' or 'return' is needed"),
        (returns, {"close_timeout": -1}, "close_timeout=-1: seconds from 0 are needed"),
        (
            returns,
            {"close_timeout": float("inf")},
            "close_timeout=inf: seconds from 0 are needed, not endless",
        ),
        (returns, {"log_level": "loud"}, "log_level='loud': one of DEBUG"),
        (returns, {"log_level": True}, "log_level=True: one of DEBUG"),
        (returns, {"uvloop": "no"}, "uvloop='no': True, False or None is needed"),
        (returns, {"name": "a b"}, "name='a b'"),
        (returns, {"name": "ipc://desk"}, "name='ipc://desk': these two are swapped"),
        (returns, {"size": 3}, "unexpected keyword argument 'size'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments_are_named(bot: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(text)):
        aiobus.run(bot, "inproc://", **options)


def test_a_wrong_level_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOBUS_LOG", "loud")
    with pytest.raises(ValueError, match="AIOBUS_LOG='loud': one of DEBUG"):
        aiobus.run(returns, "inproc://")


def test_a_coroutine_in_place_of_its_function_is_refused_without_another_complaint() -> None:
    text = r"bot=returns\(...\) is a coroutine: give the function itself, not called"
    with pytest.raises(TypeError, match=text):
        aiobus.run(returns(AsyncEventBus()), "inproc://")  # type: ignore[arg-type]


def test_a_function_that_is_no_coroutine_function_is_a_failure_of_the_bot(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(SystemExit) as caught:
        aiobus.run(lambda bus: 5, "inproc://")  # type: ignore[arg-type, return-value]
    assert caught.value.code == 1
    assert "is no coroutine function: it returned 5" in caplog.text


# Tasks of the bot that have failed.


@pytest.mark.virtual
async def test_a_failed_task_that_nothing_awaits_is_named_after_5_s(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks = BotTasks()
    tasks.watch(asyncio.get_running_loop())
    task = asyncio.create_task(running_bot.fail_later(), name="the feed")
    asked = asyncio.create_task(running_bot.fail_later(), name="another")
    await asyncio.wait([task, asked])
    assert isinstance(asked.exception(), KeyError)
    for _ in range(3):
        tasks.name_unasked()
        await asyncio.sleep(2.4)
    assert caplog.text == ""
    for _ in range(2):
        tasks.name_unasked()
        await asyncio.sleep(10)
    (line,) = caplog.messages
    assert "name='the feed'" in line
    assert line.endswith(
        "exception=KeyError('the task is wrong')> has failed, and nothing has awaited it so far"
    )
    assert isinstance(task.exception(), KeyError)


async def test_the_tasks_of_the_bus_are_not_those_of_the_bot(folder: Path) -> None:
    tasks = BotTasks()
    tasks.watch(asyncio.get_running_loop())
    url = f"ipc://{folder}/d"
    async with AsyncEventBus(url, name="desk") as bus, AsyncEventBus(url, name="peer") as peer:
        await bus.subscribe("QUESTION", lambda q: bus.publish(Event("ANSWER", 1)), concurrency=2)
        mine = [
            asyncio.create_task(bus.wait_for("T")),
            asyncio.ensure_future(peer.request(Event("QUESTION", 1), "ANSWER")),
        ]
        async with asyncio.TaskGroup() as group:
            mine.append(group.create_task(peer.wait_for("T")))
            await mine[1]
            assert set(tasks.alive) == {mine[0], mine[2]}
            await peer.publish(Event("T", 1))
        await mine[0]
    assert tasks.alive == []


# Where it is called.


def test_in_another_thread_it_is_refused() -> None:
    errors: list[BusError] = []

    def work() -> None:
        try:
            aiobus.run(returns, "inproc://")
        except BusError as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    thread.join()
    assert "call it in the main thread, or use asyncio.run here" in str(errors[0])
    assert "this is worker" in str(errors[0])


async def test_where_a_loop_runs_it_is_refused() -> None:
    with pytest.raises(BusError, match="one runs here already"):
        aiobus.run(returns, "inproc://")


def test_in_virtual_time_it_ends_the_run_also_if_its_error_is_caught() -> None:
    async def main() -> None:
        with pytest.raises(LeavesProcess):
            aiobus.run(returns, "inproc://")

    with pytest.raises(LeavesProcess, match=r"aiobus.run\(test_run:returns\)"):
        run_virtual(main)


def test_a_module_that_runs_its_bot_as_it_is_imported_cannot_be_verified(tmp_path: Path) -> None:
    (tmp_path / "careless.py").write_text(
        "import aiobus\nasync def bot(bus): ...\naiobus.run(bot, 'inproc://')\n"
    )
    make(tmp_path / "desk.db", entries(3))
    command = [sys.executable, "-m", "aiobus", "verify", "desk.db", "careless:bot"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode not in (0, 1)
    assert 'put what starts a bus under `if __name__ == "__main__":`' in done.stderr


# Which signal leads to what.


@pytest.mark.parametrize(
    ("signals", "steps", "code"),
    [
        ((), (), 0),
        ((TERM,), (Step.DRAIN,), 0),
        ((INT,), (Step.DRAIN,), 130),
        ((HUP,), (Step.DRAIN,), 129),
        ((TERM, TERM), (Step.DRAIN, Step.CUT), 143),
        ((TERM, INT), (Step.DRAIN, Step.CUT), 130),
        ((INT, INT, TERM, TERM), (Step.DRAIN, Step.CUT, Step.KILL, Step.KILL), 130),
    ],
)
def test_signals_lead_step_by_step_to_the_end(
    signals: tuple[int, ...], steps: tuple[Step, ...], code: int
) -> None:
    ending = Ending()
    assert tuple(map(ending.on_signal, signals)) == steps
    assert ending.code == code
    ending.has_failed = True
    assert ending.code == 1


@pytest.mark.parametrize(("number", "code"), [(TERM, 1), (INT, 130), (HUP, 129)])
def test_what_was_cut_off_is_no_success(number: int, code: int) -> None:
    ending = Ending()
    ending.has_cut_off = True
    assert ending.code == 1
    ending.on_signal(number)
    assert ending.code == code


def test_once_all_is_closed_a_second_signal_changes_the_code_no_more() -> None:
    ending = Ending()
    assert ending.on_signal(TERM) is Step.DRAIN
    ending.is_closed = True
    assert ending.on_signal(INT) is Step.KILL
    assert ending.code == 0
