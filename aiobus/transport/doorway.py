"""The socket of one bus at its path: what stands there, whether it is the bus's own, and whether it
accepts connections.

Owns the file: it makes it, tells it from one that took its place, and removes it. Must not know who
else is in the directory. The caller has the directory's lock.
"""

import os
import socket
import stat
import sys
from collections.abc import Callable
from enum import Enum

__all__ = ["ASIDE", "Doorway", "Stands", "is_socket", "listening", "look"]

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
    DEAD = "a socket of this user that nobody listens on"
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
    socket. So to `shut` the doorway, the file of the listening socket is moved aside, where nobody
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
        """True while nobody is accepted."""
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
        """Hold the path, where nothing of others may stand, and accept nobody; connections that
        there are go on.
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
