"""Why a link cannot be made because of keys: the causes, in words, and how often each is said.

Owns the bound of what is remembered, and the rate: who knocks a thousand times a second fills no
log and no inbox. Pure: times are monotonic seconds, and are passed in.
"""

from typing import NamedTuple

__all__ = ["CAUSES", "PERIOD", "TELLS", "Refusal", "Refusals", "words"]

PERIOD = 60.0
"""Seconds in which one cause of one address is said once, with a count."""
MOST = 1_024
"""Pairs of an address and a cause that are told apart; more are counted by their cause alone."""

CAUSES = {
    "unknown": "a bus at {where} has a key that is not on the list of members: add its key here"
    " (`python -m aiobus members add NAME KEY`), or it is no member",
    "revoked": "{name} at {where} is not linked: its key is revoked on the list of members here",
    "plain": "{what} speaks without keys: give it the keyring of this desk, or it is no member",
    "refused": "{name} at {where} does not let this bus in: the list of members there does not have"
    " the key of this bus, or has it as revoked; copy the newest desk.members to that host",
    "key": "what listens at {where} does not have the key that the list here has of {name}: copy"
    " the newest desk.members to both hosts, or another process listens there",
    "mute": "{name} at {where} accepts the connection and does not answer",
    "unlisted": "{name} at {where} is not linked, since it is not on the list of members here: copy"
    " the newest desk.members to this host",
}
"""What is said of each cause, where it was noticed."""
TELLS = {"key": "key", "mute": "mute", "plain": "plain", "unlisted": "unknown"}
"""Causes of which the other side cannot know by itself, and what it is told (`discovery.CAUSES`).
What the other side refuses, it says by itself.
"""


def words(address: str, cause: str, name: str) -> str:
    """What is said of a cause, one of CAUSES."""
    where = address or "an unknown address"
    what = f"{name} at {where}" if name else f"a program at {where}"
    return CAUSES[cause].format(where=where, name=name, what=what)


class Refusal(NamedTuple):
    """A cause, and how often it was met since it was said last. `name`: of the other bus, or ""."""

    address: str
    cause: str
    name: str
    text: str
    times: int


class Refusals:
    """The refusals of one bus."""

    def __init__(self) -> None:
        self.count = 0
        """How many there were in all."""
        self._said: dict[tuple[str, str], float] = {}
        self._unsaid: dict[tuple[str, str], Refusal] = {}

    def note(
        self, address: str, cause: str, name: str, text: str, times: int, now: float
    ) -> Refusal | None:
        """A bus was not linked. Returns what is to be said now."""
        self.count += times
        key = (address, cause)
        if key not in self._said and len(self._said) >= MOST:
            address, name, key = "", "", ("", cause)
        before = self._unsaid.pop(key, None)
        refusal = Refusal(address, cause, name, text, times + (before.times if before else 0))
        if now - self._said.get(key, -PERIOD) >= PERIOD:
            self._said[key] = now
            return refusal
        self._unsaid[key] = refusal
        return None

    def due(self, now: float) -> list[Refusal]:
        """What was counted since it was said, and is to be said again. Forgets the others whose
        minute is over.
        """
        over = [key for key, said in self._said.items() if now - said >= PERIOD]
        due = [self._unsaid.pop(key) for key in over if key in self._unsaid]
        for key in over:
            del self._said[key]
        for refusal in due:
            self._said[refusal.address, refusal.cause] = now
        return due

    def clear(self, address: str) -> None:
        """A link to this address is there: what is met from now on is news."""
        for key in [key for key in self._said if key[0] == address]:
            del self._said[key]
            self._unsaid.pop(key, None)
