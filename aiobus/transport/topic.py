"""One query that this bus has subscribed to, and whether it listens loudly or quietly.

Owns that decision: who is far behind leaves every frame, so it has them left out at their source,
and is told by a beacon now and then how far that is. Pure: it is told what happens to frames, and
asks its inlets how much they miss.
"""

from aiobus.transport import Inlet
from aiobus.wire import quiet

__all__ = ["Topic"]

LEFT = 32
"""Frames in a row that all inlets leave before a topic turns quiet."""
FAR = 2048
NEAR = 1024
"""Numbers that each inlet misses, at least, when a topic turns quiet (FAR) and while it stays so: a
page, so that what is published while the last one is under way mostly comes by itself.
"""


class Topic:
    """Who listens to one query. `name`: the topic of its frames."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.inlets: dict[Inlet, None] = {}
        self.is_quiet = False
        self._left = 0

    def __str__(self) -> str:
        return self.name[:-1].decode() + (" quietly" if self.is_quiet else " loudly")

    @property
    def live(self) -> bytes:
        """What is subscribed to now."""
        return quiet(self.name) if self.is_quiet else self.name

    @property
    def other(self) -> bytes:
        """What would be, if it were not."""
        return self.name if self.is_quiet else quiet(self.name)

    def note_frame(self, *, is_taken: bool) -> bool:
        """A frame with events has come; `is_taken` if any inlet took it. True when the topic has
        turned quiet or loud.
        """
        if is_taken:
            self._left = 0
            return self.note_moved()
        self._left += 1
        if self.is_quiet or self._left < LEFT:
            return False
        self._left = 0
        self.is_quiet = all(inlet.missing > FAR for inlet in self.inlets)
        return self.is_quiet

    def note_moved(self) -> bool:
        """Somebody may miss less than before. True when it has turned loud."""
        if not self.is_quiet or all(inlet.missing > NEAR for inlet in self.inlets):
            return False
        self.is_quiet = False
        return True
