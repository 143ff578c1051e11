"""Keyrings in a directory of a test."""

import os
from pathlib import Path

import zmq

from aiobus.keyring import Keyring
from aiobus.keyring.changes import make_key
from aiobus.keyring.members import EVERYTHING, Rules


def make(path: Path, *names: str, **rules: Rules) -> Keyring:
    """A keyring with a secret of each name."""
    for name in names:
        make_key(str(path), name, rules.get(name, EVERYTHING))
    return Keyring.load(path)


def key() -> str:
    """A public key that no command made."""
    return zmq.curve_keypair()[0].decode()


def replaced(path: Path, data: str | bytes, mode: int | None = None) -> None:
    """Write a file in place of another, as `scp` to a temporary name and `mv` do."""
    before = path.stat()
    new = path.with_suffix(".new")
    new.write_bytes(data.encode() if isinstance(data, str) else data)
    os.chmod(new, before.st_mode & 0o777 if mode is None else mode)
    new.replace(path)
