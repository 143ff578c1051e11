"""Where a subscription stands in one source's numbers, and what that says about loss.

Owns the decision "is something missing, and what exactly?". Pure: it is told what came and answers
what to do.
"""

from dataclasses import dataclass

from aiobus.history import Page

__all__ = ["Cursor", "Gap"]


@dataclass(frozen=True, slots=True)
class Gap:
    """The events of one source in `(after, upto]` that a query matched are lost: exact in seqs, an
    upper bound in events. What history still holds of them, being of another type, is handed over
    after it.
    """

    after: int
    upto: int
    reason: str


class Cursor:
    """One subscription's place in the numbers of one (source, epoch).

    While it is live, events are handed over as they come. Once `behind`, live events are left alone
    (history keeps them) and the place moves only by pages, until a page reaches the newest event.
    """

    __slots__ = ("_reported", "behind", "last")

    def __init__(self, last: int = 0, *, behind: bool = False) -> None:
        self.last = last
        """Everything up to this seq was handed over or reported; meaningful while `behind`."""
        self.behind = behind
        self._reported = 0

    def fall_behind(self, seq: int) -> None:
        """`seq` is the first event there was no room for; everything before it was handed over."""
        self.last = seq - 1
        self.behind = True

    def advance(self, page: Page) -> Gap | None:
        """Take a page that was asked for with `after = last`; return what is lost before its first
        event, unless an earlier page has said so.
        """
        known = max(self.last, self._reported)
        gap = None
        if page.evicted > known:
            gap = Gap(known, page.evicted, "history no longer holds it")
            self._reported = page.evicted
        self.last = page.to
        self.behind = page.to < page.newest
        return gap
