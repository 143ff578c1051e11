"""Meeting in a directory, for `ipc://`: who listens has a socket `<name>.sock` in it.

Owns where the directory is, who may look into it, its lock, and the files of members that have
died. Must not know what binds the sockets or what members say to each other: whether one is alive
is what the kernel says when its socket is connected to.

The lock is taken for a few quick calls of the local file system and never held across an await, so
a bus that is cancelled or dies leaves it free.
"""

import asyncio
import fcntl
import logging
import os
import re
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from enum import Enum
from pathlib import PurePath

from aiobus.errors import BusError, NameInUse
from aiobus.pattern import bad_name
from aiobus.transport.meeting import Member

__all__ = ["Directory"]

JOIN_SECONDS = 5.0
LEAVE_SECONDS = 1.0
PAUSE_SECONDS = 0.005
"""Between two tries of a lock that somebody has; it is held for less than this."""

MAX_PATH = 107 if sys.platform == "linux" else 103
"""Bytes of a socket's path: `sun_path` of unix(7) without its final zero. libzmq has the same
figure, as `zmq.IPC_PATH_MAX_LEN`.
"""

SUFFIX = ".sock"

log = logging.getLogger("aiobus.directory")


class _Is(Enum):
    """What stands at the path of a socket."""

    NOTHING = "nothing"
    ALIVE = "a socket of this user that accepts"
    DEAD = "a socket of this user that nobody listens on"
    FOREIGN = "anything else: not ours to touch"


