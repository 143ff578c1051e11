"""`verify`: yesterday's session through the strategy of today.

Owns the way from a file to a verdict. What happens next in a replay is decided by `player` and
`schedule`, and what is said by `report`.
"""

import logging
import os
import platform
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from threading import get_ident
from typing import Any, NamedTuple

import orjson

from aiobus.confinement import Confinement
from aiobus.errors import Deadlock, JournalError, LeavesProcess
from aiobus.journal.format import TAPE, tape_of
from aiobus.journal.mark import writer_of
from aiobus.journal.reader import Journal
from aiobus.lockout import replaying
from aiobus.query import EVERYTHING
from aiobus.replay.attach import Strategy, check_strategy, origin_of, ran_before
from aiobus.replay.evidence import raised_at
from aiobus.replay.player import Player
from aiobus.replay.report import Difference, Report, Verdict, parse_paths
from aiobus.replay.schedule import LeftBehind, PlayerLoop
from aiobus.replay.tape import VERSION, Chunk, Entry, Source, entries
from aiobus.virtual_run import run_confined

__all__ = ["assert_replays", "verify"]

TAPES = replace(EVERYTHING, reserved=frozenset({TAPE}))
PAGE = 256
MOST_PAGES = 128
"""Pages of events in memory."""
MOST_LINES = 100
THREADS = (
    "loop.run_in_executor",
    "Thread.start",
    "_thread.start_new_thread",
    "ThreadPoolExecutor.submit",
)
_AGAIN = "this object has run before in this process, and may have kept its state: verify a new one"
NAMED = tape_of("")


def verify(
    path: str | os.PathLike[str],
    strategy: Strategy,
    *,
    ignore: Collection[str] = (),
    allow: Collection[str] = (),
    recording: int = -1,
) -> Report:
    """Run `strategy` again on what it was given when it was recorded (`record(attach=)`), and
    compare what it publishes, in order and byte for byte::

        report = verify("strategy.db", strategy)
        print(report)  # AGREES, DIVERGES with the first difference, or INCONCLUSIVE

    AGREES: it has run from the first to the last entry of the tape, all it has published is what
    was recorded, with type, key, data, timestamp and cause, and each piece of it has ended as it
    did, with the same exception or with none. DIVERGES: `report.difference` is the first
    difference. INCONCLUSIVE, and `report.reason` says why, if nothing was compared, or not all of
    it could be: there is no such file, it is damaged, or it has no tape; nothing was delivered or
    published, or the data of all outputs is ignored; the tape has a hole or no end, because the
    recording was not closed; an event is not in the file; the strategy waits for something that is
    not attached; or a call that would leave the process was refused.

    Nothing leaves the process meanwhile, as in `run_virtual`; `allow` names callers that may. The
    strategy runs on a loop of its own, in another thread if a loop runs in this one, which waits.
    `ignore`: paths of what is not compared in outputs, such as "data.client_id", "data.legs.*.id"
    or "timestamp". If the file has several recordings with a tape, one of them is verified:
    `recording` is its place, as in a list. Raises TypeError and ValueError for wrong arguments, and
    BusError while a bus of this process is on ipc or tcp or has a journal. That the strategy exits
    (SystemExit) is a difference as any other exception.
    """
    check_strategy("strategy", strategy)
    paths, confinement = parse_paths(ignore), Confinement(allow)
    report = Report(os.fspath(path), "INCONCLUSIVE")
    try:
        with Journal(path) as journal:
            journal.verify()
            tapes = sorted(_tapes(journal), key=partial(_offset, journal))
            report = replace(report, recordings=len(tapes))
            if not tapes:
                text = (
                    "the file has no tape: record with record(..., attach=strategy). If it was, its"
                    " process was killed before the first stretch of the tape was written"
                )
                return replace(report, reason=text)
            try:
                place = range(len(tapes))[recording]
            except IndexError:
                text = f"recording={recording!r}: the file has {len(tapes)} with a tape"
                raise ValueError(text) from None
            report = replace(report, recording=place)
            with replaying(f"verify of {report.path}"):
                return _verified(report, journal, tapes[place:], strategy, paths, confinement)
    except JournalError as error:
        return replace(report, reason=str(error))


def assert_replays(
    path: str | os.PathLike[str],
    strategy: Strategy,
    *,
    ignore: Collection[str] = (),
    allow: Collection[str] = (),
    recording: int = -1,
) -> Report:
    """`verify` for a test: raises AssertionError with the report unless it AGREES, so also if it is
    INCONCLUSIVE. Returns the report.
    """
    __tracebackhide__ = True
    report = verify(path, strategy, ignore=ignore, allow=allow, recording=recording)
    if not report:
        raise AssertionError(str(report))
    return report


class Tape(NamedTuple):
    """Where the tape of one recording is: chunks of a source in the journal."""

    source: str
    epoch: int
    first: int
    last: int


