"""A journal: events in a file, in the order in which they were committed.

Owns the public name. docs/journal.md has the format and the promises.
"""

from aiobus.journal.reader import Journal

__all__ = ["Journal"]
