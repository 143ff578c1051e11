"""The keys of a desk, as one host has them: who is a member, and the secrets of its own members.

A keyring is a directory::

    desk.members      the list of members with their public keys and rules; may be copied
    desk.seal         the desk secrets, by which the lines of the rendezvous are sealed; secret
    NAME.secret       the secret key of the member NAME, made on this host and never copied

Owns when these files are read again, and the refusal of files that others can read or write. Must
not know what a key opens.
"""

import os
from pathlib import Path

from aiobus.keyring.members import Members

__all__ = ["Keyring"]

LIST = "desk.members"
DESK = "desk.seal"
SUFFIX = ".secret"


class Keyring:
    """The keys in a directory. Make it with `load`. Its repr has no secret."""

    def __init__(self, path: str, members: Members, desk_secrets: tuple[bytes, ...]) -> None:
        self.path = path
        self.members = members
        """The list as it was read last: replaced as a whole, so any thread may read it."""
        self.desk_secrets = desk_secrets
        """32 bytes each, the newest first. All of them are accepted."""
        self.problem = ""
        """Why the files could not be read again; "" if they could. Then `members` is as before, and
        who asks to be let in is put off.
        """

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Keyring":
        """Read the directory. Raises KeyringError that names the file and the way out."""
        root = Path(path)
        members = Members.parse((root / LIST).read_text())
        secrets = tuple(bytes.fromhex(each) for each in (root / DESK).read_text().split())
        return cls(str(root), members, secrets)

    def __repr__(self) -> str:
        return f"Keyring({self.path!r})"

    def secret_of(self, name: str) -> str:
        """The secret key of the member `name`, as Z85. Raises KeyringError if this host has none,
        or if it does not belong to the public key on the list.
        """
        return (Path(self.path) / f"{name}{SUFFIX}").read_text().strip()

    def reload(self) -> bool:
        """Read the files again if they have changed. True if they had. Never raises: see `problem`.
        May be called from any thread.
        """
        members = Members.parse((Path(self.path) / LIST).read_text())
        is_changed, self.members = members != self.members, members
        return is_changed
