"""Whether an orjson.Fragment may exist in this process, in constant time.

Owns the reason to believe that none does: each Fragment holds a reference to its type, so the count
of those references tells. Pure: what follows from a Fragment is not known here.
"""

from gc import get_referents, get_referrers
from sys import getrefcount

from orjson import Fragment

__all__ = ["may_exist"]


def may_exist() -> bool:
    """False only if no Fragment exists. True as well while something else refers to the type that
    did not do so when this module was loaded.
    """
    return getrefcount(Fragment) != _UNUSED


def _unused() -> int:
    """The count while no Fragment exists; 0, which is never reached, where it does not tell."""
    count = getrefcount(Fragment)
    fragment = Fragment(b"")
    counted = getrefcount(Fragment)
    del fragment
    # A Fragment that exists already is no object that the garbage collector knows, unlike all that
    # is to be counted, but for the reference of orjson itself and the argument of getrefcount.
    holders = get_referrers(Fragment)
    held = sum(item is Fragment for holder in holders for item in get_referents(holder)) + 2
    # Before 3.13, orjson does not count. Other versions may hold other references themselves.
    return held if counted == count + 1 and count >= held else 0


_UNUSED = _unused()
