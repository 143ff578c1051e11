"""Which adapter a URL asks for.

Owns the schemes there are and the sentence for every other one. An adapter is imported only when
its scheme is asked for, so that its libraries need not be there otherwise.
"""

from aiobus.transport import Transport

__all__ = ["adapter"]


def adapter(url: str) -> Transport:
    """The transport of `url`. Raises ValueError that says what there is."""
    if url == "inproc://":
        from aiobus.transport.local import Local

        return Local()
    if str(url).startswith("inproc:"):
        hint = "'inproc://' has no address, it is this one bus object; share the object"
        raise ValueError(f"url={url!r}: {hint}")
    raise ValueError(f"url={url!r}: 'inproc://' is the transport there is")