class Directory:
    """The meeting of all buses of one user and one `ipc://` address.

    `address` is what stands behind `ipc://`. A name (1-64 characters of A-Z a-z 0-9 . _ -) is a
    directory in the user's runtime directory; the last bus to leave removes it. An absolute path is
    the directory itself, which is to hold nothing else; a bus that has made it removes it when it
    leaves it empty. Anything else raises ValueError. Making a Directory changes nothing on disk.

    Whoever can look into the directory can read and send everything, so one that is a symbolic
    link, belongs to another user or is open to others is refused. The parents of an absolute path
    are trusted.
    """

    unreached: Collection[str] = ()
    """A directory always answers."""

    def __init__(self, address: str) -> None:
        self.url = f"ipc://{address}"
        is_absolute = address.startswith("/")
        parent, _, name = address.rstrip("/").rpartition("/") if is_absolute else ("", "", address)
        # Not printable: NUL, and what cannot be written as UTF-8, which is what libzmq takes.
        is_wrong = not address.isprintable() if is_absolute else bool(bad_name(name))
        if is_wrong or name in ("", ".", ".."):
            raise ValueError(
                f"url={self.url!r}: 'ipc://desk', a name of 1-64 characters of A-Z a-z 0-9 . _ -,"
                " or 'ipc:///an/absolute/path' is needed"
            )
        base = os.path.realpath(parent or "/") if is_absolute else _runtime()
        # All links resolved: members compare endpoints, and /var/run is /run.
        self.path = os.path.join(base, name)
        """The directory."""
        if not re.fullmatch("[!-~]+", self.path):
            raise ValueError(
                f"url={self.url!r}: {self.path!r} has characters that an endpoint cannot have; give"
                " an absolute path of ASCII without spaces"
            )
        self._base = "" if is_absolute else base
        self._is_made = False
        self._locks: set[int] = set()
        self._own: tuple[str, object] | None = None

    def __repr__(self) -> str:
        return f"<Directory {self.url} {self.path}{' joined' if self._own else ''}>"

    async def join(
        self, name: str, bind: Callable[[str], str], found: Callable[[Member], None]
    ) -> list[Member]:
        """Bind `<name>.sock` and return who else is there. `found` is never called: whoever joins
        later finds this one and says so to it.

        Waits up to 5 s for the lock. Sockets that nobody listens on any more are removed; what is
        not a socket of this user with a bus's name is left alone.

        Raises NameInUse; ValueError when the path would be too long for a socket; BusError when the
        directory is refused, cannot be made or locked, or when what stands at our path is not ours
        to remove. Cancelling or failing leaves nothing behind but, perhaps, empty directories.
        """
        if reason := bad_name(name):
            raise ValueError(f"name={reason}")
        path = self._path_of(name)
        if (size := len(os.fsencode(path))) > MAX_PATH:
            raise ValueError(
                f"{path} has {size} bytes, more than the {MAX_PATH} that the path of a socket may"
                " have; use a shorter address or name"
            )
        async with self._lock(JOIN_SECONDS, making=True):
            try:
                return self._take(name, path, bind)
            except BaseException:
                self._remove()
                raise

    async def leave(self) -> None:
        """Remove our socket, if it is still ours, those of the dead, and the directory, if it is
        ours and empty.

        Waits up to 1 s for the lock and goes on without it, as it does when cancelled; the
        directory then stays. A file that cannot be removed is logged: the next to join does it.
        """
        if self._own is None:
            return
        try:
            async with self._lock(LEAVE_SECONDS, making=False):
                self._withdraw()
                self._sweep()
                self._remove()
        except BusError as error:
            log.debug("leaving %s without its lock: %s", self.url, error)
        finally:
            self._withdraw()

    def admits(self, member: Member) -> bool:
        """True when `member` has a valid name and its endpoint is that name's in this directory."""
        return (
            not bad_name(member.name) and member.endpoint == f"ipc://{self._path_of(member.name)}"
        )

    def remember(self, member: Member) -> None:
        """Nothing to do: the directory remembers."""

    async def absent(self, members: Collection[Member]) -> list[Member]:
        """Those of `members` whose socket is gone or refuses. Never waits."""
        is_here = (_Is.ALIVE, _Is.FOREIGN)
        return [each for each in members if _look(self._path_of(each.name)) not in is_here]

    def mine(self, address: object) -> bool:
        """True when `address` is that of a unix socket in this directory."""
        if not isinstance(address, str | bytes):
            return False
        return os.path.dirname(os.fsdecode(address)) == self.path

    def descriptors(self) -> set[int]:
        """The descriptors of the lock that are open just now, which is what a forked child has to
        close besides its sockets. Hardly ever any.
        """
        return set(self._locks)

    def _path_of(self, name: str) -> str:
        return os.path.join(self.path, name + SUFFIX)

    # With the lock.

    def _take(self, name: str, path: str, bind: Callable[[str], str]) -> list[Member]:
        alive = self._sweep()
        if name in alive:
            raise NameInUse(name, self.url)
        if os.path.lexists(path):
            raise BusError(
                f"{path} is in the way and is no socket that this bus may remove; remove it, or"
                " give this bus another name="
            )
        try:
            bind(f"ipc://{path}")
            self._own = (path, _identity(path))
        except BaseException:
            # Nothing was there before, so what is there now is what it made.
            if _look(path) in (_Is.ALIVE, _Is.DEAD):
                os.unlink(path)
            raise
        return [Member(each, f"ipc://{self._path_of(each)}") for each in alive]

    def _sweep(self) -> list[str]:
        """The names that are taken, after the sockets of the dead were removed."""
        alive = []
        for entry in sorted(os.listdir(self.path)):
            name = entry.removesuffix(SUFFIX)
            path = self._path_of(name)
            if name == entry or bad_name(name):
                continue
            found = _look(path)
            if found is _Is.ALIVE:
                alive.append(name)
            elif found is _Is.DEAD:
                with suppress(FileNotFoundError):
                    os.unlink(path)
        return alive

    def _withdraw(self) -> None:
        """Remove our socket. Mostly with the lock; again: nothing, unless a Ctrl-C came between."""
        if self._own is None:
            return
        path, identity = self._own
        try:
            if _identity(path) == identity:
                os.unlink(path)
        except FileNotFoundError:
            pass  # libzmq removes it, or not, when it closes the socket
        except OSError as error:
            log.warning("%s could not be removed: %s", path, error.strerror)
        self._own = None

    def _remove(self) -> None:
        """Remove the directory if it is ours to remove and empty."""
        if self._base or self._is_made:
            # It mostly is not empty, and one that stays harms nobody.
            with suppress(OSError):
                os.rmdir(self.path)

    # The lock.

    @asynccontextmanager
    async def _lock(self, seconds: float, *, making: bool) -> AsyncIterator[None]:
        """Hold the directory's lock; raises BusError when it is not to be had."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (lock := self._try_lock(making=making)) is None:
            if loop.time() >= deadline:
                raise BusError(
                    f"{self.path} has been locked by another process for {seconds:g} s, which a"
                    f" bus does for milliseconds: is one frozen? `fuser -v {self.path}` names it"
                )
            await asyncio.sleep(PAUSE_SECONDS)
        try:
            yield
        finally:
            # Closing it would not do if a child was forked meanwhile: it has the lock as well.
            fcntl.flock(lock, fcntl.LOCK_UN)
            self._close(lock)

    def _try_lock(self, *, making: bool) -> int | None:
        """A descriptor of the directory that has its lock; None when another has it. Makes the
        directory first, if `making`.

        It is opened anew each time: who had the lock may have removed the directory, and a lock on
        what is no longer there keeps nobody out.
        """
        try:
            lock = self._open(making=making)
        except OSError as error:
            raise BusError(
                f"{error.filename or self.path}: {error.strerror}; {self.url} needs a directory"
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
        if self._base:
            os.close(_open_private(self._base))
        if making:
            self._is_made |= _make_private(self.path)
        try:
            return _open_private(self.path)
        except FileNotFoundError:
            if making:
                return None
            raise


def _runtime() -> str:
    """Where the directories of this user's named addresses are."""
    uid = os.geteuid()
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    # After `sudo -E` it is another user's, whose buses ours would lock out.
    if os.path.isabs(given) and (not os.path.exists(given) or _is_of(given, uid)):
        return os.path.join(os.path.realpath(given), "aiobus")
    usual = f"/run/user/{uid}"  # a cron job has no XDG_RUNTIME_DIR and is to meet the others here
    if _is_of(usual, uid):
        return os.path.join(os.path.realpath(usual), "aiobus")
    # Not tempfile.gettempdir(), which writes to find out and may answer with the working directory.
    given = os.environ.get("TMPDIR", "")
    return os.path.join(
        os.path.realpath(given if os.path.isabs(given) else "/tmp"), f"aiobus-{uid}"
    )


