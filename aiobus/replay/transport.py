"""A recording as the other side of a bus: `AsyncEventBus(Replay("desk.db"))`.

Owns when each recorded event is handed over: pace, pause, steps, seeking. Owns that nothing but the
recording is reached meanwhile. Must not know who subscribes (`stage`).
"""

import asyncio
import os
from collections.abc import Collection, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, NamedTuple
from weakref import finalize

from aiobus.confinement import current
from aiobus.diagnostics import Diagnostics
from aiobus.errors import BusClosed, BusError, WrongLoop
from aiobus.event import event_id
from aiobus.journal.format import rebuilt
from aiobus.journal.scan import Found
from aiobus.lockout import enter_replay, leave_replay
from aiobus.options import Keys, Types
from aiobus.publisher import Publisher
from aiobus.replay.selection import Bound, Reel, Selection
from aiobus.replay.stage import Seat, Stage
from aiobus.sync import Notifier
from aiobus.virtual_loop import VirtualLoop

__all__ = ["Progress", "Replay"]

INSTANT = 1e-6
"""Seconds between events that are handed over at one instant: what a float can tell of a time."""


class Progress(NamedTuple):
    """How far a replay is."""

    played: int
    """Events that were handed over."""
    skipped: int
    """Events that `seek` has left out."""
    gaps: int
    """Gaps (`aiobus.gap`) that the recording has up to here: its recorder has missed events there.
    """
    offset: int
    """That of the last event that was handed over or skipped; 0 at the beginning."""
    last_offset: int
    """The last offset in the file, when the replay began."""
    time: float
    """The timestamp of the event at `offset`."""
    event: str
    """The id of that event."""
    is_over: bool
    """True if nothing is left."""


