"""The files of a keyring: who may read and write them, and how one is written.

Owns the directory as it was opened, the refusal of what others can read or write, and the order of
steps by which a file is there as a whole or not at all. What is in a file is not known here.

What is checked is what was opened, by its descriptor: a file that is exchanged in between changes
nothing. Secrets are in a `Hidden` from the moment they are read, since a traceback may show what a
function has in its variables.
"""

import errno
import fcntl
import hmac
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, NoReturn, Self

from aiobus.errors import KeyringError

__all__ = ["DESK", "KEPT", "LIST", "SUFFIX", "Folder", "Hidden"]

LIST = "desk.members"
DESK = "desk.seal"
SUFFIX = ".secret"
KEPT = ".list-changed-here"
"""Which list a command in this directory has written last. It is not copied with the list."""

MOST_BYTES = 4 * 1024 * 1024
"""Of a list. 4,096 members with some rules have a fourth of it."""
MOST_SECRET = 4096
"""Bytes of a file with a secret."""
FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""A pipe in place of a file must not stop the process."""


class Hidden:
    """A secret that does not show: in no repr, no traceback, no pickle. How long a comparison takes
    tells nothing of it.
    """

    __slots__ = ("value",)

    def __init__(self, value: bytes) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "<hidden>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hidden) and hmac.compare_digest(self.value, other.value)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled: load the keyring where it is needed")


class Folder:
    """The directory of a keyring, open. Close it, or use it with `with`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises KeyringError if it is not there, or if others may write in it."""
        self.path = os.fspath(path)
        try:
            self._descriptor = os.open(self.path, FLAGS | os.O_DIRECTORY)
        except FileNotFoundError:
            raise KeyringError(
                f"{self.path}: there is no such directory. `python -m aiobus keygen NAME --keyring"
                f" {self.path}` makes a keyring with a key for the bus NAME"
            ) from None
        except NotADirectoryError:
            raise KeyringError(f"{self.path}: a keyring is a directory, and this is none") from None
        except OSError as error:
            raise KeyringError(f"{self.path}: it cannot be opened: {error.strerror}") from None
        try:
            _check_written(self.path, os.fstat(self._descriptor), "a file could be exchanged")
        except KeyringError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Once."""
        os.close(self._descriptor)

    def file(self, name: str) -> str:
        """The path of a file, for a sentence."""
        return os.path.join(self.path, name)

    def has(self, name: str) -> bool:
        """True if there is a file of this name, whatever it is."""
        try:
            os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    @property
    def names(self) -> list[str]:
        """The names of the files in it, sorted."""
        return sorted(os.listdir(self._descriptor))

    def read(self, name: str) -> bytes | None:
        """What is in a file that others may read and may not write; None if it is not there. Raises
        KeyringError.
        """
        file = self._open(name, FLAGS)
        if file is None:
            return None
        with file:
            status = os.fstat(file.fileno())
            _check_written(self.file(name), status, "who writes it lets anybody in")
            return self._bytes(file, name, MOST_BYTES)

    def read_secret(self, name: str) -> Hidden | None:
        """What is in a file that none but its owner may read; None if it is not there. Raises
        KeyringError.
        """
        file = self._open(name, FLAGS | os.O_NOFOLLOW)
        if file is None:
            return None
        with file:
            status, path = os.fstat(file.fileno()), self.file(name)
            if status.st_uid != os.geteuid():
                raise KeyringError(
                    f"{path} is owned by user {status.st_uid}, and this process is user"
                    f" {os.geteuid()}: a secret is of the user whose bus has it. Run the bus as"
                    f" user {status.st_uid}, or `chown {os.geteuid()} {path}`"
                )
            if (mode := stat.S_IMODE(status.st_mode)) & 0o077:
                raise KeyringError(
                    f"{path} can be read or written by other users (mode {mode:03o}): `chmod 600"
                    f" {path}`. If one of them may have read it, it is a secret no more: "
                    + _replacing(name)
                )
            return Hidden(self._bytes(file, name, MOST_SECRET))

    def _open(self, name: str, flags: int) -> BinaryIO | None:
        path = self.file(name)
        try:
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EMLINK):
                raise KeyringError(
                    f"{path} is a symbolic link, and a secret is a file: put the file itself there"
                ) from None
            hint = ""
            if isinstance(error, PermissionError):
                hint = f". This process is user {os.geteuid()}: run it as the owner of the file"
            raise KeyringError(f"{path} cannot be read: {error.strerror}{hint}") from None
        try:
            # Before there is a file object: none is made of a directory, which would stay open.
            _check_kind(path, os.fstat(descriptor))
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise

    def _bytes(self, file: BinaryIO, name: str, most: int) -> bytes:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise KeyringError(f"{self.file(name)} cannot be read: {error.strerror}") from None
        if len(data) > most:
            del data
            raise KeyringError(
                f"{self.file(name)} has more than {most:,} bytes: it is another file"
            )
        return data

    # Writing. Raises OSError, such as for a disk that is full: nothing is changed then.

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While it is entered, no other command changes this keyring."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def replace(self, name: str, data: bytes | Hidden, mode: int) -> None:
        """Write a file, in place of one that is there: a reader sees this one or that one."""
        with self._written(data, mode) as temporary:
            os.replace(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        os.fsync(self._descriptor)

    def create(self, name: str, data: bytes | Hidden, mode: int) -> None:
        """Write a file that is not there. Raises FileExistsError."""
        with self._written(data, mode) as temporary:
            os.link(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        os.fsync(self._descriptor)

    def remove(self, name: str) -> None:
        """Take away a file that was created here, since what belongs to it could not be written."""
        os.unlink(name, dir_fd=self._descriptor)

    @contextmanager
    def _written(self, data: bytes | Hidden, mode: int) -> Iterator[str]:
        """A temporary file with this in it, on the disk. It is gone at the end."""
        name = f".{secrets.token_hex(8)}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        # 0600 at first: it is never readable by others, not even for a moment.
        descriptor = os.open(name, flags, 0o600, dir_fd=self._descriptor)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data.value if isinstance(data, Hidden) else data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            yield name
        finally:
            with suppress(FileNotFoundError):  # it has its name now
                os.unlink(name, dir_fd=self._descriptor)


def _replacing(name: str) -> str:
    """What is to be done with the file `name`, whose secret others may know."""
    if name == DESK:
        return "replace it by `python -m aiobus members rotate`, and retire the old one"
    member = name.removesuffix(SUFFIX)
    return (
        f"`python -m aiobus members revoke {member}`, remove the file, and make a new key by"
        f" `python -m aiobus keygen {member}`"
    )


def _check_kind(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyringError(f"{path} is no file: put the file of the keyring there")


def _check_written(path: str, status: os.stat_result, why: str) -> None:
    """Raise if another user than root and this one could write it."""
    if status.st_uid not in (os.geteuid(), 0):
        raise KeyringError(
            f"{path} is owned by user {status.st_uid}, and this process is user {os.geteuid()}:"
            f" {why}. `chown {os.geteuid()} {path}`, or run the bus as user {status.st_uid}"
        )
    if status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        raise KeyringError(
            f"{path} can be written by other users (mode {mode:03o}): {why}. `chmod go-w {path}`"
        )
