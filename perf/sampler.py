"""Where a process spends its time, by looking at it a few hundred times a second.

Owns the timer and the counting. A profiler that sees every call makes calls dear and what they call
cheap; this one costs nothing between two looks. Time inside a call of C counts for the line that
made it. Must not know what runs.
"""

import signal
from collections import Counter
from pathlib import Path
from types import FrameType

__all__ = ["Sampler"]

SECONDS = 0.001
"""Of processor time; the kernel rounds it up to its tick."""


class Sampler:
    """`start` and `stop` in the main thread."""

    def __init__(self) -> None:
        self._alone: Counter[str] = Counter()
        self._below: Counter[str] = Counter()

    def start(self) -> None:
        """Look from now on."""
        signal.signal(signal.SIGPROF, self._look)
        signal.siginterrupt(signal.SIGPROF, False)
        signal.setitimer(signal.ITIMER_PROF, SECONDS, SECONDS)

    def stop(self, count: int = 18) -> list[str]:
        """Stop looking; the functions with the largest shares, by themselves and with all that they
        call.
        """
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        seen = max(1, self._alone.total())
        told = [f"{seen} samples", "by itself  with all it calls"]
        for name, hits in self._alone.most_common(count):
            told.append(f"{hits / seen:9.1%}  {self._below[name] / seen:6.1%}  {name}")
        told.append("and, with the largest shares of what they call:")
        shown = dict(self._alone.most_common(count))
        others = [each for each in self._below.most_common(2 * count) if each[0] not in shown]
        for name, hits in others[:count]:
            told.append(f"{self._alone[name] / seen:9.1%}  {hits / seen:6.1%}  {name}")
        return told

    def _look(self, number: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self._alone[_name(frame)] += 1
        names = set()
        while frame is not None:
            names.add(_name(frame))
            frame = frame.f_back
        self._below.update(names)


def _name(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return f"{frame.f_code.co_qualname} ({path.parent.name}/{path.name})"
