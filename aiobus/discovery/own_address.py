"""Where one member of a rendezvous listens, and what others are told of that.

Owns what `listen=` and `advertise=` mean, and their error texts. Must not know what the rendezvous
addresses are used for, but whether other hosts can reach them.
"""

import logging
from collections.abc import Callable, Sequence

from aiobus.discovery import OBSERVES, is_observer, place_of
from aiobus.discovery.hosts import Resolver, outward
from aiobus.discovery.roster import Address, Place, advertise_in, listen_in
from aiobus.errors import BusError

__all__ = ["OwnAddress"]

log = logging.getLogger("aiobus.mesh")

RESOLVE_SECONDS = 1.0


class OwnAddress:
    """Where a member listens whose rendezvous addresses are `places`.

    `listen`: a `host` or `host:port` of this host; `0.0.0.0` and `[::]` are all of its addresses.
    By default a free port of the address that others see. `advertise`: what others are told
    instead, if they reach it by another address, name or port. Raises ValueError if one of these is
    invalid.
    """

    def __init__(
        self, places: Sequence[Place], listen: str | None = None, advertise: str | None = None
    ) -> None:
        self._first = places[0]
        self._listen = None if listen is None else listen_in(listen)
        self._advertise = None if advertise is None else advertise_in(advertise)
        self.is_loopback = all(each.is_loopback for each in places) and (
            self._listen is None or self._listen.is_loopback
        )
        """True if only processes of this host can be members: the addresses are loopback, and where
        this member listens is so too.
        """
        self.outward = ""
        """The address of this host that others see; "" before `choose`, and if there is none."""
        if self.is_loopback and not (self._advertise is None or self._advertise.is_loopback):
            raise ValueError(
                f"advertise={advertise!r}: this bus listens on a loopback address, which no other"
                " host reaches, as all of this url are; give listen= too, such as listen='0.0.0.0'"
            )
        told = self._advertise or self._listen
        if not self.is_loopback and told is not None and told.is_loopback:
            given = f"advertise={advertise!r}" if self._advertise else f"listen={listen!r}"
            raise ValueError(
                f"{given}: no other host reaches a loopback address; give advertise= an address"
                " that it reaches"
            )

    def choose(self, name: str, toward: Sequence[Address]) -> Address:
        """Where `name` is to listen, with port 0 for any free one. `toward`: the rendezvous
        addresses, by the way to which the own address is found. Raises BusError if there is none.
        """
        given = None if self._listen is None else Address(*self._listen)
        if self.is_loopback:
            return given or Address(self._first.host, 0)
        is_v6 = None if given is None or given.host == "::" else given.is_v6
        problem = ""
        try:
            self.outward = outward(toward, is_v6=is_v6)
        except OSError as error:
            problem = str(error.strerror)
        if given is not None and not (given.is_wildcard or given.is_loopback):
            self.outward = given.host
        if given is not None and (self.outward or self._advertise is not None):
            return given
        if given is None and self.outward:
            return Address(self.outward, 0)
        raise BusError(
            f"{name} finds no address of this host that others could reach ({problem}). Give it"
            " one: listen='10.0.0.5', or listen='0.0.0.0' with what others are told as advertise="
        )

    def bind(self, bind: Callable[[str], str], own: Address, *, observes: bool) -> str:
        """Let the member listen at `own` by `bind`, and return the endpoint. Raises what `bind`
        does, and BusError if it is `listen` that cannot be.
        """
        endpoint = own.with_port(own.port or "*")
        try:
            return bind(endpoint + OBSERVES if observes else endpoint)
        except OSError as error:
            if self._listen is None:
                raise
            raise BusError(
                f"listen={str(own) if own.port else own.host!r}: this bus cannot listen there"
                f" ({error.strerror or error}). Give every bus of a host a port of its own, or"
                " leave the port out for any free one"
            ) from error

    async def told(self, name: str, bound: str) -> str:
        """The endpoint that others are told, of one that is bound. Waits 1 s at most, for a name in
        `advertise`. Raises BusError if it is not resolved by then.
        """
        end = OBSERVES if is_observer(bound) else ""
        host, port = _split(place_of(bound))
        place = self._advertise or Place(host, port)
        resolver = Resolver(place)
        try:
            address = await resolver.address(RESOLVE_SECONDS)
        except OSError as error:
            raise BusError(
                f"advertise={place.host!r}: it cannot be resolved here ({error.strerror or error});"
                " give the address itself"
            ) from error
        finally:
            resolver.cancel()
        if self._advertise is None and not address.is_wildcard:
            return bound
        is_renamed = address.is_loopback and not self.is_loopback and bool(self.outward)
        if address.is_wildcard or is_renamed:
            if is_renamed:
                text = "%s: %s is %s on this host, which no other host reaches: others are told %s"
                log.info(text, name, place.host, address.host, self.outward)
            address = Address(self.outward, address.port)
        return Address(address.host, address.port or port).endpoint + end


def _split(endpoint: str) -> tuple[str, int]:
    """The host, which may be a wildcard, and the port of an endpoint."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
