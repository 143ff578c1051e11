"""Whether an orjson.Fragment may exist in this process, in constant time.

Owns the reason to believe that none does: each Fragment holds a reference to its type, so the count
of those references tells. Pure: what follows from a Fragment is not known here.
"""

from functools import partial
from gc import get_referents, get_referrers
from sys import getrefcount

from orjson import Fragment

__all__ = ["UNUSED", "may_exist", "references"]

references = partial(getrefcount, Fragment)
"""How many references to the type there are: `UNUSED` as long as no Fragment exists, which is what
`may_exist` asks, by one call more.
"""


def may_exist() -> bool:
    """False only if no Fragment exists. True also while the type has another name than those it had
    when this module was loaded.
    """
    return references() != UNUSED


def _unused() -> int:
    """The count while no Fragment exists; 0, which no count is, if the count tells nothing."""
    count = references()
    fragment = Fragment(b"")
    counted = references()
    del fragment
    # The garbage collector knows all that refers to the type, `references` among it, except for
    # Fragments, which may exist already, and orjson's own reference.
    holders = get_referrers(Fragment)
    held = sum(item is Fragment for holder in holders for item in get_referents(holder)) + 1
    # A Fragment of orjson before 3.13 holds no reference. A later one may hold more of its own.
    return held if counted == count + 1 and count >= held else 0


UNUSED = _unused()
