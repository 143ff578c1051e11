"""A directory that belongs to this user alone, and the lock that its users take turns with.

Owns making it, who may look into it, and the lock. Must not know what is in it.

The lock is taken for a few quick calls of the local file system and never held across an await, so
a bus that is cancelled or dies leaves it free.
"""

import asyncio
import fcntl
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import PurePath

from aiobus.errors import BusError

__all__ = ["Folder"]

PAUSE_SECONDS = 0.005
"""Between two tries of a lock that somebody has; it is held for less than this."""


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

        It is opened anew each time: who had the lock may have removed the directory, and a lock on
        what is no longer there keeps nobody out.
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
        """The directory's descriptor; None when somebody who left removed it just now."""
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
