"""Discovery in a directory, for `ipc://`: each bus has a socket `<name>.sock` in it, an observer
`<name>.sock+`. Here, an observer goes by its name with a `+` behind it.

Owns the path of the directory and the files of dead members. Keeps this bus discoverable there, and
stops accepting peers while descriptors are short. Must not know what binds the sockets or what
members send to each other: a member is alive if the kernel accepts a connection to its socket.
"""

import asyncio
import logging
import os
import re
import sys
import weakref
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress

from aiobus.clock import elapsed
from aiobus.discovery import OBSERVES, DiscoveryCallbacks, Member, is_observer
from aiobus.discovery.unix_socket import (
    ASIDE,
    ListeningSocket,
    PathState,
    PrivateDirectory,
    is_socket,
    listening_paths,
    probe,
    spare_descriptors,
)
from aiobus.errors import BusError, NameInUse
from aiobus.query import bad_name

__all__ = ["Directory"]

JOIN_SECONDS = 5.0
LEAVE_SECONDS = 1.0
ABSENT_SECONDS = 0.5
"""Seconds that each of the three waits for the lock."""
ENDING_SECONDS = 0.5
"""For which `join` waits for buses that listen without a file: one that ends has no file any more
while it listens for a moment.
"""
ENDING_LOOK = 0.01
"""Seconds between two looks whether they still do."""

MAX_PATH = 107 if sys.platform == "linux" else 103
"""Bytes of a socket's path: `sun_path` of unix(7) without its final zero, which is also
`zmq.IPC_PATH_MAX_LEN`.
"""

TMP = "/tmp"
"""The parent of named directories: it exists on every system, before and after a login."""

SUFFIX = ".sock"

SHORT = 32
"""Free descriptors; with fewer, no peer is accepted."""
AMPLE = 48
"""Free descriptors at which peers are accepted again."""
LOOKS = 5
"""Calls of `watch` after a change of the directory, before its sockets are probed."""
DENIED = 50
"""Calls of `watch` in a row at which another had the lock, before that is reported."""

log = logging.getLogger("aiobus.directory")


