"""Tcp addresses of this machine: what a URL may name and where a member may say that it listens.

Owns the rules for `host:port` and the sentences for what breaks them. Pure: looks nothing up and
opens nothing; who serves at an address is not known here.
"""

from contextlib import suppress
from ipaddress import IPv4Address
from typing import NamedTuple

__all__ = ["MAX_ADDRESSES", "Address", "address_of", "addresses_in"]

MAX_ADDRESSES = 8


class Address(NamedTuple):
    """A loopback address as a literal, so that nothing has to be looked up, and a port."""

    host: str
    port: int

    @property
    def is_v6(self) -> bool:
        """True for `::1`."""
        return ":" in self.host

    def with_port(self, port: object) -> str:
        """The endpoint `tcp://host:port` of this host and another port; `*` asks for a free one."""
        return f"tcp://[{self.host}]:{port}" if self.is_v6 else f"tcp://{self.host}:{port}"

    @property
    def endpoint(self) -> str:
        """`tcp://host:port`, the one spelling there is of it."""
        return self.with_port(self.port)

    def __str__(self) -> str:
        return self.endpoint.removeprefix("tcp://")


def address_of(endpoint: str) -> Address | None:
    """The address of a `tcp://host:port` on this machine; None for anything else, also for another
    spelling of the same.
    """
    try:
        address = _address(endpoint.removeprefix("tcp://"))
    except ValueError:
        return None
    return address if address.endpoint == endpoint else None


def addresses_in(text: str) -> list[Address]:
    """The addresses in what follows `tcp://` in a URL: one, or several separated by commas.

    Raises ValueError that names the part that is wrong and says what to write.
    """
    parts = text.split(",")
    if len(parts) > MAX_ADDRESSES:
        raise ValueError(
            f"tcp://{text} names {len(parts)} addresses, more than {MAX_ADDRESSES};"
            " a few are enough, since whoever can takes over one that is free"
        )
    addresses = [_address(part) for part in parts]
    for place, address in enumerate(addresses):
        if address in addresses[:place]:
            raise ValueError(f"tcp://{text} names {address} twice; leave one of them out")
    return addresses


def _address(part: str) -> Address:
    host, colon, port = part.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ValueError(
            f"tcp://{part}: the port {port if colon else ''!r} is not a number from 1 to 65535;"
            " every bus has to know it, so write a free one, such as tcp://localhost:7555"
        )
    if host in ("*", "0.0.0.0", "::", "[::]"):
        raise ValueError(
            f"tcp://{part}: nobody can connect to {host}; write an address that the others can"
            f" reach, such as tcp://localhost:{port}"
        )
    return Address(_literal(host, part), int(port))


def _literal(host: str, part: str) -> str:
    if host.lower() == "localhost":
        return "127.0.0.1"
    if host == "::1":
        raise ValueError(f"tcp://{part}: an IPv6 address stands in brackets, such as [::1]:7555")
    if host == "[::1]":
        return "::1"
    with suppress(ValueError):
        if (literal := IPv4Address(host)).is_loopback:
            return str(literal)
    raise ValueError(
        f"tcp://{part}: {host!r} is not this machine. This version connects processes of one"
        " machine (localhost, 127.0.0.1, [::1]); other hosts come with keys in a later version"
    )
