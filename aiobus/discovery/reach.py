"""What one member knows of one rendezvous address: whether it has met the members there, and if it
may not have, why.

Owns these judgements, and the words of a problem. Pure: what was tried and what came of it is told,
with times in monotonic seconds. Must not know of sockets, nor what is done about it.
"""

import errno
import math
from collections.abc import Callable

from aiobus.errors import BusError

__all__ = ["Reach"]


class Reach:
    """What is known of the rendezvous address `endpoint`. `on_settled()` is called when no more is
    to be had by waiting for it, once or several times.

    `is_loopback`: all members are on this host. Otherwise an address that this host cannot bind is
    of another host, which may be down, or have no bus yet.
    """

    def __init__(
        self, endpoint: str, on_settled: Callable[[], None], *, is_loopback: bool = True
    ) -> None:
        self.endpoint = endpoint
        self._on_settled = on_settled
        self._is_loopback = is_loopback
        self.was_reached = False
        """True once a registry has answered: serving here is from then on a takeover."""
        self.is_connected = False
        """True while there is a connection to a registry here that has answered."""
        self.is_vacant = False
        """True if it is of another host, which refuses connections: no bus of that host is here."""
        self.is_unusable = False
        """True if no member can be met here: another program answers, or no member may bind it."""
        self.problem = "no bus serves there"
        """Why members here may not have been met: a part of a sentence in warnings and errors."""
        self._denial = ""
        """What is wrong with the keys of the registry here and of this member, and the way out."""
        self._is_ended = False
        """True if the last connection was ended unanswered: by a registry that died, or by another
        program, which does it again.
        """
        self._unknown_since: float | None = -math.inf

    @property
    def is_known(self) -> bool:
        """True if there are no members here that this one has not met."""
        return self._unknown_since is None

    def unknown_for(self, now: float) -> float:
        """For how many seconds there may have been members here that this one has not met."""
        return 0.0 if self._unknown_since is None else now - self._unknown_since

    @property
    def error(self) -> BusError:
        """What is raised by a start if `is_unusable`."""
        if self._denial:
            return BusError(f"{self.endpoint} {self._denial}")
        return BusError(
            f"{self.endpoint} cannot be a rendezvous address: {self.problem}. Free that address, or"
            " give every bus of this desk another one"
        )

    def _settle(self) -> None:
        """This member serves here, a registry has answered, or nothing listens here."""
        self._unknown_since, self._denial = None, ""
        self.is_unusable = self._is_ended = False
        self._on_settled()

    # What was tried, and what came of it.

    def note_try(self, now: float) -> None:
        """Another member may serve here, to which this one begins to connect."""
        if self._unknown_since is None:
            self._unknown_since = now
        self.is_vacant = False

    def note_unresolved(self, error: OSError, *, is_final: bool = True) -> None:
        """Its name is not found. Not `is_final`: it is looked for again before a start goes on."""
        self.problem = f"its name cannot be resolved ({error.strerror or error})"
        if is_final:
            self._on_settled()

    def note_serving(self) -> None:
        """This member serves here."""
        self.is_vacant = False
        self._settle()

    def note_frozen(self) -> None:
        """This member serves here, and one that was connected to the registry before is frozen."""
        self._unknown_since = -math.inf

    def note_thawed(self) -> None:
        """No such member is frozen any more."""
        self._settle()

    def note_silence(self, what: str) -> None:
        """A connection is neither accepted nor refused; `what` the attempt came to."""
        self.problem = f"it cannot be reached ({what})"
        if not self._is_loopback:  # its host is down
            self._on_settled()

    def note_refusal(
        self, error: OSError | None, *, observes: bool, serves: bool, is_linked: bool
    ) -> None:
        """A connection is refused. `error`: why this member may not serve here. `observes`: it
        serves nowhere. `serves`, `is_linked`: it serves at another address, or is connected there.
        """
        is_elsewhere = error is not None and error.errno == errno.EADDRNOTAVAIL
        self.is_vacant = is_elsewhere and not (self._is_loopback or observes)
        self.is_unusable = error is not None and not (self.is_vacant or observes)
        if observes:
            self._settle()  # it waits for a bus that serves there
        elif self.is_vacant:
            self.problem = "that is another host, and no bus serves there yet"
            if serves or is_linked:
                self._settle()  # a bus of that host takes it
        elif error is not None:
            self.problem = f"nothing listens there, and this process may not ({error.strerror})"
        elif serves:
            self._settle()  # the next member that serves nowhere takes it
        else:
            self.problem = "no bus serves there, and it is in use all the same"

    def note_connection(self) -> None:
        """A connection is accepted."""
        if not self.is_unusable:
            self.problem = "the process that listens there accepts connections but does not answer"

    def note_answer(self) -> None:
        """A registry has answered on that connection."""
        self.was_reached = self.is_connected = True
        self._settle()

    def note_distrust(self, problem: str, *, is_proven: bool, denial: str = "") -> None:
        """What answers here is no registry of this desk. A start fails for that, but not if
        `is_proven`: another registry shares a secret with this member. Then a stranger has taken
        an address of the desk, and is to keep no member of it from starting.
        """
        self.problem, self._denial, self.is_unusable = problem, denial, not is_proven

    def note_end(self, *, is_answered: bool, is_proven: bool) -> None:
        """The connection has ended by itself."""
        if is_answered:
            return
        what = "the process that listens there closes each connection unanswered"
        if self.is_unusable or self._is_ended:
            self.note_distrust(what, is_proven=is_proven)
        self.problem, self._is_ended = what, True
