"""Whether an orjson.Fragment may exist in this process, in constant time.

Owns the reason to believe that none does: each Fragment holds a reference to its type, so the count
of those references tells. Pure: what follows from a Fragment is not known here.
"""

from gc import get_referents, get_referrers
from sys import getrefcount

from orjson import Fragment

__all__ = ["may_exist"]


def may_exist() -> bool:
    """False only if no Fragment exists. True also while the type has another name than those it had
    when this module was loaded. Takes 50 ns.
    """
    return getrefcount(Fragment) != _UNUSED


def _unused() -> int:
    """The count while no Fragment exists; 0, which no count is, if the count tells nothing."""
    count = getrefcount(Fragment)
    fragment = Fragment(b"")
    counted = getrefcount(Fragment)
    del fragment
    # The garbage collector knows all that refers to the type except for Fragments, which may exist
    # already, and two more: orjson's own reference and the argument of getrefcount.
    holders = get_referrers(Fragment)
    held = sum(item is Fragment for holder in holders for item in get_referents(holder)) + 2
    # A Fragment of orjson before 3.13 holds no reference. A later one may hold more of its own.
    return held if counted == count + 1 and count >= held else 0


_UNUSED = _unused()
