"""Something asked of several peers, again and again until each has answered or gone.

Owns the waiting of `subscribe` and `flush`. ZeroMQ does not send a message again after a break, so
whoever asks repeats it. Must not know what is asked nor how.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Any

from aiobus.sync import Notifier

__all__ = [
    "RoundTrip",
    "RoundTrips",
]

FIRST_PAUSE = 0.1
LAST_PAUSE = 1.0
"""Seconds until a question that somebody waits for is repeated, at first and at last; each pause
is twice the one before.
"""

Send = Callable[[int, Collection[str]], None]
"""Asks the peers at these endpoints, under a number that their answers will have."""
OnAnswer = Callable[[Any], None]
"""Is given what a peer answered, once."""


class RoundTrip:
    """One question under way. `waiting`: who has not answered; `gone`: who will not any more. Peers
    go by their endpoint: a name may be that of a dead one and of its successor.
    """

    def __init__(self, number: int, peers: Iterable[str], send: Send, on_answer: OnAnswer) -> None:
        self.number = number
        self.waiting = set(peers)
        self.gone: set[str] = set()
        self.send = send
        self.on_answer = on_answer
        self.turns = Notifier()

    async def done(
        self, timeout: float, is_excused: Callable[[str], bool] = lambda _: False
    ) -> set[str]:
        """Wait until each peer has answered, has gone or is excused, `timeout` seconds at most;
        return those that have not answered and have not gone. The question goes on. While somebody
        waits it is repeated sooner than every second: of a burst, ZeroMQ drops what it cannot
        queue, this among it.
        """
        pause = FIRST_PAUSE
        try:
            async with asyncio.timeout(timeout):
                while not all(map(is_excused, self.waiting)):
                    try:
                        async with asyncio.timeout(pause):
                            await self.turns.wait()
                    except TimeoutError:
                        self.send(self.number, self.waiting)
                        pause = min(2 * pause, LAST_PAUSE)
        except TimeoutError:
            pass
        return set(self.waiting)


class RoundTrips:
    """The questions under way of one bus."""

    def __init__(self) -> None:
        self._rounds: dict[int, RoundTrip] = {}
        self.number = 0
        """The number of the last question."""

    def ask(self, peers: Iterable[str], send: Send, on_answer: OnAnswer) -> RoundTrip:
        """Ask each of `peers` now, and again with each `repeat` until it has answered."""
        self.number += 1
        round = RoundTrip(self.number, peers, send, on_answer)
        if round.waiting:
            self._rounds[self.number] = round
            send(self.number, round.waiting)
        return round

    def repeat(self) -> None:
        """A second has passed."""
        for number, round in self._rounds.items():
            round.send(number, round.waiting)

    def answer(self, number: int, peer: str, value: object) -> None:
        """A peer has answered; twice is no error."""
        round = self._rounds.get(number)
        if round is not None and peer in round.waiting:
            self._leave(number, round, peer)
            round.on_answer(value)

    def lose(self, peer: str, *, is_missed: bool = True) -> None:
        """A peer will not answer any more. It is not missed if it closed, or was never there."""
        for number, round in list(self._rounds.items()):
            if peer in round.waiting:
                if is_missed:
                    round.gone.add(peer)
                self._leave(number, round, peer)

    def drop(self, round: RoundTrip | None) -> None:
        """Nobody wants to know any more."""
        self._rounds = {n: each for n, each in self._rounds.items() if each is not round}

    def end(self) -> None:
        """Nobody will answer any more."""
        for number, round in list(self._rounds.items()):
            for peer in tuple(round.waiting):
                round.gone.add(peer)
                self._leave(number, round, peer)

    def _leave(self, number: int, round: RoundTrip, peer: str) -> None:
        round.waiting.discard(peer)
        if not round.waiting:
            del self._rounds[number]
        round.turns.wake()
