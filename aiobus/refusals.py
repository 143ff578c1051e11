"""Why one bus is not linked with another because of keys: the causes, in words, and how often each
is said.

Owns the codes and their sentences, the bound of what is remembered, and the rate: who knocks a
thousand times a second fills no log and no inbox. Pure: times are monotonic seconds, and are given.
No code comes from a peer unchecked, so no text of a peer is ever said.
"""

import math
from collections.abc import Collection
from typing import NamedTuple

__all__ = [
    "DENIALS", "NOTICED", "SAID_SECONDS", "TELLS", "TOLD", "Refusal", "Refusals", "Words", "words",
]  # fmt: skip

SAID_SECONDS = 60.0
"""Between two lines about the same cause of the same address."""
MOST = 1_024
"""Addresses and causes that are told apart in that time; the rest are said by cause alone."""

REVOKED = "revoked"
BY_NAME = (REVOKED, "unproven")
"""Causes that are one for a name, wherever it is."""
NEWEST = "copy the newest desk.members to both hosts"
NOTICED = {
    "unknown": "a bus at {where} has a key that is not on the list of members here: if it is one of"
    " this desk, copy the newest desk.members to this host, or add its key by `python -m aiobus"
    " members add NAME KEY`",
    "revoked": "{name} at {where} is not linked: its key is revoked on the list of members here",
    "plain": "{what} speaks without keys: if it is a bus of this desk, give it keyring= or"
    " AIOBUS_KEYRING",
    "mistaken": "{what} expects another key of this bus: its desk.members is not that of this host,"
    f" or it means another bus; {NEWEST}",
    "garbled": "{what} is no bus, or damages what it sends: it is not let in",
    "refused": "{name} at {where} does not let this bus in: the list of members there does not have"
    " the key of this bus, or has it as revoked. If this bus is a member, copy the newest"
    " desk.members to that host",
    "key": "what listens at {where} does not prove the key that the list here has of {name}:"
    f" {NEWEST}; or {{name}} runs there with an older key: start it again; or it cannot read its"
    " list of members: see its log; or another process listens there",
    "mute": "{name} at {where} accepts the connection and does not answer: it is stopped, cannot"
    " read its list of members, or is no bus with keys",
    "unproven": "a bus has said at the meeting place that it is {name} at {where}, and does not"
    " prove it on a link: the network lets no link through between the two, or it has the secret of"
    " the desk and is no member",
    "unlisted": "{name} at {where} is not linked, since it is not on the list of members here: if"
    " it is one of this desk, copy the newest desk.members to this host",
}
"""Why this bus makes no link to another, which it has noticed itself."""
TOLD = {
    "unknown": "its list of members does not have the key of this bus; copy the newest desk.members"
    " to that host",
    "revoked": "its list of members says that the key of this bus is revoked; a revoked key is not"
    " used again. If this bus is a member, move its secret away and make a new key by `python -m"
    " aiobus keygen`",
    "key": "this bus did not prove the key that its list of members has of it; start this bus"
    f" again if its key was made anew, and {NEWEST}; or this bus cannot read the list on its host",
    "name": "this bus spoke under a name that is not that of its key; look for another program that"
    " has the secret of this bus",
    "rules": "its list of members does not allow this bus what it does; desk.members has the rules"
    " of this bus",
    "plain": "this bus spoke to it without keys; give this bus keyring= or AIOBUS_KEYRING",
    "mute": "this bus accepts its connection and does not answer; look whether this bus is blocked,"
    " or cannot read its keyring",
    "version": "this bus speaks another version of the protocol; run the same version of aiobus on"
    " both hosts",
}
"""Why another bus makes no link to this one, which it tells by such a code; what this one says."""
TELLS = {
    "key": "key",
    "mute": "mute",
    "plain": "plain",
    "revoked": "revoked",
    "unlisted": "unknown",
}
"""What this bus has noticed and the other cannot tell exactly by itself, and what it is told."""


class Words(NamedTuple):
    """What is said of the other side, behind its address: by the guest, and by the registry."""

    of_registry: str
    of_guest: str


