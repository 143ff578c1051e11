"""`aiobus.run`: a bot that is a process of its own.

Owns what the process is given: arguments and environment, logging, the kind of event loop, handlers
of signals, and the exit code. Which signal leads to what is decided in `ending`; the bot on the
loop is the business of `service`.
"""

import asyncio
import atexit
import inspect
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from os import PathLike
from types import FrameType
from typing import Any, Literal, Self, TypedDict, Unpack

from aiobus.bot.ending import SIGNALS, Ending, Step
from aiobus.bot.service import Service
from aiobus.bus import AsyncEventBus
from aiobus.confinement import current, refused
from aiobus.errors import BusError, KeyringError
from aiobus.journal.retention import Keep
from aiobus.journal.store import Sync
from aiobus.keyring import Keyring
from aiobus.limits import Limits
from aiobus.lockout import check_shut
from aiobus.replay.attach import Strategy, check_strategy, origin_of, run_strategy
from aiobus.transport import Transport
from aiobus.url import DESK

__all__ = ["BusKeywords", "loop_factory", "run"]

log = logging.getLogger("aiobus.bot")

CLOSE_SECONDS = 5.0
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class BusKeywords(TypedDict, total=False):
    """What is passed on to `AsyncEventBus`; the defaults are its own."""

    on_error: Literal["log", "raise"]
    limits: Limits | None
    pace: bool
    journal: str | PathLike[str] | None
    keep: Keep
    sync: Sync
    new_epoch: bool
    observer: bool
    keyring: Keyring | None
    listen: str | None
    advertise: str | None


def run(
    bot: Strategy,
    url: str | Transport | None = None,
    name: str | None = None,
    *,
    until: Literal["done", "return"] = "done",
    close_timeout: float = CLOSE_SECONDS,
    log_level: str | int | None = None,
    uvloop: bool | None = None,
    **options: Unpack[BusKeywords],
) -> None:
    """Run `bot`, a coroutine function of a bus, as this process, from its start to its exit code::

        async def strategy(bus: AsyncEventBus) -> None:
            await bus.subscribe(EventType.TRADE, on_trade)

        if __name__ == "__main__":
            aiobus.run(strategy, "ipc://desk", "strategy")

    It starts a bus, calls `bot(bus)`, and stays while the function runs, and after that while there
    is a subscription of this bus, a handler at work, or a task that the bot has made. With
    `until="return"` it ends when the function returns. `url`: None takes that of the environment
    variable AIOBUS_URL; ValueError if there is none. `name` and `options` are those of
    `AsyncEventBus`. `uvloop`: True for its event loop, False for that of asyncio, None for uvloop
    if it is installed.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP end it in order: handlers finish what has come, the
    function and its tasks are cancelled and may clean up while the bus is still open, then the bus
    closes. All of that takes `close_timeout` seconds at most, and handlers have half of them. A
    second signal cancels everything at once, a third ends the process without closing. While a
    signal is ignored (`nohup`), it stays so. The handlers of signals that were there before are
    back at the end.

    The exit code is 0 after SIGTERM, 130 after SIGINT, 129 after SIGHUP. It is 1 if the bot, its
    bus or a task that nothing awaits has failed, or if something had to be cut off after
    `close_timeout`. A failure is logged with its traceback, once; a bus that does not start, or a
    keyring in AIOBUS_KEYRING that cannot be used, with what is to be done. `run` returns if the
    bot has ended by itself and all went well; otherwise it raises SystemExit with the code, so what
    is to happen in any case belongs into `finally`. `sys.exit` in the bot ends it in order, too.

    If no handler of logging is there, log lines go to stderr, from `log_level` on ("DEBUG", "INFO",
    ...); None is the level in AIOBUS_LOG, or INFO.

    Raises TypeError and ValueError for wrong arguments, and BusError in a thread that is not the
    main one (it could not handle signals) and where a loop runs already. In virtual time it raises
    LeavesProcess.
    """
    if inspect.iscoroutine(bot):
        bot.close()  # else Python complains that it was never awaited
        text = f"bot={bot.__qualname__}(...) is a coroutine: give the function itself, not called"
        raise TypeError(text)
    check_strategy("bot", bot)
    _check_place(bot)
    if until not in ("done", "return"):
        raise ValueError(f"until={until!r}: 'done' or 'return' is needed")
    is_number = isinstance(close_timeout, int | float) and not isinstance(close_timeout, bool)
    if not (is_number and 0 <= close_timeout < math.inf):
        raise ValueError(f"close_timeout={close_timeout!r}: seconds from 0 are needed, not endless")
    level, make_loop = _level(log_level), loop_factory(uvloop)
    ending = Ending()
    with _Signals(ending) as signals:
        if not logging.root.handlers:
            logging.basicConfig(level=level, format=FORMAT)
        try:
            bus = _bus(url, name, options)
        except KeyringError as error:
            # That of the environment. Its text says what is to be done, as where the bus starts.
            log.error("%s did not start: %s", name or origin_of(bot), error)
            raise SystemExit(1) from None
        service = Service(
            partial(run_strategy, bot, bus),
            bus,
            ending,
            close_timeout,
            ends_on_return=until == "return",
            ends_on_failure=options.get("on_error") == "raise",
        )
        signals.tell = service.look_soon
        service.run(make_loop)
    if service.exit is not None and (service.exit.code not in (0, None) or not ending.code):
        raise service.exit
    if ending.first or ending.code:
        raise SystemExit(ending.code)


