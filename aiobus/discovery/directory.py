"""Meeting in a directory, for `ipc://`: who listens has a socket `<name>.sock` in it.

Owns where the directory is and the files of members that have died; that this bus stays to be found
there, and accepts no peer for which it has no descriptor. Must not know what binds the sockets or
what members say to each other: whether one is alive is what the kernel says when its socket is
connected to.
"""

import logging
import os
import re
import sys
import weakref
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress

from aiobus.discovery import Member, Told
from aiobus.discovery.doorway import (
    ASIDE,
    Doorway,
    Folder,
    Reserve,
    Stands,
    is_socket,
    listening,
    look,
    spare,
)
from aiobus.errors import BusError, NameInUse
from aiobus.query import bad_name

__all__ = [
    "Directory",
]

JOIN_SECONDS = 5.0
LEAVE_SECONDS = 1.0
ABSENT_SECONDS = 0.5
"""For which the lock is waited for, in each of these."""

MAX_PATH = 107 if sys.platform == "linux" else 103
"""Bytes of a socket's path: `sun_path` of unix(7) without its final zero. libzmq has the same
figure, as `zmq.IPC_PATH_MAX_LEN`.
"""

TMP = "/tmp"
"""Where named directories are: there on every system, before any login and after it."""

SUFFIX = ".sock"

SHORT = 32
"""Descriptors: with fewer to spare, no more peers are accepted."""
AMPLE = 48
"""With as many to spare, others are taken in again."""
LOOKS = 5
"""Looks at the directory since it has changed, then it is looked through."""
DENIED = 50
"""Looks at which another had the lock, then that is said."""
PUT_BY = 4
"""Descriptors held for shutting the doorway when there are no others: for the lock and its look at
the directory above, for the socket that then holds the path, and for its file.
"""

log = logging.getLogger("aiobus.directory")


