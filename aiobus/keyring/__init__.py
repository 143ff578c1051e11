"""The keys of a desk, as one host has them: who is a member, and the secrets of its own members.

A keyring is a directory::

    desk.members      the list of members with their public keys and rules; may be copied
    desk.seal         the desk secrets, by which the lines of the rendezvous are sealed; secret
    NAME.secret       the secret key of the member NAME, made on this host and never copied
    .list-changed-here    the digest of the list that a command here has written last

Owns what a host knows of the keys, and when it reads the files again. Must not know what a key
opens, nor how the files are made (`changes`).
"""

import os
import threading
from dataclasses import dataclass
from typing import NoReturn
from weakref import WeakSet

from aiobus.errors import KeyringError
from aiobus.keyring.files import DESK, KEPT, LIST, SUFFIX, Folder, Hidden
from aiobus.keyring.members import Members, bad_key_text
from aiobus.query import bad_name

__all__ = [
    "MOST_SECRETS", "Keyring", "desk_secrets_in", "is_kept_in", "members_in", "public_of", "quoted",
]  # fmt: skip

MOST_SECRETS = 16
"""In `desk.seal`. Each is tried when a bus asks to be let in."""
SEAL = 32
"""Bytes of a desk secret."""
MOST_NAMES = 8
"""In an error text."""


@dataclass(frozen=True, slots=True)
class _Held:
    """What was read last, as a whole."""

    members: Members
    secrets: Hidden
    """Of `desk.seal`, as it is in the file."""
    desk: tuple[Hidden, ...]
    """The same, each by itself."""


