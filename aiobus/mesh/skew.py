"""How far the clock of a peer is from the clock of this machine, by what its answers say.

Owns the estimate and the judgement. A peer reads its clock between the moment at which it was asked
first and the moment at which its answer was read. So the middle of the two is right to half of the
time between them, whatever has taken so long: a blocked loop makes the estimate less exact, and
never wrong. Pure: it takes times, and returns what follows. Times of this machine are monotonic
seconds, those of a clock are Unix seconds.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from aiobus.presence import MOST_SKEW

__all__ = ["AGAIN", "Clock", "Sample", "Skew"]

OVER = 0.08
"""Seconds of skew below which a warning is over: less, so that it does not come and go."""
AGAIN = 60.0
"""Seconds after which a peer is asked again."""
SOON = 1.0
"""The same, after an answer that was not exact. It doubles each time, up to `AGAIN`."""
EXACT = 0.02
"""Seconds of error, or less: enough to judge by."""
WINDOW = 600.0
"""Seconds that a sample counts."""
KEPT = 8
"""Samples of one peer."""
DRIFT = 100e-6
"""Seconds a second by which two clocks may go apart that no NTP sets."""
STEP = 0.01
"""Seconds by which the own clock has been set, or the machine was suspended."""
TICK_OF_CLOCK = 1e-6
"""A clock is told in microseconds."""


class Sample(NamedTuple):
    """One answer. `skew`: seconds that the clock of the peer was ahead at the moment `at`, right to
    `error` seconds.
    """

    at: float
    skew: float
    error: float

    @classmethod
    def of(cls, clock: float, asked: float, read: float, wall: float) -> "Sample":
        """A peer that was asked at `asked` has read `clock`. Its answer was read at `read`, which
        is `wall` by the clock of this machine.
        """
        half = max(0.0, read - asked) / 2
        return cls(read - half, clock - (wall - half), half + TICK_OF_CLOCK)

    def after(self, now: float) -> "Sample":
        """What it says at a later time: the two clocks may have gone apart since."""
        return self._replace(error=self.error + DRIFT * max(0.0, now - self.at))


class Clock:
    """The clock of this machine beside its monotonic one."""

    def __init__(self) -> None:
        self._ahead: float | None = None
        self._slack = 0.0

    def is_set(self, before: float, wall: float, after: float) -> bool:
        """True if the clock was set since the last call, or the machine was suspended. `wall` was
        read between the monotonic `before` and `after`.
        """
        ahead, slack = wall - (before + after) / 2, (after - before) / 2
        last, most = self._ahead, STEP + slack + self._slack
        self._ahead, self._slack = ahead, slack
        return last is not None and abs(ahead - last) > most


@dataclass
class Skew:
    """The clock of one peer."""

    is_warned: bool = False
    """The last that was said of it is that its skew is above `MOST_SKEW`."""
    is_news: bool = False
    """There was an answer, and it was not judged yet."""
    _samples: list[Sample] = field(default_factory=list)
    _asked_again: float = -math.inf
    _wait: float = SOON

    def add(self, sample: Sample) -> None:
        """The peer has answered. Of what was known, what is less exact is forgotten, and what
        contradicts it: then the clock of the peer was set.
        """
        now = sample.at
        kept = [
            each
            for each, then in zip(self._samples, self._at(now), strict=True)
            if then.error < sample.error
            and abs(then.skew - sample.skew) <= then.error + sample.error
        ]
        self._samples = [*kept[: KEPT - 1], sample]
        self.is_news = True

    def forget(self) -> None:
        """The clock of this machine was set: nothing is known any more."""
        self._samples, self._asked_again, self._wait = [], -math.inf, SOON

    def note_asked(self, now: float) -> None:
        """A question is answered: when the next is due depends on what is known now."""
        if now < self._asked_again:
            return
        best = self.best(now)
        is_exact = best is not None and best.error <= EXACT
        self._wait = AGAIN if is_exact else min(self._wait * 2, AGAIN)
        self._asked_again = now + self._wait

    def is_due(self, now: float) -> bool:
        """True when the peer is to be asked."""
        return now >= self._asked_again

    def best(self, now: float) -> Sample | None:
        """The most exact of what is known; None if nothing is."""
        known = [each for each in self._at(now) if now - each.at < WINDOW]
        return min(known, key=lambda each: each.error, default=None)

    def judge(self, now: float) -> Sample | None:
        """What is to be said now: a skew that surely is above `MOST_SKEW`, or one that was warned
        of and is not any more. None if nothing is. It is said once.
        """
        best = self.best(now)
        self.is_news = False
        if best is None:
            return None
        size = abs(best.skew)
        if not self.is_warned and size - best.error > MOST_SKEW:
            self.is_warned = True
        elif self.is_warned and size < OVER:
            self.is_warned = False
        else:
            return None
        return best

    def _at(self, now: float) -> list[Sample]:
        return [each.after(now) for each in self._samples]