class Directory:
    """The discovery of all buses of one user and one `ipc://` address.

    `address` is the part of the URL after `ipc://`. A name (1-64 characters of A-Z a-z 0-9 . _ -)
    means a directory in `/tmp/aiobus-<uid>`; the last bus to leave removes it. An absolute path is
    the directory itself, which must contain nothing else; the bus that made it removes it if it is
    empty when that bus leaves. Anything else raises ValueError. The constructor changes nothing on
    disk.

    A process that can open the directory can read and send everything. So a directory that is a
    symbolic link, belongs to another user or is open to others is refused. The parents of an
    absolute path are trusted.
    """

    out_of_reach: Collection[Member] = ()
    """None: all are on this host."""

    def __init__(self, address: str) -> None:
        self.url = f"ipc://{address}"
        is_absolute = address.startswith("/")
        parent, _, name = address.rstrip("/").rpartition("/") if is_absolute else ("", "", address)
        # Not printable: NUL, and what cannot be encoded as UTF-8, which libzmq needs.
        is_invalid = not address.isprintable() if is_absolute else bool(bad_name(name))
        if is_invalid or name in ("", ".", ".."):
            raise ValueError(
                f"url={self.url!r}: 'ipc://desk', a name of 1-64 characters of A-Z a-z 0-9 . _ -,"
                " or 'ipc:///an/absolute/path' is needed"
            )
        base = os.path.realpath(parent or "/") if is_absolute else _runtime()
        # Links are resolved, because members compare endpoints and /var/run is /run.
        self.path = os.path.join(base, name)
        """The directory."""
        if not re.fullmatch("[!-~]+", self.path):
            raise ValueError(
                f"url={self.url!r}: {self.path!r} has characters that an endpoint cannot have; give"
                " an absolute path of ASCII without spaces"
            )
        self._is_named = not is_absolute
        self._directory = PrivateDirectory(self.path, "" if is_absolute else base, self.url, SUFFIX)
        self._socket: ListeningSocket | None = None
        self._finalizer: weakref.finalize[..., Directory] | None = None
        self._problem = ""
        self._changed = self._seen = self._looks = self._denied = 0
        self._unlinked: set[str] = set()
        """Those that listen although their file is gone. Nothing can connect to such a bus before
        it makes its file again.
        """
        self._files: dict[str, tuple[int, int]] = {}
        """For each known name the inode and change time of its file."""

    @property
    def endpoint(self) -> str:
        """`ipc://` and the path of the own socket; "" while there is none."""
        return "" if self._socket is None else f"ipc://{self._socket.path}"

    @property
    def unreached(self) -> Collection[str]:
        """The endpoints of buses that listen here although their file is gone, without observers.
        Always empty on systems other than Linux.
        """
        endpoints = (self._member(name).endpoint for name in self._unlinked)
        return [each for each in endpoints if not is_observer(each)]

    async def join(
        self,
        name: str,
        bind: Callable[[str], str],
        on_discovered: Callable[[Member], None],
        *,
        observes: bool = False,
    ) -> list[Member]:
        """Bind the socket of `name` and return the other members. `on_discovered` is never called:
        a bus that joins later finds this one and sends it a hello.

        Waits up to 5 s for the lock, and 0.5 s if a bus listens whose file is gone: it may be about
        to end. Removes sockets on which no process listens, and no other file. Raises NameInUse;
        ValueError if the path is too long for a socket; BusError if the directory is refused,
        cannot be made or locked, or if a file is in the way that this bus must not remove.
        Cancelling or failing may leave empty directories.
        """
        if reason := bad_name(name):
            raise ValueError(f"name={reason}")
        if observes:
            name += OBSERVES
        path = self._path_of(name)
        if (size := len(os.fsencode(path))) > MAX_PATH:
            raise ValueError(
                f"{path} has {size} bytes, more than the {MAX_PATH} that the path of a socket may"
                " have; use a shorter address or name"
            )
        async with self._directory.lock(JOIN_SECONDS, making=True):
            try:
                members = self._bind(name, path, bind)
            except BaseException:
                self._remove()
                raise
        try:
            await self._see_ending()
        except BaseException:
            self._withdraw()
            raise
        return members

    async def leave(self) -> None:
        """Remove the own socket, dead sockets, and the directory if this bus owns it and it is
        empty.

        Waits up to 1 s for the lock. Without the lock, and if cancelled, only the own socket is
        removed. If a file cannot be removed, that is logged, and the next bus to join removes it.
        """
        if self._socket is None:
            return
        try:
            async with self._directory.lock(LEAVE_SECONDS, making=False):
                self._withdraw()
                self._sweep()
                self._remove()
        except BusError as error:
            log.debug("leaving %s without its lock: %s", self.url, error)
        finally:
            self._withdraw()

    def watch(self, callbacks: DiscoveryCallbacks, bind: Callable[[str], str]) -> None:
        """Keep this bus discoverable. If its socket is gone from its path, because the directory
        was removed, make it again and report the members that came meanwhile. If another bus has
        the path, report that this one has lost its name.

        While the process may open fewer than 32 more files, no peer is accepted; each change is
        reported. Never waits: if another has the lock, the next call tries again.
        """
        if (listener := self._socket) is None:
            return
        if self._unlinked:
            self._find_unlinked(callbacks)
        is_short = spare_descriptors() < (AMPLE if listener.is_paused else SHORT)
        if listener.is_there and listener.is_paused == is_short:
            self._find_changed(listener.path, callbacks)
            return
        problem, lost = "", None
        with listener.reserve.released():
            try:
                with self._directory.try_lock(making=True) as is_held:
                    self._denied = 0 if is_held else self._denied + 1
                    if is_held:
                        self._restore(listener, callbacks, bind, is_short=is_short)
                    elif self._denied > DENIED:
                        raise BusError(f"another process keeps {self.path} locked: is one frozen?")
            except NameInUse as error:
                lost = error
            except (BusError, OSError) as error:
                problem = f"other buses cannot find this bus, or cannot link with it: {error}"
        if problem and problem != self._problem:
            callbacks.on_problem("the path of the socket", problem)
        self._problem = problem
        if lost is not None:
            self._withdraw()
            callbacks.on_name_lost(lost)

    def _listening(self) -> set[str] | None:
        """The names under which sockets listen, even if the file is gone. None if unknown."""
        if (paths := listening_paths(self.path)) is None:
            return None
        return {_name_of(path) for path in paths if path.endswith((SUFFIX, SUFFIX + OBSERVES))}

    def _note_unlinked(self) -> None:
        names = self._listening() or ()
        self._unlinked = {name for name in names if not os.path.lexists(self._path_of(name))}

    async def _see_ending(self) -> None:
        """Wait a moment for those that listen without a file: most are about to end, and would be
        taken for buses that cannot be reached. The others make it again.
        """

        def is_ending(endpoint: str) -> bool:
            return not os.path.lexists(endpoint.removeprefix("ipc://"))

        end = elapsed() + ENDING_SECONDS
        while any(map(is_ending, self.unreached)) and elapsed() < end:
            await asyncio.sleep(ENDING_LOOK)
            if (still := self._listening()) is not None:
                self._unlinked &= still

    def _find_unlinked(self, callbacks: DiscoveryCallbacks) -> None:
        """Report buses that have made their file again, and forget those that have ended."""
        still = self._listening()
        found = {name for name in self._unlinked if os.path.lexists(self._path_of(name))}
        # While a bus is unreached, everything published counts as owed to it: it is reported first.
        for member in self._members(found):
            callbacks.on_discovered(member)
        self._unlinked -= found
        if still is not None:
            self._unlinked &= still

    def _find_changed(self, own: str, callbacks: DiscoveryCallbacks) -> None:
        """Report buses that made their socket again. Such a bus sends no hello to a name that it
        knows. A bus that joins does send one, so it gets half a second before it is probed.
        """
        # The directory may vanish just now, or no descriptor may be left.
        with suppress(OSError, BusError):
            if (changed := os.stat(self.path).st_mtime_ns) != self._changed:
                self._changed, self._looks = changed, 0
            self._looks += 1
            if self._looks < LOOKS or self._seen == changed:
                return
            # Without the lock, a bus that is binding its socket would be taken for dead, and not be
            # probed again.
            with self._directory.try_lock(making=False) as is_held:
                if is_held and self._find_new(own, callbacks):
                    self._seen = changed

    def _find_new(self, own: str, callbacks: DiscoveryCallbacks) -> bool:
        """Report members whose files are new. False if one could not be probed."""
        names = self._names()
        self._files = {name: self._files[name] for name in names if name in self._files}
        for name in names:
            path, before = self._path_of(name), self._files.get(name)
            self._note_file(name)
            if self._files.get(name) != before and path != own:
                state = probe(path)
                if state is PathState.ALIVE:
                    callbacks.on_discovered(self._member(name))
                elif state is PathState.UNKNOWN:
                    del self._files[name]
                    return False
        return True

    def _note_file(self, name: str) -> None:
        with suppress(OSError):
            info = os.lstat(self._path_of(name))
            self._files[name] = info.st_ino, info.st_ctime_ns

    def allows(self, member: Member) -> bool:
        """True if `member` has a valid name and an endpoint of that name in this directory."""
        return not bad_name(member.name) and member == self._member(_name_in(member))

    def remember(self, member: Member) -> None:
        """`member` sent a hello, so it need not be looked for."""
        self._note_file(_name_in(member))

    def is_claimed(self, member: Member) -> bool:
        """Never: names are not proven."""
        return False

    def forget(self, member: Member) -> None:
        """Nothing to do: its file is gone."""

    def tell_refused(self, to: str, cause: str) -> None:
        """Nothing to do: buses of one user need no keys."""

    async def probe_accepting(self, members: Collection[Member]) -> list[Member]:
        """The members whose socket accepts. Never waits."""
        return [each for each in members if probe(self._path_of(_name_in(each))) is PathState.ALIVE]

    async def probe_absent(self, members: Collection[Member]) -> list[Member]:
        """The members at whose path it is certain that no process listens. Waits 0.5 s at most for
        the lock, because a running bus that renames its socket has no file for a moment.

        A socket that refuses is proof. A missing file is proof only on Linux, where the kernel
        lists sockets that listen without a file: elsewhere the directory may have been removed
        under a bus that is frozen.
        """
        try:
            async with self._directory.lock(ABSENT_SECONDS, making=False):
                return self._gone(members, (PathState.DEAD, PathState.NOTHING))
        except BusError as error:
            if self._directory.is_there:
                log.debug("%s: the absent members are unknown: %s", self.url, error)
                return []
        # The directory is gone, so there is nothing to lock. A bus that is about to bind again
        # still listens on the socket whose file is gone.
        return self._gone(members, (PathState.NOTHING,))

    def _gone(self, members: Collection[Member], proofs: Collection[PathState]) -> list[Member]:
        looks = {each: probe(self._path_of(_name_in(each))) for each in members}
        gone = {each: state for each, state in looks.items() if state in proofs}
        still = self._listening() if gone else ()
        if still is None:
            return [each for each, state in gone.items() if state is PathState.DEAD]
        return [each for each in gone if _name_in(each) not in still]

    def owns_address(self, address: object) -> bool:
        """True if `address` is the path of a unix socket in this directory."""
        if not isinstance(address, str | bytes):
            return False
        return os.path.dirname(os.fsdecode(address)) == self.path

    def descriptors(self) -> set[int]:
        """The open descriptors of the lock: mostly none."""
        return self._directory.descriptors()

    def _path_of(self, name: str) -> str:
        said = name.removesuffix(OBSERVES)
        return os.path.join(self.path, said + SUFFIX + name[len(said) :])

    def _member(self, name: str) -> Member:
        return Member(name.removesuffix(OBSERVES), f"ipc://{self._path_of(name)}")

    # The methods below are called with the lock.

    def _bind(self, name: str, path: str, bind: Callable[[str], str]) -> list[Member]:
        others = self._sweep()
        self._claim(name)
        listener = ListeningSocket(path)
        listener.resume(lambda: bind(f"ipc://{path}"))
        self._socket = listener
        self._finalizer = weakref.finalize(self, _remove_abandoned, listener, os.getpid())
        self._note_unlinked()
        return self._members(others)

    def _claim(self, name: str) -> None:
        """Free the path of `name`. Raises NameInUse if another bus has it, and BusError if this bus
        must not touch what is there.
        """
        path, said = self._path_of(name), name.removesuffix(OBSERVES)
        other = self._path_of(said if said != name else name + OBSERVES)
        if probe(other) is PathState.ALIVE:
            raise NameInUse(said, self.url)
        match probe(path):
            case PathState.DEAD:
                os.unlink(path)
            case PathState.ALIVE:
                raise NameInUse(said, self.url)
            case PathState.FOREIGN:
                raise BusError(
                    f"{path} is in the way and is no socket that this bus may remove; remove it, or"
                    " give this bus another name="
                )
            case PathState.UNKNOWN:
                raise BusError(f"no descriptor is left to look at {path} with")

    def _restore(
        self,
        listener: ListeningSocket,
        callbacks: DiscoveryCallbacks,
        bind: Callable[[str], str],
        *,
        is_short: bool,
    ) -> None:
        """Accept or pause, at the own path. Raises NameInUse if another bus has the path."""
        name = _name_of(listener.path)
        if not (was_there := listener.is_there):
            self._claim(name)
        # Two topics: each of the two is logged, however soon after the other.
        if is_short:
            listener.pause()
            callbacks.on_problem(
                "too few descriptors",
                f"this process may open fewer than {SHORT} more files: no other bus can link with"
                f" this one until it may open {AMPLE}; existing links stay. Close files, or"
                " raise the limit (ulimit -n)",
            )
        else:
            was_paused = listener.is_paused
            listener.resume(lambda: bind(f"ipc://{listener.path}"))
            if was_paused:
                text = "there are descriptors again: other buses can link with this one"
                callbacks.on_problem("descriptors again", text)
        if not was_there:
            text = (
                f"{listener.path} had vanished and is made again; other buses find this bus again"
            )
            callbacks.on_problem("the path of the socket", text)
            self._note_unlinked()
            for member in self._members(each for each in self._sweep() if each != name):
                callbacks.on_discovered(member)

    def _members(self, names: Iterable[str]) -> list[Member]:
        members = [self._member(name) for name in names]
        for member in members:
            self._note_file(_name_in(member))
        return members

    def _sweep(self) -> list[str]:
        """Remove dead sockets. Returns the names that are in use or may be."""
        alive = []
        for name in self._names():
            path = self._path_of(name)
            found = probe(path)
            if found in (PathState.ALIVE, PathState.UNKNOWN):
                alive.append(name)
            elif found is PathState.DEAD:
                with suppress(FileNotFoundError):
                    os.unlink(path)
        for name in self._names(ASIDE):
            # Not probed: a bus that has renamed its socket cannot accept.
            path = self._path_of(name)
            if not os.path.lexists(path) and is_socket(path + ASIDE):
                os.unlink(path + ASIDE)
        return alive

    def _names(self, suffix: str = "") -> list[str]:
        """The names that a bus can have and whose file, with `suffix`, is in the directory."""
        return sorted(
            entry.removesuffix(end) + mark
            for entry in os.listdir(self.path)
            for mark in ("", OBSERVES)
            if entry.endswith(end := SUFFIX + mark + suffix)
            and not bad_name(entry.removesuffix(end))
        )

    def _withdraw(self) -> None:
        """Remove the own socket, mostly with the lock. Again: no effect, unless interrupted."""
        if self._socket is None or self._finalizer is None:
            return
        try:
            self._socket.remove()
        except OSError as error:
            log.warning("%s could not be removed: %s", self._socket.path, error.strerror)
            self._socket.close()
        self._finalizer.detach()
        self._socket = None

    def _remove(self) -> None:
        """Remove the directory if this bus owns it and it is empty."""
        if self._is_named or self._directory.is_made:
            # Mostly it is not empty; an empty one that stays does no harm.
            with suppress(OSError):
                os.rmdir(self.path)


def _remove_abandoned(listener: ListeningSocket, pid: int) -> None:
    """Called if the bus is collected, or the interpreter ends, before `leave`."""
    if pid == os.getpid():  # otherwise this is a forked child, and its parent listens there
        with suppress(OSError):
            listener.remove()
        listener.close()


def _name_of(path: str) -> str:
    file = os.path.basename(path)
    mark = OBSERVES if file.endswith(OBSERVES) else ""
    return file.removesuffix(SUFFIX + mark) + mark


def _name_in(member: Member) -> str:
    return member.name + (OBSERVES if is_observer(member.endpoint) else "")


def _runtime() -> str:
    """The parent of this user's named directories. It depends on no environment variable and no
    login: two processes that differ in these would silently not meet.
    """
    return os.path.join(os.path.realpath(TMP), f"aiobus-{os.geteuid()}")