DENIALS = {
    "secret": Words(
        *["does not share this desk's secret: copy the file desk.seal of the one host to the other"]
        * 2
    ),
    "keys": Words(
        "is a desk with keys and this bus has no keyring: give keyring= or AIOBUS_KEYRING",
        "has no keyring and this is a desk with keys: give it keyring= or AIOBUS_KEYRING",
    ),
    "plain": Words(
        "is a desk without keys and this bus has a keyring: give the buses there keyring= or"
        " AIOBUS_KEYRING, or this bus another address",
        "has a keyring and this is a desk without keys: give the buses here keyring= or"
        " AIOBUS_KEYRING, or it another address",
    ),
    "version": Words(
        *["speaks another version of the protocol: run the same version of aiobus on both"] * 2
    ),
}
"""Why a connection to a rendezvous address cannot be sealed, by the code that its registry says."""


class Refusal(NamedTuple):
    """What happened `times` times: `cause`, of whoever is at `address`."""

    address: str
    """Where it is; "" if that is not known, or if too many others were refused."""
    cause: str
    """One of NOTICED, `told` and one of TOLD, or a sentence whose subject is that address."""
    name: str = ""
    """Of the other bus, as far as it is known; not proven."""
    times: int = 1


def words(refusal: Refusal) -> str:
    """What is said of a refusal whose cause is a code."""
    if (code := refusal.cause.removeprefix("told ")) != refusal.cause:
        return f"{refusal.name or 'a bus'} makes no link to this bus: {TOLD[code]}"
    where, name = refusal.address or "an unknown address", refusal.name or "a bus"
    what = f"{name} at {where}" if refusal.name else f"a program at {where}"
    return NOTICED[refusal.cause].format(where=where, name=name, what=what)


class Refusals:
    """What was said within the last minute, and what has happened since. One cause of one address,
    or of one name without an address, is said once a minute, with a count; nothing is uncounted. A
    name that is revoked, or that does not prove to be one, is said once, wherever it is: this bus
    makes no link to it and does not let it in, at two addresses.
    """

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], float] = {}
        self._unsaid: dict[tuple[str, str], Refusal] = {}

    def __len__(self) -> int:
        return len(self._said)

    def note(self, refusal: Refusal, now: float) -> Refusal | None:
        """It has happened. Returns what is to be said now; None if it was said within the last
        minute: then it is counted. Beyond 1,024 causes and addresses it has no address and no name.
        """
        key = _key(refusal)
        if key not in self._said and len(self._said) >= MOST:
            refusal = refusal._replace(address="", name="")  # there are few causes
            key = _key(refusal)
        if (before := self._unsaid.pop(key, None)) is not None:
            refusal = refusal._replace(times=before.times + refusal.times)
        if now - self._said.get(key, -math.inf) >= SAID_SECONDS:
            self._said[key] = now
            return refusal
        self._unsaid[key] = refusal
        return None

    def due(self, now: float) -> list[Refusal]:
        """What was counted and is to be said now, a minute after it was said last. Forgets the
        others whose minute is over. To be called from time to time.
        """
        over = [key for key, said in self._said.items() if now - said >= SAID_SECONDS]
        for key in over:
            del self._said[key]
        due = [self._unsaid.pop(key) for key in over if key in self._unsaid]
        for refusal in due:
            self._said[_key(refusal)] = now
        return due

    def forget(self, linked: Collection[str], names: Collection[str] = ()) -> None:
        """Links to these addresses are there, and to members of these names: what is met there from
        now on is news, and that one of them is revoked.
        """
        known = {(name, REVOKED) for name in names}
        for key in [key for key in self._said if key[0] in linked or key in known]:
            del self._said[key]
            self._unsaid.pop(key, None)


def _key(refusal: Refusal) -> tuple[str, str]:
    if refusal.cause in BY_NAME and refusal.name:
        return refusal.name, refusal.cause
    return refusal.address or refusal.name, refusal.cause
