"""A bot on its event loop, from the start of its bus to the end of both.

Owns when a bot is over, the order in which handlers, the bot, its tasks and its bus end, and what
counts as a failure. Must not know where signals come from, nor what becomes of the exit code.
"""

import asyncio
import errno
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from aiobus.bot.ending import Ending
from aiobus.bot.tasks import BotTasks
from aiobus.bus import AsyncEventBus, close_at_once, is_in_use, parts_of
from aiobus.errors import BusClosed, BusError
from aiobus.lifecycle import State
from aiobus.virtual_loop import frames, place

__all__ = ["Service"]

SHARE = 0.5
"""Of the time that an end in order has, what handlers have before the bot is cancelled; and of what
is left then, what the bot and its tasks have.
"""
CUT_SECONDS = 1.0
"""For what is cancelled at once, and what is left at the very end."""
GLANCE_SECONDS = 0.25
"""How often it looks if there is anything that the bot is still there for."""

log = logging.getLogger("aiobus.bot")

Loop = asyncio.AbstractEventLoop
Task = asyncio.Task[Any]


class Service:
    """One run of a bot. `call()` is awaited once `bus` has started. How it ended is in `ending`,
    and in `exit` if the bot has ended the process by itself. `ends_on_return`: the bot is over when
    it returns. `ends_on_failure`: it is over as soon as a task has failed that nothing awaits.
    """

    def __init__(
        self,
        call: Callable[[], Awaitable[object]],
        bus: AsyncEventBus,
        ending: Ending,
        timeout: float,
        *,
        ends_on_return: bool,
        ends_on_failure: bool,
    ) -> None:
        self._call, self._bus, self._ending, self._timeout = call, bus, ending, timeout
        self._parts = parts_of(bus)
        self._ends_on_return, self._ends_on_failure = ends_on_return, ends_on_failure
        self._loop: Loop | None = None
        self._asked, self._cut = asyncio.Event(), asyncio.Event()
        """It is to end in order; everything is to be cancelled at once."""
        self._work: Task | None = None
        self._tasks = BotTasks()
        self._left_behind: set[Task] = set()
        self._is_judged = self._is_ending = False
        self._runners: set[Task | None] = set()
        self.exit: SystemExit | None = None
        """What the bot has raised to end the process."""

    @property
    def _name(self) -> str:
        return self._bus.name or "the bot"

    # The loop.

    def run(self, make_loop: Callable[[], Loop]) -> None:
        """Run it to its end."""
        with self._runner(make_loop) as runner:
            self._loop = loop = runner.get_loop()
            loop.set_exception_handler(self._on_loop_error)
            main = loop.create_task(self._main(), name="aiobus run")
            while not main.done():
                try:
                    runner.run(self._until_done(main))
                except SystemExit as error:  # of a handler or a task: the loop has stopped for it
                    self._exit_with(error)
                except KeyboardInterrupt:  # where the bot has its own handler of SIGINT
                    self._ending.on_signal(signal.SIGINT)
                    self.look_soon()
            main.result()
            loop.call_later(CUT_SECONDS, self._name_threads)  # the runner waits for them

    @contextmanager
    def _runner(self, make_loop: Callable[[], Loop]) -> Iterator[asyncio.Runner]:
        """A runner. If the bot has left a connection open and its peer ends it in that moment,
        uvloop does not close with EBUSY: all is over by then, so that is no failure of the bot.
        """
        runner = asyncio.Runner(loop_factory=make_loop)
        try:
            yield runner
        finally:
            try:
                runner.close()
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                text = "%s has ended with a connection open, and its event loop did not close: %s"
                log.warning(text, self._name, error)

    async def _until_done(self, main: Task) -> None:
        self._runners.add(asyncio.current_task())
        await asyncio.wait([main])

    def look_soon(self) -> None:
        """A signal has come. May be called in a signal handler."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        ending = self._ending
        if ending.cut_by:
            if not self._cut.is_set():
                text = "%s: %s cancels everything at once; a third ends the process without closing"
                log.warning(text, signal.Signals(ending.cut_by).name, self._name)
            self._cut.set()
        elif ending.first and not self._asked.is_set():
            busy = "".join(f", {each.name}" for each in self._busy())
            waits = f" and waits for {busy[2:]}" if busy else ""
            text = "%s: %s ends%s, within %g s; a second signal cancels everything at once"
            log.info(text, signal.Signals(ending.first).name, self._name, waits, self._timeout)
            self._asked.set()

    def _busy(self) -> Collection[Any]:
        return self._parts.subscriptions.busy()

    # Its life.

    async def _main(self) -> None:
        self._look()  # at signals that came before there was a loop
        orderly = asyncio.create_task(self._serve(), name="aiobus run in order")
        cut = asyncio.create_task(self._cut.wait())
        await asyncio.wait([orderly, cut], return_when=asyncio.FIRST_COMPLETED)
        self._is_ending = True
        if not orderly.done():
            for task in (orderly, self._work, *self._tasks.alive):
                if task is not None:
                    task.cancel()
            closing = asyncio.create_task(close_at_once(self._bus, CUT_SECONDS))
            await asyncio.wait([orderly, closing], timeout=CUT_SECONDS)
        cut.cancel()
        await self._sweep()
        self._ending.is_closed = True
        if orderly.done() and not orderly.cancelled():
            orderly.result()

    async def _serve(self) -> None:
        """From the start of the bus to an end in order."""
        if not await self._start():
            return
        self._tasks.watch(asyncio.get_running_loop())
        self._work = asyncio.create_task(self._call_bot(), name=f"bot {self._bus.name}")
        failure = await self._live(self._work)
        self._is_ending = True
        end = asyncio.get_running_loop().time() + self._timeout
        if failure:
            # As at the end of `async with`: what has failed is to act no more.
            await close_at_once(self._bus, self._timeout * SHARE)
            await self._cancel([self._work, *self._tasks.alive], end)
            self._has_failed(self._work)
        else:
            await self._end(self._work, end)

    async def _start(self) -> bool:
        starting = asyncio.create_task(self._bus.start())
        asked = asyncio.create_task(self._asked.wait())
        try:
            await asyncio.wait([starting, asked], return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.wait([starting])
        finally:
            starting.cancel()
            asked.cancel()
        if starting.cancelled():
            return False
        if (error := starting.exception()) is not None:
            # The text of a BusError says what is to be done, and where it was raised does not.
            trace = None if isinstance(error, BusError) else error
            self._fail(f"did not start: {error}", trace)
            return False
        if self._asked.is_set():
            await self._bus.close(self._timeout)
            return False
        return True

    async def _call_bot(self) -> None:
        try:
            await self._call()
        except SystemExit as error:
            self._exit_with(error)

    def _exit_with(self, error: SystemExit) -> None:
        self.exit = self.exit or error
        self._asked.set()

    async def _live(self, work: Task) -> bool:
        """Return when it is over. True if that is for a failure."""
        asked = asyncio.create_task(self._asked.wait())
        closed = asyncio.create_task(self._bus.wait_closed())
        try:
            while True:
                pending = [each for each in (work, asked, closed) if not each.done()]
                await asyncio.wait(
                    pending, timeout=GLANCE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                self._tasks.name_unasked()
                if self._parts.life.failure is not None:
                    self._fail("ends, since its bus has failed", None)  # which was logged
                    return True
                if work.done() and self._has_failed(work):
                    return True
                if self._ends_on_failure and self._ending.has_failed:
                    return True
                if asked.done() or (work.done() and self._is_over()):
                    return False
        finally:
            asked.cancel()
            if not closed.cancel() and not closed.cancelled():
                closed.exception()  # `life` has it as well

    def _is_over(self) -> bool:
        """True if nothing is left that the bot is still there for, now that it has returned."""
        if self._ends_on_return or self._parts.life.state is State.CLOSED:
            return True
        if is_in_use(self._bus) or self._tasks.alive:
            return False
        log.info("%s has returned, and has no subscription and no task: it ends", self._name)
        return True

    # Its end.

    async def _end(self, work: Task, end: float) -> None:
        """End in order. Handlers come first, since what they use may be the bot's, such as a
        connection; the bus comes last, since the bot and its tasks may publish as they end.
        """
        loop = asyncio.get_running_loop()
        await self._parts.subscriptions.until_idle((end - loop.time()) * SHARE)
        middle = loop.time() + (end - loop.time()) * SHARE
        await self._cancel([work], middle)
        self._has_failed(work)
        await self._cancel(self._tasks.alive, middle)
        missing = await self._bus.close(max(0.0, end - loop.time()))
        if missing:
            names = ", ".join(missing)
            log.warning("%s has ended, and these may not have everything: %s", self._name, names)
        is_uncommitted = self._bus.name in missing
        if is_uncommitted or self._parts.subscriptions.cut_off:
            self._ending.has_cut_off = True

    async def _cancel(self, tasks: Collection[Task], end: float) -> None:
        """Cancel `tasks` and wait until `end` by the loop's time. Name those that go on."""
        for task in tasks:
            task.cancel()
        if tasks:
            left = max(0.0, end - asyncio.get_running_loop().time())
            _, stuck = await asyncio.wait(tasks, timeout=left)
            for task in stuck:
                self._leave_behind(task)

    def _leave_behind(self, task: Task) -> None:
        self._ending.has_cut_off = True
        if task not in self._left_behind:
            self._left_behind.add(task)
            text = "%s ignores that it was cancelled, and is left behind: %s"
            *_, innermost = [None, *frames(task.get_coro())]
            log.error(text, task.get_name(), place(innermost) if innermost else task)

    async def _sweep(self) -> None:
        """The loop is about to end: cancel what is left, and wait no longer than a second for it,
        as the loop would wait for ever.
        """
        here = {asyncio.current_task(), *self._runners}
        left = [task for task in asyncio.all_tasks() if task not in here]
        new = [task for task in left if task not in self._left_behind]
        await self._cancel(new, asyncio.get_running_loop().time() + CUT_SECONDS)
        for task in left:
            if not task.done():
                asyncio.tasks._unregister_task(task)
                task._log_destroy_pending = False  # type: ignore[attr-defined]
        for task in self._tasks.unasked:
            if (error := task.exception()) is not None:
                self._stray(task, error)

    def _name_threads(self) -> None:
        names = ", ".join(
            thread.name
            for thread in threading.enumerate()
            if thread is not threading.main_thread() and not thread.daemon
        )
        if names:
            text = "%s has ended, and the process waits for its threads: %s; a signal ends it now"
            log.warning(text, self._name, names)

    # Failures.

    def _has_failed(self, work: Task) -> bool:
        """True if the bot has failed. It is logged the first time."""
        if not work.done() or self._is_judged:
            return False
        self._is_judged = True
        if work.cancelled():
            if self._is_ending:
                return False
            self._fail("was cancelled by its own code, not by a signal", None)
            return True
        error = work.exception()
        if error is None or self._follows(error):
            return False
        self._fail(f"has failed with {type(error).__name__}", error)
        return True

    def _fail(self, text: str, error: BaseException | None) -> None:
        self._ending.has_failed = True
        log.error("%s %s", self._name, text, exc_info=error)

    def _follows(self, error: BaseException) -> bool:
        """True if `error` follows from the end of the bus."""
        is_late = isinstance(error, BusClosed) and self._is_ending
        return is_late or error is self._parts.life.failure

    def _on_loop_error(self, loop: Loop, context: dict[str, Any]) -> None:
        """What nothing else has seen. If nothing can ask any more why a task has failed, that is a
        failure of the bot.
        """
        error = context.get("exception")
        if error is None or not str(context.get("message")).endswith("was never retrieved"):
            loop.default_exception_handler(context)
        else:
            self._stray(context.get("future"), error)

    def _stray(self, future: object, error: BaseException) -> None:
        if self._follows(error):
            log.info("%r has ended with the bus", future)
            return
        self._ending.has_failed = True
        log.error("%r has failed, and nothing has awaited it", future, exc_info=error)