class Keyring:
    """The keys of a desk, from a directory on this host. Make it with `load`.

    `members`, `desk_secrets` and `problem` may be read, and `reload` be called, from any thread. It
    cannot be pickled, and nothing of it that is shown has a secret.
    """

    __slots__ = ("__weakref__", "_held", "_lock", "_problem", "_tried", "list_problem", "path")

    _tried: tuple[bytes, str]
    """The list that was read last, and what was wrong with it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"path={path!r}: the directory of a keyring is needed, such as 'keys'")
        self.path = os.path.abspath(path)
        """The directory. A process that changes its working directory still finds it."""
        self._leave_process()
        _keyrings.add(self)
        self._problem = ""
        self.list_problem = ""
        """What of `problem` is of the list: who is a member now cannot be told."""
        self._held = _Held(Members(), Hidden(b""), ())  # a traceback of what follows shows it
        with Folder(self.path) as folder:
            text = _list_text(folder)
            members = members_in(text, folder.file(LIST))
            secrets = _seal_text(folder)
            self._held = _Held(members, secrets, desk_secrets_in(folder, secrets))
        self._tried = text, ""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Keyring":
        """Read the directory. Raises KeyringError that names the file and the way out."""
        return cls(path)

    def __repr__(self) -> str:
        members = self.members
        return f"<Keyring {self.path} number={members.number} members={len(members.by_name)}>"

    def __copy__(self) -> "Keyring":
        return self

    def __deepcopy__(self, memo: object) -> "Keyring":
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be pickled, because its secrets stay in this process: pass its .path,"
            " and Keyring.load(path) where it is needed"
        )

    def _leave_process(self) -> None:
        """Called in a forked child. A thread that was reading the files is not here: it would never
        release the lock, and what it had read may not have been taken.
        """
        self._lock = threading.Lock()
        self._tried = b"", ""

    @property
    def members(self) -> Members:
        """The list as it was read last: replaced as a whole, so any thread may read it."""
        return self._held.members

    @property
    def desk_secrets(self) -> tuple[Hidden, ...]:
        """32 bytes each, the newest first. All of them are accepted."""
        return self._held.desk

    @property
    def problem(self) -> str:
        """Why a file could not be read again; "" if they could. What that file had is as before."""
        return self._problem

    @property
    def names(self) -> tuple[str, ...]:
        """The names, sorted, of which this host has a secret key, whether they are on the list or
        not. Raises KeyringError if the directory cannot be read.
        """
        with Folder(self.path) as folder:
            found = (name.removesuffix(SUFFIX) for name in folder.names if name.endswith(SUFFIX))
            return tuple(name for name in found if not bad_name(name))

    def secret_of(self, name: str) -> str:
        """The secret key of the member `name`, as Z85. Raises KeyringError if it is not on the
        list, if this host has none, or if it does not belong to the public key on the list.
        """
        if reason := bad_name(name):
            raise KeyringError(f"name={reason}")
        members = self.members
        member = members.by_name.get(name)
        path = os.path.join(self.path, name + SUFFIX)
        with Folder(self.path) as folder:
            secret = folder.read_secret(name + SUFFIX)
        public = None if secret is None else public_of(secret)
        if public == "":
            raise KeyringError(
                f"{path} has no secret key of {name!r}: it is damaged, or another file. Remove it"
                f" and make a new one: `python -m aiobus keygen {name} --keyring {self.path}`"
            )
        if member is None:
            raise KeyringError(self._absent(name, public))
        if secret is None:
            raise KeyringError(
                f"{self.path} has no secret of {name!r}, which is on the list: its key was made on"
                " another host, and is not copied. Run that bus there; or take the key away"
                f" (`python -m aiobus members revoke {name}`) and make one here (`python -m aiobus"
                f" keygen {name} --keyring {self.path}`)"
            )
        if public != member.key:
            raise KeyringError(
                f"{path} does not belong to the public key of {name!r} on the list (number"
                f" {members.number}): the list is an older copy, or `keygen` was run once more."
                f" Copy the newest {LIST} here; or revoke {name!r} on the list, and then `python -m"
                f" aiobus members add {name} {quoted(public or '')}`"
            )
        return secret.value.decode().strip()

    def _absent(self, name: str, public: str | None) -> str:
        """Why `name` is not on the list, in a sentence with the way out."""
        members = self.members
        here = [each for each in self.names if each in members.by_name]
        shown = ", ".join(here[:MOST_NAMES]) or "none"
        if len(here) > MOST_NAMES:
            shown += f" and {len(here) - MOST_NAMES} more"
        listed = f"On the list with a secret here: {shown}"
        list_path = os.path.join(self.path, LIST)
        is_revoked = public in members.revoked if public else name in members.revoked.values()
        if is_revoked:
            return (
                f"{name!r} was revoked in {list_path} (number {members.number}). {listed}. To let"
                f" it in again, remove {os.path.join(self.path, name + SUFFIX)} and make it a new"
                f" key: `python -m aiobus keygen {name} --keyring {self.path}`"
            )
        where, way = "", f"keygen {name} --keyring {self.path}"
        if public:
            way = f"members add {name} {quoted(public)}"
            with Folder(self.path) as folder:
                if is_kept_in(folder, members):
                    way += f" --keyring {self.path}"
                else:
                    where = " on the host that keeps the list"
        return (
            f"{name!r} is not in {list_path} (number {members.number}). {listed}. Give one of these"
            f" as name=, or add it{where}: `python -m aiobus {way}`, and copy {LIST} to every host"
        )

    def reload(self) -> bool:
        """Read the files again. True if members or desk secrets have changed. Never raises: see
        `problem`. May be called from any thread; it waits for the disk.

        A list with a lower number is an older copy and is not taken, because it could let a revoked
        member in again. Each file is taken by itself: a damaged `desk.seal` holds up no revocation.
        """
        with self._lock:
            before = self._held
            held, problems, list_problem = before, [], ""
            try:
                with Folder(self.path) as folder:
                    try:
                        held = self._with_list(held, _list_text(folder), folder.file(LIST))
                    except KeyringError as error:
                        list_problem = str(error)
                        problems.append(list_problem)
                    try:
                        held = _with_seal(held, folder)
                    except KeyringError as error:
                        problems.append(str(error))
            except KeyringError as error:
                list_problem = str(error)
                problems.append(list_problem)
            except OSError as error:
                list_problem = f"{self.path} cannot be read: {error}"
                problems.append(list_problem)
            self._held, self._problem = held, "; ".join(problems)
            self.list_problem = list_problem
            return held is not before

    def _with_list(self, held: _Held, text: bytes, path: str) -> _Held:
        """The whole text is compared: a date or a size would not show each exchange of a file."""
        before, wrong = self._tried
        if text == before:
            if wrong:
                raise KeyringError(wrong)
            return held
        try:
            members = members_in(text, path)
            if members.number < held.members.number:
                raise KeyringError(
                    f"{path} has the number {members.number}, and this process has read"
                    f" {held.members.number}: it is an older copy, which could let a revoked member"
                    " in again, so it is not taken. Copy the newest list here. If it is this one"
                    " (the list was changed on this host, too), write `number ="
                    f" {held.members.number + 1}` in it on the host that keeps the list, and copy"
                    " it from there"
                )
            if members.number == held.members.number:
                self._refuse_return(held.members, members, path)
        except KeyringError as error:
            self._tried = text, str(error)
            raise
        self._tried = text, ""
        if members == held.members:
            return held
        return _Held(members, held.secrets, held.desk)

    @staticmethod
    def _refuse_return(before: Members, members: Members, path: str) -> None:
        """Raise KeyringError if a key is let in again that was revoked, without a higher number."""
        if back := [name for key, name in before.revoked.items() if key in members.by_key]:
            raise KeyringError(
                f"{path} has the number {members.number}, as the list before, and lets in"
                f" {', '.join(sorted(back))}, whose key was revoked on that: two hosts have changed"
                " the list. Revoke again on the host that keeps the list, and copy it from there"
            )


_keyrings: WeakSet[Keyring] = WeakSet()


def _begin_anew() -> None:
    for each in list(_keyrings):
        each._leave_process()


os.register_at_fork(after_in_child=_begin_anew)


def is_kept_in(folder: Folder, members: Members) -> bool:
    """True if a command in this directory has written `members`, the list that is there. Otherwise
    it is a copy of the list of another host, or was changed by hand.
    """
    try:
        written = folder.read(KEPT)
    except KeyringError:  # others can write it
        return False
    return written is not None and written.strip() == members.digest.encode()


def _with_seal(held: _Held, folder: Folder) -> _Held:
    secrets = _seal_text(folder)
    if secrets.value == held.secrets.value:
        return held
    return _Held(held.members, secrets, desk_secrets_in(folder, secrets))


def _list_text(folder: Folder) -> bytes:
    text = folder.read(LIST)
    if text is None:
        raise KeyringError(
            f"{folder.path} has no {LIST}, the list of the members of the desk: copy it from"
            " another host of the desk; or begin one by `python -m aiobus keygen NAME --keyring"
            f" {folder.path}`"
        )
    return text


def _seal_text(folder: Folder) -> Hidden:
    secrets = folder.read_secret(DESK)
    if secrets is None:
        raise KeyringError(
            f"{folder.path} has no {DESK}, the secret of the desk: copy it from another host of the"
            " desk, by a way that keeps it secret (scp -p); or, for a new desk, `python -m aiobus"
            f" members rotate --keyring {folder.path}` makes one"
        )
    return secrets


def members_in(text: bytes, path: str) -> Members:
    """The list that `text` is. Raises KeyringError."""
    try:
        read = text.decode()
    except UnicodeDecodeError as error:
        raise KeyringError(f"{path} is no text: byte {error.start} is not UTF-8") from None
    members = Members.parse(read, path)
    if "\n[revoked]\n" not in f"\n{read}\n":
        # It is written last, so a list that was copied in part has none, and may look whole.
        raise KeyringError(
            f"{path} does not end with the part [revoked], which may be empty: was all of it"
            " copied? Copy it again"
        )
    return members


def desk_secrets_in(folder: Folder, secrets: Hidden) -> tuple[Hidden, ...]:
    """The desk secrets that a file has, newest first. Raises KeyringError that names the line."""
    found, reason = _parsed_seal(secrets)
    if reason:
        raise KeyringError(
            f"{folder.file(DESK)}{reason}. Copy it from another host of the desk again"
        )
    return found


def _parsed_seal(secrets: Hidden) -> tuple[tuple[Hidden, ...], str]:
    """The secrets, or what is wrong with them. Raises nothing: a traceback would show them."""
    found: list[Hidden] = []
    seen = set()
    for number, line in enumerate(secrets.value.splitlines(), 1):
        if not (word := line.strip()):
            continue
        is_hex = len(word) == 2 * SEAL and not word.strip(b"0123456789abcdefABCDEF")
        if not is_hex:
            return (), f", line {number}: a desk secret is {2 * SEAL} hexadecimal digits"
        if (value := bytes.fromhex(word.decode())) in seen:
            return (), f", line {number}: this secret is in it twice"
        seen.add(value)
        found.append(Hidden(value))
    if not found:
        return (), " is empty"
    if len(found) > MOST_SECRETS:
        return (), f" has {len(found)} secrets, more than {MOST_SECRETS}: take old ones out"
    return tuple(found), ""


def public_of(secret: Hidden) -> str:
    """The public key of a secret key, as Z85; "" if it is none. Raises KeyringError if the
    installed libzmq has no keys.
    """
    import zmq  # not sooner: a bus without keys on inproc:// does not pay for it

    if not zmq.has("curve"):
        raise KeyringError(
            "the installed libzmq has no CURVE, so there are no keys: `pip install pyzmq` has one"
            " that does"
        )
    try:
        text = secret.value.decode("ascii").strip()
        return "" if bad_key_text(text) else zmq.curve_public(text.encode()).decode()
    except (ValueError, zmq.ZMQError):
        return ""


def quoted(key: str) -> str:
    """A key for a shell: it may have any character but the quote."""
    return f"'{key}'"
