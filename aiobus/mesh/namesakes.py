"""Which of two buses of one name ends.

Owns the rule, by which both decide alike, and the look whether a bus is there that has this name:
any process may say so. Must not know how peers are found and linked (`links`).
"""

from collections.abc import Callable, Collection, Iterator

from aiobus.clock import elapsed
from aiobus.diagnostics import Diagnostics
from aiobus.discovery import Member
from aiobus.mesh import Driver, Probe
from aiobus.sync import Notifier
from aiobus.wire import Answer, PeerId

__all__ = ["Namesakes"]


class Namesakes:
    """The other buses that say that they have the name of this one, `me`, and are looked for.
    `changed` is woken when it is known of one whether it is there.
    """

    def __init__(
        self, me: PeerId, diagnostics: Diagnostics, driver: Driver, changed: Notifier
    ) -> None:
        self.is_open = False
        """This bus has started; until then, another of its name may stay in its place."""
        self.is_late = False
        """Another of its name has started, or is the one that stays: this bus is the one to end."""
        self.on_late: Callable[[], None] = lambda: None
        """Called if that turns out after this bus has started."""
        self.born = elapsed()
        """When this bus started, in monotonic seconds."""
        self._me = me
        self._diagnostics = diagnostics
        self._driver = driver
        self._changed = changed
        self._sought: dict[PeerId, Probe] = {}
        """Those for which this bus may have to end, while they are looked for."""

    def __iter__(self) -> Iterator[Member]:
        """Those that are being looked for."""
        return (Member(who.name, who.endpoint) for who in self._sought)

    def __bool__(self) -> bool:
        return bool(self._sought)

    def meet(self, other: Answer) -> None:
        """Another bus of this name has answered. One that has started stays. Of two that start, the
        lower (epoch, endpoint) stays: a clock may have been set back, so both decide by the same
        two texts. Of two that met after both had started, the older stays.
        """
        who, me = other.who, self._me
        if self.is_open:
            if other.is_open:  # one that starts is about to be refused
                self._look(who, is_late=self._is_younger(other))
        elif other.is_open or (who.epoch, who.endpoint) < (me.epoch, me.endpoint):
            self._look(who, is_late=True)

    def _look(self, who: PeerId, *, is_late: bool) -> None:
        """Look whether a process listens where `who` says. `is_late`: if so, this bus is the one to
        end.
        """
        if who in self._sought and not self._sought[who].is_over:
            return
        was_open = self.is_open

        def conclude(absent: Collection[Member]) -> None:
            self._sought.pop(who, None)
            self._changed.wake()
            if absent:
                text = f"{who} at {who.endpoint} has the name of this bus, but does not listen"
                self._diagnostics.trouble("a namesake does not listen", text)
                return
            if was_open:
                text = f"another bus named {who.name!r} has come, at {who.endpoint}"
                self._diagnostics.trouble(f"the name {who.name!r} is used twice", text)
            if is_late and not self.is_late:
                self.is_late = True
                if self.is_open:  # else its start sees it
                    self.on_late()

        self._sought[who] = probe = Probe([Member(who.name, who.endpoint)], conclude)
        self._driver.probe(probe)

    def _is_younger(self, other: Answer) -> bool:
        """True if this bus started after the other, by age, since a clock may have been set back. A
        message takes time, so of two that are about as old both may seem older: there the epochs
        decide.
        """
        age = elapsed() - self.born
        if abs(age - other.age) < 1.0:
            return (self._me.epoch, self._me.endpoint) > (other.who.epoch, other.who.endpoint)
        return age < other.age
