"""The transport that a URL names.

Owns the schemes and the error for every other one, and which URL and which keyring the environment
has for who is given none.
A transport is imported only if its scheme is used, so the libraries of the others need not be
installed.
"""

import os
import re
from collections.abc import Sequence

from aiobus.discovery import Discovery
from aiobus.errors import KeyringError
from aiobus.keyring import Keyring
from aiobus.limits import Limits
from aiobus.query import bad_name
from aiobus.transport import Transport

__all__ = [
    "DESK", "KEYRING", "adapter", "check_no_address", "desk_in", "keyring_of_environment", "meant",
]  # fmt: skip

DESK = "AIOBUS_URL"
"""The environment variable with the URL of the desk, for who is given none."""

KEYRING = "AIOBUS_KEYRING"
"""The environment variable with the directory of the keyring of `tcp://` buses."""


def adapter(
    url: str,
    limits: Limits,
    keyring: Keyring | None = None,
    *,
    listen: str | None = None,
    advertise: str | None = None,
) -> Transport:
    """The transport of `url`. Raises ValueError that lists the valid URLs, or for a keyring that
    would protect nothing; KeyringError if the one that AIOBUS_KEYRING names cannot be used.
    `listen` and `advertise` are for `tcp://` alone: see `Rendezvous`.
    """
    scheme, found, address = str(url).partition("://")
    if scheme in ("inproc", "ipc") and found:
        check_no_address(url, listen, advertise)
        _check_no_keyring(url, scheme, keyring)
    if scheme == "inproc" and found:
        if address:
            hint = "'inproc://' has no address, it is this one bus object; share the object"
            raise ValueError(f"url={url!r}: {hint}, or use ipc://{address}")
        from aiobus.transport import Local

        return Local()
    if scheme == "ipc" and found:
        from aiobus.discovery.directory import Directory

        return _mesh(url, Directory(address), limits)
    if scheme == "tcp" and found:
        from aiobus.discovery.rendezvous import Rendezvous

        if keyring is None:
            keyring = keyring_of_environment()
        rendezvous = Rendezvous(address, keyring, listen=listen, advertise=advertise)
        return _mesh(url, rendezvous, limits, keyring)
    hint = "'inproc://', 'ipc://name' and 'tcp://host:port' are the transports there are"
    if found := meant(url):
        hint += f"; did you mean {found!r}?"
    raise ValueError(f"url={url!r}: {hint}")


def check_no_address(url: object, listen: str | None, advertise: str | None) -> None:
    """Raise ValueError if one of these is given: they would be without effect."""
    for keyword, value in (("listen", listen), ("advertise", advertise)):
        if value is not None:
            raise ValueError(
                f"{keyword}={value!r} and url={str(url)!r}: only a bus on tcp:// listens at an"
                f" address of its own; leave {keyword}= out"
            )


def _check_no_keyring(url: str, scheme: str, keyring: Keyring | None) -> None:
    if keyring is not None:
        what = "is within this process" if scheme == "inproc" else "is for one user of one machine"
        hint = f"{scheme}:// {what}, and has no keys; leave keyring= out, or use tcp://host:port"
        raise ValueError(f"url={url!r}, keyring={keyring!r}: {hint}")


def meant(url: object) -> str:
    """The URL that `url`, which is none, was probably meant to be; "" if that cannot be said."""
    if not isinstance(url, str):
        return ""
    text = url.strip()
    if found := re.fullmatch(r"(inproc|ipc|tcp)(?:[:/]+(.*))?", text, re.IGNORECASE):
        scheme, address = found[1].lower(), found[2] or ""
        if scheme == "inproc" or not address:
            return "inproc://" if scheme == "inproc" and not address else ""
        root = "/" if scheme == "ipc" and "/" in address else ""  # a path, and no name
        return f"{scheme}://{root}{address}"
    if re.fullmatch(r"[\w.-]+:\d+", text):
        return f"tcp://{text}"
    return "" if bad_name(text) else f"ipc://{text}"


def desk_in(words: Sequence[str]) -> tuple[str, list[str]]:
    """The URL of the desk, and the other words of a command line: the first word if it has `://`,
    else the URL in AIOBUS_URL. Raises ValueError if there is none.
    """
    first, *rest = words or [""]
    if "://" in first:
        return first, rest
    if url := os.environ.get(DESK):
        return url, [*words]
    is_name = not (first.isupper() or "." in first)  # else it is a type, or a file
    found = meant(first) if is_name or ":" in first else ""
    raise ValueError(
        f"{f'{first!r} is no URL' if first else 'no URL is given'}: give that of the desk first,"
        f" such as ipc://desk or tcp://127.0.0.1:7555, or set {DESK}"
        + (f"; did you mean {found}?" if found else "")
    )


def keyring_of_environment() -> Keyring | None:
    """That of a `tcp://` bus that is given none. Raises KeyringError if it cannot be used."""
    path = os.environ.get(KEYRING)
    try:
        return Keyring.load(path) if path else None
    except KeyringError as error:
        raise KeyringError(f"{error} ({KEYRING} is {path!r})") from None


def _mesh(
    url: str, discovery: Discovery, limits: Limits, keyring: Keyring | None = None
) -> Transport:
    from aiobus.mesh.keyed import KeyedNetwork
    from aiobus.mesh.sockets import ZmqNetwork
    from aiobus.mesh.transport import MeshTransport

    most = limits.high_water_mark
    if keyring is None:
        return MeshTransport(url, ZmqNetwork(discovery, most), discovery)
    return MeshTransport(url, KeyedNetwork(discovery, most, keyring), discovery)
