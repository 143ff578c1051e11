"""A command on an event loop: what a signal does, and that a slow reader of its output stops no
heartbeat.

Owns the loop, the signals and the thread that writes. Must not know what is written.
"""

import asyncio
import logging
import os
import select
import signal
import stat
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiobus.bot.process import loop_factory

__all__ = ["Ends", "Output", "run"]

ROOM = 1024 * 1024
"""Bytes that may wait for a slow reader before the command waits as well."""
LOOK_SECONDS = 0.3
"""Between looks whether the reader of a pipe is still there while nothing is written."""
LAST_SECONDS = 1.0
"""For what is still to be written after a signal."""

Body = Callable[["Ends"], Awaitable[int]]


class Output:
    """Writes to stdout and stderr from a thread, in the order of the calls: a terminal that is held
    by Ctrl-S, or a pager, holds up only that. Nothing of it waits for the loop to end.
    """

    def __init__(self, on_closed: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_closed = on_closed
        self._items: deque[tuple[int, bytes]] = deque()
        self._waiting = self._unwritten = 0
        self._changed = threading.Condition()
        self._room = asyncio.Event()
        self.is_closed = False
        """The reader of stdout has ended: nothing more is written."""
        self._is_pipe = stat.S_ISFIFO(os.fstat(1).st_mode) or stat.S_ISSOCK(os.fstat(1).st_mode)
        thread = threading.Thread(target=self._write_all, name="aiobus output", daemon=True)
        thread.start()

    def put(self, data: bytes) -> None:
        """Write to stdout, soon."""
        self._put(1, data)

    def tell(self, text: str) -> None:
        """Write a sentence to stderr, soon."""
        self._put(2, f"{text}\n".encode(errors="backslashreplace"))

    def show(self, data: bytes) -> None:
        """Write to stderr what moves the cursor of a terminal."""
        self._put(2, data)

    def _put(self, descriptor: int, data: bytes) -> None:
        with self._changed:
            self._items.append((descriptor, data))
            self._unwritten += len(data)
            self._changed.notify_all()

    async def room(self, at_most: int = ROOM) -> None:
        """Wait until no more than so many bytes are unwritten, or the reader has ended."""
        while self._unwritten > at_most and not self.is_closed:
            self._room.clear()
            self._waiting = at_most + 1
            with suppress(TimeoutError):  # what was written just before that line wakes nothing
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._room.wait()

    async def drained(self) -> None:
        """Wait until all is written, or the reader has ended."""
        await self.room(0)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                if not self._items:
                    self._changed.wait(LOOK_SECONDS)
                item = self._items.popleft() if self._items else None
            try:
                if item is None:
                    if self._is_pipe and _has_no_reader():
                        raise BrokenPipeError
                    continue
                _write(*item)
            except OSError as error:
                # Without stderr, as in `2>&-`, events are written all the same.
                if item is None or item[0] == 1 or isinstance(error, BrokenPipeError):
                    self._end()
                    return
            self._unwritten -= len(item[1])
            if self._unwritten < self._waiting:
                self._waiting = 0
                self._call(self._room.set)

    def _end(self) -> None:
        self.is_closed = True
        self._call(self._room.set)
        self._call(self._on_closed)

    def _call(self, step: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(step)


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # another process has made the terminal that way
            select.select([], [descriptor], [])


def _has_no_reader() -> bool:
    looked = select.poll()
    looked.register(1, 0)
    return any(flags & (select.POLLERR | select.POLLHUP) for _, flags in looked.poll(0))


class Ends:
    """How a command is ended: by a signal, or because nobody reads what it prints."""

    def __init__(self) -> None:
        self.signal = 0
        """The first signal that has asked for the end."""
        self.asked = asyncio.Event()
        """Set by that signal, if `is_orderly`."""
        self.is_orderly = False
        """The command ends by itself once `asked` is set. Else, and at a second signal, its task is
        cancelled.
        """
        self.needs_reader = True
        """The command ends if nobody reads what it prints."""
        self.out = Output(self._on_unread)
        self._task: asyncio.Task[int] | None = None

    @property
    def is_over(self) -> bool:
        """The task was cancelled because of this, and not by anything else."""
        return bool(self.signal) or self.out.is_closed

    def _on_signal(self, number: int) -> None:
        is_first, self.signal = not self.signal, self.signal or number
        if is_first and self.is_orderly:
            self.asked.set()
        else:
            self._cancel()

    def _on_unread(self) -> None:
        if self.needs_reader:
            self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def carry_out(self, body: Body) -> int:
        """Run `body`, and return the exit code."""
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(_code(body(self)))
        numbers = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN  # of nohup, and of a script's `&`
        ]
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal, number)
        logger, handler = logging.getLogger("aiobus"), Lines(self.out)
        logger.addHandler(handler)
        logger.propagate = False
        try:
            code = await self._task
        except asyncio.CancelledError:
            if not self.is_over:
                raise
            code = 128 + self.signal if self.signal else 0  # a signal has cut it off
        finally:
            logger.removeHandler(handler)
            logger.propagate = True
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_SECONDS if self.is_over else None):
                    await self.out.drained()
            for number in numbers:
                loop.remove_signal_handler(number)
        return 128 + signal.SIGINT if self.signal == signal.SIGINT else code


async def _code(work: Awaitable[int]) -> int:
    return await work


class Lines(logging.Handler):
    """What the package says in its log, on stderr."""

    def __init__(self, out: Output) -> None:
        super().__init__(logging.WARNING)
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        text = record.getMessage()
        self._out.tell(f"! {text if text.isprintable() else ascii(text)[1:-1]}")


def run(body: Body) -> int:
    """Run `body` on uvloop, if that is installed, and return the exit code: 130 after a Ctrl-C,
    else what `body` returns. 143 if SIGTERM has ended it before it returned anything, 129 for
    SIGHUP. 0 if nobody reads the output any more.
    """

    async def main() -> int:
        return await Ends().carry_out(body)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main())
