"""The socket of one bus at its path in a directory of this user, and the descriptors that it
takes.

Owns the file: it makes it, tells it from one that took its place, and removes it. Owns making the
directory, who may look into it, and its lock, which is taken for a few quick calls of the local
file system and never held across an await, so a bus that is cancelled or dies leaves it free. Owns
the count of the descriptors that are left, and a few that are put by. Must not know who else is in
the directory.
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
    "ASIDE",
    "Doorway",
    "Folder",
    "Reserve",
    "Stands",
    "is_socket",
    "listening",
    "look",
    "raise_limit",
    "spare",
]

WANTED = 8_192
NEEDED = 64


def spare() -> float:
    """How many more descriptors this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return math.inf
    try:
        # Linux since 6.2 has the count here, and needs no descriptor to tell it.
        used = os.stat("/proc/self/fd").st_size
    except OSError:
        used = 0
    try:
        return soft - (used or len(os.listdir("/dev/fd")))
    except OSError:  # none is left to open that directory
        return 0


def raise_limit() -> None:
    """Raise the soft limit as far as it may be: the usual 1,024 is for 500 peers, each of which
    takes two. Raises BusError when there are too few for a bus all the same.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if (left := spare()) < NEEDED:
        raise BusError(
            f"only {left} more files may be opened by this process, and {NEEDED} are"
            " needed for a bus with peers: raise the limit (ulimit -n)"
        )


class Reserve:
    """Descriptors that are held so that there are some when the process has used up all others."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._held: list[int] = []
        self._fill()

    def _fill(self) -> None:
        with suppress(OSError):  # there are none; tried again after the next use
            while len(self._held) < self._count:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    @contextmanager
    def released(self) -> Iterator[None]:
        """Free them for what is done inside; what is left is held again afterwards."""
        self.close()
        try:
            yield
        finally:
            self._fill()

    def close(self) -> None:
        """Hold none. Again: nothing."""
        while self._held:
            os.close(self._held.pop())


ASIDE = "~"
"""Behind the name of a listening socket's file while another file holds its path."""
TABLE = "/proc/net/unix"
"""Where Linux lists the unix sockets of this network namespace."""
LISTENS = "00010000"
"""How it marks a socket that listens."""
WAITING = 64
"""Connections that the kernel accepts at a path that is shut."""


class Stands(Enum):
    """What stands at the path of a socket."""

    NOTHING = "nothing"
    ALIVE = "a socket of this user that accepts"
    DEAD = "a socket of this user on which no process listens"
    FOREIGN = "anything else: not ours to touch"
    UNKNOWN = "a socket of this user that cannot be connected to for want of a descriptor"


def is_socket(path: str) -> bool:
    """True for a socket of this user, and not for a link to one."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISSOCK(info.st_mode) and info.st_uid == os.geteuid()


def look(path: str) -> Stands:
    """What stands at `path`. Connecting to a unix socket never waits: it is the kernel that
    accepts, so a frozen process counts as alive. NOTHING and DEAD prove that no bus is there only
    with the directory's lock: a living bus that moves its socket is both for a moment.
    """
    if not os.path.lexists(path):
        return Stands.NOTHING
    if not is_socket(path):
        return Stands.FOREIGN
    try:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        return Stands.UNKNOWN
    with probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return Stands.ALIVE  # so many wait to be accepted that there is no room for another
        except ConnectionRefusedError:
            return Stands.DEAD
        except FileNotFoundError:
            return Stands.NOTHING
        except OSError:
            return Stands.FOREIGN  # it is not a stream, or its path is longer than a bus's may be
    return Stands.ALIVE


def listening(directory: str) -> set[str] | None:
    """The paths in `directory` at which sockets of this machine listen, also where the file, or the
    directory, is not there any more. None where that cannot be told: without a descriptor, and on
    other systems than Linux.
    """
    try:
        with open(TABLE, encoding="utf-8", errors="surrogateescape") as table:
            rows = [row.split(maxsplit=7) for row in table]
    except OSError:
        return None
    paths = {row[7].rstrip("\n") for row in rows if len(row) == 8 and row[3] == LISTENS}
    return {path for path in paths if os.path.dirname(path) == directory}


class _File:
    """One file, told from every other that may stand at its path later: a file system may give the
    inode number of a removed file to the next one, but not while a descriptor of the first is open.
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