class Replay(Seat):
    """A transport that plays the recording at `path`, from `record` or `journal=`::

        async def main():
            replay = Replay("desk.db")
            async with AsyncEventBus(replay, name="strategy") as bus:
                await strategy(bus)
                await replay.play()

        run_virtual(main)

    Each event has its recorded source, epoch, seq, timestamp, key, data and cause, and comes at its
    recorded time: starting the bus sets the wall clock of the loop to the time of the first event.
    What the bus publishes has new ids. A subscription gets each event once and in the order of the
    file. If its inbox is full and its policy leaves events to history, the replay waits until it
    has room: later events are late then, and none is lost. A subscription with `since=` begins with
    the next event that is played; one with `after=` begins behind the event that it names.

    `types`, `key`: as in `subscribe`, by default every type but the reserved ones. `sources`: one
    or several names. By default all but the names of the buses of this replay, which publish by
    themselves what their sources did; a name that is given is played in any case. `start`: an
    offset, or Unix seconds: the events from that offset on, or with a timestamp from then on.
    `end`: the same, up to before it. A whole number below 100,000,000 is an offset. `without`: the
    ids of events that are left out.

    **It reaches nothing.** It opens no socket, and starts only under `run_virtual`, which refuses
    what would leave the process: at any speed, since a paced replay runs in virtual time that
    passes as slowly as real time. On another loop (uvloop, asyncio) the start raises BusError. It
    raises BusError as well while any bus of this process is open on ipc or tcp, or with a journal:
    what is published into a journal now, a gateway may be handed after the next start. While the
    replay is open, such a bus of this process, in any thread, raises LeavesProcess when it starts.

    **It hides nothing.** Starting or playing raises JournalCorrupt where the recording is damaged,
    behind the last event that is whole, and JournalRemoved if `keep=` has removed what was asked
    for (without `start`, anything). Starting raises ValueError if nothing at all is selected, or if
    nothing was recorded of a source, type or key that is named. Of the gaps that were
    recorded, `progress` has the count. Raises ValueError and TypeError for wrong arguments.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        types: Types | None = None,
        sources: str | Iterable[str] | None = None,
        key: Keys = None,
        start: float | None = None,
        end: float | None = None,
        without: Iterable[str] = (),
    ) -> None:
        super().__init__(Stage())
        self._selection = Selection(path, types, sources, key, start, end, without)
        self._opened: Reel | None = None
        self._leave: finalize[[int], Replay] | None = None
        self._is_open = self._is_paused = self._is_driven = self._is_over = False
        self._played = self._skipped = self._steps = self._refused = 0
        self._last: Found | None = None
        """The last event that was handed over or skipped."""
        self._stepped, self._alarm = Notifier(), Notifier()

    def __str__(self) -> str:
        return f"the recording {self._selection.path}"

    # As a transport.

    async def start(self, publisher: Publisher, reports: Diagnostics) -> None:
        """Open the file and set the clock; see the class for what it raises."""
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop) or current() is None:
            raise BusError(
                f"{self} is not replayed on {type(loop).__module__}.{type(loop).__name__}, where"
                " nothing keeps an order from leaving the process: run it by"
                " aiobus.run_virtual(main), and for the pace of real time await"
                " replay.play(speed=1) there"
            )
        if self._leave is not None:
            self._refused += 1
            raise BusError(f"{self} was started before: a second bus takes replay.beside()")
        self._loop, self._thread = loop, get_ident()
        self._leave = finalize(self, leave_replay, enter_replay(str(self)))
        self._opened = Reel(self._selection)
        self._stage.loop, self._stage.recorded = loop, self._opened.sources
        await super().start(publisher, reports)
        first = self._peek()
        if first is None:
            names = {name for name, _ in self._stage.recorded}
            raise ValueError(f"{self} has nothing to play{self._why_nothing(names)}")
        loop.set_wall_time(first[3])
        self._is_open = True

    async def close(self, timeout: float) -> Collection[str]:
        """Close the file. The clock of the loop goes on."""
        if self._refused:  # a bus that was refused closes what it could not start
            self._refused -= 1
            return ()
        await super().close(timeout)
        if self._leave is not None and self._leave.alive:
            self._leave()
            self.resume()
            self._loop.run_at(None)
            self._stage.loop, self._is_open = None, False
            self._alarm.wake()
            if self._opened is not None:
                self._opened.close()
        return ()

    def beside(self) -> Seat:
        """The transport of one more bus in this replay, which is to start after the first, on its
        loop: to each other they are peers, without sockets. Starting it raises NameInUse for the
        name of one that is there, and BusError before the first has started or after it has closed.
        """
        return Seat(self._stage)

    @property
    def _reel(self) -> Reel:
        if self._opened is None:
            raise BusClosed(f"{self} is not open: use it inside `async with AsyncEventBus(replay)`")
        return self._opened

    def _peek(self) -> Found | None:
        """The next event; None at the end."""
        reel = self._reel
        while (found := reel.peek()) is not None:
            if self._selection.sources is not None or not self._stage.has(found[1].source):
                break
            reel.take()
        return found

    def _why_nothing(self, names: Collection[str]) -> str:
        text = f" of what was selected; its sources are {', '.join(sorted(names)) or 'none'}"
        own = sorted(name for name in names if self._stage.has(name))
        if self._selection.sources is None and own:
            text += (
                f". {own[0]} is the name of this bus, and played only if sources= (in a shell"
                " --source) names it"
            )
        return text

    # Playing.

    @property
    def progress(self) -> Progress:
        """How far it is. Never waits."""
        reel = self._opened
        gaps, last_offset = (0, 0) if reel is None else (reel.gaps, reel.end)
        offset, time, event = 0, 0.0, ""
        if self._last is not None:
            offset, route, seq, time, _, _ = self._last
            event = event_id(route.source, route.epoch, seq)
        counts = self._played, self._skipped, gaps
        return Progress(*counts, offset, last_offset, time, event, is_over=self._is_over)

    def play(self, speed: float | None = None) -> Coroutine[Any, Any, int]:
        """Hand over all that is left, each event at its time; return how many. Handlers may still
        be at work then (`bus.settle`).

        `speed`: how many times as fast as real time the clock of the loop runs, for the timers of
        the strategy as well. None: as fast as it goes; timers that come before an event run before
        it, so what happens is the same at each speed. If the replay is paused, the call resumes it,
        and a `pause` behind the call holds, though the task that awaits it may not have begun.
        Raises what the class says, BusError if it is played already, BusClosed if its bus is not
        open or closes first, and ValueError for a wrong speed. Cancelling it hands over nothing
        more; playing again goes on there.
        """
        if not self._is_driven or self._steps:  # else it is played already, and is to be steered
            self.resume()
        return self._play(speed)

    async def _play(self, speed: float | None) -> int:
        while self._is_driven and self._steps:  # by a step, which came first
            await self._stepped.wait()
        with self._driving():
            self._loop.run_at(speed)
            before = self._played
            try:
                while await self._hand_next():
                    pass
            finally:
                self._loop.run_at(None)
            return self._played - before

    async def step(self, count: int = 1) -> int:
        """Pause, hand over the next `count` events, each at its time, and return how many there
        were. Then the clock stands still again, unless that was the end. Works beside a `play` that
        is paused, and without one. Raises as `play` does, ValueError for a `count` below 1, and
        BusError while another step is under way.
        """
        if not (isinstance(count, int) and count >= 1):
            raise ValueError(f"count={count!r}: a whole number of events from 1 is needed")
        if self._steps:
            raise BusError(f"another step of {self} is under way")
        self.pause()
        before = self._played
        self._steps = count
        self._loop.stand_still(False)
        try:
            if self._is_driven:
                while self._steps and self._is_driven:
                    await self._stepped.wait()
            else:
                with self._driving():
                    while self._steps and await self._hand_next():
                        pass
        finally:
            self._steps = 0
            self._loop.stand_still(self._is_paused)
        return self._played - before

    def pause(self) -> None:
        """Hand over no further event until `resume`, `step` or `play`. The clock of the loop stands
        still: no timer and no timeout runs meanwhile, but what is ready does. Thread-safe. If only
        code on the loop could resume it and nothing is ready, the run ends with Deadlock, or waits
        for ever if the process has other threads. Resume it before its bus is closed. Raises
        BusClosed if that is not open.
        """
        self._check_open()
        self._is_paused = True
        self._loop.stand_still(True)

    def resume(self) -> None:
        """Go on after `pause`. Thread-safe. No error if it was not paused."""
        self._is_paused = False
        if self._leave is not None:
            self._loop.stand_still(False)

    def seek(self, to: float) -> int:
        """Leave out all before the offset, or the Unix seconds, `to`; return how many events. The
        wall clock of the loop jumps to the next event; timers do not, so none comes early. Blocks
        while it reads, and verifies, what it leaves out. It goes forward only: raises ValueError
        for a place before the last event that was handed over, and WrongLoop in another thread.
        """
        self._check_open()
        if get_ident() != self._thread:
            raise WrongLoop(f"seek() of {self} belongs into the thread of its loop")
        bound, before, last = Bound.of("to", to), self._skipped, self._last
        if last is not None and not (bound.is_after(last) or bound.time == last[3]):
            raise ValueError(
                f"to={to!r}: {self} is at offset {last[0]} already, and goes forward only; start"
                " another replay with start="
            )
        end = self._reel.end
        if bound.offset is not None and bound.offset > end:
            raise ValueError(f"to={to!r}: the last offset of {self} is {end}")
        while (found := self._peek()) is not None and bound.is_after(found):
            self._last = self._reel.take()
            self._skipped += 1
        if found is not None and found[3] > self._loop.wall_time():
            self._loop.set_wall_time(found[3])
        self._alarm.wake()
        return self._skipped - before

    def _check_open(self) -> None:
        if not self._is_open:
            raise BusClosed(f"{self} is not open: use it inside `async with AsyncEventBus(replay)`")

    @contextmanager
    def _driving(self) -> Iterator[None]:
        self._check_open()
        if self._is_driven:
            raise BusError(f"{self} is played already: pause(), step() and resume() steer it")
        self._is_driven = True
        try:
            yield
        finally:
            self._is_driven = False
            self._stepped.wake()

    async def _hand_next(self) -> bool:
        """Wait until the next event is due, and hand it over. False if there is none."""
        loop = self._loop
        while True:
            self._check_open()
            if (found := self._peek()) is None:
                break
            if self._is_paused and not self._steps:
                await loop.until_moving()
                continue
            due = found[3] - loop.wall_time()
            if due > INSTANT:
                timer = loop.call_later(due, self._alarm.wake)
                try:
                    await self._alarm.wait()  # or for a seek, or the end
                finally:
                    timer.cancel()
                continue
            _, route, seq, time, cause, data = found
            row = rebuilt(seq, time, route.type, route.key, cause.decode(), data)
            place = (route.source, route.epoch), route.type, route.key
            await self._stage.hand(place, seq, row)
            if self._reel.peek() is found:  # a seek may have left it out meanwhile
                self._reel.take()
            self._last = found
            self._played += 1
            if self._steps:
                self._steps -= 1
                self._loop.stand_still(self._is_paused and not self._steps)
                self._stepped.wake()
            return True
        self._is_over = True
        self.resume()  # nothing is left to be paused
        return False
