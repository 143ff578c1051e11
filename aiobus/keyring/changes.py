"""How the files of a keyring are made and changed: keys, members, revocation, desk secrets.

Owns what each change does to the files, and that two commands at once do not undo each other. Must
not know what is told of it (`cli.keys`). Each change is on the disk as a whole, or not at all.

The list is kept on one host, and copied. If a copy was changed as well, its number would rise
apart, and the true list be refused here as an older copy. So a new key is put on no copy.
"""

import os
import secrets
from collections.abc import Callable
from typing import NamedTuple

from aiobus.errors import KeyringError
from aiobus.keyring import (
    MOST_SECRETS,
    SEAL,
    desk_secrets_in,
    is_kept_in,
    members_in,
    public_of,
    quoted,
)
from aiobus.keyring.files import DESK, KEPT, LIST, SUFFIX, Folder, Hidden
from aiobus.keyring.members import Member, Members, Rules

__all__ = ["Made", "add", "is_kept", "listed", "make_key", "retire", "revoke", "rotate"]

READABLE = 0o644
SECRET = 0o600


class Made(NamedTuple):
    """What `make_key` has done."""

    public: str
    members: Members
    """With the new member, if `is_listed`."""
    is_begun: bool
    """There was no list, so this is a new one."""
    is_listed: bool
    """The list is kept here. Else it is as it was, and the member to be added where it is kept."""


def is_kept(path: str) -> bool:
    """True if a command has changed the list in this directory last, so it is no copy of that of
    another host. Raises KeyringError.
    """
    with Folder(path) as folder:
        return is_kept_in(folder, _members(folder))


def listed(path: str) -> tuple[Members, frozenset[str]]:
    """The list in a directory, and the names on it whose secret is there. Raises KeyringError."""
    with Folder(path) as folder:
        members = _members(folder)
        return members, frozenset(name for name in members.by_name if folder.has(name + SUFFIX))


