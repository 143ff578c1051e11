"""The files beside a journal: its mark, which says how far the journal must reach, its lock, and
the space that it has in reserve.

Owns them. A single altered bit makes SQLite drop the rest of its write-ahead log without a word;
only the mark shows that. Must not know what is in the database.
"""

import fcntl
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple
from zlib import crc32

import orjson

from aiobus import clock
from aiobus.errors import JournalError, JournalInUse

__all__ = [
    "MAKING", "FileLock", "Mark", "Place", "SpaceReserve", "check_purpose", "read_mark",
    "sync_file", "write_mark",
]  # fmt: skip

SUFFIX = ".mark"


class Place(NamedTuple):
    """Where the start number `start` of a source stands: it may have used numbers up to `upto`.
    `begins`: above which seq each of the last starts has published, this one last. A mark of an
    earlier version of aiobus has one of them, or none.
    """

    epoch: int
    start: int
    upto: int
    begins: tuple[int, ...] = ()


class Mark(NamedTuple):
    """Up to where a journal was complete when the mark was written."""

    offset: int = 0
    """Of the last event; 0 if there was none."""
    chain: int = 0
    """The running checksum behind it."""
    is_clean: bool = False
    """True if the journal was closed then, so nothing may follow."""
    reserved: Mapping[str, Place] = MappingProxyType({})
    """For each source whose journal this is, where it stands; a recording has none."""


MAKING = Mark(-1)
"""Of a journal that is being made: it may have no tables, and it has no events."""


def _encoded(mark: Mark) -> bytes:
    reserved = {name: [*place[:3], *place.begins] for name, place in mark.reserved.items()}
    text = orjson.dumps({**mark._asdict(), "reserved": reserved})
    return b"%b\n%08x\n" % (text, crc32(text))


def read_mark(path: str) -> Mark | None:
    """The mark of the journal at `path`; None if there is no such file. Raises ValueError if it is
    not what was written.
    """
    try:
        with open(path + SUFFIX, "rb") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    with suppress(ValueError, TypeError, AttributeError, LookupError):
        facts: dict[str, Any] = orjson.loads(text.partition(b"\n")[0])
        reserved = {
            name: Place(epoch, start, upto, tuple(begins))
            for name, (epoch, start, upto, *begins) in facts["reserved"].items()
        }
        mark = Mark(**{**facts, "reserved": reserved})
        if _encoded(mark) == text:
            return mark
    raise ValueError(f"{path}{SUFFIX} is damaged")


def check_purpose(path: str, mark: Mark, source: str | None) -> None:
    """Raises JournalError if the file with this mark is not the journal of `source`; or if that is
    None, not a recording. A file without events may become either.
    """
    if source in mark.reserved:
        return
    names = ", ".join(mark.reserved)
    if source is None:
        if names:
            raise JournalError(f"{path} is the journal of {names}: give a recording its own")
    elif names or mark.offset > 0:
        whose = f"of {names}" if names else "a recording"
        raise JournalError(f"{path} is not the journal of {source!r}, but {whose}")


def write_mark(path: str, mark: Mark) -> None:
    """Replace the mark: what is there is whole at any time, and on the disk when this returns.
    Raises OSError.
    """
    new = f"{path}{SUFFIX}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(_encoded(mark))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(new, path + SUFFIX)
    sync_file(os.path.dirname(path) or ".")


def sync_file(path: str) -> None:
    """Return when a file or a directory is on the disk. Raises OSError. Never of a database that is
    open: closing any descriptor of it ends the locks that SQLite has.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


RESERVE_BYTES = 4 * 1024 * 1024


class SpaceReserve:
    """Disk space that is given back when the disk is full. It is a file of its own: a commit is
    first written to the write-ahead log, which free pages of the database do not help.
    """

    def __init__(self, path: str) -> None:
        self._path = f"{path}.reserve"

    def release(self) -> bool:
        """True if there was space to give back."""
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return False
        return True

    def keep(self) -> bool:
        """Have the space in reserve if the disk has several times as much; False if not."""
        if os.path.exists(self._path):
            return True
        disk = os.statvfs(os.path.dirname(self._path) or ".")
        if disk.f_bavail * disk.f_frsize < 4 * RESERVE_BYTES:
            return False
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        except OSError:
            os.unlink(self._path)
            raise
        finally:
            os.close(descriptor)
        return True


class FileLock:
    """Held by the one writer of a journal, until `release` or the end of the process. The file
    stays: if it were removed, two processes could lock two files of one name.
    """

    def __init__(self, path: str) -> None:
        """Raises JournalInUse, which says who holds it, and OSError."""
        self._descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 200).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise JournalInUse(path, holder) from None
        now = datetime.fromtimestamp(clock.machine()).isoformat(" ", "seconds")
        told = f"process {os.getpid()} since {now}\n"
        _held.append(self)
        # On a full disk it is locked all the same, and does not say by whom.
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, told.encode(), 0)

    def release(self) -> None:
        """Let another writer in. A second call does nothing."""
        if self in _held:
            _held.remove(self)
            os.close(self._descriptor)


def writer_of(path: str) -> str | None:
    """Which process writes to the journal at `path`, as it has said itself. "" if none is seen
    here; None if this system does not tell. It does not touch the lock: a writer that starts would
    take that for another writer.
    """
    try:
        with open(f"{path}.lock") as file:
            told, inode = file.read(200).strip(), os.fstat(file.fileno()).st_ino
        with open("/proc/locks") as file:
            held = [line.split() for line in file]
    except FileNotFoundError as error:
        return "" if error.filename != "/proc/locks" else None
    except OSError:
        return None
    pid = told.split()[1:2]
    ours = [line for line in held if "FLOCK" in line and line[5].endswith(f":{inode}")]
    return told if any(line[4:5] == pid for line in ours) else ""


_held: list[FileLock] = []


def _release_in_child() -> None:
    """A child shares the lock of its parent and would keep it when that ends."""
    while _held:
        _held[-1].release()


os.register_at_fork(after_in_child=_release_in_child)