def _tapes(journal: Journal) -> Iterator[Tape]:
    """The tapes of a journal, those of each start of a bus together."""
    for source, epoch in journal.sources():
        if source.startswith(NAMED):
            found = []
            last = journal.seq_before_last(source, epoch, 0)
            while last and (chunk := _chunk(journal, source, epoch, last)) is not None:
                found.append(Tape(source, epoch, chunk["first"], last))
                last = chunk["first"] - 1
            yield from reversed(found)


def _offset(journal: Journal, tape: Tape) -> int:
    """Where a tape ends in the file, which is written in order."""
    select = 'SELECT "offset" FROM events WHERE source = ? AND seq = ?'
    return int(journal.ask(select, journal.number(tape.source, tape.epoch), tape.last))


def _chunk(journal: Journal, source: str, epoch: int, seq: int) -> dict[str, Any] | None:
    """The data of one chunk, and when it was taken; None if it is not there."""
    rows = journal.page(TAPES, source, epoch, seq - 1, seq, 1).rows
    if not rows:
        return None
    _, time, _, _, data, *_ = orjson.loads(rows[0][3])
    return {**data, "time": time}


class _Reader:
    """The entries of one tape, read one chunk at a time."""

    def __init__(self, journal: Journal, tape: Tape) -> None:
        self._journal, self._tape = journal, tape
        self.problem = ""
        self.end: dict[str, Any] | None = None
        """The facts of its end, once that was read."""
        self.is_cut = False
        """It has no end."""
        self.published, self.time = 0, 0.0
        """The last event that the bus had published when the last chunk was taken, and when."""
        head = _chunk(journal, *tape[:3])
        self.facts: dict[str, Any] = (head or {}).get("facts") or {}
        if head is None:
            source, epoch, first, _ = tape
            is_removed = journal.page(TAPES, source, epoch, first - 1, first, 1).removed >= first
            way = "was removed by keep=" if is_removed else "is not in the file: it was lost"
            self.problem = f"the beginning of its tape {way}"
        elif self.facts.get("tape") != VERSION:
            self.problem = f"its tape is of version {self.facts.get('tape')}, which is unknown here"

    def __iter__(self) -> Iterator[Entry]:
        source, epoch, first, last = self._tape
        sources: list[Source] = []
        for seq in range(first, last + 1):
            data = _chunk(self._journal, source, epoch, seq)
            if data is None:
                self.problem = f"its tape has a hole: stretch {seq - first + 1} is missing"
                return
            chunk = Chunk.decoded(data)
            sources += chunk.sources
            yield from entries(chunk, sources)
            self.end, self.published, self.time = chunk.end, chunk.published, data["time"]
        self.is_cut = self.end is None


def _cut(journal: Journal, reader: _Reader, later: Sequence[Tape]) -> str:
    """Why a tape has no end, and what is in the file that it does not have."""
    writer = "" if later else writer_of(journal.path)
    if writer:
        why = f"is still written, by {writer}"
    else:
        why = "has no end, because the recording was not closed"
        if writer is not None:
            why += (
                ": its process was killed, or an error ended the recording. Ctrl-C closes it, and"
                " SIGTERM does so if it is handled"
            )
    source, epoch = str(reader.facts["name"]), int(reader.facts["epoch"])
    after, last = reader.published, journal.seq_before_last(source, epoch, 0)
    for tape in later:  # of the same start, so it goes on behind this one
        head = _chunk(journal, *tape[:3]) if tape.epoch == epoch else None
        if head is not None:
            last = min(last, head["facts"]["published"])
    count = 0
    while after < last:
        page = journal.page(EVERYTHING, source, epoch, after, last, PAGE)
        count, after = count + len(page.rows), page.to
    ends = datetime.fromtimestamp(reader.time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        f"its tape {why}. It ends at {ends}, and {count:,} later events of {source} are in the file"
    )