def make_key(path: str, name: str, rules: Rules) -> Made:
    """Make the key of the member `name` in a directory, which is made if it is not there, and put
    it on the list if that is kept there. Without a list a desk is begun, with its secret. Raises
    KeyringError, and OSError if it cannot be written; a secret that is there stays as it is.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass  # what it is, is checked as it is opened
    except FileNotFoundError:
        parent = os.path.dirname(os.path.abspath(path))
        raise KeyringError(f"{path}: there is no directory {parent}: make that first") from None
    with Folder(path) as folder, folder.locked():
        file = folder.file(name + SUFFIX)
        if folder.has(name + SUFFIX):
            raise KeyringError(
                f"{file} is there already, and no secret is overwritten{_shown(folder, name)}"
            )
        is_begun = not folder.has(LIST)
        before = Members() if is_begun else _members(folder)
        is_listed = is_begun or is_kept_in(folder, before)
        public, secret = _pair()
        after = _with(before, Member(name, public, rules))
        new = [name + SUFFIX]
        if is_begun and not folder.has(DESK):
            new.append(DESK)
        made: list[str] = []
        try:
            for each in new:
                folder.create(each, _sealed([_fresh()]) if each == DESK else secret, SECRET)
                made.append(each)
            if is_listed:
                _write(folder, after)
        except OSError:
            # A secret without its place on the list would keep the next attempt out.
            if folder.read(LIST) != after.text.encode():
                for each in made:
                    folder.remove(each)
            raise
        return Made(public, after if is_listed else before, is_begun, is_listed)


def add(path: str, member: Member) -> tuple[Members, bool]:
    """Put a member on the list, or give it other rules. Returns the list, and True if it is another
    one now. Raises KeyringError if the name or the key is taken, or the key was revoked.
    """
    with Folder(path) as folder, folder.locked():
        before = _members(folder)
        if before.by_name.get(member.name) == member:
            return before, False
        after = _with(before, member)
        _write(folder, after)
        return after, True


def revoke(path: str, name: str) -> Members:
    """Move the key of a member to those that are revoked. Raises KeyringError if it is none."""
    with Folder(path) as folder, folder.locked():
        before = _members(folder)
        if name not in before.by_name:
            file = folder.file(LIST)
            if name in before.revoked.values():
                raise KeyringError(f"{name!r} was revoked before, see {file}")
            known = ", ".join(sorted(before.by_name)) or "none"
            raise KeyringError(f"{name!r} is not in {file}; members: {known}")
        after = before.without(name)
        _write(folder, after)
        return after


def rotate(path: str) -> int:
    """Put a new desk secret in front of the others. Returns how many there are then. Raises
    KeyringError if there are too many already.
    """

    def changed(old: list[Hidden]) -> list[Hidden]:
        if len(old) >= MOST_SECRETS:
            raise KeyringError(
                f"{os.path.join(path, DESK)} has {len(old)} secrets, and more than {MOST_SECRETS}"
                " are not read: drop the old ones by `python -m aiobus members retire`"
            )
        return [_fresh(), *old]

    return _change_seal(path, changed)


def retire(path: str) -> int:
    """Drop all desk secrets but the newest. Returns how many were dropped. Raises KeyringError if
    there is none.
    """
    dropped = 0

    def changed(old: list[Hidden]) -> list[Hidden]:
        nonlocal dropped
        if not old:
            raise KeyringError(
                f"{path} has no {DESK}: copy it from another host of the desk, or make one by"
                f" `python -m aiobus members rotate --keyring {path}`"
            )
        dropped = len(old) - 1
        return old[:1]

    _change_seal(path, changed)
    return dropped


def _change_seal(path: str, change: Callable[[list[Hidden]], list[Hidden]]) -> int:
    with Folder(path) as folder, folder.locked():
        found = folder.read_secret(DESK)
        old = [] if found is None else [*desk_secrets_in(folder, found)]
        new = change(old)
        if new != old:
            folder.replace(DESK, _sealed(new), SECRET)
        return len(new)


def _members(folder: Folder) -> Members:
    text = folder.read(LIST)
    if text is None:
        raise KeyringError(
            f"{folder.path} has no {LIST}: go to the host that has the list of the desk, or name"
            " its directory by --keyring; `python -m aiobus keygen NAME` begins one"
        )
    return members_in(text, folder.file(LIST))


def _with(before: Members, member: Member) -> Members:
    known = before.by_name.get(member.name)
    if known is not None and known.key != member.key:
        raise KeyringError(
            f"{member.name!r} is on the list with another key, which was made on another host or"
            f" before. If that is not used any more, take it away by `python -m aiobus members"
            f" revoke {member.name}`, and do this again; else give another name"
        )
    if (name := before.revoked.get(member.key)) is not None:
        raise KeyringError(
            f"this key was revoked, as that of {name!r}: a key that was revoked is not used again."
            f" Remove {name}{SUFFIX} on its host, and make a new one by `python -m aiobus keygen"
            f" {member.name}`"
        )
    return before.with_member(member)


def _write(folder: Folder, members: Members) -> None:
    folder.replace(LIST, members.text.encode(), READABLE)
    folder.replace(KEPT, f"{members.digest}\n".encode(), READABLE)


def _sealed(each: list[Hidden]) -> Hidden:
    return Hidden(b"".join(secret.value.hex().encode() + b"\n" for secret in each))


def _fresh() -> Hidden:
    return Hidden(secrets.token_bytes(SEAL))


def _pair() -> tuple[str, Hidden]:
    """A new key. It does not begin with `-`, which `grep` and others would take for an option."""
    import zmq  # not sooner: what only reads a list does not need it

    if not zmq.has("curve"):
        raise KeyringError(
            "the installed libzmq has no CURVE, so it makes no keys: `pip install pyzmq` has one"
            " that does"
        )
    while True:
        public, secret = zmq.curve_keypair()
        if not public.startswith(b"-"):
            return public.decode(), Hidden(secret + b"\n")


def _shown(folder: Folder, name: str) -> str:
    """The public key of a secret that is there, as the end of a sentence."""
    try:
        secret = folder.read_secret(name + SUFFIX)
        public = "" if secret is None else public_of(secret)
    except KeyringError as error:
        return f". And: {error}"
    if not public:
        return ". It is damaged, or another file: move it away, and do this again"
    return f": its public key is {quoted(public)}. For a new key move it away, and revoke that"