class Directory:
    """The meeting of all buses of one user and one `ipc://` address.

    `address` is what stands behind `ipc://`. A name (1-64 characters of A-Z a-z 0-9 . _ -) is a
    directory in `/tmp/aiobus-<uid>`; the last bus to leave removes it. An absolute path is
    the directory itself, which is to hold nothing else; a bus that has made it removes it when it
    leaves it empty. Anything else raises ValueError. Making a Directory changes nothing on disk.

    Whoever can look into the directory can read and send everything, so one that is a symbolic
    link, belongs to another user or is open to others is refused. The parents of an absolute path
    are trusted.
    """

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
        self._is_named = not is_absolute
        self._folder = Folder(self.path, "" if is_absolute else base, self.url, SUFFIX)
        self._door: Doorway | None = None
        self._reserve: Reserve | None = None
        self._finalizer: weakref.finalize[..., Directory] | None = None
        self._complaint = ""
        self._changed = self._seen = self._looks = self._denied = 0
        self._hidden: set[str] = set()
        """Paths where buses listen whose files are gone: they cannot be met before they notice."""
        self._met: dict[str, tuple[int, int]] = {}
        """Names, and the files of those who have them, as far as this bus has met them."""

    def __repr__(self) -> str:
        return f"<Directory {self.url} {self.path}{' joined' if self._door else ''}>"

    @property
    def unreached(self) -> Collection[str]:
        """The endpoints of buses that listen here and whose files are gone, since the directory was
        removed a moment ago, or they are frozen since. Only Linux tells.
        """
        return [f"ipc://{path}" for path in self._hidden]

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
        async with self._folder.lock(JOIN_SECONDS, making=True):
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
        if self._door is None:
            return
        try:
            async with self._folder.lock(LEAVE_SECONDS, making=False):
                self._withdraw()
                self._sweep()
                self._remove()
        except BusError as error:
            log.debug("leaving %s without its lock: %s", self.url, error)
        finally:
            self._withdraw()

    def watch(self, told: Told, bind: Callable[[str], str]) -> None:
        """See to it that others find this bus: if its socket is not at its path any more, since the
        directory was removed, make it again and find those who came meanwhile. If another bus has
        the path by now, `told` hears that this one has lost its name.

        While the process may open fewer than 32 more files, no peer is accepted. `told` hears of
        each change. Never waits: what another's lock prevents is done at the next look.
        """
        door, reserve = self._door, self._reserve
        if door is None or reserve is None:
            return
        if self._hidden:
            self._look_for_hidden(told)
        is_short = spare() < (AMPLE if door.is_shut else SHORT)
        if door.is_there and door.is_shut == is_short:
            self._look_around(door.path, told)
            return
        complaint, lost = "", None
        with reserve.released():
            try:
                if (lock := self._folder.try_lock(making=True)) is not None:
                    self._denied = 0
                    try:
                        self._mend(door, told, bind, is_short=is_short)
                    finally:
                        self._folder.unlock(lock)
                elif self._denied >= DENIED:
                    raise BusError(f"another process keeps {self.path} locked: is one frozen?")
                else:
                    self._denied += 1
            except NameInUse as error:
                lost = error
            except (BusError, OSError) as error:
                complaint = f"others cannot find this bus, or not link with it: {error}"
        if complaint and complaint != self._complaint:
            told.on_trouble("the place of the socket", complaint)
        self._complaint = complaint
        if lost is not None:
            self._withdraw()
            told.on_lost(lost)

    def _note_hidden(self) -> None:
        paths = listening(self.path) or ()
        names = {os.path.basename(path).removesuffix(SUFFIX): path for path in paths}
        found = {path for name, path in names.items() if path == self._path_of(name)}
        self._hidden = {path for path in found if not os.path.lexists(path)}

    def _look_for_hidden(self, told: Told) -> None:
        """Meet those that have made their files again, and forget those that have ended."""
        still = listening(self.path)
        for path in list(self._hidden):
            if os.path.lexists(path):
                name = os.path.basename(path).removesuffix(SUFFIX)
                self._meet(name)
                told.on_found(Member(name, f"ipc://{path}"))
                self._hidden.discard(path)
        if still is not None:
            self._hidden &= still

    def _look_around(self, own: str, told: Told) -> None:
        """Find those who made their sockets again here while this bus had its own: they do not say
        hello to a bus that they take for one they know. Who joins does, so it is given the time.
        """
        with suppress(OSError, BusError):  # it vanishes just now, or no descriptor is left
            if (changed := os.stat(self.path).st_mtime_ns) != self._changed:
                self._changed, self._looks = changed, 0
            self._looks += 1
            if self._looks < LOOKS or self._seen == changed:
                return
            # Without it, one that makes its socket just now would be taken for dead, and not be
            # looked at again.
            if (lock := self._folder.try_lock(making=False)) is not None:
                try:
                    if self._find_new(own, told):
                        self._seen = changed
                finally:
                    self._folder.unlock(lock)

    def _find_new(self, own: str, told: Told) -> bool:
        """Tell of those whose files are new. False when one could not be looked at."""
        names = self._names()
        self._met = {name: self._met[name] for name in names if name in self._met}
        for name in names:
            path, before = self._path_of(name), self._met.get(name)
            self._meet(name)
            if self._met.get(name) != before and path != own:
                stands = look(path)
                if stands is Stands.ALIVE:
                    told.on_found(Member(name, f"ipc://{path}"))
                elif stands is Stands.UNKNOWN:
                    del self._met[name]
                    return False
        return True

    def _meet(self, name: str) -> None:
        with suppress(OSError):
            info = os.lstat(self._path_of(name))
            self._met[name] = info.st_ino, info.st_ctime_ns

    def admits(self, member: Member) -> bool:
        """True when `member` has a valid name and its endpoint is that name's in this directory."""
        return (
            not bad_name(member.name) and member.endpoint == f"ipc://{self._path_of(member.name)}"
        )

    def remember(self, member: Member) -> None:
        """It need not be looked for: it has come by itself."""
        self._meet(member.name)

    async def accepting(self, members: Collection[Member]) -> list[Member]:
        """Those of `members` whose socket accepts. Never waits."""
        return [each for each in members if look(self._path_of(each.name)) is Stands.ALIVE]

    async def absent(self, members: Collection[Member]) -> list[Member]:
        """Those of `members` for which it is certain that no process listens any more. Waits
        0.5 s at most for the lock; without it, a living bus that moves its socket seems gone.

        Certain is that a socket refuses and, where the kernel tells who listens without a file
        (Linux), that a path has no file: elsewhere a file may be missing because the directory was
        removed, under a bus that is frozen.
        """
        try:
            async with self._folder.lock(ABSENT_SECONDS, making=False):
                return self._gone(members, (Stands.DEAD, Stands.NOTHING))
        except BusError as error:
            if self._folder.is_there:
                log.debug("who is absent from %s cannot be told: %s", self.url, error)
                return []
        # The directory is gone, and there is nothing to lock. One that is about to bind there again
        # listens all the while, by the socket whose file is gone.
        return self._gone(members, (Stands.NOTHING,))

    def _gone(self, members: Collection[Member], proofs: Collection[Stands]) -> list[Member]:
        looks = {each: look(self._path_of(each.name)) for each in members}
        gone = {each: stands for each, stands in looks.items() if stands in proofs}
        still = listening(self.path) if gone else ()
        if still is None:
            return [each for each, stands in gone.items() if stands is Stands.DEAD]
        return [each for each in gone if self._path_of(each.name) not in still]

    def mine(self, address: object) -> bool:
        """True when `address` is that of a unix socket in this directory."""
        if not isinstance(address, str | bytes):
            return False
        return os.path.dirname(os.fsdecode(address)) == self.path

    def descriptors(self) -> set[int]:
        """The descriptors of the lock that are open just now, which is what a forked child has to
        close besides its sockets. Hardly ever any.
        """
        return self._folder.descriptors()

    def _path_of(self, name: str) -> str:
        return os.path.join(self.path, name + SUFFIX)

    # With the lock.

    def _take(self, name: str, path: str, bind: Callable[[str], str]) -> list[Member]:
        alive = self._sweep()
        if name in alive:
            raise NameInUse(name, self.url)
        if os.path.lexists(path):
            raise BusError(_in_the_way(path))
        door = Doorway(path)
        door.open(lambda: bind(f"ipc://{path}"))
        self._door, self._reserve = door, Reserve(PUT_BY)
        self._finalizer = weakref.finalize(self, _abandon, door, self._reserve, os.getpid())
        self._note_hidden()
        return self._members(alive)

    def _mend(
        self, door: Doorway, told: Told, bind: Callable[[str], str], *, is_short: bool
    ) -> None:
        """Open or shut the doorway, at its path. Raises NameInUse when that is another's by now."""
        name = os.path.basename(door.path).removesuffix(SUFFIX)
        if not (was_there := door.is_there):
            match look(door.path):
                case Stands.ALIVE:
                    raise NameInUse(name, self.url)
                case Stands.FOREIGN:
                    raise BusError(_in_the_way(door.path))
                case Stands.UNKNOWN:
                    raise BusError(f"there is no descriptor to look at {door.path} with")
                case Stands.DEAD:
                    os.unlink(door.path)
        if is_short:
            door.shut()
            text = (
                f"this process may open fewer than {SHORT} more files: no other bus can link with"
                f" this one until it may open {AMPLE}; links that are there stay. Close files, or"
                " raise the limit (ulimit -n)"
            )
        else:
            text = "there are descriptors again: other buses can link with this one" * door.is_shut
            door.open(lambda: bind(f"ipc://{door.path}"))
        if text:
            # Each of the two is said, however soon after the other.
            told.on_trouble("too few descriptors" if is_short else "descriptors again", text)
        if not was_there:
            text = f"{door.path} had vanished and is made again; others find this bus again"
            told.on_trouble("the place of the socket", text)
            self._note_hidden()
            for member in self._members(each for each in self._sweep() if each != name):
                told.on_found(member)

    def _members(self, names: Iterable[str]) -> list[Member]:
        members = [Member(name, f"ipc://{self._path_of(name)}") for name in names]
        for member in members:
            self._meet(member.name)
        return members

    def _sweep(self) -> list[str]:
        """The names that are taken, or that may be, after the sockets of the dead were removed."""
        alive = []
        for name in self._names():
            path = self._path_of(name)
            found = look(path)
            if found in (Stands.ALIVE, Stands.UNKNOWN):
                alive.append(name)
            elif found is Stands.DEAD:
                with suppress(FileNotFoundError):
                    os.unlink(path)
        for name in self._names(SUFFIX + ASIDE):
            # Not connected to: a bus that has put its socket aside cannot accept.
            path = self._path_of(name)
            if not os.path.lexists(path) and is_socket(path + ASIDE):
                os.unlink(path + ASIDE)
        return alive

    def _names(self, suffix: str = SUFFIX) -> list[str]:
        """Of the files in the directory that are called like those of a bus."""
        found = (
            entry.removesuffix(suffix) for entry in os.listdir(self.path) if entry.endswith(suffix)
        )
        return sorted(name for name in found if not bad_name(name))

    def _withdraw(self) -> None:
        """Remove our socket. Mostly with the lock; again: nothing, unless a Ctrl-C came between."""
        if self._door is None or self._reserve is None or self._finalizer is None:
            return
        try:
            self._door.remove()
        except OSError as error:
            log.warning("%s could not be removed: %s", self._door.path, error.strerror)
            self._door.close()
        self._finalizer.detach()
        self._reserve.close()
        self._door = self._reserve = None

    def _remove(self) -> None:
        """Remove the directory if it is ours to remove and empty."""
        if self._is_named or self._folder.is_made:
            # It mostly is not empty, and one that stays harms nobody.
            with suppress(OSError):
                os.rmdir(self.path)


def _abandon(door: Doorway, reserve: Reserve, pid: int) -> None:
    """The bus was collected, or the interpreter ends, before it has left the directory."""
    if pid == os.getpid():  # else it is its parent that listens there
        with suppress(OSError):
            door.remove()
        reserve.close()


def _in_the_way(path: str) -> str:
    return (
        f"{path} is in the way and is no socket that this bus may remove; remove it, or give this"
        " bus another name="
    )


def _runtime() -> str:
    """Where the directories of this user's named addresses are. No environment variable has a say,
    nor whether the user is logged in: two processes that differ in that would not meet, and would
    not be told.
    """
    return os.path.join(os.path.realpath(TMP), f"aiobus-{os.geteuid()}")
