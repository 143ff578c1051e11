"""The listening socket of one bus at its path in a directory, the lock of that directory, and the
file descriptors that both take.

Owns the socket's file: makes it, tells it from a file that replaced it, and removes it. Owns making
the directory, checking its owner and mode, and its lock. The lock is held for a few calls of the
local file system and never across an await, so a bus that is cancelled or killed leaves it free.
Owns the count of free descriptors and a reserve of them. Must not know the other members.
"""

import asyncio
import fcntl
import math
import os
import resource
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from enum import Enum
from pathlib import PurePath

from aiobus.errors import BusError

__all__ = [
    "ASIDE", "DescriptorReserve", "ListeningSocket", "PathState", "PrivateDirectory",
    "is_socket", "listening_paths", "probe", "raise_limit", "spare_descriptors",
]  # fmt: skip

WANTED = 8_192
NEEDED = 64


def spare_descriptors() -> float:
    """The number of descriptors that this process may still open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return math.inf
    try:
        # Linux since 6.2 has the count here. Reading it needs no descriptor.
        used = os.stat("/proc/self/fd").st_size
    except OSError:
        used = 0
    try:
        return soft - (used or len(os.listdir("/dev/fd")))
    except OSError:  # no descriptor is left to open that directory
        return 0


def raise_limit() -> None:
    """Raise the soft limit of descriptors, to 8,192 if allowed: the usual 1,024 is enough for 500
    peers, with two each. Raises BusError if fewer than 64 are free even so.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if (left := spare_descriptors()) < NEEDED:
        raise BusError(
            f"only {left} more files may be opened by this process, and {NEEDED} are"
            " needed for a bus with peers: raise the limit (ulimit -n)"
        )


class DescriptorReserve:
    """Descriptors that are held open, to be used when the process has used up all others."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._held: list[int] = []
        self.fill()

    def __len__(self) -> int:
        return len(self._held)

    def fill(self) -> None:
        """Hold them, as far as there are any. Again: no effect."""
        with suppress(OSError):  # none is left; tried again after the next use
            while len(self._held) < self.count:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    @contextmanager
    def released(self) -> Iterator[None]:
        """Free the descriptors for the body of the `with`, then hold them again."""
        self.close()
        try:
            yield
        finally:
            self.fill()

    def close(self) -> None:
        """Free all descriptors, until `fill`. Again: no effect."""
        while self._held:
            os.close(self._held.pop())


RESERVED = 4
"""Descriptors in reserve for `ListeningSocket.pause`: the lock, the check of the parent directory,
the plain socket, and the pin of its file.
"""

ASIDE = "~"
"""Suffix of the listening socket's file while a plain socket is at its path."""
TABLE = "/proc/net/unix"
"""Where Linux lists the unix sockets of this network namespace."""
LISTENS = "00010000"
"""The flags of a listening socket in it."""
BACKLOG = 64
"""Connections that wait at the path of a bus that does not accept."""


class PathState(Enum):
    """What is at the path of a socket."""

    NOTHING = "nothing"
    ALIVE = "a socket of this user that accepts"
    DEAD = "a socket of this user on which no process listens"
    FOREIGN = "anything else, which this bus must not touch"
    UNKNOWN = "a socket of this user, and no descriptor is left to connect to it"


