"""Writing a journal from an event loop: a queue, and one thread that commits what is in it and says
on the loop what is in the file.

Owns the queue and its bounds. One statement is one commit: `executemany` takes the GIL back for
each row, which beside a loop that computes takes up to 5 ms each time. On a virtual loop there is
no thread, and the loop's own turn commits.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TypeVar, cast

from aiobus import clock
from aiobus.errors import JournalError
from aiobus.journal.format import Entry
from aiobus.journal.mark import Place, check_purpose, read_mark
from aiobus.journal.retention import Keep, check_keep
from aiobus.journal.scan import checked_path
from aiobus.journal.store import MARK_SECONDS, Store, Sync

__all__ = ["JournalWriter", "Sync", "in_thread"]

T = TypeVar("T")

Committed = Callable[[int, BaseException | None], None]

COMMIT_EVENTS = 1_000
COMMIT_BYTES = 1024 * 1024
COMMIT_ALL = 32
"""Events up to which a commit takes all that wait. Of more it takes about half of what is on its
way, so that the loop hands out and numbers the one half while the disk is busy with the other. With
100 publishers that is a tenth more events a second (`python -m perf.durable`).
"""
QUEUE_EVENTS = 65_536
QUEUE_BYTES = 64 * 1024 * 1024


class JournalWriter:
    """The one writer of the journal at `path`. Raises ValueError and TypeError for a wrong
    argument, which `argument` names, and JournalError for a directory.

    `sync="power"`: an event that is committed survives a power failure. `"process"`: it survives
    the end of the process in any way; a power failure may take the last second. `keep`: when more
    than so many bytes are in the database, or events were committed longer ago than this timedelta,
    whole stretches of the oldest events are removed. None keeps everything. `ends_with_error`:
    nothing is committed behind a commit that failed, so the file ends there without a hole.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sync: Sync = "power",
        keep: Keep = None,
        ends_with_error: bool = False,
        argument: str = "journal",
    ) -> None:
        if sync not in ("power", "process"):
            raise ValueError(f"sync={sync!r}: 'power' or 'process' is needed")
        check_keep(keep)
        self.path = os.path.abspath(checked_path(argument, path))
        self._sync = sync
        self._keep = keep
        self._store: Store | None = None
        self._queue: deque[Entry] = deque()
        self._queued = self._queued_bytes = 0
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._committed: Committed | None = None
        self._is_closing = False
        self._turn = threading.Lock()
        """Held by `close`, and by each step that may be left to a thread which is not awaited."""
        self._ends_with_error = ends_with_error
        self._ended_by: JournalError | None = None
        self._is_stepping = False
        self._just_committed = 0
        """Events of the last commit, whose publishers may be about to publish again."""
        self._is_tended = True
        """False if what is due beside commits has failed, and is to be tried again."""

    def check_purpose(self, source: str | None) -> None:
        """Raises JournalError if the mark says that the file is not the journal of `source`; or if
        that is None, not a recording. To be called before `open`: a start that is not to write to
        this file would else hold its lock for a moment, and make the start fail that is. What is
        wrong with the file itself is left to `open`. Blocks for a moment.
        """
        with suppress(OSError, ValueError):
            if (mark := read_mark(self.path)) is not None:
                check_purpose(self.path, mark, source)

    def has_events(self) -> bool:
        """True if the mark says so. For before `open`, which writes. Blocks for a moment."""
        with suppress(OSError, ValueError):
            return (mark := read_mark(self.path)) is not None and mark.offset > 0
        return False

    def open(self) -> None:
        """Lock the file, make it if it is not there, and verify it. Blocks, for a few seconds per
        million events. Raises JournalInUse, JournalCorrupt, and JournalError for a file that is no
        journal or that cannot be made, or if `close` was called meanwhile: then the file is closed.
        """
        store = Store(self.path, self._sync, self._keep)
        with self._turn:
            if not self._is_closing:
                self._store = store
                return
        store.close()
        raise JournalError(f"{self.path} was closed while it was opened")

    @property
    def _opened(self) -> Store:
        if self._store is None or self._is_closing:
            raise JournalError(f"{self.path} is not open for writing")
        return self._store

    def place(self, source: str) -> Place | None:
        """Where the last start of this source has left off; None if the file is new. Raises
        JournalError if the file is a recording, or the journal of another source.
        """
        return self._opened.place(source)

    @property
    def _unstarted(self) -> Store:
        """The store, while no thread commits. SQLite refuses to empty its log while another thread
        reads a row of the same connection, and after that nothing more is written.
        """
        if self._loop is not None:
            raise JournalError(f"{self.path} is being written: ask what is in it before `start`")
        return self._opened

    def last_seq(self, source: str, epoch: int) -> int:
        """The highest seq of a source that was committed. Blocks for a moment. Raises JournalError
        once `start` was called.
        """
        with self._turn:
            return self._unstarted.last_seq(source, epoch)

    def reserve(self, source: str, place: Place) -> None:
        """Note that numbers of this source up to `place.upto` may be used, on the disk when this
        returns, so that no later start uses one of them again. Blocks. Raises CommitFailed if the
        disk is full, and JournalFailed.
        """
        with self._turn:
            self._opened.reserve(source, place)

    def note_place(self, source: str, place: Place) -> None:
        """The same, with the next mark that is written."""
        self._opened.note_place(source, place)

    def last_of_sources(self) -> dict[tuple[str, int], int]:
        """The highest seq of each source in the file, in the order in which they came. Blocks.
        Raises JournalError if the file is the journal of a bus, whose numbers are its own, and once
        `start` was called.
        """
        with self._turn:
            return self._unstarted.last_of_sources()

    def start(self, committed: Committed) -> None:
        """Begin to commit. `committed(count, error)` is called on the running loop, in order: so
        many of the oldest events that were appended are in the file, or (with an error) are not.
        """
        store = self._opened
        self._loop = asyncio.get_running_loop()
        self._committed = committed
        if not clock.is_virtual():
            self._thread = threading.Thread(
                target=self._run, args=(store,), name="aiobus-journal", daemon=True
            )
            self._thread.start()

    @property
    def room(self) -> int:
        """How many more events the queue takes."""
        return max(0, QUEUE_EVENTS - self._queued) if self._queued_bytes < QUEUE_BYTES else 0

    def _refuse(self) -> NoReturn:
        self._opened.check()
        if self._loop is None:
            raise JournalError(f"{self.path} is not open for writing")
        raise JournalError(f"{self.path}: {self._queued} events wait to be committed already")

    def append(self, *entries: Entry) -> None:
        """Queue events for the next commits, all or none. Never waits. Raises JournalFailed, and
        JournalError if there is no `room`, before `start`, and once `close` has begun.
        """
        store, loop, count = self._store, self._loop, len(entries)
        is_full = self._queued + count > QUEUE_EVENTS or self._queued_bytes >= QUEUE_BYTES
        if store is None or store.failed or loop is None or self._is_closing or is_full:
            self._refuse()
        self._queue += entries
        self._queued += count
        for entry in entries:
            self._queued_bytes += len(entry.row)
        if self._thread is not None:
            if not self._wake.is_set():
                self._wake.set()
        elif not self._is_stepping:
            self._is_stepping = True
            loop.call_soon(self._step_inline)

    def _step_inline(self) -> None:
        self._is_stepping = False
        if not self._is_closing:
            self._step(self._opened)

    def _settle(self, count: int, size: int, error: BaseException | None) -> None:
        assert self._committed is not None
        self._queued -= count
        self._queued_bytes -= size
        self._committed(count, error)

    # In the thread.

    def _run(self, store: Store) -> None:
        while not self._is_closing:
            self._wake.wait(store.mark_due_in() if self._is_tended else MARK_SECONDS)
            self._wake.clear()
            self._step(store)

    def _step(self, store: Store) -> None:
        """Commit whatever is queued."""
        while self._queue:
            half = (len(self._queue) + self._just_committed) // 2
            most = min(COMMIT_EVENTS, max(COMMIT_ALL, half))
            batch: list[Entry] = []
            size = 0
            while self._queue and len(batch) < most and size < COMMIT_BYTES:
                batch.append(entry := self._queue.popleft())
                size += len(entry.row)
            error = self._ended_by
            try:
                if error is None:
                    store.commit(batch, size)
            except JournalError as failure:
                error = failure
                if self._ends_with_error:
                    self._ended_by = failure
            self._tell(len(batch), size, error)
            self._just_committed = len(batch)
            self._is_tended = store.tend()
        self._is_tended = store.tend()

    def _tell(self, count: int, size: int, error: BaseException | None) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop has ended, and with it all that waited
            self._loop.call_soon_threadsafe(self._settle, count, size, error)

    def close(self) -> None:
        """Commit what is queued, mark the journal as complete, and unlock it. Blocks. A second call
        does nothing. `committed` is called for all of it, as ever. An `open` that is under way in
        another thread does not keep the file.
        """
        with self._turn:
            store = None if self._is_closing else self._store
            self._is_closing = True
            if store is None:
                return
            if self._thread is not None:
                self._wake.set()
                self._thread.join()
            self._step(store)
            store.close()


async def in_thread(step: Callable[[], T]) -> T:
    """Run a step that blocks, in a thread if the loop is a real one. If this is cancelled, it
    returns when the step has. If it is cancelled once more, it returns at once and the step goes
    on by itself: what it opens is closed by the `close` of its object. The thread is its own, since
    the loop joins those of its executor, and a disk may hang.
    """
    if clock.is_virtual():
        return step()
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(T, result))

    def run() -> None:
        result, error = None, None
        try:
            result = step()
        except BaseException as wrong:  # noqa: BLE001 - it is raised where the step is awaited
            error = wrong
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name="aiobus-journal-step", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        done.add_done_callback(asyncio.Future.exception)  # it is told to none, and not logged
        await asyncio.wait([done])
        raise