def _check_place(bot: Strategy) -> None:
    """Raise unless a process can be run from here."""
    if current() is not None:
        raise refused(f"aiobus.run({origin_of(bot)})")
    check_shut(f"{origin_of(bot)} by aiobus.run")
    way_out = "`async with AsyncEventBus(url) as bus: await bot(bus)`"
    if threading.current_thread() is not threading.main_thread():
        raise BusError(
            "aiobus.run handles signals, which Python does in the main thread alone, and this is"
            f" {threading.current_thread().name}: call it in the main thread, or use asyncio.run"
            f" here with {way_out}"
        )
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise BusError(
        "aiobus.run makes an event loop, and one runs here already (this is a coroutine, a handler"
        f" or a notebook): use {way_out}"
    )


def _bus(url: str | Transport | None, name: str | None, options: BusKeywords) -> AsyncEventBus:
    if isinstance(name, str) and "://" in name:
        text = f"url={url!r}, name={name!r}: these two are swapped, or url is missing: a call is"
        raise ValueError(f"{text} aiobus.run(bot, 'ipc://desk', 'strategy')")
    place = url
    if place is None and not (place := os.environ.get(DESK)):
        raise ValueError(
            "url=None, and the environment variable AIOBUS_URL is not set: give a url, such as"
            " aiobus.run(bot, 'ipc://desk'), or set AIOBUS_URL=ipc://desk. 'inproc://' is for a bot"
            " that is alone"
        )
    try:
        return AsyncEventBus(place, name=name, **options)
    except ValueError as error:
        if url is None:
            error.add_note(f"AIOBUS_URL is {place!r}")
        raise


def _level(given: str | int | None) -> str | int:
    level = os.environ.get("AIOBUS_LOG", "").strip() or "INFO" if given is None else given
    if isinstance(level, int) and not isinstance(level, bool):
        return level
    if isinstance(level, str) and level.upper() in LEVELS:
        return level.upper()
    whose = "AIOBUS_LOG" if given is None else "log_level"
    raise ValueError(f"{whose}={level!r}: one of {', '.join(LEVELS)} is needed")


def loop_factory(uvloop: bool | None = None) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the event loop: that of uvloop if it is True, that of asyncio if it is False, and
    by default that of uvloop if it is installed. Raises ValueError.
    """
    if uvloop not in (None, True, False):
        raise ValueError(f"uvloop={uvloop!r}: True, False or None is needed")
    if uvloop is False:
        return asyncio.new_event_loop
    try:
        from uvloop import new_event_loop
    except ImportError:
        if uvloop is None:
            return asyncio.new_event_loop
        text = "uvloop=True, and uvloop is not installed: pip install 'aiobus-zmq[uvloop]'"
        raise ValueError(text) from None
    return new_event_loop


class _Signals:
    """While it is entered, signals are told to `ending` and then to `tell`."""

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._before: dict[int, Any] = {}
        self.tell: Callable[[], object] = lambda: None

    def __enter__(self) -> Self:
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:  # nohup, or a job that a shell runs in the background
                self._before[number] = before
                signal.signal(number, self._on_signal)
        atexit.register(self._hush)  # sooner than what the bot registers, so it runs later
        return self

    def __exit__(self, *_: object) -> None:
        if self._ending.first:
            return  # it was told to end: one more signal ends it, with the code that it has
        atexit.unregister(self._hush)
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def _hush(self) -> None:
        """Python is about to give signals back to the system, which would end the process by one
        more of them, with another exit code.
        """
        if self._ending.first:
            for number in self._before:
                signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Runs between any two instructions of the main thread, so it does next to nothing. It is
        no handler of the loop, which would not run while the loop is blocked.
        """
        if self._ending.on_signal(number) is not Step.KILL:
            self.tell()
            return
        with suppress(Exception):  # what is interrupted may be at this very write
            sys.stdout.flush()
        os._exit(self._ending.code)  # as the first process of a container, kill() would do nothing