def is_socket(path: str) -> bool:
    """True if `path` is a socket of this user. A symbolic link is not."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISSOCK(info.st_mode) and info.st_uid == os.geteuid()


def probe(path: str) -> PathState:
    """What is at `path`. Never waits: the kernel accepts, so a frozen process counts as alive.

    NOTHING and DEAD prove that no bus is there only with the directory's lock, because a running
    bus that renames its socket is both for a moment.
    """
    if not os.path.lexists(path):
        return PathState.NOTHING
    if not is_socket(path):
        return PathState.FOREIGN
    try:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        return PathState.UNKNOWN
    with probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return PathState.ALIVE  # its queue of waiting connections is full
        except ConnectionRefusedError:
            return PathState.DEAD
        except FileNotFoundError:
            return PathState.NOTHING
        except OSError:
            return PathState.FOREIGN  # no stream socket, or a path that is too long for a bus
    return PathState.ALIVE


def listening_paths(directory: str) -> set[str] | None:
    """The paths in `directory` at which sockets listen, even if the file or the directory is gone.
    None if that is unknown: no descriptor is left, or the system is not Linux.
    """
    try:
        with open(TABLE, encoding="utf-8", errors="surrogateescape") as table:
            rows = [row.split(maxsplit=7) for row in table]
    except OSError:
        return None
    paths = {row[7].rstrip("\n") for row in rows if len(row) == 8 and row[3] == LISTENS}
    return {path for path in paths if os.path.dirname(path) == directory}


class _File:
    """The identity of one file, which differs from that of every later file at its path. An open
    descriptor pins the inode: otherwise the file system may give its number to the next file.
    """

    def __init__(self, path: str) -> None:
        self._pin = None
        if sys.platform == "linux":
            self._pin = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._identity = _identity(path)

    def is_at(self, path: str) -> bool:
        try:
            return _identity(path) == self._identity
        except OSError:
            return False

    def close(self) -> None:
        if self._pin is not None:
            os.close(self._pin)
            self._pin = None


def _identity(path: str) -> tuple[object, ...]:
    info = os.lstat(path)
    return info.st_dev, info.st_ino, getattr(info, "st_birthtime", None)


class ListeningSocket:
    """The socket of the bus at `path`, to which others connect.

    libzmq aborts the process if it accepts a connection and no descriptor is left. It accepts as
    long as others can connect, and cannot close a listening socket without its connections. So
    `pause` renames the file of the listening socket to a name that no bus looks for, and puts a
    plain socket that never accepts at the path. The bus keeps its name and its connections.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: _File | None = None
        self._renamed: _File | None = None
        self._plain: socket.socket | None = None
        self.reserve = DescriptorReserve(RESERVED)
        """Released by the caller of `pause`."""

    @property
    def is_there(self) -> bool:
        """True while the file at the path is this bus's."""
        return self._file is not None and self._file.is_at(self.path)

    @property
    def is_paused(self) -> bool:
        """True while the bus accepts no connections."""
        return self._plain is not None

    def resume(self, listen: Callable[[], object]) -> None:
        """Accept connections at the path, which no other bus may use. After `pause` the file is
        renamed back. Otherwise `listen` is called, to bind and listen at the path.

        If the file has vanished, its listening socket stays open as long as the bus, because it
        cannot be closed without its connections.
        """
        renamed = f"{self.path}{ASIDE}"
        if self._renamed is not None and self._renamed.is_at(renamed):
            os.rename(renamed, self.path)
            self._replace(self._renamed)
            return
        if self.is_there:
            os.unlink(self.path)
        try:
            listen()
            self._replace(_File(self.path))
        except BaseException:
            # The path was free before, so `listen` made this socket.
            if is_socket(self.path):
                os.unlink(self.path)
            self.reserve.close()  # the first time there is no bus to hold it for
            raise

    def pause(self) -> None:
        """Keep the path, which no other bus may use, and accept no connections. Existing
        connections stay.
        """
        renamed = f"{self.path}{ASIDE}"
        is_moved = self.is_there and not self.is_paused
        if is_moved:
            os.rename(self.path, renamed)
        plain = socket.socket(socket.AF_UNIX)
        try:
            plain.bind(self.path)
            plain.listen(BACKLOG)
            self._replace(_File(self.path), self._file if is_moved else self._renamed, plain)
        except BaseException:
            plain.close()
            if is_moved:
                os.rename(renamed, self.path)
            raise

    def _replace(
        self, file: _File | None, renamed: _File | None = None, plain: socket.socket | None = None
    ) -> None:
        """`file` is at the path from now on."""
        for old in (self._file, self._renamed):
            if old is not None and old is not file and old is not renamed:
                old.close()
        if self._plain is not None:
            self._plain.close()
        self._file, self._renamed, self._plain = file, renamed, plain

    def remove(self) -> None:
        """Remove the files of this bus. Again: no effect, unless the first time failed."""
        for file, path in ((self._file, self.path), (self._renamed, f"{self.path}{ASIDE}")):
            if file is not None and file.is_at(path):
                os.unlink(path)
        self.close()

    def close(self) -> None:
        """Close all descriptors; remove no file. Again: no effect."""
        self.reserve.close()
        self._replace(None)


PAUSE_SECONDS = 0.005
"""Seconds between two attempts to take the lock, which is held for less than this."""


