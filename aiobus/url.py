"""The transport that a URL names.

Owns the schemes and the error for every other one. A transport is imported only if its scheme is
used, so the libraries of the others need not be installed.
"""

from aiobus.discovery import Discovery
from aiobus.limits import Limits
from aiobus.transport import Transport

__all__ = [
    "adapter",
]


def adapter(url: str, limits: Limits) -> Transport:
    """The transport of `url`. Raises ValueError that lists the valid URLs."""
    scheme, found, address = str(url).partition("://")
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

        return _mesh(url, Rendezvous(address), limits)
    hint = "'inproc://', 'ipc://name' and 'tcp://host:port' are the transports there are"
    raise ValueError(f"url={url!r}: {hint}")


def _mesh(url: str, discovery: Discovery, limits: Limits) -> Transport:
    from aiobus.mesh.sockets import ZmqNetwork
    from aiobus.mesh.transport import MeshTransport

    return MeshTransport(url, ZmqNetwork(discovery, limits.high_water_mark), discovery)
