"""State that outlives its publisher. docs/how-to/keeper.md has what to expect of it.

Owns the list of its modules. Imports none of them: what answers a page knows `kept` alone.
"""

__all__ = ["file", "keeper", "kept"]