def _is_of(path: str, uid: int) -> bool:
    try:
        return os.stat(path).st_uid == uid
    except OSError:
        return False


def _make_private(path: str) -> bool:
    """Make a directory for this user alone; False when there was one."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return False
    return True


def _open_private(path: str) -> int:
    """A descriptor of a directory that is this user's alone; raises OSError or BusError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    info = os.fstat(directory)
    if info.st_uid == os.geteuid() and not info.st_mode & 0o077:
        return directory
    os.close(directory)
    if info.st_uid != os.geteuid():
        raise BusError(
            f"{path} belongs to user {info.st_uid}, not to {os.geteuid()}; use another address"
        )
    # Narrowing it would hide that others may have put files there.
    raise BusError(
        f"{path} is open to other users (mode {stat.S_IMODE(info.st_mode):o}); use another address,"
        f" or, if all that is in it is yours, `chmod 700 {path}`"
    )


def _look(path: str) -> _Is:
    """What stands at `path`. Connecting to a unix socket never waits: it is the kernel that
    accepts, so a frozen process counts as alive.
    """
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return _Is.NOTHING
    if not stat.S_ISSOCK(info.st_mode) or info.st_uid != os.geteuid():
        return _Is.FOREIGN
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return _Is.ALIVE  # so many wait to be accepted that there is no room for another
        except ConnectionRefusedError:
            return _Is.DEAD
        except FileNotFoundError:
            return _Is.NOTHING
        except OSError:
            return _Is.FOREIGN  # it is not a stream, or its path is longer than a bus's may be
    return _Is.ALIVE


def _identity(path: str) -> tuple[int, int, int]:
    """What tells a socket from another that took its place: ext4 gives a freed inode's number to
    the next file, so it alone would not do.
    """
    info = os.lstat(path)
    return info.st_dev, info.st_ino, info.st_mtime_ns