class PrivateDirectory:
    """The directory `path` of the bus `url`, which belongs to this user alone, and its lock. If
    `parent` is not empty, that directory must belong to this user alone as well. `suffix` is part
    of the name of every file that a bus makes.
    """

    def __init__(self, path: str, parent: str, url: str, suffix: str) -> None:
        self.path = path
        self.is_made = False
        """True once this object has made the directory."""
        self._parent = parent
        self._url = url
        self._suffix = suffix
        self._locks: set[int] = set()

    @property
    def is_there(self) -> bool:
        """True while anything is at the path."""
        return os.path.lexists(self.path)

    def descriptors(self) -> set[int]:
        """The open descriptors of the lock."""
        return set(self._locks)

    @asynccontextmanager
    async def lock(self, seconds: float, *, making: bool) -> AsyncIterator[None]:
        """Hold the lock, as `try_lock` does. Raises BusError if another has it for `seconds`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            with self.try_lock(making=making) as is_held:
                if is_held:
                    yield
                    return
            if loop.time() >= deadline:
                raise BusError(
                    f"{self.path} has been locked by another process for {seconds:g} s, which a"
                    f" bus does for milliseconds: is one frozen? `fuser -v {self.path}` names it"
                )
            await asyncio.sleep(PAUSE_SECONDS)

    @contextmanager
    def try_lock(self, *, making: bool) -> Iterator[bool]:
        """Hold the directory's lock in the body of the `with`. The value is False if another has
        it. If `making`, makes the directory first. Never waits.

        The directory is opened each time: the bus that had the lock last may have removed it, and a
        lock on a directory that is gone excludes no other bus.
        """
        try:
            lock = self._open(making=making)
        except OSError as error:
            raise BusError(
                f"{error.filename or self.path}: {error.strerror}; {self._url} needs a directory"
                " there that belongs to this user alone, and no symbolic link"
            ) from error
        if lock is None:
            yield False
            return
        self._locks.add(lock)
        is_held = False
        try:
            is_held = self._take(lock)
            yield is_held
        finally:
            if is_held:
                # Closing it is not enough: a child that was forked meanwhile has it as well.
                fcntl.flock(lock, fcntl.LOCK_UN)
            self._locks.discard(lock)
            os.close(lock)

    def _take(self, lock: int) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(lock), os.lstat(self.path))
        except (BlockingIOError, FileNotFoundError):
            return False
        except OSError as error:
            raise BusError(
                f"{self.path} cannot be locked: {error.strerror}; use a directory on a local disk"
            ) from error

    def _open(self, *, making: bool) -> int | None:
        """A descriptor of the directory; None if a bus that left has just removed it."""
        if making:
            for parent in reversed(PurePath(self.path).parents):
                if not os.path.isdir(parent):
                    _make_private(str(parent))
        if self._parent:
            os.close(_open_private(self._parent, self._suffix))
        if making:
            self.is_made |= _make_private(self.path)
        try:
            return _open_private(self.path, self._suffix)
        except FileNotFoundError:
            if making:
                return None
            raise


def _make_private(path: str) -> bool:
    """Make a directory for this user alone. False if there was one."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return False
    return True


def _open_private(path: str, suffix: str) -> int:
    """A descriptor of a directory of this user alone. Raises OSError or BusError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    info = os.fstat(directory)
    if info.st_uid == os.geteuid() and not info.st_mode & 0o077:
        return directory
    with os.scandir(directory) as entries:
        is_of_a_bus = all(suffix in each.name for each in entries)
    os.close(directory)
    if info.st_uid != os.geteuid():
        raise BusError(
            f"{path} belongs to user {info.st_uid}, not to {os.geteuid()}; give the bus a directory"
            " of your own, such as ipc:///home/me/desk"
        )
    text = f"{path} is open to other users (mode {stat.S_IMODE(info.st_mode):o})"
    if info.st_mode & stat.S_ISVTX or not is_of_a_bus:
        # The directory has another purpose, as /tmp has.
        raise BusError(f"{text} and not for a bus alone; give it one, such as ipc://{path}/desk")
    # Not narrowed here: that would hide that other users may have put files there.
    raise BusError(
        f"{text}; use another address, or, if all that is in it is yours, `chmod 700 {path}`"
    )