class Doorway:
    """The bus's socket at `path`, to which others connect.

    libzmq aborts the process when it accepts a connection for which there is no descriptor, and it
    accepts as long as others can connect. It has to close every connection to close the listening
    socket. So to `shut` the doorway, the file of the listening socket is moved aside, where no bus
    looks for it, and a plain socket that is never accepted on stands in its place: the bus still
    has its name, and its connections go on.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: _File | None = None
        self._aside: _File | None = None
        self._plain: socket.socket | None = None

    @property
    def is_there(self) -> bool:
        """True while what stands at the path is this bus's."""
        return self._file is not None and self._file.is_at(self.path)

    @property
    def is_shut(self) -> bool:
        """True while the bus accepts no connection."""
        return self._plain is not None

    def open(self, listen: Callable[[], object]) -> None:
        """Accept at the path, where nothing of others may stand. `listen` makes the bus listen
        there; it is called unless the bus does so already, and its file is only aside.

        The listening socket of a file that has vanished cannot be closed without its connections,
        so it stays open as long as the bus.
        """
        aside = f"{self.path}{ASIDE}"
        if self._aside is not None and self._aside.is_at(aside):
            os.rename(aside, self.path)
            self._stand(self._aside)
            return
        if self.is_there:
            os.unlink(self.path)
        try:
            listen()
            self._stand(_File(self.path))
        except BaseException:
            # Nothing was there before, so what is there now is what it made.
            if is_socket(self.path):
                os.unlink(self.path)
            raise

    def shut(self) -> None:
        """Keep the path, at which no file of another bus may be, and accept no connection. The
        present connections go on.
        """
        aside = f"{self.path}{ASIDE}"
        is_moved = self.is_there and not self.is_shut
        if is_moved:
            os.rename(self.path, aside)
        plain = socket.socket(socket.AF_UNIX)
        try:
            plain.bind(self.path)
            plain.listen(WAITING)
            self._stand(_File(self.path), self._file if is_moved else self._aside, plain)
        except BaseException:
            plain.close()
            if is_moved:
                os.rename(aside, self.path)
            raise

    def _stand(
        self, file: _File, aside: _File | None = None, plain: socket.socket | None = None
    ) -> None:
        """`file` stands at the path from now on."""
        for old in (self._file, self._aside):
            if old is not None and old is not file and old is not aside:
                old.close()
        if self._plain is not None:
            self._plain.close()
        self._file, self._aside, self._plain = file, aside, plain

    def remove(self) -> None:
        """Remove what of this bus stands there. Again: nothing, unless the first time failed."""
        for file, path in ((self._file, self.path), (self._aside, f"{self.path}{ASIDE}")):
            if file is not None and file.is_at(path):
                os.unlink(path)
        self.close()

    def close(self) -> None:
        """Let go of the files without removing them. Again: nothing."""
        for file in (self._file, self._aside):
            if file is not None:
                file.close()
        if self._plain is not None:
            self._plain.close()
        self._file = self._aside = self._plain = None


PAUSE_SECONDS = 0.005
"""Seconds between two attempts to take the lock. Its holder keeps it for less than this."""


class Folder:
    """The directory `path` of the bus `url`. `above`, if there is one, is its directory, and is to
    belong to this user alone as well. `suffix`: of the files that a bus has in it.
    """

    def __init__(self, path: str, above: str, url: str, suffix: str) -> None:
        self.path = path
        self.is_made = False
        """True once this object has made it."""
        self._above = above
        self._url = url
        self._suffix = suffix
        self._locks: set[int] = set()

    @property
    def is_there(self) -> bool:
        """True while something stands at its path."""
        return os.path.lexists(self.path)

    def descriptors(self) -> set[int]:
        """The descriptors of the lock that are open just now."""
        return set(self._locks)

    @asynccontextmanager
    async def lock(self, seconds: float, *, making: bool) -> AsyncIterator[None]:
        """Hold the directory's lock; raises BusError when it is not to be had."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (lock := self.try_lock(making=making)) is None:
            if loop.time() >= deadline:
                raise BusError(
                    f"{self.path} has been locked by another process for {seconds:g} s, which a"
                    f" bus does for milliseconds: is one frozen? `fuser -v {self.path}` names it"
                )
            await asyncio.sleep(PAUSE_SECONDS)
        try:
            yield
        finally:
            self.unlock(lock)

    def unlock(self, lock: int) -> None:
        """Give back the lock."""
        # Closing it would not do if a child was forked meanwhile: it has the lock as well.
        fcntl.flock(lock, fcntl.LOCK_UN)
        self._close(lock)

    def try_lock(self, *, making: bool) -> int | None:
        """A descriptor of the directory that has its lock; None when another has it. Makes the
        directory first, if `making`.

        It is opened each time: the last holder of the lock may have removed the directory, and a
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
            return None
        self._locks.add(lock)
        is_held = False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = os.path.samestat(os.fstat(lock), os.lstat(self.path))
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError as error:
            raise BusError(
                f"{self.path} cannot be locked: {error.strerror}; use a directory on a local disk"
            ) from error
        finally:
            if not is_held:
                self._close(lock)
        return lock if is_held else None

    def _close(self, lock: int) -> None:
        self._locks.discard(lock)
        os.close(lock)

    def _open(self, *, making: bool) -> int | None:
        """The directory's descriptor; None if a bus that left has just removed the directory."""
        if making:
            for parent in reversed(PurePath(self.path).parents):
                if not os.path.isdir(parent):
                    _make_private(str(parent))
        if self._above:
            os.close(_open_private(self._above, self._suffix))
        if making:
            self.is_made |= _make_private(self.path)
        try:
            return _open_private(self.path, self._suffix)
        except FileNotFoundError:
            if making:
                return None
            raise


def _make_private(path: str) -> bool:
    """Make a directory for this user alone; False when there was one."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return False
    return True


def _open_private(path: str, suffix: str) -> int:
    """A descriptor of a directory that is this user's alone; raises OSError or BusError."""
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
        # It is there for something else, as /tmp is.
        raise BusError(f"{text} and not for a bus alone; give it one, such as ipc://{path}/desk")
    # Narrowing it would hide that others may have put files there.
    raise BusError(
        f"{text}; use another address, or, if all that is in it is yours, `chmod 700 {path}`"
    )