class _Pages:
    """The events of a journal by id. As many are in memory as some pages have."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._pages: OrderedDict[tuple[str, int, int], dict[int, bytes]] = OrderedDict()

    def row(self, source: str, epoch: int, seq: int) -> bytes | None:
        """The row of an event; None if it is not there."""
        place = source, epoch, seq // PAGE
        page = self._pages.get(place)
        if page is None:
            page = self._pages[place] = self._read(source, epoch, seq // PAGE * PAGE)
            if len(self._pages) > MOST_PAGES:
                self._pages.popitem(last=False)
        else:
            self._pages.move_to_end(place)
        return page.get(seq)

    def _read(self, source: str, epoch: int, first: int) -> dict[int, bytes]:
        rows: dict[int, bytes] = {}
        after, upto = first - 1, first + PAGE - 1
        while after < upto:
            page = self._journal.page(EVERYTHING, source, epoch, after, upto, PAGE)
            rows.update((seq, row) for seq, _, _, row in page.rows)
            after = page.to
        return rows


def _verified(
    report: Report,
    journal: Journal,
    tapes: Sequence[Tape],
    strategy: Strategy,
    ignore: Collection[tuple[str, ...]],
    confinement: Confinement,
) -> Report:
    """Verify the first of these tapes."""
    reader = _Reader(journal, tapes[0])
    if reader.problem:
        return replace(report, reason=reader.problem)
    loop, lines = PlayerLoop(), list[str]()
    rows = _Pages(journal).row
    player = Player(loop, iter(reader), reader.facts, lambda: reader.end, rows, ignore)

    threads: list[int] = []
    is_used = ran_before(strategy)

    async def main() -> None:
        threads.append(get_ident())
        await player.run(strategy)

    # What happens while the strategy is ended is of no interest.
    try:
        with _quiet(threads, lines):
            run_confined(main, loop, confinement)
    except (LeavesProcess, LeftBehind, Deadlock, SystemExit):
        if not player.done.done():
            raise
    if not player.is_stopped or player.is_at_end:  # else the outputs that follow are not known
        player.count_outside(reader.published + 1)
    if reader.is_cut:
        reader.problem = _cut(journal, reader, tapes[1:])
    verdict, reason, difference = _judged(player, reader)
    if difference is not None:
        seen = *difference.suspects, *player.witness.told, *([_AGAIN] if is_used else [])
        suspects = *_other(reader.facts, strategy), *seen, *_machine(reader.facts)
        difference = replace(difference, suspects=suspects)
    return replace(
        report,
        verdict=verdict,
        reason=reason,
        difference=difference,
        steps=player.position,
        strands=player.ran,
        deliveries=player.deliveries,
        agreed=player.agreed,
        ignored=player.ignored,
        outside=player.outside,
        fingerprint=str(player.fingerprint) if player.agreed else "",
        log=tuple(lines),
        written=tuple(confinement.written),
    )


def _judged(player: Player, reader: _Reader) -> tuple[Verdict, str, Difference | None]:
    """Verdict, reason and difference."""
    difference = None if player.is_at_end and reader.problem else player.difference
    if player.refusal is not None:
        return "INCONCLUSIVE", _refused(player.refusal), None
    if player.problem:
        return "INCONCLUSIVE", player.problem, None
    if difference is not None:
        return "DIVERGES", "", difference
    if reader.problem:
        return "INCONCLUSIVE", reader.problem, None
    if not player.deliveries:
        return "INCONCLUSIVE", "nothing was delivered to the strategy", None
    if not player.agreed:
        return "INCONCLUSIVE", "the strategy has published nothing", None
    if not player.has_data:
        return "INCONCLUSIVE", "ignore= leaves nothing of the data to compare", None
    return "AGREES", "", None


def _refused(refusal: BaseException) -> str:
    """What was refused, where, and what helps."""
    if not isinstance(refusal, LeavesProcess) or refusal.replayed:
        return str(refusal)
    call, caller = refusal.call, refusal.caller
    where = f"at {place}" if (place := raised_at(refusal)) else f"in {caller}"
    text = "a call that would leave the process was refused, so nothing is said of decisions"
    parts = [f"{text}: {call} {where}"]
    if call.partition("(")[0] in THREADS:
        parts.append(
            "When a thread has which result is not on the tape: let it publish the result from a"
            " bus of its own, and subscribe to it"
        )
    if caller:
        parts.append(
            f"If it has no influence on decisions, let the caller through: allow=({caller!r},), or"
            f" --allow {caller}"
        )
    return ". ".join(parts)


def _other(facts: dict[str, Any], strategy: Strategy) -> Iterator[str]:
    """That another function was recorded, which explains most other differences. Said first."""
    then, now = facts["strategy"], origin_of(strategy)
    if then.partition(":")[2] != now.partition(":")[2]:
        yield f"{then} was recorded, and {now} was verified: is it the right function?"


def _machine(facts: dict[str, Any]) -> Iterator[str]:
    """What is another now on the machine. The seed, which mostly is and rarely matters, is last."""
    if facts["python"] != platform.python_version():
        yield f"it was recorded on Python {facts['python']}"
    if facts["hash"] != hash("aiobus"):
        yield (
            "it was recorded under another PYTHONHASHSEED, which is random unless it is set. Only"
            " if the strategy iterates a set of strings, or calls hash(), may that matter"
        )


@contextmanager
def _quiet(threads: Collection[int], lines: list[str]) -> Iterator[None]:
    """Keep what the package logs in these threads out of the log, and its first lines in `lines`:
    it is about handlers that failed when they were recorded.
    """

    def keep(record: logging.LogRecord) -> bool:
        if record.thread not in threads:
            return True
        if len(lines) < MOST_LINES:
            lines.append(record.getMessage())
        return False

    names = [name for name in logging.root.manager.loggerDict if name.startswith("aiobus.")]
    loggers = [logging.getLogger(name) for name in (*names, "asyncio")]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)
